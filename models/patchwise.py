"""A network that is shown patches on a device: as many at once as fit, and word of how far it is.

What the methods with patches share of running a network, and nothing of what they make of its answers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import DeviceError, SeriesFailed
from ..system.progress import tell

log = logging.getLogger(__name__)

TELL_SECONDS = 10.0
"""Least time between two lines that say how far a series is; of a faster one there is none."""
CPU_ROOM = 0.6e9
"""Bytes that a batch may take on a CPU, so that a worker stays within its budget (docs/architecture.md)."""
CPU_MOST, GPU_MOST = 8, 64
"""Patches at once, at most: more gain nothing."""


def batch_that_fits(each: float, device: torch.device) -> int:
    """Patches at once, at least one: within `CPU_ROOM`, or half of what a GPU has left.

    Args:
        each: Bytes that a patch takes while it goes through the network.
        device: Where it runs.
    """
    if device.type == "cuda":
        return max(1, min(GPU_MOST, int(torch.cuda.mem_get_info(device)[0] / 2 / each)))
    return max(1, min(CPU_MOST, int(CPU_ROOM / each)))


class PatchModel:
    """A network on a device, ready to be shown patches.

    Attributes:
        network: From (n, 1, …) to logits of the same shape.
        device: Where it runs.
        batch_size: Patches at once; it shrinks where the device's memory is too small.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        device: torch.device,
        batch_size: int,
        channels_last: bool = False,
        half: bool = False,
    ) -> None:
        """Move a network to a device.

        Args:
            channels_last: Keep a voxel's channels beside each other in memory. What is faster depends on
                device and network; answers differ by rounding.
            half: On a GPU compute in 16 bits where torch takes that for safe, channels last.

        Raises:
            DeviceError: `half` on a CPU, which computes in 32 bits.
        """
        if half and device.type != "cuda":
            raise DeviceError(
                f"half_precision needs a GPU and this is the device {device}; leave it out, or name one with "
                "--device cuda"
            )
        self.device = device
        self.batch_size = batch_size
        self.network = network.to(device).eval()
        self._half = half
        self._layout = torch.channels_last_3d if channels_last or half else torch.contiguous_format
        if channels_last or half:
            self.network = self.network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._expected, self._done = 0, 0
        self._began = self._told = time.monotonic()

    def _expect(self, patches: int, *, more: bool = False) -> None:
        """Say how many patches of a series come, from now on or, with `more`, beyond those said before."""
        if more:
            self._expected += patches
        else:
            self._expected, self._done = patches, 0
            self._began = self._told = time.monotonic()

    @torch.inference_mode()
    def _probability(self, patches: torch.Tensor, *more: Sequence[Any]) -> Any:
        """The network's answer, float32 in [0, 1] (n, 1, …), `batch_size` patches at a time.

        Of a network with two answers a tuple: beside it probabilities of the second, (n, kinds, …).

        Args:
            patches: float32 (n, 1, …).
            more: What the network is given beside each patch.

        Raises:
            SeriesFailed: It answers with something that is no number.
        """
        found: list[Any] = []
        done = 0
        while done < len(patches):
            some = slice(done, min(done + self.batch_size, len(patches)))
            try:
                found.append(self._at_once(patches[some], *(m[some] for m in more)))
            except torch.OutOfMemoryError:
                if some.stop - done == 1:
                    raise
            else:
                done = some.stop
                continue
            # Out of the except block: its traceback would keep alive what did not fit.
            self._shrink(some.stop - done)
        self._done += done
        self._tell()
        if len(found) == 1:
            return found[0]
        if isinstance(found[0], tuple):
            return tuple(torch.cat(part) for part in zip(*found, strict=True))
        return torch.cat(found)

    def _at_once(self, patches: torch.Tensor, *more: Sequence[Any]) -> Any:
        """As `_probability`, all at once."""
        patches = patches.contiguous(memory_format=self._layout)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self._half):
            logits = self.network(patches, *more)
        if isinstance(logits, tuple):
            logits, kinds = logits
            return self._known(torch.sigmoid(logits.float())), torch.softmax(kinds.float(), dim=1)
        return self._known(torch.sigmoid(logits.float()))

    def _known(self, probability: torch.Tensor) -> torch.Tensor:
        """Probabilities that are numbers: what is none lies above no threshold, and would be no calcium.

        Raises:
            SeriesFailed: ``not-finite``.
        """
        if probability.isnan().any():
            less = "leave half_precision out" if self._half else "its weights are damaged or too large"
            raise SeriesFailed(
                f"the network's answer is no number (NaN) for a part of this scan: {less}", code="not-finite"
            )
        return probability

    def _shrink(self, tried: int) -> None:
        """Go on with half of as many patches at once as did not fit."""
        self.batch_size = max(1, tried // 2)
        log.warning(
            "%s has not enough memory for %d patches at once; going on with %d",
            self.device,
            tried,
            self.batch_size,
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._told < TELL_SECONDS:
            return
        self._told = now
        left = (now - self._began) / self._done * (self._expected - self._done)
        tell(f"{self._done} of {self._expected} patches, about {left:.0f} s left")
