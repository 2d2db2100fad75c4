"""The MHub modules, run by mhubio's own runner, against the run in memory."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import uuid
import warnings
import zipfile
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
import yaml

import deepcac2
from deepcac2.batch.run import Means, RunSummary, run_folder
from deepcac2.dicom import discover, read_segmentation, read_series, write_segmentation
from deepcac2.errors import (
    InputError,
    NoDicomFound,
    OutputInsideInput,
    OutputUnwritable,
    WeightsMissing,
    WorkflowError,
)
from deepcac2.imaging.files import read_image
from deepcac2.imaging.labels import calcium_labels
from deepcac2.models.rule_out import train as rule_out
from deepcac2.models.rule_out.network import SliceUNet
from deepcac2.models.slice_regression import train as slice_regression
from deepcac2.models.slice_regression.network import SlicePresence, SliceRegressor
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.facts import CALCIUM, CT, GEOMETRY, HEART_MEASURES, SCORE
from deepcac2.pipeline.places import PARQUET
from deepcac2.pipeline.results import read_parquet
from deepcac2.pipeline.step import PHASES, steps
from deepcac2.scoring.result import RiskGroup
from deepcac2.training.export import export_networks
from deepcac2.weights import resolve, write_description

pytest.importorskip("mhubio", reason="needs mhubio, which `make` installs without its dependencies")

ROOT = Path(__file__).resolve().parents[2]
PATIENT_ID = "../../x y"
SERIES = {"scored": "1.2.826.1", "thick": "1.2.826.2", "broken": "1.2.826.3"}

RUNNER = """
import json, sys
from pathlib import Path
import mhubio.run as runner

base, config = sys.argv[1], sys.argv[3]
runner.scan_local_modules.__defaults__ = (base,)  # else /app/models
runner.run(config)
Path("modules.json").write_text(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("execute", "modules", "rule"),
    [
        (["DeepCACRunner", "AGSCalculator"], {"AGSCalculator": {"rule": "van-velzen"}}, "van-velzen"),
        (["DeepCACRunner", "AGSCalculator"], {}, "agatston"),
        (["DeepCACRunner", "AGSCalculator"], {"AGSCalculator": None}, "agatston"),
        (
            ["DeepCACRunner", {"module": "AGSCalculator", "rule": "ai-cac"}],
            {"AGSCalculator": {"rule": "van-velzen"}},
            "ai-cac",
        ),
        (["DeepCACRunner"], {"AGSCalculator": {"rule": "van-velzen"}}, None),
    ],
)
def test_the_calcium_is_looked_for_as_the_rule_of_the_workflow_counts(
    execute: list[Any], modules: dict[str, Any], rule: str | None
) -> None:
    """The rule stands in the options of another module; without one, any voxel may count."""
    from mhubio.core import Config

    from deepcac2.pipeline.chain import counted_from
    from deepcac2.scoring import RULES
    from deepcac2.utils.handover import workflow_of

    config = Config(args=[])
    before = ["DicomImporter", "NiftiConverter", "HeartRunner"]
    config._config = {"general": {}, "execute": [*before, *execute], "modules": modules}
    assert counted_from(workflow_of(config)) == (None if rule is None else RULES[rule].counts_from)


# --- a small input and small networks -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series to score, with a copy of a slice; one too thick; one damaged; and a file without DICOM."""
    folder = tmp_path_factory.mktemp("mhub") / "in"
    files = sorted((simulated / "SIM-0003" / "ct").glob("*.dcm"))
    for name, uid in SERIES.items():
        (folder / name).mkdir(parents=True)
        for n, file in enumerate(files if name == "scored" else files[:50]):
            ds = pydicom.dcmread(file)
            ds.PatientID, ds.SeriesInstanceUID = PATIENT_ID, uid
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{n + 1}"
            if name == "thick":
                ds.SliceThickness = 8
            ds.save_as(folder / name / f"{(37 * n) % 97:02d}-{name}")
    shutil.copyfile(folder / "scored" / "37-scored", folder / "scored" / "copy")
    damaged = folder / "broken" / "00-broken"
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    (folder / "notes.dcm").write_text("no DICOM")
    return folder


def heart_set(folder: Path) -> Path:
    """A heart network of nnU-Net's kind with random tensors."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from safetensors.torch import save_file

    from deepcac2.weights.nnunet_v2 import unique_tensors

    kwargs: dict[str, Any] = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24, 32, 32],
        "median_image_size_in_voxels": [32, 32, 32],
        "spacing": [6.0, 6.0, 6.0],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling,
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    intensity = {"mean": 20.0, "median": 30.0, "std": 120.0, "min": -1000.0, "max": 1500.0}
    intensity |= {"percentile_00_5": -300.0, "percentile_99_5": 500.0}
    plans = {
        "dataset_name": "random",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
        "original_median_shape_after_transp": [90, 192, 192],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_lowres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensity},
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "heart": 1}, "numTraining": 1}
    built = kwargs | {
        "conv_op": torch.nn.Conv3d,
        "norm_op": torch.nn.InstanceNorm3d,
        "nonlin": torch.nn.LeakyReLU,
    }
    torch.manual_seed(1)
    network = PlainConvUNet(input_channels=1, num_classes=2, **built)
    with torch.no_grad():
        network.decoder.seg_layers[0].bias[1] -= 0.6  # heart is here and there, not everywhere
    folder.mkdir()
    for name, content in (("plans.json", plans), ("dataset.json", dataset | {"file_ending": ".nii.gz"})):
        (folder / name).write_text(json.dumps(content))
    save_file(unique_tensors(network.state_dict()), folder / "fold_0.safetensors")
    files = ["plans.json", "dataset.json", "fold_0.safetensors"]
    write_description(
        folder, name="random-heart", role="heart", files=files, configuration="3d_lowres", heart_labels=[1]
    )
    return folder


def calcium_set(folder: Path) -> Path:
    """A calcium network with random tensors whose answer changes from voxel to voxel."""
    from safetensors.torch import save_file

    from deepcac2.models.calcium.network import build_network

    architecture = {"channels": [4, 8], "strides": [2], "num_res_units": 1, "norm": "batch"}
    torch.manual_seed(2)
    network = build_network(architecture)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    write_description(
        folder, name="random-calcium", role="calcium", files=["model.safetensors"], architecture=architecture
    )
    return folder


def exported(folder: Path, networks: dict[str, torch.nn.Module], recipe: Any, **about: Any) -> Path:
    about |= recipe.described()
    return export_networks(folder, networks, recipe=recipe, crops=recipe.of_crops(), data="", **about)


def screening_set(folder: Path) -> Path:
    """Random networks of the exclusion that find something."""
    recipe = rule_out.ScreeningRecipe(name="random-screening", steps=1, channels=(4, 8))
    networks: dict[str, torch.nn.Module] = {}
    for seed, name in enumerate(("axial", "coronal", "sagittal")):
        torch.manual_seed(seed)
        networks[name] = SliceUNet(**recipe.described()["architecture"])
    return exported(folder, networks, recipe, role="screening", threshold=0.3)


def direct_set(folder: Path) -> Path:
    """Random networks of direct scoring; the heart is in every slice."""
    recipe = slice_regression.DirectRecipe(
        name="random-direct", steps=1, box_channels=(4, 8), channels=(4,) * 6, hidden=4
    )
    torch.manual_seed(3)
    networks: dict[str, torch.nn.Module] = {}
    for name in ("axial", "coronal", "sagittal"):
        network = SlicePresence(channels=recipe.box_channels)
        torch.nn.init.constant_(network.head.bias, 50.0)
        networks[name] = network
    networks["regressor"] = SliceRegressor(channels=recipe.channels, hidden=recipe.hidden)
    torch.nn.init.constant_(networks["regressor"].second.bias, 3.0)
    return exported(folder, networks, recipe, role="direct")


def workflow_file(path: Path, *, weights: str) -> Path:
    """``config/default.yml`` with all outputs, and where weights are random with all options changed.

    ``methods`` runs all three methods; the name of another workflow, or its path, stands for that one, as it
    is.
    """
    own = Path(weights) if weights.endswith(".yml") else ROOT / "config" / f"{weights}.yml"
    if own.is_file():
        shutil.copyfile(own, path)
        return path
    content = yaml.safe_load((ROOT / "config" / "default.yml").read_text())
    if weights == "methods":
        steps = content["execute"]
        steps[steps.index("DeepCACRunner") : steps.index("DeepCACRunner")] = [
            "ScreeningRunner",
            "DirectRunner",
        ]
        screening = screening_set(path.parent / "screening")
        content["modules"]["ScreeningRunner"] = {"weights": str(screening), "threshold": 0.2}
        content["modules"]["DirectRunner"] = {"weights": str(direct_set(path.parent / "direct"))}
        content["modules"]["ReportExporter"]["includes"] += [
            {"label": "Method", "text": "all of them"},
            {"label": "Possible", "data": "calcium_possible"},
            {"label": "Direct", "data": "direct_score"},
            {"label": "Group", "data": "direct_group"},
        ]
    if weights != "bundled":
        content["modules"]["DicomImporter"]["allow"] = [
            "contrast-measured",
            "heart-cut-off",
            "heart-implausible",
        ]
        content["modules"]["DeepCACRunner"] = {
            "weights": str(calcium_set(path.parent / "calcium")),
            "heart_margin_mm": 10.0,
        }
        content["modules"]["AGSCalculator"] = {"rule": "ai-cac", "calibration_factor": 0.0008}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# --- both runs ----------------------------------------------------------------------------------------------


class Both:
    """The same input and workflow, run in memory and by mhubio."""

    def __init__(self, source: Path, folder: Path, weights: str) -> None:
        config = workflow_file(folder / "workflow.yml", weights=weights)
        self.memory, self.data = folder / "memory", folder / "data"
        self.summary = self._run_in_memory(source, config)
        models = folder / "app" / "models"
        models.mkdir(parents=True)
        (models / "deepcac2").symlink_to(ROOT)
        self.data.mkdir()
        (self.data / "input_data").symlink_to(source)
        self.mhub = self.data / "output_data"
        self.folder, self.models, self.config = folder, models, config
        self.log = self.run_mhubio()

    def _run_in_memory(self, source: Path, config: Path) -> RunSummary:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the libraries say; the command line does the same
            return run_folder(
                source,
                self.memory,
                workflow=Workflow.load(config),
                means=Means(),
                keep=["nifti"],
            )

    def run_mhubio(self, *options: str) -> str:
        command = [sys.executable, "-c", RUNNER, str(self.models), "--config", str(self.config)]
        command += [f"--config:general.data_base_dir={self.data}", *options]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.models.parent),
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def found(self, folder: Path, name: str) -> Path:
        (path,) = folder.rglob(name)
        return path


def written(folder: Path) -> set[Path]:
    return {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}


def like(content: dict[str, Any]) -> dict[str, Any]:
    """What two runners must say alike: without times, and without where the files lay."""
    content = {k: like(v) if k == "row" else v for k, v in content.items()}
    seconds = content.get("seconds")
    content["seconds"] = list(seconds) if isinstance(seconds, dict) else seconds is not None
    content["reason"] = re.sub(r"\(?\S*(00-broken|notes\.dcm)\)?", "FILE", content.get("reason", ""))
    return content


def details_of(folder: Path, uid: str) -> dict[str, Any]:
    (path,) = folder.glob(f"*/{uid}/details.json")
    return like(json.loads(path.read_text()))


@pytest.fixture(scope="module", params=[pytest.param("random", marks=pytest.mark.slow), "bundled"])
def both(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    if request.param == "bundled":
        try:
            resolve("bundled", "heart")
            resolve("bundled", "calcium")
        except WeightsMissing:
            pytest.skip("needs the bundled weights, which are not in this checkout")
    return Both(source, tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def methods(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(source, tmp_path_factory.mktemp("methods"), "methods")


@pytest.mark.slow
def test_all_methods_say_the_same_in_both_runs(methods: Both) -> None:
    texts = [methods.found(f, "DeepCAC.report.json").read_bytes() for f in (methods.mhub, methods.memory)]
    assert texts[0] == texts[1]
    report = json.loads(texts[0])
    assert report["Method"] == "all of them"
    assert isinstance(report["Possible"], bool)
    assert report["Direct"] > 0
    assert report["Group"] in range(5)
    folder = Path("%2E.%2F..%2Fx%20y") / SERIES["scored"]
    mine, theirs = (
        json.loads((f / folder / "details.json").read_text()) for f in (methods.mhub, methods.memory)
    )
    for key in ("screening", "direct", "score", "domain", "warnings"):
        assert mine[key] == theirs[key], key
    assert set(mine["provenance"]["weights"]) == {"heart", "screening", "direct", "calcium"}
    (row,) = (r for r in methods.summary.rows if r.status == "scored")
    assert row.screening_positive == report["Possible"]
    assert row.direct_score == report["Direct"]
    screened = methods.found(methods.data / "sorted_data" / SERIES["scored"], "screened.nii.gz")
    np.testing.assert_array_equal(
        read_image(screened)[0], read_image(methods.found(methods.memory, "screened.nii.gz"))[0]
    )
    attention, _ = read_image(methods.found(methods.memory, "attention.nii.gz"))
    assert attention.min() >= 0
    assert attention.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["screening", "direct", "cascade"])
def test_every_workflow_leaves_the_same_folder(name: str, simulated: Path, tmp_path: Path) -> None:
    leave_the_same(Both(simulated / "SIM-0003" / "ct", tmp_path, name))


@pytest.mark.slow
def test_the_authors_layout_is_the_same(published: ModuleType, simulated: Path, tmp_path: Path) -> None:
    """NRRD masks, both scores, the reports of series and run, where the targets say."""
    more = [
        {"label": "Mapped", "data": "mapped_agatston_score", "value": "value"},
        {"label": "Mapped Group", "data": "mapped_risk_group", "value": "value"},
    ]
    includes = Workflow.load("deepcac2-authors").options("ReportExporter").includes
    (tmp_path / "set").mkdir()
    config = published.workflow_file(tmp_path / "set", ReportExporter={"includes": [*includes, *more]})
    runs = Both(simulated / "SIM-0003" / "ct", tmp_path, str(config))
    leave_the_same(runs)
    (report,) = json.loads((runs.mhub / "DeepCAC.report.json").read_text())
    assert 0 < report["Predicted Agatston Score"] != report["Mapped"] > 0
    uid = report["SeriesInstanceUID"]
    assert {p.relative_to(runs.mhub / uid).as_posix() for p in (runs.mhub / uid).rglob("*.*")} == {
        "nrrd/cac.seg.nrrd", "nrrd/mcac.seg.nrrd", "DeepCAC.report.json",
    }  # fmt: skip


def leave_the_same(runs: Both) -> None:
    names = {p for p in written(runs.memory) if p.suffix != ".gz" and p.parts[0] != "logs"}
    assert written(runs.mhub) == names
    for path in names:
        mine, theirs = ((f / path).read_bytes() for f in (runs.mhub, runs.memory))
        if path.name == "details.json":
            one, other = (like(json.loads(text)) for text in (mine, theirs))
            other["outputs"] = [n for n in other["outputs"] if not n.endswith(".nii.gz")]
            assert one == other
        elif path.suffix in (".png", ".json", ".nrrd"):
            assert mine == theirs, path


def test_the_tree_is_imported_under_one_name(both: Both) -> None:
    modules = json.loads((both.folder / "modules.json").read_text())
    used = {step.module for step in Workflow.load("default").steps} - {"DataOrganizer"}
    assert {f"models.deepcac2.utils.{name}" for name in used} <= set(modules)
    assert not [m for m in modules if m.split(".")[0] == "deepcac2"]


def test_the_report_is_the_same(both: Both) -> None:
    texts = [both.found(f, "DeepCAC.report.json").read_bytes() for f in (both.mhub, both.memory)]
    assert texts[0] == texts[1]
    report = json.loads(texts[0])
    assert list(report) == ["Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID"]
    assert report["Predicted Agatston Score"] > 0
    assert report["SeriesInstanceUID"] == SERIES["scored"]


def test_the_masks_are_the_same_voxel_for_voxel(both: Both) -> None:
    for name in ("heart", "calcium"):
        mine, _ = read_image(both.found(both.data / "sorted_data" / SERIES["scored"], f"{name}.nii.gz"))
        theirs, _ = read_image(both.found(both.memory, f"{name}.nii.gz"))
        assert 0 < mine.sum() < mine.size
        np.testing.assert_array_equal(mine, theirs)
    ct, _ = read_image(both.data / "sorted_data" / SERIES["scored"] / "nifti" / "dicom.nii.gz")
    np.testing.assert_array_equal(ct, read_image(both.found(both.memory, "ct.nii.gz"))[0])


def test_the_segmentation_is_the_same(both: Both) -> None:
    mine, theirs = (pydicom.dcmread(both.found(f, "cac.seg.dcm")) for f in (both.mhub, both.memory))
    np.testing.assert_array_equal(mine.pixel_array, theirs.pixel_array)
    assert mine.PerFrameFunctionalGroupsSequence == theirs.PerFrameFunctionalGroupsSequence
    assert mine.SharedFunctionalGroupsSequence == theirs.SharedFunctionalGroupsSequence
    assert mine.SOPInstanceUID == theirs.SOPInstanceUID
    assert mine.PatientID == PATIENT_ID


def test_the_structured_report_is_the_same(both: Both) -> None:
    mine, theirs = (pydicom.dcmread(both.found(f, "cac.sr.dcm")) for f in (both.mhub, both.memory))
    assert mine.ContentSequence == theirs.ContentSequence
    assert mine.CurrentRequestedProcedureEvidenceSequence == theirs.CurrentRequestedProcedureEvidenceSequence
    assert mine.SOPInstanceUID == theirs.SOPInstanceUID
    assert mine.PatientID == PATIENT_ID


def test_the_folder_holds_the_same_files(both: Both) -> None:
    theirs = {p for p in written(both.memory) if p.suffix != ".gz" and p.parts[0] != "logs"}
    assert written(both.mhub) == theirs
    assert {"run.json", "results.csv", "results.parquet"} <= {p.name for p in theirs}
    previews = [both.found(f, "preview.png").read_bytes() for f in (both.mhub, both.memory)]
    assert previews[0] == previews[1]
    made_with = [json.loads((f / "run.json").read_text()) for f in (both.mhub, both.memory)]
    assert made_with[0] == made_with[1]


@pytest.mark.parametrize("name", list(SERIES))
def test_the_details_are_the_same(name: str, both: Both) -> None:
    mine, theirs = (details_of(folder, SERIES[name]) for folder in (both.mhub, both.memory))
    theirs["outputs"] = [n for n in theirs["outputs"] if not n.endswith(".nii.gz")]
    assert list(mine) == list(theirs)
    assert mine == theirs
    assert mine["status"] == mine["row"]["status"]
    assert (mine["status"] == "scored") == ("cac.seg.dcm" in mine["outputs"])


def test_every_series_has_the_row_it_has_in_memory(both: Both) -> None:
    mine, theirs = (
        [like(asdict(row)) for row in read_parquet(f / PARQUET)] for f in (both.mhub, both.memory)
    )
    assert mine == theirs
    assert [(row["series_uid"], row["code"]) for row in mine] == [
        ("", "unreadable-file"),
        (SERIES["scored"], ""),
        (SERIES["thick"], "too-thick"),
        (SERIES["broken"], "undecodable"),
    ]
    with (both.mhub / "results.csv").open(newline="") as table:
        assert [row["series_uid"] for row in csv.DictReader(table)] == [row["series_uid"] for row in mine]


def test_what_fails_is_logged_in_one_line_and_left_alone(both: Both) -> None:
    logs = {p.stem: p.read_text() for p in (both.data / "sorted_data").rglob("*.log")}
    assert f"series {SERIES['broken']}: failed, undecodable" in "".join(logs.values())
    rejected = (both.data / "_global" / "mhub_log" / "DicomImporter.log").read_text()
    assert f"series {SERIES['thick']}: rejected, too-thick: " in rejected
    everything = "".join(p.read_text() for p in both.data.rglob("*.log")) + both.log
    assert "Traceback" not in everything
    assert PATIENT_ID not in everything
    assert sorted(p.name for p in (both.data / "sorted_data").iterdir()) == [
        SERIES["scored"],
        SERIES["broken"],
    ]


def test_the_input_is_not_touched_and_no_path_leaves_the_output(both: Both, source: Path) -> None:
    assert {p.relative_to(both.mhub).parts[0] for p in both.mhub.rglob("*")} == {
        "%2E.%2F..%2Fx%20y",
        "results.csv",
        "results.parquet",
        "results.xlsx",
        "data_dictionary.csv",
        "run.json",
    }
    ours = {"workflow.yml", "memory", "app", "data", "modules.json", "heart", "calcium"}
    assert {p.name for p in both.folder.iterdir()} <= ours
    assert not [p for p in source.rglob("*") if p.suffix in (".json", ".log")]


def test_dashboard_and_evaluation_take_what_mhubio_wrote(
    both: Both, source: Path, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepcac2.cli.main import main
    from deepcac2.dashboard.table import Results

    with Results(both.mhub) as results:
        rows = results.all("SELECT status, code FROM everything ORDER BY code")
    assert rows == [
        ("scored", ""),
        ("rejected", "too-thick"),
        ("failed", "undecodable"),
        ("failed", "unreadable-file"),
    ]
    truth = tmp_path / "truth"
    shutil.copytree(source / "scored", truth / "ct", ignore=shutil.ignore_patterns("copy"))
    (series,) = discover(truth).series
    geometry = read_series(series).volume.geometry
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", geometry)
    write_segmentation(
        truth / "truth.seg.dcm", series=series, geometry=geometry, heart=masks["heart"],
        calcium=masks["calcium"], algorithm_version="0",
    )  # fmt: skip
    texts = []
    for folder in (both.mhub, both.memory):
        assert main(["evaluate", str(folder), str(truth), "--json"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    (case,) = json.loads(texts[0])["cases"]
    assert case["status"] == "scored"
    assert case["heart_dice"] > 0


# --- what is rejected late ----------------------------------------------------------------------------------

LATE = {"contrast": "1.2.826.4", "metal": "1.2.826.5"}
HEADERS = ["thick-slices", "kvp", "sharp-kernel"]
UNTIL_HEART = ["DicomImporter", "NiftiConverter", "HeartRunner"]
KNOWN: dict[str, tuple[str, str, list[str], list[str]]] = {
    "contrast": ("contrast-measured", "HeartRunner", HEADERS, UNTIL_HEART),
    "metal": (
        "metal",
        "AGSCalculator",
        [*HEADERS, "off-domain-field"],
        [*UNTIL_HEART, "DeepCACRunner", "AGSCalculator"],
    ),
}
"""Series → its code, the module that says so, the warnings before, and the modules up to then."""


@pytest.fixture(scope="module")
def late(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A simulated patient; once more with enhanced blood, and once more with metal for calcium."""
    try:
        resolve("bundled", "heart")
        resolve("bundled", "calcium")
    except WeightsMissing:
        pytest.skip("needs the bundled weights, which are not in this checkout")
    folder = tmp_path_factory.mktemp("late")
    scan = simulated / "SIM-0003"
    (series,) = discover(scan / "ct").series
    reading = read_series(series)
    masks = read_segmentation(scan / "truth.seg.dcm", reading.volume.geometry)
    enhanced, metal = (reading.volume.hu.copy() for _ in range(2))
    enhanced[masks["heart"]] += 150
    metal[masks["calcium"]] = 2500
    source = folder / "in"
    shutil.copytree(scan / "ct", source / "plain")
    for name, hu in (("contrast", enhanced), ("metal", metal)):
        (source / name).mkdir()
        for ref, image in zip(reading.slices, hu, strict=True):
            ds = pydicom.dcmread(ref.path)
            ds.SeriesInstanceUID = LATE[name]
            ds.SOPInstanceUID = f"{LATE[name]}.{ds.InstanceNumber}"
            ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
            stored = (image - float(ds.RescaleIntercept)) / float(ds.RescaleSlope)
            ds.PixelData = stored.round().astype(ds.pixel_array.dtype).tobytes()
            ds.save_as(source / name / ref.path.name)
    return Both(source, folder, "bundled")


@pytest.fixture(scope="module")
def split(late: Both, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same once more, each part of the chain by another worker, with a file between them."""
    from deepcac2.batch.worker import Finished, Role, Worker
    from deepcac2.pipeline.run import Job

    output, scratch = tmp_path_factory.mktemp("split"), tmp_path_factory.mktemp("scratch")
    job = Job(workflow=Workflow.load(late.config), output=output)
    workers = [Worker(job, Role(phases=(p,), device="cpu", scratch=scratch)) for p in PHASES]
    for series in discover(late.data / "input_data").series:
        task: Any = series
        for worker in workers:
            done = worker(task)
            if isinstance(done, Finished):
                break
            task = done.path
    assert not list(scratch.iterdir())
    return output


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LATE))
@pytest.mark.parametrize("runner", ["memory", "split", "mhub"])
def test_a_case_rejected_late_keeps_what_was_known(
    runner: str, name: str, late: Both, split: Path, simulated: Path
) -> None:
    truth = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", geometry_of(late, name))
    code, module, warnings, modules = KNOWN[name]
    found = details_of({"memory": late.memory, "split": split, "mhub": late.mhub}[runner], LATE[name])
    assert (found["status"], found["code"], found["module"]) == ("rejected", code, module)
    assert [w["code"] for w in found["warnings"]] == warnings
    assert found["seconds"] == modules
    row = found["row"]
    assert row["warnings"] == ";".join(warnings)
    voxel = np.prod(found["geometry"]["spacing"])
    assert row["heart_volume_ml"] == found["heart"]["heart_volume_ml"]
    assert row["heart_volume_ml"] == pytest.approx(truth["heart"].sum() * voxel / 1000, rel=0.2)
    assert row["agatston_score"] is None
    assert found["score"] is None
    assert found["outputs"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LATE))
def test_all_runners_say_the_same_of_a_case_rejected_late(name: str, late: Both, split: Path) -> None:
    one, other, third = (details_of(f, LATE[name]) for f in (late.memory, split, late.mhub))
    assert one == other == third


def geometry_of(late: Both, name: str) -> Any:
    return read_series(discover(late.data / "input_data" / name).series[0]).volume.geometry


# --- options ------------------------------------------------------------------------------------------------


def module_class(name: str) -> Any:
    return getattr(importlib.import_module(f"deepcac2.utils.{name}"), name)


@pytest.mark.parametrize("name", [m for m in steps() if m != "DataOrganizer"])
def test_options_and_their_defaults_are_those_of_the_workflow(name: str) -> None:
    from mhubio.core import Config

    cls = module_class(name)
    settings = {n for n, value in vars(cls).items() if isinstance(value, property)}
    prefix = "_mhubio_configinput_"
    inputs = {n.removeprefix(prefix) for n in vars(cls) if n.startswith(prefix)}
    options = steps()[name].options()
    assert settings | inputs == {f.name for f in fields(options)}
    module = cls(Config(config={"general": {"data_base_dir": "/nowhere"}, "modules": {}}, args=False))
    for f in fields(options):
        value = getattr(module, prefix + f.name)().query if f.name in inputs else getattr(module, f.name)
        assert value == getattr(options, f.name), f.name


def test_option_names_that_mhubio_has_too_are_spelt_as_there() -> None:
    from mhubio.modules.exporter.ReportExporter import ReportExporter
    from mhubio.modules.importer.DicomImporter import DicomImporter

    for theirs in (DicomImporter, ReportExporter):
        names = {n for n, value in vars(theirs).items() if isinstance(value, property)}
        ours = {f.name for f in fields(steps()[theirs.__name__].options)}
        assert ours - names <= {"allow"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"HeartRunner": {"weihgts": "bundled"}}, "Perhaps you meant 'weights'"),
        ({"AGSCalculator": {"rule": 3}}, "'rule' must be"),
        ({"DicomImporter": {"sort_data": "yes"}}, "'sort_data' must be"),
    ],
)
def test_a_typo_in_a_workflow_is_an_error(change: dict[str, Any], message: str) -> None:
    from mhubio.core import Config

    from deepcac2.utils.handover import workflow_of

    def read(content: dict[str, Any]) -> Workflow:
        return workflow_of(Config(config=content, args=False))

    content = yaml.safe_load((ROOT / "config" / "default.yml").read_text())
    as_run = Workflow.load("default").fingerprint()
    assert read(content).fingerprint() == as_run
    content["execute"].insert(1, "SomeModuleOfMHub")
    content["modules"]["DataOrganizer"]["targets"].append("nifti:mod=seg-->[i:PatientID]/[basename]")
    assert read(content).fingerprint() == as_run
    content["modules"] |= change
    with pytest.raises(WorkflowError, match=message):
        read(content)


# --- import and hand-over -----------------------------------------------------------------------------------


def importer(data: Path, **options: Any) -> Any:
    """A `DicomImporter` over a data folder, outside the runner."""
    from mhubio.core import Config

    content = {
        "general": {"data_base_dir": str(data)},
        "execute": ["DicomImporter", "NiftiConverter"],
        "modules": {"DicomImporter": options},
    }
    return module_class("DicomImporter")(Config(config=content, args=False))


def test_importing_again_starts_anew(source: Path, tmp_path: Path) -> None:
    (tmp_path / "input_data").mkdir()
    for n, ref in enumerate(discover(source / "thick").series[0].slices):
        shutil.copyfile(ref.path, tmp_path / "input_data" / f"{n}.dcm")
    for number in (50, 30):
        module = importer(tmp_path, allow=["too-thick"], meta={"mod": "%Modality", "body": "chest"})
        module.execute()
        (instance,) = module.config.data.instances
        (dicom,) = instance.data.filter("dicom:mod=ct:body=chest", confirmed_only=True)
        assert len(list(Path(dicom.abspath).iterdir())) == number
        assert not (Path(instance.abspath) / "leftover").exists()
        (Path(instance.abspath) / "leftover").touch()
        for n in range(30, 50):
            (tmp_path / "input_data" / f"{n}.dcm").unlink(missing_ok=True)
    assert instance.attr["PatientID"] == "%2E.%2F..%2Fx%20y"
    assert instance.attr["SeriesInstanceUID"] == instance.attr["sid"] == SERIES["thick"]


def test_a_wrong_input_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        importer(tmp_path).execute()
    (tmp_path / "input_data").mkdir()
    with pytest.raises(NoDicomFound, match="no DICOM found"):
        importer(tmp_path).execute()
    with pytest.raises(OutputInsideInput):
        importer(tmp_path, import_dir="input_data/sorted").execute()


@pytest.mark.parametrize(("name", "key"), [("NiftiConverter", "engine"), ("ReportExporter", "format")])
def test_what_only_mhubios_module_can_do_is_an_error(name: str, key: str, tmp_path: Path) -> None:
    module = module_class(name)(importer(tmp_path).config, local_config={key: "plastimatch"})
    with pytest.raises(WorkflowError, match=f"{name}: {key} (must be|is one of) "):
        module.execute()


def test_what_concerns_every_series_ends_the_run(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "input_data").symlink_to(simulated / "SIM-0003" / "ct")
    module = importer(tmp_path)
    module.execute()
    unknown = {"includes": [{"label": "x", "data": "no such value"}]}
    with pytest.raises(WorkflowError, match="unknown data"):
        module_class("ReportExporter")(module.config, local_config=unknown).execute()
    (instance,) = module.config.data.instances
    assert instance.attr["status"] == "open"


def test_links_sort_in_slice_order(source: Path, tmp_path: Path) -> None:
    from deepcac2.utils.DicomImporter import link_files

    series = discover(source / "scored").series[0]
    linked = link_files(series, tmp_path / "dicom", number=True)
    files = sorted((tmp_path / "dicom").iterdir())
    assert files == [s.path for s in linked.slices]
    positions = [pydicom.dcmread(f, stop_before_pixels=True).ImagePositionPatient[2] for f in files]
    assert positions == sorted(positions)
    assert [f.resolve() for f in files] == [s.path.resolve() for s in series.slices]

    kept = link_files(series, tmp_path / "kept", number=False)
    assert [s.path.name for s in kept.slices] == [s.path.name for s in series.slices]


def test_members_of_an_archive_are_unpacked(source: Path, tmp_path: Path) -> None:
    from deepcac2.utils.DicomImporter import link_files

    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in (source / "scored").iterdir():
            archive.write(file, f"../{file.name[:1]}/{file.name}")
    series = discover(tmp_path / "scan.zip").series[0]
    linked = link_files(series, tmp_path / "out" / "dicom", number=False)
    assert {p.name for p in tmp_path.iterdir()} == {"scan.zip", "out"}
    plain = read_series(discover(source / "scored").series[0]).volume
    read = read_series(linked).volume
    np.testing.assert_array_equal(read.hu, plain.hu)
    assert read.geometry == plain.geometry


def test_names_and_reasons_are_one_line_of_the_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that clears the screen, ends the line and is no UTF-8."""
    (tmp_path / "input_data").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "input_data") + b"/a\x1b[2J\nb\xe4.dcm")).write_text("no DICOM")
    module = importer(tmp_path)
    module.execute()
    said = capsys.readouterr().out + "".join(p.read_text() for p in tmp_path.rglob("*.log"))
    assert "a?[2J?b\\xe4.dcm: named like DICOM" in said
    assert "\x1b[2J" not in said


def test_a_folder_of_something_else_is_not_removed(tmp_path: Path) -> None:
    from deepcac2.utils.DicomImporter import _clear

    (tmp_path / "1.2.3").mkdir()
    (tmp_path / "1.2.3" / "precious").touch()
    with pytest.raises(OutputUnwritable, match="choose another import_dir"):
        _clear(tmp_path / "1.2.3")
    (tmp_path / "1.2.3" / "case.json").touch()
    _clear(tmp_path / "1.2.3")
    assert not (tmp_path / "1.2.3").exists()


def test_a_case_comes_back_from_its_file_as_it_was(source: Path, tmp_path: Path) -> None:
    from deepcac2.pipeline.case import Case, Stop
    from deepcac2.pipeline.reading import build_volume, check_headers
    from deepcac2.pipeline.scoring import ScoreCalcium
    from deepcac2.utils.handover import read_case, write_case

    series = discover(source / "scored").series[0]
    path = tmp_path / "case.json"
    case = check_headers(Case(series=series, facts={HEART_MEASURES: {"heart_volume_ml": 1 / 3}}))
    write_case(path, case)
    assert GEOMETRY not in read_case(path)
    case = build_volume(case)
    scored = ScoreCalcium(rule="agatston")(case.add(CALCIUM, calcium_labels(case[CT].hu > 300)))
    stop = Stop(status="failed", code="x", reason="y", module="z")
    given = replace(scored, timings={"NiftiConverter": 0.1}, stop=stop)
    write_case(path, given)
    back = read_case(path)
    kept = {fact: value for fact, value in given.facts.items() if fact not in (CT, CALCIUM)}
    assert back == replace(given, facts=kept)
    assert back[SCORE].lesions
    assert back.warnings
    assert back[GEOMETRY] == case[CT].geometry


def test_a_mask_is_all_that_is_above_0_whoever_wrote_it(source: Path, tmp_path: Path) -> None:
    """Other tools write masks as 255, or as floats."""
    from deepcac2.imaging.files import write_image
    from deepcac2.pipeline.case import Case
    from deepcac2.pipeline.reading import build_volume
    from deepcac2.utils.handover import read_case, write_case

    case = build_volume(Case(series=discover(source / "scored").series[0]))
    path, bright = tmp_path / "case.json", case[CT].hu > 300
    write_case(path, case)
    for value in (np.uint8(255), np.float32(0.5), np.uint8(1)):
        write_image(tmp_path / "mask.nii.gz", bright * value, case[GEOMETRY])
        mask = read_case(path, {CALCIUM: tmp_path / "mask.nii.gz"})[CALCIUM].mask
        np.testing.assert_array_equal(mask, bright)
        assert mask.sum() == bright.sum() > 0


# --- what MHub reads about the model ------------------------------------------------------------------------


CARDS = [ROOT / "meta.json", *ROOT.glob("mhub/models/*/meta.json")]


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_model_card_has_what_mhub_asks_for(path: Path) -> None:
    """The rules are those of MHub's schema for meta.json and of its documentation of it."""
    card = json.loads(path.read_text(encoding="utf-8"))
    assert {"id", "name", "title", "summary", "details", "info"} == set(card)
    assert uuid.UUID(card["id"]).version == 4
    assert re.fullmatch(r"[a-z0-9_]+", card["name"])
    summary, details = card["summary"], card["details"]
    assert len(summary["description"]) <= 200
    wanted = {"label", "description", "format", "modality", "bodypartexamined", "slicethickness"}
    for given in summary["inputs"]:
        assert set(given) == wanted | {"non-contrast", "contrast"}
        assert len(given["description"]) <= 200
    kinds = {
        "Segmentation": {"type", "classes"},
        "Prediction": {"type", "valueType", "label", "description"},
        "Classification": {"type", "classes"},
    }
    for output in summary["outputs"]:
        assert kinds[output["type"]] <= set(output)
    assert summary["model"]["training"] == "supervised"
    assert summary["model"]["cmpapproach"] == "3D"
    assert set(summary["data"]) == {"training", "evaluation", "public", "external"}
    required = {"name", "version", "devteam", "type", "date", "cite", "license", "publications", "github"}
    assert required <= set(details)
    assert details["version"] == deepcac2.__version__
    assert all({"title", "uri"} <= set(p) for p in details["publications"])
    assert {"use", "analyses", "evaluation", "training"} <= set(card["info"])
    for section in card["info"].values():
        assert section["title"]
        assert 50 <= len(section["text"].split()) <= 500
        assert "http" not in section["text"]
        references = section.get("references", [])
        assert {int(n) for n in re.findall(r"\[(\d+)\]", section["text"])} == set(
            range(1, len(references) + 1)
        )
        assert len(section.get("tables", [])) <= 2
        for table in section.get("tables", []):
            assert 2 <= len(table["entries"]) <= 10
            assert all(isinstance(value, str) for value in table["entries"].values())


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_model_card_says_what_the_code_does(path: Path) -> None:
    import segdb

    card = json.loads(path.read_text(encoding="utf-8"))
    outputs = {o["type"]: o for o in card["summary"]["outputs"]}
    assert outputs["Classification"]["classes"] == [group.label for group in RiskGroup]
    assert outputs["Prediction"]["label"] == "Predicted Agatston Score"
    with (Path(segdb.__file__).parent / "data" / "segmentations.csv").open(newline="") as table:
        known = {row[0] for row in csv.reader(table)}
    parts = {part for name in outputs["Segmentation"]["classes"] for part in name.split("+")}
    assert parts <= known
    from deepcac2.pipeline.facts import HEART

    images = [fact.image for fact in (HEART, CALCIUM) if fact.image is not None]
    rois = {image.query.partition("roi=")[2] for image in images}
    assert rois == set(outputs["Segmentation"]["classes"])
