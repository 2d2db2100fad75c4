"""Distances of masks against slow, obvious implementations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from deepcac2.evaluation.metrics import centre_distance, dice, hausdorff_95
from deepcac2.imaging import Geometry

GEOMETRY = Geometry(
    shape=(10, 24, 26),
    spacing=(3.0, 0.8, 0.7),
    origin=(5.0, -3.0, 40.0),
    axes=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
)
BoolArray = np.ndarray


def blob(seed: int) -> BoolArray:
    """A smooth random shape, now and then of several pieces, at times at the array's border."""
    noise = scipy.ndimage.gaussian_filter(
        np.random.default_rng(seed).normal(size=GEOMETRY.shape), (1, 3, 3), mode="nearest"
    )
    return noise > np.quantile(noise, 0.8)


def slow_hausdorff_95(a: BoolArray, b: BoolArray) -> float:
    """Every surface voxel of one to every one of the other, in the patient's coordinates."""

    def surface(mask: BoolArray) -> np.ndarray:
        cross = scipy.ndimage.generate_binary_structure(3, 1)
        inner = scipy.ndimage.binary_erosion(mask, cross, border_value=0)
        return GEOMETRY.to_lps(np.argwhere(mask & ~inner).astype(float))

    pa, pb = surface(a), surface(b)
    distances = np.linalg.norm(pa[:, None] - pb[None], axis=-1)
    return max(np.percentile(distances.min(axis=1), 95), np.percentile(distances.min(axis=0), 95))


@pytest.mark.parametrize("seed", range(6))
def test_hausdorff_as_the_slow_one(seed: int) -> None:
    a, b = blob(seed), blob(100 + seed)
    assert hausdorff_95(a, b, GEOMETRY) == pytest.approx(slow_hausdorff_95(a, b))


def test_hausdorff_of_a_shifted_box() -> None:
    a = np.zeros(GEOMETRY.shape, bool)
    a[2:8, 4:20, 4:16] = True
    assert hausdorff_95(a, a, GEOMETRY) == 0
    moved = np.roll(a, 5, axis=2)
    assert hausdorff_95(a, moved, GEOMETRY) == pytest.approx(5 * 0.7)
    assert centre_distance(a, moved, GEOMETRY) == pytest.approx(5 * 0.7)


def test_centres_are_centres_of_gravity() -> None:
    a, b = blob(1), blob(2)
    centres = [GEOMETRY.to_lps(scipy.ndimage.center_of_mass(m)) for m in (a, b)]
    assert centre_distance(a, b, GEOMETRY) == pytest.approx(np.linalg.norm(centres[0] - centres[1]))


def test_an_empty_mask_has_no_distance() -> None:
    a, empty = blob(1), np.zeros(GEOMETRY.shape, bool)
    assert hausdorff_95(a, empty, GEOMETRY) is None
    assert centre_distance(empty, a, GEOMETRY) is None


def test_dice_by_hand() -> None:
    a, b = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1.0
    assert dice(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)) == 1.0
