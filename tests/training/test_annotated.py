"""Crops of annotated scans with names, and what is not sure in them: in no loss, no pool, no measure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcac2.evaluation.datasets import OTHERS, AnnotatedScan, AnnotatedSource
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.crop import CROP_SHAPE, crop_grid
from deepcac2.imaging.labels import ARTERIES, Labels
from deepcac2.imaging.masks import box_centre
from deepcac2.training.crops import (
    ARTERY,
    BRIGHT,
    CALCIUM,
    GRID,
    KIND,
    NEAR,
    OTHER,
    UNSURE,
    Crop,
    CropCache,
    CropRecipe,
    CropSource,
    build_cache,
    patch_kinds,
    window_of,
)
from deepcac2.training.loop import dice
from deepcac2.training.mining import find_mistakes
from deepcac2.training.patches import PatchRecipe, RandomBatches
from deepcac2.training.sources import annotated_crop
from deepcac2.training.trainer import StepsRecipe, Trainer, segmentation_loss

CT = Geometry(shape=(40, 100, 100), spacing=(2.5, 1.4, 1.4), origin=(-70.0, -70.0, 0.0))
"""Slices as those of a crop, pixels twice as wide: a block of several voxels has an inside."""

LAD, RCA, VALVE, WALL, BONE = (
    np.s_[10:14, 30:36, 30:36],
    np.s_[10:14, 60:66, 30:36],
    np.s_[20:24, 40:46, 50:56],
    np.s_[20:24, 40:46, 70:76],
    np.s_[26:30, 30:36, 60:66],
)
DOUBT, DOUBT_FAR = np.s_[26:30, 50:56, 50:56], np.s_[10:14, 90:96, 90:96]


class Bright(torch.nn.Module):
    """Takes for calcium what reaches 300 HU."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return patches * 635 - 135 - 299.5


def trainer() -> Trainer:
    recipe = StepsRecipe(name="x")
    cpu = torch.device("cpu")
    return Trainer(Bright(), lambda answer, image: answer(image).mean(), recipe, total=1, device=cpu)


def annotated() -> AnnotatedScan:
    """A heart with two lesions, a valve, the aortic wall, a bright nothing, and doubt in and outside it."""
    hu = np.full(CT.shape, 40, np.int16)
    for box in (LAD, RCA, VALVE, WALL, BONE, DOUBT, DOUBT_FAR):
        hu[box] = 500
    heart = np.zeros(CT.shape, bool)
    heart[5:35, 20:80, 20:80] = True

    def labels(classes: Any, boxes: Iterable[tuple[str, Any]]) -> Labels:
        array = np.zeros(CT.shape, np.uint8)
        for name, box in boxes:
            array[box] = next(label.value for label in classes if label.name == name)
        return Labels(array=array, classes=classes)

    unsure = np.zeros(CT.shape, bool)
    unsure[DOUBT] = unsure[DOUBT_FAR] = True
    arteries = labels(ARTERIES, [("LAD", LAD), ("RCA", RCA)])
    return AnnotatedScan(
        name="a",
        volume=Volume(hu=hu, geometry=CT),
        heart=heart,
        calcium=arteries.mask,
        arteries=arteries,
        others=labels(OTHERS, [("aortic valve", VALVE), ("aorta", WALL)]),
        unsure=unsure,
    )


def crop_with(**change: Any) -> tuple[Crop, Any]:
    """The crop of `annotated`, and what gives the label in the middle of a box of its voxels."""

    def no_heart(name: str, volume: Volume) -> Any:
        raise AssertionError("the heart is annotated")

    scan = annotated()
    crop = annotated_crop(
        AnnotatedSource(name="a", patient="a", load=lambda: scan), CropRecipe(**change), no_heart
    )
    assert scan.heart is not None
    grid = crop_grid(CT, box_centre(scan.heart, CT))

    def at(box: tuple[slice, ...]) -> int:
        middle = [(s.start + s.stop - 1) / 2 for s in box]
        z, y, x = (round(i) for i in grid.to_index(CT.to_lps(middle)))
        return int(crop[1][z, y, x])

    return crop, at


def test_what_a_scan_is_like_is_kept_beside_its_crop(tmp_path: Path) -> None:
    source = AnnotatedSource(name="a", patient="a", load=annotated)
    annotated_crop(source, CropRecipe(), lambda name, volume: None, tmp_path / "000000.scan.json")
    said = json.loads((tmp_path / "000000.scan.json").read_text())
    assert (said["increment_mm"], said["pixel_mm"], said["field_of_view_mm"]) == (2.5, 1.4, 140.0)
    assert (said["kernel"], said["kvp"], said["contrast"]) == ("", None, False)


def test_names_of_an_annotation_are_those_of_a_named_crop() -> None:
    crop, at = crop_with(named=True)
    assert len(crop) == 3
    assert (at(LAD), at(RCA)) == (ARTERY + 2, ARTERY + 4)
    assert (at(VALVE), at(WALL)) == (KIND + 2, KIND + 1)
    assert at(BONE) == NEAR  # read, and not coronary
    assert (at(DOUBT), at(DOUBT_FAR)) == (UNSURE, UNSURE)
    assert set(np.unique(crop[1])) == {0, NEAR, UNSURE, ARTERY + 2, ARTERY + 4, KIND + 1, KIND + 2}


def test_a_crop_without_names_knows_what_is_not_coronary() -> None:
    _, at = crop_with()
    assert (at(LAD), at(RCA), at(VALVE), at(WALL)) == (CALCIUM, CALCIUM, OTHER, OTHER)
    assert (at(DOUBT), at(DOUBT_FAR)) == (UNSURE, UNSURE)


def test_nothing_bright_is_left_around_what_is_not_sure() -> None:
    """Interpolation makes its edges soft: a rim ≥ 130 HU that counts would be learnt from after all."""
    (hu, label), _ = crop_with()
    named = np.isin(label, (CALCIUM, OTHER, UNSURE))
    scan = annotated()
    assert scan.unsure is not None
    z, y, x = (slice(max(0, s.start - 3), s.stop + 3) for s in DOUBT)
    around = np.zeros(CT.shape, bool)
    around[z, y, x] = True
    index = np.indices(hu.shape).reshape(3, -1).T
    grid = crop_grid(CT, box_centre(scan.heart, CT))  # type: ignore[arg-type]
    back = CT.to_index(grid.to_lps(index.astype(float))).round().astype(int)
    inside = ((back >= 0) & (back < CT.shape)).all(axis=1)
    near = np.zeros(len(index), bool)
    near[inside] = around[tuple(back[inside].T)]
    beside = near.reshape(hu.shape) & (hu >= 130)
    assert beside.sum() > 100
    assert named[beside].all()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> CropCache:
    """A plaque and, as bright, what is not sure, side by side in the heart; nothing else in it is bright."""
    hu = np.full(CROP_SHAPE, 40, dtype=np.int16)
    label = np.full(CROP_SHAPE, NEAR, dtype=np.uint8)
    label[:, :, 200:] = 0
    for box, value in ((np.s_[10:14, 50:56, 50:56], CALCIUM), (np.s_[10:14, 70:76, 50:56], UNSURE)):
        hu[box], label[box] = 500, value
    hu[40:50, 240:250, 240:250] = 500  # a bone
    folder = tmp_path_factory.mktemp("cache")
    return build_cache([CropSource(name="a", patient="a", make=lambda: (hu, label))], folder, settings={})


def test_what_is_not_sure_is_no_mistake(cache: CropCache) -> None:
    mistakes = find_mistakes(trainer(), cache, [0])
    assert mistakes.false == mistakes.missed == {}


def test_what_is_not_sure_is_nothing_bright_near_the_heart(cache: CropCache) -> None:
    kinds = patch_kinds(np.asarray(cache.hu[0]), np.asarray(cache.label[0]))
    assert set(np.unique(kinds)) == {0, CALCIUM, BRIGHT}
    alone = [i for i, c in enumerate(GRID) if (part := np.asarray(cache.label[0])[window_of(c)]).size
             and (part == UNSURE).any() and not (part == CALCIUM).any()]  # fmt: skip
    assert alone
    assert not kinds[alone].any()


def test_batches_keep_what_is_not_sure_and_dice_leaves_it_out(cache: CropCache) -> None:
    """The network finds both blocks; by the label it found all and nothing false."""
    batches = RandomBatches(cache, [0], PatchRecipe(batch_size=8, near_share=0.0, seed=2))
    labels = torch.stack([batches.batch(step)[1] for step in range(4)])
    assert set(labels.unique().tolist()) == {0, 1, UNSURE}
    for k, (_, corner) in enumerate(batches.places(3)):
        expected = np.asarray(cache.label[0])[window_of(corner)]
        np.testing.assert_array_equal(labels[3, k, 0] == UNSURE, expected == UNSURE)
        np.testing.assert_array_equal(labels[3, k, 0] == 1, expected == CALCIUM)

    class Halves:
        """The half of each batch with calcium: there is no bone in it."""

        def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, label = batches.batch(step)
            return image[:4], label[:4]

    assert (labels[:, :4] == UNSURE).any()
    assert dice(trainer(), Halves(), 4) == 1.0


@pytest.mark.parametrize("kind", ["dice", "dice_ce"])
def test_what_is_not_sure_is_in_no_loss(kind: str) -> None:
    """Whatever is answered there costs the same, and moves nothing; anywhere else it does."""
    generator = torch.Generator().manual_seed(3)
    label = torch.zeros((2, 1, 4, 4, 4), dtype=torch.uint8)
    label[0, 0, 0], label[1, 0, 1:3] = 1, UNSURE
    unsure = label == UNSURE
    logits = torch.randn(label.shape, generator=generator)
    costs = []
    for there in (-20.0, 0.0, 20.0):
        answer = logits.masked_fill(unsure, there).requires_grad_()
        loss = segmentation_loss(kind, lambda _, answer=answer: answer, label, label)
        (gradient,) = torch.autograd.grad(loss, answer)
        assert not gradient[unsure].any()
        assert gradient[~unsure].all()
        costs.append(float(loss.detach()))
    assert costs[0] == costs[1] == costs[2]
    # as if these voxels were not there: the sums of Dice are over the others alone
    probability, target = torch.sigmoid(logits)[~unsure], (label == 1)[~unsure].float()
    alone = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
    if kind == "dice_ce":
        cost = torch.nn.functional.binary_cross_entropy(probability, target, reduction="sum")
        alone = alone + cost / label.numel()
    assert costs[0] == pytest.approx(float(alone), rel=1e-5)


def test_the_cache_on_disk_keeps_the_value(tmp_path: Path) -> None:
    crop, _ = crop_with()
    cache = build_cache([CropSource(name="a", patient="a", make=lambda: crop)], tmp_path, settings={})
    np.testing.assert_array_equal(cache.label[0] == UNSURE, crop[1] == UNSURE)
