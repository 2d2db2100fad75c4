"""`deepcac2 push`: results, and their CT, to a PACS."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .run import count, duration, log_file, quiet_libraries
from .screen import counter, note, say

if TYPE_CHECKING:
    from ..delivery.push import Problem
    from ..delivery.sending import Destination


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "push",
        help="send results to a PACS",
        description="Send the DICOM files that a run wrote for its scored series, over DICOMweb (STOW-RS) or "
        "DIMSE (C-STORE). What the other side has acknowledged is noted: the same command again sends only "
        "what is missing or has changed. Credentials come from the environment alone (docs/pacs.md).",
    )
    parser.add_argument("results", metavar="RESULTS", type=Path, help="output folder of deepcac2 run")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--dicomweb", metavar="URL", help="DICOMweb root, for example https://pacs.example.org/dicom-web"
    )
    where.add_argument(
        "--dimse", metavar="AET@HOST:PORT", help="storage SCP, for example ARCHIVE@pacs.example.org:104"
    )
    parser.add_argument(
        "--ct", type=Path, metavar="FOLDER", help="send the CT of these series too, first; also a zip archive"
    )
    parser.add_argument(
        "--only",
        type=Path,
        metavar="TABLE",
        help="send the series of this table only (as deepcac2 run --only)",
    )
    add_deidentify(parser)
    parser.add_argument("--again", action="store_true", help="send everything, also what was sent before")
    parser.add_argument(
        "--calling-aet",
        default="DEEPCAC2",
        metavar="AET",
        help="own AE title, with --dimse (default: %(default)s)",
    )
    parser.add_argument("--tls", action="store_true", help="encrypt, with --dimse; --dicomweb: an https URL")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="with --dicomweb, send credentials over plain http to another machine too",
    )
    add_patience(parser, "an instance")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and the summary line")
    parser.set_defaults(run=run, goes_on=True)


def add_patience(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--timeout`` and ``--retries``, by which `what` is tried again."""
    parser.add_argument(
        "--timeout",
        type=duration,
        default=duration("60s"),
        metavar="TIME",
        help="longest wait for a connection and for each answer, as 90s or 10m; 0: any (default: 60s)",
    )
    parser.add_argument(
        "--retries",
        type=count,
        default=5,
        metavar="N",
        help=f"how often {what} is tried again when the connection was lost, with growing waits "
        "(default: %(default)s)",
    )


def add_deidentify(parser: argparse.ArgumentParser) -> None:
    """Add ``--deidentify``."""
    parser.add_argument(
        "--deidentify",
        type=Path,
        metavar="KEY",
        help="hand over without patients: new UIDs and PatientIDs that follow from the secret in the file "
        "KEY, which is made where there is none, and nothing else that names anybody (docs/deidentify.md)",
    )


def key_of(args: argparse.Namespace) -> bytes | None:
    """The key that ``--deidentify`` names; None without it.

    Raises:
        InputError: It is none, or would lie among the results.
    """
    from ..system.secret import secret_key

    if args.deidentify is None:
        return None
    key, made = secret_key(args.deidentify, apart_from=args.results)
    if made:
        note(f"made a new key, {args.deidentify}: keep it, and keep it secret; without it names differ")
    return key


_SHOWN = 20
"""Instances that were not sent, shown on the screen at most; the log holds all."""


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when everything asked for is there, 1 when something was not taken."""
    from ..delivery.preparing import prepared_with
    from ..delivery.push import push
    from ..errors import InputError
    from ..stats.tables import selected_series

    if not args.results.is_dir():
        raise InputError(f"{args.results} is no folder; give the output folder of 'deepcac2 run'")
    problems: list[Problem] = []

    def tell(problem: Problem) -> None:
        if len(problems) < _SHOWN:
            problems.append(problem)

    only = None if args.only is None else selected_series(args.only)
    destination, key = _destination(args), key_of(args)
    with quiet_libraries(), log_file(args.results, "push") as log_path:
        try:
            summary = push(
                args.results,
                destination,
                ct=args.ct,
                only=only,
                again=args.again,
                retries=args.retries,
                preparation=prepared_with(key),
                watch=(lambda done, total: None) if args.quiet else counter("series"),
                tell=tell,
            )
        finally:
            destination.close()
    for problem in problems:
        what = f"instance {problem.instance_uid}" if problem.instance_uid else f"series {problem.series_uid}"
        note(f"{what}: {problem.reason}")
    if summary.problems > len(problems):
        note(f"and {summary.problems - len(problems)} more in the log")
    if summary.not_scored:
        note(f"{summary.not_scored} series of --only are not scored in {args.results}")
    if summary.left_out:
        note(f"{summary.left_out} pages and pictures left out: they show the patient's data")
    say(
        f"{summary.sent} sent, {summary.present} already there, {summary.problems} not sent, of "
        f"{summary.series} series to {destination.name}; log: {log_path}"
    )
    return 1 if summary.problems else 0


def _destination(args: argparse.Namespace) -> Destination:
    """The other side, with what the environment says of it.

    Raises:
        InputError: Address, options or environment do not go together.
    """
    from ..delivery.sending import Credentials, DicomWeb, Dimse, tls_context
    from ..errors import InputError

    timeout = args.timeout or None
    if args.dicomweb is not None:
        if args.tls:
            raise InputError("--tls belongs to --dimse; with --dicomweb give an https URL")
        return DicomWeb(
            args.dicomweb,
            credentials=Credentials.of(os.environ),
            tls=tls_context(os.environ),
            timeout=timeout,
            insecure=args.insecure,
        )
    if args.insecure:
        raise InputError("--insecure belongs to --dicomweb; DIMSE has no credentials to protect")
    tls = tls_context(os.environ) if args.tls else None
    return Dimse(args.dimse, calling=args.calling_aet, tls=tls, timeout=timeout)
