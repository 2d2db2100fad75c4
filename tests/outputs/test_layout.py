"""Images as NIfTI and NRRD, targets that put files elsewhere, and the report of the whole run.

The workflows here have no network, so that a run takes no time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import yaml

from deepcac2.batch.run import Means, RunSummary, run_folder
from deepcac2.dicom import discover, read_series
from deepcac2.errors import InputUnreadable, WorkflowError
from deepcac2.pipeline import Workflow

PATIENTS = {"1.2.826.1": "A", "1.2.826.2": "DeepCAC.report.json", "1.2.826.3": "../x y"}
REPORT = "DeepCAC.report.json"
TARGETS = [
    "nrrd:mod=ct-->[i:SeriesInstanceUID]/nrrd/ct.nrrd",
    f"json:mod=report-->[i:SeriesInstanceUID]/{REPORT}",
    f"json:mod=report:scope=global-->{REPORT}",
]


@pytest.fixture(scope="module")
def source(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three series of three patients, 28 slices each; and one that a gate refuses."""
    folder = tmp_path_factory.mktemp("layout") / "in"
    folder.mkdir()
    files = sorted((simulated / "SIM-0003" / "ct").glob("*.dcm"))[:28]
    for uid, patient in {**PATIENTS, "1.2.826.4": "thick"}.items():
        for n, file in enumerate(files):
            ds = pydicom.dcmread(file)
            ds.PatientID, ds.SeriesInstanceUID = patient, uid
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{n + 1}"
            ds.SliceThickness = 8 if patient == "thick" else ds.SliceThickness
            ds.save_as(folder / f"{uid}-{n}.dcm")
    return folder


def workflow(targets: list[str] = TARGETS) -> Workflow:
    content: dict[str, Any] = {
        "execute": ["DicomImporter", "NiftiConverter", "ReportExporter", "DataOrganizer"],
        "modules": {
            "ReportExporter": {
                "includes": [
                    {"label": "SeriesInstanceUID", "attr": "SeriesInstanceUID"},
                    {"label": "PatientID", "attr": "PatientID"},
                ]
            },
            "DataOrganizer": {"targets": targets},
        },
    }
    return Workflow.parse(yaml.safe_dump(content), name="layout")


def run(source: Path, out: Path, chosen: Workflow | None = None, **more: Any) -> RunSummary:
    return run_folder(source, out, workflow=chosen or workflow(), means=Means(), **more)


def written(folder: Path) -> set[str]:
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return {n for n in names if not n.startswith("logs/") and n.rpartition("/")[2] != "details.json"}


TABLES = {"results.csv", "results.parquet", "results.xlsx", "data_dictionary.csv", "run.json"}


@pytest.mark.parametrize(("kind", "ending"), [("nifti", "nii.gz"), ("nrrd", "nrrd")])
def test_images_are_kept_where_they_are_asked_for(
    source: Path, tmp_path: Path, kind: str, ending: str
) -> None:
    run(source, tmp_path, workflow([]), keep=[kind], only=["1.2.826.1"])
    assert written(tmp_path) - TABLES == {f"A/1.2.826.1/{REPORT}", f"A/1.2.826.1/ct.{ending}"}
    image = sitk.ReadImage(str(tmp_path / "A" / "1.2.826.1" / f"ct.{ending}"))
    volume = read_series(next(s for s in discover(source).series if s.series_uid == "1.2.826.1")).volume
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.hu)
    if kind == "nrrd":  # 64 bits in text; NIfTI has 32
        assert image.GetOrigin() == tuple(volume.geometry.origin)
        np.testing.assert_allclose(image.GetSpacing(), volume.geometry.spacing[::-1], rtol=1e-15)


def test_files_go_where_the_targets_say(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path)
    expected = {f"{uid}/nrrd/ct.nrrd" for uid in PATIENTS} | {f"{uid}/{REPORT}" for uid in PATIENTS}
    assert written(tmp_path) == expected | TABLES | {REPORT}
    reports = [
        {"SeriesInstanceUID": uid, "PatientID": patient}
        for uid, patient in sorted(PATIENTS.items(), key=lambda item: item[1])
    ]
    assert json.loads((tmp_path / REPORT).read_text()) == reports  # as in the table; what is refused has none
    for report in reports:
        assert json.loads((tmp_path / report["SeriesInstanceUID"] / REPORT).read_text()) == report
    assert (tmp_path / "%44eepCAC.report.json" / "1.2.826.2" / "details.json").exists()


def test_a_run_that_goes_on_makes_what_is_missing(source: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(source, whole)

    def same() -> bool:
        names = written(whole) - TABLES
        return written(out) - TABLES == names and all(
            (out / n).read_bytes() == (whole / n).read_bytes() for n in names
        )

    stopped = run(source, out, only=["1.2.826.3"])
    assert stopped.count("scored") == 1
    assert [r["SeriesInstanceUID"] for r in json.loads((out / REPORT).read_text())] == ["1.2.826.3"]
    assert run(source, out).count("scored") == 3
    assert same()
    for gone in ("1.2.826.1/nrrd/ct.nrrd", f"1.2.826.2/{REPORT}", REPORT):
        (out / gone).unlink()
    computed = run(source, out).statistics.series
    assert computed == 2  # and no other anew
    assert same()
    (out / "1.2.826.1" / REPORT).write_text("{")
    with pytest.raises(InputUnreadable, match=r"1\.2\.826\.1.*compute it again with --redo"):
        run(source, out)
    assert not json.loads((out / "run.json").read_text())["series"]["finished"]
    assert run(source, out, redo=True).statistics.series == 4  # all anew, the refused one too
    assert same()


KILLED = """
import sys, time
from pathlib import Path
from deepcac2.batch.run import Means, run_folder
from deepcac2.pipeline import Workflow

run_folder(
    Path(sys.argv[1]), Path(sys.argv[2]), workflow=Workflow.load(sys.argv[3]), means=Means(),
    watch=lambda progress: (print(progress.done, flush=True), progress.done == 1 and time.sleep(60)),
)
"""


def test_a_run_that_was_killed_leaves_nothing_by_halves(source: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "layout.yml"
    chosen = workflow()
    content = {
        "execute": [s.module for s in chosen.steps],
        "modules": {
            s.module: {"includes": s.options.includes}
            if s.module == "ReportExporter"
            else {"targets": TARGETS}
            for s in chosen.steps[2:]
        },
    }
    file.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-c", KILLED, str(source), str(out), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "1\n" in iter(process.stdout.readline, "")
        process.kill()
    assert not (out / REPORT).exists()
    for path in out.rglob(REPORT):
        if path.is_file():
            json.loads(path.read_text())
    before = {n: (out / n).stat().st_mtime_ns for n in written(out) if n.endswith(".nrrd")}
    assert 0 < len(before) < 3
    time.sleep(0.01)
    run(source, out, Workflow.load(file))
    assert len(json.loads((out / REPORT).read_text())) == 3
    assert {n: (out / n).stat().st_mtime_ns for n in before} == before  # what was done was not done again


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (f"json:mod=report:scope=global-->[i:PatientID]/{REPORT}", r"report of the run is one file: \[i:Pat"),
        (f"json:mod=report:scope=globe-->{REPORT}", "Perhaps you meant 'json:mod=report:scope=global'"),
        ("nrrd:mod=seg:model=deepcac-->x.nrrd", "unknown target 'nrrd:mod=seg:model=deepcac'"),
        (f"json:mod=report:scope=global-->../{REPORT}", "must stay inside"),
    ],
)
def test_a_wrong_target_is_an_error(target: str, message: str) -> None:
    with pytest.raises(WorkflowError, match=message):
        workflow([target])
