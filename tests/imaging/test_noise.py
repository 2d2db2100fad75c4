"""The measured noise, against noise of known standard deviation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter, minimum_filter, uniform_filter

from deepcac2.dicom import discover, read_series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.noise import noise_sd
from deepcac2.simulation import default_geometry, heart_centroid, simulate_patient
from deepcac2.simulation.acquisition import sample_acquisition

GRID = Geometry(shape=(20, 200, 200), spacing=(2.5, 0.7, 0.7), origin=(0.0, 0.0, 0.0))


def noise(
    kind: str, sd: float, shape: tuple[int, int, int] = GRID.shape, seed: int = 0
) -> npt.NDArray[np.float64]:
    """White noise, or noise correlated within each slice as soft and sharp kernels do it, of this SD."""
    white = np.random.default_rng(seed).standard_normal(shape)
    if kind == "soft":
        white = gaussian_filter(white, (0, 1.2, 1.2)) - gaussian_filter(white, (0, 4, 4))
    elif kind == "sharp":
        white = white - gaussian_filter(white, (0, 0.8, 0.8))
    scaled: npt.NDArray[np.float64] = white * (sd / white.std())
    return scaled


def volume(hu: npt.NDArray[np.floating], geometry: Geometry = GRID) -> Volume:
    return Volume(hu=np.rint(hu).astype(np.int16), geometry=geometry)


def disc(radius_mm: float = 60.0) -> npt.NDArray[np.bool_]:
    _, y, x = np.indices(GRID.shape)
    return np.asarray(np.hypot(y - 100, x - 100) * 0.7 <= radius_mm, dtype=bool)


@pytest.mark.parametrize("kind", ["white", "soft", "sharp"])
@pytest.mark.parametrize("sd", [4.0, 30.0, 150.0])
def test_the_noise_that_was_put_in_comes_out(kind: str, sd: float) -> None:
    assert noise_sd(volume(40 + noise(kind, sd)), disc()) == pytest.approx(sd, rel=0.06)


def test_anatomy_is_no_noise() -> None:
    """Shading, fat, calcium and a wire; none of them as wide as the uniform rest."""
    z, y, x = np.indices(GRID.shape)
    hu = 40 + 0.1 * (y - 100) + 0.05 * (x - 100)
    hu[np.hypot(y - 60, x - 100) < 18] = -100
    hu[(x > 130) & (x < 140)] = -100
    hu[np.hypot(y - 120, x - 90) < 3] = 900
    hu[(abs(y - 140) < 2) & (z > 5)] = 3000
    for sd in (8.0, 40.0):
        measured = noise_sd(volume(hu + noise("soft", sd)), disc())
        assert measured == pytest.approx(sd, rel=0.06)


def test_no_statement_without_enough_uniform_tissue() -> None:
    empty = np.zeros(GRID.shape, dtype=bool)
    assert noise_sd(volume(noise("white", 20)), empty) is None
    assert noise_sd(volume(noise("white", 20)), disc(4.0)) is None
    thin = empty.copy()
    thin[:, 90:95] = True
    assert noise_sd(volume(noise("white", 20)), thin) is None


def test_only_the_region_counts_whichever_way_the_grid_runs() -> None:
    hu = np.where(disc(), noise("sharp", 25), -1024)
    measured = noise_sd(volume(hu), disc())
    assert measured == pytest.approx(25, rel=0.04)
    assert noise_sd(volume(hu[::-1, ::-1, ::-1].copy()), disc()[::-1, ::-1, ::-1]) == pytest.approx(
        measured, rel=0.03
    )


@pytest.mark.slow
def test_the_noise_of_a_simulated_heart() -> None:
    """The same patient with and without noise: their difference is the noise itself."""
    whole, scan = default_geometry(5, size=256), sample_acquisition(5)
    middle = round(float(whole.to_index(heart_centroid(5))[0]))
    x, y, z = whole.to_lps((middle - 5, 0, 0))
    grid = replace(whole, shape=(10, *whole.shape[1:]), origin=(float(x), float(y), float(z)))
    for level in (12.0, 60.0):
        noisy = simulate_patient(5, geometry=grid, acquisition=replace(scan, noise_sd=level))
        clean = simulate_patient(5, geometry=grid, acquisition=replace(scan, noise_sd=0.0))
        truth = (noisy.volume.hu.astype(float) - clean.volume.hu)[noisy.heart].std()
        assert noise_sd(noisy.volume, noisy.heart) == pytest.approx(truth, rel=0.08)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("Lung_Dx-A0001-B", marks=pytest.mark.slow),
        "Lung_Dx-A0001-L",
        pytest.param("LIDC-IDRI-0306", marks=pytest.mark.slow),
    ],
)
def test_noise_added_to_a_real_scan_adds_up(shared_data: Path, name: str) -> None:
    """Independent noises add as squares; the scans are of a soft, a lung and a bone kernel."""
    (series,) = discover(shared_data / "chest" / name).series
    scan = read_series(series).volume
    middle = slice(len(scan.hu) // 3, 2 * len(scan.hu) // 3)
    hu = scan.hu[middle].astype(np.float32)
    part = replace(scan.geometry, shape=hu.shape)
    smooth = uniform_filter(hu, (1, 15, 15))
    tissue = minimum_filter((smooth > 10) & (smooth < 80), (1, 9, 9))
    before = noise_sd(volume(hu, part), tissue)
    assert before is not None
    assert {"Lung_Dx-A0001-B": 4, "Lung_Dx-A0001-L": 25, "LIDC-IDRI-0306": 60}[name] < before
    for sd in (30.0, 90.0):
        after = noise_sd(volume(hu + noise("soft", sd, hu.shape), part), tissue)
        assert after == pytest.approx(np.hypot(before, sd), rel=0.05)
