"""Builds nnU-Net v1 results without nnU-Net v1.

`GenericUNet` is an independent rebuild of the architecture of nnunet 1.7.1 (strided convolutions, transposed
convolutions, instance norm, leaky ReLU) with that project's parameter names, written from its plans and
checkpoints; the converter's result is compared with what it computes.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class _Block(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(cin, cout, kernel, stride, [k // 2 for k in kernel])
        self.instnorm = nn.InstanceNorm3d(cout, eps=1e-5, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.leaky_relu(self.instnorm(self.conv(x)), 0.01)


class _Stack(nn.Module):
    def __init__(self, cin: int, cout: int, n: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        first = _Block(cin, cout, kernel, stride)
        self.blocks = nn.Sequential(first, *(_Block(cout, cout, kernel, [1, 1, 1]) for _ in range(n - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class GenericUNet(nn.Module):
    """Logits of the highest resolution, as v1 gives them at prediction."""

    def __init__(
        self, classes: int, base: int, pools: list[list[int]], kernels: list[list[int]], convs: int = 2
    ) -> None:
        super().__init__()
        depth, one = len(pools), [1, 1, 1]
        width = [min(320, base * 2**i) for i in range(depth + 1)]
        self.conv_blocks_context = nn.ModuleList()
        for d in range(depth):
            stride = one if d == 0 else pools[d - 1]
            self.conv_blocks_context.append(
                _Stack(1 if d == 0 else width[d - 1], width[d], convs, kernels[d], stride)
            )
        lowest = _Stack(width[-2], width[-1], convs - 1, kernels[-1], pools[-1])
        self.conv_blocks_context.append(
            nn.Sequential(lowest, _Stack(width[-1], width[-1], 1, kernels[-1], one))
        )
        self.conv_blocks_localization = nn.ModuleList()
        self.tu = nn.ModuleList()
        self.seg_outputs = nn.ModuleList()
        for u in range(depth):
            skip = width[depth - 1 - u]
            pool, kernel = pools[-(u + 1)], kernels[-(u + 1)]
            self.tu.append(nn.ConvTranspose3d(width[depth - u], skip, pool, pool, bias=False))
            first = _Stack(2 * skip, skip, convs - 1, kernel, one)
            self.conv_blocks_localization.append(nn.Sequential(first, _Stack(skip, skip, 1, kernel, one)))
            self.seg_outputs.append(nn.Conv3d(skip, classes, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.conv_blocks_context[:-1]:
            x = block(x)
            skips.append(x)
        x = self.conv_blocks_context[-1](x)
        for up, block in zip(self.tu, self.conv_blocks_localization, strict=True):
            x = block(torch.cat((up(x), skips.pop()), 1))
        return self.seg_outputs[-1](x)


def random_network(
    seed: int, classes: int, base: int, pools: list[list[int]], kernels: list[list[int]], convs: int = 2
) -> GenericUNet:
    """Random weights, norm and biases included, with activations of sensible size."""
    torch.manual_seed(seed)
    network = GenericUNet(classes, base, pools, kernels, convs).eval()
    for name, parameter in network.named_parameters():
        if name.endswith("instnorm.weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return network


def plans_of(
    pools: list[list[int]],
    kernels: list[list[int]],
    patch: tuple[int, int, int],
    *,
    stages: int = 2,
    classes: tuple[int, ...] = (1,),
    transpose: tuple[int, int, int] = (0, 1, 2),
) -> dict[str, Any]:
    """A ``plans.pkl`` with the types that v1 writes: NumPy numbers, arrays and OrderedDicts."""
    stage = {
        "batch_size": 2,
        "num_pool_per_axis": [int(sum(p[a] > 1 for p in pools)) for a in range(3)],
        "patch_size": np.array(patch),
        "median_patient_size_in_voxels": np.array([90, 100, 110]),
        "current_spacing": np.array([3.0, 2.0, 2.0]),
        "original_spacing": np.array([2.5, 0.9, 0.9]),
        "do_dummy_2D_data_aug": False,
        "pool_op_kernel_sizes": pools,
        "conv_kernel_sizes": kernels,
    }
    intensity = OrderedDict(
        median=np.float32(40),
        mean=np.float32(30.5),
        sd=np.float32(80.25),
        mn=np.float32(-900),
        mx=np.float32(2000),
        percentile_99_5=np.float64(301),
        percentile_00_5=np.float64(-202),
    )
    return {
        "num_stages": stages,
        "num_modalities": 1,
        "modalities": {0: "CT"},
        "normalization_schemes": OrderedDict([(0, "CT")]),
        "dataset_properties": {"intensityproperties": OrderedDict([(0, intensity)])},
        "original_sizes": [np.array([120, 512, 512])],
        "num_classes": len(classes),
        "all_classes": list(classes),
        "base_num_features": 32,
        "use_mask_for_norm": OrderedDict([(0, False)]),
        "keep_only_largest_region": None,
        "transpose_forward": list(transpose),
        "transpose_backward": [int(i) for i in np.argsort(transpose)],
        "data_identifier": "nnUNetData_plans_v2.1",
        "plans_per_stage": {
            i: {**stage, "current_spacing": np.array([3.0, 2.0, 2.0]) / (1 + i)} for i in range(stages)
        },
        "conv_per_stage": 2,
    }


def write_results(
    root: Path,
    plans: dict[str, Any],
    networks: list[nn.Module],
    *,
    stage: int | None = 0,
    trainer: str = "nnUNetTrainerV2",
    configuration: str = "3d_lowres",
    task: str = "Task400_OPEN_HEART",
    folds: str = "fold_{}",
) -> Path:
    """``<configuration>/<task>/<trainer>__…/`` with plans and one folder per network."""
    folder = root / configuration / task / f"{trainer}__nnUNetPlansv2.1"
    for i, network in enumerate(networks):
        fold = folder / folds.format(i)
        fold.mkdir(parents=True)
        checkpoint = {
            "epoch": 1000,
            "state_dict": network.state_dict(),
            "optimizer_state_dict": torch.optim.SGD(network.parameters(), 0.01).state_dict(),
            "lr_scheduler_state_dict": None,
            "plot_stuff": ([np.float64(-0.5)], [np.float32(-0.4)], [], [np.float64(0.9)]),
            "best_stuff": (None, np.float64(0.1), 0.2),
        }
        torch.save(checkpoint, fold / "model_final_checkpoint.model")
        init = (
            "plans.pkl",
            i if fold.name.startswith("fold_") else fold.name,
            "out",
            "data",
            True,
            stage,
            True,
            False,
            True,
        )
        info = OrderedDict(init=init, name=trainer, plans=plans)
        (fold / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps(info))
    (folder / "plans.pkl").write_bytes(pickle.dumps(plans))
    return folder
