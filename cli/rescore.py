"""`deepcac2 rescore`: a result corrected piece by piece, without a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .screen import add_row, new_console, new_table, note, say_json

if TYPE_CHECKING:
    from ..review.case import ReadCase
    from ..review.desk import Standing


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "rescore",
        help="correct a result piece by piece",
        description="Score one case of a run again after decisions on its pieces, as the reading desk of the "
        "dashboard does. Pieces are those of the lesion table of its report, and after them whatever else "
        "is as bright in and around the heart; without decisions they are listed. With --out the decisions "
        "go into the reader's journal there and are signed: a new SEG and SR beside the automatic ones.",
    )
    parser.add_argument("results", metavar="RESULTS", type=Path, help="output folder of 'deepcac2 run'")
    parser.add_argument("--ct", metavar="FOLDER", type=Path, required=True, help="the CT of the run")
    parser.add_argument("--case", metavar="UID", required=True, help="SeriesInstanceUID of the CT")
    parser.add_argument("--exclude", metavar="N", action="append", default=[], help="leave out piece N")
    parser.add_argument("--count", metavar="N", action="append", default=[], help="count piece N as coronary")
    parser.add_argument(
        "--unsure", metavar="N", action="append", default=[], help="nobody can say what piece N is"
    )
    parser.add_argument(
        "--artery",
        metavar="N=NAME",
        action="append",
        default=[],
        help="count piece N as calcium of LM, LAD, LCX or RCA",
    )
    parser.add_argument(
        "--kind",
        metavar="N=NAME",
        action="append",
        default=[],
        help="leave out piece N as aorta, aortic valve, mitral annulus, pericardium or other",
    )
    parser.add_argument(
        "--out",
        "--review",
        dest="review",
        metavar="FOLDER",
        type=Path,
        help="folder of readings to write into, the same as the dashboard's --review",
    )
    parser.add_argument("--reader", metavar="NAME", default="", help="who decides; needed with --out")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the score, and sign it where a folder is given."""
    import tempfile

    from ..review.desk import Desk
    from ..review.open import open_case_of_run

    if args.review is not None and not args.reader:
        raise InputError("what is signed names its reader: give --reader NAME with --out FOLDER")
    decisions = _decisions(args)
    case = open_case_of_run(args.results, args.ct, args.case)
    with tempfile.TemporaryDirectory(prefix="deepcac2-rescore-") as scratch:
        folder = args.review or Path(scratch)
        desk = Desk(folder, lambda uid: case, apart=(args.results, args.ct))
        reader = args.reader or "nobody"
        standing = desk.standing(args.case, reader)
        for decision in decisions:
            standing = desk.decide(args.case, reader, decision, after=standing.after)
        written = None
        if args.review is not None:
            standing, signed = desk.sign(args.case, reader, after=standing.after)
            written = signed.folder
        if args.json:
            _print_json(standing, written)
        else:
            _print(case, standing, listed=not decisions)
            if written is not None:
                note(f"written: {written}")
    return 0


def _decisions(args: argparse.Namespace) -> list[Any]:
    """The decisions of a command line, in the order of the options.

    Raises:
        InputError: One names no number, no value, or one of another kind; or a piece twice.
    """
    from ..review.reading import Decision
    from ..review.values import VALUES, value_of

    found: dict[int, Decision] = {}

    def add(text: str, option: str, name: str) -> None:
        if not (text.isdecimal() and len(text) < 9):
            raise InputError(f"--{option} {text}: the number of a piece, as 'deepcac2 rescore' lists them")
        if int(text) in found:
            raise InputError(f"piece {text} is decided twice; decide it once")
        found[int(text)] = Decision(value=VALUES[""] if not name else value_of(name), piece=int(text))

    for option, name in (("exclude", ""), ("count", "coronary"), ("unsure", "unsure")):
        for text in (part.strip() for given in getattr(args, option) for part in given.split(",")):
            add(text, option, name)
    for option, counted in (("artery", True), ("kind", False)):
        for given in getattr(args, option):
            number, equals, name = given.partition("=")
            if not equals or value_of(name).counted is not counted:
                wanted = "5=RCA" if counted else "5=aorta"
                raise InputError(f"--{option} {given}: give a piece and its {option}, such as {wanted}")
            add(number.strip(), option, name)
    return list(found.values())


def _print_json(standing: Standing, written: Path | None) -> None:
    from dataclasses import asdict

    from ..review.reading import by_name, piece_values

    case = standing.case
    named = piece_values(case, standing.array)
    say_json(
        {
            "SeriesInstanceUID": case.series.series_uid,
            "automatic_score": case.automatic,
            **standing.score.to_dict(),
            "lesions": len(standing.score.lesions),
            "by_name": {name: part.score for name, part in by_name(case, standing.array).items()},
            "pieces": [asdict(p) | {"is": name} for p, name in zip(case.pieces, named, strict=True)],
            "written": None if written is None else str(written),
        }
    )


def _print(case: ReadCase, standing: Standing, *, listed: bool) -> None:
    from ..review.reading import piece_values
    from ..review.values import VALUES

    score = standing.score
    console = new_console()
    automatic = "none" if case.automatic is None else f"{case.automatic:.1f}"
    group = f"risk group {int(score.risk_group)} ({score.risk_group.label})"
    console.print(f"automatic {automatic}, after decisions {score.total:.1f}, {group}, rule {score.rule}")
    table = new_table("piece", "is", "counted")
    for name in ("score", "volume mm³", "max HU", "slices"):
        table.add_column(name, justify="right")
    for piece, name in zip(case.pieces, piece_values(case, standing.array), strict=True):
        if not listed and not piece.automatic and not name:
            continue
        first, last = (index + 1 for index in piece.indices)
        cells = (f"{piece.score:.1f}", f"{piece.volume_mm3:.1f}", str(piece.max_hu))
        slices = str(first) if first == last else f"{first}-{last}"
        said = name or "-"
        add_row(table, (str(piece.number), said, "yes" if VALUES[name].counted else "no", *cells, slices))
    console.print(table)
