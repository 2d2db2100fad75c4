"""What a training is told: a recipe, a YAML file of `config/train/` read into the network's frozen dataclass,
and its inputs, which are the same for every network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import TrainingError, WorkflowError
from ..pipeline.step import steps
from ..system.atomic import write_json
from ..system.codec import from_plain
from ..system.foreign import MAX_YAML, parse_yaml, read_bytes
from ..system.nearest import nearest

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


RECIPES = Path(__file__).resolve().parents[1] / "config" / "train"
BUNDLED = RECIPES / "bundled.yml"
"""What the bundled weights were made with: several parts in one file."""

REFINE = "refine"
"""The part of a recipe file that trains a network for a second time, beginning with what the first gave."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a training is given beside its recipe; each network takes what it has use for.

    Attributes:
        device: Where the networks run.
        data: Folders of annotated scans, see `evaluation.datasets`.
        backgrounds: Folders of real scans without coronary calcium, see `training.insertion`.
        heart_weights: Name or path of the weights that find hearts which are not annotated.
        start: Name or path of the weights to begin with; "" begins with random ones.
        best: Of a training that is validated, make the weights of the checkpoint with the highest Dice on
            what is held out, instead of the last.
    """

    device: torch.device
    data: Sequence[Path] = ()
    backgrounds: Sequence[Path] = ()
    heart_weights: str = "bundled"
    start: str = ""
    best: bool = False


def trainable() -> Mapping[str, str]:
    """What can be trained: role of the weights → module with its ``RECIPE`` and ``train`` (`Step.train`)."""
    return {step.role: step.train for step in steps().values() if step.role and step.train}


def prepared(path: Path, role: str, *, part: str = "") -> Callable[[Path, Inputs], Path]:
    """The training of a role by the recipe in a file.

    It takes a folder for all that it makes, and its inputs; it goes on where an earlier call in the same
    folder was stopped, and returns the folder of the finished set of weights. It raises `TrainingError` where
    the data cannot be trained on or the folder belongs to another recipe or other scans, and
    `KeyboardInterrupt` after it was told to end and has written a checkpoint.

    Args:
        path, part: The file, and its part where that is another one than the role's; see `load_recipe`.
        role: One of `trainable`.

    Raises:
        WorkflowError: As `load_recipe`.
    """
    module = import_module(trainable()[role])
    return partial(module.train, load_recipe(path, module.RECIPE, role=part or role))


def load_recipe(path: Path, kind: type[T], *, role: str) -> T:
    """Read the recipe of a role into the dataclass `kind`.

    Args:
        path: YAML; the keys of one network, or a part for each network under its role, and maybe `REFINE`.
        role: Which part is read, where the file has parts.

    Raises:
        WorkflowError: The file is missing or not YAML, it has no part for the role, or a key is unknown or
            lacks a value; the message names the nearest valid key.
    """
    if not path.exists():
        raise WorkflowError(f"no recipe at {path}; name a YAML file as in config/train/")
    content = parse_yaml(read_bytes(path, most=MAX_YAML, error=WorkflowError), str(path), error=WorkflowError)
    if not isinstance(content, dict):
        raise WorkflowError(f"{path} must hold 'key: value' lines")
    parts = (*trainable(), REFINE)
    if any(isinstance(content.get(part), dict) for part in parts):
        for part in content:
            if part not in parts:
                raise WorkflowError(f"{path}: unknown part {part!r}.{nearest(str(part), parts)}")
        if not isinstance(content.get(role), dict):
            raise WorkflowError(f"{path} has no part '{role}:'; add one or name another file with --config")
        return build(content[role], kind, where=f"{path}, {role}")
    return build(content, kind, where=str(path))


def build(content: dict[str, Any], kind: type[T], *, where: str) -> T:
    """Make a recipe from a mapping.

    Raises:
        WorkflowError: Unknown key, or a value that does not fit.
    """
    return from_plain(kind, content, where=where, error=WorkflowError)


def keep_to(note: Path, about: Any, *, holds: str) -> None:
    """Write down in a `note` what its folder is made of, or see that it is the same as when it was begun.

    Raises:
        TrainingError: It was begun with something else, and `holds` says what of.
        DiskFull, OutputUnwritable: The note cannot be written.
    """
    if not note.exists():
        write_json(note, about)
    elif json.loads(note.read_text()) != json.loads(json.dumps(about)):
        raise TrainingError(f"{note.parent} {holds}; remove it or choose another --work folder")
