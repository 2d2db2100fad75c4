"""The pictures of an evaluation, as PNG; drawn to read well in print and without colour."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..scoring import RiskGroup
from ..scoring.agreement import RISK_CUTS
from .evaluation import CaseResult, Evaluation
from .summary import LesionRate, Summary

_DPI = 110
_KINDS: dict[str, tuple[str, str]] = {
    "soft": ("o", "#2b6cb0"),
    "sharp": ("^", "#c05621"),
    "unknown": ("s", "#4a5568"),
}
"""Kernel type to marker and colour."""
_ZOOM = RISK_CUTS[-1]
"""Upper end of the zoomed scatter, as in the paper's figure 2."""


def figures(evaluation: Evaluation, summary: Summary) -> dict[str, bytes]:
    """PNG files by name, those for which there is something to draw.

    Names: ``scores`` (scatter, and zoomed to 0-300), ``bland-altman``, ``confusion``, ``dice``, ``lesions``.
    """
    compared = [c for c in evaluation.scored if c.score is not None and c.true_score is not None]
    drawn = {}
    if compared:
        drawn["scores"] = _scores(compared)
        drawn["confusion"] = _confusion(summary)
    if len(compared) > 1:
        drawn["bland-altman"] = _bland_altman(compared, summary)
    if any(c.heart_dice is not None or c.counted_dice is not None for c in evaluation.scored):
        drawn["dice"] = _dice(evaluation.scored)
    if summary.lesions:
        drawn["lesions"] = _lesions(summary.lesions)
    return drawn


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _panel(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def _kind(case: CaseResult) -> str:
    return "unknown" if case.sharp is None else "sharp" if case.sharp else "soft"


def _by_kind(
    axes: Axes, cases: Sequence[CaseResult], place: Callable[[CaseResult], tuple[float, float]]
) -> None:
    """Points, marked by kernel type; each case stands at ``place(case)``."""
    for kind, (marker, colour) in _KINDS.items():
        own = [place(c) for c in cases if _kind(c) == kind]
        if own:
            axes.scatter(
                [x for x, _ in own], [y for _, y in own], s=26, marker=marker, facecolors="none",
                edgecolors=colour, label=f"{kind} kernel (n = {len(own)})", clip_on=False, zorder=3,
            )  # fmt: skip


def _true_and_ours(case: CaseResult) -> tuple[float, float]:
    return case.true_score or 0.0, case.score or 0.0


def _scores(cases: Sequence[CaseResult]) -> bytes:
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    whole, zoomed = figure.subplots(1, 2)
    top = max(max(_true_and_ours(c)) for c in cases) * 1.04 + 1
    near = [c for c in cases if max(_true_and_ours(c)) <= _ZOOM]
    panels = ((whole, top, cases, "all"), (zoomed, _ZOOM, near, f"up to {_ZOOM:g}"))
    for axes, end, shown, text in panels:
        axes.plot([0, end], [0, end], color="#718096", linewidth=1, zorder=1)
        for cut in RISK_CUTS[1:]:
            if cut <= end:
                axes.axhline(cut, color="#cbd5e0", linewidth=0.8, zorder=0)
                axes.axvline(cut, color="#cbd5e0", linewidth=0.8, zorder=0)
        _by_kind(axes, shown, _true_and_ours)
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_box_aspect(1)
        _panel(axes, f"{text} (n = {len(shown)})", "true Agatston score", "predicted Agatston score")
    whole.legend(frameon=False, fontsize=8, loc="upper left")
    return _png(figure)


def _bland_altman(cases: Sequence[CaseResult], summary: Summary) -> bytes:
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()

    def place(case: CaseResult) -> tuple[float, float]:
        true, ours = _true_and_ours(case)
        return (true + ours) / 2, ours - true

    axes.set_xscale("symlog", linthresh=10)
    _by_kind(axes, cases, place)
    lines = (
        ("mean_difference", "mean:", "-"),
        ("lower_limit", "mean − 1.96 SD:", "--"),
        ("upper_limit", "mean + 1.96 SD:", "--"),
    )
    for name, label, style in lines:
        value = summary.statistics[name].value
        if value is not None:
            axes.axhline(value, color="#2d3748", linewidth=1, linestyle=style, zorder=1)
            text = f"{label} {value:+.0f}".replace("-", "−")
            axes.annotate(text, (1.01, value), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    axes.set_xlim(left=-0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(edgecolor="none", framealpha=1, fontsize=8, loc="upper left")
    _panel(
        axes,
        f"Bland–Altman (n = {len(cases)})",
        "mean of true and predicted score (linear up to 10, then logarithmic)",
        "predicted − true score",
    )
    return _png(figure)


def _confusion(summary: Summary) -> bytes:
    counts = summary.agreement.confusion
    names = [f"{int(g)} {g.label}" for g in RiskGroup]
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        ink = "white" if share[i, j] > 0.55 else "black"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=ink)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    title = f"risk groups (n = {int(counts.sum())}; shade: share of the row)"
    _panel(axes, title, "predicted group", "true group")
    axes.spines[:].set_visible(False)
    return _png(figure)


def _dice(cases: Sequence[CaseResult]) -> bytes:
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    hearts = [c for c in cases if c.heart_dice is not None]
    calcium = [c for c in cases if c.counted_dice is not None and c.true_score]
    _strip(left, hearts, lambda c: c.heart_dice or 0.0)
    _strip(right, calcium, lambda c: c.counted_dice or 0.0)
    _panel(left, f"heart (n = {len(hearts)})", "", "Dice")
    _panel(right, f"counted calcium, where there is any (n = {len(calcium)})", "", "Dice")
    low = min((c.heart_dice or 0.0 for c in hearts), default=0.0)
    left.set_ylim(max(0.0, np.floor(min(low, 0.89) * 20 - 0.5) / 20), 1)
    right.set_ylim(0, 1)
    return _png(figure)


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


def _lesions(rates: Sequence[LesionRate]) -> bytes:
    groups = [[r for r in rates if r.by == by] for by in dict.fromkeys(r.by for r in rates)]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axes, own in zip(panels, groups, strict=True):
        for x, one in enumerate(own):
            estimate = one.sensitivity
            if estimate.low is not None and estimate.high is not None:
                axes.vlines(x, estimate.low, estimate.high, color="#2b6cb0", linewidth=2, clip_on=False)
            axes.plot(x, estimate.value, "o", color="#2b6cb0", clip_on=False)
        names = [f"{_short(r.value)}\n{r.found}/{r.total}" for r in own]
        axes.set_xticks(range(len(own)), names, fontsize=8)
        axes.set_xlim(-0.5, len(own) - 0.5)
        axes.set_ylim(0, 1)
        by = "volume, mm³" if own[0].by == "volume" else own[0].by
        _panel(axes, f"lesions found, by {by}", "", "sensitivity")
    panels[-1].set_ylabel("sensitivity" if len(groups) == 1 else "")
    return _png(figure)


def _short(value: str) -> str:
    """``"above 5 to 20 mm³"`` as ``"5–20"``."""
    text = value.removesuffix(" mm³")
    return text.removeprefix("above ").replace(" to ", "–") if " to " in text[5:] else text
