"""Which series make a cohort: named rules over a header index, each series out with its reason.

The rules are lists of criteria in SQL, run by DuckDB over the index's Parquet file, so that a hundred
thousand series take a second and a reader sees the rule as it is. The same criteria for the tables of the
Imaging Data Commons stand in ``nlst.sql``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..errors import InputError, InputUnreadable
from ..stats.scans import SURVIVAL_KERNELS
from ..system.atomic import atomic_path
from ..system.foreign import foreign
from .idc import NLST, Tables, create_view
from .index import COLUMNS

if TYPE_CHECKING:
    import duckdb

NLST_SQL = Path(__file__).with_name("nlst.sql")
"""The DeepCAC2 paper's selection for IDC's BigQuery tables."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """What a series must be.

    Attributes:
        code: Reason of those that are not.
        sentence: For the reader.
        sql: Boolean expression over the index's columns; unknown counts as no.
    """

    code: str
    sentence: str
    sql: str

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it asks for."""
        return frozenset(re.findall(r"\w+", re.sub(r"'[^']*'", "", self.sql))) & COLUMNS.keys()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A selection.

    Attributes:
        name, sentence: What it is called, and what it is.
        criteria: In the order in which they are asked; the first that fails is the reason.
        one_each: Of what one series is kept, a column; "" for all.
        order: SQL that puts the one to keep first.
    """

    name: str
    sentence: str
    criteria: tuple[Criterion, ...]
    one_each: str = ""
    order: str = ""


_DEEPCAC2 = (
    Criterion(code="not-ct", sentence="Modality is CT", sql="modality = 'CT'"),
    Criterion(
        code="localizer",
        sentence="no localizer (its images are not counted)",
        sql="n_images > 0 AND NOT contains(upper(image_type), 'LOCALIZER')",
    ),
    Criterion(
        code="no-thickness", sentence="every image has a SliceThickness", sql="thickness_min IS NOT NULL"
    ),
    Criterion(
        code="thickness",
        sentence="smallest and largest SliceThickness of the series from 1 to 5 mm",
        sql="thickness_min >= 1 AND thickness_max <= 5",
    ),
    Criterion(code="few-slices", sentence="more than 50 slices", sql="n_images > 50"),
    Criterion(
        code="repeated-positions", sentence="one slice for each position", sql="n_positions = n_images"
    ),
    Criterion(code="mixed-size", sentence="one matrix size", sql="n_sizes = 1"),
    Criterion(code="mixed-spacing", sentence="one PixelSpacing", sql="n_spacings = 1"),
    Criterion(code="mixed-orientation", sentence="one orientation", sql="n_orientations = 1"),
)

_T0 = Criterion(
    code="later-visit",
    sentence="the first visit: ClinicalTrialTimePointID T0 or, where there is none, the person's first date",
    sql="CASE WHEN time_point <> '' THEN upper(time_point) = 'T0' "
    "ELSE study_date <> '' AND study_date = min(nullif(study_date, '')) OVER (PARTITION BY patient_id) END",
)

V1_KERNELS = (
    "B31f", "B30f", "B20f", "C", "FC10", "FC11", "FC02", "STANDARD", "BODY", "B50f", "B60f", "B70f", "B80f",
    "D", "FC51", "FC53", "BONE", "LUNG",
)  # fmt: skip
"""Kernels of DeepCAC v1's selection, the preferred first (AIM-Harvard/DeepCAC, stats/README.md)."""
V1_SPACINGS = (2.5, 2.0, 1.75, 1.25, 1.0)
"""Slice spacings of DeepCAC v1's selection, mm (the same source)."""


def _listed(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{v.upper()}'" for v in values)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        rule.name: rule
        for rule in (
            Rule(
                name="deepcac2",
                sentence="The DeepCAC2 paper's selection: every series that can be scored.",
                criteria=_DEEPCAC2,
            ),
            Rule(
                name="survival",
                sentence="The paper's selection for survival: a soft, thin series of each first visit.",
                criteria=(
                    *_DEEPCAC2,
                    _T0,
                    Criterion(
                        code="not-original",
                        sentence="ImageType ORIGINAL, PRIMARY and AXIAL",
                        sql="list_has_all(string_split(upper(image_type), '\\'), "
                        "['ORIGINAL', 'PRIMARY', 'AXIAL'])",
                    ),
                    Criterion(code="thick", sentence="at most 3.0 mm thick", sql="thickness_max <= 3.0"),
                    Criterion(
                        code="kernel",
                        sentence=f"kernel {', '.join(SURVIVAL_KERNELS)}",
                        sql=f"upper(kernel) IN ({_listed(SURVIVAL_KERNELS)})",
                    ),
                ),
                one_each="patient_id",
                order="n_images DESC, series_uid",
            ),
            Rule(
                name="deepcac-v1",
                sentence="DeepCAC v1's selection: first visit, soft kernels first, spacing nearest 2.5 mm.",
                criteria=(
                    *_DEEPCAC2[:2],
                    _T0,
                    Criterion(
                        code="spacing",
                        sentence=f"slices {', '.join(map(str, V1_SPACINGS))} mm apart",
                        sql=f"list_bool_or([abs(increment - s) < 0.01 FOR s IN {list(V1_SPACINGS)}])",
                    ),
                    Criterion(
                        code="kernel",
                        sentence=f"kernel {', '.join(V1_KERNELS)}",
                        sql=f"upper(kernel) IN ({_listed(V1_KERNELS)})",
                    ),
                ),
                one_each="patient_id",
                order=f"list_position([{_listed(V1_KERNELS)}], upper(kernel)), abs(increment - 2.5), "
                "n_images DESC, series_uid",
            ),
        )
    }
)
"""Rules by name."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a rule selected.

    Attributes:
        rule: The rule.
        series, selected, persons: Series in the index, those selected, and their patients.
        reasons: Series left out by reason, in the rule's order.
        everybody: Patients in the index.
        left: By the same reasons, how many series and patients are left then.
        unjudged: Criteria that were not asked, as the table has nothing of what they ask for.
    """

    rule: Rule
    series: int
    selected: int
    persons: int
    reasons: Mapping[str, int]
    everybody: int
    left: Mapping[str, tuple[int, int]]
    unjudged: tuple[Criterion, ...] = ()


ANOTHER = "another-series"
"""Reason of a series that meets the criteria where another of the same person is taken."""


def select(index: Path, rule: Rule, out: Path) -> Selection:
    """Judge every series of a header index and write the table of all, whole or not at all.

    The table is the index with ``selected`` (true or false) and ``reason`` ("" where selected) in front.

    Args:
        index: Parquet file of `write_index`.
        rule: See `RULES`.
        out: CSV file to write, sorted by patient, study and series.

    Raises:
        InputUnreadable: The index is missing or no Parquet file.
        InputError: It lacks a column.
        DiskFull, OutputUnwritable: The table cannot be written.
    """
    import duckdb

    if not index.is_file():
        raise InputUnreadable(
            f"{index} does not exist; make it with: deepcac2 inspect IN --index {index.name}"
        )
    with duckdb.connect() as database:
        with foreign(str(index), fault="is no header index"):
            database.read_parquet(str(index)).create_view("found")
            present = [row[0] for row in database.sql("DESCRIBE found").fetchall()]
            missing = [c for c in COLUMNS if c not in present]
            if missing:
                raise InputError(
                    f"{index} has no column {missing[0]!r}; make it again with 'deepcac2 inspect --index'"
                )
        return _judge(database, rule, out, what=str(index))


def select_idc(tables: Tables, rule: Rule, out: Path, *, collection: str = NLST) -> Selection:
    """Judge every series of a collection by the tables of the Imaging Data Commons, as `select` does.

    Criteria that ask for what no table here says are not asked (`Selection.unjudged`): a series that is
    selected may fail them.

    Args:
        tables: See `idc.find_tables`.
        rule, out: As of `select`.
        collection: Of IDC; its analysis results are no part of it.

    Raises:
        InputUnreadable: A table is no Parquet file.
        InputError: A table lacks a column, or has no series of the collection.
        DiskFull, OutputUnwritable: The table cannot be written.
    """
    import duckdb

    with duckdb.connect() as database:
        create_view(database, tables, collection)
        return _judge(database, rule, out, what=str(tables.main), unknown=tables.unknown)


def _judge(
    database: duckdb.DuckDBPyConnection,
    rule: Rule,
    out: Path,
    *,
    what: str,
    unknown: frozenset[str] = frozenset(),
) -> Selection:
    """Judge the series of ``found`` and write the table.

    Args:
        what: Where ``found`` is from, for messages.
        unknown: Columns that are empty in every row.
    """
    unjudged = tuple(c for c in rule.criteria if c.columns & unknown)
    asked = replace(rule, criteria=tuple(c for c in rule.criteria if c not in unjudged))
    with foreign(what, fault="is no header index"):
        database.sql(f"CREATE TABLE judged AS {_query(asked)}")
    with atomic_path(out) as temporary:
        database.sql("SELECT * FROM judged ORDER BY patient_id, study_uid, series_uid").write_csv(
            str(temporary), header=True
        )
    order = [*(c.code for c in asked.criteria), ANOTHER]
    counts: Counter[str] = Counter(
        dict(database.sql("SELECT reason, count(*) FROM judged GROUP BY reason").fetchall())
    )
    left: dict[str, tuple[int, int]] = {}
    for place, code in enumerate(order):
        if counts[code]:
            further = ", ".join(f"'{c}'" for c in ("", *order[place + 1 :]))
            (left[code],) = database.sql(
                f"SELECT count(*), count(DISTINCT patient_id) FROM judged WHERE reason IN ({further})"
            ).fetchall()
    ((everybody, persons),) = database.sql(
        "SELECT count(DISTINCT patient_id), count(DISTINCT patient_id) FILTER (selected) FROM judged"
    ).fetchall()
    return Selection(
        rule=rule,
        series=counts.total(),
        selected=counts[""],
        persons=persons,
        reasons={code: counts[code] for code in order if counts[code]},
        everybody=everybody,
        left=left,
        unjudged=unjudged,
    )


def _query(rule: Rule) -> str:
    """The rule as one SQL statement over ``found``."""
    cases = "\n".join(f"    WHEN NOT coalesce({c.sql}, false) THEN '{c.code}'" for c in rule.criteria)
    columns = ", ".join(COLUMNS)
    first = f"SELECT CASE\n{cases}\n    ELSE '' END AS reason, {columns} FROM found"
    if rule.one_each:
        rank = f"row_number() OVER (PARTITION BY {rule.one_each}, reason = '' ORDER BY {rule.order})"
        first = (
            f"SELECT CASE WHEN reason = '' AND {rank} > 1 THEN '{ANOTHER}' ELSE reason END AS reason, "
            f"{columns} FROM ({first})"
        )
    return f"SELECT reason = '' AS selected, reason, {columns} FROM ({first})"
