"""Batches of patches drawn from cached crops.

`GridBatches` goes through the paper's grid of patches epoch by epoch, as the paper does; `RandomBatches` cuts
patches anywhere. Both give half of a batch's patches with calcium and half without, and in both a batch is a
function of the seed and the step's number alone: who goes on at a step sees what an unbroken run would see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch

from ..errors import TrainingError
from ..imaging.crop import CANDIDATE_HU, CROP_SHAPE, PATCH_SHAPE, WINDOW_HU
from ..imaging.heart_position import CHANNELS
from ..imaging.tiling import Corner
from .crops import (
    BRIGHT,
    CALCIUM,
    GRID,
    NEAR,
    OTHER,
    UNSURE,
    CropCache,
    CropRecipe,
    coronary,
    elsewhere,
    window_of,
)
from .recipe import build
from .trainer import StepsRecipe


@dataclass(frozen=True, kw_only=True)
class NoiseRecipe:
    """How patches or slices are changed before they are shown, as another scan might have them.

    Attributes:
        noise_hu: Largest standard deviation of the white noise that is added, HU; 0: none.
        offset_hu: Standard deviation of what is added to the whole of it, HU; 0: nothing.
    """

    noise_hu: float = 0.0
    offset_hu: float = 0.0

    def noisy(self, hu: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """float32 HU of any shape, with noise and offset."""
        if self.noise_hu:
            noise = rng.standard_normal(hu.shape, dtype=np.float32)
            hu = hu + noise * np.float32(rng.uniform(0.0, self.noise_hu))
        if self.offset_hu:
            hu = hu + np.float32(rng.normal(0.0, self.offset_hu))
        return hu


@dataclass(frozen=True, kw_only=True)
class SliceRecipe(StepsRecipe, NoiseRecipe):
    """What every training on slices of crops is told.

    Attributes:
        crops: Keys of `CropRecipe` that say which crops: ``patients``, ``first_seed``, ``insertions``, ….
        validation_share: Share of the crops' patients that is held out.
    """

    crops: dict[str, Any] = field(default_factory=dict)
    validation_share: float = 0.1
    noise_hu: float = 15.0
    offset_hu: float = 8.0

    def of_crops(self) -> CropRecipe:
        """The recipe of the crops; an unknown key raises `WorkflowError`."""
        return build(self.crops, CropRecipe, where="crops")


PLACE_JITTER = (0.1, 0.06, 0.06, 0.06)
"""Standard deviation of a patch's shift in each channel of `heart_position.position`: 2 mm of depth, 3 % of
the heart's width; found hearts are not the true ones."""


def as_input(
    image: npt.NDArray[np.float32], window_hu: tuple[float, float] = WINDOW_HU
) -> npt.NDArray[np.float32]:
    """HU as a patch network sees them: the window onto [0, 1]."""
    low, high = window_hu
    return (image.clip(low, high) - np.float32(low)) / np.float32(high - low)


def without_fat(hu: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A patch in which fat is muscle here and there, as where an artery lies in none (docs/decisions/0016).

    Args:
        hu: float32 (z, y, x), HU; what lies between −250 and 20 is turned, with its own noise.
    """
    field = rng.standard_normal((1, 1, 4, 6, 6), dtype=np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(field), size=hu.shape, mode="trilinear")
    chosen = (fine[0, 0].numpy() > rng.uniform(-0.5, 0.5)) & (hu > -250) & (hu < 20)
    noise = np.clip(hu + np.float32(100.0), -60, 60) * np.float32(0.5)
    out: npt.NDArray[np.float32] = np.where(chosen, np.float32(rng.uniform(20, 50)) + noise, hu)
    return out


def painted_outside(
    hu: npt.NDArray[np.float32],
    depth: npt.NDArray[np.int8],
    calcium: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """A patch in which soft tissue outside the heart is bright in a blob, as contrast in the stomach is.

    Args:
        hu: float32 (z, y, x), HU.
        depth: See `heart_depth`; what lies at least 1 mm outside is painted.
        calcium: What stays.
    """
    field = rng.standard_normal((1, 1, 3, 4, 4), dtype=np.float32)
    fine = torch.nn.functional.interpolate(torch.from_numpy(field), size=hu.shape, mode="trilinear")[0, 0]
    chosen = (fine.numpy() > rng.uniform(0.3, 1.2)) & (depth < -5) & (hu > -60) & ~calcium
    soft = scipy.ndimage.gaussian_filter(chosen.astype(np.float32), (0.3, 0.8, 0.8))
    out: npt.NDArray[np.float32] = hu + soft * np.float32(rng.uniform(150, 1200))
    return np.where(calcium, hu, out)


Voxels = dict[int, npt.NDArray[np.uint8]]
"""Per crop that has any, voxels (n, 3), (z, y, x): they fit, the crop is 256 wide."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Voxels ≥ 130 HU where a network in training was wrong, see `training.mining`.

    Attributes:
        false: Taken for coronary calcium in or near the heart.
        missed: Coronary calcium not taken for it.
    """

    false: Voxels
    missed: Voxels


Place = tuple[int, Corner]
"""A patch: number of the crop in the cache, and its corner (z, y, x)."""


@dataclass(frozen=True, kw_only=True)
class PatchRecipe(NoiseRecipe):
    """How patches are drawn.

    Attributes:
        batch_size: Patches of a batch, half of them with calcium.
        near_share: Share of the patches without calcium that hold something ≥ 130 HU in the heart or near
            it; the others hold something bright elsewhere.
        other_share: Of `RandomBatches`, the share of those without calcium that hold simulated calcium or
            metal which is not coronary: aortic wall, valves, leads; `near_share` divides the others.
        lean_share: Share of the patches in which fat is turned into muscle here and there (`without_fat`).
        painted_share: Of placed `Batches`, the share of the patches in which something outside the heart is
            bright (`painted_outside`).
        mistake_share: Of `RandomBatches`, the share of all patches drawn around a mistake of the network's,
            once there are some to `RandomBatches.show`.
        window_hu: The network's intensity window, HU (lowest, highest); DeepCAC2 paper.
        seed: Of all that is drawn at random.
    """

    batch_size: int = 8
    near_share: float = 0.75
    other_share: float = 0.0
    mistake_share: float = 0.0
    lean_share: float = 0.0
    painted_share: float = 0.0
    window_hu: tuple[float, float] = WINDOW_HU
    seed: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.batch_size % 2:
            raise ValueError("batch_size must be even: half of the patches hold calcium")
        if len(self.window_hu) != 2 or not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"window_hu is [lowest HU, highest HU], not {list(self.window_hu)}")
        for share in ("near_share", "other_share", "mistake_share", "lean_share", "painted_share"):
            if not 0 <= getattr(self, share) <= 1:
                raise ValueError(f"{share} is between 0 and 1")


class Batches(ABC):
    """A fixed sequence of batches; half of each one's patches hold calcium.

    Args:
        cache: All crops.
        crops: Those to draw from.
        recipe: How.
        placed: Tell where in the heart a patch lies, in the channels of `heart_position.position`; crops are
            named.
        kinds: Labels keep artery and kind, as in named crops.
    """

    def __init__(
        self,
        cache: CropCache,
        crops: Sequence[int],
        recipe: PatchRecipe,
        *,
        placed: bool = False,
        kinds: bool = False,
    ) -> None:
        self.cache = cache
        self.crops = tuple(crops)
        self.recipe = recipe
        self.placed, self.kinds = placed, kinds

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; 0: there are no epochs."""
        return 0

    @abstractmethod
    def places(self, step: int) -> list[Place]:
        """The patches of a step, those with calcium first."""

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step.

        Returns:
            float32 (n, 1, 16, 64, 64) in [0, 1], beside it the channels of the place, and uint8 labels
            (n, 1, 16, 64, 64), 1 = calcium and `UNSURE`, or with kinds as in crops.
        """
        rng = np.random.default_rng([self.recipe.seed, step, 2])
        places = self.places(step)
        recipe = self.recipe
        image = np.empty((len(places), 1 + self.placed * CHANNELS, *PATCH_SHAPE), dtype=np.float32)
        label = np.empty((len(places), 1, *PATCH_SHAPE), dtype=np.uint8)
        for k, (crop, corner) in enumerate(places):
            box = window_of(corner)
            hu = self.cache.hu[crop][box].astype(np.float32)
            label[k, 0] = self.cache.label[crop][box]
            if recipe.lean_share and rng.random() < recipe.lean_share:
                hu = without_fat(hu, rng)
            if self.placed and recipe.painted_share and rng.random() < recipe.painted_share:
                hu = painted_outside(hu, self.cache.depth[crop][box], coronary(label[k, 0]), rng)
            image[k, 0] = as_input(recipe.noisy(hu, rng), recipe.window_hu)
            if self.placed:
                shift = rng.normal(0.0, PLACE_JITTER).astype(np.float32)
                image[k, 1:] = self.cache.place(crop, corner) + shift[:, None, None, None]
        if not self.kinds:
            label = np.where(label == UNSURE, label, coronary(label).view(np.uint8))
        return torch.from_numpy(image), torch.from_numpy(label)


class GridBatches(Batches):
    """The paper's patches, epoch by epoch: each patch with calcium once, and as many without, drawn anew.

    `near_share` of those without calcium hold something ≥ 130 HU in the heart or near it, where a mistake
    would count; the others something bright elsewhere. Where one kind is missing the other takes its place.

    Raises:
        TrainingError: There is no calcium, nothing without calcium, or less than a batch.
    """

    def __init__(self, cache: CropCache, crops: Sequence[int], recipe: PatchRecipe, **told: bool) -> None:
        super().__init__(cache, crops, recipe, **told)
        self._epoch = lru_cache(maxsize=2)(self._shuffled)  # two: threads work across an epoch's end
        if not len(self._pools[CALCIUM]):
            raise TrainingError("no scan to train on has calcium; add some that have")
        if not len(self._pools[NEAR]) + len(self._pools[BRIGHT]):
            raise TrainingError("no patch without calcium; add scans")
        if not self.steps_per_epoch:
            raise TrainingError(
                f"there are {self.patches_per_epoch} patches, less than a batch; make batch_size smaller"
            )

    @cached_property
    def _pools(self) -> dict[int, npt.NDArray[np.int64]]:
        """Per kind, (n, 2): crop and number of the patch."""
        chosen = self.cache.kinds[list(self.crops)]
        pools = {}
        for kind in (CALCIUM, NEAR, BRIGHT):
            found = np.argwhere(chosen == kind)
            found[:, 0] = np.asarray(self.crops)[found[:, 0]]
            pools[kind] = found
        return pools

    @property
    def patches_per_epoch(self) -> int:
        """Patches with calcium, and as many without."""
        return 2 * len(self._pools[CALCIUM])

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of an epoch; what is left over is another part in every epoch."""
        return self.patches_per_epoch // self.recipe.batch_size

    def _shuffled(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The patches of an epoch with and without calcium, in order; both (n, 2)."""
        rng = np.random.default_rng([self.recipe.seed, epoch, 1])
        positive, near, bright = (self._pools[k] for k in (CALCIUM, NEAR, BRIGHT))
        count = len(positive)
        wanted = round(self.recipe.near_share * count) if len(bright) else count
        wanted = wanted if len(near) else 0
        without = [
            pool[rng.choice(len(pool), n, replace=n > len(pool))]
            for pool, n in ((near, wanted), (bright, count - wanted))
            if n
        ]
        return rng.permutation(positive), rng.permutation(np.concatenate(without))

    def places(self, step: int) -> list[Place]:
        epoch, k = divmod(step, self.steps_per_epoch)
        half = self.recipe.batch_size // 2
        chosen = np.concatenate([part[k * half : (k + 1) * half] for part in self._epoch(epoch)])
        return [(int(crop), GRID[patch]) for crop, patch in chosen]


class RandomBatches(Batches):
    """Patches at random places: those with calcium around one of its voxels, drawn patient by patient.

    Those without hold a voxel ≥ 130 HU: `other_share` of them in something that is known not to be coronary
    calcium, of the others `near_share` in the heart or near it. Once mistakes are shown, `mistake_share` of
    the patches of either half are drawn around one instead.

    Raises:
        TrainingError: There is no calcium, or nothing without calcium.
    """

    def __init__(self, cache: CropCache, crops: Sequence[int], recipe: PatchRecipe, **told: bool) -> None:
        super().__init__(cache, crops, recipe, **told)
        self._voxels: dict[int, Voxels] = {k: {} for k in (CALCIUM, OTHER, NEAR, BRIGHT)}
        for i in self.crops:
            hu, label = np.asarray(cache.hu[i]), np.asarray(cache.label[i])
            bright = hu >= CANDIDATE_HU
            # Every seventh of the many is enough to draw from.
            for kind, mask, step in (
                (CALCIUM, coronary(label), 1),
                (OTHER, elsewhere(label), 1),
                (NEAR, bright & ((label == NEAR) | elsewhere(label)), 1),
                (BRIGHT, bright, 7),
            ):
                voxels = np.argwhere(mask)[::step].astype(np.uint8)
                if len(voxels):
                    self._voxels[kind][i] = voxels
        if not self._voxels[CALCIUM]:
            raise TrainingError("no scan to train on has calcium; add some that have")
        self._wrong: dict[bool, list[Voxels]] = {True: [], False: []}

    def show(self, mistakes: Mistakes) -> None:
        """Draw `mistake_share` of the patches around these, until others are given."""
        false, missed = mistakes.false, mistakes.missed
        # A false find beside calcium is learnt from in the half with calcium.
        beside = {i: v for i, v in false.items() if i in self._voxels[CALCIUM]}
        self._wrong = {True: [v for v in (missed, beside) if v], False: [v for v in (false,) if v]}

    def _draw(self, rng: np.random.Generator, pool: Voxels) -> Place:
        crop = int(rng.choice(list(pool)))
        voxel = pool[crop][rng.integers(len(pool[crop]))]
        offset = rng.integers(0, PATCH_SHAPE)
        z, y, x = np.clip(voxel - offset, 0, np.subtract(CROP_SHAPE, PATCH_SHAPE))
        return crop, (int(z), int(y), int(x))

    def _pool(self, rng: np.random.Generator, *, calcium: bool) -> Voxels:
        """What the next patch is drawn from."""
        wrong = self._wrong[calcium]
        if self.recipe.mistake_share and wrong and rng.random() < self.recipe.mistake_share:
            return wrong[rng.integers(len(wrong))]
        if calcium:
            return self._voxels[CALCIUM]
        kind = NEAR if rng.random() < self.recipe.near_share else BRIGHT
        if self.recipe.other_share and self._voxels[OTHER] and rng.random() < self.recipe.other_share:
            kind = OTHER
        return self._voxels[kind]

    def _half(self, rng: np.random.Generator, count: int, *, calcium: bool) -> list[Place]:
        chosen: list[Place] = []
        for _ in range(200 * count):
            if len(chosen) == count:
                return chosen
            if pool := self._pool(rng, calcium=calcium):
                crop, corner = self._draw(rng, pool)
                if bool(coronary(self.cache.label[crop][window_of(corner)]).any()) is calcium:
                    chosen.append((crop, corner))
        raise TrainingError("found no patch without calcium; add scans")

    def places(self, step: int) -> list[Place]:
        rng = np.random.default_rng([self.recipe.seed, step, 1])
        half = self.recipe.batch_size // 2
        return self._half(rng, half, calcium=True) + self._half(rng, half, calcium=False)
