"""Two simulated scans as somebody annotates them, and a training of three steps on them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from deepcac2.models.calcium.kinds import KINDS
from deepcac2.models.calcium.train import CalciumRecipe
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_series
from deepcac2.simulation.patient import SimulatedPatient

RECIPE = CalciumRecipe(
    name="named",
    named=True,
    steps=3,
    batch_size=2,
    mining_steps=(2,),
    mistake_share=0.5,
    other_share=0.5,
    validation_share=0.5,
    validation_patches=4,
    log_every=1,
    validate_every=3,
    checkpoint_every=3,
    architecture={
        "channels": [4, 8], "strides": [2], "num_res_units": 1, "norm": "batch", "placed": True,
        "kinds": list(KINDS),
    },
)  # fmt: skip


def scans(folder: Path) -> Iterator[tuple[Path, SimulatedPatient]]:
    """A folder below this one for each scan, its CT in ``ct/``, and who was simulated."""
    for seed in (3, 4):
        patient = simulate_patient(seed, geometry=default_geometry(seed, size=256, slices=90))
        home = folder / f"scan{seed}"
        write_series(patient, home / "ct")
        yield home, patient


def logged_steps(work: Path) -> list[int]:
    """The steps that a training in this folder has noted."""
    with (work / "log.csv").open() as handle:
        return [int(row["step"]) for row in csv.DictReader(handle)]
