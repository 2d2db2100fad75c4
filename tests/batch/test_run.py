"""The run over a folder with the bundled weights: one row for everything, nothing lost, nothing twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pyarrow import parquet
from pydicom.sr.codedict import codes

from deepcac2.batch.run import Means, Progress, RunSummary, run_folder
from deepcac2.dicom import discover, read_segmentation, read_series
from deepcac2.errors import OutputInsideInput, OutputMismatch
from deepcac2.imaging.files import read_image
from deepcac2.pipeline import Workflow

CopyOf = Callable[..., str]


def run(source: Path, output: Path, **options: object) -> tuple[RunSummary, list[Progress]]:
    seen: list[Progress] = []
    options.setdefault("workflow", Workflow.load("default"))
    summary = run_folder(source, output, means=Means(), watch=seen.append, **options)  # type: ignore[arg-type]
    return summary, seen


@pytest.fixture(scope="module")
def finished(
    simulated: Path, simulated_results: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunSummary]:
    """A run that finds all done, and its summary."""
    output = tmp_path_factory.mktemp("run") / "results"
    shutil.copytree(simulated_results, output)
    summary, _ = run(simulated, output, keep=["nifti"])
    return output, summary


def series_of(simulated: Path) -> str:
    return str(json.loads((simulated / "SIM-0003" / "truth.json").read_text())["series_uid"])


def test_everything_found_has_a_row(simulated: Path, finished: tuple[Path, RunSummary]) -> None:
    output, summary = finished
    assert {r.status for r in summary.rows} == {"scored", "rejected"}
    (scored,) = [r for r in summary.rows if r.status == "scored"]
    (rejected,) = [r for r in summary.rows if r.status == "rejected"]
    assert scored.series_uid == series_of(simulated)
    assert rejected.code == "not-ct"
    assert rejected.reason
    table = parquet.read_table(output / "results.parquet").to_pylist()
    with (output / "results.csv").open(newline="") as handle:
        text = list(csv.DictReader(handle))
    assert (
        [r["series_uid"] for r in table]
        == [r["series_uid"] for r in text]
        == [r.series_uid for r in summary.rows]
    )


def test_the_outputs_agree_with_each_other(simulated: Path, finished: tuple[Path, RunSummary]) -> None:
    output, summary = finished
    uid = series_of(simulated)
    folder = output / "SIM-0003" / uid
    report = json.loads((folder / "DeepCAC.report.json").read_text())
    assert list(report) == ["Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID"]
    details = json.loads((folder / "details.json").read_text())
    (row,) = [r for r in summary.rows if r.series_uid == uid]
    assert report["Predicted Agatston Score"] == row.agatston_score
    assert report["Predicted Agatston Score"] == pytest.approx(details["score"]["total"], abs=1e-4)
    assert report["Predicted Risk Group"] == row.risk_group == details["score"]["risk_group"]
    assert report["SeriesInstanceUID"] == uid
    assert details["score"]["rule"] == "agatston"
    assert details["provenance"]["weights"]["heart"]["sha256"]
    assert details["domain"]["scan"]["noise_hu"] == row.noise_hu
    assert row.noise_hu is not None
    assert row.noise_hu > 0
    assert ";".join(details["domain"]["outside"]) == row.off_domain
    assert {role: w["name"] for role, w in details["domain"]["weights"].items()} == {
        role: w["name"] for role, w in details["provenance"]["weights"].items()
    }
    series = next(s for s in discover(simulated).series if s.series_uid == uid)
    geometry = read_series(series).volume.geometry
    seg = folder / "cac.seg.dcm"
    masks = read_segmentation(seg, geometry)
    for name in ("heart", "calcium"):
        array, grid = read_image(folder / f"{name}.nii.gz")
        assert grid.same_grid(geometry)
        np.testing.assert_array_equal(array.astype(bool), masks[name])
    assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")
    calcium, _ = hd.sr.srread(folder / "cac.sr.dcm").content.get_volumetric_roi_measurement_groups()
    (reported,) = calcium.get_measurements(name=codes.SCT.CoronaryArteryCalciumScore)
    assert reported.value == round(details["score"]["total"], 2)
    assert calcium.referenced_segment.referenced_sop_instance_uid == pydicom.dcmread(seg).SOPInstanceUID
    assert {"cac.seg.dcm", "cac.sr.dcm"} <= set(details["outputs"])
    assert not list(output.rglob(".*"))


def test_odd_names_and_objects_among_the_images_keep_the_table(simulated: Path, tmp_path: Path) -> None:
    """A few slices, rejected as too few, and beside them what must not end the run."""
    source = tmp_path / "in"
    source.mkdir()
    paths = sorted((simulated / "SIM-0003" / "ct").iterdir())[:6]
    try:
        for i, path in enumerate(paths):
            shutil.copy(path, source / os.fsdecode(b"caf\xe9 %d" % i))
        (source / os.fsdecode(b"br\xe4ked.dcm")).write_text("nothing")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (source / "._x.dcm").write_bytes(bytes.fromhex("0005160700020000"))
    scout = pydicom.dcmread(paths[0])
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.SOPInstanceUID = "1.2.3"
    scout.save_as(source / "scout")
    output = tmp_path / os.fsdecode(b"r\xe9sultats")
    for _ in range(2):
        summary, _ = run(source, output)
        assert [(r.status, r.code) for r in summary.rows] == [
            ("failed", "unreadable-file"),
            ("rejected", "too-few-slices"),
        ]
        assert "br\\xe4ked.dcm" in summary.rows[0].reason
        assert "stray-images" in summary.rows[1].warnings
    with (output / "results.csv").open(newline="", encoding="utf-8") as handle:
        assert len(list(csv.DictReader(handle))) == 2
    details = json.loads((output / summary.rows[1].folder / "details.json").read_text())
    assert (details["series"]["n_slices"], details["series"]["left_out"]) == (6, 1)


def test_no_patient_identity_in_log_or_details(simulated: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepcac2", "run", str(simulated), str(tmp_path / "o"), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "o" / "logs").glob("*.log")
    text = log.read_text()
    assert series_of(simulated) in text
    assert "SIM-0003" not in text.replace(str(simulated), "")


def test_the_same_command_again_computes_nothing(simulated: Path, finished: tuple[Path, RunSummary]) -> None:
    output, before = finished
    marks = {p: p.stat().st_mtime_ns for p in output.rglob("*/*/*") if p.is_file()}
    again, seen = run(simulated, output, keep=["nifti"])
    assert [r.series_uid for r in again.rows] == [r.series_uid for r in before.rows]
    assert all(p.skipped for p in seen if p.row is not None)
    assert marks == {p: p.stat().st_mtime_ns for p in marks}


def test_a_missing_output_is_made_again_and_dicom_files_are_the_same_bytes(
    simulated: Path, finished: tuple[Path, RunSummary]
) -> None:
    """One SOPInstanceUID is one content: an archive would refuse another under it, or drop it."""
    output, _ = finished
    before = {p: p.read_bytes() for p in output.rglob("*.dcm")}
    assert {p.name for p in before} == {"cac.seg.dcm", "cac.sr.dcm"}
    written = {p: p.stat().st_mtime_ns for p in before}
    (output / "SIM-0003" / series_of(simulated) / "cac.sr.dcm").unlink()
    _, seen = run(simulated, output, keep=["nifti"])
    assert [p.skipped for p in seen if p.row and p.row.status == "scored"] == [False]
    assert {p: p.read_bytes() for p in output.rglob("*.dcm")} == before
    assert not written.items() & {p: p.stat().st_mtime_ns for p in before}.items()


def test_results_of_another_configuration_are_refused(
    simulated: Path, finished: tuple[Path, RunSummary]
) -> None:
    output, _ = finished
    other = Workflow.load("default").with_options("AGSCalculator", rule="classic")
    with pytest.raises(OutputMismatch, match="--redo"):
        run(simulated, output, workflow=other)


def test_output_inside_the_input_is_refused(simulated: Path) -> None:
    with pytest.raises(OutputInsideInput):
        run(simulated, simulated / "results")


def test_one_bad_series_does_not_stop_the_others(simulated: Path, tmp_path: Path, copy_of: CopyOf) -> None:
    source = tmp_path / "in"
    shutil.copytree(simulated / "SIM-0003" / "ct", source / "good")
    bad = source / "bad"
    bad_uid = copy_of(simulated / "SIM-0003" / "ct", bad, PatientID="../../x")
    broken = sorted(bad.iterdir())[40]
    broken.write_bytes(broken.read_bytes()[:-5000])
    (source / "notes.txt").write_text("not DICOM")
    summary, _ = run(source, tmp_path / "deep" / "er" / "out")
    statuses = {r.series_uid: (r.status, r.code) for r in summary.rows}
    assert statuses[series_of(simulated)] == ("scored", "")
    status, code = statuses[bad_uid]
    assert status in ("failed", "rejected")
    assert code
    assert ["escaped-id" in r.warnings for r in summary.rows if r.series_uid == bad_uid] == [True]
    # The evil PatientID named a folder inside the output and nothing outside it.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "in"]
    output = tmp_path / "deep" / "er" / "out"
    inside = [p.name for p in output.iterdir() if p.is_dir() and p.name != "logs"]
    assert len(inside) == 2
    assert all(".." not in Path(name).parts and "/" not in name for name in inside)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_no_half_file(
    simulated: Path, tmp_path: Path, copy_of: CopyOf
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for n in range(3):
        copy_of(simulated / "SIM-0003" / "ct", source / str(n))
    command = [
        sys.executable,
        "-m",
        "deepcac2",
        "run",
        str(source),
        str(output),
        "--device",
        "cpu",
        "--quiet",
    ]
    process = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list(output.glob("SIM-0003/*/details.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in output.glob("SIM-0003/*/details.json")}
    # What a kill in the middle of a write leaves behind, in a folder that is still to be done.
    unfinished = next(s for s in discover(source).series if s.series_uid not in {p.parent.name for p in done})
    half = output / "SIM-0003" / unfinished.series_uid / ".4711-7f00-cac.seg.dcm"
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(b"half")
    assert 1 <= len(done) < 3
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in done} == done
    table = parquet.read_table(output / "results.parquet").to_pylist()
    assert [r["status"] for r in table] == ["scored"] * 3
    assert not [p for p in output.rglob("*") if p.name.startswith(".")]
