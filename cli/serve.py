"""`deepcac2 serve`: a DICOM node that scores what is sent to it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .run import add_work, count, in_words, job_of, kinds_to_keep, log_file, on_signals, quiet_libraries
from .screen import Parser, note, say

if TYPE_CHECKING:
    from ..delivery.node import Node
    from ..delivery.worklist import Performer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "serve",
        help="score what other systems send, and send the results on",
        description="Listen for CT over DICOM (C-STORE), score each series when all of it is there, keep the "
        "results as 'deepcac2 run' does, and send them to other systems. INBOX holds what is received. Only "
        "this machine may send until the configuration names others. Killed at any moment, the same command "
        "goes on (docs/node.md).",
    )
    parser.add_argument("inbox", metavar="INBOX", type=Path, help="folder for what is received")
    parser.add_argument("results", metavar="RESULTS", type=Path, help="folder for the results")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML: who may send, limits, destinations (docs/node.md; default: this machine alone, none)",
    )
    parser.add_argument(
        "--port", type=count, metavar="N", help="port to listen at (default: the file's, 11112)"
    )
    add_work(parser)
    parser.add_argument("--prefetch", type=count, metavar="N", help="as for 'deepcac2 run'")
    parser.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="SERIES",
        help="do not listen, but remove the images of this series from INBOX, so that it can be sent anew; "
        "repeatable",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    assert isinstance(parser, Parser)
    parser.more = kinds_to_keep
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when it was told to stop."""
    from dataclasses import replace

    from ..batch.run import Means, find_devices
    from ..delivery.node import Node, check_places, load_config

    check_places(args.inbox, args.results)
    config = load_config(args.config)
    if args.forget:
        return _forget(args)
    if args.port is not None:
        config = replace(config, listen=replace(config.listen, port=args.port))
    job = job_of(args, args.results)
    means = Means(devices=find_devices(args.devices), prefetch=args.prefetch, timeout=args.timeout or None)

    def tell(text: str) -> None:
        if not args.quiet:
            note(text)

    with quiet_libraries(), log_file(args.results, "serve") as log_path:
        node = Node(
            job,
            args.inbox,
            config,
            means=means,
            environment=os.environ,
            watch=lambda row: tell(in_words(row)),
            ready=tell,
            log_path=log_path,
        )
        with stoppable(node):
            node.run()
    return 0


def _forget(args: argparse.Namespace) -> int:
    """Exit code 0 when every series was there."""
    from ..delivery.inbox import Inbox

    inbox = Inbox(args.inbox)
    try:
        unknown = [uid for uid in args.forget if not inbox.forget(uid)]
    finally:
        inbox.close()
    for uid in unknown:
        note(f"{uid}: there is no such series in {args.inbox}")
    say(f"{len(args.forget) - len(unknown)} series forgotten; they can be sent anew")
    return 1 if unknown else 0


@contextmanager
def stoppable(worker: Node | Performer) -> Iterator[None]:
    """SIGINT and SIGTERM let what is being computed finish; the second one ends it."""

    def stop(number: int, frame: object) -> None:
        if worker.stopping:
            raise KeyboardInterrupt
        worker.stop()
        note("stopping: what is being computed is finished first; once more to end at once")

    with on_signals(stop):
        yield
