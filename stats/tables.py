"""Tables from outside, read and checked column by column; every row left out is counted with its reason."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ..errors import InputError, InputUnreadable
from ..system.foreign import foreign
from ..system.nearest import nearest

if TYPE_CHECKING:
    import pandas as pd

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
PARQUET = ".parquet"
_YES, _NO = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no"})
MAX_ROWS = 20_000_000
"""Rows of a table that are read, fewer than these; chosen: a hundred times the largest cohort."""
_COMPARED = 1000
"""Names of columns that a misspelt one is compared with at most; chosen."""
_NAMED = 5
"""Different values that an error names at most; chosen."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a flow.

    Attributes:
        reason: Why rows were left out.
        rows: How many.
        left: How many are still in.
    """

    reason: str
    rows: int
    left: int


class Flow:
    """Who is in and who was left out, in the order in which it was decided (as in a CONSORT diagram).

    Args:
        what: What a row is, in the plural: ``"patients"``.
        rows: How many there were.
    """

    def __init__(self, what: str, rows: int) -> None:
        self.what, self.start = what, rows
        self.steps: list[Step] = []

    @property
    def left(self) -> int:
        """Rows still in."""
        return self.steps[-1].left if self.steps else self.start

    def keep(self, frame: pd.DataFrame, kept: pd.Series[bool], reason: str) -> pd.DataFrame:
        """The rows of `frame` that stay; a step is noted when some do not."""
        left = int(kept.sum())
        if left < len(frame):
            self.steps.append(Step(reason=reason, rows=len(frame) - left, left=left))
        return frame if left == len(frame) else frame[kept.to_numpy()]

    def lines(self) -> list[str]:
        """In words, one line a step."""
        out = [f"{self.start} {self.what} in the table"]
        out += [f"  − {s.rows}: {s.reason}" for s in self.steps]
        return [*out, f"  = {self.left} used"]


def read_table(
    path: Path, *, needed: Sequence[str] = (), only: Collection[str] | None = None
) -> pd.DataFrame:
    """A CSV, TSV or Parquet file with every value as text ("" where it is missing), columns as named there.

    Nothing is guessed: an identifier keeps its leading zeros, and what is a number is decided column by
    column (`numbers`).

    Args:
        needed: Columns that it must have.
        only: Leave the other columns unread; None: read all.

    Raises:
        InputUnreadable: It is missing, no table, too long (`MAX_ROWS`), or not UTF-8.
        InputError: It has no rows, a column without a name or one name twice, or lacks a needed one.
    """
    import pandas as pd

    kind = path.suffix.lower()
    if kind not in (*_SEPARATORS, PARQUET):
        raise InputError(f"{path} is no .csv, .tsv or .parquet file")
    if not path.is_file():
        raise InputUnreadable(f"cannot read {path}: there is no such regular file")
    with foreign(str(path), fault="is no table that can be read"):
        names = _column_names(path)
        twice = sorted(n for n, times in Counter(names).items() if times > 1)
        if twice or "" in names:
            fault = (
                f"column {twice[0]!r} stands there twice" if twice and twice[0] else "a column has no name"
            )
            raise InputError(f"{path}: {fault}")
        _need(names, needed, str(path))
        places = [i for i, n in enumerate(names) if only is None or n in only or n in needed]
        if kind == PARQUET:
            frame = _as_text(pd.read_parquet(path, columns=[names[i] for i in places]))
        else:
            frame = _read_text(path, names, places)
    if not len(frame):
        raise InputError(f"{path} has no rows")
    return frame


def _column_names(path: Path) -> list[str]:
    """The names in a table's first line, or in a Parquet file's schema."""
    if path.suffix.lower() == PARQUET:
        from pyarrow import parquet

        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            if file.metadata.num_rows >= MAX_ROWS:
                raise ValueError(f"it has {MAX_ROWS} rows or more")
            return list(file.schema_arrow.names)
    with path.open(encoding="utf-8-sig", newline="") as text:
        names = [name.strip() for name in next(_rows(text, path), [])]
    if not names:
        raise ValueError("it is empty")
    return names


def _rows(text: IO[str], path: Path) -> Iterator[list[str]]:
    """The rows of a CSV or TSV file, without blank lines; an open quotation is an error."""
    kind = _SEPARATORS[path.suffix.lower()]
    return filter(None, csv.reader(text, delimiter=kind, skipinitialspace=True, strict=True))


def _read_text(path: Path, names: Sequence[str], places: Sequence[int]) -> pd.DataFrame:
    """The columns of a CSV or TSV file that stand at these places; values that are missing are ""."""
    import pandas as pd

    columns: list[list[str]] = [[] for _ in places]
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = _rows(text, path)
        next(rows)
        for number, row in enumerate(rows, start=1):
            if len(row) > len(names):
                raise ValueError(f"row {number} has {len(row)} values, the first line {len(names)}")
            if number >= MAX_ROWS:
                raise ValueError(f"it has {MAX_ROWS} rows or more")
            for values, place in zip(columns, places, strict=True):
                values.append(row[place] if place < len(row) else "")
    return pd.DataFrame({names[place]: values for place, values in zip(places, columns, strict=True)})


def _as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """Every column as text; whole numbers without a decimal point, missing values as ""."""
    import pandas as pd

    out = {}
    for name in map(str, list(frame)):
        column = frame.pop(name)  # two tables of millions of rows need not be there at once
        if pd.api.types.is_float_dtype(column):
            text = _of_numbers(column)
        else:
            text = column.astype("string").fillna("").astype(str)
        out[name] = text
    return pd.DataFrame(out)


def _of_numbers(column: pd.Series[float]) -> pd.Series[str]:
    """Numbers as text that reads back as the same number; each different one is written once."""
    import pandas as pd

    places, different = pd.factorize(column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0)  # no -0
    texts = pd.array([*(f"{v:.17g}" for v in different.tolist()), ""], dtype="str")
    return pd.Series(texts.take(places), column.index)  # a missing one has the place -1, the last


def need(frame: pd.DataFrame, names: Sequence[str], table: str) -> None:
    """Check that the columns are there.

    Args:
        table: What the table is called in the error.

    Raises:
        InputError: One is missing; the nearest name is proposed.
    """
    _need(list(frame.columns), names, table)


def _need(there: Sequence[str], names: Sequence[str], table: str) -> None:
    known = set(there)
    for name in names:
        if name not in known:
            raise InputError(f"{table} has no column {name!r}.{nearest(name, there[:_COMPARED])}")


def selected_series(path: Path) -> frozenset[str]:
    """SeriesInstanceUIDs of a table, of its selected rows where it has a column ``selected``.

    Raises:
        InputUnreadable: See `read_table`.
        InputError: It has no column ``series_uid``, a value of ``selected`` is no answer (`yes_no`) or
            missing, or it selects nothing.
    """
    frame = read_table(path, needed=["series_uid"], only=["selected"])
    if "selected" in frame:
        chosen = yes_no(frame, "selected", str(path))
        if chosen.isna().any():
            raise InputError(
                f"{path}: selected is empty in {int(chosen.isna().sum())} of {len(frame)} rows; write yes or "
                "no in each"
            )
        frame = frame[chosen == 1]
    uids = frozenset(frame["series_uid"].str.strip()) - {""}
    if not uids:
        raise InputError(f"{path} selects no series")
    return uids


def yes_no(frame: pd.DataFrame, name: str, table: str) -> pd.Series[float]:
    """A column of answers as numbers: 1 for 1, true and yes, 0 for 0, false and no, NaN where it is empty.

    Anything else is an error and never a missing value: a column coded 1 and 2, read so, would lose one of
    its answers and turn the other into its contrary.

    Args:
        frame: With the column `name`, text in any case.
        table: What the table is called in the error.

    Raises:
        InputError: It holds another value; those found are named.
    """
    text = frame[name].str.strip().str.lower()
    answers = text.map({**dict.fromkeys(_YES, 1.0), **dict.fromkeys(_NO, 0.0)}).astype(float)
    if (answers.isna() & (text != "")).any():
        raise InputError(
            f"{table}: {name} holds {different(frame[name])}; write 0 and 1, false and true, or no and yes, "
            "and leave empty what is not known"
        )
    return answers


def different(column: pd.Series[str]) -> str:
    """The different values of a column of text, the first few, for an error; ``nothing`` of an empty one."""
    found = sorted(set(column.str.strip()) - {""})
    return (", ".join(map(repr, found[:_NAMED])) or "nothing") + (", …" if len(found) > _NAMED else "")


def numbers(
    frame: pd.DataFrame, name: str, flow: Flow, *, minimum: float | None = None, maximum: float | None = None
) -> pd.DataFrame:
    """Make a column of text one of finite numbers; rows where that fails, or out of range, are left out.

    Args:
        frame: With the column `name`.
        minimum, maximum: Smallest and largest sensible value.
    """
    import pandas as pd

    text = frame[name].str.strip()
    frame = flow.keep(frame, text != "", f"no {name}")
    values = pd.to_numeric(frame[name].str.strip(), errors="coerce").astype(float)
    frame = frame.assign(**{name: values})
    frame = flow.keep(frame, pd.Series(np.isfinite(frame[name]), frame.index), f"{name} is no number")
    if minimum is not None:
        frame = flow.keep(frame, frame[name] >= minimum, f"{name} below {minimum:g}")
    if maximum is not None:
        frame = flow.keep(frame, frame[name] <= maximum, f"{name} above {maximum:g}")
    return frame


def unique_key(frame: pd.DataFrame, name: str, table: str) -> None:
    """Check that a key names one row each.

    Raises:
        InputError: It does not, with the first that stands there twice.
    """
    twice = frame[name][frame[name].duplicated()]
    if len(twice):
        raise InputError(
            f"{table}: {name} {twice.iloc[0]!r} stands in more than one row "
            f"({twice.nunique()} do); keep one row each"
        )
