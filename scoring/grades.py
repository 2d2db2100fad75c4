"""Grades of an Agatston score: the names that reporting systems have for it. Pure functions of numbers.

All of them but the arterial age are defined for whole scores, so the score is first rounded to one
(`whole_score`): 0.4 is graded as 0, though its risk group (`risk_group`, of the unrounded score) is 1; 99.5
is graded as 100. The limits also fall differently: 100 and 300 are the last scores of risk groups 1 and 2,
and the first ones of CAC-DRS A2 and A3.

Sources: CAC-DRS: Hecht et al. 2018 [1]; grade of chest CT: Hecht et al. 2017, guideline of SCCT and STR [2];
finer classes: ACC/AHA guideline of 2026; ordinal score: Shemesh et al. 2010 [3]; arterial age: McClelland et
al. 2009 [4]. Percentiles: `percentiles`.

[1] doi:10.1016/j.jcct.2018.03.008  [2] doi:10.1016/j.jcct.2016.11.003  [3] doi:10.1148/radiol.10100383
[4] doi:10.1016/j.amjcard.2008.08.031
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

ARTERIES = ("LM", "LAD", "LCX", "RCA")
"""The four territories: left main, left anterior descending, left circumflex, right coronary artery."""
UNSURE = "score_unsure"
SHARES = {f"score_{name.lower()}": name for name in ARTERIES} | {UNSURE: "artery not sure"}
"""Columns of a results table that add up to the score, and what they are called."""

CHEST_CT_GRADES = ("none", "mild", "moderate", "severe")
_CHEST_CT_FROM = (1, 101, 401)
SCORE_CLASSES = ("0", "1 to 9", "10 to 99", "100 to 299", "300 to 999", ">=1000")
_CLASSES_FROM = (1, 10, 100, 300, 1000)
_CAC_DRS_FROM = (1, 100, 300)
ORDINAL_CLASSES = ("0", "1 to 3", "4 to 6", "7 to 12")
_ORDINAL_FROM = (1, 4, 7)
"""Each class begins at its limit; what lies below the first limit is in the first class. Classes are written
in words: of "1-9" a spreadsheet makes a date."""


def whole_score(total: float) -> int:
    """An Agatston score as the whole number that grades are defined for; halves go up.

    It is first rounded to six digits, as `risk_group` does, so that a sum that is 99.5 on paper is not
    99.49999999999999 here. What a half becomes, no source says.

    Raises:
        ValueError: `total` is negative or not finite.

    Examples:
        >>> [whole_score(s) for s in (0, 0.4, 0.5, 99.5, 100.4)]
        [0, 0, 1, 100, 100]
    """
    if not math.isfinite(total) or total < 0:
        raise ValueError(f"an Agatston score is finite and not negative, not {total}")
    return math.floor(round(total, 6) + 0.5)


@dataclass(frozen=True, kw_only=True)
class CacDrs:
    """A category of CAC-DRS.

    Attributes:
        a: 0 to 3, by the score.
        n: How many of `ARTERIES` have calcium, 1 to 4; None: not known, or there is none.
    """

    a: int
    n: int | None = None

    def __str__(self) -> str:
        return f"CAC-DRS A{self.a}" if self.n is None else f"CAC-DRS A{self.a}/N{self.n}"


def cac_drs(total: float, arteries: Mapping[str, float] | None = None) -> CacDrs:
    """CAC-DRS category [1]: A0: 0; A1: 1 to 99; A2: 100 to 299; A3: from 300, of the whole score.

    N counts the arteries with calcium, however little (an unrounded score above 0). A0 is written without N.
    Where the score has calcium and no artery has, its artery is not known, and there is no N either.

    Args:
        total: Agatston score.
        arteries: Agatston score of each artery, by names of `ARTERIES`; those left out have none. None: which
            arteries have calcium is not known.

    Raises:
        ValueError: A score is negative or not finite, or an artery is unknown.

    Examples:
        >>> str(cac_drs(150, {"LM": 0, "LAD": 120, "LCX": 10, "RCA": 20})), str(cac_drs(150)), str(cac_drs(0))
        ('CAC-DRS A2/N3', 'CAC-DRS A2', 'CAC-DRS A0')
    """
    a = bisect_right(_CAC_DRS_FROM, whole_score(total))
    scores = dict(arteries or {})
    _check_arteries(scores)
    for score in scores.values():
        whole_score(score)
    n = sum(round(score, 6) > 0 for score in scores.values())
    return CacDrs(a=a, n=n if a and n else None)


def chest_ct_grade(total: float) -> str:
    """Grade for chest CT without gating [2], of `CHEST_CT_GRADES`: 0; 1 to 100; 101 to 400; above 400.

    Of the whole score: 100.4 is mild.

    Raises:
        ValueError: `total` is negative or not finite.
    """
    return CHEST_CT_GRADES[bisect_right(_CHEST_CT_FROM, whole_score(total))]


def score_class(total: float) -> str:
    """The finer class of the whole score, of `SCORE_CLASSES`.

    Raises:
        ValueError: `total` is negative or not finite.
    """
    return SCORE_CLASSES[bisect_right(_CLASSES_FROM, whole_score(total))]


def ordinal_score(calcified: Mapping[str, float]) -> int:
    """Ordinal score of chest CT [3], 0 to 12: of each artery 0 to 3, added up.

    An artery has 0 without calcium, 1 (mild) where less than a third of its length shows calcium, 2
    (moderate) from a third to two thirds, 3 (severe) where more does.

    Args:
        calcified: Which share of its length shows calcium, 0 to 1, of all four `ARTERIES`.

    Raises:
        ValueError: An artery is missing or unknown, or a share lies outside 0 to 1.

    Examples:
        >>> ordinal_score({"LM": 0, "LAD": 0.7, "LCX": 1 / 3, "RCA": 0.1})
        6
    """
    _check_arteries(calcified)
    if missing := [name for name in ARTERIES if name not in calcified]:
        raise ValueError(f"the ordinal score needs all four arteries; {', '.join(missing)} is missing")
    if not all(0 <= share <= 1 for share in calcified.values()):
        raise ValueError("the calcified share of an artery's length lies between 0 and 1")
    return sum((share > 0) + (share >= 1 / 3) + (share > 2 / 3) for share in calcified.values())


def ordinal_class(ordinal: int) -> str:
    """The class of an ordinal score, of `ORDINAL_CLASSES`.

    Raises:
        ValueError: It is not 0 to 12.
    """
    if not 0 <= ordinal <= 12:
        raise ValueError(f"an ordinal score is 0 to 12, not {ordinal}")
    return ORDINAL_CLASSES[bisect_right(_ORDINAL_FROM, ordinal)]


def arterial_age(total: float) -> float:
    """Arterial age, years: 39.1 + 7.25 · ln(score + 1), of the unrounded score [4].

    The age at which the risk of coronary disease, in MESA (45 to 84 years old), is that of this score. It
    asks neither for the person's age nor for the sex.

    Raises:
        ValueError: `total` is negative or not finite.
    """
    whole_score(total)
    return 39.1 + 7.25 * math.log1p(total)


def _check_arteries(named: Mapping[str, float]) -> None:
    if unknown := set(named) - set(ARTERIES):
        raise ValueError(f"there is no artery {sorted(unknown)[0]!r}; there are {', '.join(ARTERIES)}")
