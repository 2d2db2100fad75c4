"""Whole hearts in nnU-Net's layout: simulated ones, and variants of labelled scans."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from deepcac2.errors import TrainingError
from deepcac2.imaging import Geometry
from deepcac2.imaging.files import write_image
from deepcac2.training.hearts import HeartsRecipe, coarse, labelled_scans, make_hearts, simulated_heart

RECIPE = HeartsRecipe(patients=2, first_seed=5, noise_hu=10.0, crop_share=0.0, spacing_mm=(12.0, 12.0, 12.0))


def test_a_coarse_grid_fills_the_same_box():
    fine = Geometry(
        shape=(100, 512, 500),
        spacing=(2.5, 0.7, 0.8),
        origin=(-170.0, -180.0, -300.0),
        axes=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    )
    wide = coarse(fine, (6.0, 6.0, 6.0))
    assert np.allclose(wide.spacing, 6.0, atol=0.1)
    for corner in (np.full(3, -0.5), np.array(fine.shape) - 0.5):
        theirs = np.where(corner < 0, -0.5, np.array(wide.shape) - 0.5)
        assert np.allclose(fine.to_lps(corner), wide.to_lps(theirs))


def test_simulated_hearts_lie_inside_the_chest_and_are_as_large_as_hearts():
    image, label, spacing = simulated_heart(5, RECIPE)
    assert image.shape == label.shape
    assert image.dtype == np.int16
    volume = label.sum() * np.prod(spacing) / 1000
    assert 300 < volume < 1500
    assert -100 < np.median(image[label > 0]) < 100
    # Canonical: the lungs' air above the heart is at higher z; the spine is behind it, at higher y.
    z, y, x = np.argwhere(label).mean(0)
    assert image[int(z), int(y) :, int(x) - 3 : int(x) + 4].max() > 150


def test_versions_of_the_simulator_take_turns():
    """The seed that the second version draws is another patient than the first version's of this seed."""
    mixed = replace(RECIPE, simulators=(1, 5))
    assert [mixed.simulator(seed) for seed in range(5, 9)] == [1, 5, 1, 5]
    assert np.array_equal(simulated_heart(5, mixed)[0], simulated_heart(5, RECIPE)[0])
    assert not np.array_equal(simulated_heart(6, mixed)[1], simulated_heart(6, RECIPE)[1])
    with pytest.raises(ValueError, match="one or more versions"):
        replace(RECIPE, simulators=())


def test_a_cut_patient_still_holds_the_whole_heart():
    whole = simulated_heart(5, RECIPE)[1]
    image, cut, spacing = simulated_heart(5, replace(RECIPE, crop_share=1.0))
    assert cut.sum() == whole.sum()
    assert image.size < whole.size
    assert np.allclose(spacing, 12, atol=0.5)


def test_data_set_has_nnunets_layout_and_is_not_made_twice(tmp_path):
    folder = make_hearts(tmp_path, replace(RECIPE, patients=1))
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["numTraining"] == 1
    image = sitk.ReadImage(str(folder / "imagesTr" / "sim_5_0000.nii.gz"))
    label = sitk.ReadImage(str(folder / "labelsTr" / "sim_5.nii.gz"))
    assert image.GetSize() == label.GetSize()
    assert np.allclose(image.GetSpacing(), 12, atol=0.5)
    assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, 1}
    before = (folder / "imagesTr" / "sim_5_0000.nii.gz").stat().st_mtime_ns
    make_hearts(tmp_path, replace(RECIPE, patients=1))
    assert (folder / "imagesTr" / "sim_5_0000.nii.gz").stat().st_mtime_ns == before
    with pytest.raises(TrainingError, match="another recipe"):
        make_hearts(tmp_path, replace(RECIPE, patients=1, noise_hu=99.0))


def test_labelled_scans_come_in_canonical_orientation(tmp_path):
    grid = Geometry(
        shape=(4, 5, 6),
        spacing=(3.0, 2.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        axes=((0.0, 0.0, -1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
    )
    hu = np.arange(120, dtype=np.int16).reshape(grid.shape)
    mask = (np.arange(120).reshape(grid.shape) % 4).astype(np.uint8)
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "a" / "image_3mm.nrrd", hu, grid)
    write_image(tmp_path / "a" / "mask_3mm.nrrd", mask, grid)
    ((image, label, spacing),) = labelled_scans(tmp_path, (1.0, 1.0, 1.0))
    assert np.array_equal(image, hu[::-1, :, ::-1])
    assert np.array_equal(label, np.isin(mask, (1, 3))[::-1, :, ::-1])
    assert spacing == (3.0, 2.0, 1.0)


def test_fine_scans_are_averaged_down_and_filled_up_slices_become_air(tmp_path):
    grid = Geometry(shape=(12, 24, 24), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    hu = rng.integers(0, 100, grid.shape).astype(np.int16)
    hu[9:] = 0
    mask = np.zeros(grid.shape, np.uint8)
    mask[3:6, 6:18, 6:18] = 1
    (tmp_path / "a").mkdir()
    write_image(tmp_path / "a" / "image.nrrd", hu, grid)
    write_image(tmp_path / "a" / "mask.nrrd", mask, grid)
    ((image, label, spacing),) = labelled_scans(tmp_path, (3.0, 3.0, 3.0))
    assert image.shape == label.shape == (4, 8, 8)
    assert spacing == pytest.approx((3.0, 3.0, 3.0))
    assert image[3].max() < -700
    assert abs(image[0].mean() - hu[:3].mean()) < 3
    assert label[1, 3:5, 3:5].all()
    assert label.sum() == 16


def test_variants_of_scans_are_written_and_kept(tmp_path):
    z, y, x = np.meshgrid(*(np.arange(40) - 19.5,) * 3, indexing="ij")
    inside = np.sqrt(z**2 + y**2 + x**2) < 12
    grid = Geometry(shape=(40, 40, 40), spacing=(6.0, 6.0, 6.0), origin=(0.0, 0.0, 0.0))
    source = tmp_path / "scans" / "a"
    source.mkdir(parents=True)
    write_image(source / "image.nrrd", np.where(inside, 40, -800).astype(np.int16), grid)
    write_image(source / "mask.nrrd", inside.astype(np.uint8), grid)
    recipe = replace(RECIPE, patients=0, scan_variants=3)
    folder = make_hearts(tmp_path / "raw", recipe, data=[source.parent])
    images = sorted((folder / "imagesTr").glob("*.nii.gz"))
    assert [f.name for f in images] == [f"scan_000_{i:03d}_0000.nii.gz" for i in range(3)]
    read = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in images]
    assert read[0].shape == (20, 20, 20)
    assert not np.array_equal(read[0], read[1])
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 3


def test_the_real_labelled_scans_are_read(shared_data):
    scans = list(labelled_scans(shared_data / "labelled", (3.0, 3.0, 3.0)))
    assert len(scans) == 2
    for image, label, spacing in scans:
        assert spacing == (3.0, 3.0, 3.0)
        assert 300 < label.sum() * 27 / 1000 < 1500
        assert -100 < np.median(image[label > 0]) < 100


def test_scans_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(TrainingError, match="no annotated scan"):
        list(labelled_scans(tmp_path, (3.0, 3.0, 3.0)))
    (tmp_path / "a").mkdir()
    grid = Geometry(shape=(4, 5, 6), spacing=(3.0, 2.0, 1.0), origin=(0.0, 0.0, 0.0))
    write_image(tmp_path / "a" / "image.nrrd", np.zeros(grid.shape, np.int16), grid)
    write_image(
        tmp_path / "a" / "mask.nrrd", np.zeros(grid.shape, np.uint8), replace(grid, origin=(9.0, 0.0, 0.0))
    )
    with pytest.raises(TrainingError, match="grid"):
        list(labelled_scans(tmp_path, (3.0, 3.0, 3.0)))
