"""The door for DICOM: what is hostile ends soon, in little memory, with the right reason, and stops nothing.

Each attack is the small form of one that took gigabytes or did not end: "DICM" and 100 MB of zeros, a file
of 4 MB, Deflated, that unpacks to 4 GB, eight zip archives of the same kind, a sparse file of 3 GB. Attacks
run in a process with limits of memory and processor time, far below what they would take without the door.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from deepcac2.dicom import Series, SliceRef, discover, read_series
from deepcac2.dicom.files import HEAD_BYTES, Upto, placed, read_dicom, read_slice
from deepcac2.errors import InputDamaged, InputUnreadable, SeriesFailed

HU = npt.NDArray[np.int16]

PREAMBLE = bytes(128) + b"DICM"
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
PRIVATE = b"\x09\x00\x01\x10"
PIXELS = b"\xe0\x7f\x10\x00OW\0\0"
UNDEFINED = b"\xff" * 4
MB = 1 << 20

SCRIPT = """
import json, resource, sys
from pathlib import Path
from deepcac2.dicom import discover, read_series
resource.setrlimit(resource.RLIMIT_AS, (1536 << 20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = discover(Path(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({
    "slices": sorted(len(s.slices) for s in found.series),
    "unreadable": {u.path.name: u.reason for u in found.unreadable},
    "megabytes": (after - before) / 1024,
}))
"""


def meta(syntax: bytes) -> bytes:
    """A file meta header that names a transfer syntax."""
    syntax += b"\0" * (len(syntax) % 2)
    element = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    return PREAMBLE + b"\x02\x00\x00\x00UL\x04\x00" + struct.pack("<L", len(element)) + element


EXPLICIT, IMPLICIT, DEFLATED = b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1.99"


def deflated(*parts: bytes) -> bytes:
    """Raw deflate of some parts (PS3.5 A.5)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join([*map(packer.compress, parts), packer.flush()])


def halves(path: Path) -> tuple[bytes, bytes]:
    """Of an uncompressed file: its data set up to the pixels, and the pixels with their length."""
    content = path.read_bytes()
    start, at = content.index(b"\x08\x00\x08\x00CS"), content.index(PIXELS)
    return content[start:at], content[at + len(PIXELS) :]


def attacks(body: bytes, whole: bytes) -> dict[str, bytes]:
    """Files that make a reader work for ever or ask for all memory, by name."""
    zeros = [bytes(MB)] * 100
    length = struct.pack("<L", 100 * MB)
    sequence = PRIVATE + b"SQ\0\0" + UNDEFINED
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("a.dcm", "w") as member:
        member.write(whole)
        for block in zeros:
            member.write(block)
    items = (ITEM + bytes(4)) * 100_000
    frames = b"\x00\x52\x30\x92SQ\0\0" + struct.pack("<L", len(items)) + items
    rising = [struct.pack("<HH2sH", 0x29, i, b"LO", 0) for i in range(50_000)]
    return {
        "bomb.zip": archive.getvalue(),
        "bomb-pixels": meta(DEFLATED) + deflated(body, PIXELS, length, *zeros),
        "bomb-zeros": meta(DEFLATED) + deflated(body, *zeros),
        "bomb-private": meta(DEFLATED) + deflated(PRIVATE + b"OB\0\0" + length, *zeros, body),
        "bomb-cut": (meta(DEFLATED) + deflated(body, os.urandom(99)))[:-40],
        "zeros": PREAMBLE + bytes(8 * MB),
        "meta": PREAMBLE + b"\x02\x00\x10\x00UI\0\0" * MB,
        "commands": meta(IMPLICIT) + b"\x00\x00\x01\x00\0\0\0\0" * MB,
        "items": meta(EXPLICIT) + sequence + items + SEQUENCE_END + bytes(4) + body,
        "nested": meta(EXPLICIT) + (sequence + ITEM + UNDEFINED) * 20_000 + body,
        "frames": meta(EXPLICIT) + body + frames,
        "rising": meta(EXPLICIT) + body + b"".join(rising),
        "no-delimiter": meta(EXPLICIT) + PRIVATE + b"OB\0\0" + UNDEFINED + bytes(60 * MB),
        "claims": meta(EXPLICIT) + body + PIXELS + b"\xfe\xff\xff\xff" + bytes(240),
    }  # fmt: skip


def test_hostile_files_cost_little_and_stop_nothing(ct, hu: HU, tmp_path: Path) -> None:
    """All at once, in a process of 1.5 GB and 60 s; a real series among them is found whole."""
    paths = ct.write(tmp_path / "good", hu)
    body, _ = halves(paths[0])
    made = attacks(body, paths[0].read_bytes())
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    for name, start in (("sparse", PREAMBLE), ("sparse-header", meta(EXPLICIT) + body)):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(3 << 30)
    for edit in (huge_matrix, many_frames):
        edited(paths[0], tmp_path / edit.__name__, edit)
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    said = json.loads(done.stdout)
    assert said["slices"] == [len(hu)]
    assert said["unreadable"].keys() == {
        *made,
        "sparse",
        "sparse-header",
        "huge_matrix",
        "many_frames",
    }
    assert not [r for r in said["unreadable"].values() if "\n" in r or "pickle" in r]
    assert said["megabytes"] < 400


def edited(source: Path, target: Path, edit: Callable[[Dataset], None]) -> None:
    ds = pydicom.dcmread(source)
    edit(ds)
    ds.save_as(target)


def huge_matrix(ds: Dataset) -> None:
    ds.Rows = ds.Columns = 65_535


def many_frames(ds: Dataset) -> None:
    ds.NumberOfFrames = 2_000_000_000


def test_a_pipe_is_never_waited_for(ct, hu: HU, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputUnreadable, match="pipe or a device"):
        discover(tmp_path / "pipe")
    with pytest.raises(InputUnreadable, match="pipe or a device"):
        discover(Path("/dev/zero"))
    paths = ct.write(tmp_path / "a", hu)
    series = find(tmp_path / "a")
    paths[3].unlink()
    os.mkfifo(paths[3])  # in the place of a file that was found
    with pytest.raises(SeriesFailed, match="no regular file") as caught:
        read_series(series)
    assert caught.value.code == "input-unreadable"


def find(root: Path) -> Series:
    (series,) = discover(root).series
    return series


# Headers of real kinds that come near the limits


def test_elements_out_of_order_are_read_and_masses_of_them_are_not(ct, hu: HU, tmp_path: Path) -> None:
    """Some programs append what they add; 32 elements out of order pass, 33 do not."""
    paths = ct.write(tmp_path / "a", hu[:1])
    body, pixels = halves(paths[0])
    for falls, name in ((31, "few"), (32, "most"), (33, "more")):
        added = b"".join(b"\x09\x00\x01\x10LO\x02\x00%02d" % i for i in range(falls))
        (tmp_path / name).write_bytes(meta(EXPLICIT) + body + added + PIXELS + pixels)
    found = discover(tmp_path)
    (series,) = found.series
    assert {r.path.name for r in series.slices} == {paths[0].name, "few", "most"}
    assert [(u.path.name, "no order" in u.reason) for u in found.unreadable] == [("more", True)]


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_header_of_any_length_about_the_first_reading(extra: int, ct, hu: HU, tmp_path: Path) -> None:
    """The pixels begin just before, at and just after the bytes that are read at once."""

    def edit(_: int, ds: Dataset) -> None:
        ds.add_new((0x0009, 0x0010), "LO", "MAKER")
        ds.add_new((0x0009, 0x1001), "OB", b"")

    (plain,) = ct.write(tmp_path / "p", hu[:1], edit=edit)
    short = plain.read_bytes().index(PIXELS)
    length = HEAD_BYTES + 2 * extra - short
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / plain.name
    ds = pydicom.dcmread(plain)  # written again, it would have UIDs of other lengths
    ds[0x0009, 0x1001].value = bytes(length)
    ds.save_as(path)
    assert path.read_bytes().index(PIXELS) == HEAD_BYTES + 2 * extra
    np.testing.assert_array_equal(read_series(find(tmp_path / "a")).volume.hu, hu[:1])


def test_hundreds_of_frames_are_read(ct, hu: HU, tmp_path: Path) -> None:
    """An enhanced file of 600 frames; as many bytes of empty items, without pixels, are refused above."""
    frames = np.tile(hu[:20, :8, :8], (30, 1, 1))
    (tmp_path / "a").mkdir()
    ct.write_enhanced(tmp_path / "a" / "im", frames)
    series = find(tmp_path / "a")
    assert len(series.slices) == 600
    np.testing.assert_array_equal(read_series(series).volume.hu, frames)


@pytest.mark.parametrize(("depth", "whole"), [(32, True), (33, False)])
def test_sequences_inside_sequences(depth: int, whole: bool, ct, hu: HU, tmp_path: Path) -> None:
    def edit(_: int, ds: Dataset) -> None:
        inner = Dataset()
        inner.CodeValue = "1"
        for _ in range(depth):
            outer = Dataset()
            outer.AnatomicRegionSequence = Sequence([inner])
            inner = outer
        ds.update(inner)

    ct.write(tmp_path, hu[:1], edit=edit)
    ref = find(tmp_path).slices[0]
    if whole:
        assert read_slice(ref).AnatomicRegionSequence[0]
    else:
        with pytest.raises(InputDamaged, match="32 deep"):
            read_slice(ref)


def test_deflated_and_zipped_headers_are_the_plain_ones(ct, hu: HU, tmp_path: Path) -> None:
    (plain,) = ct.write(tmp_path / "a", hu[:1])
    ds = pydicom.dcmread(plain)
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "packed")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "packed", "x")
    expected = pydicom.dcmread(plain)
    for root in (plain, tmp_path / "packed", tmp_path / "twice.zip"):
        ref = find(root).slices[0]
        read = read_slice(ref, upto=Upto.PIXELS)
        assert {e.tag: e.value for e in read} == {e.tag: e.value for e in expected}
        assert read.file_meta.TransferSyntaxUID == ref.transfer_syntax_uid
        assert "PixelData" not in read_slice(ref)


# Pixels


def test_pixels_that_claim_more_than_is_there_are_never_scored(ct, hu: HU, tmp_path: Path) -> None:
    """All of the pixels are there, but the length says that there were more: the file was cut."""
    paths = ct.write(tmp_path, hu)
    body, pixels = halves(paths[5])
    length = struct.unpack("<L", pixels[:4])[0]
    for claimed, whole in ((length, True), (length + 2, False), (length + 4096, False)):
        paths[5].write_bytes(meta(EXPLICIT) + body + PIXELS + struct.pack("<L", claimed) + pixels[4:])
        if whole:
            np.testing.assert_array_equal(read_series(find(tmp_path)).volume.hu, hu)
            continue
        with pytest.raises(SeriesFailed, match=r"image 6 of 28 .* cut short") as caught:
            read_series(find(tmp_path))
        assert caught.value.code == "undecodable"


def test_what_follows_the_pixels_is_never_read(ct, hu: HU, tmp_path: Path) -> None:
    for path in ct.write(tmp_path, hu):
        with path.open("ab") as file:
            file.write(bytes(4096))
            file.truncate(1 << 30)
    np.testing.assert_array_equal(read_series(find(tmp_path)).volume.hu, hu)


def test_fragments_without_compression_or_end_are_undecodable(ct, hu: HU, tmp_path: Path) -> None:
    """Read as plain pixels they would be shifted by the fragment's head."""
    paths = ct.write(tmp_path, hu)
    whole = paths[5].read_bytes()
    body, pixels = halves(paths[5])
    fragments = ITEM + bytes(4) + ITEM + pixels
    end = SEQUENCE_END + bytes(4)
    for content in (fragments + end, fragments, ITEM + bytes(4) + end, b""):
        paths[5].write_bytes(meta(EXPLICIT) + body + PIXELS + UNDEFINED + content)
        with pytest.raises(SeriesFailed) as caught:
            read_series(find(tmp_path))
        assert caught.value.code == "undecodable"
    paths[5].write_bytes(whole)
    ds = pydicom.dcmread(paths[5])
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(paths[5])
    content = paths[5].read_bytes()
    np.testing.assert_array_equal(read_series(find(tmp_path)).volume.hu, hu)
    paths[5].write_bytes(content[: content.rindex(SEQUENCE_END)])
    with pytest.raises(SeriesFailed) as caught:
        read_series(find(tmp_path))
    assert caught.value.code == "undecodable"


def _written(stream: bytes, at: int, form: str, *values: int) -> bytes:
    return stream[:at] + struct.pack(form, *values) + stream[at + struct.calcsize(form) :]


CODESTREAMS: dict[str, tuple[Any, Callable[[bytes], bytes]]] = {
    "j2k of 2^31": (JPEG2000Lossless, lambda s: _written(s, 8, ">II", 1 << 31, 1 << 31)),
    "j2k of 4 GB": (JPEG2000Lossless, lambda s: _written(s, 8, ">II", 30_000, 30_000)),
    "j2k of tiles of 1": (JPEG2000Lossless, lambda s: _written(s, 24, ">II", 1, 1)),
    "j2k of empty tiles": (JPEG2000Lossless, lambda s: _written(s, 24, ">II", 0, 0)),
    "jls of 65535": (JPEGLSLossless, lambda s: _written(s, s.index(b"\xff\xf7") + 5, ">HH", 65_535, 65_535)),
    "jls without size": (JPEGLSLossless, lambda s: s[:2] + b"\xff\xd9"),
    "rle of 64 MB": (RLELossless, lambda s: s[:64] + b"\x81\0" * (MB // 2)),
}


@pytest.mark.parametrize("name", CODESTREAMS)
def test_codestreams_that_claim_or_unpack_to_too_much(name: str, ct, tmp_path: Path) -> None:
    """They claim gigabytes, and are refused before a decoder makes room for them."""
    syntax, change = CODESTREAMS[name]
    # large enough for 1-pixel tiles to be many
    hu = np.random.default_rng(3).integers(-1000, 1500, (2, 96, 96)).astype(np.int16)
    paths = ct.write(tmp_path, hu)
    ds = pydicom.dcmread(paths[1])
    ds.compress(syntax, generate_instance_uid=False)
    ds.save_as(paths[1])
    np.testing.assert_array_equal(read_series(find(tmp_path)).volume.hu, hu)
    (stream,) = generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([change(stream)])
    ds.save_as(paths[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SeriesFailed, match="compressed pixels") as caught:
        read_series(find(tmp_path))
    assert caught.value.code == "undecodable"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 100


@pytest.mark.parametrize(
    ("keyword", "value"), [("SamplesPerPixel", 65_535), ("BitsAllocated", 65_528), ("BitsAllocated", 64)]
)
def test_claims_of_the_pixel_module(keyword: str, value: int, ct, hu: HU, tmp_path: Path) -> None:
    paths = ct.write(tmp_path, hu)
    edited(paths[2], paths[2], lambda ds: setattr(ds, keyword, value))
    with pytest.raises(SeriesFailed) as caught:
        read_series(find(tmp_path))
    assert caught.value.code == "undecodable"


def test_a_series_that_claims_more_than_its_files_hold(ct, hu: HU, tmp_path: Path) -> None:
    """Each file may claim 32 MB; all together would be almost 2 GB."""
    paths = ct.write(tmp_path, hu)
    for path in paths:
        edited(path, path, lambda ds: ds.update({"Rows": 5700, "Columns": 5700}))
    with pytest.raises(SeriesFailed, match="claim") as caught:
        read_series(find(tmp_path))
    assert caught.value.code == "undecodable"


def test_every_error_of_a_damaged_file_is_one_of_two(ct, hu: HU, tmp_path: Path) -> None:
    """Any byte of the header may be anything: the door raises nothing else."""
    (path,) = ct.write(tmp_path, hu[:1])
    content = path.read_bytes()
    rng = np.random.default_rng(5)
    ends = set()
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(128, len(damaged) - 240, rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        damaged = damaged[: rng.integers(132, 2 * len(damaged))]
        try:
            read_dicom(io.BytesIO(), bytes(damaged), upto=Upto.PIXELS, packed_size=len(damaged))
            ends.add("read")
        except InputUnreadable as error:
            ends.add(error.code if "\n" not in str(error) else "several lines")
    assert ends == {"read", "undecodable"}


@pytest.mark.parametrize(
    "keyword",
    [
        "RescaleIntercept",
        "RescaleSlope",
        "PixelSpacing",
        "ImagePositionPatient",
        "Rows",
        "PixelRepresentation",
    ],
)
@pytest.mark.parametrize("extra", [0, 2 * HEAD_BYTES])
def test_what_a_score_depends_on_stands_once(keyword: str, extra: int, ct, hu: HU, tmp_path: Path) -> None:
    """Twice, even with one value, and beyond the first reading: nobody knows which of two is meant."""
    paths = ct.write(tmp_path / "in", hu)
    content = paths[0].read_bytes()
    ds = pydicom.dcmread(paths[0])
    alone = Dataset()
    alone[keyword] = ds[keyword]
    written = io.BytesIO()
    pydicom.dcmwrite(written, alone, implicit_vr=False, little_endian=True)
    at = content.index(PIXELS)
    filler = struct.pack("<HH2s2xL", 0x29, 0x1001, b"OB", extra) + bytes(extra)
    paths[0].write_bytes(content[:at] + filler + written.getvalue() + content[at:])
    found = discover(tmp_path / "in")
    assert [(u.path, u.reason.split(":")[0]) for u in found.unreadable] == [
        (paths[0], f"{keyword} stands in it twice")
    ]
    with pytest.raises(InputDamaged, match=f"{keyword} stands in it twice"):
        read_slice(SliceRef(path=paths[0]), upto=Upto.PIXELS)
    paths[0].write_bytes(content[:at] + filler + filler + content[at:])  # nothing depends on these
    assert not discover(tmp_path / "in").unreadable


def test_how_far_a_file_is_read(ct, hu: HU, tmp_path: Path) -> None:
    """Plain, Deflated and as a member of an archive: pydicom says what there is."""
    (path,) = ct.write(tmp_path, hu[:1])
    ds = pydicom.dcmread(path)
    ds.DataSetTrailingPadding = b"behind"
    ds.save_as(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a")
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path / "deflated")
    for ref in (
        SliceRef(path=path),
        SliceRef(path=tmp_path / "deflated"),
        SliceRef(path=tmp_path / "a.zip", member="a"),
    ):
        header, pixels, end = (read_slice(ref, upto=u) for u in (Upto.HEADER, Upto.PIXELS, Upto.END))
        assert ("PixelData" in header, "PixelData" in pixels) == (False, True)
        assert ("DataSetTrailingPadding" in pixels, "DataSetTrailingPadding" in end) == (False, True)
        assert end == pydicom.dcmread(path if ref.member else ref.path)
        place = placed(read_slice(ref, upto=Upto.PLACE))
        assert (place is None) == (ref.path != path)
        if place is not None:
            start, length = place
            assert path.read_bytes()[start : start + length] == ds.PixelData
    path.write_bytes(path.read_bytes()[: start + 100])
    with pytest.raises(InputDamaged, match="cut short"):
        read_slice(SliceRef(path=path), upto=Upto.END)
