"""The voxels of each lesion, for whoever compares lesions; their scores are in `CalciumScore`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..imaging import Volume
from .agatston import Pieces
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
