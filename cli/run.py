"""`deepcac2 run`: every series of a folder through a workflow."""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.duration import time_in_words
from .screen import PLAIN_WIDTH, Parser, add_row, new_console, new_table, note, say_json

if TYPE_CHECKING:
    from ..batch.engine import Engine, Statistics
    from ..batch.run import Progress, RunSummary
    from ..pipeline.results import ResultRow
    from ..pipeline.run import Job
    from ..pipeline.step import Described
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
    parser.add_argument(
        "input",
        metavar="IN",
        type=Path,
        help="folder with DICOM, NIfTI or NRRD files, one such file, or a zip archive of DICOM",
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the results")
    parser.add_argument(
        "--workflow",
        default="default",
        metavar="NAME|FILE",
        help="one of those below, or a YAML file. Several, separated by commas, read each scan only once "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--devices",
        default="auto",
        metavar="LIST",
        help="one worker each, separated by commas: cuda:0,cuda:1 or cpu; auto: every GPU, else as many on "
        "the CPU as cores and memory hold (default: %(default)s)",
    )
    parser.add_argument(
        "--prefetch",
        type=count,
        metavar="N",
        help="processes that read ahead, and as many that write; 0: none beside the devices' workers "
        "(default: as fits the machine)",
    )
    parser.add_argument(
        "--ray",
        default="",
        metavar="ADDRESS",
        help="work on a running Ray cluster, one worker a GPU, or a few CPUs: HOST:PORT, or auto on one of "
        "its nodes (docs/cluster.md)",
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        default=duration("10m"),
        metavar="TIME",
        help="longest time for one stage of a series, as 90s, 10m or 1h; 0: any (default: 10m)",
    )
    parser.add_argument(
        "--retries",
        type=count,
        default=1,
        metavar="N",
        help="how often a series whose worker crashed or hung is tried again (default: %(default)s)",
    )
    parser.add_argument(
        "--shard", metavar="i/N", help="do part i of N only (0 to N-1); the parts may run at the same time"
    )
    parser.add_argument(
        "--only",
        type=Path,
        metavar="TABLE",
        help="do the series of this table only (CSV or Parquet with series_uid and, where it has it, "
        "selected), such as 'cohort select' writes",
    )
    add_choices(parser)
    add_patient_from(parser)
    parser.add_argument(
        "--heart-from",
        type=Path,
        metavar="PATH",
        help="take the heart from here and not from the network: a folder (or one file) with DICOM SEGs that "
        "refer to the series, or NIfTI or NRRD masks named after it (docs/hearts.md)",
    )
    parser.add_argument(
        "--heart-segments",
        default="",
        metavar="LIST",
        help="with --heart-from, what is the heart, separated by commas and joined: codes or labels of "
        "segments, file names without ending, values of a label map, or chambers, the five parts of "
        "TotalSegmentator 1 (default: what is known as the whole heart)",
    )
    add_keep(parser)
    parser.add_argument("--redo", action="store_true", help="compute everything again")
    screen = parser.add_mutually_exclusive_group()
    screen.add_argument("--quiet", action="store_true", help="print nothing but errors and the summary line")
    screen.add_argument(
        "--json-progress", action="store_true", help="print one JSON object per series, for other programs"
    )
    assert isinstance(parser, Parser)
    parser.more = _more
    parser.set_defaults(run=run, goes_on=True)


def _more() -> str:
    """What stands below the help: the workflows."""
    from .registry import workflows

    named = "; ".join(f"{w['workflow']}: {w['description']}" for w in workflows())
    return (
        f"Workflows: {named}. What their modules take and find: deepcac2 inspect --modules. {kinds_to_keep()}"
    )


def add_keep(parser: argparse._ActionsContainer) -> None:
    """Add ``--keep``; the help of the command names the kinds, see `kinds_to_keep`."""
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="KIND",
        help="also keep further files for each series, of one of the kinds below; repeatable",
    )


def kinds_to_keep() -> str:
    """What ``--keep`` takes, for the help: each kind with the files that it is."""
    from .registry import kept_files

    return f"Kinds of files to keep: {'; '.join(f'{k} ({v})' for k, v in kept_files().items())}."


def count(text: str) -> int:
    """A number of things, for argparse."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 upwards")
    return int(text)


def duration(text: str) -> float:
    """A time such as ``90s``, ``10m`` or ``1h`` in seconds, for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 10m or 1h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def run(args: argparse.Namespace) -> int:
    """Exit code 0 when every series was scored or rejected, 1 when any failed, 130 when it was stopped."""
    from ..batch.copies import begin_loading

    if not args.ray:
        begin_loading()  # while this process imports its own parts, and looks what there is to do

    from ..batch.cluster import check_ray
    from ..batch.ledger import Shard
    from ..batch.run import Means, find_devices, run_folder
    from ..errors import WorkflowError
    from ..pipeline.run import check_folders
    from ..pipeline.workflow import Workflow
    from ..stats.tables import selected_series

    check_folders(args.input, args.output)
    if args.ray:
        if args.devices != "auto" or args.prefetch is not None:
            raise WorkflowError("--ray: the cluster decides; leave out --devices and --prefetch")
        check_ray(args.ray)
    shard = None if args.shard is None else Shard.parse(args.shard)
    workflow = Workflow.combine([Workflow.load(name) for name in args.workflow.split(",")])
    workflow = chosen_workflow(args, _with_hearts(args, workflow))
    means = Means(
        devices=() if args.ray else find_devices(args.devices, many=True),
        prefetch=args.prefetch,
        timeout=args.timeout or None,
        retries=args.retries,
        ray=args.ray,
    )
    start = partial(
        run_folder,
        args.input,
        args.output,
        workflow=workflow,
        means=means,
        allow=args.allow,
        keep=args.keep,
        redo=args.redo,
        shard=shard,
        only=None if args.only is None else selected_series(args.only),
        patient_from=args.patient_from,
    )
    # of other shards it may be the folder, too
    fresh = nullcontext() if shard else _nothing_empty(args.output)
    with fresh:
        summary = watched(start, args.output, "run", quiet=args.quiet, as_json=args.json_progress)
    return ended(summary)


def watched(
    start: Callable[..., RunSummary],
    output: Path,
    command: str,
    *,
    quiet: bool,
    as_json: bool = False,
    settled: Callable[[Progress], None] = lambda event: None,
) -> RunSummary:
    """A run, shown while it is at work, stopped by signals, logged, and reported at its end.

    Args:
        start: `run_folder` or its like, with all of its arguments but for those that are about watching it.
        settled: Told of its progress, too.
    """
    from ..system.progress import followed

    with quiet_libraries(), log_file(output, command) as log_path:
        watcher = _Watcher(quiet=quiet, as_json=as_json)

        def watch(event: Progress) -> None:
            watcher(event)
            settled(event)

        def ready(device: str) -> None:
            if device not in known:
                watcher.say(f"device: {device}")
            known.add(device)

        known: set[str] = set()

        with watcher, followed(log_path, watcher.say), _stoppable(watcher) as running:
            summary = start(
                watch=watch,
                ready=ready,
                running=running,
                log_path=log_path,
            )
    _report(summary, log_path, quiet=quiet or as_json)
    return summary


def ended(summary: RunSummary, *, left: int = 0) -> int:
    """The exit code of a run; of the series that have no row, so many are left for another reason than that
    it was stopped."""
    if summary.left > left:
        note(f"{summary.left} series left; the same command goes on where this one stopped")
        return 130
    return 1 if summary.count("failed") or left else 0


def _with_hearts(args: argparse.Namespace, workflow: Workflow) -> Workflow:
    """The workflow with what ``--heart-from`` asks for."""
    from ..errors import InputError, WorkflowError
    from ..pipeline.facts import HEART

    segments = [name.strip() for name in args.heart_segments.split(",") if name.strip()]
    if args.heart_from is None:
        if segments:
            raise WorkflowError("--heart-segments says what of --heart-from is the heart: give both")
        return workflow
    if not args.heart_from.exists():
        raise InputError(f"--heart-from {args.heart_from}: there is no such folder or file")
    return workflow.given(HEART, source=str(args.heart_from.resolve()), segments=segments)


@contextmanager
def _nothing_empty(output: Path) -> Iterator[None]:
    """What ends a run before it has written anything leaves no folder where there was none."""
    before = output.exists()
    try:
        yield
    except BaseException:
        if not before and output.is_dir() and {p.name for p in output.iterdir()} <= {"logs"}:
            shutil.rmtree(output, ignore_errors=True)
        raise


@contextmanager
def on_signals(stop: Callable[[int, object], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop` with their number; afterwards they do what they did before."""
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stoppable(watcher: _Watcher) -> Iterator[Callable[[Engine], None]]:
    """SIGINT and SIGTERM let what is being computed finish; the second one ends it."""
    engines: list[Engine] = []

    def stop(number: int, frame: object) -> None:
        if not engines or stopped:
            raise KeyboardInterrupt
        stopped.append(number)
        engines[0].stop()
        watcher.stopping(engines[0])

    stopped: list[int] = []
    with on_signals(stop):
        yield engines.append


def add_work(parser: argparse._ActionsContainer, timeout: str = "--timeout") -> None:
    """Add how series are scored, for `job_of`; `timeout` names the longest time for a stage."""
    parser.add_argument(
        "--workflow",
        default="default",
        metavar="NAME|FILE",
        help="as for 'deepcac2 run' (default: %(default)s)",
    )
    parser.add_argument(
        "--devices", default="auto", metavar="LIST", help="as for 'deepcac2 run' (default: %(default)s)"
    )
    parser.add_argument(
        timeout,
        type=duration,
        default=duration("10m"),
        metavar="TIME",
        help="longest time for one stage of a series, as 90s, 10m or 1h; 0: any (default: 10m)",
    )
    add_choices(parser)
    add_keep(parser)


def job_of(args: argparse.Namespace, output: Path) -> Job:
    """What is done with every series, as `add_work` asks for it.

    Raises:
        WorkflowError, WeightsError: There is no such workflow, option or set.
    """
    from ..pipeline.run import Job
    from ..pipeline.workflow import Workflow

    workflow = Workflow.combine([Workflow.load(name) for name in args.workflow.split(",")])
    return Job(
        workflow=chosen_workflow(args, workflow),
        output=output,
        allow=frozenset(args.allow),
        keep=frozenset(args.keep),
    )


def add_choices(parser: argparse._ActionsContainer) -> None:
    """Add what `chosen_workflow` reads: ``--weights``, ``--rule`` and ``--allow``."""
    parser.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME|PATH",
        help="other weights for one of the networks (the set says which); repeatable",
    )
    parser.add_argument(
        "--rule", metavar="NAME", help="one of 'deepcac2 inspect --rules' (default: the workflow's)"
    )
    add_allow(parser)


def add_allow(parser: argparse._ActionsContainer) -> None:
    """Add ``--allow``."""
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="CODE",
        help="go on where this quality gate would reject (deepcac2 inspect --gates); repeatable",
    )


def add_patient_from(parser: argparse._ActionsContainer) -> None:
    """Add ``--patient-from``."""
    parser.add_argument(
        "--patient-from",
        default="",
        metavar="REGEX",
        help="finds the patient of a NIfTI or NRRD file in its path below IN, without ending: the first "
        "group, or all that matches (default: the file's name)",
    )


def chosen_workflow(args: argparse.Namespace, workflow: Workflow) -> Workflow:
    """The workflow with what ``--weights`` and ``--rule`` ask for; also checks ``--allow``."""
    from ..errors import WorkflowError
    from ..pipeline.gates import check_allowed
    from ..pipeline.step import roles
    from ..scoring.rules import named_rules
    from ..system.nearest import nearest
    from ..weights import resolve

    check_allowed(args.allow)
    if args.rule is not None and args.rule not in named_rules():
        raise WorkflowError(f"--rule {args.rule}: no such rule.{nearest(args.rule, named_rules())}")
    for name in args.weights:
        role = resolve(name).role
        modules = [module for module, its in roles().items() if its == role]
        if not modules:
            hint = nearest(role, roles().values())
            raise WorkflowError(f"--weights {name}: no module takes weights of the role {role!r}.{hint}")
        used = [module for module in modules if workflow.options(module) is not None]
        if not used:
            raise WorkflowError(
                f"--weights {name}: the workflow {workflow.name!r} has no {' or '.join(modules)}"
            )
        for module in used:
            workflow = workflow.with_options(module, weights=name)
    if args.rule is not None:
        if workflow.options("AGSCalculator") is None:
            raise WorkflowError(f"--rule {args.rule}: the workflow {workflow.name!r} has no AGSCalculator")
        workflow = workflow.with_options("AGSCalculator", rule=args.rule)
    return workflow


_LINE_EACH = 20
"""Up to so many series each gets its line; of more, there is a line a minute."""


class _Watcher:
    """Shows progress: a bar on a terminal, plain lines elsewhere, JSON for programs, nothing when quiet."""

    def __init__(self, *, quiet: bool, as_json: bool = False) -> None:
        self.console = new_console(stderr=True)
        self.quiet = quiet
        self.as_json = as_json
        self._bar: Any = None
        self._task: Any = None
        self._engine: Engine | None = None
        self._last_line = time.monotonic()

    def say(self, text: str) -> None:
        if self.quiet or self.as_json:
            return
        self.console.print(text, soft_wrap=True)

    def stopping(self, engine: Engine) -> None:
        """Say that a run is stopping, and from now on in the bar how many series it finishes first."""
        self._engine = engine
        count = engine.finishing
        what = {0: "nothing is being computed", 1: "the series being computed is finished first"}.get(
            count, f"the {count} series being computed are finished first"
        )
        self.say(f"stopping: {what}; once more to end at once")
        if self._task is not None:
            self._bar.update(self._task, description=self._stopping())

    def _stopping(self) -> str:
        return "" if self._engine is None else f"stopping after {self._engine.finishing} more"

    def __enter__(self) -> _Watcher:
        if not self.quiet and not self.as_json and self.console.is_terminal:
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
        if self.as_json:
            say_json(_as_json(event), indent=None)
        elif self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task("series", total=event.total)
            counts = ", ".join(f"{n} {s}" for s, n in event.counts.items() if n)
            words = ", ".join(filter(None, (self._stopping(), counts))) or "series"
            self._bar.update(self._task, completed=event.done, description=words)
        elif event.row is not None and event.total <= _LINE_EACH:
            self.say(
                f"{event.done}/{event.total} {in_words(event.row)}{' (was there)' if event.skipped else ''}"
            )
        elif time.monotonic() - self._last_line >= 60:
            self._last_line = time.monotonic()
            self.say(_line(event))


def _line(event: Progress) -> str:
    """One line on how a long run is doing."""
    statistics = event.statistics
    counts = ", ".join(f"{n} {s}" for s, n in event.counts.items())
    stage, share = statistics.bottleneck()
    memory = sum(s.peak_mb * s.workers for s in statistics.stages.values()) / 1000
    left = event.total - event.done
    hours = f", about {time_in_words(left / event.rate)} left" if event.rate else ""
    gpu = statistics.gpu()
    on_gpu = f"; GPU {gpu[0]:.0f} %, at most {gpu[1] / 1000:.1f} GB" if gpu else ""
    return (
        f"{event.done}/{event.total} ({counts}), {event.rate * 3600:.0f} an hour{hours}; "
        f"busiest: {stage} {share:.0%}; workers at most {memory:.1f} GB{on_gpu}"
    )


def _as_json(event: Progress) -> dict[str, Any]:
    """What ``--json-progress`` prints of an event."""
    from ..batch.worker import peak_memory
    from ..pipeline.step import columns

    row = event.row
    stage, share = event.statistics.bottleneck()
    gpu = event.statistics.gpu()
    return {
        "done": event.done,
        "total": event.total,
        **event.counts,
        "series_per_second": round(event.rate, 4),
        "seconds_left": round((event.total - event.done) / event.rate) if event.rate else None,
        "busiest": stage,
        "busiest_share": round(share, 3),
        "peak_mb": {n: round(s.peak_mb) for n, s in event.statistics.stages.items()},
        "own_peak_mb": round(peak_memory()),
        "gpu_percent": None if gpu is None else round(gpu[0], 1),
        "gpu_peak_mb": None if gpu is None else round(gpu[1]),
        "series": None
        if row is None
        else {
            "series_uid": row.series_uid,
            "status": row.status,
            "code": row.code,
            "caution": row.caution,
            **{column.name: getattr(row, column.name) for column in columns() if column.leads},
            "skipped": event.skipped,
        },
    }


def in_words(row: ResultRow) -> str:
    """One line on a series: what its steps were run for and found."""
    from ..pipeline.step import columns

    if row.status != "scored":
        return f"{row.series_uid}: {row.status}, {row.code}"
    said = {column.title: cell(row, column) for column in columns() if column.leads}
    return f"{row.series_uid}: {', '.join(f'{title} {words}' for title, words in said.items() if words)}"


def cell(row: ResultRow, column: Described) -> str:
    """A value of a row in words, a result with a mark where it needs a caution; "" where there is none."""
    from ..pipeline.cautions import MARK

    words = column.words(getattr(row, column.name))
    return f"{words} {MARK}" if words and column.result and row.caution else words


_SHOWN = 40
"""Rows shown on the screen at most; the table on disk holds all."""


def _report(summary: RunSummary, log_path: Path, *, quiet: bool) -> None:
    from ..outputs.preview import PREVIEW
    from ..pipeline.cautions import MARK
    from ..pipeline.places import CSV, PARQUET, XLSX
    from ..pipeline.step import columns

    console = new_console(soft_wrap=True)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    shown = summary.first(_SHOWN) if summary.table else ()
    if shown and not quiet:
        used = [c for c in columns() if (c.leads or c.listed) and any(cell(row, c) for row in shown)]
        table = new_table()
        for name in ("patient", "series", "status"):
            table.add_column(name, no_wrap=True)
        for column in used:
            table.add_column(column.title, justify="right" if column.kind is float else "left")
        table.add_column("s", no_wrap=True, justify="right")
        for row in shown:
            seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
            found = (cell(row, column) for column in used)
            add_row(table, (row.patient_id, _short(row), row.status, *found, seconds))
        console.print(table)
        for row in shown:
            if row.caution:
                console.print(f"{MARK} {_short(row)} {row.caution}")
            note = _warnings(row) if row.status == "scored" else f"{row.code}: {row.reason}"
            if note:
                console.print(f"  {_short(row)} {row.status}: {note}")
        if summary.done > len(shown):
            console.print(f"  and {summary.done - len(shown)} more in the table")
        preview = next((p for r in shown if (p := summary.output / r.folder / PREVIEW.file).is_file()), None)
        if preview is not None:
            console.print(f"preview: {preview}")
    counts = ", ".join(f"{summary.count(s)} {s}" for s in ("scored", "rejected", "failed"))
    where = str(summary.output / CSV) if summary.table else "written by the last shard to end"
    if summary.images and not quiet:
        console.print(
            f"of {summary.images} NIfTI or NRRD files there is no DICOM SEG and SR, as there is no DICOM to "
            "refer to; their masks are files of the same format"
        )
    if not summary.workbook:
        console.print(
            f"there is no {XLSX}: the table has more rows than an Excel sheet holds; take {PARQUET}"
        )
    if not summary.statistics.series and not summary.stopped:
        console.print(_nothing_done(summary))
    if not quiet and summary.statistics.series > 1:
        console.print(_speed(summary.statistics))
    console.print(f"{counts}; table: {where}; log: {log_path}")


def _nothing_done(summary: RunSummary) -> str:
    """Why nothing was computed."""
    there = summary.count("scored") + summary.count("rejected")
    if there:
        return "nothing to do: every series was scored or rejected before; --redo computes all again"
    return "nothing to do: no series is to be computed here"


def _speed(statistics: Statistics) -> str:
    """How fast the run was, and what held it up."""
    (stage, share), (module, seconds) = statistics.bottleneck(), statistics.slowest_module()
    each = statistics.seconds / statistics.series
    return (
        f"{statistics.series} series in {time_in_words(statistics.seconds)}, {each:.1f} s each; busiest: "
        f"{stage} ({share:.0%} of the time), slowest module: {module} ({seconds:.1f} s a series)"
    )


def _warnings(row: ResultRow) -> str:
    unlike = row.off_domain.replace(";", ", ")
    return row.warnings + (f" (unlike the training scans: {unlike})" if unlike else "")


def _short(row: ResultRow) -> str:
    return f"…{row.series_uid[-12:]}" if row.series_uid else "(file)"


@contextmanager
def log_file(output: Path, command: str) -> Iterator[Path]:
    """Log to ``OUT/logs/<command>-<UTC time>.log``; it holds UIDs, never patient names or IDs."""
    from ..batch.worker import add_log_file
    from ..system.atomic import output_errors

    path = output / "logs" / f"{command}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.log"
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = add_log_file(path)
    logger = logging.getLogger(__name__.partition(".cli")[0])
    logger.info("command: %s, python %s", command, sys.version.split()[0])
    try:
        yield path
    finally:
        logger.removeHandler(handler)
        handler.close()


_LIBRARIES = {"pydicom": logging.ERROR, "pynetdicom": logging.CRITICAL, "urllib3": logging.CRITICAL}
"""What a library has to say at least to be heard; what fails in a network we say ourselves."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep libraries' chatter off the screen; our own warnings are findings and reach the table."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = {logging.getLogger(name): level for name, level in _LIBRARIES.items()}
        before = {logger: logger.level for logger in loggers}
        for logger, level in loggers.items():
            logger.setLevel(level)
        try:
            yield
        finally:
            for logger, level in before.items():
                logger.setLevel(level)
