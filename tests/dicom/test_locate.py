"""Finding one series under a folder: in a folder of its own, spread, among others, zipped, or not there."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pydicom
import pytest

from deepcac2.dicom import discover
from deepcac2.dicom.locate import SeriesLocator
from deepcac2.errors import InputUnreadable


@pytest.fixture(scope="module")
def files(simulated: Path) -> list[Path]:
    return sorted((simulated / "SIM-0003" / "ct").iterdir())[:12]


def another(path: Path, target: Path, uid: str) -> None:
    ds = pydicom.dcmread(path)
    ds.SeriesInstanceUID = uid
    ds.save_as(target)


def test_a_series_is_found_wherever_it_lies(files: list[Path], tmp_path: Path) -> None:
    """Each one as `discover` finds it."""
    for name in ("own", "left", "right", "mixed", "deep/er"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "own" / "LICENSE").write_text("none")
    for number, path in enumerate(files):
        shutil.copy(path, tmp_path / "own")
        another(path, tmp_path / ("left", "right")[number % 2] / path.name, "1.2.10")
        another(path, tmp_path / "mixed" / f"b{path.name}", "1.2.11")
        another(path, tmp_path / "mixed" / f"a{path.name}", "1.2.12")
        another(path, tmp_path / path.name, "1.2.13")
        another(path, tmp_path / "deep" / path.name, "1.2.13")  # the same file twice
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        for path in files:
            another(path, tmp_path / "deep" / "er" / "x", "1.2.14")
            archive.write(tmp_path / "deep" / "er" / "x", path.name)
    (tmp_path / "deep" / "er" / "x").unlink()
    expected = {series.series_uid: series for series in discover(tmp_path).series}
    assert len(expected) == 6
    locator = SeriesLocator(tmp_path)
    for uid, series in expected.items():
        found = locator.find(uid, images=len(series.slices))
        assert found is not None
        assert found.slices == series.slices
        assert locator.find(uid) is found


def test_what_is_not_there_is_not_found(files: list[Path], tmp_path: Path) -> None:
    for path in files:
        shutil.copy(path, tmp_path)
    locator = SeriesLocator(tmp_path)
    assert locator.find("1.2.3") is None
    assert locator.find("../../etc/passwd") is None
    uid = str(pydicom.dcmread(files[0]).SeriesInstanceUID)
    found = locator.find(uid, images=500)  # fewer than asked for: those that there are
    assert found is not None
    assert len(found.slices) == len(files)
    with pytest.raises(InputUnreadable, match="does not exist"):
        SeriesLocator(tmp_path / "nowhere")


def test_one_does_not_wait_for_ever(files: list[Path], tmp_path: Path) -> None:
    shutil.copy(files[0], tmp_path)
    with pytest.raises(TimeoutError, match="still looking"):
        SeriesLocator(tmp_path).find("1.2.3", patience=0)
