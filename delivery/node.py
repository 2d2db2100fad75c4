"""A node that listens: what is sent to it is scored as `deepcac2 run` does, and its results are sent on.

Three things go on side by side, and the database of the inbox is all that they share: callers are received
(`listening`), series that are complete go through the workers of `batch` in small batches, and for each
destination a thread sends what is there for it, with the journal of `push`. Each may be killed at any moment;
the next start goes on from what is on the disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..batch.engine import Engine
from ..batch.ledger import Journal, OutputLock
from ..batch.local import Workers
from ..batch.run import LiveTable, Means
from ..dicom import Series, discover_within
from ..dicom.gates import transfer_incomplete
from ..errors import (
    DeepCACError,
    DestinationError,
    DestinationRefused,
    InputError,
    OutputInsideInput,
)
from ..pipeline.results import STATUSES, ResultRow, checked_row, series_folder
from ..pipeline.run import Job, clear_results, settle_output
from ..system.atomic import remove_leftovers
from ..system.codec import from_plain
from ..system.foreign import parse_yaml, read_bytes
from ..system.secret import secret_key
from .commitment import Committer
from .inbox import CLOSED, CONFLICT, CUT, OPEN, REFUSED, Delivery, Inbox, Limits, Waiting
from .listening import Listen, Listener
from .preparing import AS_IT_IS, Preparation, prepared_with
from .push import Problem, PushJournal, PushSummary, Sender
from .sending import Credentials, Destination, DicomWeb, Dimse, tls_context

if TYPE_CHECKING:
    from .health import HealthPage
    from .stow import Stow

log = logging.getLogger(__name__)

_TICK = 0.5
"""Seconds between two looks at what has come."""
_BATCH = 32
"""Series that go to the workers at once at most; those that come meanwhile wait for the next turn."""
_LONGEST_WAIT = 300.0
"""Seconds before another try to send, at most."""
_LAST_WAIT = 30.0
"""Seconds that an instance which is being sent gets at the end."""
_REFUSED_WAIT = 60.0
"""Seconds after a destination has refused everything: a person has to do something there or here."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A destination of results; one of the first two is named. Credentials come from the environment.

    Attributes:
        dimse: ``AET@HOST:PORT``.
        dicomweb: DICOMweb root.
        calling: Own AE title, with `dimse`.
        tls: Encrypt, with `dimse`.
        insecure: With `dicomweb`, send credentials over plain http to another machine too.
        timeout: Seconds to wait for a connection, and for each answer.
        deidentify: File of the key by which it gets results without patients; "": it gets them as they are.
    """

    dimse: str = ""
    dicomweb: str = ""
    calling: str = "DEEPCAC2"
    tls: bool = False
    insecure: bool = False
    timeout: float = 60.0
    deidentify: str = ""

    def __post_init__(self) -> None:
        if bool(self.dimse) == bool(self.dicomweb):
            raise InputError("destinations: give each either dimse or dicomweb")

    def opened(self, environment: Mapping[str, str]) -> Destination:
        """The other side.

        Raises:
            InputError: Address or environment do not hold what they should.
        """
        if self.dicomweb:
            return DicomWeb(
                self.dicomweb,
                credentials=Credentials.of(environment),
                tls=tls_context(environment),
                timeout=self.timeout,
                insecure=self.insecure,
            )
        tls = tls_context(environment) if self.tls else None
        return Dimse(self.dimse, calling=self.calling, tls=tls, timeout=self.timeout)

    def preparation(self, results: Path) -> Preparation:
        """What it gets of the results in a folder.

        Raises:
            InputError: Its key is none, or lies there.
            DiskFull, OutputUnwritable: There is no key yet, and none can be made.
        """
        if not self.deidentify:
            return AS_IT_IS
        return prepared_with(secret_key(Path(self.deidentify), apart_from=results)[0])


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """How a node works; the schema of its YAML file.

    Attributes:
        listen: Who may call, and how.
        limits: What is taken at most.
        destinations: Who gets the results of scored series.
        quiet: Seconds without a further image after which a series whose associations have ended is complete.
        patience: The same for one whose association is still open, has broken off, or had images refused.
        keep_days: Days after which the images of a finished series are removed; 0: never.
        http: ``HOST:PORT`` of the health page and the metrics; "": none.
        stow: ``HOST:PORT`` where STOW-RS is taken, too; "": nowhere.
    """

    listen: Listen = field(default_factory=Listen)
    limits: Limits = field(default_factory=Limits)
    destinations: tuple[Target, ...] = ()
    quiet: float = 30.0
    patience: float = 300.0
    keep_days: float = 0.0
    http: str = "127.0.0.1:11180"
    stow: str = ""

    def __post_init__(self) -> None:
        if min(self.quiet, self.patience, self.keep_days) < 0:
            raise InputError("quiet, patience and keep_days must not be below 0")
        if self.listen.commitment and self.keep_days:
            raise InputError(
                "commitment: who is told that images are safe may delete its own; it does not go together "
                "with keep_days, which removes them here"
            )
        if len({(t.dimse.lower(), t.dicomweb.rstrip("/")) for t in self.destinations}) < len(
            self.destinations
        ):
            raise InputError("destinations: one of them is named twice")


def load_config(path: Path | None) -> NodeConfig:
    """What a YAML file says; the defaults without one.

    Raises:
        InputError: It cannot be read, or holds what it should not.
    """
    if path is None:
        return NodeConfig()
    content = parse_yaml(read_bytes(path, most=1 << 18), str(path))
    return from_plain(NodeConfig, content or {}, where=str(path), error=InputError)


@dataclass(kw_only=True)
class Health:
    """How a node is; read by the health page.

    Attributes:
        started: Seconds since 1970.
        beat: `time.monotonic` of the last turn of its loop.
        scoring: Series that are with the workers.
        settled: Series that got a row since the start.
        deaths: Worker processes that crashed, hung or were killed.
        destinations: What stands in the way of each destination; "": nothing.
    """

    started: float = field(default_factory=time.time)
    beat: float = field(default_factory=time.monotonic)
    scoring: int = 0
    settled: int = 0
    deaths: int = 0
    destinations: dict[str, str] = field(default_factory=dict)


class Node:
    """Listens, scores and sends until it is stopped.

    Args:
        job: What is done with every series.
        inbox: Folder for what is received; made when missing.
        config: How it works.
        means: Who does the work.
        environment: Holds credentials.
        watch: Told of each row.
        ready: Told once the node listens, with its port, and the device in words when a worker is ready.
        log_path: Log file of the worker processes.
    """

    def __init__(
        self,
        job: Job,
        inbox: Path,
        config: NodeConfig,
        *,
        means: Means,
        environment: Mapping[str, str],
        watch: Callable[[ResultRow], None] = lambda row: None,
        ready: Callable[[str], None] = lambda text: None,
        log_path: Path | None = None,
    ) -> None:
        self.job, self.config, self.health = job, config, Health()
        self.root = inbox
        self._means, self._watch, self._ready, self._log_path = means, watch, ready, log_path
        self._environment = environment
        self._targets = [(t.opened(environment), t.preparation(job.output)) for t in config.destinations]
        self._report_tls = tls_context(environment) if config.listen.certificate else None
        self._stop = threading.Event()
        self._engine: Engine | None = None
        self._versions: dict[str, int] = {}
        self._table = LiveTable(
            job, lambda: (checked_row(row) for row in self.inbox.rows()), lambda counts: self._counted()
        )
        self.inbox: Inbox
        self.listener: Listener
        self.page: HealthPage | None = None
        self.stow: Stow | None = None

    def stop(self) -> None:
        """End: nothing more is received, and what is being computed is finished first. From any thread or
        signal."""
        self._stop.set()
        if self._engine is not None:
            self._engine.stop()

    def wait(self, seconds: float) -> None:
        """Wait, no longer than until it is told to stop."""
        self._stop.wait(seconds)

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def received(self) -> Counter[str]:
        """What was received and turned away, by kind, since the start."""
        return self.listener.counts + (self.stow.counts if self.stow is not None else Counter())

    def run(self) -> None:
        """Work until `stop`.

        Raises:
            InputError, OutputError, WeightsError, DeviceError: It cannot start or go on; all that was
                received is there for the next start.
        """
        output = self.job.output
        with ExitStack() as stack:
            stack.enter_context(OutputLock(output))
            self.inbox = Inbox(self.root, self.config.limits)
            stack.callback(self.inbox.close)
            settle_output(self.job, redo=False, series=self._counted())
            self.inbox.belongs_to(output)
            remove_leftovers(output)
            self._table.write(now=True)
            journal = Journal(output)
            stack.callback(journal.close)
            workers = stack.enter_context(self._means.workers(self.job, 1000, self._log_path))
            couriers = [Courier(self, *target) for target in self._targets]
            self.listener = Listener(self.config.listen, self.inbox)
            stack.callback(self._listener_off)
            threading.Thread(target=self._sweep, name="sweeper", daemon=True).start()
            if self.config.stow:
                from .stow import Stow

                self.stow = Stow(self.config.stow, self.config.listen, self.inbox, self._environment)
                stack.callback(self.stow.stop)
            if self.config.http:
                from .health import HealthPage

                self.page = HealthPage(self, self.config.http)
                stack.callback(self.page.stop)
            if self.config.listen.commitment:
                committer = Committer(
                    self.inbox,
                    self.config.listen.aet,
                    tls=self._report_tls,
                    stopping=lambda: self.stopping,
                    wait=self.wait,
                )
                committer.start()
                stack.callback(committer.join, _LAST_WAIT)
            for courier in couriers:
                courier.start()
                stack.callback(courier.join, _LAST_WAIT)
            stack.callback(self._stop.set)  # first of all, whatever ends it
            self._ready(
                f"listening: {self.config.listen.aet} at {self.config.listen.host} port {self.listener.port}"
            )
            if self.stow is not None:
                self._ready(f"listening: STOW-RS at {self.stow.url}")
            self._loop(workers, journal)
            self._table.write(now=True)

    def _listener_off(self) -> None:
        self._stop.set()
        self.listener.stop()

    def _sweep(self) -> None:
        while not self._stop.wait(_TICK):
            try:
                self.listener.sweep()
            except Exception as error:  # the next turn tries it again
                log.error("how a transfer ended could not be noted: %s", type(error).__name__)

    def _loop(self, workers: Workers, journal: Journal) -> None:
        cleaned = 0.0
        while not self.stopping:
            self.health.beat = time.monotonic()
            batch = self._complete()
            if batch:
                self._score(batch, workers, journal)
            self._table.write()
            if self.config.keep_days and time.monotonic() - cleaned > 60:
                cleaned = time.monotonic()
                self.inbox.remove_old(self.config.keep_days)
            if not batch:
                self._stop.wait(_TICK)

    # --- scoring ------------------------------------------------------------------------------------------

    def _complete(self) -> list[Waiting]:
        """Series that are complete, `_BATCH` at most."""
        open_ones, now, found = self.listener.at_work(), time.time(), []
        if self.stow is not None:
            open_ones |= self.stow.at_work()
        for one in self.inbox.waiting():
            age = now - one.last
            at_work = one.uid in open_ones or one.transfer == OPEN
            wait = self.config.patience if at_work or one.transfer != CLOSED else self.config.quiet
            if age >= wait or age < -wait or _all_there(one):
                found.append(one)
                if len(found) == _BATCH:
                    break
        return found

    def _score(self, batch: Sequence[Waiting], workers: Workers, journal: Journal) -> None:
        engine = Engine(
            self.job,
            workers,
            journal,
            retries=self._means.retries,
            watch=lambda row, skipped: self._settle(row),
            ready=lambda device: self._ready(f"device: {device}"),
        )
        self._engine, self.health.scoring = engine, len(batch)
        if self.stopping:
            return
        todo = []
        for one in batch:
            self._versions[one.uid] = one.version
            self._clear(one.uid)
            series, reason = self._series(one)
            if reason:
                self._settle(self.job.failed(series, "unreadable-file", reason).row)
            else:
                todo.append(series)
        try:
            engine.run(todo, redo=True)
        finally:
            self._engine, self.health.scoring = None, 0
            self._versions.clear()
            self.health.deaths += engine.statistics.deaths

    def _series(self, one: Waiting) -> tuple[Series, str]:
        """A series as its files make it up, with what must be said of its transfer; or why it is none."""
        missing = self.inbox.tidy(one.uid)
        found = discover_within(self.inbox.folder(one.uid), allow=self.job.allowed)
        series = found.find(one.uid)
        if series is None:
            return Series(series_uid=one.uid), "none of its images can be read (any more); send it again"
        said = _incomplete(one, missing + len(found.unreadable))
        return transfer_incomplete(series, said, allow=self.job.allowed) if said else series, ""

    def _clear(self, uid: str) -> None:
        """Remove what an earlier row of a series left, so that it does not stand beside the new one."""
        row = self.inbox.row(uid)
        folder = None if row is None else series_folder(self.job.output.resolve(), str(row.get("folder", "")))
        if folder is not None:
            clear_results(self.job.output, folder)

    def _settle(self, row: ResultRow) -> None:
        names = [d.name for d, _ in self._targets] if row.status == "scored" else []
        self.inbox.settle(row.series_uid, self._versions[row.series_uid], asdict(row), names, row.folder)
        self._table.due = True
        self.health.settled += 1
        self.health.scoring -= 1
        self._watch(row)

    def _counted(self) -> dict[str, Any]:
        counts = self.inbox.counts()
        done = {s: counts[s] for s in STATUSES}
        known = sum(done.values())
        return {"found": known, "selected": known, "finished": counts["waiting"] == 0, **done, "missing": 0}


def _all_there(one: Waiting) -> bool:
    """Whether as many images came as the series says that it has."""
    return 0 < one.expected <= one.images


def _incomplete(one: Waiting, missing: int) -> str:
    """Why a series may not be all that was sent; "": it is."""
    if one.transfer == CONFLICT:
        return (
            "images came again under the same UIDs with other content; what came first is kept; see "
            "docs/node.md for a corrected study"
        )
    if missing:
        return f"{missing} of its images are not here any more; send the whole series again"
    if one.expected > one.images:
        return f"{one.images} of {one.expected} images came; send the series again"
    if _all_there(one):
        return ""
    if one.transfer == CUT:
        return f"the transfer broke off after {one.images} images; send the series again"
    if one.transfer == REFUSED:
        return f"{one.images} images came, and others were refused; send the series again"
    return ""


def check_places(inbox: Path, output: Path) -> None:
    """See that neither folder lies in the other.

    Raises:
        OutputInsideInput: One does.
    """
    first, second = inbox.resolve(), output.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise OutputInsideInput(
            f"{inbox} and {output}: what is received and what is found must not lie in one another; choose "
            "two folders beside each other"
        )


class Courier(threading.Thread):
    """Sends what is there for one destination, for as long as the node is at work."""

    def __init__(self, node: Node, destination: Destination, preparation: Preparation) -> None:
        super().__init__(name=f"courier-{destination.name}", daemon=True)
        self._node, self._destination, self._preparation = node, destination, preparation
        self._failures = 0
        node.health.destinations[destination.name] = ""

    def run(self) -> None:
        """Send until the node stops."""
        while not self._node.stopping:
            try:
                with ExitStack() as stack:
                    stack.callback(self._destination.close)
                    journal = PushJournal(self._node.job.output, self._destination.name)
                    stack.callback(journal.close)
                    self._send_all(journal)
            except Exception as error:  # whatever it is, the next try may go well
                self._node.wait(self._troubled(error))

    def _send_all(self, journal: PushJournal) -> None:
        """Send until the node stops.

        Raises:
            OutputError: The journal cannot be written.
        """
        while not self._node.stopping:
            try:
                busy, wait = self._send_some(journal), _TICK
            except DestinationError as error:
                busy, wait = False, self._troubled(error)
            if not busy:
                self._destination.close()
                self._node.wait(wait)

    def _troubled(self, error: Exception) -> float:
        """Say what stands in the way, and how long to wait."""
        known = isinstance(error, DeepCACError)
        text = str(error) if known else f"{self._destination.name}: {type(error).__name__}"
        if text != self._node.health.destinations[self._destination.name]:
            log.warning("%s", text if isinstance(error, DestinationError) else type(error).__name__)
        self._node.health.destinations[self._destination.name] = text
        self._failures += 1
        if isinstance(error, DestinationRefused):
            return _REFUSED_WAIT
        return float(min(2 ** min(self._failures - 1, 20), _LONGEST_WAIT))

    def _send_some(self, journal: PushJournal) -> bool:
        """Send what is due; whether there was anything.

        Raises:
            DestinationError, OutputError: It cannot go on.
        """
        inbox, output, name = self._node.inbox, self._node.job.output, self._destination.name
        due = inbox.to_deliver(name)
        for delivery in due:
            if self._node.stopping:
                break
            problems: list[Problem] = []
            summary = PushSummary(journal=journal.path, series=1)
            sender = Sender(
                self._destination, journal, summary, preparation=self._preparation, tell=problems.append
            )
            folder = series_folder(output.resolve(), delivery.folder)
            if folder is not None:
                sender.send_results(delivery.series_uid, folder, output)
            self._node.health.destinations[name], self._failures = "", 0
            if problems:
                inbox.not_delivered(name, delivery, problems[0].reason, _next_try(delivery))
            else:
                inbox.delivered(name, delivery)
        return bool(due)


def _next_try(delivery: Delivery) -> float:
    """Seconds until an instance that was refused is tried again: 10 s, doubled each time, an hour at most."""
    return float(min(10 * 2 ** min(delivery.tries, 20), 3600))
