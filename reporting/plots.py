"""Figures about two series of scores, fit for a paper; drawn to read well in print and without colour."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.artist import allow_rasterization
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import IdentityTransform

from ..stats.agreement import RISK_CUTS, Estimate

log = logging.getLogger(__name__)

_DPI = 300
"""Of the PNG files; what journals ask for."""
ZOOM = RISK_CUTS[-1]
"""Upper end of the zoomed scatter, as in the paper's figure 2."""
BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#4a5568"
GROUPS = ("#2b6cb0", "#38a169", "#c05621", "#9b2c2c", "#553c9a", "#4a5568")
"""The one palette: of the risk groups from the lowest on, and of whatever else is told apart. Its first and
third are `BLUE` and `ORANGE`."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure as files.

    Attributes:
        png: With 300 dots per inch.
        svg, pdf: To be enlarged; what is a cloud of points in them is a picture.
    """

    png: bytes
    svg: bytes
    pdf: bytes


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


def drawn(figure: Figure) -> Drawing:
    """The figure as files; the same figure gives the same bytes."""
    nothing: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    files = {}
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "deepcac2"}):
        for kind, metadata in nothing.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=_DPI, metadata=metadata)
            files[kind] = buffer.getvalue()
            figure.set_layout_engine("none")  # it is laid out now
    return Drawing(**files)


def all_drawn(made: Mapping[str, Callable[[], Drawing]]) -> dict[str, Drawing]:
    """Figures by name; one that cannot be drawn is left out, and the log says why."""
    found = {}
    for name, make in made.items():
        try:
            found[name] = make()
        except (ArithmeticError, ValueError) as error:
            log.warning("the figure %s is left out: it cannot be drawn (%s)", name, error)
    return found


def stated(symbol: str, estimate: Estimate | None, digits: int = 2) -> str:
    """A statistic with its interval, for a heading; "" where there is none.

    >>> stated("ρ", Estimate(value=0.879, low=0.852, high=0.9, n=390))
    'ρ = 0.88 (0.85 to 0.90)'
    """
    if estimate is None or estimate.value is None:
        return ""
    between = estimate.low is not None and estimate.high is not None
    ends = f" ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})" if between else ""
    return f"{symbol} = " + f"{estimate.value:.{digits}f}{ends}".replace("-", "−")


def panel(axes: Axes, title: str, x: str, y: str) -> None:
    """Heading and labels of one plot, without a box around it."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


class _Cloud(PathCollection):
    """Very many points: a picture, in every file the same, for which they are drawn once."""

    _drawn: tuple[tuple[float, float, float], npt.NDArray[np.float64], npt.NDArray[np.uint8]] | None = None
    """The size of a canvas and its dots per inch, where the points are on it, and the picture of them."""

    @allow_rasterization  # type: ignore[untyped-decorator]
    def draw(self, renderer: RendererBase) -> None:
        """Put the picture; draw it where it is not there yet, or not for this place. Called by matplotlib."""
        width, height = renderer.get_canvas_width_height()
        canvas = width, height, 72 * float(renderer.points_to_pixels(1))  # type: ignore[arg-type]
        where = self.get_offset_transform().transform(self.get_offsets())
        drawn = self._drawn
        if drawn is None or drawn[0] != canvas or not np.array_equal(drawn[1], where):
            own = RendererAgg(*canvas)  # type: ignore[no-untyped-call]
            super().draw(own)
            drawn = canvas, where, np.asarray(own.buffer_rgba())  # type: ignore[no-untyped-call]
            self._drawn = drawn
        renderer.draw_image(renderer.new_gc(), 0, 0, drawn[2][::-1])


def scatter(axes: Axes, points: Points, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> None:
    """Draw points at x, y; very many as a cloud."""
    if not len(x):
        return
    many = len(x) > 2000
    label = f"{points.label} (n = {len(x)})" if points.label else None
    if many:
        marker = MarkerStyle(points.marker)
        cloud = _Cloud(
            (marker.get_path().transformed(marker.get_transform()),), (4,), offsets=np.column_stack([x, y]),
            offset_transform=axes.transData, facecolors=points.colour, edgecolors="none", alpha=0.25,
            label=label, clip_on=False, zorder=3, rasterized=True,
        )  # fmt: skip
        cloud.set_transform(IdentityTransform())
        axes.add_collection(cloud)
        axes.autoscale_view()
        return
    axes.scatter(
        x, y, s=26, marker=points.marker, facecolors="none", edgecolors=points.colour, label=label,
        clip_on=False, zorder=3,
    )  # fmt: skip


def scores_figure(
    groups: Sequence[Points], *, reference: str, predicted: str, rho: Estimate | None = None
) -> Drawing:
    """Predicted against reference scores, all of them and those up to 300.

    Args:
        groups: At least one point in all.
        reference, predicted: What the axes are called.
        rho: Spearman's, of all of them.
    """
    figure = Figure(figsize=(9, 4.8), layout="constrained")
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
        said = stated("Spearman ρ", rho) if axes is whole else ""
        panel(axes, ", ".join(filter(None, (f"{text} (n = {shown})", said))), reference, predicted)
    if any(g.label for g in groups):
        whole.legend(frameon=False, fontsize=8, loc="lower right")
    return drawn(figure)


def bland_altman_figure(
    groups: Sequence[Points], estimates: Mapping[str, Estimate], *, reference: str, predicted: str
) -> Drawing:
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
    return drawn(figure)


def confusion_figure(
    counts: npt.NDArray[np.int64],
    names: Sequence[str],
    *,
    reference: str,
    predicted: str,
    kappa: Estimate | None = None,
) -> Drawing:
    """Groups against groups, each cell with its number and its share of the row, which shades it.

    Args:
        counts: (reference group, predicted group), see `stats.agreement.confusion`.
        names: Of the groups.
        reference, predicted: What the axes are called.
        kappa: Of the groups, with linear weights.
    """
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    whole = counts.sum(axis=1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape):
        ink = "white" if share[i, j] > 0.55 else "black"
        text = f"{counts[i, j]}\n{share[i, j]:.0%}" if whole[i] else "0"
        axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=9)
    split = [name.replace(" (", "\n(") for name in names]
    axes.set_xticks(range(len(names)), split, fontsize=8)
    rows = [f"{name}\nn = {n}" for name, n in zip(split, whole, strict=True)]
    axes.set_yticks(range(len(names)), rows, fontsize=8)
    said = stated("κ (linear weights)", kappa)
    title = (
        ", ".join(filter(None, (f"groups (n = {int(counts.sum())})", said))) + "\nnumber and share of the row"
    )
    panel(axes, title, predicted, reference)
    axes.spines[:].set_visible(False)
    return drawn(figure)
