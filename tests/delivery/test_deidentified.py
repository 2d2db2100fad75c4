"""What is handed over without its patient: searched for everything that a CT was full of, judged by dciodvfy,
by the standard's table as another project has it, and by the score."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, SecondaryCaptureImageStorage, generate_uid

from deepcac2.cli.main import main
from deepcac2.delivery.preparing import Deidentified
from deepcac2.delivery.push import Problem, push
from deepcac2.delivery.sending import file_of
from deepcac2.dicom import Finding, SliceRef, discover, read_segmentation, read_series, write_segmentation
from deepcac2.dicom.deidentify import Deidentifier, Vocabulary
from deepcac2.dicom.derived import Signature
from deepcac2.dicom.document import write_encapsulated_pdf, write_secondary_capture
from deepcac2.dicom.pseudonyms import Pseudonyms
from deepcac2.errors import InputError, NotDeidentified
from deepcac2.imaging import Geometry, Volume, labels
from deepcac2.imaging.labels import Labels, calcium_labels, heart_labels
from deepcac2.outputs.report import REPORT
from deepcac2.outputs.seg import maker_of
from deepcac2.outputs.structured_report import write_sr
from deepcac2.pipeline import Case
from deepcac2.pipeline.arteries import ARTERIES, NOT_CORONARY
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, GEOMETRY, HEART, HEART_MEASURES, HEART_SOURCE
from deepcac2.pipeline.hand_over import deidentifier
from deepcac2.pipeline.results import MEANINGS, read_parquet, result_row, write_parquet
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.release.build import SELECTION, Release
from deepcac2.release.verify import verify
from deepcac2.scoring import risk_group, score
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_series
from deepcac2.system.atomic import write_json

KEY = bytes(range(32))
SECRET = "QZSENTINEL"
ROOT = "1.2.999.777555333"
DATE, TIME, AGE = "19530709", "031559", "087Y"
NEEDLES = re.compile(
    rb"(?i)qzsentinel|q.z.s.e.n.t.i.n.e.l|777555333|19530709|1953-07-09|031559|03:15:59|087Y", re.DOTALL
)
"""Everything that was planted, in whatever letters, also with two bytes a letter."""
VALUES: dict[str, Any] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), SECRET),
    **{"UR": f"http://{SECRET}.example/{ROOT}", "DA": DATE, "TM": TIME, "DT": DATE + TIME, "AS": AGE},
    **dict.fromkeys(("OB", "OW", "UN", "OB or OW"), SECRET.encode()),
}
NEEDED = {
    *("SpecificCharacterSet", "SOPClassUID", "Modality", "ImageType", "PhotometricInterpretation"),
    *("RescaleType", "BurnedInAnnotation", "PatientPosition", "ModalityLUTSequence", "LossyImageCompression"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PatientID"),
    "LossyImageCompressionMethod",
}
"""Without its own word an image would be refused, or no CT; UIDs are planted elsewhere."""


def planted(ds: Dataset) -> Dataset:
    """Every attribute of the standard that holds text, bytes or a UID, and sequences with more of them."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        group = tag >> 16
        if group in (0x0000, 0x0002, 0x0004, 0x7FE0, 0xFFFE) or not keyword or keyword in NEEDED:
            continue
        if vr in VALUES:
            ds.add_new(tag, vr.split()[0], VALUES[vr])
        elif vr == "UI":
            ds.add_new(tag, "UI", f"{ROOT}.{tag}")
        elif vr == "SQ":
            item = Dataset()
            item.PatientName, item.TextValue, item.CodeMeaning, item.RetrieveURL = (SECRET,) * 4
            item.CodeValue, item.ReferencedSOPInstanceUID, item.Date = SECRET, f"{ROOT}.{tag}", DATE
            ds.add_new(tag, "SQ", [item])
    ds.add_new(0x00290010, "LO", f"{SECRET} PRIVATE")
    ds.add_new(0x00291001, "UN", SECRET.encode())
    ds.add_new(0x00291002, "LO", SECRET)
    ds.add_new(0x60000022, "LO", SECRET)
    ds.add_new(0x60003000, "OW", SECRET.encode() * 8)
    ds.add_new(0xFFFCFFFC, "OB", SECRET.encode())
    ds.file_meta.SourceApplicationEntityTitle = SECRET
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = ROOT, SECRET.encode()
    ds.preamble = (SECRET.encode() * 13)[:128]
    return ds


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ct`` of a patient about whom everything is known, and ``results`` as a run leaves them, each text of
    which repeats it."""
    root = tmp_path_factory.mktemp("full")
    shape = (12, 48, 52)
    z, y, x = np.indices(shape)
    heart = (z - 6) ** 2 * 6.25 + (y - 24) ** 2 + (x - 26) ** 2 < 16**2
    hu = np.where(heart, 40, -700) + np.random.default_rng(3).integers(-9, 10, shape)
    calcium = np.zeros(shape, dtype=bool)
    calcium[5:7, 20:25, 24:29] = True
    hu[calcium] = 410
    grid = Geometry(shape=shape, spacing=(2.5, 0.7, 0.9), origin=(-40.25, -36.0, 100.125))
    patient = simulate_patient(3, geometry=default_geometry(3, size=32, slices=8))

    def name(ds: Dataset) -> None:
        ds.PatientID, ds.PatientName, ds.PatientAge = f"{SECRET}-ID", f"{SECRET}^Quentin", AGE
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (f"{ROOT}.{n}" for n in "123")
        ds.SOPInstanceUID = f"{ROOT}.4.{ds.InstanceNumber}"
        ds.StudyDate = ds.AcquisitionDate = ds.ContentDate = DATE
        ds.StudyTime = ds.ContentTime = TIME
        ds.SeriesDescription = ds.ConvolutionKernel = ds.Manufacturer = SECRET

    scan = replace(patient, volume=Volume(hu=hu.astype(np.int16), geometry=grid))
    write_series(scan, root / "ct", change=name)
    files = sorted((root / "ct").iterdir())
    ds = pydicom.dcmread(files[0])  # the lowest, whose header SEG and SR inherit
    planted(ds).save_as(files[0], enforce_file_format=True)
    files[0].rename(files[0].with_name(f"{SECRET}{files[0].name}"))
    (series,) = discover(root / "ct").series
    reading = read_series(series)
    said = (
        Finding(code="sharp-kernel", message=f"the kernel {SECRET} is sharp", fatal=False),
        Finding(code="contrast", message=f"an agent, {SECRET}", fatal=False, allowed=True),
        Finding(code="of-a-plugin", message=f"{SECRET} says", fatal=False, caution=True),
    )
    facts: dict[Any, Any] = {CT: reading.volume, GEOMETRY: reading.volume.geometry}
    case = Case(series=series, facts=facts, findings=said)
    case = case.add(HEART, heart_labels(heart)).add(CALCIUM, calcium_labels(calcium))
    case = case.add(CALCIUM_RUN, {"heart_margin_mm": 5.0}).add(HEART_MEASURES, {"heart_volume_ml": 123.0})
    source = {
        "format": "DICOM SEG", "file": f"{SECRET}.dcm", "sop_instance_uid": f"{ROOT}.9", "algorithm": SECRET,
        "algorithm_type": "SEMIAUTOMATIC", "segments": [SECRET], "sha256": ["0" * 64],
    }  # fmt: skip
    parts = Labels(array=calcium.astype(np.uint8) * 2, classes=(*labels.ARTERIES, labels.NOT_SURE))
    nothing = Labels(array=np.zeros(shape, dtype=np.uint8), classes=labels.NOT_CORONARY)
    case = case.add(HEART_SOURCE, source).add(ARTERIES, parts).add(NOT_CORONARY, nothing)
    case = ScoreCalcium()(case)
    home = root / "results" / series.patient_id / series.series_uid
    seg = home / "cac.seg.dcm"
    common: dict[str, Any] = {
        "series": series, "geometry": reading.volume.geometry, "heart": heart, "calcium": calcium,
        "parts": [parts], "slices": reading.slices, "algorithm_version": "0.1.0",
        "heart_by": maker_of(source),
    }  # fmt: skip
    made = {"deepcac2": "0.1.0", "weights": {"calcium": {"name": SECRET, "sha256": "1" * 64}}}
    read = Signature(reader="Quentin Qzsentinel", number=1, time=datetime(1953, 7, 9, 3, 15, 59))
    write_segmentation(seg, **common)
    write_sr(home / "cac.sr.dcm", case, segmentation=seg, provenance=made)
    write_segmentation(home / "read.seg.dcm", **common, signature=replace(read, replaces=(seg,)))
    write_sr(
        home / "read.sr.dcm",
        case,
        segmentation=home / "read.seg.dcm",
        provenance=made,
        signature=replace(read, replaces=(home / "cac.sr.dcm",)),
        remarks=(f"read by {SECRET}",),
    )
    page: dict[str, Any] = {"series": series, "derived": seg, "title": "A page", "version": "0.1.0"}
    write_encapsulated_pdf(home / "cac.pdf.dcm", f"%PDF {SECRET}".encode(), **page)
    write_secondary_capture(home / "cac.sc.dcm", [np.zeros((8, 8, 3), dtype=np.uint8)], **page)
    total = score(reading.volume, calcium).total
    report = {
        "Predicted Agatston Score": total, "Predicted Risk Group": int(risk_group(total)),
        "SeriesInstanceUID": series.series_uid, "PatientID": series.patient_id, "Site": SECRET,
    }  # fmt: skip
    write_json(home / REPORT.file, report)
    row = result_row(case, folder=home.relative_to(root / "results").as_posix(), provenance=made)
    texts = {c.name: SECRET for c in MEANINGS.values() if c.kind is str and getattr(row, c.name) == ""}
    row = replace(row, **{k: v for k, v in texts.items() if k not in ("code", "reason")})
    unfit = replace(
        row, series_uid=f"{ROOT}.8", status="failed", code="unreadable-file", reason=SECRET, folder=""
    )
    outputs = [*(p.name for p in home.iterdir())]
    write_json(home / "details.json", {"row": vars(row), "outputs": outputs})
    write_parquet(root / "results" / "results.parquet", [row, unfit])
    counts = {"found": 3, "selected": 3, "scored": 1, "rejected": 0, "failed": 1, "missing": 1}
    write_json(root / "results" / "run.json", {"series": {**counts, "missing_series": [f"{ROOT}.7"]}})
    return root


class Folder:
    """A destination that keeps what it gets."""

    name = "folder"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def check(self) -> None: ...

    def send(self, instance: SliceRef, path: Path) -> str:
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert instance.sop_instance_uid == ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID
        assert (instance.sop_class_uid, instance.transfer_syntax_uid) == (
            ds.SOPClassUID,
            ds.file_meta.TransferSyntaxUID,
        )
        shutil.copyfile(path, self.folder / f"{instance.sop_instance_uid}.dcm")
        return ""

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def there(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What arrives of `full`: 12 images, two SEGs and two SRs, but no pages."""
    root = tmp_path_factory.mktemp("pushed")
    shutil.copytree(full / "results", root / "results")
    problems: list[Problem] = []
    summary = push(
        root / "results", Folder(root / "there"), ct=full / "ct",
        preparation=Deidentified(deidentifier(KEY)), tell=problems.append,
    )  # fmt: skip
    counts = (summary.sent, summary.present, summary.problems, summary.left_out)
    assert (problems, counts) == ([], (16, 0, 0, 2))
    return root / "there"


def elements(ds: Dataset) -> Iterator[pydicom.DataElement]:
    for element in ds:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def by_class(folder: Path) -> dict[str, list[Dataset]]:
    found: dict[str, list[Dataset]] = {}
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path)
        found.setdefault(str(ds.Modality), []).append(ds)
    return found


def test_nothing_of_the_patient_is_in_any_byte(full: Path, there: Path) -> None:
    kinds = Counter(
        element.VR
        for path in (full / "ct").glob(f"{SECRET}*")
        for element in elements(pydicom.dcmread(path))
        if NEEDLES.search(str(element.value).encode())
    )
    assert {*VALUES, "UI", "SQ"} - {"OB or OW"} <= kinds.keys()
    assert sum(kinds.values()) > 2000
    for path in (full / "results").rglob("*.dcm"):
        assert NEEDLES.search(path.read_bytes())
    assert len(list(there.iterdir())) == 16
    for path in there.iterdir():
        assert not (hit := NEEDLES.search(path.read_bytes())), (path.name, hit)


def test_the_score_is_the_same(full: Path, there: Path) -> None:
    (before,) = discover(full / "ct").series
    (after,) = (series for series in discover(there).series if series.modality == "CT")
    old, new = read_series(before).volume, read_series(after).volume
    assert np.array_equal(old.hu, new.hu)
    assert old.geometry == new.geometry
    segs = {ds.SeriesNumber: Path(ds.filename) for ds in by_class(there)["SEG"]}
    masks = read_segmentation(segs[9001], new.geometry)
    original = read_segmentation(next(full.rglob("cac.seg.dcm")), old.geometry)
    for kind in ("heart", "calcium"):
        assert np.array_equal(masks[kind], original[kind])
    assert score(new, masks["calcium"]).total == score(old, original["calcium"]).total > 0
    (report,) = (ds for ds in by_class(there)["SR"] if ds.SeriesNumber == 9002)
    values = [e.value for e in elements(report) if e.keyword == "FloatingPointValue"]
    assert round(score(new, masks["calcium"]).total, 2) in values


def test_references_still_lead_where_they_did(full: Path, there: Path) -> None:
    found = by_class(there)
    uids = {str(ds.SOPInstanceUID) for each in found.values() for ds in each}
    for ds in (*found["SEG"], *found["SR"]):
        named = {str(e.value) for e in elements(ds) if e.keyword == "ReferencedSOPInstanceUID"}
        assert named
        assert named <= uids
        assert ds.StudyInstanceUID == found["CT"][0].StudyInstanceUID
        assert ds.PatientID == found["CT"][0].PatientID != ""
    images = {str(ds.SOPInstanceUID): ds for ds in found["CT"]}
    source = {
        str(ds.SOPInstanceUID): ds.ImagePositionPatient
        for ds in map(pydicom.dcmread, sorted((full / "ct").iterdir()))
    }
    names = Pseudonyms(KEY)
    assert {names.uid(uid): p for uid, p in source.items()} == {
        uid: ds.ImagePositionPatient for uid, ds in images.items()
    }


def test_it_says_what_was_done(there: Path) -> None:
    options = {"CT": ["113100"], "SEG": ["113100", "113105"], "SR": ["113100", "113104", "113105"]}
    for kind, each in by_class(there).items():
        for ds in each:
            assert [c.CodeValue for c in ds.DeidentificationMethodCodeSequence] == options[kind]
            assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == (
                "YES",
                "REMOVED",
            )
            assert ds.get("BurnedInAnnotation") is None or ds.BurnedInAnnotation == "NO"


def test_cautions_and_a_given_heart_are_still_said(there: Path) -> None:
    found = by_class(there)
    (report,) = (ds for ds in found["SR"] if ds.SeriesNumber == 9002)
    texts = [e.value for e in elements(report) if e.keyword == "TextValue"]
    said = [text for text in texts if text.startswith(("Caution", "Warning", "A remark"))]
    assert [text.split(":")[0] for text in said] == [
        "Caution", "Caution", "Warning (sharp-kernel)", "Warning (contrast)", "A remark was removed with the "
        "patient's data.",
    ]  # fmt: skip
    assert said[0].startswith("Caution: in spite of contrast: ")
    assert any(t.startswith("Research use only") for t in texts)
    parameters = next(text for text in texts if text.startswith("rule: agatston; threshold: 130"))
    assert "calcium weights: other sha256 " + "1" * 64 in parameters
    assert "heart from: a file" in parameters
    heart = found["SEG"][0].SegmentSequence[0]
    assert heart.SegmentDescription == "Not found by deepcac2: taken from a file"
    assert [s.SegmentLabel for s in found["SEG"][0].SegmentSequence] == [
        "Heart", "Coronary calcium", "Calcium, LAD",
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy, which is not here")
def test_all_of_it_is_valid(there: Path) -> None:
    for ds in [ds for each in by_class(there).values() for ds in each[:2]]:
        done = subprocess.run(["dciodvfy", ds.filename], capture_output=True, text=True, check=False)
        errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
        assert not errors, (ds.Modality, errors)


def test_the_table_of_the_standard_allows_what_is_kept(there: Path) -> None:
    """Table E.1-1 as dicom-anonymizer has it, edition 2026c."""
    table = pytest.importorskip("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    actions = {
        tag: name.removesuffix("_TAGS")
        for name, tags in vars(table).items()
        if name.endswith("_TAGS") and name != "ALL_TAGS"
        for tag in tags
    }
    dummies = {"19000101", "000000", "0", "Removed", "", "None"}
    cleaned = {"ContentSequence", "SeriesDescription", "SegmentDescription", "TextValue"}
    kept: dict[str, str] = {}
    for each in by_class(there).values():
        for ds in each:
            for element in elements(ds):
                action = actions.get((element.tag.group, element.tag.elem))
                plain = str(element.value) in dummies if element.VR != "SQ" else not element.value
                if action is not None and not plain:
                    kept[keyword_for_tag(element.tag)] = action
    left = {name: action for name, action in kept.items() if action != "U" and name not in cleaned}
    # a sequence may be kept where its UIDs are replaced ("U*"); a pseudonym and "CONTRAST" are dummies
    assert left == {"PatientID": "Z_D", "ContrastBolusAgent": "Z_D", "SourceImageSequence": "X_Z_U_STAR"}


def test_one_key_one_set_of_names(full: Path, there: Path) -> None:
    files = [file_of(path) for path in (next((full / "ct").iterdir()), *sorted(full.rglob("cac.s[er]*.dcm")))]
    assert len(files) == 3
    one, other = (deidentifier(key) for key in (KEY, b"x" * 32))
    for file in files:
        made = one.encoded(file)
        assert made == (there / f"{one.pseudonyms.uid(file.sop_instance_uid)}.dcm").read_bytes()
        ours, theirs = (set(all_uids(content)) for content in (made, other.encoded(file)))
        assert ours
        assert not ours & theirs
        assert all(len(uid) <= 64 for uid in ours)


def all_uids(content: bytes) -> Iterator[str]:
    for element in elements(pydicom.dcmread(io.BytesIO(content))):
        if element.VR == "UI" and not str(element.value).startswith("1.2.840.10008."):
            yield str(element.value)


def test_a_push_goes_on_and_the_key_is_nowhere(full: Path, there: Path, tmp_path: Path) -> None:
    results = there.parent / "results"
    summary = push(
        results, Folder(tmp_path / "second"), ct=full / "ct", preparation=Deidentified(deidentifier(KEY))
    )
    assert (summary.sent, summary.present, summary.problems) == (0, 16, 0)
    for path in there.parent.rglob("*"):
        if path.is_file():
            assert KEY not in (content := path.read_bytes())
            assert KEY.hex().encode() not in content.lower()
    with pytest.raises(InputError, match="without patients before"):
        push(results, Folder(tmp_path / "third"))
    # elsewhere what is sent as it is goes under its own UIDs, whatever was handed over
    other = Folder(tmp_path / "fourth")
    other.name = "other"
    summary = push(results, other)
    assert (summary.sent, summary.present) == (6, 0)


def test_a_release_without_patients(
    full: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, key = tmp_path / "out.zip", tmp_path / "keys" / "trial.key"
    command = ["release", "build", str(full / "results"), str(out), "--unfinished", "--deidentify", str(key)]
    assert main(command) == 0
    assert "made a new key" in capsys.readouterr().err
    assert key.stat().st_mode & 0o777 == 0o600
    names = Pseudonyms(bytes.fromhex(key.read_text()))
    with zipfile.ZipFile(out) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
        folder = f"{names.patient(f'{SECRET}-ID')}/{names.uid(f'{ROOT}.2')}"
        assert {f"{folder}/cac.seg.dcm", f"{folder}/{REPORT.file}"} < contents.keys()
    table = tmp_path / "results.parquet"
    table.write_bytes(contents["results.parquet"])
    rows = list(read_parquet(table))
    for name, content in {
        **contents,
        "rows": repr(rows).encode(),
        "names": repr(list(contents)).encode(),
    }.items():
        assert not (hit := NEEDLES.search(content)), (name, hit)
        assert key.read_bytes().strip() not in content
    (scored,) = (row for row in rows if row.status == "scored")
    (failed,) = (row for row in rows if row.status == "failed")
    assert json.loads(contents[SELECTION])["missing_series"] == [names.uid(f"{ROOT}.7")]
    assert (failed.code, failed.reason, failed.folder) == ("unreadable-file", "", "")
    assert scored.folder == folder
    assert scored.agatston_score > 0
    assert scored.patient_age is None
    assert scored.warnings == "sharp-kernel;contrast"
    assert scored.heart_source == "a file"
    assert scored.caution.startswith("in spite of contrast: ")
    report = json.loads(contents[f"{folder}/{REPORT.file}"])
    assert report.keys() == {
        "Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID", "PatientID",
    }  # fmt: skip
    assert main(command) == 0
    with zipfile.ZipFile(out) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == contents


def test_a_release_and_its_ct_agree(full: Path, there: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY.hex())
    key.chmod(0o600)
    out = tmp_path / "out.zip"
    done = ["release", "build", str(full / "results"), str(out), "--unfinished", "--deidentify", str(key)]
    assert main(done) == 0
    with Release(out) as release:
        checked = verify(release, ct=there)
    assert [p.code for p in checked.problems] == ["missing"]
    assert checked.with_ct == 1


# --- closed where it does not know ------------------------------------------------------------------------


def image(there: Path, tmp_path: Path, change: Callable[[Any], None]) -> SliceRef:
    ds = pydicom.dcmread(next(p for p in there.iterdir() if pydicom.dcmread(p).Modality == "CT"))
    change(ds)
    ds.save_as(tmp_path / "x.dcm")
    return file_of(tmp_path / "x.dcm")


def handed(ref: SliceRef) -> Any:
    made = Deidentifier(Pseudonyms(KEY), Vocabulary(), version="0").encoded(ref)
    return pydicom.dcmread(io.BytesIO(made))


@pytest.mark.parametrize(
    ("keyword", "value", "said"),
    [
        ("BurnedInAnnotation", "YES", "BurnedInAnnotation"),
        ("ImageType", ["DERIVED", "SECONDARY"], "no primary image"),
        ("Modality", "QZ", "Modality"),
        ("RescaleType", SECRET, "RescaleType"),
        ("SOPClassUID", SecondaryCaptureImageStorage, "another SOP class"),
        ("NumberOfFrames", 2, "cannot be decoded"),
        ("StudyInstanceUID", "", "lacks a UID"),
    ],
)
def test_what_cannot_be_told_is_refused(
    there: Path, tmp_path: Path, keyword: str, value: Any, said: str
) -> None:
    ref = image(there, tmp_path, lambda ds: setattr(ds, keyword, value))
    with pytest.raises(NotDeidentified, match=said) as caught:
        handed(ref)
    assert SECRET not in str(caught.value)


def test_a_number_that_is_none_is_refused(there: Path, tmp_path: Path) -> None:
    def change(ds: Any) -> None:
        del ds.KVP
        ds.add_new("KVP", "LO", SECRET)

    with pytest.raises(NotDeidentified, match="KVP holds no number"):
        handed(image(there, tmp_path, change))


@pytest.mark.parametrize("where", ["code", "segmented", "sr"])
def test_codes_and_objects_that_are_not_ours(there: Path, tmp_path: Path, where: str) -> None:
    kind = {"code": "SEG", "segmented": "SEG", "sr": "SR"}[where]
    ds: Any = by_class(there)[kind][0]
    if where == "code":
        ds.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = SECRET
    elif where == "segmented":
        ds.SegmentationType = "FRACTIONAL"
    else:
        ds.VerificationFlag = "VERIFIED"
    ds.save_as(tmp_path / "x.dcm")
    with pytest.raises(NotDeidentified) as caught:
        handed(file_of(tmp_path / "x.dcm"))
    assert SECRET not in str(caught.value)


def test_meanings_texts_and_bits_that_are_not_ours_go(there: Path, tmp_path: Path) -> None:
    seg, report = (by_class(there)[kind][0] for kind in ("SEG", "SR"))
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeMeaning = SECRET
    seg.SegmentSequence[0].SegmentLabel = seg.SegmentSequence[0].TrackingID = SECRET
    seg.ContentCreatorName = seg.SoftwareVersions = seg.ManufacturerModelName = SECRET
    seg.PixelData += SECRET.encode()
    for element in elements(report):
        if element.keyword == "TextValue":
            element.value = SECRET
    for name, ds in (("seg.dcm", seg), ("sr.dcm", report)):
        ds.save_as(tmp_path / name)
        made = Deidentifier(Pseudonyms(KEY), Vocabulary(), version="0").encoded(file_of(tmp_path / name))
        assert NEEDLES.search((tmp_path / name).read_bytes())
        assert not NEEDLES.search(made)


def test_pixels_say_nothing_else(there: Path, tmp_path: Path) -> None:
    """An overlay in the bits above those that are stored, padding beyond them, a comment in JPEG 2000."""
    value = np.arange(48 * 52, dtype=np.uint16).reshape(48, 52) % 4096

    def old_overlay(ds: Any) -> None:
        cells = value | (np.indices(value.shape).sum(axis=0) % 7 == 0).astype(np.uint16) << 13
        cells[0] = 63536  # -2000 written without a sign
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        ds.add_new("PixelPaddingValue", "US", 63536)
        ds.PixelData = cells.tobytes()

    made = handed(image(there, tmp_path, old_overlay))
    assert (made.pixel_array[0] == 63536).all()
    assert np.array_equal(made.pixel_array[1:], value[1:])
    assert (made.BitsStored, made.HighBit, made.PixelPaddingValue) == (16, 15, 63536)

    def compressed(ds: Any) -> None:
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 12, 11, 0
        del ds.PixelPaddingValue
        ds.PixelData = value.tobytes()
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        (stream,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
        comment = b"\xff\x64" + (4 + len(SECRET)).to_bytes(2, "big") + b"\0\1" + SECRET.encode()
        at = 4 + int.from_bytes(stream[4:6], "big")  # after SOC and SIZ
        ds.PixelData = pydicom.encaps.encapsulate([stream[:at] + comment + stream[at:]])

    ref = image(there, tmp_path, compressed)
    assert SECRET.encode() in ref.path.read_bytes()
    made = handed(ref)
    assert np.array_equal(made.pixel_array, value)
    assert SECRET.encode() not in made.PixelData


def test_values_that_mean_something_else_are_refused(there: Path, tmp_path: Path) -> None:
    def table(ds: Any) -> None:
        ds.ModalityLUTSequence = [Dataset()]

    with pytest.raises(NotDeidentified, match="mean something"):
        handed(image(there, tmp_path, table))


def test_contrast_stays_contrast(there: Path, tmp_path: Path) -> None:
    for agent, route, expected in (
        ("OMNIPAQUE QZ", "", ("CONTRAST", "IV")),
        ("GASTROGRAFIN", "ORAL", ("CONTRAST", "ORAL")),
        ("NONE", "", (None, None)),
    ):

        def change(ds: Any, agent: str = agent, route: str = route) -> None:
            ds.ContrastBolusAgent, ds.ContrastBolusRoute = agent, route

        made = handed(image(there, tmp_path, change))
        assert (made.get("ContrastBolusAgent"), made.get("ContrastBolusRoute")) == expected


def test_a_key_among_the_results_is_refused(full: Path) -> None:
    inside = full / "results" / "key"
    command = [
        "release",
        "build",
        str(full / "results"),
        "x.zip",
        "--unfinished",
        "--deidentify",
        str(inside),
    ]
    assert main(command) == InputError.exit_code
    assert not inside.exists()


def test_every_column_is_numbers_or_decided() -> None:
    from deepcac2.pipeline import hand_over

    emptied = {
        *("patient_age", "percentile", "study_date", "patient_sex", "time_point", "series_description"),
        *("model_name",),
    }
    named = {"patient_id", "study_uid", "series_uid", "folder"}
    texts = {c.name for c in MEANINGS.values() if c.kind is str}
    assert texts == {*hand_over._TEXTS, *named, *(emptied - {"patient_age"})}


def test_tags_are_those_of_the_dictionary() -> None:
    from deepcac2.dicom import deidentify as kept

    for keyword in (*kept._NUMBERS, *kept._UIDS, *kept._ITEMS, *kept._CODES, *kept._WORDS, *kept._EMPTY):
        vr = pydicom.datadict.dictionary_VR(Tag(keyword))
        assert (keyword in kept._UIDS) == (vr == "UI")
        assert (keyword in kept._ITEMS | kept._CODES) == (vr == "SQ")
    assert generate_uid().startswith("1.2")
