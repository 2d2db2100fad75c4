"""Several methods on the same scans, against scipy, scikit-learn and counting by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from deepcac2.cli.main import main
from deepcac2.evaluation.methods import MethodCase, MethodResult, operating_points, statistics, table


def case(number: int, truth: float, **said: object) -> MethodCase:
    return MethodCase(name=f"s{number}", patient=f"p{number}", true_score=truth, **said)  # type: ignore[arg-type]


@pytest.fixture
def scoring() -> MethodResult:
    rng = np.random.default_rng(4)
    truth = np.where(rng.random(40) < 0.3, 0.0, rng.lognormal(4, 2, 40))
    said = np.where(rng.random(40) < 0.1, 0.0, truth * rng.lognormal(0, 0.5, 40))
    cases = [
        case(k, float(t), score=float(s), positive=bool(s > 0), seconds=float(k))
        for k, (t, s) in enumerate(zip(truth, said, strict=True))
    ]
    rejected = case(99, 500.0, status="rejected", reason="no")
    return MethodResult(method="default", cases=(*cases, rejected), peak_mb=1234.0)


@pytest.fixture
def excluding() -> MethodResult:
    highest = [0.9, 0.2, 0.6, 0.0, 0.3, 0.05, 0.7]
    truth = [100.0, 5.0, 30.0, 0.0, 0.0, 0.0, 0.0]
    cases = [
        case(k, t, highest=h, positive=h >= 0.25, excluded=h < 0.25)
        for k, (h, t) in enumerate(zip(highest, truth, strict=True))
    ]
    return MethodResult(method="cascade", cases=tuple(cases), peak_mb=1.0)


def test_statistics_against_other_libraries(scoring: MethodResult) -> None:
    found = statistics(scoring)
    scored = scoring.scored()
    assert len(scored) == 40
    truth, said = (np.array([getattr(c, k) for c in scored]) for k in ("true_score", "score"))
    assert found["spearman"].value == pytest.approx(spearmanr(truth, said).statistic)
    for name, limits in (("kappa_four", (1e-9, 100, 300)), ("kappa_five", (1, 10, 100, 400))):
        side = (
            "left" if name == "kappa_four" else "right"
        )  # a limit belongs below in the one, above in the other
        groups = [np.searchsorted(limits, x, side=side) for x in (truth, said)]
        assert found[name].value == pytest.approx(cohen_kappa_score(*groups, weights="linear"))
    assert found["sensitivity"].value == pytest.approx(np.mean(said[truth > 0] > 0))
    assert found["specificity"].value == pytest.approx(np.mean(said[truth == 0] == 0))
    assert found["seconds"].value == pytest.approx(19.5)


def test_operating_points_by_counting(excluding: MethodResult) -> None:
    every, most = operating_points(excluding, (1.0, 0.6))
    assert every == {"wanted": 1.0, "threshold": 0.2, "sensitivity": 1.0, "specificity": 0.5}
    assert most["threshold"] == 0.6
    assert most["sensitivity"] == pytest.approx(2 / 3)
    assert most["specificity"] == 0.75


def test_the_table_says_what_was_excluded_and_missed(scoring: MethodResult, excluding: MethodResult) -> None:
    lines = table([scoring, excluding]).splitlines()
    assert lines[0] == "| | default | cascade |"
    assert "| scans, of these scored | 41, 40 | 7, 7 |" in lines
    assert "| excluded without calcium | – | 2 of 4 |" in lines
    assert "| excluded with calcium: missed | – | 1 of 3 |" in lines


@pytest.mark.slow
def test_the_command_scores_as_the_run_does(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(simulated), str(tmp_path / "out"), "--devices", "cpu"]) == 0
    (details,) = (
        d for p in (tmp_path / "out").glob("*/*/details.json") if (d := json.loads(p.read_text()))["score"]
    )
    capsys.readouterr()
    report = tmp_path / "report"
    options = ["--data", str(simulated), "--device", "cpu", "--json", "--report", str(report)]
    assert main(["compare", "default", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    (found,) = content["methods"]["default"]["cases"]
    assert found["score"] == pytest.approx(details["score"]["total"])
    assert found["true_score"] > 0
    assert (report / "methods.md").read_text().startswith("# Methods on the same scans\n\n| | default |\n")
    assert (report / "figures" / "scores-default.png").stat().st_size > 5000
    assert "data:image/svg+xml" in (report / "methods.html").read_text()
