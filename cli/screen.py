"""The one way out to the terminal: what commands print, on the standard output and on standard error.

Much of what is printed came from outside: PatientIDs, names of files and members, keys of reports, answers of
other machines. On a terminal such text could clear the screen, set its title or pass for lines of our own. So
whatever is printed goes through here, line by line and cell by cell, each made `printable`. What is meant for
programs is JSON in ASCII, in which nothing steers a terminal and nothing is lost.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 160
"""Letters of a line of a table where the output is no terminal."""


def _plain(text: str) -> str:
    from ..dicom.names import printable  # its room loads pydicom, which --help can do without

    return printable(text)


def say(*lines: str) -> None:
    """Lines on the standard output, at once."""
    _write(sys.stdout, lines)


def note(*lines: str) -> None:
    """Lines on standard error, at once."""
    _write(sys.stderr, lines)


def _write(stream: IO[str], lines: Iterable[str]) -> None:
    stream.write("".join(f"{_plain(line)}\n" for line in lines))
    stream.flush()


def say_json(content: object, *, indent: int | None = 2) -> None:
    """JSON on the standard output, for programs: ASCII, which a terminal shows as it is."""
    sys.stdout.write(json.dumps(content, indent=indent) + "\n")
    sys.stdout.flush()


def new_table(*columns: str, **options: Any) -> Table:
    """A table as all commands print them; add rows with `add_row`."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, **options)
    for column in columns:
        table.add_column(column)
    return table


def add_row(table: Table, cells: Iterable[str]) -> None:
    """A row of plain text; what would steer the terminal or is markup is neither."""
    from rich.text import Text

    table.add_row(*(Text(_plain(cell)) for cell in cells))


def new_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console whose `print` takes text as it is: no markup, no emoji, one line each."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def print(self, *objects: Any, **kwargs: Any) -> None:
            super().print(*(Text(_plain(o)) if isinstance(o, str) else o for o in objects), **kwargs)

    return Plain(stderr=stderr, highlight=False, markup=False, emoji=False, **options)


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


def log_to_screen(level: int, form: str = "%(message)s") -> None:
    """Show the log on standard error from a level on; what is there already stays.

    Args:
        form: As `logging.Formatter` takes it.
    """
    from ..dicom.names import OneLine

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(form))
    logging.basicConfig(level=level, handlers=[handler])


def guard_log() -> None:
    """Make `printable` what libraries and we log where nobody has said where to: Python shows warnings."""
    from ..dicom.names import OneLine

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine("%(message)s"))


class Parser(argparse.ArgumentParser):
    """A parser whose errors, which repeat what was typed or what a pattern matched, are `printable`.

    Attributes:
        more: Makes what stands below its help, and is asked only when that is shown.
    """

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        """The help."""
        if self.more is not None:
            self.epilog = self.more()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        super().error(_plain(message))
