"""A score divided by arteries, against sums by hand and the score of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from deepcac2.errors import MaskMismatch
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import ARTERIES, NOT_SURE, Labels
from deepcac2.scoring import score, score_by_class

CLASSES = (*ARTERIES, NOT_SURE)


def _volume(hu: np.ndarray) -> Volume:
    hu = hu.astype(np.int16)
    return Volume(hu=hu, geometry=Geometry(shape=hu.shape, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)))


def test_by_hand() -> None:
    """6 mm² with 450 HU run from the LM (2 pixels) into the LAD (4); 3 mm² of 150 HU are the RCA's."""
    hu, values = np.zeros((2, 8, 8)), np.zeros((2, 8, 8), dtype=np.uint8)
    hu[0, 1, 1:7], values[0, 1, 1:3], values[0, 1, 3:7] = 140, 1, 2
    hu[0, 1, 1] = 450
    hu[1, 6, 0:3], values[1, 6, 0:3] = 150, 4
    found = score_by_class(_volume(hu), Labels(array=values, classes=CLASSES))
    assert found["LM"].centroid_lps == (1.5, 1.0, 0.0)
    assert found["RCA"].centroid_lps == (1.0, 6.0, 3.0)
    assert found["LCX"].centroid_lps is None
    assert {name: (part.score, part.volume_mm3, part.n_lesions) for name, part in found.items()} == {
        "LM": (pytest.approx(2 * 4), 6.0, 0),
        "LAD": (pytest.approx(4 * 4), 12.0, 1),
        "LCX": (0.0, 0.0, 0),
        "RCA": (pytest.approx(3.0), 9.0, 1),
        "artery not sure": (0.0, 0.0, 0),
    }


@pytest.mark.parametrize("rule", ["agatston", "classic", "ai-cac", "van-velzen"])
@pytest.mark.parametrize("seed", range(4))
def test_sums_are_those_of_the_whole(seed: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    volume = _volume(rng.integers(60, 700, (6, 24, 24)))
    values = np.where(rng.random((6, 24, 24)) < 0.35, rng.integers(1, 6, (6, 24, 24)), 0).astype(np.uint8)
    whole = score(volume, values > 0, rule=rule, slice_thickness=3.0)
    parts = score_by_class(volume, Labels(array=values, classes=CLASSES), rule=rule, slice_thickness=3.0)
    assert sum(part.score for part in parts.values()) == pytest.approx(whole.total, rel=1e-12)
    assert sum(part.volume_mm3 for part in parts.values()) == pytest.approx(whole.volume_mm3)
    assert sum(part.n_lesions for part in parts.values()) == len(whole.lesions)


def test_nothing_is_nothing() -> None:
    labels = Labels(array=np.zeros((2, 4, 4), dtype=np.uint8), classes=CLASSES)
    found = score_by_class(_volume(np.zeros((2, 4, 4))), labels)
    assert all((part.score, part.volume_mm3, part.n_lesions) == (0.0, 0.0, 0) for part in found.values())


def test_another_grid_is_refused() -> None:
    with pytest.raises(MaskMismatch):
        score_by_class(
            _volume(np.zeros((2, 4, 4))), Labels(array=np.ones((2, 4, 5), dtype=np.uint8), classes=CLASSES)
        )
