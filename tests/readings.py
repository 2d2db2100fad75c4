"""Small scans to read: a ball for a heart with bright boxes in it, as results of a run and their CT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

SHAPE, SPACING = (36, 72, 80), (2.5, 1.0, 0.9)
COUNTED = {"first": np.s_[10:13, 30:35, 30:34], "second": np.s_[14:15, 40:43, 44:47]}
"""What the automatic result counts."""
LEFT = {"third": np.s_[8:10, 45:49, 30:36], "joined": np.s_[16:18, 26:30, 40:52]}
"""As bright in the heart and not counted; what is joined is half an artery's."""


def make(folder: Path, count: int = 3) -> None:
    """``results/`` and ``ct/`` of cases READ-00, READ-01, …; the densities differ, and so do the scores."""
    from deepcac2.dicom import discover, read_series, write_segmentation
    from deepcac2.imaging import Geometry, Volume
    from deepcac2.imaging.labels import calcium_labels, heart_labels
    from deepcac2.outputs.preview import preview
    from deepcac2.outputs.structured_report import write_sr
    from deepcac2.pipeline import Case
    from deepcac2.pipeline.details import details
    from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, GEOMETRY, HEART
    from deepcac2.pipeline.results import result_row, write_parquet
    from deepcac2.pipeline.scoring import ScoreCalcium
    from deepcac2.simulation import default_geometry, simulate_patient
    from deepcac2.simulation.dicom import write_series
    from deepcac2.system.atomic import write_json

    provenance: dict[str, object] = {
        "deepcac2": "0",
        "workflow": "default",
        "workflow_fingerprint": "0",
        "weights": {},
    }
    provenance |= {"allowed_gates": []}
    patient = simulate_patient(3, geometry=default_geometry(3, size=32, slices=8))
    grid = Geometry(shape=SHAPE, spacing=SPACING, origin=(-40.0, -36.0, 100.0))
    rows = []
    for nr in range(count):
        z, y, x = np.indices(SHAPE)
        middle = (z - 12) ** 2 * 6.25 + (y - 36) ** 2 + (x - 40) ** 2 * 0.81
        heart = middle < 28**2
        hu = np.where(heart, 40, -700) + np.random.default_rng(nr).integers(-9, 10, SHAPE)
        for density, box in zip((350, 210, 260, 330), (*COUNTED.values(), *LEFT.values()), strict=True):
            hu[box] = density + 45 * nr
        calcium = np.zeros(SHAPE, dtype=bool)
        for box in COUNTED.values():  # and a rim that is too dark to count
            calcium[tuple(slice(s.start - (s is not box[0]), s.stop + (s is not box[0])) for s in box)] = True

        def name(ds: Dataset, nr: int = nr) -> None:
            ds.PatientID = f"READ-{nr:02d}"
            who = ["to read", str(nr)]
            for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
                setattr(ds, keyword, generate_uid(entropy_srcs=[*who, keyword]))
            ds.SOPInstanceUID = generate_uid(entropy_srcs=[*who, str(ds.InstanceNumber)])

        scan = replace(patient, volume=Volume(hu=hu.astype(np.int16), geometry=grid))
        write_series(scan, folder / "ct" / f"{nr:02d}", change=name)
        (series,) = discover(folder / "ct" / f"{nr:02d}").series
        reading = read_series(series)
        case = Case(series=series, facts={CT: reading.volume, GEOMETRY: reading.volume.geometry})
        case = case.add(HEART, heart_labels(heart)).add(CALCIUM, calcium_labels(calcium))
        case = ScoreCalcium()(case.add(CALCIUM_RUN, {"heart_margin_mm": 5.0}))
        home = folder / "results" / series.patient_id / series.series_uid
        seg, report = home / "cac.seg.dcm", home / "cac.sr.dcm"
        write_segmentation(
            seg,
            series=series,
            geometry=reading.volume.geometry,
            heart=heart,
            calcium=calcium,
            slices=reading.slices,
            algorithm_version="0",
        )
        write_sr(report, case, segmentation=seg, provenance=provenance)
        row = result_row(case, folder=f"{series.patient_id}/{series.series_uid}")
        content = details(case, provenance) | {"outputs": [seg.name, report.name], "row": vars(row)}
        write_json(home / "details.json", content)
        (home / "preview.png").write_bytes(preview(case) or b"")
        rows.append(row)
    write_parquet(folder / "results" / "results.parquet", rows)
