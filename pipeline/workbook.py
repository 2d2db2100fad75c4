"""The table of a run as an Excel workbook: the results with typed columns, and what the columns mean.

Every text is written as a text, never as a formula, a number or a link, whatever it begins with; it needs no
apostrophe before it, as in the CSV file.
"""

from __future__ import annotations

import datetime
import io
import logging
import math
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..system.atomic import atomic_path, output_errors, scratch_beside
from ..system.foreign import foreign
from .results import MEANINGS, read_parquet
from .step import Described

if TYPE_CHECKING:
    from xlsxwriter.workbook import Workbook

log = logging.getLogger(__name__)

MAX_ROWS = 1_048_575
"""Rows that a sheet holds below its heading: 1,048,576 with it ("Excel specifications and limits", Microsoft
support)."""
_MAX_TEXT = 32_767
"""Letters of a cell, from the same page, counted as UTF-16 does."""
_MAX_WHOLE = 10**15
"""Whole numbers below keep all their digits: a cell has 15."""
_FIRST_DAY = datetime.date(1900, 3, 1)
"""Before this, Excel counts a day that never was (1900-02-29), and before 1900 none at all."""
_WIDE, _NARROW = 24, 14
"""Width of a column of texts and of one of numbers, letters. Chosen."""


def write_workbook(path: Path, table: Path) -> bool:
    """Write the table as a workbook, whole or not at all: a sheet ``results`` without the columns that nobody
    filled, a sheet ``columns`` with what all of them mean.

    Memory does not grow with the rows. The same table gives the same bytes.

    Args:
        path: Of the ``.xlsx`` file.
        table: As `results.write_parquet` writes it; it is read twice.

    Returns:
        False: it has more than `MAX_ROWS` rows; there is no workbook, and one of an earlier run is removed.

    Raises:
        InputError: The table cannot be read.
        DiskFull, OutputUnwritable: It cannot be written.
    """
    rows, filled = _filled(table)
    if rows > MAX_ROWS:
        with output_errors(path):
            path.unlink(missing_ok=True)
        log.warning("no %s: it would have %d rows, and a sheet holds %d", path.name, rows, MAX_ROWS)
        return False
    shown = [column for name, column in MEANINGS.items() if filled[name]]
    with (
        scratch_beside(path) as scratch,
        atomic_path(path) as temporary,
        _workbook(temporary, scratch) as book,
    ):
        _write_results(book, shown, table, rows)
        _write_columns(book, filled)
    return True


def _filled(table: Path) -> tuple[int, dict[str, int]]:
    """Rows of a table, and in how many of them each column holds something."""
    from pyarrow import compute, parquet

    filled = dict.fromkeys(MEANINGS, 0)
    with (
        foreign(str(table), error=InputError),
        table.open("rb") as opened,
        parquet.ParquetFile(opened) as file,
    ):
        for batch in file.iter_batches(columns=list(MEANINGS)):
            for name in MEANINGS:
                values = batch.column(name)
                if MEANINGS[name].kind is str:
                    filled[name] += compute.sum(compute.not_equal(values, "")).as_py() or 0
                else:
                    filled[name] += len(values) - values.null_count
        return file.metadata.num_rows, filled


@contextmanager
def _workbook(path: Path, scratch: Path) -> Iterator[Workbook]:
    """A workbook that is written when the block ends well.

    Raises:
        OSError: It cannot be written.
    """
    import xlsxwriter
    from xlsxwriter.exceptions import FileCreateError

    options = {"constant_memory": True, "tmpdir": str(scratch), "use_zip64": True}
    with ExitStack() as stack:
        file = stack.enter_context(io.BufferedWriter(_FailsOnce(path, "wb")))
        book = xlsxwriter.Workbook(file, options)
        book.set_properties({"title": "deepcac2 results", "created": datetime.datetime(2000, 1, 1)})
        try:
            yield book
            book.close()
        except FileCreateError as error:
            if error.__context__ is not None:  # its zip file is closed with its frame, while it can be
                traceback.clear_frames(error.__context__.__traceback__)
            raise (error.__context__ or OSError(str(error))) from error
        finally:
            for sheet in book.worksheets():
                stack.callback(sheet.row_data_fh.close)


class _FailsOnce(io.FileIO):
    """A file that fails once and then takes everything: the zip file in it is closed again when it is
    forgotten, where nobody can catch an error."""

    _failed = False

    def write(self, data: Any, /) -> int:
        """Write some bytes."""
        if self._failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError:
            self._failed = True
            raise


def _write_results(book: Workbook, shown: list[Described], table: Path, rows: int) -> None:
    """The first sheet."""
    sheet = book.add_worksheet("results")
    heading, day = book.add_format({"bold": True, "bottom": 1}), book.add_format({"num_format": "yyyy-mm-dd"})
    for place, column in enumerate(shown):
        sheet.set_column(place, place, _WIDE if column.kind is str and not column.date else _NARROW)
        sheet.write_string(0, place, column.name, heading)
    sheet.freeze_panes(1, 0)
    if shown:
        sheet.autofilter(0, 0, rows, len(shown) - 1)
    for number, row in enumerate(read_parquet(table), start=1):
        for place, column in enumerate(shown):
            _write_cell(sheet, number, place, column, getattr(row, column.name), day)


def _write_cell(sheet: Any, row: int, place: int, column: Described, value: Any, day: Any) -> None:
    """One value by its type; nothing where there is none."""
    if value is None or value == "":
        return
    if isinstance(value, bool):
        sheet.write_boolean(row, place, value)
    elif isinstance(value, str):
        date = _date(value) if column.date else None
        if date is not None:
            sheet.write_datetime(row, place, date, day)
        else:
            sheet.write_string(row, place, _fitting(value))
    elif not math.isfinite(value) or (isinstance(value, int) and abs(value) >= _MAX_WHOLE):
        sheet.write_string(row, place, str(value))
    else:
        sheet.write_number(row, place, value)


def _write_columns(book: Workbook, filled: dict[str, int]) -> None:
    """The second sheet: all columns, those that nobody filled too."""
    sheet = book.add_worksheet("columns")
    heading, wrapped = book.add_format({"bold": True, "bottom": 1}), book.add_format({"text_wrap": True})
    names = ("column", "type", "unit", "label", "meaning", "rows filled")
    for place, (name, width) in enumerate(zip(names, (24, 8, 8, 24, 90, 12), strict=True)):
        sheet.set_column(place, place, width)
        sheet.write_string(0, place, name, heading)
    sheet.freeze_panes(1, 0)
    for row, column in enumerate(MEANINGS.values(), start=1):
        for place, text in enumerate((column.name, column.kind.__name__, column.unit, column.title)):
            sheet.write_string(row, place, text)
        sheet.write_string(row, 4, column.meaning, wrapped)
        sheet.write_number(row, 5, filled[column.name])


def _date(text: str) -> datetime.date | None:
    """A day that Excel knows; None for anything else, which stays a text."""
    if len(text) != 8 or not (text.isascii() and text.isdecimal()):
        return None
    try:
        found = datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))
    except ValueError:
        return None
    return found if found >= _FIRST_DAY else None


def _fitting(text: str) -> str:
    """A text as a cell can hold it: what is longer ends in ``…``."""
    if len(text.encode("utf-16-le")) <= 2 * _MAX_TEXT:
        return text
    return text.encode("utf-16-le")[: 2 * (_MAX_TEXT - 1)].decode("utf-16-le", "ignore") + "…"
