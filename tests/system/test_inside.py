"""What may be opened below a folder from elsewhere."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from deepcac2.errors import InputUnreadable
from deepcac2.system.inside import regular_inside


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    (folder / "P1").mkdir(parents=True)
    (folder / "P1" / "file").write_bytes(b"mine")
    (tmp_path / "results2").mkdir()
    (tmp_path / "results2" / "file").write_bytes(b"not mine")
    return folder


def test_files_inside_are_given_resolved(root: Path, tmp_path: Path) -> None:
    real = (root / "P1" / "file").resolve()
    assert regular_inside(root / "P1" / "file", root) == real
    (root / "link").symlink_to("P1/file")
    (root / "again").symlink_to(root / "P1")
    (tmp_path / "elsewhere").symlink_to(root)
    assert regular_inside(root / "link", root) == real
    assert regular_inside(root / "again" / "file", root) == real
    assert regular_inside(tmp_path / "elsewhere" / "P1" / "file", tmp_path / "elsewhere") == real
    assert regular_inside(tmp_path / "elsewhere" / "P1" / "file", root) == real


def test_files_outside_are_refused(root: Path, tmp_path: Path) -> None:
    (root / "absolute").symlink_to(tmp_path / "results2" / "file")
    (root / "relative").symlink_to("../results2/file")
    (root / "folder").symlink_to(tmp_path / "results2")
    (root / "twice").symlink_to("absolute")
    (root / "system").symlink_to("/etc/passwd")
    for name in (
        "absolute",
        "relative",
        "folder/file",
        "twice",
        "system",
        "../results2/file",
        "P1/../../results2/file",
    ):
        with pytest.raises(InputUnreadable, match="outside"):
            regular_inside(root / name, root)


def test_what_is_no_regular_file_is_refused_at_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(root / "pipe")
    (root / "to pipe").symlink_to("pipe")
    monkeypatch.chdir(root)  # the name of a socket may have some 100 bytes
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        for name in ("pipe", "to pipe", "socket", "P1", "."):
            with pytest.raises(InputUnreadable, match="no regular file"):
                regular_inside(root / name, root)
    (root / "device").symlink_to("/dev/zero")
    with pytest.raises(InputUnreadable):
        regular_inside(root / "device", root)
    with pytest.raises(InputUnreadable, match="no regular file"):
        regular_inside(Path("/dev/zero"), Path("/dev"))


@pytest.mark.parametrize(
    "name", ["missing", "P1/file/below", "loop", "dangling", "a\0b", "\udcff", "n" * 300, "two\nlines"]
)
def test_what_is_not_there_is_one_line(root: Path, name: str) -> None:
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("nowhere")
    with pytest.raises(InputUnreadable) as caught:
        regular_inside(root / name, root)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
