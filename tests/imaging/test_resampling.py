"""Resampling against SciPy's general interpolator, and the support rule against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from deepcac2.imaging import Geometry
from deepcac2.imaging.resampling import (
    axis_weights,
    centred_grid,
    interpolation_matrix,
    reached,
    resample,
    resample_to_shape,
    sample,
    support,
)


def grids(seed: int) -> tuple[Geometry, Geometry]:
    rng = np.random.default_rng(seed)
    # A rotated, left-handed frame: nothing may depend on the axes being the patient's.
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    frame = tuple(tuple(float(v) for v in row) for row in axes)
    source = Geometry(shape=(9, 14, 11), spacing=(3.0, 0.8, 1.1), origin=(5.0, -7.0, 40.0), axes=frame)
    centre = source.to_lps(rng.uniform(2, 7, 3))
    target = centred_grid(source, tuple(centre), (1.7, 1.3, 0.9), (12, 10, 13))
    return source, target


@pytest.mark.parametrize("seed", range(5))
def test_resample_is_trilinear(seed: int) -> None:
    source, target = grids(seed)
    array = np.random.default_rng(seed).normal(size=source.shape).astype(np.float32)
    ours = resample(array, source, target, outside=-5.0).numpy()
    index = source.to_index(target.to_lps(np.moveaxis(np.indices(target.shape), 0, -1)))
    theirs = map_coordinates(array, np.moveaxis(index, -1, 0), order=1, mode="nearest")
    size = np.asarray(source.shape)
    outside = ((index < -0.5) | (index > size - 0.5)).any(axis=-1)
    assert outside.any()
    assert not outside.all()
    np.testing.assert_allclose(ours[~outside], theirs[~outside], atol=1e-4)
    assert (ours[outside] == -5.0).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_part_of_the_target_is_that_part_of_the_whole(seed: int) -> None:
    """Bit for bit, as masks hang on a threshold; also of an array that runs backwards."""
    source, target = grids(seed)
    rng = np.random.default_rng(seed)
    array = rng.normal(size=source.shape).astype(np.float32)
    whole = resample(array, source, target, outside=-5.0).numpy()
    assert (
        resample(np.ascontiguousarray(array[::-1])[::-1], source, target, outside=-5.0).numpy() == whole
    ).all()
    for _ in range(20):
        first = [int(rng.integers(0, n)) for n in target.shape]
        box = tuple(
            slice(i, int(rng.integers(i + 1, n + 1))) for i, n in zip(first, target.shape, strict=True)
        )
        assert (resample(array, source, target, outside=-5.0, box=box).numpy() == whole[box]).all()
    index = np.nonzero(rng.random(target.shape) < 0.3)
    values = sample(torch.from_numpy(array), source, target, index, outside=-5.0).numpy()
    assert (values == whole[index]).all()


def test_single_slices_can_be_sampled_point_by_point() -> None:
    geometry = Geometry(shape=(1, 4, 5), spacing=(2.0, 1.0, 1.0), origin=(0, 0, 0), axes=np.eye(3).tolist())
    array = torch.rand(geometry.shape)
    moved = replace(geometry, shape=(3, 4, 6), origin=(0.25, 0.5, 0.0), spacing=(1.0, 0.9, 0.8))
    whole = resample(array, geometry, moved, outside=0.0)
    index = np.nonzero(np.ones(moved.shape, dtype=bool))
    assert (sample(array, geometry, moved, index, outside=0.0) == whole.flatten()).all()
    nowhere = replace(moved, origin=(100.0, 0.0, 0.0))
    assert (sample(array, geometry, nowhere, index, outside=3.0) == 3.0).all()


@pytest.mark.parametrize("seed", range(3))
def test_what_reads_a_box_is_reached(seed: int) -> None:
    source, target = grids(seed)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        first = [int(rng.integers(0, n)) for n in source.shape]
        box = tuple(
            slice(i, int(rng.integers(i + 1, n + 1))) for i, n in zip(first, source.shape, strict=True)
        )
        probe = np.zeros(source.shape, dtype=np.float32)
        probe[box] = 1.0
        read = resample(probe, source, target, outside=0.0).numpy() > 0
        near = reached(box, source, target)
        if near is None:
            assert not read.any()
        else:
            read[near] = False
            assert not read.any()


@pytest.mark.parametrize("seed", range(3))
def test_support_holds_every_voxel_that_is_read_and_no_other(seed: int) -> None:
    ct, model = grids(seed)
    rng = np.random.default_rng(seed)
    mask = rng.random(ct.shape) < 0.02
    found = support(mask, ct, model)
    read = np.zeros(model.shape, dtype=bool)
    for voxel in np.argwhere(np.ones(model.shape, dtype=bool)):
        probe = np.zeros(model.shape, dtype=np.float32)
        probe[tuple(voxel)] = 1.0
        back = resample(probe, model, ct, outside=0.0).numpy()
        read[tuple(voxel)] = bool((back[mask] > 0).any())
    assert read.any()
    np.testing.assert_array_equal(found, read)


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "smooth"])
def test_a_shape_is_reached_as_by_whole_matrices(kind: str) -> None:
    rng = np.random.default_rng(3)
    array, shape = rng.integers(-1000, 1500, (37, 90, 61)).astype(np.int16), (9, 20, 66)
    expected = array.astype(np.float32).clip(-500, 900)
    for axis, new in enumerate(shape):
        matrix = interpolation_matrix(array.shape[axis], new, kind)
        expected = np.moveaxis(np.tensordot(matrix, expected, axes=(1, axis)), 0, axis)
    expected = expected.clip(-500, 900)
    for source in (array, np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1]):
        ours = resample_to_shape(source, shape, clip=(-500, 900), kinds=(kind,) * 3).numpy()
        np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_axes_that_differ_are_refused() -> None:
    source, target = grids(0)
    other = Geometry(shape=target.shape, spacing=target.spacing, origin=target.origin)
    with pytest.raises(ValueError, match="same axes"):
        resample(np.zeros(source.shape, np.float32), source, other, outside=0.0)


def test_a_single_slice_can_be_sampled() -> None:
    weights = axis_weights(-0.4, 0.4, 3, 1)
    np.testing.assert_array_equal(weights.inside, [True, True, True])
    np.testing.assert_array_equal(weights.low, [0, 0, 0])
    geometry = Geometry(shape=(1, 2, 2), spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    array = np.arange(4, dtype=np.int16).reshape(1, 2, 2)
    np.testing.assert_array_equal(resample(array, geometry, geometry, outside=0.0).numpy(), array)


def test_centred_grid_is_centred() -> None:
    source, _ = grids(1)
    grid = centred_grid(source, (1.0, 2.0, 3.0), (2.5, 0.7, 0.7), (58, 256, 256))
    middle = grid.to_lps([(n - 1) / 2 for n in grid.shape])
    np.testing.assert_allclose(middle, (1.0, 2.0, 3.0), atol=1e-9)
