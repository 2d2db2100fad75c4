"""Names that come from outside: as path components, and as text."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

MAX_LENGTH = 120
"""Longest component, characters: file systems allow 255 bytes, and temporary names need some of them."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def safe_name(identifier: str) -> str:
    """A single path component for any string; different strings get different names.

    Letters, digits, ``.``, ``_`` and ``-`` stay, every other byte of the UTF-8 form becomes ``%XX``, and so
    do a first ``.`` or ``-``, a last ``.``, and the first letter of names that Windows reserves. The empty
    string becomes ``_`` (and ``_`` itself ``%5F``). What is longer than `MAX_LENGTH` is cut and ends in
    ``~`` and half a SHA-256. Names that differ only in case stay so: on a file system that ignores case
    they are one.

    >>> safe_name("LIDC-IDRI-0306"), safe_name("../../x"), safe_name("")
    ('LIDC-IDRI-0306', '%2E.%2F..%2Fx', '_')
    """
    if not identifier:
        return "_"
    raw = identifier.encode("utf-8", "surrogatepass")
    reserved = identifier == "_" or bool(_RESERVED.fullmatch(identifier))
    last = len(raw) - 1
    parts = []
    for i, byte in enumerate(raw):
        edge = (i == 0 and (byte in b".-" or reserved)) or (i == last and byte == ord("."))
        parts.append(chr(byte) if byte in _PLAIN and not edge else f"%{byte:02X}")
    name = "".join(parts)
    if len(name) > MAX_LENGTH:
        digest = hashlib.sha256(raw).hexdigest()[:32]
        name = f"{name[: MAX_LENGTH - len(digest) - 1]}~{digest}"
    return name


def readable(path: Path | str) -> str:
    """A path as text that every file and screen takes: bytes of it that are no UTF-8 become ``\\xNN``.

    >>> readable("scan-\\udce4.dcm")
    'scan-\\\\xe4.dcm'
    """
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
