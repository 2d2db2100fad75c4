"""Streaks between dense objects and around metal, and steps by breathing."""

from __future__ import annotations

import numpy as np

from deepcac2.imaging import Geometry
from deepcac2.simulation.artefacts import (
    add_bone_streaks,
    add_metal_streaks,
    breathing_step,
    displaced,
)
from deepcac2.simulation.coronary import Deposit
from deepcac2.simulation.specks import Speck

GRID = Geometry(shape=(12, 256, 256), spacing=(3.0, 1.4, 1.4), origin=(-180.0, -180.0, 0.0))


def two_rods() -> np.ndarray:
    hu = np.full(GRID.shape, 40.0, dtype=np.float32)
    hu[:, 120:136, 60:76] = hu[:, 120:136, 180:196] = 1000.0
    return hu


def test_a_dark_band_joins_two_dense_objects() -> None:
    hu = two_rods()
    before = hu.copy()
    add_bone_streaks(hu, GRID, 3.0)
    change = hu - before
    between, beside = change[6, 124:132, 110:146].mean(), change[6, 40:70, 110:146].mean()
    assert between < beside - 10
    assert -120 < between < 0


def test_one_object_alone_and_soft_tissue_give_no_band() -> None:
    soft = np.full(GRID.shape, 60.0, dtype=np.float32)
    before = soft.copy()
    add_bone_streaks(soft, GRID, 3.0)
    np.testing.assert_array_equal(soft, before)
    hu = two_rods()
    hu[:, :, 170:] = 40.0
    alone = hu.copy()
    add_bone_streaks(hu, GRID, 3.0)
    both = two_rods()
    add_bone_streaks(both, GRID, 3.0)
    band = np.s_[6, 124:132, 110:146]
    assert (hu - alone)[band].mean() > (both - two_rods())[band].mean() + 10


def test_a_slice_alone_among_others_gets_its_own_streaks() -> None:
    hu = two_rods()
    hu[6:] = 40.0
    before = hu.copy()
    add_bone_streaks(hu, GRID, 3.0)
    assert np.abs(hu - before)[0].max() > 5
    assert np.abs(hu - before)[-1].max() == 0


def star(hu_of_material: float) -> np.ndarray:
    cover = np.zeros((2, 5, 5), dtype=np.float32)
    cover[:, 1:4, 1:4] = 0.5
    lesion = Deposit(kind="x", points=np.zeros((2, 3)), radii=np.ones(2), hu=hu_of_material)
    box = (slice(4, 6), slice(100, 105), slice(100, 105))
    hu = np.zeros(GRID.shape, dtype=np.float32)
    speck = Speck(lesion=lesion, hu=hu_of_material, box=box, cover=cover)
    add_metal_streaks(hu, GRID, [speck], np.random.default_rng(0), 150.0)
    return hu


def test_metal_gives_a_star_that_fades_and_calcium_none() -> None:
    hu = star(5000.0)
    assert not hu[:4].any()
    assert not hu[6:].any()
    near, far = hu[4, 92:112, 92:112], hu[4, 142:162, 92:112]
    assert near.max() > 30
    assert near.min() < -30
    assert np.abs(far).max() < 0.4 * np.abs(near).max()
    assert not star(1000.0).any()


def test_a_breath_moves_some_slices_around_the_heart_and_leaves_the_rest() -> None:
    centre = np.array([0.0, 0.0, 17.0])
    moves = [breathing_step(GRID, centre, 4.0, np.random.default_rng(s)) for s in range(20)]
    moved = [m for m in moves if m is not None]
    assert len(moved) > 8
    for slices, offset in moved:
        assert 0 <= slices.start < slices.stop <= GRID.shape[0]
        _, row, column = GRID.to_index(centre).round().astype(int)
        np.testing.assert_allclose(np.hypot(*offset[:, row, column]) * 1.4, 4.0, rtol=0.01)
        assert np.abs(offset[:, 0, 0]).max() < 0.05
    assert breathing_step(GRID, centre, 0.0, np.random.default_rng(0)) is None


def test_displaced_reads_at_the_offset() -> None:
    field = np.zeros((2, 20, 20), dtype=bool)
    field[:, 8:12, 8:12] = True
    offset = np.zeros((2, 20, 20), dtype=np.float32)
    offset[0] = 3
    np.testing.assert_array_equal(displaced(field, offset, order=0), np.roll(field, -3, axis=1))
    half = np.full_like(offset, 0.5)
    half[1] = 0
    ramp = np.tile(np.arange(20, dtype=np.float32)[:, None], (1, 1, 20))
    np.testing.assert_allclose(displaced(ramp, half, order=1)[0, :19], ramp[0, :19] + 0.5)
