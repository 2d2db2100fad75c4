"""What was nearly counted, and the interval of a score."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from deepcac2.dicom import Series
from deepcac2.errors import WeightsError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import SURENESS, Labels, calcium_labels
from deepcac2.models.calcium.step import FindCalcium
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.doubt import CERTAINTY, COLUMNS, DOUBT, MOST_POSSIBLE, Interval
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, DOMAIN, HEART_SOURCE, SCORE
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.system.codec import to_plain
from deepcac2.weights import WeightSet

SHAPE = (12, 40, 40)
INTERVAL = Interval(
    level=0.9, rule="agatston", offset=10.0, lowest=-0.5, highest=0.25, measured_on="100 drawings"
)


def _case(
    *,
    rule: str = "agatston",
    interval: Interval | None = INTERVAL,
    outside: bool = False,
    given: bool = False,
) -> Case:
    """Two lesions that count, one that is not sure enough to, and a speck."""
    hu, sure = np.full(SHAPE, 40, dtype=np.int16), np.zeros(SHAPE, dtype=np.uint8)
    for box, percent in (
        (np.s_[2:6, 10:14, 10:14], 80),
        (np.s_[8:10, 20:24, 20:22], 99),
        (np.s_[1:3, 30:34, 30:34], 60),
        (np.s_[6, 30, 30], 70),  # too small to count
    ):
        hu[box], sure[box] = 350, percent
    sure[3, 11, 11] = 95  # a lesion is as sure as its surest voxel
    facts = {
        CT: Volume(hu=hu, geometry=Geometry(shape=SHAPE, spacing=(3.0, 0.8, 0.8), origin=(0.0, 0.0, 0.0))),
        CALCIUM: calcium_labels(sure >= 80),
        CERTAINTY: Labels(array=sure, classes=SURENESS),
        CALCIUM_RUN: {"interval": to_plain(interval)},
    }
    facts[DOMAIN] = {
        "outside": {"noise": ["heart", "calcium"], "kvp": ["heart"]} if outside else {"field": ["heart"]}
    }
    if given:
        facts[HEART_SOURCE] = {"file": "heart.seg.dcm"}
    return ScoreCalcium(rule=rule)(Case(series=Series(series_uid="1.2", slice_thickness=3.0), facts=facts))


def _row(case: Case) -> dict[str, float | None]:
    return {column.name: column.of(case) for column in COLUMNS}


def test_what_was_nearly_counted_is_told_and_not_counted() -> None:
    case = _case()
    one = 16 * 0.64 * 3
    assert case[SCORE].total == pytest.approx(4 * one + 2 * one / 2)
    assert [lesion.certainty for lesion in case[SCORE].lesions] == [95, 99]
    assert case[DOUBT]["possible_score"] == pytest.approx(2 * one)
    (nearly,) = case[DOUBT]["possible"]
    assert (nearly["certainty"], nearly["slice_numbers"], nearly["max_hu"]) == (60, [2, 3], 350)
    assert nearly["score"] == case[DOUBT]["possible_score"] == _row(case)["possible_score"]


def test_the_list_ends_and_the_sum_does_not() -> None:
    case = _case()
    hu, sure = case[CT].hu.copy(), np.zeros(SHAPE, dtype=np.uint8)
    for y in range(0, 39, 3):
        for x in range(0, 39, 3):
            hu[0, y : y + 2, x : x + 2] = 250
            sure[0, y : y + 2, x : x + 2] = 50
    volume = Volume(hu=hu, geometry=case[CT].geometry)
    nothing = calcium_labels(np.zeros(SHAPE, dtype=bool))
    case = Case(series=case.series, facts={CT: volume, CALCIUM: nothing})
    case = ScoreCalcium()(case.add(CERTAINTY, Labels(array=sure, classes=SURENESS)))
    assert len(case[DOUBT]["possible"]) == MOST_POSSIBLE < 169
    assert case[DOUBT]["possible_score"] == pytest.approx(169 * 4 * 0.64 * 2)
    assert case[DOUBT]["interval"] is None


def test_the_interval_is_that_of_the_weights() -> None:
    case = _case()
    total, row = case[SCORE].total, _row(case)
    assert row["score_low"] == pytest.approx((total + 10) * math.exp(-0.5) - 10, abs=0.05)
    assert row["score_high"] == pytest.approx((total + 10) * math.exp(0.25) - 10, abs=0.05)
    assert case[DOUBT]["interval"]["measured_on"] == "100 drawings"
    assert "no_interval" not in case[DOUBT]


def test_no_end_lies_below_nothing() -> None:
    assert INTERVAL.around(0.0) == (0.0, pytest.approx(10 * math.exp(0.25) - 10))
    assert Interval(**{**to_plain(INTERVAL), "highest": -0.4}).around(0.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (_case(interval=None), "none was measured"),
        (_case(rule="ai-cac"), "measured for the rule agatston"),
        (_case(given=True), "hearts that the network finds"),
        (_case(outside=True), "unlike those that the calcium network was trained on: noise$"),
    ],
)
def test_an_interval_that_may_not_hold_is_not_given(case: Case, why: str) -> None:
    assert case[DOUBT]["interval"] is None
    assert re.search(why, case[DOUBT]["no_interval"])
    assert _row(case)["score_low"] is None
    assert _row(case)["score_high"] is None


def test_without_certainty_nothing_is_said() -> None:
    case = _case()
    facts = {fact: value for fact, value in case.facts.items() if fact in (CT, CALCIUM)}
    plain = ScoreCalcium()(Case(series=case.series, facts=facts))
    assert DOUBT not in plain
    assert plain[SCORE].total == case[SCORE].total
    assert set(_row(plain).values()) == {None}


def _finder(stated: object, **options: float) -> FindCalcium:
    metadata = {"heart_margin_mm": 4.0, "peak_probability": 0.8, "window_hu": [-135, 500], "interval": stated}
    weights = WeightSet(name="w", role="calcium", path=Path("w"), files={}, hash="", metadata=metadata)
    return FindCalcium(model=None, weights=weights, **options)  # type: ignore[arg-type]


def test_an_interval_holds_only_where_the_weights_are_used_as_they_were_measured() -> None:
    stated = to_plain(INTERVAL)
    as_tuned, other = _finder(stated), _finder(stated, peak_probability=0.6)
    assert as_tuned._interval(as_tuned._point()) == INTERVAL
    assert other._interval(other._point()) is None


@pytest.mark.parametrize(
    "change", [{"offset": 0.0}, {"level": 1.0}, {"lowest": 0.3}, {"highest": "much"}, {"colour": 1}]
)
def test_an_interval_that_is_none_is_refused_before_the_first_series(change: dict[str, object]) -> None:
    with pytest.raises(WeightsError, match=r"w.weights\.json"):
        _finder({**to_plain(INTERVAL), **change})
