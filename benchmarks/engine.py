"""Measure what the engine itself costs: series with nothing in them through real worker processes.

Usage: ``python benchmarks/engine.py [--series 130000] [--devices 1] [--prefetch 0]``

Prints seconds a series and the parent's memory on the way; nothing is asserted. The headers of the series
lie in a `SeriesStore`, as those of a large folder do. The workers neither read nor compute nor write.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from deepcac2.batch.engine import Engine
from deepcac2.batch.ledger import Journal
from deepcac2.batch.local import LocalWorkers
from deepcac2.dicom import Series
from deepcac2.dicom.series import SliceRef
from deepcac2.dicom.store import SeriesStore
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import Chain
from deepcac2.pipeline.results import ResultRow
from deepcac2.pipeline.run import Job, Settled


class EmptyJob(Job):
    """Settles each series at once."""

    def chain(self, *arguments: Any, **options: Any) -> Chain:
        return Chain(workflow=self.workflow, stages=(), provenance={})

    def advance(self, case: Case, chain: Chain, *, last: bool) -> Case | Settled:
        if not last:
            return case
        row = ResultRow(patient_id="", study_uid="", series_uid=case.series.series_uid, status="scored")
        return Settled(row=row, timings={"nothing": 0.0})


def store(count: int, slices: int) -> SeriesStore:
    """So many series of headers."""
    kept = SeriesStore()
    for i in range(count):
        refs = tuple(
            SliceRef(
                path=Path(f"/data/{i}/{k}.dcm"),
                sop_instance_uid=f"1.2.840.{i}.{k}",
                position=(0.0, 0.0, float(k)),
                orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
            )
            for k in range(slices)
        )
        kept.put(Series(series_uid=f"1.2.840.{i}", patient_id=f"P{i // 5}", slices=refs))
    kept.sort()
    return kept


def memory() -> float:
    """Resident memory of this process, MB."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", type=int, default=130_000)
    parser.add_argument("--slices", type=int, default=0, help="headers of each (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=1, help="workers (default: %(default)s)")
    parser.add_argument("--prefetch", type=int, default=0)
    arguments = parser.parse_args()

    series = store(arguments.series, arguments.slices)
    print(f"{len(series)} series of {arguments.slices} headers: parent {memory():.0f} MB before the run")
    done = 0
    started = marked = 0.0
    every = max(1, arguments.series // 10)

    def watch(row: ResultRow, skipped: bool) -> None:
        nonlocal done, started, marked
        done += 1
        now = time.perf_counter()
        if done == 1:
            started = marked = now  # the first series waits for its worker to start
        if done % every == 0:
            print(f"{done:7d} done, {1e3 * (now - marked) / every:.2f} ms each, parent {memory():.0f} MB")
            marked = now

    with tempfile.TemporaryDirectory() as folder:
        job = EmptyJob(workflow=Workflow.load("default"), output=Path(folder))
        journal = Journal(Path(folder))
        workers = LocalWorkers(job, ["cpu"] * arguments.devices, prefetch=arguments.prefetch)
        with workers:
            Engine(job, workers, journal, watch=watch).run(series)
            took = time.perf_counter() - started
        journal.close()
    print(f"{1e3 * took / max(done - 1, 1):.2f} ms a series, {took:.0f} s in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
