"""Files, their frames and pictures of them, one at a time: what leaves through DICOMweb."""

from __future__ import annotations

import io
import stat
import sys
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ..dicom.files import read_slice
from ..dicom.headers import number, quiet_pydicom, text, texts, whole
from ..dicom.series import SliceRef
from . import media
from .security import Refused, foreign

MOST_BYTES = 512 << 20
"""Largest file, or member of an archive, that is read whole: 1,000 slices of 512² in one. Chosen."""
_MOST_DEFLATED = 1 << 20
"""Largest file of a deflated transfer syntax: it may be 1,000 times as large. Chosen."""
MOST_PIXELS = 4096 * 4096
"""Largest frame that is decoded, in values. Chosen."""

GONE = (404, "the file is no longer there or cannot be read")
NO_FRAME = (406, "the pixels cannot be decoded; ask for them as they are stored")

DEFAULT_WINDOW = (40.0, 400.0)
"""Level and width, HU, of a CT that names none: the usual mediastinal setting."""

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)

_MEDIA_TYPES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.92": "image/jpx",
    "1.2.840.10008.1.2.4.93": "image/jpx",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
"""Media type of a compressed frame by transfer syntax: PS3.18 table 8.7.3-5."""

_FRAME_TAGS = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "NumberOfFrames", "PixelData",
               "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]  # fmt: skip
_DEFERRED = 4096
"""Pixels of files that hold more than this many bytes stay on disk until a frame is asked for. Chosen."""


def _regular(ref: SliceRef, most: int) -> Path:
    """The path of a file that can be read to its end: no pipe, no device, not larger than `most` bytes."""
    found = ref.path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > most:
        raise Refused(*GONE)
    return ref.path


def _source(ref: SliceRef, most: int = MOST_BYTES) -> str | io.BytesIO:
    if ref.member is not None:
        return io.BytesIO(bytes_of(ref))
    deflated = ref.transfer_syntax_uid == DeflatedExplicitVRLittleEndian
    return str(_regular(ref, _MOST_DEFLATED if deflated else most))


def bytes_of(ref: SliceRef) -> bytes:
    """The file as it is.

    Raises:
        Refused: 404: it has gone, is broken or too large.
    """
    with foreign(*GONE):
        if ref.member is None:
            return _regular(ref, MOST_BYTES).read_bytes()
        with zipfile.ZipFile(_regular(ref, sys.maxsize)) as archive:
            if archive.getinfo(ref.member).file_size > MOST_BYTES:
                raise Refused(*GONE)
            return archive.read(ref.member)


def opened(ref: SliceRef, *, pixels: bool = False, tags: Sequence[int] | None = None) -> FileDataset:
    """The data set of a file, with a file meta header even where the file has none.

    Raises:
        Refused: 404: it has gone, is broken, or too large to be read with its pixels.
    """
    with foreign(*GONE), quiet_pydicom():
        if ref.member is None:
            _regular(ref, MOST_BYTES if pixels else sys.maxsize)
        ds = read_slice(ref, pixels=pixels, tags=tags)
        if "TransferSyntaxUID" not in ds.file_meta:
            ds.file_meta.TransferSyntaxUID = _encoding(ds)
        if "MediaStorageSOPClassUID" not in ds.file_meta:
            ds.file_meta.MediaStorageSOPClassUID = UID(ref.sop_class_uid)
            ds.file_meta.MediaStorageSOPInstanceUID = UID(ref.sop_instance_uid)
    return ds


def _encoding(ds: FileDataset) -> UID:
    """Transfer syntax of a data set without a file meta header: pydicom found out how it is encoded."""
    implicit, little = ds.original_encoding
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


class FileFrames:
    """The frames of a file. Of a large file only what is asked for is read, unless it is compressed."""

    def __init__(self, ref: SliceRef) -> None:
        """Read what says where the frames are.

        Raises:
            Refused: 404: the file has gone, is broken, holds no pixels, or is compressed and too large.
        """
        self._ref = ref
        plain_file = ref.member is None and ref.transfer_syntax_uid in _NATIVE
        with foreign(*GONE), quiet_pydicom():
            self._ds = pydicom.dcmread(
                _source(ref, sys.maxsize if plain_file else MOST_BYTES),
                specific_tags=_FRAME_TAGS,
                force=True,
                defer_size=_DEFERRED if plain_file else None,
            )
            if "PixelData" not in self._ds:
                raise Refused(*GONE)
            stored = self._ds.file_meta.get("TransferSyntaxUID") or _encoding(self._ds)
            self._native = not UID(stored).is_encapsulated
        self._swapped = stored == ExplicitVRBigEndian
        self.syntax = media.NATIVE if self._native else str(stored)
        """Transfer syntax of `stored`; frames of any file that is not compressed are the same in all."""
        self.media_type = media.OCTETS if self._native else _MEDIA_TYPES.get(str(stored), media.OCTETS)

    def stored(self, index: int) -> bytes:
        """A frame as it is stored, in little endian; bits of a binary mask begin at the first.

        Raises:
            Refused: 406: the file is cut short, or is none that holds this frame.
        """
        with foreign(*NO_FRAME):
            return self._stored(index)

    def _stored(self, index: int) -> bytes:
        ds = self._ds
        if not self._native:
            offsets = ds.get("ExtendedOffsetTable"), ds.get("ExtendedOffsetTableLengths")
            table = (offsets[0], offsets[1]) if offsets[0] and offsets[1] else None
            frame: bytes = get_frame(
                ds.PixelData,
                index,
                number_of_frames=int(ds.get("NumberOfFrames") or 1),
                extended_offsets=table,
            )
            return frame
        depth = int(ds.BitsAllocated)
        bits = int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel") or 1) * depth
        first, last = index * bits, (index + 1) * bits
        content = self._part(first // 8, -(-last // 8))
        if first % 8:
            spread = np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")
            content = np.packbits(spread[first % 8 : first % 8 + bits], bitorder="little").tobytes()
        elif last % 8:
            content = content[:-1] + bytes([content[-1] & (1 << last % 8) - 1])
        if self._swapped and depth > 8:
            content = np.frombuffer(content, f">u{depth // 8}").astype(f"<u{depth // 8}").tobytes()
        return content

    def _part(self, start: int, stop: int) -> bytes:
        """Bytes of the pixel data."""
        raw = self._ds.get_item("PixelData", keep_deferred=True)
        if isinstance(raw, RawDataElement) and raw.value is None:
            with _regular(self._ref, sys.maxsize).open("rb") as file:
                file.seek(raw.value_tell + start)
                content = file.read(stop - start)
        else:
            content = bytes(self._ds.PixelData[start:stop])
        if len(content) < stop - start:
            raise ValueError("the pixels are cut short")
        return content

    def decoded(self, index: int) -> bytes:
        """A frame without compression, little endian.

        Raises:
            Refused: 406: it cannot be decoded, or is larger than `MOST_PIXELS`.
        """
        if self._native:
            return self.stored(index)
        with foreign(*NO_FRAME), quiet_pydicom():
            _check_size(self._ds)
            array = pixel_array(_source(self._ref), index=index, raw=True)
            plain: bytes = array.astype(array.dtype.newbyteorder("<")).tobytes()
        return plain


def _check_size(ds: Dataset) -> None:
    """Whether a frame may be decoded."""
    values = (whole(ds, "Rows") or 0) * (whole(ds, "Columns") or 0) * (whole(ds, "SamplesPerPixel") or 1)
    if values > MOST_PIXELS:
        raise Refused(406, f"frames of more than {MOST_PIXELS} values are not decoded")


def as_seen(ref: SliceRef, index: int, window: tuple[float, float] | None = None) -> npt.NDArray[np.uint8]:
    """A frame as a picture.

    Args:
        ref: The file.
        index: Frame, from 0.
        window: Level and width; None: the file's own, else `DEFAULT_WINDOW` for CT, else all values.

    Returns:
        uint8 (rows, columns) or (rows, columns, 3).

    Raises:
        Refused: 406: it cannot be decoded, or is larger than `MOST_PIXELS`.
    """
    with foreign(*NO_FRAME), quiet_pydicom(), np.errstate(all="ignore"):
        header = opened(ref)
        _check_size(header)
        values = pixel_array(_source(ref), index=index)
        grey: npt.NDArray[Any]
        if values.ndim == 3:
            grey = values
        elif whole(header, "BitsAllocated") == 1:
            grey = values * 255
        else:
            grey = np.nan_to_num(_windowed(values, header, index, window))
        return grey.astype(np.uint8)


def _windowed(
    values: npt.NDArray[Any], header: FileDataset, index: int, window: tuple[float, float] | None
) -> npt.NDArray[np.float32]:
    """Stored values as grey, 0 to 255."""
    slope, intercept = _rescale(header, index)
    shown = values.astype(np.float32) * slope + intercept
    level, width = window or _window_of(header, shown)
    grey: npt.NDArray[np.float32] = np.clip((shown - (level - width / 2)) / width, 0, 1) * 255
    return 255 - grey if text(header, "PhotometricInterpretation") == "MONOCHROME1" else grey


def _window_of(header: FileDataset, shown: npt.NDArray[np.float32]) -> tuple[float, float]:
    """The window to show values with."""
    for window in zip(texts(header, "WindowCenter"), texts(header, "WindowWidth"), strict=False):
        with suppress(ValueError):
            level, width = map(float, window)
            if width > 0:
                return level, width
    if text(header, "Modality") == "CT":
        return DEFAULT_WINDOW
    low, high = float(shown.min()), float(shown.max())
    return (low + high) / 2, max(high - low, 1.0)


def _rescale(header: FileDataset, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame: the file's, or those of its functional groups."""
    holder: Dataset = header
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    for groups in (*own[index : index + 1], *(header.get("SharedFunctionalGroupsSequence") or ())):
        if groups.get("PixelValueTransformationSequence"):
            holder = groups.PixelValueTransformationSequence[0]
            break
    slope = number(holder, "RescaleSlope")
    return 1.0 if slope is None else slope, number(holder, "RescaleIntercept") or 0.0
