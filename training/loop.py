"""The loop of every training but nnU-Net's: batches in, lines in the log now and then, checkpoints."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..pipeline.chain import describe_device
from ..system.gpu import GpuMeter
from .crops import CropCache
from .monitor import RunLog, Speed
from .prefetch import Batch, HasBatches, prefetch
from .trainer import Checkpoint, StepsRecipe, Trainer

log = logging.getLogger(__name__)


class Interruptible:
    """Within it, the first SIGINT or SIGTERM is kept until somebody asks, and the second ends all at once.

    Only the main thread gets signals; in another one nothing is kept.

    Args:
        unit: What is finished before the end, for the log: ``"step"``, ``"epoch"``.
        told: Called at the first.

    Attributes:
        interrupted: Whether one was kept.
    """

    def __init__(self, unit: str, told: Callable[[], None] = lambda: None) -> None:
        self.interrupted = False
        self._unit = unit
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
        log.info(
            "stopping: this %s is finished and a checkpoint written first; once more to end at once",
            self._unit,
        )
        self._told()


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
        work: Folder for ``checkpoint.pt``, ``log.csv`` and ``tensorboard/``.
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
        return None
    run_log, speed, pending = RunLog(work, trainer.step), Speed(), 0

    def left() -> Iterator[Batch]:
        for start, end in pairwise((0, *pauses, trainer.total)):
            if trainer.step >= end:
                continue
            if start:
                speed.pause(0)
                at_pause(start)
                speed.resume()
            yield from prefetch(batches, range(trainer.step, end), device=trainer.device)

    with GpuMeter(trainer.device) as meter, Interruptible("step") as signals:
        speed.resume()
        for batch in left():
            rate = trainer.learning_rate
            trainer.train(*batch)
            pending += len(batch[0])
            step, last = trainer.step, trainer.step == trainer.total
            validating = validate is not None and (last or step % validate_every == 0)
            telling = last or validating or step % recipe.log_every == 0
            saving = last or step % recipe.checkpoint_every == 0
            if not (telling or saving or signals.interrupted):
                continue
            loss = trainer.mean_loss() if telling else None
            speed.pause(pending)
            pending = 0
            if loss is not None:
                used, pace = meter.since_last(), speed.since_last()
                dice = validate() if validate is not None and validating else None
                run_log.add(
                    step,
                    epoch=step / steps_per_epoch if steps_per_epoch else None,
                    loss=loss,
                    validation_dice=dice,
                    learning_rate=rate,
                    patches_per_second=pace,
                    gpu_utilisation=used,
                )
                log.info(
                    "%s: step %d of %d, loss %.4f%s, %.1f %s/s%s",
                    work.name,
                    step,
                    trainer.total,
                    loss,
                    "" if dice is None else f", validation Dice {dice:.3f}",
                    pace,
                    unit,
                    "" if used is None else f", GPU {used:.0f} %",
                )
            stopping = signals.interrupted
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
