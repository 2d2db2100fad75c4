"""The stream: series go through the workers' stages, a bounded number at once, and each ends in a row."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as TaskTimeout
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from pebble import ProcessExpired

from ..dicom import Series
from ..errors import DeepCACError
from ..pipeline.results import ResultRow
from ..pipeline.run import Job, Settled, finished
from .ledger import QUARANTINE_AFTER, Journal
from .local import Outcome, WorkerLost, Workers
from .worker import Effort, Finished, Handed, NotBegun

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Load:
    """What a stage's workers did.

    Attributes:
        workers: How many there are.
        busy: Seconds that they worked, together.
        peak_mb: Largest memory of one of them, MB.
        gpu_percent: Mean utilisation of their GPUs, None without.
        gpu_mb: Largest memory on one of the GPUs, MB.
    """

    workers: int
    busy: float = 0.0
    peak_mb: float = 0.0
    gpu_mb: float = 0.0
    _gpu_seconds: float = 0.0
    _gpu_busy: float = 0.0

    @property
    def gpu_percent(self) -> float | None:
        return self._gpu_busy / self._gpu_seconds if self._gpu_seconds else None

    def add(self, effort: Effort) -> None:
        """Take a task into account."""
        self.busy += effort.seconds
        self.peak_mb = max(self.peak_mb, effort.peak_mb)
        self.gpu_mb = max(self.gpu_mb, effort.gpu_mb)
        if effort.gpu_percent is not None:
            self._gpu_seconds += effort.seconds
            self._gpu_busy += effort.seconds * effort.gpu_percent


@dataclass(kw_only=True)
class Statistics:
    """How a run went, kept up to date while it runs.

    Attributes:
        started: `time.monotonic` of its begin.
        stages: By name, in order.
        modules: Seconds per module of the chain, together.
        series: Series computed, without those that were there.
        deaths: Workers that crashed, hung or were killed.
    """

    started: float = field(default_factory=time.monotonic)
    stages: dict[str, Load] = field(default_factory=dict)
    modules: dict[str, float] = field(default_factory=dict)
    series: int = 0
    deaths: int = 0

    @property
    def seconds(self) -> float:
        """Since the begin."""
        return time.monotonic() - self.started

    def bottleneck(self) -> tuple[str, float]:
        """The stage whose workers are busiest, and the share of the time that they work."""
        shares = {n: s.busy / s.workers / max(self.seconds, 1e-9) for n, s in self.stages.items()}
        name = max(shares, key=shares.__getitem__, default="")
        return name, shares.get(name, 0.0)

    def gpu(self) -> tuple[float, float] | None:
        """Mean utilisation of the GPUs, percent, and the largest memory on one, MB; None without."""
        for load in self.stages.values():
            if load.gpu_percent is not None:
                return load.gpu_percent, load.gpu_mb
        return None

    def slowest_module(self) -> tuple[str, float]:
        """The module that took most time, and its seconds a series."""
        name = max(self.modules, key=self.modules.__getitem__, default="")
        return name, self.modules.get(name, 0.0) / max(self.series, 1)


@dataclass(kw_only=True, eq=False)
class _Task:
    series: Series
    stage: int = 0
    deaths: int = 0
    handed: Path | None = None


Watch = Callable[[ResultRow, bool], None]
"""Called with each row, and whether it was there already."""


class Engine:
    """Takes series through workers; what dies is tried again or ends in a row.

    Args:
        job: What is done.
        workers: Who does it.
        journal: Where attempts are written down.
        retries: How often a series whose worker died is tried again.
        watch: Told of each row.
        ready: Told the device in words when a worker is ready.
    """

    def __init__(
        self,
        job: Job,
        workers: Workers,
        journal: Journal,
        *,
        retries: int = 1,
        watch: Watch = lambda row, skipped: None,
        ready: Callable[[str], None] = lambda device: None,
    ) -> None:
        self._job = job
        self._workers = workers
        self._journal = journal
        self._retries = retries
        self._watch = watch
        self._ready = ready
        self._outcomes: SimpleQueue[tuple[_Task | None, Outcome | str]] = SimpleQueue()
        self._again: deque[_Task] = deque()
        self._at: Counter[int] = Counter()
        self._stopping = threading.Event()
        self.statistics = Statistics(
            stages={n: Load(workers=c) for n, c in zip(workers.names, workers.counts, strict=True)}
        )

    def stop(self) -> None:
        """Begin no further series; `run` returns when those being computed are done, and those that were only
        read or waiting are left for another run. From any thread or signal."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._workers.halt()

    @property
    def finishing(self) -> int:
        """Series that are computed or written now, at most, and would be finished after `stop`."""
        compute = len(self._workers.names) // 2  # of read, compute and write; or of one stage for all
        written = sum(count for stage, count in self._at.items() if stage > compute)
        return min(self._at[compute], self._workers.counts[compute]) + written

    def run(self, series: Iterable[Series | ResultRow], *, redo: bool = False) -> None:
        """Work until every series has its row, or until `stop`.

        Args:
            series: What is to be done; one that is known to be finished may come as its row.
            redo: Compute what is there already, too.

        Raises:
            OutputError, WeightsError, DeviceError: The run cannot go on; what is finished stays.
        """
        todo = self._to_do(series, redo)
        at_work = 0
        starting = False
        exhausted = False
        while True:
            # One for each worker, and a few on their way: more would only wait, and fill memory.
            limit = sum(self._workers.counts) + min(self._workers.counts)
            while at_work < limit and not (exhausted and not self._again):
                task = self._next(todo)
                if task is None:
                    exhausted = True
                    break
                if not starting:
                    starting = True
                    self._workers.ready(lambda outcome: self._outcomes.put((None, outcome)))
                at_work += 1
                self._submit(task)
            if not at_work:
                return
            task, outcome = self._outcomes.get()
            if task is None:
                self._started(outcome)
            else:
                at_work -= self._take(task, outcome)

    def _next(self, todo: Iterator[_Task]) -> _Task | None:
        if self._stopping.is_set():
            return None
        return self._again.popleft() if self._again else next(todo, None)

    def _to_do(self, series: Iterable[Series | ResultRow], redo: bool) -> Iterator[_Task]:
        """The series that need work; the others get their rows here."""
        for one in series:
            uid = one.series_uid
            if isinstance(one, ResultRow):
                self._watch(one, True)
            elif not redo and (row := finished(self._job.folder(one))) is not None:
                self._watch(row, True)
            elif self._journal.quarantined(uid):
                reason = (
                    f"set aside: it ended {self._journal.deaths[uid]} worker processes (see the journal in "
                    "logs/); look at the series, then give the command with --redo to try again"
                )
                self._settle(self._job.failed(one, "quarantined", reason))
            else:
                self._journal.add("started", uid)
                yield _Task(series=one)
            if self._stopping.is_set():
                return

    def _submit(self, task: _Task) -> None:
        given = task.handed if task.handed is not None else task.series
        self._at[task.stage] += 1
        self._workers.submit(task.stage, given, lambda outcome: self._outcomes.put((task, outcome)))

    def _started(self, outcome: Outcome | str) -> None:
        if isinstance(outcome, str):
            self._ready(outcome)
        elif isinstance(outcome, DeepCACError):
            raise outcome
        # A worker that dies while it starts dies again with its first series, and is counted there.

    def _take(self, task: _Task, outcome: Outcome | str) -> int:
        """What follows from an outcome; 1 if the task is no longer at work."""
        self._at[task.stage] -= 1
        if isinstance(outcome, (Handed, Finished)):
            self.statistics.stages[self._workers.names[task.stage]].add(outcome.effort)
        if isinstance(outcome, Handed):
            task.stage, task.handed = task.stage + 1, outcome.path
            self._submit(task)  # what comes too late to be computed is told so there
            return 0
        if isinstance(outcome, NotBegun):
            if task.handed is not None:
                task.handed.unlink(missing_ok=True)
            return 1
        if isinstance(outcome, Finished):
            self._settle(outcome.settled)
            return 1
        if isinstance(outcome, DeepCACError):
            raise outcome
        self._died(task, outcome)
        return 1

    def _died(self, task: _Task, outcome: object) -> None:
        uid, code, how = task.series.series_uid, *_words(outcome)
        log.warning("series %s: %s", uid, how)
        self.statistics.deaths += 1
        self._journal.add("died", uid, how)
        if task.handed is not None:
            task.handed.unlink(missing_ok=True)
        task.deaths += 1
        if task.deaths <= self._retries and not self._journal.quarantined(uid):
            self._again.append(_Task(series=task.series, deaths=task.deaths))
            return
        left = QUARANTINE_AFTER - self._journal.deaths[uid]
        hint = "the next run tries it again" if left > 0 else "later runs set it aside unless told --redo"
        self._settle(self._job.failed(task.series, code, f"{how}; {hint}"))

    def _settle(self, settled: Settled) -> None:
        row = settled.row
        self._journal.add("settled", row.series_uid, row.status)
        self.statistics.series += 1
        for name, seconds in settled.timings.items():
            self.statistics.modules[name] = self.statistics.modules.get(name, 0.0) + seconds
        self._watch(row, False)


def _words(outcome: object) -> tuple[str, str]:
    """Code and words for what ended a worker."""
    if isinstance(outcome, TaskTimeout):
        return "timeout", "its worker took longer than --timeout allows and was stopped"
    if isinstance(outcome, ProcessExpired):
        return "worker-died", f"its worker process ended with {_exit_in_words(outcome.exitcode)}"
    if isinstance(outcome, WorkerLost):
        return "worker-died", f"its worker was lost: {outcome}"
    return "worker-died", f"its worker failed: {type(outcome).__name__}: {str(outcome).splitlines()[:1]}"


def _exit_in_words(code: int | None) -> str:
    import signal

    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = str(-code)
    return f"signal {name}" + (" (often: not enough memory)" if name == "SIGKILL" else "")
