"""`deepcac2`: argument parsing, logging, and the one place where errors become text and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .. import __version__
from ..errors import DeepCACError
from . import (
    cohort,
    compare,
    dashboard,
    evaluate,
    inspect,
    pull,
    push,
    release,
    rescore,
    run,
    score,
    serve,
    simulate,
    stats,
    train,
    weights,
    worklist,
)
from .screen import Parser, guard_log, note

COMMANDS = (
    run,
    inspect,
    score,
    rescore,
    dashboard,
    pull,
    push,
    serve,
    worklist,
    simulate,
    train,
    evaluate,
    compare,
    cohort,
    release,
    stats,
    weights,
)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands; each command is one module of this package."""
    parser: argparse.ArgumentParser = Parser(
        prog="deepcac2",
        description="Coronary calcium from chest CT: Agatston score, risk group, DICOM SEG and report.",
        epilog="Research use only. Not a medical device. Exit codes: see docs/errors.md.",
    )
    parser.add_argument("--version", action="version", version=f"deepcac2 {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `errors`).

    A command that goes on where it was interrupted says so by ``goes_on`` among its parser's defaults.
    """
    args = build_parser().parse_args(argv)
    guard_log()
    try:
        code: int = args.run(args)
    except DeepCACError as error:
        note(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        goes_on = getattr(args, "goes_on", False)
        note(f"interrupted{'; the same command goes on where this one stopped' * goes_on}")
        return 130
    except BrokenPipeError:
        return 0
    return code
