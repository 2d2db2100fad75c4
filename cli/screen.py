"""What several commands print alike."""

from __future__ import annotations

import sys
from collections.abc import Callable


def say(text: str) -> None:
    """A line on the standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def counter(what: str) -> Callable[[int, int], None]:
    """Called with done and total, it counts in place on a terminal: ``3 of 60 scans``.

    Args:
        what: What is counted, in the plural.
    """

    def watch(done: int, total: int) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done} of {total} {what}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return watch
