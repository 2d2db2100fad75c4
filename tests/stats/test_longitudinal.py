"""Change between visits and between kernels, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from deepcac2.reporting.statistics import cohort_page
from deepcac2.stats.longitudinal import kernel_pairs, progression
from deepcac2.stats.scans import Scans, scored

COLUMNS = [
    "patient_id",
    "study_uid",
    "series_uid",
    "status",
    "agatston_score",
    "study_date",
    "kernel",
    "n_slices",
    "volume_mm3",
]


def scans(rows: list[tuple[object, ...]]) -> tuple[pd.DataFrame, Scans]:
    table = pd.DataFrame([[str(v) for v in row] for row in rows], columns=COLUMNS)
    return table, scored(table)


def visits() -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for i in range(12):
        for v, (score, volume) in enumerate(((0, 0), (10, 4), (40, 49))):
            rows.append(
                (f"p{i}", f"{i}.{v}", f"{i}.{v}.s", "scored", score, f"{1999 + v}0102", "C", 90, volume)
            )
            rows.append(
                (
                    f"p{i}",
                    f"{i}.{v}",
                    f"{i}.{v}.b",
                    "scored",
                    score + 3,
                    f"{1999 + v}0102",
                    "BONE",
                    90,
                    volume,
                )
            )
    return rows


def test_change_from_visit_to_visit() -> None:
    _, some = scans(visits())
    found = progression(some)
    assert found is not None
    assert (found.persons, found.intervals) == (12, 24)
    assert found.years == pytest.approx(1.0, abs=0.01)
    expected = np.zeros((4, 4), dtype=int)
    expected[0, 1] = expected[1, 1] = 12
    np.testing.assert_array_equal(found.transitions, expected)
    assert found.incident.value == 1.0
    assert found.progressed is not None
    assert found.progressed.value == pytest.approx(0.5)  # √4 − √0 = 2 is too little, √49 − √4 = 5 is enough
    assert found.change.value == pytest.approx(20, rel=0.01)


def test_a_scan_soon_after_another_is_no_visit() -> None:
    _, some = scans(
        [
            ("p", "1", "1", "scored", 1, "19990102", "C", 90, 1),
            ("p", "2", "2", "scored", 5, "19990202", "C", 90, 2),
        ]
    )
    assert progression(some) is None


def test_kernels_of_one_study_are_compared() -> None:
    table, some = scans(visits())
    (pair,) = kernel_pairs(some)
    assert (pair.first, pair.second, pair.n) == ("BONE", "C", 36)
    assert pair.result.estimates["mean_difference"].value == pytest.approx(-3)
    text, pictures = cohort_page(table, some, progression(some), [pair])
    assert set(pictures) == {"distribution", "change"}
    assert "12 persons, 36 studies, 72 scans" in text
