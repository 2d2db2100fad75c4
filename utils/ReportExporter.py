"""MHub module: the report of each series as JSON and DICOM SR, and one table for all."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mhubio.core import IO, DataType, Instance, InstanceData, Module

from ..errors import WorkflowError
from ..imaging.atomic import write_json
from ..pipeline.outputs import DETAILS_NAME, SR_NAME, details, report, write_sr
from ..pipeline.results import CSV, ResultRow, write_csv
from ..pipeline.workflow import ReportExporterOptions
from .handover import (
    CASE,
    SEGMENTATION,
    case_path,
    for_each_case,
    read_case,
    read_geometry,
    read_provenance,
    row_of,
)


@IO.Config("format", str, "compact", the="form of the report; compact, a flat JSON object, is the only one")
@IO.Config(
    "includes",
    list[dict[str, Any]],
    ReportExporterOptions().includes,
    the="what the report holds, in order: label, and attr or data",
)
class ReportExporter(Module):
    """Write ``report.json``, ``cac.sr.dcm``, ``details.json`` of each series, and ``results.csv`` with all.

    Takes the place of mhubio's exporter. The table has a row for every series found, whatever became of
    it; it is the ``csv:mod=results`` of mhubio's global instance.
    """

    format: str
    includes: list[dict[str, Any]]

    def task(self) -> None:
        """Report on every series.

        Raises:
            WorkflowError: `format` is not ours.
            DiskFull, OutputUnwritable: The table cannot be written.
        """
        if self.format != "compact":
            raise WorkflowError(f"ReportExporter: format must be 'compact', not {self.format!r}")
        self.export()
        instances = self.config.data.instances
        self._write_table([*self._rejected(), *(row_of(read_case(case_path(i)), i) for i in instances)])

    @IO.Instance()
    @for_each_case
    @IO.Input("in_case", CASE, the="header facts and score of the series")
    @IO.Output("out_report", "report.json", "json:mod=report", bundle="reports", the="report")
    @IO.Output(
        "out_sr", SR_NAME, "dicom:mod=sr", bundle="reports", the="DICOM SR, where there are score and SEG"
    )
    @IO.Output("out_details", DETAILS_NAME, "json:mod=details", bundle="reports", the="everything else")
    def export(
        self,
        instance: Instance,
        in_case: InstanceData,
        out_report: InstanceData,
        out_sr: InstanceData,
        out_details: InstanceData,
    ) -> None:
        """Report on one series."""
        path = Path(in_case.abspath)
        case, provenance = read_case(path), read_provenance(path)
        write_json(Path(out_report.abspath), report(case, self.includes))
        segmentations = [*instance.data.filter(SEGMENTATION)]
        if case.score is not None and segmentations:
            seg = Path(segmentations[0].abspath)
            write_sr(Path(out_sr.abspath), case, segmentation=seg, provenance=provenance)
        content = details(case, provenance) | {"geometry": asdict(read_geometry(path))}
        write_json(Path(out_details.abspath), content)
        instance.attr["status"] = "scored"

    def _rejected(self) -> list[ResultRow]:
        """The rows of what became no instance, as `DicomImporter` left them."""
        left = self.config.data.globalInstance.data.filter("json:mod=rejected")
        return [ResultRow(**row) for data in left for row in json.loads(Path(data.abspath).read_text())]

    def _write_table(self, rows: list[ResultRow]) -> None:
        data = InstanceData(CSV, DataType.fromString("csv:mod=results"), self.config.data.globalInstance)
        write_csv(Path(data.abspath), rows)
        data.confirm()
