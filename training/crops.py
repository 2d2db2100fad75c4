"""Crops of scans: what the training of any network that looks at them is made of, kept on disk.

`build_cache` cuts every scan to the crop around its heart, once, and keeps it as memory-mapped files, with
what each patch of the paper's grid holds. Where crops come from: `training.sources`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TrainingError
from ..imaging.crop import CANDIDATE_HU, CROP_SHAPE, PATCH_SHAPE, PATCH_STEP
from ..imaging.heart_position import heart_box, position
from ..imaging.labels import Labels
from ..imaging.tiling import Corner, patch_corners
from ..system.atomic import remove_leftovers, write_whole
from .recipe import keep_to

log = logging.getLogger(__name__)


VERSION_SEEDS = 20_000
"""How far apart the seeds of two versions of the simulator begin in a training."""


@dataclass(frozen=True, kw_only=True)
class CropRecipe:
    """Which crops a training is made of.

    Attributes:
        patients: Simulated patients beside the annotated scans, seeds from `first_seed` upwards.
        simulators: Versions of the simulator (`simulation.simulate_patient`), each of which draws so many, of
            seeds 20,000 above those of the version before; insertions are drawn by the first.
        hard_patients: Further simulated patients, each with something of `simulation.RARE`, which looks most
            like coronary calcium and is rare: the first such seeds from 10,000 above `first_seed` on.
        insertions: Crops made from each background by putting simulated calcium into a real heart
            (`training.insertion`); the seeds are those after the patients'.
        label_threshold: Share of a crop voxel that must be calcium for the voxel to be labelled so.
        centre_jitter_mm: Standard deviation of the crop's shift, mm: the heart model is not perfect.
        near_heart_mm: What is within this distance of the heart counts as near it.
        named: Labels keep artery and kind of what is bright, where they are known, and crops come with the
            depth below the heart's surface (`imaging.heart_position`).
        seed: Of all that is drawn at random.
    """

    patients: int = 0
    first_seed: int = 100_000
    simulators: tuple[int, ...] = (1,)
    hard_patients: int = 0
    insertions: int = 0
    label_threshold: float = 0.5
    centre_jitter_mm: float = 0.0
    near_heart_mm: float = 10.0
    named: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.simulators or len(set(self.simulators)) < len(self.simulators):
            raise ValueError("simulators are one or more versions, each named once")

    @property
    def seeds(self) -> dict[int, range]:
        """Of the simulated patients by the simulator's version, without the hard ones."""
        starts = {v: self.first_seed + i * VERSION_SEEDS for i, v in enumerate(self.simulators)}
        return {version: range(start, start + self.patients) for version, start in starts.items()}


Crop = tuple[npt.NDArray[Any], ...]
"""int16 HU and uint8 label, both (58, 256, 256): 2 in the heart or near it, of that 1 coronary calcium and
4 calcium or metal which is known to be something else; 5 what nobody is sure about, in the heart or not; 0
the rest. Of named crops int8 `heart_depth`, too."""

CALCIUM, NEAR = 1, 2
"""Values of the label; as kinds of patches: holds calcium; no calcium, but ≥ 130 HU in or near the heart."""
BRIGHT = 3
"""Kind of a patch that holds neither, but something ≥ 130 HU elsewhere. 0 is the kind of all the others."""
OTHER = 4
"""Value of the label: in or near the heart, but not coronary. Its patches are of kind `NEAR` or `CALCIUM`."""
UNSURE = 5
"""Value of the label: annotated as not sure. It takes no part in a loss and is never a mistake."""
ARTERY, KIND = 10, 20
"""Added to the values of `labels.ARTERIES` and of `truth.OTHERS` where crops are `CropRecipe.named`: their
labels have these values instead of `CALCIUM` and `OTHER` where artery or kind are known."""


def coronary(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a label says coronary calcium, of a known artery or not."""
    out: npt.NDArray[np.bool_] = (label == CALCIUM) | ((label > ARTERY) & (label < KIND))
    return out


def elsewhere(label: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a label says calcium or metal that is not coronary, of a known kind or not."""
    out: npt.NDArray[np.bool_] = (label == OTHER) | (label > KIND)
    return out


GRID: tuple[Corner, ...] = tuple(patch_corners(CROP_SHAPE, PATCH_SHAPE, PATCH_STEP))
"""Corners (z, y, x) of the crop's 343 patches, the same as at inference; DeepCAC2 paper."""


Named = Sequence[tuple[int, npt.NDArray[np.bool_]]]
"""Values with `ARTERY` or `KIND`, and where on a grid they are."""


def named(labels: Labels, group: int) -> Named:
    """The classes that a scan's labels have, for `composed_label`.

    Args:
        group: `ARTERY` or `KIND`.
    """
    there = np.unique(labels.array)
    return [(group + int(v), labels.array == v) for v in there if v]


def composed_label(
    read: Callable[[npt.NDArray[np.bool_]], npt.NDArray[np.float32]],
    recipe: CropRecipe,
    *,
    near: npt.NDArray[np.bool_],
    calcium: npt.NDArray[np.bool_],
    other: npt.NDArray[np.bool_] | None = None,
    unsure: npt.NDArray[np.bool_] | None = None,
    names: Named = (),
) -> npt.NDArray[np.uint8]:
    """The label of a crop, see `Crop`: coronary calcium over what is known to be something else.

    Args:
        read: Brings a mask to the crop: the share of each of its voxels.
        near: The heart and what is near it; outside of it nothing else is marked.
        calcium: Coronary calcium.
        other: Known not to be coronary; None where that is not known.
        unsure: Annotated as not sure: whatever voxel it touches is, unless that is labelled otherwise.
        names: Arteries and kinds; the largest share of a voxel names it.
    """
    label = (read(near) >= 0.5).astype(np.uint8) * np.uint8(NEAR)
    if other is not None:
        label[(read(other) >= recipe.label_threshold) & (label > 0)] = OTHER
    label[read(calcium) >= recipe.label_threshold] = CALCIUM
    most = np.zeros(label.shape, dtype=np.float32)
    calcified, beside = label == CALCIUM, label == OTHER
    for value, mask in names:
        share = read(mask)
        more = (beside if value > KIND else calcified) & (share > most)
        most[more] = share[more]
        label[more] = value
    if unsure is not None:
        label[(read(unsure) > 0) & ~coronary(label) & ~elsewhere(label)] = UNSURE
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
        depth: Of named crops, memory-mapped int8, see `heart_depth`.
        scans: What the annotated scans are like, each as `pipeline.domain.describe_scan` says it.
    """

    names: tuple[str, ...]
    patients: tuple[int, ...]
    hu: tuple[npt.NDArray[np.int16], ...]
    label: tuple[npt.NDArray[np.uint8], ...]
    kinds: npt.NDArray[np.uint8]
    depth: tuple[npt.NDArray[np.int8], ...] = ()
    scans: tuple[dict[str, Any], ...] = ()

    @cached_property
    def boxes(self) -> list[tuple[tuple[float, float], ...]]:
        """Of the hearts, see `heart_box`."""
        return [heart_box(d) for d in self.depth]

    def place(self, crop: int, corner: Corner) -> npt.NDArray[np.float32]:
        """Where in the heart a patch lies, see `heart_position.position`."""
        return position(self.depth[crop][window_of(corner)], self.boxes[crop], corner)


def patch_kinds(hu: npt.NDArray[np.int16], label: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The kind of each patch of `GRID`, uint8 (343,).

    The filter: a patch without any voxel ≥ 130 HU and without calcium is of kind 0 and never trained on,
    since at inference such a patch is not shown to the network. What is not sure is as if it were not there.
    """
    bright = (hu >= CANDIDATE_HU) & (label != UNSURE)
    kinds = np.zeros(len(GRID), dtype=np.uint8)
    for i, corner in enumerate(GRID):
        box = window_of(corner)
        part = label[box]
        if coronary(part).any():
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
    keep_to(folder / "cache.json", about, holds="holds crops of other scans or settings")
    remove_leftovers(folder)
    parts = ("hu", "label", *(["depth"] if settings.get("named") else []), "kinds")
    files = [{what: folder / f"{i:06d}.{what}.npy" for what in parts} for i in range(len(sources))]
    for i, (source, paths) in enumerate(zip(sources, files, strict=True)):
        if paths["kinds"].exists():
            continue
        crop = source.make()
        for path, array in zip(paths.values(), (*crop, patch_kinds(*crop[:2])), strict=True):
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_whole(path, buffer.getvalue())
        log.info("crop %d of %d made: %s", i + 1, len(sources), source.name)
    return CropCache(
        names=tuple(s.name for s in sources),
        patients=tuple(patients),
        hu=tuple(np.load(f["hu"], mmap_mode="r") for f in files),
        label=tuple(np.load(f["label"], mmap_mode="r") for f in files),
        kinds=np.stack([np.load(f["kinds"]) for f in files]),
        depth=tuple(np.load(f["depth"], mmap_mode="r") for f in files if "depth" in f),
    )


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
