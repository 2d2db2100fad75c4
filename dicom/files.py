"""The one door through which DICOM comes in: files, and members of zip archives, read within limits.

Whatever a file claims, reading it costs no more time and memory than its size accounts for. The limits are
of bytes and steps rather than of seconds, so that a slow disk or a busy machine loses no file, and the same
file always ends alike. What goes wrong with a file is one of two errors, and never another: `InputUnreadable`
where it has gone, `InputDamaged` where it is no whole DICOM.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import (
    data_element_generator,
    read_dataset,
    read_partial,
    read_preamble,
    read_sequence,
)
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ..errors import InputDamaged, InputUnreadable
from ..system.foreign import open_regular
from ..system.names import readable
from .headers import CT_IMAGE, ENHANCED_CT, whole
from .series import SliceRef

HEAD_BYTES = 1 << 15
"""Read at once, which is faster than element by element; headers of single-frame CT mostly end before. The
data set must begin within it: what comes before is a few hundred bytes (PS3.10 7.1)."""

MAX_ELEMENTS = 1 << 14
"""Elements at the top level of a data set; CT have some 100 to 300."""

MAX_FALLS = 32
"""Elements at the top level whose tag is not above the one before. The standard knows none (PS3.5 7.1), some
programs append what they add; thousands of zeros are no data set."""

MAX_DEPTH = 32
"""Sequences inside sequences; CT have up to 4."""

MAX_CELLS = 1 << 28
"""Pixels of one image, 16,384²: those of CT have 512² to 2048²."""

_BYTES_A_CELL, _ALWAYS_PIXELS = 16, 32 << 20
"""Bytes that pixels which are not compressed may have: 3 values of 4 bytes, and some padding; and bytes that
are not asked about."""
_ELEMENT_HEAD = 12
"""Bytes before the value of an element at most (PS3.5 7.1.2)."""

_BLOCK = 1 << 20
"""Bytes that are read at once."""

ZIP_MAGIC = b"PK\x03\x04"

_PIXEL_DATA = 0x7FE00010
_FIRST_PIXELS = 0x7FE00008
"""FloatPixelData; DoubleFloatPixelData and PixelData follow."""
_NO_IMAGE = frozenset((0x0040A730, 0x30060010, 0x30060020, 0x30060039))
"""Begin what may be long and belongs to reports and structure sets: ContentSequence, and group 3006."""
_UNDEFINED = 0xFFFFFFFF
_DEFLATED = DeflatedExplicitVRLittleEndian.encode("ascii")

_ONCE = frozenset(
    int(Tag(keyword))
    for keyword in (
        *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality"),
        *("ImageType", "InstanceNumber", "FrameOfReferenceUID", "KVP", "GantryDetectorTilt"),
        *("ContrastBolusAgent", "ContrastBolusRoute", "ContrastBolusVolume"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"),
        *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
        *("PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelData"),
        *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
        *("RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
        *("SegmentSequence", "SegmentationType", "MaximumFractionalValue"),
    )
)
"""What a score depends on. Of an element that stands twice (PS3.5 7.1 forbids it) a reader takes one, and
nobody knows which is meant."""


class Upto(Enum):
    """How far a file is read."""

    HEADER = "all that comes before the pixels"
    PLACE = "the pixels too, but those of a plain file that are not compressed stay there, see `placed`"
    PIXELS = "the pixels too"
    END = "the whole file"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What reading one file may cost.

    Attributes:
        free_steps, bytes_a_step: Reads of its elements, of which an element takes two or three and an item
            five: so many, and one more for so many bytes on disk; never more than `max_steps`. A step costs
            5 to 20 µs, and 8 bytes may be an item, which takes a kilobyte of memory.
        deflated_bytes_a_step: The same where the data set is Deflated.
        max_steps: See there.
        header_bytes: Values before the pixels that are read.
        unpacked_header_bytes: The same where all that comes before a value must be unpacked to reach it.
        ratio, always_bytes: What it claims to hold unpacked, or unpacks to, over its own size; any file may
            hold so many bytes.
        held_bytes: Of its pixels, or of the whole file, in memory.
    """

    free_steps: int
    bytes_a_step: int
    deflated_bytes_a_step: int
    max_steps: int
    header_bytes: int
    unpacked_header_bytes: int
    ratio: int = 200
    always_bytes: int
    held_bytes: int = sys.maxsize

    def steps(self, on_disk: int, deflated: bool) -> int:
        """Reads that a file takes at most which takes so many bytes on disk."""
        bytes_a_step = self.deflated_bytes_a_step if deflated else self.bytes_a_step
        return min(self.max_steps, self.free_steps + on_disk // bytes_a_step)

    def unpacked(self, stored: int) -> int:
        """Bytes that a file of so many bytes may hold unpacked."""
        return max(self.always_bytes, self.ratio * stored)

    def held(self, stored: int) -> int:
        """Bytes of it that may be in memory."""
        return min(self.held_bytes, self.unpacked(stored))


IMAGE = Limits(
    free_steps=100_000,
    bytes_a_step=256,
    deflated_bytes_a_step=256,
    max_steps=4_000_000,
    header_bytes=32 << 20,
    unpacked_header_bytes=16 << 20,
    always_bytes=32 << 20,
)
"""CT. Headers of single-frame CT take up to 760 steps; those of many frames about 100 a frame, and the
frame's pixels 50 kilobytes or more; 5000 frames have headers of 15 MB, and several files are read at once.
Lossless compression of CT reaches 2 to 4, lossy 50; a blank slice of 512² comes to a few hundred bytes."""

DERIVED = Limits(
    free_steps=200_000,
    bytes_a_step=16,
    deflated_bytes_a_step=4,
    max_steps=6_000_000,
    header_bytes=64 << 20,
    unpacked_header_bytes=32 << 20,
    always_bytes=1 << 28,
)
"""SEG and SR, which are mostly items. A frame of a SEG takes some 140 steps and 1.5 kB beside its pixels,
Deflated with them 170 bytes where few are set; 100 structures on 300 slices are 30,000 frames. 1000 frames of
512² have 2^28 pixels, which blank come to a thousandth."""


def limits_of(sop_class_uid: str) -> Limits:
    """What a file of this SOP class may cost."""
    return IMAGE if sop_class_uid in (CT_IMAGE, *ENHANCED_CT) else DERIVED


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file; see `open_regular`.

    Raises:
        InputUnreadable: It is not there, may not be read, or is no regular file.
    """
    with _mapping("cannot be read"):
        return open_regular(path)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive.

    Raises:
        InputUnreadable: It has gone.
        InputDamaged: It is no whole archive.
    """
    with open_file(path) as file:
        with _mapping("damaged zip archive"):
            archive = zipfile.ZipFile(file)
        with archive:
            yield archive


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member of a zip archive.

    Raises:
        InputUnreadable: The archive has gone.
        InputDamaged: It is damaged, encrypted, or claims to unpack to more than an image holds.
    """
    if info.flag_bits & 0x1:
        raise InputDamaged("encrypted in the zip archive; unpack it first")
    stored = packed_size(archive, info)
    if info.file_size > IMAGE.unpacked(stored):
        raise InputDamaged(f"unpacks from {stored} to {info.file_size} bytes, which no image does")
    with _mapping("damaged in the zip archive"):
        return archive.open(info)


@contextmanager
def opened(
    path: Path, member: str | None = None, archive: zipfile.ZipFile | None = None
) -> Iterator[tuple[IO[bytes], int | None]]:
    """A file, or a member of a zip archive, and the bytes that the member takes there; None for a file.

    Args:
        path: The file, or the archive.
        member: Name in the archive.
        archive: It, if it is open already.

    Raises:
        InputUnreadable: It has gone.
        InputDamaged: The archive is damaged, or claims more than it holds.
    """
    with ExitStack() as stack:
        if member is None:
            yield stack.enter_context(open_file(path)), None
            return
        archive = archive or stack.enter_context(open_archive(path))
        try:
            info = archive.getinfo(member)
        except KeyError as error:
            raise InputUnreadable("is no longer in the zip archive") from error
        yield stack.enter_context(open_member(archive, info)), packed_size(archive, info)


def copied(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy what is left of a file or of a member of an archive, block by block.

    Raises:
        InputUnreadable, InputDamaged: It cannot be read or unpacked.
        OSError: `target` cannot be written.
    """
    while block := taken(source, _BLOCK):
        target.write(block)


def packed_size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes that a member takes in its archive: what it claims, but no more than are there."""
    there = os.fstat(archive.fp.fileno()).st_size if archive.fp else 0
    return min(info.compress_size, there)


def taken(file: IO[bytes], count: int) -> bytes:
    """The next bytes of a file or of a member of an archive, fewer at its end; memory is taken for no more.

    Raises:
        InputUnreadable, InputDamaged: They cannot be read or unpacked.
    """
    blocks = []
    with _mapping("damaged where it is packed"):
        while count > 0 and (block := file.read(min(count, _BLOCK))):
            blocks.append(block)
            count -= len(block)
    return b"".join(blocks)


def read_slice(
    ref: SliceRef,
    *,
    upto: Upto = Upto.HEADER,
    tags: Sequence[str | int] | None = None,
    archive: zipfile.ZipFile | None = None,
    limits: Limits = IMAGE,
) -> FileDataset:
    """The DICOM data set of an image, or the named elements of it: of a file, or a member of a zip archive.

    Args:
        ref: The image. A frame of an enhanced multi-frame file gives the whole file's data set.
        upto: How far it is read.
        tags: Keywords or tags of the elements wanted, None for all.
        archive: The zip archive that holds it, if it is open already.
        limits: What it may cost.

    Raises:
        InputUnreadable: The file has gone.
        InputDamaged: It is damaged, or claims more than it holds.
    """
    with opened(ref.path, ref.member, archive) as (file, size):
        head = taken(file, HEAD_BYTES)
        return read_dicom(file, head, tags=tags, upto=upto, packed_size=size, limits=limits)


def read_dicom(
    file: IO[bytes],
    head: bytes,
    *,
    tags: Sequence[str | int] | None = None,
    upto: Upto = Upto.HEADER,
    packed_size: int | None = None,
    limits: Limits = IMAGE,
) -> FileDataset:
    """Read a DICOM data set.

    A Deflated data set comes out as if it were not compressed, but for the transfer syntax that it names.

    Args:
        file: The file, after its head.
        head: Its first `HEAD_BYTES`, or all where it is shorter.
        tags: Keywords or tags of the elements wanted, None for all.
        upto: How far it is read: where there are no pixels, to the end; what follows them only by `Upto.END`.
        packed_size: Bytes that a member of a zip archive takes there; None for a file.
        limits: What it may cost.

    Raises:
        InputUnreadable: It cannot be read any further.
        InputDamaged: It is no DICOM, is cut short or damaged, names twice what a score depends on, or claims
            more than its size accounts for.
    """
    with _mapping("its DICOM header cannot be parsed"):
        return _read(file, head, _tags(tuple(tags)) if tags else None, upto, packed_size, limits)


def placed(ds: Dataset) -> tuple[int, int] | None:
    """Where the pixels lie that `Upto.PLACE` left in the file, and how many bytes it claims that they have.

    None where they are in memory, or there are none. The file may be cut short.
    """
    element = ds.get_item(_PIXEL_DATA, keep_deferred=True)
    if not isinstance(element, RawDataElement) or element.value is not None:
        return None
    return element.value_tell, element.length


def encoding_of(ds: FileDataset) -> UID:
    """Transfer syntax of a data set; pydicom finds it out where there is no file meta header."""
    if named := ds.file_meta.get("TransferSyntaxUID"):
        return UID(named)
    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _read(
    file: IO[bytes],
    head: bytes,
    tags: list[BaseTag | int] | None,
    upto: Upto,
    packed_size: int | None,
    limits: Limits,
) -> FileDataset:
    if packed_size is None:
        status = os.fstat(file.fileno())
        stored, on_disk = status.st_size, min(status.st_size, 512 * status.st_blocks)  # it may have holes
    else:
        stored = on_disk = packed_size
    deflated = _DEFLATED in head and _is_deflated(head)
    if deflated:
        file = cast(IO[bytes], io.BufferedReader(_Inflated(head, file)))
        head = taken(file, HEAD_BYTES)
    sought = packed_size is None and not deflated

    end = upto is Upto.END
    every = upto is not Upto.HEADER or tags is None
    most = limits.held(stored) if end else limits.header_bytes if sought else limits.unpacked_header_bytes
    walk, meter = _Walk(every, end), _Meter(limits.steps(on_disk, deflated), max(most, limits.header_bytes))
    stream: BinaryIO = io.BytesIO(head)
    partial = len(head) == HEAD_BYTES
    ds = None
    try:
        ds = read_partial(stream, walk, force=True, specific_tags=tags)
    except (InputDamaged, RecursionError):
        raise
    except Exception:
        if not partial:
            raise
    if partial and walk.count == 0:
        raise InputDamaged(f"no data set begins within its first {HEAD_BYTES} bytes")
    if ds is None or (partial and not walk.ended):
        if sought:
            stream = cast(BinaryIO, file)
            stream.seek(0)
        else:
            stream = io.BytesIO(head + taken(file, most - len(head)))
        walk = _Walk(every, end)
        ds = read_partial(cast(Any, _Metered(stream, meter)), walk, force=True, specific_tags=tags)
        if not sought and not walk.ended and stream.tell() >= most:
            raise InputDamaged(f"unpacked, it is longer than {most} bytes before its pixels or its end")
        _settle(ds, meter)
    elif tags is None:
        _settle(ds, meter)
    if deflated:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    _check_claims(ds, walk, limits.unpacked(stored), stored)
    if walk.tag == _PIXEL_DATA and upto in (Upto.PLACE, Upto.PIXELS):
        start = stream.tell()
        source: IO[bytes] = file
        if not sought:
            last = limits.held(stored) if walk.length == _UNDEFINED else start + _ELEMENT_HEAD + walk.length
            unpacked = cast(io.BytesIO, stream).getvalue()
            source = io.BytesIO(unpacked + taken(file, max(0, last - len(unpacked))))
        elif not partial:
            source = stream
        source.seek(start)
        _add_pixels(ds, source, walk, limits.held(stored), leave=sought and upto is Upto.PLACE)
    elif end and isinstance(pixels := ds.get_item(_PIXEL_DATA), RawDataElement):
        _check_whole(pixels)
    return ds


@contextmanager
def _mapping(what: str) -> Iterator[None]:
    """Around what reads foreign data: whatever is raised is one of our two errors, or a lack of memory."""
    try:
        yield
    except (InputUnreadable, MemoryError):
        raise
    except Exception as error:  # pydicom, zipfile, zlib raise nearly anything on damaged files
        if isinstance(error.__context__, (InputUnreadable, MemoryError)):  # pydicom's own error over one
            raise error.__context__ from None
        if isinstance(error, OSError) and error.errno is not None:
            raise InputUnreadable(f"cannot be read: {error.strerror or error}") from error
        said = readable(" ".join(str(error).split())[:200])
        raise InputDamaged(": ".join(filter(None, (what, type(error).__name__, said)))) from error


@lru_cache(maxsize=16)
def _tags(keywords: tuple[str | int, ...]) -> list[BaseTag | int]:
    return [Tag(keyword) for keyword in keywords]


class _Walk:
    """Watches the top level of a data set go by, and says where to stop.

    Attributes:
        count: Elements seen.
        ended: Whether the end of what is wanted was reached.
        tag, length: Of the element there; length as the file claims it.
        implicit: Whether elements have no VR there.
    """

    __slots__ = ("_every", "_falls", "_seen", "_to_end", "count", "ended", "implicit", "length", "tag")

    def __init__(self, every: bool, to_end: bool) -> None:
        self._every, self._to_end, self._falls, self.count = every, to_end, 0, 0
        self._seen: set[int] = set()
        self.ended, self.tag, self.length, self.implicit = False, -1, 0, True

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        here = int(tag)  # pydicom compares its own tags slowly
        self.count += 1
        if here <= self.tag:
            self._falls += 1
            if self._falls > MAX_FALLS:
                raise InputDamaged("its elements are in no order: this is no data set")
        if self.count > MAX_ELEMENTS:
            raise InputDamaged(f"it has more than {MAX_ELEMENTS} elements")
        if here in _ONCE:
            if here in self._seen:
                raise InputDamaged(f"{keyword_for_tag(here)} stands in it twice: nobody knows which is meant")
            self._seen.add(here)
        self.tag = here
        if self._to_end:
            return False
        if _FIRST_PIXELS <= here <= _PIXEL_DATA or (here in _NO_IMAGE and not self._every):
            self.ended, self.length, self.implicit = True, length, vr is None
        return self.ended


class _Meter:
    """Steps and bytes that are left to one file."""

    __slots__ = ("bytes", "steps")

    def __init__(self, steps: int, bytes_: int) -> None:
        self.steps, self.bytes = steps, bytes_

    def spend(self, steps: int, bytes_: int) -> None:
        self.steps -= steps
        self.bytes -= bytes_
        if self.steps < 0 or self.bytes < 0:
            raise InputDamaged("it holds more elements, or longer ones, than a file of its size may")


class _Metered:
    """A stream whose reads count, and never ask for more memory than is left to them."""

    def __init__(self, stream: IO[bytes], meter: _Meter) -> None:
        self._stream, self._meter = stream, meter
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        most = self._meter.bytes + 1
        content = self._stream.read(most if size < 0 or size > most else size)
        self._meter.spend(1, len(content))
        return content


class _Inflated(io.RawIOBase):
    """A Deflated DICOM file as the same file in Explicit VR Little Endian, unpacked as far as it is read."""

    def __init__(self, head: bytes, file: IO[bytes]) -> None:
        start = start_of_data_set(head)[1]
        plain = ExplicitVRLittleEndian.encode("ascii").ljust(len(_DEFLATED), b"\0")
        self._ready, self._packed = head[:start].replace(_DEFLATED, plain), head[start:]
        self._file, self._inflate = file, zlib.decompressobj(-zlib.MAX_WBITS)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if self._inflate.eof:
                return 0
            packed = self._packed or self._file.read(1 << 16)
            if not packed:
                raise InputDamaged("its deflated data set is cut short")
            self._ready = self._inflate.decompress(packed, 1 << 16)
            self._packed = self._inflate.unconsumed_tail
        content = self._ready[: len(buffer)]
        self._ready = self._ready[len(content) :]
        buffer[: len(content)] = content
        return len(content)


def start_of_data_set(head: bytes) -> tuple[Dataset, int]:
    """The file meta header, and where it ends."""
    stream = io.BytesIO(head)
    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    return meta, stream.tell()


def _is_deflated(head: bytes) -> bool:
    return str(start_of_data_set(head)[0].get("TransferSyntaxUID", "")) == DeflatedExplicitVRLittleEndian


def _settle(ds: Dataset, meter: _Meter, depth: int = 0) -> None:
    """Parse all sequences that pydicom would parse when they are asked for, within the file's limits."""
    if depth > MAX_DEPTH:
        raise InputDamaged(f"it has sequences inside sequences, more than {MAX_DEPTH} deep")
    for tag in list(ds.keys()):
        element = ds.get_item(tag)
        if isinstance(element, RawDataElement):
            value = element.value
            known = dictionary_VR(tag) if dictionary_has_tag(tag) else None
            if not isinstance(value, bytes) or "SQ" not in (element.VR, known):
                continue
            if element.VR not in ("SQ", None):  # pydicom has rules of its own for these
                meter.spend(len(value) // 8, len(value))
                continue
            stream = cast(Any, _Metered(io.BytesIO(value), meter))
            encoding = ds.original_character_set
            sequence = read_sequence(
                stream, element.is_implicit_VR, element.is_little_endian, len(value), encoding
            )
            element = ds[tag] = DataElement(tag, "SQ", sequence, element.value_tell)
        if element.VR == "SQ":
            for item in cast(Iterable[Dataset], element.value):
                _settle(item, meter, depth + 1)


def _check_claims(ds: Dataset, walk: _Walk, most: int, stored: int) -> None:
    """Refuse an image that claims to be larger than its file can hold, before memory is asked for."""
    rows, columns, frames = (whole(ds, keyword) for keyword in ("Rows", "Columns", "NumberOfFrames"))
    cells = max(0, rows or 0) * max(0, columns or 0) * max(1, frames or 1)
    length = walk.length if walk.tag == _PIXEL_DATA and walk.length != _UNDEFINED else 0
    if max(cells, length) > most or cells > MAX_CELLS * max(1, frames or 1):
        raise InputDamaged(
            f"claims {frames or 1} images of {rows} x {columns} in {length or 'compressed'} bytes of pixels, "
            f"more than a file of {stored} bytes can hold"
        )
    if length > max(_ALWAYS_PIXELS, _BYTES_A_CELL * cells):
        raise InputDamaged(
            f"claims {length} bytes of pixels, more than {frames or 1} images of {rows} x {columns} take"
        )


def _add_pixels(ds: FileDataset, source: IO[bytes], walk: _Walk, most: int, *, leave: bool) -> None:
    """Add the pixel data, which begin where the source stands; or only where, if they are to be left there
    and not in fragments."""
    stream = cast(Any, _Metered(source, _Meter(IMAGE.max_steps, most)))
    little, defer = ds.original_encoding[1] is not False, 0 if leave and walk.length != _UNDEFINED else None
    elements = data_element_generator(stream, walk.implicit, little, defer_size=defer)
    element = next(elements, None)
    if not isinstance(element, RawDataElement) or element.tag != _PIXEL_DATA:
        raise InputDamaged("the file has no pixels or is cut short")
    if element.length == _UNDEFINED:
        syntax = str(ds.file_meta.get("TransferSyntaxUID", ""))
        if not syntax or not UID(syntax).is_encapsulated:
            raise InputDamaged("its pixels are in fragments, but not compressed")
    elif element.value is not None:
        _check_whole(element)
    ds[element.tag] = element


def _check_whole(element: RawDataElement) -> None:
    there = len(element.value or b"")
    if element.length != _UNDEFINED and there < element.length:
        raise InputDamaged(f"its pixels are cut short: {there} of {element.length} bytes")
