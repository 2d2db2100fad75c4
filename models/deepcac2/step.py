"""The step that finds the coronary calcium as the published DeepCAC2 does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...imaging.labels import calcium_labels
from ...imaging.masks import region_within
from ...pipeline.case import Case
from ...pipeline.domain import compare, stated
from ...pipeline.facts import CALCIUM, CALCIUM_RUN, CT, EXCLUDED, HEART
from ...pipeline.operating import check_margin, one_of
from ...pipeline.step import Context, Step, register

if TYPE_CHECKING:
    from ...weights import WeightSet
    from .predict import PublishedModel


@dataclass(frozen=True, kw_only=True)
class DeepCAC2RunnerOptions:
    """Segment the coronary calcium exactly as the published DeepCAC2 does.

    Each option is a quirk of the published implementation; its default is what is published.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a converted set.
        padding_hu: HU of what lies outside the CT; published: 0 (water), where air would be about −1000.
        whole_hu: Resampled HU lose their fraction, towards 0, as the published CT holds whole numbers.
        whole_voxel_crop: The crop begins at a voxel of the resampled CT, up to half a voxel before the
            heart's middle; false: exactly around it.
        labels: How the heart comes onto the network's grid and calcium back: `nearest` neighbour, or
            `linear`, the probability before its threshold.
        patches_by_heart: Run only patches in which the heart has a voxel; false: all of the crop.
        last_patches: Run the last patch along each axis, too, which the published loop leaves out: it never
            predicts x and y from 224 on, and z from 56 on.
        at_threshold: A mean of exactly 0.5 is calcium; published: only above it.
        heart_margin_mm: Keep calcium in the heart mask dilated by this much only; .inf: anywhere, as
            published.
        lowest_hu: Keep voxels of the CT from this HU on only; null: any, as published.
        half_precision: Compute in 16 bits on a GPU; published: in 32. On a CPU it is an error.
    """

    weights: str = "deepcac2"
    padding_hu: float = 0.0
    whole_hu: bool = True
    whole_voxel_crop: bool = True
    labels: str = "nearest"
    patches_by_heart: bool = True
    last_patches: bool = False
    at_threshold: bool = False
    heart_margin_mm: float = math.inf
    lowest_hu: int | None = None
    half_precision: bool = False

    def __post_init__(self) -> None:
        one_of("labels", self.labels, ("nearest", "linear"))
        check_margin(self.heart_margin_mm)


@dataclass(frozen=True, kw_only=True)
class FindPublishedCalcium:
    """Calcium mask by the published network, empty where an exclusion has ruled calcium out.

    Attributes:
        model, weights: The network, and the set that it was loaded from.
        heart_margin_mm, lowest_hu: See `DeepCAC2RunnerOptions`.
    """

    model: PublishedModel
    weights: WeightSet
    heart_margin_mm: float = math.inf
    lowest_hu: int | None = None

    def __call__(self, case: Case) -> Case:
        volume, heart = case[CT], case[HEART].mask
        if case.get(EXCLUDED):
            mask, run, counted, total = np.zeros_like(heart), 0, 0, 0
        else:
            found = self.model.predict(volume, heart)
            mask, run, counted, total = (
                found.mask, found.patches_run, found.patches_counted, found.patches_total
            )  # fmt: skip
            region = region_within(heart, volume.geometry, self.heart_margin_mm)
            if region is not None:
                mask = mask & region
            if self.lowest_hu is not None:
                mask = mask & (volume.hu >= self.lowest_hu)
        used = {
            "exact_from_hu": self.lowest_hu,
            "window_hu": list(self.model.window_hu),
            "heart_margin_mm": self.heart_margin_mm if math.isfinite(self.heart_margin_mm) else None,
            "patches_run": run,
            "patches_counted": counted,
            "patches_total": total,
        }
        case = case.add(CALCIUM, calcium_labels(mask)).add(CALCIUM_RUN, used)
        return compare(stated(case, self.weights))


def _build(options: DeepCAC2RunnerOptions, context: Context) -> FindPublishedCalcium:
    from .predict import PublishedModel, Quirks

    weights, device = context.network()
    quirks = Quirks(
        padding_hu=options.padding_hu,
        whole_hu=options.whole_hu,
        whole_voxel_crop=options.whole_voxel_crop,
        labels="linear" if options.labels == "linear" else "nearest",
        patches_by_heart=options.patches_by_heart,
        last_patches=options.last_patches,
        at_threshold=options.at_threshold,
    )
    return FindPublishedCalcium(
        model=PublishedModel.load(weights, device, quirks, half=options.half_precision),
        weights=weights,
        heart_margin_mm=options.heart_margin_mm,
        lowest_hu=options.lowest_hu,
    )


STEP = register(
    Step(
        module="DeepCAC2Runner",
        options=DeepCAC2RunnerOptions,
        phase="compute",
        role="calcium",
        reads=lambda options: (CT, HEART),
        uses=(EXCLUDED,),
        writes=(CALCIUM, CALCIUM_RUN),
        build=_build,
    )
)
