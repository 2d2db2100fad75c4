"""The report: a flat JSON object with what the workflow asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WorkflowError
from ..pipeline.case import Case
from ..pipeline.operating import one_of
from ..pipeline.step import Context, Step, register, values
from ..pipeline.writer import Writer, register_writer
from ..system.atomic import write_json
from ..system.foreign import read_json
from ..system.nearest import nearest
from .organizer import place_of_run, places, writing

if TYPE_CHECKING:
    from ..pipeline.results import ResultRow
    from ..pipeline.workflow import Workflow

MODULE = "ReportExporter"

_ATTRIBUTES = {
    "SeriesInstanceUID": "series_uid",
    "StudyInstanceUID": "study_uid",
    "PatientID": "patient_id",
}


@dataclass(frozen=True, kw_only=True)
class ReportExporterOptions:
    """Write the report, and the SR of a case with a score and a SEG. The keys are mhubio's own.

    Attributes:
        format: ``compact``, the only one: a flat JSON object.
        includes: What the report holds, in order: ``label`` and ``attr`` (``SeriesInstanceUID``,
            ``PatientID``, ``StudyInstanceUID``), ``data`` (see `report_values`) or ``text``, which is taken
            as it is.
    """

    format: str = "compact"
    includes: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"label": "Predicted Agatston Score", "data": "agatston_score", "value": "value"},
            {"label": "Predicted Risk Group", "data": "risk_group", "value": "value"},
            {"label": "SeriesInstanceUID", "attr": "SeriesInstanceUID"},
        ]
    )

    def __post_init__(self) -> None:
        one_of("format", self.format, ("compact",))


def report_values(case: Case) -> dict[str, Any]:
    """The values that a report can include by name (`step.values`), those that the case has."""
    found = {name: value.of(case) for name, (value, _) in values().items()}
    return {name: value for name, value in found.items() if value is not None}


def report(case: Case, includes: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of a case: label → value, as the workflow's ``ReportExporter.includes`` says.

    Raises:
        WorkflowError: An entry names something unknown.
    """
    data = report_values(case)
    out: dict[str, Any] = {}
    for include in includes:
        label = include.get("label")
        if not label:
            raise WorkflowError(f"ReportExporter: an entry of 'includes' lacks a 'label': {include}")
        if "attr" in include:
            name = str(include["attr"])
            if name not in _ATTRIBUTES:
                raise WorkflowError(f"ReportExporter: unknown attr {name!r}.{nearest(name, _ATTRIBUTES)}")
            out[label] = getattr(case.series, _ATTRIBUTES[name])
        elif "data" in include:
            name = str(include["data"])
            if name not in values():
                raise WorkflowError(f"ReportExporter: unknown data {name!r}.{nearest(name, values())}")
            if name not in data:
                raise WorkflowError(f"ReportExporter: {name!r} needs {values()[name][1].module} before it")
            out[label] = data[name]
        elif "text" in include:
            out[label] = str(include["text"])
        else:
            raise WorkflowError(f"ReportExporter: the entry {label!r} needs 'attr', 'data' or 'text'")
    return out


def _write(path: Path, case: Case, options: ReportExporterOptions, context: Context) -> None:
    write_json(path, report(case, options.includes))


def write_run_report(output: Path, workflow: Workflow, rows: Iterable[ResultRow]) -> Path | None:
    """Write the report of the whole run, if a target of the workflow asks for it: one JSON list.

    It holds what lies in the output folder, the report of each scored series in the order of the table; so it
    is written when the table is, and a run that goes on completes both.

    Args:
        output: The run's output folder.
        rows: The table.

    Returns:
        The file; None: nobody asks for it.

    Raises:
        InputUnreadable: The report of a series is damaged.
        DiskFull, OutputUnwritable: It cannot be written.
    """
    path = place_of_run(workflow)
    if path is None or workflow.options(MODULE) is None:
        return None
    advice = "compute it again with --redo"
    scored = (row for row in rows if row.status == "scored")
    found = [read_json(output / places(workflow, row)[REPORT.name], advice=advice) for row in scored]
    write_json(output / path, found)
    return output / path


def _of_all(workflows: Sequence[Workflow]) -> ReportExporterOptions:
    entries = [entry for w in workflows for entry in w.options(MODULE).includes]
    unique = {entry.get("label"): entry for entry in reversed(entries)}
    first: ReportExporterOptions = workflows[0].options(MODULE)
    return replace(first, includes=[e for e in entries if unique[e.get("label")] is e])


REPORT = register_writer(
    Writer(name="report", file="DeepCAC.report.json", write=_write, module=MODULE, query="json:mod=report")
)

STEP = register(
    Step(
        module=MODULE,
        options=ReportExporterOptions,
        phase="write",
        build=writing(MODULE),
        merge=_of_all,
        after=("DSegConverter",),
    )
)
