"""Hearts of others: found by what they refer to, taken as they are or refused, named wherever a result is."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from deepcac2.cli.main import main
from deepcac2.dicom import Series, discover, read_segmentation, read_series
from deepcac2.dicom.seg.codes import CHAMBERS
from deepcac2.errors import InputError, InputUnreadable, SeriesRejected
from deepcac2.imaging import Geometry, Volume
from deepcac2.models.heart.given import GivenHearts
from deepcac2.models.heart.step_given import TakeHeart
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.facts import CT, HEART, HEART_MEASURES, HEART_SOURCE
from deepcac2.system.hashing import sha256_of

Scan = tuple[Series, Volume, np.ndarray, Path]


@pytest.fixture(scope="module")
def scan(simulated: Path) -> Scan:
    """A CT, its heart as the simulation drew it, and the SEG with it."""
    (series,) = discover(simulated / "SIM-0003" / "ct").series
    reading = read_series(series)
    seg = simulated / "SIM-0003" / "truth.seg.dcm"
    heart = read_segmentation(seg, reading.volume.geometry)["heart"]
    return series, reading.volume, heart, seg


def taken(scan: Scan, root: Path, *segments: str) -> np.ndarray:
    return GivenHearts(root=root, segments=segments).of(scan[0], scan[1].geometry).mask


def code_of(scan: Scan, root: Path, *segments: str) -> str:
    with pytest.raises(SeriesRejected) as error:
        taken(scan, root, *segments)
    assert "\n" not in str(error.value)
    return error.value.code


def changed(scan: Scan, folder: Path, change: Callable[[pydicom.Dataset], Any], name: str = "x.dcm") -> Path:
    """A folder with the SEG, changed."""
    dataset = pydicom.dcmread(scan[3])
    change(dataset)
    folder.mkdir(exist_ok=True)
    dataset.save_as(folder / name)
    return folder


def test_a_seg_is_found_by_the_series_that_it_refers_to(scan: Scan, tmp_path: Path) -> None:
    series, volume, heart, seg = scan
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shutil.copy(seg, tmp_path / "deep" / "er" / "any name.dcm")
    shutil.copy(series.slices[0].path, tmp_path / "deep" / "ct.dcm")
    (tmp_path / "notes.txt").write_text("no heart")
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    given = GivenHearts(root=tmp_path).of(series, volume.geometry)
    assert np.array_equal(given.mask, heart)
    assert given.source["sha256"] == [sha256_of(seg)]
    assert given.source["segments"] == ["Heart"]
    assert np.array_equal(taken(scan, seg), heart)


def other_series(ds: pydicom.Dataset) -> None:
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()


def no_series(ds: pydicom.Dataset) -> None:
    del ds.ReferencedSeriesSequence


def half_a_pixel_aside(ds: pydicom.Dataset) -> None:
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[0] += 0.6


def a_slice_up(ds: pydicom.Dataset) -> None:
    """As where it was made on another series of the same frame of reference, a slice further."""
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 3.0819


def between_slices(ds: pydicom.Dataset) -> None:
    for frame in ds.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 1.54


def every_second_slice(ds: pydicom.Dataset) -> None:
    pixels = ds.pixel_array
    kept = [i for i, f in enumerate(ds.PerFrameFunctionalGroupsSequence) if i % 2]
    ds.PerFrameFunctionalGroupsSequence = [ds.PerFrameFunctionalGroupsSequence[i] for i in kept]
    ds.NumberOfFrames = len(kept)
    ds.PixelData = np.packbits(pixels[kept].ravel(), bitorder="little").tobytes()
    if len(ds.PixelData) % 2:
        ds.PixelData += b"\0"


def cropped(ds: pydicom.Dataset) -> None:
    """The frames without their last row; they lie on the CT's pixels all the same."""
    pixels = ds.pixel_array[:, :-1]
    ds.Rows -= 1
    ds.PixelData = np.packbits(pixels.ravel(), bitorder="little").tobytes()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (other_series, "heart-not-given"),
        (no_series, "heart-not-given"),
        (half_a_pixel_aside, "given-heart-off-grid"),
        (a_slice_up, "given-heart-off-grid"),
        (between_slices, "given-heart-off-grid"),
        (every_second_slice, "given-heart-off-grid"),
        (cropped, "given-heart-off-grid"),
    ],
)
def test_what_is_not_this_series_own_is_refused(
    scan: Scan, tmp_path: Path, change: Callable[[pydicom.Dataset], None], code: str
) -> None:
    assert code_of(scan, changed(scan, tmp_path / "in", change)) == code


def test_a_seg_that_names_no_series_counts_where_its_path_does(scan: Scan, tmp_path: Path) -> None:
    changed(scan, tmp_path / "in", no_series, f"{scan[0].series_uid}.dcm")
    assert np.array_equal(taken(scan, tmp_path / "in"), scan[2])


def test_two_segs_of_one_series_are_refused(scan: Scan, tmp_path: Path) -> None:
    changed(scan, tmp_path / "in", lambda ds: None, "a.dcm")
    changed(scan, tmp_path / "in", lambda ds: None, "b.dcm")
    assert code_of(scan, tmp_path / "in") == "several-hearts-given"


def test_a_damaged_seg_is_a_failure_and_no_missing_heart(scan: Scan, tmp_path: Path) -> None:
    whole = scan[3].read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    (tmp_path / scan[0].series_uid).mkdir()
    shutil.move(tmp_path / "cut.dcm", tmp_path / scan[0].series_uid / "cut.dcm")
    with pytest.raises((InputUnreadable, SeriesRejected)):
        taken(scan, tmp_path)


def relabelled(ds: pydicom.Dataset) -> None:
    item = ds.SegmentSequence[0]
    item.SegmentLabel = "Structure 7"
    item.SegmentedPropertyTypeCodeSequence[0].CodeValue = "85756007"


def test_segments_by_label_and_by_code(scan: Scan, tmp_path: Path) -> None:
    folder = changed(scan, tmp_path / "in", relabelled)
    assert code_of(scan, folder) == "given-heart-unknown"
    assert code_of(scan, folder, "Structure 8") == "given-heart-unknown"
    assert np.array_equal(taken(scan, folder, "structure 7"), scan[2])
    assert np.array_equal(taken(scan, folder, "85756007"), scan[2])
    assert np.array_equal(taken(scan, scan[3], "80891009"), scan[2])


def fifths(heart: np.ndarray) -> list[np.ndarray]:
    """A heart cut into five parts, from front to back."""
    rows = np.flatnonzero(heart.any(axis=(0, 2)))
    of = np.digitize(np.arange(heart.shape[1]), np.linspace(rows[0], rows[-1] + 1, 6)[1:-1])
    return [heart & (of == i)[None, :, None] for i in range(5)]


def test_the_five_chambers_make_a_heart(scan: Scan, tmp_path: Path) -> None:
    """Written by highdicom's own classes, as others write them."""
    series, _, heart, _ = scan
    images = [pydicom.dcmread(ref.path) for ref in series.slices]
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name.replace("_", " ").title(),
            segmented_property_category=Code("91723000", "SCT", "Anatomical Structure"),
            segmented_property_type=Code(code, "SCT", name),
            algorithm_type="AUTOMATIC",
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="Another program",
                version="1.5.6",
                family=Code("123110", "DCM", "Artificial Intelligence"),
            ),
        )
        for number, (name, code) in enumerate(CHAMBERS.items(), start=1)
    ]
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=np.stack(fifths(heart), axis=-1).astype(np.uint8),
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )
    seg.save_as(tmp_path / "seg.dcm")
    with pytest.raises(SeriesRejected, match="--heart-segments chambers") as error:
        taken(scan, tmp_path)
    assert error.value.code == "given-heart-unknown"
    given = GivenHearts(root=tmp_path, segments=("chambers",)).of(series, scan[1].geometry)
    assert np.array_equal(given.mask, heart)
    assert given.source["algorithm"] == "Another program 1.5.6"
    assert len(given.source["segments"]) == 5
    del seg.SegmentSequence[4]
    seg.save_as(tmp_path / "seg.dcm")
    assert code_of(scan, tmp_path, "chambers") == "given-heart-unknown"


def image(path: Path, array: np.ndarray, geometry: Geometry) -> Path:
    """Write an image by SimpleITK, its rows from back to front as many NIfTI files have them."""
    found = sitk.GetImageFromArray(array.astype(np.float32 if array.dtype.kind == "f" else np.uint8))
    found.SetSpacing(geometry.spacing[::-1])
    found.SetOrigin(geometry.origin)
    found.SetDirection(np.asarray(geometry.axes)[::-1].T.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.Flip(found, (False, True, False)), str(path))
    return path


def test_image_files_named_after_the_series(scan: Scan, tmp_path: Path) -> None:
    series, volume, heart, _ = scan
    uid, grid = series.series_uid, volume.geometry
    image(tmp_path / "a" / f"{uid}.nii.gz", heart, grid)
    assert np.array_equal(taken(scan, tmp_path / "a"), heart)
    image(tmp_path / "b" / "p" / uid / "heart.nii", heart, grid)
    image(tmp_path / "b" / "p" / uid / "aorta.nii", ~heart, grid)
    assert np.array_equal(taken(scan, tmp_path / "b"), heart)
    assert code_of(scan, tmp_path / "b", "liver") == "given-heart-unknown"
    for name, part in zip(CHAMBERS, fifths(heart), strict=True):
        image(tmp_path / "c" / uid / f"{name}.nii.gz", part, grid)
    assert code_of(scan, tmp_path / "c") == "given-heart-unknown"
    assert np.array_equal(taken(scan, tmp_path / "c", "chambers"), heart)
    (tmp_path / "c" / uid / "heart_atrium_left.nii.gz").unlink()
    assert code_of(scan, tmp_path / "c", "chambers") == "given-heart-unknown"
    image(tmp_path / "d" / "heart.nii.gz", heart, grid)  # of whom?
    assert code_of(scan, tmp_path / "d") == "heart-not-given"
    image(tmp_path / "e" / f"{uid}.nii.gz", heart, grid)
    image(tmp_path / "e" / f"{uid}.nrrd", heart, grid)
    assert code_of(scan, tmp_path / "e") == "several-hearts-given"


def test_label_maps_say_which_value(scan: Scan, tmp_path: Path) -> None:
    series, volume, heart, _ = scan
    labels = heart * np.uint8(51)
    labels[:, :20] = 7
    path = image(tmp_path / f"{series.series_uid}.nii.gz", labels, volume.geometry)
    assert code_of(scan, path) == "given-heart-unknown"
    assert code_of(scan, path, "50") == "given-heart-unknown"
    assert np.array_equal(taken(scan, path, "51"), heart)


def test_image_files_off_the_grid_or_of_fractions_are_refused(scan: Scan, tmp_path: Path) -> None:
    series, volume, heart, _ = scan
    grid, name = volume.geometry, f"{series.series_uid}.nii.gz"
    moved = Geometry(shape=grid.shape, spacing=grid.spacing, origin=(9.0, 9.0, 9.0), axes=grid.axes)
    assert code_of(scan, image(tmp_path / "a" / name, heart, moved)) == "given-heart-off-grid"
    half = Geometry(
        shape=grid.halved().shape, spacing=grid.halved().spacing, origin=grid.origin, axes=grid.axes
    )
    some = heart[: half.shape[0] * 2 : 2, ::2, ::2]
    assert code_of(scan, image(tmp_path / "b" / name, some, half)) == "given-heart-off-grid"
    assert code_of(scan, image(tmp_path / "c" / name, heart * 0.7, grid)) == "given-heart-unknown"


def test_the_gates_look_at_a_given_heart_too(scan: Scan, tmp_path: Path) -> None:
    series, volume, heart, seg = scan
    case = TakeHeart(hearts=GivenHearts(root=seg))(Case(series=series, facts={CT: volume}))
    assert case.stop is None
    assert np.array_equal(case[HEART].mask, heart)
    (said,) = (f for f in case.findings if f.code == "heart-given")
    assert said.caution
    assert not said.fatal
    far = np.zeros_like(heart)
    far[40:60, 60:90, 20:50] = True
    path = image(tmp_path / f"{series.series_uid}.nii.gz", far, volume.geometry)
    case = TakeHeart(hearts=GivenHearts(root=path))(Case(series=series, facts={CT: volume}))
    assert case.stop is not None
    assert case.stop.code in ("heart-implausible", "no-chest", "hu-implausible")
    assert HEART_SOURCE in case
    assert case[HEART_MEASURES]["heart_volume_ml"] > 0


def test_the_workflow_takes_it_in_the_place_of_the_network() -> None:
    for name in ("default", "cascade", "screening", "deepcac2"):
        workflow = Workflow.load(name)
        given = workflow.given(HEART, source="x", segments=["1"])
        modules = [entry.module for entry in workflow.steps]
        assert [e.module for e in given.steps] == [
            "HeartImporter" if module == "HeartRunner" else module for module in modules
        ]
        assert given.fingerprint() not in (
            workflow.fingerprint(),
            workflow.given(HEART, source="y").fingerprint(),
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--heart-segments", "chambers"], "give both"),
        (["--heart-from", "nowhere"], "there is no such folder"),
        (["--heart-from", ".", "--workflow", "boxes.yml"], "has no step that finds the heart mask"),
        (["--heart-from", ".", "--weights", "deepcac2-heart-4"], "has no HeartRunner"),
    ],
)
def test_contradictions_are_errors(
    simulated: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    direct = (Path(__file__).parents[2] / "config" / "direct.yml").read_text()
    own_boxes = direct.replace("- HeartRunner\n", "").replace("localise: heart", "localise: networks")
    (tmp_path / "boxes.yml").write_text(own_boxes.replace("  HeartRunner:\n    weights: bundled\n\n", ""))
    assert main(["run", str(simulated / "SIM-0003" / "ct"), str(tmp_path / "out"), *arguments]) != 0
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.csv").exists()


def test_no_hearts_at_all_is_an_error(scan: Scan, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither"):
        taken(scan, tmp_path)


def row_of(results: Path) -> dict[str, str]:
    with (results / "results.csv").open(newline="", encoding="utf-8") as file:
        (row,) = (row for row in csv.DictReader(file) if row["status"] == "scored")
    return row


SAYS_SO = {"heart_source", "caution", "warnings", "weights", "seconds"}
"""Columns in which the two runs must or may differ."""


@pytest.mark.slow
def test_the_chains_own_seg_gives_the_same_masks_score_and_table(
    simulated: Path, simulated_results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["run", str(simulated / "SIM-0003" / "ct"), str(out), "--devices", "cpu", "--prefetch", "0"]
    assert main([*command, "--keep", "nifti", "--heart-from", str(simulated_results)]) == 0
    assert "taken from cac.seg.dcm" in " ".join(capsys.readouterr().out.split())
    before, after = row_of(simulated_results), row_of(out)
    assert {n for n in before if before[n] != after[n]} <= SAYS_SO
    assert after["heart_source"].startswith("DICOM SEG, deepcac2 ")
    assert (before["heart_source"], "heart:" in before["weights"]) == ("", True)
    assert "taken from cac.seg.dcm" in after["caution"]
    assert "heart:" not in after["weights"]
    old, new = simulated_results / before["folder"], out / after["folder"]
    for name in ("heart.nii.gz", "calcium.nii.gz", "arteries.nii.gz"):
        masks = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in (old, new)]
        assert np.array_equal(*masks), name
        assert masks[0].any()
    details = json.loads((new / "details.json").read_text())
    assert details["heart_source"]["sha256"] == [sha256_of(old / "cac.seg.dcm")]
    assert "heart_source" not in json.loads((old / "details.json").read_text())
    seg, source = (pydicom.dcmread(folder / "cac.seg.dcm") for folder in (new, old))
    assert seg.pixel_array.shape == source.pixel_array.shape
    assert np.array_equal(seg.pixel_array, source.pixel_array)
    item = seg.SegmentSequence[0]
    assert item.SegmentAlgorithmName == source.SegmentSequence[0].SegmentAlgorithmName + " 0.1.0"
    assert source.SOPInstanceUID in item.SegmentDescription
    assert "SegmentationAlgorithmIdentificationSequence" in seg.SegmentSequence[1]
    texts = [str(e.value) for e in pydicom.dcmread(new / "cac.sr.dcm").iterall() if e.keyword == "TextValue"]
    assert any(text.startswith("Warning (heart-given)") for text in texts)
    assert any(text.startswith("Caution: the heart was not found by this program") for text in texts)
    assert any(f"heart from: DICOM SEG sha256 {sha256_of(old / 'cac.seg.dcm')}" in text for text in texts)
