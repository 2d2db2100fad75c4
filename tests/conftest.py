"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, one thread each: torch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public test scans beside the checkout; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the public test scans in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated patient with calcium on a small matrix: ``<folder>/SIM-0003/ct`` and its truth."""
    from deepcac2.simulation import default_geometry, simulate_patient
    from deepcac2.simulation.dicom import write_patient

    folder = tmp_path_factory.mktemp("simulated")
    write_patient(simulate_patient(3, geometry=default_geometry(3, size=192, slices=90)), folder)
    return folder
