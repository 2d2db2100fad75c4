"""Crops cached on disk, and the batches of patches drawn from them.

`build_cache` cuts every scan once to the network's crop and keeps it as memory-mapped files, together with
what each patch of the paper's grid holds. `GridBatches` goes through that grid epoch by epoch, as the paper
does; `RandomBatches` cuts patches anywhere. Both give half of a batch's patches with calcium and half
without, and in both a batch is a function of the seed and the step's number alone: whoever goes on at a
step sees what an unbroken run would have seen. `prefetch` makes batches ahead, in threads.
"""

from __future__ import annotations

import io
import json
import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..errors import TrainingError
from ..imaging.tiling import Corner, patch_corners
from ..models.calcium.network import PATCH_SHAPE, PATCH_STEP, Window
from ..models.crop import CANDIDATE_HU, CROP_SHAPE, WINDOW_HU
from ..system.atomic import remove_leftovers, write_json, write_whole

log = logging.getLogger(__name__)

Crop = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]
"""int16 HU and uint8 label, both (58, 256, 256): 2 in the heart or near it, of that 1 coronary calcium and
4 calcium or metal which is known to be something else; 0 the rest."""

CALCIUM, NEAR = 1, 2
"""Values of the label; as kinds of patches: holds calcium; no calcium, but ≥ 130 HU in or near the heart."""
BRIGHT = 3
"""Kind of a patch that holds neither, but something ≥ 130 HU elsewhere. 0 is the kind of all the others."""
OTHER = 4
"""Value of the label: in or near the heart, but not coronary. Its patches are of kind `NEAR` or `CALCIUM`."""

GRID: tuple[Corner, ...] = tuple(patch_corners(CROP_SHAPE, PATCH_SHAPE, PATCH_STEP))
"""Corners (z, y, x) of the crop's 343 patches, the same as at inference; DeepCAC2 paper."""


def composed_label(
    *, near: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_] | None, calcium: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """The label of a crop, see `Crop`: coronary calcium over what is known to be something else.

    Args:
        near: The heart and what is near it; outside of it nothing else is marked.
        other: Known not to be coronary; None where that is not known.
        calcium: Coronary calcium.
    """
    label = near.astype(np.uint8) * np.uint8(NEAR)
    if other is not None:
        label[other & near] = OTHER
    label[calcium] = CALCIUM
    return label


@dataclass(frozen=True, kw_only=True)
class CropSource:
    """A crop that can be made.

    Attributes:
        name: Unique; goes into logs and pictures.
        patient: Whose: crops of one patient stay on one side of a split. Not for logs.
        make: Makes it.
    """

    name: str
    patient: str
    make: Callable[[], Crop]


@dataclass(frozen=True, kw_only=True)
class CropCache:
    """Crops on disk.

    Attributes:
        names, patients: One per crop; patients are numbered.
        hu: Per crop, memory-mapped int16 (58, 256, 256), HU.
        label: Per crop, memory-mapped uint8, see `Crop`.
        kinds: uint8 (n, 343): what each patch of `GRID` holds (`CALCIUM`, `NEAR`, `BRIGHT` or 0).
    """

    names: tuple[str, ...]
    patients: tuple[int, ...]
    hu: tuple[npt.NDArray[np.int16], ...]
    label: tuple[npt.NDArray[np.uint8], ...]
    kinds: npt.NDArray[np.uint8]


def patch_kinds(hu: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The kind of each patch of `GRID`, uint8 (343,).

    The filter: a patch without any voxel ≥ 130 HU and without calcium is of kind 0 and never trained on,
    since at inference such a patch is not shown to the network.
    """
    bright = hu >= CANDIDATE_HU
    kinds = np.zeros(len(GRID), dtype=np.uint8)
    for i, corner in enumerate(GRID):
        box = window_of(corner)
        part = label[box]
        if (part == CALCIUM).any():
            kinds[i] = CALCIUM
        elif bright[box].any():
            kinds[i] = NEAR if part[bright[box]].any() else BRIGHT
    return kinds


def window_of(corner: Corner) -> tuple[slice, slice, slice]:
    """The index box (z, y, x) of the patch at a corner."""
    z, y, x = (slice(int(a), int(a) + p) for a, p in zip(corner, PATCH_SHAPE, strict=True))
    return z, y, x


def build_cache(sources: Sequence[CropSource], folder: Path, *, settings: dict[str, Any]) -> CropCache:
    """Make the crops of `sources` in `folder`, or go on where an earlier call was stopped.

    A crop counts as made when its last file is there, and every file appears whole: what is interrupted,
    or finds the disk full, loses one crop at most.

    Args:
        sources: What to make, in a fixed order.
        folder: For three files a crop and ``cache.json``.
        settings: Everything else that the crops depend on, JSON types.

    Raises:
        TrainingError: The folder holds a cache of other scans or settings, or a scan cannot be used.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    numbers = {p: i for i, p in enumerate(dict.fromkeys(s.patient for s in sources))}
    patients = [numbers[s.patient] for s in sources]
    about = {"settings": settings, "names": [s.name for s in sources], "patients": patients}
    note = folder / "cache.json"
    if not note.exists():
        write_json(note, about)
    elif json.loads(note.read_text()) != json.loads(json.dumps(about)):
        raise TrainingError(
            f"{folder} holds crops of other scans or settings; remove it or choose another --work folder"
        )
    remove_leftovers(folder)
    for i, source in enumerate(sources):
        paths = _paths(folder, i)
        if paths[-1].exists():
            continue
        hu, label = source.make()
        arrays: tuple[npt.NDArray[Any], ...] = (hu, label, patch_kinds(hu, label))
        for path, array in zip(paths, arrays, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_whole(path, buffer.getvalue())
        log.info("crop %d of %d made: %s", i + 1, len(sources), source.name)
    files = [_paths(folder, i) for i in range(len(sources))]
    return CropCache(
        names=tuple(s.name for s in sources),
        patients=tuple(patients),
        hu=tuple(np.load(f[0], mmap_mode="r") for f in files),
        label=tuple(np.load(f[1], mmap_mode="r") for f in files),
        kinds=np.stack([np.load(f[2]) for f in files]),
    )


def _paths(folder: Path, number: int) -> tuple[Path, Path, Path]:
    hu, label, kinds = (folder / f"{number:06d}.{what}.npy" for what in ("hu", "label", "kinds"))
    return hu, label, kinds


def split_patients(cache: CropCache, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Crops to train on and crops held out: patients at random, with and without calcium apart.

    Args:
        share: Of the patients that is held out, of those with calcium and of those without; rounded, and
            at least one of each kind of which there are two.
        seed: Of the choice.

    Returns:
        Indices into the cache, both sorted.

    Raises:
        TrainingError: Fewer than two patients with calcium: there must be one on either side.
    """
    patients = np.asarray(cache.patients)
    has = {int(p): bool((cache.kinds[patients == p] == CALCIUM).any()) for p in np.unique(patients)}
    rng = np.random.default_rng([seed, 80])
    held: set[int] = set()
    for with_calcium in (True, False):
        group = [p for p, c in has.items() if c is with_calcium]
        if with_calcium and len(group) < 2:
            raise TrainingError(
                f"{len(group)} of {len(has)} patients have calcium; at least two must, one to learn from and "
                "one to measure on: add annotated scans (--data) or simulated patients"
            )
        count = max(round(share * len(group)), int(len(group) > 1))
        held |= {int(p) for p in rng.permutation(group)[:count]}
    inside = [int(p) in held for p in patients]
    return [i for i, h in enumerate(inside) if not h], [i for i, h in enumerate(inside) if h]


def as_input(image: npt.NDArray[np.float32], window_hu: Window = WINDOW_HU) -> npt.NDArray[np.float32]:
    """HU as the network sees them, in place: the window onto [0, 1], as `normalise` does."""
    low, high = window_hu
    np.clip(image, low, high, out=image)
    image -= np.float32(low)
    image /= np.float32(high - low)
    return image


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


class Batches(ABC):
    """A fixed sequence of batches; half of each one's patches hold calcium.

    Args:
        cache: All crops.
        crops: Those to draw from.
        batch_size: Patches of a batch, even.
        near_share: Share of the patches without calcium that hold something ≥ 130 HU in the heart or near it.
        other_share: Share of them that hold calcium or metal known not to be coronary; `RandomBatches` only.
        mistake_share: Share of all patches drawn around a mistake; `RandomBatches` only, see `show`.
        noise_hu: Largest standard deviation of the white noise added to a patch, HU.
        offset_hu: Standard deviation of what is added to a whole patch, HU.
        window_hu: As in `as_input`.
        seed: Of everything.
    """

    def __init__(
        self,
        cache: CropCache,
        crops: Sequence[int],
        *,
        batch_size: int,
        near_share: float,
        other_share: float = 0.0,
        mistake_share: float = 0.0,
        noise_hu: float = 0.0,
        offset_hu: float = 0.0,
        window_hu: Window = WINDOW_HU,
        seed: int,
    ) -> None:
        self.cache = cache
        self.crops = tuple(crops)
        self.batch_size = batch_size
        self.near_share = near_share
        self.other_share = other_share
        self.mistake_share = mistake_share
        self.noise_hu = noise_hu
        self.offset_hu = offset_hu
        self.window_hu = window_hu
        self.seed = seed

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
            float32 (n, 1, 16, 64, 64) in [0, 1], and uint8 labels of the same shape, 1 = calcium.
        """
        rng = np.random.default_rng([self.seed, step, 2])
        places = self.places(step)
        image = np.empty((len(places), 1, *PATCH_SHAPE), dtype=np.float32)
        label = np.empty(image.shape, dtype=np.uint8)
        for k, (crop, corner) in enumerate(places):
            box = window_of(corner)
            image[k, 0] = self.cache.hu[crop][box]
            label[k, 0] = self.cache.label[crop][box] == CALCIUM
            if self.noise_hu:
                noise = rng.standard_normal(PATCH_SHAPE, dtype=np.float32)
                image[k, 0] += noise * np.float32(rng.uniform(0.0, self.noise_hu))
            if self.offset_hu:
                image[k, 0] += np.float32(rng.normal(0.0, self.offset_hu))
        return torch.from_numpy(as_input(image, self.window_hu)), torch.from_numpy(label)


class GridBatches(Batches):
    """The paper's patches, epoch by epoch: each patch with calcium once, and as many without, drawn anew.

    `near_share` of those without calcium hold something ≥ 130 HU in the heart or near it, where a mistake
    would count; the others something bright elsewhere. Where one kind is missing the other takes its place.

    Raises:
        TrainingError: There is no calcium, nothing without calcium, or less than a batch.
    """

    def __init__(self, cache: CropCache, crops: Sequence[int], **options: Any) -> None:
        super().__init__(cache, crops, **options)
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
        return self.patches_per_epoch // self.batch_size

    def _shuffled(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The patches of an epoch with and without calcium, in order; both (n, 2)."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        positive, near, bright = (self._pools[k] for k in (CALCIUM, NEAR, BRIGHT))
        count = len(positive)
        wanted = round(self.near_share * count) if len(bright) else count
        wanted = wanted if len(near) else 0
        without = [
            pool[rng.choice(len(pool), n, replace=n > len(pool))]
            for pool, n in ((near, wanted), (bright, count - wanted))
            if n
        ]
        return rng.permutation(positive), rng.permutation(np.concatenate(without))

    def places(self, step: int) -> list[Place]:
        """See `Batches.places`."""
        epoch, k = divmod(step, self.steps_per_epoch)
        half = self.batch_size // 2
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

    def __init__(self, cache: CropCache, crops: Sequence[int], **options: Any) -> None:
        super().__init__(cache, crops, **options)
        self._voxels: dict[int, Voxels] = {k: {} for k in (CALCIUM, OTHER, NEAR, BRIGHT)}
        for i in self.crops:
            hu, label = np.asarray(cache.hu[i]), np.asarray(cache.label[i])
            bright = hu >= CANDIDATE_HU
            # Every seventh of the many is enough to draw from.
            for kind, mask, step in (
                (CALCIUM, label == CALCIUM, 1),
                (OTHER, label == OTHER, 1),
                (NEAR, bright & ((label == NEAR) | (label == OTHER)), 1),
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
        if self.mistake_share and wrong and rng.random() < self.mistake_share:
            return wrong[rng.integers(len(wrong))]
        if calcium:
            return self._voxels[CALCIUM]
        kind = NEAR if rng.random() < self.near_share else BRIGHT
        if self.other_share and self._voxels[OTHER] and rng.random() < self.other_share:
            kind = OTHER
        return self._voxels[kind]

    def _half(self, rng: np.random.Generator, count: int, *, calcium: bool) -> list[Place]:
        chosen: list[Place] = []
        for _ in range(200 * count):
            if len(chosen) == count:
                return chosen
            if pool := self._pool(rng, calcium=calcium):
                crop, corner = self._draw(rng, pool)
                if bool((self.cache.label[crop][window_of(corner)] == CALCIUM).any()) is calcium:
                    chosen.append((crop, corner))
        raise TrainingError("found no patch without calcium; add scans")

    def places(self, step: int) -> list[Place]:
        """See `Batches.places`."""
        rng = np.random.default_rng([self.seed, step, 1])
        half = self.batch_size // 2
        return self._half(rng, half, calcium=True) + self._half(rng, half, calcium=False)


class HasBatches(Protocol):
    """Whatever makes the batch of a step: input and label."""

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step."""


def prefetch(
    batches: HasBatches, steps: range, *, device: torch.device, workers: int | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of `steps` on the device, in order, made ahead by threads.

    For a GPU they are pinned by the threads and copied while it computes.

    Args:
        workers: Threads; default half of the CPU cores, at least 1 and at most 8.
    """
    workers = workers or min(8, max(1, (os.cpu_count() or 2) // 2))
    pinned = device.type == "cuda"

    def make(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = batches.batch(step)
        return (image.pin_memory(), label.pin_memory()) if pinned else (image, label)

    with ThreadPoolExecutor(workers, thread_name_prefix="patches") as pool:
        waiting: deque[Future[tuple[torch.Tensor, torch.Tensor]]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > 2 * workers:
                    yield _moved(waiting.popleft().result(), device)
            while waiting:
                yield _moved(waiting.popleft().result(), device)
        finally:
            for future in waiting:
                future.cancel()


def _moved(
    batch: tuple[torch.Tensor, torch.Tensor], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)
