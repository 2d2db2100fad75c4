"""Scans as NIfTI and NRRD: what nibabel and SimpleITK write is read alike, and nothing doubtful is read."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from deepcac2.errors import InputDamaged, InputError, InputUnreadable
from deepcac2.imaging import Volume
from deepcac2.imaging.scan_files import (
    MAX_CELLS,
    content_id,
    read_scan,
    read_scan_header,
    refused_format,
    scan_format,
    without_ending,
)

SIGNS = list(itertools.product((1.0, -1.0), repeat=3))
SHAPE = (6, 140, 9)  # z, y, x; a field of view of 112 mm


def read(path: Path) -> Volume:
    return read_scan(path, read_scan_header(path))


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).integers(-1024, 3000, SHAPE).astype(np.int16)


def turned(signs: tuple[float, ...], degrees: float = 0.0) -> np.ndarray:
    """An affine (x, y, z to RAS mm) whose axes have signs, turned about z."""
    a = np.deg2rad(degrees)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(np.array(signs) * (0.75, 0.8, 2.5))
    affine[:3, 3] = -11.5, 20.25, -300.75
    return affine


def assert_same(volume: Volume, affine: np.ndarray, values: np.ndarray) -> None:
    np.testing.assert_allclose(volume.geometry.affine_ras_xyz(), affine, atol=1e-4)
    np.testing.assert_array_equal(volume.hu, values)


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("forms", [(0, 1), (1, 0), (1, 1), (0, 2)])
def test_nibabel_says_where_a_nifti_lies(tmp_path: Path, values, signs, forms) -> None:
    affine = turned(signs, 9.0)
    image = nib.Nifti1Image(values.T, None)
    image.set_qform(affine, forms[0])
    image.set_sform(affine, forms[1])
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "a.nii.gz")
    assert_same(read(tmp_path / "a.nii.gz"), nib.load(tmp_path / "a.nii.gz").affine, values)


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("signs", SIGNS)
def test_simpleitk_says_where_a_file_lies(tmp_path: Path, values, signs, ending, packed) -> None:
    affine = turned(signs, -6.0)
    lps = np.diag([-1, -1, 1, 1]) @ affine
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(np.linalg.norm(lps[:3, :3], axis=0))
    image.SetDirection((lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)).ravel())
    image.SetOrigin(lps[:3, 3])
    path = tmp_path / f"A.{ending.upper()}"  # the end of a name may have any case
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"), useCompression=packed)
    (tmp_path / f"a.{ending}").rename(path)
    assert_same(read(path), affine, values)


KINDS = ["int16", "uint16", "int32", "uint32", "float32", "float64"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
def test_types_byte_orders_and_scaling(tmp_path: Path, values, kind, order) -> None:
    shift = 1024 if kind.startswith("u") else 0
    stored = ((values.astype(np.int32) + shift).T * (0.5 if kind.startswith("f") else 1)).astype(kind)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(kind)
    image = nib.Nifti1Image(stored, turned((1, 1, 1)), header)
    image.header.set_slope_inter(2.0 if kind.startswith("f") else 1.0, -shift)
    nib.save(image, tmp_path / "a.nii")
    assert_same(read(tmp_path / "a.nii"), turned((1, 1, 1)), values)


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_nrrd(tmp_path: Path, values, kind) -> None:
    stored = np.maximum(values, 0) if kind.startswith("u") else values
    image = sitk.GetImageFromArray(stored.astype(kind))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").hu, stored)


def test_spaces_of_nrrd(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(nrrd(space="right-anterior-superior"))
    grid = read_scan_header(path).geometry
    assert grid.axes == ((0, 0, 1), (0, -1, 0), (-1, 0, 0))
    assert grid.origin == (-1, -2, 3)
    seen = sitk.ReadImage(str(path))
    np.testing.assert_allclose(seen.GetOrigin(), grid.origin)
    np.testing.assert_allclose(np.reshape(seen.GetDirection(), (3, 3)).T[::-1], grid.axes)


# Files made byte by byte


def nifti(**changes: Any) -> bytes:
    """A NIfTI of int16 zeros with changes of its header."""
    shape = changes.pop("shape", (8, 140, 30))
    image = nib.Nifti1Image(np.zeros(shape, changes.pop("dtype", np.int16)), None)
    image.set_qform(np.diag([-0.75, -0.75, 2.5, 1]), 1)
    image.set_sform(np.diag([-0.75, -0.75, 2.5, 1]), 1)
    image.header.set_xyzt_units("mm")
    raw = bytearray(image.to_bytes())
    for place, form, *content in changes.pop("patch", ()):
        struct.pack_into(f"<{form}", raw, place, *content)
    return bytes(raw)


def nrrd(*, body: bytes = b"\0" * 2 * 8 * 140 * 30, **fields: str | None) -> bytes:
    """An NRRD of int16 zeros with changes of its fields; None: it lacks the field."""
    known: dict[str, str | None] = {
        "type": "int16",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "8 140 30",
        "space directions": "(0.75,0,0) (0,0.75,0) (0,0,2.5)",
        "kinds": "domain domain domain",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(1,2,3)",
    }
    known |= {name.replace("_", " "): value for name, value in fields.items()}
    lines = [f"{name}: {value}" for name, value in known.items() if value is not None]
    return "\n".join(["NRRD0004", "# a comment", "key:=value", *lines, "", ""]).encode() + body


def patched(*patch: tuple[Any, ...]) -> Callable[[], bytes]:
    return lambda: nifti(patch=patch)


DOUBTFUL: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "no code": ("a.nii", patched((252, "hh", 0, 0)), "neither its qform nor its sform"),
    "template": ("a.nii", patched((252, "hh", 0, 4)), "template"),
    "forms disagree": ("a.nii", patched((280, "f", 0.75)), "apart"),
    "shift of a form": ("a.nii", patched((280 + 12, "f", 0.3)), "apart"),
    "shear": ("a.nii", patched((252, "h", 0), (280, "4f", -0.75, 0.02, 0, 0)), "right angles"),
    "no direction": ("a.nii", patched((252, "h", 0), (280, "4f", 0, 0, 0, 0)), "mm by pixdim"),
    "NaN in a form": ("a.nii", patched((280, "f", float("nan"))), "no number"),
    "pixdim": ("a.nii", patched((252, "h", 0), (80, "f", 0.8)), "by pixdim"),
    "no rotation": ("a.nii", patched((254, "h", 0), (256, "f", 1.5)), "no rotation"),
    "metres": ("a.nii", patched((123, "B", 1)), "in m,"),
    "micrometres": ("a.nii", patched((123, "B", 3)), "in µm,"),
    "unit unknown, metres": (
        "a.nii",
        patched((123, "B", 0), (254, "h", 0), (80, "3f", 0.00075, 0.00075, 0.0025)),
        "unit",
    ),
    "4D": ("a.nii", lambda: nifti(shape=(20, 20, 20, 2)), "three dimensions"),
    "2D": ("a.nii", patched((40, "h", 2)), "three dimensions"),
    "colours": ("a.nii", lambda: nifti(dtype=[(c, "u1") for c in "RGB"]), "type 128"),
    "complex": ("a.nii", lambda: nifti(dtype=np.complex64), "type 32"),
    "slope": ("a.nii", patched((112, "f", float("nan"))), "scl_slope"),
    "no slope and an intercept": ("a.nii", patched((112, "2f", 0.0, -1024.0)), "programs disagree"),
    "NIfTI-2": ("a.nii", patched((0, "i", 540)), "NIfTI-2"),
    "header of a pair": ("a.nii", patched((344, "4s", b"ni1\0")), ".hdr and .img"),
    "huge": ("a.nii", patched((42, "3h", 4000, 4000, 4000)), "more than any CT"),
    "no space": ("a.nrrd", lambda: nrrd(space=None), "'space'"),
    "space of no patient": ("a.nrrd", lambda: nrrd(space="scanner-xyz"), "left and right"),
    "left-handed space": ("a.nrrd", lambda: nrrd(space="left-anterior-superior"), "left and right"),
    "no directions": ("a.nrrd", lambda: nrrd(space_directions=None, spacings="1 1 1"), "space directions"),
    "a direction is none": (
        "a.nrrd",
        lambda: nrrd(space_directions="none (0,1,0) (0,0,1)"),
        "three sizes",
    ),
    "no origin": ("a.nrrd", lambda: nrrd(space_origin=None), "space origin"),
    "sheared NRRD": (
        "a.nrrd",
        lambda: nrrd(space_directions="(0.75,0,0) (0.02,0.75,0) (0,0,2.5)"),
        "right angles",
    ),
    "no number": ("a.nrrd", lambda: nrrd(space_origin="(nan,0,0)"), "usable"),
    "unit of NRRD": ("a.nrrd", lambda: nrrd(space_units='"cm" "cm" "cm"'), "not in mm"),
    "unit of NRRD unknown, metres": (
        "a.nrrd",
        lambda: nrrd(space_directions="(0.00075,0,0) (0,0.00075,0) (0,0,0.0025)"),
        "unit",
    ),
    "4D NRRD": ("a.nrrd", lambda: nrrd(dimension="4"), "4 dimensions"),
    "colours in NRRD": ("a.nrrd", lambda: nrrd(kinds="RGB-color domain domain"), "no voxels"),
    "block": ("a.nrrd", lambda: nrrd(type="block"), "no CT"),
    "text": ("a.nrrd", lambda: nrrd(encoding="ascii"), "encoding gzip"),
    "skip": ("a.nrrd", lambda: nrrd(byte_skip="-1"), "skip"),
    "elsewhere": ("a.nrrd", lambda: nrrd(data_file="../../etc/passwd"), "another file"),
    "elsewhere, by another name": ("a.nrrd", lambda: nrrd(datafile="/etc/passwd"), "another file"),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_doubtful_header_is_an_error(tmp_path: Path, case: str) -> None:
    name, make, said = DOUBTFUL[case]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputError, match=said) as caught:
        read(tmp_path / name)
    assert type(caught.value) is InputError
    assert "\n" not in str(caught.value)


def test_the_files_that_these_are_made_from_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(nifti())
    (tmp_path / "a.nrrd").write_bytes(nrrd())
    (tmp_path / "b.nii").write_bytes(nifti(patch=[(123, "B", 0)]))
    for name in ("a.nii", "a.nrrd", "b.nii"):
        assert read(tmp_path / name).hu.shape == (30, 140, 8)
    assert read_scan_header(tmp_path / "a.nii").unit_stated
    assert not read_scan_header(tmp_path / "b.nii").unit_stated


DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "cut short": ("a.nii", lambda: nifti()[:-1]),
    "packed and cut short": ("a.nii.gz", lambda: gzip.compress(nifti())[:-30]),
    "packed with another checksum": ("a.nii.gz", lambda: gzip.compress(nifti())[:-8] + b"\0" * 8),
    "packed, shorter than it claims": ("a.nii.gz", lambda: gzip.compress(nifti()[:-2])),
    "not packed by its name": ("a.nii", lambda: gzip.compress(nifti())),
    "packed by its name": ("a.nii.gz", nifti),
    "no NIfTI": ("a.nii", lambda: b"hello" * 100),
    "no NRRD": ("a.nrrd", lambda: b"hello" * 100),
    "empty": ("a.nii", lambda: b""),
    "NRRD cut short": ("a.nrrd", lambda: nrrd()[:-1]),
    "NRRD without end": ("a.nrrd", lambda: nrrd(body=b"")[:-2]),
    "a field twice": ("a.nrrd", lambda: nrrd().replace(b"key:=value", b"type: uint8")),
    "negative size": ("a.nii", patched((42, "h", -8))),
    "voxels in the header": ("a.nii", patched((108, "f", 4.0))),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_an_error(tmp_path: Path, case: str) -> None:
    name, make = DAMAGED[case]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(InputDamaged):
        read(tmp_path / name)


@pytest.mark.parametrize("case", ["NaN", "infinite", "overflow", "scaled overflow"])
def test_values_that_are_no_hu(tmp_path: Path, values, case: str) -> None:
    stored = values.astype(np.float32)
    stored[3, 100, 5] = {"NaN": np.nan, "infinite": np.inf, "overflow": 40000}.get(case, 0)
    image = nib.Nifti1Image(stored.T, turned((1, 1, 1)))
    if case == "scaled overflow":
        image = nib.Nifti1Image(values.T, turned((1, 1, 1)))
        image.header.set_slope_inter(20.0, 0.0)
    nib.save(image, tmp_path / "a.nii.gz")
    if case == "scaled overflow":  # nibabel scales the values back
        raw = bytearray(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()))
        raw[112:116] = struct.pack("<f", 20.0)
        raw[352:] = values.tobytes()
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(InputError, match="beyond" if "overflow" in case else "no numbers"):
        read(tmp_path / "a.nii.gz")


def test_no_memory_is_asked_for_what_a_file_cannot_hold(tmp_path: Path) -> None:
    """A bomb: a header that claims 2 GB, with next to nothing behind it, or with other things."""
    side = round(MAX_CELLS ** (1 / 3)) - 1
    bomb = nifti(shape=(1, 1, 1), patch=[(42, "3h", side, side, side)])
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bomb))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti() + b"\0" * (1 << 26), 1))
    (tmp_path / "c.nrrd").write_bytes(nrrd(sizes=f"{side} {side} {side}", encoding="gzip", body=b"\0"))
    tracemalloc.start()
    try:
        for name in ("a.nii.gz", "c.nrrd"):
            with pytest.raises(InputDamaged, match="can hold"):
                read(tmp_path / name)
        assert read(tmp_path / "b.nii.gz").hu.shape == (30, 140, 8)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "a.nii")
    for name in ("a.nii", "none.nrrd"):
        for function in (read_scan_header, content_id):
            with pytest.raises(InputUnreadable):
                function(tmp_path / name)


def test_names(tmp_path: Path) -> None:
    names = {
        "a.nii": "NIfTI",
        "b.C.NII.GZ": "NIfTI",
        "a.seg.nrrd": "NRRD",
        "a.nhdr": "",
        "a.gz": "",
        "nii": "",
    }
    assert {name: scan_format(name) for name in names} == names
    assert [without_ending(n) for n in ("a.b.nii.gz", "A.NII", "a.nrrd", "a.txt")] == [
        "a.b",
        "A",
        "a",
        "a.txt",
    ]
    assert "pair" in refused_format("a.hdr", nifti()[:352])
    assert "detached" in refused_format("a.nhdr", nrrd(body=b""))
    assert refused_format("sky.hdr", b"#?RADIANCE") == refused_format("a.nii", nifti()[:352]) == ""


def test_a_content_id_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(np.random.default_rng(1).integers(0, 255, 1 << 20, dtype=np.uint8))
    for name, data in {
        "a": content,
        "b": content,
        "start": b"x" + content[1:],
        "middle": content[: 1 << 19] + b"xyz" + content[(1 << 19) + 3 :],
        "end": content[:-1] + bytes([content[-1] ^ 1]),
        "longer": content + b"x",
    }.items():
        (tmp_path / name).write_bytes(data)
    ids = {p.name: content_id(p) for p in tmp_path.iterdir()}
    assert ids["a"] == ids["b"]
    assert len(set(ids.values())) == 5
