"""Files that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DiskFull, OutputError, OutputUnwritable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors on writing `path` into ours.

    Raises:
        DiskFull: No space left; nothing half-written stays.
        OutputUnwritable: Any other refusal (rights, read-only, a file where a folder should be).
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if _is_full(error):
            raise DiskFull(
                f"no space left while writing {path.name} to {path.parent}; "
                "free some and give the same command again: it goes on where it stopped"
            ) from error
        reason = error.strerror or str(error).strip().splitlines()[-1]
        raise OutputUnwritable(
            f"cannot write {path}: {reason}; choose another folder or change its rights"
        ) from error


def _is_full(error: BaseException | None) -> bool:
    """Whether this error or one that it was raised from is the system's "no space" (pydicom wraps it)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to `path` when the block ends well, removed otherwise.

    The temporary name is hidden, unique, and ends like `path` (``.nii.gz``), which some writers look at.
    Missing folders are made. The data is flushed to the disk before the rename.

    Raises:
        DiskFull, OutputUnwritable: See `output_errors`.
    """
    temporary = _temporary(path)
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A hidden name beside a path, this thread's own."""
    return path.with_name(f".{os.getpid()}-{threading.get_ident():x}-{path.name[-150:]}")


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """A folder for what is needed while `path` is written, on the same disk; it is removed in the end.

    Raises:
        DiskFull, OutputUnwritable: See `output_errors`.
    """
    folder = _temporary(path.with_name(f"{path.name}.parts"))
    with output_errors(path):
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_TEMPORARY = re.compile(r"\.\d+-[0-9a-f]+-.+")


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left in `folder` (not below it) under temporary names."""
    with output_errors(folder):
        for path in folder.glob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        DiskFull, OutputUnwritable: See `output_errors`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def on_disk(path: Path) -> None:
    """Have a file's content, or the names in a folder, on the disk: a new file is only when its folder is.

    Raises:
        OSError: It cannot be.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON (UTF-8), whole or not at all.

    Raises:
        DiskFull, OutputUnwritable: See `output_errors`.
    """
    write_whole(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
