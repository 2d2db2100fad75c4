"""`deepcac2 cohort`: select series by a published rule."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .run import add_work, ended, job_of, kinds_to_keep, watched
from .screen import Parser, note, say


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "cohort",
        help="select the series of a cohort",
        description="Select series by a published rule. First: deepcac2 inspect IN --index FILE",
    )
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)
    select = actions.add_parser(
        "select",
        help="judge every series of a header index, or of a collection of the Imaging Data Commons",
        description="Write a table of all series: selected or not, and why not.",
    )
    select.add_argument(
        "index",
        metavar="INDEX",
        type=Path,
        nargs="?",
        help="file of 'deepcac2 inspect IN --index FILE'; leave it out with --idc",
    )
    select.add_argument(
        "--idc",
        type=Path,
        nargs="?",
        const=Path(),
        metavar="FOLDER",
        help="judge a collection by the tables of the Imaging Data Commons: FOLDER with idc_index.parquet "
        "and, where they are there, ct_index.parquet and volume_geometry_index.parquet; without FOLDER what "
        "the package idc-index-data holds",
    )
    select.add_argument(
        "--collection", default="nlst", metavar="NAME", help="with --idc (default: %(default)s)"
    )
    select.add_argument("-o", "--output", metavar="CSV", type=Path, required=True, help="table to write")
    select.add_argument(
        "--rule", default="deepcac2", help="deepcac2, survival or deepcac-v1 (default: deepcac2)"
    )
    select.set_defaults(run=run_select)
    download = actions.add_parser(
        "download",
        help="fetch selected series from the Imaging Data Commons",
        description="Download the series that a table selects (needs the internet and idc-index). "
        "What is there whole, by number of files, bytes and sum, is not fetched again. With --score each "
        "series is scored as 'deepcac2 run' does while others come, and its images are removed then.",
    )
    download.add_argument(
        "table", metavar="TABLE", type=Path, help="table of 'cohort select' or 'cohort query'"
    )
    download.add_argument("folder", metavar="FOLDER", type=Path)
    download.add_argument(
        "--idc", type=Path, metavar="FOLDER", help="with idc_index.parquet (default: that of idc-index-data)"
    )
    download.add_argument(
        "--verify",
        action="store_true",
        help="read what is there, too, and fetch again what has changed since it was downloaded",
    )
    download.add_argument(
        "--score",
        type=Path,
        metavar="RESULTS",
        help="score the series into this folder, and remove from FOLDER what has its row",
    )
    download.add_argument(
        "--room",
        type=float,
        default=50.0,
        metavar="GB",
        help="with --score, what the images may take on the disk together (default: %(default)g)",
    )
    add_work(download)
    download.add_argument("--quiet", action="store_true", help="with --score, as for 'deepcac2 run'")
    assert isinstance(download, Parser)
    download.more = kinds_to_keep
    download.set_defaults(run=run_download, goes_on=True)
    query = actions.add_parser(
        "query",
        help="make the paper's selection in BigQuery",
        description="Run cohort/nlst.sql on the tables of the Imaging Data Commons (needs the internet, the "
        "package google-cloud-bigquery and an account that pays for the query).",
    )
    query.add_argument("-o", "--output", metavar="CSV", type=Path, required=True, help="table to write")
    query.set_defaults(run=run_query)
    rules = actions.add_parser(
        "rules", help="show the rules", description="Show the rules and their criteria."
    )
    rules.set_defaults(run=run_rules)


def run_select(args: argparse.Namespace) -> int:
    """Select, and say how many were left out by what."""
    from ..cohort.idc import find_tables
    from ..cohort.selection import RULES, select, select_idc
    from ..errors import InputError

    if args.rule not in RULES:
        raise InputError(f"there is no rule {args.rule!r}; there are {', '.join(RULES)}")
    if (args.index is None) == (args.idc is None):
        raise InputError("give a header index, or --idc")
    rule = RULES[args.rule]
    if args.idc is None:
        found, source = select(args.index, rule, args.output), str(args.index)
    else:
        tables = find_tables(None if args.idc == Path() else args.idc)
        found = select_idc(tables, rule, args.output, collection=args.collection)
        source = f"the collection {args.collection} in {tables.main}"
    lines = [f"{found.series} series of {found.everybody} persons in {source}"]
    for code, n in found.reasons.items():
        series, persons = found.left[code]
        lines.append(f"  − {n}: {code} (left: {series} of {persons})")
    lines.append(f"  = {found.selected} selected, of {found.persons} persons: {args.output}")
    lines += [f"  not asked, as no table here says it: {c.code} ({c.sentence})" for c in found.unjudged]
    say(*lines)
    return 0


def run_download(args: argparse.Namespace) -> int:
    """Download what a table selects."""
    from ..cohort.download import download
    from ..cohort.idc import find_tables
    from ..stats.tables import selected_series

    uids = sorted(selected_series(args.table))
    if args.score is not None:
        return _score(args, uids)
    asked = download(
        uids,
        args.folder,
        tables=find_tables(args.idc),
        verify=args.verify,
        watch=lambda n, total: say(f"{n} of {total} series"),
    )
    say(f"{len(uids)} series, {asked} of them fetched now: {args.folder}")
    return 0


def _score(args: argparse.Namespace, uids: Sequence[str]) -> int:
    """Download and score; exit codes as of 'deepcac2 run', and 1 where a series did not come whole."""
    from ..batch.run import Means, Progress, find_devices, run_arriving
    from ..cohort.arriving import Arriving
    from ..cohort.download import Store
    from ..cohort.idc import find_tables
    from ..errors import InputError
    from ..pipeline.run import check_folders

    if args.verify:
        raise InputError("--verify and --score: what is scored is not kept; leave one of them out")
    job = job_of(args, args.score)
    store = Store(args.folder, uids, tables=find_tables(args.idc))
    check_folders(args.folder, args.score)
    source = Arriving(store, room=args.room * 1e9, allow=job.allowed)

    def settled(event: Progress) -> None:
        if event.row is not None and not event.skipped:
            source.settled(event.row.series_uid)

    means = Means(devices=find_devices(args.devices, many=True), timeout=args.timeout or None)
    start = partial(run_arriving, [source.named(uid) for uid in uids], source.series, job, means=means)
    summary = watched(start, args.score, "download", quiet=args.quiet, settled=settled)
    if source.broken:
        note(f"{len(source.broken)} series did not come whole; the same command asks for them again")
    return ended(summary, left=len(source.broken))


def run_query(args: argparse.Namespace) -> int:
    """Make the selection in BigQuery."""
    from ..cohort.download import query

    say(f"{query(args.output)} series: {args.output}")
    return 0


def run_rules(args: argparse.Namespace) -> int:
    """Print the rules."""
    from ..cohort.selection import ANOTHER, RULES

    for rule in RULES.values():
        say(f"{rule.name}: {rule.sentence}")
        for c in rule.criteria:
            say(f"  {c.code:20s} {c.sentence}")
        if rule.one_each:
            say(f"  {ANOTHER:20s} one series for each {rule.one_each}: first by {rule.order}")
    return 0
