"""Workflows: the YAML files of `config/` in MHub's format, read strictly.

A workflow names the modules of the chain in order (``execute``) and their options (``modules``). The same
file drives the chain in memory (`pipeline.chain`) and mhubio's own runner (`utils`). Here each module's
options are a frozen dataclass; an unknown module, an unknown option or a value of the wrong type is an
error that names the nearest valid one.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

import yaml

from ..errors import WorkflowError
from .options import nearest


@dataclass(frozen=True, kw_only=True)
class DicomImporterOptions:
    """Find the series. The first four are mhubio's own keys.

    Attributes:
        source_dir, import_dir, sort_data, meta: Used by mhubio's runner only; in memory the folder comes
            from the command line and no file is copied.
        allow: Codes of quality gates that shall warn instead of reject (``deepcac2 inspect --gates``).
    """

    source_dir: str = "input_data"
    import_dir: str = "sorted_data"
    sort_data: bool = True
    meta: dict[str, Any] = field(default_factory=lambda: {"mod": "ct"})
    allow: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class NiftiConverterOptions:
    """Read the pixels. All are mhubio's own keys, used by mhubio's runner only.

    In memory the CT stays in memory; ``--keep nifti`` writes it.
    """

    in_datas: str = "dicom:mod=ct"
    engine: str = "deepcac2"
    allow_multi_input: bool = False
    bundle_name: str = "nifti"
    converted_file_name: str = "[filename].nii.gz"
    overwrite_existing_file: bool = False


@dataclass(frozen=True, kw_only=True)
class HeartRunnerOptions:
    """Segment the heart.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with converted nnU-Net v2 weights.
    """

    weights: str = "bundled"


@dataclass(frozen=True, kw_only=True)
class DeepCACRunnerOptions:
    """Segment the coronary calcium.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a converted set.
        heart_margin_mm: Look for calcium in the heart mask widened by this much only; .inf: in the whole
            crop (docs/decisions/0004).
        peak_probability: Count a lesion only where the network is somewhere as sure as this; 0.5: every
            lesion (docs/decisions/0009).
            Both null: what the weights state, see `pipeline.operating`.
    """

    weights: str = "bundled"
    heart_margin_mm: float | None = None
    peak_probability: float | None = None

    def __post_init__(self) -> None:
        if self.peak_probability is not None and not 0.5 <= self.peak_probability < 1:
            raise ValueError(f"peak_probability is at least 0.5 and below 1, not {self.peak_probability}")
        _margin(self.heart_margin_mm)


@dataclass(frozen=True, kw_only=True)
class ScreeningRunnerOptions:
    """Exclude scans without calcium, by three 2D networks.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a set.
        localise: Where the crop is laid: ``heart`` around the heart mask, ``chest-wall`` where image
            processing alone finds the heart, as in the paper on cardiac CT.
        heart_margin_mm: With ``heart``, look in the heart mask widened by this much only; .inf: in the crop;
            null: what the weights state.
        threshold: Probability from which something is calcium; null: the weights' own operating point.
        exclude: Leave DeepCACRunner's network out where nothing is found: the score is 0.
    """

    weights: str = "bundled"
    localise: str = "heart"
    heart_margin_mm: float | None = None
    threshold: float | None = None
    exclude: bool = False

    def __post_init__(self) -> None:
        _one_of("localise", self.localise, ("heart", "chest-wall"))
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(f"threshold is between 0 and 1, not {self.threshold}")
        _margin(self.heart_margin_mm)


@dataclass(frozen=True, kw_only=True)
class DirectRunnerOptions:
    """Read the score off the slices, by a regression network; no segmentation.

    Attributes:
        weights: Name in `weights/manifest.json`, or a folder with a set.
        localise: Where the heart's box comes from: ``networks``, its own three, or ``heart``, the mask.
    """

    weights: str = "bundled"
    localise: str = "networks"

    def __post_init__(self) -> None:
        _one_of("localise", self.localise, ("networks", "heart"))


def _margin(value: float | None) -> None:
    if value is not None and not value >= 0:
        raise ValueError(f"heart_margin_mm is 0 or more, not {value}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")


@dataclass(frozen=True, kw_only=True)
class AGSCalculatorOptions:
    """Score the calcium.

    Attributes:
        rule: A rule of `scoring.RULES`.
        calibration_factor: mg calcium per mm³ and HU, for the mass; null: no mass.
    """

    rule: str = "agatston"
    calibration_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class DSegConverterOptions:
    """Write the DICOM SEG. The keys are mhubio's own."""

    converted_file_name: str = "cac.seg.dcm"
    model_name: str = "deepcac2"


@dataclass(frozen=True, kw_only=True)
class ReportExporterOptions:
    """Write the report. The keys are mhubio's own.

    Attributes:
        format: ``compact``, the only one: a flat JSON object.
        includes: What the report holds, in order: ``label`` and ``attr`` (``SeriesInstanceUID``,
            ``PatientID``, ``StudyInstanceUID``), ``data`` (see `pipeline.outputs.report_values`) or ``text``,
            which is taken as it is.
    """

    format: str = "compact"
    includes: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"label": "Predicted Agatston Score", "data": "agatston_score", "value": "value"},
            {"label": "Predicted Risk Group", "data": "risk_group", "value": "value"},
            {"label": "SeriesInstanceUID", "attr": "SeriesInstanceUID"},
        ]
    )


@dataclass(frozen=True, kw_only=True)
class DataOrganizerOptions:
    """Where the outputs go. The keys are mhubio's own.

    Attributes:
        target_dir: Used by mhubio's runner only; in memory the folder comes from the command line.
        require_data_confirmation: mhubio's own.
        targets: ``query-->path`` lines; `TARGET_ROLES` lists the queries, and in the path ``[i:PatientID]``
            and ``[i:SeriesInstanceUID]`` are replaced by their escaped values.
    """

    target_dir: str = "output_data"
    require_data_confirmation: bool = True
    targets: list[str] = field(
        default_factory=lambda: [
            "dicomseg:mod=seg-->[i:PatientID]/[i:SeriesInstanceUID]/cac.seg.dcm",
            "dicom:mod=sr-->[i:PatientID]/[i:SeriesInstanceUID]/cac.sr.dcm",
            "json:mod=report-->[i:PatientID]/[i:SeriesInstanceUID]/DeepCAC.report.json",
            "json:mod=details-->[i:PatientID]/[i:SeriesInstanceUID]/details.json",
            "csv:mod=results-->results.csv",
        ]
    )


TARGET_ROLES = {
    "dicomseg:mod=seg": "seg",
    "dicom:mod=sr": "sr",
    "json:mod=report": "report",
    "json:mod=details": "details",
    "csv:mod=results": "results",
}
"""mhubio data query of a DataOrganizer target → role of the output in `Case.outputs`. In memory, details and
table always lie where the defaults say: a run finds its way back by them."""

MODULES: dict[str, type[Any]] = {
    "DicomImporter": DicomImporterOptions,
    "NiftiConverter": NiftiConverterOptions,
    "HeartRunner": HeartRunnerOptions,
    "ScreeningRunner": ScreeningRunnerOptions,
    "DirectRunner": DirectRunnerOptions,
    "DeepCACRunner": DeepCACRunnerOptions,
    "AGSCalculator": AGSCalculatorOptions,
    "DSegConverter": DSegConverterOptions,
    "ReportExporter": ReportExporterOptions,
    "DataOrganizer": DataOrganizerOptions,
}
"""Module name → its options, in the order in which they depend on each other."""


_SECTIONS = ("general", "execute", "modules")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One module of the chain with its options."""

    module: str
    options: Any


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A chain of modules with their options.

    Attributes:
        name: File name without suffix.
        description: For lists.
        steps: In the order of execution.
    """

    name: str
    description: str
    steps: tuple[Step, ...]

    REQUIRED: ClassVar[tuple[str, ...]] = ("DicomImporter", "NiftiConverter")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Workflow:
        """Read a workflow: a name of `config/` (``default``) or the path of a YAML file.

        Raises:
            WorkflowError: Not found, not YAML, or something in it is unknown or of the wrong type.
        """
        path = Path(name_or_path)
        if path.suffix in (".yml", ".yaml"):
            try:
                text = path.read_text()
            except OSError as error:
                raise WorkflowError(f"cannot read the workflow {path}: {error.strerror}") from error
            name = path.stem
        else:
            name = str(name_or_path)
            folder = resources.files(__package__.rpartition(".")[0] + ".config")
            known = sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".yml"))
            if name not in known:
                raise WorkflowError(f"there is no workflow {name!r}.{nearest(name, known)}")
            text = (folder / f"{name}.yml").read_text()
        return cls.parse(text, name=name)

    @classmethod
    def parse(cls, text: str, *, name: str) -> Workflow:
        """Read a workflow from YAML text.

        Raises:
            WorkflowError: As in `load`.
        """
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise WorkflowError(
                f"the workflow {name!r} is not valid YAML: {str(error).splitlines()[0]}"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("execute"), list):
            raise WorkflowError(f"the workflow {name!r} needs a list 'execute' of module names")
        for key in content:
            if key not in _SECTIONS:
                hint = nearest(str(key), _SECTIONS)
                raise WorkflowError(f"workflow {name!r}: unknown section {key!r}.{hint}")
        modules = content.get("modules") or {}
        if not isinstance(modules, dict):
            raise WorkflowError(f"workflow {name!r}: 'modules' must map module names to options")
        for module in modules:
            _known_module(module, name)
        steps = []
        for entry in content["execute"]:
            local = dict(entry) if isinstance(entry, dict) else {"module": entry}
            module = local.pop("module", None)
            _known_module(module, name)
            options = {**(modules.get(module) or {}), **local}
            steps.append(Step(module=module, options=_options(MODULES[module], options, f"{name}: {module}")))
        workflow = cls(
            name=name,
            description=str((content.get("general") or {}).get("description", "")),
            steps=tuple(steps),
        )
        workflow._check_order()
        return workflow

    def _check_order(self) -> None:
        names = [s.module for s in self.steps]
        for required in self.REQUIRED:
            if required not in names:
                raise WorkflowError(f"workflow {self.name!r} lacks {required}; add it to 'execute'")
        order = list(MODULES)
        ranks = [order.index(n) for n in names]
        if ranks != sorted(set(ranks)):
            raise WorkflowError(
                f"workflow {self.name!r}: each module once, in this order: {', '.join(order)}"
            )
        for step in self.steps:
            for needed in _needs(step):
                if not set(names) & set(needed):
                    raise WorkflowError(
                        f"workflow {self.name!r}: {step.module} needs {' or '.join(needed)} before it; "
                        "add it to 'execute'"
                    )

    @classmethod
    def combine(cls, workflows: Sequence[Workflow]) -> Workflow:
        """One workflow that does what several do, each module once.

        The report says what all of them report, under the first one's name and place. The SEG is that of
        the workflow with a calcium network.

        Raises:
            WorkflowError: They want different things of one module.
        """
        if len(workflows) == 1:
            return workflows[0]
        name = "+".join(w.name for w in workflows)
        steps = []
        for module in MODULES:
            having = [w for w in workflows if w.options(module) is not None]
            if not having:
                continue
            options = having[0].options(module)
            if module == "ReportExporter":
                entries = [entry for w in having for entry in w.options(module).includes]
                unique = {entry.get("label"): entry for entry in reversed(entries)}
                wanted = [e for e in entries if unique[e.get("label")] is e]
                options = replace(options, includes=wanted)
            elif module == "DSegConverter":
                options = max(having, key=lambda w: w.options("DeepCACRunner") is not None).options(module)
            elif module != "DataOrganizer":
                for other in having[1:]:
                    if other.options(module) != options:
                        raise WorkflowError(
                            f"the workflows {having[0].name} and {other.name} want different things of "
                            f"{module}; run them one after the other into folders of their own"
                        )
            steps.append(Step(module=module, options=options))
        combined = cls(name=name, description=" + ".join(w.name for w in workflows), steps=tuple(steps))
        combined._check_order()
        return combined

    def options(self, module: str) -> Any:
        """The options of `module`, or None when the workflow does not run it."""
        return next((s.options for s in self.steps if s.module == module), None)

    def with_options(self, module: str, **changes: Any) -> Workflow:
        """A copy in which options of `module` have other values."""
        steps = tuple(
            replace(s, options=replace(s.options, **changes)) if s.module == module else s for s in self.steps
        )
        return replace(self, steps=steps)

    def fingerprint(self) -> str:
        """Hash of all that the workflow says; equal workflows have equal fingerprints."""
        content = [[s.module, asdict(s.options)] for s in self.steps]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _needs(step: Step) -> tuple[tuple[str, ...], ...]:
    """Of each tuple, a step needs one of these modules before it."""
    module, options = step.module, step.options
    if module in ("ScreeningRunner", "DirectRunner") and options.localise == "heart":
        return (("HeartRunner",),)
    known: dict[str, tuple[tuple[str, ...], ...]] = {
        "DeepCACRunner": (("HeartRunner",),),
        "AGSCalculator": (("DeepCACRunner",),),
        "DSegConverter": (("HeartRunner",), ("DeepCACRunner", "ScreeningRunner")),
    }
    return known.get(module, ())


def _known_module(module: Any, workflow: str) -> None:
    if module not in MODULES:
        raise WorkflowError(
            f"workflow {workflow!r}: unknown module {module!r}.{nearest(str(module), MODULES)}"
        )


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    base = get_origin(hint) or hint
    if base is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, base) if base is not type(None) else value is None


def _options(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise WorkflowError(f"workflow {where}: unknown option {key!r}.{nearest(str(key), known)}")
        if not _fits(value, hints[key]):
            wanted = str(hints[key]).removeprefix("<class '").removesuffix("'>")
            raise WorkflowError(f"workflow {where}: {key!r} must be {wanted}, not {value!r}")
    try:
        options = kind(**values)
    except ValueError as error:
        raise WorkflowError(f"workflow {where}: {error}") from error
    for target in getattr(options, "targets", ()):
        _check_target(target, where)
    return options


def is_target(target: Any) -> bool:
    """Whether a target of the organizer is one that the run in memory knows, too."""
    try:
        _check_target(target, "")
    except WorkflowError:
        return False
    return True


def _check_target(target: Any, where: str) -> None:
    query, arrow, path = str(target).partition("-->")
    if not arrow or not path:
        raise WorkflowError(f"workflow {where}: a target reads 'query-->path', not {target!r}")
    if query not in TARGET_ROLES:
        raise WorkflowError(f"workflow {where}: unknown target {query!r}.{nearest(query, TARGET_ROLES)}")
    for name in re.findall(r"\[([^\]]*)\]", path):
        if name not in ("i:PatientID", "i:SeriesInstanceUID"):
            valid = nearest(name, ("i:PatientID", "i:SeriesInstanceUID"))
            raise WorkflowError(f"workflow {where}: unknown placeholder [{name}].{valid}")
    if path.startswith("/") or ".." in Path(path).parts:
        raise WorkflowError(f"workflow {where}: the target {path!r} must stay inside the output folder")
