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
from dataclasses import dataclass

import numpy as np

from deepcac2.dicom.gates import Gate, register_gate
from deepcac2.imaging.labels import CALCIUM as CALCIUM_LABEL
from deepcac2.imaging.labels import Label, Labels, calcium_labels, heart_labels
from deepcac2.pipeline.case import Fact, ImageFile
from deepcac2.pipeline.facts import CALCIUM, CT, HEART
from deepcac2.pipeline.shown import Shown, by_slice
from deepcac2.pipeline.step import Column, Step, Value, register
from deepcac2.pipeline.writer import Writer, register_writer
from deepcac2.scoring.rules import Rule, register_rule

TOO_BRIGHT = register_gate(Gate(code="bright", sentence="The scan has too many bright voxels.", fatal=False))
register_rule(Rule(name="plain", summary="one weight for all", weights=((130, 2),)))

WHITE = Label(name="bright", value=7, kind=CALCIUM_LABEL.kind, category=CALCIUM_LABEL.category,
              colour=(240, 240, 240))
FILE = ImageFile("bright.nii.gz", "nifti:mod=seg:model=toy", (WHITE,))
BRIGHT = Fact("bright", "bright voxels", image=FILE)
MEASURES = Fact("toy", "what the toy measured", "toy")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Find what is bright.

    Attributes:
        above_hu: From here on.
    """

    above_hu: int = 300


def build(options, context):
    def find(case):
        mask = case[CT].hu >= options.above_hu
        case = case.add(BRIGHT, Labels.of(mask, WHITE)).add(HEART, heart_labels(mask))
        case = case.add(CALCIUM, calcium_labels(mask))
        case = case.add(MEASURES, {"voxels": int(mask.sum())})
        return case.noted(TOO_BRIGHT.finding(f"{mask.sum()} voxels"))

    return find


def voxels(case):
    return case.get(MEASURES, {}).get("voxels")


def shows(case):
    if BRIGHT not in case:
        return None
    mask = case[BRIGHT].mask
    return Shown(precedence=9, title="Bright", line="", outline=heart_labels(np.zeros_like(mask)),
                 outline_name="nothing", marked=case[BRIGHT], marked_name="bright", weight=by_slice(mask))


register(Step(
    module="ToyRunner", options=Options, phase="compute", build=build, reads=lambda options: (CT,),
    writes=(BRIGHT, MEASURES, CALCIUM, HEART), shows=shows,
    columns=(Column(name="toy_voxels", kind=int, meaning="voxels that are bright", of=voxels,
                    label="Bright", unit="voxels"),),
    values=(Value(name="toy_voxels", label="Bright", kind=int, meaning="Bright voxels.", of=voxels),),
))
register_writer(Writer(
    name="toy", file="toy.txt", needs=(MEASURES,),
    write=lambda path, case, options, context: path.write_text(str(voxels(case))) and None,
))


def __getattr__(name):
    if name != "ToyRunner":
        raise AttributeError(name)
    from deepcac2.utils.modules import computing

    return computing(name)
'''

WORKFLOW = """
general: {description: a toy}
execute: [DicomImporter, NiftiConverter, ToyRunner, AGSCalculator,
          DSegConverter, ReportExporter, DataOrganizer]
modules:
  ToyRunner: {above_hu: 400}
  AGSCalculator: {rule: plain}
  ReportExporter:
    includes: [{label: Voxels, data: toy_voxels}, {label: Score, data: agatston_score}]
  DataOrganizer:
    targets: ["dicomseg:mod=seg-->[i:PatientID]/[i:SeriesInstanceUID]/cac.seg.dcm"]
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the toy is installed: one module, where MHub looks for it, and pip's record of it."""
    folder = tmp_path_factory.mktemp("toy")
    own = folder / "models" / "toy" / "utils"
    own.mkdir(parents=True)
    (own / "ToyRunner.py").write_text(TOY)
    (folder / "toy.yml").write_text(WORKFLOW)
    record = folder / "toy-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text("[deepcac2.steps]\ntoy = models.toy.utils.ToyRunner\n")
    return folder


DASHBOARD = """
import json, sys
from pathlib import Path
from starlette.testclient import TestClient
from deepcac2.dashboard.app import create_app

with TestClient(create_app(Path(sys.argv[1])), base_url="http://127.0.0.1:8000") as client:
    seen = {name: client.get(f"/api/{name}").json() for name in ("about", "facets")}
    seen["cases"] = client.get("/api/cases?toy_voxels_min=1&columns=toy_voxels").json()
    seen["case"] = client.get("/api/cases/" + seen["cases"]["rows"][0]["series_uid"]).json()
    seen["export"] = client.get("/api/export.csv").text
print(json.dumps(seen))
"""


def deepcac2(elsewhere: Path, *command: object) -> subprocess.CompletedProcess[str]:
    return python(elsewhere, "from deepcac2.cli.main import main; raise SystemExit(main())", *command)


def python(elsewhere: Path, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program in a process that has the toy installed."""
    paths = [str(elsewhere), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=elsewhere,  # `models` of the checkout is no place for others
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
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

    seen = json.loads(python(elsewhere, DASHBOARD, out).stdout)
    (column,) = (c for c in seen["about"]["columns"] if c["name"] == "toy_voxels")
    assert (column["label"], column["unit"], column["meaning"]) == (
        "Bright",
        "voxels",
        "voxels that are bright",
    )
    (choice,) = (f for f in seen["about"]["filters"] if f["name"] == "toy_voxels")
    assert choice["kind"] == "range"
    assert seen["facets"]["toy_voxels"] == {"min": voxels, "max": voxels}
    assert [r["toy_voxels"] for r in seen["cases"]["rows"]] == [voxels]
    (step,) = (s for s in seen["case"]["steps"] if s["module"] == "ToyRunner")
    assert step["title"] == "Find what is bright"
    assert step["columns"] == ["toy_voxels"]
    assert step["sections"] == {"toy": {"voxels": voxels}}
    (exported,) = csv.DictReader(seen["export"].splitlines())
    assert int(exported["toy_voxels"]) == voxels


LISTS = """
from deepcac2.cli.main import main

for what in ("gates", "rules", "columns", "modules"):
    assert main(["inspect", f"--{what}", "--json"]) == 0
    print("---")
assert main(["inspect", "--modules"]) == 0
"""


def test_the_command_line_lists_it(elsewhere: Path) -> None:
    done = python(elsewhere, LISTS)
    assert done.returncode == 0, done.stderr
    *lists, text = done.stdout.split("---\n")
    gates, rules, columns, modules = (
        {next(iter(row.values())): row for row in json.loads(listed)} for listed in lists
    )
    assert gates["bright"]["sentence"] == "The scan has too many bright voxels."
    assert rules["plain"]["summary"] == "one weight for all"
    assert columns["toy_voxels"]["module"] == "ToyRunner"
    toy = modules["ToyRunner"]
    assert toy["options"] == [{"option": "above_hu", "default": "300", "meaning": "From here on."}]
    assert (toy["reads"], toy["report"][0]["name"]) == (["CT"], "toy_voxels")
    assert "ToyRunner (compute): Find what is bright." in text
    assert "option above_hu = 300  From here on." in text


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


RUNNER = """
import sys
import mhubio.run as runner

runner.scan_local_modules.__defaults__ = (sys.argv[1],)  # else /app/models
runner.run(sys.argv[3])
assert "deepcac2.pipeline.step" not in sys.modules or (
    sys.modules["deepcac2.pipeline.step"] is sys.modules["models.deepcac2.pipeline.step"]
)
"""


@pytest.mark.slow
def test_mhubs_own_runner_runs_it_too(elsewhere: Path, simulated: Path, tmp_path: Path) -> None:
    pytest.importorskip("mhubio", reason="needs mhubio, which `make` installs without its dependencies")
    (elsewhere / "models" / "deepcac2").symlink_to(Path(__file__).resolve().parents[2])
    (tmp_path / "input_data").symlink_to(simulated / "SIM-0003" / "ct")
    command = [sys.executable, "-c", RUNNER, elsewhere / "models", "--config", elsewhere / "toy.yml"]
    done = subprocess.run(
        [*map(str, command), f"--config:general.data_base_dir={tmp_path}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(elsewhere), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    with (tmp_path / "output_data" / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["status"] == "scored", done.stdout
    folder = tmp_path / "output_data" / row["folder"]
    assert int(row["toy_voxels"]) == int((folder / "toy.txt").read_text()) > 0
    assert "bright" in row["warnings"].split(";")
    assert row["rule"] == "plain"
    assert json.loads((folder / "details.json").read_text())["toy"] == {"voxels": int(row["toy_voxels"])}
    assert (folder / "cac.seg.dcm").is_file()
    assert (folder / "preview.png").is_file()
