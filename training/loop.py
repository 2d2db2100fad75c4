"""The loop around a `Stepper`: batches in, a line in the log now and then, checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from .monitor import RunLog, Speed
from .patches import CropCache, HasBatches, prefetch
from .trainer import Checkpoint, Stepper

log = logging.getLogger(__name__)


def run_steps(
    stepper: Stepper,
    batches: HasBatches,
    recipe: Any,
    cache: CropCache,
    work: Path,
) -> None:
    """Train to the last step, from where the folder's checkpoint says.

    Args:
        stepper: The network.
        batches: A function of the step's number alone, so that a run that goes on sees the same.
        recipe, cache: What the checkpoint belongs to; the recipe's ``log_every`` and ``checkpoint_every`` are
            the steps between lines and checkpoints.
        work: Folder for ``checkpoint.pt``, ``log.csv`` and ``tensorboard/``.

    Raises:
        TrainingError: The checkpoint belongs to another training, or the loss is no number any more.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    checkpoint = Checkpoint(work / "checkpoint.pt", recipe, cache)
    checkpoint.load(stepper)
    if stepper.step >= stepper.total:
        return
    run_log, speed = RunLog(work, stepper.step), Speed()
    pending = 0
    speed.resume()
    for image, label in prefetch(batches, range(stepper.step, stepper.total), device=stepper.device):
        rate = stepper.learning_rate
        stepper.train(image, label)
        pending += len(image)
        step, last = stepper.step, stepper.step == stepper.total
        if last or step % recipe.log_every == 0:
            loss = stepper.mean_loss()
            speed.pause(pending)
            pending, pace = 0, speed.since_last()
            run_log.add(step, loss=loss, learning_rate=rate, patches_per_second=pace)
            log.info(
                "%s: step %d of %d, loss %.4f, %.1f slices/s", work.name, step, stepper.total, loss, pace
            )
            speed.resume()
        if last or step % recipe.checkpoint_every == 0:
            checkpoint.save(stepper)
    run_log.close()
