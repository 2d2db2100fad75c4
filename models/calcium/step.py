"""The step that finds the coronary calcium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...imaging.labels import calcium_labels
from ...imaging.masks import box_centre, region_within
from ...pipeline.arteries import ARTERIES, NOT_CORONARY
from ...pipeline.case import Case
from ...pipeline.domain import compare, stated
from ...pipeline.doubt import CERTAINTY, Interval, StatedDoubt
from ...pipeline.facts import CALCIUM, CALCIUM_RUN, CT, EXCLUDED, HEART
from ...pipeline.operating import OperatingPoint, check_margin, operating_point
from ...pipeline.step import Context, Step, register
from ...system.codec import to_plain
from ...weights import numbers

if TYPE_CHECKING:
    from ...weights import WeightSet
    from .network import CalciumModel


@dataclass(frozen=True, kw_only=True)
class DeepCACRunnerOptions:
    """Segment the coronary calcium.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a converted set.
        heart_margin_mm: Look for calcium in the heart mask dilated by this much only; .inf: in the whole
            crop (docs/decisions/0004).
        peak_probability: Count a lesion only where the network is somewhere as sure as this; 0.5: every
            lesion (docs/decisions/0009).
            Both null: what the weights state, see `pipeline.operating`.
        half_precision: Compute in 16 bits on a GPU; a voxel may change where the network is undecided. On a
            CPU it is an error.
    """

    weights: str = "bundled"
    heart_margin_mm: float | None = None
    peak_probability: float | None = None
    half_precision: bool = False

    def __post_init__(self) -> None:
        if self.peak_probability is not None and not 0.5 <= self.peak_probability < 1:
            raise ValueError(f"peak_probability is at least 0.5 and below 1, not {self.peak_probability}")
        check_margin(self.heart_margin_mm)


@dataclass(frozen=True, kw_only=True)
class FindCalcium:
    """Calcium mask by a `CalciumModel` around the heart, empty where an exclusion has ruled calcium out.

    Attributes:
        model, weights: The network, and the set that it was loaded from.
        heart_margin_mm: Keep to the heart mask dilated by this much; infinite: the whole crop (the paper).
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
        self._interval(self._point())

    def _point(self) -> OperatingPoint:
        return operating_point(
            self.weights, heart_margin_mm=self.heart_margin_mm, peak_probability=self.peak_probability
        )

    def _interval(self, point: OperatingPoint) -> Interval | None:
        """The interval of scores that the set states, where it is used as it was tuned."""
        stated = numbers(self.weights, StatedDoubt).interval
        return stated if set(point.facts["from"].values()) == {"weights"} else None

    def __call__(self, case: Case) -> Case:
        volume, heart = case[CT], case[HEART].mask
        point = self._point()
        used: dict[str, Any] = {
            "exact_from_hu": self.lowest_hu,
            "window_hu": list(self.model.window_hu),
            **point.facts,
            "interval": to_plain(self._interval(point)),
        }
        if case.get(EXCLUDED):
            used |= {"patches_run": 0, "patches_total": 0}
            mask = np.zeros(heart.shape, dtype=bool)
        else:
            prediction = self.model.predict(
                volume,
                box_centre(heart, volume.geometry),
                heart=heart,
                region=region_within(heart, volume.geometry, point.values["heart_margin_mm"]),
                peak=point.values["peak_probability"],
                lowest_hu=self.lowest_hu,
            )
            used |= {"patches_run": prediction.patches_run, "patches_total": prediction.patches_total}
            mask = prediction.mask
            case = case.add(CERTAINTY, prediction.sure)
            for fact, named in zip((ARTERIES, NOT_CORONARY), prediction.names, strict=False):
                case = case.add(fact, named)
        case = case.noted(*point.findings).add(CALCIUM, calcium_labels(mask)).add(CALCIUM_RUN, used)
        return compare(stated(case, self.weights))


def _build(options: DeepCACRunnerOptions, context: Context) -> FindCalcium:
    from .network import CalciumModel

    weights, device = context.network()
    return FindCalcium(
        model=CalciumModel.load(weights, device, half=options.half_precision).folded(),
        weights=weights,
        heart_margin_mm=options.heart_margin_mm,
        peak_probability=options.peak_probability,
        lowest_hu=context.counted_from,
    )


STEP = register(
    Step(
        module="DeepCACRunner",
        options=DeepCACRunnerOptions,
        phase="compute",
        role="calcium",
        train=f"{__package__}.train",
        reads=lambda options: (CT, HEART),
        uses=(EXCLUDED,),
        writes=(CALCIUM, CALCIUM_RUN, CERTAINTY, ARTERIES, NOT_CORONARY),
        build=_build,
    )
)
