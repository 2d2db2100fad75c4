"""From what the user names to verified tensors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import WeightsAltered, WeightsError, WeightsMissing, WeightsUnsupported
from ..system.codec import from_plain
from ..system.foreign import parse_json
from ..system.hashing import sha256_of
from .description import DESCRIPTION, Domain, Range, WeightSet, describe
from .manifest import PACKAGE_FOLDER, default_entry, load_manifest, user_folder

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PICKLES = (".pth", ".pt", ".pkl", ".pickle", ".ckpt", ".model", ".bin")


def resolve(name_or_path: str | Path, role: str | None = None) -> WeightSet:
    """Find a set of weights.

    Args:
        name_or_path: ``"bundled"`` (the manifest's default for the role), a name in the manifest, or a
            path: the folder of a set, or one ``.safetensors`` file with its description beside it.
        role: That it must have, see `WeightSet`; None takes a set of any role (not ``"bundled"``).

    Raises:
        WeightsMissing: Not there; the message says how to get it.
        WeightsUnsupported: A pickle; the message names the converter.
        WeightsAltered: A bundled set whose description is not the manifest's.
        WeightsError: A set for another role.
    """
    text = str(name_or_path)
    entry = default_entry(role) if text == "bundled" and role else load_manifest().get(text)
    if entry is not None:
        if entry.folder is not None:
            folder = PACKAGE_FOLDER / entry.folder
            if not (folder / DESCRIPTION).is_file():
                raise WeightsMissing(
                    f"the bundled {entry.role} weights are not in this installation; "
                    f"train them (deepcac2 train {entry.role}) and name them with --weights PATH"
                )
        else:
            folder = user_folder() / entry.name
            if not (folder / DESCRIPTION).is_file():
                raise WeightsMissing(
                    f"{entry.name} is not here yet; run: deepcac2 weights fetch {entry.name}"
                )
        found = describe(folder)
        altered = entry.files and dict(found.files) != dict(entry.files)
        if altered or (entry.description and sha256_of(folder / DESCRIPTION) != entry.description):
            raise WeightsAltered(f"{folder} is not the set that the manifest lists; reinstall deepcac2")
        found = replace(found, domain=Domain.parse(entry.domain) or found.domain)
    else:
        found = _from_path(Path(text), role)
    if role is not None and found.role != role:
        raise WeightsError(f"{text} holds {found.role} weights, not {role} weights")
    return found


def _from_path(path: Path, role: str | None) -> WeightSet:
    if path.suffix in PICKLES:
        raise WeightsUnsupported(_pickle_message(path, path.parent))
    if path.is_dir():
        if not (path / DESCRIPTION).is_file():
            pickled = next((p for p in sorted(path.rglob("*")) if p.suffix in PICKLES), None)
            if pickled is not None:
                raise WeightsUnsupported(_pickle_message(pickled, path))
        return describe(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise WeightsUnsupported(f"{path} is no .safetensors file; only safetensors are loaded")
        own = path.with_suffix(".json")
        found = describe(path.parent, sidecar=own.name if own.is_file() else DESCRIPTION)
        if path.name not in found.files:
            raise WeightsMissing(f"{DESCRIPTION} beside {path} does not name it; its sha256 is unknown")
        return found
    names = ", ".join(["bundled", *(e.name for e in load_manifest().values() if role in (None, e.role))])
    raise WeightsMissing(f"no {role or 'such'} weights at {path}; give an existing path or one of: {names}")


def _pickle_message(pickled: Path, folder: Path) -> str:
    v1 = pickled.suffix in (".model", ".pkl", ".pickle")
    command = "convert-nnunet-v1" if v1 else "convert-nnunet-v2"
    own = ", and the published DeepCAC2: convert-deepcac2 FILE NEW_FOLDER" if pickled.suffix == ".pt" else ""
    return (
        f"{pickled.name} is a pickle, which could run code and is never loaded; "
        f"convert an nnU-Net folder once: deepcac2 weights {command} {folder} NEW_FOLDER{own}"
    )


def verify(weights: WeightSet) -> None:
    """Hash every file of the set.

    Raises:
        WeightsMissing: A file is gone.
        WeightsAltered: A file's sha256 differs.
    """
    for name, expected in weights.files.items():
        path = weights.path / name
        if not path.is_file():
            raise WeightsMissing(f"{path} is missing; copy or fetch the whole set {weights.name} again")
        _compare(path, sha256_of(path), expected)


@contextmanager
def as_described(weights: WeightSet, what: str) -> Iterator[None]:
    """Around the building of a network from a set's description and tensors.

    Args:
        what: What is built, such as ``"calcium network"``.

    Raises:
        WeightsUnsupported: The tensors do not fit the architecture that the set describes.
    """
    try:
        yield
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        # torch's first line only says that there are errors
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise WeightsUnsupported(
            f"the weights {weights.name!r} are no {what} that this version knows ({reason}); "
            "choose others with --weights"
        ) from error


def stated_window(weights: WeightSet, name: str = "window_hu") -> Range | None:
    """The intensity window that a set was trained with, HU (lowest, highest); None where it does not say.

    Args:
        name: Of the window in the description's ``normalisation``.

    Raises:
        WeightsError: It is no window.
    """
    window = (weights.metadata.get("normalisation") or {}).get(name)
    if window is None:
        return None
    try:
        low, high = (float(v) for v in window)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise WeightsError(
            f"{weights.path / DESCRIPTION}: {name} is [lowest HU, highest HU], not {window!r}; correct it"
        )
    return low, high


def numbers(weights: WeightSet, kind: type[T]) -> T:
    """What a set states of the numbers that it is used with.

    Args:
        kind: A dataclass; its fields are looked for in ``weights.json``, its defaults stand in for those that
            are not there.

    Raises:
        WeightsError: A number is not what `kind` takes.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    stated = {name: weights.metadata[name] for name in known if name in weights.metadata}
    return from_plain(kind, stated, where=str(weights.path / DESCRIPTION), error=WeightsError)


def require_window(weights: WeightSet, window: Range, name: str = "window_hu") -> None:
    """Refuse a set that was trained with another intensity window than the code's.

    Raises:
        WeightsError: The window that it states is none.
        WeightsUnsupported: It is another.
    """
    stated = stated_window(weights, name)
    if stated not in (None, window):
        raise WeightsUnsupported(
            f"the weights {weights.name!r} state {name} {list(stated)} and this version knows "
            f"{list(window)} only; train them anew"
        )


def load_json(weights: WeightSet, name: str) -> Any:
    """The content of one JSON file of the set, if its sha256 is right.

    Raises:
        WeightsMissing, WeightsAltered: As `verify`.
        WeightsUnsupported: Not JSON.
    """
    return parse_json(_read(weights, name), str(weights.path / name), error=WeightsUnsupported)


def load_tensors(weights: WeightSet, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file of the set, on the CPU, if its sha256 is right.

    The bytes that were hashed are the bytes that are parsed.

    Raises:
        WeightsMissing, WeightsAltered: As `verify`.
        WeightsUnsupported: Not safetensors, or with values that are no finite numbers: a network with these
            says of no voxel that it is calcium, and a score of 0 would look like a result.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not name.endswith(".safetensors"):
        raise WeightsUnsupported(
            f"{weights.path / name} is no .safetensors file; only safetensors are loaded"
        )
    try:
        tensors = load(_read(weights, name))
    except SafetensorError as error:
        raise WeightsUnsupported(f"{weights.path / name} is not valid safetensors: {error}") from error
    if wrong := next((n for n, t in tensors.items() if not t.isfinite().all()), None):
        raise WeightsUnsupported(
            f"{weights.path / name}: {wrong:.60} holds values that are no finite numbers; get the set again"
        )
    return tensors


def _read(weights: WeightSet, name: str) -> bytes:
    path = weights.path / name
    if name not in weights.files:
        raise WeightsMissing(f"{path} is not part of the set {weights.name}; convert or train the set again")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsMissing(f"{path} is missing; copy or fetch the whole set {weights.name} again") from None
    _compare(path, hashlib.sha256(content).hexdigest(), weights.files[name])
    return content


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise WeightsAltered(
            f"{path} was altered (sha256 {found[:12]}…, expected {expected[:12]}…); fetch or copy it again"
        )
