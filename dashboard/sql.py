"""The SQL box: one SELECT over the table, in a process of its own that can do nothing else."""

from __future__ import annotations

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
"""A query that takes longer is ended."""
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
    started = time.monotonic()
    try:
        request = {
            "database": str(database),
            "settings": SETTINGS,
            "sql": sql,
            "rows": ROWS,
            "seconds": SECONDS,
            "characters": CHARACTERS,
        }
        done = subprocess.run(
            [sys.executable, "-I", str(_PROGRAM)],
            input=orjson.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"the query took longer than {SECONDS:g} s and was ended; ask for less") from error
    finally:
        _free.release()
    try:
        answer: dict[str, Any] = orjson.loads(done.stdout)
    except orjson.JSONDecodeError as error:
        raise InputError("the query needed more memory or rights than it may have, and was ended") from error
    if "error" in answer:
        raise InputError(answer["error"])
    return {**answer, "seconds": round(time.monotonic() - started, 3)}
