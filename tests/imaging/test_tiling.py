"""Patches and their average, against counting loops and MONAI's sliding window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcac2.imaging.heart_position import Place, position
from deepcac2.imaging.tiling import (
    PatchAverage,
    around,
    axis_starts,
    corners_touching,
    majority,
    patch_corners,
)


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
    average = PatchAverage(volume, corners, patch, predict)
    average.add(corners, batch_size=5)
    theirs = sliding_window_inference(volume[None, None], patch, 5, predict, overlap=0.5)[0, 0]
    torch.testing.assert_close(average.low(), theirs, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(average.high(), average.low())


def test_a_part_of_the_volume_gives_that_part_of_the_average() -> None:
    torch.manual_seed(1)
    volume, patch = torch.rand(14, 20, 18), (4, 8, 8)
    corners = patch_corners((14, 20, 18), patch, (2, 4, 4))
    wanted = np.zeros(volume.shape, dtype=bool)
    wanted[6:8, 9, 10:14] = True
    run = corners_touching(corners, patch, wanted)
    box = around(run, patch, (14, 20, 18))
    assert [(s.start, s.stop) for s in box] == [(2, 12), (2, 18), (2, 18)]
    whole = PatchAverage(volume, corners, patch, lambda x: x * x)
    part = PatchAverage(volume[box], corners, patch, lambda x: x * x, start=(2, 2, 2))
    for average in (whole, part):
        average.add(run, batch_size=4)
    torch.testing.assert_close(part.low(), whole.low()[box])
    torch.testing.assert_close(part.high(), whole.high()[box])
    torch.testing.assert_close(part.low()[wanted[box]], volume[wanted] ** 2)


def test_channels_of_the_place_stand_beside_the_values() -> None:
    """What is predicted from is what channels laid beside the whole volume would hold."""
    torch.manual_seed(1)
    volume, patch = torch.rand(12, 16, 16), (4, 8, 8)
    depth = np.random.default_rng(1).integers(-100, 101, size=volume.shape).astype(np.int8)
    box = ((6.0, 4.0), (8.0, 5.0), (7.0, 6.0))
    corners = patch_corners((12, 16, 16), patch, (2, 4, 4))
    whole = torch.cat([volume[None], torch.from_numpy(position(depth, box, (0, 0, 0)))])
    seen: list[list[torch.Tensor]] = [[], []]
    for some, array, place in (
        (seen[0], whole, None),
        (seen[1], volume, Place.of(depth, box, (0, 0, 0))),
    ):
        average = PatchAverage(
            array, corners, patch, lambda x, some=some: some.append(x.clone()) or x[:, :1], place=place
        )
        average.add(corners, batch_size=5)
    assert len(seen[0]) == len(seen[1])
    for one, other in zip(*seen, strict=True):
        assert (one == other).all()


def test_what_has_been_run_bounds_the_average() -> None:
    torch.manual_seed(0)
    volume, patch = torch.rand(11, 20, 17), (4, 8, 8)
    corners = patch_corners((11, 20, 17), patch, (2, 4, 4))
    average, complete = (PatchAverage(volume, corners, patch, lambda x: x * x) for _ in range(2))
    complete.add(corners, batch_size=4)
    expected = complete.low()
    torch.testing.assert_close(average.low(), torch.zeros_like(expected))
    torch.testing.assert_close(average.high(), torch.ones_like(expected))
    for some in (corners[::3], corners[1::3], corners[2::3]):
        average.add(some, batch_size=4)
        assert (average.low() <= expected + 1e-6).all()
        assert (average.high() >= expected - 1e-6).all()
    torch.testing.assert_close(average.low(), expected)


@pytest.mark.parametrize("share", [0.001, 0.05, 1.0])
def test_a_majority_is_more_than_half_over_each_wanted_voxel(share: float) -> None:
    shape, patch, step = (58, 128, 128), (16, 64, 64), (8, 32, 32)
    wanted = np.random.default_rng(1).random(shape) < share
    corners = patch_corners(shape, patch, step)
    chosen = majority(corners, patch, wanted)
    assert len(set(chosen)) == len(chosen)
    cover, taken = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for count, some in ((cover, corners), (taken, chosen)):
        for z, y, x in some:
            count[z : z + 16, y : y + 64, x : x + 64] += 1
    assert (2 * taken[wanted] > cover[wanted]).all()
    assert set(chosen) <= set(corners_touching(corners, patch, wanted))


def test_a_majority_of_the_paper_crop_is_little_more_than_half() -> None:
    corners = patch_corners((58, 256, 256), (16, 64, 64), (8, 32, 32))
    inside = np.zeros((58, 256, 256), dtype=bool)
    inside[8:42, 32:224, 32:224] = True
    assert len(majority(corners, (16, 64, 64), inside)) <= 0.65 * len(
        corners_touching(corners, (16, 64, 64), inside)
    )
