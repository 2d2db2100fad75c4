"""Simulated patients: the same from the same seed, plausible, and the same anatomy on every grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from deepcac2.imaging import Geometry
from deepcac2.simulation import (
    Acquisition,
    SimulatedPatient,
    default_geometry,
    heart_centroid,
    sample_acquisition,
    simulate_patient,
)
from deepcac2.simulation.anatomy import VERSIONS, sample_anatomy
from deepcac2.simulation.distractors import all_distractors
from deepcac2.simulation.truth import OTHERS

SEED = 5
"""A patient with much calcium."""


def around_heart(seed: int, spacing: tuple[float, float, float], half: float) -> Geometry:
    centre = heart_centroid(seed)
    n = [2 * int(half / s) + 1 for s in spacing]
    o = [c - (k - 1) / 2 * s for c, k, s in zip(centre, n[::-1], spacing[::-1], strict=True)]
    return Geometry(shape=(n[0], n[1], n[2]), spacing=spacing, origin=(o[0], o[1], o[2]))


@pytest.fixture(scope="module")
def coarse() -> SimulatedPatient:
    return simulate_patient(SEED, geometry=around_heart(SEED, (4.0, 4.0, 4.0), 160))


@pytest.fixture(scope="module")
def fine() -> SimulatedPatient:
    return simulate_patient(SEED, geometry=around_heart(SEED, (2.5, 0.7, 0.7), 88))


def test_the_same_seed_gives_the_same_patient(coarse: SimulatedPatient) -> None:
    again = simulate_patient(SEED, geometry=coarse.volume.geometry)
    np.testing.assert_array_equal(again.volume.hu, coarse.volume.hu)
    np.testing.assert_array_equal(again.heart, coarse.heart)
    np.testing.assert_array_equal(again.calcium, coarse.calcium)
    assert again.facts == coarse.facts


def test_another_seed_gives_another_patient(coarse: SimulatedPatient) -> None:
    other = simulate_patient(SEED + 1, geometry=coarse.volume.geometry)
    assert (other.heart != coarse.heart).any()


def test_what_lies_far_outside_the_chest_stays_a_number() -> None:
    # Patient 5034 has fibrosis: above the lungs exp() of a distance overflowed; the scan was all 0.
    full = default_geometry(5034)
    slices, rows, columns = full.shape
    spacing = (full.spacing[0], full.spacing[1] * 10, full.spacing[2] * 10)
    grid = replace(full, shape=(slices, rows // 10, columns // 10), spacing=spacing)
    with np.errstate(over="raise", invalid="raise"):
        patient = simulate_patient(5034, geometry=grid)
    assert patient.volume.hu.min() < -900


@pytest.mark.slow
def test_a_drawing_that_is_not_finite_is_refused(coarse: SimulatedPatient) -> None:
    scan = replace(sample_acquisition(SEED), hardening=float("nan"))
    with pytest.raises(ArithmeticError, match=f"patient {SEED} holds values that are not numbers"):
        simulate_patient(SEED, geometry=coarse.volume.geometry, acquisition=scan)


def test_the_heart_is_where_heart_centre_says(coarse: SimulatedPatient) -> None:
    geometry = coarse.volume.geometry
    centre = geometry.to_lps(np.argwhere(coarse.heart).mean(axis=0))
    np.testing.assert_allclose(centre, heart_centroid(SEED), atol=4)
    np.testing.assert_allclose(coarse.facts["heart_centre_lps"], heart_centroid(SEED), atol=0.01)


def test_both_grids_show_the_same_heart(coarse: SimulatedPatient, fine: SimulatedPatient) -> None:
    grids = coarse.volume.geometry, fine.volume.geometry
    volumes = [p.heart.sum() * g.voxel_volume for p, g in zip((coarse, fine), grids, strict=True)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.03)
    points = grids[0].to_lps(np.argwhere(coarse.heart))
    index = np.rint(grids[1].to_index(points)).astype(int)
    inside = ((index >= 0) & (index < grids[1].shape)).all(axis=1)
    hit = fine.heart[tuple(index[inside].T)]
    assert hit.mean() > 0.95


def test_both_grids_show_the_same_tissue(coarse: SimulatedPatient, fine: SimulatedPatient) -> None:
    """Deep inside lung, heart and liver the mean HU agree, whatever the grid."""
    deep = scipy.ndimage.binary_erosion(coarse.heart, iterations=3)
    points = coarse.volume.geometry.to_lps(np.argwhere(deep))
    index = np.rint(fine.volume.geometry.to_index(points)).astype(int)
    ok = ((index >= 0) & (index < fine.volume.geometry.shape)).all(axis=1)
    a = coarse.volume.hu[deep][ok]
    b = fine.volume.hu[tuple(index[ok].T)]
    assert np.median(a) == pytest.approx(np.median(b), abs=6)


def test_an_upside_down_mirrored_grid_shows_the_same_patient(coarse: SimulatedPatient) -> None:
    g = coarse.volume.geometry
    nz, ny, nx = g.shape
    last = g.to_lps([nz - 1, ny - 1, nx - 1])
    flipped = Geometry(
        shape=g.shape,
        spacing=g.spacing,
        origin=(float(last[0]), float(last[1]), float(last[2])),
        axes=((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (-1.0, 0.0, 0.0)),
    )
    other = simulate_patient(SEED, geometry=flipped)
    assert (other.heart[::-1, ::-1, ::-1] != coarse.heart).mean() < 1e-4
    assert (other.calcium[::-1, ::-1, ::-1] != coarse.calcium).sum() <= 2


def test_calcium_lies_in_the_heart(fine: SimulatedPatient) -> None:
    assert fine.calcium.sum() > 100
    near = scipy.ndimage.binary_dilation(fine.heart, iterations=4)
    assert near[fine.calcium].all()
    assert fine.heart[fine.calcium].mean() > 0.97
    assert not (fine.calcium & fine.distractors).any()


def test_calcium_is_labelled_with_the_artery_of_the_lesion_there(fine: SimulatedPatient) -> None:
    """Where a lesion's middle is, and no lesion of another artery is near, its artery is the label."""
    lesions = fine.facts["lesions"]
    assert set(np.unique(fine.arteries.array)) <= {0, 1, 2, 3, 4}
    assert len({x["artery"] for x in lesions}) > 1
    centres = np.array([x["centre_lps"] for x in lesions])
    voxels = np.argwhere(fine.calcium)
    distance = np.linalg.norm(fine.volume.geometry.to_lps(voxels)[:, None] - centres[None], axis=2)
    names = {label.value: label.name for label in fine.arteries.classes}
    found = np.array([names[v] for v in fine.arteries.array[tuple(voxels.T)]])
    kinds = np.array([x["artery"] for x in lesions])
    for artery in set(kinds):
        own, other = distance[:, kinds == artery].min(axis=1), distance[:, kinds != artery].min(axis=1)
        sure = (own < 3) & (other > 12)
        assert (found[sure] == artery).all()
    near = distance.min(axis=1) < 3
    assert (kinds[distance.argmin(axis=1)] == found)[near].mean() > 0.9


def test_what_is_no_coronary_calcium_is_labelled_by_kind() -> None:
    seen = set()
    for seed in (3, 5, 11):
        grid = default_geometry(seed, size=96, slices=48)
        patient = simulate_patient(seed, geometry=grid)
        there = {label.name for label in patient.others.classes if patient.others.where(label.name).any()}
        assert there <= set(patient.facts["distractors"])
        seen |= there
        assert (patient.others.mask == patient.distractors).all()
    assert len(seen) > 2


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_is_drawn_has_a_kind(version: int) -> None:
    """A kind without a label would stop the drawing of the few patients who have it."""
    known = {label.name for label in OTHERS}
    drawn = {d.kind for s in range(8) for d in all_distractors(sample_anatomy(s, version))}
    assert "oesophagus" in drawn  # of one patient in fifteen
    assert drawn <= known


def test_every_lesion_voxel_is_near_a_listed_lesion(fine: SimulatedPatient) -> None:
    centres = np.array([x["centre_lps"] for x in fine.facts["lesions"]])
    points = fine.volume.geometry.to_lps(np.argwhere(fine.calcium))
    distance = np.linalg.norm(points[:, None] - centres[None], axis=2).min(axis=1)
    assert distance.max() < 40
    assert np.median(distance) < 8


@pytest.mark.slow
def test_a_quiet_scan_shows_calcium_at_130_hu_and_more(fine: SimulatedPatient) -> None:
    scan = Acquisition(
        kernel="B30f", thickness=2.5, increment=2.5, field_of_view=360.0, centre=(0.0, 0.0), below=50.0,
        above=10.0, noise_sd=0.01, circle=False,
    )  # fmt: skip
    quiet = simulate_patient(SEED, geometry=fine.volume.geometry, acquisition=scan)
    assert quiet.calcium.any()
    assert quiet.volume.hu[quiet.calcium].min() >= 130
    soft = quiet.heart & ~scipy.ndimage.binary_dilation(quiet.calcium | quiet.distractors, iterations=4)
    assert np.percentile(quiet.volume.hu[soft], 99.9) < 100


@pytest.mark.slow
def test_a_breath_moves_picture_and_truth_together(fine: SimulatedPatient) -> None:
    """Where slices are displaced, the masks follow: calcium is bright, and the heart stays as large."""
    geometry = fine.volume.geometry
    scan = replace(sample_acquisition(SEED), kernel="B30f", noise_sd=0.01, step=0.0, hardening=0.0)
    still = simulate_patient(SEED, geometry=geometry, acquisition=scan)
    moved = simulate_patient(SEED, geometry=geometry, acquisition=replace(scan, step=5.0))
    changed = (still.volume.hu != moved.volume.hu).mean(axis=(1, 2)) > 0.1
    assert 3 < changed.sum() < 25
    assert moved.volume.hu[moved.calcium].min() >= 130
    assert moved.heart.sum() == pytest.approx(still.heart.sum(), rel=0.02)
    assert (moved.heart != still.heart)[changed].any()
    np.testing.assert_array_equal(moved.calcium[~changed], still.calcium[~changed])


@pytest.mark.slow
def test_calcium_and_bone_are_brighter_at_100_kvp(fine: SimulatedPatient) -> None:
    geometry = fine.volume.geometry
    scan = replace(sample_acquisition(SEED), kernel="B30f", noise_sd=0.01, hardening=0.0, kvp=120.0)
    high = simulate_patient(SEED, geometry=geometry, acquisition=scan)
    low = simulate_patient(SEED, geometry=geometry, acquisition=replace(scan, kvp=100.0))
    assert low.calcium.sum() > high.calcium.sum()
    dense = high.volume.hu > 300
    assert np.median(low.volume.hu[dense] / high.volume.hu[dense]) == pytest.approx(1.1, abs=0.04)
    soft = (high.volume.hu > 0) & (high.volume.hu < 60) & high.heart
    assert np.abs(low.volume.hu[soft] - high.volume.hu[soft]).mean() < 1


def test_tissues_have_their_hounsfield_units(coarse: SimulatedPatient) -> None:
    hu = coarse.volume.hu
    lung = (hu > -980) & (hu < -700)
    assert lung.mean() > 0.08
    assert -930 < np.median(hu[lung]) < -780
    assert 20 < np.median(hu[scipy.ndimage.binary_erosion(coarse.heart, iterations=3)]) < 65


def test_bodies_vary() -> None:
    bodies = [sample_anatomy(s) for s in range(12)]
    volumes = [b.heart.extent()[3] / 1000 for b in bodies]
    assert min(volumes) > 250
    assert max(volumes) < 1500
    assert np.std(volumes) > 60
    assert np.std([b.body.fat for b in bodies]) > 4
    assert {x.kind for b in bodies for x in b.distractors} >= {"aorta", "lymph node"}


def test_default_geometry_holds_the_heart() -> None:
    for seed in range(12):
        geometry = default_geometry(seed)
        assert 0.6 <= geometry.spacing[1] <= 1.0
        assert 0.5 <= geometry.spacing[0] <= 5.0
        index = geometry.to_index(heart_centroid(seed))
        assert (index > 0.08 * np.array(geometry.shape)).all()
        assert (index < 0.92 * np.array(geometry.shape)).all()
    assert default_geometry(3, size=96, slices=20).shape == (20, 96, 96)


def test_padding_outside_the_circle() -> None:
    seed = next(s for s in range(50) if sample_acquisition(s).circle)
    patient = simulate_patient(seed, geometry=default_geometry(seed, size=64, slices=12))
    hu = patient.volume.hu
    assert (hu[:, 0, 0] == -1024).all()
    assert (hu[:, 32, 32] > -1024).any()


@pytest.mark.slow
def test_real_and_simulated_hearts_look_alike(shared_data: Path) -> None:
    """Volume, extents and HU of two labelled chests lie within the simulated range."""
    import SimpleITK as sitk

    simulated = []
    for seed in range(10):
        p = simulate_patient(seed, geometry=default_geometry_at(seed, 6.0))
        simulated.append(describe(p.volume.hu, p.heart, (6.0, 6.0, 6.0)))
    low, high = np.min(simulated, axis=0), np.max(simulated, axis=0)
    for name in ("0187", "0506"):
        hu = sitk.GetArrayFromImage(sitk.ReadImage(str(shared_data / "labelled" / name / "image_3mm.nrrd")))
        labels = sitk.GetArrayFromImage(
            sitk.ReadImage(str(shared_data / "labelled" / name / "mask_3mm.nrrd"))
        )
        real = describe(hu, np.isin(labels, (1, 3)), (3.0, 3.0, 3.0))
        slack = np.array([100.0, 15.0, 15.0, 15.0, 15.0, 25.0])
        assert (real > low - slack).all(), (real, low)
        assert (real < high + slack).all(), (real, high)


def default_geometry_at(seed: int, spacing: float) -> Geometry:
    g = default_geometry(seed)
    n = [int(k * s / spacing) for k, s in zip(g.shape, g.spacing, strict=True)]
    return Geometry(shape=(n[0], n[1], n[2]), spacing=(spacing,) * 3, origin=g.origin)


def describe(hu: np.ndarray, heart: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Heart volume (ml), its extents z, y, x (mm), median HU in its core, median HU of lung."""
    index = np.argwhere(heart)
    extent = (np.ptp(index, axis=0) + 1) * spacing
    core = hu[heart & (hu > -30)]
    lung = hu[(hu < -700) & (hu > -970)]
    return np.array([heart.sum() * np.prod(spacing) / 1000, *extent, np.median(core), np.median(lung)])
