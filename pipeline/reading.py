"""The steps that find and read the series."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom import read_series
from ..dicom.gates import Gate, register_gate
from ..errors import SeriesRejected
from .case import Case
from .facts import CT, GEOMETRY
from .image_series import ImageSeries, read_image_series
from .step import Step, register


@dataclass(frozen=True, kw_only=True)
class DicomImporterOptions:
    """Find the series. The first four are mhubio's own keys.

    Attributes:
        source_dir, import_dir, sort_data, meta: Used by mhubio's runner only; in memory the folder comes
            from the command line and no file is copied.
        allow: Codes of quality gates that shall warn instead of reject (``deepcac2 inspect --gates``).
    """

    source_dir: str = "input_data"
    import_dir: str = "sorted_data"
    sort_data: bool = True
    meta: dict[str, Any] = field(default_factory=lambda: {"mod": "ct"})
    allow: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class NiftiConverterOptions:
    """Read the pixels. All are mhubio's own keys, used by mhubio's runner only.

    In memory the CT stays in memory; ``--keep nifti`` writes it.
    """

    in_datas: str = "dicom:mod=ct"
    engine: str = "deepcac2"
    allow_multi_input: bool = False
    bundle_name: str = "nifti"
    converted_file_name: str = "[filename].nii.gz"
    overwrite_existing_file: bool = False


def check_headers(case: Case) -> Case:
    """What the header gates found; a fatal finding rejects the case."""
    return case.noted(*case.series.findings)


HU_CLIPPED = register_gate(
    Gate(
        code="hu-clipped",
        sentence="All that is denser than some limit has the same value: it was cut off. Below 400 HU the "
        "series is rejected, for the score weighs calcium up to there; above there is a warning.",
    )
)
WEIGHED_HU = 400
"""Calcium weighs more the denser it is up to this (Agatston et al., J Am Coll Cardiol 1990;15:827)."""
DENSEST_HU = 2000
"""Scanners cut off, too, at 3071 (12 bits) or above: a limit from here on is one of theirs, at metal."""
AT_LIMIT = 200
"""Voxels that have the largest value of a scan which is cut off. Our own limit: bone makes thousands; of 11
public scans some were cut off by the scanner, and the others had one."""


def cut_off(hu: npt.NDArray[np.int16]) -> int | None:
    """The value at which a scan was cut off, HU; None: it was not.

    Args:
        hu: int16 (z, y, x).
    """
    largest = int(hu.max())
    if largest >= DENSEST_HU or np.count_nonzero(hu == largest) < AT_LIMIT:
        return None
    return largest


def build_volume(case: Case) -> Case:
    """Read the pixels: adds the CT and its grid.

    Raises:
        SeriesRejected, SeriesFailed: See `dicom.read_series` and `image_series.read_image_series`; or all
            that is denser than a limit below `WEIGHED_HU` was cut off.
    """
    series = case.series
    reading = read_image_series(series) if isinstance(series, ImageSeries) else read_series(series)
    series = replace(series, slices=reading.slices)
    case = replace(case, series=series).add(CT, reading.volume).add(GEOMETRY, reading.volume.geometry)
    if (limit := cut_off(reading.volume.hu)) is not None:
        text = f"nothing is above {limit} HU, and much has just that: denser values were cut off"
        if limit < WEIGHED_HU:
            raise SeriesRejected(f"{text}; take the scan as it was", code=HU_CLIPPED.code)
        case = case.noted(HU_CLIPPED.finding(f"{text}; metal cannot be told from calcium", fatal=False))
    return case.noted(*reading.findings)


IMPORTER = register(
    Step(
        module="DicomImporter",
        options=DicomImporterOptions,
        phase="read",
        build=lambda options, context: check_headers,
    )
)

CONVERTER = register(
    Step(
        module="NiftiConverter",
        options=NiftiConverterOptions,
        phase="read",
        build=lambda options, context: build_volume,
        writes=(CT, GEOMETRY),
        after=("DicomImporter",),
    )
)
