"""Figures of a survival analysis, as PNG: Kaplan-Meier curves with their table, and a forest plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..stats.survival import Curve, Hazard, Survival
from .plots import panel, png

_STYLES = (
    ("#2b6cb0", "-"), ("#38a169", "--"), ("#c05621", "-."), ("#9b2c2c", ":"),
    ("#553c9a", (0, (5, 1, 1, 1, 1, 1))), ("#4a5568", (0, (1, 1))),
)  # fmt: skip
"""Colour and line of a group; told apart without colour too."""
_ROW = 0.19
"""Height of a table row, inches."""


def survival_figures(result: Survival, *, unit: str) -> dict[str, bytes]:
    """PNG files by name: ``kaplan-meier`` and ``forest``.

    Args:
        unit: Of the times, such as ``"years"``; "" when unknown.
    """
    return {"kaplan-meier": _kaplan_meier(result, unit), "forest": _forest(result.hazards)}


def _kaplan_meier(result: Survival, unit: str) -> bytes:
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
    return png(figure)


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
    return [_STYLES[i % len(_STYLES)] for i in range(n)]


def _forest(hazards: Sequence[Hazard]) -> bytes:
    figure = Figure(figsize=(7.6, 1.1 + 0.32 * len(hazards)), layout="constrained")
    axes = figure.subplots()
    low, high = min(h.low for h in hazards), max(h.high for h in hazards)
    low, high = min(max(low, 0.05), 0.8), max(min(high, 20.0), 1.25)
    axes.set_xscale("log")
    for y, h in enumerate(hazards):
        axes.plot([max(h.low, low / 1.2), min(h.high, high * 1.2)], [y, y], color="#2d3748", linewidth=1.4)
        axes.plot(h.ratio, y, "s", color="#2b6cb0", markersize=5)
        text = f"{h.ratio:.2f} ({h.low:.2f} to {h.high:.2f}), {p_value(h.p)}"
        axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.axvline(1, color="#718096", linewidth=1, zorder=0)
    axes.set_xlim(low / 1.1, high * 1.1)
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20) if low / 1.1 <= t <= high * 1.1]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(range(len(hazards)), [h.name for h in hazards])
    axes.set_ylim(len(hazards) - 0.4, -0.6)
    panel(axes, "Cox model", "hazard ratio, 95 % interval", "")
    return png(figure)


def p_value(p: float) -> str:
    """As it is printed.

    >>> p_value(0.2), p_value(1e-9)
    ('p = 0.20', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
