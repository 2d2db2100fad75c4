"""Where in the heart a voxel lies, against the geometry of a ball."""

from __future__ import annotations

import numpy as np

from deepcac2.imaging.crop import CROP_SPACING
from deepcac2.imaging.heart_position import DEPTH_MM, heart_box, heart_depth, position

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


def test_no_heart_and_nothing_else() -> None:
    for share, sign in ((np.zeros(SHAPE), -1), (np.ones(SHAPE), 1)):
        assert (heart_depth(share) == sign * 100).all()
        assert np.isfinite(position(heart_depth(share), heart_box(heart_depth(share)))).all()
