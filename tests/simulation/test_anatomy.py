"""Drawn anatomy: hearts of real size and place, variety as documented, the same body on every grid."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest

from deepcac2.imaging import Geometry
from deepcac2.simulation import body as bodies
from deepcac2.simulation import findings as diseases
from deepcac2.simulation import heart as hearts
from deepcac2.simulation.anatomy import (
    CARDIOMEGALY_SHARE,
    Anatomy,
    place_heart,
    sample_anatomy,
    sample_body,
    sample_frame,
)
from deepcac2.simulation.heart import Heart
from deepcac2.simulation.rendering import draw
from deepcac2.simulation.trunk import rib_curves

SEEDS = range(60)
RENDERED = (2, 9, 14, 22, 46, 48)


@lru_cache(maxsize=1)
def placed() -> list[tuple[bodies.Body, Heart, npt.NDArray[np.float64]]]:
    """Body, heart and points inside the heart of many patients."""
    out = []
    for seed in SEEDS:
        body, size, obesity = sample_body(seed)
        heart, _ = place_heart(seed, body, size, obesity)
        out.append((body, heart, heart.inside()[0]))
    return out


def grid_around(anatomy: Anatomy, spacing: float, half: tuple[float, float, float]) -> Geometry:
    """A cubic grid of `spacing` mm reaching `half` (z, y, x) mm to either side of the heart's centre."""
    n = [2 * int(h / spacing) for h in half]
    o = [c - (k - 1) / 2 * spacing for c, k in zip(anatomy.heart_centre, n[::-1], strict=True)]
    return Geometry(shape=(n[0], n[1], n[2]), spacing=(spacing,) * 3, origin=(o[0], o[1], o[2]))


@pytest.mark.slow
def test_hearts_are_as_large_as_real_ones() -> None:
    """The two labelled LIDC chests hold 658 and 919 ml, 114 and 118 mm high, 110 and 146 mm wide."""
    volumes = np.array([len(p) * hearts.GRID_MM**3 / 1000 for _, _, p in placed()])
    assert 600 < np.median(volumes) < 850
    assert np.percentile(volumes, 5) > 350
    assert np.percentile(volumes, 95) < 1300
    extents = np.array([np.ptp(p, axis=0)[::-1] + hearts.GRID_MM for _, _, p in placed()])
    for real in ((114, 110, 110), (118, 118, 146)):
        assert (np.percentile(extents, 2.5, axis=0) < real).all()
        assert (np.percentile(extents, 97.5, axis=0) > real).all()


def test_a_heart_is_widest_in_its_lower_half_and_ends_flat_on_top() -> None:
    """Area by height of the labelled chests, as share of the largest: rises over the lowest third, is
    largest at 0.3-0.55 of the height and falls to 0.3-0.45 at the top, where the label is cut off."""
    profiles = []
    for _, _, p in placed():
        levels, areas = np.unique(p[:, 2], return_counts=True)
        height = (levels - levels[0]) / np.ptp(levels)
        profiles.append(np.interp([0.1, 0.25, 0.4, 0.6, 0.8, 0.97], height, areas / areas.max()))
    mean = np.mean(profiles, axis=0)
    assert 0.25 < mean[0] < 0.75
    assert mean[2] > 0.9
    assert mean[2] > mean[3] > mean[4] > mean[5]
    assert 0.2 < mean[5] < 0.5


def test_a_heart_stays_behind_the_breast_bone_and_before_the_spine() -> None:
    for body, _, p in placed():
        front = body.front_at(p[:, 0].astype(np.float32), p[:, 2].astype(np.float32))
        assert (p[:, 1] > front).all()
        assert (p[:, 1] < body.spine(p[:, 2]) - 12).all()
        assert (np.abs(p[:, 0]) < 0.95 * body.half_width).all()


def test_most_hearts_lie_more_to_the_left() -> None:
    middle = np.array([p[:, 0].mean() for _, _, p in placed()])
    assert (middle > 0).mean() > 0.9
    assert 8 < np.median(middle) < 22
    assert middle.std() > 5


@pytest.mark.parametrize("seed", RENDERED)
def test_no_lung_liver_or_stomach_lies_inside_the_heart(seed: int) -> None:
    anatomy = sample_anatomy(seed)
    size, gas, _ = anatomy.body.stomach
    body = replace(anatomy.body, liver_hu=3000.0, stomach=(size, gas, 3000.0))
    hu, sac = draw(replace(anatomy, body=body), grid_around(anatomy, 5.0, (90, 90, 90)))
    inside = hu[sac < -5]
    assert len(inside) * 0.125 > 100
    assert inside.min() > -150
    assert inside.max() < 120


@pytest.mark.parametrize("seed", RENDERED)
def test_the_heart_lies_between_the_lungs_on_the_diaphragm(seed: int) -> None:
    anatomy = sample_anatomy(seed)
    hu, sac = draw(anatomy, grid_around(anatomy, 6.0, (120, 120, 150)))
    lung = hu < -600
    middle = hu.shape[0] // 2
    columns = (sac[middle] < 0).any(axis=0)
    left, right = (
        lung[middle][:, : columns.argmax()],
        lung[middle][:, len(columns) - columns[::-1].argmax() :],
    )
    assert left.any()
    assert right.any()
    below = sac < np.float32(0)
    bottom = np.flatnonzero(below.any(axis=(1, 2)))[0]
    assert (hu[max(bottom - 5, 0)][below.any(axis=0)] > -200).mean() > 0.5


def test_the_same_body_on_two_grids() -> None:
    anatomy = sample_anatomy(3)
    fine, _ = draw(anatomy, grid_around(anatomy, 2.0, (72, 132, 168)))
    coarse, _ = draw(anatomy, grid_around(anatomy, 6.0, (72, 132, 168)))
    n = coarse.shape
    means = fine.reshape(n[0], 3, n[1], 3, n[2], 3).mean(axis=(1, 3, 5))
    assert coarse.mean() == pytest.approx(means.mean(), abs=4)
    assert np.corrcoef(coarse.ravel(), means.ravel())[0, 1] > 0.99
    bony = fine.reshape(n[0], 3, n[1], 3, n[2], 3).max(axis=(1, 3, 5)) > 300
    assert bony.sum() > 500
    assert coarse[bony].mean() == pytest.approx(means[bony].mean(), rel=0.15)


def test_fluid_in_the_sac_lies_between_it_and_the_fat() -> None:
    anatomy = sample_anatomy(9)
    hu, sac = draw(
        replace(anatomy, heart=replace(anatomy.heart, effusion=8.0)), grid_around(anatomy, 2.0, (80, 80, 80))
    )
    assert np.median(hu[(sac < -3) & (sac > -6)]) == pytest.approx(12, abs=8)
    deeper = anatomy.heart.surface(anatomy.heart.origin[None], anatomy.heart.axes[:1], 4.0)
    wet = replace(anatomy.heart, effusion=8.0)
    again = wet.surface(wet.origin[None], wet.axes[:1], 4.0)
    assert np.linalg.norm(again - deeper) < 2


def test_ribs_lie_outside_the_lungs() -> None:
    for seed in range(8):
        body = sample_body(seed)[0]
        for bone, _ in rib_curves(body):
            half = 0.5 * (body.back(bone[:, 2]) - body.front(bone[:, 2]))
            behind = (bone[:, 1] - 0.5 * (body.back(bone[:, 2]) + body.front(bone[:, 2]))) / half
            assert (np.hypot(bone[:, 0] / body.half_width, behind)[bone[:, 2] < 0.3 * body.apex] > 0.97).all()


def share(hits: list[bool]) -> float:
    return float(np.mean(hits))


def near(wanted: float, n: int) -> object:
    """Within four standard errors of a share."""
    return pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / n))


def test_bodies_vary_as_often_as_documented() -> None:
    n = 800
    drawn = [sample_body(s)[0] for s in range(n)]
    assert share([b.prone for b in drawn]) == near(bodies.PRONE_SHARE, n)
    assert share([b.emphysema > 0 for b in drawn]) == near(bodies.EMPHYSEMA_SHARE, n)
    assert share([b.arms == (False, False) for b in drawn]) == near(bodies.ARMS_DOWN_SHARE, n)
    women = [b for b in drawn if b.breasts]
    assert share([b.breasts[0].implant is not None for b in women]) == near(bodies.IMPLANT_SHARE, len(women))
    bent = [len(sample_frame(s).warp.phase) > 10 for s in range(n)]
    assert share(bent) == near(bodies.SCOLIOSIS_SHARE, n)
    fat = np.array([b.fat for b in drawn])
    assert np.percentile(fat, 5) < 6
    assert np.percentile(fat, 98) > 45
    assert np.ptp([b.kyphosis for b in drawn]) > 20
    assert {b.table is None for b in drawn} == {True, False}


def test_disease_is_as_frequent_as_documented() -> None:
    n = 800
    anatomy = sample_anatomy(1)
    drawn = [diseases.sample_findings(s, sample_body(s)[0], anatomy.heart, anatomy.vessels) for s in range(n)]
    assert share([f.hernia is not None for f in drawn]) == near(diseases.HERNIA_SHARE, n)
    assert share([f.fibrosis > 0 for f in drawn]) == near(diseases.FIBROSIS_SHARE, n)
    assert share([max(f.pleural) > 0 for f in drawn]) == near(diseases.PLEURAL_SHARE, n)
    assert share([bool(f.nodes) for f in drawn]) == near(diseases.NODES_SHARE, n)
    assert share([any(b.rough > 5 for b in f.lung) for f in drawn]) == near(diseases.CONSOLIDATION_SHARE, n)
    assert share([any(b.rough == 0.6 for b in f.lung) for f in drawn]) == near(diseases.NODULE_SHARE, n)


def test_hearts_vary_as_often_as_documented() -> None:
    n = 800
    drawn = [
        hearts.sample_heart(np.random.default_rng(s), size=1.0, obesity=0.3, emphysema=0.0) for s in range(n)
    ]
    assert share([h.effusion > 0 for h in drawn]) == near(hearts.EFFUSION_SHARE, n)
    steepness = np.rad2deg(np.arcsin([-h.axes[0][2] for h in drawn]))
    assert np.percentile(steepness, 5) < 25
    assert np.percentile(steepness, 95) > 46
    assert 0 < CARDIOMEGALY_SHARE < 0.2


def test_emphysema_makes_the_heart_upright_and_the_diaphragm_flat() -> None:
    upright = [
        hearts.sample_heart(np.random.default_rng(s), size=1.0, obesity=0.3, emphysema=1.0).axes[0][2]
        < hearts.sample_heart(np.random.default_rng(s), size=1.0, obesity=0.3).axes[0][2]
        for s in range(20)
    ]
    assert all(upright)
    drawn = [sample_body(s)[0] for s in range(400)]
    height = [[b.domes[0] - b.domes[2] for b in drawn if (b.emphysema > 0.6) is ill] for ill in (True, False)]
    assert np.median(height[0]) < 0.7 * np.median(height[1])
