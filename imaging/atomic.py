"""Files that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        if error.errno in _FULL:
            raise DiskFull(
                f"no space left while writing {path.name} to {path.parent}; "
                "free some and give the same command again: it goes on where it stopped"
            ) from error
        raise OutputUnwritable(
            f"cannot write {path}: {error.strerror or error}; choose another folder or change its rights"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to `path` when the block ends well, removed otherwise.

    The temporary name is hidden, unique, and ends like `path` (``.nii.gz``), which some writers look at.
    Missing folders are made. The data is flushed to the disk before the rename.

    Raises:
        DiskFull, OutputUnwritable: See `output_errors`.
    """
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident():x}-{path.name[-150:]}")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        DiskFull, OutputUnwritable: See `output_errors`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
