"""Random tensors under the names of the published DeepCAC2 network, written out from its description."""

from __future__ import annotations

import torch

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
