"""Workitems of a UPS-RS service: what one asks for, and what its performer says of it.

After PS3.18 section 11 and PS3.4 annex CC.

A workitem is SCHEDULED, then IN PROGRESS in the hands of whoever claimed it, and in the end COMPLETED or
CANCELED. Who claims it makes up a Transaction UID; whoever has that may change the workitem, nobody else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.sr.coding import Code

from ..errors import DestinationRefused, InputError
from ..system.foreign import parse_json
from ..system.nearest import nearest
from .pulling import WebSource, agrees, asked_for, check_value, is_uid
from .sending import first_in, media_type, values_in

SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"

INCOMPLETE = Code("110523", "DCM", "Object Set incomplete")
NOT_SUPPORTED = Code("110522", "DCM", "Object Types not supported")
NOT_SPECIFIED = Code("110513", "DCM", "Discontinued for unspecified reason")
FAILURE = Code("110501", "DCM", "Equipment failure")
NO_ROOM = Code("110527", "DCM", "Resource inadequate")
GIVEN_UP = Code("110526", "DCM", "Resource pre-empted")
"""Why a procedure step was discontinued: PS3.16 CID 9300, 110522 and 110523 of its CID 9302."""
IMAGE_PROCESSING = Code("110001", "DCM", "Image Processing")
"""PS3.16 CID 9231; what was performed where the workitem does not say what it wanted."""

_LARGEST = 16 << 20
"""Bytes of a workitem that are read; one that names 5,000 images has a megabyte."""
_CODED = (
    *("ScheduledWorkitemCodeSequence", "ScheduledStationNameCodeSequence"),
    *("ScheduledStationClassCodeSequence", "ScheduledStationGeographicLocationCodeSequence"),
)
_KEYS = (
    *("WorklistLabel", "ProcedureStepLabel", "PatientID", "StudyInstanceUID"),
    "ReferencedRequestSequence.AccessionNumber",
    *(f"{sequence}.{part}" for sequence in _CODED for part in ("CodeValue", "CodingSchemeDesignator")),
)
"""What workitems may be chosen by, of the keys that every service has to match (PS3.4 table CC.2.5-3)."""
_PRIORITIES = {"HIGH": 0, "MEDIUM": 1, "LOW": 2}


def _tag(keyword: str) -> str:
    """Tag of a keyword as the DICOM JSON model writes it."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return f"{tag:08X}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which workitems are ours.

    Attributes:
        keys: Value by keyword; of what stands in a sequence ``Sequence.Keyword``.
    """

    keys: Mapping[str, str]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Choice:
        """From ``KEYWORD=VALUE``, such as ``ScheduledWorkitemCodeSequence.CodeValue=CAC``.

        Raises:
            InputError: One is none, or together they choose every workitem.
        """
        keys: dict[str, str] = {}
        for given in texts:
            name, value = asked_for(given, "WorklistLabel=CAC")
            if name not in _KEYS:
                raise InputError(f"--query {name}: workitems are not chosen by this.{nearest(name, _KEYS)}")
            if keys.setdefault(name, value) != value:
                raise InputError(f"--query {name} is given twice")
            check_value(name.rpartition(".")[2], value)
        if all(set(value) <= set("*?") for value in keys.values()):
            raise InputError(
                "--query: this would claim every workitem there is, also those for others; say which are "
                "ours, such as --query ScheduledStationNameCodeSequence.CodeValue=DEEPCAC2"
            )
        return cls(keys=keys)

    def meets(self, item: Any, *, part: bool = False) -> bool:
        """Whether a workitem is ours.

        Args:
            item: In the DICOM JSON model.
            part: It may lack what it says elsewhere: what is absent is no reason against it.
        """
        wanted: dict[str, dict[str, str]] = {}
        for name, value in self.keys.items():
            sequence, _, keyword = name.rpartition(".")
            wanted.setdefault(sequence, {})[keyword] = value
        for sequence, keys in wanted.items():
            holders = values_in(item, _tag(sequence)) if sequence else [item]
            if part and not holders:
                continue
            if not any(all(_has(h, k, v, part) for k, v in keys.items()) for h in holders):
                return False
        return True


def _has(item: Any, keyword: str, asked: str, part: bool) -> bool:
    there = [str(v) for v in values_in(item, _tag(keyword))]
    return any(agrees(dictionary_VR(keyword), asked, v) for v in there) or (part and not there)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Images that a workitem is about.

    Attributes:
        study: StudyInstanceUID.
        series: SeriesInstanceUID; "": every CT series of the study.
        instances: SOPInstanceUIDs; empty: all of them.
    """

    study: str
    series: str = ""
    instances: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Workitem:
    """A workitem, as its service says it.

    Attributes:
        uid: SOPInstanceUID.
        state: Procedure Step State.
        ready: Whether its input is all there, as far as it says.
        patient_id: PatientID; "": it does not say.
        code: What is to be done.
        inputs: What it is about; None: what it names there is nothing that can be read.
        item: All of it, in the DICOM JSON model.
    """

    uid: str
    state: str
    ready: bool
    patient_id: str
    code: Code
    inputs: tuple[Wanted, ...] | None
    item: Any

    @classmethod
    def of(cls, item: Any) -> Workitem:
        """From the DICOM JSON model; what is malformed counts as not said."""
        return cls(
            uid=_text(item, "SOPInstanceUID"),
            state=_text(item, "ProcedureStepState"),
            ready=_text(item, "InputReadinessState") == "READY",
            patient_id=_text(item, "PatientID"),
            code=_code(next(iter(values_in(item, _tag("ScheduledWorkitemCodeSequence"))), None)),
            inputs=_inputs(item),
            item=item,
        )

    @property
    def urgency(self) -> tuple[int, str]:
        """What is done first has less: priority, then the time that it is scheduled for."""
        priority = _text(self.item, "ScheduledProcedureStepPriority")
        return _PRIORITIES.get(priority, 1), _text(self.item, "ScheduledProcedureStepStartDateTime")


def _text(item: Any, keyword: str) -> str:
    value = first_in(item, _tag(keyword))
    return value.strip() if isinstance(value, str) else ""


def _code(item: Any) -> Code:
    """A code that fits its attributes (PS3.5 table 6.2-1: SH 16, LO 64), else the general one."""
    most = {"CodeValue": 16, "CodingSchemeDesignator": 16, "CodeMeaning": 64}
    parts = {keyword: _text(item, keyword) for keyword in most}
    fit = all(0 < len(part) <= most[keyword] and part.isprintable() for keyword, part in parts.items())
    return Code(*parts.values()) if fit else IMAGE_PROCESSING


def _inputs(item: Any) -> tuple[Wanted, ...] | None:
    found = []
    for one in values_in(item, _tag("InputInformationSequence")):
        if _text(one, "TypeOfInstances") not in ("", "DICOM"):
            continue
        named = values_in(one, _tag("ReferencedSOPSequence"))
        wanted = Wanted(
            study=_text(one, "StudyInstanceUID"),
            series=_text(one, "SeriesInstanceUID"),
            instances=frozenset(_text(n, "ReferencedSOPInstanceUID") for n in named),
        )
        uids = (wanted.study, *wanted.instances, *([wanted.series] if wanted.series else ()))
        if not all(map(is_uid, uids)) or (wanted.instances and not wanted.series):
            return None
        found.append(wanted)
    return tuple(found)


class Worklist(WebSource):
    """A UPS-RS service; see `WebService` for what it takes.

    Args:
        variables: What the environment's variables with its credentials begin with.
    """

    purpose, service, resource, option = "work on its list", "UPS-RS", "workitems", "--worklist"
    page = 100
    """As many as all services give at once."""

    def __init__(self, url: str, *, variables: str, **options: Any) -> None:
        self.variables = variables
        super().__init__(url, **options)

    def scheduled(self, choice: Choice) -> Iterator[dict[str, Any]]:
        """Workitems that nobody has claimed and that may be ours, each in the DICOM JSON model.

        Raises:
            DestinationUnreachable, DestinationRefused: See `WebService`.
        """
        yield from self._found("workitems", {"ProcedureStepState": SCHEDULED, **choice.keys}, "00080018")

    def _matching(self, item: Mapping[str, Any], keys: Mapping[str, str]) -> None:
        """A workitem that is not ours is left alone; see `Choice.meets`."""

    def workitem(self, uid: str) -> Workitem | None:
        """All of a workitem; None: there is none (any more)."""
        with self._asked("GET", f"workitems/{uid}") as response:
            content = response.read(_LARGEST, decode_content=False)
            status, kind = response.status, media_type(response)
            if len(content) == _LARGEST:
                response.close()
        if status in (404, 410):
            return None
        self._judge(status, kind)
        if status != 200:
            raise DestinationRefused(f"{self.name} does not give a workitem that it has (HTTP {status})")
        item = parse_json(content, f"the answer of {self.name}", error=DestinationRefused)
        found = Workitem.of(item[0] if isinstance(item, list) and item else item)
        if found.uid not in ("", uid) or not found.state:
            raise DestinationRefused(f"{self.name} answers with another workitem than was asked for")
        return found

    def claim(self, uid: str, transaction: str, *, unsure: bool = False) -> bool:
        """Claim a workitem; False: others have it, or it is gone.

        Args:
            transaction: Transaction UID, a new one.
            unsure: It may be claimed with this one already.
        """
        status = self._tell("PUT", f"workitems/{uid}/state", _state(IN_PROGRESS, transaction))
        if status == 200:
            return True
        found = self.workitem(uid)
        if found is not None and found.state == SCHEDULED:
            raise DestinationRefused(
                f"{self.name} does not let us claim workitem {uid}, which nobody has (HTTP {status}): check "
                "the rights there"
            )
        return (
            unsure
            and found is not None
            and found.state == IN_PROGRESS
            and self.update(uid, transaction, progress(0, "claimed")) == 200
        )

    def update(self, uid: str, transaction: str, changes: Dataset) -> int:
        """Change a workitem that is ours; the status of the answer, 200 where it was changed.

        The Transaction UID is where PS3.18 11.6 has it, under the name that some services look for, and
        where PS3.4 CC.2.6.2 has it.
        """
        changes.TransactionUID = transaction
        where = quote(transaction)
        return self._tell("POST", f"workitems/{uid}?{where}&transaction-uid={where}", changes)

    def end(self, uid: str, transaction: str, state: str) -> int:
        """Bring a workitem that is ours to a final state; the status of the answer, 200 where it is there."""
        status = self._tell("PUT", f"workitems/{uid}/state", _state(state, transaction))
        found = None if status == 200 else self.workitem(uid)
        return 200 if found is not None and found.state == state else status

    def _tell(self, method: str, path: str, content: Dataset) -> int:
        body = json.dumps(content.to_json_dict()).encode()
        headers = {"Content-Type": "application/dicom+json", "Content-Length": str(len(body))}
        with self._asked(method, path, headers, body) as response:
            response.read(_LARGEST, decode_content=False)
            status = int(response.status)
        if status not in (200, 400, 404, 409, 410):
            self._judge(status, "application/json")
            if not 200 <= status < 300:
                raise DestinationRefused(
                    f"{self.name} does not take what we say of a workitem (HTTP {status})"
                )
        return 200 if 200 <= status < 300 else status


# --- what is said of one ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Output:
    """An instance that was made and stored.

    Attributes:
        study, series, sop_class, uid: Its UIDs.
    """

    study: str
    series: str
    sop_class: str
    uid: str


def _state(state: str, transaction: str) -> Dataset:
    ds = Dataset()
    ds.ProcedureStepState, ds.TransactionUID = state, transaction
    return ds


def progress(percent: int, text: str) -> Dataset:
    """How far it is."""
    ds, step = Dataset(), Dataset()
    step.ProcedureStepProgress, step.ProcedureStepProgressDescription = str(percent), text[:1024]
    ds.ProcedureStepProgressInformationSequence = [step]
    return ds


def ending(
    item: Workitem,
    *,
    station: str,
    began: float,
    outputs: Sequence[Output],
    root: str,
    comments: str,
    why: Code | None,
) -> Dataset:
    """What must be known of a workitem before it ends (PS3.4 table CC.2.5-3, final state).

    Args:
        station: Our name.
        began: Seconds since 1970.
        outputs: What was stored.
        root: DICOMweb root where it is.
        comments: What is to be said of the input that has no result.
        why: Why it is canceled; None: it is completed.
    """
    now = _time(datetime.now(timezone.utc))
    ds = progress(100, "done" if why is None else "canceled")
    ds.SpecificCharacterSet = "ISO_IR 192"
    done = Dataset()
    done.PerformedStationNameCodeSequence = [_coded(Code(station, "99DEEPCAC2", f"deepcac2 at {station}"))]
    done.PerformedProcedureStepStartDateTime = _time(datetime.fromtimestamp(began, timezone.utc))
    done.PerformedProcedureStepEndDateTime = now
    done.PerformedWorkitemCodeSequence = [_coded(item.code)]
    done.PerformedProcedureStepDescription = "coronary calcium score by deepcac2"
    if comments:
        done.CommentsOnThePerformedProcedureStep = comments[:1024]
    done.OutputInformationSequence = list(_listed(outputs, root))
    ds.UnifiedProcedureStepPerformedProcedureSequence = [done]
    if why is not None:
        step = ds.ProcedureStepProgressInformationSequence[0]
        step.ProcedureStepCancellationDateTime = now
        step.ReasonForCancellation = comments[:1024]
        step.ProcedureStepDiscontinuationReasonCodeSequence = [_coded(why)]
    return ds


def _listed(outputs: Sequence[Output], root: str) -> Iterator[Dataset]:
    """An item for each series (PS3.3 table 10-3b)."""
    for study, series in dict.fromkeys((o.study, o.series) for o in outputs):
        item, where = Dataset(), Dataset()
        item.TypeOfInstances, item.StudyInstanceUID, item.SeriesInstanceUID = "DICOM", study, series
        item.ReferencedSOPSequence = []
        for output in outputs:
            if output.series == series:
                one = Dataset()
                one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = output.sop_class, output.uid
                item.ReferencedSOPSequence.append(one)
        where.RetrieveURL = f"{root}/studies/{study}/series/{series}"
        item.WADORSRetrievalSequence = [where]
        yield item


def _time(moment: datetime) -> str:
    return moment.strftime("%Y%m%d%H%M%S%z")


def _coded(code: Code) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return ds
