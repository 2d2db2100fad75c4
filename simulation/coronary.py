"""Coronary arteries in their grooves, the calcium in them, and calcium that is not coronary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from .heart import Heart
from .shapes import Points, smooth_curve
from .vessels import TRUNK_KNOTS

ZERO_SHARE = 0.24
"""Share of patients without coronary calcium. A few more show none, as theirs is too little for the scan:
25-30 % score 0 in lung screening (NLST, DeepCAC2 paper)."""
MEDIAN_SCORE, SPREAD = 100.0, 1.55
"""Median and log standard deviation of the Agatston score of the others: 7 % lie above 1000."""
ARTERY_SHARE = {"LM": 0.08, "LAD": 0.45, "LCX": 0.19, "RCA": 0.28}
"""How calcium spreads over the arteries (LAD first, then RCA, LCX, LM, as in every screening cohort)."""
VISIBLE, RIM_MM3 = 0.62, 2.2
"""Plaque volume per volume over 130 HU, as blur pushes more voxels over it, and what blur takes from a small
plaque (mm³); found by comparing scores aimed at with scores measured."""
TRUNK_CLEARANCE = 17.5
"""Distance of the left coronary arteries from that line, mm: the trunk's radius and a little fat."""
METAL_HU = 2500.0
"""Material at or above this is metal."""


@dataclass(frozen=True, kw_only=True)
class Deposit:
    """A piece of calcium or metal: a bead chain along a wall.

    Attributes:
        kind: The artery (``LM``, ``LAD``, ``LCX``, ``RCA``) or what it is instead (``aorta``, ``valve`` ...).
        points: (n, 3) bead centres, patient coordinates, mm.
        radii: (n,) bead radii, mm.
        hu: Hounsfield units of the material itself, before any blur.
    """

    kind: str
    points: Points
    radii: Points
    hu: float

    def volume(self) -> float:
        """Volume of the chain of truncated cones and the two end caps, mm³."""
        length = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        a, b = self.radii[:-1], self.radii[1:]
        cones = np.pi / 3 * length * (a * a + a * b + b * b)
        return float(cones.sum() + 2 / 3 * np.pi * (self.radii[0] ** 3 + self.radii[-1] ** 3))


def sample_coronaries(rng: np.random.Generator, heart: Heart) -> dict[str, Points]:
    """Centrelines of the four named arteries, about 1 mm between points, patient coordinates, mm.

    The right coronary and circumflex arteries follow the groove between atria and ventricles, the left
    anterior descending artery the groove between the ventricles.
    """
    apex, right, inferior = heart.axes
    o = heart.origin

    def groove(degrees: Points, along: Points, depth: float) -> Points:
        angle = np.deg2rad(degrees)[:, None]
        direction = np.cos(angle) * right + np.sin(angle) * inferior
        start = o + along[:, None] * apex + 4.0 * right
        return heart.surface(start, direction, depth)

    swing = rng.normal(0, 5, 4)
    root = o + np.array([-8.0, -9.0, 17.0])
    n_rca = 9
    rca = groove(
        np.linspace(-52 + swing[0], 78 + swing[1], n_rca),
        rng.normal(-3, 1.5) + np.linspace(2, -4, n_rca),
        rng.uniform(5, 8),
    )
    rca_end = groove(np.array([95.0, 93.0, 91.0]) + swing[1], np.array([4.0, 18.0, 32.0]), 5.0)
    bend = -97 + swing[2]
    reach = rng.uniform(0.78, 0.98) * (heart.ventricles[0][0][0] + heart.ventricles[0][1][0])
    n_lad = 9
    lad = groove(
        bend + np.linspace(0, 6, n_lad) + rng.normal(0, 1.5, n_lad),
        np.linspace(2, reach, n_lad),
        rng.uniform(3.5, 5.5),
    )
    lcx = groove(np.linspace(bend - 16, -215 + 2 * swing[3], 7), np.linspace(-1, -5, 7), rng.uniform(5, 7.5))
    fork = lad[0] * 0.6 + lcx[0] * 0.4 + 0.12 * (root - lad[0])
    left_ostium = root + 13 * unit(fork - root)
    right_ostium = root + 13 * unit(rca[0] - root)
    knots = {
        "LM": np.stack([left_ostium, 0.5 * (left_ostium + fork) + rng.normal(0, 1, 3), fork]),
        "LAD": np.vstack([fork, lad[1:]]),
        "LCX": np.vstack([fork, lcx]),
    }
    lines = {name: beside_trunk(smooth_curve(k, 1.0), heart) for name, k in knots.items()}
    return {**lines, "RCA": smooth_curve(np.vstack([right_ostium, rca, rca_end]), 1.0)}


def beside_trunk(line: Points, heart: Heart) -> Points:
    """A left coronary artery led around the left and the back of the pulmonary trunk, inside the sac."""
    trunk = heart.origin + smooth_curve(np.array(TRUNK_KNOTS), 1.0)
    away = line[:, None] - trunk[None]
    nearest = np.linalg.norm(away, axis=2).argmin(axis=1)
    out = away[np.arange(len(line)), nearest]
    distance = np.linalg.norm(out, axis=1)
    out = out + np.clip(TRUNK_CLEARANCE - distance, 0, None)[:, None] * np.array([0.8, 0.8, 0.0])
    out *= np.maximum(TRUNK_CLEARANCE / np.maximum(np.linalg.norm(out, axis=1), 1e-6), 1.0)[:, None]
    moved = np.where((distance < TRUNK_CLEARANCE)[:, None], trunk[nearest] + out, line)
    p = moved.astype(np.float32)
    outside = np.clip(heart.sac(p[:, 0], p[:, 1], p[:, 2]) + 2.5, 0, None)[:, None]
    inward = heart.origin - moved
    moved = moved + outside * inward / np.linalg.norm(inward, axis=1, keepdims=True)
    smooth: Points = scipy.ndimage.uniform_filter1d(moved, 9, axis=0, mode="nearest")
    return smooth


def sample_lesions(
    rng: np.random.Generator, coronaries: dict[str, Points], radius: float
) -> tuple[float, tuple[Deposit, ...]]:
    """The patient's intended Agatston score and lesions that make up about that much.

    Args:
        rng: Source of randomness.
        coronaries: Centrelines.
        radius: Radius of the arteries, mm.

    Returns:
        (score aimed at, lesions); (0.0, ()) for a patient without calcium.
    """
    if rng.random() < ZERO_SHARE:
        return 0.0, ()
    target = float(np.clip(MEDIAN_SCORE * np.exp(rng.normal(0, SPREAD)), 1, 5000))
    names = list(ARTERY_SHARE)
    preference = np.array([ARTERY_SHARE[n] for n in names]) * rng.gamma(2.0, 0.5, 4)
    preference /= preference.sum()
    lesions: list[Deposit] = []
    left = target
    while left > 0.5 and len(lesions) < 60:
        share = float(np.clip(left * rng.uniform(0.08, 0.6), min(left, 2.0), 400))
        faint = share > 5 and rng.random() < 0.15  # spread out, just above the threshold
        hu = 230.0 if faint else 560 + 140 * np.log10(1 + share)
        hu = float(np.clip(hu * rng.lognormal(0, 0.25), 170, 1500))
        weight = 4.0 if hu > 520 else 3.0 if hu > 400 else 2.0 if hu > 280 else 1.0
        volume = share * 3.0 / weight * VISIBLE + RIM_MM3
        artery = str(rng.choice(names, p=preference))
        lesions.append(
            _plaque(rng, coronaries, artery, volume, hu, radius, long=faint or rng.random() < 0.15)
        )
        left -= share
    return target, tuple(lesions)


def _plaque(
    rng: np.random.Generator,
    coronaries: dict[str, Points],
    artery: str,
    volume: float,
    hu: float,
    radius: float,
    *,
    long: bool,
) -> Deposit:
    """A plaque of `volume` mm³ on the wall of an artery: compact, or `long` and thin."""
    line = coronaries[artery]
    # calcium sits mostly in the near half of an artery
    at = int((len(line) - 1) * (rng.beta(1.3, 2.6) if artery != "LM" else rng.random()))
    thick = float(np.clip(0.55 * volume ** (1 / 3) * rng.uniform(0.55, 1.0), 0.45, 0.75 * radius + 0.7))
    if long:
        thick = max(0.6 * thick, 0.45)
    length = max(volume / (np.pi * thick**2) - 4 / 3 * thick, 0.2)
    n = max(int(np.ceil(length / 1.2)) + 1, 2)
    index = np.clip(at + np.linspace(-length / 2, length / 2, n), 0, len(line) - 1)
    centre = np.stack([np.interp(index, np.arange(len(line)), line[:, i]) for i in range(3)], axis=1)
    tangent = unit(line[min(at + 2, len(line) - 1)] - line[max(at - 2, 0)])
    side = np.cross(tangent, rng.normal(size=3))
    offset = unit(side) * max(radius - 0.5 * thick, 0.3)
    wobble = rng.normal(0, 0.12 * thick, (n, 3))
    return Deposit(
        kind=artery,
        points=centre + offset + wobble,
        radii=thick * np.clip(rng.normal(1, 0.13, n), 0.65, 1.35),
        hu=hu,
    )


def sample_distractors(
    rng: np.random.Generator,
    heart: Heart,
    aorta: tuple[Points, Points],
    airways: tuple[tuple[Points, Points], ...],
    target: float,
) -> tuple[Deposit, ...]:
    """Calcium of aorta, valves, lymph nodes and bronchi; more of it where there is coronary calcium.

    How often each is drawn is chosen for training, and oftener than in patients.

    Args:
        rng: Source of randomness.
        heart: The heart.
        aorta: Centreline and radii.
        airways: Centrelines and radii of windpipe and bronchi.
        target: The intended coronary score.
    """
    out: list[Deposit] = []
    line, radii = aorta
    burden = 0.6 + 0.35 * np.log10(1 + target)
    for _ in range(rng.poisson(2.2 * burden)):
        i = int(rng.integers(1, len(line) - 1))
        u, v = across(line[i + 1] - line[i - 1])
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.1, 1.2), 7)
        ring = line[i] + (radii[i] - 0.6) * (np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v)
        beads = rng.uniform(0.5, 1.5) * np.clip(rng.normal(1, 0.25, 7), 0.4, 1.6)
        out.append(
            Deposit(
                kind="aorta",
                points=ring + rng.normal(0, 0.4, ring.shape),
                radii=beads,
                hu=float(rng.uniform(250, 1100)),
            )
        )
    if rng.random() < 0.13 * burden:
        centre = line[2]
        u, v = across(line[4] - line[0])
        for _ in range(int(rng.integers(1, 5))):
            turn = rng.uniform(0, 2 * np.pi)
            spoke = np.linspace(0.2, 0.8, 4)[:, None] * radii[2] * (np.cos(turn) * u + np.sin(turn) * v)
            out.append(
                Deposit(
                    kind="aortic valve",
                    points=centre + spoke + rng.normal(0, 0.6, spoke.shape),
                    radii=rng.uniform(0.5, 1.4, 4),
                    hu=float(rng.uniform(250, 1000)),
                )
            )
    if rng.random() < 0.09 * burden:
        apex, right, inferior = heart.axes
        angle = np.linspace(0, rng.uniform(0.5, 2.4), 10) + rng.uniform(0.3, 2.2)
        ring = 17 * (np.cos(angle)[:, None] * right + np.sin(angle)[:, None] * inferior)
        out.append(
            Deposit(
                kind="mitral annulus",
                points=heart.origin - 15 * right - 2 * apex + ring,
                radii=rng.uniform(0.7, 2.3) * np.clip(rng.normal(1, 0.2, 10), 0.5, 1.5),
                hu=float(rng.uniform(300, 1300)),
            )
        )
    for _ in range(rng.poisson(0.7)):
        branch, width = airways[int(rng.integers(0, len(airways)))]
        i = int(rng.integers(0, len(branch)))
        centre = branch[i] + unit(rng.normal(size=3)) * (width[i] + rng.uniform(4, 9))
        out.append(
            Deposit(
                kind="lymph node",
                points=centre + rng.normal(0, 1.8, (5, 3)),
                radii=rng.uniform(0.8, 2.6, 5),
                hu=float(rng.uniform(250, 1000)),
            )
        )
    if rng.random() < 0.5:
        for branch, width in airways[:3]:
            for i in range(1, len(branch) - 1, 2):
                if rng.random() < 0.5:
                    u, v = across(branch[i + 1] - branch[i - 1])
                    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.3, 1.5), 5)
                    ring = branch[i] + (width[i] + 1.0) * (
                        np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v
                    )
                    out.append(
                        Deposit(
                            kind="cartilage",
                            points=ring,
                            radii=np.full(5, rng.uniform(0.5, 0.8)),
                            hu=float(rng.uniform(180, 450)),
                        )
                    )
    return tuple(out)


def unit(v: Points) -> Points:
    """The direction of a vector (3,)."""
    out: Points = v / max(float(np.linalg.norm(v)), 1e-9)
    return out


def across(direction: Points) -> tuple[Points, Points]:
    """Two unit vectors at right angles to a direction and to each other."""
    t = unit(np.asarray(direction, dtype=np.float64))
    u = unit(np.cross(t, np.array([0.0, 0.0, 1.0]) if abs(t[2]) < 0.9 else np.array([1.0, 0.0, 0.0])))
    return u, np.cross(t, u)
