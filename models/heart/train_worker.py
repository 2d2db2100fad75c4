"""The child process of the heart network's training: everything that needs nnU-Net's folders.

Started as ``python -m deepcac2.models.heart.train_worker JOB`` with nnU-Net's folders in its environment; no
command for users.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ...training.recipe import build
from ...weights import WeightSet, load_tensors, resolve
from ...weights.checkpoints import read_checkpoint
from .network import fill
from .train import CONFIGURATION, PROGRESS, HeartRecipe

STOPPED = 130
"""Exit code of a training that was told to end."""


class HeartPlanner(ExperimentPlanner):  # type: ignore[misc]
    """nnU-Net's planner, told to plan a small network for a low resolution."""

    def __init__(self, dataset: str, recipe: HeartRecipe) -> None:
        super().__init__(
            dataset,
            gpu_memory_target_in_gb=recipe.memory_gb,
            overwrite_target_spacing=[float(s) for s in recipe.spacing_mm],
            suppress_transpose=True,
        )
        self.recipe = recipe
        self.UNet_base_num_features = recipe.base_features
        self.UNet_max_features_3d = recipe.max_features
        self.UNet_blocks_per_stage_encoder = (recipe.convs_per_stage,) * 14
        self.UNet_blocks_per_stage_decoder = (recipe.convs_per_stage,) * 13
        self.UNet_featuremap_min_edge_length = recipe.bottleneck_edge
        self.UNet_min_batch_size = recipe.batch_size
        self.max_dataset_covered = 0.0  # so the batch is the smallest allowed: the recipe's
        self.lowres_creation_threshold = 0.0  # one configuration only

    def get_plans_for_configuration(self, spacing: Any, median_shape: Any, *args: Any) -> dict[str, Any]:
        """Let the patch cover the large chests, not only the median one: then one tile is enough for most."""
        if len(spacing) == 3:
            found = self.dataset_fingerprint
            known = zip(found["shapes_after_crop"], found["spacings"], strict=True)
            shapes = [compute_new_shape(shape, old, spacing) for shape, old in known]
            median_shape = np.percentile(np.array(shapes), self.recipe.patch_percentile, axis=0)
        plan: dict[str, Any] = super().get_plans_for_configuration(spacing, median_shape, *args)
        return plan

    def determine_segmentation_softmax_export_fn(self, *_: Any, **__: Any) -> tuple[Any, dict[str, Any]]:
        """Linear instead of cubic: what `models.heart.network` does at inference."""
        return resample_torch_fornnunet, {"is_seg": False, "force_separate_z": False}

    def determine_resampling(self, *_: Any, **__: Any) -> tuple[Any, dict[str, Any], Any, dict[str, Any]]:
        """The same for images and labels."""
        of_images = self.determine_segmentation_softmax_export_fn()
        return (*of_images, of_images[0], {**of_images[1], "is_seg": True})

    def save_plans(self, plans: dict[str, Any]) -> None:
        if self.recipe.intensity_hu:
            lower, upper, mean, sd = (float(v) for v in self.recipe.intensity_hu)
            values = {"mean": mean, "std": sd, "median": mean, "min": lower, "max": upper}
            values |= {"percentile_00_5": lower, "percentile_99_5": upper}
            plans["foreground_intensity_properties_per_channel"] = {"0": values}
        super().save_plans(plans)


class HeartTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with the recipe's length, optimiser and augmentation.

    No mirroring: the heart lies on the left, and a mirrored chest is another anatomy.
    """

    def follow(self, recipe: HeartRecipe, table: Path) -> None:
        """Take the recipe's settings; to be called before `initialize`."""
        self.recipe = recipe
        self.table = table
        self.num_epochs = recipe.epochs
        self.num_iterations_per_epoch = recipe.iterations_per_epoch
        self.num_val_iterations_per_epoch = recipe.validation_iterations
        self.initial_lr = recipe.learning_rate
        self.save_every = recipe.checkpoint_every
        self.stopping = False

    def stop(self) -> None:
        """End after the epoch at work, with a checkpoint."""
        self.stopping = True
        self.save_every = 1

    def configure_optimizers(self) -> tuple[Any, Any]:
        if self.recipe.optimizer == "sgd":
            return super().configure_optimizers()  # type: ignore[no-any-return]
        from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

        optimizer = torch.optim.AdamW(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
        )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """Moderate rotations, no mirroring, no pseudo-2D augmentation."""
        angle = np.deg2rad(self.recipe.rotation_degrees)
        rotation = (-angle, angle)
        patch = self.configuration_manager.patch_size
        self.inference_allowed_mirroring_axes = None
        return rotation, False, get_patch_size(patch, rotation, rotation, rotation, (0.85, 1.25)), ()

    def plot_network_architecture(self) -> None:
        """No picture of the network."""

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step; on a CPU with the forward pass in bfloat16 where the recipe asks for it."""
        if self.device.type != "cpu" or self.recipe.precision == "float32":
            return super().train_step(batch)  # type: ignore[no-any-return]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.network(batch["data"])
        loss = self.loss([o.float() for o in output], batch["target"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return {"loss": loss.detach().numpy()}

    def on_epoch_end(self) -> None:
        """Keep one row an epoch in ``log.csv``; after `stop`, leave."""
        epoch = self.current_epoch
        stopping = self.stopping and epoch + 1 < self.num_epochs
        super().on_epoch_end()

        def value(key: str) -> float:
            return float(self.logger.get_value(key, step=-1))

        row = {
            "epoch": epoch + 1,
            "learning_rate": f"{value('lrs'):.6f}",
            "train_loss": f"{value('train_losses'):.4f}",
            "validation_loss": f"{value('val_losses'):.4f}",
            "pseudo_dice": f"{value('mean_fg_dice'):.4f}",
            "seconds": f"{value('epoch_end_timestamps') - value('epoch_start_timestamps'):.1f}",
        }
        with self.table.open("a", newline="") as handle:
            writer = csv.DictWriter(handle, list(row))
            if not handle.tell():
                writer.writeheader()
            writer.writerow(row)
        sys.stdout.write(PROGRESS + ", ".join(f"{k} {v}" for k, v in row.items()) + "\n")
        if stopping:
            sys.stdout.write(f"{PROGRESS}stopped after epoch {epoch + 1} of {self.num_epochs}\n")
            sys.exit(STOPPED)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Resume without unpickling anything but tensors and plain data."""
        if not self.was_initialized:
            self.initialize()
        state = read_checkpoint(Path(filename_or_checkpoint))
        self.network.load_state_dict(state["network_weights"])
        self.optimizer.load_state_dict(state["optimizer_state"])
        if self.grad_scaler is not None and state["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler_state"])
        self.current_epoch = state["current_epoch"]
        self.logger.load_checkpoint(state["logging"])
        self._best_ema = state["_best_ema"]


def _plan_and_preprocess(dataset: str, recipe: HeartRecipe) -> dict[str, Any]:
    folder = Path(nnUNet_preprocessed) / dataset
    plans, done = folder / "nnUNetPlans.json", folder / "preprocessed.done"
    if not done.exists():
        started = time.monotonic()
        workers = recipe.preprocessing_processes
        fingerprint = DatasetFingerprintExtractor(dataset, workers)
        fingerprint.show_progress_bar = False
        fingerprint.run(overwrite_existing=True)
        HeartPlanner(dataset, recipe).plan_experiment()
        preprocessor = DefaultPreprocessor(verbose=False)
        preprocessor.show_progress_bar = False
        preprocessor.run(dataset, CONFIGURATION, "nnUNetPlans", num_processes=workers)
        done.touch()
        sys.stdout.write(f"{PROGRESS}planned and preprocessed in {time.monotonic() - started:.0f} s\n")
    content: dict[str, Any] = load_json(str(plans))
    return content


def _begin_with(weights: WeightSet, network: torch.nn.Module) -> None:
    """Give a network the tensors of a set; its first fold's where it has several."""
    file = min(f for f in weights.files if f.endswith(".safetensors"))
    if odd := fill(network, load_tensors(weights, file)):
        sys.exit(
            f"the weights {weights.name} are of another network than the recipe's ({odd}); "
            "take over what they were trained with from their weights.json"
        )


def main(job: dict[str, Any]) -> None:
    """Plan, preprocess and train as `job` says."""
    recipe = build(job["recipe"], HeartRecipe, where="job")
    work = Path(job["work"])
    np.random.seed(recipe.seed)  # noqa: NPY002 - what nnU-Net's augmentation draws from
    torch.manual_seed(recipe.seed)
    plans = _plan_and_preprocess(job["dataset"], recipe)
    os.environ.update(nnUNet_n_proc_DA=str(recipe.augmentation_processes))  # the planner takes no 0
    plan = plans["configurations"][CONFIGURATION]
    sys.stdout.write(
        f"{PROGRESS}patch {plan['patch_size']}, batch {plan['batch_size']}, spacing {plan['spacing']}\n"
    )
    dataset_json = load_json(str(Path(nnUNet_raw) / job["dataset"] / "dataset.json"))
    trainer = HeartTrainer(
        {**plans, "continue_training": True},
        CONFIGURATION,
        0,
        dataset_json,
        torch.device(job["device"]),
    )
    trainer.follow(recipe, work / "log.csv")
    trainer.initialize()
    folder = Path(trainer.output_folder)
    if (folder / "checkpoint_final.pth").exists():
        sys.stdout.write(f"{PROGRESS}training was finished before\n")
        return
    latest = folder / "checkpoint_latest.pth"
    if latest.exists():
        trainer.load_checkpoint(latest)
        sys.stdout.write(f"{PROGRESS}resumed after epoch {trainer.current_epoch}\n")
    elif job["start"]:
        _begin_with(resolve(job["start"], "heart"), trainer.network)
    own = os.getpid()  # processes that augment inherit the handler
    signal.signal(signal.SIGTERM, lambda *_: trainer.stop() if os.getpid() == own else os._exit(STOPPED))
    trainer.run_training()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
