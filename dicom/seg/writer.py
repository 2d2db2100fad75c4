"""Write heart and coronary calcium as one DICOM SEG on the CT's own frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ...errors import InputUnreadable, MaskMismatch
from ...imaging import Geometry
from ...imaging.labels import Label, Labels
from ...system.atomic import write_whole
from ..derived import (
    PREDECESSOR,
    Signature,
    content_time_of,
    decimal,
    encoded_once,
    inherited,
    instance_of,
    nameless,
    reference_to,
)
from ..files import read_slice
from ..headers import quiet_pydicom
from ..series import Series, SliceRef
from . import codes

SERIES_NUMBER, READ_SERIES_NUMBER = 9001, 9011
"""SeriesNumber of our SEG, and of one that a person has read: high, so that viewers list them after what the
scanner made."""

_COLORS = {"heart": (206, 110, 84), "calcium": (255, 221, 64)}
"""Recommended display colours, RGB 0–255; the heart's is 3D Slicer's."""

_IMAGE = (
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
"""Frame of reference and lossy compression (PS3.3 C.7.4.1 and C.7.6.1), which the SEG takes over too."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Maker:
    """What made a segment that is not ours.

    Attributes:
        kind: SegmentAlgorithmType: AUTOMATIC, SEMIAUTOMATIC or MANUAL.
        name: Of the algorithm; a manual one has none.
        description: Where the segment was taken from, in words.
    """

    kind: str
    name: str
    description: str


def write_segmentation(
    path: Path,
    *,
    series: Series,
    geometry: Geometry,
    heart: BoolArray,
    calcium: BoolArray,
    parts: Sequence[Labels] = (),
    slices: Sequence[SliceRef] | None = None,
    algorithm_name: str = "deepcac2",
    algorithm_version: str,
    heart_by: Maker | None = None,
    signature: Signature | None = None,
) -> None:
    """Write one BINARY DICOM SEG with the segments 1 heart and 2 coronary calcium, and `parts` from 3 on.

    Frames are those of the CT, each with a reference to its image (and frame, where the CT is an
    enhanced multi-frame file). Frames without a voxel of a segment are left out; a segment that is empty
    altogether keeps one frame of zeros, in the middle of the heart or, without a heart, of the stack, so
    that the file is valid and every reader meets both segments.

    SeriesInstanceUID follows from the CT's SeriesInstanceUID and `algorithm_name`, SOPInstanceUID from
    every byte that is written: the same result written again is the same file. Dates and times are the
    CT's; why, says `encoded_once`. What a person has read has UIDs of its own, the date and time of the
    signature, names the reader, and points to what it corrects. The file appears under its name only when
    complete.

    Args:
        path: File to write.
        series: The CT.
        geometry: Grid of the masks: the CT's own.
        heart: bool (z, y, x).
        calcium: bool (z, y, x), may overlap the heart.
        parts: Further segments: each class that has a voxel, in order. Whoever looks for all coronary calcium
            finds it in segment 2; those of arteries are parts of it.
        slices: The image of each slice z of the masks; `series.slices` by default.
        algorithm_name, algorithm_version: What made the masks.
        heart_by: What made the heart, where it was something else.
        signature: Who has read and corrected them; None: nobody.

    Raises:
        MaskMismatch: masks, geometry and slices do not fit each other.
        InputUnreadable: the CT's first header, or what was corrected, cannot be read.
        DiskFull, OutputUnwritable: the file cannot be written.
    """
    import highdicom as hd

    seeds = [] if signature is None else signature.seed()
    described = "Heart and coronary calcium" + ("" if signature is None else ", read")
    refs = tuple(series.slices if slices is None else slices)
    masks = {"heart": np.asarray(heart, dtype=np.bool_), "calcium": np.asarray(calcium, dtype=np.bool_)}
    classes = [(labels, label) for labels in parts for label in _found(labels)]
    found = [label for _, label in classes]
    _check_fit(geometry, {**masks, **{label.name: labels.array for labels, label in classes}}, refs)

    hearts = np.flatnonzero(masks["heart"].any(axis=(1, 2)))
    middle = hearts if hearts.size else np.arange(geometry.shape[0])
    z_of_empty = int(middle[len(middle) // 2])
    empty = [name for name, mask in masks.items() if not mask.any()]
    shown = np.asarray(masks["heart"].any(axis=(1, 2)) | masks["calcium"].any(axis=(1, 2)))
    for labels, _ in classes:
        shown |= labels.array.any(axis=(1, 2))
    shown[z_of_empty] |= bool(empty)
    used = np.flatnonzero(shown).tolist()
    stacks = [mask[used] for mask in masks.values()]
    stacks += [labels.array[used] == label.value for labels, label in classes]
    # highdicom looks at every pixel several times: it is shown one a frame, whether anything is there
    marks = np.stack([stack.any(axis=(1, 2)) for stack in stacks], axis=-1).astype(np.uint8)
    for name in empty:  # a mark keeps the frame
        marks[used.index(z_of_empty), list(masks).index(name)] = 1

    with quiet_pydicom():
        header, content_time = _header(refs[0], series)
    sources = [_source_image(header, refs, z, series, geometry) for z in used]
    algorithm = hd.AlgorithmIdentificationSequence(
        name=algorithm_name, family=codes.ARTIFICIAL_INTELLIGENCE, version=algorithm_version
    )
    segmentation = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=marks[:, None, None, :],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(algorithm, found, read=signature is not None),
        series_instance_uid=generate_uid(entropy_srcs=[series.series_uid, algorithm_name, "SEG", *seeds]),
        series_number=SERIES_NUMBER if signature is None else READ_SERIES_NUMBER,
        series_description=described,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=algorithm_name,
        manufacturer_model_name=algorithm_name,
        software_versions=algorithm_version,
        device_serial_number="0",
        content_label="CORONARY_CALCIUM",
        content_description=described,
        content_creator_name=None if signature is None else signature.person_name,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=True,
    )
    if heart_by is not None:
        _by(segmentation.SegmentSequence[codes.HEART_SEGMENT - 1], heart_by)
    segmentation.Rows, segmentation.Columns = geometry.shape[1:]
    segmentation.SegmentsOverlap = "YES" if _overlap(stacks) else "NO"
    segmentation.PixelData = _packed(segmentation, stacks, {_stand_in(z): i for i, z in enumerate(used)})
    _refer_to_images(segmentation, {_stand_in(z): refs[z] for z in used})
    # highdicom sees only the slices used and takes their distance for the increment
    measures = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SpacingBetweenSlices = decimal(geometry.spacing[0])
    segmentation.update(header)
    dimensions = generate_uid(entropy_srcs=[series.series_uid, algorithm_name, "dimensions"])
    for item in (*segmentation.DimensionOrganizationSequence, *segmentation.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    if signature is not None:
        content_time = signature.content_time
        _point_to(segmentation, signature.replaces)
    write_whole(path, encoded_once(segmentation, *content_time))


def _found(labels: Labels) -> list[Label]:
    """The classes that have a voxel, in order."""
    there = labels.array[labels.array.any(axis=(1, 2))]
    values = set(np.unique(there[there > 0]).tolist())
    return [label for label in labels.classes if label.value in values]


def _point_to(segmentation: Dataset, replaced: Sequence[Path]) -> None:
    """Name the SEGs that this one corrects: General Reference (PS3.3 C.12.4) and Common Instance Reference
    (C.12.2); the series of the images stays the first."""
    import highdicom as hd

    sources = []
    for path in replaced:
        before = instance_of(path)
        instance, source = Dataset(), Dataset()
        for item in (instance, source):
            item.ReferencedSOPClassUID = before.SOPClassUID
            item.ReferencedSOPInstanceUID = before.SOPInstanceUID
        source.PurposeOfReferenceCodeSequence = [hd.sr.CodedConcept.from_code(PREDECESSOR)]
        series = Dataset()
        series.SeriesInstanceUID = before.SeriesInstanceUID
        series.ReferencedInstanceSequence = [instance]
        segmentation.ReferencedSeriesSequence.append(series)
        sources.append(source)
    if sources:
        segmentation.SourceInstanceSequence = sources


def _check_fit(geometry: Geometry, masks: Mapping[str, npt.NDArray[Any]], refs: Sequence[SliceRef]) -> None:
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


def _header(ref: SliceRef, series: Series) -> tuple[Dataset, tuple[str, str]]:
    """The attributes of the CT that go into the SEG, with the two UIDs that it cannot do without.

    Beside them date and time of the CT's content, see `encoded_once`.
    """
    try:
        header = read_slice(ref)
    except InputUnreadable as error:
        raise type(error)(
            f"Cannot read {ref.path} again ({error}): check that the CT is still there"
        ) from error
    copied = inherited(header)
    copied.update({header[keyword].tag: header[keyword] for keyword in _IMAGE if keyword in header})
    if not copied.get("StudyInstanceUID"):
        copied.StudyInstanceUID = series.study_uid or generate_uid(entropy_srcs=[series.series_uid, "study"])
    if not copied.get("FrameOfReferenceUID"):
        copied.FrameOfReferenceUID = generate_uid(entropy_srcs=[series.series_uid, "frame of reference"])
    return copied, content_time_of(header)


def _source_image(
    header: Dataset, refs: Sequence[SliceRef], z: int, series: Series, geometry: Geometry
) -> Dataset:
    """What highdicom wants to know about one CT image, without reading its file."""
    ref, image = refs[z], nameless()
    image.Modality = "CT"
    image.StudyInstanceUID = header.StudyInstanceUID
    image.SeriesInstanceUID = series.series_uid
    image.FrameOfReferenceUID = header.FrameOfReferenceUID
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = _stand_in(z)
    image.Rows = image.Columns = 1
    image.PixelSpacing = [decimal(s) for s in geometry.spacing[1:]]
    image.SliceThickness = decimal(ref.slice_thickness or series.slice_thickness or geometry.spacing[0])
    position = ref.position if ref.position is not None else geometry.to_lps([z, 0, 0])
    image.ImagePositionPatient = [decimal(v) for v in position]
    orientation = refs[0].orientation or (*geometry.axes[2], *geometry.axes[1])
    image.ImageOrientationPatient = [decimal(v) for v in orientation]
    return image


def _descriptions(algorithm: Any, parts: Sequence[Label], *, read: bool) -> list[Any]:
    """Of the segments; where a person has read them, all but the heart are made by both."""
    import highdicom as hd

    kinds_of = hd.seg.SegmentAlgorithmTypeValues

    described = [
        (codes.HEART_SEGMENT, "Heart", codes.ANATOMICAL_STRUCTURE, codes.HEART, None, _COLORS["heart"]),
        (codes.CALCIUM_SEGMENT, "Coronary calcium", codes.ABNORMAL_STRUCTURE, codes.CALCIUM,
         [codes.CORONARY_ARTERY], _COLORS["calcium"]),
    ]  # fmt: skip
    for number, label in enumerate(parts, start=codes.CALCIUM_SEGMENT + 1):
        regions = None if label.region is None else [codes.code_of(label.region)]
        kinds = codes.code_of(label.category), codes.code_of(label.kind)
        described.append((number, codes.part_label(label), *kinds, regions, label.colour))
    return [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=code,
            algorithm_type=kinds_of.SEMIAUTOMATIC
            if read and number != codes.HEART_SEGMENT
            else kinds_of.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=regions,
            display_color=hd.color.CIELabColor.from_rgb(*colour),
        )
        for number, label, category, code, regions, colour in described
    ]


def _by(item: Dataset, maker: Maker) -> None:
    """Say of a segment who made it, in place of us."""
    item.SegmentAlgorithmType = maker.kind
    item.SegmentDescription = maker.description[:1024]  # as long as ST may be
    del item.SegmentationAlgorithmIdentificationSequence  # it asks for a family, which nobody knows
    if maker.kind == "MANUAL":
        del item.SegmentAlgorithmName
    else:
        item.SegmentAlgorithmName = maker.name[:64]  # as long as LO may be


def _overlap(stacks: Sequence[BoolArray]) -> bool:
    """Whether two segments share a pixel; each bool (slices, y, x)."""
    for slices in zip(*stacks, strict=True):
        together = np.zeros(slices[0].shape, dtype=np.bool_)
        for one in slices:
            if (together & one).any():
                return True
            together |= one
    return False


def _packed(segmentation: Dataset, stacks: Sequence[BoolArray], place: Mapping[str, int]) -> bytes:
    """The frames as highdicom has laid them out, a bit a pixel (DICOM PS3.5 8.1.1 bit order).

    Args:
        stacks: bool (slices, y, x) of each segment.
        place: In such a stack, by `_stand_in`.
    """
    frames = []
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        frames.append(stacks[number - 1][place[source.ReferencedSOPInstanceUID]].ravel())
    packed = np.packbits(np.concatenate(frames), bitorder="little").tobytes()
    return packed + b"\0" * (len(packed) % 2)


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
