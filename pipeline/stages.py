"""The stages: callables ``Case -> Case`` that each do one thing.

A stage whose gate refuses the series returns the case with all that it knows and the finding
(`Case.noted`): a rejected case forgets nothing. What reads the pixels raises instead; the chain catches.

They know nothing of workflows or folders; `chain` builds them from a workflow for the run in memory, and
the modules of `utils` call the same functions between files.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..dicom import Finding, make_finding, read_series
from ..dicom.gates import is_sharp_kernel
from ..errors import WorkflowError
from ..imaging import Geometry, Volume
from ..imaging.masks import bounding_box, solidity, widened
from ..scoring import score
from ..scoring.rules import find_rule
from .anatomy import objection, surroundings
from .case import Case
from .cautions import zero_findings
from .domain import compare, stated
from .operating import OperatingPoint, operating_point

if TYPE_CHECKING:
    from ..models.calcium import CalciumModel
    from ..models.direct import DirectModel
    from ..models.heart import HeartModel
    from ..models.screening import ScreeningModel
    from ..weights import WeightSet

MIN_HEART_ML, MAX_HEART_ML = 150.0, 2500.0
"""Plausible volume of a whole adult heart with its pericardium, mL. Our own limits, set wide on purpose:
they are for masks that went wrong (a vertebra, the liver), not for small or large hearts."""

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

MIN_SOLIDITY = 0.77
"""A heart is a round body: share that it must fill of its convex hull (`imaging.masks.solidity`). Our own
limit: hearts outlined by hand have 0.82 and 0.83, 119 simulated ones 0.80 to 0.87, what was found in them
0.83 to 0.87, and one that ran on into the stomach 0.74."""

METAL_HU, METAL_SHARP_HU = 1500.0, 2000.0
"""HU from which counted voxels are taken for metal, with soft and sharp kernels. Our own limits: coronary
calcium above 1000 HU is known (van Rosendael et al., JAMA Cardiol 2020;5:282) and kernels overshoot; the
simulator draws calcium up to 1500 HU and metal from 2500 HU on."""
MIN_METAL_MM3 = 1.0
"""Least volume of such voxels, so that a grain of noise is no metal."""


def check_headers(case: Case) -> Case:
    """What the header gates found; a fatal finding rejects the case."""
    return case.noted(*case.series.findings)


def build_volume(case: Case) -> Case:
    """Read the pixels into `Case.volume`.

    Raises:
        SeriesRejected, SeriesFailed: See `dicom.read_series`.
    """
    reading = read_series(case.series)
    series = replace(case.series, slices=reading.slices)
    return replace(case, series=series, volume=reading.volume).noted(*reading.findings)


def _inner(mask: npt.NDArray[np.bool_], geometry: Geometry, depth_mm: float) -> npt.NDArray[np.bool_]:
    """The mask without a rim of about `depth_mm` in the slices' plane."""
    from scipy.ndimage import minimum_filter

    size = [1] + [2 * max(1, round(depth_mm / s)) + 1 for s in geometry.spacing[1:]]
    return np.asarray(minimum_filter(mask, size=size, mode="constant"), dtype=bool)


def check_heart(
    volume: Volume, heart: npt.NDArray[np.bool_], *, allow: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[Finding, ...]]:
    """The gates that look at the heart: found, in a chest, whole, plausible, without contrast.

    Args:
        volume: The CT.
        heart: bool (z, y, x) on the CT's grid.

    Returns:
        Numbers for the details JSON, none where the mask is empty; and the findings: heart-not-found,
        no-chest, heart-implausible, hu-implausible, heart-cut-off, chest-implausible or contrast-measured,
        fatal but where `allow` turned them into warnings.
    """
    if not heart.any():
        message = "no heart was found in this series; look at the scan and its orientation"
        return {}, (make_finding("heart-not-found", message),)
    box = bounding_box(heart)
    part, hu = heart[box], volume.hu[box]
    values = hu[part]
    millilitres = float(part.sum()) * volume.geometry.voxel_volume / 1000
    median = float(np.median(values))
    inner = _inner(part, volume.geometry, 8.0)
    blood = float(np.median(hu[inner])) if inner.any() else median
    roundness, around = solidity(part, volume.geometry), surroundings(volume, heart)
    facts = {
        "heart_volume_ml": round(millilitres, 1),
        "heart_centre_lps": [round(c, 2) for c in _centre(box, volume.geometry)],
        "heart_median_hu": median,
        "heart_inner_median_hu": blood,
        "heart_solidity": round(roundness, 3),
        "heart_surroundings": around.to_dict(),
    }
    if np.ptp(values) == 0:  # whatever a network sees there, it is no heart: never to be allowed
        message = "all voxels of what was found have one value: the scan shows nothing; look at its pixels"
        return facts, (make_finding("heart-not-found", message),)
    findings: list[Finding] = []
    against = objection(around)
    if against is not None and against[0] == "no-chest":
        findings.append(make_finding(*against))
    if not MIN_HEART_ML <= millilitres <= MAX_HEART_ML or median < MIN_HEART_HU:
        message = (
            f"what was found has {millilitres:.0f} mL and a median of {median:.0f} HU: not a plausible heart"
        )
        findings.append(make_finding("heart-implausible", message, allow=allow))
    elif roundness < MIN_SOLIDITY:
        message = (
            f"what was found fills {roundness:.0%} of its convex hull: part of it is not heart; look at it"
        )
        findings.append(make_finding("heart-implausible", message, allow=allow))
    elif blood < MIN_BLOOD_HU:
        message = f"the inner heart's median is {blood:.0f} HU, not about 40: the scan's values are not HU"
        findings.append(make_finding("hu-implausible", message, allow=allow))
    areas = heart.sum(axis=(1, 2))
    border = max(int(areas[0]), int(areas[-1]))
    sides = int(heart[:, [0, -1], :].sum() + heart[:, :, [0, -1]].sum())
    if border > MAX_BORDER_SHARE * areas.max() or sides > 0.02 * heart.sum():
        message = "the heart reaches beyond the scanned field; part of its calcium would be missing"
        findings.append(make_finding("heart-cut-off", message, allow=allow))
    if against is not None and against[0] != "no-chest":
        findings.append(make_finding(*against, allow=allow))
    if blood > CONTRAST_HU:
        message = f"the inner heart has a median of {blood:.0f} HU: this scan seems to be contrast-enhanced"
        findings.append(make_finding("contrast-measured", message, allow=allow))
    return facts, tuple(findings)


@dataclass(frozen=True, kw_only=True)
class FindHeart:
    """Heart mask by a `HeartModel`, then the gates that look at it.

    Attributes:
        model, weights: The network, and the set that it was loaded from.
        allow: Codes of gates that shall warn instead of reject.
    """

    model: HeartModel
    weights: WeightSet
    allow: Collection[str] = ()

    def __call__(self, case: Case) -> Case:
        """Rejects the case for what `check_heart` finds; mask and numbers stay."""
        volume = _present(case.volume)
        prediction = self.model.predict(volume)
        facts, findings = check_heart(volume, prediction.mask, allow=self.allow)
        case = replace(case, heart=prediction.mask, facts={**case.facts, **facts})
        return stated(case.noted(*findings), self.weights)


def heart_centre(heart: npt.NDArray[np.bool_], geometry: Geometry) -> tuple[float, float, float]:
    """Centre of the heart mask's bounding box, LPS mm (x, y, z): where the calcium crop is laid.

    The middle of the box, not the centre of gravity: the crop must hold the whole heart.

    Raises:
        ValueError: The mask is empty.
    """
    return _centre(bounding_box(heart), geometry)


def _centre(box: tuple[slice, ...], geometry: Geometry) -> tuple[float, float, float]:
    """Middle of a box of indices, LPS mm (x, y, z)."""
    x, y, z = geometry.to_lps([(s.start + s.stop - 1) / 2 for s in box])
    return float(x), float(y), float(z)


def _region(
    heart: npt.NDArray[np.bool_], geometry: Geometry, margin_mm: float
) -> npt.NDArray[np.bool_] | None:
    """The heart widened by a margin, None for an infinite one: the whole crop."""
    return widened(heart, geometry, margin_mm) if math.isfinite(margin_mm) else None


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Whether there may be coronary calcium, by a `ScreeningModel`.

    Attributes:
        model, weights: The networks, and the set that they were loaded from.
        localise: ``"heart"``: the crop lies around the heart mask; ``"chest-wall"``: where
            `models.screening.chest_wall_crop` says.
        heart_margin_mm: With ``"heart"``, keep to the heart mask widened by this much; None: what the
            weights say (`operating.operating_point`).
        exclude: Where nothing is found, `FindCalcium` shall not look.
    """

    model: ScreeningModel
    weights: WeightSet
    localise: str = "heart"
    heart_margin_mm: float | None = None
    exclude: bool = False

    def __post_init__(self) -> None:
        """Raises `WeightsError` where the set's numbers cannot be read: before the first series."""
        operating_point(self.weights, heart_margin_mm=self.heart_margin_mm)

    def __call__(self, case: Case) -> Case:
        """Rejects the case, heart-not-found, where image processing finds no heart."""
        from ..models.screening import chest_wall_crop

        volume = _present(case.volume)
        region, findings = None, case.findings
        chosen: Mapping[str, Any] = {}
        if self.localise == "heart":
            heart = _present(case.heart)
            centre = heart_centre(heart, volume.geometry)
            point = operating_point(self.weights, heart_margin_mm=self.heart_margin_mm)
            region = _region(heart, volume.geometry, point.values["heart_margin_mm"])
            chosen, findings = point.facts, (*findings, *point.findings)
        else:
            between_walls = chest_wall_crop(volume)
            if between_walls is None:
                message = "no heart lies between the walls of the chest; use the heart mask (localise: heart)"
                return case.noted(make_finding("heart-not-found", message))
            centre = between_walls
        found = self.model.predict(volume, centre, region=region)
        facts = {
            "positive": found.positive,
            "highest": round(found.highest, 4),
            "threshold": self.model.threshold,
            "excluded": self.exclude and not found.positive,
            "slices_run": dict(found.slices_run),
            **chosen,
        }
        facts = {**case.facts, "screening": facts}
        case = replace(case, screened=found.mask, findings=findings, facts=facts)
        if not found.positive:
            case = replace(case, findings=(*case.findings, *zero_findings(case, "no calcium found")))
        return compare(stated(case, self.weights))


@dataclass(frozen=True, kw_only=True)
class ScoreDirectly:
    """The score read off the slices by a `DirectModel`.

    Attributes:
        model, weights: The networks, and the set that they were loaded from.
        localise: ``"networks"``: its own find the heart's box; ``"heart"``: the box of the heart mask.
        attend: Also find where what was counted lies, for the preview.
    """

    model: DirectModel
    weights: WeightSet
    localise: str = "networks"
    attend: bool = True

    def __call__(self, case: Case) -> Case:
        """Rejects the case, heart-not-found, where no box is found."""
        from ..models.direct import direct_group

        volume = _present(case.volume)
        heart = _present(case.heart) if self.localise == "heart" else None
        found = self.model.predict(volume, heart=heart)
        if found is None:
            message = "the networks found no heart in this series; look at the scan and its orientation"
            return case.noted(make_finding("heart-not-found", message))
        facts = {
            "score": round(found.score, 4),
            "group": direct_group(found.score),
            "slice_scores": [round(float(s), 2) for s in found.slice_scores],
            "slice_heights_mm": [round(float(h), 2) for h in found.heights],
            "box": [[s.start, s.stop] for s in found.box],
        }
        attention = self.model.attention(volume, found) if self.attend else None
        case = replace(case, attention=attention, facts={**case.facts, "direct": facts})
        if facts["group"] == 0:
            case = replace(case, findings=(*case.findings, *zero_findings(case, "a direct score below 1")))
        return compare(stated(case, self.weights))


@dataclass(frozen=True, kw_only=True)
class FindCalcium:
    """Calcium mask by a `CalciumModel` around the heart, empty where `Screen` has excluded the scan.

    Attributes:
        model, weights: The network, and the set that it was loaded from.
        heart_margin_mm: Keep to the heart mask widened by this much; infinite: the whole crop (the paper).
        peak_probability: That a lesion must reach somewhere; 0.5: any (the paper).
            Both None: what the weights say (`operating.operating_point`).
        lowest_hu: HU from which the rule counts, see `CalciumModel.predict`; None: any voxel may count.
    """

    model: CalciumModel
    weights: WeightSet
    heart_margin_mm: float | None = None
    peak_probability: float | None = None
    lowest_hu: int | None = None

    def __post_init__(self) -> None:
        """Raises `WeightsError` where the set's numbers cannot be read: before the first series."""
        self._point()

    def _point(self) -> OperatingPoint:
        return operating_point(
            self.weights, heart_margin_mm=self.heart_margin_mm, peak_probability=self.peak_probability
        )

    def __call__(self, case: Case) -> Case:
        volume, heart = _present(case.volume), _present(case.heart)
        point = self._point()
        findings = (*case.findings, *point.findings)
        facts: dict[str, Any] = {
            "calcium": {
                "exact_from_hu": self.lowest_hu,
                "window_hu": list(self.model.window_hu),
                **point.facts,
            }
        }
        if case.facts.get("screening", {}).get("excluded"):
            facts |= {"patches_run": 0, "patches_total": 0}
            mask = np.zeros_like(heart)
        else:
            prediction = self.model.predict(
                volume,
                heart_centre(heart, volume.geometry),
                region=_region(heart, volume.geometry, point.values["heart_margin_mm"]),
                peak=point.values["peak_probability"],
                lowest_hu=self.lowest_hu,
            )
            facts |= {"patches_run": prediction.patches_run, "patches_total": prediction.patches_total}
            mask = prediction.mask
        case = replace(case, calcium=mask, findings=findings, facts={**case.facts, **facts})
        return compare(stated(case, self.weights))


def check_metal(
    volume: Volume, calcium: npt.NDArray[np.bool_], kernel: str, *, allow: Collection[str] = ()
) -> tuple[Finding, ...]:
    """The gate that looks for metal among what would be counted.

    Args:
        volume: The CT.
        calcium: bool (z, y, x) on the CT's grid.
        kernel: ConvolutionKernel; sharp ones overshoot.

    Returns:
        The finding metal, if it is any; fatal unless `allow` turned it into a warning.
    """
    limit = METAL_SHARP_HU if is_sharp_kernel(kernel) else METAL_HU
    values = volume.hu[calcium]
    dense = int((values >= limit).sum())
    if dense == 0 or dense * volume.geometry.voxel_volume < MIN_METAL_MM3:
        return ()
    message = (
        f"what would be counted reaches {int(values.max())} HU: a stent, clip or wire, or extremely dense "
        "calcium; look at the scan"
    )
    return (make_finding("metal", message, allow=allow),)


@dataclass(frozen=True, kw_only=True)
class ScoreCalcium:
    """The gate that looks for metal; then Agatston score, volume, mass and lesions by a named rule.

    Attributes:
        rule, calibration_factor: See `scoring.score`.
        allow: Codes of gates that shall warn instead of reject.
    """

    rule: str = "agatston"
    calibration_factor: float | None = None
    allow: Collection[str] = ()

    def __call__(self, case: Case) -> Case:
        """Score the case; metal rejects it, and then there is no score.

        Raises:
            WorkflowError: The calcium mask is not exact where the rule counts.
        """
        volume, calcium = _present(case.volume), _present(case.calcium)
        _check_exact(case, self.rule)
        case = case.noted(*check_metal(volume, calcium, case.series.kernel, allow=self.allow))
        if case.stop is not None:
            return case
        result = score(
            volume,
            calcium,
            rule=self.rule,
            slice_thickness=case.series.slice_thickness,
            calibration_factor=self.calibration_factor,
        )
        zero = zero_findings(case, "a score of 0") if result.total == 0 else ()
        return replace(case, score=result, findings=(*case.findings, *zero))


def _check_exact(case: Case, rule: str) -> None:
    """Make sure that no patch was skipped which a rule's voxels ask for.

    Raises:
        WorkflowError: The rule counts below the HU from which the calcium mask is that of a dense run.
    """
    exact = case.facts.get("calcium", {}).get("exact_from_hu")
    if find_rule(rule).counts_below(exact):
        raise WorkflowError(
            f"the rule {rule!r} counts below {exact} HU, from where the calcium mask is exact: name the rule "
            "in the workflow that runs DeepCACRunner, too"
        )


def _present(value: Any) -> Any:
    if value is None:
        raise TypeError("this stage needs the stages before it: their result is missing in the case")
    return value
