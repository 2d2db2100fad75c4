"""The model's folder for MHub, run by mhubio's own runner, with the tool as a program in another process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import yaml

import deepcac2
from deepcac2.dicom import discover, read_segmentation, read_series
from deepcac2.errors import WeightsMissing
from deepcac2.imaging.files import read_image
from deepcac2.scoring import score
from deepcac2.weights import resolve

pytest.importorskip("mhubio", reason="needs mhubio, which `make` installs without its dependencies")

ROOT = Path(__file__).resolve().parents[2]
(MODEL,) = (ROOT / "mhub" / "models").iterdir()
SCORED, THICK, EMPTY = "1.2.826.1", "1.2.826.2", "1.2.826.3"

# segdb 0.0.3, which core DsegConverter asks, knows texts only as pandas 2 had them.
RUNNER = """
import sys, warnings
import pandas
import mhubio.run as runner

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pandas.options.future.infer_string = False

runner.scan_local_modules.__defaults__ = (sys.argv[1],)  # else /app/models
runner.run(sys.argv[3])
assert not {"torch", "deepcac2"} & sys.modules.keys(), "the tool is to be a program of its own"
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deepcac2` as the image has it: a file that starts it, whatever Python's path says."""
    for role in ("heart", "calcium"):
        try:
            resolve("bundled", role)
        except WeightsMissing:
            pytest.skip("needs the bundled weights, which are not in this checkout")
    assert deepcac2.__file__ is not None
    path = tmp_path_factory.mktemp("bin") / "deepcac2"
    start = "import sys; from deepcac2.cli.main import main; sys.exit(main())"
    found = Path(deepcac2.__file__).parents[1]
    path.write_text(
        f'#!/bin/sh\n[ -z "$PYTHONPATH" ] || exit 99\n'
        f"PYTHONPATH='{found}' CUDA_VISIBLE_DEVICES= exec '{sys.executable}' -c '{start}' \"$@\"\n"
    )
    path.chmod(0o755)
    return path


def execute(folder: Path, workflow: str, program: Path, **modules: dict[str, Any]) -> Path:
    """Run a workflow on ``folder/data/input_data``; where its output is."""
    models = folder / "app" / "models"
    models.mkdir(parents=True)
    shutil.copytree(MODEL, models / MODEL.name, ignore=shutil.ignore_patterns("__pycache__"))
    config = models / MODEL.name / "config" / f"{workflow}.yml"
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["general"]["data_base_dir"] = str(folder / "data")
    content["modules"]["AgatstonRunner"]["program"] = str(program)
    for name, options in modules.items():
        content["modules"][name] |= options
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(models.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # dcmqi's program
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(models), "--config", str(config), "--print"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    (folder / "log.txt").write_text(done.stdout)
    return folder / "data" / "output_data"


# mhubio 0.0.2 sorts by a program that is not installed here and reads headers by what pydicom 3 has no more,
# so series come sorted and the modality is given.
SORTED = {"sort_data": False, "meta": {"mod": "ct"}}


@pytest.fixture(scope="module")
def run(simulated: Path, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series in, one of them too thick."""
    folder = tmp_path_factory.mktemp("mhub-model")
    files = sorted((simulated / "SIM-0003" / "ct").glob("*.dcm"))
    for uid, some in ((SCORED, files), (THICK, files[:30])):
        (folder / "data" / "input_data" / uid).mkdir(parents=True)
        for n, file in enumerate(some):
            ds = pydicom.dcmread(file)
            ds.SeriesInstanceUID = uid
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{n + 1}"
            if uid == THICK:
                ds.SliceThickness = 8
            ds.save_as(folder / "data" / "input_data" / uid / f"{n:03d}.dcm")
    execute(folder, "default", program, DicomImporter=SORTED)
    return folder


def output(run: Path, uid: str, kind: str) -> Path:
    return run / "data" / "output_data" / uid / f"{MODEL.name}.{kind}"


@pytest.mark.slow
def test_a_scan_comes_out_as_segmentation_score_and_group(run: Path) -> None:
    report = json.loads(output(run, SCORED, "report.json").read_text())
    details = json.loads(output(run, SCORED, "details.json").read_text())
    assert report == {
        "SeriesInstanceUID": SCORED,
        "Predicted Agatston Score": round(details["score"]["total"], 4),
        "Predicted Risk Group": details["score"]["risk_group"],
        "Status": "scored",
        "Reason": "",
    }
    series = next(s for s in discover(run / "data" / "input_data").series if s.series_uid == SCORED)
    volume = read_series(series).volume
    masks = read_segmentation(output(run, SCORED, "seg.dcm"), volume.geometry)
    again = score(volume, masks["calcium"])
    assert round(again.total, 4) == report["Predicted Agatston Score"] > 0
    assert int(again.risk_group) == report["Predicted Risk Group"]
    for name in ("heart", "calcium"):
        (image,) = (run / "data" / "sorted_data" / SCORED).rglob(f"{name}.nii.gz")
        np.testing.assert_array_equal(read_image(image)[0] > 0, masks[name])
    seg = pydicom.dcmread(output(run, SCORED, "seg.dcm"))
    assert {s.SegmentLabel for s in seg.SegmentSequence} == {
        "Heart",
        "Pathologic calcification in Coronary Artery",
    }
    assert seg.SeriesDescription.endswith(MODEL.name)


@pytest.mark.slow
def test_a_scan_that_is_refused_has_a_reason_and_nothing_else(run: Path) -> None:
    report = json.loads(output(run, THICK, "report.json").read_text())
    assert report["Status"] == "rejected"
    assert "--allow too-thick" in report["Reason"]
    assert report.keys() == {"SeriesInstanceUID", "Status", "Reason"}
    assert not output(run, THICK, "seg.dcm").exists()
    assert json.loads(output(run, THICK, "details.json").read_text())["code"] == "too-thick"


@pytest.mark.slow
def test_a_scan_without_calcium_has_a_heart_and_a_zero(
    shared_data: Path, program: Path, tmp_path: Path
) -> None:
    """Its pixels are coarse; what lets it pass is an option of the module."""
    shutil.copytree(shared_data / "chest" / "CIP-64x64", tmp_path / "data" / "input_data" / EMPTY)
    allowed = {"allow": ["coarse-pixels"]}
    execute(tmp_path, "default", program, DicomImporter=SORTED, AgatstonRunner=allowed)
    report = json.loads(output(tmp_path, EMPTY, "report.json").read_text())
    assert (report["Predicted Agatston Score"], report["Predicted Risk Group"]) == (0, 0)
    seg = pydicom.dcmread(output(tmp_path, EMPTY, "seg.dcm"))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["Heart"]


def test_a_program_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "data" / "input_data" / SCORED).mkdir(parents=True)
    (tmp_path / "data" / "input_data" / SCORED / "a.dcm").write_text("never read")
    execute(tmp_path, "default", Path("/nowhere/x"), DicomImporter=SORTED)
    assert "/nowhere/x is not here; set modules.AgatstonRunner.program" in (tmp_path / "log.txt").read_text()


@pytest.mark.slow
def test_3d_slicer_hands_over_nrrd_and_gets_masks_and_a_score(
    simulated: Path, program: Path, tmp_path: Path
) -> None:
    volume = read_series(discover(simulated / "SIM-0003" / "ct").series[0]).volume
    (tmp_path / "data" / "input_data").mkdir(parents=True)
    image = sitk.GetImageFromArray(volume.hu)
    geometry = volume.geometry
    image.SetSpacing([float(s) for s in geometry.spacing[::-1]])
    image.SetOrigin([float(o) for o in geometry.origin])
    axes = np.array(geometry.axes, dtype=float)[::-1]  # rows x, y, z: each a direction in the patient
    image.SetDirection(axes.T.ravel().tolist())
    path = tmp_path / "data" / "input_data" / "image.nrrd"
    sitk.WriteImage(image, str(path))
    alone = tmp_path / "alone"
    command = [str(program), "run", str(path), str(alone), "--keep", "nifti", "--quiet"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "no DICOM found" in done.stderr:
        pytest.skip("this version of the tool reads DICOM only")
    assert done.returncode == 0, done.stderr
    out = execute(tmp_path, "slicer", program)
    names = ("heart.nii.gz", "calcium.nii.gz")
    for name in names:
        (expected,) = alone.rglob(name)
        np.testing.assert_array_equal(read_image(out / name)[0], read_image(expected)[0])
    (details,) = alone.rglob("details.json")
    found = json.loads((out / "report.json").read_text())
    assert found["Predicted Agatston Score"] == round(json.loads(details.read_text())["score"]["total"], 4)
    described = {entry["file"]: entry["labels"] for entry in json.loads((out / "segdef.json").read_text())}
    assert described == {
        "heart.nii.gz": {"1": "HEART"},
        "calcium.nii.gz": {"1": "CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION"},
    }
