"""Write the reference of the command line, from the commands' own help, to standard output (`make docs`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

WIDTH = 100


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and, below it, the parsers of its commands, in the order in which they are listed."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def main() -> int:
    os.environ.update(COLUMNS=str(WIDTH), NO_COLOR="1")
    from deepcac2.cli.main import build_parser

    sys.stdout.write("# The command line\n\nWritten by `make docs` from `--help`; do not edit by hand.\n")
    for parser in parsers(build_parser()):
        sys.stdout.write(f"\n## `{parser.prog}`\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
