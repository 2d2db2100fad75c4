"""Bodies of ``multipart/related`` (RFC 2046 5.1.1, RFC 2387), read block by block as they come."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

_LARGEST_HEAD = 1 << 13
"""Bytes of the headers of a part, chosen; DICOMweb services send some 100."""


class NotMultipart(Exception):
    """What is wrong with a body, in our own words: it …"""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a body.

    Attributes:
        kind: Its media type without parameters, in small letters; "": it names none.
        content: Its bytes as they come, to be taken before the next part is.
    """

    kind: str
    content: Iterator[bytes]


class _Held:
    """What has come and was not taken yet."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self.bytes, self.passed = blocks, b"", True

    def more(self) -> None:
        block = next(self._blocks, b"")
        if not block:
            raise NotMultipart("was cut short")
        self.bytes += block

    def upto(self, mark: bytes) -> Iterator[bytes]:
        """What comes before a mark, which is taken, too; `passed` says whether it was."""
        self.passed = False
        while mark not in self.bytes:
            if len(self.bytes) > len(mark):
                yield self.bytes[: -len(mark)]
                self.bytes = self.bytes[-len(mark) :]
            self.more()
        content, _, self.bytes = self.bytes.partition(mark)
        self.passed = True
        yield content


def parts(blocks: Iterator[bytes], content_type: str) -> Iterator[Part]:
    """The parts of a body, one after the other.

    Args:
        blocks: The body as it comes; what follows the last part is taken from it, too.
        content_type: Its header, which names the boundary.

    Raises:
        NotMultipart: It is no such body, or does not end.
    """
    # Orthanc's boundaries have 73 characters, three more than the RFC allows.
    match = re.search(r'(?i);\s*boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))\s*(?:;|$)', content_type)
    if match is None:
        raise NotMultipart("names no boundary")
    mark = b"\r\n--" + (match[1] or match[2]).encode("latin-1", "replace")
    held = _Held(chain([b"\r\n"], blocks))  # the first boundary may begin the body
    before = 0
    try:
        for block in held.upto(mark):
            before += len(block)
            if before > _LARGEST_HEAD:
                break
    except NotMultipart:
        pass
    if before > _LARGEST_HEAD or not held.passed:
        raise NotMultipart("holds no part")
    while True:
        while len(held.bytes) < 2:
            held.more()
        if held.bytes.startswith(b"--"):
            for _ in blocks:  # so that the connection stays
                pass
            return
        while b"\r\n\r\n" not in held.bytes:
            if len(held.bytes) > _LARGEST_HEAD:
                raise NotMultipart("holds a part with too long a head")
            held.more()
        head, _, rest = held.bytes.partition(b"\r\n\r\n")
        if not re.match(rb"[ \t]*(\r\n|$)", head) or len(head) > _LARGEST_HEAD:
            raise NotMultipart("holds something between two parts")
        held.bytes, held.passed = rest, False
        yield Part(kind=_kind(head), content=held.upto(mark))
        if not held.passed:
            for _ in held.upto(mark):
                pass


def _kind(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        name, _, value = line.decode("latin-1").partition(":")
        if name.strip().lower() == "content-type":
            return value.partition(";")[0].strip().lower()
    return ""


def only_part(blocks: Iterator[bytes], content_type: str) -> Iterator[bytes]:
    """The content of the one part of a body.

    Raises:
        NotMultipart: As `parts`; or it holds none, or several.
    """
    count = 0
    for part in parts(blocks, content_type):
        count += 1
        if count > 1:
            raise NotMultipart("holds several parts")
        yield from part.content
    if not count:
        raise NotMultipart("holds no part")
