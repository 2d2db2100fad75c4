"""Odd real files: everything ends with a finding or a result, each with the right reason."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

from deepcac2.cli import inspect
from deepcac2.dicom import Discovery, discover, read_series
from deepcac2.errors import SeriesError, SeriesFailed
from deepcac2.imaging.volume import PADDING_HU

EXPECTED = {
    # end of SeriesInstanceUID: (first rejection, further findings that must be there)
    "117461927.22": ("not-ct", set()),  # structured report
    "109719778908": ("not-ct", set()),  # ultrasound
    "20180503030545.3.0": ("not-ct", set()),  # ultrasound
    "562673.14401": ("derived", {"too-thick", "contrast"}),  # perfusion map, lossy JPEG
    "6.1.4.1.5962.1.3.1.1.20040826185059.5457": ("too-few-slices", {"contrast", "derived"}),
    "6.1.4.1.5962.1.3.2.1.20040826185059.5457": ("derived", {"too-few-slices", "too-thick"}),
    "78668949.890": ("too-few-slices", {"duplicate-slices"}),  # one slice in 16 syntaxes
    "1206107618.6": ("too-few-slices", {"too-thin", "mixed-frame"}),  # three cut JPEG 2000 slices
    "151607525240": ("localizer", set()),
    "503286111321": ("derived", {"no-geometry"}),  # colour dose page, survey captures
    "513794233732": (None, {"thick-slices"}),  # a head, straight: for the heart gates to refuse
    "150714813892": ("gantry-tilt", {"too-thick", "uneven-increments"}),
    "227417197937": ("too-few-slices", {"missing-slices"}),
    "512040321185": ("gantry-tilt", {"too-few-slices"}),
    "688458856228": ("gantry-tilt", {"missing-slices"}),
    "861615759294": ("too-few-slices", {"duplicate-slices"}),
    "581228571744": ("not-ct", set()),  # MR
    "298243974030": ("not-ct", set()),  # MR
}


@pytest.fixture(scope="module")
def zoo(shared_data: Path) -> Discovery:
    return discover(shared_data / "dicom-zoo")


def test_every_series_has_the_right_reason(zoo: Discovery) -> None:
    ends = dict.fromkeys(EXPECTED)
    for series in zoo.series:
        (end,) = [e for e in EXPECTED if series.series_uid.endswith(e)]
        del ends[end]
        reason, more = EXPECTED[end]
        assert (series.rejection.code if series.rejection else None) == reason, end
        assert more <= {f.code for f in series.findings}, end
    assert not ends
    assert zoo.unreadable == ()


def test_no_file_is_lost(zoo: Discovery, shared_data: Path) -> None:
    files = {p for p in (shared_data / "dicom-zoo").rglob("*") if p.is_file()}
    in_series = {r.path for s in zoo.series for r in (*s.slices, *s.left_out)}
    assert in_series <= files
    assert len(files) == len(in_series) + zoo.ignored
    assert not [p for p in files - in_series if p.suffix == ".dcm"]


def test_reading_anything_of_it_gives_a_volume_or_one_of_our_errors(zoo: Discovery) -> None:
    failures: dict[str, SeriesError] = {}
    for series in zoo.series:
        try:
            reading = read_series(series)
        except SeriesError as error:
            failures[series.series_uid[-12:]] = error
        else:
            assert reading.volume.hu.shape[0] == len(reading.slices)
    assert not [f for f in failures.values() if "\n" in str(f)]
    assert failures["1206107618.6"].code == "undecodable"
    assert failures["861615759294"].code == "duplicate-slices"


def test_truncated_jpeg2000_fails_as_undecodable(shared_data: Path) -> None:
    (series,) = discover(shared_data / "dicom-zoo" / "truncated-j2k").series
    with pytest.raises(SeriesFailed, match=r"image 1 of 3 \(\w+\.dcm\)"):
        read_series(series)


LOSSY = {
    # transfer syntax: largest difference to the uncompressed slice, HU, as GDCM measures it
    "1.2.840.10008.1.2.4.91": 5,
    "1.2.840.10008.1.2.4.81": 1,
    "1.2.840.10008.1.2.4.50": 65,
    "1.2.840.10008.1.2.4.51": 36,
    "1.2.840.10008.1.2.4.53": 36,
    "1.2.840.10008.1.2.4.55": 36,
}


def test_one_slice_in_16_syntaxes(shared_data: Path) -> None:
    files = sorted((shared_data / "dicom-zoo/one-slice-16-syntaxes/testImages").glob("CTImage.dcm*"))
    assert len(files) == 16
    (plain,) = [f for f in files if f.name == "CTImage.dcm"]
    stored = pydicom.dcmread(plain).pixel_array.astype(int)
    outside = stored == -2000  # outside the scanner's circle; the header wrongly says -32768
    for path in files:
        series = discover(path).series[0]
        hu = read_series(series).volume.hu[0].astype(int)
        syntax = series.slices[0].transfer_syntax_uid
        difference = np.abs(hu - (stored - 1024))
        assert difference[~outside].max() <= LOSSY.get(syntax, 0), path.name
        independent = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
        expected = np.rint(independent).clip(-32768, 32767)
        assert np.abs(hu - expected)[hu != PADDING_HU].max() == 0, path.name


@pytest.mark.parametrize("bits", [12, 16])
def test_jpeg_of_12_bits_with_a_sign(shared_data: Path, tmp_path: Path, bits: int) -> None:
    """The sign is that of the 12 bits, whatever the header calls stored."""
    folder = shared_data / "dicom-zoo/one-slice-16-syntaxes/testImages"
    ds = pydicom.dcmread(next(folder.glob("CTImage.dcm_JPEGProcess2_4*")))
    ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 1, bits, bits - 1
    ds.save_as(tmp_path / "x.dcm")
    hu = read_series(discover(tmp_path).series[0]).volume.hu[0]
    independent = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.dcm")))[0]
    assert independent.min() < -3000 < 0 < independent.max()
    np.testing.assert_array_equal(hu, np.rint(independent))


def test_one_slice_in_16_syntaxes_with_padding_and_cut(shared_data: Path, tmp_path: Path) -> None:
    """What follows the pixels, of any value, changes nothing in any decoder; what is cut is refused."""
    for path in sorted((shared_data / "dicom-zoo/one-slice-16-syntaxes/testImages").glob("CTImage.dcm*")):
        expected = read_series(discover(path).series[0]).volume.hu
        ds = pydicom.dcmread(path)
        pixels = ds.PixelData
        coded = ds.file_meta.TransferSyntaxUID.is_encapsulated
        if coded:
            (pixels,) = generate_frames(pixels, number_of_frames=1)
            if ds.file_meta.TransferSyntaxUID != RLELossless:  # which has no end marker
                pixels = pixels[: pixels.rindex(b"\xff\xd9") + 2]

        def written(content: bytes, ds: pydicom.Dataset = ds, coded: bool = coded) -> Path:
            content += b"\0" * (len(content) % 2)
            ds.PixelData = encapsulate([content]) if coded else content
            ds.save_as(tmp_path / "x.dcm")
            return tmp_path / "x.dcm"

        for tail in (b"", b"\x63", b"\xff", b"\x63\0", b"abcd", b"c" * 15):
            (series,) = discover(written(pixels + tail)).series
            np.testing.assert_array_equal(
                read_series(series).volume.hu, expected, err_msg=f"{path.name} {tail!r}"
            )
        for length in (len(pixels) - 2, len(pixels) * 9 // 10, len(pixels) // 2):
            (series,) = discover(written(pixels[:length])).series
            with pytest.raises(SeriesFailed) as caught:
                read_series(series)
            assert caught.value.code == "undecodable"


def test_inspect_prints_them_all(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    inspect.add_parser(parser.add_subparsers())
    folder = str(shared_data / "dicom-zoo")
    args = parser.parse_args(["inspect", folder, "--json"])
    assert args.run(args) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["series"]) == len(EXPECTED) + 4  # there are four NIfTI files, too
    assert all(s["findings"] and s["verdict"] in ("accepted", "rejected") for s in data["series"])
    args = parser.parse_args(["inspect", folder])
    assert args.run(args) == 0
    out = capsys.readouterr().out
    assert "2 series accepted, 20 rejected" in out
    for series in data["series"]:
        assert series["findings"][0]["code"] in out


def test_chests_pass_but_for_those_of_8_mm_slices_and_of_4_mm_pixels(shared_data: Path) -> None:
    verdicts = {
        s.slices[0].path.parent.name: s.rejection.code if s.rejection else None
        for s in discover(shared_data / "chest").series
    }
    assert verdicts == {
        "LIDC-IDRI-0306": None,
        "CIP-64x64": "coarse-pixels",
        "Lung_Dx-A0001-B": None,
        "Lung_Dx-A0001-L": None,
        "Lung_Dx-A0002": "too-thick",
    }
