"""What runs in a worker process: parts of the chain, models loaded once, one series after the other."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from ..dicom import Series
from ..pipeline.case import Case
from ..pipeline.chain import Chain
from ..pipeline.run import Job, Settled
from ..pipeline.step import PHASES
from ..system.atomic import output_errors
from ..system.cores import wait_asleep
from ..system.memory import keep_freed_memory
from ..system.names import OneLine
from .copies import SIGNALS
from .exchange import put, take

if TYPE_CHECKING:
    import torch

    from ..system.gpu import GpuMeter


STOP = "stop"
"""File in the scratch folder: from now on SIGTERM is meant."""
HALT = "halt"
"""File in the scratch folder: from now on no series is begun, and none is computed that only was read."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a worker does.

    Attributes:
        phases: Its parts of the chain (`pipeline.step.PHASES`).
        device: For the networks, as `choose_device` takes it; "" without ``compute``.
        threads: CPU threads of its computations; 0: as many as the library takes.
        scratch: Folder for cases on their way to the next worker.
        log_path: The run's log file, or None.
    """

    phases: tuple[str, ...]
    device: str = ""
    threads: int = 0
    scratch: Path
    log_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a part of the chain took.

    Attributes:
        seconds: With what came before and after the chain.
        peak_mb: Largest memory of the worker so far, MB (10⁶ bytes); 0 where the system does not tell.
        gpu_percent: Utilisation of its GPU since the series before; None without one, or where the driver
            does not tell.
        gpu_mb: Largest memory on its GPU so far, MB; 0 without one.
    """

    seconds: float
    peak_mb: float
    gpu_percent: float | None = None
    gpu_mb: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Handed:
    """A case lies in a file (see `exchange`) for the next worker."""

    path: Path
    effort: Effort


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A series is settled."""

    settled: Settled
    effort: Effort


@dataclass(frozen=True, kw_only=True)
class NotBegun:
    """A task that was not begun, as the run is stopping."""


class Worker:
    """A job in one role; the models are loaded when the first series comes."""

    def __init__(self, job: Job, role: Role) -> None:
        self.job = job
        self.role = role

    @cached_property
    def _chain(self) -> Chain:
        return self.job.chain(self.role.phases, self._device() if "compute" in self.role.phases else None)

    @cached_property
    def _gpu(self) -> GpuMeter | None:
        """Measures the GPU as long as this process lives; None without one."""
        if "compute" not in self.role.phases or self._device().type != "cuda":
            return None
        from ..system.gpu import GpuMeter  # it loads torch, which workers that read or write do without

        return GpuMeter(self._device()).__enter__()

    def _effort(self, started: float) -> Effort:
        seconds, peak = time.perf_counter() - started, peak_memory()
        if self._gpu is None:
            return Effort(seconds=seconds, peak_mb=peak)
        import torch

        memory = torch.cuda.max_memory_allocated(self._device()) / 1e6
        return Effort(seconds=seconds, peak_mb=peak, gpu_percent=self._gpu.since_last(), gpu_mb=memory)

    def _device(self) -> torch.device:
        import torch

        from ..pipeline.chain import choose_device

        if self.role.threads:
            torch.set_num_threads(self.role.threads)
        return choose_device(self.role.device)

    def warm_up(self) -> str:
        """Load everything; the device in words."""
        from ..pipeline.chain import describe_device

        _ = self._chain, self._gpu
        return describe_device(self._device()) if "compute" in self.role.phases else ""

    def __call__(self, task: Series | Path) -> Handed | Finished:
        """A series, or a case that another worker handed on, through the role's part of the chain.

        Raises:
            DiskFull, OutputUnwritable, WeightsError, DeviceError: These end the run.
        """
        started = time.perf_counter()
        case = take(task) if isinstance(task, Path) else Case(series=task)
        last = self.role.phases[-1] == PHASES[-1]
        outcome = self.job.advance(case, self._chain, last=last)
        if isinstance(outcome, Settled):
            return Finished(settled=outcome, effort=self._effort(started))
        path = self.role.scratch / uuid4().hex
        with output_errors(path):
            put(outcome, path)
        return Handed(path=path, effort=self._effort(started))


def peak_memory() -> float:
    """Largest memory of this process so far, MB (10⁶ bytes); 0 where the system does not tell."""
    if sys.platform == "linux":  # getrusage would tell that of the process which started this one, if larger
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024 / 1e6
    try:
        import resource
    except ModuleNotFoundError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# Of a worker process: pebble calls functions of a module.

_worker: Worker | None = None


def start(job: Job, role: Role, environment: Mapping[str, str]) -> None:
    """Make this process a worker of the one that wanted it, whose environment it takes over and with which it
    dies."""
    global _worker
    os.environ.clear()
    os.environ.update(environment)
    started_file(role.scratch, os.getpid()).touch()
    # Terminals and schedulers tell all processes of a run; the parent decides, and says so by a file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if (role.scratch / STOP).exists() else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _die_with_the_run()
    prepare_process()
    if role.log_path is not None:
        add_log_file(role.log_path)
    _worker = Worker(job, role)


def started_file(scratch: Path, pid: int | None) -> Path:
    """It is there as soon as the worker process `pid` has all that it takes over from its parent."""
    return scratch / f"started-{pid}"


def prepare_process() -> None:
    """What holds for as long as a worker lives: libraries' chatter stays off the screen, its threads sleep
    while they wait for each other, and it keeps freed memory. To be called before torch is loaded."""
    warnings.simplefilter("ignore")
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    wait_asleep()
    keep_freed_memory()


def work(task: Series | Path) -> Handed | Finished | NotBegun:
    """The task of a worker process."""
    worker = _started()
    computed = worker.role.phases == PHASES[-1:]  # only to be written
    if not computed and (worker.role.scratch / HALT).exists():
        return NotBegun()
    return worker(task)


def warm_up() -> str:
    """Load what the first series would wait for."""
    return _started().warm_up()


def _started() -> Worker:
    if _worker is None:
        raise RuntimeError("this process is no worker")
    return _worker


def add_log_file(path: Path) -> logging.Handler:
    """Log to a file as all processes of a run do: lines are appended whole."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"))
    logger = logging.getLogger(__name__.partition(".batch")[0])
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return handler


_PR_SET_PDEATHSIG = 1
"""Linux, prctl(2): the signal that a process gets when its parent dies."""


def _die_with_the_run() -> None:
    """End this process as soon as the one that wanted it is gone, however that ended.

    So it does when the one is gone of which it is a copy, and by which alone the run would hear of its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    run = multiprocessing.parent_process()
    if run is not None:
        threading.Thread(target=_watch, args=(run.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
