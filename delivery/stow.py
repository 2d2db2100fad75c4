"""The way in over the web: STOW-RS (PS3.18 10.5), for senders that speak no DIMSE.

A request is what an association is to `listening`: what it brings goes into the inbox image by image, while
it comes, and how it ended is noted before its sender is told. The same is looked at before a byte of the body
is read: who calls, and whether there is room.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as WaitedTooLong
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..errors import InputError
from .inbox import FAILED, SUCCESS, Answer, Inbox
from .listening import THIS_MACHINE, Listen, server_tls
from .multipart import NotMultipart, parts
from .sending import Credentials, is_here, media_type
from .transfer import Transfer
from .web import WebServer, address_of

log = logging.getLogger(__name__)

ROOT = "/dicom-web"
"""Where the service lies."""
_OPTION = "stow"
_VARIABLES = "DEEPCAC2_STOW"
_BROKEN = (ClientDisconnect, WaitedTooLong, CancelledError)
"""What a request that ends before its end looks like."""
_AGAIN = {"Retry-After": "60"}


class Stow:
    """Takes what is sent to ``/dicom-web/studies`` until it is stopped.

    Args:
        address: ``HOST:PORT``.
        listen: Who may call (by address; there are no titles here), certificates, limits of a transfer.
        inbox: Where instances go.
        environment: Holds what callers have to know, ``DEEPCAC2_STOW_TOKEN``, or ``…_USER`` and
            ``…_PASSWORD``; without these nobody is asked.

    Attributes:
        counts: What was received and turned away, as `Listener.counts`.
        url: Of the service.

    Raises:
        InputError: It cannot listen there; or others than this machine could send to it unseen or unasked.
    """

    def __init__(self, address: str, listen: Listen, inbox: Inbox, environment: Mapping[str, str]) -> None:
        self._inbox, self._listen = inbox, listen
        self._peers = listen.peers or THIS_MACHINE
        self._known = Credentials.of(environment, variables=_VARIABLES).header
        self.counts: Counter[str] = Counter()
        self._transfers: list[Transfer] = []
        self._guard = threading.Lock()
        host, _ = address_of(address, _OPTION)
        if not is_here(host) and not (listen.certificate and (listen.ca or self._known)):
            raise InputError(
                f"{_OPTION}: other machines could send here: give a certificate, and ca or {_VARIABLES}_USER "
                f"and {_VARIABLES}_PASSWORD in the environment; or listen at 127.0.0.1 behind a proxy"
            )
        path = f"{ROOT}/studies"
        app = Starlette(
            routes=[
                Route(path, self._posted, methods=["POST"]),
                Route(path + "/{study}", self._posted, methods=["POST"]),
            ]
        )
        tls = server_tls(listen)
        self._server = WebServer(app, address, option=_OPTION, tls=tls, most=listen.associations)
        self.port = self._server.port
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'http' if tls is None else 'https'}://{shown}:{self.port}{ROOT}"

    def stop(self) -> None:
        """Take nothing any more; what is under way is cut off, and that is noted."""
        self._server.stop()
        until = time.monotonic() + 5
        while self.at_work() and time.monotonic() < until:
            time.sleep(0.05)

    def at_work(self) -> set[str]:
        """The series of which a request that is under way has brought something."""
        with self._guard:
            return {uid for transfer in self._transfers for uid in transfer.series}

    async def _posted(self, request: Request) -> Response:
        refusal = self._turned_away(request)
        if refusal is not None:
            return refusal
        if not self._inbox.room_for(0):
            return _said(503, "the disk is nearly full; send it again later", _AGAIN)
        transfer = Transfer()
        body = _Body(request.stream(), transfer, self._listen, self._inbox.limits.instance_mb)
        return await run_in_threadpool(
            self._take, transfer, body, request.headers.get("content-type", ""), request.path_params
        )

    def _turned_away(self, request: Request) -> Response | None:
        """The answer to who may not call, or calls for something else; None: it may."""
        host = request.client.host if request.client else ""
        if not any(peer.calls_from(host) for peer in self._peers):
            return self._refused("address", host, 403, "this address may not send here")
        if request.headers.get("origin") is not None:  # a page in somebody's browser
            return self._refused("browser", host, 403, "pages of browsers may not send here")
        if self._known:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), self._known.encode()):
                kind = self._known.partition(" ")[0]
                answer = self._refused("credentials", host, 401, "sign in first")
                answer.headers["WWW-Authenticate"] = f'{kind} realm="deepcac2"'
                return answer
        if media_type(request) != "multipart/related":
            return _said(415, 'send multipart/related; type="application/dicom"')
        return None

    def _refused(self, why: str, host: str, status: int, text: str) -> Response:
        self.counts[f"turned_away_{why}"] += 1
        log.warning("turned away a request from %s (%s)", host, why)
        return _said(status, text)

    def _take(self, transfer: Transfer, body: _Body, content_type: str, path: Mapping[str, str]) -> Response:
        """Take what a request brings, part by part; in a thread of its own."""
        stored: list[tuple[str, str]] = []
        failed: list[tuple[str, str, int]] = []
        with self._guard:
            self._transfers.append(transfer)
        whole, problem = False, _said(400, "the request broke off")
        try:
            for part in parts(iter(body), content_type):
                if part.kind not in ("application/dicom", ""):
                    problem = _said(415, "a part is not application/dicom")
                    transfer.flaw = True
                    break
                sop_class, uid, answer = self._one(part.content, path.get("study", ""))
                transfer.answered(uid, answer, self._inbox, self.counts)
                if answer.status == SUCCESS:
                    stored.append((sop_class, uid))
                else:
                    failed.append((sop_class, uid, answer.status))
                body.begin()
            else:
                whole = True
        except NotMultipart as error:
            problem = _said(400, f"the request {error}")
        except _TooLarge:
            self.counts["too_large"] += 1
            transfer.flaw, problem = True, _said(413, "an instance is larger than it may be")
        except _BROKEN:
            log.warning("a request broke off")
        finally:
            ending = transfer.endings(whole)
            self.counts["bytes"] += transfer.bytes
            if ending:
                self._inbox.ended(ending)
            with self._guard:
                self._transfers.remove(transfer)
        if not whole:
            problem.headers["Connection"] = "close"
            return problem
        if not stored and not failed:
            return _said(400, "the request holds no instance")
        status = 200 if not failed else 202 if stored else 409
        return Response(_told(stored, failed), status_code=status, media_type="application/dicom+json")

    def _one(self, content: Iterator[bytes], study: str) -> tuple[str, str, Answer]:
        """Take one instance: its class and UID as it says, "" where it does not, and what became of it."""
        try:
            return self._inbox.receive_file(content, study=study)
        except (NotMultipart, _TooLarge, *_BROKEN):
            raise
        except Exception as error:  # whatever it is: the sender is told that it has to keep it
            log.error("an instance was not stored: %s", type(error).__name__)
            return "", "", Answer(status=FAILED, why="unforeseen")


class _TooLarge(Exception):
    """A part is larger than an instance may be."""


class _Body:
    """The body of a request for a thread that waits for it, with the limits of a transfer."""

    def __init__(
        self, stream: AsyncIterator[bytes], transfer: Transfer, listen: Listen, instance_mb: float
    ) -> None:
        self._stream, self._transfer, self._listen = stream, transfer, listen
        self._most, self._since = instance_mb * 1e6 + (1 << 20), 0
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Another instance begins."""
        self._since = 0

    async def _next(self) -> bytes:
        async for block in self._stream:
            if block:
                return block
        return b""

    def __iter__(self) -> Iterator[bytes]:
        while True:
            asked = asyncio.run_coroutine_threadsafe(self._next(), self._loop)
            try:
                block = asked.result(self._listen.idle)
            except WaitedTooLong:
                asked.cancel()
                raise
            if not block:
                return
            self._transfer.bytes += len(block)
            self._since += len(block)
            if self._since > self._most:
                raise _TooLarge
            self._transfer.slowed(self._listen.rate_mb)
            yield block


def _said(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(text + "\n", status_code=status, headers=headers)


def _told(stored: list[tuple[str, str]], failed: list[tuple[str, str, int]]) -> str:
    """The answer to a request, PS3.18 table 10.5.3-1 (DICOM JSON)."""

    def value(vr: str, *values: Any) -> dict[str, Any]:
        return {"vr": vr, "Value": list(values)} if values != ("",) else {"vr": vr}

    def named(sop_class: str, uid: str) -> dict[str, Any]:
        return {"00081150": value("UI", sop_class), "00081155": value("UI", uid)}

    answer: dict[str, Any] = {"00081190": {"vr": "UR"}}
    if stored:
        items = [named(*one) | {"00081190": {"vr": "UR"}} for one in stored]
        answer["00081199"] = value("SQ", *items)
    if failed:
        items = [named(c, uid) | {"00081197": value("US", why)} for c, uid, why in failed]
        answer["00081198"] = value("SQ", *items)
    return json.dumps(answer)
