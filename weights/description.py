"""`weights.json`: the description that lies beside the files of every set of weights.

A set is a folder. Its ``weights.json`` names the role, every other file with its sha256, and whatever a
reader should know (licence, citation, training data, intended use, input, measured accuracy). Converters
and training write it; loading checks against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import WeightsError, WeightsMissing
from ..imaging.atomic import write_json

DESCRIPTION = "weights.json"
ROLES = ("heart", "calcium")
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """One set of weights on disk, not loaded yet.

    Attributes:
        name: What reports call it.
        role: ``"heart"`` or ``"calcium"``.
        path: Folder that holds the files.
        files: File name to sha256 (64 lower-case hex digits), without ``weights.json`` itself.
        hash: sha256 over the names and hashes in `files`: one number for the whole set.
        metadata: The rest of the description: licence, citation, training data, input, measured …
    """

    name: str
    role: str
    path: Path
    files: Mapping[str, str]
    hash: str
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, 64 lower-case hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def set_hash(files: Mapping[str, str]) -> str:
    """sha256 over ``"<sha256>  <name>\\n"`` of all files, sorted by name (the format of `sha256sum`).

    >>> set_hash({})[:12]
    'e3b0c44298fc'
    """
    return hashlib.sha256("".join(f"{files[n]}  {n}\n" for n in sorted(files)).encode()).hexdigest()


def write_description(
    folder: Path, *, name: str, role: str, files: Iterable[str], **metadata: Any
) -> WeightSet:
    """Hash `files` in `folder` and write its ``weights.json``.

    Args:
        folder: Where the files lie already.
        name: Name of the set.
        role: ``"heart"`` or ``"calcium"``.
        files: Names of the files that make up the set, without ``weights.json``.
        metadata: Further entries, JSON types only.

    Raises:
        ValueError: Unknown role.
    """
    if role not in ROLES:
        raise ValueError(f"role is one of {', '.join(ROLES)}, not {role!r}")
    hashes = {f: sha256_of(folder / f) for f in files}
    content = {"format": _FORMAT, "name": name, "role": role, "files": hashes, **metadata}
    write_json(folder / DESCRIPTION, content)
    return describe(folder)


def describe(folder: Path, *, sidecar: str = DESCRIPTION) -> WeightSet:
    """Read the description of the set in `folder`; its files are not opened.

    Raises:
        WeightsMissing: No such description, or a file that it names is not there.
        WeightsError: The description is not one.
    """
    content = read_description(folder / sidecar)
    files: dict[str, str] = content["files"]
    for file in files:
        if Path(file).name != file:
            raise WeightsError(f"{folder / sidecar} names {file!r}, which is not a plain file name")
        if not (folder / file).is_file():
            raise WeightsMissing(
                f"{folder / file} is missing though {sidecar} names it; copy the whole folder"
            )
    known = ("format", "name", "role", "files")
    return WeightSet(
        name=content["name"],
        role=content["role"],
        path=folder,
        files=files,
        hash=set_hash(files),
        metadata={k: v for k, v in content.items() if k not in known},
    )


def read_description(path: Path) -> dict[str, Any]:
    """The content of a ``weights.json``, checked for its form.

    Raises:
        WeightsMissing: There is none.
        WeightsError: It cannot be used.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsMissing(
            f"no {path.name} in {path.parent}; give the folder of a converted set (deepcac2 weights --help)"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}; convert or train the set again") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise WeightsError(
            f"{path} is not a description of weights in format {_FORMAT}; convert the set again"
        )
    files = content.get("files")
    well_formed = (
        isinstance(content.get("name"), str)
        and content.get("role") in ROLES
        and isinstance(files, dict)
        and bool(files)
        and all(isinstance(v, str) and len(v) == 64 for v in files.values())
    )
    if not well_formed:
        raise WeightsError(f"{path} lacks name, role or files with sha256; convert or train the set again")
    return content
