"""The header index: one Parquet row for each series of a folder, with what selections ask about."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..dicom import Discovery, Series, readable
from ..dicom.series import distinct_positions, slice_positions
from ..errors import OutputUnwritable
from ..system.atomic import atomic_path

COLUMNS: dict[str, str] = {
    "patient_id": "string", "study_uid": "string", "series_uid": "string", "modality": "string",
    "study_date": "string", "time_point": "string", "series_description": "string", "manufacturer": "string",
    "model_name": "string", "kernel": "string", "kvp": "double", "image_type": "string", "contrast": "string",
    "n_images": "int64", "n_localizers": "int64", "n_positions": "int64", "thickness_min": "double",
    "thickness_max": "double", "increment": "double", "n_sizes": "int64", "n_spacings": "int64",
    "n_orientations": "int64", "rows": "int64", "columns": "int64", "pixel_spacing": "double",
    "code": "string", "folder": "string",
}  # fmt: skip
"""Column to Arrow type. ``n_images`` counts slices, ``n_localizers`` the images left out; ``n_positions``
slices at different places (0.02 mm), 0 where they do not say; ``n_sizes``, ``n_spacings`` and
``n_orientations`` different values; ``code`` is the quality gate that would reject the series, "" for none;
lengths are mm."""

_AT_ONCE = 5000


def index_row(series: Series) -> dict[str, Any]:
    """The row of one series; see `COLUMNS`."""
    images = series.slices
    thickness = [s.slice_thickness for s in images if s.slice_thickness is not None]
    first = images[0]
    complete, positions = len(thickness) == len(images), slice_positions(images)
    return {
        **{name: getattr(series, name) for name in COLUMNS if hasattr(series, name)},
        "image_type": "\\".join(first.image_type),
        "contrast": series.contrast_agent or series.contrast_route,
        "n_images": len(images),
        "n_localizers": len(series.left_out),
        "n_positions": 0 if positions is None else len(distinct_positions(positions)),
        "thickness_min": min(thickness) if complete else None,
        "thickness_max": max(thickness) if complete else None,
        "n_sizes": len({(s.rows, s.columns) for s in images}),
        "n_spacings": len({s.pixel_spacing for s in images}),
        "n_orientations": len({s.orientation for s in images}),
        "rows": first.rows,
        "columns": first.columns,
        "pixel_spacing": None if first.pixel_spacing is None else first.pixel_spacing[0],
        "code": "" if series.rejection is None else series.rejection.code,
        "folder": readable(first.path.parent),
    }


def write_index(path: Path, discovery: Discovery) -> int:
    """Write the index of all series found, whole or not at all; returns how many there are.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    types = {"string": pa.string(), "double": pa.float64(), "int64": pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    rows: Iterator[dict[str, Any]] = map(index_row, discovery.series)
    count = 0
    try:
        with (
            atomic_path(path) as temporary,
            temporary.open("wb") as file,
            parquet.ParquetWriter(file, schema) as writer,
        ):
            while batch := list(islice(rows, _AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                count += len(batch)
    except pa.ArrowException as error:
        raise OutputUnwritable(f"cannot write {path}: {error}") from error
    return count
