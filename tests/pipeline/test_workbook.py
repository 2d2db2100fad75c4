"""The workbook is read by another program's reader (openpyxl) and compared with the rows that went in."""

from __future__ import annotations

import csv
import datetime
import gc
import random
import resource
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from deepcac2.errors import DiskFull
from deepcac2.pipeline import workbook
from deepcac2.pipeline.results import COLUMNS, MEANINGS, ResultRow, write_table
from deepcac2.system import atomic

HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "007", "1e5", "https://example.org", "TRUE", "ä\n<b>&"]


def row(number: int, **more: Any) -> ResultRow:
    given = {
        "patient_id": f"P{number}",
        "study_uid": "1.2",
        "series_uid": f"1.2.{number}",
        "status": "scored",
    }
    return ResultRow(**{**given, **more})


def read(path: Path) -> tuple[list[str], list[dict[str, Any]], Any]:
    sheet = openpyxl.load_workbook(path)["results"]
    names, *rows = ([cell.value for cell in line] for line in sheet.iter_rows())
    return names, [dict(zip(names, values, strict=True)) for values in rows], sheet


def test_columns_have_their_types_and_the_empty_ones_are_left_out(tmp_path: Path) -> None:
    first = row(
        1, agatston_score=12.5, risk_group=1, study_date="20210228", screening_positive=False, n_slices=0
    )
    assert write_table(tmp_path, [first, row(2, study_date="20210230"), row(3, study_date="18991231")])
    names, rows, sheet = read(tmp_path / "results.xlsx")
    assert "kernel" not in names
    assert names == [n for n in COLUMNS if n in names]
    assert rows[0] == {
        "patient_id": "P1",
        "study_uid": "1.2",
        "series_uid": "1.2.1",
        "status": "scored",
        "agatston_score": 12.5,
        "risk_group": 1,
        "screening_positive": False,
        "study_date": datetime.datetime(2021, 2, 28),
        "n_slices": 0,
    }
    assert [r["study_date"] for r in rows[1:]] == ["20210230", "18991231"]  # no days that Excel knows
    assert rows[1]["agatston_score"] is None
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref == f"A1:{sheet.cell(4, len(names)).coordinate}"


def test_texts_stay_texts_whatever_they_look_like(tmp_path: Path) -> None:
    write_table(tmp_path, [row(i, patient_id=text, reason=text) for i, text in enumerate(HOSTILE)])
    _, rows, sheet = read(tmp_path / "results.xlsx")
    assert [r["patient_id"] for r in rows] == HOSTILE
    assert {c.data_type for line in sheet.iter_rows() for c in line if c.value is not None} == {"s", "n"}
    with zipfile.ZipFile(tmp_path / "results.xlsx") as book:
        everything = b"".join(book.read(name) for name in book.namelist())
    assert b"<f>" not in everything
    assert b"hyperlink" not in everything


def test_what_a_cell_cannot_hold(tmp_path: Path) -> None:
    long = "😀" * 20_000
    write_table(tmp_path, [row(1, reason=long, seconds=float("nan"), risk_group=10**15 + 1)])
    _, rows, _ = read(tmp_path / "results.xlsx")
    assert rows[0]["reason"] == "😀" * 16_383 + "…"
    assert rows[0]["seconds"] == "nan"
    assert rows[0]["risk_group"] == "1000000000000001"


def test_what_the_columns_mean_stands_in_a_sheet_and_a_file(tmp_path: Path) -> None:
    write_table(tmp_path, [row(1, kvp=120.0), row(2)])
    with (tmp_path / "data_dictionary.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["column"] for line in lines] == list(COLUMNS)
    sheet = openpyxl.load_workbook(tmp_path / "results.xlsx")["columns"]
    table = {line[0].value: [cell.value for cell in line[1:]] for line in sheet.iter_rows(min_row=2)}
    assert set(table) == set(COLUMNS)
    assert table["kvp"] == ["float", "kV", "Tube voltage", MEANINGS["kvp"].meaning, 1]
    assert table["kernel"][-1] == 0
    assert [line["meaning"] for line in lines] == [table[name][3] for name in COLUMNS]


def test_an_empty_table(tmp_path: Path) -> None:
    assert write_table(tmp_path, [])
    assert openpyxl.load_workbook(tmp_path / "results.xlsx").sheetnames == ["results", "columns"]


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, [row(1, kernel="B30f")])
    assert (tmp_path / "a" / "results.xlsx").read_bytes() == (tmp_path / "b" / "results.xlsx").read_bytes()


def test_a_table_with_too_many_rows_has_no_workbook_nor_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_table(tmp_path, [row(1), row(2)])
    monkeypatch.setattr(workbook, "MAX_ROWS", 1)
    assert not write_table(tmp_path, [row(1), row(2)])
    assert {p.name for p in tmp_path.iterdir()} == {"results.csv", "results.parquet", "data_dictionary.csv"}


@pytest.mark.parametrize("most", [0, 3_000, 20_000])
def test_a_full_disk_leaves_the_old_workbook_and_nothing_else(tmp_path: Path, most: int) -> None:
    """A limit on the size of files stands for the disk; where it is hit depends on it."""
    rows = [row(n, reason=str(random.Random(n).random()) * 20) for n in range(300)]
    write_table(tmp_path, rows)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        with pytest.raises(DiskFull, match=r"results\.xlsx"):
            workbook.write_workbook(tmp_path / "results.xlsx", tmp_path / "results.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    with atomic.scratch_beside(tmp_path / "results.xlsx") as folder:
        (folder / "part").write_text("x")
        assert folder.parent == tmp_path
        kept = folder.rename(tmp_path / folder.name.replace("-", "9-", 1))
    assert kept.is_dir()
    atomic.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []
