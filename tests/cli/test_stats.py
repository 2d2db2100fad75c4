"""`deepcac2 stats` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepcac2.cli.main import main
from deepcac2.pipeline.results import COLUMNS
from deepcac2.reporting import statistics


def write(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    """Results and clinical data of 300 people with a visit a year and two kernels."""
    rng = np.random.default_rng(0)
    results, clinical = [], []
    for i in range(300):
        score = float(rng.choice([0, 40, 200, 900]))
        for visit in range(2):
            for kernel in ("STANDARD", "BONE"):
                scan = f"p{i},s{i}.{visit},s{i}.{visit}.{kernel},scored,{score + visit}"
                row = f"{scan},{1999 + visit}0102,{kernel},100,,"
                results.append(row)
        years = rng.exponential(8 / (1 + score / 600))
        clinical.append(f"p{i},{min(years, 6):.3f},{int(years < 6)},{rng.normal(61, 5):.1f}")
    results.append("p9,s,x,rejected,,19990102,C,100,contrast,contrast")
    head = "patient_id,study_uid,series_uid,status,agatston_score,study_date,kernel,n_slices,code,reason"
    return (
        write(tmp_path / "results.csv", head, results),
        write(tmp_path / "clinical.csv", "pid,years,died,age", clinical),
    )


def test_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path / "t.csv", "ai,manual", [f"{i},{i * 2}" for i in range(50)])
    report = tmp_path / "report"
    assert (
        main(["stats", "agreement", table, "--ai", "ai", "--reference", "manual", "--report", str(report)])
        == 0
    )
    assert "Spearman" in capsys.readouterr().out
    assert (report / "report.html").read_text(encoding="utf-8").count("data:image/svg+xml;base64") == 3
    for kind, begins in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert (report / "figures" / f"scores.{kind}").read_bytes().startswith(begins)
    assert (report / "report.pdf").read_bytes().startswith(b"%PDF")
    assert main(["stats", "agreement", table, "--ai", "ai", "--reference", "manual", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["statistics"]["spearman"]["value"] == pytest.approx(1)
    assert main(["stats", "agreement", table, "--ai", "ai", "--reference", "manua"]) == 10
    assert "Perhaps you meant 'manual'" in capsys.readouterr().err


def test_survival_and_report(
    tmp_path: Path, tables: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, clinical = tables
    what = ["--time", "years", "--event", "died", "--patient", "pid", "--covariates", "age"]
    assert main(["stats", "survival", results, clinical, *what, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["persons"] == 300
    assert {h["name"] for h in content["hazards"]} == {
        "1 low (>0–100)",
        "2 moderate (>100–300)",
        "3 high (>300)",
        "age",
    }
    assert content["hazards"][2]["ratio"] > 1.3
    page = tmp_path / "page"
    assert main(["stats", "report", results, "--clinical", clinical, *what, "--report", str(page)]) == 0
    text = (page / "report.md").read_text(encoding="utf-8")
    for wanted in ("300 persons", "One study, two kernels", "Cox model", "`contrast`", "figures/change.png"):
        assert wanted in text
    assert "ethnicity" not in text  # nobody asked for it
    assert not (page / "percentiles.csv").exists()
    assert "no column 'yeas'" in _error(
        capsys,
        ["stats", "survival", results, clinical, "--time", "yeas", "--event", "died", "--patient", "pid"],
    )
    assert "goes with --clinical" in _error(
        capsys, ["stats", "report", results, "--time", "years", "--report", str(page)]
    )


@pytest.mark.slow
def test_a_report_needs_no_column_that_it_does_not_read(
    tmp_path: Path, dashboard_results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["stats", "report", str(dashboard_results / "results.parquet"), "--report"]
    assert main([*command, str(tmp_path / "some")]) == 0
    monkeypatch.setattr(statistics, "COHORT_COLUMNS", COLUMNS)
    assert main([*command, str(tmp_path / "all")]) == 0
    some, everything = ((tmp_path / n / "report.md").read_text() for n in ("some", "all"))
    assert some == everything


@pytest.mark.slow
def test_a_report_without_the_part_that_cannot_be_made(
    tmp_path: Path, tables: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    results, clinical = tables
    page = tmp_path / "page"
    command = ["stats", "report", results, "--clinical", clinical, "--time", "years", "--event", "deid"]
    assert main([*command, "--patient", "pid", "--report", str(page)]) == 1
    assert "Survival is not in the report: " in capsys.readouterr().err
    text = (page / "report.md").read_text(encoding="utf-8")
    assert "> This part could not be made: " in text
    assert "One study, two kernels" in text


def _error(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    capsys.readouterr()
    assert main(command) == 10
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_percentile_by_ethnicity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the page a row a scan; survival is not asked for, and what it needs is not either."""
    head = (
        "patient_id,study_uid,series_uid,status,agatston_score,study_date,kernel,n_slices,patient_age,"
        "patient_sex,percentile"
    )
    rows = ["=a,s1,1.1,scored,106,20000102,C,90,80,F,50-75", "b,s2,1.2,scored,10,20000102,C,90,60,M,<25"]
    results = write(tmp_path / "results.csv", head, rows)
    clinical = write(tmp_path / "clinical.csv", "pid,origin", ["=a,White", "b,Samoan"])
    page = tmp_path / "page"
    command = ["stats", "report", results, "--report", str(page), "--ethnicity", "origin"]
    assert "--ethnicity goes with --clinical" in _error(capsys, command)
    command += ["--clinical", clinical, "--patient", "pid"]
    assert "--clinical needs --time" in _error(capsys, [*command, "--covariates", "age"])
    assert main(command) == 0
    assert "## Percentile by ethnicity" in (page / "report.md").read_text(encoding="utf-8")
    assert (page / "percentiles.csv").read_text(encoding="utf-8").splitlines() == [
        "patient_id,series_uid,patient_age,patient_sex,ethnicity,agatston_score,percentile,percentile_mesa",
        "'=a,1.1,80,F,white,106.0,50-75,50-75",
    ]
