"""`deepcac2 evaluate`, run as a program sees it, on a real run of a small simulated patient."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from deepcac2.cli import evaluate as command
from deepcac2.errors import InputError, WorkflowError


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["evaluate", *(str(a) for a in arguments)])
    code: int = args.run(args)
    return code


@pytest.fixture(scope="module")
def results(simulated_results: Path) -> Path:
    return simulated_results


@pytest.mark.slow
def test_summary_and_report(
    simulated: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(results, simulated, "--report", tmp_path / "report", "--title", "My *own*") == 0
    text = capsys.readouterr().out
    assert text.startswith("simulated scans: 1 scored\n")
    assert "heart Dice, mean" in text
    assert str(tmp_path / "report" / "report.html") in text
    assert len(text.splitlines()) < 25
    assert (tmp_path / "report" / "report.md").read_text().startswith("# My \\*own\\*\n")
    assert "<title>My *own*</title>" in (tmp_path / "report" / "report.html").read_text()


def test_json(simulated: Path, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(results, simulated, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    (case,) = content["cases"]
    assert case["name"] == "SIM-0003"
    assert content["statistics"]["heart_dice_mean"]["value"] == pytest.approx(case["heart_dice"])
    assert sum(map(sum, content["confusion"])) == 1


def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    for arguments in (
        (),
        (tmp_path,),
        (tmp_path, tmp_path, "--data", tmp_path),
        (tmp_path, "--data", tmp_path),
    ):
        with pytest.raises(InputError, match="give RESULTS and TRUTH, or --data FOLDER"):
            run(*arguments)
    with pytest.raises(InputError, match="--device goes with --data"):
        run(tmp_path, tmp_path, "--device", "cpu")


def test_methods_without_a_scored_mask(simulated: Path, results: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match="deepcac2 compare"):
        run("--data", simulated, "--workflow", "direct", "--device", "cpu")
    with pytest.raises(WorkflowError, match=r"--rule classic: .* has no AGSCalculator"):
        run("--data", simulated, "--workflow", "direct", "--rule", "classic")
    other = shutil.copytree(results, tmp_path / "other")
    made = json.loads((other / "run.json").read_text())
    weights = made["made_with"]["weights"]
    weights["direct"] = weights.pop("calcium")  # as the run of another method says
    (other / "run.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match="deepcac2 compare"):
        run(other, simulated)
