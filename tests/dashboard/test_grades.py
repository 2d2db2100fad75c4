"""The grades of a case on its page: one group of their own, and the reason where there is no percentile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from deepcac2.dashboard.app import create_app
from deepcac2.dicom import Series
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CT
from deepcac2.pipeline.places import DETAILS_NAME
from deepcac2.pipeline.results import result_row, write_parquet
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.system.atomic import write_json

PROVENANCE = {"deepcac2": "0", "workflow": "default", "workflow_fingerprint": "0", "weights": {}}


@pytest.mark.parametrize(
    ("known", "more"),
    [
        ({"patient_age": 60, "patient_sex": "M"}, {"percentile_population": "Hoff 2001, by age and sex"}),
        ({"no_age": "there is no PatientAge"}, {"no_percentile": "there is no PatientAge"}),
    ],
)
def test_grades_are_a_group_of_their_own(known: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    hu = np.zeros((1, 10, 10), np.int16)
    hu[0].flat[:43] = 200
    geometry = Geometry(shape=hu.shape, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    case = Case(series=Series(series_uid="1.2.3", patient_id="P", **known))
    case = case.add(CT, Volume(hu=hu, geometry=geometry)).add(CALCIUM, calcium_labels(hu > 0))
    case = ScoreCalcium()(case)
    write_json(tmp_path / "P" / "1.2.3" / DETAILS_NAME, details(case, PROVENANCE))
    write_parquet(tmp_path / "results.parquet", [result_row(case, folder="P/1.2.3")])

    with TestClient(create_app(tmp_path), base_url="http://127.0.0.1:8000") as client:
        found = client.get("/api/cases/1.2.3").json()
    score, grades = found["steps"]
    assert score["title"] == "Score the calcium"
    assert not {"cac_drs", "percentile"} & {*score["columns"], *score["sections"]}
    assert (grades["module"], grades["title"]) == ("AGSCalculator", "Grades")
    names = ["cac_drs", "chest_ct_grade", "score_class", "arterial_age", "percentile"]
    assert grades["columns"] == (names if "patient_age" in known else names[:-1])
    assert more.items() <= grades["sections"]["grades"].items()
    assert found["row"]["patient_age"] == known.get("patient_age")
    assert found["row"]["patient_sex"] == known.get("patient_sex", "")
