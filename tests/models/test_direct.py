"""Direct scoring: how slices are made, found and explained."""

from __future__ import annotations

from copy import copy

import numpy as np
import pytest
import torch

from deepcac2.imaging import Geometry, Volume
from deepcac2.models.slice_regression.network import (
    BOX_SPACING_MM,
    INCREMENT_MM,
    PLANE,
    THICKNESS_MM,
    DirectModel,
    SlicePresence,
    SliceRegressor,
    box_grid,
    longest_run,
    slice_weights,
    thick_slices,
    to_plane,
)

CPU = torch.device("cpu")


class Everywhere(torch.nn.Module):
    """Says that the heart is in every slice that is on average above −100 HU."""

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        return slices.mean(dim=(1, 2, 3)) - 1 / 3


@pytest.fixture(scope="module")
def model() -> DirectModel:
    torch.manual_seed(1)
    regressor = SliceRegressor(channels=(4, 4, 8, 8, 8, 8), hidden=8)
    regressor.second.bias.data.fill_(3.0)
    return DirectModel({n: Everywhere() for n in ("axial", "coronal", "sagittal")}, regressor, device=CPU)


@pytest.mark.parametrize("spacing", [0.7, 1.5, 3.0, 5.0])
def test_thick_slices_are_means_over_three_millimetres(spacing: float) -> None:
    """Against the same integral over 3,000 points."""
    n = 24
    values = np.random.default_rng(1).normal(0, 100, n)
    first = 2.5 * spacing + 0.37
    weights = slice_weights(n, spacing, 6, first)
    made = thick_slices(torch.from_numpy(values)[:, None, None], weights)[:, 0, 0].numpy()
    for k in range(6):
        middle = first + k * INCREMENT_MM
        points = middle + (np.arange(3000) + 0.5) / 3000 * THICKNESS_MM - THICKNESS_MM / 2
        index = np.clip(np.rint(points / spacing), 0, n - 1).astype(int)
        assert made[k] == pytest.approx(values[index].mean(), abs=0.5)


def test_beyond_the_ct_the_outermost_slice_goes_on() -> None:
    weights = slice_weights(3, 2.0, 4, -8.0)
    np.testing.assert_allclose(weights.sum(dim=1), 1.0)
    assert weights[0].tolist() == [1.0, 0.0, 0.0]


def test_a_plane_holds_the_box_in_its_middle_and_zeros_around() -> None:
    hu = torch.full((1, 300, 300), 182.5)
    plane = to_plane(hu, slice(20, 120), slice(10, 60))
    assert plane.shape == (1, 1, PLANE, PLANE)
    assert float(plane.sum()) == pytest.approx(0.5 * 100 * 50)
    assert plane[0, 0, 78:178, 103:153].min() == 0.5
    assert to_plane(hu, slice(0, 300), slice(0, 300)).min() == 0.5


def test_the_longest_run() -> None:
    assert longest_run(np.zeros(4, bool)) is None
    assert longest_run(np.ones(4, bool)) == slice(0, 4)
    assert longest_run(np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)) == slice(3, 6)


@pytest.mark.parametrize("shared", [False, True])
def test_layers_that_share_their_weights_have_fewer(shared: bool) -> None:
    network = SliceRegressor(channels=(8,) * 6, hidden=8, shared=shared, log_target=True)
    kernels = sum(p.numel() for name, p in network.named_parameters() if name.startswith("kernels"))
    assert kernels == (9 * 8 + 64 * 9 if shared else 9 * 8 + 5 * 64 * 9)
    score = network.eval().score(torch.rand(2, 1, PLANE, PLANE), torch.ones(2, 3))
    assert score.shape == (2,)
    assert (score >= 0).all()
    with pytest.raises(ValueError, match="same number"):
        SliceRegressor(shared=True)


def chest() -> tuple[Volume, tuple[slice, slice, slice]]:
    """Soft tissue where the heart shall be, air elsewhere."""
    hu = np.full((60, 120, 120), -1000, np.int16)
    box = slice(12, 42), slice(30, 90), slice(24, 84)
    hu[box] = 60
    hu[20:24, 50:54, 40:44] = 600
    geometry = Geometry(shape=hu.shape, spacing=(3.0, 2.0, 2.0), origin=(-100.0, -100.0, -300.0))
    return Volume(hu=hu, geometry=geometry), box


def test_the_box_is_where_the_networks_say(model: DirectModel) -> None:
    volume, box = chest()
    hu = volume.hu
    found = model.find_box(np.where(hu < 0, np.int16(-101), np.int16(500)), volume.geometry)
    assert found is not None
    for span, wanted, spacing in zip(found, box, volume.geometry.spacing, strict=True):
        assert abs(span.start - wanted.start) * spacing <= BOX_SPACING_MM
        assert abs(span.stop - wanted.stop) * spacing <= BOX_SPACING_MM
    assert model.find_box(np.full_like(hu, -1000), volume.geometry) is None
    grid = box_grid(volume.geometry)
    np.testing.assert_allclose(
        grid.to_lps([(n - 1) / 2 for n in grid.shape]),
        volume.geometry.to_lps([(n - 1) / 2 for n in hu.shape]),
        atol=BOX_SPACING_MM / 2,
    )


def test_attention_adds_up_to_the_score_and_lies_in_the_box(model: DirectModel) -> None:
    volume, box = chest()
    heart = np.zeros(volume.hu.shape, bool)
    heart[box] = True
    found = model.predict(volume, heart=heart)
    assert found is not None
    assert found.box == box
    assert len(found.slice_scores) == 60  # 30 slices of 3 mm, every 1.5 mm
    assert found.score == pytest.approx(float(found.slice_scores.sum()), rel=1e-5)
    attention = model.attention(volume, found)
    assert attention.shape == volume.hu.shape
    assert attention.min() >= 0
    shown = found.slice_scores[found.slice_scores >= 0.5].sum()
    assert 0 < attention.sum() <= shown * 1.001
    assert not attention[:, : box[1].start].any()
    assert model.predict(volume, heart=np.zeros_like(heart)) is None
    more = copy(model)
    more.score_factor = 1.5
    higher = more.predict(volume, heart=heart)
    assert higher is not None
    np.testing.assert_allclose(higher.slice_scores, 1.5 * found.slice_scores, rtol=1e-5)
    assert higher.score == pytest.approx(1.5 * found.score)
    np.testing.assert_allclose(more.attention(volume, higher).sum(), 1.5 * attention.sum(), rtol=1e-4)


def test_presence_takes_slices_of_any_size() -> None:
    network = SlicePresence(channels=(4, 4, 8)).eval()
    for shape in ((8, 8), (61, 73), (90, 40)):
        assert network(torch.rand(3, 1, *shape)).shape == (3,)
