"""DICOM SR, judged by others: highdicom, dciodvfy, dsrdump (dcmtk) and tid1500reader (dcmqi)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr._concepts_dict import concepts
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage

from deepcac2.dicom import (
    MeasuredArtery,
    MeasuredCalcium,
    MeasuredLesion,
    Series,
    discover,
    read_series,
    write_segmentation,
    write_structured_report,
)
from deepcac2.dicom import structured_report as module
from deepcac2.errors import InputUnreadable, OutputUnwritable
from deepcac2.imaging.labels import ARTERIES, NOT_SURE

LESIONS = (
    MeasuredLesion(score=101.0625, volume_mm3=70.3, centre=(12.5, -34.25, 80.0)),
    MeasuredLesion(score=1 / 3, volume_mm3=4.2, centre=(-1.5, 2.75, 77.5)),
)
MEASURED = MeasuredCalcium(
    score=101.0625 + 1 / 3,
    volume_mm3=74.5,
    threshold_hu=130,
    risk_group=2,
    heart_ml=612.3,
    heart_centre=(3.5, -4.25, 60.0),
    lesions=LESIONS,
    parameters="rule: agatston; heart weights: bundled sha256 0123",
)
NOTHING = MeasuredCalcium(score=0.0, volume_mm3=0.0, risk_group=0)
REMARKS = ("Caution: in spite of a gate", "Warning (kvp): taken at 140 kV", "Research use only.")


class Scan:
    """A CT series with its SEG, and the SR of what was measured in it."""

    def __init__(self, folder: Path, series: Series) -> None:
        self.folder, self.series = folder, series
        self.segmentation = folder / "cac.seg.dcm"
        self.path = folder / "cac.sr.dcm"
        reading = read_series(series)
        mask = np.zeros(reading.volume.geometry.shape, dtype=bool)
        mask[3:9, 2:8, 2:8] = True
        write_segmentation(
            self.segmentation,
            series=series,
            geometry=reading.volume.geometry,
            heart=mask,
            calcium=np.zeros_like(mask),
            slices=reading.slices,
            algorithm_version="1",
        )

    def write(self, measured: MeasuredCalcium = MEASURED, **changes: object) -> Path:
        options = {"series": self.series, "segmentation": self.segmentation, "algorithm_version": "1"}
        write_structured_report(self.path, measured=measured, **{**options, **changes})  # type: ignore[arg-type]
        return self.path


@pytest.fixture
def scan(tmp_path: Path, ct, hu) -> Scan:
    ct.write(tmp_path / "ct", hu)
    (series,) = discover(tmp_path / "ct").series
    return Scan(tmp_path, series)


def items(item: Dataset) -> Iterator[Dataset]:
    """All content items below one."""
    for child in item.get("ContentSequence", []):
        yield child
        yield from items(child)


def numbers(group) -> dict[str, tuple[float, str]]:
    return {m.name.value: (m.value, m.unit.value) for m in group.get_measurements()}


def test_every_code_is_in_the_tables_or_said_not_to_be() -> None:
    """PS3.16 as pydicom carries it: value, scheme and meaning."""
    ours = {name: code for name, code in vars(module).items() if isinstance(code, Code)}
    ours |= {f"RISK_GROUPS[{n}]": code for n, code in enumerate(module.RISK_GROUPS)}
    ours |= {f"CAC_DRS_CATEGORIES[{n}]": code for n, code in enumerate(module.CAC_DRS_CATEGORIES)}
    assert len(ours) > 15
    absent = []
    for name, code in ours.items():
        known = [v[code.value] for v in concepts.get(code.scheme_designator, {}).values() if code.value in v]
        if not known:
            absent.append(name)
            continue
        assert code.meaning.lower() in {meaning.lower() for meaning, _ in known}
    assert sorted(absent) == [
        "CAC_DRS", *(f"CAC_DRS_CATEGORIES[{n}]" for n in range(4)),
        "EVALUATIONS", "MILLIGRAM", "RISK_GROUP", "RISK_GROUPS[0]",
    ]  # fmt: skip


def test_highdicom_reads_what_was_measured(scan: Scan) -> None:
    document = hd.sr.srread(scan.write())
    assert document.SOPClassUID == Comprehensive3DSRStorage
    content = document.content
    calcium, heart = content.get_volumetric_roi_measurement_groups()
    assert numbers(calcium) == {
        "450360000": (101.4, "1"),
        "122657": (130, "[hnsf'U]"),
        "122660": (74.5, "mm3"),
    }
    (score,) = calcium.get_measurements(name=codes.SCT.CoronaryArteryCalciumScore)
    method = score[0].ContentSequence[0]
    assert method.ConceptCodeSequence[0] == codes.DCM.AgatstonScoringMethod
    assert calcium.finding_type == codes.SCT.PathologicCalcification
    assert [site.value for site in calcium.finding_sites] == [Code("41801008", "SCT", "Coronary artery")]
    (risk,) = calcium.get_qualitative_evaluations()
    assert risk.value == Code("25594002", "SCT", "Moderate risk")
    texts = {
        i.ConceptNameCodeSequence[0].CodeMeaning: i.TextValue for i in items(calcium[0]) if "TextValue" in i
    }
    assert texts["Algorithm Name"] == "deepcac2"
    assert texts["Algorithm Version"] == "1"
    assert texts["Algorithm Parameters"] == MEASURED.parameters

    assert numbers(heart) == {"118565006": (612.3, "cm3")}
    seg = pydicom.dcmread(scan.segmentation, stop_before_pixels=True)
    for group, number in ((calcium, 2), (heart, 1)):
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert segment.referenced_segment_numbers == [number]
        assert (
            group.finding_type.value
            == seg.SegmentSequence[number - 1]["SegmentedPropertyTypeCodeSequence"][0].CodeValue
        )
        assert segment.source_series_for_segmentation.value == scan.series.series_uid

    found = content.get_image_measurement_groups()
    assert [g.tracking_identifier for g in found] == ["Lesion 1", "Lesion 2"]
    for group, lesion in zip(found, LESIONS, strict=True):
        assert numbers(group) == {
            "450360000": (round(lesion.score, 2), "1"),
            "122660": (lesion.volume_mm3, "mm3"),
        }
    # OHIF 3.13 shows nothing of a report in which a group has no point.
    places = [MEASURED.heart_centre, MEASURED.heart_centre, *(lesion.centre for lesion in LESIONS)]
    for group, place in zip((calcium, heart, *found), places, strict=True):
        (point,) = [i for i in items(group[0]) if i.ValueType == "SCOORD3D"]
        assert point.GraphicType == "POINT"
        assert tuple(point.GraphicData) == place
        assert point.ReferencedFrameOfReferenceUID == seg.FrameOfReferenceUID
    observers = content.get_observer_contexts()
    assert [o.observer_type for o in observers] == [codes.DCM.Device]


POPULATION = "Hoff 2001, by age and sex"
DIVIDED = replace(
    MEASURED,
    cac_drs=2,
    territories=2,
    arteries=tuple(
        MeasuredArtery(label=label, score=score, volume_mm3=10.5, centre=(1.0, 2.0, float(score)))
        for label, score in ((ARTERIES[1], 60), (ARTERIES[3], 40), (NOT_SURE, 1.4))
    ),
)
GRADED = replace(MEASURED, cac_drs=2, percentile=(50, 75), population=POPULATION)


def test_each_artery_is_a_group_with_its_site(scan: Scan) -> None:
    content = hd.sr.srread(scan.write(DIVIDED)).content
    calcium, _ = content.get_volumetric_roi_measurement_groups()
    assert numbers(calcium)["122762"] == (2, "1")
    groups = content.get_image_measurement_groups()
    for group, artery in zip(groups, DIVIDED.arteries, strict=False):
        assert group.tracking_identifier == f"Calcium, {artery.label.name}"
        region = artery.label.region
        assert region is not None
        assert [s.value for s in group.finding_sites] == [Code(region.value, region.scheme, region.meaning)]
        assert numbers(group) == {"450360000": (artery.score, "1"), "122660": (10.5, "mm3")}
        (point,) = [i for i in items(group[0]) if i.ValueType == "SCOORD3D"]
        assert tuple(point.GraphicData) == pytest.approx(artery.centre)
    assert len(groups) == len(DIVIDED.arteries) + len(LESIONS)
    uids = [group.tracking_uid for group in groups]
    assert len(set(uids)) == len(uids)


@pytest.mark.parametrize(
    ("percentile", "ends"),
    [
        ((50, 75), [(50.0, "Minimum"), (75.0, "Maximum")]),
        ((None, 25), [(25.0, "Maximum")]),
        ((90, None), [(90.0, "Minimum")]),
        (None, []),
    ],
)
def test_the_score_has_its_range_of_percentiles(
    scan: Scan, percentile: tuple[int | None, int | None] | None, ends: list[tuple[float, str]]
) -> None:
    """As properties of the score (TID 310, 311), with the population; the heart's middle stays beside."""
    graded = replace(GRADED, percentile=percentile, population=POPULATION if percentile else "")
    content = hd.sr.srread(scan.write(graded)).content
    calcium, _ = content.get_volumetric_roi_measurement_groups()
    assert [e.value.meaning for e in calcium.get_qualitative_evaluations()] == ["Moderate risk", "CAC-DRS A2"]
    (score,) = calcium.get_measurements(name=codes.SCT.CoronaryArteryCalciumScore)
    below = list(score[0].ContentSequence)
    found = [i for i in below if i.name == codes.DCM.PercentileRankingOfMeasurement]
    assert [i.value for i in found] == [value for value, _ in ends]
    assert all((i.RelationshipType, i.unit) == ("HAS PROPERTIES", codes.UCUM.Percent) for i in found)
    modifiers = [i.ContentSequence[0] for i in found]
    assert [(m.name, m.value.meaning) for m in modifiers] == [
        (codes.DCM.Derivation, which) for _, which in ends
    ]
    texts = [i.value for i in below if i.name == codes.DCM.PopulationDescription]
    assert texts == ([POPULATION] if ends else [])
    assert [i.ValueType for i in below].count("SCOORD3D") == 1


def test_a_lesion_is_what_highdicom_would_have_made(scan: Scan) -> None:
    """Lesions are copies of an example that was filled in: the same as each made anew."""
    ds = pydicom.dcmread(scan.write())
    frame_of_reference = pydicom.dcmread(scan.segmentation, stop_before_pixels=True).FrameOfReferenceUID
    groups = ds.ContentSequence[-1].ContentSequence[2:]
    for number, (mine, lesion) in enumerate(zip(groups, LESIONS, strict=True), start=1):
        centre = hd.sr.CoordinatesForMeasurement3D(
            graphic_type=hd.sr.GraphicTypeValues3D.POINT,
            graphic_data=np.array([lesion.centre]),
            frame_of_reference_uid=frame_of_reference,
        )
        score = hd.sr.Measurement(
            name=codes.SCT.CoronaryArteryCalciumScore,
            value=round(lesion.score, 2),
            unit=codes.UCUM.NoUnits,
            method=codes.DCM.AgatstonScoringMethod,
            referenced_coordinates=[centre],
        )
        volume = hd.sr.Measurement(
            name=codes.DCM.CalciumVolume, value=lesion.volume_mm3, unit=codes.UCUM.CubicMillimeter
        )
        theirs = hd.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=mine.ContentSequence[1].UID, identifier=f"Lesion {number}"
            ),
            finding_type=Code("18115005", "SCT", "Pathologic calcification"),
            finding_sites=[hd.sr.FindingSite(Code("41801008", "SCT", "Coronary artery"))],
            measurements=[score, volume],
        )[0]
        written = io.BytesIO()
        pydicom.dcmwrite(written, theirs, implicit_vr=False, little_endian=True)
        assert mine.to_json() == pydicom.dcmread(written, force=True).to_json()


def test_only_groups_have_tracking_identifiers(scan: Scan) -> None:
    ds = pydicom.dcmread(scan.write())
    groups = ds.ContentSequence[-1].ContentSequence
    tracking = [
        i.UID for g in groups for i in g.ContentSequence if i.ValueType == "UIDREF"
        and i.ConceptNameCodeSequence[0].CodeValue == "112040"
    ]  # fmt: skip
    assert len(set(tracking)) == len(groups) == 4
    for measurement in (i for i in items(ds) if i.ValueType == "NUM"):
        names = {i.ConceptNameCodeSequence[0].CodeValue for i in items(measurement)}
        assert not names & {"112039", "112040"}


def test_the_evidence_is_the_seg_and_the_whole_ct(scan: Scan) -> None:
    document = hd.sr.srread(scan.write())
    evidence = document.get_evidence()
    seg = pydicom.dcmread(scan.segmentation, stop_before_pixels=True)
    images = {pydicom.dcmread(p).SOPInstanceUID for p in (scan.folder / "ct").iterdir()}
    by_series = {
        uid: {e[2] for e in evidence if e[1] == uid}
        for uid in (seg.SeriesInstanceUID, scan.series.series_uid)
    }
    assert by_series == {seg.SeriesInstanceUID: {seg.SOPInstanceUID}, scan.series.series_uid: images}
    assert {e[0] for e in evidence} == {seg.StudyInstanceUID}
    referenced = {
        i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for i in items(document)
        if "ReferencedSOPSequence" in i
    }
    assert referenced <= {e[2] for e in evidence}


def test_remarks_are_texts_of_the_container_of_evaluations(scan: Scan) -> None:
    document = hd.sr.srread(scan.write(replace(MEASURED, remarks=REMARKS)))
    *_, container = document.ContentSequence
    name = container.ConceptNameCodeSequence[0]
    assert (name.CodeValue, name.CodingSchemeDesignator) == ("C0034375", "UMLS")
    assert container.RelationshipType == "CONTAINS"
    assert tuple(item.TextValue for item in container.ContentSequence) == REMARKS
    for item in container.ContentSequence:
        assert (item.ValueType, item.RelationshipType) == ("TEXT", "CONTAINS")
        assert item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"


def test_numbers_have_the_digits_that_a_scan_can_repeat(scan: Scan) -> None:
    """The numbers as written: DS values of two digits after the point at most, and the same as double."""
    third = 1 / 3
    lesion = MeasuredLesion(score=third, volume_mm3=third, centre=(0.0, 0.0, 0.0))
    odd = MeasuredCalcium(
        score=478.4 + third, volume_mm3=third, mass_mg=third, risk_group=3, heart_ml=third, lesions=(lesion,)
    )
    written = [
        item.MeasuredValueSequence[0]
        for item in items(pydicom.dcmread(scan.write(odd)))
        if item.ValueType == "NUM"
    ]
    assert [str(value.NumericValue) for value in written] == [
        "478.73", "0.3", "0.33", "0.3", "0.33", "0.3",
    ]  # fmt: skip
    for value in written:
        assert value.get("FloatingPointValue", float(value.NumericValue)) == float(value.NumericValue)


@pytest.mark.parametrize(
    "measured",
    [
        MEASURED,
        NOTHING,
        GRADED,
        DIVIDED,
        replace(MEASURED, mass_mg=15.25, threshold_hu=None, remarks=REMARKS),
    ],
)
def test_other_programs_read_it(
    scan: Scan, measured: MeasuredCalcium, assert_valid, run_tool: Callable[..., str]
) -> None:
    path = scan.write(measured)
    assert_valid(path, "Comprehensive3DSR")
    dump = run_tool("dsrdump", str(path))
    assert 'NUM:(,,"Coronary artery calcium score")' in dump
    assert ("Agatston Score Threshold" in dump) == (measured.threshold_hu is not None)
    assert ("Calcium Mass" in dump) == (measured.mass_mg is not None)
    assert dump.count("Percentile Ranking of measurement") == (2 if measured is GRADED else 0)
    assert (f'"{POPULATION}"' in dump) == (measured is GRADED)
    assert ("CAC-DRS A2" in dump) == (measured.cac_drs == 2)
    assert dump.count('"Lesion ') == len(measured.lesions)
    assert all(f'"Comment")="{text}"' in dump for text in measured.remarks)
    assert not any(line.startswith(("E:", "F:")) for line in dump.splitlines())

    said = scan.folder / "dcmqi.json"
    run_tool("tid1500reader", "--inputDICOM", str(path), "--outputMetadata", str(said))
    report = json.loads(said.read_text())
    calcium, *others = report["Measurements"]
    values = {m["quantity"]["CodeValue"]: float(m["value"]) for m in calcium["measurementItems"]}
    assert values["450360000"] == pytest.approx(measured.score, abs=0.005)
    assert values["122660"] == pytest.approx(measured.volume_mm3)
    assert values.get("122657") == measured.threshold_hu
    assert values.get("122661") == measured.mass_mg
    assert calcium["ReferencedSegment"] == 2
    assert calcium["SourceSeriesForImageSegmentation"] == scan.series.series_uid
    if measured.parameters:
        assert calcium["measurementAlgorithmIdentification"]["AlgorithmParameters"] == [measured.parameters]
    assert calcium["qualitativeEvaluations"][0]["conceptValue"]["CodeMeaning"] == (
        "Very low risk" if measured is NOTHING else "Moderate risk"
    )
    names = ["Heart"] if measured.heart_ml is not None else []
    names += [f"Calcium, {artery.label.name}" for artery in measured.arteries]
    assert ("Number of diseased vessel territories" in dump) == (measured is DIVIDED)
    names += [f"Lesion {n}" for n, _ in enumerate(measured.lesions, start=1)]
    assert [group["TrackingIdentifier"] for group in others] == names


def test_one_instance_is_one_content(scan: Scan) -> None:
    """The same result is the same bytes, whenever it is written; another result is another instance."""
    before = scan.write().read_bytes()
    assert scan.write().read_bytes() == before
    first = pydicom.dcmread(BytesIO(before))
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    other = pydicom.dcmread(scan.write(replace(MEASURED, parameters="rule: classic")))
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID == first.SeriesInstanceUID
    assert other.SeriesInstanceUID not in (
        scan.series.series_uid,
        pydicom.dcmread(scan.segmentation).SeriesInstanceUID,
    )


@pytest.mark.parametrize(
    "header",
    [
        {"PatientName": "lonely", "PatientID": "../../x"},
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Jörg=山田^太郎", "PatientID": "ü"},
        {"PatientID": "", "StudyDate": "", "PatientSex": "O"},
        {
            "ClinicalTrialSponsorName": "NCI",
            "ClinicalTrialProtocolID": "NLST",
            "ClinicalTrialSubjectID": "100002",
        },
    ],
)
def test_patient_and_study_are_those_of_the_ct(
    tmp_path: Path, ct, hu, assert_valid, header: dict[str, str]
) -> None:
    def edit(_: int, ds: Dataset) -> None:
        for keyword, value in header.items():
            setattr(ds, keyword, value)

    ct.write(tmp_path / "ct", hu, edit=edit)
    (series,) = discover(tmp_path / "ct").series
    path = Scan(tmp_path, series).write()
    assert_valid(path, "Comprehensive3DSR")
    ds = pydicom.dcmread(path)
    for keyword, value in header.items():
        assert str(ds[keyword].value) == value
    assert ds.StudyInstanceUID == ct.study_uid


def test_an_enhanced_ct_is_one_piece_of_evidence(tmp_path: Path, ct, hu, assert_valid) -> None:
    ct.write_enhanced(tmp_path / "enhanced.dcm", hu)
    (series,) = discover(tmp_path).series
    path = Scan(tmp_path, series).write()
    assert_valid(path, "Comprehensive3DSR")
    assert len(hd.sr.srread(path).get_evidence()) == 2


def test_what_cannot_be_written_or_read(scan: Scan) -> None:
    with pytest.raises(InputUnreadable, match="give a SEG"):
        scan.write(segmentation=scan.series.slices[0].path)
    with pytest.raises(InputUnreadable):
        scan.write(segmentation=scan.folder / "none.dcm")
    (scan.folder / "file").write_text("")
    scan.path = scan.folder / "file" / "cac.sr.dcm"
    with pytest.raises(OutputUnwritable):
        scan.write()
    assert sorted(p.name for p in scan.folder.iterdir()) == ["cac.seg.dcm", "ct", "file"]


def test_on_a_real_scan(tmp_path: Path, shared_data: Path, assert_valid) -> None:
    (series,) = discover(shared_data / "chest" / "CIP-64x64").series
    scan = Scan(tmp_path, series)
    assert_valid(scan.write(), "Comprehensive3DSR")
    document = hd.sr.srread(scan.path)
    assert len(document.get_evidence()) == 1 + len(series.slices)
    assert document.PatientID == series.patient_id
