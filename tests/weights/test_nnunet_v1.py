"""nnU-Net v1 results converted: same logits, same plans, and no code from a pickle is run."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from deepcac2.errors import WeightsError, WeightsMissing, WeightsUnsupported
from deepcac2.models.heart.network import HeartModel
from deepcac2.weights import convert_nnunet_v1, load_json
from deepcac2.weights.checkpoints import read_plain_pickle

CPU = torch.device("cpu")
ISOTROPIC = ([[2, 2, 2]] * 4, [[3, 3, 3]] * 5)
ANISOTROPIC = ([[1, 2, 2], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]])
UNEVEN = ([[2, 2, 2], [2, 2, 2], [1, 2, 2]], [[3, 3, 3]] * 4)
SMALL = ([[2, 2, 2]], [[3, 3, 3]] * 2)


@pytest.mark.parametrize(
    ("topology", "base", "patch", "convs"),
    [
        pytest.param(ISOTROPIC, 32, (32, 48, 32), 2, id="five stages of up to 320 features"),
        pytest.param(ANISOTROPIC, 30, (8, 48, 64), 2, id="kernels of 1 x 3 x 3"),
        pytest.param(UNEVEN, 16, (16, 32, 32), 3, id="uneven pooling, three convolutions a stage"),
    ],
)
def test_logits_are_those_of_v1(v1, tmp_path, topology, base, patch, convs):
    network = v1.random_network(0, 2, base, *topology, convs)
    folder = v1.write_results(tmp_path, v1.plans_of(*topology, patch), [network])
    model = HeartModel.load(convert_nnunet_v1(folder, tmp_path / "out"), CPU)
    data = torch.randn(patch)
    with torch.inference_mode():
        expected = network(data[None, None])[0]
    assert expected.std() > 0.1
    assert (model.logits(data) - expected).abs().max() <= 1e-4


def test_plans_say_the_same(v1, tmp_path):
    plans = v1.plans_of(*ANISOTROPIC, (8, 48, 64), transpose=(1, 0, 2))
    network = v1.random_network(0, 2, 4, *ANISOTROPIC)
    v1.write_results(tmp_path / "v1", plans, [network])
    found = convert_nnunet_v1(tmp_path / "v1", tmp_path / "out", licence="CC BY-NC 4.0")
    assert found.name == "Task400_OPEN_HEART"
    assert found.role == "heart"
    assert found.metadata["licence"] == "CC BY-NC 4.0"
    assert found.metadata["configuration"] == "3d_lowres"
    assert found.metadata["heart_labels"] == [1]
    assert found.metadata["source"]["trainer"] == "nnUNetTrainerV2"
    assert sorted(found.metadata["source"]["files"]) == ["fold_0/model_final_checkpoint.model", "plans.pkl"]
    v2 = load_json(found, "plans.json")
    assert v2["transpose_forward"] == [1, 0, 2]
    assert v2["transpose_backward"] == [1, 0, 2]
    configuration = v2["configurations"]["3d_lowres"]
    assert configuration["spacing"] == [3.0, 2.0, 2.0]
    assert configuration["patch_size"] == [8, 48, 64]
    model = HeartModel.load(found, CPU)
    n = model.normalisation
    assert (n.lower, n.upper, n.mean, n.sd) == (-202.0, 301.0, 30.5, 80.25)
    assert model.transpose == (1, 0, 2)
    assert not list((tmp_path / "out").glob("*.pkl"))


def test_the_checkpoints_own_stage_is_taken(v1, tmp_path):
    network = v1.random_network(0, 2, 4, *SMALL)
    plans = v1.plans_of(*SMALL, (8, 8, 8))
    v1.write_results(tmp_path / "v1", plans, [network], stage=1, configuration="3d_fullres")
    found = convert_nnunet_v1(tmp_path / "v1", tmp_path / "out")
    assert found.metadata["configuration"] == "3d_fullres"
    assert found.metadata["input"]["spacing_mm"] == [1.5, 1.0, 1.0]
    with pytest.raises(WeightsUnsupported, match="is of 3d_fullres"):
        convert_nnunet_v1(tmp_path / "v1", tmp_path / "other", configuration="3d_lowres")


def test_several_results_must_be_told_apart(v1, tmp_path):
    network = v1.random_network(0, 2, 4, *SMALL)
    plans = v1.plans_of(*SMALL, (8, 8, 8))
    for stage, configuration in enumerate(("3d_lowres", "3d_fullres")):
        v1.write_results(tmp_path / "v1", plans, [network], stage=stage, configuration=configuration)
    with pytest.raises(WeightsMissing, match="several results"):
        convert_nnunet_v1(tmp_path / "v1", tmp_path / "out")
    found = convert_nnunet_v1(tmp_path / "v1", tmp_path / "out", configuration="3d_lowres")
    assert found.metadata["configuration"] == "3d_lowres"


def test_all_folds_are_converted_and_averaged(v1, tmp_path):
    networks = [v1.random_network(i, 2, 4, *SMALL) for i in range(2)]
    folder = v1.write_results(tmp_path, v1.plans_of(*SMALL, (8, 8, 8)), networks)
    model = HeartModel.load(convert_nnunet_v1(folder, tmp_path / "out"), CPU)
    data = torch.randn(8, 8, 8)
    with torch.inference_mode():
        expected = sum(n(data[None, None])[0] for n in networks) / 2
    assert (model.logits(data) - expected).abs().max() <= 1e-4


def test_the_network_of_fold_all_is_taken_alone(v1, tmp_path):
    """nnU-Net v1 trains ``fold all`` on everything and keeps it in ``all`` in place of ``fold_0`` to 4."""
    plans, task = v1.plans_of(*SMALL, (8, 8, 8)), "Task400_OPEN_HEART_1FOLD"
    everything, *others = (v1.random_network(i, 2, 4, *SMALL) for i in range(3))
    folder = v1.write_results(tmp_path, plans, [everything], task=task, folds="all")
    data = torch.randn(8, 8, 8)
    with torch.inference_mode():
        expected = everything(data[None, None])[0]
        mean = sum(n(data[None, None])[0] for n in others) / 2

    found = convert_nnunet_v1(folder, tmp_path / "alone")
    assert (found.name, found.metadata["configuration"]) == (task, "3d_lowres")
    assert sorted(found.metadata["source"]["files"]) == ["all/model_final_checkpoint.model", "plans.pkl"]
    assert (HeartModel.load(found, CPU).logits(data) - expected).abs().max() <= 1e-4
    with pytest.raises(WeightsMissing, match=r"no fold_\*/"):
        convert_nnunet_v1(folder, tmp_path / "none", folds="each")

    v1.write_results(tmp_path, plans, others, task=task)
    with pytest.raises(WeightsError, match=r"both 'all' and fold_0: .* --folds each"):
        convert_nnunet_v1(folder, tmp_path / "unclear")
    for folds, logits in (("all", expected), ("each", mean)):
        model = HeartModel.load(convert_nnunet_v1(folder, tmp_path / folds, folds=folds), CPU)
        assert (model.logits(data) - logits).abs().max() <= 1e-4


def test_which_class_is_heart_must_be_clear(v1, tmp_path):
    network = v1.random_network(0, 3, 4, *SMALL)
    folder = v1.write_results(tmp_path, v1.plans_of(*SMALL, (8, 8, 8), classes=(1, 2)), [network])
    with pytest.raises(WeightsError, match="--heart-label"):
        convert_nnunet_v1(folder, tmp_path / "out")
    with pytest.raises(WeightsError, match="no class 5"):
        convert_nnunet_v1(folder, tmp_path / "out", labels=[5])
    found = convert_nnunet_v1(folder, tmp_path / "out", labels=[2])
    assert HeartModel.load(found, CPU).heart_labels == (2,)


@pytest.mark.parametrize("trainer", ["nnUNetTrainerV2_ReLU", "nnUNetTrainerV2CascadeFullRes"])
def test_other_networks_are_refused(v1, tmp_path, trainer):
    network = v1.random_network(0, 2, 4, *SMALL)
    folder = v1.write_results(tmp_path, v1.plans_of(*SMALL, (8, 8, 8)), [network], trainer=trainer)
    with pytest.raises(WeightsUnsupported, match=trainer):
        convert_nnunet_v1(folder, tmp_path / "out")


def test_a_network_with_other_layers_is_refused(v1, tmp_path):
    network = v1.random_network(0, 2, 4, *SMALL)
    network.extra = torch.nn.Linear(2, 2)
    folder = v1.write_results(tmp_path, v1.plans_of(*SMALL, (8, 8, 8)), [network])
    with pytest.raises(WeightsUnsupported, match="extra"):
        convert_nnunet_v1(folder, tmp_path / "out")


class _Mischief:
    def __reduce__(self):
        return os.mkdir, ("hacked",)


def test_no_code_of_a_pickle_runs(v1, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = v1.random_network(0, 2, 4, *SMALL)
    plans = v1.plans_of(*SMALL, (8, 8, 8))
    folder = v1.write_results(tmp_path, {**plans, "modalities": _Mischief()}, [network])
    with pytest.raises(WeightsUnsupported, match="more than plain data"):
        convert_nnunet_v1(folder, tmp_path / "out")
    (folder / "plans.pkl").write_bytes(pickle.dumps(plans))
    with pytest.raises(WeightsUnsupported, match="more than plain data"):  # in the .model.pkl
        convert_nnunet_v1(folder, tmp_path / "out")
    other = v1.write_results(tmp_path / "b", plans, [network])
    torch.save({"state_dict": _Mischief()}, other / "fold_0" / "model_final_checkpoint.model")
    with pytest.raises(WeightsUnsupported, match="more than weights"):
        convert_nnunet_v1(other, tmp_path / "out")
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(pickle.Pickler), b"\x80\x04cos\nsystem\n."]
)
def test_anything_else_is_no_plain_pickle(tmp_path, content):
    (tmp_path / "plans.pkl").write_bytes(content)
    with pytest.raises(WeightsUnsupported):
        read_plain_pickle(tmp_path / "plans.pkl")


def test_missing_pieces_are_named(v1, tmp_path):
    with pytest.raises(WeightsMissing, match="no folder"):
        convert_nnunet_v1(tmp_path / "none", tmp_path / "out")
    with pytest.raises(WeightsMissing, match=r"no plans\.pkl"):
        convert_nnunet_v1(tmp_path, tmp_path / "out")
    network = v1.random_network(0, 2, 4, *SMALL)
    folder = v1.write_results(tmp_path, v1.plans_of(*SMALL, (8, 8, 8)), [network])
    with pytest.raises(WeightsMissing, match=r"model_best\.model"):
        convert_nnunet_v1(folder, tmp_path / "out", checkpoint="model_best")
