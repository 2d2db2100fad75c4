"""Grades and percentiles against values worked out by hand from the published tables."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from deepcac2.scoring import grades, risk_group
from deepcac2.scoring.grades import ARTERIES, arterial_age, cac_drs, ordinal_class, ordinal_score
from deepcac2.scoring.percentiles import HOFF, MESA, PERCENTILES, Percentile, Population


@pytest.mark.parametrize(
    ("total", "a", "chest", "finer", "group"),
    [
        (0, 0, "none", "0", 0),
        (0.4, 0, "none", "0", 1),  # some calcium: the risk group is of the unrounded score
        (0.5, 1, "mild", "1 to 9", 1),
        (1, 1, "mild", "1 to 9", 1),
        (9.4, 1, "mild", "1 to 9", 1),
        (9.5, 1, "mild", "10 to 99", 1),
        (99.4, 1, "mild", "10 to 99", 1),
        (99.5, 2, "mild", "100 to 299", 1),
        (sum([0.1] * 995), 2, "mild", "100 to 299", 1),  # 99.49999999999876, which is 99.5 on paper
        (100, 2, "mild", "100 to 299", 1),
        (100.4, 2, "mild", "100 to 299", 2),
        (100.5, 2, "moderate", "100 to 299", 2),
        (101, 2, "moderate", "100 to 299", 2),
        (299.4, 2, "moderate", "100 to 299", 2),
        (299.5, 3, "moderate", "300 to 999", 2),
        (300, 3, "moderate", "300 to 999", 2),
        (300.4, 3, "moderate", "300 to 999", 3),
        (400, 3, "moderate", "300 to 999", 3),
        (400.4, 3, "moderate", "300 to 999", 3),
        (400.5, 3, "severe", "300 to 999", 3),
        (401, 3, "severe", "300 to 999", 3),
        (999.4, 3, "severe", "300 to 999", 3),
        (999.5, 3, "severe", ">=1000", 3),
        (1000, 3, "severe", ">=1000", 3),
        (12345, 3, "severe", ">=1000", 3),
    ],
)
def test_grades_at_every_border(total: float, a: int, chest: str, finer: str, group: int) -> None:
    assert str(cac_drs(total)) == f"CAC-DRS A{a}"
    assert grades.chest_ct_grade(total) == chest
    assert grades.score_class(total) == finer
    assert int(risk_group(total)) == group


def test_cac_drs_counts_arteries_with_calcium() -> None:
    assert str(cac_drs(150, {"LAD": 100, "RCA": 50})) == "CAC-DRS A2/N2"
    assert str(cac_drs(450, dict.fromkeys(ARTERIES, 100.0))) == "CAC-DRS A3/N4"
    assert str(cac_drs(2, {"LM": 0.3, "LAD": 1.7, "LCX": 0})) == "CAC-DRS A1/N2"
    assert str(cac_drs(0.4, {"LM": 0.4})) == "CAC-DRS A0"  # A0 has no N
    assert str(cac_drs(0, dict.fromkeys(ARTERIES, 0))) == "CAC-DRS A0"
    assert str(cac_drs(150, dict.fromkeys(ARTERIES, 0))) == "CAC-DRS A2"  # calcium of no known artery
    with pytest.raises(ValueError, match="no artery 'PDA'; there are LM, LAD, LCX, RCA"):
        cac_drs(1, {"PDA": 1})
    with pytest.raises(ValueError, match="not negative"):
        cac_drs(1, {"LM": -1})


@pytest.mark.parametrize(
    ("shares", "total", "name"),
    [
        ((0, 0, 0, 0), 0, "0"),
        ((0.01, 0, 0, 0), 1, "1 to 3"),
        ((0.33, 0.33, 0.33, 0), 3, "1 to 3"),
        ((1 / 3, 0.33, 0.33, 0), 4, "4 to 6"),
        ((2 / 3, 2 / 3, 2 / 3, 0), 6, "4 to 6"),
        ((0.67, 2 / 3, 2 / 3, 0), 7, "7 to 12"),
        ((1, 1, 1, 1), 12, "7 to 12"),
    ],
)
def test_ordinal_score_by_the_calcified_share_of_each_artery(
    shares: tuple[float, ...], total: int, name: str
) -> None:
    found = ordinal_score(dict(zip(ARTERIES, shares, strict=True)))
    assert (found, ordinal_class(found)) == (total, name)


def test_no_ordinal_score_of_some_arteries() -> None:
    with pytest.raises(ValueError, match="LCX, RCA is missing"):
        ordinal_score({"LM": 0, "LAD": 0})
    with pytest.raises(ValueError, match="between 0 and 1"):
        ordinal_score({**dict.fromkeys(ARTERIES, 0.0), "LM": 1.1})
    for wrong in (-1, 13):
        with pytest.raises(ValueError, match="0 to 12"):
            ordinal_class(wrong)


@pytest.mark.parametrize(("total", "age"), [(0, 39.1), (9, 55.79), (100, 72.56), (400, 82.56), (1000, 89.19)])
def test_arterial_age(total: float, age: float) -> None:
    """ln 10 = 2.302585, ln 101 = 4.615121, ln 401 = 5.993961, ln 1001 = 6.908755, each times 7.25."""
    assert arterial_age(total) == pytest.approx(age, abs=0.005)


@pytest.mark.parametrize("grade", [cac_drs, grades.chest_ct_grade, grades.score_class, arterial_age])
@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf])
def test_what_is_no_score_has_no_grade(grade, wrong: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        grade(wrong)


def hoff(total: float, age: int | None, sex: str) -> str:
    return str(HOFF.percentile(total, age, sex))


@pytest.mark.parametrize(
    ("age", "sex", "limits"),
    [
        # in the middle of each band: the row of the table; the open ones hold to the ends
        (30, "M", (0, 1, 3, 14)),
        (37, "M", (0, 1, 3, 14)),
        (52, "F", (0, 0, 5, 55)),
        (62, "M", (13, 113, 410, 994)),
        (77, "F", (9, 75, 241, 709)),
        (85, "F", (9, 75, 241, 709)),
        # between 57 and 62, a fifth of the way: 4 + 9/5 = 5.8; 48 + 65/5 = 61; 215 + 39 = 254; 554 + 88 = 642
        (58, "M", (6, 61, 254, 642)),
        # three fifths: 9.4; 87; 332; 818
        (60, "M", (9, 87, 332, 818)),
        # women, two fifths: 0; 1 + 2 · 2/5 = 1.8; 23 + 34 · 2/5 = 36.6; 121 + 72 · 2/5 = 149.8
        (59, "F", (0, 2, 37, 150)),
        # between the open band and the first: a fifth of 0, 0, 6, 45
        (38, "M", (0, 1, 4, 23)),
        # between the last and the open one, four fifths of 6, 23, 31, 78
        (76, "F", (8, 70, 235, 693)),
    ],
)
def test_hoff_is_interpolated_over_age(age: int, sex: str, limits: tuple[int, ...]) -> None:
    assert HOFF.limits(age, sex) == limits


@pytest.mark.parametrize(
    ("total", "age", "sex", "range_"),
    [
        (12.4, 62, "M", "<25"),
        (12.5, 62, "M", "25-50"),  # 13 as a whole score
        (112, 62, "M", "25-50"),
        (113, 62, "M", "50-75"),
        (409, 62, "M", "50-75"),
        (410, 62, "M", "75-90"),
        (993.4, 62, "M", "75-90"),
        (994, 62, "M", ">90"),
        (100000, 62, "M", ">90"),
        (0, 62, "M", "<25"),
        (0.4, 42, "F", "<75"),  # half of them and more have 0: whoever has 0 reaches no percentile
        (1, 42, "F", "75-90"),
        (3, 42, "F", "75-90"),
        (4, 42, "F", ">90"),
        (0, 30, "M", "<50"),
        (1, 30, "M", "50-75"),
        (86, 60, "M", "25-50"),
        (87, 60, "M", "50-75"),
        (8, 85, "F", "<25"),
        (9, 85, "F", "25-50"),
    ],
)
def test_hoff_is_a_range_between_two_values(total: float, age: int, sex: str, range_: str) -> None:
    assert hoff(total, age, sex) == range_


@pytest.mark.parametrize(
    ("age", "sex", "why"),
    [
        (None, "M", "the age is not known"),
        (29, "M", "used for ages of 30 to 85, not 29"),
        (86, "F", "used for ages of 30 to 85, not 86"),
        (60, "", "has no one of unknown sex"),
        (60, "O", "has no O"),
        (60, "m", "has no m"),
    ],
)
def test_no_percentile_without_age_and_sex(age: int | None, sex: str, why: str) -> None:
    assert HOFF.percentile(100, age, sex) is None
    assert why in HOFF.missing(age, sex)
    assert HOFF.missing(60, "M") == ""


@pytest.mark.parametrize(
    ("total", "age", "who", "range_"),
    [
        (105, 80, ("white", "F"), "25-50"),
        (106, 80, ("white", "F"), "50-75"),
        (0, 50, ("hispanic", "F"), "<90"),
        (2, 50, ("hispanic", "F"), ">90"),
        (1, 50, ("hispanic", "F"), "75-90"),  # 0 to 75 % of them have 0
        # half of the way from 60 to 70: 0, 16, 115.5, 374
        (15, 65, ("black", "M"), "25-50"),
        (16, 65, ("black", "M"), "50-75"),
        (115, 65, ("black", "M"), "50-75"),
        (116, 65, ("black", "M"), "75-90"),
        (374, 65, ("black", "M"), ">90"),
        (110, 45, ("white", "M"), ">90"),  # the row of 50 holds down to 45
        (768, 84, ("chinese", "M"), "75-90"),
        (769, 84, ("chinese", "M"), ">90"),
    ],
)
def test_mesa_is_interpolated_between_the_middles_of_its_bands(
    total: float, age: int, who: tuple[str, str], range_: str
) -> None:
    assert str(MESA.percentile(total, age, *who)) == range_


def test_mesa_needs_an_ethnicity_that_it_knows() -> None:
    assert MESA.percentile(10, 60, "M") is None
    assert MESA.percentile(10, 60, "other", "M") is None
    for age in (44, 85):
        assert "45 to 84" in MESA.missing(age, "white", "M")
    assert len(MESA.rows) == 8


@pytest.mark.parametrize("population", [HOFF, MESA], ids=lambda p: p.name)
def test_the_tables_rise(population: Population) -> None:
    """With the percentile in every row, and with the age in every column: a slip of a digit would show."""
    for rows in population.rows.values():
        assert len(rows) == len(population.at)
        assert all(list(row) == sorted(row) for row in rows)
        assert all(list(column) == sorted(column) for column in zip(*rows, strict=True))


def _place(found: Percentile | None) -> tuple[int, int]:
    assert found is not None
    reached = PERCENTILES.index(found.reached) if found.reached else -1
    below = PERCENTILES.index(found.below) if found.below else len(PERCENTILES)
    assert reached < below
    return reached, below


def test_all_grades_rise_with_the_score() -> None:
    rng = np.random.default_rng(0)
    totals = sorted([*np.arange(0, 1100, 0.5), *rng.uniform(0, 3500, 500)])
    for low, high in pairwise(totals):
        assert cac_drs(low).a <= cac_drs(high).a
        for names, grade in (
            (grades.CHEST_CT_GRADES, grades.chest_ct_grade),
            (grades.SCORE_CLASSES, grades.score_class),
        ):
            assert names.index(grade(low)) <= names.index(grade(high))
        assert arterial_age(low) <= arterial_age(high)


@pytest.mark.parametrize("population", [HOFF, MESA], ids=lambda p: p.name)
def test_percentiles_rise_with_the_score_and_fall_with_the_age(population: Population) -> None:
    totals = sorted({*range(60), *np.geomspace(60, 3500, 60).astype(int).tolist()})
    low, high = population.ages
    for group in population.rows:
        places = np.array(
            [[_place(population.percentile(t, a, *group)) for t in totals] for a in range(low, high + 1)]
        )
        assert (np.diff(places, axis=1) >= 0).all()
        assert (np.diff(places, axis=0) <= 0).all()
