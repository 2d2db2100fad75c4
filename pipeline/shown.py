"""What a picture shows of a case: each step says it of its own result."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..imaging.labels import Labels
from .case import Case
from .step import steps

BoolArray = npt.NDArray[np.bool_]

RESEARCH_USE = "Research use only. Not a medical device."
"""Stands in every picture and structured report."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a picture shows of a step's result.

    Attributes:
        precedence: Of several results, that of the highest is shown.
        title, line: The result; further numbers.
        outline: The heart, or the box around it; what it is: ``outline_name``.
        marked: What counted; what it is: ``marked_name``.
        weight: Per slice z how much counts there.
    """

    precedence: int
    title: str
    line: str
    outline: Labels
    outline_name: str
    marked: Labels
    marked_name: str
    weight: dict[int, float]


def shown(case: Case) -> Shown | None:
    """What the picture of a case shows, with what other steps remark; None where there is no result.

    See `step.Step.shows` and `step.Step.remarks`.
    """
    found = [(step, what) for step in steps().values() if step.shows and (what := step.shows(case))]
    if not found:
        return None
    shower, what = max(found, key=lambda one: one[1].precedence)
    said = [s.remarks(case) for s in steps().values() if s.remarks and s is not shower]
    return replace(what, line=" · ".join(filter(None, (what.line, *said))))


def by_slice(mask: BoolArray) -> dict[int, float]:
    """Voxels of a mask in each slice z that has any."""
    return {z: float(n) for z, n in enumerate(mask.sum(axis=(1, 2))) if n}
