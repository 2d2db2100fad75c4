"""Scores by artery, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from deepcac2.pipeline.arteries import COLUMNS
from deepcac2.reporting.cohort_sections import artery_section
from deepcac2.stats.arteries import NOT_COUNTED, SHARES, by_artery
from deepcac2.stats.scans import Scans, scored

KEYS = ("lm", "lad", "lcx", "rca", "unsure", "aorta")
CASES = [
    (0, 0, 0, 0, 0, 7),  # A0
    (0, 0.3, 0, 0, 0, 0),  # A0: a whole score of 0, and yet an artery with calcium
    (0, 10, 0, 0, 0, 0),  # A1/N1
    (0, 20, 0, 30, 0, 20),  # A1/N2
    (1, 99, 100, 200, 0, 0),  # A3/N4
    (0, 40, 0, 0, 70, 0),  # A2, N not known
]


def scans(cases: list[tuple[Any, ...]], **more: Any) -> Scans:
    frame = pd.DataFrame([[str(v) for v in case] for case in cases], columns=[f"score_{k}" for k in KEYS])
    uids = frame.index.astype(str)
    totals = [str(sum(float(v) for v in case[:5] if v != "")) for case in cases]
    own = {"patient_id": "p" + uids, "study_uid": "s" + uids, "series_uid": uids, "status": "scored",
           "agatston_score": totals, "study_date": "", "kernel": "C"}  # fmt: skip
    return scored(frame.assign(**own, **more))


def test_columns_are_those_of_a_run() -> None:
    assert {*SHARES, *NOT_COUNTED} == {column.name for column in COLUMNS}


def test_who_has_calcium_where_and_how_much() -> None:
    found = by_artery(scans(CASES))
    assert found is not None
    lm, lad, lcx, rca, _ = found.sites
    assert [s.name for s in found.sites] == ["LM", "LAD", "LCX", "RCA", "artery not sure"]
    assert [len(s.scores) for s in found.sites] == [1, 5, 1, 2, 1]
    assert (lad.scans, lm.quartiles, lcx.quartiles) == (6, (1, 1, 1), (100, 100, 100))
    assert lad.quartiles == (10, 20, 40)
    assert rca.quartiles == pytest.approx((72.5, 115, 157.5))
    (aorta,) = found.not_counted  # the table has no other
    assert (aorta.name, aorta.scores.tolist()) == ("aorta", [7, 20])
    assert found.with_calcium.tolist() == [1, 2, 1, 0, 1]
    assert found.unknown == 1
    expected = np.zeros((4, 6), dtype=int)
    expected[0, 0], expected[1, 1], expected[1, 2], expected[2, 5], expected[3, 4] = 2, 1, 1, 1, 1
    np.testing.assert_array_equal(found.categories, expected)
    text, pictures = artery_section(found)
    assert pictures["arteries"].png.startswith(b"\x89PNG")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert ["LAD", "5", "83.3%", "20.0", "10.0 to 40.0"] in rows
    assert ["artery not sure", "1", "16.7%", "70.0", "70.0 to 70.0"] in rows
    assert ["aorta", "2", "33.3%", "13.5", "10.2 to 16.8"] in rows
    assert ["A0", "2", "–", "–", "–", "–", "–"] in rows
    assert ["A1", "–", "1", "1", "0", "0", "0"] in rows


def test_rows_without_names_are_left_out_and_a_table_of_them_has_no_section() -> None:
    bare = ("",) * 6
    assert by_artery(scans([bare, bare])) is None
    some = scans([bare, *CASES, (0, "x", 0, 0, 0, 0)][:7])
    found = by_artery(some)
    assert found is not None
    assert [(s.reason, s.rows) for s in found.flow.steps] == [("the weights name no artery", 1)]
    assert found.flow.left == 6
    assert by_artery(Scans(frame=some.frame.drop(columns="score_lad"), flow=some.flow)) is None


def test_nobody_has_any() -> None:
    found = by_artery(scans([(0, 0, 0, 0, 0, 0)] * 3))
    assert found is not None
    assert found.sites[0].quartiles is None
    text, pictures = artery_section(found)
    assert "| LM | 0 | 0.0% | – |  |" in text
    assert pictures
