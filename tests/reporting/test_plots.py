"""Clouds of points: drawn once for all files, they look as matplotlib's own."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from deepcac2.reporting.plots import BLUE, ORANGE, Drawing, Points, drawn, scatter

COUNT = 4000


def points(seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A third of them in one place, as scores of 0 are."""
    x, y = np.random.default_rng(seed).lognormal(3, 1, (2, COUNT))
    x[: COUNT // 3] = y[: COUNT // 3] = 0
    return x, y


def figure(*, clouds: bool, end: float = 300) -> Figure:
    """Two clouds with a legend, ours or drawn as matplotlib does."""
    made = Figure(figsize=(4, 3))
    axes = made.subplots()
    axes.axhline(20, color="black", zorder=1)
    for seed, colour, marker in ((1, BLUE, "o"), (2, ORANGE, "s")):
        x, y = points(seed)
        if clouds:
            group = Points(label=colour, marker=marker, colour=colour, reference=x, predicted=y)
            scatter(axes, group, x, y)
        else:
            axes.scatter(
                x, y, s=4, marker=marker, facecolors=colour, edgecolors="none", alpha=0.25, clip_on=False,
                label=f"{colour} (n = {COUNT})", zorder=3, rasterized=True,
            )  # fmt: skip
    axes.legend()
    axes.set_xlim(0, end)
    return made


def pixels(drawing: Drawing) -> npt.NDArray[np.int16]:
    """int16 (y, x, RGB)."""
    return np.asarray(Image.open(io.BytesIO(drawing.png)).convert("RGB"), dtype=np.int16)


def test_a_cloud_looks_as_if_each_point_were_drawn() -> None:
    """But for roundings, and for the edge of the place with a third of all points."""
    ours, theirs = drawn(figure(clouds=True)), drawn(figure(clouds=False))
    far = np.abs(pixels(ours) - pixels(theirs)).max(axis=2)
    assert (pixels(theirs) < 200).any(axis=2).mean() > 0.05
    assert (far > 4).mean() < 2e-4
    assert far.mean() < 0.05
    for made in (ours.svg, ours.pdf):
        assert len(made) < 400_000  # a picture, and no path for each point


def test_a_cloud_is_drawn_anew_where_it_lies_elsewhere() -> None:
    moved = figure(clouds=True)
    drawn(moved)
    moved.axes[0].set_xlim(0, 90)
    assert drawn(moved).png == drawn(figure(clouds=True, end=90)).png


def test_few_points_stay_points() -> None:
    made = Figure()
    scatter(made.subplots(), Points(reference=np.arange(5.0), predicted=np.arange(5.0)), *points(1))
    (one,) = made.axes[0].collections
    few = Figure()
    x = np.arange(5.0)
    scatter(few.subplots(), Points(reference=x, predicted=x), x, x)
    (other,) = few.axes[0].collections
    assert (one.get_rasterized(), bool(other.get_rasterized())) == (True, False)
    assert b"<image" in drawn(made).svg
    assert b"<image" not in drawn(few).svg
