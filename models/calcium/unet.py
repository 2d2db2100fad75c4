"""The 3D U-Net of the calcium network, with residual units, and its namer.

But for the namer and the channels of the place it is the same network as MONAI's `UNet` (Kerfoot et al.,
"Left-Ventricle Quantification Using Residual U-Net", STACOM 2018), parameter for parameter and name for name,
so that sets trained with either fit both, and a seed gives the same first weights. Written anew because MONAI
loads all of itself, 7 s and 250 MB, before its first layer is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...imaging.heart_position import CHANNELS

KERNEL = 3
"""Voxels along each axis of all convolutions but those that only change the number of channels."""

_NAMER = 64
"""Channels within the namer; chosen."""

_NORMS = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d}


def is_known(architecture: dict[str, Any]) -> bool:
    """Whether `UNet` takes these keyword arguments of MONAI's."""
    return (
        architecture.keys() <= {"channels", "strides", "num_res_units", "norm", "placed", "kinds"}
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
        placed: bool = False,
        kinds: Sequence[str] = (),
    ) -> None:
        """Build the network.

        Args:
            channels: Of each level, from the top.
            strides: From each level to the next, one fewer.
            num_res_units: Convolutions of a unit on the way down; 0: one, without a residual.
            norm: ``"batch"`` or ``"instance"``.
            placed: Take the channels of `imaging.heart_position` beside the HU.
            kinds: What a second answer, the namer's, tells apart, see `kinds.KINDS`; it looks at the
                uppermost level, at half the voxels where `strides` begin with 2. Empty: there is none.

        Raises:
            ValueError: `channels` and `strides` do not fit together, or not with `kinds`.
        """
        super().__init__()
        if kinds and strides[0] != 2:
            raise ValueError(f"a network with kinds begins with a stride of 2, not {strides[0]}")
        if len(channels) < 2 or len(strides) < len(channels) - 1:
            raise ValueError(f"{len(channels)} levels need {len(channels) - 1} strides, not {len(strides)}")
        self._units, self._norm = num_res_units, _NORMS[norm.lower()]
        self.placed, self.kinds = placed, tuple(kinds)
        into = 1 + placed * CHANNELS
        self.model = self._level(into, 1, list(channels), list(strides), top=True)
        if kinds:
            wide = channels[0] + (channels[0] if len(channels) > 2 else channels[1])
            self.namer = nn.Sequential(
                nn.Conv3d(wide + placed * CHANNELS, _NAMER, 1),
                nn.PReLU(),
                nn.Conv3d(_NAMER, _NAMER, 1),
                nn.PReLU(),
                nn.Conv3d(_NAMER, len(kinds), 1),
            )

    def forward(
        self, x: torch.Tensor, asked: npt.NDArray[np.bool_] | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits (n, 1, z, y, x) of values (n, 1 or 5, z, y, x); sizes that the strides divide.

        With a namer a tuple: these, and logits of the kinds at half the voxels, (n, kinds, z/2, y/2, x/2).

        Args:
            asked: bool (n, z/2, y/2, x/2), where the namer is asked; elsewhere its logits are 0. None:
                everywhere.
        """
        if not self.kinds:
            logits: torch.Tensor = self.model(x)
            return logits
        joined = self.model[1](self.model[0](x))
        if asked is None:
            return self.model[2](joined), self.namer(self._told(joined, x))
        # It looks at each voxel by itself, and few matter: rows of voxels in place of a volume.
        where = np.nonzero(asked)
        kinds = joined.new_zeros((len(x), len(self.kinds), *joined.shape[2:]))
        if len(where[0]):
            n, z, y, xs = where
            blocks = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2)[n, :, z, y, xs]
            rows = self._told(joined[n, :, z, y, xs][:, :, None, None, None], blocks)
            answer = self.namer(rows[:, :, 0, 0, 0].T[None, :, :, None, None])
            kinds[n, :, z, y, xs] = answer[0, :, :, 0, 0].T
        return self.model[2](joined), kinds

    def _told(self, joined: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """What the namer sees: the uppermost level, and where that lies."""
        if not self.placed:
            return joined
        return torch.cat([joined, nn.functional.avg_pool3d(x[:, 1:], 2)], dim=1)

    def _level(
        self, into: int, out: int, channels: list[int], strides: list[int], *, top: bool = False
    ) -> nn.Sequential:
        """One level with all below it; these are made first, which fixes the order of random weights."""
        here, stride, *_ = channels[0], strides[0]
        if len(channels) > 2:
            below: nn.Module = self._level(here, here, channels[1:], strides[1:])
            from_below = here
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
            kind = _Doubling if out == 1 and stride == 2 else nn.ConvTranspose3d
            layer: nn.Module = kind(into, out, KERNEL, stride, padding=KERNEL // 2, output_padding=stride - 1)
        else:
            layer = nn.Conv3d(into, out, KERNEL, stride, padding=KERNEL // 2)
        layers.add_module("conv", layer)
        if not alone:
            after = nn.Sequential()
            after.add_module("N", self._norm(out))
            after.add_module("A", nn.PReLU())
            layers.add_module("adn", after)
        return layers


def fold_norms(network: nn.Module) -> None:
    """Put what batch norms do into the convolutions before them, in place: a network that is not trained on.

    Answers differ by rounding. Norms of an instance depend on it, and stay.
    """
    network.eval()
    for layers in network.modules():
        layer, after = getattr(layers, "conv", None), getattr(layers, "adn", None)
        if isinstance(after, nn.Sequential) and isinstance(norm := after[0], nn.BatchNorm3d):
            assert isinstance(layer, nn.Conv3d | nn.ConvTranspose3d)
            transposed = isinstance(layer, nn.ConvTranspose3d)
            layers.conv = fuse_conv_bn_eval(layer, norm, transpose=transposed)
            after.N = nn.Identity()


class _Doubling(nn.ConvTranspose3d):
    """A transposed convolution to one channel of twice the voxels along each axis.

    Where nothing is trained it is an ordinary one, whose eight channels are the eight voxels that come of
    each: along an axis voxel 2i has weight 1 of voxel i, and voxel 2i + 1 weight 2 of it and weight 0 of the
    next. On one core of an AMD EPYC 1.6 ms a patch in place of 3.6; answers differ by rounding.
    """

    def forward(self, x: torch.Tensor, output_size: list[int] | None = None) -> torch.Tensor:
        if self.training or output_size is not None:
            return super().forward(x, output_size)
        weight = self.weight[:, 0]
        for axis in (1, 2, 3):
            first, second, third = weight.unbind(axis)
            even = torch.stack([second, torch.zeros_like(second)], axis)
            weight = torch.stack([even, torch.stack([third, first], axis)], -1)
        into, n, (z, y, xs) = len(weight), len(x), x.shape[2:]
        kernel = weight.permute(4, 5, 6, 0, 1, 2, 3).reshape(8, into, 2, 2, 2)
        assert self.bias is not None
        pairs = nn.functional.conv3d(x, kernel, self.bias.expand(8), padding=1)[:, :, 1:, 1:, 1:]
        pairs = pairs.reshape(n, 2, 2, 2, z, y, xs).permute(0, 4, 1, 5, 2, 6, 3)
        return pairs.reshape(n, 1, 2 * z, 2 * y, 2 * xs)


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
