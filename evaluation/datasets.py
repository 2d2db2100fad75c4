"""Annotated scans: chest CTs with masks of the heart, of coronary calcium, or of both, from four layouts.

`annotated_sources` finds them, cheaply; each can then be read::

    DATA/dataset.json                    nnU-Net's layout; the label names say what is what
    DATA/imagesTr/CASE_0000.nii.gz
    DATA/labelsTr/CASE.nii.gz

    DATA/.../*.dcm                       DICOM CT series and DICOM SEGs that refer to them, in any folders;
                                         also what `deepcac2 simulate` writes

    DATA/CASE/image*.nrrd                label map: 1 heart, 2 other dense structures, 3 coronary calcium
    DATA/CASE/mask*.nrrd                 (DeepCAC v1 example data)

    DATA/.../ct/*.dcm                    DICOM CT series and beside its folder a label map on its grid, with
    DATA/.../calcium.nrrd                the values of `CALCIUM_VALUES`: arteries, what else is calcified,
                                         and what is not sure and left out of every count

A folder may hold several of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom import Series, discover, read_series
from ..dicom.discovery import files_under
from ..dicom.seg.codes import SEGMENTATION_SOP_CLASSES
from ..dicom.seg.reader import read_arteries, read_segmentation, referenced_series
from ..errors import InputError, NoDicomFound, SeriesError, TrainingError
from ..imaging import Volume
from ..imaging.files import read_image, volume_from_image
from ..imaging.labels import ARTERIES, NOT_CORONARY, NOT_SURE, Label, Labels
from ..imaging.nrrd import on_grid, read_nrrd_labels
from ..system.foreign import foreign, read_json

log = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]

HEART_NAMES = frozenset({"heart", "whole heart"})
"""Label names in ``dataset.json`` that mean the heart, lower case, with spaces for ``_`` and ``-``."""
CALCIUM_NAMES = frozenset({"calcium", "cac", "coronary calcium", "coronary artery calcium"})
"""Label names that mean coronary calcium."""

NRRD_HEART, NRRD_CALCIUM = (1, 3), (3,)
"""Labels of the DeepCAC v1 example data: the heart is 1 and the calcium in it, 3."""

CALCIUM_MAP = "calcium.nrrd"
"""Name of a label map with `CALCIUM_VALUES`."""
OTHERS: tuple[Label, ...] = tuple(
    label for label in NOT_CORONARY if label.name in ("aorta", "aortic valve", "mitral annulus")
)
"""What such a map says of calcium that is not coronary."""
CALCIUM_VALUES: dict[int, tuple[str, Label | None]] = {
    **{label.value: (label.name, label) for label in ARTERIES},
    NOT_SURE.value: ("coronary, artery not known", NOT_SURE),
    **{
        value: (words, next(label for label in OTHERS if label.name == name))
        for value, words, name in (
            (11, "aortic valve or root", "aortic valve"),
            (12, "mitral valve or annulus", "mitral annulus"),
            (13, "aortic wall", "aorta"),
        )
    },
    255: ("not sure", None),
}
"""Value in a `CALCIUM_MAP` to what it means, in words and as a class; 0 is everything else, read and found to
be no calcium of these."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedScan:
    """A CT and what is known about it.

    Attributes:
        name: Of the case; unique within its folder.
        volume: The CT, in its own orientation.
        heart: bool (z, y, x) on ``volume.geometry``, coronary calcium included; None: not annotated.
        calcium: bool (z, y, x), coronary calcium; all false: there is none; None: not annotated.
        series: The DICOM series, or None where the scan is an image file.
        arteries: ``calcium`` by artery, classes `labels.ARTERIES`, as far as that is known; None: not at all.
        others: Calcium that is known not to be coronary, classes `OTHERS`; None: that was not annotated.
        unsure: bool (z, y, x): nobody can say what it is; left out of every count. None: nowhere.
    """

    name: str
    volume: Volume
    heart: BoolArray | None
    calcium: BoolArray | None
    series: Series | None = None
    arteries: Labels | None = None
    others: Labels | None = None
    unsure: BoolArray | None = None


@dataclass(frozen=True, kw_only=True)
class AnnotatedSource:
    """A scan that was found and not read yet.

    Attributes:
        name: As in `AnnotatedScan`.
        patient: Whose scan it is: PatientID where DICOM says so, else the name. Scans of one patient stay
            on one side of a split. Not for logs.
        load: Reads it; raises `TrainingError` where a file is broken or its masks do not fit.
    """

    name: str
    patient: str
    load: Callable[[], AnnotatedScan]


def annotated_sources(folder: Path, *, allow: Collection[str] = ()) -> list[AnnotatedSource]:
    """Find the annotated scans of a folder: file names and DICOM headers only, no pixels.

    CT series that a quality gate rejects, and SEGs whose CT is not there, are left out with a warning in the
    log. Several SEGs of one series are joined.

    Args:
        folder: Where to look.
        allow: Codes of gates that warn instead of reject.

    Returns:
        Sorted by layout and name; names are unique.

    Raises:
        TrainingError: No annotated scan, an image or label without its other half, two cases of one name,
            two annotations of one series by different means, or labels of unknown names.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder; give one with annotated scans (docs/training.md)")
    mapped = mapped_series(folder, allow)
    found = [*_nnunet(folder), *_nrrd(folder), *_mapped(mapped), *_dicom(folder, allow, mapped)]
    if not found:
        raise TrainingError(
            f"{folder} holds no annotated scan; expected imagesTr/ and labelsTr/ with dataset.json, DICOM CT "
            f"with DICOM SEG, folders with image*.nrrd and mask*.nrrd, or with ct/ and {CALCIUM_MAP}"
        )
    seen: set[str] = set()
    for source in found:
        if source.name in seen:
            raise TrainingError(f"{folder} holds two scans named {source.name!r}; rename one of them")
        seen.add(source.name)
    return found


# Image files


def _nnunet(folder: Path) -> Iterator[AnnotatedSource]:
    if not (folder / "labelsTr").is_dir():
        return
    description = folder / "dataset.json"
    advice = 'write one with "labels": {"background": 0, "heart": 1, "calcium": 2}'
    content = read_json(description, error=TrainingError, advice=advice)
    fault = "does not say what the labels mean"
    with foreign(str(description), error=TrainingError, fault=fault, advice=advice):
        heart, calcium = _label_values(content["labels"])
    if not heart and not calcium:
        raise TrainingError(
            f"{description} knows no label 'heart' or 'calcium' (it knows: {', '.join(content['labels'])}); "
            "rename the labels"
        )
    ending = str(content.get("file_ending", ".nii.gz"))
    for label in sorted((folder / "labelsTr").glob(f"*{ending}")):
        case = label.name.removesuffix(ending)
        image = folder / "imagesTr" / f"{case}_0000{ending}"
        yield _image_source(case, image, label, heart, calcium)


def _label_values(labels: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Voxel values of the heart and of calcium, from nnU-Net's name → value, or regions, or v1's reverse."""
    heart: set[int] = set()
    calcium: set[int] = set()
    for key, value in labels.items():
        name, number = (value, key) if isinstance(value, str) else (key, value)
        values = {int(v) for v in (number if isinstance(number, list) else [number])}
        plain = name.lower().replace("_", " ").replace("-", " ").strip()
        if plain in HEART_NAMES:
            heart |= values
        elif plain in CALCIUM_NAMES:
            calcium |= values
    return tuple(sorted(heart | calcium)) if heart else (), tuple(sorted(calcium))


def _nrrd(folder: Path) -> Iterator[AnnotatedSource]:
    images = sorted(folder.glob("*/image*.nrrd"))
    alone = {f for f in images if sum(o.parent == f.parent for o in images) == 1}
    for image in images:
        label = image.with_name("mask" + image.name.removeprefix("image"))
        stem = image.name.removesuffix(".nrrd").removeprefix("image").strip("_-")
        name = image.parent.name if image in alone else f"{image.parent.name}/{stem or 'image'}"
        yield _image_source(name, image, label, NRRD_HEART, NRRD_CALCIUM)


def _image_source(
    name: str, image: Path, label: Path, heart: tuple[int, ...], calcium: tuple[int, ...]
) -> AnnotatedSource:
    for path in (image, label):
        if not path.is_file():
            raise TrainingError(f"{name} lacks the file {path}; add it, or remove what is left of the case")

    def load() -> AnnotatedScan:
        try:
            volume = volume_from_image(image)
            labels, grid = read_image(label)
        except InputError as error:
            raise TrainingError(str(error)) from error
        if not volume.geometry.same_grid(grid):
            raise TrainingError(f"{label} does not lie on the grid of {image}; resample the mask first")
        masks = [np.isin(labels, values) if values else None for values in (heart, calcium)]
        return AnnotatedScan(name=name, volume=volume, heart=masks[0], calcium=masks[1])

    return AnnotatedSource(name=name, patient=name.split("/")[0], load=load)


# DICOM with a label map


@dataclass(frozen=True, kw_only=True)
class MappedSeries:
    """A CT series with a `CALCIUM_MAP`, which may be one that a gate rejects.

    Attributes:
        name: As of `AnnotatedScan`.
        path: The map.
        series: The CT.
    """

    name: str
    path: Path
    series: Series


def mapped_series(folder: Path, allow: Collection[str] = ()) -> list[MappedSeries]:
    """The label maps below a folder, each with the CT series in ``ct/`` beside it.

    Raises:
        TrainingError: There is not just one series.
    """
    found = []
    for path in sorted(path for path in files_under(folder) if path.name == CALCIUM_MAP):
        home = path.parent
        try:
            series = discover(home / "ct", allow=allow).series
        except InputError:
            series = ()
        if len(series) != 1:
            raise TrainingError(
                f"{home / 'ct'} holds {len(series)} DICOM series, not one; put the CT of {path} there"
            )
        name = folder.name if home == folder else home.relative_to(folder).as_posix()
        found.append(MappedSeries(name=name, path=path, series=series[0]))
    return found


def _mapped(found: Sequence[MappedSeries]) -> Iterator[AnnotatedSource]:
    for one in found:
        if one.series.rejection:
            log.warning("%s is left out: %s", one.name, one.series.rejection.message)
        else:
            patient = one.series.patient_id or one.name
            yield AnnotatedSource(name=one.name, patient=patient, load=partial(_load_mapped, one))


def _load_mapped(one: MappedSeries) -> AnnotatedScan:
    try:
        volume = read_series(one.series).volume
        stored, grid = read_nrrd_labels(one.path)
        values = on_grid(stored, grid, volume.geometry, what=str(one.path))
    except (InputError, SeriesError) as error:
        raise TrainingError(f"{one.name} cannot be used: {error}; or take it out of the folder") from error
    if strange := sorted(set(np.unique(values).tolist()) - {0, *CALCIUM_VALUES}):
        known = ", ".join(f"{value} {words}" for value, (words, _) in CALCIUM_VALUES.items())
        raise TrainingError(
            f"{one.path} holds the values {', '.join(map(str, strange[:5]))}, which mean nothing; give each "
            f"voxel one of {known}, or 0"
        )
    arteries, others = (_classes(values, classes) for classes in (ARTERIES, OTHERS))
    return AnnotatedScan(
        name=one.name,
        volume=volume,
        heart=None,
        calcium=arteries.mask | (values == NOT_SURE.value),
        series=one.series,
        arteries=arteries,
        others=others,
        unsure=values == next(value for value, (_, label) in CALCIUM_VALUES.items() if label is None),
    )


def _classes(values: npt.NDArray[Any], classes: tuple[Label, ...]) -> Labels:
    """The part of a label map that these classes are."""
    array = np.zeros(values.shape, dtype=np.uint8)
    for value, (_, label) in CALCIUM_VALUES.items():
        if label in classes:
            array[values == value] = label.value
    return Labels(array=array, classes=classes)


# DICOM


def segmentations(found: Iterable[Series]) -> dict[str, list[Path]]:
    """The DICOM SEGs among what was found, by the UID of the series that they refer to; of archives none."""
    images = (image for series in found for image in (*series.slices, *series.left_out))
    paths = {i.path for i in images if i.sop_class_uid in SEGMENTATION_SOP_CLASSES and not i.member}
    by_series: dict[str, list[Path]] = {}
    for path in sorted(paths):
        by_series.setdefault(referenced_series(path), []).append(path)
    return by_series


def _dicom(folder: Path, allow: Collection[str], mapped: Sequence[MappedSeries]) -> Iterator[AnnotatedSource]:
    try:
        discovery = discover(folder, allow=allow)
    except NoDicomFound:
        return
    series = {s.series_uid: s for s in discovery.series}
    of_series = segmentations(discovery.series)
    for uid in [uid for uid in of_series if uid not in series]:
        for path in of_series.pop(uid):
            log.warning("%s is left out: the CT that it refers to is not in %s", path, folder)
    homes = Counter(series[uid].slices[0].path.parent for uid in of_series)
    for uid, paths in of_series.items():
        ct = series[uid]
        home = ct.slices[0].path.parent
        name = folder.name if home == folder else home.relative_to(folder).as_posix()
        if homes[home] > 1:
            name = f"{name}/{paths[0].name.split('.')[0]}"
        if both := [one for one in mapped if one.series.series_uid == uid]:
            raise TrainingError(
                f"{both[0].path} and {paths[0]} annotate the same series; take one of them out of the folder"
            )
        if ct.rejection:
            log.warning("%s is left out: %s", name, ct.rejection.message)
        else:
            load = partial(_load_dicom, name, ct, paths)
            yield AnnotatedSource(name=name, patient=ct.patient_id or name, load=load)


def _load_dicom(name: str, series: Series, segs: Sequence[Path]) -> AnnotatedScan:
    try:
        volume = read_series(series).volume
        masks: dict[str, BoolArray] = {}
        arteries: Labels | None = None
        for path in segs:
            arteries = _joined(arteries, read_arteries(path, volume.geometry))
            for kind, mask in read_segmentation(path, volume.geometry).items():
                masks[kind] = masks[kind] | mask if kind in masks else mask
    except (InputError, SeriesError) as error:
        raise TrainingError(f"{name} cannot be used: {error}; or take it out of the folder") from error
    heart, calcium = masks.get("heart"), masks.get("calcium")
    if heart is not None and calcium is not None:
        heart = heart | calcium
    return AnnotatedScan(
        name=name, volume=volume, heart=heart, calcium=calcium, series=series, arteries=arteries
    )


def _joined(first: Labels | None, second: Labels | None) -> Labels | None:
    """The arteries that several SEGs name; what one says goes where those before say nothing."""
    if second is None:
        return first
    known = np.zeros_like(second.array) if first is None else first.array
    said = np.where(second.array <= len(ARTERIES), second.array, 0)
    return Labels(array=np.where(known > 0, known, said), classes=ARTERIES)
