"""Selection by IDC's tables, against the BigQuery statement run by DuckDB over the images they are made of.

The tables have the columns and meanings of ``idc-index-data`` 25, a few series of them its public rows.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from deepcac2.cli.main import main
from deepcac2.cohort.idc import find_tables
from deepcac2.cohort.selection import NLST_SQL, RULES, select_idc
from deepcac2.errors import InputError, InputUnreadable

IMAGES = 60
PLAIN = "0,OPA,GE,LSPLUS,STANDARD,360,2.5,120,80,0.1,1.5"
"""A real description of NLST, in IDC's public index."""

SERIES: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({}, ""),
    "later": ({"SeriesDescription": PLAIN.replace("0,", "2,", 1), "ClinicalTrialTimePointID": "T2"}, ""),
    "wide": (
        {"SeriesDescription": "1,OPA,SE,SEN16,B30f,1,024,2,120,218.5,218,na", "SliceThickness": "2"},
        "",
    ),
    "slides": ({"Modality": "SM", "SeriesDescription": None}, "not-ct"),
    "scout": (
        {
            "SeriesDescription": "2,OPL,GE,LSPLUS,STANDARD,null,na,120,0,0,na",
            "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
            "SliceThickness": None,
        },
        "localizer",
    ),
    "unsaid": ({"SeriesDescription": PLAIN.replace("2.5", "na"), "SliceThickness": None}, "no-thickness"),
    "thin": ({"SeriesDescription": PLAIN.replace("2.5", "0.75"), "SliceThickness": "0.75"}, "thickness"),
    "odd": ({"SeriesDescription": PLAIN.replace("2.5", "999"), "SliceThickness": "999"}, "thickness"),
    "short": ({"images": 50}, "few-slices"),
    "repeated": ({"repeated": True}, "repeated-positions"),
    "sizes": ({"sizes": True}, "mixed-size"),
    "spacings": ({"spacings": True}, "mixed-spacing"),
    "turned": ({"turned": True}, "mixed-orientation"),
}
"""What is other than in a good series, and the paper's reason."""
GEOMETRIC = ("repeated-positions", "mixed-size", "mixed-spacing", "mixed-orientation")


def images() -> list[dict[str, Any]]:
    """One row for each image, as in ``dicom_all``."""
    rows = []
    for name, (changes, _) in SERIES.items():
        last = changes.get("images", IMAGES) - 1
        for i in range(last + 1):
            odd = i == last
            row = {
                "collection_id": "nlst", "analysis_result_id": None, "PatientID": f"p-{name}",
                "StudyInstanceUID": f"1.{len(rows)}" if i == 0 else rows[-1]["StudyInstanceUID"],
                "SeriesInstanceUID": f"2.{name}", "SOPInstanceUID": f"3.{name}.{i}", "Modality": "CT",
                "StudyDate": "1999-01-02", "ClinicalTrialTimePointID": "T0", "Manufacturer": "GE",
                "ManufacturerModelName": "LightSpeed Plus", "ConvolutionKernel": ["STANDARD"],
                "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SliceThickness": "2.5",
                "Rows": 256 if odd and changes.get("sizes") else 512, "Columns": 512, "KVP": "120",
                "PixelSpacing": ["0.8" if odd and changes.get("spacings") else "0.7", "0.7"],
                "ImageOrientationPatient": [*"10001", "1" if odd and changes.get("turned") else "0"],
                "ImagePositionPatient": ["0", "0", str(2 * (i - (odd and "repeated" in changes)))],
                "SeriesDescription": PLAIN,
            }  # fmt: skip
            rows.append({**row, **{k: v for k, v in changes.items() if k in row}})
    # what others have made of NLST's images is no part of it
    rows += [{**rows[0], "SeriesInstanceUID": "2.others", "analysis_result_id": "x"}]
    rows += [{**rows[0], "SeriesInstanceUID": "2.elsewhere", "collection_id": "lidc_idri"}]
    return rows


def in_duckdb(statement: str) -> str:
    """A statement for BigQuery in DuckDB's dialect, as far as ours goes."""
    for old, new in (
        (r"`bigquery-public-data\.idc_\w+\.dicom_all`", "dicom_all"), (r"`", '"'), ("COUNTIF", "count_if"),
        (r"\bSAFE_CAST\b", "TRY_CAST"), (r"\bFLOAT64\b", "DOUBLE"), (r"AS part WHERE", "AS t(part) WHERE"),
        (r"'\\\\'", r"'\\'"),
    ):  # fmt: skip
        statement = re.sub(old, new, statement)
    return statement


TABLES = {
    "idc_index": """
        SELECT SeriesInstanceUID, count(DISTINCT SOPInstanceUID) AS instanceCount, 1.5 AS series_size_MB,
          any_value(collection_id) AS collection_id, any_value(analysis_result_id) AS analysis_result_id,
          any_value(PatientID) AS PatientID, any_value(StudyInstanceUID) AS StudyInstanceUID,
          any_value(Modality) AS Modality, any_value(StudyDate) AS StudyDate,
          any_value(SeriesDescription) AS SeriesDescription, any_value(Manufacturer) AS Manufacturer,
          any_value(ManufacturerModelName) AS ManufacturerModelName FROM dicom_all GROUP BY 1""",
    "ct_index": """
        SELECT SeriesInstanceUID, any_value(ImageType) AS ImageType, any_value("Rows") AS "Rows",
          any_value(PixelSpacing[1]::DOUBLE) AS PixelSpacing_row_mm, any_value("Columns") AS "Columns",
          any_value(try_cast(SliceThickness AS DOUBLE)) AS SliceThickness, any_value(KVP::DOUBLE) AS KVP,
          any_value(ConvolutionKernel) AS ConvolutionKernel
        FROM dicom_all WHERE Modality = 'CT' GROUP BY 1""",
    "volume_geometry_index": """
        SELECT SeriesInstanceUID, count(DISTINCT ImageOrientationPatient) = 1 AS single_orientation,
          count(DISTINCT PixelSpacing) = 1 AS consistent_pixel_spacing,
          count(DISTINCT SOPInstanceUID) = count(DISTINCT ImagePositionPatient) AS unique_slice_positions,
          count(DISTINCT ("Rows", "Columns")) = 1 AS consistent_image_dimensions, 2.0 AS slice_spacing_mm
        FROM dicom_all WHERE Modality = 'CT' AND NOT list_contains(ImageType, 'LOCALIZER') GROUP BY 1""",
}
"""How IDC makes the tables of the images, as the statements say that it ships beside them."""


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with IDC's three tables, and ``expected.csv``: what BigQuery says of the images."""
    import pyarrow as pa

    folder = tmp_path_factory.mktemp("idc")
    dicom_all = pa.Table.from_pylist(images())
    with duckdb.connect() as database:
        database.register("dicom_all", dicom_all)
        for name, statement in TABLES.items():
            database.sql(statement).write_parquet(str(folder / f"{name}.parquet"))
        database.sql(in_duckdb(NLST_SQL.read_text(encoding="utf-8"))).write_csv(str(folder / "expected.csv"))
    return folder


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["series_uid"].removeprefix("2."): row for row in csv.DictReader(file)}


def test_bigquerys_statement_runs_and_says_what_is_planted(tables: Path) -> None:
    found = {name: row["reason"] for name, row in rows(tables / "expected.csv").items()}
    assert found == {name: reason for name, (_, reason) in SERIES.items()}


def test_the_tables_give_the_same_as_bigquery(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "c.csv"
    assert main(["cohort", "select", "--idc", str(tables), "-o", str(out)]) == 0
    ours, theirs = rows(out), rows(tables / "expected.csv")
    shared = ("selected", "reason", "patient_id", "study_uid", "modality", "manufacturer", "model_name")
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        assert {k: row[k] for k in shared} == {k: theirs[name][k] for k in shared}, name
    said = capsys.readouterr().out
    assert f"{len(SERIES)} series of {len(SERIES)} persons in the collection nlst" in said
    assert "not asked" not in said
    assert [ours[name]["time_point"] for name in ("good", "later", "wide")] == ["T0", "T2", "T1"]


def test_without_the_further_tables_geometry_is_not_asked_and_said(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "idc_index.parquet").write_bytes((tables / "idc_index.parquet").read_bytes())
    out = tmp_path / "c.csv"
    assert main(["cohort", "select", "--idc", str(tmp_path), "-o", str(out)]) == 0
    found = {name: row["reason"] for name, row in rows(out).items()}
    assert found == {n: "" if reason in GEOMETRIC else reason for n, (_, reason) in SERIES.items()}
    said = capsys.readouterr().out
    for code in GEOMETRIC:
        assert f"not asked, as no table here says it: {code}" in said
    row = rows(out)["wide"]
    assert (row["kernel"], row["thickness_min"], row["kvp"]) == ("B30f", "2.0", "120.0")
    assert (row["n_positions"], row["rows"]) == ("", "")


def test_survival_takes_one_series_a_person(tables: Path, tmp_path: Path) -> None:
    found = select_idc(find_tables(tables), RULES["survival"], tmp_path / "c.csv")
    assert (found.selected, found.persons, found.everybody) == (1, 1, len(SERIES))
    assert found.reasons["later-visit"] == 2
    left = [series for series, _ in found.left.values()]
    assert left == sorted(left, reverse=True)
    assert left[-1] == found.selected
    v1 = select_idc(find_tables(tables), RULES["deepcac-v1"], tmp_path / "c.csv")
    assert v1.unjudged == ()


def test_what_is_no_table_is_said(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputUnreadable, match=r"has no idc_index\.parquet"):
        find_tables(tmp_path)
    (tmp_path / "idc_index.parquet").write_text("no")
    with pytest.raises(InputUnreadable, match="is no table of IDC"):
        select_idc(find_tables(tmp_path), RULES["deepcac2"], tmp_path / "c.csv")
    duckdb.sql("SELECT 'nlst' AS collection_id").write_parquet(str(tmp_path / "idc_index.parquet"))
    with pytest.raises(InputError, match="has no column 'analysis_result_id'"):
        select_idc(find_tables(tmp_path), RULES["deepcac2"], tmp_path / "c.csv")
    with pytest.raises(InputError, match="no series of the collection 'nlts'"):
        select_idc(find_tables(tables), RULES["deepcac2"], tmp_path / "c.csv", collection="nlts")
    assert not (tmp_path / "c.csv").exists()
    monkeypatch.setitem(sys.modules, "idc_index_data", None)
    assert main(["cohort", "select", "--idc", "-o", str(tmp_path / "c.csv")]) == 10
    assert ".[idc]" in capsys.readouterr().err
    assert main(["cohort", "select", "-o", str(tmp_path / "c.csv")]) == 10
    assert "give a header index, or --idc" in capsys.readouterr().err


def test_the_shipped_index_has_the_columns_and_the_papers_number(tmp_path: Path) -> None:
    """Where idc-index-data is installed. 203,087 CT series are the paper's number, too."""
    pytest.importorskip("idc_index_data", reason="idc-index-data is not installed")
    found = select_idc(find_tables(), RULES["deepcac2"], tmp_path / "c.csv")
    assert found.left["not-ct"] == (203087, 26254)
    assert (found.selected, found.persons) == (130103, 26246)
