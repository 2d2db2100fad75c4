"""Where in the heart a voxel of the crop lies: what a patch network is told beside the HU it sees.

A patch is 45 mm wide and does not show where it lies. Four channels say it: the depth below the heart's
surface, and the place between the ends of the heart along z, y and x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch

from .crop import CROP_SPACING

CHANNELS = 4
"""Of `position`: depth, and the place along z, y and x."""
DEPTH_MM = 20.0
"""Depths beyond are as good as this one, mm; either way of the surface."""
COARSE = 4
"""Voxels of the crop along y and x that share a depth; between them it is interpolated."""
_STEPS = 100
"""`heart_depth` counts in hundredths of `DEPTH_MM`."""
FARTHEST = 1.5
"""Places are counted from the middle of the heart's box in halves of its width; beyond this all are alike."""


def heart_depth(share: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int8]:
    """Depth below the heart's surface on a crop, in hundredths of `DEPTH_MM`; negative outside the heart.

    Args:
        share: Of each of the crop's voxels that is heart, (z, y, x); y and x are multiples of `COARSE`.

    Returns:
        int8 of the same shape, −100 to 100.
    """
    z, y, x = share.shape
    inside = share.reshape(z, y // COARSE, COARSE, x // COARSE, COARSE).mean(axis=(2, 4)) >= 0.5
    sampling = np.multiply(CROP_SPACING, (1, COARSE, COARSE))
    if inside.any() and not inside.all():
        depth = scipy.ndimage.distance_transform_edt(inside, sampling=sampling)
        depth = depth - scipy.ndimage.distance_transform_edt(~inside, sampling=sampling)
    else:
        depth = np.full(inside.shape, DEPTH_MM if inside.all() else -DEPTH_MM)
    coarse = torch.from_numpy((depth * (_STEPS / DEPTH_MM)).clip(-_STEPS, _STEPS).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse[:, None], size=(y, x), mode="bilinear")[:, 0]
    return fine.round().to(torch.int8).numpy()


def heart_box(depth: npt.NDArray[np.int8]) -> tuple[tuple[float, float], ...]:
    """Middle and half width of the heart along z, y and x, voxels of the crop, as `heart_depth` shows it."""
    inside = depth > 0
    out = []
    for axis in range(3):
        along = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (along[0], along[-1]) if len(along) else (0, depth.shape[axis] - 1)
        out.append(((low + high) / 2, max((high - low) / 2, 1.0)))
    return tuple((float(m), float(h)) for m, h in out)


def position(
    depth: npt.NDArray[np.int8],
    box: tuple[tuple[float, float], ...],
    corner: tuple[int, int, int] = (0, 0, 0),
    *,
    before: int = 0,
) -> npt.NDArray[np.float32]:
    """The channels that say where a voxel lies, float32 (4, z, y, x).

    Args:
        depth: Of the crop or of a patch of it, see `heart_depth`.
        box: Of the crop's heart, see `heart_box`.
        corner: Of the patch in the crop, (z, y, x).
        before: Channels in front of these, with nothing in them yet.
    """
    whole = np.empty((before + CHANNELS, *depth.shape), dtype=np.float32)
    out = whole[before:]
    out[0] = depth * np.float32(1 / _STEPS)
    for axis, ((middle, half), first) in enumerate(zip(box, corner, strict=True)):
        along = (np.arange(depth.shape[axis], dtype=np.float32) + (first - middle)) / half
        shape = [1, 1, 1]
        shape[axis] = -1
        out[1 + axis] = along.clip(-FARTHEST, FARTHEST).reshape(shape)
    return whole
