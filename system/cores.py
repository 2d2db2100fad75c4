"""How many processes should compute on the CPU, and with how many threads each."""

from __future__ import annotations

import os
from pathlib import Path

from .memory import available_bytes

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much CPU a container may use (cgroup v2): microseconds in a period, and the period."""


def threads_each(workers: int) -> int:
    """CPU threads of each of so many workers that compute: the cores that this process may use, divided.

    ``OMP_NUM_THREADS``, where it is set, is the most of each: schedulers and users say by it how many cores
    are theirs. More threads than free cores wait for each other, and a series takes several times as long.
    """
    threads = max(1, _cores() // workers)
    return min(threads, _granted() or threads)


def workers_that_fit(each: int) -> int:
    """How many workers of one thread the cores and the free memory hold, at least one.

    Several series at once take less time than one with several threads, as much of a series is done by one
    (docs/performance.md). Where the free memory is not known there is one.

    Args:
        each: Bytes of memory that a worker may need.
    """
    cores = _cores()
    return max(1, min(cores, _granted() or cores, (available_bytes() or 0) // each))


def _cores() -> int:
    """Cores that this process may run on, no more than a container's quota of CPU time grants."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota() or cores)


def _granted() -> int | None:
    """``OMP_NUM_THREADS``, of nested ones the outermost, at least 1; None where it says no number."""
    granted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return max(1, int(granted)) if granted.isdecimal() else None


def wait_asleep() -> None:
    """Let threads of this process that wait for each other sleep: to be called before torch is loaded.

    By default those of OpenMP spin for a while, faster by microseconds on cores that nothing else needs. With
    other work beside, of readers and writers or of others, a thread then waits for one that waits for the
    core on which the first one spins: a series took up to four times as long and three times the CPU
    (docs/performance.md). ``OMP_WAIT_POLICY``, where it is set, stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quota() -> int | None:
    """Whole cores of the quota, halves up, at least 1; None where there is none."""
    try:
        used, period = _QUOTA.read_text().split()
        return max(1, int(int(used) / int(period) + 0.5))
    except (OSError, ValueError, ZeroDivisionError):  # there is no such file; "max"
        return None
