"""The voxels of each lesion, for whoever compares lesions; their scores are in `CalciumScore`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..imaging import Volume
from .agatston import Pieces, ranked, weighed
from .rules import Rule, find_rule


def lesion_voxels(
    volume: Volume, mask: npt.NDArray[np.bool_], *, rule: str | Rule = "agatston"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The voxels that count by `rule`, and the 3D lesion that each belongs to.

    Args:
        volume: CT, int16 HU (z, y, x).
        mask: bool (z, y, x): what is coronary calcium.
        rule: As for `score`; rules whose lesions live in one slice are joined over 26 neighbours.

    Returns:
        Array indices (voxel, 3) in the order (z, y, x), and lesion numbers (voxel,) 0, 1, … without gaps.

    Raises:
        InputError: No rule has this name.
    """
    pieces = Pieces(volume, mask, find_rule(rule))
    return pieces.index, pieces.lesion


def numbered_lesions(
    volume: Volume,
    mask: npt.NDArray[np.bool_],
    *,
    rule: str | Rule = "agatston",
    slice_thickness: float | None = None,
    kvp: float | None = None,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The voxels that count, and the number (`Lesion.index`) of the lesion that each belongs to.

    Args:
        volume, mask, rule, slice_thickness, kvp: As for `score`, whose lesions these are.

    Returns:
        Array indices (voxel, 3) in the order (z, y, x), and lesion numbers (voxel,) from 1.

    Raises:
        MaskMismatch, InputError: As `score`.
    """
    chosen, _, pieces, contributions = weighed(volume, mask, rule, slice_thickness, kvp)
    _, order = ranked(chosen, pieces, contributions)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(1, len(order) + 1)
    return pieces.index, number[pieces.lesion]
