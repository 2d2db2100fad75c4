"""`deepcac2 release`: build, verify and compare releases."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .push import add_deidentify, key_of
from .screen import counter, note, say, say_json

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "release",
        help="build, verify and compare releases of results",
        description="A release is zip files with the DICOM SEG and the report of each scored series.",
    )
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)

    build = actions.add_parser(
        "build",
        help="make a release of a run",
        description="Write SEG and report of every scored series of a run into zip files, with table, data "
        "dictionary, README and a manifest with checksums. The same run gives the same bytes. A run that is "
        "not finished is refused.",
    )
    build.add_argument("results", metavar="RESULTS", type=Path, help="output folder of 'deepcac2 run'")
    build.add_argument("out", metavar="OUT.zip", type=Path, help="zip file to write")
    build.add_argument(
        "--part-size", metavar="SIZE", type=_size, help="begin another file after so much, such as 20GB"
    )
    build.add_argument(
        "--unfinished",
        action="store_true",
        help="make one of a run that is not finished too; README and manifest say what is missing",
    )
    add_deidentify(build)
    build.set_defaults(run=run_build)

    verify = actions.add_parser(
        "verify",
        help="check a release",
        description="Check structure, checksums, reports and segmentations of a release. With the CT, "
        "compute each score under every scoring rule and say which rule made the stored ones. Exit code 1 "
        "where something differs.",
    )
    verify.add_argument(
        "release", metavar="ZIP", type=Path, nargs="+", help="its zip files, or a run's folder"
    )
    verify.add_argument("--ct", metavar="FOLDER", type=Path, help="the CT series")
    verify.add_argument("--json", action="store_true", help="print everything as JSON")
    verify.set_defaults(run=run_verify)

    compare = actions.add_parser(
        "compare",
        help="compare two releases",
        description="Dice of each segment, agreement of the scores, and the series that differ most. Each is "
        "a zip file or the output folder of a run.",
    )
    compare.add_argument("first", metavar="A", type=Path)
    compare.add_argument("second", metavar="B", type=Path)
    compare.add_argument("--most", metavar="N", type=int, default=20, help="series to list (default: 20)")
    compare.add_argument(
        "--facts",
        metavar="TABLE",
        type=Path,
        help="table of a run or of 'cohort select': compare by kernel, maker and thickness, too",
    )
    compare.add_argument(
        "--worklist", metavar="CSV", type=Path, help="write the series that differ most, to be looked at"
    )
    compare.add_argument(
        "--worst", metavar="N", type=int, default=100, help="series in the work list (default: 100)"
    )
    compare.add_argument("--json", action="store_true", help="print everything as JSON")
    compare.set_defaults(run=run_compare)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError("a size such as 500MB or 20GB")
    return int(float(match[1]) * _UNITS[match[2]])


def run_build(args: argparse.Namespace) -> int:
    """Build a release."""
    from ..release.build import build_release

    key, deidentify = key_of(args), None
    if key is not None:
        from ..pipeline.hand_over import deidentifier

        deidentify = deidentifier(key)
    built = build_release(
        args.results,
        args.out,
        part_bytes=args.part_size,
        unfinished=args.unfinished,
        deidentify=deidentify,
    )
    say(f"{built.series} series of {built.rows} in the table, {built.bytes / 1e6:.1f} MB unpacked")
    if built.missing != 0:
        missing = "it is not known which" if built.missing is None else f"{built.missing}"
        note(f"not of a finished run: {missing} of the selected series are missing")
    for part in built.parts:
        say(f"{part}  {part.stat().st_size / 1e6:.1f} MB")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Verify a release; 1 where something differs."""
    from ..release.build import Release
    from ..release.verify import summary, to_dict, verify

    with Release(*args.release) as release:
        found = verify(release, ct=args.ct, watch=counter("series"))
    if args.json:
        say_json(to_dict(found))
    else:
        say(*summary(found))
    return 1 if found.problems else 0


def run_compare(args: argparse.Namespace) -> int:
    """Compare two releases."""
    from ..release.build import Release
    from ..release.compare import SEGMENTS, compare, to_dict
    from ..release.strata import read_facts, strata, worst, write_worklist
    from ..reporting.statistics import agreement_rows, summary_lines

    with Release(args.first) as first, Release(args.second) as second:
        found = compare(first, second, watch=counter("series"))
    facts = {} if args.facts is None else read_facts(args.facts)
    kinds = strata(found, facts)
    if args.worklist is not None:
        write_worklist(args.worklist, worst(found, args.worst), facts)
    if args.json:
        say_json({**to_dict(found), "strata": [vars(s) for s in kinds]})
        return 0
    lines = [
        f"{len(found.pairs)} series in both, {len(found.only_first)} only in {args.first}, "
        f"{len(found.only_second)} only in {args.second}"
    ]
    for segment in SEGMENTS:
        mean, n = found.mean_dice(segment)
        lines.append(f"Dice of {segment}: " + ("–" if mean is None else f"{mean:.4f}") + f" (mean of {n})")
    if found.scores is not None:
        lines += summary_lines(agreement_rows(found.scores))
    for s in kinds:
        if args.facts is None and s.by != "group":
            continue
        agreed = "–" if s.kappa is None else f"{s.kappa:.3f}"
        lines.append(
            f"  {s.by} {s.value}: {s.n} series, mean difference {s.mean_difference:+.1f}, median size "
            f"{s.median_absolute:.1f}, same group {s.same_group:.1%}, linear kappa {agreed}"
        )
    differ = [
        p for p in found.pairs if p.difference or p.note or any(d not in (None, 1.0) for d in p.dice.values())
    ]
    lines.append(f"{len(differ)} series differ")
    for p in differ[: args.most]:
        dice = ", ".join(f"{s} {'–' if d is None else f'{d:.3f}'}" for s, d in p.dice.items())
        scores = " and ".join("none" if s is None else f"{s:.1f}" for s in (p.first, p.second))
        lines.append(f"  {p.place}: score {scores}; Dice {dice}" + (f"; {p.note}" if p.note else ""))
    if args.worklist is not None:
        lines.append(f"work list: {args.worklist}")
    say(*lines)
    return 0
