"""Change between visits and between kernels, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

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
    assert "CAC-DRS" not in text  # a table of an older version has no grades


def test_grades_are_counted_in_their_own_order() -> None:
    table, some = scans(visits())
    n = len(some.frame)
    graded = some.frame.assign(
        cac_drs=["CAC-DRS A2"] * 2 + ["CAC-DRS A0"] * (n - 2),
        chest_ct_grade=["severe"] + ["none"] * 3 + ["mild"] * (n - 4),
        score_class=[">=1000", "300 to 999"] + ["10 to 99"] * (n - 2),
        percentile=[">90", "75-90", "<25", "25-50", "<75"] + [""] * (n - 5),
    )
    text, _ = cohort_page(table, replace(some, frame=graded), None, [])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    shown = [row[0].replace("&lt;", "<").replace("&gt;", ">").replace("\\", "") for row in rows]

    def below(heading: str, count: int) -> list[tuple[str, str]]:
        first = shown.index(heading) + 2
        return [(shown[i], rows[i][1]) for i in range(first, first + count)]

    assert below("CAC-DRS", 2) == [("CAC-DRS A0", str(n - 2)), ("CAC-DRS A2", "2")]
    assert below("chest CT grade", 3) == [("none", "3"), ("mild", str(n - 4)), ("severe", "1")]
    assert [name for name, _ in below("class", 3)] == ["10 to 99", "300 to 999", ">=1000"]
    assert [name for name, _ in below("percentile", 5)] == ["<25", "<75", "25-50", "75-90", ">90"]
    assert rows[shown.index("percentile") + 2][1:] == ["1", "20.0%"]
    assert f"{n - 5} scans have no percentile." in text
