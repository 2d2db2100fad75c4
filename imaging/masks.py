"""Small things that are asked of masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .volume import Geometry


def bounding_box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The smallest index box (z, y, x) that holds every true voxel of a mask.

    Raises:
        ValueError: The mask is empty.
    """
    ranges = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(hit):
            raise ValueError("an empty mask has no bounding box")
        ranges.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return ranges[0], ranges[1], ranges[2]


def widened(mask: npt.NDArray[np.bool_], geometry: Geometry, margin_mm: float) -> npt.NDArray[np.bool_]:
    """The mask and everything within `margin_mm` of it (Euclidean), bool (z, y, x).

    Distances are taken between blocks of about 3 mm, so the edge is true to a few millimetres, more
    often too wide than too narrow.
    """
    from scipy.ndimage import distance_transform_edt

    steps = [max(1, round(3.0 / s)) for s in geometry.spacing]
    sampling = [s * n for s, n in zip(geometry.spacing, steps, strict=True)]
    coarse = mask
    for axis, step in enumerate(steps):
        coarse = np.logical_or.reduceat(coarse, np.arange(0, mask.shape[axis], step), axis=axis)
    near = distance_transform_edt(~coarse, sampling=sampling) <= margin_mm if coarse.any() else coarse
    for axis, (step, size) in enumerate(zip(steps, mask.shape, strict=True)):
        near = np.repeat(near, step, axis=axis).take(range(size), axis=axis)
    return np.asarray(near, dtype=bool)
