"""The gates that look at the heart, and the geometry helpers of the stages."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from deepcac2.errors import SeriesRejected
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.masks import solidity, widened
from deepcac2.pipeline.stages import check_heart, check_metal, heart_centre

GEOMETRY = Geometry(shape=(60, 90, 90), spacing=(3.0, 3.0, 3.0), origin=(-130.0, -130.0, -200.0))


def ball(radius_mm: float, centre_mm: tuple[float, float, float] = (90.0, 135.0, 135.0)) -> np.ndarray:
    z, y, x = np.indices(GEOMETRY.shape) * 3.0
    cz, cy, cx = centre_mm
    return (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 <= radius_mm**2


def chest(heart: np.ndarray, blood: float = 40.0, *, liver_mm: float = 45.0) -> Volume:
    """The heart between two lungs, in a trunk with a spine behind it and the liver below."""
    z, y, x = np.indices(GEOMETRY.shape) * 3.0
    hu = np.full(GEOMETRY.shape, -1000.0)
    y, x = y - 135, x - 135
    hu[(x / 130) ** 2 + (y / 120) ** 2 <= 1] = 50
    hu[((x / 115) ** 2 + (y / 100) ** 2 <= 1) & (z > liver_mm)] = -850
    hu[(np.abs(x) < 30) & (y > 40) & (y < 110)] = 50
    hu[np.hypot(x, y - 95) < 18] = 300
    hu[heart] = np.random.default_rng(0).normal(blood, 20, int(heart.sum()))
    return Volume(hu=hu.astype(np.int16), geometry=GEOMETRY)


def code_of(heart: np.ndarray, volume: Volume) -> str:
    with pytest.raises(SeriesRejected) as caught:
        check_heart(volume, heart)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_a_heart_passes_and_is_measured() -> None:
    heart = ball(50)
    facts, findings = check_heart(chest(heart), heart)
    assert facts["heart_volume_ml"] == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.01)
    assert facts["heart_inner_median_hu"] == pytest.approx(40, abs=2)
    assert findings == ()


def test_each_gate_has_its_code() -> None:
    assert code_of(np.zeros(GEOMETRY.shape, dtype=bool), chest(ball(50))) == "heart-not-found"
    empty = Volume(hu=np.zeros(GEOMETRY.shape, dtype=np.int16), geometry=GEOMETRY)
    assert code_of(ball(50), empty) == "heart-not-found"
    assert code_of(ball(20), chest(ball(50))) == "heart-implausible"
    assert code_of(ball(50), chest(ball(50), blood=-850)) == "heart-implausible"
    assert code_of(ball(50), chest(ball(50), blood=-30)) == "hu-implausible"
    liver = Volume(hu=chest(np.ones(GEOMETRY.shape, dtype=bool)).hu, geometry=GEOMETRY)
    assert code_of(ball(50), liver) == "no-chest"
    sausage = ball(45, (50.0, 135.0, 135.0)) | ball(25, (120.0, 135.0, 190.0))
    sausage[25:35, 45, 45:60] = True
    assert code_of(sausage, chest(sausage)) == "heart-implausible"
    low = ball(50, (0.0, 135.0, 135.0))
    assert code_of(low, chest(low, liver_mm=-1.0)) == "heart-cut-off"
    side = ball(60, (90.0, 135.0, 20.0))
    assert code_of(side, chest(side)) == "heart-cut-off"
    assert code_of(ball(50), chest(ball(50), blood=180)) == "contrast-measured"


def test_allow_turns_a_rejection_into_a_warning_but_not_a_missing_heart() -> None:
    heart = ball(50)
    _, findings = check_heart(chest(heart, blood=180), heart, allow=["contrast-measured"])
    assert [(f.code, f.fatal) for f in findings] == [("contrast-measured", False)]
    with pytest.raises(SeriesRejected):
        check_heart(chest(heart), np.zeros(GEOMETRY.shape, dtype=bool), allow=["heart-not-found"])


def test_the_centre_is_the_middle_of_the_box() -> None:
    heart = ball(50)
    heart[40:44, 40:50, 44:46] = True
    expected = GEOMETRY.to_lps([30, 45, 45])
    np.testing.assert_allclose(heart_centre(heart, GEOMETRY), expected, atol=3.0)
    with pytest.raises(ValueError, match="empty mask"):
        heart_centre(np.zeros(GEOMETRY.shape, dtype=bool), GEOMETRY)


def test_metal_among_what_would_be_counted_is_rejected() -> None:
    lesion = ball(6)
    volume = chest(ball(50))
    volume.hu[lesion] = 1400
    assert check_metal(volume, lesion, "STANDARD") == ()
    volume.hu[lesion] = 1600
    with pytest.raises(SeriesRejected, match="1600 HU") as caught:
        check_metal(volume, lesion, "STANDARD")
    assert caught.value.code == "metal"
    assert check_metal(volume, lesion, "BONE") == ()  # sharp kernels overshoot
    assert check_metal(volume, ball(6, (30.0, 60.0, 60.0)), "STANDARD") == ()  # beside what is counted
    (finding,) = check_metal(volume, lesion, "STANDARD", allow=["metal"])
    assert not finding.fatal
    volume.hu[lesion] = 2100
    with pytest.raises(SeriesRejected):
        check_metal(volume, lesion, "BONE")
    fine = Geometry(shape=GEOMETRY.shape, spacing=(0.7, 0.6, 0.6), origin=GEOMETRY.origin)
    hu = np.full(GEOMETRY.shape, 300, dtype=np.int16)
    hu[30, 45, 45] = 1700  # one voxel of 0.25 mm³: noise
    assert check_metal(Volume(hu=hu, geometry=fine), ball(6), "STANDARD") == ()


def test_solidity_of_a_box_an_angle_and_a_ball() -> None:
    box = np.zeros(GEOMETRY.shape, dtype=bool)
    assert solidity(box, GEOMETRY) == 0
    box[20:40, 20:60, 20:60] = True
    assert solidity(box, GEOMETRY) == pytest.approx(1)
    box[:, 40:60, 40:60] = False  # three of four squares; the hull cuts half of the fourth off
    assert solidity(box, GEOMETRY) == pytest.approx(3 / 3.5)
    assert 0.85 < solidity(ball(50), GEOMETRY) < 0.95


def test_widened_is_the_mask_and_its_surroundings() -> None:
    fine = Geometry(shape=(30, 160, 160), spacing=(2.5, 0.8, 0.8), origin=(0.0, 0.0, 0.0))
    z, y, x = (np.indices(fine.shape).T * np.asarray(fine.spacing)).T
    mask = (z - 37) ** 2 + (y - 60) ** 2 + (x - 64) ** 2 <= 20**2
    exact = distance_transform_edt(~mask, sampling=fine.spacing)
    wide = widened(mask, fine, 10.0)
    assert wide[exact <= 7].all()
    assert not wide[exact > 15].any()
