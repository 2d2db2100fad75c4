"""Numbers that belong to a set of weights: what it was tuned to, unless a workflow says otherwise.

How sure a network must be and how far from the heart calcium is looked for is measured for one set of
weights and holds for no other. A set states its numbers in its ``weights.json``; where it does not, neutral
values stand in, and the case says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..dicom import Finding
from ..dicom.gates import Gate, register_gate
from ..errors import WeightsError
from ..weights import WeightSet, stated_window

WEIGHTS_UNTUNED = register_gate(
    Gate(
        code="weights-untuned",
        sentence="The weights do not say what they were tuned to; neutral values stand in.",
        fatal=False,
    )
)

NEUTRAL: Mapping[str, tuple[float, str]] = {
    "heart_margin_mm": (math.inf, "the whole crop is searched"),
    "peak_probability": (0.5, "a lesion counts however unsure the network is"),
    "least_slice": (0.0, "dozens of slices without calcium may add up to a score"),
    "score_factor": (1.0, "scores are what the network reads, also where it reads too little"),
}
"""Name of each number in ``weights.json`` and in a workflow → what stands in for it, as in the methods'
papers, and what that means."""


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The numbers that a network is used with.

    Attributes:
        values: By name; an infinite margin is the whole crop.
        facts: The same for the details JSON, and under ``from`` who said each: ``"workflow"``, ``"weights"``
            or ``"nobody"``; an infinite value is None there.
        findings: ``weights-untuned`` where nobody said one, or calcium weights state no window.
    """

    values: Mapping[str, float]
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]


def operating_point(weights: WeightSet, **wanted: float | None) -> OperatingPoint:
    """The numbers that a set of weights is used with.

    Args:
        weights: The set.
        wanted: By name, see `NEUTRAL`: what the workflow says; None: nothing.

    Raises:
        WeightsError: The set states something that is no such number.
    """
    values: dict[str, float] = {}
    said_by: dict[str, str] = {}
    for name, value in wanted.items():
        if value is not None:
            values[name], said_by[name] = value, "workflow"
        elif name in weights.metadata:
            values[name], said_by[name] = _stated(weights, name), "weights"
        else:
            values[name], said_by[name] = NEUTRAL[name][0], "nobody"
    missing = {name: NEUTRAL[name][1] for name, who in said_by.items() if who == "nobody"}
    if weights.role == "calcium" and stated_window(weights) is None:
        missing["window_hu"] = "the window is that of the DeepCAC2 paper"
    findings: tuple[Finding, ...] = ()
    if missing:
        message = (
            f"the {weights.role} weights {weights.name} state no {' and no '.join(missing)}: "
            f"{', '.join(missing.values())}"
        )
        findings = (WEIGHTS_UNTUNED.finding(message),)
    shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return OperatingPoint(values=values, facts={**shown, "from": said_by}, findings=findings)


def _stated(weights: WeightSet, name: str) -> float:
    value = weights.metadata[name]
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not (0.5 <= value < 1 if name == "peak_probability" else value >= 0):
        wanted = "at least 0.5 and below 1" if name == "peak_probability" else "0 or more"
        raise WeightsError(
            f"{weights.path / 'weights.json'}: {name} is a number, {wanted}, not {value!r}; correct it"
        )
    return float(value)


def check_margin(value: float | None) -> None:
    """See that an option ``heart_margin_mm`` is a distance, or nothing.

    Raises:
        ValueError: It is not.
    """
    if value is not None and not value >= 0:
        raise ValueError(f"heart_margin_mm is 0 or more, not {value}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """See that an option is one of these words.

    Raises:
        ValueError: It is not.
    """
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")
