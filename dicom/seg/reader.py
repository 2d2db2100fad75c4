"""Read a DICOM SEG: what its segments are, which images its frames lie on, its masks whole or frame by frame.

Why not by highdicom's reader, says docs/decisions/0017.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from ...errors import InputError, InputUnreadable, MaskMismatch
from ...imaging import Geometry
from ...imaging.labels import ARTERIES, NOT_CORONARY, NOT_SURE, Label, Labels
from ...system.foreign import foreign
from ...system.nearest import listed
from ..files import DERIVED, Upto, placed, read_slice
from ..headers import first_item, quiet_pydicom
from ..series import SliceRef
from .codes import SEGMENTATION_SOP_CLASSES, artery_of, is_near, kind_of, part_of

log = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]
Image = tuple[str, int]
"""SOPInstanceUID and frame of an image, from 1; 1 where the file is one image."""

MAX_PIXELS = 1 << 32
"""Pixels of all frames that are decoded; chosen: 16,000 frames of 512²."""
_IN_PLANE_TOLERANCE = 0.1
"""How far, in pixels, a frame's corners may lie from the grid."""
_THROUGH_TOLERANCE = 0.25
"""How far, in slice increments, a frame may lie from its slice: acquired increments vary a little."""
_LABELS = 8
"""Labels that an error or warning names at most; chosen."""
_NO_SEG, _ANOTHER = "is no DICOM SEG that can be read", "give another SEG"


@contextmanager
def open_segmentation(
    path: Path, *, what: str = "", upto: Upto = Upto.PIXELS, tags: Sequence[str] | None = None
) -> Iterator[Segmentation]:
    """The one door for DICOM SEGs of others.

    pydicom converts a value when it is asked for, so what is wrong with one shows only then: whatever is
    done with the SEG inside the block and fails is `InputUnreadable`.

    Args:
        path: The file.
        what: What it is called in messages; "": its path.
        upto: How far it is read.
        tags: Keywords of the elements wanted, beside SOPClassUID; None: all.

    Raises:
        InputUnreadable: Not a DICOM SEG, or one that is not as it should be.
    """
    what = what or str(path)
    with quiet_pydicom(), foreign(what, fault=_NO_SEG, advice=_ANOTHER):
        wanted = None if tags is None else ["SOPClassUID", *tags]
        try:
            dataset = read_slice(SliceRef(path=path), upto=upto, tags=wanted, limits=DERIVED)
        except InputUnreadable as error:
            raise type(error)(f"{what} {_NO_SEG} ({error}); {_ANOTHER}") from error
        if "SOPClassUID" not in dataset:
            raise ValueError("it names no SOP class")
        if dataset.SOPClassUID not in SEGMENTATION_SOP_CLASSES:
            raise InputUnreadable(f"{what} is DICOM but no SEG (SOP class {dataset.SOPClassUID}): give a SEG")
        yield Segmentation(dataset, path, what)


def read_segmentation(path: Path, geometry: Geometry) -> dict[str, BoolArray]:
    """The heart and calcium masks of a DICOM SEG, on a given grid.

    Segments are known by their codes and labels (`codes.kind_of`). Several segments of one kind are joined;
    others are ignored, with a warning in the log that names those that their codes or labels bring near.
    Frames are placed by their position and orientation, whatever their order and direction. BINARY,
    FRACTIONAL (at least half of the maximum) and LABELMAP segmentations are read.

    Args:
        path: The SEG.
        geometry: The grid to put the masks on: the CT's.

    Returns:
        bool (z, y, x) arrays under ``"heart"`` and ``"calcium"``, those that the file describes.

    Raises:
        InputUnreadable: not a DICOM SEG, or its pixels cannot be decoded.
        InputError: it describes neither a heart nor coronary calcium.
        MaskMismatch: its frames do not lie on the grid.
    """
    with open_segmentation(path) as seg:
        return seg.masks(geometry)


def read_arteries(path: Path, geometry: Geometry) -> Labels | None:
    """The calcium of a DICOM SEG by artery, on a given grid, where it has segments of single arteries.

    Args:
        path, geometry: As of `read_segmentation`.

    Returns:
        Classes `labels.ARTERIES` and `labels.NOT_SURE`; None where the file names none of them.

    Raises:
        InputUnreadable, MaskMismatch: As `read_segmentation`.
    """
    with open_segmentation(path) as seg:
        arteries = {int(item.SegmentNumber): label for item in seg.segments if (label := artery_of(item))}
        if not arteries:
            return None
        array = np.zeros(geometry.shape, dtype=np.uint8)
        named = {number: label.name for number, label in arteries.items()}
        values = {label.name: label.value for label in arteries.values()}
        for name, mask in seg.joined(geometry, named).items():
            array[mask] = values[name]
        return Labels(array=array, classes=(*ARTERIES, NOT_SURE))


def read_not_counted(path: Path, geometry: Geometry) -> Labels | None:
    """What one of our SEGs names of what was not counted, on a given grid.

    Args:
        path, geometry: As of `read_segmentation`.

    Returns:
        Classes `labels.NOT_CORONARY`; None where the file names nothing of the kind.

    Raises:
        InputUnreadable, MaskMismatch: As `read_segmentation`.
    """
    with open_segmentation(path) as seg:
        others = {int(item.SegmentNumber): label for item in seg.segments if (label := part_of(item))}
        others = {number: label for number, label in others.items() if label in NOT_CORONARY}
        if not others:
            return None
        array = np.zeros(geometry.shape, dtype=np.uint8)
        values = {label.name: label.value for label in others.values()}
        named = {number: label.name for number, label in others.items()}
        for name, mask in seg.joined(geometry, named).items():
            array[mask] = values[name]
        return Labels(array=array, classes=NOT_CORONARY)


def is_segmentation(path: Path) -> bool:
    """Whether the file is a DICOM SEG (of either storage class)."""
    try:
        with open_segmentation(path, upto=Upto.HEADER, tags=[]):
            return True
    except InputUnreadable:
        return False


def referenced_series(path: Path) -> str:
    """SeriesInstanceUID of the images that a DICOM SEG was made on, "" where it does not say.

    Raises:
        InputUnreadable: not a DICOM SEG.
    """
    with open_segmentation(path, upto=Upto.HEADER, tags=["ReferencedSeriesSequence"]) as seg:
        return seg.series_uid


@dataclass(frozen=True)
class Segmentation:
    """A DICOM SEG, inside the block of `open_segmentation`; what is wrong with it shows when it is asked for.

    Attributes:
        dataset: Its elements, as far as it was read.
        path: The file.
        what: What it is called in messages.
    """

    dataset: Dataset
    path: Path
    what: str

    @property
    def segments(self) -> list[Dataset]:
        """The items of SegmentSequence."""
        return list(self.dataset.get("SegmentSequence", []))

    @cached_property
    def kinds(self) -> dict[int, str]:
        """``"heart"`` or ``"calcium"`` by SegmentNumber, of the segments that are one of them."""
        return {int(item.SegmentNumber): kind for item in self.segments if (kind := kind_of(item))}

    @cached_property
    def undescribed(self) -> list[int]:
        """Numbers of segments that have frames but no item of SegmentSequence; a label map says none."""
        if self.dataset.get("SegmentationType") == "LABELMAP":
            return []
        described = {int(item.SegmentNumber) for item in self.segments}
        return sorted({self._number(own) for own in self.frames} - described)

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID of the images that it was made on, "" where it does not say."""
        series = self.dataset.get("ReferencedSeriesSequence")
        return str(series[0].get("SeriesInstanceUID", "")) if series else ""

    @cached_property
    def frames(self) -> list[Dataset]:
        """The functional groups of each frame, its own."""
        return list(self.dataset.get("PerFrameFunctionalGroupsSequence") or ())

    @property
    def places(self) -> list[tuple[int, Image]]:
        """SegmentNumber and image of each frame; a label map has none.

        Raises:
            LookupError, AttributeError: A frame does not say what it lies on.
        """
        found = []
        for own in self.frames:
            source = own.DerivationImageSequence[0].SourceImageSequence[0]
            image = str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1)
            found.append((int(own.SegmentIdentificationSequence[0].ReferencedSegmentNumber), image))
        return found

    def images(self) -> Iterator[str]:
        """SOPInstanceUID of every image that a frame was made from."""
        for own in self.frames:
            for derivation in own.get("DerivationImageSequence", []):
                for image in derivation.get("SourceImageSequence", []):
                    yield str(image.get("ReferencedSOPInstanceUID", ""))

    @property
    def stored_bytes(self) -> int:
        """Bytes of the pixel data that are in the file, be they read or not."""
        place = placed(self.dataset)
        if place is None:
            return len(self.dataset.get("PixelData") or b"")
        return min(place[1], self.path.stat().st_size - place[0])

    def pixels(self) -> npt.NDArray[Any]:
        """The pixels of the frames (frames, rows, columns).

        Raises:
            InputUnreadable: They cannot be decoded, or are more than `MAX_PIXELS`.
        """
        ds = self.dataset
        with foreign(f"the pixels of {self.what}", fault="cannot be decoded", advice="write the SEG again"):
            pixels = int(ds.get("NumberOfFrames") or 1) * int(ds.Rows) * int(ds.Columns)
            if pixels > MAX_PIXELS:
                raise ValueError(f"it says that they are {pixels}, {MAX_PIXELS} at most are read")
            frames: npt.NDArray[Any] = ds.pixel_array
            return frames.reshape(-1, frames.shape[-2], frames.shape[-1])

    def masks(self, geometry: Geometry) -> dict[str, BoolArray]:
        """See `read_segmentation`."""
        kinds = self.kinds
        if not kinds:
            raise InputError(
                f"{self.what} holds no segment that is known as the heart or as coronary calcium (it holds: "
                f"{_labels(self.segments) or 'none'}): give another SEG, or name its segments 'Heart' and "
                "'Coronary calcium'"
            )
        others = [item for item in self.segments if kind_of(item) is None and part_of(item) is None]
        if unclear := [item for item in others if is_near(item)]:
            said = "as neither codes nor label say that it is the whole heart or coronary calcium"
            log.warning("%s: left out, %s: %s", self.path.name, said, _labels(unclear))
        return self.joined(geometry, kinds)

    def joined(self, geometry: Geometry, kinds: Mapping[int, str]) -> dict[str, BoolArray]:
        """bool (z, y, x) on a grid by name of `kinds`, SegmentNumber to name; segments of one name joined."""
        ds = self.dataset
        masks = {kind: np.zeros(geometry.shape, dtype=np.bool_) for kind in sorted(set(kinds.values()))}
        pixels, minimum = self.pixels(), 1
        if ds.get("SegmentationType") == "FRACTIONAL":
            minimum = int(np.ceil(ds.get("MaximumFractionalValue", 255) / 2))
        if len(self.frames) != len(pixels):
            raise InputUnreadable(
                f"{self.what} has {len(pixels)} frames but describes {len(self.frames)}: write the SEG again"
            )
        if self.undescribed:
            raise InputUnreadable(
                f"{self.what} has frames of segment {self.undescribed[0]}, which it does not describe: write "
                "the SEG again"
            )
        for own, frame in zip(self.frames, pixels, strict=True):
            if ds.get("SegmentationType") == "LABELMAP":
                wanted = {kind: np.isin(frame, [n for n, k in kinds.items() if k == kind]) for kind in masks}
            else:
                number = self._number(own)
                wanted = {kinds[number]: frame >= minimum} if number in kinds else {}
            place = self._placement(own, frame.shape, geometry)
            for kind, mask in wanted.items():
                _put(masks[kind], mask, place)
        return masks

    def on_slices(
        self, geometry: Geometry, numbers: Collection[int], images: Sequence[Image]
    ) -> npt.NDArray[np.bool_]:
        """Segments as one mask, where each frame is a whole slice of the CT; else nothing is read.

        `joined` takes frames that are parts of slices, too, and those that name other images.

        Args:
            geometry: The CT's grid.
            numbers: SegmentNumbers, which are joined.
            images: The image of each slice z.

        Returns:
            bool (z, y, x).

        Raises:
            InputUnreadable: As `joined`.
            MaskMismatch: A frame is no whole slice, or says that it was made from the image of another one.
        """
        _, rows, columns = geometry.shape
        for own in self.frames:
            if self.dataset.get("SegmentationType") != "LABELMAP":
                number = self._number(own)
                if number not in numbers:
                    continue
            shape = (int(self.dataset.Rows), int(self.dataset.Columns))
            start, down, along = self._placement(own, shape, geometry)
            last = start + down * (shape[0] - 1) + along * (shape[1] - 1)
            low, high = np.minimum(start, last), np.maximum(start, last)
            z = int(low[0])
            if (
                (low != (z, 0, 0)).any()
                or (high != (z, rows - 1, columns - 1)).any()
                or not 0 <= z < len(images)
            ):
                raise MaskMismatch(
                    f"The frames of {self.what} are not whole slices of the CT ({shape[0]} x "
                    f"{shape[1]} pixels, "
                    f"the CT {rows} x {columns}): give one that was made on the CT's own slices"
                )
            named = {
                (
                    str(source.get("ReferencedSOPInstanceUID", "")),
                    int(source.get("ReferencedFrameNumber") or 1),
                )
                for derivation in own.get("DerivationImageSequence", [])
                for source in derivation.get("SourceImageSequence", [])
            }
            if named and images[z] not in named:
                raise MaskMismatch(
                    f"A frame of {self.what} lies on slice {z + 1} of the CT and names another image as its "
                    "source: give one that was made on this series"
                )
        return self.joined(geometry, dict.fromkeys(numbers, "mask"))["mask"]

    def _number(self, own: Dataset) -> int:
        """SegmentNumber of a frame."""
        return int(self._group(own, "SegmentIdentificationSequence").ReferencedSegmentNumber)

    def _group(self, own: Dataset, keyword: str) -> Dataset:
        """A functional group of the frame that has these of its own."""
        shared = self.dataset.get("SharedFunctionalGroupsSequence") or ()
        found = first_item(keyword, own, *shared)
        if found is None:
            raise InputUnreadable(
                f"{self.what} does not say where its frames lie ({keyword} is missing): write it again"
            )
        return found

    def _placement(self, own: Dataset, shape: tuple[int, ...], geometry: Geometry) -> _Placement:
        """Index (z, y, x) of a frame's first pixel, and its steps down a column and along a row."""
        rows, columns = shape
        measures = self._group(own, "PixelMeasuresSequence")
        orientation = self._group(own, "PlaneOrientationSequence").ImageOrientationPatient
        position = self._group(own, "PlanePositionSequence").ImagePositionPatient
        cosines, corner = np.asarray(orientation, dtype=float), np.asarray(position, dtype=float)
        down = cosines[3:] * float(measures.PixelSpacing[0])
        along = cosines[:3] * float(measures.PixelSpacing[1])
        opposite = corner + down * (rows - 1) + along * (columns - 1)
        exact = geometry.to_index(np.stack([corner, corner + down, corner + along, opposite]))
        start = np.round(exact[0]).astype(np.int64)
        step_down = np.round(exact[1] - exact[0]).astype(np.int64)
        step_along = np.round(exact[2] - exact[0]).astype(np.int64)
        last = start + step_down * (rows - 1) + step_along * (columns - 1)
        deviation = np.abs(exact[[0, 3]] - np.stack([start, last])).max(axis=0)
        in_plane = (step_down != 0) | (step_along != 0)
        spacing = measures.get("SpacingBetweenSlices")
        if (
            np.abs(step_down).sum() != 1
            or np.abs(step_along).sum() != 1
            or (step_down * step_along).any()
            or (deviation > np.where(in_plane, _IN_PLANE_TOLERANCE, _THROUGH_TOLERANCE)).any()
            or (spacing is not None and float(spacing) > 1.5 * geometry.spacing[int(np.argmin(in_plane))])
        ):
            raise MaskMismatch(
                f"The frames of {self.what} do not lie on the CT's grid (off by {deviation.max():.2f} "
                "voxels): give the CT series that the SEG was made for"
            )
        return start, step_down, step_along


_Placement = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _put(mask: BoolArray, pixels: BoolArray, place: _Placement) -> None:
    """Set the voxels of `mask` (z, y, x) on which true pixels (rows, columns) lie."""
    start, step_down, step_along = place
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if not rows.size:
        return
    ends = np.stack([start + rows[i] * step_down + columns[i] * step_along for i in (0, -1)])
    low, high = ends.min(axis=0), ends.max(axis=0)
    if (low < 0).any() or (high >= mask.shape).any():
        raise MaskMismatch(
            "The segmentation reaches beyond the CT's grid: give the CT series that the SEG was made for"
        )
    box = mask[tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))]
    plane = np.moveaxis(box, (np.abs(step_down).argmax(), np.abs(step_along).argmax()), (0, 1))[..., 0]
    plane = plane[:: step_down.sum(), :: step_along.sum()]
    plane |= pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _labels(items: Sequence[Dataset]) -> str:
    return listed([str(item.get("SegmentLabel", "?")) for item in items], _LABELS)


@dataclass(frozen=True, kw_only=True)
class SegmentFrames:
    """Where the frames of one of our SEGs (BINARY, not compressed) lie in its file.

    Attributes:
        path: The SEG.
        shape: (rows, columns).
        offset: Of the pixel data in the file, bytes.
        frames: By image: the kind, ``"heart"`` or ``"calcium"``, and the number of each frame on it, from 0.
        parts: Likewise of the frames of `classes`.
        classes: Calcium by artery and what was not counted, in the order of their segments; () without names.
    """

    path: Path
    shape: tuple[int, int]
    offset: int
    frames: Mapping[Image, Sequence[tuple[str, int]]] = field(repr=False)
    parts: Mapping[Image, Sequence[tuple[Label, int]]] = field(repr=False)
    classes: tuple[Label, ...] = ()

    def kinds(self, ref: SliceRef) -> set[str]:
        """What there is a frame of on an image of the CT."""
        return {kind for kind, _ in self._frames(ref)}

    def masks(self, ref: SliceRef) -> dict[str, BoolArray]:
        """The masks on an image of the CT.

        Args:
            ref: The image.

        Returns:
            bool (rows, columns) under ``"heart"`` and ``"calcium"``, false where the SEG has no frame.

        Raises:
            InputUnreadable: The file has gone or is cut short.
        """
        found = {kind: np.zeros(self.shape, dtype=np.bool_) for kind in ("heart", "calcium")}
        for kind, number in self._frames(ref):
            found[kind] |= self._mask(number)
        return found

    def named(self, ref: SliceRef) -> list[tuple[Label, BoolArray]]:
        """Those of `classes` that have a frame on an image of the CT, bool (rows, columns) each.

        Raises:
            InputUnreadable: The file has gone or is cut short.
        """
        return [(label, self._mask(number)) for label, number in self.parts.get(image_of(ref), ())]

    def _mask(self, number: int) -> BoolArray:
        """A frame, bool (rows, columns)."""
        count = self.shape[0] * self.shape[1]
        first, last = number * count, (number + 1) * count
        begin, end = first // 8, -(-last // 8)
        with foreign(str(self.path), advice="write the SEG again"):
            packed = np.fromfile(self.path, np.uint8, end - begin, offset=self.offset + begin)
            bits = np.unpackbits(packed, bitorder="little")[first % 8 :][:count]
            return bits.reshape(self.shape).astype(np.bool_)

    def _frames(self, ref: SliceRef) -> Sequence[tuple[str, int]]:
        return self.frames.get(image_of(ref), ())


def image_of(ref: SliceRef) -> Image:
    """The image of a slice."""
    return ref.sop_instance_uid, 1 if ref.frame is None else ref.frame + 1


def segment_frames(path: Path) -> SegmentFrames:
    """Where the frames of one of our SEGs lie, so that masks can be read slice by slice.

    Raises:
        InputUnreadable: not a DICOM SEG as `write_segmentation` writes it.
    """
    with open_segmentation(path, upto=Upto.PLACE) as seg:
        ds, place = seg.dataset, placed(seg.dataset)
        if ds.get("BitsAllocated") != 1 or place is None:
            raise InputUnreadable(f"{path} is not BINARY or is compressed: give the SEG that the run wrote")
        frames: dict[Image, list[tuple[str, int]]] = defaultdict(list)
        parts: dict[Image, list[tuple[Label, int]]] = defaultdict(list)
        named = {int(item.SegmentNumber): label for item in seg.segments if (label := part_of(item))}
        for index, (number, image) in enumerate(seg.places):
            if number in seg.kinds:
                frames[image].append((seg.kinds[number], index))
            if number in named:
                parts[image].append((named[number], index))
        return SegmentFrames(
            path=path,
            shape=(ds.Rows, ds.Columns),
            offset=place[0],
            frames=frames,
            parts=parts,
            classes=tuple(named.values()),
        )
