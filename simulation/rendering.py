"""From an `Anatomy` to Hounsfield units on any grid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..imaging import Geometry
from .anatomy import Anatomy
from .organs import paint_coronaries, paint_great_vessels, paint_heart, paint_organs
from .shapes import Array, Canvas
from .trunk import paint_bones, paint_trunk

SLAB_VOXELS = 1_000_000
"""Voxels painted at a time."""


# ---------------------------------------------------------------- grids


def working_grid(geometry: Geometry) -> tuple[Geometry, int, int]:
    """The grid anatomy is painted on: twice as coarse in-plane where pixels are fine, finer along z.

    Returns:
        (grid, in-plane factor 1 or 2, sub-slices per slice).
    """
    dz, dy, dx = geometry.spacing
    nz, ny, nx = geometry.shape
    f = 2 if max(dy, dx) < 1.0 else 1
    sub = max(int(np.ceil(dz / (1.3 * f * max(dy, dx)))), 1)
    shape = (nz * sub, -(-ny // f), -(-nx // f))
    spacing = (dz / sub, dy * f, dx * f)
    start = geometry.to_lps([-0.5 + 0.5 / sub, (f - 1) / 2, (f - 1) / 2])
    origin = (float(start[0]), float(start[1]), float(start[2]))
    return Geometry(shape=shape, spacing=spacing, origin=origin, axes=geometry.axes), f, sub


def slice_profile(slices: int, sub: int, increment: float, thickness: float) -> npt.NDArray[np.float32]:
    """(slices, slices * sub) weights that average sub-slices over each slice's thickness."""
    centre = np.arange(slices)[:, None] * increment
    position = ((np.arange(slices * sub) + 0.5) / sub - 0.5)[None, :] * increment
    step = increment / sub
    low = np.maximum(centre - thickness / 2, position - step / 2)
    high = np.minimum(centre + thickness / 2, position + step / 2)
    weight = np.maximum(high - low, 0) + 1e-9 * (np.abs(centre - position) <= step)
    out: npt.NDArray[np.float32] = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return out


def to_target(field: Array, geometry: Geometry, factor: int, profile: npt.NDArray[np.float32]) -> Array:
    """Bring a field from the working grid onto the wanted grid, linear in-plane."""
    if profile.shape[0] != profile.shape[1] or not np.allclose(profile, np.eye(len(profile))):
        field = np.tensordot(profile, field, axes=1)
    if factor == 1:
        return field
    out = np.empty(geometry.shape, dtype=np.float32)
    for plane, target in zip(field, out, strict=True):
        target[:] = _double(_double(plane, geometry.shape[1]).T, geometry.shape[2]).T
    return out


def _double(a: Array, size: int) -> Array:
    """Linear interpolation to twice as many rows, cut to `size`; the outermost rows are repeated."""
    out = np.empty((2 * len(a), a.shape[1]), dtype=np.float32)
    near, far = np.float32(0.75) * a, np.float32(0.25) * a
    out[2::2] = near[1:] + far[:-1]
    out[1:-1:2] = near[:-1] + far[1:]
    out[0], out[-1] = a[0], a[-1]
    return out[:size]


# ---------------------------------------------------------------- anatomy


def draw(anatomy: Anatomy, geometry: Geometry) -> tuple[Array, Array]:
    """The patient on a grid, without calcium, blur and noise, slab by slab to stay in the cache.

    Returns:
        float32 HU and signed distance (mm) to the heart's sac, both (z, y, x).
    """
    nz, ny, nx = geometry.shape
    hu, sac = np.empty(geometry.shape, dtype=np.float32), np.empty(geometry.shape, dtype=np.float32)
    depth = max(SLAB_VOXELS // (ny * nx), 1)

    def one(first: int) -> None:
        last = min(first + depth, nz)
        slab = geometry.part((slice(first, last), slice(0, ny), slice(0, nx)))
        canvas = Canvas(anatomy.frame, slab)
        sac[first:last] = paint_patient(canvas, anatomy)
        hu[first:last] = canvas.hu

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(0, nz, depth)))
    return hu, sac


def paint_patient(canvas: Canvas, anatomy: Anatomy) -> Array:
    """Paint the whole patient; returns the signed distance (mm) to the heart's sac on the canvas."""
    paint_trunk(canvas, anatomy)
    paint_organs(canvas, anatomy)
    paint_bones(canvas, anatomy)
    sac = paint_heart(canvas, anatomy)
    paint_great_vessels(canvas, anatomy)
    paint_coronaries(canvas, anatomy)
    return sac
