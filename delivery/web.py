"""A small web server in a thread: the health page of a node, and its way in for STOW-RS."""

from __future__ import annotations

import re
import socket
import ssl
import threading

import uvicorn
from starlette.types import ASGIApp

from ..errors import InputError


def address_of(text: str, option: str) -> tuple[str, int]:
    """``HOST:PORT``, an IPv6 address in brackets.

    Raises:
        InputError: It is none; `option` names where it was given.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise InputError(
            f"{option}: {text!r} is no HOST:PORT; give one such as 127.0.0.1:11180, or leave it empty"
        )
    return match[1].strip("[]"), int(match[2])


class WebServer:
    """Serves until it is stopped.

    Args:
        app: What it serves.
        address: ``HOST:PORT``.
        option: Where the address was given, for what is said of it.
        tls: How it is encrypted; None: not at all.
        most: Requests at once.

    Attributes:
        port: Where it listens.

    Raises:
        InputError: It cannot listen there.
    """

    def __init__(
        self, app: ASGIApp, address: str, *, option: str, tls: ssl.SSLContext | None = None, most: int = 32
    ) -> None:
        host, port = address_of(address, option)
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.socket(family, kind, protocol)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(place)
            self._socket.listen(128)  # who calls before the thread is there waits for it
        except OSError as error:
            raise InputError(
                f"{option}: cannot listen at {address}: {error.strerror or error}; give another, or none"
            ) from None
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            loop="asyncio",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # what they say of the caller's address is anybody's word
            limit_concurrency=most,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name=option, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()
