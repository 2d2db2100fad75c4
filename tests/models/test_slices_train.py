"""Slices for the networks that look at one at a time, and their trainings, on crops of balls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepcac2.errors import TrainingError, WeightsError, WorkflowError
from deepcac2.imaging.crop import CROP_SHAPE, CROP_SPACING
from deepcac2.imaging.heart_position import heart_depth
from deepcac2.models.rule_out import train as screening
from deepcac2.models.rule_out.network import ScreeningModel
from deepcac2.models.rule_out.train import CalciumSlices, ScreeningRecipe, operating_point
from deepcac2.models.slice_regression import train as direct
from deepcac2.models.slice_regression.network import DirectModel
from deepcac2.models.slice_regression.train import (
    DirectRecipe,
    PresenceSlices,
    ScoredSlices,
    crop_scores,
    heart_box,
    slices_in,
    thick_slice,
)
from deepcac2.training.crops import ARTERY, KIND, UNSURE, CropCache, CropSource, build_cache
from deepcac2.training.loop import run_steps
from deepcac2.training.recipe import BUNDLED, Inputs, load_recipe
from deepcac2.training.trainer import Trainer
from deepcac2.weights import describe

CPU = torch.device("cpu")
PIXEL = CROP_SPACING[1]


def ball(centre: tuple[float, float, float], radius: float) -> npt.NDArray[np.bool_]:
    """bool crop: within `radius` mm of a voxel (z, y, x)."""
    z, y, x = np.ogrid[: CROP_SHAPE[0], : CROP_SHAPE[1], : CROP_SHAPE[2]]
    away = [(a - c) * s for a, c, s in zip((z, y, x), centre, CROP_SPACING, strict=True)]
    return np.asarray(sum(d**2 for d in away) <= radius**2)


def crop(seed: int, *, calcium: bool) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    hu = np.full(CROP_SHAPE, -100, np.int16)
    label = np.zeros(CROP_SHAPE, np.uint8)
    near = ball((29, 128, 128), 50)
    hu[near], label[near] = 40, 2
    other = ball((25, 100, 150), 4)
    hu[other], label[other] = 120, 4
    if calcium:
        lesion = ball((float(rng.uniform(22, 35)), float(rng.uniform(110, 140)), 120), 5)
        hu[lesion], label[lesion] = 500, 1
    return hu, label


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CropCache:
    def source(i: int) -> CropSource:
        return CropSource(name=f"c{i}", patient=f"p{i}", make=lambda: crop(i, calcium=i % 2 == 0))

    return build_cache([source(i) for i in range(6)], tmp_path_factory.mktemp("crops"), settings={})


SCREENING = ScreeningRecipe(
    name="tiny", steps=8, batch_size=4, window=32, channels=(4, 8), log_every=2, checkpoint_every=3, seed=2
)
DIRECT = DirectRecipe(
    name="tiny",
    validation_share=0.34,
    box_steps=3,
    box_batch_size=4,
    box_channels=(4, 8),
    steps=3,
    batch_size=4,
    channels=(4,) * 6,
    hidden=4,
    shared=True,
    log_target=True,
)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_with_calcium_lie_under_their_labels(cache: CropCache, axis: int) -> None:
    recipe = replace(SCREENING, window=64, batch_size=8, noise_hu=0.0, offset_hu=0.0, seed=1)
    batches = CalciumSlices(cache, range(6), recipe, axis=axis)
    image, label = batches.batch(3)
    assert image.shape == (8, 2, 64, 64)
    assert label.shape == (8, 1, 64, 64)
    inside = label[:, 0] == 1
    assert inside[1::2].any(dim=2).any(dim=1).all()  # every second one is laid around calcium
    assert (image[:, 0][inside] == 1).all()
    assert (image[:, 1][inside] == 1).all()
    again = batches.batch(3)
    assert torch.equal(image, again[0])
    assert not torch.equal(image, batches.batch(4)[0])
    with pytest.raises(TrainingError, match="no scan to train on has calcium"):
        CalciumSlices(cache, [1, 3], recipe, axis=axis)


def test_the_slices_score_adds_up_by_hand() -> None:
    """A block of 10 x 10 pixels and four slices of 2.5 mm: area 49 mm², weight 4, half for each slice."""
    hu, label = np.full(CROP_SHAPE, 40, np.int16), np.zeros(CROP_SHAPE, np.uint8)
    block = np.s_[20:24, 100:110, 100:110]
    hu[block], label[block] = 600, 1
    scores = crop_scores(hu, label)
    each = 100 * PIXEL**2 * 4 * 0.5
    # Slices that lie wholly in the block, 48.75 to 58.75 mm above the first voxel's middle.
    middles = np.arange(len(scores)) * 1.5
    whole = (middles - 1.5 >= 48.75) & (middles + 1.5 <= 58.75)
    assert whole.sum() >= 4
    np.testing.assert_allclose(scores[whole], each)
    outside = (middles + 1.5 <= 48.75) | (middles - 1.5 >= 58.75)
    assert not scores[outside].any()
    assert scores.sum() == pytest.approx(100 * PIXEL**2 * 4 * 10 / 3)


def test_scored_slices_say_what_they_show(cache: CropCache) -> None:
    scores = {i: crop_scores(cache.hu[i], cache.label[i]) for i in range(6)}
    recipe = replace(DIRECT, batch_size=12, zoom=0.2, noise_hu=0.0, offset_hu=0.0, jitter_mm=5.0, seed=1)
    batches = ScoredSlices(cache, range(6), recipe, scores)
    planes, target = batches.batch(0)
    assert planes.shape == (12, 1, 256, 256)
    assert (target[::2, 0] > 0).all()
    assert (target[1::2, 0] == 0).all()
    pixel = target[:, 2]
    assert 0.7 / 1.2 <= pixel.min() < pixel.max() <= 0.7 / 0.8
    # What is as bright as the calcium has the same area in mm², however large it is drawn; in few slices
    # something that is not coronary is as bright.
    ratios = []
    for step in range(5):
        planes, target = batches.batch(step)
        for plane, (score, _, y, x) in zip(planes[::2, 0], target[::2].tolist(), strict=True):
            if plane.max() >= 535 / 635:  # 400 HU, weight 4
                area = float((plane >= 265 / 635).sum()) * y * x  # of at least 130 HU
                ratios.append(area * 4 * 0.5 / score)
    assert len(ratios) >= 10
    low, high = np.quantile(ratios, [0.1, 0.8])
    assert 0.9 < low < high < 1.35  # edges that are interpolated are a little wider
    box = heart_box(np.asarray(cache.label[0]), 10.0)
    assert box is not None
    numbers = slices_in(box[0])
    shown, voxel = batches.shown(0, list(numbers)[:3], box)
    assert shown.shape == (3, 1, 256, 256)
    assert voxel.tolist()[0] == pytest.approx([1.5, 0.7, 0.7])
    assert thick_slice(cache.hu[0], numbers[0]).shape == (256, 256)


def test_the_operating_point_keeps_the_wanted_sensitivity() -> None:
    found = [{"calcium": True, "highest": h} for h in (0.2, 0.4, 0.6, 0.9)]
    found += [{"calcium": False, "highest": h} for h in (0.0, 0.1, 0.3)]
    threshold, measured = operating_point(found, 1.0)
    assert 0.1 < threshold <= 0.2
    assert list(measured.values()) == [4, 4, 3, 2]
    threshold, measured = operating_point(found, 0.75)
    assert 0.3 < threshold <= 0.4
    assert list(measured.values()) == [4, 3, 3, 3]
    assert operating_point([{"calcium": True, "highest": 0.9}], 1.0)[0] == 0.5


def test_presence_is_what_the_heart_says() -> None:
    heart = np.zeros((30, 40, 50), np.uint8)
    heart[10:20, 15:30, 20:35] = 1
    hu = np.where(heart, 100, -1000).astype(np.int16)
    for axis in range(3):
        recipe = replace(DIRECT, box_batch_size=16, seed=1)
        image, truth = PresenceSlices([(hu, heart)], recipe, axis=axis).batch(2)
        assert image.shape == (16, 1, 80, 80)
        bright = image.amax(dim=(1, 2, 3)) > 0.5
        np.testing.assert_array_equal(bright.numpy(), truth.numpy() == 1)
        assert 0 < truth.sum() < 16


class Killed(Exception):
    pass


class UntilKilled:
    """Batches that end in the middle."""

    def __init__(self, batches: Any, last: int) -> None:
        self.batches, self.last = batches, last

    def batch(self, step: int) -> Any:
        if step >= self.last:
            raise Killed
        return self.batches.batch(step)


def test_a_killed_training_goes_on_exactly(cache: CropCache, tmp_path: Path) -> None:
    recipe = replace(SCREENING, noise_hu=20.0, learning_rate=0.01)
    batches = CalciumSlices(cache, range(6), recipe, axis=0)

    def loss(answer: Any, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(answer(image), label.float())

    def trainer() -> Trainer:
        torch.manual_seed(1)
        return Trainer(torch.nn.Conv2d(2, 1, 3, padding=1), loss, recipe, total=8, device=CPU)

    def run(trainer: Trainer, batches: Any, folder: Path) -> None:
        run_steps(trainer, batches, recipe, cache, folder)

    whole = trainer()
    run(whole, batches, tmp_path / "whole")
    with pytest.raises(Killed):
        run(trainer(), UntilKilled(batches, 5), tmp_path / "parts")
    second = trainer()
    run(second, batches, tmp_path / "parts")
    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "whole" / "log.csv").read_text().count("\n") == 5
    losses = [
        [line.split(",")[2] for line in (tmp_path / name / "log.csv").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_the_exclusion_is_trained_and_loaded(cache: CropCache, tmp_path: Path) -> None:
    recipe = replace(SCREENING, validation_share=0.34)
    folder = screening.train_on(recipe, tmp_path, cache, device=CPU)
    weights = describe(folder)
    assert weights.role == "screening"
    model = ScreeningModel.load(weights, CPU)
    assert 0 < model.threshold <= 0.5
    assert ScreeningModel.load(weights, CPU, threshold=0.3).threshold == 0.3
    found = json.loads((tmp_path / "held_out.json").read_text())
    assert {f["calcium"] for f in found} == {True, False}


def named_crop(seed: int, *, calcium: bool) -> tuple[npt.NDArray[Any], ...]:
    """The same with an artery, a kind, a depth, and something that nobody is sure about."""
    hu, label = crop(seed, calcium=calcium)
    label[label == 1] = ARTERY + 2
    label[label == 4] = KIND + 1
    speck = ball((29, 125, 105), 5)
    hu[speck], label[speck] = 400, UNSURE
    return hu, label, heart_depth(ball((29, 128, 128), 45).astype(np.float32))


@pytest.fixture(scope="module")
def named_cache(tmp_path_factory: pytest.TempPathFactory) -> CropCache:
    def source(i: int) -> CropSource:
        return CropSource(name=f"c{i}", patient=f"p{i}", make=lambda: named_crop(i, calcium=i % 2 == 0))

    return build_cache(
        [source(i) for i in range(4)], tmp_path_factory.mktemp("crops"), settings={"named": True}
    )


def test_named_crops_are_the_same_to_slices(cache: CropCache, named_cache: CropCache) -> None:
    """Arteries are calcium, kinds are something else, what is not sure is marked."""
    recipe = replace(
        SCREENING, window=128, batch_size=8, noise_hu=0.0, offset_hu=0.0, seed=1, other_share=0.5
    )
    plain, _ = CalciumSlices(cache, range(4), recipe, axis=1).batch(3)
    image, label = CalciumSlices(named_cache, range(4), recipe, axis=1).batch(3)
    assert image.shape == (8, 2, 128, 128)
    assert set(label.unique().tolist()) == {0, 1, UNSURE}
    assert (image[:, 1][label[:, 0] > 0] == 1).all()
    sure = label != UNSURE
    assert torch.equal(image[:, :1][sure], plain[:, :1][sure])
    scores = {i: crop_scores(named_cache.hu[i], named_cache.label[i]) for i in range(4)}
    for i, found in scores.items():
        np.testing.assert_array_equal(found, crop_scores(cache.hu[i], cache.label[i]))
    drawn = ScoredSlices(named_cache, range(4), DIRECT, scores)._pools
    shown = [number for pool in drawn.values() for _, number in pool]
    middles = 1.5 * np.array(shown)
    assert (
        (middles < 2.5 * 27 - 1.5) | (middles > 2.5 * 31 + 1.5)
    ).all()  # what is not sure: slices 27 to 31
    assert min(middles) < 2.5 * 27
    assert max(middles) > 2.5 * 31


def test_direct_scoring_begins_with_weights(cache: CropCache, tmp_path: Path) -> None:
    heart = np.zeros((30, 40, 50), np.uint8)
    heart[10:20, 15:30, 20:35] = 1
    first = describe(
        direct.train_on(DIRECT, tmp_path / "a", cache, [(heart.astype(np.int16), heart)], device=CPU)
    )
    still = replace(DIRECT, box_steps=0, steps=1, learning_rate=1e-9)
    second = describe(direct.train_on(still, tmp_path / "b", cache, [], device=CPU, first=first))
    old, new = (DirectModel.load(w, CPU) for w in (first, second))
    for name, network in old.presence.items():
        for a, b in zip(network.parameters(), new.presence[name].parameters(), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(old.regressor.parameters(), new.regressor.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0.0)
    with pytest.raises(TrainingError, match="name them with --start"):
        direct.train(still, tmp_path / "c", Inputs(device=CPU))
    with pytest.raises(WeightsError, match="another network than the recipe's"):
        direct.train(replace(still, hidden=8), tmp_path / "d", Inputs(device=CPU, start=str(first.path)))


def test_direct_scoring_is_trained_and_loaded(cache: CropCache, tmp_path: Path) -> None:
    heart = np.zeros((30, 40, 50), np.uint8)
    heart[10:20, 15:30, 20:35] = 1
    hu = np.where(heart, 100, -1000).astype(np.int16)
    folder = direct.train_on(DIRECT, tmp_path, cache, [(hu, heart)], device=CPU)
    model = DirectModel.load(describe(folder), CPU)
    assert model.regressor.shared
    assert model.regressor.log_target
    assert len(json.loads((tmp_path / "held_out.json").read_text())) == 2


def test_the_bundled_recipes_are_read() -> None:
    for name, kind in (("screening", ScreeningRecipe), ("direct", DirectRecipe)):
        recipe = load_recipe(BUNDLED.with_name(f"{name}.yml"), kind, role=name)
        assert recipe.of_crops().patients == 900
    with pytest.raises(WorkflowError, match="crops: unknown key 'patient'"):
        replace(SCREENING, crops={"patient": 3}).of_crops()
