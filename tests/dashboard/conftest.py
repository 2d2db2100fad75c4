"""A results folder with its CT, and a server over it, for the tests of this room."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import uvicorn
from fastapi import FastAPI
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless, generate_uid

SECRETS = ("Doe^Jane", "19570304", "Grey^Meredith", "Seattle Grace", "ACC-4711", "Yang^Cristina", "P-SECRET")


@dataclass(frozen=True, kw_only=True)
class ViewerCase:
    """One scored series: its results folder, its CT, and what they hold.

    Attributes:
        results, ct: The folders.
        study, series, seg: UIDs of the study, the CT and the SEG made from it.
        compressed: UID of a second series of the study, of RLE slices, rejected by a gate.
        files: The CT's files by SOPInstanceUID, in order along the normal.
        secrets: What the CT's headers say and no answer may.
        masks: bool (z, y, x) under ``"heart"`` and ``"calcium"``, as they were written.
    """

    results: Path
    ct: Path
    study: str
    series: str
    seg: str
    compressed: str
    files: dict[str, Path]
    seg_file: Path
    secrets: tuple[str, ...] = SECRETS
    masks: dict[str, npt.NDArray[np.bool_]] = field(repr=False)


@pytest.fixture(scope="session")
def viewer_case(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> ViewerCase:
    """A simulated patient, named in every way that headers know, with its true masks as result."""
    from deepcac2.dicom import discover, read_segmentation, read_series, write_segmentation
    from deepcac2.imaging.labels import calcium_labels, heart_labels
    from deepcac2.pipeline import Case
    from deepcac2.pipeline.details import details
    from deepcac2.pipeline.facts import CALCIUM, CT, HEART, SCORE
    from deepcac2.pipeline.places import DETAILS_NAME
    from deepcac2.pipeline.reading import check_headers
    from deepcac2.pipeline.results import result_row, write_parquet
    from deepcac2.scoring import score
    from deepcac2.system.atomic import write_json

    home = tmp_path_factory.mktemp("viewer")
    ct, results = home / "ct", home / "results"
    shutil.copytree(simulated / "SIM-0003" / "ct", ct / "a" / "images")
    for path in (ct / "a" / "images").iterdir():
        ds = pydicom.dcmread(path)
        _name(ds)
        ds.save_as(path)
    compressed = generate_uid(entropy_srcs=["viewer case"])
    (ct / "b").mkdir()
    for path in sorted((ct / "a" / "images").iterdir())[:5]:
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = compressed
        ds.compress(RLELossless, generate_instance_uid=True)
        ds.save_as(ct / "b" / path.name)
    stranger = pydicom.dcmread(path)  # beside the CT, and not in the results
    stranger.SeriesInstanceUID = generate_uid(entropy_srcs=["stranger"])
    stranger.save_as(ct / "a" / "stranger.dcm")

    found = {series.series_uid: series for series in discover(ct).series}
    reading = read_series(next(s for s in found.values() if len(s.slices) > 50))
    series = next(s for s in found.values() if len(s.slices) > 50)
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", reading.volume.geometry)
    folder = results / series.patient_id / series.series_uid
    seg_file = folder / "cac.seg.dcm"
    write_segmentation(
        seg_file,
        series=series,
        geometry=reading.volume.geometry,
        slices=reading.slices,
        algorithm_version="0",
        **masks,
    )
    scored = score(reading.volume, masks["calcium"], slice_thickness=series.slice_thickness)
    facts = {CT: reading.volume, SCORE: scored, HEART: heart_labels(masks["heart"])}
    facts[CALCIUM] = calcium_labels(masks["calcium"])
    case = Case(series=series, facts=facts)
    content = details(case, {}) | {"outputs": [seg_file.name]}
    write_json(folder / DETAILS_NAME, content)
    rows = [
        result_row(case, folder=folder.relative_to(results).as_posix()),
        result_row(check_headers(Case(series=found[compressed]))),
    ]
    write_parquet(results / "results.parquet", rows)
    return ViewerCase(
        results=results,
        ct=ct,
        study=series.study_uid,
        series=series.series_uid,
        seg=str(pydicom.dcmread(seg_file, stop_before_pixels=True).SeriesInstanceUID),
        compressed=compressed,
        files={ref.sop_instance_uid: ref.path for ref in series.slices},
        seg_file=seg_file,
        masks=masks,
    )


@dataclass(frozen=True, kw_only=True)
class NamedCase:
    """`ViewerCase` once more, of weights that name what they see.

    Attributes:
        results: The folder.
        seg_file, sr_file: The SEG and the SR made from the series.
        arteries, others: uint8 (z, y, x): values of the classes of calcium and of what was not counted.
        counted: bool (z, y, x).
        scores: By column of the table.
    """

    results: Path
    seg_file: Path
    sr_file: Path
    arteries: npt.NDArray[np.uint8] = field(repr=False)
    others: npt.NDArray[np.uint8] = field(repr=False)
    counted: npt.NDArray[np.bool_] = field(repr=False)
    scores: dict[str, float]


@pytest.fixture(scope="session")
def named_case(viewer_case: ViewerCase, tmp_path_factory: pytest.TempPathFactory) -> NamedCase:
    """The true calcium, the upper slices LAD's, the lower ones RCA's right of a line and not sure left of it;
    bone of the aorta, and three voxels of the pericardium too small to have a score."""
    from deepcac2.dicom import discover, read_series, write_segmentation
    from deepcac2.imaging import labels
    from deepcac2.imaging.labels import Labels
    from deepcac2.outputs.preview import PREVIEW, preview
    from deepcac2.outputs.structured_report import write_sr
    from deepcac2.pipeline import Case
    from deepcac2.pipeline.arteries import ARTERIES, COLUMNS, NOT_CORONARY
    from deepcac2.pipeline.details import details
    from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, HEART, SCORE
    from deepcac2.pipeline.places import DETAILS_NAME
    from deepcac2.pipeline.results import result_row, write_parquet
    from deepcac2.pipeline.scoring import ScoreCalcium
    from deepcac2.system.atomic import write_json

    results = tmp_path_factory.mktemp("named")
    series = next(s for s in discover(viewer_case.ct).series if s.series_uid == viewer_case.series)
    series = replace(series, patient_age=60, patient_sex="M")
    reading = read_series(series)
    hu, masks = reading.volume.hu, viewer_case.masks
    arteries, others = (np.zeros(hu.shape, np.uint8) for _ in range(2))
    z, y, x = np.nonzero(masks["calcium"])
    upper, left = z > np.median(z), x > np.median(x)
    arteries[z, y, x] = np.where(upper, 2, np.where(left, labels.NOT_SURE.value, 4))
    bright = np.argwhere((hu >= 130) & ~masks["calcium"])
    most = np.bincount(bright[:, 0]).argmax()
    others[tuple(bright[bright[:, 0] == most][:300].T)] = 1
    quiet = np.argwhere((hu[most] < 100) & ~masks["heart"][most])[0]
    others[most, quiet[0], quiet[1]] = 4
    facts = {
        CT: reading.volume,
        HEART: labels.heart_labels(masks["heart"]),
        CALCIUM: labels.calcium_labels(masks["calcium"]),
        CALCIUM_RUN: {},
        ARTERIES: Labels(array=arteries, classes=(*labels.ARTERIES, labels.NOT_SURE)),
        NOT_CORONARY: Labels(array=others, classes=labels.NOT_CORONARY),
    }
    case = ScoreCalcium()(Case(series=series, facts=facts))
    row = result_row(case, folder=f"{series.patient_id}/{series.series_uid}")
    folder = results / row.folder
    write_segmentation(
        folder / "cac.seg.dcm",
        series=series,
        geometry=reading.volume.geometry,
        slices=reading.slices,
        algorithm_version="0",
        parts=[case[ARTERIES], case[NOT_CORONARY]],
        **masks,
    )
    seg_file, sr_file = folder / "cac.seg.dcm", folder / "cac.sr.dcm"
    write_sr(sr_file, case, segmentation=seg_file, provenance={"deepcac2": "0", "weights": {}})
    write_json(folder / DETAILS_NAME, details(case, {}) | {"outputs": [seg_file.name, sr_file.name]})
    picture = preview(case)
    assert picture is not None
    (folder / PREVIEW.file).write_bytes(picture)
    write_parquet(results / "results.parquet", [row])
    return NamedCase(
        results=results,
        seg_file=seg_file,
        sr_file=sr_file,
        arteries=arteries,
        others=others,
        counted=case[SCORE].counted,
        scores={column.name: getattr(row, column.name) for column in COLUMNS},
    )


def _name(ds: Dataset) -> None:
    """Give a data set what it must not show: at the top, in a sequence, and in private elements."""
    ds.PatientName, ds.PatientBirthDate, ds.ReferringPhysicianName = SECRETS[:3]
    ds.InstitutionName, ds.AccessionNumber = SECRETS[3:5]
    item = Dataset()
    item.PersonName = SECRETS[5]
    item.InstitutionName = SECRETS[3]
    ds.PersonIdentificationCodeSequence = [item]
    inner = Dataset()
    inner.PerformingPhysicianName = SECRETS[5]
    inner.StudyInstanceUID = ds.StudyInstanceUID
    ds.RequestAttributesSequence = [inner]
    ds.ReferencedStudySequence = [inner]
    block = ds.private_block(0x0011, "DEEPCAC2 TEST", create=True)
    block.add_new(1, "LO", SECRETS[6])


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[[FastAPI], str]]:
    """Serves applications on this machine only; returns the address of each."""
    servers: list[tuple[uvicorn.Server, threading.Thread, socket.socket]] = []

    def start(app: FastAPI) -> str:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread, listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread, listener in servers:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(scope="session")
def viewer_app() -> Callable[..., FastAPI]:
    """Makes an application of the viewer's routers alone."""

    def make(case: ViewerCase, show_phi: bool = False, vendor: Path | None = None) -> FastAPI:
        from deepcac2.dashboard import dicomweb, slices, viewer
        from deepcac2.dashboard.store import DicomStore
        from deepcac2.dashboard.table import Results

        app = FastAPI()
        store = DicomStore(Results(case.results), case.ct, show_phi)
        app.include_router(dicomweb.router(store), prefix="/dicomweb")
        app.include_router(slices.router(store))
        pages = viewer.router(vendor) if vendor is not None else None
        if pages is not None:
            app.include_router(pages)
        return app

    return make


@pytest.fixture(scope="session")
def served(viewer_case: ViewerCase, serve: Any, viewer_app: Any) -> str:
    """Address of a server over `viewer_case`, names hidden."""
    return str(serve(viewer_app(viewer_case)))


@pytest.fixture(scope="session")
def served_with_names(viewer_case: ViewerCase, serve: Any, viewer_app: Any) -> str:
    """Address of a server over `viewer_case`, names shown."""
    return str(serve(viewer_app(viewer_case, show_phi=True)))
