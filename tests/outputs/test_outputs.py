"""Report, SR and preview of a case whose truth is known."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.sr.codedict import codes

from deepcac2.dicom import GATES, Series, discover, read_segmentation, read_series
from deepcac2.errors import WorkflowError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels, heart_labels
from deepcac2.outputs.preview import preview, preview_slices
from deepcac2.outputs.report import report
from deepcac2.outputs.structured_report import write_sr
from deepcac2.pipeline import Case, Workflow
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CT, HEART, HEART_MEASURES, SCORE
from deepcac2.pipeline.shown import shown
from deepcac2.scoring import RULES, score


@pytest.fixture(scope="module")
def case(simulated: Path) -> Case:
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    volume = read_series(series).volume
    masks = read_segmentation(simulated / "SIM-0003" / "truth.seg.dcm", volume.geometry)
    return Case(
        series=series,
        facts={
            CT: volume,
            HEART: heart_labels(masks["heart"]),
            CALCIUM: calcium_labels(masks["calcium"]),
            SCORE: score(volume, masks["calcium"]),
            HEART_MEASURES: {"heart_volume_ml": 600.0},
        },
    )


def test_report_has_the_three_published_keys(case: Case, simulated: Path) -> None:
    truth = json.loads((simulated / "SIM-0003" / "truth.json").read_text())
    content = report(case, Workflow.load("default").options("ReportExporter").includes)
    assert content == {
        "Predicted Agatston Score": pytest.approx(truth["score"], abs=1e-4),
        "Predicted Risk Group": truth["risk_group"],
        "SeriesInstanceUID": truth["series_uid"],
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "x", "data": "agatston"}, "Perhaps you meant 'agatston_score'"),
        ({"label": "x", "attr": "SeriesUID"}, "Perhaps you meant 'SeriesInstanceUID'"),
        ({"data": "risk_group"}, "lacks a 'label'"),
        ({"label": "x"}, "needs 'attr', 'data' or 'text'"),
    ],
)
def test_a_wrong_include_is_an_error(case: Case, entry: dict[str, str], message: str) -> None:
    with pytest.raises(WorkflowError) as caught:
        report(case, [entry])
    assert message in str(caught.value)


PROVENANCE = {
    "deepcac2": "1.2",
    "weights": {role: {"name": f"gewichte-ü {role}", "sha256": role * 8} for role in ("heart", "calcium")},
}


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_the_sr_says_what_the_details_say(
    case: Case, simulated: Path, tmp_path: Path, rule: str, empty: bool
) -> None:
    counted = score(
        case[CT],
        np.zeros_like(case[CALCIUM].mask) if empty else case[CALCIUM].mask,
        rule=rule,
        slice_thickness=2.5,
        calibration_factor=None if empty else 0.0008,
    )
    scored = case.add(SCORE, counted)
    path = tmp_path / "cac.sr.dcm"
    write_sr(path, scored, segmentation=simulated / "SIM-0003" / "truth.seg.dcm", provenance=PROVENANCE)
    said = details(scored, PROVENANCE)["score"]

    content = hd.sr.srread(path).content
    calcium, heart = content.get_volumetric_roi_measurement_groups()

    def value(group, name) -> float | None:
        return next((m.value for m in group.get_measurements(name=name)), None)

    assert value(calcium, codes.SCT.CoronaryArteryCalciumScore) == round(said["total"], 2)
    assert value(calcium, codes.DCM.CalciumVolume) == round(said["volume_mm3"], 1)
    assert value(calcium, codes.DCM.CalciumMass) == (None if empty else round(said["mass_mg"], 2))
    assert value(calcium, codes.DCM.AgatstonScoreThreshold) == RULES[rule].threshold
    assert value(heart, codes.SCT.Volume) == 600.0
    risk, grade = calcium.get_qualitative_evaluations()
    assert risk.value.meaning == f"{said['risk_group_name']} risk".capitalize()
    whole = round(said["total"])
    a = 0 if whole == 0 else 1 if whole < 100 else 2 if whole < 300 else 3
    assert grade.value.meaning == f"CAC-DRS A{a}"
    parameters = next(
        i.TextValue for i in calcium[0].ContentSequence if i.name == codes.DCM.AlgorithmParameters
    )
    assert parameters.startswith(f"rule: {rule}; threshold: {RULES[rule].threshold}; connectivity: ")
    assert "calcium weights: gewichte-\\xfc calcium sha256 calciumcalcium" in parameters
    lesions = content.get_image_measurement_groups()
    assert len(lesions) == len(said["lesions"])
    assert (len(lesions) > 2) != empty
    for n, (group, lesion) in enumerate(zip(lesions, said["lesions"], strict=True), start=1):
        assert group.tracking_identifier == f"Lesion {n}"
        assert value(group, codes.SCT.CoronaryArteryCalciumScore) == round(lesion["score"], 2)
        assert value(group, codes.DCM.CalciumVolume) == round(lesion["volume_mm3"], 1)
        (measured,) = group.get_measurements(name=codes.SCT.CoronaryArteryCalciumScore)
        (point,) = measured.referenced_coordinates
        np.testing.assert_allclose(point.value, [lesion["centroid_lps"]], rtol=1e-6)


def doubtful(case: Case) -> Case:
    """A case with a warning, allowed in spite of a gate."""
    allowed = GATES["coarse-pixels"].finding("pixels are 2.8 mm", allow=["coarse-pixels"])
    return replace(case, findings=(allowed, GATES["kvp"].finding("taken at 140 kV, tilted by 1°")))


def test_the_sr_holds_cautions_warnings_and_what_it_is_for(
    case: Case, simulated: Path, tmp_path: Path
) -> None:
    path = tmp_path / "cac.sr.dcm"
    seg = simulated / "SIM-0003" / "truth.seg.dcm"
    write_sr(path, doubtful(case), segmentation=seg, provenance=PROVENANCE)
    texts = [item.TextValue for item in pydicom.dcmread(path).ContentSequence[-1].ContentSequence]
    assert texts == [
        "Caution: in spite of coarse-pixels: pixels are 2.8 mm",
        "Warning (coarse-pixels): pixels are 2.8 mm",
        "Warning (kvp): taken at 140 kV, tilted by 1 degrees",
        "Research use only. Not a medical device.",
    ]
    write_sr(path, case, segmentation=seg, provenance=PROVENANCE)
    (text,) = pydicom.dcmread(path).ContentSequence[-1].ContentSequence
    assert text.TextValue == "Research use only. Not a medical device."


def test_a_preview_says_its_cautions_above_the_tiles(case: Case) -> None:
    plain, marked = (Image.open(io.BytesIO(preview(c))).convert("RGB") for c in (case, doubtful(case)))
    taller = marked.height - plain.height
    assert taller > 10
    head = np.asarray(marked)[60 : 64 + taller].astype(int)
    assert ((head[..., 0] > 200) & (head[..., 2] < 120)).sum() > 100
    tiles = [np.asarray(plain)[64:424], np.asarray(marked)[64 + taller : 424 + taller]]
    np.testing.assert_array_equal(*tiles)


def test_preview_shows_the_calcium_in_red_and_the_heart_outline(case: Case) -> None:
    picture = np.asarray(Image.open(io.BytesIO(preview(case))).convert("RGB")).astype(int)
    red = (picture[..., 0] > 200) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    blue = (picture[..., 2] > 230) & (picture[..., 0] < 120) & (picture[..., 1] > 150)
    tiles = picture[64:424]
    assert tiles.shape[0] == 360
    for column in range(3):
        part = np.s_[64:424, 360 * column : 360 * (column + 1)]
        assert red[part].sum() > 3
        assert blue[part].sum() > 100
    chosen = preview_slices(shown(case), case[CT].geometry.spacing[0])
    heaviest = {p.slice_index: 0.0 for lesion in case[SCORE].lesions for p in lesion.parts}
    for lesion in case[SCORE].lesions:
        for p in lesion.parts:
            heaviest[p.slice_index] += p.score
    assert max(heaviest, key=lambda z: heaviest[z]) in chosen
    assert len(chosen) == 3


def counting_case(*, upside_down: bool) -> Case:
    """Twelve slices, all calcium in the third: a lesion that counts; a speck and dull voxels that do not."""
    shape = (12, 60, 60)
    hu = np.full(shape, 30, np.int16)
    calcium = np.zeros(shape, bool)
    heart = np.zeros(shape, bool)
    heart[1:11, 10:50, 10:50] = True
    hu[2, 20:24, 20:24], calcium[2, 18:26, 18:26] = 300, True
    hu[2, 40, 40], calcium[2, 40, 40] = 900, True  # 0.25 mm²
    axes = ((0.0, 0.0, -1.0 if upside_down else 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
    geometry = Geometry(shape=shape, spacing=(6.0, 0.5, 0.5), origin=(0.0, 0.0, 0.0), axes=axes)
    volume = Volume(hu=hu, geometry=geometry)
    return Case(
        series=Series(series_uid="1"),
        facts={
            CT: volume,
            HEART: heart_labels(heart),
            CALCIUM: calcium_labels(calcium),
            SCORE: score(volume, calcium),
        },
    )


@pytest.mark.parametrize("upside_down", [False, True])
def test_the_preview_marks_what_counted_where_it_is(upside_down: bool) -> None:
    case = counting_case(upside_down=upside_down)
    expected = np.zeros((12, 60, 60), bool)
    expected[2, 20:24, 20:24] = True
    what = shown(case)
    np.testing.assert_array_equal(what.marked.mask, expected)
    picture = np.asarray(Image.open(io.BytesIO(preview(case))).convert("RGB")).astype(int)
    red = (picture[..., 0] > 200) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    chosen = preview_slices(what, 6.0)
    assert 2 in chosen
    for column, z in enumerate(chosen):
        tile = red[64:424, 360 * column : 360 * (column + 1)]
        assert tile.sum() == ((4 * 6) ** 2 if z == 2 else 0)  # a pixel of 60 is 6 of 360
    for column in range(2):  # coronal and sagittal: the head is up, and a slice is 30 of 360 pixels
        rows = np.flatnonzero(red[424:784, 360 * column : 360 * (column + 1)].any(axis=1))
        assert (rows[0], rows[-1]) == ((60, 89) if upside_down else (270, 299))


def test_the_details_do_not_hold_the_counted_voxels(case: Case) -> None:
    said = details(case, {})["score"]
    assert "runs" not in said
    assert said["n_counted"] == case[SCORE].counted.sum() > 0


def test_preview_of_an_empty_result(case: Case) -> None:
    empty = np.zeros_like(case[CALCIUM].mask)
    none = case.add(CALCIUM, calcium_labels(empty)).add(SCORE, score(case[CT], empty))
    picture = np.asarray(Image.open(io.BytesIO(preview(none))).convert("RGB")).astype(int)
    tiles = picture[64:424]
    assert not ((tiles[..., 0] > 240) & (tiles[..., 1] < 70)).any()
