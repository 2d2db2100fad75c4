"""A set that somebody has annotated at the desk, in a training and an evaluation."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from deepcac2.cli.main import main
from deepcac2.dicom import discover
from deepcac2.imaging.labels import ARTERIES
from deepcac2.models.calcium.train import train
from deepcac2.review.case import ReadCase, open_scan
from deepcac2.review.desk import Desk
from deepcac2.review.reading import Decision
from deepcac2.review.values import VALUES
from deepcac2.simulation.patient import SimulatedPatient
from deepcac2.training.recipe import Inputs


def annotate(desk: Desk, case: ReadCase, patient: SimulatedPatient) -> float:
    """Say of every piece what it is, as who simulated it knows; sign. Returns the signed score."""
    uid, after = case.series.series_uid, 0
    names = {label.value: label.name for label in ARTERIES}
    for piece in case.pieces:
        own = case.whole(case.number == piece.number)
        values, counts = np.unique(patient.arteries.array[own], return_counts=True)
        most = int(values[counts.argmax()])
        if most:
            decision = Decision(value=VALUES[names[most]], piece=piece.number)
            after = desk.decide(uid, "Ann", decision, after=after).after
    standing, _ = desk.sign(uid, "Ann", after=after)
    return standing.score.total


@pytest.mark.slow
def test_it_trains_and_evaluates(annotated: ModuleType, tmp_path: Path) -> None:
    patients, cases = {}, {}
    for home, patient in annotated.scans(tmp_path / "scans"):
        (series,) = discover(home).series
        patients[series.series_uid] = patient
        cases[series.series_uid] = open_scan(series, heart=patient.heart)
    desk = Desk(tmp_path / "review", lambda uid: cases[uid], apart=(tmp_path / "scans",))
    scores = {uid: annotate(desk, cases[uid], patients[uid]) for uid in cases}
    assert min(scores.values()) > 0

    data = tmp_path / "review" / "annotated" / "Ann"
    train(annotated.RECIPE, tmp_path / "work", Inputs(device=torch.device("cpu"), data=[data]))
    assert annotated.logged_steps(tmp_path / "work") == [1, 2, 3]

    report = tmp_path / "report"
    assert main(["evaluate", "--data", str(data), "--report", str(report), "--device", "cpu"]) == 0
    with (report / "cases.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert sorted(float(row["true_score"]) for row in rows) == pytest.approx(
        sorted(scores.values()), abs=0.01
    )
