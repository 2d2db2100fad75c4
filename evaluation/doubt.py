"""Whether a network's certainty and the interval of its scores hold, and an interval measured anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..pipeline.doubt import Interval
from ..stats.agreement import Estimate, rate
from .cases import CaseResult

LEVEL = 0.9
"""Share of scans whose true score an interval shall hold."""
OFFSET = 20.0
"""Points added to both scores before their ratio is taken; chosen: above it errors grow with the score."""


@dataclass(frozen=True, kw_only=True)
class SureRate:
    """Of the lesions counted with a certainty, how many are calcium.

    Attributes:
        certainty: The percentage that the network's probability reached in them (`imaging.labels.SURENESS`).
        lesions, true: How many were counted, and share a voxel with the true mask.
        share: true / lesions, whole patients resampled.
    """

    certainty: int
    lesions: int
    true: int
    share: Estimate


def sure_rates(cases: Sequence[CaseResult]) -> tuple[SureRate, ...]:
    """By certainty, ascending."""
    own = [(lesion, c.patient) for c in cases for lesion in c.counted or ()]
    rows = []
    for certainty in sorted({x.certainty for x, _ in own}):
        hits = [x.true for x, _ in own if x.certainty == certainty]
        whose = [patient for x, patient in own if x.certainty == certainty]
        rows.append(
            SureRate(certainty=certainty, lesions=len(hits), true=sum(hits), share=rate(hits, patients=whose))
        )
    return tuple(rows)


def coverage(cases: Sequence[CaseResult]) -> Estimate:
    """Share of the scans with an interval whose true score lies in it."""
    judged = [
        (*c.interval, c.true_score, c.patient)
        for c in cases
        if c.interval is not None and c.true_score is not None
    ]
    # ends are rounded to a tenth of a point
    hits = [low - 0.05 <= true <= high + 0.05 for low, high, true, _ in judged]
    return rate(hits, patients=[patient for *_, patient in judged])


def measured_interval(
    cases: Sequence[CaseResult], *, rule: str, measured_on: str, level: float = LEVEL, offset: float = OFFSET
) -> Interval | None:
    """The interval that holds for these scans: by split conformal prediction with log ratios as scores [1].

    Each end leaves out (1 - level) / 2 of scans like these, as far as their number allows that to be said.

    Args:
        cases: Scored ones count; they should be like those that the calcium network was trained on, as others
            get no interval.
        rule, measured_on, level, offset: As in `Interval`.

    Returns:
        None of too few scans: each end needs one to leave out, 19 at 0.9.

    References:
        [1] Lei et al., Distribution-free predictive inference for regression. JASA 2018;113:1094,
            doi:10.1080/01621459.2017.1307116.
    """
    known = [(c.true_score, c.score) for c in cases if c.score is not None and c.true_score is not None]
    ratios = np.sort([np.log((true + offset) / (ours + offset)) for true, ours in known])
    outside = int((len(ratios) + 1) * (1 - level) / 2 + 1e-9)
    if outside < 1:
        return None
    return Interval(
        level=level,
        rule=rule,
        offset=offset,
        lowest=float(ratios[outside - 1]),
        highest=float(ratios[-outside]),
        measured_on=measured_on,
    )
