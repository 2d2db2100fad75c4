"""Percentiles by ethnicity, which a clinical table gives and no header does; `scoring.percentiles.MESA`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from ..errors import InputError
from ..scoring.percentiles import MESA, PERCENTILES
from .scans import Scans
from .tables import Flow, different, need, unique_key

ETHNICITIES = tuple(dict.fromkeys(ethnicity for ethnicity, _ in MESA.rows))
"""What MESA calls them, and what a clinical table must, in any case."""


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Scans with their percentile by age, sex and ethnicity.

    Attributes:
        frame: A row a scan: ``patient_id``, ``series_uid``, ``patient_age`` (years), ``patient_sex``,
            ``ethnicity`` (of `ETHNICITIES`), ``agatston_score``, ``percentile`` (that of the results table,
            by age and sex; "" where it has none) and ``percentile_mesa``, as `scoring.percentiles.Percentile`
            writes it.
        flow: Scans used and left out.
        population: Whose percentiles ``percentile_mesa`` are, in words.
    """

    frame: pd.DataFrame = field(repr=False)
    flow: Flow
    population: str


def by_ethnicity(
    scans: Scans, clinical: pd.DataFrame, *, ethnicity: str, patient: str = "patient_id"
) -> Percentiles:
    """The percentile of each scored scan among MESA's people of the same age, sex and ethnicity.

    Scans of people without age, sex or ethnicity, outside MESA's ages or of another ethnicity are left out,
    and counted.

    Args:
        scans: Of `scored`, with the columns ``patient_age`` and ``patient_sex``.
        clinical: Table with one row a person, as `read_table` gives it.
        ethnicity: Its column with one of `ETHNICITIES`, in any case; other texts: none of MESA's.
        patient: Its column with the PatientID of the results.

    Raises:
        InputError: A column is missing, a person has two rows, no person is in both tables, or the column
            names none of `ETHNICITIES`, as where it holds codes.
    """
    need(clinical, [patient, ethnicity], "the clinical table")
    need(scans.frame, ["patient_age", "patient_sex"], "the results table")
    unique_key(clinical, patient, "the clinical table")
    said = clinical[ethnicity].str.strip().str.lower()
    if not said.isin(ETHNICITIES).any():
        raise InputError(
            f"the clinical table: {ethnicity} holds {different(clinical[ethnicity])}; write "
            f"{', '.join(ETHNICITIES)}, and leave the others as they are"
        )
    flow = Flow("scored scans", len(scans.frame))
    known = dict(zip(clinical[patient].str.strip(), said, strict=True))
    frame = scans.frame.assign(ethnicity=scans.frame["patient_id"].map(known))
    frame = flow.keep(frame, frame["ethnicity"].notna(), f"not in the clinical table ({patient})")
    if frame.empty:
        raise InputError(
            f"no person is in both tables: the results have {scans.frame['patient_id'].iloc[0]!r}, the "
            f"clinical table has {clinical[patient].iloc[0]!r} in {patient}"
        )
    low, high = MESA.ages
    age = pd.to_numeric(frame["patient_age"], errors="coerce")
    frame = frame.assign(patient_age=age, patient_sex=frame["patient_sex"].str.strip())
    frame = flow.keep(frame, frame["ethnicity"] != "", f"no {ethnicity}")
    frame = flow.keep(frame, frame["ethnicity"].isin(ETHNICITIES), f"{ethnicity} is none of MESA's four")
    frame = flow.keep(frame, frame["patient_age"].notna(), "the age is not known")
    frame = flow.keep(frame, frame["patient_age"].between(low, high), f"the age is not {low} to {high}")
    frame = flow.keep(frame, frame["patient_sex"].isin(["F", "M"]), "the sex is not known")
    people = frame[["agatston_score", "patient_age", "ethnicity", "patient_sex"]]
    found = [
        str(MESA.percentile(float(score), int(years), *group))
        for score, years, *group in people.itertuples(index=False)
    ]
    frame = frame.assign(
        percentile=frame.get("percentile", pd.Series("", frame.index)),
        percentile_mesa=pd.Series(found, frame.index, dtype=str),
        patient_age=frame["patient_age"].astype(np.int64),
    )
    columns = ["patient_id", "series_uid", "patient_age", "patient_sex", "ethnicity", "agatston_score",
               "percentile", "percentile_mesa"]  # fmt: skip
    return Percentiles(frame=frame[columns], flow=flow, population=MESA.name)


def in_order(ranges: Sequence[str]) -> list[str]:
    """Different ranges of percentiles, ascending by their lower, then by their upper end.

    Examples:
        >>> in_order(["75-90", "<25", ">90", "<75", "25-50", "<25"])
        ['<25', '<75', '25-50', '75-90', '>90']
    """

    def ends(text: str) -> tuple[int, int]:
        if text.startswith("<"):
            return 0, int(text[1:])
        low, _, high = text.lstrip(">").partition("-")
        return int(low), int(high or max(PERCENTILES) + 1)

    return sorted(set(ranges), key=ends)
