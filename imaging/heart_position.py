"""Where in the heart a voxel of the crop lies: what a patch network is told beside the HU it sees.

A patch is 45 mm wide and does not show where it lies. Four channels say it: the depth below the heart's
surface, and the place between the ends of the heart along z, y and x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch

from .crop import CROP_SPACING
from .masks import bounding_box

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
    sampling = np.multiply(CROP_SPACING, (1, COARSE, COARSE))
    depth = np.full((z, y // COARSE, x // COARSE), -DEPTH_MM)
    if (heart := share > 0).any():
        # Beyond `DEPTH_MM` all is alike, so distances are taken around the heart alone.
        near = []
        for b, mm, many, n in zip(
            bounding_box(heart), sampling, (1, COARSE, COARSE), depth.shape, strict=True
        ):
            reach = math.ceil(DEPTH_MM / mm)
            near.append(slice(max(b.start // many - reach, 0), min(-(-b.stop // many) + reach, n)))
        zs, *plane = near
        ys, xs = (slice(s.start * COARSE, s.stop * COARSE) for s in plane)
        part = np.ascontiguousarray(share[zs, ys, xs])
        blocks = len(part), part.shape[1] // COARSE, COARSE, part.shape[2] // COARSE, COARSE
        inside = part.reshape(blocks).mean(axis=(2, 4)) >= 0.5
        if inside.all():
            depth[tuple(near)] = DEPTH_MM
        elif inside.any():
            within = scipy.ndimage.distance_transform_edt(inside, sampling=sampling)
            depth[tuple(near)] = within - scipy.ndimage.distance_transform_edt(~inside, sampling=sampling)
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
) -> npt.NDArray[np.float32]:
    """The channels that say where a voxel lies, float32 (4, z, y, x).

    Args:
        depth: Of the crop or of a patch of it, see `heart_depth`.
        box: Of the crop's heart, see `heart_box`.
        corner: Of the patch in the crop, (z, y, x).
    """
    out = torch.empty((CHANNELS, *depth.shape))
    Place.of(np.array(depth), box, corner).fill(out)  # it may be a part of a file that must not be written to
    return out.numpy()


@dataclass(frozen=True, kw_only=True)
class Place:
    """The channels that say where the voxels of a crop lie, made for a patch when it is looked at.

    Attributes:
        depth: int8 (z, y, x), see `heart_depth`.
        along: float32, one along each axis: places between the ends of the heart.
    """

    depth: torch.Tensor
    along: tuple[torch.Tensor, ...]

    @classmethod
    def of(
        cls,
        depth: npt.NDArray[np.int8],
        box: tuple[tuple[float, float], ...],
        corner: tuple[int, int, int],
        device: torch.device | None = None,
    ) -> Place:
        """Of a crop or a part of it; see `position`."""
        along = []
        for axis, ((middle, half), first) in enumerate(zip(box, corner, strict=True)):
            place = (np.arange(depth.shape[axis], dtype=np.float32) + (first - middle)) / half
            along.append(torch.from_numpy(place.clip(-FARTHEST, FARTHEST)).to(device))
        return cls(depth=torch.from_numpy(depth).to(device), along=tuple(along))

    def fill(self, out: torch.Tensor, window: tuple[slice, ...] = (slice(None),) * 3) -> None:
        """Write the channels of a window into `out`, float32 (4, z, y, x)."""
        torch.mul(self.depth[window], 1 / _STEPS, out=out[0])
        for axis, (along, part) in enumerate(zip(self.along, window, strict=True)):
            shape = [1, 1, 1]
            shape[axis] = -1
            out[1 + axis] = along[part].reshape(shape)
