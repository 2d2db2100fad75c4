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
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

from ..system.names import OneLine, printable
from ..system.nearest import nearest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_WIDTH = 160
"""Letters of a line of a table where the output is no terminal."""


def say(*lines: str) -> None:
    """Lines on the standard output, at once."""
    _write(sys.stdout, lines)


def note(*lines: str) -> None:
    """Lines on standard error, at once."""
    _write(sys.stderr, lines)


def _write(stream: IO[str], lines: Iterable[str]) -> None:
    stream.write("".join(f"{printable(line)}\n" for line in lines))
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

    table.add_row(*(Text(printable(cell)) for cell in cells))


def new_console(*, stderr: bool = False, **options: Any) -> Console:
    """A console whose `print` takes text as it is: no markup, no emoji, one line each."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def print(self, *objects: Any, **kwargs: Any) -> None:
            super().print(*(Text(printable(o)) if isinstance(o, str) else o for o in objects), **kwargs)

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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(form))
    logging.basicConfig(level=level, handlers=[handler])


def guard_log() -> None:
    """Make `printable` what libraries and we log where nobody has said where to: Python shows warnings."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine("%(message)s"))


class Parser(argparse.ArgumentParser):
    """A parser whose errors, which repeat what was typed or what a pattern matched, are `printable`.

    A command that needs an action and is given nothing shows its help; a command, action, option or choice
    that there is not is answered with the nearest that there is.

    Attributes:
        more: Makes what stands below its help, and is asked only when that is shown.
    """

    more: Callable[[], str] | None = None

    def format_help(self) -> str:
        """The help."""
        if self.more is not None:
            self.epilog = self.more()
        return super().format_help()

    _given: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse.ArgumentParser.parse_args`; what is left over is an error of the action asked for."""
        found, left = self.parse_known_args(args, namespace)
        if left:
            self._asked().error(f"unrecognized arguments: {' '.join(left)}")
        return found

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse.ArgumentParser.parse_known_args`."""
        self._given = tuple(sys.argv[1:] if args is None else args)
        if not self._given and self._below():
            _write(sys.stderr, self.format_help().splitlines())
            self.exit(2)
        return super().parse_known_args(args, namespace)

    def _below(self) -> dict[str, Parser]:
        """The parsers of its commands or actions, by name."""
        found = (a.choices for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return {name: parser for choices in found for name, parser in choices.items()}

    def _asked(self) -> Parser:
        """The parser of the command and action that were given."""
        below = self._below()
        name = next((given for given in self._given if given in below), None)
        return self if name is None else below[name]._asked()

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            hint = nearest(str(value), map(str, action.choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}.{hint}")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, with the nearest option to each that there is not, and end."""
        options = [o for o in self._option_string_actions if o.startswith("--")]
        for given in dict.fromkeys(word.partition("=")[0] for word in self._given):
            if given.startswith("--") and given != "--" and not any(o.startswith(given) for o in options):
                message = f"{message.removesuffix('.')}. There is no {given}.{nearest(given, options)}"
        super().error(printable(message))
