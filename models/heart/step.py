"""The step that finds the heart, and the gates that look at it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...dicom import Finding
from ...dicom.gates import Gate, register_gate
from ...imaging import Geometry, Volume
from ...imaging.labels import heart_labels
from ...imaging.masks import bounding_box, middle_of, solidity
from ...pipeline.case import Case
from ...pipeline.domain import stated
from ...pipeline.facts import CT, HEART, HEART_MEASURES
from ...pipeline.gates import HEART_NOT_FOUND
from ...pipeline.step import Column, Context, Step, register
from .anatomy import NO_CHEST, objection, surroundings

if TYPE_CHECKING:
    from ...weights import WeightSet
    from .network import HeartModel

CONTRAST_MEASURED = register_gate(
    Gate(
        code="contrast-measured",
        sentence="Blood inside the heart is as bright as with contrast agent.",
        overridable=True,
    )
)
HEART_CUT_OFF = register_gate(
    Gate(
        code="heart-cut-off",
        sentence="The heart reaches the edge of the scan and is not all in it.",
        overridable=True,
    )
)
HEART_IMPLAUSIBLE = register_gate(
    Gate(
        code="heart-implausible",
        sentence="What was found as heart has an implausible volume or shape.",
        overridable=True,
    )
)
BROKEN_SLICES = register_gate(
    Gate(
        code="broken-slices",
        sentence="Whole rows or columns through the heart have a single value: part of a slice is missing.",
    )
)
HU_IMPLAUSIBLE = register_gate(
    Gate(
        code="hu-implausible",
        sentence="Blood inside the heart is too dark: the scan's values are not Hounsfield units.",
        overridable=True,
    )
)

MIN_HEART_HU = -150.0
"""A heart whose median is below this is not a heart: soft tissue with some fat has a median of about
0 to 60 HU, lung −850 HU, fat −100 HU."""

MAX_BORDER_SHARE = 0.25
"""Share of the heart's largest cross-section that may lie in the first or last slice before the heart
counts as cut off by the field of view."""

CONTRAST_HU = 100.0
"""Median HU of the inner heart above which the scan is taken for contrast-enhanced. Our own limit:
unenhanced blood is about 30 to 60 HU, an enhanced blood pool usually far above 150 HU."""


MIN_BLOOD_HU = 0.0
"""Median HU of the inner heart below which the scan's values are no Hounsfield units. Our own limit: blood
without contrast agent is about 30 to 60 HU, in severe anaemia 20 to 30; the scans at hand have 19 to 50."""


@dataclass(frozen=True, kw_only=True)
class Plausible:
    """What the mask of a network must be like to be believed; a set of weights may state its own limits.

    Attributes:
        heart_volume_ml: Lowest and highest volume of a whole adult heart with its pericardium, mL. Our own
            limits, set wide on purpose: they are for masks that went wrong (a vertebra, the liver), not for
            small or large hearts.
        min_solidity: Share of its convex hull that a heart, a round body, must fill
            (`imaging.masks.solidity`). Our own limit: hearts outlined by hand have 0.82 and 0.83, 119
            simulated ones 0.80 to 0.87, what was found in them 0.83 to 0.87, and one that ran on into the
            stomach 0.74.
        height: Lowest and highest `anatomy.Surroundings.height`. Our own limits, for scans whose header has
            another slice distance or pixel size than the scan: 60 simulated hearts have 0.79 to 1.29, 5 real
            ones 0.71 to 1.23.
    """

    heart_volume_ml: tuple[float, float] = (150.0, 2500.0)
    min_solidity: float = 0.77
    height: tuple[float, float] = (0.57, 1.6)

    def __post_init__(self) -> None:
        if not 0 <= self.heart_volume_ml[0] < self.heart_volume_ml[1]:
            raise ValueError(f"heart_volume_ml is [lowest, highest], not {self.heart_volume_ml}")
        if not 0 <= self.min_solidity < 1:
            raise ValueError(f"min_solidity is at least 0 and below 1, not {self.min_solidity}")
        if not 0 <= self.height[0] < self.height[1]:
            raise ValueError(f"height is [lowest, highest], not {self.height}")


@dataclass(frozen=True, kw_only=True)
class HeartRunnerOptions:
    """Segment the heart.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with converted nnU-Net v2 weights.
    """

    weights: str = "bundled"


def _inner(mask: npt.NDArray[np.bool_], geometry: Geometry, depth_mm: float) -> npt.NDArray[np.bool_]:
    """The mask without a rim of about `depth_mm` in the slices' plane."""
    from scipy.ndimage import minimum_filter

    size = [1] + [2 * max(1, round(depth_mm / s)) + 1 for s in geometry.spacing[1:]]
    return np.asarray(minimum_filter(mask, size=size, mode="constant"), dtype=bool)


def broken_slices(volume: Volume, heart: npt.NDArray[np.bool_]) -> npt.NDArray[np.int_]:
    """Slices in which whole rows or columns that cross the heart's box have a single value.

    Args:
        volume: The CT.
        heart: bool (z, y, x) on its grid, not empty.

    Returns:
        Indices of the slices, ascending. Less than −1024 HU counts as that: padding, or air cut off there.
    """
    zs, ys, xs = bounding_box(heart)
    hu = volume.hu[zs]
    found: npt.NDArray[np.int_] = zs.start + np.flatnonzero(
        _has_plain_line(hu[:, ys]) | _has_plain_line(hu[:, :, xs].swapaxes(1, 2))
    )
    return found


def _has_plain_line(lines: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Of each slice of lines (z, n, along) whether one has a single value (from −1024 HU down all are)."""
    # A few voxels clear nearly all lines; the others are looked at whole.
    plain = np.ptp(np.maximum(lines[:, :, ::16], -1024), axis=2) == 0
    plain[plain] = np.ptp(np.maximum(lines[plain], -1024), axis=1) == 0
    out: npt.NDArray[np.bool_] = plain.any(axis=1)
    return out


def check_heart(
    volume: Volume,
    heart: npt.NDArray[np.bool_],
    *,
    allow: Collection[str] = (),
    plausible: Plausible | None = None,
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """The gates that look at the heart: found, in a chest, whole, plausible, without contrast.

    Args:
        volume: The CT.
        heart: bool (z, y, x) on the CT's grid.
        allow: Codes of gates that shall warn instead of reject.
        plausible: Limits of the network's set; None: the usual ones.

    Returns:
        Numbers for the details JSON, none where the mask is empty; and the findings: heart-not-found,
        no-chest, heart-implausible, hu-implausible, heart-cut-off, chest-implausible, contrast-measured or
        broken-slices, fatal but where `allow` turned them into warnings.
    """
    if not heart.any():
        message = "no heart was found in this series; look at the scan and its orientation"
        return {}, (HEART_NOT_FOUND.finding(message),)
    box = bounding_box(heart)
    part, hu = heart[box], volume.hu[box]
    values = hu[part]
    millilitres = len(values) * volume.geometry.voxel_volume / 1000
    median = float(np.median(values))
    inner = _inner(part, volume.geometry, 8.0)
    blood = float(np.median(hu[inner])) if inner.any() else median
    roundness, around = solidity(part, volume.geometry), surroundings(volume, heart)
    facts = {
        "heart_volume_ml": round(millilitres, 1),
        "heart_centre_lps": [round(c, 2) for c in middle_of(box, volume.geometry)],
        "heart_median_hu": median,
        "heart_inner_median_hu": blood,
        "heart_solidity": round(roundness, 3),
        "heart_surroundings": around.to_dict(),
    }
    if np.ptp(values) == 0:  # whatever a network sees there, it is no heart: never to be allowed
        message = "all voxels of what was found have one value: the scan shows nothing; look at its pixels"
        return facts, (HEART_NOT_FOUND.finding(message),)
    findings: list[Finding] = []
    against = objection(around)
    if against is not None and against[0] == NO_CHEST:
        findings.append(NO_CHEST.finding(against[1]))
    largest = part.sum(axis=(1, 2)).max()
    border = max(np.count_nonzero(heart[0]), np.count_nonzero(heart[-1]))
    sides = np.count_nonzero(heart[:, [0, -1], :]) + np.count_nonzero(heart[:, :, [0, -1]])
    cut = border > MAX_BORDER_SHARE * largest or sides > 0.02 * len(values)
    lowest, highest = (plausible := plausible or Plausible()).heart_volume_ml
    if not lowest <= millilitres <= highest or median < MIN_HEART_HU:
        message = (
            f"what was found has {millilitres:.0f} mL and a median of {median:.0f} HU: not a plausible heart"
        )
        findings.append(HEART_IMPLAUSIBLE.finding(message, allow=allow))
    elif roundness < plausible.min_solidity:
        message = (
            f"what was found fills {roundness:.0%} of its convex hull: part of it is not heart; look at it"
        )
        findings.append(HEART_IMPLAUSIBLE.finding(message, allow=allow))
    elif not cut and not plausible.height[0] <= around.height <= plausible.height[1]:
        message = (
            f"what was found is {around.height:.2f} times as high as wide: the distance of the slices or the "
            "size of the pixels in the header is not that of the scan"
        )
        findings.append(HEART_IMPLAUSIBLE.finding(message, allow=allow))
    elif blood < MIN_BLOOD_HU:
        message = f"the inner heart's median is {blood:.0f} HU, not about 40: the scan's values are not HU"
        findings.append(HU_IMPLAUSIBLE.finding(message, allow=allow))
    if cut:
        message = "the heart reaches beyond the scanned field; part of its calcium would be missing"
        findings.append(HEART_CUT_OFF.finding(message, allow=allow))
    if against is not None and against[0] != NO_CHEST:
        findings.append(against[0].finding(against[1], allow=allow))
    if blood > CONTRAST_HU:
        message = f"the inner heart has a median of {blood:.0f} HU: this scan seems to be contrast-enhanced"
        findings.append(CONTRAST_MEASURED.finding(message, allow=allow))
    if len(broken := broken_slices(volume, heart)):
        first = volume.geometry.slice_number(int(broken[0]))
        message = (
            f"in {len(broken)} of {len(heart)} slices (number {first} from the lowest, …) rows or columns "
            "through the heart have a single value: part of them is missing; get the series again"
        )
        findings.append(BROKEN_SLICES.finding(message))
    return facts, tuple(findings)


@dataclass(frozen=True, kw_only=True)
class FindHeart:
    """Heart mask by a `HeartModel`, then the gates that look at it.

    Attributes:
        model, weights: The network, and the set that it was loaded from.
        allow: Codes of gates that shall warn instead of reject.
        plausible: Limits of the set; None: the usual ones.
    """

    model: HeartModel
    weights: WeightSet
    allow: Collection[str] = ()
    plausible: Plausible | None = None

    def __call__(self, case: Case) -> Case:
        """Rejects the case for what `check_heart` finds; mask and measures stay."""
        volume = case[CT]
        mask = self.model.predict(volume).mask
        measures, findings = check_heart(volume, mask, allow=self.allow, plausible=self.plausible)
        case = case.add(HEART, heart_labels(mask)).add(HEART_MEASURES, measures)
        return stated(case.noted(*findings), self.weights)


def _build(options: HeartRunnerOptions, context: Context) -> FindHeart:
    from ...weights import numbers
    from .network import HeartModel

    weights, device = context.network()
    return FindHeart(
        model=HeartModel.load(weights, device),
        weights=weights,
        allow=context.allow,
        plausible=numbers(weights, Plausible),
    )


def _remarks(case: Case) -> str | None:
    measures = case.get(HEART_MEASURES)
    return None if measures is None else f"heart {measures.get('heart_volume_ml', '?')} mL"


STEP = register(
    Step(
        module="HeartRunner",
        options=HeartRunnerOptions,
        phase="compute",
        role="heart",
        train=f"{__package__}.train",
        reads=lambda options: (CT,),
        writes=(HEART, HEART_MEASURES),
        build=_build,
        remarks=_remarks,
        columns=(
            Column(
                name="heart_volume_ml",
                kind=float,
                meaning="volume of the heart mask, mL",
                label="Heart volume",
                unit="mL",
                listed=True,
                of=lambda case: case.get(HEART_MEASURES, {}).get("heart_volume_ml"),
            ),
        ),
    )
)
