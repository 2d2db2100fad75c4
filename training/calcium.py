"""Training of the calcium patch U-Net.

Scans, annotated or simulated, become crops exactly as inference makes them (`models.calcium`), once, in a
cache (`training.patches`). `train_calcium` then steps through a fixed sequence of batches. Everything that
a step depends on is either a function of the recipe's seed and the step's number or in the checkpoint, so
a run that was stopped anywhere and goes on gives what an unbroken one would have given.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import TrainingError, WeightsError
from ..imaging import Geometry, Volume
from ..imaging.masks import box_centre, widened
from ..imaging.orientation import to_canonical
from ..imaging.resampling import resample
from ..models.calcium.network import CalciumModel, crop_grid, to_crop
from ..models.crop import WINDOW_HU
from ..models.heart.network import HeartModel
from ..pipeline.chain import describe_device
from ..system.atomic import write_json
from ..system.gpu import GpuMeter
from ..weights import WeightSet, resolve, stated_window, write_description
from .calcium_recipe import CalciumRecipe
from .datasets import AnnotatedSource, annotated_sources
from .domain import simulated_domain
from .export import write_networks
from .insertion import Background, background_sources, inserted_crop, load_background
from .loop import interruptible_steps, leave_where_told
from .mining import find_mistakes, load_mistakes, save_mistakes
from .monitor import RunLog, Speed
from .patches import (
    CALCIUM,
    Batches,
    Crop,
    CropCache,
    CropSource,
    GridBatches,
    RandomBatches,
    build_cache,
    composed_label,
    prefetch,
    split_patients,
)
from .trainer import Checkpoint, Trainer

log = logging.getLogger(__name__)

INSERTED = "inserted-"
"""How the names of crops with simulated calcium in real hearts begin."""
HARD_SEEDS = 10_000
"""How far above a recipe's first seed the search for its hard patients begins."""
PAPER_EPOCHS = 50
"""Length of the paper's training; DeepCAC2 paper."""


# Crops


def crop_of(
    volume: Volume,
    heart: npt.NDArray[np.bool_],
    calcium: npt.NDArray[np.bool_],
    centre: tuple[float, float, float],
    recipe: CalciumRecipe,
    *,
    other: npt.NDArray[np.bool_] | None = None,
) -> Crop:
    """The network's view of a patient and its label, on the crop grid around `centre` (LPS mm).

    Args:
        volume, heart, calcium: In any orientation; masks bool (z, y, x) on the volume's grid.
        other: Calcium and metal that is known not to be coronary, where that is known.
    """
    ct = to_canonical(volume.hu, volume.geometry)
    grid = crop_grid(ct.geometry, centre)
    hu = to_crop(ct.array, ct.geometry, grid, device=torch.device("cpu")).round_().numpy().astype(np.int16)

    def share_at_least(mask: npt.NDArray[np.bool_], threshold: float) -> npt.NDArray[np.bool_]:
        turned = to_canonical(mask.view(np.uint8), volume.geometry).array
        return (resample(turned, ct.geometry, grid, outside=0.0) >= threshold).numpy()

    label = composed_label(
        near=share_at_least(widened(heart, volume.geometry, recipe.heart_margin_mm), 0.5),
        other=None if other is None else share_at_least(other, recipe.label_threshold),
        calcium=share_at_least(calcium, recipe.label_threshold),
    )
    return hu, label


def region_around(geometry: Geometry, centre: tuple[float, float, float], margin_mm: float = 5.0) -> Geometry:
    """The part of a CT's grid that the crop around `centre` can see, plus a margin."""
    grid = crop_grid(geometry, centre)
    corners = np.array([[0, 0, 0], [n - 1 for n in grid.shape]])
    index = np.sort(geometry.to_index(grid.to_lps(corners)), axis=0)
    margin = np.ceil(margin_mm / np.asarray(geometry.spacing)).astype(int)
    low = np.clip(np.floor(index[0]).astype(int) - margin, 0, None)
    high = np.minimum(np.ceil(index[1]).astype(int) + margin + 1, geometry.shape)
    return geometry.part([slice(int(a), int(b)) for a, b in zip(low, high, strict=True)])


CENTRE_APART_MM = 15.0
"""How far along x, y or z the middle of a simulated heart's box may lie from its centre of gravity; of the
first 60 seeds none lies further than 10.6 mm away."""


def _shift(recipe: CalciumRecipe, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """How far a crop lies off the heart's centre, LPS mm (x, y, z)."""
    return rng.normal(0.0, recipe.centre_jitter_mm, 3)


def _crop_centre(
    heart: npt.NDArray[np.bool_], geometry: Geometry, shift: npt.NDArray[np.float64]
) -> tuple[float, float, float]:
    """Where a crop is laid, LPS mm (x, y, z): as at inference, but for the shift."""
    x, y, z = np.add(box_centre(heart, geometry), shift)
    return float(x), float(y), float(z)


def simulated_crop(seed: int, recipe: CalciumRecipe) -> Crop:
    """Crop and label of one simulated patient; only the region around the heart is rendered."""
    from ..simulation import default_geometry, heart_centroid, simulate_patient

    version = recipe.simulator
    shift = _shift(recipe, np.random.default_rng([seed, 77]))
    margin_mm = 5.0 + CENTRE_APART_MM + float(np.abs(shift).max())
    drawn = region_around(default_geometry(seed, version=version), heart_centroid(seed), margin_mm)
    patient = simulate_patient(seed, geometry=drawn, version=version)
    centre = _crop_centre(patient.heart, drawn, shift)
    return crop_of(patient.volume, patient.heart, patient.calcium, centre, recipe, other=patient.distractors)


class HeartFinder:
    """A heart model that is loaded when the first scan needs it."""

    def __init__(self, weights: str, device: torch.device) -> None:
        self.weights = weights
        self.device = device

    @cached_property
    def _model(self) -> HeartModel:
        return HeartModel.load(resolve(self.weights, "heart"), self.device)

    def __call__(self, name: str, volume: Volume) -> npt.NDArray[np.bool_]:
        """The heart of a scan, bool (z, y, x).

        Raises:
            TrainingError: None was found.
        """
        log.info("%s: the heart is not annotated; the heart model %r finds it", name, self.weights)
        prediction = self._model.predict(volume)
        if not prediction.found:
            raise TrainingError(f"no heart was found in {name}; annotate it or take the scan out of the data")
        return prediction.mask


def annotated_crop(source: AnnotatedSource, recipe: CalciumRecipe, find_heart: HeartFinder) -> Crop:
    """Crop and label of one annotated scan, around the middle of its heart as at inference.

    Raises:
        TrainingError: Calcium is not annotated, there is no heart, or the scan cannot be read.
    """
    scan = source.load()
    if scan.calcium is None:
        raise TrainingError(
            f"coronary calcium is not annotated in {scan.name}; add it (an empty segment says that there is "
            "none) or take the scan out of the data"
        )
    heart = find_heart(scan.name, scan.volume) if scan.heart is None else scan.heart
    if not heart.any():
        raise TrainingError(
            f"the heart of {scan.name} is empty; annotate it or take the scan out of the data"
        )
    rng = np.random.default_rng([recipe.seed, zlib.crc32(scan.name.encode()), 77])
    centre = _crop_centre(heart, scan.volume.geometry, _shift(recipe, rng))
    return crop_of(scan.volume, heart, scan.calcium, centre, recipe)


def _inserted_sources(
    recipe: CalciumRecipe, backgrounds: Sequence[Path], find_heart: HeartFinder
) -> list[CropSource]:
    """Simulated calcium in the real hearts of the folders `backgrounds`."""
    found = [b for folder in backgrounds for b in background_sources(folder)]
    if found and not recipe.insertions:
        raise TrainingError("backgrounds were given, but the recipe asks for no 'insertions'; set them")

    @lru_cache(maxsize=1)
    def load(number: int) -> Background:
        return load_background(found[number], find_heart)

    def make(number: int, seed: int) -> Crop:
        return inserted_crop(
            load(number),
            seed,
            jitter_mm=recipe.centre_jitter_mm,
            label_threshold=recipe.label_threshold,
            margin_mm=recipe.heart_margin_mm,
            version=recipe.simulator,
        )

    seeds = count(recipe.first_seed + recipe.patients)
    return [
        CropSource(name=f"{INSERTED}{b.name}-{i}", patient=b.name, make=partial(make, number, next(seeds)))
        for number, b in enumerate(found)
        for i in range(recipe.insertions)
    ]


def crop_sources(
    recipe: CalciumRecipe, data: Sequence[Path], backgrounds: Sequence[Path], find_heart: HeartFinder
) -> list[CropSource]:
    """Every crop of a training.

    Args:
        recipe: How many simulated patients, how many insertions into each background.
        data: Folders of annotated scans.
        backgrounds: Folders of real scans without coronary calcium, see `training.insertion`.
        find_heart: For scans without an annotated heart.

    Raises:
        TrainingError: There are none, or two of one name.
    """
    usual = range(recipe.first_seed, recipe.first_seed + recipe.patients)
    sources = [
        CropSource(
            name=f"simulated-{seed}", patient=f"simulated-{seed}", make=partial(simulated_crop, seed, recipe)
        )
        for seed in chain(usual, hard_seeds(recipe))
    ]
    for folder in data:
        for scan in annotated_sources(folder):
            make = partial(annotated_crop, scan, recipe, find_heart)
            sources.append(CropSource(name=scan.name, patient=scan.patient, make=make))
    sources += _inserted_sources(recipe, backgrounds, find_heart)
    if not sources:
        raise TrainingError(
            "there is nothing to train on; name a folder of annotated scans (--data), or set 'patients' in "
            "the recipe"
        )
    names = [s.name for s in sources]
    twice = next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise TrainingError(f"two scans are named {twice!r}; rename one of them")
    return sources


def make_calcium_cache(
    recipe: CalciumRecipe,
    folder: Path,
    *,
    data: Sequence[Path] = (),
    backgrounds: Sequence[Path] = (),
    heart_weights: str = "bundled",
    device: torch.device,
) -> CropCache:
    """Cut all crops of a training, or go on cutting; see `build_cache` and `crop_sources`."""
    keys = ("centre_jitter_mm", "label_threshold", "heart_margin_mm", "simulator")
    settings = {k: getattr(recipe, k) for k in keys}
    settings["centre"] = "middle of the heart's box"  # crops cut around another point are others
    settings["heart_weights"] = heart_weights if data or backgrounds else ""
    sources = crop_sources(recipe, data, backgrounds, HeartFinder(heart_weights, device))
    return build_cache(sources, folder, settings=settings)


def make_batches(recipe: CalciumRecipe, cache: CropCache, crops: Sequence[int]) -> Batches:
    """The batches of a training, by the recipe's sampling."""
    kind = GridBatches if recipe.sampling == "grid" else RandomBatches
    return kind(
        cache,
        crops,
        batch_size=recipe.batch_size,
        near_share=recipe.near_share,
        other_share=recipe.other_share,
        mistake_share=recipe.mistake_share,
        noise_hu=recipe.noise_hu,
        offset_hu=recipe.offset_hu,
        window_hu=recipe.window_hu,
        seed=recipe.seed,
    )


def hard_seeds(recipe: CalciumRecipe) -> Iterator[int]:
    """Seeds of the patients with something that is rare and hard to tell from coronary calcium."""
    from ..simulation import has_rare

    seeds = count(recipe.first_seed + HARD_SEEDS)
    return islice(filter(partial(has_rare, version=recipe.simulator), seeds), recipe.hard_patients)


# Training


def train_calcium(
    recipe: CalciumRecipe,
    work: Path,
    *,
    device: torch.device,
    data: Sequence[Path] = (),
    backgrounds: Sequence[Path] = (),
    heart_weights: str = "bundled",
    start: str = "",
) -> Path:
    """Train a calcium network, or go on where an earlier call was stopped.

    Args:
        recipe: How.
        work: Folder for everything: ``crops/``, ``checkpoint.pt``, ``log.csv``, ``tensorboard/``,
            ``training.json`` (speed), ``weights/`` and ``evaluation/``.
        data: Folders of annotated scans, see `training.datasets`.
        backgrounds: Folders of real scans without coronary calcium, see `training.insertion`.
        heart_weights: Name or path of the heart model that finds hearts which are not annotated.
        start: Name or path of the weights to begin with; "" begins with random ones.

    Returns:
        The folder with the final set of weights (``model.safetensors`` and ``weights.json``).

    Raises:
        TrainingError: The data cannot be trained on, or the folder belongs to another recipe or other scans.
        WeightsError: `start` cannot be used, or its network is another.
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    from .calcium_report import write_evaluation

    log.info("training on %s", describe_device(device))
    weights = resolve(start, "calcium") if start else None
    if weights is not None:
        recipe = _beginning_with(weights, recipe)
    elif recipe.start:
        raise TrainingError(f"the recipe begins with {recipe.start!r}; name these weights with --start")
    cache = make_calcium_cache(
        recipe,
        work / "crops",
        data=data,
        backgrounds=backgrounds,
        heart_weights=heart_weights,
        device=device,
    )
    training, held_out = split_patients(cache, recipe.validation_share, recipe.seed)
    log.info("%d crops to train on, %d held out", len(training), len(held_out))
    batches = make_batches(recipe, cache, training)
    total = recipe.steps or recipe.epochs * batches.steps_per_epoch
    trainer = Trainer(recipe, total, device)
    if weights is not None:
        trainer.network.load_state_dict(CalciumModel.load(weights, device).network.state_dict())
    checkpoint = Checkpoint(work / "checkpoint.pt", recipe, cache)
    checkpoint.load(trainer)
    validation = held_out_batches(recipe, cache, held_out)
    speed = _run(trainer, batches, validation, checkpoint, work)
    if speed is not None:
        write_json(work / "training.json", {**speed, **_paper(speed, cache, training, recipe)})
    patch_dice = round(trainer.dice(*validation), 4)
    summary = write_evaluation(
        work / "evaluation",
        log_csv=work / "log.csv",
        network=trainer.network,
        cache=cache,
        held_out=held_out,
        device=device,
        window_hu=recipe.window_hu,
    )
    measured = {"held-out patch Dice": patch_dice, **summary}
    return export_calcium(
        recipe, trainer.network, work / "weights", data=crop_origin(recipe, cache), measured=measured
    )


def _beginning_with(weights: WeightSet, recipe: CalciumRecipe) -> CalciumRecipe:
    """The recipe of a training that begins with these weights.

    Raises:
        WeightsError: Their network or its window is another than the recipe's.
    """
    if (window := stated_window(weights) or WINDOW_HU) != recipe.window_hu:
        raise WeightsError(
            f"the weights {weights.name!r} were trained with window_hu {list(window)}; "
            "write that into the recipe"
        )
    if weights.metadata.get("architecture") != json.loads(json.dumps(recipe.architecture)):
        raise WeightsError(
            f"the weights {weights.name!r} are another network than the recipe's; copy 'architecture' from "
            f"{weights.path / 'weights.json'} into the recipe"
        )
    return replace(recipe, start=f"{weights.name}@{weights.hash[:12]}")


def crop_origin(recipe: CalciumRecipe, cache: CropCache) -> str:
    """What the crops of a training show, in words."""
    last = recipe.first_seed + recipe.patients - 1
    inserted = sum(name.startswith(INSERTED) for name in cache.names)
    scans = inserted // max(recipe.insertions, 1)
    counts = {
        f"simulated chests of this project (seeds {recipe.first_seed} to {last})": recipe.patients,
        f"insertions of simulated calcium into {scans} real scans without calcium": inserted,
        "simulated chests with a stent, clips or calcified pericardium": recipe.hard_patients,
        "annotated scans": len(cache.names) - recipe.patients - recipe.hard_patients - inserted,
    }
    return ", ".join(f"{n} {what}" for what, n in counts.items() if n)


def held_out_batches(
    recipe: CalciumRecipe, cache: CropCache, crops: Sequence[int]
) -> tuple[GridBatches, int]:
    """Fixed patches of the paper's grid that measure progress, and how many batches of them."""
    count = 2 * int((cache.kinds[list(crops)] == CALCIUM).sum())
    size = min(recipe.batch_size, count)
    batches = GridBatches(
        cache,
        crops,
        batch_size=size,
        near_share=recipe.near_share,
        window_hu=recipe.window_hu,
        seed=recipe.seed,
    )
    return batches, min(batches.steps_per_epoch, max(1, recipe.validation_patches // size))


def _stream(
    trainer: Trainer, batches: Batches, speed: Speed, work: Path
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What is left of the training's batches; where the recipe says so, mistakes are looked for before.

    What is found at a step lies in ``mistakes-<step>.npz``, for a run that goes on after it.
    """
    for start, end in pairwise((0, *trainer.recipe.mining_steps, trainer.total)):
        if trainer.step >= end:
            continue
        if start and isinstance(batches, RandomBatches):
            path = work / f"mistakes-{start}.npz"
            if trainer.step == start:
                speed.pause(0)
                count = min(trainer.recipe.mining_crops, len(batches.crops))
                chosen = np.random.default_rng([trainer.recipe.seed, start, 3])
                crops = sorted(chosen.choice(batches.crops, count, replace=False).tolist())
                mistakes = find_mistakes(trainer, batches.cache, crops)
                save_mistakes(path, mistakes)
                speed.resume()
            batches.show(load_mistakes(path))
        yield from prefetch(batches, range(trainer.step, end), device=trainer.device)


def _run(
    trainer: Trainer,
    batches: Batches,
    validation: tuple[GridBatches, int],
    checkpoint: Checkpoint,
    work: Path,
) -> dict[str, Any] | None:
    """Train to the end; what was measured of the speed, None where there was nothing left to do."""
    recipe, device = trainer.recipe, trainer.device
    if trainer.step >= trainer.total:
        return None
    run_log, speed = RunLog(work, trainer.step), Speed()
    pending = 0
    with GpuMeter(device) as meter, interruptible_steps() as signals:
        speed.resume()
        for image, label in _stream(trainer, batches, speed, work):
            rate = trainer.learning_rate
            trainer.train(image, label)
            pending += len(image)
            step, last = trainer.step, trainer.step == trainer.total
            validating = last or step % recipe.validate_every == 0
            logging_now = validating or step % recipe.log_every == 0
            saving = last or step % recipe.checkpoint_every == 0
            if not (logging_now or saving):
                leave_where_told(signals, checkpoint, trainer)
                continue
            loss = trainer.mean_loss() if logging_now else None
            speed.pause(pending)
            pending = 0
            if loss is not None:
                used, pace = meter.since_last(), speed.since_last()
                dice = trainer.dice(*validation) if validating else None
                epoch = step / batches.steps_per_epoch if batches.steps_per_epoch else None
                run_log.add(
                    step,
                    epoch=epoch,
                    loss=loss,
                    validation_dice=dice,
                    learning_rate=rate,
                    patches_per_second=pace,
                    gpu_utilisation=used,
                )
                log.info(
                    "step %d of %d, loss %.4f%s, %.1f patches/s, GPU %s",
                    step,
                    trainer.total,
                    loss,
                    "" if dice is None else f", validation Dice {dice:.3f}",
                    pace,
                    _percent(used),
                )
            if saving:
                checkpoint.save(trainer)
            leave_where_told(signals, checkpoint, trainer)
            meter.since_last()
            speed.resume()
    run_log.close()
    return {
        "device": describe_device(device),
        "patches_per_second": round(speed.mean(), 2),
        "gpu_utilisation_percent": meter.mean(),
    }


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} %"


def _paper(
    speed: dict[str, Any], cache: CropCache, training: Sequence[int], recipe: CalciumRecipe
) -> dict[str, Any]:
    """How long the paper's 50 epochs over these crops take with this network at this speed; also logged."""
    patches = 2 * int((cache.kinds[list(training)] == CALCIUM).sum())
    hours = PAPER_EPOCHS * patches / speed["patches_per_second"] / 3600
    log.info(
        "%.1f patches/s on %s, GPU %s; the paper's %d epochs of these scans' %d patches take %.2f h "
        "with this network",
        speed["patches_per_second"],
        speed["device"],
        _percent(speed["gpu_utilisation_percent"]),
        PAPER_EPOCHS,
        patches,
        hours,
    )
    return {
        "patches_per_epoch": patches,
        "hours_of_50_epochs": round(hours, 3),
        "batch_size": recipe.batch_size,
    }


def export_calcium(
    recipe: CalciumRecipe, network: torch.nn.Module, folder: Path, *, data: str, measured: dict[str, Any]
) -> Path:
    """Write ``model.safetensors`` and ``weights.json`` into `folder`.

    Args:
        data: What it was trained on, in words.
        measured: How good it is, JSON types.
    """
    files = write_networks(folder, {"model": network})
    write_description(
        folder,
        name=recipe.name,
        role="calcium",
        files=files,
        architecture=recipe.architecture,
        normalisation={"window_hu": list(recipe.window_hu), "rescale_to": "window"},
        training={"recipe": asdict(recipe), "data": data},
        domain=simulated_domain(range(recipe.first_seed, recipe.first_seed + recipe.patients)),
        measured=measured,
    )
    return folder
