"""What is registered, as lists for people and programs: workflows, modules, columns, rules and gates."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipeline.case import Fact
    from ..pipeline.step import Described

Rows = list[dict[str, Any]]


def workflows() -> Rows:
    """The workflows of `config/`; of their files only what they say of themselves is read."""
    from importlib import resources

    from ..system.foreign import parse_yaml

    folder = resources.files(__package__.rpartition(".")[0] + ".config")
    rows = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yml"):
            content = parse_yaml(file.read_text(encoding="utf-8"), file.name)
            rows.append(
                {
                    "workflow": file.name.removesuffix(".yml"),
                    "description": content["general"]["description"],
                    "modules": content["execute"],
                }
            )
    return rows


def kept_files() -> dict[str, str]:
    """What ``--keep`` knows, those of other packages too: the kind, and the files that a series gets then."""
    from ..pipeline.writer import writers

    found: dict[str, list[str]] = {}
    for writer in writers().values():
        if writer.keep:
            found.setdefault(writer.keep, []).append(writer.file)
    return {kind: _some(list(dict.fromkeys(files))) for kind, files in sorted(found.items())}


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + " …" * (len(names) > 2)


def modules() -> Rows:
    """Every module of the chain, those of other packages too: its options, what it reads, finds and adds."""
    from ..pipeline.step import steps

    rows = []
    for step in steps().values():
        text = inspect.getdoc(step.options) or ""
        meanings = _attributes(text)
        rows.append(
            {
                "module": step.module,
                "what it does": text.partition("\n")[0],
                "phase": step.phase,
                "weights": step.role or "",
                "reads": [_facts(need) for need in step.needs(step.options())],
                "finds": [_facts((fact,)) for fact in step.writes],
                "options": [
                    {"option": f.name, "default": _default(f), "meaning": meanings.get(f.name, "")}
                    for f in fields(step.options)
                ],
                "columns": [_described(column) for column in step.columns],
                "report": [_described(value) for value in step.values],
            }
        )
    return rows


def columns() -> Rows:
    """The columns of the table of results, in their order."""
    from ..pipeline.results import MEANINGS
    from ..pipeline.step import steps

    of = {column.name: step.module for step in steps().values() for column in step.columns}
    return [{**_described(column), "module": of.get(column.name, "")} for column in MEANINGS.values()]


def rules() -> Rows:
    """The scoring rules."""
    from ..pipeline.step import steps
    from ..scoring.rules import named_rules

    steps()  # those of other packages may bring rules
    return [{"rule": rule.name, "summary": rule.summary} for rule in named_rules().values()]


def gates() -> Rows:
    """The quality gates."""
    from ..pipeline.gates import gates as known

    return [
        {
            "code": gate.code,
            "sentence": gate.sentence,
            "severity": "rejects" if gate.fatal else "warns",
            "overridable": gate.overridable,
        }
        for gate in known().values()
    ]


LISTS: dict[str, tuple[Callable[[], Rows], str]] = {
    "workflows": (workflows, "workflows"),
    "modules": (modules, "modules of the chain with their options, columns and report values"),
    "columns": (columns, "columns of the table of results"),
    "rules": (rules, "scoring rules"),
    "gates": (gates, "quality gates"),
}
"""What can be listed, and what it is called."""
LONG = ("description", "modules", "meaning", "sentence", "summary")
"""Cells that may take several lines."""


def cell(value: Any) -> str:
    """A value of a list for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def lines(rows: Rows) -> list[str]:
    """`modules` for people."""
    out = []
    for row in rows:
        out += [f"{row['module']} ({row['phase']}): {row['what it does']}"]
        for name in ("weights", "reads", "finds"):
            if row[name]:
                out.append(f"    {name} {cell(row[name])}")
        out += [f"    option {o['option']} = {o['default']}  {o['meaning']}".rstrip() for o in row["options"]]
        for kind in ("column", "report"):
            shown = row["columns" if kind == "column" else kind]
            out += [f"    {kind} {c['name']} ({c['type']})  {c['meaning']}" for c in shown]
        out.append("")
    return out[:-1]


def _facts(alternatives: tuple[Fact[Any], ...]) -> str:
    return " or ".join(fact.meaning or fact.name for fact in alternatives)


def _described(one: Described) -> dict[str, str]:
    return {"name": one.name, "type": one.kind.__name__, "unit": one.unit, "meaning": one.meaning}


def _default(option: Field[Any]) -> str:
    """As a workflow would say it; of longer lists how many entries there are."""
    value = option.default_factory() if option.default_factory is not MISSING else option.default
    return (
        f"({len(value)} entries)"
        if isinstance(value, list) and len(value) > 1
        else json.dumps(value, default=str)
    )


def _attributes(text: str) -> dict[str, str]:
    """Names and meanings below ``Attributes:`` in a docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.partition("Attributes:\n")[2].splitlines():
        if match := re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line and not line.startswith(" "):  # another section
            break
        else:
            found |= {name: f"{found[name]} {line.strip()}".rstrip() for name in names}
    return found
