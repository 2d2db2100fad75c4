"""From evaluated cases to statistics: of all, of strata, of lesions; each with its interval and its n."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..imaging.labels import ARTERIES, NOT_SURE
from ..pipeline.doubt import Interval
from ..scoring.grades import cac_drs
from ..stats.agreement import (
    Agreement,
    Estimate,
    Statistic,
    agreement,
    bootstrap,
    confusion,
    exact_rate,
    kappa,
    mean,
    median,
    rate,
    ratio,
    spearman,
)
from ..system.codec import to_plain
from .by_name import EDGE, UNLABELLED
from .cases import CaseResult, Evaluation, TrueLesion
from .doubt import SureRate, coverage, measured_interval, sure_rates

SIZES_MM3 = (5.0, 20.0, 100.0)
"""Limits of the lesion sizes, mm³; chosen: a few voxels, small, moderate, large."""
NOISE_HU = (15.0, 25.0, 40.0)
"""Limits of the noise strata, HU; chosen around 20 HU, the usual aim of a calcium scan."""
THICKNESS_MM = (1.5, 3.5)
"""Limits of the slice thickness strata, mm; chosen: around 1 mm, around 2.5 and 3 mm, 5 mm."""
ARTERY_STRATA = ("thickness", "kernel type")
"""Of `STRATA`, those by which the calcium found in each artery is told."""


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
class ArteryRate:
    """How much of an artery's true calcium was found, in voxels ≥ 130 HU, and what it was called.

    Attributes:
        by, value: A property of the scans and its value, see `ARTERY_STRATA`; "" of all.
        artery: Which.
        scans: That have some.
        found, voxels: Voxels found, of all true ones.
        recall: found / voxels, whole patients resampled.
        named: Of those found in scans whose prediction names arteries, how many.
        right, other, not_sure: Their shares that got the right artery, another one, and none.
    """

    by: str
    value: str
    artery: str
    scans: int
    found: int
    voxels: int
    recall: Estimate
    named: int
    right: float | None
    other: float | None
    not_sure: float | None


@dataclass(frozen=True, kw_only=True)
class WrongRate:
    """What was wrongly counted of a kind, over all scans whose truth names what is not coronary.

    Attributes:
        kind: As of `WronglyCounted`.
        scans: In whose truth it is labelled; of what has no label, all.
        labelled: Voxels ≥ 130 HU that are labelled so; None of what has no label.
        voxels: Wrongly counted.
        score: Points of the score a scan, the mean of all scans.
        most: Points in the scan that has most.
        where: That scan's name; "" where none has any.
    """

    kind: str
    scans: int
    labelled: int | None
    voxels: int
    score: Estimate
    most: float
    where: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an evaluation amounts to; only scored cases go in, each statistic says how many.

    Attributes:
        statistics: ``heart_dice_mean``, ``_median``, ``_min``; ``heart_hd95_median``, ``_max``, mm;
            ``centre_error_median``, ``_max``, mm; ``crop_error_median``, ``_max``, mm;
            ``calcium_dice_mean`` and ``counted_dice_mean`` (scans with true calcium only);
            ``lesion_sensitivity``; ``false_lesions_per_scan``; ``interval_coverage``: see `doubt.coverage`;
            all of `stats.agreement`; ``cac_drs_a_kappa_linear``; and of scans whose truth names the artery of
            all calcium and whose prediction names arteries ``artery_right``, ``_other`` and ``_not_sure``,
            shares of the score that is true calcium, ``n_right``, see `by_name.ArteryScores`, of scans with
            true calcium, and ``spearman_lm`` and so on.
        agreement: Of the scores.
        strata: By kernel, noise, thickness, tube voltage and whether the scan lies in the domain of the
            weights, where cases differ in them.
        lesions: By artery where it is known, and by size.
        arteries: Calcium found by artery, where truths name arteries: of all, and by `ARTERY_STRATA`.
        wrong: What was wrongly counted, by kind, where truths name kinds.
        sure: Counted lesions by the network's certainty, where it says it.
        interval: That holds for the scores of these scans; None of too few.
    """

    statistics: Mapping[str, Estimate]
    agreement: Agreement
    strata: tuple[Stratum, ...]
    lesions: tuple[LesionRate, ...]
    arteries: tuple[ArteryRate, ...] = ()
    wrong: tuple[WrongRate, ...] = ()
    sure: tuple[SureRate, ...] = ()
    interval: Interval | None = None


def summarise(evaluation: Evaluation) -> Summary:
    """All statistics of an evaluation."""
    cases = evaluation.scored
    scores = _agreement(cases)
    return Summary(
        statistics={
            **_masks(cases),
            **scores.estimates,
            "interval_coverage": coverage(cases),
            "cac_drs_a_kappa_linear": _categories(cases),
            **_names(cases),
        },
        agreement=scores,
        strata=tuple(_strata(cases)),
        lesions=tuple(_lesions(cases)),
        arteries=tuple(_arteries(cases)),
        wrong=tuple(_wrong(cases)),
        sure=sure_rates(cases),
        interval=measured_interval(cases, rule=evaluation.rule, measured_on=f"{len(cases)} scans"),
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


def _categories(cases: Sequence[CaseResult]) -> Estimate:
    """Agreement in the category A of CAC-DRS, linear weights."""
    scored = [(c.true_score, c.score, c.patient) for c in cases]
    known = [(cac_drs(t).a, cac_drs(s).a, p) for t, s, p in scored if t is not None and s is not None]
    true, ours, patients = ([one[i] for one in known] for i in range(3))
    return bootstrap(lambda x, y: kappa(confusion(x, y, 4), "linear"), true, ours, patients=patients)


def _names(cases: Sequence[CaseResult]) -> dict[str, Estimate]:
    """How right names are, weighted as the score is."""
    named = [(a, a.ours, c.patient) for c in cases if (a := c.artery_scores) and a.ours is not None]
    patients = [patient for *_, patient in named]
    whole = [a.right + a.other + a.not_sure for a, *_ in named]
    found = {}
    for name in ("right", "other", "not_sure"):
        part = [float(getattr(a, name)) for a, *_ in named]
        found[f"artery_{name}"] = bootstrap(ratio, part, whole, patients=patients)
    counted = [(a.n_right, patient) for a, _, patient in named if any(a.true.values())]
    found["n_right"] = rate(np.array([n for n, _ in counted], bool), patients=[p for _, p in counted])
    for label in ARTERIES:
        true = [a.true[label.name] for a, *_ in named]
        ours = [scores[label.name] for _, scores, _ in named]
        found[f"spearman_{label.name.lower()}"] = bootstrap(spearman, true, ours, patients=patients)
    return found


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


def _parted(cases: Sequence[CaseResult], by: str) -> list[tuple[str, list[CaseResult]]]:
    """The cases by the value of one of `STRATA`, in order; nothing where all are alike."""
    values = sorted({STRATA[by](c) for c in cases}, key=lambda v: (_ORDER.get(v, 0), v))
    return [(v, [c for c in cases if STRATA[by](c) == v]) for v in values] if len(values) > 1 else []


def _strata(cases: Sequence[CaseResult]) -> list[Stratum]:
    found = []
    for by in STRATA:
        for value, own in _parted(cases, by):
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
        if len(total) and sensitivity.low is None:  # too few patients for a bootstrap
            sensitivity = exact_rate(int(found.sum()), int(total.sum()))
    return LesionRate(
        by=by, value=value, found=int(found.sum()), total=int(total.sum()), sensitivity=sensitivity
    )


def _arteries(cases: Sequence[CaseResult]) -> list[ArteryRate]:
    parts = [("", "", list(cases))]
    parts += [(by, value, own) for by in ARTERY_STRATA for value, own in _parted(cases, by)]
    there = {a.artery for c in cases for a in c.arteries}
    names = [label.name for label in ARTERIES if label.name in there]
    rows = (_artery_rate(by, value, own, name) for by, value, own in parts for name in names)
    return [row for row in rows if row is not None]


def _artery_rate(by: str, value: str, cases: Sequence[CaseResult], artery: str) -> ArteryRate | None:
    """None where no case has calcium in the artery."""
    own = [(a, c.patient) for c in cases for a in c.arteries if a.artery == artery]
    if not own:
        return None
    found, voxels = [a.found for a, _ in own], [a.voxels for a, _ in own]
    called: Counter[str] = Counter()
    for a, _ in own:
        called.update(a.named or {})
    named = called.total()
    right, unsure = called[artery], called[NOT_SURE.name]
    shares = [n / named if named else None for n in (right, named - right - unsure, unsure)]
    return ArteryRate(
        by=by,
        value=value,
        artery=artery,
        scans=len(own),
        found=sum(found),
        voxels=sum(voxels),
        recall=bootstrap(ratio, found, voxels, patients=[patient for _, patient in own]),
        named=named,
        right=shares[0],
        other=shares[1],
        not_sure=shares[2],
    )


def _wrong(cases: Sequence[CaseResult]) -> list[WrongRate]:
    judged = [c for c in cases if c.wrong is not None]
    of_kind = [{w.kind: w for w in c.wrong or ()} for c in judged]
    rows = []
    kinds = dict.fromkeys(w.kind for c in judged for w in c.wrong or ())
    for kind in sorted(kinds, key=lambda k: (k in (EDGE, UNLABELLED), k)):
        own = [found[kind] for found in of_kind if kind in found]
        points = [found[kind].score if kind in found else 0.0 for found in of_kind]
        most = int(np.argmax(points))
        labelled = None if kind in (EDGE, UNLABELLED) else sum(w.labelled or 0 for w in own)
        rows.append(
            WrongRate(
                kind=kind,
                scans=len(judged) if labelled is None else sum(bool(w.labelled) for w in own),
                labelled=labelled,
                voxels=sum(w.voxels for w in own),
                score=bootstrap(mean, points, patients=[c.patient for c in judged]),
                most=points[most],
                where=judged[most].name if points[most] > 0 else "",
            )
        )
    return rows


def to_dict(summary: Summary) -> dict[str, Any]:
    """JSON types only."""
    return {
        "statistics": {name: asdict(e) for name, e in summary.statistics.items()},
        "confusion": summary.agreement.confusion.tolist(),
        "strata": [asdict(s) for s in summary.strata],
        "lesions": [asdict(row) for row in summary.lesions],
        "arteries": [asdict(row) for row in summary.arteries],
        "wrong": [asdict(row) for row in summary.wrong],
        "sure": [asdict(row) for row in summary.sure],
        "interval": to_plain(summary.interval),
    }
