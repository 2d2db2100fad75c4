"""How far apart two masks on one grid are: overlap, surfaces, centres."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..imaging import Geometry
from ..imaging.masks import bounding_box

BoolArray = npt.NDArray[np.bool_]


def dice(a: BoolArray, b: BoolArray) -> float:
    """Dice coefficient of two masks of the same shape, in [0, 1]; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def hausdorff_95(a: BoolArray, b: BoolArray, geometry: Geometry) -> float | None:
    """95 % Hausdorff distance of the surfaces of two masks, mm.

    Surface voxels are those with one of their 6 neighbours outside the mask; the array's border counts as
    outside. From each of them to the nearest of the other mask, between voxel centres; the 95th percentile
    of either direction, and the larger of the two (Maier-Hein et al., Metrics reloaded, Nature Methods 21
    (2024), 195-212).

    Args:
        a, b: bool (z, y, x) on the grid of `geometry`.

    Returns:
        None when a mask is empty.
    """
    from scipy.spatial import cKDTree

    if not a.any() or not b.any():
        return None
    points = [_surface(m) * np.asarray(geometry.spacing) for m in (a, b)]
    trees = [cKDTree(p) for p in points]
    directed = (trees[1].query(points[0])[0], trees[0].query(points[1])[0])
    return float(max(np.percentile(d, 95) for d in directed))


def _surface(mask: BoolArray) -> npt.NDArray[np.float64]:
    """Indices (voxel, 3) of the surface voxels."""
    box = bounding_box(mask)
    part = np.pad(mask[box], 1)
    inner = part.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(part, step, axis=axis)
    index = np.argwhere(part & ~inner) - 1
    return np.asarray(index + [s.start for s in box], dtype=np.float64)


def centre_distance(a: BoolArray, b: BoolArray, geometry: Geometry) -> float | None:
    """Distance of the two masks' centres of gravity, mm; None when a mask is empty."""
    if not a.any() or not b.any():
        return None
    centres = [geometry.to_lps(_centroid(m)) for m in (a, b)]
    return float(np.linalg.norm(centres[0] - centres[1]))


def _centroid(mask: BoolArray) -> npt.NDArray[np.float64]:
    box = bounding_box(mask)
    part = mask[box]
    sums = [part.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return np.array([s @ np.arange(len(s)) / s.sum() + b.start for s, b in zip(sums, box, strict=True)])
