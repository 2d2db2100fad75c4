"""The loop of every training but nnU-Net's: batches in, lines in the log now and then, checkpoints."""

from __future__ import annotations

import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch

from ..pipeline.chain import describe_device
from ..system.cores import threads_each
from ..system.duration import time_in_words
from ..system.gpu import GpuMeter
from .crops import UNSURE, CropCache
from .monitor import RunLog, Speed, read_log
from .trainer import Checkpoint, StepsRecipe, Trainer

log = logging.getLogger(__name__)


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
        workers: Threads; default half of the CPU cores that are ours, at least 1 and at most 8.
    """
    workers = workers or min(8, threads_each(2))
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


@torch.inference_mode()
def dice(trainer: Trainer, batches: HasBatches, steps: int) -> float:
    """Dice of a segmentation network over the first `steps` batches, without mixed precision.

    Voxels that are `UNSURE` are left out.
    """
    trainer.network.eval()
    overlap = torch.zeros((), dtype=torch.float64, device=trainer.device)
    both = torch.zeros_like(overlap)
    for image, label in prefetch(batches, range(steps), device=trainer.device):
        sure = label != UNSURE
        mask, truth = (trainer.logits(image) >= 0) & sure, (label > 0) & sure
        overlap += (mask & truth).sum()
        both += mask.sum() + truth.sum()
    trainer.network.train()
    return float(2 * overlap / both) if both else 1.0


@contextmanager
def interruptible(unit: str, told: Callable[[], None] = lambda: None) -> Iterator[Callable[[], bool]]:
    """Within it, the first SIGINT or SIGTERM is kept until somebody asks, and the second ends all at once.

    Only the main thread gets signals; in another one nothing is kept.

    Args:
        unit: What is finished before the end, for the log: ``"step"``, ``"epoch"``.
        told: Called at the first.

    Yields:
        Whether one was kept.
    """
    kept: list[int] = []

    def keep(number: int, frame: object) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(number)
        text = "stopping: this %s is finished and a checkpoint written first; once more to end at once"
        log.info(text, unit)
        told()

    heard = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, keep) for s in (signal.SIGINT, signal.SIGTERM) if heard}
    try:
        yield lambda: bool(kept)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


BEST = "best.pt"
"""The checkpoint with the highest Dice on held-out batches."""


def highest_dice(work: Path) -> float:
    """The highest Dice of a training so far, by its log; −1 where none was measured or kept."""
    log_file = work / "log.csv"
    if not (work / BEST).exists() or not log_file.exists():
        return -1.0
    return max(
        (float(row["validation_dice"]) for row in read_log(log_file) if row["validation_dice"]), default=-1.0
    )


def run_steps(
    trainer: Trainer,
    batches: HasBatches,
    recipe: StepsRecipe,
    cache: CropCache,
    work: Path,
    *,
    validate: Callable[[], float] | None = None,
    validate_every: int = 1,
    pauses: Sequence[int] = (),
    at_pause: Callable[[int], None] = lambda step: None,
    steps_per_epoch: int = 0,
    unit: str = "slices",
) -> dict[str, Any] | None:
    """Train to the last step, from where the folder's checkpoint says; a signal to end writes one first.

    Args:
        trainer: The network.
        batches: What it sees.
        recipe, cache: What the checkpoint belongs to.
        work: Folder for ``checkpoint.pt``, ``log.csv`` and ``tensorboard/``, and where it is validated
            ``best.pt``, the checkpoint with the highest Dice.
        validate, validate_every: Dice of held-out batches, for the log, and the steps between; it is also
            asked for at the end.
        pauses: Steps, rising, after which `at_pause` is called before the next batch is made.
        at_pause: Given the pause's step; a run that goes on after a pause calls it again.
        steps_per_epoch: For the log; 0: there are no epochs.
        unit: Of what a batch holds, for the log.

    Returns:
        ``device``, ``patches_per_second`` and ``gpu_utilisation_percent``; None where nothing was left to do.

    Raises:
        TrainingError: The checkpoint belongs to another training, or the loss is no number any more.
        DiskFull, OutputUnwritable: A file cannot be written.
        KeyboardInterrupt: It was told to end.
    """
    checkpoint = Checkpoint(work / "checkpoint.pt", recipe, cache)
    checkpoint.load(trainer)
    if trainer.step >= trainer.total:
        log.info("all %d steps are done", trainer.total)
        return None
    run_log, speed, pending = RunLog(work, trainer.step), Speed(), 0
    best, best_dice = Checkpoint(work / BEST, recipe, cache), highest_dice(work)

    def left() -> Iterator[Batch]:
        for start, end in pairwise((0, *pauses, trainer.total)):
            if trainer.step >= end:
                continue
            if start:
                speed.pause(0)
                at_pause(start)
                speed.resume()
            yield from prefetch(batches, range(trainer.step, end), device=trainer.device)

    with GpuMeter(trainer.device) as meter, interruptible("step") as interrupted:
        speed.resume()
        for batch in left():
            rate = trainer.learning_rate
            trainer.train(*batch)
            pending += len(batch[0])
            step, last = trainer.step, trainer.step == trainer.total
            validating = validate is not None and (last or step % validate_every == 0)
            telling = last or validating or step % recipe.log_every == 0
            saving = last or step % recipe.checkpoint_every == 0
            if not (telling or saving or interrupted()):
                continue
            loss = trainer.mean_loss() if telling else None
            speed.pause(pending)
            pending = 0
            if loss is not None:
                used, pace = meter.since_last(), speed.since_last()
                overlap = validate() if validate is not None and validating else None
                run_log.add(
                    step,
                    epoch=step / steps_per_epoch if steps_per_epoch else None,
                    loss=loss,
                    validation_dice=overlap,
                    learning_rate=rate,
                    patches_per_second=pace,
                    gpu_utilisation=used,
                )
                words = f"{work.name}: step {step} of {trainer.total}, loss {loss:.4f}"
                if overlap is not None:
                    better = overlap > best_dice
                    words += f", validation Dice {overlap:.3f}{', the best so far' if better else ''}"
                    if better:
                        best_dice = overlap
                        best.save(trainer)
                words += f", {pace:.1f} {unit}/s" + ("" if used is None else f", GPU {used:.0f} %")
                if pace and not last:
                    words += f", about {time_in_words((trainer.total - step) * len(batch[0]) / pace)} left"
                log.info("%s", words)
            stopping = interrupted()
            if saving or stopping:
                checkpoint.save(trainer)
            if stopping:
                log.info("stopped at step %d of %d", step, trainer.total)
                raise KeyboardInterrupt
            meter.since_last()
            speed.resume()
    run_log.close()
    return {
        "device": describe_device(trainer.device),
        "patches_per_second": round(speed.mean(), 2),
        "gpu_utilisation_percent": meter.mean(),
    }
