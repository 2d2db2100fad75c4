"""One `deepcac2 run` over all that lies here: every real scan, and the zoo of what is no chest as DICOM."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from deepcac2.dicom import discover
from deepcac2.imaging import Volume
from deepcac2.pipeline.gates import gates
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import patient_id, write_series

pytestmark = pytest.mark.slow

Row = dict[str, str]


def run(data: Path, out: Path, *options: str) -> list[Row]:
    """The rows of a run in a process of its own, which must not end in a traceback."""
    command = [sys.executable, "-m", "deepcac2", "run", str(data), str(out), "--devices", "cpu", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    logs = "".join(path.read_text() for path in (out / "logs").iterdir())
    text = result.stdout + result.stderr + logs
    assert "Traceback" not in text, text
    assert result.returncode in (0, 1), text
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_of_all_real_scans_only_the_chests_are_scored(shared_data: Path, tmp_path: Path) -> None:
    homes = {s.series_uid: s.slices[0].path.relative_to(shared_data) for s in discover(shared_data).series}
    rows = run(shared_data, tmp_path / "out")
    scored = {homes[r["series_uid"]] for r in rows if r["status"] == "scored"}
    assert {"/".join(path.parts[:2]) for path in scored} == {
        "chest/LIDC-IDRI-0306",
        "chest/Lung_Dx-A0001-B",
        "chest/Lung_Dx-A0001-L",
        "annotated/LIDC-IDRI-0314",
        "annotated/LIDC-IDRI-0350",
        "annotated/LIDC-IDRI-0476",
        "annotated/4D-Lung-113",
        "annotated/LUNG1-001",
    }


def test_of_the_zoo_nothing_is_scored_whatever_is_allowed(zoo: ModuleType, tmp_path: Path) -> None:
    like = simulate_patient(20004, geometry=default_geometry(20004, size=128, slices=70))

    def all_of_it() -> Iterator[tuple[str, Volume]]:
        yield from ((name, make()) for name, make in zoo.NO_CHESTS.items())
        yield from zoo.turned(like.volume)
        yield from zoo.parts(like.volume)

    names = {}
    for number, (name, volume) in enumerate(all_of_it()):
        animal = replace(like, volume=volume, facts={**like.facts, "seed": number})
        names[patient_id(number)] = name
        write_series(animal, tmp_path / "in" / name.replace(" ", "-"))
    assert {r["status"] for r in run(tmp_path / "in", tmp_path / "default")} == {"rejected"}
    others = [g.code for g in gates().values() if g.overridable and g.code != "chest-implausible"]
    rows = run(tmp_path / "in", tmp_path / "allowed", *(f"--allow={code}" for code in others))
    assert len(rows) == len(names)
    assert {names[r["patient_id"]]: r["code"] for r in rows if r["status"] != "rejected"} == {}
