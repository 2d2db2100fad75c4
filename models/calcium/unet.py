"""The 3D U-Net of the calcium network, with residual units.

The same network as MONAI's `UNet` (Kerfoot et al., "Left-Ventricle Quantification Using Residual U-Net",
STACOM 2018), parameter for parameter and name for name, so that sets trained with either fit both, and a
seed gives the same first weights. Written anew because MONAI loads all of itself, 7 s and 250 MB, before its
first layer is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

KERNEL = 3
"""Voxels along each axis of all convolutions but those that only change the number of channels."""

_NORMS = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d}


def is_known(architecture: dict[str, Any]) -> bool:
    """Whether `UNet` takes these keyword arguments of MONAI's."""
    return (
        architecture.keys() <= {"channels", "strides", "num_res_units", "norm"}
        and isinstance(norm := architecture.get("norm", "instance"), str)
        and norm.lower() in _NORMS
    )


class UNet(nn.Module):
    """A U-Net of residual units, from one channel to one of logits."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        num_res_units: int = 0,
        norm: str = "instance",
    ) -> None:
        """Build the network.

        Args:
            channels: Of each level, from the top.
            strides: From each level to the next, one fewer.
            num_res_units: Convolutions of a unit on the way down; 0: one, without a residual.
            norm: ``"batch"`` or ``"instance"``.

        Raises:
            ValueError: `channels` and `strides` do not fit together.
        """
        super().__init__()
        if len(channels) < 2 or len(strides) < len(channels) - 1:
            raise ValueError(f"{len(channels)} levels need {len(channels) - 1} strides, not {len(strides)}")
        self._units, self._norm = num_res_units, _NORMS[norm.lower()]
        self.model = self._level(1, 1, list(channels), list(strides), top=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, 1, z, y, x) of values (n, 1, z, y, x); sizes that the strides divide."""
        logits: torch.Tensor = self.model(x)
        return logits

    def _level(
        self, into: int, out: int, channels: list[int], strides: list[int], *, top: bool = False
    ) -> nn.Module:
        """One level with all below it; these are made first, which fixes the order of random weights."""
        here, stride, *_ = channels[0], strides[0]
        if len(channels) > 2:
            below, from_below = self._level(here, here, channels[1:], strides[1:]), here
        else:
            below, from_below = self._down(here, channels[1], 1), channels[1]
        down = self._down(into, here, stride)
        return nn.Sequential(down, _Beside(below), self._up(here + from_below, out, stride, top))

    def _down(self, into: int, out: int, stride: int) -> nn.Module:
        if not self._units:
            return self._convolution(into, out, stride)
        return _Residual(self, into, out, stride, self._units)

    def _up(self, into: int, out: int, stride: int, top: bool) -> nn.Module:
        if not self._units:
            return self._convolution(into, out, stride, up=True, alone=top)
        return nn.Sequential(
            self._convolution(into, out, stride, up=True), _Residual(self, out, out, 1, 1, alone=top)
        )

    def _convolution(
        self, into: int, out: int, stride: int, *, up: bool = False, alone: bool = False
    ) -> nn.Sequential:
        """A convolution, followed by norm and PReLU unless it stands `alone`."""
        layers = nn.Sequential()
        if up:
            layer: nn.Module = nn.ConvTranspose3d(
                into, out, KERNEL, stride, padding=KERNEL // 2, output_padding=stride - 1
            )
        else:
            layer = nn.Conv3d(into, out, KERNEL, stride, padding=KERNEL // 2)
        layers.add_module("conv", layer)
        if not alone:
            after = nn.Sequential()
            after.add_module("N", self._norm(out))
            after.add_module("A", nn.PReLU())
            layers.add_module("adn", after)
        return layers


class _Residual(nn.Module):
    """Convolutions in a row, and their input added to what comes out."""

    def __init__(
        self, net: UNet, into: int, out: int, stride: int, units: int, *, alone: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.residual: nn.Module = nn.Identity()
        source, step = into, stride
        for unit in range(units):
            last = unit == units - 1
            self.conv.add_module(f"unit{unit}", net._convolution(source, out, step, alone=alone and last))
            source, step = out, 1
        if stride != 1:
            self.residual = nn.Conv3d(into, out, KERNEL, stride, padding=KERNEL // 2)
        elif into != out:
            self.residual = nn.Conv3d(into, out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        beside: torch.Tensor = self.residual(x)
        through: torch.Tensor = self.conv(x)
        return through + beside


class _Beside(nn.Module):
    """What goes in, and beside it, in further channels, what the levels below make of it."""

    def __init__(self, below: nn.Module) -> None:
        super().__init__()
        self.submodule = below

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined: torch.Tensor = torch.cat([x, self.submodule(x)], dim=1)
        return joined
