"""From a CT and its heart to the calcium, as the published implementation goes, quirk by quirk.

Nuernberg et al. 2026, arXiv:2603.24633, as implemented in github.com/MHubAI/models, pull request 111:
resample to 0.7 × 0.7 × 2.5 mm, crop around the heart, window, normalise, run the patches that hold heart,
average, threshold, back to the CT. Arrays run along (x, y, z) in here, as the CT is stored; nobody turns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ...imaging import Volume
from ...imaging.crop import CROP_SPACING, WINDOW_HU, Patches
from ...imaging.masks import bounding_box
from ...imaging.tiling import Corner, axis_starts, corners_touching, majority
from ..patchwise import PatchModel, batch_that_fits
from ..unet3d import PublishedUNet, build_for, bytes_per_patch, fold_norms
from .grids import Floats, Grid, Triple, crop_begin
from .sampling import Bools, Labels, sampler

if TYPE_CHECKING:
    from ...weights import WeightSet


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """What the published implementation does; each can be left out. The defaults are the published ones.

    Attributes:
        padding_hu: HU of what lies outside the CT: 0, that of water, where air would be about −1000.
        whole_hu: Resampled HU lose their fraction, towards 0, because the CT is kept as whole numbers.
        whole_voxel_crop: The crop begins at a voxel of the resampled CT, half a voxel early where the middles
            of crop and heart cannot meet.
        labels: How the heart is brought onto the network's grid, and the result back onto the CT:
            ``"nearest"`` neighbour; ``"linear"``: a heart where at least half is heart, and the mean
            probability brought back before the threshold.
        patches_by_heart: Only patches in which the heart has a voxel are run.
        last_patches: The last position along each axis is run, too; the published loop ends before it, so
            that voxels from 224 on in x and y, and from 56 on in z, are never predicted.
        at_threshold: A mean of exactly 0.5 is calcium.
    """

    padding_hu: float = 0.0
    whole_hu: bool = True
    whole_voxel_crop: bool = True
    labels: Labels = "nearest"
    patches_by_heart: bool = True
    last_patches: bool = False
    at_threshold: bool = False


THRESHOLD = 0.5
"""Mean probability above which a voxel is calcium."""
_ROUNDING = 1e-5
"""How far below the threshold the highest mean that a voxel may still get must lie for its last patches not
to be asked: the network's answers are good for 1e-6."""


@dataclass(frozen=True, kw_only=True)
class PublishedPrediction:
    """What the published network found.

    Attributes:
        mask: bool (z, y, x) on the CT's grid.
        patches_run: Patches that were sent through the network.
        patches_counted: Patches that the mean is over: those that were run, and those that could not move it
            across the threshold any more.
        patches_total: Patches of the crop.
    """

    mask: Bools
    patches_run: int
    patches_counted: int
    patches_total: int


class PublishedModel(PatchModel):
    """The published network on a device, with what is done around it."""

    def __init__(
        self,
        network: torch.nn.Module,
        *,
        device: torch.device,
        quirks: Quirks | None = None,
        window_hu: tuple[float, float] = WINDOW_HU,
        patches: Patches | None = None,
        batch_size: int = 2,
        half: bool = False,
    ) -> None:
        """A network ready to predict.

        Args:
            network: From (n, 1, x, y, z) in [0, 1] to logits of the same shape.
            device: Where it runs.
            quirks: None: as published.
            window_hu: Lowest and highest HU that it can tell apart.
            patches: Crop and patches; None: as published.
            batch_size: Patches at once.
            half: In 16 bits on a GPU, see `PatchModel`.

        Raises:
            DeviceError: `half` on a CPU.
        """
        super().__init__(network, device=device, batch_size=batch_size, half=half)
        self.quirks = quirks or Quirks()
        self.window_hu = window_hu
        sizes = patches or Patches()
        self.crop, self.patch, self.step = (
            _reversed(shape) for shape in (sizes.crop_shape, sizes.patch_shape, sizes.patch_step)
        )

    @classmethod
    def load(
        cls,
        weights: WeightSet,
        device: torch.device,
        quirks: Quirks | None = None,
        *,
        half: bool = False,
    ) -> PublishedModel:
        """Load a verified set of weights.

        Raises:
            DeviceError: `half` on a CPU.
            WeightsMissing, WeightsAltered: See `weights.load_tensors`.
            WeightsUnsupported: The tensors are not those of the published network.
            WeightsError: The window or the patches that it states are none.
        """
        from ...weights import as_described, load_tensors, numbers, stated_window

        tensors = load_tensors(weights, "model.safetensors")
        patches = numbers(weights, Patches)
        with as_described(weights, "published DeepCAC2 network"):
            network = build_for(patches.patch_shape, tensors)
            fold_norms(network)
        return cls(
            network,
            device=device,
            quirks=quirks,
            window_hu=stated_window(weights) or WINDOW_HU,
            patches=patches,
            batch_size=batch_that_fits(bytes_per_patch(tensors, patches.patch_shape), device),
            half=half,
        )

    def predict(self, volume: Volume, heart: Bools) -> PublishedPrediction:
        """Segment the calcium.

        Without a heart on the network's grid no patch is run, and nothing is found.

        Args:
            volume: The CT.
            heart: bool (z, y, x) on the CT's grid.
        """
        quirks = self.quirks
        ct = Grid.of(volume.geometry)
        between = sampler(ct, (CROP_SPACING[2], CROP_SPACING[1], CROP_SPACING[0]), self.crop, quirks.labels)
        corners = self._corners()
        box = between.heart_box(heart.T)
        if box is None:
            nothing = np.zeros(volume.hu.shape, dtype=bool)
            return PublishedPrediction(
                mask=nothing, patches_run=0, patches_counted=0, patches_total=len(corners)
            )
        begin = np.array(
            [
                crop_begin(b.start, b.stop, n) if quirks.whole_voxel_crop else (b.start + b.stop - n) / 2
                for b, n in zip(box, self.crop, strict=True)
            ],
            dtype=np.float64,
        )
        hu = between.hu(volume.hu.T, begin, outside=quirks.padding_hu, whole=quirks.whole_hu)
        counted = corners
        if quirks.patches_by_heart:
            counted = corners_touching(corners, self.patch, between.heart(heart.T, begin))
        mean, run = self._mean(self._normalised(hu), counted)
        mask = between.back(mean, begin, THRESHOLD, at_threshold=quirks.at_threshold)
        return PublishedPrediction(
            mask=np.ascontiguousarray(mask.T),
            patches_run=run,
            patches_counted=len(counted),
            patches_total=len(corners),
        )

    def _corners(self) -> list[Corner]:
        """Corners (x, y, z) of the patches of a crop."""
        starts = [
            axis_starts(n, p, s) if self.quirks.last_patches else list(range(0, n - p, s))
            for n, p, s in zip(self.crop, self.patch, self.step, strict=True)
        ]
        return [(x, y, z) for x in starts[0] for y in starts[1] for z in starts[2]]

    def _normalised(self, hu: npt.NDArray[np.float32]) -> torch.Tensor:
        """Windowed, z-normalised over the whole crop, and rescaled from its own extremes to [0, 1].

        A crop of one value alone becomes 0; the published implementation breaks off there.
        """
        values = torch.from_numpy(hu).to(self.device).clamp_(*self.window_hu)
        sd, mean = torch.std_mean(values)
        if sd == 0:
            return torch.zeros_like(values)
        values = (values - mean) / sd
        low, high = values.min(), values.max()
        return (values - low) / (high - low)

    def _mean(self, values: torch.Tensor, corners: list[Corner]) -> tuple[Floats, int]:
        """Mean probability of the patches that cover a voxel, 0 where none does: float64 (x, y, z).

        At first just more than half of the patches over each voxel are run. Where the mean stays below the
        threshold whatever the others would say, they are not asked: what is returned there is less than the
        mean, on the same side of the threshold. A mean that is to be read between voxels is always whole.

        Returns:
            The mean, and how many patches were run.
        """
        total = torch.zeros(values.shape, dtype=torch.float64, device=self.device)
        cover = torch.zeros(values.shape, dtype=torch.float64, device=self.device)
        for window in map(self._window, corners):
            cover[window] += 1
        missing = cover.clone()
        cover.clamp_(min=1)
        every = np.ones(values.shape, dtype=bool)
        taken = set(majority(corners, self.patch, every) if self.quirks.labels == "nearest" else corners)
        first, rest = ([c for c in corners if (c in taken) is which] for which in (True, False))
        self._expect(len(first))
        self._add(total, missing, values, first, every)
        open_still = ((total + missing) / cover > THRESHOLD - _ROUNDING) & (total / cover <= THRESHOLD)
        undecided = (open_still & (missing > 0)).cpu().numpy()
        rest = corners_touching(rest, self.patch, undecided)
        self._expect(len(rest), more=True)
        self._add(total, missing, values, rest, undecided)
        mean: Floats = (total / cover).cpu().numpy()
        return mean, len(first) + len(rest)

    @torch.inference_mode()
    def _add(
        self, total: torch.Tensor, missing: torch.Tensor, values: torch.Tensor, corners: list[Corner],
        wanted: Bools,
    ) -> None:  # fmt: skip
        """Run patches, and add what they say to the total, of each as far as it holds something wanted.

        Args:
            total, missing: float64 (x, y, z): what was said so far, and patches that say something yet.
            values: What the patches are taken from, of that shape.
            wanted: bool (x, y, z); every patch holds some.
        """
        in_parts = isinstance(self.network, PublishedUNet) and not wanted.all()
        size = self.batch_size  # which may shrink on the way
        for i in range(0, len(corners), size):
            windows = [self._window(corner) for corner in corners[i : i + size]]
            patches = torch.stack([values[window] for window in windows])[:, None]
            boxes = [bounding_box(wanted[window]) for window in windows]
            found = self._probability(patches, *([boxes] if in_parts else []))[:, 0]
            for window, box, probability in zip(windows, boxes, found, strict=True):
                total[window][box] += probability[box]
                missing[window][box] -= 1

    def _window(self, corner: Corner) -> tuple[slice, ...]:
        return tuple(slice(c, c + p) for c, p in zip(corner, self.patch, strict=True))


def _reversed(shape: Triple) -> Triple:
    return shape[2], shape[1], shape[0]
