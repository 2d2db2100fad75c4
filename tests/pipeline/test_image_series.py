"""NIfTI and NRRD files as input: found, judged, read and scored like the DICOM series they were made from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from deepcac2.cli.main import main
from deepcac2.dicom import Discovery, discover, read_series
from deepcac2.dicom.series import slice_positions
from deepcac2.errors import InputError, NoDicomFound, SeriesFailed, SeriesRejected
from deepcac2.imaging.files import write_image
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.facts import CT
from deepcac2.pipeline.image_series import UNJUDGED, ImageSeries, find_series, read_image_series
from deepcac2.pipeline.reading import AT_LIMIT, build_volume, check_headers, cut_off
from deepcac2.pipeline.results import ResultRow, read_parquet


def converted(folder: Path, path: Path) -> sitk.Image:
    """The one DICOM series of a folder as another program's image, written to a path."""
    reader = sitk.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    image = reader.Execute()
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return image


def as_stored_by(order: str, path: Path, target: Path) -> None:
    """A NIfTI with its axes in another order or direction, such as ``LAS``; every voxel stays where it is."""
    image = nib.load(path)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(order)
    )
    nib.save(image.as_reoriented(turn), target)


def fresh_scan(path: Path, seed: int = 0, shape: tuple[int, int, int] = (40, 120, 120)) -> np.ndarray:
    """A file with noise of air in it, whose geometry no gate minds."""
    values = np.random.default_rng(seed).integers(-1024, 200, shape).astype(np.int16)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 2.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
    return values


def findings(found: Discovery) -> dict[str, set[str]]:
    return {s.series_description: {f.code for f in s.findings} for s in found.series}


def only_series(found: Discovery) -> ImageSeries:
    (series,) = found.series
    assert isinstance(series, ImageSeries)
    return series


def test_files_are_found_beside_dicom(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "dicom").symlink_to(simulated / "SIM-0003")
    fresh_scan(tmp_path / "a" / "scan.nii.gz", 1)
    fresh_scan(tmp_path / "b" / "scan.nii.gz", 2)
    fresh_scan(tmp_path / "TRIAL.nrrd", 3)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "._scan.nii.gz").write_bytes(b"\0\5\x16\7 what macOS keeps of a file")
    found = find_series(tmp_path)
    images = [s for s in found.series if isinstance(s, ImageSeries)]
    assert len(found.series) - len(images) == 2  # a CT and its SEG
    assert [s.patient_id for s in found.series] == sorted(s.patient_id for s in found.series)
    assert {(s.patient_id, s.series_description, s.format) for s in images} == {
        ("TRIAL", "TRIAL.nrrd", "NRRD"),
        ("scan", "a/scan.nii.gz", "NIfTI"),
        ("scan", "b/scan.nii.gz", "NIfTI"),
    }
    assert len({s.series_uid for s in images}) == 3
    assert all(re.fullmatch(r"2\.25\.[1-9]\d{1,38}", s.series_uid) for s in images)
    assert (found.ignored, found.unreadable) == (3, ())  # with the simulator's own notes


def test_one_file_and_nothing_but_files(tmp_path: Path) -> None:
    fresh_scan(tmp_path / "x" / "a.b.nii")
    one = only_series(find_series(tmp_path / "x" / "a.b.nii"))
    assert one.patient_id == "a.b"
    moved = tmp_path / "y" / "deep" / "other.nii"
    moved.parent.mkdir(parents=True)
    (tmp_path / "x" / "a.b.nii").rename(moved)
    again = only_series(find_series(tmp_path))
    assert (again.series_uid, again.patient_id) == (one.series_uid, "other")
    (tmp_path / "x" / "nothing.txt").write_text("hello")
    with pytest.raises(NoDicomFound):
        find_series(tmp_path / "x")


@pytest.mark.parametrize(
    ("pattern", "patient"),
    [
        ("", "NLST_1234_T0"),
        ("^([^/]+)/", "site"),
        (r"_(\d+)_", "1234"),
        (r"\d+", "1234"),
        (r"(T\d)$", "T0"),
    ],
)
def test_the_patient_is_in_the_name(tmp_path: Path, pattern: str, patient: str) -> None:
    fresh_scan(tmp_path / "site" / "NLST_1234_T0.nii.gz")
    assert only_series(find_series(tmp_path, patient_from=pattern)).patient_id == patient


def test_a_name_without_a_patient_and_a_pattern_that_is_none(tmp_path: Path) -> None:
    fresh_scan(tmp_path / "scan.nii.gz")
    found = find_series(tmp_path, patient_from="^P(.*)$")
    assert (len(found.series), len(found.unreadable)) == (0, 1)
    assert "--patient-from ^P(.*)$" in found.unreadable[0].reason
    with pytest.raises(InputError, match="no regular expression"):
        find_series(tmp_path, patient_from="(")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    fresh_scan(tmp_path / "a.nii.gz")
    try:
        (tmp_path / "a.nii.gz").rename(tmp_path / os.fsdecode(b"caf\xe9.nii.gz"))
    except OSError:
        pytest.skip("this file system takes no such names")
    series = only_series(find_series(tmp_path))
    assert (series.patient_id, series.series_description) == ("caf\\xe9", "caf\\xe9.nii.gz")


def test_copies_are_an_error(tmp_path: Path) -> None:
    fresh_scan(tmp_path / "a" / "P1.nii.gz")
    fresh_scan(tmp_path / "P3.nii.gz", 7)
    (tmp_path / "P2.nii.gz").write_bytes((tmp_path / "a" / "P1.nii.gz").read_bytes())
    found = find_series(tmp_path)
    assert only_series(found).patient_id == "P3"
    said = {u.path.name: u.reason for u in found.unreadable}
    assert "a/P1.nii.gz" in said["P2.nii.gz"]
    assert "P2.nii.gz" in said["P1.nii.gz"]


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    fresh_scan(tmp_path / "good.nii.gz")
    raw = (tmp_path / "good.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(raw[:20])
    (tmp_path / "text.nrrd").write_text("hello")
    image = nib.Nifti1Pair(np.zeros((4, 4, 4), np.int16), np.eye(4))
    nib.save(image, tmp_path / "pair.hdr")
    (tmp_path / "detached.nhdr").write_text("NRRD0004\ndata file: /etc/passwd\n")
    (tmp_path / "sky.hdr").write_text("#?RADIANCE")
    found = find_series(tmp_path)
    assert findings(found).keys() == {"good.nii.gz"}
    said = {u.path.name: u.reason for u in found.unreadable}
    assert said.keys() == {"cut.nii.gz", "text.nrrd", "pair.hdr", "detached.nhdr"}
    assert "dcm2niix" in said["pair.hdr"]
    assert found.ignored == 2  # pair.img and sky.hdr


def test_a_doubtful_header_is_a_rejection_with_a_row(tmp_path: Path) -> None:
    values = fresh_scan(tmp_path / "P1.nii.gz")
    image = nib.Nifti1Image(values.T, np.diag([1, 1, 2.5, 1]))
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "P1.nii.gz")
    series = only_series(find_series(tmp_path))
    case = check_headers(Case(series=series))
    assert case.stop is not None
    assert (case.stop.status, case.stop.code) == ("rejected", "doubtful-header")
    assert "neither its qform nor its sform" in case.stop.reason
    assert series.patient_id == "P1"


OFTEN, ELSE = ("RAS", "PIR"), ("LPS", "LAS", "RPI", "LAI")


def test_a_header_that_was_lost_is_refused(tmp_path: Path) -> None:
    """What is written by programs that were given an array alone; a scan's score by it is any other."""
    values = fresh_scan(tmp_path / "whole" / "a.nrrd")
    for name in ("simpleitk.nii.gz", "simpleitk.nrrd"):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / name / name))
    (tmp_path / "nibabel").mkdir()
    nib.save(nib.Nifti1Image(values.T, np.eye(4)), tmp_path / "nibabel" / "a.nii.gz")
    for name in ("simpleitk.nii.gz", "simpleitk.nrrd", "nibabel"):
        case = check_headers(Case(series=only_series(find_series(tmp_path / name))))
        assert case.stop is not None, name
        assert case.stop.code == "doubtful-header"
        assert "the scan's own header was lost" in case.stop.reason
    image = sitk.GetImageFromArray(values)
    image.SetOrigin((-100.0, -120.0, 30.0))
    sitk.WriteImage(image, str(tmp_path / "nibabel" / "b.nrrd"))  # resampled to 1 mm, and placed
    found = findings(find_series(tmp_path / "nibabel"))
    assert "doubtful-header" not in found["b.nrrd"]


def test_what_was_cut_off_is_refused_or_said(simulated: Path, tmp_path: Path) -> None:
    """As data sets that were made for other networks are."""
    (series,) = (s for s in discover(simulated).series if s.modality == "CT")
    volume = read_series(series).volume
    assert cut_off(volume.hu) is None

    def built(limit: int) -> Case:
        path = tmp_path / str(limit) / "a.nii.gz"
        path.parent.mkdir()
        write_image(path, np.minimum(volume.hu, limit).astype(np.int16), volume.geometry)
        return build_volume(Case(series=only_series(find_series(path.parent))))

    for limit in (240, 399):
        with pytest.raises(SeriesRejected, match=f"nothing is above {limit} HU") as caught:
            built(limit)
        assert caught.value.code == "hu-clipped"
    assert [(f.code, f.fatal) for f in built(400).findings] == [("hu-clipped", False)]
    hu = volume.hu.copy()
    hu[0].flat[:AT_LIMIT] = 1999
    assert cut_off(np.minimum(hu, 1999)) == 1999
    assert cut_off(np.minimum(hu, 1998)) == 1998
    hu[0].flat[:AT_LIMIT] = 2000  # where scanners themselves end
    assert cut_off(np.minimum(hu, 2000)) is None


@pytest.mark.parametrize("order", [*OFTEN, *(pytest.param(o, marks=pytest.mark.slow) for o in ELSE)])
def test_gates_judge_a_file_as_its_dicom(simulated: Path, tmp_path: Path, order: str) -> None:
    """However its axes run; those of DICOM are LPS. PIR is sagittal, which no DICOM may be either."""
    converted(simulated / "SIM-0003" / "ct", tmp_path / "scan.nii.gz")
    as_stored_by(order, tmp_path / "scan.nii.gz", tmp_path / "scan.nii.gz")
    dicom = next(s for s in find_series(simulated).series if s.modality == "CT")
    series = only_series(find_series(tmp_path))
    codes = {f.code for f in series.findings}
    if order == "PIR":
        assert "not-axial" in codes
        return
    assert codes == {f.code for f in dicom.findings} - {"sharp-kernel"} | {"kvp", "not-known"}
    assert series.not_known == UNJUDGED
    said = next(f.message for f in series.findings if f.code == "not-known")
    assert "contrast" in said
    assert "sharp-kernel" in said
    assert series.increment == pytest.approx(dicom.increment, rel=1e-5)
    positions = slice_positions(series.slices)
    assert positions is not None
    assert (np.diff(positions) > 0).all()
    assert sorted(s.frame for s in series.slices) == list(range(len(dicom.slices)))
    both = [build_volume(Case(series=s))[CT] for s in (dicom, series)]
    for point in ([0, 0, 0], [10, 20, 30], [50, 200, 100]):
        place = both[0].geometry.to_lps(point)
        z, y, x = np.rint(both[1].geometry.to_index(place)).astype(int)
        np.testing.assert_allclose(both[1].geometry.to_lps([z, y, x]), place, atol=1e-3)
        assert both[0].hu[tuple(point)] == max(both[1].hu[z, y, x], -1024), point  # what pads DICOM


def test_gates_of_the_grid(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((10, 120, 120), np.int16))
    image.SetSpacing((1.5, 1.5, 6.0))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    (codes,) = findings(find_series(tmp_path)).values()
    assert {"coarse-pixels", "too-few-slices", "too-thick"} <= codes
    allowed = find_series(tmp_path, allow=["coarse-pixels", "too-few-slices", "too-thick"])
    assert only_series(allowed).rejection is None


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mask": lambda v: (v > 0).astype(np.uint8),
    "labels": lambda v: (v % 7).astype(np.int16),
    "picture": lambda v: np.clip((v + 160) / 400 * 255, 0, 255).astype(np.uint8),
    "no rescale": lambda v: (v + 1024).astype(np.uint16),
    "normalised": lambda v: (v / 300).astype(np.float32),
}


@pytest.mark.parametrize("kind", MASKS)
def test_what_is_no_ct_is_rejected(tmp_path: Path, kind: str) -> None:
    values = fresh_scan(tmp_path / "a.nii.gz")
    image = sitk.GetImageFromArray(MASKS[kind](values))
    image.SetSpacing((1.0, 1.0, 2.5))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    with pytest.raises(SeriesRejected, match="its values go from") as caught:
        read_image_series(only_series(find_series(tmp_path)))
    assert caught.value.code == "not-hu"


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    values = fresh_scan(tmp_path / "a.nrrd").astype(np.float32)
    values[3, 4, 5] = np.nan
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, 2.5))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(SeriesRejected, match="NaN") as caught:
        read_image_series(only_series(find_series(tmp_path)))
    assert caught.value.code == "not-hu"


def test_blank_slices_and_impossible_values(tmp_path: Path) -> None:
    values = fresh_scan(tmp_path / "a.nrrd")

    def write(name: str) -> ImageSeries:
        image = sitk.GetImageFromArray(values)
        image.SetSpacing((1.0, 1.0, 2.5))
        sitk.WriteImage(image, str(tmp_path / name))
        return only_series(find_series(tmp_path / name))

    values[0, :3] = 32000
    reading = read_image_series(write("a.nrrd"))
    assert [f.code for f in reading.findings] == ["hu-impossible"]
    values[-1] = -1000
    with pytest.raises(SeriesRejected, match="1 of 40 slices") as caught:
        read_image_series(write("b.nrrd"))
    assert caught.value.code == "blank-slices"


def test_a_file_that_changed_since_it_was_found(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    fresh_scan(path)
    series = only_series(find_series(tmp_path))
    fresh_scan(path, 5)
    with pytest.raises(SeriesFailed, match="replaced") as caught:
        read_image_series(series)
    assert caught.value.code == "input-unreadable"
    path.unlink()
    with pytest.raises(SeriesFailed, match="cannot be read"):
        read_image_series(series)


# A whole run


def rows_of(output: Path) -> dict[str, ResultRow]:
    return {row.series_description or row.series_uid: row for row in read_parquet(output / "results.parquet")}


def as_lps(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"))


@pytest.mark.slow
def test_a_run_over_dicom_and_files(trial: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One scan three times: DICOM, NIfTI with turned rows as dcm2niix writes it, NRRD from head to feet; and
    a mask and a damaged file beside them."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    allow = ["--allow", "coarse-pixels"]  # a field of 96 pixels, for speed
    found = find_series(trial / "ct", allow=allow[1:])
    home = next(s.slices[0].path.parent for s in found.series if s.rejection is None)
    (folder / "dicom").symlink_to(home)
    image = converted(home, folder / "a_P1.nii.gz")
    as_stored_by("LAS", folder / "a_P1.nii.gz", folder / "a_P1.nii.gz")
    sitk.WriteImage(sitk.DICOMOrient(image, "LPI"), str(folder / "a_P2.nrrd"), useCompression=True)
    mask = sitk.Cast(image > 100, sitk.sitkUInt8)
    sitk.WriteImage(mask, str(folder / "a_P1.seg.nrrd"), useCompression=True)
    (folder / "a_P3.nii").write_bytes(b"hello")
    command = ["run", str(folder), str(out), "--keep", "nifti", "--patient-from", "_([^.]+)", *allow]
    assert main(command) == 1
    screen = capsys.readouterr().out
    assert screen.count("no DICOM SEG and SR") == 1

    rows = rows_of(out)
    assert len(rows) == 5
    dicom = next(row for name, row in rows.items() if row.study_uid)
    assert dicom.status == "scored"
    assert dicom.agatston_score > 10
    reference = {n: as_lps(out / dicom.folder / f"{n}.nii.gz") for n in ("heart", "calcium")}
    for name, ending in (("a_P1.nii.gz", "nii.gz"), ("a_P2.nrrd", "nrrd")):
        row = rows[name]
        assert row.status == "scored"
        assert row.agatston_score == pytest.approx(dicom.agatston_score, rel=1e-5)
        assert row.n_lesions == dicom.n_lesions
        assert (row.kernel, row.kvp, row.study_uid) == ("", None, "")
        assert "not-known" in row.warnings
        place = out / row.folder
        for mask_name, expected in reference.items():
            np.testing.assert_array_equal(as_lps(place / f"{mask_name}.{ending}"), expected)
            written = sitk.ReadImage(str(place / f"{mask_name}.{ending}"))
            given = sitk.ReadImage(str(folder / name))
            assert written.GetSize() == given.GetSize()
            np.testing.assert_allclose(written.GetDirection(), given.GetDirection(), atol=1e-6)
            np.testing.assert_allclose(written.GetOrigin(), given.GetOrigin(), atol=1e-3)
        files = {p.name for p in place.iterdir()}
        assert {"preview.png", "DeepCAC.report.json", "details.json"} <= files
        assert not any(file.endswith(".dcm") for file in files)
        report = json.loads((place / "DeepCAC.report.json").read_text())
        assert report["SeriesInstanceUID"] == row.series_uid
        details = json.loads((place / "details.json").read_text())
        assert details["series"]["not_known"] == list(UNJUDGED)
        assert details["series"]["series_description"] == name
        assert details["outputs"] == sorted(files - {"details.json"})
    assert rows["a_P1.nii.gz"].patient_id == "P1"
    assert not any("not_known" in p.read_text() for p in (out / dicom.folder).glob("details.json"))
    assert (rows["a_P1.seg.nrrd"].status, rows["a_P1.seg.nrrd"].code) == ("rejected", "not-hu")
    assert "a mask" in rows["a_P1.seg.nrrd"].reason
    assert [r.code for r in rows.values() if r.status == "failed"] == ["unreadable-file"]

    # the same command again computes nothing, wherever the files lie; a table chooses as it does of DICOM
    (folder / "a_P3.nii").unlink()
    (folder / "moved").mkdir()
    (folder / "a_P2.nrrd").rename(folder / "moved" / "a_P2.nrrd")
    assert main(command) == 0
    assert capsys.readouterr().err.count("(was there)") == 4
    table = tmp_path / "table.csv"
    table.write_text(f"series_uid\n{rows['a_P1.seg.nrrd'].series_uid}\n")
    assert main([*command[:2], str(tmp_path / "one"), *command[3:], "--only", str(table)]) == 0
    assert rows_of(tmp_path / "one").keys() == {"a_P1.seg.nrrd"}


def test_inspect_lists_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh_scan(tmp_path / "P1" / "ct.nii.gz")
    (tmp_path / "bad.nrrd").write_text("hello")
    assert main(["inspect", str(tmp_path), "--patient-from", "^[^/]+"]) == 0
    out = capsys.readouterr().out
    assert "P1/ct.nii.gz" in out
    assert "not-known" in out
    assert "1 series accepted, 0 rejected, 1 files unreadable, 0 other files ignored" in out
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    (series,) = json.loads(capsys.readouterr().out)["series"]
    assert (series["patient_id"], series["images"], series["increment"]) == ("ct", 40, 2.5)
    assert main(["inspect", str(tmp_path), "--index", str(tmp_path / "index.parquet")]) == 0


BIASES = {"CIP-64x64": 9, "Lung_Dx-A0002": 9, "Lung_Dx-A0001-B": 9}
"""By which a random network finds something in them, too."""
CHESTS = ("CIP-64x64", "Lung_Dx-A0001-B", "Lung_Dx-A0001-L", "Lung_Dx-A0002", "LIDC-IDRI-0306")


@pytest.mark.slow
@pytest.mark.parametrize("workflow", ["default", "deepcac2"])
@pytest.mark.parametrize("scan", CHESTS)
def test_the_real_chests(
    shared_data: Path, tmp_path: Path, published: ModuleType, scan: str, workflow: str
) -> None:
    """Their masks and score are those of the DICOM, by voxel; of `deepcac2` with a small random network."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "dicom").symlink_to(shared_data / "chest" / scan)
    converted(shared_data / "chest" / scan, folder / "P.nii.gz")
    name = (
        workflow
        if workflow == "default"
        else str(published.workflow_file(tmp_path, workflow, bias=BIASES.get(scan, published.BIAS)))
    )
    command = ["run", str(folder), str(out), "--keep", "nifti", "--workflow", name]
    assert main([*command, "--allow", "coarse-pixels", "--allow", "too-thick"]) == 0
    rows = rows_of(out)
    image = rows.pop("P.nii.gz")
    (dicom,) = rows.values()
    assert image.status == dicom.status == "scored"
    assert image.agatston_score == pytest.approx(dicom.agatston_score, rel=1e-5)
    for name in ("heart", "calcium"):
        both = [as_lps(out / row.folder / f"{name}.nii.gz") for row in (image, dicom)]
        np.testing.assert_array_equal(*both)
        assert both[0].any() or workflow == "default"
