"""Find every DICOM series under a folder, by header only.

Files are told by what is in them, never by name or folder; images are grouped by SeriesInstanceUID.
Whatever looks like DICOM and is not in a series is listed with the reason: nothing is silently dropped.
"""

from __future__ import annotations

import logging
import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from ..errors import InputDamaged, InputUnreadable, NoDicomFound
from ..imaging.scan_files import refused_format, scan_format
from ..system.names import readable
from .contrast import INTRAVENOUS, NONE, ORAL, contrast_kind
from .files import (
    HEAD_BYTES,
    ZIP_MAGIC,
    open_archive,
    open_file,
    open_member,
    packed_size,
    read_dicom,
    taken,
)
from .gates import check_headers, has_geometry, is_ct, is_stray, spectral_sign
from .headers import (
    ENHANCED_CT,
    first_item,
    number,
    orientation,
    pixel_spacing,
    position,
    quiet_pydicom,
    text,
    texts,
    whole,
)
from .patient import age_at, sex_of
from .series import Series, SliceRef, increment_of, slice_normal, slice_positions
from .store import SeriesStore

logger = logging.getLogger(__name__)

MEDIA_STORAGE_DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR (PS3.4 annex B.5); it lists files and holds no image."""

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
_BATCH = 4096
"""Files handed to the threads at once, so that an interrupt is heard and memory does not grow with them."""
_STANDARD_UIDS = b"1.2.840.10008."
"""Root of the SOP classes: what starts like a data set without preamble and has none is something else."""
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""What macOS keeps of a file beside it where the file system cannot, as ``._NAME`` or below ``__MACOSX``
(RFC 1740): no image, whatever its name ends in."""

_IN_MEMORY = 50_000
"""Images whose series are kept in memory: some 50 MB."""

_TAGS = [
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "StudyDate", "Modality",
    "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientID", "ContrastBolusAgent",
    "ContrastBolusAgentSequence", "ContrastBolusAdministrationRouteSequence", "SliceThickness", "KVP",
    "GantryDetectorTilt", "ContrastBolusRoute", "ContrastBolusVolume", "ContrastBolusTotalDose",
    "ContrastBolusIngredient", "ContrastBolusIngredientCodeSequence", "AcquisitionDate", "AcquisitionTime",
    "AcquisitionDateTime", "FrameOfReferenceUID", "PatientPosition", "RescaleType",
    "MultienergyCTCharacteristicsSequence", "PatientAge", "PatientBirthDate", "PatientSex",
    "ClinicalTrialTimePointID", "ConvolutionKernel", "StudyInstanceUID", "SeriesInstanceUID",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames", "Rows",
    "Columns", "PixelSpacing", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "LossyImageCompression",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class UnreadableFile:
    """A file or folder which may hold DICOM and belongs to no series.

    Attributes:
        path: The file or folder; for a member of a zip archive, the archive.
        member: Name inside the zip archive, or None.
        reason: One sentence for the user.
    """

    path: Path
    member: str | None = None
    reason: str


FromImages = Callable[[Sequence[Path], Collection[str]], Iterable["Series | UnreadableFile"]]
"""Makes series of image files, all that were found, with the codes of the gates that shall warn only."""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What lies under a folder.

    Attributes:
        series: Every series, sorted by (PatientID, StudyInstanceUID, SeriesInstanceUID); of very many, one
            at a time is in memory.
        unreadable: What may be DICOM but is in no series, sorted by path.
        ignored: Number of files which are no DICOM images: other formats and DICOMDIRs.
    """

    series: Sequence[Series]
    unreadable: tuple[UnreadableFile, ...] = ()
    ignored: int = 0

    @property
    def uids(self) -> list[str]:
        """The SeriesInstanceUIDs of `series`, without loading what is not in memory."""
        if isinstance(self.series, SeriesStore):
            return self.series.uids()
        return [s.series_uid for s in self.series]

    def find(self, series_uid: str) -> Series | None:
        """The series with this SeriesInstanceUID, None where it is not among them."""
        place = self._places.get(series_uid)
        return None if place is None else self.series[place]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {uid: place for place, uid in enumerate(self.uids)}


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One image with the facts that `Series` keeps once."""

    ref: SliceRef
    series_uid: str
    study_uid: str
    patient_id: str
    facts: dict[str, str]
    kvp: float | None
    gantry_tilt: float | None
    contrast_ml: float | None


def discover_within(folder: Path, *, allow: Collection[str] = ()) -> Discovery:
    """What lies in a folder that was made for one series: nothing, where it holds no image (any more).

    Args:
        allow: See `discover`.
    """
    try:
        return discover(folder, allow=allow)
    except (InputUnreadable, NoDicomFound):
        return Discovery(series=())


def discover(
    root: Path,
    *,
    workers: int | None = None,
    allow: Collection[str] = (),
    from_images: FromImages | None = None,
) -> Discovery:
    """Find all DICOM series under a folder, ordered and with the header gates applied.

    Folders are walked recursively with hidden files and symbolic links (each target once, so loops end);
    zip archives are read in place. Only headers are read.

    Args:
        root: A folder, a DICOM file or a zip archive.
        workers: Threads that read headers; default 4 per CPU core, at most 32, as storage latency counts
            more than parsing.
        allow: Codes of gates that shall warn only (see `check_headers`).
        from_images: Makes series of NIfTI and NRRD files (not of those in archives), which stand among the
            others; None: such files are ignored.

    Raises:
        InputUnreadable: `root` does not exist or cannot be read.
        NoDicomFound: Nothing under it is or seems to be DICOM.
    """
    root = Path(root)
    if not root.exists():
        raise InputUnreadable(f"{root} does not exist; give a folder, a DICOM file or a zip archive")
    if not (root.is_dir() or root.is_file()):
        raise InputUnreadable(f"{root} is a pipe or a device; give a folder, a DICOM file or a zip archive")
    if root.is_file():
        try:
            open_file(root).close()
        except InputUnreadable as error:
            raise InputUnreadable(f"{root} {error}; check path and permissions") from error
    unreadable: list[UnreadableFile] = []
    others: list[Path] = []
    store = SeriesStore()
    count = ignored = 0
    with quiet_pydicom(), ThreadPoolExecutor(workers or min(32, 4 * (os.cpu_count() or 1))) as pool:
        paths = files_under(root, unreadable)
        while batch := list(islice(paths, _BATCH)):
            groups: dict[str, list[_Image]] = defaultdict(list)
            for found in pool.map(_read_file, batch):
                ignored += found.ignored
                unreadable += found.unreadable
                others += found.others
                for image in found.images:
                    groups[image.series_uid].append(image)
            for series_uid, group in groups.items():
                count += len(group)
                store.collect(series_uid, group)
    if any(u.path == root for u in unreadable) and root.is_dir():
        raise InputUnreadable(f"{root} {unreadable[0].reason}; check path and permissions")
    if not count and not unreadable and (from_images is None or not others):
        what = f"{ignored} other files" if ignored else "it is empty"
        raise NoDicomFound(f"no DICOM found in {root} ({what}); give the folder that holds the scans")

    for group in store.groups():
        series = _assemble(group)
        store.put(replace(series, findings=check_headers(series, allow)))
    if from_images is not None:
        ignored -= len(others)
        for found_one in from_images(others, allow):
            if isinstance(found_one, UnreadableFile):
                unreadable.append(found_one)
            else:
                count += len(found_one.slices)
                store.put(found_one)
    store.sort()
    unreadable.sort(key=lambda u: (str(u.path), u.member or ""))
    logger.info(
        "found %d series in %d images; %d unreadable, %d other files",
        len(store), count, len(unreadable), ignored,
    )  # fmt: skip
    return Discovery(
        series=tuple(store) if count <= _IN_MEMORY else store,
        unreadable=tuple(unreadable),
        ignored=ignored,
    )


def places_in(path: Path) -> set[tuple[str, Path]]:
    """SeriesInstanceUID and place of the images in a file: its folder, or the file where it is a zip archive.

    Never raises: what cannot be read holds no images.
    """
    with quiet_pydicom():
        refs = {(image.series_uid, image.ref.member is None) for image in _read_file(path).images}
    return {(uid, path.parent if plain else path) for uid, plain in refs}


def series_among(paths: Iterable[Path], series_uid: str) -> Series | None:
    """The series with this SeriesInstanceUID as its images among some files make it up, or None.

    As in `discover`, but the gates are not asked.
    """
    with quiet_pydicom(), ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        images = [
            image
            for found in pool.map(_read_file, paths)
            for image in found.images
            if image.series_uid == series_uid
        ]
    return _assemble(images) if images else None


def chosen(discovery: Discovery, uids: Collection[str]) -> Discovery:
    """What was found, without the series that are not named."""
    if isinstance(discovery.series, SeriesStore):
        discovery.series.keep(uids)
        return replace(discovery)
    return replace(discovery, series=tuple(s for s in discovery.series if s.series_uid in uids))


def files_under(root: Path, unreadable: list[UnreadableFile] | None = None) -> Iterator[Path]:
    """All regular files under `root`, each once, folder by folder; `unreadable` gets what cannot be read."""
    unreadable = [] if unreadable is None else unreadable
    if not root.is_dir():
        yield root
        return
    home = Path(os.path.realpath(root))
    outside: set[str] = set()
    visited: set[tuple[int, int]] = set()

    def seen_elsewhere(entry: os.DirEntry[str]) -> bool:
        """Whether a link leads to what is walked anyway (under the root, already followed) or above it."""
        target = os.path.realpath(entry.path)
        if target in outside or Path(target).is_relative_to(home) or home.is_relative_to(target):
            return True
        outside.add(target)
        return False

    pending = [str(root)]
    while pending:
        folder = pending.pop()
        try:
            here = Path(folder).stat()
            if (here.st_dev, here.st_ino) in visited:
                continue
            visited.add((here.st_dev, here.st_ino))
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda e: e.name)
        except OSError as exc:
            unreadable.append(UnreadableFile(path=Path(folder), reason=f"cannot be listed: {exc.strerror}"))
            continue
        folders = []
        for entry in listed:
            try:
                if entry.is_symlink() and seen_elsewhere(entry):
                    continue
                mode = entry.stat().st_mode
            except OSError as exc:
                reason = f"cannot be opened: {exc.strerror}"
                unreadable.append(UnreadableFile(path=Path(entry.path), reason=reason))
                continue
            if stat.S_ISDIR(mode):
                folders.append(entry.path)
            elif stat.S_ISREG(mode):
                yield Path(entry.path)
        pending += reversed(folders)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is in one file; `others` is the file itself where its name is that of an image of another format,
    and `ignored` counts it, too."""

    images: tuple[_Image, ...] = ()
    unreadable: tuple[UnreadableFile, ...] = ()
    others: tuple[Path, ...] = ()
    ignored: int = 0


def _read_file(path: Path) -> _Found:
    """Everything in one file. Never raises: what goes wrong becomes an `UnreadableFile`."""
    try:
        with open_file(path) as file:
            head = taken(file, HEAD_BYTES)
            if not head.startswith(ZIP_MAGIC):
                return _read_header(file, head, path)
        with open_archive(path) as archive:
            members = [_read_member(archive, i, path) for i in archive.infolist() if not i.is_dir()]
    except (InputUnreadable, MemoryError) as error:
        return _unreadable(path, None, str(error) or "not enough memory")
    return _Found(
        images=tuple(image for found in members for image in found.images),
        unreadable=tuple(unread for found in members for unread in found.unreadable),
        ignored=sum(found.ignored for found in members),
    )


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> _Found:
    name = info.filename
    try:
        with open_member(archive, info) as file:
            head = taken(file, HEAD_BYTES)
            if head.startswith(ZIP_MAGIC):
                return _unreadable(path, name, "a zip archive inside a zip archive; unpack it first")
            return _read_header(file, head, path, name, packed_size(archive, info))
    except (InputUnreadable, MemoryError) as error:
        return _unreadable(path, name, str(error) or "not enough memory")


def _may_be_dicom(head: bytes) -> bool:
    """Part-10 magic, or a data set without preamble that starts with group 0002 or 0008."""
    return head[128:132] == b"DICM" or head[:2] in _FIRST_GROUPS


def _unreadable(path: Path, member: str | None, reason: str) -> _Found:
    return _Found(unreadable=(UnreadableFile(path=path, member=member, reason=readable(reason)),))


def _no_dicom(path: Path, member: str | None, head: bytes) -> _Found:
    if head.startswith(_APPLE_DOUBLE):
        return _Found(ignored=1)
    if (member or path.name).lower().endswith(_DICOM_SUFFIXES):
        return _unreadable(path, member, "named like DICOM, but there is no DICOM in it")
    if member is None and (scan_format(path.name) or refused_format(path.name, head)):
        return _Found(others=(path,), ignored=1)
    return _Found(ignored=1)


def _read_header(
    file: IO[bytes], head: bytes, path: Path, member: str | None = None, size: int | None = None
) -> _Found:
    """The images of one file, which starts with `head`; a member of an archive takes `size` bytes there.

    Raises:
        InputUnreadable: It cannot be read as DICOM.
    """
    if not _may_be_dicom(head):
        return _no_dicom(path, member, head)
    try:
        ds = read_dicom(file, head, tags=_TAGS, packed_size=size)
    except InputDamaged:
        if head[128:132] != b"DICM" and _STANDARD_UIDS not in head:
            return _no_dicom(path, member, head)
        raise
    sop_class = text(ds, "SOPClassUID") or text(ds.file_meta, "MediaStorageSOPClassUID")
    if sop_class == MEDIA_STORAGE_DIRECTORY:
        return _Found(ignored=1)
    if not text(ds, "SeriesInstanceUID"):
        if head[128:132] != b"DICM" and not sop_class:
            return _no_dicom(path, member, head)
        return _unreadable(path, member, "its DICOM header is damaged or names no SeriesInstanceUID")
    try:
        return _Found(images=tuple(_images(ds, sop_class, path, member)))
    except Exception as exc:  # sequences that hold something else; the file gets its row
        return _unreadable(path, member, f"its DICOM header cannot be parsed: {type(exc).__name__}: {exc}")


def _images(ds: Dataset, sop_class: str, path: Path, member: str | None) -> Iterator[_Image]:
    """One `_Image` per file, or per frame where functional groups place each frame."""
    shared = first_item("SharedFunctionalGroupsSequence", ds) or Dataset()
    frames = whole(ds, "NumberOfFrames") or 1
    per_frame = list(ds.get("PerFrameFunctionalGroupsSequence") or ())
    facts = {
        "modality": text(ds, "Modality"),
        "series_description": text(ds, "SeriesDescription"),
        "study_date": text(ds, "StudyDate"),
        "time_point": text(ds, "ClinicalTrialTimePointID"),
        "manufacturer": text(ds, "Manufacturer"),
        "model_name": text(ds, "ManufacturerModelName"),
        "kernel": text(ds, "ConvolutionKernel"),
        "contrast_agent": _contrast_agent(ds),
        "contrast_route": _contrast_route(ds),
        "frame_of_reference": text(ds, "FrameOfReferenceUID"),
        "patient_position": text(ds, "PatientPosition"),
        "acquired": text(ds, "AcquisitionDate") + text(ds, "AcquisitionTime")
        if text(ds, "AcquisitionDate")
        else text(ds, "AcquisitionDateTime"),
        "patient_age": text(ds, "PatientAge"),
        "birth_date": text(ds, "PatientBirthDate"),
        "patient_sex": text(ds, "PatientSex"),
        "rescale_type": text(ds, "RescaleType"),
        "lossy": "yes" if _is_lossy(ds) else "",
        "energy_kev": text(
            first_item("MultienergyCTCharacteristicsSequence", ds) or Dataset(),
            "MonoenergeticEnergyEquivalent",
        ),
    }
    common = SliceRef(
        path=path,
        member=member,
        frames=frames,
        sop_class_uid=sop_class,
        sop_instance_uid=text(ds, "SOPInstanceUID"),
        instance_number=whole(ds, "InstanceNumber"),
        position=position(ds),
        orientation=orientation(ds),
        rows=whole(ds, "Rows"),
        columns=whole(ds, "Columns"),
        pixel_spacing=pixel_spacing(ds),
        slice_thickness=number(ds, "SliceThickness"),
        image_type=texts(ds, "ImageType"),
        transfer_syntax_uid=text(ds.file_meta, "TransferSyntaxUID"),
    )
    image = _Image(
        ref=common,
        series_uid=text(ds, "SeriesInstanceUID"),
        study_uid=text(ds, "StudyInstanceUID"),
        patient_id=text(ds, "PatientID"),
        facts=facts,
        kvp=number(ds, "KVP"),
        gantry_tilt=number(ds, "GantryDetectorTilt"),
        contrast_ml=_contrast_volume(ds),
    )
    if sop_class not in ENHANCED_CT or len(per_frame) != frames:
        yield image
        return

    for index, item in enumerate(per_frame):

        def group(name: str, item: Dataset = item) -> Dataset:
            return first_item(name, item, shared) or Dataset()

        measures, frame_type = group("PixelMeasuresSequence"), group("CTImageFrameTypeSequence")
        ref = replace(
            common,
            frame=index,
            position=position(group("PlanePositionSequence")),
            orientation=orientation(group("PlaneOrientationSequence")),
            pixel_spacing=pixel_spacing(measures),
            slice_thickness=number(measures, "SliceThickness"),
            image_type=texts(frame_type, "FrameType") or common.image_type,
        )
        characteristics = group("MultienergyCTCharacteristicsSequence")
        own = {
            **facts,
            "kernel": "\\".join(texts(group("CTReconstructionSequence"), "ConvolutionKernel"))
            or facts["kernel"],
            "rescale_type": text(group("PixelValueTransformationSequence"), "RescaleType"),
            "energy_kev": text(characteristics, "MonoenergeticEnergyEquivalent") or facts["energy_kev"],
            "acquired": text(group("FrameContentSequence"), "FrameAcquisitionDateTime") or facts["acquired"],
        }
        yield replace(
            image,
            ref=ref,
            facts=own,
            kvp=number(group("CTXRayDetailsSequence"), "KVP") or image.kvp,
            gantry_tilt=number(group("CTGeometrySequence"), "GantryDetectorTilt") or image.gantry_tilt,
        )


def _contrast_agent(ds: Dataset) -> str:
    """All that names a contrast agent: the text, and the codes of agents and ingredients (PS3.3 C.7.6.4; in
    enhanced CT, C.7.6.4b, ingredients stand inside the agents' items)."""
    agents = _items(ds, "ContrastBolusAgentSequence")
    inside = [i for a in agents for i in _items(a, "ContrastBolusIngredientCodeSequence")]
    coded = (*agents, *inside, *_items(ds, "ContrastBolusIngredientCodeSequence"))
    named = (*texts(ds, "ContrastBolusAgent"), *texts(ds, "ContrastBolusIngredient"), *map(_meaning, coded))
    return "\\".join(filter(None, named))


def _contrast_route(ds: Dataset) -> str:
    """All that names the route of a contrast agent, likewise."""
    inside = _items(ds, "ContrastBolusAgentSequence")
    coded = [i for d in (ds, *inside) for i in _items(d, "ContrastBolusAdministrationRouteSequence")]
    return "\\".join(filter(None, (*texts(ds, "ContrastBolusRoute"), *map(_meaning, coded))))


def _contrast_volume(ds: Dataset) -> float | None:
    """Volume or dose of contrast agent, mL; in enhanced CT that of all agents."""
    inside = [number(item, "ContrastBolusVolume") or 0.0 for item in _items(ds, "ContrastBolusAgentSequence")]
    return number(ds, "ContrastBolusVolume") or number(ds, "ContrastBolusTotalDose") or sum(inside) or None


def _items(ds: Dataset, keyword: str) -> list[Dataset]:
    return list(ds.get(keyword) or ())


def _meaning(item: Dataset) -> str:
    return text(item, "CodeMeaning") or text(item, "CodeValue") or text(item, "LongCodeValue")


def _assemble(images: list[_Image]) -> Series:
    """One `Series`: slices ordered, the rest left out. What decides about the score is asked of every slice;
    names are taken from the first slice that has one."""
    slices_of_it, left_out = _sorted_out(images)
    kept = _ordered(slices_of_it)

    def fact(name: str) -> str:
        return next((i.facts[name] for i in kept if i.facts[name]), "")

    def different(name: str) -> tuple[str, ...]:
        return tuple(sorted({i.facts[name] for i in kept} - {""}))

    thicknesses = sorted(i.ref.slice_thickness for i in kept if i.ref.slice_thickness is not None)
    slices = tuple(i.ref for i in kept)
    positions = slice_positions(slices)
    kernels, kvps = different("kernel"), tuple(sorted({i.kvp for i in kept if i.kvp is not None}))
    acquired = different("acquired")
    bolus = _gravest(kept)
    age, no_age = age_at(fact("patient_age"), fact("birth_date"), fact("acquired")[:8] or fact("study_date"))
    signs = {spectral_sign(i.ref, **{k: i.facts[k] for k in _SPECTRAL}) for i in kept} - {""}
    return Series(
        series_uid=kept[0].series_uid,
        study_uid=kept[0].study_uid,
        patient_id=kept[0].patient_id,
        kvp=kvps[0] if len(kvps) == 1 else None,
        kvps=kvps if len(kvps) > 1 else (),
        gantry_tilt=next((i.gantry_tilt for i in kept if i.gantry_tilt is not None), None),
        slice_thickness=thicknesses[len(thicknesses) // 2] if thicknesses else None,
        increment=None if positions is None else increment_of(positions),
        mixed_identity=len({(i.patient_id, i.study_uid) for i in images}) > 1,
        slices=slices,
        left_out=tuple(i.ref for i in _ordered(left_out)),
        modality=fact("modality"),
        series_description=fact("series_description"),
        study_date=fact("study_date"),
        time_point=fact("time_point"),
        manufacturer=fact("manufacturer"),
        model_name=fact("model_name"),
        kernel=kernels[0] if len(kernels) == 1 else "",
        kernels=kernels if len(kernels) > 1 else (),
        contrast_agent=bolus.facts["contrast_agent"],
        contrast_route=bolus.facts["contrast_route"],
        contrast_volume_ml=bolus.contrast_ml,
        frames_of_reference=len(different("frame_of_reference")),
        patient_positions=different("patient_position"),
        acquired=(*acquired[:1], *acquired[1:][-1:]),
        spectral=min(signs, default=""),
        lossy=bool(different("lossy")),
        patient_age=age,
        no_age=no_age,
        patient_sex=sex_of(fact("patient_sex")),
    )


def _sorted_out(images: list[_Image]) -> tuple[list[_Image], list[_Image]]:
    """The slices, and what else has their SeriesInstanceUID: objects that are no CT, localizers and screen
    captures, and copies cut off in their header. Of each kind nothing is left out where nothing else remains:
    the gates say what that is."""
    whole_ones = {i.ref.sop_instance_uid for i in images if has_geometry(i.ref)} - {""}
    kinds: tuple[Callable[[_Image], bool], ...] = (
        lambda i: not is_ct(i.ref, i.facts["modality"] or "CT"),
        lambda i: is_stray(i.ref),
        lambda i: i.ref.sop_instance_uid in whole_ones and not has_geometry(i.ref),
    )
    kept, left_out = images, []
    for is_other in kinds:
        rest = [i for i in kept if not is_other(i)]
        if rest:
            left_out += [i for i in kept if is_other(i)]
            kept = rest
    return kept, left_out


def _is_lossy(ds: Dataset) -> bool:
    """Whether an image was compressed with loss: now, or by what its header says once (PS3.3 C.7.6.1.1.5)."""
    return text(ds, "LossyImageCompression") == "01" or text(ds.file_meta, "TransferSyntaxUID") in _LOSSY


_LOSSY = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless})
"""Transfer syntaxes that know nothing else; JPEG 2000 (…4.91) may be without loss."""
_SPECTRAL = ("series_description", "rescale_type", "energy_kev")


def _gravest(images: list[_Image]) -> _Image:
    """The image that names the gravest contrast agent; of several the first."""
    said: dict[tuple[str, str, float | None], _Image] = {}
    for image in images:
        facts = image.facts
        said.setdefault((facts["contrast_agent"], facts["contrast_route"], image.contrast_ml), image)
    order = (INTRAVENOUS, ORAL, NONE)
    return min(said.items(), key=lambda one: order.index(contrast_kind(*one[0])))[1]


def _ordered(images: list[_Image]) -> list[_Image]:
    """Sorted by position along the normal, else by InstanceNumber; ties by number, UID, path and frame."""

    def order(image: _Image) -> tuple[float, str, str, str, int]:
        ref = image.ref
        instance = float("inf") if ref.instance_number is None else ref.instance_number
        return instance, ref.sop_instance_uid, str(ref.path), ref.member or "", ref.frame or 0

    images = sorted(images, key=order)
    normals = (slice_normal(i.ref.orientation) for i in images)
    normal = next((n for n in normals if n is not None), None)
    positions = [i.ref.position for i in images]
    if normal is None or None in positions:
        return images
    projected = np.asarray(positions, dtype=np.float64) @ normal
    return [images[i] for i in np.argsort(projected, kind="stable")]
