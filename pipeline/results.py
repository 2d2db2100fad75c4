"""The table of a run: one row for every series found, as CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from ..dicom import readable
from ..errors import InputError
from ..imaging.atomic import atomic_path
from .case import Case
from .cautions import cautions

STATUSES = ("scored", "rejected", "failed")
CSV, PARQUET = "results.csv", "results.parquet"
"""The table's files in the output folder."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One series of a run.

    Attributes:
        status: ``scored``, ``rejected`` (by a quality gate) or ``failed`` (something broke).
        code, reason: Reason code and sentence of a rejection or failure, "" otherwise.
        agatston_score: Without unit.
        risk_group: 0 to 3; risk_group_name in words.
        caution: What must stand beside the result, sentences joined by ``; `` (`cautions.cautions`).
        volume_mm3, mass_mg: Of the counted calcium; mass only with a calibration factor.
        screening_positive: Whether the exclusion found that there may be calcium; None: not asked.
        direct_score, direct_group: Of direct scoring, 0 to 4 (`models.direct.direct_group`).
        time_point: ClinicalTrialTimePointID, such as NLST's "T0".
        noise_hu: Measured inside the heart (`imaging.noise.noise_sd`).
        off_domain: In what the scan is unlike those that the weights were trained on (``kernel``, ``noise``,
            ``kvp``, ``slices``, ``field``, ``contrast``; ``unknown`` where a set does not say), joined
            by ``;``.
        warnings: Codes of findings that did not reject, joined by ``;``.
        seconds: Time in all modules together; None where no module came to an end.
        folder: Its folder relative to the output, "" when it has none.
    """

    patient_id: str
    study_uid: str
    series_uid: str
    status: str
    code: str = ""
    reason: str = ""
    agatston_score: float | None = None
    risk_group: int | None = None
    risk_group_name: str = ""
    caution: str = ""
    volume_mm3: float | None = None
    mass_mg: float | None = None
    n_lesions: int | None = None
    heart_volume_ml: float | None = None
    rule: str = ""
    screening_positive: bool | None = None
    direct_score: float | None = None
    direct_group: int | None = None
    study_date: str = ""
    time_point: str = ""
    series_description: str = ""
    manufacturer: str = ""
    model_name: str = ""
    kernel: str = ""
    kvp: float | None = None
    slice_thickness: float | None = None
    increment: float | None = None
    n_slices: int = 0
    noise_hu: float | None = None
    off_domain: str = ""
    warnings: str = ""
    seconds: float | None = None
    folder: str = ""
    deepcac2_version: str = ""
    weights: str = ""


COLUMNS = tuple(f.name for f in fields(ResultRow))


def result_row(case: Case, *, folder: str = "", provenance: dict[str, Any] | None = None) -> ResultRow:
    """The row of a case that is at its end: stopped (`Case.stop`) or scored.

    Args:
        folder: As in `ResultRow`.
        provenance: Of the chain (``deepcac2``, ``weights``).
    """
    series, result, stop = case.series, case.score, case.stop
    known = {name: getattr(series, name) for name in COLUMNS if hasattr(series, name)}
    known["warnings"] = ";".join(dict.fromkeys(f.code for f in case.warnings))
    made_by = provenance or {"deepcac2": "", "weights": {}}
    weights = (f"{k}:{v['name']}@{v['sha256'][:12]}" for k, v in made_by["weights"].items())
    domain = case.facts.get("domain", {})
    scored: dict[str, Any] = {}
    if result is not None:
        scored = {
            "agatston_score": round(result.total, 4),
            "risk_group": int(result.risk_group),
            "risk_group_name": result.risk_group.label,
            "volume_mm3": round(result.volume_mm3, 3),
            "mass_mg": result.mass_mg,
            "n_lesions": len(result.lesions),
            "rule": result.rule,
        }
    direct, screening = case.facts.get("direct", {}), case.facts.get("screening", {})
    return ResultRow(
        **known,
        **scored,
        screening_positive=screening.get("positive"),
        direct_score=direct.get("score"),
        direct_group=direct.get("group"),
        status="scored" if stop is None else stop.status,
        code="" if stop is None else stop.code,
        reason="" if stop is None else stop.reason,
        caution="; ".join(cautions(case)) if stop is None else "",
        heart_volume_ml=case.facts.get("heart_volume_ml"),
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


def write_table(folder: Path, rows: Iterable[ResultRow]) -> None:
    """Write the table into an output folder, as Parquet and as CSV.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    write_parquet(folder / PARQUET, rows)
    write_csv(folder / CSV, read_parquet(folder / PARQUET))


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

    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    schema = pa.schema([(f.name, kinds[str(f.type).split(" ")[0]]) for f in fields(ResultRow)])
    left = iter(rows)
    # an open file, because pyarrow takes no path that is no UTF-8
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        parquet.ParquetWriter(file, schema) as writer,
    ):
        while part := list(islice(left, _ROWS_AT_ONCE)):
            columns = {name: [getattr(row, name) for row in part] for name in COLUMNS}
            writer.write_table(pa.table(columns, schema=schema))


def read_parquet(path: Path) -> Iterator[ResultRow]:
    """The rows of `write_parquet`, one by one.

    Raises:
        InputError: It is not there or not such a table.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    yield ResultRow(**row)
    except (OSError, TypeError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path}: {error}; give the output folder of 'deepcac2 run'") from error


def series_folder(root: Path, folder: str) -> Path | None:
    """Where a row's files are; None where it has none, or where they would lie outside the results.

    Args:
        root: Output folder of a run, resolved (`Path.resolve`): once, not for every row.
        folder: `ResultRow.folder`: a table may come from elsewhere, so it is checked.
    """
    place = (root / folder).resolve()
    return place if place != root and place.is_relative_to(root) else None
