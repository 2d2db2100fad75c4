"""The SQL box: one SELECT over the table, in a process of its own that can do nothing else."""

from __future__ import annotations

import contextlib
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import orjson

from ..errors import InputError
from .table import SETTINGS

SECONDS = 5.0
"""A query that takes longer is ended; it begins when its process has opened the table."""
START_SECONDS = 60.0
"""A process that has not opened the table by then is given up; a busy machine may take several seconds."""
ROWS = 1000
"""Most rows that are given back."""
CHARACTERS = 2_000_000
"""Most text that is given back, all cells together."""
LENGTH = 20_000
"""Longest statement, characters."""
AT_ONCE = 2
"""Queries at the same time; a third one waits."""

_PROGRAM = Path(__file__).with_name("sql_child.py")
_free = threading.BoundedSemaphore(AT_ONCE)


def run_query(database: Path, sql: str) -> dict[str, Any]:
    """Run one SELECT.

    Args:
        database: The file of `table.Results`.
        sql: What the user typed.

    Returns:
        ``columns`` (``name``, ``type``), ``rows`` (lists of JSON values), ``more``: whether there were more
        rows than are given back, ``seconds``.

    Raises:
        InputError: The statement is none that may run, is wrong, takes too long, or needs too much.
    """
    if len(sql) > LENGTH:
        raise InputError(f"the statement is longer than {LENGTH} characters")
    if not _free.acquire(timeout=SECONDS):
        raise InputError("other queries are running; try again in a moment")
    try:
        told, seconds = _ask(database, sql)
    finally:
        _free.release()
    try:
        answer: dict[str, Any] = orjson.loads(told)
    except orjson.JSONDecodeError as error:
        raise InputError("the query needed more memory or rights than it may have, and was ended") from error
    if "error" in answer:
        raise InputError(answer["error"])
    return {**answer, "seconds": round(seconds, 3)}


def _ask(database: Path, sql: str) -> tuple[bytes, float]:
    """What a process of its own says to a statement, and the seconds from handing it over to the answer.

    Raises:
        InputError: The process does not open the table, or the statement takes too long.
    """
    request = {
        "database": str(database),
        "settings": SETTINGS,
        "rows": ROWS,
        "seconds": SECONDS,
        "characters": CHARACTERS,
    }
    with subprocess.Popen(
        [sys.executable, "-I", str(_PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={},
    ) as child:
        try:
            _wait_until_open(child, request)
            started = time.monotonic()
            told, _ = child.communicate(sql.encode(errors="replace"), timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"the query took longer than {SECONDS:g} s and was ended; ask for less"
            ) from error
        finally:
            child.kill()
    return told, time.monotonic() - started


def _wait_until_open(child: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    """Send the request, and wait for the byte by which the process says that it can take the statement."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended; then there is no byte either
        child.stdin.write(orjson.dumps(request) + b"\n")
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        if not selector.select(START_SECONDS):
            raise InputError(
                f"no process for the query was ready within {START_SECONDS:g} s; try again later"
            )
    if not child.stdout.read(1):
        raise InputError("no process for the query could be started or open the table; try again later")
