"""The published DeepCAC2: its network, and all that its authors' implementation does around it.

Judged by slow and literal restatements of the facts, which share nothing with the package.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from scipy import ndimage

from deepcac2.dicom import Series
from deepcac2.errors import WeightsUnsupported, WorkflowError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.crop import Patches
from deepcac2.imaging.labels import heart_labels
from deepcac2.imaging.masks import dilated
from deepcac2.models.deepcac2.grids import Grid
from deepcac2.models.deepcac2.predict import PublishedModel, Quirks
from deepcac2.models.deepcac2.sampling import Aligned, Labels, Oblique
from deepcac2.models.deepcac2.step import DeepCAC2RunnerOptions
from deepcac2.models.unet3d import PUBLISHED_WIDTHS, PublishedUNet, build, fold_norms, widths_of
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import build_stage
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, DOMAIN, HEART
from deepcac2.pipeline.step import Context
from deepcac2.pipeline.workflow import Workflow
from deepcac2.weights import convert_deepcac2, resolve

# --- the network ------------------------------------------------------------------------------------------


def slow_network(x: torch.Tensor, tensors: dict[str, torch.Tensor], levels: int) -> torch.Tensor:
    """The network as plain functions, step by step."""

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = F.conv3d(F.pad(x, (1,) * 6), tensors[f"{name}.conv.{conv}.weight"])
            mean, var, scale, shift = (
                tensors[f"{name}.conv.{norm}.{k}"].view(1, -1, 1, 1, 1)
                for k in ("running_mean", "running_var", "weight", "bias")
            )
            x = ((x - mean) / torch.sqrt(var + 1e-5) * scale + shift).clamp(min=0)
        return x

    kept = []
    for i in range(levels):
        x = block(x, f"downs.{i}")
        kept.append(x)
        n, c, a, b, d = x.shape
        x = x.reshape(n, c, a // 2, 2, b // 2, 2, d // 2, 2).amax(dim=(3, 5, 7))
    x = block(x, "bottleneck")
    for i in range(levels):
        weight, bias = tensors[f"ups.{2 * i}.weight"], tensors[f"ups.{2 * i}.bias"]
        raised = torch.einsum("nixyz,iopqr->noxpyqzr", x, weight)
        n, c, a, _, b, _, d, _ = raised.shape
        raised = raised.reshape(n, c, 2 * a, 2 * b, 2 * d) + bias.view(1, -1, 1, 1, 1)
        x = block(torch.cat([kept[-1 - i], raised], dim=1), f"ups.{2 * i + 1}")
    weight, bias = tensors["final_conv.weight"], tensors["final_conv.bias"]
    return torch.einsum("nixyz,oi->noxyz", x, weight[:, :, 0, 0, 0]) + bias.view(1, -1, 1, 1, 1)


@pytest.mark.parametrize("widths", [(2, 3, 4, 5, 6), (3, 4), (2, 4, 8)])
def test_the_network_is_the_one_described(widths: tuple[int, ...], published: ModuleType) -> None:
    tensors = published.random_tensors(widths)
    network = build(tensors)
    assert not network.training
    described = published.Described(tensors)
    n = 2 ** (len(widths) - 1)
    patches = torch.rand(2, 1, 2 * n, n, n, generator=torch.Generator().manual_seed(1))
    found = network(patches)
    assert found.shape == patches.shape
    torch.testing.assert_close(found, slow_network(patches, tensors, len(widths) - 1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, described(patches), rtol=1e-4, atol=1e-4)
    fold_norms(network)
    assert not [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    torch.testing.assert_close(network(patches), found, rtol=1e-4, atol=1e-4)


def test_its_tensors_have_the_published_names_and_shapes(published: ModuleType) -> None:
    with torch.device("meta"):
        network = PublishedUNet()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == published.published_shapes(PUBLISHED_WIDTHS)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(90.3e6, rel=1e-3)
    assert widths_of(network.state_dict()) == PUBLISHED_WIDTHS


def test_half_precision_is_taken_as_float32_and_nothing_may_be_missing_or_over(
    published: ModuleType,
) -> None:
    tensors = published.random_tensors((2, 3, 4))
    halves = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    assert {t.dtype for t in build(halves).state_dict().values()} == {torch.float32, torch.int64}
    for name in ("final_conv.bias", "bottleneck.conv.0.weight", "downs.0.conv.0.weight"):
        with pytest.raises((KeyError, RuntimeError, ValueError)):
            build({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected"):
        build({**tensors, "extra": torch.zeros(1)})


# --- around the network -----------------------------------------------------------------------------------
#
# What follows does what TorchIO's transforms do, one after the other, on whole arrays (x, y, z), with
# SimpleITK, which is what TorchIO resamples with. Nothing is skipped and nothing is clever.

SIZES = Patches(crop_shape=(13, 24, 20), patch_shape=(4, 8, 8), patch_step=(2, 4, 4))
SPACING = (0.7, 0.7, 2.5)


def slow_resample(image: sitk.Image, reference: sitk.Image, interpolator: int) -> sitk.Image:
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(interpolator)
    resampler.SetReferenceImage(reference)
    return resampler.Execute(image)


def slow_grid(image: sitk.Image) -> sitk.Image:
    old, size = np.array(image.GetSpacing()), np.array(image.GetSize())
    new = np.array(SPACING)
    new_size = np.ceil(size * old / new).astype(int)
    new_size[size == 1] = 1
    origin = image.TransformContinuousIndexToPhysicalPoint((0.5 * (new / old - 1)).tolist())
    reference = sitk.Image(new_size.tolist(), sitk.sitkUInt8)
    reference.SetDirection(image.GetDirection())
    reference.SetSpacing(SPACING)
    reference.SetOrigin(origin)
    return reference


def slow_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(np.array(geometry.axes[::-1]).T.flatten().tolist())
    return image


def xyz(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).transpose()


def slow_bounds(heart: np.ndarray, target: tuple[int, ...]) -> tuple[list[tuple[int, int]], ...]:
    """Voxels to pad and to cut at both ends of each axis, as CropOrPad reckons them."""
    padding, cropping = [], []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        found = np.where(heart.any(axis=others))[0]
        centre = (found[0] + found[-1] + 1) / 2
        if (target[axis] % 2 == 0) != (centre % 1 == 0):
            centre -= 0.5
        begin, end = centre - target[axis] / 2, centre + target[axis] / 2
        padding.append((int(max(-begin, 0)), int(max(end - heart.shape[axis], 0))))
        cropping.append((int(max(begin, 0)), int(max(heart.shape[axis] - end, 0))))
    return padding, cropping


def slow_origin(grid: sitk.Image, *bounds: list[tuple[int, int]]) -> list[float]:
    """The grid's origin after padding, cropping, and the inverse of both: where slices lie halfway between
    two others, its last digit says which one is nearest."""
    matrix = np.array(grid.GetDirection()).reshape(3, 3) * np.array(grid.GetSpacing())
    origin = np.array(grid.GetOrigin())
    padding, cropping = (np.array([low for low, _ in bound]) for bound in bounds)
    for shift in (-padding, cropping, -cropping, padding):
        if shift.any():
            origin = np.dot(shift, matrix.T) + origin
    return [float(v) for v in origin]


def slow_published(volume: Volume, heart: np.ndarray, network: torch.nn.Module, sizes: Patches) -> np.ndarray:
    """The published result: bool (z, y, x); also the mean probability of the crop (x, y, z)."""
    ct = slow_image(volume.hu, volume.geometry)
    label = slow_image(heart.astype(np.uint8), volume.geometry)
    grid = slow_grid(ct)
    image = xyz(slow_resample(ct, grid, sitk.sitkLinear))
    hearts = xyz(slow_resample(label, grid, sitk.sitkNearestNeighbor))
    crop, patch, step = (s[::-1] for s in (sizes.crop_shape, sizes.patch_shape, sizes.patch_step))
    padding, cropping = slow_bounds(hearts, crop)

    def cut(array: np.ndarray) -> np.ndarray:
        padded = np.pad(array, padding)
        return padded[tuple(slice(a, n - b) for (a, b), n in zip(cropping, padded.shape, strict=True))]

    image, hearts = cut(image), cut(hearts)
    assert image.shape == crop
    values = torch.tensor(image).clamp(-135, 500).float()
    values = (values - values.mean()) / values.std()
    values = (values - values.min()) / (values.max() - values.min())

    total, cover = np.zeros(crop), np.zeros(crop)
    for x in range(0, crop[0] - patch[0], step[0]):
        for y in range(0, crop[1] - patch[1], step[1]):
            for z in range(0, crop[2] - patch[2], step[2]):
                at = np.s_[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
                if hearts[at].sum() > 0:
                    with torch.no_grad():
                        total[at] += network(values[at][None, None]).sigmoid()[0, 0].numpy()
                    cover[at] += 1
    cover[cover == 0] = 1
    found = (total / cover > 0.5).astype(np.uint8)

    whole = np.pad(found, cropping)
    whole = whole[tuple(slice(a, n - b) for (a, b), n in zip(padding, whole.shape, strict=True))]
    back = sitk.GetImageFromArray(whole.transpose())
    back.CopyInformation(grid)
    back.SetOrigin(slow_origin(grid, padding, cropping))
    return xyz(slow_resample(back, ct, sitk.sitkNearestNeighbor)).transpose().astype(bool)


def rotation(seed: int) -> np.ndarray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q


AXIAL = ((0, 0, 1), (0, 1, 0), (1, 0, 0))
CASES = {
    # shape (z, y, x), spacing (z, y, x), axes, heart box (z, y, x)
    "larger than the crop": ((40, 60, 55), (1.0, 0.5, 0.6), AXIAL, ((9, 30), (14, 45), (10, 41))),
    "smaller than the crop": ((11, 17, 13), (2.0, 0.9, 0.8), AXIAL, ((2, 9), (4, 12), (3, 10))),
    "heart at the border": ((23, 31, 29), (1.7, 0.75, 0.81), AXIAL, ((0, 8), (22, 31), (0, 12))),
    "slices every 1.25 mm": ((37, 41, 40), (1.25, 0.7, 0.7), AXIAL, ((4, 31), (9, 30), (7, 33))),
    "slices every 5 mm": ((9, 33, 47), (5.0, 0.8, 0.6), AXIAL, ((1, 7), (9, 26), (11, 40))),
    "the network's own grid": ((20, 40, 36), (2.5, 0.7, 0.7), AXIAL, ((3, 17), (8, 31), (5, 30))),
    "half and double": ((31, 50, 24), (1.25, 0.35, 1.4), AXIAL, ((5, 26), (10, 41), (4, 21))),
    "feet first, prone": (
        (30, 35, 33), (1.3, 0.65, 0.73), ((0, 0, -1), (0, -1, 0), (1, 0, 0)), ((5, 25), (7, 28), (6, 29))
    ),
    "coronal": (
        (45, 18, 39), (0.9, 1.9, 0.7), ((0, 1, 0), (0, 0, -1), (1, 0, 0)), ((8, 37), (2, 15), (6, 33))
    ),
    "oblique": ((33, 37, 35), (1.1, 0.69, 0.83), rotation(4), ((6, 27), (8, 30), (7, 29))),
    "little heart": ((25, 30, 28), (1.5, 0.8, 0.8), AXIAL, ((11, 17), (14, 17), (12, 16))),
}  # fmt: skip


def case_of(name: str) -> tuple[Volume, np.ndarray]:
    shape, spacing, axes, box = CASES[name]
    rng = np.random.default_rng(len(name))
    rows = [tuple(float(v) for v in row) for row in axes]
    geometry = Geometry(
        shape=shape, spacing=spacing, origin=(-31.7, 12.3, -204.9), axes=(rows[0], rows[1], rows[2])
    )
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
    hu = (noise / noise.std() * 250).round().astype(np.int16)
    heart = np.zeros(shape, dtype=bool)
    inside = tuple(slice(a, b) for a, b in box)
    heart[inside] = rng.random(heart[inside].shape) < 0.7
    heart[tuple((a + b) // 2 for a, b in box)] = True
    return Volume(hu=hu, geometry=geometry), heart


def balanced(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A network of these tensors, whose last bias makes about half of what it says calcium."""
    network = build(tensors)
    with torch.no_grad():
        logits = network(torch.rand(4, 1, 8, 8, 4, generator=torch.Generator().manual_seed(2)))
        network.final_conv.bias -= logits.median()
    return network


@pytest.fixture(scope="module")
def network(published: ModuleType) -> torch.nn.Module:
    return balanced(published.random_tensors((3, 5, 4), seed=3))


def model_of(network: torch.nn.Module, **quirks: Any) -> PublishedModel:
    return PublishedModel(network, device=torch.device("cpu"), patches=SIZES, quirks=Quirks(**quirks))


@pytest.mark.parametrize("name", CASES)
def test_the_mask_is_the_published_one(name: str, network: torch.nn.Module) -> None:
    volume, heart = case_of(name)
    expected = slow_published(volume, heart, network, SIZES)
    found = model_of(network).predict(volume, heart)
    assert 0.02 < expected.mean() < 0.6
    np.testing.assert_array_equal(found.mask, expected)
    assert 0 < found.patches_run <= found.patches_counted <= found.patches_total == 4 * 3 * 5


@pytest.mark.parametrize("shift", [0, 0.3])
@pytest.mark.parametrize("labels", ["nearest", "linear"])
@pytest.mark.parametrize("name", ["smaller than the crop", "feet first, prone", "slices every 1.25 mm"])
def test_axis_by_axis_is_what_simpleitk_does(name: str, labels: Labels, shift: float) -> None:
    """With every quirk and without; of values between two voxels, one half may fall to either side."""
    halves = 0.0 if labels == "nearest" else 0.005
    volume, heart = case_of(name)
    ways = [
        kind(ct=Grid.of(volume.geometry), spacing=SPACING, crop=(20, 24, 13), labels=labels)
        for kind in (Aligned, Oblique)
    ]
    assert ways[0].ct.is_aligned
    box = ways[0].heart_box(heart.T)
    assert box == ways[1].heart_box(heart.T) is not None
    begin = np.array([b.start - 3 + shift for b in box])
    for whole in (True, False):
        aligned, oblique = (way.hu(volume.hu.T, begin, outside=7, whole=whole) for way in ways)
        assert aligned.dtype == oblique.dtype == np.float32
        assert (aligned == 7).mean() < 0.9
        np.testing.assert_allclose(aligned, oblique, atol=1 if whole and shift else 0.01)
    aligned, oblique = (way.heart(heart.T, begin) for way in ways)
    assert aligned.any()
    assert (aligned != oblique).mean() <= halves
    mean = np.random.default_rng(1).random((20, 24, 13))
    mean[mean > 0.95] = 0.5
    for at_threshold in (True, False):
        aligned, oblique = (way.back(mean, begin, 0.5, at_threshold=at_threshold) for way in ways)
        assert aligned.any()
        assert (aligned != oblique).mean() <= halves


class Answers(torch.nn.Module):
    """Says the same of every voxel, and remembers what it was shown."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit, self.seen = logit, []

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        self.seen += list(patches[:, 0].numpy())
        return torch.full_like(patches, self.logit)


def own_grid(
    heart_box: tuple[tuple[int, int], ...], shape: tuple[int, int, int]
) -> tuple[Volume, np.ndarray]:
    """A CT that has the network's grid already: nothing of it is lost on the way."""
    geometry = Geometry(shape=shape, spacing=(2.5, 0.7, 0.7), origin=(0.0, 0.0, 0.0))
    hu = np.random.default_rng(1).integers(-300, 700, shape).astype(np.int16)
    heart = np.zeros(shape, bool)
    heart[tuple(slice(a, b) for a, b in heart_box)] = True
    return Volume(hu=hu, geometry=geometry), heart


def test_the_last_position_is_never_run_and_only_patches_with_heart_are() -> None:
    """The crop is the whole CT here, (13, 24, 20) voxels; patches of (4, 8, 8) begin every (2, 4, 4)."""
    volume, heart = own_grid(((0, 13), (0, 24), (0, 20)), (13, 24, 20))
    found = model_of(Answers(1.0)).predict(volume, heart)
    expected = np.zeros(heart.shape, bool)
    expected[:12, :20, :16] = True  # z from 12, y from 20 and x from 16 on never
    np.testing.assert_array_equal(found.mask, expected)
    assert found.patches_counted == 5 * 4 * 3
    to_the_border = model_of(Answers(1.0), last_patches=True).predict(volume, heart)
    assert to_the_border.mask.all()
    assert to_the_border.patches_counted == 6 * 5 * 4

    corners = np.zeros(heart.shape, bool)  # the box is the same: two opposite voxels
    corners[0, 0, 0] = corners[-1, -1, -1] = True
    found = model_of(Answers(1.0)).predict(volume, corners)
    expected[:] = False
    expected[:4, :8, :8] = True
    np.testing.assert_array_equal(found.mask, expected)
    assert found.patches_run == 1
    assert model_of(Answers(1.0), patches_by_heart=False).predict(volume, corners).patches_counted == 60


@pytest.mark.parametrize("name", ["larger than the crop", "oblique"])
@pytest.mark.parametrize("shift", [-4.0, -1.5, 2.0])
def test_patches_that_cannot_change_the_mask_are_not_run(
    name: str, shift: float, published: ModuleType
) -> None:
    """A network that finds little, some, or nearly everything: of the last patches few are asked."""
    volume, heart = case_of(name)
    network = balanced(published.random_tensors((3, 5, 4), seed=3))
    with torch.no_grad():
        network.final_conv.bias += shift
    model = model_of(network)
    found = model.predict(volume, heart)
    np.testing.assert_array_equal(found.mask, slow_published(volume, heart, network, SIZES))
    assert 0 < found.patches_run < found.patches_counted
    everything = model_of(network, labels="linear").predict(volume, heart)  # reads the mean itself
    assert everything.patches_run == everything.patches_counted


def test_a_mean_of_exactly_one_half_is_no_calcium() -> None:
    volume, heart = own_grid(((0, 13), (0, 24), (0, 20)), (13, 24, 20))
    assert not model_of(Answers(0.0)).predict(volume, heart).mask.any()
    assert model_of(Answers(0.0), at_threshold=True).predict(volume, heart).mask.any()


def test_outside_of_the_ct_there_is_water() -> None:
    volume, heart = own_grid(((0, 4), (0, 8), (0, 6)), (8, 12, 11))
    shown = {}
    for padding in (0.0, -1000.0):
        network = Answers(1.0)
        model_of(network, padding_hu=padding).predict(volume, heart)
        shown[padding] = network.seen[0][0, 0, 0]  # the crop begins outside, at every axis
    assert shown == {0.0: pytest.approx(135 / 635, abs=1e-6), -1000.0: 0.0}


def test_hu_between_voxels_are_cut_to_whole_numbers() -> None:
    """Voxels of half the size: each new one is the mean of two along x, such as (−3 + 2) / 2 = −0.5."""
    volume, heart = own_grid(((0, 13), (0, 24), (0, 40)), (13, 24, 40))
    geometry = dataclasses.replace(volume.geometry, spacing=(2.5, 0.7, 0.35))
    hu = volume.hu.copy()
    hu[..., ::2], hu[..., 1::2] = -3, 2
    hu[0, 0, 0:4] = (-200, -200, 600, 600)  # the crop's extremes
    volume = Volume(hu=hu, geometry=geometry)
    for whole, expected in ((True, 135 / 635), (False, 134.5 / 635)):
        network = Answers(1.0)
        model_of(network, whole_hu=whole).predict(volume, heart)
        assert network.seen[0][4, 0, 0] == pytest.approx(expected, abs=1e-6)


def test_a_crop_may_lie_exactly_around_the_heart() -> None:
    """A box of 23 voxels in y, a crop of 24: half a voxel to both sides, or a whole one before."""
    volume, heart = own_grid(((0, 13), (2, 25), (0, 20)), (13, 30, 20))
    network = Answers(1.0)
    model_of(network).predict(volume, heart)
    exact = Answers(1.0)
    model_of(exact, whole_voxel_crop=False, whole_hu=False).predict(volume, heart)
    first = volume.hu[0, :, 0].clip(-135, 500).astype(float)
    assert network.seen[0][0, 0, 0] == pytest.approx((first[1] + 135) / 635, abs=1e-6)
    between = (float(volume.hu[0, 1, 0]) + float(volume.hu[0, 2, 0])) / 2
    assert -135 < between < 500
    assert exact.seen[0][0, 0, 0] == pytest.approx((between + 135) / 635, abs=1e-3)


def test_the_result_may_be_brought_back_before_the_threshold(network: torch.nn.Module) -> None:
    volume, heart = case_of("slices every 1.25 mm")
    plain, smooth = (
        model_of(network, labels=labels).predict(volume, heart).mask for labels in ("nearest", "linear")
    )
    both = (plain & smooth).sum() / (plain | smooth).sum()
    assert 0.6 < both < 1
    volume, heart = own_grid(((0, 13), (0, 24), (0, 20)), (13, 24, 20))
    same = [model_of(network, labels=kind).predict(volume, heart).mask for kind in ("nearest", "linear")]
    np.testing.assert_array_equal(*same)


def test_a_heart_that_is_lost_on_the_way_finds_nothing() -> None:
    volume, heart = case_of("larger than the crop")
    assert model_of(Answers(1.0)).predict(volume, np.zeros_like(heart)).patches_run == 0
    one = np.zeros_like(heart)
    one[10, 20, 20] = True  # slices every 1 mm: of 2.5 mm, the nearest is another
    found = model_of(Answers(1.0)).predict(volume, one)
    assert (found.patches_run, found.patches_total) == (0, 60)
    assert not found.mask.any()


# --- the step ---------------------------------------------------------------------------------------------


def test_the_step_runs_from_the_workflow(published: ModuleType, tmp_path: Path) -> None:
    torch.save(published.random_tensors((2, 3), seed=3), tmp_path / "published.pt")
    weights = convert_deepcac2(tmp_path / "published.pt", tmp_path / "set", **dataclasses.asdict(SIZES))
    volume, heart = case_of("larger than the crop")
    case = Case(series=Series(series_uid="1"), facts={CT: volume, HEART: heart_labels(heart)})

    def run(**options: Any) -> Case:
        entry = DeepCAC2RunnerOptions(weights=str(weights.path), **options)
        context = Context(
            workflow=Workflow.load("deepcac2"), output=tmp_path, device=torch.device("cpu"),
            allow=frozenset(), keep=frozenset(), provenance={},
        )  # fmt: skip
        return build_stage("DeepCAC2Runner", entry, context)(case)

    plain = run()
    expected = slow_published(volume, heart, build(published.random_tensors((2, 3), seed=3)), SIZES)
    np.testing.assert_array_equal(plain[CALCIUM].mask, expected)
    used = plain[CALCIUM_RUN]
    assert used["exact_from_hu"] is None
    assert used["heart_margin_mm"] is None
    assert 0 < used["patches_run"] <= used["patches_total"]
    assert plain[DOMAIN]["weights"]["calcium"]["name"] == "deepcac2"
    json.dumps(used, allow_nan=False)

    near = run(heart_margin_mm=0.0, lowest_hu=130)
    kept = dilated(heart, volume.geometry, 0.0) & (volume.hu >= 130)
    np.testing.assert_array_equal(near[CALCIUM].mask, expected & kept)
    assert 0 < near[CALCIUM].mask.sum() < (expected & (volume.hu >= 130)).sum()
    assert near[CALCIUM_RUN]["exact_from_hu"] == 130
    for wrong in ({"labels": "cubic"}, {"heart_margin_mm": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DeepCAC2RunnerOptions(**wrong)


def test_the_workflow_is_the_published_one() -> None:
    workflow = Workflow.load("deepcac2")
    assert workflow.options("DeepCAC2Runner") == DeepCAC2RunnerOptions()
    assert workflow.options("HeartRunner").weights == "platipy-heart"
    assert workflow.options("AGSCalculator").rule == "deepcac2"
    shared = {f.name: f.default for f in dataclasses.fields(Quirks)}
    options = dataclasses.asdict(DeepCAC2RunnerOptions())
    assert {name: options[name] for name in shared} == shared


def test_one_network_of_a_workflow_finds_the_calcium() -> None:
    """Else the second would silently write over what the first has found."""
    workflows = [Workflow.load(name) for name in ("default", "deepcac2")]
    same = [
        w.with_options("AGSCalculator", rule="agatston").with_options("HeartRunner", weights="bundled")
        for w in workflows
    ]
    with pytest.raises(WorkflowError, match="DeepCACRunner and DeepCAC2Runner both find the calcium mask"):
        Workflow.combine(same)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(WeightsUnsupported, match="published DeepCAC2 network"):
        PublishedModel.load(resolve("bundled", "calcium"), torch.device("cpu"))
