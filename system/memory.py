"""How much memory is free, and how a process keeps what it needs again and again."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
"""Where Linux says how much memory the machine has, and how much a container may use (cgroup v2)."""

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


def available_bytes() -> int | None:
    """Memory that new processes can use without swapping, of a container no more than its limit leaves.

    Files that the system has read and keeps for nobody in particular do not count as used. None where the
    system does not say, as Linux does.
    """
    try:
        free = _number(_MEMINFO, r"MemAvailable:\s+(\d+) kB") * 1024
    except (OSError, ValueError):
        return None
    try:
        most, used = (_number(_CGROUP / f"memory.{name}", r"(\d+)$") for name in ("max", "current"))
        kept = _number(_CGROUP / "memory.stat", r"inactive_file (\d+)")
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        return free
    return min(free, max(most - used + kept, 0))


def _number(path: Path, line: str) -> int:
    """The number in the first line of a file that begins with a pattern, of one group.

    Raises:
        OSError: The file cannot be read.
        ValueError: No line begins so.
    """
    found = re.search(rf"^{line}", path.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{path} has no line {line}")
    return int(found[1])
