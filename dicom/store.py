"""Series by the hundred thousand: headers on disk instead of in memory.

One slice's header facts are about a kilobyte of Python objects, 130,000 series of 150 slices twenty
gigabytes. `SeriesStore` keeps them, compressed, in a private temporary SQLite database, which SQLite holds
in memory while it is small, puts into the system's temporary folder (``TMPDIR``) when it grows, and removes
when it is closed, also after a kill.
"""

from __future__ import annotations

import pickle
import sqlite3
import zlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, overload

from .series import Series


def _packed(content: Any) -> bytes:
    return zlib.compress(pickle.dumps(content, protocol=5), level=1)


def _unpacked(data: bytes) -> Any:
    # Only what this process itself packed comes here: the database has no name that others could open.
    return pickle.loads(zlib.decompress(data))


class SeriesStore(Sequence[Series]):
    """Groups of images by series, and then series in order, on disk.

    First `collect` everything, then `put` each of `groups` as a series, then `sort`; from then on it is a
    sequence of `Series` of which one at a time is in memory.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE image (series TEXT, content BLOB)")
        self._database.execute("CREATE TABLE series (patient TEXT, study TEXT, uid TEXT, content BLOB)")
        self._order: list[int] = []

    def collect(self, series_uid: str, images: Sequence[Any]) -> None:
        """Add images to a group."""
        self._database.execute("INSERT INTO image VALUES (?, ?)", (series_uid, _packed(list(images))))

    def groups(self) -> Iterator[list[Any]]:
        """The images of each group, in the order collected."""
        self._database.execute("CREATE INDEX by_series ON image (series)")
        rows = self._database.execute("SELECT series, content FROM image ORDER BY series, rowid")
        current = None
        group: list[Any] = []
        for series, content in rows:
            if series != current and group:
                yield group
                group = []
            current = series
            group += _unpacked(content)
        if group:
            yield group

    def put(self, series: Series) -> None:
        """Add a series."""
        keys = series.patient_id, series.study_uid, series.series_uid
        self._database.execute("INSERT INTO series VALUES (?, ?, ?, ?)", (*keys, _packed(series)))

    def sort(self) -> None:
        """Forget the groups, and order the series by PatientID, StudyInstanceUID and SeriesInstanceUID."""
        self._database.execute("DROP TABLE image")
        rows = self._database.execute("SELECT patient, study, uid, rowid FROM series").fetchall()
        self._order = [row[3] for row in sorted(rows)]

    def keep(self, uids: Collection[str]) -> None:
        """Keep only the series with these SeriesInstanceUIDs, in order."""
        self._order = [i for i, uid in zip(self._order, self.uids(), strict=True) if uid in uids]

    def uids(self) -> list[str]:
        """The SeriesInstanceUIDs, in order."""
        rows = dict(self._database.execute("SELECT rowid, uid FROM series").fetchall())
        return [rows[i] for i in self._order]

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Series: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Series]: ...

    def __getitem__(self, index: int | slice) -> Series | Sequence[Series]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._database.execute("SELECT content FROM series WHERE rowid = ?", (self._order[index],))
        series: Series = _unpacked(row.fetchone()[0])
        return series
