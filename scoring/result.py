"""What a score is made of: risk group, lesions, and the sum of it all."""

from __future__ import annotations

import enum
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


class RiskGroup(enum.IntEnum):
    """The four risk groups of the DeepCAC2 paper; the number is what its release reports."""

    VERY_LOW = 0
    LOW = 1
    MODERATE = 2
    HIGH = 3

    @property
    def label(self) -> str:
        """Name for people, e.g. ``"very low"``."""
        return self.name.lower().replace("_", " ")


def risk_group(total: float) -> RiskGroup:
    """Risk group of an Agatston score: 0 → 0, up to 100 → 1, up to 300 → 2, above → 3.

    Limits belong to the lower group. The score is first rounded to six digits, so that a sum that is
    100 on paper is not 100.00000000000001 here.

    Raises:
        ValueError: `total` is negative or not finite.

    Examples:
        >>> [int(risk_group(s)) for s in (0, 0.1, 100, 100.1, 300, 300.1)]
        [0, 1, 1, 2, 2, 3]
        >>> risk_group(0).label
        'very low'
    """
    if not math.isfinite(total) or total < 0:
        raise ValueError(f"an Agatston score is finite and not negative, not {total}")
    total = round(total, 6)
    if total > 300:
        return RiskGroup.HIGH
    if total > 100:
        return RiskGroup.MODERATE
    return RiskGroup.LOW if total > 0 else RiskGroup.VERY_LOW


@dataclass(frozen=True, kw_only=True)
class LesionPart:
    """The piece of a lesion that got one weight in one slice.

    Attributes:
        slice_index: Index z of the slice, from 0.
        n_voxels: Counted pixels.
        area_mm2: Their area, mm².
        max_hu: The maximum that set the weight, HU (of the whole 3D lesion where the rule says so).
        weight: By the rule's table, 1 to 4 in all named rules.
        score: area × weight × thickness factor, before any rounding of the lesion or the total.
    """

    slice_index: int
    n_voxels: int
    area_mm2: float
    max_hu: int
    weight: int
    score: float


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """Counted voxels that touch each other, through slices.

    For rules whose lesions live in one slice these are gathered into 3D lesions over 26 neighbours, for
    the table only: the score is the sum over the parts. For rules with 3D lesions it is that lesion.

    Attributes:
        index: 1 for the lesion with the highest score, and so on.
        n_voxels: Counted voxels.
        volume_mm3: Their volume.
        area_mm2: Sum of the areas of all slices.
        max_hu: Highest HU.
        mean_hu: Mean HU.
        weights: Weights that occur, ascending.
        score: What it adds to the total, before that is rounded.
        slice_indices: First and last slice index, from 0, both included.
        slice_numbers: The same slices as people count them (`Geometry.slice_number`), the lower one first.
        centroid_index: Centre of its voxels as fractional index (z, y, x).
        centroid_lps: The same in the patient, LPS mm (x, y, z).
        parts: The pieces that were weighted, by slice.
        certainty: How sure the network was where it was surest, percent; None where nobody said.
    """

    index: int
    n_voxels: int
    volume_mm3: float
    area_mm2: float
    max_hu: int
    mean_hu: float
    weights: tuple[int, ...]
    score: float
    slice_indices: tuple[int, int]
    slice_numbers: tuple[int, int]
    centroid_index: tuple[float, float, float]
    centroid_lps: tuple[float, float, float]
    parts: tuple[LesionPart, ...] = field(repr=False)
    certainty: int | None = None


@dataclass(frozen=True, kw_only=True)
class CalciumScore:
    """The score of one scan by one rule.

    Attributes:
        rule: Name of the rule.
        total: Agatston score, without unit, ≥ 0.
        volume_mm3: Volume of the counted voxels.
        mass_mg: calibration factor × Σ HU × voxel volume over the counted voxels, or None without a
            calibration factor (McCollough et al. 2007, doi:10.1148/radiol.2432050808).
        n_counted: Counted voxels: those of lesions large and dense enough to have a weight.
        lesions: Highest score first.
        parameters: The rule, its parameters and the numbers of this scan that went in, JSON types only.
        shape: Of the CT (z, y, x).
        runs: The counted voxels: (first, count) of each run of indices of the flattened CT, in C order.
    """

    rule: str
    total: float
    volume_mm3: float
    mass_mg: float | None
    n_counted: int
    lesions: tuple[Lesion, ...] = field(repr=False)
    parameters: dict[str, Any] = field(repr=False)
    shape: tuple[int, int, int] = field(repr=False)
    runs: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """What counted: bool (z, y, x) on the CT's grid, made anew with each call.

        Whoever shows or compares counted calcium takes this mask: a threshold alone also passes voxels of
        lesions that are too small to count.
        """
        flat = np.zeros(math.prod(self.shape), dtype=np.bool_)
        for first, count in self.runs:
            flat[first : first + count] = True
        return flat.reshape(self.shape)

    @property
    def risk_group(self) -> RiskGroup:
        """Risk group of the total."""
        return risk_group(self.total)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the counted voxels as JSON types, for reports."""
        return {
            "rule": self.rule,
            "total": self.total,
            "risk_group": int(self.risk_group),
            "risk_group_name": self.risk_group.label,
            "volume_mm3": self.volume_mm3,
            "mass_mg": self.mass_mg,
            "n_counted": self.n_counted,
            "lesions": [asdict(lesion) for lesion in self.lesions],
            "parameters": self.parameters,
        }
