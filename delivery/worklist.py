"""A worker on a worklist: claims workitems of a UPS-RS service, scores what they name, stores the results and
says so, after the pull workflow of IHE AI Workflow for Imaging (AIW-I).

One workitem at a time, so that what others could do is not held. Its journal knows what is claimed with which
Transaction UID before the service does: whatever ends the worker, the next start goes on with its own.

::

    IN/worklist.jsonl    the journal
    IN/ct, IN/coming     as `pulling` has them; a workitem's are removed when it has ended

A workitem is COMPLETED when at least one of its series has a score and all its results are stored, else
CANCELED with the reason: who does not reach what was asked for cancels (PS3.17 GGG.3.1).
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from ..batch.engine import Engine
from ..batch.ledger import Journal, Lines, OutputLock, read_lines
from ..batch.local import Workers
from ..batch.run import LiveTable, Means
from ..dicom import Series, SliceRef, discover_within
from ..dicom.files import DERIVED, read_slice
from ..dicom.headers import quiet_pydicom, text
from ..errors import (
    DestinationRefused,
    DestinationUnreachable,
    DiskFull,
    InputError,
)
from ..pipeline.results import ResultRow, series_folder
from ..pipeline.run import Job, clear_results, settle_output, stored_row
from ..system.atomic import remove_leftovers
from .pulling import COMING, WHOLE, Puller, PullLimits, Query, WebSource, is_uid
from .push import Problem, PushJournal, PushSummary, Sender, outputs_of
from .sending import DicomWeb, tried
from .workitems import (
    CANCELED,
    COMPLETED,
    FAILURE,
    GIVEN_UP,
    IN_PROGRESS,
    INCOMPLETE,
    NO_ROOM,
    NOT_SPECIFIED,
    NOT_SUPPORTED,
    SCHEDULED,
    Choice,
    Output,
    Workitem,
    Worklist,
    ending,
    progress,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

JOURNAL = "worklist.jsonl"
_MOST_LISTED = 1000
"""Workitems that are looked at in one turn."""
_MOST_SERIES = 100
"""Series of a workitem; a study of a chest has ten or so."""


@dataclass(frozen=True)
class Lack:
    """Why a series has no result.

    Attributes:
        reason: One sentence, without names and IDs of patients.
        code: The same, of PS3.16.
        rejected: Whether a gate refused it: a result with a reason, and no failure.
    """

    reason: str
    code: Code
    rejected: bool = False


@dataclass(kw_only=True)
class Outcome:
    """What becomes of a workitem.

    Attributes:
        stored: Series whose results are all stored.
        outputs: What is stored.
        lacks: Why there is not more.
    """

    stored: int = 0
    outputs: list[Output] = field(default_factory=list)
    lacks: list[Lack] = field(default_factory=list)


@dataclass(kw_only=True)
class Claim:
    """A workitem that is ours and has not ended.

    Attributes:
        transaction: Its Transaction UID.
        at: Time of the claim, seconds since 1970.
        settled: SeriesInstanceUIDs that have their row.
        resumed: Whether it was claimed by an earlier process.
    """

    transaction: str
    at: float
    settled: set[str] = field(default_factory=set)
    resumed: bool = False


class Claims:
    """``IN/worklist.jsonl``: one line an event, appended and flushed to the disk.

    Args:
        folder: IN.
        results: The results that it belongs to.
        name: Address of the worklist.

    Attributes:
        open: Claims that have not ended, by workitem.
        folders: Where the results of each series lie, below the results.

    Raises:
        InputError: It belongs to others, or IN holds what is not the worker's.
        OutputUnwritable: It cannot be read or written.
    """

    def __init__(self, folder: Path, results: Path, name: str) -> None:
        path = folder / JOURNAL
        if not path.is_file() and any(any((folder / name).glob("*/*")) for name in (WHOLE, COMING)):
            raise InputError(
                f"{folder} holds scans that did not come from a worklist; give a folder of the worker's own"
            )
        self.open: dict[str, Claim] = {}
        self.folders: dict[str, str] = {}
        mine = {"results": str(results.resolve()), "list": name}
        known = self._read(path) if path.is_file() else {}
        if known.get("results", mine["results"]) != mine["results"]:
            raise InputError(f"{folder} belongs to other results; give those, or a new folder for both")
        if self.open and known.get("list") != name:
            raise InputError(
                f"{folder} holds workitems that are claimed from another worklist; give its URL until they "
                "have ended (--abandon)"
            )
        self._lines = Lines(path)
        self._lines.add({"event": "begun", **mine}, sync=True)

    def _read(self, path: Path) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for line in read_lines(path):
            event, uid = line.get("event"), str(line.get("workitem", ""))
            if event == "begun":
                known = line
            elif event == "claimed":
                at = float(line.get("time", 0.0))
                self.open[uid] = Claim(transaction=str(line["transaction"]), at=at, resumed=True)
            elif event == "settled":
                self.folders[str(line["series"])] = str(line["folder"])
                if uid in self.open:
                    self.open[uid].settled.add(str(line["series"]))
            elif event == "ended":
                self.open.pop(uid, None)
        return known

    def claimed(self, uid: str) -> Claim:
        """Note a claim, before it goes out."""
        claim = Claim(transaction=str(generate_uid(None)), at=time.time())
        self._lines.add({"event": "claimed", "workitem": uid, "transaction": claim.transaction}, sync=True)
        self.open[uid] = claim
        return claim

    def settled(self, uid: str, row: ResultRow) -> None:
        """Note that a series has its row."""
        self.open[uid].settled.add(row.series_uid)
        self.folders[row.series_uid] = row.folder
        where = {"series": row.series_uid, "folder": row.folder}
        self._lines.add({"event": "settled", "workitem": uid, **where}, sync=True)

    def ended(self, uid: str) -> None:
        """Note that there is nothing more to do for a workitem."""
        self.open.pop(uid, None)
        self._lines.add({"event": "ended", "workitem": uid}, sync=True)

    def close(self) -> None:
        """Flush it to the disk."""
        self._lines.close()


@dataclass(kw_only=True)
class Worked:
    """What a worker did.

    Attributes:
        completed, canceled: Workitems that it ended so.
        problems: Of the canceled, those that were not all refused by a gate.
        taken: That others were faster to claim.
        withdrawn: That others ended while it was at work on them.
    """

    completed: int = 0
    canceled: int = 0
    problems: int = 0
    taken: int = 0
    withdrawn: int = 0


class Withdrawn(Exception):
    """Somebody else has ended the workitem, or it is gone."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Who is talked to; none of them is closed here.

    Attributes:
        worklist: Has the workitems.
        source: Has the images, whatever else a workitem says about where they are.
        archive: Gets the results.
    """

    worklist: Worklist
    source: WebSource
    archive: DicomWeb


class Performer:
    """Works on a list until it has nothing for us any more, or until it is stopped.

    Args:
        job: What is done with every series.
        folder: IN.
        services: Who is talked to.
        choice: Which workitems are ours.
        means: Who does the work; one device of it.
        station: Our name, 16 letters at most.
        limits: What is fetched at most.
        retries: How often a request is tried again when the connection was lost.
        keep_ct: Leave the images of workitems that have ended.
        tell: Told what becomes of each workitem, in words.
        log_path: Log file of the worker processes.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        services: Services,
        choice: Choice,
        *,
        means: Means,
        station: str = "DEEPCAC2",
        limits: PullLimits | None = None,
        retries: int = 5,
        keep_ct: bool = False,
        tell: Callable[[str], None] = lambda text: None,
        log_path: Path | None = None,
    ) -> None:
        if not (0 < len(station) <= 16 and station.isascii() and station.isprintable()):
            raise InputError("--station: give 1 to 16 ASCII letters, digits and signs")
        self.job, self.done = job, Worked()
        self._folder, self._services, self._choice, self._means = folder, services, choice, means
        self._station, self._limits, self._retries = station, limits or PullLimits(), retries
        self._keep_ct, self._tell, self._log_path = keep_ct, tell, log_path
        self._list = services.worklist
        self._stop = threading.Event()
        self._table = LiveTable(job, self._rows, self._counted)
        self._refused: list[Problem] = []
        self._claims: Claims
        self._puller: Puller
        self._sender: Sender
        self._workers: Workers
        self._journal: Journal

    def stop(self) -> None:
        """End after the workitem that is at work. From any thread or signal."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def run(self, every: float | None = None) -> Worked:
        """Work.

        Args:
            every: Seconds after which the list is asked again when it had nothing for us, or was away; None:
                that is the end.

        Raises:
            DestinationUnreachable, DestinationRefused: A service cannot be used (any more).
            DiskFull: The disk would have less room than is to stay free; nothing is claimed then.
            InputError, OutputError, WeightsError, DeviceError: It cannot start or go on. Whatever is claimed
                is gone on with by the next start.
        """
        with self._opened():
            while not self.stopping:
                try:
                    worked = self._turn()
                except DestinationUnreachable as error:
                    if every is None:
                        raise
                    self._tell(str(error))
                    worked = False
                self._table.write()
                if not worked and every is None:
                    break
                if not worked and every is not None:
                    self._stop.wait(every)
        return self.done

    def abandon(self) -> Worked:
        """Cancel what is claimed here, and nothing else; see `run` for what it raises."""
        with self._opened():
            for uid, claim in list(self._claims.open.items()):
                try:
                    item = self._item(uid)
                    tell = partial(self._list.update, uid, claim.transaction, progress(0, "given up"))
                    if self._tried(tell) != 200:
                        raise Withdrawn
                    self._end(item, claim, Outcome(lacks=[Lack("given up", GIVEN_UP)]))
                except Withdrawn:
                    self._forget(uid, "it is not ours (any more)")
        return self.done

    @contextmanager
    def _opened(self) -> Iterator[None]:
        output = self.job.output
        with ExitStack() as stack:
            stack.enter_context(OutputLock(output))
            self._puller = stack.enter_context(
                Puller(self._services.source, self._folder, limits=self._limits, retries=self._retries)
            )
            self._claims = Claims(self._folder, output, self._list.name)
            stack.callback(self._claims.close)
            settle_output(self.job, redo=False)
            remove_leftovers(output)
            self._journal = Journal(output)
            stack.callback(self._journal.close)
            pushed = PushJournal(output, self._services.archive.name)
            stack.callback(pushed.close)
            summary = PushSummary(journal=pushed.path, series=0)
            self._sender = Sender(
                self._services.archive, pushed, summary, retries=self._retries, tell=self._refused.append
            )
            self._table.write(now=True)
            stack.callback(partial(self._table.write, now=True))
            self._workers = stack.enter_context(self._means.workers(self.job, 1, self._log_path))
            yield

    def _rows(self) -> Iterator[ResultRow]:
        """The rows of all series of all workitems, as they lie in the results."""
        root = self.job.output.resolve()
        for _, folder in sorted(self._claims.folders.items()):
            place = series_folder(root, folder)
            if place is not None and (row := stored_row(place)) is not None:
                yield row

    def _counted(self, counts: Mapping[str, int]) -> dict[str, Any]:
        known = sum(counts.values())
        done = not self._claims.open
        return {"found": known, "selected": known, "finished": done, **counts, "missing": 0}

    def _tried(self, ask: Callable[[], T]) -> T:
        done = self.done
        return tried(ask, self._retries, lambda: f"{done.completed + done.canceled} workitems ended")

    # --- the list -----------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Go on with what is ours, then work off what the list has; whether there was anything."""
        worked = False
        for uid, claim in list(self._claims.open.items()):
            if self.stopping:
                return True
            worked = True
            self._perform(uid, claim)
        for uid in self._tried(self._candidates):
            if self.stopping:
                return True
            self._check_room()
            item = self._tried(partial(self._list.workitem, uid))  # the list may have changed since
            if item is not None and item.state == SCHEDULED and item.ready and self._choice.meets(item.item):
                worked = self._perform(uid, self._claims.claimed(uid)) or worked
        return worked

    def _candidates(self) -> list[str]:
        """UIDs of workitems that may be ours to claim, the most urgent first."""
        listed = islice(self._list.scheduled(self._choice), _MOST_LISTED)
        ours = [Workitem.of(item) for item in listed if self._choice.meets(item, part=True)]
        return [one.uid for one in sorted(ours, key=lambda one: one.urgency) if is_uid(one.uid)]

    def _check_room(self) -> None:
        for folder in (self._folder, self.job.output):
            if shutil.disk_usage(folder).free < self._limits.free_gb * 1e9:
                raise DiskFull(
                    f"{folder}: the disk has less than {self._limits.free_gb:g} GB free (--keep-free); make "
                    "room, then the same command goes on"
                )

    # --- one workitem -------------------------------------------------------------------------------------

    def _perform(self, uid: str, claim: Claim) -> bool:
        """Claim a workitem, do it and end it; False: others have it."""
        resumed, claim.resumed = claim.resumed, True
        if not self._claim(uid, claim, resumed):
            self._forget(uid, "it has ended, or others have it")
            self.done.taken += 1
            return False
        outcome = Outcome()
        try:
            item = self._item(uid)
            try:
                folders = self._fetch(uid, item, claim, outcome, resumed)
            except DiskFull:
                outcome.lacks.append(Lack("there is no room for its images here", NO_ROOM))
                self._end(item, claim, outcome)
                raise
            self._store(self._score(item, claim, folders, outcome), item, outcome)
            self._end(item, claim, outcome)
        except Withdrawn:
            self._forget(uid, "others have ended it")
            self.done.withdrawn += 1
        return True

    def _claim(self, uid: str, claim: Claim, unsure: bool) -> bool:
        def ask() -> bool:
            nonlocal unsure
            try:
                return self._list.claim(uid, claim.transaction, unsure=unsure)
            except DestinationUnreachable:
                unsure = True  # it may have come there
                raise

        return self._tried(ask)

    def _item(self, uid: str) -> Workitem:
        """A workitem that is ours.

        Raises:
            Withdrawn: It has ended, or is gone.
        """
        item = self._tried(partial(self._list.workitem, uid))
        if item is None or item.state != IN_PROGRESS:
            raise Withdrawn
        return item

    def _said(self, uid: str, tell: Callable[[], int]) -> None:
        """See that what is said of a workitem is taken.

        Raises:
            Withdrawn: It has ended, or is gone.
        """
        status = self._tried(tell)
        if status != 200:
            self._item(uid)
            raise DestinationRefused(
                f"{self._list.name} does not take what we say of workitem {uid}, which is ours "
                f"(HTTP {status}): see docs/worklist.md"
            )

    def _progress(self, uid: str, claim: Claim, percent: int, words: str) -> None:
        self._said(uid, lambda: self._list.update(uid, claim.transaction, progress(percent, words)))

    def _fetch(self, uid: str, item: Workitem, claim: Claim, outcome: Outcome, resumed: bool) -> list[Path]:
        """Folders of the CT series that a workitem is about, each whole."""
        self._progress(uid, claim, 0, "fetching the images")
        wanted = self._wanted(item, outcome)
        found = []
        for (study, series), instances in wanted.items():
            places = self._puller.places(study, series)
            if not resumed:  # what may lie there is older than the workitem
                for place in places:
                    shutil.rmtree(place, ignore_errors=True)
            reason = self._puller.series(study, series)
            there = {path.stem for path in places[0].glob("*.dcm")}
            if not reason and instances and there != instances:
                reason = f"it has {len(there)} images, and the workitem names {len(instances)}, not the same"
            if reason:
                outcome.lacks.append(Lack(f"series {series}: {reason}", INCOMPLETE))
            else:
                found.append(places[0])
        return found

    def _wanted(self, item: Workitem, outcome: Outcome) -> dict[tuple[str, str], set[str]]:
        """Study, series and instances (none: all) that are to be fetched, each series once."""
        wanted: dict[tuple[str, str], set[str]] = {}
        listed: dict[str, dict[str, Any]] = {}
        where, lacks = self._services.source.name, outcome.lacks
        if item.inputs is None:
            lacks.append(Lack("it names its images in a way that cannot be read", INCOMPLETE))
        elif len(item.inputs) > _MOST_SERIES:
            lacks.append(Lack(f"it names {len(item.inputs)} series, more than are taken", NO_ROOM))
            return {}
        for one in item.inputs or ():
            if one.study not in listed:
                found = self._puller.series_of(one.study, Query(study={}, series={}), known=False)
                listed[one.study] = {uid: modality for uid, modality in found if is_uid(uid)}
            there = listed[one.study]
            if not there or (one.series and one.series not in there):
                what = f"series {one.series}" if one.series else f"study {one.study}"
                lacks.append(Lack(f"{what} is not at {where}", INCOMPLETE))
            for series in [one.series] if one.series else there:
                if there.get(series, "") in ("CT", None):
                    wanted.setdefault((one.study, series), set()).update(one.instances)
        if not wanted and not lacks:
            lacks.append(Lack("it names no CT", NOT_SUPPORTED))
        if len(wanted) > _MOST_SERIES:
            lacks.append(Lack(f"it is about {len(wanted)} series, more than are taken", NO_ROOM))
            return {}
        return wanted

    def _score(
        self, item: Workitem, claim: Claim, folders: Sequence[Path], outcome: Outcome
    ) -> list[ResultRow]:
        """The rows of the series that have a score."""
        if not folders:
            return []
        self._progress(item.uid, claim, 10, f"scoring {len(folders)} series")
        rows, todo = [], []
        for folder in folders:
            series = self._series(folder)
            if series is None:
                outcome.lacks.append(Lack(f"series {folder.name}: its images cannot be read", FAILURE))
            elif item.patient_id and series.patient_id.strip() != item.patient_id:
                reason = f"series {folder.name} is of another patient than the workitem (PatientID)"
                outcome.lacks.append(Lack(reason, NOT_SPECIFIED))
            elif folder.name in claim.settled and (row := stored_row(self.job.folder(series))):
                rows.append(row)
            else:
                clear_results(self.job.output, self.job.folder(series))
                todo.append(series)

        def settle(row: ResultRow, skipped: bool) -> None:
            self._claims.settled(item.uid, row)
            rows.append(row)

        engine = Engine(self.job, self._workers, self._journal, retries=self._means.retries, watch=settle)
        engine.run(todo, redo=True)
        self._table.due = True
        for row in rows:
            if row.status != "scored":
                reason = f"series {row.series_uid}: {row.status}, {row.code}: {row.reason}"
                rejected = row.status == "rejected"
                outcome.lacks.append(Lack(reason, NOT_SPECIFIED if rejected else FAILURE, rejected))
        return [row for row in rows if row.status == "scored"]

    def _series(self, folder: Path) -> Series | None:
        return discover_within(folder, allow=self.job.allowed).find(folder.name)

    def _store(self, rows: Sequence[ResultRow], item: Workitem, outcome: Outcome) -> None:
        """Store the results of series that have a score.

        Raises:
            Withdrawn: Others have ended the workitem.
        """
        for row in rows:
            self._item(item.uid)
            self._refused.clear()
            folder = self.job.output / row.folder
            made = list(outputs_of(folder, self.job.output, row.series_uid, self._sender.problem))
            self._sender.send(row.series_uid, made)
            there = [one for one in made if self._sender.journal.known(one.sop_instance_uid)]
            outcome.outputs += map(_output, there)
            if self._refused:
                why = f"{len(self._refused)} of its results are not stored: {self._refused[0].reason}"
                outcome.lacks.append(Lack(f"series {row.series_uid}: {why}", FAILURE))
            else:
                outcome.stored += 1

    def _end(self, item: Workitem, claim: Claim, outcome: Outcome) -> None:
        """Say all that is to be said of a workitem, and bring it to its final state.

        Raises:
            Withdrawn: Others have done so.
        """
        state = COMPLETED if outcome.stored else CANCELED
        last = ending(
            item,
            station=self._station,
            began=claim.at,
            outputs=outcome.outputs,
            root=self._services.archive.name,
            comments="; ".join(lack.reason for lack in outcome.lacks),
            why=None if outcome.stored else outcome.lacks[0].code,
        )
        self._table.write()
        self._said(item.uid, lambda: self._list.update(item.uid, claim.transaction, last))
        self._said(item.uid, lambda: self._list.end(item.uid, claim.transaction, state))
        if outcome.stored:
            self.done.completed += 1
        else:
            self.done.canceled += 1
            self.done.problems += not all(lack.rejected for lack in outcome.lacks)
        words = [f"{outcome.stored} series scored"] * bool(outcome.stored)
        self._forget(item.uid, "; ".join([state, *words, *(lack.reason for lack in outcome.lacks)]))

    def _forget(self, uid: str, how: str) -> None:
        """Note that nothing is to be done any more for a workitem, and remove its images."""
        log.info("workitem %s: %s", uid, how.partition(";")[0])
        self._claims.ended(uid)
        self._tell(f"workitem {uid}: {how}")
        kept = () if self._keep_ct else (WHOLE,)
        for place in (self._folder / name for name in (COMING, *kept)):
            for study in place.glob("*/"):
                shutil.rmtree(study, ignore_errors=True)


def _output(instance: SliceRef) -> Output:
    """A result, by its header."""
    with quiet_pydicom():
        header = read_slice(instance, tags=["StudyInstanceUID", "SeriesInstanceUID"], limits=DERIVED)
    return Output(
        study=text(header, "StudyInstanceUID"),
        series=text(header, "SeriesInstanceUID"),
        sop_class=instance.sop_class_uid,
        uid=instance.sop_instance_uid,
    )
