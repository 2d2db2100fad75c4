"""What the viewer may see: the series of a results table, their CT where it lies, and what the run made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..dicom.files import DERIVED, Upto, read_slice
from ..dicom.headers import quiet_pydicom, text, whole
from ..dicom.locate import SeriesLocator
from ..dicom.seg.codes import SEGMENTATION_SOP_CLASSES
from ..dicom.series import Series, SliceRef
from ..errors import InputUnreadable
from ..pipeline.places import DETAILS_NAME
from ..pipeline.results import series_folder
from ..system.inside import regular_inside
from .files import read_details
from .pixels import GONE
from .security import Refused, foreign
from .table import MOST_ROWS, Results, literal, literals

_KEPT = 64
"""Rows, studies, and headers of SEG and SR, kept in memory, a few kilobytes each."""


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

    Headers are read when they are asked for, so memory does not grow with the number of series.
    """

    def __init__(self, table: Results, ct: Path | None, show_phi: bool = False) -> None:
        """Look for the CT.

        Args:
            table: Of a run.
            ct: Folder with the CT that it was run on; None: only what the run made is served.
            show_phi: Whether names, birth dates and the like are served as they are.

        Raises:
            InputUnreadable: `ct` does not exist.
        """
        self.show_phi = show_phi
        self._table = table
        self._results = table.folder.resolve()
        self._locator = None if ct is None else SeriesLocator(ct)
        self.made_from = lru_cache(maxsize=_KEPT)(self._made_from)
        self.row = lru_cache(maxsize=_KEPT)(self._row)
        self.study = lru_cache(maxsize=_KEPT)(self._study)

    # The table

    def _rows(self, where: str, part: str = "") -> tuple[Row, ...]:
        found = self._table.dicts(
            f"SELECT {', '.join(f.name for f in fields(Row))} FROM everything "
            f"WHERE series_uid <> '' AND study_uid <> '' AND {where} ORDER BY rowid {part}"
        )
        for row in found:
            row["n_slices"] = row["n_slices"] or 0
            row["folder"] = series_folder(self._results, row["folder"])
        return tuple(Row(**row) for row in found)

    @property
    def count(self) -> int:
        """Number of series in the table."""
        return int(self._table.all("SELECT count(*) FROM everything WHERE series_uid <> ''")[0][0])

    def _row(self, series_uid: str) -> Row | None:
        """The row of a series of the run."""
        return next(iter(self._rows(f"series_uid = {literal(series_uid)}", "LIMIT 1")), None)

    def _study(self, study_uid: str) -> tuple[Row, ...]:
        """The rows of a study."""
        return self._rows(f"study_uid = {literal(study_uid)}")

    def studies(self, where: str = "true", limit: int = MOST_ROWS, offset: int = 0) -> list[list[Row]]:
        """The rows of the studies that match, study by study.

        Args:
            where: Condition on a row, in SQL; what a request says stands in it as `table.literal`.
            limit, offset: Of studies.
        """
        uids = self._table.all(
            f"SELECT study_uid FROM everything WHERE series_uid <> '' AND study_uid <> '' AND {where} "
            f"GROUP BY study_uid ORDER BY min(rowid) LIMIT {limit} OFFSET {offset}"
        )
        found: dict[str, list[Row]] = {uid: [] for (uid,) in uids}
        for row in self._rows(f"study_uid IN ({literals(found)})"):
            found[row.study_uid].append(row)
        return list(found.values())

    def rows(self) -> tuple[Row, ...]:
        """All rows in order."""
        return self._rows("true")

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
            return read_details(row.folder / DETAILS_NAME, self._results)
        except InputUnreadable:
            return {}

    def whole_series(self, row: Row) -> Series | None:
        """A CT with all that its headers say, or None where it is not under the folder of the CT.

        Raises:
            TimeoutError: As of `ct`.
        """
        if self._locator is None:
            return None
        series = self._locator.find(row.series_uid, images=row.n_slices)
        return None if series is None or series.study_uid != row.study_uid else series

    def ct(self, row: Row) -> StoredSeries | None:
        """The images of a series of the run, or None where they are not under the folder of the CT.

        Raises:
            TimeoutError: They were not found yet; see `SeriesLocator.find`.
        """
        series = self.whole_series(row)
        if series is None:
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

    def report(self, series_uid: str) -> str | None:
        """SeriesInstanceUID of the SR that the run made from a series, or None where it made none."""
        found = self._made_of(series_uid, "SR")
        return None if found is None else found.series_uid

    def segmentation_of(self, series_uid: str) -> StoredSeries | None:
        """The SEG that the run made from a series, or None where it made none."""
        return self._made_of(series_uid, "SEG")

    def _made_of(self, series_uid: str, modality: str) -> StoredSeries | None:
        row = self.row(series_uid)
        made = () if row is None else self.made_from(row)
        return next((one for one in made if one.modality == modality), None)


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
