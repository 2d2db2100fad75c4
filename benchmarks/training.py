"""Measure the training of the calcium network: patches per second and what the paper's recipe would take.

Usage: ``python benchmarks/training.py [--config FILE] [--steps 10] [--threads N] [--device auto]``

Speed does not depend on what the patches show, so the crops are noise with a bright ball in it; the rest is
the real path: cache, sampler, prefetch, network, loss, mixed precision. Rows:

- ``batches``: patches cut, normalised and (GPU) pinned per second, without training: what threads can feed;
- ``training``: patches trained on per second, with them;
- ``training, other``: the same with mixed precision turned the other way.

Then the hours that the recipe's epochs (50) take with 10,000, 50,000 and 200,000 patches each.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from deepcac2.imaging.crop import CROP_SHAPE
from deepcac2.models.calcium.train import PAPER_EPOCHS, CalciumRecipe, make_batches, make_trainer
from deepcac2.pipeline.chain import choose_device, describe_device
from deepcac2.system.gpu import GpuMeter
from deepcac2.training.crops import Crop, CropSource, build_cache
from deepcac2.training.loop import prefetch
from deepcac2.training.patches import Batches
from deepcac2.training.recipe import BUNDLED, load_recipe

CROPS = 8
PATCHES = (10_000, 50_000, 200_000)


def made_up_crop(seed: int) -> Crop:
    """Noise, with a ball of calcium in it and a larger one that is none."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(20.0, 30.0, CROP_SHAPE)
    label = np.full(CROP_SHAPE, 2, dtype=np.uint8)
    z, y, x = np.indices(CROP_SHAPE, sparse=True)
    ball = (z - 29) ** 2 * 12 + (y - 100) ** 2 + (x - 100) ** 2 < 100
    hu[ball] = 400
    label[ball] = 1
    hu[(z - 29) ** 2 * 12 + (y - 200) ** 2 + (x - 150) ** 2 < 900] = 700
    return hu.round().astype(np.int16), label


def rate_of_batches(batches: Batches, steps: int, device: torch.device) -> float:
    """Patches per second of making batches alone."""
    started = time.perf_counter()
    count = sum(len(image) for image, _ in prefetch(batches, range(steps), device=device))
    return count / (time.perf_counter() - started)


def rate_of_training(
    recipe: CalciumRecipe, batches: Batches, steps: int, device: torch.device
) -> tuple[float, float | None]:
    """Patches per second of training, and the GPU's utilisation in percent; two steps go ahead unmeasured."""
    trainer = make_trainer(recipe, steps + 2, device=device)
    count = 0
    started = 0.0
    with GpuMeter(device) as meter:
        for image, label in prefetch(batches, range(steps + 2), device=device):
            trainer.train(image, label)
            if trainer.step == 2:
                trainer.mean_loss()  # waits for the GPU
                meter.since_last()
                started = time.perf_counter()
            elif trainer.step > 2:
                count += len(image)
        trainer.mean_loss()
        return count / (time.perf_counter() - started), meter.since_last()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=BUNDLED.with_name("deepcac2.yml"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = choose_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)

    recipe = load_recipe(args.config, CalciumRecipe, role="calcium")
    print(f"{recipe.name} on {describe_device(device)}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        sources = [
            CropSource(name=str(i), patient=str(i), make=partial(made_up_crop, i)) for i in range(CROPS)
        ]
        cache = build_cache(sources, Path(folder), settings={})
        batches = make_batches(recipe, cache, range(CROPS))
        print(f"{'':<28} {'patches/s':>10} {'GPU %':>6}")
        print(f"{'batches':<28} {rate_of_batches(batches, args.steps, device):10.1f} {'-':>6}")
        rates = {}
        for amp in (recipe.amp, not recipe.amp):
            changed = replace(recipe, amp=amp)
            rate, used = rate_of_training(changed, batches, args.steps, device)
            rates[amp] = rate
            what = ("training" if amp == recipe.amp else "training, other") + (
                ", mixed" if amp else ", float32"
            )
            print(f"{what:<28} {rate:10.1f} {'-' if used is None else f'{used:.0f}':>6}")
    print(f"\n{'patches an epoch':>16} {f'hours of {PAPER_EPOCHS} epochs':>20}")
    for count in PATCHES:
        print(f"{count:16,d} {PAPER_EPOCHS * count / rates[recipe.amp] / 3600:20.1f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
