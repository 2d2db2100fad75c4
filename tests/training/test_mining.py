"""Mistakes of a network in training: found where it was wrong, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deepcac2.errors import TrainingError
from deepcac2.imaging.crop import CROP_SHAPE
from deepcac2.training.crops import CALCIUM, GRID, NEAR, OTHER, CropSource, build_cache, window_of
from deepcac2.training.mining import TILES, find_mistakes, load_mistakes, save_mistakes
from deepcac2.training.trainer import StepsRecipe, Trainer


class Bright(torch.nn.Module):
    """Takes for calcium what reaches 300 HU."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return patches * 635 - 135 - 299.5


def trainer() -> Trainer:
    recipe = StepsRecipe(name="x")
    return Trainer(
        Bright(), lambda answer, image: answer(image).mean(), recipe, total=1, device=torch.device("cpu")
    )


def test_mistakes_are_looked_for_in_the_recipes_window(tmp_path: Path) -> None:
    """Of a window that ends at 250 HU, 200 HU look like more than 300 do in the paper's."""
    hu, label = crop()
    hu[20, 100, 100] = 200
    cache = build_cache([CropSource(name="a", patient="a", make=lambda: (hu, label))], tmp_path, settings={})
    assert not find_mistakes(trainer(), cache, [0]).false
    narrow = find_mistakes(trainer(), cache, [0], window_hu=(-135.0, 250.0))
    assert narrow.false[0].tolist() == [[20, 100, 100]]


def crop() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    hu = np.zeros(CROP_SHAPE, dtype=np.int16)
    label = np.full(CROP_SHAPE, NEAR, dtype=np.uint8)
    label[:, :, :40] = 0
    return hu, label


def test_mistakes_are_false_finds_and_missed_calcium(tmp_path: Path) -> None:
    hu, label = crop()
    hu[5, 50:53, 50:53], label[5, 50:53, 50:53] = 400, CALCIUM  # found
    hu[5, 50, 53] = 400  # its rim: no mistake
    hu[20, 100, 100], label[20, 100, 100] = 200, CALCIUM  # missed
    hu[20, 110, 110], label[20, 110, 110] = 100, CALCIUM  # never counted: no mistake
    hu[57, 255, 255], label[57, 255, 255] = 500, OTHER  # taken for calcium
    hu[30, 120, 120] = 450  # likewise: noise
    hu[30, 120, 10] = 450  # far from the heart: no mistake
    cache = build_cache(
        [
            CropSource(name="a", patient="a", make=lambda: (hu, label)),
            CropSource(name="b", patient="b", make=crop),
        ],
        tmp_path,
        settings={},
    )
    wrong = trainer()
    mistakes = find_mistakes(wrong, cache, [0, 1])
    assert wrong.network.training
    assert {i: v.tolist() for i, v in mistakes.missed.items()} == {0: [[20, 100, 100]]}
    assert {i: v.tolist() for i, v in mistakes.false.items()} == {0: [[30, 120, 120], [57, 255, 255]]}


def test_the_tiles_cover_the_crop() -> None:
    covered = np.zeros(CROP_SHAPE, dtype=bool)
    for i in TILES:
        covered[window_of(GRID[i])] = True
    assert covered.all()


def test_mistakes_come_back_from_their_file(tmp_path: Path) -> None:
    hu, label = crop()
    hu[20, 100, 100:103], label[20, 100, 100:103] = 200, CALCIUM
    cache = build_cache(
        [CropSource(name="a", patient="a", make=lambda: (hu, label))], tmp_path / "crops", settings={}
    )
    mistakes = find_mistakes(trainer(), cache, [0])
    path = tmp_path / "mistakes.npz"
    save_mistakes(path, mistakes)
    back = load_mistakes(path)
    assert back.false == {}
    np.testing.assert_array_equal(back.missed[0], mistakes.missed[0])
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(TrainingError, match="missing or damaged"):
        load_mistakes(path)
