"""How sure a network is of what it counted, and what it nearly counted: facts, columns, and the case scored.

No part of the score: what is counted hangs on the least certainty of a lesion (`pipeline.operating`), and
here is told how far from it each lesion was. See docs/doubt.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..imaging import labels
from ..imaging.labels import Labels
from ..scoring import Lesion, score
from .case import OMITTED, Case, Fact, ImageFile
from .facts import CALCIUM, CALCIUM_RUN, CT, DOMAIN, HEART_SOURCE, SCORE
from .step import Column

CERTAINTY: Fact[Labels] = Fact(
    "certainty",
    "how sure the network is of calcium",
    image=ImageFile("certainty.nii.gz", "nifti:mod=classes:variant=certainty", labels.SURENESS),
)
"""Of voxels that can count and that the network takes for calcium, those of unsure lesions too."""
DOUBT: Fact[dict[str, Any]] = Fact("doubt", "how sure the score is", "doubt", OMITTED)
"""``possible_score``: what the lesions would add that the network takes for calcium and is nowhere sure
enough of; ``possible``: these lesions, highest score first, at most `MOST_POSSIBLE`. ``interval``: the
`Interval` with the ``score`` that it gives, [from, to], or null, and then ``no_interval`` says why."""

MOST_POSSIBLE = 50
"""Lesions that are told one by one; chosen: a reader looks at no more."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Between which scores the true one lies as often as `level` says, measured for one set of weights.

    The logarithm of (true score + offset) / (score + offset) was between `lowest` and `highest` in that share
    of the scans that it was measured on; of scans unlike these it says nothing.

    Attributes:
        level: Share of the scans, above 0 and below 1.
        rule: Of the scores.
        offset: Points, above 0, added to both scores: by about as much do small ones go wrong.
        lowest, highest: Natural logarithms of ratios.
        measured_on: Which scans, in words.
    """

    level: float
    rule: str
    offset: float
    lowest: float
    highest: float
    measured_on: str

    def __post_init__(self) -> None:
        fits = 0 < self.level < 1 and 0 < self.offset < math.inf and abs(self.lowest) < math.inf
        if not (fits and self.lowest <= self.highest < math.inf):
            raise ValueError(f"no interval of scores: {asdict(self)}")

    def around(self, total: float) -> tuple[float, float]:
        """The lowest and the highest score that the true one may be, of a score; never below 0."""
        shifted = total + self.offset
        low, high = (shifted * math.exp(r) - self.offset for r in (self.lowest, self.highest))
        return max(0.0, low), max(0.0, high)


@dataclass(frozen=True, kw_only=True)
class StatedDoubt:
    """What a set of weights states of it, see `weights.numbers`.

    Attributes:
        interval: None: nobody has measured one.
    """

    interval: Interval | None = None


def certainty_of(case: Case) -> npt.NDArray[np.uint8] | None:
    """Percent, uint8 (z, y, x), as `scoring.score` takes it; None where the network did not say."""
    return case[CERTAINTY].array if CERTAINTY in case else None


def doubted(case: Case, *, rule: str) -> Case:
    """The scored case with what was nearly counted; as it is where the network did not say how sure it is."""
    if CERTAINTY not in case:
        return case
    certain, counted = case[CERTAINTY].array, case[CALCIUM].array
    nearly_counted = np.zeros(certain.shape, dtype=bool)
    planes = np.flatnonzero(certain.any(axis=(1, 2)))  # most have none
    nearly_counted[planes] = (certain[planes] > 0) & (counted[planes] == 0)
    nearly = score(
        case[CT],
        nearly_counted,
        rule=rule,
        slice_thickness=case.series.slice_thickness,
        kvp=case.series.kvp,
        certainty=certainty_of(case),
    )
    found = {
        "possible_score": round(nearly.total, 4),
        "possible": [_told(lesion) for lesion in nearly.lesions[:MOST_POSSIBLE]],
        **_interval(case, rule),
    }
    return case.add(DOUBT, found)


def _interval(case: Case, rule: str) -> dict[str, Any]:
    """The interval of the case's score, or why there is none."""
    plain = case.get(CALCIUM_RUN, {}).get("interval")
    stated = None if plain is None else Interval(**plain)
    why = ""
    if stated is None:
        why = "none was measured for these weights as they are used here"
    elif rule != stated.rule:
        why = f"it was measured for the rule {stated.rule}"
    elif outside := [t for t, who in case.get(DOMAIN, {}).get("outside", {}).items() if "calcium" in who]:
        why = f"the scan is unlike those that the calcium network was trained on: {', '.join(outside)}"
    elif HEART_SOURCE in case:
        why = "it was measured with hearts that the network finds"
    if stated is None or why:
        return {"interval": None, "no_interval": why}
    low, high = stated.around(case[SCORE].total)
    return {"interval": {**asdict(stated), "score": [round(low, 1), round(high, 1)]}}


def _told(lesion: Lesion) -> dict[str, Any]:
    return {
        "score": round(lesion.score, 4),
        "volume_mm3": round(lesion.volume_mm3, 4),
        "max_hu": lesion.max_hu,
        "certainty": lesion.certainty,
        "slice_indices": list(lesion.slice_indices),
        "slice_numbers": list(lesion.slice_numbers),
        "centroid_lps": [round(x, 2) for x in lesion.centroid_lps],
    }


def _end(i: int) -> Callable[[Case], float | None]:
    def of(case: Case) -> float | None:
        interval = case.get(DOUBT, {}).get("interval")
        return None if interval is None else float(interval["score"][i])

    return of


COLUMNS = (
    *(
        Column(
            name=name,
            kind=float,
            meaning=f"{end} end of the interval of the score, as it was measured on simulated scans; says "
            "nothing of the errors that only real scans have",
            label=label,
            section=DOUBT.section,
            of=_end(i),
        )
        for i, (name, end, label) in enumerate(
            (("score_low", "lower", "Score, from"), ("score_high", "upper", "Score, to"))
        )
    ),
    Column(
        name="possible_score",
        kind=float,
        meaning="Agatston score of what the network takes for calcium but is not sure enough of to count; no "
        "part of the score",
        label="Possible score",
        section=DOUBT.section,
        of=lambda case: case.get(DOUBT, {}).get("possible_score"),
    ),
)
"""Empty where the method does not say how sure it is."""
