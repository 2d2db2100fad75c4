"""Training of direct scoring: the heart's box, and the score of a slice."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...errors import TrainingError
from ...imaging import Geometry, Volume
from ...imaging.crop import CROP_SHAPE, CROP_SPACING, WINDOW_HU
from ...imaging.files import read_image
from ...imaging.masks import bounding_box
from ...imaging.orientation import ORIENTATIONS
from ...scoring import score
from ...system.atomic import write_json, write_whole
from ...training.crops import UNSURE, CropCache, coronary, elsewhere, split_patients
from ...training.export import export_networks
from ...training.hearts import HeartsRecipe, make_hearts
from ...training.loop import Batch, run_steps
from ...training.patches import SliceRecipe
from ...training.recipe import Inputs, build
from ...training.sources import crop_origin, make_crops
from ...training.trainer import BeginningRecipe, StepsRecipe, Trainer, beginning, require_architecture
from ...weights import WeightSet
from .network import (
    BOX_WINDOW_HU,
    INCREMENT_MM,
    THICKNESS_MM,
    Box,
    DirectModel,
    SlicePresence,
    SliceRegressor,
    box_input,
    slice_weights,
    thick_slices,
    to_plane,
)

log = logging.getLogger(__name__)

Heart = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]
"""HU and heart, both (z, y, x) at 6 mm, canonical."""
Answer = Callable[..., torch.Tensor]

SLICES = int((CROP_SHAPE[0] - 1) * CROP_SPACING[0] / INCREMENT_MM) + 1
"""Slices of 3 mm every 1.5 mm that a crop gives; the first has its middle where the crop's first has it."""


@dataclass(frozen=True, kw_only=True)
class DirectRecipe(SliceRecipe, StepsRecipe, BeginningRecipe):
    """How direct scoring is trained.

    Attributes:
        hearts: Keys of `HeartsRecipe` that say which hearts the box is learnt from.
        data_for: What annotated scans are for: ``"both"``, or ``"hearts"``: the box only, so that their
            calcium is left to test on.
        box_steps, box_batch_size, box_learning_rate, box_channels: Of the box's three networks; without steps
            they stay as they were in the weights that the training begins with, and `hearts` are not needed.
        steps, batch_size: Of the regression.
        channels, hidden, shared, log_target: See `SliceRegressor`.
        jitter_mm: Largest shift of each side of the heart's box, mm: the networks' box is not perfect.
        zoom: Largest relative change of a slice's size; 0: none.
        least_slice: Score below which a slice has none: dozens of slices without calcium must not add up to
            a risk group. Our own addition, chosen for the bundled set on 120 simulated scans
            (docs/evaluation/methods.md); the least lesion of the rule ``agatston``, 1 mm² of weight 1, would
            be 0.5 in one of two slices every 3 mm.
        score_factor: See `DirectModel.load`; to be chosen on scans that the training has not seen.
    """

    hearts: dict[str, Any] = field(default_factory=dict)
    data_for: str = "both"
    box_steps: int = 1500
    box_batch_size: int = 32
    box_learning_rate: float = 2e-3
    box_channels: tuple[int, ...] = (16, 32, 48, 64)
    steps: int
    batch_size: int = 100
    channels: tuple[int, ...] = (16, 24, 32, 48, 64, 64)
    hidden: int = 64
    shared: bool = False
    log_target: bool = False
    jitter_mm: float = 8.0
    zoom: float = 0.2
    least_slice: float = 1.5
    score_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.data_for not in ("both", "hearts"):
            raise ValueError(f"data_for is 'both' or 'hearts', not {self.data_for!r}")

    def described(self) -> dict[str, Any]:
        """What a set's description says of its networks."""
        keys = ("channels", "hidden", "shared", "log_target")
        regressor = {k: getattr(self, k) for k in keys}
        return {
            "architecture": {"presence": {"channels": self.box_channels}, "regressor": regressor},
            "normalisation": {"window_hu": list(WINDOW_HU), "box_window_hu": list(BOX_WINDOW_HU)},
            "least_slice": self.least_slice,
            "score_factor": self.score_factor,
        }


RECIPE = DirectRecipe


def train(recipe: DirectRecipe, work: Path, inputs: Inputs) -> Path:
    """Train the networks, see `training.recipe.prepared`.

    The work folder gets ``hearts/``, ``crops/``, one folder a network, ``held_out.json`` and ``weights/``.
    """
    recipe, first = beginning(recipe, inputs.start, "direct")
    if first is not None:
        require_architecture(first, recipe.described()["architecture"])
    elif not recipe.box_steps:
        raise TrainingError("without box_steps the box is that of other weights; name them with --start")
    scored = inputs if recipe.data_for == "both" else replace(inputs, data=())
    cache = make_crops(recipe.of_crops(), work / "crops", scored)
    hearts: list[Heart] = []
    if recipe.box_steps:
        about = build(recipe.hearts, HeartsRecipe, where="hearts")
        hearts = load_hearts(make_hearts(work / "hearts", about, data=inputs.data))
    return train_on(recipe, work, cache, hearts, device=inputs.device, first=first)


def train_on(
    recipe: DirectRecipe,
    work: Path,
    cache: CropCache,
    hearts: Sequence[Heart],
    *,
    device: torch.device,
    first: WeightSet | None = None,
) -> Path:
    """`train` on crops and hearts that are there."""

    def presence(answer: Answer, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.binary_cross_entropy_with_logits(answer(image), truth)

    def error(answer: Answer, planes: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        wanted = target[:, 0].log1p() if recipe.log_target else target[:, 0]
        return torch.nn.functional.l1_loss(answer(planes, target[:, 1:]), wanted)

    before = None if first is None else DirectModel.load(first, device)
    networks: dict[str, torch.nn.Module] = {}
    of_box = replace(recipe, learning_rate=recipe.box_learning_rate)
    for axis, name in enumerate(ORIENTATIONS):
        torch.manual_seed(recipe.seed + axis)
        networks[name] = SlicePresence(channels=recipe.box_channels)
        if before is not None:
            networks[name].load_state_dict(before.presence[name].state_dict())
        if not recipe.box_steps:
            continue
        trainer = Trainer(networks[name], presence, of_box, total=recipe.box_steps, device=device)
        run_steps(trainer, PresenceSlices(hearts, recipe, axis=axis), recipe, cache, work / name)
    training, held_out = split_patients(cache, recipe.validation_share, recipe.seed)
    batches = ScoredSlices(cache, training, recipe, _scores(cache, work / "scores.npz"))
    torch.manual_seed(recipe.seed)
    regressor = SliceRegressor(**recipe.described()["architecture"]["regressor"])
    if before is not None:
        regressor.load_state_dict(before.regressor.state_dict())
    trainer = Trainer(regressor, error, recipe, total=recipe.steps, device=device, layout=torch.channels_last)
    run_steps(trainer, batches, recipe, cache, work / "regressor")
    found = held_out_scores(regressor.eval(), batches, held_out)
    write_json(work / "held_out.json", found)
    return export_networks(
        work / "weights",
        {**networks, "regressor": regressor},
        recipe=recipe,
        crops=recipe.of_crops(),
        role="direct",
        data=crop_origin(recipe.of_crops(), cache),
        scans=cache.scans,
        measured=_agreement(found),
        **recipe.described(),
    )


# The heart's box


class PresenceSlices:
    """Batches of slices of 6 mm of one orientation, half of them with the heart.

    Args:
        hearts: int16 HU and uint8 heart, (z, y, x), canonical, of each chest.
        recipe: Batch size and seed.
        axis: 0 axial, 1 coronal, 2 sagittal.
    """

    SIDE = 80
    """Rows and columns of a slice in training, 480 mm: the largest chest, the rest is air."""

    def __init__(self, hearts: Sequence[Heart], recipe: DirectRecipe, *, axis: int) -> None:
        self.hearts, self.recipe, self.axis = hearts, recipe, axis
        other = tuple(a for a in range(3) if a != axis)
        self._present = [np.asarray(heart.any(axis=other)) for _, heart in hearts]

    def batch(self, step: int) -> Batch:
        """The batch of a step; half of the slices without a heart are its neighbours, up to five away.

        Returns:
            float32 (n, 1, 80, 80) in [0, 1], and float32 (n,), 1 where the heart is in the slice.
        """
        count = self.recipe.box_batch_size
        rng = np.random.default_rng([self.recipe.seed, self.axis, step, 13])
        hu = np.full((count, 1, self.SIDE, self.SIDE), -1024.0, dtype=np.float32)
        truth = np.zeros(count, dtype=np.float32)
        for k in range(count):
            chest = int(rng.integers(len(self.hearts)))
            present = self._present[chest]
            inside = np.flatnonzero(present)
            pool = inside if k % 2 else np.flatnonzero(~present)
            if k % 4 == 0:  # where the heart ends is what must be learnt
                near = np.r_[inside[0] - 5 : inside[0], inside[-1] + 1 : inside[-1] + 6]
                pool = near[(near >= 0) & (near < len(present))]
            if not len(pool):
                pool = inside
            z = int(rng.choice(pool))
            image = np.take(self.hearts[chest][0], z, axis=self.axis).astype(np.float32)
            image += np.float32(rng.normal(0.0, 10.0))
            rows, columns = (min(n, self.SIDE) for n in image.shape)
            top, left = (int(rng.integers(self.SIDE - n + 1)) for n in (rows, columns))
            hu[k, 0, top : top + rows, left : left + columns] = image[:rows, :columns]
            truth[k] = present[z]
        return box_input(torch.from_numpy(hu)), torch.from_numpy(truth)


def load_hearts(folder: Path) -> list[Heart]:
    """The chests of a data set in nnU-Net's layout that show a heart."""
    images, labels = (sorted((folder / name).iterdir()) for name in ("imagesTr", "labelsTr"))
    hearts = [
        (read_image(image)[0].astype(np.int16), read_image(label)[0].astype(np.uint8))
        for image, label in zip(images, labels, strict=True)
    ]
    return [(image, heart) for image, heart in hearts if heart.any()]


# Slices and their scores


class ScoredSlices:
    """Batches of slices of 3 mm with their scores, for direct scoring.

    Half of a batch's slices have calcium, and half of these are drawn as often as they score: the few slices
    that most of a large score comes from. Of the others one in three holds calcium or metal that is not
    coronary, where there is any; slices with something not sure are left out. The box is the heart's, its
    sides moved by up to `jitter_mm`. Where a slice's size is changed, its voxels are too; the score stays.

    Args:
        cache: Crops and their labels.
        crops: Those to draw from.
        recipe: Batch size, noise, zoom, shift of the box, seed.
        scores: Per crop of the cache, float32 (slices,), see `crop_scores`.

    Raises:
        TrainingError: No slice has calcium.
    """

    def __init__(
        self,
        cache: CropCache,
        crops: Sequence[int],
        recipe: DirectRecipe,
        scores: Mapping[int, npt.NDArray[np.float32]],
    ) -> None:
        self.cache, self.recipe, self.scores = cache, recipe, scores
        self.boxes = {}
        margin_mm = recipe.of_crops().near_heart_mm
        pools: dict[str, list[tuple[int, int]]] = {"calcium": [], "other": [], "any": []}
        for crop in crops:
            label = np.asarray(cache.label[crop])
            box = heart_box(label, margin_mm)
            if box is None:
                continue
            self.boxes[crop] = box
            other = np.asarray(elsewhere(label).any(axis=(1, 2)))
            unsure = np.asarray((label == UNSURE).any(axis=(1, 2)))
            for k in slices_in(box[0]):
                if unsure[max(0, _nearest(k) - 1) : _nearest(k) + 2].any():
                    continue  # nobody knows what it scores
                has_other = bool(other[_nearest(k)])
                kind = "calcium" if scores[crop][k] > 0 else "other" if has_other else "any"
                pools[kind].append((crop, k))
        if not pools["calcium"]:
            raise TrainingError("no scan to train on has calcium; add some that have")
        self._pools = {kind: np.array(pool) for kind, pool in pools.items() if pool}
        sums = np.cumsum([float(scores[crop][k]) for crop, k in pools["calcium"]])
        self._up_to = sums / sums[-1]

    def batch(self, step: int) -> Batch:
        """The batch of a step.

        Returns:
            float32 (n, 1, 256, 256), see `to_plane`, and float32 (n, 4): the score and the voxel, mm.
        """
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, step, 12])
        planes, targets = [], []
        for k in range(recipe.batch_size):
            kind = "calcium" if k % 2 == 0 else "other" if k % 6 == 1 else "any"
            pool = self._pools.get(kind, self._pools["calcium"])
            one = int(np.searchsorted(self._up_to, rng.random())) if k % 4 == 2 else rng.integers(len(pool))
            crop, number = (int(i) for i in pool[one])
            image = recipe.noisy(thick_slice(self.cache.hu[crop], number), rng)
            factor = 1 + rng.uniform(-1, 1) * recipe.zoom
            spans = []
            for axis in (1, 2):
                span, size, mm = self.boxes[crop][axis], CROP_SHAPE[axis], CROP_SPACING[axis]
                moved = np.rint(rng.uniform(-1, 1, 2) * recipe.jitter_mm / mm).astype(int)
                spans.append(slice(max(0, span.start + moved[0]), min(size, span.stop + moved[1])))
            part = torch.from_numpy(np.ascontiguousarray(image[spans[0], spans[1]]))[None, None]
            if recipe.zoom:
                part = torch.nn.functional.interpolate(part, scale_factor=factor, mode="bilinear")
            rows, columns = part.shape[2:]
            planes.append(to_plane(part[0], slice(0, rows), slice(0, columns)))
            pixel = CROP_SPACING[1] / factor
            targets.append([float(self.scores[crop][number]), INCREMENT_MM, pixel, pixel])
        return torch.cat(planes), torch.tensor(targets, dtype=torch.float32)

    def shown(self, crop: int, numbers: Sequence[int], box: Box) -> Batch:
        """Slices of a crop as they are, cut to a box: (n, 1, 256, 256) and their voxels (n, 3), mm."""
        images = [torch.from_numpy(thick_slice(self.cache.hu[crop], k)) for k in numbers]
        voxel = torch.tensor([[INCREMENT_MM, *CROP_SPACING[1:]]]).expand(len(images), -1)
        return to_plane(torch.stack(images), box[1], box[2]), voxel


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
    calcium = coronary(label)
    if calcium.any():
        geometry = Geometry(shape=hu.shape, spacing=CROP_SPACING, origin=(0.0, 0.0, 0.0))
        for lesion in score(Volume(hu=np.asarray(hu), geometry=geometry), calcium).lesions:
            for part in lesion.parts:
                own[part.slice_index] += part.score
    weights = slice_weights(len(hu), CROP_SPACING[0], SLICES, 0.0).numpy()
    shares: npt.NDArray[np.float32] = weights / weights.sum(axis=0)
    return shares @ own


def heart_box(label: npt.NDArray[np.uint8], margin_mm: float) -> Box | None:
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


def _scores(cache: CropCache, path: Path) -> dict[int, npt.NDArray[np.float32]]:
    """`crop_scores` of every crop, kept in a file."""
    if not path.exists():
        log.info("scoring the slices of %d crops", len(cache.names))
        made = [crop_scores(hu, label) for hu, label in zip(cache.hu, cache.label, strict=True)]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, scores=np.stack(made))
        write_whole(path, buffer.getvalue())
    return dict(enumerate(np.load(path)["scores"]))


# What it gives


@torch.inference_mode()
def held_out_scores(
    regressor: SliceRegressor, batches: ScoredSlices, crops: Sequence[int]
) -> list[dict[str, Any]]:
    """Of each crop the true score of the slices of its heart and the network's, both summed."""
    device = next(regressor.parameters()).device
    cache, scores = batches.cache, batches.scores
    margin_mm = batches.recipe.of_crops().near_heart_mm
    found = []
    for crop in crops:
        box = heart_box(np.asarray(cache.label[crop]), margin_mm)
        if box is None:
            continue
        numbers = list(slices_in(box[0]))
        planes, voxel = batches.shown(crop, numbers, box)
        parts = zip(torch.split(planes, 32), torch.split(voxel, 32), strict=True)
        least = batches.recipe.least_slice
        answer = sum(float(regressor.score(p.to(device), v.to(device), least).sum()) for p, v in parts)
        truth = float(scores[crop][numbers].sum())
        found.append({"name": cache.names[crop], "true": round(truth, 2), "found": round(answer, 2)})
    return found


def _agreement(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    truth, answer = (np.array([f[k] for f in found]) for k in ("true", "found"))
    rank = float(spearmanr(truth, answer).statistic) if len(found) > 2 else None
    return {
        "held-out crops": len(found),
        "Spearman of their scores": rank if rank is None else round(rank, 3),
        "mean error": round(float((answer - truth).mean()), 1) if len(found) else None,
        "mean absolute error": round(float(np.abs(answer - truth).mean()), 1) if len(found) else None,
    }
