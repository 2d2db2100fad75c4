"""Percentile of an Agatston score among people of the same age and sex: between two values of a table.

Two tables: Hoff et al. 2001 [1], 35,246 people without symptoms, by electron beam CT; and McClelland et al.
2006 [2], MESA, people without cardiovascular disease, by electron beam or gated CT. Both are taken from
transcriptions of others. Neither was measured on chest CT without gating.

[1] doi:10.1016/S0002-9149(01)01548-X  [2] doi:10.1161/CIRCULATIONAHA.105.580696
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from .grades import whole_score

PERCENTILES = (25, 50, 75, 90)
"""Those that the tables give."""

LEAST_AGE, GREATEST_AGE = 30, 85
"""Years, both included: younger and older people have no percentile."""

Row = tuple[int, int, int, int]
"""Scores at the 25th, 50th, 75th and 90th percentile."""


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """Between which percentiles of a table a score lies.

    Attributes:
        reached: The highest percentile whose score is reached; None: not even the lowest.
        below: The lowest percentile whose score is not reached; None: all are.
        population: Whose percentiles, in words.
    """

    reached: int | None
    below: int | None
    population: str

    def __str__(self) -> str:
        if self.reached is None:
            return f"<{self.below}"
        return f">{self.reached}" if self.below is None else f"{self.reached}-{self.below}"


@dataclass(frozen=True, kw_only=True)
class Population:
    """A table of percentiles.

    Attributes:
        name: Whose percentiles, in words.
        ages: Least and greatest age, completed years, both included.
        at: The ages at which the rows of the table hold, ascending: the middles of its bands.
        rows: By what must be known beside the age: sex, or ethnicity and sex.
    """

    name: str
    ages: tuple[int, int]
    at: tuple[int, ...]
    rows: Mapping[tuple[str, ...], tuple[Row, ...]] = field(repr=False)

    def missing(self, age: int | None, *group: str) -> str:
        """Why there is no percentile, in words; "": there is one."""
        if age is None:
            return "the age is not known"
        if group not in self.rows:
            return f"{self.name} has no {' '.join(filter(None, group)) or 'one of unknown sex'}"
        low, high = self.ages
        return "" if low <= age <= high else f"{self.name} is used for ages of {low} to {high}, not {age}"

    def limits(self, age: int, *group: str) -> Row:
        """The scores at the four percentiles, between two rows interpolated over age, halves rounded up.

        Before the first of `at` and after the last, their rows hold.
        """
        rows = self.rows[group]
        if age <= self.at[0]:
            return rows[0]
        for (before, low), (after, high) in pairwise(zip(self.at, rows, strict=True)):
            if age <= after:
                share = (age - before) / (after - before)
                values = (
                    math.floor(round(a + share * (b - a), 6) + 0.5) for a, b in zip(low, high, strict=True)
                )
                first, second, third, fourth = values
                return first, second, third, fourth
        return rows[-1]

    def percentile(self, total: float, age: int | None, *group: str) -> Percentile | None:
        """The percentile of the whole score (`grades.whole_score`); None where something is `missing`.

        A score reaches a percentile where it is not below the table's score there. A score of 0 reaches none,
        though the table may have 0 there as well: nobody has less.
        """
        score = whole_score(total)
        if age is None or self.missing(age, *group):
            return None
        limits = dict(zip(PERCENTILES, self.limits(age, *group), strict=True))
        return Percentile(
            reached=max((p for p, limit in limits.items() if score > 0 and limit <= score), default=None),
            below=min((p for p, limit in limits.items() if limit > score), default=None),
            population=self.name,
        )


HOFF = Population(
    name="Hoff 2001, by age and sex",
    ages=(LEAST_AGE, GREATEST_AGE),
    at=(37, 42, 47, 52, 57, 62, 67, 72, 77),
    rows={
        ("M",): (
            (0, 1, 3, 14),
            (0, 1, 9, 59),
            (0, 3, 36, 154),
            (1, 15, 103, 332),
            (4, 48, 215, 554),
            (13, 113, 410, 994),
            (32, 180, 566, 1299),
            (64, 310, 892, 1774),
            (166, 473, 1071, 1982),
        ),
        ("F",): (
            (0, 0, 1, 3),
            (0, 0, 1, 4),
            (0, 0, 2, 22),
            (0, 0, 5, 55),
            (0, 1, 23, 121),
            (0, 3, 57, 193),
            (1, 24, 145, 410),
            (3, 52, 210, 631),
            (9, 75, 241, 709),
        ),
    },
)
"""By sex (``M``, ``F``), of bands of five completed years, taken at their middle. The bands at the ends are
open (below 40, above 74): they are taken at the middle of the five years beside the next one, 37 and 77."""

MESA = Population(
    name="McClelland 2006 (MESA), by age, sex and ethnicity",
    ages=(45, 84),
    at=(50, 60, 70, 80),
    rows={
        ("white", "F"): ((0, 0, 0, 8), (0, 0, 16, 102), (0, 13, 119, 391), (20, 106, 370, 921)),
        ("white", "M"): ((0, 0, 22, 110), (0, 28, 155, 452), (21, 145, 540, 1345), (103, 385, 1200, 2933)),
        ("chinese", "F"): ((0, 0, 0, 12), (0, 0, 18, 105), (0, 5, 70, 246), (0, 32, 146, 398)),
        ("chinese", "M"): ((0, 0, 14, 89), (0, 5, 67, 242), (0, 34, 174, 487), (11, 81, 305, 769)),
        ("black", "F"): ((0, 0, 0, 9), (0, 0, 5, 74), (0, 0, 77, 310), (0, 47, 214, 582)),
        ("black", "M"): ((0, 0, 2, 45), (0, 0, 40, 173), (0, 32, 191, 575), (23, 141, 516, 1281)),
        ("hispanic", "F"): ((0, 0, 0, 2), (0, 0, 2, 50), (0, 1, 51, 203), (0, 45, 205, 557)),
        ("hispanic", "M"): ((0, 0, 9, 88), (0, 3, 75, 291), (1, 56, 247, 666), (36, 153, 494, 1221)),
    },
)
"""By ethnicity, as MESA names it, and sex. MESA's people were 45 to 84 years old."""
