"""Version 2 of the simulator against what anatomy says, and version 1 against itself."""

from __future__ import annotations

import numpy as np
import pytest

from deepcac2.cli.main import build_parser
from deepcac2.simulation import sample_acquisition
from deepcac2.simulation.anatomy import VERSIONS, sample_anatomy
from deepcac2.simulation.distractors import all_distractors
from deepcac2.simulation.specks import motion_path

SEEDS = range(700, 716)
BRANCHES = {"LAD.D1", "LAD.D2", "LCX.OM1", "LCX.OM2", "RCA.AM", "RCA.PDA", "RCA.PLV"}


@pytest.fixture(scope="module")
def patients():
    return [sample_anatomy(seed, version=2) for seed in SEEDS]


def depth(anatomy, line):
    p = line.astype(np.float32)
    return -anatomy.heart.sac(p[:, 0], p[:, 1], p[:, 2])


def test_the_version_before_is_the_default_and_has_no_branches():
    first = sample_anatomy(700)
    assert first.version == 1
    assert set(first.coronaries) == {"LM", "LAD", "LCX", "RCA"}
    assert np.array_equal(first.coronaries["RCA"], sample_anatomy(700, version=1).coronaries["RCA"])
    assert not np.array_equal(first.coronaries["RCA"], sample_anatomy(700, version=2).coronaries["RCA"])
    assert sample_acquisition(700).flank == 0


def test_an_unknown_version_is_refused():
    with pytest.raises(ValueError, match="not 6"):
        sample_anatomy(700, version=6)


def test_the_command_line_takes_every_version():
    """It names them by itself, as its help is to be there before numpy is loaded."""
    for version in VERSIONS:
        asked = build_parser().parse_args(["simulate", "out", "--simulator", str(version)])
        assert asked.simulator == version


def test_version_4_has_a_left_main_as_long_as_patients_and_is_else_the_same(patients):
    """Computed tomography of 300 adults: 10.5 mm, deviation 5.3 (doi:10.4244/EIJV12I7A139)."""
    length = []
    for before in patients:
        now = sample_anatomy(before.seed, version=4)
        line = now.coronaries["LM"]
        length.append(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
        for name in ("LAD", "LCX"):
            assert np.linalg.norm(line[-1] - now.coronaries[name][0]) < 7
            assert np.linalg.norm(before.coronaries[name][-1] - now.coronaries[name][-1]) < 1
        assert np.array_equal(now.coronaries["RCA"], before.coronaries["RCA"])
    assert 7 < np.mean(length) < 14
    assert 3 < np.std(length) < 9
    assert max(length) < 26


def test_version_5_has_arteries_deep_in_grooves_and_appendages_over_them(patients):
    """In three real chests the first calcium of the LAD lies 10 to 24 mm below the heart's surface."""
    shallow, deep, grown = [], [], []
    for seed in SEEDS:
        before, now = sample_anatomy(seed, version=4), sample_anatomy(seed, version=5)
        shallow += list(depth(before, before.coronaries["LAD"][5:20]))
        deep += list(depth(now, now.coronaries["LAD"][5:20]))
        assert all(np.median(depth(now, now.coronaries[name])) > 0.5 for name in ("LM", "LAD", "LCX", "RCA"))
        grown.append(now.heart.extent()[3] / before.heart.extent()[3])
        for start, end, *_ in now.heart.appendages:
            p = (now.heart.origin + np.stack([start, end])).astype(np.float32)
            chambers = now.heart.chambers(p[:, 0], p[:, 1], p[:, 2])
            assert np.all(now.heart.muscle(chambers) < 0)
        assert before.findings.nodes == now.findings.nodes
    assert np.median(shallow) < 6 < 8 < np.median(deep) < 16
    assert 1.0 < np.mean(grown) < 1.15


def test_branches_begin_on_their_artery(patients):
    for anatomy in patients:
        assert set(anatomy.coronaries) == {"LM", "LAD", "LCX", "RCA"} | BRANCHES
        for name in BRANCHES:
            trunk = anatomy.coronaries[name.split(".")[0]]
            gap = np.linalg.norm(trunk - anatomy.coronaries[name][0], axis=1).min()
            assert gap < 1.1, name


def test_the_right_coronary_comes_to_the_surface_at_the_diaphragm(patients):
    start, end = [], []
    for anatomy in patients:
        d = depth(anatomy, anatomy.coronaries["RCA"])
        start.append(np.median(d[: len(d) // 6]))
        end.append(np.median(d[-len(d) // 5 :]))
    assert np.median(start) > 8
    assert -2 < np.median(end) < 5


def test_fat_comes_and_goes(patients):
    sleeves = np.concatenate([w for a in patients for w in a.sleeves.values()])
    bare = np.concatenate([a.sleeves[n] <= a.coronary_radius for a in patients for n in a.sleeves])
    assert 0.2 < bare.mean() < 0.7
    assert sleeves.max() > 5


def test_plaques_are_of_named_arteries_and_of_every_form(patients):
    plaques = [p for a in patients for p in a.lesions]
    assert {p.kind for p in plaques} == {"LM", "LAD", "LCX", "RCA"}
    length = [np.linalg.norm(np.diff(p.points, axis=0), axis=1).sum() for p in plaques]
    assert min(length) < 3
    assert max(length) > 25
    assert max(p.hu for p in plaques) > 1000
    assert all(170 <= p.hu <= 1600 for p in plaques)


def test_plaques_lie_in_their_artery(patients):
    for anatomy in patients:
        for plaque in anatomy.lesions:
            lines = [v for k, v in anatomy.coronaries.items() if k.split(".")[0] == plaque.kind]
            points = np.concatenate(lines)
            middle = plaque.points[len(plaque.points) // 2]
            assert np.linalg.norm(points - middle, axis=1).min() < anatomy.coronary_radius + 1.5


def test_a_turning_way_is_as_long_as_a_straight_one():
    for seed in range(20):
        straight, bent = (motion_path(np.random.default_rng(seed), 6.0, arc=arc) for arc in (0.0, 3.0))
        assert np.abs(bent.mean(axis=0)).max() < 1e-9
        assert np.linalg.norm(np.ptp(bent, axis=0)[:2]) <= 6.0 * np.sqrt(2) + 1e-9
        assert np.linalg.norm(np.diff(straight, axis=0), axis=1).sum() == pytest.approx(
            np.linalg.norm(straight[-1] - straight[0])
        )


def test_gated_scans_are_zoomed():
    scans = [sample_acquisition(seed, 2) for seed in range(200)]
    narrow = [s for s in scans if s.field_of_view < 300]
    assert 10 < len(narrow) < 45
    assert all(150 <= s.field_of_view <= 260 and s.motion <= 2 for s in narrow)
    assert max(s.field_of_view for s in scans) > 450


def test_version_3_adds_collapsed_lung_outside_the_heart_and_nothing_else():
    seen = 0
    for seed in range(700, 708):
        second, third = (sample_anatomy(seed, version=v) for v in (2, 3))
        kinds = [[d for d in all_distractors(a) if d.kind == "collapsed lung"] for a in (second, third)]
        assert second.findings.collapse is None
        assert not kinds[0]
        assert [d.kind for d in all_distractors(second)] == [
            d.kind for d in all_distractors(third) if d.kind != "collapsed lung"
        ]
        assert np.array_equal(second.coronaries["RCA"], third.coronaries["RCA"])
        if third.findings.collapse is None:
            assert third.findings == second.findings
            assert not kinds[1]
            continue
        assert third.findings.lung == (*second.findings.lung, third.findings.collapse)
        for band in kinds[1]:
            seen += 1
            assert np.percentile(depth(third, band.points), 90) < 1.0  # mm below the sac
    assert seen > 2
