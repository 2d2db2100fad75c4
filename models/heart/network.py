"""Whole-heart segmentation with nnU-Net at low resolution.

The network, its plans and its sliding window are nnU-Net's (nnunetv2); around them, a CT is brought to the
network's grid and only the heart's surroundings are brought back, which is most of the time that nnU-Net's
own pipeline spends:

1. clip and normalise as the plans say (`CTNormalization`),
2. resample to the plans' spacing as the plans say (linear or cubic spline, nearest across thick slices);
   being linear and separable, that is one matrix per axis,
3. sliding window with Gaussian weights; several folds are averaged,
4. the largest component of "heart wins" at low resolution,
5. the winning margin (heart logit minus the best other logit), interpolated linearly to the CT's grid
   around that component, is above zero.

nnU-Net itself interpolates all logits and takes the largest, which for two classes is step 5, except that
between thick slices it takes the nearest instead of interpolating; and it cuts zero-valued borders off, of
which a CT in HU has none.

Isensee et al., nnU-Net, Nature Methods 18 (2021), 203-211.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import WeightsError, WeightsUnsupported
from ...imaging import Volume
from ...imaging.masks import bounding_box
from ...imaging.orientation import to_canonical
from ...imaging.resampling import SLAB, interpolation_matrix, resample_to_shape
from ...weights import WeightSet, load_json, load_tensors, resolve
from .plans import class_count, configuration_of, intensities, thick_axis

log = logging.getLogger(__name__)

SIDES = (("feet", "head"), ("front", "back"), ("right", "left"))
"""Patient side at the low and at the high end of each canonical axis (z, y, x)."""

NETWORKS = tuple(
    f"dynamic_network_architectures.architectures.unet.{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet")
)
"""The networks that nnU-Net's planners choose. Plans come from outside: nothing else is looked up by name."""


@dataclass(frozen=True, kw_only=True)
class HeartPrediction:
    """Where the heart lies.

    Attributes:
        found: Whether any voxel is heart. There is no fall-back: not found means an empty mask.
        mask: bool (z, y, x) on the CT's grid, one connected component.
        centre_index: Centre of mass, fractional (z, y, x) index on the CT's grid; None if not found.
        centre_lps: The same point in LPS mm (x, y, z); None if not found.
        volume_ml: Volume of the mask, ml.
        touches_border: Patient sides (``"feet"``, ``"head"``, ``"front"``, ``"back"``, ``"right"``,
            ``"left"``) at which the mask reaches the first or last voxel of the CT: the heart is cut off.
        probability_range: Smallest and largest heart probability on the network's grid, in [0, 1].
        box: Smallest index box (start, stop) per axis (z, y, x) that holds the mask; empty if not found.
    """

    found: bool
    mask: npt.NDArray[np.bool_] = field(repr=False)
    centre_index: tuple[float, float, float] | None
    centre_lps: tuple[float, float, float] | None
    volume_ml: float
    touches_border: tuple[str, ...]
    probability_range: tuple[float, float]
    box: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """nnU-Net's CT normalisation: clip to [lower, upper] HU, subtract `mean`, divide by `sd` (all HU)."""

    lower: float
    upper: float
    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How a CT comes to the network's grid.

    Attributes:
        within: Kind of interpolation, see `interpolation_matrix`.
        across: Kind along the axis of thick slices, where there is one.
        separate: nnU-Net's ``force_separate_z``: treat one axis as that of thick slices; None: where a
            spacing is more than `threshold` times another.
        threshold: nnU-Net's ``separate_z_anisotropy_threshold``.
    """

    within: str = "linear"
    across: str = "nearest"
    separate: bool | None = False
    threshold: float = 3.0

    @classmethod
    def from_plan(cls, path: Path, plan: dict[str, Any]) -> Resampling:
        """What a configuration of ``plans.json`` asks for.

        Raises:
            WeightsUnsupported: A resampling that is none of nnU-Net's two usual ones.
        """
        name = plan["resampling_fn_data"]
        kwargs = dict(plan["resampling_fn_data_kwargs"])
        kinds = {0: "nearest", 1: "linear", 3: "cubic"}
        chosen: dict[str, Any] = {}
        if name == "resample_data_or_seg_to_shape":
            within, across = kinds.get(kwargs.get("order", 3)), kinds.get(kwargs.get("order_z", 0))
            separate = kwargs.get("force_separate_z", False)
        elif name == "resample_torch_fornnunet" and kwargs.get("mode", "linear") == "linear":
            within, across = "linear", "nearest"
            separate = kwargs.get("force_separate_z")
        else:
            within = across = None
        if within is None or across is None:
            raise WeightsUnsupported(f"{path} wants the resampling {name} {kwargs}, which is not known")
        if "separate_z_anisotropy_threshold" in kwargs:
            chosen["threshold"] = float(kwargs["separate_z_anisotropy_threshold"])
        return cls(within=within, across=across, separate=separate, **chosen)

    def kinds(self, old: Sequence[float], new: Sequence[float]) -> tuple[str, str, str]:
        """Kind per axis from spacing `old` to `new`, mm."""
        thick = thick_axis(self.separate, old, new, self.threshold)
        a, b, c = (self.across if i == thick else self.within for i in range(3))
        return a, b, c


class HeartModel:
    """A loaded heart network.

    Make it with `HeartModel.load`; `predict` may be called any number of times.
    """

    def __init__(
        self,
        *,
        networks: Sequence[torch.nn.Module],
        classes: int,
        patch: tuple[int, int, int],
        spacing: tuple[float, float, float],
        transpose: tuple[int, int, int],
        normalisation: Normalisation,
        heart_labels: tuple[int, ...],
        resampling: Resampling,
        mirror_axes: tuple[int, ...],
        device: torch.device,
        weights: WeightSet | None = None,
    ) -> None:
        """Args:
        networks: One per fold: float32 (1, 1, *patch) to logits (1, classes, *patch).
        classes: Background, heart and what else there is.
        patch: Voxels, in the network's axes.
        spacing: mm, in the network's axes.
        transpose: nnU-Net's ``transpose_forward``: network axis k is canonical axis ``transpose[k]``.
        normalisation: Of the input.
        heart_labels: Classes that make up the heart.
        resampling: How the CT comes to the network's grid.
        mirror_axes: Network axes to mirror for test-time augmentation; empty for none.
        device: Where the networks lie.
        weights: The set they came from.
        """
        self.networks = list(networks)
        self.classes = classes
        self.patch = patch
        self.spacing = spacing
        self.transpose = transpose
        self.normalisation = normalisation
        self.heart_labels = heart_labels
        self.resampling = resampling
        self.mirror_axes = mirror_axes
        self.device = device
        self.weights = weights
        self.tile_step = 0.5

    @classmethod
    def load(
        cls,
        weights: WeightSet | str | Path,
        device: torch.device,
        *,
        mirror: bool = False,
        tile_step: float = 0.5,
    ) -> HeartModel:
        """Build the network from the set's plans and load its verified tensors.

        Args:
            weights: A set, or what `weights.resolve` takes.
            device: Where to run.
            mirror: Average over the mirrorings the network was trained with (up to 8 times slower).
            tile_step: Step of the sliding window as a share of the patch, in (0, 1]; nnU-Net's is 0.5.

        Raises:
            WeightsMissing, WeightsAltered: See `weights.resolve` and `weights.load_tensors`.
            WeightsUnsupported: The plans ask for something this loader does not do.
            WeightsError: Tensors and plans do not fit together.
        """
        found = weights if isinstance(weights, WeightSet) else resolve(weights, "heart")
        plans, dataset = load_json(found, "plans.json"), load_json(found, "dataset.json")
        configuration = str(found.metadata.get("configuration", "3d_fullres"))
        if configuration not in plans["configurations"]:
            raise WeightsError(f"{found.path} has no configuration {configuration!r} in its plans.json")
        plan = configuration_of(plans, configuration)
        _check_supported(found.path, plan)
        classes = class_count(plans, dataset)
        networks = [
            _build_network(plan, classes, load_tensors(found, file), found.path / file).to(device).eval()
            for file in sorted(found.files)
            if file.endswith(".safetensors")
        ]
        if not networks:
            raise WeightsError(f"{found.path} holds no fold_*.safetensors; convert or train the set again")
        intensity = intensities(plans)
        model = cls(
            networks=networks,
            classes=classes,
            patch=_three(plan["patch_size"], int),
            spacing=_three(plan["spacing"], float),
            transpose=_three(plans["transpose_forward"], int),
            normalisation=Normalisation(
                lower=float(intensity["percentile_00_5"]),
                upper=float(intensity["percentile_99_5"]),
                mean=float(intensity["mean"]),
                sd=max(float(intensity["std"]), 1e-8),
            ),
            heart_labels=tuple(int(i) for i in found.metadata["heart_labels"]),
            resampling=Resampling.from_plan(found.path, plan),
            mirror_axes=tuple(found.metadata.get("mirror_axes") or ()) if mirror else (),
            device=device,
            weights=found,
        )
        model.tile_step = tile_step
        return model

    def predict(self, volume: Volume) -> HeartPrediction:
        """Segment the heart of a CT in any orientation."""
        import cc3d

        margin = self.low_resolution_margin(volume)
        probability = torch.sigmoid(torch.stack([margin.min(), margin.max()])).tolist()
        box = _heart_box(margin)
        mask = np.zeros(volume.geometry.shape, dtype=np.bool_)
        if box is not None:
            part = fill_positive(margin, mask, box)
            if part.any():
                part[...] = cc3d.largest_k(part, k=1, connectivity=6)
        return _measured(volume, mask, (probability[0], probability[1]))

    def low_resolution_margin(self, volume: Volume) -> torch.Tensor:
        """Heart logit minus the best other logit on the network's grid.

        Returns:
            float32 on the CPU, axes as the CT's (z, y, x), about ``spacing`` mm wide voxels that fill the
            CT's box.
        """
        order = to_canonical(volume.hu, volume.geometry).order
        # Network axis k is axis axes[k] of the CT's array.
        axes = [order[canonical] for canonical in self.transpose]
        old = [volume.geometry.spacing[a] for a in axes]
        kinds = self.resampling.kinds(old, self.spacing)
        target = _three((self.spacing[axes.index(a)] for a in range(3)), float)
        shape = network_shape(volume.geometry.shape, volume.geometry.spacing, target)
        n = self.normalisation
        low = resample_to_shape(
            volume.hu,
            shape,
            clip=(n.lower, n.upper),
            kinds=_three((kinds[axes.index(a)] for a in range(3)), str),
            device=self.device,
        )
        low = (low - n.mean) / n.sd
        geometry = replace(volume.geometry, shape=shape)
        turned = to_canonical(low.cpu().numpy(), geometry)
        data = torch.from_numpy(np.ascontiguousarray(turned.array.transpose(self.transpose)))
        margin = heart_margin(self.logits(data), self.heart_labels).cpu().numpy()
        back = turned.undo(margin.transpose([int(i) for i in np.argsort(self.transpose)]))
        return torch.from_numpy(np.ascontiguousarray(back))

    @torch.inference_mode()
    def logits(self, data: torch.Tensor) -> torch.Tensor:
        """Logits of a normalised low-resolution image, by sliding window, averaged over folds.

        Equals nnU-Net's ``predict_sliding_window_return_logits`` but for its half-precision sums.

        Args:
            data: float32, axes of the network.

        Returns:
            float32 (classes, …) of the same size, on the model's device.
        """
        from nnunetv2.inference.sliding_window_prediction import (
            compute_gaussian,
            compute_steps_for_sliding_window,
        )

        lack = [max(0, p - n) for p, n in zip(self.patch, data.shape, strict=True)]
        below = [m // 2 for m in lack]
        pads = [(b, m - b) for b, m in zip(below, lack, strict=True)]
        padded = torch.nn.functional.pad(data, [v for pair in reversed(pads) for v in pair])
        steps = compute_steps_for_sliding_window(tuple(padded.shape), self.patch, self.tile_step)
        tiles = [
            tuple(slice(s, s + p) for s, p in zip(corner, self.patch, strict=True))
            for corner in itertools.product(*steps)
        ]
        padded = padded.to(self.device)
        if len(tiles) == 1:
            total = self._tile(padded[tiles[0]])
        else:
            weight = compute_gaussian(
                self.patch,
                sigma_scale=1 / 8,
                value_scaling_factor=10,
                dtype=torch.float32,
                device=self.device,
            )
            total = torch.zeros((self.classes, *padded.shape), device=self.device)
            weights = torch.zeros(padded.shape, device=self.device)
            for tile in tiles:
                total[(slice(None), *tile)] += self._tile(padded[tile]) * weight
                weights[tile] += weight
            total /= weights
        inner = tuple(slice(b, b + n) for b, n in zip(below, data.shape, strict=True))
        return total[(slice(None), *inner)]

    def _tile(self, patch: torch.Tensor) -> torch.Tensor:
        """Logits float32 (classes, *patch), averaged over folds and mirrorings."""
        total: torch.Tensor | float = 0.0
        flips: list[tuple[int, ...]] = [
            axes
            for n in range(len(self.mirror_axes) + 1)
            for axes in itertools.combinations(self.mirror_axes, n)
        ]
        # On a GPU nnU-Net runs in half precision (autocast), on a CPU in single.
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            for network, axes in itertools.product(self.networks, flips):
                dims = [a + 2 for a in axes]
                total = total + torch.flip(network(torch.flip(patch[None, None], dims)), dims)[0].float()
        return torch.as_tensor(total) / (len(self.networks) * len(flips))


def heart_margin(logits: torch.Tensor, labels: Sequence[int]) -> torch.Tensor:
    """Best heart logit minus best other logit: (classes, …) to (…). Above zero where heart wins."""
    heart = logits[list(labels)].amax(0)
    other = logits[[i for i in range(len(logits)) if i not in labels]].amax(0)
    return heart - other


def network_shape(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], target: tuple[float, float, float]
) -> tuple[int, int, int]:
    """Voxels per axis after resampling to `target` mm, rounded as nnU-Net does, at least one.

    >>> network_shape((140, 512, 512), (2.5, 0.7, 0.7), (6.0, 6.0, 6.0))
    (58, 60, 60)
    """
    z, y, x = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, target, strict=True))
    return z, y, x


def fill_positive(
    margin: torch.Tensor, mask: npt.NDArray[np.bool_], box: tuple[tuple[int, int], ...]
) -> npt.NDArray[np.bool_]:
    """Set `mask` where the linearly interpolated `margin` is above zero, within a box.

    Args:
        margin: float32 (z, y, x) at low resolution.
        mask: bool (z, y, x), all false, on the grid that fills the same box of the patient; changed.
        box: (start, stop) per axis in indices of `margin`.

    Returns:
        The part of `mask` that was written, a view.
    """
    rows, matrices = [], []
    for (start, stop), low, full in zip(box, margin.shape, mask.shape, strict=True):
        # All full-resolution voxels between the centres just outside the box, or up to the border.
        first = 0 if start == 0 else int(np.floor((start - 0.5) * full / low))
        last = full if stop == low else int(np.ceil((stop + 0.5) * full / low))
        inside = slice(max(0, first), min(full, last))
        rows.append(inside)
        matrices.append(torch.from_numpy(interpolation_matrix(low, full, rows=inside)))
    columns = [
        slice(max(0, start - 1), min(low, stop + 1))
        for (start, stop), low in zip(box, margin.shape, strict=True)
    ]
    wz, wy, wx = (m[:, c] for m, c in zip(matrices, columns, strict=True))
    part = margin[tuple(columns)]
    tall = (wz @ part.flatten(1)).reshape(-1, *part.shape[1:])
    target = mask[tuple(rows)]
    for start in range(0, len(tall), SLAB):
        target[start : start + SLAB] = ((wy @ tall[start : start + SLAB]) @ wx.T > 0).numpy()
    return target


def _heart_box(margin: torch.Tensor) -> tuple[tuple[int, int], ...] | None:
    """Keep only the largest positive component of `margin` (changed in place) and return its box.

    Components are joined by faces.
    """
    import cc3d

    labels = cc3d.connected_components((margin > 0).numpy(), connectivity=6)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    if len(sizes) < 2:
        return None
    largest = labels == sizes.argmax()
    # Other components become background as sure as they were heart.
    margin[torch.from_numpy((labels > 0) & ~largest)] *= -1
    box = []
    for axis in range(3):
        hit = np.flatnonzero(largest.any(axis=tuple(a for a in range(3) if a != axis)))
        box.append((int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _measured(
    volume: Volume, mask: npt.NDArray[np.bool_], probability_range: tuple[float, float]
) -> HeartPrediction:
    """Centre, volume, box and border contact of a mask."""
    counts = _projections(mask)
    total = int(counts[0].sum())
    if not total:
        return HeartPrediction(
            found=False,
            mask=mask,
            centre_index=None,
            centre_lps=None,
            volume_ml=0.0,
            touches_border=(),
            probability_range=probability_range,
            box=(),
        )
    z, y, x = (float((c * np.arange(len(c))).sum() / total) for c in counts)
    lps = volume.geometry.to_lps((z, y, x))
    turned = to_canonical(mask, volume.geometry)
    touches = tuple(
        side
        for axis in range(3)
        for side, index in zip(SIDES[axis], (0, -1), strict=True)
        if turned.array.take(index, axis=axis).any()
    )
    return HeartPrediction(
        found=True,
        mask=mask,
        centre_index=(z, y, x),
        centre_lps=(float(lps[0]), float(lps[1]), float(lps[2])),
        volume_ml=total * volume.geometry.voxel_volume / 1000.0,
        touches_border=touches,
        probability_range=probability_range,
        box=tuple((int(h[0]), int(h[-1]) + 1) for h in (np.flatnonzero(c) for c in counts)),
    )


def _projections(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.int64]]:
    """Number of set voxels per index of each axis."""
    counts = [np.zeros(n, dtype=np.int64) for n in mask.shape]
    if mask.any():
        box = bounding_box(mask)
        part = mask[box]
        for axis, (count, inside) in enumerate(zip(counts, box, strict=True)):
            count[inside] = part.sum(axis=tuple(a for a in range(3) if a != axis))
    return counts


def _check_supported(path: Path, plan: dict[str, Any]) -> None:
    """Refuse plans that would need code or steps other than nnU-Net's plain ones."""
    if len(plan["patch_size"]) != 3:
        raise WeightsUnsupported(f"{path} holds a 2D network; give a 3D configuration")
    if plan.get("previous_stage") is not None:
        raise WeightsUnsupported(f"{path} holds the second stage of a cascade; give its 3d_lowres stage")
    if list(plan["normalization_schemes"]) != ["CTNormalization"]:
        raise WeightsUnsupported(
            f"{path} was not trained on CT alone: {', '.join(plan['normalization_schemes'])}"
        )
    if any(plan["use_mask_for_norm"]):
        raise WeightsUnsupported(f"{path} normalises within a mask, which is not done for CT")
    network = plan["architecture"]
    named = (network["arch_kwargs"][k] for k in network["_kw_requires_import"])
    if network["network_class_name"] not in NETWORKS:
        raise WeightsUnsupported(
            f"{path} names the network {network['network_class_name']}, which is not nnU-Net's own"
        )
    for name in named:
        if name is not None and not str(name).startswith("torch.nn."):
            raise WeightsUnsupported(f"{path} names the layer {name}, which is not torch's own")


def _build_network(
    plan: dict[str, Any], classes: int, tensors: dict[str, torch.Tensor], path: Path
) -> torch.nn.Module:
    """The plans' network with these tensors; every one of its parameters must be there, and no other."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network: torch.nn.Module = get_network_from_plans(
        plan["architecture"]["network_class_name"],
        plan["architecture"]["arch_kwargs"],
        plan["architecture"]["_kw_requires_import"],
        1,
        classes,
        allow_init=False,
        deep_supervision=False,
    )
    if odd := fill(network, tensors):
        raise WeightsError(f"{path.name} does not fit plans.json: {odd}; convert the set again")
    return network


def fill(network: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> str:
    """Give a network its tensors; all of its parameters must be there, and no other.

    Returns:
        The name of one that does not fit, and nothing is changed; "" where all do.
    """
    own = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    odd = sorted(set(own) ^ set(tensors)) or [k for k, v in tensors.items() if own[k].shape != v.shape]
    if not odd:
        network.load_state_dict(tensors, strict=False)
    return odd[0] if odd else ""


def _three(values: Any, kind: type[Any]) -> tuple[Any, Any, Any]:
    a, b, c = (kind(v) for v in values)
    return a, b, c
