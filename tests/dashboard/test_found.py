"""Which rows a condition finds, remembered: the same rows as without, and one look a condition."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from starlette.testclient import TestClient

from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.found import Found
from deepcac2.pipeline.results import ResultRow, write_parquet

HERE = "http://127.0.0.1:8000"
ROWS = 10_007
"""Of no whole number of bytes, and more than DuckDB takes at a time."""
CONDITIONS = ("contains(text, 'a7')", "contains(text, '5')", "contains(text, 'a')", "contains(text, 'x')",
              "contains(text, 'a10006')", "contains(text, 'a0')", "number = 8", "number % 2 = 0")  # fmt: skip


@pytest.fixture
def table() -> Iterator[duckdb.DuckDBPyConnection]:
    """A table of ``number`` and ``text``; every seventh text is missing."""
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE everything AS SELECT range AS number, "
            f"CASE WHEN range % 7 = 3 THEN NULL ELSE 'a' || range END AS text FROM range({ROWS})"
        )
        yield connection


class Asked:
    """A table that counts what it is asked."""

    def __init__(self, table: duckdb.DuckDBPyConnection) -> None:
        self.table = table
        self.queries: list[str] = []

    def __call__(self, sql: str) -> list[tuple[Any, ...]]:
        self.queries.append(sql)
        return self.table.cursor().execute(sql).fetchall()


@pytest.mark.parametrize("few", [0, 300, ROWS])
def test_the_same_rows_are_found(table: duckdb.DuckDBPyConnection, few: int) -> None:
    """However they are told: by number, by one bit each, none of them, all of them."""
    asked = Asked(table)
    found = Found(asked, ROWS, few=few)
    sizes = set()
    for condition in CONDITIONS:
        rows = "SELECT number FROM everything WHERE {} ORDER BY number"
        wanted = table.execute(rows.format(condition)).fetchall()
        assert table.execute(rows.format(found(condition))).fetchall() == wanted
        both = f"number % 3 = 0 AND {found(condition)}"
        assert table.execute(rows.format(both)).fetchall() == [(n,) for (n,) in wanted if n % 3 == 0]
        sizes.add(len(wanted))
    assert {0, 1} < sizes
    assert len(asked.queries) == len(CONDITIONS)


def test_of_rows_at_random_each_is_found(table: duckdb.DuckDBPyConnection) -> None:
    rng = np.random.default_rng(3)
    for few in (0, ROWS):
        chosen = sorted({0, ROWS - 1, *rng.integers(0, ROWS, 400).tolist()})
        found = Found(Asked(table), ROWS, few=few)(f"number IN ({', '.join(map(str, chosen))})")
        rows = table.execute(f"SELECT number FROM everything WHERE {found} ORDER BY number").fetchall()
        assert [n for (n,) in rows] == chosen


def test_what_is_remembered_has_a_bound(table: duckdb.DuckDBPyConnection) -> None:
    """The condition that nobody has asked for longest goes first."""
    asked = Asked(table)
    found = Found(asked, ROWS)
    for n in range(100):
        found(f"number = {n}")
        found("number < 3")
    assert len(found) == 16
    assert len(asked.queries) == 101
    found("number = 99")
    assert len(asked.queries) == 101
    found("number = 5")
    assert len(asked.queries) == 102


def test_who_asks_the_same_at_once_waits(table: duckdb.DuckDBPyConnection) -> None:
    asked = Asked(table)
    go = threading.Event()

    def slow(sql: str) -> list[tuple[Any, ...]]:
        go.wait(30)
        return asked(sql)

    found = Found(slow, ROWS)
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(found, condition) for condition in CONDITIONS[:2] * 3]
        go.set()
        assert len({answer.result() for answer in answers}) == 2
    assert len(asked.queries) == 2


def test_an_error_is_not_remembered(table: duckdb.DuckDBPyConnection) -> None:
    found = Found(Asked(table), ROWS)
    with pytest.raises(duckdb.Error):
        found("nothing = 1")
    table.execute("ALTER TABLE everything ADD COLUMN nothing INTEGER DEFAULT 1")
    assert table.execute(f"SELECT count(*) FROM everything WHERE {found('nothing = 1')}").fetchall() == [
        (ROWS,)
    ]


def test_another_table_has_its_own_answers(tmp_path: Path) -> None:
    """A run goes on and the dashboard is started anew: the same search finds what the new table holds."""

    def table(*kernels: str) -> list[str]:
        write_parquet(
            tmp_path / "results.parquet",
            (
                ResultRow(
                    patient_id="P", study_uid="1.2", series_uid=f"1.2.{nr}", status="failed", kernel=kernel
                )
                for nr, kernel in enumerate(kernels)
            ),
        )
        with TestClient(create_app(tmp_path), base_url=HERE) as client:
            answers = [client.get("/api/cases?search=b30&sort=series_uid").json() for _ in range(2)]
            counts = client.get("/api/counts?search=b30").json()["facets"]["kernel"]["values"]
        assert answers[0] == answers[1]
        found = [row["series_uid"] for row in answers[0]["rows"]]
        assert answers[0]["series"] == len(found) == sum(one["n"] for one in counts)
        return found

    assert table("B30f", "LUNG", "b30s") == ["1.2.0", "1.2.2"]
    assert table("LUNG", "B30f") == ["1.2.1"]
    assert table("LUNG") == []
