"""Training of the calcium patch U-Net.

Scans, annotated or simulated, become crops exactly as inference makes them, once, in a cache
(`training.crops`); `train` then steps through a fixed sequence of batches. Everything that a step depends on
is either a function of the recipe's seed and the step's number or in the checkpoint, so a run that was
stopped anywhere and goes on gives what an unbroken one would have given.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import WeightsError
from ...evaluation import metrics
from ...evaluation.cases import CaseResult, Evaluation, Prediction, compared
from ...evaluation.datasets import AnnotatedScan
from ...evaluation.summary import summarise
from ...imaging import Geometry, Volume
from ...imaging.crop import CROP_SHAPE, CROP_SPACING, WINDOW_HU, Patches
from ...pipeline.chain import describe_device
from ...reporting.evaluation import write_report
from ...scoring import score
from ...system.atomic import write_json
from ...system.nearest import listed
from ...training.crops import (
    ARTERY,
    CALCIUM,
    KIND,
    NEAR,
    OTHER,
    UNSURE,
    CropCache,
    CropRecipe,
    coronary,
    split_patients,
)
from ...training.export import export_networks
from ...training.loop import BEST, dice, run_steps
from ...training.mining import find_mistakes, load_mistakes, save_mistakes
from ...training.patches import Batches, GridBatches, PatchRecipe, RandomBatches
from ...training.recipe import Inputs
from ...training.sources import INSERTED, SIMULATED, crop_origin, make_crops
from ...training.trainer import (
    LOSSES,
    BeginningRecipe,
    Checkpoint,
    StepsRecipe,
    Trainer,
    beginning,
    require_architecture,
    segmentation_loss,
)
from ...weights import WeightSet, stated_window
from .kinds import KINDS
from .network import CalciumModel, build_network

log = logging.getLogger(__name__)

PAPER_EPOCHS = 50
"""Length of the paper's training; DeepCAC2 paper."""
_NAMED = 10
"""Crops held out that are named on the screen at most; chosen."""
_BRIGHT_HU = 110.0
"""HU from which a voxel is asked what it is; below `CANDIDATE_HU`, as noise and interpolation move it."""
_NOTHING_WEIGHS = 0.3
"""Weight of nothing of all that among the kinds; chosen."""
CROP_GEOMETRY = Geometry(shape=CROP_SHAPE, spacing=CROP_SPACING, origin=(0.0, 0.0, 0.0))
"""The crop's grid by itself: its middle is the heart's centre, so the predictor crops just this again."""


@dataclass(frozen=True, kw_only=True)
class CalciumRecipe(CropRecipe, PatchRecipe, StepsRecipe, BeginningRecipe):
    """How a calcium network is trained.

    Attributes:
        validation_share: Share of the patients that is held out, of those with calcium and of those without.
        sampling: ``"grid"``: the paper's patches, every patch with calcium once in an epoch (`GridBatches`);
            ``"random"``: patches anywhere (`RandomBatches`).
        mining_steps: With random patches, the steps after which the network's mistakes on crops that it
            is trained on are looked for anew (`training.mining`).
        mining_crops: Crops that are looked through each time, drawn anew.
        epochs: Length of a training on the grid.
        steps: Length of a training on random patches, optimiser steps.
        loss: ``"dice"`` (binary Dice, DeepCAC2 paper) or ``"dice_ce"`` (plus binary cross-entropy).
        amp: On a GPU mixed precision, float16 with gradient scaling; on a CPU it is float32 all the same.
        architecture: Keyword arguments of MONAI's `UNet`, and of ours ``placed`` and ``kinds`` (`unet.UNet`).
        kinds_share: Weight of the names of artery and kind in the loss.
        validation_patches: Most held-out patches that measure the Dice during training.
        validate_every: Steps between; validation also comes at the end.
    """

    validation_share: float = 0.2
    sampling: str = "random"
    mining_steps: tuple[int, ...] = ()
    mining_crops: int = 400
    epochs: int = 0
    steps: int = 0
    loss: str = "dice_ce"
    amp: bool = False
    architecture: dict[str, Any]
    kinds_share: float = 0.3
    validation_patches: int = 512
    validate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        CropRecipe.__post_init__(self)
        PatchRecipe.__post_init__(self)
        if self.loss not in LOSSES:
            raise ValueError(f"loss is 'dice' or 'dice_ce', not {self.loss!r}")
        if self.sampling not in ("grid", "random"):
            raise ValueError(f"sampling is 'grid' or 'random', not {self.sampling!r}")
        wanted, other = ("epochs", "steps") if self.sampling == "grid" else ("steps", "epochs")
        if getattr(self, wanted) < 1 or getattr(self, other):
            raise ValueError(
                f"sampling {self.sampling!r} is measured in {wanted}: give {wanted}, not {other}"
            )
        if min(self.log_every, self.validate_every, self.checkpoint_every) < 1:
            raise ValueError("log_every, validate_every and checkpoint_every are at least 1")
        ends = (0, *self.mining_steps, self.steps)
        if self.mining_steps and any(a >= b for a, b in pairwise(ends)):
            raise ValueError("mining_steps rise, and lie between 0 and steps; they need random patches")
        if not 0 <= self.validation_share <= 1:
            raise ValueError("validation_share is between 0 and 1")
        if any(self.told.values()) and not self.named:
            raise ValueError("an architecture with 'placed' or 'kinds' needs named crops: set named to true")
        if (kinds := self.architecture.get("kinds")) and tuple(kinds) != KINDS:
            raise ValueError(f"kinds are {list(KINDS)}")

    @property
    def told(self) -> dict[str, bool]:
        """What the network is told or asked beside, see `training.patches.Batches`."""
        return {name: bool(self.architecture.get(name)) for name in ("placed", "kinds")}

    def described(self) -> dict[str, Any]:
        """What a set's description says of its network."""
        normalisation = {"window_hu": list(self.window_hu), "rescale_to": "window"}
        return {"architecture": self.architecture, "normalisation": normalisation, **asdict(Patches())}


RECIPE = CalciumRecipe


def train(recipe: CalciumRecipe, work: Path, inputs: Inputs) -> Path:
    """Train a calcium network, see `training.recipe.prepared`.

    The work folder gets ``crops/``, ``checkpoint.pt``, ``log.csv``, ``tensorboard/``, ``training.json``
    (speed), ``weights/`` and ``evaluation/``.

    Raises:
        WeightsError: The weights to begin with cannot be used, or their network is another.
    """
    log.info("training on %s", describe_device(inputs.device))
    recipe, weights = beginning(recipe, inputs.start, "calcium")
    if weights is not None:
        _fits(weights, recipe)
    cache = make_crops(recipe, work / "crops", inputs)
    training, held_out = split_patients(cache, recipe.validation_share, recipe.seed)
    names = listed([cache.names[i] for i in held_out], _NAMED)
    log.info("%d crops to train on, %d held out: %s", len(training), len(held_out), names)
    batches = make_batches(recipe, cache, training)
    total = recipe.steps or recipe.epochs * batches.steps_per_epoch
    trainer = make_trainer(recipe, total, device=inputs.device)
    if weights is not None:
        begin_with(trainer.network, CalciumModel.load(weights, inputs.device).network.state_dict())
    validate = partial(dice, trainer, *held_out_batches(recipe, cache, held_out))
    speed = run_steps(
        trainer,
        batches,
        recipe,
        cache,
        work,
        validate=validate,
        validate_every=recipe.validate_every,
        pauses=recipe.mining_steps,
        at_pause=partial(_mine, trainer, batches, recipe, work),
        steps_per_epoch=batches.steps_per_epoch,
        unit="patches",
    )
    if speed is not None:
        write_json(work / "training.json", {**speed, **_paper(speed, cache, training, recipe)})
    chosen: dict[str, Any] = {}
    if inputs.best:
        Checkpoint(work / BEST, recipe, cache).load(trainer)
        log.info("the weights are those of step %d of %d", trainer.step, total)
        chosen = {"chosen": f"step {trainer.step} of {total}, by the Dice of held-out patches"}
    measured = {**chosen, "held-out patch Dice": round(validate(), 4)}
    model = CalciumModel(trainer.network, device=inputs.device, window_hu=recipe.window_hu)
    measured |= evaluate_crops(model, cache, held_out, work / "evaluation", title=recipe.name)
    return export_networks(
        work / "weights",
        {"model": trainer.network},
        recipe=recipe,
        crops=recipe,
        role="calcium",
        data=crop_origin(recipe, cache),
        scans=cache.scans,
        measured=measured,
        **recipe.described(),
    )


def _fits(weights: WeightSet, recipe: CalciumRecipe) -> None:
    """Raises `WeightsError` where weights to begin with have another network or window than the recipe's."""
    if (window := stated_window(weights) or WINDOW_HU) != recipe.window_hu:
        raise WeightsError(
            f"the weights {weights.name!r} were trained with window_hu {list(window)}; "
            "write that into the recipe"
        )
    if "name" in (weights.metadata.get("architecture") or {}):
        raise WeightsError(
            f"the weights {weights.name!r} are the published network, which is not trained here; name others "
            "with --start"
        )
    require_architecture(weights, recipe.architecture, beside=("placed", "kinds"))


def begin_with(network: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Give a network the weights of one that may lack its channels of the place, and its namer.

    What it is told besides counts nothing at first, so that it answers as the other does.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        if name not in state:
            assert name.startswith("namer."), name
        elif state[name].shape == tensor.shape:
            tensor.copy_(state[name])
        elif not name.startswith("namer."):
            tensor.zero_()
            tensor[:, : state[name].shape[1]] = state[name]
    network.load_state_dict(own)


def kinds_of(label: torch.Tensor) -> torch.Tensor:
    """What lies in pairs of voxels along each axis, as numbers in `KINDS`; −1 where nobody knows.

    Args:
        label: uint8 (n, 1, z, y, x), see `training.crops.Crop`.

    Returns:
        int64 (n, z/2, y/2, x/2).
    """
    table = torch.full((256,), float(KINDS.index("other")))
    table[[0, NEAR]] = 0
    table[[CALCIUM, OTHER, UNSURE]] = -1
    for value in range(1, 5):  # as in `labels.ARTERIES` and `truth.OTHERS`
        table[ARTERY + value], table[KIND + value] = value, 4 + value
    kinds = table[label.long()]
    most = torch.nn.functional.max_pool3d(kinds, 2)
    unknown = torch.nn.functional.max_pool3d((kinds < 0).float(), 2)
    most[(most == 0) & (unknown > 0)] = -1
    return most[:, 0].long()


def named_loss(
    recipe: CalciumRecipe, answer: Callable[..., Any], image: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    """`segmentation_loss`, plus the recipe's share of the cross-entropy of artery and kind.

    The second is asked for where something is labelled or bright; nothing of all that weighs less, as it is
    most of what is bright.
    """
    logits, kinds = answer(image)
    target = ((label == CALCIUM) | ((label > ARTERY) & (label < KIND))).to(label.dtype)
    target = torch.where(label == UNSURE, label, target)
    loss = segmentation_loss(recipe.loss, lambda _: logits, image, target)
    wanted = kinds_of(label)
    low, high = recipe.window_hu
    bright = torch.nn.functional.max_pool3d(image[:, :1], 2)[:, 0] >= (_BRIGHT_HU - low) / (high - low)
    wanted = torch.where(bright | (wanted > 0), wanted, -1)
    weight = torch.ones(len(KINDS), device=kinds.device)
    weight[0] = _NOTHING_WEIGHS
    if (wanted >= 0).any():
        named = torch.nn.functional.cross_entropy(kinds, wanted, weight, ignore_index=-1)
        loss = loss + recipe.kinds_share * named
    return loss


def make_trainer(recipe: CalciumRecipe, total: int, *, device: torch.device) -> Trainer:
    """The recipe's network with its first, random weights, and its loss."""
    torch.manual_seed(recipe.seed)
    # On one core of an AMD EPYC 31 patches/s, 18 with the usual layout (the bundled network, float32).
    return Trainer(
        build_network(recipe.architecture),
        partial(named_loss, recipe) if recipe.told["kinds"] else partial(segmentation_loss, recipe.loss),
        recipe,
        total=total,
        device=device,
        amp=recipe.amp,
        layout=torch.channels_last_3d,
    )


def make_batches(recipe: CalciumRecipe, cache: CropCache, crops: Sequence[int]) -> Batches:
    """The batches of a training, by the recipe's sampling."""
    kind = GridBatches if recipe.sampling == "grid" else RandomBatches
    return kind(cache, crops, recipe, **recipe.told)


def held_out_batches(
    recipe: CalciumRecipe, cache: CropCache, crops: Sequence[int]
) -> tuple[GridBatches, int]:
    """Fixed patches of the paper's grid that measure progress, and how many batches of them."""
    size = min(recipe.batch_size, _patches_of(cache, crops))
    same = {name: getattr(recipe, name) for name in ("near_share", "window_hu", "seed")}
    of_grid = PatchRecipe(batch_size=size, **same)
    batches = GridBatches(cache, crops, of_grid, placed=recipe.told["placed"])
    return batches, min(batches.steps_per_epoch, max(1, recipe.validation_patches // size))


def _patches_of(cache: CropCache, crops: Sequence[int]) -> int:
    """Patches of an epoch over these crops: those with calcium, and as many without."""
    return 2 * int((cache.kinds[list(crops)] == CALCIUM).sum())


def _mine(trainer: Trainer, batches: Batches, recipe: CalciumRecipe, work: Path, step: int) -> None:
    """Look for mistakes after a step and have them shown from then on.

    They lie in ``mistakes-<step>.npz``, for a run that goes on after that step.
    """
    path = work / f"mistakes-{step}.npz"
    if trainer.step == step:
        count = min(recipe.mining_crops, len(batches.crops))
        chosen = np.random.default_rng([recipe.seed, step, 3])
        crops = sorted(chosen.choice(batches.crops, count, replace=False).tolist())
        found = find_mistakes(
            trainer, batches.cache, crops, window_hu=recipe.window_hu, placed=recipe.told["placed"]
        )
        save_mistakes(path, found)
    if isinstance(batches, RandomBatches):
        batches.show(load_mistakes(path))


def _paper(
    speed: dict[str, Any], cache: CropCache, training: Sequence[int], recipe: CalciumRecipe
) -> dict[str, Any]:
    """How long the paper's 50 epochs over these crops take with this network at this speed; also logged."""
    patches = _patches_of(cache, training)
    hours = PAPER_EPOCHS * patches / speed["patches_per_second"] / 3600
    text = "%.1f patches/s on %s; with this network the paper's %d epochs of these %d patches take %.2f h"
    log.info(text, speed["patches_per_second"], speed["device"], PAPER_EPOCHS, patches, hours)
    about = {"patches_per_epoch": patches, "hours_of_50_epochs": round(hours, 3)}
    return {**about, "batch_size": recipe.batch_size}


def evaluate_crops(
    model: CalciumModel, cache: CropCache, crops: Sequence[int], folder: Path, *, title: str
) -> dict[str, Any]:
    """Run the predictor over held-out crops, compare with their labels, and write the report into `folder`.

    Calcium counts in the heart and near it, as at inference, and nowhere that the label is not sure.

    Returns:
        What to say in the weights' description: means over the crops, JSON types; what cannot be said is left
        out.
    """
    cases, whole = [], []
    x, y, z = (float(c) for c in CROP_GEOMETRY.to_lps([(n - 1) / 2 for n in CROP_SHAPE]))
    for crop in crops:
        name, label = cache.names[crop], np.asarray(cache.label[crop])
        volume = Volume(hu=np.array(cache.hu[crop]), geometry=CROP_GEOMETRY)
        heart = np.asarray(cache.depth[crop]) > 0 if cache.depth else None
        found, truth = model.predict(volume, (x, y, z), heart=heart).mask, coronary(label)
        unsure = label == UNSURE
        scan = AnnotatedScan(name=name, volume=volume, heart=None, calcium=truth, unsure=unsure)
        near = found & (label > 0)
        prediction = Prediction(status="scored", calcium=near, score=score(volume, near).total)
        drawn = name.startswith((SIMULATED, INSERTED))
        case = CaseResult(name=name, patient=str(cache.patients[crop]), simulated=drawn)
        cases.append(compared(case, scan, prediction))
        whole.append(metrics.dice(found & ~unsure, truth))
    evaluation = Evaluation(cases=tuple(cases), rule="agatston")
    note = (
        "Measured at the end of training on patients that it never saw, by the predictor that runs use, on "
        "the network's own crop. It says nothing about other scanners: that needs deepcac2 evaluate."
    )
    heading = f"Held-out crops of {title}"
    write_report(evaluation, summarise(evaluation), folder, title=heading, note=note)
    calcium = np.array([bool(c.true_score) for c in cases])
    found_some = np.array([bool(c.score) for c in cases])
    near_dice = np.array([c.calcium_dice for c in cases])
    said = {
        "calcium Dice of crops, mean": np.array(whole)[calcium],
        "calcium Dice in the heart and near it, mean": near_dice[calcium],
        "share of crops with calcium where some was found": found_some[calcium],
        "share of crops without calcium where none was found": ~found_some[~calcium],
    }
    means = {name: round(float(values.mean()), 4) for name, values in said.items() if len(values)}
    return {"held-out crops": len(cases), **means}
