"""Noise of a CT, measured where the patient is nearly uniform.

The measure is the global noise level of Christianson et al., "Automated technique to measure noise in
clinical CT examinations", AJR 2015;205:W93–W99 (doi:10.2214/AJR.14.13613): the standard deviation in many
small pieces of soft tissue, and of these the most frequent one. Differences of neighbouring pixels, as in
Immerkær's estimator, are cheaper but see only the highest frequencies, and CT noise is correlated over
pixels by the kernel: they would call the noise of a soft kernel too low. Air around the patient is no
substitute: most files end at −1024 HU and so cut off half of its noise, or hold padding there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .masks import bounding_box
from .volume import Volume

BLOCK_MM = 12.0
"""Edge of a piece, mm. Chosen: CT noise is correlated over 1 to 3 mm, so that a piece holds enough
independent values, and the chambers of a heart are several times as wide."""

MIN_BLOCK_PIXELS = 6
"""Fewest pixels along an edge, for coarse grids; chosen: 36 values less 3 for the plane."""

MIN_BLOCKS = 20
"""Fewest pieces for a statement; chosen: the mean of ten standard deviations of 36 values is true to 5 %."""

MAX_SLICES = 32
"""Slices looked at, spread evenly over the region: more make the result no better, only later. Chosen."""


def noise_sd(volume: Volume, region: npt.NDArray[np.bool_]) -> float | None:
    """Standard deviation of the noise in a region that is uniform but for few edges, HU.

    Square pieces of the slices that lie wholly inside the region; in each, the standard deviation about
    its own plane, which takes out what varies slowly; of all these, the mean of the shortest half: the
    half of the values that lie closest together. Pieces with edges in them (fat, calcium, wires) are
    the rest. True to about 5 %: a plane takes a little of the slowest noise with it.

    Args:
        volume: The CT, on its own grid.
        region: bool (z, y, x) on that grid; keep a distance to its edges.

    Returns:
        Rounded to 0.1 HU; None where fewer than `MIN_BLOCKS` pieces fit into the region.
    """
    if not region.any():
        return None
    zs, ys, xs = bounding_box(region)
    step = -(-(zs.stop - zs.start) // MAX_SLICES)
    box = (slice(zs.start, zs.stop, step), ys, xs)
    edges = [max(MIN_BLOCK_PIXELS, round(BLOCK_MM / s)) for s in volume.geometry.spacing[1:]]
    inside = _blocks(region[box], edges).all(axis=1)
    if np.count_nonzero(inside) < MIN_BLOCKS:
        return None
    values = _blocks(volume.hu[box], edges)[inside].astype(np.float32)
    return round(_shorth(_spread_about_plane(values, edges)), 1)


def _blocks(array: npt.NDArray[np.generic], edges: list[int]) -> npt.NDArray[np.generic]:
    """An array (z, y, x) as pieces (n, pixels); what is left over at the far edges is left out."""
    (high, wide), (nz, ny, nx) = edges, array.shape
    rows, columns = ny // high, nx // wide
    cut = array[:, : rows * high, : columns * wide].reshape(nz, rows, high, columns, wide)
    return cut.transpose(0, 1, 3, 2, 4).reshape(-1, high * wide)


def _spread_about_plane(values: npt.NDArray[np.float32], edges: list[int]) -> npt.NDArray[np.float32]:
    """Standard deviation (n,) of each piece (n, pixels) about the plane that fits it best."""
    y, x = np.indices(edges, dtype=np.float32).reshape(2, -1)
    tilt = np.stack([y - y.mean(), x - x.mean()])
    tilt /= np.linalg.norm(tilt, axis=1, keepdims=True)
    about = values - values.mean(axis=1, keepdims=True)
    squares = (about**2).sum(axis=1) - ((about @ tilt.T) ** 2).sum(axis=1)
    spread: npt.NDArray[np.float32] = np.sqrt(np.maximum(squares, 0) / (values.shape[1] - 3))
    return spread


def _shorth(values: npt.NDArray[np.float32]) -> float:
    """Mean of the shortest half of the values (Andrews et al., Robust Estimates of Location, 1972): where
    they are densest, whatever the outliers."""
    ordered = np.sort(values)
    half = len(ordered) // 2 + 1
    start = int(np.argmin(ordered[half - 1 :] - ordered[: len(ordered) - half + 1]))
    return float(ordered[start : start + half].mean())
