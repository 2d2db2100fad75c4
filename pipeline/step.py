"""`Step`: all that the pipeline, the table, the report and the details know of a module of the chain.

A step is registered once, in the module that defines it. `steps` finds them: those of this room, the
``step.py`` and ``step_*.py`` of every folder of `models`, the modules of `outputs`, and those of installed
packages that name an entry point of the group ``deepcac2.steps``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from ..system.alias import alias
from .case import Case, Fact
from .facts import DEVICE, DOMAIN

if TYPE_CHECKING:
    import torch

    from ..weights import WeightSet
    from .shown import Shown
    from .workflow import Workflow

O = TypeVar("O")  # noqa: E741

Stage = Callable[[Case], Case]
Phase = Literal["read", "compute", "write"]

PHASES: tuple[Phase, ...] = ("read", "compute", "write")
"""The chain in three parts that different processes may run, in order: only ``compute`` needs the device."""

ENTRY_POINTS = "deepcac2.steps"


@dataclass(frozen=True, kw_only=True)
class Described:
    """A value that results hold under a name.

    Attributes:
        name: In tables, reports and workflows.
        kind: ``str``, ``int``, ``float`` or ``bool``.
        meaning: One sentence, with the unit.
        label: In words, for headings; "": the name says it.
        unit: Such as ``"mL"``, where it stands beside the value.
        result: It is what its step is run for: shown first, and marked where the case has cautions.
        groups: Names of its values 0, 1, 2 …, where these are groups of a result.
        limits: Upper limits of the classes in which its values are counted for a histogram.
        listed: In the list at the end of a run as well, though it is no result.
        date: A text YYYYMMDD that is a day.
    """

    name: str
    kind: type[str | int | float | bool]
    meaning: str
    label: str = ""
    unit: str = ""
    result: bool = False
    groups: tuple[str, ...] = ()
    limits: tuple[float, ...] = ()
    listed: bool = False
    date: bool = False

    @property
    def title(self) -> str:
        """Its heading."""
        return self.label or self.name.replace("_", " ").capitalize()

    @property
    def leads(self) -> bool:
        """Whether it is a result or a group of one: what a reader looks for first."""
        return self.result or bool(self.groups)

    def words(self, value: Any) -> str:
        """A value as people read it: a group with its name, yes or no, a number with its unit."""
        if value is None:
            return ""
        if self.groups:
            return f"{value} {self.groups[value]}" if 0 <= value < len(self.groups) else str(value)
        if self.kind is bool:
            return "yes" if value else "no"
        return f"{value:.1f} {self.unit}".rstrip() if self.kind is float else f"{value} {self.unit}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Column(Described):
    """What a step adds to the table of results.

    Attributes:
        of: Its value for a case at its end; None where the case has none, "" for texts.
        section: Of the details JSON, which says more about it: on the page of a case both stand under a
            heading of their own; "": among the step's other columns.
    """

    of: Callable[[Case], Any]
    section: str = ""


@dataclass(frozen=True, kw_only=True)
class Value(Described):
    """What a report may include by name (``data``).

    Attributes:
        of: Its value; None where the case has none.
    """

    of: Callable[[Case], Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step is built with, beside its options.

    Attributes:
        workflow: Of which it is a part.
        output: The run's output folder.
        device: For the networks; None without ``compute``.
        allow: Codes of gates that shall warn instead of reject.
        keep: Further files to write.
        provenance: Versions, workflow fingerprint and weight hashes.
        weights: The step's own set, for steps with a `Step.role`.
        counted_from: HU from which the rule of this workflow counts; None: any voxel may count.
    """

    workflow: Workflow
    output: Path
    device: torch.device | None
    allow: frozenset[str]
    keep: frozenset[str]
    provenance: Mapping[str, Any]
    weights: WeightSet | None = None
    counted_from: int | None = None

    def network(self) -> tuple[WeightSet, torch.device]:
        """The weights and the device of a step that has a network.

        Raises:
            TypeError: The chain was built without them.
        """
        if self.weights is None or self.device is None:
            raise TypeError("this step needs weights and a device")
        return self.weights, self.device


Need = Fact[Any] | tuple[Fact[Any], ...]
"""A fact, or several of which one is enough."""


def one_of_each(needs: Sequence[Need]) -> tuple[tuple[Fact[Any], ...], ...]:
    """Needs as tuples, of each of which one is enough."""
    return tuple(need if isinstance(need, tuple) else (need,) for need in needs)


@dataclass(frozen=True, kw_only=True)
class Step(Generic[O]):
    """A module of the chain.

    Attributes:
        module: Its name in workflows and for MHub.
        options: A frozen dataclass: the schema of its block of options.
        phase: The part of the chain that it belongs to.
        build: From options and context to what a case goes through.
        reads: What it needs, by its options.
        uses: What it looks at where it is there, so that it comes after those who find it.
        writes: What it may add to a case.
        after: Modules that come before it, if the workflow has them.
        role: Of its weights, for a step with a network.
        counts_from: By its options, the HU from which it counts, for a step that scores.
        merge: From the workflows that have it to the options of one that does what all of them do; None:
            they must want the same.
        columns, values: What it adds to table and report.
        shows: What a picture shows of its result; None where the case has none.
        remarks: What stands beside another step's result in the picture; None: nothing.
        train: Name of the module that trains its network (``RECIPE``, a dataclass, and ``train``, see
            `training.recipe`); it is loaded for that only. "": it cannot be trained.
        gives: What it takes from a file of the user (options ``source`` and ``segments``) instead of finding
            it; `Workflow.given` puts it in the place of the step that does.
    """

    module: str
    options: type[O]
    phase: Phase
    build: Callable[[O, Context], Stage]
    reads: Callable[[O], tuple[Need, ...]] = lambda options: ()
    uses: tuple[Fact[Any], ...] = ()
    writes: tuple[Fact[Any], ...] = ()
    after: tuple[str, ...] = ()
    role: str | None = None
    counts_from: Callable[[O], int | None] | None = None
    merge: Callable[[Sequence[Workflow]], O] | None = None
    columns: tuple[Column, ...] = ()
    values: tuple[Value, ...] = ()
    shows: Callable[[Case], Shown | None] | None = None
    remarks: Callable[[Case], str | None] | None = None
    train: str = ""
    gives: Fact[Any] | None = None

    def needs(self, options: O) -> tuple[tuple[Fact[Any], ...], ...]:
        """What it reads: of each tuple, one is enough."""
        return one_of_each(self.reads(options))


_STEPS: dict[str, Step[Any]] = {}


def register(step: Step[O]) -> Step[O]:
    """Make a step known.

    Raises:
        ValueError: Another one has its name, or adds a column or a value of the same name.
    """
    for known in _STEPS.values():
        if known.module == step.module:
            raise ValueError(f"there are two steps {step.module}")
        for ours, theirs in ((step.columns, known.columns), (step.values, known.values)):
            if both := {x.name for x in ours} & {x.name for x in theirs}:
                raise ValueError(f"{step.module} and {known.module} both have {', '.join(sorted(both))}")
    _STEPS[step.module] = step
    return step


@cache
def load_all() -> None:
    """Import every module that registers something."""
    root = __package__.rpartition(".")[0]
    names = [f"{__package__}.{name}" for name in ("reading", "scoring", "mapping", "harmonised")]
    models = importlib.import_module(f"{root}.models")
    for folder in (
        Path(base, m.name) for base in models.__path__ for m in pkgutil.iter_modules([base]) if m.ispkg
    ):
        found = [m.name for m in pkgutil.iter_modules([str(folder)])]
        names += [f"{root}.models.{folder.name}.{name}" for name in found if name.split("_")[0] == "step"]
    outputs = importlib.import_module(f"{root}.outputs")
    names += sorted(f"{root}.outputs.{m.name}" for m in pkgutil.iter_modules(outputs.__path__))
    for name in names:
        importlib.import_module(name)
    alias("deepcac2", root)
    for point in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        point.load()


@cache
def steps() -> Mapping[str, Step[Any]]:
    """All steps by module name, each after those that find what it reads or uses."""
    load_all()
    return MappingProxyType(_in_order(_STEPS))


def _in_order(known: Mapping[str, Step[Any]]) -> dict[str, Step[Any]]:
    """Phases one after the other; in one, steps by how many must come before them, and else by module.

    So one that needs little runs before one that needs much, and its result is there though a gate of the
    other stops the case.
    """

    def place(step: Step[Any]) -> tuple[int, int, str, str]:
        # where it is defined and not when: which module is imported first must not matter
        return PHASES.index(step.phase), _depth(step, known), step.options.__module__, step.module

    return {step.module: step for step in sorted(known.values(), key=place)}


def _depth(step: Step[Any], known: Mapping[str, Step[Any]]) -> int:
    """Steps in the longest row of those of its phase that must come before this one."""
    before = [other for other in known.values() if other is not step and _precedes(other, step)]
    return max((1 + _depth(other, known) for other in before), default=0)


def _precedes(first: Step[Any], second: Step[Any]) -> bool:
    """Whether a step finds what another of its phase reads or uses, or is named by it."""
    wanted = {*second.uses, *chain.from_iterable(second.needs(second.options()))}
    found = bool(wanted & set(first.writes)) or first.module in second.after
    return found and first.phase == second.phase


def must_follow(step: Step[Any], other: Step[Any]) -> bool:
    """Whether a step belongs behind another one wherever both are: of a later phase, or in need of it."""
    return PHASES.index(other.phase) < PHASES.index(step.phase) or _precedes(other, step)


def facts() -> dict[str, Fact[Any]]:
    """Everything that may be known of a case, by name."""
    written = [fact for step in steps().values() for fact in step.writes]
    everything: list[Fact[Any]] = [DEVICE, DOMAIN, *written]
    return {fact.name: fact for fact in everything}


def sections() -> dict[str, Fact[Any]]:
    """Facts that stand in the details JSON, by their section."""
    return {f.section: f for f in facts().values() if f.section}


def images() -> dict[str, Fact[Any]]:
    """Facts that are kept as images where files are exchanged, by name."""
    return {name: fact for name, fact in facts().items() if fact.image is not None}


def columns() -> tuple[Column, ...]:
    """What the steps add to the table."""
    return tuple(column for step in steps().values() for column in step.columns)


def values() -> dict[str, tuple[Value, Step[Any]]]:
    """What a report may include, by name, and the step that finds it."""
    return {value.name: (value, step) for step in steps().values() for value in step.values}


def roles() -> dict[str, str]:
    """Modules with a network, and the role of their weights."""
    return {module: step.role for module, step in steps().items() if step.role is not None}
