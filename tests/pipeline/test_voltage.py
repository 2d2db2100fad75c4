"""The rule that goes by the tube voltage, in the chain: what scores, and what is rejected with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcac2.dicom import Series
from deepcac2.dicom.gates import GATES
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels, heart_labels
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import counted_from
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, HEART, SCORE
from deepcac2.pipeline.results import result_row
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.pipeline.workflow import Workflow


def case(hu: int, **series: Any) -> Case:
    """Ten pixels of 1 mm², in a slice of 3 mm."""
    array = np.zeros((3, 20, 20), np.int16)
    array[1].flat[:10] = hu
    geometry = Geometry(shape=array.shape, spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    found = Case(series=Series(series_uid="1.2.3", **series))
    found = found.add(CT, Volume(hu=array, geometry=geometry))
    found = found.add(HEART, heart_labels(np.ones(array.shape, bool)))
    return found.add(CALCIUM, calcium_labels(array > 0)).add(CALCIUM_RUN, {"exact_from_hu": 119})


@pytest.mark.parametrize(
    ("hu", "kvp", "score", "plain"),
    [
        (125, 135.0, 10, 0),
        (140, 100.0, 0, 10),
        (145, 100.0, 10, 10),
        (150, 80.0, 0, 10),
        (150, 120.0, 10, 10),
    ],
)
def test_the_scans_own_voltage_decides(hu: int, kvp: float, score: float, plain: float) -> None:
    found = ScoreCalcium(rule="agatston-kvp")(case(hu, kvp=kvp))
    assert found[SCORE].total == score
    assert ScoreCalcium()(case(hu, kvp=kvp))[SCORE].total == plain
    said = details(found, {})["score"]["parameters"]
    assert (said["name"], said["kvp"]) == ("agatston-kvp", kvp)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({"kvp": 140.0}, "weights for 70, 80, 100, 120, 135 kV, not for 140 kV"),
        ({}, "goes by the tube voltage, which is not known"),
        ({"kvps": (80.0, 120.0)}, "which is not known or not one"),
    ],
)
def test_a_voltage_without_weights_is_rejected_and_never_scored_at_130(
    series: dict[str, Any], message: str
) -> None:
    found = ScoreCalcium(rule="agatston-kvp")(case(300, **series))
    assert SCORE not in found
    assert found.stop is not None
    assert (found.stop.status, found.stop.code) == ("rejected", "no-weights-for-kvp")
    assert message in found.stop.reason
    assert "score by the rule agatston" in found.stop.reason
    row = result_row(found)
    assert (row.status, row.agatston_score, row.cac_drs) == ("rejected", None, "")
    assert not GATES["no-weights-for-kvp"].overridable
    assert ScoreCalcium()(case(300, **series))[SCORE].total == 30  # the default asks for no voltage


def test_the_calcium_is_looked_for_from_the_lowest_threshold_on(tmp_path: Path) -> None:
    workflow = Workflow.load("default")
    assert counted_from(workflow) == 130
    assert counted_from(workflow.with_options("AGSCalculator", rule="agatston-kvp")) == 119
