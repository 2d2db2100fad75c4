"""A method, an output, a gate and a rule of somebody else: one file outside the package, none in it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOY = '''
from dataclasses import dataclass, replace

import numpy as np

from deepcac2.dicom.gates import Gate, make_finding, register_gate
from deepcac2.pipeline.case import Fact, ImageFile
from deepcac2.pipeline.facts import CALCIUM, CT, HEART
from deepcac2.pipeline.previews import Shown, by_slice
from deepcac2.pipeline.step import Column, Step, Value, register
from deepcac2.pipeline.writing import series_folder
from deepcac2.scoring.rules import Rule, register_rule

register_gate(Gate(code="bright", sentence="The scan has too many bright voxels.", fatal=False))
register_rule(Rule(name="plain", summary="one weight for all", weights=((130, 2),)))

BRIGHT = Fact("bright", "bright voxels", image=ImageFile("bright.nii.gz", "nifti:mod=seg:model=toy"))
MEASURES = Fact("toy", "what the toy measured", "toy")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find what is bright.

    Attributes:
        above_hu: From here on.
    """

    above_hu: int = 300


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """Write what is bright."""


def build(options, context):
    def find(case):
        mask = case[CT].hu >= options.above_hu
        for fact in (BRIGHT, CALCIUM, HEART):
            case = case.add(fact, mask)
        case = case.add(MEASURES, {"voxels": int(mask.sum())})
        return case.noted(make_finding("bright", f"{mask.sum()} voxels"))

    return find


def build_writer(options, context):
    def write(case):
        path = context.output / series_folder(case.series) / "toy.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(case[MEASURES]["voxels"]))
        return replace(case, outputs={**case.outputs, "toy": path})

    return write


def voxels(case):
    return case.get(MEASURES, {}).get("voxels")


def shows(case):
    if BRIGHT not in case:
        return None
    mask = case[BRIGHT]
    return Shown(precedence=9, title="Bright", line="", outline=np.zeros_like(mask), outline_name="nothing",
                 marked=mask, marked_name="bright", weight=by_slice(mask))


register(Step(
    module="ToyRunner", options=Options, phase="compute", build=build, reads=lambda options: (CT,),
    writes=(BRIGHT, MEASURES, CALCIUM, HEART), shows=shows,
    columns=(Column(name="toy_voxels", kind=int, meaning="voxels that are bright", of=voxels),),
    values=(Value(name="toy_voxels", label="Bright", kind=int, meaning="Bright voxels.", of=voxels),),
))
register(Step(
    module="ToyWriter", options=WriterOptions, phase="write", build=build_writer,
    reads=lambda options: (MEASURES,),
))
'''

WORKFLOW = """
execute: [DicomImporter, NiftiConverter, ToyRunner, AGSCalculator,
          DSegConverter, ToyWriter, ReportExporter, DataOrganizer]
modules:
  ToyRunner: {above_hu: 400}
  AGSCalculator: {rule: plain}
  ReportExporter:
    includes: [{label: Voxels, data: toy_voxels}, {label: Score, data: agatston_score}]
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the toy is installed, as pip would: the module, and a record that names its entry point."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy.py").write_text(TOY)
    (folder / "toy.yml").write_text(WORKFLOW)
    record = folder / "toy-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[deepcac2.steps]\ntoy = toy\n")
    return folder


def deepcac2(elsewhere: Path, *command: object) -> subprocess.CompletedProcess[str]:
    paths = [str(elsewhere), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-m", "deepcac2", *map(str, command)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_one_file_outside_is_a_method_an_output_a_gate_and_a_rule(
    elsewhere: Path, simulated: Path, tmp_path: Path
) -> None:
    ct, out = simulated / "SIM-0003" / "ct", tmp_path / "out"
    done = deepcac2(
        elsewhere, "run", ct, out, "--workflow", elsewhere / "toy.yml", "--devices", "cpu", "--keep", "nifti"
    )
    assert done.returncode == 0, done.stderr
    with (out / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    folder = out / row["folder"]
    voxels = int((folder / "toy.txt").read_text())
    assert voxels > 0
    assert int(row["toy_voxels"]) == voxels
    assert "bright" in row["warnings"].split(";")
    assert (row["status"], row["rule"]) == ("scored", "plain")
    details = json.loads((folder / "details.json").read_text())
    assert details["toy"] == {"voxels": voxels}
    assert "toy.txt" in details["outputs"]
    report = json.loads((folder / "DeepCAC.report.json").read_text())
    assert report == {"Voxels": voxels, "Score": float(row["agatston_score"])}
    assert (folder / "bright.nii.gz").is_file()
    assert (folder / "cac.seg.dcm").is_file()
    with Image.open(folder / "preview.png") as picture:
        assert picture.size[0] > 0

    listed = deepcac2(elsewhere, "inspect", "--gates").stdout
    assert "bright" in listed


def test_without_it_its_workflow_is_not_known(elsewhere: Path, simulated: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepcac2", "run", str(simulated), str(tmp_path / "out"), "--workflow",
         str(elsewhere / "toy.yml")],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "unknown module 'ToyRunner'" in done.stderr
