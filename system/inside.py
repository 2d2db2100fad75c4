"""Files that are opened below a folder from elsewhere: inside it, and regular."""

from __future__ import annotations

import stat
from pathlib import Path

from ..errors import InputUnreadable


def regular_inside(path: Path, root: Path) -> Path:
    """A file of a folder that is safe to open: never one outside through a link, never one that blocks.

    A folder of results may come from elsewhere. A link in it may lead to any file of this machine, and a pipe
    or a device has no end. Nothing is opened here, so nothing can hang.

    Args:
        path: The file, below `root` by its name.
        root: The folder, which may itself be reached through a link.

    Returns:
        The file with every link resolved, to be opened instead of `path`. Links within `root` are followed.

    Raises:
        InputUnreadable: It is not there, is no regular file, or lies outside `root`.
    """
    try:
        real, home = path.resolve(strict=True), root.resolve(strict=True)
        mode = real.stat().st_mode
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # RuntimeError: links in a circle, before Python 3.13
        reason = getattr(error, "strerror", None) or "no such file"
        raise InputUnreadable(f"cannot open {path.name!r} in {root}: {reason}; make it again") from error
    if not real.is_relative_to(home):
        raise InputUnreadable(
            f"{path.name!r} in {root} is a link to a file outside; put the file itself there"
        )
    if not stat.S_ISREG(mode):
        raise InputUnreadable(f"{path.name!r} in {root} is no regular file; remove it")
    return real
