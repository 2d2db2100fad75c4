"""What is no chest: volumes in which a heart must not be believed, whatever a network finds in them.

Bodies of ellipsoids with tissue, bone and air where heads, necks, abdomens, legs and phantoms have them, and
parts, turns and mirrorings of chests. Small on purpose: 3 to 5 mm voxels are all that the heart network and
the gates look at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from deepcac2.imaging import Geometry, Volume

SHAPE, SPACING = (60, 128, 128), (4.0, 3.0, 3.0)
AIR, FOAM, FAT, WATER, MUSCLE, BRAIN, LIVER, BONE = -1000, -930, -100, 0, 50, 35, 55, 800

Mask = npt.NDArray[np.bool_]


def _axes() -> tuple[npt.NDArray[np.float64], ...]:
    """Distance of each voxel from the field's middle, mm (z up, y back, x left)."""
    z, y, x = np.indices(SHAPE, dtype=np.float64)
    return tuple((a - (n - 1) / 2) * s for a, n, s in zip((z, y, x), SHAPE, SPACING, strict=True))


def _ellipsoid(centre: tuple[float, float, float], radius: tuple[float, float, float]) -> Mask:
    parts = zip(_axes(), centre, radius, strict=True)
    return np.asarray(sum(((a - c) / r) ** 2 for a, c, r in parts) <= 1, dtype=bool)


def _volume(
    hu: npt.NDArray[np.floating], seed: int = 0, spacing: tuple[float, float, float] = SPACING
) -> Volume:
    noisy = hu + np.random.default_rng(seed).normal(0, 12, hu.shape)
    z, y, x = (-(n - 1) / 2 * s for n, s in zip(hu.shape, spacing, strict=True))
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    geometry = Geometry(shape=shape, spacing=spacing, origin=(x, y, z))
    return Volume(hu=np.rint(noisy).clip(-1024, 3000).astype(np.int16), geometry=geometry)


def _empty(hu: float = AIR) -> npt.NDArray[np.float64]:
    return np.full(SHAPE, float(hu))


def head(*, around: float = AIR, foam: bool = False) -> Volume:
    """Scalp, skull, brain with ventricles and sinuses; on a headrest of foam where asked for."""
    hu = _empty(around)
    if foam:
        _, y, x = _axes()
        hu[(y > 20) & (np.hypot(x, y) < 140)] = FOAM
    hu[_ellipsoid((0, 0, 0), (105, 102, 82))] = MUSCLE
    hu[_ellipsoid((0, 0, 0), (99, 96, 76))] = BONE
    hu[_ellipsoid((0, 0, 0), (92, 89, 69))] = BRAIN
    hu[_ellipsoid((10, 0, 12), (12, 35, 6))] = hu[_ellipsoid((10, 0, -12), (12, 35, 6))] = WATER
    hu[_ellipsoid((-70, -75, 0), (14, 10, 22))] = AIR  # sinuses
    for side in (-1, 1):
        hu[_ellipsoid((-60, 25, 55 * side), (15, 14, 9))] = -500  # mastoid cells
    return _volume(hu)


def neck() -> Volume:
    """A column of muscle with vertebrae, windpipe and shoulders below."""
    hu = _empty()
    z, y, x = _axes()
    neck_radius = np.where(z > -40, 62, 62 + 2.2 * (-40 - z))
    hu[(x / (1.1 * neck_radius)) ** 2 + (y / 65) ** 2 <= 1] = MUSCLE
    hu[(np.hypot(x, y - 22) < 15)] = 300
    hu[(np.hypot(x, y + 12) < 9)] = AIR
    return _volume(hu)


def abdomen(*, gas: bool = True) -> Volume:
    """Trunk with liver, spleen, kidneys, spine, and gas in the bowel."""
    hu = _empty()
    _, y, x = _axes()
    hu[(x / 165) ** 2 + (y / 115) ** 2 <= 1] = FAT
    hu[(x / 150) ** 2 + (y / 100) ** 2 <= 1] = 20
    hu[_ellipsoid((30, -10, -70), (85, 75, 70))] = LIVER
    hu[_ellipsoid((40, 40, 95), (50, 32, 30))] = MUSCLE
    hu[np.hypot(x, y - 65) < 20] = 250
    for side in (-1, 1):
        hu[_ellipsoid((-30, 45, 60 * side), (55, 25, 25))] = 30
    if gas:
        hu[_ellipsoid((20, -60, 60), (40, 22, 45))] = AIR
        hu[_ellipsoid((-50, -50, -40), (40, 25, 30))] = AIR
        hu[_ellipsoid((-60, 0, 110), (50, 25, 22))] = AIR
    return _volume(hu)


def legs() -> Volume:
    """Two thighs with their bones side by side: soft tissue with air between and on both sides."""
    hu = _empty()
    _, y, x = _axes()
    for side in (-1, 1):
        hu[np.hypot(x - 85 * side, y) < 72] = FAT
        hu[np.hypot(x - 85 * side, y) < 62] = MUSCLE
        hu[np.hypot(x - 85 * side, y) < 14] = BONE
    return _volume(hu)


def water(*, around: float = AIR) -> Volume:
    """The round water phantom of daily quality checks."""
    hu = _empty(around)
    _, y, x = _axes()
    hu[np.hypot(x, y) < 105] = 120
    hu[np.hypot(x, y) < 100] = WATER
    return _volume(hu)


def ball_in_box() -> Volume:
    """A ball of heart's size and density in a box of cork: lung all around it, but no body."""
    hu = _empty()
    _, y, x = _axes()
    hu[(np.abs(x) < 150) & (np.abs(y) < 110)] = -800
    hu[_ellipsoid((0, 0, 10), (55, 50, 55))] = 40
    return _volume(hu)


NO_CHESTS: dict[str, Callable[[], Volume]] = {
    "head": head,
    "head on foam": partial(head, foam=True),
    "head in air that was clipped": partial(head, around=-900),
    "head in air of -940": partial(head, around=-940),
    "neck and shoulders": neck,
    "abdomen": abdomen,
    "abdomen without gas": partial(abdomen, gas=False),
    "legs": legs,
    "water": water,
    "water in clipped air": partial(water, around=-500),
    "ball in cork": ball_in_box,
    "nothing": lambda: _volume(_empty()),
    "noise": lambda: _volume(np.random.default_rng(1).normal(0, 300, SHAPE)),
}
"""Everything that is built here, by name; each takes a moment."""


def turned(chest: Volume) -> Iterator[tuple[str, Volume]]:
    """A chest whose pixels lie otherwise than its header says."""
    z, y, x = chest.geometry.spacing
    turns: dict[str, tuple[npt.NDArray[np.int16], tuple[float, float, float]]] = {
        "upside down": (chest.hu[::-1], (z, y, x)),
        "face down": (chest.hu[:, ::-1], (z, y, x)),
        "mirrored": (chest.hu[:, :, ::-1], (z, y, x)),
        "turned by half": (chest.hu[:, ::-1, ::-1], (z, y, x)),
        "turned by a quarter": (np.rot90(chest.hu, 1, (1, 2)), (z, x, y)),
        "turned by a quarter back": (np.rot90(chest.hu, 3, (1, 2)), (z, x, y)),
        "coronal": (np.swapaxes(chest.hu, 0, 1), (y, z, x)),
        "sagittal": (np.swapaxes(chest.hu, 0, 2), (x, y, z)),
    }
    for name, (hu, spacing) in turns.items():
        yield name, with_pixels(chest, hu, spacing)


def parts(chest: Volume) -> Iterator[tuple[str, Volume]]:
    """Pieces of a whole chest that do not hold the heart: neck and shoulders, upper abdomen."""
    n = chest.hu.shape[0]
    yield "its upper third", with_pixels(chest, chest.hu[round(n * 0.67) :])
    yield "its lowest quarter", with_pixels(chest, chest.hu[: round(n * 0.25)])


def with_pixels(
    like: Volume, hu: npt.NDArray[np.int16], spacing: tuple[float, float, float] | None = None
) -> Volume:
    """Other pixels on a grid that starts and runs as `like`'s."""
    shape = (hu.shape[0], hu.shape[1], hu.shape[2])
    grid = replace(like.geometry, shape=shape, spacing=spacing or like.geometry.spacing)
    return Volume(hu=np.ascontiguousarray(hu), geometry=grid)


def coarse(chest: Volume, mm: float = 2.5) -> Volume:
    """A chest with fewer pixels, about `mm` wide: quick, and enough for a heart."""
    step = max(1, round(mm / chest.geometry.spacing[1]))
    z, y, x = chest.geometry.spacing
    return with_pixels(chest, chest.hu[:, ::step, ::step], (z, y * step, x * step))
