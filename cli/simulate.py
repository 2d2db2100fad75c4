"""`deepcac2 simulate`: chest CTs with known hearts and known coronary calcium."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

from ..errors import InputError
from .screen import say

_OURS = re.compile(r"SIM-\d{4,}|\.SIM-\d{4,}\.partial")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "simulate",
        help="write simulated chest CTs with known coronary calcium",
        description="Write simulated patients as DICOM: OUT/SIM-0001/ct (the CT), truth.seg.dcm (the true "
        "heart and coronary calcium) and truth.json (lesions and the true score). The same seed gives the "
        "same patient. Patients already in OUT are kept.",
    )
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="folder to write to: new, empty, or to go on with"
    )
    parser.add_argument("--patients", metavar="N", type=_positive, default=1, help="how many (default: 1)")
    parser.add_argument(
        "--seed", metavar="S", type=_seed, default=1, help="number of the first patient (default: 1)"
    )
    parser.add_argument(
        "--slices", metavar="N", type=_slices, help="slices per CT (default: as the protocol gives)"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=_size,
        default=512,
        help="rows and columns (default: 512). Pixels are larger than 1.2 mm in all scans below 256, and in "
        "none from 417 on; 'run' rejects such a scan (coarse-pixels), as no weights know it",
    )
    parser.add_argument(
        "--trial",
        action="store_true",
        help="a small trial instead: up to three visits a person, two kernels each, some series unfit, with "
        "clinical.csv and truth.csv; OUT appears when it is complete",
    )
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Write the patients, one line each."""
    from ..simulation import default_geometry, simulate_patient
    from ..simulation.dicom import patient_id, write_patient

    output: Path = args.output
    if args.trial:
        return _trial(args)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder as OUT")
    if output.is_dir():
        foreign = sorted(p.name for p in output.iterdir() if not _OURS.fullmatch(p.name))
        if foreign:
            raise InputError(
                f"{output} holds other things than simulated patients ({foreign[0]}); "
                "give a new or empty folder as OUT"
            )
    for seed in range(args.seed, args.seed + args.patients):
        name = patient_id(seed)
        if (output / name).exists():
            say(f"{name}  is there already")
            continue
        start = time.perf_counter()
        patient = simulate_patient(seed, geometry=default_geometry(seed, size=args.size, slices=args.slices))
        write_patient(patient, output)
        count = patient.volume.geometry.shape[0]
        say(f"{name}  {count} slices  {time.perf_counter() - start:.1f} s")
    return 0


def _trial(args: argparse.Namespace) -> int:
    """Write a trial, one line a person."""
    from ..simulation.trial import write_trial

    found = write_trial(
        args.output,
        persons=args.patients,
        seed=args.seed,
        size=args.size,
        slices=args.slices,
        watch=say,
    )
    unfit = sum(bool(s.unfit) for s in found)
    say(f"{len(found)} series, {unfit} of them unfit: {args.output}")
    return 0


def _whole(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
    return value


def _positive(text: str) -> int:
    return _whole(text, 1, 1_000_000)


def _seed(text: str) -> int:
    return _whole(text, 0, 10**9)


def _slices(text: str) -> int:
    return _whole(text, 8, 2000)


def _size(text: str) -> int:
    return _whole(text, 32, 2048)
