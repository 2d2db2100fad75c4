"""The scan: kernels that blur and enhance edges, noise of the asked-for level and spectrum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepcac2.imaging import Geometry
from deepcac2.simulation import Acquisition, sample_acquisition
from deepcac2.simulation.acquisition import KERNELS, SLICES, VOLTAGES, add_noise
from deepcac2.simulation.body import stream

GRID = Geometry(shape=(8, 192, 192), spacing=(2.5, 0.7, 0.7), origin=(-67.0, -67.0, 0.0))
SCAN = Acquisition(
    kernel="B30f", thickness=2.5, increment=2.5, field_of_view=0.7 * 512, centre=(0.0, 0.0), below=50.0,
    above=10.0, noise_sd=20.0, circle=False,
)  # fmt: skip


def noise(scan: Acquisition) -> np.ndarray:
    hu = np.zeros(GRID.shape, dtype=np.float32)
    add_noise(hu, GRID, scan, stream(1, "noise"), 1e6, (0.0, 0.0, 0.0))
    return hu


def peak_frequency(hu: np.ndarray) -> float:
    """Where the radially averaged noise power is highest, cycles per mm."""
    power = (np.abs(np.fft.fft2(hu)) ** 2).mean(axis=0)
    f = np.fft.fftfreq(hu.shape[-1], 0.7)
    bins = (np.hypot(f[:, None], f[None]) / 0.04).astype(int)
    radial = np.bincount(bins.ravel(), power.ravel()) / np.bincount(bins.ravel())
    return float((radial[: int(0.7 / 0.04)].argmax() + 0.5) * 0.04)


@pytest.mark.parametrize("kernel", ["B20f", "B30f", "BONE"])
def test_noise_has_the_asked_for_level_and_is_correlated(kernel: str) -> None:
    hu = noise(replace(SCAN, kernel=kernel))
    assert hu[:, 64:128, 64:128].std() == pytest.approx(20.0 * 1.1, rel=0.1)
    assert abs(hu.mean()) < 1
    neighbour = np.corrcoef(hu[:, :, :-1].ravel(), hu[:, :, 1:].ravel())[0, 1]
    assert neighbour < 0.1 if KERNELS[kernel].sharp else neighbour > 0.3


def test_noise_of_sharp_kernels_is_finer_and_iterative_reconstruction_makes_it_coarser() -> None:
    soft, middle, sharp = (peak_frequency(noise(replace(SCAN, kernel=k))) for k in ("B30f", "B50f", "BONE"))
    assert soft < middle < sharp
    assert soft < 0.3
    assert sharp > 0.6
    assert peak_frequency(noise(replace(SCAN, kernel="BONE", iterative=0.5))) < 0.5 * sharp


def test_only_sharp_kernels_overshoot_at_an_edge() -> None:
    edge = np.zeros((1, 5, 400), dtype=np.float32)
    edge[..., 200:] = 100.0
    for name, kernel in KERNELS.items():
        seen = kernel.system.blur(edge, (0.1, 0.1))[0, 2]
        assert seen[:50].mean() == pytest.approx(0, abs=0.01), name
        assert seen[-50:].mean() == pytest.approx(100, abs=0.01), name
        assert (seen.max() > 103) == kernel.sharp, name
        if kernel.filter.boost == 0:
            assert seen.max() < 100.01, name


def test_blur_follows_the_modulation_transfer_function() -> None:
    x = np.arange(600) * 0.1
    for name in ("B30f", "LUNG", "BONE"):
        for f in (0.1, 0.3, 0.5):
            wave = np.tile(np.cos(2 * np.pi * f * x).astype(np.float32), (1, 5, 1))
            seen = KERNELS[name].system.blur(wave, (0.1, 0.1))[0, 2, 150:450]
            expected = KERNELS[name].system.mtf(np.array([f]))[0]
            assert seen.std() / wave[0, 2, 150:450].std() == pytest.approx(expected, abs=0.02)


def test_a_picture_that_is_too_soft_is_sharpened_towards_the_kernel() -> None:
    """A wave seen through 0.75 mm of blur comes out nearer to what the kernel shows."""
    x = np.arange(400) * 0.35
    soft = np.exp(-2 * (np.pi * 0.2 * 0.75) ** 2)
    wave = np.tile((soft * np.cos(2 * np.pi * 0.2 * x)).astype(np.float32), (1, 5, 1))
    for name in ("B45f", "L", "BONE"):
        system = KERNELS[name].system
        seen = system.blur(wave, (1.4, 0.35), softness=0.75)[0, 2, 100:300]
        assert seen.std() * np.sqrt(2) == pytest.approx(system.mtf(np.array([0.2]))[0], abs=0.12)


def test_shares_add_up_and_every_kernel_voltage_and_thickness_occurs() -> None:
    for shares in (SLICES, VOLTAGES, {k: v.share for k, v in KERNELS.items()}):
        assert sum(shares.values()) == pytest.approx(1.0)
    scans = [sample_acquisition(s) for s in range(600)]
    assert {s.kernel for s in scans} == set(KERNELS)
    assert {s.kvp for s in scans} == set(VOLTAGES)
    assert {(s.thickness, s.increment) for s in scans} == set(SLICES)
    noise_sd = np.array([s.noise_sd for s in scans])
    assert np.percentile(noise_sd, 5) < 9
    assert np.percentile(noise_sd, 97) > 110
    assert 0.5 < np.mean([s.kvp == 120 for s in scans]) < 0.75
    assert max(s.motion for s in scans) > 4
