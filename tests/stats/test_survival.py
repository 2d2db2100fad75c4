"""Survival, against the published model of a public data set, and against planted hazard ratios."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

from deepcac2.errors import InputError
from deepcac2.reporting.statistics import survival_page
from deepcac2.stats.survival import Cohort, analyse, build_cohort
from deepcac2.stats.tables import Flow

FOX = {
    "fin": -0.37942, "age": -0.05744, "race": 0.31390, "wexp": -0.14980, "mar": -0.43370, "paro": -0.08487,
    "prio": 0.09150,
}  # fmt: skip
"""Rossi's recidivism data, coefficients of the Cox model: J. Fox and S. Weisberg, An R Companion to Applied
Regression, appendix "Cox proportional-hazards regression", printed output of coxph()."""


def test_rossi_gives_the_published_coefficients() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lifelines.datasets import load_rossi

        rossi = load_rossi()
    frame = rossi.rename(columns={"week": "time", "arrest": "event"})
    frame["group"] = frame["fin"]
    cohort = Cohort(
        frame=frame, model=tuple(FOX), names=("no aid", "aid"), flow=(Flow("persons", 432),), notes=()
    )
    result = analyse(cohort)
    assert {h.name: round(float(np.log(h.ratio)), 5) for h in result.hazards} == pytest.approx(FOX, abs=2e-5)
    ratios = {h.name: h for h in result.hazards}
    assert ratios["fin"].p == pytest.approx(0.047, abs=0.001)
    assert ratios["prio"].p == pytest.approx(0.0014, abs=0.0001)
    assert (result.persons, result.events) == (432, 114)
    # Fox and Weisberg print rho and chisq of cox.zph: age and wexp are not proportional, fin is.
    assert ratios["age"].p_proportional < 0.01
    assert ratios["wexp"].p_proportional < 0.01
    assert ratios["fin"].p_proportional > 0.5
    assert result.concordance.value == pytest.approx(0.640, abs=0.001)


def people(n: int, seed: int, base: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results and clinical data with planted hazard ratios 1, 1.2, 1.5 and 2.05, and age 1.07 a year."""
    rng = np.random.default_rng(seed)
    age = rng.normal(61, 5, n)
    smoking = rng.random(n) < 0.5
    group = rng.choice(4, n, p=[0.3, 0.35, 0.15, 0.2])
    score = np.array([0.0, 40.0, 200.0, 900.0])[group]
    rate = np.log([1, 1.2, 1.5, 2.05])[group] + np.log(1.07) * (age - 61) + np.log(1.6) * smoking
    time = rng.exponential(1 / (base * np.exp(rate)))
    end = rng.uniform(5.5, 7.2, n)
    ids = [f"{100000 + i}" for i in range(n)]
    results = pd.DataFrame(
        {
            "patient_id": ids, "study_uid": ids, "series_uid": ids, "status": "scored",
            "agatston_score": [f"{s:g}" for s in score], "study_date": "19990102", "kernel": "STANDARD",
        }
    )  # fmt: skip
    clinical = pd.DataFrame(
        {
            "pid": ids, "years": [f"{t:.5f}" for t in np.minimum(time, end)],
            "died": (time <= end).astype(int).astype(str), "age": [f"{a:.2f}" for a in age],
            "smoking": np.where(smoking, "current", "former"),
        }
    )  # fmt: skip
    return results, clinical


def built(results: pd.DataFrame, clinical: pd.DataFrame, covariates: tuple[str, ...] = ()) -> Cohort:
    return build_cohort(results, clinical, time="years", event="died", covariates=covariates, patient="pid")


@pytest.mark.slow
def test_planted_hazard_ratios_come_back_at_the_size_of_the_trial() -> None:
    results, clinical = people(23_011, 3, 0.0067)
    cohort = built(results, clinical, ("age", "smoking"))
    result = analyse(cohort)
    assert 1450 < result.events < 1800
    planted = {
        "1 low (>0–100)": 1.2,
        "2 moderate (>100–300)": 1.5,
        "3 high (>300)": 2.05,
        "age": 1.07,
        "smoking: current": 1.6,
    }
    planted["smoking: former"] = 1 / 1.6
    assert len(result.hazards) == 5
    for hazard in result.hazards:
        spread = np.log(hazard.high / hazard.low) / 3.92
        assert abs(np.log(hazard.ratio / planted[hazard.name])) < 3 * spread, hazard
        assert spread < 0.1
    assert result.log_rank[1] == 3
    assert result.log_rank[2] < 1e-6
    assert 0.6 < result.concordance.low < result.concordance.value < result.concordance.high < 0.75


def test_everyone_is_accounted_for() -> None:
    results, clinical = people(400, 1, 0.05)
    clinical.loc[0, "years"] = "-1"
    clinical.loc[1, "years"] = "unknown"
    clinical.loc[2, "died"] = ""
    clinical.loc[3, "age"] = ""
    clinical = clinical.drop(index=4)
    results.loc[5, ["status", "agatston_score"]] = ["rejected", ""]
    cohort = built(results, clinical, ("age",))
    scans, persons = cohort.flow
    assert [s.reason for s in scans.steps] == ["rejected by a quality gate"]
    assert [(s.reason, s.rows) for s in persons.steps] == [
        ("not in the clinical table (pid)", 1),
        ("years is no number", 1),
        ("years below 0", 1),
        ("no died", 1),
        ("no age", 1),
    ]
    assert len(cohort.frame) == 394 == persons.left
    text, pictures = survival_page(cohort, analyse(cohort), unit="years")
    assert set(pictures) == {"kaplan-meier", "forest"}
    assert "394 persons" in text


def test_every_term_says_of_how_many_persons_and_events_and_against_what() -> None:
    results, clinical = people(400, 1, 0.05)
    found = analyse(built(results, clinical, ("age", "smoking")))
    score = results["agatston_score"].astype(float)
    died, former = clinical["died"] == "1", clinical["smoking"] == "former"
    groups = [(score == 0), (score == 40), (score == 200), (score == 900)]
    most = former if former.sum() >= (~former).sum() else ~former
    expected = [*groups, score >= 0, most, ~most]
    assert [(r.persons, r.events) for r in found.rows] == [
        (int(own.sum()), int((own & died).sum())) for own in expected
    ]
    assert [r.covariate for r in found.rows] == ["calcium group"] * 4 + [""] + ["smoking"] * 2
    assert [r.name for r in found.rows if r.reference] == [
        "0 very low (0)", f"smoking: {'former' if most is former else 'current'}"
    ]  # fmt: skip
    assert tuple(r for r in found.rows if not r.reference) == found.hazards


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r, c: (r, c.assign(died="0")), "nobody of 200 persons left had the event"),
        (lambda r, c: (r, pd.concat([c, c.iloc[:1]])), "stands in more than one row"),
        (lambda r, c: (r, c.assign(pid="x" + c["pid"])), "no person is in both tables"),
        (lambda r, c: (r.assign(agatston_score="0"), c), "everybody is in one calcium group"),
        (lambda r, c: (r, c.assign(age="61")), "covariate 'age' has one value only"),
        (lambda r, c: (r, c.assign(age=c["pid"].map(lambda p: "n" + p))), "200 different values"),
        (lambda r, c: (r, c.rename(columns={"age": "Age"})), "Perhaps you meant 'Age'"),
        (
            lambda r, c: (r, c.assign(died=np.where(r["agatston_score"] == "40", "0", c["died"]))),
            r"with group '1 low \(>0–100\)' had the event",
        ),
    ],
)
def test_a_table_that_cannot_be_analysed_says_why(change, says: str) -> None:
    results, clinical = change(*people(200, 2, 0.08))
    with pytest.raises(InputError, match=says):
        built(results, clinical, ("age",))


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("TRUE", "FALSE"), (" Yes", "no "), ("1.0", "0.0")])
def test_events_in_every_writing_that_is_plain_give_the_same_events(yes: str, no: str) -> None:
    results, clinical = people(200, 2, 0.08)
    as_numbers = clinical["died"].astype(int)
    cohort = built(results, clinical.assign(died=np.where(as_numbers == 1, yes, no)))
    assert cohort.frame.set_index("patient")["event"].tolist() == as_numbers.tolist()


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        (("1", "2"), "died holds '1', '2'"),  # the registries' coding: 1 alive, 2 dead
        (("0", "2"), "died holds '0', '2'"),
        (("alive", "dead"), "died holds 'alive', 'dead'"),
        (("-1", "1"), "died holds '-1', '1'"),
        (("0", "0.5"), "died holds '0', '0.5'"),
    ],
)
def test_events_in_another_coding_are_refused_and_named(codes: tuple[str, str], named: str) -> None:
    results, clinical = people(200, 2, 0.08)
    with pytest.raises(InputError, match=named):
        built(results, clinical.assign(died=clinical["died"].map(dict(zip("01", codes, strict=True)))))


def test_one_strange_event_is_refused_even_of_a_person_without_a_scan() -> None:
    results, clinical = people(200, 2, 0.08)
    clinical.loc[0, "died"] = "2"
    with pytest.raises(InputError, match="holds '0', '1', '2'"):
        built(results.drop(index=0), clinical)


def test_an_event_that_is_never_0_is_refused_where_it_is_empty_and_said_where_it_is_not() -> None:
    results, clinical = people(200, 2, 0.08)
    with pytest.raises(InputError, match="died is 1 or empty, and never 0"):
        built(results, clinical.assign(died=clinical["died"].where(clinical["died"] == "1", "")))
    assert any("nobody is censored" in n for n in built(results, clinical.assign(died="1")).notes)


def test_an_empty_group_is_said() -> None:
    results, clinical = people(300, 2, 0.08)
    cohort = built(results[results["agatston_score"] != "200"], clinical)
    assert "nobody is in group '2 moderate (>100–300)'" in cohort.notes
    assert [h.name for h in analyse(cohort).hazards] == ["1 low (>0–100)", "3 high (>300)"]
