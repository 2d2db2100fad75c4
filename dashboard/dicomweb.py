"""A small read-only DICOMweb service (DICOM PS3.18): QIDO-RS and WADO-RS over a `DicomStore`.

Everything is found by UID in the store. Pixels leave as they are stored; names leave only where the store
shows them. Answers to what cannot be answered are one line of text: 400 for what is no UID or number, 404 for
what is not there, 406 for a type that is not offered, 503 while the CT is still looked for.
"""

from __future__ import annotations

import io
import math
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import chain, islice
from threading import Lock
from typing import Any, TypeVar

import orjson
import pydicom
from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.routing import APIRoute
from PIL import Image
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ImplicitVRLittleEndian

from ..dicom.files import Upto
from ..dicom.headers import quiet_pydicom
from ..dicom.series import SliceRef
from . import media
from .dicomjson import PIXEL_DATA, bulk_element, element, hide, to_json
from .media import MediaRange
from .pixels import GONE, FileFrames, as_seen, bytes_of, opened
from .security import Refused, foreign
from .store import DicomStore, Row, StoredSeries
from .table import literal, literals

DICOM_JSON = "application/dicom+json"
_LIMIT = 1000
"""Matches of one search; more are asked for with ``offset``. Chosen."""
_STUDIES = 50
"""Studies looked at together in a search for their series. Chosen."""
_SEARCHED = 5000
"""Series of which all SEG may be read to find one by its UID: some seconds. Chosen."""
_METADATA_BYTES = 24 << 20
"""Metadata kept in memory. A series of 650 slices has 1.6 MB. Chosen."""
_THUMBNAIL = 256
"""Longest side of a thumbnail, pixels. Chosen."""
_VIEWPORT = 4096
"""Longest side of a picture that is asked for, pixels. Chosen."""
_FRAMES = 256
"""Most frames of one answer; a viewer asks for one. Chosen."""
_PIECE = 256 << 10
"""Bytes of an answer that are handed on at a time, about. Chosen."""
_STARS = 3
"""Most ``*`` in a pattern: what a search takes grows with their power. Chosen."""
_SECONDS = 20.0
"""A search for series or instances that takes longer is ended. Chosen."""
_BASE = "urn:deepcac2:base"
"""Stands for the address of the instances of a series in metadata that is kept."""

T = TypeVar("T")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class TextErrorRoute(APIRoute):
    """A route whose errors are short texts."""

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await inner(request)
            except Refused as error:
                headers = {"Retry-After": "5"} if error.status == 503 else {}
                return PlainTextResponse(f"{error}\n", error.status, headers)
            except TimeoutError:
                message = "still looking for the CT under the folder given with --ct; try again\n"
                return PlainTextResponse(message, 503, {"Retry-After": "5"})

        return handler


def checked_uid(value: str) -> str:
    """A UID of a request.

    Raises:
        Refused: 400: not digits and dots, or longer than 64 (PS3.5 section 9.1).
    """
    if not re.fullmatch(r"[0-9.]{1,64}", value):
        raise Refused(400, "a UID is digits and dots, 64 characters at most")
    return value


def router(store: DicomStore) -> APIRouter:
    """The service, to be included at a prefix such as ``/dicomweb``."""
    service = _Service(store)
    routes = APIRouter(route_class=TextErrorRoute)
    study = "/studies/{study}"
    series = f"{study}/series/{{series}}"
    instance = f"{series}/instances/{{instance}}"
    for path, answer in (
        ("/studies", service.search_studies),
        ("/series", service.search_series),
        ("/instances", service.search_instances),
        (f"{study}/series", service.search_series),
        (f"{study}/instances", service.search_instances),
        (f"{series}/instances", service.search_instances),
        (study, service.retrieve),
        (series, service.retrieve),
        (instance, service.retrieve),
        (f"{study}/metadata", service.metadata),
        (f"{series}/metadata", service.metadata),
        (f"{instance}/metadata", service.metadata),
        (f"{instance}/frames/{{frames}}", service.frames),
        (f"{instance}/bulkdata/{{tag}}", service.bulk_data),
        (f"{instance}/frames/{{frames}}/rendered", service.rendered),
        (f"{instance}/frames/{{frames}}/thumbnail", service.thumbnail),
        *((f"{base}/rendered", service.rendered) for base in (study, series, instance)),
        *((f"{base}/thumbnail", service.thumbnail) for base in (study, series, instance)),
    ):
        routes.add_api_route(path, answer)
    return routes


class _Service:
    """The answers. Methods take the request only: what is in its path is checked here."""

    def __init__(self, store: DicomStore) -> None:
        self._store = store
        self._lock = Lock()
        self._metadata: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()

    # QIDO-RS

    def search_studies(self, request: Request) -> Response:
        """Studies that match."""
        _accept_json(request)
        query = _Query(request)
        found = self._store.studies(query.where(), query.limit + 1, query.offset)
        whole = bool(query.uids("StudyInstanceUID"))
        return _matches([self._study_json(rows, whole=whole) for rows in found], query.limit)

    def _study_json(self, rows: Sequence[Row], *, whole: bool) -> bytes:
        """A study. Counts come from the table; of a study asked for by UID, from what can be served."""
        images = rows if self._store.has_ct else []
        counts = len(images), sum(row.n_slices for row in images)
        modalities = {
            str(self._store.details(row).get("series", {}).get("modality") or "CT") for row in images
        }
        if whole:
            served = self._store.everything(rows[0].study_uid)
            counts = len(served), sum(len(one.instances) for one in served)
            modalities = {one.modality for one in served}
        else:
            made = [one for row in rows for one in self._store.made_from(row)]
            counts = counts[0] + len(made), counts[1] + len(made)
            modalities |= {one.modality for one in made}
        first = rows[0]
        return orjson.dumps(
            {
                "00080005": element("CS", "ISO_IR 192"),
                "00080020": element("DA", *filter(None, [first.study_date])),
                "00080030": element("TM"),
                "00080050": element("SH"),
                "00080061": element("CS", *sorted(modalities)),
                "00100010": element("PN"),
                "00100020": element("LO", *filter(None, [first.patient_id])),
                "00100030": element("DA"),
                "00100040": element("CS"),
                "0020000D": element("UI", first.study_uid),
                "00200010": element("SH"),
                "00201206": element("IS", counts[0]),
                "00201208": element("IS", counts[1]),
            }
        )

    def search_series(self, request: Request) -> Response:
        """Series that match, of one study or of all."""
        _accept_json(request)
        query = _Query(request)
        return _page(self._matching(query), self._series_json, query)

    def _matching(self, query: _Query) -> Iterator[StoredSeries]:
        """The series that a search for series or instances is about."""
        wanted, modalities = query.uids("SeriesInstanceUID"), query.values("Modality")
        if wanted and not query.study:  # of a study that one of them belongs to
            studies = {row.study_uid for uid in wanted if (row := self._store.row(uid)) is not None}
            if len(studies) < len(wanted):  # perhaps one that the run made; only its own file says so
                if self._store.count > _SEARCHED:
                    raise Refused(400, "so many series are searched by UID within a study only")
                studies |= {
                    row.study_uid
                    for row in self._store.rows()
                    if any(made.series_uid in wanted for made in self._store.made_from(row))
                }
            query.require("study_uid", sorted(studies))
        offset, end = 0, time.monotonic() + _SECONDS
        while some := self._store.studies(query.where(), _STUDIES, offset):
            offset += _STUDIES
            for one in (one for rows in some for one in self._store.everything(rows[0].study_uid)):
                if time.monotonic() > end:
                    raise Refused(503, "the search takes too long; name a study or a patient")
                fits = not modalities or one.modality in modalities
                if fits and (not wanted or one.series_uid in wanted):
                    yield one

    def _series_json(self, one: StoredSeries) -> bytes:
        first = next(iter(one.instances.values()))
        content = orjson.loads(_header(first, self._store.show_phi, tags=_SERIES_TAGS))
        return orjson.dumps(content | {"00201209": element("IS", len(one.instances))})

    def search_instances(self, request: Request) -> Response:
        """Instances that match, of one series, one study or all."""
        _accept_json(request)
        query = _Query(request)
        wanted = query.uids("SOPInstanceUID")
        refs = (
            ref
            for one in self._matching(query)
            for uid, ref in one.instances.items()
            if not wanted or uid in wanted
        )
        return _page(refs, lambda ref: _header(ref, self._store.show_phi, tags=_INSTANCE_TAGS), query)

    # WADO-RS

    def metadata(self, request: Request) -> Response:
        """Everything but the pixels of a study, a series or an instance."""
        _accept_json(request)
        root = str(request.url).partition("/studies/")[0]
        pieces = self._pieces(root, self._asked(request))
        first = next(pieces)  # what cannot be read at all is told by a status
        return StreamingResponse(chain([b"[", first], pieces, [b"]"]), media_type=DICOM_JSON)

    def _pieces(
        self, root: str, asked: Sequence[tuple[StoredSeries, dict[str, SliceRef]]]
    ) -> Iterator[bytes]:
        """Metadata of the instances of some series, without the brackets, some at a time.

        That of a series is kept, with `_BASE` for the beginning of its addresses, where it is not too long.
        """
        comma = b""
        for one, refs in asked:
            base = f"{root}/studies/{one.row.study_uid}/series/{one.series_uid}".encode()
            key = (one.row.study_uid, one.series_uid, ",".join(refs) if len(refs) == 1 else "")
            with self._lock:
                kept = self._metadata.get(key)
                if kept is not None:
                    self._metadata.move_to_end(key)
            made: list[bytes] | None = [] if kept is None else None
            for piece in [kept] if kept is not None else self._headers(refs):
                yield comma + piece.replace(_BASE.encode(), base)
                comma = b","
                if made is not None:
                    made.append(piece)
                    if sum(map(len, made)) > _METADATA_BYTES // 2:
                        made = None
            if made is not None:
                self._keep(key, b",".join(made))

    def _headers(self, refs: dict[str, SliceRef]) -> Iterator[bytes]:
        """JSON of instances of a series, about `_PIECE` bytes at a time."""
        some: list[bytes] = []
        for uid, ref in refs.items():
            some.append(_header(ref, self._store.show_phi, f"{_BASE}/instances/{uid}"))
            if sum(map(len, some)) > _PIECE:
                yield b",".join(some)
                some = []
        if some:
            yield b",".join(some)

    def _keep(self, key: tuple[str, str, str], content: bytes) -> None:
        with self._lock:
            self._metadata[key] = content
            while sum(map(len, self._metadata.values())) > _METADATA_BYTES:
                self._metadata.popitem(last=False)

    def retrieve(self, request: Request) -> Response:
        """The instances themselves of a study, a series or an instance."""
        refs = [ref for _, some in self._asked(request) for ref in some.values()]
        offered = ['multipart/related; type="application/dicom"']
        if "instance" in request.path_params:
            offered.append("application/dicom")
        chosen = media.choose(_ranges(request), offered, {ref.transfer_syntax_uid for ref in refs})
        if chosen is None:
            raise Refused(406, f"offered are {' and '.join(offered)}, in the transfer syntax of the file")
        if chosen == "application/dicom":
            return Response(self._part10(refs[0]), media_type=chosen)

        def parts() -> Iterator[tuple[str, bytes]]:
            for ref in refs:
                syntax = ref.transfer_syntax_uid or ImplicitVRLittleEndian
                yield f"application/dicom; transfer-syntax={syntax}", self._part10(ref)

        return _multipart(parts(), "application/dicom")

    def _part10(self, ref: SliceRef) -> bytes:
        """A file as it is served: without names, unless they are shown; the pixels are not touched."""
        if self._store.show_phi:
            return bytes_of(ref)
        with foreign(*GONE), quiet_pydicom():
            ds = opened(ref, upto=Upto.PIXELS)
            hide(ds)
            ds.preamble = b"\0" * 128  # may hold anything
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
            return buffer.getvalue()

    def frames(self, request: Request) -> Response:
        """Frames of an instance, compressed as they are stored or, where asked for, not compressed."""
        ref = self._one(request)[1]
        numbers = _frame_numbers(request, ref)
        file = FileFrames(ref)
        form = media.choose_frames(_ranges(request), file.media_type, file.syntax)
        if form is None or (not form[0] and len(numbers) > 1):
            raise Refused(406, f"offered are multipart/related or one frame, of {file.media_type} or octets")
        multipart, decode = form
        kind, syntax = (media.OCTETS, media.NATIVE) if decode else (file.media_type, file.syntax)
        content_type = f"{kind}; transfer-syntax={syntax}"
        frames = (file.decoded(n - 1) if decode else file.stored(n - 1) for n in numbers)
        if not multipart:
            return Response(next(frames), media_type=content_type)
        return _multipart(((content_type, frame) for frame in frames), kind)

    def bulk_data(self, request: Request) -> Response:
        """The value of one binary element."""
        _, ref = self._one(request)
        name = request.path_params["tag"]
        if not re.fullmatch(r"[0-9A-Fa-f]{8}", name):
            raise Refused(400, "an element is eight hexadecimal digits")
        tag = int(name, 16)
        with foreign(*GONE):
            ds = opened(ref, upto=Upto.PIXELS if tag == PIXEL_DATA else Upto.HEADER)
            if not self._store.show_phi:
                hide(ds)
            found = ds.get(tag)
        if found is None or not isinstance(found.value, bytes):
            raise Refused(404, "the instance has no such binary element")
        kind = "application/octet-stream"
        offered = [f'multipart/related; type="{kind}"', kind]
        chosen = media.choose(_ranges(request), offered)
        if chosen is None:
            raise Refused(406, f"offered are {' and '.join(offered)}")
        if chosen == kind:
            return Response(found.value, media_type=kind)
        return _multipart(iter([(kind, found.value)]), kind)

    def rendered(self, request: Request) -> Response:
        """A picture of an instance or a frame; of a series or study, of the middle of its CT."""
        return self._picture(request, None)

    def thumbnail(self, request: Request) -> Response:
        """A small picture."""
        return self._picture(request, _THUMBNAIL)

    def _picture(self, request: Request, longest: int | None) -> Response:
        chosen = media.choose(_ranges(request), ["image/jpeg", "image/png"])
        if chosen is None:
            raise Refused(406, "offered are image/jpeg and image/png")
        refs = self._asked(request)[0][1]
        ref = list(refs.values())[len(refs) // 2]
        index = ref.frames // 2
        if "frames" in request.path_params:
            index = _frame_numbers(request, ref)[0] - 1
        window = _window(request.query_params.get("window"))
        picture = Image.fromarray(as_seen(ref, index, window))
        size = _viewport(request.query_params.get("viewport"))
        if longest is not None:
            size = (min(size[0], longest), min(size[1], longest)) if size else (longest, longest)
        if size is not None:
            scale = min(size[0] / picture.width, size[1] / picture.height)
            picture = picture.resize(
                (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            )
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG" if chosen == "image/png" else "JPEG")
        return Response(buffer.getvalue(), media_type=chosen)

    # What a path names

    def _asked(self, request: Request) -> list[tuple[StoredSeries, dict[str, SliceRef]]]:
        """The series, and of each the instances, that a path names.

        Raises:
            Refused: 400 or 404.
        """
        names = request.path_params
        study = checked_uid(names["study"])
        if "series" not in names:
            found = self._store.everything(study)
            if not found:
                raise Refused(404, "no such study")
            return [(one, dict(one.instances)) for one in found]
        series = checked_uid(names["series"])
        instance = checked_uid(names["instance"]) if "instance" in names else None
        one = self._store.series(study, series)
        if one is None:
            raise Refused(404, "no such series in this study")
        if instance is None:
            return [(one, dict(one.instances))]
        if instance not in one.instances:
            raise Refused(404, "no such instance in this series")
        return [(one, {instance: one.instances[instance]})]

    def _one(self, request: Request) -> tuple[StoredSeries, SliceRef]:
        one, refs = self._asked(request)[0]
        return one, next(iter(refs.values()))


# Requests


_QUERY_NAMES = {
    "0020000D": "StudyInstanceUID",
    "0020000E": "SeriesInstanceUID",
    "00080018": "SOPInstanceUID",
    "00100020": "PatientID",
    "00080020": "StudyDate",
    "00080060": "Modality",
    "00080061": "ModalitiesInStudy",
}
"""Tags that may stand for names in a search."""


class _Query:
    """The parameters of a search, in names or in tags. Those that are not known are ignored."""

    def __init__(self, request: Request) -> None:
        """Read and check them.

        Raises:
            Refused: 400.
        """
        self._values: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            key = _QUERY_NAMES.get(name.upper(), name)
            self._values.setdefault(key, []).extend(v for v in re.split(r"[,\\]", value) if v)
        for name in ("study", "series"):
            if name in request.path_params:
                key = f"{name.capitalize()}InstanceUID"
                self._values[key] = [checked_uid(request.path_params[name])]
        self.limit = min(_LIMIT, self._count("limit", _LIMIT))
        self.offset = self._count("offset", 0)
        self.study = bool(self.uids("StudyInstanceUID"))
        self._required = ["true"]

    def _count(self, name: str, default: int) -> int:
        values = self._values.get(name)
        if not values:
            return default
        if not re.fullmatch(r"\d{1,9}", values[0]):
            raise Refused(400, f"{name} is a number")
        return int(values[0])

    def values(self, name: str) -> list[str]:
        """What was asked for under a name; nothing: everything matches."""
        return self._values.get(name, [])

    def uids(self, name: str) -> list[str]:
        """The UIDs asked for under a name.

        Raises:
            Refused: 400.
        """
        return [checked_uid(value) for value in self.values(name)]

    def require(self, column: str, values: list[str]) -> None:
        """Add a condition: a column of the table has one of these values."""
        self._required.append(f"{column} IN ({literals(values)})")

    def where(self) -> str:
        """The condition on rows of the table, see `DicomStore.studies`."""
        conditions = list(self._required)
        if uids := self.uids("StudyInstanceUID"):
            conditions.append(f"study_uid IN ({literals(uids)})")
        if patients := [v for v in self.values("PatientID") if v != "*"]:
            if any(v.count("*") > _STARS for v in patients):
                raise Refused(400, f"a PatientID has at most {_STARS} stars")
            # DICOM's * and ? are GLOB's; [ is not special in DICOM
            patterns = (f"patient_id GLOB {literal(v.replace('[', '[[]'))}" for v in patients)
            conditions.append(f"({' OR '.join(patterns)})")
        if dates := self.values("StudyDate"):
            if not re.fullmatch(r"\d{8}|\d{8}-(\d{8})?|-\d{8}", dates[0]):
                raise Refused(400, "StudyDate is YYYYMMDD or a range YYYYMMDD-YYYYMMDD")
            first, dash, last = dates[0].partition("-")
            last = last or ("99991231" if dash else first)
            conditions.append(f"study_date BETWEEN {literal(first or '00000000')} AND {literal(last)}")
        modalities = self.values("ModalitiesInStudy")
        if modalities and "CT" not in modalities:
            conditions.append("status = 'scored'" if {"SEG", "SR"} & {*modalities} else "false")
        return " AND ".join(conditions)


def _ranges(request: Request) -> list[MediaRange]:
    """What the client accepts: the query's ``accept``, else the header (PS3.18 section 8.3.3.1)."""
    asked = request.query_params.get("accept") or request.headers.get("accept", "")
    return media.parse(asked)


def _accept_json(request: Request) -> None:
    """Refuse clients that accept no JSON.

    Raises:
        Refused: 406.
    """
    if media.choose(_ranges(request), [DICOM_JSON, "application/json"]) is None:
        raise Refused(406, f"offered is {DICOM_JSON}")


def _frame_numbers(request: Request, ref: SliceRef) -> list[int]:
    """The frames that a path names, from 1, each once.

    Raises:
        Refused: 400 or 404.
    """
    asked = request.path_params["frames"]
    if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", asked):
        raise Refused(400, "frames are numbers from 1, separated by commas")
    numbers = [int(n) for n in asked.split(",")]
    if len(numbers) > _FRAMES or len(set(numbers)) < len(numbers):
        raise Refused(400, f"at most {_FRAMES} frames at a time, and each once")
    if not all(1 <= n <= ref.frames for n in numbers):
        raise Refused(404, f"the instance has {ref.frames} frames")
    return numbers


def _window(value: str | None) -> tuple[float, float] | None:
    """Level and width of the ``window`` parameter.

    Raises:
        Refused: 400.
    """
    if value is None:
        return None
    try:
        level, width = (float(v) for v in value.split(",")[:2])
    except ValueError:
        raise Refused(400, "window is level,width[,function]") from None
    if not width > 0 or not math.isfinite(level + width):
        raise Refused(400, "the width of a window is above 0")
    return level, width


def _viewport(value: str | None) -> tuple[int, int] | None:
    """Width and height of the ``viewport`` parameter, pixels.

    Raises:
        Refused: 400.
    """
    if value is None:
        return None
    match = re.match(r"(\d{1,4}),(\d{1,4})(,|$)", value)
    if not match or not all(0 < int(side) <= _VIEWPORT for side in match.groups()[:2]):
        raise Refused(400, f"viewport is width,height, each from 1 to {_VIEWPORT}")
    return int(match[1]), int(match[2])


# Answers


def _tags(*keywords: str) -> tuple[int, ...]:
    return tuple(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)


_SERIES_TAGS = _tags(
    "SpecificCharacterSet", "SeriesDate", "SeriesTime", "Modality", "SeriesDescription", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "BodyPartExamined", "Manufacturer", "ProtocolName",
    "FrameOfReferenceUID",
)  # fmt: skip
_INSTANCE_TAGS = _tags(
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID",
    "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "Rows", "Columns", "BitsAllocated",
    "NumberOfFrames",
)  # fmt: skip


def _header(ref: SliceRef, show_phi: bool, uri: str = "", tags: Sequence[int] | None = None) -> bytes:
    """JSON of a file without its pixels, or of some of its elements.

    Raises:
        Refused: 404.
    """
    with foreign(*GONE), quiet_pydicom():
        ds = opened(ref, tags=tags)
        content = to_json(ds, show_phi=show_phi, bulk_uri=f"{uri}/bulkdata" if uri else "", tags=tags)
    if tags is None and ref.rows:
        pixels = bulk_element("OW", f"{uri}/bulkdata/{PIXEL_DATA:08X}")
        content = content[:-1] + b',"%08X":' % PIXEL_DATA + pixels + b"}"
    return content


def _page(found: Iterator[T], to_json: Callable[[T], bytes], query: _Query) -> Response:
    """The part of what a search found that is asked for."""
    part = islice(found, query.offset, query.offset + query.limit + 1)
    return _matches(list(map(to_json, part)), query.limit)


def _matches(found: list[bytes], limit: int) -> Response:
    """What a search found; one more than the limit says that there is more (PS3.18 section 8.3.4.4)."""
    headers = {}
    if len(found) > limit:
        headers["Warning"] = '299 deepcac2 "There are more results; ask with limit and offset"'
    return Response(b"[" + b",".join(found[:limit]) + b"]", media_type=DICOM_JSON, headers=headers)


def _multipart(parts: Iterator[tuple[str, bytes]], kind: str) -> Response:
    """Parts, each made when the ones before it are sent; the first now: if it cannot be, that is a status."""
    boundary = uuid.uuid4().hex
    first = next(parts)

    def body() -> Iterator[bytes]:
        for content_type, content in chain([first], parts):
            head = f"Content-Type: {content_type}\r\nContent-Length: {len(content)}"
            yield f"--{boundary}\r\n{head}\r\n\r\n".encode()
            for begin in range(0, len(content), _PIECE):
                yield content[begin : begin + _PIECE]
            yield b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(body(), media_type=f'multipart/related; type="{kind}"; boundary={boundary}')
