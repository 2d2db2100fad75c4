"""Slices drawn from the cached crops, for the networks that look at one slice at a time.

As with patches (`training.patches`), a batch is a function of the seed and the step's number alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..errors import TrainingError
from ..imaging import Geometry, Volume
from ..imaging.masks import bounding_box
from ..models.crop import CROP_SHAPE, CROP_SPACING
from ..models.rule_out.network import two_channels
from ..models.slice_regression.network import (
    INCREMENT_MM,
    THICKNESS_MM,
    slice_weights,
    thick_slices,
    to_plane,
)
from ..scoring import score
from .patches import CALCIUM, OTHER, CropCache


@dataclass(frozen=True, kw_only=True)
class SliceLook:
    """How a slice is changed before it is shown.

    Attributes:
        noise_hu: Largest standard deviation of white noise, HU.
        offset_hu: Standard deviation of what is added to the whole slice, HU.
        zoom: Largest relative change of its size; 0: none.
    """

    noise_hu: float = 0.0
    offset_hu: float = 0.0
    zoom: float = 0.0

    def __call__(self, hu: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """The slice, HU, with noise and offset."""
        if self.noise_hu:
            noise = rng.standard_normal(hu.shape, dtype=np.float32)
            hu = hu + noise * np.float32(rng.uniform(0.0, self.noise_hu))
        if self.offset_hu:
            hu = hu + np.float32(rng.normal(0.0, self.offset_hu))
        return hu


class CalciumSlices:
    """Batches of slices of one orientation, with calcium in them, for the exclusion's networks.

    Args:
        cache: Crops and their labels.
        crops: Those to draw from.
        axis: 0 axial, 1 coronal, 2 sagittal.
        window: Side of the square part of a slice that is shown, around one of its calcium voxels or
            anywhere in it, in turn; multiples of 4. Slices that are smaller are padded.
        batch_size: Slices of a batch.
        look: How they are changed.
        seed: Of everything.
        other_share: Share of the slices that have no coronary calcium but calcium or metal elsewhere, around
            which the window is laid then.

    Raises:
        TrainingError: No slice has calcium.
    """

    def __init__(
        self,
        cache: CropCache,
        crops: Sequence[int],
        *,
        axis: int,
        window: int,
        batch_size: int,
        look: SliceLook,
        seed: int,
        other_share: float = 0.0,
    ) -> None:
        self.cache, self.axis, self.window = cache, axis, window
        self.batch_size, self.look, self.seed = batch_size, look, seed
        self.slices: list[tuple[int, npt.NDArray[np.int64]]] = []
        self.others: list[tuple[int, npt.NDArray[np.int64]]] = []
        across = tuple(a for a in range(3) if a != axis)
        for crop in crops:
            label = np.asarray(cache.label[crop])
            calcium, other = ((label == kind).any(axis=across) for kind in (CALCIUM, OTHER))
            for slices, shown in ((self.slices, calcium), (self.others, other & ~calcium)):
                if shown.any():
                    slices.append((crop, np.flatnonzero(shown)))
        self.other_share = other_share if self.others else 0.0
        if not self.slices:
            raise TrainingError("no scan to train on has calcium; add some that have")

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step.

        Returns:
            float32 (n, 2, window, window), see `models.rule_out.network.two_channels`, and uint8 labels
            (n, 1, window, window), 1 = calcium.
        """
        rng = np.random.default_rng([self.seed, self.axis, step, 11])
        hu = np.empty((self.batch_size, self.window, self.window), dtype=np.float32)
        label = np.empty((self.batch_size, 1, self.window, self.window), dtype=np.uint8)
        for k in range(self.batch_size):
            kind = OTHER if rng.random() < self.other_share else CALCIUM
            pool = self.others if kind == OTHER else self.slices
            crop, found = pool[rng.integers(len(pool))]
            z = int(rng.choice(found))
            image = np.take(self.cache.hu[crop], z, axis=self.axis).astype(np.float32)
            labels = np.take(self.cache.label[crop], z, axis=self.axis)
            image = self.look(image, rng)
            voxels = np.argwhere(labels == kind)
            centre = voxels[rng.integers(len(voxels))] if kind == OTHER or k % 2 else None
            hu[k], label[k, 0] = _window(image, labels == CALCIUM, self.window, centre, rng)
        return two_channels(torch.from_numpy(hu)), torch.from_numpy(label)


def _window(
    image: npt.NDArray[np.float32],
    truth: npt.NDArray[np.bool_],
    side: int,
    centre: npt.NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """A square part of a slice; what lies beyond a smaller slice is as low as the window goes."""
    corner = []
    for a, n in enumerate(image.shape):
        if n <= side:
            corner.append(-((side - n) // 2))
        elif centre is None:
            corner.append(int(rng.integers(n - side + 1)))
        else:
            corner.append(int(np.clip(centre[a] - rng.integers(side), 0, n - side)))
    hu = np.full((side, side), -1024.0, dtype=np.float32)
    label = np.zeros((side, side), dtype=bool)
    inner = tuple(slice(max(c, 0), min(c + side, n)) for c, n in zip(corner, image.shape, strict=True))
    outer = tuple(slice(s.start - c, s.stop - c) for s, c in zip(inner, corner, strict=True))
    hu[outer], label[outer] = image[inner], truth[inner]
    return hu, label


class ScoredSlices:
    """Batches of slices of 3 mm with their scores, for direct scoring.

    Half of a batch's slices have calcium, and half of these are drawn as often as they score: the few slices
    that most of a large score comes from. Of the others one in three holds calcium or metal that is not
    coronary, where there is any. The box is the heart's, its sides moved by up to `jitter_mm`.

    Args:
        cache: Crops and their labels; what is near the heart in them reaches `margin_mm` beyond it.
        crops: Those to draw from.
        scores: Per crop of the cache, float32 (slices,), see `crop_scores`.
        batch_size: Slices of a batch.
        look: How they are changed; where their size is, their voxels are too, and the score stays.
        margin_mm, jitter_mm: See above.
        seed: Of everything.

    Raises:
        TrainingError: No slice has calcium.
    """

    def __init__(
        self,
        cache: CropCache,
        crops: Sequence[int],
        *,
        scores: Mapping[int, npt.NDArray[np.float32]],
        batch_size: int,
        look: SliceLook,
        margin_mm: float,
        jitter_mm: float,
        seed: int,
    ) -> None:
        self.cache, self.scores, self.batch_size = cache, scores, batch_size
        self.look, self.jitter_mm, self.seed = look, jitter_mm, seed
        self._boxes = {}
        pools: dict[str, list[tuple[int, int]]] = {"calcium": [], "other": [], "any": []}
        for crop in crops:
            label = np.asarray(cache.label[crop])
            box = heart_box(label, margin_mm)
            if box is None:
                continue
            self._boxes[crop] = box
            other = (label == OTHER).any(axis=(1, 2))
            for k in slices_in(box[0]):
                has_other = bool(other[_nearest(k)])
                kind = "calcium" if scores[crop][k] > 0 else "other" if has_other else "any"
                pools[kind].append((crop, k))
        if not pools["calcium"]:
            raise TrainingError("no scan to train on has calcium; add some that have")
        self._pools = {kind: np.array(pool) for kind, pool in pools.items() if pool}
        sums = np.cumsum([float(scores[crop][k]) for crop, k in pools["calcium"]])
        self._up_to = sums / sums[-1]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step.

        Returns:
            float32 (n, 1, 256, 256), see `slice_regression.network.to_plane`, and float32 (n, 4): the score
            and the voxel (z, y, x) in mm.
        """
        rng = np.random.default_rng([self.seed, step, 12])
        planes, targets = [], []
        for k in range(self.batch_size):
            kind = "calcium" if k % 2 == 0 else "other" if k % 6 == 1 else "any"
            pool = self._pools.get(kind, self._pools["calcium"])
            one = int(np.searchsorted(self._up_to, rng.random())) if k % 4 == 2 else rng.integers(len(pool))
            crop, number = (int(i) for i in pool[one])
            image = self.look(thick_slice(self.cache.hu[crop], number), rng)
            factor = 1 + rng.uniform(-1, 1) * self.look.zoom
            spans = []
            for axis in (1, 2):
                span, size, mm = self._boxes[crop][axis], CROP_SHAPE[axis], CROP_SPACING[axis]
                moved = np.rint(rng.uniform(-1, 1, 2) * self.jitter_mm / mm).astype(int)
                spans.append(slice(max(0, span.start + moved[0]), min(size, span.stop + moved[1])))
            part = torch.from_numpy(np.ascontiguousarray(image[spans[0], spans[1]]))[None, None]
            if self.look.zoom:
                part = torch.nn.functional.interpolate(
                    part, scale_factor=factor, mode="bilinear", align_corners=False
                )
            rows, columns = part.shape[2:]
            planes.append(to_plane(part[0], slice(0, rows), slice(0, columns)))
            pixel = CROP_SPACING[1] / factor
            targets.append([float(self.scores[crop][number]), INCREMENT_MM, pixel, pixel])
        return torch.cat(planes), torch.tensor(targets, dtype=torch.float32)

    def shown(
        self, crop: int, numbers: Sequence[int], box: tuple[slice, slice, slice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Slices of a crop as they are, cut to a box: (n, 1, 256, 256) and their voxels (n, 3), mm."""
        images = [torch.from_numpy(thick_slice(self.cache.hu[crop], k)) for k in numbers]
        voxel = torch.tensor([[INCREMENT_MM, *CROP_SPACING[1:]]]).expand(len(images), -1)
        return to_plane(torch.stack(images), box[1], box[2]), voxel


SLICES = int((CROP_SHAPE[0] - 1) * CROP_SPACING[0] / INCREMENT_MM) + 1
"""Slices of 3 mm every 1.5 mm that a crop gives; the first has its middle where the crop's first has it."""


def thick_slice(hu: npt.NDArray[np.int16], number: int) -> npt.NDArray[np.float32]:
    """One slice of `thick_slices` of a crop, HU."""
    first = max(0, int((number * INCREMENT_MM - THICKNESS_MM) / CROP_SPACING[0]))
    part = torch.from_numpy(np.array(hu[first : first + 5]))
    start = number * INCREMENT_MM - first * CROP_SPACING[0]
    return thick_slices(part, slice_weights(len(part), CROP_SPACING[0], 1, start))[0].numpy()


def crop_scores(hu: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What each slice of `thick_slices` of a crop adds to its Agatston score, rule ``agatston``.

    The crop is scored as it is and what each of its slices scores is shared out to those that show it: on
    slices of 3 mm small lesions would sink below 130 HU, and the score of the CT is what is wanted.

    Args:
        hu, label: The crop.

    Returns:
        float32 (slices,); their sum is the crop's score.
    """
    own = np.zeros(len(hu), dtype=np.float32)
    calcium = label == CALCIUM
    if calcium.any():
        geometry = Geometry(shape=hu.shape, spacing=CROP_SPACING, origin=(0.0, 0.0, 0.0))
        for lesion in score(Volume(hu=np.asarray(hu), geometry=geometry), calcium).lesions:
            for part in lesion.parts:
                own[part.slice_index] += part.score
    weights = slice_weights(len(hu), CROP_SPACING[0], SLICES, 0.0).numpy()
    shares: npt.NDArray[np.float32] = weights / weights.sum(axis=0)
    return shares @ own


def heart_box(label: npt.NDArray[np.uint8], margin_mm: float) -> tuple[slice, slice, slice] | None:
    """The heart's bounding box in a crop whose label reaches `margin_mm` beyond it; None: no heart."""
    if not label.any():
        return None
    spans = []
    for span, mm in zip(bounding_box(label > 0), CROP_SPACING, strict=True):
        margin = round(margin_mm / mm)
        middle = (span.start + span.stop) // 2
        spans.append(slice(min(span.start + margin, middle), max(span.stop - margin, middle + 1)))
    return spans[0], spans[1], spans[2]


def slices_in(span: slice) -> range:
    """Numbers of the slices of `thick_slices` whose middle lies in a span of the crop's slices."""
    step = CROP_SPACING[0] / INCREMENT_MM
    return range(round(span.start * step), min(SLICES, round((span.stop - 1) * step) + 1))


def _nearest(number: int) -> int:
    """The crop's slice nearest to a slice of `thick_slices`."""
    return min(CROP_SHAPE[0] - 1, round(number * INCREMENT_MM / CROP_SPACING[0]))
