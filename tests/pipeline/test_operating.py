"""The numbers that belong to a set of weights, and how the stages of the networks use and tell them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepcac2.dicom import Series
from deepcac2.errors import WeightsError, WeightsUnsupported, WorkflowError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import heart_labels
from deepcac2.imaging.orientation import ORIENTATIONS
from deepcac2.models.calcium.network import CalciumModel, Patches, build_network
from deepcac2.models.calcium.step import FindCalcium
from deepcac2.models.heart.step import Plausible
from deepcac2.models.rule_out.network import ScreeningModel
from deepcac2.models.rule_out.step import SCREENING, RuleOut
from deepcac2.pipeline import Case, Workflow
from deepcac2.pipeline.chain import build_chain
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, HEART, SCORE
from deepcac2.pipeline.operating import operating_point
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.scoring import RULES
from deepcac2.weights import WeightSet, numbers, resolve, write_description

CPU = torch.device("cpu")
ARCHITECTURE = {"channels": [2, 4], "strides": [2], "num_res_units": 1, "norm": "batch"}
STATED = {"heart_margin_mm": 4.0, "peak_probability": 0.7, "normalisation": {"window_hu": [-135.0, 500.0]}}


class FromGrey(torch.nn.Module):
    """A network whose probability is the grey value that it sees, in [0, 1]."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.logit(patches.clamp(1e-3, 1 - 1e-3))


class Constant(torch.nn.Module):
    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return torch.full_like(slices[:, :1], self.logit)


def weights(folder: Path, **stated: Any) -> WeightSet:
    """A calcium set with random tensors."""
    torch.manual_seed(1)
    save_file(build_network(ARCHITECTURE).state_dict(), folder / "model.safetensors")
    return write_description(
        folder,
        name="theirs",
        role="calcium",
        files=["model.safetensors"],
        architecture=ARCHITECTURE,
        domain={"contrast": False},
        **stated,
    )


def case() -> Case:
    """A heart of 20 mm in soft tissue; bright voxels in it, 3 mm and 12 mm beside it, and dull ones in it."""
    shape = (20, 50, 50)
    hu = np.full(shape, -50, np.int16)
    heart = np.zeros(shape, bool)
    heart[6:14, 10:30, 10:30] = True
    hu[10, 12:16, 12:16] = 400  # grey 0.84
    hu[10, 20:24, 20:24] = 220  # grey 0.56
    hu[10, 20:24, 32:34] = 400
    hu[10, 20:24, 42:44] = 400
    hu[12, 20:24, 20:24] = 190  # grey 0.51
    geometry = Geometry(shape=shape, spacing=(2.5, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    return Case(
        series=Series(series_uid="1"),
        facts={CT: Volume(hu=hu, geometry=geometry), HEART: heart_labels(heart)},
    )


def model(**options: Any) -> CalciumModel:
    patches = Patches(crop_shape=(24, 80, 80), patch_shape=(8, 16, 16), patch_step=(4, 8, 8))
    return CalciumModel(FromGrey(), device=CPU, patches=patches, **options)


def test_a_set_says_how_it_is_used_and_the_workflow_overrides(tmp_path: Path) -> None:
    stated = operating_point(weights(tmp_path, **STATED), heart_margin_mm=None, peak_probability=None)
    assert stated.values == {"heart_margin_mm": 4.0, "peak_probability": 0.7}
    assert set(stated.facts["from"].values()) == {"weights"}
    assert stated.findings == ()
    mixed = operating_point(weights(tmp_path, **STATED), heart_margin_mm=math.inf, peak_probability=0.5)
    assert mixed.values == {"heart_margin_mm": math.inf, "peak_probability": 0.5}
    assert mixed.facts["heart_margin_mm"] is None
    assert set(mixed.facts["from"].values()) == {"workflow"}
    assert mixed.findings == ()


def test_a_set_that_says_nothing_gets_neutral_numbers_and_a_warning(tmp_path: Path) -> None:
    """Never ours, which were tuned on the bundled sets."""
    found = operating_point(weights(tmp_path), heart_margin_mm=None, peak_probability=None)
    assert found.values == {"heart_margin_mm": math.inf, "peak_probability": 0.5}
    assert set(found.facts["from"].values()) == {"nobody"}
    (finding,) = found.findings
    assert finding.code == "weights-untuned"
    assert not finding.fatal
    for word in ("theirs", "heart_margin_mm", "peak_probability", "window_hu"):
        assert word in finding.message
    json.dumps(found.facts, allow_nan=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heart_margin_mm", -0.1),
        ("heart_margin_mm", "4"),
        ("heart_margin_mm", None),
        ("peak_probability", 0.49),
        ("peak_probability", 1.0),
        ("peak_probability", True),
    ],
)
def test_a_number_that_is_none_ends_before_the_first_series(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(WeightsError, match=rf"weights\.json: {name} is a number"):
        FindCalcium(model=model(), weights=weights(tmp_path, **{**STATED, name: value}))


@pytest.mark.parametrize("role", ["calcium", "screening"])
def test_the_bundled_sets_state_all_their_numbers(role: str) -> None:
    names = ["heart_margin_mm", "peak_probability"] if role == "calcium" else ["heart_margin_mm"]
    assert operating_point(resolve("bundled", role), **dict.fromkeys(names)).findings == ()


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Plausible, {"min_solidity": 1.0}, "min_solidity is at least 0 and below 1"),
        (Plausible, {"heart_volume_ml": [900, 100]}, r"heart_volume_ml is \[lowest, highest\]"),
        (Plausible, {"height": [1.6, 0.6]}, r"height is \[lowest, highest\]"),
        (Plausible, {"heart_volume_ml": "any"}, "'heart_volume_ml' must be"),
        (Patches, {"patch_step": [8, 32, 65]}, "grow in this order"),
        (Patches, {"patch_step": [0, 32, 32]}, "grow in this order"),
        (Patches, {"crop_shape": [58, 256]}, "'crop_shape"),
    ],
)
def test_limits_and_patches_of_a_set_are_checked(
    tmp_path: Path, kind: type[Any], wrong: dict[str, Any], message: str
) -> None:
    assert numbers(weights(tmp_path, **STATED), kind) == kind()
    with pytest.raises(WeightsError, match=rf"weights\.json: .*{message}"):
        numbers(weights(tmp_path, **wrong), kind)


def test_a_crop_of_the_sets_own_size(tmp_path: Path) -> None:
    stated = {"crop_shape": [32, 128, 128], "patch_step": [16, 64, 64]}
    assert CalciumModel.load(weights(tmp_path, **stated), CPU).patches == Patches(
        crop_shape=(32, 128, 128), patch_step=(16, 64, 64)
    )


def test_margin_and_peak_are_those_of_the_set(tmp_path: Path) -> None:
    """The lesion of 0.56 is nowhere sure; what lies 12 mm beside the heart is in the crop only."""
    tuned = FindCalcium(model=model(), weights=weights(tmp_path, **STATED), lowest_hu=130)(case())
    assert tuned[CALCIUM].mask[10, 13, 13]
    assert tuned[CALCIUM].mask[10, 21, 32]
    assert not tuned[CALCIUM].mask[10, 21:23, 21:23].any()
    assert not tuned[CALCIUM].mask[10, 21, 42]
    neutral = FindCalcium(model=model(), weights=weights(tmp_path), lowest_hu=130)(case())
    assert neutral[CALCIUM].mask[10, 21, 42]
    assert neutral[CALCIUM].mask[10, 21:23, 21:23].all()
    said = details(neutral, {})
    assert said["calcium"]["peak_probability"] == 0.5
    assert said["calcium"]["heart_margin_mm"] is None
    assert "weights-untuned" in [w["code"] for w in said["warnings"]]


def test_the_window_is_that_of_the_set(tmp_path: Path) -> None:
    stated = {**STATED, "normalisation": {"window_hu": [-100.0, 400.0]}}
    assert CalciumModel.load(weights(tmp_path, **stated), CPU).window_hu == (-100.0, 400.0)
    assert CalciumModel.load(weights(tmp_path), CPU).window_hu == (-135.0, 500.0)
    # 0.5 is 182.5 HU in one window and 200 HU in the other: the voxels of 190 HU tell them apart.
    found = {}
    for window in ((-135.0, 500.0), (0.0, 400.0)):
        stage = FindCalcium(model=model(window_hu=window), weights=weights(tmp_path), lowest_hu=130)
        after = stage(case())
        found[window] = bool(after[CALCIUM].mask[12, 21:23, 21:23].all())
        assert details(after, {})["calcium"]["window_hu"] == list(window)
    assert found == {(-135.0, 500.0): True, (0.0, 400.0): False}


@pytest.mark.parametrize("window", [[500, -135], [0, 0], [1], "wide", [0, math.inf], 7])
def test_a_window_that_is_none_is_refused(tmp_path: Path, window: Any) -> None:
    stated = {**STATED, "normalisation": {"window_hu": window}}
    with pytest.raises(WeightsError, match=r"window_hu is \[lowest HU, highest HU\]|is no JSON"):
        CalciumModel.load(weights(tmp_path, **stated), CPU)


def test_exclusion_networks_of_another_window_are_refused(tmp_path: Path) -> None:
    """Their window is the code's: what they were trained with must be that."""
    for name in ORIENTATIONS:
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    found = write_description(
        tmp_path,
        name="theirs",
        role="screening",
        files=[f"{name}.safetensors" for name in ORIENTATIONS],
        normalisation={"window_hu": [-100.0, 400.0]},
    )
    with pytest.raises(WeightsUnsupported, match=r"window_hu \[-100.0, 400.0\]"):
        ScreeningModel.load(found, CPU)


@pytest.mark.parametrize("rule", [*RULES, "agatston-kvp"])
def test_a_rule_that_counts_below_130_hu_runs_every_patch(tmp_path: Path, rule: str) -> None:
    """The mask of a run with patches skipped is exact from 130 HU on; three rules count whatever is duller,
    and one from 119 HU on, where the tube voltage is 135 kV."""
    weights(tmp_path, **STATED)
    workflow = Workflow.load("default").with_options("AGSCalculator", rule=rule)
    workflow = workflow.with_options("DeepCACRunner", weights=str(tmp_path))
    stage = dict(build_chain(workflow, output=tmp_path, device=CPU, phases=["compute"]).stages)[
        "DeepCACRunner"
    ]
    after = stage(case())
    said = details(after, {})["calcium"]
    if rule in ("deepcac-v1", "ai-cac", "deepcac2"):
        assert said["exact_from_hu"] is None
        assert said["patches_run"] == said["patches_total"] == 343
    else:
        lowest = 119 if rule == "agatston-kvp" else 130
        assert said["exact_from_hu"] == lowest
        assert said["patches_run"] < said["patches_total"]


def test_a_mask_that_is_not_exact_for_a_rule_is_not_scored(tmp_path: Path) -> None:
    found = FindCalcium(model=model(), weights=weights(tmp_path, **STATED), lowest_hu=130)(case())
    assert ScoreCalcium(rule="agatston")(found)[SCORE].total > 0
    for rule in ("deepcac-v1", "agatston-kvp"):
        with pytest.raises(WorkflowError, match="counts below 130 HU"):
            ScoreCalcium(rule=rule)(found)
    dense = FindCalcium(model=model(), weights=weights(tmp_path, **STATED), lowest_hu=None)(case())
    assert ScoreCalcium(rule="deepcac-v1")(dense)[SCORE].total > 0
    assert ScoreCalcium(rule="agatston")(dense)[SCORE].total == ScoreCalcium()(found)[SCORE].total


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("logit", [-5.0, 5.0])
def test_only_an_exclusion_that_finds_nothing_ends_the_search(
    tmp_path: Path, exclude: bool, logit: float
) -> None:
    networks = {name: Constant(logit) for name in ORIENTATIONS}
    screening = resolve("bundled", "screening")
    screen = RuleOut(model=ScreeningModel(networks, device=CPU), weights=screening, exclude=exclude)
    screened = screen(case())
    positive, excluded = logit > 0, exclude and logit < 0
    assert screened[SCREENING]["positive"] is positive
    assert screened[SCREENING]["excluded"] is excluded
    assert screened[SCREENING]["heart_margin_mm"] == 4.0
    after = FindCalcium(model=model(), weights=weights(tmp_path, **STATED), lowest_hu=130)(screened)
    assert after[CALCIUM].mask.any() is np.bool_(not excluded)
    assert (after[CALCIUM_RUN]["patches_run"] == 0) is excluded
