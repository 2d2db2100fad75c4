"""Where the files of a series go (the module DataOrganizer), and the stages that write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dicom import safe_name
from ..pipeline.case import Case
from ..pipeline.places import Named, patient_folder, series_folder
from ..pipeline.step import Context, Stage, Step, register
from ..pipeline.writer import ORGANIZER, of_module, queries, targets, writers, written
from ..system.nearest import nearest

if TYPE_CHECKING:
    from ..pipeline.workflow import Workflow

_FIXED = ("json:mod=details", "csv:mod=results")
"""mhubio data types of the details and the table: a run finds its way back by them, so in memory they lie
where the defaults say."""

OF_RUN = "json:mod=report:scope=global"
"""mhubio data type of the report of the whole run, which is one file (`report.write_run_report`)."""


@dataclass(frozen=True, kw_only=True)
class DataOrganizerOptions:
    """Where the outputs go. The keys are mhubio's own.

    Attributes:
        target_dir: Used by mhubio's runner only; in memory the folder comes from the command line.
        require_data_confirmation: mhubio's own.
        targets: ``query-->path`` lines; queries are those of the writers (`pipeline.writer.Writer.query`),
            and in the path ``[i:PatientID]`` and ``[i:SeriesInstanceUID]`` are replaced by their escaped
            values. An image that a target names is written without ``--keep``, too. The report of the whole
            run, ``json:mod=report:scope=global``, is one file; its path names no series.
    """

    target_dir: str = "output_data"
    require_data_confirmation: bool = True
    targets: list[str] = field(
        default_factory=lambda: [
            "dicomseg:mod=seg-->[i:PatientID]/[i:SeriesInstanceUID]/cac.seg.dcm",
            "dicom:mod=sr-->[i:PatientID]/[i:SeriesInstanceUID]/cac.sr.dcm",
            "json:mod=report-->[i:PatientID]/[i:SeriesInstanceUID]/DeepCAC.report.json",
            "json:mod=details-->[i:PatientID]/[i:SeriesInstanceUID]/details.json",
            "csv:mod=results-->results.csv",
        ]
    )

    def __post_init__(self) -> None:
        for target in self.targets:
            check_target(target)


def is_target(target: Any) -> bool:
    """Whether a target of the organizer is one that the run in memory knows, too."""
    try:
        check_target(target)
    except ValueError:
        return False
    return True


def check_target(target: Any) -> None:
    """See that a target of the organizer is known and stays inside the output folder.

    Raises:
        ValueError: It does not.
    """
    query, arrow, path = str(target).partition("-->")
    if not arrow or not path:
        raise ValueError(f"a target reads 'query-->path', not {target!r}")
    known = {*_FIXED, OF_RUN, *queries()}
    if query not in known and query not in (known := known | set(targets())):
        raise ValueError(f"unknown target {query!r}.{nearest(query, known)}")
    placeholders = re.findall(r"\[([^\]]*)\]", path)
    if query == OF_RUN and placeholders:
        raise ValueError(f"the report of the run is one file: [{placeholders[0]}] in its path names a series")
    for name in placeholders:
        if name not in ("i:PatientID", "i:SeriesInstanceUID"):
            valid = nearest(name, ("i:PatientID", "i:SeriesInstanceUID"))
            raise ValueError(f"unknown placeholder [{name}].{valid}")
    if path.startswith("/") or ".." in Path(path).parts:
        raise ValueError(f"the target {path!r} must stay inside the output folder")


def _targets(workflow: Workflow) -> list[tuple[str, str]]:
    """The targets of a workflow: query and path."""
    options = workflow.options(ORGANIZER)
    pairs = (target.partition("-->") for target in (options.targets if options is not None else ()))
    return [(query, path) for query, _, path in pairs]


def place_of_run(workflow: Workflow) -> Path | None:
    """Where the report of the whole run goes, relative to the output folder; None: there is none."""
    return next((Path(path) for query, path in _targets(workflow) if query == OF_RUN), None)


def places(workflow: Workflow, series: Named) -> dict[str, Path]:
    """Where the outputs of a series go, relative to the output folder, by name of their writer.

    In the folder of the series, unless a target of the workflow's ``DataOrganizer`` says otherwise. PatientID
    and UIDs are escaped (`dicom.safe_name`): whatever they hold, the paths stay inside.
    """
    folder = series_folder(series)
    found = {name: folder / writer.file for name, writer in writers().items()}
    for query, template in _targets(workflow):
        if query in targets():
            text = template.replace("[i:PatientID]", patient_folder(series.patient_id))
            text = text.replace("[i:SeriesInstanceUID]", safe_name(series.series_uid))
            found[targets()[query]] = Path(text)
    return found


def writing(module: str) -> Callable[[Any, Context], Stage]:
    """`Step.build` of a module: its stage writes those of its files for which a case has what they need."""

    def build(options: Any, context: Context) -> Stage:
        named = {query for query, _ in _targets(context.workflow)}

        def write(case: Case) -> Case:
            where = places(context.workflow, case.series)
            files = (w for w in of_module(module) if not w.keep or w.keep in context.keep or w.query in named)
            return written(case, files, lambda w: context.output / where[w.name], options, context)

        return write

    return build


STEP = register(
    Step(
        module=ORGANIZER,
        options=DataOrganizerOptions,
        phase="write",
        build=writing(ORGANIZER),
        merge=lambda workflows: workflows[0].options(ORGANIZER),
        after=("DSegConverter", "ReportExporter"),
    )
)
