"""The reports of the statistics: Markdown with its figures, for `reporting.page.write_page`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from .. import __version__
from ..scoring.grades import CHEST_CT_GRADES, SCORE_CLASSES, SHARES
from ..stats.agreement import RISK_CUTS, Agreement, group_names, grouped
from ..stats.arteries import NOT_COUNTED, ByArtery
from ..stats.columns import AgreementStudy
from ..stats.longitudinal import KernelPair, Progression
from ..stats.percentiles import Percentiles
from ..stats.reconstructions import Reconstructions
from ..stats.scans import COLUMNS as SCAN_COLUMNS
from ..stats.scans import Scans
from ..stats.survival import Cohort, Survival
from ..stats.tables import Flow
from .agreement_figures import agreement_figures
from .cohort_sections import artery_section, percentile_section, reconstruction_section
from .page import flow_table, interval, number, plain, table
from .plots import BLUE, Drawing, Points, drawn, panel, scatter
from .survival_figures import p_alone, survival_figures

Page = tuple[str, dict[str, Drawing]]
"""Markdown, and figures by name."""

_WARNING = (
    "> Research use only. Not a medical device: nothing here is a finding about a patient. The statistics "
    "say what is in the table, not whether the table is right."
)
_HAZARDS = (*("", "persons", "events", "hazard ratio", "95 % interval", "p", "p, proportional hazards"),)
_COUNTED = (("patient_id", "persons"), ("study_uid", "studies"), ("series_uid", "scans"))
_GRADES = (
    ("cac_drs", "CAC-DRS", ()),
    ("chest_ct_grade", "chest CT grade", CHEST_CT_GRADES),
    ("score_class", "class", SCORE_CLASSES),
    ("percentile", "percentile", ()),
)
"""Column of the results table, heading, and its values in order; (): in that of their letters, `<` first."""
COHORT_COLUMNS = (
    *SCAN_COLUMNS,
    *("n_slices", "code", "volume_mm3", "slice_thickness", "patient_age", "patient_sex"),
    *(column for column, _, _ in _GRADES),
    *SHARES,
    *NOT_COUNTED,
)
"""Columns of a results table that a cohort's report looks at; of millions of rows the others are not read."""
_AGREEMENT = (
    ("Spearman", "spearman", 3),
    ("Pearson", "pearson", 3),
    ("ICC(2,1)", "icc_2_1", 3),
    ("mean difference", "mean_difference", 1),
    ("lower limit of agreement", "lower_limit", 1),
    ("upper limit of agreement", "upper_limit", 1),
    ("mean absolute error", "mean_absolute_error", 1),
    ("groups: accuracy", "accuracy", 3),
    ("groups: κ", "kappa", 3),
    ("groups: κ, linear", "kappa_linear", 3),
    ("groups: κ, quadratic", "kappa_quadratic", 3),
    ("score > 0: sensitivity", "sensitivity_above_0", 3),
    ("score > 0: specificity", "specificity_above_0", 3),
    ("score ≥ 100: sensitivity", "sensitivity_from_100", 3),
    ("score ≥ 100: specificity", "specificity_from_100", 3),
)
"""Label, name and digits of what is shown."""


def agreement_rows(result: Agreement) -> list[list[str]]:
    """Label, value, interval and n of each statistic, as text."""
    return [
        [label, number(e.value, digits), interval(e, digits), str(e.n)]
        for label, name, digits in _AGREEMENT
        if (e := result.estimates.get(name)) is not None
    ]


def agreement_page(study: AgreementStudy, *, title: str = "") -> Page:
    """The report of `compare_columns`."""
    ai, reference = plain(study.ai), plain(study.reference)
    pictures = agreement_figures(study)
    parts = [
        f"# {plain(title) or f'Agreement of {ai} with {reference}'}",
        _WARNING,
        _flows([study.flow]),
        "## Agreement",
        table(["", "value", "95 % interval", "n"], agreement_rows(study.result)),
        f"Differences are {ai} − {reference}. {_bootstrap(study.n_resamples)}",
        "![Scores](figures/scores.png)",
        "![Bland–Altman](figures/bland-altman.png)",
        "## Groups",
        _matrix(study.result.confusion, study.names, reference, ai),
        "![Groups](figures/confusion.png)",
        _made(),
    ]
    return "\n\n".join(parts) + "\n", pictures


def survival_parts(cohort: Cohort, result: Survival, *, unit: str = "") -> Page:
    """The sections of a survival analysis, without heading."""
    follow_up = number(result.median_follow_up, 2) + (f" {plain(unit)}" if unit else "")
    groups = [
        [plain(c.name), str(len(c.followed)), str(int(c.event.sum())), f"{c.event.mean():.1%}"]
        for c in result.curves
    ]
    hazards = [
        [f"{plain(h.name)}", str(h.persons), str(h.events), "1 (reference)", "", "", ""]
        if h.reference
        else [plain(h.name), str(h.persons), str(h.events), number(h.ratio, 2),
              f"{number(h.low, 2)} to {number(h.high, 2)}", p_alone(h.p), p_alone(h.p_proportional)]
        for h in result.rows
    ]  # fmt: skip
    doubtful = [plain(h.name) for h in result.hazards if h.p_proportional < 0.05]
    c = result.concordance
    parts = [
        _flows(cohort.flow),
        f"{result.persons} persons, {result.events} events, median follow-up {follow_up} (reversed curves).",
        "![Kaplan–Meier](figures/kaplan-meier.png)",
        table(["group", "persons", "events", "share"], groups),
        "## Cox model",
        table(_HAZARDS, hazards),
        "![Forest plot](figures/forest.png)",
        f"c-index {number(c.value, 3)} ({interval(c, 3)}), on the data that the model was made from.",
        "Notes: " + "; ".join(map(plain, cohort.notes)) + ".",
        "Proportional hazards (Grambsch and Therneau, ranked time): "
        + (
            f"doubtful for {', '.join(doubtful)} (p < 0.05): there the ratio is a mean over time."
            if doubtful
            else "no sign against them (all p ≥ 0.05)."
        ),
    ]
    return "\n\n".join(parts), survival_figures(result, unit=unit)


def survival_page(cohort: Cohort, result: Survival, *, unit: str = "", title: str = "") -> Page:
    """The report of `build_cohort` and `analyse`."""
    text, pictures = survival_parts(cohort, result, unit=unit)
    parts = [f"# {plain(title) or 'Survival by coronary calcium'}", _WARNING, text, _made()]
    return "\n\n".join(parts) + "\n", pictures


def cohort_page(
    results: pd.DataFrame,
    scans: Scans,
    followed: Progression | None,
    pairs: Sequence[KernelPair],
    *,
    survival: Page | None = None,
    percentiles: Percentiles | None = None,
    arteries: ByArtery | None = None,
    reconstructed: Reconstructions | None = None,
    missing: Mapping[str, str] = MappingProxyType({}),
    cuts: Sequence[float] = RISK_CUTS,
    title: str = "",
) -> Page:
    """One report about a results table: what was scored, scores, change over time, kernels, survival.

    Args:
        results: The whole table, as `read_table` gives it.
        scans: Of `scored`.
        followed: Of `progression`.
        pairs: Of `kernel_pairs`.
        survival: Of `survival_parts`.
        percentiles: Of `stats.percentiles.by_ethnicity`.
        arteries: Of `stats.arteries.by_artery`.
        reconstructed: Of `stats.reconstructions.reconstructions`.
        missing: Parts that could not be made, by name, and why.
    """
    frame = scans.frame
    scores = frame["agatston_score"].to_numpy(dtype=float)
    names = group_names(cuts)
    group = grouped(scores, cuts)
    pictures = {"distribution": _distribution(scores)}
    counts = [
        [plain(n), str(int((group == g).sum())), f"{(group == g).mean():.1%}"] for g, n in enumerate(names)
    ]
    parts = [
        f"# {plain(title) or 'Coronary calcium of a cohort'}",
        _WARNING,
        _flows([scans.flow]),
        ", ".join(f"{frame[c].nunique()} {what}" for c, what in _COUNTED) + ".",
        _reasons(results),
        "## Scores",
        table(["group", "scans", "share"], counts),
        f"Median score {np.median(scores):.1f}, quartiles {np.quantile(scores, 0.25):.1f} and "
        f"{np.quantile(scores, 0.75):.1f}, highest {scores.max():.1f}.",
        "![Distribution](figures/distribution.png)",
        _grades(frame),
        _by_kernel(frame, group),
    ]
    if percentiles is not None:
        parts.append(percentile_section(percentiles))
    if arteries is not None:
        text, figures = artery_section(arteries)
        parts.append(text)
        pictures.update(figures)
    parts += ["## Change over time", _change(followed)]
    if followed is not None:
        pictures["change"] = _change_figure(followed)
        parts.append("![Change](figures/change.png)")
    parts += ["## One study, two kernels", _kernels(pairs)]
    if reconstructed is not None:
        text, figures = reconstruction_section(reconstructed)
        parts.append(text)
        pictures.update(figures)
    if survival is not None:
        parts += ["## Survival", survival[0]]
        pictures.update(survival[1])
    for name, reason in missing.items():
        parts += [f"## {plain(name)}", f"> This part could not be made: {plain(reason)}"]
    return "\n\n".join([*parts, _made()]) + "\n", pictures


def _flows(flows: Iterable[Flow]) -> str:
    return "## Who is in\n\n" + flow_table(flows)


def _matrix(counts: npt.NDArray[np.int64], names: Sequence[str], rows: str, columns: str) -> str:
    body = [[f"{rows}: {plain(n)}", *map(str, row)] for n, row in zip(names, counts.tolist(), strict=True)]
    return table(["", *(f"{columns}: {plain(n)}" for n in names)], body)


def _bootstrap(n: int) -> str:
    return (
        f"95 % percentile intervals of {n} bootstrap resamples with a fixed seed, of whole patients where "
        "their column is named; \\* exact (Clopper–Pearson)."
    )


def _made() -> str:
    return f"Made with deepcac2 {plain(__version__)}."


def _reasons(results: pd.DataFrame) -> str:
    if "code" not in results:
        return ""
    left = results[results["status"] != "scored"]
    counts = Counter(zip(left["status"], left["code"], strict=True))
    rows = [[plain(s), f"`{c}`" if c else "–", str(n)] for (s, c), n in counts.most_common(20)]
    return table(["not scored", "reason", "scans"], rows) if rows else "Every scan was scored."


def _grades(frame: pd.DataFrame) -> str:
    """Scans by each grade that the table has; "" where it has none, as those of older versions."""
    tables = []
    for column, heading, order in _GRADES:
        if column not in frame:
            continue
        graded = frame.loc[frame[column] != "", column]
        counts = Counter(graded)
        places = {value: place for place, value in enumerate(order)}
        rows = [
            [plain(value), str(counts[value]), f"{counts[value] / len(graded):.1%}"]
            for value in sorted(counts, key=lambda v: (places.get(v, len(places)), not v.startswith("<"), v))
        ]
        if rows:
            left = len(frame) - len(graded)
            tables.append(table([heading, "scans", "share"], rows))
            tables += [f"{left} scans have no {heading}."] if left else []
    return "\n\n".join(tables)


def _by_kernel(frame: pd.DataFrame, group: npt.NDArray[np.int64]) -> str:
    rows = []
    positive = pd.Series(group > 0, frame.index)
    for kernel, own in sorted(frame.groupby("kernel"), key=lambda item: -len(item[1]))[:15]:
        rows.append(
            [
                plain(str(kernel)) or "–",
                str(len(own)),
                f"{own['agatston_score'].median():.1f}",
                f"{positive[own.index].mean():.1%}",
            ]
        )
    return table(["kernel", "scans", "median score", "score > 0"], rows)


def _change(followed: Progression | None) -> str:
    if followed is None:
        return "Nobody has two scored visits."
    c, i, p = followed.change, followed.incident, followed.progressed
    rows = [
        ["change of the score a year, median", number(c.value, 2), interval(c, 2), str(c.n)],
        ["score 0, then above 0", number(i.value, 3), interval(i, 3), str(i.n)],
    ]
    if p is not None:
        rows.append(["√volume up by 2.5 √mm³ or more", number(p.value, 3), interval(p, 3), str(p.n)])
    text = (
        f"{followed.persons} persons with {followed.intervals} pairs of successive visits, "
        f"{followed.years:.2f} years apart (median). What changes is also scanner, kernel and noise."
    )
    return "\n\n".join(
        [
            flow_table([followed.flow]),
            text,
            table(["", "value", "95 % interval", "n"], rows),
            _matrix(followed.transitions, followed.names, "before", "after"),
        ]
    )


def _kernels(pairs: Sequence[KernelPair]) -> str:
    if not pairs:
        return "No two kernels have five studies in common."
    rows = []
    for p in pairs:
        e = p.result.estimates
        limits = f"{number(e['lower_limit'].value, 1)} to {number(e['upper_limit'].value, 1)}"
        rows.append(
            [plain(p.first), plain(p.second), str(p.n), number(e["mean_difference"].value, 1), limits,
             *(number(e[name].value, 3) for name in ("icc_2_1", "kappa_linear", "accuracy"))]
        )  # fmt: skip
    heading = [
        "kernel",
        "other",
        "studies",
        "mean difference",
        "limits",
        "ICC(2,1)",
        "κ, linear",
        "same group",
    ]
    return table(heading, rows) + "\n\nDifferences are the other kernel's score − the kernel's."


def _distribution(scores: npt.NDArray[np.float64]) -> Drawing:
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    top = max(float(scores.max()), 10.0)
    edges = np.geomspace(1, top * 1.0001, 25)
    positive = scores[scores > 0]
    axes.hist(
        np.clip(positive, 1, None),
        bins=[float(e) for e in edges],
        color=BLUE,
        edgecolor="white",
        linewidth=0.6,
    )
    axes.set_xscale("log")
    zero = int((scores == 0).sum())
    panel(
        axes,
        f"score > 0 (n = {len(positive)}); {zero} scans have 0",
        "Agatston score (below 1: in the first bar)",
        "scans",
    )
    return drawn(figure)


def _change_figure(followed: Progression) -> Drawing:
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    a, b = followed.pairs["before"].to_numpy(dtype=float), followed.pairs["after"].to_numpy(dtype=float)
    end = max(float(a.max()), float(b.max()), 10.0) * 1.2
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("symlog", linthresh=1)
    axes.plot([0, end], [0, end], color="#718096", linewidth=1)
    scatter(axes, Points(reference=a, predicted=b), a, b)
    axes.set_xlim(-0.2, end)
    axes.set_ylim(-0.2, end)
    axes.set_box_aspect(1)
    panel(axes, f"successive visits (n = {len(a)})", "Agatston score before", "Agatston score after")
    return drawn(figure)


def summary_lines(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of `agreement_rows` in words, for the terminal."""
    return [
        f"{label:32s} {value:>9s}" + (f"  [{between}]" if between else "").replace("\\", "") + f"  n = {n}"
        for label, value, between, n in rows
    ]


def estimates_of(result: Agreement) -> Mapping[str, dict[str, float | int | str | None]]:
    """The statistics as JSON types."""
    return {name: dict(vars(e)) for name, e in result.estimates.items()}
