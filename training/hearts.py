"""Whole hearts at low resolution, in nnU-Net's layout, for the training of any network that finds the heart.

Simulated patients, and random variants of labelled scans where some are given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TrainingError
from ..evaluation.datasets import annotated_sources
from ..imaging import Geometry
from ..imaging.files import write_image
from ..imaging.masks import bounding_box
from ..imaging.orientation import to_canonical
from ..imaging.resampling import resample_to_shape
from ..system.atomic import write_json
from .recipe import keep_to
from .variants import vary

log = logging.getLogger(__name__)

DATASET = "Dataset600_Heart"
AIR_HU = -1024

Triple = tuple[float, float, float]
Chest = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], Triple]
"""int16 HU and uint8 label (1 = heart), both (z, y, x), canonical, and the spacing (z, y, x), mm."""


@dataclass(frozen=True, kw_only=True)
class HeartsRecipe:
    """Which hearts a training is made of.

    Attributes:
        patients: Simulated patients, seeds from `first_seed` upwards.
        simulators: Versions of the simulator, which take turns at drawing them.
        noise_hu: Largest standard deviation of white noise added to a simulated low-resolution image, HU:
            averaging down takes the noise away, a noisier scan or plain sampling does not.
        crop_share: Share of patients cut to the heart and up to 60 mm around it, like a cardiac scan.
        scan_variants: How many random variants of each labelled scan are trained on, see `training.variants`.
        spacing_mm: Grid of the network (z, y, x), mm.
        seed: Of all that is drawn at random.
    """

    patients: int = 200
    first_seed: int = 200_000
    simulators: tuple[int, ...] = (1,)
    noise_hu: float = 30.0
    crop_share: float = 0.3
    scan_variants: int = 25
    spacing_mm: Triple = (6.0, 6.0, 6.0)
    seed: int = 1

    def __post_init__(self) -> None:
        if not self.simulators:
            raise ValueError("simulators are one or more versions")
        if len(self.spacing_mm) != 3 or min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm holds three distances above 0: z, y, x")

    @property
    def seeds(self) -> range:
        """Of the simulated patients."""
        return range(self.first_seed, self.first_seed + self.patients)

    def simulator(self, seed: int) -> int:
        """The version that draws a patient."""
        return self.simulators[(seed - self.first_seed) % len(self.simulators)]


def coarse(geometry: Geometry, spacing: Iterable[float]) -> Geometry:
    """The grid of about `spacing` (mm, z, y, x) that fills the same box as `geometry`.

    The voxel count is rounded per axis and the spacing adapted, as nnU-Net resamples.
    """
    z, y, x = (
        max(1, round(n * old / new))
        for n, old, new in zip(geometry.shape, geometry.spacing, spacing, strict=True)
    )
    ratio = np.array(geometry.shape) / (z, y, x)
    origin = _triple(geometry.to_lps((ratio - 1) / 2))
    return replace(geometry, shape=(z, y, x), spacing=_triple(ratio * geometry.spacing), origin=origin)


def averaged(array: npt.NDArray[Any], grid: Geometry) -> npt.NDArray[np.float32]:
    """An array (z, y, x) brought to a coarser grid of the same box; all of its voxels take part."""
    return resample_to_shape(array, grid.shape, kinds=("smooth", "smooth", "smooth")).numpy()


def grid_of(array: npt.NDArray[Any], spacing: Triple) -> Geometry:
    """The grid of an array (z, y, x) that lies at the origin."""
    z, y, x = array.shape
    return Geometry(shape=(z, y, x), spacing=spacing, origin=(0.0, 0.0, 0.0))


def simulated_heart(seed: int, recipe: HeartsRecipe) -> Chest:
    """A simulated patient at the recipe's resolution.

    Drawn at half its spacing and averaged down, so that edges are as soft as in thick slices.
    """
    from ..simulation import default_geometry, simulate_patient

    version = recipe.simulator(seed)
    full = default_geometry(seed, version=version)
    grid = coarse(full, recipe.spacing_mm)
    fine = coarse(full, np.array(recipe.spacing_mm) / 2)
    patient = simulate_patient(seed, geometry=fine, version=version)
    hu = averaged(patient.volume.hu, grid)
    heart = averaged(patient.heart.astype(np.uint8), grid) >= 0.5
    rng = np.random.default_rng([seed, 78])
    noise = rng.normal(0.0, rng.uniform(0.0, recipe.noise_hu), hu.shape)
    image = to_canonical(np.clip(hu + noise, -1024, 3071).round().astype(np.int16), grid)
    label = to_canonical(heart.astype(np.uint8), grid).array
    return _sometimes_cut((image.array, label, image.geometry.spacing), recipe, rng)


def scan_variant(chest: Chest, recipe: HeartsRecipe, rng: np.random.Generator) -> Chest:
    """A random variant of a labelled scan (see `training.variants`), brought to the recipe's resolution."""
    image, label, spacing = chest
    varied, heart = vary(image, label, spacing, rng)
    grid = coarse(grid_of(image, spacing), recipe.spacing_mm)
    hu = averaged(varied, grid).round().astype(np.int16)
    small = (averaged(heart, grid) >= 0.5).astype(np.uint8)
    return _sometimes_cut((hu, small, grid.spacing), recipe, rng)


def _sometimes_cut(chest: Chest, recipe: HeartsRecipe, rng: np.random.Generator) -> Chest:
    """The recipe's share of chests cut to a box around the heart, like a cardiac scan, with margins of up to
    60 mm, each side by itself; the others as they are."""
    image, label, spacing = chest
    if not (rng.random() < recipe.crop_share and label.any()):
        return chest
    box = []
    for span, mm in zip(bounding_box(label > 0), spacing, strict=True):
        low, high = (int(rng.uniform(0.05, 1.0) * (60.0 / mm)) for _ in range(2))
        box.append(slice(max(0, span.start - low), span.stop + high))
    return image[tuple(box)], label[tuple(box)], spacing


def _triple(values: Sequence[float] | npt.NDArray[Any]) -> Triple:
    z, y, x = (float(v) for v in values)
    return z, y, x


def make_hearts(raw: Path, recipe: HeartsRecipe, *, data: Sequence[Path] = ()) -> Path:
    """Write the training data in nnU-Net's layout; what is already there is kept.

    Args:
        raw: Folder for data sets (nnU-Net's ``nnUNet_raw``), in which it gets one of its own.
        recipe: Which hearts.
        data: Folders of labelled scans to add, see `labelled_scans`.

    Raises:
        TrainingError: The folder was made with other settings, or `data` holds no scan.
    """
    folder = raw / DATASET
    labels = folder / "labelsTr"
    about = {
        "seeds": [recipe.seeds.start, recipe.seeds.stop],
        "simulators": list(recipe.simulators),
        "spacing_mm": list(recipe.spacing_mm),
        "noise_hu": recipe.noise_hu,
        "crop_share": recipe.crop_share,
        "extra": [str(d) for d in data],
        "scan_variants": recipe.scan_variants if data else 0,
    }
    keep_to(folder / "made.json", about, holds="was made with another recipe")
    for seed in recipe.seeds:
        case = f"sim_{seed}"
        if not (labels / f"{case}.nii.gz").exists():
            _write_case(folder, case, simulated_heart(seed, recipe))
            log.info("patient %d of %d simulated", seed - recipe.first_seed + 1, recipe.patients)
    half = _triple(np.array(recipe.spacing_mm) / 2)
    for number, scan in enumerate(scan for source in data for scan in labelled_scans(source, half)):
        for variant in range(recipe.scan_variants):
            case = f"scan_{number:03d}_{variant:03d}"
            if not (labels / f"{case}.nii.gz").exists():
                rng = np.random.default_rng([recipe.seed, number, variant])
                _write_case(folder, case, scan_variant(scan, recipe, rng))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "heart": 1},
        "numTraining": len(list(labels.glob("*.nii.gz"))),
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", content)
    return folder


def labelled_scans(source: Path, spacing_mm: Triple) -> Iterable[Chest]:
    """The annotated scans that have a heart, in canonical orientation, finer ones at `spacing_mm`.

    Slices of one single value, with which some files are filled up, become air.

    Raises:
        TrainingError: No scan with a heart in `source`, or see `annotated_sources`.
    """
    found = False
    for scan in (found.load() for found in annotated_sources(source)):
        if scan.heart is None or not scan.heart.any():
            log.warning("%s is left out: it has no heart annotation", scan.name)
            continue
        found = True
        turned = to_canonical(scan.volume.hu, scan.volume.geometry)
        label = to_canonical(scan.heart.astype(np.uint8), scan.volume.geometry).array
        hu = np.array(turned.array)
        hu[hu.min(axis=(1, 2)) == hu.max(axis=(1, 2))] = AIR_HU
        grid = coarse(turned.geometry, np.maximum(turned.geometry.spacing, spacing_mm))
        small = averaged(hu, grid).round().astype(np.int16)
        yield small, (averaged(label, grid) >= 0.5).astype(np.uint8), grid.spacing
    if not found:
        raise TrainingError(f"{source} holds no scan with an annotated heart")


def _write_case(folder: Path, case: str, chest: Chest) -> None:
    image, label, spacing = chest
    grid = grid_of(image, spacing)
    write_image(folder / "imagesTr" / f"{case}_0000.nii.gz", np.ascontiguousarray(image), grid)
    write_image(folder / "labelsTr" / f"{case}.nii.gz", np.ascontiguousarray(label), grid)
