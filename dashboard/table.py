"""The rows of a run in a DuckDB file that is only read: what the page filters, sorts and counts."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import duckdb

from ..errors import DiskFull, InputError, InputUnreadable
from ..pipeline.places import PARQUET
from ..pipeline.results import MEANINGS
from ..pipeline.step import Described
from ..system.inside import regular_inside
from ..system.nearest import nearest
from .found import Found

DATABASE = "results.duckdb"
TYPES: dict[type, str] = {str: "VARCHAR", int: "BIGINT", float: "DOUBLE", bool: "BOOLEAN"}
"""Of a column in DuckDB."""

_NEEDED = ("patient_id", "study_uid", "series_uid", "status")
_KEYS = ("series_uid", "study_uid")
"""Columns by which a clinical table is joined, in this order, before the patient's."""

_PRIVATE = re.compile(
    r"(?i)(^|[^a-z])(name|surname|birth|dob|birthdate|birthday|address|street|phone|mail|email|mrn|ssn)($|[^a-z])"
    r"|(patient|first|last|given|family|full)name|patient'?s?birth|dateofbirth"
)
"""Columns of a clinical table that say who somebody is; they are not read unless asked for."""

SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 2,
    "memory_limit": "128MB",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    "enable_external_access": False,
    "lock_configuration": True,
}
"""Of our connections; the memory is several times what the order of 130,000 rows needs."""
_BUILDING = {**SETTINGS, "memory_limit": "1GB", "enable_external_access": True, "lock_configuration": False}

CLASSES = {
    c.name: Described(
        name=f"{c.name}_class",
        kind=str,
        meaning=f"class of {c.name} in its histogram",
        label=f"{c.title} class",
    )
    for c in MEANINGS.values()
    if c.limits
}
"""By the column that has a histogram, the one that we add for it."""
_OURS = (
    Described(
        name="time_point_from",
        kind=str,
        meaning="where the time point comes from: header, clinical (table), or order (of the studies)",
    ),
    Described(
        name="contrast", kind=str, meaning="whether a gate noted contrast agent", label="Contrast agent"
    ),
    Described(name="thickness", kind=float, meaning="SliceThickness to two digits", unit="mm"),
    *CLASSES.values(),
)
"""What we add to the run's columns."""
_CONTRAST = "'contrast', 'contrast-measured'"
"""The gates that note contrast agent."""

MOST_VALUES = 30
"""Most different values of a text that is offered as a list to choose from; chosen."""
FEWEST_NUMBERS = 7
"""A clinical column of at least so many different numbers is filtered by a range; chosen."""

_MAKER = "lower(regexp_replace(trim(manufacturer), '\\s+', ' ', 'g'))"
"""A manufacturer whatever the spelling: GE Medical Systems is GE MEDICAL SYSTEMS, written as most rows do."""

ROWS_AT_ONCE = 2000
"""Rows of a long list that are in memory of our own at a time. Chosen."""
_ROWS_SORTED = 50_000
"""Rows of a long list that DuckDB fetches at a time, some 30 MB: with ten thousand all take three times as
long, with more hardly less. Chosen by measuring with 2 million rows."""
_LONGEST = 10_000
"""Characters of a cell; a run writes some hundred. Chosen."""
MOST_ROWS = 5_000_000
"""Rows of a table: a small file may claim any number. Chosen."""

Kind = Literal["values", "list", "range"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One way to choose rows.

    Attributes:
        name: In a query: ``kernel=…``, repeatable; of a range ``score_min=…`` and ``score_max=…``.
        label: For the reader.
        column: Of the table.
        kind: ``values``: one of those given; ``list``: the column holds several, joined by ``;``;
            ``range``: a number between both limits, these included.
        ordered: Values in their own order; otherwise the most frequent first.
        number: The column holds numbers.
        meaning: Of the column.
        more: Not among the first that a reader looks for.
    """

    name: str
    label: str
    column: str
    kind: Kind = "values"
    ordered: bool = False
    number: bool = False
    meaning: str = ""
    more: bool = False


_FIRST = (
    Filter(name="status", label="Status", column="status"),
    Filter(name="time_point", label="Time point", column="time_point", ordered=True),
)
_OF_SCAN = (
    Filter(name="manufacturer", label="Manufacturer", column="manufacturer"),
    Filter(name="kernel", label="Kernel", column="kernel"),
    Filter(name="thickness", label="Slice thickness, mm", column="thickness", ordered=True, number=True),
    Filter(name="contrast", label="Contrast agent", column="contrast"),
    Filter(name="warning", label="Warning", column="warnings", kind="list"),
    Filter(name="code", label="Reason not scored", column="code"),
)
"""Filters that every table has; before these come the results, after them whatever else may be chosen by."""
_NO_FILTER = {
    "patient_id", "study_uid", "series_uid", "reason", "caution", "study_date", "series_description",
    "slice_thickness", "folder",
}  # fmt: skip
"""Columns by which no filter chooses: most rows have their own value; ``thickness`` has two digits."""
_SEARCHED = (
    "patient_id", "series_uid", "study_uid", "series_description", "kernel", "manufacturer", "model_name",
    "code", "reason", "warnings",
)  # fmt: skip
SEARCH_COLUMN = "search_text"
"""All that is searched, in small letters."""


@dataclass(frozen=True, kw_only=True)
class Clinical:
    """What was joined from a clinical table.

    Attributes:
        columns: Those of our table, in the order of the file; a column of numbers only has these.
        left_out: Names of the columns that say who somebody is, not read.
        joined_by: Column of our table.
        rows, matched: Rows of the results table, and how many of them found their clinical row.
    """

    columns: tuple[Described, ...] = ()
    left_out: tuple[str, ...] = ()
    joined_by: str = ""
    rows: int = 0
    matched: int = 0


class Results:
    """The table of a run, to be filtered, sorted and counted.

    Args:
        folder: Output of a run, with its ``results.parquet``.
        clinical: CSV or TSV with one row a patient (or a study, or a series, where it has such a column).
        patient: Its column that holds the PatientID.
        show_phi: Read columns that say who somebody is as well.

    Attributes:
        folder, clinical: As given, and what was joined.
        columns: By name: the run's, ours and the clinical ones.
        different: How many different values each column has by which rows may be chosen.
        fractions: Columns with a number that is not whole.
        results: Columns that steps were run for and their groups, those with a value (`Described.leads`).
        filters, limits: By the filter's name; of a range its smallest and largest number.
        found: Remembers which rows a text finds.

    Raises:
        InputUnreadable: A table is missing or cannot be read.
        InputError: It is not such a table, or is empty, or nothing of the clinical table fits.
        DiskFull: Its copy has no space in the folder for temporary files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clinical: Path | None = None,
        patient: str = "patient_id",
        show_phi: bool = False,
    ) -> None:
        self.folder, path = folder, table_of(folder)
        self._scratch = tempfile.TemporaryDirectory(prefix="deepcac2-dashboard-")
        self.database = Path(self._scratch.name) / DATABASE
        try:
            # in a process of its own, which takes the memory that building needs with it
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                building = process.submit(_build, self.database, path, clinical, patient, show_phi)
                self.clinical, self.different, self.fractions = building.result()
            self._connection = duckdb.connect(str(self.database), read_only=True, config=SETTINGS)
        except BaseException:
            self._scratch.cleanup()
            raise
        self._lock = threading.Lock()
        self._at_work = threading.Lock()
        ((rows,),) = self.all("SELECT count(*) FROM everything")
        self.found = Found(self.all, rows)
        self.columns = {c.name: c for c in (*MEANINGS.values(), *_OURS, *self.clinical.columns)}
        self.results = [c for c in self.columns.values() if c.leads and self.different[c.name]]
        self.filters = {f.name: f for f in self._filters()}
        self.limits = {f.name: self._limits(f.column) for f in self.filters.values() if f.kind == "range"}

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the table; its file is removed."""
        self._connection.close()
        self._scratch.cleanup()

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        with self._lock:
            return self._connection.cursor()

    def all(self, sql: str) -> list[tuple[Any, ...]]:
        """Every row of a query of our own; values stand in it as `literal`, names as `quoted`."""
        with self._cursor() as cursor:
            return cursor.execute(sql).fetchall()

    def dicts(self, sql: str) -> list[dict[str, Any]]:
        """The same by column."""
        with self._cursor() as cursor:
            cursor.execute(sql)
            names = [d[0] for d in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def page(
        self, selection: Selection, columns: Sequence[str], *, limit: int, offset: int
    ) -> list[dict[str, Any]]:
        """Some of the selected rows in the selection's order.

        Only the order of the rows is sorted, not their content: that takes a fraction of the memory.
        """
        numbers = self.all(f"{self._numbers(selection)} LIMIT {literal(limit)} OFFSET {literal(offset)}")
        if not numbers:
            return []
        found = {
            row.pop("rowid"): row
            for row in self.dicts(  # a join looks only where these rows are, a condition everywhere
                f"SELECT e.rowid, {_of_row(columns)} FROM everything e "
                f"JOIN (VALUES {', '.join(f'({number})' for (number,) in numbers)}) AS v(number) "
                "ON e.rowid = v.number"
            )
        }
        return [found[number] for (number,) in numbers]

    def rows(self, selection: Selection, columns: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
        """All selected rows in the selection's order, however many, `ROWS_AT_ONCE` of them at a time.

        DuckDB keeps their order, and the content of `_ROWS_SORTED`, in its own memory or on the disk; for
        each of these parts the whole table is read. To sort takes nearly all memory that DuckDB may have, so
        that only one list at a time is worked at; none keeps the others waiting while it is sent.
        """
        with self._cursor() as cursor:

            def run(sql: str) -> list[tuple[Any, ...]]:
                with self._at_work:
                    return cursor.execute(sql).fetchall()

            run(f"CREATE TEMP TABLE chosen AS {self._numbers(selection)}")
            ((count,),) = run("SELECT count(*) FROM chosen")
            for begin in range(0, count, _ROWS_SORTED):
                run(
                    f"CREATE OR REPLACE TEMP TABLE part AS SELECT {_of_row(columns)} FROM everything e "
                    "JOIN (SELECT number, rowid AS place FROM chosen "
                    f"WHERE rowid >= {begin} AND rowid < {begin + _ROWS_SORTED}) c "
                    "ON e.rowid = c.number ORDER BY c.place"
                )
                # a query for each: one that is read while it is sent would hold on to memory meanwhile
                for at in range(0, min(_ROWS_SORTED, count - begin), ROWS_AT_ONCE):
                    yield run(f"FROM part WHERE rowid >= {at} AND rowid < {at + ROWS_AT_ONCE}")

    def _numbers(self, selection: Selection) -> str:
        """The numbers of the selected rows, as ``number``, in the selection's order, in SQL."""
        where = selection.where(self.filters, self.found)
        order = selection.order(self.columns)
        return f"SELECT rowid AS number FROM everything WHERE {where} ORDER BY {order}"

    def row(self, series_uid: str) -> dict[str, Any] | None:
        """The row of a series; None where there is none."""
        if not series_uid:
            return None
        found = self.dicts(f"SELECT * FROM everything WHERE series_uid = {literal(series_uid)} LIMIT 1")
        return found[0] if found else None

    def beside(self, series_uid: str, where: str, order: str) -> dict[str, Any] | None:
        """Where a series stands in a list, None where it does not.

        Args:
            series_uid: Of a request; it is looked for and no more.
            where, order: Condition and order of the list, in SQL.

        Returns:
            ``number`` from 1, ``all``, and the UIDs ``before`` and ``after`` it, None at the ends.
        """
        own = self.all(f"SELECT rowid FROM everything WHERE series_uid = {literal(series_uid)} LIMIT 1")
        if not series_uid or not own:
            return None
        found = self.all(  # of rows only their numbers are sorted, which takes a third of the time
            "SELECT number, count, before, after FROM (SELECT rowid AS own, row_number() OVER w AS number, "
            "count(*) OVER () AS count, lag(rowid) OVER w AS before, lead(rowid) OVER w AS after "
            f"FROM everything WHERE ({where}) AND series_uid <> '' WINDOW w AS (ORDER BY {order})) "
            f"WHERE own = {literal(own[0][0])}"
        )
        if not found:
            return None
        number, count, *neighbours = found[0]
        rows = literals(row for row in neighbours if row is not None)
        uids = dict(self.all(f"SELECT rowid, series_uid FROM everything WHERE rowid IN ({rows})"))
        before, after = map(uids.get, neighbours)
        return {"number": number, "all": count, "before": before, "after": after}

    def _limits(self, column: str) -> dict[str, float | None]:
        ((low, high),) = self.all(f"SELECT min({quoted(column)}), max({quoted(column)}) FROM everything")
        return {"min": low, "max": high}

    def _filters(self) -> list[Filter]:
        """One for every column by which rows can be chosen, the results' in front."""
        both = (self._filter(c) for one in self.results for c in (CLASSES.get(one.name), one))
        own = [*_FIRST, *filter(None, both), *_OF_SCAN]
        there = {f.column for f in own}
        rest = (self._filter(c) for c in self.columns.values() if c.name not in there)
        clinical = {c.name for c in self.clinical.columns}
        return [*own, *(replace(f, more=f.column not in clinical) for f in rest if f is not None)]

    def _filter(self, column: Described | None) -> Filter | None:
        """A filter by a column; None where nothing is to be chosen."""
        different = 0 if column is None else self.different.get(column.name, 0)
        if column is None or not different:
            return None
        clinical = column in self.clinical.columns
        number = column.kind in (int, float)
        label = f"{column.title}, {column.unit}" if column.unit else column.title
        made = Filter(
            name=f"c.{column.name}" if clinical else column.name,
            label=f"{label} range" if column.name in CLASSES else label,
            column=column.name,
            ordered=True,
            number=number,
            meaning=column.meaning,
        )
        few = clinical and different < FEWEST_NUMBERS and column.name not in self.fractions
        if number and not column.groups and not few:
            return replace(made, kind="range")
        return made if column.groups or different <= MOST_VALUES else None


def table_of(folder: Path) -> Path:
    """The table of a run.

    Raises:
        InputUnreadable: It is not there, or leads out of the folder.
    """
    path = folder / PARQUET
    if not path.is_file():
        ended = (folder / "run.json").is_file() or any(folder.glob("*/*/details.json"))
        hint = (
            "the run has not ended: give the same 'deepcac2 run' command again, it writes the table"
            if ended
            else "give the output folder of 'deepcac2 run'"
        )
        raise InputUnreadable(f"{folder} has no {PARQUET}; {hint}")
    return regular_inside(path, folder)


def quoted(name: str) -> str:
    """A column's name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: str | float) -> str:
    """A value as SQL takes it, whatever is in it. (DuckDB loads pandas, 85 MB, for a parameter.)

    >>> literal("O'Brien' OR true --"), literal(2.5), literal(7)
    ("'O''Brien'' OR true --'", 'CAST(2.5 AS DOUBLE)', '7')
    """
    if isinstance(value, str):
        return "'" + value.replace("\0", "\ufffd").replace("'", "''") + "'"
    if isinstance(value, int):
        return str(int(value))
    return f"CAST({value!r} AS DOUBLE)" if isfinite(value) else f"CAST('{value!r}' AS DOUBLE)"


def _of_row(columns: Iterable[str]) -> str:
    """Columns of a row of the table ``e``, in SQL."""
    return ", ".join(f"e.{quoted(name)}" for name in columns)


def literals(values: Iterable[str | float]) -> str:
    """Values for ``IN (…)``."""
    return ", ".join(map(literal, values)) or "NULL"


def _build(
    database: Path, path: Path, clinical: Path | None, patient: str, show_phi: bool
) -> tuple[Clinical, dict[str, int], frozenset[str]]:
    """Make the file: the table ``everything`` and the view ``results`` of it, without `SEARCH_COLUMN`.

    Returns:
        What was joined, how many different values each column has by which rows may be chosen, and the
        clinical columns with a number that is not whole.
    """
    with duckdb.connect(str(database), config=_BUILDING) as connection:
        connection.execute("SET enable_progress_bar = false")  # on by default in a process without a script
        try:
            joined = _fill(connection, path, clinical, patient=patient, show_phi=show_phi)
            names = (c.name for c in (*MEANINGS.values(), *_OURS, *joined.columns))
            count = "SELECT count(DISTINCT nullif(CAST({} AS VARCHAR), '')) FROM everything"
            different = {
                name: connection.execute(count.format(quoted(name))).fetchall()[0][0]
                for name in names
                if name not in _NO_FILTER
            }
            part = "SELECT count(*) FROM everything WHERE {0} IS NOT NULL AND {0} <> round({0})"
            fractions = frozenset(
                c.name
                for c in joined.columns
                if c.kind is float and connection.execute(part.format(quoted(c.name))).fetchall()[0][0]
            )
            return joined, different, fractions
        except duckdb.Error as error:
            reason = str(error).splitlines()[0]
            if os.strerror(errno.ENOSPC) in reason:
                raise DiskFull(
                    f"no space left in {database.parent.parent} for a copy of the table; free some, or set "
                    "TMPDIR to a folder with space"
                ) from error
            raise InputUnreadable(
                f"cannot read {path}: {reason}; give the output folder of 'deepcac2 run'"
            ) from error


def _fill(
    connection: duckdb.DuckDBPyConnection, path: Path, clinical: Path | None, *, patient: str, show_phi: bool
) -> Clinical:
    source = f"read_parquet({literal(str(path))})"
    present = [row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()]
    missing = [name for name in _NEEDED if name not in present]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}; give the output folder of 'deepcac2 run'")
    chosen = ", ".join(_typed(column, present=column.name in present) for column in MEANINGS.values())
    connection.execute(f"CREATE TEMP VIEW raw AS SELECT {chosen} FROM {source}")
    ((rows,),) = connection.execute("SELECT count(*) FROM raw").fetchall()
    if not rows:
        raise InputError(f"{path} holds no series; score some with 'deepcac2 run'")
    if rows > MOST_ROWS:
        raise InputError(f"{path} claims {rows} series; the dashboard takes {MOST_ROWS} at most")
    joined = Clinical(rows=rows)
    extra, of_clinical, join = "", "''", ""
    if clinical is not None:
        joined, time_point = _read_clinical(connection, clinical, patient=patient, show_phi=show_phi)
        extra = "".join(f", c.{quoted(column.name)}" for column in joined.columns)
        of_clinical = f"coalesce(upper(trim(c.{quoted(time_point)})), '')" if time_point else "''"
        join = f"LEFT JOIN clinical c ON c.__key = r.{joined.joined_by} AND c.__key <> ''"
    ours = ", ".join(f"r.{quoted(name)}" for name in MEANINGS if name not in ("time_point", "manufacturer"))
    classes = "".join(f"{_class_of(column)}, " for column in MEANINGS.values() if column.name in CLASSES)
    searched = ", ".join(f"r.{name}" for name in _SEARCHED)
    connection.execute(f"""
        CREATE TABLE everything AS
        WITH studies AS (
            SELECT patient_id, study_uid, 'study ' || row_number() OVER (
                PARTITION BY patient_id ORDER BY min(study_date), study_uid) AS study
            FROM raw WHERE patient_id <> '' AND study_uid <> '' AND study_date <> ''
            GROUP BY patient_id, study_uid),
        makers AS (
            SELECT {_MAKER} AS maker, arg_max(spelt, (n, spelt)) AS manufacturer
            FROM (SELECT trim(manufacturer) AS spelt, manufacturer, count(*) AS n FROM raw GROUP BY ALL)
            GROUP BY 1)
        SELECT {ours}, coalesce(m.manufacturer, '') AS manufacturer,
            CASE WHEN trim(r.time_point) <> '' THEN upper(trim(r.time_point))
                WHEN {of_clinical} <> '' THEN {of_clinical} ELSE coalesce(s.study, '') END AS time_point,
            CASE WHEN trim(r.time_point) <> '' THEN 'header' WHEN {of_clinical} <> '' THEN 'clinical'
                WHEN s.study IS NOT NULL THEN 'order' ELSE '' END AS time_point_from,
            CASE WHEN r.code IN ({_CONTRAST}) OR list_has_any(string_split(r.warnings, ';'), [{_CONTRAST}])
                THEN 'contrast' ELSE 'none noted' END AS contrast,
            round(r.slice_thickness, 2) AS thickness,
            {classes}
            lower(concat_ws(chr(10), {searched})) AS {SEARCH_COLUMN}
            {extra}
        FROM raw r LEFT JOIN studies s USING (patient_id, study_uid)
        LEFT JOIN makers m ON m.maker = {_MAKER.replace("manufacturer", "r.manufacturer")} {join}""")
    connection.execute(f"CREATE VIEW results AS SELECT * EXCLUDE ({SEARCH_COLUMN}) FROM everything")
    if clinical is not None:
        ((matched,),) = connection.execute(
            f"SELECT count(*) FROM raw r JOIN clinical c ON c.__key = r.{joined.joined_by}"
        ).fetchall()
        if not matched:
            raise InputError(
                f"no {joined.joined_by} of {clinical} is in the results; "
                "name its column of PatientIDs with --patient COLUMN"
            )
        joined = replace(joined, rows=rows, matched=matched)
        connection.execute("DROP TABLE clinical")
    return joined


def _typed(column: Described, *, present: bool) -> str:
    """A column of the run's table in SQL, of the type that it should have; long texts are cut.

    Args:
        present: Whether the table has it; otherwise it is empty.
    """
    name, kind = quoted(column.name), TYPES[column.kind]
    value = f"CAST({name} AS {kind})" if present else "NULL"
    if column.kind is str:
        return f"left(coalesce({value}, ''), {_LONGEST}) AS {name}"
    return f"CAST({value} AS {kind}) AS {name}"


def _class_of(column: Described) -> str:
    """The column of `CLASSES` in SQL; "" where there is no number."""
    value, labels = f"CAST(r.{quoted(column.name)} AS DOUBLE)", class_labels(column.limits)
    cases = " ".join(
        f"WHEN {value} <= {high!r} THEN {literal(label)}"
        for high, label in zip(column.limits, labels, strict=False)
    )
    return (
        f"CASE WHEN {value} IS NULL OR isnan({value}) THEN '' {cases} ELSE {literal(labels[-1])} END "
        f"AS {quoted(CLASSES[column.name].name)}"
    )


def class_labels(limits: Sequence[float]) -> list[str]:
    """Classes with these upper limits in words, and the last one above them.

    >>> class_labels((0, 10, 2000)), class_labels((5, 10))
    (['0', '0–10', '10–2000', '> 2000'], ['≤ 5', '5–10', '> 10'])
    """
    first = "0" if limits[0] == 0 else f"≤ {limits[0]:g}"
    between = (f"{low:g}–{high:g}" for low, high in pairwise(limits))
    return [first, *between, f"> {limits[-1]:g}"]


def _read_clinical(
    connection: duckdb.DuckDBPyConnection, path: Path, *, patient: str, show_phi: bool
) -> tuple[Clinical, str]:
    """Make the table ``clinical`` with its key; also the column of time points ("" where there is none)."""
    separator = "\t" if path.suffix.lower() in (".tsv", ".txt") else ","
    try:
        connection.execute(
            "CREATE TEMP TABLE clinical_raw AS SELECT * FROM "
            f"read_csv({literal(str(path))}, all_varchar = true, header = true, delim = {literal(separator)})"
        )
    except duckdb.Error as error:
        reason = str(error).splitlines()[0]
        raise InputUnreadable(f"{path} is no table that can be read ({reason}); give a CSV file") from error
    names = [row[0] for row in connection.execute("DESCRIBE clinical_raw").fetchall()]
    key = next((name for name in (*_KEYS, patient) if name in names), None)
    if key is None:
        raise InputError(
            f"{path} has no column {patient!r}.{nearest(patient, names)} Name it with --patient COLUMN"
        )
    joined_by = key if key in _KEYS else "patient_id"
    ((again,),) = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM clinical_raw WHERE coalesce(trim({quoted(key)}), '') <> '' "
        f"GROUP BY trim({quoted(key)}) HAVING count(*) > 1)"
    ).fetchall()
    if again:
        raise InputError(
            f"{path}: {again} values of {key!r} stand in several rows; give one row each, "
            "or a column study_uid or series_uid"
        )
    kept, left_out, columns = [], [], []
    time_point = ""
    for name in names:
        if name in (key, patient, *_KEYS):
            continue
        if _PRIVATE.search(name) and not show_phi:
            left_out.append(name)
            continue
        taken = (*MEANINGS, *(c.name for c in _OURS), SEARCH_COLUMN, "rowid")  # the last is DuckDB's own
        ours = f"clinical_{name}" if name.lower() in taken else name
        if name.lower() == "time_point":
            time_point = ours
        text = f"nullif(trim({quoted(name)}), '')"
        ((wrong, some),) = connection.execute(
            f"SELECT count(*) FILTER ({text} IS NOT NULL AND TRY_CAST({text} AS DOUBLE) IS NULL), "
            f"count({text}) FROM clinical_raw"
        ).fetchall()
        number = some and not wrong and ours != time_point
        kept.append(f"{f'TRY_CAST({text} AS DOUBLE)' if number else text} AS {quoted(ours)}")
        columns.append(
            Described(
                name=ours, kind=float if number else str, label=ours, meaning="column of the clinical table"
            )
        )
    everything = ", ".join([f"coalesce(trim({quoted(key)}), '') AS __key", *kept])
    connection.execute(f"CREATE TEMP TABLE clinical AS SELECT {everything} FROM clinical_raw")
    connection.execute("DROP TABLE clinical_raw")
    return Clinical(columns=tuple(columns), left_out=tuple(left_out), joined_by=joined_by), time_point


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows, and in which order.

    Attributes:
        values: By the filter's name, the values of which a row has one.
        ranges: By the filter's name, the limits, these included.
        patient: Part of the PatientID.
        search: Part of any text of a row.
        sort, descending: Column and direction.
        columns: To be shown beside those that always are; empty: the usual ones.
    """

    values: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, tuple[float | None, float | None]]
    patient: str = ""
    search: str = ""
    sort: str = "patient_id"
    descending: bool = False
    columns: tuple[str, ...] = ()

    def where(self, filters: Mapping[str, Filter], found: Found) -> str:
        """The condition.

        Args:
            filters: Of the table, by name.
            found: Of the table.
        """
        of_values = (_one_of(filters[name], chosen) for name, chosen in self.values.items())
        texts = map(found, self._of_texts())
        return " AND ".join([*self._of_ranges(filters), *of_values, *texts]) or "true"

    def nearly(self, filters: Mapping[str, Filter], found: Found) -> tuple[str, str]:
        """What is chosen but for the values of one filter at most, to count what its other values would give.

        Args:
            filters, found: As of `where`.

        Returns:
            The number in `values`, from 1, of the filter that a row does not fit, 0 where it fits all of
            them; and the condition; both in SQL.
        """
        fits = [_one_of(filters[name], chosen) for name, chosen in self.values.items()]
        missed = " + ".join(f"CASE WHEN {fit} THEN 0 ELSE {nr} END" for nr, fit in enumerate(fits, 1))
        number = " + ".join(f"CASE WHEN {fit} THEN 0 ELSE 1 END" for fit in fits)
        parts = [*self._of_ranges(filters), f"{number or 0} <= 1", *map(found, self._of_texts())]
        return missed or "0", " AND ".join(parts)

    def _of_ranges(self, filters: Mapping[str, Filter]) -> Iterator[str]:
        for name, (low, high) in self.ranges.items():
            for limit, sign in ((low, ">="), (high, "<=")):
                if limit is not None:
                    yield f"{quoted(filters[name].column)} {sign} {literal(limit)}"

    def _of_texts(self) -> Iterator[str]:
        if self.patient:
            yield f"contains(lower(patient_id), {literal(self.patient.lower())})"
        if self.search:
            yield f"contains({SEARCH_COLUMN}, {literal(self.search.lower())})"

    def order(self, columns: Mapping[str, Described]) -> str:
        """The order, complete: the same rows always stand in the same place; missing values come last.

        Args:
            columns: Of the table, by name.
        """
        direction = "DESC" if self.descending else "ASC"
        column = quoted(self.sort)
        missing = f"coalesce({column}, '') = ''" if columns[self.sort].kind is str else f"{column} IS NULL"
        return f"({missing}), {column} {direction}, {_TIES}"


def _one_of(by: Filter, chosen: Sequence[str]) -> str:
    """Whether a row has one of the values, in SQL."""
    column = quoted(by.column)
    if by.kind == "list":
        return f"list_has_any(string_split({column}, ';'), [{literals(chosen)}])"
    if not by.number:
        return f"coalesce(CAST({column} AS VARCHAR), '') IN ({literals(chosen)})"
    numbers = [n for n in map(_number, chosen) if n is not None]
    fits = f"coalesce({column} IN ({literals(numbers)}), false)"
    return f"({fits} OR {column} IS NULL)" if "" in chosen else fits


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


_TIES = "patient_id, study_date, series_uid, rowid"


_ORDERS = {"asc": False, "desc": True}
_OTHER = ("patient", "search", "sort", "order", "page", "size", "columns")


def parse_selection(
    query: Sequence[tuple[str, str]], filters: Mapping[str, Filter], columns: Collection[str]
) -> Selection:
    """The selection that a request's query asks for.

    Args:
        query: Names and values as they stand in the address; a filter may stand there several times.
        filters: Of the table, by name.
        columns: Of the table, to sort by and to show.

    Raises:
        InputError: A name or a value is unknown; the nearest name is proposed.
    """
    single: dict[str, str] = {}
    values: dict[str, list[str]] = {}
    ranges: dict[str, list[float | None]] = {}
    for name, value in query:
        base, _, end = name.rpartition("_")
        if name in _OTHER:
            single[name] = value.strip()
        elif name in filters and filters[name].kind != "range":
            values.setdefault(name, []).append(value)
        elif base in filters and filters[base].kind == "range" and end in ("min", "max"):
            try:
                number = float(value)
            except ValueError as error:
                raise InputError(f"{name}={value[:40]!r} is no number") from error
            ranges.setdefault(base, [None, None])[end == "max"] = number
        else:
            valid = [*_OTHER, *(f"{f}_min" if filters[f].kind == "range" else f for f in filters)]
            raise InputError(f"there is no filter {name[:40]!r}.{nearest(name, valid)}")
    for base, (low, high) in ranges.items():
        if low is not None and high is not None and low > high:
            raise InputError(
                f"{filters[base].label}: from {low:g} to {high:g} is no range; give the smaller first"
            )
    sort = single.get("sort") or "patient_id"
    shown = tuple(dict.fromkeys(filter(None, single.get("columns", "").split(","))))
    for column, what in ((sort, "to sort by"), *((name, "to show") for name in shown)):
        if column not in columns:
            raise InputError(f"there is no column {column[:40]!r} {what}.{nearest(column, columns)}")
    order = single.get("order") or "asc"
    if order not in _ORDERS:
        raise InputError("order is asc or desc")
    return Selection(
        values={name: tuple(dict.fromkeys(chosen)) for name, chosen in values.items()},
        ranges={name: (low, high) for name, (low, high) in ranges.items()},
        patient=single.get("patient", ""),
        search=single.get("search", ""),
        sort=sort,
        descending=_ORDERS[order],
        columns=shown,
    )
