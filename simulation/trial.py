"""A small trial like NLST: persons with visits and kernels, series that are unfit, and who lived how long."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from .. import __version__
from ..errors import InputError
from ..system.atomic import atomic_path, output_errors, write_json
from .acquisition import KERNELS, default_geometry, sample_acquisition
from .body import stream
from .dicom import patient_id, write_series
from .patient import simulate_patient

VISITS = 3
"""Screening rounds of NLST: T0, T1 and T2, a year apart."""
PAIRS = (("STANDARD", "BONE"), ("B30f", "B50f"), ("FC51", "FC10"), ("C", "D"))
"""A softer and a sharper kernel of one scanner, as NLST's sites sent both."""
MISSED_SHARE = 0.2
"""Share of later visits that did not happen. Chosen."""
UNFIT = ("thick", "few", "repeated", "unsaid", "localizer")
"""What can be wrong with a series: slices of 8 mm, 30 slices, one position twice, no SliceThickness, only
a localizer."""
UNFIT_SHARE = 0.15
"""Share of series with one of these. Chosen, so that a small trial has some."""
HAZARD = (1.0, 1.2, 1.5, 2.05)
"""Hazard ratios of the risk groups; the last is the DeepCAC2 paper's, the others chosen."""
BASE_RATE = 0.06
"""Deaths a year in the lowest group; chosen: a trial of 30 persons needs more than NLST's 1 % a year."""


@dataclass(frozen=True, kw_only=True)
class TrialSeries:
    """One series of a trial.

    Attributes:
        visit: 0 for T0, and so on.
        unfit: "" or one of `UNFIT`.
        score: True Agatston score.
    """

    patient_id: str
    series_uid: str
    visit: int
    kernel: str
    unfit: str
    score: float


def write_trial(
    folder: Path,
    *,
    persons: int = 30,
    seed: int = 1,
    size: int = 512,
    slices: int | None = None,
    watch: Callable[[str], None] | None = None,
) -> list[TrialSeries]:
    """Write a trial; the folder appears when it is complete, and an interrupted call is gone on with.

    Until then it is ``.NAME.partial`` beside it. A person in it counts as written when its note in ``done/``
    is there; where the call or the version is another one, all is written anew.

    ::

        folder/ct/SIM-0001/T0/STANDARD/0001.dcm   the CT
        folder/clinical.csv                       patient_id, years, died, age, sex, smoking
        folder/truth.csv                          each series with its true score, and what is wrong with it

    Args:
        persons: How many.
        seed: Of the first; the same seed gives the same trial.
        size, slices: As in `default_geometry`.
        watch: Called with a line for each person.

    Raises:
        InputError: The folder exists.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    from ..scoring import risk_group

    if folder.exists():
        raise InputError(f"{folder} exists; give the name of a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    settings = {
        "deepcac2": __version__, "persons": persons, "seed": seed, "size": size, "slices": slices
    }  # fmt: skip
    with output_errors(folder):
        if _json(partial / "trial.json") != settings:
            shutil.rmtree(partial, ignore_errors=True)
            write_json(partial / "trial.json", settings)
    found: list[TrialSeries] = []
    clinical: list[dict[str, Any]] = []
    for number in range(seed, seed + persons):
        own, was_there = _person(partial, number, size, slices)
        found += own
        group = int(risk_group(own[0].score))
        clinical.append({"patient_id": patient_id(number), **_outcome(stream(number, "outcome"), group)})
        if watch is not None:
            watch(f"{patient_id(number)}  {len(own)} series{', there already' * was_there}")
    _write_csv(partial / "truth.csv", [vars(s) for s in found])
    _write_csv(partial / "clinical.csv", clinical)
    with output_errors(folder):
        shutil.rmtree(partial / "done")
        (partial / "trial.json").unlink()
        partial.rename(folder)
    return found


def _json(path: Path) -> Any:
    """What is in a file of ours, None where there is none."""
    return json.loads(path.read_bytes()) if path.is_file() else None


def _person(partial: Path, seed: int, size: int, slices: int | None) -> tuple[list[TrialSeries], bool]:
    """The series of a person, and whether an interrupted call had written them all."""
    note = partial / "done" / f"{patient_id(seed)}.json"
    if (rows := _json(note)) is not None:
        return [TrialSeries(**row) for row in rows], True
    shutil.rmtree(partial / "ct" / patient_id(seed), ignore_errors=True)
    own = list(_write_person(partial / "ct", seed, size, slices))
    write_json(note, [vars(s) for s in own])
    return own, False


def _write_person(folder: Path, seed: int, size: int, slices: int | None) -> Iterator[TrialSeries]:
    from ..scoring import score

    rng = stream(seed, "trial")
    pair = PAIRS[int(rng.integers(len(PAIRS)))]
    scan = replace(sample_acquisition(seed), thickness=2.5, increment=2.0, kvp=120.0, step=0.0, circle=False)
    gain = KERNELS[sample_acquisition(seed).kernel].noise_gain
    geometry = default_geometry(seed, size=size, slices=slices)
    for visit in range(VISITS):
        if visit and rng.random() < MISSED_SHARE:
            continue
        for kernel in pair:
            noise = float(np.clip(scan.noise_sd / gain * KERNELS[kernel].noise_gain, 5, 160))
            unfit = str(rng.choice(UNFIT)) if visit and rng.random() < UNFIT_SHARE else ""
            patient = simulate_patient(
                seed,
                geometry=geometry,
                acquisition=replace(scan, kernel=kernel, noise_sd=noise),
                visit=visit,
            )
            uid = generate_uid(entropy_srcs=["trial", str(seed), str(visit), kernel, repr(geometry)])
            home = folder / patient_id(seed) / f"T{visit}" / kernel
            write_series(patient, home, change=_labels(seed, visit, uid, unfit))
            _spoil(home, unfit)
            true = score(patient.volume, patient.calcium, rule="agatston").total
            yield TrialSeries(
                patient_id=patient_id(seed), series_uid=uid, visit=visit, kernel=kernel, unfit=unfit,
                score=round(true, 3),
            )  # fmt: skip


def _labels(seed: int, visit: int, uid: str, unfit: str) -> Callable[[Dataset], None]:
    """What makes a slice one of this visit and series, and what is wrong with its header."""

    def change(ds: Dataset) -> None:
        ds.StudyInstanceUID = generate_uid(entropy_srcs=["trial", str(seed), str(visit), "study"])
        ds.SeriesInstanceUID = uid
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[uid, str(ds.InstanceNumber)])
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{1999 + visit}0102"
        ds.ClinicalTrialTimePointID = f"T{visit}"
        if unfit == "thick":
            ds.SliceThickness = "8"
        if unfit == "unsaid":
            del ds.SliceThickness
        if unfit == "localizer":
            ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    return change


def _spoil(folder: Path, unfit: str) -> None:
    """What is wrong with the files of a series."""
    from pydicom import dcmread

    files = sorted(folder.iterdir())
    if unfit == "few":
        for file in files[30:]:
            file.unlink()
    if unfit == "localizer":
        for file in files[2:]:
            file.unlink()
    if unfit == "repeated":
        ds, below = dcmread(files[len(files) // 2]), dcmread(files[len(files) // 2 - 1])
        ds.ImagePositionPatient, ds.SliceLocation = below.ImagePositionPatient, below.SliceLocation
        ds.save_as(files[len(files) // 2])


def _outcome(rng: np.random.Generator, group: int) -> dict[str, Any]:
    """Follow-up of 5.5 to 7.2 years, as NLST had, with the planted hazards."""
    age, smoking = float(np.clip(rng.normal(61.5, 5), 55, 74)), bool(rng.random() < 0.48)
    rate = BASE_RATE * HAZARD[group] * 1.07 ** (age - 61.5) * (1.6 if smoking else 1.0)
    years, end = float(rng.exponential(1 / rate)), float(rng.uniform(5.5, 7.2))
    return {
        "years": round(min(years, end), 3),
        "died": int(years <= end),
        "age": round(age, 1),
        "sex": "male" if rng.random() < 0.59 else "female",
        "smoking": "current" if smoking else "former",
    }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
