"""Workers on this machine: supervised processes that may crash, hang or run out of memory."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pebble import ProcessPool
from pebble.pool.process import WORKERS_NAME

from ..dicom import Series
from ..pipeline.run import Job
from ..pipeline.step import PHASES
from ..system.cores import threads_each
from . import worker
from .copies import context, signals_blocked
from .worker import Finished, Handed, NotBegun, Role, Worker

log = logging.getLogger(__name__)

LOADING_SECONDS = 900.0
"""A worker that has not loaded its models after this time hangs; a cold network drive may take minutes."""

START_SECONDS = 120.0
"""For a worker process from its start to its first own line; a cold network drive may take some, and so may
a busy machine."""

Outcome = Handed | Finished | NotBegun | BaseException
"""Of a task: what a worker says, or what ended it."""


class WorkerLost(Exception):
    """A worker on another machine is gone; the text says why. As an outcome, it is a death."""


class Workers(Protocol):
    """Whoever does the work of a run.

    Attributes:
        names: Of the stages that a series goes through, in order.
        counts: Workers of each stage.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def submit(self, stage: int, task: Series | Path, done: Callable[[Outcome], None]) -> None:
        """Have a task done; `done` is called from any thread."""

    def ready(self, done: Callable[[Outcome | str], None]) -> None:
        """Start whatever takes long to start; `done` is told the device in words, or what went wrong."""

    def halt(self) -> None:
        """Begin nothing any more: what only waits to be read or computed comes back as `NotBegun`, and what
        is computed already is still written. Called once, from any thread or signal."""


class InProcess:
    """This process does everything itself, one series at a time: for debuggers, profilers and small scripts.

    Nothing is supervised: what kills a worker elsewhere ends the program here.
    """

    def __init__(self, job: Job, device: str = "cpu") -> None:
        self.names: tuple[str, ...] = ("all",)
        self.counts: tuple[int, ...] = (1,)
        self._worker = Worker(job, Role(phases=PHASES, device=device, scratch=Path()))

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def ready(self, done: Callable[[Outcome | str], None]) -> None:
        """See `Workers.ready`."""
        done(self._worker.warm_up())

    def halt(self) -> None:
        """See `Workers.halt`: nothing waits here."""

    def submit(self, stage: int, task: Series | Path, done: Callable[[Outcome], None]) -> None:
        """See `Workers.submit`."""
        done(self._worker(task))


class LocalWorkers:
    """One process a device, with its models, and processes that read and write beside it.

    Args:
        job: What to do.
        devices: One worker each, as `choose_device` takes them; ``cpu`` may stand there several times.
        prefetch: Processes that read series ahead, and as many that write results; 0: the workers of the
            devices read and write themselves.
        timeout: Seconds a task may take before its worker is killed; None: any time.
        log_path: The run's log file, or None.
    """

    def __init__(
        self,
        job: Job,
        devices: Sequence[str],
        *,
        prefetch: int = 0,
        timeout: float | None = None,
        log_path: Path | None = None,
    ) -> None:
        self._timeout = timeout
        self._scratch = Scratch()
        on_cpu = sum(d == "cpu" for d in devices)
        threads = threads_each(on_cpu) if on_cpu else 0

        def pool(phases: tuple[str, ...], count: int = 1, device: str = "") -> _Pool:
            role = Role(
                phases=phases,
                device=device,
                threads=threads if device == "cpu" else 0,
                scratch=self._scratch.path,
                log_path=log_path,
            )
            return _Pool(job, role, count)

        read, compute, write = PHASES
        if prefetch:
            self.names: tuple[str, ...] = (read, compute, write)
            self._stages = [
                [pool((read,), prefetch)],
                [pool((compute,), device=d) for d in devices],
                [pool((write,), prefetch)],
            ]
        else:
            self.names = ("all",)
            self._stages = [[pool(PHASES, device=d) for d in devices]]
        self.counts: tuple[int, ...] = tuple(sum(p.count for p in stage) for stage in self._stages)

    @property
    def _devices(self) -> list[_Pool]:
        return self._stages[1 if len(self._stages) > 1 else 0]

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._scratch.path / worker.STOP).touch()
        for stage in self._stages:
            for pool in stage:
                pool.stop()
        self._scratch.remove()

    def ready(self, done: Callable[[Outcome | str], None]) -> None:
        """See `Workers.ready`."""
        for pool in self._devices:
            pool.schedule(worker.warm_up, (), LOADING_SECONDS, done)

    def halt(self) -> None:
        """See `Workers.halt`."""
        with suppress(FileNotFoundError):  # all is done, and the folder gone
            (self._scratch.path / worker.HALT).touch()

    def submit(self, stage: int, task: Series | Path, done: Callable[[Outcome], None]) -> None:
        """See `Workers.submit`; of several devices the one with the least to do gets the task."""
        pool = min(self._stages[stage], key=lambda p: p.waiting)
        pool.schedule(worker.work, (task,), self._timeout, done)


class _Pool:
    """A pebble pool that is made anew when it breaks."""

    def __init__(self, job: Job, role: Role, count: int) -> None:
        self.count = count
        self.waiting = 0
        self._counting = threading.Lock()
        self._job, self._role = job, role
        self._pool: ProcessPool | None = None

    def _made(self) -> ProcessPool:
        if self._pool is None:
            self._pool = ProcessPool(
                max_workers=self.count,
                initializer=worker.start,
                initargs=(self._job, self._role, dict(os.environ)),
                context=context(),
            )
        return self._pool

    def schedule(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        timeout: float | None,
        done: Callable[[Any], None],
    ) -> None:
        with signals_blocked():  # pebble may start processes and threads here
            try:
                future = self._made().schedule(function, args=args, timeout=timeout)
            except RuntimeError:  # a worker died between two tasks, and pebble gave up the pool
                log.warning("a worker process ended between two series; starting others")
                self.stop()
                future = self._made().schedule(function, args=args, timeout=timeout)
        self._count(1)

        def finished(future: Future[Any]) -> None:
            self._count(-1)
            done(future.exception() or future.result())

        future.add_done_callback(finished)

    def _count(self, change: int) -> None:
        with self._counting:
            self.waiting += change

    def stop(self) -> None:
        if self._pool is not None:
            _await_start(self._role.scratch)
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None


def _await_start(scratch: Path) -> None:
    """Wait until no worker process is still starting, `START_SECONDS` at most.

    One that is started takes over locks of its pool; a pool that is stopped earlier has removed them, and
    Python ends the process with a traceback on the terminal.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and any(
        child.name == WORKERS_NAME and not worker.started_file(scratch, child.pid).exists()
        for child in multiprocessing.active_children()
    ):
        time.sleep(0.05)


class Scratch:
    """A folder below the system's temporary one (``TMPDIR``); those that killed runs left are removed."""

    _PREFIX = "deepcac2-scratch-"

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        for old in base.glob(f"{self._PREFIX}*"):
            if _unlocked(old):
                shutil.rmtree(old, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=self._PREFIX))
        self._lock = (self.path / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _unlocked(folder: Path) -> bool:
    try:
        with (folder / "lock").open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
