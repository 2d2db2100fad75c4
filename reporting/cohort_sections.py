"""Sections of a cohort's page that stand there only where the tables have what they need."""

from __future__ import annotations

from collections import Counter

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..stats.agreement import Estimate
from ..stats.arteries import MOST_ARTERIES, ByArtery, Site
from ..stats.percentiles import Percentiles, in_order
from ..stats.reconstructions import Difference, Reconstructions
from .page import flow_table, interval, number, plain, table
from .plots import BLUE, GREY, ORANGE, Drawing, Points, bland_altman_figure, drawn, panel


def percentile_section(found: Percentiles) -> str:
    """Scans by percentile among people of the same ethnicity, and beside that by age and sex alone."""
    parts = ["## Percentile by ethnicity", flow_table([found.flow])]
    frame = found.frame
    if not len(frame):
        return "\n\n".join(parts)
    counts = Counter(frame["percentile_mesa"])
    rows = [[plain(r), str(counts[r]), f"{counts[r] / len(frame):.1%}"] for r in in_order([*counts])]
    parts += [
        f"Percentile by {plain(found.population)}: of people scanned by gated or electron beam CT, taken "
        "from a transcription of the paper's table.",
        table(["percentile, MESA", "scans", "share"], rows),
    ]
    beside = Counter(zip(frame["percentile"], frame["percentile_mesa"], strict=True))
    both = in_order([hoff for hoff, _ in beside if hoff]), in_order([*counts])
    if both[0]:
        body = [[plain(hoff), *(str(beside[hoff, mesa]) for mesa in both[1])] for hoff in both[0]]
        parts += [
            "Beside the percentile by age and sex alone (Hoff 2001):",
            table(["Hoff", *(f"MESA: {plain(mesa)}" for mesa in both[1])], body),
        ]
    return "\n\n".join(parts)


def artery_section(found: ByArtery) -> tuple[str, dict[str, Drawing]]:
    """Where calcium is and how much, in how many arteries, and what was not counted; with its figure."""
    total = found.flow.left
    parts = ["## Arteries", flow_table([found.flow])]
    if not total:
        return "\n\n".join(parts), {}
    counts = [*map(str, found.with_calcium.tolist()), str(found.unknown)]
    names = [*map(str, range(MOST_ARTERIES + 1)), "artery not sure"]
    spread = [[n, count, f"{int(count) / total:.1%}"] for n, count in zip(names, counts, strict=True)]
    drs = [
        [f"A{a}", *(str(n) if n or not _never(a, place) else "–" for place, n in enumerate(row))]
        for a, row in enumerate(found.categories.tolist())
    ]
    heading = ["", "scans with calcium there", "share", "median score of these", "quartiles"]
    parts += [
        table(heading, map(_site_row, found.sites)),
        "![Arteries](figures/arteries.png)",
        table(["arteries with calcium", "scans", "share"], spread),
        table(["CAC-DRS", "no N", *(f"N{n}" for n in range(1, MOST_ARTERIES + 1)), "artery not sure"], drs),
        "What was not counted, with the score that it would have:",
        table(heading, map(_site_row, found.not_counted)),
    ]
    return "\n\n".join(parts), {"arteries": _artery_figure(found)}


def _never(a: int, place: int) -> bool:
    """Whether a place of the table of CAC-DRS can hold nobody: A0 has no N, the others have one."""
    return (a == 0) != (place == 0)


def _site_row(site: Site) -> list[str]:
    if site.quartiles is None:
        return [plain(site.name), "0", number(0.0, 1) + "%", "–", ""]
    low, middle, high = (number(value, 1) for value in site.quartiles)
    share = f"{len(site.scores) / site.scans:.1%}"
    return [plain(site.name), str(len(site.scores)), share, middle, f"{low} to {high}"]


def _artery_figure(found: ByArtery) -> Drawing:
    """How many have calcium in each place, and their scores there."""
    sites = [*found.sites, *found.not_counted][::-1]
    colours = [GREY] * len(found.not_counted) + [BLUE] * len(found.sites)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(sites))
    left.barh(places, [100 * len(s.scores) / max(s.scans, 1) for s in sites], color=colours, height=0.65)
    left.set_yticks(places, [s.name for s in sites], fontsize=8)
    left.set_xlim(0, 100)
    panel(left, f"with calcium there (n = {found.flow.left}; grey: not counted)", "scans, %", "")
    for place, site, colour in zip(places, sites, colours, strict=True):
        if site.quartiles is not None:
            low, middle, high = site.quartiles
            right.barh(place, high - low, left=low, color=colour, edgecolor=colour, height=0.5)
            right.plot([middle], [place], marker="|", markersize=13, markeredgewidth=2, color=ORANGE)
    ends = [end for site in sites if site.quartiles for end in site.quartiles] or [1.0]
    right.set_xscale("log")
    right.set_xlim(min(1.0, *ends) * 0.8, max(100.0, *ends) * 1.25)
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    panel(right, "score of these: quartiles, median (orange)", "Agatston score", "")
    return drawn(figure)


def reconstruction_section(found: Reconstructions) -> tuple[str, dict[str, Drawing]]:
    """What kernel and thickness do to the score; with its figure."""
    heading = [
        "kernels",
        "slices",
        "pairs",
        "studies",
        "median difference",
        "95 % interval",
        "limits of agreement",
        "another group",
    ]
    parts = [
        "## One acquisition, several reconstructions",
        flow_table([found.flow]),
        "Every two series of a study that differ in kernel or thickness. The first of two is the one with "
        "the soft kernel, of two alike the one with the thicker slices, then the one whose kernel comes "
        "first by name; differences are the second's score − the first's. Studies are told apart by their "
        "StudyInstanceUID: the table has no frame of reference, so where a study holds two acquisitions, "
        "these are compared as well.",
        table(heading, map(_difference_row, (found.everything, *found.kinds))),
    ]
    if found.left:
        parts.append(f"{found.left} pairs are of kinds with fewer than five.")
    parts.append("![Reconstructions](figures/reconstructions.png)")
    return "\n\n".join(parts), {"reconstructions": _reconstruction_figure(found.everything)}


def _difference_row(of: Difference) -> list[str]:
    limits = "–" if of.limits is None else " to ".join(number(limit, 1) for limit in of.limits)
    other = f"{of.regrouped} ({of.regrouped / of.n:.1%})"
    return [of.kernels, of.thickness, str(of.n), str(of.studies), number(of.median.value, 1),
            interval(of.median, 1), limits, other]  # fmt: skip


def _reconstruction_figure(of: Difference) -> Drawing:
    low, high = of.limits or (None, None)
    middle = None if low is None or high is None else (low + high) / 2
    lines = {"mean_difference": middle, "lower_limit": low, "upper_limit": high}
    return bland_altman_figure(
        [Points(reference=of.scores[:, 0], predicted=of.scores[:, 1])],
        {name: Estimate(value=value, n=of.n) for name, value in lines.items()},
        reference="first",
        predicted="second",
    )
