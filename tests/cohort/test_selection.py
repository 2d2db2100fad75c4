"""Selections, against a loop in Python over the same rows, and on headers of real files."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from deepcac2.cli.main import main
from deepcac2.cohort.index import COLUMNS, index_row, write_index
from deepcac2.cohort.selection import NLST_SQL, RULES, V1_KERNELS, V1_SPACINGS, select
from deepcac2.dicom import discover
from deepcac2.errors import InputError, InputUnreadable


def good(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row.update(
        patient_id="p", study_uid="st", series_uid="se", modality="CT", study_date="19990102",
        time_point="T0", kernel="STANDARD", image_type="ORIGINAL\\PRIMARY\\AXIAL", n_images=140,
        n_localizers=0, n_positions=140, thickness_min=2.5, thickness_max=2.5, increment=2.0, n_sizes=1,
        n_spacings=1, n_orientations=1,
    )  # fmt: skip
    return {**row, **changes}


def index_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    types = {"string": pa.string(), "double": pa.float64(), "int64": pa.int64()}
    schema = pa.schema([(n, types[t]) for n, t in COLUMNS.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def judged(tmp_path: Path, rows: list[dict[str, Any]], rule: str) -> dict[str, str]:
    rows = [{**row, "series_uid": f"{i:04d}"} for i, row in enumerate(rows)]
    found = select(index_of(tmp_path / "h.parquet", rows), RULES[rule], tmp_path / "c.csv")
    table = pd.read_csv(tmp_path / "c.csv", dtype=str, keep_default_na=False)
    assert len(table) == found.series == len(rows)
    assert found.selected == (table["selected"] == "true").sum() == (table["reason"] == "").sum()
    assert sum(found.reasons.values()) == found.series - found.selected
    return dict(zip(table["series_uid"], table["reason"], strict=True))


PAPER = [
    ({}, ""),
    ({"modality": "MR"}, "not-ct"),
    ({"modality": None}, "not-ct"),
    ({"image_type": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "localizer"),
    ({"n_localizers": 2}, ""),
    ({"thickness_min": None, "thickness_max": None}, "no-thickness"),
    ({"thickness_min": 0.9}, "thickness"),
    ({"thickness_max": 5.1}, "thickness"),
    ({"thickness_min": 1.0, "thickness_max": 5.0}, ""),
    ({"n_images": 50, "n_positions": 50}, "few-slices"),
    ({"n_images": 51, "n_positions": 51}, ""),
    ({"n_positions": 139}, "repeated-positions"),
    ({"n_positions": 0}, "repeated-positions"),
    ({"n_sizes": 2}, "mixed-size"),
    ({"n_spacings": 2}, "mixed-spacing"),
    ({"n_orientations": 2}, "mixed-orientation"),
]


def test_each_criterion_of_the_paper(tmp_path: Path) -> None:
    found = judged(tmp_path, [good(**changes) for changes, _ in PAPER], "deepcac2")
    assert list(found.values()) == [reason for _, reason in PAPER]


def random_rows(n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    kernels = ["STANDARD", "B30f", "b50f", "C", "FC51", "LUNG", "other", ""]
    rows = []
    for _ in range(n):
        images = int(rng.integers(45, 200))
        rows.append(
            good(
                patient_id=f"p{rng.integers(0, n // 4)}",
                study_date=str(rng.choice(["19990102", "20000102", "20010102", ""])),
                time_point=str(rng.choice(["", "", "T0", "T1"])),
                kernel=str(rng.choice(kernels)),
                image_type=str(
                    rng.choice(["ORIGINAL\\PRIMARY\\AXIAL", "DERIVED\\PRIMARY\\AXIAL", "ORIGINAL"])
                ),
                n_images=images,
                n_positions=images - int(rng.random() < 0.05),
                thickness_min=float(rng.choice([0.8, 1.25, 2.0, 2.5])),
                thickness_max=float(rng.choice([2.5, 3.0, 3.2, 6.0])),
                increment=float(rng.choice([1.0, 1.75, 2.0, 2.5, 3.2])),
            )
        )
    return rows


def first_visit(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    if row["time_point"]:
        return bool(row["time_point"] == "T0")
    dates = [r["study_date"] for r in rows if r["patient_id"] == row["patient_id"] and r["study_date"]]
    return bool(row["study_date"]) and row["study_date"] == min(dates)


def in_paper(row: dict[str, Any]) -> bool:
    return (
        row["thickness_min"] >= 1
        and row["thickness_max"] <= 5
        and row["n_images"] > 50
        and row["n_positions"] == row["n_images"]
    )


def one_a_person(rows: list[dict[str, Any]], key: Any) -> set[str]:
    rows = sorted(rows, key=lambda r: r["patient_id"])
    return {min(own, key=key)["series_uid"] for _, own in groupby(rows, key=lambda r: r["patient_id"])}


def test_survival_and_v1_equal_a_loop(tmp_path: Path) -> None:
    rows = [{**row, "series_uid": f"{i:04d}"} for i, row in enumerate(random_rows(600))]
    upper = [k.upper() for k in V1_KERNELS]
    fit = [
        r for r in rows
        if in_paper(r) and first_visit(r, rows) and r["image_type"] == "ORIGINAL\\PRIMARY\\AXIAL"
        and r["thickness_max"] <= 3.0 and r["kernel"].upper() in ("STANDARD", "B50F", "FC51", "C")
    ]  # fmt: skip
    expected = one_a_person(fit, lambda r: (-r["n_images"], r["series_uid"]))
    found = judged(tmp_path, rows, "survival")
    assert {uid for uid, reason in found.items() if not reason} == expected
    assert len(expected) > 10
    fit = [
        r for r in rows
        if first_visit(r, rows) and r["increment"] in V1_SPACINGS and r["kernel"].upper() in upper
    ]  # fmt: skip
    expected = one_a_person(
        fit,
        lambda r: (upper.index(r["kernel"].upper()), 2.5 - r["increment"], -r["n_images"], r["series_uid"]),
    )
    found = judged(tmp_path, rows, "deepcac-v1")
    assert {uid for uid, reason in found.items() if not reason} == expected
    assert "another-series" in found.values()


def test_the_sql_for_bigquery_gives_the_same_reasons_in_the_same_order() -> None:
    text = NLST_SQL.read_text(encoding="utf-8")
    places = [text.index(f"THEN '{c.code}'") for c in RULES["deepcac2"].criteria]
    assert places == sorted(places)


def test_index_and_selection_of_files(
    tmp_path: Path, simulated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((simulated / "SIM-0003" / "ct").iterdir())
    short = generate_uid()
    for name, some in (("whole", files), ("short", files[:40])):
        (tmp_path / "in" / name).mkdir(parents=True)
        for file in some:
            ds = dcmread(file)
            if name == "short":
                ds.SeriesInstanceUID, ds.SOPInstanceUID = short, generate_uid()
            else:
                ds.ClinicalTrialTimePointID = "T1"
            ds.save_as(tmp_path / "in" / name / file.name)
    index = tmp_path / "headers.parquet"
    assert main(["inspect", str(tmp_path / "in"), "--index", str(index)]) == 0
    rows = pq.read_table(index).to_pylist()
    found = sorted((r["n_images"], r["n_positions"], r["n_orientations"], r["time_point"]) for r in rows)
    assert found == [(40, 40, 1, ""), (len(files), len(files), 1, "T1")]
    assert rows == [index_row(s) for s in discover(tmp_path / "in").series]
    assert main(["cohort", "select", str(index), "-o", str(tmp_path / "c.csv")]) == 0
    out = capsys.readouterr().out
    assert "1: few-slices" in out
    assert "1 selected, of 1 persons" in out
    assert main(["cohort", "rules"]) == 0
    assert "nearest 2.5 mm" in capsys.readouterr().out


def test_what_is_no_index_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="make it with"):
        select(tmp_path / "missing.parquet", RULES["deepcac2"], tmp_path / "c.csv")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(InputUnreadable, match="no header index"):
        select(tmp_path / "x.parquet", RULES["deepcac2"], tmp_path / "c.csv")
    pd.DataFrame({"patient_id": ["a"]}).to_parquet(tmp_path / "y.parquet")
    with pytest.raises(InputError, match="has no column 'study_uid'"):
        select(tmp_path / "y.parquet", RULES["deepcac2"], tmp_path / "c.csv")
    assert not (tmp_path / "c.csv").exists()


def test_an_index_of_no_series_has_its_columns(tmp_path: Path) -> None:
    from deepcac2.dicom import Discovery

    assert write_index(tmp_path / "h.parquet", Discovery(series=())) == 0
    assert pq.read_schema(tmp_path / "h.parquet").names == list(COLUMNS)
