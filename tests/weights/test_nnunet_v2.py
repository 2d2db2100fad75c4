"""nnU-Net v2 results converted: same tensors, same plans, no pickle left."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from deepcac2.errors import WeightsError, WeightsMissing, WeightsUnsupported
from deepcac2.models.heart.network import HeartModel
from deepcac2.weights import convert_nnunet_v1, convert_nnunet_v2, verify

CPU = torch.device("cpu")
SMALL = ([[2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3)


@pytest.fixture
def results(v1, tmp_path):
    """Results of nnunetv2 with random weights, and the network; the plans come from the v1 converter."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    source = v1.write_results(
        tmp_path / "v1", v1.plans_of(*SMALL, (16, 16, 16)), [v1.random_network(0, 2, 4, *SMALL)]
    )
    made = convert_nnunet_v1(source, tmp_path / "plans")
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    (folder / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        (folder / name).write_text((made.path / name).read_text())
    plans = json.loads((folder / "plans.json").read_text())
    plan = PlansManager(plans).get_configuration("3d_lowres")
    torch.manual_seed(3)
    network = get_network_from_plans(
        plan.network_arch_class_name,
        plan.network_arch_init_kwargs,
        plan.network_arch_init_kwargs_req_import,
        1,
        2,
        deep_supervision=False,
    ).eval()
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.SGD(network.parameters(), 0.01, momentum=0.9).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.9)], "train_losses": [np.float32(-0.5)]},
        "_best_ema": np.float64(0.8),
        "current_epoch": 5,
        "init_args": {"plans": plans, "configuration": "3d_lowres", "fold": 0, "device": CPU},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder, network


def test_network_is_the_same_and_no_pickle_is_left(results, tmp_path):
    folder, network = results
    found = convert_nnunet_v2(folder, tmp_path / "out", name="mine", licence="CC BY 4.0")
    verify(found)
    assert sorted(p.name for p in found.path.iterdir()) == [
        "dataset.json",
        "fold_0.safetensors",
        "plans.json",
        "weights.json",
    ]
    assert found.name == "mine"
    assert found.metadata["mirror_axes"] == [0, 1, 2]
    assert found.metadata["licence"] == "CC BY 4.0"
    data = torch.randn(16, 16, 16)
    with torch.inference_mode():
        expected = network(data[None, None])[0]
    assert torch.allclose(HeartModel.load(found, CPU).logits(data), expected, atol=1e-5)


def test_an_offset_of_the_heart_is_taken_from_its_logit(results, tmp_path):
    folder, network = results
    found = convert_nnunet_v2(folder, tmp_path / "out", heart_offset=1.5)
    verify(found)
    assert found.metadata["heart_offset"] == 1.5
    data = torch.randn(16, 16, 16)
    with torch.inference_mode():
        expected = network(data[None, None])[0]
    expected = expected - torch.tensor([0.0, 1.5])[:, None, None, None]
    assert torch.allclose(HeartModel.load(found, CPU).logits(data), expected, atol=1e-5)


def test_converting_again_replaces_the_set_but_nothing_else(results, tmp_path):
    folder, _ = results
    convert_nnunet_v2(folder, tmp_path / "out")
    verify(convert_nnunet_v2(folder, tmp_path / "out"))
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(WeightsError, match=r"thesis\.tex"):
        convert_nnunet_v2(folder, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_missing_pieces_are_named(results, tmp_path):
    folder, _ = results
    with pytest.raises(WeightsMissing, match=r"checkpoint_best\.pth"):
        convert_nnunet_v2(folder, tmp_path / "out", checkpoint="checkpoint_best.pth")
    (folder / "plans.json").unlink()
    with pytest.raises(WeightsMissing, match=r"plans\.json"):
        convert_nnunet_v2(folder, tmp_path / "out")


def test_a_checkpoint_with_code_is_refused(results, tmp_path):
    folder, _ = results
    torch.save({"network_weights": {}, "x": Exception}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(WeightsUnsupported, match="more than weights"):
        convert_nnunet_v2(folder, tmp_path / "out")
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"nothing")
    with pytest.raises(WeightsUnsupported):
        convert_nnunet_v2(folder, tmp_path / "out")


def test_regions_are_refused(results, tmp_path):
    folder, _ = results
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "whole": [1, 2], "part": 2}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(WeightsUnsupported, match="regions"):
        convert_nnunet_v2(folder, tmp_path / "out")
