"""`Series`: what the headers say about one DICOM series; nothing of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..system.names import readable

SAME_POSITION_MM = 0.02
"""Slices closer than this along the normal lie at one position: ImagePositionPatient is usually written to
0.01 mm or finer, and no CT has slices 0.02 mm apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceRef:
    """One image of a series: a file, or one frame of an enhanced multi-frame file.

    Attributes:
        path: The file. For a member of a zip archive, the archive itself.
        member: Name inside the zip archive, or None for a plain file.
        frame: Zero-based frame number of an enhanced multi-frame file, or None.
        frames: Number of frames in the file; more than 1 with ``frame`` None means that the file's
            functional groups do not say where each frame lies.
        sop_class_uid, sop_instance_uid: Of the file.
        instance_number: InstanceNumber (0020,0013), or None.
        position: ImagePositionPatient, LPS mm (x, y, z), or None where absent.
        orientation: ImageOrientationPatient, six cosines (along a row, along a column), or None.
        rows, columns: Matrix size, or None where absent.
        pixel_spacing: (row spacing, column spacing) mm as in the header, or None.
        slice_thickness: SliceThickness mm, or None.
        image_type: ImageType values, e.g. ("ORIGINAL", "PRIMARY", "AXIAL").
        transfer_syntax_uid: Of the file.
    """

    path: Path
    member: str | None = None
    frame: int | None = None
    frames: int = 1
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    instance_number: int | None = None
    position: tuple[float, float, float] | None = None
    orientation: tuple[float, float, float, float, float, float] | None = None
    rows: int | None = None
    columns: int | None = None
    pixel_spacing: tuple[float, float] | None = None
    slice_thickness: float | None = None
    image_type: tuple[str, ...] = ()
    transfer_syntax_uid: str = ""

    @property
    def file_name(self) -> str:
        """The file's own name, without folders, for messages."""
        return readable(self.member or self.path.name).rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a quality gate had to say about one series.

    Attributes:
        code: The gate's reason code, e.g. ``"too-thick"``.
        message: One sentence for the user, with the numbers of this series.
        fatal: True: the series is rejected. False: a warning that travels with the result.
        allowed: It would have rejected the series, had the user not allowed it.
        caution: A warning that must stand beside the result wherever that is shown.
    """

    code: str
    message: str
    fatal: bool
    allowed: bool = False
    caution: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """One DICOM series as discovered, slices ordered along the slice normal where positions allow it.

    Strings come from the file as they are ("" where absent): never use them in a path unescaped
    (see `safe_name`).

    Attributes:
        slices: The images, ordered by position along the slice normal (index 0 at the smallest), else by
            InstanceNumber. Slices at one position are all here; `read_series` compares their pixels.
        left_out: What is in the series and no slice of it: localizers, screen captures, objects that are no
            CT (a structure set, a report), and copies cut off in their header beside the whole image.
        mixed_identity: Its images name more than one patient or study.
        kernel, kvp: Of all slices; "" and None where they differ.
        kernels, kvps: The different values where there are several, else empty.
        contrast_agent, contrast_route: All that names an agent or a route in the image that names the
            gravest (see `contrast_kind`), several values joined by backslashes.
        contrast_volume_ml: ContrastBolusVolume, else ContrastBolusTotalDose, of that image.
        frames_of_reference: How many different FrameOfReferenceUIDs the slices name.
        patient_positions: The different values of PatientPosition.
        acquired: AcquisitionDate and AcquisitionTime of the first and the last slice taken (YYYYMMDD, or
            YYYYMMDDHHMMSS), one value where they are the same.
        spectral: What says that the images were computed for an energy or a material, "" for none.
        lossy: Whether an image was compressed with loss.
        time_point: ClinicalTrialTimePointID, such as NLST's "T0".
        patient_age: At the scan, completed years, or None; no_age then says why (see `patient.age_at`).
        patient_sex: "M" or "F", else "".
        increment: Distance of neighbouring slice positions along the normal, mm (see `increment_of`),
            or None.
        findings: What the header gates found, fatal ones first.
    """

    series_uid: str
    study_uid: str = ""
    patient_id: str = ""
    modality: str = ""
    series_description: str = ""
    study_date: str = ""
    time_point: str = ""
    manufacturer: str = ""
    model_name: str = ""
    kernel: str = ""
    kvp: float | None = None
    slice_thickness: float | None = None
    contrast_agent: str = ""
    contrast_route: str = ""
    contrast_volume_ml: float | None = None
    kernels: tuple[str, ...] = ()
    kvps: tuple[float, ...] = ()
    frames_of_reference: int = 0
    patient_positions: tuple[str, ...] = ()
    acquired: tuple[str, ...] = ()
    spectral: str = ""
    lossy: bool = False
    gantry_tilt: float | None = None
    increment: float | None = None
    mixed_identity: bool = False
    patient_age: int | None = None
    no_age: str = ""
    patient_sex: str = ""
    slices: tuple[SliceRef, ...] = field(default=(), repr=False)
    left_out: tuple[SliceRef, ...] = field(default=(), repr=False)
    findings: tuple[Finding, ...] = ()

    @property
    def rejection(self) -> Finding | None:
        """The first fatal finding, or None when the series may go on."""
        return next((f for f in self.findings if f.fatal), None)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that do not reject the series."""
        return tuple(f for f in self.findings if not f.fatal)


def slice_normal(orientation: Sequence[float] | None) -> npt.NDArray[np.float64] | None:
    """Unit normal (3,) of a slice: row direction × column direction, LPS.

    Args:
        orientation: ImageOrientationPatient, six cosines.

    Returns:
        The normal, or None where the cosines are absent or not two unit vectors at right angles
        (to 1 %; DICOM PS3.3 C.7.6.2.1.1 demands it, and files with zeros in them exist).
    """
    return None if orientation is None or len(orientation) != 6 else _normal_of(tuple(orientation))


@lru_cache(maxsize=256)
def _normal_of(orientation: tuple[float, ...]) -> npt.NDArray[np.float64] | None:
    """`slice_normal` of one of the few orientations of a series, not to be written to."""
    row, column = np.asarray(orientation[:3], dtype=np.float64), np.asarray(orientation[3:], dtype=np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not all(0.99 < length < 1.01 for length in lengths) or abs(row @ column) > 0.01:
        return None
    normal = np.cross(row, column)
    unit: npt.NDArray[np.float64] = normal / np.linalg.norm(normal)
    unit.setflags(write=False)
    return unit


def slice_positions(slices: Sequence[SliceRef]) -> npt.NDArray[np.float64] | None:
    """Positions (n,) along the first slice's normal, mm, in the order given.

    Returns:
        None where a slice has no position or the first has no usable orientation.
    """
    normal = slice_normal(slices[0].orientation) if slices else None
    points = [s.position for s in slices]
    if normal is None or None in points:
        return None
    projected: npt.NDArray[np.float64] = np.asarray(points, dtype=np.float64) @ normal
    return projected


def distinct_positions(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sorted positions, mm, with those less than `SAME_POSITION_MM` after their predecessor left out."""
    ordered = np.sort(positions)
    kept: npt.NDArray[np.float64] = ordered[np.diff(ordered, prepend=-np.inf) >= SAME_POSITION_MM]
    return kept


def increment_of(positions: npt.NDArray[np.float64]) -> float | None:
    """Distance of neighbouring slices, mm: the mean of the gaps within a quarter of the median gap.

    For an even stack this is (last − first) / (n − 1), which unlike the median does not suffer from
    positions rounded to 0.1 mm; a few missing slices do not move it.

    Args:
        positions: Positions along the normal, mm, any order.

    Returns:
        None with fewer than two distinct positions.
    """
    gaps = np.diff(distinct_positions(positions))
    if not len(gaps):
        return None
    median = np.median(gaps)
    near = gaps[np.abs(gaps - median) <= 0.25 * median]
    return float(near.mean() if len(near) else median)
