"""`deepcac2 dashboard`: a web page over the results of a run."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from .screen import note


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "dashboard",
        help="look at results in a browser",
        description="Serve a page over the results of a run: table, filters, charts, each case, SQL. Only "
        "this machine reaches it unless --host says otherwise; then the environment has to hold a token, "
        "DEEPCAC2_TOKEN, of at least 16 characters. Nothing is loaded from elsewhere, and the results are "
        "only read. With --review persons correct and sign them; that is written into a folder of its own.",
    )
    parser.add_argument(
        "results",
        metavar="RESULTS",
        type=Path,
        nargs="?",
        help="output folder of 'deepcac2 run'; left out: scans without results, to be annotated "
        "(--ct and --review)",
    )
    parser.add_argument("--ct", metavar="FOLDER", type=Path, help="the CT, for slices and viewer")
    parser.add_argument(
        "--review",
        metavar="FOLDER",
        type=Path,
        help="read and correct cases, and sign; all of it is written into this folder",
    )
    parser.add_argument(
        "--clinical", metavar="CSV", type=Path, help="table with one row a patient: columns and filters more"
    )
    parser.add_argument(
        "--patient",
        metavar="COLUMN",
        default="patient_id",
        help="PatientID in the clinical table (default: patient_id)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument(
        "--port", type=_port, default=8000, help="port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="further host name by which it is reached, such as a proxy's (repeatable)",
    )
    parser.add_argument(
        "--show-phi", action="store_true", help="show names and other columns that say who somebody is"
    )
    parser.set_defaults(run=run)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("a number from 0 to 65535")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from contextlib import ExitStack

    from ..dashboard.app import create_app
    from ..dashboard.scans import table_of_scans
    from ..dashboard.security import TOKEN_VARIABLE, check_address
    from ..dashboard.server import counted_log, make_server

    access = check_address(args.host, token=os.environ.get(TOKEN_VARIABLE, ""), names=args.name)
    with _listen(args.host, args.port) as listening, ExitStack() as scratch:
        results = args.results
        if results is None:
            _check_scans(args)
            results = scratch.enter_context(table_of_scans(args.ct))
        app = create_app(
            results,
            ct=args.ct,
            clinical=args.clinical,
            patient=args.patient,
            show_phi=args.show_phi,
            access=access,
            readings=args.review,
        )
        server = make_server(app)
        listening.listen(server.config.backlog)  # who reads the address may ask at once
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        token = f"?token=${TOKEN_VARIABLE}" if access.token else ""
        note(f"dashboard: http://{shown}:{port}/{token}  (Ctrl-C ends it)")
        if access.any_address:
            note("note: not encrypted; put a server with TLS before it on a network you share")
        try:
            with counted_log():
                server.run(sockets=[listening])
        except KeyboardInterrupt:
            note("")
    return 0


def _check_scans(args: argparse.Namespace) -> None:
    """See that scans without results come with what annotating them needs."""
    from ..errors import InputError

    if args.ct is None or args.review is None:
        raise InputError(
            "give RESULTS, the output folder of 'deepcac2 run'; or, to annotate scans without results, "
            "--ct FOLDER and --review FOLDER"
        )


def _listen(host: str, port: int) -> socket.socket:
    """The socket, bound, so that a port in use is told before anything is read."""
    from ..errors import InputError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; give another --host or --port"
        ) from error
    return listening
