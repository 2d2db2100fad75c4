"""Measure `deepcac2 release build`: seconds, bytes a second, and memory by the number of series.

Usage: ``python benchmarks/release.py RESULTS [--series 1000,10000] [--part-size SIZE]``

The SEGs and reports of RESULTS (the output folder of a run) are linked over and over into a folder of so many
series, so they are read from the page cache: what is measured is packing and writing. For comparison the same
number of packed bytes is written and flushed to the same disk. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deepcac2.pipeline.outputs import PARQUET
from deepcac2.pipeline.results import ResultRow, read_parquet, write_parquet
from deepcac2.release.build import FILES

MOST_LINKS = 30_000
"""Below what usual file systems allow for one file."""


def linked(results: Path, folder: Path, count: int) -> None:
    """A results folder of so many series, out of those scored in `results`."""
    originals = [row for row in read_parquet(results / PARQUET) if row.status == "scored"]
    if not originals or count > MOST_LINKS * len(originals):
        raise SystemExit(f"{results} has {len(originals)} scored series, too few to link {count} of them")

    def rows() -> Iterator[ResultRow]:
        for i in range(count):
            row = originals[i % len(originals)]
            place = f"P{i // 5:06d}/1.2.840.{i}"
            (folder / place).mkdir(parents=True)
            for name in FILES:
                os.link(results / row.folder / name, folder / place / name)
            yield replace(row, patient_id=f"P{i // 5:06d}", series_uid=f"1.2.840.{i}", folder=place)

    write_parquet(folder / PARQUET, rows())


def written(path: Path, size: int) -> float:
    """Seconds to write and flush so many random bytes."""
    block = os.urandom(1 << 24)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(max(1, size // len(block))):
            file.write(block)
        os.fsync(file.fileno())
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", metavar="RESULTS", type=Path)
    parser.add_argument("--series", type=lambda t: [int(n) for n in t.split(",")], default=[1000, 10_000])
    parser.add_argument(
        "--folder", type=Path, help="where to work, on the file system of RESULTS (default: beside it)"
    )
    parser.add_argument(
        "--part-size", help="as of 'deepcac2 release build', such as 500MB (default: one file)"
    )
    arguments = parser.parse_args()
    print("| series | MB in | MB out | s | MB in a second | writing as much, s | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for count in arguments.series:
        with tempfile.TemporaryDirectory(dir=arguments.folder or arguments.results.absolute().parent) as name:
            scratch = Path(name)
            linked(arguments.results, scratch / "results", count)
            out = scratch / "release.zip"
            command = [
                sys.executable,
                "-m",
                "deepcac2",
                "release",
                "build",
                str(scratch / "results"),
                str(out),
            ]
            if arguments.part_size:
                command += ["--part-size", arguments.part_size]
            started = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            took = time.perf_counter() - started
            if status:
                raise SystemExit(f"{' '.join(command)} failed")
            size = sum(f.stat().st_size for f in scratch.glob("release*.zip"))
            mb_in = sum(f.stat().st_size for f in (scratch / "results").rglob("*") if f.is_file()) / 1e6
            flat = written(scratch / "flat", size)
            print(
                f"| {count} | {mb_in:.0f} | {size / 1e6:.0f} | {took:.1f} | {mb_in / took:.0f} | {flat:.1f} "
                f"| {usage.ru_maxrss / 1024:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
