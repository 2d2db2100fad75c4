"""`weights.json`: the description that lies beside the files of every set of weights.

A set is a folder. Its ``weights.json`` names the role, every other file with its sha256, and whatever a
reader should know (licence, citation, training data, domain, intended use, input, measured accuracy).
Converters and training write it; loading checks against it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import WeightsError, WeightsMissing
from ..system.atomic import write_json
from ..system.foreign import read_json
from ..system.hashing import sha256_of

DESCRIPTION = "weights.json"
ROLES = ("heart", "calcium", "screening", "direct")
_FORMAT = 1


Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The scans that a set of weights was trained on; what is absent is not stated.

    Ranges are (lowest, highest), both inside.

    Attributes:
        kernels: Names as in ConvolutionKernel; ``soft`` and ``sharp`` stand for all kernels of a kind (see
            `dicom.gates.is_sharp_kernel`).
        noise_hu: Noise inside the heart as `imaging.noise.noise_sd` measures it, HU.
        kvp: Tube voltage, kV.
        thickness_mm: SliceThickness, mm.
        increment_mm: Distance of neighbouring slices, mm.
        pixel_mm: Edge of a pixel, mm.
        field_of_view_mm: The longer edge of the reconstructed image, mm.
        coverage_mm: Length of the body that was scanned, mm.
        contrast: Whether scans with intravenous contrast agent were among them.
        measured_on: What the accuracy was measured on, in words.
    """

    kernels: tuple[str, ...] = ()
    noise_hu: Range | None = None
    kvp: Range | None = None
    thickness_mm: Range | None = None
    increment_mm: Range | None = None
    pixel_mm: Range | None = None
    field_of_view_mm: Range | None = None
    coverage_mm: Range | None = None
    contrast: bool | None = None
    measured_on: str = ""

    @classmethod
    def parse(cls, content: Any) -> Domain | None:
        """A domain from JSON; None where nothing is stated.

        Raises:
            WeightsError: A key is unknown or a value is not what it should be.
        """
        if not content:
            return None
        if not isinstance(content, Mapping):
            raise WeightsError(f"the domain of a set of weights is an object, not {content!r}")
        known = [f.name for f in fields(cls)]
        if odd := sorted(set(content) - set(known)):
            raise WeightsError(f"unknown key {odd[0]!r} in the domain; known are {', '.join(known)}")
        return cls(**{key: _checked(key, value) for key, value in content.items()})

    def to_dict(self) -> dict[str, Any]:
        """What is stated, JSON types only."""
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
            if v is not None and v != () and v != ""
        }


def _checked(key: str, value: Any) -> Any:
    """A value of a domain with the type that `Domain` says, or `WeightsError`."""
    if key == "kernels":
        if isinstance(value, list | tuple) and value and all(isinstance(v, str) and v for v in value):
            return tuple(value)
        raise WeightsError(f"kernels in the domain is a list of names, not {value!r}")
    kind = {"contrast": bool, "measured_on": str}.get(key)
    if kind is not None:
        if isinstance(value, kind):
            return value
        raise WeightsError(f"{key} in the domain is a {kind.__name__}, not {value!r}")
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low <= high:
        raise WeightsError(f"{key} in the domain is [lowest, highest], not {value!r}")
    return low, high


@dataclass(frozen=True, kw_only=True)
class WeightSet:
    """One set of weights on disk, not loaded yet.

    Attributes:
        name: What reports call it.
        role: One of `ROLES`.
        path: Folder that holds the files.
        files: File name to sha256 (64 lower-case hex digits), without ``weights.json`` itself.
        hash: sha256 over the names and hashes in `files`: one number for all tensors.
        description: sha256 of its ``weights.json``, which says how the tensors are used.
        domain: The scans that it was trained on; None where it does not say.
        metadata: The rest of the description: licence, citation, training data, input, measured …
    """

    name: str
    role: str
    path: Path
    files: Mapping[str, str]
    hash: str
    description: str = ""
    domain: Domain | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def identity(self) -> dict[str, str]:
        """What a result says it was made with; results of equal identities may stand in one folder."""
        return {"name": self.name, "sha256": self.hash, "description_sha256": self.description}


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
        role: One of `ROLES`.
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
        WeightsError: The description is not one, or its domain cannot be read.
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
    known = ("format", "name", "role", "files", "domain")
    return WeightSet(
        name=content["name"],
        role=content["role"],
        path=folder,
        files=files,
        hash=set_hash(files),
        description=sha256_of(folder / sidecar),
        domain=_domain(content, folder / sidecar),
        metadata={k: v for k, v in content.items() if k not in known},
    )


def _domain(content: Mapping[str, Any], path: Path) -> Domain | None:
    """The domain in a description; an error names the file."""
    try:
        return Domain.parse(content.get("domain"))
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def read_description(path: Path) -> dict[str, Any]:
    """The content of a ``weights.json``, checked for its form.

    Raises:
        WeightsMissing: There is none.
        WeightsError: It cannot be used.
    """
    if not path.exists():
        raise WeightsMissing(
            f"no {path.name} in {path.parent}; give the folder of a converted set (deepcac2 weights --help)"
        )
    content = read_json(path, error=WeightsError, advice="convert or train the set again")
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
