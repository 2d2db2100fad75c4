"""Where in the heart a voxel lies, against the geometry of a ball."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from deepcac2.imaging.crop import CROP_SPACING
from deepcac2.imaging.heart_position import COARSE, DEPTH_MM, Place, heart_box, heart_depth, position

SHAPE = (40, 128, 128)
CENTRE, RADIUS = (18.0, 60.0, 70.0), 35.0


def _ball() -> tuple[np.ndarray, np.ndarray]:
    """Share of heart, and depth below the surface in mm."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    distance = np.linalg.norm((index - CENTRE) * np.array(CROP_SPACING), axis=-1)
    return (distance < RADIUS).astype(np.float32), RADIUS - distance


def test_depth_is_that_of_the_ball() -> None:
    share, true = _ball()
    depth = heart_depth(share) * (DEPTH_MM / 100)
    error = depth - true.clip(-DEPTH_MM, DEPTH_MM)
    assert np.abs(error).max() < 3.5  # blocks of 2.8 mm
    assert abs(float(error.mean())) < 0.5


def test_places_go_from_end_to_end() -> None:
    share, _ = _ball()
    depth = heart_depth(share)
    box = heart_box(depth)
    where = position(depth, box)
    for axis, (middle, half) in enumerate(box):
        assert abs(middle - CENTRE[axis]) <= 2
        assert abs(half * CROP_SPACING[axis] - RADIUS) < 3.5
        line = np.moveaxis(where[1 + axis], axis, 0)[:, 0, 0]
        assert np.all(np.diff(line) >= 0)
        np.testing.assert_allclose(line[round(middle - half)], -1, atol=0.05)
        np.testing.assert_allclose(line[round(middle + half)], 1, atol=0.05)


def test_a_patch_is_a_part_of_the_crop() -> None:
    share, _ = _ball()
    depth = heart_depth(share)
    box, corner = heart_box(depth), (8, 32, 64)
    part = tuple(slice(c, c + n) for c, n in zip(corner, (16, 64, 64), strict=True))
    np.testing.assert_allclose(
        position(depth[part], box, corner), position(depth, box)[(slice(None), *part)], atol=1e-5
    )


def _plain_depth(share: np.ndarray) -> np.ndarray:
    """The depth with distances taken over the whole crop."""
    z, y, x = share.shape
    inside = share.reshape(z, y // COARSE, COARSE, x // COARSE, COARSE).mean(axis=(2, 4)) >= 0.5
    sampling = np.multiply(CROP_SPACING, (1, COARSE, COARSE))
    depth = scipy.ndimage.distance_transform_edt(inside, sampling=sampling)
    depth = depth - scipy.ndimage.distance_transform_edt(~inside, sampling=sampling)
    coarse = torch.from_numpy((depth * (100 / DEPTH_MM)).clip(-100, 100).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse[:, None], size=(y, x), mode="bilinear")[:, 0]
    return fine.round().to(torch.int8).numpy()


@pytest.mark.parametrize("seed", range(8))
def test_distances_are_taken_around_the_heart_alone(seed: int) -> None:
    """Wherever it lies, also cut by the crop's border or in two parts: as over the whole crop."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    share = np.zeros(SHAPE, dtype=np.float32)
    for _ in range(1 + seed % 2):
        centre, radius = rng.uniform((-5, -20, -20), np.add(SHAPE, (5, 20, 20))), rng.uniform(15, 60)
        distance = np.linalg.norm((index - centre) * np.array(CROP_SPACING), axis=-1)
        share = np.maximum(share, (radius - distance).clip(0, 1).astype(np.float32))
    if share.max() < 0.5:
        share[20, 60:68, 60:68] = 1
    assert (heart_depth(share) == _plain_depth(share)).all()


def test_a_window_is_filled_with_that_part_of_the_whole() -> None:
    """Bit for bit, in any layout."""
    depth = heart_depth(_ball()[0])
    box, corner = heart_box(depth), (2, 4, 6)
    whole, window = position(depth, box, corner), (slice(3, 19), slice(30, 94), slice(64, 128))
    out = torch.empty((1, 5, 16, 64, 64), memory_format=torch.channels_last_3d)
    Place.of(depth, box, corner).fill(out[0, 1:], window)
    assert (out[0, 1:].numpy() == whole[(slice(None), *window)]).all()
    assert (whole[0] == depth * np.float32(1 / 100)).all()


def test_no_heart_and_nothing_else() -> None:
    for share, sign in ((np.zeros(SHAPE), -1), (np.ones(SHAPE), 1)):
        assert (heart_depth(share) == sign * 100).all()
        assert np.isfinite(position(heart_depth(share), heart_box(heart_depth(share)))).all()
