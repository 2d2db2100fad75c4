"""The published DeepCAC2 written out from its description, to judge the package by; they share nothing.

Random tensors under the names of the published network, that network as plain functions, and its scores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

BIAS = 20
"""Of `workflow_file`, negated; chosen: a few hundred voxels of the simulated patient are calcium."""

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_shapes(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor, written out from the description of the published file."""
    *levels, lowest = widths
    shapes: dict[str, tuple[int, ...]] = {}

    def block(name: str, into: int, out: int) -> None:
        for conv, norm, source in ((0, 1, into), (3, 4, out)):
            shapes[f"{name}.conv.{conv}.weight"] = (out, source, 3, 3, 3)
            for what in NORM:
                shapes[f"{name}.conv.{norm}.{what}"] = () if what == "num_batches_tracked" else (out,)

    for i, out in enumerate(levels):
        block(f"downs.{i}", levels[i - 1] if i else 1, out)
    block("bottleneck", levels[-1], lowest)
    for i, out in enumerate(reversed(levels)):
        shapes[f"ups.{2 * i}.weight"] = (([lowest, *reversed(levels)])[i], out, 2, 2, 2)
        shapes[f"ups.{2 * i}.bias"] = (out,)
        block(f"ups.{2 * i + 1}", 2 * out, out)
    shapes["final_conv.weight"] = (1, levels[0], 1, 1, 1)
    shapes["final_conv.bias"] = (1,)
    return shapes


def random_tensors(widths: tuple[int, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in published_shapes(widths).items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            tensors[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            tensors[name] = torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.2)
    return tensors


class Described(torch.nn.Module):
    """The network as it is described, function by function, with the tensors of a published file."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors
        self.levels = sum(name.startswith("downs.") and name.endswith("conv.0.weight") for name in tensors)

    def block(self, x: torch.Tensor, name: str) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv3d(x, self.tensors[f"{name}.conv.{conv}.weight"], padding=1)
            scale, shift, mean, variance = (self.tensors[f"{name}.conv.{norm}.{what}"] for what in NORM[:4])
            x = F.relu(F.batch_norm(x, mean, variance, scale, shift, training=False, eps=1e-5))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i in range(self.levels):
            skips.append(self.block(x, f"downs.{i}"))
            x = F.max_pool3d(skips[-1], 2)
        x = self.block(x, "bottleneck")
        for i in range(self.levels):
            weight, bias = self.tensors[f"ups.{2 * i}.weight"], self.tensors[f"ups.{2 * i}.bias"]
            raised = F.conv_transpose3d(x, weight, bias, stride=2)
            x = self.block(torch.cat([skips.pop(), raised], dim=1), f"ups.{2 * i + 1}")
        return F.conv3d(x, self.tensors["final_conv.weight"], self.tensors["final_conv.bias"])


def workflow_file(
    folder: Path, name: str = "deepcac2-authors", *, bias: float = BIAS, **modules: dict[str, Any]
) -> Path:
    """A workflow of `config/` with a small random network in place of the published one.

    It answers to brightness, and its last bias leaves a small part of it. The heart is looked for with the
    bundled set.

    Args:
        folder: Where workflow and weights are put.
        name: Of the workflow.
        bias: The last one, negated.
        modules: Options beside and instead of those of the file.
    """
    import yaml

    import deepcac2
    from deepcac2.weights import convert_deepcac2

    tensors = random_tensors((2, 3))
    for tensor_name, tensor in tensors.items():
        if tensor.ndim == 5:  # convolutions that add up, and norms that keep what they are given
            tensors[tensor_name] = tensor.abs()
        elif tensor_name.endswith("weight"):
            tensors[tensor_name] = tensor.abs() + 1
    tensors["final_conv.weight"] *= 1e-4
    tensors["final_conv.bias"] = torch.tensor([-float(bias)])
    torch.save(tensors, folder / "published.pt")
    weights = convert_deepcac2(folder / "published.pt", folder / "set").path
    source = Path(deepcac2.__file__).parent / "config" / f"{name}.yml"
    content = yaml.safe_load(source.read_text())
    ours = {
        "HeartRunner": {"weights": "bundled"},
        "DeepCAC2Runner": {"weights": str(weights)},
        "DicomImporter": {"allow": ["metal"]},
    }
    for changes in (ours, modules):
        for module, options in changes.items():
            content["modules"][module] = {**(content["modules"].get(module) or {}), **options}
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def slow_score(hu: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> int:
    """The published score of a mask by plain loops.

    Args:
        hu, mask: (z, y, x).
        spacing: mm along (z, y, x).
    """
    z, y, x = spacing
    one = round(x * y * z / 3, 3)
    total = 0.0
    for k in range(len(mask)):
        left = {(i, j) for j, i in np.argwhere(mask[k]).tolist()}
        while left:
            piece = _piece(min(left), left)
            left -= piece
            if len(piece) > 3:
                highest = max(int(hu[k, j, i]) for i, j in piece)
                weight = 1 + (highest >= 200) + (highest >= 300) + (highest >= 400)
                total += round(len(piece) * one * weight, 3)
    return round(total)


def labelled_score(hu: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> int:
    """As `slow_score`, for whole scans; arrays (z, y, x), mm along these."""
    z, y, x = spacing
    one = round(x * y * z / 3, 3)
    total = 0.0
    for image, marked in zip(hu.transpose(0, 2, 1), mask.transpose(0, 2, 1), strict=True):
        pieces, count = ndimage.label(marked, structure=np.ones((3, 3)))  # the leftmost first
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        highest = ndimage.maximum(image, pieces, range(1, count + 1)) if count else []
        for size, most in zip(sizes[1:].tolist(), highest, strict=True):
            if size > 3:
                weight = 1 if most < 200 else 2 if most < 300 else 3 if most < 400 else 4
                total += round(size * one * weight, 3)
    return round(total)


def labelled_map(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """As `slow_map`, for whole scans."""
    mapped = np.zeros_like(mask)
    for k in range(len(mask)):
        pieces, count = ndimage.label(hu[k] >= 130, structure=np.ones((3, 3)))
        reached = np.isin(np.arange(count + 1), pieces[mask[k]])
        reached[0] = False
        mapped[k] = reached[pieces]
    return mapped


def slow_map(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mapped mask by plain loops: the pieces of 130 HU and more in a slice that the mask overlaps."""
    mapped = np.zeros_like(mask)
    for k in range(len(mask)):
        left = {(i, j) for j, i in np.argwhere(hu[k] >= 130).tolist()}
        for j, i in np.argwhere(mask[k] & (hu[k] >= 130)).tolist():
            for a, b in _piece((i, j), left):
                mapped[k, b, a] = True
    return mapped


def _piece(start: tuple[int, int], among: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """What hangs together with a pixel, over sides and corners."""
    found, edge = {start}, [start]
    while edge:
        i, j = edge.pop()
        around = {(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)}
        new = (around & among) - found
        found |= new
        edge.extend(new)
    return found


def group_of(score: int) -> int:
    """The published risk group of a score."""
    return 0 if score == 0 else 1 if score <= 100 else 2 if score <= 300 else 3
