"""`deepcac2 simulate`: chest CTs with known hearts and known coronary calcium."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
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
    parser.add_argument(
        "--patients", metavar="N", type=_whole(1, 1_000_000), default=1, help="how many (default: 1)"
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=_whole(0, 10**9),
        default=1,
        help="number of the first patient (default: 1)",
    )
    parser.add_argument(
        "--slices", metavar="N", type=_whole(8, 2000), help="slices per CT (default: as the protocol gives)"
    )
    parser.add_argument(
        "--size",
        metavar="N",
        type=_whole(32, 2048),
        default=512,
        help="rows and columns (default: 512). Pixels are larger than 1.2 mm in all scans below 256, and in "
        "none from 417 on; 'run' rejects such a scan (coarse-pixels), as no weights know it",
    )
    parser.add_argument(
        "--simulator",
        metavar="VERSION",
        type=int,
        choices=(1, 2, 3, 4, 5),
        default=1,
        help="1, which the bundled weights were trained on and measured on; 2: arteries, motion and disease "
        "nearer to patients'; 3: as 2, with collapsed lung against the heart; 4: as 3, with a left main "
        "artery as long as patients'; 5: as 4, with arteries deep in their grooves and atrial appendages "
        "over them (default: 1)",
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
            _check_version(output / name, args.simulator)
            say(f"{name}  is there already")
            continue
        start = time.perf_counter()
        version = args.simulator
        grid = default_geometry(seed, size=args.size, slices=args.slices, version=version)
        patient = simulate_patient(seed, geometry=grid, version=version)
        write_patient(patient, output)
        count = patient.volume.geometry.shape[0]
        say(f"{name}  {count} slices  {time.perf_counter() - start:.1f} s")
    return 0


def _check_version(home: Path, version: int) -> None:
    """One folder holds patients of one version: the same seed is another patient in another."""
    try:
        there = json.loads((home / "truth.json").read_text()).get("simulator", 1)
    except (OSError, ValueError, AttributeError) as e:
        raise InputError(f"{home} has no readable truth.json; remove it, or give another folder") from e
    if there != version:
        raise InputError(
            f"{home} was drawn by version {there} of the simulator; "
            f"give --simulator {there} or another folder"
        )


def _trial(args: argparse.Namespace) -> int:
    """Write a trial, one line a person."""
    from ..simulation.trial import write_trial

    if args.simulator != 1:
        raise InputError("a trial is drawn by version 1 of the simulator; leave --simulator out")

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


def _whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number within limits, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return parse
