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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import yaml
from mhubio.core import IO, Config, Instance, Module

from ..dicom import Finding, Series, safe_name
from ..errors import DeepCACError, MaskMismatch, WorkflowError
from ..imaging import Geometry, Volume
from ..imaging.atomic import write_whole
from ..imaging.files import read_image, write_image
from ..pipeline.case import Case, Stop
from ..pipeline.chain import run_stage
from ..pipeline.workflow import MODULES, AGSCalculatorOptions, Workflow, is_target
from ..scoring import CalciumScore

CASE = "json:mod=case"
CT = "nifti:mod=ct"
HEART = "nifti:mod=seg:model=deepcac2:roi=HEART"
CALCIUM = "nifti:mod=seg:model=deepcac2:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION"
SCREENED = "nifti:mod=seg:model=screening:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION"
ATTENTION = "nifti:mod=attention:model=direct"
SEGMENTATION = "dicomseg:mod=seg"
REJECTED = "json:mod=rejected"
"""mhubio data types; ``roi`` is what SegDB calls the structure."""

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
    module.log(f"series {where}: {stop.status}, {stop.code}: {stop.reason}", level=level)


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

    steps = [ours(s) for s in content["execute"] if (s["module"] if isinstance(s, dict) else s) in MODULES]
    modules = {k: ours(v) for k, v in (content.get("modules") or {}).items() if k in MODULES}
    return Workflow.parse(yaml.safe_dump({"execute": steps, "modules": modules}), name=_workflow_name())


def _workflow_name() -> str:
    """What the command line calls it: mhubio keeps only what its file says."""
    for option in ("--config", "--workflow"):
        if option in sys.argv[:-1]:
            return Path(sys.argv[sys.argv.index(option) + 1]).stem
    return "mhubio"


def case_path(instance: Instance) -> Path:
    """The ``case.json`` of an instance."""
    return Path(instance.abspath) / CASE_FILE


def scoring_rule(module: Module) -> str | None:
    """The rule that AGSCalculator will score by in the workflow of a module; None where it does not run."""
    workflow = module.config._config
    for entry in workflow.get("execute") or ():
        own = dict(entry) if isinstance(entry, dict) else {"module": entry}
        if own.pop("module", None) == "AGSCalculator":
            options = {**((workflow.get("modules") or {}).get("AGSCalculator") or {}), **own}
            return str(options.get("rule", AGSCalculatorOptions().rule))
    return None


def write_case(path: Path, case: Case) -> None:
    """Write or update the ``case.json`` with all of a case but its arrays and outputs."""
    content = case_to_json(case)
    _write(path, _read(path) | {k: v for k, v in content.items() if v is not None})


def case_to_json(case: Case) -> dict[str, Any]:
    """All of a case but its arrays and outputs; of the CT the geometry."""
    return {
        "series": asdict(case.series),
        "geometry": asdict(case.volume.geometry) if case.volume is not None else None,
        "score": asdict(case.score) if case.score is not None else None,
        "findings": [asdict(finding) for finding in case.findings],
        "facts": case.facts,
        "timings": case.timings,
        "stop": asdict(case.stop) if case.stop is not None else None,
    }


def case_from_json(content: dict[str, Any]) -> Case:
    """The case of `case_to_json`, without the CT."""
    score, stop = content.get("score"), content.get("stop")
    return Case(
        series=_restored(Series, content["series"]),
        score=_restored(CalciumScore, score) if score is not None else None,
        findings=tuple(_restored(Finding, f) for f in content["findings"]),
        facts=content["facts"],
        timings=content["timings"],
        stop=_restored(Stop, stop) if stop is not None else None,
    )


def read_case(path: Path, **files: Path | None) -> Case:
    """The case so far, with those of its arrays whose NIfTI files are given.

    Args:
        files: Of ``ct``, ``heart``, ``calcium``, ``screened`` and ``attention``, see `Case`.

    Raises:
        MaskMismatch: A file has another size than the CT.
        InputUnreadable: A file is gone or damaged.
    """
    content = _read(path)
    arrays = {name: _array(file, content) for name, file in files.items() if file is not None}
    volume = Volume(hu=arrays.pop("ct"), geometry=_geometry(content)) if "ct" in arrays else None
    masks: dict[str, Any] = {n: array if n == "attention" else array > 0 for n, array in arrays.items()}
    return replace(case_from_json(content), volume=volume, **masks)


def read_geometry(path: Path) -> Geometry | None:
    """The CT's grid, exact, without reading the CT; None where none was read."""
    content = _read(path)
    return _geometry(content) if "geometry" in content else None


def heart_path(instance: Instance) -> Path:
    """Where the heart mask of an instance lies, for modules that can do without.

    Raises:
        WorkflowError: HeartRunner has not run.
    """
    found = [Path(data.abspath) for data in instance.data.filter(HEART)]
    if not found:
        raise WorkflowError("localise: heart needs HeartRunner before it")
    return found[0]


def write_mask(path: Path, mask: npt.NDArray[np.bool_] | None, volume: Volume | None) -> None:
    """Write a mask (z, y, x) on the CT's grid as NIfTI, 0 and 1.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    if mask is None or volume is None:
        raise TypeError("the stage before left no mask")
    write_image(path, mask, volume.geometry)


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
