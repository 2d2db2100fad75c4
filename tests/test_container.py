"""The image, run as a user would. `make container-test` names the image and how to run it; slow.

Environment:
    DEEPCAC2_CONTAINER_RUN: the command that runs an image, e.g. ``docker run --rm``.
    DEEPCAC2_IMAGE: the image.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

RUN = shlex.split(os.environ.get("DEEPCAC2_CONTAINER_RUN", ""))
IMAGE = os.environ.get("DEEPCAC2_IMAGE", "")
LOCKED = ["--read-only", "--network", "none", "--user", "12345:12345", "--cap-drop", "ALL"]
TIMES = {"seconds"}  # what may differ between two runs, in tables and details


@pytest.fixture(autouse=True)
def _image() -> None:
    if not (RUN and IMAGE):
        pytest.skip("needs a built image; `make container container-test` builds and names it")


def cli(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line on this machine."""
    command = [sys.executable, "-m", "deepcac2", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def container(
    *arguments: str, folders: dict[str, Path], writable: bool = False
) -> subprocess.CompletedProcess[str]:
    """The image, locked down, with host folders under ``/app/data`` (the input read-only)."""
    mounts = []
    for name, folder in folders.items():
        mounts += ["-v", f"{folder}:/app/data/{name}" + (":ro" if name == "input_data" else "")]
    locked = [flag for flag in LOCKED if not (writable and flag == "--read-only")]
    command = [*RUN, *locked, *mounts, IMAGE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One simulated patient, readable by everyone."""
    folder = tmp_path_factory.mktemp("container") / "in"
    done = cli("simulate", folder, "--patients", "1", "--seed", "3")
    assert done.returncode == 0, done.stderr
    for parent in (folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    return folder / "SIM-0003" / "ct"


@pytest.fixture(scope="module")
def expected(patient: Path) -> Path:
    """What the command line makes of it."""
    output = patient.parent / "expected"
    done = cli("run", patient, output, "--devices", "cpu")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A folder that user 12345 may write to and reach."""
    folder = tmp_path / "out"
    folder.mkdir()
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    folder.chmod(0o777)
    return folder


def only(folder: Path, name: str) -> Path:
    (found,) = folder.rglob(name)
    return found


def test_runs_the_default_workflow_and_agrees_with_the_command_line(
    patient: Path, expected: Path, output: Path
) -> None:
    done = container(folders={"input_data": patient, "output_data": output})
    assert done.returncode == 0, done.stderr
    assert "GPU: " in done.stderr

    for name in ("DeepCAC.report.json", "preview.png"):
        assert only(output, name).read_bytes() == only(expected, name).read_bytes(), name
    assert only(output, "DeepCAC.report.json").stat().st_uid == 12345

    import pydicom

    mine, theirs = (pydicom.dcmread(only(folder, "cac.seg.dcm")) for folder in (output, expected))
    np.testing.assert_array_equal(mine.pixel_array, theirs.pixel_array)
    assert mine.PerFrameFunctionalGroupsSequence == theirs.PerFrameFunctionalGroupsSequence

    details = [json.loads(only(folder, "details.json").read_text()) for folder in (output, expected)]
    assert details[0]["score"] == details[1]["score"]
    assert details[0]["provenance"]["weights"] == details[1]["provenance"]["weights"]

    rows = []
    for folder in (output, expected):
        with only(folder, "results.csv").open(newline="") as table:
            rows.append([{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(table)])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1


def test_works_as_the_command_line(patient: Path) -> None:
    done = container("inspect", "/app/data/input_data", "--json", folders={"input_data": patient})
    assert done.returncode == 0, done.stderr
    assert done.stdout == cli("inspect", patient, "--json").stdout.replace(
        str(patient), "/app/data/input_data"
    )


def test_a_missing_gpu_is_an_error_where_one_was_asked_for(patient: Path, output: Path) -> None:
    folders = {"input_data": patient, "output_data": output}
    done = container("--devices", "cuda", folders=folders)
    assert done.returncode == 50, done.stderr
    assert "--device cpu" in done.stderr


def test_an_unwritable_output_is_one_line(patient: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    done = container(folders={"input_data": patient, "output_data": tmp_path})
    assert done.returncode == 22, done.stderr
    assert "Traceback" not in done.stderr


def test_mhubs_own_runner_agrees(patient: Path, expected: Path, output: Path) -> None:
    done = container(
        *("python", "-m", "mhubio.run", "--config", "/app/models/deepcac2/config/default.yml", "--print"),
        folders={"input_data": patient, "output_data": output},
        writable=True,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(only(folder, "DeepCAC.report.json").read_text()) for folder in (output, expected)]
    assert reports[0] == reports[1]


def test_the_other_methods_agree_with_the_command_line(patient: Path, output: Path) -> None:
    own = output.parent / "own"
    done = cli("run", patient, own, "--devices", "cpu", "--workflow", "screening,direct")
    assert done.returncode == 0, done.stderr
    done = container("--workflow", "screening,direct", folders={"input_data": patient, "output_data": output})
    assert done.returncode == 0, done.stderr
    reports = sorted(path.name for path in own.rglob("*.report.json"))
    assert reports
    for name in (*reports, "preview.png"):
        assert only(output, name).read_bytes() == only(own, name).read_bytes(), name


@pytest.mark.parametrize("method", ["screening", "direct"])
def test_mhubs_own_runner_agrees_on_the_other_methods(patient: Path, output: Path, method: str) -> None:
    own = output.parent / "own"
    done = cli("run", patient, own, "--devices", "cpu", "--workflow", method)
    assert done.returncode == 0, done.stderr
    done = container(
        *("python", "-m", "mhubio.run", "--config", f"/app/models/deepcac2/config/{method}.yml", "--print"),
        folders={"input_data": patient, "output_data": output},
        writable=True,
    )
    assert done.returncode == 0, done.stderr
    name = f"{method}.report.json"
    assert json.loads(only(output, name).read_text()) == json.loads(only(own, name).read_text())


def test_the_package_is_there_under_both_names_and_clean() -> None:
    check = (
        "import importlib, pathlib, sys\n"
        "name = sys.argv[1]\n"
        "module = importlib.import_module(name)\n"
        "print(pathlib.Path(module.__file__).resolve())\n"
    )
    for name in ("deepcac2", "models.deepcac2"):
        done = container("python", "-c", check, name, folders={})
        assert done.stdout.strip() == "/app/models/deepcac2/__init__.py", done.stderr
    listing = container("sh", "-c", "ls -A /app/models/deepcac2; id -u", folders={}).stdout.split()
    assert not {"tests", "docs", "benchmarks", ".git", ".venv"} & set(listing)
    assert listing[-1] == "12345"
