"""Lesions as the scanner sees them: what turns calcium and metal into their footprints on a grid.

The same functions put simulated lesions into simulated scans and into real ones (`scanner_frame`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..imaging import Geometry
from .acquisition import KERNELS, Acquisition, PointSpread
from .coronary import METAL_HU, Deposit
from .shapes import Array, Box, Canvas, Frame, Points, Waves

SOFT_TISSUE_HU = 40.0
"""What calcium is counted from when its contrast changes with the tube voltage."""
CALCIUM_ENERGY_EXPONENT = 0.70
"""Calcium contrast goes with kVp to this power, downwards. 100 kVp images have to be scaled by 0.88 to
score as at 120 kVp ("Coronary artery calcium scoring at lower tube voltages - dose determination and
scoring mechanism", 2021), and 1 / 0.88 = (120 / 100)^0.70; above 120 kVp this is an extrapolation."""
MOBILITY = {
    "RCA": 1.0,
    "LCX": 0.75,
    "LM": 0.5,
    "LAD": 0.45,
    "stent": 0.6,
    "aortic valve": 0.6,
    "mitral annulus": 0.8,
    "pacemaker lead": 0.6,
    "bypass clip": 0.3,
    "pericardium": 0.5,
    "aorta": 0.15,
}
"""Motion of each kind of lesion relative to the right coronary artery; what is not named here is still.

The arteries' order is that of Mao et al., J Comput Assist Tomogr 2000;24:253; the numbers are chosen."""
FLANK_MM = 4.0
"""Motion from which the dark bands beside a moving thing are as strong as they get. Chosen."""
DWELLS = 7
"""Places along its path at which a moving lesion is drawn."""


@dataclass(frozen=True, kw_only=True)
class Speck:
    """The footprint of one lesion on the wanted grid.

    Attributes:
        lesion: What it is.
        hu: Hounsfield units of the material at the scan's tube voltage.
        box: Indices (z, y, x) it covers.
        cover: float32 (z, y, x) of the box: coverage, 0 to 1; a little below 0 or above 1 where a sharp
            kernel enhances edges.
    """

    lesion: Deposit
    hu: float
    box: Box
    cover: Array


@dataclass(frozen=True, kw_only=True)
class Flank:
    """Dark bands beside what moves while it is scanned: its views do not fit together.

    What a wider Gaussian takes away is what the lesion gains: the mean stays.

    Attributes:
        strength: How much of it.
        width: Standard deviation of the Gaussian along rows and columns (y, x), mm.
    """

    strength: float
    width: tuple[float, float]


def scanner_frame() -> Frame:
    """The frame for lesions given in LPS: nothing turned, moved or warped."""
    none = np.zeros((0, 3))
    return Frame(
        rotation=np.eye(3), translation=np.zeros(3), warp=Waves(k=none, phase=np.zeros(0), amplitude=none)
    )


def calcium_contrast(kvp: float) -> float:
    """HU of calcium at `kvp` over its HU at 120 kVp, both counted from soft tissue."""
    return float((120.0 / kvp) ** CALCIUM_ENERGY_EXPONENT)


def material_hu(hu: float, kvp: float) -> float:
    """Hounsfield units at `kvp` of calcium that has `hu` at 120 kVp; metal stays what it is."""
    if hu >= METAL_HU or hu <= SOFT_TISSUE_HU:
        return hu
    return SOFT_TISSUE_HU + (hu - SOFT_TISSUE_HU) * calcium_contrast(kvp)


def lesion_specks(
    lesions: Sequence[Deposit], frame: Frame, geometry: Geometry, scan: Acquisition, rng: np.random.Generator
) -> list[Speck]:
    """Footprints of lesions in a scan: kernel, slice thickness, cardiac motion and tube voltage.

    Args:
        lesions: Calcium or metal, in patient coordinates.
        frame: From patient coordinates to LPS; `scanner_frame()` where the lesions are given in LPS.
        geometry: Grid of the scan.
        scan: Kernel, thickness, tube voltage and motion.
        rng: Draws the motion; lesions of one kind move alike.

    Returns:
        One speck per lesion that touches the grid, in the same order.
    """
    pixel = max(geometry.spacing[1:])
    spread = KERNELS[scan.kernel].system.wider(0.29 * pixel)  # standard deviation of a pixel-wide box
    thickness = max(scan.thickness, geometry.spacing[0])
    paths: dict[str, Points] = {}
    specks = []
    for lesion in lesions:
        if lesion.kind not in paths:
            paths[lesion.kind] = motion_path(rng, scan.motion * MOBILITY.get(lesion.kind, 0.0), arc=scan.arc)
        path = paths[lesion.kind] * rng.uniform(0.7, 1.3)
        flank = None
        if scan.flank:
            moved = float(np.linalg.norm(np.ptp(path, axis=0)))
            flank = Flank(
                strength=scan.flank * min(moved / FLANK_MM, 1.0) * float(rng.uniform(0.3, 1.0)),
                width=(float(rng.uniform(0.8, 4.5)), float(rng.uniform(0.8, 4.5))),
            )
        speck = rasterise(lesion, frame, geometry, spread=spread, thickness=thickness, path=path, flank=flank)
        if speck is not None:
            specks.append(replace(speck, hu=material_hu(lesion.hu, scan.kvp)))
    return specks


def motion_path(rng: np.random.Generator, distance: float, arc: float = 0.0) -> Points:
    """Where a moving thing is seen during half a rotation, `DWELLS` displacements (n, 3), mm, mean 0.

    It rests at both ends and hurries between, so that it shows doubled when it moves far: the first and
    last two places lie close together. Mostly in-plane (LPS x and y); a third of it along z.

    Args:
        rng: Source of randomness.
        distance: How far it moves, mm.
        arc: Up to how far the way turns, radians; 0 for a straight one.
    """
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle), rng.normal(0, 0.33)])
    rest = rng.uniform(0.3, 0.7)
    phase = np.linspace(0, 1, DWELLS)
    way = np.clip((phase - rest) / rng.uniform(0.2, 0.6) + 0.5, 0, 1)
    path: Points = (way - way.mean())[:, None] * direction * distance
    if arc:
        phase = np.linspace(0, 1, 2 * DWELLS)
        way = np.clip((phase - rest) / rng.uniform(0.3, 1.3) + 0.5, 0, 1)
        turn = rng.uniform(-arc, arc) * way
        ahead = np.array([-direction[1], direction[0], 0.0])
        bent = np.cos(turn)[:, None] * direction + np.sin(turn)[:, None] * ahead
        steps = np.diff(way, prepend=0.0)[:, None] * bent * distance
        path = np.cumsum(steps, axis=0)
        path -= path.mean(axis=0)
    return path


def rasterise(
    lesion: Deposit,
    frame: Frame,
    geometry: Geometry,
    *,
    spread: PointSpread,
    thickness: float,
    path: Points | None = None,
    flank: Flank | None = None,
) -> Speck | None:
    """Coverage of one lesion as the scanner sees it, or None outside the grid.

    The lesion is sampled at about 0.35 mm (a voxel at most 11 times along each axis), averaged over the
    places it moves through, blurred in-plane by the kernel, averaged over the slice thickness, and read
    at the voxel centres.

    Args:
        lesion: What to draw.
        frame: From patient coordinates to LPS.
        geometry: Grid to draw on.
        spread: In-plane point spread.
        thickness: Slice thickness, mm.
        path: Displacements (n, 3), LPS mm, each seen for the same time; still by default.
        flank: Dark bands beside it; none by default.
    """
    spacing = np.array(geometry.spacing)
    fine = np.array([min(max(round(s / 0.36) // 2 * 2 + 1, 1), 11) for s in spacing])
    sub = spacing / fine
    moves = np.zeros((1, 3)) if path is None else path @ np.asarray(geometry.axes).T
    steps = np.rint(moves / sub).astype(int)
    points = frame.to_lps(lesion.points)  # across a lesion the frame's warp is all but a shift
    index = geometry.to_index(points)
    pad = (float(lesion.radii.max()) + 3 * spread.reach + 0.5) / spacing
    pad[0] = (float(lesion.radii.max()) + thickness / 2 + 0.5) / spacing[0]
    pad += np.abs(moves).max(axis=0) / spacing
    if flank is not None:
        pad[1:] += 2.5 * np.asarray(flank.width) / spacing[1:]
    low = np.floor(index.min(axis=0) - pad).astype(int)
    high = np.ceil(index.max(axis=0) + pad).astype(int) + 1
    start, stop = np.maximum(low, 0), np.minimum(high, geometry.shape)
    if (stop <= start).any():
        return None
    counts = (high - low) * fine
    first = geometry.to_lps(low - 0.5 + 0.5 / fine)
    grid = Geometry(
        shape=(int(counts[0]), int(counts[1]), int(counts[2])),
        spacing=(float(sub[0]), float(sub[1]), float(sub[2])),
        origin=(float(first[0]), float(first[1]), float(first[2])),
        axes=geometry.axes,
    )
    canvas = Canvas(scanner_frame(), grid, background=0.0)
    canvas.tube(points, lesion.radii, 1.0)
    cover = smear(canvas.hu, steps)
    cover = spread.blur(cover, (float(sub[1]), float(sub[2])))
    width = max(round(thickness / float(sub[0])), 1)
    cover = scipy.ndimage.uniform_filter1d(cover, width, axis=0, mode="constant")
    cover = cover[fine[0] // 2 :: fine[0], fine[1] // 2 :: fine[1], fine[2] // 2 :: fine[2]]
    if flank is not None:
        wide = scipy.ndimage.gaussian_filter(
            cover, (0.0, *(np.asarray(flank.width) / spacing[1:])), truncate=2.5
        )
        cover = cover + np.float32(flank.strength) * (cover - wide)
    cut = tuple(slice(int(a - lo), int(b - lo)) for a, b, lo in zip(start, stop, low, strict=True))
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    return Speck(lesion=lesion, hu=lesion.hu, box=box, cover=np.ascontiguousarray(cover[cut]))


def smear(cover: Array, steps: npt.NDArray[np.int_]) -> Array:
    """Mean of copies of `cover` (z, y, x) moved by whole voxels `steps` (n, 3); what leaves is lost."""
    places, counts = np.unique(steps, axis=0, return_counts=True)
    if len(places) == 1 and not places.any():
        return cover
    out = np.zeros_like(cover)
    for place, count in zip(places, counts, strict=True):
        to = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(place, cover.shape, strict=True))
        of = tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(place, cover.shape, strict=True))
        out[to] += cover[of] * np.float32(count / len(steps))
    return out


def add_specks(hu: Array, specks: Sequence[Speck]) -> npt.NDArray[np.float16]:
    """Mix lesions into a noise-free picture in place; returns their summed coverage."""
    total = np.zeros(hu.shape, dtype=np.float16)
    for speck in specks:
        view = hu[speck.box]
        view += speck.cover * (np.float32(speck.hu) - view)
        total[speck.box] += speck.cover
    return total
