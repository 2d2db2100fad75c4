"""The chain in memory: a workflow turned into a list of stages, models loaded once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dicom import Series, safe_name, write_segmentation
from ..errors import DeepCACError, InputError, SeriesError, SeriesRejected
from ..imaging.atomic import write_json, write_whole
from ..scoring.rules import find_rule
from . import outputs, previews, stages
from .case import Case, Stop
from .results import CSV, PARQUET
from .workflow import TARGET_ROLES, Step, Workflow

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Stage = Callable[[Case], Case]


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` as a device.

    ``auto`` takes the GPU if there is one and the CPU otherwise, and the run says which; a device that is
    named is that device or an error.

    Raises:
        DeviceError: The named device is not there, or the name is unknown.
    """
    import torch

    from ..errors import DeviceError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda" or (name.startswith("cuda:") and name[5:].isdigit()):
        if not torch.cuda.is_available():
            raise DeviceError(
                f"--device {name}: no usable GPU here (no driver, no GPU, or a torch without CUDA); "
                "use --device cpu, or --device auto to take what there is"
            )
        index = int(name[5:]) if ":" in name else 0
        if index >= torch.cuda.device_count():
            raise DeviceError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
        return torch.device(name)
    raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")


def describe_device(device: torch.device) -> str:
    """The device in words, for logs and reports."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A workflow ready to run: stages with their models.

    Attributes:
        workflow: What it was built from.
        stages: (module name, stage), in order.
        provenance: Versions, workflow fingerprint and weight hashes, for the details JSON.
    """

    workflow: Workflow
    stages: tuple[tuple[str, Stage], ...]
    provenance: dict[str, Any]

    def __call__(self, case: Case) -> Case:
        """Run the stages on a case until one stops it; what was known then stays in the case.

        Raises:
            DiskFull, OutputUnwritable, WeightsError, DeviceError: As in `run_stage`.
        """
        for name, stage in self.stages:
            if case.stop is not None:
                break
            case = run_stage(name, stage, case)
        return case


def run_stage(module: str, stage: Stage, case: Case) -> Case:
    """A case through one stage, timed: the one place that turns what a stage raises into the case's stop.

    Args:
        module: Whose stage it is; named in the timings and in the stop.

    Raises:
        DeepCACError: Not of this series alone, such as DiskFull, OutputUnwritable, WeightsError or
            DeviceError; these end a run.
    """
    started = time.perf_counter()
    try:
        after = stage(case)
    except SeriesRejected as error:
        after = replace(case, stop=Stop(status="rejected", code=error.code, reason=str(error)))
    except (SeriesError, InputError) as error:
        after = replace(case, stop=Stop(status="failed", code=error.code, reason=str(error)))
    except DeepCACError:
        raise
    except Exception as error:
        # One bad series must not stop a run of thousands.
        after = replace(case, stop=_broken(module, error))
    if after.stop is not None:
        after = replace(after, stop=replace(after.stop, module=module))
    return replace(after, timings={**after.timings, module: time.perf_counter() - started})


def _broken(module: str, error: Exception) -> Stop:
    """The stop of a stage that broke unexpectedly; the log file keeps the traceback."""
    # Torch's own error has a GPU's memory in mind; it is no MemoryError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Stop(
            status="failed", code="out-of-memory", reason=f"{module}: not enough memory for this series"
        )
    log.exception("%s broke", module)
    text = (str(error).splitlines() or [""])[0]
    reason = f"{module} broke: {type(error).__name__}: {text}"
    return Stop(status="failed", code="internal-error", reason=reason)


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


PHASES: dict[str, tuple[str, ...]] = {
    "read": ("DicomImporter", "NiftiConverter"),
    "compute": ("HeartRunner", "ScreeningRunner", "DirectRunner", "DeepCACRunner", "AGSCalculator"),
    "write": ("DSegConverter", "ReportExporter", "DataOrganizer"),
}
"""The chain in three parts that different processes may run, in order: only ``compute`` needs the device."""


ROLES = {
    "HeartRunner": "heart",
    "ScreeningRunner": "screening",
    "DirectRunner": "direct",
    "DeepCACRunner": "calcium",
}
"""Modules that run networks, and the role of their weights."""


def provenance_of(workflow: Workflow, allow: Collection[str] = ()) -> dict[str, Any]:
    """What results are made with: version, workflow, gates and the hashes of the weights; JSON types.

    Raises:
        WeightsError: Weights are missing or of an unknown kind.
    """
    from .. import __version__
    from ..weights import resolve

    weights = {}
    for module, role in ROLES.items():
        if (options := workflow.options(module)) is not None:
            weights[role] = resolve(options.weights, role).identity()
    return {
        "deepcac2": __version__,
        "workflow": workflow.name,
        "workflow_fingerprint": workflow.fingerprint(),
        "allowed_gates": sorted(frozenset(allow) | frozenset(workflow.options("DicomImporter").allow)),
        "weights": weights,
    }


def build_chain(
    workflow: Workflow,
    *,
    output: Path,
    device: torch.device | None,
    allow: Collection[str] = (),
    keep: Collection[str] = (),
    phases: Collection[str] = tuple(PHASES),
) -> Chain:
    """Load the models and string the stages of `workflow` together.

    Args:
        output: The run's output folder.
        device: For the networks; None does without ``compute``.
        allow: Codes of gates that warn instead of reject, on top of the workflow's own.
        keep: Further files to write: ``"nifti"`` keeps CT and masks as NIfTI.
        phases: Which parts of the chain, see `PHASES`.

    Raises:
        WeightsError: Weights are missing, altered or of an unknown kind.
    """
    from .. import __version__

    provenance = provenance_of(workflow, allow)
    wanted = {module for phase in phases for module in PHASES[phase]}
    chain: list[tuple[str, Stage]] = []
    for step in workflow.steps:
        options = step.options
        if step.module not in wanted:
            continue
        if step.module == "DicomImporter":
            stage: Stage = stages.check_headers
        elif step.module == "NiftiConverter":
            stage = stages.build_volume
        elif step.module in ROLES:
            stage = _with_model(workflow, step, device, provenance["allowed_gates"])
        elif step.module == "AGSCalculator":
            stage = stages.ScoreCalcium(
                rule=options.rule,
                calibration_factor=options.calibration_factor,
                allow=provenance["allowed_gates"],
            )
        elif step.module == "DSegConverter":
            stage = _WriteSegmentation(
                workflow=workflow, output=output, name=options.model_name, version=__version__
            )
        elif step.module == "ReportExporter":
            stage = _WriteReport(
                workflow=workflow, output=output, includes=tuple(options.includes), provenance=provenance
            )
        else:
            stage = Organise(workflow=workflow, output=output, keep=frozenset(keep))
        chain.append((step.module, stage))
    return Chain(workflow=workflow, stages=tuple(chain), provenance=provenance)


def lowest_counted_hu(rule: str | None) -> int | None:
    """HU from which a rule counts; None: any voxel of the mask may count, also where no rule is named.

    Raises:
        InputError: No rule has this name.
    """
    return None if rule is None else find_rule(rule).threshold


def _with_model(workflow: Workflow, step: Step, device: torch.device | None, allow: Collection[str]) -> Stage:
    """The stage of a network, loaded on the device; its cases say which device it was."""
    from ..models.calcium import CalciumModel
    from ..models.direct import DirectModel
    from ..models.heart import HeartModel
    from ..models.screening import ScreeningModel
    from ..weights import resolve

    module, options = step.module, step.options
    if device is None:
        raise TypeError(f"{module} needs a device")
    weights = resolve(options.weights, ROLES[module])
    stage: Stage
    if module == "HeartRunner":
        stage = stages.FindHeart(model=HeartModel.load(weights, device), weights=weights, allow=allow)
    elif module == "ScreeningRunner":
        stage = stages.Screen(
            model=ScreeningModel.load(weights, device, threshold=options.threshold),
            weights=weights,
            localise=options.localise,
            heart_margin_mm=options.heart_margin_mm,
            exclude=options.exclude,
        )
    elif module == "DirectRunner":
        stage = stages.ScoreDirectly(
            model=DirectModel.load(weights, device), weights=weights, localise=options.localise
        )
    else:
        stage = stages.FindCalcium(
            model=CalciumModel.load(weights, device),
            weights=weights,
            heart_margin_mm=options.heart_margin_mm,
            peak_probability=options.peak_probability,
            lowest_hu=lowest_counted_hu(getattr(workflow.options("AGSCalculator"), "rule", None)),
        )
    return on_device(stage, device)


def on_device(stage: Stage, device: torch.device) -> Stage:
    """A stage whose cases say which device it ran on."""
    words = describe_device(device)

    def run(case: Case) -> Case:
        case = stage(case)
        return replace(case, facts={**case.facts, "device": words})

    return run


@dataclass(frozen=True, kw_only=True)
class _WriteSegmentation:
    workflow: Workflow
    output: Path
    name: str
    version: str

    def __call__(self, case: Case) -> Case:
        path = self.output / target_paths(self.workflow, case.series)["seg"]
        calcium = case.screened if case.calcium is None else case.calcium
        if case.volume is None or case.heart is None or calcium is None:
            raise TypeError("the SEG needs the CT, the heart and the calcium")
        write_segmentation(
            path,
            series=case.series,
            geometry=case.volume.geometry,
            heart=case.heart,
            calcium=calcium,
            slices=case.series.slices,
            algorithm_name=self.name,
            algorithm_version=self.version,
        )
        return replace(case, outputs={**case.outputs, "seg": path})


@dataclass(frozen=True, kw_only=True)
class _WriteReport:
    """Writes the report, and the SR of a case with a score and the SEG that it was counted in."""

    workflow: Workflow
    output: Path
    includes: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    def __call__(self, case: Case) -> Case:
        paths = target_paths(self.workflow, case.series)
        path = self.output / paths["report"]
        write_json(path, outputs.report(case, list(self.includes)))
        written = {**case.outputs, "report": path}
        if case.score is not None and "seg" in written:
            written["sr"] = self.output / paths["sr"]
            outputs.write_sr(written["sr"], case, segmentation=written["seg"], provenance=self.provenance)
        return replace(case, outputs=written)


@dataclass(frozen=True, kw_only=True)
class Organise:
    """Writes what stands beside SEG and report: the preview, and NIfTI where asked for."""

    workflow: Workflow
    output: Path
    keep: frozenset[str]

    def __call__(self, case: Case) -> Case:
        paths = target_paths(self.workflow, case.series)
        written = dict(case.outputs)
        if previews.can_show(case):
            written["preview"] = self.output / paths["preview"]
            write_whole(written["preview"], previews.preview(case))
        if "nifti" in self.keep and case.volume is not None:
            written |= _write_nifti(case, self.output / series_folder(case.series))
        return replace(case, outputs=written)


def _write_nifti(case: Case, folder: Path) -> dict[str, Path]:
    from ..imaging.files import write_image

    if case.volume is None:
        raise TypeError("the CT has not been read yet")
    geometry = case.volume.geometry
    files: dict[str, Any] = {"ct": case.volume.hu, "heart": case.heart, "calcium": case.calcium}
    files |= {"screened": case.screened, "attention": case.attention}
    written = {}
    for name, array in files.items():
        if array is not None:
            path = folder / f"{name}.nii.gz"
            write_image(path, array if name in ("ct", "attention") else array.astype("uint8"), geometry)
            written[f"nifti-{name}"] = path
    return written
