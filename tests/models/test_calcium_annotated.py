"""Training of the calcium network on scans whose labels name arteries, kinds, and what is not sure."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from deepcac2.imaging.crop import CROP_SHAPE
from deepcac2.imaging.files import write_image
from deepcac2.models.calcium.kinds import KINDS
from deepcac2.models.calcium.network import CalciumModel
from deepcac2.models.calcium.train import evaluate_crops, kinds_of, named_loss, train
from deepcac2.training.crops import ARTERY, CALCIUM, KIND, NEAR, UNSURE, CropSource, build_cache
from deepcac2.training.recipe import Inputs
from deepcac2.weights import resolve

CPU = torch.device("cpu")


def test_what_is_not_sure_is_in_neither_part_of_the_named_loss(annotated: ModuleType) -> None:
    """Neither the mask's answer there nor the namer's is asked for; both are beside it."""
    generator = torch.Generator().manual_seed(1)
    label = torch.full((1, 1, 4, 8, 8), NEAR, dtype=torch.uint8)
    label[..., :2, :2, :2] = ARTERY + 4
    label[..., 2:4, 2:4, 2:4] = KIND + 2
    label[..., 4:6, 4:6] = UNSURE
    image = torch.ones(label.shape)  # all of it is bright
    unsure = label == UNSURE
    cells = torch.nn.functional.max_pool3d(unsure.float(), 2)[:, 0] > 0
    assert (kinds_of(label)[cells] == -1).all()
    logits = torch.randn(label.shape, generator=generator, requires_grad=True)
    kinds = torch.randn((1, len(KINDS), 2, 4, 4), generator=generator, requires_grad=True)
    loss = named_loss(annotated.RECIPE, lambda _: (logits, kinds), image, label)
    of_mask, of_names = torch.autograd.grad(loss, [logits, kinds])
    assert not of_mask[unsure].any()
    assert of_mask[~unsure].all()
    asked = (of_names[0] != 0).any(dim=0)
    assert not asked[cells[0]].any()
    assert asked[~cells[0]].all()
    # the artery is the only calcium of the mask's answer
    assert (of_mask[label == ARTERY + 4] < 0).all()
    assert (of_mask[(label != ARTERY + 4) & ~unsure] > 0).all()


class Bright(torch.nn.Module):
    """Takes for calcium what reaches 300 HU."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return patches * 635 - 135 - 299.5


@pytest.mark.slow
def test_held_out_crops_are_judged_without_what_is_not_sure(tmp_path: Path) -> None:
    """All that is bright is found: a plaque, and beside it, in and outside the heart, what is not sure."""
    hu, label = np.full(CROP_SHAPE, 40, np.int16), np.full(CROP_SHAPE, NEAR, np.uint8)
    label[..., 200:] = 0
    for box, value in (
        (np.s_[28:30, 120:126, 120:126], CALCIUM),
        (np.s_[28:30, 140:146, 140:146], UNSURE),
        (np.s_[28:30, 140:146, 220:226], UNSURE),
    ):
        hu[box], label[box] = 450, value
    source = CropSource(name="a", patient="a", make=lambda: (hu, label))
    cache = build_cache([source], tmp_path / "crops", settings={})
    said = evaluate_crops(CalciumModel(Bright(), device=CPU), cache, [0], tmp_path / "report", title="a")
    assert [v for k, v in said.items() if "Dice" in k] == [1.0, 1.0]
    (row,) = csv.DictReader((tmp_path / "report" / "cases.csv").read_text().splitlines())
    assert (row["false_lesions"], row["found_lesions"]) == ("0", "1")
    # 36 pixels of 0.49 mm² in two slices of 2.5 mm, weight 4
    assert float(row["score"]) == float(row["true_score"]) == pytest.approx(2 * 36 * 0.49 * 4 * 2.5 / 3)


@pytest.mark.slow
def test_three_steps_on_two_annotated_scans(annotated: ModuleType, tmp_path: Path) -> None:
    """Simulated chests as somebody else would hand them over: a CT in ct/ and a label map beside it."""
    values = {}
    for home, patient in annotated.scans(tmp_path / "data"):
        label = patient.arteries.array.copy()
        for kind, value in ((1, 13), (2, 11), (3, 12)):
            label[patient.others.array == kind] = value
        label[patient.arteries.where("LAD")] = 255
        write_image(home / "calcium.nrrd", label, patient.volume.geometry)
        values[home] = label
    inputs = Inputs(device=CPU, data=[tmp_path / "data"])
    weights = train(annotated.RECIPE, tmp_path / "work", inputs)
    found = [np.load(p) for p in sorted((tmp_path / "work" / "crops").glob("*.label.npy"))]
    for label, (_, given) in zip(found, sorted(values.items()), strict=True):
        assert {3, 4, 255} <= set(np.unique(given))
        assert {ARTERY + 3, ARTERY + 4, UNSURE} <= set(np.unique(label))
        assert not {CALCIUM, ARTERY + 2} & set(np.unique(label))
    assert annotated.logged_steps(tmp_path / "work") == [1, 2, 3]
    described = resolve(weights, "calcium").metadata
    assert described["training"]["data"] == "2 annotated scans"
    again = train(replace(annotated.RECIPE), tmp_path / "work", inputs)
    assert again == weights
