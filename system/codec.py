"""The one codec between frozen dataclasses and the plain values of YAML and JSON.

Types are those of the annotations, strictly: no text for a number, no ``true`` for 1. Only what JSON itself
cannot tell apart is taken for the other: a list for a tuple, a text for a path, an integer for a float.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DeepCACError
from .nearest import nearest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """A dataclass as dictionaries, lists, texts and numbers; what is plain already stays as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value, dict_factory=lambda pairs: {k: _plain(v) for k, v in pairs})
    return value


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], value: Any, *, where: str, error: type[DeepCACError], key: str = "key") -> T:
    """The opposite of `to_plain`, for what people write as well.

    Args:
        kind: A dataclass, or any type that has its values in the annotations of one.
        value: Of JSON types; numbers may be infinite.
        where: What it is, for the message.
        error: Class of the error.
        key: What the message calls a name in it.

    Raises:
        DeepCACError: Of the class `error`: a name is unknown (with the nearest one) or missing, or a value
            is of another type, or not one that the dataclass itself accepts.
    """
    from pydantic import ValidationError

    if is_dataclass(kind) and isinstance(value, dict):
        known = [f.name for f in fields(kind)]
        for name in value:
            if name not in known:
                raise error(f"{where}: unknown {key} {name!r}.{nearest(str(name), known)}")
    try:
        checked: T = _adapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
        return checked
    except ValidationError as refused:
        first = refused.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        if "error" in first.get("ctx", {}):  # what a dataclass itself has to say
            raise error(f"{where}: {first['ctx']['error']}") from refused
        if first["type"].startswith("missing"):
            raise error(f"{where}: {place!r} is missing; add it") from refused
        wanted = first["msg"].removeprefix("Input should be ")
        raise error(f"{where}: {place!r} must be {wanted}, not {first['input']!r}") from refused
    except (TypeError, ValueError) as refused:
        raise error(f"{where}: {refused}") from refused


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
