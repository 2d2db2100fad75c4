"""The mapped mask and its score, against an oracle of plain loops."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from deepcac2.dicom import Series
from deepcac2.errors import WorkflowError
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels
from deepcac2.outputs.report import report
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.chain import counted_from
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, MAPPED_CALCIUM, MAPPED_SCORE, SCORE
from deepcac2.pipeline.mapping import CACMappingOptions, MapCalcium
from deepcac2.pipeline.scoring import ScoreCalcium
from deepcac2.pipeline.workflow import Workflow

SPACING = (2.5, 0.7, 0.7)


def case_of(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    hu = (ndimage.gaussian_filter(rng.normal(size=(5, 24, 22)), (0, 1, 1)) * 700).round().astype(np.int16)
    mask = ndimage.gaussian_filter(rng.normal(size=hu.shape), (0, 1, 1)) > 0.35
    geometry = Geometry(shape=(5, 24, 22), spacing=SPACING, origin=(0.0, 0.0, 0.0))
    return Case(
        series=Series(series_uid="1"),
        facts={CT: Volume(hu=hu, geometry=geometry), CALCIUM: calcium_labels(mask)},
    )


@pytest.mark.parametrize("seed", range(8))
def test_both_scores_stand_beside_each_other(seed: int, published: ModuleType) -> None:
    case = MapCalcium()(ScoreCalcium(rule="deepcac2")(case_of(seed)))
    hu, mask = case[CT].hu, case[CALCIUM].mask
    mapped = published.slow_map(hu, mask)
    np.testing.assert_array_equal(case[MAPPED_CALCIUM].mask, mapped)
    assert not (mapped == mask).all()
    score, other = (published.slow_score(hu, m, SPACING) for m in (mask, mapped))
    names = ("agatston_score", "risk_group", "mapped_agatston_score", "mapped_risk_group")
    assert report(case, [{"label": name, "data": name} for name in names]) == {
        "agatston_score": score,
        "risk_group": published.group_of(score),
        "mapped_agatston_score": other,
        "mapped_risk_group": published.group_of(other),
    }
    provenance: dict[str, Any] = {}
    assert details(case, provenance)["mapped_score"]["total"] == other
    assert details(case, provenance)["score"]["total"] == score


def test_each_group_is_of_its_own_score(published: ModuleType) -> None:
    """In the authors' workflow the mapped one is the other's."""
    cases = [MapCalcium()(ScoreCalcium(rule="deepcac2")(case_of(seed))) for seed in range(8)]
    assert any(int(c[SCORE].risk_group) != c[MAPPED_SCORE]["risk_group"] for c in cases)


def test_without_it_nothing_is_said_of_it() -> None:
    case = ScoreCalcium(rule="deepcac2")(case_of(0))
    assert "mapped_score" not in details(case, {})
    with pytest.raises(WorkflowError, match="'mapped_risk_group' needs CACMapping before it"):
        report(case, [{"label": "x", "data": "mapped_risk_group"}])


def test_rules_that_map_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="takes the mask as it is"):
        CACMappingOptions(rule="deepcac2")
    exact = case_of(0).add(CALCIUM_RUN, {"exact_from_hu": 150})
    with pytest.raises(WorkflowError, match="counts below 150 HU"):
        MapCalcium()(exact)


@pytest.mark.parametrize(("rule", "lowest"), [("agatston", 130), ("deepcac2", None)])
def test_the_calcium_is_looked_for_as_the_lower_of_both_rules_counts(rule: str, lowest: int | None) -> None:
    workflow = Workflow.load("deepcac2-authors").with_options("AGSCalculator", rule=rule)
    assert counted_from(workflow) == lowest
