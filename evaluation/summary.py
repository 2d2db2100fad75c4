"""From evaluated cases to statistics: of all, of strata, of lesions; each with its interval and its n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..stats.agreement import Agreement, Estimate, Statistic, agreement, bootstrap, mean, median, rate, ratio
from .cases import CaseResult, Evaluation, TrueLesion

SIZES_MM3 = (5.0, 20.0, 100.0)
"""Limits of the lesion sizes, mm³; chosen: a few voxels, small, moderate, large."""
NOISE_HU = (15.0, 25.0, 40.0)
"""Limits of the noise strata, HU; chosen around 20 HU, the usual aim of a calcium scan."""
THICKNESS_MM = (1.5, 2.5)
"""Limits of the slice thickness strata, mm; chosen."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """The scored cases that share a property.

    Attributes:
        by, value: The property and its value, in words.
        n: Scored cases.
        statistics: A part of those of `Summary`.
    """

    by: str
    value: str
    n: int
    statistics: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class LesionRate:
    """How many of the true lesions of a kind were found.

    Attributes:
        by, value: ``"artery"`` or ``"volume"``, and which.
        found, total: Lesions.
        sensitivity: found / total, whole patients resampled.
    """

    by: str
    value: str
    found: int
    total: int
    sensitivity: Estimate


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation amounts to; only scored cases go in, each statistic says how many.

    Attributes:
        statistics: ``heart_dice_mean``, ``_median``, ``_min``; ``heart_hd95_median``, ``_max``, mm;
            ``centre_error_median``, ``_max``, mm; ``crop_error_median``, ``_max``, mm;
            ``calcium_dice_mean`` and ``counted_dice_mean`` (scans with true calcium only);
            ``lesion_sensitivity``; ``false_lesions_per_scan``; and all of `stats.agreement`.
        agreement: Of the scores.
        strata: By kernel, noise, thickness, tube voltage and whether the scan lies in the domain of the
            weights, where cases differ in them.
        lesions: By artery where it is known, and by size.
    """

    statistics: Mapping[str, Estimate]
    agreement: Agreement
    strata: tuple[Stratum, ...]
    lesions: tuple[LesionRate, ...]


def summarise(evaluation: Evaluation) -> Summary:
    """All statistics of an evaluation."""
    cases = evaluation.scored
    scores = _agreement(cases)
    return Summary(
        statistics={**_masks(cases), **scores.estimates},
        agreement=scores,
        strata=tuple(_strata(cases)),
        lesions=tuple(_lesions(cases)),
    )


def _values(cases: Sequence[CaseResult], name: str) -> tuple[list[float], list[str]]:
    """The values that are known, and whose they are."""
    known = [(float(v), c.patient) for c in cases if (v := getattr(c, name)) is not None]
    return [v for v, _ in known], [p for _, p in known]


def _of(cases: Sequence[CaseResult], name: str, statistic: Statistic) -> Estimate:
    values, patients = _values(cases, name)
    return bootstrap(statistic, values, patients=patients)


def _extreme(cases: Sequence[CaseResult], name: str, choose: Callable[[list[float]], float]) -> Estimate:
    """A minimum or maximum: without an interval, as a resample never goes beyond it."""
    values, _ = _values(cases, name)
    return Estimate(value=choose(values) if values else None, n=len(values))


def _masks(cases: Sequence[CaseResult]) -> dict[str, Estimate]:
    with_calcium = [c for c in cases if c.true_score]
    judged = [c for c in cases if c.false_lesions is not None]
    patients = [c.patient for c in judged]
    return {
        "heart_dice_mean": _of(cases, "heart_dice", mean),
        "heart_dice_median": _of(cases, "heart_dice", median),
        "heart_dice_min": _extreme(cases, "heart_dice", min),
        "heart_hd95_median": _of(cases, "heart_hd95_mm", median),
        "heart_hd95_max": _extreme(cases, "heart_hd95_mm", max),
        "centre_error_median": _of(cases, "centre_error_mm", median),
        "centre_error_max": _extreme(cases, "centre_error_mm", max),
        "crop_error_median": _of(cases, "crop_error_mm", median),
        "crop_error_max": _extreme(cases, "crop_error_mm", max),
        "calcium_dice_mean": _of(with_calcium, "calcium_dice", mean),
        "counted_dice_mean": _of(with_calcium, "counted_dice", mean),
        "lesion_sensitivity": _lesion_rate(judged, "", "", lambda lesion: "").sensitivity,
        "false_lesions_per_scan": bootstrap(
            mean, [len(c.false_lesions or ()) for c in judged], patients=patients
        ),
    }


def _agreement(cases: Sequence[CaseResult]) -> Agreement:
    scored = [c for c in cases if c.score is not None and c.true_score is not None]
    true, ours = [c.true_score for c in scored], [c.score for c in scored]
    return agreement(np.array(true, float), np.array(ours, float), patients=[c.patient for c in scored])


def _between(limits: Sequence[float], unit: str) -> list[str]:
    """The ranges between limits in words, upper limits included."""
    ends = [f"{limit:g}" for limit in limits]
    middle = [f"above {a} to {b} {unit}" for a, b in pairwise(ends)]
    return [f"up to {ends[0]} {unit}", *middle, f"above {ends[-1]} {unit}"]


def _range(value: float | None, limits: Sequence[float], unit: str) -> str:
    if value is None:
        return "unknown"
    return _between(limits, unit)[int(np.searchsorted(limits, value, side="left"))]


STRATA: dict[str, Callable[[CaseResult], str]] = {
    "kernel type": lambda c: "unknown" if c.sharp is None else "sharp" if c.sharp else "soft",
    "kernel": lambda c: c.kernel or "unknown",
    "noise": lambda c: _range(c.noise_hu, NOISE_HU, "HU"),
    "thickness": lambda c: _range(c.thickness_mm or c.increment_mm, THICKNESS_MM, "mm"),
    "tube voltage": lambda c: "unknown" if c.kvp is None else f"{c.kvp:g} kV",
    "weights' domain": lambda c: (
        "unknown"
        if c.off_domain is None or "unknown" in c.off_domain
        else "outside"
        if c.off_domain
        else "inside"
    ),
}
"""Property to its value in a case."""

_ORDER = {
    text: rank
    for limits, unit in ((NOISE_HU, "HU"), (THICKNESS_MM, "mm"), (SIZES_MM3, "mm³"))
    for rank, text in enumerate(_between(limits, unit))
}


def _strata(cases: Sequence[CaseResult]) -> list[Stratum]:
    found = []
    for by, value_of in STRATA.items():
        values = sorted({value_of(c) for c in cases}, key=lambda v: (_ORDER.get(v, 0), v))
        for value in values if len(values) > 1 else ():
            own = [c for c in cases if value_of(c) == value]
            statistics = {**_masks(own), **_agreement(own).estimates}
            found.append(Stratum(by=by, value=value, n=len(own), statistics=statistics))
    return found


LESION_KINDS: dict[str, Callable[[TrueLesion], str]] = {
    "artery": lambda lesion: lesion.artery,
    "volume": lambda lesion: _range(lesion.volume_mm3, SIZES_MM3, "mm³"),
}
"""Property to its value in a lesion, "" unknown."""


def _lesions(cases: Sequence[CaseResult]) -> list[LesionRate]:
    rows = []
    for by, value_of in LESION_KINDS.items():
        values = {value for c in cases for lesion in c.lesions if (value := value_of(lesion))}
        for value in sorted(values, key=lambda v: (_ORDER.get(v, 0), v)):
            rows.append(_lesion_rate(cases, by, value, value_of))
    return rows


def _lesion_rate(
    cases: Sequence[CaseResult], by: str, value: str, value_of: Callable[[TrueLesion], str]
) -> LesionRate:
    hits = [[lesion.found for lesion in c.lesions if value_of(lesion) == value] for c in cases]
    found = np.array([sum(h) for h in hits if h], dtype=float)
    total = np.array([len(h) for h in hits if h], dtype=float)
    if len(total) and found.sum() in (0, total.sum()):
        sensitivity = rate(np.full(int(total.sum()), found.sum() > 0))
    else:
        holders = [c.patient for c, h in zip(cases, hits, strict=True) if h]
        sensitivity = replace(bootstrap(ratio, found, total, patients=holders), n=int(total.sum()))
    return LesionRate(
        by=by, value=value, found=int(found.sum()), total=int(total.sum()), sensitivity=sensitivity
    )


def to_dict(summary: Summary) -> dict[str, Any]:
    """JSON types only."""
    return {
        "statistics": {name: asdict(e) for name, e in summary.statistics.items()},
        "confusion": summary.agreement.confusion.tolist(),
        "strata": [asdict(s) for s in summary.strata],
        "lesions": [asdict(row) for row in summary.lesions],
    }
