"""The exclusion of scans without calcium: its rules against slow references."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from deepcac2.dicom import discover, read_series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.orientation import ORIENTATIONS
from deepcac2.models.rule_out.network import (
    LEAST,
    SEEN,
    ScreeningModel,
    SliceUNet,
    chest_wall_crop,
    highest_threshold,
    joined_probability,
    two_channels,
    without_single_slices,
)
from deepcac2.simulation import heart_centroid

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    """Random weights with uneven answers."""
    torch.manual_seed(5)
    found: dict[str, torch.nn.Module] = {}
    for name in ORIENTATIONS:
        network = SliceUNet(channels=(4, 8, 8))
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.4) if p.ndim > 1 else None
        found[name] = network.eval()
    return found


def specks(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, dtype=bool)
    for _ in range(30):
        corner = [int(rng.integers(n - 4)) for n in shape]
        size = rng.integers(1, 4, 3)
        mask[tuple(slice(c, c + int(s)) for c, s in zip(corner, size, strict=True))] = True
    return mask


def test_objects_of_a_single_slice_go() -> None:
    mask = specks((20, 40, 40), 1)
    labels, n = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    expected = np.zeros_like(mask)
    for k in range(1, n + 1):
        if all(np.ptp(axis) > 0 for axis in np.nonzero(labels == k)[1:]):
            expected |= labels == k
    assert 0 < expected.sum() < mask.sum()
    np.testing.assert_array_equal(without_single_slices(mask), expected)
    assert not without_single_slices(np.zeros_like(mask)).any()


def test_what_is_not_shown_changes_nothing(networks: dict[str, torch.nn.Module]) -> None:
    rng = np.random.default_rng(2)
    hu = torch.from_numpy(rng.normal(40, 60, (24, 70, 90)).astype(np.float32))
    wanted = np.zeros((24, 70, 90), dtype=bool)
    wanted[6:15, 13:22, 50:90] = specks((9, 9, 40), 3)
    wanted[20, 40:60, 5:9] = True
    root, run = joined_probability(networks, hu, wanted)
    product = np.ones(hu.shape)
    for axis, name in enumerate(ORIENTATIONS):
        for k in range(hu.shape[axis]):
            plane = hu.select(axis, k)
            rows, columns = plane.shape
            whole = (SEEN, SEEN - columns % 4 + 4, SEEN, SEEN - rows % 4 + 4)
            plane = torch.nn.functional.pad(plane, whole, value=-135.0)
            with torch.no_grad():
                answer = torch.sigmoid(networks[name](two_channels(plane)[None]))[0, 0].numpy()
            index = [slice(None)] * 3
            index[axis] = k
            product[tuple(index)] *= answer[SEEN : SEEN + rows, SEEN : SEEN + columns]
    expected = np.where(wanted, np.cbrt(product), 0.0)
    expected[expected < LEAST] = 0.0
    assert (expected > 0).sum() > 20
    np.testing.assert_allclose(root, expected, atol=1e-4)
    assert all(0 < n <= size for n, size in zip(run.values(), hu.shape, strict=True))

    least = float(np.quantile(expected[expected > 0], 0.6))
    higher, fewer = joined_probability(networks, hu, wanted, least=least)
    np.testing.assert_array_equal(higher, np.where(root >= np.float32(least), root, 0.0))
    assert (higher > 0).any()
    assert sum(fewer.values()) < sum(run.values())


@pytest.mark.parametrize("way", [-0.4, 0.2, 0.8])
def test_what_lies_below_the_threshold_is_not_asked_for(
    networks: dict[str, torch.nn.Module], way: float
) -> None:
    """The threshold lies this share of the way from the highest probability to 0, or to 1."""
    networks = copy.deepcopy(networks)
    for network in networks.values():  # less firm
        network.head.weight.data *= 0.1
    rng = np.random.default_rng(7)
    hu = rng.normal(40, 60, (20, 40, 48)).astype(np.int16)
    hu[4:15, 8:22, 12:40] += (specks((11, 14, 28), 3) * 300).astype(np.int16)
    geometry = Geometry(shape=hu.shape, spacing=(2.5, 0.7, 0.7), origin=(0.0, 0.0, 0.0))
    x, y, z = geometry.to_lps([n / 2 for n in hu.shape])
    volume = Volume(hu=hu, geometry=geometry)
    whole = ScreeningModel(networks, device=CPU, threshold=0.02, least=LEAST).predict(volume, (x, y, z))
    assert whole.highest is not None
    threshold = whole.highest + way * (whole.highest if way < 0 else 1 - whole.highest)
    full, lean = (
        ScreeningModel(networks, device=CPU, threshold=threshold, least=least).predict(volume, (x, y, z))
        for least in (LEAST, None)
    )
    assert lean.positive == full.positive == (way < 0)
    np.testing.assert_array_equal(lean.mask, full.mask)
    assert full.highest == pytest.approx(whole.highest, abs=2e-3)
    assert (lean.highest is None) is (way > 0)
    if lean.highest is not None:
        assert lean.highest == pytest.approx(whole.highest, abs=2e-3)
    assert sum(lean.slices_run.values()) <= sum(full.slices_run.values())


def test_how_far_a_network_sees() -> None:
    torch.manual_seed(0)
    network = SliceUNet().eval()
    for offset in range(4):
        plane = torch.randn(1, 2, 128, 128, requires_grad=True)
        network(plane)[0, 0, 64 + offset, 64 + offset].backward()
        for axis in (2, 3):
            others = tuple(a for a in range(4) if a != axis)
            reached = torch.nonzero(plane.grad.abs().sum(dim=others)).flatten()
            assert int(reached.min()) > 64 + offset - SEEN
            assert int(reached.max()) < 64 + offset + SEEN


def test_the_highest_threshold_is_where_the_answer_changes() -> None:
    rng = np.random.default_rng(4)
    root = np.where(specks((20, 40, 40), 5), rng.random((20, 40, 40)), 0.0).astype(np.float32)
    highest = highest_threshold(root)
    assert without_single_slices(root >= highest).any()
    assert not without_single_slices(root >= highest + 2e-3).any()
    single = np.zeros_like(root)
    single[:, 3] = 1.0
    assert highest_threshold(single) == 0.0


@pytest.mark.slow
def test_a_turned_series_gives_the_same_answer(networks: dict[str, torch.nn.Module]) -> None:
    rng = np.random.default_rng(6)
    hu = rng.normal(40, 80, (20, 40, 48)).astype(np.int16)
    geometry = Geometry(shape=hu.shape, spacing=(3.0, 1.5, 1.5), origin=(-70.0, -60.0, -40.0))
    x, y, z = geometry.to_lps([n / 2 for n in hu.shape])
    model = ScreeningModel(networks, device=CPU, threshold=0.3)
    upright = model.predict(Volume(hu=hu, geometry=geometry), (x, y, z))
    corner = geometry.to_lps([n - 1 for n in hu.shape])
    turned = Geometry(
        shape=hu.shape,
        spacing=geometry.spacing,
        origin=(float(corner[0]), float(corner[1]), float(corner[2])),
        axes=((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
    )
    other = model.predict(Volume(hu=np.ascontiguousarray(hu[::-1, ::-1, ::-1]), geometry=turned), (x, y, z))
    assert upright.positive
    assert upright.highest == pytest.approx(other.highest, abs=2e-3)
    np.testing.assert_array_equal(other.mask[::-1, ::-1, ::-1], upright.mask)
    assert (hu[upright.mask] >= 130).all()


@pytest.mark.slow
def test_a_positive_scan_shows_what_made_it_so(networks: dict[str, torch.nn.Module]) -> None:
    """Slices of 5 mm, twice those of the crop, and voxels whose neighbours are dark."""
    rng = np.random.default_rng(8)
    hu = np.full((16, 60, 60), 40, np.int16)
    hu[specks(hu.shape, 9)] = 300
    geometry = Geometry(shape=hu.shape, spacing=(5.0, 0.9, 0.9), origin=(0.0, 0.0, 0.0))
    x, y, z = geometry.to_lps([n / 2 for n in hu.shape])
    positive = 0
    for shift in rng.uniform(-1.5, 1.5, (8, 3)):
        model = ScreeningModel(networks, device=CPU, threshold=float(rng.uniform(0.1, 0.6)))
        found = model.predict(Volume(hu=hu, geometry=geometry), (x + shift[0], y + shift[1], z + shift[2]))
        assert found.positive == found.mask.any()
        assert (hu[found.mask] >= 130).all()
        positive += found.positive
    assert positive > 2


def test_nothing_of_130_hu_is_negative_without_asking(networks: dict[str, torch.nn.Module]) -> None:
    hu = np.full((30, 60, 60), 100, np.int16)
    geometry = Geometry(shape=hu.shape, spacing=(3.0, 1.5, 1.5), origin=(0.0, 0.0, 0.0))
    found = ScreeningModel(networks, device=CPU).predict(Volume(hu=hu, geometry=geometry), (45.0, 45.0, 45.0))
    assert not found.positive
    assert found.highest == 0
    assert set(found.slices_run.values()) == {0}


def test_the_walls_of_the_chest_are_taken_off() -> None:
    """A chest of two walls and a ball between them, in lung."""
    z, y, x = np.mgrid[:40, :120, :140]
    hu = np.full(z.shape, -850, np.int16)
    hu[:, :18] = hu[:, -25:] = 40
    ball = (z - 22) ** 2 + ((y - 60) / 2.2) ** 2 + ((x - 80) / 2.2) ** 2 < 13**2
    hu[ball] = 40
    geometry = Geometry(shape=hu.shape, spacing=(4.0, 2.0, 2.0), origin=(-140.0, -120.0, -500.0))
    centre = chest_wall_crop(Volume(hu=hu, geometry=geometry))
    assert centre is not None
    np.testing.assert_allclose(centre, geometry.to_lps([22, 60, 80]), atol=3.0)
    hu[ball] = -850
    assert chest_wall_crop(Volume(hu=hu, geometry=geometry)) is None


def test_the_walls_of_a_simulated_chest(simulated: Path) -> None:
    centre = chest_wall_crop(read_series(discover(simulated / "SIM-0003" / "ct").series[0]).volume)
    assert centre is not None
    assert np.linalg.norm(np.subtract(centre, heart_centroid(3))) < 60
