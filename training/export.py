"""Networks written as safetensors, for the sets of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..system.atomic import write_whole


def write_networks(folder: Path, networks: Mapping[str, torch.nn.Module]) -> list[str]:
    """Write the tensors of each network into ``<name>.safetensors``.

    Returns:
        The files' names, in order.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    from safetensors.torch import save

    files = []
    for name, network in networks.items():
        tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
        files.append(f"{name}.safetensors")
        write_whole(folder / files[-1], save(tensors))
    return files
