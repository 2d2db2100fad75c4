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
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy.typing as npt
import yaml
from mhubio.core import IO, Config, Instance, Module

from ..dicom import Finding, Series, safe_name
from ..dicom.names import printable
from ..errors import DeepCACError, MaskMismatch
from ..imaging import Geometry, Volume
from ..imaging.files import read_image
from ..pipeline.case import Case, Fact, Stop
from ..pipeline.chain import run_stage
from ..pipeline.facts import CT, SCORE
from ..pipeline.step import facts, steps
from ..pipeline.workflow import Workflow
from ..pipeline.writing import is_target
from ..scoring import CalciumScore
from ..system.atomic import write_whole

CASE = "json:mod=case"
SEGMENTATION = "dicomseg:mod=seg"
REJECTED = "json:mod=rejected"
"""mhubio data types; those of images stand with their facts (`pipeline.case.ImageFile`)."""

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
    _write(path, _read(path) | {k: v for k, v in content.items() if v is not None})


def case_to_json(case: Case) -> dict[str, Any]:
    """All of a case but its arrays and outputs; of the CT the geometry."""
    score = case.get(SCORE)
    return {
        "series": asdict(case.series),
        "geometry": asdict(case[CT].geometry) if CT in case else None,
        "score": asdict(score) if score is not None else None,
        "findings": [asdict(finding) for finding in case.findings],
        "facts": {f.name: v for f, v in case.facts.items() if f.image is None and f != SCORE},
        "timings": case.timings,
        "stop": asdict(case.stop) if case.stop is not None else None,
    }


def case_from_json(content: dict[str, Any]) -> Case:
    """The case of `case_to_json`, without the CT."""
    score, stop, known = content.get("score"), content.get("stop"), facts()
    found = {known[name]: value for name, value in content["facts"].items()}
    if score is not None:
        found[SCORE] = _restored(CalciumScore, score)
    return Case(
        series=_restored(Series, content["series"]),
        facts=found,
        findings=tuple(_restored(Finding, f) for f in content["findings"]),
        timings=content["timings"],
        stop=_restored(Stop, stop) if stop is not None else None,
    )


def read_case(path: Path, files: Mapping[Fact[Any], Path] | None = None) -> Case:
    """The case so far, with those of its arrays whose NIfTI files are given.

    Args:
        files: By fact.

    Raises:
        MaskMismatch: A file has another size than the CT.
        InputUnreadable: A file is gone or damaged.
    """
    content = _read(path)
    case = case_from_json(content)
    for fact, file in (files or {}).items():
        array = _array(file, content)
        if fact == CT:
            case = case.add(CT, Volume(hu=array, geometry=_geometry(content)))
        else:
            case = case.add(fact, array if array.dtype.kind == "f" else array > 0)
    return case


def file_of(instance: Instance, query: str) -> Path | None:
    """Where a file of an instance lies that a module has written."""
    found = [Path(data.abspath) for data in instance.data.filter(query, confirmed_only=True)]
    return found[0] if found else None


def files_of(instance: Instance, wanted: Iterable[Fact[Any]]) -> dict[Fact[Any], Path]:
    """Where the images of an instance lie that modules before have written."""
    files = {fact: file_of(instance, fact.image.query) for fact in wanted if fact.image is not None}
    return {fact: path for fact, path in files.items() if path is not None}


def read_geometry(path: Path) -> Geometry | None:
    """The CT's grid, exact, without reading the CT; None where none was read."""
    content = _read(path)
    return _geometry(content) if "geometry" in content else None


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    with suppress(FileNotFoundError):
        content = json.loads(path.read_text(encoding="ascii"))
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, default=str).encode("ascii"))


def _geometry(content: dict[str, Any]) -> Geometry:
    geometry: Geometry = _restored(Geometry, content["geometry"])
    return geometry


def _array(path: Path, content: dict[str, Any]) -> npt.NDArray[Any]:
    array, _ = read_image(path)
    if array.shape != (shape := _geometry(content).shape):
        raise MaskMismatch(
            f"{path} has {array.shape} voxels, its CT {shape}; run the workflow from its start"
        )
    return array


def _restored(kind: Any, value: Any) -> Any:
    """A value from JSON as the type it had: dataclass, tuple, path, or what JSON itself knows."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: _restored(hints[name], v) for name, v in value.items()})  # type: ignore[operator]
    if get_origin(kind) in (Union, types.UnionType):
        inner = next(k for k in get_args(kind) if k is not type(None))
        return None if value is None else _restored(inner, value)
    if get_origin(kind) is tuple:
        inside = get_args(kind)
        if inside[-1] is Ellipsis:
            inside = (inside[0],) * len(value)
        return tuple(_restored(k, v) for k, v in zip(inside, value, strict=True))
    return Path(value) if kind is Path else value
