"""DICOM SEG, judged by others: dciodvfy, dcmqi and highdicom."""

from __future__ import annotations

import copy
import itertools
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from deepcac2.dicom import discover, read_series
from deepcac2.dicom.seg.reader import is_segmentation, read_segmentation, referenced_series, segment_frames
from deepcac2.dicom.seg.writer import write_segmentation
from deepcac2.dicom.series import Series, SliceRef
from deepcac2.errors import InputError, InputUnreadable, MaskMismatch, OutputUnwritable
from deepcac2.imaging import Geometry
from deepcac2.imaging.labels import ARTERIES, Labels

RunTool = Callable[..., str]
AssertValid = Callable[[Path, str], None]
Voxels = Callable[[Path, Path, Geometry], dict[str, np.ndarray]]

SHAPE = (8, 30, 41)  # 30 × 41 pixels are no whole number of bytes: frames do not start at one
SPACING = (2.5, 0.75, 0.5)
SIGNS = list(itertools.product((1.0, -1.0), repeat=3))
FULL_HEADER = {
    "PatientName": "Test^Heart",
    "PatientID": "P-001",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "PatientAge": "070Y",
    "StudyDate": "20200304",
    "StudyTime": "101112.5",
    "StudyID": "17",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Some^Body",
    "StudyDescription": "CHEST",
    "PositionReferenceIndicator": "",
    "ClinicalTrialSponsorName": "NCI",
    "ClinicalTrialProtocolID": "NLST",
    "ClinicalTrialSubjectID": "100002",
}


def make_geometry(signs: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Geometry:
    z, y, x = signs
    return Geometry(
        shape=SHAPE,
        spacing=SPACING,
        origin=(-12.5, 7.25, 100.5),
        axes=((0.0, 0.0, z), (0.0, y, 0.0), (x, 0.0, 0.0)),
    )


def write_ct(
    folder: Path, geometry: Geometry, *, reverse: bool = False, header: dict[str, str] | None = None
) -> Series:
    """CT files with headers and pixels written by pydicom alone; `reverse` numbers them backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, frame_of_reference = (generate_uid(entropy_srcs=["test", k]) for k in "abc")
    n = geometry.shape[0]
    refs = []
    for z in range(n):
        number = n - z if reverse else z + 1
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = CTImageStorage
        ds.SOPInstanceUID = generate_uid(entropy_srcs=["test", str(number)])
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame_of_reference
        ds.Modality = "CT"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        for keyword, value in (FULL_HEADER if header is None else header).items():
            setattr(ds, keyword, value)
        ds.InstanceNumber = number
        ds.ImagePositionPatient = [float(v) for v in geometry.to_lps([z, 0, 0])]
        ds.ImageOrientationPatient = [*geometry.axes[2], *geometry.axes[1]]
        ds.PixelSpacing = [geometry.spacing[1], geometry.spacing[2]]
        ds.SliceThickness = 3.0
        ds.Rows, ds.Columns = geometry.shape[1:]
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleIntercept, ds.RescaleSlope = 0, 1
        ds.PixelData = np.zeros(geometry.shape[1:], np.int16).tobytes()
        path = folder / f"{number:03d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        refs.append(
            SliceRef(
                path=path,
                sop_class_uid=CTImageStorage,
                sop_instance_uid=ds.SOPInstanceUID,
                position=tuple(float(v) for v in ds.ImagePositionPatient),
                orientation=tuple(float(v) for v in ds.ImageOrientationPatient),
                slice_thickness=3.0,
            )
        )
    return Series(series_uid=series, study_uid=study, slices=tuple(refs))


def written(folder: Path, geometry: Geometry, heart: np.ndarray, calcium: np.ndarray) -> Path:
    """The SEG of two masks on a CT that is written for it."""
    path = folder / "seg.dcm"
    write_segmentation(
        path, series=write_ct(folder / "ct", geometry), geometry=geometry, heart=heart, calcium=calcium,
        algorithm_version="1",
    )  # fmt: skip
    return path


def make_masks(shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """An asymmetric heart and scattered calcium, so that no flip or shift goes unseen."""
    rng = np.random.default_rng(5)
    heart = np.zeros(shape, bool)
    heart[1:-1, 3 : shape[1] // 2, 5 : shape[2] - 3] = True
    heart[2, -2, 1] = True
    calcium = (rng.random(shape) < 0.05) & heart
    calcium[4] = False
    return heart, calcium


@pytest.fixture
def dcmqi_voxels(run_tool: RunTool) -> Voxels:
    """What segimage2itkimage makes of the SEG, put onto the grid voxel by voxel, by segment label."""

    def voxels(path: Path, folder: Path, geometry: Geometry) -> dict[str, np.ndarray]:
        folder.mkdir()
        run_tool(
            "segimage2itkimage", "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nrrd"
        )
        meta = json.loads((folder / "meta.json").read_text())
        result = {}
        for number, segments in enumerate(meta["segmentAttributes"], start=1):
            image = sitk.ReadImage(str(folder / f"{number}.nrrd"))
            mask = np.zeros(geometry.shape, bool)
            xyz = np.argwhere(sitk.GetArrayFromImage(image))[:, ::-1]
            direction = np.reshape(image.GetDirection(), (3, 3))
            index = geometry.to_index(image.GetOrigin() + (xyz * image.GetSpacing()) @ direction.T)
            assert np.abs(index - np.round(index)).max(initial=0) < 1e-3
            mask[tuple(np.round(index).astype(int).T)] = True
            result[segments[0]["SegmentLabel"]] = mask
        return result

    return voxels


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("signs", SIGNS)
def test_read_back_by_all_for_all_directions_and_slice_orders(
    tmp_path: Path, signs, reverse, assert_valid: AssertValid, dcmqi_voxels: Voxels
) -> None:
    geometry = make_geometry(signs)
    series = write_ct(tmp_path / "ct", geometry, reverse=reverse)
    heart, calcium = make_masks()
    path = tmp_path / "cac.seg.dcm"
    write_segmentation(
        path, series=series, geometry=geometry, heart=heart, calcium=calcium, algorithm_version="1"
    )
    assert_valid(path, "Segmentation")

    by_dcmqi = dcmqi_voxels(path, tmp_path / "dcmqi", geometry)
    assert list(by_dcmqi) == ["Heart", "Coronary calcium"]
    np.testing.assert_array_equal(by_dcmqi["Heart"], heart)
    np.testing.assert_array_equal(by_dcmqi["Coronary calcium"], calcium)

    segmentation = hd.seg.segread(path)
    by_highdicom = segmentation.get_pixels_by_source_instance(
        [ref.sop_instance_uid for ref in series.slices], ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    np.testing.assert_array_equal(by_highdicom[..., 0].astype(bool), heart)
    np.testing.assert_array_equal(by_highdicom[..., 1].astype(bool), calcium)

    masks = read_segmentation(path, geometry)
    np.testing.assert_array_equal(masks["heart"], heart)
    np.testing.assert_array_equal(masks["calcium"], calcium)


def test_oblique_stack(tmp_path: Path, assert_valid: AssertValid, dcmqi_voxels: Voxels) -> None:
    a = np.deg2rad(11.0)
    row, column = (np.cos(a), 0.0, np.sin(a)), (0.0, 1.0, 0.0)
    normal = tuple(np.cross(row, column))
    geometry = Geometry(shape=SHAPE, spacing=SPACING, origin=(1.0, 2.0, 3.0), axes=(normal, column, row))
    heart, calcium = make_masks()
    path = written(tmp_path, geometry, heart, calcium)
    assert_valid(path, "Segmentation")
    np.testing.assert_array_equal(dcmqi_voxels(path, tmp_path / "q", geometry)["Coronary calcium"], calcium)
    np.testing.assert_array_equal(read_segmentation(path, geometry)["calcium"], calcium)


@pytest.mark.parametrize("what", ["no calcium", "nothing", "calcium only", "first and last slice only"])
def test_valid_and_readable_when_something_is_empty(
    tmp_path: Path, what: str, assert_valid: AssertValid, dcmqi_voxels: Voxels
) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    heart, calcium = make_masks()
    if what in ("no calcium", "nothing"):
        calcium[:] = False
    if what in ("nothing", "calcium only"):
        heart[:] = False
    if what == "first and last slice only":
        heart[1:-1] = calcium[1:-1] = False
        heart[0, 3, 3] = heart[-1, 4, 4] = calcium[-1, 0, 0] = True
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=series, geometry=geometry, heart=heart, calcium=calcium, algorithm_version="1"
    )
    assert_valid(path, "Segmentation")
    ds = pydicom.dcmread(path)
    assert [item.SegmentNumber for item in ds.SegmentSequence] == [1, 2]
    frames = [
        g.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for g in ds.PerFrameFunctionalGroupsSequence
    ]
    assert set(frames) == {1, 2}
    assert ds.pixel_array.sum() == heart.sum() + calcium.sum()
    masks = read_segmentation(path, geometry)
    np.testing.assert_array_equal(masks["heart"], heart)
    np.testing.assert_array_equal(masks["calcium"], calcium)
    by_dcmqi = dcmqi_voxels(path, tmp_path / "q", geometry)
    np.testing.assert_array_equal(by_dcmqi["Heart"], heart)
    np.testing.assert_array_equal(by_dcmqi["Coronary calcium"], calcium)


@pytest.mark.parametrize("what", ["calcium in the heart", "calcium beside it", "no calcium"])
def test_it_is_what_highdicom_makes_of_all_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is shown one pixel a frame; shown all of them, it says the same of them, and packs the same."""
    heart, calcium = make_masks()
    if what != "calcium in the heart":
        calcium[:] = False
        calcium[2, 0, 2] = what == "calcium beside it"
    arteries = np.where(np.indices(SHAPE)[2] % 2, 2 * calcium, 3 * calcium).astype(np.uint8)
    named = what == "calcium in the heart"
    masks = [heart, calcium, *([arteries == 2, arteries == 3] if named else [])]
    pixels = np.stack(masks, axis=-1).astype(np.uint8)
    shown = np.flatnonzero(pixels.any(axis=(1, 2, 3)))
    whole: dict[str, Any] = {}
    made = hd.seg.Segmentation

    def both(*, source_images: list[Dataset], pixel_array: np.ndarray, **options: Any) -> Dataset:
        larger = copy.deepcopy(source_images)
        for image in larger:
            image.Rows, image.Columns = SHAPE[1:]
        full = pixels[shown]
        if not calcium.any():
            full[np.flatnonzero(pixel_array[:, 0, 0, 1]), 0, 0, 1] = 1
        found = made(source_images=larger, pixel_array=full, **options)
        whole.update({k: found[k].value for k in ("Rows", "Columns", "NumberOfFrames", "SegmentsOverlap")})
        whole["PixelData"] = found.PixelData
        return made(source_images=source_images, pixel_array=pixel_array, **options)

    monkeypatch.setattr(hd.seg, "Segmentation", both)
    geometry, path = make_geometry(), tmp_path / "seg.dcm"
    write_segmentation(
        path,
        series=write_ct(tmp_path / "ct", geometry),
        geometry=geometry,
        heart=heart,
        calcium=calcium,
        parts=[Labels(array=arteries, classes=ARTERIES)] if named else [],
        algorithm_version="1",
    )
    ds = pydicom.dcmread(path)
    pixel_data = whole.pop("PixelData")
    assert {k: ds[k].value for k in whole} == whole
    assert whole["SegmentsOverlap"] == ("YES" if named else "NO")
    if calcium.any():
        size = -(-len(ds.PerFrameFunctionalGroupsSequence) * SHAPE[1] * SHAPE[2] // 8)
        assert ds.PixelData[:size] == pixel_data[:size]
        assert ds.PixelData[size:] in (b"", b"\0")  # highdicom pads with an ASCII 0


def test_codes_references_and_patient(tmp_path: Path) -> None:
    geometry = make_geometry((-1.0, 1.0, 1.0))
    series = write_ct(tmp_path / "ct", geometry, reverse=True)
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=series, geometry=geometry, heart=heart, calcium=calcium, algorithm_name="net",
        algorithm_version="2.1",
    )  # fmt: skip
    ds = pydicom.dcmread(path)
    ct = {
        f.SOPInstanceUID: f
        for f in (pydicom.dcmread(p, stop_before_pixels=True) for p in (tmp_path / "ct").iterdir())
    }
    any_ct = next(iter(ct.values()))
    for keyword in (*FULL_HEADER, "StudyInstanceUID", "FrameOfReferenceUID"):
        assert ds[keyword].value == any_ct[keyword].value
    assert ds.SeriesInstanceUID != any_ct.SeriesInstanceUID
    assert (ds.Modality, ds.SegmentationType) == ("SEG", "BINARY")
    assert referenced_series(path) == any_ct.SeriesInstanceUID

    def code(sequence) -> tuple[str, str]:
        return sequence[0].CodeValue, sequence[0].CodingSchemeDesignator

    first, second = ds.SegmentSequence
    assert code(first.SegmentedPropertyTypeCodeSequence) == ("80891009", "SCT")
    assert code(first.SegmentedPropertyCategoryCodeSequence) == ("91723000", "SCT")
    assert code(second.SegmentedPropertyTypeCodeSequence) == ("18115005", "SCT")
    assert code(second.SegmentedPropertyCategoryCodeSequence) == ("49755003", "SCT")
    assert code(second.AnatomicRegionSequence) == ("41801008", "SCT")
    for item in (first, second):
        assert item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.SegmentAlgorithmName == "net"
        assert len(item.RecommendedDisplayCIELabValue) == 3

    referenced = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {r.ReferencedSOPInstanceUID for r in referenced} <= set(ct)
    for groups in ds.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPClassUID == CTImageStorage
        image = ct[source.ReferencedSOPInstanceUID]
        assert image.ImagePositionPatient == groups.PlanePositionSequence[0].ImagePositionPatient
    shared = ds.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == any_ct.ImageOrientationPatient
    measures = shared.PixelMeasuresSequence[0]
    assert [float(v) for v in measures.PixelSpacing] == list(SPACING[1:])
    assert (float(measures.SpacingBetweenSlices), float(measures.SliceThickness)) == (2.5, 3.0)


def test_one_instance_is_one_content(tmp_path: Path) -> None:
    """The same masks are the same bytes, whenever they are written; whatever differs is another instance."""
    geometry = make_geometry()
    heart, calcium = make_masks()
    dated = {**FULL_HEADER, "ContentDate": "20200305", "ContentTime": "1112"}
    series = write_ct(tmp_path / "ct", geometry, header=dated)
    renamed = write_ct(tmp_path / "renamed", geometry, header={**dated, "PatientName": "Another^Name"})
    thinner = replace(series, slices=tuple(replace(s, slice_thickness=1.5) for s in series.slices))
    options = {"geometry": geometry, "heart": heart}
    instances: dict[str, str] = {}
    for name, ct, mask, version in (
        ("first", series, calcium, "1"),
        ("empty", series, np.zeros_like(calcium), "1"),
        ("renamed", renamed, calcium, "1"),
        ("thinner", thinner, calcium, "1"),
        ("newer", series, calcium, "2"),
    ):
        path, again = tmp_path / f"{name}.dcm", tmp_path / f"{name}-again.dcm"
        for one in (path, again):
            write_segmentation(one, series=ct, calcium=mask, algorithm_version=version, **options)
        assert path.read_bytes() == again.read_bytes()
        ds = pydicom.dcmread(path)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert (ds.ContentDate, ds.ContentTime) == ("20200305", "1112")
        instances[ds.SOPInstanceUID] = ds.SeriesInstanceUID
    assert len(instances) == 5
    assert len(set(instances.values())) == 1


@pytest.mark.parametrize(
    ("header", "date", "time"),
    [
        ({"StudyDate": "20200304", "StudyTime": "101112.5"}, "20200304", "101112.5"),
        ({"StudyDate": "20200304", "AcquisitionDate": "20200305"}, "20200305", "000000"),
        ({"StudyDate": "", "StudyTime": ""}, "19000101", "000000"),
        ({}, "19000101", "000000"),
    ],
)
def test_dates_are_those_of_the_ct(
    tmp_path: Path, assert_valid: AssertValid, header: dict[str, str], date: str, time: str
) -> None:
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=write_ct(tmp_path / "ct", geometry, header=header), geometry=geometry, heart=heart,
        calcium=calcium, algorithm_version="1",
    )  # fmt: skip
    assert_valid(path, "Segmentation")
    ds = pydicom.dcmread(path)
    assert (ds.ContentDate, ds.ContentTime) == (date, time)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"PatientName": "lonely", "PatientID": "../../x"},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jörg=山田^太郎", "PatientID": "ü"},
        {"PatientID": "", "StudyDate": "", "StudyTime": "", "PatientSex": "O"},
    ],
)
def test_headers_as_they_come(tmp_path: Path, header: dict[str, str], assert_valid: AssertValid) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry, header=header)
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=series, geometry=geometry, heart=heart, calcium=calcium, algorithm_version="1"
    )
    assert_valid(path, "Segmentation")
    ds = pydicom.dcmread(path)
    for keyword, value in header.items():
        assert str(ds[keyword].value) == value
    np.testing.assert_array_equal(read_segmentation(path, geometry)["calcium"], calcium)


def test_a_trial_that_the_ct_names_in_part_is_left_out(tmp_path: Path) -> None:
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=write_ct(tmp_path / "ct", geometry, header={"ClinicalTrialProtocolID": "NLST"}),
        geometry=geometry, heart=heart, calcium=calcium, algorithm_version="1",
    )  # fmt: skip
    assert not [element for element in pydicom.dcmread(path) if element.keyword.startswith("ClinicalTrial")]


def test_header_values_that_break_the_standard_do_not_stop_us(tmp_path: Path) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry, header={"PatientName": "X"})
    first = series.slices[0].path
    raw = pydicom.dcmread(first)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        del raw[keyword]
    raw.add_new("PatientBirthDate", "LO", "unknown")  # written as text, read as a date that is none
    raw.add_new("PatientSex", "CS", "W")
    raw.save_as(first, enforce_file_format=True)
    heart, calcium = make_masks()
    write_segmentation(
        tmp_path / "seg.dcm", series=series, geometry=geometry, heart=heart, calcium=calcium,
        algorithm_version="1",
    )  # fmt: skip
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert ds.StudyInstanceUID == series.study_uid
    assert ds.FrameOfReferenceUID
    assert ds.PatientSex == "W"


def test_slices_in_a_zip_archive(tmp_path: Path, assert_valid: AssertValid) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    archive = tmp_path / "ct.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for ref in series.slices:
            target.write(ref.path, f"inside/{ref.path.name}")
    slices = tuple(replace(r, path=archive, member=f"inside/{r.path.name}") for r in series.slices)
    shutil.rmtree(tmp_path / "ct")
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=replace(series, slices=slices), geometry=geometry, heart=heart, calcium=calcium,
        algorithm_version="1",
    )  # fmt: skip
    assert_valid(path, "Segmentation")
    assert pydicom.dcmread(path).PatientID == "P-001"


def test_frames_of_an_enhanced_file_are_referenced_by_number(
    tmp_path: Path, assert_valid: AssertValid
) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    enhanced = pydicom.dcmread(series.slices[0].path)
    enhanced.SOPClassUID, enhanced.NumberOfFrames = EnhancedCTImageStorage, SHAPE[0]
    enhanced.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    slices = tuple(
        replace(
            ref,
            path=tmp_path / "enhanced.dcm",
            sop_class_uid=EnhancedCTImageStorage,
            sop_instance_uid=enhanced.SOPInstanceUID,
            frame=SHAPE[0] - 1 - z,  # frames stored from the other end
        )
        for z, ref in enumerate(series.slices)
    )
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    write_segmentation(
        path, series=series, slices=slices, geometry=geometry, heart=heart, calcium=calcium,
        algorithm_version="1",
    )  # fmt: skip
    assert_valid(path, "Segmentation")
    ds = pydicom.dcmread(path)
    (instance,) = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert instance.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID
    for groups in ds.PerFrameFunctionalGroupsSequence:
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        z = round(float(geometry.to_index(groups.PlanePositionSequence[0].ImagePositionPatient)[0]))
        assert source.ReferencedSOPClassUID == EnhancedCTImageStorage
        assert source.ReferencedFrameNumber == SHAPE[0] - z
    np.testing.assert_array_equal(read_segmentation(path, geometry)["calcium"], calcium)


def test_write_refuses_what_does_not_fit(tmp_path: Path) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"
    options = {"geometry": geometry, "algorithm_version": "1"}
    with pytest.raises(MaskMismatch, match="calcium mask"):
        write_segmentation(path, series=series, heart=heart, calcium=calcium[1:], **options)
    with pytest.raises(MaskMismatch, match="7 images"):
        write_segmentation(
            path, series=series, slices=series.slices[1:], heart=heart, calcium=calcium, **options
        )
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputUnwritable):
        write_segmentation(
            tmp_path / "file" / "seg.dcm", series=series, heart=heart, calcium=calcium, **options
        )
    shutil.rmtree(tmp_path / "ct")
    with pytest.raises(InputUnreadable):
        write_segmentation(path, series=series, heart=heart, calcium=calcium, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_read_refuses_another_grid(tmp_path: Path) -> None:
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = written(tmp_path, geometry, heart, calcium)
    x, y, z = geometry.origin
    others = {
        "half a pixel aside": replace(geometry, origin=(x + 0.25, y, z)),
        "half a slice up": replace(geometry, origin=(x, y, z + 1.25)),
        "other pixel size": replace(geometry, spacing=(2.5, 0.76, 0.5)),
        "finer slices": replace(geometry, shape=(16, 30, 41), spacing=(1.25, 0.75, 0.5)),
        "another place": replace(geometry, origin=(x, y, z + 250.0)),
        "turned": replace(geometry, axes=((0.0, 0.0, 1.0), (0.6, 0.8, 0.0), (0.8, -0.6, 0.0))),
    }
    for other in others.values():
        with pytest.raises(MaskMismatch):
            read_segmentation(path, other)


def test_the_same_voxels_on_a_grid_run_through_differently(tmp_path: Path) -> None:
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = written(tmp_path, geometry, heart, calcium)
    flipped = Geometry(
        shape=SHAPE,
        spacing=SPACING,
        origin=tuple(float(v) for v in geometry.to_lps([SHAPE[0] - 1, 0, SHAPE[2] - 1])),
        axes=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    )
    np.testing.assert_array_equal(read_segmentation(path, flipped)["heart"], heart[::-1, :, ::-1])
    bigger = replace(geometry, shape=(SHAPE[0] + 3, *SHAPE[1:]))
    np.testing.assert_array_equal(read_segmentation(path, bigger)["heart"][: SHAPE[0]], heart)


def test_a_grid_that_holds_all_that_is_set(tmp_path: Path) -> None:
    """Frames may reach beyond the CT; what is set in them may not."""
    geometry = make_geometry((1.0, -1.0, 1.0))
    heart, calcium = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    heart[2:6, 4:20, 7:30] = calcium[3, 5, 9] = True
    path = written(tmp_path, geometry, heart, calcium)

    def part(*corner: int) -> Geometry:
        origin = tuple(float(v) for v in geometry.to_lps(corner))
        return replace(geometry, shape=(4, 16, 23), origin=origin)

    np.testing.assert_array_equal(read_segmentation(path, part(2, 4, 7))["heart"], np.ones((4, 16, 23), bool))
    for corner in itertools.product((1, 2, 3), (3, 4, 5), (6, 7, 8)):
        if corner != (2, 4, 7):
            with pytest.raises(MaskMismatch, match="reaches beyond"):
                read_segmentation(path, part(*corner))


def dcmqi_segment(label: str, number: int, code: tuple[str, str, str]) -> dict:
    value, scheme, meaning = code
    return {
        "labelID": number,
        "SegmentLabel": label,
        "SegmentDescription": label,
        "SegmentAlgorithmType": "MANUAL",
        "SegmentedPropertyCategoryCodeSequence": {
            "CodeValue": "85756007", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Tissue",
        },
        "SegmentedPropertyTypeCodeSequence": {
            "CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning,
        },
        "recommendedDisplayRGBValue": [255, 0, 0],
    }  # fmt: skip


@pytest.mark.parametrize("signs", [(1.0, 1.0, 1.0), (-1.0, -1.0, 1.0)])
def test_segmentations_by_another_tool(tmp_path: Path, signs, run_tool: RunTool) -> None:
    """dcmqi writes one with codes and labels of its own, and its own frame orientation."""
    geometry = make_geometry()
    write_ct(tmp_path / "ct", geometry)
    heart, calcium = make_masks()
    labels = np.where(calcium, 2, np.where(heart, 1, 0)).astype(np.uint8)
    z, y, x = (int(s) for s in signs)
    image = sitk.GetImageFromArray(labels[::z, ::y, ::x])
    corner = [0 if s > 0 else n - 1 for s, n in zip(signs, SHAPE, strict=True)]
    image.SetOrigin([float(v) for v in geometry.to_lps(corner)])
    image.SetSpacing(SPACING[::-1])
    image.SetDirection([signs[2], 0, 0, 0, signs[1], 0, 0, 0, signs[0]])
    sitk.WriteImage(image, str(tmp_path / "labels.nrrd"))
    tissue = ("85756007", "SCT", "Tissue")
    meta = {
        "ContentCreatorName": "Reader1",
        "SeriesDescription": "Segmentation",
        "SeriesNumber": "300",
        "InstanceNumber": "1",
        "segmentAttributes": [
            [
                dcmqi_segment("Whole heart", 1, tissue),
                dcmqi_segment("Coronary Artery Calcification", 2, tissue),
            ]
        ],
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    path = tmp_path / "other.dcm"
    output = run_tool(
        "itkimage2segimage", "--inputImageList", str(tmp_path / "labels.nrrd"),
        "--inputMetadata", str(tmp_path / "meta.json"), "--inputDICOMDirectory", str(tmp_path / "ct"),
        "--outputDICOM", str(path),
    )  # fmt: skip
    assert path.is_file(), output
    masks = read_segmentation(path, geometry)
    np.testing.assert_array_equal(masks["heart"], heart & ~calcium)
    np.testing.assert_array_equal(masks["calcium"], calcium)


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_other_kinds_of_segmentation(tmp_path: Path, kind: str) -> None:
    geometry = make_geometry()
    write_ct(tmp_path / "ct", geometry)
    sources = [pydicom.dcmread(p) for p in sorted((tmp_path / "ct").iterdir())]
    _, calcium = make_masks()
    tissue = hd.sr.CodedConcept("85756007", "SCT", "Tissue")
    pixels = np.where(calcium, 0.75, 0.25) if kind == "FRACTIONAL" else calcium.astype(np.uint8)
    segmentation = hd.seg.Segmentation(
        sources, pixels, kind, [hd.seg.SegmentDescription(1, "CAC", tissue, tissue, "MANUAL")],
        generate_uid(), 1, generate_uid(), 1, "maker", "model", "1", "1", max_fractional_value=100,
    )  # fmt: skip
    path = tmp_path / "seg.dcm"
    segmentation.save_as(path)
    assert is_segmentation(path)
    masks = read_segmentation(path, geometry)
    assert list(masks) == ["calcium"]
    np.testing.assert_array_equal(masks["calcium"], calcium)


def relabel(path: Path, *changes: tuple[int, str, tuple[str, str] | None, str | None]) -> None:
    """Change (segment, label, type code, region code) of a SEG by hand."""
    ds = pydicom.dcmread(path)
    for number, label, code, region in changes:
        item = ds.SegmentSequence[number - 1]
        item.SegmentLabel = label
        if code is not None:
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue = code[0]
            item.SegmentedPropertyTypeCodeSequence[0].CodingSchemeDesignator = code[1]
        if region is not None:
            item.AnatomicRegionSequence[0].CodeValue = region
    ds.save_as(path)


def test_which_segments_are_ours(tmp_path: Path) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    heart, calcium = make_masks()
    path = tmp_path / "seg.dcm"

    def fresh() -> None:
        write_segmentation(
            path, series=series, geometry=geometry, heart=heart, calcium=calcium, algorithm_version="1"
        )

    fresh()
    relabel(path, (1, "Segment 1", None, None), (2, "Segment 2", None, None))  # by code alone
    assert sorted(read_segmentation(path, geometry)) == ["calcium", "heart"]
    fresh()
    relabel(path, (2, "Coronary calcium", None, "15825003"))  # of the aorta
    assert sorted(read_segmentation(path, geometry)) == ["heart"]
    fresh()
    relabel(path, (1, "Liver", ("10200004", "SCT"), None), (2, "Spleen", ("78961009", "SCT"), None))
    with pytest.raises(InputError, match="it holds: Liver, Spleen"):
        read_segmentation(path, geometry)


TISSUE, CALCIFICATION, BONE, WHOLE_HEART = "85756007", "18115005", "80144004", "80891009"
CORONARY, HEART_REGION, AORTA = "41801008", "80891009", "15825003"


@pytest.mark.parametrize(
    ("label", "code", "regions", "kind"),
    [
        ("Calcaneus", BONE, (), None),
        ("Calcaneus", TISSUE, (), None),
        ("Calcaneus", None, (), None),
        ("Calcaneus", CALCIFICATION, (), None),
        ("Aortic calcification", CALCIFICATION, (), None),
        ("Aortic calcification", TISSUE, (), None),
        ("Calcium", CALCIFICATION, (), None),
        ("Calcium", TISSUE, (), None),
        ("Calcium", CALCIFICATION, (HEART_REGION,), None),  # of a valve perhaps
        ("Calcium", CALCIFICATION, (AORTA,), None),
        ("Coronary calcium", CALCIFICATION, (CORONARY, AORTA), None),
        ("Coronary calcium", BONE, (), None),
        ("Coronary sinus calcification", TISSUE, (), None),
        ("Non-coronary calcium", TISSUE, (), None),
        ("Extracoronary calcium", TISSUE, (), None),
        ("Aorta and coronary calcium", CALCIFICATION, (), None),
        ("Coronary arteries", TISSUE, (), None),
        ("cacti", TISSUE, (), None),
        ("Segment 2", CALCIFICATION, (CORONARY,), "calcium"),
        ("Segment 2", "M-55420", ("T-43000",), "calcium"),
        ("Segment 2", CALCIFICATION, ("59438005",), "calcium"),  # left anterior descending
        ("Coronary Artery Calcification", CALCIFICATION, (HEART_REGION,), "calcium"),
        ("Coronary calcium", CALCIFICATION, (), "calcium"),
        ("coronary_artery_calcification", TISSUE, (), "calcium"),
        ("CoronaryCalcium", None, (), "calcium"),
        ("CAC", None, (), "calcium"),
        ("cac.seg", TISSUE, (), "calcium"),
        ("RCA calc 1", TISSUE, (), "calcium"),
        ("Spleen", WHOLE_HEART, (), "heart"),  # codes first
        ("Heart", TISSUE, (), "heart"),
        ("whole_heart", None, (), "heart"),
        ("Heart", BONE, (), None),
        ("heart_atrium_left", TISSUE, (), None),
        ("Heart valve", TISSUE, (), None),
        ("Sweetheart", TISSUE, (), None),
    ],
)
def test_a_segment_is_what_its_codes_say_then_its_label_word_by_word(
    tmp_path: Path, label: str, code: str | None, regions: tuple[str, ...], kind: str | None
) -> None:
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = written(tmp_path, geometry, heart, calcium)
    ds = pydicom.dcmread(path)
    ds.SegmentSequence[0].SegmentLabel = "Liver"
    ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "10200004"
    item = ds.SegmentSequence[1]
    item.SegmentLabel = label
    (region,) = item.AnatomicRegionSequence
    item.AnatomicRegionSequence = [copy.deepcopy(region) for _ in regions]
    for one, value in zip(item.AnatomicRegionSequence, regions, strict=True):
        one.CodeValue = value
    if code is None:
        del item.SegmentedPropertyTypeCodeSequence
    else:
        item.SegmentedPropertyTypeCodeSequence[0].CodeValue = code
    ds.save_as(path)
    if kind is None:
        with pytest.raises(InputError, match=rf"holds: Liver, {re.escape(label)}\)"):
            read_segmentation(path, geometry)
    else:
        assert list(read_segmentation(path, geometry)) == [kind]


def test_what_is_left_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = written(tmp_path, geometry, heart, calcium)
    assert sorted(read_segmentation(path, geometry)) == ["calcium", "heart"]
    assert not caplog.records
    relabel(path, (2, "Aortic calcification", None, AORTA))
    assert list(read_segmentation(path, geometry)) == ["heart"]
    assert caplog.messages[0].endswith("coronary calcium: Aortic calcification")


@pytest.mark.parametrize("kept", [(0,), (1,)])
def test_frames_of_a_segment_that_is_not_described_are_refused(tmp_path: Path, kept: tuple[int, ...]) -> None:
    """Whose they are nobody knows: the mask of what is described may not be whole."""
    geometry = make_geometry()
    heart, calcium = make_masks()
    path = written(tmp_path, geometry, heart, calcium)
    ds = pydicom.dcmread(path)
    ds.SegmentSequence = [ds.SegmentSequence[i] for i in kept]
    ds.save_as(path)
    number = 2 - kept[0]
    with pytest.raises(InputUnreadable, match=f"frames of segment {number}, which it does not describe"):
        read_segmentation(path, geometry)


def test_what_is_no_segmentation(tmp_path: Path) -> None:
    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    (tmp_path / "text").write_text("hello")
    for path in (series.slices[0].path, tmp_path / "text", tmp_path / "missing", tmp_path):
        assert not is_segmentation(path)
        with pytest.raises(InputUnreadable):
            read_segmentation(path, geometry)


def test_on_a_real_scan(
    tmp_path: Path, shared_data: Path, assert_valid: AssertValid, dcmqi_voxels: Voxels
) -> None:
    (series,) = discover(shared_data / "chest" / "CIP-64x64").series
    reading = read_series(series)
    geometry = reading.volume.geometry
    heart, calcium = make_masks(geometry.shape)
    path = tmp_path / "cac.seg.dcm"
    write_segmentation(
        path, series=series, slices=reading.slices, geometry=geometry, heart=heart, calcium=calcium,
        algorithm_version="1",
    )  # fmt: skip
    assert_valid(path, "Segmentation")
    by_dcmqi = dcmqi_voxels(path, tmp_path / "q", geometry)
    np.testing.assert_array_equal(by_dcmqi["Heart"], heart)
    np.testing.assert_array_equal(by_dcmqi["Coronary calcium"], calcium)
    np.testing.assert_array_equal(read_segmentation(path, geometry)["calcium"], calcium)


BOMBS = """
import resource, sys, time
from pathlib import Path
from deepcac2.dicom.seg.reader import (
    is_segmentation, open_segmentation, referenced_series, segment_frames
)
from deepcac2.errors import InputUnreadable
import pydicom.pixels
def pixels(path):
    with open_segmentation(path) as seg:
        return seg.pixels().shape
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
plain = Path(sys.argv[1])
print(pixels(plain), is_segmentation(plain), bool(referenced_series(plain)))
before = most()
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for name in sys.argv[2:]:
    for read in (pixels, referenced_series, segment_frames):
        try:
            print(name, read.__name__, read(Path(name)))
        except InputUnreadable as error:
            assert "\\n" not in str(error) and len(str(error)) < 400, error
print(most() - before)
"""


def test_segmentations_that_unpack_to_more_than_they_are(
    small_seg: Path, tmp_path: Path, deflated_segs
) -> None:
    """In full size, 1 MB that is 1 GB: 2 GB of memory and 35 s, or no end. Here 100 MB, however read."""
    made = deflated_segs(small_seg.read_bytes(), 100, "plain", "zeros", "private", "pixels", "items")
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, *made], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-500:]
    first, *_, megabytes = done.stdout.splitlines()
    assert first == f"{pydicom.dcmread(small_seg).pixel_array.shape} True True"
    assert len(done.stdout.splitlines()) == 2  # of the others nothing was taken
    assert int(megabytes) < 130


def test_claims_of_a_segmentation_have_an_end(small_seg: Path, tmp_path: Path) -> None:
    """2^28 pixels may be claimed by a file of any size, and 200 for each of its bytes; not one frame more."""
    ds = pydicom.dcmread(small_seg)
    ds.Rows, ds.Columns = 1 << 14, 1 << 14
    for frames, fits in ((1, True), (2, False)):
        ds.NumberOfFrames = frames
        ds.save_as(tmp_path / "a.dcm")
        assert (tmp_path / "a.dcm").stat().st_size < (1 << 28) / 200
        assert is_segmentation(tmp_path / "a.dcm")
        if fits:
            assert segment_frames(tmp_path / "a.dcm").shape == (1 << 14, 1 << 14)
        else:
            with pytest.raises(InputUnreadable, match="more than a file of"):
                segment_frames(tmp_path / "a.dcm")


def test_classes_are_further_segments(tmp_path: Path, assert_valid: AssertValid) -> None:
    """Heart and calcium stay 1 and 2; each class that occurs follows, and other readers find its voxels."""
    from deepcac2.imaging.labels import ARTERIES, NOT_CORONARY, NOT_SURE, Labels

    geometry = make_geometry()
    series = write_ct(tmp_path / "ct", geometry)
    rng = np.random.default_rng(7)
    arteries = np.where(rng.random(SHAPE) < 0.03, rng.choice([2, 4, 5], SHAPE), 0).astype(np.uint8)
    others = np.where((arteries == 0) & (rng.random(SHAPE) < 0.02), rng.choice([2, 6], SHAPE), 0).astype(
        np.uint8
    )
    heart = np.zeros(SHAPE, dtype=bool)
    heart[2:6, 5:25, 5:35] = True
    path = tmp_path / "cac.seg.dcm"
    write_segmentation(
        path,
        series=series,
        geometry=geometry,
        heart=heart,
        calcium=arteries > 0,
        parts=[
            Labels(array=arteries, classes=(*ARTERIES, NOT_SURE)),
            Labels(array=others, classes=NOT_CORONARY),
        ],
        algorithm_version="1",
    )
    assert_valid(path, "Segmentation")
    seg = hd.seg.segread(path)
    said = [
        (s.segment_label, s.anatomic_regions[0].meaning if s.anatomic_regions else "")
        for s in seg.SegmentSequence
    ]
    assert said == [
        ("Heart", ""),
        ("Coronary calcium", "Coronary artery"),
        ("Calcium, LAD", "Left Anterior Descending Coronary Artery"),
        ("Calcium, RCA", "Right Coronary Artery"),
        ("Calcium, artery not sure", "Coronary artery"),
        ("Not counted, aortic valve", "Aortic Valve"),
        ("Not counted, perhaps coronary", "Heart"),
    ]
    uids = [ref.sop_instance_uid for ref in series.slices]
    for number, array, value in (
        (3, arteries, 2),
        (4, arteries, 4),
        (5, arteries, 5),
        (6, others, 2),
        (7, others, 6),
    ):
        frames = seg.get_pixels_by_source_instance(uids, segment_numbers=[number])[..., 0]
        np.testing.assert_array_equal(frames > 0, array == value)
    found = read_segmentation(path, geometry)
    np.testing.assert_array_equal(found["calcium"], arteries > 0)
    np.testing.assert_array_equal(found["heart"], heart)
