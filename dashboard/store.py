"""What the viewer may see: the series of a results table, their CT where it lies, and what the run made."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..dicom.files import DERIVED, Upto, read_slice
from ..dicom.headers import quiet_pydicom, text, whole
from ..dicom.locate import SeriesLocator
from ..dicom.segmentation import SEGMENTATION_SOP_CLASSES
from ..dicom.series import SliceRef
from ..errors import InputError, InputUnreadable
from ..pipeline.results import series_folder
from ..system.inside import regular_inside
from .files import read_details
from .pixels import GONE
from .security import Refused, foreign
from .table import literal, no_space, table_of, typed

_COLUMNS = "series_uid, study_uid, patient_id, study_date, status, n_slices, folder"
_AT_ONCE = 5000
_KEPT = 64
"""Headers of SEG and SR kept in memory, a few kilobytes each."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A series of the run, as the results table has it.

    Attributes:
        folder: Its folder under the results, or None where it has none.
    """

    series_uid: str
    study_uid: str
    patient_id: str
    study_date: str
    status: str
    n_slices: int
    folder: Path | None


@dataclass(frozen=True, kw_only=True)
class StoredSeries:
    """A series that can be served.

    Attributes:
        row: The row of the CT: its own, or that of the CT it was made from.
        modality: ``"CT"``, ``"SEG"``, ``"SR"`` or what was found and rejected.
        instances: One entry per file, in order; several frames of one file are one entry.
        slices: The CT's slices in order, frames of one file each on their own; empty for what the run made.
    """

    row: Row
    series_uid: str
    modality: str
    instances: Mapping[str, SliceRef] = field(repr=False)
    slices: tuple[SliceRef, ...] = field(default=(), repr=False)


class DicomStore:
    """Finds DICOM by UID. Nothing that a request says becomes part of a path: UIDs are looked up.

    The table is kept in a private temporary database and headers are read when they are asked for, so memory
    does not grow with the number of series.
    """

    def __init__(self, results: Path, ct: Path | None, show_phi: bool = False) -> None:
        """Read the table.

        Args:
            results: Output folder of a run.
            ct: Folder with the CT that it was run on; None: only what the run made is served.
            show_phi: Whether names, birth dates and the like are served as they are.

        Raises:
            InputError: `results` holds no table.
            InputUnreadable: `ct` does not exist.
            DiskFull: The table's copy has no space in the folder for temporary files.
        """
        self.show_phi = show_phi
        self._results = results.resolve()
        self._locator = None if ct is None else SeriesLocator(ct)
        self._lock = threading.Lock()
        self._database = sqlite3.connect("", check_same_thread=False)
        self.made_from = lru_cache(maxsize=_KEPT)(self._made_from)
        temporary = Path(tempfile.gettempdir())  # where SQLite's is, too
        try:
            self._fill(table_of(results))
        except sqlite3.OperationalError as error:
            if "full" not in str(error):  # SQLITE_FULL
                raise
            raise no_space(temporary) from error

    def _fill(self, table: Path) -> None:
        import duckdb

        names = _COLUMNS.split(", ")
        self._database.execute(f"CREATE TABLE series ({', '.join(names)})")
        insert = f"INSERT INTO series VALUES ({', '.join('?' * len(names))})"
        # part by part: DuckDB has the whole answer in memory before the first row is fetched
        chosen = ", ".join(typed(name) for name in names)
        part = f"SELECT {chosen} FROM read_parquet({literal(str(table))}, file_row_number = true)"
        first = 0
        try:
            with duckdb.connect(config={"threads": 1}) as connection:
                while rows := connection.execute(
                    f"{part} WHERE file_row_number BETWEEN {first} AND {first + _AT_ONCE - 1} "
                    "ORDER BY file_row_number"
                ).fetchall():
                    self._database.executemany(insert, (row for row in rows if row[0] and row[1]))
                    first += _AT_ONCE
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"cannot read {table}: {reason}; give the output folder of 'deepcac2 run'"
            ) from error
        self._database.execute("CREATE INDEX by_series ON series (series_uid)")
        self._database.execute("CREATE INDEX by_study ON series (study_uid)")

    # The table

    def _rows(self, where: str, values: Sequence[Any], limit: int = -1, offset: int = 0) -> list[Row]:
        with self._lock:
            found = self._database.execute(
                f"SELECT {_COLUMNS} FROM series WHERE {where} ORDER BY rowid LIMIT ? OFFSET ?",
                [*values, limit, offset],
            ).fetchall()
        return [self._row(*row) for row in found]

    def _row(
        self,
        series_uid: str,
        study_uid: str,
        patient_id: str,
        study_date: str,
        status: str,
        n_slices: int,
        folder: str,
    ) -> Row:
        return Row(
            series_uid=series_uid,
            study_uid=study_uid,
            patient_id=patient_id,
            study_date=study_date,
            status=status,
            n_slices=n_slices or 0,
            folder=series_folder(self._results, folder or ""),
        )

    @property
    def count(self) -> int:
        """Number of series in the table."""
        with self._lock:
            found: int = self._database.execute("SELECT count(*) FROM series").fetchone()[0]
        return found

    def row(self, series_uid: str) -> Row | None:
        """The row of a series of the run."""
        return next(iter(self._rows("series_uid = ?", [series_uid], 1)), None)

    def study(self, study_uid: str) -> list[Row]:
        """The rows of a study."""
        return self._rows("study_uid = ?", [study_uid])

    def studies(
        self, where: Sequence[tuple[str, Sequence[str]]] = (), limit: int = -1, offset: int = 0
    ) -> list[list[Row]]:
        """The rows of the studies that match, study by study.

        Args:
            where: Conditions on a row, each with its values, such as ``("patient_id = ?", ["P1"])``. They
                come from the code, values from requests.
            limit, offset: Of studies.
        """
        condition = " AND ".join(f"({text})" for text, _ in where) or "1"
        values = [value for _, some in where for value in some]
        with self._lock:
            uids = self._database.execute(
                f"SELECT study_uid FROM series WHERE {condition} GROUP BY study_uid ORDER BY min(rowid) "
                "LIMIT ? OFFSET ?",
                [*values, limit, offset],
            ).fetchall()
        return [self.study(uid) for (uid,) in uids]

    def rows(self) -> Iterator[Row]:
        """All rows in order, some thousand at a time."""
        offset = 0
        while found := self._rows("1", [], _AT_ONCE, offset):
            yield from found
            offset += len(found)

    # The files

    @property
    def has_ct(self) -> bool:
        """Whether there is a folder with the CT."""
        return self._locator is not None

    def details(self, row: Row) -> dict[str, Any]:
        """The details JSON of a series, {} where there is none."""
        if row.folder is None:
            return {}
        try:
            return read_details(row.folder, self._results)
        except InputUnreadable:
            return {}

    def ct(self, row: Row) -> StoredSeries | None:
        """The images of a series of the run, or None where they are not under the folder of the CT.

        Raises:
            TimeoutError: They were not found yet; see `SeriesLocator.find`.
        """
        if self._locator is None:
            return None
        series = self._locator.find(row.series_uid, images=row.n_slices)
        if series is None or series.study_uid != row.study_uid:
            return None
        instances: dict[str, SliceRef] = {}
        for ref in (*series.slices, *series.left_out):
            instances.setdefault(ref.sop_instance_uid, ref)  # copies of an image: the first
        return StoredSeries(
            row=row,
            series_uid=row.series_uid,
            modality=series.modality,
            instances=instances,
            slices=series.slices,
        )

    def _made_from(self, row: Row) -> tuple[StoredSeries, ...]:
        """The SEG and SR that the run made from a series, as its ``details.json`` lists them."""
        names = [name for name in self.details(row).get("outputs") or () if name.endswith(".dcm")]
        return tuple(
            made
            for name in names
            if row.folder is not None and Path(name).name == name
            if (made := _made(row, row.folder / name, self._results)) is not None
        )

    def series(self, study_uid: str, series_uid: str) -> StoredSeries | None:
        """A series of a study: a CT of the run, or what the run made from one.

        Raises:
            TimeoutError: See `ct`.
        """
        rows = self.study(study_uid)
        own = next((row for row in rows if row.series_uid == series_uid), None)
        if own is not None:
            return self.ct(own)
        return next(
            (made for row in rows for made in self.made_from(row) if made.series_uid == series_uid), None
        )

    def everything(self, study_uid: str) -> list[StoredSeries]:
        """All series of a study that can be served: first the CT, then what the run made.

        Raises:
            TimeoutError: See `ct`.
        """
        rows = self.study(study_uid)
        images = [found for row in rows if (found := self.ct(row)) is not None]
        return [*images, *(made for row in rows for made in self.made_from(row))]

    def segmentation(self, series_uid: str) -> str | None:
        """SeriesInstanceUID of the SEG that the run made from a series, or None where it made none."""
        found = self.segmentation_of(series_uid)
        return None if found is None else found.series_uid

    def segmentation_of(self, series_uid: str) -> StoredSeries | None:
        """The SEG that the run made from a series, or None where it made none."""
        row = self.row(series_uid)
        made = () if row is None else self.made_from(row)
        return next((one for one in made if one.modality == "SEG"), None)


_TAGS = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
         "NumberOfFrames", "Rows", "Columns", "InstanceNumber"]  # fmt: skip


def _made(row: Row, path: Path, root: Path) -> StoredSeries | None:
    """A DICOM file of the run's, or None where it is none, lies elsewhere, or is not of this study."""
    try:
        with foreign(*GONE), quiet_pydicom():
            path = regular_inside(path, root)
            ds = read_slice(SliceRef(path=path), upto=Upto.HEADER, tags=_TAGS, limits=DERIVED)
    except Refused:
        return None
    if text(ds, "StudyInstanceUID") != row.study_uid:
        return None
    sop_class = text(ds, "SOPClassUID")
    ref = SliceRef(
        path=path,
        frames=whole(ds, "NumberOfFrames") or 1,
        sop_class_uid=sop_class,
        sop_instance_uid=text(ds, "SOPInstanceUID"),
        instance_number=whole(ds, "InstanceNumber"),
        rows=whole(ds, "Rows"),
        columns=whole(ds, "Columns"),
        transfer_syntax_uid=text(ds.file_meta, "TransferSyntaxUID"),
    )
    return StoredSeries(
        row=row,
        series_uid=text(ds, "SeriesInstanceUID"),
        modality="SEG" if sop_class in SEGMENTATION_SOP_CLASSES else text(ds, "Modality"),
        instances={ref.sop_instance_uid: ref},
    )
