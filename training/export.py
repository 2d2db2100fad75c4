"""What a training gives: a set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..system.atomic import write_whole
from ..weights import write_description
from .crops import CropRecipe
from .domain import simulated_domain


def export_networks(
    folder: Path,
    networks: Mapping[str, torch.nn.Module],
    *,
    recipe: Any,
    role: str,
    crops: CropRecipe,
    data: str,
    **description: Any,
) -> Path:
    """Write the networks, each as ``<name>.safetensors``, and their ``weights.json`` into `folder`.

    Args:
        recipe: What they were trained by.
        role: Of the set.
        crops: What they were trained on; `data` says it in words.
        description: Further entries, JSON types: architecture, normalisation, measured.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    from safetensors.torch import save

    for name, network in networks.items():
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        write_whole(folder / f"{name}.safetensors", save(tensors))
    write_description(
        folder,
        name=recipe.name,
        role=role,
        files=[f"{name}.safetensors" for name in networks],
        training={"recipe": asdict(recipe), "data": data},
        domain=simulated_domain(crops.seeds),
        **description,
    )
    return folder
