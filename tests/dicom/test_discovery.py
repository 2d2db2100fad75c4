"""Discovery: by header, recursive, grouped by SeriesInstanceUID, nothing silently dropped."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage, generate_uid

from deepcac2.dicom import discover, read_series, readable
from deepcac2.dicom.locate import SeriesLocator
from deepcac2.errors import InputUnreadable, NoDicomFound, SeriesFailed

HU = npt.NDArray[np.int16]


def test_series_scattered_over_folders_under_any_name_is_one(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path / "a", hu)
    random.Random(3).shuffle(paths)
    names = ["x.txt", ".hidden", "no suffix", "IM.JPG", "deep/.er/1", "DICOMDIR2"]
    for i, path in enumerate(paths):
        target = tmp_path / f"f{i % 5}" / f"{i}{names[i % len(names)]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    (series,) = discover(tmp_path).series
    assert [s.position[2] for s in series.slices] == pytest.approx(-30 + 3.0 * np.arange(len(hu)))
    assert series.increment == pytest.approx(3.0)
    assert series.findings == ()


def test_two_series_in_one_folder_are_two(ct, hu: HU, tmp_path: Path) -> None:
    other = type(ct)()
    ct.write(tmp_path, hu)
    for path in other.write(tmp_path / "b", hu):
        path.rename(tmp_path / f"b{path.name}")
    found = discover(tmp_path).series
    assert {s.series_uid for s in found} == {ct.series_uid, other.series_uid}
    assert [len(s.slices) for s in found] == [len(hu)] * 2


def test_order_is_by_patient_study_and_series(ct, hu: HU, tmp_path: Path) -> None:
    for i, patient in enumerate(("B", "A", "B")):
        writer = type(ct)()

        def edit(_: int, ds: Dataset, patient: str = patient) -> None:
            ds.PatientID = patient

        writer.write(tmp_path / f"{i}", hu[:2], edit=edit)
    keys = [(s.patient_id, s.study_uid, s.series_uid) for s in discover(tmp_path).series]
    assert keys == sorted(keys)
    assert [k[0] for k in keys] == ["A", "B", "B"]
    assert discover(tmp_path, workers=1) == discover(tmp_path, workers=7)


def test_facts_come_from_the_header(ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SeriesDescription = "Thorax nativ äöü"
        ds.StudyDate = "20200131"
        ds.ManufacturerModelName = "Model"

    ct.write(tmp_path, hu, edit=edit)
    (series,) = discover(tmp_path).series
    assert series.series_description == "Thorax nativ äöü"
    assert (series.study_date, series.manufacturer, series.model_name) == ("20200131", "Maker", "Model")
    assert (series.kernel, series.kvp, series.slice_thickness) == ("STANDARD", 120.0, 3.0)
    assert (series.patient_id, series.study_uid) == ("P1", ct.study_uid)
    first = series.slices[0]
    assert (first.rows, first.columns, first.pixel_spacing) == (12, 10, (0.8, 0.7))
    assert first.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert first.transfer_syntax_uid == "1.2.840.10008.1.2.1"


def test_zip_archives_are_read_in_place(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path / "a", hu)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"some/folder/{path.name}")
        archive.writestr("readme.txt", "hello")
    shutil.rmtree(tmp_path / "a")
    for root in (tmp_path, tmp_path / "scan.zip"):
        found = discover(root)
        (series,) = found.series
        assert [len(series.slices), found.ignored, found.unreadable] == [len(hu), 1, ()]
        assert series.slices[0].path == tmp_path / "scan.zip"
        assert series.slices[0].member == "some/folder/im0001"


def test_dicomdir_is_ignored_by_header(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu[:3])
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.FileSetID, index.FileSetConsistencyFlag, index.DirectoryRecordSequence = "X", 0, []
    index.save_as(tmp_path / "index.dcm", enforce_file_format=True)
    found = discover(tmp_path)
    assert [len(s.slices) for s in found.series] == [3]
    assert found.ignored == 1
    assert found.unreadable == ()


def test_symlink_loops_end_and_files_count_once(ct, hu: HU, tmp_path: Path) -> None:
    root = tmp_path / "root"
    paths = ct.write(root / "a", hu)
    elsewhere = type(ct)()
    elsewhere.write(tmp_path / "elsewhere", hu[:4])
    (root / "self").symlink_to(root)
    (root / "up").symlink_to(tmp_path)
    (root / "a" / "back").symlink_to(root / "a")
    (root / "again").symlink_to(paths[0])
    (root / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "home").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    found = discover(root)
    assert sorted(len(s.slices) for s in found.series) == [4, len(hu)]
    assert [u.path.name for u in found.unreadable] == ["dangling"]


def test_files_without_preamble_are_found(ct, hu: HU, tmp_path: Path) -> None:
    for path in ct.write(tmp_path, hu):
        ds = pydicom.dcmread(path)
        del ds.file_meta, ds.preamble
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert path.read_bytes()[:2] == b"\x08\x00"
    assert [len(s.slices) for s in discover(tmp_path).series] == [len(hu)]


def test_what_cannot_be_read_is_listed_and_stops_nothing(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path / "good", hu)
    content = paths[0].read_bytes()
    (tmp_path / "cut.bin").write_bytes(content[:300])
    (tmp_path / "noise.bin").write_bytes(content[:140] + os.urandom(4000))
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "text.DCM").write_text("not an image")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and then nothing of use")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(tmp_path / "broken.zip", "inner.zip")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").touch()
    no_uid = pydicom.dcmread(paths[0])
    del no_uid.SeriesInstanceUID
    no_uid.save_as(tmp_path / "nouid")
    found = discover(tmp_path)
    assert [len(s.slices) for s in found.series] == [len(hu)]
    names = ["broken.zip", "cut.bin", "empty.dcm", "noise.bin", "nouid", "outer.zip", "text.DCM"]
    assert [u.path.name for u in found.unreadable] == names
    assert all(u.reason and "\n" not in u.reason for u in found.unreadable)
    assert found.ignored == 2


def test_damaged_headers_never_raise(ct, hu: HU, tmp_path: Path) -> None:
    (source,) = ct.write(tmp_path / "s", hu[:1])
    content = source.read_bytes()
    source.unlink()
    rng = random.Random(11)
    for i in range(200):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 3, 30))):
            damaged[rng.randrange(132, len(damaged) - 240)] = rng.randrange(256)
        length = rng.choice((len(damaged), rng.randrange(140, len(damaged))))
        (tmp_path / f"d{i}").write_bytes(damaged[:length])
    found = discover(tmp_path)
    in_series = sum(len(s.slices) + len(s.left_out) for s in found.series)
    assert in_series + len(found.unreadable) + found.ignored == 200


def test_long_headers_are_read_to_their_end(ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.add_new((0x0009, 0x0010), "LO", "MAKER")
        ds.add_new((0x0009, 0x1001), "OB", bytes(100_000))

    ct.write(tmp_path, hu, edit=edit)
    (series,) = discover(tmp_path).series
    assert series.findings == ()
    assert series.slices[0].rows == 12


def test_stray_images_are_left_out_with_a_warning(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    scout = pydicom.dcmread(paths[0])
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    scout.save_as(tmp_path / "scout")
    (series,) = discover(tmp_path).series
    assert (len(series.slices), len(series.left_out), series.rejection) == (len(hu), 1, None)
    assert [f.code for f in series.warnings] == ["stray-images"]


SOP_CLASSES = {
    # what the scanner's or a planning system's objects with the CT's SeriesInstanceUID are
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
}


def write_object(path: Path, like: Path, modality: str, sop_class: str) -> None:
    """An object without pixels in the series of an image."""
    image, ds = pydicom.dcmread(like, stop_before_pixels=True), Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, generate_uid(), modality
    for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(ds, keyword, image[keyword].value)
    ds.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("name", ["a", "zz"], ids=["before", "after"])
def test_what_is_no_ct_is_left_out_of_it(name: str, ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    for modality, sop_class in SOP_CLASSES.items():
        write_object(tmp_path / f"{name}{modality}", paths[0], modality, sop_class)
    (series,) = discover(tmp_path).series
    assert [s.path for s in series.slices] == paths
    assert {r.sop_class_uid for r in series.left_out} == set(SOP_CLASSES.values())
    assert [(f.code, f.fatal) for f in series.findings] == [("stray-images", False)]
    assert series.modality == "CT"


def test_a_series_without_ct_is_none(ct, hu: HU, tmp_path: Path) -> None:
    (image,) = ct.write(tmp_path, hu[:1])
    for modality, sop_class in SOP_CLASSES.items():
        write_object(tmp_path / modality, image, modality, sop_class)
    image.unlink()
    (series,) = discover(tmp_path).series
    assert series.rejection is not None
    assert (series.rejection.code, len(series.slices), series.left_out) == ("not-ct", 4, ())


def test_what_macos_keeps_beside_files_is_ignored(ct, hu: HU, tmp_path: Path) -> None:
    double = bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(4072)
    paths = ct.write(tmp_path / "files", hu)
    (tmp_path / "files" / "._im0001.dcm").write_bytes(double)
    (tmp_path / "files" / "._im0002").write_bytes(double)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"scan/{path.name}.dcm")
            archive.writestr(f"__MACOSX/scan/._{path.name}.dcm", double)
    for place, count in (("files", 2), ("scan.zip", 28)):
        found = discover(tmp_path / place)
        assert [len(s.slices) for s in found.series] == [28]
        assert (found.unreadable, found.ignored) == ((), count)


def odd(folder: Path, name: bytes) -> Path:
    """A path whose name is no UTF-8; skips where the file system takes none."""
    path = folder / os.fsdecode(name)
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    return path


def test_names_that_are_no_utf8(ct, hu: HU, tmp_path: Path) -> None:
    for i, path in enumerate(ct.write(tmp_path, hu)):
        path.rename(odd(tmp_path, b"caf\xe9-%03d" % i))
    odd(tmp_path, b"br\xe4ked.dcm").write_text("nothing")
    found = discover(tmp_path)
    (series,) = found.series
    assert series.slices[3].file_name == "caf\\xe9-003"
    assert read_series(series).volume.hu.shape == hu.shape
    (lost,) = found.unreadable
    assert readable(lost.path.name) == "br\\xe4ked.dcm"
    for text in (lost.reason, *(s.file_name for s in series.slices)):
        assert text.encode().decode() == text
    located = SeriesLocator(tmp_path).find(series.series_uid, images=len(hu))
    assert located is not None
    assert located.slices == series.slices
    series.slices[5].path.write_bytes(b"gone")
    with pytest.raises(SeriesFailed) as caught:
        read_series(series)
    assert "caf\\xe9-005" in str(caught.value)
    assert str(caught.value).encode()


def test_a_series_of_two_patients_is_rejected(ct, hu: HU, tmp_path: Path) -> None:
    def edit(i: int, ds: Dataset) -> None:
        ds.PatientID = "A" if i < 14 else "B"

    ct.write(tmp_path, hu, edit=edit)
    (series,) = discover(tmp_path).series
    assert series.rejection is not None
    assert series.rejection.code == "mixed-identity"


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="does not exist"):
        discover(tmp_path / "none")
    with pytest.raises(NoDicomFound, match="empty"):
        discover(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(NoDicomFound, match="1 other files"):
        discover(tmp_path)
    (tmp_path / "b.dcm").write_text("b")
    assert discover(tmp_path).unreadable == discover(tmp_path / "b.dcm").unreadable
    (one,) = discover(tmp_path).unreadable
    assert "no DICOM in it" in one.reason


@pytest.mark.parametrize("kind", ["cut", "zip"])
def test_one_damaged_file_is_told_as_in_a_folder(kind: str, ct, hu: HU, tmp_path: Path) -> None:
    """Nothing is wrong with its path or with permissions."""
    (path,) = ct.write(tmp_path / "in", hu[:1])
    path.write_bytes(path.read_bytes()[:500] if kind == "cut" else b"PK\x03\x04 no archive")
    found = discover(path)
    assert (found.series, found.unreadable) == ((), discover(tmp_path / "in").unreadable)
    assert [u.path for u in found.unreadable] == [path]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path / "good", hu[:2])
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert [u.path for u in discover(tmp_path).unreadable] == [locked]
    with pytest.raises(InputUnreadable, match="cannot be listed"):
        discover(locked)
