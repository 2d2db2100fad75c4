"""Turning arrays into canonical orientation and back."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from deepcac2.imaging import Geometry
from deepcac2.imaging.orientation import to_canonical

CANONICAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
WAYS = list(product(permutations(range(3)), product((1.0, -1.0), repeat=3)))


def _geometry(order: tuple[int, ...], signs: tuple[float, ...]) -> Geometry:
    axes = tuple(tuple(s * c for c in CANONICAL[i]) for i, s in zip(order, signs, strict=True))
    return Geometry(shape=(4, 5, 6), spacing=(2.5, 0.7, 0.8), origin=(-11.0, 7.0, 300.0), axes=axes)


@pytest.mark.parametrize(("order", "signs"), WAYS)
def test_all_48_ways_round_become_canonical_and_keep_every_voxels_position(order, signs):
    geometry = _geometry(order, signs)
    # Each voxel holds its own LPS position, so moving voxels and moving geometry must agree.
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape), indexing="ij"), axis=-1)
    positions = geometry.to_lps(index)
    for component in range(3):
        canonical = to_canonical(positions[..., component], geometry)
        assert np.allclose(canonical.geometry.axes, CANONICAL)
        assert canonical.geometry.spacing == tuple(geometry.spacing[i] for i in canonical.order)
        grid = np.stack(np.meshgrid(*map(np.arange, canonical.geometry.shape), indexing="ij"), axis=-1)
        assert np.allclose(canonical.array, canonical.geometry.to_lps(grid)[..., component])
        assert np.array_equal(canonical.undo(canonical.array), positions[..., component])


def test_slight_rotation_is_kept_and_not_resampled():
    c, s = np.cos(0.15), np.sin(0.15)
    axes = ((0.0, s, -c), (0.0, c, s), (-1.0, 0.0, 0.0))
    geometry = Geometry(shape=(3, 4, 5), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), axes=axes)
    values = np.arange(60).reshape(3, 4, 5)
    canonical = to_canonical(values, geometry)
    assert np.array_equal(canonical.array, values[::-1, :, ::-1])
    assert np.allclose(canonical.geometry.axes, ((0, -s, c), (0, c, s), (1, 0, 0)))
    assert np.allclose(canonical.geometry.origin, geometry.to_lps((2, 0, 4)))


def test_canonical_input_is_left_alone():
    geometry = _geometry((0, 1, 2), (1.0, 1.0, 1.0))
    values = np.zeros(geometry.shape, np.int16)
    canonical = to_canonical(values, geometry)
    assert np.shares_memory(canonical.array, values)
    assert canonical.geometry == geometry


def test_shapes_must_fit():
    geometry = _geometry((0, 1, 2), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="does not fit its geometry"):
        to_canonical(np.zeros((2, 2, 2)), geometry)
    with pytest.raises(ValueError, match="canonical grid"):
        to_canonical(np.zeros(geometry.shape), geometry).undo(np.zeros((2, 2, 2)))
