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
        help="judge every series of a header index",
        description="Write a table of all series of a header index: selected or not, and why not.",
    )
    select.add_argument(
        "index", metavar="INDEX", type=Path, help="file of 'deepcac2 inspect IN --index FILE'"
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
        "What is there already is not fetched again.",
    )
    download.add_argument(
        "table", metavar="TABLE", type=Path, help="table of 'cohort select' or 'cohort query'"
    )
    download.add_argument("folder", metavar="FOLDER", type=Path)
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
    from ..cohort.selection import RULES, select
    from ..errors import InputError

    if args.rule not in RULES:
        raise InputError(f"there is no rule {args.rule!r}; there are {', '.join(RULES)}")
    found = select(args.index, RULES[args.rule], args.output)
    lines = [f"{found.series} series in {args.index}"]
    lines += [f"  − {n}: {code}" for code, n in found.reasons.items()]
    lines.append(f"  = {found.selected} selected, of {found.persons} persons: {args.output}")
    say(*lines)
    return 0


def run_download(args: argparse.Namespace) -> int:
    """Download what a table selects."""
    from ..cohort.download import download
    from ..stats.tables import selected_series

    uids = sorted(selected_series(args.table))
    download(uids, args.folder, watch=lambda n, total: say(f"{n} of {total} series"))
    say(f"{len(uids)} series: {args.folder}")
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
