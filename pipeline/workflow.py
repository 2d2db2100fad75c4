"""Workflows: the YAML files of `config/` in MHub's format, read strictly.

A workflow names the modules of the chain in order (``execute``) and their options (``modules``). The same
file drives the chain in memory (`pipeline.chain`) and mhubio's own runner (`utils`). Here each module's
options are a frozen dataclass; an unknown module, an unknown option or a value of the wrong type is an
error that names the nearest valid one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from itertools import chain, combinations
from pathlib import Path
from typing import Any, ClassVar

from ..errors import WorkflowError
from ..system.codec import from_plain
from ..system.foreign import MAX_YAML, foreign, parse_yaml, read_bytes
from ..system.nearest import nearest
from .case import Fact
from .step import must_follow, steps

_SECTIONS = ("general", "execute", "modules")


@dataclass(frozen=True, kw_only=True)
class Entry:
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
    steps: tuple[Entry, ...]

    REQUIRED: ClassVar[tuple[str, ...]] = ("DicomImporter", "NiftiConverter")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Workflow:
        """Read a workflow: a name of `config/` (``default``) or the path of a YAML file.

        Raises:
            WorkflowError: Not found, not YAML, or something in it is unknown or of the wrong type.
        """
        path = Path(name_or_path)
        if path.suffix in (".yml", ".yaml"):
            text: str | bytes = read_bytes(path, most=MAX_YAML, error=WorkflowError)
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
    def parse(cls, text: str | bytes, *, name: str) -> Workflow:
        """Read a workflow from YAML text.

        Raises:
            WorkflowError: As in `load`.
        """
        what = f"the workflow {name!r}"
        content = parse_yaml(text, what, error=WorkflowError)
        with foreign(what, error=WorkflowError, fault="is none that is understood"):
            return cls._of(content, name)

    @classmethod
    def _of(cls, content: Any, name: str) -> Workflow:
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
        known, entries = steps(), []
        for entry in content["execute"]:
            local = dict(entry) if isinstance(entry, dict) else {"module": entry}
            module = local.pop("module", None)
            _known_module(module, name)
            options = {**(modules.get(module) or {}), **local}
            entries.append(
                Entry(
                    module=module,
                    options=from_plain(
                        known[module].options,
                        options,
                        where=f"workflow {name}: {module}",
                        error=WorkflowError,
                        key="option",
                    ),
                )
            )
        workflow = cls(
            name=name,
            description=str((content.get("general") or {}).get("description", "")),
            steps=tuple(entries),
        )
        workflow._check_order()
        return workflow

    def _check_order(self) -> None:
        names = [entry.module for entry in self.steps]
        for required in self.REQUIRED:
            if required not in names:
                raise WorkflowError(f"workflow {self.name!r} lacks {required}; add it to 'execute'")
        for first, second in combinations(names, 2):
            if first == second:
                raise WorkflowError(f"workflow {self.name!r} has {first} twice; name it once in 'execute'")
            if must_follow(steps()[first], steps()[second]):
                raise WorkflowError(
                    f"workflow {self.name!r}: {second} comes before {first}; move it in 'execute'"
                )
        found: dict[Fact[Any], str] = {}
        for entry in self.steps:
            step = steps()[entry.module]
            refined = {*step.uses, *chain.from_iterable(step.needs(entry.options))}
            for fact in step.writes:
                if fact in found and fact not in refined:
                    raise WorkflowError(
                        f"workflow {self.name!r}: {found[fact]} and {entry.module} both find the "
                        f"{fact.meaning or fact.name}; keep one of them in 'execute'"
                    )
            for need in step.needs(entry.options):
                if not found.keys() & set(need):
                    makers = [
                        m for m, other in steps().items() if set(need) & set(other.writes) and not other.gives
                    ]
                    raise WorkflowError(
                        f"workflow {self.name!r}: {entry.module} needs {' or '.join(makers)} before it; "
                        "add it to 'execute'"
                    )
            found |= dict.fromkeys(step.writes, entry.module)

    def finds(self, fact: Fact[Any]) -> bool:
        """Whether one of its steps may add a fact."""
        return any(fact in steps()[entry.module].writes for entry in self.steps)

    @classmethod
    def combine(cls, workflows: Sequence[Workflow]) -> Workflow:
        """One workflow that does what several do, each module once.

        Where a step can merge what they want of it, it does: the report says what all of them report, under
        the first one's name and place, and the SEG is that of the workflow that finds the calcium.

        Raises:
            WorkflowError: They want different things of one module.
        """
        if len(workflows) == 1:
            return workflows[0]
        name = "+".join(w.name for w in workflows)
        entries = []
        for module, step in steps().items():
            having = [w for w in workflows if w.options(module) is not None]
            if not having:
                continue
            options = having[0].options(module)
            if step.merge is not None:
                options = step.merge(having)
            else:
                for other in having[1:]:
                    if other.options(module) != options:
                        raise WorkflowError(
                            f"the workflows {having[0].name} and {other.name} want different things of "
                            f"{module}; run them one after the other into folders of their own"
                        )
            entries.append(Entry(module=module, options=options))
        combined = cls(name=name, description=" + ".join(w.name for w in workflows), steps=tuple(entries))
        combined._check_order()
        return combined

    def options(self, module: str) -> Any:
        """The options of `module`, or None when the workflow does not run it."""
        return next((s.options for s in self.steps if s.module == module), None)

    def with_options(self, module: str, **changes: Any) -> Workflow:
        """A copy in which options of `module` have other values."""
        entries = tuple(
            replace(s, options=replace(s.options, **changes)) if s.module == module else s for s in self.steps
        )
        return replace(self, steps=entries)

    def given(self, fact: Fact[Any], **options: Any) -> Workflow:
        """A copy that takes a fact from files instead of finding it.

        Args:
            fact: What is given, see `Step.gives`.
            options: Of the step that takes it.

        Raises:
            WorkflowError: No step takes it from files, or the workflow does not look for it.
        """
        taker = next((step for step in steps().values() if step.gives == fact), None)
        finders = [entry for entry in self.steps if fact in steps()[entry.module].writes]
        if taker is None or not finders:
            raise WorkflowError(
                f"the workflow {self.name!r} has no step that finds the {fact.meaning}: it takes none"
            )
        own = from_plain(
            taker.options,
            options,
            where=f"workflow {self.name}: {taker.module}",
            error=WorkflowError,
            key="option",
        )
        entries = tuple(
            Entry(module=taker.module, options=own) if entry is finders[0] else entry
            for entry in self.steps
            if entry not in finders[1:]
        )
        changed = replace(self, steps=entries)
        changed._check_order()
        return changed

    def fingerprint(self) -> str:
        """Hash of all that the workflow says; equal workflows have equal fingerprints."""
        content = [[s.module, asdict(s.options)] for s in self.steps]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _known_module(module: Any, workflow: str) -> None:
    if module not in steps():
        raise WorkflowError(
            f"workflow {workflow!r}: unknown module {module!r}.{nearest(str(module), steps())}"
        )
