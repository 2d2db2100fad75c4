"""Trilinear resampling between grids whose axes are parallel, one axis after the other.

CT and model grids share their axes (the model grid is laid along the CT's own rows, columns and
slices), so trilinear interpolation separates into three one-dimensional ones. That is exact, and many
times faster than a general resampler on a whole CT.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .volume import Geometry

Box = tuple[slice, ...]
"""A part of a grid, a slice with start and stop along each axis."""

SLAB = 16
"""Slices converted to float at a time: 16 × 512 × 512 float32 are 17 MB."""


@dataclass(frozen=True, kw_only=True)
class AxisWeights:
    """Linear interpolation along one axis: ``out[i] = (1 - w[i]) * in[low[i]] + w[i] * in[low[i] + 1]``.

    Attributes:
        low: int64 (n,), lower source index, within [0, max(size - 2, 0)].
        weight: float32 (n,), weight of the upper neighbour in [0, 1].
        inside: bool (n,), whether the sample lies within the source: at most half a voxel beyond the
            outermost centres. A voxel has an extent; within it its own value holds.
    """

    low: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    inside: npt.NDArray[np.bool_]


def axis_weights(start: float, step: float, count: int, size: int) -> AxisWeights:
    """Interpolation weights for samples at ``start + i * step`` (source index units), i < `count`.

    Args:
        start, step: Fractional source index of the first sample and the distance of neighbours.
        count: Number of samples.
        size: Number of source voxels along the axis, at least 1.
    """
    position = start + step * np.arange(count, dtype=np.float64)
    inside = (position >= -0.5) & (position <= size - 0.5)
    clamped = np.clip(position, 0, size - 1)
    low = np.minimum(np.floor(clamped).astype(np.int64), max(size - 2, 0))
    weight = (clamped - low).astype(np.float32)
    return AxisWeights(low=low, weight=weight, inside=inside)


def grid_weights(source: Geometry, target: Geometry) -> tuple[AxisWeights, AxisWeights, AxisWeights]:
    """Weights along (z, y, x) to sample an array on `source` at the voxel centres of `target`.

    Raises:
        ValueError: The axes of the grids are not parallel (each target axis along the same source axis).
    """
    if not np.allclose(np.asarray(source.axes), np.asarray(target.axes), atol=1e-4):
        raise ValueError("separable resampling needs grids with the same axes")
    start = source.to_index(target.origin)
    z, y, x = (
        axis_weights(float(start[a]), target.spacing[a] / source.spacing[a], target.shape[a], source.shape[a])
        for a in range(3)
    )
    return z, y, x


def _interpolate_axis(array: torch.Tensor, axis: int, weights: AxisWeights) -> torch.Tensor:
    low = torch.from_numpy(weights.low).to(array.device)
    lower = array.index_select(axis, low)
    if array.shape[axis] == 1:
        return lower
    upper = array.index_select(axis, low + 1)
    shape = [1] * array.ndim
    shape[axis] = -1
    weight = torch.from_numpy(weights.weight).to(array.device).view(shape)
    return torch.lerp(lower, upper, weight)


def resample(
    array: npt.NDArray[np.generic] | torch.Tensor,
    source: Geometry,
    target: Geometry,
    *,
    outside: float,
    device: torch.device | None = None,
    box: Box | None = None,
) -> torch.Tensor:
    """Trilinear resampling of `array` from grid `source` onto the parallel grid `target`.

    Args:
        array: (z, y, x) on `source`, any real dtype.
        outside: Value of target voxels whose centre lies outside the source.
        device: Where to compute; default the tensor's own device, or the CPU for a numpy array.
        box: The part of the target that is wanted, slices with start and stop; None: all of it. What comes is
            that part of the whole, bit for bit.

    Returns:
        float32 tensor (z, y, x) of shape ``target.shape``, or of the box's.

    Raises:
        ValueError: The grids' axes are not parallel.
    """
    weights = grid_weights(source, target)
    box = tuple(slice(0, n) for n in target.shape) if box is None else box
    shape = tuple(b.stop - b.start for b in box)
    if device is None:
        device = array.device if isinstance(array, torch.Tensor) else torch.device("cpu")
    # Only the part that is looked at is converted and moved, and only what lies inside is computed: a crop
    # costs what the crop costs, there and back.
    looked_at, within, local = [], [], []
    for w, size, chosen in zip(weights, source.shape, box, strict=True):
        inside = np.flatnonzero(w.inside)
        start, stop = chosen.start, chosen.stop
        if len(inside):
            start, stop = max(int(inside[0]), start), min(int(inside[-1]) + 1, stop)
        if not len(inside) or start >= stop:
            return torch.full(shape, outside, dtype=torch.float32, device=device)
        low, own = w.low[start:stop], slice(start, stop)
        first, last = int(low.min()), min(int(low.max()) + 2, size)
        looked_at.append(slice(first, last))
        within.append(slice(start - chosen.start, stop - chosen.start))
        local.append(AxisWeights(low=low - first, weight=w.weight[own], inside=w.inside[own]))
    seen = array[tuple(looked_at)]
    if not isinstance(seen, torch.Tensor):  # torch knows no arrays that run backwards
        seen = torch.from_numpy(np.ascontiguousarray(seen) if min(seen.strides) < 0 else seen)
    part = seen.to(device, torch.float32)
    for axis in _axes_in_order(weights, source.shape):
        part = _interpolate_axis(part, axis, local[axis])
    if part.shape == shape:
        return part
    out = torch.full(shape, outside, dtype=torch.float32, device=part.device)
    out[tuple(within)] = part
    return out


def _axes_in_order(weights: tuple[AxisWeights, ...], size: tuple[int, ...]) -> list[int]:
    """The axes as they are interpolated: those that shrink most come first, fewer values for the later ones.

    The last bits of a result hang on it, so parts of a target are computed in the order of the whole.
    """

    def shrinks(axis: int) -> float:
        low = weights[axis].low[weights[axis].inside]
        return float(len(low) / max(min(int(low.max()) + 2, size[axis]) - int(low.min()), 1))

    return sorted(range(len(size)), key=shrinks)


def sample(
    array: torch.Tensor,
    source: Geometry,
    target: Geometry,
    index: tuple[npt.NDArray[np.intp], ...],
    *,
    outside: float,
) -> torch.Tensor:
    """What `resample` gives for single voxels of the target, bit for bit.

    Args:
        array: float32 (z, y, x) on `source`.
        index: Of the voxels, as `numpy.nonzero` gives it: three arrays (n,).
        outside: Value of those whose centre lies outside the source.

    Returns:
        float32 (n,) on the array's device.

    Raises:
        ValueError: The grids' axes are not parallel.
    """
    weights = grid_weights(source, target)
    inside = np.logical_and.reduce([w.inside[i] for w, i in zip(weights, index, strict=True)])
    out = torch.full((len(inside),), outside, dtype=torch.float32, device=array.device)
    if not inside.any():
        return out
    order = _axes_in_order(weights, source.shape)
    low = [torch.from_numpy(w.low[i[inside]]).to(array.device) for w, i in zip(weights, index, strict=True)]
    share = [
        torch.from_numpy(w.weight[i[inside]]).to(array.device) for w, i in zip(weights, index, strict=True)
    ]
    # The corners of each voxel's cell, by their place along the axes in order; one axis after the other goes.
    corners = {
        at: array[tuple(low[axis] + at[order.index(axis)] for axis in range(3))]
        for at in itertools.product(*([0, 1] if array.shape[axis] > 1 else [0] for axis in order))
    }
    for axis in order:
        lower = {at[1:]: value for at, value in corners.items() if at[0] == 0}
        upper = {at[1:]: value for at, value in corners.items() if at[0] == 1}
        corners = {
            at: torch.lerp(value, upper[at], share[axis]) if upper else value for at, value in lower.items()
        }
    out[torch.from_numpy(inside).to(array.device)] = corners[()]
    return out


def reached(box: Box, source: Geometry, target: Geometry) -> Box | None:
    """The box of the target voxels that read some of a box of the source when it is `resample`d.

    Args:
        box: Of the source, slices with start and stop.

    Returns:
        None: there are none.

    Raises:
        ValueError: The grids' axes are not parallel.
    """
    out = []
    for w, part in zip(grid_weights(source, target), box, strict=True):
        hit = np.flatnonzero(w.inside & (w.low < part.stop) & (w.low + 1 >= part.start))
        if not len(hit):
            return None
        out.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(out)


def support(mask: npt.NDArray[np.bool_], source: Geometry, target: Geometry) -> npt.NDArray[np.bool_]:
    """Target voxels that trilinear interpolation reads when sampled at the true voxels of `mask`.

    Used to know which voxels of a model grid can influence given voxels of the CT when a result is
    brought back onto the CT's grid with `resample(result, target, source)`.

    Args:
        mask: bool (z, y, x) on `source` (the CT).
        target: The model grid.

    Returns:
        bool (z, y, x) of shape ``target.shape``.

    Raises:
        ValueError: The grids' axes are not parallel.
    """
    out: npt.NDArray[np.bool_] = mask
    for axis, w in enumerate(grid_weights(target, source)):
        moved = np.moveaxis(out, axis, 0)
        spread = np.zeros((target.shape[axis], *moved.shape[1:]), dtype=bool)
        hit = np.flatnonzero(w.inside & moved.any(axis=(1, 2)))
        for i in hit:
            low = w.low[i]
            if w.weight[i] < 1:
                spread[low] |= moved[i]
            if w.weight[i] > 0 and low + 1 < target.shape[axis]:
                spread[low + 1] |= moved[i]
        out = np.moveaxis(spread, 0, axis)
    return np.ascontiguousarray(out)


def centred_grid(
    like: Geometry,
    centre: tuple[float, float, float],
    spacing: tuple[float, float, float],
    shape: tuple[int, int, int],
) -> Geometry:
    """A grid of `spacing` mm and `shape` (z, y, x), parallel to `like`, centred on the LPS point `centre`."""
    axes = np.asarray(like.axes)
    half = (np.asarray(shape) - 1) / 2 * np.asarray(spacing)
    origin = np.asarray(centre) - half @ axes
    return Geometry(
        shape=shape,
        spacing=spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        axes=like.axes,
    )


def interpolation_matrix(
    old: int, new: int, kind: str = "linear", *, rows: slice = slice(None)
) -> npt.NDArray[np.float32]:
    """Interpolation along one axis as a matrix.

    Both grids fill the same box, so new voxel i lies at old index (i + 0.5) · old / new − 0.5; beyond the
    first and last centre the edge value goes on.

    Args:
        old, new: Number of voxels.
        kind: ``"nearest"``; ``"linear"``; ``"cubic"`` (interpolating cubic spline, as scipy.ndimage's);
            or ``"smooth"``: linear with a triangle as wide as the new voxels where these are larger, so
            that all old voxels take part (no aliasing, less noise).
        rows: Only these new voxels.

    Returns:
        float32 (rows, old); each row sums to one.

    >>> interpolation_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    if kind == "cubic":
        import scipy.ndimage

        units = np.eye(old)
        spline = scipy.ndimage.zoom(units, (new / old, 1), order=3, mode="nearest", grid_mode=True)
        return np.asarray(spline[rows], dtype=np.float32)
    centre = (np.arange(new)[rows] + 0.5) * old / new - 0.5
    if kind == "nearest":
        nearest = np.floor(centre + 0.5).astype(int).clip(0, old - 1)
        return np.asarray(np.eye(old)[nearest], dtype=np.float32)
    if kind == "linear":
        width = 1.0
        centre = centre.clip(0, old - 1)
    elif kind == "smooth":
        width = max(1.0, old / new)
    else:
        raise ValueError(f"kind is nearest, linear, cubic or smooth, not {kind!r}")
    weight = np.clip(1 - np.abs(np.arange(old) - centre[:, None]) / width, 0, None)
    return np.asarray(weight / weight.sum(1, keepdims=True), dtype=np.float32)


def resample_to_shape(
    array: npt.NDArray[Any],
    shape: tuple[int, int, int],
    *,
    clip: tuple[float, float] = (-np.inf, np.inf),
    kinds: tuple[str, str, str] = ("linear", "linear", "linear"),
    device: torch.device | None = None,
) -> torch.Tensor:
    """Resampling of a whole (z, y, x) array onto `shape` voxels that fill the same box.

    Args:
        array: Any number type that torch knows.
        shape: New voxels (z, y, x).
        clip: Values are clipped to this range before and (splines overshoot) after.
        kinds: Per axis, see `interpolation_matrix`.
        device: Where to compute; the CPU by default.

    Returns:
        float32 `shape` on `device`.
    """
    device = device or torch.device("cpu")
    # Of what shrinks, most voxels lie between those that take part: only these are converted and summed.
    weights, parts = [], []
    for old, new, kind in zip(array.shape, shape, kinds, strict=True):
        matrix = interpolation_matrix(old, new, kind)
        part = np.flatnonzero(matrix.any(axis=0))
        weights.append(torch.from_numpy(matrix[:, part]).to(device))
        parts.append(part)
    (wz, wy, wx), (zs, ys, xs) = weights, parts
    planes = torch.empty((len(zs), shape[1], shape[2]), device=device)
    whole = (len(ys), len(xs)) == array.shape[1:]
    for start in range(0, len(zs), SLAB):
        some = zs[start : start + SLAB]
        slab = torch.from_numpy(array[some] if whole else array[np.ix_(some, ys, xs)])
        planes[start : start + SLAB] = wy @ (slab.to(device).float().clamp_(*clip) @ wx.T)
    return (wz @ planes.flatten(1)).reshape(shape).clamp_(*clip)
