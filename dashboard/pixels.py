"""Files, their frames and pictures of them, one at a time: what leaves through DICOMweb."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from ..dicom import files
from ..dicom.files import Upto
from ..dicom.headers import number, quiet_pydicom, text, texts, whole
from ..dicom.series import SliceRef
from . import media
from .security import Refused, foreign

MOST_BYTES = 512 << 20
"""Pixels that are read, and largest file, or member of an archive, that is read whole: 1,000 slices of 512²
in one. Chosen."""
MOST_PIXELS = 4096 * 4096
"""Largest frame that is decoded, in values. Chosen."""

GONE = (404, "the file is no longer there or cannot be read")
NO_FRAME = (406, "the pixels cannot be decoded; ask for them as they are stored")

DEFAULT_WINDOW = (40.0, 400.0)
"""Level and width, HU, of a CT that names none: the usual mediastinal setting."""

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

_IMAGE_TAGS = ["Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
               "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"]  # fmt: skip
"""What a frame cannot be decoded without (PS3.3 C.7.6.3)."""
_FRAME_TAGS = [*_IMAGE_TAGS, "NumberOfFrames", "PixelData", "ExtendedOffsetTable",
               "ExtendedOffsetTableLengths"]  # fmt: skip


def bytes_of(ref: SliceRef) -> bytes:
    """The file as it is.

    Raises:
        Refused: 404: it has gone, is broken or too large.
    """
    with foreign(*GONE), files.opened(ref.path, ref.member) as (file, _):
        content = files.taken(file, MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise Refused(*GONE)
    return content


def opened(
    ref: SliceRef, *, upto: Upto = Upto.HEADER, tags: Sequence[str | int] | None = None
) -> FileDataset:
    """The data set of a file, with a file meta header even where the file has none.

    Raises:
        Refused: 404: it has gone, is broken, or its pixels are too many to be read.
    """
    limits = replace(files.limits_of(ref.sop_class_uid), held_bytes=MOST_BYTES)
    with foreign(*GONE), quiet_pydicom():
        ds = files.read_slice(ref, upto=upto, tags=tags, limits=limits)
        ds.file_meta.TransferSyntaxUID = files.encoding_of(ds)
        if "MediaStorageSOPClassUID" not in ds.file_meta:
            ds.file_meta.MediaStorageSOPClassUID = UID(ref.sop_class_uid)
            ds.file_meta.MediaStorageSOPInstanceUID = UID(ref.sop_instance_uid)
    return ds


class FileFrames:
    """The frames of a file. Of a large file only what is asked for is read, unless it is compressed."""

    def __init__(self, ref: SliceRef) -> None:
        """Read what says where the frames are.

        Raises:
            Refused: 404: the file has gone, is broken, holds no pixels, or is compressed and too large.
        """
        self._ref = ref
        self._ds = opened(ref, upto=Upto.PLACE, tags=_FRAME_TAGS)
        if "PixelData" not in self._ds:
            raise Refused(*GONE)
        self._place = files.placed(self._ds)
        stored = UID(self._ds.file_meta.TransferSyntaxUID)
        self._native = not stored.is_encapsulated
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
        bits = int(ds.Rows) * int(ds.Columns) * _values_a_pixel(ds) * depth
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
        if self._place is None:
            content = bytes(self._ds.PixelData[start:stop])
        else:
            begin, length = self._place
            with files.open_file(self._ref.path) as file:
                there = min(length, os.fstat(file.fileno()).st_size - begin)
                file.seek(begin + start)
                content = files.taken(file, max(0, min(stop, there) - start))
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
        array = self.pixels(index, raw=True)
        plain: bytes = array.astype(array.dtype.newbyteorder("<")).tobytes()
        return plain

    def pixels(self, index: int, *, raw: bool = False) -> npt.NDArray[Any]:
        """A frame as an array (rows, columns), or (rows, columns, values) of colours.

        Args:
            index: Of the frame, from 0.
            raw: Leave colours as they are stored; False: RGB.

        Raises:
            Refused: See `decoded`.
        """
        with foreign(*NO_FRAME), quiet_pydicom():
            _check_size(self._ds)
            stored = self._stored(index)
            one = Dataset()
            for keyword in _IMAGE_TAGS:
                if keyword in self._ds:
                    one[keyword] = self._ds[keyword]
            one.NumberOfFrames = 1
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if self._native else UID(self.syntax)
            one.PixelData = stored + bytes(len(stored) % 2) if self._native else encapsulate([stored])
            return pixel_array(one, index=0, raw=raw)


def _values_a_pixel(ds: Dataset) -> int:
    """Values that are stored of a pixel where there is no compression."""
    return 2 if text(ds, "PhotometricInterpretation") == "YBR_FULL_422" else whole(ds, "SamplesPerPixel") or 1


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
        values = FileFrames(ref).pixels(index)
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
