"""What a training says about itself: CSV and TensorBoard logs, patches per second."""

from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

from ..system.atomic import output_errors, write_whole

log = logging.getLogger(__name__)

COLUMNS = (
    "step",
    "epoch",
    "loss",
    "validation_dice",
    "learning_rate",
    "patches_per_second",
    "gpu_utilisation",
)
"""Columns of ``log.csv``. The loss is the mean since the row before; empty: not measured at this step."""


class RunLog:
    """``log.csv`` and, where tensorboardX is installed, TensorBoard events in ``tensorboard/``.

    A run that goes on at `step` first takes back whatever was logged after it, so that no step is there
    twice.

    Args:
        work: The run's folder.
        step: The step that the run goes on from, 0 for a new one.
    """

    def __init__(self, work: Path, step: int) -> None:
        self.path = work / "log.csv"
        rows = read_log(self.path) if self.path.exists() else []
        lines = [",".join(COLUMNS)]
        lines += [",".join(r[c] for c in COLUMNS) for r in rows if int(r["step"]) <= step]
        write_whole(self.path, ("\n".join(lines) + "\n").encode())
        self._board: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            log.warning("no TensorBoard log: install it with '.venv/bin/pip install tensorboardX'")
        else:
            with output_errors(work):
                self._board = SummaryWriter(str(work / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, **values: float | None) -> None:
        """Write a row; None stays empty.

        Raises:
            DiskFull, OutputUnwritable: The log cannot be written.
        """
        known = {name: value for name, value in values.items() if value is not None}
        cells = [str(step), *(f"{known[c]:.9g}" if c in known else "" for c in COLUMNS[1:])]
        with output_errors(self.path), self.path.open("a") as handle:
            handle.write(",".join(cells) + "\n")
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what TensorBoard still holds back."""
        if self._board is not None:
            self._board.close()


def read_log(path: Path) -> list[dict[str, str]]:
    """The whole rows of a ``log.csv``; a last line cut off by a kill is left out."""
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return [r for r in rows if None not in r.values() and (r.get("step") or "").isdigit()]


class Speed:
    """Patches per second of the training itself: validation and checkpoints are not counted."""

    def __init__(self) -> None:
        self._marked, self._total = (0, 0.0), (0, 0.0)  # patches and seconds
        self._started = time.perf_counter()

    def resume(self) -> None:
        """The clock runs from here."""
        self._started = time.perf_counter()

    def pause(self, patches: int) -> None:
        """The clock stops: `patches` were trained on since `resume`."""
        took = time.perf_counter() - self._started
        self._total = self._total[0] + patches, self._total[1] + took

    def since_last(self) -> float:
        """Patches per second since this was last called."""
        (before, then), self._marked = self._marked, self._total
        seconds = self._total[1] - then
        return (self._total[0] - before) / seconds if seconds else 0.0

    def mean(self) -> float:
        """Patches per second of everything."""
        patches, seconds = self._total
        return patches / seconds if seconds else 0.0
