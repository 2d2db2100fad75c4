"""Streaks and steps: what the scan adds to the picture besides blur and noise.

Coarse and cheap on purpose: they teach what artefacts look like; they do not model a scanner.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.sparse

from ..imaging import Geometry
from .coronary import METAL_HU
from .shapes import Array, Points
from .specks import Speck

COARSE = 80
"""Pixels along each side of the grid on which streaks between bones are worked out."""
VIEWS = 120
"""Directions of rays over half a turn."""
LACK = 0.1
"""Shortfall (cm of water) behind 1 cm of a material 1000 HU denser than `DENSE_HU`. Chosen, for streaks of
some ten HU in a chest; larger than for bone alone, as it stands for the long way through soft tissue too."""
DENSE_HU = 200.0
"""Beam hardening counts what exceeds this: bone and calcium."""
LAYER_MM = 6.0
"""Streaks between bones are worked out this far apart and interpolated."""
STAR_MM = 90.0
"""How far streaks of metal reach."""


@lru_cache(maxsize=1)
def _rays() -> tuple[scipy.sparse.csr_matrix, npt.NDArray[np.float32]]:
    """Parallel projection of a COARSE × COARSE image as a matrix, and the ramp filter along a view."""
    centre = (np.arange(COARSE) - (COARSE - 1) / 2).astype(np.float64)
    y, x = (g.ravel() for g in np.meshgrid(centre, centre, indexing="ij"))
    rows, columns, values = [], [], []
    for i, angle in enumerate(np.arange(VIEWS) * np.pi / VIEWS):
        t = x * np.cos(angle) + y * np.sin(angle) + (COARSE - 1) / 2
        low = np.floor(t).astype(int)
        for cell, weight in ((low, 1 - (t - low)), (low + 1, t - low)):
            inside = (cell >= 0) & (cell < COARSE)
            rows.append(i * COARSE + cell[inside])
            columns.append(np.flatnonzero(inside))
            values.append(weight[inside].astype(np.float32))
    shape = (VIEWS * COARSE, COARSE * COARSE)
    indices = (np.concatenate(rows), np.concatenate(columns))
    ramp = np.abs(np.fft.rfftfreq(2 * COARSE)).astype(np.float32)
    return scipy.sparse.csr_matrix((np.concatenate(values), indices), shape=shape), ramp


def hardening(images: Array, pixel: float) -> Array:
    """Error of beam hardening in coarse images.

    A detector sees less behind a long way through bone than its length asks for: the lack grows with the
    square of the line integral p of the dense part (Joseph and Spital, J Comput Assist Tomogr 1978;2:100).
    A lack of `LACK` p² is reconstructed by filtered back-projection; dark bands join dense objects.

    Args:
        images: float32 (n, COARSE, COARSE): dense part, in multiples of water's attenuation.
        pixel: Its spacing, mm.

    Returns:
        float32 (n, COARSE, COARSE): HU to add.
    """
    matrix, ramp = _rays()
    p = (matrix @ images.reshape(len(images), -1).T) * np.float32(pixel / 10)
    lack = (np.float32(-LACK) * p * p).reshape(VIEWS, COARSE, -1)
    spectrum = np.fft.rfft(lack, n=2 * COARSE, axis=1) * ramp[None, :, None]
    filtered = np.fft.irfft(spectrum, n=2 * COARSE, axis=1)[:, :COARSE].astype(np.float32)
    back = matrix.T @ filtered.reshape(VIEWS * COARSE, -1)
    out: Array = (
        (back.T * np.float32(np.pi / VIEWS * 1000 / (pixel / 10))).reshape(images.shape).astype(np.float32)
    )
    return out


def add_bone_streaks(hu: Array, geometry: Geometry, strength: float) -> None:
    """Add beam hardening between dense objects in place.

    Args:
        hu: float32 (z, y, x), noise-free.
        geometry: Of `hu`.
        strength: Factor to `hardening`, about 0.5 to 6; 0 for none.
    """
    nz, ny, nx = geometry.shape
    dz, dy, dx = geometry.spacing
    side = max(ny * dy, nx * dx)
    if strength == 0 or min(nz, ny, nx) < 8:
        return
    layers = np.unique(np.linspace(0, nz - 1, max(int(nz * dz / LAYER_MM), 2)).astype(int))
    cells = np.arange(COARSE + 1) / COARSE * side
    y, x = (np.minimum((cells / d).astype(int), n) for d, n in ((dy, ny), (dx, nx)))
    dense = np.clip(hu[layers] - np.float32(DENSE_HU), 0, 1500) / np.float32(1000)
    coarse = _cell_means(_cell_means(dense, y, 1), x, 2)
    streak = hardening(coarse, side / COARSE) * np.float32(strength)
    cell = side / COARSE
    rows, columns = (
        _hat((np.arange(ny) + 0.5) * dy / cell - 0.5),
        _hat((np.arange(nx) + 0.5) * dx / cell - 0.5),
    )
    where = np.interp(np.arange(nz), layers, np.arange(len(layers)))
    full = [rows @ s @ columns.T for s in streak]
    for i, w in enumerate(where):
        low = min(int(w), len(layers) - 2)
        share = np.float32(w - low)
        hu[i] += (1 - share) * full[low] + share * full[low + 1]


def _cell_means(a: Array, edges: npt.NDArray[np.int_], axis: int) -> Array:
    """Means over index ranges between `edges` along an axis; empty ranges give 0."""
    size = np.diff(edges)
    total = np.add.reduceat(a, np.minimum(edges[:-1], a.shape[axis] - 1), axis=axis)
    shape = [1, 1, 1]
    shape[axis] = len(size)
    out: Array = total * (1 / np.maximum(size, 1) * (size > 0)).astype(np.float32).reshape(shape)
    return out


def _hat(position: npt.NDArray[np.floating]) -> Array:
    """(positions, COARSE) weights of linear interpolation, held constant beyond the ends."""
    at = np.clip(position, 0, COARSE - 1)
    out: Array = np.clip(1 - np.abs(at[:, None] - np.arange(COARSE)[None, :]), 0, 1).astype(np.float32)
    return out


def add_metal_streaks(
    hu: Array, geometry: Geometry, specks: Sequence[Speck], rng: np.random.Generator, strength: float
) -> None:
    """Add a star of bright and dark streaks around metal in place, slice by slice.

    The error along a ray depends on its direction: longest from side to side, where the body is widest
    and photons run out, and random otherwise. Reconstructed, it becomes a star that falls off as width
    over distance.

    Args:
        hu: float32 (z, y, x).
        geometry: Of `hu`.
        specks: All lesions; those of metal give stars.
        rng: Draws the stars.
        strength: HU of the strongest streaks beside a lead; about 150.
    """
    _, ny, nx = geometry.shape
    dy, dx = geometry.spacing[1:]
    for speck in specks:
        if speck.lesion.hu < METAL_HU:
            continue
        phases = rng.uniform(0, 2 * np.pi, 8)
        for i in range(speck.box[0].start, speck.box[0].stop):
            cover = np.maximum(speck.cover[i - speck.box[0].start], 0)
            area = float(cover.sum()) * dy * dx
            if area < 0.3:
                continue
            rows, columns = (np.arange(s.start, s.stop) for s in speck.box[1:])
            cy = float((cover.sum(axis=1) @ rows) / cover.sum())
            cx = float((cover.sum(axis=0) @ columns) / cover.sum())
            y = np.arange(max(int(cy - STAR_MM / dy), 0), min(int(cy + STAR_MM / dy) + 1, ny))
            x = np.arange(max(int(cx - STAR_MM / dx), 0), min(int(cx + STAR_MM / dx) + 1, nx))
            py, px = ((y - cy) * dy).astype(np.float32)[:, None], ((x - cx) * dx).astype(np.float32)[None]
            r = np.hypot(py, px)
            width = np.float32(np.sqrt(area))
            star = _star(np.arctan2(py, px), phases + rng.normal(0, 0.4, 8))
            fall = width / (r + width) * np.clip((np.float32(STAR_MM) - r) / np.float32(STAR_MM), 0, 1)
            amount = np.float32(strength * min(speck.lesion.hu / 5000, 2.0) * min(np.sqrt(area) / 1.6, 2.0))
            hu[i, y[0] : y[-1] + 1, x[0] : x[-1] + 1] += amount * star * fall


def _star(angle: Array, phases: Points) -> Array:
    """Zero-mean angular pattern of a star, about -1 to 1: dark from side to side, thin rays between."""
    out = np.float32(-0.5) * np.cos(2 * angle)
    for n, phase in zip((4, 6, 10, 14, 18, 24, 30, 38), phases, strict=True):
        out += np.float32(0.22) * np.cos(np.float32(n) * angle + np.float32(phase))
    return out


def breathing_step(
    geometry: Geometry, centre: Points, distance: float, rng: np.random.Generator
) -> tuple[slice, Array] | None:
    """Displacement of part of the slices by a breath or heart beat between two turns of the tube.

    Args:
        geometry: Of the scan.
        centre: LPS (mm) of the heart; the shift fades away from it within about 90 mm, and there is none
            at spine and table.
        distance: In-plane shift at the centre, mm.
        rng: Draws direction and which 12-40 mm of the heart move.

    Returns:
        (slices that move, float32 (2, y, x) source offset in pixels along rows and columns), or None where
        nothing moves.
    """
    angle, middle, half = rng.uniform(0, 2 * np.pi), rng.normal(0, 25), rng.uniform(6, 20)
    index = geometry.to_index(centre)
    z = float(index[0]) + middle / geometry.spacing[0]
    first, last = (
        int(np.clip(round(z + s * half / geometry.spacing[0]), 0, geometry.shape[0])) for s in (-1, 1)
    )
    if first >= last or distance == 0:
        return None
    dy, dx = geometry.spacing[1:]
    y = ((np.arange(geometry.shape[1]) - index[1]) * dy).astype(np.float32)[:, None]
    x = ((np.arange(geometry.shape[2]) - index[2]) * dx).astype(np.float32)[None]
    amount = np.float32(distance) * np.exp(-(y * y + x * x) / np.float32(2 * 45.0**2))
    offset: Array = np.stack(
        [amount * np.float32(np.sin(angle) / dy), amount * np.float32(np.cos(angle) / dx)]
    )
    return slice(first, last), offset


def displaced(field: npt.NDArray[np.generic], offset: Array, *, order: int) -> npt.NDArray[np.generic]:
    """Slices (n, y, x) read at their own place plus `offset` (2, y, x), linear (`order` 1) or nearest (0)."""
    where = np.indices(offset.shape[1:], dtype=np.float32) + offset
    numbers = field.astype(np.float32) if field.dtype == bool else field
    moved = [scipy.ndimage.map_coordinates(s, where, order=order, mode="nearest") for s in numbers]
    out: npt.NDArray[np.generic] = np.stack(moved).astype(field.dtype)
    return out
