"""The published DeepCAC2 network: a 3D U-Net from one channel to one logit.

Nuernberg et al. 2026, arXiv:2603.24633; the implementation and the weights ``vivid-haze-6_model.pt`` are the
authors' own (github.com/MHubAI/models, pull request 111, licence MIT). Written here from the facts of its
parameters: their names and shapes, and what lies between them. Names are the published ones, so a converted
``state_dict`` fits as it is.

Its arrays run along (x, y, z), as the published network sees them: the last axis is that of the slices.
Those of this project run along (z, y, x); `turned` gives the same network for these.

It belongs to no method alone: `deepcac2` uses it as published, `calcium` with a crop and steps of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PUBLISHED_WIDTHS = (64, 128, 256, 512, 1024)
"""Channels of the four levels and of the bottleneck of the published weights: 90.3 million parameters."""


_LEVELS_IN_PARTS = 2
"""Levels of the way up that can be done in parts: they do 56 % of the work of the published widths. Those
below are small, and faster for many patches at once."""

Box = Sequence[slice]
"""A part of a patch: a slice along each axis, whose begin and end are voxels."""


class Block(nn.Module):
    """Two 3 × 3 × 3 convolutions without bias, each followed by batch normalisation and ReLU."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source in (into, out):
            convolution = nn.Conv3d(source, out, kernel_size=3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm3d(out), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(x)
        return result


class PublishedUNet(nn.Module):
    """Blocks with max-pooling by 2 along all axes on the way down, transposed convolutions on the way up.

    On the way up, the channels of the same level on the way down come first and the upsampled ones second.
    """

    def __init__(self, widths: Sequence[int] = PUBLISHED_WIDTHS) -> None:
        """Build the network.

        Args:
            widths: Channels of each level from the top, the last those of the bottleneck.

        Raises:
            ValueError: There is no level beside the bottleneck.
        """
        super().__init__()
        *levels, lowest = widths
        if not levels:
            raise ValueError(f"a U-Net has a level and a bottleneck at least, not the widths {list(widths)}")
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.pool = nn.MaxPool3d(2)
        for into, out in zip((1, *levels), levels, strict=False):
            self.downs.append(Block(into, out))
        for below, out in zip((lowest, *reversed(levels)), reversed(levels), strict=False):
            self.ups.append(nn.ConvTranspose3d(below, out, kernel_size=2, stride=2))
            self.ups.append(Block(2 * out, out))
        self.bottleneck = Block(levels[-1], lowest)
        self.final_conv = nn.Conv3d(levels[0], 1, kernel_size=1)

    def forward(self, x: torch.Tensor, boxes: Sequence[Box] | None = None) -> torch.Tensor:
        """Logits of patches.

        More than half of the work is done in the two uppermost blocks of the way up, and what they say of a
        voxel hangs only on what lies near it. With `boxes` it is done only where it is asked for; what is
        said there is the same to rounding.

        Args:
            x: float32 (n, 1, x, y, z), in [0, 1]; sizes that 2 divides once for each level.
            boxes: For each patch the part that is asked for: at least one voxel; None: all.

        Returns:
            Logits of the same shape; −∞ outside of the boxes.
        """
        beside = []
        for down in self.downs:
            x = down(x)
            beside.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        parts = 0 if boxes is None else min(_LEVELS_IN_PARTS, len(beside))
        for level in reversed(range(parts, len(beside))):
            x = self._raised(level, x, beside[level])
        if boxes is None:
            whole: torch.Tensor = self.final_conv(x)
            return whole
        logits = x.new_full((len(x), 1, *beside[0].shape[2:]), -math.inf)
        for i, box in enumerate(boxes):
            part = self._part(0, x[i : i + 1], [kept[i : i + 1] for kept in beside[:parts]], box)
            logits[(slice(i, i + 1), slice(None), *box)] = self.final_conv(part).to(logits.dtype)
        return logits

    def _raised(self, level: int, below: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """One level of the way up: what lies below it, and what was kept beside it on the way down."""
        up = 2 * (len(self.downs) - 1 - level)
        result: torch.Tensor = self.ups[up + 1](torch.cat([kept, self.ups[up](below)], dim=1))
        return result

    def _part(self, level: int, x: torch.Tensor, beside: Sequence[torch.Tensor], box: Box) -> torch.Tensor:
        """A part of a level of the way up, and of those below as much as it hangs on.

        The two convolutions of a block look one voxel far each, so it is given two more on each side. Where
        the patch ends before, zeros follow, as in the whole.

        Args:
            x: The level below all of `beside`, whole.
            beside: What was kept beside each level that is done in parts, whole, the uppermost first.
            box: The part, on this level's grid.
        """
        if level == len(beside):
            return x[(slice(None), slice(None), *box)]
        kept = beside[level]
        given = [
            slice(max(0, b.start - 2) // 2 * 2, min(n, (b.stop + 3) // 2 * 2))
            for b, n in zip(box, kept.shape[2:], strict=True)
        ]
        below = self._part(level + 1, x, beside, [slice(g.start // 2, g.stop // 2) for g in given])
        found = self._raised(level, below, kept[(slice(None), slice(None), *given)])
        inner = [slice(b.start - g.start, b.stop - g.start) for b, g in zip(box, given, strict=True)]
        return found[(slice(None), slice(None), *inner)]


def widths_of(tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """The widths of `PublishedUNet`, read off the shapes of its tensors.

    Raises:
        ValueError: The levels are not numbered from 0 on without gaps.
        KeyError: There is no bottleneck.
    """
    levels = {
        int(found[1]): int(tensor.shape[0])
        for name, tensor in tensors.items()
        if (found := re.fullmatch(r"downs\.(\d{1,2})\.conv\.0\.weight", name))
    }
    if sorted(levels) != list(range(len(levels))):
        raise ValueError(f"its levels are {sorted(levels)}")
    lowest = int(tensors["bottleneck.conv.0.weight"].shape[0])
    return (*(levels[level] for level in range(len(levels))), lowest)


def turned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the same network for arrays that run along (z, y, x).

    Every kernel is turned, and pooling and normalisation know no axes, so that for all x

        build(turned(t))(x.transpose(2, 4)) == build(t)(x).transpose(2, 4)

    to rounding. Turning twice gives the first ones again.
    """
    return {name: t.transpose(2, 4).contiguous() if t.ndim == 5 else t for name, t in tensors.items()}


def build(tensors: Mapping[str, torch.Tensor]) -> PublishedUNet:
    """The network that tensors under the published names belong to, with them, ready to predict.

    No random weights are made first; the network takes the tensors, as float32.

    Raises:
        ValueError, KeyError, RuntimeError: A tensor is missing, has another shape, or belongs to nothing.
    """
    with torch.device("meta"):
        network = PublishedUNet(widths_of(tensors))
    own = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    network.load_state_dict(own, assign=True)
    network.requires_grad_(False)
    return network.eval()


def fold_norms(network: PublishedUNet) -> None:
    """Put each normalisation into the convolution before it: the same answer to rounding, and sooner.

    The network then holds other tensors than the published ones.
    """
    for module in network.modules():
        if isinstance(module, Block):
            first, norm, _, second, other, _ = module.conv
            module.conv = nn.Sequential(
                fuse_conv_bn_eval(first, norm), nn.ReLU(inplace=True),  # type: ignore[type-var, arg-type]
                fuse_conv_bn_eval(second, other), nn.ReLU(inplace=True),  # type: ignore[type-var, arg-type]
            )  # fmt: skip
            module.requires_grad_(False)


def build_for(patch: Sequence[int], tensors: Mapping[str, torch.Tensor]) -> PublishedUNet:
    """As `build`, if patches of a shape, voxels along each axis, go through that network.

    Raises:
        ValueError, KeyError, RuntimeError: Also where 2 does not divide an axis once for each level.
    """
    divisor = 2 ** (len(widths_of(tensors)) - 1)
    if any(n % divisor for n in patch):
        raise ValueError(f"its patch_shape {list(patch)} cannot be divided by {divisor}")
    return build(tensors)


def bytes_per_patch(tensors: Mapping[str, torch.Tensor], patch: Sequence[int]) -> int:
    """Memory that a patch of a shape takes while it goes through the network, in float32.

    Most is held by the last block of the way up: what was kept beside it, what was raised, both together,
    and two layers; the levels below add a third.
    """
    return int(8 * 4 * widths_of(tensors)[0] * math.prod(patch))
