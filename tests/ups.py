"""A hospital for tests: a worklist that keeps DICOM's rules (UPS-RS), and an archive (QIDO-, WADO-, STOW-RS).

The rules of the worklist are those of PS3.4 annex CC and PS3.18 section 11: which state follows which, who
may change what, what must be known before the end. They are written here from the standard's tables and
share nothing with the program but pydicom.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import uvicorn
from fastapi import FastAPI, Request, Response
from pydicom import Dataset
from pydicom.uid import generate_uid
from starlette.concurrency import run_in_threadpool

JSON = "application/dicom+json"
SET_NEVER = ("SOPClassUID", "SOPInstanceUID", "ProcedureStepState", "PatientID", "PatientName")
"""What N-SET may not change, of table CC.2.5-3."""
DONE = "UnifiedProcedureStepPerformedProcedureSequence"
BEFORE_COMPLETED = (  # final state P
    *("PerformedStationNameCodeSequence", "PerformedProcedureStepStartDateTime"),
    *("PerformedWorkitemCodeSequence", "PerformedProcedureStepEndDateTime", "OutputInformationSequence"),
)
STEP = "ProcedureStepProgressInformationSequence"
BEFORE_CANCELED = (  # final state X
    *("ProcedureStepCancellationDateTime", "ProcedureStepDiscontinuationReasonCodeSequence"),
)


class Hospital:
    """What it holds.

    Attributes:
        items: Workitems by UID, without Transaction UID.
        transactions: Who has them.
        instances: Files by SOPInstanceUID.
        stored: How often each instance came by STOW-RS.
        changed: Those that came with another content than before.
        refused: SOP classes that the archive does not take.
        asked: Method, path and headers of every request.
        before, after: Called with method and path (and after the request has had its effect, too); a number
            is the status to be answered instead.
    """

    def __init__(self) -> None:
        self.items: dict[str, Dataset] = {}
        self.transactions: dict[str, str] = {}
        self.deleted: set[str] = set()
        self.instances: dict[str, bytes] = {}
        self.headers: dict[str, Dataset] = {}
        self.stored: Counter[str] = Counter()
        self.changed: set[str] = set()
        self.refused: set[str] = set()
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.before: Callable[[str, str], int | None] = lambda method, path: None
        self.after: Callable[[str, str], int | None] = lambda method, path: None
        self.knows_keys = True
        self.url = ""
        self._guard = threading.RLock()

    # --- setting up ---------------------------------------------------------------------------------------

    def keep(self, *images: Dataset | Path) -> None:
        """Images for the archive."""
        for image in images:
            if isinstance(image, Path):
                content = image.read_bytes()
            else:
                written = BytesIO()
                image.save_as(written)
                content = written.getvalue()
            self._keep(content)

    def _keep(self, content: bytes) -> str:
        ds = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
        uid = str(ds.SOPInstanceUID)
        self.instances[uid], self.headers[uid] = content, ds
        return uid

    def schedule(self, *inputs: Dataset, patient: str = "", code: str = "CAC", **changes: Any) -> str:
        """A workitem as the Task Requester of AIW-I makes it (table CC.2.5-3, N-CREATE); its UID."""
        ds = Dataset()
        ds.SOPClassUID = "1.2.840.10008.5.1.4.34.6.1"
        ds.SOPInstanceUID = generate_uid()
        ds.ProcedureStepState = "SCHEDULED"
        ds.ScheduledProcedureStepPriority = "MEDIUM"
        ds.ProcedureStepLabel, ds.WorklistLabel = "Calcium score", "AI"
        ds.ScheduledProcedureStepStartDateTime = "20261130120000"
        ds.InputReadinessState = "READY"
        ds.ScheduledWorkitemCodeSequence = [coded(code, "99HOSPITAL", "Calcium score of a chest CT")]
        ds.ScheduledStationNameCodeSequence = []
        ds.PatientID = patient
        ds.InputInformationSequence = list(inputs)
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        self.items[str(ds.SOPInstanceUID)] = ds
        return str(ds.SOPInstanceUID)

    def end(self, uid: str, state: str = "CANCELED") -> None:
        """What an administrator may do at any time (CC.2.1.3)."""
        with self._guard:
            self.items[uid].ProcedureStepState = state

    def state(self, uid: str) -> str:
        return str(self.items[uid].ProcedureStepState)

    # --- the worklist -------------------------------------------------------------------------------------

    def search(self, keys: list[tuple[str, str]]) -> tuple[int, Any]:
        words = {k: v for k, v in keys if k not in ("includefield", "limit", "offset")}
        found = [
            ds
            for ds in self.items.values()
            if not self.knows_keys or all(_has(ds, *w) for w in words.items())
        ]
        found = [ds for ds in found if ds.ProcedureStepState == words.get("ProcedureStepState")]
        start, most = (int(dict(keys).get(k, d)) for k, d in (("offset", 0), ("limit", 50)))
        part = found[start : start + most]
        return (200, [ds.to_json_dict() for ds in part]) if part else (204, None)

    def change_state(self, uid: str, asked: Dataset) -> int:
        if {e.keyword for e in asked} != {"ProcedureStepState", "TransactionUID"}:
            return 400
        wanted, now = asked.ProcedureStepState, self.items[uid].ProcedureStepState
        if wanted not in ("IN PROGRESS", "COMPLETED", "CANCELED"):
            return 400
        if now == "SCHEDULED":
            if wanted != "IN PROGRESS":
                return 409
            self.transactions[uid] = asked.TransactionUID
        elif now == "IN PROGRESS":
            if wanted == now or asked.TransactionUID != self.transactions[uid]:
                return 409
            if not self._may_end(self.items[uid], wanted):
                return 409
        else:
            return 200 if wanted == now else 409  # with a warning
        self.items[uid].ProcedureStepState = wanted
        return 200

    def _may_end(self, ds: Dataset, wanted: str) -> bool:
        name, needed = (DONE, BEFORE_COMPLETED) if wanted == "COMPLETED" else (STEP, BEFORE_CANCELED)
        items = ds.get(name) or []
        return len(items) == 1 and all(k in items[0] for k in needed)

    def update(self, uid: str, query: str, changes: Dataset) -> int:
        now = self.items[uid].ProcedureStepState
        if any(k in changes for k in SET_NEVER):
            return 400
        if now not in ("SCHEDULED", "IN PROGRESS"):
            return 409
        given = {query.split("&")[0], changes.get("TransactionUID", "")}
        if given != ({self.transactions[uid]} if now == "IN PROGRESS" else {""}):
            return 409
        del changes["TransactionUID"]
        self.items[uid].update(changes)
        return 200

    # --- the archive --------------------------------------------------------------------------------------

    def series(self, study: str) -> list[Any]:
        found = {str(h.SeriesInstanceUID): h for h in self.headers.values() if h.StudyInstanceUID == study}
        return [_part(h, "SeriesInstanceUID", "Modality") for h in found.values()]

    def images(self, study: str, series: str) -> list[Any]:
        found = [h for h in self.headers.values() if h.SeriesInstanceUID == series]
        return [_part(h, "SOPInstanceUID") for h in found if h.StudyInstanceUID == study]

    def store(self, body: bytes, kind: str) -> tuple[int, Any]:
        boundary = b"--" + kind.partition("boundary=")[2].encode()
        part = body.split(boundary)[1].partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        ds = pydicom.dcmread(BytesIO(part), stop_before_pixels=True)
        one = {"00081155": {"vr": "UI", "Value": [str(ds.SOPInstanceUID)]}}
        if str(ds.SOPClassUID) in self.refused:
            one["00081197"] = {"vr": "US", "Value": [0x0122]}
            return 409, {"00081198": {"vr": "SQ", "Value": [one]}}
        if self.instances.get(str(ds.SOPInstanceUID), part) != part:
            self.changed.add(str(ds.SOPInstanceUID))
        self.stored[self._keep(part)] += 1
        return 200, {"00081199": {"vr": "SQ", "Value": [one]}}

    # --- HTTP ---------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: str, keys: list[Any], kind: str, body: bytes) -> Response:
        with self._guard:
            status = self.before(method, path)
            if status is None:
                answer = self._answer(method, path.strip("/").split("/"), query, keys, kind, body)
                status = self.after(method, path)
            return answer if status is None else Response(status_code=status)

    def _answer(
        self, method: str, parts: list[str], query: str, keys: list[Any], kind: str, body: bytes
    ) -> Response:
        if parts[0] == "workitems" and len(parts) > 1:
            uid = parts[1]
            if uid not in self.items:
                return Response(status_code=410 if uid in self.deleted else 404)
            if method == "GET":
                return _json(200, self.items[uid].to_json_dict())
            if kind != JSON:
                return Response(status_code=415)
            try:
                said = Dataset.from_json(body.decode())
            except Exception:
                return Response(status_code=400)
            if method == "PUT" and parts[2:] == ["state"]:
                return Response(status_code=self.change_state(uid, said))
            return Response(status_code=self.update(uid, query, said))
        if parts == ["workitems"]:
            return _json(*self.search(keys))
        if parts == ["studies"] and method == "POST":
            return _json(*self.store(body, kind))
        if len(parts) == 3:
            found = self.series(parts[1])
            return _json(200, found) if found else Response(status_code=404)
        if len(parts) == 5:
            return _json(200, self.images(parts[1], parts[3]))
        if len(parts) == 6 and parts[5] in self.instances:
            head = b"--x\r\nContent-Type: application/dicom\r\n\r\n"
            content = head + self.instances[parts[5]] + b"\r\n--x--\r\n"
            kind = 'multipart/related; type="application/dicom"; boundary=x'
            return Response(content, headers={"Content-Type": kind})
        return Response(status_code=404)

    @contextmanager
    def open(self) -> Iterator[Hospital]:
        """At work at `url`, a DICOMweb root."""
        app = FastAPI(openapi_url=None)

        @app.api_route("/dicom-web/{path:path}", methods=["GET", "POST", "PUT", "OPTIONS"])
        async def everything(path: str, request: Request) -> Response:
            body = await request.body()
            self.asked.append((request.method, path, dict(request.headers)))
            kind = request.headers.get("content-type", "")
            keys = request.query_params.multi_items()
            query = request.url.query
            return await run_in_threadpool(self.answer, request.method, path, query, keys, kind, body)

        config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/dicom-web"
        try:
            yield self
        finally:
            server.should_exit = True
            thread.join()


def coded(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def about(images: list[Dataset], *, series: bool = True, instances: bool = True) -> Dataset:
    """An item of an Input Information Sequence: a series with its images, or less."""
    ds = Dataset()
    ds.TypeOfInstances, ds.StudyInstanceUID = "DICOM", images[0].StudyInstanceUID
    if series:
        ds.SeriesInstanceUID = images[0].SeriesInstanceUID
    ds.ReferencedSOPSequence = []
    for image in images if instances else ():
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        ds.ReferencedSOPSequence.append(one)
    return ds


def _has(ds: Dataset, key: str, value: str) -> bool:
    sequence, _, keyword = key.rpartition(".")
    holders = ds.get(sequence) or [] if sequence else [ds]
    return any(str(h.get(keyword, "")) == value for h in holders)


def _part(ds: Dataset, *keywords: str) -> Any:
    part = Dataset()
    for keyword in keywords:
        setattr(part, keyword, ds[keyword].value)
    return part.to_json_dict()


def _json(status: int, content: Any) -> Response:
    import json

    if content is None:
        return Response(status_code=status)
    return Response(json.dumps(content), status_code=status, media_type=JSON)
