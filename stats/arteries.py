"""Scores by artery, of scans whose weights name it: where calcium is, how much, and what was not counted.

Which columns these are, says docs/arteries.md; tables of weights without names have them empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..scoring.grades import ARTERIES, SHARES, UNSURE, cac_drs
from .scans import Scans
from .tables import Flow, numbers

NOT_COUNTED = {
    "score_aorta": "aorta",
    "score_aortic_valve": "aortic valve",
    "score_mitral_annulus": "mitral annulus",
    "score_pericardium": "pericardium",
    "score_other": "other",
    "score_perhaps_coronary": "perhaps coronary",
}
"""Columns with the score that what is no part of it would have, and what they are called."""
MOST_ARTERIES = len(ARTERIES)
_DIGITS = 6
"""To which a score is rounded before it counts as more than 0, as `scoring.grades` does."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Calcium in one place.

    Attributes:
        name: Of the artery, or of what it was taken for.
        scans: Scans of which it is known whether they have any there.
        scores: float (n,): the score there, above 0, of those that have.
    """

    name: str
    scans: int
    scores: npt.NDArray[np.float64]

    @property
    def quartiles(self) -> tuple[float, float, float] | None:
        """First quartile, median and third quartile of `scores`; None of none."""
        if not len(self.scores):
            return None
        low, middle, high = np.quantile(self.scores, [0.25, 0.5, 0.75])
        return float(low), float(middle), float(high)


@dataclass(frozen=True, kw_only=True)
class ByArtery:
    """A cohort's scores by artery.

    Attributes:
        sites: The four arteries, then calcium of an artery that is not sure.
        not_counted: What is no part of the score; those whose column the table has.
        with_calcium: int (5,): scans with calcium in 0 to 4 arteries, of those with all their calcium named.
        unknown: Scans with calcium whose artery is not sure.
        categories: int (4, 6): scans by CAC-DRS A (0 to 3) and N: none, 1 to 4, not known. A0 has none.
        flow: Scans used and left out.
    """

    sites: tuple[Site, ...]
    not_counted: tuple[Site, ...]
    with_calcium: npt.NDArray[np.int64]
    unknown: int
    categories: npt.NDArray[np.int64]
    flow: Flow


def by_artery(scans: Scans) -> ByArtery | None:
    """Scores by artery; None where the table has no such columns, or they are empty throughout.

    Args:
        scans: Of `scored`.
    """
    frame = scans.frame
    if not set(SHARES) <= set(frame.columns):
        return None
    named = (frame[[*SHARES]].apply(lambda column: column.str.strip()) != "").any(axis=1)
    if not named.any():
        return None
    flow = Flow("scored scans", len(frame))
    frame = flow.keep(frame, named, "the weights name no artery")
    for column in SHARES:
        frame = numbers(frame, column, flow, minimum=0)
    scores = frame[[*SHARES]].round(_DIGITS)
    there = scores[[c for c in SHARES if c != UNSURE]] > 0
    unknown = scores[UNSURE] > 0
    arteries = there.sum(axis=1).to_numpy()
    scored, place = np.unique(frame["agatston_score"].to_numpy(dtype=float), return_inverse=True)
    grade = np.array([cac_drs(score).a for score in scored.tolist()], dtype=np.int64)[place]
    known = (arteries > 0) & ~unknown.to_numpy()
    categories = np.zeros((4, MOST_ARTERIES + 2), dtype=np.int64)
    np.add.at(categories, (grade, np.where(grade == 0, 0, np.where(known, arteries, -1))), 1)
    others = {name: _finite(frame[column]) for column, name in NOT_COUNTED.items() if column in frame}
    return ByArtery(
        sites=tuple(_site(name, scores[column].to_numpy(dtype=float)) for column, name in SHARES.items()),
        not_counted=tuple(_site(name, values) for name, values in others.items()),
        with_calcium=np.bincount(arteries[~unknown], minlength=MOST_ARTERIES + 1),
        unknown=int(unknown.sum()),
        categories=categories,
        flow=flow,
    )


def _finite(column: pd.Series[str]) -> npt.NDArray[np.float64]:
    """The finite numbers in a column of text."""
    values: npt.NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
    return np.asarray(values[np.isfinite(values)])


def _site(name: str, scores: npt.NDArray[np.float64]) -> Site:
    return Site(name=name, scans=len(scores), scores=scores[scores.round(_DIGITS) > 0])
