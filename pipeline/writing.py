"""The steps that write what a case leaves: SEG, report and SR, and what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dicom import Series, safe_name, write_segmentation
from ..system.atomic import write_json, write_whole
from ..system.nearest import nearest
from . import outputs, previews
from .case import Case
from .facts import CALCIUM, CT, HEART, POSSIBLE_CALCIUM, SCORE
from .outputs import CSV, PARQUET
from .step import Context, Step, images, register

if TYPE_CHECKING:
    from .workflow import Workflow


@dataclass(frozen=True, kw_only=True)
class DSegConverterOptions:
    """Write the DICOM SEG. The keys are mhubio's own."""

    converted_file_name: str = "cac.seg.dcm"
    model_name: str = "deepcac2"


@dataclass(frozen=True, kw_only=True)
class ReportExporterOptions:
    """Write the report. The keys are mhubio's own.

    Attributes:
        format: ``compact``, the only one: a flat JSON object.
        includes: What the report holds, in order: ``label`` and ``attr`` (``SeriesInstanceUID``,
            ``PatientID``, ``StudyInstanceUID``), ``data`` (see `pipeline.outputs.report_values`) or ``text``,
            which is taken as it is.
    """

    format: str = "compact"
    includes: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"label": "Predicted Agatston Score", "data": "agatston_score", "value": "value"},
            {"label": "Predicted Risk Group", "data": "risk_group", "value": "value"},
            {"label": "SeriesInstanceUID", "attr": "SeriesInstanceUID"},
        ]
    )


TARGET_ROLES = {
    "dicomseg:mod=seg": "seg",
    "dicom:mod=sr": "sr",
    "json:mod=report": "report",
    "json:mod=details": "details",
    "csv:mod=results": "results",
}
"""mhubio data query of a DataOrganizer target → role of the output in `Case.outputs`. In memory, details and
table always lie where the defaults say: a run finds its way back by them."""


@dataclass(frozen=True, kw_only=True)
class DataOrganizerOptions:
    """Where the outputs go. The keys are mhubio's own.

    Attributes:
        target_dir: Used by mhubio's runner only; in memory the folder comes from the command line.
        require_data_confirmation: mhubio's own.
        targets: ``query-->path`` lines; `TARGET_ROLES` lists the queries, and in the path ``[i:PatientID]``
            and ``[i:SeriesInstanceUID]`` are replaced by their escaped values.
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
    if query not in TARGET_ROLES:
        raise ValueError(f"unknown target {query!r}.{nearest(query, TARGET_ROLES)}")
    for name in re.findall(r"\[([^\]]*)\]", path):
        if name not in ("i:PatientID", "i:SeriesInstanceUID"):
            valid = nearest(name, ("i:PatientID", "i:SeriesInstanceUID"))
            raise ValueError(f"unknown placeholder [{name}].{valid}")
    if path.startswith("/") or ".." in Path(path).parts:
        raise ValueError(f"the target {path!r} must stay inside the output folder")


def target_paths(workflow: Workflow, series: Series) -> dict[str, Path]:
    """Where the outputs of a series go, relative to the output folder, by role.

    The workflow's ``DataOrganizer`` targets, with what this project adds beside the report. PatientID and
    UIDs are escaped (`dicom.safe_name`): whatever they hold, the paths stay inside.
    """
    folder = series_folder(series)
    paths = {
        "seg": folder / outputs.SEG_NAME,
        "report": folder / outputs.REPORT_NAME,
        "sr": folder / outputs.SR_NAME,
        "details": folder / outputs.DETAILS_NAME,
        "preview": folder / outputs.PREVIEW_NAME,
    }
    options = workflow.options("DataOrganizer")
    for target in options.targets if options is not None else ():
        query, _, template = target.partition("-->")
        if TARGET_ROLES[query] not in ("seg", "sr", "report"):
            continue
        text = template.replace("[i:PatientID]", patient_folder(series.patient_id))
        text = text.replace("[i:SeriesInstanceUID]", safe_name(series.series_uid))
        paths[TARGET_ROLES[query]] = Path(text)
    return paths


_OWN_NAMES = ("logs", CSV, PARQUET, "run.json")
"""What a run itself writes into the output folder; no patient may take these names."""


def patient_folder(patient_id: str) -> str:
    """The folder name of a patient: escaped, and never one that the run itself needs."""
    name = safe_name(patient_id)
    if name.lower() in _OWN_NAMES:
        return f"%{ord(name[0]):02X}{name[1:]}"
    return name


def series_folder(series: Series) -> Path:
    """``<PatientID>/<SeriesInstanceUID>``, escaped."""
    return Path(patient_folder(series.patient_id)) / safe_name(series.series_uid)


@dataclass(frozen=True, kw_only=True)
class WriteSegmentation:
    """Writes the SEG: the heart, and the calcium, or where no network has looked for it, what is possible."""

    options: DSegConverterOptions
    context: Context

    def __call__(self, case: Case) -> Case:
        from .. import __version__

        path = self.context.output / target_paths(self.context.workflow, case.series)["seg"]
        write_segmentation(
            path,
            series=case.series,
            geometry=case[CT].geometry,
            heart=case[HEART],
            calcium=case[CALCIUM if CALCIUM in case else POSSIBLE_CALCIUM],
            slices=case.series.slices,
            algorithm_name=self.options.model_name,
            algorithm_version=__version__,
        )
        return replace(case, outputs={**case.outputs, "seg": path})


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """Writes the report, and the SR of a case with a score and the SEG that it was counted in."""

    options: ReportExporterOptions
    context: Context

    def __call__(self, case: Case) -> Case:
        paths = target_paths(self.context.workflow, case.series)
        path = self.context.output / paths["report"]
        write_json(path, outputs.report(case, self.options.includes))
        written = {**case.outputs, "report": path}
        if SCORE in case and "seg" in written:
            written["sr"] = self.context.output / paths["sr"]
            outputs.write_sr(
                written["sr"], case, segmentation=written["seg"], provenance=dict(self.context.provenance)
            )
        return replace(case, outputs=written)


@dataclass(frozen=True, kw_only=True)
class Organise:
    """Writes what stands beside SEG and report: the preview, and NIfTI where asked for."""

    workflow: Workflow
    output: Path
    keep: frozenset[str] = frozenset()

    def __call__(self, case: Case) -> Case:
        paths = target_paths(self.workflow, case.series)
        written = dict(case.outputs)
        if (picture := previews.preview(case)) is not None:
            written["preview"] = self.output / paths["preview"]
            write_whole(written["preview"], picture)
        if "nifti" in self.keep and CT in case:
            written |= _write_nifti(case, self.output / series_folder(case.series))
        return replace(case, outputs=written)


def _write_nifti(case: Case, folder: Path) -> dict[str, Path]:
    from ..imaging.files import write_image

    volume, written = case[CT], {}
    for name, fact in images().items():
        if fact in case and fact.image is not None:
            written[f"nifti-{name}"] = folder / fact.image.name
            array = volume.hu if fact == CT else case[fact]
            if array.dtype == bool:
                array = array.astype("uint8")
            write_image(written[f"nifti-{name}"], array, volume.geometry)
    return written


def _segmentation_of(workflows: Sequence[Workflow]) -> DSegConverterOptions:
    chosen: DSegConverterOptions = max(workflows, key=lambda w: w.finds(CALCIUM)).options("DSegConverter")
    return chosen


def _report_of_all(workflows: Sequence[Workflow]) -> ReportExporterOptions:
    entries = [entry for w in workflows for entry in w.options("ReportExporter").includes]
    unique = {entry.get("label"): entry for entry in reversed(entries)}
    first: ReportExporterOptions = workflows[0].options("ReportExporter")
    return replace(first, includes=[e for e in entries if unique[e.get("label")] is e])


SEGMENTATION = register(
    Step(
        module="DSegConverter",
        options=DSegConverterOptions,
        phase="write",
        reads=lambda options: (CT, HEART, (CALCIUM, POSSIBLE_CALCIUM)),
        build=lambda options, context: WriteSegmentation(options=options, context=context),
        merge=_segmentation_of,
    )
)

REPORT = register(
    Step(
        module="ReportExporter",
        options=ReportExporterOptions,
        phase="write",
        build=lambda options, context: WriteReport(options=options, context=context),
        merge=_report_of_all,
        after=("DSegConverter",),
    )
)

ORGANIZER = register(
    Step(
        module="DataOrganizer",
        options=DataOrganizerOptions,
        phase="write",
        build=lambda options, context: Organise(
            workflow=context.workflow, output=context.output, keep=context.keep
        ),
        merge=lambda workflows: workflows[0].options("DataOrganizer"),
        after=("DSegConverter", "ReportExporter"),
    )
)
