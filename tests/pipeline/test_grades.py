"""The grades of a scored case: in the table, the details, the picture and the SR, and not in the report."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from deepcac2.dicom import Series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels, heart_labels
from deepcac2.outputs.report import report
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CT, HEART
from deepcac2.pipeline.results import result_row
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.pipeline.shown import shown

PROVENANCE: dict[str, Any] = {"deepcac2": "1", "weights": {}}


def case(pixels: int, **series: Any) -> Case:
    """So many pixels of 1 mm² at 200 HU in a slice of 3 mm: each counts 2."""
    hu = np.zeros((3, 20, 20), np.int16)
    hu[1].flat[:pixels] = 200
    geometry = Geometry(shape=hu.shape, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    found = Case(series=Series(series_uid="1.2.3", patient_id="P", **series))
    found = found.add(CT, Volume(hu=hu, geometry=geometry)).add(HEART, heart_labels(np.ones_like(hu, bool)))
    return ScoreCalcium()(found.add(CALCIUM, calcium_labels(hu > 0)))


def test_a_man_of_60() -> None:
    """A score of 86; at 60 the percentiles of men are 9, 87, 332 and 818 (tests/scoring/test_grades.py)."""
    found = case(43, patient_age=60, patient_sex="M")
    row = result_row(found, provenance=PROVENANCE)
    assert row.agatston_score == 86
    assert (row.patient_age, row.patient_sex) == (60, "M")
    assert (row.cac_drs, row.chest_ct_grade, row.score_class) == ("CAC-DRS A1", "mild", "10 to 99")
    assert (row.arterial_age, row.percentile) == (71.5, "25-50")
    said = json.loads(json.dumps(details(found, PROVENANCE)))
    assert said["grades"] == {
        "cac_drs": "CAC-DRS A1",
        "chest_ct_grade": "mild",
        "score_class": "10 to 99",
        "arterial_age": 71.5,
        "percentile": [25, 50],
        "percentile_population": "Hoff 2001, by age and sex",
    }
    picture = shown(found)
    assert picture is not None
    assert picture.line.startswith("CAC-DRS A1 · mild (chest CT) · percentile 25-50 · rule agatston")


@pytest.mark.parametrize(
    ("pixels", "percentile", "ends"),
    [(0, "<25", [None, 25]), (200, "75-90", [75, 90]), (400, "75-90", [75, 90])],
)
def test_open_ends(pixels: int, percentile: str, ends: list[int | None]) -> None:
    found = case(pixels, patient_age=60, patient_sex="M")
    assert result_row(found, provenance=PROVENANCE).percentile == percentile
    assert details(found, PROVENANCE)["grades"]["percentile"] == ends


@pytest.mark.parametrize(
    ("series", "why"),
    [
        ({}, "the age is not known"),
        ({"no_age": "PatientAge is 0 or less: a removed one", "patient_sex": "M"}, "PatientAge is 0 or less"),
        ({"patient_age": 60}, "has no one of unknown sex"),
        ({"patient_age": 20, "patient_sex": "M"}, "ages of 30 to 85, not 20"),
    ],
)
def test_without_age_or_sex_there_are_grades_and_no_percentile(series: dict[str, Any], why: str) -> None:
    found = case(43, **series)
    row = result_row(found, provenance=PROVENANCE)
    assert (row.cac_drs, row.percentile) == ("CAC-DRS A1", "")
    grades = details(found, PROVENANCE)["grades"]
    assert grades["percentile"] is None
    assert why in grades["no_percentile"]
    assert "percentile_population" not in grades


def test_the_report_keeps_its_three_keys() -> None:
    from deepcac2.outputs.report import ReportExporterOptions

    includes = ReportExporterOptions().includes
    keys = set(report(case(43, patient_age=60, patient_sex="M"), includes))
    assert keys == {"Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID"}


def test_a_case_without_score_has_no_grades() -> None:
    before = Case(series=Series(series_uid="1.2.3", patient_age=60, patient_sex="M"))
    row = result_row(before, provenance=PROVENANCE)
    assert (row.cac_drs, row.chest_ct_grade, row.score_class, row.percentile) == ("", "", "", "")
    assert (row.arterial_age, row.patient_age) == (None, 60)
    assert "grades" not in details(before, PROVENANCE)
