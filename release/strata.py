"""Two releases compared by what the scans are, and the scans to look at first."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..dicom.gates import is_sharp_kernel
from ..pipeline.results import no_formula
from ..stats.agreement import RISK_CUTS, confusion, group_names, grouped, kappa
from ..stats.tables import read_table
from ..system.atomic import write_whole
from .compare import Comparison, Pair

NOT_KNOWN = "not known"
_COLUMNS = ("kernel", "manufacturer", "slice_thickness", "thickness_max")
_WORST = ("place", "series_uid", "first", "second", "difference", "group_first", "group_second", "kernel",
          "manufacturer", "thickness", "dice_calcium", "note")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a scan is, in words; `NOT_KNOWN` where the table does not say.

    Attributes:
        kernel, kind: ConvolutionKernel, and whether it is ``soft`` or ``sharp``.
        manufacturer: Of the scanner.
        thickness: Of the slices, mm.
    """

    kernel: str = NOT_KNOWN
    kind: str = NOT_KNOWN
    manufacturer: str = NOT_KNOWN
    thickness: str = NOT_KNOWN


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """The agreement of the scores in one kind of scans, second against first.

    Attributes:
        by, value: What the scans have in common: ``kernel`` and ``STANDARD``.
        n: Scans with both scores.
        mean_difference, median_absolute: Of second − first, and of its size.
        same_group: Share with the same risk group.
        kappa: Linear κ of the groups; None where both use one and the same group.
    """

    by: str
    value: str
    n: int
    mean_difference: float
    median_absolute: float
    same_group: float
    kappa: float | None


def read_facts(path: Path) -> dict[str, Facts]:
    """What the scans are, by SeriesInstanceUID.

    Args:
        path: A table with ``series_uid`` and, where it has them, ``kernel``, ``manufacturer`` and
            ``slice_thickness`` or ``thickness_max``: of a run, or of 'cohort select'.

    Raises:
        InputUnreadable, InputError: See `stats.tables.read_table`.
    """
    frame = read_table(path, needed=["series_uid"], only=_COLUMNS)
    found = {}
    for row in frame.to_dict("records"):
        kernel = str(row.get("kernel", "")).strip()
        thickness = str(row.get("slice_thickness", "") or row.get("thickness_max", "")).strip()
        found[str(row["series_uid"]).strip()] = Facts(
            kernel=kernel or NOT_KNOWN,
            kind=("sharp" if is_sharp_kernel(kernel) else "soft") if kernel else NOT_KNOWN,
            manufacturer=str(row.get("manufacturer", "")).strip() or NOT_KNOWN,
            thickness=_millimetres(thickness),
        )
    return found


def _millimetres(text: str) -> str:
    try:
        return f"{float(text):.2f}".rstrip("0").rstrip(".")
    except ValueError:
        return NOT_KNOWN


def strata(found: Comparison, facts: Mapping[str, Facts]) -> tuple[Stratum, ...]:
    """The agreement by the first one's risk group, and by each of `Facts`, most scans first."""
    pairs = [p for p in found.pairs if p.first is not None and p.second is not None]
    names = group_names(RISK_CUTS)
    values: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        scan = facts.get(_series(pair), Facts())
        own = {"group": names[_group(pair.first)], **vars(scan)}
        for by, value in own.items():
            values.setdefault((by, value), []).append(pair)
    order = ("group", "kind", "kernel", "manufacturer", "thickness")
    made = [_stratum(by, value, those) for (by, value), those in values.items()]
    return tuple(
        sorted(made, key=lambda s: (order.index(s.by), *((s.value,) if s.by == "group" else (-s.n, s.value))))
    )


def _stratum(by: str, value: str, pairs: list[Pair]) -> Stratum:
    a, b = np.array([(p.first, p.second) for p in pairs], dtype=float).T
    groups = grouped(a), grouped(b)
    agreed = float(kappa(confusion(*groups, len(RISK_CUTS) + 1), "linear"))
    return Stratum(
        by=by,
        value=value,
        n=len(pairs),
        mean_difference=float((b - a).mean()),
        median_absolute=float(np.median(np.abs(b - a))),
        same_group=float((groups[0] == groups[1]).mean()),
        kappa=agreed if np.isfinite(agreed) else None,
    )


def worst(found: Comparison, most: int) -> list[Pair]:
    """The scans to look at first: by how many risk groups they lie apart, then by the scores' difference.

    Scans with a score in one release only, or that could not be compared, come before all others: there is
    nothing that says how far apart they are.
    """

    def rank(pair: Pair) -> tuple[int, int, float, str]:
        if pair.first is None or pair.second is None:
            return (0, 0, 0.0, pair.place)
        return (1, -abs(_group(pair.first) - _group(pair.second)), -pair.difference, pair.place)

    differ = [p for p in found.pairs if p.difference or p.note or p.first is None or p.second is None]
    return sorted(differ, key=rank)[:most]


def write_worklist(path: Path, pairs: list[Pair], facts: Mapping[str, Facts]) -> None:
    """Write scans as a CSV table, one row each, in this order; `run --only` and readers of tables take it.

    Raises:
        DiskFull, OutputUnwritable: It cannot be written.
    """
    names = group_names(RISK_CUTS)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_WORST)
    for pair in pairs:
        scan = facts.get(_series(pair), Facts())
        groups = ["" if s is None else names[_group(s)] for s in (pair.first, pair.second)]
        scores = ["" if s is None else f"{s:g}" for s in (pair.first, pair.second)]
        both = pair.first is not None and pair.second is not None
        dice = pair.dice.get("calcium")
        row = (
            *(pair.place, _series(pair), *scores, f"{pair.difference:g}" if both else "", *groups),
            *(
                scan.kernel,
                scan.manufacturer,
                scan.thickness,
                "" if dice is None else f"{dice:.4f}",
                pair.note,
            ),
        )
        writer.writerow([no_formula(value) for value in row])
    write_whole(path, text.getvalue().encode())


def _series(pair: Pair) -> str:
    return pair.place.rpartition("/")[2]


def _group(score: float | None) -> int:
    return int(grouped([score or 0.0])[0])
