"""nnU-Net v2 results to a set of weights: the same network, the same plans, no pickle.

A folder of heart weights holds

- ``plans.json`` and ``dataset.json`` as nnU-Net wrote them,
- ``fold_<n>.safetensors``, one per fold; the logits of several folds are averaged,
- ``weights.json``: sha256 of each, the configuration, mirroring axes, and where it all came from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError, WeightsMissing, WeightsUnsupported
from ..system.atomic import json_bytes, output_errors, write_whole
from ..system.foreign import foreign, read_json
from ..system.hashing import sha256_of
from .checkpoints import checked_tensors, read_checkpoint
from .description import WeightSet, write_description

if TYPE_CHECKING:
    import torch


def convert_nnunet_v2(
    source: Path,
    destination: Path,
    *,
    name: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
    labels: Sequence[int] | None = None,
    heart_offset: float = 0.0,
    **metadata: Any,
) -> WeightSet:
    """Convert a folder of nnU-Net v2 results.

    Args:
        source: ``Trainer__Plans__configuration`` folder: ``plans.json``, ``dataset.json``, ``fold_*/``.
        destination: New folder for the set.
        name: Name of the set; the data set's name where not given.
        checkpoint: File to take from each fold.
        labels: Classes that are heart; needed only where there are several and none is called heart.
        heart_offset: Taken from the logits of the heart's classes, in the bias of the last layer.
        metadata: Further entries of ``weights.json``.

    Raises:
        WeightsMissing: `source` lacks one of these.
        WeightsUnsupported: A checkpoint holds more than tensors and plain data, or the network is none
            that can be rebuilt.
        WeightsError: The heart's class is not clear, or `destination` holds something else.
    """
    plans, dataset = _json(source / "plans.json"), _json(source / "dataset.json")
    checkpoints = sorted(source.glob(f"fold_*/{checkpoint}"))
    if not checkpoints:
        raise WeightsMissing(f"no fold_*/{checkpoint} in {source}; give the folder that holds plans.json")
    states = [read_checkpoint(p) for p in checkpoints]
    with foreign(str(source), error=WeightsUnsupported, fault="is no nnU-Net v2 result that is understood"):
        tensors = {
            f"fold_{p.parent.name.removeprefix('fold_')}.safetensors": dict(
                checked_tensors(unique_tensors(s["network_weights"]), p)
            )
            for p, s in zip(checkpoints, states, strict=True)
        }
        classes = heart_labels(dataset["labels"], labels)
        if heart_offset:
            metadata["heart_offset"] = heart_offset
            for fold in tensors.values():
                last = max(
                    (k for k in fold if k.startswith("decoder.seg_layers.") and k.endswith(".bias")),
                    key=lambda k: int(k.split(".")[2]),
                )
                fold[last] = fold[last].clone()
                fold[last][list(classes)] -= heart_offset
        name = name or text_of(plans["dataset_name"])
        configuration = text_of(states[0]["init_args"]["configuration"])
        trainer = text_of(states[0]["trainer_name"])
        mirror_axes = [int(axis) for axis in states[0].get("inference_allowed_mirroring_axes") or ()]
    return write_heart_set(
        destination,
        name=name,
        plans=plans,
        dataset=dataset,
        folds=tensors,
        configuration=configuration,
        mirror_axes=mirror_axes,
        labels=classes,
        source={
            "format": "nnunet-v2",
            "trainer": trainer,
            "files": {f"{p.parent.name}/{p.name}": sha256_of(p) for p in checkpoints},
        },
        **metadata,
    )


def write_heart_set(
    destination: Path,
    *,
    name: str,
    plans: dict[str, Any],
    dataset: dict[str, Any],
    folds: Mapping[str, dict[str, torch.Tensor]],
    configuration: str,
    mirror_axes: Sequence[int],
    labels: Sequence[int],
    source: dict[str, Any],
    **metadata: Any,
) -> WeightSet:
    """Write the folder of a heart set; used by both converters.

    Raises:
        WeightsError: `destination` holds something else already.
    """
    from safetensors.torch import save

    with foreign("the plans", error=WeightsUnsupported, fault="are none that is understood"):
        plan = plans["configurations"][configuration]
        intensity = plans["foreground_intensity_properties_per_channel"]["0"]
        input_of = {
            "spacing_mm": [float(s) for s in plan["spacing"]],
            "patch": [int(p) for p in plan["patch_size"]],
            "normalisation": {
                "scheme": text_of(plan["normalization_schemes"][0]),
                "clip_hu": [float(intensity["percentile_00_5"]), float(intensity["percentile_99_5"])],
                "mean_hu": float(intensity["mean"]),
                "sd_hu": float(intensity["std"]),
            },
        }
        contents = {
            "plans.json": json_bytes(plans),
            "dataset.json": json_bytes(dataset),
        }
        for file, tensors in folds.items():
            contents[file] = save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    if destination.exists() and not destination.is_dir():
        raise WeightsError(f"{destination} is not a folder; name a new one")
    if destination.is_dir():
        others = [p.name for p in destination.iterdir() if not _ours(p.name)]
        if others:
            raise WeightsError(f"{destination} holds {others[0]} and other files; name a new folder")
    with output_errors(destination):
        for old in destination.iterdir() if destination.is_dir() else ():
            old.unlink()
    for file, content in contents.items():
        write_whole(destination / file, content)
    metadata.setdefault("licence", "as the source")
    return write_description(
        destination,
        name=name,
        role="heart",
        files=["plans.json", "dataset.json", *folds],
        configuration=configuration,
        mirror_axes=list(mirror_axes),
        heart_labels=list(labels),
        input=input_of,
        source=source,
        **metadata,
    )


def heart_labels(labels: Mapping[str, Any], given: Sequence[int] | None) -> tuple[int, ...]:
    """Which classes of a data set are heart.

    Args:
        labels: ``labels`` of the ``dataset.json``: name to number.
        given: What the user says, or None.

    Raises:
        WeightsError: Several classes, none called heart, and nothing given.
        WeightsUnsupported: Overlapping regions instead of classes.

    >>> heart_labels({"background": 0, "myocardium": 1}, None)
    (1,)
    >>> heart_labels({"background": 0, "lung": 1, "Heart": 2}, None)
    (2,)
    """
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        raise WeightsUnsupported(
            "the network was trained with overlapping regions; only plain classes are read"
        )
    numbers = {name: int(value) for name, value in labels.items() if name not in ("background", "ignore")}
    if given:
        unknown = sorted(set(given) - set(numbers.values()))
        if unknown:
            raise WeightsError(f"no class {unknown[0]} for --heart-label; there are {_listed(numbers)}")
        return tuple(int(g) for g in given)
    if len(numbers) == 1:
        return tuple(numbers.values())
    named = tuple(v for k, v in numbers.items() if k.lower() in ("heart", "whole heart", "whole_heart"))
    if not named:
        raise WeightsError(
            f"which class is the heart? Say it with --heart-label NUMBER; there are {_listed(numbers)}"
        )
    return named


def text_of(value: Any) -> str:
    """A value that has to be text: of what is none, no text is made, which can take for ever.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where a name should be")
    return value


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} ({name})" for name, number in numbers.items())


def _ours(file: str) -> bool:
    return bool(re.fullmatch(r"(plans|dataset|weights)\.json|fold_\w+\.safetensors", file))


def unique_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of nnU-Net v2's networks with each tensor once, under its first name.

    Their decoder holds the encoder a second time, and each block holds its convolution and norm both by
    name and in a list.
    """
    kept = {k.removeprefix("module."): v for k, v in state.items()}
    return {
        k: v for k, v in kept.items() if ".all_modules." not in k and not k.startswith("decoder.encoder.")
    }


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise WeightsMissing(
            f"no {path.name} in {path.parent}; give the folder that holds plans.json and fold_*"
        )
    content = read_json(path, error=WeightsUnsupported)
    if not isinstance(content, dict):
        raise WeightsUnsupported(f"{path} is not a JSON object")
    return content
