"""A case of a run by its SeriesInstanceUID, from the folders of the results and of the CT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..dicom.gates import check_headers
from ..dicom.locate import SeriesLocator
from ..errors import InputError
from ..pipeline.places import PARQUET
from ..pipeline.results import read_parquet, series_folder
from ..pipeline.run import read_details
from ..system.nearest import nearest
from .case import ReadCase, open_result


def open_case_of_run(results: Path, ct: Path, series_uid: str) -> ReadCase:
    """The case.

    Args:
        results: Output folder of a run.
        ct: Folder with its CT.
        series_uid: Of the CT.

    Raises:
        InputError: The results or the CT hold no such series, or see `case.open_result`.
    """
    known = {}
    row = None
    for one in read_parquet(results / PARQUET):
        known[one.series_uid] = one.status
        if one.series_uid == series_uid:
            row = one
    if row is None or not series_uid:
        raise InputError(f"{results} holds no series {series_uid}.{nearest(series_uid, list(known))}")
    folder = series_folder(results.resolve(), row.folder)
    series = SeriesLocator(ct).find(series_uid, images=row.n_slices, patience=3600.0)
    if series is None or folder is None:
        raise InputError(f"the CT of {series_uid} is not under {ct}; give the folder that the run was given")
    series = replace(series, findings=check_headers(series))
    return open_result(folder, series, read_details(folder), kvp=series.kvp)
