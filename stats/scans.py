"""Which scans of a results table are taken: one each for a person, a visit or a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from ..errors import InputError
from .tables import Flow, need, numbers

COLUMNS = ("patient_id", "study_uid", "series_uid", "status", "agatston_score", "study_date", "kernel")
"""Columns of a results table that the analyses need, see `pipeline.results.ResultRow`."""

SURVIVAL_KERNELS = ("STANDARD", "B50f", "FC51", "C")
"""Kernels of the DeepCAC2 paper's survival analysis, the preferred first."""


@dataclass(frozen=True, kw_only=True)
class Scans:
    """Scored scans of a results table.

    Attributes:
        frame: Text but for ``agatston_score``, ``n_slices`` and ``date`` (days, NaT where unknown).
        flow: Rows used and left out.
    """

    frame: pd.DataFrame = field(repr=False)
    flow: Flow


def scored(results: pd.DataFrame) -> Scans:
    """The scored scans of a run's table.

    Args:
        results: As `read_table` gives it.

    Raises:
        InputError: A column is missing, or no scan is scored.
    """
    need(results, COLUMNS, "the results table")
    flow = Flow("scans", len(results))
    results = results.reset_index(drop=True)
    frame = pd.DataFrame({c: results[c].str.strip() for c in COLUMNS})
    for status, reason in (("rejected", "rejected by a quality gate"), ("failed", "failed")):
        frame = flow.keep(frame, frame["status"] != status, reason)
    frame = flow.keep(frame, frame["status"] == "scored", "not scored")
    frame = flow.keep(frame, frame["patient_id"] != "", "no patient_id")
    frame = flow.keep(frame, ~frame["series_uid"].duplicated(), "the same series_uid again")
    frame = numbers(frame, "agatston_score", flow, minimum=0)
    if frame.empty:
        raise InputError("no scan of the results table is scored: " + "; ".join(flow.lines()))
    frame = results.drop(columns=[*COLUMNS]).loc[frame.index].assign(**frame)
    slices = pd.to_numeric(frame.get("n_slices", pd.Series("", frame.index)), errors="coerce").fillna(0)
    date = pd.to_datetime(frame["study_date"].str.replace("-", ""), format="%Y%m%d", errors="coerce")
    return Scans(frame=frame.assign(n_slices=slices, date=date), flow=flow)


def one_scan_each(
    frame: pd.DataFrame, flow: Flow, of: Literal["first", "visit"]
) -> tuple[pd.DataFrame, Flow]:
    """One scan for each person (the first by date) or for each person and day.

    Of several scans of a day the one with the preferred kernel (`SURVIVAL_KERNELS`, then any other) is taken,
    of these the one with most slices, then the smallest series_uid. Scans without a date come last.

    Args:
        frame, flow: Of `scored`.
        of: What one scan is kept of.
    """
    rank = {k.lower(): i for i, k in enumerate(SURVIVAL_KERNELS)}
    ordered = frame.assign(
        _kernel=frame["kernel"].str.lower().map(rank).fillna(len(rank)), _slices=-frame["n_slices"]
    ).sort_values(["patient_id", "date", "_kernel", "_slices", "series_uid"], na_position="last")
    ordered = ordered.drop(columns=["_kernel", "_slices"])
    if of == "visit":
        ordered = flow.keep(ordered, ordered["date"].notna(), "no study_date")
        again = ordered.duplicated(["patient_id", "date"])
        return flow.keep(ordered, ~again, "another scan of the same person and day"), flow
    again = ordered["patient_id"].duplicated()
    return flow.keep(ordered, ~again, "a later or another scan of the same person"), flow
