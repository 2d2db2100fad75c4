"""A score divided by classes: by the artery that calcium lies in, or by what it is instead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..imaging import Volume
from ..imaging.labels import Labels
from .agatston import weighed
from .rules import Rule


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """What one class has of a score.

    Attributes:
        score: Its share of the score, before any rounding of the lesions or the sum; no unit.
        volume_mm3: Volume of its counted voxels.
        n_lesions: Lesions of which it has the largest part.
        centroid_lps: Centre of its counted voxels in the patient, LPS mm (x, y, z); None without any.
    """

    score: float
    volume_mm3: float
    n_lesions: int
    centroid_lps: tuple[float, float, float] | None = None


def score_by_class(
    volume: Volume,
    labels: Labels,
    *,
    rule: str | Rule = "agatston",
    slice_thickness: float | None = None,
    kvp: float | None = None,
) -> dict[str, ClassScore]:
    """Divide the score of a mask among its classes.

    The score is that of the whole mask (`agatston.score`), so that no class changes it: a piece of two
    classes gets its weight as one, and each class the share of its voxels. A lesion that runs on from one
    class into another is one lesion, of that which has more of its voxels; of equals, of the first.

    Args:
        volume: CT, int16 HU (z, y, x).
        labels: What lies where, on the CT's grid.
        rule, slice_thickness, kvp: As of `agatston.score`.

    Returns:
        By name of the class, in their order. Their scores add up to the total, where the rule does not round
        lesions or the sum.

    Raises:
        MaskMismatch, InputError: As of `agatston.score`.
    """
    _, _, pieces, added = weighed(volume, labels.mask, rule, slice_thickness, kvp)
    values = np.array([label.value for label in labels.classes])
    kind = np.searchsorted(values, labels.array[tuple(pieces.index.T)])
    of_piece = np.zeros((len(pieces.n), len(values)))
    np.add.at(of_piece, (pieces.piece, kind), 1.0)
    scores = (of_piece / of_piece.sum(axis=1, keepdims=True) * added[:, None]).sum(axis=0)
    of_lesion = np.zeros((int(pieces.lesion.max(initial=-1)) + 1, len(values)))
    np.add.at(of_lesion, (pieces.lesion, kind), 1.0)
    lesions = np.bincount(of_lesion.argmax(axis=1), minlength=len(values))
    voxels = of_piece.sum(axis=0)
    return {
        label.name: ClassScore(
            score=float(scores[i]),
            volume_mm3=float(voxels[i] * volume.geometry.voxel_volume),
            n_lesions=int(lesions[i]),
            centroid_lps=_centre(volume, pieces.index[kind == i]),
        )
        for i, label in enumerate(labels.classes)
    }


def _centre(volume: Volume, index: npt.NDArray[np.int64]) -> tuple[float, float, float] | None:
    """Centre of voxels (n, 3), LPS mm; None of none."""
    if not len(index):
        return None
    x, y, z = (float(v) for v in volume.geometry.to_lps(index.mean(axis=0)))
    return x, y, z
