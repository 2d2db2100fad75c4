"""Overlapping patches of a volume: which to run, and the average of what is predicted for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .heart_position import CHANNELS, Place
from .masks import bounding_box

Corner = tuple[int, int, int]
Window = tuple[slice, ...]


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
    if not corners:
        return []
    cells, windows = _cells(corners, patch, wanted)
    return [corner for corner, window in zip(corners, windows, strict=True) if cells[window].any()]


def _cells(
    corners: list[Corner], patch: tuple[int, int, int], wanted: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], list[Window]]:
    """Which cells hold a wanted voxel, and of which cells each patch is made.

    Cells are what lies between two edges along each axis, where patches begin or end.
    """
    starts = [sorted(set(c)) for c in zip(*corners, strict=True)]
    edges = [sorted({*s, *(i + p for i in s)}) for s, p in zip(starts, patch, strict=True)]
    cells = wanted[tuple(slice(e[-1]) for e in edges)]
    for axis, edge in enumerate(edges):
        before = (slice(None),) * axis
        parts = (cells[(*before, slice(i, j))] for i, j in pairwise(edge))
        cells = np.stack([part.any(axis=axis) for part in parts], axis=axis)
    number = [{edge: i for i, edge in enumerate(e)} for e in edges]
    windows = [
        tuple(slice(n[i], n[i + p]) for n, i, p in zip(number, corner, patch, strict=True))
        for corner in corners
    ]
    return cells, windows


def around(corners: list[Corner], patch: tuple[int, int, int], shape: tuple[int, int, int]) -> Window:
    """The box of all these patches and two voxels around it, within a volume of `shape`; even starts."""
    low, high = np.min(corners, axis=0), np.max(corners, axis=0) + patch
    return tuple(
        slice(max(int(a) - 2, 0) // 2 * 2, min(int(b) + 2, n))
        for a, b, n in zip(low, high, shape, strict=True)
    )


def majority(
    corners: list[Corner], patch: tuple[int, int, int], wanted: npt.NDArray[np.bool_]
) -> list[Corner]:
    """Few of the corners, so that of the patches over each wanted voxel more than half are among them.

    Patches whose neighbours are left out do not overlap, so they are taken in turns: of the first, third,
    fifth … along each axis, those of one parity after the other, beginning with the smallest group.

    Args:
        corners: All that `patch_corners` gives for a volume of the shape of `wanted`.
        wanted: bool (z, y, x).
    """
    starts = [sorted(set(c)) for c in zip(*corners, strict=True)]
    cells, windows = _cells(corners, patch, wanted)
    groups: dict[Corner, list[tuple[Corner, Window]]] = {}
    cover = np.zeros(cells.shape, dtype=np.int64)
    for corner, window in zip(corners, windows, strict=True):
        cover[window] += 1
        z, y, x = (s.index(i) % 2 for s, i in zip(starts, corner, strict=True))
        groups.setdefault((z, y, x), []).append((corner, window))
    taken = np.zeros_like(cover)
    chosen = []
    for group in sorted(groups.values(), key=len):
        for corner, window in group:
            if (cells[window] & (2 * taken[window] <= cover[window])).any():
                chosen.append(corner)
                taken[window] += 1
    return chosen


class PatchAverage:
    """The average of what is predicted for overlapping patches, as far as they have been run.

    Args:
        volume: float (z, y, x), or (channels, z, y, x): the whole that the corners belong to, or a part.
        corners: All patches of the whole, as `patch_corners` gives them.
        patch: Their shape.
        predict: From (n, 1, *patch) to (n, 1, *patch), values in [0, 1]; where only parts of the patches
            are asked for, it is given these, too, a slice along each axis.
        kinds: Channels of a second answer, at half the patch's voxels along each axis, which `predict` then
            gives beside the first; 0: there is none.
        start: First voxel of the part, (z, y, x), even numbers where there are `kinds`. The average is that
            of the part; corners stay those of the whole.
        place: Further channels that `predict` is given, as channels last; None: there are none.

    Attributes:
        kinds: float32 (kinds, z/2, y/2, x/2): the second answers, summed over patches; None: there is none.
    """

    def __init__(
        self,
        volume: torch.Tensor,
        corners: list[Corner],
        patch: tuple[int, int, int],
        predict: Callable[..., Any],
        kinds: int = 0,
        start: Corner = (0, 0, 0),
        place: Place | None = None,
    ) -> None:
        self._volume, self._patch, self._predict, self._start = volume, patch, predict, start
        self._place = place
        self._total = torch.zeros(volume.shape[-3:], dtype=torch.float32, device=volume.device)
        self._cover = self._covering(corners)
        self._missing = self._cover.clone()
        half = [n // 2 for n in self._total.shape]
        self.kinds = torch.zeros((kinds, *half), dtype=torch.float32, device=volume.device) if kinds else None

    def add(
        self,
        corners: list[Corner],
        *,
        batch_size: int,
        wanted: npt.NDArray[np.bool_] | None = None,
        named: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Run these patches, `batch_size` at a time; none of them twice, all within the volume.

        Args:
            wanted: bool (z, y, x): what the average is asked for; each patch holds some of it. Elsewhere, it
                may go without what these patches say. None: all.
            named: bool (z/2, y/2, x/2): where the second answer is asked for; `predict` is given that of
                each patch. None: everywhere.
        """
        for i in range(0, len(corners), batch_size):
            windows = [self._window(c) for c in corners[i : i + batch_size]]
            patches = self._patches(windows)
            if wanted is None:
                boxes = [tuple(slice(0, n) for n in self._patch)] * len(windows)
                asked = [] if named is None else [np.stack([named[_half(w)] for w in windows])]
                found = self._predict(patches, *asked)
            else:
                boxes = [bounding_box(wanted[w]) for w in windows]
                found = self._predict(patches, boxes)
            if self.kinds is not None:
                found, kinds = found
                for window, answer in zip(windows, kinds, strict=True):
                    z, y, x = _half(window)
                    self.kinds[..., z, y, x] += answer
            for window, box, values in zip(windows, boxes, found[:, 0].float(), strict=True):
                self._total[window][box] += values[box]
                self._missing[window][box] -= 1

    def _patches(self, windows: list[Window]) -> torch.Tensor:
        """What `predict` is given, float (n, channels, *patch)."""
        if self._place is None:
            patches = torch.stack([self._volume[..., z, y, x] for z, y, x in windows])
            return patches[:, None] if self._volume.ndim == 3 else patches
        patches = torch.empty(
            (len(windows), 1 + CHANNELS, *self._patch),
            device=self._volume.device,
            memory_format=torch.channels_last_3d,
        )
        for patch, window in zip(patches, windows, strict=True):
            patch[0] = self._volume[window]
            self._place.fill(patch[1:], window)
        return patches

    def low(self) -> torch.Tensor:
        """The average if all patches still missing were 0: float32 (z, y, x).

        It is the average wherever no patch is missing.
        """
        return self._total / self._cover

    def high(self) -> torch.Tensor:
        """The average if all patches still missing were 1: float32 (z, y, x)."""
        return (self._total + self._missing) / self._cover

    def _covering(self, corners: list[Corner]) -> torch.Tensor:
        """How many patches cover each voxel: the product of that along the axes, as corners are a grid."""
        cover = torch.ones_like(self._total)
        for axis, (size, length) in enumerate(zip(self._total.shape, self._patch, strict=True)):
            along = torch.zeros(size, dtype=torch.float32, device=cover.device)
            for start in {corner[axis] - self._start[axis] for corner in corners}:
                along[max(start, 0) : max(start + length, 0)] += 1
            shape = [1, 1, 1]
            shape[axis] = size
            cover *= along.reshape(shape)
        return cover

    def _window(self, corner: Corner) -> Window:
        first = [i - s for i, s in zip(corner, self._start, strict=True)]
        return tuple(slice(i, i + p) for i, p in zip(first, self._patch, strict=True))


def _half(window: Window) -> Window:
    """A patch's window on the grid of half the voxels."""
    return tuple(slice(s.start // 2, s.stop // 2) for s in window)
