"""Training of direct scoring (`models.slice_regression`): the heart's box, and the score of a slice."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..imaging.files import read_image
from ..imaging.orientation import ORIENTATIONS
from ..models.crop import WINDOW_HU
from ..models.slice_regression.network import BOX_WINDOW_HU, SlicePresence, SliceRegressor, box_input
from ..system.atomic import write_json, write_whole
from ..weights import write_description
from .calcium import crop_origin, make_calcium_cache
from .domain import simulated_domain
from .export import write_networks
from .heart import HeartRecipe, make_heart_dataset
from .loop import run_steps
from .patches import CropCache, split_patients
from .recipe import build
from .screening import crop_recipe
from .slices import ScoredSlices, SliceLook, crop_scores, heart_box, slices_in
from .trainer import Stepper

log = logging.getLogger(__name__)

Heart = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]
"""HU and heart, both (z, y, x) at 6 mm, canonical."""


@dataclass(frozen=True, kw_only=True)
class DirectRecipe:
    """How direct scoring is trained.

    Attributes:
        crops: Keys of `CalciumRecipe` that say which crops the slices are taken from.
        hearts: Keys of `HeartRecipe` that say which hearts the box is learnt from.
        data_for: What annotated scans are for: ``"both"``, or ``"hearts"``: the box only, so that their
            calcium is left to test on.
        validation_share: Share of the crops' patients that is held out.
        box_steps, box_batch_size, box_learning_rate, box_channels: Of the box's three networks.
        steps, batch_size, learning_rate, cosine: Of the regression.
        channels, hidden, shared, log_target: See `models.slice_regression.network.SliceRegressor`.
        jitter_mm: Largest shift of each side of the heart's box, mm: the networks' box is not perfect.
        noise_hu, offset_hu, zoom: See `SliceLook`.
        seed: Of everything.
        log_every, checkpoint_every: Steps between.
    """

    name: str
    crops: dict[str, Any] = field(default_factory=dict)
    hearts: dict[str, Any] = field(default_factory=dict)
    data_for: str = "both"
    validation_share: float = 0.1
    box_steps: int = 1500
    box_batch_size: int = 32
    box_learning_rate: float = 2e-3
    box_channels: tuple[int, ...] = (16, 32, 48, 64)
    steps: int
    batch_size: int = 100
    learning_rate: float = 1e-3
    cosine: bool = True
    channels: tuple[int, ...] = (16, 24, 32, 48, 64, 64)
    hidden: int = 64
    shared: bool = False
    log_target: bool = False
    jitter_mm: float = 8.0
    noise_hu: float = 15.0
    offset_hu: float = 8.0
    zoom: float = 0.2
    seed: int = 1
    log_every: int = 50
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.data_for not in ("both", "hearts"):
            raise ValueError(f"data_for is 'both' or 'hearts', not {self.data_for!r}")


def train_direct(
    recipe: DirectRecipe,
    work: Path,
    *,
    device: torch.device,
    data: Sequence[Path] = (),
    backgrounds: Sequence[Path] = (),
    heart_weights: str = "bundled",
) -> Path:
    """Train the networks, or go on where an earlier call was stopped.

    Args:
        recipe: How.
        work: Folder for everything: ``hearts/``, ``crops/``, one folder a network, ``held_out.json`` and
            ``weights/``.
        data: Folders of annotated scans, see ``data_for``.
        backgrounds, heart_weights: See `training.calcium.train_calcium`.

    Returns:
        The folder with the final set of weights.

    Raises:
        TrainingError: The data cannot be trained on, or the folder belongs to another recipe or other scans.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    cropping = crop_recipe(recipe.crops)
    cache = make_calcium_cache(
        cropping,
        work / "crops",
        data=data if recipe.data_for == "both" else (),
        backgrounds=backgrounds,
        heart_weights=heart_weights,
        device=device,
    )
    about = build({"name": "hearts", **recipe.hearts}, HeartRecipe, where="hearts")
    hearts = load_hearts(make_heart_dataset(work / "hearts", about, extra=tuple(data)))
    return train_on(recipe, work, cache, hearts, device=device)


def train_on(
    recipe: DirectRecipe, work: Path, cache: CropCache, hearts: Sequence[Heart], *, device: torch.device
) -> Path:
    """`train_direct` on crops and hearts that are there."""
    cropping = crop_recipe(recipe.crops)
    presence = _train_presence(recipe, work, cache, hearts, device=device)
    training, held_out = split_patients(cache, recipe.validation_share, recipe.seed)
    scores = _scores(cache, work / "scores.npz")
    batches = ScoredSlices(
        cache,
        training,
        scores=scores,
        batch_size=recipe.batch_size,
        look=SliceLook(noise_hu=recipe.noise_hu, offset_hu=recipe.offset_hu, zoom=recipe.zoom),
        margin_mm=cropping.heart_margin_mm,
        jitter_mm=recipe.jitter_mm,
        seed=recipe.seed,
    )
    torch.manual_seed(recipe.seed)
    regressor = SliceRegressor(**architecture(recipe)["regressor"]).to(device).train()
    if device.type == "cpu":  # twice as fast there
        regressor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(planes: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        wanted = target[:, 0].log1p() if recipe.log_target else target[:, 0]
        return torch.nn.functional.l1_loss(regressor(planes, target[:, 1:]), wanted)

    stepper = Stepper(
        regressor,
        loss,
        learning_rate=recipe.learning_rate,
        cosine=recipe.cosine,
        total=recipe.steps,
        device=device,
    )
    run_steps(stepper, batches, recipe, cache, work / "regressor")
    found = held_out_scores(regressor.eval(), batches, cache, held_out, scores, cropping.heart_margin_mm)
    write_json(work / "held_out.json", found)
    return export_direct(
        recipe,
        {**presence, "regressor": regressor},
        work / "weights",
        data=crop_origin(cropping, cache),
        measured=_agreement(found),
    )


def _scores(cache: CropCache, path: Path) -> dict[int, npt.NDArray[np.float32]]:
    """`crop_scores` of every crop, kept in a file."""
    if not path.exists():
        log.info("scoring the slices of %d crops", len(cache.names))
        made = [crop_scores(hu, label) for hu, label in zip(cache.hu, cache.label, strict=True)]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, scores=np.stack(made))
        write_whole(path, buffer.getvalue())
    return dict(enumerate(np.load(path)["scores"]))


# The heart's box


class PresenceSlices:
    """Batches of slices of 6 mm of one orientation, half of them with the heart.

    Args:
        hearts: int16 HU and uint8 heart, (z, y, x), canonical, of each chest.
        axis: 0 axial, 1 coronal, 2 sagittal.
        batch_size, seed: Of each batch; of everything.
    """

    SIDE = 80
    """Rows and columns of a slice in training, 480 mm: the largest chest, the rest is air."""

    def __init__(
        self,
        hearts: Sequence[Heart],
        *,
        axis: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.hearts, self.axis, self.batch_size, self.seed = hearts, axis, batch_size, seed
        other = tuple(a for a in range(3) if a != axis)
        self._present = [np.asarray(heart.any(axis=other)) for _, heart in hearts]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of a step; half of the slices without a heart are its neighbours, up to five away.

        Returns:
            float32 (n, 1, 80, 80) in [0, 1], and float32 (n,), 1 where the heart is in the slice.
        """
        rng = np.random.default_rng([self.seed, self.axis, step, 13])
        hu = np.full((self.batch_size, 1, self.SIDE, self.SIDE), -1024.0, dtype=np.float32)
        truth = np.zeros(self.batch_size, dtype=np.float32)
        for k in range(self.batch_size):
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


def _train_presence(
    recipe: DirectRecipe, work: Path, cache: CropCache, hearts: Sequence[Heart], *, device: torch.device
) -> dict[str, torch.nn.Module]:
    networks: dict[str, torch.nn.Module] = {}
    entropy = torch.nn.BCEWithLogitsLoss()

    def loss(network: torch.nn.Module, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = entropy(network(image), truth)
        return answer

    for axis, name in enumerate(ORIENTATIONS):
        torch.manual_seed(recipe.seed + axis)
        network = SlicePresence(channels=recipe.box_channels).to(device).train()
        batches = PresenceSlices(hearts, axis=axis, batch_size=recipe.box_batch_size, seed=recipe.seed)
        stepper = Stepper(
            network,
            partial(loss, network),
            learning_rate=recipe.box_learning_rate,
            cosine=recipe.cosine,
            total=recipe.box_steps,
            device=device,
        )
        run_steps(stepper, batches, recipe, cache, work / name)
        networks[name] = network.eval()
    return networks


# What it gives


@torch.inference_mode()
def held_out_scores(
    regressor: SliceRegressor,
    batches: ScoredSlices,
    cache: CropCache,
    crops: Sequence[int],
    scores: Mapping[int, npt.NDArray[np.float32]],
    margin_mm: float,
) -> list[dict[str, Any]]:
    """Of each crop the true score of the slices of its heart and the network's, both summed."""
    device = next(regressor.parameters()).device
    found = []
    for crop in crops:
        box = heart_box(np.asarray(cache.label[crop]), margin_mm)
        if box is None:
            continue
        numbers = list(slices_in(box[0]))
        planes, voxel = batches.shown(crop, numbers, box)
        parts = zip(torch.split(planes, 32), torch.split(voxel, 32), strict=True)
        answer = sum(float(regressor.score(p.to(device), v.to(device)).sum()) for p, v in parts)
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


def architecture(recipe: DirectRecipe) -> dict[str, Any]:
    """Keyword arguments of `SlicePresence` and `SliceRegressor`."""
    keys = ("channels", "hidden", "shared", "log_target")
    return {
        "presence": {"channels": recipe.box_channels},
        "regressor": {k: getattr(recipe, k) for k in keys},
    }


def export_direct(
    recipe: DirectRecipe,
    networks: Mapping[str, torch.nn.Module],
    folder: Path,
    *,
    data: str,
    measured: dict[str, Any],
) -> Path:
    """Write the set of weights into `folder`."""
    cropping = crop_recipe(recipe.crops)
    files = write_networks(folder, networks)
    write_description(
        folder,
        name=recipe.name,
        role="direct",
        files=files,
        architecture=architecture(recipe),
        normalisation={"window_hu": list(WINDOW_HU), "box_window_hu": list(BOX_WINDOW_HU)},
        training={"recipe": asdict(recipe), "data": data},
        domain=simulated_domain(range(cropping.first_seed, cropping.first_seed + cropping.patients)),
        measured=measured,
    )
    return folder
