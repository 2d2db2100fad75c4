"""Image files: geometry checked against nibabel and plain header text, not against our own reader."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from deepcac2.errors import InputError, InputUnreadable, OutputUnwritable
from deepcac2.imaging import Geometry
from deepcac2.imaging.files import is_image, read_image, volume_from_image, write_image
from deepcac2.system.atomic import atomic_path

SHAPE = (4, 5, 6)
SIGNS = list(itertools.product((1.0, -1.0), repeat=3))
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha")


def make_geometry(signs: tuple[float, ...], order: tuple[int, ...] = (2, 1, 0)) -> Geometry:
    """Axes (z, y, x) along the patient's axes `order` with `signs`; half of the signs are left-handed."""
    axes = [[0.0, 0.0, 0.0] for _ in range(3)]
    for row, sign, axis in zip(axes, signs, order, strict=True):
        row[axis] = sign
    z, y, x = (tuple(row) for row in axes)
    return Geometry(shape=SHAPE, spacing=(2.5, 0.75, 0.5), origin=(-11.5, 20.25, -300.75), axes=(z, y, x))


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("signs", SIGNS)
def test_round_trip_for_all_directions(tmp_path: Path, array, signs, ending) -> None:
    geometry = make_geometry(signs)
    path = tmp_path / f"image{ending}"
    write_image(path, array, geometry)
    read, back = read_image(path)
    assert read.dtype == np.int16
    np.testing.assert_array_equal(read, array)
    assert back.same_grid(geometry, 1e-4)
    np.testing.assert_allclose(back.axes, geometry.axes, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("signs", SIGNS)
def test_round_trip_of_permuted_axes(tmp_path: Path, array, signs, order) -> None:
    geometry = make_geometry(signs, order)
    for ending in (".nii.gz", ".nrrd"):
        write_image(tmp_path / f"image{ending}", array, geometry)
        assert read_image(tmp_path / f"image{ending}")[1].same_grid(geometry, 1e-4)


@pytest.mark.parametrize("signs", SIGNS)
def test_nibabel_sees_the_same_affine_and_values(tmp_path: Path, array, signs) -> None:
    geometry = make_geometry(signs)
    path = tmp_path / "image.nii.gz"
    write_image(path, array, geometry)
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, geometry.affine_ras_xyz(), atol=1e-4)
    np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), array)


@pytest.mark.parametrize("signs", SIGNS)
def test_files_by_nibabel_are_read_where_they_lie(tmp_path: Path, array, signs) -> None:
    geometry = make_geometry(signs)
    path = tmp_path / "image.nii"
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), geometry.affine_ras_xyz()), path)
    read, back = read_image(path)
    np.testing.assert_array_equal(read, array)
    assert back.same_grid(geometry, 1e-4)


def test_oblique_geometry_survives(tmp_path: Path, array) -> None:
    a, b = np.deg2rad(12.0), np.deg2rad(-7.0)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    x, y, z = (tuple(column) for column in turn.T)
    geometry = Geometry(shape=SHAPE, spacing=(3.0, 0.7, 0.7), origin=(1.0, 2.0, 3.0), axes=(z, y, x))
    for ending in ENDINGS:
        write_image(tmp_path / f"image{ending}", array, geometry)
        assert read_image(tmp_path / f"image{ending}")[1].same_grid(geometry, 1e-3)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.bool_])
@pytest.mark.parametrize("ending", ENDINGS)
def test_types(tmp_path: Path, dtype, ending) -> None:
    values = np.random.default_rng(1).uniform(0, 2, SHAPE).astype(dtype)
    write_image(tmp_path / f"image{ending}", values, make_geometry((1, 1, 1)))
    read = read_image(tmp_path / f"image{ending}")[0]
    assert read.dtype == (np.uint8 if dtype == np.bool_ else dtype)
    np.testing.assert_array_equal(read, values.astype(read.dtype))


def test_nifti_scaling_is_applied_and_rounded_to_hu(tmp_path: Path) -> None:
    values = np.array([-1000.4, 0.6, 40000.0, np.nan] * 2, dtype=np.float32).reshape(2, 2, 2)
    write_image(tmp_path / "ct.nrrd", values, Geometry(shape=(2, 2, 2), spacing=(1, 1, 1), origin=(0, 0, 0)))
    volume = volume_from_image(tmp_path / "ct.nrrd")
    assert volume.hu.dtype == np.int16
    assert volume.hu[0].ravel().tolist() == [-1000, 1, 32767, -1024]

    scaled = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    scaled.header.set_slope_inter(1, -1024)
    nib.save(scaled, tmp_path / "scaled.nii")
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    raw[112:120] = np.array([1, -1024], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "scaled.nii").write_bytes(bytes(raw))
    expected = int(np.asarray(nib.load(tmp_path / "scaled.nii").dataobj)[0, 0, 0])
    assert volume_from_image(tmp_path / "scaled.nii").hu[0, 0, 0] == expected


def test_single_volume_of_a_4d_file_is_read_others_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5, 1), np.int16), np.eye(4)), tmp_path / "one.nii")
    assert read_image(tmp_path / "one.nii")[0].shape == (5, 4, 3)
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5, 2), np.int16), np.eye(4)), tmp_path / "two.nii")
    with pytest.raises(InputError, match="not one 3D image"):
        read_image(tmp_path / "two.nii")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="There is no file"):
        read_image(tmp_path / "missing.nii")
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputUnreadable, match=r"Cannot read .*bad\.nii\.gz") as caught:
        read_image(tmp_path / "bad.nii.gz")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputUnreadable, match="must end in"):
        read_image(tmp_path / "image.png")


def test_nothing_half_written(tmp_path: Path, array) -> None:
    target = tmp_path / "folder" / "image.nii.gz"
    write_image(target, array, make_geometry((1, 1, 1)))
    before = target.read_bytes()

    def killed() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert target.read_bytes() == before
    assert [p.name for p in target.parent.iterdir()] == ["image.nii.gz"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputUnwritable):
        write_image(tmp_path / "file" / "image.nii", array, make_geometry((1, 1, 1)))


def test_wrong_arguments(tmp_path: Path, array) -> None:
    geometry = make_geometry((1, 1, 1))
    with pytest.raises(ValueError, match="not float64"):
        write_image(tmp_path / "a.nii", array.astype(np.float64), geometry)
    with pytest.raises(ValueError, match="does not fit"):
        write_image(tmp_path / "a.nii", array[1:], geometry)
    with pytest.raises(ValueError, match="image names end in"):
        write_image(tmp_path / "a.png", array, geometry)
    assert is_image(Path("A.NII.GZ"))
    assert not is_image(Path("a.dcm"))


def test_shared_nrrd(shared_data: Path) -> None:
    array, geometry = read_image(shared_data / "labelled" / "0506" / "mask_full.nrrd")
    assert array.shape == (122, 512, 512)
    np.testing.assert_allclose(geometry.spacing, (2.5, 0.68, 0.68))
    np.testing.assert_allclose(geometry.origin, (-200.36, -195.660003, -270.695007))
    assert np.unique(array).tolist() == [0, 1, 2, 3]
