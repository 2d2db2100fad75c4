"""Scans that are NIfTI or NRRD files: found beside the DICOM series, judged and read like them.

Such a file says where its voxels lie and what their values are, and nothing else: not who was scanned, how,
or with what. The patient is taken from its name, its series UID is made of its content, and the gates that
ask for what it does not say are named in a finding instead of being passed in silence.
"""

from __future__ import annotations

import re
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..dicom import Discovery, Finding, Reading, Series, SliceRef, UnreadableFile, discover, readable
from ..dicom.gates import Gate, check_grid, register_gate
from ..dicom.reading import (
    BLANK_SLICES,
    HU_IMPOSSIBLE,
    IMPOSSIBLE_SHARE,
    MAX_CT_HU,
    MIN_CT_HU,
    shows_nothing,
)
from ..errors import InputError, InputUnreadable, SeriesFailed, SeriesRejected
from ..imaging import Geometry, Volume
from ..imaging.scan_files import (
    content_id,
    read_scan,
    read_scan_header,
    refused_format,
    scan_format,
    without_ending,
)
from ..system.foreign import read_head

DOUBTFUL_HEADER = register_gate(
    Gate(
        code="doubtful-header",
        sentence="The header of a NIfTI or NRRD file leaves open where its voxels lie or what they are.",
    )
)
NOT_HU = register_gate(
    Gate(
        code="not-hu",
        sentence="The values of a NIfTI or NRRD file are no Hounsfield units: a mask, a label map, a "
        "picture, or stored wrongly.",
    )
)
NOT_KNOWN = register_gate(
    Gate(
        code="not-known",
        sentence="A NIfTI or NRRD file does not say what some gates ask for: they could not judge it.",
        fatal=False,
    )
)

UNJUDGED = (
    "contrast", "derived", "gantry-tilt", "kvp", "missing-slices", "mixed-kernel", "mixed-scan", "not-ct",
    "sharp-kernel", "spectral", "uneven-increments",
)  # fmt: skip
"""Gates that ask for what no such file says. Those of thickness take the distance of the slices instead."""

HIGHEST_AIR_HU = -500
"""Some voxel of every chest CT lies below this, HU: air in and around the body has -1000, lung some -850."""

DEFAULT_PATIENT = r"[^/]+$"
"""The file's name."""


@dataclass(frozen=True, kw_only=True)
class ImageSeries(Series):
    """A scan that is one NIfTI or NRRD file.

    Its ``series_uid`` is made of the file's content (see the function), its ``series_description`` is the
    file's path below the input; what DICOM alone says is absent. Of ``slices``, which all lie in the file,
    ``frame`` is the array's z index.

    Attributes:
        format: `imaging.scan_files.NIFTI` or `NRRD`.
        not_known: Codes of the gates that could not judge it.
    """

    format: str = ""
    not_known: tuple[str, ...] = UNJUDGED


def find_series(root: Path, *, allow: Collection[str] = (), patient_from: str = "") -> Discovery:
    """Find everything below a folder that may be scored: DICOM series, and NIfTI and NRRD files.

    Args:
        root: A folder, a file or a zip archive, of which only DICOM is read.
        allow: Codes of gates that shall warn only.
        patient_from: Regular expression that finds the patient in a file's path below `root` (with ``/``,
            without ending): its first group, or all of it; "": `DEFAULT_PATIENT`.

    Returns:
        As `dicom.discover`; of image files `ImageSeries`.

    Raises:
        InputError: `patient_from` is no regular expression.
        InputUnreadable, NoDicomFound: See `dicom.discover`.
    """
    try:
        pattern = re.compile(patient_from or DEFAULT_PATIENT)
    except re.error as error:
        raise InputError(
            f"--patient-from {patient_from}: it is no regular expression ({error}); for example '^([^_]+)_'"
        ) from error
    return discover(root, allow=allow, from_images=partial(_series, Path(root), pattern))


def _series(
    root: Path, pattern: re.Pattern[str], paths: Sequence[Path], allow: Collection[str]
) -> Iterator[Series | UnreadableFile]:
    """What becomes of each image file."""
    found: dict[str, list[ImageSeries]] = defaultdict(list)
    with ThreadPoolExecutor() as pool:
        for one in pool.map(partial(_one_series, root, pattern, allow=allow), paths):
            if isinstance(one, UnreadableFile):
                yield one
            else:
                found[one.series_uid].append(one)
    for same in found.values():
        if len(same) == 1:
            yield same[0]
            continue
        for one in same:
            others = ", ".join(other.series_description for other in same if other is not one)
            reason = f"its content is that of {others}: which name is right is not known; leave one of them"
            yield UnreadableFile(path=one.slices[0].path, reason=reason)


def _one_series(
    root: Path, pattern: re.Pattern[str], path: Path, *, allow: Collection[str]
) -> ImageSeries | UnreadableFile:
    """What becomes of one image file. Never raises: what goes wrong is a reason."""
    below = Path(path.name) if path == root else path.relative_to(root)
    name = readable(below.with_name(without_ending(below.name)).as_posix())
    match = pattern.search(name)
    patient = "" if match is None else (match[1] if pattern.groups else match[0]) or ""
    try:
        if not scan_format(path.name):
            return UnreadableFile(path=path, reason=refused_format(path.name, read_head(path, 352)))
        if not patient:
            reason = f"its name does not say the patient as --patient-from {pattern.pattern} asks"
            return UnreadableFile(path=path, reason=reason)
        series = ImageSeries(
            series_uid=series_uid(path),
            patient_id=patient,
            series_description=readable(below.as_posix()),
            format=scan_format(path.name),
            slices=(SliceRef(path=path),),
        )
        header = read_scan_header(path)
    except InputUnreadable as error:
        return UnreadableFile(path=path, reason=str(error))
    except InputError as error:
        return replace(series, findings=(DOUBTFUL_HEADER.finding(str(error)),))
    grid = _rounded(header.geometry)
    series = replace(series, slices=_slices(path, grid), increment=grid.spacing[0])
    if grid.spacing == (1.0, 1.0, 1.0) and not any(header.geometry.origin):
        message = (
            "it has what programs write where nothing is known: voxels of 1 mm, the first at 0, 0, 0; the "
            "scan's own header was lost, convert it anew"
        )
        return replace(series, findings=(DOUBTFUL_HEADER.finding(message),))
    unit = "" if header.unit_stated else " and in which unit its lengths are (only mm make a body of it)"
    message = (
        f"a file of the format {series.format} does not say how the scan was taken{unit}; not known to "
        f"these gates: {', '.join(UNJUDGED)}; the distance of the slices stands for their thickness"
    )
    return replace(series, findings=(*check_grid(series, allow), NOT_KNOWN.finding(message)))


def series_uid(path: Path) -> str:
    """The series UID of an image file: ``2.25.`` and a UUID (PS3.5 B.2) made of its content.

    The same file has the same one wherever it lies, so that a run goes on after files were moved, and a file
    that was replaced is another scan.

    Raises:
        InputUnreadable: It cannot be read.
    """
    return f"2.25.{uuid.UUID(bytes=content_id(path)[:16], version=5).int}"


def _rounded(grid: Geometry) -> Geometry:
    """A grid whose spacings have six digits: as a 32-bit float, 1.2 mm are 1.20000005, and more than a gate
    lets through."""
    z, y, x = (float(f"{spacing:.6g}") for spacing in grid.spacing)
    return replace(grid, spacing=(z, y, x))


def _slices(path: Path, grid: Geometry) -> tuple[SliceRef, ...]:
    """The slices of an image as those of a DICOM series are: ordered along the normal, row × column."""
    along, column, row = grid.axes
    count, rows, columns = grid.shape
    places = grid.to_lps(np.array([(float(z), 0.0, 0.0) for z in range(count)]))
    slices = [
        SliceRef(
            path=path,
            frame=z,
            frames=count,
            position=(float(place[0]), float(place[1]), float(place[2])),
            orientation=(*row, *column),
            rows=rows,
            columns=columns,
            pixel_spacing=(grid.spacing[1], grid.spacing[2]),
        )
        for z, place in enumerate(places)
    ]
    return tuple(slices if np.cross(row, column) @ along > 0 else reversed(slices))


def read_image_series(series: ImageSeries) -> Reading:
    """Read the voxels of an image file, in its own order, and see that they are HU.

    Raises:
        SeriesRejected: ``not-hu``; ``blank-slices`` where slices show nothing; ``doubtful-header``.
        SeriesFailed: ``input-unreadable`` where the file has gone or was replaced, ``undecodable`` where it
            is damaged.
    """
    path = series.slices[0].path
    try:
        if series_uid(path) != series.series_uid:
            raise InputUnreadable("it was replaced since it was found; give the command again")
        header = read_scan_header(path)
    except InputUnreadable as error:
        raise SeriesFailed(f"{_name(path)}: {error}", code=error.code) from error
    except InputError as error:
        raise SeriesRejected(f"{_name(path)}: {error}", code=DOUBTFUL_HEADER.code) from error
    try:
        volume = read_scan(path, header)
    except InputUnreadable as error:
        raise SeriesFailed(f"{_name(path)}: {error}", code=error.code) from error
    except InputError as error:
        raise SeriesRejected(f"{_name(path)}: {error}", code=NOT_HU.code) from error
    _check_hu(volume)
    blank = [z for z, hu in enumerate(volume.hu) if shows_nothing(hu)]
    if blank:
        raise SeriesRejected(
            f"{len(blank)} of {len(volume.hu)} slices, the first with the index {blank[0]}, show nothing (a "
            "single value) and are as good as missing; cut them off at the ends, or convert the scan anew",
            code=BLANK_SLICES.code,
        )
    impossible = float(np.mean((volume.hu > MAX_CT_HU) | (volume.hu < MIN_CT_HU)))
    findings: tuple[Finding, ...] = ()
    if impossible >= IMPOSSIBLE_SHARE:
        text = f"{impossible:.2%} of the voxels lie outside {MIN_CT_HU} to {MAX_CT_HU} HU, which no CT does"
        findings = (HU_IMPOSSIBLE.finding(f"{text}: padding, or values stored wrongly"),)
    return Reading(volume=volume, slices=series.slices, findings=findings)


def _name(path: Path) -> str:
    return readable(path.name)


def _check_hu(volume: Volume) -> None:
    """Refuse values that cannot be those of a chest CT in HU.

    Raises:
        SeriesRejected: ``not-hu``.
    """
    lowest, highest = int(volume.hu.min()), int(volume.hu.max())
    if lowest >= 0 and highest <= 255:
        what = "a mask, a label map or a picture, and no CT"
    elif lowest > HIGHEST_AIR_HU:
        what = f"no air, which lies below {HIGHEST_AIR_HU} HU in every chest CT: they are no Hounsfield units"
    else:
        return
    raise SeriesRejected(f"its values go from {lowest} to {highest}: {what}", code=NOT_HU.code)
