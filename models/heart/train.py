"""Training of the whole-heart network through nnU-Net's own planning, preprocessing and training.

nnU-Net runs in a process of its own (`train_worker`), because it takes its folders from the environment: the
child gets them in its own environment, and this one is left alone. `export` turns the result into a set of
weights.

Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation,
Nature Methods 18 (2021), 203-211.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import TrainingError
from ...evaluation.datasets import annotated_sources
from ...imaging import Volume
from ...imaging.files import read_image
from ...training.export import simulated_domain
from ...training.hearts import HeartsRecipe, grid_of, make_hearts, simulated_heart
from ...training.loop import interruptible
from ...training.recipe import Inputs, keep_to
from ...training.trainer import BeginningRecipe, beginning
from ...weights import WeightSet, convert_nnunet_v2
from .network import HeartModel

log = logging.getLogger(__name__)

CONFIGURATION = "3d_fullres"
"""nnU-Net's name for the one configuration trained; its spacing is the recipe's, thus low resolution."""

PROGRESS = "progress: "
"""Lines of the child's output that start so are passed on to the log."""


@dataclass(frozen=True, kw_only=True)
class HeartRecipe(HeartsRecipe, BeginningRecipe):
    """How a heart network is trained; of its patients nnU-Net keeps a fifth for validation.

    Attributes:
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
    """

    name: str
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

    def __post_init__(self) -> None:
        super().__post_init__()
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


RECIPE = HeartRecipe


def train(recipe: HeartRecipe, work: Path, inputs: Inputs) -> Path:
    """Train a heart network, see `training.recipe.prepared`; annotated scans add to the simulated patients.

    The work folder gets ``raw/``, ``preprocessed/``, ``results/`` (nnU-Net's), ``nnunet.log`` (all that
    nnU-Net said), ``log.csv`` (one row an epoch) and ``weights/``.
    """
    recipe, first = beginning(recipe, inputs.start, "heart")
    hearts = make_hearts(work / "raw", recipe, data=inputs.data)
    job = {
        "recipe": asdict(recipe),
        "start": str(first.path.resolve()) if first else "",
        "dataset": hearts.name,
        "device": inputs.device.type,
        "work": str(work.resolve()),
    }
    keep_to(work / "recipe.json", job, holds="was made with another recipe")
    environment = {
        **os.environ,
        "nnUNet_raw": str(hearts.parent.resolve()),
        "nnUNet_preprocessed": str((work / "preprocessed").resolve()),
        "nnUNet_results": str((work / "results").resolve()),
        "nnUNet_n_proc_DA": "1",  # for the planner; the worker sets the recipe's
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    command = [sys.executable, "-m", f"{__package__}.train_worker", json.dumps(job)]
    last = ""
    with (
        (work / "nnunet.log").open("a", encoding="utf-8") as handle,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,  # a terminal tells only this process, which tells the child
        ) as child,
        interruptible("epoch", child.terminate) as interrupted,
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
    if interrupted() and child.returncode:
        raise KeyboardInterrupt
    if child.returncode:
        raise TrainingError(
            f"nnU-Net ended with code {child.returncode}: {last} (all of it: {work / 'nnunet.log'})"
        )
    results = next((work / "results" / hearts.name).glob("*__*__*"))
    scans = sum(len(annotated_sources(source)) for source in inputs.data)
    return export(results, work / "weights", recipe=recipe, images=hearts / "imagesTr", scans=scans).path


def export(results: Path, out: Path, *, recipe: HeartRecipe, images: Path, scans: int) -> WeightSet:
    """Turn a trainer's results (plans.json, dataset.json, fold_*/checkpoint_final.pth) into a set.

    Args:
        images: Folder of the training images.
        scans: Labelled scans that were trained on beside the simulated patients.
    """
    data = f"Begun with {recipe.start}. " if recipe.start else ""
    data += f"{recipe.patients} simulated chests of this project"
    if scans:
        data += f" and {recipe.scan_variants} random variants of each of {scans} labelled scans"
    convert = partial(
        convert_nnunet_v2,
        results,
        out,
        name=recipe.name,
        licence="Apache-2.0",
        training_data=data,
        training={"recipe": json.loads(json.dumps(asdict(recipe)))},
        domain=domain_of(recipe, images),
    )
    found = convert(heart_offset=0.0)
    if recipe.balance_patients:
        offset = balancing_offset(found, recipe)
        log.info("hearts are found as large as they are when %.2f is taken from their logit", offset)
        found = convert(heart_offset=offset)
    return found


def domain_of(recipe: HeartRecipe, images: Path) -> dict[str, Any]:
    """The scans that a heart network was trained on: the simulated ones' protocol, all images' extents."""
    drawn = {v: [s for s in recipe.seeds if recipe.simulator(s) == v] for v in recipe.simulators}
    stated = simulated_domain(drawn)
    stated.pop("pixel_mm", None)  # the network sees `spacing_mm`
    grids = [read_image(path)[1] for path in images.glob("*.nii.gz")]
    z, y, x = (np.array([grid.shape[a] * grid.spacing[a] for grid in grids]) for a in range(3))
    extents = {"field_of_view_mm": np.maximum(y, x), "coverage_mm": z}
    return {**stated, **{name: [round(mm.min()), round(mm.max())] for name, mm in extents.items()}}


def balancing_offset(weights: WeightSet, recipe: HeartRecipe) -> float:
    """What must be taken from the heart's logit so that hearts are found as large as they are.

    The outlines of a network that was trained by Dice are generous. Of simulated whole chests that it was not
    trained on, the geometric mean of found by true volume shall be 1.

    Returns:
        Within ±5, rounded to 0.01.
    """
    import cc3d
    from scipy.optimize import brentq

    model = HeartModel.load(weights, torch.device("cpu"))
    whole = replace(recipe, crop_share=0.0)
    cases = []
    for seed in range(recipe.seeds.stop, recipe.seeds.stop + recipe.balance_patients):
        image, label, spacing = simulated_heart(seed, whole)
        margin = model.low_resolution_margin(Volume(hu=image, geometry=grid_of(image, spacing))).numpy()
        cases.append((margin, int((label > 0).sum())))

    def excess(offset: float) -> float:
        pieces = (cc3d.largest_k(margin > offset, k=1, connectivity=6) for margin, _ in cases)
        found = [int(np.count_nonzero(piece)) for piece in pieces]
        return float(np.mean([np.log(max(f, 1) / t) for f, (_, t) in zip(found, cases, strict=True)]))

    ends = -5.0, 5.0
    if excess(ends[0]) <= 0 or excess(ends[1]) >= 0:
        raise TrainingError("the network finds no hearts of a sensible size: train it longer")
    return round(float(brentq(excess, *ends, xtol=0.005)), 2)
