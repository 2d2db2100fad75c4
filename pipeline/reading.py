"""The steps that find and read the series."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..dicom import read_series
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


def build_volume(case: Case) -> Case:
    """Read the pixels: adds the CT and its grid.

    Raises:
        SeriesRejected, SeriesFailed: See `dicom.read_series` and `image_series.read_image_series`.
    """
    series = case.series
    reading = read_image_series(series) if isinstance(series, ImageSeries) else read_series(series)
    series = replace(series, slices=reading.slices)
    case = replace(case, series=series).add(CT, reading.volume).add(GEOMETRY, reading.volume.geometry)
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
