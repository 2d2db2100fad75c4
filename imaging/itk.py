"""Resampling by ITK itself, where not a voxel may fall to another side than with the programs that use it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Space(Protocol):
    """A grid as ITK describes it, axes (x, y, z)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels."""

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """(3,), mm."""

    @property
    def origin(self) -> npt.NDArray[np.float64]:
        """(3,), LPS position of the first voxel's centre, mm."""

    @property
    def direction(self) -> npt.NDArray[np.float64]:
        """(3, 3), columns: unit vectors along x, y and z."""


def resampled(
    values: npt.NDArray[Any], source: Space, target: Space, *, linear: bool, outside: float
) -> npt.NDArray[Any]:
    """Values on another grid.

    Args:
        values: (x, y, z) on the source's grid; no bool.
        source, target: The grids.
        linear: Between voxels; else the nearest one's.
        outside: Value outside of the source.

    Returns:
        (x, y, z) of the values' type: whole numbers lose their fraction, towards 0.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    image.SetSpacing(source.spacing.tolist())
    image.SetOrigin(source.origin.tolist())
    image.SetDirection(source.direction.flatten().tolist())
    result = sitk.Resample(
        image, target.shape, sitk.Transform(), sitk.sitkLinear if linear else sitk.sitkNearestNeighbor,
        target.origin.tolist(), target.spacing.tolist(), target.direction.flatten().tolist(), outside,
        image.GetPixelID(),
    )  # fmt: skip
    found: npt.NDArray[Any] = sitk.GetArrayFromImage(result).T
    return found
