"""What one MHub module hands to the next: the images as NIfTI, all else of the `Case` in ``case.json``.

Geometry, slices, score and findings go through JSON, whose numbers are exact; NIfTI keeps geometry as
32-bit floats, and masks resampled from that would differ from those of the run in memory.
"""

# mhubio has no types:
# mypy: allow-subclassing-any, allow-untyped-decorators

from __future__ import annotations

import functools
import json
import time
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
from mhubio.core import Instance, Module

from ..dicom import Finding, Series
from ..errors import DeepCACError, MaskMismatch, SeriesRejected, WorkflowError
from ..imaging import Geometry, Volume
from ..imaging.atomic import write_whole
from ..imaging.files import read_image, write_image
from ..pipeline.case import Case
from ..pipeline.chain import describe_device, series_folder
from ..pipeline.results import ResultRow, result_row
from ..pipeline.workflow import AGSCalculatorOptions
from ..scoring import CalciumScore

if TYPE_CHECKING:
    import torch

    from ..weights import WeightSet

CASE = "json:mod=case"
CT = "nifti:mod=ct"
HEART = "nifti:mod=seg:model=deepcac2:roi=HEART"
CALCIUM = "nifti:mod=seg:model=deepcac2:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION"
SCREENED = "nifti:mod=seg:model=screening:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION"
SEGMENTATION = "dicomseg:mod=seg"
"""mhubio data types; ``roi`` is what SegDB calls the structure."""

CASE_FILE = "case.json"


def for_each_case(task: Callable[..., None]) -> Callable[..., None]:
    """For a task under ``@IO.Instance()``: only series that got this far, each on its own.

    A series that is rejected or breaks gets its status, code and reason as attributes of the instance and
    one line in the log (with the traceback where it broke unexpectedly); later modules leave it alone.
    """

    @functools.wraps(task)
    def run(self: Module, instance: Instance) -> None:
        if instance.attr["status"] != "open":
            return
        started = time.perf_counter()
        try:
            task(self, instance)
        except SeriesRejected as error:
            _end(self, instance, "rejected", error.code, str(error))
        except DeepCACError as error:
            _end(self, instance, "failed", error.code, str(error))
        except Exception as error:
            # One bad series must not stop the others.
            self.log(traceback.format_exc(), level="ERROR")
            text = (str(error).splitlines() or [""])[0]
            reason = f"{self.label} broke: {type(error).__name__}: {text}"
            _end(self, instance, "failed", "internal-error", reason)
        else:
            note(case_path(instance), "timings", **{self.label: time.perf_counter() - started})

    return run


def _end(module: Module, instance: Instance, status: str, code: str, reason: str) -> None:
    instance.attr |= {"status": status, "code": code, "reason": reason}
    level = "WARNING" if status == "rejected" else "ERROR"
    module.log(f"series {instance.attr['sid']}: {status}, {code}: {reason}", level=level)


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
    content = {
        "series": asdict(case.series),
        "geometry": asdict(case.volume.geometry) if case.volume is not None else None,
        "score": asdict(case.score) if case.score is not None else None,
        "findings": [asdict(finding) for finding in case.findings],
        "facts": case.facts,
    }
    present = {k: v for k, v in content.items() if v is not None}
    _write(path, {"timings": {}, "provenance": {}} | _read(path) | present)


def note(path: Path, section: str, **entries: Any) -> None:
    """Add entries to a section of the ``case.json``: ``"timings"`` or ``"provenance"``."""
    content = _read(path)
    content[section] = content[section] | entries
    _write(path, content)


def note_network(path: Path, weights: WeightSet, device: torch.device) -> None:
    """Note which weights a module used, and on what, for the details JSON."""
    known = read_provenance(path)["weights"] | {weights.role: weights.identity()}
    note(path, "provenance", device=describe_device(device), weights=known)


def read_case(
    path: Path, *, ct: Path | None = None, heart: Path | None = None, calcium: Path | None = None
) -> Case:
    """The case so far, with those of its arrays whose NIfTI files are given.

    Raises:
        MaskMismatch: A file has another size than the CT.
        InputUnreadable: A file is gone or damaged.
    """
    content = _read(path)
    volume = None
    if ct is not None:
        volume = Volume(hu=_array(ct, content), geometry=_geometry(content))
    score = content.get("score")
    return Case(
        series=_restored(Series, content["series"]),
        volume=volume,
        heart=_array(heart, content) > 0 if heart is not None else None,
        calcium=_array(calcium, content) > 0 if calcium is not None else None,
        score=_restored(CalciumScore, score) if score is not None else None,
        findings=tuple(_restored(Finding, f) for f in content["findings"]),
        facts=content["facts"],
        timings=content["timings"],
    )


def read_geometry(path: Path) -> Geometry:
    """The CT's grid, exact, without reading the CT."""
    return _geometry(_read(path))


def read_provenance(path: Path) -> dict[str, Any]:
    """Versions, weights and device that made the case, for the details JSON."""
    provenance: dict[str, Any] = _read(path)["provenance"]
    return provenance


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


def row_of(case: Case, instance: Instance) -> ResultRow:
    """The case's row of the table of results; its instance knows how it ended."""
    return result_row(
        case,
        status=instance.attr["status"],
        code=instance.attr["code"],
        reason=instance.attr["reason"],
        seconds=sum(case.timings.values()),
        folder=series_folder(case.series).as_posix() if case.score is not None else "",
        provenance=read_provenance(case_path(instance)),
    )


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
