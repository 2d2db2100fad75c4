"""A CT and its heart on the network's grid, and what was found back on the CT's, as TorchIO 0.19 does it.

Where a voxel is taken from hangs on arithmetic, see `grids`. Where the scan's axes run along the patient's,
each is computed by itself; in oblique and coronal scans they mix in every sum, and SimpleITK does it, as it
does for TorchIO. Arrays run along (x, y, z).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...imaging import itk
from ...imaging.masks import bounding_box
from .grids import Floats, Grid, Triple, is_inside, linear, nearest, positions

Bools = npt.NDArray[np.bool_]
Labels = Literal["nearest", "linear"]
Box = tuple[slice, ...]
At = tuple[Floats, Floats, Floats]
Floats32 = npt.NDArray[np.float32]


class Sampler(Protocol):
    """Between a CT's grid and the network's, `Aligned` or `Oblique`.

    The network's grid is the resampled CT's. A crop begins at a voxel of it, or between two, and may reach
    beyond it.
    """

    def heart_box(self, heart: Bools) -> Box | None:
        """The box of a heart, bool (x, y, z) on the CT's grid, on the network's; None: no voxel there."""

    def hu(self, hu: npt.NDArray[np.int16], begin: Floats, *, outside: float, whole: bool) -> Floats32:
        """HU of the crop, linear between voxels: float32 (x, y, z).

        Args:
            hu: The CT.
            begin: The crop's first voxel.
            outside: HU outside of the CT.
            whole: HU lose their fraction, towards 0.
        """

    def heart(self, heart: Bools, begin: Floats) -> Bools:
        """The heart in the crop: bool (x, y, z)."""

    def back(self, mean: Floats, begin: Floats, threshold: float, *, at_threshold: bool) -> Bools:
        """Where a crop's values are above a threshold (or at it): bool (x, y, z) on the CT's grid."""


def sampler(ct: Grid, spacing: tuple[float, float, float], crop: Triple, labels: Labels) -> Sampler:
    """The way between a CT and the network.

    Args:
        ct: The CT's grid.
        spacing: Of the network's grid, mm (x, y, z).
        crop: The crop's shape.
        labels: Hearts and masks by ``"nearest"`` neighbour, or ``"linear"`` and halved.
    """
    kind = Aligned if ct.is_aligned else Oblique
    return kind(ct=ct, spacing=spacing, crop=crop, labels=labels)


@dataclass(kw_only=True)
class _Between:
    """See `sampler`."""

    ct: Grid
    spacing: tuple[float, float, float]
    crop: Triple
    labels: Labels

    def __post_init__(self) -> None:
        self.ct = self.ct.kept()
        self.full = self.ct.resampled(self.spacing)

    def _there_and_back(self, begin: Floats) -> Grid:
        """The network's grid after crop and inverse: they move the origin there and back, which may cost it
        its last digit."""
        whole = _ints(np.floor(begin))
        return self.full.kept().shifted(whole).shifted((-whole[0], -whole[1], -whole[2])).kept()

    def _from(self, begin: Floats) -> Grid:
        """The crop's grid."""
        there = self.full.origin + self.full.to_lps @ begin
        return Grid(shape=self.crop, spacing=self.full.spacing, origin=there, direction=self.full.direction)


class Aligned(_Between):
    """For scans whose axes run along the patient's, axis by axis."""

    def heart_box(self, heart: Bools) -> Box | None:
        if not heart.any():
            return None
        boxes = zip(self._every, bounding_box(heart), strict=True)
        at, near = [], []
        for p, b in boxes:
            near.append(np.flatnonzero((p > b.start - 1) & (p < b.stop)))
            at.append(p[near[-1]])
        there = self._label(heart, _triple(at))
        if not there.any():
            return None
        found = bounding_box(there)
        return tuple(slice(int(n[0]) + b.start, int(n[0]) + b.stop) for n, b in zip(near, found, strict=True))

    def hu(self, hu: npt.NDArray[np.int16], begin: Floats, *, outside: float, whole: bool) -> Floats32:
        at = self._positions(begin)
        inside = [is_inside(p, n) for p, n in zip(at, hu.shape, strict=True)]
        part, local = _part(hu, _triple([p[i] for p, i in zip(at, inside, strict=True)]))
        values = linear(part, local)
        result = np.full(self.crop, outside, dtype=np.float32)
        result[np.ix_(*inside)] = np.trunc(values) if whole else values
        return result

    def heart(self, heart: Bools, begin: Floats) -> Bools:
        return self._label(heart, self._positions(begin))

    def back(self, mean: Floats, begin: Floats, threshold: float, *, at_threshold: bool) -> Bools:
        at = positions(self._there_and_back(begin), self.ct)
        inside = [is_inside(p, n) for p, n in zip(at, self.full.shape, strict=True)]
        shifts = zip(at, begin, np.floor(begin), inside, mean.shape, strict=True)
        if self.labels == "nearest":
            # of a voxel between two, the part of a voxel is taken off first
            index = [nearest(p - (b - w)) - int(w) for p, b, w, _, _ in shifts]
            known = [i & (k >= 0) & (k < n) for i, k, n in zip(inside, index, mean.shape, strict=True)]
            near = (index[0][known[0]], index[1][known[1]], index[2][known[2]])
            values = mean[np.ix_(*near)]
        else:
            local = [(p - b, i & is_inside(p - b, n)) for p, b, _, i, n in shifts]
            known = [inside for _, inside in local]
            values = linear(mean, _triple([p[inside] for p, inside in local]))
        mask = np.zeros(self.ct.shape, dtype=bool)
        mask[np.ix_(*known)] = values >= threshold if at_threshold else values > threshold
        return mask

    @cached_property
    def _every(self) -> At:
        """Where the voxels of the whole grid lie in the CT."""
        return positions(self.ct, self.full)

    def _positions(self, begin: Floats) -> At:
        """Where the voxels of the crop lie in the CT; NaN outside of the resampled CT."""
        if np.any(begin % 1):
            return positions(self.ct, self._from(begin))
        result = []
        for all_of_them, first, size in zip(self._every, _ints(begin), self.crop, strict=True):
            at = np.full(size, np.nan)
            low, high = max(first, 0), min(first + size, len(all_of_them))
            at[low - first : max(high, low) - first] = all_of_them[low:high]
            result.append(at)
        return _triple(result)

    def _label(self, mask: Bools, at: At) -> Bools:
        """A mask read at positions; nothing outside of it."""
        inside = [is_inside(p, n) for p, n in zip(at, mask.shape, strict=True)]
        within = _triple([p[i] for p, i in zip(at, inside, strict=True)])
        result = np.zeros(tuple(map(len, at)), dtype=bool)
        if not all(map(len, within)):
            return result
        if self.labels == "nearest":
            result[np.ix_(*inside)] = mask[np.ix_(*map(nearest, within))]
        else:
            part, local = _part(mask, within)
            result[np.ix_(*inside)] = linear(part, local) >= 0.5
        return result


class Oblique(_Between):
    """For all scans, by SimpleITK; the whole CT is resampled."""

    def heart_box(self, heart: Bools) -> Box | None:
        there = self._label(heart, self.full)
        return bounding_box(there) if there.any() else None

    def hu(self, hu: npt.NDArray[np.int16], begin: Floats, *, outside: float, whole: bool) -> Floats32:
        values: npt.NDArray[Any] = hu if whole else hu.astype(np.float32)
        return self._crop(
            lambda grid: itk.resampled(values, self.ct, grid, linear=True, outside=outside), begin, outside
        )

    def heart(self, heart: Bools, begin: Floats) -> Bools:
        return self._crop(lambda grid: self._label(heart, grid), begin, 0) > 0

    def back(self, mean: Floats, begin: Floats, threshold: float, *, at_threshold: bool) -> Bools:
        if self.labels == "nearest":
            mean = (mean >= threshold if at_threshold else mean > threshold).astype(np.uint8)
            threshold, at_threshold = 0.5, False
        if self.labels == "linear" or np.any(begin % 1):
            grid, values = self._from(begin), mean
        else:
            grid, values = self._there_and_back(begin), np.zeros(self.full.shape, dtype=mean.dtype)
            there, here = _overlap(begin, self.full.shape, self.crop)
            values[there] = mean[here]
        found = itk.resampled(values, grid, self.ct, linear=self.labels == "linear", outside=0)
        return np.asarray(found >= threshold if at_threshold else found > threshold)

    def _crop(self, onto: Callable[[Grid], npt.NDArray[Any]], begin: Floats, outside: float) -> Floats32:
        """The crop of what `onto` brings onto a grid."""
        if np.any(begin % 1):
            return np.asarray(onto(self._from(begin)), dtype=np.float32)
        result = np.full(self.crop, outside, dtype=np.float32)
        there, here = _overlap(begin, self.full.shape, self.crop)
        result[here] = onto(self.full)[there]
        return result

    def _label(self, mask: Bools, grid: Grid) -> Bools:
        values = mask.astype(np.uint8 if self.labels == "nearest" else np.float64)
        return np.asarray(
            itk.resampled(values, self.ct, grid, linear=self.labels == "linear", outside=0) >= 0.5
        )


def _overlap(begin: Floats, full: Triple, crop: Triple) -> tuple[Box, Box]:
    """What a crop and the whole have in common: the part of the whole, and the part of the crop."""
    there, here = [], []
    for first, size, n in zip(_ints(begin), full, crop, strict=True):
        low, high = min(max(first, 0), size), max(min(first + n, size), 0)
        there.append(slice(low, max(high, low)))
        here.append(slice(low - first, max(high, low) - first))
    return tuple(there), tuple(here)


def _part(values: npt.NDArray[Any], at: At) -> tuple[npt.NDArray[Any], At]:
    """What of an array is looked at, and the positions within that."""
    box, local = [], []
    for position, size in zip(at, values.shape, strict=True):
        low = max(int(np.floor(position.min())), 0)
        box.append(slice(low, min(int(np.floor(position.max())) + 2, size)))
        local.append(position - low)
    return values[tuple(box)], _triple(local)


def _ints(values: Floats) -> Triple:
    return int(values[0]), int(values[1]), int(values[2])


def _triple(values: list[Floats]) -> At:
    return values[0], values[1], values[2]
