"""What the page asks for: a page of the table, counts for filters and charts, one case, the table as CSV."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..dicom.gates import GATES
from ..errors import InputUnreadable
from ..pipeline.outputs import PREVIEW_NAME
from ..pipeline.results import COLUMNS, no_formula, series_folder
from ..scoring.result import RiskGroup
from ..system.inside import regular_inside
from .files import read_details
from .table import Filter, Results, Selection, literal, literals, quoted, score_labels

SHOWN = (
    "patient_id", "study_uid", "series_uid", "status", "code", "reason", "time_point", "time_point_from",
    "agatston_score", "risk_group", "caution", "screening_positive", "direct_score", "direct_group",
    "study_date", "series_description", "manufacturer", "model_name", "kernel", "slice_thickness", "n_slices",
    "contrast", "off_domain", "warnings",
)  # fmt: skip
"""Columns of a page of the table; the clinical ones follow."""

MOST_ROWS = 200
"""Most rows of a page."""
MOST_VALUES = 400
"""Most values of a filter that are sent; the page finds the others by its search field."""
MOST_KERNELS = 15
"""Most kernels in the chart of their numbers."""
MOST_SCORED_KERNELS = 10
"""Most kernels in the chart of average scores: each has a bar for every time point."""
RISK_NAMES = {int(group): group.label for group in RiskGroup}


def cases(results: Results, selection: Selection, *, page: int, size: int) -> dict[str, Any]:
    """One page of the table.

    Args:
        page: From 1; beyond the last one the last one is given.
        size: Rows, at most `MOST_ROWS`.

    Returns:
        ``series`` and ``patients``: how many the selection has; ``page``, ``pages``, ``size``, ``rows``.
    """
    where = selection.where(results.filters)
    ((series, patients),) = results.all(
        "SELECT count(*), count(DISTINCT patient_id) FILTER (patient_id <> '') "
        f"FROM everything WHERE {where}",
    )
    size = min(max(size, 1), MOST_ROWS)
    pages = max(1, -(-series // size))
    page = min(max(page, 1), pages)
    columns = (*SHOWN, *results.clinical.columns)
    rows = list(results.select(selection, columns, limit=size, offset=(page - 1) * size))
    return {"series": series, "patients": patients, "page": page, "pages": pages, "size": size, "rows": rows}


def facets(results: Results, selection: Selection) -> dict[str, Any]:
    """How many rows each value of each filter would give, the other filters being as they are.

    Returns:
        By filter: ``{"values": [{"value", "n"}, …], "different": …}``, or of a range the smallest and the
        largest number of the whole table.
    """
    lists = [one for one in results.filters.values() if one.kind != "range"]
    found = _counts(results, selection, [one for one in lists if one.name not in selection.values])
    for one in lists:
        if one.name in selection.values:
            found |= _counts(results, selection, [one], without=one.name)
    out: dict[str, Any] = {}
    for one in lists:
        chosen = selection.values.get(one.name, ())
        counted = {
            **dict.fromkeys(chosen, 0),
            **found[one.name],
        }  # what was chosen stays, to be given up again
        if one.ordered:
            order = sorted(counted, key=lambda value, name=one.name: _place(name, value))  # type: ignore[misc]
        else:
            order = sorted(counted, key=lambda value: (-counted[value], value))
        shown = [value for i, value in enumerate(order) if i < MOST_VALUES or value in chosen]
        out[one.name] = {
            "values": [{"value": value, "n": counted[value]} for value in shown],
            "different": len(order),
        }
    return out | results.limits


def _counts(
    results: Results, selection: Selection, filters: Sequence[Filter], *, without: str = ""
) -> dict[str, dict[str, int]]:
    """By filter, how many of the selected rows have each value; all in one query."""
    where = selection.where(results.filters, without=without)
    parts = []
    for nr, one in enumerate(filters):
        column = quoted(one.column)
        if one.kind == "list":
            inner = f"SELECT unnest(string_split({column}, ';')) AS value FROM chosen"
            source, condition = f"({inner})", "value <> ''"
        else:
            source, condition = f"(SELECT {column} AS value FROM chosen)", "true"
        grouped = f"SELECT value, count(*) AS n FROM {source} WHERE {condition} GROUP BY value"
        parts.append(f"SELECT {nr}, coalesce(CAST(value AS VARCHAR), ''), n FROM ({grouped})")
    columns = ", ".join(dict.fromkeys(quoted(one.column) for one in filters))
    out: dict[str, dict[str, int]] = {one.name: {} for one in filters}
    if parts:
        rows = results.all(
            f"WITH chosen AS MATERIALIZED (SELECT {columns} FROM everything WHERE {where}) "
            + " UNION ALL ".join(parts),
        )
        for nr, value, n in rows:
            counts = out[filters[nr].name]
            counts[value] = counts.get(value, 0) + n
    return out


def _place(name: str, value: str) -> tuple[bool, float, str]:
    """Sort key of a value of a filter with an order of its own: numbers as numbers, the unknown last."""
    if name == "score_class":
        return (value == "", _CLASSES.get(value, len(_CLASSES)), value)
    try:
        return (value == "", float(value), "")
    except ValueError:
        head, _, last = value.rpartition(" ")  # "study 10" after "study 9"
        return (value == "", float(last) if last.isdigit() else float("inf"), head or value)


_CLASSES = {label: i for i, label in enumerate(score_labels())}


def charts(results: Results, selection: Selection) -> dict[str, Any]:
    """The numbers of every chart, over the selected rows.

    Returns:
        ``kernels``, ``time_points``, ``risk_groups``, ``histogram``: rows with their number ``n``;
        ``risk_by_time``: ``time_point``, ``risk_group``, ``n``; ``scores``: ``kernel``, ``time_point``,
        ``n``, ``mean`` and ``median`` of the score. ``kernels_left`` and ``scored_kernels_left`` say how many
        kernels are too rare to be in their chart.
    """
    where = selection.where(results.filters)
    by_kernel, by_time = Counter[str](), Counter[str]()
    by_group, by_class = Counter[int](), Counter[str]()
    by_both, scored = Counter[tuple[str, int]](), Counter[str]()
    for kernel, time_point, group, class_, n in results.all(
        "SELECT kernel, time_point, risk_group, score_class, count(*) "
        f"FROM everything WHERE {where} GROUP BY ALL",
    ):
        by_kernel[kernel] += n
        by_time[time_point] += n
        if group is not None:
            by_group[group] += n
            by_both[time_point, group] += n
        if class_:
            by_class[class_] += n
            scored[kernel] += n
    kernels, used = (
        sorted(found, key=lambda k, found=found: (-found[k], k))  # type: ignore[misc]
        for found in (by_kernel, scored)
    )
    shown = used[:MOST_SCORED_KERNELS]
    scores = results.dicts(
        "SELECT kernel, time_point, count(*) AS n, avg(agatston_score) AS mean, "
        f"median(agatston_score) AS median FROM everything WHERE {where} AND score_class <> '' "
        f"AND kernel IN ({literals(shown)}) GROUP BY ALL"
    )
    scores.sort(key=lambda row: (shown.index(row["kernel"]), _place("time_point", row["time_point"])))
    times = sorted(by_time, key=lambda t: _place("time_point", t))
    return {
        "kernels": [{"kernel": k, "n": by_kernel[k]} for k in kernels[:MOST_KERNELS]],
        "kernels_left": len(kernels[MOST_KERNELS:]),
        "time_points": [{"time_point": t, "n": by_time[t]} for t in times],
        "risk_groups": [{"risk_group": g, "n": by_group[g]} for g in sorted(by_group)],
        "risk_by_time": [
            {"time_point": t, "risk_group": g, "n": by_both[t, g]}
            for t in times
            for g in sorted(by_group)
            if by_both[t, g]
        ],
        "histogram": [{"score_class": c, "n": by_class[c]} for c in _CLASSES if by_class[c]],
        "scores": scores,
        "scored_kernels_left": len(used[MOST_SCORED_KERNELS:]),
    }


def not_scored(results: Results, selection: Selection) -> list[dict[str, Any]]:
    """Why series were not scored: one row a status and code, with what the code means and how many."""
    where = selection.where(results.filters)
    rows = results.dicts(
        "SELECT status, code, count(*) AS n, "
        "count(DISTINCT patient_id) FILTER (patient_id <> '') AS patients, "
        f"min(reason) AS example FROM everything WHERE {where} AND status <> 'scored' GROUP BY ALL "
        "ORDER BY n DESC, status, code",
    )
    for row in rows:
        row["meaning"] = meaning(row["code"])
    return rows


def meaning(code: str) -> str:
    """What a reason code or a warning says, "" where it is no gate's."""
    return GATES[code].sentence if code in GATES else ""


def export(results: Results, selection: Selection) -> Iterator[str]:
    """The selected rows as CSV, in the selection's order, a piece at a time.

    The columns are those of ``results.csv``, with the time point filled in, where it comes from, and the
    clinical columns. Text that a spreadsheet would run as a formula is preceded by an apostrophe.
    """
    names = (*COLUMNS, "time_point_from", *results.clinical.columns)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(names)
    for nr, row in enumerate(results.select(selection, names)):
        writer.writerow([no_formula("" if value is None else value) for value in row.values()])
        if nr % 500 == 499:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def case_folder(folder: Path, row: dict[str, Any]) -> Path | None:
    """The folder of a series' files, None where there is none; see `pipeline.results.series_folder`."""
    place = series_folder(folder.resolve(), row["folder"] or "")
    try:
        return place if place is not None and place.is_dir() else None
    except OSError:  # a name too long
        return None


def picture(folder: Path, row: dict[str, Any]) -> Path | None:
    """The preview of a series, None where there is none."""
    place = case_folder(folder, row)
    if place is None:
        return None
    try:
        return regular_inside(place / PREVIEW_NAME, folder)
    except InputUnreadable:
        return None


def case(results: Results, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """All that is known of one series.

    Returns:
        ``row``; ``details`` (of ``details.json``, None where there is none; its copy of the row is left out);
        ``meanings`` of its codes; ``preview``: whether there is a picture; ``others``: the other series of
        the patient.
    """
    place = case_folder(folder, row)
    details = None
    if place is not None:
        try:
            details = read_details(place, folder)
        except InputUnreadable:
            details = None
        else:
            details.pop("row", None)
    codes = [*row["warnings"].split(";"), row["code"]]
    others = results.dicts(
        "SELECT series_uid, study_uid, time_point, study_date, series_description, kernel, status, code, "
        "agatston_score, risk_group, caution FROM everything WHERE patient_id <> '' "
        f"AND patient_id = {literal(row['patient_id'])} AND series_uid <> {literal(row['series_uid'])} "
        "AND series_uid <> '' AND code <> 'not-ct' "
        "ORDER BY study_date, series_uid LIMIT 100",
    )
    return {
        "row": row,
        "clinical": {name: row[name] for name in results.clinical.columns},
        "details": details,
        "meanings": {code: meaning(code) for code in codes if meaning(code)},
        "preview": picture(folder, row) is not None,
        "others": others,
    }
