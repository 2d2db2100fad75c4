"""Agreement of two columns of scores: the DeepCAC2 paper's figure 2 for any table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import InputError
from .agreement import N_RESAMPLES, RISK_CUTS, Agreement, agreement, group_names
from .tables import Flow, need, numbers

POSITIVE_ABOVE, POSITIVE_FROM = (0.0,), (100.0,)
"""A score is positive above 0: any calcium; and from 100 on: where a statin is advised whatever the other
risks (ACC/AHA guideline, Circulation 2019;139:e1082)."""
MIN_SCORES = 5
"""Fewest pairs; chosen: below there is no interval."""
_MOST_DRAWN, FEWEST_RESAMPLES = 40_000_000, 200
"""Rows drawn in all by a bootstrap, and its fewest resamples; chosen, so that 130,000 rows take seconds."""


@dataclass(frozen=True, kw_only=True)
class AgreementStudy:
    """Two columns compared.

    Attributes:
        ai, reference: Names of the columns.
        flow: Rows used and left out.
        result: The statistics; see `Agreement`.
        names: Of the groups.
        scores: float (n, 2): reference, AI.
        n_resamples: Of the bootstrap.
    """

    ai: str
    reference: str
    flow: Flow
    result: Agreement
    names: tuple[str, ...]
    scores: npt.NDArray[np.float64] = field(repr=False)
    n_resamples: int


def compare_columns(
    frame: pd.DataFrame,
    *,
    ai: str,
    reference: str,
    patient: str | None = None,
    cuts: Sequence[float] = RISK_CUTS,
) -> AgreementStudy:
    """Compare two columns of Agatston scores.

    Args:
        frame: As `read_table` gives it.
        ai, reference: Names of the columns.
        patient: Column that names the patient; whole patients are then resampled.
        cuts: Upper limits of the groups below the last, ascending; 0, 100, 300 are the paper's.

    Raises:
        InputError: A column is missing, the cuts do not ascend, or fewer than 5 rows are left.
    """
    need(frame, [c for c in (ai, reference, patient) if c], "the table")
    if ai == reference:
        raise InputError(f"--ai and --reference are the same column, {ai!r}")
    flow = Flow("rows", len(frame))
    for name in (ai, reference):
        frame = numbers(frame, name, flow, minimum=0)
    if patient is not None:
        frame = flow.keep(frame, frame[patient].str.strip() != "", f"no {patient}")
    if len(frame) < MIN_SCORES:
        raise InputError(
            f"{len(frame)} rows hold two scores, at least {MIN_SCORES} are needed: " + "; ".join(flow.lines())
        )
    scores = frame[[reference, ai]].to_numpy(dtype=np.float64)
    resamples = resamples_for(len(frame))
    result = agreement(
        scores[:, 0],
        scores[:, 1],
        patients=None if patient is None else list(frame[patient]),
        cuts=cuts,
        thresholds=POSITIVE_ABOVE,
        thresholds_from=POSITIVE_FROM,
        n_resamples=resamples,
    )
    return AgreementStudy(
        ai=ai,
        reference=reference,
        flow=flow,
        result=result,
        names=group_names(cuts),
        scores=scores,
        n_resamples=resamples,
    )


def resamples_for(n: int) -> int:
    """Resamples of a bootstrap of n cases: fewer the more cases there are.

    >>> resamples_for(400), resamples_for(130_000)
    (2000, 307)
    """
    return int(np.clip(_MOST_DRAWN // max(n, 1), FEWEST_RESAMPLES, N_RESAMPLES))
