"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

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


@pytest.fixture
def quick_results(simulated: Path, tmp_path: Path) -> Path:
    """A results folder as a run leaves it, without the run: the truth stands for the SEG."""
    from dataclasses import asdict

    from deepcac2.dicom import discover
    from deepcac2.imaging.atomic import write_json
    from deepcac2.pipeline.case import Case
    from deepcac2.pipeline.results import result_row, write_parquet

    rows = []
    for series in discover(simulated).series:
        folder = Path(series.patient_id) / series.series_uid
        status = "scored" if series.modality == "CT" else "rejected"
        rows.append(result_row(Case(series=series), status=status, folder=folder.as_posix()))
        outputs = []
        if status == "scored":
            outputs = ["cac.seg.dcm"]
            (tmp_path / "results" / folder).mkdir(parents=True)
            truth = next(simulated.rglob("truth.seg.dcm"))
            (tmp_path / "results" / folder / outputs[0]).write_bytes(truth.read_bytes())
        content = {"row": asdict(rows[-1]), "outputs": outputs}
        write_json(tmp_path / "results" / folder / "details.json", content)
    write_parquet(tmp_path / "results" / "results.parquet", rows)
    return tmp_path / "results"


@pytest.fixture(scope="session")
def orthanc_module() -> ModuleType:
    """`orthanc.py` beside this file: a real Orthanc for tests."""
    spec = importlib.util.spec_from_file_location("orthanc", Path(__file__).with_name("orthanc.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start_orthanc(orthanc_module: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts an Orthanc of the test's own, with options of its configuration; skips where there is none."""
    started: list[Any] = []

    def start(**options: Any) -> Any:
        started.append(orthanc_module.Orthanc(tmp_path / f"orthanc-{len(started)}", **options))
        return started[-1]

    yield start
    for orthanc in started:
        orthanc.stop(kill=True)


@pytest.fixture(scope="session")
def shared_orthanc(orthanc_module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Orthanc for many tests; see `orthanc`."""
    running = orthanc_module.Orthanc(tmp_path_factory.mktemp("orthanc"))
    yield running
    running.stop(kill=True)


@pytest.fixture
def orthanc(shared_orthanc: Any) -> Any:
    """A running Orthanc (`orthanc.py`) that holds nothing; skips the test where it is not installed."""
    shared_orthanc.clear()
    return shared_orthanc
