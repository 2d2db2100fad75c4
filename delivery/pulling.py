"""CT series out of a DICOMweb service into a folder: asked for by QIDO-RS (PS3.18 10.6), fetched by WADO-RS
(10.4).

::

    OUT/ct/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm    whole series, for `run`
    OUT/coming/<StudyInstanceUID>/<SeriesInstanceUID>/                    what is not whole yet

A series appears below ``ct`` when every image that the service names is there, so that no run scores a part
of one. What the service says is not believed: UIDs become names only when they are digits and dots, studies
that do not match what was asked for end the call, and each file must be the image that it was fetched as.
"""

from __future__ import annotations

import fcntl
import fnmatch
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode

from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag, tag_for_keyword
from pydicom.tag import Tag

from ..batch.ledger import take_lock
from ..dicom.files import read_slice
from ..dicom.headers import CT_IMAGE, ENHANCED_CT, quiet_pydicom, text
from ..dicom.series import SliceRef
from ..errors import (
    DestinationRefused,
    DiskFull,
    InputError,
    InputUnreadable,
    OutputBusy,
)
from ..system.atomic import on_disk, output_errors
from ..system.foreign import parse_json
from ..system.nearest import nearest
from .multipart import NotMultipart, only_part
from .sending import WebService, first_in, media_type, tried, values_in

log = logging.getLogger(__name__)

WHOLE, COMING = "ct", "coming"
"""Folders in that of a pull."""

_LARGEST_PAGE = 64 << 20
"""Bytes of an answer to a query that are read at most; some services ignore the limit."""
_BLOCK = 1 << 20
_UID = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*))+")
_DAY = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_DATES = re.compile(rf"{_DAY}|{_DAY}-|-{_DAY}|{_DAY}-{_DAY}")
_TIMES = re.compile(r"\d{2,6}(\.\d{1,6})?|\d{2,6}-|-\d{2,6}|\d{2,6}-\d{2,6}")
_OF_SERIES = (
    *("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "BodyPartExamined"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Manufacturer"),
)
"""Attributes by which series are asked for; all others are of studies (PS3.4 tables C.6-2 and C.6-3)."""
_STUDY_KEYS = (
    *("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName"),
    *("PatientName", "PatientID", "StudyInstanceUID", "StudyID", "StudyDescription", "PatientBirthDate"),
    *("PatientSex", "InstitutionName"),
)
_CT_CLASSES = (CT_IMAGE, *ENHANCED_CT)


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is asked for.

    Attributes:
        study, series: Value by keyword, of studies and of their series.
    """

    study: Mapping[str, str]
    series: Mapping[str, str]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Query:
        """From ``KEYWORD=VALUE``, such as ``StudyDate=20260101-20260131``; the modality of series is CT.

        Raises:
            InputError: One is none, or together they ask for everything.
        """
        study: dict[str, str] = {}
        series = {"Modality": "CT"}
        for given in texts:
            name, value = asked_for(given, "StudyDate=20260101-20260131")
            keyword = _keyword(name)
            check_value(keyword, value)
            into = series if keyword in _OF_SERIES else study
            if into.get(keyword, value) != value and keyword != "Modality":
                raise InputError(f"--query {keyword} is given twice")
            into[keyword] = value
        if series["Modality"] != "CT":
            raise InputError(
                "--query Modality: only CT is pulled; for studies with others, ModalitiesInStudy=…"
            )
        if all(set(value) <= set("*?") for value in study.values()):
            raise InputError(
                "--query: this asks for every study there is; name some, such as --query "
                "StudyDate=20260101-20260131"
            )
        return cls(study=study, series=series)


def asked_for(given: str, example: str) -> tuple[str, str]:
    """Name and value of a ``KEYWORD=VALUE``.

    Raises:
        InputError: It is none; it says to give one such as the example.
    """
    name, equals, value = (part.strip() for part in given.partition("="))
    if not equals or not value:
        raise InputError(f"--query {given!r}: give KEYWORD=VALUE, such as {example}")
    return name, value


def _keyword(name: str) -> str:
    """The keyword of an attribute that can be asked for, from a keyword or eight digits."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}", name):
        name = keyword_for_tag(int(name, 16)) or name
    known = (*_STUDY_KEYS, *_OF_SERIES)
    if name not in known:
        exists = (
            f"{name} is none of studies or series" if name in keyword_dict else "there is no such keyword"
        )
        raise InputError(f"--query {name}: {exists}.{nearest(name, known)}")
    return name


def check_value(keyword: str, value: str) -> None:
    """See that a value is one that can match anything: else it would find nothing, and nobody would know."""
    vr = dictionary_VR(keyword)
    if vr == "DA" and not _DATES.fullmatch(value):
        raise InputError(
            f"--query {keyword}: {value!r} is no date; give YYYYMMDD, or YYYYMMDD-YYYYMMDD from the first to "
            "the last day"
        )
    if vr == "DA" and "-" in value[1:-1] and value[:8] > value[9:]:
        raise InputError(f"--query {keyword}: {value!r} ends before it begins")
    if vr == "TM" and not _TIMES.fullmatch(value):
        raise InputError(f"--query {keyword}: {value!r} is no time; give HHMMSS or HHMMSS-HHMMSS")
    if vr == "UI" and not is_uid(value):
        raise InputError(f"--query {keyword}: {value!r} is no UID")
    if vr == "CS" and not re.fullmatch(r"[A-Z0-9_ *?\\,]{1,64}", value):
        raise InputError(f"--query {keyword}: {value!r} is no code of capital letters, digits and _")
    if not value.isprintable() or len(value) > 256:
        raise InputError(f"--query {keyword}: it does not print, or is too long")


def is_uid(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= 64 and _UID.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class PullLimits:
    """What a pull takes at most.

    Attributes:
        free_gb: Gigabytes (10⁹ bytes) that stay free on the disk.
        instance_mb: Of one image, megabytes (10⁶ bytes).
        images: Of a series.
        studies: That may match; more end the call before anything is fetched.
    """

    free_gb: float = 10.0
    instance_mb: float = 512.0
    images: int = 5000
    studies: int = 1000


class WebSource(WebService):
    """A DICOMweb service that is asked and fetched from; see `WebService` for what it takes."""

    purpose, service = "read", "QIDO-RS or WADO-RS"
    page = 500
    """Results that are asked for at once. Chosen: a study is a kilobyte."""

    def studies(self, query: Query) -> Iterator[dict[str, Any]]:
        """Studies that match, each in the DICOM JSON model.

        Raises:
            DestinationUnreachable, DestinationRefused: See `WebService`; also where the service gives
                studies that do not match, or says that there are more which it does not give.
        """
        return self._found("studies", query.study, "0020000D")

    def series(self, study_uid: str, query: Query, *, known: bool = True) -> Iterator[dict[str, Any]]:
        """Series of a study that match; see `studies`.

        Args:
            known: The service has named the study itself; else there may be none.
        """
        return self._found(f"studies/{study_uid}/series", query.series, "0020000E", known=known)

    def instances(self, study_uid: str, series_uid: str) -> Iterator[dict[str, Any]]:
        """All instances of a series; see `studies`."""
        return self._found(f"studies/{study_uid}/series/{series_uid}/instances", {}, "00080018")

    def _found(
        self, path: str, keys: Mapping[str, str], uid_tag: str, *, known: bool = True
    ) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        while True:
            asked = [*keys.items(), ("limit", str(self.page)), ("offset", str(len(seen)))]
            asked += [("includefield", k) for k in dict.fromkeys(k.partition(".")[0] for k in keys)]
            # wildcards as they are: Orthanc 1.10 does not know them as %2A
            words = urlencode(asked, quote_via=quote, safe="*?,")
            with self._asked("GET", f"{path}?{words}") as response:
                content = response.read(_LARGEST_PAGE, decode_content=False)  # nothing packed was asked for
                status, kind = response.status, media_type(response)
                more = "299" in str(response.headers.get("Warning", ""))
                if len(content) == _LARGEST_PAGE:
                    response.close()
            if status == 204 or (status == 200 and not content.strip()):
                return
            if status == 404 and not known:
                return
            self._judge(status, kind)
            more = more or status == 206
            if status not in (200, 206):
                raise DestinationRefused(
                    f"{self.name} does not take the query (HTTP {status}): check --query"
                )
            page = parse_json(content, f"the answer of {self.name}", error=DestinationRefused)
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise DestinationRefused(f"{self.name} answers with something that is no list of results")
            before = len(seen)
            for item in page:
                uid = str(first_in(item, uid_tag))
                if uid not in seen:
                    seen.add(uid)
                    self._matching(item, keys)
                    yield item
            if len(seen) == before:  # some give fewer at once than they are asked for, and some no offset
                if page and more:
                    raise DestinationRefused(
                        f"{self.name} has more results than it gives; narrow --query, such as by StudyDate"
                    )
                return

    def _matching(self, item: Mapping[str, Any], keys: Mapping[str, str]) -> None:
        """See that a result is one of what was asked for: some services ignore keys that they do not know."""
        for keyword, value in keys.items():
            tag, vr = f"{tag_for_keyword(keyword):08X}", dictionary_VR(keyword)
            there = [str(v) for v in values_in(item, tag) if not isinstance(v, dict)]
            if not there or vr in ("PN", "TM"):
                continue
            if not any(agrees(vr, value, one) for one in there):
                raise DestinationRefused(
                    f"{self.name} gives results that are not what --query {keyword} asks for; it seems not "
                    "to know this key"
                )

    def fetch(self, path: str, target: IO[bytes], room: Callable[[int], None]) -> None:
        """The file of an instance.

        Args:
            path: Below the root.
            target: Where its bytes go.
            room: Told of each block's bytes before it is written.

        Raises:
            DestinationUnreachable, DestinationRefused: See `WebService`.
            NotFetched: It is not given, or in another form.
        """
        kind = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._asked("GET", path, {"Accept": kind}) as response:
            got = media_type(response)
            if response.status in (404, 410):  # this one alone; the query has found it
                raise NotFetched(f"it is not given (HTTP {response.status})")
            self._judge(response.status, got, ("multipart/related", "application/dicom"))
            if response.status != 200:
                raise NotFetched(f"it is not given (HTTP {response.status})")
            blocks = response.stream(_BLOCK, decode_content=False)
            if got == "multipart/related":
                blocks = only_part(blocks, str(response.headers.get("Content-Type", "")))
            try:
                for block in blocks:
                    room(len(block))
                    target.write(block)
            except NotMultipart as error:
                raise NotFetched(f"the answer {error}") from None


class NotFetched(Exception):
    """Why one image did not come, in our own words."""


def agrees(vr: str, asked: str, value: str) -> bool:
    """Whether a value matches a key (PS3.4 C.2.2.2): a range, a list of UIDs, wildcards."""
    value = value.strip()
    if vr == "DA":
        first, dash, last = asked.partition("-")
        value = value.replace(".", "").replace("-", "")
        return (first or value) <= value <= (last or value) if dash else value == asked
    if vr == "UI":
        return value == asked
    return any(
        fnmatch.fnmatchcase(value.casefold(), one.strip().casefold().replace("[", "[[]"))
        for one in re.split(r"[\\,]", asked)
    )


@dataclass(kw_only=True)
class Pulled:
    """What a pull ended with.

    Attributes:
        studies, series: That match.
        new: Series that are whole now and were not before.
        grown: Of these, those that were there with fewer images.
        present: Series that were whole already.
        images, bytes: Fetched now.
        problems: Series that are not whole, with the reason.
    """

    studies: int = 0
    series: int = 0
    new: int = 0
    grown: int = 0
    present: int = 0
    images: int = 0
    bytes: int = 0
    problems: int = 0


def pull(
    source: WebSource,
    query: Query,
    folder: Path,
    *,
    limits: PullLimits | None = None,
    retries: int = 5,
    tell: Callable[[str, str], None] = lambda uid, reason: None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Pulled:
    """Fetch the CT series that match into a folder; the same call again fetches what is missing.

    Args:
        source: Where from; it is not closed.
        query: Which.
        folder: Where to, see above; made when missing.
        limits: What is taken at most.
        retries: How often a request is tried again when the connection was lost.
        tell: Told of each series that is not whole: its UID ("" where it has none) and why.
        watch: Called with studies done and in all.

    Raises:
        InputError: More studies match than may.
        DestinationUnreachable, DestinationRefused: The service cannot be used (any more).
        DiskFull: The disk would have less room than is to stay free; what came is kept.
        OutputBusy, OutputUnwritable: Another pull is at work there, or it cannot be written.
    """
    with Puller(source, folder, limits=limits, retries=retries) as puller:
        return puller.all_of(query, tell, watch)


class Puller:
    """Fetches series into a folder, alone there while it is open; see `pull`.

    Attributes:
        found: What came so far.

    Raises:
        OutputBusy, OutputUnwritable: Another pull is at work there, or it cannot be written.
    """

    def __init__(
        self, source: WebSource, folder: Path, *, limits: PullLimits | None = None, retries: int = 5
    ) -> None:
        self._source, self._folder, self._limits = source, folder, limits or PullLimits()
        self._retries, self.found = retries, Pulled()
        lock = take_lock(folder / COMING / ".lock", fcntl.LOCK_EX)
        if lock is None:
            raise OutputBusy(f"another pull is at work in {folder}; wait for it, or give another folder")
        self._lock = lock

    def __enter__(self) -> Puller:
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def all_of(
        self, query: Query, tell: Callable[[str, str], None], watch: Callable[[int, int], None]
    ) -> Pulled:
        """See `pull`."""
        found = self.found

        def problem(uid: str, reason: str) -> None:
            found.problems += 1
            log.warning("series %s: %s", uid, reason)
            tell(uid, reason)

        studies = self._tried(lambda: list(self._some_studies(query)))
        found.studies = len(studies)
        watch(0, len(studies))
        for count, study in enumerate(studies):
            uid = first_in(study, "0020000D")
            if not is_uid(uid):
                problem("", "a study has no StudyInstanceUID that is one")
                continue
            for series_uid, _ in self.series_of(uid, query):
                found.series += 1
                if not is_uid(series_uid):
                    problem("", "a series has no SeriesInstanceUID that is one")
                elif reason := self.series(uid, series_uid):
                    problem(series_uid, reason)
            watch(count + 1, len(studies))
        return found

    def _some_studies(self, query: Query) -> Iterator[dict[str, Any]]:
        for count, study in enumerate(self._source.studies(query)):
            if count == self._limits.studies:
                raise InputError(f"more than {count} studies match; narrow --query, or raise --most-studies")
            yield study

    def series_of(self, study: str, query: Query, *, known: bool = True) -> list[tuple[Any, Any]]:
        """SeriesInstanceUID and Modality of the series of a study that match, as the service says them; for
        `known` see `WebSource.series`."""
        found = self._tried(lambda: list(self._source.series(study, query, known=known)))
        return [(first_in(one, "0020000E"), first_in(one, "00080060")) for one in found]

    def places(self, study: str, uid: str) -> tuple[Path, Path]:
        """Where a series is when it is whole, and where until then."""
        return self._folder / WHOLE / study / uid, self._folder / COMING / study / uid

    def series(self, study: str, uid: str) -> str:
        """Fetch what is missing of a series; why it is not whole, or "".

        Args:
            study, uid: UIDs that are some.
        """
        found = self._tried(lambda: list(self._source.instances(study, uid)))
        named = [first_in(item, "00080018") for item in found]
        if not named:
            return "the service names no images of it"
        if not all(map(is_uid, named)):
            return "an image has no SOPInstanceUID that is one"
        if len(named) > self._limits.images:
            return f"it has {len(named)} images, more than --most-images"
        whole, coming = self.places(study, uid)
        missing = [i for i in named if not (whole / f"{i}.dcm").is_file()]
        if not missing:
            self.found.present += 1
            return ""
        with output_errors(coming):
            grown = whole.is_dir()
            if grown:  # so that no run sees it until it is whole again
                _merge(whole, coming)
            coming.mkdir(parents=True, exist_ok=True)
            missing = [i for i in named if not (coming / f"{i}.dcm").is_file()]
            fetched = (self._tried(partial(self._image, study, uid, one, coming)) for one in missing)
            reasons = [reason for reason in fetched if reason]
            if reasons:
                return f"{len(reasons)} of its {len(named)} images did not come: {reasons[0]}"
            on_disk(coming)
            whole.parent.mkdir(parents=True, exist_ok=True)
            coming.rename(whole)
            on_disk(whole.parent)
        self.found.new += 1
        self.found.grown += grown
        log.info("series %s: whole, with %d images", uid, len(named))
        return ""

    def _image(self, study: str, series: str, uid: str, coming: Path) -> str:
        """Fetch an image; why it did not come, or ""."""
        temporary = coming / ".coming"
        taken = 0

        def room(size: int) -> None:
            nonlocal taken
            taken += size
            if taken > self._limits.instance_mb * 1e6:
                raise NotFetched("it is larger than --most-mb")
            if shutil.disk_usage(coming).free - size < self._limits.free_gb * 1e9:
                raise DiskFull(
                    f"{self._folder}: the disk would have less than {self._limits.free_gb:g} GB free "
                    "(--keep-free); make room, then the same command goes on"
                )

        try:
            with temporary.open("wb") as file:
                self._source.fetch(f"studies/{study}/series/{series}/instances/{uid}", file, room)
            if reason := _wrong(temporary, study, series, uid):
                return reason
            on_disk(temporary)
            temporary.replace(coming / f"{uid}.dcm")
        except NotFetched as error:
            return str(error)
        finally:
            temporary.unlink(missing_ok=True)
        self.found.images += 1
        self.found.bytes += taken
        return ""

    def _tried(self, ask: Callable[[], Any]) -> Any:
        """Ask, waiting and asking again when the connection is lost."""
        return tried(ask, self._retries, lambda: f"{self.found.images} images came")


def _merge(whole: Path, coming: Path) -> None:
    """Put a whole series back among those that are coming, beside what may be there of it."""
    if not coming.exists():
        coming.parent.mkdir(parents=True, exist_ok=True)
        whole.rename(coming)
        return
    for path in whole.iterdir():
        path.replace(coming / path.name)
    whole.rmdir()


def _wrong(path: Path, study: str, series: str, uid: str) -> str:
    """Why a file is not the CT image that it was fetched as, or ""."""
    keywords = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"]
    try:
        with quiet_pydicom():
            header = read_slice(SliceRef(path=path), tags=[Tag(k) for k in keywords])
            kind, *uids = (text(header, keyword) for keyword in keywords)
    except InputUnreadable:
        return "it is no DICOM that can be read"
    if uids != [uid, series, study]:
        return "it is another image than was asked for"
    return "" if kind in _CT_CLASSES else "it is no CT image"
