"""Cases handed from one process to the next through files, their arrays mapped and not copied.

A pipe would copy a CT of 70 MB four times and hold both ends up. Here the giver writes one file, the taker
maps it (copy on write: whoever changes an array changes only its own view) and removes its name at once, so
that nothing is left behind when the taker dies.
"""

from __future__ import annotations

import mmap
import pickle
import struct
from pathlib import Path
from typing import Any

_ALIGN = 64
"""Arrays start at multiples of this many bytes: what vector instructions like."""


def put(content: Any, path: Path) -> None:
    """Write `content` to `path`, arrays as they lie in memory.

    Raises:
        OSError: The file cannot be written.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
    raws = [b.raw() for b in buffers]
    table = struct.pack(f"<QQ{len(raws)}Q", len(head), len(raws), *(r.nbytes for r in raws))
    with path.open("wb") as file:
        file.write(table)
        file.write(head)
        for raw in raws:
            file.write(b"\0" * (-file.tell() % _ALIGN))
            file.write(raw)


def take(path: Path) -> Any:
    """Read what `put` wrote and remove the file; its arrays stay mapped as long as they are used.

    Only files that this run's own processes wrote are ever read: pickle trusts its input.

    Raises:
        OSError: The file is not there.
    """
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    path.unlink()
    head, count = struct.unpack_from("<QQ", mapped)
    sizes = struct.unpack_from(f"<{count}Q", mapped, 16)
    view = memoryview(mapped)
    at = 16 + 8 * count
    pickled = view[at : at + head]
    at += head
    buffers = []
    for size in sizes:
        at += -at % _ALIGN
        buffers.append(view[at : at + size])
        at += size
    return pickle.loads(pickled, buffers=buffers)
