"""Direct scoring: a box around the heart and a regression network that reads each slice's score.

The published method, step by step: three networks say of each axial, coronal and sagittal slice whether the
heart is in it (`HeartBoxModel`); `thick_slices` of 3.0 mm every 1.5 mm; each cut to the box and padded with
zeros to 256 × 256 (`to_plane`); `SliceRegressor` gives the slice's score; the sum over the slices is the
scan's. `DirectModel` strings them together and draws what was counted (`DirectModel.attention`).
Arrays are (z, y, x).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ...imaging import Geometry, Volume
from ...imaging.crop import CROP_SPACING, WINDOW_HU
from ...imaging.masks import bounding_box
from ...imaging.orientation import ORIENTATIONS, Canonical, to_canonical
from ...imaging.resampling import centred_grid, resample

if TYPE_CHECKING:
    from ...weights import WeightSet

BoolArray = npt.NDArray[np.bool_]
Box = tuple[slice, slice, slice]
"""Index ranges (z, y, x)."""

THICKNESS_MM, INCREMENT_MM = 3.0, 1.5
"""Of the slices that are scored; the published method."""
SPACING = CROP_SPACING
"""Voxel size, mm (z, y, x), that the slices are made from: that of the calcium crops, on which the network is
trained. The published method kept the CT's own pixels."""
PLANE = 256
"""Rows and columns of a slice that is scored; the published method: 256 × 256."""
BOX_SPACING_MM = 6.0
"""Voxel size, mm, at which the heart is looked for: fine enough for a box, and fast. Our own choice."""
BOX_WINDOW_HU = (-300.0, 300.0)
"""HU that the networks of the heart box see, onto [0, 1]: from lung to bone. Our own choice."""
BLOOD_HU = 40.0
"""HU of blood without contrast agent, for `DirectModel.attention`."""
LAYERS = 6
"""Convolutions of the regression network, each with a 2 × 2 max-pooling; the published method."""
GROUPS = (1.0, 10.0, 100.0, 400.0)
"""Limits of the published method's five risk groups: < 1, 1–10, 10–100, 100–400, ≥ 400."""


def direct_group(score: float) -> int:
    """The published method's risk group of a score, 0 to 4; a limit belongs to the upper group.

    Raises:
        ValueError: `score` is negative or not finite.

    Examples:
        >>> [direct_group(s) for s in (0, 0.9, 1, 10, 99.9, 100, 399, 400)]
        [0, 0, 1, 2, 2, 3, 3, 4]
    """
    if not math.isfinite(score) or score < 0:
        raise ValueError(f"an Agatston score is finite and not negative, not {score}")
    return sum(score >= limit for limit in GROUPS)


# The heart's box


class SlicePresence(torch.nn.Module):
    """Says of slices of one orientation whether the heart is in them.

    Args:
        channels: Of its convolutions; each but the last is followed by a 2 × 2 max-pooling.
    """

    def __init__(self, *, channels: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for k, (i, o) in enumerate(zip((1, *channels[:-1]), channels, strict=True)):
            layers += [
                torch.nn.Conv2d(i, o, 3, padding=1, bias=False),
                torch.nn.BatchNorm2d(o),
                torch.nn.ELU(),
            ]
            if k < len(channels) - 1:
                layers.append(torch.nn.MaxPool2d(2))
        self.features = torch.nn.Sequential(*layers)
        self.head = torch.nn.Linear(2 * channels[-1], 1)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Logits (n,) of slices (n, 1, rows, columns) in [0, 1]; at least 8 rows and columns."""
        features = self.features(slices).flatten(2)
        both = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1)
        logits: torch.Tensor = self.head(both)[:, 0]
        return logits


def box_grid(ct: Geometry) -> Geometry:
    """The grid of 6 mm on which the heart's box is looked for; it covers the CT and is parallel to it."""
    shape = tuple(max(8, round(n * s / BOX_SPACING_MM)) for n, s in zip(ct.shape, ct.spacing, strict=True))
    first = [(BOX_SPACING_MM / s - 1) / 2 for s in ct.spacing]
    origin = ct.to_lps(first)
    return Geometry(
        shape=(shape[0], shape[1], shape[2]),
        spacing=(BOX_SPACING_MM,) * 3,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        axes=ct.axes,
    )


def box_input(hu: torch.Tensor) -> torch.Tensor:
    """HU as the networks of the heart box see it: [−300, 300] HU onto [0, 1]."""
    low, high = BOX_WINDOW_HU
    values: torch.Tensor = ((hu - low) / (high - low)).clamp(0.0, 1.0)
    return values


def longest_run(present: npt.NDArray[np.bool_]) -> slice | None:
    """The longest run of true values; None: there is none.

    Examples:
        >>> longest_run(np.array([1, 0, 1, 1, 0], bool))
        slice(2, 4, None)
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
    if not len(edges):
        return None
    first, last = edges[::2], edges[1::2]
    k = int(np.argmax(last - first))
    return slice(int(first[k]), int(last[k]))


# Slices


def slice_weights(slices: int, spacing: float, count: int, first: float) -> torch.Tensor:
    """How much each slice of a CT is in each slice of 3.0 mm, of which there is one every 1.5 mm.

    A slice of the CT is taken to fill its increment, so that the result is exact for any increment: where
    the CT's slices are thicker than 3 mm, neighbours see the same one.

    Args:
        slices, spacing: The CT's, and their increment, mm.
        count: How many to make.
        first: Where the middle of the first lies, mm from the middle of the CT's slice 0.

    Returns:
        float32 (count, slices); rows add up to 1. Beyond the CT its outermost slice goes on.
    """
    weights = torch.zeros(count, slices)
    edges = torch.arange(slices + 1, dtype=torch.float64) * spacing - spacing / 2
    for k in range(count):
        low = first + k * INCREMENT_MM - THICKNESS_MM / 2
        high = low + THICKNESS_MM
        share = (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0.0)
        share[0] += max(0.0, min(high, float(edges[0])) - low)
        share[-1] += max(0.0, high - max(low, float(edges[-1])))
        weights[k] = (share / share.sum()).float()
    return weights


def thick_slices(hu: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Slices of 3.0 mm, each the mean of what lies in it.

    Args:
        hu: (z, y, x), any real type.
        weights: (count, z), see `slice_weights`.

    Returns:
        float32 (count, y, x).
    """
    used = torch.nonzero(weights.any(dim=0)).flatten()
    lower, upper = int(used[0]), int(used[-1]) + 1
    part = hu[lower:upper].float()
    made: torch.Tensor = torch.tensordot(weights[:, lower:upper].to(hu.device), part, dims=1)
    return made


def to_plane(slices: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
    """Slices cut to the heart's box, the calcium window onto [0, 1], zero-padded to 256 × 256.

    A box of more than 256 rows or columns loses as much on either side.

    Args:
        slices: float (n, y, x), HU.
        rows, columns: The box.

    Returns:
        float32 (n, 1, 256, 256).
    """
    low, high = WINDOW_HU
    cut = slices[:, _at_most(rows), _at_most(columns)]
    values = ((cut - low) / (high - low)).clamp(0.0, 1.0)
    top, left = (PLANE - values.shape[1]) // 2, (PLANE - values.shape[2]) // 2
    bottom, right = PLANE - values.shape[1] - top, PLANE - values.shape[2] - left
    return torch.nn.functional.pad(values, (left, right, top, bottom))[:, None]


def _at_most(span: slice) -> slice:
    too_many = max(0, span.stop - span.start - PLANE)
    return slice(span.start + too_many // 2, span.stop - (too_many - too_many // 2))


class SliceRegressor(torch.nn.Module):
    """The score of a slice: six convolutions with max-pooling, two fully connected layers, one output.

    Args:
        channels: Of the six convolutions.
        hidden: Outputs of the first fully connected layer.
        shared: Whether the convolutions after the first share one kernel, each with its own bias (then all
            have the same number of channels); a published variant.
        log_target: Whether the output is ln(score + 1); a published variant.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (16, 24, 32, 48, 64, 64),
        hidden: int = 64,
        shared: bool = False,
        log_target: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) != LAYERS:
            raise ValueError(f"the network has {LAYERS} convolutions, not {len(channels)}")
        if shared and len(set(channels)) > 1:
            raise ValueError("layers that share their weights have the same number of channels")
        self.shared = shared
        self.log_target = log_target
        pairs = list(zip((1, *channels[:-1]), channels, strict=True))
        self.kernels = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in (pairs[:2] if shared else pairs)
        )
        self.biases = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(o)) for o in channels)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(o) for o in channels)
        side = PLANE // 2**LAYERS
        self.first = torch.nn.Linear(channels[-1] * side * side + 3, hidden)
        self.second = torch.nn.Linear(hidden, 1)

    def forward(self, slices: torch.Tensor, voxel: torch.Tensor) -> torch.Tensor:
        """The output (n,) for slices (n, 1, 256, 256) with voxels (n, 3) of z, y, x mm."""
        for k in range(LAYERS):
            kernel = self.kernels[min(k, len(self.kernels) - 1)]
            slices = torch.nn.functional.max_pool2d(kernel(slices), 2) + self.biases[k][:, None, None]
            slices = torch.nn.functional.elu(self.norms[k](slices))
        features = torch.cat([slices.flatten(1), voxel], dim=1)
        output: torch.Tensor = self.second(torch.nn.functional.elu(self.first(features)))[:, 0]
        return output

    def score(self, slices: torch.Tensor, voxel: torch.Tensor, least: float = 0.0) -> torch.Tensor:
        """Score (n,) of the slices, 0 or at least `least` (above 0 always)."""
        output = self(slices, voxel)
        score: torch.Tensor = output.clamp(max=15.0).expm1() if self.log_target else output
        return torch.where(score >= least, score.clamp(min=0.0), 0.0)


@dataclass(frozen=True, kw_only=True)
class DirectPrediction:
    """What direct scoring found.

    Attributes:
        score: Sum over the slices.
        slice_scores: float32 (n,), of the slices of 3 mm, from the feet to the head.
        heights: float64 (n,), where their middles lie, mm above the middle of the CT's lowest slice.
        box: The heart's box on the CT in canonical orientation (`imaging.orientation`).
    """

    score: float
    slice_scores: npt.NDArray[np.float32]
    heights: npt.NDArray[np.float64]
    box: Box


class DirectModel:
    """The networks with their weights on a device."""

    def __init__(
        self,
        presence: Mapping[str, torch.nn.Module],
        regressor: SliceRegressor,
        *,
        device: torch.device,
        batch_size: int = 16,
        least_slice: float = 0.0,
        score_factor: float = 1.0,
    ) -> None:
        self.device = device
        self.least_slice = least_slice
        self.score_factor = score_factor
        self.batch_size = batch_size
        self.presence = {name: presence[name].to(device).eval() for name in ORIENTATIONS}
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.regressor = regressor.to(device).eval()
        self.regressor.to(memory_format=layout)  # type: ignore[call-overload]
        for network in (*self.presence.values(), self.regressor):
            network.requires_grad_(False)

    @classmethod
    def load(
        cls,
        weights: WeightSet,
        device: torch.device,
        *,
        least_slice: float = 0.0,
        score_factor: float = 1.0,
    ) -> DirectModel:
        """Load a verified set of weights.

        Args:
            least_slice: Score, as the network reads it, below which a slice has none.
            score_factor: What the network reads is multiplied by it: a network that is trained on the
                logarithm reads the middle of what a slice may have, which is less than its mean.

        Raises:
            WeightsMissing, WeightsAltered: See `weights.load_tensors`.
            WeightsUnsupported: The tensors do not fit the architecture that the set describes, or the set
                was trained with other windows.
        """
        from ...weights import as_described, load_tensors, require_window

        require_window(weights, WINDOW_HU)
        require_window(weights, BOX_WINDOW_HU, "box_window_hu")
        presence: dict[str, torch.nn.Module] = {}
        with as_described(weights, "direct scoring networks"):
            architecture = weights.metadata["architecture"]
            for name in ORIENTATIONS:
                presence[name] = SlicePresence(channels=tuple(architecture["presence"]["channels"]))
                presence[name].load_state_dict(load_tensors(weights, f"{name}.safetensors"))
            about = architecture["regressor"]
            regressor = SliceRegressor(**{**about, "channels": tuple(about["channels"])})
            regressor.load_state_dict(load_tensors(weights, "regressor.safetensors"))
        return cls(presence, regressor, device=device, least_slice=least_slice, score_factor=score_factor)

    @torch.inference_mode()
    def find_box(self, hu: npt.NDArray[np.int16], geometry: Geometry) -> Box | None:
        """The heart's box: of each orientation, the longest run of slices that show it.

        Args:
            hu: int16 (z, y, x), slices from the feet, rows from the front, columns from the right.
            geometry: Its grid.

        Returns:
            The box on `geometry`, or None: one orientation shows no heart.
        """
        grid = box_grid(geometry)
        values = box_input(resample(hu, geometry, grid, outside=-1024.0, device=self.device))
        spans = []
        for axis, name in enumerate(ORIENTATIONS):
            slices = values.movedim(axis, 0)[:, None].contiguous()
            run = longest_run((self.presence[name](slices) >= 0).cpu().numpy())
            if run is None:
                return None
            size, factor = geometry.shape[axis], BOX_SPACING_MM / geometry.spacing[axis]
            spans.append(slice(min(round(run.start * factor), size - 1), min(round(run.stop * factor), size)))
        return spans[0], spans[1], spans[2]

    def predict(self, volume: Volume, *, heart: BoolArray | None = None) -> DirectPrediction | None:
        """The score of a scan.

        Args:
            volume: The CT.
            heart: bool (z, y, x) on the CT's grid; its bounding box takes the place of the networks'.

        Returns:
            None: no heart was found.
        """
        ct = to_canonical(volume.hu, volume.geometry)
        if heart is None:
            box = self.find_box(ct.array, ct.geometry)
        else:
            box = bounding_box(to_canonical(heart, volume.geometry).array) if heart.any() else None
        if box is None:
            return None
        _, planes, _ = self._slices(ct, box)
        with torch.inference_mode():
            parts = torch.split(planes, self.batch_size)
            scores = torch.cat(
                [self.regressor.score(p, self._voxel(len(p)), self.least_slice) for p in parts]
            )
            scores *= self.score_factor
        middle = (box[0].start + box[0].stop - 1) / 2 * ct.geometry.spacing[0]
        heights = middle + (np.arange(len(planes)) - (len(planes) - 1) / 2) * INCREMENT_MM
        return DirectPrediction(
            score=float(scores.double().sum()), slice_scores=scores.cpu().numpy(), heights=heights, box=box
        )

    def attention(self, volume: Volume, prediction: DirectPrediction) -> npt.NDArray[np.float32]:
        """Where what was counted lies: the gradient of each slice's output times what it would lose as blood.

        What is positive of it is scaled so that each slice's attention adds up to its score. It shows what
        the network looked at, not a segmentation.

        Args:
            volume: The CT.
            prediction: What `predict` said of it.

        Returns:
            float32 (z, y, x) on the CT's grid, score a voxel.
        """
        ct = to_canonical(volume.hu, volume.geometry)
        grid, planes, weights = self._slices(ct, prediction.box)
        low, high = WINDOW_HU
        blood = (BLOOD_HU - low) / (high - low)
        rows, columns = (_at_most(slice(0, n)) for n in grid.shape[1:])
        height, width = rows.stop - rows.start, columns.stop - columns.start
        top, left = (PLANE - height) // 2, (PLANE - width) // 2
        whole = torch.zeros(grid.shape)
        shown = np.flatnonzero(prediction.slice_scores)
        for part in np.array_split(shown, max(1, -(-len(shown) // self.batch_size))):
            if not len(part):
                continue
            seen = planes[part].clone().requires_grad_(True)
            with torch.enable_grad():
                output = self.regressor(seen, self._voxel(len(part))).sum()
                (gradient,) = torch.autograd.grad(output, seen)
            excess = (gradient * (seen.detach() - blood)).clamp(min=0.0)[:, 0]
            excess = excess[:, top : top + height, left : left + width].cpu()
            total = excess.sum(dim=(1, 2), keepdim=True).clamp(min=1e-12)
            share = excess / total * torch.from_numpy(prediction.slice_scores[part])[:, None, None]
            whole[:, rows, columns] += torch.tensordot(weights[part].T, share, dims=1)
        back = resample(whole.numpy(), grid, ct.geometry, outside=0.0).numpy()
        back *= float(whole.sum()) / max(float(back.sum()), 1e-12)
        return np.ascontiguousarray(ct.undo(back))

    def _voxel(self, count: int) -> torch.Tensor:
        """The voxels of `count` slices, mm."""
        return torch.tensor([[INCREMENT_MM, *SPACING[1:]]], device=self.device).expand(count, -1)

    def _slices(self, ct: Canonical, box: Box) -> tuple[Geometry, torch.Tensor, torch.Tensor]:
        """The grid of a box, its planes (n, 1, 256, 256), and the weights (n, z) that made them of it."""
        spans = [(s.stop - s.start) * mm for s, mm in zip(box, ct.geometry.spacing, strict=True)]
        z, y, x = (max(1, math.ceil(span / mm)) for span, mm in zip(spans, SPACING, strict=True))
        middle = ct.geometry.to_lps([(s.start + s.stop - 1) / 2 for s in box])
        grid = centred_grid(
            ct.geometry, (float(middle[0]), float(middle[1]), float(middle[2])), SPACING, (z, y, x)
        )
        hu = resample(ct.array, ct.geometry, grid, outside=-1024.0, device=self.device)
        count = max(1, math.ceil(spans[0] / INCREMENT_MM))
        weights = slice_weights(z, SPACING[0], count, ((z - 1) * SPACING[0] - (count - 1) * INCREMENT_MM) / 2)
        planes = to_plane(thick_slices(hu, weights), slice(0, y), slice(0, x))
        return grid, planes, weights
