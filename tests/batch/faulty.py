"""A job whose series bring their faults with them; worker processes import it, so it is a module of its own.

Everything is real but the stages: where the chain would read and compute, the fault happens that the
series' description names, and the result is a small file.

Run as a program, it is a run over such series: ``python faulty.py OUTPUT COUNT [prefetch] [fault ...]``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepcac2.batch.ledger import OutputLock, Shard
from deepcac2.batch.run import Means, RunSummary, run_found
from deepcac2.dicom import Discovery, Series
from deepcac2.errors import DiskFull, SeriesRejected
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import Chain
from deepcac2.pipeline.run import Job
from deepcac2.pipeline.step import PHASES
from deepcac2.system.atomic import write_whole

PAUSE = 0.02


def misbehave(fault: str, marks: Path) -> None:
    """Do what a fault's name says; ``once-…`` only the first time."""
    if fault.startswith("once-"):
        mark = marks / fault
        if mark.exists():
            return
        mark.touch()
        fault = fault[5:].split(":")[0]
    if fault == "segfault":
        ctypes.string_at(0)
    elif fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hang":
        time.sleep(600)
    elif fault == "deaf":  # in C, with the GIL held: no signal handler would run
        ctypes.PyDLL(None).sleep(600)
    elif fault == "memory":
        raise MemoryError
    elif fault == "exit":
        os._exit(3)
    elif fault == "slow":
        time.sleep(1.0)
    elif fault == "error":
        raise ZeroDivisionError("on purpose")
    elif fault == "reject":
        raise SeriesRejected("on purpose; look elsewhere", code="too-thick")
    elif fault == "disk":
        raise DiskFull("no space left; free some")


@dataclass(frozen=True, kw_only=True)
class FaultyJob(Job):
    """See the module. ``read`` and ``write`` only pass on; ``compute`` is where the faults are."""

    marks: Path = Path()

    def chain(self, phases: Collection[str] = PHASES, device: Any = None) -> Chain:
        stages = []
        if "read" in phases:
            stages.append(("DicomImporter", lambda case: case))
        if "compute" in phases:
            stages.append(("HeartRunner", self._compute))
        if "write" in phases:
            stages.append(("DataOrganizer", self._write))
        return Chain(workflow=self.workflow, stages=tuple(stages), provenance=self.provenance)

    def _compute(self, case: Case) -> Case:
        misbehave(case.series.series_description, self.marks)
        time.sleep(PAUSE)
        return case

    def _write(self, case: Case) -> Case:
        path = self.folder(case.series) / "result.txt"
        write_whole(path, case.series.series_uid.encode())
        return replace(case, outputs={"text": path})


def found(count: int, faults: dict[int, str] | None = None) -> Discovery:
    """So many series; some of them with a fault."""
    faults = faults or {}
    return Discovery(
        series=tuple(
            Series(series_uid=f"1.2.{i}", patient_id=f"P{i % 7}", series_description=faults.get(i, ""))
            for i in range(count)
        )
    )


def run(
    output: Path,
    discovery: Discovery,
    *,
    devices: tuple[str, ...] = ("cpu",),
    prefetch: int = 0,
    timeout: float | None = None,
    retries: int = 1,
    shard: Shard | None = None,
    **options: Any,
) -> RunSummary:
    """Run them with real worker processes."""
    marks = output.parent / "marks"
    marks.mkdir(exist_ok=True)
    job = FaultyJob(workflow=Workflow.load("default"), output=output, marks=marks)
    means = Means(devices=devices, prefetch=prefetch, timeout=timeout, retries=retries)
    with OutputLock(output, shard) as lock:
        return run_found(job, discovery, lock, means=means, **options)


if __name__ == "__main__":
    run(
        Path(sys.argv[1]),
        found(int(sys.argv[2]), dict(enumerate(sys.argv[4:]))),
        prefetch=int(sys.argv[3]),
    )
