"""Reading: HU and geometry, against values computed here and against SimpleITK (GDCM)."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from deepcac2.dicom import Reading, Series, discover, read_series
from deepcac2.errors import SeriesFailed, SeriesRejected
from deepcac2.imaging.volume import PADDING_HU

HU = npt.NDArray[np.int16]


def find(root: Path) -> Series:
    (series,) = discover(root).series
    return series


def read(root: Path) -> Reading:
    return read_series(find(root))


SIGNS = list(itertools.product((1, -1), repeat=3))


@pytest.mark.parametrize("reverse", [False, True], ids=["as-numbered", "reversed"])
@pytest.mark.parametrize("signs", SIGNS, ids=str)
def test_every_voxel_lies_where_the_files_say(
    signs: tuple[int, int, int], reverse: bool, ct, hu: HU, tmp_path: Path
) -> None:
    # row and column directions may point either way; the third sign is the order of acquisition along z
    sx, sy, sz = signs
    orientation = (sx * 0.99503719, sx * 0.09950372, 0, -sy * 0.09950372, sy * 0.99503719, 0)
    acquired = hu[:6] if sz > 0 else hu[5::-1]
    increment = 3.0 * sz
    paths = ct.write(tmp_path, acquired, orientation=orientation, increment=increment, reverse=reverse)
    volume = read(tmp_path).volume

    for path in paths:
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array
        row, column = np.reshape(np.asarray(ds.ImageOrientationPatient, dtype=float), (2, 3))
        down, across = (float(v) for v in ds.PixelSpacing)
        for y, x in ((0, 0), (0, 9), (11, 0), (5, 7)):
            lps = np.asarray(ds.ImagePositionPatient, dtype=float) + x * across * row + y * down * column
            index = volume.geometry.to_index(lps)
            assert np.abs(index - index.round()).max() < 1e-4
            assert volume.hu[tuple(index.round().astype(int))] == pixels[y, x]
    along_normal = [np.dot(s.position, volume.geometry.axes[0]) for s in find(tmp_path).slices]
    assert along_normal == sorted(along_normal)
    assert volume.geometry.spacing == pytest.approx((3.0, 0.8, 0.7))


def test_each_slice_has_its_own_rescale(ct, hu: HU, tmp_path: Path) -> None:
    slopes = np.resize([1.0, 0.5, 2.0, -1.0, 1.25], len(hu))
    intercepts = np.resize([-1024.0, 3.0, -1000.5], len(hu))
    stored = np.random.default_rng(1).integers(-1500, 1500, hu.shape).astype(np.int16)

    def edit(i: int, ds: Dataset) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = float(slopes[i]), float(intercepts[i])

    ct.write(tmp_path, stored, edit=edit)
    expected = np.rint(stored * slopes[:, None, None] + intercepts[:, None, None])
    np.testing.assert_array_equal(read(tmp_path).volume.hu, expected)


def test_values_beyond_int16_are_clipped(ct, tmp_path: Path) -> None:
    stored = np.zeros((2, 2, 3), np.uint16)
    stored[0] = [[0, 1, 2], [33_791, 33_792, 65_535]]
    ct.write(tmp_path / "u", stored, intercept=-1024.0)
    expected = [[-1024, -1023, -1022], [32_767, 32_767, 32_767]]
    np.testing.assert_array_equal(read(tmp_path / "u").volume.hu[0], expected)
    signed = np.zeros((1, 1, 3), np.int16)
    signed[0] = [[-32_768, 5, 9]]
    ct.write(tmp_path / "s", signed, intercept=-1024.0)
    np.testing.assert_array_equal(read(tmp_path / "s").volume.hu[0], [[-32_768, -1019, -1015]])
    ct.write(tmp_path / "f", signed, slope=2.5)
    np.testing.assert_array_equal(read(tmp_path / "f").volume.hu[0], [[-32_768, 12, 22]])


@pytest.mark.parametrize(
    ("dtype", "bits", "intercept"), [(np.uint16, 12, -1024.0), (np.int16, 12, 0.0), (np.int16, 16, -1024.0)]
)
def test_signed_and_unsigned_and_unused_bits(
    dtype: Any, bits: int, intercept: float, ct, tmp_path: Path
) -> None:
    low, high = (0, 4095) if dtype == np.uint16 else (-2048, 2047)
    values = np.random.default_rng(2).integers(low, high, (3, 8, 8)).astype(dtype)
    values[0, 0, :2] = low, high
    # old scanners put overlays into the bits that pixels leave free
    filled = values if bits == 16 else ((values.view(np.uint16) & 0x0FFF) | 0xA000).view(dtype)
    ct.write(tmp_path, filled, bits_stored=bits, intercept=intercept)
    np.testing.assert_array_equal(read(tmp_path).volume.hu, values.astype(int) + int(intercept))


def test_monochrome1_shows_differently_and_means_the_same(ct, hu: HU, tmp_path: Path) -> None:
    # the inversion comes after rescale and window (PS3.3 C.7.6.3.1.2), so HU are the same; SimpleITK inverts
    # the stored values instead and is no reference here
    def edit(_: int, ds: Dataset) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    ct.write(tmp_path, hu, edit=edit)
    np.testing.assert_array_equal(read(tmp_path).volume.hu, hu)


def test_big_endian(ct, hu: HU, tmp_path: Path) -> None:
    for path in ct.write(tmp_path, hu, intercept=-1000.0):
        ds = pydicom.dcmread(path)
        pixels = ds.pixel_array
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        ds["PixelData"].VR = "OW"
        ds.PixelData = pixels.astype(">i2").tobytes()
        plain = Dataset()
        plain.file_meta = ds.file_meta
        plain.update(ds)
        plain.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path).volume.hu, hu.astype(int) - 1000)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless],
    ids=lambda s: s.name,
)
def test_transfer_syntaxes(syntax: Any, ct, hu: HU, tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(hu[:4], 4, 1), 4, 2)
    for path in ct.write(tmp_path, pixels):
        ds = pydicom.dcmread(path)
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        else:
            ds.file_meta.TransferSyntaxUID = syntax
        ds.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).volume.hu, pixels)


def test_files_without_meta_header(ct, hu: HU, tmp_path: Path) -> None:
    for implicit, path in zip(itertools.cycle((True, False)), ct.write(tmp_path, hu[:6])):
        ds = pydicom.dcmread(path)
        del ds.file_meta, ds.preamble
        ds.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(read(tmp_path).volume.hu, hu[:6])


@pytest.mark.parametrize(
    ("vr", "value", "limit", "stored"),
    [
        ("SS", -2000, None, [-2000]),
        ("US", 63_536, None, [-2000]),
        ("SS", -2000, -1500, [-2000, -1700, -1500]),
        ("SS", -1500, -2000, [-2000, -1700, -1500]),
    ],
)
def test_padding_becomes_air(
    vr: str, value: int, limit: int | None, stored: list[int], ct, hu: HU, tmp_path: Path
) -> None:
    pixels = hu.copy()
    pixels[:, 0, : len(stored)] = stored
    pixels[:, 1, 0] = -1499

    def edit(_: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)

    ct.write(tmp_path, pixels, edit=edit)
    expected = pixels.copy()
    expected[:, 0, : len(stored)] = PADDING_HU
    np.testing.assert_array_equal(read(tmp_path).volume.hu, expected)


def test_padding_among_tissue_is_not_believed(ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", "SS", 0)

    hu[:, 2] = 0
    ct.write(tmp_path, hu, edit=edit)
    reading = read(tmp_path)
    np.testing.assert_array_equal(reading.volume.hu, hu)
    assert [(f.code, f.fatal) for f in reading.findings] == [("padding", False)]


def test_missing_rescale(ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        del ds.RescaleSlope, ds.RescaleIntercept

    ct.write(tmp_path / "signed", hu, edit=edit)
    reading = read(tmp_path / "signed")
    np.testing.assert_array_equal(reading.volume.hu, hu)
    assert [(f.code, f.fatal) for f in reading.findings] == [("no-rescale", False)]
    ct.write(tmp_path / "unsigned", (hu + 1024).astype(np.uint16), edit=edit)
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path / "unsigned")
    assert caught.value.code == "no-rescale"


def test_values_that_are_no_hu_are_rejected(ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        ds.RescaleType = "Z_EFF"

    ct.write(tmp_path, hu, edit=edit)
    with pytest.raises(SeriesRejected, match="Z_EFF") as caught:
        read(tmp_path)
    assert caught.value.code == "no-rescale"


def test_zip_archive(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path / "a", hu)
    (tmp_path / "z").mkdir()
    for name, half in (("one", paths[::2]), ("two", paths[1::2])):
        with zipfile.ZipFile(tmp_path / "z" / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in half:
                archive.write(path, path.name)
    np.testing.assert_array_equal(read(tmp_path / "z").volume.hu, hu)


def test_identical_duplicates_are_dropped_with_a_warning(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    for i in (0, 7, 27):
        ds = pydicom.dcmread(paths[i])
        ds.SOPInstanceUID = f"1.2.3.{i}"
        ds.save_as(tmp_path / f"copy{i}")
        (tmp_path / f"same{i}").write_bytes(paths[i].read_bytes())
    series = find(tmp_path)
    assert (len(series.slices), series.rejection) == (34, None)
    reading = read_series(series)
    np.testing.assert_array_equal(reading.volume.hu, hu)
    assert len(reading.slices) == 28
    assert reading.volume.geometry.spacing[0] == pytest.approx(3.0)
    assert [(f.code, f.fatal) for f in reading.findings] == [("duplicate-slices", False)]


def test_different_images_at_one_position_are_rejected(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    ds = pydicom.dcmread(paths[5])
    pixels = bytearray(ds.PixelData)
    pixels[100] ^= 1
    ds.PixelData = bytes(pixels)
    ds.save_as(tmp_path / "other")
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path)
    assert caught.value.code == "duplicate-slices"


def test_enhanced_multiframe(ct, hu: HU, tmp_path: Path) -> None:
    ct.write_enhanced(tmp_path / "a", hu)
    reading = read(tmp_path)
    np.testing.assert_array_equal(reading.volume.hu, hu)
    assert reading.volume.geometry.origin == (1.0, 2.0, 0.0)
    assert reading.volume.geometry.spacing == pytest.approx((3.0, 0.8, 0.7))
    assert [s.frame for s in reading.slices] == list(range(len(hu)))[::-1]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_truncated_file_stays_in_its_series_and_fails_there(
    share: float, ct, hu: HU, tmp_path: Path
) -> None:
    paths = ct.write(tmp_path, np.repeat(np.repeat(hu, 4, 1), 4, 2))
    content = paths[9].read_bytes()
    paths[9].write_bytes(content[: int(len(content) * share)])
    series = find(tmp_path)
    assert (len(series.slices), series.rejection) == (len(hu), None)
    with pytest.raises(SeriesFailed, match="image 10 of 28") as caught:
        read_series(series)
    assert caught.value.code == "undecodable"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda s: s.name)
@pytest.mark.parametrize("share", [0.3, 0.7, 0.98])
def test_cut_compressed_pixels_fail_and_are_never_filled_up(
    syntax: Any, share: float, ct, hu: HU, tmp_path: Path
) -> None:
    paths = ct.write(tmp_path, np.repeat(np.repeat(hu[:3], 4, 1), 4, 2))
    ds = pydicom.dcmread(paths[1])
    ds.compress(syntax, generate_instance_uid=False)
    (stream,) = generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([stream[: int(len(stream) * share)]])
    ds.save_as(paths[1])
    with pytest.raises(SeriesFailed) as caught:
        read(tmp_path)
    assert caught.value.code == "undecodable"


def test_a_file_that_went_away_fails(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    series = find(tmp_path)
    paths[3].unlink()
    with pytest.raises(SeriesFailed) as caught:
        read_series(series)
    assert caught.value.code == "undecodable"


def test_what_cannot_be_stacked_is_rejected(ct, hu: HU, tmp_path: Path) -> None:
    def edit(i: int, ds: Dataset) -> None:
        del ds.ImagePositionPatient

    ct.write(tmp_path / "a", hu, edit=edit)
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path / "a")
    assert caught.value.code == "no-geometry"
    with pytest.raises(SeriesRejected):
        read_series(Series(series_uid="1"))

    def smaller(i: int, ds: Dataset) -> None:
        if i:
            ds.Rows, ds.PixelData = 6, ds.PixelData[:120]

    ct.write(tmp_path / "b", hu, edit=smaller)
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path / "b")
    assert caught.value.code == "mixed-size"


def test_a_single_slice_takes_its_thickness_as_increment(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu[:1])
    assert read(tmp_path).volume.geometry.spacing[0] == 3.0


def test_the_number_of_workers_changes_nothing(ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu)
    series = find(tmp_path)
    one, many = read_series(series, workers=1), read_series(series, workers=5)
    np.testing.assert_array_equal(one.volume.hu, many.volume.hu)
    assert one.volume.geometry == many.volume.geometry


@pytest.mark.parametrize(
    "name", ["CIP-64x64", "LIDC-IDRI-0306", "Lung_Dx-A0001-B", "Lung_Dx-A0001-L", "Lung_Dx-A0002"]
)
def test_real_scans_against_simpleitk(name: str, shared_data: Path) -> None:
    folder = shared_data / "chest" / name
    series = find(folder)
    volume = read_series(series).volume
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    expected = sitk.GetArrayFromImage(image).astype(int)
    padding = pydicom.dcmread(series.slices[0].path, stop_before_pixels=True).get("PixelPaddingValue")
    if padding is not None:
        intercept = int(pydicom.dcmread(series.slices[0].path, stop_before_pixels=True).RescaleIntercept)
        expected[expected == padding + intercept] = PADDING_HU
    np.testing.assert_array_equal(volume.hu, expected)
    last = tuple(n - 1 for n in image.GetSize())
    for index in ((0, 0, 0), last, (0, last[1], 0), (last[0], 0, last[2])):
        lps = volume.geometry.to_lps(index[::-1])
        np.testing.assert_allclose(lps, image.TransformIndexToPhysicalPoint(index), atol=1e-3)
