"""Exclusion of scans without coronary calcium: three 2D U-Nets whose answers are intersected.

The published method, step by step, as public functions: a crop around the heart (`chest_wall_crop`, by image
processing alone, or around a heart mask), `screening_grid`, the slice with its ≥ 130 HU map as two channels
(`two_channels`), one network for each of the three orientations, the product of the three probabilities, and
`without_single_slices`. A scan is positive if anything remains. `ScreeningModel` strings them together.

What the method says of cardiac CT and what this file does on chest CT differs in one thing: slices of chest
CT have any thickness, so all scans are brought to the voxels of the calcium crop first.
Arrays are (z, y, x).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ...imaging import Geometry, Volume
from ...imaging.crop import CANDIDATE_HU, CROP_SHAPE, CROP_SPACING, WINDOW_HU
from ...imaging.masks import bounding_box
from ...imaging.orientation import ORIENTATIONS, to_canonical
from ...imaging.resampling import centred_grid, resample, support

if TYPE_CHECKING:
    from ...weights import WeightSet

BoolArray = npt.NDArray[np.bool_]

SPACING = CROP_SPACING
"""Voxel size of the model grid, mm (z, y, x): that of the calcium crop. The published method kept the voxels
of its cardiac CT."""
PLANE = 320
"""Rows and columns of the crop; the published method: 320 × 320."""
DEPTH = CROP_SHAPE[0]
"""Slices of the crop. The published method pads them to 120; here as much is padded as the networks see."""
SEEN = 32
"""Voxels beyond a voxel that its probability may depend on: `SliceUNet` of three levels sees up to 30."""
BODY_HU = -300.0
"""HU above which a voxel belongs to the body in `chest_wall_crop`: between lung (−850) and fat (−100). Our
own choice; the published method does not name its threshold."""
LEAST = 0.01
"""Probability (cube root of the product) below which nothing is ever called calcium. Our own choice."""
MIN_OBJECT = 150
"""Voxels; the published method: larger objects are chest wall or heart, smaller ones are removed."""


def chest_wall_crop(volume: Volume) -> tuple[float, float, float] | None:
    """The heart's centre found by image processing alone, LPS mm (x, y, z); None: nothing was found.

    Each slice is thresholded; along each of its columns (front to back) the body is a few objects: where
    there are three or more, the outer two are chest wall, where there are two, these are. What is left
    lies between the walls; its largest object of more than 150 voxels is the heart, and that object's
    centre of gravity the centre of the crop.
    """
    import cc3d

    turned = to_canonical(volume.hu, volume.geometry)
    step = [max(1, round(2.0 / s)) for s in turned.geometry.spacing]
    hu = turned.array[:: step[0], :: step[1], :: step[2]]
    body = hu > BODY_HU
    body &= ~_behind(np.asarray(cc3d.connected_components(body, connectivity=6)))
    # Objects of a column: runs of body along y, numbered from the front.
    starts = body.copy()
    starts[:, 1:] &= ~body[:, :-1]
    number = np.cumsum(starts, axis=1)
    runs = number[:, -1:, :]
    inner = body & (number > 1) & (number < runs)
    voxel = float(np.prod(step))
    labels = np.asarray(cc3d.connected_components(inner, connectivity=6))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    sizes[sizes * voxel <= MIN_OBJECT] = 0
    if not sizes.any():
        return None
    centre = np.argwhere(labels == int(sizes.argmax())).mean(axis=0) * step
    x, y, z = turned.geometry.to_lps(centre)
    return float(x), float(y), float(z)


def _behind(objects: npt.NDArray[Any]) -> BoolArray:
    """Objects (numbered from 1) behind the largest, such as the table: their middle is behind 95 % of it."""
    sizes = np.bincount(objects.ravel())
    sizes[0] = 0
    if not sizes.any():
        return np.zeros(objects.shape, dtype=bool)
    y = np.broadcast_to(np.arange(objects.shape[1])[None, :, None], objects.shape)
    middles = np.bincount(objects.ravel(), weights=y.ravel()) / np.maximum(sizes, 1)
    behind = middles > np.quantile(y[objects == int(sizes.argmax())], 0.95)
    behind[0] = False
    return np.asarray(behind[objects], dtype=bool)


def screening_grid(ct: Geometry, centre: tuple[float, float, float]) -> Geometry:
    """The crop's grid, parallel to the CT: 58 × 320 × 320 voxels of 2.5 × 0.7 × 0.7 mm (z, y, x)."""
    return centred_grid(ct, centre, SPACING, (DEPTH, PLANE, PLANE))


def two_channels(hu: torch.Tensor) -> torch.Tensor:
    """The input of the networks: HU, the calcium window onto [0, 1], and the binary map of ≥ 130 HU.

    Args:
        hu: float (..., rows, columns), HU.

    Returns:
        float32 (..., 2, rows, columns).
    """
    low, high = WINDOW_HU
    grey = ((hu - low) / (high - low)).clamp(0.0, 1.0)
    return torch.stack([grey, (hu >= CANDIDATE_HU).to(grey.dtype)], dim=-3)


def without_single_slices(mask: BoolArray) -> BoolArray:
    """The objects (26 neighbours) that more than one coronal and more than one sagittal slice shows.

    The published method also removes what a single axial slice shows. Here an axial slice has 2.5 mm and may
    hold a whole lesion, of a score up to 22 among simulated patients (docs/decisions/0011).
    """
    import cc3d

    labels = np.asarray(cc3d.connected_components(mask, connectivity=26))
    boxes = cc3d.statistics(labels)["bounding_boxes"]
    # no box where a label is missing: the background of a full mask
    keep = np.array([box is not None and all(s.stop - s.start > 1 for s in box[1:]) for box in boxes])
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)


class SliceUNet(torch.nn.Module):
    """The 2D U-Net of one orientation: fewer steps down than usual, dilated first and last layers.

    Args:
        channels: Of each level, from the top.
        dilated: Whether the first two and the last two layers are dilated (2); the published ablation.
        dropout: At the bottom; the published method: 0.5.
        norm: Batch normalisation after each convolution. The published method names none; without it and
            with few steps the networks do not get far.
    """

    def __init__(
        self,
        *,
        channels: tuple[int, ...] = (16, 32, 64),
        dilated: bool = True,
        dropout: float = 0.5,
        norm: bool = True,
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, dilation: int = 1) -> torch.nn.Sequential:
            layers: list[torch.nn.Module] = []
            for i in (inputs, outputs):
                layers.append(
                    torch.nn.Conv2d(i, outputs, 3, padding=dilation, dilation=dilation, bias=not norm)
                )
                if norm:
                    layers.append(torch.nn.BatchNorm2d(outputs))
                layers.append(torch.nn.ReLU(inplace=True))
            return torch.nn.Sequential(*layers)

        wide = 2 if dilated else 1
        levels = list(zip((2, *channels[:-1]), channels, strict=True))
        self.down = torch.nn.ModuleList(block(i, o, wide if k == 0 else 1) for k, (i, o) in enumerate(levels))
        self.pool = torch.nn.MaxPool2d(2)
        self.drop = torch.nn.Dropout(dropout)
        self.raise_ = torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        pairs = list(zip(channels[::-1][1:], channels[::-1][:-1], strict=True))
        self.up = torch.nn.ModuleList(
            block(below + here, here, wide if k == len(pairs) - 1 else 1)
            for k, (here, below) in enumerate(pairs)
        )
        self.head = torch.nn.Conv2d(channels[0], 1, 1)

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Logits (n, 1, rows, columns) of slices (n, 2, rows, columns); sides are multiples of 4."""
        kept = []
        for k, level in enumerate(self.down):
            slices = level(slices if k == 0 else self.pool(slices))
            kept.append(slices)
        slices = self.drop(kept.pop())
        for level in self.up:
            slices = level(torch.cat([self.raise_(slices), kept.pop()], dim=1))
        logits: torch.Tensor = self.head(slices)
        return logits


@dataclass(frozen=True, kw_only=True)
class ScreeningPrediction:
    """What the exclusion found.

    Attributes:
        mask: bool (z, y, x) on the CT's grid: what remains, of at least 130 HU.
        positive: Whether anything remains, on the model's grid.
        highest: Largest value of the product's cube root over the voxels of at least 130 HU, 0 to 1, single
            slices left out: the smallest threshold at which the scan is negative. None: less than was asked
            for.
        slices_run: Slices that were shown to each network, by orientation.
    """

    mask: BoolArray
    positive: bool
    highest: float | None
    slices_run: Mapping[str, int]


class ScreeningModel:
    """The three networks with their weights on a device."""

    def __init__(
        self,
        networks: Mapping[str, torch.nn.Module],
        *,
        device: torch.device,
        threshold: float = 0.5,
        least: float | None = None,
    ) -> None:
        """Networks ready to predict.

        Args:
            networks: One of each orientation.
            device: Where they run.
            threshold: Of the cube root of the product, from which on a voxel is called calcium.
            least: Value of the cube root below which nobody asks further; None: the threshold. `LEAST` tells
                also how far below the threshold a scan lies, and asks two networks about much more.
        """
        self.device = device
        self.threshold = threshold
        self.least = max(LEAST, threshold if least is None else min(least, threshold))
        layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format
        self.networks = {name: networks[name].to(device).eval() for name in ORIENTATIONS}
        for network in self.networks.values():
            network.to(memory_format=layout)  # type: ignore[call-overload]

    @classmethod
    def load(
        cls,
        weights: WeightSet,
        device: torch.device,
        *,
        threshold: float | None = None,
        least: float | None = None,
    ) -> ScreeningModel:
        """Load a verified set of weights.

        Args:
            threshold: Of the cube root of the product; None: the set's own operating point.
            least: Value of the cube root below which nobody asks further; None: the threshold.

        Raises:
            WeightsMissing, WeightsAltered: See `weights.load_tensors`.
            WeightsUnsupported: The tensors do not fit the architecture that the set describes, or the set
                was trained with another window.
        """
        from ...weights import as_described, load_tensors, require_window

        require_window(weights, WINDOW_HU)
        networks = {}
        with as_described(weights, "exclusion networks"):
            for name in ORIENTATIONS:
                network = SliceUNet(**_arguments(weights.metadata["architecture"]))
                network.load_state_dict(load_tensors(weights, f"{name}.safetensors"))
                networks[name] = network
            own = float(weights.metadata["threshold"])
        return cls(networks, device=device, threshold=own if threshold is None else threshold, least=least)

    @torch.inference_mode()
    def predict(
        self, volume: Volume, centre: tuple[float, float, float], *, region: BoolArray | None = None
    ) -> ScreeningPrediction:
        """Look for calcium in the crop around `centre`.

        Args:
            volume: The CT.
            centre: Of the heart, LPS mm (x, y, z).
            region: bool (z, y, x) on the CT's grid; nothing outside counts. None: the whole crop.
        """
        ct = to_canonical(volume.hu, volume.geometry)
        grid = screening_grid(ct.geometry, centre)
        bright = ct.array >= CANDIDATE_HU
        if region is not None:
            bright &= to_canonical(region, volume.geometry).array
        wanted = support(bright, ct.geometry, grid)
        hu = resample(ct.array, ct.geometry, grid, outside=-1024.0, device=self.device)
        root, run = joined_probability(self.networks, hu, wanted, least=self.least)
        mask = without_single_slices(root >= self.threshold)
        found = np.zeros(volume.hu.shape, dtype=bool)
        if mask.any():
            box = bounding_box(bright)
            back = resample(mask.astype(np.float32), grid, ct.geometry.part(box), outside=0.0).numpy()
            marked = np.zeros(bright.shape, dtype=bool)
            marked[box] = _marked(back, bright[box])
            found = np.ascontiguousarray(ct.undo(marked))
        highest = highest_threshold(root)
        known = highest > 0 or self.least == LEAST or not any(run.values())
        return ScreeningPrediction(
            mask=found,
            positive=bool(mask.any()),
            highest=highest if known else None,
            slices_run=run,
        )


def _marked(back: npt.NDArray[np.float32], bright: BoolArray) -> BoolArray:
    """Voxels of the CT that are called calcium.

    Args:
        back: What was found in the crop, brought back onto the CT: 0 to 1.
        bright: bool, voxels that may count.

    Returns:
        Those of at least 0.5; all of an object that has none, so that what made a scan positive is seen.
    """
    import cc3d

    sure = (back >= 0.5) & bright
    objects = cc3d.connected_components((back > 0) & bright, connectivity=26)
    with_sure = np.zeros(int(objects.max()) + 1, dtype=bool)
    with_sure[objects[sure]] = True
    with_sure[0] = True
    found: BoolArray = sure | ~with_sure[objects]
    return found


def joined_probability(
    networks: Mapping[str, torch.nn.Module], hu: torch.Tensor, wanted: BoolArray, *, least: float = LEAST
) -> tuple[npt.NDArray[np.float32], dict[str, int]]:
    """The cube root of the product of the three probabilities, 0 where it is not asked for.

    The networks are asked one after the other, each about the slices with a voxel whose product can still
    reach `least` (as a root), since further answers only make it smaller: what lies below is called 0 too. Of
    a slice they see the part that holds such voxels and `SEEN` around it: all that the answer depends on.

    Args:
        networks: One of each orientation, on the device of `hu`, in evaluation mode.
        hu: float32 (z, y, x), HU; at most 120 slices.
        wanted: bool (z, y, x).
        least: Root, above 0, below which nothing is told apart.

    Returns:
        float32 (z, y, x) in [0, 1], and how many slices each network was shown.
    """
    product = torch.from_numpy(wanted).to(hu.device, torch.float32)
    asked = least**3 * (1 - 1e-5)  # a root at the very least may come out a digit below it
    run = {}
    for axis, name in enumerate(ORIENTATIONS):
        left = product >= asked
        run[name] = 0
        slices = hu.movedim(axis, 0)
        answers = torch.zeros_like(product).movedim(axis, 0)
        for k, slice_ in enumerate(left.movedim(axis, 0).cpu().numpy()):
            if slice_.any():
                run[name] += 1
                answers[k] = _probability(networks[name], slices[k], bounding_box(slice_[None])[1:])
        product = product * answers.movedim(0, axis)
    root = product.pow(1 / 3)
    return torch.where(root >= least, root, 0.0).cpu().numpy(), run


@torch.inference_mode()
def _probability(network: torch.nn.Module, hu: torch.Tensor, box: tuple[slice, slice]) -> torch.Tensor:
    """Probability (rows, columns) of a slice of HU in a box, 0 elsewhere."""
    padded, inner = [], []
    for span in box:  # multiples of 4 from the slice's corner: the pooling falls as in the whole slice
        start = span.start // 4 * 4
        padded.append((start - SEEN, start + -(-(span.stop - start) // 4) * 4 + SEEN))
        inner.append(slice(SEEN + span.start - start, SEEN + span.stop - start))
    (top, bottom), (left, right) = padded
    rows, columns = hu.shape
    part = hu[max(top, 0) : bottom, max(left, 0) : right]
    beyond = (max(-left, 0), max(right - columns, 0), max(-top, 0), max(bottom - rows, 0))
    inputs = two_channels(torch.nn.functional.pad(part, beyond, value=WINDOW_HU[0]))[None]
    if hu.device.type == "cpu":
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    probability = torch.zeros_like(hu)
    probability[box] = torch.sigmoid(network(inputs))[0, 0][tuple(inner)]
    return probability


def highest_threshold(root: npt.NDArray[np.float32]) -> float:
    """The largest threshold at which something of more than one slice remains, 0 where nothing does."""
    if not root.any():
        return 0.0
    root = root[bounding_box(root > 0)]  # a small part of the crop; objects are the same in it
    if not without_single_slices(root > 0).any():
        return 0.0
    low, high = float(root[root > 0].min()), float(root.max())
    for _ in range(10):  # a thousandth is fine enough
        middle = (low + high) / 2
        if without_single_slices(root >= middle).any():
            low = middle
        else:
            high = middle
    return low


def _arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    return {**architecture, "channels": tuple(architecture["channels"])}
