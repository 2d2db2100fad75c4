"""A run: every series of a folder through the chain, one after the other, each on its own."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dicom import Discovery, Series, discover
from ..errors import InputError, OutputError, OutputInsideInput, OutputMismatch, SeriesFailed, SeriesRejected
from ..imaging.atomic import output_errors, remove_leftovers, write_json
from . import outputs
from .case import Case
from .chain import Chain, build_chain, series_folder
from .results import ResultRow, result_row, write_csv, write_parquet
from .workflow import Workflow

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

RUN_FILE = "run.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run tells whoever watches: series done so far, of how many, and the newest row.

    Attributes:
        done, total: Series.
        row: The newest row; None at the start.
        skipped: Whether that row was there already from an earlier run.
    """

    done: int
    total: int
    row: ResultRow | None = None
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run ended with.

    Attributes:
        rows: One per series found, and one per file that looked like DICOM and could not be read.
        output: The output folder.
    """

    rows: tuple[ResultRow, ...]
    output: Path

    def count(self, status: str) -> int:
        """Rows of a status."""
        return sum(r.status == status for r in self.rows)


def check_folders(source: Path, output: Path) -> None:
    """The input must exist; the output must be neither it, nor in it, nor hold it.

    Raises:
        InputError: The input does not exist.
        OutputInsideInput: They overlap.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder with DICOM files")
    inside, outside = source.resolve(), output.resolve()
    if outside == inside or inside in outside.parents:
        raise OutputInsideInput(
            f"the output {output} lies inside the input {source} and would be read as input next time; "
            "choose a folder outside"
        )


def _settle_output(output: Path, chain: Chain, redo: bool) -> None:
    """Make the output folder and see that it belongs to this configuration.

    Raises:
        OutputMismatch: It holds results made with another workflow, weights or version.
    """
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    made_with = {
        k: chain.provenance[k] for k in ("deepcac2", "workflow_fingerprint", "weights", "allowed_gates")
    }
    path = output / RUN_FILE
    if path.exists() and not redo:
        try:
            before = json.loads(path.read_text())["made_with"]
        except (OSError, ValueError, KeyError) as error:
            raise OutputMismatch(
                f"{path} cannot be read ({error}); choose another output folder, or --redo"
            ) from error
        if before != made_with:
            different = sorted(k for k in made_with if before.get(k) != made_with[k])
            raise OutputMismatch(
                f"{output} holds results of another configuration ({', '.join(different)} differ); "
                "choose another output folder, or compute all again with --redo"
            )
    write_json(path, {"made_with": made_with, "provenance": chain.provenance})


def _finished(folder: Path) -> ResultRow | None:
    """The row of a series that an earlier run scored or rejected, if its files are whole."""
    try:
        content = json.loads((folder / outputs.DETAILS_NAME).read_text())
        row = ResultRow(**content["row"])
        written = content["outputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if row.status == "failed" or not all((folder / name).exists() for name in written):
        return None
    return row


def run_series(series: Series, chain: Chain, output: Path) -> ResultRow:
    """One series through the chain; whatever happens to it ends in a row and in its ``details.json``.

    Raises:
        DiskFull, OutputUnwritable: The output cannot be written at all.
    """
    case, started = Case(series=series), time.perf_counter()
    status, code, reason = "scored", "", ""
    remove_leftovers(output / series_folder(series))
    log.info("series %s: %d images", series.series_uid, len(series.slices))
    try:
        case = chain(case)
    except SeriesRejected as error:
        status, code, reason = "rejected", error.code, str(error)
    except (SeriesFailed, InputError) as error:
        status, code, reason = "failed", error.code, str(error)
    row = result_row(
        case,
        status=status,
        code=code,
        reason=reason,
        seconds=time.perf_counter() - started,
        folder=series_folder(series).as_posix(),
        provenance=chain.provenance,
    )
    folder = output / series_folder(series)
    content = outputs.details(case, chain.provenance)
    content["status"] = status
    if status != "scored":
        content |= {"code": code, "reason": reason}
    content["row"] = asdict(row)
    content["outputs"] = sorted(
        p.relative_to(folder).as_posix() for p in case.outputs.values() if p.is_relative_to(folder)
    )
    write_json(folder / outputs.DETAILS_NAME, content)
    log.info("series %s: %s %s", series.series_uid, status, code)
    return row


def _unreadable_rows(discovery: Discovery) -> list[ResultRow]:
    return [
        ResultRow(
            patient_id="", study_uid="", series_uid="", status="failed", code="unreadable-file", reason=text
        )
        for text in (f"{u.path}: {u.reason}" for u in discovery.unreadable)
    ]


def run_folder(
    source: Path,
    output: Path,
    *,
    workflow: Workflow,
    device: torch.device,
    allow: Collection[str] = (),
    keep: Collection[str] = (),
    redo: bool = False,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    """Score every series of `source` into `output`.

    A series that an earlier run of the same configuration scored or rejected is not computed again; one
    that failed is tried again. The table is rewritten at the end, whatever ended the run.

    Args:
        source: Folder with DICOM files, or a zip archive of them.
        output: Folder for the results; made when missing.
        watch: Called before the first and after every series.

    Raises:
        InputError, OutputError, WeightsError: The run cannot start or the output cannot be written.
    """
    check_folders(source, output)
    importer = workflow.options("DicomImporter")
    chain = build_chain(workflow, output=output, device=device, allow=allow, keep=keep)
    discovery = discover(source, allow=frozenset(allow) | frozenset(importer.allow))
    _settle_output(output, chain, redo)
    rows = _unreadable_rows(discovery)
    total = len(discovery.series)
    watch(Progress(done=0, total=total))
    try:
        for n, series in enumerate(discovery.series, start=1):
            row = None if redo else _finished(output / series_folder(series))
            skipped = row is not None
            row = row or run_series(series, chain, output)
            rows.append(row)
            watch(Progress(done=n, total=total, row=row, skipped=skipped))
    except OutputError as error:
        # Its text holds a path, and paths hold PatientIDs: the screen shows it, the log does not.
        log.error("stopped: %s", error.code)
        raise
    finally:
        write_table(output, rows)
    return RunSummary(rows=tuple(rows), output=output)


def write_table(output: Path, rows: list[ResultRow]) -> None:
    """Write ``results.csv`` and ``results.parquet``."""
    write_csv(output / "results.csv", rows)
    write_parquet(output / "results.parquet", rows)


def read_details(folder: Path) -> dict[str, Any]:
    """The details JSON of a series' output folder.

    Raises:
        InputError: It is not there or not JSON.
    """
    path = folder / outputs.DETAILS_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; give the output folder of 'deepcac2 run'") from error
    return content
