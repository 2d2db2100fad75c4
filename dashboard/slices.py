"""The slices of a case as pictures, for where the viewer's files are missing."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from ..dicom.headers import quiet_pydicom
from ..dicom.reading import read_series
from ..dicom.seg.reader import SegmentFrames, read_segmentation, segment_frames
from ..dicom.series import SAME_POSITION_MM, Series, SliceRef, slice_positions
from ..errors import DeepCACError
from ..imaging.labels import ARTERIES, CALCIUM, NOT_CORONARY, NOT_SURE, Label
from ..imaging.orientation import to_canonical
from ..outputs.preview import plane_picture
from ..scoring import Rule, score
from .dicomweb import TextErrorRoute, checked_uid
from .security import Refused, foreign
from .store import DicomStore, Row, StoredSeries

_SIDE = 640
"""Of a picture, pixels. Chosen."""
_NO_SLICES = (404, "the slices cannot be shown: CT or results are not as the run left them")
_KEPT = 4
"""Cases of which the places of the SEG's frames and of what counted are kept in memory."""


def router(store: DicomStore) -> APIRouter:
    """``/api/cases/{series_uid}/slices`` and the pictures below it."""
    cases = _Cases(store)
    routes = APIRouter(route_class=TextErrorRoute)
    path = "/api/cases/{series_uid}/slices"
    routes.add_api_route(path, cases.overview)
    routes.add_api_route(path + "/{index}.png", cases.picture)
    return routes


def first_image(store: DicomStore, series_uid: str) -> str:
    """SOPInstanceUID of the slice to begin with, "" where that cannot be said (now)."""
    cases = _Cases(store)
    try:
        with foreign(*_NO_SLICES):
            row, ct = cases.case(series_uid)
            details = store.details(row)
            slices = slices_of(ct, details)
            return _image(slices[cases.begin(row, slices, details)])
    except (Refused, TimeoutError):
        return ""


class _Cases:
    """The answers."""

    def __init__(self, store: DicomStore) -> None:
        self._store = store
        self._frames_of = lru_cache(maxsize=_KEPT)(self._read_frames)
        self._counted_of = lru_cache(maxsize=_KEPT)(self._count_again)
        self._one_by_one = Lock()  # a whole CT is in memory, so once at a time

    @foreign(*_NO_SLICES)
    def overview(self, request: Request) -> Response:
        """How many slices there are, those with counted calcium and the best to begin with (indices, and its
        SOPInstanceUID, by which the viewer opens it), and what calcium has a name in its SEG."""
        row, ct = self._case(request)
        details = self._store.details(row)
        slices, counted = slices_of(ct, details), _counted(details)
        frames = self._frames_of(row)
        first = self.begin(row, slices, details)
        return JSONResponse(
            {
                "count": len(slices),
                "counted": sorted(z for z in counted if z < len(slices)),
                "first": first,
                "rising": _rising(details),
                "instance": _image(slices[first]),
                "classes": [label.name for label in frames.classes] if frames else [],
            }
        )

    @foreign(*_NO_SLICES)
    def picture(self, request: Request) -> Response:
        """One slice, seen from the feet, the front up; with ``overlay=1`` the heart's outline and calcium.

        Where the SEG names calcium, that has the colours of its classes, and what was not counted is shown
        as well.
        """
        row, ct = self._case(request)
        slices = slices_of(ct, self._store.details(row))
        asked = request.path_params["index"]
        if not asked.isdecimal() or len(asked) > 6:
            raise Refused(400, "a slice is a number from 0")
        if int(asked) >= len(slices):
            raise Refused(404, f"the series has {len(slices)} slices")
        ref = slices[int(asked)]
        try:
            with quiet_pydicom():
                volume = read_series(Series(series_uid=row.series_uid, slices=(ref,)), workers=1).volume
        except DeepCACError as error:
            raise Refused(404, str(error)) from error
        hu, geometry = volume.hu, volume.geometry
        heart = calcium = np.zeros(hu.shape, dtype=np.bool_)
        frames = self._frames_of(row)
        named: list[tuple[Label, npt.NDArray[np.bool_]]] = []
        if request.query_params.get("overlay") == "1" and frames is not None and frames.shape == hu.shape[1:]:
            masks, details = frames.masks(ref), self._store.details(row)
            named = frames.named(ref)
            heart = masks["heart"][None]
            if details.get("score") is None:  # of an exclusion: what it left over
                calcium = masks["calcium"][None]
            elif int(asked) in _counted(details):
                with self._one_by_one:
                    bits = self._counted_of(row)[[int(asked)]]
                calcium = np.unpackbits(bits, axis=-1, count=hu.shape[2]).astype(np.bool_)
        marked = _coloured(calcium[0], named)[None]
        turned = to_canonical(hu, geometry)
        if turned.order[0] == 0:  # axial, as all that is scored
            heart, marked = to_canonical(heart, geometry).array, to_canonical(marked, geometry).array
            hu, geometry = turned.array, turned.geometry
        image = plane_picture(hu[0], heart[0], marked[0], geometry.spacing[1:], _SIDE, classes=_CLASSES)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return Response(
            buffer.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=300"}
        )

    def begin(self, row: Row, slices: Sequence[SliceRef], details: dict[str, Any]) -> int:
        """Index of the slice to begin with: where most counts, else in the middle of the heart."""
        counted = _counted(details)
        if counted:
            return max(counted, key=lambda z: counted[z])
        frames = self._frames_of(row)
        hearts = [z for z, ref in enumerate(slices) if frames and "heart" in frames.kinds(ref)]
        return hearts[len(hearts) // 2] if hearts else len(slices) // 2

    def _case(self, request: Request) -> tuple[Row, StoredSeries]:
        return self.case(request.path_params["series_uid"])

    def case(self, series_uid: str) -> tuple[Row, StoredSeries]:
        """A series of the results and its CT.

        Raises:
            Refused: There is none, or not at hand.
            TimeoutError: As of `DicomStore.ct`.
        """
        row = self._store.row(checked_uid(series_uid))
        if row is None:
            raise Refused(404, "no such series in the results")
        if not self._store.has_ct:
            raise Refused(404, "the CT is not at hand: start the dashboard with --ct FOLDER")
        ct = self._store.ct(row)
        if ct is None:
            raise Refused(404, "the CT of this series is not under the folder given with --ct")
        return row, ct

    def _read_frames(self, row: Row) -> SegmentFrames | None:
        """Where the frames of the SEG of a case are, None where there is no such SEG."""
        made = self._store.segmentation_of(row.series_uid)
        if made is None:
            return None
        try:
            return segment_frames(next(iter(made.instances.values())).path)
        except DeepCACError as error:
            raise Refused(404, str(error)) from error

    def _count_again(self, row: Row) -> npt.NDArray[np.uint8]:
        """What counted, scored again from CT and SEG by the rule that the details name; bits along x.

        Whether a voxel counts is not seen from its slice alone: a lesion may go through slices.
        """
        made, ct = self._store.segmentation_of(row.series_uid), self._store.ct(row)
        if made is None or ct is None:
            raise Refused(404, "what counted in this series needs its CT and its SEG")
        said = self._store.details(row)["score"]
        try:
            with quiet_pydicom():
                volume = read_series(Series(series_uid=row.series_uid, slices=ct.slices)).volume
            found = score(
                volume,
                read_segmentation(next(iter(made.instances.values())).path, volume.geometry)["calcium"],
                rule=Rule.from_parameters(said["parameters"]),
                slice_thickness=said["parameters"].get("slice_thickness_mm"),
            )
        except DeepCACError as error:
            raise Refused(404, str(error)) from error
        if not math.isclose(found.total, said["total"], rel_tol=1e-6):
            raise Refused(
                404, f"CT and SEG score {found.total:.1f}, the results say {said['total']:.1f}: run again"
            )
        return np.packbits(found.counted, axis=-1)


def _image(ref: SliceRef) -> str:
    """SOPInstanceUID of a slice that is an image of its own; "" of a frame among others."""
    return ref.sop_instance_uid if ref.frame is None else ""


_NAMED = (*ARTERIES, NOT_SURE, *NOT_CORONARY)
_CLASSES = (CALCIUM, *(replace(label, value=value) for value, label in enumerate(_NAMED, start=2)))
"""What a slice may show: calcium without a name, then by artery, then what was not counted."""


def _coloured(
    calcium: npt.NDArray[np.bool_], named: Sequence[tuple[Label, npt.NDArray[np.bool_]]]
) -> npt.NDArray[np.uint8]:
    """Values of `_CLASSES` (rows, columns): what counted, by its name where it has one, and what did not.

    Args:
        calcium: bool (rows, columns): what counted.
        named: Of an image, see `SegmentFrames.named`; of an artery only what counted is shown.
    """
    array = calcium.astype(np.uint8)
    for label, mask in named:
        array[mask if label in NOT_CORONARY else mask & calcium] = 2 + _NAMED.index(label)
    return array


def slices_of(ct: StoredSeries, details: dict[str, Any]) -> tuple[SliceRef, ...]:
    """The slices as the run numbered them: of several at one position the first, from the one where the
    volume of the run begins (`read_series` leaves out blank ones at the ends)."""
    positions = slice_positions(ct.slices)
    if positions is None:
        return ct.slices
    geometry = details.get("geometry") or {}
    begin = np.dot(geometry["origin"], geometry["axes"][0]) if geometry else -np.inf
    kept: list[int] = []
    for index, position in enumerate(positions):
        if position > begin - SAME_POSITION_MM and (
            not kept or position - positions[kept[-1]] >= SAME_POSITION_MM
        ):
            kept.append(index)
    if geometry:
        kept = kept[: geometry["shape"][0]]
    return tuple(ct.slices[index] for index in kept)


def _rising(details: dict[str, Any]) -> bool:
    """Whether slices lie the higher, the greater their index; people count them from the lowest
    (`Geometry.slice_number`)."""
    return not details.get("geometry") or bool(details["geometry"]["axes"][0][2] >= 0)


def _counted(details: dict[str, Any]) -> dict[int, float]:
    """Score by slice, of the slices where calcium counted."""
    weight: dict[int, float] = {}
    for lesion in (details.get("score") or {}).get("lesions", ()):
        for part in lesion.get("parts", ()):
            weight[part["slice_index"]] = weight.get(part["slice_index"], 0.0) + part["score"]
    return weight
