"""MHub module: every series of a folder that passes the header gates becomes an instance."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

import json
import shutil
import zipfile
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from mhubio.core import IO, DataType, DirectoryChain, FileType, Instance, InstanceData, Meta, Module

from .. import __version__
from ..dicom import Discovery, Series, SliceRef, discover, safe_name
from ..dicom.files import open_slice
from ..errors import OutputUnwritable
from ..imaging.atomic import output_errors, write_whole
from ..pipeline.case import Case
from ..pipeline.chain import patient_folder
from ..pipeline.results import ResultRow, result_row
from ..pipeline.run import check_folders
from ..pipeline.stages import check_headers
from ..pipeline.workflow import MODULES, Workflow
from .handover import CASE, case_path, note, write_case


@IO.Config("source_dir", str, "input_data", the="folder with the DICOM data, below data_base_dir")
@IO.Config("import_dir", str, "sorted_data", the="folder for one folder a series, below data_base_dir")
@IO.Config("sort_data", bool, True, the="put the slice's number before a file's name; false: keep the name")
@IO.Config("meta", dict[str, Any], {"mod": "ct"}, the="meta data of every series; %Keyword reads the header")
@IO.Config("allow", list[str], [], the="codes of quality gates that shall warn instead of reject")
class DicomImporter(Module):
    """Find the series, sort their files, and reject what cannot be scored.

    Takes the place of mhubio's importer, with its options. An instance lies in
    ``<import_dir>/<SeriesInstanceUID>/``: its files as links in ``dicom/`` (members of zip archives
    unpacked), and ``case.json``. Identifiers are escaped wherever mhubio may put them into a path; their
    values as in the file are in ``case.json``. What was rejected or could not be read is in the log and
    in ``_global/rejected.json``.
    """

    source_dir: str
    import_dir: str
    sort_data: bool
    meta: dict[str, Any]
    allow: list[str]

    def task(self) -> None:
        """Import all series of the source folder.

        Raises:
            WorkflowError: The workflow names an unknown option, or one has a wrong value.
            InputError: The source folder is not there, unreadable or without DICOM.
            OutputError: The import folder cannot be written.
        """
        check_workflow(self.config._config)
        source, target = (
            Path(DirectoryChain(path=folder, parent=self.config.data.dc).abspath)
            for folder in (self.source_dir, self.import_dir)
        )
        check_folders(source, target)
        found = discover(source, allow=self.allow)
        rejected = []
        for series in found.series:
            if series.rejection is None:
                self._import(series, target)
            else:
                code, reason = series.rejection.code, series.rejection.message
                self.log(f"series {series.series_uid}: rejected, {code}: {reason}", level="WARNING")
                rejected.append(result_row(Case(series=series), status="rejected", code=code, reason=reason))
        self.log(f"{len(found.series)} series found, {len(rejected)} rejected by their headers")
        self._list(rejected, found)

    def _import(self, series: Series, target: Path) -> None:
        name = safe_name(series.series_uid)
        folder = target / name
        _clear(folder)
        case = check_headers(Case(series=link_files(series, folder / "dicom", number=self.sort_data)))
        write_case(folder / "case.json", case)
        provenance = {"deepcac2": __version__, "runner": "mhubio", "allowed_gates": sorted(self.allow)}
        note(folder / "case.json", "provenance", weights={}, **provenance)

        instance = Instance(str(folder))
        instance.attr |= {
            "sid": name,
            "SeriesInstanceUID": name,
            "StudyInstanceUID": safe_name(series.study_uid),
            "PatientID": patient_folder(series.patient_id),
            "status": "open",
            "code": "",
            "reason": "",
        }
        self.config.data.addInstance(instance)
        meta = {k: _from_header(v, case.series.slices[0]) for k, v in self.meta.items()}
        InstanceData("dicom", DataType(FileType.DICOM, Meta() + meta), instance).confirm()
        InstanceData(case_path(instance).name, DataType.fromString(CASE), instance).confirm()

    def _list(self, rejected: list[ResultRow], found: Discovery) -> None:
        """Write ``rejected.json``: the rows of what becomes no instance."""
        for unread in found.unreadable:
            where = f"{unread.path}: {unread.reason}"
            self.log(f"unreadable-file: {where}", level="ERROR")
            rejected.append(
                ResultRow(
                    patient_id="",
                    study_uid="",
                    series_uid="",
                    status="failed",
                    code="unreadable-file",
                    reason=where,
                )
            )
        data = InstanceData(
            "rejected.json", DataType.fromString("json:mod=rejected"), self.config.data.globalInstance
        )
        rows = [asdict(row) for row in rejected]
        write_whole(Path(data.abspath), json.dumps(rows, indent=1).encode())
        data.confirm()


def check_workflow(config: dict[str, Any]) -> None:
    """Read a workflow as strictly as the command line does.

    Modules that are mhubio's own are left to mhubio.

    Raises:
        WorkflowError: An option of one of our modules is unknown or has a wrong value.
    """
    ours = set(MODULES) - {"DataOrganizer"}
    steps = [s for s in config["execute"] if (s["module"] if isinstance(s, dict) else s) in ours]
    options = {k: v for k, v in (config.get("modules") or {}).items() if k in ours}
    Workflow.parse(yaml.safe_dump({"execute": steps, "modules": options}), name="mhubio")


def link_files(series: Series, folder: Path, *, number: bool) -> Series:
    """Link every file of a series into a new folder.

    Args:
        series: The series; slices in order.
        folder: Made here.
        number: Name the files ``0001-<own name>`` … in slice order. False: keep their own names; files
            that have the same name are numbered all the same.

    Returns:
        The series, its slices pointing into `folder`.

    Raises:
        DiskFull, OutputUnwritable: The folder cannot be written.
    """
    names = {(ref.path, ref.member): safe_name(ref.file_name) for ref in series.slices}
    if number or len({name.lower() for name in names.values()}) < len(names):
        digits = max(4, len(str(len(names))))
        names = {file: f"{n:0{digits}d}-{name}" for n, (file, name) in enumerate(names.items(), start=1)}
    with output_errors(folder), ExitStack() as stack:
        folder.mkdir(parents=True)
        archives: dict[Path, zipfile.ZipFile] = {}
        for (path, member), name in names.items():
            if member is None:
                _link(path.resolve(), folder / name)
            else:
                if path not in archives:
                    archives[path] = stack.enter_context(zipfile.ZipFile(path))
                (folder / name).write_bytes(archives[path].read(member))
    slices = tuple(replace(s, path=folder / names[s.path, s.member], member=None) for s in series.slices)
    return replace(series, slices=slices)


def _link(source: Path, link: Path) -> None:
    """A symbolic link: costs no space and works with a read-only source. A copy where links cannot be."""
    try:
        link.symlink_to(source)
    except OSError:
        shutil.copyfile(source, link)


def _clear(folder: Path) -> None:
    """Remove what an earlier run left in the folder of a series, and nothing else.

    Raises:
        OutputUnwritable: The folder was made by something else, or cannot be removed.
    """
    if folder.exists():
        if not (folder / "case.json").is_file():
            raise OutputUnwritable(f"{folder} holds files of another program; choose another import_dir")
        with output_errors(folder):
            shutil.rmtree(folder)


def _from_header(value: Any, ref: SliceRef) -> str:
    """A value of `meta`; ``%Keyword`` is that attribute of the first slice."""
    text = str(value)
    return str(open_slice(ref).get(text[1:], "")) if text.startswith("%") else text
