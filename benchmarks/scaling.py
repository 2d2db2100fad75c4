"""Measure whole runs: by slices, by series, by workers, with and without processes that read ahead.

Usage: ``python benchmarks/scaling.py [--slices 60,140,600] [--series 1,8] [--workers 1,2] [--prefetch 0,1]``

Simulates one patient for each number of slices, copies it into as many series as asked for, and runs
`deepcac2 run` over them as a user would. Seconds a series are those between the first and the last result,
divided by their number less one: what a long run needs, without loading the models. Memory is what the
largest worker of each stage, and the run's own process, had at most. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import generate_uid

from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_patient

SEED = 11


def simulated(folder: Path, slices: int) -> Path:
    """One patient of so many slices of 512 × 512; the folder of its CT."""
    patient = simulate_patient(SEED, geometry=default_geometry(SEED, size=512, slices=slices))
    write_patient(patient, folder)
    return folder / f"SIM-{SEED:04d}" / "ct"


def copies(series: Path, folder: Path, count: int) -> None:
    """The series as so many of their own."""
    for n in range(count):
        uid, target = generate_uid(), folder / f"{n:04d}"
        target.mkdir(parents=True)
        for path in series.iterdir():
            ds = pydicom.dcmread(path)
            ds.SeriesInstanceUID, ds.SOPInstanceUID = uid, generate_uid()
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            ds.save_as(target / path.name)


def run(source: Path, output: Path, *options: str) -> tuple[float, list[tuple[float, dict[str, Any]]]]:
    """Seconds in all, and the lines of ``--json-progress`` with their times."""
    command = [sys.executable, "-m", "deepcac2", "run", str(source), str(output), "--json-progress"]
    started = time.perf_counter()
    lines = []
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                lines.append((time.perf_counter(), json.loads(line)))
    return time.perf_counter() - started, [x for x in lines if x[1]["series"] is not None]


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=numbers, default=[140], help="default: 140")
    parser.add_argument("--series", type=numbers, default=[6], help="default: 6")
    parser.add_argument("--workers", type=numbers, default=[1], help="CPU workers (default: 1)")
    parser.add_argument("--prefetch", type=numbers, default=[0, 1], help="default: 0,1")
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    arguments = parser.parse_args()

    print(f"{os.cpu_count()} cores")
    print("| slices | series | workers | prefetch | s a series | s in all | largest worker, MB | own, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for slices in arguments.slices:
        with tempfile.TemporaryDirectory() as scratch:
            original = simulated(Path(scratch) / "original", slices)
            for count in arguments.series:
                source = Path(scratch) / f"in-{count}"
                copies(original, source, count)
                for workers, prefetch in product(arguments.workers, arguments.prefetch):
                    output = Path(scratch) / f"out-{count}-{workers}-{prefetch}"
                    devices = ",".join([arguments.device] * workers)
                    took, lines = run(source, output, "--devices", devices, "--prefetch", str(prefetch))
                    assert len(lines) == count, "not every series has a row"
                    between = lines[-1][0] - lines[0][0]
                    each = f"{between / (count - 1):.2f}" if count > 1 else "-"
                    last = lines[-1][1]
                    largest = max(last["peak_mb"].values())
                    print(
                        f"| {slices} | {count} | {workers} | {prefetch} | {each} | {took:.1f} | {largest} "
                        f"| {last['own_peak_mb']} |",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
