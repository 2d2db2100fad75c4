"""Solid shapes as approximate signed distances, and the canvas they are painted on.

Every shape answers the same question: how far is this point from my surface, negative inside? The
canvas turns that distance into a coverage between 0 and 1 over about one voxel, so that edges carry
partial volume, and mixes the shape's Hounsfield units into the picture, later shapes over earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..imaging import Geometry

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]
Box = tuple[slice, slice, slice]


def ellipsoid(x: Array, y: Array, z: Array, centre: Sequence[float], radii: Sequence[float]) -> Array:
    """Approximate signed distance (mm) to an axis-aligned ellipsoid; exact for a sphere."""
    rx, ry, rz = radii
    n = np.square((x - np.float32(centre[0])) / np.float32(rx))
    n = n + np.square((y - np.float32(centre[1])) / np.float32(ry))
    n = n + np.square((z - np.float32(centre[2])) / np.float32(rz))
    out: Array = (np.sqrt(n) - np.float32(1)) * np.float32((rx * ry * rz) ** (1 / 3))
    return out


def capsule(x: Array, y: Array, z: Array, a: Points, b: Points, ra: float, rb: float) -> Array:
    """Signed distance (mm) to a round-ended stick from `a` (radius `ra`) to `b` (radius `rb`)."""
    ab = b - a
    length2 = max(float(ab @ ab), 1e-9)
    px, py, pz = (v - np.float32(c) for v, c in zip((x, y, z), a, strict=True))
    u = (px * np.float32(ab[0]) + py * np.float32(ab[1]) + pz * np.float32(ab[2])) * np.float32(1 / length2)
    np.clip(u, 0, 1, out=u)
    d = np.square(px - u * np.float32(ab[0]))
    d += np.square(py - u * np.float32(ab[1]))
    d += np.square(pz - u * np.float32(ab[2]))
    np.sqrt(d, out=d)
    d -= np.float32(ra) + u * np.float32(rb - ra)
    out: Array = d
    return out


def smooth_min(a: Array, b: Array, k: float) -> Array:
    """Union of two signed distances whose crease is filled over about `k` mm."""
    h = np.maximum(np.float32(k) - np.abs(a - b), 0)
    out: Array = np.minimum(a, b) - h * h * np.float32(0.25 / k)
    return out


def smooth_curve(knots: Points, step: float = 3.0) -> Points:
    """Points about `step` mm apart on a smooth (Catmull-Rom) curve through `knots` (n, 3), mm."""
    knots = np.asarray(knots, dtype=np.float64)
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    pieces = []
    for i in range(len(knots) - 1):
        p0, p1, p2, p3 = padded[i : i + 4]
        n = max(int(np.ceil(np.linalg.norm(p2 - p1) / step)), 1)
        t = (np.arange(n) / n)[:, None]
        pieces.append(
            0.5
            * (
                2 * p1
                + (p2 - p0) * t
                + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2
                + (3 * p1 - p0 - 3 * p2 + p3) * t**3
            )
        )
    return np.vstack([*pieces, knots[-1:]])


@dataclass(frozen=True, kw_only=True)
class Waves:
    """A smooth random field: a sum of plane waves in LPS space, the same on every grid.

    Attributes:
        k: (n, 3) wave vectors, radians per mm, LPS (x, y, z).
        phase: (n,) radians.
        amplitude: (n,) or (n, c) for a field of c components.
    """

    k: Points
    phase: Points
    amplitude: Points

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        *,
        count: int,
        wavelength: tuple[float, float],
        sd: float,
        components: int = 1,
    ) -> Waves:
        """`count` waves with lengths (mm) drawn from a range; the field has standard deviation `sd`."""
        direction = rng.normal(size=(count, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        k = direction * (2 * np.pi / rng.uniform(*wavelength, size=(count, 1)))
        amplitude = rng.normal(size=(count, components)) * sd * np.sqrt(2 / count)
        return cls(k=k, phase=rng.uniform(0, 2 * np.pi, count), amplitude=amplitude)

    def at(self, lps: Points) -> Points:
        """Field values (..., c) at LPS points (..., 3)."""
        out: Points = np.cos(lps @ self.k.T + self.phase) @ self.amplitude
        return out

    def on_grid(self, geometry: Geometry, component: int = 0) -> Array:
        """One component on all voxels (z, y, x) of a grid, as one matrix product (a wave is separable)."""
        m = geometry.affine_lps()
        nz, ny, nx = geometry.shape
        base = self.k @ m[:3, 3] + self.phase
        pz = np.exp(1j * (np.arange(nz)[:, None] * (self.k @ m[:3, 0]) + base)) * self.amplitude[:, component]
        py = np.exp(1j * np.arange(ny)[:, None] * (self.k @ m[:3, 1]))
        px = np.exp(1j * np.arange(nx)[:, None] * (self.k @ m[:3, 2]))
        zy = (pz[:, None, :] * py[None, :, :]).reshape(nz * ny, -1).astype(np.complex64)
        left = np.concatenate([zy.real, -zy.imag], axis=1)
        right = np.concatenate([px.real, px.imag], axis=1).astype(np.float32)
        out: Array = (left @ right.T).reshape(nz, ny, nx)
        return out


@dataclass(frozen=True, kw_only=True)
class Frame:
    """From the scanner's LPS millimetres to the patient's own, gently warped coordinates.

    Patient coordinates (mm): +x to the patient's left, +y to the back, +z to the head; x = 0 in the
    midline, y = 0 halfway between breast bone and back wall, z = 0 at the lower edge of the heart.

    Attributes:
        rotation: 3 × 3, from patient to LPS directions.
        translation: LPS of the patient's origin.
        warp: Displacement (3 components, mm) added to patient coordinates, a function of LPS.
    """

    rotation: Points
    translation: Points
    warp: Waves

    def to_patient(self, lps: Points) -> Points:
        """Patient coordinates (..., 3) of LPS points (..., 3)."""
        out: Points = (lps - self.translation) @ self.rotation + self.warp.at(lps)
        return out

    def to_lps(self, points: Points) -> Points:
        """LPS points (..., 3) of patient coordinates (..., 3), by fixed-point iteration."""
        points = np.asarray(points, dtype=np.float64)
        lps = points @ self.rotation.T + self.translation
        for _ in range(10):
            lps = (points - self.warp.at(lps)) @ self.rotation.T + self.translation
        return lps

    def reach(self) -> float:
        """An upper bound of the warp's displacement along one axis, mm."""
        return float(np.abs(self.warp.amplitude).sum(axis=0).max())

    def slope(self) -> float:
        """An upper bound of how fast the warp's displacement along one axis changes, mm per mm."""
        steep = np.linalg.norm(self.warp.k, axis=1)[:, None] * np.abs(self.warp.amplitude)
        return float(steep.sum(axis=0).max())

    def coordinates(self, geometry: Geometry) -> tuple[Array, Array, Array]:
        """Patient x, y, z (mm) of every voxel of a grid, three float32 (z, y, x) arrays."""
        m = geometry.affine_lps()
        index_to_patient = self.rotation.T @ m[:3, :3]
        offset = self.rotation.T @ (m[:3, 3] - self.translation)
        nz, ny, nx = geometry.shape
        i = np.arange(nz)[:, None, None]
        j = np.arange(ny)[None, :, None]
        k = np.arange(nx)[None, None, :]
        out = []
        for axis in range(3):
            c = index_to_patient[axis]
            plane = (c[0] * i + c[1] * j + offset[axis]).astype(np.float32)
            field = self.warp.on_grid(geometry, axis)
            field += plane
            field += (c[2] * k).astype(np.float32)
            out.append(field)
        return out[0], out[1], out[2]


class Canvas:
    """A picture in Hounsfield units on a grid, painted shape by shape in patient coordinates.

    Attributes:
        hu: float32 (z, y, x).
        x, y, z: Patient coordinates (mm) of the voxels, float32 (z, y, x).
        edge: Width (mm) over which coverage goes from 1 to 0 at a surface: about a voxel.
    """

    def __init__(self, frame: Frame, geometry: Geometry, background: float = -1000.0) -> None:
        self.geometry = geometry
        self.x, self.y, self.z = frame.coordinates(geometry)
        self.hu: Array = np.full(geometry.shape, background, dtype=np.float32)
        self.edge = float(np.cbrt(geometry.voxel_volume))
        self._frame = frame
        self._margin = frame.reach() + self.edge
        m = geometry.affine_lps()
        inverse = np.linalg.inv(m[:3, :3])
        self._to_index = inverse @ frame.rotation
        self._offset = inverse @ (frame.translation - m[:3, 3])

    def box(self, low: Points, high: Points) -> Box | None:
        """Index slices that surely hold the patient-coordinate box `low`..`high`, or None if outside."""
        centre = self._to_index @ ((low + high) / 2) + self._offset
        half = np.abs(self._to_index) @ ((high - low) / 2 + self._margin)
        start = np.maximum(np.floor(centre - half), 0).astype(int)
        stop = np.minimum(np.ceil(centre + half) + 1, self.geometry.shape).astype(int)
        if (stop <= start).any():
            return None
        return _slices(start, stop)

    def around(self, centre: Sequence[float], half: Sequence[float]) -> Box | None:
        """Like `box`, from a centre and half widths, mm."""
        c, h = np.asarray(centre, dtype=np.float64), np.asarray(half, dtype=np.float64)
        return self.box(c - h, c + h)

    def at(self, box: Box) -> tuple[Array, Array, Array]:
        """Patient coordinates inside a box."""
        return self.x[box], self.y[box], self.z[box]

    def coverage(self, distance: Array) -> Array:
        """Share of each voxel inside the surface, 0 to 1."""
        out: Array = np.clip(np.float32(0.5) - distance * np.float32(1 / self.edge), 0, 1)
        return out

    def paint(self, box: Box, distance: Array, hu: float | Array) -> None:
        """Mix `hu` into the picture wherever `distance` says inside."""
        view = self.hu[box]
        view += self.coverage(distance) * (np.asarray(hu, dtype=np.float32) - view)

    def shell(self, box: Box, distance: Array, wall: float, hu: float | Array, core: float | Array) -> None:
        """Paint a solid of `core` HU in a wall `wall` mm thick of `hu`, right for any voxel size."""
        view = self.hu[box]
        inner = self.coverage(distance + np.float32(wall))
        hu, core = np.asarray(hu, dtype=np.float32), np.asarray(core, dtype=np.float32)
        view += self.coverage(distance) * (hu - view) + inner * (core - hu)

    def ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float], hu: float
    ) -> None:
        """Paint an axis-aligned ellipsoid."""
        box = self.around(centre, radii)
        if box is not None:
            self.paint(box, ellipsoid(*self.at(box), centre, radii), hu)

    def tube(self, points: Points, radii: Points | float, hu: float) -> None:
        """Paint a tube along `points` (n, 3); thinner than a voxel it becomes fainter, not wider."""
        for box, d, r in self._pieces(points, radii):
            self._paint_thin(box, d, r, hu)

    def hollow(
        self, tubes: Sequence[tuple[Points, Points | float]], wall: float, hu: float, core: float
    ) -> None:
        """Paint tubes that have a wall `wall` mm thick of `hu` and a core of another `core` HU.

        All tubes share one wall: where they join, no wall lies between them. The share of wall and core
        in a voxel stays right where the wall is thinner than the voxel.
        """
        outer = np.zeros(self.geometry.shape, dtype=np.float32)
        inner = np.zeros(self.geometry.shape, dtype=np.float32)
        for points, radii in tubes:
            for box, d, _ in self._pieces(points, radii):
                np.maximum(outer[box], self.coverage(d), out=outer[box])
                np.maximum(inner[box], self.coverage(d + np.float32(wall)), out=inner[box])
        self.hu += outer * (np.float32(hu) - self.hu) + inner * np.float32(core - hu)

    def sticks(self, a: Points, b: Points, ra: Points, rb: Points, hu: float) -> None:
        """Paint round-ended sticks from `a` (n, 3) to `b` (n, 3), one after the other, as `tube` does."""
        for box, d, r in self._sticks(a, b, ra, rb):
            self._paint_thin(box, d, r, hu)

    def _paint_thin(self, box: Box, d: Array, r: float, hu: float) -> None:
        cover = self.coverage(d)
        if 2 * r < self.edge:
            cover *= np.float32((2 * r / self.edge) ** 2 / min(1.0, r / self.edge + 0.5))
        view = self.hu[box]
        view += cover * (np.float32(hu) - view)

    def _pieces(self, points: Points, radii: Points | float) -> Iterator[tuple[Box, Array, float]]:
        """Box, signed distance and largest radius of each piece of a tube that touches the canvas."""
        radius = np.broadcast_to(np.asarray(radii, dtype=np.float64), len(points))
        return self._sticks(points[:-1], points[1:], radius[:-1], radius[1:])

    def _sticks(self, a: Points, b: Points, ra: Points, rb: Points) -> Iterator[tuple[Box, Array, float]]:
        """Box, signed distance and largest radius of each stick that touches the canvas."""
        from_, to = np.split(self.geometry.to_index(self._frame.to_lps(np.concatenate([a, b]))), 2)
        wide = np.maximum(ra, rb)
        # the warp may bend the stick between its ends, and stretch it across
        slack = self._frame.slope() * (0.5 * np.linalg.norm(b - a, axis=1) + wide)
        half = (wide + slack + self.edge)[:, None] / np.array(self.geometry.spacing)
        low = np.maximum(np.floor(np.minimum(from_, to) - half), 0).astype(int)
        high = np.minimum(np.ceil(np.maximum(from_, to) + half) + 1, self.geometry.shape)
        for i in np.flatnonzero((high > low).all(axis=1)):
            box = _slices(low[i], high[i])
            yield box, capsule(*self.at(box), a[i], b[i], float(ra[i]), float(rb[i])), float(wide[i])


def _slices(start: npt.NDArray[np.int_], stop: npt.NDArray[np.int_]) -> Box:
    z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return z, y, x
