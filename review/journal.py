"""What one reader decided on one case: a file of JSON lines that is only ever appended to.

Each decision has a number, a time, the reader, and what was and what is to be. Nothing is taken back: an undo
is a decision of its own. A decision is acknowledged only when it lies on the disk. A kill in the middle of
writing leaves half a line, which was never acknowledged: it is left out and counted (`Journal.torn`).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from ..errors import InputDamaged, InputError, InputUnreadable, OutputBusy
from ..system.atomic import on_disk, output_errors
from ..system.codec import from_plain, to_plain
from ..system.foreign import parse_json, read_bytes

LARGEST = 64 << 20
"""Bytes of a journal that is read; chosen: a decision has some hundred, a stroke some thousand."""
MOST_RUNS = 4000
"""Of a stroke of the brush; chosen: the rows of several large strokes."""
ENDING = ".jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of a journal.

    Attributes:
        n: From 1, without gaps.
        time: ISO 8601, UTC.
        by: The reader.
        do: ``open``: the case is read for the first time; ``set``: a piece gets a value; ``paint``: voxels
            do; ``undo``: a decision before no longer holds; ``sign``: the reading is written.
        before: Voxels by the name of the value that they had (``set``, ``paint``).
        to: Name of the value that they get, see `values`.
        piece: Number of the piece; 0: none.
        index: Index of the slice that was painted in, 0 at the lowest; -1: none.
        runs: (row, first column, how many) of painted voxels, as the slice is shown whole.
        of: Number of the decision that is undone; 0: none.
        score: Of the reading after it.
        series, study, patient, digest, automatic: Of an ``open``: UIDs and PatientID of the CT,
            `ReadCase.digest`, and the score of the automatic result.
        place, seg, report: Of a ``sign``: folder of what was written, SOPInstanceUIDs of SEG and SR.
    """

    n: int
    time: str
    by: str
    do: Literal["open", "set", "paint", "undo", "sign"]
    before: dict[str, int] = field(default_factory=dict)
    to: str = ""
    piece: int = 0
    index: int = -1
    runs: tuple[tuple[int, int, int], ...] = ()
    of: int = 0
    score: float | None = None
    series: str = ""
    study: str = ""
    patient: str = ""
    digest: str = ""
    automatic: float | None = None
    place: str = ""
    seg: str = ""
    report: str = ""

    @property
    def line(self) -> bytes:
        """As it stands in the file: what is as usual is left out, `before` is called ``from``."""
        plain = to_plain(self)
        usual = {"before": {}, "piece": 0, "index": -1, "runs": (), "of": 0, "score": None, "automatic": None}
        usual |= dict.fromkeys(("series", "study", "patient", "digest", "place", "seg", "report"), "")
        kept = {k: v for k, v in plain.items() if k not in usual or v != usual[k]}
        if self.do not in ("set", "paint"):
            del kept["to"]
        if "before" in kept:
            kept["from"] = kept.pop("before")
        return json.dumps(kept, ensure_ascii=False).encode() + b"\n"


class Conflict(InputError):
    """The journal has gone on since: somebody else, or another window, has decided under the same name."""

    code = "input"


def now() -> datetime:
    """The time, UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


@dataclass(frozen=True, kw_only=True)
class Journal:
    """The entries of a file.

    Attributes:
        path: The file.
        entries: In order.
        torn: Lines that a kill has cut, which were never acknowledged.
    """

    path: Path
    entries: tuple[Entry, ...] = ()
    torn: int = 0

    @property
    def holding(self) -> tuple[Entry, ...]:
        """The decisions that hold, in order: those not undone."""
        undone = {entry.of for entry in self.entries if entry.do == "undo"}
        return tuple(e for e in self.entries if e.do in ("set", "paint") and e.n not in undone)

    @property
    def signed(self) -> tuple[Entry, ...]:
        """The signatures."""
        return tuple(entry for entry in self.entries if entry.do == "sign")

    @property
    def changed_since(self) -> bool:
        """Whether something was decided after the last signature."""
        return bool(self.entries) and self.entries[-1].do in ("set", "paint", "undo")


def read_journal(path: Path) -> Journal:
    """The journal in a file; without a file, an empty one.

    Raises:
        InputDamaged: Lines are missing or are no decisions: more than a kill can have done.
        InputUnreadable: It cannot be read.
    """
    if not path.exists():
        return Journal(path=path)
    entries: list[Entry] = []
    torn = 0
    for line in read_bytes(path, most=LARGEST, advice="restore it from a copy").split(b"\n"):
        if not line.strip():
            continue
        try:
            content = parse_json(line, path.name)
        except InputUnreadable:
            torn += 1
            continue
        entry = _entry(content, path, len(entries) + 1)
        entries.append(entry)
    return Journal(path=path, entries=tuple(entries), torn=torn)


def _entry(content: Any, path: Path, expected: int) -> Entry:
    where = f"{path}, decision {expected}"
    if not isinstance(content, dict):
        raise InputDamaged(f"{where}: it is none; restore the file from a copy")
    content = dict(content)
    if "from" in content:
        content["before"] = content.pop("from")
    entry = from_plain(Entry, content, where=where, error=InputDamaged)
    if entry.n != expected:
        raise InputDamaged(f"{where}: it says to be number {entry.n}; restore the file from a copy")
    return entry


@contextmanager
def appending(path: Path) -> Iterator[tuple[Journal, Callable[[Mapping[str, Any]], Entry]]]:
    """The journal, with the right to add to it: one process and one thread at a time.

    Yields:
        The journal as it is, and a function that appends an entry (its `n` and `time` are set here) and
        returns when it lies on the disk.

    Raises:
        OutputBusy: Another process holds it for long.
        InputDamaged, InputUnreadable: See `read_journal`.
        DiskFull, OutputUnwritable: It cannot be written.
    """
    with output_errors(path):
        fresh = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    try:
        _lock(handle, path)
        if fresh:
            with output_errors(path):
                on_disk(path.parent)
        journal = read_journal(path)
        count = len(journal.entries)

        def add(content: Mapping[str, Any]) -> Entry:
            nonlocal count
            entry = Entry(n=count + 1, time=now().isoformat(), **content)
            with output_errors(path):
                size = os.fstat(handle).st_size
                torn = size and os.pread(handle, 1, size - 1) != b"\n"
                data = (b"\n" if torn else b"") + entry.line
                while data:
                    data = data[os.write(handle, data) :]
                os.fsync(handle)
            count += 1
            return entry

        yield journal, add
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    """Wait for the lock, some seconds at most."""
    import time

    until = time.monotonic() + 10
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise OutputBusy(f"{path.name} is being written by somebody else; try again") from error
            time.sleep(0.02)
