"""Who may ask, for what, and which headers every answer has. The only place that decides it.

- The address: loopback only, unless a token is set (`check_address`).
- The ``Host`` header: a name that we know, so that no page elsewhere can point its own name at this machine
  and read along (DNS rebinding).
- The token: in the address once, then in a cookie, or as ``Authorization: Bearer``; compared in constant
  time.
- The method: GET and HEAD, and POST for SQL and, where there is a reading desk, for decisions, from our own
  page only.
- The headers: a strict content security policy (`POLICY`) and those that keep other pages out.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import socket
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import InputError

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "DEEPCAC2_TOKEN"
SHORTEST_TOKEN = 16
COOKIE = "deepcac2"
SQL_PATH = "/api/sql"
REVIEW_PATH = "/api/review/"
"""Beginning of the addresses of the reading desk; what is posted there is written down."""
ADMITTED = "deepcac2.admitted"
"""Set in the state of a request that may pass."""
_WRONG_TOKEN_SECONDS = 0.5
"""How long an answer to a wrong token takes."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Content security policy of every answer that does not bring one of its own; only the viewer's do, which
needs more."""

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_UNLESS_SET = {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}


class Refused(Exception):
    """A request that is answered with a status and one line.

    Args:
        status: HTTP status.
        message: One line without line breaks.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def foreign(status: int, message: str) -> Iterator[None]:
    """Around what is answered out of data from elsewhere: whatever goes wrong with it is one answer.

    Unlike `system.foreign.foreign`, which says what is wrong with a file, it says nothing of the file: the
    answer goes out.

    Raises:
        Refused: With this status and message, whatever was raised within.
        TimeoutError: As it was.
    """
    try:
        yield
    except (Refused, TimeoutError):  # not found yet is not wrong
        raise
    except Exception as error:
        raise Refused(status, message) from error


def every_answer() -> dict[str, str]:
    """The headers of every answer, also of those that the application never sees."""
    return _HEADERS | _UNLESS_SET


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may ask.

    Attributes:
        token: That has to be shown; "" where none is needed.
        hosts: Names in the ``Host`` header that are ours, without port, lower case.
        any_address: Whether an IP address as ``Host`` will do; no foreign name can hide behind one.
        review: Whether there is a reading desk, which takes decisions.
    """

    token: str = ""
    hosts: Collection[str] = ("localhost", "127.0.0.1", "::1")
    any_address: bool = False
    review: bool = False


def check_address(host: str, *, token: str, names: Collection[str] = ()) -> Access:
    """Whether the dashboard may listen at this address.

    Args:
        host: Name or IP address to bind to.
        token: "" where none is set.
        names: Further names under which it is reached, such as a proxy's.

    Raises:
        InputError: The token is too short, or the address is not this machine's own and there is no token.
    """
    if token and len(token) < SHORTEST_TOKEN:
        raise InputError(f"{TOKEN_VARIABLE} is shorter than {SHORTEST_TOKEN} characters; set a longer one")
    address = _as_address(host)
    loopback = host == "localhost" or (address is not None and address.is_loopback)
    if not loopback and not token:
        raise InputError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to a secret of at least "
            f"{SHORTEST_TOKEN} characters first, or leave --host out"
        )
    own = {"localhost", "127.0.0.1", "::1", str(address or host).lower(), *(name.lower() for name in names)}
    if not loopback:
        own |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Access(token=token, hosts=frozenset(own), any_address=not loopback)


class Guard:
    """Middleware around the whole site: lets through what is allowed and puts the headers on every answer.

    What goes wrong in the site beyond what it answers itself ends here: one line in the log, and 500.
    """

    def __init__(self, app: ASGIApp, *, access: Access) -> None:
        self.app, self.access = app, access
        self._cookie = hmac.new(access.token.encode(), b"deepcac2 dashboard", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                for name, value in _UNLESS_SET.items():
                    headers.setdefault(name, value)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            refused = await self._refused(scope)
            if refused is not None:
                await refused(scope, receive, answer)
                return
            scope.setdefault("state", {})[ADMITTED] = True
            await self.app({**scope, "method": "GET"} if head else scope, receive, answer)
        except ClientDisconnect:
            logger.debug("a client went away")
        except Refused as error:
            if started:  # the server cuts it short
                logger.warning("an answer was cut short: %s", error)
            else:
                await PlainTextResponse(f"{error}\n", error.status)(scope, receive, answer)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error(
                "internal error, please report it: %s in %s line %d, answering %r",
                type(error).__name__, Path(place.filename).name, place.lineno, scope["path"][:200],
            )  # fmt: skip
            if not started:  # otherwise the server cuts the answer short
                failed = PlainTextResponse("The dashboard failed to answer this; its log says where.\n", 500)
                await failed(scope, receive, answer)

    async def _refused(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass; None where it may."""
        headers = Headers(scope=scope)
        if not _known_host(headers.get("host", ""), self.access):
            return PlainTextResponse(
                "This name is not one of the dashboard's. Start it with --name NAME to be reached by it.\n",
                421,
            )
        method, path = scope["method"], scope["path"]
        taken = path == SQL_PATH or (self.access.review and path.startswith(REVIEW_PATH))
        posting = method == "POST" and taken
        if method not in ("GET", "HEAD") and not posting:
            return PlainTextResponse("Only GET and HEAD are possible here.\n", 405, {"Allow": "GET, HEAD"})
        if posting and not _from_our_page(headers):
            return PlainTextResponse("This is taken as JSON, from the dashboard's own page only.\n", 403)
        if not self.access.token:
            return None
        return await self._without_token(scope, headers)

    async def _without_token(self, scope: Scope, headers: Headers) -> Response | None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        shown = [value for name, value in query if name == "token"]
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if shown and scope["method"] in ("GET", "HEAD"):
            if _same(shown[0], self.access.token):
                return self._admitted(scope, [pair for pair in query if pair[0] != "token"])
        elif _same(Request(scope).cookies.get(COOKIE, ""), self._cookie) or (
            scheme.lower() == "bearer" and _same(bearer.strip(), self.access.token)
        ):
            return None
        if shown or bearer:
            await asyncio.sleep(_WRONG_TOKEN_SECONDS)
        return PlainTextResponse(
            "This dashboard needs its token: open its address with ?token=… at the end.\n", 401
        )

    def _admitted(self, scope: Scope, query: list[tuple[str, str]]) -> Response:
        """The cookie, and on to the same address without the token in it."""
        place = "/" + scope["path"].lstrip("/\\")  # never another host: //elsewhere
        target = place + (f"?{urlencode(query)}" if query else "")
        response = Response(status_code=303, headers={"Location": target.replace("\r", "").replace("\n", "")})
        response.set_cookie(
            COOKIE, self._cookie, httponly=True, samesite="strict", secure=scope.get("scheme") == "https"
        )
        return response


def _as_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a text is, or None."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _host_of(place: str) -> tuple[str, str] | None:
    """Host name and the whole authority of a URL, both in small letters; None where it is no URL."""
    try:
        parts = urlsplit(place)
    except ValueError:  # brackets that are no address
        return None
    return parts.hostname or "", parts.netloc.lower()


def _known_host(header: str, access: Access) -> bool:
    found = _host_of(f"//{header}")
    if found is None:
        return False
    address = _as_address(found[0])
    return str(address or found[0]) in access.hosts or (address is not None and access.any_address)


def _from_our_page(headers: Mapping[str, str]) -> bool:
    """Whether a POST is of a page of our own origin (or of a program, which sends no ``Origin``)."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    origin = headers.get("origin")
    from_where = None if origin is None else _host_of(origin)
    ours = origin is None or (from_where is not None and from_where[1] == headers.get("host", "").lower())
    return (
        kind == "application/json"
        and ours
        and headers.get("sec-fetch-site", "none") in ("same-origin", "none")
    )


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())
