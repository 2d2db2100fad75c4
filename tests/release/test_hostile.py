"""`release verify` and `build` on archives that were made to harm: bombs, climbing names, false assurance."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from deepcac2.cli.main import main
from deepcac2.dicom import discover
from deepcac2.errors import InputError, InputUnreadable
from deepcac2.pipeline.outputs import REPORT_NAME
from deepcac2.pipeline.results import ResultRow, write_parquet
from deepcac2.release.build import LARGEST, MANIFEST, SEG_NAME, SELECTION, build_release, name_fault
from deepcac2.release.verify import KEYS
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_patient

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated patient of a few small slices: its CT and the true SEG."""
    folder = tmp_path_factory.mktemp("patient")
    write_patient(simulate_patient(3, geometry=default_geometry(3, size=48, slices=10)), folder)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def place(patient: Path) -> str:
    (series,) = discover(patient / "ct").series
    return f"{series.patient_id}/{series.series_uid}"


@pytest.fixture
def files(patient: Path, place: str) -> Files:
    """A release of one series that is as it should be."""
    report = dict(zip(KEYS, (0.0, 0, place.split("/")[1]), strict=True))
    seg = next(patient.rglob("truth.seg.dcm")).read_bytes()
    return {f"{place}/{SEG_NAME}": seg, f"{place}/{REPORT_NAME}": json.dumps(report).encode()}


def manifest_of(files: Files) -> bytes:
    text = io.StringIO()
    lines = [(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()]
    csv.writer(text).writerows([("path", "bytes", "sha256"), *lines])
    return text.getvalue().encode()


def pack(path: Path, files: Files, *, manifest: bytes | None = None) -> Path:
    """A zip file of a release with its manifest; `manifest`: another one."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(MANIFEST, manifest_of(files) if manifest is None else manifest)
    return path


def verified(capsys: pytest.CaptureFixture[str], path: Path, *more: object) -> tuple[int, str]:
    """Exit code and all that is printed; a traceback fails the test by itself."""
    code = main(["release", "verify", str(path), *map(str, more)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_what_is_as_it_should_be(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = verified(capsys, pack(tmp_path / "a.zip", files))
    assert code == 0, said
    assert "2 checksums compared" in said
    assert said.endswith("nothing differs\n")


# --- false assurance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (b"", "it has no column path"),
        (b"path,bytes,sha256\n", "is not in the manifest"),
        (b"path,bytes\nx,1\n", "it has no column sha256"),
        (b"path,bytes,sha256\n\xff\xfe,1,2\n", "manifest.csv cannot be read"),
        (b"path,bytes,sha256\n" + b"x" * 200_000 + b",1,2\n", "field larger than field limit"),
        (b"path,bytes,sha256\nx,many,2\n", "line 2 gives no size in bytes"),
        (b"path,bytes,sha256\nx,1" + b"0" * 5000 + b",2\n", "line 2 gives no size in bytes"),
        (b"path,bytes,sha256\nx,1\n", "line 2 has not the columns of the first"),
        (b"path,bytes,sha256\nx,1,2,3\n", "line 2 has not the columns of the first"),
        (b"path,bytes,sha256\nx,1,2\nx,1,3\n", "x stands in it twice"),
    ],
)
def test_a_manifest_that_proves_nothing(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], manifest: bytes, says: str
) -> None:
    code, said = verified(capsys, pack(tmp_path / "a.zip", files, manifest=manifest))
    assert code == 1
    assert says in said
    assert "nothing differs" not in said
    assert max(map(len, said.splitlines())) < 700


def test_every_member_that_the_manifest_does_not_name_is_a_problem(
    files: Files, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = {n: d for n, d in files.items() if n.endswith(SEG_NAME)}
    code, said = verified(capsys, pack(tmp_path / "a.zip", files, manifest=manifest_of(some)))
    assert code == 1
    assert f"{place}/{REPORT_NAME}: is not in the manifest" in said


def test_a_release_of_ours_whose_manifest_is_gone(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, data, code in (("notes.txt", b"x", 0), (SELECTION, b"null", 1)):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for member, content in {**files, name: data}.items():
                archive.writestr(member, content)
        found, said = verified(capsys, tmp_path / "a.zip")
        assert found == code, said
        assert not said.endswith("nothing differs\n")
    assert "manifest.csv: is missing" in said


@pytest.mark.parametrize(
    "name",
    ["../../../x", "a/../../b", "/etc/x", "a//b", "./x", "C:/x", "a\\b", "P/1/../../x", "x\x1b[2J"],
)
def test_names_that_lead_elsewhere(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert name_fault(name)
    code, said = verified(capsys, pack(tmp_path / "a.zip", {**files, name: b"x"}))
    assert code == 1
    assert len(re.findall("its name (leads elsewhere|holds characters)", said)) == 1
    assert "\x1b" not in said


def _marked(change: Callable[[zipfile.ZipInfo], None]) -> Callable[[Path, Files], None]:
    def write(path: Path, files: Files) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                info = zipfile.ZipInfo(name)
                if name.endswith(SEG_NAME):
                    change(info)
                archive.writestr(info, data)
            archive.writestr(MANIFEST, manifest_of(files))

    return write


def _in_headers(offset_local: int, offset_central: int, value: int) -> Callable[[Path, Files], None]:
    """Overwrites two bytes in both headers of the first member (APPNOTE 4.3.7 and 4.3.12)."""

    def write(path: Path, files: Files) -> None:
        pack(path, files)
        data = bytearray(path.read_bytes())
        struct.pack_into("<H", data, offset_local, value)
        struct.pack_into("<H", data, data.index(b"PK\x01\x02") + offset_central, value)
        path.write_bytes(data)

    return write


def _link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def _lzma(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_LZMA


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_marked(_link), "is a link or a device"),
        (_marked(_lzma), "is packed by the method 14"),
        (_in_headers(6, 8, 1), "is encrypted"),
        (_in_headers(8, 10, 99), "is packed by the method 99"),
    ],
)
def test_members_that_are_no_plain_files(
    files: Files,
    place: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path, Files], None],
    says: str,
) -> None:
    write(tmp_path / "a.zip", files)
    code, said = verified(capsys, tmp_path / "a.zip")
    assert code == 1
    assert f"{place}/{SEG_NAME}: {says}" in said


def test_names_that_are_one_where_case_does_not_count(
    files: Files, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seg = f"{place}/{SEG_NAME}"
    twins = {**files, seg.replace("SIM", "sim"): files[seg]}
    code, said = verified(capsys, pack(tmp_path / "a.zip", twins))
    assert code == 1
    assert "where case does not count" in said


def test_a_member_twice(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(tmp_path / "a.zip", files)
    name = next(iter(files))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr(name, b"other")
    code, said = verified(capsys, tmp_path / "a.zip")
    assert code == 10
    assert said == f"error: {name} is there twice\n"


def test_ct_that_is_of_no_series(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_patient(simulate_patient(4, geometry=default_geometry(4, size=32, slices=8)), tmp_path / "other")
    code, said = verified(capsys, pack(tmp_path / "a.zip", files), "--ct", tmp_path / "other")
    assert code == 1
    assert "no score was computed again" in said


# --- bombs ------------------------------------------------------------------------------------------------

_ZEROS = b"\0" * (1 << 20)


def _bomb(path: Path, files: Files, name: str, megabytes: int, manifest: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for other, data in files.items():
            if other != name:
                archive.writestr(other, data)
        with archive.open(name, "w", force_zip64=True) as member:
            for _ in range(megabytes):
                member.write(_ZEROS)
        archive.writestr(MANIFEST, manifest)


def test_a_member_larger_than_its_line_is_not_unpacked(files: Files, place: str, tmp_path: Path) -> None:
    """Full size: 2 MB that hold 2 GB took 4.3 GB and had no end. Here 300 MB, with 250 MB of memory more.

    Its packed bytes are spoilt, too, which nobody notices who does not unpack them.
    """
    name, path = f"{place}/{SEG_NAME}", tmp_path / "a.zip"
    _bomb(path, files, name, 300, manifest_of(files))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    code, said = _limited(path)
    assert code == 1, said
    assert f"{name}: differs from the manifest" in said
    assert "cannot be read" not in said


def test_a_large_member_is_hashed_in_blocks(files: Files, tmp_path: Path) -> None:
    """A member that is as large as its line says takes time, and no memory."""
    digest = hashlib.sha256()
    for _ in range(300):
        digest.update(_ZEROS)
    line = f"big.bin,{300 << 20},{digest.hexdigest()}\n".encode()
    _bomb(tmp_path / "a.zip", files, "big.bin", 300, manifest_of(files) + line)
    code, said = _limited(tmp_path / "a.zip")
    assert code == 0, said
    assert "3 checksums compared" in said


def _limited(path: Path) -> tuple[int, str]:
    """`release verify` in a process that may take 250 MB more than it has when it begins to read."""
    code = f"""
import resource, sys
from deepcac2.cli.main import main
import deepcac2.release.verify, pydicom, pydicom.pixels  # what is loaded counts before
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (250 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
sys.exit(main(["release", "verify", {str(path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_seg_that_unpacks_to_more_than_it_is(
    files: Files, place: str, tmp_path: Path, deflated_segs
) -> None:
    """Its line in the manifest is right; with 250 MB of memory more. In full size 1 GB, which took 2 GB."""
    name = f"{place}/{SEG_NAME}"
    seg = deflated_segs(files[name], 300, "private")["private"]
    code, said = _limited(pack(tmp_path / "a.zip", {**files, name: seg}))
    assert code == 1, said
    assert "is no DICOM SEG that can be read" in said
    assert "MemoryError" not in said


@pytest.mark.parametrize("name", [SEG_NAME, REPORT_NAME])
def test_without_a_manifest_sizes_have_an_end(
    files: Files, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The size that a header says is enough: nothing is unpacked to find it out."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.getinfo(f"{place}/{name}").file_size = LARGEST[name] + 1
    code, said = verified(capsys, tmp_path / "a.zip")
    assert code == 1
    assert "it was not read" in said


def test_a_segmentation_with_masses_of_items(
    files: Files, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each empty item has eight bytes in the file and a thousand in memory. In full size millions."""
    ds = pydicom.dcmread(io.BytesIO(files[f"{place}/{SEG_NAME}"]))
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * 200_000
    ds[0x00082112] = RawDataElement(Tag(0x00082112), "SQ", len(items), items, 0, False, True)
    head, tail = io.BytesIO(), io.BytesIO()
    ds.pop(0x00082112)
    ds.save_as(head)
    tail.write(struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, len(items)) + items)
    block = struct.pack("<HH2sH", 0x0009, 0x0010, b"LO", 4) + b"TEST"
    at = head.getvalue().index(struct.pack("<HH", 0x0010, 0x0010))
    content = head.getvalue()[:at] + block + tail.getvalue() + head.getvalue()[at:]
    files[f"{place}/{SEG_NAME}"] = content
    code, said = verified(capsys, pack(tmp_path / "a.zip", files))
    assert code == 1
    assert "it holds more elements" in said


# --- one line instead of a traceback ----------------------------------------------------------------------


def _report(text: str) -> Callable[[Files, str], None]:
    def change(files: Files, place: str) -> None:
        files[f"{place}/{REPORT_NAME}"] = text.replace("UID", place.split("/")[1]).encode()

    return change


def _seg(change: Callable[[pydicom.Dataset], None]) -> Callable[[Files, str], None]:
    def apply(files: Files, place: str) -> None:
        ds = pydicom.dcmread(io.BytesIO(files[f"{place}/{SEG_NAME}"]))
        change(ds)
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=False)
        files[f"{place}/{SEG_NAME}"] = buffer.getvalue()

    return apply


def _raw(keyword: str, vr: str, value: bytes) -> Callable[[Files, str], None]:
    """An element of a SEG as bytes of another kind than its own."""

    def change(ds: pydicom.Dataset) -> None:
        tag = Tag(keyword)
        del ds[tag]
        ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True, True)

    return _seg(change)


def _syntax(value: str | None) -> Callable[[Files, str], None]:
    def change(ds: pydicom.Dataset) -> None:
        del ds.file_meta.TransferSyntaxUID
        if value is not None:
            ds.file_meta.TransferSyntaxUID = value

    def apply(files: Files, place: str) -> None:
        name = f"{place}/{SEG_NAME}"
        own = b"1.2.840.10008.1.2.1\0"
        if value is None:  # the element is renamed to a private one
            at = files[name].index(struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(own)))
            files[name] = files[name][:at] + struct.pack("<HH", 0x0002, 0x0011) + files[name][at + 4 :]
        else:
            assert len(value) == len(own) - 1
            files[name] = files[name].replace(own, value.encode() + b"\0", 1)

    return apply


HALF = '{"Predicted Agatston Score": 1, "Predicted Risk Group": 1, "SeriesInstanceUID": "\\ud800"}'
NUMBERS = '"Predicted Risk Group": 3, "SeriesInstanceUID": "UID"'


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (_report('{"Predicted Agatston Score": 1' + "0" * 400 + f", {NUMBERS}}}"), "report", "is no JSON"),
        (_report('{"Predicted Agatston Score": 1e999, ' + NUMBERS + "}"), "report", "is no JSON"),
        (_report('{"Predicted Agatston Score": NaN, ' + NUMBERS + "}"), "report", "is no JSON"),
        (_report("[" * 200_000), "report", "depth limit"),
        (_report(HALF), "report", "surrogate"),
        (_report('{"\\u001b[2J": 1}'), "report", "not the three keys"),
        (_raw("NumberOfFrames", "IS", b"many"), "seg", "is no DICOM SEG that can be read"),
        (_raw("SegmentSequence", "LO", b"text"), "seg", "is no DICOM SEG that can be read"),
        (_raw("ReferencedSeriesSequence", "LO", b"text"), "seg", "is no DICOM SEG that can be read"),
        (_raw("PerFrameFunctionalGroupsSequence", "LO", b"text"), "seg", "is no DICOM SEG that can be read"),
        (_syntax("9.9.999.99999.9.9.9"), "seg", "is no DICOM SEG that can be read"),
        (_syntax(None), "seg", "is no DICOM SEG that can be read"),
    ],
)  # fmt: skip
def test_what_is_no_report_and_no_segmentation(
    files: Files,
    place: str,
    patient: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Files, str], None],
    code: str,
    says: str,
) -> None:
    change(files, place)
    found, said = verified(capsys, pack(tmp_path / "a.zip", files), "--ct", patient / "ct")
    assert found == 1
    assert f"{code}: " in said
    assert says in said
    assert "\x1b" not in said


# --- building ---------------------------------------------------------------------------------------------


@pytest.fixture
def results(files: Files, place: str, tmp_path: Path) -> Path:
    """The output folder of a run as far as `release build` reads it."""
    out = tmp_path / "results"
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    patient_id, uid = place.split("/")
    known: dict[str, Any] = {"agatston_score": 0.0, "risk_group": 0, "folder": place}
    row = ResultRow(patient_id=patient_id, study_uid="1", series_uid=uid, status="scored", **known)
    write_parquet(out / "results.parquet", [row])
    return out


def test_only_regular_files_inside_are_released(results: Path, place: str, tmp_path: Path) -> None:
    build_release(results, tmp_path / "a.zip", unfinished=True)
    seg = results / place / SEG_NAME
    data = seg.read_bytes()
    (tmp_path / "secret").write_bytes(data)
    for make, says in (
        (lambda: os.mkfifo(seg), "is no regular file"),
        (lambda: seg.symlink_to(tmp_path / "secret"), "link to a file outside"),
        (lambda: seg.symlink_to("/dev/zero"), "link to a file outside"),
    ):
        seg.unlink()
        make()
        with pytest.raises(InputUnreadable, match=says):
            build_release(results, tmp_path / "b.zip", unfinished=True)
        assert not (tmp_path / "b.zip").exists()
    seg.unlink()
    seg.write_bytes(data)
    table = results / "results.parquet"
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(InputUnreadable, match="is no regular file"):
        build_release(results, tmp_path / "b.zip", unfinished=True)


def test_a_table_that_names_folders_elsewhere(results: Path, place: str, tmp_path: Path) -> None:
    patient_id, uid = place.split("/")
    known: dict[str, Any] = {"agatston_score": 0.0, "folder": f"{patient_id}/../{place}"}
    row = ResultRow(patient_id=patient_id, study_uid="1", series_uid=uid, status="scored", **known)
    write_parquet(results / "results.parquet", [row])
    with pytest.raises(InputError, match="no run's table"):
        build_release(results, tmp_path / "b.zip", unfinished=True)
