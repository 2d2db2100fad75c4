"""What the tests of the listening node share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

Series = Callable[..., list[pydicom.Dataset]]


@pytest.fixture(scope="session")
def slices(made_once: Callable[[str, Callable[[Path], None]], Path]) -> list[Path]:
    """The files of a small simulated CT, in order."""

    def make(folder: Path) -> None:
        from deepcac2.simulation import default_geometry, simulate_patient
        from deepcac2.simulation.dicom import write_patient

        write_patient(simulate_patient(3, geometry=default_geometry(3, size=64, slices=8)), folder)

    return sorted(next(made_once("small", make).rglob("ct")).iterdir())


@pytest.fixture(scope="session")
def series_of(slices: list[Path]) -> Series:
    """``series_of(name, count, **changes)``: some slices of it as a series of its own."""

    def make(name: str, count: int = 4, **changes: Any) -> list[pydicom.Dataset]:
        made = []
        for number, path in enumerate(slices[:count]):
            ds = pydicom.dcmread(path)
            ds.SeriesInstanceUID = generate_uid(entropy_srcs=["series", name])
            ds.StudyInstanceUID = generate_uid(entropy_srcs=["study", name])
            ds.SOPInstanceUID = generate_uid(entropy_srcs=[name, str(number)])
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            for keyword, value in changes.items():
                setattr(ds, keyword, value)
            made.append(ds)
        return made

    return make
