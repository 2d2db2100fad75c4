"""What else is bright in a chest: devices of metal, and calcium that no plaque explains.

How often each is drawn is chosen for training, most of it oftener than in patients, so that a network
meets enough of what it must not count. A stent is no calcium here: readers leave stented arteries out of
the score, since metal cannot be told from calcium around it.
"""

from __future__ import annotations

import numpy as np

from .anatomy import Anatomy, sample_anatomy, stream
from .coronary import Deposit, across, unit
from .shapes import Points, smooth_curve

RARE = frozenset({"stent", "bypass clip", "pericardium"})
"""What is hardest to tell from coronary calcium, and rare: a training may want more of it."""
ROOT_SHARE = 0.25
"""Share with calcium of the aortic root in version 2 of the simulator (chosen)."""
BANDS_SHARE = 0.8
"""Share of collapsed lungs with dense bands in version 3 (chosen)."""
PIECE = 12
"""Points per piece of a long thing: short pieces have small boxes."""


def all_distractors(anatomy: Anatomy) -> tuple[Deposit, ...]:
    """Everything bright that is not coronary calcium: `anatomy.distractors` and what is drawn here."""
    rng = stream(anatomy.seed, "devices")
    return (
        *anatomy.distractors,
        *_stents(rng, anatomy),
        *_leads(rng, anatomy),
        *_bypass(rng, anatomy),
        *_pericardium(rng, anatomy),
        *_granulomas(rng, anatomy),
        *_oesophagus(rng, anatomy),
        *(_root(stream(anatomy.seed, "root"), anatomy) if anatomy.version > 1 else ()),
        *_bands(stream(anatomy.seed, "bands"), anatomy),
    )


def has_rare(seed: int, version: int = 1) -> bool:
    """Whether the simulated patient of this seed has something of `RARE`."""
    return any(x.kind in RARE for x in all_distractors(sample_anatomy(seed, version)))


def _pieces(kind: str, points: Points, radius: float, hu: float) -> list[Deposit]:
    return [
        Deposit(
            kind=kind,
            points=points[i : i + PIECE + 1],
            radii=np.full(len(points[i : i + PIECE + 1]), radius),
            hu=hu,
        )
        for i in range(0, max(len(points) - 1, 1), PIECE)
    ]


def _stents(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """One to three tubes of wire mesh in arteries; two helices of opposite turn each."""
    present = rng.random() < (0.08 if anatomy.target_score > 0 else 0.01)
    out: list[Deposit] = []
    for _ in range(int(rng.integers(1, 4)) if present else 0):
        line = anatomy.coronaries[str(rng.choice(["LAD", "LCX", "RCA"], p=[0.45, 0.2, 0.35]))]
        start = int(rng.uniform(0.03, 0.4) * len(line))
        stop = min(start + int(rng.integers(10, 31)), len(line) - 1)
        turns = (stop - start) / 1.4  # one turn every 1.4 mm
        t = np.linspace(0, 1, max(int(8 * turns), 2))
        where = start + t * (stop - start)
        axis = np.stack([np.interp(where, np.arange(len(line)), line[:, i]) for i in range(3)], axis=1)
        u, v = across(line[stop] - line[start])
        for turn in (1, -1):
            angle = turn * 2 * np.pi * turns * t[:, None]
            mesh = axis + 0.95 * anatomy.coronary_radius * (np.cos(angle) * u + np.sin(angle) * v)
            out += _pieces("stent", mesh, 0.19, 6000.0)
    return out


def _leads(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Pacemaker or defibrillator leads through the superior vena cava, with their usual three ends."""
    if rng.random() >= 0.07:
        return []
    heart, vessels = anatomy.heart, anatomy.vessels
    o, (_, right, inferior) = heart.origin, heart.axes
    cava = vessels.superior_cava[0][::-1]
    atrium, ventricle = o + heart.atria[0][0], heart.ventricles[1]
    tip = o + (ventricle[0] + ventricle[1] * [0.75, 0.1, 0.25]) @ heart.axes
    floor, appendage, sinus = (atrium + np.array(d) for d in ((0, 0, -6), (6, -16, 8), (10, 10, -12)))
    ends = {
        "right ventricle": [floor, o + 18 * right + 4 * inferior, tip],
        "right atrium": [floor, appendage],
        "coronary sinus": [sinus, *anatomy.coronaries["LCX"][::-20][:4]],
    }
    names = [n for n, p in zip(ends, (0.95, 0.55, 0.35), strict=True) if rng.random() < p]
    out: list[Deposit] = []
    for name in names or ["right ventricle"]:
        knots = np.vstack([cava[:: max(len(cava) // 3, 1)], *ends[name]])
        curve = smooth_curve(knots + rng.normal(0, 1.5, knots.shape), 3.0)
        out += _pieces("pacemaker lead", curve, float(rng.uniform(0.6, 1.0)), 8000.0)
        if name == "right ventricle" and rng.random() < 0.4:  # the shock coil of a defibrillator
            out += _pieces("pacemaker lead", curve[-14:-3], 1.4, 9000.0)
    return out


def _bypass(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Wires around the breast bone, mostly with clips along a graft to the LAD."""
    if rng.random() >= 0.07:
        return []
    body = anatomy.body
    out: list[Deposit] = []
    for z in np.arange(30.0, 0.82 * body.apex, 26.0):
        angle = np.linspace(0, 2 * np.pi, 16)
        front = body.front(z) - 6
        loop = np.stack([9 * np.cos(angle), front + 8 * np.sin(angle), np.full(16, z)], axis=1)
        out += _pieces("sternal wire", loop + rng.normal(0, 0.3, loop.shape), 0.5, 9000.0)
    if rng.random() < 0.6:
        lad = anatomy.coronaries["LAD"]
        behind = [
            (22.0, body.front(0.75 * body.apex) + 4, 0.75 * body.apex),
            (26.0, body.front(70.0) + 8, 70.0),
        ]
        graft = smooth_curve(np.vstack([behind, lad[len(lad) // 2]]), 2.0)
        for _ in range(int(rng.integers(3, 12))):
            at = graft[int(rng.integers(0, len(graft)))] + rng.normal(0, 2, 3)
            clip = at + np.linspace(-1.5, 1.5, 3)[:, None] * unit(rng.normal(size=3))
            out += _pieces("bypass clip", clip, 0.6, 8000.0)
    return out


def _pericardium(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Plates of calcium on the sac."""
    out: list[Deposit] = []
    for _ in range(int(rng.integers(1, 5)) if rng.random() < 0.03 else 0):
        u, v = across(rng.normal(size=3))
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.2, 1.0), 10)
        rays = np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v
        plate = anatomy.heart.surface(np.repeat(anatomy.heart.origin[None], 10, axis=0), rays, 0.5)
        radii = rng.uniform(0.6, 1.6) * np.clip(rng.normal(1, 0.2, 10), 0.5, 1.5)
        out.append(Deposit(kind="pericardium", points=plate, radii=radii, hu=float(rng.uniform(300, 1100))))
    return out


def _root(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Calcium of the aortic root's wall and ring, beside where the coronary arteries begin."""
    if rng.random() >= ROOT_SHARE:
        return []
    line, radii = anatomy.vessels.aorta
    out: list[Deposit] = []
    for _ in range(int(rng.integers(1, 5))):
        i = int(rng.integers(1, 6))
        u, v = across(line[i + 1] - line[i - 1])
        angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, rng.uniform(0.2, 1.5), 9)[:, None]
        ring = line[i] + rng.uniform(0.85, 1.0) * radii[i] * (np.cos(angle) * u + np.sin(angle) * v)
        beads = rng.uniform(0.5, 2.2) * np.clip(rng.normal(1, 0.3, 9), 0.4, 1.6)
        hu = float(rng.uniform(250, 1300))
        out.append(Deposit(kind="aorta", points=ring + rng.normal(0, 0.5, ring.shape), radii=beads, hu=hu))
    return out


def _bands(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Dense bands in collapsed lung along the heart: calcified bronchi, vessels and scars."""
    collapse = anatomy.findings.collapse
    if collapse is None or rng.random() >= BANDS_SHARE:
        return []
    heart, out = anatomy.heart, []
    middle = np.array(collapse.centre)
    for _ in range(int(rng.integers(1, 6))):
        n = int(rng.integers(4, 14))
        ends = middle + rng.normal(0, 0.45, (2, 3)) * collapse.radii
        line = ends[0] + np.linspace(0, 1, n)[:, None] * (ends[1] - ends[0])
        rays = line - heart.origin
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        wall = heart.surface(np.repeat(heart.origin[None], n, axis=0), rays, 0.0)
        outside = np.interp(np.linspace(0, 1, n), [0, 1], rng.uniform(0.5, 12, 2))[:, None]
        points = wall + outside * rays + rng.normal(0, 0.4, (n, 3))
        radii = rng.uniform(0.4, 1.7) * np.clip(rng.normal(1, 0.3, n), 0.4, 1.6)
        hu = float(rng.uniform(180, 1100))
        out.append(Deposit(kind="collapsed lung", points=points, radii=radii, hu=hu))
    return out


def _granulomas(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Calcified nodules in the lung, some of them beside the heart."""
    out: list[Deposit] = []
    for _ in range(rng.poisson(0.2)):
        ray = unit(np.array([rng.choice([-1.0, 1.0]), rng.normal(0, 0.6), rng.normal(0, 0.5)]))
        at = anatomy.heart.surface(anatomy.heart.origin[None], ray[None], 0.0)[0] + rng.uniform(4, 30) * ray
        out.append(
            Deposit(
                kind="granuloma",
                points=at + rng.normal(0, 0.6, (4, 3)),
                radii=rng.uniform(0.8, 2.8) * rng.uniform(0.7, 1.2, 4),
                hu=float(rng.uniform(250, 1200)),
            )
        )
    return out


def _oesophagus(rng: np.random.Generator, anatomy: Anatomy) -> list[Deposit]:
    """Something swallowed behind the heart, a little denser than blood."""
    if rng.random() >= 0.06:
        return []
    line = anatomy.vessels.oesophagus[0]
    start = int(rng.integers(len(line) // 3, max(len(line) - 6, len(line) // 3 + 1)))
    return _pieces(
        "oesophagus", line[start : start + 5], float(rng.uniform(1.5, 4)), float(rng.uniform(80, 260))
    )
