"""The chain in memory: a workflow turned into a list of stages, models loaded once."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DeepCACError, InputError, SeriesError, SeriesRejected
from .case import Case, Stop
from .facts import DEVICE
from .gates import check_allowed
from .step import PHASES, Context, Stage, roles, steps
from .workflow import Workflow

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


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


def provenance_of(workflow: Workflow, allow: Collection[str] = ()) -> dict[str, Any]:
    """What results are made with: version, workflow, gates and the hashes of the weights; JSON types.

    Raises:
        InputError: A gate is unknown or cannot be overridden.
        WeightsError: Weights are missing or of an unknown kind.
    """
    from .. import __version__
    from ..weights import resolve

    allowed = frozenset(allow) | frozenset(workflow.options("DicomImporter").allow)
    check_allowed(allowed)
    weights = {}
    for module, role in roles().items():
        if (options := workflow.options(module)) is not None:
            weights[role] = resolve(options.weights, role).identity()
    return {
        "deepcac2": __version__,
        "workflow": workflow.name,
        "workflow_fingerprint": workflow.fingerprint(),
        "allowed_gates": sorted(allowed),
        "weights": weights,
    }


def build_chain(
    workflow: Workflow,
    *,
    output: Path,
    device: torch.device | None,
    allow: Collection[str] = (),
    keep: Collection[str] = (),
    phases: Collection[str] = PHASES,
) -> Chain:
    """Load the models and string the stages of `workflow` together.

    Args:
        output: The run's output folder.
        device: For the networks; None does without ``compute``.
        allow: Codes of gates that warn instead of reject, on top of the workflow's own.
        keep: Further files to write: ``"nifti"`` keeps CT and masks as NIfTI, ``"nrrd"`` as NRRD.
        phases: Which parts of the chain, see `step.PHASES`.

    Raises:
        WeightsError: Weights are missing, altered or of an unknown kind.
    """
    provenance = provenance_of(workflow, allow)
    context = Context(
        workflow=workflow,
        output=output,
        device=device,
        allow=frozenset(provenance["allowed_gates"]),
        keep=frozenset(keep),
        provenance=provenance,
        counted_from=counted_from(workflow),
    )
    chain = [
        (entry.module, build_stage(entry.module, entry.options, context))
        for entry in workflow.steps
        if steps()[entry.module].phase in phases
    ]
    return Chain(workflow=workflow, stages=tuple(chain), provenance=provenance)


def build_stage(module: str, options: Any, context: Context) -> Stage:
    """The stage of a step, with its network, if it has one; its cases then say on which device it ran."""
    from ..weights import resolve

    step = steps()[module]
    if step.role is None:
        return step.build(options, context)
    weights = resolve(options.weights, step.role)
    stage = step.build(options, replace(context, weights=weights))
    words = describe_device(context.device) if context.device is not None else ""

    def run(case: Case) -> Case:
        return stage(case).add(DEVICE, words)

    return run


def counted_from(workflow: Workflow) -> int | None:
    """HU from which a workflow's rules count, the lowest; None: any voxel may, or nothing is scored."""
    counts = [
        of(entry.options) for entry in workflow.steps if (of := steps()[entry.module].counts_from) is not None
    ]
    known = [hu for hu in counts if hu is not None]
    return min(known) if known and len(known) == len(counts) else None
