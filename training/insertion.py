"""Simulated calcium in real hearts: real anatomy, noise and artefacts around a known truth.

A background is a real scan without coronary calcium, whose heart a heart model finds. The coronary tree of
a simulated patient is laid into that heart: stretched from the simulated heart's extent to the real one's,
then each point moved to the depth below the heart's surface that it has in the simulated heart. Plaques
and distractors are drawn as in the simulator (`simulation.specks`) and added to the real HU, so that the
real noise stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..dicom import Series, discover, read_series
from ..dicom.gates import is_sharp_kernel
from ..errors import TrainingError
from ..imaging import Geometry, Volume
from ..imaging.crop import CANDIDATE_HU, crop_grid
from ..imaging.heart_position import heart_depth
from ..imaging.labels import ARTERIES
from ..imaging.masks import bounding_box, box_centre, dilated
from ..imaging.orientation import to_canonical
from ..simulation import sample_acquisition
from ..simulation.acquisition import KERNELS
from ..simulation.anatomy import Anatomy, sample_anatomy, stream
from ..simulation.arteries import sample_plaques
from ..simulation.coronary import Deposit, sample_lesions
from ..simulation.distractors import all_distractors
from ..simulation.shapes import Array, Points
from ..simulation.specks import Speck, lesion_specks, scanner_frame
from ..simulation.truth import OTHERS, by_kind
from .crops import ARTERY, KIND, Crop, CropRecipe, Named, composed_label, named

FindHeart = Callable[[str, Volume], npt.NDArray[np.bool_]]

log = logging.getLogger(__name__)

MARGIN_MM = 60.0
"""What is kept of a background around its heart, mm: what a shifted and turned crop can still see."""
STEP_MM = 2.0
"""Grid on which depths below the heart's surface are measured."""
WITH_CALCIUM = 0.9
"""A heart drawn without calcium is drawn again with this probability: real hearts are few."""
BLURRED_SHARE = 0.5
"""Share of insertions into a softer version of the background: one sharp, noisy scan stands for several."""


@dataclass(frozen=True, kw_only=True)
class Background:
    """The surroundings of a real heart without coronary calcium, in canonical orientation.

    Attributes:
        name: Of its source.
        volume: The heart and `MARGIN_MM` around it.
        heart: bool (z, y, x).
        kernel: The simulator's kernel that stands for the scan's.
        thickness: Slice thickness, mm.
        kvp: Tube voltage, kV.
    """

    name: str
    volume: Volume = field(repr=False)
    heart: npt.NDArray[np.bool_] = field(repr=False)
    kernel: str
    thickness: float
    kvp: float

    @cached_property
    def extent(self) -> tuple[Points, Points]:
        """Size of the heart (between its 1st and 99th percent along x, y and z) and its centre, LPS mm."""
        points = self.volume.geometry.to_lps(np.argwhere(self.heart)[::11].astype(float))
        bottom, top = np.percentile(points, (1, 99), axis=0)
        return top - bottom, points.mean(axis=0)

    @cached_property
    def depth(self) -> Depth:
        """Distance to the surface of the heart."""
        return Depth(self)


def background_series(folder: Path) -> dict[str, Series]:
    """The DICOM series of a folder that can be backgrounds.

    Those that a header gate rejects are left out with a log line. That a series shows no coronary calcium
    nobody can check but the person who gives the folder.

    Returns:
        By name: folder and number, nothing of the patient.

    Raises:
        NoDicomFound: Nothing in the folder.
        TrainingError: No series of it is usable.
    """
    found = {f"{folder.name}-{number}": series for number, series in enumerate(discover(folder).series)}
    for name, series in found.items():
        if series.rejection:
            log.warning("background %s is left out: %s", name, series.rejection.message)
    usable = {name: series for name, series in found.items() if not series.rejection}
    if not usable:
        raise TrainingError(
            f"{folder} holds no series that can be a background; give chest CT without calcium"
        )
    return usable


def load_background(name: str, series: Series, find_heart: FindHeart) -> Background:
    """Read a background; `find_heart` takes name and volume and gives the mask."""
    volume = read_series(series).volume
    return make_background(name, volume, find_heart(name, volume), series)


def make_background(name: str, volume: Volume, heart: npt.NDArray[np.bool_], series: Series) -> Background:
    """Turn a scan into canonical orientation and cut it to the heart's surroundings."""
    turned = to_canonical(volume.hu, volume.geometry)
    mask = to_canonical(heart, volume.geometry).array
    margins = [int(MARGIN_MM / step) for step in turned.geometry.spacing]
    box = tuple(
        slice(max(s.start - m, 0), min(s.stop + m, n))
        for s, m, n in zip(bounding_box(mask), margins, mask.shape, strict=True)
    )
    geometry = turned.geometry.part(box)
    kernel = (
        series.kernel
        if series.kernel in KERNELS
        else ("BONE" if is_sharp_kernel(series.kernel) else "STANDARD")
    )
    return Background(
        name=name,
        volume=Volume(hu=np.ascontiguousarray(turned.array[box]), geometry=geometry),
        heart=np.ascontiguousarray(mask[box]),
        kernel=kernel,
        thickness=series.slice_thickness or geometry.spacing[0],
        kvp=series.kvp or 120.0,
    )


def fit_to_heart(anatomy: Anatomy, background: Background) -> Callable[[Points], Points]:
    """What stretches points (n, 3) of a simulated patient (mm) into a real heart's extent, LPS mm."""
    low, high, centroid, _ = anatomy.heart.extent()
    size, centre = background.extent
    scale = size / (0.96 * (high - low))
    return lambda points: (points - centroid) * scale + centre


class Depth:
    """Signed distance to the surface of a background's heart, mm, negative inside."""

    def __init__(self, background: Background) -> None:
        geometry = background.volume.geometry
        self.geometry = geometry
        self.factor = np.array(geometry.spacing) / STEP_MM
        small = (
            scipy.ndimage.zoom(
                background.heart.astype(np.float32), self.factor, order=1, grid_mode=True, mode="nearest"
            )
            >= 0.5
        )
        inside, outside = (scipy.ndimage.distance_transform_edt(m, sampling=STEP_MM) for m in (small, ~small))
        smooth = scipy.ndimage.gaussian_filter((outside - inside).astype(np.float32), 1.5)
        self.fields = [smooth, *np.gradient(smooth, STEP_MM)]

    def at(self, lps: Points) -> tuple[Points, Points]:
        """Depth (n,) and its gradient (n, 3), LPS, at points (n, 3)."""
        index = (self.geometry.to_index(lps) + 0.5) * self.factor - 0.5
        depth, *slope = (
            scipy.ndimage.map_coordinates(f, index.T, order=1, mode="nearest") for f in self.fields
        )
        return depth, np.stack(slope, axis=1) @ np.asarray(self.geometry.axes)

    def moved(self, lps: Points, wanted: Points) -> Points:
        """Points (n, 3) moved along the gradient to the `wanted` depths (n,), and smoothed along the line."""
        for _ in range(5):
            depth, slope = self.at(lps)
            lps = lps - ((depth - wanted) * 0.8)[:, None] * slope
            if len(lps) > 9:
                lps = scipy.ndimage.uniform_filter1d(lps, 5, axis=0, mode="nearest")
        return lps


def lay_coronaries(anatomy: Anatomy, background: Background) -> dict[str, Points]:
    """The simulated coronary arteries in a real heart: centrelines (n, 3), LPS mm."""
    fitted = fit_to_heart(anatomy, background)
    shallowest = -2.0 if anatomy.version == 1 else 1.0
    out = {}
    for name, line in anatomy.coronaries.items():
        p = line.astype(np.float32)
        wanted = np.clip(anatomy.heart.sac(p[:, 0], p[:, 1], p[:, 2]), -25, shallowest).astype(np.float64)
        out[name] = background.depth.moved(fitted(line), wanted)
    return out


def insert(
    background: Background, seed: int, version: int = 1
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.bool_], Named]:
    """Put the calcium of simulated patient `seed`, drawn by a version of the simulator, into a real heart.

    Returns:
        float32 HU, bool calcium and bool distractors (z, y, x) on the background's grid: where the noise-free
        picture, softly smoothed background and lesions, reaches 130 HU; and their arteries and kinds, which
        a blurred edge may lack.
    """
    rng = stream(seed, "insert")
    geometry = background.volume.geometry
    anatomy = sample_anatomy(seed, version)
    draw = sample_lesions if version == 1 else sample_plaques
    lines = lay_coronaries(anatomy, background)
    lesions: tuple[Deposit, ...] = ()
    while not lesions and rng.random() < WITH_CALCIUM:
        _, lesions = draw(rng, lines, anatomy.coronary_radius)
    fitted = fit_to_heart(anatomy, background)
    others = [replace(x, points=fitted(x.points)) for x in all_distractors(anatomy)]
    scan = replace(
        sample_acquisition(seed, version),
        kernel=background.kernel,
        thickness=background.thickness,
        increment=geometry.spacing[0],
        kvp=background.kvp,
    )
    frame = scanner_frame()
    hu = background.volume.hu.astype(np.float32)
    pixel = np.array(geometry.spacing[1:])
    quiet = scipy.ndimage.gaussian_filter(hu, (0.5, *(2.0 / pixel)))
    base = np.clip(quiet, -110, 70)
    specks = lesion_specks(lesions, frame, geometry, scan, rng)
    own, cover = _contrast(specks, base)
    other_specks = lesion_specks(others, frame, geometry, scan, rng)
    other, other_cover = _contrast(other_specks, base)
    hu += own + other
    clean = np.minimum(quiet, 100) + own + other
    if rng.random() < BLURRED_SHARE:
        sigma = (0.0, *(rng.uniform(0.3, 1.1) / pixel))
        hu, clean, cover, other_cover = (
            scipy.ndimage.gaussian_filter(a, sigma) for a in (hu, clean, cover, other_cover)
        )
    dense = clean >= CANDIDATE_HU
    calcium = dense & (cover > 0.03) & (cover >= other_cover)
    beside = dense & (other_cover > 0.03) & ~calcium
    names = (
        *named(by_kind(calcium, specks, ARTERIES), ARTERY),
        *named(by_kind(beside, other_specks, OTHERS), KIND),
    )
    return hu, calcium, beside, names


def _contrast(specks: list[Speck], base: Array) -> tuple[Array, Array]:
    """HU that lesions add to the background `base`, and their summed coverage, both (z, y, x)."""
    added, cover = np.zeros_like(base), np.zeros_like(base)
    for speck in specks:
        added[speck.box] += speck.cover * np.maximum(
            np.float32(speck.hu) - base[speck.box] - added[speck.box], 0
        )
        cover[speck.box] += speck.cover
    return added, cover


def inserted_crop(background: Background, seed: int, recipe: CropRecipe) -> Crop:
    """A training crop with simulated calcium in a real heart, turned and stretched a little.

    Everything is read through one trilinear interpolation, as at inference.

    Args:
        background: The real heart.
        seed: Of the simulated patient whose calcium it gets.
        recipe: Shift, label, margin and the simulator's versions.

    Returns:
        HU and label, see `crops.Crop`.
    """
    rng = stream(seed, "turn")
    hu, calcium, other, names = insert(background, seed, recipe.simulators[0])
    geometry = background.volume.geometry
    shift = rng.normal(0.0, recipe.centre_jitter_mm, 3)
    centre = np.add(box_centre(background.heart, geometry), shift)
    where = _turned(crop_grid(geometry, centre), geometry, centre, rng)
    near = dilated(background.heart, geometry, recipe.near_heart_mm)

    def read(array: npt.NDArray[np.generic], outside: float = 0.0) -> Array:
        out: Array = scipy.ndimage.map_coordinates(
            array.astype(np.float32), where, order=1, mode="constant", cval=outside
        )
        return out

    crop = np.clip(read(hu, -1024.0), -1024, 3071).round().astype(np.int16)
    label = composed_label(
        read, recipe, near=near, calcium=calcium, other=other, names=names if recipe.named else ()
    )
    return (crop, label, heart_depth(read(background.heart))) if recipe.named else (crop, label)


def _turned(
    grid: Geometry, source: Geometry, centre: Points, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Source indices (3, z, y, x) of a grid's voxels after a small turn about z and stretching."""
    angle = float(np.clip(rng.normal(0.0, np.deg2rad(5.0)), -0.25, 0.25))
    stretch = np.exp(rng.uniform(-0.13, 0.13, 3))
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ np.diag(stretch)
    to_lps, from_lps = grid.affine_lps(), np.linalg.inv(source.affine_lps())
    about = np.eye(4)
    about[:3, :3] = turn
    about[:3, 3] = centre - turn @ centre
    m = (from_lps @ about @ to_lps).astype(np.float32)
    z, y, x = (np.arange(n, dtype=np.float32) for n in grid.shape)
    out: npt.NDArray[np.float32] = (
        m[:3, 0, None, None, None] * z[None, :, None, None]
        + m[:3, 1, None, None, None] * y[None, None, :, None]
        + m[:3, 2, None, None, None] * x[None, None, None, :]
        + m[:3, 3, None, None, None]
    )
    return out
