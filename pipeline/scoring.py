"""The step that scores the calcium."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom import Finding
from ..dicom.gates import Gate, is_sharp_kernel, register_gate
from ..errors import WorkflowError
from ..imaging import Volume
from ..imaging.labels import calcium_labels
from ..scoring import CalciumScore, RiskGroup, score
from ..scoring.rules import find_rule
from .arteries import ARTERIES, BY_CLASS, NOT_CORONARY, coloured, divided
from .arteries import COLUMNS as ARTERY_COLUMNS
from .case import Case
from .cautions import zero_findings
from .doubt import CERTAINTY, DOUBT, certainty_of, doubted
from .doubt import COLUMNS as DOUBT_COLUMNS
from .facts import CALCIUM, CALCIUM_RUN, CT, HEART, SCORE
from .grades import COLUMNS as GRADE_COLUMNS
from .grades import GRADES, graded, in_words
from .shown import Shown
from .step import Column, Context, Step, Value, register

METAL = register_gate(
    Gate(
        code="metal",
        sentence="What would be counted is as dense as metal: a stent, a clip, a wire.",
        overridable=True,
    )
)

VOLTAGE = register_gate(
    Gate(
        code="no-weights-for-kvp",
        sentence="The scoring rule goes by the tube voltage, and has no weights for that of the scan.",
    )
)

METAL_HU, METAL_SHARP_HU = 1500.0, 2000.0
"""HU from which counted voxels are taken for metal, with soft and sharp kernels. Our own limits: coronary
calcium above 1000 HU is known (van Rosendael et al., JAMA Cardiol 2020;5:282) and kernels overshoot; the
simulator draws calcium up to 1500 HU and metal from 2500 HU on."""
MIN_METAL_MM3 = 1.0
"""Least volume of such voxels, so that a grain of noise is no metal."""

SCORE_LIMITS = (0.0, 10.0, 50.0, 100.0, 200.0, 300.0, 400.0, 1000.0, 2000.0)
"""Upper limits of the classes of a histogram of scores: the groups' own (0, 100, 300) and finer ones."""


@dataclass(frozen=True, kw_only=True)
class AGSCalculatorOptions:
    """Score the calcium.

    Attributes:
        rule: A rule of `scoring.rules.named_rules`.
        calibration_factor: mg calcium per mm³ and HU, for the mass; null: no mass.
    """

    rule: str = "agatston"
    calibration_factor: float | None = None


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
    return (METAL.finding(message, allow=allow),)


@dataclass(frozen=True, kw_only=True)
class ScoreCalcium:
    """The gates that ask for the tube voltage and look for metal; then Agatston score, volume, mass and
    lesions by a named rule.

    Attributes:
        rule, calibration_factor: See `scoring.score`.
        allow: Codes of gates that shall warn instead of reject.
    """

    rule: str = "agatston"
    calibration_factor: float | None = None
    allow: Collection[str] = ()

    def __call__(self, case: Case) -> Case:
        """Score the case; metal rejects it, and a tube voltage unknown to the rule; then there is no score.

        Raises:
            WorkflowError: The calcium mask is not exact where the rule counts.
        """
        volume, calcium = case[CT], case[CALCIUM].mask
        check_exact(case, self.rule)
        case = case.noted(
            *check_voltage(case, self.rule),
            *check_metal(volume, calcium, case.series.kernel, allow=self.allow),
        )
        if case.stop is not None:
            return case
        result = score(
            volume,
            calcium,
            rule=self.rule,
            slice_thickness=case.series.slice_thickness,
            calibration_factor=self.calibration_factor,
            kvp=case.series.kvp,
            certainty=certainty_of(case),
        )
        zero = zero_findings(case, "a score of 0") if result.total == 0 else ()
        scored = divided(case.add(SCORE, result), rule=self.rule)
        return graded(doubted(scored, rule=self.rule)).noted(*zero)


def check_voltage(case: Case, rule: str) -> tuple[Finding, ...]:
    """The gate that asks whether a rule knows the scan's tube voltage; of several voltages it knows none."""
    why = find_rule(rule).lacks(case.series.kvp)
    return (VOLTAGE.finding(f"{why}; score by the rule agatston"),) if why else ()


def check_exact(case: Case, rule: str) -> None:
    """Make sure that no patch was skipped which a rule's voxels ask for.

    Raises:
        WorkflowError: The rule counts below the HU from which the calcium mask is that of a dense run.
    """
    exact = case.get(CALCIUM_RUN, {}).get("exact_from_hu")
    if find_rule(rule).counts_below(exact):
        raise WorkflowError(
            f"the rule {rule!r} counts below {exact} HU, from where the calcium mask is exact: name the rule "
            "in the workflow that finds the calcium, too"
        )


def _build(options: AGSCalculatorOptions, context: Context) -> ScoreCalcium:
    return ScoreCalcium(rule=options.rule, calibration_factor=options.calibration_factor, allow=context.allow)


def _of(value: Callable[[CalciumScore], Any], absent: Any = None) -> Callable[[Case], Any]:
    def of(case: Case) -> Any:
        result = case.get(SCORE)
        return absent if result is None else value(result)

    return of


_SCORE = _of(lambda result: round(result.total, 4))
_GROUP = _of(lambda result: int(result.risk_group))


def _shows(case: Case) -> Shown | None:
    result = case.get(SCORE)
    if result is None:
        return None
    weight: dict[int, float] = {}
    for lesion in result.lesions:
        for part in lesion.parts:
            weight[part.slice_index] = weight.get(part.slice_index, 0.0) + part.score
    group = result.risk_group
    line = f"rule {result.rule} · {result.volume_mm3:.0f} mm3 · {len(result.lesions)} lesions"
    return Shown(
        precedence=2,
        title=f"Agatston score {result.total:.1f}   risk group {int(group)} ({group.label})",
        line=" · ".join(filter(None, (in_words(case), line))),
        outline=case[HEART],
        outline_name="heart",
        marked=coloured(case) or calcium_labels(result.counted),
        marked_name="counted calcium",
        weight=weight,
    )


CALCULATOR = register(
    Step(
        module="AGSCalculator",
        options=AGSCalculatorOptions,
        phase="compute",
        reads=lambda options: (CT, CALCIUM),
        uses=(ARTERIES, NOT_CORONARY, CERTAINTY),
        writes=(SCORE, GRADES, BY_CLASS, DOUBT),
        build=_build,
        shows=_shows,
        counts_from=lambda options: find_rule(options.rule).counts_from,
        columns=(
            Column(
                name="agatston_score",
                kind=float,
                meaning="Agatston score by the rule in the column rule; no unit",
                of=_SCORE,
                result=True,
                limits=SCORE_LIMITS,
            ),
            Column(
                name="risk_group",
                kind=int,
                meaning="0: score 0; 1: above 0 up to 100; 2: above 100 up to 300; 3: above 300",
                of=_GROUP,
                groups=tuple(group.label for group in RiskGroup),
            ),
            Column(
                name="risk_group_name",
                kind=str,
                meaning="very low, low, moderate, high",
                of=_of(lambda result: result.risk_group.label, ""),
            ),
            Column(
                name="volume_mm3",
                kind=float,
                meaning="volume of the counted calcium, mm3",
                label="Volume",
                unit="mm³",
                of=_of(lambda result: round(result.volume_mm3, 3)),
            ),
            Column(
                name="mass_mg",
                kind=float,
                meaning="mass of the counted calcium, mg, where a calibration factor was given",
                label="Mass",
                unit="mg",
                of=_of(lambda result: result.mass_mg),
            ),
            Column(
                name="n_lesions",
                kind=int,
                meaning="counted lesions",
                label="Lesions",
                of=_of(lambda result: len(result.lesions)),
            ),
            Column(
                name="rule",
                kind=str,
                meaning="scoring rule, see docs/scoring.md",
                of=_of(lambda result: result.rule, ""),
            ),
            *GRADE_COLUMNS,
            *ARTERY_COLUMNS,
            *DOUBT_COLUMNS,
        ),
        values=(
            Value(
                name="agatston_score",
                label="Predicted Agatston Score",
                kind=float,
                meaning="Agatston score of the coronary calcium.",
                of=_SCORE,
            ),
            Value(
                name="risk_group",
                label="Predicted Risk Group",
                kind=int,
                meaning="Risk group, 0 to 3.",
                of=_GROUP,
            ),
        ),
    )
)
