"""`deepcac2 evaluate`: results against known truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .run import add_choices, chosen_workflow
from .screen import counter, note, say, say_json

if TYPE_CHECKING:
    from ..evaluation.cases import Evaluation
    from ..evaluation.summary import Summary


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compare results with annotated scans",
        description="Compare the output of 'run' with annotated scans, simulated or real; or, with --data, "
        "run the same stages on annotated scans in memory. Heart: Dice, surface distance, centre. Calcium: "
        "Dice, lesions found, false lesions; where the truth names them, what was found in each artery, and "
        "what was wrongly counted. Score: correlation, agreement, risk groups. With bootstrap intervals, by "
        "kernel, noise, thickness, tube voltage and artery. Scans that were not scored are counted and "
        "listed.",
    )
    parser.add_argument(
        "results", metavar="RESULTS", nargs="?", type=Path, help="output folder of 'deepcac2 run'"
    )
    parser.add_argument(
        "truth",
        metavar="TRUTH",
        nargs="?",
        type=Path,
        help="folder with the CT series and their DICOM SEGs, as 'deepcac2 simulate' writes them or others, "
        "or with the CT in ct/ and beside it its labels, calcium.nrrd",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write a report with figures (HTML, Markdown, CSV, JSON)"
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the report")
    parser.add_argument("--note", metavar="TEXT", help="what a reader of the report must know beside that")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    memory = parser.add_argument_group("without a run")
    memory.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="annotated scans instead of RESULTS and TRUTH: DICOM with SEG, nnU-Net's layout, or folders "
        "with image*.nrrd and mask*.nrrd, or with ct/ and calcium.nrrd",
    )
    memory.add_argument("--workflow", metavar="NAME|FILE", help="workflow (default: default)")
    memory.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_choices(memory)
    memory.add_argument(
        "--simulated", action="store_true", help="scans that are no DICOM are simulated ones, too"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a summary, and write the report where one is asked for."""
    from ..evaluation.cases import to_dict
    from ..evaluation.summary import summarise
    from ..evaluation.summary import to_dict as summary_to_dict

    _check(args)
    evaluation = _evaluate(args)
    summary = summarise(evaluation)
    if args.json:
        everything = {**to_dict(evaluation), **summary_to_dict(summary)}
        say_json(everything)
    else:
        say(*_in_words(evaluation, summary))
    if args.report is not None:
        from ..reporting.evaluation import write_report

        page = write_report(evaluation, summary, args.report, title=args.title or "", note=args.note or "")
        (note if args.json else say)(f"report: {page}")
    return 0


def _check(args: argparse.Namespace) -> None:
    stored = args.results is not None and args.truth is not None
    if (args.data is None) != stored or (args.data is not None and args.results is not None):
        raise InputError("give RESULTS and TRUTH, or --data FOLDER")
    only = ("workflow", "device", "weights", "rule", "allow", "simulated")
    given = [name for name in only if getattr(args, name)]
    if stored and given:
        raise InputError(f"--{given[0]} goes with --data: what a run was made with is fixed")


def _evaluate(args: argparse.Namespace) -> Evaluation:
    from ..evaluation.cases import evaluate_results, evaluate_scans

    if args.data is None:
        return evaluate_results(args.results, args.truth, watch=counter("scans"))
    from ..pipeline.chain import choose_device
    from ..pipeline.workflow import Workflow

    return evaluate_scans(
        args.data,
        workflow=chosen_workflow(args, Workflow.load(args.workflow or "default")),
        device=choose_device(args.device or "auto"),
        allow=args.allow,
        simulated=args.simulated,
        watch=counter("scans"),
    )


_LINES = (
    ("heart Dice, mean", "heart_dice_mean", 3),
    ("heart Dice, lowest", "heart_dice_min", 3),
    ("heart HD95, median, mm", "heart_hd95_median", 1),
    ("centre error, highest, mm", "centre_error_max", 1),
    ("calcium Dice, counted voxels", "counted_dice_mean", 3),
    ("lesions found", "lesion_sensitivity", 3),
    ("false lesions per scan", "false_lesions_per_scan", 2),
    ("score: Spearman", "spearman", 3),
    ("score: ICC(2,1)", "icc_2_1", 3),
    ("score: mean difference", "mean_difference", 1),
    ("risk group: kappa, linear", "kappa_linear", 3),
    ("risk group: accuracy", "accuracy", 3),
    ("score > 0: sensitivity", "sensitivity_above_0", 3),
    ("score > 0: specificity", "specificity_above_0", 3),
)
"""Label, statistic and digits of what is printed; the report has more."""


def _in_words(evaluation: Evaluation, summary: Summary) -> list[str]:
    from ..evaluation.cases import STATUSES
    from ..reporting.evaluation import kind_of, seen_in_training

    counts = ", ".join(f"{n} {s}" for s in STATUSES if (n := evaluation.count(s)))
    lines = [f"{kind_of(evaluation)} scans: {counts}"]
    lines += [f"  {c.name}: {c.status}: {c.reason}" for c in evaluation.cases if c.status != "scored"]
    lines += [
        f"  no test of the {role} weights: {len(names)} scans belong to their training data"
        for role, names in seen_in_training(evaluation).items()
    ]
    for label, name, digits in _LINES:
        estimate = summary.statistics[name]
        if estimate.value is None:
            continue
        text = f"{label:30s} {estimate.value:8.{digits}f}"
        if estimate.low is not None:
            text += f"  [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
        lines.append(f"{text}  n = {estimate.n}")
    for rate in summary.arteries:
        if not rate.by:
            share = rate.found / rate.voxels
            lines.append(f"{rate.artery + ', voxels found':30s} {share:8.3f}  {rate.found} of {rate.voxels}")
    for wrong in summary.wrong:
        label = f"wrongly counted, {wrong.kind}"
        most = f"; most in {wrong.where}: {wrong.most:.1f}" if wrong.where else ""
        lines.append(f"{label:30s} {wrong.score.value or 0:8.1f}  points a scan{most}")
    return lines
