"""The scorer: reads a `Rule`, a CT and a mask, and adds up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cc3d
import numpy as np
import numpy.typing as npt

from ..errors import InputError, MaskMismatch
from ..imaging import Geometry, Volume
from ..imaging.masks import bounding_box
from .result import CalciumScore, Lesion, LesionPart
from .rules import REFERENCE_THICKNESS_MM, Rule, VoltageRule, find_rule

_IntArray = npt.NDArray[np.int64]


def score(
    volume: Volume,
    mask: npt.NDArray[np.bool_],
    *,
    rule: str | Rule = "agatston",
    slice_thickness: float | None = None,
    calibration_factor: float | None = None,
    kvp: float | None = None,
    certainty: npt.NDArray[np.uint8] | None = None,
) -> CalciumScore:
    """Agatston score of the calcium in `mask`, by `rule`.

    Score = Σ over weighted pieces of area (mm²) × weight × thickness factor. The weight is set by the
    piece's maximum HU by the rule's table, in all named rules 130–199 → 1, 200–299 → 2, 300–399 → 3,
    ≥ 400 → 4 (``deepcac2``: 1 below 130, too). A piece whose maximum is below the first limit counts in
    nothing, not even in the volume. A rule may round pixels, pieces, lesions or the sum, see `Rule`.

    What is decided here:

    - an empty mask, or one without a voxel that counts, scores 0 with no lesions;
    - a stack of one slice has no increment of its own: `volume.geometry.spacing[0]` is taken as given;
    - lesions at the border of the array count like others; nothing lies beyond it;
    - a size limit is compared with a relative tolerance of 1e-9, so that 4 pixels of 0.5 × 0.5 mm are 1 mm².

    Args:
        volume: CT, int16 HU (z, y, x), on its own grid.
        mask: bool (z, y, x), same shape: what is coronary calcium.
        rule: A name of `rules.named_rules` or a `Rule`.
        slice_thickness: SliceThickness of the header, mm; only rules that divide it by 3 mm need it.
        calibration_factor: mg of calcium per mm³ and HU, of the scanner and protocol; gives the mass.
        kvp: Tube voltage, kV; only rules that go by it need it.
        certainty: uint8 (z, y, x), percent: how sure a network is of each voxel. It changes no score; each
            lesion gets the highest of its voxels.

    Returns:
        The score with volume, mass, lesions and the mask of what counted.

    Raises:
        MaskMismatch: `mask` or `certainty` has another shape than the CT.
        InputError: `mask` is not bool; the rule is unknown, needs a slice thickness that is not given, or has
            no weights for the tube voltage;
            a thickness or calibration factor is not a positive number.

    Examples:
        Four pixels of 1 mm², 250 HU, in a slice of 3 mm weigh 2:

        >>> import numpy as np
        >>> from deepcac2.imaging import Geometry
        >>> hu = np.zeros((1, 4, 4), np.int16)
        >>> hu[0, 1:3, 1:3] = 250
        >>> ct = Volume(
        ...     hu=hu, geometry=Geometry(shape=(1, 4, 4), spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
        ... )
        >>> score(ct, hu > 0).total
        8.0
    """
    _check_positive("calibration factor", calibration_factor)
    chosen, factor, pieces, contributions = weighed(volume, mask, rule, slice_thickness, kvp)
    geometry = volume.geometry
    if certainty is not None and certainty.shape != volume.hu.shape:
        raise MaskMismatch(
            f"The certainty has shape {certainty.shape} and the CT {volume.hu.shape} (z, y, x)"
        )
    lesions, total = _lesions(volume, chosen, pieces, contributions, certainty)
    if chosen.round_total:
        in_order = np.cumsum(contributions[pieces.published_order()])
        total = float(np.rint(in_order[-1])) if len(in_order) else 0.0

    n_counted = len(pieces.hu)
    hu_sum = int(pieces.hu.sum())
    mass = None if calibration_factor is None else calibration_factor * hu_sum * geometry.voxel_volume
    parameters = {
        **chosen.parameters(),
        "reference_thickness_mm": REFERENCE_THICKNESS_MM,
        "spacing_mm": [float(s) for s in geometry.spacing],
        "slice_thickness_mm": slice_thickness,
        "thickness_factor": factor,
        "calibration_factor_mg_per_mm3_hu": calibration_factor,
    }
    if isinstance(find_rule(rule), VoltageRule):
        parameters["kvp"] = kvp
    return CalciumScore(
        rule=chosen.name,
        total=total,
        volume_mm3=n_counted * geometry.voxel_volume,
        mass_mg=mass,
        n_counted=n_counted,
        lesions=lesions,
        parameters=parameters,
        shape=geometry.shape,
        runs=_runs(pieces.index, geometry.shape),
    )


class Weighed(NamedTuple):
    """A mask's pieces and what each adds to the score.

    Attributes:
        rule: As it holds at the tube voltage.
        factor: Of the slice thickness.
        pieces: The counted voxels.
        contributions: Per piece, rounded as the rule says.
    """

    rule: Rule
    factor: float
    pieces: Pieces
    contributions: npt.NDArray[np.floating[Any]]


def weighed(
    volume: Volume,
    mask: npt.NDArray[np.bool_],
    rule: str | Rule,
    slice_thickness: float | None,
    kvp: float | None,
) -> Weighed:
    """What `score` adds up; arguments and errors as there."""
    chosen = find_rule(rule).at(kvp)
    _check(volume, mask)
    _check_positive("slice thickness", slice_thickness)
    factor = _thickness_factor(chosen, volume.geometry.spacing[0], slice_thickness)
    pieces = Pieces(volume, mask, chosen)
    return Weighed(chosen, factor, pieces, _contributions(chosen, volume.geometry, pieces, factor))


def _contributions(
    rule: Rule, geometry: Geometry, pieces: Pieces, factor: float
) -> npt.NDArray[np.floating[Any]]:
    """What each piece adds to the score, rounded as the rule says."""
    if rule.unit_digits is None:
        found = pieces.n * geometry.pixel_area * pieces.weight * factor
    else:
        z, y, x = geometry.spacing
        # multiplied from x to z and divided last, as the code does whose rounding this is
        thickness = z if rule.thickness == "increment" else factor * REFERENCE_THICKNESS_MM
        unit = round(x * y * thickness / REFERENCE_THICKNESS_MM, rule.unit_digits)
        found = pieces.n * unit * pieces.weight
    return found if rule.piece_digits is None else np.round(found, rule.piece_digits)


def _runs(index: _IntArray, shape: tuple[int, int, int]) -> tuple[tuple[int, int], ...]:
    """(first, count) of the flat indices, in C order, of voxels (voxel, 3) in an array of `shape`."""
    if not len(index):
        return ()
    flat = np.sort(np.ravel_multi_index(tuple(index.T), shape))
    starts = np.flatnonzero(np.diff(flat, prepend=-2) != 1)
    counts = np.diff(starts, append=len(flat))
    return tuple(zip(flat[starts].tolist(), counts.tolist(), strict=True))


def _check(volume: Volume, mask: npt.NDArray[np.bool_]) -> None:
    if mask.shape != volume.hu.shape:
        raise MaskMismatch(
            f"The mask has shape {mask.shape} and the CT {volume.hu.shape} (z, y, x): "
            "resample the mask to the CT's own grid"
        )
    if mask.dtype != np.bool_:
        raise InputError(f"The mask must be boolean, not {mask.dtype}: compare it with its label first")


def _check_positive(name: str, value: float | None) -> None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"The {name} must be a positive number, not {value}")


def _thickness_factor(rule: Rule, increment: float, slice_thickness: float | None) -> float:
    if rule.thickness == "none":
        return 1.0
    if rule.thickness == "increment":
        return increment / REFERENCE_THICKNESS_MM
    if slice_thickness is None:
        raise InputError(
            f"The rule '{rule.name}' needs the slice thickness of the scan: give --slice-thickness MM"
        )
    return slice_thickness / REFERENCE_THICKNESS_MM


class Pieces:
    """The counted voxels of a scan and the pieces they are weighted in.

    Attributes:
        index: int64 (voxel, 3), array index (z, y, x) of each counted voxel.
        hu: int64 (voxel,), its HU.
        lesion: int64 (voxel,), its 3D lesion, 0, 1, …
        piece: int64 (voxel,), its piece, 0, 1, …
        n, z, maximum, weight, owner: int64 (piece,): voxels, slice, maximum HU that sets the weight,
            weight, and lesion of each piece.
    """

    def __init__(self, volume: Volume, mask: npt.NDArray[np.bool_], rule: Rule) -> None:
        if rule.whole_from is not None:
            mask = whole_pieces(volume.hu, mask, rule.whole_from, rule.in_plane)
        box = bounding_box(mask) if mask.any() else (slice(0, 0),) * 3
        hu = volume.hu[box]
        counted = mask[box].copy() if rule.threshold is None else mask[box] & (hu >= rule.threshold)
        index = np.nonzero(counted)
        values = hu[index].astype(np.int64)
        lesion = _label(counted, rule.connectivity, index)
        if rule.per_slice or rule.weight_per == "lesion":
            piece = lesion
        else:
            piece = _label(counted, rule.in_plane, index)

        # A lesion goes when too small; a piece when its maximum gives no weight.
        size = np.bincount(lesion)
        tolerance = 1 - 1e-9
        enough = size >= rule.min_voxels
        enough &= size * volume.geometry.pixel_area >= rule.min_area_mm2 * tolerance
        enough &= size * volume.geometry.voxel_volume >= rule.min_volume_mm3 * tolerance
        weight = _weights(_maximum(values, piece), rule)
        keep = enough[lesion] & (weight[piece] > 0)

        z = index[0][keep]
        if rule.per_slice:  # lesions of the table: what touches across slices
            counted[index] = keep
            self.lesion = _renumber(_label(counted, 26, tuple(axis[keep] for axis in index)))
        else:
            self.lesion = _renumber(lesion[keep])
        # One piece never spans slices here, even where one weight holds for the whole lesion.
        self.piece = _renumber(piece[keep] * np.int64(volume.hu.shape[0]) + z)
        self.hu = values[keep]
        offset = [s.start for s in box]
        self.index = np.stack([axis[keep] for axis in index], axis=1) + offset

        self.n = np.bincount(self.piece)
        first = _first(self.piece)
        self.z = self.index[first, 0]
        self.owner = self.lesion[first]
        maximum = _maximum(values, piece)
        self.maximum = maximum[piece[keep]][first]
        self.weight = _weights(self.maximum, rule)

    def published_order(self) -> _IntArray:
        """The pieces by slice, and in a slice by the leftmost pixel, of several such pixels the uppermost."""
        z, y, x = self.index.T
        voxels = np.lexsort((y, x, z))
        first = _first(self.piece[voxels])
        return np.argsort(first, kind="stable").astype(np.int64)


def whole_pieces(
    hu: npt.NDArray[np.int16], mask: npt.NDArray[np.bool_], lowest: int, connectivity: int = 8
) -> npt.NDArray[np.bool_]:
    """The pieces of the CT from an HU on, each in its slice, that a mask overlaps anywhere.

    Args:
        hu: HU (z, y, x).
        mask: bool (z, y, x): what points at them.
        lowest: HU from which a voxel belongs to a piece.
        connectivity: 4 or 8 neighbours in the slice make a piece.

    Returns:
        bool (z, y, x): every voxel of these pieces, whatever their size.
    """
    result = np.zeros_like(mask)
    slices = np.flatnonzero(mask.any(axis=(1, 2)))
    if not len(slices):
        return result
    dense = hu[slices] >= lowest
    labels = _all_labels(dense, connectivity)
    touched = np.zeros(int(labels.max()) + 1, dtype=np.bool_)
    touched[np.unique(labels[mask[slices]])] = True
    touched[0] = False
    result[slices] = touched[labels]
    return result


def _label(counted: npt.NDArray[np.bool_], connectivity: int, index: Sequence[_IntArray]) -> _IntArray:
    """Component, 0, 1, …, of each voxel of `index` within `counted` (z, y, x)."""
    if len(index[0]) == 0:
        return np.zeros(0, dtype=np.int64)
    return _all_labels(counted, connectivity)[tuple(index)].astype(np.int64) - 1


def _all_labels(counted: npt.NDArray[np.bool_], connectivity: int) -> npt.NDArray[np.integer[Any]]:
    """Components of `counted` (z, y, x), not empty, numbered from 1; 0 is what does not count."""
    if connectivity in (4, 8):  # an empty slice between any two: nothing joins across slices
        spread = np.zeros((2 * counted.shape[0], *counted.shape[1:]), dtype=np.bool_)
        spread[::2] = counted
        labels = cc3d.connected_components(spread, connectivity={4: 6, 8: 26}[connectivity])[::2]
    else:
        labels = cc3d.connected_components(counted, connectivity=connectivity)
    return np.asarray(labels)


def _renumber(values: _IntArray) -> _IntArray:
    """The same grouping with numbers 0, 1, … without gaps."""
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _first(groups: _IntArray) -> _IntArray:
    """Position of one member of each group 0, 1, …"""
    return np.unique(groups, return_index=True)[1].astype(np.int64)


def _maximum(values: _IntArray, groups: _IntArray) -> _IntArray:
    """Maximum of each group 0, 1, …"""
    result = np.full(int(groups.max(initial=-1)) + 1, np.iinfo(np.int64).min)
    np.maximum.at(result, groups, values)
    return result


def _weights(maximum: _IntArray, rule: Rule) -> _IntArray:
    """The rule's weight of each maximum HU, 0 below its first limit."""
    limits, weights = zip(*rule.weights, strict=True)
    return np.array([0, *weights], dtype=np.int64)[np.searchsorted(limits, maximum, side="right")]


def ranked(
    rule: Rule, pieces: Pieces, contributions: npt.NDArray[np.floating[Any]]
) -> tuple[npt.NDArray[np.floating[Any]], _IntArray]:
    """What each lesion adds to the score, and the lesions in the order of their numbers."""
    n = int(pieces.lesion.max(initial=-1)) + 1
    scores: npt.NDArray[np.floating[Any]]
    scores = np.bincount(pieces.owner, weights=contributions, minlength=n).astype(np.float64)
    if rule.round_lesions:
        scores = np.round(scores)
    return scores, np.argsort(-scores, kind="stable").astype(np.int64)


def _lesions(
    volume: Volume,
    rule: Rule,
    pieces: Pieces,
    contributions: npt.NDArray[np.floating[Any]],
    certainty: npt.NDArray[np.uint8] | None,
) -> tuple[tuple[Lesion, ...], float]:
    """The lesion table, highest score first, and the total."""
    geometry = volume.geometry
    n = np.bincount(pieces.lesion)
    highest = _maximum(pieces.hu, pieces.lesion)
    mean = np.bincount(pieces.lesion, weights=pieces.hu) / n
    sure = None
    if certainty is not None:
        sure = _maximum(certainty[tuple(pieces.index.T)].astype(np.int64), pieces.lesion)
    centroid = np.stack(
        [np.bincount(pieces.lesion, weights=pieces.index[:, i]) / n for i in range(3)], axis=1
    )
    centroid_lps = geometry.to_lps(centroid)
    scores, order = ranked(rule, pieces, contributions)
    members: list[list[LesionPart]] = [[] for _ in n]
    for i in np.lexsort((pieces.piece[_first(pieces.piece)], pieces.z)):
        members[pieces.owner[i]].append(
            LesionPart(
                slice_index=int(pieces.z[i]),
                n_voxels=int(pieces.n[i]),
                area_mm2=float(pieces.n[i] * geometry.pixel_area),
                max_hu=int(pieces.maximum[i]),
                weight=int(pieces.weight[i]),
                score=float(contributions[i]),
            )
        )
    lesions = tuple(
        Lesion(
            index=rank,
            n_voxels=int(n[k]),
            volume_mm3=float(n[k] * geometry.voxel_volume),
            area_mm2=float(n[k] * geometry.pixel_area),
            max_hu=int(highest[k]),
            mean_hu=float(mean[k]),
            weights=tuple(sorted({part.weight for part in members[k]})),
            score=float(scores[k]),
            slices=(members[k][0].slice_index, members[k][-1].slice_index),
            centroid_index=(float(centroid[k, 0]), float(centroid[k, 1]), float(centroid[k, 2])),
            centroid_lps=(float(centroid_lps[k, 0]), float(centroid_lps[k, 1]), float(centroid_lps[k, 2])),
            parts=tuple(members[k]),
            certainty=None if sure is None else int(sure[k]),
        )
        for rank, k in enumerate(order, start=1)
    )
    return lesions, math.fsum(lesion.score for lesion in lesions)
