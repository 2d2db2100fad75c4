"""What a training gives: a set of weights, and what it says of the scans that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dicom.gates import is_sharp_kernel
from ..simulation import sample_acquisition
from ..system.atomic import write_whole
from ..weights import write_description
from .crops import CropRecipe
from .trainer import StepsRecipe

NOISE_IN_HEART = 1.08
"""What `imaging.noise.noise_sd` measures in simulated hearts over what was asked for; measured on ten."""
RARE_PERCENT = 1.0
"""Percent of the patients at either end that do not stretch a range."""


def simulated_domain(
    seeds: Mapping[int, Sequence[int]], scans: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """What a set was trained on, as `Domain.to_dict` writes it; empty without any scan.

    A kind of kernel that occurs with at least three names is stated as a kind (``soft`` or ``sharp``). What
    no scan knows is not stated.

    Args:
        seeds: Of the simulated patients, by the version of the simulator.
        scans: The annotated scans beside them, each as `pipeline.domain.describe_scan` says it.
    """
    drawn = [sample_acquisition(seed, version) for version, some in seeds.items() for seed in some]
    if not drawn and not scans:
        return {}
    given = (name.split("\\")[0].strip() for scan in scans for name in str(scan["kernel"]).split(", "))
    names = sorted({s.kernel for s in drawn} | {name for name in given if name})
    kernels: list[str] = []
    for kind, sharp in (("soft", False), ("sharp", True)):
        of_kind = [n for n in names if is_sharp_kernel(n) == sharp]
        kernels += [kind] if len(of_kind) >= 3 else of_kind

    def between(values: Sequence[float]) -> list[float]:
        low, high = np.percentile(values, (RARE_PERCENT, 100 - RARE_PERCENT), method="nearest")
        return [round(float(low), 3), round(float(high), 3)]

    values: dict[str, list[float]] = {
        "noise_hu": [s.noise_sd * NOISE_IN_HEART for s in drawn],
        "kvp": [s.kvp for s in drawn],
        "thickness_mm": [s.thickness for s in drawn],
        "increment_mm": [s.increment for s in drawn],
        "pixel_mm": [s.field_of_view / 512 for s in drawn],
        "field_of_view_mm": [s.field_of_view for s in drawn],
    }
    for name, known in values.items():
        known += [float(scan[name]) for scan in scans if scan[name] is not None]
    ranges = {name: between(known) for name, known in values.items() if known}
    if "noise_hu" in ranges:
        ranges["noise_hu"] = [round(v) for v in ranges["noise_hu"]]
    contrast = any(bool(scan["contrast"]) for scan in scans)
    return {**({"kernels": kernels} if kernels else {}), **ranges, "contrast": contrast}


def export_networks(
    folder: Path,
    networks: Mapping[str, torch.nn.Module],
    *,
    recipe: StepsRecipe,
    crops: CropRecipe,
    role: str,
    data: str,
    scans: Sequence[Mapping[str, Any]] = (),
    **description: Any,
) -> Path:
    """Write the networks, each as ``<name>.safetensors``, and their ``weights.json`` into `folder`.

    Args:
        recipe, crops: What they were trained by, and on.
        role: Of the set.
        data: What the crops show, in words.
        scans: The annotated scans among them, see `simulated_domain`.
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
        domain=simulated_domain(crops.seeds, scans),
        **description,
    )
    return folder
