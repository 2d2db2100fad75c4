"""Training of the exclusion's three 2D U-Nets, on slices of crops with calcium."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import TrainingError
from ...imaging.crop import CANDIDATE_HU, WINDOW_HU
from ...imaging.orientation import ORIENTATIONS
from ...stats.thresholds import highest_keeping
from ...system.atomic import write_json
from ...training.crops import UNSURE, CropCache, coronary, elsewhere, split_patients
from ...training.export import export_networks
from ...training.loop import Batch, run_steps
from ...training.patches import SliceRecipe
from ...training.recipe import Inputs
from ...training.sources import crop_origin, make_crops
from ...training.trainer import LOSSES, Trainer, segmentation_loss
from .network import SliceUNet, highest_threshold, joined_probability, two_channels


@dataclass(frozen=True, kw_only=True)
class ScreeningRecipe(SliceRecipe):
    """How the exclusion's networks are trained.

    Attributes:
        steps: Optimiser steps of each network.
        batch_size: Slices of a step.
        window: Side of the part of a slice that is shown; 320 shows whole slices.
        loss: ``"dice"`` (the published method) or ``"dice_ce"`` (plus binary cross-entropy).
        channels, dilated, dropout, norm: See `SliceUNet`.
        other_share: See `CalciumSlices`; the published method: 0, only slices with calcium.
        sensitivity: Of the held-out crops, which the operating point must reach.
    """

    steps: int
    batch_size: int = 16
    window: int = 128
    loss: str = "dice"
    channels: tuple[int, ...] = (16, 32, 64)
    dilated: bool = True
    dropout: float = 0.5
    norm: bool = True
    other_share: float = 0.0
    sensitivity: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is 'dice' or 'dice_ce', not {self.loss!r}")
        if self.window % 2 ** (len(self.channels) - 1):
            raise ValueError(f"window is a multiple of {2 ** (len(self.channels) - 1)}, not {self.window}")
        if not 0 < self.sensitivity <= 1:
            raise ValueError(f"sensitivity is above 0 and at most 1, not {self.sensitivity}")

    def described(self) -> dict[str, Any]:
        """What a set's description says of its networks."""
        keys = ("channels", "dilated", "dropout", "norm")
        return {
            "architecture": {k: getattr(self, k) for k in keys},
            "normalisation": {"window_hu": list(WINDOW_HU)},
        }


RECIPE = ScreeningRecipe


class CalciumSlices:
    """Batches of slices of one orientation, with calcium in them.

    Of each a square window is shown, around one of its calcium voxels or anywhere in it, in turn; slices
    that are smaller are padded. `other_share` of the slices have no coronary calcium but calcium or metal
    elsewhere, around which the window is laid then.

    Args:
        cache: Crops and their labels.
        crops: Those to draw from.
        recipe: Window, batch size, noise, shares, seed.
        axis: 0 axial, 1 coronal, 2 sagittal.

    Raises:
        TrainingError: No slice has calcium.
    """

    def __init__(self, cache: CropCache, crops: Sequence[int], recipe: ScreeningRecipe, *, axis: int) -> None:
        self.cache, self.recipe, self.axis = cache, recipe, axis
        self.slices: list[tuple[int, npt.NDArray[np.int64]]] = []
        self.others: list[tuple[int, npt.NDArray[np.int64]]] = []
        across = tuple(a for a in range(3) if a != axis)
        for crop in crops:
            label = np.asarray(cache.label[crop])
            calcium, other = (of(label).any(axis=across) for of in (coronary, elsewhere))
            for slices, shown in ((self.slices, calcium), (self.others, other & ~calcium)):
                if shown.any():
                    slices.append((crop, np.flatnonzero(shown)))
        self.other_share = recipe.other_share if self.others else 0.0
        if not self.slices:
            raise TrainingError("no scan to train on has calcium; add some that have")

    def batch(self, step: int) -> Batch:
        """The batch of a step.

        Returns:
            float32 (n, 2, window, window), see `two_channels`, and uint8 labels (n, 1, window, window),
            1 = calcium, `UNSURE` what is not sure.
        """
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, self.axis, step, 11])
        hu = np.empty((recipe.batch_size, recipe.window, recipe.window), dtype=np.float32)
        label = np.empty((recipe.batch_size, 1, recipe.window, recipe.window), dtype=np.uint8)
        for k in range(recipe.batch_size):
            without = rng.random() < self.other_share
            pool = self.others if without else self.slices
            crop, found = pool[rng.integers(len(pool))]
            z = int(rng.choice(found))
            image = np.take(self.cache.hu[crop], z, axis=self.axis).astype(np.float32)
            labels = np.take(self.cache.label[crop], z, axis=self.axis)
            image = recipe.noisy(image, rng)
            voxels = np.argwhere((elsewhere if without else coronary)(labels))
            centre = voxels[rng.integers(len(voxels))] if without or k % 2 else None
            truth = np.where(labels == UNSURE, np.uint8(UNSURE), coronary(labels).astype(np.uint8))
            hu[k], label[k, 0] = _window(image, truth, recipe.window, centre, rng)
        return two_channels(torch.from_numpy(hu)), torch.from_numpy(label)


def _window(
    image: npt.NDArray[np.float32],
    truth: npt.NDArray[np.uint8],
    side: int,
    centre: npt.NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """A square part of a slice; what lies beyond a smaller slice is as low as the window goes."""
    lacking = [max(side - n, 0) for n in image.shape]
    padded = [(n // 2, n - n // 2) for n in lacking]
    hu = np.pad(image, padded, constant_values=-1024.0)
    label = np.pad(truth, padded)
    corner = []
    for a, n in enumerate(image.shape):
        if n <= side:
            corner.append(0)
        elif centre is None:
            corner.append(int(rng.integers(n - side + 1)))
        else:
            corner.append(int(np.clip(centre[a] - rng.integers(side), 0, n - side)))
    box = tuple(slice(c, c + side) for c in corner)
    return hu[box], label[box]


def train(recipe: ScreeningRecipe, work: Path, inputs: Inputs) -> Path:
    """Train the three networks, see `training.recipe.prepared`.

    The work folder gets ``crops/``, one folder a network, ``held_out.json`` and ``weights/``.
    """
    if inputs.start:
        raise TrainingError("the exclusion's networks are trained from random weights; leave out --start")
    cache = make_crops(recipe.of_crops(), work / "crops", inputs)
    return train_on(recipe, work, cache, device=inputs.device)


def train_on(recipe: ScreeningRecipe, work: Path, cache: CropCache, *, device: torch.device) -> Path:
    """`train` on crops that are there."""
    loss = partial(segmentation_loss, recipe.loss)
    training, held_out = split_patients(cache, recipe.validation_share, recipe.seed)
    networks: dict[str, torch.nn.Module] = {}
    for axis, name in enumerate(ORIENTATIONS):
        batches = CalciumSlices(cache, training, recipe, axis=axis)
        torch.manual_seed(recipe.seed + axis)
        network = SliceUNet(**recipe.described()["architecture"])
        trainer = Trainer(
            network, loss, recipe, total=recipe.steps, device=device, layout=torch.channels_last
        )
        run_steps(trainer, batches, recipe, cache, work / name)
        networks[name] = network.eval()
    found = held_out_thresholds(networks, cache, held_out, device)
    write_json(work / "held_out.json", found)
    threshold, measured = operating_point(found, recipe.sensitivity)
    return export_networks(
        work / "weights",
        networks,
        recipe=recipe,
        crops=recipe.of_crops(),
        role="screening",
        data=crop_origin(recipe.of_crops(), cache),
        scans=cache.scans,
        threshold=threshold,
        measured=measured,
        **recipe.described(),
    )


def held_out_thresholds(
    networks: Mapping[str, torch.nn.Module], cache: CropCache, crops: Sequence[int], device: torch.device
) -> list[dict[str, Any]]:
    """Of each crop whether it has calcium, and the largest threshold at which it is called positive."""
    found = []
    for crop in crops:
        hu, label = np.asarray(cache.hu[crop]), np.asarray(cache.label[crop])
        bright = hu >= CANDIDATE_HU
        values = torch.from_numpy(hu.astype(np.float32)).to(device)
        near = (label > 0) & (label != UNSURE)
        root, _ = joined_probability(networks, values, near & bright)
        calcium = bool((coronary(label) & bright).any())
        found.append(
            {"name": cache.names[crop], "calcium": calcium, "highest": round(highest_threshold(root), 4)}
        )
    return found


def operating_point(found: Sequence[dict[str, Any]], sensitivity: float) -> tuple[float, dict[str, Any]]:
    """The largest threshold, at most 0.5, that finds at least this share of the scans with calcium.

    Args:
        found: Of each scan ``calcium`` and ``highest``, see `ScreeningPrediction`.
        sensitivity: In (0, 1].

    Returns:
        The threshold, and what it gives: sensitivity, specificity and the numbers of scans.
    """
    with_calcium = np.array([f["highest"] for f in found if f["calcium"]])
    without = np.array([f["highest"] for f in found if not f["calcium"]])
    lowest = highest_keeping(with_calcium, sensitivity)
    threshold = max(0.01, min(0.5, round(0.5 if lowest is None else lowest - 5e-4, 3)))
    return threshold, {
        "held-out crops with calcium": len(with_calcium),
        "called positive": int((with_calcium >= threshold).sum()),
        "held-out crops without calcium": len(without),
        "called negative": int((without < threshold).sum()),
    }
