"""MHub module: the output folder, as `deepcac2 run` leaves it."""

# mhubio has no types:
# mypy: allow-subclassing-any

import json
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mhubio.core import Instance
from mhubio.modules.organizer.DataOrganizer import DataOrganizer as Organizer

from ..outputs.organizer import places, writing
from ..outputs.report import write_run_report
from ..pipeline.case import Case
from ..pipeline.chain import run_stage
from ..pipeline.places import CSV, DETAILS_NAME, DICTIONARY, PARQUET, RUN_FILE, XLSX
from ..pipeline.results import STATUSES, ResultRow, unreadable_row, write_table
from ..pipeline.run import Job, settle_output, write_run
from ..pipeline.step import images
from ..pipeline.writer import ORGANIZER, queries
from ..system.atomic import atomic_path
from .handover import (
    REJECTED,
    case_from_json,
    case_path,
    file_of,
    files_of,
    log_stop,
    read_case,
    workflow_of,
)
from .modules import context_of


class DataOrganizer(Organizer):
    """Copy the outputs by the workflow's targets, and complete the folder to that of a run.

    Takes the place of mhubio's organizer, with its options; targets that only mhubio knows are left to it.
    Beside SEG, SR and report, which lie where `places` says, every series found has its ``details.json``, and
    one with a result its preview; above stand ``run.json`` and the table of all.
    """

    _targets: dict[Any, str]

    def task(self) -> None:
        """Fill the output folder.

        Raises:
            WeightsError: Weights that the results name are missing.
            OutputError: The output folder cannot be written.
        """
        job = Job(workflow=workflow_of(self.config), output=Path(self.output_dc.abspath))
        ours = set(job.workflow.options("DataOrganizer").targets)
        self._targets = {q: t for q, t in self._targets.items() if f"{q.query}-->{t}" not in ours}
        super().task()
        settle_output(job, redo=True, series={"finished": False})
        left = self._left_out()
        cases = [self._settled(job, case_from_json(content)) for content in left["cases"]]
        cases += [self._organised(job, instance) for instance in self.config.data.instances]
        rows = [unreadable_row(Path(path), reason) for path, reason in left["unreadable"]]
        # as `dicom.discover` sorts them
        rows += sorted(cases, key=lambda row: (row.patient_id, row.study_uid, row.series_uid))
        write_table(job.output, rows)
        report = write_run_report(job.output, job.workflow, rows)
        fates, count = Counter(row.status for row in cases), len(cases)
        series = {"found": count, "selected": count, "finished": True, **{s: fates[s] for s in STATUSES}}
        write_run(job, {**series, "missing": 0, "missing_series": []})
        if self.set_file_permissions:
            names = (RUN_FILE, CSV, PARQUET, XLSX, DICTIONARY)
            self._open(job.output, *(job.output / name for name in names), *([report] if report else []))

    def _left_out(self) -> dict[str, Any]:
        """What became no instance, as `DicomImporter` left it."""
        (data,) = self.config.data.globalInstance.data.filter(REJECTED)
        content: dict[str, Any] = json.loads(Path(data.abspath).read_text())
        return content

    def _organised(self, job: Job, instance: Instance) -> ResultRow:
        """The row of an instance; writes its files."""
        path = case_path(instance)
        case = read_case(path)
        case = replace(case, outputs=self._copied(job, case, instance))

        def complete(case: Case) -> Case:
            context = replace(context_of(self), output=job.output)
            found = read_case(path, files_of(instance, images().values()))
            return writing(ORGANIZER)(None, context)(replace(found, outputs=case.outputs))

        if case.stop is None:
            case = run_stage(self.label, complete, case)
            log_stop(self, case)
        row = self._settled(job, case)
        instance.attr |= {"status": row.status, "code": row.code, "reason": row.reason}
        return row

    def _copied(self, job: Job, case: Case, instance: Instance) -> dict[str, Path]:
        """The outputs of an instance in the output folder, by name."""
        paths, written = places(job.workflow, case.series), {}
        for query, name in queries().items():
            if (file := file_of(instance, query)) is not None:
                written[name] = job.output / paths[name]
                with atomic_path(written[name]) as temporary:
                    shutil.copyfile(file, temporary)
        return written

    def _settled(self, job: Job, case: Case) -> ResultRow:
        row = job.settle(case).row
        if self.set_file_permissions:
            folder = job.folder(case.series)
            files = [*case.outputs.values(), folder / DETAILS_NAME]
            folders = {p for f in files for p in f.parents if p.is_relative_to(job.output)}
            self._open(*files, *folders)
        return row

    def _open(self, *paths: Path) -> None:
        """Let everybody change what a container's user wrote, as mhubio does; what is another's stays so."""
        for path in paths:
            with suppress(PermissionError):
                path.chmod(0o777)
