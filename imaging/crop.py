"""The crop around the heart that several methods look at, its patches, and what can be calcium at all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .volume import Geometry

CROP_SPACING = (2.5, 0.7, 0.7)
"""Voxel size of the model grid, mm (z, y, x); DeepCAC2 paper: 0.7 × 0.7 × 2.5 mm."""
CROP_SHAPE = (58, 256, 256)
"""Voxels of the crop around the heart (z, y, x); DeepCAC2 paper: 256 × 256 × 58."""
PATCH_SHAPE = (16, 64, 64)
"""Patch (z, y, x); DeepCAC2 paper: 64 × 64 × 16."""
PATCH_STEP = (8, 32, 32)
"""Step between patches (z, y, x); DeepCAC2 paper: 32 × 32 × 8."""
WINDOW_HU = (-135.0, 500.0)
"""Intensity window, HU; DeepCAC2 paper."""
CANDIDATE_HU = 130
"""HU below which the default rule counts no voxel as calcium (Agatston et al. 1990)."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """How a crop goes through a network, in voxels (z, y, x); a set of weights may state its own.

    Attributes:
        crop_shape: Of the crop around the heart.
        patch_shape, patch_step: Of the patches, and from one to the next.
    """

    crop_shape: tuple[int, int, int] = CROP_SHAPE
    patch_shape: tuple[int, int, int] = PATCH_SHAPE
    patch_step: tuple[int, int, int] = PATCH_STEP

    def __post_init__(self) -> None:
        for step, patch, crop in zip(self.patch_step, self.patch_shape, self.crop_shape, strict=True):
            if not 0 < step <= patch <= crop:
                raise ValueError(f"patch_step, patch_shape and crop_shape grow in this order: {self}")


def crop_grid(
    ct: Geometry, heart_centre: Iterable[float], shape: tuple[int, int, int] = CROP_SHAPE
) -> Geometry:
    """The paper's crop: 256 × 256 × 58 voxels of 0.7 × 0.7 × 2.5 mm centred on the heart.

    Args:
        ct: The CT's grid; the crop is laid parallel to it.
        heart_centre: Middle of the heart's box, LPS (x, y, z), mm.
        shape: Voxels of the crop (z, y, x).
    """
    from .resampling import centred_grid  # loads torch

    x, y, z = (float(c) for c in heart_centre)
    return centred_grid(ct, (x, y, z), CROP_SPACING, shape)
