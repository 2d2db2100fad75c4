"""Which artery calcium lies in, and what else is as bright in the heart: facts, columns, and the case scored.

Only weights whose network names what it sees say it (`models.calcium.kinds`). They are no part of the score:
the total is that of the calcium, of whatever artery. See docs/arteries.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..imaging import labels
from ..imaging.labels import Label, Labels
from ..scoring import Rule, score_by_class
from .case import OMITTED, Case, Fact, ImageFile
from .facts import CT, SCORE
from .step import Column

_TYPE = "nifti:mod=classes:variant="
ARTERIES: Fact[Labels] = Fact(
    "arteries",
    "calcium by artery",
    image=ImageFile("arteries.nii.gz", _TYPE + "arteries", (*labels.ARTERIES, labels.NOT_SURE)),
)
"""The calcium mask, divided by artery."""
NOT_CORONARY: Fact[Labels] = Fact(
    "not_coronary",
    "bright and not counted",
    image=ImageFile("not_coronary.nii.gz", _TYPE + "not-coronary", labels.NOT_CORONARY),
)
"""What is as bright as calcium where that is looked for, and not in the mask, by what it is taken for."""
BY_CLASS: Fact[dict[str, Any]] = Fact("by_class", "score by artery and kind", "arteries", OMITTED)
"""``arteries`` and ``not_coronary``: by class what `scoring.ClassScore` has."""


def divided(case: Case, *, rule: str | Rule) -> Case:
    """The scored case with what each artery has of its score, and each kind of what was not counted.

    Each kind has the score that it would have if it were coronary, which is no measure of disease but says
    how much was left out. A case without names stays as it is.
    """
    if ARTERIES not in case:
        return case
    found = {}
    for fact in (ARTERIES, NOT_CORONARY):
        by_class = score_by_class(
            case[CT], case[fact], rule=rule, slice_thickness=case.series.slice_thickness, kvp=case.series.kvp
        )
        found[fact.name] = {name: _rounded(asdict(part)) for name, part in by_class.items()}
    return case.add(BY_CLASS, found)


def artery_scores(case: Case) -> dict[str, float] | None:
    """Score by artery, by names of `scoring.grades.ARTERIES`; None where some of it has no artery."""
    found = case.get(BY_CLASS)
    if found is None or found["arteries"][labels.NOT_SURE.name]["score"] > 0:
        return None
    return {label.name: found["arteries"][label.name]["score"] for label in labels.ARTERIES}


def coloured(case: Case) -> Labels | None:
    """What counted by artery, and what did not by kind, in one array of the classes that occur; or None."""
    if ARTERIES not in case:
        return None
    array = np.zeros(case[CT].hu.shape, dtype=np.uint8)
    classes = []
    # Arteries have the higher values: where a projection shows one voxel of several, it shows what counts.
    for fact, above in ((NOT_CORONARY, 0), (ARTERIES, 100)):
        what = case[fact]
        used = np.flatnonzero(what.array.any(axis=(1, 2)))
        values = what.array[used] * case[SCORE].counted[used] if fact is ARTERIES else what.array[used]
        array[used] = np.where(values > 0, values + np.uint8(above), array[used])
        there = set(np.unique(values).tolist())
        said = "" if fact is ARTERIES else ", not counted"
        classes += [
            replace(label, name=label.name + said, value=label.value + above)
            for label in what.classes
            if label.value in there
        ]
    return Labels(array=array, classes=tuple(classes)) if classes else None


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    centre = values["centroid_lps"]
    whole = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
    return {**whole, "centroid_lps": None if centre is None else [round(c, 2) for c in centre]}


def _of(fact: str, name: str) -> Callable[[Case], Any]:
    def of(case: Case) -> Any:
        found = case.get(BY_CLASS)
        return None if found is None else found[fact][name]["score"]

    return of


def _column(fact: Fact[Labels], label: Label, meaning: str) -> Column:
    name = "unsure" if label is labels.NOT_SURE else label.name
    return Column(
        name=f"score_{name.replace(' ', '_').lower()}",
        kind=float,
        meaning=meaning,
        label=f"Score, {label.name}",
        section=BY_CLASS.section,
        of=_of(fact.name, label.name),
    )


def _columns() -> Iterator[Column]:
    for label in labels.ARTERIES:
        yield _column(ARTERIES, label, f"share of the Agatston score in the {label.name}")
    yield _column(ARTERIES, labels.NOT_SURE, "share of the Agatston score whose artery is not known")
    for label in labels.NOT_CORONARY:
        meaning = f"Agatston score that what was left out as {label.name} would have; no part of the score"
        yield _column(NOT_CORONARY, label, meaning)


COLUMNS = tuple(_columns())
"""Empty where the weights name nothing."""
