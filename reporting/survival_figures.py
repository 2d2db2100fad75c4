"""Figures of a survival analysis: Kaplan-Meier curves with their table, and a forest plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..stats.survival import Curve, Hazard, Survival
from .plots import BLUE, GREY, GROUPS, Drawing, drawn, panel, stated

_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
"""Line of a group, beside its colour of `GROUPS`; told apart without colour too."""
_ROW = 0.19
"""Height of a table row, inches."""


def survival_figures(result: Survival, *, unit: str) -> dict[str, Drawing]:
    """By name: ``kaplan-meier`` and ``forest``.

    Args:
        unit: Of the times, such as ``"years"``; "" when unknown.
    """
    return {"kaplan-meier": _kaplan_meier(result, unit), "forest": _forest(result)}


def _kaplan_meier(result: Survival, unit: str) -> Drawing:
    curves = result.curves
    table = _ROW * (4 * (len(curves) + 1) + 1)
    figure = Figure(figsize=(7.6, 4.4 + table), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=[4.4, table], sharex=True)
    end = max(float(c.followed.max()) for c in curves)
    lowest = 1.0
    for curve, (colour, line) in zip(curves, _styles(len(curves)), strict=True):
        axes.step(curve.time, curve.survival, where="post", color=colour, linestyle=line, label=curve.name)
        axes.fill_between(
            curve.time, curve.low, curve.high, step="post", color=colour, alpha=0.13, linewidth=0
        )
        lowest = min(lowest, float(np.nanmin(curve.low)))
    axes.set_xlim(0, end)
    axes.set_ylim(max(0.0, np.floor(lowest * 20 - 0.5) / 20), 1)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    chi2, degrees, p = result.log_rank
    panel(
        axes,
        f"n = {result.persons}, {result.events} events; log-rank χ² {chi2:.1f}, {degrees} df, {p_value(p)}",
        f"time, {unit}" if unit else "time",
        "survival (broken axis)" if axes.get_ylim()[0] > 0 else "survival",
    )
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    axes.tick_params(labelbottom=True)
    _table(below, curves, [t for t in axes.get_xticks() if 0 <= t <= end])
    return drawn(figure)


def _table(axes: Axes, curves: Sequence[Curve], times: Sequence[float]) -> None:
    """Numbers at risk, events so far and censored so far, by group, below the ticks."""
    axes.set_axis_off()
    parts: tuple[tuple[str, Callable[[Curve, float], int]], ...] = (
        ("At risk", lambda c, t: int((c.followed >= t).sum())),
        ("Events", lambda c, t: int((c.event & (c.followed <= t)).sum())),
        ("Censored", lambda c, t: int((~c.event & (c.followed <= t)).sum())),
    )
    rows = len(parts) * (len(curves) + 1)
    axes.set_ylim(rows + 0.5, 0.5)
    y = 1
    for heading, count in parts:
        left: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "ha": "right",
            "va": "center",
            "fontsize": 8,
        }
        axes.annotate(heading, (-0.045, y), weight="bold", **left)
        y += 1
        for curve, (colour, _) in zip(curves, _styles(len(curves)), strict=True):
            axes.annotate(curve.name, (-0.045, y), color=colour, **left)
            for t in times:
                axes.text(t, y, str(count(curve, t)), ha="center", va="center", fontsize=8)
            y += 1


def _styles(n: int) -> list[tuple[str, Any]]:
    return [(GROUPS[i % len(GROUPS)], _LINES[i % len(_LINES)]) for i in range(n)]


def _forest(result: Survival) -> Drawing:
    """Hazard ratios with what they are compared with, how many persons and events, and the c-index."""
    lines: list[Hazard | str] = []
    for row in result.rows:
        if row.covariate and row.covariate not in lines:
            lines.append(row.covariate)
        lines.append(row)
    figure = Figure(figsize=(9.4, 1.5 + 0.27 * len(lines)), layout="constrained")
    left, axes, right = figure.subplots(1, 3, width_ratios=(3.9, 3.2, 2.6), sharey=True)
    low, high = min(h.low for h in result.hazards), max(h.high for h in result.hazards)
    low, high = min(max(low, 0.05), 0.8), max(min(high, 20.0), 1.25)
    axes.set_xscale("log")
    places = (0.0, 0.76, 0.98)
    for side, heads in ((left, zip(places, ("", "persons", "events"), strict=True)),
                        (right, ((0.0, "hazard ratio (95 % interval)"), (0.98, "p")))):  # fmt: skip
        side.set_axis_off()
        side.set_xlim(0, 1)
        for x, text in heads:
            side.text(x, -1, text, fontsize=8, weight="bold", va="center", ha="right" if x else "left")
    for y, line in enumerate(lines):
        if isinstance(line, str):
            left.text(0, y, line, fontsize=8.5, weight="bold", va="center", parse_math=False)
            continue
        name = line.name.removeprefix(f"{line.covariate}: ")
        left.text(0.04 if line.covariate else 0, y, name, fontsize=8.5, va="center", parse_math=False)
        for x, count in zip(places[1:], (line.persons, line.events), strict=True):
            left.text(x, y, str(count), fontsize=8.5, va="center", ha="right")
        if line.reference:
            axes.plot(1, y, "s", color=GREY, markersize=5, markerfacecolor="white")
            right.text(0, y, "1 (reference)", fontsize=8.5, va="center", color=GREY)
            continue
        axes.plot(
            [max(line.low, low / 1.2), min(line.high, high * 1.2)], [y, y], color="#2d3748", linewidth=1.4
        )
        axes.plot(line.ratio, y, "s", color=BLUE, markersize=5)
        text = f"{line.ratio:.2f} ({line.low:.2f} to {line.high:.2f})"
        right.text(0, y, text, fontsize=8.5, va="center")
        right.text(0.98, y, p_alone(line.p), fontsize=8.5, va="center", ha="right")
    axes.axvline(1, color="#718096", linewidth=1, zorder=0)
    axes.set_xlim(low / 1.1, high * 1.1)
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20) if low / 1.1 <= t <= high * 1.1]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(left=False, labelleft=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(lines) - 0.4, -1.6)
    said = stated("c-index", result.concordance)
    head = f"Cox model: n = {result.persons}, {result.events} events{', ' if said else ''}{said}"
    figure.suptitle(head, x=0.01, ha="left", fontsize=10)
    panel(axes, "", "hazard ratio", "")
    axes.spines["left"].set_visible(False)
    return drawn(figure)


def p_value(p: float) -> str:
    """As it is printed.

    >>> p_value(0.2), p_value(1e-9)
    ('p = 0.20', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def p_alone(p: float) -> str:
    """The same below a heading that says p.

    >>> p_alone(0.2), p_alone(1e-9)
    ('0.20', '< 0.001')
    """
    return p_value(p).removeprefix("p ").removeprefix("= ")
