"""Series of a cohort that come while others are scored, and go when they are: 11 TB through a small disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..dicom import Series, discover_within
from ..dicom.gates import transfer_incomplete
from ..errors import DiskFull, InputError
from .download import Store

log = logging.getLogger(__name__)

_PORTIONS = 3
"""Portions that are on the disk at once: one of which the last series are scored, the next one, and one that
comes."""
_MOST = 200
"""Series of a portion, however small they are: what is there should not wait for long. Chosen."""


class Arriving:
    """The series of a store, fetched portion by portion, each portion while the one before it is scored.

    Args:
        store: Where they are, and where they go.
        room: Bytes that they may take on the disk together. A single series of more than a third of that
            is fetched all the same, by itself.
        allow: Overridable gates that do not reject.

    Attributes:
        broken: SeriesInstanceUIDs of those that did not arrive whole.
    """

    def __init__(self, store: Store, *, room: float, allow: frozenset[str] = frozenset()) -> None:
        if room <= 0:
            raise InputError("--room: a number of gigabytes above 0")
        self.broken: list[str] = []
        self._store, self._room, self._allow = store, room, allow

    def named(self, uid: str) -> Series:
        """A series of which nothing is known but where it goes."""
        patient, study, _ = self._store.known[uid].place.parts
        return Series(series_uid=uid, study_uid=study, patient_id=patient)

    def series(self, uids: Sequence[str]) -> Iterator[Series]:
        """Fetch series, and give them as they are found in their files.

        Those that did not come whole are left out, see `broken`.

        Raises:
            InputError: IDC cannot be reached.
            DiskFull, OutputUnwritable: The folder cannot be written.
        """
        portions = self._portions(uids)
        needed = min(self._room, sum(self._store.known[uid].size for uid in uids))
        if needed > (free := shutil.disk_usage(self._store.folder).free):
            raise DiskFull(
                f"--room: {self._store.folder} has room for {free / 1e9:.1f} GB, not for {needed / 1e9:.1f}; "
                "make room, or give it less"
            )
        pool = ThreadPoolExecutor(1, thread_name_prefix="download")
        try:
            coming: Future[list[str]] | None = None
            for i, portion in enumerate(portions):
                broken = (coming or pool.submit(self._store.fetch, portion)).result()
                coming = None
                if i + 1 < len(portions):
                    coming = pool.submit(self._store.fetch, portions[i + 1])
                self.broken += broken
                for uid in broken:
                    log.warning("series %s: it did not come whole", uid)
                yield from (self._found(uid) for uid in portion if uid not in broken)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def settled(self, uid: str) -> None:
        """Remove the images of a series that has its row."""
        self._store.remove(uid)

    def _portions(self, uids: Sequence[str]) -> list[list[str]]:
        """Neighbours, each portion within its part of the room."""
        out: list[list[str]] = []
        held, most = 0, self._room / _PORTIONS
        for uid in uids:
            size = self._store.known[uid].size
            if not out or held + size > most or len(out[-1]) == _MOST:
                out.append([])
                held = 0
            out[-1].append(uid)
            held += size
        return out

    def _found(self, uid: str) -> Series:
        place = self._store.folder / self._store.known[uid].place
        found = discover_within(place, allow=self._allow)
        series = found.find(uid)
        if series is None:
            said = "no image of the series that was asked for is in what came"
            return transfer_incomplete(self.named(uid), said)
        if found.unreadable:
            said = f"{len(found.unreadable)} of its files cannot be read"
            return transfer_incomplete(series, said, allow=self._allow)
        return series
