"""`deepcac2 cohort`: select series by a published rule."""

from __future__ import annotations

import argparse
from pathlib import Path

from .screen import say


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
        "What is there whole, by number of files, bytes and sum, is not fetched again.",
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
    asked = download(
        uids,
        args.folder,
        tables=find_tables(args.idc),
        verify=args.verify,
        watch=lambda n, total: say(f"{n} of {total} series"),
    )
    say(f"{len(uids)} series, {asked} of them fetched now: {args.folder}")
    return 0


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
