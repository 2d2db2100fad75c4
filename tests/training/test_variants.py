"""Variants of a labelled scan: the label must move with the picture, and a chest must stay a chest."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from deepcac2.training.variants import TONES_HU, deformation, vary

SPACING = (3.0, 3.0, 3.0)


def ball_in_lung(radius_mm: float = 45.0) -> tuple[np.ndarray, np.ndarray]:
    """A soft ball of 40 HU in lung of -850 HU: where the picture is bright, the label must be."""
    z, y, x = np.meshgrid(*(np.arange(64) * 3.0 - 94.5,) * 3, indexing="ij")
    inside = np.sqrt(z**2 + (y + 6) ** 2 + (x - 9) ** 2) < radius_mm
    return np.where(inside, 40, -850).astype(np.int16), inside.astype(np.uint8)


def test_the_label_moves_with_the_picture():
    image, label = ball_in_lung()
    for seed in range(6):
        hu, heart = vary(image, label, SPACING, np.random.default_rng(seed), noise_hu=0.0)
        bright = scipy.ndimage.binary_opening(hu > -400)
        both = 2 * (bright & (heart > 0)).sum() / (bright.sum() + heart.sum())
        assert both > 0.96, seed
        assert hu.dtype == np.int16
        assert set(np.unique(heart)) == {0, 1}


def test_variants_differ_from_each_other_and_by_seed_only():
    image, label = ball_in_lung()
    first, again, other = (vary(image, label, SPACING, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert (first[1] != other[1]).mean() > 0.005


@pytest.mark.slow
def test_deformations_are_strong_but_fold_nothing():
    _, label = ball_in_lung()
    volumes = []
    for seed in range(8):
        where = deformation(label, SPACING, np.random.default_rng(seed))
        jacobian = np.stack([np.stack(np.gradient(where[i]), 0) for i in range(3)], 0)
        determinant = np.linalg.det(jacobian.transpose(2, 3, 4, 0, 1))
        assert (determinant > 0).mean() > 0.999
        moved = scipy.ndimage.map_coordinates(label.astype(np.float32), where, order=1) >= 0.5
        volumes.append(moved.sum() / label.sum())
    assert min(volumes) < 0.8
    assert max(volumes) > 1.2


def test_tissues_keep_their_order():
    image = np.tile(
        np.sort(np.repeat(TONES_HU[1:-1], 64 * 64 // 7 + 1))[: 64 * 64].reshape(64, 64), (64, 1, 1)
    )
    rng = np.random.default_rng(3)
    hu, _ = vary(image.astype(np.int16), np.zeros_like(image, dtype=np.uint8), SPACING, rng, noise_hu=0.0)
    assert np.median(hu[image == -900]) < np.median(hu[image == -110]) < np.median(hu[image == 600])
