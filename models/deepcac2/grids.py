"""Resampling and cropping as TorchIO 0.19 does them, whose resampling is ITK's, to the same voxel.

Where a voxel is taken from hangs on arithmetic: with slices every 1.25 or 5 mm the middle of a voxel of the
one grid lies exactly between two of the other. So positions are computed here in the order in which ITK
computes them, in float64, and the rules at edges and halves are ITK's. Axes are (x, y, z), as ITK has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ...imaging import Geometry

Floats = npt.NDArray[np.float64]
Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid of voxels as ITK describes it, axes (x, y, z).

    Attributes:
        shape: Voxels.
        spacing: float64 (3,), mm.
        origin: float64 (3,), LPS position of the first voxel's centre, mm.
        direction: float64 (3, 3), columns: unit vectors along x, y and z.
    """

    shape: Triple
    spacing: Floats
    origin: Floats
    direction: Floats

    @classmethod
    def of(cls, geometry: Geometry) -> Grid:
        """The grid of arrays (z, y, x), transposed."""
        z, y, x = geometry.shape
        return cls(
            shape=(x, y, z),
            spacing=np.array(geometry.spacing[::-1], dtype=np.float64),
            origin=np.array(geometry.origin, dtype=np.float64),
            direction=np.array(geometry.axes[::-1], dtype=np.float64).T,
        )

    @property
    def to_lps(self) -> Floats:
        """From voxels to mm, without the origin: float64 (3, 3)."""
        return self.direction * self.spacing

    @property
    def is_aligned(self) -> bool:
        """Whether x, y and z run along the patient's, one way or the other."""
        return not np.any(self.direction[~np.eye(3, dtype=bool)])

    def kept(self) -> Grid:
        """The grid as TorchIO keeps it: as the matrix from voxels to mm, from whose columns spacing and
        direction are read off again, which of oblique ones may cost the last digits."""
        matrix = self.to_lps
        spacing: Floats = np.sqrt(np.sum(matrix * matrix, axis=0))
        return replace(self, spacing=spacing, direction=matrix / spacing)

    def resampled(self, spacing: tuple[float, float, float]) -> Grid:
        """The grid of TorchIO's ``Resample`` to a spacing (x, y, z), mm.

        The outer corner stays where it was; at the far end a voxel may reach beyond, since sizes are rounded
        up. An axis of one voxel keeps it.
        """
        new, old = np.array(spacing, dtype=np.float64), self.spacing
        x, y, z = (
            1 if n == 1 else math.ceil(n * float(o) / float(s))
            for n, o, s in zip(self.shape, old, new, strict=True)
        )
        origin = _times(self.to_lps, 0.5 * (new / old - 1)) + self.origin
        return replace(self, shape=(x, y, z), spacing=new, origin=origin)

    def shifted(self, begin: Triple) -> Grid:
        """The same grid from another voxel on; its shape stays."""
        moved = np.dot(np.array([begin], dtype=np.float64), self.to_lps.T)[0]
        return replace(self, origin=moved + self.origin)


def _times(matrix: Floats, vector: Floats) -> Floats:
    """Matrix times vector, added up from the left."""
    result: Floats = matrix[:, 0] * vector[0] + matrix[:, 1] * vector[1] + matrix[:, 2] * vector[2]
    return result


def positions(source: Grid, target: Grid) -> tuple[Floats, Floats, Floats]:
    """Where the target's voxels lie in the source, for each axis, in voxels of the source.

    Both are aligned (`Grid.is_aligned`), so that no axis hangs on the others.
    """
    inverse = np.linalg.inv(source.to_lps).astype(np.float64)

    def at(axis: int, index: float) -> float:
        point = target.origin + target.to_lps[:, axis] * index
        return float(_times(inverse, point - source.origin)[axis])

    # ITK goes along a row from its first voxel to the one behind its last, and takes shares of that.
    n = target.shape[0]
    first, behind = at(0, 0), at(0, n)
    x = first + (np.arange(n) / n) * (behind - first)
    y, z = (np.array([at(axis, i) for i in range(target.shape[axis])]) for axis in (1, 2))
    return x, y, z


def is_inside(position: Floats, size: int) -> npt.NDArray[np.bool_]:
    """Whether positions lie in the source: up to half a voxel before the first and behind the last centre,
    the latter not included."""
    return (position >= -0.5) & (position < size - 0.5)


def nearest(position: Floats) -> npt.NDArray[np.int64]:
    """The voxel nearest to each position; halves belong to the next voxel."""
    return np.floor(position + 0.5).astype(np.int64)


def linear(values: npt.NDArray[Any], at: tuple[Floats, Floats, Floats]) -> Floats:
    """Values between voxels, linear along one axis after the other, x first; the edges' values go on.

    Args:
        values: (x, y, z).
        at: Positions inside of it, see `positions`; not beyond `is_inside`.

    Returns:
        float64 of as many values along each axis.
    """
    result: npt.NDArray[Any] = values
    for axis, position in enumerate(at):
        size = values.shape[axis]
        clamped = position.clip(0, size - 1)
        low = np.floor(clamped).astype(np.int64)
        high = np.minimum(low + 1, size - 1)
        shape = [1, 1, 1]
        shape[axis] = -1
        below = result.take(low, axis).astype(np.float64)
        above = result.take(high, axis).astype(np.float64)
        result = below + (above - below) * (clamped - low).reshape(shape)
    return result


def crop_begin(first: int, stop: int, size: int) -> int:
    """First voxel, along an axis, of TorchIO's ``CropOrPad`` of `size` voxels around a mask's box.

    The middle of box and crop can differ by half a voxel; the crop then lies half a voxel before.

    Args:
        first, stop: The box: its first voxel, and the one behind its last.

    >>> crop_begin(10, 20, 4), crop_begin(10, 21, 4), crop_begin(0, 3, 8)
    (13, 13, -3)
    """
    return (first + stop - size) // 2
