"""The images of a cohort from the Imaging Data Commons (IDC), and the paper's selection made there.

Both need packages that nothing else needs: ``idc-index`` and ``google-cloud-bigquery``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..dicom import discover
from ..errors import InputError
from ..system.atomic import atomic_path
from .selection import NLST_SQL

_AT_ONCE = 500
"""Series asked for in one call; chosen."""


def download(uids: list[str], folder: Path, *, watch: Callable[[int, int], None] | None = None) -> None:
    """Download series from IDC into a folder, `<PatientID>/<StudyInstanceUID>/<SeriesInstanceUID>`.

    What is there already is not fetched again.

    Args:
        uids: SeriesInstanceUIDs.
        folder: Made when missing.
        watch: Called with series asked for so far and in all.

    Raises:
        InputError: The package is missing, IDC cannot be reached, or series are not there afterwards.
    """
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise InputError(
            "downloading needs the package idc-index: .venv/bin/pip install -e '.[download]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    try:
        client = IDCClient()
        for start in range(0, len(uids), _AT_ONCE):
            client.download_from_selection(
                downloadDir=str(folder),
                seriesInstanceUID=uids[start : start + _AT_ONCE],
                dirTemplate="%PatientID/%StudyInstanceUID/%SeriesInstanceUID",
                use_s5cmd_sync=True,
            )
            if watch is not None:
                watch(min(start + _AT_ONCE, len(uids)), len(uids))
    except Exception as error:  # of the package, of the network, of the programs that it starts
        raise InputError(f"the download from IDC broke off ({error}); the same command goes on") from error
    missing = sorted(set(uids) - set(discover(folder).uids))
    if missing:
        raise InputError(
            f"{len(missing)} of {len(uids)} series are not in {folder} ({missing[0]}); IDC may not have them"
        )


def query(out: Path, *, client: Any = None) -> int:
    """Run `nlst.sql` in BigQuery, write its table, and return the number of rows.

    Args:
        out: CSV file, as `selection.select` writes it.
        client: A ``google.cloud.bigquery.Client``; by default that of the environment's account.

    Raises:
        InputError: The package is missing, or the query fails.
        DiskFull, OutputUnwritable: The table cannot be written.
    """
    if client is None:
        try:
            from google.cloud import bigquery
        except ImportError as error:
            raise InputError(
                "the query needs the package google-cloud-bigquery: .venv/bin/pip install -e '.[bigquery]'"
            ) from error
        client = bigquery.Client()
    try:
        rows = client.query(NLST_SQL.read_text(encoding="utf-8")).result()
        names = [field.name for field in rows.schema]
    except Exception as error:  # the package has its own for each way in which a query can fail
        raise InputError(f"BigQuery did not run the query ({error})") from error
    count = 0
    with atomic_path(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_text(row[name]) for name in names])
            count += 1
    return count


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value
