"""The table of a run: one row for every series found, as CSV, Parquet and Excel; what its columns mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dicom import readable
from ..errors import InputError
from ..system.atomic import atomic_path, write_whole
from ..system.foreign import foreign
from .case import Case
from .cautions import cautions
from .facts import DOMAIN
from .places import CSV, DICTIONARY, PARQUET, XLSX
from .step import Described, columns

STATUSES = ("scored", "rejected", "failed")


_ABOUT_SERIES = (
    Described(name="patient_id", kind=str, meaning="PatientID of the CT", label="Patient"),
    Described(name="study_uid", kind=str, meaning="StudyInstanceUID of the CT", label="Study UID"),
    Described(name="series_uid", kind=str, meaning="SeriesInstanceUID of the CT", label="Series UID"),
    Described(name="status", kind=str, meaning="scored, rejected by a quality gate, or failed"),
    Described(
        name="code",
        kind=str,
        meaning="why it was not scored: reason code, see docs/gates.md and docs/errors.md",
    ),
    Described(name="reason", kind=str, meaning="the same as a sentence"),
)
_ABOUT_SCAN = (
    Described(
        name="caution",
        kind=str,
        meaning="what must be known with the result: a gate would have refused it, or a zero of thick slices",
    ),
    Described(name="study_date", kind=str, meaning="StudyDate, YYYYMMDD", date=True),
    Described(
        name="patient_age",
        kind=int,
        meaning="age at the scan, completed years, by PatientAge or PatientBirthDate; empty where it is not "
        "known",
        label="Age",
        unit="years",
    ),
    Described(name="patient_sex", kind=str, meaning="PatientSex: M or F; empty for others", label="Sex"),
    Described(name="time_point", kind=str, meaning="ClinicalTrialTimePointID, such as T0"),
    Described(name="series_description", kind=str, meaning="SeriesDescription", label="Series"),
    Described(name="manufacturer", kind=str, meaning="Manufacturer"),
    Described(name="model_name", kind=str, meaning="ManufacturerModelName", label="Model"),
    Described(name="kernel", kind=str, meaning="ConvolutionKernel"),
    Described(name="kvp", kind=float, meaning="KVP, kV", label="Tube voltage", unit="kV"),
    Described(name="slice_thickness", kind=float, meaning="SliceThickness, mm", label="Slice", unit="mm"),
    Described(name="increment", kind=float, meaning="distance of neighbouring slices, mm", unit="mm"),
    Described(name="n_slices", kind=int, meaning="slices", label="Slices"),
    Described(
        name="noise_hu",
        kind=float,
        meaning="standard deviation measured inside the heart, HU",
        label="Noise",
        unit="HU",
    ),
    Described(
        name="off_domain",
        kind=str,
        meaning="in what the scan is unlike those that the weights were trained on, joined by ;",
    ),
    Described(
        name="warnings", kind=str, meaning="codes of findings that did not reject the series, joined by ;"
    ),
    Described(name="seconds", kind=float, meaning="time it took", label="Time", unit="s"),
    Described(
        name="folder", kind=str, meaning="folder of the series in this release and in the run's output"
    ),
    Described(name="deepcac2_version", kind=str, meaning="version that made it", label="deepcac2"),
    Described(
        name="weights",
        kind=str,
        meaning="sets of weights with the first digits of their sha256, joined by ;",
    ),
)

MEANINGS: dict[str, Described] = {c.name: c for c in (*_ABOUT_SERIES, *columns(), *_ABOUT_SCAN)}
"""The table's columns: of the series, what the steps add (`step.columns`), and of the scan."""

COLUMNS = tuple(MEANINGS)

_ALWAYS = ("patient_id", "study_uid", "series_uid", "status")
"""Columns that every row is given."""


def _default(column: Described) -> str | int | None:
    """What stands in a column where there is nothing to say: "" for a text, 0 slices, else None."""
    return "" if column.kind is str else 0 if column.name == "n_slices" else None


def _annotation(column: Described) -> str:
    """The type of a column's values."""
    return column.kind.__name__ if _default(column) is not None else f"{column.kind.__name__} | None"


if TYPE_CHECKING:

    @dataclass(frozen=True, kw_only=True)
    class ResultRow:
        """One series of a run; its attributes are the columns, see `MEANINGS`."""

        patient_id: str
        study_uid: str
        series_uid: str
        status: str
        code: str
        reason: str
        warnings: str
        folder: str
        seconds: float | None

        def __init__(self, **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    ResultRow = make_dataclass(
        "ResultRow",
        [
            (c.name, _annotation(c))
            if c.name in _ALWAYS
            else (c.name, _annotation(c), field(default=_default(c)))
            for c in MEANINGS.values()
        ],
        namespace={"__doc__": "One series of a run; its attributes are the columns, see `MEANINGS`."},
        frozen=True,
        kw_only=True,
    )
    ResultRow.__module__ = __name__  # so that it can be pickled


def result_row(case: Case, *, folder: str = "", provenance: dict[str, Any] | None = None) -> ResultRow:
    """The row of a case that is at its end: stopped (`Case.stop`) or scored.

    Args:
        folder: As in `ResultRow`.
        provenance: Of the chain (``deepcac2``, ``weights``).
    """
    series, stop = case.series, case.stop
    known = {name: getattr(series, name) for name in COLUMNS if hasattr(series, name)}
    known |= {column.name: column.of(case) for column in columns()}
    known["warnings"] = ";".join(dict.fromkeys(f.code for f in case.warnings))
    made_by = provenance or {"deepcac2": "", "weights": {}}
    weights = (f"{k}:{v['name']}@{v['sha256'][:12]}" for k, v in made_by["weights"].items())
    domain = case.get(DOMAIN, {})
    return ResultRow(
        **known,
        status="scored" if stop is None else stop.status,
        code="" if stop is None else stop.code,
        reason="" if stop is None else stop.reason,
        caution="; ".join(cautions(case)) if stop is None else "",
        n_slices=len(series.slices),
        noise_hu=domain.get("scan", {}).get("noise_hu"),
        off_domain=";".join(domain.get("outside", {})),
        seconds=round(sum(case.timings.values()), 3) if case.timings else None,
        folder=folder,
        deepcac2_version=made_by["deepcac2"],
        weights=";".join(weights),
    )


def unreadable_row(path: Path, reason: str) -> ResultRow:
    """The row of a file that looks like DICOM and could not be read."""
    return ResultRow(
        patient_id="",
        study_uid="",
        series_uid="",
        status="failed",
        code="unreadable-file",
        reason=f"{readable(path)}: {reason}",
    )


def write_table(folder: Path, rows: Iterable[ResultRow]) -> bool:
    """Write the table into an output folder, as Parquet, CSV and Excel, and what its columns mean.

    Returns:
        False: it has too many rows for Excel, and there is no ``results.xlsx`` (any more).

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    from .workbook import write_workbook

    write_parquet(folder / PARQUET, rows)
    write_csv(folder / CSV, read_parquet(folder / PARQUET))
    write_whole(folder / DICTIONARY, dictionary_csv())
    return write_workbook(folder / XLSX, folder / PARQUET)


def dictionary_csv() -> bytes:
    """What the columns of the table are, as CSV (UTF-8): a line each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("column", "type", "unit", "label", "meaning"))
    writer.writerows((c.name, c.kind.__name__, c.unit, c.title, c.meaning) for c in MEANINGS.values())
    return text.getvalue().encode()


def write_csv(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write the table as CSV (UTF-8, header line), whole or not at all.

    A text that a spreadsheet would run as a formula is preceded by an apostrophe (`no_formula`).

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: no_formula(v) for k, v in vars(row).items()})


def no_formula(value: Any) -> Any:
    """The value of a CSV file's cell: a text that a spreadsheet would run is preceded by an apostrophe.

    >>> no_formula("=1+1"), no_formula("B30f"), no_formula(-1.5)
    ("'=1+1", 'B30f', -1.5)
    """
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value


_ROWS_AT_ONCE = 5000


def write_parquet(path: Path, rows: Iterable[ResultRow]) -> None:
    """Write the table as Parquet with the same columns, whole or not at all.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(c.name, kinds[c.kind]) for c in MEANINGS.values()])
    left = iter(rows)
    # an open file, because pyarrow takes no path that is no UTF-8
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        while part := list(islice(left, _ROWS_AT_ONCE)):
            values = {name: [getattr(row, name) for row in part] for name in COLUMNS}
            writer.write_table(pa.table(values, schema=schema))


def read_parquet(path: Path) -> Iterator[ResultRow]:
    """The rows of `write_parquet`, one by one.

    Raises:
        InputError: It is not there or not such a table.
    """
    from pyarrow import parquet

    advice = "give the output folder of 'deepcac2 run'"
    with ExitStack() as stack:
        with foreign(str(path), error=InputError, advice=advice):
            if not path.is_file():
                raise ValueError("there is no such regular file")
            file = stack.enter_context(parquet.ParquetFile(stack.enter_context(path.open("rb"))))
            batches = file.iter_batches(_ROWS_AT_ONCE)
        while True:
            with foreign(str(path), error=InputError, advice=advice):
                batch = next(batches, None)
                rows = [] if batch is None else [checked_row(row) for row in batch.to_pylist()]
            if batch is None:
                return
            yield from rows


@cache
def _types() -> dict[str, tuple[type, ...]]:
    """The types that a column's values may have."""
    kinds: dict[type, tuple[type, ...]] = {str: (str,), int: (int,), float: (float, int), bool: (bool,)}
    return {
        c.name: kinds[c.kind] if _default(c) is not None else (*kinds[c.kind], type(None))
        for c in MEANINGS.values()
    }


def checked_row(values: dict[str, Any]) -> ResultRow:
    """A row from outside.

    Raises:
        TypeError: A column is unknown or missing, or holds another type than its own.
    """
    for name, kinds in _types().items():
        if name in values and not isinstance(values[name], kinds):
            raise TypeError(f"{name} holds a {type(values[name]).__name__}")
    return ResultRow(**values)


def series_folder(root: Path, folder: str) -> Path | None:
    """Where a row's files are; None where it has none, where they would lie outside the results, or where it
    is no path.

    Args:
        root: Output folder of a run, resolved (`Path.resolve`): once, not for every row.
        folder: `ResultRow.folder`: a table may come from elsewhere, so it is checked.
    """
    try:
        place = (root / folder).resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle; a NUL
        return None
    return place if place != root and place.is_relative_to(root) else None
