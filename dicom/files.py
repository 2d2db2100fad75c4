"""Opening the file behind a `SliceRef`, wherever it lies."""

from __future__ import annotations

import io
import zipfile

import pydicom
from pydicom.dataset import FileDataset

from .series import SliceRef


def open_slice(ref: SliceRef, *, pixels: bool = False) -> FileDataset:
    """The DICOM data set of an image: a file, or a member of a zip archive.

    Args:
        ref: The image. A frame of an enhanced multi-frame file gives the whole file's data set.
        pixels: Whether to read the pixel data too.

    Raises:
        OSError, zipfile.BadZipFile, KeyError, pydicom.errors.InvalidDicomError: the file is gone or
            broken since it was discovered.
    """
    if ref.member is None:
        return pydicom.dcmread(ref.path, stop_before_pixels=not pixels, force=True)
    with zipfile.ZipFile(ref.path) as archive:
        data = io.BytesIO(archive.read(ref.member))
    return pydicom.dcmread(data, stop_before_pixels=not pixels, force=True)
