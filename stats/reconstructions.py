"""One acquisition reconstructed with several kernels or thicknesses: what that does to the score.

The results table has no FrameOfReferenceUID, so what is compared are series of one StudyInstanceUID: where a
study holds two acquisitions (in and out of breath, prone and supine), these are compared as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from .agreement import RISK_CUTS, Estimate, bland_altman, bootstrap_median, grouped
from .columns import resamples_for
from .longitudinal import MIN_PAIRS
from .scans import Scans
from .tables import Flow, numbers

ALL = "all"
_LOOKED_AT = (
    "patient_id",
    "study_uid",
    "series_uid",
    "kernel",
    "slice_thickness",
    "n_slices",
    "agatston_score",
)
_DIGITS = 2
"""To which a thickness is rounded, mm: headers have 1.25 and 1.250001."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Pairs of series of one study; of each the second's score is compared with the first's.

    Attributes:
        kernels: ``same kernel``, or the kinds of the two, ``soft and sharp``; `ALL`: of all pairs.
        thickness: ``same``, or those of the two, ``2.5 and 1.25 mm``; "" of all pairs.
        studies: With such a pair.
        n: Pairs.
        median: Of second − first.
        limits: Mean difference − 1.96 SD, and + 1.96 SD; None of one pair.
        regrouped: Pairs whose two scores are in different groups.
        scores: float (n, 2): first, second.
    """

    kernels: str
    thickness: str
    studies: int
    n: int
    median: Estimate
    limits: tuple[float, float] | None
    regrouped: int
    scores: npt.NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """What kernel and thickness do to the scores of a cohort.

    Attributes:
        everything: All pairs.
        kinds: By kernels and thickness, the most frequent first; those of 5 pairs and more.
        left: Pairs of rarer kinds.
        flow: Scans used and left out.
    """

    everything: Difference
    kinds: tuple[Difference, ...]
    left: int
    flow: Flow


def reconstructions(
    scans: Scans, *, sharp: Callable[[str], bool], cuts: Sequence[float] = RISK_CUTS
) -> Reconstructions | None:
    """Compare every two series of a study that differ in kernel or thickness; None where there are none.

    The first of a pair is the one with the soft kernel; of two alike the one with the thicker slices, then
    the one whose kernel comes first by name. Of several series of a study with one kernel and thickness the
    one with most slices is taken.

    Args:
        scans: Of `scored`.
        sharp: Whether a kernel of this name is sharp.
        cuts: Limits of the groups.
    """
    if "slice_thickness" not in scans.frame:
        return None
    frame = scans.frame[[*_LOOKED_AT]]
    flow = Flow("scored scans", len(frame))
    frame = flow.keep(frame, frame["study_uid"] != "", "no study_uid")
    frame = flow.keep(frame, frame["kernel"] != "", "no kernel")
    frame = numbers(frame, "slice_thickness", flow, minimum=0)
    kernels = {kernel: sharp(kernel) for kernel in frame["kernel"].unique()}
    frame = frame.assign(
        sharp=frame["kernel"].map(kernels).astype(bool),
        thick=frame["slice_thickness"].round(_DIGITS),
        less=-frame["n_slices"],
    )
    frame = frame.sort_values(["study_uid", "kernel", "thick", "less", "series_uid"])
    again = frame.duplicated(["study_uid", "kernel", "thick"])
    frame = flow.keep(frame, ~again, "another series of the study with its kernel and thickness")
    frame = frame.sort_values(
        ["study_uid", "sharp", "thick", "kernel"], ascending=[True, True, False, True], ignore_index=True
    )
    columns = frame[["study_uid", "patient_id", "kernel", "sharp", "thick", "agatston_score"]]
    columns = columns.assign(place=np.arange(len(columns)))
    pairs = columns.merge(columns, on="study_uid", suffixes=("", "_other"))
    pairs = pairs[pairs["place"] < pairs["place_other"]]
    if pairs.empty:
        return None
    kinds = pairs["sharp"].map(_KIND) + " and " + pairs["sharp_other"].map(_KIND)
    sizes = pairs["thick"].map("{:g}".format) + " and " + pairs["thick_other"].map("{:g} mm".format)
    pairs = pairs.assign(
        kernels=kinds.where(pairs["kernel"] != pairs["kernel_other"], "same kernel"),
        thickness=sizes.where(pairs["thick"] != pairs["thick_other"], "same"),
    )
    groups = [(key, own) for key, own in pairs.groupby(["kernels", "thickness"]) if len(own) >= MIN_PAIRS]
    groups.sort(key=lambda item: (-len(item[1]), item[0]))
    n = resamples_for(len(pairs) * (1 + len(groups)))  # no more draws in all than for one statistic
    return Reconstructions(
        everything=_difference(ALL, "", pairs, cuts, n),
        kinds=tuple(_difference(str(kernels), str(size), own, cuts, n) for (kernels, size), own in groups),
        left=len(pairs) - sum(len(own) for _, own in groups),
        flow=flow,
    )


_KIND = {False: "soft", True: "sharp"}


def _difference(
    kernels: str, thickness: str, pairs: pd.DataFrame, cuts: Sequence[float], n_resamples: int
) -> Difference:
    scores = pairs[["agatston_score", "agatston_score_other"]].to_numpy(dtype=np.float64)
    first, second = scores.T
    _, low, high = bland_altman(first, second) if len(pairs) > 1 else (None, None, None)
    return Difference(
        kernels=kernels,
        thickness=thickness,
        studies=pairs["study_uid"].nunique(),
        n=len(pairs),
        median=bootstrap_median(
            second - first, patients=pairs["patient_id"].tolist(), n_resamples=n_resamples
        ),
        limits=None if low is None or high is None else (float(low), float(high)),
        regrouped=int((grouped(first, cuts) != grouped(second, cuts)).sum()),
        scores=scores,
    )
