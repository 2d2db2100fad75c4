"""One patient's anatomy: everything drawn from the seed, nothing that depends on a grid.

The parts are in `body`, `heart`, `vessels`, `lungs`, `coronary` and `findings`; here they are put together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .arteries import sample_appendages, sample_arteries, sample_left_main, sample_plaques, sample_sleeves
from .body import Body, sample_body, sample_frame, stream
from .coronary import Deposit, sample_coronaries, sample_distractors, sample_lesions
from .findings import Findings, sample_findings, with_collapse, with_more_beside
from .heart import DEEP_CREASES_MM, Heart, sample_heart
from .lungs import VesselTree, sample_vessels
from .shapes import Frame, Points, Waves
from .vessels import Vessels, sample_great_vessels

__all__ = ["Anatomy", "place_heart", "sample_anatomy", "sample_body", "sample_frame", "stream"]

VERSIONS = (1, 2, 3, 4, 5)
"""Versions of the simulator. A version never changes what it draws; a new one gets a new number."""
CARDIOMEGALY_SHARE = 0.08
"""Share of clearly enlarged hearts (chosen)."""
SHIFT_SHARE = 0.05
"""Share with the mediastinum pulled or pushed aside by 12 to 25 mm (chosen)."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Everything about one patient except the scan.

    Attributes:
        frame: Where and how the patient lies on the table.
        version: Of the simulator: 1, or 2 with `arteries`, more disease beside the heart and motion as it is
            without gating; 3 is 2 with collapsed lung against the heart; 4 is 3 with a left main artery as
            long as patients have it; 5 is 4 with arteries deep in their grooves, and the appendages of the
            atria over them.
        coronaries: Centreline (n, 3) of ``LM``, ``LAD``, ``LCX``, ``RCA``; in version 2 of branches too.
        sleeves: Radius (n,) of the fat around each of their points, mm; empty in version 1.
        lesions: Coronary calcium. distractors: calcium elsewhere, and metal.
        findings: Disease of lungs and mediastinum.
        texture: Fine structure of the lungs; mottle: slow variation inside soft tissue. Unit deviation.
    """

    seed: int
    version: int
    frame: Frame
    body: Body
    heart: Heart
    heart_centre: Points
    vessels: Vessels
    findings: Findings
    coronaries: dict[str, Points]
    sleeves: dict[str, Points]
    coronary_radius: float
    lesions: tuple[Deposit, ...]
    distractors: tuple[Deposit, ...]
    target_score: float
    trees: tuple[VesselTree, ...]
    texture: Waves
    mottle: Waves


def place_heart(seed: int, body: Body, size: float, obesity: float) -> tuple[Heart, Points]:
    """The heart in its place: behind the breast bone, on the diaphragm, mostly left; and its centroid."""
    rng = stream(seed, "heart")
    scale = float(0.4 + 0.6 * size + rng.normal(0.0, 0.07) - 0.06 * body.emphysema)
    if rng.random() < CARDIOMEGALY_SHARE:
        scale += rng.uniform(0.1, 0.22)
    scale = float(np.clip(scale, 0.8, 1.3))
    across = rng.normal(14, 7)
    if rng.random() < SHIFT_SHARE:
        across += rng.uniform(12, 25) * rng.choice([-1, 1])
    behind = 33.0  # oesophagus and aorta lie between heart and spine
    for _ in range(3):
        heart = sample_heart(stream(seed, "shape"), size=scale, obesity=obesity, emphysema=body.emphysema)
        points, centroid = heart.inside()
        shift = np.array([across - centroid[0], 0.0, -points[:, 2].min()])
        points = points + shift
        wall = body.front_at(points[:, 0].astype(np.float32), points[:, 2].astype(np.float32))
        forward = float(np.max(wall + body.sternal_gap - points[:, 1]))
        room = float(np.min(body.spine(points[:, 2]) - behind - points[:, 1])) - forward
        if room >= 0:
            break
        scale *= max(1 + room / 110, 0.85)
    shift[1] = forward
    return replace(heart, origin=heart.origin + shift), centroid + shift


def sample_anatomy(seed: int, version: int = 1) -> Anatomy:
    """Draw the whole patient from a seed (about 0.2 s).

    Args:
        seed: The patient.
        version: Of the simulator, one of `VERSIONS`, see `Anatomy`.

    Raises:
        ValueError: There is no such version.
    """
    if version not in VERSIONS:
        raise ValueError(f"the simulator has the versions {', '.join(map(str, VERSIONS))}, not {version}")
    body, size, obesity = sample_body(seed)
    heart, centroid = place_heart(seed, body, size, obesity)
    vessels = sample_great_vessels(seed, heart, body)
    frame = sample_frame(seed)
    radius = float(stream(seed, "calibre").uniform(1.4, 2.1))
    if version == 1:
        coronaries, sleeves = sample_coronaries(stream(seed, "coronary"), heart), {}
        target, lesions = sample_lesions(stream(seed, "lesions"), coronaries, radius)
    else:
        left_main = sample_left_main(stream(seed, "left main")) if version > 3 else None
        deep = version > 4
        if deep:
            heart = replace(heart, creases=DEEP_CREASES_MM)
        coronaries = sample_arteries(stream(seed, "coronary"), heart, left_main=left_main, grooves=deep)
        if deep:
            heart = sample_appendages(stream(seed, "appendages"), heart, coronaries)
            centroid = heart.inside()[1]
        sleeves = sample_sleeves(stream(seed, "sleeves"), coronaries, heart.fat, grooves=deep)
        target, lesions = sample_plaques(stream(seed, "lesions"), coronaries, radius)
    findings = sample_findings(seed, body, heart, vessels)
    if version > 1:
        findings = with_more_beside(stream(seed, "beside"), findings, heart)
    if version > 2:
        findings = with_collapse(stream(seed, "collapse"), findings, heart)
    distractors = sample_distractors(stream(seed, "distract"), heart, vessels.aorta, vessels.airways, target)
    rng = stream(seed, "texture")
    return Anatomy(
        seed=seed,
        version=version,
        frame=frame,
        body=body,
        heart=heart,
        heart_centre=frame.to_lps(centroid),
        vessels=vessels,
        findings=findings,
        coronaries=coronaries,
        sleeves=sleeves,
        coronary_radius=radius,
        lesions=lesions,
        distractors=distractors,
        target_score=target,
        trees=sample_vessels(stream(seed, "lungs"), body, heart.origin),
        texture=Waves.random(rng, count=48, wavelength=(9, 30), sd=1.0),
        mottle=Waves.random(rng, count=24, wavelength=(25, 140), sd=1.0),
    )
