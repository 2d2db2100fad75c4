"""The calcium model: the paper's steps, and the rule for skipping patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepcac2.dicom import discover, read_series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.resampling import centred_grid
from deepcac2.models.calcium import CalciumModel, build_network, crop_grid, normalise, to_crop, window
from deepcac2.simulation import default_geometry, heart_centroid, simulate_patient
from deepcac2.weights import resolve

ARCHITECTURE = {"channels": (8, 16), "strides": (2,), "num_res_units": 1, "norm": "batch"}


@pytest.fixture(scope="module")
def model() -> CalciumModel:
    """A network with random weights and uneven output: every patch answers differently."""
    torch.manual_seed(3)
    network = build_network(ARCHITECTURE)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3) if p.ndim > 1 else None
    return CalciumModel(network, device=torch.device("cpu"))


def chest(seed: int, spacing: tuple[float, float, float]) -> Volume:
    """Noise with bright specks that touch few patches."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(d / s) for d, s in zip((180, 220, 230), spacing, strict=True))
    hu = rng.normal(40, 15, shape).astype(np.int16)
    for _ in range(4):
        z, y, x = (int(rng.integers(n // 4, 3 * n // 4)) for n in shape)
        hu[z : z + 2, y : y + 4, x : x + 3] = rng.integers(131, 900)
    geometry = Geometry(shape=shape, spacing=spacing, origin=(-100.0, -110.0, -300.0))
    return Volume(hu=hu, geometry=geometry)


@pytest.mark.parametrize("spacing", [(2.5, 0.9, 0.9), (3.7, 1.3, 1.3), (5.0, 0.8, 0.8)])
def test_skipping_changes_no_counted_voxel(model: CalciumModel, spacing: tuple[float, float, float]) -> None:
    volume = chest(1, spacing)
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    sparse = model.predict(volume, (x, y, z), keep_probability=True)
    early = model.predict(volume, (x, y, z))
    dense = model.predict(volume, (x, y, z), dense=True, keep_probability=True)
    assert 0 < sparse.patches_run < dense.patches_run == dense.patches_total == 343
    bright = volume.hu >= 130
    np.testing.assert_array_equal(sparse.mask[bright], dense.mask[bright])
    np.testing.assert_array_equal(early.mask[bright], dense.mask[bright])
    assert early.patches_run <= sparse.patches_run
    np.testing.assert_allclose(sparse.probability[bright], dense.probability[bright], atol=1e-6)
    assert dense.mask[bright].any()
    assert not dense.mask[bright].all()


def test_noise_that_is_clearly_none_needs_about_half_of_the_patches() -> None:
    model = CalciumModel.load(resolve("bundled", "calcium"), torch.device("cpu"))
    centre = heart_centroid(5)
    grid = centred_grid(default_geometry(5), centre, (2.5, 0.9, 0.9), (60, 160, 160))
    patient = simulate_patient(5, geometry=grid)
    hu, heart = patient.volume.hu.copy(), patient.heart
    hu[np.random.default_rng(0).random(hu.shape) < 0.002] = 135
    volume = Volume(hu=hu, geometry=patient.volume.geometry)
    early = model.predict(volume, centre, region=heart)
    every = model.predict(volume, centre, region=heart, keep_probability=True)
    dense = model.predict(volume, centre, region=heart, dense=True)
    assert early.patches_run < 0.75 * every.patches_run
    counted = heart & (hu >= 130)
    np.testing.assert_array_equal(early.mask[counted], dense.mask[counted])
    assert dense.mask[counted].any()
    assert not dense.mask[counted].all()


def test_unsure_lesions_go_whole_and_sure_ones_stay_whole(model: CalciumModel) -> None:
    volume = chest(4, (2.5, 0.9, 0.9))
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    dense = model.predict(volume, (x, y, z), dense=True, keep_probability=True)
    counted = dense.mask & (volume.hu >= 130)
    # Slow and by another library: every lesion one by one.
    lesions, n = ndimage.label(counted, structure=np.ones((3, 3, 3)))
    peaks = [float(dense.probability[lesions == k].max()) for k in range(1, n + 1)]
    limit = float(np.median(peaks)) + 1e-6
    sure = np.isin(lesions, [k for k, p in enumerate(peaks, start=1) if p >= limit])
    assert 0 < sure.sum() < counted.sum()
    for options in ({}, {"dense": True}):
        found = model.predict(volume, (x, y, z), peak=limit, **options)
        np.testing.assert_array_equal(found.mask & (volume.hu >= 130), sure)
        assert not (found.mask & ~dense.mask).any()


def test_a_region_limits_the_mask_and_changes_nothing_inside(model: CalciumModel) -> None:
    volume = chest(2, (2.5, 0.9, 0.9))
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    region = np.zeros(volume.hu.shape, dtype=bool)
    region[:, : volume.hu.shape[1] // 2] = True
    limited = model.predict(volume, (x, y, z), region=region)
    full = model.predict(volume, (x, y, z))
    assert not limited.mask[~region].any()
    counted = region & (volume.hu >= 130)
    np.testing.assert_array_equal(limited.mask[counted], full.mask[counted])
    assert limited.patches_run <= full.patches_run


def test_a_mirrored_or_upside_down_series_gives_the_same_mask(model: CalciumModel) -> None:
    volume = chest(1, (3.7, 1.3, 1.3))
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    upright = model.predict(volume, (x, y, z)).mask
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
    mask = model.predict(turned, (x, y, z)).mask
    assert upright.any()
    np.testing.assert_array_equal(mask[::-1, ::-1, ::-1], upright)


def test_nothing_bright_needs_no_inference(model: CalciumModel) -> None:
    volume = chest(1, (3.7, 1.3, 1.3))
    dull = Volume(hu=np.minimum(volume.hu, 129).astype(np.int16), geometry=volume.geometry)
    prediction = model.predict(dull, (0.0, 0.0, -200.0), keep_probability=True)
    assert prediction.patches_run == 0
    assert not prediction.mask.any()
    assert prediction.probability is not None


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
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    expected = model.predict(volume, (x, y, z), keep_probability=True)
    cramped = CalciumModel(Cramped(model.network, 3), device=torch.device("cpu"))
    found = cramped.predict(volume, (x, y, z), keep_probability=True)
    assert cramped.batch_size == 2
    assert "not enough memory for 8 patches" in caplog.text
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-6)
    hopeless = CalciumModel(Cramped(model.network, 0), device=torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        hopeless.predict(volume, (x, y, z))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_full_gpu_means_smaller_batches(model: CalciumModel) -> None:
    volume, device = chest(1, (2.5, 0.9, 0.9)), torch.device("cuda")
    x, y, z = volume.geometry.to_lps([n / 2 for n in volume.geometry.shape])
    torch.manual_seed(3)
    on_gpu = CalciumModel(build_network(ARCHITECTURE), device=device, batch_size=64)
    expected = on_gpu.predict(volume, (x, y, z))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(200e6 / total)
    try:
        found = on_gpu.predict(volume, (x, y, z))
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
