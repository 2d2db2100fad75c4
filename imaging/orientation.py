"""Canonical orientation: the way round in which the networks see a body.

Series come with any of the 48 ways to run through a patient (head first or feet first, prone, sagittal
storage, mirrored rows). The networks are trained on one of them: the array's z index grows to the head, y
to the back and x to the left, i.e. ``Geometry.axes == ((0, 0, 1), (0, 1, 0), (1, 0, 0))`` up to a slight
rotation, which is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .volume import Geometry

ORIENTATIONS = ("axial", "coronal", "sagittal")
"""Slices across axis 0, 1 and 2 of the canonical array."""

_CANONICAL = np.array(((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)))
"""LPS directions of the canonical array's z, y and x index: head, back, left."""


class Canonical(NamedTuple):
    """An array turned into canonical orientation, and the way back.

    Attributes:
        array: View of the input, axes permuted and reversed, never resampled: (z to the head, y to the
            back, x to the left).
        geometry: Where that view's voxels lie; every voxel keeps its LPS position.
        order: Canonical axis j is axis ``order[j]`` of the input.
        undo: Turns an array of ``geometry.shape`` (any dtype) back to the input's shape and axes; returns
            a view.
    """

    array: npt.NDArray[Any]
    geometry: Geometry
    order: tuple[int, int, int]
    undo: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def _triple(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def to_canonical(array: npt.NDArray[Any], geometry: Geometry) -> Canonical:
    """Permute and reverse the axes of a (z, y, x) array so that they point to head, back and left.

    Args:
        array: (z, y, x), any dtype, of ``geometry.shape``.
        geometry: Where its voxels lie.

    Returns:
        The view, its geometry, and the function that undoes it.

    Raises:
        ValueError: array and geometry differ in shape.
    """
    if array.shape != geometry.shape:
        raise ValueError(f"array {array.shape} does not fit its geometry {geometry.shape}")
    # cosines[i, j]: how much array axis i runs along canonical axis j.
    cosines = np.asarray(geometry.axes) @ _CANONICAL.T
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[p[j], j]) for j in range(3)))
    flipped = tuple(j for j in range(3) if cosines[order[j], j] < 0)
    inverse = tuple(int(i) for i in np.argsort(order))

    corner = np.zeros(3)
    for j in flipped:
        corner[order[j]] = geometry.shape[order[j]] - 1
    z, y, x = order
    axes = np.asarray(geometry.axes)[list(order)] * [[-1.0 if j in flipped else 1.0] for j in range(3)]
    turned = replace(
        geometry,
        shape=(geometry.shape[z], geometry.shape[y], geometry.shape[x]),
        spacing=(geometry.spacing[z], geometry.spacing[y], geometry.spacing[x]),
        origin=_triple(geometry.to_lps(corner)),
        axes=(_triple(axes[0]), _triple(axes[1]), _triple(axes[2])),
    )

    def undo(turned_array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if turned_array.shape != turned.shape:
            raise ValueError(f"array {turned_array.shape} does not fit the canonical grid {turned.shape}")
        return np.flip(turned_array, flipped).transpose(inverse)

    return Canonical(np.flip(array.transpose(order), flipped), turned, (z, y, x), undo)
