"""DICOM SR: the score and its lesions as a measurement report (PS3.16 TID 1500), beside the SEG.

A Comprehensive 3D SR with three kinds of measurement groups:

- *Coronary calcium*, the whole: TID 1411 on the calcium segment of the SEG;
- *Heart*: TID 1411 on the heart segment, with its volume;
- *Lesion 1*, *Lesion 2* …: TID 1501, without a segment, as no segment of the SEG is a lesion.

What a reader must know beside the numbers stands as text in the container of qualitative evaluations.

The first number of each group is inferred from a point: a lesion's centre, or the heart's
(docs/decisions/0010).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.charset import default_encoding
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..imaging.labels import Label
from ..system.atomic import write_whole
from .derived import (
    INHERITED,
    Signature,
    content_time_of,
    decimal,
    encoded_once,
    inherited,
    instance_of,
    nameless,
    reference_to,
)
from .files import Upto
from .seg.codes import CALCIUM, CALCIUM_SEGMENT, CORONARY_ARTERY, HEART, HEART_SEGMENT
from .seg.reader import open_segmentation
from .series import Series, SliceRef

CALCIUM_SCORE = Code("450360000", "SCT", "Coronary artery calcium score")
"""PS3.16 CID 6142 Calculated Value."""
AGATSTON_METHOD = Code("112055", "DCM", "Agatston scoring method")
"""PS3.16 CID 6140 Calculation Method."""
THRESHOLD = Code("122657", "DCM", "Agatston Score Threshold")
CALCIUM_VOLUME = Code("122660", "DCM", "Calcium Volume")
CALCIUM_MASS = Code("122661", "DCM", "Calcium Mass")
"""These three: PS3.16 Annex D."""
VOLUME = Code("118565006", "SCT", "Volume")
"""PS3.16 CID 7469 Generic Intensity and Size Measurement."""
IMAGING = Code("363679005", "SCT", "Imaging procedure")
"""PS3.16 CID 100 Quantitative Diagnostic Imaging Procedure, which has no CT of the chest."""
TERRITORIES = Code("122762", "DCM", "Number of diseased vessel territories")
NO_UNITS = Code("1", "UCUM", "no units")
CUBIC_MILLIMETRE = Code("mm3", "UCUM", "cubic millimeter")
CUBIC_CENTIMETRE = Code("cm3", "UCUM", "cubic centimeter")
HOUNSFIELD = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
"""These four: PS3.16 CID 7181."""
MILLIGRAM = Code("mg", "UCUM", "milligram")
"""Of UCUM itself (https://ucum.org), which PS3.16 CID 82 takes over whole; pydicom does not list it."""

OWN_SCHEME = "99DEEPCAC2"
"""Codes that no standard has; a name that begins with 99 is private (PS3.3 8.2)."""
RISK_GROUP = Code("RISK_GROUP", OWN_SCHEME, "Risk group of the coronary calcium score")
RISK_GROUPS = (
    Code("VERY_LOW_RISK", OWN_SCHEME, "Very low risk"),
    Code("75976002", "SCT", "Low risk"),
    Code("25594002", "SCT", "Moderate risk"),
    Code("15508007", "SCT", "High risk"),
)
"""The risk groups 0 to 3; those of SNOMED CT are in PS3.16 CID 3118 Level of Risk."""
CAC_DRS = Code("CAC_DRS", OWN_SCHEME, "CAC-DRS category")
CAC_DRS_CATEGORIES = tuple(Code(f"CAC_DRS_A{a}", OWN_SCHEME, f"CAC-DRS A{a}") for a in range(4))
"""The categories A0 to A3 of CAC-DRS (Hecht et al. 2018, doi:10.1016/j.jcct.2018.03.008), for which no
standard has codes."""

PERCENTILE = Code("121415", "DCM", "Percentile Ranking of measurement")
"""PS3.16 CID 227 Sample Statistical Descriptors."""
DERIVATION = Code("121401", "DCM", "Derivation")
MINIMUM = Code("255605001", "SCT", "Minimum")
MAXIMUM = Code("56851009", "SCT", "Maximum")
"""PS3.16 CID 7464 General Region of Interest Measurement Modifiers: the ends of a range of percentiles."""
PERCENT = Code("%", "UCUM", "Percent")
"""PS3.16 CID 7181."""

EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
"""PS3.16 TID 1500, the container of evaluations of the whole study; pydicom lists no codes of UMLS."""
COMMENT = Code("121106", "DCM", "Comment")
"""PS3.16 Annex D."""

SCORE_DIGITS, VOLUME_DIGITS, MASS_DIGITS = 2, 1, 2
"""Digits after the point of scores, volumes (mm³, mL) and masses (mg): more than any scan can repeat."""

SERIES_NUMBER, READ_SERIES_NUMBER = 9002, 9012
"""SeriesNumber of our SR, and of one that a person has read: after the SEG's."""


@dataclass(frozen=True, kw_only=True)
class MeasuredLesion:
    """A lesion of the report.

    Attributes:
        score: What it adds to the Agatston score.
        volume_mm3: Volume of its counted voxels.
        centre: Their centre in the patient, LPS mm (x, y, z).
    """

    score: float
    volume_mm3: float
    centre: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class MeasuredArtery:
    """What one artery has of the score.

    Attributes:
        label: Of `imaging.labels.ARTERIES`, or `NOT_SURE`.
        score: Its share of the Agatston score.
        volume_mm3: Volume of its counted voxels.
        centre: Their centre in the patient, LPS mm (x, y, z).
    """

    label: Label
    score: float
    volume_mm3: float
    centre: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class MeasuredCalcium:
    """What the report says about one scan.

    Attributes:
        score: Agatston score, without unit.
        volume_mm3, mass_mg: Of the counted calcium; mass None: not measured.
        threshold_hu: HU from which voxels count, or None: every voxel of the mask counts.
        risk_group: 0 to 3, see `RISK_GROUPS`.
        cac_drs: 0 to 3, see `CAC_DRS_CATEGORIES`; None: not graded.
        percentile: Percentiles between which the score lies: the one reached and the one not reached, None
            where the range is open; None: not known.
        population: Whose percentiles, in words.
        heart_ml, heart_centre: Volume of the heart and its centre in the patient, LPS mm (x, y, z), or None:
            not measured.
        territories: How many arteries have calcium; None: not known, or there is none.
        arteries: Those with calcium, and what has no known artery.
        lesions: In the order of their numbers, which begin at 1.
        parameters: What the algorithm was set to, one text: of several, dcmqi reads only the first.
        remarks: What a reader must know, each a text: cautions, warnings, what the report is for.
    """

    score: float
    volume_mm3: float
    mass_mg: float | None = None
    threshold_hu: float | None = None
    risk_group: int
    cac_drs: int | None = None
    percentile: tuple[int | None, int | None] | None = None
    population: str = ""
    heart_ml: float | None = None
    heart_centre: Sequence[float] | None = None
    territories: int | None = None
    arteries: tuple[MeasuredArtery, ...] = ()
    lesions: tuple[MeasuredLesion, ...] = ()
    parameters: str = ""
    remarks: tuple[str, ...] = ()


def write_structured_report(
    path: Path,
    *,
    series: Series,
    segmentation: Path,
    measured: MeasuredCalcium,
    algorithm_name: str = "deepcac2",
    algorithm_version: str,
    signature: Signature | None = None,
) -> None:
    """Write the DICOM SR of one scored series.

    Patient and study are those of the SEG, which has them from the CT. All images of the series are named
    as evidence. SeriesInstanceUID follows from the CT's SeriesInstanceUID and `algorithm_name`,
    SOPInstanceUID from every byte that is written: the same result written again is the same file. Dates
    and times are the SEG's; why, says `derived.encoded_once`. UIDs of what is tracked follow from the
    version, the SEG and what was measured. What a person has read has UIDs of its own, the date and time of
    the signature, the reader as a second observer, and what it corrects as predecessor. The file appears
    under its name only when complete.

    Args:
        path: File to write.
        series: The CT.
        segmentation: The DICOM SEG of the series, as `write_segmentation` writes it.
        measured: What to report.
        algorithm_name, algorithm_version: What measured it.
        signature: Who has read and corrected it; None: nobody.

    Raises:
        InputUnreadable: `segmentation` cannot be read or is no DICOM SEG, or what was corrected cannot.
        DiskFull, OutputUnwritable: The file cannot be written.
    """
    import highdicom as hd

    uids = ("SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    tags = [*uids, "ContentDate", "ContentTime", *INHERITED]
    with open_segmentation(segmentation, upto=Upto.HEADER, tags=tags) as opened:
        seg = opened.dataset
    content = json.dumps(asdict(measured), sort_keys=True)
    result = generate_uid(
        entropy_srcs=[series.series_uid, algorithm_name, algorithm_version, seg.SOPInstanceUID, content]
    )
    reader = "" if signature is None else signature.person_name
    seeds = [] if signature is None else signature.seed()
    before = [] if signature is None else [_with_patient(instance_of(path)) for path in signature.replaces]
    report = _report(measured, series, seg, result, algorithm_name, algorithm_version, reader)
    document = hd.sr.Comprehensive3DSR(
        evidence=[_stand_in(seg)],
        content=_with(report, ContentSequence=report.ContentSequence[:1]),
        series_instance_uid=generate_uid(entropy_srcs=[series.series_uid, algorithm_name, "SR", *seeds]),
        series_number=SERIES_NUMBER if signature is None else READ_SERIES_NUMBER,
        series_description="Coronary calcium score" + ("" if signature is None else ", read"),
        sop_instance_uid=result,
        instance_number=1,
        manufacturer=algorithm_name,
        manufacturer_model_name=algorithm_name,
        software_versions=algorithm_version,
        device_serial_number="0",
        is_complete=True,
        is_final=True,
        previous_versions=before or None,
    )
    # highdicom copies and searches all that it is given, which takes longer than all else: so only now
    document.ContentSequence = report.ContentSequence
    document.CurrentRequestedProcedureEvidenceSequence = [_evidence(seg, series)]
    document.CodingSchemeIdentificationSequence = [_own_scheme(algorithm_name)]
    document.update(inherited(seg))
    # what `_example` has encoded is written as it is
    document.set_original_encoding(False, True, document._character_set)
    when = content_time_of(seg) if signature is None else signature.content_time
    write_whole(path, encoded_once(document, *when))


def _with_patient(instance: Dataset) -> Dataset:
    """An instance as highdicom wants to know it: with patient and study, empty."""
    item = nameless()
    item.update(instance)
    return item


def _stand_in(seg: Dataset) -> Dataset:
    """What highdicom wants to know about the SEG."""
    item = nameless()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(item, keyword, seg[keyword].value)
    return item


def _evidence(seg: Dataset, series: Series) -> Dataset:
    """Current Requested Procedure Evidence (PS3.3 C.17.2): the SEG, and the CT it was made on."""
    mask = SliceRef(path=Path(), sop_class_uid=str(seg.SOPClassUID), sop_instance_uid=str(seg.SOPInstanceUID))
    images = {ref.sop_instance_uid: ref for ref in series.slices}
    study = Dataset()
    study.ReferencedSeriesSequence = []
    for uid, refs in ((seg.SeriesInstanceUID, [mask]), (series.series_uid, list(images.values()))):
        item = Dataset()
        item.ReferencedSOPSequence = [reference_to(ref) for ref in refs]
        item.SeriesInstanceUID = uid
        study.ReferencedSeriesSequence.append(item)
    study.StudyInstanceUID = seg.StudyInstanceUID
    return study


def _own_scheme(name: str) -> Dataset:
    """The item of CodingSchemeIdentificationSequence (PS3.3 C.12.1) for `OWN_SCHEME`."""
    item = Dataset()
    item.CodingSchemeDesignator = OWN_SCHEME
    item.CodingSchemeName = f"Codes of {name}"
    return item


# Content


def _report(
    measured: MeasuredCalcium, series: Series, seg: Dataset, uid: str, name: str, version: str, reader: str
) -> Dataset:
    """The root content item: TID 1500; with a reader, who is an observer beside the device."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[name, version, "device"]),
        name=name,
        manufacturer_name=name,
        model_name=f"{name} {version}",
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    person = None
    if reader:
        person = hd.sr.ObserverContext(
            observer_type=codes.DCM.Person,
            observer_identifying_attributes=hd.sr.PersonObserverIdentifyingAttributes(name=reader),
        )
    parameters = [measured.parameters] if measured.parameters else None
    algorithm = hd.sr.AlgorithmIdentification(name=name, version=version, parameters=parameters)
    groups = [
        _of_segment(
            "Coronary calcium",
            CALCIUM_SEGMENT,
            seg,
            series,
            uid,
            finding_type=CALCIUM,
            finding_sites=[hd.sr.FindingSite(CORONARY_ARTERY)],
            algorithm_id=algorithm,
            measurements=list(_totals(measured)),
            qualitative_evaluations=list(_grades(measured)),
        )
    ]
    if measured.heart_ml is not None:
        volume = hd.sr.Measurement(
            name=VOLUME, value=_digits(measured.heart_ml, VOLUME_DIGITS), unit=CUBIC_CENTIMETRE
        )
        groups.append(
            _of_segment("Heart", HEART_SEGMENT, seg, series, uid, finding_type=HEART, measurements=[volume])
        )
    if measured.heart_centre is not None:
        for group in groups:
            _add_point(group, _point(measured.heart_centre, seg.FrameOfReferenceUID))
    report: Dataset = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_person_context=person, observer_device_context=observer
        ),
        procedure_reported=IMAGING,
        imaging_measurements=[
            *groups,
            *(_of_artery(artery, uid, seg.FrameOfReferenceUID) for artery in measured.arteries),
        ],
    )[0]
    *context, measurements = report.ContentSequence
    lesions = _lesions(measured.lesions, uid, seg.FrameOfReferenceUID)
    measurements = _with(measurements, ContentSequence=[*measurements.ContentSequence, *lesions])
    remarks = [_evaluations(measured.remarks)] if measured.remarks else []
    return _with(report, ContentSequence=[*context, measurements, *remarks])


def _evaluations(remarks: Sequence[str]) -> Dataset:
    """The container of qualitative evaluations, with texts in it."""
    import highdicom as hd

    contains = hd.sr.RelationshipTypeValues.CONTAINS
    container: Dataset = hd.sr.ContainerContentItem(name=EVALUATIONS, relationship_type=contains)
    container.ContentSequence = hd.sr.ContentSequence(
        hd.sr.TextContentItem(name=COMMENT, value=text, relationship_type=contains) for text in remarks
    )
    return container


def _digits(value: float, digits: int) -> float:
    return round(float(value), digits)


def _of_segment(identifier: str, number: int, seg: Dataset, series: Series, uid: str, **content: Any) -> Any:
    """A measurement group of a segment (TID 1411)."""
    import highdicom as hd

    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(identifier, uid),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(series.series_uid),
        ),
        **content,
    )


def _point(centre: Sequence[float], frame_of_reference: str) -> Any:
    """A point in the patient, LPS mm (x, y, z)."""
    import highdicom as hd
    import numpy as np

    return hd.sr.CoordinatesForMeasurement3D(
        graphic_type=hd.sr.GraphicTypeValues3D.POINT,
        graphic_data=np.array([centre], dtype=float),
        frame_of_reference_uid=frame_of_reference,
    )


def _add_point(group: Any, point: Any) -> None:
    """Say where the first number of a group of a segment was measured; highdicom itself gives points only to
    groups without a segment."""
    import highdicom as hd

    number = next(item for item in group[0].ContentSequence if item.ValueType == "NUM")
    number.ContentSequence = hd.sr.ContentSequence([*number.get("ContentSequence", []), point])


def _tracking(identifier: str, uid: str) -> Any:
    import highdicom as hd

    return hd.sr.TrackingIdentifier(uid=generate_uid(entropy_srcs=[uid, identifier]), identifier=identifier)


def _grades(measured: MeasuredCalcium) -> Iterator[Any]:
    import highdicom as hd

    yield hd.sr.QualitativeEvaluation(name=RISK_GROUP, value=RISK_GROUPS[measured.risk_group])
    if measured.cac_drs is not None:
        yield hd.sr.QualitativeEvaluation(name=CAC_DRS, value=CAC_DRS_CATEGORIES[measured.cac_drs])


def _totals(measured: MeasuredCalcium) -> Iterator[Any]:
    import highdicom as hd

    yield _score(measured.score, properties=_ranked(measured))
    if measured.threshold_hu is not None:
        yield hd.sr.Measurement(name=THRESHOLD, value=float(measured.threshold_hu), unit=HOUNSFIELD)
    yield _volume(measured.volume_mm3)
    if measured.mass_mg is not None:
        yield hd.sr.Measurement(
            name=CALCIUM_MASS, value=_digits(measured.mass_mg, MASS_DIGITS), unit=MILLIGRAM
        )
    if measured.territories is not None:
        yield hd.sr.Measurement(name=TERRITORIES, value=measured.territories, unit=NO_UNITS)


def _of_artery(artery: MeasuredArtery, uid: str, frame_of_reference: str) -> Any:
    """The measurement group of an artery (TID 1501)."""
    import highdicom as hd

    region = artery.label.region
    assert region is not None
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(f"Calcium, {artery.label.name}", uid),
        finding_type=CALCIUM,
        finding_sites=[hd.sr.FindingSite(Code(region.value, region.scheme, region.meaning))],
        measurements=[
            _score(artery.score, referenced_coordinates=[_point(artery.centre, frame_of_reference)]),
            _volume(artery.volume_mm3),
        ],
    )


def _ranked(measured: MeasuredCalcium) -> Any:
    """Properties of the score (TID 310, 311): the ends of its range of percentiles, and of whom; None where
    it has none.

    A reader that shows one number of the two shows with it that it is the least or the greatest.
    """
    import highdicom as hd

    if measured.percentile is None:
        return None
    ends = []
    for value, which in zip(measured.percentile, (MINIMUM, MAXIMUM), strict=True):
        if value is not None:
            end = hd.sr.NumContentItem(
                name=PERCENTILE,
                value=value,
                unit=PERCENT,
                relationship_type=hd.sr.RelationshipTypeValues.HAS_PROPERTIES,
            )
            modifier = hd.sr.CodeContentItem(
                name=DERIVATION,
                value=which,
                relationship_type=hd.sr.RelationshipTypeValues.HAS_CONCEPT_MOD,
            )
            end.ContentSequence = hd.sr.ContentSequence([modifier])
            ends.append(end)
    return hd.sr.MeasurementProperties(
        measurement_statistical_properties=hd.sr.MeasurementStatisticalProperties(
            values=ends, description=measured.population
        )
    )


def _score(value: float, **more: Any) -> Any:
    import highdicom as hd

    return hd.sr.Measurement(
        name=CALCIUM_SCORE, value=_digits(value, SCORE_DIGITS), unit=NO_UNITS, method=AGATSTON_METHOD, **more
    )


def _volume(value: float) -> Any:
    import highdicom as hd

    return hd.sr.Measurement(name=CALCIUM_VOLUME, value=_digits(value, VOLUME_DIGITS), unit=CUBIC_MILLIMETRE)


# Lesions: one group made by highdicom is filled in for each, as making each would take ten times as long


def _lesions(lesions: Sequence[MeasuredLesion], uid: str, frame_of_reference: str) -> list[Dataset]:
    """The measurement groups of the lesions."""
    group = _example()
    text, tracking, finding, site, score, volume = group.ContentSequence
    method, point = score.ContentSequence
    filled = []
    for number, lesion in enumerate(lesions, start=1):
        identifier = f"Lesion {number}"
        centre = _with(
            point, GraphicData=list(lesion.centre), ReferencedFrameOfReferenceUID=frame_of_reference
        )
        content = [
            _with(text, TextValue=identifier),
            _with(tracking, UID=generate_uid(entropy_srcs=[uid, identifier])),
            finding,
            site,
            _measuring(score, _digits(lesion.score, SCORE_DIGITS), ContentSequence=[method, centre]),
            _measuring(volume, _digits(lesion.volume_mm3, VOLUME_DIGITS)),
        ]
        filled.append(_with(group, ContentSequence=content))
    return filled


@cache
def _example() -> Dataset:
    """The measurement group of a lesion (TID 1501), written and read again: what stays is encoded once."""
    import highdicom as hd

    centre = _point((0, 0, 0), "1.2.3")
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking("Lesion", ""),
        finding_type=CALCIUM,
        finding_sites=[hd.sr.FindingSite(CORONARY_ARTERY)],
        measurements=[_score(0, referenced_coordinates=[centre]), _volume(0)],
    )[0]
    encoded = BytesIO()
    pydicom.dcmwrite(encoded, group, implicit_vr=False, little_endian=True)
    return pydicom.dcmread(encoded, force=True)


def _with(item: Dataset, **values: Any) -> Dataset:
    """A copy of a content item in which some attributes have other values."""
    copied = Dataset({tag: element for tag, element in item.items() if keyword_for_tag(tag) not in values})
    for keyword, value in values.items():
        setattr(copied, keyword, value)
    copied.set_original_encoding(False, True, default_encoding)
    return copied


def _measuring(item: Dataset, value: float, **values: Any) -> Dataset:
    """A copy of a NUM content item with another number."""
    numbers = {"NumericValue": decimal(value), "FloatingPointValue": float(value)}
    measured = _with(item.MeasuredValueSequence[0], **numbers)
    return _with(item, MeasuredValueSequence=[measured], **values)
