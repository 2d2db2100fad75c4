"""Writing a file so that it is either whole or not there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DiskFull, OutputUnwritable


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`; renamed to `path` when the block ends, removed when it fails.

    The temporary name is hidden, unique, and ends like `path`, so that writers which go by the ending
    (``.nii.gz``) do the same for both. Missing folders are made.

    Raises:
        DiskFull: no space is left.
        OutputUnwritable: the folder or file cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".writing-", suffix=f"-{path.name}"[-100:], dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"No space left to write {path}: free some space and run again") from error
        reason = error.strerror or str(error)
        raise OutputUnwritable(f"Cannot write {path} ({reason}): choose a folder you may write to") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
