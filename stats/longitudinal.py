"""Scores of one person over time, and of one scan under several kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from .agreement import (
    RISK_CUTS,
    Agreement,
    Estimate,
    agreement,
    bootstrap_median,
    group_names,
    grouped,
    rate,
)
from .columns import resamples_for
from .scans import Scans, one_scan_each
from .tables import Flow

MIN_DAYS = 90
"""Two scans nearer than this are of one visit; chosen: NLST's visits are a year apart."""
MIN_PAIRS = 5
"""Fewest pairs of scans that are compared; chosen: below there is no interval."""
SQUARE_ROOT_CHANGE = 2.5
"""Progression where √volume rises by this, √mm³ (Hokanson et al., AJR 2004;182:1327). Of scores from the same
lesions it is used likewise; the volume is taken where the table has it."""


@dataclass(frozen=True, kw_only=True)
class Progression:
    """Change between each person's visits.

    Attributes:
        persons: With at least two visits.
        intervals: Pairs of successive visits.
        years: Median time between them.
        names: Of the groups.
        transitions: int (group before, group after), pairs of successive visits.
        change: Median yearly change of the score.
        incident: Share of pairs that begin at score 0 and end above it.
        progressed: Share of pairs whose √volume rises by 2.5 √mm³ or more; None without volumes.
        pairs: ``patient_id``, ``years``, ``before``, ``after``.
        flow: Scans used and left out.
    """

    persons: int
    intervals: int
    years: float
    names: tuple[str, ...]
    transitions: npt.NDArray[np.int64]
    change: Estimate
    incident: Estimate
    progressed: Estimate | None
    pairs: pd.DataFrame = field(repr=False)
    flow: Flow


@dataclass(frozen=True, kw_only=True)
class KernelPair:
    """The same acquisition reconstructed with two kernels.

    Attributes:
        first, second: Kernels; the second's score is compared with the first's.
        result: See `Agreement`, without intervals; differences are second − first.
        n: Pairs of scans.
    """

    first: str
    second: str
    n: int
    result: Agreement


def progression(scans: Scans, *, cuts: Sequence[float] = RISK_CUTS) -> Progression | None:
    """Follow each person from visit to visit; None where nobody has two.

    Args:
        scans: Of `scored`.
        cuts: Limits of the groups.
    """
    flow = Flow("scored scans", len(scans.frame))
    looked_at = ["patient_id", "series_uid", "date", "kernel", "n_slices", "agatston_score", "volume_mm3"]
    frame, flow = one_scan_each(scans.frame[[c for c in looked_at if c in scans.frame]], flow, "visit")
    frame = frame.sort_values(["patient_id", "date"])
    days = frame.groupby("patient_id")["date"].diff().dt.days
    frame = flow.keep(
        frame, ~(days < MIN_DAYS), f"less than {MIN_DAYS} days after another scan of the person"
    )
    grouping = frame.groupby("patient_id")
    before = grouping["agatston_score"].shift(1)
    pair = before.notna()
    if not pair.any():
        return None
    years = (grouping["date"].diff().dt.days / 365.25)[pair].to_numpy(dtype=float)
    a, b = before[pair].to_numpy(dtype=float), frame.loc[pair, "agatston_score"].to_numpy(dtype=float)
    who = frame.loc[pair, "patient_id"].tolist()
    names = group_names(cuts)
    transitions = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(transitions, (grouped(a, cuts), grouped(b, cuts)), 1)
    n = resamples_for(len(a))
    progressed = None
    if "volume_mm3" in frame:
        volume = pd.to_numeric(frame["volume_mm3"], errors="coerce")
        rise = (np.sqrt(volume) - np.sqrt(volume.groupby(frame["patient_id"]).shift(1)))[pair]
        known = rise.notna().to_numpy()
        if known.any():
            persons = [p for p, k in zip(who, known, strict=True) if k]
            progressed = rate(rise[known] >= SQUARE_ROOT_CHANGE, patients=persons, n_resamples=n)
    zero = a == 0
    return Progression(
        persons=len(set(who)),
        intervals=len(a),
        years=float(np.median(years)),
        names=names,
        transitions=transitions,
        change=bootstrap_median((b - a) / years, patients=who, n_resamples=n),
        incident=rate(b[zero] > 0, patients=[p for p, z in zip(who, zero, strict=True) if z], n_resamples=n),
        progressed=progressed,
        pairs=pd.DataFrame({"patient_id": who, "years": years, "before": a, "after": b}),
        flow=flow,
    )


def kernel_pairs(scans: Scans, *, cuts: Sequence[float] = RISK_CUTS) -> tuple[KernelPair, ...]:
    """Compare reconstructions of the same study by pair of kernels, the most frequent pair first.

    Of several series of a study with one kernel the one with most slices is taken. Pairs of kernels with
    fewer than 5 studies are left out.

    Args:
        scans: Of `scored`.
        cuts: Limits of the groups.
    """
    order = ["study_uid", "kernel", "n_slices", "series_uid"]
    frame = scans.frame[[*order, "agatston_score"]]
    frame = frame[(frame["study_uid"] != "") & (frame["kernel"] != "")]
    frame = frame.sort_values(order, ascending=[True, True, False, True])
    frame = frame[~frame.duplicated(["study_uid", "kernel"])]
    columns = frame[["study_uid", "kernel", "agatston_score"]]
    both = columns.merge(columns, on="study_uid", suffixes=("", "_other"))
    both = both[both["kernel"] < both["kernel_other"]]
    groups = [(key, own) for key, own in both.groupby(["kernel", "kernel_other"]) if len(own) >= MIN_PAIRS]
    pairs = []
    for (first, second), own in sorted(groups, key=lambda item: (-len(item[1]), item[0])):
        result = agreement(
            own["agatston_score"].to_numpy(dtype=float),
            own["agatston_score_other"].to_numpy(dtype=float),
            cuts=cuts,
            n_resamples=0,  # their report shows no intervals
        )
        pairs.append(KernelPair(first=str(first), second=str(second), n=len(own), result=result))
    return tuple(pairs)
