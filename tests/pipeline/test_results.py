"""The results table, read back with other readers."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from pyarrow import parquet

from deepcac2.pipeline.results import COLUMNS, ResultRow, no_formula, write_csv, write_parquet

ROWS = [
    ResultRow(
        patient_id="=HYPERLINK(1)",
        study_uid="1.2",
        series_uid="1.2.3",
        status="scored",
        agatston_score=12.5,
        risk_group=1,
        risk_group_name="low",
    ),
    ResultRow(
        patient_id='Ä, "q"\n',
        study_uid="",
        series_uid="9",
        status="rejected",
        code="not-ct",
        reason="an MR, no CT",
    ),
]


def test_csv_and_parquet_hold_the_same_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", ROWS)
    write_parquet(tmp_path / "r.parquet", ROWS)
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as handle:
        text = list(csv.DictReader(handle))
    table = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert tuple(text[0]) == tuple(table[0]) == COLUMNS
    assert float(text[0]["agatston_score"]) == table[0]["agatston_score"] == 12.5
    assert table[1]["agatston_score"] is None
    assert text[1]["agatston_score"] == ""
    assert text[1]["patient_id"] == table[1]["patient_id"] == ROWS[1].patient_id
    # A spreadsheet would run a leading '='; the Parquet file keeps the value as it is.
    assert text[0]["patient_id"] == "'=HYPERLINK(1)"
    assert table[0]["patient_id"] == "=HYPERLINK(1)"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.parquet"]


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_is_a_formula(tmp_path: Path, first: str) -> None:
    """The characters of OWASP's page on CSV injection."""
    row = ResultRow(patient_id=f"{first}cmd", study_uid="1", series_uid="2", status="scored")
    write_csv(tmp_path / "r.csv", [row])
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as handle:
        (text,) = csv.DictReader(handle)
    assert text["patient_id"] == f"'{first}cmd"


@pytest.mark.parametrize("value", ["", "a=1", " =1", "1+1", "B30f", "'x", -1.5, None, True])
def test_what_is_no_formula_stays(value: object) -> None:
    assert no_formula(value) is value


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "r.parquet", [])
    assert tuple(parquet.read_table(tmp_path / "r.parquet").column_names) == COLUMNS
