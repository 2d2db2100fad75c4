"""Annotated scans from the three layouts, against masks that were put there by hand or by the simulator."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepcac2.dicom import discover, read_series
from deepcac2.dicom.seg.writer import write_segmentation
from deepcac2.errors import TrainingError
from deepcac2.evaluation.datasets import AnnotatedScan, annotated_sources
from deepcac2.imaging import Geometry
from deepcac2.imaging.files import write_image

GRID = Geometry(
    shape=(4, 5, 6),
    spacing=(3.0, 2.0, 1.0),
    origin=(1.0, 2.0, 3.0),
    axes=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
)
HU = np.arange(120, dtype=np.int16).reshape(GRID.shape) - 50
LABELS = (np.arange(120).reshape(GRID.shape) % 4).astype(np.uint8)


def annotated_scans(folder: Path) -> list[AnnotatedScan]:
    return [source.load() for source in annotated_sources(folder)]


def nnunet(folder: Path, labels: object, *cases: str, ending: str = ".nii.gz") -> Path:
    """A data set in nnU-Net's layout whose cases all hold HU and LABELS."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))
    for case in cases:
        write_image(folder / "imagesTr" / f"{case}_0000{ending}", HU, GRID)
        write_image(folder / "labelsTr" / f"{case}{ending}", LABELS, GRID)
    return folder


@pytest.mark.parametrize(
    ("labels", "heart", "calcium"),
    [
        ({"background": 0, "heart": 1, "calcium": 2}, (1, 2), (2,)),
        ({"background": 0, "other": 1, "Coronary_Calcium": 3, "heart": 2}, (2, 3), (3,)),
        ({"background": 0, "heart": [1, 3], "coronary calcium": 3}, (1, 3), (3,)),
        ({"0": "background", "2": "heart"}, (2,), None),
        ({"background": 0, "CAC": 1}, None, (1,)),
    ],
)
def test_nnunets_labels_are_known_by_name(
    tmp_path: Path, labels: object, heart: tuple[int, ...] | None, calcium: tuple[int, ...] | None
) -> None:
    (scan,) = annotated_scans(nnunet(tmp_path, labels, "case"))
    assert scan.name == "case"
    assert scan.volume.geometry.same_grid(GRID)
    np.testing.assert_array_equal(scan.volume.hu, HU)
    for mask, values in ((scan.heart, heart), (scan.calcium, calcium)):
        if values is None:
            assert mask is None
        else:
            np.testing.assert_array_equal(mask, np.isin(LABELS, values))


def test_nnunets_other_file_endings(tmp_path: Path) -> None:
    scans = list(annotated_scans(nnunet(tmp_path, {"heart": 1}, "b", "a", ending=".nrrd")))
    assert [s.name for s in scans] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "write one with"),
        ("{", "write one with"),
        ('{"labels": [1]}', "write one with"),
        ('{"labels": {"heart": "one"}}', "write one with"),
        ('{"labels": {"background": 0, "aorta": 1}}', r"knows no label .* background, aorta"),
    ],
)
def test_a_data_set_of_unknown_labels_is_refused(tmp_path: Path, content: str | None, what: str) -> None:
    nnunet(tmp_path, {}, "case")
    (tmp_path / "dataset.json").unlink()
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(TrainingError, match=what):
        annotated_sources(tmp_path)


def test_an_image_without_its_label_is_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, {"heart": 1}, "case")
    (tmp_path / "imagesTr" / "case_0000.nii.gz").unlink()
    with pytest.raises(TrainingError, match="lacks the file"):
        annotated_sources(tmp_path)


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, {"heart": 1}, "case")
    write_image(tmp_path / "labelsTr" / "case.nii.gz", LABELS, replace(GRID, origin=(9.0, 0.0, 0.0)))
    with pytest.raises(TrainingError, match="resample the mask"):
        list(annotated_scans(tmp_path))


def test_folders_of_nrrd_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "image_3mm.nrrd", HU, GRID)
        write_image(tmp_path / name / "mask_3mm.nrrd", LABELS, GRID)
    first, second = annotated_scans(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    np.testing.assert_array_equal(first.heart, np.isin(LABELS, (1, 3)))
    np.testing.assert_array_equal(first.calcium, LABELS == 3)


def test_the_real_labelled_scans(shared_data: Path) -> None:
    scans = {s.name: s for s in annotated_scans(shared_data / "labelled")}
    assert sorted(scans) == ["0187", "0506"]
    for scan in scans.values():
        assert scan.heart is not None
        assert scan.calcium is not None
        assert 300 < scan.heart.sum() * scan.volume.geometry.voxel_volume / 1000 < 1500
        assert not (scan.calcium & ~scan.heart).any()
    # README of the data: the manual score of 0187 is 0, that of 0506 is not.
    assert not scans["0187"].calcium.any()  # type: ignore[union-attr]
    assert scans["0506"].calcium.any()  # type: ignore[union-attr]


def test_dicom_as_the_simulator_writes_it(simulated: Path) -> None:
    (source,) = annotated_sources(simulated)
    assert (source.name, source.patient) == ("SIM-0003/ct", "SIM-0003")
    scan = source.load()
    expected = read_series(discover(simulated / "SIM-0003" / "ct").series[0]).volume
    np.testing.assert_array_equal(scan.volume.hu, expected.hu)
    assert scan.series is not None
    assert scan.heart is not None
    assert scan.calcium is not None
    truth = json.loads((simulated / "SIM-0003" / "truth.json").read_text())
    volume = scan.volume.geometry.voxel_volume
    calcium_only = scan.calcium & (scan.volume.hu >= 130)
    assert calcium_only.sum() * volume == pytest.approx(truth["calcium_volume_mm3"], rel=0.3)
    assert scan.heart.sum() * volume / 1000 == pytest.approx(truth["heart_volume_ml"], rel=0.02)


def test_segs_of_one_series_are_joined_and_strangers_left_out(
    simulated: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ct = tmp_path / "scan" / "ct"
    shutil.copytree(simulated / "SIM-0003" / "ct", ct)
    series = discover(ct).series[0]
    geometry = read_series(series).volume.geometry
    empty = np.zeros(geometry.shape, dtype=bool)
    one, two = empty.copy(), empty.copy()
    one[10, 20, 30] = two[11, 21, 31] = True
    version = {"algorithm_version": "1", "geometry": geometry}
    write_segmentation(
        tmp_path / "scan" / "a.dcm", series=series, heart=one, calcium=empty, algorithm_name="a", **version
    )
    write_segmentation(
        tmp_path / "scan" / "b.dcm", series=series, heart=empty, calcium=two, algorithm_name="b", **version
    )
    stranger = replace(series, series_uid="1.2.3.4")
    write_segmentation(
        tmp_path / "c.dcm", series=stranger, heart=one, calcium=empty, algorithm_name="c", **version
    )
    with caplog.at_level(logging.WARNING):
        (scan,) = annotated_scans(tmp_path)
    assert scan.name == "scan/ct"
    np.testing.assert_array_equal(scan.heart, one | two)
    np.testing.assert_array_equal(scan.calcium, two)
    assert "c.dcm is left out" in caplog.text


def test_a_series_that_a_gate_rejects_is_left_out(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "thick").mkdir()
    for file in (shared_data / "chest" / "Lung_Dx-A0002").glob("*.dcm"):
        shutil.copy(file, tmp_path / "thick")
    series = discover(tmp_path).series[0]
    geometry = read_series(series).volume.geometry
    mask = np.zeros(geometry.shape, dtype=bool)
    write_segmentation(
        tmp_path / "t.dcm", series=series, geometry=geometry, heart=mask, calcium=mask, algorithm_version="1"
    )
    with pytest.raises(TrainingError, match="holds no annotated scan"):
        annotated_sources(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="is not a folder"):
        annotated_sources(tmp_path / "none")
    with pytest.raises(TrainingError, match="holds no annotated scan"):
        annotated_sources(tmp_path)


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    nnunet(tmp_path, {"heart": 1}, "a")
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "a" / "image.nrrd", HU, GRID)
    write_image(tmp_path / "a" / "mask.nrrd", LABELS, GRID)
    with pytest.raises(TrainingError, match="two scans named 'a'"):
        annotated_sources(tmp_path)
