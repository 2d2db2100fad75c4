"""Fixtures shared by all tests."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, one thread each: torch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


Maker = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """``made_once(name, make)``: a folder that `make` fills, once for all processes of the test run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, make: Callable[[Path], None]) -> Path:
        folder = root / f"once-{name}"
        with (root / f"once-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                making = root / f"making-{name}"
                making.mkdir()
                make(making)
                making.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public test scans beside the checkout; skips the test where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the public test scans in ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def simulated(made_once: Maker) -> Path:
    """A simulated patient with calcium: ``<folder>/SIM-0003/ct`` and its truth.

    Its pixels, 1.2 mm, are the largest that no gate refuses.
    """

    def make(folder: Path) -> None:
        from deepcac2.simulation import default_geometry, simulate_patient
        from deepcac2.simulation.dicom import write_patient

        write_patient(simulate_patient(3, geometry=default_geometry(3, size=256, slices=90)), folder)

    return made_once("simulated", make)


@pytest.fixture(scope="session")
def simulated_results(simulated: Path, made_once: Maker) -> Path:
    """The results of a run over `simulated` by the usual workflow, masks kept as NIfTI; to be read only."""
    from deepcac2.batch.run import Means, run_folder
    from deepcac2.pipeline import Workflow

    def make(folder: Path) -> None:
        run_folder(
            simulated, folder / "results", workflow=Workflow.load("default"), means=Means(), keep=["nifti"]
        )

    return made_once("simulated-results", make) / "results"


@pytest.fixture
def quick_results(simulated: Path, tmp_path: Path) -> Path:
    """A results folder as a run leaves it, without the run: the truth stands for the SEG."""
    from dataclasses import asdict

    from deepcac2.dicom import discover
    from deepcac2.pipeline.case import Case
    from deepcac2.pipeline.reading import check_headers
    from deepcac2.pipeline.results import result_row, write_parquet
    from deepcac2.system.atomic import write_json

    rows = []
    for series in discover(simulated).series:
        folder = Path(series.patient_id) / series.series_uid
        rows.append(result_row(check_headers(Case(series=series)), folder=folder.as_posix()))
        outputs = []
        if rows[-1].status == "scored":
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
    return _beside("orthanc")


@pytest.fixture(scope="session")
def ups() -> ModuleType:
    """`ups.py` beside this file: a worklist and an archive for tests."""
    return _beside("ups")


def _beside(name: str) -> ModuleType:
    """A module beside this file, which no test can import."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
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


@pytest.fixture
def private_mounts(tmp_path: Path) -> list[str]:
    """A command without its last word, a shell script, which may mount file systems that only it sees."""
    private = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*private, mount], check=False).returncode:
        pytest.skip("may not mount a small file system here")
    return private


@pytest.fixture(scope="session")
def dashboard_results(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results to look at: a scored case with its files and a caution, and 700 rows with all that may be in a
    row."""
    from deepcac2.dicom import GATES, discover, read_segmentation, read_series
    from deepcac2.imaging.labels import calcium_labels, heart_labels
    from deepcac2.outputs.preview import PREVIEW, preview
    from deepcac2.pipeline import Case
    from deepcac2.pipeline.details import details
    from deepcac2.pipeline.facts import CALCIUM, CT, HEART, HEART_MEASURES, SCORE
    from deepcac2.pipeline.places import DETAILS_NAME
    from deepcac2.pipeline.results import ResultRow, result_row, write_parquet
    from deepcac2.scoring import risk_group, score
    from deepcac2.system.atomic import write_json

    folder = tmp_path_factory.mktemp("dashboard")
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    volume = read_series(series).volume
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)
    scored = score(volume, masks["calcium"])
    facts = {
        CT: volume,
        HEART: heart_labels(masks["heart"]),
        CALCIUM: calcium_labels(masks["calcium"]),
        SCORE: scored,
    }
    facts[HEART_MEASURES] = {"heart_volume_ml": 600.0}
    allowed = GATES["derived"].finding("the images are MPR", allow=["derived"])
    case = Case(series=series, facts=facts, findings=(allowed,))
    place = folder / series.patient_id / series.series_uid
    row = result_row(case, folder=place.relative_to(folder).as_posix())
    provenance = {"deepcac2": "0", "workflow": "default", "workflow_fingerprint": "0", "weights": {}}
    write_json(place / DETAILS_NAME, details(case, provenance) | {"row": vars(row), "outputs": []})
    (place / PREVIEW.file).write_bytes(preview(case))

    rng = np.random.default_rng(7)
    makers = ("SIEMENS", "GE MEDICAL SYSTEMS", "Philips", "")
    kernels = ("B30f", "STANDARD", "LUNG", "C", "=1+2", "<b>x</b>", 'O\'Brien "k"', "")
    rows = [row]
    for i in range(700):
        visit, ok = int(rng.integers(3)), rng.random() < 0.8
        value = round(float(rng.choice([0, 0, 3, 60, 250, 900]) * rng.uniform(0.5, 1.5)), 4)
        code = "" if ok else str(rng.choice(["contrast", "metal", "undecodable"]))
        rows.append(
            ResultRow(
                patient_id=f"P{i % 230:03d}",
                study_uid=f"1.2.{i % 230}.{visit}",
                series_uid=f"1.2.{i % 230}.{visit}.{i}",
                status="scored" if ok else str(rng.choice(["rejected", "failed"])),
                code=code,
                reason=f"{code}: one sentence" if code else "",
                agatston_score=value if ok else None,
                risk_group=int(risk_group(value)) if ok else None,
                risk_group_name=risk_group(value).label if ok else "",
                study_date=f"{1999 + visit}0102",
                time_point=f"t{visit}" if i % 230 < 200 else "",
                series_description=f"scan {i}",
                manufacturer=str(rng.choice(makers)),
                kernel=str(rng.choice(kernels)),
                slice_thickness=float(rng.choice([1.0, 1.25, 2.5, 2.4999])) if i % 50 else None,
                n_slices=int(rng.integers(60, 400)),
                warnings=";".join(w for w in ("kvp", "sharp-kernel", "contrast") if rng.random() < 0.3),
                folder=f"P{i % 230:03d}/1.2.{i % 230}.{visit}.{i}",
            )
        )
    unreadable = ResultRow(
        patient_id="", study_uid="", series_uid="", status="failed", code="unreadable-file"
    )
    write_parquet(folder / "results.parquet", [*rows, unreadable])
    return folder


class Nlst:
    """A tiny simulated trial, the paper's selection of it, and a run of that; each made once."""

    def __init__(self, made_once: Maker, persons: int) -> None:
        self._once, self._persons = made_once, persons

    def trial(self) -> Path:
        """Persons with calcium, two visits or three, two kernels; one series of each person is unfit."""
        from deepcac2.cli.main import main

        def make(folder: Path) -> None:
            command = ["simulate", str(folder / "trial"), "--trial", "--patients", str(self._persons)]
            assert main([*command, "--seed", "3", "--size", "96", "--slices", "64"]) == 0

        return self._once(f"nlst-{self._persons}", make) / "trial"

    def cohort(self) -> Path:
        """The paper's selection of the trial."""
        from deepcac2.cli.main import main

        def make(folder: Path) -> None:
            index, table = folder / "headers.parquet", folder / "cohort.csv"
            assert main(["inspect", str(self.trial() / "ct"), "--index", str(index)]) == 0
            assert main(["cohort", "select", str(index), "-o", str(table)]) == 0

        return self._once(f"cohort-{self._persons}", make) / "cohort.csv"

    def results(self) -> Path:
        """A run of what was selected; its field of 96 pixels, for speed, is one that a gate would refuse."""
        from deepcac2.batch.run import Means, run_folder
        from deepcac2.pipeline import Workflow
        from deepcac2.stats.tables import selected_series

        def make(folder: Path) -> None:
            run_folder(
                self.trial() / "ct", folder / "results", workflow=Workflow.load("default"), means=Means(),
                only=selected_series(self.cohort()), allow=["coarse-pixels"],
            )  # fmt: skip

        return self._once(f"results-{self._persons}", make) / "results"


@pytest.fixture(scope="session")
def nlst(made_once: Maker) -> Callable[[int], Nlst]:
    """``nlst(persons)``: see `Nlst`."""
    return lambda persons: Nlst(made_once, persons)


@pytest.fixture(scope="session")
def trial(nlst: Callable[[int], Nlst]) -> Path:
    """See `Nlst.trial`: one person, whose three series are selected."""
    return nlst(1).trial()


@pytest.fixture(scope="session")
def cohort(nlst: Callable[[int], Nlst]) -> Path:
    """See `Nlst.cohort`."""
    return nlst(1).cohort()


@pytest.fixture(scope="session")
def results(nlst: Callable[[int], Nlst]) -> Path:
    """See `Nlst.results`."""
    return nlst(1).results()


@pytest.fixture(scope="session")
def small_seg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true SEG of a small simulated patient."""
    from deepcac2.simulation import default_geometry, simulate_patient
    from deepcac2.simulation.dicom import write_patient

    folder = tmp_path_factory.mktemp("seg")
    write_patient(simulate_patient(3, geometry=default_geometry(3, size=32, slices=8)), folder)
    return next(folder.rglob("truth.seg.dcm"))


@pytest.fixture(scope="session")
def to_read(made_once: Maker) -> Path:
    """``results`` and ``ct`` of three small cases: see `readings.make`. To be read only."""
    make: Callable[[Path], None] = _beside("readings").make
    return made_once("to-read", make)


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """Tensors as the authors of DeepCAC2 published them, of any widths: `published.py` beside this file."""
    return _beside("published")


@pytest.fixture(scope="session")
def annotated() -> ModuleType:
    """Scans to annotate and a training on them: `annotated.py` beside this file."""
    return _beside("annotated")


@pytest.fixture(scope="session")
def zoo() -> ModuleType:
    """`zoo.py` beside this file: what is no chest."""
    return _beside("zoo")


@pytest.fixture(scope="session")
def deflated_segs() -> Callable[..., dict[str, bytes]]:
    """See `bombs.deflated_segs`."""
    made: Callable[..., dict[str, bytes]] = _beside("bombs").deflated_segs
    return made


@pytest.fixture(scope="session")
def few_slices(made_once: Callable[[str, Callable[[Path], None]], Path]) -> list[Path]:
    """The files of a small simulated CT, in order."""

    def make(folder: Path) -> None:
        from deepcac2.simulation import default_geometry, simulate_patient
        from deepcac2.simulation.dicom import write_patient

        write_patient(simulate_patient(3, geometry=default_geometry(3, size=64, slices=8)), folder)

    return sorted(next(made_once("small", make).rglob("ct")).iterdir())


@pytest.fixture(scope="session")
def series_of(few_slices: list[Path]) -> Callable[..., Any]:
    """``series_of(name, count, **changes)``: some slices of it as a series of its own."""

    def make(name: str, count: int = 4, **changes: Any) -> list[Any]:
        import pydicom
        from pydicom.uid import generate_uid

        made = []
        for number, path in enumerate(few_slices[:count]):
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


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that signs itself, its key in the same file."""
    path = tmp_path_factory.mktemp("tls") / "node.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        made = subprocess.run(
            [*command, *subject, "-keyout", path, "-out", f"{path}.crt"], capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("needs openssl")
    assert made.returncode == 0
    path.write_bytes(Path(f"{path}.crt").read_bytes() + path.read_bytes())
    return path
