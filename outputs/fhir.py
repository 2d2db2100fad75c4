"""A FHIR R4 bundle of what the DICOM SR of a case says, with ``--keep fhir``.

It is made from the SR that was written, content item by content item, as HL7's *DICOM SR to FHIR Resource
Mapping* does it [1]_: each measurement group is an Observation that has its measurements and qualitative
evaluations, Observations of their own, as members; the algorithm is a Device; all are part of the
ImagingStudy. That guide is one for R5, so what R4 has no resource for (ImagingSelection, and BodyStructure
as a focus) is said otherwise: the finding site is ``bodySite``, what is tracked is an identifier, and the SEG
and the CT that it was made on are series of the ImagingStudy. Lesions stay in the SR alone.

Codes are those of the SR; nothing is coded here that is not coded there.

.. [1] https://hl7.org/fhir/uv/dicom-sr/ (1.0.0, trial use)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_OID, uuid5

from ..dicom import SliceRef
from ..dicom.files import DERIVED, Upto, read_slice
from ..dicom.headers import text
from ..pipeline.case import Case
from ..pipeline.facts import SCORE
from ..pipeline.step import Context
from ..pipeline.writer import Writer, register_writer
from ..system.atomic import write_json
from .structured_report import SR

_SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": "http://dicom.nema.org/resources/ontology/DCM",
    "UCUM": "http://unitsofmeasure.org",
}
"""Of coding schemes in FHIR (https://terminology.hl7.org, external code systems)."""
_UID_SYSTEM, _URI_SYSTEM = "urn:dicom:uid", "urn:ietf:rfc:3986"
_IDENTIFIER_TYPES = "http://hl7.org/fhir/uv/dicom-sr/CodeSystem/dicom-identifier-type"

# Content items of TID 1500 and what it includes (PS3.16), by code and scheme.
_MEASUREMENTS, _GROUP = ("126010", "DCM"), ("125007", "DCM")
_TRACKING, _TRACKING_UID = ("112039", "DCM"), ("112040", "DCM")
_FINDING, _SITE = ("121071", "DCM"), ("363698007", "SCT")
_METHOD = ("370129005", "SCT")
_ALGORITHM, _VERSION, _PARAMETERS = ("111001", "DCM"), ("111003", "DCM"), ("111002", "DCM")
_PERCENTILE, _DERIVATION = ("121415", "DCM"), ("121401", "DCM")
_MAXIMUM = ("56851009", "SCT")
_POPULATION = ("121405", "DCM")
_EVALUATIONS = ("C0034375", "UMLS")
_LESION = "Lesion "
"""Tracking identifiers of lesions begin with it (`dicom.structured_report`)."""


def fhir_bundle(sr: Any) -> dict[str, Any]:
    """The bundle of an SR, JSON types: a transaction that a server may be given again without doubling it.

    Args:
        sr: Data set of an SR as `dicom.write_structured_report` writes it.
    """
    return _Bundle(sr).made()


class _Bundle:
    """What is said again and again: whose it is, of which study, by what, and when."""

    def __init__(self, sr: Any) -> None:
        self._sr = sr
        self._uid = text(sr, "SOPInstanceUID")
        self._entries: list[dict[str, Any]] = []
        patient, name = text(sr, "PatientID"), {"type": "Patient"}
        issuer = text(sr, "IssuerOfPatientID")
        assigner = {"assigner": {"display": issuer}} if issuer else {}
        self._subject: dict[str, Any] = (
            {**name, "identifier": {"value": patient, **assigner}}
            if patient
            else {**name, "display": "not named in the images"}
        )
        self._when = _date(text(sr, "StudyDate"))

    def _url(self, name: str) -> str:
        """The name of a resource within the bundle; the same for the same SR."""
        return f"urn:uuid:{uuid5(NAMESPACE_OID, f'{self._uid} {name}')}"

    def _add(self, name: str, resource: dict[str, Any], identifier: str) -> dict[str, str]:
        kind = str(resource["resourceType"])
        request = {"method": "POST", "url": kind, "ifNoneExist": f"identifier={identifier}"}
        self._entries.append({"fullUrl": self._url(name), "resource": resource, "request": request})
        return {"reference": self._url(name)}

    def made(self) -> dict[str, Any]:
        """All of it, the report first."""
        content = _below(self._sr, _MEASUREMENTS)
        groups = [g for g in _all(content, _GROUP) if not _said(g, _TRACKING).startswith(_LESION)]
        self._study = self._add("study", self._imaging_study(), self._oid(text(self._sr, "StudyInstanceUID")))
        device = self._device(groups[0] if groups else None)
        self._device_reference = self._add("device", device, _token(_URI_SYSTEM, self._url("device")))
        results = [self._group(group) for group in groups]
        self._add("report", self._report(results, groups), self._oid(self._uid))
        report = self._entries.pop()
        return {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [report, *self._entries],
        }

    @staticmethod
    def _oid(uid: str) -> str:
        return _token(_UID_SYSTEM, f"urn:oid:{uid}")

    def _imaging_study(self) -> dict[str, Any]:
        (study,) = self._sr.CurrentRequestedProcedureEvidenceSequence
        series = []
        for item in study.ReferencedSeriesSequence:
            named = [
                (text(r, "ReferencedSOPInstanceUID"), text(r, "ReferencedSOPClassUID"))
                for r in item.ReferencedSOPSequence
            ]
            modality = "SEG" if {kind for _, kind in named} == {_SEGMENTATION} else "CT"
            listed = named if modality == "SEG" else []  # of a CT only the number
            series.append(_series(text(item, "SeriesInstanceUID"), modality, listed, len(named)))
        own = [(text(self._sr, "SOPInstanceUID"), text(self._sr, "SOPClassUID"))]
        series.append(_series(text(self._sr, "SeriesInstanceUID"), "SR", own, 1))
        return {
            "resourceType": "ImagingStudy",
            "identifier": [_uid_identifier(text(self._sr, "StudyInstanceUID"))],
            "status": "available",
            "subject": self._subject,
            **({"started": self._when} if self._when else {}),
            "numberOfSeries": len(series),
            "series": series,
        }

    def _device(self, group: Any) -> dict[str, Any]:
        """Of the algorithm identification of the first group (TID 4019), else of the equipment."""
        name = (group is not None and _said(group, _ALGORITHM)) or text(self._sr, "ManufacturerModelName")
        version = (group is not None and _said(group, _VERSION)) or text(self._sr, "SoftwareVersions")
        parameters = _said(group, _PARAMETERS) if group is not None else ""
        kind = {"coding": [{"system": _SYSTEMS["DCM"], "code": "111002", "display": "Algorithm Parameters"}]}
        return {
            "resourceType": "Device",
            "identifier": [{"system": _URI_SYSTEM, "value": self._url("device")}],
            "status": "active",
            "manufacturer": text(self._sr, "Manufacturer"),
            "deviceName": [{"name": name, "type": "model-name"}],
            "version": [{"value": version}],
            **({"property": [{"type": kind, "valueCode": [{"text": parameters}]}]} if parameters else {}),
        }

    def _observation(self, name: str, code: dict[str, Any], **more: Any) -> dict[str, Any]:
        identifiers = [{"system": _URI_SYSTEM, "value": self._url(name)}, *more.pop("identifier", [])]
        return {
            "resourceType": "Observation",
            "identifier": identifiers,
            "partOf": [self._study],
            "status": self._status,
            "category": [_IMAGING],
            "code": code,
            "subject": self._subject,
            **({"effectiveDateTime": self._when} if self._when else {}),
            "device": self._device_reference,
            "derivedFrom": [self._study],
            **more,
        }

    @property
    def _status(self) -> str:
        """Nobody has verified what a program found, unless the SR says so."""
        verified = text(self._sr, "VerificationFlag") == "VERIFIED"
        return "final" if verified and text(self._sr, "PreliminaryFlag") != "PRELIMINARY" else "preliminary"

    def _group(self, group: Any) -> dict[str, str]:
        name = _said(group, _TRACKING)
        site = _code_below(group, _SITE)
        members = [
            self._member(f"{name}: {number}", item, site)
            for number, item in enumerate(group.ContentSequence)
            if _measured(item)
        ]
        uid = _uid_identifier(_said(group, _TRACKING_UID))
        identifiers = [
            {"type": {"coding": [{"system": _IDENTIFIER_TYPES, "code": code, "display": display}]}, **said}
            for code, display, said in (
                ("tracking-id", "Tracking ID", {"value": name}),
                ("tracking-uid", "Tracking UID", uid),
            )
        ]
        finding = _code_below(group, _FINDING)
        return self._add(
            name,
            self._observation(
                name,
                _concept(group.ConceptNameCodeSequence[0]),
                identifier=identifiers,
                **({"valueCodeableConcept": finding} if finding else {}),
                **({"bodySite": site} if site else {}),
                hasMember=members,
            ),
            _token(_URI_SYSTEM, self._url(name)),
        )

    def _member(self, name: str, item: Any, site: dict[str, Any] | None) -> dict[str, str]:
        """A measurement (TID 300, 1419) or a qualitative evaluation."""
        more: dict[str, Any] = {"bodySite": site} if site else {}
        if item.ValueType == "NUM":
            more["valueQuantity"] = _quantity(item)
            if method := _code_below(item, _METHOD):
                more["method"] = method
            if ranked := _ranked(item):
                more["component"] = [ranked]
        else:
            more["valueCodeableConcept"] = _concept(item.ConceptCodeSequence[0])
        observation = self._observation(name, _concept(item.ConceptNameCodeSequence[0]), **more)
        return self._add(name, observation, _token(_URI_SYSTEM, self._url(name)))

    def _report(self, results: list[dict[str, str]], groups: list[Any]) -> dict[str, Any]:
        radiology = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}
        said = [item.TextValue for item in _all_below(self._sr, _EVALUATIONS) if item.ValueType == "TEXT"]
        found = [
            f"{item.ConceptNameCodeSequence[0].CodeMeaning}: {_in_words(item)}"
            for group in groups[:1]
            for item in group.ContentSequence
            if _measured(item)
        ]
        return {
            "resourceType": "DiagnosticReport",
            "identifier": [_uid_identifier(self._uid)],
            "status": self._status,
            "category": [{"coding": [radiology]}],
            "code": _concept(self._sr.ConceptNameCodeSequence[0]),
            "subject": self._subject,
            **({"effectiveDateTime": self._when} if self._when else {}),
            "result": results,
            "imagingStudy": [self._study],
            "conclusion": "\n".join([*found, *said]),
        }


_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
"""SOP class (PS3.4 annex B.5)."""
_IMAGING = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/observation-category",
            "code": "imaging",
            "display": "Imaging",
        }
    ]
}


def _series(uid: str, modality: str, instances: Sequence[tuple[str, str]], count: int) -> dict[str, Any]:
    """A series of the ImagingStudy; instances: SOPInstanceUID and SOPClassUID of those to be listed."""
    listed = [
        {"uid": instance, "sopClass": {"system": _URI_SYSTEM, "code": f"urn:oid:{kind}"}}
        for instance, kind in instances
    ]
    return {
        "uid": uid,
        "modality": {"system": _SYSTEMS["DCM"], "code": modality},
        "numberOfInstances": count,
        **({"instance": listed} if listed else {}),
    }


def _token(system: str, value: str) -> str:
    """A token of a search, for an address."""
    return quote(f"{system}|{value}", safe=":")


def _uid_identifier(uid: str) -> dict[str, Any]:
    return {"system": _UID_SYSTEM, "value": f"urn:oid:{uid}"}


def _date(value: str) -> str:
    """``YYYYMMDD`` as FHIR writes it; "" for what is no date."""
    try:
        return datetime.strptime(value, "%Y%m%d").date().isoformat()
    except ValueError:
        return ""


def _name(item: Any) -> tuple[str, str]:
    """Code and scheme of a content item's name; some have none."""
    for code in item.get("ConceptNameCodeSequence") or ():
        return str(code.CodeValue), str(code.CodingSchemeDesignator)
    return "", ""


def _all(item: Any, name: tuple[str, str]) -> Iterator[Any]:
    return (child for child in item.get("ContentSequence") or () if _name(child) == name)


def _measured(item: Any) -> bool:
    """Whether a child of a group is a measurement or a qualitative evaluation."""
    return item.ValueType == "NUM" or (item.ValueType == "CODE" and _name(item) not in (_FINDING, _SITE))


def _below(item: Any, name: tuple[str, str]) -> Any:
    return next(_all(item, name))


def _all_below(item: Any, name: tuple[str, str]) -> list[Any]:
    return [child for container in _all(item, name) for child in container.get("ContentSequence") or ()]


def _said(item: Any, name: tuple[str, str]) -> str:
    """The text or UID of a child, "" where there is none."""
    for child in _all(item, name):
        return str(child.get("TextValue") or child.get("UID") or "")
    return ""


def _concept(code: Any) -> dict[str, Any]:
    scheme, meaning = str(code.CodingSchemeDesignator), str(code.CodeMeaning)
    if scheme not in _SYSTEMS:  # our own: a system would need an address that somebody answers for
        return {"text": meaning, "coding": [{"code": str(code.CodeValue), "display": meaning}]}
    return {"coding": [{"system": _SYSTEMS[scheme], "code": str(code.CodeValue), "display": meaning}]}


def _code_below(item: Any, name: tuple[str, str]) -> dict[str, Any] | None:
    for child in _all(item, name):
        return _concept(child.ConceptCodeSequence[0])
    return None


def _quantity(item: Any) -> dict[str, Any]:
    (measured,) = item.MeasuredValueSequence
    unit = measured.MeasurementUnitsCodeSequence[0]
    return {
        "value": float(measured.NumericValue),
        "unit": str(unit.CodeMeaning),
        "system": _SYSTEMS["UCUM"],
        "code": str(unit.CodeValue),
    }


def _ranked(item: Any) -> dict[str, Any] | None:
    """The percentiles between which a score lies (TID 310), and of whom, as a component."""
    ends = {}
    for child in _all(item, _PERCENTILE):
        derived = _code_below(child, _DERIVATION)
        high = derived is not None and derived["coding"][0]["code"] == _MAXIMUM[0]
        ends["high" if high else "low"] = child
    if not ends:
        return None
    code = _concept(next(iter(ends.values())).ConceptNameCodeSequence[0])
    population = _said(item, _POPULATION)
    return {
        "code": {**code, **({"text": f"{code['coding'][0]['display']}, {population}"} if population else {})},
        "valueRange": {which: _quantity(end) for which, end in ends.items()},
    }


def _in_words(item: Any) -> str:
    if item.ValueType == "CODE":
        return str(item.ConceptCodeSequence[0].CodeMeaning)
    quantity = _quantity(item)
    return f"{quantity['value']:g}" + ("" if quantity["code"] == "1" else f" {quantity['code']}")


def _write(path: Path, case: Case, options: Any, context: Context) -> None:
    sr = read_slice(SliceRef(path=case.outputs[SR.name]), upto=Upto.END, limits=DERIVED)
    write_json(path, fhir_bundle(sr))


FHIR = register_writer(
    Writer(
        name="fhir",
        file="cac.fhir.json",
        write=_write,
        needs=(SCORE,),
        beside=(SR.name,),
        module="ReportExporter",
        keep="fhir",
    )
)
