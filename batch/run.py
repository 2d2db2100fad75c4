"""A run: every series of a folder through the chain, each on its own, into one table."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..dicom import Discovery, Series, chosen
from ..errors import DeviceError, OutputError
from ..outputs.report import write_run_report
from ..pipeline.image_series import ImageSeries, find_series
from ..pipeline.places import PARQUET
from ..pipeline.results import STATUSES, ResultRow, read_parquet, unreadable_row, write_table
from ..pipeline.run import Job, check_folders, finished, settle_output, stored_row, write_run
from ..pipeline.workflow import Workflow
from ..system.atomic import remove_leftovers
from ..system.cores import workers_that_fit
from .cluster import RayWorkers
from .engine import Engine, Statistics
from .ledger import Journal, OutputLock, Shard
from .local import InProcess, LocalWorkers, Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells whoever watches: series done so far, of how many, and the newest row.

    Attributes:
        done, total: Series.
        counts: Of them, by status.
        row: The newest row; None at the start.
        skipped: Whether that row was there already from an earlier run.
        statistics: How the workers do.
    """

    done: int
    total: int
    counts: dict[str, int]
    row: ResultRow | None = None
    skipped: bool = False
    statistics: Statistics = field(repr=False)

    @property
    def rate(self) -> float:
        """Series computed a second since the begin, 0 before the first."""
        return self.statistics.series / max(self.statistics.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run ended with.

    Attributes:
        output: The output folder.
        left: Series of this run's shard that are not done: it was told to stop.
        counts: Rows of this run, by status; with one per file that looked like DICOM and could not be read.
        table: Whether the table was written: of several shards at work the last one does it.
        workbook: Whether it fits into an Excel workbook, which was then written, too.
        images: Series that are NIfTI or NRRD files: they get no DICOM.
        statistics: How the workers did.
    """

    output: Path
    left: int
    counts: dict[str, int]
    table: bool
    workbook: bool = True
    images: int = 0
    statistics: Statistics = field(repr=False)

    def count(self, status: str) -> int:
        """Rows of a status."""
        return self.counts.get(status, 0)

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop before all was done."""
        return self.left > 0

    @property
    def done(self) -> int:
        """Rows of this run."""
        return sum(self.counts.values())

    @property
    def rows(self) -> tuple[ResultRow, ...]:
        """The table, read anew: one row per series found, and per unreadable file."""
        return tuple(read_parquet(self.output / PARQUET))

    def first(self, count: int) -> tuple[ResultRow, ...]:
        """The first rows of the table."""
        return tuple(islice(read_parquet(self.output / PARQUET), count))


@dataclass(frozen=True, kw_only=True)
class Means:
    """Who does the work, and how patiently.

    Attributes:
        devices: One worker each, as `choose_device` takes them; empty: this process does it all, unwatched.
        prefetch: Processes that read ahead, and as many that write; None: as fits the machine.
        timeout: Seconds a series may take in one stage; None: any time.
        retries: How often a series whose worker died is tried again.
        ray: Address of a Ray cluster that does the work instead, see `RayWorkers`; "": none.
    """

    devices: Sequence[str] = ()
    prefetch: int | None = None
    timeout: float | None = None
    retries: int = 1
    ray: str = ""

    def workers(self, job: Job, series: int, log_path: Path | None) -> Workers:
        """The workers, not started yet, for so many series."""
        if self.ray:
            return RayWorkers(job, self.ray, most=max(series, 1), timeout=self.timeout, log_path=log_path)
        if not self.devices:
            return InProcess(job)
        devices = self.devices[: max(series, 1)]
        prefetch = default_prefetch(devices) if self.prefetch is None else self.prefetch
        prefetch = min(prefetch, max(series - len(devices), 0))  # nothing to read ahead: fewer processes
        return LocalWorkers(job, devices, prefetch=prefetch, timeout=self.timeout, log_path=log_path)


WORKER_BYTES = 2_500_000_000
"""Memory that a worker on the CPU may need, of a scan of 500 slices (docs/architecture.md, budgets)."""


def find_devices(text: str, *, many: bool = False) -> tuple[str, ...]:
    """``cuda:0,cuda:1``, ``cpu`` or ``auto`` as a list; ``auto``: every GPU, or the CPU if there is none.

    That a named device is there is found out by its worker (`choose_device`).

    Args:
        text: What the user says.
        many: There is more than one series to do, and how long one takes does not matter: of ``auto`` the
            CPU then gets a worker a core, as far as free memory holds them (`workers_that_fit`).

    Raises:
        DeviceError: The list is empty, or names a GPU twice.
    """
    names = tuple(n.strip() for n in text.split(",") if n.strip())
    if "auto" in names:
        if names != ("auto",):
            raise DeviceError(f"--devices {text}: auto stands alone; name the devices, or give auto")
        if gpus := _count_gpus():
            return tuple(f"cuda:{i}" for i in range(gpus))
        return ("cpu",) * (workers_that_fit(WORKER_BYTES) if many else 1)
    gpus_named = [n for n in names if n != "cpu"]
    if not names or len(set(gpus_named)) < len(gpus_named):
        raise DeviceError(f"--devices {text}: name each GPU once, for example cuda:0,cuda:1, or cpu")
    return names


_GPU_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""On Linux one of these is there where torch can see a GPU: NVIDIA's driver, Windows' WSL 2, AMD's driver."""


def _count_gpus() -> int:
    """GPUs that torch sees; torch, slow to import, is not asked where there can be none."""
    if sys.platform == "linux" and not any(Path(p).exists() for p in _GPU_FILES):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def default_prefetch(devices: Sequence[str]) -> int:
    """Readers and writers beside the workers of `devices`: two a GPU, one of a CPU; no more than cores.

    Of several workers on the CPU none: one of them reads or writes while another one computes.
    """
    on_cpu = sum(d == "cpu" for d in devices)
    wanted = 2 * (len(devices) - on_cpu) + (on_cpu == 1)
    return min(wanted, max(1, (os.cpu_count() or 2) // 2))


def _absent_row(uid: str) -> ResultRow:
    reason = "this series was asked for, and is not in the input folder"
    return ResultRow(
        patient_id="", study_uid="", series_uid=uid, status="failed", code="not-found", reason=reason
    )


def write_tables(job: Job, rows: Iterable[ResultRow]) -> bool:
    """Write the table of a run, and the report of its rows; see `write_table` for what it returns."""
    workbook = write_table(job.output, rows)
    write_run_report(job.output, job.workflow, read_parquet(job.output / PARQUET))
    return workbook


_TABLE_SHARE = 20
"""A `LiveTable` is written anew when that has taken less than this part of the time since it was last
written."""


class LiveTable:
    """The table of a run that goes on and on, written anew now and then.

    Args:
        job: What is done with every series.
        rows: All rows there are; asked for anew each time.
        counted: What ``run.json`` says of the series, see `run_found`, by the rows of each status.

    Attributes:
        due: Whether there is something new.
    """

    def __init__(
        self,
        job: Job,
        rows: Callable[[], Iterable[ResultRow]],
        counted: Callable[[Mapping[str, int]], dict[str, Any]],
    ) -> None:
        self._job, self._rows, self._counted = job, rows, counted
        self.due, self._at, self._seconds = True, 0.0, 0.0

    def write(self, *, now: bool = False) -> None:
        """Write it where that is due and has not just been done; `now`: all the same."""
        began = time.monotonic()
        if not now and not (self.due and began - self._at >= _TABLE_SHARE * self._seconds):
            return
        counts = dict.fromkeys(STATUSES, 0)

        def rows() -> Iterator[ResultRow]:
            for row in self._rows():
                counts[row.status] += 1
                yield row

        self.due = False
        write_tables(self._job, rows())
        write_run(self._job, self._counted(counts))
        self._at = time.monotonic()
        self._seconds = self._at - began


def run_folder(
    source: Path,
    output: Path,
    *,
    workflow: Workflow,
    means: Means,
    allow: Collection[str] = (),
    keep: Collection[str] = (),
    redo: bool = False,
    shard: Shard | None = None,
    only: Collection[str] | None = None,
    patient_from: str = "",
    watch: Callable[[Progress], None] = lambda progress: None,
    ready: Callable[[str], None] = lambda device: None,
    running: Callable[[Engine], None] = lambda engine: None,
    log_path: Path | None = None,
) -> RunSummary:
    """Score every series of `source` into `output`.

    A series that an earlier run of the same configuration scored or rejected is not computed again; one
    that failed is tried again, unless it ended worker processes. The table is rewritten at the end, whatever
    ended the run.

    Args:
        source: Folder with DICOM files, or a zip archive of them; NIfTI and NRRD files in a folder, or one.
        output: Folder for the results; made when missing.
        means: Who does the work.
        shard: Do this part only; the others may run at the same time, here or elsewhere.
        only: SeriesInstanceUIDs: do no other series. One that is not in `source` has its row, as failed.
        patient_from: Of NIfTI and NRRD files, see `pipeline.image_series.find_series`.
        watch: Called before the first and after every series.
        ready: Told the device in words when a worker is ready.
        running: Given the engine before it starts, for whoever wants to stop it.
        log_path: Log file of the worker processes.

    Raises:
        InputError, OutputError, WeightsError, DeviceError: The run cannot start or go on.
    """
    check_folders(source, output)
    job = Job(workflow=workflow, output=output, allow=frozenset(allow), keep=frozenset(keep))
    with OutputLock(output, shard) as lock:
        discovery = find_series(source, allow=job.allowed, patient_from=patient_from)
        found = len(discovery.uids)
        absent: list[str] = []
        if only is not None:
            discovery = chosen(discovery, only)
            absent = sorted(set(only) - set(discovery.uids))
        return run_found(
            job,
            discovery,
            lock,
            found=found,
            absent=absent,
            means=means,
            redo=redo,
            watch=watch,
            ready=ready,
            running=running,
            log_path=log_path,
        )


def run_arriving(
    known: Sequence[Series],
    arrive: Callable[[Sequence[str]], Iterable[Series]],
    job: Job,
    *,
    means: Means,
    watch: Callable[[Progress], None] = lambda progress: None,
    ready: Callable[[str], None] = lambda device: None,
    running: Callable[[Engine], None] = lambda engine: None,
    log_path: Path | None = None,
) -> RunSummary:
    """Score series that come one after the other, as `run_folder` scores those of a folder.

    Args:
        known: All of them, by SeriesInstanceUID and PatientID.
        arrive: Brings those with the UIDs that it is told; one that does not come has no row.
        job: What is done with each; its output folder is made when missing.

    Raises:
        InputError, OutputError, WeightsError, DeviceError: The run cannot start or go on.
    """

    def come() -> Iterator[Series | ResultRow]:
        left = []
        for one in known:
            row = finished(job.folder(one))
            if row is None:
                left.append(one.series_uid)
            else:
                yield row
        yield from arrive(left)

    with OutputLock(job.output) as lock:
        return run_found(
            job,
            Discovery(series=known),
            lock,
            arriving=come(),
            means=means,
            watch=watch,
            ready=ready,
            running=running,
            log_path=log_path,
        )


def run_found(
    job: Job,
    discovery: Discovery,
    lock: OutputLock,
    *,
    means: Means,
    found: int | None = None,
    absent: Sequence[str] = (),
    arriving: Iterable[Series | ResultRow] | None = None,
    redo: bool = False,
    watch: Callable[[Progress], None] = lambda progress: None,
    ready: Callable[[str], None] = lambda device: None,
    running: Callable[[Engine], None] = lambda engine: None,
    log_path: Path | None = None,
) -> RunSummary:
    """Do a job for series that were found, with the right to write into its output; see `run_folder`.

    ``run.json`` says under ``series`` how many were ``found`` in the input, how many were ``selected`` for
    this run and its other shards (those asked for and absent included), and whether it is ``finished``:
    whether each of them has its row. While a run is at work it is not, so that one that is killed stays
    unfinished. Of a run that has ended there is also how many are ``scored``, ``rejected``, ``failed`` and
    ``missing``, and the SeriesInstanceUIDs of the missing ones as ``missing_series``.

    Args:
        found: Series in the input folder; None: those of `discovery`.
        absent: SeriesInstanceUIDs that were asked for and are not there.
        arriving: The series of `discovery` as they are to be read, which come one after the other, or the
            rows of those that are finished; None: those of `discovery`.
    """
    output, shard = job.output, lock.shard
    selected: dict[str, Any] = {
        "found": len(discovery.uids) if found is None else found,
        "selected": len(discovery.uids) + len(absent),
        "finished": False,
    }
    settle_output(job, redo=redo, series=selected)
    if shard is None:  # alone: what lies there half-written is a killed run's
        remove_leftovers(output)
    unreadable = [
        *(unreadable_row(u.path, u.reason) for u in discovery.unreadable),
        *map(_absent_row, absent),
    ]
    first = shard is None or shard.number == 0  # who counts what belongs to no series

    images = 0

    def mine() -> Iterator[Series | ResultRow]:
        nonlocal images
        for one in discovery.series if arriving is None else arriving:
            if shard is None or shard.holds(one.series_uid):
                images += isinstance(one, ImageSeries)
                yield one

    total = sum(1 for uid in discovery.uids if shard is None or shard.holds(uid))
    workers = means.workers(job, total, log_path)
    counts = {"scored": 0, "rejected": 0, "failed": len(unreadable) if first else 0}
    done = 0

    def say(row: ResultRow | None = None, skipped: bool = False) -> None:
        watch(
            Progress(
                done=done,
                total=total,
                counts=counts,
                row=row,
                skipped=skipped,
                statistics=engine.statistics,
            )
        )

    def count(row: ResultRow, skipped: bool) -> None:
        nonlocal done
        done += 1
        counts[row.status] += 1
        say(row, skipped)

    journal = Journal(output, shard, forget=redo and shard is None)
    engine = Engine(job, workers, journal, retries=means.retries, watch=count, ready=ready)
    running(engine)
    written, workbook = False, True
    try:
        say()
        with workers:
            engine.run(mine(), redo=redo)
    except OutputError as error:
        # Its text holds a path, and paths hold PatientIDs: the screen shows it, the log does not.
        log.error("stopped: %s", error.code)
        raise
    finally:
        journal.close()
        with lock.last_one() as last:
            if last:
                fates = Counter(r.status for r in unreadable if r.series_uid)
                missing: list[str] = []

                def stored() -> Iterator[ResultRow]:
                    """From what lies there: series not done yet have no row."""
                    for one in discovery.series:
                        row = stored_row(job.folder(one))
                        if row is None:
                            missing.append(one.series_uid)
                        else:
                            fates[row.status] += 1
                            yield row

                workbook = write_tables(job, chain(unreadable, stored()))
                written = True
                selected |= {s: fates[s] for s in STATUSES}
                selected |= {"missing": len(missing), "missing_series": missing, "finished": not missing}
                write_run(job, selected)
    return RunSummary(
        output=output,
        left=total - done,
        counts=counts,
        table=written,
        workbook=workbook,
        images=images,
        statistics=engine.statistics,
    )
