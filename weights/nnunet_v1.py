"""nnU-Net v1 results to a set of weights for nnunetv2.

nnU-Net v1 (PyPI ``nnunet``) keeps its plans and checkpoints as pickles. They are read here with unpicklers
that build plain containers, NumPy arrays and tensors, and refuse everything else; no code of the file runs.

The network of v1, ``Generic_UNet`` with strided convolutions, transposed convolutions and instance norm, is
``PlainConvUNet`` of v2 up to three details, all of which are carried over exactly:

- v1's transposed convolutions and output layers have no bias: v2's are zero;
- v1's decoder uses at each resolution the kernel size of the next lower one, v2 that of the same one: the
  smaller kernels (1 × 3 × 3) are set into larger ones (3 × 3 × 3) of zeros;
- v1 divides the lowest stage and the decoder's stages into two stacks: v2 has one.

`resample_data_or_seg_to_shape`, the axis order (z, y, x), ``transpose_forward``, the spacing (already
transposed in both) and the CT normalisation (clip to the 0.5 and 99.5 percentile of the training hearts,
then mean and standard deviation) mean the same in v1 and v2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import WeightsError, WeightsMissing, WeightsUnsupported
from ..system.foreign import foreign
from ..system.hashing import sha256_of
from .checkpoints import checked_tensors, read_checkpoint, read_plain_pickle
from .description import WeightSet
from .nnunet_v2 import heart_labels, text_of, write_heart_set

if TYPE_CHECKING:
    import torch

OTHER_NETWORKS = ("ReLU", "GeLU", "Mish", "_BN", "FRN", "GN", "NoNormalization", "Resenc", "Cascade")
"""Parts of the names of v1's trainers whose networks compute something else with the same tensors
(``nnunet/training/network_training/nnUNet_variants/architectural_variants`` of nnunet 1.7.1)."""


def convert_nnunet_v1(
    source: Path,
    destination: Path,
    *,
    name: str | None = None,
    configuration: str | None = None,
    folds: str | None = None,
    checkpoint: str = "model_final_checkpoint",
    labels: Sequence[int] | None = None,
    **metadata: Any,
) -> WeightSet:
    """Convert a folder of nnU-Net v1 results into a set for nnunetv2.

    Args:
        source: The folder with ``plans.pkl`` and ``fold_*`` (or ``all``), or one above it.
        destination: New folder for the set.
        name: Name of the set; the task's folder name where not given.
        configuration: ``"3d_lowres"`` or ``"3d_fullres"``, to choose where `source` holds several.
        folds: ``"all"``: the one network in the folder ``all``, which v1 trains on everything (``fold all``);
            ``"each"``: those of ``fold_*``, averaged. None: what is there, where it is one of the two.
        checkpoint: Name of the checkpoint in each fold, without ``.model``.
        labels: Classes that are heart; needed only where there are several.
        metadata: Further entries of ``weights.json``.

    Raises:
        WeightsMissing: `source` lacks a file.
        WeightsUnsupported: A pickle with anything but data, or a network that v2 cannot compute.
        WeightsError: The heart's class or the folds to take are not clear, or `destination` holds something
            else.
    """
    folder = _results_folder(source, configuration)
    plans = read_plain_pickle(folder / "plans.pkl")
    chosen_folds = _folds(folder, checkpoint, folds)
    files = [p / f"{checkpoint}.model" for p in chosen_folds]
    info = read_plain_pickle(files[0].with_name(f"{checkpoint}.model.pkl"))
    with foreign(str(folder), error=WeightsUnsupported, fault="is no nnU-Net v1 result that is understood"):
        trainer = text_of(info["name"])
        if any(part in trainer for part in OTHER_NETWORKS):
            raise WeightsUnsupported(
                f"{folder} was trained with {trainer}, whose network nnunetv2 does not have"
            )
        stage = _stage(plans, info, configuration)
        states = [_state_v2(checked_tensors(read_checkpoint(f)["state_dict"], f)) for f in files]
        v2_plans = _plans_v2(plans, stage, states[0], folder)
        chosen = next(iter(v2_plans["configurations"]))
        classes = [int(c) for c in plans["all_classes"]]
        named = {"heart": classes[0]} if len(classes) == 1 else {f"class_{c}": c for c in classes}
        dataset: dict[str, Any] = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **named},
            "numTraining": len(plans.get("original_sizes", [])),
            "file_ending": ".nii.gz",
        }
    tensors = {
        f"fold_{p.name.removeprefix('fold_')}.safetensors": s
        for p, s in zip(chosen_folds, states, strict=True)
    }
    return write_heart_set(
        destination,
        name=name or str(v2_plans["dataset_name"]),
        plans=v2_plans,
        dataset=dataset,
        folds=tensors,
        configuration=chosen,
        # v1 mirrors along all axes in training and prediction (nnUNetTrainer.setup_DA_params).
        mirror_axes=(0, 1, 2),
        labels=heart_labels(dataset["labels"], labels),
        source={
            "format": "nnunet-v1",
            "trainer": trainer,
            "files": {str(f.relative_to(folder)): sha256_of(f) for f in [folder / "plans.pkl", *files]},
        },
        **metadata,
    )


def _results_folder(source: Path, configuration: str | None) -> Path:
    if not source.is_dir():
        raise WeightsMissing(f"no folder {source}; unpack the archive and give its folder")
    found = sorted(p.parent for p in source.rglob("plans.pkl") if any(p.parent.glob("*/*.model")))
    if configuration is not None and len(found) > 1:
        found = [
            f for f in found if configuration in f.relative_to(source).parts or configuration == source.name
        ]
    if not found:
        raise WeightsMissing(f"no plans.pkl beside fold_*/ in {source}; give a folder of nnU-Net v1 results")
    if len(found) > 1:
        names = ", ".join(str(f.relative_to(source)) for f in found)
        raise WeightsMissing(f"{source} holds several results ({names}); give one of these folders")
    return found[0]


def _folds(folder: Path, checkpoint: str, folds: str | None) -> list[Path]:
    """The folders of the networks to take: ``all`` alone, or every ``fold_*``."""
    found = sorted(p for p in folder.iterdir() if (p / f"{checkpoint}.model").is_file())
    everything = [p for p in found if p.name == "all"]
    each = [p for p in found if p.name != "all"]
    if everything and each and folds is None:
        raise WeightsError(
            f"{folder} holds both 'all' and {each[0].name}: take the one network that saw everything with "
            "--folds all, or the others with --folds each"
        )
    chosen = {"all": everything, "each": each, None: everything or each}[folds]
    if not chosen:
        wanted = {"all": "all", "each": "fold_*", None: "fold_*"}[folds]
        raise WeightsMissing(f"no {wanted}/{checkpoint}.model in {folder}; name another with --checkpoint")
    return chosen


def _stage(plans: Mapping[str, Any], info: Mapping[str, Any], configuration: str | None) -> int:
    """Which of the plans' stages a checkpoint is of: v1 keeps it as sixth argument of its trainer."""
    stages = sorted(plans["plans_per_stage"])
    saved = info["init"][5] if len(info["init"]) > 5 else None
    if saved is not None:
        stage = int(saved)
    elif configuration == "3d_lowres" or len(stages) == 1:
        stage = stages[0]
    else:
        stage = stages[-1]
    if configuration is not None and configuration != _configuration(stage, stages):
        raise WeightsUnsupported(f"the checkpoint is of {_configuration(stage, stages)}, not {configuration}")
    return stage


def _configuration(stage: int, stages: Sequence[int]) -> str:
    return "3d_lowres" if len(stages) > 1 and stage == stages[0] else "3d_fullres"


def _pools(stage: Mapping[str, Any]) -> list[list[int]]:
    """Strides of the stages below the first; older plans only give the number of poolings per axis."""
    if "pool_op_kernel_sizes" in stage:
        return [[int(k) for k in pool] for pool in stage["pool_op_kernel_sizes"]]
    counts = [int(n) for n in stage["num_pool_per_axis"]]
    return [[2 if max(counts) - n <= i else 1 for n in counts] for i in range(max(counts))]


def _state_v2(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """v1's tensors under v2's names, kernels of each resolution brought to one size.

    Raises:
        WeightsUnsupported: A tensor that ``PlainConvUNet`` has no place for.
    """
    import torch

    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("tu."))
    blocks: dict[str, list[str]] = {}
    for key in state:
        match = re.fullmatch(r"((conv_blocks_\w+)\.(\d+)\.(?:(\d)\.)?blocks\.(\d+))\.conv\.weight", key)
        if match:
            part, index = match[2], int(match[3])
            side = f"encoder.stages.{index}.0" if part == "conv_blocks_context" else f"decoder.stages.{index}"
            blocks.setdefault(side, []).append(match[1])
    result: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    level = {f"encoder.stages.{i}.0": i for i in range(depth + 1)}
    level |= {f"decoder.stages.{i}": depth - 1 - i for i in range(depth)}
    kernels = {
        r: [
            max(
                state[f"{b}.conv.weight"].shape[2 + a]
                for s, bs in blocks.items()
                if level[s] == r
                for b in bs
            )
            for a in range(3)
        ]
        for r in range(depth + 1)
    }
    for side, names in blocks.items():
        # "0.blocks.1" sorts before "1.blocks.0": the two stacks follow each other.
        for i, block in enumerate(sorted(names)):
            target = f"{side}.convs.{i}"
            for old, new in (("conv", "conv"), ("instnorm", "norm")):
                for kind in ("weight", "bias"):
                    tensor = state[f"{block}.{old}.{kind}"].float()
                    used.add(f"{block}.{old}.{kind}")
                    if tensor.ndim == 5:
                        tensor = _embed(tensor, kernels[level[side]])
                    result[f"{target}.{new}.{kind}"] = tensor
    for i in range(depth):
        for old, new, features in (("tu", "transpconvs", 1), ("seg_outputs", "seg_layers", 0)):
            weight = state[f"{old}.{i}.weight"].float()
            bias = state.get(f"{old}.{i}.bias", torch.zeros(weight.shape[features]))
            result[f"decoder.{new}.{i}.weight"], result[f"decoder.{new}.{i}.bias"] = weight, bias.float()
            used |= {f"{old}.{i}.weight", f"{old}.{i}.bias"}
    unknown = sorted(set(state) - used)
    if unknown:
        raise WeightsUnsupported(
            f"the checkpoint holds {unknown[0]}, which nnunetv2's plain U-Net has no place for"
        )
    return result


def _embed(weight: torch.Tensor, kernel: Sequence[int]) -> torch.Tensor:
    """Set a convolution's kernel into the middle of a larger one of zeros: the same convolution."""
    import torch

    pads: list[int] = []
    for have, want in zip(reversed(weight.shape[2:]), reversed(kernel), strict=True):
        pads += [(want - have) // 2, (want - have) // 2]
    return torch.nn.functional.pad(weight, pads)


def _plans_v2(
    plans: Mapping[str, Any], stage: int, state: Mapping[str, torch.Tensor], folder: Path
) -> dict[str, Any]:
    """``plans.json`` of v2 with the one configuration of `stage`."""
    stages = sorted(plans["plans_per_stage"])
    old = plans["plans_per_stage"][stage]
    if len(old["patch_size"]) != 3:
        raise WeightsUnsupported(f"{folder} holds a 2D network; give 3d_lowres or 3d_fullres")
    if int(plans["num_modalities"]) != 1 or plans["normalization_schemes"][0] != "CT":
        raise WeightsUnsupported(f"{folder} was not trained on CT alone")
    if any(plans["use_mask_for_norm"].values()):
        raise WeightsUnsupported(f"{folder} normalises within a mask, which is not done for CT")
    strides = [[1, 1, 1], *_pools(old)]
    levels = len(strides)
    convs = 1 + max(int(k.split(".")[5]) for k in state if k.startswith("encoder.stages.0.0.convs."))
    features, kernels = [], []
    for r in range(levels):
        weight = state[f"encoder.stages.{r}.0.convs.0.conv.weight"]
        features.append(int(weight.shape[0]))
        kernels.append([int(k) for k in weight.shape[2:]])
    intensity = plans["dataset_properties"]["intensityproperties"][0]
    forward = [int(i) for i in plans.get("transpose_forward") or (0, 1, 2)]
    backward = [int(i) for i in plans.get("transpose_backward") or (0, 1, 2)]
    resampling = {"order_z": 0, "force_separate_z": None}
    task = next((p for p in reversed(folder.resolve().parts) if re.match(r"Task\d+_", p)), folder.name)
    spacing = [float(s) for s in old["current_spacing"]]
    median = [round(float(n)) for n in old["median_patient_size_in_voxels"]]
    configuration = {
        "data_identifier": f"{text_of(plans.get('data_identifier', 'nnUNetData'))}_stage{stage}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": int(old["batch_size"]),
        "patch_size": [int(p) for p in old["patch_size"]],
        "median_image_size_in_voxels": median,
        "spacing": spacing,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **resampling},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": levels,
                "features_per_stage": features,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": kernels,
                "strides": strides,
                "n_conv_per_stage": [convs] * levels,
                "n_conv_per_stage_decoder": [convs] * (levels - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"negative_slope": 0.01, "inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    return {
        "dataset_name": task,
        "plans_name": "nnUNetPlans_v1",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": median,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": forward,
        "transpose_backward": backward,
        "configurations": {_configuration(stage, stages): configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {
                "mean": float(intensity["mean"]),
                "median": float(intensity["median"]),
                "std": float(intensity["sd"]),
                "min": float(intensity["mn"]),
                "max": float(intensity["mx"]),
                "percentile_00_5": float(intensity["percentile_00_5"]),
                "percentile_99_5": float(intensity["percentile_99_5"]),
            }
        },
    }
