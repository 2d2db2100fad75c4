"""The step that maps the calcium mask onto the CT: dense pieces that it overlaps, whole, and their score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..imaging.labels import calcium_labels
from ..scoring import score, whole_pieces
from ..scoring.rules import find_rule
from .case import Case
from .facts import CALCIUM, CT, MAPPED_CALCIUM, MAPPED_SCORE
from .scoring import check_exact
from .step import Context, Step, Value, register


@dataclass(frozen=True, kw_only=True)
class CACMappingOptions:
    """Map the calcium mask, and score it beside `AGSCalculator`, which scores it as it is.

    Attributes:
        rule: A rule of `scoring.RULES` that takes pieces of the CT whole (`Rule.whole_from`).
    """

    rule: str = "deepcac2-mapped"

    def __post_init__(self) -> None:
        if find_rule(self.rule).whole_from is None:
            raise ValueError(f"rule {self.rule!r} takes the mask as it is; give 'deepcac2-mapped'")


@dataclass(frozen=True, kw_only=True)
class MapCalcium:
    """The mapped mask, all of it also where it is too small to count, and its score.

    Attributes:
        rule: See `CACMappingOptions`.
    """

    rule: str = "deepcac2-mapped"

    def __call__(self, case: Case) -> Case:
        """Map the mask of a case.

        Raises:
            WorkflowError: The calcium mask is not exact where the rule looks at it.
        """
        volume, calcium, rule = case[CT], case[CALCIUM].mask, find_rule(self.rule)
        check_exact(case, self.rule)
        assert rule.whole_from is not None
        mapped = whole_pieces(volume.hu, calcium, rule.whole_from, rule.in_plane)
        found = score(volume, calcium, rule=rule, slice_thickness=case.series.slice_thickness)
        return case.add(MAPPED_CALCIUM, calcium_labels(mapped)).add(MAPPED_SCORE, found.to_dict())


def _of(key: str) -> Callable[[Case], Any]:
    return lambda case: case[MAPPED_SCORE][key] if MAPPED_SCORE in case else None


def _build(options: CACMappingOptions, context: Context) -> MapCalcium:
    return MapCalcium(rule=options.rule)


STEP = register(
    Step(
        module="CACMapping",
        options=CACMappingOptions,
        phase="compute",
        reads=lambda options: (CT, CALCIUM),
        writes=(MAPPED_CALCIUM, MAPPED_SCORE),
        build=_build,
        counts_from=lambda options: find_rule(options.rule).counts_from,
        values=(
            Value(
                name="mapped_agatston_score",
                label="Mapped Predicted Agatston Score",
                kind=float,
                meaning="Agatston score of the mapped coronary calcium.",
                of=_of("total"),
            ),
            Value(
                name="mapped_risk_group",
                label="Mapped Predicted Risk Group",
                kind=int,
                meaning="Risk group of the mapped coronary calcium, 0 to 3.",
                of=_of("risk_group"),
            ),
        ),
    )
)
