"""Coronary calcium: the patch 3D U-Net of the DeepCAC2 paper, step by step.

The steps of the paper's method, in order, are `imaging.crop.crop_grid` and public functions of this file:
`crop_grid` → `to_crop` → `window` → `z_normalise` → `rescale` → patches of 64 × 64 × 16 with steps of
32 × 32 × 8 → U-Net → average of overlapping predictions → `to_ct` → threshold 0.5. `CalciumModel`
strings them together.

Sizes are given here in array order (z, y, x); the paper writes them as x × y × z.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from ...imaging import Geometry, Volume
from ...imaging.crop import CANDIDATE_HU, WINDOW_HU, Patches, crop_grid
from ...imaging.heart_position import Place, heart_box, heart_depth
from ...imaging.labels import SURENESS, Labels
from ...imaging.masks import bounding_box, true_indices
from ...imaging.orientation import to_canonical
from ...imaging.resampling import Box, reached, resample, sample, support
from ...imaging.tiling import Corner, PatchAverage, around, corners_touching, majority, patch_corners
from ..patchwise import PatchModel, batch_that_fits
from ..unet3d import PublishedUNet, build_for, bytes_per_patch, fold_norms, turned
from . import unet
from .kinds import name_pieces

if TYPE_CHECKING:
    from ...weights import WeightSet

THRESHOLD = 0.5
"""Probability from which a voxel is calcium; DeepCAC2 paper."""
_ROUNDING = 1e-4
"""How much nearer to the threshold than the bound says an average may be, for want of digits."""

Shape = tuple[int, int, int]
Window = tuple[float, float]


def to_crop(hu: npt.NDArray[np.int16], ct: Geometry, grid: Geometry, *, device: torch.device) -> torch.Tensor:
    """CT values on the crop's grid (trilinear); DeepCAC2 paper, resampling and cropping.

    Only what the crop needs is resampled. Voxels outside the CT get −1024 HU (air), as a padded CT has.

    Args:
        hu: int16 (z, y, x) on `ct`, HU.
        ct: The CT's grid.
        grid: The crop's grid, parallel to it.

    Returns:
        float32 of shape ``grid.shape``, HU.
    """
    return resample(hu, ct, grid, outside=-1024.0, device=device)


def window(hu: torch.Tensor, window_hu: Window = WINDOW_HU) -> torch.Tensor:
    """Clip to a window, HU; DeepCAC2 paper: [−135, 500]."""
    return hu.clamp(*window_hu)


def z_normalise(values: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """Subtract the crop's mean and divide by its standard deviation; DeepCAC2 paper.

    Returns:
        Normalised values, mean, standard deviation (1 for a constant crop).
    """
    sd, mean = torch.std_mean(values, correction=0)
    scale = float(sd) or 1.0
    return (values - mean).div_(scale), float(mean), scale


def rescale(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Map [`low`, `high`] linearly onto [0, 1]; DeepCAC2 paper, after z-normalisation."""
    return (values - low).div_(high - low) if high > low else torch.zeros_like(values)


def normalise(hu: torch.Tensor, *, rescale_to: str = "window", window_hu: Window = WINDOW_HU) -> torch.Tensor:
    """`window`, `z_normalise` and `rescale` in the paper's order.

    A linear rescaling undoes the shift and scale of the z-normalisation, so what matters is which two
    values become 0 and 1. ``"window"`` takes the window's bounds: the same HU is the same input in every
    scan. ``"crop"`` takes the smallest and largest value of the crop, which is the same thing as soon as
    the crop holds lung and dense bone, and differs (brighter calcium) when nothing in it reaches 500 HU.

    Args:
        hu: HU values of the crop, any shape.
        rescale_to: ``"window"`` or ``"crop"``; weights say which one they were trained with.
        window_hu: Lowest and highest HU of the window, which weights say, too.

    Returns:
        float32, same shape, in [0, 1].
    """
    normalised, mean, sd = z_normalise(window(hu, window_hu))
    if rescale_to == "crop":
        low, high = float(normalised.min()), float(normalised.max())
    else:
        low, high = (window_hu[0] - mean) / sd, (window_hu[1] - mean) / sd
    return rescale(normalised, low, high).clamp_(0.0, 1.0)


def to_ct(probability: torch.Tensor, grid: Geometry, ct: Geometry) -> npt.NDArray[np.float32]:
    """Probability of the crop brought back onto the CT's own grid (trilinear), 0 outside the crop.

    Args:
        probability: float32 on `grid`.

    Returns:
        float32 (z, y, x) of shape ``ct.shape``.
    """
    return resample(probability, grid, ct, outside=0.0).cpu().numpy()


def sure_lesions(
    mask: npt.NDArray[np.bool_],
    counted: npt.NDArray[np.bool_],
    probability: npt.NDArray[np.float32],
    peak: float,
) -> npt.NDArray[np.bool_]:
    """The mask without lesions of which the network is nowhere sure.

    A lesion is what touches over 26 neighbours among the mask's voxels that can count. Those that stay take
    along what touches them of the rest of the mask.

    Args:
        mask: bool (z, y, x).
        counted: bool, of that the voxels that a rule may count by their HU.
        probability: float32; only what it says of `counted` is looked at.
        peak: Probability that a lesion must reach.
    """
    import cc3d

    if not counted.any() or peak <= THRESHOLD:
        return mask
    box = bounding_box(mask)
    labels = np.asarray(cc3d.connected_components(counted[box], connectivity=26))
    sure = np.zeros(int(labels.max()) + 1, dtype=bool)
    sure[np.unique(labels[counted[box] & (probability[box] >= peak)])] = True
    sure[0] = False
    kept = sure[labels]
    rest = np.asarray(cc3d.connected_components(mask[box] & ~(counted[box] & ~kept), connectivity=26))
    touched = np.zeros(int(rest.max()) + 1, dtype=bool)
    touched[np.unique(rest[kept])] = True
    touched[0] = False
    result = np.zeros(mask.shape, dtype=bool)
    result[box] = touched[rest]
    return result


def sureness(probability: npt.NDArray[np.float32], where: npt.NDArray[np.bool_]) -> Labels:
    """How sure a network is, in the steps of `imaging.labels.SURENESS`, each the percentage that is reached.

    Args:
        probability: float32 (z, y, x), 0 to 1.
        where: bool, of what it is asked; elsewhere, and below the first step, nothing is said.
    """
    steps = np.array([0, *(label.value for label in SURENESS)], dtype=np.uint8)
    reached = np.searchsorted(steps[1:] / 100.0, probability[where], side="right")
    array = np.zeros(where.shape, dtype=np.uint8)
    array[where] = steps[reached]
    return Labels(array=array, classes=SURENESS)


@dataclass(frozen=True, kw_only=True)
class CalciumPrediction:
    """What the calcium model found.

    Attributes:
        mask: bool (z, y, x) on the CT's grid: probability ≥ 0.5, in lesions that are somewhere sure. Below
            the HU that `CalciumModel.predict` was given it may miss voxels of a dense run; from there on it
            is the dense run's.
        sure: How sure the network is of the voxels that can count by their HU and reach a probability of 0.5,
            also of those in lesions of which it is nowhere sure enough, see `sureness`.
        names: Of a network that names what it sees: the mask's arteries and what else is bright in the
            region, see `kinds.Named`; else empty.
        probability: float32 (z, y, x) on the CT's grid, or None when not asked for.
        patches_run: Patches that were sent through the network.
        patches_total: Patches of the crop.
    """

    mask: npt.NDArray[np.bool_]
    sure: Labels
    names: tuple[Labels, ...] = ()
    probability: npt.NDArray[np.float32] | None = None
    patches_run: int = 0
    patches_total: int = 0


def _whole(part: npt.NDArray[Any], ct: Geometry, box: Box) -> npt.NDArray[Any]:
    """A part of a turned CT on the CT's own grid, 0 elsewhere."""
    whole = np.zeros(ct.shape, dtype=part.dtype)
    # Memory that nothing is written to costs nothing.
    where = true_indices(part != 0)
    to_canonical(whole, ct).array[box][where] = part[where]
    return whole


def _within(outer: Box, inner: Box) -> Box:
    """A box of a box."""
    return tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))


def _all(shape: tuple[int, ...]) -> Box:
    """The box of all."""
    return tuple(slice(0, n) for n in shape)


def _box(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """The bounding box, one voxel of an empty mask."""
    return bounding_box(mask) if mask.any() else (slice(0, 1),) * 3


def build_network(architecture: dict[str, Any]) -> torch.nn.Module:
    """The 3D U-Net of a set of weights: MONAI's `UNet` with one input and one output channel.

    Args:
        architecture: Keyword arguments of `monai.networks.nets.UNet` (channels, strides,
            num_res_units, norm, act), or of `unet.UNet`.

    Returns:
        Network from (n, 1, 16, 64, 64) in [0, 1] to logits of the same shape; for further channels and
        answers see `unet.UNet`.
    """
    if unet.is_known(architecture):
        return unet.UNet(**architecture)
    from monai.networks.nets import UNet  # seconds, and rarely needed

    network: torch.nn.Module = UNet(spatial_dims=3, in_channels=1, out_channels=1, **architecture)
    return network


class CalciumModel(PatchModel):
    """Patch U-Net with its weights on a device; `predict` goes from a CT to a mask on the CT's grid."""

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        device: torch.device,
        rescale_to: str = "window",
        window_hu: Window = WINDOW_HU,
        batch_size: int = 8,
        patches: Patches | None = None,
        half: bool = False,
    ) -> None:
        """A network ready to predict.

        Args:
            network: From (n, 1, *patch_shape) in [0, 1] to logits of the same shape.
            device: Where it runs.
            rescale_to, window_hu: As in `normalise`.
            batch_size: Patches at once.
            patches: How a crop goes through it; None: as in the paper.
            half: In 16 bits on a GPU, see `PatchModel`.

        Raises:
            DeviceError: `half` on a CPU.
        """
        super().__init__(
            network, device=device, batch_size=batch_size, channels_last=device.type == "cpu", half=half
        )
        self.rescale_to = rescale_to
        self.window_hu = window_hu
        self.patches = patches or Patches()

    def _place(self, heart: npt.NDArray[np.bool_] | None, own: Geometry, grid: Geometry, part: Box) -> Place:
        """Where in the heart the voxels of a part of the crop lie.

        Args:
            heart: bool on the CT's grid `own`.
            grid: The whole crop's.
        """
        if heart is None:
            raise ValueError("this network is told where in the heart it looks: give the heart's mask")
        turned = to_canonical(heart, own)
        share = np.zeros(grid.shape, dtype=np.float32)
        # Away from the heart there is nothing of it.
        near = reached(bounding_box(turned.array), turned.geometry, grid) if heart.any() else None
        if near is not None:
            of = turned.array.view(np.uint8)
            share[near] = resample(of, turned.geometry, grid, outside=0.0, box=near).numpy()
        depth = heart_depth(share)
        corner = (part[0].start, part[1].start, part[2].start)
        return Place.of(depth[part], heart_box(depth), corner, self.device)

    @classmethod
    def load(cls, weights: WeightSet, device: torch.device, *, half: bool = False) -> CalciumModel:
        """Load a verified set of weights: of this project's own networks, or of the published one.

        The published one is used here with this method's crop and steps, and of its numbers with those that
        its ``weights.json`` states: window, rescaling to the crop's own extremes, crop, patches and step,
        limits of lesion and heart (`pipeline.operating`), and its domain. What is not: the CT is resampled
        with its fractions, padded with air and turned canonically; patches cover the crop to its border.

        Args:
            half: In 16 bits on a GPU, see `PatchModel`.

        Raises:
            DeviceError: `half` on a CPU.
            WeightsMissing, WeightsAltered: See `weights.load_tensors`.
            WeightsUnsupported: The tensors do not fit the architecture that the set describes.
            WeightsError: The window or the patches that it states are none.
        """
        from ...weights import as_described, load_tensors, numbers, stated_window
        from ...weights.deepcac2 import NAME as PUBLISHED

        description = weights.metadata
        tensors = load_tensors(weights, "model.safetensors")
        patches = numbers(weights, Patches)
        batch = 8 if device.type == "cpu" else 64
        with as_described(weights, "calcium network"):
            architecture = dict(description["architecture"])
            if architecture.get("name") == PUBLISHED:
                network: torch.nn.Module = build_for(patches.patch_shape, turned(tensors))
                batch = batch_that_fits(bytes_per_patch(tensors, patches.patch_shape), device)
            else:
                network = build_network(architecture)
                network.load_state_dict(tensors)
        rescale_to = description.get("normalisation", {}).get("rescale_to", "window")
        return cls(
            network,
            device=device,
            rescale_to=rescale_to,
            window_hu=stated_window(weights) or WINDOW_HU,
            batch_size=batch,
            patches=patches,
            half=half,
        )

    def folded(self) -> Self:
        """This model with a network that cannot be trained on, and is faster; see `unet.fold_norms`."""
        if isinstance(self.network, unet.UNet):
            unet.fold_norms(self.network)
        elif isinstance(self.network, PublishedUNet):
            fold_norms(self.network)
        return self

    def predict(
        self,
        volume: Volume,
        heart_centre: tuple[float, float, float],
        *,
        heart: npt.NDArray[np.bool_] | None = None,
        region: npt.NDArray[np.bool_] | None = None,
        peak: float = THRESHOLD,
        lowest_hu: int | None = CANDIDATE_HU,
        keep_probability: bool = False,
    ) -> CalciumPrediction:
        """Segment calcium in the crop around the heart.

        Patches are skipped when nothing they say can matter. A counted voxel of the CT has at least
        `lowest_hu` and reads, when the result is brought back, at most eight voxels of the crop; each of
        those averages the patches that cover it. So only patches that hold such a voxel are run, and of
        these at first just more than half over each voxel: where they leave the average below 0.5 whatever
        the others would say, the others are not asked. Every counted voxel gets the answer of a dense run.

        Args:
            volume: The CT.
            heart_centre: Middle of the heart's box, LPS (x, y, z), mm; see `imaging.masks.box_centre`.
            heart: bool (z, y, x) on the CT's grid, for networks that are told where in the heart they look.
            region: bool (z, y, x) on the CT's grid; calcium outside it is not looked for. None: the
                whole crop, as in the paper.
            peak: See `sure_lesions`.
            lowest_hu: HU from which voxels may be counted, as a rule's ``threshold``; None: any voxel may,
                and every patch of the crop is run.
            keep_probability: Return the probability too.

        Raises:
            ValueError: The network is told where in the heart it looks, and `heart` is not given.
        """
        # The network knows bodies one way round: head up, back down, as nnU-Net does the heart.
        ct = to_canonical(volume.hu, volume.geometry)
        wanted = None if region is None else to_canonical(region, volume.geometry).array
        crop = crop_grid(ct.geometry, heart_centre, self.patches.crop_shape)
        shape = self.patches.patch_shape
        corners = patch_corners(self.patches.crop_shape, shape, self.patches.patch_step)
        # What the region leaves of the CT is all that is looked at when the result is brought back.
        box = _all(ct.array.shape) if wanted is None or keep_probability else _box(wanted)
        part = ct.geometry.part(box)
        bright = np.ones(part.shape, dtype=bool) if lowest_hu is None else ct.array[box] >= lowest_hu
        candidates = bright if wanted is None else bright & wanted[box]
        # What may be named: of a rule that counts any voxel, too, no more than what is as bright as calcium.
        able = candidates if lowest_hu is not None else candidates & (ct.array[box] >= CANDIDATE_HU)
        needed = support(candidates, part, crop)
        names: tuple[Labels, ...] = ()
        mask = np.zeros(volume.hu.shape, dtype=bool)
        certainty = np.zeros(volume.hu.shape, dtype=np.uint8)
        probability = None
        run: list[Corner] = []
        touching = corners if lowest_hu is None else corners_touching(corners, shape, needed)
        if touching:
            # Nothing is made of the crop but what these patches see, unless its own extremes are asked for.
            seen = around(corners if self.rescale_to == "crop" else touching, shape, crop.shape)
            grid = crop.part(seen)
            hu = to_crop(ct.array, ct.geometry, grid, device=self.device)
            values = normalise(hu, rescale_to=self.rescale_to, window_hu=self.window_hu)
            placed = getattr(self.network, "placed", False)
            place = self._place(heart, volume.geometry, crop, seen) if placed else None
            kinds = getattr(self.network, "kinds", ())
            start = (seen[0].start, seen[1].start, seen[2].start)
            average = PatchAverage(values, corners, shape, self._probability, len(kinds), start, place)
            named = support(able, part, grid.halved()) if kinds else None
            every = lowest_hu is None or keep_probability
            run = touching if every else majority(corners, shape, needed)
            self._expect(len(run))
            # A network that can answer for parts of a patch is asked for no more than can matter.
            parts = isinstance(self.network, PublishedUNet) and lowest_hu is not None
            wanted_here = needed[seen] if parts else None
            average.add(run, batch_size=self.batch_size, wanted=wanted_here, named=named)
            if not every:
                index = true_indices(candidates)
                high = sample(average.high(), grid, part, index, outside=0.0).cpu().numpy()
                candidates = np.zeros(part.shape, dtype=bool)
                candidates[tuple(i[high >= THRESHOLD - _ROUNDING] for i in index)] = True
                needed = support(candidates, part, crop)
                rest = [c for c in corners_touching(corners, shape, needed) if c not in run]
                self._expect(len(rest), more=True)
                wanted_here = needed[seen] if parts else None
                average.add(rest, batch_size=self.batch_size, wanted=wanted_here, named=named)
                run = [*run, *rest]
            mean = average.low()
            # Between values below the threshold lie none above: only what reads some above is looked at.
            over = (mean >= THRESHOLD).cpu().numpy()
            near = reached(bounding_box(over), grid, part) if over.any() else None
            lesions = np.zeros(part.shape, dtype=bool)
            if near is not None:
                low = resample(mean, grid, part, outside=0.0, box=near).cpu().numpy()
                found = low >= THRESHOLD
                if wanted is not None:
                    found &= wanted[box][near]
                counted = found & bright[near]
                lesions[near] = sure_lesions(found, counted, low, peak)
                mask = _whole(lesions[near], volume.geometry, _within(box, near))
                certainty = _whole(sureness(low, counted).array, volume.geometry, _within(box, near))
            if average.kinds is not None:
                shares = average.kinds.cpu().numpy()
                pieces = name_pieces(shares, grid.halved(), part, found=lesions, bright=able)
                names = tuple(
                    replace(labels, array=_whole(labels.array, volume.geometry, box)) for labels in pieces
                )
            if keep_probability:
                probability = np.ascontiguousarray(ct.undo(to_ct(mean, grid, part)))
        if probability is None and keep_probability:
            probability = np.zeros(volume.hu.shape, dtype=np.float32)
        return CalciumPrediction(
            mask=mask,
            sure=Labels(array=certainty, classes=SURENESS),
            names=names,
            probability=probability,
            patches_run=len(run),
            patches_total=len(corners),
        )
