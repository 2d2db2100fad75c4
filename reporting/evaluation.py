"""The report of an evaluation: a page as Markdown and as self-contained HTML, its pictures, its data."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .. import __version__
from ..evaluation import cases as cases_of
from ..evaluation import summary as summary_of
from ..evaluation.cases import STATUSES, CaseResult, Evaluation
from ..evaluation.summary import ArteryRate, Stratum, Summary, WrongRate
from ..scoring.grades import ARTERIES
from ..stats.agreement import MIN_PATIENTS, N_RESAMPLES, group_names
from ..system.atomic import write_json, write_whole
from .evaluation_figures import figures
from .page import interval, number, plain, table, write_page

DATA = "evaluation.json"
TABLE = "cases.csv"

_WORST = 5
"""Cases shown for each kind of error."""
_LISTED = 40
"""Cases that were not scored shown at most; the table holds all."""

_CAUTION = (
    "Research only; not a medical device. These weights must not be used to diagnose, to decide about "
    "treatment or follow-up, to tell a person their risk, or to replace the reading of a scan by a physician."
)
_CAUTION_BY_KIND = {
    "simulated": "The scans are drawn by a computer. These numbers say how well the chain measures what the "
    "simulator draws; they say nothing about patients.",
    "real": "These numbers hold for the few real scans listed here, as they were annotated; they are no "
    "validation on patients, scanners and protocols in general.",
    "simulated and real": "Simulated and real scans are mixed here, so the numbers hold for neither; "
    "evaluate them apart.",
}

_HEART = (
    ("Dice, mean", "heart_dice_mean", 3),
    ("Dice, median", "heart_dice_median", 3),
    ("Dice, lowest", "heart_dice_min", 3),
    ("HD95, median, mm", "heart_hd95_median", 1),
    ("HD95, highest, mm", "heart_hd95_max", 1),
    ("centre error, median, mm", "centre_error_median", 1),
    ("centre error, highest, mm", "centre_error_max", 1),
    ("centre error of the crop, median, mm", "crop_error_median", 1),
    ("centre error of the crop, highest, mm", "crop_error_max", 1),
)
_CALCIUM = (
    ("Dice of the masks, mean", "calcium_dice_mean", 3),
    ("Dice of the counted voxels, mean", "counted_dice_mean", 3),
    ("lesions found", "lesion_sensitivity", 3),
    ("false lesions per scan", "false_lesions_per_scan", 2),
)
_SCORE = (
    ("Spearman's ρ", "spearman", 3),
    ("Pearson's r", "pearson", 3),
    ("ICC(2,1)", "icc_2_1", 3),
    ("mean difference, predicted − true", "mean_difference", 1),
    ("lower limit of agreement", "lower_limit", 1),
    ("upper limit of agreement", "upper_limit", 1),
    ("mean absolute error", "mean_absolute_error", 1),
)
_GROUPS = (
    ("κ, linear weights", "kappa_linear", 3),
    ("κ, quadratic weights", "kappa_quadratic", 3),
    ("κ, no weights", "kappa", 3),
    ("accuracy", "accuracy", 3),
    ("κ of CAC-DRS A, linear weights", "cac_drs_a_kappa_linear", 3),
    ("score > 0: sensitivity", "sensitivity_above_0", 3),
    ("score > 0: specificity", "specificity_above_0", 3),
)
_NAMES = (
    ("score with the right artery", "artery_right", 3),
    ("score with another one", "artery_other", 3),
    ("score with none, not sure", "artery_not_sure", 3),
    ("number of arteries right", "n_right", 3),
    *((f"ρ, {name}", f"spearman_{name.lower()}", 3) for name in ARTERIES),
)
_IN_STRATA = (
    ("heart Dice", "heart_dice_mean", 3),
    ("counted Dice", "counted_dice_mean", 3),
    ("lesions found", "lesion_sensitivity", 2),
    ("false lesions", "false_lesions_per_scan", 2),
    ("ρ", "spearman", 3),
    ("κ linear", "kappa_linear", 2),
    ("sensitivity", "sensitivity_above_0", 2),
    ("specificity", "specificity_above_0", 2),
)
"""Columns of the table of strata: heading, statistic, digits."""


def write_report(
    evaluation: Evaluation, summary: Summary, folder: Path, *, title: str = "", note: str = ""
) -> Path:
    """Write ``report.md``, ``report.html``, ``figures/*.png``, ``evaluation.json`` and ``cases.csv``.

    The same evaluation gives the same bytes; there is no date in it.

    Args:
        folder: Made when missing; files of these names are replaced.
        title: Heading; by default it says whether the scans are simulated or real.
        note: What a reader must know beside that, in plain words.

    Returns:
        The path of the HTML page.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    pictures = figures(evaluation, summary)
    text = markdown(evaluation, summary, pictures, title=title, note=note)
    page = write_page(folder, text, pictures)
    write_whole(folder / TABLE, _csv(evaluation.cases).encode())
    write_json(folder / DATA, {**cases_of.to_dict(evaluation), **summary_of.to_dict(summary)})
    return page


def kind_of(evaluation: Evaluation) -> str:
    """``"simulated"``, ``"real"`` or ``"simulated and real"``."""
    kinds = {c.simulated for c in evaluation.cases}
    return "simulated and real" if len(kinds) > 1 else "simulated" if kinds == {True} else "real"


def seen_in_training(evaluation: Evaluation) -> dict[str, list[str]]:
    """Cases that the description of the weights names as training data, by role of the weights.

    By the case's name as a word, or by the seed of a simulated patient within "seeds A to B": what the
    description does not say is not found.
    """
    found = {}
    for role, about in evaluation.weights.items():
        text = str(about.get("training_data", ""))
        ranges = [(int(a), int(b)) for a, b in re.findall(r"seeds? (\d+) to (\d+)", text)]
        names = []
        for case in evaluation.cases:
            seed = re.fullmatch(r"SIM-(\d+)", case.name)
            named = re.search(rf"(?<!\w){re.escape(case.name)}(?!\w)", text)
            if named or (seed and any(a <= int(seed[1]) <= b for a, b in ranges)):
                names.append(case.name)
        if names:
            found[role] = names
    return found


def markdown(
    evaluation: Evaluation,
    summary: Summary,
    pictures: Iterable[str],
    *,
    title: str = "",
    note: str = "",
) -> str:
    """The page; it shows those of the pictures (by name, see `figures`) that there are."""
    kind = kind_of(evaluation)
    shown = set(pictures)

    def picture(name: str, text: str) -> str:
        return f"![{text}](figures/{name}.png)" if name in shown else ""

    heading = title or f"Evaluation on {kind} scans"
    parts = [
        f"# {plain(heading)}",
        f"> **{_CAUTION}** {_CAUTION_BY_KIND[kind]}",
        _seen(evaluation),
        plain(note),
        _about(evaluation),
        "## Heart",
        _statistics(summary, _HEART) if summary.statistics["heart_dice_mean"].n else "No heart is annotated.",
        picture("dice", "Dice of heart and calcium, by kernel type"),
        "## Calcium",
        _statistics(summary, _CALCIUM),
        "Dice: scans with true calcium only. A lesion is a group of voxels that touch (26 neighbours), lie "
        "in the mask, have at least 130 HU and, within a slice, at least 1 mm². It is found when the "
        "predicted mask holds one of its voxels; a predicted lesion is false when the true mask holds none "
        "of its.",
        _lesions(summary),
        picture("lesions", "Lesions found, by artery and volume"),
        *_by_artery(summary),
        *_wrongly_counted(summary.wrong),
        "## Score",
        f"Agatston scores of true and predicted mask by the same rule, `{evaluation.rule or 'none'}`.",
        _statistics(summary, _SCORE),
        picture("scores", "Predicted against true score; right: up to 300"),
        picture("bland-altman", "Bland-Altman plot of the scores"),
        *_doubt(summary),
        "## Risk groups",
        _statistics(summary, _GROUPS),
        _confusion(summary),
        picture("confusion", "Confusion matrix of the risk groups"),
        "## Strata",
        _strata(summary.strata),
        "## Worst cases",
        _worst(evaluation.scored),
        "## How to read the intervals",
        _intervals(summary),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


# Pieces of the page


def _about(evaluation: Evaluation) -> str:
    counts = {s: evaluation.count(s) for s in STATUSES}
    words = ", ".join(f"{n} {s}" for s, n in counts.items() if n or s == "scored")
    patients = len({c.patient for c in evaluation.cases})
    rows = [
        ["scans with a truth", f"{len(evaluation.cases)} of {patients} patients: {words}"],
        ["made with", f"deepcac2 {plain(evaluation.version or __version__)}"],
    ]
    for role, about in evaluation.weights.items():
        rows.append([f"{role} weights", f"{plain(about['name'])} ({str(about['sha256'])[:12]})"])
        for key, label in (("training_data", "trained on"), ("intended_use", "meant for")):
            if about.get(key):
                rows.append([f"{role} weights, {label}", plain(str(about[key]))])
    text = table(["", ""], rows)
    if evaluation.unmatched:
        text += f"\n\n{evaluation.unmatched} scored series have no truth here and are in no number."
    return text + _not_scored(evaluation)


def _seen(evaluation: Evaluation) -> str:
    parts = []
    for role, names in seen_in_training(evaluation).items():
        some = ", ".join(map(plain, names[:_WORST])) + (" …" if len(names) > _WORST else "")
        parts.append(
            f"> **No test of the {role} weights:** {len(names)} of {len(evaluation.cases)} scans belong to "
            f"their training data ({some})."
        )
    return "\n>\n".join(parts)


def _not_scored(evaluation: Evaluation) -> str:
    left = [c for c in evaluation.cases if c.status != "scored"]
    if not left:
        return ""
    rows = [[plain(c.name), c.status, plain(c.reason)] for c in left[:_LISTED]]
    more = f"\n\nand {len(left) - _LISTED} more in `{TABLE}`." if len(left) > _LISTED else ""
    intro = "Not scored, and so in none of the statistics below:"
    return f"\n\n{intro}\n\n{table(['scan', 'status', 'why'], rows)}{more}"


def _statistics(summary: Summary, wanted: Sequence[tuple[str, str, int]]) -> str:
    rows = []
    for label, name, digits in wanted:
        estimate = summary.statistics[name]
        rows.append([label, number(estimate.value, digits), interval(estimate, digits), str(estimate.n)])
    return table(["", "value", "95 % interval", "n"], rows)


def _lesions(summary: Summary) -> str:
    rows = [
        [row.by, row.value, f"{row.found} of {row.total}", interval(row.sensitivity, 2)]
        for row in summary.lesions
    ]
    return table(["by", "", "found", "95 % interval of the share"], rows) if rows else ""


def _by_artery(summary: Summary) -> list[str]:
    """Voxels found by artery, of all scans and of their parts, and what the found ones were called."""
    rates = summary.arteries
    if not rates:
        return []
    names = list(dict.fromkeys(r.artery for r in rates))
    rows = []
    for by, value in dict.fromkeys((r.by, r.value) for r in rates):
        cells = {r.artery: _share(r) for r in rates if (r.by, r.value) == (by, value)}
        rows.append([by or "all scans", plain(value), *(cells.get(name, "") for name in names)])
    parts = [
        "### By artery",
        "Share of the voxels of at least 130 HU that the truth gives an artery and the predicted mask holds; "
        "in brackets its interval, and the voxels found of all.",
        table(["by", "", *names], rows),
    ]
    called = [r for r in rates if not r.by and r.named]
    if called:
        shares = [[number(x, 3) for x in (r.right, r.other, r.not_sure)] for r in called]
        rows = [[r.artery, str(r.named), *cells] for r, cells in zip(called, shares, strict=True)]
        parts += [
            "What the voxels found were called:",
            table(["true artery", "voxels found", "the right artery", "another one", "not sure"], rows),
        ]
    if summary.statistics["artery_right"].n:
        parts += [
            "By score, in scans whose truth names the artery of all calcium. The number of arteries with a "
            "score is that of scans with calcium; it is not right where a part is not sure.",
            _statistics(summary, _NAMES),
        ]
    return parts


def _share(rate: ArteryRate) -> str:
    between = interval(rate.recall, 2)
    return (
        f"{number(rate.recall.value, 3)} ({between + '; ' if between else ''}{rate.found} of {rate.voxels})"
    )


def _wrongly_counted(rates: Sequence[WrongRate]) -> list[str]:
    if not rates:
        return []
    rows = []
    for r in rates:
        voxels = str(r.voxels) if r.labelled is None else f"{r.voxels} of {r.labelled}"
        most = f"{number(r.most, 1)} ({plain(r.where)})" if r.where else number(r.most, 1)
        rows.append(
            [plain(r.kind), str(r.scans), voxels, number(r.score.value, 2), interval(r.score, 2), most]
        )
    heading = ["", "scans with it", "voxels counted", "points a scan", "95 % interval", "most in a scan"]
    return [
        "### Wrongly counted",
        f"What counts in the prediction and is not coronary by the truth, in {rates[0].score.n} scans whose "
        "truth says what else is calcified. A piece of the predicted mask has its weight as a whole, and "
        "each kind the share of its voxels. An unlabelled edge touches coronary calcium or what is not sure.",
        table(heading, rows),
    ]


def _doubt(summary: Summary) -> list[str]:
    parts = []
    covered = summary.statistics.get("interval_coverage")
    if covered is not None and covered.n:
        between = interval(covered, 2)
        parts.append(
            f"The true score lies in the interval that was given with the score in "
            f"{number(covered.value, 3)} ({between}) of {covered.n} scans; scans unlike the training data "
            "get none."
        )
    if summary.sure:
        rows = [[f"{r.certainty} %", f"{r.true} of {r.lesions}", interval(r.share, 2)] for r in summary.sure]
        heading = ["certainty of the network", "lesions that are calcium", "95 % interval of the share"]
        parts += ["Counted lesions by how sure the network was where it was surest:", table(heading, rows)]
    return ["### How sure", *parts] if parts else []


def _confusion(summary: Summary) -> str:
    names = group_names()
    rows = [[f"true: {names[i]}", *map(str, row)] for i, row in enumerate(summary.agreement.confusion)]
    return table(["", *(f"predicted: {n}" for n in names)], rows)


def _strata(strata: Sequence[Stratum]) -> str:
    if not strata:
        return "All scans are alike in kernel, noise, thickness and tube voltage."
    rows = []
    for s in strata:
        cells = []
        for _, name, digits in _IN_STRATA:
            estimate = s.statistics[name]
            between = interval(estimate, digits)
            cells.append(number(estimate.value, digits) + (f" ({between})" if between else ""))
        rows.append([s.by, plain(s.value), str(s.n), *cells])
    note = (
        "Noise is measured in the true heart. Small strata have wide intervals, and none where there are too "
        f"few scans; all statistics of every stratum are in `{DATA}`."
    )
    return table(["by", "", "n", *(label for label, _, _ in _IN_STRATA)], rows) + f"\n\n{note}"


def _worst(cases: Sequence[CaseResult]) -> str:
    def ranked(key: Callable[[CaseResult], float | None]) -> list[CaseResult]:
        known = [(value, i, c) for i, c in enumerate(cases) if (value := key(c)) is not None]
        return [c for _, _, c in sorted(known, key=lambda k: (-k[0], k[1]))[:_WORST]]

    def score_error(c: CaseResult) -> float | None:
        if c.score is None or c.true_score is None or c.score == c.true_score:
            return None
        return abs(c.score - c.true_score)

    def false_volume(c: CaseResult) -> float | None:
        return sum(c.false_lesions) if c.false_lesions else None

    lists = (
        ("Lowest heart Dice", lambda c: None if c.heart_dice is None else -c.heart_dice),
        ("Largest error of the score", score_error),
        ("Most false calcium", false_volume),
    )
    parts = []
    for label, key in lists:
        chosen = ranked(key)
        if chosen:
            parts.append(f"{label}:\n\n{_case_table(chosen)}")
    wrong = [c for c in cases if c.group is not None and c.true_group is not None]
    missed = sum(c.true_group > 0 and c.group == 0 for c in wrong if c.true_group is not None)
    parts.append(f"Scans with true calcium and a predicted score of 0: {missed}. All cases: `{TABLE}`.")
    return "\n\n".join(parts)


def _case_table(cases: Sequence[CaseResult]) -> str:
    heading = [
        "scan", "kernel", "noise, HU", "thickness, mm", "heart Dice", "HD95, mm", "true score", "score",
        "lesions found", "false lesions", "unlike training",
    ]  # fmt: skip
    rows = [
        [
            plain(c.name),
            plain(c.kernel),
            number(c.noise_hu, 0),
            number(c.thickness_mm or c.increment_mm, 2),
            number(c.heart_dice, 3),
            number(c.heart_hd95_mm, 1),
            number(c.true_score, 1),
            number(c.score, 1),
            f"{sum(x.found for x in c.lesions)} of {len(c.lesions)}",
            "" if c.false_lesions is None else str(len(c.false_lesions)),
            plain(", ".join(c.off_domain or ())),
        ]
        for c in cases
    ]
    return table(heading, rows)


def _intervals(summary: Summary) -> str:
    text = (
        f"95 % percentile intervals of {N_RESAMPLES} bootstrap resamples of whole patients with a fixed "
        "seed. A share that is 0 or 1 has the exact (Clopper-Pearson) interval, marked \\*, which takes "
        "scans or lesions for independent. A dash: undefined, for want of scans or of variation. No "
        f"interval: a lowest or highest value, fewer than {MIN_PATIENTS} patients, or resamples that are all "
        "alike or mostly undefined."
    )
    partly = [f"{name} ({e.defined:.0%})" for name, e in summary.statistics.items() if e.n and e.defined < 1]
    if partly:
        text += f" Undefined in some resamples, which were left out (share defined): {', '.join(partly)}."
    return text


def _csv(cases: Sequence[CaseResult]) -> str:
    """One row a case; lists become counts or words joined by ``;``, what is told by name further columns."""
    lists = ("lesions", "false_lesions", "counted", "interval", "arteries", "wrong")
    names = [f.name for f in fields(CaseResult) if f.name not in lists]
    arteries = sorted({a.artery for c in cases for a in c.arteries})
    kinds = sorted({w.kind for c in cases for w in c.wrong or ()})
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    heading = [*names, "score_low", "score_high", "true_lesions", "found_lesions", "false_lesions"]
    heading += [f"{what}_voxels_{a.lower()}" for a in arteries for what in ("true", "found")]
    heading += [f"wrong_{what}_{k.replace(' ', '_')}" for k in kinds for what in ("voxels", "score")]
    writer.writerow(heading)
    for case in cases:
        content = asdict(case)
        row: list[Any] = [";".join(v) if isinstance(v := content[n], tuple) else v for n in names]
        judged = case.false_lesions is not None
        found = sum(x.found for x in case.lesions)
        counts = [len(case.lesions), found, len(case.false_lesions or ())] if judged else ["", "", ""]
        of_artery = {a.artery: (a.voxels, a.found) for a in case.arteries}
        of_kind = {w.kind: (w.voxels, w.score) for w in case.wrong or ()}
        by_name: list[Any] = [n for a in arteries for n in of_artery.get(a, ("", ""))]
        by_name += [n for k in kinds for n in of_kind.get(k, ("", ""))]
        writer.writerow([*map(_cell, row), *(case.interval or ("", "")), *counts, *by_name])
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula is preceded by an apostrophe."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
