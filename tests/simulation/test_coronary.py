"""Calcium and what is mistaken for it: how much, where, and how often; drawn without any rendering."""

from __future__ import annotations

import numpy as np
import pytest

from deepcac2.simulation.anatomy import Anatomy, sample_anatomy, stream
from deepcac2.simulation.coronary import ARTERY_SHARE, METAL_HU, sample_lesions
from deepcac2.simulation.distractors import all_distractors


@pytest.fixture(scope="module")
def patients() -> list[Anatomy]:
    return [sample_anatomy(s) for s in range(100)]


@pytest.mark.slow
def test_scores_are_those_of_lung_screening() -> None:
    """About a quarter without calcium and a long tail."""
    anatomy = sample_anatomy(1)
    drawn = [
        sample_lesions(stream(s, "lesions"), anatomy.coronaries, anatomy.coronary_radius) for s in range(400)
    ]
    targets = np.array([t for t, _ in drawn])
    assert 0.18 < (targets == 0).mean() < 0.31
    assert all((t == 0) == (not lesions) for t, lesions in drawn)
    positive = targets[targets > 0]
    assert 60 < np.median(positive) < 160
    assert 0.03 < (positive > 1000).mean() < 0.13
    kinds = [x.kind for _, lesions in drawn for x in lesions]
    shares = {k: kinds.count(k) / len(kinds) for k in ARTERY_SHARE}
    assert shares["LAD"] > shares["RCA"] > shares["LCX"] > shares["LM"] > 0.02


@pytest.mark.slow
def test_plaques_reach_from_dots_to_long_ones_and_from_faint_to_dense() -> None:
    anatomy = sample_anatomy(1)
    lesions = [
        x
        for s in range(200)
        for x in sample_lesions(stream(s, "lesions"), anatomy.coronaries, anatomy.coronary_radius)[1]
    ]
    volumes = np.array([x.volume() for x in lesions])
    lengths = np.array([np.linalg.norm(np.ptp(x.points, axis=0)) for x in lesions])
    hu = np.array([x.hu for x in lesions])
    assert volumes.min() < 4
    assert volumes.max() > 150
    assert lengths.max() > 25
    assert hu.min() < 200
    assert 1000 < hu.max() < METAL_HU


@pytest.mark.slow
def test_plaques_lie_on_their_artery(patients: list[Anatomy]) -> None:
    for patient in patients[:25]:
        for lesion in patient.lesions:
            line = patient.coronaries[lesion.kind]
            away = np.linalg.norm(lesion.points[:, None] - line[None], axis=2).min(axis=1)
            assert away.max() < patient.coronary_radius + 4


@pytest.mark.slow
def test_distractors_of_every_kind_occur_and_the_same_each_time(patients: list[Anatomy]) -> None:
    kinds = [{x.kind for x in all_distractors(p)} for p in patients]
    everything = set().union(*kinds)
    assert everything >= {
        "aorta", "aortic valve", "mitral annulus", "lymph node", "cartilage", "stent", "pacemaker lead",
        "sternal wire", "bypass clip", "pericardium", "granuloma", "oesophagus",
    }  # fmt: skip
    assert not everything & set(ARTERY_SHARE)
    leads = np.mean(["pacemaker lead" in k for k in kinds])
    assert 0.02 < leads < 0.14
    for a, b in zip(all_distractors(patients[0]), all_distractors(sample_anatomy(0)), strict=True):
        np.testing.assert_array_equal(a.points, b.points)


@pytest.mark.slow
def test_stents_are_tubes_of_metal_around_an_artery(patients: list[Anatomy]) -> None:
    found = 0
    for patient in patients:
        mesh = [x for x in all_distractors(patient) if x.kind == "stent"]
        arteries = np.vstack(list(patient.coronaries.values()))
        for piece in mesh:
            away = np.linalg.norm(piece.points[:, None] - arteries[None], axis=2).min(axis=1)
            assert away.max() < patient.coronary_radius + 1
            assert piece.hu >= METAL_HU
        found += bool(mesh)
    assert found >= 2
