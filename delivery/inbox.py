"""What a listening node has received: the files, and beside them a database of what became of them.

An instance is acknowledged only when its file and its line in the database are on the disk. So a kill or a
power cut at any moment loses nothing that a sender was told is safe, and what lies there without a line was
never acknowledged.

Below the folder of the inbox a series has the folder ``<two digits>/<SeriesInstanceUID>``, with a file
``<SOPInstanceUID>.dcm`` for each instance. `deepcac2 run` takes such a folder as any other.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from ..batch.ledger import take_lock
from ..dicom import safe_name
from ..dicom.discovery import places_in
from ..dicom.files import HEAD_BYTES, read_slice, start_of_data_set
from ..dicom.headers import CT_IMAGE, ENHANCED_CT, quiet_pydicom, text, whole
from ..dicom.series import SliceRef
from ..errors import InputError, InputUnreadable, OutputBusy
from ..system.atomic import on_disk, output_errors
from ..system.foreign import foreign

DATABASE = "inbox.sqlite"
OPEN, CLOSED, CUT, REFUSED, CONFLICT = "open", "closed", "cut", "refused", "conflict"
"""How the last transfer of a series that brought something stands: under way; ended as it should; broken off;
ended, but images of it were refused; or some came with other content than they had before."""

SUCCESS, NO_ROOM, MISMATCH, NOT_UNDERSTOOD, FAILED, DUPLICATE = 0x0000, 0xA700, 0xA900, 0xC000, 0x0110, 0x0111
"""Statuses of a C-STORE (PS3.4 table B.2-1) and of any service (PS3.7 annex C)."""

SOP_CLASSES = (CT_IMAGE, *ENHANCED_CT)
"""CT, enhanced CT, and legacy converted enhanced CT."""

_MOST_COMMITMENTS = 10_000
"""Requests for storage commitment that wait for their report. Chosen."""
_UID = re.compile(r"[0-9.]{1,64}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS instances (
    uid TEXT PRIMARY KEY, series TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL,
    present INTEGER NOT NULL DEFAULT 1
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_of ON instances (series);
CREATE TABLE IF NOT EXISTS series (
    uid TEXT PRIMARY KEY, first REAL NOT NULL, last REAL NOT NULL, transfer TEXT NOT NULL,
    expected INTEGER NOT NULL DEFAULT 0, images INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT -1, at REAL,
    status TEXT NOT NULL DEFAULT '', line TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS series_due ON series (uid) WHERE settled < version;
CREATE TABLE IF NOT EXISTS deliveries (
    destination TEXT NOT NULL, series TEXT NOT NULL, folder TEXT NOT NULL, version INTEGER NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0, next REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (destination, series)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS deliveries_due ON deliveries (destination, next) WHERE NOT delivered;
CREATE TABLE IF NOT EXISTS commitments (
    transaction_uid TEXT NOT NULL, title TEXT NOT NULL, host TEXT NOT NULL, port INTEGER NOT NULL,
    images TEXT NOT NULL, first REAL NOT NULL, tries INTEGER NOT NULL DEFAULT 0, next REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (transaction_uid, title)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the inbox takes at most.

    Attributes:
        free_gb: Gigabytes (10⁹ bytes) that stay free on the disk; what would leave less is refused.
        instance_mb: Of one instance, megabytes (10⁶ bytes).
        images: Instances of a series.
        waiting: Series that are not scored yet; a further one is refused, those begun are not.
    """

    free_gb: float = 10.0
    instance_mb: float = 512.0
    images: int = 5000
    waiting: int = 1000


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What becomes of an instance that is offered.

    Attributes:
        status: Of the C-STORE.
        series_uid: Its SeriesInstanceUID, "" where that is not known.
        new: Whether it was not there before.
        why: For the log, without names and IDs of patients; "" for success.
    """

    status: int
    series_uid: str = ""
    new: bool = False
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A series that has more than what its row knows.

    Attributes:
        uid: SeriesInstanceUID.
        version: Of what is there; it grows with everything that a score depends on.
        transfer: `OPEN`, `CLOSED`, `CUT`, `REFUSED` or `CONFLICT`.
        last: Time at which the last image came, seconds since 1970.
        expected: Images that it has by NumberOfSeriesRelatedInstances; 0: it does not say.
        images: That are there.
    """

    uid: str
    version: int
    transfer: str
    last: float
    expected: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Results that a destination shall get.

    Attributes:
        series_uid: Of the CT.
        folder: Of the results, below those of the run.
        version: Of the series.
        tries: How often it was tried.
    """

    series_uid: str
    folder: str
    version: int
    tries: int


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """A request for storage commitment that was not answered with a report yet.

    Attributes:
        transaction: TransactionUID.
        title, host, port: Who wants the report.
        images: SOPClassUID and SOPInstanceUID of each.
        tries: How often it was tried.
    """

    transaction: str
    title: str
    host: str
    port: int
    images: tuple[tuple[str, str], ...]
    tries: int = 0


class Inbox:
    """The folder of a listening node; all methods may be called from any thread.

    Args:
        folder: Made when missing.
        limits: What it takes at most.

    Raises:
        OutputBusy: Another node is at work there.
        InputUnreadable: Its database cannot be read.
        DiskFull, OutputUnwritable: It cannot be written.
    """

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.root, self.limits = folder, limits or Limits()
        self._coming, self._disks = folder / "coming", [folder]
        self._guard = threading.RLock()
        lock = take_lock(folder / "node.lock", fcntl.LOCK_EX)
        if lock is None:
            raise OutputBusy(f"another node is at work in {folder}; wait for it, or give another folder")
        self._lock = lock
        with output_errors(folder):
            self._coming.mkdir(exist_ok=True)
            for left in self._coming.iterdir():  # never acknowledged
                left.unlink()
        advice = "keep it aside and give a new folder"
        with foreign(str(folder / DATABASE), advice=advice):
            self._db = sqlite3.connect(folder / DATABASE, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        # Whatever was under way when the node before us ended was cut off by that.
        self._write("UPDATE series SET transfer = ?, version = version + 1 WHERE transfer = ?", (CUT, OPEN))

    def close(self) -> None:
        """Let others in."""
        with self._guard:
            self._db.close()
            self._lock.close()

    def _write(self, statement: str, values: tuple[Any, ...] = ()) -> int:
        with self._guard:
            return self._db.execute(statement, values).rowcount

    def _ask(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._guard:
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _together(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, also after a power cut."""
        with self._guard:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def belongs_to(self, results: Path) -> None:
        """See that what is noted here is about these results, and note it where there is nothing yet.

        Raises:
            InputError: It is about others.
        """
        mine = str(results.resolve())
        known = self._ask("SELECT value FROM about WHERE name = 'results'")
        if known and known[0][0] != mine:
            raise InputError(
                f"{self.root} is the inbox of other results; give the folder of results that it had, or a "
                "new folder for both"
            )
        self._write("INSERT OR IGNORE INTO about VALUES ('results', ?)", (mine,))
        self._disks.append(results)

    # --- receiving ----------------------------------------------------------------------------------------

    def folder(self, series_uid: str) -> Path:
        """Where the files of a series lie."""
        shelf = hashlib.sha1(series_uid.encode(), usedforsecurity=False).hexdigest()[:2]
        return self.root / shelf / safe_name(series_uid)

    def _file(self, series_uid: str, uid: str) -> Path:
        return self.folder(series_uid) / f"{safe_name(uid)}.dcm"

    def room_for(self, size: int) -> bool:
        """Whether the disk, and that of the results, keeps `Limits.free_gb` free with so many bytes more."""
        return all(
            shutil.disk_usage(folder).free - size >= self.limits.free_gb * 1e9 for folder in self._disks
        )

    def receive(
        self,
        parts: Iterable[bytes | memoryview],
        *,
        sop_class: str,
        uid: str,
        syntax: str,
        study: str = "",
        transfer: str = OPEN,
    ) -> Answer:
        """Take an instance: when the answer is a success it is on the disk, and what follows from it noted.

        Args:
            parts: Its data set, encoded.
            sop_class, uid: SOPClassUID and SOPInstanceUID, as the sender says.
            syntax: Transfer syntax.
            study: StudyInstanceUID that it must be of; "": of any.
            transfer: What is noted of the transfer until `ended` says more.
        """
        if sop_class not in SOP_CLASSES or not all(_UID.fullmatch(u) for u in (uid, syntax)):
            return Answer(status=MISMATCH, why="no CT, or its UIDs are none")
        path = self._coming / f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}.dcm"
        try:
            return self._receive(path, parts, sop_class, uid, syntax, study, transfer)
        except OSError as error:
            return Answer(status=NO_ROOM, why=f"it cannot be written ({error.strerror})")
        finally:
            path.unlink(missing_ok=True)

    def receive_file(
        self, blocks: Iterable[bytes], *, study: str = "", transfer: str = OPEN
    ) -> tuple[str, str, Answer]:
        """Take an instance that comes as a DICOM file (PS3.10), as `receive` does.

        Args:
            blocks: The file; they are taken until it is refused.
            study: StudyInstanceUID that it must be of; "": of any.
            transfer: As in `receive`.

        Returns:
            SOPClassUID and SOPInstanceUID by its file meta information, "" where there is none, and what
            becomes of it.
        """
        rest, head = iter(blocks), b""
        while len(head) < HEAD_BYTES and (block := next(rest, b"")):
            head += block
        try:
            if head[128:132] != b"DICM":
                raise InputUnreadable("it is no DICOM file")
            with quiet_pydicom(), foreign("its file meta information"):
                meta, start = start_of_data_set(head)
                sop_class, uid, syntax = (
                    text(meta, "MediaStorageSOPClassUID"),
                    text(meta, "MediaStorageSOPInstanceUID"),
                    text(meta, "TransferSyntaxUID"),
                )
        except InputUnreadable:
            return "", "", Answer(status=NOT_UNDERSTOOD, why="it is no DICOM file")
        parts = chain([head[start:]], rest)
        answer = self.receive(
            parts, sop_class=sop_class, uid=uid, syntax=syntax, study=study, transfer=transfer
        )
        return sop_class, uid, answer

    def _receive(
        self,
        path: Path,
        parts: Iterable[bytes | memoryview],
        sop_class: str,
        uid: str,
        syntax: str,
        wanted: str,
        transfer: str,
    ) -> Answer:
        digest, size = hashlib.sha256(), 0
        with path.open("wb") as file:
            file.write(_head(sop_class, uid, syntax))
            for part in parts:
                size += len(part)
                if size > self.limits.instance_mb * 1e6:
                    return Answer(status=NO_ROOM, why="it is larger than one may be")
                if not self.room_for(len(part)):
                    return Answer(status=NO_ROOM, why="the disk is nearly full")
                digest.update(part)
                file.write(part)
        with quiet_pydicom():
            try:
                header = read_slice(SliceRef(path=path), tags=_IDENTITY)
            except InputUnreadable:
                return Answer(status=NOT_UNDERSTOOD, why="its header is damaged")
            series, study = text(header, "SeriesInstanceUID"), text(header, "StudyInstanceUID")
            said = text(header, "SOPClassUID"), text(header, "SOPInstanceUID")
            expected = whole(header, "NumberOfSeriesRelatedInstances") or 0
        if said != (sop_class, uid):
            return Answer(status=MISMATCH, why="its header names another SOP class or instance")
        if not (_UID.fullmatch(series) and _UID.fullmatch(study)):
            return Answer(status=NOT_UNDERSTOOD, why="its header names no series or study")
        if wanted not in ("", study):
            return Answer(status=MISMATCH, series_uid=series, why="it is of another study than that named")
        if places_in(path) != {(series, path.parent)}:  # what a run would not see is not taken
            return Answer(status=NOT_UNDERSTOOD, series_uid=series, why="its header cannot be read")
        expected = min(max(expected, 0), self.limits.images)
        if answer := self._without_storing(series, uid, digest.hexdigest()):
            return answer
        on_disk(path)
        with self._guard:  # another transfer may have brought it meanwhile
            return self._without_storing(series, uid, digest.hexdigest()) or self._store(
                path, series, uid, digest.hexdigest(), size, expected, transfer
            )

    def _without_storing(self, series: str, uid: str, digest: str) -> Answer | None:
        """The answer where an instance need not, or may not, be stored."""
        known = self._ask("SELECT series, sha256, present FROM instances WHERE uid = ?", (uid,))
        if known and known[0][:2] != (series, digest):
            return Answer(
                status=DUPLICATE, series_uid=series, why="it came before with other content, which stays"
            )
        images = self._ask("SELECT images FROM series WHERE uid = ?", (series,))
        if known and (known[0][2] or images[0][0] == 0):  # it is there, or all of it was done and removed
            return Answer(status=SUCCESS, series_uid=series)
        if images and images[0][0] >= self.limits.images:
            return Answer(status=NO_ROOM, series_uid=series, why="its series has as many images as one may")
        if not images and self._count_waiting() >= self.limits.waiting:
            return Answer(status=NO_ROOM, series_uid=series, why="too many series wait to be scored")
        return None

    def _store(
        self, path: Path, series: str, uid: str, digest: str, size: int, expected: int, transfer: str
    ) -> Answer:
        final, now = self._file(series, uid), time.time()
        made = not final.parent.parent.exists(), not final.parent.exists()
        final.parent.mkdir(parents=True, exist_ok=True)
        path.replace(final)
        on_disk(final.parent)
        if made[1]:
            on_disk(final.parent.parent)
        if made[0]:
            on_disk(self.root)
        with self._together() as db:
            db.execute(
                "INSERT OR REPLACE INTO instances (uid, series, sha256, size) VALUES (?, ?, ?, ?)",
                (uid, series, digest, size),
            )
            db.execute(
                "INSERT INTO series (uid, first, last, transfer, expected, images) VALUES (?, ?, ?, ?, ?, 1) "
                "ON CONFLICT (uid) DO UPDATE SET last = excluded.last, transfer = excluded.transfer, "
                "expected = MAX(expected, excluded.expected), images = images + 1, version = version + 1",
                (series, now, now, transfer, expected),
            )
        return Answer(status=SUCCESS, series_uid=series, new=True)

    def ended(self, series_uids: dict[str, str]) -> None:
        """Note how transfers ended.

        Args:
            series_uids: Of the series that a transfer was about, each with `CLOSED`, `CUT`, `REFUSED` or
                `CONFLICT`. A transfer that ended as it should is the answer to one before that did not.
        """
        with self._together() as db:
            for uid, how in series_uids.items():
                db.execute(
                    # An end that was to be expected is nothing new.
                    "UPDATE series SET version = version + (transfer <> ? AND (transfer, ?) <> (?, ?)), "
                    "transfer = ?, last = ? WHERE uid = ?",
                    (how, how, OPEN, CLOSED, how, time.time(), uid),
                )

    # --- storage commitment -------------------------------------------------------------------------------

    def stored(self, uid: str) -> tuple[Path, int, str] | None:
        """An image that was received and not removed: its file, and bytes and SHA-256 of its data set."""
        found = self._ask("SELECT series, size, sha256 FROM instances WHERE uid = ? AND present = 1", (uid,))
        return None if not found else (self._file(found[0][0], uid), int(found[0][1]), str(found[0][2]))

    def commit(self, commitment: Commitment) -> bool:
        """Note a request; False: too many wait."""
        (waiting,) = self._ask("SELECT COUNT(*) FROM commitments")[0]
        if waiting >= _MOST_COMMITMENTS:
            return False
        one = commitment
        self._write(
            "INSERT OR REPLACE INTO commitments (transaction_uid, title, host, port, images, first) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (one.transaction, one.title, one.host, one.port, json.dumps(one.images), time.time()),
        )
        return True

    def give_up_commitments(self, age: float) -> list[str]:
        """Drop requests that are older than so many seconds; their TransactionUIDs."""
        before = (time.time() - age,)
        found = self._ask("SELECT transaction_uid FROM commitments WHERE first < ?", before)
        if found:
            self._write("DELETE FROM commitments WHERE first < ?", before)
        return [str(uid) for (uid,) in found]

    def commitments_due(self) -> list[Commitment]:
        """Requests whose report is due, some at most."""
        rows = self._ask(
            "SELECT transaction_uid, title, host, port, images, tries FROM commitments WHERE next <= ? "
            "ORDER BY next LIMIT 20",
            (time.time(),),
        )
        return [
            Commitment(
                transaction=uid,
                title=title,
                host=host,
                port=port,
                images=tuple((a, b) for a, b in json.loads(images)),
                tries=tries,
            )
            for uid, title, host, port, images, tries in rows
        ]

    def commitment_told(self, commitment: Commitment) -> None:
        """Note that a report was taken."""
        key = commitment.transaction, commitment.title
        self._write("DELETE FROM commitments WHERE transaction_uid = ? AND title = ?", key)

    def commitment_not_told(self, commitment: Commitment, wait: float) -> None:
        """Note that a report was not taken, and is to be tried again after so many seconds."""
        self._write(
            "UPDATE commitments SET tries = tries + 1, next = ? WHERE transaction_uid = ? AND title = ?",
            (time.time() + wait, commitment.transaction, commitment.title),
        )

    # --- scoring ------------------------------------------------------------------------------------------

    def waiting(self) -> Iterator[Waiting]:
        """The series that have more than what their row knows, those that came first before the others."""
        for uid, version, transfer, last, expected, images in self._ask(
            "SELECT uid, version, transfer, last, expected, images FROM series WHERE settled < version "
            "ORDER BY first"
        ):
            yield Waiting(
                uid=uid, version=version, transfer=transfer, last=last, expected=expected, images=images
            )

    def tidy(self, series_uid: str) -> int:
        """Remove what lies in the folder of a series and was never acknowledged.

        Returns:
            How many of its images are not there (any more).
        """
        with self._guard:
            names = {
                f"{safe_name(uid)}.dcm"
                for (uid,) in self._ask("SELECT uid FROM instances WHERE series = ?", (series_uid,))
            }
            folder = self.folder(series_uid)
            here = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
            for name in here - names:
                (folder / name).unlink()
            return len(names - here)

    def settle(
        self, series_uid: str, version: int, row: dict[str, Any], destinations: Iterable[str], folder: str
    ) -> None:
        """Note the row of a series, and who shall get its results; what was sent of it before is outdated.

        Args:
            version: That the row is of.
            row: JSON types.
            destinations: Names of those who shall get the files.
            folder: Of these, below the results.
        """
        with self._together() as db:
            db.execute(
                "UPDATE series SET settled = ?, at = ?, status = ?, line = ? WHERE uid = ?",
                (version, time.time(), str(row["status"]), json.dumps(row), series_uid),
            )
            db.execute("DELETE FROM deliveries WHERE series = ?", (series_uid,))
            db.executemany(
                "INSERT INTO deliveries (destination, series, folder, version) VALUES (?, ?, ?, ?)",
                [(name, series_uid, folder, version) for name in destinations],
            )

    def row(self, series_uid: str) -> dict[str, Any] | None:
        """The row of a series; None: it has none yet."""
        found = self._ask("SELECT line FROM series WHERE uid = ?", (series_uid,))
        return json.loads(found[0][0]) if found and found[0][0] else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all series that have one, in the order of their UIDs, one at a time in memory."""
        last = ""
        while part := self._ask(
            "SELECT uid, line FROM series WHERE uid > ? AND line IS NOT NULL ORDER BY uid LIMIT 1000", (last,)
        ):
            last = part[-1][0]
            yield from (json.loads(line) for _, line in part)

    # --- sending ------------------------------------------------------------------------------------------

    def to_deliver(self, destination: str, count: int = 16) -> list[Delivery]:
        """What a destination shall get now."""
        return [
            Delivery(series_uid=uid, folder=folder, version=version, tries=tries)
            for uid, folder, version, tries in self._ask(
                "SELECT series, folder, version, tries FROM deliveries WHERE destination = ? AND "
                "NOT delivered AND next <= ? ORDER BY next LIMIT ?",
                (destination, time.time(), count),
            )
        ]

    def delivered(self, destination: str, delivery: Delivery) -> None:
        """Note that a destination has it, unless there is something newer for it by now."""
        self._write(
            "UPDATE deliveries SET delivered = 1, reason = '' WHERE destination = ? AND series = ? AND "
            "version = ?",
            (destination, delivery.series_uid, delivery.version),
        )

    def not_delivered(self, destination: str, delivery: Delivery, reason: str, wait: float) -> None:
        """Note that a destination did not take it, to be tried again after some seconds."""
        self._write(
            "UPDATE deliveries SET tries = tries + 1, next = ?, reason = ? WHERE destination = ? AND "
            "series = ? AND version = ?",
            (time.time() + wait, reason, destination, delivery.series_uid, delivery.version),
        )

    # --- the end ------------------------------------------------------------------------------------------

    def remove_old(self, days: float, count: int = 100) -> int:
        """Remove the images of some series whose results are where they shall be, so many days after that.

        What is known of them stays: the same images again change nothing.

        Returns:
            Series whose images were removed.
        """
        old = self._ask(
            "SELECT uid FROM series WHERE images > 0 AND settled = version AND at < ? AND last < ? AND "
            "NOT EXISTS (SELECT 1 FROM deliveries AS d WHERE d.series = series.uid AND NOT d.delivered) "
            "ORDER BY at LIMIT ?",
            (time.time() - days * 86400, time.time() - days * 86400, count),
        )
        for (uid,) in old:
            with self._guard:
                fresh = self._ask("SELECT 1 FROM series WHERE uid = ? AND settled = version", (uid,))
                if fresh:
                    self._remove(uid)
        return len(old)

    def _remove(self, uid: str) -> None:
        with self._together() as db:
            db.execute("UPDATE instances SET present = 0 WHERE series = ?", (uid,))
            db.execute("UPDATE series SET images = 0 WHERE uid = ?", (uid,))
        shutil.rmtree(self.folder(uid), ignore_errors=True)

    def forget(self, series_uid: str) -> bool:
        """Remove the images of a series and all that is known of them, so that it can be sent anew; its row
        and what lies in the results stay until then.

        Returns:
            Whether it was there.
        """
        with self._guard:
            self._remove(series_uid)
            self._write("DELETE FROM instances WHERE series = ?", (series_uid,))
            return self._write("UPDATE series SET settled = version WHERE uid = ?", (series_uid,)) > 0

    def _count_waiting(self) -> int:
        return int(self._ask("SELECT count(*) FROM series WHERE settled < version")[0][0])

    def counts(self) -> dict[str, int]:
        """Series by status, and those that wait; deliveries that wait, and how many of them were refused;
        reports of storage commitment that wait, and how many of them were tried in vain."""
        counts = dict.fromkeys(("scored", "rejected", "failed"), 0)
        for status, number in self._ask("SELECT status, count(*) FROM series GROUP BY status"):
            if status:
                counts[status] = number
        counts["waiting"] = self._count_waiting()
        pending = "SELECT count(*), COALESCE(SUM(reason <> ''), 0) FROM deliveries WHERE NOT delivered"
        counts["undelivered"], counts["delivery_problems"] = self._ask(pending)[0]
        pending = "SELECT count(*), COALESCE(SUM(tries > 2), 0) FROM commitments"
        counts["commitments"], counts["commitment_problems"] = self._ask(pending)[0]
        return counts


_IDENTITY = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "NumberOfSeriesRelatedInstances",
]


def _head(sop_class: str, uid: str, syntax: str) -> bytes:
    """Preamble and file meta information."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filebase import DicomBytesIO

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(uid)
    meta.TransferSyntaxUID = UID(syntax)
    written = DicomBytesIO()
    write_file_meta_info(written, meta, enforce_standard=True)
    return bytes(128) + b"DICM" + written.getvalue()
