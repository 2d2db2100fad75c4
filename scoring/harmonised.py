"""A CT as a thicker and softer reconstruction of the same scan would show it, for a score beside.

Thin slices and sharp kernels make more noise, and noise makes points: voxels of soft calcium pass 130 HU,
and single ones raise the weight of a lesion. Averaging slices to about 3 mm, for which the score was made
(Agatston et al. 1990), and blurring what a sharp kernel has enhanced takes most of that back. What thick
slices or a soft kernel have lost nothing brings back: such scans stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..imaging import Volume
from ..imaging.masks import bounding_box

SLAB_MM = 3.0
"""Thickness to which slices are averaged, mm; Agatston et al., J Am Coll Cardiol 1990;15:827."""
SOFTENING_MM = 0.7
"""Standard deviation of the blur within a slice for sharp kernels, mm; measured, see docs/scoring.md."""
REACH_MM = 1.0
"""How far beyond its mask a lesion may reach within a slice once it is blurred, mm; measured there."""


def slices_averaged(increment: float) -> int:
    """How many slices become one: as many as `SLAB_MM` holds, at least 1.

    >>> [slices_averaged(mm) for mm in (0.5, 0.6, 1.0, 1.25, 1.5, 2.0, 5.0)]
    [6, 5, 3, 2, 2, 1, 1]
    """
    return max(1, math.floor(SLAB_MM / increment * (1 + 1e-6)))


def harmonised(
    volume: Volume, mask: npt.NDArray[np.bool_], *, sharp: bool
) -> tuple[Volume, npt.NDArray[np.bool_]]:
    """The part of a CT around a mask with thicker slices and, of a sharp kernel, softer; and the mask on it.

    Slabs begin with the first slice of the CT, wherever the mask lies. The mask's slab is all of its slices
    together, and `REACH_MM` more within the slice where anything was blurred or averaged.

    Args:
        volume: CT, int16 HU (z, y, x).
        mask: bool (z, y, x): what is coronary calcium.
        sharp: Whether the kernel is one for lung or bone.

    Returns:
        The CT and the mask to score, on one grid; of an empty mask both as they are.

    Raises:
        ValueError: The mask has another shape than the CT.
    """
    if mask.shape != volume.hu.shape:
        raise ValueError(f"the mask has shape {mask.shape} and the CT {volume.hu.shape}")
    count = slices_averaged(volume.geometry.spacing[0])
    if not mask.any() or (count == 1 and not sharp):
        return volume, mask
    from scipy import ndimage  # a fifth of a second, and most scans need none of it

    _, *pixel = volume.geometry.spacing
    box = _box(mask, count, [int(np.ceil((REACH_MM + 4 * SOFTENING_MM) / p)) for p in pixel])
    hu, part = volume.hu[box].astype(np.float32), mask[box]
    firsts = np.arange(0, len(hu), count)
    sizes = np.diff(firsts, append=len(hu))
    hu = (np.add.reduceat(hu, firsts) / sizes[:, None, None]).astype(np.float32)
    part = np.logical_or.reduceat(part, firsts)
    if sharp:
        hu = ndimage.gaussian_filter(hu, [0.0, *(SOFTENING_MM / p for p in pixel)], mode="nearest")
    away = ndimage.distance_transform_edt  # slice by slice: lesions of neighbouring slabs stay apart
    part = np.stack([away(~one, sampling=pixel) <= REACH_MM if one.any() else one for one in part])
    geometry = volume.geometry.part(box)
    first = geometry.to_lps([(count - 1) / 2, 0.0, 0.0])
    geometry = replace(
        geometry,
        shape=hu.shape,
        spacing=(geometry.spacing[0] * count, *geometry.spacing[1:]),
        origin=(float(first[0]), float(first[1]), float(first[2])),
    )
    return Volume(hu=np.rint(hu).astype(np.int16), geometry=geometry), part


def _box(mask: npt.NDArray[np.bool_], count: int, around: list[int]) -> tuple[slice, slice, slice]:
    """The mask's box with whole slabs, and so many pixels more within the slices."""
    z, *plane = bounding_box(mask)
    size, *sides = mask.shape
    whole = slice(z.start // count * count, min(-(-z.stop // count) * count, size))
    y, x = (
        slice(max(s.start - n, 0), min(s.stop + n, side))
        for s, n, side in zip(plane, around, sides, strict=True)
    )
    return whole, y, x
