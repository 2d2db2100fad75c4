"""What a training of the calcium network can be told."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

LOSSES = ("dice", "dice_ce")
"""Kinds of `training.trainer.segmentation_loss`."""


@dataclass(frozen=True, kw_only=True)
class CalciumRecipe:
    """How a calcium network is trained.

    Attributes:
        patients: Simulated patients beside the annotated scans, seeds from `first_seed` upwards.
        simulator: Version of the simulator that draws them (`simulation.simulate_patient`).
        hard_patients: Further simulated patients, each with something of `simulation.RARE`, which looks most
            like coronary calcium and is rare: the first such seeds from 10,000 above `first_seed` on.
        insertions: Crops made from each background by putting simulated calcium into a real heart
            (`training.insertion`); the seeds are those after the patients'.
        validation_share: Share of the patients that is held out, of those with calcium and of those without.
        label_threshold: Share of a crop voxel that must be calcium for the voxel to be labelled so.
        centre_jitter_mm: Standard deviation of the crop's shift, mm: the heart model is not perfect.
        heart_margin_mm: What is within this distance of the heart counts as near it.
        sampling: ``"grid"``: the paper's patches, every patch with calcium once in an epoch (`GridBatches`);
            ``"random"``: patches anywhere (`RandomBatches`).
        near_share: Share of the patches without calcium that hold something ≥ 130 HU in the heart or near
            it; the others hold something bright elsewhere.
        other_share: With random patches, the share of those without calcium that hold simulated calcium or
            metal which is not coronary: aortic wall, valves, leads; `near_share` divides the others.
        mining_steps: With random patches, the steps after which the network's mistakes on crops that it
            is trained on are looked for anew (`training.mining`).
        mining_crops: Crops that are looked through each time, drawn anew.
        mistake_share: Share of the patches drawn around one of them, from the first of these steps on.
        epochs: Length of a training on the grid.
        steps: Length of a training on random patches, optimiser steps.
        batch_size: Patches per step, half of them with calcium.
        learning_rate: Of Adam; falls to zero along half a cosine when `cosine` is true.
        loss: ``"dice"`` (binary Dice, DeepCAC2 paper) or ``"dice_ce"`` (plus binary cross-entropy).
        noise_hu: Largest standard deviation of the white noise added to a patch, HU.
        offset_hu: Standard deviation of what is added to a whole patch, HU.
        window_hu: The network's intensity window, HU (lowest, highest); DeepCAC2 paper.
        start: Name and hash of the weights that the training begins with; "": random ones. `train_calcium`
            sets it.
        seed: Of the split, the weights and the batches.
        amp: On a GPU mixed precision, float16 with gradient scaling; on a CPU it is float32 all the same.
        architecture: Keyword arguments of MONAI's `UNet`.
        validation_patches: Most held-out patches that measure the Dice during training.
        log_every, validate_every, checkpoint_every: Steps between; validation also comes at the end.
    """

    name: str
    patients: int = 0
    first_seed: int = 100_000
    simulator: int = 1
    hard_patients: int = 0
    insertions: int = 0
    validation_share: float = 0.2
    label_threshold: float = 0.5
    centre_jitter_mm: float = 0.0
    heart_margin_mm: float = 10.0
    sampling: str = "random"
    near_share: float = 0.75
    other_share: float = 0.0
    mining_steps: tuple[int, ...] = ()
    mining_crops: int = 400
    mistake_share: float = 0.0
    epochs: int = 0
    steps: int = 0
    batch_size: int = 8
    learning_rate: float = 1e-3
    cosine: bool = True
    loss: str = "dice_ce"
    noise_hu: float = 0.0
    offset_hu: float = 0.0
    window_hu: tuple[float, float] = (-135.0, 500.0)
    start: str = ""
    seed: int = 1
    amp: bool = False
    architecture: dict[str, Any]
    validation_patches: int = 512
    log_every: int = 50
    validate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss is 'dice' or 'dice_ce', not {self.loss!r}")
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError("batch_size must be even: half of the patches hold calcium")
        if self.sampling not in ("grid", "random"):
            raise ValueError(f"sampling is 'grid' or 'random', not {self.sampling!r}")
        wanted, other = ("epochs", "steps") if self.sampling == "grid" else ("steps", "epochs")
        if getattr(self, wanted) < 1 or getattr(self, other):
            raise ValueError(
                f"sampling {self.sampling!r} is measured in {wanted}: give {wanted}, not {other}"
            )
        if len(self.window_hu) != 2 or not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"window_hu is [lowest HU, highest HU], not {list(self.window_hu)}")
        if min(self.log_every, self.validate_every, self.checkpoint_every) < 1:
            raise ValueError("log_every, validate_every and checkpoint_every are at least 1")
        ends = (0, *self.mining_steps, self.steps)
        if self.mining_steps and any(a >= b for a, b in pairwise(ends)):
            raise ValueError("mining_steps rise, and lie between 0 and steps; they need random patches")
        for share in ("validation_share", "near_share", "other_share", "mistake_share"):
            if not 0 <= getattr(self, share) <= 1:
                raise ValueError(f"{share} is between 0 and 1")
