"""MHub module: every series of a folder that passes the header gates becomes an instance."""

# mhubio compares annotations with types, so none may be a string here; and it has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

import json
import shutil
import zipfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mhubio.core import IO, DataType, DirectoryChain, FileType, Instance, InstanceData, Meta, Module

from ..dicom import Discovery, Series, SliceRef, discover, safe_name
from ..dicom.files import copied, open_archive, opened, read_slice
from ..errors import OutputUnwritable
from ..pipeline.case import Case
from ..pipeline.chain import run_stage
from ..pipeline.gates import check_allowed
from ..pipeline.places import patient_folder
from ..pipeline.reading import check_headers
from ..pipeline.run import check_folders
from ..system.atomic import output_errors, write_whole
from ..system.names import printable
from .handover import CASE, CASE_FILE, REJECTED, case_to_json, log_stop, workflow_of, write_case


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
        workflow_of(self.config)
        check_allowed(self.allow)
        source, target = (
            Path(DirectoryChain(path=folder, parent=self.config.data.dc).abspath)
            for folder in (self.source_dir, self.import_dir)
        )
        check_folders(source, target)
        found = discover(source, allow=self.allow)
        rejected = [case for series in found.series if (case := self._import(series, target)) is not None]
        self.log(f"{len(found.series)} series found, {len(rejected)} rejected by their headers")
        self._list(rejected, found)

    def _import(self, series: Series, target: Path) -> Case | None:
        """Make a series an instance; the case of one that becomes none."""
        name = safe_name(series.series_uid)
        folder = target / name

        def stage(case: Case) -> Case:
            case = check_headers(case)
            if case.stop is None:
                _clear(folder)
                write_case(folder / CASE_FILE, case)  # the folder is known as ours, whatever happens next
                linked = link_files(series, folder / "dicom", number=self.sort_data)
                case = replace(case, series=linked)
            return case

        case = run_stage(self.label, stage, Case(series=series))
        if case.stop is not None:
            log_stop(self, case)
            return case
        write_case(folder / CASE_FILE, case)

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
        InstanceData(CASE_FILE, DataType.fromString(CASE), instance).confirm()
        return None

    def _list(self, rejected: list[Case], found: Discovery) -> None:
        """Write ``rejected.json``: what becomes no instance, for `DataOrganizer`."""
        for unread in found.unreadable:
            self.log(printable(f"unreadable-file: {unread.path}: {unread.reason}"), level="ERROR")
        data = InstanceData("rejected.json", DataType.fromString(REJECTED), self.config.data.globalInstance)
        content = {
            "cases": [case_to_json(case) for case in rejected],
            "unreadable": [[str(unread.path), unread.reason] for unread in found.unreadable],
        }
        write_whole(Path(data.abspath), json.dumps(content, indent=1, default=str).encode())
        data.confirm()


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
        InputUnreadable: A zip archive has gone or is damaged.
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
                    archives[path] = stack.enter_context(open_archive(path))
                with opened(path, member, archives[path]) as (source, _), (folder / name).open("wb") as file:
                    copied(source, file)
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
        if not (folder / CASE_FILE).is_file():
            raise OutputUnwritable(f"{folder} holds files of another program; choose another import_dir")
        with output_errors(folder):
            shutil.rmtree(folder)


def _from_header(value: Any, ref: SliceRef) -> str:
    """A value of `meta`; ``%Keyword`` is that attribute of the first slice."""
    text = str(value)
    return str(read_slice(ref).get(text[1:], "")) if text.startswith("%") else text
