"""Mistakes of a patch network in training, found in the crops it is trained on, to be shown more often.

Most of what a calcium network sees it soon knows. What costs score are the few things that it confuses:
stents, calcium of the mitral ring, bright grains of noise. They are rare among the crops, so that patches
drawn at random hardly ever show them.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch

from ..errors import TrainingError
from ..imaging.crop import CANDIDATE_HU, CROP_SHAPE, PATCH_SHAPE, WINDOW_HU
from ..imaging.tiling import Corner
from ..system.atomic import write_whole
from .crops import GRID, UNSURE, CropCache, coronary, window_of
from .patches import Mistakes, Voxels, as_input
from .trainer import Trainer

log = logging.getLogger(__name__)

TILES = tuple(
    i
    for i, corner in enumerate(GRID)
    if all(c % p == 0 or c == n - p for c, n, p in zip(corner, CROP_SHAPE, PATCH_SHAPE, strict=True))
)
"""Patches of the grid that cover the crop once, as far as it divides."""
RIM = 1
"""Voxels around coronary calcium where a wrong one is no mistake: lesions have no sharp end."""
BATCH = 16
"""Patches at once."""


@torch.inference_mode()
def find_mistakes(
    trainer: Trainer,
    cache: CropCache,
    crops: Sequence[int],
    *,
    window_hu: tuple[float, float] = WINDOW_HU,
    placed: bool = False,
) -> Mistakes:
    """Where a network in training is wrong on `crops`, in voxels ≥ 130 HU in or near the heart.

    Where the label is not sure it is not wrong.

    Args:
        trainer: With the network; it stays as it is.
        cache: All crops.
        crops: Those to look at.
        window_hu: The network's, see `patches.as_input`.
        placed: Whether it is told where in the heart a patch lies.
    """
    false: Voxels = {}
    missed: Voxels = {}
    trainer.network.eval()
    for crop in crops:
        hu, label = np.asarray(cache.hu[crop]), np.asarray(cache.label[crop])
        near = (hu >= CANDIDATE_HU) & (label > 0) & (label != UNSURE)
        place = partial(cache.place, crop) if placed else None
        found = _found(trainer, hu, near, window_hu, place)
        calcium = coronary(label)
        for pool, wrong in (
            (false, found & ~scipy.ndimage.binary_dilation(calcium, np.ones((3, 3, 3)), RIM)),
            (missed, near & calcium & ~found),
        ):
            voxels = np.argwhere(wrong).astype(np.uint8)
            if len(voxels):
                pool[crop] = voxels
    trainer.network.train()
    log.info(
        "mistakes: something else taken for calcium in %d crops, calcium missed in %d, of %d",
        len(false),
        len(missed),
        len(crops),
    )
    return Mistakes(false=false, missed=missed)


def _found(
    trainer: Trainer,
    hu: npt.NDArray[np.int16],
    near: npt.NDArray[np.bool_],
    window_hu: tuple[float, float],
    place: Callable[[Corner], npt.NDArray[np.float32]] | None,
) -> npt.NDArray[np.bool_]:
    """Voxels of `near` that the network takes for coronary calcium; bool (58, 256, 256)."""
    found = np.zeros(near.shape, dtype=bool)
    corners = [GRID[i] for i in TILES if near[window_of(GRID[i])].any()]
    for start in range(0, len(corners), BATCH):
        some = corners[start : start + BATCH]
        part = [window_of(c) for c in some]
        patches = as_input(np.stack([hu[box] for box in part]).astype(np.float32), window_hu)[:, None]
        if place is not None:
            patches = np.concatenate([patches, np.stack([place(c) for c in some])], axis=1)
        logits = trainer.logits(torch.from_numpy(patches).to(trainer.device))[:, 0]
        for box, mask in zip(part, (logits >= 0).cpu().numpy(), strict=True):
            found[box] |= mask
    return found & near


def save_mistakes(path: Path, mistakes: Mistakes) -> None:
    """Write a ``.npz``, whole or not at all.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    arrays = {f"{kind}-{i}": v for kind, pool in vars(mistakes).items() for i, v in pool.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(path, buffer.getvalue())


def load_mistakes(path: Path) -> Mistakes:
    """The opposite of `save_mistakes`.

    Raises:
        TrainingError: The file is missing or damaged.
    """
    pools: dict[str, Voxels] = {"false": {}, "missed": {}}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            for key in file.files:
                name, crop = key.split("-")
                pools[name][int(crop)] = file[key]
    except Exception as error:  # a damaged file makes numpy raise nearly anything
        raise TrainingError(
            f"{path} is missing or damaged, and the training went on from it; choose another --work folder"
        ) from error
    return Mistakes(**pools)
