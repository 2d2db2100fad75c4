"""Read one series' pixels into a `Volume` of Hounsfield units."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_frames
from pydicom.pixels.utils import iter_pixels, pixel_array
from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from ..errors import InputDamaged, InputUnreadable, SeriesFailed, SeriesRejected
from ..imaging.volume import PADDING_HU, Geometry, Volume
from ..system.names import readable
from .files import IMAGE, Upto, encoding_of, open_archive, read_slice
from .gates import (
    DAMAGED_COPY,
    DUPLICATE_SLICES,
    MIN_COVERAGE_MM,
    MIN_SLICES,
    MIXED_SIZE,
    NO_GEOMETRY,
    Gate,
    register_gate,
)
from .headers import first_item, quiet_pydicom, stated, text
from .series import SAME_POSITION_MM, Finding, Series, SliceRef, increment_of, slice_normal, slice_positions

_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "PixelData",
    "ModalityLUTSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip

UNDECODABLE = register_gate(Gate(code="undecodable", sentence="The pixels of an image cannot be decoded."))
NO_RESCALE = register_gate(
    Gate(
        code="no-rescale",
        sentence="The header does not say how stored values become Hounsfield units, or not for all "
        "images, or they are none; signed values without any rescale are taken as HU with a warning.",
    )
)
BLANK_SLICES = register_gate(
    Gate(
        code="blank-slices",
        sentence="Slices show nothing (a single value): left out with a warning at the ends of the "
        "stack, else the series is rejected.",
    )
)
PADDING = register_gate(
    Gate(
        code="padding",
        sentence="The header's padding value lies among tissue values and was not applied.",
        fatal=False,
    )
)
HU_IMPOSSIBLE = register_gate(
    Gate(
        code="hu-impossible",
        sentence="Values that no CT can hold: padding that the header does not name, or values stored "
        "wrongly.",
        fatal=False,
    )
)

_INT16 = np.iinfo(np.int16)

_JPEG_FAMILY = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(5\d|70|8[01]|9[0-3]|20[1-3])")
"""JPEG, JPEG-LS, JPEG 2000 and HTJ2K: each codestream ends with the marker FF D9 (EOI or EOC)."""

_JP2 = b"\0\0\0\x0cjP  "
"""Begins a JPEG 2000 file, which some writers put in place of its bare codestream."""

_FRAME_HEADERS = frozenset((*range(0xC0, 0xD0), 0xF7)) - {0xC4, 0xC8, 0xCC}
"""SOF markers of JPEG and, last, of JPEG-LS; the three left out are DHT, JPG and DAC."""

_JPEG_12_BIT = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
"""JPEG processes 2 and 4, 6 and 8, 10 and 12: at 12 bits pydicom has no decoder, imagecodecs has."""

_NOT_HU = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""RescaleType terms of PS3.3 C.11.1.1.2 that are no Hounsfield units (e.g. iodine maps, electron density)."""

_THREAD_BYTES = 1 << 24
"""Bytes of values that are worth another thread: with small images threads only wait for each other."""

_SMALL_BYTES = 1 << 28
"""Series whose size is believed without a look at their files: 500 slices of 512²."""

_MOST_OVERHEAD = 1 << 16
"""Bytes that a compressed image may take beside twice those that it takes without compression. None takes as
many, and a codestream of another image's size may unpack to 64 times its own."""

_MAX_TILES = 4096
"""Tiles of a JPEG 2000 image; each costs its decoder some kilobytes. CT have one, or some of 64² or more."""

_MAX_TAIL = 16
"""Bytes of any value that may follow a codestream's end marker, beside 00 and FF. Writers pad to an even
length, some to 4, 8 or 16 bytes, and not all with zeros. Within coded data FF is never followed by D9 (all
of these formats stuff it), so a stream that was cut has no end marker there."""

MIN_CT_HU, MAX_CT_HU = -10_240, 30_710
"""What a CT can hold, HU: the extended CT scale, in which scanners store metal (12 bits in steps of 10 HU);
the usual scale ends at -1024 and 3071. Negative values stored as unsigned come out above 31,000."""

IMPOSSIBLE_SHARE = 1e-4
"""From this share of the pixels on, values outside that range are worth a warning: 26 pixels of a slice of
512², a small lesion. Padding outside the scanner's circle is a fifth of a slice. Our own limit."""

PLAUSIBLE_PADDING_HU = -900
"""A padding value between this many HU and `MAX_CT_HU` is not believed: files that declare 0 with intercept 0
would otherwise lose all water. Lung is denser than this but for air, and real padding is -1024 or below."""

_AIR_HU, _MIN_AIR_SHARE = -200, 0.01
"""Stored values without any rescale are taken as HU only where at least this share of them is below so many
HU: every scan of a body has air around or in it, and values from 0 up still lack their intercept."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A series, read.

    Attributes:
        volume: int16 HU (z, y, x) and geometry.
        slices: The source image of each z, in order; identical duplicates are not in it.
        findings: Warnings that needed the pixels.
    """

    volume: Volume
    slices: tuple[SliceRef, ...] = field(repr=False)
    findings: tuple[Finding, ...] = ()


def read_series(series: Series, *, workers: int | None = None) -> Reading:
    """Decode all slices and convert each with its own rescale to HU.

    The header gates' findings are not looked at: whoever calls decides on `Series.rejection` first. What is
    needed to build an array is checked again here.

    Args:
        series: As discovered, slices ordered along the normal.
        workers: Threads; default one per CPU core, at most 8, fewer for small series.

    Returns:
        HU are rounded and clipped to int16. Pixels in PixelPaddingValue … PixelPaddingRangeLimit hold
        `PADDING_HU`. MONOCHROME1 says how to show values and does not change HU (PS3.3 C.7.6.3.1.2). Rows
        and columns are never flipped: ``geometry.axes`` tells their direction.

    Raises:
        SeriesRejected: ``no-geometry``, ``mixed-size``, ``no-rescale``, or ``duplicate-slices`` where slices
            at one position differ; ``blank-slices`` where slices inside the stack show nothing.
        SeriesFailed: ``input-unreadable`` where a file has gone or cannot be read, ``undecodable`` where it
            is damaged, truncated, in no known syntax or claims more than it holds, and no whole copy of it
            is among the slices.
    """
    slices = series.slices
    positions = slice_positions(slices)
    first = slices[0] if slices else None
    if first is None or positions is None or not (first.rows and first.columns and first.pixel_spacing):
        raise SeriesRejected("images without position, orientation, spacing or size", code=NO_GEOMETRY.code)
    if len({(s.rows, s.columns) for s in slices}) > 1:
        raise SeriesRejected("images of this series differ in size", code=MIXED_SIZE.code)

    by_file: dict[tuple[Path, str | None], list[int]] = defaultdict(list)
    for index, ref in enumerate(slices):
        by_file[ref.path, ref.member].append(index)
    size = 2 * len(slices) * first.rows * first.columns
    _check_size(size, {path for path, _ in by_file})
    threads = workers or min(8, os.cpu_count() or 1, 1 + size // _THREAD_BYTES)
    hu = np.empty((len(slices), first.rows, first.columns), dtype=np.int16)
    with quiet_pydicom(), ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        archives = {
            path: _open_archive(path, stack) for path in {p for p, member in by_file if member is not None}
        }
        seen: dict[int, _Seen] = {}
        failed: dict[int, SeriesFailed] = {}
        files = list(by_file.values())
        share = -(-len(files) // threads)  # one task a thread: to take turns at small files costs more

        def read(part: list[list[int]]) -> list[list[_Seen] | SeriesFailed]:
            return [_read_file(indices, slices, archives, hu) for indices in part]

        outcomes = pool.map(read, (files[i : i + share] for i in range(0, len(files), share)))
        for indices, outcome in zip(files, chain.from_iterable(outcomes), strict=True):
            if isinstance(outcome, SeriesFailed):
                failed |= dict.fromkeys(indices, outcome)
            else:
                seen |= zip(indices, outcome, strict=True)

    findings: list[Finding] = []

    def warn(gate: Gate, message: str) -> None:
        findings.append(gate.finding(message, fatal=False))

    keep = _without_failed(slices, failed)
    if failed:
        warn(DAMAGED_COPY, f"{len(failed)} damaged copies of images were left out; the whole ones were used")
    count = len(keep)
    _check_rescaled([seen[i] for i in keep], hu[0].size)
    if not seen[keep[0]].rescaled:
        warn(
            NO_RESCALE,
            f"{count} images have no rescale in the header; their signed values were taken as HU",
        )
    refused = sum(seen[i].padding_refused for i in keep)
    if refused:
        text = "the padding value lies among tissue values and was not applied"
        warn(PADDING, f"{refused} of {count} images: {text}")
    impossible = sum(seen[i].impossible for i in keep) / (count * hu[0].size)
    if impossible >= IMPOSSIBLE_SHARE:
        text = (
            f"{impossible:.2%} of the pixels have values that no CT can hold ({MIN_CT_HU} to {MAX_CT_HU} HU)"
        )
        warn(HU_IMPOSSIBLE, f"{text}: padding that the header does not name, or values stored wrongly")
    keep = _without_duplicates(positions, hu, keep)
    if len(keep) < count:
        text = f"{count - len(keep)} of {count} slices were identical copies and were dropped"
        warn(DUPLICATE_SLICES, text)
    showing = _without_blank_ends(positions, keep, [not seen[i].blank for i in keep])
    if len(showing) < len(keep):
        warn(BLANK_SLICES, f"{len(keep) - len(showing)} slices at the ends show nothing and were left out")
    if len(showing) < len(slices):
        slices, hu, positions = tuple(slices[i] for i in showing), hu[showing], positions[showing]
    volume = Volume(hu=hu, geometry=_geometry(slices, positions))
    return Reading(volume=volume, slices=slices, findings=tuple(findings))


def _check_size(size: int, paths: Collection[Path]) -> None:
    """Refuse a series that claims more than its files can hold, before memory for it is asked for.

    Args:
        size: Bytes of all its values.
        paths: Its files.

    Raises:
        SeriesFailed: ``undecodable``, or ``input-unreadable`` where a file has gone.
    """
    if size <= _SMALL_BYTES:
        return
    try:
        stored = sum(path.stat().st_size for path in paths)
    except OSError as error:
        reason = f"the CT cannot be read: {error.strerror or error}; check that it is still there"
        raise SeriesFailed(reason, code=InputUnreadable.code) from error
    if size > IMAGE.unpacked(stored):
        raise SeriesFailed(
            f"the images claim {size >> 20} MB, more than {len(paths)} files of {stored >> 20} MB can hold; "
            "copy them again from their source",
            code=InputDamaged.code,
        )


def _open_archive(path: Path, stack: ExitStack) -> zipfile.ZipFile:
    try:
        return stack.enter_context(open_archive(path))
    except InputUnreadable as error:
        raise SeriesFailed(f"{readable(path.name)}: {error}", code=error.code) from error


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What came to light when an image was read.

    Attributes:
        rescaled: Whether the header says how its values become HU.
        air: Pixels below `_AIR_HU`, without padding; not counted where rescaled.
        padding_refused: It has pixels of a declared padding value that was not believed.
        impossible: Pixels outside `MIN_CT_HU` … `MAX_CT_HU`, without padding.
        blank: It shows nothing (`shows_nothing`).
    """

    rescaled: bool
    air: int
    padding_refused: bool
    impossible: int
    blank: bool


def _without_failed(slices: Sequence[SliceRef], failed: dict[int, SeriesFailed]) -> list[int]:
    """Indices of the slices that could be read.

    Raises:
        SeriesFailed: One could not, and no copy of it (same SOPInstanceUID and frame) could.
    """
    keep = [i for i in range(len(slices)) if i not in failed]
    whole = {(slices[i].sop_instance_uid, slices[i].frame) for i in keep if slices[i].sop_instance_uid}
    for index, error in sorted(failed.items()):
        if (slices[index].sop_instance_uid, slices[index].frame) not in whole:
            raise error
    return keep


def _check_rescaled(seen: Sequence[_Seen], pixels: int) -> None:
    """All images or none must have a rescale; without, `pixels` an image must look like HU.

    Raises:
        SeriesRejected: ``no-rescale``.
    """
    without = sum(not s.rescaled for s in seen)
    if 0 < without < len(seen):
        raise SeriesRejected(
            f"{without} of {len(seen)} images have no rescale while the others do; export the series anew",
            code=NO_RESCALE.code,
        )
    if without and sum(s.air for s in seen) < _MIN_AIR_SHARE * pixels * len(seen):
        raise SeriesRejected(
            "the header does not say how stored values become HU, and there is no air as it would be in HU",
            code=NO_RESCALE.code,
        )


def _read_file(
    indices: list[int],
    slices: tuple[SliceRef, ...],
    archives: dict[Path, zipfile.ZipFile],
    hu: npt.NDArray[np.int16],
) -> list[_Seen] | SeriesFailed:
    """Decode one file's frames into ``hu[indices]``; returns what was seen of each, or why it failed."""
    ref = slices[indices[0]]
    seen: list[_Seen] = []
    try:
        ds = read_slice(ref, upto=Upto.PIXELS, tags=_TAGS, archive=archives.get(ref.path))
        if "PixelData" not in ds:
            raise ValueError("the file has no pixels or is cut short")
        size = int(ds.get("NumberOfFrames") or 1), ds.Rows, ds.Columns
        if size != (ref.frames, *hu.shape[1:]):  # a decoder makes room for what is claimed
            raise ValueError(f"it was replaced: it claims {size}, not {(ref.frames, *hu.shape[1:])}")
        frames = _decode(ds, [slices[i].frame for i in indices])
        for index, cells in zip(indices, frames, strict=True):
            if cells.shape != hu.shape[1:]:
                raise ValueError(f"pixels are {cells.shape}, not {hu.shape[1:]}")
            seen.append(_to_hu(cells, ds, slices[index].frame, hu[index]))
    except (SeriesRejected, MemoryError):
        raise
    except Exception as exc:  # decoders raise nearly anything on damaged pixels
        gone = isinstance(exc, InputUnreadable) and not isinstance(exc, InputDamaged)
        what, advice = (
            ("cannot be read", "check that it is still there")
            if gone
            else ("cannot be decoded", "copy the file again from its source")
        )
        detail = readable(" ".join(str(exc).split())[:200]).removeprefix(f"{what}: ")
        error = SeriesFailed(
            f"image {indices[0] + 1} of {len(slices)} ({ref.file_name}) {what}: {detail}; {advice}",
            code=InputUnreadable.code if gone else InputDamaged.code,
        )
        error.__cause__ = exc
        return error
    return seen


def _decode(ds: FileDataset, frames: list[int | None]) -> Iterator[npt.NDArray[Any]]:
    """Cells (rows, columns) of the asked-for frames of one file, `_unused_bits` as they are; None: the only
    frame."""
    ds.file_meta.TransferSyntaxUID = syntax = encoding_of(ds)
    if (samples := ds.get("SamplesPerPixel") or 1) != 1:
        raise ValueError(f"{samples} values a pixel, not one")
    count = int(ds.get("NumberOfFrames") or 1)
    if syntax.is_encapsulated:
        plain = ds.Rows * ds.Columns * -(-ds.BitsAllocated // 8)
        if len(ds.PixelData) > count * (2 * plain + _MOST_OVERHEAD):
            raise ValueError(f"{len(ds.PixelData)} bytes of compressed pixels, more than without compression")
    if _JPEG_FAMILY.fullmatch(syntax):
        streams = list(generate_frames(ds.PixelData, number_of_frames=count))
        claims = [_claims(stream) for stream in streams]
        for *size, _ in claims:
            if size != [ds.Rows, ds.Columns]:
                raise ValueError(f"the compressed pixels are {tuple(size)}, not {(ds.Rows, ds.Columns)}")
        if not all(map(_has_end, streams)):
            raise ValueError("the compressed pixels are cut short")  # some decoders would fill up with grey
        if syntax in _JPEG_12_BIT and ds.BitsAllocated == 16:
            from imagecodecs import jpeg8_decode

            for frame in frames:
                cells = jpeg8_decode(streams[frame or 0]).astype(np.uint16, copy=False)
                yield (cells << 4).view(np.int16) >> 4 if ds.PixelRepresentation else cells
            return
        usual = _plain_16_bits(ds) and len(streams) == count and all(8 < bits <= 16 for *_, bits in claims)
        if usual and syntax in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes):
            for frame in frames:
                yield _unpacked(streams[frame or 0], claims[frame or 0][2], ds)
            return
    options: dict[str, Any] = {"view_only": True}  # they are not changed, so no copy
    if _unused_bits(ds):
        options["correct_unused_bits"] = False
    if frames == [None]:
        yield pixel_array(ds, **options)
    else:
        yield from iter_pixels(ds, indices=[frame or 0 for frame in frames], **options)


def _plain_16_bits(ds: FileDataset) -> bool:
    """Whether the header describes the grey values of up to 16 bits that nearly every CT has."""
    return (
        ds.get("PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")
        and ds.BitsAllocated == 16
        and 0 < ds.BitsStored <= 16
        and ds.PixelRepresentation in (0, 1)
    )


def _unpacked(stream: bytes, bits: int, ds: FileDataset) -> npt.NDArray[Any]:
    """Cells (rows, columns) of a JPEG 2000 or JPEG-LS codestream, as pydicom has them.

    Its decoders hold Python's lock while they work, so that threads wait for one another; imagecodecs lets
    go of it, and takes less time.

    Args:
        bits: Of a value, as the codestream says.
    """
    import imagecodecs

    jpeg_ls = ds.file_meta.TransferSyntaxUID in JPEGLSTransferSyntaxes
    cells = (imagecodecs.jpegls_decode if jpeg_ls else imagecodecs.jpeg2k_decode)(stream)
    signed = ds.PixelRepresentation == 1
    if signed != (cells.dtype.kind == "i"):  # what the codestream calls its sign is not believed
        cells = cells.view(np.dtype(f"{'i' if signed else 'u'}{cells.dtype.itemsize}"))
        unused = 8 * cells.dtype.itemsize - bits
        cells = (cells << unused) >> unused
    return cells


def clean_cells(ds: FileDataset) -> npt.NDArray[Any]:
    """Cells (rows, columns) of the one image of a file, decoded, and nothing beside its values in them.

    What some files have in the bits above BitsStored, such as the graphics of an old overlay, is cleared: the
    values are those of whole cells then. Padding stays as it is declared, which may need these bits.

    Args:
        ds: With its pixels, see `files.Upto.PIXELS`.

    Raises:
        ValueError: It has several images, or its pixels are not as it says; decoders raise nearly anything.
    """
    if int(ds.get("NumberOfFrames") or 1) != 1:
        raise ValueError("it has several images")
    cells: npt.NDArray[Any] = next(_decode(ds, [None]))
    if cells.shape != (ds.Rows, ds.Columns):
        raise ValueError(f"pixels are {cells.shape}, not {(ds.Rows, ds.Columns)}")
    unused = _unused_bits(ds)
    clean = (cells << unused) >> unused
    padding = padding_range(ds, cells.dtype)
    if padding is not None:
        np.copyto(clean, cells, where=(cells >= padding[0]) & (cells <= padding[1]))
    return clean


def _claims(stream: bytes) -> tuple[int, int, int]:
    """Rows, columns and bits of a value that a JPEG, JPEG-LS or JPEG 2000 codestream claims: what its decoder
    makes room for.

    Raises:
        ValueError: It is none, or its claims are absurd.
    """
    if stream.startswith(_JP2):
        start = stream.find(b"jp2c") + 4
        stream = stream[start:] if start >= 4 else b""
    if stream.startswith(b"\xff\x4f\xff\x51") and len(stream) > 42:  # SOC, SIZ: ISO/IEC 15444-1 A.5.1
        width, height, left, top, tile_width, tile_height, tile_left, tile_top = struct.unpack(
            ">8I", stream[8:40]
        )
        if not (tile_width and tile_height):
            raise ValueError("the compressed pixels have empty tiles")
        tiles = -(-(width - tile_left) // tile_width) * -(-(height - tile_top) // tile_height)
        if tiles > _MAX_TILES:
            raise ValueError(f"the compressed pixels claim {tiles} tiles")
        return height - top, width - left, (stream[42] & 0x7F) + 1
    position = 2
    while stream.startswith(b"\xff\xd8") and position + 9 <= len(stream):  # ISO/IEC 10918-1 B.1.1 and B.2.2
        marker, length = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
        if stream[position] != 0xFF:
            break
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _FRAME_HEADERS:
            bits, height, width = struct.unpack(">BHH", stream[position + 4 : position + 9])
            return height, width, bits
        else:
            position += 2 + length
    raise ValueError("the compressed pixels do not say their size")


def _has_end(stream: bytes) -> bool:
    """Whether a codestream has its end marker, whatever pads it."""
    stream = stream.rstrip(b"\0\xff")
    return stream.find(b"\xff\xd9", max(0, len(stream) - _MAX_TAIL - 2)) >= 0


def _unused_bits(ds: Dataset) -> int:
    """Bits of each cell above BitsStored, which are none of its value; 0 where the decoder leaves none."""
    syntax = ds.file_meta.TransferSyntaxUID
    if syntax in (*JPEG2000TransferSyntaxes, *_JPEG_12_BIT):
        return 0
    if syntax in JPEGLSTransferSyntaxes and ds.PixelRepresentation == 1:
        return 0
    return max(0, int(ds.BitsAllocated) - int(ds.BitsStored))


def _to_hu(cells: npt.NDArray[Any], ds: Dataset, frame: int | None, out: npt.NDArray[np.int16]) -> _Seen:
    """Write the HU of one image's cells into `out`; returns what was seen.

    Raises:
        SeriesRejected: ``no-rescale``: the cells do not become HU.
    """
    rescale = _rescale(ds, frame)
    if rescale is None and cells.dtype.kind != "i":
        raise SeriesRejected("the header does not say how stored values become HU", code=NO_RESCALE.code)
    slope, intercept = rescale or (1.0, 0.0)
    size, unused = 8 * cells.dtype.itemsize, _unused_bits(ds)
    signed = cells.dtype.kind == "i"
    lowest = -(1 << size - unused - 1) if signed else 0
    highest = (1 << size - unused - signed) - 1
    stored, smallest, largest = cells, int(cells.min()), int(cells.max())
    if smallest < lowest or largest > highest:  # the unused bits of some cells are set
        stored = (cells << unused) >> unused
        smallest, largest = int(stored.min()), int(stored.max())
    mask, refused = None, False
    padding = padding_range(ds, cells.dtype)
    if padding is not None:
        low, high = padding
        # what does not fit into the stored bits stands in whole cells; of a cell whose further bits hold
        # something else, an old overlay say, the stored ones count
        where = stored if lowest <= low and high <= highest else cells
        if where is not stored or (low <= largest and smallest <= high):
            mask = where == low if low == high else (where >= low) & (where <= high)
            darkest, brightest = sorted((low * slope + intercept, high * slope + intercept))
            if brightest > PLAUSIBLE_PADDING_HU and darkest <= MAX_CT_HU:
                refused, mask = bool(mask.any()), None
    if slope == 1 and intercept == int(intercept):
        offset = int(intercept)
        if _INT16.min <= smallest + offset and largest + offset <= _INT16.max:
            # the sum fits into int16, so wrapping on the way there does no harm; a view needs no memory
            short = (
                stored.view(np.int16) if stored.dtype == np.uint16 else stored.astype(np.int16, copy=False)
            )
            np.add(short, np.array(offset).astype(np.int16), out=out)
        else:
            np.clip(stored.astype(np.int64) + offset, _INT16.min, _INT16.max, out=out, casting="unsafe")
    else:
        exact = stored.astype(np.float64) * slope + intercept
        np.clip(np.rint(exact), _INT16.min, _INT16.max, out=out, casting="unsafe")
    if mask is not None:
        np.copyto(out, PADDING_HU, where=mask)
    impossible = 0
    darkest, brightest = sorted((smallest * slope + intercept, largest * slope + intercept))
    if brightest > MAX_CT_HU or darkest < MIN_CT_HU:
        impossible = int(np.count_nonzero((out > MAX_CT_HU) | (out < MIN_CT_HU)))
    if stored is not cells and not signed:
        # all unused bits and the highest stored one set: a negative value, without them it looks like tissue
        negative = cells >= (1 << size) - (1 << size - unused - 1)
        impossible += int(np.count_nonzero(negative if mask is None else negative & ~mask))
    air = 0
    if rescale is None:
        air = int(np.count_nonzero((out < _AIR_HU) & (True if mask is None else ~mask)))
    return _Seen(
        rescaled=rescale is not None,
        air=air,
        padding_refused=refused,
        impossible=impossible,
        blank=shows_nothing(out),
    )


def shows_nothing(hu: npt.NDArray[np.int16]) -> bool:
    """Whether an image has no two different values above `PADDING_HU`, which also air cut off there has."""
    for part in (hu[::16, ::16], hu):  # a few pixels mostly tell
        values = part[part > PADDING_HU]
        if values.size and values.min() != values.max():
            return False
    return True


def _rescale(ds: Dataset, frame: int | None) -> tuple[float, float] | None:
    """(slope, intercept) of one image, or None where the header has neither.

    Raises:
        SeriesRejected: ``no-rescale``: the values are no HU, or one of the two is missing or malformed.
    """
    holder = ds
    if frame is not None:
        own, shared = ds.PerFrameFunctionalGroupsSequence[frame], ds.get("SharedFunctionalGroupsSequence")
        found = first_item("PixelValueTransformationSequence", own, *(shared or ()))
        holder = ds if found is None else found
    kind = text(holder, "RescaleType").upper()
    if kind in _NOT_HU:
        raise SeriesRejected(
            f"pixel values are no Hounsfield units (RescaleType {kind})", code=NO_RESCALE.code
        )
    if ds.get("ModalityLUTSequence"):
        raise SeriesRejected(
            "pixel values become HU by a table, which is not supported", code=NO_RESCALE.code
        )
    try:
        slope, intercept = stated(holder, "RescaleSlope"), stated(holder, "RescaleIntercept")
    except ValueError as exc:
        raise SeriesRejected(
            f"{exc}: how stored values become HU is not known", code=NO_RESCALE.code
        ) from exc
    if slope is None and intercept is None:
        return None
    if slope is None or intercept is None:
        missing = "RescaleSlope" if slope is None else "RescaleIntercept"
        raise SeriesRejected(
            f"an image has no {missing}: how stored values become HU is not known; export the series anew",
            code=NO_RESCALE.code,
        )
    if slope == 0:
        raise SeriesRejected("RescaleSlope is 0: stored values do not become HU", code=NO_RESCALE.code)
    return slope, intercept


def padding_range(ds: Dataset, dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Lowest and highest cell that stands for padding, or None."""
    value = _as_cell(ds.get("PixelPaddingValue"), dtype)
    if value is None:
        return None
    limit = _as_cell(ds.get("PixelPaddingRangeLimit"), dtype)
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _as_cell(value: object, dtype: np.dtype[Any]) -> int | None:
    """A padding value with the pixels' own sign; writers often put -2000 as unsigned 63536 and vice versa."""
    if isinstance(value, bytes) and len(value) == 2:
        value = int.from_bytes(value, "little")
    if not isinstance(value, int):
        return None
    return int(np.array(value).astype(np.int16 if dtype.kind == "i" else np.uint16))


def _without_duplicates(
    positions: npt.NDArray[np.float64], hu: npt.NDArray[np.int16], indices: Sequence[int]
) -> list[int]:
    """Of some slices' indices those to keep: the first at each position.

    Raises:
        SeriesRejected: Two slices at one position differ.
    """
    keep: list[int] = []
    for index in indices:
        position = positions[index]
        if keep and position - positions[keep[-1]] < SAME_POSITION_MM:
            if not np.array_equal(hu[index], hu[keep[-1]]):
                raise SeriesRejected(
                    f"several different images lie at one position ({position:.2f} mm): "
                    "more than one scan or phase in the series",
                    code=DUPLICATE_SLICES.code,
                )
            continue
        keep.append(index)
    return keep


def _without_blank_ends(
    positions: npt.NDArray[np.float64], indices: list[int], shows: list[bool]
) -> list[int]:
    """Of some slices' indices those from the first to the last that shows something.

    Blank slices at the ends are no part of what was scanned. Left in the stack, they would hide from the
    gates after this one that the scan is short or ends within the heart.

    Raises:
        SeriesRejected: ``blank-slices``: one inside the stack shows nothing, or what is left is too short.
    """
    seen = np.flatnonzero(shows)
    if not len(seen):
        raise SeriesRejected("no slice shows anything: each has a single value", code=BLANK_SLICES.code)
    inside = indices[seen[0] : seen[-1] + 1]
    blank = [i for i, there in zip(indices, shows, strict=True) if not there and inside[0] < i < inside[-1]]
    if blank:
        raise SeriesRejected(
            f"{len(blank)} of {len(indices)} slices, the first at {positions[blank[0]]:.2f} mm, show nothing "
            "(a single value) and are as good as missing; get the series again from its source",
            code=BLANK_SLICES.code,
        )

    def long_enough(part: list[int]) -> bool:
        return len(part) >= MIN_SLICES and positions[part[-1]] - positions[part[0]] >= MIN_COVERAGE_MM

    if long_enough(indices) and not long_enough(inside):
        raise SeriesRejected(
            f"only {len(inside)} of {len(indices)} slices show anything; needed are {MIN_SLICES} over "
            f"{MIN_COVERAGE_MM:g} mm",
            code=BLANK_SLICES.code,
        )
    return inside


def _geometry(slices: tuple[SliceRef, ...], positions: npt.NDArray[np.float64]) -> Geometry:
    """Grid of the stack. A single slice takes its thickness as increment.

    Raises:
        SeriesRejected: ``no-geometry``.
    """
    first = slices[0]
    normal, increment = slice_normal(first.orientation), increment_of(positions)
    increment = increment or first.slice_thickness
    if (
        normal is None
        or first.position is None
        or not first.pixel_spacing
        or not increment
        or not first.orientation
    ):
        raise SeriesRejected("the distance between slices is not known", code=NO_GEOMETRY.code)
    row, column = (np.asarray(v) / np.linalg.norm(v) for v in (first.orientation[:3], first.orientation[3:]))

    def triple(vector: npt.NDArray[np.float64]) -> tuple[float, float, float]:
        x, y, z = (float(v) + 0.0 for v in vector)
        return x, y, z

    return Geometry(
        shape=(len(slices), first.rows or 0, first.columns or 0),
        spacing=(increment, first.pixel_spacing[0], first.pixel_spacing[1]),
        origin=first.position,
        axes=(triple(normal), triple(column), triple(row)),
    )
