"""What stands beside a result: in the table, the details and on the screen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deepcac2.cli.run import cell, in_words
from deepcac2.dicom import GATES, Series, SliceRef
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.labels import calcium_labels
from deepcac2.models.slice_regression.step import DIRECT
from deepcac2.pipeline import Case
from deepcac2.pipeline.cautions import cautions
from deepcac2.pipeline.details import details
from deepcac2.pipeline.facts import CALCIUM, CT, SCORE
from deepcac2.pipeline.results import MEANINGS, result_row
from deepcac2.pipeline.scoring import ScoreCalcium

PROVENANCE = {"deepcac2": "0", "weights": {}}


def scored(thickness: float | None, increment: float = 1.0, *, bright: bool = False, **facts: object) -> Case:
    """A small scan, scored: no calcium, or a lesion of 300 HU."""
    geometry = Geometry(shape=(4, 8, 8), spacing=(increment, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    volume = Volume(hu=np.full(geometry.shape, 300, dtype=np.int16), geometry=geometry)
    mask = np.zeros(geometry.shape, dtype=bool)
    mask[1:3, 2:6, 2:6] = bright
    case = Case(
        series=Series(series_uid="1.2", slice_thickness=thickness),
        facts={CT: volume, CALCIUM: calcium_labels(mask)},
    )
    return ScoreCalcium()(replace(case, **facts))


@pytest.mark.parametrize(
    ("thickness", "increment", "said"),
    [(3.0, 3.0, True), (2.95, 1.0, True), (2.9, 2.9, False), (5.0, 2.5, True), (None, 3.0, True),
     (1.0, 3.0, True), (None, 1.0, False)],
)  # fmt: skip
def test_a_zero_from_thick_slices_says_what_it_may_miss(
    thickness: float | None, increment: float, said: bool
) -> None:
    case = scored(thickness, increment)
    assert case[SCORE].total == 0
    codes = [f.code for f in case.findings]
    assert codes == (["zero-at-thick-slices"] if said else [])
    row = result_row(case)
    assert ("small calcium may be missed" in row.caution) == said
    assert details(case, PROVENANCE)["cautions"] == ([row.caution] if said else [])
    assert ("zero-at-thick-slices" in row.warnings) == said
    assert in_words(row) == f"1.2: Agatston score 0.0{' !' if said else ''}, Risk group 0 very low"


def test_one_thick_slice_is_enough() -> None:
    series = Series(series_uid="1.2", slice_thickness=1.0, slices=(SliceRef(path=None, slice_thickness=3.0),))  # type: ignore[arg-type]
    assert [f.code for f in scored(1.0, series=series).findings] == ["zero-at-thick-slices"]


def test_calcium_found_in_thick_slices_needs_no_caution() -> None:
    case = scored(5.0, 5.0, bright=True)
    assert case[SCORE].total > 0
    assert cautions(case) == ()
    assert result_row(case).caution == ""


def test_a_result_that_a_gate_would_have_refused_is_marked() -> None:
    allowed = GATES["coarse-pixels"].finding("pixels are 2.8 mm", allow=["coarse-pixels"])
    warning = GATES["kvp"].finding("taken at 140 kV")
    case = scored(1.0, bright=True, findings=(allowed, warning))
    row = result_row(case)
    assert row.caution == "in spite of coarse-pixels: pixels are 2.8 mm"
    assert details(case, PROVENANCE)["cautions"] == [row.caution]
    assert cell(row, MEANINGS["agatston_score"]) == f"{row.agatston_score:.1f} !"
    assert cell(row, MEANINGS["risk_group"]) == f"{row.risk_group} {row.risk_group_name}"
    plain = result_row(scored(1.0, bright=True, findings=(warning,)))
    assert plain.caution == ""
    assert cell(plain, MEANINGS["agatston_score"]) == f"{plain.agatston_score:.1f}"


def test_without_a_result_there_is_nothing_to_caution_about() -> None:
    allowed = GATES["coarse-pixels"].finding("pixels are 2.8 mm", allow=["coarse-pixels"])
    case = Case(series=Series(series_uid="1.2"), findings=(allowed,))
    assert cautions(case) == ()
    row = result_row(replace(case, facts={DIRECT: {"score": 1.0, "group": 1}}))
    assert cell(row, MEANINGS["direct_score"]) == "1.0 !"
