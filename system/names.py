"""Names that come from outside: as path components, and as text."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

MAX_LENGTH = 120
"""Longest component, characters: file systems allow 255 bytes, and temporary names need some of them."""

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


_HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Surrogates without those by which Python writes bytes that are no UTF-8."""


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

    Halves of surrogate pairs, which no path has and text from elsewhere may, become U+FFFD.

    >>> readable("scan-\\udce4.dcm")
    'scan-\\\\xe4.dcm'
    """
    whole = _HALVES.sub("\ufffd", str(path))
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Text from outside as one line that can neither steer a terminal nor pass for several lines or columns.

    Whatever does not print becomes ``?``: escape sequences of one byte or two, line ends and tabs, what turns
    the direction of writing round, spaces that are none.

    >>> printable("A\\x1b[2J\\tB\\n0 problems"), printable("Müller, 1 mm³ …")
    ('A?[2J?B?0 problems', 'Müller, 1 mm³ …')
    """
    return "".join(c if c.isprintable() else "?" for c in readable(text))


class OneLine(logging.Formatter):
    """Formats a record of a log as one line, and an error's traceback below it, all of it `printable`."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).split("\n")))
