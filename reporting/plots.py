"""Figures about two series of scores, as PNG; drawn to read well in print and without colour."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ..stats.agreement import RISK_CUTS, Estimate

_DPI = 110
ZOOM = RISK_CUTS[-1]
"""Upper end of the zoomed scatter, as in the paper's figure 2."""
BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#4a5568"


@dataclass(frozen=True, kw_only=True)
class Points:
    """Scores that are drawn alike.

    Attributes:
        label: In the legend, before the number of points; "" for none.
        marker, colour: matplotlib's.
        reference, predicted: float (n,).
    """

    label: str = ""
    marker: str = "o"
    colour: str = BLUE
    reference: npt.NDArray[np.float64]
    predicted: npt.NDArray[np.float64]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def panel(axes: Axes, title: str, x: str, y: str) -> None:
    """Heading and labels of one plot, without a box around it."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def scatter(axes: Axes, points: Points, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> None:
    """Draw points at x, y; very many as a cloud."""
    if not len(x):
        return
    many = len(x) > 2000
    label = f"{points.label} (n = {len(x)})" if points.label else None
    axes.scatter(
        x, y, s=4 if many else 26, marker=points.marker, facecolors=points.colour if many else "none",
        edgecolors="none" if many else points.colour, alpha=0.25 if many else 1, label=label,
        clip_on=False, zorder=3, rasterized=many,
    )  # fmt: skip


def scores_figure(groups: Sequence[Points], *, reference: str, predicted: str) -> bytes:
    """Predicted against reference scores, all of them and those up to 300.

    Args:
        groups: At least one point in all.
        reference, predicted: What the axes are called.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    whole, zoomed = figure.subplots(1, 2)
    top = max(float(v.max(initial=0)) for g in groups for v in (g.reference, g.predicted)) * 1.04 + 1
    for axes, end, text in ((whole, top, "all"), (zoomed, ZOOM, f"up to {ZOOM:g}")):
        axes.plot([0, end], [0, end], color="#718096", linewidth=1, zorder=1)
        for cut in RISK_CUTS[1:]:
            if cut <= end:
                axes.axhline(cut, color="#cbd5e0", linewidth=0.8, zorder=0)
                axes.axvline(cut, color="#cbd5e0", linewidth=0.8, zorder=0)
        shown = 0
        for g in groups:
            near = np.maximum(g.reference, g.predicted) <= end
            scatter(axes, g, g.reference[near], g.predicted[near])
            shown += int(near.sum())
        axes.set_xlim(0, end)
        axes.set_ylim(0, end)
        axes.set_box_aspect(1)
        panel(axes, f"{text} (n = {shown})", reference, predicted)
    if any(g.label for g in groups):
        whole.legend(frameon=False, fontsize=8, loc="lower right")
    return png(figure)


def bland_altman_figure(
    groups: Sequence[Points], estimates: Mapping[str, Estimate], *, reference: str, predicted: str
) -> bytes:
    """Differences against means, with mean difference and limits of agreement.

    Args:
        groups: At least one point in all.
        estimates: With ``mean_difference``, ``lower_limit`` and ``upper_limit``, see `Agreement`.
        reference, predicted: What the two are called.
    """
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("symlog", linthresh=10)
    for g in groups:
        scatter(axes, g, (g.reference + g.predicted) / 2, g.predicted - g.reference)
    lines = (
        ("mean_difference", "mean:", "-"),
        ("lower_limit", "mean − 1.96 SD:", "--"),
        ("upper_limit", "mean + 1.96 SD:", "--"),
    )
    for name, label, style in lines:
        value = estimates[name].value
        if value is not None:
            axes.axhline(value, color="#2d3748", linewidth=1, linestyle=style, zorder=1)
            text = f"{label} {value:+.0f}".replace("-", "−")
            axes.annotate(text, (1.01, value), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    axes.set_xlim(left=-0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if any(g.label for g in groups):
        axes.legend(edgecolor="none", framealpha=1, fontsize=8, loc="upper left")
    n = sum(len(g.reference) for g in groups)
    panel(
        axes,
        f"Bland–Altman (n = {n})",
        f"mean of {reference} and {predicted} score (linear up to 10, then logarithmic)",
        f"{predicted} − {reference} score",
    )
    return png(figure)


def confusion_figure(
    counts: npt.NDArray[np.int64], names: Sequence[str], *, reference: str, predicted: str
) -> bytes:
    """Groups against groups, each cell with its number, shaded by its share of the row.

    Args:
        counts: (reference group, predicted group), see `stats.agreement.confusion`.
        names: Of the groups.
        reference, predicted: What the axes are called.
    """
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
    panel(axes, title, predicted, reference)
    axes.spines[:].set_visible(False)
    return png(figure)
