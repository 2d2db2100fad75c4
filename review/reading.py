"""A reading: what a case is after the decisions of its reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..scoring import ClassScore, score_by_class
from . import values
from .case import ReadCase
from .journal import MOST_RUNS, Entry
from .values import OF_CODE, Value, value_of

Runs = Sequence[tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a reader says, before it is an entry of the journal.

    Attributes:
        value: What it is.
        piece: Number of a piece; 0: none, then what is painted.
        index: Index of a slice, 0 at the lowest.
        runs: (row, first column, how many) in it, as it is shown whole.
    """

    value: Value
    piece: int = 0
    index: int = -1
    runs: tuple[tuple[int, int, int], ...] = ()

    def entry(self, by: str) -> dict[str, Any]:
        """What the journal keeps of it, but for what was before and the score after."""
        if self.piece:
            return {"by": by, "do": "set", "piece": self.piece, "to": self.value.name}
        return {"by": by, "do": "paint", "index": self.index, "runs": self.runs, "to": self.value.name}


def decision_of(entry: Entry) -> Decision:
    """The decision of an entry.

    Raises:
        InputError: It names no value.
    """
    return Decision(value=value_of(entry.to), piece=entry.piece, index=entry.index, runs=entry.runs)


def begun(case: ReadCase) -> npt.NDArray[np.uint8]:
    """The values that a reading begins with: those of the automatic result."""
    return case.base.copy()


def apply(case: ReadCase, array: npt.NDArray[np.uint8], decision: Decision) -> dict[str, int]:
    """Put a decision into an array of values.

    Returns:
        Voxels by the name of what they were.

    Raises:
        InputError: There is no such piece or slice, or nothing there is bright enough to count.
    """
    piece = decision.piece
    found = case.voxels(piece) if piece else _painted(case, decision.index, decision.runs)
    flat = array.reshape(-1)
    was, count = np.unique(flat[found], return_counts=True)
    before = {OF_CODE[int(v)].name: int(n) for v, n in zip(was, count, strict=True)}
    flat[found] = decision.value.value
    return before


def replay(case: ReadCase, entries: Iterable[Entry]) -> npt.NDArray[np.uint8]:
    """The values after decisions that hold (`Journal.holding`).

    Raises:
        InputError: They are none of this case.
    """
    array = begun(case)
    for entry in entries:
        apply(case, array, decision_of(entry))
    return array


def _painted(case: ReadCase, index: int, runs: Runs) -> npt.NDArray[np.int64]:
    """Flat indices of the voxels of a stroke that are bright enough to count."""
    if len(runs) > MOST_RUNS:
        raise InputError(f"a stroke has {MOST_RUNS} rows at most; paint in several")
    z0, y0, x0 = case.corner
    seen = case.shown(case.volume.hu)
    plane = index - z0
    if not 0 <= plane < seen.array.shape[0]:
        raise InputError(f"slice {index + 1} is not among those shown")
    mask = np.zeros(seen.array.shape, dtype=np.bool_)
    rows, columns = seen.array.shape[1:]
    for row, first, count in runs:
        y, x = row - y0, first - x0
        if 0 <= y < rows and count > 0:
            mask[plane, y, max(0, x) : max(0, min(columns, x + count))] = True
    mask[plane] &= seen.array[plane] >= case.threshold
    found = np.flatnonzero(np.ascontiguousarray(seen.undo(mask)))
    if not len(found):
        raise InputError(f"nothing there reaches {case.threshold} HU")
    return found


def by_name(case: ReadCase, array: npt.NDArray[np.uint8]) -> dict[str, ClassScore]:
    """The score by artery, and what was left out by what it is with the score that it would have."""
    how: dict[str, Any] = {"rule": case.rule, "slice_thickness": case.slice_thickness, "kvp": case.kvp}
    parts = (values.arteries(array), values.others(array))
    return {name: s for labels in parts for name, s in score_by_class(case.volume, labels, **how).items()}


def piece_values(case: ReadCase, array: npt.NDArray[np.uint8]) -> list[str]:
    """The value of each piece, in order; where it has several, the one of most of its voxels that count."""
    number = case.number.reshape(-1)
    inside = np.flatnonzero(number)
    pairs = number[inside].astype(np.int64) * 256 + array.reshape(-1)[inside]
    found, count = np.unique(pairs, return_counts=True)
    best: dict[int, tuple[int, int]] = {}
    for pair, n in zip(found.tolist(), count.tolist(), strict=True):
        piece, value = divmod(pair, 256)
        best[piece] = max(best.get(piece, (0, 0)), (n, value))
    return [OF_CODE[best[piece.number][1]].name if piece.number in best else "" for piece in case.pieces]
