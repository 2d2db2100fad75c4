"""The step that scores the calcium on thicker and softer slices too, beside the score that stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..dicom.gates import is_sharp_kernel
from ..scoring import score
from ..scoring.harmonised import SOFTENING_MM, harmonised, slices_averaged
from ..scoring.rules import find_rule
from .case import OMITTED, Case, Fact
from .facts import CALCIUM, CT
from .scoring import check_exact, check_voltage
from .step import Column, Context, Step, register

HARMONISED: Fact[dict[str, Any]] = Fact("harmonised", "harmonised score", "harmonised", OMITTED)
"""``score``, ``volume_mm3`` and ``risk_group`` by ``rule`` on slices of ``increment_mm``;
``slices_averaged``: how many of the CT's make one; ``softened_mm``: standard deviation of the blur within
them, 0 for none."""


@dataclass(frozen=True, kw_only=True)
class HarmonisedCalculatorOptions:
    """Score the calcium on thicker and softer slices, beside `AGSCalculator`, whose score stands.

    Attributes:
        rule: A rule of `scoring.rules.named_rules` that goes by the distance of the slices.
    """

    rule: str = "agatston"

    def __post_init__(self) -> None:
        if find_rule(self.rule).thickness == "slice-thickness":
            raise ValueError(f"rule {self.rule!r} goes by SliceThickness, which averaged slices have none of")


@dataclass(frozen=True, kw_only=True)
class ScoreHarmonised:
    """The score of `scoring.harmonised`.

    Attributes:
        rule: See `HarmonisedCalculatorOptions`.
    """

    rule: str = "agatston"

    def __call__(self, case: Case) -> Case:
        """Score the case once more.

        Raises:
            WorkflowError: The calcium mask is not exact where the rule counts.
        """
        check_exact(case, self.rule)
        case = case.noted(*check_voltage(case, self.rule))
        if case.stop is not None:
            return case
        sharp = is_sharp_kernel(case.series.kernel)
        volume, mask = harmonised(case[CT], case[CALCIUM].mask, sharp=sharp)
        found = score(volume, mask, rule=self.rule, kvp=case.series.kvp)
        increment = case[CT].geometry.spacing[0]
        count = slices_averaged(increment)
        result = {
            "score": round(found.total, 4),
            "risk_group": int(found.risk_group),
            "volume_mm3": round(found.volume_mm3, 3),
            "rule": found.rule,
            "increment_mm": round(increment * count, 4),
            "slices_averaged": count,
            "softened_mm": SOFTENING_MM if sharp else 0.0,
        }
        return case.add(HARMONISED, result)


def _build(options: HarmonisedCalculatorOptions, context: Context) -> ScoreHarmonised:
    return ScoreHarmonised(rule=options.rule)


STEP = register(
    Step(
        module="HarmonisedCalculator",
        options=HarmonisedCalculatorOptions,
        phase="compute",
        reads=lambda options: (CT, CALCIUM),
        writes=(HARMONISED,),
        build=_build,
        counts_from=lambda options: find_rule(options.rule).counts_from,
        columns=(
            Column(
                name="harmonised_score",
                kind=float,
                meaning="Agatston score on slices averaged to about 3 mm and, of a sharp kernel, softened; "
                "beside agatston_score, never instead",
                label="Harmonised score",
                section=HARMONISED.section,
                of=lambda case: case.get(HARMONISED, {}).get("score"),
            ),
        ),
    )
)
