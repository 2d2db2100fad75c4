"""How the dashboard is served: limits of connections, deadlines for clients, a log that cannot be flooded.

A client that has not shown the token can only ever cost a connection for `PATIENCE` seconds, and not even
that while others wait: where all places are taken, the connection that has waited longest without a request
that may pass makes room. So a thousand half-sent requests keep nobody out.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import security
from .security import ADMITTED, every_answer

PATIENCE = 10.0
"""Seconds in which a client has to send the header of a request, and again its body, which has 80 kB at most.
Chosen."""
STUCK = 60.0
"""Seconds in which a client has to take some of an answer that waits for it. Chosen."""
_MOST = 256
"""Most connections where the process may open enough files: a browser has six. Chosen."""
_OWN_FILES = 64
"""Files that the process has open beside those of connections: the table, pipes of queries. Chosen."""
_EVERY = 60.0
"""Seconds between two lines of a kind in the log. Chosen."""
_KINDS = 100
"""Kinds of lines that are counted at a time. Chosen."""


def most_connections() -> tuple[int, int]:
    """Most connections, and most of those that wait to be accepted, so that files never run out.

    A connection may have a file open besides. Those accepted at once, as many as may wait, are there for some
    turns of the event loop until they, or others instead of them, are closed again.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST, _MOST // 4
    waiting = max(1, min(_MOST // 4, files // 16))
    return max(8, min(_MOST, (files - 4 * waiting - _OWN_FILES) // 2)), waiting


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn with a limit of connections and with deadlines, which it has none of.

    (Its ``limit_concurrency`` counts connections and refuses requests, also those that may pass, and its
    ``timeout_keep_alive`` begins with the end of the first answer.)
    """

    patience = PATIENCE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take the connection, and close the one that waits longest where there are too many."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._doing: tuple[Any, Any] = (h11.IDLE, None)
        self._stuck: float | None = None
        self._timer = self.loop.call_later(self.patience / 10, self._watch)
        there = [one for one in self.connections if not one.transport.is_closing()]
        if len(there) > most_connections()[0]:
            waiting = [
                one
                for one in there
                if isinstance(one, LimitedProtocol) and one is not self and not one.at_work
            ]
            if waiting:
                min(waiting, key=lambda one: one.since).transport.abort()
            else:
                self._refuse(503, "All connections are in use; try again in a moment.")

    @property
    def at_work(self) -> bool:
        """Whether a request that may pass is being answered."""
        under_way = self.cycle is not None and not self.cycle.response_complete
        return under_way and bool(self.scope["state"].get(ADMITTED))

    def _watch(self) -> None:
        """Close the connection where the client keeps us waiting; look again in a moment."""
        now = self.loop.time()
        doing = (self.conn.their_state, self.cycle)
        if doing != self._doing:
            self._doing, self.since = doing, now
        late = doing[0] in (h11.IDLE, h11.SEND_BODY) and now - self.since > self.patience
        if late or (self._stuck is not None and now - self._stuck > STUCK):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.patience / 10, self._watch)

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        self._stuck = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does."""
        self._stuck = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends, unless the connection is about to be closed."""
        if not self.transport.is_closing():
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; called by uvicorn."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer without the application, if no answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = f"{message}\n".encode()
            reason = {400: "Bad Request", 503: "Service Unavailable"}[status]
            headers = {
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Length": str(len(body)),
                "Connection": "close",
                **every_answer(),
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            self.transport.write(f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode() + body)
        self.transport.close()


class Counted(logging.Filter):
    """Writes a line of a kind once in a while, with how many there were since the last, and each on one line.

    Args:
        every: Seconds between two lines of a kind.
    """

    def __init__(self, every: float = _EVERY) -> None:
        super().__init__()
        self._every = every
        self._seen: dict[tuple[str, str, type | None], tuple[float, int, logging.LogRecord]] = {}
        self._guard = threading.Lock()

    def __len__(self) -> int:
        """Kinds that are counted."""
        return len(self._seen)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it; what is written is shortened to a line."""
        error = record.exc_info[1] if record.exc_info else None
        key = (record.name, _first_line(record.msg), type(error))
        now = time.monotonic()
        with self._guard:
            then, more, first = self._seen.get(key, (-math.inf, 0, record))
            if now - then < self._every:
                self._seen[key] = (then, more + 1, first)
                return False
            if key not in self._seen and len(self._seen) >= _KINDS:
                self._seen.clear()
            why = f": {type(error).__name__}: {error}" if error is not None else ""
            record.msg, record.args, record.exc_info = (
                _first_line(f"{_first_line(record.getMessage())}{why}"),
                (),
                None,
            )
            self._seen[key] = (now, 0, copy(record))
        record.msg += _often(more)
        return True

    def finish(self) -> None:
        """Write what was counted and not yet told."""
        with self._guard:
            left = [(record, more) for _, more, record in self._seen.values() if more]
            self._seen.clear()
        for record, more in left:
            record.msg += _often(more)
            logging.getLogger(record.name).callHandlers(record)


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0]


def _often(more: int) -> str:
    return f" ({more} more since the last such line)" if more else ""


@contextmanager
def counted_log() -> Iterator[None]:
    """The log of the server, its event loop and its answers is `Counted`."""
    loggers = [logging.getLogger("uvicorn.error"), logging.getLogger("asyncio"), security.logger]
    counted = Counted()
    for one in loggers:
        one.addFilter(counted)
    try:
        yield
    finally:
        for one in loggers:
            one.removeFilter(counted)
        counted.finish()


def make_server(app: ASGIApp, protocol: type[LimitedProtocol] = LimitedProtocol) -> uvicorn.Server:
    """A server with these limits; ``run(sockets=[…])`` begins."""
    config = uvicorn.Config(
        app,
        http=protocol,
        loop="asyncio",
        ws="none",
        log_config=None,  # the command line's
        log_level="warning",
        access_log=False,  # an address may hold the token
        server_header=False,
        backlog=most_connections()[1],
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)
