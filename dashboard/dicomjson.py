"""DICOM data sets as DICOM JSON (PS3.18 annex F), and without what names a person.

Slices of a series share most of their elements, so each element is converted once and kept as JSON text.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from typing import Any

import orjson
from pydicom.datadict import dictionary_has_tag, dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr_element
from pydicom.tag import BaseTag

from ..dicom.headers import MALFORMED

_HIDDEN_KEYWORDS = (
    # Patient
    "PatientBirthDate", "PatientBirthDateInAlternativeCalendar", "PatientBirthTime", "OtherPatientIDs",
    "OtherPatientIDsSequence", "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "PatientAddress",
    "PatientTelephoneNumbers", "PatientTelecomInformation", "PatientInsurancePlanCodeSequence",
    "MilitaryRank", "BranchOfService", "MedicalRecordLocator", "ReferencedPatientPhotoSequence",
    "CountryOfResidence", "RegionOfResidence", "PatientReligiousPreference", "Occupation", "EthnicGroup",
    "PatientComments", "AdditionalPatientHistory", "ResponsibleOrganization", "CurrentPatientLocation",
    "AdmissionID", "PatientInstitutionResidence", "PatientAlternativeCalendar",
    # Visit and order
    "AccessionNumber", "StudyID", "RequestAttributesSequence", "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest", "ReferencedRequestSequence", "ImageComments",
    # Persons and places
    "ReferringPhysicianAddress", "ReferringPhysicianTelephoneNumbers",
    "ReferringPhysicianIdentificationSequence",
    "PhysiciansOfRecordIdentificationSequence", "PerformingPhysicianIdentificationSequence",
    "PhysiciansReadingStudyIdentificationSequence", "OperatorIdentificationSequence",
    "RequestingPhysicianIdentificationSequence", "PersonIdentificationCodeSequence", "PersonAddress",
    "PersonTelephoneNumbers", "InstitutionName", "InstitutionAddress", "InstitutionCodeSequence",
    "InstitutionalDepartmentName", "StationName", "CustodialOrganizationSequence",
    # What stood there before
    "OriginalAttributesSequence", "EncryptedAttributesSequence", "ModifiedAttributesSequence",
)  # fmt: skip
"""Served empty, as is every person name (VR PN): what PS3.15 table E.1-1 removes that says who or where.
PatientID and study dates stay, by which results and images belong together."""

HIDDEN = frozenset(tag for keyword in _HIDDEN_KEYWORDS if (tag := tag_for_keyword(keyword)) is not None)

_BULK = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
INLINE_BYTES = 1024
"""Binary values up to this length stand in the JSON. Chosen."""

PIXEL_DATA = 0x7FE00010


def hide(ds: Dataset) -> None:
    """Empty or remove what names a person, at any depth: person names, `HIDDEN`, private elements."""
    for tag in list(ds.keys()):
        if _is_private(tag):
            del ds[tag]
            continue
        raw = ds.get_item(tag)
        if tag in HIDDEN or _vr(tag, raw) == "PN":
            ds[tag] = DataElement(tag, ds[tag].VR, None)
        elif _vr(tag, raw) == "SQ":
            for item in ds[tag].value or ():
                hide(item)


def to_json(ds: Dataset, *, show_phi: bool, bulk_uri: str = "", tags: Iterable[int] | None = None) -> bytes:
    """A data set as one DICOM JSON object.

    Args:
        ds: Read without its pixels.
        show_phi: False: what names a person is left empty or out, see `hide`.
        bulk_uri: Address below which longer binary values are, by tag; "": they are left out.
        tags: Only these elements, where they are there; by default all.

    Returns:
        UTF-8. Values that cannot be converted are left out of their element.
    """
    chosen = None if tags is None else set(tags)
    return _object(ds, show_phi, bulk_uri, chosen)


def _object(ds: Dataset, show_phi: bool, bulk_uri: str, chosen: set[int] | None = None) -> bytes:
    parts = []
    charset = ds.original_character_set
    encodings = (charset,) if isinstance(charset, str) else tuple(charset)
    for tag in sorted(ds.keys()):
        if tag.element == 0 or (chosen is not None and tag not in chosen):
            continue
        if not show_phi and _is_private(tag):
            continue
        raw = ds.get_item(tag)
        vr = _vr(tag, raw)
        key = b'"%08X":' % tag
        if not show_phi and (tag in HIDDEN or vr == "PN"):
            parts.append(key + b'{"vr":"%s"}' % vr.encode())
        elif vr == "SQ":
            items = [_object(item, show_phi, "") for item in ds[tag].value or ()]
            value = b',"Value":[%s]' % b",".join(items) if items else b""
            parts.append(key + b'{"vr":"SQ"%s}' % value)
        elif vr in _BULK and _length(raw) > INLINE_BYTES:
            if bulk_uri:
                parts.append(key + bulk_element(vr, f"{bulk_uri}/{tag:08X}"))
        elif " or " in vr:
            parts.append(key + _of_element(_settled(ds, tag)))
        elif isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
            convert = _of_raw if len(raw.value) <= INLINE_BYTES else _of_raw.__wrapped__
            parts.append(key + convert(raw._replace(VR=vr, value_tell=0), encodings))
        else:
            parts.append(key + _of_element(ds[tag]))
    return b"{" + b",".join(parts) + b"}"


def bulk_element(vr: str, uri: str) -> bytes:
    """JSON of an element whose value is elsewhere."""
    return orjson.dumps({"vr": vr, "BulkDataURI": uri})


def element(vr: str, *values: Any) -> dict[str, Any]:
    """JSON of an element of our own making, values as PS3.18 F.2 wants them."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


@lru_cache(maxsize=16384)
def _of_raw(raw: RawDataElement, encodings: tuple[str, ...]) -> bytes:
    try:
        return _of_element(convert_raw_data_element(raw, encoding=list(encodings)))
    except MALFORMED:
        return b'{"vr":"%s"}' % str(raw.VR).encode()


def _of_element(found: DataElement) -> bytes:
    try:
        return orjson.dumps(found.to_json_dict(None, INLINE_BYTES))
    except MALFORMED:
        return b'{"vr":"%s"}' % found.VR.encode()


def _is_private(tag: BaseTag) -> bool:
    return tag.is_private


def _vr(tag: BaseTag, raw: DataElement | RawDataElement) -> str:
    """VR, looked up where the encoding does not say; ``"US or SS"`` and the like where that depends."""
    return raw.VR if raw.VR is not None and raw.VR != "UN" else _known_vr(tag)


@lru_cache(maxsize=4096)
def _known_vr(tag: BaseTag) -> str:
    return dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"


def _settled(ds: Dataset, tag: BaseTag) -> DataElement:
    """An element whose VR depends on others (PS3.5 annex A), with the VR that it has here."""
    found = correct_ambiguous_vr_element(copy(ds[tag]), ds, True)
    return found if isinstance(found, DataElement) else ds[tag]


def _length(raw: DataElement | RawDataElement) -> int:
    if isinstance(raw, RawDataElement):
        return raw.length
    return len(raw.value) if isinstance(raw.value, bytes) else 0
