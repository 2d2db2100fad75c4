"""Training of the exclusion's three 2D U-Nets (`models.rule_out`), on the crops of the calcium network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..imaging.orientation import ORIENTATIONS
from ..models.crop import CANDIDATE_HU, WINDOW_HU
from ..models.rule_out.network import SliceUNet, highest_threshold, joined_probability
from ..stats.thresholds import highest_keeping
from ..system.atomic import write_json
from ..weights import write_description
from .calcium import crop_origin, make_calcium_cache
from .calcium_recipe import LOSSES, CalciumRecipe
from .domain import simulated_domain
from .export import write_networks
from .loop import run_steps
from .patches import CALCIUM, CropCache, split_patients
from .recipe import build
from .slices import CalciumSlices, SliceLook
from .trainer import Stepper, segmentation_loss

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScreeningRecipe:
    """How the exclusion's networks are trained.

    Attributes:
        crops: Keys of `CalciumRecipe` that say which crops: ``patients``, ``first_seed``, ``insertions``, ….
        validation_share: Share of the patients that is held out.
        steps: Optimiser steps of each network.
        batch_size: Slices of a step.
        window: Side of the part of a slice that is shown; 320 shows whole slices.
        learning_rate: Of Adam; falls to zero along half a cosine when `cosine` is true.
        loss: ``"dice"`` (the published method) or ``"dice_ce"`` (plus binary cross-entropy).
        channels, dilated, dropout, norm: See `models.rule_out.network.SliceUNet`.
        noise_hu, offset_hu: See `SliceLook`.
        other_share: See `CalciumSlices`; the published method: 0, only slices with calcium.
        sensitivity: Of the held-out crops, which the operating point must reach.
        seed: Of everything.
        log_every, checkpoint_every: Steps between.
    """

    name: str
    crops: dict[str, Any] = field(default_factory=dict)
    validation_share: float = 0.1
    steps: int
    batch_size: int = 16
    window: int = 128
    learning_rate: float = 1e-3
    cosine: bool = True
    loss: str = "dice"
    channels: tuple[int, ...] = (16, 32, 64)
    dilated: bool = True
    dropout: float = 0.5
    norm: bool = True
    noise_hu: float = 15.0
    offset_hu: float = 8.0
    other_share: float = 0.0
    sensitivity: float = 1.0
    seed: int = 1
    log_every: int = 50
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is 'dice' or 'dice_ce', not {self.loss!r}")
        if self.window % 2 ** (len(self.channels) - 1):
            raise ValueError(f"window is a multiple of {2 ** (len(self.channels) - 1)}, not {self.window}")
        if not 0 < self.sensitivity <= 1:
            raise ValueError(f"sensitivity is above 0 and at most 1, not {self.sensitivity}")


def train_screening(
    recipe: ScreeningRecipe,
    work: Path,
    *,
    device: torch.device,
    data: Sequence[Path] = (),
    backgrounds: Sequence[Path] = (),
    heart_weights: str = "bundled",
) -> Path:
    """Train the three networks, or go on where an earlier call was stopped.

    Args:
        recipe: How.
        work: Folder for everything: ``crops/``, one folder a network, ``held_out.json`` and ``weights/``.
        data, backgrounds, heart_weights: See `training.calcium.train_calcium`.

    Returns:
        The folder with the final set of weights.

    Raises:
        TrainingError: The data cannot be trained on, or the folder belongs to another recipe or other scans.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    cropping = crop_recipe(recipe.crops)
    cache = make_calcium_cache(
        cropping,
        work / "crops",
        data=data,
        backgrounds=backgrounds,
        heart_weights=heart_weights,
        device=device,
    )
    return train_on(recipe, work, cache, device=device)


def train_on(recipe: ScreeningRecipe, work: Path, cache: CropCache, *, device: torch.device) -> Path:
    """`train_screening` on crops that are there."""
    training, held_out = split_patients(cache, recipe.validation_share, recipe.seed)
    networks: dict[str, torch.nn.Module] = {}
    for axis, name in enumerate(ORIENTATIONS):
        batches = CalciumSlices(
            cache,
            training,
            axis=axis,
            window=recipe.window,
            batch_size=recipe.batch_size,
            look=SliceLook(noise_hu=recipe.noise_hu, offset_hu=recipe.offset_hu),
            seed=recipe.seed,
            other_share=recipe.other_share,
        )
        torch.manual_seed(recipe.seed + axis)
        network = SliceUNet(**architecture(recipe)).to(device).train()
        if device.type == "cpu":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def loss(
            image: torch.Tensor, label: torch.Tensor, network: torch.nn.Module = network
        ) -> torch.Tensor:
            return segmentation_loss(network(image), label.float(), recipe.loss)

        stepper = Stepper(
            network,
            loss,
            learning_rate=recipe.learning_rate,
            cosine=recipe.cosine,
            total=recipe.steps,
            device=device,
        )
        run_steps(stepper, batches, recipe, cache, work / name)
        networks[name] = network.eval()
    found = held_out_thresholds(networks, cache, held_out, device)
    write_json(work / "held_out.json", found)
    threshold, measured = operating_point(found, recipe.sensitivity)
    return export_screening(
        recipe,
        networks,
        work / "weights",
        threshold,
        data=crop_origin(crop_recipe(recipe.crops), cache),
        measured=measured,
    )


def crop_recipe(crops: dict[str, Any]) -> CalciumRecipe:
    """The recipe that makes crops which other networks are trained on.

    Raises:
        WorkflowError: An unknown key.
    """
    content = {"name": "crops", "steps": 1, "architecture": {}, **crops}
    return build(content, CalciumRecipe, where="crops")


def architecture(recipe: ScreeningRecipe) -> dict[str, Any]:
    """Keyword arguments of `SliceUNet`."""
    keys = ("channels", "dilated", "dropout", "norm")
    return {k: getattr(recipe, k) for k in keys}


def held_out_thresholds(
    networks: dict[str, torch.nn.Module], cache: CropCache, crops: Sequence[int], device: torch.device
) -> list[dict[str, Any]]:
    """Of each crop whether it has calcium, and the largest threshold at which it is called positive."""
    found = []
    for crop in crops:
        hu, label = np.asarray(cache.hu[crop]), np.asarray(cache.label[crop])
        wanted = (label > 0) & (hu >= CANDIDATE_HU)
        values = torch.from_numpy(hu.astype(np.float32)).to(device)
        root, _ = joined_probability(networks, values, wanted)
        calcium = bool(((label == CALCIUM) & (hu >= CANDIDATE_HU)).any())
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


def export_screening(
    recipe: ScreeningRecipe,
    networks: dict[str, torch.nn.Module],
    folder: Path,
    threshold: float,
    *,
    data: str,
    measured: dict[str, Any],
) -> Path:
    """Write the set of weights into `folder`."""
    files = write_networks(folder, networks)
    cropping = crop_recipe(recipe.crops)
    write_description(
        folder,
        name=recipe.name,
        role="screening",
        files=files,
        architecture=architecture(recipe),
        threshold=threshold,
        normalisation={"window_hu": list(WINDOW_HU)},
        training={"recipe": asdict(recipe), "data": data},
        domain=simulated_domain(range(cropping.first_seed, cropping.first_seed + cropping.patients)),
        measured=measured,
    )
    return folder
