"""A network in training: one step, and the checkpoint that holds all that a step changes."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import TrainingError
from ..models.calcium.network import build_network
from ..system.atomic import write_whole
from .patches import Batches, CropCache, prefetch

if TYPE_CHECKING:
    from .calcium_recipe import CalciumRecipe

log = logging.getLogger(__name__)


def binary_dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − Dice over the whole batch, with a smoothing of one voxel; DeepCAC2 paper: Binary Dice."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + target.sum() + 1)


def segmentation_loss(logits: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """``"dice"``: `binary_dice_loss`; ``"dice_ce"``: plus binary cross-entropy."""
    dice = binary_dice_loss(logits, target)
    if kind == "dice":
        return dice
    return dice + torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


class Stepper:
    """A network in training: everything that changes from step to step, and nothing else.

    Args:
        network: On the device, in training mode.
        loss: The loss of a batch, given its tensors.
        learning_rate: Of Adam; falls to zero along half a cosine when `cosine` is true.
        total: Steps in all.
        amp: Mixed precision, float16 with gradient scaling; for a GPU.

    Attributes:
        step: Steps done.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        loss: Callable[..., torch.Tensor],
        *,
        learning_rate: float,
        cosine: bool,
        total: int,
        device: torch.device,
        amp: bool = False,
    ) -> None:
        self.network = network
        self.total = total
        self.device = device
        self.step = 0
        self.optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp)
        self._of_batch = loss
        self._first_rate = learning_rate
        self._cosine = cosine
        # Summed on the device: asking for the loss at every step would make the GPU wait.
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._losses = 0

    @property
    def learning_rate(self) -> float:
        """Of the step to come."""
        if not self._cosine:
            return self._first_rate
        return self._first_rate * 0.5 * (1 + math.cos(math.pi * self.step / self.total))

    def train(self, *batch: torch.Tensor) -> None:
        """One step on a batch, on the device."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        loss = self._of_batch(*batch)
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

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint: tensors, numbers and strings."""
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss": float(self._loss),
            "losses": self._losses,
            "rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """The opposite of `state`."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self._loss.fill_(state["loss"])
        self._losses = state["losses"]
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)


class Trainer(Stepper):
    """The calcium network in training."""

    def __init__(self, recipe: CalciumRecipe, total: int, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        network = build_network(recipe.architecture).to(device).train()
        # On one core of an AMD EPYC 31 patches/s, 18 with the usual layout (the bundled network, float32).
        self._layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
        network.to(memory_format=self._layout)  # type: ignore[call-overload]
        # Not on a CPU: torch 2.13 gets bfloat16 weight gradients of 3D convolutions wrong where a feature map
        # is thinner than the kernel, as it is deep in this network (docs/decisions/0007).
        self._amp = recipe.amp and device.type == "cuda"
        if recipe.amp and not self._amp:
            log.warning("mixed precision (amp) is for GPUs; on %s the training is in float32", device)

        def loss(image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return segmentation_loss(self.logits(image), label.float(), recipe.loss)

        super().__init__(
            network,
            loss,
            learning_rate=recipe.learning_rate,
            cosine=recipe.cosine,
            total=total,
            device=device,
            amp=self._amp,
        )

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """The network's answer in its present mode; float32 of the image's shape, on the device."""
        with torch.autocast(self.device.type, enabled=self._amp):
            answer: torch.Tensor = self.network(image.contiguous(memory_format=self._layout))
        return answer.float()

    @torch.inference_mode()
    def dice(self, batches: Batches, steps: int) -> float:
        """Dice of the network over the patches of the first `steps` batches."""
        self.network.eval()
        overlap = torch.zeros((), dtype=torch.float64, device=self.device)
        both = torch.zeros_like(overlap)
        for image, label in prefetch(batches, range(steps), device=self.device):
            mask = self.network(image.contiguous(memory_format=self._layout)) >= 0
            overlap += (mask & (label > 0)).sum()
            both += mask.sum() + label.sum()
        self.network.train()
        return float(2 * overlap / both) if both else 1.0


class Checkpoint:
    """``checkpoint.pt`` of one recipe on one set of crops.

    Args:
        path: The file.
        recipe: A recipe, a dataclass.
        cache: The crops.
    """

    def __init__(self, path: Path, recipe: Any, cache: CropCache) -> None:
        self.path = path
        self.owner = json.dumps([asdict(recipe), cache.names], sort_keys=True)

    def save(self, trainer: Stepper) -> None:
        """Write it, whole or not at all."""
        buffer = io.BytesIO()
        torch.save({"owner": self.owner, **trainer.state()}, buffer)
        write_whole(self.path, buffer.getvalue())

    def load(self, trainer: Stepper) -> None:
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
