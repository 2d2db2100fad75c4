"""The heart model: against nnU-Net's own predictor, known geometry, and in any orientation."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from deepcac2.errors import WeightsAltered, WeightsError, WeightsMissing, WeightsUnsupported
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.resampling import interpolation_matrix, resample_to_shape
from deepcac2.models.heart.network import HeartModel, fill_positive
from deepcac2.weights import WeightSet, resolve, write_description
from deepcac2.weights.nnunet_v2 import unique_tensors, write_heart_set

CPU = torch.device("cpu")
SPACING = (6.0, 5.0, 5.0)
PATCH = (24, 32, 32)
LABELS = {"background": 0, "heart": 1}
CONFIGURATION = "3d_fullres"


def _plans(*, spacing=SPACING, patch=PATCH, transpose=(0, 1, 2), linear=True) -> dict:
    """A plans.json for a U-Net of three stages; `linear` chooses the resampling of nnU-Net's own pipeline."""
    kwargs = {"is_seg": False, "force_separate_z": False}
    if not linear:
        kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_torch_fornnunet" if linear else "resample_data_or_seg_to_shape"
    return {
        "dataset_name": "Dataset999_Balls",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": list(patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": [int(i) for i in np.argsort(transpose)],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 0.0, "std": 200.0, "median": 0.0, "min": -500.0, "max": 500.0}
            | {"percentile_00_5": -500.0, "percentile_99_5": 300.0}
        },
        "configurations": {
            CONFIGURATION: {
                "data_identifier": "balls",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "median_image_size_in_voxels": list(patch),
                "spacing": list(spacing),
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": function,
                "resampling_fn_seg": function,
                "resampling_fn_data_kwargs": kwargs,
                "resampling_fn_seg_kwargs": {**kwargs, "is_seg": True},
                "resampling_fn_probabilities": function,
                "resampling_fn_probabilities_kwargs": {**kwargs, **({} if linear else {"order": 1})},
                "batch_dice": False,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                    "arch_kwargs": {
                        "n_stages": 3,
                        "features_per_stage": [6, 12, 24],
                        "conv_op": "torch.nn.modules.conv.Conv3d",
                        "kernel_sizes": [[3, 3, 3]] * 3,
                        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
                        "n_conv_per_stage": [1, 1, 1],
                        "n_conv_per_stage_decoder": [1, 1],
                        "conv_bias": True,
                        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


def _network(plans: dict) -> torch.nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plan = PlansManager(plans).get_configuration(CONFIGURATION)
    return get_network_from_plans(
        plan.network_arch_class_name,
        plan.network_arch_init_kwargs,
        plan.network_arch_init_kwargs_req_import,
        1,
        2,
        allow_init=True,
        deep_supervision=False,
    )


def _write(folder: Path, plans: dict, folds: list[dict[str, torch.Tensor]], **metadata) -> WeightSet:
    return write_heart_set(
        folder,
        name="balls",
        plans=plans,
        dataset={"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 1, "file_ending": ".nii.gz"},
        folds={f"fold_{i}.safetensors": unique_tensors(s) for i, s in enumerate(folds)},
        configuration=CONFIGURATION,
        mirror_axes=metadata.pop("mirror_axes", ()),
        labels=(1,),
        source={},
        **metadata,
    )


def _scene(grid: Geometry, centre: tuple[float, float, float], radius: float, seed: int = 0) -> Volume:
    """A ball of 60 HU (LPS centre and radius in mm) in "lung", with a bright bar and noise."""
    z, y, x = (np.arange(n) for n in grid.shape)
    index = np.stack(np.meshgrid(z, y, x, indexing="ij"), axis=-1)
    lps = grid.to_lps(index)
    hu = np.full(grid.shape, -800.0)
    hu[np.abs(lps[..., 1] - 60) < 12] = 250.0
    hu[np.linalg.norm(lps - np.array(centre), axis=-1) < radius] = 60.0
    hu += np.random.default_rng(seed).normal(0, 30, grid.shape)
    return Volume(hu=hu.round().astype(np.int16), geometry=grid)


def _ball(grid: Geometry, centre: tuple[float, float, float], radius: float) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return np.linalg.norm(grid.to_lps(index) - np.array(centre), axis=-1) < radius


def _grid(shape=(80, 120, 128), spacing=(3.0, 2.0, 2.0)) -> Geometry:
    extent = np.array(shape) * spacing
    return Geometry(shape=shape, spacing=spacing, origin=(-extent[2] / 2, -extent[1] / 2, -extent[0] / 2))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """A network that finds balls: a minute part of a real training, so that masks are smooth and sensible."""
    torch.manual_seed(0)
    network = _network(_plans())
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    rng = np.random.default_rng(0)
    for _ in range(80):
        grid = _grid(PATCH, SPACING)
        grid = replace(
            grid,
            origin=tuple(float(o + d) for o, d in zip(grid.origin, rng.uniform(-60, 60, 3), strict=True)),
        )
        centre = tuple(float(c) for c in rng.uniform(-60, 60, 3))
        radius = float(rng.uniform(25, 45))
        volume = _scene(grid, centre, radius, int(rng.integers(1 << 30)))
        image = torch.from_numpy(np.clip(volume.hu, -500, 300) / 200.0).float()[None, None]
        label = torch.from_numpy(_ball(grid, centre, radius)).float()[None]
        logits = network(image)
        margin = logits[:, 1] - logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(margin, label)
        p = margin.sigmoid()
        loss = loss + 1 - 2 * (p * label).sum() / (p.sum() + label.sum())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {k: v.detach() for k, v in network.state_dict().items()}


@pytest.fixture(scope="module")
def balls(trained, tmp_path_factory) -> HeartModel:
    return HeartModel.load(_write(tmp_path_factory.mktemp("w") / "set", _plans(), [trained]), CPU)


def _nnunet(plans: dict, state: dict[str, torch.Tensor]):
    """nnU-Net's own predictor with the same weights."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    network = _network(plans)
    manager = PlansManager(plans)
    predictor = nnUNetPredictor(use_mirroring=False, device=CPU, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration(CONFIGURATION),
        [state],
        {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"},
        "nnUNetTrainer",
        None,
    )
    return predictor


@pytest.mark.parametrize("linear", [True, False], ids=["torch linear", "cubic splines"])
def test_mask_is_that_of_nnunets_own_pipeline(trained, tmp_path, linear):
    plans = _plans(linear=linear)
    model = HeartModel.load(_write(tmp_path / "set", plans, [trained]), CPU)
    volume = _scene(_grid(), (20.0, -30.0, 15.0), 40.0)
    predictor = _nnunet(plans, trained)
    theirs = predictor.predict_single_npy_array(
        volume.hu[None].astype(np.float32), {"spacing": list(volume.geometry.spacing)}
    )
    labels, _ = scipy.ndimage.label(theirs == 1)
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    ours = model.predict(volume).mask
    assert _dice(ours, largest) >= 0.999


def test_thick_slices_come_to_the_network_as_in_nnunet(trained, tmp_path):
    """Spacing ratio above 3: nnU-Net resamples within slices and takes the nearest slice across."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = _plans(linear=False)
    model = HeartModel.load(_write(tmp_path / "set", plans, [trained]), CPU)
    volume = _scene(_grid((48, 120, 128), (5.0, 1.5, 1.5)), (0.0, 0.0, 0.0), 40.0)
    manager = PlansManager(plans)
    data, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        volume.hu[None].astype(np.float32),
        None,
        {"spacing": list(volume.geometry.spacing)},
        manager,
        manager.get_configuration(CONFIGURATION),
        {"channel_names": {"0": "CT"}, "labels": LABELS},
    )
    kinds = model.resampling.kinds(volume.geometry.spacing, SPACING)
    assert kinds == ("nearest", "cubic", "cubic")
    ours = resample_to_shape(volume.hu, data.shape[1:], clip=(-500, 300), kinds=kinds).numpy() / 200
    # nnU-Net keeps each slice within its own range, here all are kept within the clipping's.
    assert np.quantile(np.abs(ours - data[0]), 0.99) < 1e-4


def test_sliding_window_equals_nnunets(trained, balls):
    torch.manual_seed(1)
    data = torch.randn(41, 30, 50)  # several tiles, and one axis shorter than the patch
    theirs = _nnunet(_plans(), trained)
    theirs.network.load_state_dict(trained)
    expected = theirs.predict_sliding_window_return_logits(data[None]).float()
    # nnU-Net sums up in half precision, in which the weights at the corners of the outer tiles have no
    # digits left: there it is off by up to a half.
    difference = (balls.logits(data) - expected).abs()
    assert torch.quantile(difference, 0.9) < 0.01
    assert difference.max() < 1


def test_ball_is_found_and_measured(balls):
    grid, centre, radius = _grid(), (20.0, -30.0, 15.0), 40.0
    found = balls.predict(_scene(grid, centre, radius))
    assert found.found
    assert _dice(found.mask, _ball(grid, centre, radius)) > 0.75
    assert np.allclose(found.centre_lps, centre, atol=4)
    assert np.allclose(found.centre_index, scipy.ndimage.center_of_mass(found.mask))
    assert np.allclose(grid.to_lps(found.centre_index), found.centre_lps)
    assert found.volume_ml == pytest.approx(found.mask.sum() * 12 / 1000)
    assert found.touches_border == ()
    assert 0 <= found.probability_range[0] < 0.5 < found.probability_range[1] <= 1
    for axis, (start, stop) in enumerate(found.box):
        hit = np.flatnonzero(found.mask.any(axis=tuple(a for a in range(3) if a != axis)))
        assert (start, stop) == (hit[0], hit[-1] + 1)
    assert scipy.ndimage.label(found.mask)[1] == 1


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(order, marks=() if order in ((0, 1, 2), (2, 0, 1)) else pytest.mark.slow)
        for order in permutations(range(3))
    ],
)
def test_orientation_does_not_matter(balls, order):
    volume = _scene(_grid(), (20.0, -30.0, 15.0), 40.0)
    reference = balls.predict(volume)
    g = volume.geometry
    some = [(), (0,), (1, 2), (0, 1, 2)] if order == (0, 1, 2) else [(0,), (1, 2)]
    for flips in some:
        corner = [g.shape[a] - 1 if a in flips else 0 for a in range(3)]
        axes = [tuple((-1 if a in flips else 1) * np.array(g.axes[a])) for a in range(3)]
        turned = Geometry(
            shape=tuple(g.shape[a] for a in order),
            spacing=tuple(g.spacing[a] for a in order),
            origin=tuple(g.to_lps(corner)),
            axes=tuple(axes[a] for a in order),
        )
        hu = np.ascontiguousarray(np.flip(volume.hu, flips).transpose(order))
        found = balls.predict(Volume(hu=hu, geometry=turned))
        expected = np.flip(reference.mask, flips).transpose(order)
        assert (found.mask != expected).sum() <= 1e-4 * expected.sum()
        assert np.allclose(found.centre_lps, reference.centre_lps, atol=0.01)


def test_transposed_network_sees_the_same(trained, balls, tmp_path):
    """The same network with permuted axes, under plans that say so, gives the same mask."""
    forward = (2, 0, 1)
    plans = _plans(
        spacing=[SPACING[i] for i in forward], patch=[PATCH[i] for i in forward], transpose=forward
    )
    permuted = {
        k: v.permute(0, 1, *(2 + i for i in forward)).contiguous() if v.ndim == 5 else v
        for k, v in trained.items()
    }
    model = HeartModel.load(_write(tmp_path / "set", plans, [permuted]), CPU)
    volume = _scene(_grid(), (20.0, -30.0, 15.0), 40.0)
    expected = balls.predict(volume).mask
    assert (model.predict(volume).mask != expected).sum() <= 1e-4 * expected.sum()


def test_nothing_found_is_an_empty_mask(balls):
    grid = _grid()
    empty = balls.predict(Volume(hu=np.full(grid.shape, -1000, np.int16), geometry=grid))
    assert not empty.found
    assert not empty.mask.any()
    assert empty.mask.shape == grid.shape
    assert empty.centre_lps is None
    assert empty.volume_ml == 0
    assert empty.touches_border == ()


def test_a_cut_heart_touches_the_border(balls):
    grid, centre = _grid(), (0.0, -20.0, 0.0)
    volume = _scene(grid, centre, 40.0)
    start = 38  # the ball's middle lies at slice 40
    cut = replace(
        grid, shape=(grid.shape[0] - start, *grid.shape[1:]), origin=tuple(grid.to_lps((start, 0, 0)))
    )
    found = balls.predict(Volume(hu=volume.hu[start:], geometry=cut))
    assert found.touches_border == ("feet",)


def test_folds_are_averaged(trained, tmp_path):
    other = {k: v * 1.1 for k, v in trained.items()}
    singles = [
        HeartModel.load(_write(tmp_path / str(i), _plans(), [s]), CPU) for i, s in enumerate((trained, other))
    ]
    both = HeartModel.load(_write(tmp_path / "both", _plans(), [trained, other]), CPU)
    data = torch.randn(PATCH)
    expected = (singles[0].logits(data) + singles[1].logits(data)) / 2
    assert torch.allclose(both.logits(data), expected, atol=1e-4)


def test_mirroring_is_an_option(trained, tmp_path):
    weights = _write(tmp_path / "set", _plans(), [trained], mirror_axes=(0, 2))
    data = torch.randn(PATCH)
    plain, mirrored = HeartModel.load(weights, CPU), HeartModel.load(weights, CPU, mirror=True)
    flips = [(), (0,), (2,), (0, 2)]
    expected = sum(torch.flip(plain.logits(torch.flip(data, f)), [a + 1 for a in f]) for f in flips) / 4
    assert torch.allclose(mirrored.logits(data), expected, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(10, 4), (4, 11), (7, 7), (1, 3), (5, 1)])
def test_interpolation_is_that_of_torch(old, new):
    values = torch.randn(1, 1, old, old)
    matrix = torch.from_numpy(interpolation_matrix(old, new))
    expected = torch.nn.functional.interpolate(values, (new, new), mode="bilinear", align_corners=False)
    assert torch.allclose(matrix @ values[0, 0] @ matrix.T, expected[0, 0], atol=1e-5)
    matrix = torch.from_numpy(interpolation_matrix(old, new, "smooth"))
    expected = torch.nn.functional.interpolate(values, (new, new), mode="bilinear", antialias=True)
    assert torch.allclose(matrix @ values[0, 0] @ matrix.T, expected[0, 0], atol=1e-5)


@pytest.mark.parametrize(("kind", "order"), [("nearest", 0), ("linear", 1), ("cubic", 3)])
def test_resampling_is_that_of_scipy(kind, order):
    array = np.random.default_rng(0).integers(-1000, 1000, (40, 9, 12)).astype(np.int16)
    shape = (21, 20, 6)
    zoom = [n / o for n, o in zip(shape, array.shape, strict=True)]
    clipped = array.clip(-500, 300).astype(float)
    expected = scipy.ndimage.zoom(clipped, zoom, order=order, mode="nearest", grid_mode=True).clip(-500, 300)
    assert np.allclose(
        resample_to_shape(array, shape, clip=(-500, 300), kinds=(kind,) * 3).numpy(), expected, atol=0.01
    )


@pytest.mark.parametrize("box", [((3, 7), (2, 6), (4, 8)), ((0, 4), (5, 8), (0, 9))])
def test_only_the_box_is_filled_and_it_is_filled_right(box):
    margin = -torch.ones(8, 8, 9)
    margin[tuple(slice(a, b) for a, b in box)] = torch.rand(*(b - a for a, b in box)) + 0.1
    mask = np.zeros((19, 40, 33), bool)
    fill_positive(margin, mask, box)
    full = torch.nn.functional.interpolate(margin[None, None], mask.shape, mode="trilinear")[0, 0]
    undecided = full.abs().numpy() < 1e-5
    assert ((mask == (full > 0).numpy()) | undecided).all()


def test_altered_weights_are_refused(trained, tmp_path):
    weights = _write(tmp_path / "set", _plans(), [trained])
    plans = json.loads((weights.path / "plans.json").read_text())
    plans["configurations"][CONFIGURATION]["spacing"] = [1.0, 1.0, 1.0]
    (weights.path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(WeightsAltered, match=r"plans\.json was altered"):
        HeartModel.load(weights, CPU)


@pytest.mark.parametrize("name", ["os.system", "dynamic_network_architectures.architectures.unet.os"])
def test_plans_cannot_name_any_code(trained, tmp_path, name):
    plans = _plans()
    plans["configurations"][CONFIGURATION]["architecture"]["network_class_name"] = name
    with pytest.raises(WeightsUnsupported, match="not nnU-Net's own"):
        HeartModel.load(_write(tmp_path / "set", plans, [trained]), CPU)


def test_plans_cannot_name_any_layer(trained, tmp_path):
    plans = _plans()
    plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["nonlin"] = "builtins.exec"
    with pytest.raises(WeightsUnsupported, match="not torch's own"):
        HeartModel.load(_write(tmp_path / "set", plans, [trained]), CPU)


def test_other_normalisation_is_refused(trained, tmp_path):
    plans = _plans()
    plans["configurations"][CONFIGURATION]["normalization_schemes"] = ["ZScoreNormalization"]
    with pytest.raises(WeightsUnsupported, match="not trained on CT"):
        HeartModel.load(_write(tmp_path / "set", plans, [trained]), CPU)


def test_tensors_must_fit_the_plans(trained, tmp_path):
    plans = _plans()
    plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["features_per_stage"] = [6, 12, 25]
    with pytest.raises(WeightsError, match="does not fit"):
        HeartModel.load(_write(tmp_path / "set", plans, [trained]), CPU)


def test_calcium_weights_are_no_heart(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    write_description(tmp_path, name="c", role="calcium", files=["model.safetensors"])
    with pytest.raises(WeightsError, match="holds calcium weights"):
        HeartModel.load(tmp_path, CPU)


@pytest.fixture(scope="module")
def bundled() -> HeartModel:
    try:
        return HeartModel.load("bundled", CPU)
    except WeightsMissing:
        pytest.skip("needs the bundled heart weights, which this checkout does not have yet")


def test_bundled_weights_find_the_heart_of_a_simulated_patient(bundled, simulated):
    from deepcac2.dicom import discover, read_segmentation, read_series

    volume = read_series(discover(simulated / "SIM-0003" / "ct").series[0]).volume
    truth = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)
    assert _dice(bundled.predict(volume).mask, truth["heart"]) >= 0.93


@pytest.mark.parametrize("case", ["0187", "0506"])
def test_bundled_weights_find_the_heart_of_a_real_patient(bundled, shared_data, case):
    """The two scans were part of the training: this checks orientation and grids, not accuracy."""
    from deepcac2.imaging.files import read_image

    image, grid = read_image(shared_data / "labelled" / case / "image_3mm.nrrd")
    label, _ = read_image(shared_data / "labelled" / case / "mask_3mm.nrrd")
    found = bundled.predict(Volume(hu=np.clip(image, -1024, 3071).astype(np.int16), geometry=grid))
    heart = np.isin(label, (1, 3))
    assert _dice(found.mask, heart) >= 0.8
    centre = grid.to_lps(scipy.ndimage.center_of_mass(heart))
    assert np.linalg.norm(np.array(found.centre_lps) - centre) < 15


def test_bundled_files_are_what_the_manifest_says(bundled):
    from deepcac2.weights import verify

    verify(resolve("bundled", "heart"))
