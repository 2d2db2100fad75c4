"""Sending the results of a run to another system, going on where an earlier call stopped.

What the other side has acknowledged is noted in a journal beside the run's own, one a destination. An
instance that is noted with the content it has now is not sent again.
"""

from __future__ import annotations

import fcntl
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..batch.ledger import FOLDER, Lines, read_lines, take_lock
from ..dicom import Series, SliceRef, chosen, discover, safe_name
from ..errors import (
    InputDamaged,
    InputError,
    InputUnreadable,
    NotDeidentified,
    OutputBusy,
)
from ..pipeline.places import PARQUET
from ..pipeline.results import read_parquet, series_folder
from ..pipeline.run import stored_row
from ..system.foreign import foreign
from ..system.hashing import sha256_of
from ..system.inside import regular_inside
from .preparing import AS_IT_IS, Preparation
from .sending import ALREADY_THERE, Destination, file_of, tried

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that was not sent.

    Attributes:
        series_uid: Of the CT.
        instance_uid: SOPInstanceUID, "" where it is about the whole series or unknown.
        reason: One sentence for the user, without names or IDs of patients.
    """

    series_uid: str
    instance_uid: str = ""
    reason: str


@dataclass(kw_only=True)
class PushSummary:
    """What a push ended with.

    Attributes:
        journal: Where it is noted.
        series: Scored series that were asked for.
        sent, present, problems: Instances taken now, there already (sent by an earlier call, or the
            destination says so), and not taken.
        left_out: Instances that are not for this destination, by `Preparation.left_out`.
        not_scored: Series that were asked for and are not among the scored ones.
    """

    journal: Path
    series: int
    sent: int = 0
    present: int = 0
    problems: int = 0
    left_out: int = 0
    not_scored: int = 0


class PushJournal:
    """``logs/push-<destination>.jsonl``: a line for every instance that the destination acknowledged.

    A line holds the UIDs, the SHA-256 of what was sent, and size and time of change of its file, by which a
    later call sees without reading it that it is the same. What an earlier call noted lies in a temporary
    database, so that memory does not grow with it.

    Args:
        results: The results folder.
        name: Of the destination.

    Attributes:
        without_patients: Whether the destination got something without its patient before.

    Raises:
        OutputBusy: Another process is sending to this destination from here.
        InputUnreadable: What has its name is no regular file inside the results.
        DiskFull, OutputUnwritable: It cannot be written.
    """

    def __init__(self, results: Path, name: str) -> None:
        self.path = results / FOLDER / f"push-{safe_name(name)}.jsonl"
        if self.path.exists():
            regular_inside(self.path, results)
        lock = take_lock(self.path, fcntl.LOCK_EX)
        if lock is None:
            raise OutputBusy(f"another push from {results} to {name} is at work; wait for it")
        self._lock = lock
        self._known = sqlite3.connect("")
        self._known.execute("PRAGMA synchronous = OFF")
        self._known.execute(
            "CREATE TABLE sent (uid TEXT PRIMARY KEY, sha256 TEXT, size INTEGER, changed INTEGER)"
        )
        self._known.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", _sent_before(self.path))
        marked = read_lines(self.path, holding=b'"without_patients"')
        self.without_patients = any(line.get("without_patients") is True for line in marked)
        self._lines = Lines(self.path)

    def known(self, uid: str) -> tuple[str, int, int] | None:
        """SHA-256, size in bytes and time of change (ns) of an instance as it was sent; None: it was not."""
        row = self._known.execute("SELECT sha256, size, changed FROM sent WHERE uid = ?", (uid,)).fetchone()
        return None if row is None else (str(row[0]), int(row[1]), int(row[2]))

    def sent(
        self,
        series_uid: str,
        uid: str,
        sha256: str,
        size: int,
        changed: int,
        *,
        without_patients: bool = False,
    ) -> None:
        """Note an instance that the destination has."""
        self._known.execute("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", (uid, sha256, size, changed))
        what: dict[str, Any] = {"event": "sent", "series": series_uid, "instance": uid}
        if without_patients:
            what["without_patients"] = self.without_patients = True
        self._lines.add({**what, "sha256": sha256, "size": size, "changed": changed})

    def problem(self, problem: Problem) -> None:
        """Note what was not sent; the next call tries it again."""
        what = {"event": "not sent", "series": problem.series_uid, "instance": problem.instance_uid}
        self._lines.add({**what, "text": problem.reason})

    def close(self) -> None:
        """Flush it to the disk and let others send."""
        self._lines.close()
        self._known.close()
        self._lock.close()


def _sent_before(path: Path) -> Iterator[tuple[str, str, int, int]]:
    for line in read_lines(path, holding=b'"sent"'):
        try:
            if line["event"] == "sent":
                yield str(line["instance"]), str(line["sha256"]), int(line["size"]), int(line["changed"])
        except (KeyError, TypeError, ValueError):
            continue


def push(
    results: Path,
    destination: Destination,
    *,
    ct: Path | None = None,
    only: Collection[str] | None = None,
    again: bool = False,
    retries: int = 5,
    preparation: Preparation = AS_IT_IS,
    watch: Callable[[int, int], None] = lambda done, total: None,
    tell: Callable[[Problem], None] = lambda problem: None,
) -> PushSummary:
    """Send every DICOM file that a run wrote for its scored series, and their CT if it is given.

    Of each series the CT goes first, so that what the SEG refers to is there. An instance that is refused
    does not keep the others back.

    Args:
        results: Output folder of a run.
        destination: Where to; it is not closed.
        ct: Folder or zip archive with the CT.
        only: SeriesInstanceUIDs of the CT: send no other series.
        again: Send what was sent before too.
        retries: How often an instance is tried again when the connection was lost.
        preparation: What is sent for each instance.
        watch: Called before the first and after every series with series done and in all.
        tell: Told of what is not sent.

    Raises:
        InputError: There is no table of a run, or no scored series; or there is no CT at all in `ct`; or the
            destination got something without patients before, and would get these now.
        DestinationUnreachable, DestinationRefused: The destination cannot be used (any more).
        OutputError: The journal cannot be written, or is in use.
    """
    scored = _scored(results, only)
    destination.check()
    pictures = None if ct is None else chosen(discover(ct), [uid for uid, _ in scored])
    journal = PushJournal(results, destination.name)
    summary = PushSummary(journal=journal.path, series=len(scored))
    if only is not None:
        summary.not_scored = len(set(only) - {uid for uid, _ in scored})
    try:
        sender = Sender(
            destination, journal, summary, again=again, retries=retries, preparation=preparation, tell=tell
        )
        watch(0, len(scored))
        for count, (uid, folder) in enumerate(scored):
            before = (summary.sent, summary.present, summary.problems)
            if pictures is not None:
                series = pictures.find(uid)
                if series is None:
                    sender.problem(Problem(series_uid=uid, reason="its CT is not in the folder of --ct"))
                else:
                    sender.send(uid, _instances(series, whole=not preparation.without_patients))
            sender.send_results(uid, folder, results)
            after = (summary.sent, summary.present, summary.problems)
            log.info(
                "series %s: %d sent, %d there already, %d not sent",
                uid, *(a - b for a, b in zip(after, before, strict=True)),
            )  # fmt: skip
            watch(count + 1, len(scored))
    finally:
        journal.close()
    return summary


def _scored(results: Path, only: Collection[str] | None) -> list[tuple[str, Path]]:
    """SeriesInstanceUID and folder of the scored series."""
    found, root = [], results.resolve()
    for row in read_parquet(results / PARQUET):
        if row.status == "scored" and (only is None or row.series_uid in only):
            folder = series_folder(root, row.folder)
            if folder is None:
                raise InputError(
                    f"{results / PARQUET} names a folder outside {results}; it is no run's table"
                )
            found.append((row.series_uid, folder))
    if not found:
        which = "none of the series of --only is scored" if only is not None else "there is no scored series"
        raise InputError(f"{results}: {which}; there is nothing to send")
    return found


def _instances(series: Series, *, whole: bool) -> Iterator[SliceRef]:
    """Every file of a series, or those of its slices alone; those with one SOPInstanceUID once."""
    seen = set()
    for ref in (*series.slices, *(series.left_out if whole else ())):
        if ref.sop_instance_uid not in seen:
            seen.add(ref.sop_instance_uid)
            yield ref


def outputs_of(
    folder: Path, results: Path, uid: str, problem: Callable[[Problem], None]
) -> Iterator[SliceRef]:
    """The DICOM files of a series' results, by name: the SEG stands before the SR that refers to it."""
    if stored_row(folder) is None:
        problem(Problem(series_uid=uid, reason="files of its results are missing; run the series again"))
    for path in sorted(folder.glob("[!.]*.dcm")):
        try:
            with foreign(path.name):
                instance = file_of(regular_inside(path, results))
        except InputUnreadable as error:
            reason = f"{path.name} cannot be read ({_cause(error)}); run the series again"
            problem(Problem(series_uid=uid, reason=reason))
        else:
            yield instance


def _cause(error: InputUnreadable) -> str:
    """Why a file cannot be read, without its path and without what is in it."""
    if isinstance(error.__cause__, InputUnreadable):
        return _cause(error.__cause__)
    if error.__cause__ is not None:
        return type(error.__cause__).__name__
    return str(error) if isinstance(error, InputDamaged) else "no regular file inside the results"


@dataclass(frozen=True)
class Sender:
    """Sends instances, notes and counts what becomes of them.

    Attributes:
        destination: Where to.
        journal: Where it is noted; by it nothing is sent twice.
        summary: Counts.
        again: Send what was sent before too.
        retries: How often an instance is tried again when the connection was lost.
        preparation: What is sent for each instance; the journal knows it by the UID that it is sent under.
        tell: Told of what is not sent.

    Raises:
        InputError: The destination got something without patients before, and would get these now.
    """

    destination: Destination
    journal: PushJournal
    summary: PushSummary
    again: bool = False
    retries: int = 0
    preparation: Preparation = AS_IT_IS
    tell: Callable[[Problem], None] = lambda problem: None

    def __post_init__(self) -> None:
        if self.journal.without_patients and not self.preparation.without_patients:
            raise InputError(
                f"{self.destination.name} got results without patients before: give --deidentify again, or, "
                f"if it may know them, remove {self.journal.path}"
            )

    def problem(self, problem: Problem) -> None:
        self.summary.problems += 1
        log.warning("series %s: instance %s: %s", problem.series_uid, problem.instance_uid, problem.reason)
        self.journal.problem(problem)
        self.tell(problem)

    def send_results(self, series_uid: str, folder: Path, results: Path) -> None:
        """The DICOM files that a run wrote for a series; see `send`.

        Args:
            series_uid: Of the CT.
            folder: Where they are.
            results: Output folder of the run.
        """
        self.send(series_uid, outputs_of(folder, results, series_uid, self.problem))

    def send(self, series_uid: str, instances: Iterable[SliceRef]) -> None:
        """Each instance that is not there yet.

        Raises:
            DestinationUnreachable, DestinationRefused: The destination cannot be used (any more).
            OutputError: The journal cannot be written.
        """
        for instance in instances:
            if why := self.preparation.left_out(instance):
                self.summary.left_out += 1
                log.info("series %s: instance %s left out: %s", series_uid, instance.sop_instance_uid, why)
                continue
            try:
                with foreign("its file"):
                    reason = self._send(series_uid, instance)
            except NotDeidentified as error:
                reason = f"not sent: {error}"
            except InputUnreadable as error:
                reason = f"its file cannot be read ({_cause(error)})"
            if reason:
                uid = instance.sop_instance_uid
                self.problem(Problem(series_uid=series_uid, instance_uid=uid, reason=reason))

    def _send(self, series_uid: str, instance: SliceRef) -> str:
        """One instance; why it was not taken, or ""."""
        if not instance.sop_instance_uid:
            return "not sent: its header has no SOPInstanceUID"
        uid = self.preparation.uid(instance)
        known = self.journal.known(uid)
        before = None if self.again else known
        status = instance.path.stat()
        state = (status.st_size, status.st_mtime_ns)
        if before is not None and before[1:] == state:
            self.summary.present += 1
            return ""
        with self.preparation.prepared(instance) as (sent, path):
            digest = sha256_of(path)
            if before is not None and before[0] == digest:
                self.summary.present += 1
            elif (answer := self._try(sent, path)) == "":
                self.summary.sent += 1
            elif answer != ALREADY_THERE:
                return answer
            elif known is not None and known[0] != digest:
                return (
                    "not taken: it is there with the other content that was sent before, and stays; "
                    "delete it there, then push again"
                )
            else:
                self.summary.present += 1
        own = self.preparation.without_patients
        self.journal.sent(series_uid, uid, digest, *state, without_patients=own)
        return ""

    def _try(self, instance: SliceRef, path: Path) -> str:
        """Send, waiting and trying again when the connection is lost; see `Destination.send`."""
        return tried(
            lambda: self.destination.send(instance, path),
            self.retries,
            lambda: f"{self.summary.sent} instances were sent",
        )
