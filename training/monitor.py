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
        self._truncate(step)
        self._board = self._open_board(work / "tensorboard", step)

    def _truncate(self, step: int) -> None:
        rows = read_log(self.path) if self.path.exists() else []
        lines = [",".join(COLUMNS)]
        lines += [",".join(r[c] for c in COLUMNS) for r in rows if int(r["step"]) <= step]
        write_whole(self.path, ("\n".join(lines) + "\n").encode())

    @staticmethod
    def _open_board(folder: Path, step: int) -> Any:
        try:
            from tensorboardX import SummaryWriter
        except ModuleNotFoundError:
            log.warning("no TensorBoard log: install it with pip install 'deepcac2[train]'")
            return None
        with output_errors(folder):
            return SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, step: int, **values: float | int | None) -> None:
        """Write a row; None stays empty.

        Raises:
            DiskFull, OutputUnwritable: The log cannot be written.
        """
        row = {"step": step, **values}
        with output_errors(self.path), self.path.open("a", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerow([_text(row.get(c)) for c in COLUMNS])
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
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


def _text(value: float | int | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.9g}"


class Speed:
    """Patches per second of the training itself: validation and checkpoints are not counted."""

    def __init__(self) -> None:
        self._patches = self._total_patches = 0
        self._seconds = self._total_seconds = 0.0
        self._started = time.perf_counter()

    def resume(self) -> None:
        """The clock runs from here."""
        self._started = time.perf_counter()

    def pause(self, patches: int) -> None:
        """The clock stops: `patches` were trained on since `resume`."""
        took = time.perf_counter() - self._started
        self._patches += patches
        self._seconds += took
        self._total_patches += patches
        self._total_seconds += took

    def since_last(self) -> float:
        """Patches per second since this was last called."""
        rate = self._patches / self._seconds if self._seconds else 0.0
        self._patches, self._seconds = 0, 0.0
        return rate

    def mean(self) -> float:
        """Patches per second of everything."""
        return self._total_patches / self._total_seconds if self._total_seconds else 0.0
