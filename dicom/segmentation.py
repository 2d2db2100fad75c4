"""DICOM SEG: heart and coronary calcium on the CT's own frames, written and read back.

Codes (DICOM PS3.16 CID 7150, 7151 and SNOMED CT): the heart is *Heart* in *Anatomical Structure*; the
calcium is *Pathologic calcification* in *Morphologically Abnormal Structure*, in the *Coronary artery*.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ..errors import InputError, InputUnreadable, MaskMismatch
from ..imaging import Geometry
from ..system.atomic import write_whole
from ..system.foreign import foreign
from .files import DERIVED, Upto, open_slice, placed, read_slice
from .headers import quiet_pydicom
from .series import Series, SliceRef

log = logging.getLogger(__name__)

HEART = Code("80891009", "SCT", "Heart")
CALCIUM = Code("18115005", "SCT", "Pathologic calcification")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")
ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
CORONARY_ARTERY = Code("41801008", "SCT", "Coronary artery")
_CALCIFICATION_CODES = frozenset({CALCIUM.value, "M-55420"})
_HEART_CODES = frozenset({HEART.value, "T-32000"})
_CORONARY_CODES = frozenset({CORONARY_ARTERY.value, "T-43000", "3227004", "59438005", "57396003", "13647002"})
"""Coronary artery, left main, left anterior descending, left circumflex and right coronary artery; of the
first, as of the two above, the code of SNOMED RT too."""
_GENERAL_CODES = frozenset(
    {
        *("85756007", "T-D0050"),  # tissue
        *("113343008", "T-D0060"),  # organ
        *("91723000", "T-D000A"),  # anatomical structure
        *("49755003", "M-01000"),  # morphologically abnormal structure
        *("237897009", "129759000", "29483008"),  # calcified, vascular calcification, calcified plaque
        *_CORONARY_CODES,
    }
)
"""Types that leave it to the label whether a segment is the heart or coronary calcium."""

_HEART_LABELS = frozenset({("heart",), ("whole", "heart")})
_CALCIUM_WORDS = frozenset({"calcium", "calcification", "calcifications", "calcified", "calc"})
_CORONARY_WORDS = frozenset({"coronary", "coronaries", "lm", "lmca", "lad", "lcx", "rca"})
_WORDS_BESIDE = frozenset(
    {
        *("artery", "arteries", "arterial", "left", "right", "main", "anterior", "descending", "circumflex"),
        *("plaque", "plaques", "lesion", "lesions", "score", "segment", "segmentation", "seg", "mask"),
        *("of", "in", "and", "the", "total", "all"),
    }
)
"""Words of labels, lower case. Any other word in a label may say that the calcium lies elsewhere: *coronary
sinus*, *non-coronary*, *aorta and coronary arteries*."""

ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")

SEGMENTATION_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

HEART_SEGMENT, CALCIUM_SEGMENT = 1, 2
"""SegmentNumber of each."""

SERIES_NUMBER = 9001
"""SeriesNumber of our SEG: high, so that viewers list it after what the scanner made."""

STUDY_REQUIRED = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Type 2 attributes of patient and study: empty where the CT lacks them."""

_COLORS = {"heart": (206, 110, 84), "calcium": (255, 221, 64)}
"""Recommended display colours, RGB 0–255; the heart's is 3D Slicer's."""

PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    # Patient, PS3.3 C.7.1.1
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "OtherPatientIDs",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    # Study, C.7.2.1 and C.7.2.2
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
"""Attributes of the CT that SEG and SR take over as they are, where they are there."""
_IMAGE = (
    # Frame of reference and lossy compression, C.7.4.1 and C.7.6.1
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
"""What the SEG takes over too."""

TRIAL_REQUIRED = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialSubjectID")
TRIAL_EMPTY = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
"""Clinical trial subject, C.7.1.3: taken over where the required ones are there, else left out, as a part
of the module makes a file invalid."""

_IN_PLANE_TOLERANCE = 0.1
"""How far, in pixels, a frame's corners may lie from the grid."""
_THROUGH_TOLERANCE = 0.25
"""How far, in slice increments, a frame may lie from its slice: acquired increments vary a little."""

BoolArray = npt.NDArray[np.bool_]


def write_segmentation(
    path: Path,
    *,
    series: Series,
    geometry: Geometry,
    heart: BoolArray,
    calcium: BoolArray,
    slices: Sequence[SliceRef] | None = None,
    algorithm_name: str = "deepcac2",
    algorithm_version: str,
) -> None:
    """Write one BINARY DICOM SEG with the segments 1 heart and 2 coronary calcium.

    Frames are those of the CT, each with a reference to its image (and frame, where the CT is an
    enhanced multi-frame file). Frames without a voxel of a segment are left out; a segment that is empty
    altogether keeps one frame of zeros, in the middle of the heart or, without a heart, of the stack, so
    that the file is valid and every reader meets both segments.

    SeriesInstanceUID follows from the CT's SeriesInstanceUID and `algorithm_name`, SOPInstanceUID from
    every byte that is written: the same result written again is the same file. Dates and times are the
    CT's; why, says `encoded_once`. The file appears under its name only when complete.

    Args:
        path: File to write.
        series: The CT.
        geometry: Grid of the masks: the CT's own.
        heart: bool (z, y, x).
        calcium: bool (z, y, x), may overlap the heart.
        slices: The image of each slice z of the masks; `series.slices` by default.
        algorithm_name, algorithm_version: What made the masks.

    Raises:
        MaskMismatch: masks, geometry and slices do not fit each other.
        InputUnreadable: the CT's first header cannot be read.
        DiskFull, OutputUnwritable: the file cannot be written.
    """
    import highdicom as hd

    refs = tuple(series.slices if slices is None else slices)
    masks = {"heart": np.asarray(heart, dtype=np.bool_), "calcium": np.asarray(calcium, dtype=np.bool_)}
    _check_fit(geometry, masks, refs)

    z_of_empty = _middle(np.asarray(np.any(masks["heart"], axis=(1, 2))))
    planes = {name: np.flatnonzero(np.any(mask, axis=(1, 2))) for name, mask in masks.items()}
    empty = [name for name, z in planes.items() if z.size == 0]
    used = np.unique(np.concatenate([*planes.values(), [z_of_empty] if empty else []]).astype(np.int64))
    # (slice, row, column, segment), but laid out segment by segment: highdicom adds them up 10 times faster
    pixels = np.moveaxis(np.stack([mask[used].view(np.uint8) for mask in masks.values()]), 0, -1)
    for name in empty:  # a mark keeps the frame, and is wiped below
        pixels[used == z_of_empty, 0, 0, list(masks).index(name)] = 1

    with quiet_pydicom():
        header, content_time = _header(refs[0], series)
    sources = [_source_image(header, refs, int(z), series, geometry) for z in used]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=algorithm_name, family=ARTIFICIAL_INTELLIGENCE, version=algorithm_version
    )
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=pixels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(algorithm),
        series_instance_uid=generate_uid(entropy_srcs=[series.series_uid, algorithm_name, "SEG"]),
        series_number=SERIES_NUMBER,
        series_description="Heart and coronary calcium",
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=algorithm_name,
        manufacturer_model_name=algorithm_name,
        software_versions=algorithm_version,
        device_serial_number="0",
        content_label="CORONARY_CALCIUM",
        content_description="Heart and coronary calcium",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )
    _wipe_marks(segmentation, {list(masks).index(name) + 1 for name in empty})
    _refer_to_images(segmentation, {_stand_in(z): refs[z] for z in used.tolist()})
    # highdicom sees only the slices used and takes their distance for the increment
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = _ds(geometry.spacing[0])
    segmentation.update(header)
    dimensions = generate_uid(entropy_srcs=[series.series_uid, algorithm_name, "dimensions"])
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    write_whole(path, encoded_once(segmentation, *content_time))


def read_segmentation(path: Path, geometry: Geometry) -> dict[str, BoolArray]:
    """The heart and calcium masks of a DICOM SEG, on a given grid.

    Segments are known by their codes: *Heart*, and *Pathologic calcification* in a coronary artery. Where the
    codes leave it open, the label decides by its words: "heart" or "whole heart" alone, and "CAC", or a
    word for calcium with one for the coronary arteries, and none that may mean another place. Several
    segments of one kind are joined; others are ignored, with a warning in the log that names those that
    their codes or labels bring near. Frames are placed by their position and
    orientation, whatever their order and direction. BINARY, FRACTIONAL (at least half of the maximum)
    and LABELMAP segmentations are read.

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
    with open_segmentation(path) as dataset:
        return _masks(dataset, path, geometry)


def _masks(dataset: Dataset, path: Path, geometry: Geometry) -> dict[str, BoolArray]:
    """See `read_segmentation`."""
    segments = list(dataset.get("SegmentSequence", []))
    kinds = {int(item.SegmentNumber): kind for item in segments if (kind := _kind(item)) is not None}
    if not kinds:
        raise InputError(
            f"{path} holds no segment that is known as the heart or as coronary calcium (it holds: "
            f"{_labels(segments) or 'none'}): give another SEG, or name its segments 'Heart' and 'Coronary "
            "calcium'"
        )
    if unclear := [item for item in segments if _kind(item) is None and _is_near(item)]:
        log.warning(
            "%s: left out, as neither codes nor label say that it is the whole heart or coronary calcium: %s",
            path.name,
            _labels(unclear),
        )
    result = {kind: np.zeros(geometry.shape, dtype=np.bool_) for kind in sorted(set(kinds.values()))}
    frames = decoded_frames(dataset, str(path))
    label_map = dataset.get("SegmentationType") == "LABELMAP"
    minimum = 1
    if dataset.get("SegmentationType") == "FRACTIONAL":
        minimum = int(np.ceil(dataset.get("MaximumFractionalValue", 255) / 2))

    for frame, groups in zip(frames, _frame_groups(dataset, len(frames), path), strict=True):
        if label_map:
            wanted = {kind: np.isin(frame, [n for n, k in kinds.items() if k == kind]) for kind in result}
        else:
            number = int(_group(groups, "SegmentIdentificationSequence", path).ReferencedSegmentNumber)
            wanted = {kinds[number]: frame >= minimum} if number in kinds else {}
        place = _placement(groups, frame.shape, geometry, path)
        for kind, pixels in wanted.items():
            _put(result[kind], pixels, place)
    return result


def is_segmentation(path: Path) -> bool:
    """Whether the file is a DICOM SEG (of either storage class)."""
    try:
        with open_segmentation(path, upto=Upto.HEADER, tags=["SOPClassUID"]):
            return True
    except InputUnreadable:
        return False


def referenced_series(path: Path) -> str:
    """SeriesInstanceUID of the images that a DICOM SEG was made on, "" where it does not say.

    Raises:
        InputUnreadable: not a DICOM SEG.
    """
    with open_segmentation(
        path, upto=Upto.HEADER, tags=["SOPClassUID", "ReferencedSeriesSequence"]
    ) as dataset:
        series = dataset.get("ReferencedSeriesSequence")
        return str(series[0].get("SeriesInstanceUID", "")) if series else ""


@dataclass(frozen=True, kw_only=True)
class SegmentFrames:
    """Where the frames of one of our SEGs (BINARY, not compressed) lie in its file.

    Attributes:
        path: The SEG.
        shape: (rows, columns).
        offset: Of the pixel data in the file, bytes.
        frames: By image (see `_image_key`): the kind, ``"heart"`` or ``"calcium"``, and the number of each
            frame on it, from 0.
    """

    path: Path
    shape: tuple[int, int]
    offset: int
    frames: dict[tuple[str, int], tuple[tuple[str, int], ...]] = field(repr=False)

    def kinds(self, ref: SliceRef) -> set[str]:
        """What there is a frame of on an image of the CT."""
        return {kind for kind, _ in self.frames.get(_image_key(ref), ())}

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
        count = self.shape[0] * self.shape[1]
        try:
            with self.path.open("rb") as file:
                for kind, number in self.frames.get(_image_key(ref), ()):
                    first, last = number * count, (number + 1) * count
                    file.seek(self.offset + first // 8)
                    packed = np.frombuffer(file.read(-(-last // 8) - first // 8), dtype=np.uint8)
                    bits = np.unpackbits(packed, bitorder="little")[first % 8 :][:count]
                    found[kind] |= bits.reshape(self.shape).astype(np.bool_)
        except (OSError, ValueError) as error:
            raise InputUnreadable(f"cannot read {self.path} ({error}): write the SEG again") from error
        return found


def _image_key(ref: SliceRef) -> tuple[str, int]:
    """SOPInstanceUID and frame of an image, from 1; 1 where the file is one image."""
    return ref.sop_instance_uid, 1 if ref.frame is None else ref.frame + 1


def segment_frames(path: Path) -> SegmentFrames:
    """Where the frames of one of our SEGs lie, so that masks can be read slice by slice.

    Raises:
        InputUnreadable: not a DICOM SEG as `write_segmentation` writes it.
    """
    with open_segmentation(path, upto=Upto.PLACE) as dataset:
        place = placed(dataset)
        if dataset.get("BitsAllocated") != 1 or place is None:
            raise InputUnreadable(f"{path} is not BINARY or is compressed: give the SEG that the run wrote")
        kinds = {int(item.SegmentNumber): _kind(item) for item in dataset.SegmentSequence}
        frames: dict[tuple[str, int], tuple[tuple[str, int], ...]] = {}
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            kind = kinds.get(int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber))
            source = groups.DerivationImageSequence[0].SourceImageSequence[0]
            key = str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1)
            if kind is not None:
                frames[key] = (*frames.get(key, ()), (kind, number))
        return SegmentFrames(path=path, shape=(dataset.Rows, dataset.Columns), offset=place[0], frames=frames)


# Writing


def _check_fit(geometry: Geometry, masks: dict[str, BoolArray], refs: Sequence[SliceRef]) -> None:
    for name, mask in masks.items():
        if mask.shape != geometry.shape:
            raise MaskMismatch(
                f"The {name} mask has shape {mask.shape}, the CT {geometry.shape} (z, y, x): "
                "bring it back onto the CT's own grid first"
            )
    if len(refs) != geometry.shape[0]:
        raise MaskMismatch(
            f"The CT has {geometry.shape[0]} slices but {len(refs)} images are named: "
            "pass the images it was read from"
        )


def _middle(occupied: BoolArray) -> int:
    """Index in the middle of the occupied slices, or of all where none is."""
    z = np.flatnonzero(occupied)
    return int(z[len(z) // 2]) if z.size else len(occupied) // 2


def _header(ref: SliceRef, series: Series) -> tuple[Dataset, tuple[str, str]]:
    """The attributes of the CT that go into the SEG, with the two UIDs that it cannot do without.

    Beside them date and time of the CT's content, see `encoded_once`.
    """
    try:
        header = open_slice(ref)
    except InputUnreadable as error:
        raise type(error)(
            f"Cannot read {ref.path} again ({error}): check that the CT is still there"
        ) from error
    copied = Dataset()
    for keyword in (*PATIENT_AND_STUDY, *_IMAGE):
        if keyword in header:
            copied.add(header[keyword])
    if all(header.get(keyword) for keyword in TRIAL_REQUIRED):
        for keyword in (*TRIAL_REQUIRED, *TRIAL_EMPTY):
            setattr(copied, keyword, header.get(keyword, ""))
    if not copied.get("StudyInstanceUID"):
        copied.StudyInstanceUID = series.study_uid or generate_uid(entropy_srcs=[series.series_uid, "study"])
    if not copied.get("FrameOfReferenceUID"):
        copied.FrameOfReferenceUID = generate_uid(entropy_srcs=[series.series_uid, "frame of reference"])
    return copied, content_time_of(header)


_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_TIME = re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?")
"""Values of DA and TM that are some (PS3.5 table 6.2-1)."""
_NO_DATE, _NO_TIME = "19000101", "000000"
"""ContentDate and ContentTime, which may not be empty, where the CT has none."""


def content_time_of(header: Dataset) -> tuple[str, str]:
    """Date and time of an image's content, or else of its acquisition, series or study."""
    for what in ("Content", "Acquisition", "Series", "Study"):
        date, time = (str(header.get(f"{what}{kind}") or "").strip() for kind in ("Date", "Time"))
        if _DATE.fullmatch(date):
            return date, time if _TIME.fullmatch(time) else _NO_TIME
    return _NO_DATE, _NO_TIME


def encoded_once(dataset: Dataset, date: str, time: str) -> bytes:
    """The file of a SEG or SR, with the dates, times and SOPInstanceUID that it gets here.

    One UID is one content, for good: an archive keeps the first file that it gets under a UID and refuses
    or drops the next. So the UID follows from every byte of the file. For the same result to be the same
    instance, wherever and whenever it is computed again (a run with --redo, another machine, MHub's runner),
    nothing in the file may depend on the clock: ContentDate and ContentTime, which the standard wants, are
    those of the CT, of which the content is a function and from which it cannot stray where the dates of a
    cohort were shifted; the other dates and times, which are optional, are left out. When a series was
    computed stands in the log of the run.

    Args:
        dataset: What is written, with file meta information.
        date, time: ContentDate (DA) and ContentTime (TM).
    """
    dataset.ContentDate, dataset.ContentTime = date, time
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        if keyword in dataset:
            del dataset[keyword]
    for item in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            del item.ContributionDateTime
    stand_in = generate_uid(entropy_srcs=["deepcac2", "SOPInstanceUID"])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = stand_in
    encoded = BytesIO()
    dataset.save_as(encoded)
    content = encoded.getvalue()
    uid = generate_uid(entropy_srcs=[hashlib.sha256(content).hexdigest()])
    return content.replace(stand_in.encode(), uid.encode())  # both have 64 characters


def _source_image(
    header: Dataset, refs: Sequence[SliceRef], z: int, series: Series, geometry: Geometry
) -> Dataset:
    """What highdicom wants to know about one CT image, without reading its file.

    Patient and study stay empty here: highdicom refuses values that real files have.
    """
    ref = refs[z]
    image = Dataset()
    for keyword in STUDY_REQUIRED:
        setattr(image, keyword, "")
    image.Modality = "CT"
    image.StudyInstanceUID = header.StudyInstanceUID
    image.SeriesInstanceUID = series.series_uid
    image.FrameOfReferenceUID = header.FrameOfReferenceUID
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = _stand_in(z)
    image.Rows, image.Columns = geometry.shape[1:]
    image.PixelSpacing = [_ds(s) for s in geometry.spacing[1:]]
    image.SliceThickness = _ds(ref.slice_thickness or series.slice_thickness or geometry.spacing[0])
    position = ref.position if ref.position is not None else geometry.to_lps([z, 0, 0])
    image.ImagePositionPatient = [_ds(v) for v in position]
    orientation = refs[0].orientation or (*geometry.axes[2], *geometry.axes[1])
    image.ImageOrientationPatient = [_ds(v) for v in orientation]
    return image


def _ds(value: float) -> Any:
    return pydicom.valuerep.DSfloat(float(value), auto_format=True)


def _descriptions(algorithm: Any) -> list[Any]:
    import highdicom as hd

    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=code,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=regions,
            display_color=hd.color.CIELabColor.from_rgb(*_COLORS[name]),
        )
        for number, name, label, category, code, regions in (
            (HEART_SEGMENT, "heart", "Heart", ANATOMICAL_STRUCTURE, HEART, None),
            (
                CALCIUM_SEGMENT,
                "calcium",
                "Coronary calcium",
                ABNORMAL_STRUCTURE,
                CALCIUM,
                [CORONARY_ARTERY],
            ),
        )
    ]


def _wipe_marks(segmentation: Dataset, numbers: Iterable[int]) -> None:
    """Clear the first pixel of the only frame of each of these segments (DICOM PS3.5 8.1.1 bit order)."""
    data = bytearray(segmentation.PixelData)
    for i, groups in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        if groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber in numbers:
            bit = i * segmentation.Rows * segmentation.Columns
            data[bit // 8] &= ~(1 << bit % 8) & 0xFF
    segmentation.PixelData = bytes(data)


def _stand_in(z: int) -> str:
    """SOPInstanceUID under which highdicom knows slice z.

    So it need not know the image's storage class, nor that several slices are frames of one file.
    """
    return f"2.25.{z + 1}"


def _refer_to_images(segmentation: Dataset, refs: dict[str, SliceRef]) -> None:
    """Replace every reference to a stand-in by one to the image, and the frame where it is one."""
    items = list(segmentation.get("SourceImageSequence", []))
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.DerivationImageSequence:
            items.extend(derivation.SourceImageSequence)
    for item in {id(item): item for item in items}.values():  # highdicom uses one item in several places
        ref = refs[item.ReferencedSOPInstanceUID]
        item.update(reference_to(ref))
        if ref.frame is not None:
            item.ReferencedFrameNumber = ref.frame + 1
    instances = {ref.sop_instance_uid: reference_to(ref) for ref in refs.values()}
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(instances.values())


def reference_to(ref: SliceRef) -> Dataset:
    """The item of a sequence that refers to the image's file."""
    item = Dataset()
    item.ReferencedSOPClassUID = ref.sop_class_uid or CTImageStorage
    item.ReferencedSOPInstanceUID = ref.sop_instance_uid
    return item


# Reading


MAX_PIXELS = 1 << 32
"""Pixels of all frames that are decoded; chosen: 16,000 frames of 512²."""


@contextmanager
def open_segmentation(
    path: Path, *, what: str = "", upto: Upto = Upto.PIXELS, tags: Sequence[str] | None = None
) -> Iterator[Dataset]:
    """The one door for DICOM SEGs of others.

    pydicom converts a value when it is asked for, so what is wrong with one shows only then: whatever is
    done with the data set inside the block and fails is `InputUnreadable`.

    Args:
        path: The file.
        what: What it is called in messages; "": its path.
        upto: How far it is read.
        tags: Keywords of the elements wanted, SOPClassUID among them; None: all.

    Raises:
        InputUnreadable: Not a DICOM SEG, or one that is not as it should be.
    """
    what = what or str(path)
    with quiet_pydicom(), foreign(what, fault=_NO_SEG, advice=_ANOTHER):
        try:
            dataset = read_slice(SliceRef(path=path), upto=upto, tags=tags, limits=DERIVED)
        except InputUnreadable as error:
            raise type(error)(f"{what} {_NO_SEG} ({error}); {_ANOTHER}") from error
        if "SOPClassUID" not in dataset:
            raise ValueError("it names no SOP class")
        if dataset.get("SOPClassUID") not in SEGMENTATION_SOP_CLASSES:
            raise InputUnreadable(
                f"{what} is DICOM but no SEG (SOP class {dataset.get('SOPClassUID')}): give a SEG"
            )
        yield dataset


_NO_SEG, _ANOTHER = "is no DICOM SEG that can be read", "give another SEG"


def stored_bytes(dataset: Dataset, path: Path) -> int:
    """Bytes of the pixel data that are in the file, be they read or not."""
    place = placed(dataset)
    if place is None:
        return len(dataset.get("PixelData") or b"")
    start, length = place
    return min(length, path.stat().st_size - start)


def decoded_frames(dataset: Dataset, what: str) -> npt.NDArray[Any]:
    """The pixels of a SEG's frames (frames, rows, columns).

    Args:
        what: What the SEG is called in messages.

    Raises:
        InputUnreadable: They cannot be decoded, or are more than `MAX_PIXELS`.
    """
    with foreign(f"the pixels of {what}", fault="cannot be decoded", advice="write the SEG again"):
        pixels = int(dataset.get("NumberOfFrames") or 1) * int(dataset.Rows) * int(dataset.Columns)
        if pixels > MAX_PIXELS:
            raise ValueError(f"it says that they are {pixels}, {MAX_PIXELS} at most are read")
        frames: npt.NDArray[Any] = dataset.pixel_array
        return frames.reshape(-1, frames.shape[-2], frames.shape[-1])


def _codes(item: Dataset, keyword: str) -> set[str]:
    return {str(code.get("CodeValue", "")) for code in item.get(keyword, [])}


def _kind(item: Dataset) -> str | None:
    """``"heart"``, ``"calcium"`` or None, for neither or not to be told, for an item of SegmentSequence."""
    types = _codes(item, "SegmentedPropertyTypeCodeSequence")
    regions = _codes(item, "AnatomicRegionSequence")
    words = _words(item)
    if types & _HEART_CODES or (types <= _GENERAL_CODES and words in _HEART_LABELS):
        return "heart"
    calcified = bool(types & _CALCIFICATION_CODES)
    if not (calcified or types <= _GENERAL_CODES) or not regions <= _CORONARY_CODES | _HEART_CODES:
        return None
    said_by_code = calcified and bool(regions & _CORONARY_CODES)
    return "calcium" if said_by_code or _means_coronary_calcium(words) else None


def _words(item: Dataset) -> tuple[str, ...]:
    """The words of a segment's label, lower case; *CoronaryCalcium* and *coronary_calcium* are two."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", str(item.get("SegmentLabel", "")))
    return tuple(word.lower() for word in found)


def _means_coronary_calcium(words: Sequence[str]) -> bool:
    said = set(words)
    coronary = "cac" in said or bool(said & _CALCIUM_WORDS and said & _CORONARY_WORDS)
    return coronary and said <= _CALCIUM_WORDS | _CORONARY_WORDS | _WORDS_BESIDE | {"cac"}


def _is_near(item: Dataset) -> bool:
    """Whether a reader could take a segment for the heart or for coronary calcium."""
    types = _codes(item, "SegmentedPropertyTypeCodeSequence")
    near = _CALCIUM_WORDS | _CORONARY_WORDS | {"cac", "heart"}
    return bool(types & (_CALCIFICATION_CODES | _HEART_CODES) or near.intersection(_words(item)))


_LABELS = 8
"""Labels that an error or warning names at most; chosen."""


def _labels(items: Sequence[Dataset]) -> str:
    names = [str(item.get("SegmentLabel", "?")) for item in items]
    return ", ".join(names[:_LABELS]) + (f" and {len(names) - _LABELS} more" if len(names) > _LABELS else "")


def _frame_groups(dataset: Dataset, n: int, path: Path) -> list[tuple[Dataset, Dataset]]:
    """(own, shared) functional groups of each frame."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(own) != n:
        raise InputUnreadable(f"{path} has {n} frames but describes {len(own)}: write the SEG again")
    return [(item, shared[0]) for item in own]


def _group(groups: tuple[Dataset, Dataset], keyword: str, path: Path) -> Dataset:
    for item in groups:
        if item.get(keyword):
            found: Dataset = item[keyword][0]
            return found
    raise InputUnreadable(f"{path} does not say where its frames lie ({keyword} is missing): write it again")


_Placement = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _placement(
    groups: tuple[Dataset, Dataset], shape: tuple[int, ...], geometry: Geometry, path: Path
) -> _Placement:
    """Index (z, y, x) of a frame's first pixel, and its steps down a column and along a row."""
    rows, columns = shape
    measures = _group(groups, "PixelMeasuresSequence", path)
    cosines = np.asarray(
        _group(groups, "PlaneOrientationSequence", path).ImageOrientationPatient, dtype=float
    )
    corner = np.asarray(_group(groups, "PlanePositionSequence", path).ImagePositionPatient, dtype=float)
    down = cosines[3:] * float(measures.PixelSpacing[0])
    along = cosines[:3] * float(measures.PixelSpacing[1])
    exact = geometry.to_index(
        np.stack([corner, corner + down, corner + along, corner + down * (rows - 1) + along * (columns - 1)])
    )
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
            f"The frames of {path} do not lie on the CT's grid (off by {deviation.max():.2f} voxels): "
            "give the CT series that the SEG was made for"
        )
    return start, step_down, step_along


def _put(mask: BoolArray, pixels: BoolArray, place: _Placement) -> None:
    """Set the voxels of `mask` (z, y, x) on which true pixels (rows, columns) lie."""
    start, step_down, step_along = place
    row, column = np.nonzero(pixels)
    if row.size == 0:
        return
    index = start + row[:, None] * step_down + column[:, None] * step_along
    if (index < 0).any() or (index >= mask.shape).any():
        raise MaskMismatch(
            "The segmentation reaches beyond the CT's grid: give the CT series that the SEG was made for"
        )
    mask[tuple(index.T)] = True
