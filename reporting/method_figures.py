"""Figures of the comparison of methods, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..evaluation.methods import MethodResult
from ..system.atomic import write_whole
from .plots import Points, scores_figure


def write_method_figures(results: Sequence[MethodResult], folder: Path) -> list[Path]:
    """A scatter and a confusion matrix for each method that scores, as PNG."""
    written = []
    for result in results:
        cases = [c for c in result.scored() if c.score is not None]
        if not cases:
            continue
        points = Points(
            reference=np.array([c.true_score for c in cases]), predicted=np.array([c.score for c in cases])
        )
        path = folder / f"scores-{Path(result.method).stem}.png"
        write_whole(path, scores_figure([points], reference="true score", predicted=result.method))
        written.append(path)
    return written
