"""`deepcac2 inspect`: what a folder holds, and what would be rejected and why. Runs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .registry import LISTS, LONG, cell, lines
from .run import add_patient_from
from .screen import PLAIN_WIDTH, add_row, new_console, new_table, note, say, say_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..dicom import Discovery, Series


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "inspect",
        help="list the series in a folder and what would be rejected",
        description="List every DICOM series, NIfTI and NRRD file under IN (folder, file or zip archive of "
        "DICOM) and say which would be rejected by their headers, and why. Reads headers only and runs "
        "nothing.",
    )
    parser.add_argument("input", metavar="IN", type=Path, nargs="?", help="folder, file or zip archive")
    parser.add_argument("--json", action="store_true", help="print JSON: one entry per series")
    parser.add_argument(
        "--allow",
        metavar="CODE",
        action="append",
        default=[],
        help="go on where this quality gate would reject; repeatable",
    )
    add_patient_from(parser)
    parser.add_argument(
        "--index",
        type=Path,
        metavar="FILE",
        help="write a Parquet table, one row a series, for 'cohort select'",
    )
    lists = parser.add_mutually_exclusive_group()
    for name, (_, what) in LISTS.items():
        lists.add_argument(
            f"--{name}", dest="listed", action="store_const", const=name, help=f"list all {what} and leave"
        )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found. Rejected series are an answer, not an error: the exit code is 0.

    Raises:
        InputError: No IN, an unknown gate, or nothing to be found in IN.
    """
    console = new_console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if args.listed is not None:
        rows = LISTS[args.listed][0]()
        if args.json:
            say_json(rows)
        elif args.listed == "modules":
            say(*lines(rows))
        else:
            _print_list(console, rows)
        return 0
    if args.input is None:
        raise InputError("give the folder to look into: deepcac2 inspect IN (or --gates or another list)")

    from ..pipeline.gates import check_allowed
    from ..pipeline.image_series import find_series

    check_allowed(args.allow)
    discovery = find_series(args.input, allow=args.allow, patient_from=args.patient_from)
    if args.index is not None:
        from ..cohort.index import write_index

        count = write_index(args.index, discovery)
        note(f"{count} series: {args.index}")
        return 0
    if args.json:
        say_json(to_dict(discovery))
    else:
        _print_discovery(console, discovery)
    return 0


def to_dict(discovery: Discovery) -> dict[str, Any]:
    """What ``--json`` prints: ``series``, ``unreadable`` files and how many others were ``ignored``."""
    from ..dicom import readable

    return {
        "series": [_series_to_dict(s) for s in discovery.series],
        "unreadable": [
            {"path": readable(u.path), "member": u.member, "reason": u.reason} for u in discovery.unreadable
        ],
        "ignored": discovery.ignored,
    }


_HEADER = ("modality", "series_description", "study_date", "manufacturer", "model_name", "kernel", "kvp")


def _series_to_dict(series: Series) -> dict[str, Any]:
    from ..dicom import readable

    first = series.slices[0]
    rejection = series.rejection
    return {
        "patient_id": series.patient_id,
        "study_uid": series.study_uid,
        "series_uid": series.series_uid,
        "folder": readable(first.path.parent),
        "verdict": "rejected" if rejection else "accepted",
        "reason": rejection.code if rejection else None,
        "findings": [{"code": f.code, "message": f.message, "fatal": f.fatal} for f in series.findings],
        **{name: getattr(series, name) for name in _HEADER},
        "images": len(series.slices),
        "left_out": len(series.left_out),
        "rows": first.rows,
        "columns": first.columns,
        "pixel_spacing": first.pixel_spacing,
        "slice_thickness": series.slice_thickness,
        "increment": series.increment,
    }


def _print_list(console: Console, rows: list[dict[str, Any]]) -> None:
    table = new_table()
    for title in rows[0]:
        table.add_column(title, no_wrap=title not in LONG)
    for row in rows:
        add_row(table, map(cell, row.values()))
    console.print(table)


def _print_discovery(console: Console, discovery: Discovery) -> None:
    from rich.text import Text

    from ..dicom import printable, readable

    table = new_table()
    table.add_column("patient", overflow="fold")
    table.add_column("series", overflow="fold")
    table.add_column("images", justify="right")
    table.add_column("mm", justify="right")
    table.add_column("verdict", overflow="fold", ratio=1)
    for series in discovery.series:
        verdict = Text("rejected" if series.rejection else "accepted", "red" if series.rejection else "green")
        for finding in series.findings:
            style = "red" if finding.fatal else "yellow"
            verdict.append(f"\n{finding.code}: ", style).append(printable(finding.message), "default")
        name = printable(series.series_description or series.modality)
        table.add_row(
            Text(printable(series.patient_id)),
            Text(f"{name}\n").append(printable(series.series_uid), "dim"),
            str(len(series.slices)),
            "" if series.increment is None else f"{series.increment:.2f}",
            verdict,
        )
    console.print(table)
    for unreadable in discovery.unreadable:
        where = readable(unreadable.path) + (f" ({unreadable.member})" if unreadable.member else "")
        console.print(
            Text("unreadable: ", "red").append(printable(f"{where}: {unreadable.reason}"), "default")
        )
    rejected = sum(s.rejection is not None for s in discovery.series)
    console.print(
        f"{len(discovery.series) - rejected} series accepted, {rejected} rejected, "
        f"{len(discovery.unreadable)} files unreadable, {discovery.ignored} other files ignored"
    )
