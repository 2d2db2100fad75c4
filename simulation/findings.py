"""Disease and degeneration around the heart: what a lung-screening scan shows beside calcium.

The shares are chosen for variety, near or above what screening finds, except where a source is named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .body import Body, stream
from .heart import Heart
from .shapes import Points
from .vessels import Vessels

NODULE_SHARE = 0.27
"""Share with non-calcified nodules of 4 mm and more: 27.3 % in the first round of the National Lung
Screening Trial (N Engl J Med 2011;365:395)."""
CONSOLIDATION_SHARE = 0.1
"""Share with consolidation or collapse, often beside the heart."""
PLEURAL_SHARE = 0.05
"""Share with fluid behind a lung."""
MORE_FLUID_SHARE, MORE_MASS_SHARE = 0.25, 0.16
"""Added in version 2 of the simulator: fluid behind the lungs, a mass against the heart."""
COLLAPSE_SHARE = 0.35
"""Added in version 3: a collapsed part of a lung against the heart, mostly with dense bands in it. Chosen far
above what patients have: it is what version 3 is for."""
FIBROSIS_SHARE = 0.08
"""Share with scarring under the pleura, worst at the base."""
HERNIA_SHARE = 0.1
"""Share with a hiatal hernia: 9.9 % on non-contrast CT (Kim et al., BMJ Open Gastroenterol
2021;8:e000565)."""
NODES_SHARE = 0.5
"""Share with lymph nodes large enough to be seen at 3 mm."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """An ellipsoid of other tissue: centre and radii (mm), HU, roughness of its surface (mm)."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float
    rough: float


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is diseased.

    Attributes:
        lung: Nodules, consolidation and bullae, painted inside the lungs only.
        nodes: Lymph nodes of the mediastinum.
        pleural: Depth (mm) of the fluid behind the right and left lung, 0 for none.
        fibrosis: 0 (none) to 1.
        hernia: Stomach in the chest, behind the heart: shape, and its HU; None mostly.
        hernia_gas: Share of the hernia's height filled with gas.
        collapse: Collapsed lung against the heart, whose bands are `distractors`; it is one of `lung`, too.
    """

    lung: tuple[Blob, ...]
    nodes: tuple[Blob, ...]
    pleural: tuple[float, float]
    fibrosis: float
    hernia: Blob | None
    hernia_gas: float
    collapse: Blob | None = None


def sample_findings(seed: int, body: Body, heart: Heart, vessels: Vessels) -> Findings:
    """Draw what is diseased in one patient."""
    rng = stream(seed, "findings")
    lung: list[Blob] = []
    if body.emphysema > 0.4:
        for _ in range(int(rng.integers(0, 6))):
            lung.append(_blob(rng, _in_lung(rng, body), (5.0, 25.0), float(rng.uniform(-1000, -970)), 0.5))
    if rng.random() < NODULE_SHARE:
        for _ in range(int(rng.integers(1, 5))):
            radius = float(np.exp(rng.uniform(np.log(2), np.log(15))))
            lung.append(_blob(rng, _in_lung(rng, body), (radius, radius), float(rng.uniform(-50, 55)), 0.6))
    if rng.random() < CONSOLIDATION_SHARE:
        place = _beside(rng, heart) if rng.random() < 0.6 else _in_lung(rng, body)
        lung.append(_blob(rng, place, (10.0, 32.0), float(rng.uniform(-350, 45)), 7.0))
    pleural = rng.uniform(6, 38, 2) * (rng.random(2) < 0.6) * (rng.random() < PLEURAL_SHARE / 0.84)
    nodes = []
    if rng.random() < NODES_SHARE:
        trachea, radii = vessels.airways[0]
        for _ in range(int(rng.integers(1, 6))):
            i = int(rng.integers(len(trachea) // 2, len(trachea)))
            aside = np.append(rng.normal(size=2), rng.normal(0, 0.5))
            centre = trachea[i] + aside / np.linalg.norm(aside) * (radii[i] + rng.uniform(5, 12))
            nodes.append(_blob(rng, centre, (2.5, 8.0), float(rng.uniform(15, 60)), 0.0))
    hernia = _hernia(rng, vessels) if rng.random() < HERNIA_SHARE else None
    return Findings(
        lung=tuple(lung),
        nodes=tuple(nodes),
        pleural=(float(pleural[0]), float(pleural[1])),
        fibrosis=float(rng.uniform(0.2, 1.0)) if rng.random() < FIBROSIS_SHARE else 0.0,
        hernia=hernia,
        hernia_gas=float(rng.uniform(0, 0.8)),
    )


def with_more_beside(rng: np.random.Generator, findings: Findings, heart: Heart) -> Findings:
    """Findings with fluid behind a lung or a dense mass against the heart added to more of them.

    Version 2 of the simulator: a quarter more have fluid and a sixth a tumour or collapsed lung (chosen).
    """
    if rng.random() < MORE_FLUID_SHARE:
        left, right = (
            float(max(own, more)) for own, more in zip(findings.pleural, rng.uniform(0, 45, 2), strict=True)
        )
        findings = replace(findings, pleural=(left, right))
    if rng.random() < MORE_MASS_SHARE:
        mass = _blob(rng, _beside(rng, heart), (10.0, 38.0), float(rng.uniform(-20, 55)), 5.0)
        findings = replace(findings, lung=(*findings.lung, mass))
    return findings


def with_collapse(rng: np.random.Generator, findings: Findings, heart: Heart) -> Findings:
    """Findings with a collapsed part of a lung beside and behind the heart added to `COLLAPSE_SHARE` of them.

    Collapsed lung is as dense as muscle and has no fat before the heart: what is bright in it lies where an
    artery could. Version 3 of the simulator.
    """
    if rng.random() >= COLLAPSE_SHARE:
        return findings
    angle = rng.uniform(0.0, 1.2)
    if rng.random() < 0.35:
        angle = np.pi - angle
    ray = np.array([[np.cos(angle), np.sin(angle), rng.uniform(-0.6, 0.1)]])
    place = heart.surface(heart.origin[None], ray / np.linalg.norm(ray), 0.0)[0]
    collapse = _blob(rng, place, (16.0, 40.0), float(rng.uniform(25, 75)), 4.0)
    return replace(findings, lung=(*findings.lung, collapse), collapse=collapse)


def _blob(
    rng: np.random.Generator, centre: Points, size: tuple[float, float], hu: float, rough: float
) -> Blob:
    r = rng.uniform(*size) * rng.uniform(0.75, 1.3, 3)
    return Blob(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        radii=(float(r[0]), float(r[1]), float(r[2])),
        hu=hu,
        rough=rough,
    )


def _in_lung(rng: np.random.Generator, body: Body) -> Points:
    z = rng.uniform(10, 0.85 * body.apex)
    angle, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.95)
    half = 0.5 * (body.back(z) - body.front(z))
    narrow = np.sqrt(1 - (z / body.apex) ** body.rate)
    x = rng.choice([-1, 1]) * body.half_width * narrow * (0.25 + 0.75 * abs(out * np.cos(angle)))
    y = 0.5 * (body.back(z) + body.front(z)) + half * narrow * out * np.sin(angle)
    return np.array([x, y, z])


def _beside(rng: np.random.Generator, heart: Heart) -> Points:
    """A point on the heart's surface facing a lung."""
    angle = rng.uniform(-0.9, 0.9) + np.pi * (rng.random() < 0.5)
    ray = np.array([[np.cos(angle), np.sin(angle), rng.uniform(-0.4, 0.2)]])
    found: Points = heart.surface(heart.origin[None], ray / np.linalg.norm(ray), 0.0)[0]
    return found


def _hernia(rng: np.random.Generator, vessels: Vessels) -> Blob:
    """Beside the lower oesophagus, to whose end it hangs."""
    path, _ = vessels.oesophagus
    at = path[int(np.argmin(np.abs(path[:, 2] - rng.uniform(0, 30))))]
    r = float(rng.uniform(10, 30))
    centre = at + np.array([rng.normal(0, 8), 0.0, 0.0])
    return Blob(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        radii=(r * 1.2, r * 0.8, r * 1.1),
        hu=float(rng.uniform(5, 45)),
        rough=1.0,
    )
