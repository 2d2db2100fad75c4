"""The published DeepCAC2: its network, and all that its authors' implementation does around it.

Judged by slow and literal restatements of the facts, which share nothing with the package.
"""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from deepcac2.models.deepcac2.network import PUBLISHED_WIDTHS, PublishedUNet, build, widths_of

# --- the network ------------------------------------------------------------------------------------------


def slow_network(x: torch.Tensor, tensors: dict[str, torch.Tensor], levels: int) -> torch.Tensor:
    """The network as plain functions, step by step."""

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv3d(F.pad(x, (1,) * 6), tensors[f"{name}.conv.{conv}.weight"])
            mean, var, scale, shift = (
                tensors[f"{name}.conv.{norm}.{k}"].view(1, -1, 1, 1, 1)
                for k in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / torch.sqrt(var + 1e-5) * scale + shift).clamp(min=0)
        return x

    kept = []
    for i in range(levels):
        x = block(x, f"downs.{i}")
        kept.append(x)
        n, c, a, b, d = x.shape
        x = x.reshape(n, c, a // 2, 2, b // 2, 2, d // 2, 2).amax(dim=(3, 5, 7))
    x = block(x, "bottleneck")
    for i in range(levels):
        weight, bias = tensors[f"ups.{2 * i}.weight"], tensors[f"ups.{2 * i}.bias"]
        raised = torch.einsum("nixyz,iopqr->noxpyqzr", x, weight)
        n, c, a, _, b, _, d, _ = raised.shape
        raised = raised.reshape(n, c, 2 * a, 2 * b, 2 * d) + bias.view(1, -1, 1, 1, 1)
        x = block(torch.cat([kept[-1 - i], raised], dim=1), f"ups.{2 * i + 1}")
    weight, bias = tensors["final_conv.weight"], tensors["final_conv.bias"]
    return torch.einsum("nixyz,oi->noxyz", x, weight[:, :, 0, 0, 0]) + bias.view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("widths", [(2, 3, 4, 5, 6), (3, 4), (2, 4, 8)])
def test_the_network_is_the_one_described(widths: tuple[int, ...], published: ModuleType) -> None:
    tensors = published.random_tensors(widths)
    network = build(tensors)
    assert not network.training
    n = 2 ** (len(widths) - 1)
    patches = torch.rand(2, 1, 2 * n, n, n, generator=torch.Generator().manual_seed(1))
    found = network(patches)
    assert found.shape == patches.shape
    torch.testing.assert_close(found, slow_network(patches, tensors, len(widths) - 1), rtol=1e-4, atol=1e-4)


def test_its_tensors_have_the_published_names_and_shapes(published: ModuleType) -> None:
    with torch.device("meta"):
        network = PublishedUNet()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == published.published_shapes(PUBLISHED_WIDTHS)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(90.3e6, rel=1e-3)
    assert widths_of(network.state_dict()) == PUBLISHED_WIDTHS


def test_half_precision_is_taken_as_float32_and_nothing_may_be_missing_or_over(
    published: ModuleType,
) -> None:
    tensors = published.random_tensors((2, 3, 4))
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    assert {t.dtype for t in build(halves).state_dict().values()} == {torch.float32, torch.int64}
    for name in ("final_conv.bias", "bottleneck.conv.0.weight", "downs.0.conv.0.weight"):
        with pytest.raises((KeyError, RuntimeError, ValueError)):
            build({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected"):
        build({**tensors, "extra": torch.zeros(1)})
