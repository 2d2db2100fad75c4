"""What one MHub module hands to the next: the images as NIfTI, all else of the `Case` in ``case.json``.

Geometry, slices, score and findings go through JSON, whose numbers are exact; NIfTI keeps geometry as
32-bit floats, and masks resampled from that would differ from those of the run in memory.
"""

# mhubio has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import yaml
from mhubio.core import IO, Config, Instance, Module

from ..dicom import Finding, Series, safe_name
from ..errors import DeepCACError, InputUnreadable, MaskMismatch
from ..imaging import Geometry, Volume
from ..imaging.files import read_image
from ..imaging.labels import Label, Labels
from ..outputs.organizer import is_target
from ..pipeline.case import Case, Fact, Stop
from ..pipeline.chain import run_stage
from ..pipeline.facts import CT, GEOMETRY
from ..pipeline.step import facts, steps
from ..pipeline.workflow import Workflow
from ..system.atomic import write_whole
from ..system.codec import from_plain, to_plain
from ..system.names import printable

T = TypeVar("T")

CASE = "json:mod=case"
REJECTED = "json:mod=rejected"
"""mhubio data types; those of images and files stand with
their facts (`pipeline.case.ImageFile`) and writers (`pipeline.writer.Writer`)."""

CASE_FILE = "case.json"


def for_each_case(task: Callable[..., None]) -> Callable[[Module], None]:
    """For a task of one instance: done for every series that got this far, each on its own (`run_stage`).

    Takes the place of ``@IO.Instance()``. The task leaves the case with `write_case`. A series that is
    rejected or breaks gets its status, code and reason as attributes of the instance and one line in the log
    (with the traceback where it broke unexpectedly); later modules leave it alone.

    Raises:
        DeepCACError: Not of one series alone, see `run_stage`; mhubio itself would log it and go on.
    """

    @functools.wraps(task)
    def run(self: Module, instance: Instance) -> None:
        if instance.attr["status"] != "open" or ended(self):
            return
        path = case_path(instance)

        def stage(case: Case) -> Case:
            task(self, instance)
            return read_case(path)

        try:
            case = run_stage(self.label, stage, read_case(path))
            write_case(path, case)
        except DeepCACError as error:
            self.ended_by = error
            return
        if case.stop is not None:
            instance.attr |= {k: v for k, v in asdict(case.stop).items() if k != "module"}
            log_stop(self, case)

    def ended(self: Module) -> DeepCACError | None:
        return getattr(self, "ended_by", None)

    every = IO.Instance()(run)

    @functools.wraps(task)
    def run_all(self: Module) -> None:
        every(self)
        if (error := ended(self)) is not None:
            raise error

    return run_all


def log_stop(module: Module, case: Case) -> None:
    """Say in one line of the log why a case goes no further."""
    stop = case.stop
    if stop is None:
        return
    level = "WARNING" if stop.status == "rejected" else "ERROR"
    where = safe_name(case.series.series_uid)
    module.log(printable(f"series {where}: {stop.status}, {stop.code}: {stop.reason}"), level=level)


def workflow_of(config: Config) -> Workflow:
    """The workflow that mhubio runs, read as strictly as the command line reads it.

    Modules that are mhubio's own, and targets of its organizer that only mhubio knows, are left to mhubio.

    Raises:
        WorkflowError: An option of one of our modules is unknown or has a wrong value.
    """
    content = config._config

    def ours(options: Any) -> Any:
        if not isinstance(options, dict) or not isinstance(options.get("targets"), list):
            return options
        return options | {"targets": [t for t in options["targets"] if is_target(t)]}

    known = steps()
    entries = [ours(s) for s in content["execute"] if (s["module"] if isinstance(s, dict) else s) in known]
    modules = {k: ours(v) for k, v in (content.get("modules") or {}).items() if k in known}
    return Workflow.parse(yaml.safe_dump({"execute": entries, "modules": modules}), name=_workflow_name())


def _workflow_name() -> str:
    """What the command line calls it: mhubio keeps only what its file says."""
    for option in ("--config", "--workflow"):
        if option in sys.argv[:-1]:
            return Path(sys.argv[sys.argv.index(option) + 1]).stem
    return "mhubio"


def case_path(instance: Instance) -> Path:
    """The ``case.json`` of an instance."""
    return Path(instance.abspath) / CASE_FILE


def write_case(path: Path, case: Case) -> None:
    """Write or update the ``case.json`` with all of a case but its arrays and outputs."""
    content = case_to_json(case)
    facts = {**_read(path).get("facts", {}), **content["facts"]}
    _write(path, {**content, "facts": facts})


def case_to_json(case: Case) -> dict[str, Any]:
    """All of a case but its arrays and outputs."""
    return {
        "series": to_plain(case.series),
        "facts": {f.name: to_plain(v) for f, v in case.facts.items() if f.image is None},
        "findings": [to_plain(finding) for finding in case.findings],
        "timings": case.timings,
        "stop": to_plain(case.stop),
    }


def case_from_json(content: dict[str, Any]) -> Case:
    """The case of `case_to_json`."""
    known = facts()

    def back(kind: type[T], value: Any) -> T:
        return from_plain(kind, value, where=CASE_FILE, error=InputUnreadable)

    found = {
        known[name]: value if (kind := known[name].kind) is None else back(kind, value)
        for name, value in content["facts"].items()
    }
    return Case(
        series=back(Series, content["series"]),
        facts=found,
        findings=tuple(back(Finding, f) for f in content["findings"]),
        timings=content["timings"],
        stop=back(Stop, content["stop"]) if content["stop"] is not None else None,
    )


def read_case(path: Path, files: Mapping[Fact[Any], Path] | None = None) -> Case:
    """The case so far, with those of its arrays whose NIfTI files are given.

    Args:
        files: By fact.

    Raises:
        MaskMismatch: A file has another size than the CT.
        InputUnreadable: A file is gone or damaged.
    """
    case = case_from_json(_read(path))
    for fact, file in (files or {}).items():
        array = _array(file, case[GEOMETRY])
        if fact == CT:
            case = case.add(CT, Volume(hu=array, geometry=case[GEOMETRY]))
        else:
            case = case.add(fact, _labels(array, fact.image.classes) if fact.image is not None else array)
    return case


def _labels(array: npt.NDArray[Any], classes: tuple[Label, ...]) -> Labels | npt.NDArray[Any]:
    """An image as `Labels`, where it shows classes. In a mask, which another tool may have written, all above
    0 is the class."""
    if len(classes) == 1:
        return Labels.of(array > 0, classes[0])
    return Labels(array=array.astype(np.uint8), classes=classes) if classes else array


def file_of(instance: Instance, query: str) -> Path | None:
    """Where a file of an instance lies that a module has written."""
    found = [Path(data.abspath) for data in instance.data.filter(query, confirmed_only=True)]
    return found[0] if found else None


def files_of(instance: Instance, wanted: Iterable[Fact[Any]]) -> dict[Fact[Any], Path]:
    """Where the images of an instance lie that modules before have written."""
    files = {fact: file_of(instance, fact.image.query) for fact in wanted if fact.image is not None}
    return {fact: path for fact, path in files.items() if path is not None}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        content = json.loads(path.read_text(encoding="ascii"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, default=str).encode("ascii"))


def _array(path: Path, geometry: Geometry) -> npt.NDArray[Any]:
    array, _ = read_image(path)
    if array.shape != geometry.shape:
        raise MaskMismatch(
            f"{path} has {array.shape} voxels, its CT {geometry.shape}; run the workflow from its start"
        )
    return array
