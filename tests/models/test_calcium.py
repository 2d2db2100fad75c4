"""The calcium model: the paper's steps, and the rule for skipping patches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepcac2.dicom import discover, read_series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.crop import Patches
from deepcac2.imaging.resampling import centred_grid
from deepcac2.imaging.tiling import patch_corners
from deepcac2.models.calcium.network import (
    CalciumModel,
    build_network,
    crop_grid,
    normalise,
    sure_lesions,
    sureness,
    to_crop,
    window,
)
from deepcac2.simulation import default_geometry, heart_centroid, simulate_patient
from deepcac2.weights import numbers, resolve

ARCHITECTURE = {"channels": (8, 16), "strides": (2,), "num_res_units": 1, "norm": "batch"}
CROP, PATCH, STEP = (24, 48, 48), (8, 16, 16), (4, 8, 8)
"""A crop of 125 patches that a CPU runs in a moment; the paper's overlap."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> CalciumModel:
    """A network with random weights and uneven output: every patch answers differently."""
    torch.manual_seed(3)
    network = build_network(ARCHITECTURE)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return small(network)


def small(network: torch.nn.Module, **options: Any) -> CalciumModel:
    return CalciumModel(
        network, device=CPU, patches=Patches(crop_shape=CROP, patch_shape=PATCH, patch_step=STEP), **options
    )


class OneAnswer(torch.nn.Module):
    """A network that gives a whole patch one probability, by what the patch holds: 0.3, 0.45 or all but 1.

    Patches that were not asked yet may then still lift an average over 0.5, or fail to by little.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        answers = []
        for patch in patches:
            seed = int(patch.double().sum() * 1e6)
            probability = float(np.random.default_rng(seed).choice([0.3, 0.45, 1 - 1e-6], p=[0.4, 0.3, 0.3]))
            answers.append(torch.full_like(patch, math.log(probability / (1 - probability))))
        return torch.stack(answers)


def chest(seed: int, spacing: tuple[float, float, float], specks: int = 4) -> Volume:
    """Noise with bright specks that touch few patches, a little larger than the crop."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d / s) for d, s in zip((80, 48, 50), spacing, strict=True))
    hu = rng.normal(40, 15, shape).astype(np.int16)
    for _ in range(specks):
        z, y, x = (int(rng.integers(n // 4, 3 * n // 4)) for n in shape)
        hu[z : z + 2, y : y + 4, x : x + 3] = rng.integers(131, 900)
    geometry = Geometry(shape=shape, spacing=spacing, origin=(-20.0, -24.0, -300.0))
    return Volume(hu=hu, geometry=geometry)


def middle(volume: Volume) -> tuple[float, float, float]:
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    return float(x), float(y), float(z)


def test_the_paper_has_343_patches() -> None:
    paper = Patches()
    assert len(patch_corners(paper.crop_shape, paper.patch_shape, paper.patch_step)) == 343
    assert numbers(resolve("bundled", "calcium"), Patches) == paper


@pytest.mark.parametrize("spacing", [(2.5, 0.9, 0.9), (3.7, 1.3, 1.3), (5.0, 0.8, 0.8)])
@pytest.mark.parametrize("lowest", [130, 100])
def test_skipping_changes_no_counted_voxel(
    model: CalciumModel, spacing: tuple[float, float, float], lowest: int
) -> None:
    volume = chest(1, spacing)
    volume.hu[volume.hu == 60] = lowest  # grains that only just count, and one step below that do not
    volume.hu[volume.hu == 61] = lowest - 1
    sparse = model.predict(volume, middle(volume), lowest_hu=lowest, keep_probability=True)
    early = model.predict(volume, middle(volume), lowest_hu=lowest)
    dense = model.predict(volume, middle(volume), lowest_hu=None, keep_probability=True)
    assert 0 < early.patches_run <= sparse.patches_run <= dense.patches_run == dense.patches_total == 125
    counted = volume.hu >= lowest
    np.testing.assert_array_equal(sparse.mask[counted], dense.mask[counted])
    np.testing.assert_array_equal(early.mask[counted], dense.mask[counted])
    np.testing.assert_allclose(sparse.probability[counted], dense.probability[counted], atol=1e-6)
    assert dense.mask[counted].any()
    assert not dense.mask[counted].all()


@pytest.mark.parametrize("lowest", [130, None])
@pytest.mark.parametrize("upside_down", [False, True])
def test_only_where_something_is_found_is_brought_back(
    model: CalciumModel, lowest: int | None, upside_down: bool
) -> None:
    """Mask and sureness are what the probability on the whole CT says, bit for bit."""
    volume = chest(2, (2.5, 0.9, 0.9))
    if upside_down:
        axes = tuple(tuple(-a for a in axis) for axis in volume.geometry.axes)
        volume = replace(volume, geometry=replace(volume.geometry, axes=axes, origin=(25.0, 24.0, -220.0)))
    region = np.zeros(volume.hu.shape, dtype=bool)
    region[4:-4, 9:-9, 9:-9] = True
    found = model.predict(volume, middle(volume), region=region, lowest_hu=lowest, keep_probability=True)
    assert found.probability is not None
    calcium = (found.probability >= 0.5) & region
    assert calcium.any()
    assert not calcium[volume.hu >= 130].all()
    np.testing.assert_array_equal(found.mask, calcium)
    counted = calcium & (volume.hu >= (-2000 if lowest is None else lowest))
    np.testing.assert_array_equal(found.sure.array, sureness(found.probability, counted).array)
    plain = model.predict(volume, middle(volume), region=region, lowest_hu=lowest)
    bright = volume.hu >= 130
    np.testing.assert_array_equal(plain.mask & bright, found.mask & bright)
    np.testing.assert_array_equal(plain.sure.array[bright], found.sure.array[bright])


@pytest.mark.parametrize("seed", range(6))
def test_a_patch_that_could_still_decide_is_asked(seed: int) -> None:
    """Where the patches asked first leave an average between 0.5 and 0.6 possible, the others decide."""
    volume = chest(seed, (2.5, 0.7, 0.7), specks=40)
    early = small(OneAnswer()).predict(volume, middle(volume))
    dense = small(OneAnswer()).predict(volume, middle(volume), lowest_hu=None, keep_probability=True)
    counted = volume.hu >= 130
    assert dense.probability is not None
    near = counted & (dense.probability >= 0.5) & (dense.probability < 0.6)
    assert near.any()
    assert early.patches_run < early.patches_total
    np.testing.assert_array_equal(early.mask[counted], dense.mask[counted])


def test_the_mask_does_not_end_at_130_hu(model: CalciumModel) -> None:
    """It is what the network calls calcium: wholly in a dense run, in part where patches are skipped."""
    volume = chest(1, (2.5, 0.9, 0.9))
    dense = model.predict(volume, middle(volume), lowest_hu=None, keep_probability=True)
    assert dense.probability is not None
    np.testing.assert_array_equal(dense.mask, dense.probability >= 0.5)
    skipped = model.predict(volume, middle(volume))
    assert not (skipped.mask & ~dense.mask).any()
    dull = volume.hu < 130
    assert 0 < (skipped.mask & dull).sum() < (dense.mask & dull).sum()


class ClearlyNone(torch.nn.Module):
    """A network that says 0.05 of everything."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.full_like(patches, math.log(0.05 / 0.95))


def test_noise_that_is_clearly_none_needs_about_half_of_the_patches() -> None:
    volume = chest(5, (2.5, 0.7, 0.7), specks=0)
    volume.hu[np.random.default_rng(0).random(volume.hu.shape) < 0.01] = 135
    # Where the crop is not at its end, as around a heart: there eight patches cover a voxel.
    region = np.zeros(volume.hu.shape, dtype=bool)
    region[tuple(slice(3 * n // 8, 5 * n // 8) for n in volume.hu.shape)] = True
    early = small(ClearlyNone()).predict(volume, middle(volume), region=region)
    every = small(ClearlyNone()).predict(volume, middle(volume), region=region, keep_probability=True)
    assert 0 < early.patches_run < 0.75 * every.patches_run
    assert not early.mask.any()


def test_the_bundled_weights_answer_the_same_with_and_without_skipping() -> None:
    bundled = CalciumModel.load(resolve("bundled", "calcium"), CPU)
    model = CalciumModel(bundled.network, device=CPU, patches=Patches(crop_shape=(32, 160, 160)))
    centre = heart_centroid(5)
    grid = centred_grid(default_geometry(5), centre, (2.5, 0.9, 0.9), (32, 120, 120))
    patient = simulate_patient(5, geometry=grid)
    early, dense = (
        model.predict(patient.volume, centre, heart=patient.heart, region=patient.heart, lowest_hu=lowest)
        for lowest in (130, None)
    )
    assert early.patches_run < dense.patches_run
    counted = patient.heart & (patient.volume.hu >= 130)
    np.testing.assert_array_equal(early.mask[counted], dense.mask[counted])
    assert dense.mask[counted].any()
    assert not dense.mask[counted].all()


@pytest.mark.parametrize("lowest", [130, None])
def test_unsure_lesions_go_whole_and_sure_ones_stay_whole(model: CalciumModel, lowest: int | None) -> None:
    volume = chest(4, (2.5, 0.9, 0.9), specks=12)
    dense = model.predict(volume, middle(volume), lowest_hu=None, keep_probability=True)
    assert dense.probability is not None
    counts = np.ones_like(dense.mask) if lowest is None else volume.hu >= lowest
    counted = dense.mask & counts
    # Slow and by another library: every lesion one by one.
    lesions, n = ndimage.label(counted, structure=np.ones((3, 3, 3)))
    peaks = [float(dense.probability[lesions == k].max()) for k in range(1, n + 1)]
    limit = float(np.median(peaks)) + 1e-6
    sure = np.isin(lesions, [k for k, p in enumerate(peaks, start=1) if p >= limit])
    assert 0 < sure.sum() < counted.sum()
    found = model.predict(volume, middle(volume), peak=limit, lowest_hu=lowest)
    np.testing.assert_array_equal(found.mask & counts, sure)
    assert not (found.mask & ~dense.mask).any()
    # How sure it is of each voxel is told of lesions that went, too.
    reached = [max(s for s in (50, 60, 70, 80, 90, 95, 98, 99) if p >= s / 100) for p in peaks]
    told = [int(found.sure.array[lesions == k].max()) for k in range(1, n + 1)]
    assert told == reached
    np.testing.assert_array_equal(found.sure.mask, counted)


def test_the_peak_of_a_lesion_is_enough_if_it_is_just_reached() -> None:
    mask = np.ones((1, 1, 1), dtype=bool)
    for probability, stays in ((0.75, True), (0.7499999, False)):
        reached = np.full((1, 1, 1), probability, dtype=np.float32)
        assert sure_lesions(mask, mask, reached, 0.75).all() == stays


class Undecided(torch.nn.Module):
    """A network that says 0.5 of every voxel, or a little less."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = logit

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return torch.full_like(patches, self.logit)


@pytest.mark.parametrize(("logit", "found"), [(0.0, True), (-1e-3, False)])
def test_a_probability_of_a_half_is_calcium(logit: float, found: bool) -> None:
    """On the crop's own grid, where bringing the answer back rounds nothing."""
    somewhere = chest(1, (2.5, 0.7, 0.7))
    centre = middle(somewhere)
    volume = Volume(
        hu=np.full(CROP, 300, dtype=np.int16), geometry=crop_grid(somewhere.geometry, centre, CROP)
    )
    mask = small(Undecided(logit)).predict(volume, centre, lowest_hu=None).mask
    assert mask.all() if found else not mask.any()


def test_a_region_limits_the_mask_and_changes_nothing_inside(model: CalciumModel) -> None:
    volume = chest(2, (2.5, 0.9, 0.9))
    region = np.zeros(volume.hu.shape, dtype=bool)
    region[:, : volume.hu.shape[1] // 2] = True
    for lowest in (130, None):
        limited = model.predict(volume, middle(volume), region=region, lowest_hu=lowest)
        full = model.predict(volume, middle(volume), lowest_hu=lowest)
        assert not limited.mask[~region].any()
        counted = region & (volume.hu >= (lowest or -2000))
        np.testing.assert_array_equal(limited.mask[counted], full.mask[counted])
        assert limited.patches_run <= full.patches_run


def test_a_mirrored_or_upside_down_series_gives_the_same_mask(model: CalciumModel) -> None:
    volume = chest(1, (3.7, 1.3, 1.3))
    upright = model.predict(volume, middle(volume)).mask
    corner = volume.geometry.to_lps([n - 1 for n in volume.geometry.shape])
    turned = Volume(
        hu=np.ascontiguousarray(volume.hu[::-1, ::-1, ::-1]),
        geometry=Geometry(
            shape=volume.geometry.shape,
            spacing=volume.geometry.spacing,
            origin=(float(corner[0]), float(corner[1]), float(corner[2])),
            axes=((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
        ),
    )
    mask = model.predict(turned, middle(volume)).mask
    assert upright.any()
    np.testing.assert_array_equal(mask[::-1, ::-1, ::-1], upright)


def test_nothing_bright_needs_no_inference_unless_anything_may_count(model: CalciumModel) -> None:
    volume = chest(1, (3.7, 1.3, 1.3))
    dull = Volume(hu=np.minimum(volume.hu, 129).astype(np.int16), geometry=volume.geometry)
    prediction = model.predict(dull, middle(dull), keep_probability=True)
    assert prediction.patches_run == 0
    assert not prediction.mask.any()
    assert prediction.probability is not None
    assert model.predict(dull, middle(dull), lowest_hu=None).mask.any()


class Cramped(torch.nn.Module):
    """A network whose device has room for so many patches at once, and says so as torch does."""

    def __init__(self, network: torch.nn.Module, room: int) -> None:
        super().__init__()
        self.network = network
        self.room = room

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        if len(patches) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: torch.Tensor = self.network(patches)
        return result


def test_too_little_memory_for_a_batch_means_smaller_batches(
    model: CalciumModel, caplog: pytest.LogCaptureFixture
) -> None:
    volume = chest(1, (2.5, 0.9, 0.9))
    expected = model.predict(volume, middle(volume), keep_probability=True)
    cramped = small(Cramped(model.network, 3))
    found = cramped.predict(volume, middle(volume), keep_probability=True)
    assert cramped.batch_size == 2
    assert "not enough memory for 8 patches" in caplog.text
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
    hopeless = small(Cramped(model.network, 0))
    with pytest.raises(torch.OutOfMemoryError):
        hopeless.predict(volume, middle(volume))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_full_gpu_means_smaller_batches(model: CalciumModel) -> None:
    volume, device = chest(1, (2.5, 0.9, 0.9)), torch.device("cuda")
    torch.manual_seed(3)
    on_gpu = CalciumModel(build_network(ARCHITECTURE), device=device, batch_size=64)
    expected = on_gpu.predict(volume, middle(volume))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(200e6 / total)
    try:
        found = on_gpu.predict(volume, middle(volume))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert on_gpu.batch_size < 64
    np.testing.assert_array_equal(found.mask, expected.mask)


def test_steps_follow_the_paper() -> None:
    hu = torch.tensor([-1000.0, -135.0, 0.0, 130.0, 500.0, 3000.0])
    clipped = window(hu)
    assert clipped.tolist() == [-135.0, -135.0, 0.0, 130.0, 500.0, 500.0]
    expected = (clipped + 135) / 635
    torch.testing.assert_close(normalise(hu), expected)
    # A crop that reaches both bounds gives the same by its own extremes; one that does not, differs.
    torch.testing.assert_close(normalise(hu, rescale_to="crop"), expected)
    dull = torch.tensor([-500.0, 100.0, 300.0])
    assert normalise(dull, rescale_to="crop")[2] == 1.0
    torch.testing.assert_close(normalise(dull)[2], torch.tensor(435 / 635))
    assert torch.isfinite(normalise(torch.zeros(5))).all()


def test_crop_equals_resampling_the_whole_scan_with_simpleitk(shared_data: Path) -> None:
    import SimpleITK as sitk

    (series,) = discover(shared_data / "chest" / "CIP-64x64").series
    volume = read_series(series).volume
    centre = tuple(float(v) for v in volume.geometry.to_lps([n / 2 for n in volume.geometry.shape]))
    grid = crop_grid(volume.geometry, centre)  # type: ignore[arg-type]
    ours = to_crop(volume.hu, volume.geometry, grid, device=torch.device("cpu")).numpy()
    image = sitk.GetImageFromArray(volume.hu.astype(np.float32))
    image.SetSpacing(volume.geometry.spacing[::-1])
    image.SetOrigin(volume.geometry.origin)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape[::-1])
    resampler.SetOutputSpacing(grid.spacing[::-1])
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetInterpolator(sitk.sitkLinear)
    theirs = sitk.GetArrayFromImage(resampler.Execute(image))
    inside = theirs != 0
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.1)
