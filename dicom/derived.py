"""What our SEG and SR have in common: what they take over from the CT, and how they are encoded."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from ..errors import InputError
from .files import DERIVED, Upto, read_slice
from .series import SliceRef

PREDECESSOR = Code("121358", "DCM", "For Processing predecessor")
"""PS3.16 CID 7202 Source Image Purposes of Reference: what a corrected SEG was made from."""

_READER = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,'_-]{0,62}[A-Za-z0-9.]|[A-Za-z0-9]")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """That a person has looked at a result and signs what is written: a SEG or SR of its own.

    Attributes:
        reader: Who; see `check_reader`.
        number: Of the signature, from 1: each has UIDs of its own.
        time: When; date and time of the content.
        replaces: Files of the same kind (SEG or SR) that this one corrects, which stay as they are.
    """

    reader: str
    number: int
    time: datetime
    replaces: tuple[Path, ...] = ()

    def seed(self) -> list[str]:
        """What UIDs of this signature follow from beside the series."""
        return ["read", self.reader, str(self.number), self.time.isoformat()]

    @property
    def person_name(self) -> str:
        """The reader as PersonName (PS3.5 6.2.1): the last word is the family name."""
        *given, family = self.reader.split()
        return f"{family}^{' '.join(given)}"

    @property
    def content_time(self) -> tuple[str, str]:
        """Date (DA) and time (TM)."""
        return self.time.strftime("%Y%m%d"), self.time.strftime("%H%M%S")


def check_reader(name: str) -> str:
    """The name of a reader, fit for a PersonName of any character set and for a file's name.

    Raises:
        InputError: It is none: 1 to 64 letters of ASCII, digits, spaces and ``. , ' _ -``.
    """
    if _READER.fullmatch(name) is None or "  " in name:
        raise InputError(
            "a reader's name has 1 to 64 letters (A to Z), digits, spaces and . , ' _ - and begins and ends "
            "with a letter or digit"
        )
    return name


def instance_of(path: Path) -> Dataset:
    """SOP class and UIDs of a SEG or SR, for whoever refers to it.

    Raises:
        InputUnreadable: The file cannot be read.
    """
    tags = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"]
    return read_slice(SliceRef(path=path), upto=Upto.HEADER, tags=tags, limits=DERIVED)


_STUDY_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)
"""Type 2 attributes of patient and study."""

_PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    # Patient, PS3.3 C.7.1.1
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "OtherPatientIDs"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    # Study, C.7.2.1 and C.7.2.2
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    *("StudyDescription", "PatientAge", "PatientSize", "PatientWeight"),
)
_TRIAL_REQUIRED = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID")
_TRIAL_EMPTY = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
"""Clinical trial subject, C.7.1.3."""

INHERITED = (*_PATIENT_AND_STUDY, *_TRIAL_REQUIRED, *_TRIAL_EMPTY)
"""Attributes that `inherited` looks at."""


def inherited(header: Dataset) -> Dataset:
    """Patient, study and trial of a CT or of what was made from it, as they are, where they are there.

    Those of the trial are taken over where the required ones are there, else left out: a part of the module
    makes a file invalid.
    """
    copied = Dataset({header[k].tag: header[k] for k in _PATIENT_AND_STUDY if k in header})
    if all(header.get(keyword) for keyword in _TRIAL_REQUIRED):
        for keyword in (*_TRIAL_REQUIRED, *_TRIAL_EMPTY):
            setattr(copied, keyword, header.get(keyword, ""))
    return copied


def nameless() -> Dataset:
    """What highdicom wants to know of patient and study, empty: it refuses values that real files have."""
    empty = Dataset()
    for keyword in _STUDY_REQUIRED:
        setattr(empty, keyword, "")
    return empty


def decimal(value: float) -> DSfloat:
    """A number as DS holds it, in 16 characters at most."""
    return DSfloat(float(value), auto_format=True)


def reference_to(ref: SliceRef) -> Dataset:
    """The item of a sequence that refers to the image's file."""
    item = Dataset()
    item.ReferencedSOPClassUID = ref.sop_class_uid or CTImageStorage
    item.ReferencedSOPInstanceUID = ref.sop_instance_uid
    return item


_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
"""Values of DA and TM that are some (PS3.5 table 6.2-1)."""
_NO_DATE, _NO_TIME = "19000101", "000000"
"""ContentDate and ContentTime, which may not be empty, where the CT has none."""


def content_time_of(header: Dataset) -> tuple[str, str]:
    """Date and time of an image's content, or else of its acquisition, series or study."""
    for what in ("Content", "Acquisition", "Series", "Study"):
        date, time = (str(header.get(f"{what}{kind}") or "").strip() for kind in ("Date", "Time"))
        if _DATE.fullmatch(date):
            return date, time if _TIME.fullmatch(time) else _NO_TIME
    return _NO_DATE, _NO_TIME


def encoded_once(dataset: Dataset, date: str, time: str) -> bytes:
    """The file of a SEG or SR, with the dates, times and SOPInstanceUID that it gets here.

    One UID is one content, for good: an archive keeps the first file that it gets under a UID and refuses
    or drops the next. So the UID follows from every byte of the file. For the same result to be the same
    instance, wherever and whenever it is computed again (a run with --redo, another machine, MHub's runner),
    nothing in the file may depend on the clock: ContentDate and ContentTime, which the standard wants, are
    those of the CT, of which the content is a function and from which it cannot stray where the dates of a
    cohort were shifted; the other dates and times, which are optional, are left out. When a series was
    computed stands in the log of the run.

    Args:
        dataset: What is written, with file meta information.
        date, time: ContentDate (DA) and ContentTime (TM).
    """
    dataset.ContentDate, dataset.ContentTime = date, time
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            del dataset[keyword]
    for item in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    stand_in = generate_uid(entropy_srcs=["deepcac2", "SOPInstanceUID"])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = stand_in
    encoded = BytesIO()
    dataset.save_as(encoded)
    content = encoded.getvalue()
    uid = generate_uid(entropy_srcs=[hashlib.sha256(content).hexdigest()])
    return content.replace(stand_in.encode(), uid.encode())  # both have 64 characters
