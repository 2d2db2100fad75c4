"""The stages, each on a simulated patient whose truth is known; their gates; their geometry helpers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from deepcac2.dicom import Finding, Series, discover, read_segmentation
from deepcac2.errors import SeriesFailed, WeightsMissing
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels, heart_labels
from deepcac2.imaging.masks import box_centre, dilated, solidity
from deepcac2.models.calcium.step import FindCalcium
from deepcac2.models.heart.step import FindHeart, check_heart
from deepcac2.models.rule_out.step import SCREENING, RuleOut
from deepcac2.models.slice_regression.step import ATTENTION, DIRECT, ScoreDirectly
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.cautions import cautions
from deepcac2.pipeline.facts import (
    CALCIUM,
    CALCIUM_RUN,
    CT,
    DOMAIN,
    EXCLUDED,
    HEART,
    HEART_MEASURES,
    POSSIBLE_CALCIUM,
    SCORE,
)
from deepcac2.pipeline.reading import build_volume, check_headers
from deepcac2.pipeline.scoring import ScoreCalcium, check_metal
from deepcac2.weights import WeightSet, resolve

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
    """Of the first finding, which is fatal."""
    _, findings = check_heart(volume, heart)
    assert findings[0].fatal
    assert "\n" not in findings[0].message
    return findings[0].code


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
    high = ball(50, (177.0, 135.0, 135.0))
    assert code_of(high, chest(high)) == "heart-cut-off"
    side = ball(60, (90.0, 135.0, 20.0))
    assert code_of(side, chest(side)) == "heart-cut-off"
    assert code_of(ball(50), chest(ball(50), blood=180)) == "contrast-measured"


def test_allow_turns_a_rejection_into_a_warning_but_not_a_missing_heart() -> None:
    heart = ball(50)
    _, findings = check_heart(chest(heart, blood=180), heart, allow=["contrast-measured"])
    assert [(f.code, f.fatal) for f in findings] == [("contrast-measured", False)]
    nothing = np.zeros(GEOMETRY.shape, dtype=bool)
    facts, (finding,) = check_heart(chest(heart), nothing, allow=["heart-not-found"])
    assert (facts, finding.code, finding.fatal) == ({}, "heart-not-found", True)


def test_what_one_gate_refuses_hides_nothing_that_another_sees() -> None:
    small = ball(20)
    facts, findings = check_heart(chest(small, blood=180), small, allow=["contrast-measured"])
    assert [(f.code, f.fatal) for f in findings] == [
        ("heart-implausible", True),
        ("contrast-measured", False),
    ]
    assert facts["heart_inner_median_hu"] == pytest.approx(180, abs=5)


def test_the_centre_is_the_middle_of_the_box() -> None:
    heart = ball(50)
    heart[40:44, 40:50, 44:46] = True
    expected = GEOMETRY.to_lps([30, 45, 45])
    np.testing.assert_allclose(box_centre(heart, GEOMETRY), expected, atol=3.0)
    with pytest.raises(ValueError, match="empty mask"):
        box_centre(np.zeros(GEOMETRY.shape, dtype=bool), GEOMETRY)


def test_metal_among_what_would_be_counted_is_rejected() -> None:
    lesion = ball(6)
    volume = chest(ball(50))
    volume.hu[lesion] = 1400
    assert check_metal(volume, lesion, "STANDARD") == ()
    volume.hu[lesion] = 1600
    (finding,) = check_metal(volume, lesion, "STANDARD")
    assert finding.fatal
    assert finding.code == "metal"
    assert "1600 HU" in finding.message
    assert check_metal(volume, lesion, "BONE") == ()  # sharp kernels overshoot
    assert check_metal(volume, ball(6, (30.0, 60.0, 60.0)), "STANDARD") == ()  # beside what is counted
    (finding,) = check_metal(volume, lesion, "STANDARD", allow=["metal"])
    assert not finding.fatal
    volume.hu[lesion] = 2100
    assert check_metal(volume, lesion, "BONE")[0].fatal
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
    wide = dilated(mask, fine, 10.0)
    assert wide[exact <= 7].all()
    assert not wide[exact > 15].any()


# --- the stages, called -------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def bundled(role: str) -> WeightSet:
    try:
        return resolve("bundled", role)
    except WeightsMissing:
        pytest.skip("needs the bundled weights, which are not in this checkout")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture(scope="module")
def scan(simulated: Path) -> Case:
    """A simulated patient up to its CT."""
    (series,) = discover(simulated / "SIM-0003" / "ct").series
    return build_volume(check_headers(Case(series=series)))


@pytest.fixture(scope="module")
def truth(simulated: Path, scan: Case) -> dict[str, np.ndarray]:
    return read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", scan[CT].geometry)


@pytest.fixture(scope="module")
def find_heart() -> FindHeart:
    from deepcac2.models.heart.network import HeartModel

    weights = bundled("heart")
    return FindHeart(model=HeartModel.load(weights, CPU), weights=weights)


def changed(case: Case, where: np.ndarray, value: int) -> Case:
    """The case with other HU somewhere."""
    hu = np.where(where, np.int16(value), case[CT].hu).astype(np.int16)
    return case.add(CT, Volume(hu=hu, geometry=case[CT].geometry))


def air(case: Case) -> Case:
    return changed(case, np.ones(case[CT].geometry.shape, dtype=bool), -1000)


def test_header_findings_stay_and_the_first_fatal_one_stops() -> None:
    found = (
        Finding(code="derived", message="a copy", fatal=True),
        Finding(code="too-thick", message="8 mm", fatal=True),
        Finding(code="kvp", message="at 100 kV", fatal=False),
    )
    case = check_headers(Case(series=Series(series_uid="1", findings=found)))
    assert case.stop is not None
    assert (case.stop.status, case.stop.code, case.stop.reason) == ("rejected", "derived", "a copy")
    assert case.findings == found
    assert case.warnings == found[2:]
    passed = check_headers(Case(series=Series(series_uid="1", findings=found[2:])))
    assert (passed.stop, passed.warnings) == (None, found[2:])


def test_the_volume_is_what_the_files_say(simulated: Path, tmp_path: Path, scan: Case) -> None:
    folder = tmp_path / "ct"
    shutil.copytree(simulated / "SIM-0003" / "ct", folder)
    files = sorted(folder.iterdir(), key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2]))
    again = pydicom.dcmread(files[40])
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    again.save_as(folder / "again.dcm")
    (series,) = discover(folder).series
    case = build_volume(Case(series=series, findings=(Finding(code="kvp", message="", fatal=False),)))
    assert [f.code for f in case.findings] == ["kvp", "duplicate-slices"]
    assert case.stop is None
    assert len(case[CT].hu) == len(case.series.slices) == len(files)
    for z in (0, 40, len(files) - 1):
        ds = pydicom.dcmread(files[z])
        expected = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        expected[ds.pixel_array == ds.PixelPaddingValue] = -1024
        np.testing.assert_array_equal(case[CT].hu[z], expected)
    np.testing.assert_array_equal(case[CT].hu, scan[CT].hu)

    files[7].write_bytes(files[7].read_bytes()[:-1000])
    with pytest.raises(SeriesFailed, match="cannot be decoded"):
        build_volume(Case(series=series))


def test_the_heart_is_found_and_measured(
    scan: Case, truth: dict[str, np.ndarray], find_heart: FindHeart
) -> None:
    case = find_heart(scan)
    assert case.stop is None
    assert dice(case[HEART].mask, truth["heart"]) > 0.9
    millilitres = case[HEART].mask.sum() * np.prod(case[CT].geometry.spacing) / 1000
    assert case[HEART_MEASURES]["heart_volume_ml"] == pytest.approx(millilitres, abs=0.06)
    assert case[DOMAIN]["weights"]["heart"]["name"] == find_heart.weights.name
    assert case.findings == scan.findings
    with pytest.raises(TypeError, match="no stage before"):
        find_heart(Case(series=scan.series))


def test_a_heart_that_a_gate_refuses_is_not_forgotten(
    scan: Case, truth: dict[str, np.ndarray], find_heart: FindHeart
) -> None:
    blood = np.where(truth["heart"], scan[CT].hu + 150, scan[CT].hu).astype(np.int16)
    enhanced = scan.add(CT, replace(scan[CT], hu=blood))
    case = find_heart(enhanced)
    assert case.stop is not None
    assert (case.stop.status, case.stop.code) == ("rejected", "contrast-measured")
    assert dice(case[HEART].mask, truth["heart"]) > 0.8
    expected = truth["heart"].sum() * np.prod(scan[CT].geometry.spacing) / 1000
    assert case[HEART_MEASURES]["heart_volume_ml"] == pytest.approx(expected, rel=0.2)
    assert case.warnings == scan.warnings
    allowed = replace(find_heart, allow=["contrast-measured"])(enhanced)
    assert allowed.stop is None
    assert [f.code for f in allowed.warnings] == [*(f.code for f in scan.warnings), "contrast-measured"]


def test_no_heart_in_air(scan: Case, find_heart: FindHeart) -> None:
    case = find_heart(air(scan))
    assert case.stop is not None
    assert case.stop.code == "heart-not-found"
    assert case.warnings == scan.warnings


def test_the_calcium_is_found_unless_the_scan_was_excluded(scan: Case, truth: dict[str, np.ndarray]) -> None:
    from deepcac2.models.calcium.network import CalciumModel

    weights = bundled("calcium")
    stage = FindCalcium(model=CalciumModel.load(weights, CPU), weights=weights, heart_margin_mm=4.0)
    case = stage(scan.add(HEART, heart_labels(truth["heart"])))
    counted = case[CT].hu >= 130
    assert dice(case[CALCIUM].mask & counted, truth["calcium"] & counted) > 0.5
    assert 0 < case[CALCIUM_RUN]["patches_run"] <= case[CALCIUM_RUN]["patches_total"]
    assert "off-domain-field" in [f.code for f in case.warnings]

    excluded = scan.add(HEART, heart_labels(truth["heart"])).add(EXCLUDED, True)
    case = stage(excluded)
    assert not case[CALCIUM].mask.any()
    assert (case[CALCIUM_RUN]["patches_run"], case[CALCIUM_RUN]["patches_total"]) == (0, 0)
    assert "off-domain-field" in [f.code for f in case.warnings]


def test_the_exclusion_sees_calcium_and_no_heart_in_air(scan: Case, truth: dict[str, np.ndarray]) -> None:
    from deepcac2.models.rule_out.network import ScreeningModel

    weights = bundled("screening")
    stage = RuleOut(
        model=ScreeningModel.load(weights, CPU), weights=weights, heart_margin_mm=4.0, exclude=True
    )
    case = stage(scan.add(HEART, heart_labels(truth["heart"])))
    assert (case[POSSIBLE_CALCIUM].mask & truth["calcium"]).any()
    assert case[SCREENING]["positive"] is True
    assert case[SCREENING]["excluded"] is False
    with pytest.raises(TypeError, match="no stage before"):
        stage(scan)

    nowhere = replace(stage, localise="chest-wall")(air(scan))
    assert nowhere.stop is not None
    assert (nowhere.stop.status, nowhere.stop.code) == ("rejected", "heart-not-found")
    assert nowhere.warnings == scan.warnings
    assert POSSIBLE_CALCIUM not in nowhere


def test_direct_scoring_has_a_score_and_none_in_air(scan: Case, truth: dict[str, np.ndarray]) -> None:
    from deepcac2.models.slice_regression.network import DirectModel
    from deepcac2.pipeline.operating import operating_point

    weights = bundled("direct")
    point = operating_point(weights, least_slice=None, score_factor=None)
    stage = ScoreDirectly(model=DirectModel.load(weights, CPU, **point.values), weights=weights, point=point)
    case = stage(scan.add(HEART, heart_labels(truth["heart"])))
    assert case[DIRECT]["score"] > 100  # its true score is far above 400
    assert "heart-unchecked" not in [f.code for f in case.findings]
    assert case[DIRECT]["score"] == pytest.approx(sum(case[DIRECT]["slice_scores"]), rel=0.01)
    assert case[ATTENTION].max() > 0

    stage = replace(stage, localise="networks", attend=False)
    nowhere = stage(air(scan))
    assert nowhere.stop is not None
    assert nowhere.stop.code == "heart-not-found"
    assert nowhere.warnings == scan.warnings
    assert DIRECT not in nowhere
    case = stage(scan)
    assert any("was not checked" in sentence for sentence in cautions(case))


def test_the_score_of_the_true_calcium_is_the_true_score(
    simulated: Path, scan: Case, truth: dict[str, np.ndarray]
) -> None:
    expected = json.loads((simulated / "SIM-0003" / "truth.json").read_text())
    case = ScoreCalcium()(scan.add(CALCIUM, calcium_labels(truth["calcium"])))
    assert case[SCORE].total == pytest.approx(expected["score"])
    assert int(case[SCORE].risk_group) == expected["risk_group"]
    assert case.stop is None


def test_metal_leaves_no_score_and_all_that_was_known(scan: Case, truth: dict[str, np.ndarray]) -> None:
    known = scan.add(CALCIUM, calcium_labels(truth["calcium"])).add(HEART, heart_labels(truth["heart"]))
    metal = changed(known, truth["calcium"], 2500)
    case = ScoreCalcium()(metal)
    assert case.stop is not None
    assert (case.stop.status, case.stop.code) == ("rejected", "metal")
    assert SCORE not in case
    assert case.warnings == scan.warnings
    assert case.facts == metal.facts
    assert case[HEART] is known[HEART]
    allowed = ScoreCalcium(allow=["metal"])(metal)
    assert SCORE in allowed
    assert [f.code for f in allowed.warnings][-1] == "metal"
