"""`deepcac2 score`, run as a program sees it: arguments in, text and exit code out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from deepcac2.cli import score as command
from deepcac2.dicom import discover, read_series, write_segmentation
from deepcac2.errors import DeepCACError, InputDamaged, InputError, InputUnreadable, MaskMismatch
from deepcac2.imaging import Geometry
from deepcac2.imaging.files import write_image

GEOMETRY = Geometry(shape=(6, 20, 24), spacing=(2.5, 0.5, 0.5), origin=(-5.0, 4.0, 100.0))


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["score", *(str(a) for a in arguments)])
    code: int = args.run(args)
    return code


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Path]:
    """CT and label map: heart 1, calcium 3 of 4 × 4 pixels in two slices, 250 and 450 HU."""
    hu = np.full(GEOMETRY.shape, 40, np.int16)
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    labels[1:5, 2:15, 2:20] = 1
    for z, value in ((2, 250), (4, 450)):
        hu[z, 5:9, 6:10] = value
        labels[z, 5:9, 6:10] = 3
    write_image(tmp_path / "ct.nii.gz", hu, GEOMETRY)
    write_image(tmp_path / "mask.nrrd", labels, GEOMETRY)
    return tmp_path / "ct.nii.gz", tmp_path / "mask.nrrd"


EXPECTED = 16 * 0.25 * (2 + 4) * 2.5 / 3


def test_json(scan, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*scan, "--label", 3, "--json", "--calibration-factor", 0.001) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rule"] == "agatston"
    assert document["total"] == pytest.approx(EXPECTED)
    assert document["risk_group"] == 1
    assert document["volume_mm3"] == pytest.approx(32 * 0.625)
    assert document["mass_mg"] == pytest.approx(16 * 700 * 0.625 * 0.001)
    assert [lesion["slice_indices"] for lesion in document["lesions"]] == [[4, 4], [2, 2]]
    assert [lesion["slice_numbers"] for lesion in document["lesions"]] == [[5, 5], [3, 3]]
    assert document["parameters"]["threshold"] == 130


def test_a_mask_that_a_run_left_incomplete_is_named(scan, capsys: pytest.CaptureFixture[str]) -> None:
    """A run for the default rule skips patches of which nothing reaches 130 HU."""
    details = scan[1].with_name("details.json")
    for exact, warned in ((130, True), (None, False)):
        details.write_text(json.dumps({"calcium": {"exact_from_hu": exact}}))
        assert run(*scan, "--label", 3, "--rule", "deepcac-v1") == 0
        assert ("deepcac-v1 run again" in capsys.readouterr().err) is warned
        assert run(*scan, "--label", 3) == 0
        assert capsys.readouterr().err == ""
    details.unlink()
    assert run(*scan, "--label", 3, "--rule", "deepcac-v1") == 0
    assert capsys.readouterr().err == ""


def test_table(scan, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*scan, "--label", 3) == 0
    text = capsys.readouterr().out
    assert f"{EXPECTED:.1f}" in text
    assert "1 (low)" in text
    assert [line.split()[5] for line in text.splitlines()[-2:]] == ["5", "3"]  # counted from 1
    assert "450" in text


def test_all_rules_side_by_side(scan, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*scan, "--label", 3, "--rule", "all", "--json") == 0
    rules = json.loads(capsys.readouterr().out)["rules"]
    assert rules["agatston"]["total"] == pytest.approx(EXPECTED)
    assert rules["classic"]["total"] == pytest.approx(EXPECTED * 3 / 2.5)
    assert "--slice-thickness" in rules["ai-cac"]["error"]
    assert run(*scan, "--label", 3, "--rule", "all", "--slice-thickness", 3) == 0
    text = capsys.readouterr().out
    for name in ("agatston", "classic", "deepcac-v1", "ai-cac", "van-velzen"):
        assert name in text


def test_a_rule_by_voltage_is_told_it_or_names_what_it_lacks(
    scan, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is no DICOM says no voltage. At 80 kV, 271 HU is the first that weighs 2, and 544 HU 4."""
    by_voltage = (*scan, "--label", 3, "--rule", "agatston-kvp")
    assert run(*by_voltage, "--kvp", 120, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"] == pytest.approx(EXPECTED)
    assert run(*by_voltage, "--kvp", 80, "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"] == pytest.approx(16 * 0.25 * (1 + 3) * 2.5 / 3)
    with pytest.raises(InputError, match="tube voltage, which is not known"):
        run(*by_voltage)
    with pytest.raises(InputError, match="not for 140 kV"):
        run(*by_voltage, "--kvp", 140)
    for given, error in (((), "needs --kvp KV"), (("--kvp", 90), "not for 90 kV")):
        assert run(*scan, "--label", 3, "--rule", "all", "--json", *given) == 0
        rules = json.loads(capsys.readouterr().out)["rules"]
        assert rules["agatston-kvp"]["error"] == error
        assert rules["agatston"]["total"] == pytest.approx(EXPECTED)


def test_mask_stored_the_other_way_round(scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same voxels in another file order (as other tools write them) give the same score."""
    ct, _ = scan
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    labels[2, 5:9, 6:10] = labels[4, 5:9, 6:10] = 1
    image = nib.Nifti1Image(labels.transpose(2, 1, 0), GEOMETRY.affine_ras_xyz())
    for codes in ("RAS", "LPI", "SRA"):
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
            )
        )
        nib.save(turned, tmp_path / "turned.nii.gz")
        assert run(ct, tmp_path / "turned.nii.gz", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["total"] == pytest.approx(EXPECTED)
        assert [lesion["slice_indices"] for lesion in document["lesions"]] == [[4, 4], [2, 2]]


def test_dicom_with_seg_and_with_nifti(tmp_path: Path, shared_data: Path, capsys) -> None:
    folder = shared_data / "chest" / "CIP-64x64"
    (series,) = discover(folder).series
    reading = read_series(series)
    geometry, hu = reading.volume.geometry, reading.volume.hu
    mask = np.zeros(hu.shape, bool)
    mask[30:34, 20:30, 20:40] = True
    seg, nifti = tmp_path / "seg.dcm", tmp_path / "mask.nii.gz"
    write_segmentation(
        seg, series=series, slices=reading.slices, geometry=geometry, heart=np.zeros_like(mask), calcium=mask,
        algorithm_version="1",
    )  # fmt: skip
    write_image(nifti, mask, geometry)
    documents = []
    for path in (seg, nifti):
        assert run(folder, path, "--rule", "ai-cac", "--json") == 0  # thickness from the header
        documents.append(json.loads(capsys.readouterr().out))
    for key in ("total", "lesions", "n_counted", "SeriesInstanceUID"):
        assert documents[0][key] == documents[1][key]
    assert documents[0]["SeriesInstanceUID"] == series.series_uid
    assert documents[0]["parameters"]["slice_thickness_mm"] == series.slice_thickness
    assert run(folder, seg, "--segment", "heart", "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"] == 0


def test_several_series(tmp_path: Path, shared_data: Path, capsys) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    for name in ("CIP-64x64", "Lung_Dx-A0002"):
        (folder / name).symlink_to(shared_data / "chest" / name)
    found = discover(folder).series
    write_image(tmp_path / "mask.nii", np.zeros((2, 2, 2), np.uint8), Geometry(
        shape=(2, 2, 2), spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)
    ))  # fmt: skip
    with pytest.raises(InputError, match=r"holds no series 1\.2"):
        run(folder, tmp_path / "mask.nii", "--series", "1.2")
    thick = next(s for s in found if s.rejection is not None)
    with pytest.raises(MaskMismatch):
        run(folder, tmp_path / "mask.nii", "--series", thick.series_uid)
    assert "would reject this series" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ([], InputError, "--label N"),
        (["--label", "7"], InputError, "has no label 7; it holds the values 1, 3"),
        (["--label", "3", "--rule", "agaston"], InputError, "Perhaps you meant 'agatston'"),
        (["--label", "3", "--rule", "ai-cac"], InputError, "--slice-thickness"),
        (["--segment", "heart"], InputError, "use --label"),
        (["--label", "3", "--slice-thickness", "-1"], InputError, "positive"),
    ],
)
def test_one_line_errors(scan, arguments, error, match) -> None:
    with pytest.raises(error, match=match) as caught:
        run(*scan, *arguments)
    assert isinstance(caught.value, DeepCACError)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit(scan, tmp_path: Path) -> None:
    ct, mask = scan
    with pytest.raises(InputUnreadable, match="no file"):
        run(ct, tmp_path / "missing.nii")
    (tmp_path / "mask.txt").write_text("")
    with pytest.raises(InputUnreadable, match="neither"):
        run(ct, tmp_path / "mask.txt")
    shifted = Geometry(shape=GEOMETRY.shape, spacing=GEOMETRY.spacing, origin=(-5.0, 4.0, 101.0))
    write_image(tmp_path / "shifted.nii", np.ones(GEOMETRY.shape, np.uint8), shifted)
    with pytest.raises(MaskMismatch, match="does not lie on the CT's grid"):
        run(ct, tmp_path / "shifted.nii")
    with pytest.raises(DeepCACError):
        run(tmp_path / "nothing", mask)


def test_a_damaged_file_in_place_of_the_ct(scan, tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(500))
    with pytest.raises(InputDamaged, match=r"a\.dcm is no scan: .+; copy it again") as caught:
        run(tmp_path / "a.dcm", scan[1])
    assert "permissions" not in str(caught.value)


def test_a_seg_that_unpacks_to_more_than_it_is(scan, small_seg: Path, tmp_path: Path, deflated_segs) -> None:
    for kind, content in deflated_segs(
        small_seg.read_bytes(), 50, "zeros", "private", "pixels", "items"
    ).items():
        (tmp_path / kind).write_bytes(content)
        with pytest.raises(InputUnreadable, match=f"{kind} is ") as caught:
            run(scan[0], tmp_path / kind)
        assert "\n" not in str(caught.value)
