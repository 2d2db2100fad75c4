"""Recipes: YAML files of `config/train/` read into frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..errors import WorkflowError
from ..system.foreign import MAX_YAML, parse_yaml, read_bytes
from ..system.nearest import nearest

T = TypeVar("T")


BUNDLED = Path(__file__).resolve().parents[1] / "config" / "train" / "bundled.yml"
"""What the bundled weights were made with: both roles in one file."""

SECTIONS = ("heart", "calcium", "refine")
"""A recipe file holds the keys of one network, or a part for each under these names; ``refine`` is a second
training of the calcium network, which begins with what the first one gave."""


def load_recipe(path: Path, kind: type[T], *, role: str) -> T:
    """Read the recipe of a role into the dataclass `kind`.

    Args:
        path: YAML; the role's keys, or parts named as in `SECTIONS` of which the role's is read.
        role: One of `SECTIONS`.

    Raises:
        WorkflowError: The file is missing or not YAML, it has no part for the role, or a key is unknown or
            lacks a value; the message names the nearest valid key.
    """
    if not path.exists():
        raise WorkflowError(f"no recipe at {path}; name a YAML file as in config/train/")
    content = parse_yaml(read_bytes(path, most=MAX_YAML, error=WorkflowError), str(path), error=WorkflowError)
    if not isinstance(content, dict):
        raise WorkflowError(f"{path} must hold 'key: value' lines")
    if any(isinstance(content.get(part), dict) for part in SECTIONS):
        for part in content:
            if part not in SECTIONS:
                raise WorkflowError(f"{path}: unknown part {part!r}.{nearest(str(part), SECTIONS)}")
        if not isinstance(content.get(role), dict):
            raise WorkflowError(f"{path} has no part '{role}:'; add one or name another file with --config")
        return build(content[role], kind, where=f"{path}, {role}")
    return build(content, kind, where=str(path))


def build(content: dict[str, Any], kind: type[T], *, where: str) -> T:
    """Make a recipe from a mapping; lists become tuples, a number is converted to the field's type.

    Raises:
        WorkflowError: Unknown key, or a value that does not fit.
    """
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for key in content:
        if key not in known:
            raise WorkflowError(f"{where}: unknown key {key!r}.{nearest(str(key), known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise WorkflowError(f"{where}: {error}") from error
