"""The published network in the workflow `default`: this project's crop, patches and limits around it.

Judged by a dense run that is written out with SimpleITK and runs the network as its authors' arrays lie,
(x, y, z), every patch on its own.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import save_file
from scipy import ndimage

from deepcac2.dicom import Series
from deepcac2.errors import DeviceError, SeriesFailed, WeightsError, WeightsUnsupported
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.crop import Patches
from deepcac2.imaging.labels import heart_labels
from deepcac2.imaging.masks import dilated
from deepcac2.models import patchwise
from deepcac2.models.calcium.network import CalciumModel, build_network
from deepcac2.models.calcium.step import DeepCACRunnerOptions
from deepcac2.models.calcium.train import CalciumRecipe, train
from deepcac2.models.deepcac2.predict import PublishedModel
from deepcac2.models.unet3d import build, turned
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import build_stage, counted_from
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, DOMAIN, HEART
from deepcac2.pipeline.step import Context
from deepcac2.pipeline.workflow import Workflow
from deepcac2.training.recipe import Inputs
from deepcac2.weights import WeightSet, convert_deepcac2, describe, write_description

CPU = torch.device("cpu")
SIZES = Patches(crop_shape=(20, 48, 56), patch_shape=(8, 16, 16), patch_step=(4, 8, 8))
SPACING = (2.5, 0.7, 0.7)
WIDTHS = (6, 7, 8, 9)


def test_a_turned_network_sees_arrays_the_other_way_round(published: ModuleType) -> None:
    tensors = published.random_tensors(WIDTHS, seed=4)
    patches = torch.rand(2, 1, 16, 24, 8, generator=torch.Generator().manual_seed(1))
    expected = build(tensors)(patches)
    found = build(turned(tensors))(patches.transpose(2, 4))
    torch.testing.assert_close(found.transpose(2, 4), expected, rtol=1e-4, atol=1e-4)
    again = turned(turned(tensors))
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("widths", [(6, 7), (6, 7, 8), (6, 7, 8, 9)])
def test_parts_of_patches_are_what_the_whole_says_there(
    widths: tuple[int, ...], published: ModuleType
) -> None:
    network = build(published.random_tensors(widths, seed=2))
    patches = torch.rand(2, 1, 32, 16, 48, generator=torch.Generator().manual_seed(1))
    whole = network(patches)
    spread = float(whole.std())
    assert spread > 0.001  # a network that says the same of all would say it of parts, too
    rng = random.Random(3)

    def box() -> tuple[slice, ...]:
        ends = (sorted(rng.sample(range(n + 1), 2)) for n in patches.shape[2:])
        return tuple(slice(a, b) for a, b in ends)

    single = (slice(31, 32), slice(0, 1), slice(17, 18))
    everything = tuple(slice(0, n) for n in patches.shape[2:])
    for boxes in ([single, everything], *([box(), box()] for _ in range(20))):
        parts = network(patches, boxes)
        for part, all_of_it, where in zip(parts[:, 0], whole[:, 0], boxes, strict=True):
            torch.testing.assert_close(part[where], all_of_it[where], rtol=0, atol=1e-3 * spread)
            assert int(torch.isfinite(part).sum()) == part[where].numel()


# --- the whole way, against a dense run that shares nothing with it -----------------------------------------


def chest(seed: int, spacing: tuple[float, float, float]) -> tuple[Volume, np.ndarray]:
    """Soft noise with bright pieces, and a heart near a border of the scan: the crop reaches beyond it."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d / s) for d, s in zip((70, 50, 42), spacing, strict=True))
    hu = ndimage.gaussian_filter(rng.normal(size=shape), 0.7)
    hu = (hu / hu.std() * 25 + 20).round()
    for _ in range(14):
        z, y, x = (int(rng.integers(0, n - 3)) for n in shape)
        hu[z : z + 2, y : y + 3, x : x + 2] = rng.integers(131, 900)
    heart = np.zeros(shape, dtype=bool)
    heart[tuple(slice(n // 10, int(0.7 * n)) for n in shape)] = True
    geometry = Geometry(shape=shape, spacing=spacing, origin=(-20.0, -24.0, -300.0))
    return Volume(hu=hu.astype(np.int16), geometry=geometry), heart


def as_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    return image


def onto(image: sitk.Image, grid: sitk.Image, outside: float) -> np.ndarray:
    """Linear between voxels: (z, y, x) on the grid."""
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, outside))


def dense_mean(volume: Volume, heart: np.ndarray, tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Mean probability of every patch up to the border, brought back onto the CT: (z, y, x)."""
    ct = as_image(volume.hu.astype(np.float32), volume.geometry)
    found = [np.flatnonzero(heart.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    middle = ct.TransformContinuousIndexToPhysicalPoint([(f[0] + f[-1]) / 2 for f in found[::-1]])
    grid = sitk.Image(list(SIZES.crop_shape[::-1]), sitk.sitkFloat32)
    grid.SetSpacing(SPACING[::-1])
    halves = [(n - 1) / 2 * s for n, s in zip(SIZES.crop_shape[::-1], SPACING[::-1], strict=True)]
    grid.SetOrigin([m - h for m, h in zip(middle, halves, strict=True)])
    hu = onto(ct, grid, -1024.0)
    assert (hu == -1024).mean() > 0.05
    values = hu.clip(-135, 500).transpose(2, 1, 0)
    values = torch.tensor((values - values.min()) / (values.max() - values.min()))

    network = build(tensors)
    total, cover = np.zeros(values.shape), np.zeros(values.shape)
    patch, step = SIZES.patch_shape[::-1], SIZES.patch_step[::-1]
    begins = [sorted({*range(0, n - p, s), n - p}) for n, p, s in zip(total.shape, patch, step, strict=True)]
    for x in begins[0]:
        for y in begins[1]:
            for z in begins[2]:
                at = np.s_[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
                with torch.no_grad():
                    total[at] += network(values[at][None, None]).sigmoid()[0, 0].numpy()
                cover[at] += 1
    mean = sitk.GetImageFromArray((total / cover).transpose(2, 1, 0).astype(np.float32))
    mean.CopyInformation(grid)
    return onto(mean, ct, 0.0)


@pytest.fixture(scope="module")
def tensors(published: ModuleType) -> dict[str, torch.Tensor]:
    """Random ones, whose last layer makes about half of what the network sees calcium."""
    tensors: dict[str, torch.Tensor] = published.random_tensors(WIDTHS, seed=2)
    patches = 0.24 + 0.03 * torch.randn(4, 1, 16, 16, 8, generator=torch.Generator().manual_seed(2))
    patches[:, :, 4:7, 5:8, 2:4], patches[:, :, 10:12, 10:13, 5:6] = 0.7, 1.0
    with torch.no_grad():
        said = build(tensors)(patches)
    tensors["final_conv.weight"] /= said.std()
    tensors["final_conv.bias"] = (tensors["final_conv.bias"] - said.median()) / said.std()
    return tensors


@pytest.fixture(scope="module")
def converted(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> WeightSet:
    folder = tmp_path_factory.mktemp("published")
    torch.save(tensors, folder / "vivid-haze-6_model.pt")
    return convert_deepcac2(
        folder / "vivid-haze-6_model.pt", folder / "set", **json.loads(json.dumps(dataclasses.asdict(SIZES)))
    )


def run_default(weights: WeightSet, volume: Volume, heart: np.ndarray, **options: Any) -> Case:
    """The step of the workflow `default`, as a run builds it."""
    workflow = Workflow.load("default").with_options("DeepCACRunner", weights=str(weights.path), **options)
    context = Context(
        workflow=workflow, output=weights.path, device=CPU, allow=frozenset(), keep=frozenset(),
        provenance={}, counted_from=counted_from(workflow),
    )  # fmt: skip
    case = Case(series=Series(series_uid="1"), facts={CT: volume, HEART: heart_labels(heart)})
    return build_stage("DeepCACRunner", workflow.options("DeepCACRunner"), context)(case)


@pytest.mark.parametrize(
    ("seed", "spacing"), [(1, (2.5, 0.7, 0.7)), (2, (1.9, 0.8, 0.8)), (3, (3.0, 1.1, 0.9))]
)
def test_default_says_of_every_counted_voxel_what_a_dense_run_says(
    seed: int,
    spacing: tuple[float, float, float],
    tensors: dict[str, torch.Tensor],
    converted: WeightSet,
) -> None:
    volume, heart = chest(seed, spacing)
    mean = dense_mean(volume, heart, tensors)
    case = run_default(converted, volume, heart)
    used = case[CALCIUM_RUN]
    assert 0 < used["patches_run"] < used["patches_total"]
    near = dilated(heart, volume.geometry, 4.0)
    counted = near & (volume.hu >= 130)
    sure = counted & (np.abs(mean - 0.5) > 1e-4)
    assert sure.sum() > 0.98 * counted.sum()
    np.testing.assert_array_equal(case[CALCIUM].mask[sure], (mean >= 0.5)[sure])
    assert 0.1 < (mean >= 0.5)[counted].mean() < 0.9
    assert not case[CALCIUM].mask[~near].any()
    assert (mean >= 0.5)[~near].any()


def test_x_and_z_are_not_the_same_to_it(tensors: dict[str, torch.Tensor], converted: WeightSet) -> None:
    """What the test above would say of a network whose axes nobody turned."""
    volume, heart = chest(1, (2.5, 0.7, 0.7))
    mean = dense_mean(volume, heart, turned(tensors))
    counted = dilated(heart, volume.geometry, 4.0) & (volume.hu >= 130)
    found = run_default(converted, volume, heart)[CALCIUM].mask
    assert (found != (mean >= 0.5))[counted].mean() > 0.05


def test_its_numbers_are_those_that_the_set_states(converted: WeightSet) -> None:
    volume, heart = chest(1, (3.0, 1.1, 0.9))
    case = run_default(converted, volume, heart)
    used = case[CALCIUM_RUN]
    assert used["from"] == {"heart_margin_mm": "weights", "peak_probability": "weights"}
    assert (used["heart_margin_mm"], used["peak_probability"]) == (4.0, 0.5)
    assert (used["window_hu"], used["exact_from_hu"]) == ([-135.0, 500.0], 130)
    assert "weights-untuned" not in [finding.code for finding in case.findings]
    assert case[DOMAIN]["weights"]["calcium"]["name"] == "deepcac2"
    assert "390 NLST" in case[DOMAIN]["weights"]["calcium"]["domain"]["measured_on"]
    model = CalciumModel.load(converted, CPU)
    assert (model.rescale_to, model.patches) == ("crop", SIZES)


# --- what is no such set ------------------------------------------------------------------------------------


def rewritten(
    converted: WeightSet, folder: Path, tensors: dict[str, torch.Tensor], **stated: Any
) -> WeightSet:
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    about = {**converted.metadata, **stated}
    return write_description(folder, name="mine", role="calcium", files=["model.safetensors"], **about)


def test_a_wrong_set_is_refused_in_one_line(
    tensors: dict[str, torch.Tensor], converted: WeightSet, tmp_path: Path
) -> None:
    bundled = build_network({"channels": (4, 8), "strides": (2,)}).state_dict()
    less = {k: v for k, v in tensors.items() if k != "ups.0.bias"}
    other = {**tensors, "ups.0.bias": torch.zeros(7)}
    odd = {"patch_shape": [8, 12, 16]}
    wrong: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]] = {
        "another network": (bundled, {}, "bottleneck"),
        "a tensor is missing": (less, {}, r"ups\.0\.bias"),
        "of another shape": (other, {}, r"ups\.0\.bias"),
        "patches that it cannot halve": (tensors, odd, r"patch_shape \[8, 12, 16\] cannot be divided by 8"),
        "of no form": (tensors, {"architecture": ["deepcac2"]}, "no calcium network"),
    }
    for name, (state, stated, says) in wrong.items():
        weights = rewritten(converted, tmp_path / name, state, **stated)
        with pytest.raises(WeightsUnsupported, match=says) as caught:
            CalciumModel.load(weights, CPU)
        assert "--weights" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(WeightsUnsupported, match="cannot be divided by 8"):
        PublishedModel.load(describe(tmp_path / "patches that it cannot halve"), CPU)
    with pytest.raises(WeightsError, match="grow in this order"):
        CalciumModel.load(rewritten(converted, tmp_path / "x", tensors, crop_shape=[4, 4, 4]), CPU)


def test_no_training_begins_with_it(converted: WeightSet, tmp_path: Path) -> None:
    """What it would leave would be named as published, with axes the other way round."""
    recipe = CalciumRecipe(name="more", steps=1, architecture=dict(converted.metadata["architecture"]))
    with pytest.raises(WeightsError, match="is not trained here; name others with --start"):
        train(recipe, tmp_path, Inputs(device=CPU, start=str(converted.path)))


def test_what_is_no_number_is_no_result(
    tensors: dict[str, torch.Tensor], converted: WeightSet, tmp_path: Path
) -> None:
    """It lies above no threshold: the score would be 0."""
    damaged = {**tensors, "final_conv.bias": torch.tensor([float("nan")])}
    weights = rewritten(converted, tmp_path / "nan", damaged)
    inner = ("bottleneck.conv.0.weight", "bottleneck.conv.3.weight")
    huge = {**tensors, **{name: torch.full_like(tensors[name], 3e38) for name in inner}}
    too_large = rewritten(converted, tmp_path / "huge", huge)
    volume, heart = chest(1, (3.0, 1.1, 0.9))
    for kind in (CalciumModel, PublishedModel):
        with pytest.raises(WeightsUnsupported, match=r"final_conv\.bias holds values that are no finite"):
            kind.load(weights, CPU)
    with pytest.raises(SeriesFailed, match="is no number") as caught:
        PublishedModel.load(too_large, CPU).predict(volume, heart)
    assert caught.value.code == "not-finite"
    with pytest.raises(SeriesFailed, match="is no number"):
        run_default(too_large, volume, heart)


def test_sixteen_bits_are_for_gpus(converted: WeightSet) -> None:
    for kind in (CalciumModel, PublishedModel):
        with pytest.raises(DeviceError, match="half_precision needs a GPU"):
            kind.load(converted, CPU, half=True)
    assert not DeepCACRunnerOptions().half_precision


# --- how patches are shown to it ----------------------------------------------------------------------------


class Cramped(torch.nn.Module):
    """A network whose device has room for one patch at a time."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: torch.Tensor, *more: Any) -> torch.Tensor:
        if len(patches) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: torch.Tensor = self.network(patches, *more)
        return result


def test_too_little_memory_means_smaller_batches_for_the_published_way_too(
    tensors: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    volume, heart = chest(1, (3.0, 1.1, 0.9))
    network = build(tensors)
    whole = PublishedModel(network, device=CPU, patches=SIZES, batch_size=4)
    cramped = PublishedModel(Cramped(network), device=CPU, patches=SIZES, batch_size=4)
    np.testing.assert_array_equal(cramped.predict(volume, heart).mask, whole.predict(volume, heart).mask)
    assert cramped.batch_size == 1
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"cpu has not enough memory for {n} patches at once; going on with {n // 2}" for n in (4, 2)
    ]


def test_a_slow_series_says_how_far_it_is(
    converted: WeightSet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    volume, heart = chest(1, (3.0, 1.1, 0.9))
    caplog.set_level(logging.INFO)
    run = run_default(converted, volume, heart)[CALCIUM_RUN]["patches_run"]
    assert "patches" not in caplog.text
    monkeypatch.setattr(patchwise, "TELL_SECONDS", 0.0)
    run_default(converted, volume, heart)
    run_default(converted, volume, heart)
    last = [r.getMessage() for r in caplog.records if f"{run} of {run} patches" in r.getMessage()]
    assert last == [f"{run} of {run} patches, about 0 s left"] * 2


def test_a_batch_fits_into_the_memory_that_a_worker_has() -> None:
    assert patchwise.batch_that_fits(1e6, CPU) == 8
    assert patchwise.batch_that_fits(134e6, CPU) == 4
    assert patchwise.batch_that_fits(1e12, CPU) == 1
