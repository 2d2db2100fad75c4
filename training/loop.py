"""The loop around a `Stepper`: batches in, a line in the log now and then, checkpoints."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .monitor import RunLog, Speed
from .patches import CropCache, HasBatches, prefetch
from .trainer import Checkpoint, Stepper

log = logging.getLogger(__name__)


class Interruptible:
    """Within it, the first SIGINT or SIGTERM is kept until somebody asks, and the second ends all at once.

    Only the main thread gets signals; in another one nothing is kept.

    Args:
        told: Called at the first.

    Attributes:
        interrupted: Whether one was kept.
    """

    def __init__(self, told: Callable[[], None]) -> None:
        self.interrupted = False
        self._told = told
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._keep) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _keep(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self._told()


def interruptible_steps() -> Interruptible:
    """For a training of steps that calls `leave_where_told` after each."""
    text = "stopping: this step is finished and a checkpoint written first; once more to end at once"
    return Interruptible(lambda: log.info(text))


def leave_where_told(signals: Interruptible, checkpoint: Checkpoint, stepper: Stepper) -> None:
    """Where a signal was kept, write the checkpoint of a step that is done, and leave.

    Raises:
        KeyboardInterrupt: A signal was kept.
    """
    if signals.interrupted:
        checkpoint.save(stepper)
        log.info("stopped at step %d of %d", stepper.step, stepper.total)
        raise KeyboardInterrupt


def run_steps(
    stepper: Stepper,
    batches: HasBatches,
    recipe: Any,
    cache: CropCache,
    work: Path,
) -> None:
    """Train to the last step, from where the folder's checkpoint says; a signal to end writes one first.

    Args:
        stepper: The network.
        batches: A function of the step's number alone, so that a run that goes on sees the same.
        recipe, cache: What the checkpoint belongs to; the recipe's ``log_every`` and ``checkpoint_every`` are
            the steps between lines and checkpoints.
        work: Folder for ``checkpoint.pt``, ``log.csv`` and ``tensorboard/``.

    Raises:
        TrainingError: The checkpoint belongs to another training, or the loss is no number any more.
        DiskFull, OutputUnwritable: A file cannot be written.
        KeyboardInterrupt: It was told to end.
    """
    checkpoint = Checkpoint(work / "checkpoint.pt", recipe, cache)
    checkpoint.load(stepper)
    if stepper.step >= stepper.total:
        return
    run_log, speed = RunLog(work, stepper.step), Speed()
    pending = 0
    speed.resume()
    with interruptible_steps() as signals:
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
            leave_where_told(signals, checkpoint, stepper)
    run_log.close()
