"""What a run knows on disk: who is at work, what was tried, what is finished.

The finished outputs of a series are the truth (`pipeline.run.finished`), and the table is written from
them. Beside them stands an append-only journal of attempts, so that a series which killed its worker again
and again is set aside instead of stopping every run anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import InputError, InputUnreadable, OutputBusy
from ..system.atomic import output_errors
from ..system.foreign import parse_json

FOLDER = "logs"
"""Locks and journal lie beside the logs: no patient's folder has this name (`pipeline.writing`)."""
JOURNAL = "journal.jsonl"
QUARANTINE_AFTER = 2
"""Workers that a series may kill before it is set aside."""
_LONGEST_LINE = 1 << 20
"""Bytes of a line that are read at once; ours have a few hundred."""
_SYNC_SECONDS = 0.5
"""The journal is flushed to the disk at most this often; a death at once."""


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, numbered from 0: the series whose UID falls there.

    Attributes:
        number, count: As Slurm and Kubernetes number the jobs of an array.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise InputError(f"--shard {self}: i of i/N lies between 0 and N − 1")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``i/N``.

        Raises:
            InputError: It is nothing of the kind.
        """
        number, _, count = text.partition("/")
        if not (number.isdigit() and count.isdigit()):
            raise InputError(f"--shard {text}: write i/N, for example 0/16 for the first of sixteen")
        return cls(int(number), int(count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, series_uid: str) -> bool:
        """Whether a series is in this part: SHA-1 of its UID modulo N, the same everywhere."""
        digest = hashlib.sha1(series_uid.encode(), usedforsecurity=False).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number


def take_lock(path: Path, kind: int) -> IO[str] | None:
    """The open file, locked; None where another process holds it. A killed process holds none."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            return None
        except OSError:
            handle.close()
            raise
    return handle


class OutputLock:
    """The right to write into an output folder: one run alone, or the shards of one split together.

    Attributes:
        shard: The part of the work that this run does; None: all.

    Raises:
        OutputBusy: Another run is at work there.
    """

    def __init__(self, output: Path, shard: Shard | None = None) -> None:
        self._folder = output / FOLDER
        self.shard = shard
        self._held = ExitStack()
        whole = take_lock(self._folder / "run.lock", fcntl.LOCK_EX if shard is None else fcntl.LOCK_SH)
        if whole is None:
            raise OutputBusy(
                f"another run is at work in {output}; wait for it, choose another folder, or split the work "
                "with --shard"
            )
        self._held.enter_context(whole)
        self._own: IO[str] | None = None
        if shard is not None:
            self._own = take_lock(self._path(shard.number), fcntl.LOCK_EX)
            if self._own is None:
                self._held.close()
                raise OutputBusy(f"shard {shard} is at work in {output} already; wait for it")
            self._held.enter_context(self._own)
            if other := self._other_split(shard):
                self._held.close()
                raise OutputBusy(
                    f"a shard of {other} is at work in {output}, and it and shard {shard} would do the same "
                    "series; wait for it, or choose another folder"
                )

    def _path(self, number: int) -> Path:
        count = self.shard.count if self.shard else 0
        return self._folder / f"shard-{number}-of-{count}.lock"

    def _other_split(self, shard: Shard) -> int:
        """The N of a shard i/N of another N that is at work here; 0 where there is none.

        Our own lock is held already, so that of two that begin together at least one sees the other.
        """
        for path in sorted(self._folder.glob("shard-*-of-*.lock")):
            match = re.fullmatch(r"shard-\d+-of-(\d+)\.lock", path.name)
            if match is not None and int(match[1]) != shard.count and _held(path):
                return int(match[1])
        return 0

    def __enter__(self) -> OutputLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    @contextmanager
    def last_one(self) -> Iterator[bool]:
        """Ends this shard's work; whether no other shard is at work, who would write the table after us.

        One shard at a time is in here, so that of two that end together one sees that it is the last.
        """
        if self.shard is None or self._own is None:
            yield True
            return
        path = self._folder / "table.lock"
        with output_errors(path), path.open("a") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            self._own.close()
            others = (self._path(n) for n in range(self.shard.count) if n != self.shard.number)
            yield not any(_held(p) for p in others)


def _held(path: Path) -> bool:
    if not path.exists():
        return False
    handle = take_lock(path, fcntl.LOCK_EX)
    if handle is None:
        return True
    handle.close()
    return False


class Lines:
    """A file of JSON objects, one a line, that is only ever appended to; each gets the time as ``time``.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
            if self._file.tell():
                self._file.write(b"\n")  # a kill may have cut the last line
        self._synced = time.monotonic()

    def add(self, content: dict[str, Any], *, sync: bool = False) -> None:
        """Append a line. It survives a kill; a power cut too: with `sync` at once, else a bit later."""
        line = {"time": round(time.time(), 3), **content}
        now = time.monotonic()
        with output_errors(self.path):
            self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            if sync or now - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = now

    def close(self) -> None:
        """Flush it to the disk."""
        with output_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read_lines(path: Path, *, holding: bytes = b"") -> Iterator[dict[str, Any]]:
    """The objects of such a file whose line holds some bytes; lines that a kill cut are left out.

    Raises:
        OutputUnwritable: It cannot be read.
    """
    with output_errors(path), path.open("rb") as file:
        for line in iter(lambda: file.readline(_LONGEST_LINE), b""):
            if holding in line:
                try:
                    content = parse_json(line, path.name)
                except InputUnreadable:
                    continue
                if isinstance(content, dict):
                    yield content


class Journal:
    """``logs/journal.jsonl``: one line an event, appended; shards have one each.

    Args:
        output: The run's output folder.
        shard: This run's part.
        forget: Begin anew: deaths of earlier runs no longer count.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """

    def __init__(self, output: Path, shard: Shard | None = None, *, forget: bool = False) -> None:
        name = JOURNAL if shard is None else f"journal-{shard.number}-of-{shard.count}.jsonl"
        self.path = output / FOLDER / name
        self.deaths: Counter[str] = Counter() if forget else _deaths(output / FOLDER)
        if forget:
            with output_errors(self.path):
                for old in self.path.parent.glob("journal*.jsonl"):
                    old.unlink()
        self._lines = Lines(self.path)

    def add(self, event: str, series_uid: str, text: str = "") -> None:
        """Write an event: ``started``, ``died`` (with how) or ``settled`` (with its status)."""
        if event == "died":
            self.deaths[series_uid] += 1
        self._lines.add({"event": event, "series": series_uid, "text": text}, sync=event == "died")

    def quarantined(self, series_uid: str) -> bool:
        """Whether the series killed too many workers already."""
        return self.deaths[series_uid] >= QUARANTINE_AFTER

    def close(self) -> None:
        """Flush it to the disk."""
        self._lines.close()


def _deaths(folder: Path) -> Counter[str]:
    """Workers that each series killed, by all journals; lines that a kill cut are left out."""
    deaths: Counter[str] = Counter()
    for path in folder.glob("journal*.jsonl"):
        for event in read_lines(path, holding=b'"died"'):
            deaths[str(event.get("series"))] += event.get("event") == "died"
    return deaths
