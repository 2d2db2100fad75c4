"""Reading: HU and geometry, against values computed here and against SimpleITK (GDCM)."""

from __future__ import annotations

import itertools
import shutil
import zipfile
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk
from openjpeg.utils import encode_array
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from deepcac2.dicom import Reading, Series, discover, read_series, write_segmentation
from deepcac2.errors import InputUnreadable, SeriesFailed, SeriesRejected
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


@pytest.mark.parametrize("signed", [0, 1], ids=["unsigned", "signed"])
@pytest.mark.parametrize("bits", [8, 9, 12, 16])
@pytest.mark.parametrize("kind", ["JPEG 2000", "JPEG 2000, signed", "JPEG 2000, lossy", "JPEG-LS"])
def test_compressed_values_are_those_of_pydicoms_decoders(
    kind: str, bits: int, signed: int, ct, tmp_path: Path
) -> None:
    """Whatever codestream and header call the sign."""
    negative = kind.endswith("signed")
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if negative else (0, (1 << bits) - 1)
    values = np.linspace(low, high, 32 * 48).round().reshape(32, 48)
    values = values.astype(np.dtype(f"{'i' if negative else 'u'}{2 if bits > 8 else 1}"))
    if kind == "JPEG-LS":
        stream = imagecodecs.jpegls_encode(values)
    else:
        ratios = [4.0] if kind.endswith("lossy") else None
        stream = encode_array(values, bits, photometric_interpretation=2, compression_ratios=ratios)
    (path,) = ct.write(tmp_path, np.zeros((1, 32, 48), dtype=np.int16))
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = JPEGLSLossless if kind == "JPEG-LS" else JPEG2000Lossless
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, signed
    ds.RescaleIntercept, ds.PixelData = 0, encapsulate([bytes(stream)])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(path)
    expected = pydicom.dcmread(path).pixel_array.astype(int).clip(-32768, 32767)
    np.testing.assert_array_equal(read(tmp_path).volume.hu[0], expected)


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


@pytest.mark.parametrize("bits", [16, 12])
@pytest.mark.parametrize(
    ("vr", "value", "limit"), [("US", 63_536, None), ("SS", -2000, None), ("US", 63_000, 64_000)]
)
def test_padding_stored_as_unsigned_becomes_air(
    vr: str, value: int, limit: int | None, bits: int, ct, tmp_path: Path
) -> None:
    stored = np.random.default_rng(5).integers(0, 4096, (20, 8, 8)).astype(np.uint16)
    stored[0, 0, 0] = 2096  # what is left of 63,536 in 12 bits is also a true value
    padded = stored.copy()
    padded[:, 2:5, 3] = 63_536

    def edit(_: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)

    expected = stored.astype(int) - 1024
    expected[:, 2:5, 3] = PADDING_HU
    ct.write(tmp_path / "native", padded, edit=edit, intercept=-1024.0, bits_stored=bits)
    for path in ct.write(tmp_path / "rle", padded, edit=edit, intercept=-1024.0, bits_stored=bits):
        ds = pydicom.dcmread(path)
        ds.compress(RLELossless, generate_instance_uid=False)
        ds.save_as(path)
    for name in ("native", "rle"):
        reading = read(tmp_path / name)
        np.testing.assert_array_equal(reading.volume.hu, expected)
        assert reading.findings == ()


def test_padding_within_the_stored_bits_counts_below_an_overlay(ct, tmp_path: Path) -> None:
    stored = np.random.default_rng(6).integers(1, 4096, (20, 8, 8)).astype(np.uint16)
    stored[:, 0] = 0

    def edit(_: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", "US", 0)

    ct.write(tmp_path, stored | 0xA000, edit=edit, intercept=-2000.0, bits_stored=12)
    expected = stored.astype(int) - 2000
    expected[:, 0] = PADDING_HU
    np.testing.assert_array_equal(read(tmp_path).volume.hu, expected)


@pytest.mark.parametrize(
    ("value", "intercept", "believed"),
    [
        (124, -1024, True),  # -900 HU
        (125, -1024, False),
        (4095, -1024, False),  # as bright as metal may be
        (31_734, -1024, False),  # 30,710 HU, the brightest that the extended scale holds
        (31_735, -1024, True),
        (65_535, 0, True),
    ],
)
def test_padding_is_believed_outside_what_tissue_and_metal_have(
    value: int, intercept: int, believed: bool, ct, tmp_path: Path
) -> None:
    stored = np.random.default_rng(7).integers(200, 2000, (20, 8, 8)).astype(np.uint16)
    stored[:, 0] = value

    def edit(_: int, ds: Dataset) -> None:
        ds.add_new("PixelPaddingValue", "US", value)

    ct.write(tmp_path, stored, edit=edit, intercept=float(intercept))
    reading = read(tmp_path)
    expected = stored.astype(int) + intercept
    if believed:
        expected[:, 0] = PADDING_HU
    np.testing.assert_array_equal(reading.volume.hu, expected)
    assert [f.code for f in reading.findings] == ([] if believed else ["padding"])


@pytest.mark.parametrize(
    ("value", "bits", "wrong"),
    [
        (63_536, 16, True),  # -2000 as unsigned; the header says nothing of it
        (31_735, 16, True),
        (31_734, 16, False),
        (63_536, 12, True),  # without its upper bits it would be 1072 HU
        (0xF7FF, 12, False),  # an overlay over 2047
        (0xA830, 12, False),
    ],
)
def test_values_that_no_ct_can_hold_warn(value: int, bits: int, wrong: bool, ct, tmp_path: Path) -> None:
    stored = np.random.default_rng(8).integers(0, 4096, (20, 50, 50)).astype(np.uint16)
    stored[:4, 0, 0] = value  # 4 of 50,000: less than 1 in 10,000
    ct.write(tmp_path / "few", stored, intercept=-1024.0, bits_stored=bits)
    assert read(tmp_path / "few").findings == ()
    stored[:5, 0, 0] = value
    ct.write(tmp_path / "enough", stored, intercept=-1024.0, bits_stored=bits)
    found = [(f.code, f.fatal) for f in read(tmp_path / "enough").findings]
    assert found == ([("hu-impossible", False)] if wrong else [])


def test_values_below_what_a_ct_can_hold_warn(ct, hu: HU, tmp_path: Path) -> None:
    hu[:, 0] = -10_240
    ct.write(tmp_path / "a", hu)
    assert read(tmp_path / "a").findings == ()
    hu[:, 0] = -10_241
    ct.write(tmp_path / "b", hu)
    assert [f.code for f in read(tmp_path / "b").findings] == ["hu-impossible"]


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


def cleared(*keywords: str) -> Any:
    """Edit that removes elements."""

    def edit(_: int, ds: Dataset) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return edit


def written(keyword: str, *values: str) -> Any:
    """Edit that writes a decimal string as it stands, even where it is none."""

    def edit(_: int, ds: Dataset) -> None:
        text = "\\".join(values).encode()
        text += b" " * (len(text) % 2)
        ds[keyword] = RawDataElement(Tag(keyword), "DS", len(text), text, 0, False, True)

    return edit


def in_slices(indices: set[int], edit: Any) -> Any:
    """The edit in some slices only."""

    def chosen(i: int, ds: Dataset) -> None:
        if i in indices:
            edit(i, ds)

    return chosen


BOTH = ("RescaleSlope", "RescaleIntercept")
RESCALES = {
    # name: edit of signed slices
    "no intercept": cleared("RescaleIntercept"),
    "no intercept in one": in_slices({9}, cleared("RescaleIntercept")),
    "no slope": cleared("RescaleSlope"),
    "empty intercept": written("RescaleIntercept", ""),
    "blank intercept": written("RescaleIntercept", "  "),
    "neither in the first": in_slices({0}, cleared(*BOTH)),
    "neither in the last": in_slices({27}, cleared(*BOTH)),
    "neither but in one": in_slices(set(range(28)) - {14}, cleared(*BOTH)),
    "two intercepts": written("RescaleIntercept", "-1024", "-1000"),
    "a missing second": written("RescaleIntercept", "-1024", ""),
    "a word": written("RescaleIntercept", "none"),
    "no number": written("RescaleSlope", "NaN"),
    "beyond numbers": written("RescaleSlope", "1e999"),
    "slope 0": written("RescaleSlope", "0"),
}


@pytest.mark.parametrize("name", RESCALES)
def test_rescale_missing_in_part_or_malformed_is_rejected(name: str, ct, hu: HU, tmp_path: Path) -> None:
    ct.write(tmp_path, hu, edit=RESCALES[name])
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path)
    assert caught.value.code == "no-rescale"
    assert "--allow" not in str(caught.value)


def test_a_rescale_repeated_alike_is_used(ct, hu: HU, tmp_path: Path) -> None:
    def edit(i: int, ds: Dataset) -> None:
        written("RescaleIntercept", "-1024", "-1024.0 ")(i, ds)
        written("RescaleSlope", "2", "2", "2")(i, ds)

    ct.write(tmp_path, hu, edit=edit)
    reading = read(tmp_path)
    np.testing.assert_array_equal(reading.volume.hu, hu * 2 - 1024)
    assert reading.findings == ()


def test_a_table_of_values_is_no_rescale(ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        del ds.RescaleSlope, ds.RescaleIntercept
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType = [2, 0, 16], "HU"
        table.add_new("LUTData", "US", [0, 1])
        ds.ModalityLUTSequence = [table]

    ct.write(tmp_path, hu, edit=edit)
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path)
    assert caught.value.code == "no-rescale"


@pytest.mark.parametrize(("dark", "taken"), [(0, False), (2, False), (4, True)])
def test_signed_values_without_rescale_need_air(dark: int, taken: bool, ct, tmp_path: Path) -> None:
    # a scan that has lost its intercept holds nothing below 0; 1 % of 240 pixels are 2.4
    stored = np.random.default_rng(3).integers(0, 2500, (20, 12, 20)).astype(np.int16)
    stored[:, 0, :dark] = -1000
    ct.write(tmp_path, stored, edit=cleared(*BOTH))
    if taken:
        np.testing.assert_array_equal(read(tmp_path).volume.hu, stored)
        return
    with pytest.raises(SeriesRejected, match="no air") as caught:
        read(tmp_path)
    assert caught.value.code == "no-rescale"


def test_padding_is_no_air_of_a_scan_without_rescale(ct, tmp_path: Path) -> None:
    def edit(i: int, ds: Dataset) -> None:
        cleared(*BOTH)(i, ds)
        ds.add_new("PixelPaddingValue", "SS", -2000)

    stored = np.random.default_rng(3).integers(0, 2500, (20, 12, 20)).astype(np.int16)
    stored[:, :4] = -2000
    ct.write(tmp_path, stored, edit=edit)
    with pytest.raises(SeriesRejected, match="no air"):
        read(tmp_path)


def nothing(image: HU) -> None:
    image[:] = 0


def one_value_within_padding(image: HU) -> None:
    image[:] = -3024  # undeclared, as some scanners write it
    image[3:9, 2:8] = 40


def one_value_within_air(image: HU) -> None:
    image[:] = -1024
    image[3:9, 2:8] = 40


def nothing_but_padding(image: HU) -> None:
    image[:] = -2000


BLANKS = [nothing, one_value_within_padding, one_value_within_air, nothing_but_padding]


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize("where", [[1], [13, 14], [4, 6, 26]], ids=str)
def test_a_slice_that_shows_nothing_is_as_good_as_missing(
    where: list[int], blank: Any, ct, hu: HU, tmp_path: Path
) -> None:
    for z in where:
        blank(hu[z])
    ct.write(tmp_path, hu)
    with pytest.raises(SeriesRejected, match=f"{len(where)} of 28") as caught:
        read(tmp_path)
    assert caught.value.code == "blank-slices"
    assert f"{-30 + 3 * where[0]:.2f} mm" in str(caught.value)


@pytest.mark.parametrize("blank", BLANKS)
@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 2), (2, 1)])
def test_blank_slices_at_the_ends_are_no_part_of_the_stack(
    low: int, high: int, blank: Any, ct, tmp_path: Path
) -> None:
    hu = np.random.default_rng(4).integers(-1000, 1500, (33, 12, 10)).astype(np.int16)
    for z in (*range(low), *range(33 - high, 33)):
        blank(hu[z])
    ct.write(tmp_path, hu)
    reading = read(tmp_path)
    np.testing.assert_array_equal(reading.volume.hu, hu[low : 33 - high])
    assert reading.volume.geometry.origin == (-10.0, -20.0, -30.0 + 3 * low)
    assert [s.position for s in reading.slices] == [(-10, -20, -30.0 + 3 * z) for z in range(low, 33 - high)]
    assert [(f.code, f.fatal) for f in reading.findings] == [("blank-slices", False)]


def test_what_is_left_between_blank_ends_must_be_long_enough(ct, hu: HU, tmp_path: Path) -> None:
    # 28 slices at 3 mm; 80 mm take 28 of them
    hu[0] = 0
    ct.write(tmp_path / "short", hu)
    hu[:] = 7
    ct.write(tmp_path / "blank", hu)
    for name in ("short", "blank"):
        with pytest.raises(SeriesRejected) as caught:
            read(tmp_path / name)
        assert caught.value.code == "blank-slices"


def test_two_values_are_enough_to_show_something(ct, hu: HU, tmp_path: Path) -> None:
    hu[:] = -1000
    hu[:, 11, 9] = 0
    ct.write(tmp_path, hu)
    reading = read(tmp_path)
    np.testing.assert_array_equal(reading.volume.hu, hu)
    assert reading.findings == ()


def test_blank_frames_of_a_multiframe_file(ct, hu: HU, tmp_path: Path) -> None:
    long = np.concatenate([hu, hu[:4]])
    long[0] = 0
    ct.write_enhanced(tmp_path / "end", long)
    np.testing.assert_array_equal(read(tmp_path / "end").volume.hu, long[1:])
    long[12] = 0
    ct.write_enhanced(tmp_path / "inside", long)
    with pytest.raises(SeriesRejected) as caught:
        read(tmp_path / "inside")
    assert caught.value.code == "blank-slices"


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


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_whole_file_is_used_where_a_damaged_copy_lies_beside_it(
    share: float, ct, hu: HU, tmp_path: Path
) -> None:
    # 0.2 of a file of this size ends in its header
    for path in ct.write(tmp_path, hu[:, :6, :5])[9:11]:
        content = path.read_bytes()
        for name in (f"a{path.name}", f"z{path.name}"):
            (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    found = discover(tmp_path)
    (series,) = found.series
    assert series.rejection is None
    reading = read_series(series)
    np.testing.assert_array_equal(reading.volume.hu, hu[:, :6, :5])
    assert [s.file_name for s in reading.slices] == [f"im{i + 1:04d}" for i in range(len(hu))]
    assert len(series.slices) + len(series.left_out) + len(found.unreadable) == len(hu) + 4
    if len(series.slices) > len(hu):
        assert [f.code for f in reading.findings] == ["damaged-copy"]


def test_a_header_cut_off_after_its_identity_is_a_damaged_copy(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    content = paths[9].read_bytes()
    cut = content.index(b"\x20\x00\x37\x00")  # ImageOrientationPatient
    (tmp_path / "copy").write_bytes(content[:cut])
    series = find(tmp_path)
    assert [(len(series.slices), r.path.name) for r in series.left_out] == [(len(hu), "copy")]
    assert [(f.code, f.fatal) for f in series.findings] == [("damaged-copy", False)]
    np.testing.assert_array_equal(read_series(series).volume.hu, hu)


def test_a_damaged_image_at_the_place_of_another_still_fails(ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    ds = pydicom.dcmread(paths[9])
    ds.SOPInstanceUID = "1.2.3"
    ds.save_as(tmp_path / "other")
    content = (tmp_path / "other").read_bytes()
    (tmp_path / "other").write_bytes(content[:-50])
    with pytest.raises(SeriesFailed):
        read(tmp_path)


@pytest.mark.parametrize(
    "tail", [b"", b"\0", b"\x63", b"\x63\0\0\0", b"c" * 16, b"c" * 3 + bytes(40)], ids=repr
)
def test_a_codestream_may_be_padded_with_anything(tail: bytes, ct, hu: HU, tmp_path: Path) -> None:
    pixels = np.repeat(np.repeat(hu[:2], 4, 1), 4, 2)
    for path in ct.write(tmp_path, pixels):
        ds = pydicom.dcmread(path)
        ds.compress(JPEG2000Lossless, generate_instance_uid=False)
        (stream,) = generate_frames(ds.PixelData, number_of_frames=1)
        ds.PixelData = encapsulate([stream[: stream.rindex(b"\xff\xd9") + 2] + tail])
        ds.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).volume.hu, pixels)


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


@pytest.mark.parametrize("packed", [False, True], ids=["file", "zip archive"])
def test_a_file_that_went_away_has_one_code_in_reading_and_writing(
    packed: bool, ct, hu: HU, tmp_path: Path
) -> None:
    paths = ct.write(tmp_path / "a", hu)
    if packed:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for path in paths:
                archive.write(path, path.name)
        shutil.rmtree(tmp_path / "a")
    series = find(tmp_path)
    reading = read_series(series)
    (tmp_path / "a.zip" if packed else paths[0]).unlink()
    with pytest.raises(SeriesFailed) as caught:
        read_series(series)
    with pytest.raises(InputUnreadable) as again:
        write_segmentation(
            tmp_path / "seg.dcm",
            series=series,
            geometry=reading.volume.geometry,
            heart=reading.volume.hu > 0,
            calcium=reading.volume.hu > 500,
            slices=reading.slices,
            algorithm_version="1",
        )
    assert caught.value.code == again.value.code == "input-unreadable"
    assert "\n" not in str(caught.value)


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
