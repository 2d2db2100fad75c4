"""Survival by calcium: Kaplan-Meier, log-rank and Cox, the DeepCAC2 paper's figure 3 for any cohort.

The statistics are lifelines'; here are the checks of what goes in, and which scan stands for a person.

[1] Grambsch and Therneau, Biometrika 81 (1994), 515-526: test of proportional hazards.
[2] Harrell et al., JAMA 247 (1982), 2543-2546: concordance.
[3] Schemper and Smith, Controlled Clinical Trials 17 (1996), 343-346: follow-up by reversed Kaplan-Meier.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import InputError
from .agreement import RISK_CUTS, SEED, Estimate, group_names, grouped
from .scans import one_scan_each, scored
from .tables import Flow, need, numbers, unique_key, yes_no

MOST_LEVELS = 12
"""Most different texts of a covariate that is taken for groups; chosen."""
_MOST_DRAWN, _MOST_RESAMPLES, _FEWEST_RESAMPLES = 2_000_000, 200, 25
"""Persons drawn in all by the bootstrap of the c-index, and its resamples; chosen: a standard error needs few
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 6: 25 to 200)."""


@dataclass(frozen=True, kw_only=True)
class Covariate:
    """What goes into the Cox model.

    Attributes:
        name: In words, or the column's.
        columns: Those of the model: the levels but one, or the number itself.
        reference: The level that the others are compared with; "" for a number.
    """

    name: str
    columns: tuple[str, ...]
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """One row a person, ready for survival analysis.

    Attributes:
        frame: ``patient``, ``time`` (0 or more, unit of the table), ``event`` (0 or 1), ``score``, ``group``,
            and the columns of the Cox model.
        model: Names of the columns of the Cox model, without a level that the others are compared with.
        covariates: The same by what they are levels of; empty: they are numbers.
        names: Of the groups, by number.
        flow: Scans, then persons, used and left out.
        notes: What a reader must know.
    """

    frame: pd.DataFrame = field(repr=False)
    model: tuple[str, ...]
    covariates: tuple[Covariate, ...] = ()
    names: tuple[str, ...]
    flow: tuple[Flow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Kaplan-Meier estimate of one group.

    Attributes:
        time, survival, low, high: float (m,): steps, with 95 % limits.
        followed: float (n,): time of each person, and whether it ended with the event.
        event: bool (n,).
    """

    name: str
    time: npt.NDArray[np.float64]
    survival: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    followed: npt.NDArray[np.float64]
    event: npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """One term of the Cox model, or the level that others are compared with, whose ratio is 1.

    Attributes:
        covariate: What it is a level of; "" for a number.
        persons, events: With this level; of a number, in all.
        reference: Whether the others are compared with it; its interval and p mean nothing.
        ratio, low, high: Hazard ratio with its 95 % interval.
        p: Of the ratio being 1.
        p_proportional: Of the hazards being proportional [1]; small: they are not.
    """

    name: str
    covariate: str = ""
    persons: int
    events: int
    reference: bool = False
    ratio: float
    low: float
    high: float
    p: float
    p_proportional: float


@dataclass(frozen=True, kw_only=True)
class Survival:
    """Survival of a cohort.

    Attributes:
        persons, events: How many.
        median_follow_up: By reversed Kaplan-Meier [3]; None where it is not reached.
        curves: By group, those that hold someone.
        log_rank: χ², degrees of freedom, p of the groups' survival being the same.
        hazards: Terms of the Cox model (ties by Efron's method).
        rows: The same with the levels that they are compared with, as they are listed.
        concordance: Harrell's c of the Cox model [2], interval from the bootstrap's standard error.
    """

    persons: int
    events: int
    median_follow_up: float | None
    curves: tuple[Curve, ...]
    log_rank: tuple[float, int, float]
    hazards: tuple[Hazard, ...]
    rows: tuple[Hazard, ...]
    concordance: Estimate


def build_cohort(
    results: pd.DataFrame,
    clinical: pd.DataFrame,
    *,
    time: str,
    event: str,
    covariates: Sequence[str] = (),
    patient: str = "patient_id",
    cuts: Sequence[float] = RISK_CUTS,
) -> Cohort:
    """Join results and clinical data, one scan and one row a person.

    A person's scan is the first by date; of several on that day, see `one_scan_each`.

    Args:
        results: Table of a run, see `pipeline.results.ResultRow`, as `read_table` gives it.
        clinical: Table with one row a person.
        time: Column of the time to event or end of follow-up, any unit.
        event: Column: 1, true or yes: event; 0, false or no: censored; empty: not known, left out.
        covariates: Columns of the Cox model beside the groups: numbers, or at most 12 different texts.
        patient: Column of `clinical` with the PatientID of the results.
        cuts: Limits of the groups.

    Raises:
        InputError: A column is missing, a person has two rows, no person is in both tables, an event is
            none of these values, or 1 or empty throughout; nobody had the event, a group or level has no
            event, or a covariate does not vary.
    """
    need(clinical, [patient, time, event, *covariates], "the clinical table")
    unique_key(clinical, patient, "the clinical table")
    events = yes_no(clinical, event, "the clinical table")  # of all in it: a coding belongs to the column
    if events.isna().any() and not (events == 0).any():
        raise InputError(
            f"the clinical table: {event} is 1 or empty, and never 0; write 0 where the event did not happen"
        )
    scans = scored(results)
    persons, scan_flow = one_scan_each(scans.frame, scans.flow, "first")
    flow = Flow("persons", len(persons))
    known = set(clinical[patient].str.strip())
    joined = flow.keep(persons, persons["patient_id"].isin(known), f"not in the clinical table ({patient})")
    if joined.empty:
        raise InputError(
            f"no person is in both tables: the results have {persons['patient_id'].iloc[0]!r}, the clinical "
            f"table has {clinical[patient].iloc[0]!r} in {patient}"
        )
    wanted = clinical.assign(**{event: events}).assign(patient_id=clinical[patient].str.strip())
    wanted = wanted[list(dict.fromkeys(["patient_id", time, event, *covariates]))]
    frame = joined[["patient_id", "agatston_score"]].merge(wanted, on="patient_id", how="left")
    frame = numbers(frame, time, flow, minimum=0)
    frame = flow.keep(frame, frame[event].notna(), f"no {event}")
    notes: list[str] = []
    columns: dict[str, pd.Series[float]] = {}
    for name in covariates:
        frame = _usable(frame, name, flow)
    _check_events(frame, event)
    others = []
    for name in covariates:
        terms, reference = _terms(frame, name, event, notes)
        columns.update(terms)
        others.append(Covariate(name=name, columns=tuple(terms), reference=reference))
    group = grouped(frame["agatston_score"].to_numpy(dtype=float), cuts)
    names = group_names(cuts)
    present = [g for g in range(len(names)) if (group == g).any()]
    for g in set(range(len(names))) - set(present):
        notes.append(f"nobody is in group {names[g]!r}")
    if len(present) < 2:
        raise InputError("everybody is in one calcium group; there is nothing to compare")
    for g in present:
        _has_event(frame[event].to_numpy()[group == g], f"group {names[g]!r}")
    if (frame[event] == 1).all():
        notes.append(f"{event} is 1 for everybody: nobody is censored; check that 0 stands for no event")
    notes.append(f"hazard ratios of the groups are against {names[present[0]]!r}")
    for g in present[1:]:
        columns[names[g]] = pd.Series((group == g).astype(float), frame.index)
    model = [*(names[g] for g in present[1:]), *(c for c in columns if c not in names)]
    groups = Covariate(
        name="calcium group", columns=tuple(names[g] for g in present[1:]), reference=names[present[0]]
    )
    out = pd.DataFrame(
        {
            "patient": frame["patient_id"],
            "time": frame[time],
            "event": frame[event].astype(int),
            "score": frame["agatston_score"],
            "group": group,
            **{c: columns[c] for c in model},
        }
    ).reset_index(drop=True)
    return Cohort(
        frame=out,
        model=tuple(model),
        covariates=(groups, *others),
        names=names,
        flow=(scan_flow, flow),
        notes=tuple(notes),
    )


def analyse(cohort: Cohort) -> Survival:
    """Curves, log-rank, Cox model, its check, and its concordance.

    Raises:
        InputError: The Cox model does not converge.
    """
    from lifelines import CoxPHFitter, KaplanMeierFitter
    from lifelines.exceptions import ConvergenceError
    from lifelines.statistics import multivariate_logrank_test, proportional_hazard_test

    frame = cohort.frame
    time, event = frame["time"], frame["event"]
    with _quiet():
        curves = []
        for g, name in enumerate(cohort.names):
            own = frame[frame["group"] == g]
            if own.empty:
                continue
            fit = KaplanMeierFitter().fit(own["time"], own["event"])
            limits = fit.confidence_interval_survival_function_.to_numpy()
            curves.append(
                Curve(
                    name=name,
                    time=fit.survival_function_.index.to_numpy(dtype=float),
                    survival=fit.survival_function_.to_numpy()[:, 0],
                    low=limits[:, 0],
                    high=limits[:, 1],
                    followed=own["time"].to_numpy(dtype=float),
                    event=own["event"].to_numpy() == 1,
                )
            )
        test = multivariate_logrank_test(time, frame["group"], event)
        follow_up = float(KaplanMeierFitter().fit(time, 1 - event).median_survival_time_)
        columns = frame[["time", "event", *cohort.model]]
        try:
            cox = CoxPHFitter().fit(columns, "time", "event")
        except ConvergenceError as error:
            raise InputError(
                "the Cox model does not converge; a covariate tells the outcome alone, or two say the same: "
                f"leave one of {', '.join(cohort.model)} out"
            ) from error
        checked = proportional_hazard_test(cox, columns, time_transform="rank").summary["p"]
        summary = cox.summary
        risk = cox.predict_log_partial_hazard(columns).to_numpy(dtype=float)
    rows = tuple(_rows(cohort, summary, checked))
    return Survival(
        persons=len(frame),
        events=int(event.sum()),
        median_follow_up=follow_up if math.isfinite(follow_up) else None,
        curves=tuple(curves),
        log_rank=(float(test.test_statistic), len(curves) - 1, float(test.p_value)),
        hazards=tuple(row for row in rows if not row.reference),
        rows=rows,
        concordance=_concordance(time.to_numpy(dtype=float), risk, event.to_numpy()),
    )


def _rows(cohort: Cohort, summary: Any, checked: Any) -> Iterator[Hazard]:
    """The terms of the model in order, before those of a covariate the level that they are compared with.

    Args:
        summary, checked: Tables of lifelines, by term.
    """
    frame = cohort.frame
    numbers = (Covariate(name=name, columns=(name,)) for name in cohort.model)
    for covariate in cohort.covariates or tuple(numbers):
        levels = covariate.name if covariate.reference else ""
        if covariate.reference:
            own = frame[(frame[list(covariate.columns)] == 0).all(axis=1)]
            yield Hazard(
                name=covariate.reference,
                covariate=levels,
                persons=len(own),
                events=int(own["event"].sum()),
                reference=True,
                **dict.fromkeys(("ratio", "low", "high", "p", "p_proportional"), 1.0),
            )
        for name in covariate.columns:
            own = frame[frame[name] == 1] if levels else frame
            yield Hazard(
                name=name,
                covariate=levels,
                persons=len(own),
                events=int(own["event"].sum()),
                ratio=float(summary.loc[name, "exp(coef)"]),
                low=float(summary.loc[name, "exp(coef) lower 95%"]),
                high=float(summary.loc[name, "exp(coef) upper 95%"]),
                p=float(summary.loc[name, "p"]),
                p_proportional=float(checked.loc[name]),
            )


def _concordance(
    time: npt.NDArray[np.float64], risk: npt.NDArray[np.float64], event: npt.NDArray[np.int64]
) -> Estimate:
    from lifelines.utils import concordance_index

    n = len(time)
    value = float(concordance_index(time, -risk, event))
    rng = np.random.default_rng(SEED)
    resamples = int(np.clip(_MOST_DRAWN // n, _FEWEST_RESAMPLES, _MOST_RESAMPLES))
    drawn = []
    for _ in range(resamples):
        i = rng.integers(0, n, n)
        if event[i].any():
            drawn.append(concordance_index(time[i], -risk[i], event[i]))
    spread = 1.96 * float(np.std(drawn, ddof=1))
    return Estimate(
        value=value, low=max(value - spread, 0.0), high=min(value + spread, 1.0), n=n, method="bootstrap"
    )


def _usable(frame: pd.DataFrame, name: str, flow: Flow) -> pd.DataFrame:
    """Without rows where the covariate is missing, or is text among numbers."""
    frame = flow.keep(frame, frame[name].str.strip() != "", f"no {name}")
    parsed = pd.to_numeric(frame[name].str.strip(), errors="coerce")
    if parsed.notna().mean() > 0.5:
        return numbers(frame, name, flow)
    return frame.assign(**{name: frame[name].str.strip()})


def _terms(
    frame: pd.DataFrame, name: str, event: str, notes: list[str]
) -> tuple[dict[str, pd.Series[float]], str]:
    """The model's columns of one covariate, and the level that they are compared with.

    Itself and "" where it is a number, else one for each level but one.
    """
    column = frame[name]
    if column.nunique() < 2:
        raise InputError(f"covariate {name!r} has one value only ({column.iloc[0]}); leave it out")
    if pd.api.types.is_numeric_dtype(column):
        return {name: column.astype(float)}, ""
    levels = list(column.value_counts().index)
    if len(levels) > MOST_LEVELS:
        raise InputError(
            f"covariate {name!r} is text with {len(levels)} different values; at most {MOST_LEVELS}"
        )
    for level in levels:
        _has_event(frame[event].to_numpy()[(column == level).to_numpy()], f"{name} = {level!r}")
    notes.append(f"hazard ratios of {name} are against {levels[0]!r}, its most frequent value")
    terms = {f"{name}: {level}": (column == level).astype(float) for level in levels[1:]}
    return terms, f"{name}: {levels[0]}"


def _check_events(frame: pd.DataFrame, event: str) -> None:
    if frame.empty or not (frame[event] == 1).any():
        raise InputError(f"nobody of {len(frame)} persons left had the event ({event} = 1)")


def _has_event(events: npt.NDArray[np.float64], what: str) -> None:
    if not (events == 1).any():
        raise InputError(
            f"nobody of {len(events)} persons with {what} had the event, so its hazard ratio is undefined; "
            "choose other cut points, or leave the covariate out"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """lifelines warns of pandas' future, not of these data; what is wrong with these is checked before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
