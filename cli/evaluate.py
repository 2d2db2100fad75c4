"""`deepcac2 evaluate`: a run's results against known truth."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compare results with the truth of simulated patients",
        description="Compare the output of 'run' with the truth that 'simulate' wrote: Dice of heart and "
        "calcium, rank correlation of the scores, agreement of the risk groups.",
    )
    parser.add_argument("results", metavar="RESULTS", type=Path, help="output folder of 'deepcac2 run'")
    parser.add_argument("truth", metavar="TRUTH", type=Path, help="folder that 'deepcac2 simulate' wrote")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    from rich.console import Console
    from rich.table import Table

    from ..training.evaluation import evaluate, to_dict

    evaluation = evaluate(args.results, args.truth)
    if args.json:
        sys.stdout.write(json.dumps(to_dict(evaluation), indent=2) + "\n")
        return 0
    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (
        "patient",
        "status",
        "heart Dice",
        "calcium Dice",
        "score",
        "true score",
        "group",
        "true group",
    ):
        table.add_column(name, justify="left" if name in ("patient", "status") else "right")

    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    for c in evaluation.cases:
        table.add_row(
            c.patient_id, c.status, number(c.heart_dice, 3), number(c.calcium_dice, 3), number(c.score, 1),
            number(c.true_score, 1), number(c.group, 0), number(c.true_group, 0),
        )  # fmt: skip
    console.print(table)
    for name, value in evaluation.summary.items():
        text = "-" if value is None else (str(value) if isinstance(value, int) else f"{value:.3f}")
        console.print(f"{name.replace('_', ' '):28s} {text}", highlight=False)
    return 0
