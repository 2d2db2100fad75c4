"""Which artery calcium lies in, and what the network takes other bright things in the heart for.

A network with a namer answers twice: whether a voxel is coronary calcium, as any does, and, for pairs of
voxels along each axis, what is bright there (`KINDS`). The mask, and with it the score, hangs on the first
answer alone.
"""

from __future__ import annotations

from typing import NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ...imaging import Geometry
from ...imaging.labels import ARTERIES, CORONARY, NOT_CORONARY, NOT_SURE, Labels
from ...imaging.masks import bounding_box

KINDS = ("none", "LM", "LAD", "LCX", "RCA", "aorta", "aortic valve", "mitral annulus", "pericardium", "other")
"""What a namer tells apart: nothing of all that (bone, noise, edges of lesions), the arteries, what else is
calcified at the heart, and metal and the rest."""
_ARTERY = slice(1, 5)
SURE = 0.6
"""Share of a part's probability of any artery that the likeliest one must have; less is `NOT_SURE`."""
PART_MM3 = 15.0
"""Volume from which the part of a lesion in another artery than the rest is told apart, mm³; chosen."""
LEAST_VOXELS = 3
"""Pieces of fewer voxels that are not counted are noise, and not named."""

BoolArray = npt.NDArray[np.bool_]


class Named(NamedTuple):
    """What a namer says of a CT.

    Attributes:
        arteries: Of the calcium that was found; classes `ARTERIES` and `NOT_SURE`.
        others: Of what is as bright in the heart and was not found; classes `NOT_CORONARY`.
    """

    arteries: Labels
    others: Labels


def name_pieces(
    kinds: npt.NDArray[np.float32],
    grid: Geometry,
    ct: Geometry,
    *,
    found: BoolArray,
    bright: BoolArray,
) -> Named:
    """Name what was found, part by part, and the other bright pieces, piece by piece.

    Parts and pieces are of voxels that are bright; what is not, at a lesion's edge, is named as the nearest
    bright voxel of what was found.

    Args:
        kinds: float32 (10, z, y, x), probabilities of `KINDS`; summed over patches will do. Only what
            `imaging.resampling.support` says of `bright` is read.
        grid: Its grid: the crop's, with voxels twice as wide along each axis.
        ct: Grid of the masks, parallel to it.
        found: bool (z, y, x), coronary calcium.
        bright: bool, what may count by its HU where calcium is looked for.
    """
    arteries = np.zeros(ct.shape, dtype=np.uint8)
    others = np.zeros(ct.shape, dtype=np.uint8)
    for mask, out, name, least in (
        (found & bright, arteries, _arteries, 1),
        (bright & ~found, others, _others, LEAST_VOXELS),
    ):
        if not mask.any():
            continue
        box = bounding_box(mask)
        index = np.argwhere(mask[box])
        pieces = np.asarray(cc3d.connected_components(mask[box], connectivity=26))
        piece = pieces[tuple(index.T)].astype(np.int64) - 1
        large = np.bincount(piece)[piece] >= least  # of noise most is smaller
        if not large.any():
            continue
        index, piece = index[large], piece[large]
        offset = np.array([s.start for s in box])
        where = grid.to_index(ct.to_lps((index + offset).astype(float))).T
        shares = np.stack(
            [scipy.ndimage.map_coordinates(k, where, order=1, mode="nearest") for k in kinds], axis=1
        )
        size = np.array(grid.shape)[:, None]
        shares[((where < -0.5) | (where > size - 0.5)).any(axis=0)] = 0  # beyond the crop nothing is known
        out[box][tuple(index.T)] = name(shares, piece, ct.voxel_volume)
    if (edge := found & ~bright).any():
        box = bounding_box(found)
        edge, part = edge[box], arteries[box]
        if part.any():
            nearest = scipy.ndimage.distance_transform_edt(
                part == 0, sampling=ct.spacing, return_distances=False, return_indices=True
            )
            part[edge] = part[tuple(nearest[:, edge])]
        else:
            part[edge] = NOT_SURE.value
    return Named(
        arteries=Labels(array=arteries, classes=(*ARTERIES, NOT_SURE)),
        others=Labels(array=others, classes=NOT_CORONARY),
    )


def _summed(
    shares: npt.NDArray[np.float32], group: npt.NDArray[np.int64], groups: int
) -> npt.NDArray[np.float64]:
    """Sums of the rows of `shares` (n, k) over groups 0, 1, …, (groups, k)."""
    return np.stack([np.bincount(group, weights=s, minlength=groups) for s in shares.T], axis=1)


def _arteries(
    shares: npt.NDArray[np.float32], piece: npt.NDArray[np.int64], voxel_mm3: float
) -> npt.NDArray[np.uint8]:
    """Values of the arteries of voxels (n,): small parts join the largest part of their piece."""
    artery = shares[:, _ARTERY]
    count = int(piece.max()) + 1
    own = artery.argmax(axis=1)
    size = np.bincount(piece * 4 + own, minlength=count * 4).reshape(count, 4)
    own = np.where(size[piece, own] * voxel_mm3 >= PART_MM3, own, size.argmax(axis=1)[piece])
    part = piece * 4 + own
    total = _summed(artery, part, count * 4)
    mean = total[part] / np.maximum(total[part].sum(axis=1, keepdims=True), 1e-9)
    sure = mean[np.arange(len(own)), own] >= SURE
    return np.where(sure, own + 1, NOT_SURE.value).astype(np.uint8)


def _others(
    shares: npt.NDArray[np.float32], piece: npt.NDArray[np.int64], voxel_mm3: float
) -> npt.NDArray[np.uint8]:
    """Values of `NOT_CORONARY` of voxels (n,) of pieces that are large enough, 0 for what the namer takes for
    nothing of them."""
    total = _summed(shares, piece, int(piece.max()) + 1)
    total[:, 1] = total[:, _ARTERY].sum(axis=1)
    total[:, 2:5] = 0
    kind = total.argmax(axis=1)
    value = np.where(kind == 0, 0, np.where(kind == 1, CORONARY.value, kind - 4))
    named: npt.NDArray[np.uint8] = value[piece].astype(np.uint8)
    return named
