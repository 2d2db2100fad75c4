"""NLST's own clinical table as the columns that the survival analysis asks for.

Names and codes are those of the trial's *Participant* data set, as the Cancer Data Access System (CDAS) hands
it out on request. The Imaging Data Commons serves a subset of it, ``nlst_prsn``: with age, sex, smoking and
the days of the screens, and **without follow-up, death and heart disease**. So it makes no survival analysis.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase
from types import MappingProxyType

import pandas as pd

from ..errors import InputError
from .scans import one_scan_each, scored
from .tables import different, unique_key

TIME, EVENT, COVARIATES = "years", "died", ("age", "sex", "smoking", "heart_disease")
"""Columns of `clinical_of`, as `survival.build_cohort` asks for them."""

CODES: Mapping[str, tuple[str, Mapping[int, str]]] = MappingProxyType(
    {
        "sex": ("gender", {1: "male", 2: "female"}),
        "smoking": ("cigsmok", {0: "former", 1: "current"}),
        "heart_disease": ("diaghear", {0: "no", 1: "yes"}),
    }
)
"""Our column → theirs, and what its numbers mean."""

_KEYS = ("dicom_patient_id", "pid")
"""The PatientID of the images: IDC's own column, else the trial's number, which is the same."""
_MISSING = frozenset(
    {"", ".", "nan", "na", "n/a", "none", "<na>", *(f".{letter}" for letter in ascii_lowercase)}
)
"""Lower case. SAS writes a reason for what is missing as a letter."""
_NEEDED = ("age", *(theirs for theirs, _ in CODES.values()), "fup_days", "deathstat", "scr_days0")
DAYS_A_YEAR = 365.25


def clinical_of(results: pd.DataFrame, participants: pd.DataFrame) -> pd.DataFrame:
    """The clinical table of the persons who have a scan.

    A person's time begins with the screen that the scan is from (its ``time_point`` T0, T1 or T2, and
    ``scr_days0``, ``scr_days1`` or ``scr_days2``), not with randomisation, which lies before it; it ends with
    ``death_days`` where that is there and the person died, else with ``fup_days``. Somebody died whose
    ``deathstat`` is not 0.

    Args:
        results: Table of a run, as `tables.read_table` gives it, with ``time_point``.
        participants: NLST's Participant data set, as `tables.read_table` gives it.

    Returns:
        Text columns ``patient_id``, `TIME` (years), `EVENT` (0 or 1) and `COVARIATES`, "" where it is
        missing; one row for each person in both tables.

    Raises:
        InputError: A column is missing, a code is none of those known, or a person stands there twice.
    """
    key = next((name for name in _KEYS if name in participants), None)
    missing = [name for name in _NEEDED if name not in participants]
    if key is None:
        raise InputError(
            f"the clinical table has neither {' nor '.join(_KEYS)}: give NLST's Participant data set"
        )
    if missing:
        raise InputError(
            f"the clinical table has no {', '.join(missing)}: give NLST's Participant data set as CDAS hands "
            "it out; the nlst_prsn of the Imaging Data Commons has no follow-up, death and heart disease"
        )
    if "time_point" not in results or not results["time_point"].str.strip().any():
        raise InputError("the results have no time_point (T0, T1, T2), by which a scan's screen is known")
    people = participants.assign(**{key: participants[key].str.strip().str.removesuffix(".0")})
    unique_key(people, key, "the clinical table")
    scans = scored(results)
    chosen, _ = one_scan_each(scans.frame, scans.flow, "first")
    visit = chosen.set_index("patient_id")["time_point"].str.strip().str.upper()
    people = people[people[key].isin(visit.index)].set_index(key, drop=False)
    visit = visit[people.index]
    if not visit.isin(["T0", "T1", "T2", ""]).all():
        raise InputError(f"time_point is T0, T1 or T2 in NLST, and here {different(visit)}")
    died = _codes(people["deathstat"], "deathstat")
    end = _days(people["fup_days"], "fup_days")
    if "death_days" in people:
        end = _days(people["death_days"], "death_days").where(died > 0, None).combine_first(end)
    begin = pd.Series(float("nan"), people.index)
    for number in (0, 1, 2):
        name = f"scr_days{number}"
        if name in people:
            begin = begin.where(visit != f"T{number}", _days(people[name], name))
    years = (end - begin) / DAYS_A_YEAR
    out = {"patient_id": people[key], TIME: years.map(lambda y: "" if pd.isna(y) else f"{y:.5f}")}
    out[EVENT] = died.map(lambda d: "" if pd.isna(d) else str(int(d > 0)))
    out["age"] = _days(people["age"], "age").map(lambda a: "" if pd.isna(a) else f"{a:g}")
    for ours, (theirs, meaning) in CODES.items():
        codes = _codes(people[theirs], theirs)
        if len(unknown := people[theirs][codes.notna() & ~codes.isin(meaning)]):
            known = ", ".join(f"{code}: {word}" for code, word in meaning.items())
            raise InputError(f"the clinical table: {theirs} holds {different(unknown)}; known are {known}")
        out[ours] = codes.map(lambda c, words=meaning: "" if pd.isna(c) else words[int(c)])
    return pd.DataFrame(out).reset_index(drop=True)


def _days(column: pd.Series[str], name: str) -> pd.Series[float]:
    """Numbers, NaN where one is missing."""
    text = column.str.strip()
    values = pd.to_numeric(text, errors="coerce").astype(float)
    if len(wrong := text[values.isna() & ~text.str.lower().isin(_MISSING)]):
        raise InputError(f"the clinical table: {name} holds {different(wrong)}, which is no number")
    return values


def _codes(column: pd.Series[str], name: str) -> pd.Series[float]:
    """Whole numbers of 0 and more, NaN where one is missing."""
    values = _days(column, name)
    if len(wrong := column[values.notna() & ((values < 0) | (values % 1 != 0))]):
        raise InputError(f"the clinical table: {name} holds {different(wrong)}, which is no code")
    return values
