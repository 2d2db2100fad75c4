"""Several methods on the same annotated scans: what each says, how well it agrees, what it costs.

Each method is a workflow, run by itself in a process of its own from reading on, so that seconds and memory
are its own. What they cannot all have (a mask, a score) stays empty.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..models.rule_out.step import SCREENING
from ..models.slice_regression.network import GROUPS, direct_group
from ..models.slice_regression.step import DIRECT
from ..pipeline.case import Case
from ..pipeline.facts import CALCIUM, POSSIBLE_CALCIUM, SCORE
from ..scoring import score
from ..stats.agreement import Estimate, agreement, bootstrap, confusion, kappa
from ..stats.thresholds import highest_keeping
from .datasets import annotated_sources
from .metrics import dice

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MethodCase:
    """One scan by one method.

    Attributes:
        name, patient: Of the scan; whose it is.
        status: ``"scored"``, ``"rejected"`` or ``"failed"``; reason: why.
        true_score: Of the annotated calcium, rule ``agatston``.
        score: Agatston score, None where the method gives none.
        positive: Whether there is, or may be, calcium.
        highest: Of an exclusion, the threshold below which the scan is positive; None where it was not asked
            for, see `models.rule_out.step.ScreeningRunnerOptions.least_probability`.
        excluded: Whether the exclusion left the calcium network out.
        calcium_dice: Of what counts by the rule `agatston`, where there is true calcium and the method makes
            a mask.
        seconds: Reading, networks and scoring; nothing is written.
    """

    name: str
    patient: str
    status: str = "scored"
    reason: str = ""
    true_score: float
    score: float | None = None
    positive: bool | None = None
    highest: float | None = None
    excluded: bool | None = None
    calcium_dice: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """A method on all scans.

    Attributes:
        method: Name or path of the workflow.
        cases: In the order of the scans.
        peak_mb: Most memory that its process had.
    """

    method: str
    cases: tuple[MethodCase, ...]
    peak_mb: float

    def scored(self) -> tuple[MethodCase, ...]:
        """The cases that were not rejected and did not fail."""
        return tuple(c for c in self.cases if c.status == "scored")


def run_method(method: str, data: Path, device: str, allow: Sequence[str] = ()) -> MethodResult:
    """Run one workflow over annotated DICOM scans, in this process.

    Raises:
        InputError: There is no annotated scan.
        WorkflowError, WeightsError: The workflow cannot run.
    """
    from ..batch.worker import peak_memory
    from ..pipeline.case import Case
    from ..pipeline.chain import build_chain, choose_device
    from ..pipeline.workflow import Workflow

    workflow = Workflow.load(method)
    chain = build_chain(
        workflow, output=Path(), device=choose_device(device), allow=allow, phases=["read", "compute"]
    )
    cases = []
    sources = annotated_sources(data, allow=chain.provenance["allowed_gates"])
    if not sources:
        raise InputError(f"{data} holds no annotated scan; give DICOM CT with DICOM SEG")
    for number, source in enumerate(sources):
        scan = source.load()
        if scan.series is None or scan.calcium is None:
            log.warning("%s is left out: it is no DICOM, or its calcium is not annotated", scan.name)
            continue
        if scan.unsure is not None and scan.unsure.any():
            log.warning("%s: what is labelled not sure counts here; 'evaluate' leaves it out", scan.name)
        calcium = scan.calcium
        truth = score(scan.volume, calcium)
        if not number:  # the first run of a network is slow
            chain(Case(series=scan.series))
        known: dict[str, Any] = {"name": scan.name, "patient": source.patient, "true_score": truth.total}
        case = chain(Case(series=scan.series))
        if case.stop is not None:
            cases.append(MethodCase(**known, status=case.stop.status, reason=case.stop.reason))
            continue
        found = case.get(CALCIUM if CALCIUM in case else POSSIBLE_CALCIUM)
        cases.append(
            MethodCase(
                **known,
                **_said(case),
                calcium_dice=dice(score(scan.volume, found.mask).counted, truth.counted)
                if found is not None and truth.total > 0
                else None,
                seconds=sum(case.timings.values()),
            )
        )
        log.info("%s: %s done", method, scan.name)
    return MethodResult(method=method, cases=tuple(cases), peak_mb=peak_memory())


def _said(case: Case) -> dict[str, Any]:
    """Score and answer of a case: of the calcium network, else of direct scoring, else of the exclusion."""
    screening, direct, found = case.get(SCREENING, {}), case.get(DIRECT), case.get(SCORE)
    said: dict[str, Any] = {"highest": screening.get("highest"), "excluded": screening.get("excluded")}
    if found is not None:
        return {**said, "score": found.total, "positive": found.total > 0}
    if direct is not None:
        return {**said, "score": direct["score"], "positive": direct["score"] >= GROUPS[0]}
    return {**said, "positive": screening.get("positive")}


def compare_methods(
    methods: Sequence[str], data: Path, *, device: str = "auto", allow: Sequence[str] = ()
) -> list[MethodResult]:
    """Run the methods one after the other, each in a fresh process; see `run_method`."""
    results = []
    context = multiprocessing.get_context("spawn")
    for method in methods:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            results.append(pool.submit(run_method, method, data, device, tuple(allow)).result())
    return results


@cache
def statistics(result: MethodResult) -> dict[str, Estimate]:
    """How well a method agrees with the truth, on the scans that it did not reject.

    Returns:
        ``spearman``, ``icc_2_1``, ``kappa_four`` and ``kappa_five`` (linear weights; the paper's risk groups
        and those of direct scoring), where it scores; ``sensitivity`` and ``specificity`` of a true score
        above 0; ``calcium_dice``; ``seconds``, the median.
    """
    cases = result.scored()
    patients = [c.patient for c in cases]
    found: dict[str, Estimate] = {}
    with_score = [c for c in cases if c.score is not None]
    if with_score:
        truth, said = ([float(getattr(c, k) or 0.0) for c in with_score] for k in ("true_score", "score"))
        estimates = agreement(truth, said, patients=[c.patient for c in with_score]).estimates
        found = {k: estimates[k] for k in ("spearman", "icc_2_1")}
        found["kappa_four"] = estimates["kappa_linear"]
        groups = [[direct_group(s) for s in scores] for scores in (truth, said)]
        found["kappa_five"] = bootstrap(
            lambda x, y: kappa(confusion(x, y, len(GROUPS) + 1), "linear"),
            *groups,
            patients=[c.patient for c in with_score],
        )
    for name, wanted in (("sensitivity", True), ("specificity", False)):
        chosen = [i for i, c in enumerate(cases) if (c.true_score > 0) is wanted]
        right = [float(bool(cases[i].positive) is wanted) for i in chosen]
        found[name] = bootstrap(lambda x: np.mean(x, axis=-1), right, patients=[patients[i] for i in chosen])
    for name, reduce in (("calcium_dice", np.mean), ("seconds", np.median)):
        values = [float(v) for c in cases if (v := getattr(c, name)) is not None]
        if values:
            found[name] = bootstrap(lambda x, r=reduce: r(x, axis=-1), values)
    return found


def operating_points(result: MethodResult, sensitivities: Sequence[float]) -> list[dict[str, float]]:
    """For each wanted sensitivity the largest threshold of an exclusion that reaches it.

    Returns:
        ``wanted``, ``threshold``, and the ``sensitivity`` and ``specificity`` that it gives on these scans.
    """
    cases = [c for c in result.scored() if c.highest is not None]
    positive = np.array([c.highest for c in cases if c.true_score > 0])
    negative = np.array([c.highest for c in cases if c.true_score == 0])
    points = []
    for wanted in sensitivities:
        reached = highest_keeping(positive, wanted)
        threshold = 1.0 if reached is None else reached
        points.append(
            {
                "wanted": wanted,
                "threshold": threshold,
                "sensitivity": float((positive >= threshold).mean()) if len(positive) else float("nan"),
                "specificity": float((negative < threshold).mean()) if len(negative) else float("nan"),
            }
        )
    return points


def to_dict(results: Sequence[MethodResult]) -> dict[str, Any]:
    """Everything as JSON types."""
    return {
        r.method: {
            "peak_mb": r.peak_mb,
            "statistics": {k: asdict(e) for k, e in statistics(r).items()},
            "cases": [asdict(c) for c in r.cases],
        }
        for r in results
    }


ROWS: Mapping[str, tuple[str, int]] = {
    "spearman": ("Spearman", 3),
    "icc_2_1": ("ICC(2,1)", 3),
    "kappa_four": ("linear κ, four groups", 3),
    "kappa_five": ("linear κ, five groups", 3),
    "sensitivity": ("sensitivity, score > 0", 3),
    "specificity": ("specificity", 3),
    "calcium_dice": ("Dice of counted calcium", 3),
    "seconds": ("seconds a scan, median", 2),
}
"""Statistic → its heading and digits."""


def table(results: Sequence[MethodResult]) -> str:
    """One Markdown table: a row a statistic, a column a method, intervals in brackets."""
    columns = {r.method: statistics(r) for r in results}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]

    def row(heading: str, cells: Sequence[str]) -> None:
        lines.append(f"| {heading} | " + " | ".join(cells) + " |")

    row("scans, of these scored", [f"{len(r.cases)}, {len(r.scored())}" for r in results])
    for name, (heading, digits) in ROWS.items():
        row(heading, [_cell(c.get(name), digits) for c in columns.values()])
    if any(c.excluded is not None for r in results for c in r.cases):
        for heading, calcium in (
            ("excluded without calcium", False),
            ("excluded with calcium: missed", True),
        ):
            row(heading, [_excluded(r, calcium) for r in results])
    row("memory, MB", [f"{r.peak_mb:.0f}" for r in results])
    return "\n".join(lines) + "\n"


def _excluded(result: MethodResult, calcium: bool) -> str:
    """How many of the scans with or without calcium the exclusion kept from the calcium network."""
    cases = [c for c in result.scored() if c.excluded is not None and (c.true_score > 0) is calcium]
    return f"{sum(bool(c.excluded) for c in cases)} of {len(cases)}" if cases else "–"


def _cell(estimate: Estimate | None, digits: int) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f}–{estimate.high:.{digits}f})"
