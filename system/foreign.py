"""The doors through which data from outside comes in: JSON, YAML, and whatever else a library takes apart.

A parser meets a file from elsewhere with a long and changing list of errors (a `RecursionError` of nested
brackets, a `UnicodeDecodeError`, a `MemoryError`, its own). Here all of them become one of ours, once, at the
place where the data enters.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import DeepCACError, InputUnreadable

MAX_JSON = 64 << 20
"""Bytes of a JSON file that are read at most; chosen: a ``run.json`` with 900,000 missing series has as many,
and the emptiest objects take 25 times their text in memory."""
MAX_YAML = 1 << 18
"""Bytes of a YAML file that are read at most; chosen: the longest workflow has a few thousand."""
_MOST_LEVELS = 50
"""Of a YAML text; chosen: a workflow has six."""
_MOST_NODES = 100_000
"""Of a YAML text, its aliases written out; chosen: the longest recipe has some 200."""
_REASON = 160
"""Characters of a library's own words that a message repeats at most; chosen."""


@contextmanager
def foreign(
    what: str,
    *,
    error: type[DeepCACError] = InputUnreadable,
    fault: str = "cannot be read",
    advice: str = "",
) -> Iterator[None]:
    """Around a library that takes apart what came from outside: whatever it raises is one error of ours.

    Args:
        what: What is read, for the message: ``"{what} cannot be read (…)"``.
        error: Class of the error.
        fault: What is wrong with it, for the message.
        advice: What to do, after a semicolon; "" where nothing can be done.

    Raises:
        DeepCACError: Of the class `error`; errors that are ours already pass.
    """
    try:
        yield
    except DeepCACError:
        raise
    except Exception as cause:  # no library says what it raises on what it was never meant to read
        raise error(f"{what} {fault} ({reason(cause)}){advice and f'; {advice}'}") from cause


def reason(error: BaseException) -> str:
    """An error in a few words of one line, such as ``KeyError: 'labels'``.

    >>> reason(KeyError("labels")), reason(RecursionError()), reason(OSError(2, "No such file", "x"))
    ("KeyError: 'labels'", 'RecursionError', 'No such file')
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, ValueError) and first:
        return first[:_REASON]
    return f"{type(error).__name__}: {first[:_REASON]}" if first else type(error).__name__


def parse_json(
    data: bytes | str, what: str, *, error: type[DeepCACError] = InputUnreadable, advice: str = ""
) -> Any:
    """The content of a JSON text from outside.

    Stricter than the standard library: UTF-8 alone, no NaN, no number that a float cannot hold, no half of a
    surrogate pair, at most 1024 levels.

    Args:
        what: What it is, for the message.
        error: Class of the error.
        advice: See `foreign`.

    Raises:
        DeepCACError: Of the class `error`: it is no such JSON.

    >>> parse_json(b"[" * 100_000, "an answer")
    Traceback (most recent call last):
    ...
    deepcac2.errors.InputUnreadable: an answer is no JSON that can be read (depth limit exceeded: line 1
    column 1026 (char 1025))
    """
    import orjson

    with foreign(what, error=error, fault="is no JSON that can be read", advice=advice):
        return orjson.loads(data)


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read. A pipe or a device is not opened, and never waited for.

    Raises:
        OSError: It is not there, may not be read, or is no regular file.
    """
    _check_regular(path.stat())
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    try:
        _check_regular(os.fstat(file.fileno()))  # it may have been replaced
    except OSError:
        file.close()
        raise
    return file


def _check_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_bytes(
    path: Path, *, most: int = MAX_JSON, error: type[DeepCACError] = InputUnreadable, advice: str = ""
) -> bytes:
    """The content of a regular file of limited size; see `open_regular`.

    Args:
        most: Bytes that it may have.
        error: Class of the error.
        advice: See `foreign`.

    Raises:
        DeepCACError: Of the class `error`: it is not there, cannot be read, is no regular file or too large.
    """
    with foreign(str(path), error=error, advice=advice):
        with open_regular(path) as file:
            data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)  # room is made for as many
        if len(data) > most:
            raise ValueError(f"it is larger than {most >> 20} MB")
        return data


def read_json(
    path: Path, *, most: int = MAX_JSON, error: type[DeepCACError] = InputUnreadable, advice: str = ""
) -> Any:
    """The content of a JSON file from outside; see `parse_json` and `read_bytes`.

    Raises:
        DeepCACError: Of the class `error`.
    """
    data = read_bytes(path, most=most, error=error, advice=advice)
    return parse_json(data, str(path), error=error, advice=advice)


def read_head(path: Path, count: int) -> bytes:
    """The first bytes of a regular file, as many as it has; see `open_regular`.

    Raises:
        InputUnreadable: It is not there, cannot be read, or is no regular file.
    """
    with foreign(str(path)), open_regular(path) as file:
        return file.read(count)


def parse_yaml(data: bytes | str, what: str, *, error: type[DeepCACError] = InputUnreadable) -> Any:
    """The content of a YAML text from outside: plain values. Its aliases are counted as if written out.

    Raises:
        DeepCACError: Of the class `error`: it is no such YAML.

    >>> parse_yaml("a: &x [1]\\nb: *x", "a recipe")
    {'a': [1], 'b': [1]}
    >>> parse_yaml("&x [*x]", "a recipe")
    Traceback (most recent call last):
    ...
    deepcac2.errors.InputUnreadable: a recipe is not valid YAML (something in it holds itself)
    """
    import yaml

    with foreign(what, error=error, fault="is not valid YAML"):
        if len(data) > MAX_YAML:
            raise ValueError(f"it is larger than {MAX_YAML >> 10} kB")
        depth = 0
        for event in yaml.parse(data, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MOST_LEVELS:  # here, as each token within n brackets takes a time of n
                raise ValueError(f"it has more than {_MOST_LEVELS} levels")
        count, levels = _written_out(yaml.compose(data, Loader=yaml.SafeLoader), {})
        if count > _MOST_NODES or levels > _MOST_LEVELS:
            raise ValueError(f"its aliases written out, it has {count} values in {levels} levels")
        return yaml.safe_load(data)


def _written_out(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values and containers below a node of YAML, what aliases refer to counted each time; and its levels."""
    import yaml

    if not isinstance(node, yaml.CollectionNode):
        return 1, 0
    if id(node) not in known:
        known[id(node)] = 0, 0  # not known yet
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        below = [_written_out(part, known) for part in parts]
        known[id(node)] = 1 + sum(n for n, _ in below), 1 + max((levels for _, levels in below), default=0)
    if not known[id(node)][0]:
        raise ValueError("something in it holds itself")
    return known[id(node)]
