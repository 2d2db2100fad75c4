"""`deepcac2 inspect`: what is printed, and that nothing else happens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pyarrow import parquet
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from deepcac2.cli.main import main
from deepcac2.cli.registry import LISTS
from deepcac2.pipeline.gates import gates


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CT image without pixels whose patient has a hostile identifier, and a file that is no DICOM."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID = CTImageStorage, generate_uid(), "1.2.3"
    ds.Modality, ds.PatientID, ds.SeriesDescription = "CT", "../\x1b[31mred", "[bold]chest"
    ds.save_as(tmp_path / "a", enforce_file_format=True)
    (tmp_path / "b.dcm").write_text("no image")
    return tmp_path


def test_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    assert "../?[31mred" in out
    assert "[bold]chest" in out
    assert "no-geometry: 1 of 1 images" in out
    assert "b.dcm: named like DICOM" in out
    assert "0 series accepted, 1 rejected, 1 files unreadable, 0 other files ignored" in out
    assert err == ""


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (series,) = data["series"]
    assert (series["series_uid"], series["verdict"], series["reason"]) == ("1.2.3", "rejected", "no-geometry")
    assert series["patient_id"] == "../\x1b[31mred"
    assert data["unreadable"][0]["path"] == str(folder / "b.dcm")
    assert sorted(p.name for p in folder.iterdir()) == ["a", "b.dcm"]


def test_names_that_are_no_utf8(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = folder / os.fsdecode(b"caf\xe9")
    try:
        odd.mkdir()
        (folder / "a").rename(odd / "a")
        (folder / "b.dcm").rename(odd / os.fsdecode(b"\xe4.dcm"))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert main(["inspect", str(folder), "--index", str(folder / "index.parquet")]) == 0
    assert parquet.read_table(folder / "index.parquet")["folder"].to_pylist() == [f"{folder}/caf\\xe9"]
    capsys.readouterr()
    assert main(["inspect", str(folder), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.encode()
    data = json.loads(out)
    assert data["series"][0]["folder"] == f"{folder}/caf\\xe9"
    assert data["unreadable"][0]["path"] == f"{folder}/caf\\xe9/\\xe4.dcm"
    assert main(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.encode()
    assert "\\xe4.dcm: named like DICOM" in out


def test_gates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--gates"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(f"{code} ") for line in lines) for code in gates())
    assert main(["inspect", "--gates", "--json"]) == 0
    assert [g["code"] for g in json.loads(capsys.readouterr().out)] == list(gates())


@pytest.mark.parametrize("name", LISTS)
def test_what_is_registered_is_listed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"--{name}", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert main(["inspect", f"--{name}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for row in rows:
        first = next(iter(row.values()))
        assert any(line.startswith(f"{first} ") for line in lines), first


def test_options_are_listed_with_defaults_and_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    """As their dataclasses and docstrings say, several names in one line of these, too."""
    assert main(["inspect", "--modules", "--json"]) == 0
    found = {row["module"]: row for row in json.loads(capsys.readouterr().out)}
    options = {o["option"]: o for o in found["AGSCalculator"]["options"]}
    assert options["rule"] == {
        "option": "rule",
        "default": '"agatston"',
        "meaning": "A rule of `scoring.rules.named_rules`.",
    }
    importer = {o["option"]: o["meaning"] for o in found["DicomImporter"]["options"]}
    assert importer["sort_data"] == importer["meta"]
    assert importer["meta"].endswith("no file is copied.")
    assert [c["name"] for c in found["HeartRunner"]["columns"]] == ["heart_volume_ml"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect"], 10, "give the folder"),
        (["inspect", "nowhere"], 12, "does not exist"),
        (["inspect", "nowhere", "--allow", "too-thik"], 10, "Perhaps you meant 'too-thick'"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
