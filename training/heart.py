"""Training of the whole-heart network through nnU-Net's own planning, preprocessing and training.

`make_heart_dataset` writes simulated patients (and labelled scans, if given) in nnU-Net's layout.
`train_heart` runs nnU-Net on it in a process of its own, because nnU-Net takes its folders from the
environment: the child gets them in its own environment, and this one is left alone. What the child does is
in `training.heart_worker`. `export_heart` turns the result into a set of weights.

Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation,
Nature Methods 18 (2021), 203-211.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import TrainingError
from ..imaging import Geometry, Volume
from ..imaging.files import write_image
from ..imaging.orientation import to_canonical
from .datasets import annotated_scans, annotated_sources
from .domain import image_extents, simulated_domain

if TYPE_CHECKING:
    import torch

    from ..weights import WeightSet

log = logging.getLogger(__name__)

DATASET = "Dataset600_Heart"
CONFIGURATION = "3d_fullres"
"""nnU-Net's name for the one configuration trained; its spacing is the recipe's, thus low resolution."""

AIR_HU = -1024

PROGRESS = "progress: "
"""Lines of the child's output that start so are passed on to the log."""


@dataclass(frozen=True, kw_only=True)
class HeartRecipe:
    """How a heart network is trained.

    Attributes:
        patients: Simulated patients, seeds from `first_seed` upwards; nnU-Net keeps a fifth for validation.
        noise_hu: Largest standard deviation of white noise added to a simulated low-resolution image, HU:
            averaging down takes the noise away, a noisier scan or plain sampling does not.
        crop_share: Share of patients cut to the heart and up to 60 mm around it, like a cardiac scan.
        scan_variants: How many random variants of each labelled scan are trained on, see `training.variants`.
        spacing_mm: Grid of the network (z, y, x), mm.
        base_features, max_features: Feature maps of the first stage, doubled per stage up to the maximum.
        convs_per_stage: Convolutions per stage, in the encoder and in the decoder.
        bottleneck_edge: Smallest edge of a feature map, voxels; a larger one means fewer stages.
        patch_percentile: Share of training images, in percent, that fit into one patch along each axis.
        memory_gb: Memory target of nnU-Net's planner; a patch that needs more is made smaller.
        batch_size: Patches per iteration.
        intensity_hu: Normalisation as (lower clip, upper clip, mean, standard deviation), HU; empty for
            what nnU-Net measures inside the training hearts.
        epochs, iterations_per_epoch, validation_iterations: Length of the training.
        optimizer: ``"adamw"``, or ``"sgd"`` (nnU-Net's own: Nesterov momentum 0.99).
        learning_rate: At the start; falls polynomially to zero (nnU-Net's schedule).
        precision: ``"float32"`` or ``"bfloat16"`` (autocast; on a GPU nnU-Net always uses its own). With
            bfloat16 `bottleneck_edge` is at least 3: where a feature map is thinner than the kernel, torch
            2.13 gets bfloat16 gradients wrong on a CPU (docs/decisions/0007).
        rotation_degrees: Augmentation turns patches up to this far around each axis.
        augmentation_processes: Worker processes for augmentation; 0 augments in the training process.
        preprocessing_processes: Worker processes of nnU-Net's preprocessing.
        checkpoint_every: Epochs between checkpoints.
        balance_patients: Simulated whole chests after those of the training on which the size of what is
            found is balanced at the end (`balancing_offset`); 0: not at all.
        seed: Of weights and augmentation.
    """

    name: str
    patients: int = 200
    first_seed: int = 200_000
    noise_hu: float = 30.0
    crop_share: float = 0.3
    scan_variants: int = 25
    spacing_mm: tuple[float, float, float] = (6.0, 6.0, 6.0)
    base_features: int = 16
    max_features: int = 128
    convs_per_stage: int = 2
    bottleneck_edge: int = 4
    patch_percentile: float = 85.0
    memory_gb: float = 2.0
    batch_size: int = 2
    intensity_hu: tuple[float, ...] = ()
    epochs: int = 40
    iterations_per_epoch: int = 50
    validation_iterations: int = 10
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    precision: str = "float32"
    rotation_degrees: float = 15.0
    augmentation_processes: int = 0
    preprocessing_processes: int = 1
    checkpoint_every: int = 2
    balance_patients: int = 0
    seed: int = 1

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd"):
            raise ValueError(f"optimizer is 'adamw' or 'sgd', not {self.optimizer!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is 'float32' or 'bfloat16', not {self.precision!r}")
        if self.precision == "bfloat16" and self.bottleneck_edge < 3:
            raise ValueError("precision 'bfloat16' needs a bottleneck_edge of at least 3")
        if self.intensity_hu and len(self.intensity_hu) != 4:
            raise ValueError(
                "intensity_hu holds lower clip, upper clip, mean and standard deviation, or nothing"
            )
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm holds three distances above 0: z, y, x")


def coarse(geometry: Geometry, spacing: tuple[float, float, float]) -> Geometry:
    """The grid of about `spacing` (mm, z, y, x) that fills the same box as `geometry`.

    The voxel count is rounded per axis and the spacing adapted, as nnU-Net resamples.
    """
    shape = [
        max(1, round(n * old / new))
        for n, old, new in zip(geometry.shape, geometry.spacing, spacing, strict=True)
    ]
    ratio = np.array(geometry.shape) / shape
    origin = geometry.to_lps((ratio - 1) / 2)
    wide = ratio * geometry.spacing
    return replace(
        geometry,
        shape=(shape[0], shape[1], shape[2]),
        spacing=(float(wide[0]), float(wide[1]), float(wide[2])),
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
    )


def simulated_heart(
    seed: int, recipe: HeartRecipe
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], tuple[float, float, float]]:
    """A simulated patient at low resolution, in canonical orientation.

    Drawn at half the recipe's spacing and averaged down, so that edges are as soft as in
    thick slices.

    Returns:
        int16 HU and uint8 label (1 = heart), both (z, y, x), and the spacing (z, y, x) in mm.
    """
    from ..models.heart.network import resample
    from ..simulation import default_geometry, simulate_patient

    full = default_geometry(seed)
    fine = coarse(full, _triple(np.array(recipe.spacing_mm) / 2))
    grid = coarse(full, _triple(recipe.spacing_mm))
    patient = simulate_patient(seed, geometry=fine)
    smooth = ("smooth", "smooth", "smooth")
    hu = resample(patient.volume.hu, grid.shape, kinds=smooth).numpy()
    heart = resample(patient.heart.astype(np.uint8), grid.shape, kinds=smooth).numpy() >= 0.5
    rng = np.random.default_rng([seed, 78])
    hu = hu + rng.normal(0.0, rng.uniform(0.0, recipe.noise_hu), hu.shape)
    image = to_canonical(np.clip(hu, -1024, 3071).round().astype(np.int16), grid)
    label = to_canonical(heart.astype(np.uint8), grid).array
    box = _sometimes_around(label, recipe, image.geometry.spacing, rng)
    return image.array[box], label[box], image.geometry.spacing


def scan_variant(
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
    spacing: tuple[float, float, float],
    recipe: HeartRecipe,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], tuple[float, float, float]]:
    """A random variant of a labelled scan (see `training.variants`), brought to the recipe's resolution.

    Returns:
        int16 HU and uint8 label (1 = heart), both (z, y, x), and the spacing (z, y, x) in mm.
    """
    from ..models.heart.network import resample
    from .variants import vary

    varied, heart = vary(image, label, spacing, rng)
    grid = coarse(_grid(image, spacing), recipe.spacing_mm)
    smooth = ("smooth", "smooth", "smooth")
    hu = resample(varied, grid.shape, kinds=smooth).numpy().round().astype(np.int16)
    small = (resample(heart, grid.shape, kinds=smooth).numpy() >= 0.5).astype(np.uint8)
    box = _sometimes_around(small, recipe, grid.spacing, rng)
    return hu[box], small[box], grid.spacing


def _grid(array: npt.NDArray[Any], spacing: tuple[float, float, float]) -> Geometry:
    """The grid of an array (z, y, x) that lies at the origin."""
    z, y, x = array.shape
    return Geometry(shape=(z, y, x), spacing=spacing, origin=(0.0, 0.0, 0.0))


def _sometimes_around(
    label: npt.NDArray[np.uint8],
    recipe: HeartRecipe,
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
) -> tuple[slice, ...]:
    """For the recipe's share of scans a box around the heart, for the others everything."""
    if rng.random() < recipe.crop_share and label.any():
        return _around(label, rng, _triple(60.0 / np.array(spacing)))
    return (slice(None),) * 3


def _around(
    label: npt.NDArray[np.uint8], rng: np.random.Generator, margin: tuple[float, float, float]
) -> tuple[slice, ...]:
    """A box around the label with margins of up to `margin` voxels, each side by itself: a cardiac scan."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(label.any(axis=tuple(a for a in range(3) if a != axis)))
        low = int(hit[0]) - int(rng.uniform(0.05, 1.0) * margin[axis])
        high = int(hit[-1]) + 1 + int(rng.uniform(0.05, 1.0) * margin[axis])
        box.append(slice(max(0, low), high))
    return tuple(box)


def _triple(values: Sequence[float] | npt.NDArray[Any]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def make_heart_dataset(raw: Path, recipe: HeartRecipe, *, extra: Sequence[Path] = ()) -> Path:
    """Write the training data in nnU-Net's layout; what is already there is kept.

    Args:
        raw: Folder for data sets (nnU-Net's ``nnUNet_raw``).
        recipe: Which patients, which spacing.
        extra: Folders of labelled scans to add, see `labelled_scans`.

    Returns:
        The data set's folder, ``raw/Dataset600_Heart``.

    Raises:
        TrainingError: The folder was made with other settings, or `extra` holds no scan.
    """
    folder = raw / DATASET
    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    about = {
        "seeds": [recipe.first_seed, recipe.first_seed + recipe.patients],
        "spacing_mm": list(recipe.spacing_mm),
        "noise_hu": recipe.noise_hu,
        "crop_share": recipe.crop_share,
        "extra": [str(e) for e in extra],
        "scan_variants": recipe.scan_variants if extra else 0,
    }
    _same_or_new(folder / "made.json", about)
    for seed in range(recipe.first_seed, recipe.first_seed + recipe.patients):
        case = f"sim_{seed}"
        if not (labels / f"{case}.nii.gz").exists():
            image, label, spacing = simulated_heart(seed, recipe)
            _write_case(folder, case, image, label, spacing)
            log.info("patient %d of %d simulated", seed - recipe.first_seed + 1, recipe.patients)
    half = _triple(np.array(recipe.spacing_mm) / 2)
    scans = (scan for source in extra for scan in labelled_scans(source, half))
    for number, (image, label, spacing) in enumerate(scans):
        for variant in range(recipe.scan_variants):
            case = f"scan_{number:03d}_{variant:03d}"
            if not (labels / f"{case}.nii.gz").exists():
                rng = np.random.default_rng([recipe.seed, number, variant])
                varied = scan_variant(image, label, spacing, recipe, rng)
                _write_case(folder, case, *varied)
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "heart": 1},
        "numTraining": len(list(labels.glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2))
    return folder


def labelled_scans(
    source: Path, spacing_mm: tuple[float, float, float]
) -> Iterable[tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], tuple[float, float, float]]]:
    """The scans of `annotated_scans` that have a heart, in canonical orientation, finer ones at `spacing_mm`.

    Slices of one single value, with which some files are filled up, become air.

    Yields:
        int16 HU and uint8 label (1 = heart), both (z, y, x), and the spacing (z, y, x) in mm.

    Raises:
        TrainingError: No scan with a heart in `source`, or see `annotated_scans`.
    """
    from ..models.heart.network import resample

    found = False
    for scan in annotated_scans(source):
        if scan.heart is None or not scan.heart.any():
            log.warning("%s is left out: it has no heart annotation", scan.name)
            continue
        found = True
        turned = to_canonical(scan.volume.hu, scan.volume.geometry)
        label = to_canonical(scan.heart.astype(np.uint8), scan.volume.geometry).array
        hu = np.array(turned.array)
        hu[hu.min(axis=(1, 2)) == hu.max(axis=(1, 2))] = AIR_HU
        wanted = np.maximum(turned.geometry.spacing, spacing_mm)
        grid = coarse(turned.geometry, _triple(wanted))
        smooth = ("smooth", "smooth", "smooth")
        small = resample(hu, grid.shape, kinds=smooth).numpy().round().astype(np.int16)
        heart = (resample(label, grid.shape, kinds=smooth).numpy() >= 0.5).astype(np.uint8)
        yield small, heart, grid.spacing
    if not found:
        raise TrainingError(f"{source} holds no scan with an annotated heart")


def _write_case(
    folder: Path,
    case: str,
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
    spacing: tuple[float, float, float],
) -> None:
    grid = _grid(image, spacing)
    write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", np.ascontiguousarray(image), grid)
    write_image(folder / "labelsTr" / f"{case}.nii.gz", np.ascontiguousarray(label), grid)


def _same_or_new(note: Path, about: dict[str, Any]) -> None:
    if note.exists() and json.loads(note.read_text()) != about:
        raise TrainingError(
            f"{note.parent} was made with another recipe; remove it or choose another --work folder"
        )
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(about))


def train_heart(
    recipe: HeartRecipe,
    work: Path,
    *,
    device: torch.device,
    extra: Sequence[Path] = (),
    resume: bool = True,
) -> Path:
    """Train a heart network.

    Args:
        recipe: How.
        work: Folder for everything: ``raw/``, ``preprocessed/``, ``results/`` (nnU-Net's), ``nnunet.log``
            (all that nnU-Net said), ``log.csv`` (one row an epoch) and ``weights/``.
        device: ``cpu`` or ``cuda``.
        extra: Labelled scans to add to the simulated patients, see `labelled_scans`.
        resume: Go on from the last checkpoint where there is one.

    Returns:
        Folder of the finished set of weights, ``work/weights``.

    Raises:
        TrainingError: The data or an earlier run in `work` does not fit, or nnU-Net failed.
        KeyboardInterrupt: It was told to end; then the epoch at work is finished and a checkpoint written.
    """
    import torch

    from .loop import Interruptible

    data = make_heart_dataset(work / "raw", recipe, extra=extra)
    job = {"recipe": asdict(recipe), "dataset": data.name, "device": device.type, "work": str(work.resolve())}
    _same_or_new(work / "recipe.json", json.loads(json.dumps(job)))
    environment = {
        **os.environ,
        "nnUNet_raw": str(data.parent.resolve()),
        "nnUNet_preprocessed": str((work / "preprocessed").resolve()),
        "nnUNet_results": str((work / "results").resolve()),
        "nnUNet_n_proc_DA": str(recipe.augmentation_processes),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", f"{__package__}.heart_worker", json.dumps({**job, "resume": resume})]
    last = ""
    with (
        (work / "nnunet.log").open("a", encoding="utf-8") as handle,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,  # a terminal tells only this process, which tells the child
        ) as child,
        Interruptible(partial(_stop, child)) as signals,
    ):  # fmt: skip
        try:
            for line in child.stdout or ():
                handle.write(line)
                handle.flush()
                last = line.strip() or last
                if line.startswith(PROGRESS):
                    log.info("%s", line.removeprefix(PROGRESS).strip())
        except BaseException:
            child.kill()
            raise
    if signals.interrupted and child.returncode:
        raise KeyboardInterrupt
    if child.returncode:
        raise TrainingError(
            f"nnU-Net ended with code {child.returncode}: {last} (all of it: {work / 'nnunet.log'})"
        )
    results = next((work / "results" / data.name).glob("*__*__*"))
    scans = sum(len(annotated_sources(source)) for source in extra)
    return export_heart(results, work / "weights", recipe=recipe, images=data / "imagesTr", scans=scans).path


def _stop(child: subprocess.Popen[str]) -> None:
    """Have a training end with its checkpoint."""
    log.info("stopping: this epoch is finished and a checkpoint written first; once more to end at once")
    child.terminate()


def heart_domain(recipe: HeartRecipe, images: Path) -> dict[str, Any]:
    """The scans that a heart network was trained on: the simulated ones' protocol, all images' extents."""
    import SimpleITK as sitk

    stated = simulated_domain(range(recipe.first_seed, recipe.first_seed + recipe.patients))
    stated.pop("pixel_mm", None)  # the network sees `spacing_mm`
    extents = []
    for path in sorted(images.glob("*.nii.gz")):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        x, y, z = (n * s for n, s in zip(reader.GetSize(), reader.GetSpacing(), strict=True))
        extents.append((z, y, x))
    return {**stated, **image_extents(extents)}


def export_heart(results: Path, out: Path, *, recipe: HeartRecipe, images: Path, scans: int) -> WeightSet:
    """Turn a trainer's results (plans.json, dataset.json, fold_*/checkpoint_final.pth) into a set.

    Args:
        images: Folder of the training images.
        scans: Labelled scans that were trained on beside the simulated patients.
    """
    from ..weights import convert_nnunet_v2

    data = f"{recipe.patients} simulated chests of this project"
    if scans:
        data += f" and {recipe.scan_variants} random variants of each of {scans} labelled scans"
    domain = heart_domain(recipe, images)

    def convert(offset: float) -> WeightSet:
        return convert_nnunet_v2(
            results,
            out,
            name=recipe.name,
            heart_offset=offset,
            licence="Apache-2.0",
            training_data=data,
            training={"recipe": json.loads(json.dumps(asdict(recipe)))},
            domain=domain,
        )

    found = convert(0.0)
    if recipe.balance_patients:
        offset = balancing_offset(found, recipe)
        log.info("hearts are found as large as they are when %.2f is taken from their logit", offset)
        found = convert(offset)
    return found


def balancing_offset(weights: WeightSet, recipe: HeartRecipe) -> float:
    """What must be taken from the heart's logit so that hearts are found as large as they are.

    The outlines of a network that was trained by Dice are generous. Of simulated whole chests that it was not
    trained on, the geometric mean of found by true volume shall be 1.

    Returns:
        Within ±5, rounded to 0.01.
    """
    import torch
    from scipy.optimize import brentq

    from ..models.heart.network import HeartModel

    model = HeartModel.load(weights, torch.device("cpu"))
    whole = replace(recipe, crop_share=0.0)
    first = recipe.first_seed + recipe.patients
    cases = []
    for seed in range(first, first + recipe.balance_patients):
        image, label, spacing = simulated_heart(seed, whole)
        volume = Volume(hu=image, geometry=_grid(image, spacing))
        margin = model.low_resolution_margin(volume).numpy()
        cases.append((margin, int((label > 0).sum())))

    def excess(offset: float) -> float:
        found = [largest_piece(margin > offset) for margin, _ in cases]
        return float(np.mean([np.log(max(f, 1) / t) for f, (_, t) in zip(found, cases, strict=True)]))

    ends = -5.0, 5.0
    if excess(ends[0]) <= 0 or excess(ends[1]) >= 0:
        raise TrainingError("the network finds no hearts of a sensible size: train it longer")
    return round(float(brentq(excess, *ends, xtol=0.005)), 2)


def largest_piece(mask: npt.NDArray[np.bool_]) -> int:
    """Voxels of the largest piece of a mask, joined by faces."""
    import cc3d

    sizes = cc3d.statistics(cc3d.connected_components(mask, connectivity=6))["voxel_counts"]
    return int(max(sizes[1:], default=0))
