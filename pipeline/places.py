"""Where a run's files lie in its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ..dicom import safe_name

CSV, PARQUET, XLSX = "results.csv", "results.parquet", "results.xlsx"
"""The table."""
DICTIONARY = "data_dictionary.csv"
"""What its columns mean."""
RUN_FILE = "run.json"
DETAILS_NAME = "details.json"
"""In the folder of a series: by it a run knows again what it has done."""

_OWN_NAMES = ("logs", CSV, PARQUET, XLSX, DICTIONARY, RUN_FILE, "deepcac.report.json")
"""What a run itself writes into the output folder; no patient may take these names."""


class Named(Protocol):
    """What files of a series are named after: a `Series`, or its row of the table."""

    @property
    def patient_id(self) -> str:
        """PatientID."""

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID."""


def patient_folder(patient_id: str) -> str:
    """The folder name of a patient: escaped, and never one that the run itself needs."""
    name = safe_name(patient_id)
    if name.lower() in _OWN_NAMES:
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name


def series_folder(series: Named) -> Path:
    """``<PatientID>/<SeriesInstanceUID>``, escaped."""
    return Path(patient_folder(series.patient_id)) / safe_name(series.series_uid)
