"""`deepcac2 run`: every series of a folder through a workflow."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipeline.results import ResultRow
    from ..pipeline.run import Progress, RunSummary
    from ..pipeline.workflow import Workflow


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "run",
        help="score every chest CT of a folder",
        description="Find every series below IN, score what passes the quality gates, and write SEG, report, "
        "details and preview for each below OUT, with one table for all. The same command again goes on "
        "where it was stopped.",
    )
    parser.add_argument("input", metavar="IN", type=Path, help="folder with DICOM files, or a zip archive")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the results")
    parser.add_argument(
        "--workflow", default="default", metavar="NAME|FILE", help="workflow (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add_choices(parser)
    parser.add_argument(
        "--keep", action="append", default=[], choices=["nifti"], help="also keep CT and masks as NIfTI"
    )
    parser.add_argument("--redo", action="store_true", help="compute everything again")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and the summary line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every series was scored or rejected, 1 when any failed."""
    from ..pipeline.run import check_folders, run_folder
    from ..pipeline.workflow import Workflow

    check_folders(args.input, args.output)
    workflow = chosen_workflow(args, Workflow.load(args.workflow))
    with _quiet_libraries(), _log_file(args.output) as log_path:
        from ..pipeline.chain import choose_device, describe_device

        device = choose_device(args.device)
        watcher = _Watcher(quiet=args.quiet)
        watcher.say(f"device: {describe_device(device)}")
        with watcher:
            summary = run_folder(
                args.input,
                args.output,
                workflow=workflow,
                device=device,
                allow=args.allow,
                keep=args.keep,
                redo=args.redo,
                watch=watcher,
            )
    _report(summary, log_path, quiet=args.quiet)
    return 1 if summary.count("failed") else 0


def add_choices(parser: argparse._ActionsContainer) -> None:
    """Add what `chosen_workflow` reads: ``--weights``, ``--rule`` and ``--allow``."""
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME|PATH",
        help="other weights for the heart or the calcium (the set says which); repeatable",
    )
    parser.add_argument("--rule", metavar="NAME", help="scoring rule (default: the workflow's)")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CODE",
        help="go on where this quality gate would reject (deepcac2 inspect --gates); repeatable",
    )


def chosen_workflow(args: argparse.Namespace, workflow: Workflow) -> Workflow:
    """The workflow with what ``--weights`` and ``--rule`` ask for; also checks ``--allow``."""
    from ..dicom.gates import check_allowed
    from ..errors import WorkflowError
    from ..pipeline.options import nearest
    from ..scoring import RULES
    from ..weights import resolve

    check_allowed(args.allow)
    if args.rule is not None and args.rule not in RULES:
        raise WorkflowError(f"--rule {args.rule}: no such rule.{nearest(args.rule, RULES)}")
    for name in args.weights:
        module = "HeartRunner" if resolve(name).role == "heart" else "DeepCACRunner"
        workflow = workflow.with_options(module, weights=name)
    if args.rule is not None:
        workflow = workflow.with_options("AGSCalculator", rule=args.rule)
    return workflow


class _Watcher:
    """Shows progress: a bar on a terminal, a plain line a series elsewhere, nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.quiet = quiet
        self._bar: Any = None
        self._task: Any = None

    def say(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> _Watcher:
        if not self.quiet and self.console.is_terminal:
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Progress) -> None:
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("series", total=event.total)
            self._bar.update(self._task, completed=event.done)
        elif event.row is not None:
            self.say(
                f"{event.done}/{event.total} {_in_words(event.row)}{' (was there)' if event.skipped else ''}"
            )


def _in_words(row: ResultRow) -> str:
    if row.status == "scored":
        return f"{row.series_uid}: score {row.agatston_score:.1f}, risk group {row.risk_group}"
    return f"{row.series_uid}: {row.status}, {row.code}"


_SHOWN = 40
"""Rows shown on the screen at most; the table on disk holds all."""


def _report(summary: RunSummary, log_path: Path, *, quiet: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..pipeline.outputs import PREVIEW_NAME

    console = Console(highlight=False, markup=False, soft_wrap=True)
    shown = summary.rows[:_SHOWN]
    if shown and not quiet:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name in ("patient", "series", "status", "score", "risk group", "heart mL", "s"):
            right = name in ("score", "heart mL", "s")
            table.add_column(name, no_wrap=True, justify="right" if right else "left")
        for row in shown:
            table.add_row(*_cells(row))
        console.print(table)
        for row in shown:
            note = _warnings(row) if row.status == "scored" else f"{row.code}: {row.reason}"
            if note:
                console.print(f"  {_short(row)} {row.status}: {note}")
        if len(summary.rows) > len(shown):
            console.print(f"  and {len(summary.rows) - len(shown)} more in the table")
        preview = next((p for r in shown if (p := summary.output / r.folder / PREVIEW_NAME).is_file()), None)
        if preview is not None:
            console.print(f"preview: {preview}")
    counts = ", ".join(f"{summary.count(s)} {s}" for s in ("scored", "rejected", "failed"))
    console.print(f"{counts}; table: {summary.output / 'results.csv'}; log: {log_path}")


def _warnings(row: ResultRow) -> str:
    unlike = row.off_domain.replace(";", ", ")
    return row.warnings + (f" (unlike the training scans: {unlike})" if unlike else "")


def _short(row: ResultRow) -> str:
    return f"…{row.series_uid[-12:]}" if row.series_uid else "(file)"


def _cells(row: ResultRow) -> tuple[str, ...]:
    return (
        row.patient_id,
        _short(row),
        row.status,
        "" if row.agatston_score is None else f"{row.agatston_score:.1f}",
        "" if row.risk_group is None else f"{row.risk_group} {row.risk_group_name}",
        "" if row.heart_volume_ml is None else f"{row.heart_volume_ml:.0f}",
        "" if row.seconds is None else f"{row.seconds:.1f}",
    )


@contextmanager
def _log_file(output: Path) -> Iterator[Path]:
    """Log to ``OUT/logs/run-<UTC time>.log``; it holds UIDs, never patient names or IDs."""
    from ..imaging.atomic import output_errors

    path = output / "logs" / f"run-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.log"
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger(__name__.partition(".cli")[0])
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.info("command: run, python %s", sys.version.split()[0])
    try:
        yield path
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep libraries' chatter off the screen; our own warnings are findings and reach the table."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom = logging.getLogger("pydicom")
        level = pydicom.level
        pydicom.setLevel(logging.ERROR)
        try:
            yield
        finally:
            pydicom.setLevel(level)
