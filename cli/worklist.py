"""`deepcac2 worklist`: works off the workitems of a UPS-RS service."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .pull import add_insecure, add_limits
from .push import add_patience
from .run import add_work, duration, job_of, kinds_to_keep, log_file, quiet_libraries
from .screen import Parser, note, say
from .serve import stoppable

if TYPE_CHECKING:
    from ..delivery.worklist import Services


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "worklist",
        help="work off a worklist: claim, fetch, score, store, say so",
        description="Claim workitems of a worklist (UPS-RS), one at a time, fetch the CT that each names "
        "(WADO-RS), score it into RESULTS as 'deepcac2 run' does, store the results (STOW-RS), and complete "
        "the workitem, or cancel it with the reason. Killed at any moment, the same command goes on with "
        "what it has claimed (docs/worklist.md).",
    )
    parser.add_argument("inputs", metavar="IN", type=Path, help="folder of the worker's own for images")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder for the results")
    parser.add_argument(
        "--dicomweb",
        metavar="URL",
        required=True,
        help="DICOMweb root of the archive: images come from there and results go there",
    )
    parser.add_argument(
        "--worklist", metavar="URL", help="DICOMweb root of the worklist (default: that of --dicomweb)"
    )
    parser.add_argument(
        "--query",
        metavar="KEYWORD=VALUE",
        action="append",
        default=[],
        help="which workitems are ours, such as ScheduledWorkitemCodeSequence.CodeValue=CAC, "
        "ScheduledStationNameCodeSequence.CodeValue=DEEPCAC2 or WorklistLabel=CAC; repeatable, all must "
        "match",
    )
    parser.add_argument(
        "--every",
        type=duration,
        metavar="TIME",
        help="do not end when there is nothing to do, but ask again after so long, as 30s or 5m",
    )
    parser.add_argument(
        "--station",
        metavar="NAME",
        default="DEEPCAC2",
        help="what we call ourselves as the performing station (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-ct", action="store_true", help="leave the images in IN/ct when their workitem has ended"
    )
    parser.add_argument(
        "--abandon", action="store_true", help="cancel what is claimed and not done, and do nothing else"
    )
    add_work(parser, "--stage-timeout")
    add_limits(parser)
    add_insecure(parser)
    add_patience(parser, "a request")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and the summary line")
    assert isinstance(parser, Parser)
    parser.more = kinds_to_keep
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every workitem was completed, or canceled for scans that a gate refuses; else 1.

    With ``--every`` and ``--abandon`` it is 0.
    """
    from ..batch.run import Means, find_devices
    from ..delivery.node import check_places
    from ..delivery.pulling import PullLimits
    from ..delivery.workitems import Choice
    from ..delivery.worklist import Performer
    from ..pipeline.places import CSV

    choice = Choice(keys={}) if args.abandon else Choice.parse(args.query)
    check_places(args.inputs, args.results)
    services = _services(args)
    means = Means(devices=find_devices(args.devices), timeout=args.stage_timeout or None)
    job = job_of(args, args.results)
    with quiet_libraries(), log_file(args.results, "worklist") as log_path:
        performer = Performer(
            job,
            args.inputs,
            services,
            choice,
            means=means,
            station=args.station,
            limits=PullLimits(free_gb=args.keep_free, instance_mb=args.most_mb, images=args.most_images),
            retries=args.retries,
            keep_ct=args.keep_ct,
            tell=lambda text: None if args.quiet else note(text),
            log_path=log_path,
        )
        try:
            with stoppable(performer):
                done = performer.abandon() if args.abandon else performer.run(args.every)
        finally:
            for service in (services.worklist, services.source, services.archive):
                service.close()
    say(
        f"{done.completed} workitems completed, {done.canceled} canceled, {done.taken} taken by others, "
        f"{done.withdrawn} ended by others, of the list at {services.worklist.name}; table: "
        f"{args.results / CSV}; log: {log_path}"
    )
    return 1 if done.problems and not (args.abandon or args.every) else 0


def _services(args: argparse.Namespace) -> Services:
    """Who is talked to, each with the credentials that are for it.

    Raises:
        InputError: Addresses or environment do not hold what they should.
    """
    from ..delivery.pulling import WebSource
    from ..delivery.sending import DICOMWEB, Credentials, DicomWeb, same_server, tls_context
    from ..delivery.workitems import Worklist
    from ..delivery.worklist import Services

    url = args.worklist or args.dicomweb
    own = args.worklist is not None and not same_server(args.worklist, args.dicomweb)
    variables = "DEEPCAC2_WORKLIST" if own else DICOMWEB
    common: dict[str, Any] = {
        "tls": tls_context(os.environ),
        "timeout": args.timeout or None,
        "insecure": args.insecure,
    }
    archive = {**common, "credentials": Credentials.of(os.environ)}
    return Services(
        worklist=Worklist(
            url, variables=variables, credentials=Credentials.of(os.environ, variables=variables), **common
        ),
        source=WebSource(args.dicomweb, **archive),
        archive=DicomWeb(args.dicomweb, **archive),
    )
