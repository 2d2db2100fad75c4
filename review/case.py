"""A case as a person reads it: the CT around the heart, cut into pieces on which something can be decided.

The pieces are the scorer's own lesions, first those of the automatic result under their numbers in its
report, then those that everything else as bright in and around the heart would be. Everything here lies on
the part of the CT's grid that holds them; scores of that part are those of the whole.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..dicom import Series, SliceRef, read_series
from ..dicom.headers import quiet_pydicom
from ..dicom.seg.reader import is_segmentation, read_arteries, read_not_counted, read_segmentation
from ..errors import InputError, InputUnreadable
from ..imaging import Geometry, Volume
from ..imaging.crop import CANDIDATE_HU
from ..imaging.labels import NOT_SURE
from ..imaging.masks import bounding_box, dilated
from ..imaging.orientation import Canonical, to_canonical
from ..scoring import CalciumScore, Rule, score
from ..scoring.lesions import numbered_lesions
from ..scoring.result import Lesion
from ..scoring.rules import find_rule
from . import values

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int32]

WIDEST_MARGIN_MM = 10.0
"""How far from the heart pieces are shown where the weights keep to no margin; chosen."""
BORDER_MM = 8.0
"""Of the CT that is shown around all pieces and the heart; chosen."""
LARGEST_MM3 = 15_000.0
"""Where there is no heart, larger pieces are bone; chosen: calcium of one artery has 5,000 at most."""
MOST_PIECES = 3000
"""That are numbered; chosen: more are noise, and the largest of them come first."""
_TOLERANCE = 1e-6
"""Relative, between the score of the report and the one that CT and SEG give."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What touches and is as bright as calcium.

    Attributes:
        number: From 1; of what the automatic result counted, that of the lesion in its report.
        automatic: Whether the automatic result counted it.
        score, volume_mm3, max_hu: Of it as calcium.
        indices: First and last slice, from 0 at the lowest.
        centre: (index of the slice, row, column) in the picture of `ReadCase.shown`, of its voxels.
    """

    number: int
    automatic: bool
    score: float
    volume_mm3: float
    max_hu: int
    indices: tuple[int, int]
    centre: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadCase:
    """See the module.

    Attributes:
        series: The CT; slices: the images of its slices.
        geometry: Grid of the CT.
        box: The part of it that the arrays below have (z, y, x).
        volume: The CT there.
        heart: bool, the heart; nowhere where it is not known.
        pieces: In the order of their numbers.
        number: int32, number of the piece of each voxel that would count, 0 of none.
        member: int32, the same with voxels of the automatic mask beside them that do not count.
        base: uint8, what the automatic result says, as `values` has it.
        rule, slice_thickness, kvp: How it is scored.
        automatic: Score of the automatic result; None: there is none.
        segmentation, report: Its SEG and SR; None where there is none.
        details: Its details JSON.
        digest: Of the pieces: decisions on others are not these.
        left: Pieces beyond `MOST_PIECES`, which have no number.
    """

    series: Series
    slices: tuple[SliceRef, ...] = field(repr=False)
    geometry: Geometry
    box: tuple[slice, slice, slice]
    volume: Volume = field(repr=False)
    heart: BoolArray = field(repr=False)
    pieces: tuple[Piece, ...] = field(repr=False)
    number: IntArray = field(repr=False)
    member: IntArray = field(repr=False)
    base: npt.NDArray[np.uint8] = field(repr=False)
    rule: Rule
    slice_thickness: float | None
    kvp: float | None
    automatic: float | None
    segmentation: Path | None
    report: Path | None
    details: Mapping[str, Any] = field(repr=False)
    digest: str
    left: int = 0

    @property
    def threshold(self) -> int:
        """HU from which a voxel may be painted."""
        return CANDIDATE_HU if self.rule.threshold is None else self.rule.threshold

    def shown(self, array: npt.NDArray[Any]) -> Canonical:
        """An array of the box as it is looked at: slices from the feet to the head, the front up, the
        patient's left on the right."""
        return to_canonical(array, self.volume.geometry)

    @property
    def corner(self) -> tuple[int, int, int]:
        """Index (slice, row, column) of the first voxel of `shown` in the whole CT, seen the same way."""
        return _corner(self.geometry, self.box)

    @cached_property
    def _by_number(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Flat indices of all voxels of pieces by their number, and where each number begins."""
        flat = self.member.reshape(-1)
        inside = np.flatnonzero(flat)
        order = inside[np.argsort(flat[inside], kind="stable")]
        return order, np.searchsorted(flat[order], np.arange(len(self.pieces) + 2)).astype(np.int64)

    def voxels(self, piece: int) -> npt.NDArray[np.int64]:
        """Flat indices, in the box, of the voxels of a piece.

        Raises:
            InputError: There is none of this number.
        """
        if not 1 <= piece <= len(self.pieces):
            raise InputError(f"there is no piece {piece}; they are 1 to {len(self.pieces)}")
        order, starts = self._by_number
        return order[starts[piece] : starts[piece + 1]]

    def score(self, array: npt.NDArray[np.uint8]) -> CalciumScore:
        """Of what an array of values counts, by the rule of the case; slices are those of the box."""
        return score(
            self.volume,
            values.counted(array),
            rule=self.rule,
            slice_thickness=self.slice_thickness,
            kvp=self.kvp,
        )

    def whole(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array of the box on the whole grid of the CT, 0 elsewhere."""
        full = np.zeros(self.geometry.shape, dtype=array.dtype)
        full[self.box] = array
        return full


def open_result(
    folder: Path, series: Series, details: Mapping[str, Any], *, kvp: float | None = None
) -> ReadCase:
    """A scored series of a run.

    Args:
        folder: Of the series in the results.
        series: Its CT.
        details: Its details JSON.

    Raises:
        InputError: It was not scored, or CT and SEG do not give the score of the report: they are not what
            the run left.
        InputUnreadable, MaskMismatch: A file is missing or damaged, or SEG and CT do not fit.
    """
    said = details.get("score")
    if not said:
        raise InputError(f"{folder.name} was not scored by a calcium mask; there is nothing to correct")
    rule = Rule.from_parameters(said["parameters"])
    thickness = said["parameters"].get("slice_thickness_mm")
    segmentation, report = _files(folder, details)
    with quiet_pydicom():
        reading = read_series(series)
    volume = reading.volume
    masks = read_segmentation(segmentation, volume.geometry)
    if "calcium" not in masks:
        raise InputError(f"{segmentation} holds no coronary calcium; run again")
    heart = masks.get("heart", np.zeros(volume.geometry.shape, dtype=np.bool_))
    found = score(volume, masks["calcium"], rule=rule, slice_thickness=thickness, kvp=kvp)
    if not math.isclose(found.total, float(said["total"]), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
        raise InputError(
            f"CT and SEG of {folder.name} give a score of {found.total:.1f}, its report says "
            f"{float(said['total']):.1f}: they are not as the run left them; run again"
        )
    stated = (details.get("calcium") or {}).get("heart_margin_mm")
    margin = min(float(stated), 1000.0) if isinstance(stated, (int, float)) else WIDEST_MARGIN_MM
    return _cut(
        series=series,
        slices=reading.slices,
        volume=volume,
        heart=heart,
        calcium=masks["calcium"],
        arteries=values.as_values(read_arteries(segmentation, volume.geometry), above=False),
        others=values.as_values(read_not_counted(segmentation, volume.geometry), above=True),
        margin=margin,
        rule=rule,
        slice_thickness=thickness,
        kvp=kvp,
        automatic=found.total,
        segmentation=segmentation,
        report=report,
        details=details,
    )


def open_scan(series: Series, *, heart: BoolArray | None = None, rule: str | Rule = "agatston") -> ReadCase:
    """A scan that nothing has been found in yet: all is left to the reader.

    Args:
        series: The CT.
        heart: bool (z, y, x), where it is known; otherwise the whole chest is searched.
        rule: By which it is scored.

    Raises:
        InputError: The rule has no weights for the tube voltage.
    """
    with quiet_pydicom():
        reading = read_series(series)
    volume = reading.volume
    none = np.zeros(volume.geometry.shape, dtype=np.bool_)
    return _cut(
        series=series,
        slices=reading.slices,
        volume=volume,
        heart=none if heart is None else heart,
        calcium=none,
        arteries=None,
        others=None,
        margin=WIDEST_MARGIN_MM,
        rule=find_rule(rule).at(series.kvp),
        slice_thickness=series.slice_thickness,
        kvp=series.kvp,
        automatic=None,
        segmentation=None,
        report=None,
        details={},
    )


def _files(folder: Path, details: Mapping[str, Any]) -> tuple[Path, Path | None]:
    """SEG and SR among the files that the details name."""
    names = [str(name) for name in details.get("outputs") or () if Path(str(name)).name == str(name)]
    paths = [folder / name for name in names if name.endswith(".dcm")]
    segs = [path for path in paths if path.is_file() and is_segmentation(path)]
    if len(segs) != 1:
        raise InputUnreadable(f"{folder} holds {len(segs)} SEGs of the run, not one; run again")
    reports = [path for path in paths if path.is_file() and path not in segs]
    return segs[0], reports[0] if reports else None


def _cut(
    *,
    series: Series,
    slices: Sequence[SliceRef],
    volume: Volume,
    heart: BoolArray,
    calcium: BoolArray,
    arteries: npt.NDArray[np.uint8] | None,
    others: npt.NDArray[np.uint8] | None,
    margin: float,
    rule: Rule,
    slice_thickness: float | None,
    kvp: float | None,
    **more: Any,
) -> ReadCase:
    """Cut the CT into pieces and keep the part around them."""
    if to_canonical(np.broadcast_to(np.False_, volume.geometry.shape), volume.geometry).order[0] != 0:
        raise InputError("only axial scans can be read here")
    near = dilated(heart, volume.geometry, margin) if heart.any() else np.ones_like(heart)
    if rule.whole_from is not None:  # pieces that reach out of any box
        box = tuple(slice(0, n) for n in volume.geometry.shape)
    else:
        box = _wider(bounding_box(near | calcium), volume.geometry)
    part = Volume(hu=np.ascontiguousarray(volume.hu[box]), geometry=volume.geometry.part(box))
    heart, near, calcium = (np.ascontiguousarray(mask[box]) for mask in (heart, near, calcium))
    how: dict[str, Any] = {"rule": rule, "slice_thickness": slice_thickness, "kvp": kvp}

    number = np.zeros(part.geometry.shape, dtype=np.int32)
    index, numbers = numbered_lesions(part, calcium, **how)
    number[tuple(index.T)] = numbers
    found = list(score(part, calcium, **how).lesions)
    threshold = CANDIDATE_HU if rule.threshold is None else rule.threshold
    rest = near & (part.hu >= threshold) & (number == 0) & ~calcium
    index, numbers = numbered_lesions(part, rest, **how)
    other = list(score(part, rest, **how).lesions)
    if not heart.any():
        bone = {lesion.index for lesion in other if lesion.volume_mm3 > LARGEST_MM3}
        other = [lesion for lesion in other if lesion.index not in bone]
    kept = other[: max(0, MOST_PIECES - len(found))]
    again = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int32)
    for offset, lesion in enumerate(kept, start=len(found) + 1):
        again[lesion.index] = offset
    number[tuple(index.T)] = again[numbers]

    base = np.where(calcium, np.uint8(NOT_SURE.value), np.uint8(0))
    for named in (arteries, others):
        if named is not None:
            own = named[box]
            base[own > 0] = own[own > 0]
    corner = _corner(volume.geometry, box)
    pieces = [
        _piece(lesion, at, part.geometry, corner, automatic=at <= len(found))
        for at, lesion in enumerate((*found, *kept), start=1)
    ]
    basis = hashlib.sha256(repr((number.shape, [s.start for s in box], rule.parameters())).encode())
    basis.update(number.tobytes())
    return ReadCase(
        series=series,
        slices=tuple(slices),
        geometry=volume.geometry,
        box=box,  # type: ignore[arg-type]
        volume=part,
        heart=heart,
        pieces=tuple(pieces),
        number=number,
        member=_with_edges(number, calcium, len(found), part.geometry),
        base=base,
        rule=rule,
        slice_thickness=slice_thickness,
        kvp=kvp,
        digest=basis.hexdigest(),
        left=len(other) - len(kept),
        **more,
    )


def _wider(box: tuple[slice, ...], geometry: Geometry) -> tuple[slice, slice, slice]:
    """A box with some of the CT around it."""
    wider = []
    for span, size, spacing in zip(box, geometry.shape, geometry.spacing, strict=True):
        more = math.ceil(BORDER_MM / spacing)
        wider.append(slice(max(0, span.start - more), min(size, span.stop + more)))
    return wider[0], wider[1], wider[2]


def _corner(geometry: Geometry, box: Sequence[slice]) -> tuple[int, int, int]:
    whole = to_canonical(np.broadcast_to(np.False_, geometry.shape), geometry)
    ends = np.array([[s.start for s in box], [s.stop - 1 for s in box]], dtype=np.float64)
    low = geometry.to_lps(ends)
    z, y, x = np.rint(whole.geometry.to_index(low)).astype(int).min(axis=0).tolist()
    return z, y, x


def _piece(
    lesion: Lesion, number: int, part: Geometry, corner: tuple[int, int, int], *, automatic: bool
) -> Piece:
    seen = to_canonical(np.broadcast_to(np.False_, part.shape), part)
    z, y, x = (float(v) for v in seen.geometry.to_index(np.asarray(lesion.centroid_lps)))
    first, last = lesion.slices
    if part.axes[0][2] < 0:
        first, last = part.shape[0] - 1 - last, part.shape[0] - 1 - first
    return Piece(
        number=number,
        automatic=automatic,
        score=lesion.score,
        volume_mm3=lesion.volume_mm3,
        max_hu=lesion.max_hu,
        indices=(corner[0] + first, corner[0] + last),
        centre=(corner[0] + z, y, x),
    )


def _with_edges(number: IntArray, calcium: BoolArray, lesions: int, geometry: Geometry) -> IntArray:
    """The pieces with the voxels of the mask that do not count, each with the lesion that is nearest."""
    member = number.copy()
    edge = calcium & (number == 0)
    if not edge.any() or not lesions:
        return member
    box = bounding_box(calcium)
    own, left = member[box], edge[box]
    counted = (own > 0) & (own <= lesions)
    nearest = scipy.ndimage.distance_transform_edt(
        ~counted, sampling=geometry.spacing, return_distances=False, return_indices=True
    )
    own[left] = own[tuple(nearest[:, left])]
    return member
