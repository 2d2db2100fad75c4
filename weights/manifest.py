"""`manifest.json`: every set of weights this project knows, bundled or to be fetched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import WeightsMissing
from ..system.atomic import write_json
from ..system.hashing import sha256_of
from .description import DESCRIPTION, WeightSet, describe

PACKAGE_FOLDER = Path(__file__).resolve().parent
MANIFEST = PACKAGE_FOLDER / "manifest.json"


@dataclass(frozen=True, kw_only=True)
class ManifestEntry:
    """One set in the manifest.

    Attributes:
        name, role: As in `WeightSet`.
        folder: Sub-folder of ``weights/`` for a bundled set; None for one to be fetched.
        default: Whether ``"bundled"`` means this set for its role.
        files: File name to sha256; empty for a set to be fetched.
        description: sha256 of the set's ``weights.json``, which holds its operating point; likewise.
        source: For a set to be fetched: ``url``, ``file``, ``record``, ``format`` (``"nnunet-v1"``,
            ``"deepcac2"``) and ``sha256`` of the archive, None where this project does not know it; of
            nnU-Net v1 also ``folds``, as its converter takes them.
        licence, citation, training_data, intended_use: For the reader.
        domain: The scans that it was trained on, as `Domain.parse` reads it; empty where not stated.
        input: Spacing and normalisation that the network expects.
        measured: Accuracy by data set, as measured by this project; empty where it was not.
    """

    name: str
    role: str
    folder: str | None = None
    default: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    source: Mapping[str, Any] = field(default_factory=dict)
    licence: str = ""
    citation: str = ""
    training_data: str = ""
    intended_use: str = ""
    domain: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)


@cache
def load_manifest() -> Mapping[str, ManifestEntry]:
    """All known sets by name, in the manifest's order."""
    content = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return {e["name"]: ManifestEntry(**e) for e in content["sets"]}


def default_entry(role: str) -> ManifestEntry:
    """The set that ``"bundled"`` means for a role.

    Raises:
        WeightsMissing: This version bundles none.
    """
    found = next((e for e in load_manifest().values() if e.role == role and e.default), None)
    if found is None:
        raise WeightsMissing(
            f"this version has no bundled {role} weights; train them (deepcac2 train {role}) and name them "
            "with --weights PATH"
        )
    return found


def make_default(name: str, manifest: Path = MANIFEST) -> None:
    """Make a set what ``"bundled"`` means for its role, in every workflow: for whoever builds an image.

    Args:
        name: Of a set in the manifest.
        manifest: The file, which is written anew.

    Raises:
        WeightsMissing: The manifest has no such set.
        DiskFull, OutputUnwritable: The manifest cannot be written.
    """
    content = json.loads(manifest.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in content["sets"]}
    if name not in rows:
        raise WeightsMissing(f"the manifest has no weights {name!r}; it has {', '.join(rows)}")
    for row in content["sets"]:
        if row["role"] == rows[name]["role"]:
            row["default"] = row["name"] == name
    write_json(manifest, content)
    load_manifest.cache_clear()


def user_folder() -> Path:
    """Where fetched sets are kept: ``$XDG_DATA_HOME/deepcac2/weights``, by default in ``~/.local/share``
    (XDG Base Directory Specification 0.8)."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "deepcac2" / "weights"


def bundle(source: Path, weights: Path = PACKAGE_FOLDER, *, beside: str = "") -> WeightSet:
    """Make the set in `source` the bundled one of its role: copy its files, update the manifest.

    For maintainers, after training: run in a checkout, then commit ``weights/``. Name, hashes, and what the
    description says under the names of manifest fields (``licence``, ``training_data`` …) are taken over.
    A domain of the set before is not kept: what the new one does not state is not known.

    Args:
        source: Folder of a set.
        weights: Folder with ``manifest.json`` and the bundled sets.
        beside: Folder in `weights` of a set that is bundled beside the default of its role; "": the default.

    Raises:
        WeightsMissing, WeightsError: `source` holds no set.
    """
    found = describe(source)
    content = json.loads((weights / MANIFEST.name).read_text(encoding="utf-8"))
    place = {"folder": beside} if beside else {"role": found.role, "default": True}
    row = next((e for e in content["sets"] if place.items() <= e.items()), None)
    if row is None:  # the first of its role, or beside it
        row = {"name": found.name, "role": found.role, "folder": beside or found.role, "default": not beside}
        content["sets"].append(row)
    target = weights / row["folder"]
    target.mkdir(exist_ok=True)
    for stale in target.iterdir():
        if stale.name not in found.files and stale.suffix in (".json", ".safetensors"):
            stale.unlink()
    for file in (*found.files, DESCRIPTION):
        shutil.copyfile(source / file, target / file)
    row["name"] = found.name
    row["files"] = dict(found.files)
    row["description"] = sha256_of(target / DESCRIPTION)
    for key in ("licence", "citation", "training_data", "intended_use", "input", "measured"):
        if key in found.metadata:
            row[key] = found.metadata[key]
    row["domain"] = found.domain.to_dict() if found.domain else {}
    write_json(weights / MANIFEST.name, content)
    load_manifest.cache_clear()
    return describe(target)
