"""The reading desk as part of the dashboard: cases to read, their pieces and slices, and decisions on them.

Everything but decisions, undo and signature is only read; those go through `review.desk.Desk`, which writes
into the folder of readings and nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from ..dicom.gates import check_headers
from ..dicom.seg.reader import read_segmentation
from ..errors import DeepCACError, InputError, OutputError
from ..review import values
from ..review.case import ReadCase, open_result, open_scan
from ..review.desk import Desk, Read, Standing, differ, regrouped
from ..review.journal import MOST_RUNS, Conflict
from ..review.reading import Decision, by_name, piece_values
from ..review.values import VALUES, value_of
from ..scoring import risk_group
from .dicomweb import checked_uid
from .security import Refused
from .store import DicomStore, Row
from .table import Results, literals

logger = logging.getLogger(__name__)

UNSCORED = "unscored"
"""Status of a scan of which there is no result, in a table made for the desk."""
_TO_READ = f"series_uid <> '' AND status IN ('scored', '{UNSCORED}')"
_WORK_ORDER = "patient_id, study_date, rowid"
_LONGEST = 128 << 10
"""Bytes of a decision: a stroke of `MOST_RUNS` rows. Chosen."""
_PAGE = 100
NAMED = "this file holds the patient's name: start with --show-phi, or take it from its folder"
STATES = ("not read", "begun", "read", "differ")


def router(store: DicomStore, results: Results, desk: Desk) -> APIRouter:
    """``/api/review``."""
    answers = _Desk(store, results, desk)
    routes = APIRouter(route_class=_Route)
    one = "/api/review/{series_uid}"
    routes.add_api_route("/api/review", answers.worklist)
    routes.add_api_route(one, answers.case)
    routes.add_api_route(one + "/slices/{index}.bin", answers.slice)
    routes.add_api_route(one + "/values/{index}.bin", answers.values)
    routes.add_api_route(one + "/signed/{name}", answers.signed)
    routes.add_api_route(one + "/decisions", answers.decide, methods=["POST"])
    routes.add_api_route(one + "/undo", answers.undo, methods=["POST"])
    routes.add_api_route(one + "/sign", answers.sign, methods=["POST"])
    return routes


def opener(store: DicomStore) -> Callable[[str], ReadCase]:
    """What opens a case for the desk: a result of the run, or a scan of which there is none."""

    def open_case(series_uid: str) -> ReadCase:
        row = store.row(series_uid)
        series = None if row is None else store.whole_series(row)
        if row is None or series is None:
            raise InputError("the CT of this series is not under the folder given with --ct")
        series = replace(series, findings=check_headers(series))
        details = store.details(row)
        if details.get("score") and row.folder is not None:
            return open_result(row.folder, series, details, kvp=series.kvp)
        return open_scan(series, heart=None if row.folder is None else _heart(store, row, series))

    return open_case


def _heart(store: DicomStore, row: Row, series: Any) -> Any:
    """The heart of a series that was not scored, where a SEG of the run has one."""
    made = store.segmentation_of(row.series_uid)
    if made is None:
        return None
    from ..dicom import read_series

    geometry = read_series(series).volume.geometry
    return read_segmentation(next(iter(made.instances.values())).path, geometry).get("heart")


class _Route(APIRoute):
    """A route whose errors are JSON with one sentence."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                answer: Response = await inner(request)
                return answer
            except Refused as error:
                return _json({"error": str(error)}, error.status)
            except TimeoutError:
                return _json({"error": "still looking for the CT; try again in a moment"}, 503)
            except Conflict as error:
                return _json({"error": str(error)}, 409)
            except OutputError as error:
                logger.error("a decision could not be written: %s", error)
                return _json({"error": "the decision could not be written, and does not count: "
                              "no space, or no right to write; the server's log says more"}, 507)  # fmt: skip
            except DeepCACError as error:
                return _json({"error": str(error)}, 422)

        return handler


class _Desk:
    """The answers."""

    def __init__(self, store: DicomStore, results: Results, desk: Desk) -> None:
        self._store, self._results, self._desk = store, results, desk

    def worklist(self, request: Request) -> Response:
        """The cases in the order of the table with who has read them; ``state`` chooses, ``page`` pages.

        What others have signed is told a reader only when he has signed as well.
        """
        reader = request.query_params.get("reader", "")
        state = request.query_params.get("state", "")
        if state and state not in STATES:
            raise Refused(422, f"a state is one of {', '.join(STATES)}")
        readings = self._desk.readings()
        states = {uid: state_of(reads, reader) for uid, reads in readings.items()}
        all_, known = self._known(readings)
        counts = {name: sum(name in states[uid] for uid in known) for name in STATES}
        counts["not read"] += all_ - len(known)  # of which there is no reading at all
        where, found = _TO_READ, all_
        if state:  # a list of the few: those that are in this state, or are not
            few = [uid for uid in known if (state in states[uid]) != (state == "not read")]
            where += f" AND series_uid {'NOT ' if state == 'not read' else ''}IN ({literals(['', *few])})"
            found = counts[state]
        page = _whole(request.query_params.get("page", "1"), "page") or 1
        pages = max(1, -(-found // _PAGE))
        page = min(page, pages)
        shown = self._results.all(
            "SELECT series_uid, patient_id, series_description, study_date, agatston_score, risk_group "
            f"FROM everything WHERE {where} ORDER BY {_WORK_ORDER} "
            f"LIMIT {_PAGE} OFFSET {(page - 1) * _PAGE}"
        )
        return _json(
            {
                "counts": counts,
                "all": all_,
                "found": found,
                "page": page,
                "pages": pages,
                "rows": [_listed(row, readings.get(row[0], []), reader) for row in shown],
            }
        )

    def _known(self, readings: Collection[str]) -> tuple[int, list[str]]:
        """How many cases there are to read, and those of them that somebody has begun."""
        ((all_,),) = self._results.all(f"SELECT count(*) FROM everything WHERE {_TO_READ}")
        found = self._results.all(
            f"SELECT series_uid FROM everything WHERE {_TO_READ} AND series_uid IN ({literals(readings)})"
        )
        return all_, [uid for (uid,) in found]

    def case(self, request: Request) -> Response:
        """A case for a reader: its pieces, values, score, and the cases before and after it."""
        uid, reader = checked_uid(request.path_params["series_uid"]), _reader(request)
        standing = self._desk.standing(uid, reader)
        return _json(self._all(standing, reader))

    def slice(self, request: Request) -> Response:
        """A slice as it is shown: int16 HU, uint16 numbers of pieces, uint8 heart, each (rows, columns)."""
        case = self._desk.case(checked_uid(request.path_params["series_uid"]))
        plane = self._plane(case, request)
        hu = case.shown(case.volume.hu).array[plane]
        number = case.shown(case.number).array[plane]
        heart = case.shown(case.heart).array[plane]
        parts = (hu.astype("<i2"), number.astype("<u2"), heart.astype(np.uint8))
        data = b"".join(np.ascontiguousarray(part).tobytes() for part in parts)
        return Response(data, media_type="application/octet-stream")

    def values(self, request: Request) -> Response:
        """The values of a slice after the decisions so far: uint8 (rows, columns)."""
        uid = checked_uid(request.path_params["series_uid"])
        standing = self._desk.standing(uid, _reader(request))
        plane = self._plane(standing.case, request)
        data = np.ascontiguousarray(standing.case.shown(standing.array).array[plane]).tobytes()
        return Response(data, media_type="application/octet-stream")

    def signed(self, request: Request) -> Response:
        """A file of the reader's last signature; it says who the patient is, as the CT does."""
        if not self._store.show_phi:
            raise Refused(403, NAMED)
        name = request.path_params["name"]
        uid = checked_uid(request.path_params["series_uid"])
        path = self._desk.signed_file(uid, _reader(request), name)
        if path is None:
            raise Refused(404, "nothing of this name was signed")
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    async def decide(self, request: Request) -> Response:
        """Take a decision."""
        return await self._changed(request, self._decide)

    async def undo(self, request: Request) -> Response:
        """Take the last one back."""
        return await self._changed(
            request, lambda uid, reader, after, _: self._desk.undo(uid, reader, after=after)
        )

    async def sign(self, request: Request) -> Response:
        """Sign."""
        return await self._changed(
            request, lambda uid, reader, after, _: self._desk.sign(uid, reader, after=after)[0]
        )

    def _decide(self, uid: str, reader: str, after: int, content: dict[str, Any]) -> Standing:
        return self._desk.decide(uid, reader, _decision(content), after=after)

    async def _changed(
        self, request: Request, change: Callable[[str, str, int, dict[str, Any]], Standing]
    ) -> Response:
        uid = checked_uid(request.path_params["series_uid"])
        content = await _body(request)
        reader, after = content.get("reader"), content.get("after")
        if not isinstance(reader, str) or type(after) is not int:
            raise Refused(422, "a decision names its reader and the number of the last one before it")
        standing = await run_in_threadpool(change, uid, reader, after, content)
        return _json(await run_in_threadpool(_state, standing))

    def _plane(self, case: ReadCase, request: Request) -> int:
        index = _whole(request.path_params["index"], "a slice")
        plane = index - case.corner[0]
        if not 0 <= plane < case.volume.hu.shape[0]:
            raise Refused(404, "this slice is not among those shown")
        return plane

    def _all(self, standing: Standing, reader: str) -> dict[str, Any]:
        case = standing.case
        z0, y0, x0 = case.corner
        planes, rows, columns = case.shown(case.volume.hu).array.shape
        uid = case.series.series_uid
        others = [r for r in self._desk.readings_of(case.series.patient_id, uid) if r.reader != reader]
        beside = self._results.beside(uid, _TO_READ, _WORK_ORDER)
        row = self._results.row(uid) or {}
        return {
            "patient_id": case.series.patient_id,
            "series_description": case.series.series_description,
            "study_date": case.series.study_date,
            "kernel": case.series.kernel,
            "status": row.get("status"),
            "warnings": [f.message for f in case.series.findings],
            "slices": case.geometry.shape[0],
            "first": z0,
            "count": planes,
            "corner": [y0, x0],
            "rows": rows,
            "columns": columns,
            "spacing": list(case.shown(case.volume.hu).geometry.spacing),
            "threshold": case.threshold,
            "automatic": case.automatic,
            "has_heart": bool(case.heart.any()),
            "left": case.left,
            "rule": case.rule.name,
            "values": [
                {"name": v.name, "value": v.value, "counted": v.counted, "key": v.key, "words": v.words,
                 "colour": list(v.colour)}
                for v in VALUES.values()
            ],
            "pieces": [
                {"number": p.number, "automatic": p.automatic, "score": round(p.score, 2),
                 "volume_mm3": round(p.volume_mm3, 1), "max_hu": p.max_hu, "indices": list(p.indices),
                 "centre": [round(c, 1) for c in p.centre]}
                for p in case.pieces
            ],
            "files": self._store.show_phi,
            "others": [{"reader": r.reader, "state": r.state} for r in others],
            "previous": beside and beside["before"],
            "next": beside and beside["after"],
            **_state(standing),
        }  # fmt: skip


def state_of(reads: list[Read], reader: str) -> set[str]:
    """What a case is for a reader: one of ``not read``, ``begun``, ``read``, and perhaps ``differ``.

    It differs where two have signed different scores, or where a signed one has another risk group than the
    automatic result. What others signed counts only for who has signed himself, or has no name.
    """
    own = next((read for read in reads if read.reader == reader), None)
    if reader:
        first = "not read" if own is None else "read" if own.state == "read" else "begun"
    else:
        states = {read.state for read in reads}
        first = "read" if "read" in states else "begun" if states else "not read"
    known = reads if not reader or (own is not None and own.state != "begun") else []
    differs = differ(known) or any(regrouped(read) for read in known if read.state != "begun")
    return {first, "differ"} if differs else {first}


def _listed(row: tuple[Any, ...], reads: list[Read], reader: str) -> dict[str, Any]:
    uid, patient, description, date, automatic, group = row
    own = next((read for read in reads if read.reader == reader), None)
    open_ = not reader or (own is not None and own.state != "begun")
    return {
        "series_uid": uid,
        "patient_id": patient,
        "series_description": description,
        "study_date": date,
        "automatic": automatic,
        "group": group,
        "states": sorted(state_of(reads, reader)),
        "readers": [
            {
                "reader": read.reader,
                "state": read.state,
                "score": read.score if open_ or read.reader == reader else None,
                "group": None
                if read.score is None or not (open_ or read.reader == reader)
                else int(risk_group(read.score)),
            }
            for read in reads
        ],
    }


def signed_scores(desk: Desk, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For the case table: who has signed which score of a series."""
    return [
        {"reader": read.reader, "score": read.score, "group": int(risk_group(read.score or 0.0)),
         "state": read.state}
        for read in desk.readings_of(row["patient_id"], row["series_uid"])
        if read.state != "begun"
    ]  # fmt: skip


def _state(standing: Standing) -> dict[str, Any]:
    """What a decision changes."""
    case, score = standing.case, standing.score
    named = by_name(case, standing.array)
    journal = standing.journal
    signed = journal.signed
    return {
        "after": standing.after,
        "score": round(score.total, 4),
        "group": int(score.risk_group),
        "group_name": score.risk_group.label,
        "volume_mm3": round(score.volume_mm3, 1),
        "named": {name: round(part.score, 2) for name, part in named.items()},
        "piece_values": piece_values(case, standing.array),
        "holding": len(journal.holding),
        "unsure": int((standing.array == values.UNSURE).any()),
        "torn": journal.torn,
        "signed": [{"time": e.time, "score": e.score, "place": e.place} for e in signed],
        "changed": journal.changed_since,
    }


def _decision(content: dict[str, Any]) -> Decision:
    """A decision of a request.

    Raises:
        Refused: It is none.
    """
    to, piece = content.get("to"), content.get("piece", 0)
    index, runs = content.get("index", -1), content.get("runs", [])
    if not isinstance(to, str) or type(piece) is not int or type(index) is not int:
        raise Refused(
            422, 'a decision is {"piece": 3, "to": "LAD"} or {"index": 40, "runs": […], "to": "LAD"}'
        )
    if not isinstance(runs, list) or len(runs) > MOST_RUNS:
        raise Refused(422, f"a stroke has {MOST_RUNS} rows at most")
    checked = []
    for run in runs:
        fits = (
            isinstance(run, list) and len(run) == 3 and all(type(v) is int and abs(v) < 1 << 16 for v in run)
        )
        if not fits:
            raise Refused(422, "a run is [row, first column, how many]")
        checked.append((run[0], run[1], run[2]))
    if bool(piece) == bool(checked):
        raise Refused(422, "a decision is about one piece or about what is painted")
    return Decision(value=value_of(to), piece=piece, index=index, runs=tuple(checked))


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        Refused: It is none, or too long.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST:
            raise Refused(413, "a decision is not as long as that")
    try:
        content = orjson.loads(bytes(body))
    except orjson.JSONDecodeError as error:
        raise Refused(422, "decisions are taken as JSON") from error
    if not isinstance(content, dict):
        raise Refused(422, "decisions are taken as a JSON object")
    return content


def _reader(request: Request) -> str:
    return request.query_params.get("reader", "")


def _whole(text: str, what: str) -> int:
    if not (text.isdecimal() and len(text) < 9):
        raise Refused(422, f"{what} is a whole number")
    return int(text)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
