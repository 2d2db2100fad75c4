"""A short training of the heart network through nnU-Net, and what it is told."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from safetensors.torch import load_file

from deepcac2.errors import TrainingError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.files import write_image
from deepcac2.models.heart.network import HeartModel
from deepcac2.models.heart.train import HeartRecipe, balancing_offset, domain_of, train
from deepcac2.training.hearts import simulated_heart
from deepcac2.training.recipe import Inputs
from deepcac2.weights import resolve

RECIPE = HeartRecipe(
    name="short",
    patients=2,
    first_seed=5,
    noise_hu=10.0,
    crop_share=0.0,
    spacing_mm=(12.0, 12.0, 12.0),
    base_features=4,
    max_features=16,
    convs_per_stage=1,
    intensity_hu=(-300.0, 300.0, 0.0, 100.0),
    epochs=2,
    iterations_per_epoch=4,
    validation_iterations=1,
    checkpoint_every=1,
    precision="bfloat16",
)


def test_the_domain_holds_the_extents_of_all_images(tmp_path: Path):
    for i, (shape, spacing) in enumerate((((50, 70, 72), (6.0, 5.0, 5.0)), ((40, 30, 28), (3.0, 5.0, 5.0)))):
        grid = Geometry(shape=shape, spacing=spacing, origin=(0.0, 0.0, 0.0))
        write_image(tmp_path / f"c{i}_0000.nii.gz", np.zeros(shape, np.int16), grid)
    domain = domain_of(RECIPE, tmp_path)
    assert domain["field_of_view_mm"] == [150, 360]
    assert domain["coverage_mm"] == [120, 300]
    assert "pixel_mm" not in domain


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "adam"},
        {"precision": "half"},
        {"intensity_hu": (1.0, 2.0)},
        {"spacing_mm": (1.0, 0.0, 1.0)},
    ],
)
def test_wrong_recipes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(RECIPE, **wrong)


@pytest.mark.slow
def test_hearts_are_balanced_to_their_true_size():
    """With the offset taken, the two simulated hearts are found as large as they are, on average."""
    recipe = replace(RECIPE, patients=1, first_seed=40, spacing_mm=(6.0, 6.0, 6.0), balance_patients=2)
    bundled = resolve("bundled", "heart")
    offset = balancing_offset(bundled, recipe)
    model = HeartModel.load(bundled, torch.device("cpu"))
    ratios = []
    for seed in (41, 42):
        image, label, spacing = simulated_heart(seed, recipe)
        grid = Geometry(shape=image.shape, spacing=spacing, origin=(0.0, 0.0, 0.0))
        margin = model.low_resolution_margin(Volume(hu=image, geometry=grid))
        pieces, _ = scipy.ndimage.label((margin > offset).numpy())
        ratios.append(np.bincount(pieces.ravel())[1:].max() / label.sum())
    assert np.sqrt(ratios[0] * ratios[1]) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_a_short_training_can_be_stopped_resumed_and_used(tmp_path: Path):
    recipe = replace(RECIPE, patients=6)
    cpu = torch.device("cpu")
    weights = train(recipe, tmp_path, Inputs(device=cpu))
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["1", "2"]
    model = HeartModel.load(weights, cpu)
    assert model.spacing == recipe.spacing_mm
    assert model.mirror_axes == ()
    image, _, spacing = simulated_heart(5, recipe)
    volume = Volume(
        hu=np.ascontiguousarray(image),
        geometry=Geometry(shape=image.shape, spacing=spacing, origin=(0.0, 0.0, 0.0)),
    )
    assert model.predict(volume).mask.shape == image.shape
    # As if it had been killed in the second epoch: the next call does that epoch again, and only that.
    fold = next((tmp_path / "results").rglob("checkpoint_final.pth")).parent
    (fold / "checkpoint_best.pth").unlink()
    state = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    state["current_epoch"] = 1
    state["logging"] = {k: v[:1] if isinstance(v, list) else v for k, v in state["logging"].items()}
    torch.save(state, fold / "checkpoint_latest.pth")
    (fold / "checkpoint_final.pth").unlink()
    train(recipe, tmp_path, Inputs(device=cpu))
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [r["epoch"] for r in rows] == ["1", "2", "2"]
    assert "resumed after epoch 1" in (tmp_path / "nnunet.log").read_text()
    with pytest.raises(TrainingError, match="another recipe"):
        train(replace(recipe, learning_rate=0.5), tmp_path, Inputs(device=cpu))


@pytest.mark.slow
def test_a_training_begins_with_weights_of_the_same_network_only(tmp_path: Path):
    recipe = replace(RECIPE, patients=5, epochs=1, iterations_per_epoch=1)
    cpu = torch.device("cpu")
    first = train(recipe, tmp_path / "first", Inputs(device=cpu))
    still = replace(recipe, name="second", learning_rate=1e-9, seed=2)
    second = train(still, tmp_path / "second", Inputs(device=cpu, start=str(first)))
    before, after = (load_file(folder / "fold_0.safetensors") for folder in (first, second))
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
    found = resolve(str(second), "heart")
    assert str(found.metadata["training_data"]).startswith("Begun with short@")
    wide = replace(still, base_features=8)
    with pytest.raises(TrainingError, match="of another network than the recipe's"):
        train(wide, tmp_path / "third", Inputs(device=cpu, start=str(first)))
    with pytest.raises(TrainingError, match="name these weights with --start"):
        train(replace(still, start="x@1"), tmp_path / "fourth", Inputs(device=cpu))
