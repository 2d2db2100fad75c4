"""The step that rules calcium out, where its networks see none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...imaging.labels import calcium_labels, heart_labels
from ...imaging.masks import box_centre, region_within
from ...pipeline.case import Case, Fact
from ...pipeline.cautions import zero_findings
from ...pipeline.domain import compare, stated
from ...pipeline.facts import CT, EXCLUDED, HEART, POSSIBLE_CALCIUM
from ...pipeline.gates import HEART_NOT_FOUND, HEART_UNCHECKED
from ...pipeline.operating import check_margin, one_of, operating_point
from ...pipeline.shown import Shown, by_slice
from ...pipeline.step import Column, Context, Step, Value, register

if TYPE_CHECKING:
    from ...weights import WeightSet
    from .network import ScreeningModel

SCREENING: Fact[dict[str, Any]] = Fact("screening", "answer of the exclusion", "screening")
"""``positive``, ``highest`` (null where it is below ``least_probability``), ``threshold``, ``excluded``,
``slices_run`` and how it was used."""


@dataclass(frozen=True, kw_only=True)
class ScreeningRunnerOptions:
    """Exclude scans without calcium, by three 2D networks.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a set.
        localise: Where the crop is laid: ``heart`` around the heart mask, ``chest-wall`` where image
            processing alone finds the heart, as in the paper on cardiac CT.
        heart_margin_mm: With ``heart``, look in the heart mask dilated by this much only; .inf: in the crop;
            null: what the weights state.
        threshold: Probability from which something is calcium; null: the weights' own operating point.
        least_probability: Probability below which ``highest`` is not told: nobody asks further there, which
            saves time; null: the threshold.
        exclude: Leave DeepCACRunner's network out where nothing is found: the score is 0.
    """

    weights: str = "bundled"
    localise: str = "heart"
    heart_margin_mm: float | None = None
    threshold: float | None = None
    least_probability: float | None = None
    exclude: bool = False

    def __post_init__(self) -> None:
        one_of("localise", self.localise, ("heart", "chest-wall"))
        for name in ("threshold", "least_probability"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} is between 0 and 1, not {value}")
        check_margin(self.heart_margin_mm)


@dataclass(frozen=True, kw_only=True)
class RuleOut:
    """Whether there may be coronary calcium, by a `ScreeningModel`.

    Attributes:
        model, weights: The networks, and the set that they were loaded from.
        localise: ``"heart"``: the crop lies around the heart mask; ``"chest-wall"``: where
            `models.rule_out.network.chest_wall_crop` says.
        heart_margin_mm: With ``"heart"``, keep to the heart mask dilated by this much; None: what the
            weights say (`operating.operating_point`).
        exclude: Where nothing is found, no network needs to look for calcium.
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
        from .network import chest_wall_crop

        volume = case[CT]
        region = None
        chosen: Mapping[str, Any] = {}
        if self.localise == "heart":
            heart = case[HEART].mask
            centre = box_centre(heart, volume.geometry)
            point = operating_point(self.weights, heart_margin_mm=self.heart_margin_mm)
            region = region_within(heart, volume.geometry, point.values["heart_margin_mm"])
            chosen, case = point.facts, case.noted(*point.findings)
        else:
            between_walls = chest_wall_crop(volume)
            if between_walls is None:
                message = "no heart lies between the walls of the chest; use the heart mask (localise: heart)"
                return case.noted(HEART_NOT_FOUND.finding(message))
            centre = between_walls
            message = "where the crop was laid was not checked: it need not hold a heart"
            case = case.noted(HEART_UNCHECKED.finding(message))
        found = self.model.predict(volume, centre, region=region)
        excluded = self.exclude and not found.positive
        answer = {
            "positive": found.positive,
            "highest": None if found.highest is None else round(found.highest, 4),
            "threshold": self.model.threshold,
            "excluded": excluded,
            "slices_run": dict(found.slices_run),
            **chosen,
        }
        case = (
            case.add(POSSIBLE_CALCIUM, calcium_labels(found.mask))
            .add(SCREENING, answer)
            .add(EXCLUDED, excluded)
        )
        if not found.positive:
            case = case.noted(*zero_findings(case, "no calcium found"))
        return compare(stated(case, self.weights))


def _build(options: ScreeningRunnerOptions, context: Context) -> RuleOut:
    from .network import ScreeningModel

    weights, device = context.network()
    return RuleOut(
        model=ScreeningModel.load(
            weights, device, threshold=options.threshold, least=options.least_probability
        ),
        weights=weights,
        localise=options.localise,
        heart_margin_mm=options.heart_margin_mm,
        exclude=options.exclude,
    )


def _positive(case: Case) -> bool | None:
    return case.get(SCREENING, {}).get("positive")


def _largest(probability: float | None) -> str:
    return "below the " if probability is None else f"largest probability {probability:.2f}, "


def _shows(case: Case) -> Shown | None:
    answer, possible = case.get(SCREENING), case.get(POSSIBLE_CALCIUM)
    if answer is None or possible is None:
        return None
    return Shown(
        precedence=1,
        title="Coronary calcium possible" if answer["positive"] else "No coronary calcium found",
        line=f"exclusion · {_largest(answer['highest'])}operating point {answer['threshold']:.2f}",
        outline=case.get(HEART, heart_labels(np.zeros_like(possible.mask))),
        outline_name="heart" if HEART in case else "no heart mask",
        marked=possible,
        marked_name="possible calcium",
        weight=by_slice(possible.mask),
    )


def _remarks(case: Case) -> str | None:
    return "excluded" if case.get(EXCLUDED) else None


STEP = register(
    Step(
        module="ScreeningRunner",
        options=ScreeningRunnerOptions,
        phase="compute",
        role="screening",
        train=f"{__package__}.train",
        reads=lambda options: (CT, HEART) if options.localise == "heart" else (CT,),
        writes=(POSSIBLE_CALCIUM, SCREENING, EXCLUDED),
        build=_build,
        shows=_shows,
        remarks=_remarks,
        columns=(
            Column(
                name="screening_positive",
                kind=bool,
                meaning="whether the exclusion found that there may be calcium; empty: not asked",
                of=_positive,
                label="Calcium possible",
                result=True,
            ),
        ),
        values=(
            Value(
                name="calcium_possible",
                label="Coronary Calcium Possible",
                kind=bool,
                meaning="Whether the exclusion found anything that may be coronary calcium.",
                of=_positive,
            ),
        ),
    )
)
