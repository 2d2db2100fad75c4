"""Training of the calcium patch U-Net.

`make_calcium_cache` turns patients into crops exactly as inference does (`models.calcium`), once, into
memory-mapped arrays. `train_calcium` draws patches from them, half with and half without calcium.
Which patches a step sees depends on the recipe's seed and the step's number only, so a run that was
stopped and resumed sees what an unbroken one would have seen.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import TrainingError
from ..imaging import Geometry, Volume
from ..imaging.atomic import write_whole
from ..imaging.masks import widened
from ..imaging.resampling import resample
from ..models.calcium import (
    CANDIDATE_HU,
    CROP_SHAPE,
    PATCH_SHAPE,
    WINDOW_HU,
    build_network,
    crop_grid,
    to_crop,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CalciumRecipe:
    """How a calcium network is trained.

    Attributes:
        patients: Simulated patients to train on, from `first_seed` upwards.
        validation_patients: Further patients, never trained on, that measure progress.
        label_threshold: Share of a crop voxel that must be calcium for the voxel to be labelled so.
        centre_jitter_mm: Standard deviation of the crop's shift, mm: the heart model is not perfect.
        heart_margin_mm: What is within this distance of the heart counts as near it.
        steps: Optimiser steps in all.
        batch_size: Patches per step, half of them with calcium.
        learning_rate: Of Adam; falls to zero along half a cosine when `cosine` is true.
        loss: ``"dice"`` (binary Dice, DeepCAC2 paper) or ``"dice_ce"`` (plus binary cross-entropy).
        noise_hu: Largest standard deviation of the noise added to a patch, HU.
        architecture: Keyword arguments of MONAI's `UNet`.
        validate_every, checkpoint_every: Steps between.
    """

    name: str
    patients: int = 64
    validation_patients: int = 8
    first_seed: int = 100_000
    label_threshold: float = 0.5
    centre_jitter_mm: float = 6.0
    heart_margin_mm: float = 10.0
    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 1e-3
    cosine: bool = True
    loss: str = "dice_ce"
    noise_hu: float = 25.0
    seed: int = 1
    amp: bool = False
    architecture: dict[str, Any]
    validate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.loss not in ("dice", "dice_ce"):
            raise ValueError(f"loss is 'dice' or 'dice_ce', not {self.loss!r}")
        if self.batch_size % 2:
            raise ValueError("batch_size must be even: half of the patches hold calcium")


@dataclass(frozen=True, kw_only=True)
class CropCache:
    """Crops of many patients, memory-mapped.

    Attributes:
        hu: int16 (n, 58, 256, 256), HU on the crop grid.
        label: uint8 (n, 58, 256, 256): 1 coronary calcium, 2 elsewhere in the heart or near it, 0 the rest.
    """

    hu: npt.NDArray[np.int16]
    label: npt.NDArray[np.uint8]


def crop_of(
    volume: Volume,
    heart: npt.NDArray[np.bool_],
    calcium: npt.NDArray[np.bool_],
    centre: tuple[float, float, float],
    recipe: CalciumRecipe,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """The network's view of a patient and its label, on the crop grid around `centre` (LPS mm).

    Returns:
        int16 HU and uint8 label as in `CropCache`, both (58, 256, 256).
    """
    cpu = torch.device("cpu")
    ct = volume.geometry
    grid = crop_grid(ct, centre)
    hu = to_crop(volume.hu, ct, grid, device=cpu).round_().numpy().astype(np.int16)
    near = widened(heart, ct, recipe.heart_margin_mm).astype(np.uint8)
    label = (resample(near, ct, grid, outside=0.0) >= 0.5).to(torch.uint8) * 2
    share = resample(calcium.astype(np.uint8), ct, grid, outside=0.0)
    label[share >= recipe.label_threshold] = 1
    return hu, label.numpy()


def region_around(geometry: Geometry, centre: tuple[float, float, float], margin_mm: float = 5.0) -> Geometry:
    """The part of a CT's grid that the crop around `centre` can see, plus a margin."""
    grid = crop_grid(geometry, centre)
    corners = np.array([[0, 0, 0], [n - 1 for n in grid.shape]])
    index = np.sort(geometry.to_index(grid.to_lps(corners)), axis=0)
    margin = np.ceil(margin_mm / np.asarray(geometry.spacing)).astype(int)
    low = np.clip(np.floor(index[0]).astype(int) - margin, 0, None)
    high = np.minimum(np.ceil(index[1]).astype(int) + margin + 1, geometry.shape)
    origin = geometry.to_lps(low.astype(float))
    shape = high - low
    return Geometry(
        shape=(int(shape[0]), int(shape[1]), int(shape[2])),
        spacing=geometry.spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        axes=geometry.axes,
    )


def simulated_crop(seed: int, recipe: CalciumRecipe) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Crop and label of one simulated patient; only the region around the heart is rendered."""
    from ..simulation import default_geometry, heart_centre, simulate_patient

    shift = np.random.default_rng([seed, 77]).normal(0.0, recipe.centre_jitter_mm, 3)
    centre = np.asarray(heart_centre(seed)) + shift
    point = (float(centre[0]), float(centre[1]), float(centre[2]))
    patient = simulate_patient(seed, geometry=region_around(default_geometry(seed), point))
    return crop_of(patient.volume, patient.heart, patient.calcium, point, recipe)


def make_calcium_cache(recipe: CalciumRecipe, seeds: Iterable[int], folder: Path) -> CropCache:
    """Simulate the patients of `seeds` into `folder`, or continue where an earlier call was stopped.

    Raises:
        TrainingError: The folder holds a cache made with other settings.
    """
    seeds = list(seeds)
    folder.mkdir(parents=True, exist_ok=True)
    settings = ("centre_jitter_mm", "label_threshold", "heart_margin_mm")
    about = {"seeds": seeds, **{k: getattr(recipe, k) for k in settings}}
    note = folder / "cache.json"
    if note.exists() and json.loads(note.read_text()) != about:
        raise TrainingError(
            f"{folder} holds crops of another recipe; remove it or choose another --work folder"
        )
    shape = (len(seeds), *CROP_SHAPE)
    paths = folder / "hu.npy", folder / "label.npy"
    mode: Any = "r+" if note.exists() else "w+"
    hu = np.lib.format.open_memmap(paths[0], mode=mode, dtype=np.int16, shape=shape)
    label = np.lib.format.open_memmap(paths[1], mode=mode, dtype=np.uint8, shape=shape)
    note.write_text(json.dumps(about))
    for i, seed in enumerate(seeds):
        done = folder / f"{seed}.done"
        if done.exists():
            continue
        hu[i], label[i] = simulated_crop(seed, recipe)
        hu.flush()
        label.flush()
        done.touch()
        log.info("patient %d of %d simulated", i + 1, len(seeds))
    return CropCache(hu=hu, label=label)


class PatchSampler:
    """Draws balanced batches: half with calcium, half without but with something at least 130 HU bright.

    A patch without any voxel ≥ 130 HU is never shown to the network at inference, so it need not be
    learnt either. Three of four patches without calcium hold something bright in the heart or near it
    (valves, the aortic wall, noise), where a mistake would count; the others anything bright.
    """

    def __init__(self, cache: CropCache, *, noise_hu: float) -> None:
        self.cache = cache
        self.noise_hu = noise_hu
        self.positive = [np.argwhere(c == 1).astype(np.int16) for c in cache.label]
        self.with_calcium = [i for i, p in enumerate(self.positive) if len(p)]
        if not self.with_calcium:
            raise TrainingError("no patient of the training data has calcium; use more patients")
        bright = [h >= CANDIDATE_HU for h in cache.hu]
        self.bright = [np.argwhere(b)[::7].astype(np.int16) for b in bright]
        self.near = [
            np.argwhere(b & (c == 2)).astype(np.int16) for b, c in zip(bright, cache.label, strict=True)
        ]

    def _corner(self, rng: np.random.Generator, voxel: npt.NDArray[np.int16]) -> tuple[slice, slice, slice]:
        offset = [rng.integers(0, p) for p in PATCH_SHAPE]
        low = [
            int(np.clip(int(v) - int(o), 0, n - p))
            for v, o, n, p in zip(voxel, offset, CROP_SHAPE, PATCH_SHAPE, strict=True)
        ]
        z, y, x = (slice(a, a + p) for a, p in zip(low, PATCH_SHAPE, strict=True))
        return z, y, x

    def _draw(self, rng: np.random.Generator, with_calcium: bool) -> tuple[int, tuple[slice, slice, slice]]:
        for _ in range(100):
            if with_calcium:
                i = int(rng.choice(self.with_calcium))
                pool = self.positive[i]
            else:
                i = int(rng.integers(len(self.bright)))
                pool = self.near[i] if rng.random() < 0.75 else self.bright[i]
                if not len(pool):
                    continue
            corner = self._corner(rng, pool[rng.integers(len(pool))])
            if with_calcium or not (self.cache.label[i][corner] == 1).any():
                return i, corner
        raise TrainingError("found no patch without calcium; the training data has too few patients")

    def batch(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches in [0, 1] and labels, float32 (size, 1, 16, 64, 64)."""
        images, labels = [], []
        for k in range(size):
            i, corner = self._draw(rng, with_calcium=k < size // 2)
            hu = self.cache.hu[i][corner].astype(np.float32)
            sd = rng.uniform(0.0, self.noise_hu)
            hu += rng.normal(0.0, sd, hu.shape).astype(np.float32) + rng.normal(0.0, 8.0)
            images.append(hu)
            labels.append((self.cache.label[i][corner] == 1).astype(np.float32))
        low, high = WINDOW_HU
        image = (np.clip(np.stack(images), low, high) - low) / (high - low)
        return torch.from_numpy(image)[:, None], torch.from_numpy(np.stack(labels))[:, None]


def binary_dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 − Dice over the whole batch, with a smoothing of one voxel; DeepCAC2 paper: Binary Dice."""
    probability = torch.sigmoid(logits)
    overlap = (probability * target).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + target.sum() + 1)


def _validate(network: torch.nn.Module, sampler: PatchSampler, device: torch.device) -> float:
    """Dice over 64 fixed patches of the validation patients."""
    network.eval()
    overlap = total = 0.0
    with torch.inference_mode():
        for step in range(8):
            image, label = sampler.batch(np.random.default_rng([9, step]), 8)
            mask = (network(image.to(device)) >= 0).float().cpu()
            overlap += float((mask * label).sum())
            total += float(mask.sum() + label.sum())
    network.train()
    return 2 * overlap / total if total else 1.0


def train_calcium(recipe: CalciumRecipe, work: Path, *, device: torch.device, resume: bool = True) -> Path:
    """Train a calcium network; checkpoints, log and final weights lie in `work`.

    Args:
        work: Folder for the cache, ``checkpoint.pt``, ``log.csv`` and ``weights/``.
        resume: Go on from the checkpoint where there is one.

    Returns:
        The folder with the final set of weights (``model.safetensors`` and ``weights.json``).

    Raises:
        TrainingError: The data cannot be trained on, or the checkpoint belongs to another recipe.
    """
    work.mkdir(parents=True, exist_ok=True)
    last = recipe.first_seed + recipe.patients
    train = make_calcium_cache(recipe, range(recipe.first_seed, last), work / "train")
    held_out = make_calcium_cache(recipe, range(last, last + recipe.validation_patients), work / "validation")
    torch.manual_seed(recipe.seed)
    network = build_network(recipe.architecture).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp)
    step = 0
    checkpoint = work / "checkpoint.pt"
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["recipe"] != json.dumps(asdict(recipe), sort_keys=True):
            raise TrainingError(f"{checkpoint} belongs to another recipe; choose another --work folder")
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        scaler.load_state_dict(state["scaler"])
        step = state["step"]
        log.info("resumed at step %d", step)
    sampler = PatchSampler(train, noise_hu=recipe.noise_hu)
    validation = PatchSampler(held_out, noise_hu=0.0)
    cross_entropy = torch.nn.BCEWithLogitsLoss()
    network.train()
    started, losses = time.monotonic(), []
    with (work / "log.csv").open("a", newline="") as handle:
        writer = csv.writer(handle)
        if handle.tell() == 0:
            writer.writerow(["step", "loss", "validation_dice", "patches_per_second"])
        while step < recipe.steps:
            image, label = sampler.batch(np.random.default_rng([recipe.seed, step]), recipe.batch_size)
            if recipe.cosine:
                for group in optimiser.param_groups:
                    group["lr"] = recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            with torch.autocast(device.type, enabled=recipe.amp):
                logits = network(image.to(device))
            target = label.to(device)
            loss = binary_dice_loss(logits.float(), target)
            if recipe.loss == "dice_ce":
                loss = loss + cross_entropy(logits.float(), target)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimiser)
            scaler.update()
            losses.append(float(loss.detach()))
            step += 1
            if step % recipe.validate_every == 0 or step == recipe.steps:
                dice = _validate(network, validation, device)
                rate = len(losses) * recipe.batch_size / (time.monotonic() - started)
                writer.writerow([step, f"{np.mean(losses):.5f}", f"{dice:.4f}", f"{rate:.1f}"])
                handle.flush()
                log.info(
                    "step %d loss %.4f validation Dice %.3f %.1f patches/s", step, np.mean(losses), dice, rate
                )
                started, losses = time.monotonic(), []
            if step % recipe.checkpoint_every == 0 or step == recipe.steps:
                state = {
                    "recipe": json.dumps(asdict(recipe), sort_keys=True),
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "scaler": scaler.state_dict(),
                    "step": step,
                }
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
    return export_calcium(
        recipe, network, work / "weights", validation_dice=_validate(network, validation, device)
    )


def export_calcium(
    recipe: CalciumRecipe, network: torch.nn.Module, folder: Path, *, validation_dice: float
) -> Path:
    """Write ``model.safetensors`` and ``weights.json`` into `folder`."""
    from safetensors.torch import save

    from ..weights import write_description

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    write_whole(folder / "model.safetensors", save(tensors))
    write_description(
        folder,
        name=recipe.name,
        role="calcium",
        files=["model.safetensors"],
        architecture=recipe.architecture,
        normalisation={"window_hu": list(WINDOW_HU), "rescale_to": "window"},
        training={"recipe": asdict(recipe), "data": "simulated chests of this project (deepcac2 simulate)"},
        measured={"validation patch Dice": round(validation_dice, 4)},
    )
    return folder
