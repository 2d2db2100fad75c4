"""The pictures of an evaluation; drawn to read well in print and without colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.cases import CaseResult, Evaluation
from ..evaluation.summary import LesionRate, Summary
from ..stats.agreement import group_names
from .plots import (
    BLUE,
    GREY,
    ORANGE,
    Drawing,
    Points,
    all_drawn,
    bland_altman_figure,
    confusion_figure,
    drawn,
    panel,
    scores_figure,
)

_KINDS: dict[str, tuple[str, str]] = {
    "soft": ("o", BLUE),
    "sharp": ("^", ORANGE),
    "unknown": ("s", GREY),
}
"""Kernel type to marker and colour."""


def figures(evaluation: Evaluation, summary: Summary) -> dict[str, Drawing]:
    """By name, those for which there is something to draw.

    Names: ``scores`` (scatter, and zoomed to 0-300), ``bland-altman``, ``confusion``, ``dice``, ``lesions``.
    """
    compared = [c for c in evaluation.scored if c.score is not None and c.true_score is not None]
    points, dices, said = _points(compared), _dices(evaluation.scored), summary.statistics
    axes = {"reference": "true Agatston score", "predicted": "predicted Agatston score"}
    groups = {"reference": "true group", "predicted": "predicted group"}
    made: dict[str, Callable[[], Drawing]] = {}
    if compared:
        made["scores"] = lambda: scores_figure(points, **axes, rho=said.get("spearman"))
        made["confusion"] = lambda: confusion_figure(
            summary.agreement.confusion, group_names(), **groups, kappa=said.get("kappa_linear")
        )
    if len(compared) > 1:
        made["bland-altman"] = lambda: bland_altman_figure(
            points, said, reference="true", predicted="predicted"
        )
    if dices:
        made["dice"] = lambda: _dice(dices)
    if summary.lesions:
        made["lesions"] = lambda: _lesions(summary.lesions)
    return all_drawn(made)


def _kind(case: CaseResult) -> str:
    return "unknown" if case.sharp is None else "sharp" if case.sharp else "soft"


def _points(cases: Sequence[CaseResult]) -> list[Points]:
    """Scores, by kernel type."""
    groups = []
    for kind, (marker, colour) in _KINDS.items():
        own = [c for c in cases if _kind(c) == kind]
        if own:
            groups.append(
                Points(
                    label=f"{kind} kernel",
                    marker=marker,
                    colour=colour,
                    reference=np.array([c.true_score for c in own], dtype=float),
                    predicted=np.array([c.score for c in own], dtype=float),
                )
            )
    return groups


Dices = tuple[str, list[CaseResult], Callable[[CaseResult], float]]
"""Of what, the cases that have it, and its Dice in a case."""


def _dices(cases: Sequence[CaseResult]) -> list[Dices]:
    """Of heart and calcium, where there is something to draw."""
    hearts = [c for c in cases if c.heart_dice is not None]
    calcium = [c for c in cases if c.counted_dice is not None and c.true_score]
    parts: list[Dices] = [
        ("heart", hearts, lambda c: c.heart_dice or 0.0),
        ("counted calcium, where there is any", calcium, lambda c: c.counted_dice or 0.0),
    ]
    return [part for part in parts if part[1]]


def _dice(parts: Sequence[Dices]) -> Drawing:
    figure = Figure(figsize=(4.2 * len(parts), 3.8), layout="constrained")
    panels: Any = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (name, cases, value) in zip(panels, parts, strict=True):
        _strip(axes, cases, value)
        panel(axes, f"{name} (n = {len(cases)})", "", "Dice")
        low = min(value(c) for c in cases) if name == "heart" else 0.0
        axes.set_ylim(max(0.0, np.floor(min(low, 0.89) * 20 - 0.5) / 20), 1)
    return drawn(figure)


def _strip(axes: Axes, cases: Sequence[CaseResult], value: Callable[[CaseResult], float]) -> None:
    """Every case as a point, in columns by kernel type, with the median as a line."""
    kinds = [k for k in _KINDS if any(_kind(c) == k for c in cases)]
    for x, kind in enumerate(kinds):
        marker, colour = _KINDS[kind]
        values = np.array(sorted(value(c) for c in cases if _kind(c) == kind))
        spread = (np.arange(len(values)) * 0.618034 % 1 - 0.5) * 0.5
        axes.scatter(
            x + spread, values, s=22, marker=marker, facecolors="none", edgecolors=colour, clip_on=False
        )
        axes.hlines(float(np.median(values)), x - 0.32, x + 0.32, color="#1a202c", linewidth=1.6)
    axes.set_xticks(range(len(kinds)), [f"{k} kernel" for k in kinds])
    axes.set_xlim(-0.6, max(len(kinds), 1) - 0.4)


def _lesions(rates: Sequence[LesionRate]) -> Drawing:
    groups = [[r for r in rates if r.by == by] for by in dict.fromkeys(r.by for r in rates)]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, own in zip(panels, groups, strict=True):
        for x, one in enumerate(own):
            estimate = one.sensitivity
            if estimate.low is not None and estimate.high is not None:
                axes.vlines(x, estimate.low, estimate.high, color=BLUE, linewidth=2, clip_on=False)
            axes.plot(x, estimate.value, "o", color=BLUE, clip_on=False)
        names = [f"{_short(r.value)}\n{r.found}/{r.total}" for r in own]
        axes.set_xticks(range(len(own)), names, fontsize=8)
        axes.set_xlim(-0.5, len(own) - 0.5)
        axes.set_ylim(0, 1)
        by = "volume, mm³" if own[0].by == "volume" else own[0].by
        panel(axes, f"lesions found, by {by}", "", "sensitivity")
    panels[-1].set_ylabel("sensitivity" if len(groups) == 1 else "")
    return drawn(figure)


def _short(value: str) -> str:
    """``"above 5 to 20 mm³"`` as ``"5–20"``."""
    text = value.removesuffix(" mm³")
    return text.removeprefix("above ").replace(" to ", "–") if " to " in text[5:] else text
