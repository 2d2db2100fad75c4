"""Percentiles by ethnicity of a clinical table: against the published table, and who is left out."""

from __future__ import annotations

import pandas as pd
import pytest

from deepcac2.errors import InputError
from deepcac2.reporting.cohort_sections import percentile_section
from deepcac2.stats.percentiles import ETHNICITIES, by_ethnicity, in_order
from deepcac2.stats.scans import Scans, scored


def scans(rows: list[tuple[object, ...]]) -> Scans:
    """Rows of patient, score, age, sex and percentile by age and sex."""
    names = ["patient_id", "agatston_score", "patient_age", "patient_sex", "percentile"]
    frame = pd.DataFrame([[str(v) for v in row] for row in rows], columns=names)
    uids = frame.index.astype(str)
    more = {"study_uid": "s" + uids, "series_uid": uids, "status": "scored", "study_date": "", "kernel": "C"}
    return scored(frame.assign(**more))


def clinical(**ethnicities: str) -> pd.DataFrame:
    return pd.DataFrame({"pid": list(ethnicities), "origin": list(ethnicities.values())})


def test_ranges_are_those_of_the_published_table_and_the_others_are_counted() -> None:
    some = scans(
        [
            ("a", 105, 80, "F", "25-50"),  # white women of 80: 20, 106, 370, 921
            ("b", 106, 80, "F", "50-75"),
            ("c", 0, 50, "F", ""),  # hispanic women of 50: 0, 0, 0, 2
            ("d", 115, 65, "M", ">90"),  # black men: half of the way from 60 to 70: 0, 16, 115.5, 374
            ("d", 374, 65, "M", ">90"),
            ("e", 10, 60, "M", ""),
            ("f", 10, 60, "M", ""),
            ("g", 10, 60, "M", ""),
            ("h", 10, "", "M", ""),
            ("i", 10, 44, "M", ""),
            ("j", 10, 85, "M", ""),
            ("k", 10, 60, "", ""),
        ]
    )
    table = clinical(
        a="white", b=" White ", c="HISPANIC", d="black", e="other", f="", h="chinese", i="white",
        j="white", k="white",
    )  # fmt: skip
    found = by_ethnicity(some, table, ethnicity="origin", patient="pid")
    assert found.frame[["patient_id", "percentile_mesa"]].to_numpy().tolist() == [
        ["a", "25-50"],
        ["b", "50-75"],
        ["c", "<90"],
        ["d", "50-75"],
        ["d", ">90"],
    ]
    assert found.frame["patient_age"].tolist() == [80, 80, 50, 65, 65]
    assert [(s.reason, s.rows) for s in found.flow.steps] == [
        ("not in the clinical table (pid)", 1),
        ("no origin", 1),
        ("origin is none of MESA's four", 1),
        ("the age is not known", 1),
        ("the age is not 45 to 84", 2),
        ("the sex is not known", 1),
    ]
    text = percentile_section(found)
    assert "McClelland 2006" in text
    rows = [line.replace("\\", "").strip("| ").split(" | ") for line in text.splitlines()]
    assert ["50-75", "2", "40.0%"] in rows
    # by age and sex, then how many have which by ethnicity: 25-50, 50-75, <90, >90 in their order
    assert [r for r in rows if r[0] == "Hoff"] == [
        ["Hoff", "MESA: <90", "MESA: 25-50", "MESA: 50-75", "MESA: >90"]
    ]
    assert [">90", "0", "0", "1", "1"] in rows


def test_nobody_left_is_a_table_and_no_percentile() -> None:
    found = by_ethnicity(
        scans([("a", 5, 30, "F", "")]), clinical(a="white"), ethnicity="origin", patient="pid"
    )
    assert found.frame.empty
    assert "the age is not 45 to 84" in percentile_section(found)


def test_what_cannot_be_joined_is_an_error_that_says_what_to_do() -> None:
    some = scans([("a", 5, 60, "F", "")])
    for table, says in (
        (clinical(a="1", b="2"), "origin holds '1', '2'; write white, chinese, black, hispanic"),
        (clinical(a=""), "origin holds nothing"),
        (clinical(z="white"), "no person is in both tables: the results have 'a'"),
        (pd.concat([clinical(a="white")] * 2), "'a' stands in more than one row"),
        (clinical(a="white").rename(columns={"origin": "orign"}), "Perhaps you meant 'orign'"),
    ):
        with pytest.raises(InputError, match=says):
            by_ethnicity(some, table, ethnicity="origin", patient="pid")
    older = Scans(frame=some.frame.drop(columns="patient_age"), flow=some.flow)
    with pytest.raises(InputError, match="no column 'patient_age'"):
        by_ethnicity(older, clinical(a="white"), ethnicity="origin", patient="pid")


def test_names_and_order() -> None:
    assert ETHNICITIES == ("white", "chinese", "black", "hispanic")
    assert in_order([">90", "75-90", "<90", "<25", "25-75"]) == ["<25", "<90", "25-75", "75-90", ">90"]
