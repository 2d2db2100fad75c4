"""Intervals of scores: measured on some scans, they must hold for others like them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepcac2.evaluation.cases import CaseResult, CountedLesion
from deepcac2.evaluation.doubt import coverage, measured_interval, sure_rates


def _scans(n: int, seed: int) -> list[CaseResult]:
    """Scores that are wrong by a lognormal factor and by a few points; a quarter of the truths is 0."""
    rng = np.random.default_rng(seed)
    true = np.where(rng.random(n) < 0.25, 0.0, rng.lognormal(4.5, 1.5, n))
    found = np.maximum(0.0, (true + 10) * rng.lognormal(-0.1, 0.3, n) - 10)
    return [
        CaseResult(name=str(i), patient=str(i), score=float(f), true_score=float(t))
        for i, (t, f) in enumerate(zip(true, found, strict=True))
    ]


def _with(cases: list[CaseResult], interval: tuple[float, float] | None) -> list[CaseResult]:
    return [replace(c, interval=interval) for c in cases]


def test_an_interval_holds_for_other_scans() -> None:
    interval = measured_interval(_scans(400, 1), rule="agatston", measured_on="drawn")
    assert interval is not None
    inside = [
        low <= c.true_score <= high  # type: ignore[operator]
        for c in _scans(4000, 2)
        for low, high in [interval.around(c.score or 0.0)]
    ]
    assert np.mean(inside) == pytest.approx(0.9, abs=0.03)


def test_each_end_leaves_out_the_share_that_conformal_prediction_says() -> None:
    cases = _scans(199, 3)
    interval = measured_interval(cases, rule="agatston", measured_on="drawn")
    ratios = sorted(np.log((c.true_score + 20) / (c.score + 20)) for c in cases)  # type: ignore[operator]
    assert interval is not None
    assert (interval.lowest, interval.highest) == pytest.approx((ratios[9], ratios[-10]))


def test_of_too_few_scans_there_is_none() -> None:
    assert measured_interval(_scans(18, 4), rule="agatston", measured_on="drawn") is None
    assert measured_interval(_scans(19, 4), rule="agatston", measured_on="drawn") is not None


def test_coverage_counts_ends_as_inside_and_scans_without_an_interval_not_at_all() -> None:
    (case,) = _scans(1, 7)
    true = case.true_score or 0.0
    judged = _with([case], (true, true)) + _with([case], (true + 1, true + 2)) + _with([case], None)
    assert (coverage(judged).value, coverage(judged).n) == (0.5, 2)
    assert coverage(_with([case], None)).value is None


def test_lesions_by_certainty() -> None:
    lesions = tuple(CountedLesion(certainty=c, true=t) for c, t in ((80, True), (80, False), (99, True)))
    rows = sure_rates([CaseResult(name="a", patient="a", counted=lesions), CaseResult(name="b", patient="b")])
    assert [(r.certainty, r.true, r.lesions) for r in rows] == [(80, 1, 2), (99, 1, 1)]
