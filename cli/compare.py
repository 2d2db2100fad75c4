"""`deepcac2 compare`: several methods on the same annotated scans."""

from __future__ import annotations

import argparse
from pathlib import Path

from .run import add_allow
from .screen import say, say_json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "compare",
        help="several methods on the same annotated scans",
        description="Run each method over all annotated scans, in a process of its own, and print one table: "
        "agreement of the scores, risk groups, sensitivity and specificity, Dice, seconds and memory.",
    )
    parser.add_argument(
        "methods",
        nargs="+",
        metavar="METHOD",
        help="workflows, by a name of 'deepcac2 inspect --workflows' or as YAML files",
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="DICOM CT with DICOM SEG of the calcium"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write methods.md (and .html, .pdf), methods.json and figures",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add_allow(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, and write the report where one is asked for."""
    from ..evaluation.methods import compare_methods, operating_points, table, to_dict
    from ..pipeline.gates import check_allowed
    from ..pipeline.workflow import Workflow
    from ..reporting.method_figures import method_figures
    from ..reporting.page import write_page
    from ..system.atomic import write_json

    check_allowed(args.allow)
    for method in args.methods:  # a mistake shows before the first scan
        Workflow.load(method)
    results = compare_methods(args.methods, args.data, device=args.device, allow=args.allow)
    text = table(results)
    points = {
        r.method: operating_points(r, (1.0, 0.99, 0.95))
        for r in results
        if r.scored() and all(c.highest is not None for c in r.scored())
    }
    for method, found in points.items():
        text += f"\n{method}: largest threshold for a sensitivity on these scans\n\n"
        text += "| wanted | threshold | sensitivity | specificity |\n|---|---|---|---|\n"
        for p in found:
            text += (
                f"| {p['wanted']:.2f} | {p['threshold']:.3f} | {p['sensitivity']:.3f} | "
                f"{p['specificity']:.3f} |\n"
            )
    everything = {"methods": to_dict(results), "operating_points": points}
    if args.json:
        say_json(everything)
    else:
        say(*text.rstrip("\n").split("\n"))
    if args.report is not None:
        write_json(args.report / "methods.json", everything)
        figures = method_figures(results)
        shown = "".join(f"\n![{name}](figures/{name}.png)\n" for name in figures)
        write_page(args.report, "# Methods on the same scans\n\n" + text + shown, figures, name="methods")
    return 0
