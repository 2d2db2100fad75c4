"""DICOM SEGs, Deflated, that unpack to far more than they are."""

from __future__ import annotations

import struct
import zlib

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PIXELS = b"\xe0\x7f\x10\x00O"
_FRAMES = b"\x00\x52\x30\x92SQ"
_EMPTY_ITEM = b"\xfe\xff\x00\xe0" + bytes(4)


def deflated_segs(seg: bytes, megabytes: int, *kinds: str) -> dict[str, bytes]:
    """A SEG and, of it, hostile forms by where what they unpack to stands.

    Args:
        seg: A whole one, Explicit VR Little Endian.
        megabytes: To unpack to.
        kinds: Which of them; none: all.

    Returns:
        Under ``plain`` the SEG itself, Deflated; all others hold too much.
    """
    syntax = seg.index(b"\x02\x00\x10\x00UI")
    begin = syntax + 8 + struct.unpack_from("<H", seg, syntax + 6)[0]
    start = 144 + struct.unpack_from("<L", seg, 140)[0]
    named = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(_DEFLATED)) + _DEFLATED
    meta = seg[144:syntax] + named + seg[begin:start]
    head = seg[:140] + struct.pack("<L", len(meta)) + meta
    at, own = seg.rindex(_PIXELS), seg.index(_FRAMES)
    body, pixels = seg[start:at], seg[at:]
    before, frames = seg[start:own], seg[own:at]
    block = bytes(1 << 20)
    items = [_EMPTY_ITEM * (len(block) // len(_EMPTY_ITEM))] * megabytes
    zeros, length = [block] * megabytes, struct.pack("<L", megabytes << 20)
    made: dict[str, list[bytes]] = {
        "plain": [body, pixels],
        "zeros": [body, *zeros],
        "private": [before, b"\x29\x00\x01\x10OB\0\0" + length, *zeros, frames, pixels],
        "pixels": [body, _PIXELS + b"B\0\0" + length, *zeros],
        "items": [before, _FRAMES + b"\0\0" + length, *items, pixels],
    }

    def packed(parts: list[bytes]) -> bytes:
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        return b"".join([*map(packer.compress, parts), packer.flush()])

    return {name: head + packed(parts) for name, parts in made.items() if name in (kinds or made)}
