"""Written patients: read back by pydicom, and checked by dciodvfy."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from deepcac2.cli import simulate as command
from deepcac2.dicom import discover, read_segmentation, read_series
from deepcac2.errors import InputError
from deepcac2.simulation import SimulatedPatient, default_geometry, sample_acquisition, simulate_patient
from deepcac2.simulation.dicom import write_patient

SEED = next(s for s in range(3, 60) if sample_acquisition(s).circle)


@pytest.fixture(scope="module")
def patient() -> SimulatedPatient:
    return simulate_patient(SEED, geometry=default_geometry(SEED, size=96, slices=24))


@pytest.fixture(scope="module")
def written(patient: SimulatedPatient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patient(patient, tmp_path_factory.mktemp("simulated"))


def test_pydicom_reads_the_same_hu_at_the_same_place(patient: SimulatedPatient, written: Path) -> None:
    geometry = patient.volume.geometry
    files = sorted((written / "ct").glob("*.dcm"))
    assert len(files) == geometry.shape[0]
    for i, file in enumerate(files):
        ds = pydicom.dcmread(file)
        hu = ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept
        hu[ds.pixel_array == ds.PixelPaddingValue] = -1024
        np.testing.assert_array_equal(hu, patient.volume.hu[i])
        np.testing.assert_allclose(ds.ImagePositionPatient, geometry.to_lps([i, 0, 0]), atol=1e-3)
        np.testing.assert_allclose(ds.PixelSpacing, geometry.spacing[1:], rtol=1e-6)
        assert list(ds.ImageOrientationPatient) == [1, 0, 0, 0, 1, 0]
        assert list(ds.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
        assert ds.PatientID == f"SIM-{SEED:04d}"


def test_the_header_tells_how_the_scan_was_taken(tmp_path: Path) -> None:
    makers = {"B30f": "SIEMENS", "BONE": "GE MEDICAL SYSTEMS", "L": "Philips", "FC10": "TOSHIBA"}
    for i, (kernel, maker) in enumerate(makers.items()):
        scan = replace(sample_acquisition(SEED), kernel=kernel, kvp=100.0 + 10 * i, thickness=1.5 + i)
        geometry = default_geometry(SEED, size=48, slices=6)
        folder = write_patient(simulate_patient(SEED, geometry=geometry, acquisition=scan), tmp_path / kernel)
        ds = pydicom.dcmread(folder / "ct" / "0001.dcm")
        assert (ds.ConvolutionKernel, ds.Manufacturer) == (kernel, maker)
        assert (ds.KVP, ds.SliceThickness) == (scan.kvp, scan.thickness)
        truth = json.loads((folder / "truth.json").read_text())["acquisition"]
        assert (truth["kernel"], truth["kvp"], truth["thickness_mm"]) == (kernel, scan.kvp, scan.thickness)
        assert truth["sharp_kernel"] == (kernel in ("BONE", "L"))


def test_the_reader_of_this_project_reads_it(patient: SimulatedPatient, written: Path) -> None:
    series = discover(written / "ct").series
    assert len(series) == 1
    volume = read_series(series[0]).volume
    assert volume.geometry.same_grid(patient.volume.geometry)
    np.testing.assert_array_equal(volume.hu, patient.volume.hu)


def test_the_segmentation_holds_the_truth(patient: SimulatedPatient, written: Path) -> None:
    masks = read_segmentation(written / "truth.seg.dcm", patient.volume.geometry)
    np.testing.assert_array_equal(masks["heart"], patient.heart)
    np.testing.assert_array_equal(masks["calcium"], patient.calcium)


def test_truth_json_tells_the_lesions_and_the_score(patient: SimulatedPatient, written: Path) -> None:
    truth = json.loads((written / "truth.json").read_text())
    assert truth["patient_id"] == written.name
    assert truth["lesions"] == patient.facts["lesions"]
    assert (truth["score"] > 0) <= bool(patient.calcium.any())


def test_the_same_patient_has_the_same_uids(patient: SimulatedPatient, written: Path, tmp_path: Path) -> None:
    again = write_patient(patient, tmp_path)
    for name in ("0001.dcm", "0024.dcm"):
        assert (again / "ct" / name).read_bytes() == (written / "ct" / name).read_bytes()


def test_dciodvfy_finds_no_error(written: Path) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("needs dciodvfy (Debian package dicom3tools), which is not installed")
    for file in (written / "ct" / "0001.dcm", written / "ct" / "0024.dcm", written / "truth.seg.dcm"):
        out = subprocess.run([tool, str(file)], capture_output=True, text=True, check=False)
        assert "Error" not in out.stdout + out.stderr, out.stdout + out.stderr


def call(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["simulate", *arguments])
    code: int = args.run(args)
    return code


def test_the_command_writes_patients_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [str(out), "--seed", "11", "--slices", "10", "--size", "48"]
    assert call(*arguments, "--patients", "1") == 0
    first = (out / "SIM-0011" / "truth.json").read_bytes()
    (out / ".SIM-0012.partial").mkdir()
    assert call(*arguments, "--patients", "2") == 0
    assert "SIM-0011  is there already" in capsys.readouterr().out
    assert (out / "SIM-0011" / "truth.json").read_bytes() == first
    assert sorted(p.name for p in out.iterdir()) == ["SIM-0011", "SIM-0012"]
    assert len(list((out / "SIM-0012" / "ct").glob("*.dcm"))) == 10


def test_a_version_of_the_simulator_draws_other_patients(tmp_path: Path) -> None:
    """The same seed is another patient there: other UIDs, and never beside those of another version."""
    arguments = ["--seed", "11", "--slices", "10", "--size", "48"]
    uids = {}
    for version in ("1", "2"):
        out = tmp_path / version
        assert call(str(out), *arguments, "--simulator", version) == 0
        assert json.loads((out / "SIM-0011" / "truth.json").read_text())["simulator"] == int(version)
        uids[version] = pydicom.dcmread(out / "SIM-0011" / "ct" / "0001.dcm").SeriesInstanceUID
    assert uids["1"] != uids["2"]
    assert call(str(tmp_path / "2"), *arguments, "--simulator", "2") == 0
    with pytest.raises(InputError, match=r"drawn by version 2 .*--simulator 2"):
        call(str(tmp_path / "2"), *arguments)
    with pytest.raises(InputError, match="leave --simulator out"):
        call(str(tmp_path / "3"), *arguments, "--simulator", "2", "--trial")


def test_the_command_refuses_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt.*empty folder"):
        call(str(tmp_path), "--slices", "8", "--size", "32")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


@pytest.mark.parametrize("bad", [["--patients", "0"], ["--size", "big"], ["--slices", "3"], ["--seed", "-1"]])
def test_the_command_refuses_impossible_numbers(bad: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        call(str(tmp_path / "out"), *bad)
    assert stop.value.code == 2
