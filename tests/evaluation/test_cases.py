"""Evaluation: results that equal the truth, that miss it, that are not there; stored and in memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage

from deepcac2.dicom import discover, read_segmentation, read_series, write_segmentation
from deepcac2.errors import InputError
from deepcac2.evaluation.cases import (
    evaluate_results,
    evaluate_scans,
    false_lesions,
    true_lesions,
)
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.files import write_image
from deepcac2.imaging.labels import ARTERIES, Labels
from deepcac2.pipeline import Workflow
from deepcac2.scoring import Rule, score

RUN = {
    "made_with": {
        "deepcac2": "1.2.3",
        "weights": {"heart": {"name": "mine", "sha256": "0" * 64}},
        "allowed_gates": [],
    }
}
CPU = torch.device("cpu")


def ct_of(simulated: Path):
    return next(s for s in discover(simulated).series if s.modality == "CT")


@pytest.fixture
def results(simulated: Path, tmp_path: Path) -> Path:
    """A results folder that holds the truth itself."""
    series = ct_of(simulated)
    volume = read_series(series).volume
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)
    home = tmp_path / "results"
    folder = home / "SIM-0003" / series.series_uid
    folder.mkdir(parents=True)
    shutil.copy(simulated / "SIM-0003" / "truth.seg.dcm", folder / "found.dcm")
    (folder / "cac.sr.dcm").write_bytes((folder / "found.dcm").read_bytes()[:200])
    content = {
        "status": "scored",
        "geometry": asdict(volume.geometry),
        "score": score(volume, masks["calcium"]).to_dict(),
        "outputs": ["cac.sr.dcm", "found.dcm"],
    }
    (folder / "details.json").write_text(json.dumps(content))
    (home / "run.json").write_text(json.dumps(RUN))
    return home


def test_the_truth_agrees_with_itself(simulated: Path, results: Path) -> None:
    evaluation = evaluate_results(results, simulated)
    (case,) = evaluation.cases
    known = json.loads((simulated / "SIM-0003" / "truth.json").read_text())
    assert (case.name, case.status, case.simulated) == ("SIM-0003", "scored", True)
    assert case.heart_dice == pytest.approx(1, abs=1e-4)
    assert case.calcium_dice == case.counted_dice == 1.0
    assert case.heart_hd95_mm == pytest.approx(0, abs=0.1)
    assert case.score == pytest.approx(known["score"])
    assert case.true_score == case.score > 0
    assert case.lesions
    assert all(lesion.found for lesion in case.lesions)
    assert {lesion.artery for lesion in case.lesions} <= {x["artery"] for x in known["lesions"]}
    assert case.false_lesions == ()
    assert case.kernel == known["acquisition"]["kernel"]
    assert case.thickness_mm == pytest.approx(known["acquisition"]["thickness_mm"])
    assert evaluation.version == "1.2.3"
    assert evaluation.weights["heart"]["name"] == "mine"
    assert evaluation.rule == "agatston"


def test_the_counted_dice_is_of_what_counts_by_the_rule(simulated: Path, results: Path) -> None:
    """A lone voxel is in no lesion of four pixels, and no difference to the rule."""
    series = ct_of(simulated)
    volume = read_series(series).volume
    folder = results / "SIM-0003" / series.series_uid
    masks = read_segmentation(folder / "found.dcm", volume.geometry)
    lone = np.argwhere((volume.hu >= 130) & ~ndimage.binary_dilation(masks["calcium"], np.ones((3, 3, 3))))[0]
    masks["calcium"][tuple(lone)] = True
    write_segmentation(
        folder / "found.dcm", series=series, geometry=volume.geometry, algorithm_version="0", **masks
    )
    content = json.loads((folder / "details.json").read_text())
    for rule, same in (("deepcac-v1", True), (Rule(name="every-voxel"), False)):
        content["score"] = score(volume, masks["calcium"], rule=rule).to_dict()
        (folder / "details.json").write_text(json.dumps(content))
        (case,) = evaluate_results(results, simulated).cases
        assert case.calcium_dice is not None
        assert case.calcium_dice < 1
        assert (case.counted_dice == 1) is same


def test_results_without_a_seg_beside_them_are_an_error(simulated: Path, results: Path) -> None:
    (folder,) = (results / "SIM-0003").iterdir()
    (folder / "found.dcm").unlink()
    (case,) = evaluate_results(results, simulated).cases
    assert (case.status, case.score) == ("failed", None)
    assert "names 0 DICOM SEGs" in case.reason


def test_a_moved_heart_and_no_calcium(simulated: Path, results: Path) -> None:
    series = ct_of(simulated)
    geometry = read_series(series).volume.geometry
    path = results / "SIM-0003" / series.series_uid / "found.dcm"
    masks = read_segmentation(path, geometry)
    heart = masks["heart"] | masks["calcium"]
    moved = np.roll(heart, 15, axis=2)
    nothing = np.zeros_like(moved)
    write_segmentation(
        path, series=series, geometry=geometry, heart=moved, calcium=nothing, algorithm_version="0"
    )
    (case,) = evaluate_results(results, simulated).cases
    assert case.heart_dice == pytest.approx(2 * (moved & heart).sum() / (2 * heart.sum()))
    assert case.centre_error_mm == pytest.approx(15 * geometry.spacing[2])
    assert case.crop_error_mm == pytest.approx(15 * geometry.spacing[2])
    assert 0 < case.heart_hd95_mm <= 15 * geometry.spacing[2] + 1e-9
    assert case.calcium_dice == case.counted_dice == 0.0
    assert not any(lesion.found for lesion in case.lesions)


def test_what_the_results_do_not_hold_is_missing(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (case,) = evaluate_results(tmp_path, simulated).cases
    assert case.status == "missing"
    assert case.true_score is not None
    assert case.heart_dice is None


def test_what_was_rejected_says_why(simulated: Path, results: Path) -> None:
    path = next(results.glob("*/*/details.json"))
    path.write_text(json.dumps({"status": "rejected", "code": "too-thick", "reason": "slices of 8 mm"}))
    (case,) = evaluate_results(results, simulated).cases
    assert (case.status, case.reason, case.score) == ("rejected", "slices of 8 mm", None)


def test_what_the_run_let_pass_is_judged(simulated: Path, results: Path, tmp_path: Path) -> None:
    """Slices of 8 mm that the run scored with --allow; the patient's folder is a link."""
    patient, truth = tmp_path / "elsewhere" / "SIM-0003", tmp_path / "truth"
    shutil.copytree(simulated / "SIM-0003", patient)
    for path in (patient / "ct").iterdir():
        ds = pydicom.dcmread(path)
        ds.SliceThickness = 8
        ds.save_as(path)
    truth.mkdir()
    (truth / "SIM-0003").symlink_to(patient)
    with pytest.raises(InputError, match="no annotated scan"):
        evaluate_results(results, truth)
    (results / "run.json").write_text(
        json.dumps({"made_with": {**RUN["made_with"], "allowed_gates": ["too-thick"]}})
    )
    (case,) = evaluate_results(results, truth).cases
    assert (case.status, case.heart_dice) == ("scored", 1.0)
    assert case.simulated


def test_annotations_without_a_usable_ct_are_listed(simulated: Path, results: Path, tmp_path: Path) -> None:
    """A SEG whose CT is absent, and one whose CT a gate rejects, beside a good one."""
    truth = tmp_path / "truth"
    shutil.copytree(simulated, truth)
    for name, uid in (("absent", "1.2.3"), ("thick", "1.2.4")):
        (truth / name).mkdir()
        seg = pydicom.dcmread(simulated / "SIM-0003" / "truth.seg.dcm")
        seg.ReferencedSeriesSequence[0].SeriesInstanceUID = uid
        seg.SOPInstanceUID = seg.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1"
        seg.SeriesInstanceUID = f"{uid}.2"
        seg.save_as(truth / name / "truth.seg.dcm")
    for path in sorted((simulated / "SIM-0003" / "ct").iterdir()):
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID, ds.SliceThickness = "1.2.4", 8
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.4.{ds.InstanceNumber}"
        ds.save_as(truth / "thick" / path.name)
    cases = {c.name: c for c in evaluate_results(results, truth).cases}
    assert cases.keys() == {"SIM-0003", "absent", "thick"}
    assert cases["SIM-0003"].status == "scored"
    assert cases["absent"].status == "unreadable"
    assert "CT is not in the folder" in cases["absent"].reason
    assert cases["thick"].status == "missing"


def test_errors(simulated: Path, results: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no annotated scan"):
        evaluate_results(results, tmp_path / "empty")
    with pytest.raises(InputError, match="deepcac2 run"):
        evaluate_results(tmp_path / "empty", simulated)
    with pytest.raises(InputError, match="pass for the truth"):
        evaluate_results(results, tmp_path)


# --- lesions ----------------------------------------------------------------------------------------------

GEOMETRY = Geometry(shape=(6, 30, 30), spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))


def scene() -> tuple[Volume, np.ndarray, np.ndarray]:
    """Three true lesions, one through two slices by a corner; one found by a corner only, one of soft voxels
    only in the prediction, one false lesion."""
    hu = np.full(GEOMETRY.shape, 40, np.int16)
    true, ours = np.zeros(GEOMETRY.shape, bool), np.zeros(GEOMETRY.shape, bool)
    hu[1, 2:4, 2:4] = 300  # found whole; goes on in the next slice across a corner
    hu[2, 4:6, 4:6] = 200
    true[1, 2:4, 2:4] = true[2, 4:6, 4:6] = True
    ours[1, 2:4, 2:4] = True
    hu[3, 10:13, 10:13] = 150  # found by one voxel
    true[3, 10:13, 10:13] = True
    ours[3, 12, 12] = True
    hu[4, 20:22, 20:22] = 400  # missed
    true[4, 20:22, 20:22] = True
    true[4, 25, 25] = True  # in the true mask, below 130 HU: no lesion
    hu[5, 5, 20:22] = 180  # false
    ours[5, 5, 20:22] = True
    hu[5, 8, 20] = 100  # in the predicted mask, below 130 HU: no lesion
    ours[5, 8, 20] = True
    return Volume(hu=hu, geometry=GEOMETRY), true, ours


def test_lesions_by_hand() -> None:
    volume, true, ours = scene()
    array = true.astype(np.uint8) * 2
    array[volume.hu == 150], array[volume.hu == 400] = 0, 4
    found = sorted(
        true_lesions(volume, true, ours, Labels(array=array, classes=ARTERIES)), key=lambda x: x.max_hu
    )
    assert [(x.max_hu, x.volume_mm3, x.found) for x in found] == [
        (150, 27.0, True),
        (300, 24.0, True),
        (400, 12.0, False),
    ]
    assert [x.artery for x in found] == ["", "LAD", "RCA"]
    assert false_lesions(volume, true, ours) == (6.0,)


def test_lesions_of_nothing() -> None:
    volume, true, ours = scene()
    nothing = np.zeros_like(true)
    assert true_lesions(volume, nothing, ours) == ()
    assert false_lesions(volume, true, nothing) == ()
    assert len(false_lesions(volume, nothing, ours)) == 3


# --- in memory --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_memory_as_stored(simulated: Path, simulated_results: Path) -> None:
    """The stages in memory and a run with its files come to the same case, field by field."""
    stored = evaluate_results(simulated_results, simulated)
    memory = evaluate_scans(simulated, workflow=Workflow.load("default"), device=CPU)
    assert memory == stored
    assert memory.scored[0].heart_dice > 0.7
    assert memory.weights["heart"]["training_data"]
    assert memory.weights["calcium"]["intended_use"]


def test_scans_that_cannot_be_scored_are_cases(tmp_path: Path) -> None:
    """A cube of air has no heart, and a mask on another grid is no truth."""
    grid = Geometry(shape=(40, 40, 40), spacing=(3.0, 3.0, 3.0), origin=(0.0, 0.0, 0.0))
    air = np.full(grid.shape, -1000, np.int16)
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:30, 10:30, 10:30] = 1
    for name, mask_grid in (("air", grid), ("shifted", replace(grid, origin=(9.0, 0.0, 0.0)))):
        write_image(tmp_path / name / "image_3mm.nrrd", air, grid)
        write_image(tmp_path / name / "mask_3mm.nrrd", labels, mask_grid)
    evaluation = evaluate_scans(tmp_path, workflow=Workflow.load("default"), device=CPU)
    cases = {c.name: c for c in evaluation.cases}
    assert cases["air"].status == "rejected"
    assert "heart" in cases["air"].reason
    assert cases["air"].true_heart_volume_ml == pytest.approx(20**3 * 27 / 1000)
    assert cases["air"].true_score == 0
    assert not cases["air"].simulated
    assert cases["shifted"].status == "unreadable"
    assert evaluation.scored == ()
