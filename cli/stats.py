"""`deepcac2 stats`: agreement, survival, and the report of a cohort."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import InputError
from .screen import note, say, say_json

if TYPE_CHECKING:
    import pandas as pd

    from ..reporting.statistics import Page
    from ..stats.percentiles import Percentiles

T = TypeVar("T")


PERCENTILES_FILE = "percentiles.csv"
"""Beside the page of a cohort: each scan with its percentiles."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = subparsers.add_parser(
        "stats",
        help="statistics of result tables: agreement, survival, a cohort's report",
        description="Statistics of tables (CSV, TSV or Parquet). Rows of no use are left out and counted.",
    )
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", required=True)

    agreement = actions.add_parser(
        "agreement",
        help="two columns of scores compared",
        description="Correlation, ICC, Bland-Altman limits, kappa of the groups, sensitivity and specificity "
        "of two columns of Agatston scores, with bootstrap intervals and figures.",
    )
    agreement.add_argument("table", metavar="TABLE", type=Path)
    agreement.add_argument(
        "--ai", metavar="COLUMN", required=True, help="column with the scores to be judged"
    )
    agreement.add_argument("--reference", metavar="COLUMN", required=True, help="column with the true scores")
    agreement.add_argument(
        "--patient", metavar="COLUMN", help="column that names the patient: resample patients"
    )
    _add_common(agreement)
    agreement.set_defaults(run=run_agreement)

    survival = actions.add_parser(
        "survival",
        help="survival by calcium group",
        description="Kaplan-Meier curves and log-rank test by calcium group, Cox model, check of "
        "proportional hazards, c-index. A person's scan is the first by date.",
    )
    _add_survival(survival)
    _add_common(survival)
    survival.set_defaults(run=run_survival)

    report = actions.add_parser(
        "report",
        help="one page about a results table",
        description="What was scored and what not and why, scores by group, kernel and artery, change "
        "between visits, agreement between kernels and thicknesses of one study; and where a clinical table "
        "is named, survival (--time and --event) and the percentile by age, sex and ethnicity (--ethnicity).",
    )
    _add_survival(report, needed=False)
    report.add_argument(
        "--ethnicity",
        metavar="COLUMN",
        help="column of the clinical table: white, chinese, black or hispanic, for the percentile by MESA",
    )
    _add_common(report, needed=True)
    report.set_defaults(run=run_report)


def _add_common(parser: argparse.ArgumentParser, *, needed: bool = False) -> None:
    parser.add_argument(
        "--cuts",
        type=_cuts,
        default="0,100,300",
        metavar="N,N,…",
        help="upper limits of the groups (default: 0,100,300)",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        required=needed,
        help="write a page with figures (HTML, PDF, Markdown; figures also as SVG and PDF)",
    )
    parser.add_argument("--title", metavar="TEXT", default="", help="heading of the page")
    if not needed:
        parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _add_survival(parser: argparse.ArgumentParser, *, needed: bool = True) -> None:
    parser.add_argument(
        "results",
        metavar="RESULTS",
        type=Path,
        help="table of a run or release (results.parquet, results.csv)",
    )
    if needed:
        parser.add_argument("clinical", metavar="CLINICAL", type=Path, help="table with one row a person")
        parser.add_argument(
            "--nlst",
            action="store_true",
            help="CLINICAL is NLST's Participant data set: years from the screen to death or the end of "
            "follow-up, with age, sex, smoking and heart disease, as the paper's figure 3 (docs/nlst.md)",
        )
    else:
        parser.add_argument(
            "--clinical",
            metavar="TABLE",
            type=Path,
            help="table with one row a person, for survival and percentile",
        )
    parser.add_argument("--time", metavar="COLUMN", help="time to event or end of follow-up")
    parser.add_argument("--event", metavar="COLUMN", help="1, true or yes: event; 0, false or no: censored")
    parser.add_argument("--covariates", metavar="A,B,…", default="", help="further columns of the Cox model")
    parser.add_argument(
        "--patient",
        metavar="COLUMN",
        default="patient_id",
        help="PatientID in the clinical table (default: patient_id)",
    )
    parser.add_argument("--unit", metavar="TEXT", default="", help="unit of the times, for the figures")


def _cuts(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError("numbers with commas between them, such as 0,100,300") from error


def run_agreement(args: argparse.Namespace) -> int:
    """Compare two columns."""
    from ..reporting.statistics import agreement_page, agreement_rows, estimates_of, summary_lines
    from ..stats.columns import compare_columns
    from ..stats.tables import read_table

    columns = [c for c in (args.ai, args.reference, args.patient) if c]
    study = compare_columns(
        read_table(args.table, needed=columns, only=()),
        ai=args.ai,
        reference=args.reference,
        patient=args.patient,
        cuts=args.cuts,
    )
    if args.json:
        _print_json(
            rows=study.flow.lines(),
            statistics=estimates_of(study.result),
            groups=list(study.names),
            confusion=study.result.confusion.tolist(),
        )
    else:
        say(*study.flow.lines(), *summary_lines(agreement_rows(study.result)))
    if args.report is not None:
        _write(args, agreement_page(study, title=args.title))
    return 0


def run_survival(args: argparse.Namespace) -> int:
    """Survival by calcium group."""
    from ..pipeline.results import COLUMNS
    from ..reporting.statistics import survival_page
    from ..reporting.survival_figures import p_value
    from ..stats.survival import analyse
    from ..stats.tables import read_table

    results = read_table(args.results, only=COLUMNS)
    if args.nlst:
        cohort = _nlst_cohort(args, results)
    elif args.time and args.event:
        cohort = _cohort(args, results)
    else:
        raise InputError("--time COLUMN and --event COLUMN are needed, or --nlst")
    result = analyse(cohort)
    lines = [line for flow in cohort.flow for line in flow.lines()]
    chi2, degrees, p = result.log_rank
    c = result.concordance
    if args.json:
        _print_json(
            rows=lines,
            notes=list(cohort.notes),
            persons=result.persons,
            events=result.events,
            median_follow_up=result.median_follow_up,
            groups={
                c.name: {"persons": len(c.followed), "events": int(c.event.sum())} for c in result.curves
            },
            log_rank={"chi2": chi2, "degrees_of_freedom": degrees, "p": p},
            hazards=[vars(h) for h in result.hazards],
            concordance=vars(c),
        )
    else:
        lines += [
            f"{result.persons} persons, {result.events} events",
            f"log-rank: χ² = {chi2:.1f}, {degrees} df, {p_value(p)}",
        ]
        lines += [
            f"  {h.name:24s} HR {h.ratio:.2f} ({h.low:.2f} to {h.high:.2f}), {p_value(h.p)}"
            + ("; hazards not proportional" if h.p_proportional < 0.05 else "")
            for h in result.hazards
        ]
        lines += [f"c-index {c.value:.3f} ({c.low:.3f} to {c.high:.3f})", *cohort.notes]
        say(*lines)
    if args.report is not None:
        _write(args, survival_page(cohort, result, unit=args.unit, title=args.title))
    return 0


def run_report(args: argparse.Namespace) -> int:
    """One page about a cohort; exit code 1 where a part of it could not be made."""
    from ..dicom.gates import is_sharp_kernel
    from ..reporting.statistics import COHORT_COLUMNS, cohort_page, survival_parts
    from ..stats.arteries import by_artery
    from ..stats.longitudinal import kernel_pairs, progression
    from ..stats.percentiles import by_ethnicity
    from ..stats.reconstructions import reconstructions
    from ..stats.scans import scored
    from ..stats.survival import analyse
    from ..stats.tables import read_table

    given = [n for n in ("time", "event", "covariates", "unit", "ethnicity") if getattr(args, n)]
    if args.clinical is None and given:
        raise InputError(f"--{given[0]} goes with --clinical TABLE")
    if args.clinical is not None and given != ["ethnicity"] and not (args.time and args.event):
        raise InputError("--clinical needs --time COLUMN and --event COLUMN, or --ethnicity COLUMN")
    results = read_table(args.results, only=COHORT_COLUMNS)
    scans = scored(results)
    missing: dict[str, str] = {}

    def part(name: str, make: Callable[[], T]) -> T | None:
        """A part of the page; where it cannot be made, the page says so, and has all the others."""
        try:
            return make()
        except (InputError, ArithmeticError, ValueError) as error:
            missing[name] = str(error) or type(error).__name__
            note(f"warning: {name} is not in the report: {missing[name]}")
            return None

    def survival() -> Page:
        cohort = _cohort(args, results)
        return survival_parts(cohort, analyse(cohort), unit=args.unit)

    def percentiles() -> Percentiles:
        clinical = read_table(args.clinical, needed=[args.patient, args.ethnicity], only=())
        return by_ethnicity(scans, clinical, ethnicity=args.ethnicity, patient=args.patient)

    sharp = {"sharp": is_sharp_kernel, "cuts": args.cuts}
    ranked = part("Percentile by ethnicity", percentiles) if args.ethnicity else None
    say(*scans.flow.lines())
    page = cohort_page(
        results,
        scans,
        part("Change over time", lambda: progression(scans, cuts=args.cuts)),
        part("One study, two kernels", lambda: kernel_pairs(scans, cuts=args.cuts)) or [],
        survival=part("Survival", survival) if args.time else None,
        percentiles=ranked,
        arteries=part("Arteries", lambda: by_artery(scans)),
        reconstructed=part("Several reconstructions", lambda: reconstructions(scans, **sharp)),
        missing=missing,
        cuts=args.cuts,
        title=args.title,
    )
    if ranked is not None:
        _write_rows(args.report / PERCENTILES_FILE, ranked.frame)
    _write(args, page)
    return 1 if missing else 0


def _cohort(args: argparse.Namespace, results: pd.DataFrame) -> Any:
    from ..stats.survival import build_cohort
    from ..stats.tables import read_table

    covariates = [c.strip() for c in args.covariates.split(",") if c.strip()]
    return build_cohort(
        results,
        read_table(args.clinical, needed=[args.patient, args.time, args.event, *covariates], only=()),
        time=args.time,
        event=args.event,
        covariates=covariates,
        patient=args.patient,
        cuts=args.cuts,
    )


def _nlst_cohort(args: argparse.Namespace, results: pd.DataFrame) -> Any:
    """The cohort of NLST's own table; what it is made of need not be named."""
    from ..stats.nlst import COVARIATES, EVENT, TIME, clinical_of
    from ..stats.survival import build_cohort
    from ..stats.tables import read_table

    if args.time or args.event or args.patient != "patient_id":
        raise InputError("--nlst knows the columns: leave out --time, --event and --patient")
    covariates = [c.strip() for c in args.covariates.split(",") if c.strip()] or COVARIATES
    args.unit = args.unit or "years"
    return build_cohort(
        results,
        clinical_of(results, read_table(args.clinical)),
        time=TIME,
        event=EVENT,
        covariates=covariates,
        cuts=args.cuts,
    )


def _write_rows(path: Path, frame: pd.DataFrame) -> None:
    """A table as CSV, safe for spreadsheets, as `pipeline.results.write_csv` writes that of a run."""
    from ..pipeline.results import no_formula
    from ..system.atomic import write_whole

    write_whole(path, frame.map(no_formula).to_csv(index=False, lineterminator="\n").encode())


def _write(args: argparse.Namespace, page: Page) -> None:
    from ..reporting.page import write_page

    path = write_page(args.report, *page)
    note(f"report: {path}")


def _print_json(**content: Any) -> None:
    say_json(content)
