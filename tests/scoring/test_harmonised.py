"""The score on averaged and softened slices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from deepcac2.dicom import Series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, SCORE
from deepcac2.pipeline.harmonised import HARMONISED, HarmonisedCalculatorOptions, ScoreHarmonised
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.scoring import score
from deepcac2.scoring.harmonised import REACH_MM, SOFTENING_MM, harmonised

SHAPE = (20, 60, 60)


def _volume(hu: np.ndarray, increment: float = 1.0) -> Volume:
    axes = ((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))  # from head to feet
    geometry = Geometry(shape=hu.shape, spacing=(increment, 0.7, 0.6), origin=(5.0, -8.0, 70.0), axes=axes)
    return Volume(hu=hu.astype(np.int16), geometry=geometry)


def _noisy(seed: int = 0, sd: float = 40.0, increment: float = 1.0) -> tuple[Volume, np.ndarray]:
    """A rod of 160 HU through some slices, with noise; and where it is."""
    y, x = np.ogrid[:60, :60]
    inside = ((y - 30) * 0.7) ** 2 + ((x - 28) * 0.6) ** 2 <= 4.0**2
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:14] = inside
    hu = np.where(mask, 160, 40) + np.random.default_rng(seed).normal(0, sd, SHAPE)
    return _volume(np.rint(hu), increment), mask


def test_slices_are_averaged_from_the_first_of_the_ct_on() -> None:
    volume, mask = _noisy()
    mask[:8] = mask[13:] = False  # the mask begins within a slab, and ends within one
    found, where = harmonised(volume, mask, sharp=False)
    whole = volume.hu[:18].reshape(6, 3, 60, 60).mean(axis=1)
    assert found.hu.shape[0] == 3  # slabs 2 to 4 hold slices 8 to 12
    index = np.rint(volume.geometry.to_index(found.geometry.to_lps(np.argwhere(where)))).astype(int)
    expected = whole[index[:, 0] // 3, index[:, 1], index[:, 2]]
    np.testing.assert_allclose(found.hu[where], expected, atol=0.5)
    np.testing.assert_array_equal(index[:, 0] % 3, 1)  # the middle of a slab is its middle slice
    assert found.geometry.spacing == (3.0, 0.7, 0.6)


def test_what_is_left_over_at_the_end_is_a_slab_of_its_own() -> None:
    hu = np.zeros(SHAPE, dtype=np.int16)
    hu[18:, 10:20, 10:20] = [[[300]], [[500]]]
    found, where = harmonised(_volume(hu), hu > 0, sharp=False)
    assert found.hu[where].max() == 400


@pytest.mark.parametrize("sharp", [False, True])
def test_only_a_sharp_kernel_is_softened(sharp: bool) -> None:
    volume, mask = _noisy(increment=3.0)
    found, where = harmonised(volume, mask, sharp=sharp)
    if not sharp:
        assert found is volume
        assert where is mask
        return
    whole = np.stack(
        [
            ndimage.gaussian_filter(s.astype(float), [SOFTENING_MM / 0.7, SOFTENING_MM / 0.6])
            for s in volume.hu
        ]
    )
    index = np.rint(volume.geometry.to_index(found.geometry.to_lps(np.argwhere(where)))).astype(int)
    np.testing.assert_allclose(found.hu[where], whole[tuple(index.T)], atol=0.51)
    # the mask reaches as far beyond its edge as it says
    grown = ndimage.distance_transform_edt(~mask, sampling=(1e6, 0.7, 0.6)) <= REACH_MM
    assert set(map(tuple, index)) == set(map(tuple, np.argwhere(grown)))


@pytest.mark.parametrize("increment", [0.5, 1.0])
def test_noise_adds_fewer_points(increment: float) -> None:
    quiet, mask = _noisy(sd=0.0, increment=increment)
    true = score(quiet, mask).total
    noisy = [_noisy(seed, sd=60.0, increment=increment)[0] for seed in range(5)]
    plain = [score(volume, mask).total for volume in noisy]
    better = [score(*harmonised(volume, mask, sharp=False)).total for volume in noisy]
    assert min(plain) > 1.5 * true
    assert np.abs(np.array(better) / true - 1).max() < np.abs(np.array(plain) / true - 1).min()


def test_an_even_block_scores_the_same() -> None:
    hu = np.full(SHAPE, 40, dtype=np.int16)
    hu[6:12, 20:30, 20:30] = 350
    volume = _volume(hu)
    assert score(*harmonised(volume, hu > 130, sharp=False)).total == pytest.approx(
        score(volume, hu > 130).total
    )


def test_nothing_stays_nothing() -> None:
    volume, mask = _noisy()
    assert score(*harmonised(volume, np.zeros_like(mask), sharp=True)).total == 0.0
    with pytest.raises(ValueError, match="shape"):
        harmonised(volume, mask[1:], sharp=False)


@pytest.mark.parametrize(("kernel", "softened"), [("STANDARD", 0.0), ("BONE", SOFTENING_MM)])
def test_the_step_scores_beside_and_changes_nothing(kernel: str, softened: float) -> None:
    volume, mask = _noisy()
    facts = {CT: volume, CALCIUM: calcium_labels(mask), CALCIUM_RUN: {}}
    case = ScoreCalcium()(Case(series=Series(series_uid="1.2", kernel=kernel), facts=facts))
    after = ScoreHarmonised()(case)
    assert after[SCORE] is case[SCORE]
    assert after[HARMONISED] == {
        **after[HARMONISED],
        "score": pytest.approx(score(*harmonised(volume, mask, sharp=softened > 0)).total, abs=1e-3),
        "slices_averaged": 3,
        "increment_mm": 3.0,
        "softened_mm": softened,
        "rule": "agatston",
    }
    assert after[HARMONISED]["score"] < case[SCORE].total


def test_a_rule_by_slice_thickness_is_refused() -> None:
    with pytest.raises(ValueError, match="SliceThickness"):
        HarmonisedCalculatorOptions(rule="ai-cac")
