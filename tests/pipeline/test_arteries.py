"""A case whose calcium has names: shares in the table, N of CAC-DRS, and a picture that shows both."""

from __future__ import annotations

import numpy as np
import pytest

from deepcac2.dicom import Series
from deepcac2.imaging import Geometry, Volume, labels
from deepcac2.imaging.labels import Labels, calcium_labels
from deepcac2.pipeline.arteries import ARTERIES, BY_CLASS, COLUMNS, NOT_CORONARY, coloured
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.facts import CALCIUM, CALCIUM_RUN, CT, SCORE
from deepcac2.pipeline.grades import GRADES
from deepcac2.pipeline.scoring import ScoreCalcium

SHAPE = (12, 40, 40)


def _case(*, unsure: bool = False, named: bool = True) -> Case:
    """An LAD of 4 slices, an RCA of 2, a valve of 3 that is not counted, and a speck of the LM too small."""
    hu, arteries, others = (np.zeros(SHAPE, dtype=t) for t in (np.int16, np.uint8, np.uint8))
    for array, box, value in (
        (arteries, np.s_[2:6, 10:14, 10:14], 2),
        (arteries, np.s_[8:10, 20:24, 20:22], labels.NOT_SURE.value if unsure else 4),
        (arteries, np.s_[0, 30, 30], 1),
        (others, np.s_[6:9, 30:34, 4:8], 2),
    ):
        array[box], hu[box] = value, 350
    geometry = Geometry(shape=SHAPE, spacing=(3.0, 0.8, 0.8), origin=(0.0, 0.0, 0.0))
    facts = {CT: Volume(hu=hu, geometry=geometry), CALCIUM: calcium_labels(arteries > 0), CALCIUM_RUN: {}}
    if named:
        facts[ARTERIES] = Labels(array=arteries, classes=(*labels.ARTERIES, labels.NOT_SURE))
        facts[NOT_CORONARY] = Labels(array=others, classes=labels.NOT_CORONARY)
    return ScoreCalcium()(Case(series=Series(series_uid="1.2"), facts=facts))


def _row(case: Case) -> dict[str, float | None]:
    return {column.name: column.of(case) for column in COLUMNS}


def test_shares_add_up_to_the_score() -> None:
    case = _case()
    row = _row(case)
    assert row["score_lad"] == pytest.approx(4 * 16 * 0.64 * 3)
    assert row["score_rca"] == pytest.approx(2 * 8 * 0.64 * 3)
    assert row["score_lm"] == 0  # a piece below the least area
    assert row["score_aortic_valve"] == pytest.approx(3 * 16 * 0.64 * 3)
    shares = [row[f"score_{name}"] or 0.0 for name in ("lm", "lad", "lcx", "rca", "unsure")]
    assert sum(shares) == pytest.approx(case[SCORE].total)
    assert case[BY_CLASS]["arteries"]["LAD"]["n_lesions"] == 1
    assert case[GRADES]["cac_drs"] == "CAC-DRS A2/N2"


def test_without_an_artery_there_is_no_n() -> None:
    case = _case(unsure=True)
    assert _row(case)["score_unsure"] == pytest.approx(2 * 8 * 0.64 * 3)
    assert case[GRADES]["cac_drs"] == "CAC-DRS A2"


def test_names_change_nothing_else() -> None:
    bare, named = _case(named=False), _case()
    assert bare[SCORE] == named[SCORE]
    assert set(_row(bare).values()) == {None}
    assert coloured(bare) is None


def test_the_picture_shows_what_counts_and_what_does_not() -> None:
    case = _case()
    shown = coloured(case)
    assert shown is not None
    assert [label.name for label in shown.classes] == ["aortic valve, not counted", "LAD", "RCA"]
    assert (shown.where("LAD") | shown.where("RCA") == case[SCORE].counted).all()
    assert (shown.where("aortic valve, not counted") == case[NOT_CORONARY].mask).all()
