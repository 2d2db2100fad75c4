"""Evaluation: a result that equals the truth, one that misses everything, and one that is not there."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from deepcac2.dicom import discover, read_segmentation, read_series, write_segmentation
from deepcac2.errors import InputError
from deepcac2.scoring import score
from deepcac2.training.evaluation import dice, evaluate


@pytest.fixture
def results(simulated: Path, tmp_path: Path) -> Path:
    """A results folder that holds the truth itself."""
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    volume = read_series(series).volume
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)
    folder = tmp_path / "SIM-0003" / series.series_uid
    folder.mkdir(parents=True)
    shutil.copy(simulated / "SIM-0003" / "truth.seg.dcm", folder / "cac.seg.dcm")
    content = {
        "status": "scored",
        "geometry": asdict(volume.geometry),
        "score": score(volume, masks["calcium"]).to_dict(),
    }
    (folder / "details.json").write_text(json.dumps(content))
    return tmp_path


def test_the_truth_agrees_with_itself(simulated: Path, results: Path) -> None:
    evaluation = evaluate(results, simulated)
    (case,) = evaluation.cases
    assert case.heart_dice == case.calcium_dice == 1.0
    assert case.score == pytest.approx(case.true_score, abs=1e-6)
    assert case.score > 100
    assert evaluation.summary["risk_group_accuracy"] == 1.0
    assert evaluation.summary["sensitivity_above_0"] == 1.0
    assert evaluation.summary["specificity_above_0"] is None
    assert evaluation.summary["spearman"] is None


def test_a_heart_moved_by_its_width_has_a_low_dice(simulated: Path, results: Path) -> None:
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    geometry = read_series(series).volume.geometry
    path = results / "SIM-0003" / series.series_uid / "cac.seg.dcm"
    masks = read_segmentation(path, geometry)
    moved = np.roll(masks["heart"], 15, axis=2)
    expected = 2 * (moved & masks["heart"]).sum() / (2 * masks["heart"].sum())
    write_segmentation(
        path,
        series=series,
        geometry=geometry,
        heart=moved,
        calcium=np.zeros_like(moved),
        algorithm_version="0",
    )
    (case,) = evaluate(results, simulated).cases
    assert case.heart_dice == pytest.approx(expected)
    assert case.heart_dice < 0.9
    assert case.calcium_dice == 0.0


def test_what_was_not_scored_is_counted_as_such(simulated: Path, tmp_path: Path) -> None:
    evaluation = evaluate(tmp_path, simulated)
    assert [c.status for c in evaluation.cases] == ["missing"]
    assert evaluation.summary["n"] == 1
    assert evaluation.summary["scored"] == 0
    assert evaluation.summary["heart_dice_mean"] is None


def test_a_folder_without_truth_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="deepcac2 simulate"):
        evaluate(tmp_path, tmp_path)


def test_dice_by_hand() -> None:
    a, b = np.array([1, 1, 0, 0], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1.0
    assert dice(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)) == 1.0
