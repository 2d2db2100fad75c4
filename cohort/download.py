"""The images of a cohort from the Imaging Data Commons (IDC), and the paper's selection made there.

Both need packages that nothing else needs: ``idc-index`` and ``google-cloud-bigquery``.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import DiskFull, InputError
from ..system.atomic import atomic_path, output_errors
from ..system.codec import from_plain
from ..system.hashing import sha256_of
from .idc import Tables, find_tables, stored
from .selection import NLST_SQL

log = logging.getLogger(__name__)

_AT_ONCE = 50
"""Series asked for in one call, after which what arrived is checked and noted; chosen: some 5 GB of NLST."""

JOURNAL = "downloaded.jsonl"
"""In the download's folder: a line for each series that arrived whole."""


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A series that is there, whole.

    Attributes:
        series_uid: SeriesInstanceUID.
        files, size: Number of its files, and their bytes.
        sha256: Of its files' names and sums, in the order of the names.
    """

    series_uid: str
    files: int
    size: int
    sha256: str


class Store:
    """Series of IDC, and a folder for them: `<PatientID>/<StudyInstanceUID>/<SeriesInstanceUID>`.

    Args:
        folder: Made when missing.
        uids: SeriesInstanceUIDs.
        tables: Of IDC; None: those that are installed.

    Attributes:
        known: What IDC says of each series.

    Raises:
        InputError: The package is missing, or IDC has no such series.
        OutputUnwritable: The folder cannot be made.
    """

    def __init__(self, folder: Path, uids: Sequence[str], *, tables: Tables | None = None) -> None:
        try:
            from idc_index import IDCClient
        except ImportError as error:
            raise InputError(
                "downloading needs the package idc-index: .venv/bin/pip install -e '.[download]'"
            ) from error
        self.folder, self.known = folder, stored(tables or find_tables(), uids)
        self._connect: Callable[[], Any] = IDCClient
        self._client: Any = None
        if absent := [uid for uid in uids if uid not in self.known]:
            raise InputError(
                f"{len(absent)} of {len(uids)} series are not in IDC's index ({absent[0]}); leave them out, "
                "or take the index that the table was selected from"
            )
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def fetch(self, uids: Sequence[str]) -> list[str]:
        """Fetch what some series lack, and note those that are whole then; the others are returned.

        Raises:
            InputError: IDC cannot be reached.
            DiskFull, OutputUnwritable: The journal cannot be written.
        """
        try:
            self._client = self._client or self._connect()
            self._client.download_from_selection(
                downloadDir=str(self.folder),
                seriesInstanceUID=list(uids),
                dirTemplate="%PatientID/%StudyInstanceUID/%SeriesInstanceUID",
                use_s5cmd_sync=True,
            )
        except Exception as error:  # of the package, of the network, of the programs that it starts
            raise InputError(
                f"the download from IDC broke off ({error}); the same command goes on"
            ) from error
        broken = []
        for uid in uids:
            one, there = self.known[uid], self.folder / self.known[uid].place
            if _measured(there) == (one.files, one.size):
                sums = _sum_of(there)
                _note(self.folder, Arrived(series_uid=uid, files=one.files, size=one.size, sha256=sums))
            else:
                broken.append(uid)
        return broken

    def remove(self, uid: str) -> None:
        """Remove the images of a series, and folders that are empty then."""
        place = self.folder / self.known[uid].place
        with output_errors(place):
            if place.exists():
                shutil.rmtree(place)
            with suppress(OSError):  # not empty
                for above in (place.parent, place.parent.parent):
                    above.rmdir()


def download(
    uids: Iterable[str],
    folder: Path,
    *,
    tables: Tables | None = None,
    verify: bool = False,
    watch: Callable[[int, int], None] | None = None,
) -> int:
    """Download series from IDC into a folder, `<PatientID>/<StudyInstanceUID>/<SeriesInstanceUID>`.

    A series counts as there when it has as many files, and bytes, as IDC's index says; then it is noted in
    `JOURNAL` with its sum, and not asked for again. A series that is not whole is asked for again, and only
    what it lacks comes.

    Args:
        uids: SeriesInstanceUIDs.
        folder: Made when missing.
        tables: Of IDC; None: those that are installed.
        verify: Read what is noted as there, too; what has another sum now is removed and fetched again.
        watch: Called with series that are there so far and in all.

    Returns:
        How many series were asked for.

    Raises:
        InputError: The package is missing, IDC has no such series or cannot be reached, or series are not
            there, or not whole, afterwards; the same again goes on.
        DiskFull: There is no room for what is missing.
        OutputUnwritable: The folder cannot be written.
    """
    wanted = sorted(set(uids))
    store = Store(folder, wanted, tables=tables)
    known = store.known
    noted = _read_journal(folder)
    missing = []
    for uid in wanted:
        size, files, there = known[uid].size, known[uid].files, folder / known[uid].place
        before = noted.get(uid)
        if (
            before is None
            or (before.files, before.size) != (files, size)
            or _measured(there) != (files, size)
        ):
            missing.append(uid)
        elif verify and _sum_of(there) != before.sha256:
            log.warning("%s has changed since it was downloaded and is fetched again", uid)
            shutil.rmtree(there)
            missing.append(uid)
    done = len(wanted) - len(missing)
    lacking = sum(
        known[uid].size - min(_measured(folder / known[uid].place)[1], known[uid].size) for uid in missing
    )
    if lacking > (free := shutil.disk_usage(folder).free):
        raise DiskFull(
            f"{lacking / 1e9:.1f} GB are missing and {folder} has room for {free / 1e9:.1f}; make room"
        )
    if watch is not None:
        watch(done, len(wanted))
    broken: list[str] = []
    for start in range(0, len(missing), _AT_ONCE):
        some = missing[start : start + _AT_ONCE]
        broken += store.fetch(some)
        done = len(wanted) - len(missing) + start + len(some) - len(broken)
        if watch is not None:
            watch(done, len(wanted))
    if broken:
        files, size = _measured(folder / known[broken[0]].place)
        one = known[broken[0]]
        raise InputError(
            f"{len(broken)} of {len(wanted)} series are not whole in {folder}: {broken[0]} has {files} files "
            f"of {size} bytes, not {one.files} of {one.size}; the same command asks for them again"
        )
    return len(missing)


def _measured(folder: Path) -> tuple[int, int]:
    """Number of the files of a series, and their bytes."""
    sizes = [path.stat().st_size for path in _files(folder)]
    return len(sizes), sum(sizes)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _sum_of(folder: Path) -> str:
    """See `Arrived.sha256`."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _read_journal(folder: Path) -> dict[str, Arrived]:
    """What is noted, by SeriesInstanceUID, the last line of each; a line cut short by a kill is none."""
    path, found = folder / JOURNAL, {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                one = from_plain(Arrived, json.loads(line), where=JOURNAL, error=InputError)
            except (ValueError, InputError):
                log.warning("%s has a line that is none, which is left out", path)
                continue
            found[one.series_uid] = one
    return found


def _note(folder: Path, arrived: Arrived) -> None:
    """Add a line; where the last one was cut short, begin a new one."""
    path = folder / JOURNAL
    with output_errors(path), path.open("ab") as file:
        if file.tell():
            with path.open("rb") as before:
                before.seek(-1, 2)
                if before.read(1) != b"\n":
                    file.write(b"\n")
        file.write(json.dumps(asdict(arrived)).encode() + b"\n")


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
