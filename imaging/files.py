"""Volumes and masks as NIfTI, NRRD and MetaImage files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, InputUnreadable, OutputUnwritable
from ..system.atomic import atomic_path
from .volume import PADDING_HU, Geometry, Volume

IMAGE_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
"""What `read_image` reads. ``.nhdr`` and ``.mhd`` keep their pixels in a second file: read, never written."""

_WRITTEN = (".nii", ".nii.gz", ".nrrd", ".mha")
_DTYPES = (np.int16, np.uint8, np.float32)


def is_image(path: Path) -> bool:
    """Whether the name ends like a file that `read_image` reads (case does not matter)."""
    return path.name.lower().endswith(IMAGE_ENDINGS)


def read_image(path: Path) -> tuple[npt.NDArray[Any], Geometry]:
    """Read a 3D image.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``.

    Returns:
        The array (z, y, x) in the file's own voxel order and type, with NIfTI's scaling applied; and its
        geometry in LPS mm. Axes may be left-handed and may run in any direction.

    Raises:
        InputUnreadable: the file is missing, damaged, of another format, or its axes are not at right angles.
        InputError: it is not one 3D image of numbers.
    """
    import SimpleITK as sitk

    if not is_image(path):
        raise InputUnreadable(f"Cannot read {path}: its name must end in {', '.join(IMAGE_ENDINGS)}")
    if not path.is_file():
        raise InputUnreadable(f"There is no file {path}: check the path")
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputUnreadable(f"Cannot read {path} ({reason}): convert it with another tool") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise InputError(
            f"{path} is not one 3D image of single values (size {image.GetSize()}, "
            f"{image.GetNumberOfComponentsPerPixel()} values a voxel): give one image or one label map"
        )
    array: npt.NDArray[Any] = sitk.GetArrayFromImage(image)
    columns = np.asarray(image.GetDirection()).reshape(3, 3).T  # axes of x, y, z
    z, y, x = (tuple(float(v) for v in columns[i]) for i in (2, 1, 0))
    spacing = image.GetSpacing()
    return array, Geometry(
        shape=(array.shape[0], array.shape[1], array.shape[2]),
        spacing=(float(spacing[2]), float(spacing[1]), float(spacing[0])),
        origin=image.GetOrigin(),
        axes=((z[0], z[1], z[2]), (y[0], y[1], y[2]), (x[0], x[1], x[2])),
    )


def write_image(path: Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write a 3D image; the file appears under its name only when complete.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``; the last two are written compressed.
        array: (z, y, x), int16, uint8, float32, or bool, which is written as uint8 0 and 1.
        geometry: Where its voxels lie. NIfTI keeps it as 32-bit floats.

    Raises:
        ValueError: the array's type or shape does not fit, or the ending is not one of the four.
        DiskFull, OutputUnwritable: the file cannot be written.
    """
    import SimpleITK as sitk

    if array.shape != geometry.shape:
        raise ValueError(f"array {array.shape} does not fit its geometry {geometry.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype not in _DTYPES:
        raise ValueError(f"images are written as int16, uint8 or float32, not {array.dtype}")
    if not path.name.lower().endswith(_WRITTEN):
        raise ValueError(f"image names end in {', '.join(_WRITTEN)}, not {path.name!r}")
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([geometry.spacing[i] for i in (2, 1, 0)])
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.asarray(geometry.axes)[::-1].T.ravel().tolist())
    with atomic_path(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=not path.name.lower().endswith(".nii"))
        except RuntimeError as error:
            # SimpleITK does not say why; a full disk shows when the same bytes are tried again.
            temporary.write_bytes(bytes(array.nbytes))
            reason = str(error).strip().splitlines()[-1].strip()
            raise OutputUnwritable(f"Cannot write {path} ({reason}): try another folder") from error


def volume_from_image(path: Path) -> Volume:
    """Read a CT from an image file.

    Voxel order is kept, so masks computed on the volume fit the file. Values are rounded and clipped to
    int16; what is not a number becomes `PADDING_HU` (in NIfTI files: 0, as ITK reads them).

    Raises:
        InputUnreadable, InputError: see `read_image`.
    """
    array, geometry = read_image(path)
    if array.dtype != np.int16:
        limits = np.iinfo(np.int16)
        values = np.nan_to_num(np.rint(array.astype(np.float64)), nan=PADDING_HU)
        array = np.clip(values, limits.min, limits.max).astype(np.int16)
    return Volume(hu=array, geometry=geometry)
