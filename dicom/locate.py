"""Find the images of one series under a folder, reading as little as possible.

Archives mostly keep each series in a folder of its own. So first one file of every folder is read, and of the
folder that fits all. Only where images are then missing is every file's header read, once.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ..errors import InputUnreadable
from .discovery import files_under, places_in, series_among
from .series import Series

logger = logging.getLogger(__name__)

_TRIED = 4
"""Files of a folder that are looked into for a first image: licences and notes may come before. Chosen."""
_BATCH = 256
"""Folders or files handed to the threads at once; what was found is then known to those who wait."""
_KEPT = 8
"""Series kept in memory: about a kilobyte a slice."""


class SeriesLocator:
    """Where the series under a folder lie; may be asked by several threads at once.

    The search goes on in threads of its own, begins with the first question, and ends with the process. What
    it found is the folder of each series, in a private temporary database (see `store`), so memory stays flat
    for any number of series.
    """

    def __init__(self, root: Path) -> None:
        """Look for series under `root`.

        Raises:
            InputUnreadable: It does not exist.
        """
        if not root.exists():
            raise InputUnreadable(f"{root} does not exist; give the folder that holds the CT")
        self._root = root
        self._database = sqlite3.connect("", check_same_thread=False)
        self._database.execute(
            "CREATE TABLE place (uid TEXT, path BLOB, PRIMARY KEY (uid, path)) WITHOUT ROWID"
        )
        self._changed = threading.Condition()
        self._steps: list[Callable[[], None]] = [self._first_of_each_folder, self._every_file]
        self._running = False
        self._cache: OrderedDict[str, Series] = OrderedDict()

    def find(self, series_uid: str, *, images: int = 1, patience: float = 30.0) -> Series | None:
        """The series with this SeriesInstanceUID, slices ordered, or None where it is not under the folder.

        Args:
            series_uid: Looked up, never made part of a path.
            images: Slices that it should have: while fewer are found, the search goes on.
            patience: Seconds to wait for the search.

        Raises:
            TimeoutError: The search had not come that far; it goes on, so ask again.
        """
        with self._changed:
            if series_uid in self._cache:
                self._cache.move_to_end(series_uid)
                return self._cache[series_uid]
        until = time.monotonic() + patience
        seen: list[Path] = []
        found: Series | None = None
        while True:
            with self._changed:
                places, finished = self._places(series_uid), not self._steps
            if places != seen:
                found, seen = series_among(_files(places), series_uid), places
            if finished or (found is not None and len(found.slices) >= images):
                return self._keep(series_uid, found)
            with self._changed:
                self._go_on(needed=self._places(series_uid) == seen)
                if self._places(series_uid) == seen and self._steps:
                    left = until - time.monotonic()
                    if left <= 0 or not self._changed.wait(left):
                        raise TimeoutError(f"still looking for the series under {self._root}")

    def _places(self, series_uid: str) -> list[Path]:
        rows = self._database.execute("SELECT path FROM place WHERE uid = ? ORDER BY path", (series_uid,))
        return [Path(os.fsdecode(row[0])) for row in rows]

    def _keep(self, series_uid: str, series: Series | None) -> Series | None:
        if series is not None:
            with self._changed:
                self._cache[series_uid] = series
                while len(self._cache) > _KEPT:
                    self._cache.popitem(last=False)
        return series

    def _go_on(self, *, needed: bool) -> None:
        """Start the next step of the search, if none is running and someone needs it."""
        if needed and self._steps and not self._running:
            self._running = True
            threading.Thread(target=self._run, args=(self._steps[0],), daemon=True).start()

    def _run(self, step: Callable[[], None]) -> None:
        started = time.monotonic()
        try:
            step()
        finally:
            with self._changed:
                self._steps.remove(step)
                self._running = False
                self._changed.notify_all()
        logger.info("%s: %.1f s", step.__name__.strip("_"), time.monotonic() - started)

    def _first_of_each_folder(self) -> None:
        """Note for every folder the series of its first image. Zip archives wait for `_every_file`."""
        folders = (
            [p for p in islice(paths, _TRIED) if p.suffix.lower() != ".zip"]
            for _, paths in groupby(files_under(self._root), key=lambda path: path.parent)
        )
        self._note(folders, lambda paths: next(filter(None, map(places_in, paths)), set()))

    def _every_file(self) -> None:
        """Note where any image of any series lies."""
        self._note(files_under(self._root), places_in)

    def _note(self, things: Iterable[Any], look: Callable[[Any], set[tuple[str, Path]]]) -> None:
        left = iter(things)
        with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
            while batch := list(islice(left, _BATCH)):
                found = [
                    (uid, os.fsencode(place)) for places in pool.map(look, batch) for uid, place in places
                ]
                with self._changed:
                    self._database.executemany("INSERT OR IGNORE INTO place VALUES (?, ?)", found)
                    self._changed.notify_all()


def _files(places: list[Path]) -> Iterable[Path]:
    """The files in some folders, not below them; a place that is a file (a zip archive) is itself one."""
    for place in places:
        if place.is_dir():
            yield from sorted(path for path in place.iterdir() if path.is_file())
        else:
            yield place
