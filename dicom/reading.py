"""Read one series' pixels into a `Volume` of Hounsfield units."""

from __future__ import annotations

import io
import os
import re
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ..errors import SeriesFailed, SeriesRejected
from ..imaging.volume import PADDING_HU, Geometry, Volume
from .gates import make_finding
from .headers import CT_IMAGE, number, quiet_pydicom, text
from .series import SAME_POSITION_MM, Finding, Series, SliceRef, increment_of, slice_normal, slice_positions

_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "PixelData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]  # fmt: skip

_INT16 = np.iinfo(np.int16)

_JPEG_FAMILY = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(5\d|70|8[01]|9[0-3]|20[1-3])")
"""JPEG, JPEG-LS, JPEG 2000 and HTJ2K: each codestream ends with the marker FF D9 (EOI or EOC)."""

_JPEG_12_BIT = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
"""JPEG processes 2 and 4, 6 and 8, 10 and 12: at 12 bits pydicom has no decoder, SimpleITK has."""

_NOT_HU = ("OD", "MGML", "Z_EFF", "ED", "EDW", "PCT")
"""RescaleType terms of PS3.3 C.11.1.1.2 that are no Hounsfield units (e.g. iodine maps, electron density)."""

PLAUSIBLE_PADDING_HU = -900
"""A padding value above this many HU is not believed: files that declare 0 with intercept 0 would otherwise
lose all water. Lung is denser than this but for air, and real padding is -1024 or below."""


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
        workers: Threads; default one per CPU core, at most 8.

    Returns:
        HU are rounded and clipped to int16. Pixels in PixelPaddingValue … PixelPaddingRangeLimit hold
        `PADDING_HU`. MONOCHROME1 says how to show values and does not change HU (PS3.3 C.7.6.3.1.2). Rows
        and columns are never flipped: ``geometry.axes`` tells their direction.

    Raises:
        SeriesRejected: ``no-geometry``, ``mixed-size``, ``no-rescale``, or ``duplicate-slices`` where slices
            at one position differ.
        SeriesFailed: ``undecodable`` where a file is missing, damaged, truncated or in no known syntax.
    """
    slices = series.slices
    positions = slice_positions(slices)
    first = slices[0] if slices else None
    if first is None or positions is None or not (first.rows and first.columns and first.pixel_spacing):
        raise SeriesRejected("images without position, orientation, spacing or size", code="no-geometry")
    if len({(s.rows, s.columns) for s in slices}) > 1:
        raise SeriesRejected("images of this series differ in size", code="mixed-size")

    hu = np.empty((len(slices), first.rows, first.columns), dtype=np.int16)
    by_file: dict[tuple[Path, str | None], list[int]] = defaultdict(list)
    for index, ref in enumerate(slices):
        by_file[ref.path, ref.member].append(index)
    with (
        quiet_pydicom(),
        ExitStack() as stack,
        ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool,
    ):
        archives = {path: _open_archive(path, stack) for path, member in by_file if member is not None}
        remarks: Counter[str] = Counter()
        for counted in pool.map(lambda item: _read_file(item, slices, archives, hu), by_file.values()):
            remarks += counted
    findings = [
        make_finding(code, f"{count} of {len(slices)} images: {_REMARKS[code]}", fatal=False)
        for code, count in sorted(remarks.items())
    ]
    keep = _without_duplicates(positions, hu)
    if len(keep) < len(slices):
        message = f"{len(slices) - len(keep)} of {len(slices)} slices were identical copies and were dropped"
        findings.append(make_finding("duplicate-slices", message, fatal=False))
        slices, hu, positions = tuple(slices[i] for i in keep), hu[keep], positions[keep]
    volume = Volume(hu=hu, geometry=_geometry(slices, positions))
    return Reading(volume=volume, slices=slices, findings=tuple(findings))


def _open_archive(path: Path, stack: ExitStack) -> zipfile.ZipFile:
    try:
        return stack.enter_context(zipfile.ZipFile(path))
    except (OSError, zipfile.BadZipFile) as exc:
        raise SeriesFailed(f"{path.name} cannot be opened: {exc}", code="undecodable") from exc


_REMARKS = {
    "padding": "the padding value lies among tissue values and was not applied",
    "no-rescale": "no rescale in the header; the signed stored values were taken as HU",
}


def _read_file(
    indices: list[int],
    slices: tuple[SliceRef, ...],
    archives: dict[Path, zipfile.ZipFile],
    hu: npt.NDArray[np.int16],
) -> Counter[str]:
    """Decode one file's frames into ``hu[indices]``; returns how often which warning is due."""
    ref = slices[indices[0]]
    remarks: Counter[str] = Counter()
    try:
        source: Any = ref.path if ref.member is None else io.BytesIO(archives[ref.path].read(ref.member))
        ds = dcmread(source, specific_tags=_TAGS, force=True)
        if "PixelData" not in ds:
            raise ValueError("the file has no pixels or is cut short")
        frames = _decode(ds, [slices[i].frame for i in indices])
        for index, stored in zip(indices, frames, strict=True):
            if stored.shape != hu.shape[1:]:
                raise ValueError(f"pixels are {stored.shape}, not {hu.shape[1:]}")
            remarks += _to_hu(stored, ds, slices[index].frame, hu[index])
    except SeriesRejected:
        raise
    except Exception as exc:  # decoders raise nearly anything on damaged pixels
        detail = " ".join(str(exc).split())[:200]
        raise SeriesFailed(
            f"image {indices[0] + 1} of {len(slices)} ({ref.file_name}) cannot be decoded: {detail}; "
            "copy the file again from its source",
            code="undecodable",
        ) from exc
    return remarks


def _decode(ds: Dataset, frames: list[int | None]) -> Iterator[npt.NDArray[Any]]:
    """Stored values (rows, columns) of the asked-for frames of one file; None: the only frame."""
    syntax = str(ds.file_meta.TransferSyntaxUID) if "TransferSyntaxUID" in ds.file_meta else ""
    if not syntax:
        # a data set without a file meta header; pydicom found out how it is encoded
        implicit, little = ds.original_encoding
        known = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
        ds.file_meta.TransferSyntaxUID = known
    if _JPEG_FAMILY.fullmatch(syntax):
        streams = list(generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1)))
        if not all(stream.rstrip(b"\0\xff").endswith(b"\xff\xd9") for stream in streams):
            raise ValueError("the compressed pixels are cut short")  # some decoders would fill up with grey
        if syntax in _JPEG_12_BIT and ds.BitsAllocated == 16:
            yield from (_decode_jpeg_12_bit(streams[frame or 0], ds, syntax) for frame in frames)
            return
    if frames == [None]:
        yield ds.pixel_array
    else:
        yield from iter_pixels(ds, indices=[frame or 0 for frame in frames])


def _decode_jpeg_12_bit(stream: bytes, ds: Dataset, syntax: str) -> npt.NDArray[Any]:
    """Decode one lossy 12-bit JPEG frame by handing SimpleITK a file that holds nothing else."""
    import SimpleITK as sitk  # the library's own customary name

    bare = Dataset()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = UID(syntax)
    bare.SOPClassUID, bare.SOPInstanceUID = CT_IMAGE, "2.25.1"
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                    "SamplesPerPixel", "PhotometricInterpretation"):  # fmt: skip
        setattr(bare, keyword, ds[keyword].value)
    bare.PixelData = encapsulate([stream])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        bare.save_as(path, enforce_file_format=True)
        stored: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return stored.reshape(stored.shape[-2:])


def _to_hu(
    stored: npt.NDArray[Any], ds: Dataset, frame: int | None, out: npt.NDArray[np.int16]
) -> Counter[str]:
    """Write the HU of one image's stored values into `out`; returns which warnings are due."""
    remarks: Counter[str] = Counter()
    rescale = _rescale(ds, frame)
    if rescale is None:
        if stored.dtype.kind != "i":
            raise SeriesRejected("the header does not say how stored values become HU", code="no-rescale")
        remarks["no-rescale"] += 1
    slope, intercept = rescale or (1.0, 0.0)
    padding = _padding_range(ds, stored.dtype)
    mask = None
    if padding is not None:
        low, high = padding
        mask = stored == low if low == high else (stored >= low) & (stored <= high)
        if max(low * slope, high * slope) + intercept > PLAUSIBLE_PADDING_HU:
            remarks["padding"] += int(mask.any())
            mask = None
    if slope == 1 and intercept == int(intercept):
        offset = int(intercept)
        if _INT16.min <= int(stored.min()) + offset and int(stored.max()) + offset <= _INT16.max:
            # the sum fits into int16, so wrapping on the way there does no harm
            np.add(stored.astype(np.int16), np.array(offset).astype(np.int16), out=out)
        else:
            np.clip(stored.astype(np.int64) + offset, _INT16.min, _INT16.max, out=out, casting="unsafe")
    else:
        exact = stored.astype(np.float64) * slope + intercept
        np.clip(np.rint(exact), _INT16.min, _INT16.max, out=out, casting="unsafe")
    if mask is not None:
        out[mask] = PADDING_HU
    return remarks


def _rescale(ds: Dataset, frame: int | None) -> tuple[float, float] | None:
    """(slope, intercept) of one image, or None where the header has neither.

    Raises:
        SeriesRejected: ``no-rescale``: the values are no HU.
        ValueError: The slope is 0.
    """
    holder = ds
    if frame is not None:
        own = ds.PerFrameFunctionalGroupsSequence[frame]
        for groups in (own, *(ds.get("SharedFunctionalGroupsSequence") or ())):
            if groups.get("PixelValueTransformationSequence"):
                holder = groups.PixelValueTransformationSequence[0]
                break
    kind = text(holder, "RescaleType").upper()
    if kind in _NOT_HU:
        raise SeriesRejected(f"pixel values are no Hounsfield units (RescaleType {kind})", code="no-rescale")
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    if slope == 0:
        raise ValueError("RescaleSlope is 0")
    return (1.0 if slope is None else slope), (0.0 if intercept is None else intercept)


def _padding_range(ds: Dataset, dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Lowest and highest stored value that stands for padding, or None."""
    value = _stored(ds.get("PixelPaddingValue"), dtype)
    if value is None:
        return None
    limit = _stored(ds.get("PixelPaddingRangeLimit"), dtype)
    limit = value if limit is None else limit
    return min(value, limit), max(value, limit)


def _stored(value: object, dtype: np.dtype[Any]) -> int | None:
    """A padding value in the pixels' own type; writers often put -2000 as unsigned 63536 and vice versa."""
    if isinstance(value, bytes) and len(value) == 2:
        value = int.from_bytes(value, "little")
    if not isinstance(value, int):
        return None
    return int(np.array(value).astype(dtype))


def _without_duplicates(positions: npt.NDArray[np.float64], hu: npt.NDArray[np.int16]) -> list[int]:
    """Indices of the slices to keep: the first at each position.

    Raises:
        SeriesRejected: Two slices at one position differ.
    """
    keep: list[int] = []
    for index, position in enumerate(positions):
        if keep and position - positions[keep[-1]] < SAME_POSITION_MM:
            if not np.array_equal(hu[index], hu[keep[-1]]):
                raise SeriesRejected(
                    f"several different images lie at one position ({position:.2f} mm): "
                    "more than one scan or phase in the series",
                    code="duplicate-slices",
                )
            continue
        keep.append(index)
    return keep


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
        raise SeriesRejected("the distance between slices is not known", code="no-geometry")
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
