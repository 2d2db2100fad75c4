"""Scans of which there are no results as a table, so that they can be read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..dicom import discover
from ..pipeline.case import Case
from ..pipeline.places import PARQUET
from ..pipeline.reading import check_headers
from ..pipeline.results import result_row, write_parquet
from .review import UNSCORED


@contextmanager
def table_of_scans(ct: Path) -> Iterator[Path]:
    """A folder with a table like that of a run, a row a series: unscored, or rejected by a gate of headers.

    It is private and removed at the end.

    Args:
        ct: Folder with the scans.

    Raises:
        InputError: There is no DICOM.
    """
    rows = [result_row(check_headers(Case(series=series))) for series in discover(ct).series]
    with tempfile.TemporaryDirectory(prefix="deepcac2-scans-") as scratch:
        folder = Path(scratch) / (ct.resolve().name or "scans")
        folder.mkdir()
        write_parquet(
            folder / PARQUET,
            (replace(row, status=UNSCORED) if row.status == "scored" else row for row in rows),
        )
        yield folder
