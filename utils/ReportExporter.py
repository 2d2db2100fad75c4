"""MHub module: the report of each series as JSON and DICOM SR, and one table for all."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from pathlib import Path
from typing import Any

from mhubio.core import IO, Instance, InstanceData, Module

from ..errors import WorkflowError
from ..pipeline.chain import provenance_of
from ..pipeline.facts import SCORE
from ..pipeline.outputs import SR_NAME, report, write_sr
from ..pipeline.writing import ReportExporterOptions
from ..system.atomic import write_json
from .handover import CASE, SEGMENTATION, for_each_case, read_case, workflow_of


@IO.Config("format", str, "compact", the="form of the report; compact, a flat JSON object, is the only one")
@IO.Config(
    "includes",
    list[dict[str, Any]],
    ReportExporterOptions().includes,
    the="what the report holds, in order: label, and attr or data",
)
class ReportExporter(Module):
    """Write ``report.json`` and ``cac.sr.dcm`` of each series. Takes the place of mhubio's exporter."""

    format: str
    includes: list[dict[str, Any]]

    def task(self) -> None:
        """Report on every series.

        Raises:
            WorkflowError: `format` is not ours.
            WeightsError: Weights that the SR names are missing.
        """
        if self.format != "compact":
            raise WorkflowError(f"ReportExporter: format must be 'compact', not {self.format!r}")
        self.provenance = provenance_of(workflow_of(self.config))
        self.export()

    @for_each_case
    @IO.Input("in_case", CASE, the="header facts and score of the series")
    @IO.Output("out_report", "report.json", "json:mod=report", bundle="reports", the="report")
    @IO.Output(
        "out_sr", SR_NAME, "dicom:mod=sr", bundle="reports", the="DICOM SR, where there are score and SEG"
    )
    def export(
        self, instance: Instance, in_case: InstanceData, out_report: InstanceData, out_sr: InstanceData
    ) -> None:
        """Report on one series."""
        case = read_case(Path(in_case.abspath))
        write_json(Path(out_report.abspath), report(case, self.includes))
        segmentations = [*instance.data.filter(SEGMENTATION)]
        if SCORE in case and segmentations:
            seg = Path(segmentations[0].abspath)
            write_sr(Path(out_sr.abspath), case, segmentation=seg, provenance=self.provenance)
