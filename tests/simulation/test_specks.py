"""Footprints of lesions: mass is kept by blur and motion, contrast follows the tube voltage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepcac2.imaging import Geometry
from deepcac2.simulation import Acquisition
from deepcac2.simulation.coronary import Deposit
from deepcac2.simulation.specks import (
    add_specks,
    lesion_specks,
    material_hu,
    motion_path,
    scanner_frame,
    smear,
)

GRID = Geometry(shape=(30, 90, 90), spacing=(1.25, 0.7, 0.7), origin=(-31.0, -31.0, -18.0))
SCAN = Acquisition(
    kernel="B30f", thickness=1.25, increment=1.25, field_of_view=0.7 * 512, centre=(0.0, 0.0), below=50.0,
    above=10.0, noise_sd=20.0, circle=False,
)  # fmt: skip
PLAQUE = Deposit(
    kind="RCA",
    points=np.array([[-2.0, 0.0, 0.0], [2.0, 1.0, 1.0]]),
    radii=np.array([1.2, 1.2]),
    hu=600.0,
)


def drawn(scan: Acquisition, lesion: Deposit = PLAQUE, seed: int = 1) -> np.ndarray:
    hu = np.zeros(GRID.shape, dtype=np.float32)
    add_specks(hu, lesion_specks([lesion], scanner_frame(), GRID, scan, np.random.default_rng(seed)))
    return hu


@pytest.mark.parametrize("kernel", ["B20f", "B30f", "LUNG", "BONE"])
def test_blur_keeps_the_lesions_mass(kernel: str) -> None:
    mass = drawn(replace(SCAN, kernel=kernel)).sum() * GRID.voxel_volume
    assert mass == pytest.approx(PLAQUE.volume() * PLAQUE.hu, rel=0.08)


@pytest.mark.parametrize("seed", range(4))
def test_motion_keeps_the_mass_and_lowers_the_peak(seed: int) -> None:
    still, moved = drawn(SCAN), drawn(replace(SCAN, motion=6.0), seed=seed)
    assert moved.sum() == pytest.approx(still.sum(), rel=0.01)
    assert moved.max() < 0.9 * still.max()
    assert (moved > 50).sum() > (still > 50).sum()


def test_a_far_moving_dot_is_seen_twice() -> None:
    cover = np.zeros((1, 9, 41), dtype=np.float32)
    cover[0, 4, 20] = 1
    steps = np.array([[0, 0, -8]] * 3 + [[0, 0, 0]] + [[0, 0, 8]] * 3)
    seen = smear(cover, steps)[0, 4]
    assert seen.sum() == pytest.approx(1)
    assert seen[12] == seen[28] == pytest.approx(3 / 7)
    assert seen[20] == pytest.approx(1 / 7)


def test_motion_is_as_far_as_asked_and_centred() -> None:
    for seed in range(10):
        path = motion_path(np.random.default_rng(seed), 5.0)
        np.testing.assert_allclose(path.mean(axis=0), 0, atol=1e-9)
        assert np.linalg.norm(path[-1, :2] - path[0, :2]) == pytest.approx(5.0, rel=0.6)
        assert np.linalg.norm(path[-1, :2] - path[0, :2]) <= 5.0 + 1e-9


def test_arteries_move_in_their_known_order_and_other_things_are_still() -> None:
    spread = {}
    for kind in ("RCA", "LCX", "LAD", "lymph node"):
        peaks = [
            drawn(replace(SCAN, motion=6.0), replace(PLAQUE, kind=kind), seed).max() for seed in range(6)
        ]
        spread[kind] = np.mean(peaks)
    assert spread["RCA"] < spread["LCX"] < spread["LAD"] < spread["lymph node"]
    assert spread["lymph node"] == pytest.approx(drawn(SCAN).max())


def test_calcium_is_brighter_at_lower_voltage_and_metal_is_not() -> None:
    """Images at 100 kVp have to be scaled by 0.88 to score as at 120 kVp."""
    contrast = [material_hu(540.0, kvp) - 40 for kvp in (100.0, 120.0, 140.0)]
    assert contrast[1] == pytest.approx(500)
    assert contrast[1] / contrast[0] == pytest.approx(0.88, abs=0.005)
    assert contrast[2] < contrast[1]
    assert material_hu(6000.0, 100.0) == 6000.0
    assert drawn(replace(SCAN, kvp=100.0)).max() > 1.08 * drawn(SCAN).max()


def test_thick_slices_dilute() -> None:
    thick = replace(SCAN, thickness=5.0)
    assert drawn(thick).max() < 0.75 * drawn(SCAN).max()
    assert drawn(thick).sum() == pytest.approx(drawn(SCAN).sum(), rel=0.05)


def test_a_lesion_outside_the_grid_gives_no_speck() -> None:
    far = replace(PLAQUE, points=PLAQUE.points + 500)
    rng = np.random.default_rng(0)
    specks = lesion_specks([far, PLAQUE], scanner_frame(), GRID, SCAN, rng)
    assert [s.lesion for s in specks] == [PLAQUE]


def test_the_grids_orientation_does_not_matter() -> None:
    last = GRID.to_lps([29, 89, 89])
    turned = Geometry(
        shape=GRID.shape,
        spacing=GRID.spacing,
        origin=(float(last[0]), float(last[1]), float(last[2])),
        axes=((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
    )
    scan = replace(SCAN, motion=4.0)
    hu = np.zeros(GRID.shape, dtype=np.float32)
    add_specks(hu, lesion_specks([PLAQUE], scanner_frame(), turned, scan, np.random.default_rng(1)))
    np.testing.assert_allclose(hu[::-1, ::-1, ::-1], drawn(scan), atol=60)
    assert hu.sum() == pytest.approx(drawn(scan).sum(), rel=0.01)
