"""Statistics and report of an evaluation, from cases made by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcac2.evaluation.cases import CaseResult, Evaluation, TrueLesion
from deepcac2.evaluation.summary import summarise
from deepcac2.reporting.evaluation import kind_of, markdown, seen_in_training, write_report
from deepcac2.reporting.plots import Drawing, all_drawn
from deepcac2.scoring import risk_group

NAMES = ("bland-altman", "confusion", "dice", "lesions", "scores")


def make_case(i: int, rng: np.random.Generator) -> CaseResult:
    true = float(rng.choice([0.0, 20.0, 150.0, 800.0]))
    ours = max(0.0, true * rng.uniform(0.9, 1.1)) if true else 0.0
    lesions = tuple(
        TrueLesion(artery=str(rng.choice(["LAD", "RCA"])), volume_mm3=30.0, max_hu=300, found=bool(k < 2))
        for k in range(3)
    )
    return CaseResult(
        name=f"SIM-{i:04d}", patient=f"SIM-{i:04d}", simulated=True, kernel="B30f" if i % 2 else "BONE",
        sharp=not i % 2, noise_hu=float(rng.uniform(10, 50)), thickness_mm=2.5, increment_mm=2.5, kvp=120.0,
        heart_dice=float(rng.uniform(0.9, 0.97)), heart_hd95_mm=5.0, centre_error_mm=2.0, crop_error_mm=3.0,
        calcium_dice=0.8 if true else 1.0, counted_dice=0.9 if true else 1.0, score=ours, true_score=true,
        group=int(risk_group(ours)), true_group=int(risk_group(true)), lesions=lesions if true else (),
        false_lesions=(12.0,) if i == 4 else (),
    )  # fmt: skip


@pytest.fixture
def evaluation() -> Evaluation:
    rng = np.random.default_rng(9)
    cases = [make_case(i, rng) for i in range(1, 25)]
    cases.append(
        CaseResult(
            name="<b>x</b>|y", patient="=1+1", simulated=True, status="rejected", reason="too few *slices*"
        )
    )
    about = {
        "name": "set",
        "sha256": "ab" * 32,
        "training_data": "Drawn patients (seeds 20 to 22).",
        "intended_use": "Tests.",
    }
    return Evaluation(cases=tuple(cases), weights={"heart": about}, rule="agatston", version="9")


class TestSummary:
    def test_only_scored_cases_count(self, evaluation: Evaluation) -> None:
        statistics = summarise(evaluation).statistics
        assert statistics["heart_dice_mean"].n == 24
        hearts = [c.heart_dice for c in evaluation.scored]
        assert statistics["heart_dice_mean"].value == pytest.approx(np.mean(hearts))
        assert statistics["heart_dice_min"].value == min(hearts)
        positive = sum(c.true_score > 0 for c in evaluation.scored)
        assert statistics["counted_dice_mean"].n == positive
        assert statistics["counted_dice_mean"].value == pytest.approx(0.9)
        assert statistics["lesion_sensitivity"].value == pytest.approx(2 / 3)
        assert statistics["lesion_sensitivity"].n == 3 * positive
        assert statistics["false_lesions_per_scan"].value == pytest.approx(1 / 24)
        assert statistics["sensitivity_above_0"].value == 1.0

    def test_strata_part_the_cases(self, evaluation: Evaluation) -> None:
        strata = summarise(evaluation).strata
        assert {s.by for s in strata} == {"kernel type", "kernel", "noise"}  # the rest does not differ
        for by in ("kernel type", "kernel", "noise"):
            assert sum(s.n for s in strata if s.by == by) == 24
        noise = [s.value for s in strata if s.by == "noise"]
        assert noise == ["up to 15 HU", "above 15 to 25 HU", "above 25 to 40 HU", "above 40 HU"]

    def test_lesions_by_artery_and_size(self, evaluation: Evaluation) -> None:
        rows = summarise(evaluation).lesions
        assert [(r.by, r.value) for r in rows] == [
            ("artery", "LAD"),
            ("artery", "RCA"),
            ("volume", "above 20 to 100 mm³"),
        ]
        assert sum(r.total for r in rows[:2]) == rows[2].total
        assert sum(r.found for r in rows[:2]) == rows[2].found

    def test_cases_of_one_patient_go_together(self, evaluation: Evaluation) -> None:
        one = replace(evaluation, cases=tuple(replace(c, patient="all the same") for c in evaluation.cases))
        assert all(e.method != "bootstrap" for e in summarise(one).statistics.values())

    def test_nothing_scored(self) -> None:
        empty = Evaluation(cases=(CaseResult(name="a", patient="a", status="failed", reason="why"),))
        summary = summarise(empty)
        assert all(e.value is None for e in summary.statistics.values())
        assert summary.strata == summary.lesions == ()


class Page(HTMLParser):
    """What a browser would load and show."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


class TestReport:
    def test_files(self, evaluation: Evaluation, tmp_path: Path) -> None:
        html = write_report(evaluation, summarise(evaluation), tmp_path)
        files = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*") if p.is_file()}
        assert files.keys() == {
            *("report.md", "report.html", "report.pdf", "cases.csv", "evaluation.json"),
            *(f"figures/{name}.{kind}" for name in NAMES for kind in ("png", "svg", "pdf")),
        }
        for name in NAMES:
            path = files[f"figures/{name}.png"]
            assert path.stat().st_size < 400_000
            with Image.open(path) as image:
                assert round(image.info["dpi"][0]) == 300
                assert len(np.unique(np.asarray(image.convert("L")))) > 10
        assert sum(p.stat().st_size for p in files.values()) < 6_000_000
        rows = list(csv.DictReader(files["cases.csv"].read_text().splitlines()))
        assert len(rows) == len(evaluation.cases)
        assert rows[-1]["status"] == "rejected"
        assert rows[-1]["patient"] == "'=1+1"
        content = json.loads(files["evaluation.json"].read_text())
        assert len(content["cases"]) == len(evaluation.cases)
        assert content["statistics"]["heart_dice_mean"]["n"] == 24
        # the page stands alone and escapes
        page = Page()
        page.feed(html.read_text())
        assert len(page.sources) == len(NAMES)
        assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
        assert "<b>x</b>|y" in page.text
        assert "too few *slices*" in page.text
        assert "b" not in page.tags

    def test_a_figure_that_cannot_be_drawn_is_left_out_and_said(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> Drawing:
            raise ValueError("no such axis")

        drawing = Drawing(png=b"", svg=b"", pdf=b"")
        assert all_drawn({"a": fail, "b": lambda: drawing}) == {"b": drawing}
        assert "the figure a is left out: it cannot be drawn (no such axis)" in caplog.text

    def test_it_says_what_it_is(self, evaluation: Evaluation) -> None:
        summary = summarise(evaluation)
        text = markdown(evaluation, summary, NAMES, note="Made for a test.")
        assert text.startswith("# Evaluation on simulated scans\n")
        assert "must not be used to diagnose" in text
        assert "say nothing about patients" in text
        assert "Made for a test." in text
        assert "25 of 25 patients: 24 scored, 1 rejected" in text
        assert f"{summary.statistics['spearman'].value:.3f}" in text
        real = replace(evaluation, cases=tuple(replace(c, simulated=False) for c in evaluation.cases))
        assert kind_of(real) == "real"
        assert "# Evaluation on real scans" in markdown(real, summarise(real), NAMES)
        mixed = replace(real, cases=(*real.cases, evaluation.cases[0]))
        assert "evaluate them apart" in markdown(mixed, summarise(mixed), NAMES)

    def test_training_data_is_no_test(self, evaluation: Evaluation) -> None:
        assert seen_in_training(evaluation) == {"heart": ["SIM-0020", "SIM-0021", "SIM-0022"]}
        about = {"name": "set", "sha256": "", "training_data": "Chests 0187 and 0506."}
        cases = tuple(CaseResult(name=n, patient=n) for n in ("0187", "018", "0306"))
        assert seen_in_training(Evaluation(cases=cases, weights={"calcium": about})) == {"calcium": ["0187"]}

    @pytest.mark.slow
    def test_the_same_evaluation_gives_the_same_bytes(self, evaluation: Evaluation, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_report(evaluation, summarise(evaluation), tmp_path / name)
        for path in (tmp_path / "a").rglob("*.*"):
            assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()

    def test_without_anything_scored(self, tmp_path: Path) -> None:
        empty = Evaluation(cases=(CaseResult(name="a", patient="a", status="failed", reason="why"),))
        page = write_report(empty, summarise(empty), tmp_path)
        assert "why" in page.read_text()
        assert not (tmp_path / "figures").exists()
