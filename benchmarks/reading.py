"""Measure discovery and reading against plain pydicom on a folder of DICOM.

Usage: ``python benchmarks/reading.py FOLDER [--repeats 7] [--workers N]``

For each series that can be read: the best of the repeats for `read_series`, for `read_series` in one thread,
and for `pydicom.dcmread` + `pixel_array` of the same slices, and their ratios (budget: at most 1.5). Best
rather than mean: the files are in the page cache and what is measured is our work, not the disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pydicom

from deepcac2.dicom import discover, read_series
from deepcac2.errors import SeriesError


def best(work: Callable[[], object], repeats: int) -> float:
    """Shortest wall time of several calls, seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=None)
    args = parser.parse_args()

    discovery = discover(args.folder)
    files = {(s.path, s.member) for series in discovery.series for s in series.slices}
    for workers in (1, args.workers):
        took = best(lambda w=workers: discover(args.folder, workers=w), args.repeats)  # type: ignore[misc]
        print(f"discover, workers {workers}: {took:.3f} s, {1000 * took / len(files):.2f} ms a file")
    print(f"{'slices':>6} {'plain':>8} {'read':>8} {'ratio':>6} {'1 thread':>8} {'ratio':>6}")
    for series in discovery.series:
        if any(s.member for s in series.slices):
            continue
        try:
            read_series(series)
        except SeriesError as error:
            print(f"{len(series.slices):6d} skipped: {error.code}")
            continue
        paths = [s.path for s in series.slices]
        plain = best(lambda p=paths: [pydicom.dcmread(q).pixel_array for q in p], args.repeats)  # type: ignore[misc]
        ours = best(lambda s=series: read_series(s, workers=args.workers), args.repeats)  # type: ignore[misc]
        one = best(lambda s=series: read_series(s, workers=1), args.repeats)  # type: ignore[misc]
        print(f"{len(paths):6d} {plain:8.3f} {ours:8.3f} {ours / plain:6.2f} {one:8.3f} {one / plain:6.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
