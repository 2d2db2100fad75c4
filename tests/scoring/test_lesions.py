"""The voxels of lesions, against the score's own table."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from deepcac2.imaging import Geometry, Volume
from deepcac2.scoring import score
from deepcac2.scoring.lesions import lesion_voxels

GEOMETRY = Geometry(shape=(12, 40, 40), spacing=(2.5, 0.7, 0.7), origin=(0.0, 0.0, 0.0))


@pytest.mark.parametrize("rule", ["agatston", "van-velzen", "deepcac-v1"])
def test_lesions_are_those_of_the_score(rule: str) -> None:
    rng = np.random.default_rng(8)
    hu = (scipy.ndimage.gaussian_filter(rng.normal(size=GEOMETRY.shape), (0.6, 1.2, 1.2)) * 700).astype(
        np.int16
    )
    mask = scipy.ndimage.binary_dilation(hu > 150)
    volume = Volume(hu=hu, geometry=GEOMETRY)
    index, lesion = lesion_voxels(volume, mask, rule=rule)
    table = score(volume, mask, rule=rule)
    assert len(index) == table.n_counted > 0
    assert sorted(np.bincount(lesion)) == sorted(x.n_voxels for x in table.lesions)
    assert mask[tuple(index.T)].all()


def test_an_empty_mask_has_none() -> None:
    volume = Volume(hu=np.zeros(GEOMETRY.shape, np.int16), geometry=GEOMETRY)
    index, lesion = lesion_voxels(volume, np.zeros(GEOMETRY.shape, bool))
    assert index.shape == (0, 3)
    assert lesion.shape == (0,)
