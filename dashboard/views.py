"""What the page asks for: a page of the table, counts for filters and charts, one case, the table as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InputUnreadable
from ..outputs.preview import PREVIEW, thumbnail
from ..pipeline.arteries import ARTERIES, BY_CLASS, NOT_CORONARY
from ..pipeline.gates import gates
from ..pipeline.places import DETAILS_NAME
from ..pipeline.results import MEANINGS, no_formula, series_folder
from ..pipeline.step import sections, steps
from ..system.inside import regular_inside
from .files import read_details
from .table import CLASSES, Filter, Results, Selection, literal, quoted

ALWAYS = ("patient_id", "series_uid", "series_description", "time_point", "status", "code", "reason",
          "caution", "study_date", "model_name")  # fmt: skip
"""Columns that every row of a page has, shown or not."""

MOST_ROWS = 200
"""Most rows of a page."""
MOST_VALUES = 400
"""Most values of a filter that are sent; the page finds the others by its search field."""
MOST_KERNELS = 15
"""Most kernels in the chart of their numbers."""
MOST_SCORED_KERNELS = 10
"""Most kernels in the chart of average scores: each has a bar for every time point."""

MADE = {".dcm": "application/dicom", ".pdf": "application/pdf"}
"""Files of a case that are handed out as they are, by ending: their media type. They name the patient."""
_TIME_POINT = quoted("time_point")
_SETS_AT_ONCE = 30
"""Sets of columns that are counted while the table is read once; DuckDB takes 64 columns. Chosen."""
_THUMBNAILS = 1000
"""Small pictures kept in memory, some 20 kB each. Chosen."""


def cases(results: Results, selection: Selection, *, page: int, size: int) -> dict[str, Any]:
    """One page of the table.

    Args:
        page: From 1; beyond the last one the last one is given.
        size: Rows, at most `MOST_ROWS`.

    Returns:
        ``series`` and ``patients``: how many the selection has; ``page``, ``pages``, ``size``, ``rows``.
    """
    where = selection.where(results.filters, results.found)
    ((series, patients),) = results.all(
        "SELECT count(*), count(DISTINCT patient_id) FILTER (patient_id <> '') "
        f"FROM everything WHERE {where}",
    )
    size = min(max(size, 1), MOST_ROWS)
    pages = max(1, -(-series // size))
    page = min(max(page, 1), pages)
    columns = dict.fromkeys((*ALWAYS, *(selection.columns or usual(results))))
    rows = results.page(selection, [*columns], limit=size, offset=(page - 1) * size)
    return {"series": series, "patients": patients, "page": page, "pages": pages, "size": size, "rows": rows}


def beside(results: Results, selection: Selection, series_uid: str) -> dict[str, Any] | None:
    """Where a series stands in a selection; see `Results.beside`."""
    return results.beside(
        series_uid, selection.where(results.filters, results.found), selection.order(results.columns)
    )


def usual(results: Results) -> list[str]:
    """The columns that a table shows unless others are chosen: who, what was found, with which scan."""
    found = [column.name for column in results.results]
    scan = ["kernel", "manufacturer", "slice_thickness", "warnings"]
    clinical = [column.name for column in results.clinical.columns]
    return ["patient_id", "series_description", "time_point", "status", *found, *scan, *clinical]


def counts(results: Results, selection: Selection) -> dict[str, Any]:
    """What the filters and the charts show of a selection; see `_facets` and `_charts`.

    Both together, because all that they count is counted while the table is read once.
    """
    lists = [one for one in results.filters.values() if one.kind != "range"]
    free = [(quoted(one.column),) for one in lists if one.name not in selection.values]
    charted = [(quoted(one.column),) for one in _charted(results)]
    by_time = [(_TIME_POINT, quoted(name)) for name in _groups(results)]
    found = _grouped(results, selection.where(results.filters, results.found), [*free, *charted, *by_time])
    return {
        "facets": _facets(results, selection, lists, found),
        "charts": _charts(results, selection, found),
    }


Counts = dict[tuple[str, ...], Counter[tuple[str, ...]]]
"""By expressions in SQL, how many rows have the same values of them."""


def _grouped(results: Results, where: str, sets: Sequence[tuple[str, ...]]) -> Counts:
    """Rows counted by the values, as text, of each of several sets of expressions; "" is no value."""
    out: Counts = {one: Counter() for one in sets}
    for begin in range(0, len(out), _SETS_AT_ONCE):
        part = [*out][begin : begin + _SETS_AT_ONCE]
        names = {expression: f"c{nr}" for nr, expression in enumerate(dict.fromkeys(chain(*part)))}
        own = ", ".join(f"{expression} AS {name}" for expression, name in names.items())
        texts = ", ".join(f"coalesce(CAST({name} AS VARCHAR), '')" for name in names.values())
        grouping = ", ".join(f"({', '.join(names[expression] for expression in one)})" for one in part)
        rows = results.all(
            f"SELECT GROUPING({', '.join(names.values())}), {texts}, count(*) "
            f"FROM (SELECT {own} FROM everything WHERE {where}) GROUP BY GROUPING SETS ({grouping})"
        )
        places = {expression: nr for nr, expression in enumerate(names)}
        left = {
            one: sum(1 << len(names) - 1 - nr for e, nr in places.items() if e not in one) for one in part
        }
        of = {mask: (out[one], [places[e] for e in one]) for one, mask in left.items()}
        for mask, *values, n in rows:
            counter, taken = of[mask]
            counter[tuple(values[place] for place in taken)] += n
    return out


def _facets(results: Results, selection: Selection, lists: Sequence[Filter], found: Counts) -> dict[str, Any]:
    """How many rows each value of each filter would give, the other filters being as they are.

    Args:
        lists: The filters but for the ranges.
        found: The selected rows by each filter of which nothing is chosen.

    Returns:
        By filter: ``{"values": [{"value", "n"}, …], "different": …}``, or of a range the smallest and the
        largest number of the whole table.
    """
    numbers = {name: str(nr) for nr, name in enumerate(selection.values, 1)}
    missed, where = selection.nearly(results.filters, results.found)
    own = [(missed, quoted(results.filters[name].column)) for name in numbers]
    nearly = _grouped(results, where, own)
    out: dict[str, Any] = {}
    for one in lists:
        chosen = selection.values.get(one.name, ())
        counted = Counter(dict.fromkeys(chosen, 0))  # what was chosen stays, to be given up again
        if one.name not in numbers:
            rows = ((value, n) for (value,), n in found[quoted(one.column),].items())
        else:
            fits = ("0", numbers[one.name])
            of_all = nearly[missed, quoted(one.column)].items()
            rows = ((value, n) for (missing, value), n in of_all if missing in fits)
        for value, n in rows:
            for part in value.split(";") if one.kind == "list" else [value]:
                if part or one.kind != "list":
                    counted[part] += n
        order = sorted(counted, key=_place) if one.ordered else _frequent(counted)
        shown = [value for i, value in enumerate(order) if i < MOST_VALUES or value in chosen]
        out[one.name] = {
            "values": [{"value": value, "n": counted[value]} for value in shown],
            "different": len(order),
        }
    return out | results.limits


def _frequent(counts: Mapping[str, int]) -> list[str]:
    """Values, the most frequent first."""
    return sorted(counts, key=lambda value: (-counts[value], value))


def _place(value: str) -> tuple[bool, str, float, str]:
    """Sort key of a value with an order of its own: by the number in it, the unknown last.

    >>> sorted(["study 10", "", "> 20", "study 9", "10–20", "0–10", "0"], key=_place)
    ['0', '0–10', '10–20', '> 20', 'study 9', 'study 10', '']
    """
    number = re.search(r"((?<!\w)-)?\d+(\.\d*)?(e[+-]?\d+)?", value)
    if number is None:
        return value == "", value, 0.0, ""
    return False, value[: number.start()], float(number[0]), value


def _groups(results: Results) -> list[str]:
    """Names of the results that are groups."""
    return [c.name for c in results.results if c.groups]


def _classed(results: Results) -> list[str]:
    """Names of the results that have classes."""
    return [c.name for c in results.results if c.name in CLASSES]


def _charted(results: Results) -> list[Filter]:
    """The filters whose values have a chart of their numbers."""
    classes = (CLASSES[name].name for name in _classed(results))
    wanted = ("kernel", "time_point", *_groups(results), *classes)
    return [results.filters[name] for name in wanted if name in results.filters]


def _charts(results: Results, selection: Selection, found: Counts) -> dict[str, Any]:
    """The numbers of every chart, over the selected rows.

    Args:
        found: The selected rows by each of `_charted`, and by time point and each of `_groups`.

    Returns:
        ``counts``: by filter, the rows (``value``, ``n``) of each value, and how many are too rare to be
        ``left``: kernels, time points, and of the results the groups and the classes. ``by_time``: by
        column of groups, ``time_point``, ``value``, ``n``. ``means``: by column with classes, ``rows``
        with ``kernel``, ``time_point``, ``n``, ``mean`` and ``median``, and how many kernels are ``left``.
    """
    where = selection.where(results.filters, results.found)
    counts: dict[str, Any] = {}
    for one in _charted(results):
        own = {value: n for (value,), n in found[quoted(one.column),].items()}
        if one.name not in ("kernel", "time_point"):
            own.pop("", None)
        order = _frequent(own) if one.name == "kernel" else sorted(own, key=_place)
        shown = order[:MOST_KERNELS] if one.name == "kernel" else order
        rows = [{"value": value, "n": own[value]} for value in shown]
        counts[one.name] = {"rows": rows, "left": len(order) - len(shown)}
    by_time: dict[str, Any] = {}
    for name in _groups(results):
        by_time[name] = [
            {"time_point": time, "value": value, "n": n}
            for (time, value), n in found[_TIME_POINT, quoted(name)].items()
            if value
        ]
        by_time[name].sort(key=lambda row: (_place(row["time_point"]), _place(row["value"])))
    means: dict[str, Any] = {}
    for name in _classed(results):
        column = quoted(name)
        averages = results.dicts(
            f"SELECT kernel, time_point, count(*) AS n, avg({column}) AS mean, median({column}) AS median "
            f"FROM everything WHERE {where} AND {quoted(CLASSES[name].name)} <> '' GROUP BY ALL"
        )
        used = Counter[str]()
        for row in averages:
            used[row["kernel"]] += row["n"]
        order = _frequent(used)[:MOST_SCORED_KERNELS]
        averages = [row for row in averages if row["kernel"] in order]
        averages.sort(key=lambda row: (order.index(row["kernel"]), _place(row["time_point"])))
        means[name] = {"rows": averages, "left": len(used) - len(order)}
    return {"counts": counts, "by_time": by_time, "means": means}


def not_scored(results: Results, selection: Selection) -> list[dict[str, Any]]:
    """Why series were not scored: one row a status and code, with what the code means and how many."""
    where = selection.where(results.filters, results.found)
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
    gate = gates().get(code)
    return gate.sentence if gate is not None else ""


def export(results: Results, selection: Selection) -> Iterator[str]:
    """The selected rows as CSV, in the selection's order, a piece at a time.

    The columns are those of ``results.csv``, with the time point filled in, where it comes from, and the
    clinical columns. Text that a spreadsheet would run as a formula is preceded by an apostrophe.
    """
    names = (*MEANINGS, "time_point_from", *(column.name for column in results.clinical.columns))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    for some in chain([[names]], results.rows(selection, names)):
        writer.writerows([no_formula("" if value is None else value) for value in row] for row in some)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def place_of(folder: Path, row: Mapping[str, Any], name: str) -> Path:
    """Where a file of a series would be, inside the results.

    Raises:
        InputUnreadable: The series has no folder there; see `pipeline.results.series_folder`.
    """
    place = series_folder(folder.resolve(), row["folder"] or "")
    if place is None:
        raise InputUnreadable("the series has no folder in the results; run it again")
    return place / name


def picture(folder: Path, row: Mapping[str, Any]) -> Path | None:
    """The preview of a series, None where there is none."""
    try:
        return regular_inside(place_of(folder, row, PREVIEW.file), folder)
    except InputUnreadable:
        return None


def small_picture(place: Path | None, folder: Path) -> bytes | None:
    """The preview of a series as a small PNG, None where there is none.

    Args:
        place: Folder of the series; None: it has none.
        folder: The results.
    """
    try:
        path = None if place is None else regular_inside(place / PREVIEW.file, folder)
        return None if path is None else _thumbnail(path, path.stat().st_mtime_ns)
    except (InputUnreadable, OSError):
        return None


@lru_cache(maxsize=_THUMBNAILS)
def _thumbnail(path: Path, changed: int) -> bytes:
    return thumbnail(path)


def made_file(folder: Path, row: Mapping[str, Any], name: str) -> Path | None:
    """A file of `MADE` that the run wrote for a series, None where its details name none of this name."""
    try:
        details = read_details(place_of(folder, row, DETAILS_NAME), folder)
        made = name in (details.get("outputs") or ()) and Path(name).name == name
        if not made or Path(name).suffix not in MADE:
            return None
        return regular_inside(place_of(folder, row, name), folder)
    except InputUnreadable:
        return None


def case(results: Results, folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """All that is known of one series.

    Returns:
        ``row``; ``details`` (of ``details.json``, None where there is none; its copy of the row is left out);
        ``steps``, see `_of_steps`; ``named``, see `_named`; ``meanings`` of its codes; ``preview``: whether
        there is a picture; ``others``: the other series of the patient.
    """
    try:
        details = read_details(place_of(folder, row, DETAILS_NAME), folder)
        details.pop("row", None)
    except InputUnreadable:
        details = None
    codes = [*row["warnings"].split(";"), row["code"]]
    found = "".join(f", {quoted(column.name)}" for column in results.results)
    others = results.dicts(
        "SELECT series_uid, study_uid, time_point, study_date, series_description, kernel, status, code, "
        f"caution{found} FROM everything WHERE patient_id <> '' "
        f"AND patient_id = {literal(row['patient_id'])} AND series_uid <> {literal(row['series_uid'])} "
        "AND series_uid <> '' AND code <> 'not-ct' "
        "ORDER BY study_date, series_uid LIMIT 100",
    )
    return {
        "row": row,
        "clinical": {column.name: row[column.name] for column in results.clinical.columns},
        "details": details,
        "steps": list(_of_steps(row, details or {})),
        "named": list(_named(details or {})),
        "meanings": {code: meaning(code) for code in codes if meaning(code)},
        "preview": picture(folder, row) is not None,
        "others": others,
    }


def _named(details: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Calcium by artery, and what was not counted by what it is; nothing where the weights name nothing.

    ``name``, ``counted``, ``score``, ``there``: whether there is any, and the ``colour`` of all pictures.
    """
    by_class = details.get(BY_CLASS.section)
    for fact in (ARTERIES, NOT_CORONARY):
        parts = by_class.get(fact.name) if isinstance(by_class, dict) else None
        if fact.image is None or not isinstance(parts, dict):
            continue
        for label in fact.image.classes:
            part = parts.get(label.name)
            if not isinstance(part, dict):
                continue
            score, volume = part.get("score"), part.get("volume_mm3")
            if isinstance(score, (int, float)) and isinstance(volume, (int, float)):
                yield {
                    "name": label.name,
                    "counted": fact is ARTERIES,
                    "score": score,
                    "there": score > 0 or volume > 0,
                    "colour": "#{:02x}{:02x}{:02x}".format(*label.colour),
                }


def _of_steps(row: Mapping[str, Any], details: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What each step found: ``module``, ``title``, ``columns`` (names of those with a value), ``sections``.

    A section of the details stands with the first of the steps that ran which writes it, or for itself with
    the columns that belong to it (`Column.section`).
    """
    ran = details.get("seconds")
    left = {f: details[name] for name, f in sections().items() if details.get(name)}
    for step in steps().values():
        known = [c for c in step.columns if row[c.name] not in (None, "")]
        here = not isinstance(ran, dict) or not ran or step.module in ran
        parts = {f.section: left.pop(f) for f in step.writes if here and f in left}
        own = dict.fromkeys(c.section for c in known if c.section)
        rest = {name: part for name, part in parts.items() if name not in own}
        columns = [c.name for c in known if not c.section]
        if columns or rest:
            title = (step.options.__doc__ or step.module).strip().partition("\n")[0].rstrip(".")
            yield {"module": step.module, "title": title, "columns": columns, "sections": rest}
        for name in own:
            columns = [c.name for c in known if c.section == name]
            more = {name: parts[name]} if name in parts else {}
            yield {"module": step.module, "title": name.capitalize(), "columns": columns, "sections": more}
