"""Age and sex of the patient at the scan, as far as a header can be believed."""

from __future__ import annotations

import re
from datetime import date

GREATEST_AGE = 89
"""Years. Whoever removes names writes older people's age as 90 or more (HIPAA, 45 CFR 164.514(b)(2)(i)(C)):
an age above this may stand for any other above it."""

_AGE = re.compile(r"(\d{1,3})([DWMY])")
"""Value representation AS (PS3.5 6.2), which has three digits; fewer are seen and mean the same."""
_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)")
"""Value representation DA."""
_PER_YEAR = {"Y": 1, "M": 12, "W": 52, "D": 365}


def age_at(stated: str, birth: str, day: str) -> tuple[int | None, str]:
    """The age in completed years, else why it is not known.

    PatientAge counts where there is one, and it must not contradict PatientBirthDate; else the age is that
    from PatientBirthDate to the day of the scan. An age of 0, one above `GREATEST_AGE`, and what is no age
    are what removing names leaves behind: no age.

    Args:
        stated: PatientAge, such as ``"062Y"``, or "".
        birth: PatientBirthDate, YYYYMMDD, or "".
        day: When the scan was taken, YYYYMMDD, or "".

    Returns:
        The age and "", or None and a reason in words that names no date.

    Examples:
        >>> age_at("062Y", "", ""), age_at("", "19500301", "20120229"), age_at("090Y", "", "")[0]
        ((62, ''), (61, ''), None)
    """
    counted = _years_between(birth, day)
    if not stated:
        if counted is None:
            return None, "there is no PatientAge, and no PatientBirthDate with the date of the scan"
        return _believed(counted, "the age by PatientBirthDate")
    match = _AGE.fullmatch(stated)
    if match is None:
        return None, "PatientAge is no age, such as 062Y"
    age, why = _believed(int(match[1]) // _PER_YEAR[match[2]], "PatientAge")
    if age is not None and counted is not None and abs(age - counted) > 1:
        return None, "PatientAge and PatientBirthDate contradict each other"
    return age, why


def _believed(age: int, what: str) -> tuple[int | None, str]:
    """An age that somebody may have at a CT, else why not."""
    if age <= 0:
        return None, f"{what} is 0 or less: a removed one"
    if age > GREATEST_AGE:
        return None, f"{what} is above {GREATEST_AGE}: such ages are often capped"
    return age, ""


def _years_between(birth: str, day: str) -> int | None:
    """Completed years from one day to another; None where one is no date."""
    days = [_day(text) for text in (birth, day)]
    first, last = days
    if first is None or last is None:
        return None
    return last.year - first.year - ((last.month, last.day) < (first.month, first.day))


def _day(text: str) -> date | None:
    match = _DATE.fullmatch(text)
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def sex_of(stated: str) -> str:
    """``"M"`` or ``"F"``; "" where PatientSex says neither: other, or nothing.

    >>> sex_of("F"), sex_of("O"), sex_of("")
    ('F', '', '')
    """
    return stated if stated in ("M", "F") else ""
