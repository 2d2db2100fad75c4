"""The published calcium network of DeepCAC2 to a set of weights: the same tensors, no pickle.

The authors publish ``vivid-haze-6_model.pt``, a ``state_dict`` and nothing else (github.com/MHubAI/models,
pull request 111, licence MIT). The set holds ``model.safetensors``, every tensor under its published name,
and ``weights.json``, which says how it is used: spacing, window, crop and patches as published.
Widths are read from the shapes; `models.unet3d` is the network that they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError, WeightsUnsupported
from ..system.atomic import write_whole
from ..system.foreign import foreign
from ..system.hashing import sha256_of
from .checkpoints import checked_tensors, read_checkpoint
from .description import DESCRIPTION, WeightSet, write_description

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

NAME = "deepcac2"
"""Of the set in the manifest."""
MODEL = "model.safetensors"
STATED: Mapping[str, Any] = {
    "input": {
        "spacing_mm": [2.5, 0.7, 0.7],
        "normalisation": "window [-135, 500] HU, z-normalised, the crop's own extremes to [0, 1]",
        "axes": "x, y, z",
    },
    "normalisation": {"window_hu": [-135.0, 500.0], "rescale_to": "crop"},
    "crop_shape": [58, 256, 256],
    "patch_shape": [16, 64, 64],
    "patch_step": [8, 32, 32],
    "heart_margin_mm": 4.0,
    "peak_probability": 0.5,
    "domain": {"contrast": False, "measured_on": "390 NLST scans, by its authors"},
}
"""What the published implementation does, for ``weights.json``; shapes are (z, y, x), voxels. A lesion need
not be surer than the mean that makes a voxel calcium.

``heart_margin_mm`` is not its authors', who keep to no distance from the heart; nor does the workflow
``deepcac2``. It is what ``default`` does with their network: how far a heart mask may be wrong is for the
heart's network to say (docs/decisions/0004). Nobody has tuned it to this one."""
TOLD = {
    "licence": "MIT",
    "citation": "DeepCAC2, Nuernberg et al. 2026, arXiv:2603.24633. Weights: github.com/MHubAI/models, "
    "pull request 111.",
    "training_data": "ECG-gated CT of the Framingham Heart Study with experts' outlines of calcium, as its "
    "authors state; not checked by this project.",
    "intended_use": "Research only. Not for diagnosis, treatment or telling a person their risk.",
}
"""For the reader."""


def convert_deepcac2(
    source: Path, destination: Path, *, name: str | None = None, **metadata: Any
) -> WeightSet:
    """Convert the published file.

    Args:
        source: ``vivid-haze-6_model.pt``, or another ``state_dict`` of the same network with any widths.
        destination: New folder for the set.
        name: Name of the set; ``deepcac2`` where not given.
        metadata: Entries of ``weights.json`` beside and instead of `STATED` and `TOLD`.

    Raises:
        WeightsUnsupported: The file holds more than tensors, or those of another network.
        WeightsError: `destination` holds something else.
    """
    from safetensors.torch import save

    state = read_checkpoint(source)
    with foreign(str(source), error=WeightsUnsupported, fault="is not the published DeepCAC2 network"):
        tensors = checked_tensors(state, source)
        widths = _check_network(tensors)
        content = save({k: v.detach().contiguous() for k, v in tensors.items()})
    _check_destination(destination)
    write_whole(destination / MODEL, content)
    return write_description(
        destination,
        name=name or NAME,
        role="calcium",
        files=[MODEL],
        architecture={"name": NAME, "widths": list(widths)},
        source={"format": NAME, "files": {source.name: sha256_of(source)}},
        **{**STATED, **TOLD, **metadata},
    )


def _check_network(tensors: Mapping[str, torch.Tensor]) -> Shape:
    """The widths of the network that tensors belong to.

    Raises:
        ValueError, KeyError: They belong to none.
    """
    levels = [tensors[f"downs.{i}.conv.0.weight"].shape[0] for i in range(_count(tensors))]
    widths = (*levels, tensors["bottleneck.conv.0.weight"].shape[0])
    wanted = dict(_shapes(widths))
    for name in [*(wanted.keys() - tensors.keys()), *(tensors.keys() - wanted.keys())]:
        raise ValueError(f"{name:.60} is {'missing' if name in wanted else 'none of its tensors'}")
    for name, shape in wanted.items():
        found = tensors[name]
        if tuple(found.shape) != shape:
            raise ValueError(f"{name} has the shape {tuple(found.shape)} and not {shape}")
        if name.endswith("num_batches_tracked"):
            continue
        if not found.is_floating_point():
            raise ValueError(f"{name} holds {found.dtype} and no fractions")
        if not found.float().isfinite().all():
            raise ValueError(f"{name} holds values that are no finite numbers")
        if name.endswith("running_var") and (found < 0).any():
            raise ValueError(f"{name} holds a variance below 0")
    return widths


def _count(tensors: Mapping[str, torch.Tensor]) -> int:
    """Levels of the network, beside its bottleneck."""
    found = {int(m[1]) for name in tensors if (m := re.match(r"downs\.(\d{1,2})\.", name))}
    if not found:
        raise ValueError("it has no tensors downs.0.*")
    return max(found) + 1


def _shapes(widths: Shape) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of all tensors of the network of these widths, the last that of the bottleneck."""
    *levels, lowest = widths
    blocks = {"bottleneck": (levels[-1], lowest)}
    for i, (into, out) in enumerate(zip((1, *levels), levels, strict=False)):
        blocks[f"downs.{i}"] = into, out
    for i, (below, out) in enumerate(zip((lowest, *levels[::-1]), levels[::-1], strict=False)):
        blocks[f"ups.{2 * i + 1}"] = 2 * out, out
        yield f"ups.{2 * i}.weight", (below, out, 2, 2, 2)
        yield f"ups.{2 * i}.bias", (out,)
    for block, (into, out) in blocks.items():
        for convolution, norm, source in ((0, 1, into), (3, 4, out)):
            yield f"{block}.conv.{convolution}.weight", (out, source, 3, 3, 3)
            for part in ("weight", "bias", "running_mean", "running_var"):
                yield f"{block}.conv.{norm}.{part}", (out,)
            yield f"{block}.conv.{norm}.num_batches_tracked", ()
    yield "final_conv.weight", (1, levels[0], 1, 1, 1)
    yield "final_conv.bias", (1,)


def _check_destination(destination: Path) -> None:
    if destination.exists() and not destination.is_dir():
        raise WeightsError(f"{destination} is not a folder; name a new one")
    others = [p.name for p in destination.iterdir()] if destination.is_dir() else []
    if other := next((name for name in others if name not in (MODEL, DESCRIPTION)), None):
        raise WeightsError(f"{destination} holds {other} and other files; name a new folder")
