"""Truth with names: found by artery, wrongly counted by kind, and what is not sure in no count at all.

Volumes are drawn here, labels put there by hand, and what is expected counted by hand.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepcac2.dicom import discover, write_segmentation
from deepcac2.errors import TrainingError
from deepcac2.evaluation.by_name import ArteryScores, TrueArtery, WronglyCounted
from deepcac2.evaluation.cases import (
    CaseResult,
    Evaluation,
    Prediction,
    compared,
    evaluate_results,
    evaluate_scans,
)
from deepcac2.evaluation.datasets import CALCIUM_VALUES, OTHERS, AnnotatedScan, annotated_sources
from deepcac2.evaluation.summary import summarise
from deepcac2.imaging import Geometry, Volume
from deepcac2.imaging.files import write_image
from deepcac2.imaging.labels import ARTERIES, NOT_SURE, Labels
from deepcac2.pipeline import Workflow
from deepcac2.reporting.evaluation import write_report
from deepcac2.scoring import Rule, score
from deepcac2.simulation import truth
from deepcac2.simulation.dicom import write_series
from deepcac2.simulation.patient import SimulatedPatient

GRID = Geometry(shape=(30, 32, 32), spacing=(3.0, 1.0, 1.0), origin=(-16.0, -16.0, 40.0))
"""One voxel is 3 mm³, and a voxel of weight 1 a point."""

LAD, EDGE = np.s_[1, 2:4, 2:5], np.s_[1, 2:4, 1]
RCA, RCA_SOFT = np.s_[3, 10:13, 10:13], np.s_[3, 10, 13]
VALVE, WALL = np.s_[5, 10:12, 10:14], np.s_[6, 20:22, 20:22]
BRONCHUS = np.s_[7, 20:22, 5:8]
DOUBT, BESIDE, DOUBT_TOO = np.s_[8, 10:13, 20:23], np.s_[9, 25:27, 10:12], np.s_[9, 25:27, 12:14]
HU = [
    (LAD, 250), (EDGE, 250), (RCA, 420), (RCA_SOFT, 100), (VALVE, 300), (WALL, 200), (BRONCHUS, 150),
    (DOUBT, 500), (BESIDE, 140), (DOUBT_TOO, 450), (np.s_[:, 0, 0], -1000),
]  # fmt: skip
VALUES = [(LAD, 2), (RCA, 4), (RCA_SOFT, 4), (VALVE, 11), (WALL, 13), (DOUBT, 255), (DOUBT_TOO, 255)]
FOUND = (np.s_[1, 2:4, 1:4], np.s_[5, 10:12, 10:12], BRONCHUS, DOUBT, BESIDE, DOUBT_TOO)

# Without what is not sure: in slice 1 six voxels of weight 2, in 5 four of weight 3, in 7 six of weight 1, in
# 9 four of weight 1 (with the 450 HU beside them eight of weight 4); of the truth, six of 2 and nine of 4.
OUR_SCORE, TRUE_SCORE = 12 + 12 + 6 + 4, 12 + 36
ARTERIES_FOUND = (
    TrueArtery(artery="LAD", voxels=6, found=4, named={"LAD": 2, "LCX": 1, "artery not sure": 1}),
    TrueArtery(artery="RCA", voxels=9, found=0),
)
WRONG = (
    WronglyCounted(kind="aorta", labelled=4, voxels=0, score=0.0),
    WronglyCounted(kind="aortic valve", labelled=8, voxels=4, score=12.0),
    WronglyCounted(kind="unlabelled edge", labelled=None, voxels=4, score=4.0 + 2.0),
    WronglyCounted(kind="unlabelled", labelled=None, voxels=8, score=6.0 + 2.0),
)


def painted(values: list[tuple[Any, int]], dtype: Any, background: int = 0) -> np.ndarray:
    array = np.full(GRID.shape, background, dtype)
    for box, value in values:
        array[box] = value
    return array


def found() -> np.ndarray:
    return painted([(box, 1) for box in FOUND], bool)


def called() -> Labels:
    """Of the four voxels of the LAD that are found, two have the right artery, one another, one none."""
    parts = [(np.s_[1, 2:4, 1:3], 2), (np.s_[1, 2, 3], 3), (np.s_[1, 3, 3], 5), (BRONCHUS, 4)]
    array = painted(parts, np.uint8)
    return Labels(array=array, classes=(*ARTERIES, NOT_SURE))


def patient() -> SimulatedPatient:
    """The volume as something that can be written as DICOM."""
    scan = {
        "kernel": "B30f", "thickness_mm": 3.0, "kvp": 120.0, "manufacturer": "nobody", "model": "none",
        "field_of_view_mm": 32.0, "padding_circle": False,
    }  # fmt: skip
    nothing = np.zeros(GRID.shape, np.uint8)
    return SimulatedPatient(
        volume=Volume(hu=painted(HU, np.int16, 40), geometry=GRID),
        heart=nothing.astype(bool),
        arteries=Labels(array=nothing, classes=ARTERIES),
        others=Labels(array=nothing, classes=truth.OTHERS),
        facts={"seed": 5, "simulator": 1, "acquisition": scan},
    )


def annotate(home: Path, values: np.ndarray, grid: Geometry = GRID) -> Path:
    """The CT in ``ct/`` and the map beside it."""
    write_series(patient(), home / "ct")
    write_image(home / "calcium.nrrd", values, grid)
    return home


def loaded(folder: Path) -> AnnotatedScan:
    (source,) = annotated_sources(folder)
    return source.load()


@pytest.fixture
def scan(tmp_path: Path) -> AnnotatedScan:
    return loaded(annotate(tmp_path / "truth" / "a", painted(VALUES, np.uint8)).parent)


def judged(scan: AnnotatedScan, prediction: Prediction) -> CaseResult:
    return compared(CaseResult(name="a", patient="a"), scan, prediction)


def predicted(mask: np.ndarray, *, rule: Rule | None = None, arteries: Labels | None = None) -> Prediction:
    """As a run says it: its score is that of all that it found."""
    volume = Volume(hu=painted(HU, np.int16, 40), geometry=GRID)
    result = score(volume, mask, rule=rule or "agatston")
    return Prediction(status="scored", calcium=mask, arteries=arteries, score=result.total, rule=rule)


# --- the label map ------------------------------------------------------------------------------------------


def test_a_label_map_beside_its_ct(scan: AnnotatedScan) -> None:
    values = painted(VALUES, np.uint8)
    assert (scan.name, scan.heart) == ("a", None)
    np.testing.assert_array_equal(scan.volume.hu, painted(HU, np.int16, 40))
    np.testing.assert_array_equal(scan.calcium, (values == 2) | (values == 4))
    np.testing.assert_array_equal(scan.unsure, values == 255)
    assert scan.arteries is not None
    assert scan.others is not None
    for labels, name, value in (
        (scan.arteries, "LM", 1), (scan.arteries, "LAD", 2), (scan.arteries, "LCX", 3),
        (scan.arteries, "RCA", 4),
        (scan.others, "aortic valve", 11), (scan.others, "mitral annulus", 12), (scan.others, "aorta", 13),
    ):  # fmt: skip
        np.testing.assert_array_equal(labels.where(name), values == value)


def test_the_simulator_calls_the_kinds_by_the_same_names_and_values() -> None:
    """So that a named crop of an annotated scan means what one of a simulated patient means."""
    known = {label.name: label.value for label in truth.OTHERS}
    assert {label.name: label.value for label in OTHERS}.items() <= known.items()
    assert len(OTHERS) == 3
    assert sorted(CALCIUM_VALUES) == [1, 2, 3, 4, 5, 11, 12, 13, 255]


def test_calcium_of_an_unknown_artery_is_calcium(tmp_path: Path, scan: AnnotatedScan) -> None:
    values = painted(VALUES, np.int16)
    other = loaded(annotate(tmp_path / "b", np.where(values == 4, 5, values), GRID))
    assert other.arteries is not None
    assert scan.calcium is not None
    np.testing.assert_array_equal(other.calcium, scan.calcium)
    np.testing.assert_array_equal(other.arteries.mask, np.isin(values, [1, 2, 3]))


def test_the_axes_of_a_label_map_may_run_another_way(tmp_path: Path, scan: AnnotatedScan) -> None:
    values = painted(VALUES, np.int16)
    turned = replace(
        GRID,
        origin=tuple(GRID.to_lps([29, 0, 31])),  # type: ignore[arg-type]
        axes=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    )
    other = loaded(annotate(tmp_path / "b", values[::-1, :, ::-1].copy(), turned))
    assert other.name == "b"
    assert other.arteries is not None
    assert scan.arteries is not None
    np.testing.assert_array_equal(other.arteries.array, scan.arteries.array)
    np.testing.assert_array_equal(other.unsure, scan.unsure)


@pytest.mark.parametrize(
    ("change", "grid", "what"),
    [
        ((4, 6), GRID, r"calcium.nrrd holds the values 6, which mean nothing.* 11 aortic valve or root"),
        ((4, -1), GRID, "holds the values -1,"),
        ((4, 4), replace(GRID, origin=(-15.0, -16.0, 40.0)), "does not lie where its CT lies"),
        ((4, 4), replace(GRID, spacing=(3.0, 1.0, 1.1)), "does not lie where its CT lies"),
    ],
)
def test_a_label_map_that_does_not_fit_is_one_line(
    tmp_path: Path, change: tuple[int, int], grid: Geometry, what: str
) -> None:
    values = painted(VALUES, np.int16)
    values[values == change[0]] = change[1]
    annotate(tmp_path / "a", values, grid)
    with pytest.raises(TrainingError, match=what) as caught:
        loaded(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_label_map_of_fewer_slices_or_without_a_ct(tmp_path: Path) -> None:
    home = annotate(tmp_path / "a", painted(VALUES, np.uint8)[1:], replace(GRID, shape=(29, 32, 32)))
    with pytest.raises(TrainingError, match="has 29 x 32 x 32 voxels and its CT 30 x 32 x 32"):
        loaded(tmp_path)
    (home / "calcium.nrrd").rename(tmp_path / "calcium.nrrd")
    with pytest.raises(TrainingError, match="ct holds 0 DICOM series, not one"):
        loaded(tmp_path)


def test_two_annotations_of_one_series_are_refused(tmp_path: Path) -> None:
    home = annotate(tmp_path / "a", painted(VALUES, np.uint8))
    segment(home / "seg.dcm", home, found())
    with pytest.raises(TrainingError, match=r"calcium.nrrd and .*seg.dcm annotate the same series"):
        annotated_sources(tmp_path)


def segment(path: Path, home: Path, calcium: np.ndarray, parts: tuple[Labels, ...] = ()) -> None:
    series = discover(home / "ct").series[0]
    heart = np.ones(GRID.shape, bool)
    write_segmentation(
        path, series=series, geometry=GRID, heart=heart, calcium=calcium, parts=parts, algorithm_version="0"
    )


def test_arteries_of_a_dicom_seg_are_read(tmp_path: Path) -> None:
    """What is of no sure artery in it is calcium without a name."""
    write_series(patient(), tmp_path / "a" / "ct")
    segment(tmp_path / "a" / "seg.dcm", tmp_path / "a", found(), (called(),))
    scan = loaded(tmp_path)
    assert scan.arteries is not None
    expected = np.where(called().array == NOT_SURE.value, 0, called().array)
    np.testing.assert_array_equal(scan.arteries.array, expected)
    np.testing.assert_array_equal(scan.calcium, found())
    segment(tmp_path / "a" / "seg.dcm", tmp_path / "a", found())
    assert loaded(tmp_path).arteries is None


# --- counted by hand ----------------------------------------------------------------------------------------


def check(case: CaseResult) -> None:
    assert (case.score, case.true_score) == (pytest.approx(OUR_SCORE), pytest.approx(TRUE_SCORE))
    assert (case.group, case.true_group) == (1, 1)
    assert case.arteries == ARTERIES_FOUND
    assert case.wrong == WRONG
    # Of 6 + 9 true voxels that count and 6 + 4 + 6 + 4 found ones, 4 are both; one is labelled at 100 HU.
    assert case.counted_dice == pytest.approx(2 * 4 / (15 + 20))
    assert case.calcium_dice == pytest.approx(2 * 4 / (16 + 20))
    assert [(x.artery, x.volume_mm3, x.found) for x in case.lesions] == [
        ("LAD", 18.0, True),
        ("RCA", 27.0, False),
    ]
    assert sorted(case.false_lesions or ()) == [12.0, 12.0, 18.0]


def test_counts_by_hand(scan: AnnotatedScan) -> None:
    check(judged(scan, predicted(found(), arteries=called())))


def test_what_is_not_sure_is_in_no_count_of_the_prediction(scan: AnnotatedScan) -> None:
    """With or without finding it, all is the same; a lesion there alone is neither true nor false."""
    without = found() & (painted(VALUES, np.uint8) != 255)
    assert judged(scan, predicted(found())) == judged(scan, predicted(without))
    only = judged(scan, predicted(painted([(DOUBT, 1)], bool)))
    assert (only.score, only.group, only.false_lesions) == (0.0, 0, ())
    assert only.wrong is not None
    assert sum(w.voxels for w in only.wrong) == 0


def test_what_is_not_sure_is_in_no_count_of_the_truth(scan: AnnotatedScan) -> None:
    """Though the mask of the truth holds it, a whole lesion and a part of one."""
    assert scan.calcium is not None
    also = replace(scan, calcium=scan.calcium | painted([(DOUBT, 1), (DOUBT_TOO, 1)], bool))
    check(judged(also, predicted(found(), arteries=called())))
    assert judged(also, Prediction(status="rejected")).true_score == pytest.approx(TRUE_SCORE)


def test_a_rule_of_whole_pieces_does_not_reach_into_what_is_not_sure(scan: AnnotatedScan) -> None:
    """Two voxels at 140 HU point at the piece in which they lie; the 450 HU beside it are not of it."""
    rule = Rule(name="whole", threshold=None, whole_from=130, connectivity=8)
    case = judged(scan, predicted(painted([(BESIDE, 1)], bool), rule=rule))
    assert case.score == pytest.approx(4)
    assert case.wrong is not None
    assert {w.kind: w.score for w in case.wrong if w.score} == {"unlabelled edge": 2.0, "unlabelled": 2.0}


def test_nothing_unsure_changes_nothing(scan: AnnotatedScan) -> None:
    """The score stays what the run said, to the last digit, whatever made it."""
    prediction = replace(predicted(found()), score=12.3456789)
    assert judged(replace(scan, unsure=np.zeros(GRID.shape, bool)), prediction).score == 12.3456789
    assert judged(replace(scan, unsure=None), prediction).score == 12.3456789


def test_a_truth_without_names_has_no_such_rows(scan: AnnotatedScan) -> None:
    case = judged(replace(scan, arteries=None, others=None), predicted(found()))
    assert (case.arteries, case.wrong) == ((), None)
    summary = summarise(Evaluation(cases=(case,)))
    assert (summary.arteries, summary.wrong) == ((), ())


def test_scores_by_artery_and_name(scan: AnnotatedScan) -> None:
    """Twelve points are true calcium of the LAD: four of the piece's six voxels are the LAD's, the two
    beside it are no calcium. Valve and what has no name is not sure."""
    case = judged(scan, predicted(found(), arteries=called()))
    scores = case.artery_scores
    assert scores is not None
    assert scores.ours is not None
    assert scores.true == {"LM": 0.0, "LAD": 12.0, "LCX": 0.0, "RCA": 36.0}
    assert (scores.right, scores.other, scores.not_sure) == (4.0, 2.0, 2.0)
    assert scores.ours == {"LM": 0.0, "LAD": 8.0, "LCX": 2.0, "RCA": 6.0, "artery not sure": 2.0 + 12.0 + 4.0}
    assert sum(scores.ours.values()) == case.score
    assert scores.n_right is False


@pytest.mark.parametrize(
    ("ours", "right"), [({"LCX": 3.0, "RCA": 1.0}, True), ({"LAD": 4.0}, False), ({"LAD": 1.0}, False)]
)
def test_number_of_arteries(ours: dict[str, float], right: bool) -> None:
    nothing = dict.fromkeys(("LM", "LAD", "LCX", "RCA", "artery not sure"), 0.0)
    true = {"LM": 0.0, "LAD": 9.0, "LCX": 0.0, "RCA": 0.1}
    assert ArteryScores(true=true, ours=nothing | ours).n_right is right
    assert ArteryScores(true=true, ours=nothing | ours | {"artery not sure": 0.1}).n_right is False
    assert ArteryScores(true=true).n_right is None


def test_an_unknown_artery_leaves_out_what_needs_all(scan: AnnotatedScan) -> None:
    assert scan.arteries is not None
    part = replace(scan.arteries, array=np.where(scan.arteries.array == 4, 0, scan.arteries.array))
    case = judged(replace(scan, arteries=part), predicted(found(), arteries=called()))
    assert case.artery_scores is None
    assert case.arteries == ARTERIES_FOUND[:1]


def test_statistics_of_names(scan: AnnotatedScan) -> None:
    named, silent = predicted(found(), arteries=called()), predicted(found())
    cases = [replace(judged(scan, p), patient=str(i)) for i, p in enumerate((named, named, silent))]
    statistics = summarise(Evaluation(cases=tuple(cases))).statistics
    assert [statistics[f"artery_{s}"].value for s in ("right", "other", "not_sure")] == [0.5, 0.25, 0.25]
    assert (statistics["n_right"].value, statistics["n_right"].n) == (0.0, 2)
    assert statistics["spearman_lad"].n == 2


# --- the whole way ------------------------------------------------------------------------------------------


@pytest.fixture
def stored(scan: AnnotatedScan, tmp_path: Path) -> Path:
    """The output folder of a run that found `found` and called it `called`."""
    home, series = tmp_path / "truth" / "a", scan.series
    assert series is not None
    folder = tmp_path / "results" / series.patient_id / series.series_uid
    folder.mkdir(parents=True)
    segment(folder / "cac.seg.dcm", home, found(), (called(),))
    content = {
        "status": "scored",
        "score": score(scan.volume, found()).to_dict(),
        "arteries": {},
        "outputs": ["cac.seg.dcm"],
    }
    (folder / "details.json").write_text(json.dumps(content))
    made = {"deepcac2": "1", "weights": {}, "allowed_gates": []}
    (tmp_path / "results" / "run.json").write_text(json.dumps({"made_with": made}))
    return tmp_path / "results"


def test_results_of_a_run_against_a_label_map(stored: Path, tmp_path: Path) -> None:
    evaluation = evaluate_results(stored, tmp_path / "truth")
    (case,) = evaluation.cases
    assert (case.name, case.status, case.simulated, case.heart_dice) == ("a", "scored", False, None)
    assert evaluation.unmatched == 0
    check(case)


def test_nothing_found_is_no_artery_and_not_the_right_number(stored: Path, tmp_path: Path) -> None:
    """A SEG without segments of arteries, of a network that names what it finds."""
    (path,) = stored.rglob("cac.seg.dcm")
    segment(path, tmp_path / "truth" / "a", np.zeros(GRID.shape, bool), ())
    (case,) = evaluate_results(stored, tmp_path / "truth").cases
    assert case.artery_scores is not None
    assert set((case.artery_scores.ours or {"": 1.0}).values()) == {0.0}
    assert case.artery_scores.n_right is False


def test_an_annotated_ct_that_a_gate_rejects_is_a_case(stored: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "truth" / "a" / "ct").glob("00[01]*.dcm"):
        path.unlink()  # eleven slices are left
    annotate(tmp_path / "truth" / "b", painted(VALUES, np.uint8))
    cases = {c.name: c for c in evaluate_results(stored, tmp_path / "truth").cases}
    assert cases.keys() == {"a", "b"}
    assert cases["a"].status == "unreadable"
    assert "slice positions" in cases["a"].reason


@pytest.mark.slow
def test_summary_and_report(scan: AnnotatedScan, tmp_path: Path) -> None:
    """A second scan at 5 mm: all of the RCA found, none of the LAD, and no name given."""
    first = judged(scan, predicted(found(), arteries=called()))
    second = judged(scan, predicted(painted([(RCA, 1), (WALL, 1)], bool)))
    cases = tuple(
        replace(c, name=n, patient=n, thickness_mm=t, simulated=False)
        for c, n, t in ((first, "a", 1.5), (second, "b", 3.5), (second, "c", 5.0))
    )
    summary = summarise(Evaluation(cases=cases))
    assert [(r.by, r.value, r.artery, r.found, r.voxels) for r in summary.arteries] == [
        ("", "", "LAD", 4, 18),
        ("", "", "RCA", 18, 27),
        ("thickness", "up to 1.5 mm", "LAD", 4, 6),
        ("thickness", "up to 1.5 mm", "RCA", 0, 9),
        ("thickness", "above 1.5 to 3.5 mm", "LAD", 0, 6),
        ("thickness", "above 1.5 to 3.5 mm", "RCA", 9, 9),
        ("thickness", "above 3.5 mm", "LAD", 0, 6),
        ("thickness", "above 3.5 mm", "RCA", 9, 9),
    ]
    lad, rca = summary.arteries[:2]
    assert lad.recall.value == pytest.approx(4 / 18)
    assert (lad.named, lad.right, lad.other, lad.not_sure) == (4, 0.5, 0.25, 0.25)
    assert (rca.named, rca.right, rca.other, rca.not_sure) == (0, None, None, None)
    assert [
        (w.kind, w.scans, w.labelled, w.voxels, w.score.value, w.most, w.where) for w in summary.wrong
    ] == [
        ("aorta", 3, 12, 8, pytest.approx(16 / 3), 8.0, "b"),
        ("aortic valve", 3, 24, 4, pytest.approx(4.0), 12.0, "a"),
        ("unlabelled", 3, None, 8, pytest.approx(8 / 3), 8.0, "a"),
        ("unlabelled edge", 3, None, 4, pytest.approx(2.0), 6.0, "a"),
    ]
    write_report(Evaluation(cases=cases), summary, tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| all scans |  | 0.222 (4 of 18) | 0.667 (18 of 27) |" in page
    assert "| LAD | 4 | 0.500 | 0.250 | 0.250 |" in page
    assert "| aorta | 3 | 8 of 12 | 5.33 |" in page
    assert "nan" not in page.lower()
    assert "NaN" not in (tmp_path / "report" / "evaluation.json").read_text()
    heading, *rows = (tmp_path / "report" / "cases.csv").read_text().splitlines()
    assert heading.endswith("wrong_voxels_unlabelled_edge,wrong_score_unlabelled_edge")
    assert "true_voxels_rca,found_voxels_rca" in heading
    assert [row.split(",")[0] for row in rows] == ["a", "b", "c"]


@pytest.mark.slow
def test_in_memory_as_stored(simulated: Path, tmp_path: Path) -> None:
    """A simulated chest, its truth as a label map, by weights that name arteries: both ways say the same."""
    from deepcac2.batch.run import Means, run_folder
    from deepcac2.simulation import default_geometry, simulate_patient

    grid = default_geometry(3, size=256, slices=90)
    drawn = simulate_patient(3, geometry=grid)
    values = drawn.arteries.array.copy()
    for label, value in ((1, 13), (2, 11), (3, 12)):
        values[drawn.others.array == label] = value
    values[values == 2] = 255
    home = tmp_path / "truth" / "scan"
    home.mkdir(parents=True)
    (home / "ct").symlink_to(simulated / "SIM-0003" / "ct")
    write_image(home / "calcium.nrrd", values, grid)
    workflow = Workflow.load("default")
    run_folder(home / "ct", tmp_path / "results", workflow=workflow, means=Means())
    memory = evaluate_scans(tmp_path / "truth", workflow=workflow, device=torch.device("cpu"))
    assert memory == evaluate_results(tmp_path / "results", tmp_path / "truth")
    (case,) = memory.scored
    assert case.name == "scan"
    assert {a.artery for a in case.arteries} == {"LM", "LCX", "RCA"} & {
        label.name for label in ARTERIES if (drawn.arteries.array == label.value).any()
    }
    assert any(a.named for a in case.arteries)
