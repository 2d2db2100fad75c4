"""`deepcac2 inspect`: what a folder holds, and what would be rejected and why. Runs nothing."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .screen import add_row, new_console, new_table, note, say_json

if TYPE_CHECKING:
    from rich.console import Console

    from ..dicom import Discovery, Series

PLAIN_WIDTH = 160
"""Columns of the table where the output is no terminal."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "inspect",
        help="list the series in a folder and what would be rejected",
        description="List every DICOM series under IN (folder, DICOM file or zip archive) and say which "
        "would be rejected by their headers, and why. Reads headers only and runs nothing.",
    )
    parser.add_argument("input", metavar="IN", type=Path, nargs="?", help="folder, DICOM file or zip archive")
    parser.add_argument("--json", action="store_true", help="print JSON: one entry per series")
    parser.add_argument(
        "--allow",
        metavar="CODE",
        action="append",
        default=[],
        help="go on where this quality gate would reject; repeatable",
    )
    parser.add_argument(
        "--index",
        type=Path,
        metavar="FILE",
        help="write a Parquet table, one row a series, for 'cohort select'",
    )
    parser.add_argument("--gates", action="store_true", help="list all quality gates and leave")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what was found. Rejected series are an answer, not an error: the exit code is 0.

    Raises:
        InputError: No IN, an unknown gate, or nothing to be found in IN.
    """
    console = new_console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    if args.gates:
        if args.json:
            say_json(gates_to_list())
        else:
            _print_gates(console)
        return 0
    if args.input is None:
        raise InputError(
            "give the folder to look into: deepcac2 inspect IN (or --gates for the list of gates)"
        )

    from ..dicom import discover

    discovery = discover(args.input, allow=args.allow)
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
        "modality": series.modality,
        "series_description": series.series_description,
        "study_date": series.study_date,
        "manufacturer": series.manufacturer,
        "model_name": series.model_name,
        "kernel": series.kernel,
        "kvp": series.kvp,
        "images": len(series.slices),
        "left_out": len(series.left_out),
        "rows": first.rows,
        "columns": first.columns,
        "pixel_spacing": first.pixel_spacing,
        "slice_thickness": series.slice_thickness,
        "increment": series.increment,
    }


def gates_to_list() -> list[dict[str, Any]]:
    """Every gate as a dictionary, in the order in which they are reported."""
    from ..dicom import GATES
    from ..pipeline.step import steps

    steps()  # those of other packages may bring gates
    return [
        {"code": g.code, "sentence": g.sentence, "severity": _severity(g.fatal), "overridable": g.overridable}
        for g in GATES.values()
    ]


def gates_markdown() -> str:
    """The table of docs/gates.md."""
    lines = ["| code | what it means | does | `--allow` |", "| --- | --- | --- | --- |"]
    for gate in gates_to_list():
        allow = "yes" if gate["overridable"] else "no"
        lines.append(f"| `{gate['code']}` | {gate['sentence']} | {gate['severity']} | {allow} |")
    return "\n".join(lines) + "\n"


def _severity(fatal: bool) -> str:
    return "rejects" if fatal else "warns"


def _print_gates(console: Console) -> None:
    table = new_table()
    for title in ("code", "what it means", "does", "--allow"):
        table.add_column(title, no_wrap=title != "what it means")
    for gate in gates_to_list():
        add_row(
            table, (gate["code"], gate["sentence"], gate["severity"], "yes" if gate["overridable"] else "no")
        )
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
