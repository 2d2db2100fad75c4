"""The heart: four chambers, the roots of the great vessels, and the sac around them.

The sac (what a reader outlines as "whole heart") is a smooth union of the chambers and of the vessel
roots, so that it bridges the grooves between them; what lies inside the sac but in no chamber is
epicardial fat. The coronary arteries run in those grooves (see `coronary`).

Normal sizes after the cardiac CT and MR reference values collected in Kawel-Boehm et al., J Cardiovasc
Magn Reson 2020;22:87 (left ventricle about 90 mm long and 50 mm wide inside; total heart volume with
epicardial fat about 600-900 ml, which is also what the heart labels of LIDC chests measure).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .shapes import Array, Points, capsule, ellipsoid, smooth_min

ALONG_MM = np.arange(0.0, 110.0, 0.5)
"""Where along a ray from inside the heart its surfaces are looked for."""
GRID_MM = 4.0
"""Grid on which a heart's extent is measured."""


@dataclass(frozen=True, kw_only=True)
class Heart:
    """Position, axes and chambers of one heart, in patient coordinates (mm).

    Attributes:
        origin: Centre of the plane between atria and ventricles.
        axes: Rows: towards the apex, from the left to the right ventricle, to the inferior wall.
        ventricles: (centre, radii) of left and right ventricle with their walls, in `axes` coordinates.
        atria: (centre, radii) of right and left atrium, relative to `origin` along patient axes.
        great: (start, end, radius) of ascending aorta and pulmonary trunk with the sac's folds around
            them, relative to `origin`.
        top: Height above `origin` where the sac ends: the division of the pulmonary trunk.
        floor: Depth below `origin` at which the sac lies flat on the diaphragm.
        fat: How far the sac stands off the chambers, mm.
        effusion: Thickness of fluid between that fat and the sac, mm; 0 in most hearts.
        bridge: How widely the sac bridges the grooves, mm.
        wall: Thickness of the left ventricular wall, mm.
        appendages: (start, end, radius at the start, radius at the end) of the right and the left atrial
            appendage, relative to `origin` along patient axes; none before version 5 of the simulator.
        creases: How widely muscle fills the crease between the ventricles, between the atria, and between
            those two, mm.
    """

    origin: Points
    axes: Points
    ventricles: tuple[tuple[Points, Points], tuple[Points, Points]]
    atria: tuple[tuple[Points, Points], tuple[Points, Points]]
    great: tuple[tuple[Points, Points, float], tuple[Points, Points, float]]
    top: float
    floor: float
    fat: float
    effusion: float
    bridge: float
    wall: float
    appendages: tuple[tuple[Points, Points, float, float], ...] = ()
    creases: tuple[float, float, float] = (16.0, 12.0, 10.0)

    def local(
        self, x: Array, y: Array, z: Array
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        """The points relative to the origin, along patient axes and along the heart's own axes."""
        px, py, pz = (v - np.float32(c) for v, c in zip((x, y, z), self.origin, strict=True))
        a = self.axes.astype(np.float32)
        own = [px * r[0] + py * r[1] + pz * r[2] for r in a]
        return (px, py, pz), (own[0], own[1], own[2])

    def chambers(self, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array, Array]:
        """Signed distances (mm) to left and right ventricle, right and left atrium with its appendage."""
        rel, own = self.local(x, y, z)
        lv, rv = (ellipsoid(*own, _triple(c), _triple(r)) for c, r in self.ventricles)
        atria = [ellipsoid(*rel, _triple(c), _triple(r)) for c, r in self.atria]
        for i, (start, end, r0, r1) in enumerate(self.appendages):
            atria[i] = smooth_min(atria[i], capsule(*rel, start, end, r0, r1), APPENDAGE_BRIDGE_MM)
        return lv, rv, atria[0], atria[1]

    def muscle(self, chambers: tuple[Array, Array, Array, Array]) -> Array:
        """Signed distance (mm) to the chambers as one, without the fat over them."""
        lv, rv, ra, la = chambers
        ventricles, atria, both = self.creases
        return smooth_min(smooth_min(lv, rv, ventricles), smooth_min(ra, la, atria), both)

    def sac(
        self, x: Array, y: Array, z: Array, chambers: tuple[Array, Array, Array, Array] | None = None
    ) -> Array:
        """Signed distance (mm) to the pericardial sac: the heart a reader outlines."""
        lv, rv, ra, la = self.chambers(x, y, z) if chambers is None else chambers
        rel, _ = self.local(x, y, z)
        d = smooth_min(lv, rv, self.bridge)
        d = smooth_min(d, smooth_min(ra, la, self.bridge), self.bridge)
        aorta, trunk = (capsule(*rel, a, b, r, r) for a, b, r in self.great)
        d = smooth_min(d, smooth_min(aorta, trunk, self.bridge), self.bridge)
        d = np.maximum(
            d - np.float32(self.fat + self.effusion), (rel[2] - np.float32(self.top)) * np.float32(0.9)
        )
        out: Array = -smooth_min(-d, rel[2] + np.float32(self.floor) - np.float32(0.1) * rel[0], 10.0)
        return out

    def surface(self, start: Points, direction: Points, depth: float) -> Points:
        """Points (n, 3) `depth` mm below the sac along rays from `start` (n, 3) in `direction` (n, 3).

        A depth above 0 is counted from the fat's surface, below any fluid in the sac.
        """
        if depth > 0:
            depth += self.effusion
        t = ALONG_MM
        p = (start[:, None, :] + t[None, :, None] * direction[:, None, :]).astype(np.float32)
        outside = self.sac(p[..., 0], p[..., 1], p[..., 2]) > -depth
        first = np.where(outside.any(axis=1), outside.argmax(axis=1), len(t) - 1)
        out: Points = start + t[first][:, None] * direction
        return out

    def groove(self, start: Points, direction: Points, share: float, sunk: float = 0.0) -> Points:
        """The point (3,) `share` of the way from the muscle to the sac along a ray.

        Args:
            start: (3,), inside the heart.
            direction: (3,), of length 1.
            share: 0 for an artery that lies on the muscle, 1 for one just below the sac. Where there is no
                room between the two it runs below the sac.
            sunk: How much deeper than on the muscle 0 is, mm.
        """
        t = ALONG_MM
        p = (start + t[:, None] * direction).astype(np.float32)
        chambers = self.chambers(p[:, 0], p[:, 1], p[:, 2])
        outside = self.sac(p[:, 0], p[:, 1], p[:, 2], chambers) > -(BELOW_SAC_MM + self.effusion)
        last = int(outside.argmax()) if outside.any() else len(t) - 1
        inner = np.flatnonzero(self.muscle(chambers)[:last] < self.fat + ABOVE_MUSCLE_MM - sunk)
        first = t[inner[-1]] if len(inner) else t[last]
        out: Points = start + (first + share * (t[last] - first)) * direction
        return out

    def inside(self) -> tuple[Points, Points]:
        """Points (n, 3) of a 4 mm grid inside the sac, and their centroid, mm."""
        g = np.arange(-112.0, 113.0, GRID_MM, dtype=np.float32)
        z, y, x = np.meshgrid(*(g + np.float32(c) for c in self.origin[::-1]), indexing="ij")
        hit = self.sac(x, y, z) < 0
        p = np.stack([x[hit], y[hit], z[hit]], axis=1).astype(np.float64)
        return p, p.mean(axis=0)

    def extent(self) -> tuple[Points, Points, Points, float]:
        """Lowest and highest corner, centroid (mm) and volume (mm³) of the sac, on a 4 mm grid."""
        p, centroid = self.inside()
        return p.min(axis=0), p.max(axis=0), centroid, len(p) * GRID_MM**3


DEEP_CREASES_MM = (6.0, 6.0, 5.0)
"""How widely muscle fills the creases of hearts in version 5, see `Heart`. The fat around coronary arteries
is 10 to 18 mm thick (Farag et al., Indian Heart J 2023;75:53)."""
APPENDAGE_BRIDGE_MM = 6.0
"""How widely an appendage goes over into its atrium (chosen)."""
BELOW_SAC_MM, ABOVE_MUSCLE_MM = 1.5, 3.0
"""Least distance of the middle of an artery in its groove from the sac, and from the muscle beside the fat
that lies on it everywhere: its radius and a little (chosen)."""
EFFUSION_SHARE = 0.06
"""Share of hearts with a visible layer of pericardial fluid (chosen)."""
LARGE_ATRIUM_SHARE = 0.15
"""Share with an enlarged left atrium (chosen)."""


def sample_heart(rng: np.random.Generator, *, size: float, obesity: float, emphysema: float = 0.0) -> Heart:
    """A heart at the origin of patient coordinates; the caller moves it into place.

    Args:
        rng: Source of randomness.
        size: Linear scale, 1 for an average adult.
        obesity: 0 (lean) to 1 (very obese); more epicardial fat, heart more horizontal.
        emphysema: 0 to 1; heart more vertical.
    """
    azimuth = np.deg2rad(rng.normal(51, 12))  # from straight ahead towards the left
    elevation = np.deg2rad(rng.normal(38, 9))  # below the horizontal
    elevation = float(np.clip(elevation - 0.16 * obesity + 0.25 * emphysema, 0.1, 1.05))
    apex = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), -np.sin(elevation)]
    )
    right = np.array([-np.cos(azimuth), -np.sin(azimuth), rng.normal(-0.15, 0.1)])
    right -= apex * (right @ apex)
    right /= np.linalg.norm(right)
    inferior = np.cross(apex, right)
    s = size * rng.normal(1, 0.05, 12)
    s[6:8] *= rng.uniform(1.1, 1.35) if rng.random() < LARGE_ATRIUM_SHARE else 1.0
    s[3] *= 1 + 0.12 * emphysema  # the right ventricle works against a higher pressure
    wall = float(np.clip(rng.normal(9, 1.8), 6, 15))
    lv = (np.array([26 * s[0], -16 * s[0], 2.0]), np.array([51 * s[0], 34 * s[1], 35 * s[1]]))
    rv = (np.array([21 * s[2], 20 * s[2], 0.0]), np.array([46 * s[2], 27 * s[3], 41 * s[3]]))
    ra = (np.array([-35 * s[4], 1.0, 3 * s[4]]), np.array([25 * s[5], 30 * s[5], 34 * s[5]]))
    la = (np.array([-4.0, 24 * s[6], 18 * s[6]]), np.array([37 * s[7], 22 * s[7], 30 * s[7]]))
    return Heart(
        origin=np.zeros(3),
        axes=np.stack([apex, right, inferior]),
        ventricles=(lv, rv),
        atria=(ra, la),
        great=(
            (np.array([-3.0, -7.0, 4.0]), np.array([-18.0, 1.0, 80.0]), float(16.5 * s[8])),
            (np.array([14.0, -25.0, 12.0]), np.array([14.0, 4.0, 80.0]), float(14 * s[9])),
        ),
        top=float(np.clip(rng.normal(62, 5), 48, 74) * s[10]),
        floor=float(rng.normal(58, 4) * size + 8 * emphysema),
        fat=float(np.clip(0.4 + 2.8 * obesity + rng.normal(0, 0.7), 0.3, 6)),
        effusion=float(rng.uniform(2, 8)) if rng.random() < EFFUSION_SHARE else 0.0,
        bridge=float(rng.uniform(24, 38)),
        wall=wall,
    )


def _triple(v: Points) -> tuple[float, float, float]:
    return float(v[0]), float(v[1]), float(v[2])
