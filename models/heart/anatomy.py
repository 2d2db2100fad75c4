"""Whether what was found as heart lies in a chest: the body around it, lungs on both sides, the spine behind.

A network that knows only chests finds a heart in anything: the brain of a head CT passes for one by its
volume, its shape and the air around the head. So the heart is believed by what surrounds it. Everything is
measured on blocks of about 4 mm, in which noise and vessels have no say, in the patient's own directions.

The limits are our own, from what was measured on 12 real chests (5 of them cut to the heart in height) and
40 simulated ones on the one hand, and on heads, phantoms, abdomens, necks, turned and
mirrored stacks, and hearts "found" in the wrong place of real chests on the other. Between the two they
stand nearer to the chests: a chest refused costs a look at it, a head accepted a wrong score.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dicom.gates import Gate, register_gate
from ...imaging import Volume
from ...imaging.masks import bounding_box
from ...imaging.orientation import to_canonical

NO_CHEST = register_gate(
    Gate(
        code="no-chest",
        sentence="There is no lung beside what was found as heart: the scan shows no chest.",
    )
)
CHEST_IMPLAUSIBLE = register_gate(
    Gate(
        code="chest-implausible",
        sentence="What was found as heart does not lie as a heart does: lungs on both sides, the spine "
        "behind it, the head above, the apex on the left.",
        overridable=True,
    )
)

BLOCK_MM = 4.0
"""Size of the blocks in which a scan is looked at, mm."""

BODY_HU = -300.0
"""Blocks above this are body, below it air or lung: halfway between lung (about -850) and fat (-100)."""

LUNG_HU = -450.0
"""Blocks below this, inside the body, are lung (or bowel gas); their rims and large vessels are left out."""

OPEN_AIR_HU = -960.0
"""Air whose blocks at the border of a slice have a median below this is the air around the body, or padding.
Lung that a small field cuts has -700 to -930; only severe emphysema comes near -950."""

FLAT_HU = 25.0
"""Air whose blocks differ by less than this (standard deviation) is no lung: vessels and the weight of the
lung make 60 to 140 in chests, the air around a body has 2 to 15, also where its value is not -1000."""

BONE_HU = 150.0
"""Blocks above this are bone: the mean of a vertebra's shell and spongy bone over 4 mm."""

SIDE_REACH_MM = 40.0
"""How far beside the heart its lung may begin: beyond pericardial fat and a small effusion."""

MIN_LUNG_BESIDE = 0.3
"""Share of the heart's rows that must have lung beside them, on each side. Chests: 0.54 or more on the right,
0.57 on the left; heads 0.02 to 0.2."""

MIN_LUNG_AT_ALL = 0.1
"""Below this share on both sides there is no lung, and no chest."""

SPINE_WINDOW_MM = 28.0
"""Edge of the square in which bone is looked for, mm: a vertebral body is 25 to 45 mm deep and wide."""

MIN_SPINE = 0.22
"""Share of bone, over all slices of the heart, in the fullest such square behind the heart's middle. Chests:
0.30 or more; none behind hearts in stacks that were turned by 90° about the body's axes: 0.16 or less."""

SPINE_OVER_FRONT = 1.4
"""How much more bone there must be in that square than in the fullest one in front of the heart's middle.
Chests: 2.0 or more; stacks turned by 180°: 0.2."""

SPINE_ROOM_MM = 140.0
"""Room behind the heart's middle, mm, that shows the spine in everybody: it lies 73 to 138 mm behind."""

SPINE_FIELD_MM = 250.0
"""A field this wide shows the spine, too: fields are square, with the heart in front of their middle. A field
zoomed onto the heart, which is neither, need not show a spine behind; it must not show one in front."""

MAX_FRONT = 0.4
"""Bone in front of the heart where the spine need not be seen. Chests: 0.34 or less; turned by 180°: 0.6."""

RIGHT_OF_SPINE_MM, LEFT_OF_SPINE_MM = 40.0, 68.0
"""How far to the patient's right or left of the spine the heart's middle may lie, mm. Chests: 24 mm to the
right (scoliosis) to 56 mm to the left; stacks turned by a quarter: 73 mm or more; hearts moved onto the
spleen 57 to 97 mm to the left, onto the liver's right half 44 to 82 mm to the right."""

MIN_APEX_LEFT = 0.0
"""How clearly the left part of the heart must be its lower and front part, where the apex is; see
`Surroundings.apex_left`. Chests: 0.05 to 0.72 (60 simulated), 0.39 to 0.50 (5 real); mirrored the opposite.
A simulated patient with a score of 516 had 138 when mirrored: the networks know where an artery lies."""

MAX_LUNG_WITHIN = 0.1
"""Share of a heart that may look like lung. Chests: 0.03 or less."""

AWAY_MM = 12.0
"""How far above and below the heart lung is looked for, mm: beyond its edge, within the diaphragm."""

MIN_UPRIGHT = -0.08
"""Share of lung right above the heart minus that right below it, where diaphragm and liver are. Chests: -0.01
or more, most 0.15 to 0.4; stacks upside down: -0.13 or less."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What surrounds a heart mask.

    Attributes:
        lung_right, lung_left: Share of the heart's rows with lung within `SIDE_REACH_MM` to that side of the
            patient, 0 to 1.
        spine: Share of bone in the fullest `SPINE_WINDOW_MM` square behind the heart's middle, 0 to 1.
        front: The same in front of it.
        beside_spine_mm: How far to the patient's left of that square the heart's middle lies, mm; 0 without
            bone.
        room_behind_mm: How far the field goes on behind the heart's middle, mm.
        field_mm: Width of the field from right to left, mm.
        upright: Share of lung above the heart minus that below it, -1 to 1; None where the scan ends there.
        lung_within: Share of lung inside the mask, 0 to 1.
        apex_left: Correlation between how far to the left a block of the heart lies and how far below the
            others, plus that with how far in front of them, -2 to 2: above 0 where the apex points to the
            left; 0 where there is none.
        height: How far the heart reaches along the body, by how far across it (standard deviations of its
            blocks; across it the geometric mean of both directions); 1 where there is too little of it.
    """

    lung_right: float
    lung_left: float
    spine: float
    front: float
    beside_spine_mm: float
    room_behind_mm: float
    field_mm: float
    upright: float | None
    lung_within: float
    apex_left: float = 0.0
    height: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types, rounded."""
        return {k: None if v is None else round(v, 3) for k, v in asdict(self).items()}


def surroundings(volume: Volume, heart: npt.NDArray[np.bool_]) -> Surroundings:
    """Measure what surrounds a heart.

    Args:
        volume: The CT.
        heart: bool (z, y, x) on its grid, not empty.
    """
    ct = to_canonical(volume.hu, volume.geometry)
    whole = to_canonical(heart, volume.geometry).array
    # Only the heart's slices and those next to them matter, and of their voxels every other one is enough for
    # means of this size: it takes a quarter of the time.
    spacing = ct.geometry.spacing
    slices, reach = bounding_box(whole)[0], math.ceil(2 * AWAY_MM / spacing[0])
    thin = [2 if s <= BLOCK_MM / 4 else 1 for s in spacing]
    part = (
        slice(max(0, slices.start - reach), slices.stop + reach, thin[0]),
        *(slice(None, None, t) for t in thin[1:]),
    )
    thinned, whole = ct.array[part], whole[part]
    apart = [s * t for s, t in zip(spacing, thin, strict=True)]
    steps = [min(max(1, round(BLOCK_MM / s)), n) for s, n in zip(apart, thinned.shape, strict=True)]
    size = [s * n for s, n in zip(apart, steps, strict=True)]
    hu, share = _block_means(thinned, steps), _block_means(whole, steps)
    mask = share >= min(0.5, float(share.max()))  # all blocks of a tiny mask hold less than half of it
    zs = bounding_box(mask)[0]
    y, x = np.argwhere(mask)[:, 1:].mean(axis=0)
    lung, points = _lung(hu), (np.argwhere(mask) * size).T
    spine, front, beside, room = _bones((hu > BONE_HU)[zs] & ~mask[zs], y, x, size)
    return Surroundings(
        lung_right=_lung_beside(mask, lung, size, to_left=False),
        lung_left=_lung_beside(mask, lung, size, to_left=True),
        spine=spine,
        front=front,
        beside_spine_mm=beside,
        room_behind_mm=room,
        field_mm=hu.shape[2] * size[2],
        upright=_upright(mask, lung, size),
        lung_within=float((hu[mask] < LUNG_HU).mean()),
        apex_left=_apex_left(points),
        height=_height(points),
    )


def objection(found: Surroundings) -> tuple[Gate, str] | None:
    """What speaks against a heart in a chest: the gate and a sentence; None: nothing does."""
    right, left = found.lung_right, found.lung_left
    if max(right, left) < MIN_LUNG_AT_ALL:
        return (
            NO_CHEST,
            f"{max(right, left):.0%} of what was found as heart has lung beside it: this is no chest",
        )
    against = []
    sides = [name for name, share in (("right", right), ("left", left)) if share < MIN_LUNG_BESIDE]
    if sides:
        against.append(
            f"too little lung to its {' and '.join(sides)} (beside {right:.0%} of it right, {left:.0%} left)"
        )
    asked = found.room_behind_mm >= SPINE_ROOM_MM or found.field_mm >= SPINE_FIELD_MM
    behind = found.spine >= MIN_SPINE
    beside = found.beside_spine_mm
    if found.spine < SPINE_OVER_FRONT * found.front if asked else found.front > max(MAX_FRONT, found.spine):
        against.append("more bone before than behind it, as in a stack that was turned")
    elif asked and not behind:
        against.append("no spine behind it")
    elif behind and not -RIGHT_OF_SPINE_MM <= beside <= LEFT_OF_SPINE_MM:
        against.append(
            f"it lies {abs(beside):.0f} mm to the {'left' if beside > 0 else 'right'} of the spine"
        )
    if found.lung_within > MAX_LUNG_WITHIN:
        against.append(f"{found.lung_within:.0%} of it is lung")
    if found.apex_left < MIN_APEX_LEFT:
        against.append("its apex points to the right, as in a mirrored stack (or a heart on the right side)")
    if found.upright is not None and found.upright < MIN_UPRIGHT:
        against.append("lung below it and not above, as in a stack upside down")
    if not against:
        return None
    return CHEST_IMPLAUSIBLE, f"what was found as heart lies otherwise than one: {'; '.join(against)}"


def _apex_left(points: npt.NDArray[np.float64]) -> float:
    """See `Surroundings.apex_left`; points (3, n) along z, y, x, mm."""
    if _flat(points):
        return 0.0
    correlation: npt.NDArray[np.float64] = np.asarray(np.corrcoef(points))
    return -float(correlation[:2, 2].sum())


def _height(points: npt.NDArray[np.float64]) -> float:
    """See `Surroundings.height`; points (3, n) along z, y, x, mm."""
    if _flat(points):
        return 1.0
    z, y, x = points.std(axis=1)
    return float(z / math.sqrt(y * x))


def _flat(points: npt.NDArray[np.float64]) -> bool:
    return points.shape[1] < 2 or bool((np.ptp(points, axis=1) == 0).any())


def _block_means(array: npt.NDArray[Any], steps: list[int]) -> npt.NDArray[np.float32]:
    """Means of the whole blocks of `steps` voxels (z, y, x); what is left over at the ends is left out."""
    counts = [n // s for n, s in zip(array.shape, steps, strict=True)]
    total = np.zeros(counts, dtype=np.float32)  # sums of a few hundred HU: exact
    for offset in itertools.product(*map(range, steps)):
        total += array[tuple(slice(o, o + n * s, s) for o, n, s in zip(offset, counts, steps, strict=True))]
    total /= math.prod(steps)
    return total


def _lung(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Blocks of lung: air inside the body. Air that goes on to a slice's border is the air around the body,
    unless it is not as empty as that: lung that the field cuts."""
    from scipy import ndimage

    lung = hu < LUNG_HU
    for z, image in enumerate(hu):
        areas, _ = ndimage.label(image < BODY_HU)
        edge = np.zeros(image.shape, dtype=bool)
        edge[[0, -1]] = edge[:, [0, -1]] = True
        for area in np.unique(areas[edge]):
            if area == 0:
                continue
            within = areas == area
            inner = ndimage.binary_erosion(within)
            flat = not inner.any() or float(np.std(image[inner])) < FLAT_HU
            if flat or np.median(image[within & edge]) < OPEN_AIR_HU:
                lung[z] &= ~within
    opened: npt.NDArray[np.bool_] = ndimage.binary_opening(lung, np.ones((1, 2, 2)))
    return opened


def _lung_beside(
    mask: npt.NDArray[np.bool_], lung: npt.NDArray[np.bool_], size: list[float], *, to_left: bool
) -> float:
    """Share of the heart's rows (z, y) with lung within reach on one side of the patient."""
    if not to_left:
        mask, lung = mask[:, :, ::-1], lung[:, :, ::-1]
    rows = mask.any(axis=2)
    last = mask.shape[2] - 1 - mask[:, :, ::-1].argmax(axis=2)
    reach = round(SIDE_REACH_MM / size[2])
    columns = np.arange(mask.shape[2])
    near = (columns > last[..., None]) & (columns <= last[..., None] + reach)
    return float((lung & near).any(axis=2)[rows].mean())


def _bones(
    bone: npt.NDArray[np.bool_], y: float, x: float, size: list[float]
) -> tuple[float, float, float, float]:
    """Bone behind and in front of the heart's middle, how far beside the former it lies, and the room
    behind: `Surroundings.spine`, ``front``, ``beside_spine_mm``, ``room_behind_mm``."""
    from scipy.ndimage import uniform_filter

    middle = min(max(round(y), 1), bone.shape[1] - 1)
    window = [max(1, round(SPINE_WINDOW_MM / s)) for s in size[1:]]
    often = bone.mean(axis=0, dtype=np.float32)
    behind = uniform_filter(often[middle:], window, mode="constant")
    front = uniform_filter(often[:middle], window, mode="constant")
    column = int(np.unravel_index(behind.argmax(), behind.shape)[1])
    beside = (x - column) * size[2] if behind.any() else 0.0
    room = (bone.shape[1] - 1 - y) * size[1]
    return float(behind.max()), float(front.max()), beside, room


def _upright(mask: npt.NDArray[np.bool_], lung: npt.NDArray[np.bool_], size: list[float]) -> float | None:
    """Share of lung above the heart's columns minus that below them; None where the scan ends there."""
    height = mask.shape[0]
    ys, xs = np.nonzero(mask.any(axis=0))
    away = max(1, round(AWAY_MM / size[0]))
    top = height - 1 - mask[::-1, ys, xs].argmax(axis=0) + away
    bottom = mask[:, ys, xs].argmax(axis=0) - away
    over, under = top < height, bottom >= 0
    if min(over.mean(), under.mean()) < 0.3:
        return None
    above = lung[top[over], ys[over], xs[over]].mean()
    below = lung[bottom[under], ys[under], xs[under]].mean()
    return float(above - below)
