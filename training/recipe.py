"""Recipes: YAML files of `config/train/` read into frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import WorkflowError
from ..pipeline.options import nearest

T = TypeVar("T")


def load_recipe(path: Path, kind: type[T]) -> T:
    """Read a recipe file into the dataclass `kind`.

    Raises:
        WorkflowError: The file is missing or not YAML, or a key is unknown or lacks a value; the message
            names the nearest valid key.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise WorkflowError(f"no recipe at {path}; name a YAML file as in config/train/") from None
    except yaml.YAMLError as error:
        raise WorkflowError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise WorkflowError(f"{path} must hold 'key: value' lines")
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


def bundled_recipe(role: str) -> Path:
    """The recipe that the bundled weights of a role (``heart`` or ``calcium``) were made with."""
    return Path(__file__).resolve().parents[1] / "config" / "train" / f"{role}.yml"
