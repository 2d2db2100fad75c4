"""What names in the truth allow to count: calcium found by artery, and what was wrongly counted, by kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..imaging import Volume
from ..imaging.crop import CANDIDATE_HU
from ..imaging.labels import ARTERIES, CALCIUM, NOT_SURE, Labels
from ..scoring import Rule, score_by_class

BoolArray = npt.NDArray[np.bool_]

_AGREED = ("right", "other", "not sure", "no calcium")
"""How the name of a counted voxel agrees with the truth, values from 1 on."""
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
class ArteryScores:
    """A score divided by artery, as it is and as predicted, of a scan whose truth names them all.

    Attributes:
        true: Score of each artery in the truth, by its name.
        ours: The same of the prediction, what has no artery as `labels.NOT_SURE`; None: it names none.
        right, other, not_sure: What the prediction's score has in true calcium, by the name it gives it: the
            right artery, another one, none; 0 without names.
    """

    true: Mapping[str, float]
    ours: Mapping[str, float] | None = None
    right: float = 0.0
    other: float = 0.0
    not_sure: float = 0.0

    @property
    def n_right(self) -> bool | None:
        """Whether as many arteries have calcium in the prediction as in the truth, not if it leaves some of
        its score without one; None of a prediction without names."""
        if self.ours is None:
            return None
        there = [sum(scores[label.name] > 0 for label in ARTERIES) for scores in (self.true, self.ours)]
        return there[0] == there[1] and not self.ours[NOT_SURE.name]


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
    called = None if named is None else _called(ours, named)
    out = []
    for label in true.classes:
        own = (true.array == label.value) & dense
        if not own.any():
            continue
        hit = own & ours
        names = None
        if called is not None and hit.any():
            values = called.array[hit]
            names = {a.name: n for a in called.classes if (n := int((values == a.value).sum()))}
        out.append(TrueArtery(artery=label.name, voxels=int(own.sum()), found=int(hit.sum()), named=names))
    return tuple(out)


def _called(ours: BoolArray, named: Labels) -> Labels:
    """The predicted mask by the artery that it gives each voxel; what has none is not sure."""
    artery = np.where(named.array > 0, named.array, np.uint8(NOT_SURE.value))
    return Labels(array=np.where(ours, artery, np.uint8(0)), classes=(*ARTERIES, NOT_SURE))


def artery_scores(
    volume: Volume,
    true: Labels,
    ours: BoolArray,
    named: Labels | None = None,
    *,
    rule: str | Rule = "agatston",
    slice_thickness: float | None = None,
) -> ArteryScores:
    """What each artery has of the true and of the predicted score, and how far the names agree.

    Args:
        volume: The CT.
        true, ours, named: As of `by_artery`.
        rule, slice_thickness: As of `scoring.score`.
    """

    def by_class(labels: Labels) -> dict[str, float]:
        found = score_by_class(volume, labels, rule=rule, slice_thickness=slice_thickness)
        return {name: part.score for name, part in found.items()}

    own = by_class(true)
    if named is None:
        return ArteryScores(true=own)
    called = _called(ours, named)
    of_truth = [~ours, true.array == 0, called.array == NOT_SURE.value, called.array == true.array]
    agreed = np.select(of_truth, [0, 4, 3, 1], 2).astype(np.uint8)
    classes = tuple(replace(CALCIUM, name=name, value=i) for i, name in enumerate(_AGREED, 1))
    right, other, unsure, _ = by_class(Labels(array=agreed, classes=classes)).values()
    return ArteryScores(true=own, ours=by_class(called), right=right, other=other, not_sure=unsure)


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
