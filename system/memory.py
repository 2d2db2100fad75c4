"""How a process keeps the memory that it needs again and again."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt(3)."""
_LARGEST = 32 << 20
"""Bytes of a block that is kept: the most to which glibc itself would raise its limit. Larger ones, as a
whole CT, come from the system as zeros and go back."""
_KEPT = 512 << 20
"""Free bytes that are kept at the end of the heap, at most; chosen: half of what a series takes."""


def keep_freed_memory() -> None:
    """Keep what is freed for the next series, instead of giving it back to the system and asking anew.

    Else the system fills up to 300 MB with zeros for each series, 0.1 to 0.2 s of a core
    (docs/performance.md). The largest memory of a worker stays the same. Nothing is done where the allocator
    is not glibc's, or where the environment sets it (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``).
    """
    if {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"} & os.environ.keys():
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
