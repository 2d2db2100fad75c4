"""What a client accepts: media ranges as DICOMweb uses them (RFC 9110 section 12.5.1, PS3.18 section 8.7)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

NATIVE = "1.2.840.10008.1.2.1"
"""Explicit VR Little Endian: the transfer syntax of frames that are not compressed."""

OCTETS = "application/octet-stream"
_PART = re.compile(r'(?:[^",;]|"[^"]*")+|[,;]')


@dataclass(frozen=True, kw_only=True)
class MediaRange:
    """One entry of an Accept header.

    Attributes:
        kind: Such as ``"multipart/related"``, ``"image/*"`` or ``"*/*"``, lower case.
        inner: What a multipart answer shall hold (its ``type``); ``"*/*"`` where that is not said.
        transfer_syntax: Its ``transfer-syntax``: a UID, ``"*"`` or "".
        quality: 0 to 1.
    """

    kind: str
    inner: str = "*/*"
    transfer_syntax: str = ""
    quality: float = field(default=1.0, compare=False)

    @property
    def multipart(self) -> bool:
        """Whether it asks for a multipart answer."""
        return self.kind.startswith("multipart/")


def parse(header: str) -> list[MediaRange]:
    """The entries of an Accept header, the preferred first; what is none is left out; "" accepts anything.

    >>> parse('image/png;q=0.5, multipart/related; type="application/dicom"; transfer-syntax=*')[0].inner
    'application/dicom'
    """
    entries: list[list[str]] = [[]]
    for part in _PART.findall(header):
        if part == ",":
            entries.append([])
        elif part != ";":
            entries[-1].append(part.strip())
    ranges = []
    for kind, *rest in filter(None, entries):
        params = {
            name.strip().lower(): value.strip(' "') for name, _, value in (p.partition("=") for p in rest)
        }
        try:
            quality = float(params.get("q", "1"))
        except ValueError:
            continue
        if re.fullmatch(r"[\w.+*-]+/[\w.+*-]+", kind) and quality > 0:
            ranges.append(
                MediaRange(
                    kind=kind.lower(),
                    inner=params.get("type", "*/*").lower(),
                    transfer_syntax=params.get("transfer-syntax", ""),
                    quality=quality,
                )
            )
    if not header.strip():
        return [MediaRange(kind="*/*")]
    return sorted(ranges, key=lambda one: -one.quality)


def _fits(kind: str, wanted: str) -> bool:
    return wanted in (kind, "*/*", f"{kind.split('/')[0]}/*")


def choose(
    ranges: Sequence[MediaRange], offered: Sequence[str], syntaxes: Collection[str] = ()
) -> str | None:
    """The first of what is offered that the client prefers, or None.

    Args:
        ranges: Of the client.
        offered: Media types, or ``multipart/related; type="…"``, the usual first.
        syntaxes: Transfer syntaxes of what would be sent: a range that names one fits only that one.

    >>> choose(parse("image/*"), ["application/json", "image/png"])
    'image/png'
    """
    for one in ranges:
        if one.transfer_syntax not in ("", "*") and any(syntax != one.transfer_syntax for syntax in syntaxes):
            continue
        for kind in offered:
            outer, _, inner = kind.partition("; type=")
            if _fits(outer, one.kind) and (
                not inner or not one.multipart or _fits(inner.strip('"'), one.inner)
            ):
                return kind
    return None


def choose_frames(ranges: Sequence[MediaRange], stored: str, syntax: str) -> tuple[bool, bool] | None:
    """How to send frames: in multipart or not, and decoded or as stored; None where nothing fits.

    ``application/octet-stream`` means frames that are not compressed (PS3.18 section 8.7.3.3.2), but with
    ``transfer-syntax=*``, as OHIF asks, whatever is stored.

    Args:
        ranges: Of the client.
        stored: Media type of the stored frames.
        syntax: Transfer syntax of the stored frames.
    """
    for one in ranges:
        multipart = one.multipart or one.kind == "*/*"
        kind = one.inner if one.multipart else one.kind
        if _fits(stored, kind) and stored != OCTETS and one.transfer_syntax in ("", "*", syntax):
            return multipart, False
        if _fits(OCTETS, kind):
            if one.transfer_syntax in ("*", syntax):
                return multipart, False
            if one.transfer_syntax in ("", NATIVE):
                return multipart, stored != OCTETS
    return None
