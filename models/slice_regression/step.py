"""The step that reads the score off the slices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...imaging.labels import calcium_labels, heart_labels
from ...imaging.orientation import to_canonical
from ...pipeline.case import Case, Fact, ImageFile
from ...pipeline.cautions import zero_findings
from ...pipeline.domain import compare, stated
from ...pipeline.facts import CT, HEART
from ...pipeline.gates import HEART_NOT_FOUND, HEART_UNCHECKED
from ...pipeline.operating import OperatingPoint, one_of, operating_point
from ...pipeline.shown import Shown
from ...pipeline.step import Column, Context, Step, Value, register

if TYPE_CHECKING:
    from ...weights import WeightSet
    from .network import DirectModel

DIRECT: Fact[dict[str, Any]] = Fact("direct", "direct score", "direct")
"""``score``, ``group`` (0 to 4), ``slice_scores``, ``slice_heights_mm`` and ``box``."""

ATTENTION: Fact[npt.NDArray[np.float32]] = Fact(
    "attention",
    "what direct scoring looked at",
    image=ImageFile("attention.nii.gz", "nifti:mod=attention:model=direct"),
)
"""float32 (z, y, x): where what direct scoring counted lies, score a voxel."""


@dataclass(frozen=True, kw_only=True)
class DirectRunnerOptions:
    """Read the score off the slices, by a regression network; no segmentation.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a set.
        localise: Where the heart's box comes from: ``heart``, the mask, which the gates have looked at, or
            ``networks``, its own three, which no gate looks at.
    """

    weights: str = "bundled"
    localise: str = "heart"

    def __post_init__(self) -> None:
        one_of("localise", self.localise, ("networks", "heart"))


@dataclass(frozen=True, kw_only=True)
class ScoreDirectly:
    """The score read off the slices by a `DirectModel`.

    Attributes:
        model, weights: The networks, and the set that they were loaded from.
        point: The numbers that the set is used with.
        localise: ``"networks"``: its own find the heart's box; ``"heart"``: the box of the heart mask.
        attend: Also find where what was counted lies, for the preview.
    """

    model: DirectModel
    weights: WeightSet
    point: OperatingPoint
    localise: str = "heart"
    attend: bool = True

    def __call__(self, case: Case) -> Case:
        """Rejects the case, heart-not-found, where no box is found."""
        from .network import direct_group

        heart = case[HEART].mask if self.localise == "heart" else None
        found = self.model.predict(case[CT], heart=heart)
        if found is None:
            message = "the networks found no heart in this series; look at the scan and its orientation"
            return case.noted(HEART_NOT_FOUND.finding(message))
        group = direct_group(found.score)
        answer = {
            "score": round(found.score, 4),
            "group": group,
            "slice_scores": [round(float(s), 2) for s in found.slice_scores],
            "slice_heights_mm": [round(float(h), 2) for h in found.heights],
            "box": [[s.start, s.stop] for s in found.box],
        }
        case = case.noted(*self.point.findings).add(DIRECT, answer)
        if heart is None:
            message = "the heart's box was not checked: a head or an abdomen may have a score, too"
            case = case.noted(HEART_UNCHECKED.finding(message))
        if self.attend:
            case = case.add(ATTENTION, self.model.attention(case[CT], found))
        if group == 0:
            case = case.noted(*zero_findings(case, "a direct score below 1"))
        return compare(stated(case, self.weights))


def _build(options: DirectRunnerOptions, context: Context) -> ScoreDirectly:
    from .network import DirectModel

    weights, device = context.network()
    point = operating_point(weights, least_slice=None, score_factor=None)
    model = DirectModel.load(weights, device, **point.values)
    return ScoreDirectly(model=model, weights=weights, point=point, localise=options.localise)


def _score(case: Case) -> float | None:
    return case.get(DIRECT, {}).get("score")


def _group(case: Case) -> int | None:
    return case.get(DIRECT, {}).get("group")


SHOWN_SHARE = 0.05
"""Attention is drawn where it is at least this share of its largest value in the scan. Our own choice."""


def _shows(case: Case) -> Shown | None:
    answer, attention = case.get(DIRECT), case.get(ATTENTION)
    if answer is None or attention is None:
        return None
    volume = case[CT]
    zs, ys, xs = (slice(*span) for span in answer["box"])
    ct = to_canonical(volume.hu, volume.geometry)
    turned = np.zeros(ct.geometry.shape, dtype=bool)
    turned[zs, ys, xs] = True
    return Shown(
        precedence=0,
        title=f"Direct Agatston score {answer['score']:.1f}   group {answer['group']} of 0 to 4",
        line="direct scoring: no segmentation; marked is what the network looked at",
        outline=heart_labels(np.ascontiguousarray(ct.undo(turned))),
        outline_name="box of the heart",
        marked=calcium_labels(attention > SHOWN_SHARE * max(float(attention.max()), 1e-6)),
        marked_name="attention",
        weight={z: float(w) for z, w in enumerate(attention.sum(axis=(1, 2))) if w > 0},
    )


def _remarks(case: Case) -> str | None:
    return f"direct score {score:.1f}" if (score := _score(case)) is not None else None


STEP = register(
    Step(
        module="DirectRunner",
        options=DirectRunnerOptions,
        phase="compute",
        role="direct",
        train=f"{__package__}.train",
        reads=lambda options: (CT, HEART) if options.localise == "heart" else (CT,),
        uses=(HEART,),
        writes=(DIRECT, ATTENTION),
        build=_build,
        shows=_shows,
        remarks=_remarks,
        columns=(
            Column(
                name="direct_score",
                kind=float,
                meaning="Agatston score of direct scoring; empty: not asked",
                of=_score,
                result=True,
            ),
            Column(
                name="direct_group",
                kind=int,
                meaning="its risk group: 0: < 1; 1: < 10; 2: < 100; 3: < 400; 4: 400 and more",
                of=_group,
                groups=("below 1", "below 10", "below 100", "below 400", "400 and more"),
            ),
        ),
        values=(
            Value(
                name="direct_score",
                label="Direct Agatston Score",
                kind=float,
                meaning="Agatston score, read off the slices by a regression network.",
                of=_score,
            ),
            Value(
                name="direct_group",
                label="Direct Risk Group of Five",
                kind=int,
                meaning="Its group, 0 to 4.",
                of=_group,
            ),
        ),
    )
)
