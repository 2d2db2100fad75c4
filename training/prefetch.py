"""Batches made ahead of the training, by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

Batch = tuple[torch.Tensor, torch.Tensor]
"""What the network sees, and what it should answer."""


class HasBatches(Protocol):
    """Whatever makes the batch of a step, from its number alone, so that a run that goes on sees the same."""

    def batch(self, step: int) -> Batch:
        """The batch of a step."""


def prefetch(
    batches: HasBatches, steps: range, *, device: torch.device, workers: int | None = None
) -> Iterator[Batch]:
    """The batches of `steps` on the device, in order, made ahead by threads.

    For a GPU they are pinned by the threads and copied while it computes.

    Args:
        workers: Threads; default half of the CPU cores, at least 1 and at most 8.
    """
    workers = workers or min(8, max(1, (os.cpu_count() or 2) // 2))
    pinned = device.type == "cuda"

    def make(step: int) -> Batch:
        image, label = batches.batch(step)
        return (image.pin_memory(), label.pin_memory()) if pinned else (image, label)

    def moved(future: Future[Batch]) -> Batch:
        image, label = future.result()
        return image.to(device, non_blocking=True), label.to(device, non_blocking=True)

    with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > 2 * workers:
                    yield moved(waiting.popleft())
            while waiting:
                yield moved(waiting.popleft())
        finally:
            for future in waiting:
                future.cancel()
