"""What a score means: its grades and its percentile, as columns, in the details, and for the outputs.

See docs/grades.md. The step that scores adds them; they are no step, for there is nothing about them that a
workflow could choose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..scoring.grades import arterial_age, cac_drs, chest_ct_grade, score_class
from ..scoring.percentiles import HOFF, Percentile
from .arteries import artery_scores
from .case import OMITTED, Case, Fact
from .facts import SCORE
from .step import Column

GRADES: Fact[dict[str, Any]] = Fact("grades", "grades of the score", "grades", OMITTED)
"""``cac_drs``, ``chest_ct_grade``, ``score_class`` and ``arterial_age`` (years) as `scoring.grades` has them;
``percentile``: `Percentile` as [reached, below], or null, and then ``no_percentile`` says why;
``percentile_population``: whose percentile."""


def graded(case: Case) -> Case:
    """The case with the grades of its score.

    Raises:
        TypeError: It has no score.
    """
    total, series = case[SCORE].total, case.series
    age, sex = series.patient_age, series.patient_sex
    found = HOFF.percentile(total, age, sex)
    grades: dict[str, Any] = {
        "cac_drs": str(cac_drs(total, artery_scores(case))),
        "chest_ct_grade": chest_ct_grade(total),
        "score_class": score_class(total),
        "arterial_age": round(arterial_age(total), 1),
        "percentile": None if found is None else [found.reached, found.below],
    }
    if found is None:
        grades["no_percentile"] = series.no_age or HOFF.missing(age, sex)
    else:
        grades["percentile_population"] = found.population
    return case.add(GRADES, grades)


def percentile_of(case: Case) -> Percentile | None:
    """The percentile of a case; None where it has none."""
    grades = case.get(GRADES, {})
    if not grades.get("percentile"):
        return None
    reached, below = grades["percentile"]
    return Percentile(reached=reached, below=below, population=grades["percentile_population"])


def in_words(case: Case) -> str:
    """The grades in a line of a few words; "" where the case has none."""
    grades = case.get(GRADES)
    if grades is None:
        return ""
    found = percentile_of(case)
    said = [grades["cac_drs"], f"{grades['chest_ct_grade']} (chest CT)"]
    return " · ".join([*said, f"percentile {found}"] if found else said)


def _of(name: str, absent: Any = "") -> Callable[[Case], Any]:
    return lambda case: case.get(GRADES, {}).get(name, absent)


COLUMNS = (
    Column(
        name="cac_drs",
        kind=str,
        meaning="category of CAC-DRS, A0 to A3: whole score 0; 1 to 99; 100 to 299; from 300",
        label="CAC-DRS",
        section=GRADES.section,
        of=_of("cac_drs"),
    ),
    Column(
        name="chest_ct_grade",
        kind=str,
        meaning="grade for chest CT without gating: none, whole score 0; mild, 1 to 100; moderate, 101 to "
        "400; severe, above",
        label="Chest CT grade",
        section=GRADES.section,
        of=_of("chest_ct_grade"),
    ),
    Column(
        name="score_class",
        kind=str,
        meaning="finer class of the whole score: 0, 1 to 9, 10 to 99, 100 to 299, 300 to 999, >=1000",
        label="Class of the score",
        section=GRADES.section,
        of=_of("score_class"),
    ),
    Column(
        name="arterial_age",
        kind=float,
        meaning="age at which the risk is that of the score, years",
        unit="years",
        section=GRADES.section,
        of=_of("arterial_age", None),
    ),
    Column(
        name="percentile",
        kind=str,
        meaning="between which percentiles of people without symptoms of the same age and sex the score "
        "lies: <25, 25-50, 50-75, 75-90, >90, or wider where several are 0; empty where age or sex is not "
        "known",
        section=GRADES.section,
        of=lambda case: str(percentile_of(case) or ""),
    ),
)
"""See docs/grades.md."""
