"""Training of the calcium network: the data it sees, and that a stopped run goes on exactly."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepcac2.errors import TrainingError, WorkflowError
from deepcac2.models.calcium import CalciumModel, crop_grid, to_crop
from deepcac2.simulation import default_geometry, heart_centre, simulate_patient
from deepcac2.training.calcium import (
    CalciumRecipe,
    CropCache,
    PatchSampler,
    binary_dice_loss,
    make_calcium_cache,
    region_around,
    train_calcium,
)
from deepcac2.training.recipe import build, bundled_recipe, load_recipe
from deepcac2.weights import resolve

TINY = CalciumRecipe(
    name="tiny",
    patients=2,
    validation_patients=1,
    first_seed=3,
    steps=6,
    batch_size=2,
    checkpoint_every=3,
    validate_every=3,
    architecture={"channels": (4, 8), "strides": (2,), "num_res_units": 1, "norm": "batch"},
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps on two patients."""
    folder = tmp_path_factory.mktemp("unbroken")
    train_calcium(TINY, folder, device=torch.device("cpu"))
    return folder


def test_the_cache_is_what_inference_sees(work: Path) -> None:
    cache = make_calcium_cache(TINY, [3, 4], work / "train")
    shift = np.random.default_rng([3, 77]).normal(0.0, TINY.centre_jitter_mm, 3)
    centre = tuple(float(v) for v in np.asarray(heart_centre(3)) + shift)
    patient = simulate_patient(3, geometry=region_around(default_geometry(3), centre))  # type: ignore[arg-type]
    geometry = patient.volume.geometry
    grid = crop_grid(geometry, centre)  # type: ignore[arg-type]
    expected = to_crop(patient.volume.hu, geometry, grid, device=torch.device("cpu"))
    np.testing.assert_array_equal(cache.hu[0], expected.round().numpy())
    index = np.argwhere(cache.label[0] == 1)
    on_ct = np.rint(geometry.to_index(grid.to_lps(index))).astype(int)
    assert len(index) > 20
    assert patient.calcium[tuple(on_ct.T)].mean() > 0.5


def test_batches_are_balanced_and_normalised(work: Path) -> None:
    sampler = PatchSampler(make_calcium_cache(TINY, [3, 4], work / "train"), noise_hu=20.0)
    for step in range(4):
        image, label = sampler.batch(np.random.default_rng(step), 6)
        assert image.shape == label.shape == (6, 1, 16, 64, 64)
        assert image.dtype == label.dtype == torch.float32
        assert (label.flatten(1).sum(1) > 0).tolist() == [True] * 3 + [False] * 3
        assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_data_without_calcium_is_refused() -> None:
    empty = np.zeros((1, 58, 256, 256))
    cache = CropCache(hu=empty.astype(np.int16), label=empty.astype(np.uint8))
    with pytest.raises(TrainingError, match="use more patients"):
        PatchSampler(cache, noise_hu=0.0)


def test_a_stopped_run_goes_on_with_the_same_losses(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop after step 3 by a broken pipe of the log's clock, resume, and compare weights and losses."""
    for name in ("train", "validation"):
        (tmp_path / name).symlink_to(work / name)
    draw = PatchSampler.batch
    calls = 0

    def stopping(
        self: PatchSampler, rng: np.random.Generator, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += size == TINY.batch_size
        if calls > 4:
            raise KeyboardInterrupt
        return draw(self, rng, size)

    with monkeypatch.context() as patch:
        patch.setattr(PatchSampler, "batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train_calcium(TINY, tmp_path, device=torch.device("cpu"))
    train_calcium(TINY, tmp_path, device=torch.device("cpu"))

    def losses(folder: Path) -> list[tuple[str, str, str]]:
        with (folder / "log.csv").open() as handle:
            return [(r["step"], r["loss"], r["validation_dice"]) for r in csv.DictReader(handle)]

    assert losses(tmp_path) == losses(work)
    ours = resolve(tmp_path / "weights", "calcium")
    theirs = resolve(work / "weights", "calcium")
    assert ours.files["model.safetensors"] == theirs.files["model.safetensors"]


def test_the_exported_set_loads_and_predicts(work: Path) -> None:
    weights = resolve(work / "weights", "calcium")
    assert weights.metadata["training"]["recipe"]["name"] == "tiny"
    model = CalciumModel.load(weights, torch.device("cpu"))
    patient = simulate_patient(3, geometry=region_around(default_geometry(3), heart_centre(3)))
    prediction = model.predict(patient.volume, heart_centre(3), keep_probability=True)
    assert prediction.probability is not None
    assert np.isfinite(prediction.probability).all()
    assert prediction.mask.shape == patient.volume.hu.shape


def test_a_checkpoint_of_another_recipe_is_refused(work: Path) -> None:
    with pytest.raises(TrainingError, match="another recipe"):
        train_calcium(replace(TINY, steps=7), work, device=torch.device("cpu"))


def test_dice_loss_of_perfect_and_empty_predictions() -> None:
    target = torch.zeros(1, 1, 2, 2, 2)
    target[..., 0] = 1
    assert float(binary_dice_loss((target - 0.5) * 100, target)) == pytest.approx(0, abs=1e-6)
    assert float(binary_dice_loss((0.5 - target) * 100, target)) == pytest.approx(1 - 1 / 9)
    assert float(binary_dice_loss(torch.full_like(target, -100), torch.zeros_like(target))) == pytest.approx(
        0
    )


def test_recipes_are_read_strictly(tmp_path: Path) -> None:
    recipe = load_recipe(bundled_recipe("calcium"), CalciumRecipe)
    assert recipe.loss in ("dice", "dice_ce")
    with pytest.raises(WorkflowError, match="Perhaps you meant 'patients'"):
        build({"name": "x", "architecture": {}, "patient": 3}, CalciumRecipe, where="mine.yml")
    with pytest.raises(WorkflowError, match="must be even"):
        build({"name": "x", "architecture": {}, "batch_size": 3}, CalciumRecipe, where="mine.yml")
    with pytest.raises(WorkflowError, match="no recipe at"):
        load_recipe(tmp_path / "none.yml", CalciumRecipe)
