"""Geometry: index ↔ patient, and the NIfTI affine against nibabel."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from deepcac2.imaging import Geometry, Volume

OBLIQUE = Geometry(
    shape=(4, 5, 6),
    spacing=(2.5, 0.7, 0.6),
    origin=(-10.0, 20.0, 300.0),
    axes=((0.0, 0.6, 0.8), (0.0, 0.8, -0.6), (-1.0, 0.0, 0.0)),
)


def test_index_and_patient_are_inverse() -> None:
    index = np.random.default_rng(0).uniform(-3, 9, (20, 3))
    np.testing.assert_allclose(OBLIQUE.to_index(OBLIQUE.to_lps(index)), index, atol=1e-9)
    np.testing.assert_allclose(OBLIQUE.to_lps([1, 0, 0]) - OBLIQUE.to_lps([0, 0, 0]), [0, 1.5, 2.0])


def test_nifti_affine_gives_ras_points() -> None:
    image = nibabel.Nifti1Image(np.zeros((6, 5, 4), np.int16), OBLIQUE.affine_ras_xyz())
    point = nibabel.affines.apply_affine(image.affine, [2, 1, 3])
    np.testing.assert_allclose(point * [-1, -1, 1], OBLIQUE.to_lps([3, 1, 2]))
    np.testing.assert_allclose(image.header.get_zooms(), [0.6, 0.7, 2.5], atol=1e-6)


def test_same_grid_sees_a_shift_of_the_far_corner() -> None:
    near = Geometry(shape=(4, 5, 6), spacing=(2.5, 0.7, 0.601), origin=OBLIQUE.origin, axes=OBLIQUE.axes)
    assert near.same_grid(OBLIQUE)
    far = Geometry(shape=(4, 5, 6), spacing=(2.5, 0.7, 0.61), origin=OBLIQUE.origin, axes=OBLIQUE.axes)
    assert not far.same_grid(OBLIQUE)


def test_volume_refuses_other_types() -> None:
    with pytest.raises(ValueError, match="int16"):
        Volume(hu=np.zeros((4, 5, 6), np.float32), geometry=OBLIQUE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        Volume(hu=np.zeros((4, 5, 7), np.int16), geometry=OBLIQUE)
