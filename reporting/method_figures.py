"""Figures of the comparison of methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..evaluation.methods import MethodResult
from .plots import Drawing, Points, all_drawn, scores_figure


def method_figures(results: Sequence[MethodResult]) -> dict[str, Drawing]:
    """A scatter for each method that scores, by name."""
    made: dict[str, Callable[[], Drawing]] = {}
    for result in results:
        cases = [c for c in result.scored() if c.score is not None]
        if not cases:
            continue
        points = Points(
            reference=np.array([c.true_score for c in cases]), predicted=np.array([c.score for c in cases])
        )
        made[f"scores-{Path(result.method).stem}"] = partial(
            scores_figure, [points], reference="true score", predicted=result.method
        )
    return all_drawn(made)
