"""A secret key in a file of its own, which nobody but its owner can read."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from ..errors import InputError
from .atomic import on_disk, output_errors
from .foreign import foreign, open_regular

_BYTES = 32
"""Of a key that is made here; of one that is given, at least as many."""
_MOST = 4096
"""Bytes of a key file that are read at most; chosen."""


def secret_key(path: Path, *, apart_from: Path) -> tuple[bytes, bool]:
    """The key that a file holds, as hexadecimal digits; the file is made, with a random one, where it is not.

    Args:
        path: The file.
        apart_from: Folder with what the key makes safe to hand over; whoever gets both has undone it.

    Returns:
        The key, 32 bytes or more, and whether it was made now.

    Raises:
        InputError: The file lies in that folder, cannot be read, others may read it, or it holds no key.
        DiskFull, OutputUnwritable: It cannot be made.
    """
    if path.resolve().is_relative_to(apart_from.resolve()):
        raise InputError(
            f"{path} lies in {apart_from}; whoever gets both finds the patients again: keep the key elsewhere"
        )
    made = _made(path)
    with foreign(str(path), error=InputError, advice="give the file of a key"), open_regular(path) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        text = file.read(_MOST + 1)
    if mode & 0o077:
        raise InputError(f"{path} is a secret that others may read; protect it: chmod 600 {path}")
    digits = bytes(text).strip()
    if len(text) > _MOST or len(digits) < 2 * _BYTES or not re.fullmatch(rb"([0-9A-Fa-f]{2})+", digits):
        raise InputError(
            f"{path} holds no key, which is {2 * _BYTES} hexadecimal digits or more; name a file that is not "
            "there yet, and one is made"
        )
    return bytes.fromhex(digits.decode("ascii")), made


def _made(path: Path) -> bool:
    """Make a key file, whole or not at all, unless there is something of that name."""
    if os.path.lexists(path):
        return False
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(8)}")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_hex(_BYTES).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)  # unlike a rename, it replaces nothing
            except FileExistsError:
                return False
            on_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return True
