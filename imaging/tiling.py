"""Overlapping patches of a volume, and the average of what is predicted for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

Corner = tuple[int, int, int]


def axis_starts(size: int, patch: int, step: int) -> list[int]:
    """First indices of patches along an axis; the last one is moved back to end at the border.

    >>> axis_starts(58, 16, 8)
    [0, 8, 16, 24, 32, 40, 42]

    Raises:
        ValueError: The axis is shorter than a patch.
    """
    if size < patch:
        raise ValueError(f"an axis of {size} voxels holds no patch of {patch}")
    starts = list(range(0, size - patch + 1, step))
    if starts[-1] != size - patch:
        starts.append(size - patch)
    return starts


def patch_corners(
    shape: tuple[int, int, int], patch: tuple[int, int, int], step: tuple[int, int, int]
) -> list[Corner]:
    """Corners (z, y, x) of all patches that cover a volume of `shape`, in C order."""
    z, y, x = (axis_starts(n, p, s) for n, p, s in zip(shape, patch, step, strict=True))
    return [(i, j, k) for i in z for j in y for k in x]


def corners_touching(
    corners: list[Corner], patch: tuple[int, int, int], wanted: npt.NDArray[np.bool_]
) -> list[Corner]:
    """The corners whose patch holds at least one true voxel of `wanted` (bool (z, y, x))."""
    table = np.zeros(tuple(n + 1 for n in wanted.shape), dtype=np.int64)
    table[1:, 1:, 1:] = wanted.cumsum(0, dtype=np.int64).cumsum(1).cumsum(2)
    pz, py, px = patch

    def count(z: int, y: int, x: int) -> int:
        a, b, c = z + pz, y + py, x + px
        return int(
            table[a, b, c] - table[z, b, c] - table[a, y, c] - table[a, b, x]
            + table[z, y, c] + table[z, b, x] + table[a, y, x] - table[z, y, x]
        )  # fmt: skip

    return [corner for corner in corners if count(*corner) > 0]


def _batches(corners: list[Corner], size: int) -> Iterator[list[Corner]]:
    for i in range(0, len(corners), size):
        yield corners[i : i + size]


def average_patches(
    volume: torch.Tensor,
    corners: list[Corner],
    patch: tuple[int, int, int],
    predict: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int,
) -> torch.Tensor:
    """Predict the patches at `corners` and average where they overlap.

    Args:
        volume: float (z, y, x).
        predict: From (n, 1, *patch) to (n, 1, *patch), e.g. probabilities.
        batch_size: Patches per call of `predict`.

    Returns:
        float32 (z, y, x) on the volume's device; 0 where no patch lies.
    """
    total = torch.zeros(volume.shape, dtype=torch.float32, device=volume.device)
    count = torch.zeros_like(total)
    pz, py, px = patch
    for chunk in _batches(corners, batch_size):
        windows = [(slice(z, z + pz), slice(y, y + py), slice(x, x + px)) for z, y, x in chunk]
        result = predict(torch.stack([volume[w] for w in windows])[:, None])[:, 0].float()
        for window, values in zip(windows, result, strict=True):
            total[window] += values
            count[window] += 1
    return total.div_(count.clamp_(min=1))
