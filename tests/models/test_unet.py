"""The U-Net against MONAI's, from which it must differ in nothing but the time that it takes to load."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepcac2.models.calcium.network import build_network
from deepcac2.models.calcium.unet import UNet, _Doubling, fold_norms, is_known

ARCHITECTURES: list[dict[str, Any]] = [
    {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 2, "norm": "batch"},
    {"channels": [4, 8], "strides": [2]},
    {"channels": [4, 8, 16], "strides": [2, 1], "num_res_units": 1, "norm": "BATCH"},
    {"channels": [4, 8, 16], "strides": [1, 2], "num_res_units": 3, "norm": "instance"},
    {"channels": [6, 6, 6], "strides": [2, 2], "num_res_units": 0, "norm": "batch"},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_it_is_monais(architecture: dict[str, Any]) -> None:
    from monai.networks.nets import UNet as MonaiUNet

    torch.manual_seed(5)
    ours = build_network(architecture)
    torch.manual_seed(5)
    theirs = MonaiUNet(spatial_dims=3, in_channels=1, out_channels=1, **architecture)
    assert isinstance(ours, UNet)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    patches = torch.rand(2, 1, 16, 32, 32)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(patches), theirs(patches), rtol=1e-4, atol=1e-5)


def test_what_it_does_not_know_is_monais_own() -> None:
    other = {"channels": [4, 8], "strides": [2], "act": "relu", "norm": ("group", {"num_groups": 2})}
    assert not is_known(other)
    assert type(build_network(other)).__module__.startswith("monai.")


def test_strides_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="3 levels need 2 strides, not 1"):
        UNet(channels=[4, 8, 16], strides=[2])


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_folded_network_answers_the_same(architecture: dict[str, Any]) -> None:
    torch.manual_seed(6)
    network = UNet(**architecture)
    x = torch.rand((3, 1, 16, 32, 32))
    for _ in range(3):  # norms that have seen something
        network(x)
    network.eval()
    with torch.inference_mode():
        plain = network(x)
        fold_norms(network)
        torch.testing.assert_close(network(x), plain, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in network.modules())


def test_doubling_is_a_transposed_convolution() -> None:
    torch.manual_seed(7)
    layer = _Doubling(5, 1, 3, 2, padding=1, output_padding=1).eval()
    x = torch.randn((2, 5, 3, 4, 6))
    with torch.inference_mode():
        plain = torch.nn.functional.conv_transpose3d(
            x, layer.weight, layer.bias, stride=2, padding=1, output_padding=1
        )
        torch.testing.assert_close(layer(x), plain)
