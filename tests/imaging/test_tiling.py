"""Patches and their average, against counting loops and MONAI's sliding window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcac2.imaging.tiling import average_patches, axis_starts, corners_touching, patch_corners


def test_patches_cover_the_paper_crop() -> None:
    corners = patch_corners((58, 256, 256), (16, 64, 64), (8, 32, 32))
    assert len(corners) == 7 * 7 * 7
    covered = np.zeros((58, 256, 256), dtype=int)
    for z, y, x in corners:
        covered[z : z + 16, y : y + 64, x : x + 64] += 1
    assert covered.min() == 1


def test_an_axis_shorter_than_a_patch_is_an_error() -> None:
    with pytest.raises(ValueError, match="holds no patch"):
        axis_starts(15, 16, 8)


def test_corners_touching_equals_a_loop() -> None:
    shape, patch, step = (11, 20, 17), (4, 8, 8), (2, 4, 4)
    wanted = np.random.default_rng(0).random(shape) < 0.004
    corners = patch_corners(shape, patch, step)
    loop = [
        (z, y, x) for z, y, x in corners if wanted[z : z + patch[0], y : y + patch[1], x : x + patch[2]].any()
    ]
    assert 0 < len(loop) < len(corners)
    assert corners_touching(corners, patch, wanted) == loop


def test_average_equals_monai_sliding_window() -> None:
    from monai.inferers import sliding_window_inference

    torch.manual_seed(0)
    volume = torch.rand(22, 40, 36)
    weight = torch.rand(1, 1, 3, 3, 3)

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.nn.functional.conv3d(x, weight, padding=1) - 4)

    patch = (8, 16, 16)
    corners = patch_corners((22, 40, 36), patch, (4, 8, 8))
    ours = average_patches(volume, corners, patch, predict, batch_size=5)
    theirs = sliding_window_inference(volume[None, None], patch, 5, predict, overlap=0.5)[0, 0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_where_no_patch_lies_the_result_is_zero() -> None:
    ours = average_patches(torch.ones(4, 4, 4), [(0, 0, 0)], (2, 2, 2), lambda x: x, batch_size=1)
    assert ours.sum() == 8
    assert (ours[2:] == 0).all()
