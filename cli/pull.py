"""`deepcac2 pull`: CT series from a DICOMweb service."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from .push import add_patience
from .run import count, log_file, quiet_libraries
from .screen import counter, note, say


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "pull",
        help="fetch CT series from a PACS",
        description="Ask a DICOMweb service for studies (QIDO-RS) and fetch their CT series (WADO-RS) into "
        "OUT/ct, for 'deepcac2 run'. A series appears there when all of it has come; the same command again "
        "fetches what is missing. Credentials come from the environment alone (docs/pacs.md).",
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the series")
    parser.add_argument(
        "--dicomweb",
        metavar="URL",
        required=True,
        help="DICOMweb root, for example https://pacs.example.org/dicom-web",
    )
    parser.add_argument(
        "--query",
        metavar="KEYWORD=VALUE",
        action="append",
        default=[],
        help="what to fetch: attributes of studies or series, such as StudyDate=20260101-20260131, "
        "ModalitiesInStudy=CT, PatientID=4711, SeriesDescription=*LUNG*; repeatable, all must match",
    )
    add_limits(parser)
    parser.add_argument(
        "--most-studies",
        metavar="N",
        type=count,
        default=1000,
        help="fetch nothing where more studies match (default: %(default)s)",
    )
    add_insecure(parser)
    add_patience(parser, "a request")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and the summary line")
    parser.set_defaults(run=run, goes_on=True)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add ``--keep-free``, ``--most-images`` and ``--most-mb``."""
    parser.add_argument(
        "--keep-free",
        metavar="GB",
        type=amount,
        default=10.0,
        help="stop before the disk has less room than this (default: %(default)g)",
    )
    parser.add_argument(
        "--most-images",
        metavar="N",
        type=count,
        default=5000,
        help="leave out series with more images (default: %(default)s)",
    )
    parser.add_argument(
        "--most-mb",
        metavar="MB",
        type=amount,
        default=512.0,
        help="leave out images that are larger (default: %(default)g)",
    )


def add_insecure(parser: argparse.ArgumentParser) -> None:
    """Add ``--insecure``."""
    parser.add_argument(
        "--insecure", action="store_true", help="send credentials over plain http to another machine too"
    )


def amount(text: str) -> float:
    """An amount of something, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 upwards")
    return value


_SHOWN = 20
"""Series that are not whole, shown on the screen at most; the log holds all."""


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every series that matches is there, 1 when one is not whole."""
    from ..delivery.pulling import WHOLE, PullLimits, Query, WebSource, pull
    from ..delivery.sending import Credentials, tls_context

    query = Query.parse(args.query)
    source = WebSource(
        args.dicomweb,
        credentials=Credentials.of(os.environ),
        tls=tls_context(os.environ),
        timeout=args.timeout or None,
        insecure=args.insecure,
    )
    problems: list[tuple[str, str]] = []
    with quiet_libraries(), log_file(args.output, "pull") as log_path:
        try:
            pulled = pull(
                source,
                query,
                args.output,
                limits=PullLimits(
                    free_gb=args.keep_free,
                    instance_mb=args.most_mb,
                    images=args.most_images,
                    studies=args.most_studies,
                ),
                retries=args.retries,
                tell=lambda uid, reason: problems.append((uid, reason)),
                watch=(lambda done, total: None) if args.quiet else counter("studies"),
            )
        finally:
            source.close()
    for uid, reason in problems[:_SHOWN]:
        note(f"series {uid or 'without a UID'}: {reason}")
    if len(problems) > _SHOWN:
        note(f"and {len(problems) - _SHOWN} more in the log")
    if pulled.grown:
        note(f"{pulled.grown} series have more images than before; 'deepcac2 run --redo' scores them anew")
    say(
        f"{pulled.new} series pulled ({pulled.images} images, {pulled.bytes / 1e6:.1f} MB), {pulled.present} "
        f"already there, {pulled.problems} not whole, of {pulled.studies} studies at {source.name}, into "
        f"{args.output / WHOLE}; log: {log_path}"
    )
    return 1 if pulled.problems else 0
