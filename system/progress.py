"""How far work within a series is: told in the run's log by whoever does it, shown from there to who waits.

A worker is a process of its own, and what it prints would run into the bar of the terminal. The log is what
all processes of a run write, in whole lines.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_LOG = logging.getLogger(__name__)
_MARK = f" {__name__}: "
"""In a line of the log between what is always there and the message."""
_SECONDS = 0.5
"""Between two looks at the log."""


def tell(text: str) -> None:
    """Say in the log how far it is."""
    _LOG.info("%s", text)


@contextmanager
def followed(log: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Show what is told from now on until the end.

    Args:
        log: The run's log file, whose lines hold the name of their logger, a colon and the message.
        show: Called with each text, from a thread.
    """
    ended = threading.Event()

    def follow(lines: TextIO) -> None:
        begun = ""
        last = False
        while not last:
            last = ended.wait(_SECONDS)
            for piece in lines:
                begun += piece
                if begun.endswith("\n"):
                    if _MARK in begun:
                        show(begun.rpartition(_MARK)[2].rstrip("\n"))
                    begun = ""

    with log.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(0, 2)
        thread = threading.Thread(target=follow, args=(lines,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
