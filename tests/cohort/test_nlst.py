"""The whole way of docs/nlst.md on a tiny trial: simulate, index, select, run, release, verify, analyse."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from deepcac2.cli.main import main

pytestmark = pytest.mark.slow

REASONS = {
    "thick": "thickness",
    "few": "few-slices",
    "repeated": "repeated-positions",
    "unsaid": "no-thickness",
    "localizer": "localizer",
}
"""What is wrong with a series, and the selection's reason."""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_selection_leaves_out_what_is_unfit_and_says_why(trial: Path, cohort: Path, tmp_path: Path) -> None:
    truth = {r["series_uid"]: r for r in rows(trial / "truth.csv")}
    found = {r["series_uid"]: r for r in rows(cohort)}
    assert found.keys() == truth.keys()
    for uid, row in truth.items():
        assert found[uid]["reason"] == (REASONS[row["unfit"]] if row["unfit"] else "")
        assert found[uid]["time_point"] == f"T{row['visit']}"
    table, index = tmp_path / "survival.csv", cohort.with_name("headers.parquet")
    assert main(["cohort", "select", str(index), "-o", str(table), "--rule", "survival"]) == 0
    chosen = [truth[r["series_uid"]] for r in rows(table) if r["selected"] == "true"]
    assert all(r["visit"] == "0" and r["kernel"] in ("STANDARD", "B50f", "FC51", "C") for r in chosen)
    assert len(chosen) == len({r["patient_id"] for r in chosen}) == 2


def test_run_release_verify_and_report(
    trial: Path, cohort: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release, page = tmp_path / "release.zip", tmp_path / "page"
    wanted = {r["series_uid"] for r in rows(cohort) if r["selected"] == "true"}
    found = {r["series_uid"]: r for r in rows(results / "results.csv")}
    assert found.keys() == wanted < {r["series_uid"] for r in rows(trial / "truth.csv")}
    assert main(["release", "build", str(results), str(release)]) == 0
    capsys.readouterr()
    assert main(["release", "verify", str(release), "--ct", str(trial / "ct")]) == 0
    assert "nothing differs" in capsys.readouterr().out
    assert main(["stats", "report", str(results / "results.parquet"), "--report", str(page)]) == 0
    text = (page / "report.md").read_text(encoding="utf-8")
    scored = sum(r["status"] == "scored" for r in found.values())
    assert "2 persons, " in text
    assert f"{scored} scans." in text
    assert "pairs of successive visits" in text


def test_calcium_grows_and_noise_changes_between_visits(trial: Path) -> None:
    by_person: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for r in rows(trial / "truth.csv"):
        key = (r["patient_id"], r["kernel"])
        by_person.setdefault(key, []).append((int(r["visit"]), float(r["score"])))
    grown = [(sorted(v)[0][1], sorted(v)[-1][1]) for v in by_person.values() if len(v) > 1]
    assert any(before > 0 for before, _ in grown)
    assert all(after >= before for before, after in grown)
    assert {p.name for p in (trial / "ct").iterdir()} == {"SIM-0003", "SIM-0004"}
