"""What clients can do to the server before, and without, a request that may pass."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.security import Access
from deepcac2.dashboard.server import Counted, LimitedProtocol, counted_log, make_server
from deepcac2.pipeline.results import ResultRow, write_parquet

TOKEN = "a secret of many words"
HALF = b"GET /api/about HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: "
SHOWN = f"Host: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
HALF_BODY = b"POST /api/sql HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n%s\r\n{"


class Quick(LimitedProtocol):
    """With deadlines that a test can wait for."""

    patience = 1.5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    row = ResultRow(patient_id="P", study_uid="1", series_uid="1.1", status="scored")
    write_parquet(folder / "results.parquet", [row])
    return folder


@pytest.fixture(scope="module")
def start(small: Path) -> Iterator[Callable[[type[LimitedProtocol]], int]]:
    """Starts the server in a thread; returns its port."""
    with contextlib.ExitStack() as stack:

        def begin(protocol: type[LimitedProtocol]) -> int:
            listening = stack.enter_context(socket.socket())
            listening.bind(("127.0.0.1", 0))
            server = make_server(create_app(small, access=Access(token=TOKEN)), protocol)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            stack.callback(thread.join, 10)
            stack.callback(setattr, server, "should_exit", True)
            thread.start()
            while not server.started:
                time.sleep(0.01)
            return int(listening.getsockname()[1])

        yield begin


@pytest.fixture(scope="module")
def port(start: Callable[[type[LimitedProtocol]], int]) -> int:
    return start(LimitedProtocol)


@pytest.fixture(scope="module")
def quick(start: Callable[[type[LimitedProtocol]], int]) -> int:
    return start(Quick)


@pytest.fixture
def clients() -> Iterator[Callable[[int, bytes], socket.socket]]:
    """Opens connections and sends something."""
    with contextlib.ExitStack() as stack:

        def connect(port: int, sent: bytes) -> socket.socket:
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            with contextlib.suppress(OSError):
                one.sendall(sent)
            return one

        yield connect


def _open(one: socket.socket) -> bool:
    """Whether the server has not closed it, whatever it has answered."""
    one.setblocking(False)
    try:
        while one.recv(65536):
            pass
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    """Wait for it; a minute is far more than a slow machine needs."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _about(port: int) -> dict[str, object]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/about", headers={"Authorization": f"Bearer {TOKEN}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: dict[str, object] = json.loads(answer.read())
    return content


def _answer(one: socket.socket) -> tuple[int, dict[str, str]]:
    """Status and headers, all that is sent being read."""
    one.settimeout(60)
    text = b"".join(iter(lambda: one.recv(65536), b"")).decode("latin-1")
    first, *lines = text.partition("\r\n\r\n")[0].split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers


def test_a_thousand_half_sent_requests_keep_nobody_out(
    port: int, clients: Callable[[int, bytes], socket.socket]
) -> None:
    """In full size: 1,100 of them, and the log grew by 49 MB in a minute."""
    many = [clients(port, HALF) for _ in range(300)]
    assert _about(port)["version"]
    _until(lambda: sum(map(_open, many)) <= 256)
    assert _open(many[-1])  # those that waited longest made room
    assert not _open(many[0])


def test_what_is_sent_half_ends(quick: int, clients: Callable[[int, bytes], socket.socket]) -> None:
    """Header and body, with and without the token, and also where it is sent byte by byte."""
    silent = [
        clients(quick, b""),
        clients(quick, HALF),
        clients(quick, HALF_BODY % b"Host: 127.0.0.1\r\n"),
        clients(quick, HALF_BODY % SHOWN),
    ]
    slow = [clients(quick, HALF), clients(quick, HALF_BODY % SHOWN)]

    def closed() -> bool:
        for one in slow:
            with contextlib.suppress(OSError):
                one.send(b"x")
        return not any(map(_open, (*silent, *slow)))

    _until(closed)


def test_a_client_in_time_keeps_its_connection(
    quick: int, clients: Callable[[int, bytes], socket.socket]
) -> None:
    """The deadline is of each request, not of the connection."""
    one = clients(quick, b"")
    for _ in range(4):
        time.sleep(0.4)
        one.sendall(b"GET /api/about HTTP/1.1\r\n" + SHOWN + b"\r\n")
        assert one.recv(13) == b"HTTP/1.1 200 "
        time.sleep(0.1)
        assert _open(one)
        one.settimeout(60)


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\1\2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 70_000,
        b"POST /api/sql HTTP/1.1\r\nContent-Length: -1\r\nHost: 127.0.0.1\r\n\r\n",
        HALF_BODY.replace(b"Content-Length: 50", b"Transfer-Encoding: chunked") % SHOWN
        + b"\r\nno chunk\r\n\r\n",
    ],
)
def test_what_is_no_http(port: int, clients: Callable[[int, bytes], socket.socket], sent: bytes) -> None:
    """An answer with the headers of every other, and one line in the log for any number of them."""
    lines = _Lines()
    with counted_log(), lines.of("uvicorn.error", "asyncio"):
        status, headers = _answer(clients(port, sent))
        for _ in range(20):
            clients(port, sent + b"\r\n" + sent)
        assert _about(port)["version"]
    assert status == 400
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert len(lines.found) == len(set(lines.found)) <= 1


def test_clients_that_go_away_leave_no_trace(
    port: int, clients: Callable[[int, bytes], socket.socket]
) -> None:
    lines = _Lines()
    with counted_log(), lines.of("uvicorn.error", "asyncio", "deepcac2"):
        for sent in (
            b"GET /api/about HTTP/1.1\r\n" + SHOWN + b"\r\n",
            b"GET /api/export.csv HTTP/1.1\r\n" + SHOWN + b"\r\n",
            HALF_BODY % SHOWN,
            b"HEAD / HTTP/1.1\r\n" + SHOWN + b"\r\n" * 2 + b"GET",
        ):
            for how in (b"\1\0\0\0\0\0\0\0", b"\0" * 8):  # with a reset, and without
                one = clients(port, sent)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)
                one.close()
        time.sleep(0.3)
        assert _about(port)["version"]
    assert lines.found == []


class _Lines(logging.Handler):
    """What would be written."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []
        self.setFormatter(logging.Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))

    @contextlib.contextmanager
    def of(self, *names: str) -> Iterator[None]:
        for name in names:
            logging.getLogger(name).addHandler(self)
        try:
            yield
        finally:
            for name in names:
                logging.getLogger(name).removeHandler(self)


def test_lines_that_come_again_are_counted() -> None:
    log, lines, counted = logging.getLogger("deepcac2.counted"), _Lines(), Counted()
    log.propagate = False
    log.addHandler(lines)
    log.addFilter(counted)

    def fail(number: int) -> None:
        try:
            raise RuntimeError(f"{number} are too many\nfiles")
        except RuntimeError:
            log.exception("accept of <socket %d> failed\nsocket: %d", number, number)

    for number in range(5000):
        fail(number)
    log.warning("another")
    counted.finish()
    fail(1)
    counted.finish()
    assert len(lines.found) == 4
    assert lines.found[0] == "accept of <socket 0> failed: RuntimeError: 0 are too many"
    assert lines.found[1] == "another"
    assert lines.found[2].endswith("0 are too many (4999 more since the last such line)")
    assert lines.found[3] == "accept of <socket 1> failed: RuntimeError: 1 are too many"
    assert not any("\n" in line for line in lines.found)
    for number in range(5000):  # kinds without end
        log.warning(f"kind {number}")
    assert len(counted) <= 100
    log.removeFilter(counted)
    log.addFilter(Counted(every=0))
    lines.found.clear()
    fail(1)
    fail(2)
    assert len(lines.found) == 2


@pytest.mark.slow
def test_files_do_not_run_out(small: Path, clients: Callable[[int, bytes], socket.socket]) -> None:
    """The whole program with 256 files, and 200 half-sent requests; then every place taken by who may."""
    server = subprocess.Popen(
        [sys.executable, "-m", "deepcac2", "dashboard", str(small), "--port", "0"],
        env={**os.environ, "DEEPCAC2_TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    try:
        assert server.stderr is not None
        port = int(server.stderr.readline().partition("127.0.0.1:")[2].partition("/")[0])
        many = [socket.socket() for _ in range(200)]
        for one in many:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert _about(port)["version"]
        assert len(os.listdir(f"/proc/{server.pid}/fd")) < 100  # noqa: PTH208
        for one in many:
            with contextlib.suppress(OSError):
                one.send(HALF)
        assert _about(port)["version"]
        for one in many:
            one.close()
        working = [clients(port, HALF_BODY % SHOWN) for _ in range(64)]
        time.sleep(0.3)
        status, headers = _answer(clients(port, b""))
        assert status == 503
        assert headers["x-frame-options"] == "deny"
        assert all(map(_open, working))
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[1]
    assert rest.count("\n") <= 3
    assert "Traceback" not in rest
