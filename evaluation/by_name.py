"""What names in the truth allow to count: calcium found by artery, and what was wrongly counted, by kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..imaging import Volume
from ..imaging.crop import CANDIDATE_HU
from ..imaging.labels import ARTERIES, CALCIUM, NOT_SURE, Labels
from ..scoring import Rule, score_by_class
from ..scoring.lesions import lesion_voxels

BoolArray = npt.NDArray[np.bool_]

ARTERY_REACH_MM = 10.0
"""A lesion belongs to the artery of the nearest simulated plaque, at most this far from the plaque's middle;
chosen: half the length of a long plaque."""

UNLABELLED, EDGE = "unlabelled", "unlabelled edge"
"""Kinds of what was counted where the truth has no label: anywhere, and in voxels that touch (26 neighbours)
coronary calcium or what is not sure, whose ends are a matter of opinion."""


@dataclass(frozen=True, kw_only=True)
class TrueArtery:
    """The voxels ≥ 130 HU that the truth gives an artery.

    Attributes:
        artery: ``"LM"``, ``"LAD"``, ``"LCX"`` or ``"RCA"``.
        voxels: How many; at least one.
        found: Those that lie in the predicted mask.
        named: Those found by the artery that the prediction gives them, `labels.NOT_SURE` included; None
            where nothing was found or the prediction names no arteries.
    """

    artery: str
    voxels: int
    found: int
    named: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class WronglyCounted:
    """What counts in the prediction though the truth says, or leaves it, that it is not coronary.

    Attributes:
        kind: As the truth names it, or `UNLABELLED` or `EDGE`.
        labelled: Voxels ≥ 130 HU that the truth gives this kind; None of what has no label.
        voxels: Of the prediction that count by its rule.
        score: Their share of the predicted score, see `scoring.score_by_class`.
    """

    kind: str
    labelled: int | None
    voxels: int
    score: float


def arteries_by_plaques(
    volume: Volume, true: BoolArray, plaques: Collection[Mapping[str, Any]]
) -> Labels | None:
    """The lesions of a simulated truth by the artery of the nearest plaque, classes `labels.ARTERIES`.

    A lesion is as in `cases.true_lesions`; one with no plaque nearby has no artery, nor have voxels that are
    in no lesion.

    Args:
        volume: The CT.
        true: bool (z, y, x).
        plaques: Of the simulation: ``artery`` and ``centre_lps`` (mm) of each; of none there are no names.
    """
    if not plaques:
        return None
    index, lesion = lesion_voxels(volume, true)
    points = volume.geometry.to_lps(index.astype(np.float64))
    values = {label.name: label.value for label in ARTERIES}
    array = np.zeros(true.shape, dtype=np.uint8)
    for k in range(int(lesion.max(initial=-1)) + 1):
        own = lesion == k
        array[tuple(index[own].T)] = values.get(_nearest(points[own], plaques), 0)
    return Labels(array=array, classes=ARTERIES)


def _nearest(points: npt.NDArray[np.float64], plaques: Collection[Mapping[str, Any]]) -> str:
    """Artery of the plaque whose middle lies nearest to any of the points (n, 3), LPS mm; "" of none."""
    nearest, best = "", ARTERY_REACH_MM
    for plaque in plaques:
        distance = float(np.linalg.norm(points - np.asarray(plaque["centre_lps"]), axis=1).min())
        if distance <= best:
            nearest, best = str(plaque["artery"]), distance
    return nearest


def by_artery(
    volume: Volume, true: Labels, ours: BoolArray, named: Labels | None = None
) -> tuple[TrueArtery, ...]:
    """How much of each artery's calcium was found, and what the prediction called it.

    Args:
        volume: The CT.
        true: Classes `labels.ARTERIES`.
        ours: bool (z, y, x), the predicted mask.
        named: Its arteries, classes `labels.ARTERIES` and `labels.NOT_SURE`; what of the mask has none is
            not sure. None: it names none.

    Returns:
        Arteries with a voxel, in the order of the classes.
    """
    dense = volume.hu >= CANDIDATE_HU
    out = []
    for label in true.classes:
        own = (true.array == label.value) & dense
        if not own.any():
            continue
        hit = own & ours
        names = None
        if named is not None and hit.any():
            values = named.array[hit]
            names = {a.name: n for a in ARTERIES if (n := int((values == a.value).sum()))}
            if left := len(values) - sum(names.values()):
                names[NOT_SURE.name] = left
        out.append(TrueArtery(artery=label.name, voxels=int(own.sum()), found=int(hit.sum()), named=names))
    return tuple(out)


def wrongly_counted(
    volume: Volume,
    true: BoolArray,
    others: Labels,
    counted: BoolArray,
    *,
    unsure: BoolArray | None = None,
    rule: str | Rule = "agatston",
    slice_thickness: float | None = None,
) -> tuple[WronglyCounted, ...]:
    """What counts of the prediction and is not coronary, by what the truth says it is.

    Args:
        volume: The CT.
        true: bool (z, y, x), coronary calcium.
        others: What the truth names of the rest.
        counted: bool (z, y, x), what counts of the predicted mask by the rule.
        unsure: bool (z, y, x), what the truth is not sure about; nothing of it is counted.
        rule, slice_thickness: As of `scoring.score`.

    Returns:
        The kinds that the truth has here, in the order of the classes, and `EDGE` and `UNLABELLED`.
    """
    last = others.classes[-1].value
    names = (EDGE, UNLABELLED, CALCIUM.name)
    *left, coronary = (replace(CALCIUM, name=name, value=last + i) for i, name in enumerate(names, start=1))
    kinds = (*others.classes, *left)
    core = true if unsure is None else true | unsure
    edge = scipy.ndimage.maximum_filter(core.view(np.uint8), size=3) > 0
    array = np.where(edge, np.uint8(left[0].value), np.uint8(left[1].value))
    array[others.mask] = others.array[others.mask]
    array[true] = coronary.value
    array[~counted] = 0
    parts = score_by_class(
        volume,
        Labels(array=array, classes=(*kinds, coronary)),
        rule=rule,
        slice_thickness=slice_thickness,
    )
    dense = volume.hu >= CANDIDATE_HU
    out = []
    for label in kinds:
        part = parts[label.name]
        labelled = None
        if label in others.classes:
            labelled = int(((others.array == label.value) & dense).sum())
        voxels = round(part.volume_mm3 / volume.geometry.voxel_volume)
        if labelled is None or labelled or voxels:
            out.append(
                WronglyCounted(kind=label.name, labelled=labelled, voxels=voxels, score=round(part.score, 4))
            )
    return tuple(out)
