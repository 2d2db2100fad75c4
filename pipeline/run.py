"""A run's series, each on its own: what is done with one, and what an earlier run has left of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dicom import Series
from ..errors import InputError, InputUnreadable, OutputInsideInput, OutputMismatch
from ..system.atomic import output_errors, remove_leftovers, write_json
from ..system.foreign import foreign, read_json
from ..system.nearest import nearest
from .case import Case, Stop
from .chain import Chain, build_chain, provenance_of
from .details import details
from .places import DETAILS_NAME, RUN_FILE, series_folder
from .results import ResultRow, checked_row, result_row
from .step import PHASES
from .workflow import Workflow
from .writer import kept

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What became of a series.

    Attributes:
        row: Its row.
        timings: Seconds per module.
    """

    row: ResultRow
    timings: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is done with every series of a run; worker processes get a copy each.

    Attributes:
        workflow: The stages and their options.
        output: The run's output folder.
        allow: Codes of gates that warn instead of reject, on top of the workflow's own.
        keep: Further files to write, see `build_chain`.
        provenance: See `provenance_of`, which also finds weights that are missing.
    """

    workflow: Workflow
    output: Path
    allow: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    provenance: dict[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", provenance_of(self.workflow, self.allow))
        for word in self.keep:
            if word not in kept():
                raise InputError(f"--keep {word}: there is no such output.{nearest(word, kept())}")

    @cached_property
    def allowed(self) -> frozenset[str]:
        """Codes of all gates that shall warn instead of reject: those of `allow` and of the workflow."""
        return frozenset(self.provenance["allowed_gates"])

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """What two runs must share for their results to stand in one folder."""
        keys = ("deepcac2", "workflow_fingerprint", "weights", "allowed_gates")
        return {k: self.provenance[k] for k in keys}

    def chain(self, phases: Collection[str] = PHASES, device: torch.device | None = None) -> Chain:
        """Some phases of the chain, models loaded; see `build_chain`."""
        return build_chain(
            self.workflow,
            output=self.output,
            device=device,
            allow=self.allow,
            keep=self.keep,
            phases=phases,
        )

    def folder(self, series: Series) -> Path:
        """Where the files of a series go."""
        return self.output / series_folder(series)

    def advance(self, case: Case, chain: Chain, *, last: bool) -> Case | Settled:
        """A case through the next part of the chain.

        Returns:
            The case, or what became of it: after the last part, and when it was stopped.

        Raises:
            DiskFull, OutputUnwritable, WeightsError, DeviceError: These end the run.
        """
        case = chain(case)
        return self.settle(case) if last or case.stop is not None else case

    def failed(self, series: Series, code: str, reason: str) -> Settled:
        """Settle a series that failed where no stage could say so."""
        stop = Stop(status="failed", code=code, reason=reason)
        return self.settle(Case(series=series, findings=series.findings, stop=stop))

    def settle(self, case: Case) -> Settled:
        """Write the ``details.json`` of a case that is at its end, whatever that is.

        Raises:
            DiskFull, OutputUnwritable: It cannot be written.
        """
        series, folder = case.series, self.folder(case.series)
        row = result_row(case, folder=series_folder(series).as_posix(), provenance=self.provenance)
        content = details(case, self.provenance)
        content["row"] = asdict(row)
        content["outputs"] = sorted(  # a target may lie in another folder of the run
            Path(os.path.relpath(p, folder)).as_posix()
            for p in case.outputs.values()
            if p.is_relative_to(self.output)
        )
        remove_leftovers(folder)
        write_json(folder / DETAILS_NAME, content)
        log.info("series %s: %s %s", series.series_uid, row.status, row.code)
        return Settled(row=row, timings=case.timings)


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


def settle_output(job: Job, *, redo: bool, series: Mapping[str, Any] | None = None) -> None:
    """Make the output folder, see that it belongs to this configuration, and write ``run.json``.

    Args:
        series: What is known of the series of the run, see `batch.run.run_found`; None: nothing.

    Raises:
        OutputMismatch: It holds results made with another workflow, weights or version.
    """
    output = job.output
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    path = output / RUN_FILE
    if path.exists() and not redo:
        advice = "choose another output folder, or --redo"
        content = read_json(path, error=OutputMismatch, advice=advice)
        before = content.get("made_with") if isinstance(content, dict) else None
        if not isinstance(before, dict):
            raise OutputMismatch(f"{path} does not say what its results are made with; {advice}")
        if before != job.made_with:
            different = sorted(k for k in job.made_with if before.get(k) != job.made_with[k])
            raise OutputMismatch(
                f"{output} holds results of another configuration ({', '.join(different)} differ); "
                "choose another output folder, or compute all again with --redo"
            )
    write_run(job, series)


def write_run(job: Job, series: Mapping[str, Any] | None) -> None:
    """Write ``run.json``: what the results are made with, and of which series; see `settle_output`."""
    content = {"made_with": job.made_with, "provenance": job.provenance}
    write_json(job.output / RUN_FILE, content if series is None else {**content, "series": dict(series)})


def finished(folder: Path) -> ResultRow | None:
    """The row of a series that an earlier run scored or rejected, if its files are whole."""
    row = stored_row(folder)
    return None if row is None or row.status == "failed" else row


def stored_row(folder: Path) -> ResultRow | None:
    """The row in the ``details.json`` of a series, if all files that it names are there."""
    path = folder / DETAILS_NAME
    try:
        with foreign(str(path)):
            content = read_json(path)
            row = checked_row(content["row"])
            return row if all((folder / name).exists() for name in content["outputs"]) else None
    except InputUnreadable:
        return None


def read_details(folder: Path) -> dict[str, Any]:
    """The details JSON of a series' output folder.

    Raises:
        InputError: It is not there or no JSON object.
    """
    path = folder / DETAILS_NAME
    content = read_json(path, advice="give the output folder of 'deepcac2 run'")
    if not isinstance(content, dict):
        raise InputUnreadable(f"{path} holds no JSON object; give the output folder of 'deepcac2 run'")
    return content


def clear_results(output: Path, folder: Path) -> None:
    """Remove what an earlier row of a series left, so that it does not stand beside that of a new one.

    Args:
        output: The run's output folder; nothing outside it is removed.
        folder: Of the series, below it.

    Raises:
        OutputUnwritable: It cannot be removed.
    """
    if not (folder / DETAILS_NAME).is_file():
        return
    with suppress(InputError), output_errors(folder):
        names = [str(name) for name in read_details(folder).get("outputs", ())]
        (folder / DETAILS_NAME).unlink()
        for path in ((folder / name).resolve() for name in names):
            if path.is_relative_to(output.resolve()):
                path.unlink(missing_ok=True)
