"""Measure the chain, stage by stage, against the budgets of docs/architecture.md.

Usage: ``python benchmarks/chain.py [--patients N] [--device cpu]`` (`make bench`)

Simulates N patients, runs `deepcac2 run` over them as a user would, and prints for each stage the median
over all series but the first, which pays for loading and warming up. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pydicom


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def deepcac2(*arguments: str | Path) -> None:
    """One command of the command line, in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "deepcac2", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL
    )


def plain_reading(folder: Path) -> float:
    """Seconds for `pydicom.dcmread` and `pixel_array` of every CT slice of one series."""
    slices = [path for path in folder.rglob("*") if path.is_file() and pydicom.misc.is_dicom(path)]
    slices = [path for path in slices if pydicom.dcmread(path, stop_before_pixels=True).Modality == "CT"]
    return seconds(lambda: [pydicom.dcmread(path).pixel_array for path in slices]) if slices else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=4, help="at least 2 (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: %(default)s)")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        source, output = Path(scratch) / "in", Path(scratch) / "out"
        simulated = seconds(
            lambda: deepcac2("simulate", source, "--patients", arguments.patients, "--seed", "11")
        )
        folders = sorted(path for path in source.iterdir() if path.is_dir())
        plain = statistics.median(plain_reading(folder) for folder in folders)
        ran = seconds(lambda: deepcac2("run", source, output, "--device", arguments.device, "--quiet"))
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        found = [json.loads(path.read_text()) for path in output.rglob("details.json")]

    details = [d for d in found if d["status"] == "scored"]  # not the truth's segmentations
    details.sort(key=lambda d: d["seconds"]["HeartRunner"], reverse=True)
    warm = [d["seconds"] for d in details[1:]]
    rows = [(f"  {stage}", statistics.median(w[stage] for w in warm)) for stage in warm[0]]
    rows.append(("one series, warm", statistics.median(sum(w.values()) for w in warm)))
    rows.append(("plain pydicom reading of one series", plain))
    rows.append((f"run over {len(details)} series, start included", ran))
    rows.append((f"simulate {arguments.patients} patients", simulated))
    rows.append(("deepcac2 --help", min(seconds(lambda: deepcac2("--help")) for _ in range(3))))
    sizes = sorted(d["series"]["n_slices"] for d in details)
    sys.stdout.write(f"{len(details)} series of {sizes[0]} to {sizes[-1]} slices, {arguments.device}\n\n")
    for label, value in rows:
        sys.stdout.write(f"{label:<44}{value:9.3f} s\n")
    sys.stdout.write(f"{'largest process':<44}{memory:9.2f} GB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
