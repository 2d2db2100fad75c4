"""Simulated calcium in a given heart: in its arteries, in its own noise, and nothing else touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from deepcac2.errors import TrainingError
from deepcac2.imaging import Geometry
from deepcac2.models.heart.network import HeartModel
from deepcac2.simulation import heart_centroid, simulate_patient
from deepcac2.simulation.anatomy import sample_anatomy
from deepcac2.training import insertion
from deepcac2.training.crops import ARTERY, CALCIUM, OTHER, CropRecipe, coronary, elsewhere
from deepcac2.training.insertion import (
    Background,
    background_series,
    insert,
    inserted_crop,
    lay_coronaries,
    load_background,
    make_background,
)
from deepcac2.weights import resolve

CROP = CropRecipe(centre_jitter_mm=4.0, label_threshold=0.25, near_heart_mm=10.0)


@pytest.fixture(scope="module")
def background() -> Background:
    """Simulated patient 3's heart at 1.5 × 1 × 1 mm, its calcium taken away, as if it were a real scan."""
    x, y, z = heart_centroid(3)
    shape, spacing = (90, 160, 160), (1.5, 1.0, 1.0)
    origin = (x - 79.5, y - 79.5, z - 66.75)
    patient = simulate_patient(3, geometry=Geometry(shape=shape, spacing=spacing, origin=origin))
    hu = np.where(patient.calcium | patient.distractors, 30, patient.volume.hu).astype(np.int16)
    return Background(
        name="simulated",
        volume=replace(patient.volume, hu=hu),
        heart=patient.heart,
        kernel="STANDARD",
        thickness=1.5,
        kvp=120.0,
    )


def test_arteries_lie_inside_the_heart_near_its_surface(background):
    depth = scipy.ndimage.distance_transform_edt(background.heart, sampling=(1.5, 1.0, 1.0))
    for seed in (1, 2, 7):
        lines = lay_coronaries(sample_anatomy(seed), background)
        assert set(lines) == {"LM", "LAD", "LCX", "RCA"}
        for name, line in lines.items():
            index = background.volume.geometry.to_index(line).round().astype(int).T
            there = depth[tuple(np.clip(i, 0, n - 1) for i, n in zip(index, depth.shape, strict=True))]
            assert (there > 0).mean() > 0.85, (seed, name)
            if name != "LM":
                assert np.median(there) < 20, (seed, name)


def test_noise_stays_and_what_is_far_from_a_lesion_is_untouched(background, monkeypatch):
    monkeypatch.setattr(insertion, "BLURRED_SHARE", 0.0)
    hu, calcium, other, _ = insert(background, 11)
    assert calcium.any()
    assert not (calcium & other).any()
    added = hu - background.volume.hu
    assert added.min() >= -0.5 or added.min() > -0.2 * added.max()
    far = scipy.ndimage.distance_transform_edt(~calcium, sampling=(1.5, 1.0, 1.0)) > 25
    far &= background.heart & (added == 0)
    assert far.sum() > 0.5 * (background.heart & ~calcium).sum()
    assert np.mean(hu[calcium]) > 130
    assert (hu[calcium] > 100).mean() > 0.75


def test_a_heart_drawn_without_calcium_gets_none(background, monkeypatch):
    monkeypatch.setattr(insertion, "WITH_CALCIUM", 0.0)
    _, calcium, _, _ = insert(background, 11)
    assert not calcium.any()


@pytest.mark.slow
def test_crops_are_what_the_network_sees_and_the_same_every_time(background):
    hu, label = inserted_crop(background, 11, CROP)
    again = inserted_crop(background, 11, CROP)
    assert hu.shape == label.shape == (58, 256, 256)
    assert hu.dtype == np.int16
    assert np.array_equal(hu, again[0])
    assert np.array_equal(label, again[1])
    assert {0, 1, 2} <= set(np.unique(label)) <= {0, 1, 2, 4}
    assert np.median(hu[label == 1]) > 130
    other, _ = inserted_crop(background, 12, CROP)
    assert not np.array_equal(hu, other)


@pytest.mark.slow
def test_the_heart_lies_in_the_crop_as_at_inference(background):
    """A thin rod to the right widens the heart's box, but hardly moves its centre of gravity."""
    heart = background.heart.copy()
    z, y, x = (int(c) for c in np.argwhere(heart).mean(axis=0))
    edge = np.flatnonzero(heart.any(axis=(0, 1)))
    heart[z, y, 10:x] = True
    moved = (edge[0] - 10) / 2
    crops = [inserted_crop(replace(background, heart=h), 11, CROP) for h in (background.heart, heart)]
    heart_x = [np.argwhere(label > 0)[:, 2].mean() * 0.7 for _, label in crops]
    assert heart_x[1] - heart_x[0] == pytest.approx(moved, abs=0.35 * moved)


@pytest.mark.slow
def test_a_background_is_cut_to_the_surroundings_of_its_heart(background, shared_data: Path):
    model = HeartModel.load(resolve("bundled", "heart"), torch.device("cpu"))
    folder = shared_data / "chest" / "Lung_Dx-A0001-B"
    ((name, series),) = background_series(folder).items()
    found = load_background(name, series, lambda name, volume: model.predict(volume).mask)
    assert found.thickness == pytest.approx(series.slice_thickness)
    assert found.heart.any()
    assert found.volume.hu.size < 64 * 512 * 512
    centre = found.volume.geometry.to_lps(np.argwhere(found.heart).mean(axis=0))
    from deepcac2.dicom import read_series

    whole = model.predict(read_series(series).volume)
    assert np.allclose(centre, whole.centre_lps, atol=0.1)
    with pytest.raises(TrainingError, match="no series that can be a background"):
        background_series(shared_data / "chest" / "Lung_Dx-A0002")
    assert make_background("x", background.volume, background.heart, series).kernel == "B"
    nameless = replace(series, kernel="")
    assert make_background("x", background.volume, background.heart, nameless).kernel == "STANDARD"


@pytest.mark.slow
def test_named_crops_say_which_artery(background: Background) -> None:
    """The same crop as one without names, with arteries, kinds and depth instead of bare calcium."""
    plain, named = (replace(CROP, simulators=(2,), named=n) for n in (False, True))
    hu, label = inserted_crop(background, 11, plain)
    again, names, depth = inserted_crop(background, 11, named)
    assert (label == CALCIUM).any()
    np.testing.assert_array_equal(hu, again)
    np.testing.assert_array_equal(coronary(names), label == CALCIUM)
    np.testing.assert_array_equal(elsewhere(names), label == OTHER)
    known = names > ARTERY
    assert known.sum() > 0.8 * (label == CALCIUM).sum()
    assert set(np.unique(names[coronary(names)])) <= {CALCIUM, *(ARTERY + v for v in range(1, 5))}
    near = label > 0
    assert not near[depth < -75].any()  # 15 mm outside; near ends at 10
    assert near[depth > 0].mean() > 0.99


@pytest.mark.slow
def test_the_truth_of_a_simulated_patient_goes_into_its_crop() -> None:
    """Share by share: what a named crop calls an artery's is that artery's in the patient."""
    from deepcac2.training.sources import simulated_crop

    recipe = CropRecipe(simulators=(2,), named=True, label_threshold=0.25)
    _, label, depth = simulated_crop(2, 5, recipe)
    x, y, z = heart_centroid(5)
    origin = (x - 79.5, y - 79.5, z - 66.75)
    around = Geometry(shape=(90, 160, 160), spacing=(1.5, 1.0, 1.0), origin=origin)
    patient = simulate_patient(5, version=2, geometry=around)
    arteries = {v for v in np.unique(patient.arteries.array).tolist() if v}
    found = {v - ARTERY for v in np.unique(label[coronary(label)]).tolist()}
    assert found <= arteries
    mm3 = 2.5 * 0.7 * 0.7
    for value in arteries:
        voxels = (patient.arteries.array == value).sum() * patient.volume.geometry.voxel_volume
        if voxels > 100:
            assert (label == ARTERY + value).sum() * mm3 == pytest.approx(voxels, rel=0.5)
    assert (depth[coronary(label)] > -25).all()
