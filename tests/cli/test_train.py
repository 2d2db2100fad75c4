"""`deepcac2 train` at the command line: what it refuses, in one line, and that it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepcac2.cli.main import main
from deepcac2.imaging import Geometry
from deepcac2.imaging.files import write_image
from deepcac2.weights import resolve

RECIPE = """
calcium:
  name: tiny
  sampling: grid
  epochs: 1
  batch_size: 32
  validation_share: 0.5
  architecture: {channels: [4, 8], strides: [2], norm: batch}
"""


def scans(folder: Path, count: int = 2) -> Path:
    """Scans with a heart and calcium, in nnU-Net's layout."""
    grid = Geometry(shape=(30, 60, 60), spacing=(4.0, 2.5, 2.5), origin=(0.0, 0.0, 0.0))
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"labels": {"heart": 1, "calcium": 2}}))
    for i in range(count):
        hu = np.random.default_rng(i).integers(-100, 100, grid.shape).astype(np.int16)
        labels = np.zeros(grid.shape, dtype=np.uint8)
        labels[8:22, 15:45, 15:45] = 1
        labels[14:16, 20:24, 20:24] = 2
        hu[labels == 2] = 400
        hu[10:12, 35:40, 35:40] = 500
        write_image(folder / "imagesTr" / f"s{i}_0000.nii.gz", hu, grid)
        write_image(folder / "labelsTr" / f"s{i}.nii.gz", labels, grid)
    return folder


def run(capsys: pytest.CaptureFixture[str], *command: object) -> tuple[int, str, str]:
    code = main(["train", *(str(c) for c in command)])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


@pytest.mark.slow
def test_a_training_from_annotated_scans(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(RECIPE)
    command = ("calcium", "--config", tmp_path / "r.yml", "--data", scans(tmp_path / "scans"))
    code, out, _ = run(capsys, *command, "--work", tmp_path / "work", "--device", "cpu")
    assert code == 0
    assert out == f"weights: {tmp_path / 'work' / 'weights'}\n"
    assert resolve(tmp_path / "work" / "weights", "calcium").name == "tiny"
    # Once more: nothing is left to do, and it says where the result is.
    again = run(capsys, *command, "--work", tmp_path / "work", "--device", "cpu")
    assert again[:2] == (0, out)


@pytest.mark.parametrize(
    ("recipe", "data", "code", "what"),
    [
        (RECIPE, None, 60, "--data"),
        (RECIPE, "nowhere", 60, "is not a folder"),
        (RECIPE, "one", 60, "at least two must"),
        (RECIPE.replace("epochs", "epoch"), "one", 30, "Perhaps you meant 'epochs'"),
        ("heart: {name: x}", "one", 30, "has no part 'calcium:'"),
    ],
)
def test_what_cannot_be_trained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, recipe: str, data: str | None, code: int, what: str
) -> None:
    (tmp_path / "r.yml").write_text(recipe)
    scans(tmp_path / "one", count=1)
    given = ["--data", tmp_path / data] if data else []
    command = ("calcium", "--config", tmp_path / "r.yml", *given, "--work", tmp_path / "w", "--device", "cpu")
    found, out, err = run(capsys, *command)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (found, out, len(errors)) == (code, "", 1)
    assert what in errors[0]


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    code, _, err = run(capsys, "calcium", "--work", tmp_path, "--device", "cuda")
    assert code == 50
    assert "--device cpu" in err
    assert not list(tmp_path.iterdir())


BOTH = """
heart:
  name: short
  patients: 4
  first_seed: 5
  scan_variants: 1
  spacing_mm: [12, 12, 12]
  base_features: 4
  max_features: 16
  convs_per_stage: 1
  intensity_hu: [-300.0, 300.0, 0.0, 100.0]
  epochs: 1
  iterations_per_epoch: 2
  validation_iterations: 1
calcium:
  name: tiny
  patients: 4
  first_seed: 1
  sampling: random
  steps: 2
  batch_size: 2
  architecture: {channels: [4, 8], strides: [2], norm: batch}
refine:
  name: again
  patients: 4
  first_seed: 1
  sampling: random
  steps: 1
  batch_size: 2
  architecture: {channels: [4, 8], strides: [2], norm: batch}
"""


@pytest.mark.slow
def test_both_networks_by_one_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(BOTH)
    command = ("bundled", "--config", tmp_path / "r.yml", "--data", scans(tmp_path / "scans"))
    code, out, _ = run(capsys, *command, "--work", tmp_path / "work", "--device", "cpu")
    assert code == 0
    folders = [tmp_path / "work" / part / "weights" for part in ("heart", "calcium", "refine")]
    heart, first, again = map(resolve, folders, ("heart", "calcium", "calcium"))
    assert out == f"weights: {folders[0]}\nweights: {folders[2]}\n"
    assert (heart.name, first.name, again.name) == ("short", "tiny", "again")
    assert again.metadata["training"]["recipe"]["start"] == f"tiny@{first.hash[:12]}"


TOY = """
from dataclasses import dataclass

from deepcac2.pipeline.step import Step, register


@dataclass(frozen=True, kw_only=True)
class Options:
    weights: str = "bundled"


register(Step(
    module="ToyRunner", options=Options, phase="compute", build=lambda options, context: lambda case: case,
    role="toy", train="toy_training",
))
"""
TOY_TRAINING = """
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RECIPE:
    name: str


def train(recipe, work, inputs):
    (work / "weights").mkdir(parents=True)
    (work / "weights" / "said.txt").write_text(f"{recipe.name} on {inputs.device}, {len(inputs.data)} folder")
    return work / "weights"
"""


@pytest.mark.slow
def test_a_method_of_somebody_else_is_trained(tmp_path: Path) -> None:
    """Its step names its training: nothing here knows it, and nobody loads it but this command."""
    record = tmp_path / "toy-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[deepcac2.steps]\ntoy = toy\n")
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "toy.yml").write_text("toy: {name: mine}")

    def deepcac2(*command: object) -> subprocess.CompletedProcess[str]:
        paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.run(
            [sys.executable, "-m", "deepcac2", "train", *map(str, command)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert "toy" in deepcac2("--help").stdout.partition("{")[2].partition("}")[0].split(",")
    (tmp_path / "toy_training.py").write_text(TOY_TRAINING)
    command = ("toy", "--config", tmp_path / "toy.yml", "--work", tmp_path / "w", "--device", "cpu")
    done = deepcac2(*command, "--data", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"weights: {tmp_path / 'w' / 'weights'}\n"
    assert (tmp_path / "w" / "weights" / "said.txt").read_text() == "mine on cpu, 1 folder"
