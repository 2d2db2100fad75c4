"""The great vessels, airways and oesophagus, hung on the heart's place.

Calibres: ascending aorta 34 mm wide on average, 40 mm or more in about one of ten (chosen after the
spread seen in screening cohorts), main pulmonary artery 28 mm, trachea 18 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .body import Body, stream
from .heart import Heart
from .shapes import Points, smooth_curve

DILATED_SHARE = 0.08
"""Share of patients with a dilated ascending aorta (chosen)."""
TORTUOUS_SHARE = 0.15
"""Share with an elongated, winding descending aorta (chosen)."""
TRUNK_KNOTS = ((14.0, -28.0, 14.0), (17.0, -21.0, 34.0), (15.0, -6.0, 51.0))
"""Centreline of the pulmonary trunk as far as its division, relative to the heart's origin, mm."""


@dataclass(frozen=True, kw_only=True)
class Vessels:
    """Centrelines (n, 3) and radii (n,) of the great vessels and airways, patient coordinates, mm."""

    aorta: tuple[Points, Points]
    trunk: tuple[Points, Points]
    right_pulmonary: tuple[Points, Points]
    left_pulmonary: tuple[Points, Points]
    superior_cava: tuple[Points, Points]
    inferior_cava: tuple[Points, Points]
    left_brachiocephalic: tuple[Points, Points]
    arch_branches: tuple[tuple[Points, Points], ...]
    pulmonary_veins: tuple[tuple[Points, Points], ...]
    oesophagus: tuple[Points, Points]
    airways: tuple[tuple[Points, Points], ...]


def sample_great_vessels(seed: int, heart: Heart, body: Body) -> Vessels:
    """Great vessels and airways, hung on the heart's place."""
    rng = stream(seed, "vessels")
    o = heart.origin
    age = rng.uniform(0.85, 1.2)  # width and unfolding of the aorta
    ra = 15.5 * age
    root = ra + (rng.uniform(2, 8) if rng.random() < DILATED_SHARE else 0.0)
    winding = rng.uniform(6, 20) if rng.random() < TORTUOUS_SHARE else 0.0

    def path(knots: list[tuple[float, float, float]], radii: list[float]) -> tuple[Points, Points]:
        base = np.asarray(knots, dtype=np.float64)
        base += rng.normal(0, 1.5, base.shape)
        base[:, 1] = np.maximum(base[:, 1], body.front(base[:, 2]) + max(radii) + 5)
        curve = smooth_curve(base, 4.0)
        where = np.linspace(0, len(radii) - 1, len(curve))
        return curve, np.interp(where, np.arange(len(radii)), radii)

    def rel(dx: float, dy: float, dz: float) -> tuple[float, float, float]:
        return float(o[0] + dx), float(o[1] + dy), float(o[2] + dz)

    arch = o[2] + 88 + 12 * (age - 1) + rng.normal(0, 5)
    dx = 22 + rng.normal(0, 3)

    def front(z: float) -> float:
        return body.spine(z) - 24

    back = front(o[2] + 60)
    aorta = path(
        [
            rel(-2, -6, 2),
            rel(-12, -8, 20),
            rel(-17, -6, 42),
            (o[0] - 15, o[1] + 2, arch - 14),
            (2.0, (o[1] + back) / 2 - 8, arch),
            (dx, back - 18, arch - 4),
            (dx + 5 + 0.5 * winding, front(arch - 22), arch - 22),
            (dx + 2 + winding, front(arch - 70) + 3 - 0.3 * winding, arch - 70),
            (dx - 4 - 0.7 * winding, front(20) + 1 - 0.3 * winding, 20.0),
            (dx - 11, front(-40) - 6, -40.0),
            (dx - 15, front(-110) - 9, -110.0),
        ],
        [
            root * 1.05,
            root * 1.08,
            root,
            0.5 * (root + ra),
            ra * 0.9,
            ra * 0.85,
            ra * 0.8,
            ra * 0.78,
            ra * 0.76,
            ra * 0.74,
            ra * 0.7,
        ],
    )
    # the sac, and so the heart's label, ends at the division of the pulmonary trunk
    split = rel(8, 12, 60)
    trunk = path([*(rel(*knot) for knot in TRUNK_KNOTS), split], [14, 14.5, 14, 13])
    right_pa = path([split, rel(-14, 15, 57), rel(-40, 18, 50), rel(-56, 20, 41)], [12, 11.5, 9.5, 7.5])
    left_pa = path([split, rel(28, 20, 63), rel(42, 27, 57), rel(47, 31, 42)], [12, 11, 9, 7])
    svc = path([rel(-36, -2, 30), rel(-34, 1, 55), rel(-34, 2, 80), rel(-32, 0, 105)], [10, 9.5, 9, 8])
    ivc = path(
        [rel(-30, 8, -14), rel(-31, 18, -36), (o[0] - 32, o[1] + 34, -20.0), (-26, 20.0, -80.0)],
        [12, 12, 12, 12],
    )
    lbv = path([rel(-32, 1, 92), rel(0, -8, 97), rel(28, -6, 108)], [6.5, 6, 6])
    branches = tuple(
        path(
            [(x0, y0, arch + 8), (x0 * 1.5, y0 - 2, arch + 35), (x0 * 2.0, y0 + 2, arch + 80)],
            [r, r * 0.9, r * 0.8],
        )
        for x0, y0, r in (
            (-8.0, (o[1] + back) / 2 - 18, 7.0),
            (6.0, (o[1] + back) / 2 - 6, 4.5),
            (14.0, back - 22, 5.0),
        )
    )
    veins = tuple(
        path(
            [rel(sx * 18, 26, 16 + dz), rel(sx * 40, 28, 14 + 1.6 * dz), rel(sx * 58, 30, 12 + 2.2 * dz)],
            [8, 6, 4],
        )
        for sx in (-1, 1)
        for dz in (8, -12)
    )
    oes = path(
        [
            (4, back - 20, arch + 90),
            (2, back - 20, arch),
            (2, back - 22, arch - 60),
            (8, back - 22, 20),
            (16, back - 34, -20),
        ],
        [7, 7.5, 8, 8, 9],
    )
    carina = (o[0] - 10, back - 30, arch - 30)
    wind = path([(0.0, back - 40, arch + 95), (-1.0, back - 38, arch + 40), carina], [9, 9, 8.5])
    rmb = path(
        [
            carina,
            (carina[0] - 22, carina[1] + 2, carina[2] - 20),
            (carina[0] - 38, carina[1] + 6, carina[2] - 48),
        ],
        [7, 6, 4.5],
    )
    lmb = path(
        [
            carina,
            (carina[0] + 28, carina[1] + 4, carina[2] - 20),
            (carina[0] + 52, carina[1] + 10, carina[2] - 38),
        ],
        [6.5, 5.5, 4.5],
    )

    def clear(airway: tuple[Points, Points]) -> tuple[Points, Points]:
        """Pushed to the back where it would run through the heart."""
        points, radii = airway
        for _ in range(12):
            p = points.astype(np.float32)
            points = points + (heart.sac(p[:, 0], p[:, 1], p[:, 2]) < radii + 4)[:, None] * np.array(
                [0.0, 3.0, 0.0]
            )
        points[:, 2] = np.maximum(points[:, 2], max(body.domes) + 9)
        return points, radii

    wind, rmb, lmb = clear(wind), clear(rmb), clear(lmb)
    lobar = []
    for end in (rmb[0][-1], lmb[0][-1]):
        side = np.sign(end[0] - carina[0])
        for d in ((20, -26, 14), (16, 4, -45), (24, 24, -25), (14, 8, 35)):
            tip = end + np.array([side * d[0], d[1], d[2]]) * rng.uniform(0.6, 1.2)
            tip[2] = max(tip[2], max(body.domes) + 8)
            branch, width = path(
                [tuple(end), tuple(0.5 * (end + tip) + rng.normal(0, 3, 3)), tuple(tip)], [4, 3, 1.6]
            )
            p = branch.astype(np.float32)
            free = heart.sac(p[:, 0], p[:, 1], p[:, 2]) > 7
            free &= branch[:, 2] > max(body.domes) + 6
            if free.sum() > 2:
                lobar.append((branch[free], width[free]))
    return Vessels(
        aorta=aorta,
        trunk=trunk,
        right_pulmonary=right_pa,
        left_pulmonary=left_pa,
        superior_cava=svc,
        inferior_cava=ivc,
        left_brachiocephalic=lbv,
        arch_branches=branches,
        pulmonary_veins=veins,
        oesophagus=oes,
        airways=(wind, rmb, lmb, *lobar),
    )
