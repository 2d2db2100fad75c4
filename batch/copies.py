"""One process that loads what workers need; where the system can, workers are copies of it.

A worker that loads everything by itself is ready after 2.7 s of a core, and so is the next one; a copy is
there at once and shares the memory of what was loaded (docs/performance.md). Nothing is loaded here, so that
the loading can begin before this process has imported its own parts.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

from ..system.cores import wait_asleep

log = logging.getLogger(__name__)

_ROOT = __package__.rpartition(".")[0]
PRELOADED = [f"{_ROOT}.batch.worker", "torch", "scipy.ndimage", "scipy.spatial", f"{_ROOT}.dicom.tables"]
"""Modules that are loaded, none of which starts a thread or opens a device. What cannot be loaded is left to
the workers, which say why."""

SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
"""What asks a run to end."""


def begin_loading() -> bool:
    """Start that process where it does not run yet, and do not wait for it; whether there is one."""
    if not _COPIES:
        return False
    wait_asleep()  # before torch is loaded
    multiprocessing.set_forkserver_preload(PRELOADED)
    try:
        with signals_blocked():
            forkserver.ensure_running()
    except OSError as error:  # it listens in the temporary folder, whose path may be too long for that
        log.info("workers load everything by themselves: %s", error)
        return False
    return True


def context() -> BaseContext:
    """How workers are started: as copies, or where they cannot be so that each loads everything by itself."""
    return multiprocessing.get_context("forkserver" if begin_loading() else "spawn")


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Whatever is started here hears none of `SIGNALS` before it says so (`worker.start`)."""
    resource_tracker.ensure_running()  # Python's helper: where it is started below, it unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_COPIES = sys.platform == "linux"
"""Whether workers are copies. Libraries of macOS do not always survive that, and Windows knows no fork."""
