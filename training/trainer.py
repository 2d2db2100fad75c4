"""A network in training: one step, and the checkpoint that holds all that a step changes."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import TrainingError, WeightsError
from ..system.atomic import write_whole
from ..weights import WeightSet, resolve
from .crops import UNSURE, CropCache

log = logging.getLogger(__name__)

LOSSES = ("dice", "dice_ce")
"""Kinds of `segmentation_loss`."""


@dataclass(frozen=True, kw_only=True)
class StepsRecipe:
    """What every training by steps is told.

    Attributes:
        name: Of the set of weights.
        learning_rate: Of Adam; falls to zero along half a cosine when `cosine` is true.
        seed: Of all that is drawn at random.
        log_every, checkpoint_every: Steps between.
    """

    name: str
    learning_rate: float = 1e-3
    cosine: bool = True
    seed: int = 1
    log_every: int = 50
    checkpoint_every: int = 200


@dataclass(frozen=True, kw_only=True)
class BeginningRecipe:
    """What a training is told that may begin with weights.

    Attributes:
        start: Name and hash of the weights to begin with, "": random ones; `beginning` sets it.
    """

    start: str = ""


Recipe = TypeVar("Recipe", bound=BeginningRecipe)


def beginning(recipe: Recipe, start: str, role: str) -> tuple[Recipe, WeightSet | None]:
    """The weights that a training begins with, and its recipe, which names them.

    Args:
        recipe: As it was read.
        start: Name or path of the weights; "": none.
        role: That the weights must have.

    Raises:
        TrainingError: The recipe names weights that are not given.
        WeightsError: As `weights.resolve`.
    """
    if start:
        weights = resolve(start, role)
        return replace(recipe, start=f"{weights.name}@{weights.hash[:12]}"), weights
    if recipe.start:
        raise TrainingError(f"the recipe begins with {recipe.start!r}; name these weights with --start")
    return recipe, None


def require_architecture(weights: WeightSet, own: Mapping[str, Any], beside: Collection[str] = ()) -> None:
    """See that weights to begin with are of the recipe's network.

    Args:
        own: The architecture by the recipe.
        beside: Keys that may differ.

    Raises:
        WeightsError: They are of another network.
    """
    theirs = weights.metadata.get("architecture") or {}
    mine = json.loads(json.dumps(own))
    if any(theirs.get(key) != mine.get(key) for key in {*theirs, *mine} - {*beside}):
        raise WeightsError(
            f"the weights {weights.name!r} are another network than the recipe's; copy 'architecture' from "
            f"{weights.path / 'weights.json'} into the recipe"
        )


def binary_dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − Dice over the whole batch, with a smoothing of one voxel; DeepCAC2 paper: Binary Dice."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + target.sum() + 1)


_SURELY_NOT = -100.0
"""Logit of what is surely no calcium: where none is the target, it costs nothing."""


def segmentation_loss(
    kind: str, answer: Callable[..., torch.Tensor], image: torch.Tensor, label: torch.Tensor
) -> torch.Tensor:
    """``"dice"``: `binary_dice_loss`; ``"dice_ce"``: plus binary cross-entropy.

    Args:
        kind: Which.
        answer: Gives logits for `image`.
        label: Of the same shape: 1 calcium, 0 none, `UNSURE` where whatever is answered costs nothing.
    """
    unsure = label == UNSURE
    logits = answer(image).masked_fill(unsure, _SURELY_NOT)
    target = label.float().masked_fill(unsure, 0.0)
    dice = binary_dice_loss(logits, target)
    if kind == "dice":
        return dice
    return dice + torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


class Trainer:
    """A network in training: everything that changes from step to step, and nothing else.

    Args:
        network: With its first weights; it is moved to the device.
        loss: The loss of a batch, from `Trainer.answer` and the batch's tensors.
        recipe: Of its optimiser.
        total: Steps in all.
        device: Where it is trained.
        amp: On a GPU mixed precision, float16 with gradient scaling.
        layout: Memory format on a CPU; a format with the channels last is up to twice as fast there.

    Attributes:
        step: Steps done.
        layout: Memory format of network and images.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Callable[..., torch.Tensor],
        recipe: StepsRecipe,
        *,
        total: int,
        device: torch.device,
        amp: bool = False,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.total = total
        self.device = device
        self.step = 0
        self.layout = layout if device.type == "cpu" else torch.contiguous_format
        self.network = network.to(device).train()
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        # Not on a CPU: torch 2.13 gets bfloat16 weight gradients of 3D convolutions wrong where a feature map
        # is thinner than the kernel, as it is deep in a U-Net (docs/decisions/0007).
        self._amp = amp and device.type == "cuda"
        if amp and not self._amp:
            log.warning("mixed precision (amp) is for GPUs; on %s the training is in float32", device)
        self.optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self._amp)
        self._of_batch = loss
        self._recipe = recipe
        # Summed on the device: asking for the loss at every step would make the GPU wait.
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._losses = 0

    def answer(self, image: torch.Tensor, *beside: torch.Tensor) -> Any:
        """What the network says in its present mode, float32, on the device; of several answers all."""
        with torch.autocast(self.device.type, enabled=self._amp):
            answer = self.network(image.contiguous(memory_format=self.layout), *beside)
        return tuple(a.float() for a in answer) if isinstance(answer, tuple) else answer.float()

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """The first answer."""
        answer = self.answer(image)
        first: torch.Tensor = answer[0] if isinstance(answer, tuple) else answer
        return first

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        first = self._recipe.learning_rate
        if not self._recipe.cosine:
            return first
        return first * 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def train(self, *batch: torch.Tensor) -> None:
        """One step on a batch, on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        loss = self._of_batch(self.answer, *batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._loss += loss.detach()
        self._losses += 1
        self.step += 1

    def mean_loss(self) -> float:
        """Mean loss since this was last called.

        Raises:
            TrainingError: It is not a number.
        """
        mean = float(self._loss) / max(self._losses, 1)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the loss is not a number any more at step {self.step}; choose a smaller learning_rate"
            )
        self._loss.zero_()
        self._losses = 0
        return mean

    @property
    def _parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        return {"network": self.network, "optimiser": self.optimiser, "scaler": self.scaler}

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint: tensors, numbers and strings."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"step": self.step, "loss": float(self._loss), "losses": self._losses}
        state["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of `state`."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.step, self._losses = state["step"], state["losses"]
        self._loss.fill_(state["loss"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


class Checkpoint:
    """``checkpoint.pt`` of one recipe on one set of crops.

    Args:
        path: The file.
        recipe: The recipe.
        cache: The crops.
    """

    def __init__(self, path: Path, recipe: StepsRecipe, cache: CropCache) -> None:
        self.path = path
        self.owner = json.dumps([asdict(recipe), cache.names], sort_keys=True)

    def save(self, trainer: Trainer) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        torch.save({"owner": self.owner, **trainer.state()}, buffer)
        write_whole(self.path, buffer.getvalue())

    def load(self, trainer: Trainer) -> None:
        """Bring the trainer to where the checkpoint was written, where there is one.

        Raises:
            TrainingError: It belongs to another recipe or other scans, or cannot be read.
        """
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise TrainingError(f"{self.path} is damaged; remove it to start anew") from error
        if state.pop("owner", None) != self.owner:
            raise TrainingError(
                f"{self.path} belongs to another recipe or other scans; choose another --work folder"
            )
        trainer.restore(state)
        log.info("going on at step %d", trainer.step)
