"""The SQL box: what it answers, and what it must not do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepcac2.dashboard import sql as sql_box
from deepcac2.dashboard.sql import run_query
from deepcac2.dashboard.table import Results
from deepcac2.errors import InputError


@pytest.fixture(scope="module")
def database(dashboard_results: Path) -> Iterator[Path]:
    with Results(dashboard_results) as results:
        yield results.database


def test_a_query(database: Path) -> None:
    found = run_query(
        database,
        "SELECT status, count(*) AS n, avg(agatston_score) AS mean FROM results GROUP BY 1 ORDER BY 1;",
    )
    assert [c["name"] for c in found["columns"]] == ["status", "n", "mean"]
    assert [row[0] for row in found["rows"]] == ["failed", "rejected", "scored"]
    assert sum(row[1] for row in found["rows"]) == 702
    assert found["rows"][0][2] is None
    assert found["more"] is False


def test_values_of_every_kind(database: Path) -> None:
    sql = "SELECT 1::HUGEINT << 70, 'nan'::DOUBLE, 1.5::DECIMAL(4,1), DATE '2000-01-02', [1, 2], true, NULL"
    assert run_query(database, sql)["rows"] == [
        [str(1 << 70), "nan", 1.5, "2000-01-02", "[1, 2]", True, None]
    ]


def test_a_time_with_a_zone(database: Path) -> None:
    with pytest.raises(InputError, match="cast them to VARCHAR"):
        run_query(database, "SELECT now()")
    assert run_query(database, "SELECT now()::VARCHAR")["rows"]


def test_at_most_1000_rows(database: Path) -> None:
    found = run_query(database, "SELECT * FROM range(1000000000000)")
    assert (len(found["rows"]), found["more"]) == (1000, True)
    wide = run_query(database, "SELECT repeat('x', 100000) FROM range(1000)")
    assert wide["more"] is True
    assert len(wide["rows"]) <= 20


ATTACKS = [
    "COPY results TO '{out}/x.csv'",
    "EXPORT DATABASE '{out}'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM read_parquet('{table}')",
    "SELECT * FROM '{table}'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM parquet_metadata('{table}')",
    "ATTACH '{out}/new.duckdb'",
    "ATTACH ':memory:' AS m",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SELECT * FROM read_csv('https://127.0.0.1/x.csv')",
    "PRAGMA enable_profiling",
    "PRAGMA memory_limit='10GB'",
    "SET threads = 64",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SELECT getenv('HOME')",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP TABLE t AS SELECT 1",
    "DROP TABLE everything",
    "DELETE FROM everything",
    "INSERT INTO everything SELECT * FROM everything",
    "UPDATE everything SET kernel = ''",
    "WITH x AS (SELECT 1) DELETE FROM everything",
    "ALTER TABLE everything ADD COLUMN x INT",
    "CALL enable_logging('QueryLog', storage = 'file', storage_path = '{out}/log')",
    "EXPLAIN ANALYZE COPY results TO '{out}/y.csv'",
    "PREPARE p AS SELECT 1",
    "SELECT 1; DROP TABLE everything",
    "CHECKPOINT",
    "BEGIN TRANSACTION",
    "USE memory",
    "",
    "-- nothing",
    "not SQL at all",
    "SELECT\x00 1",
]


@pytest.mark.parametrize("sql", ATTACKS)
def test_attacks(database: Path, dashboard_results: Path, tmp_path: Path, sql: str) -> None:
    before = database.read_bytes()
    with pytest.raises(InputError) as caught:
        run_query(database, sql.format(out=tmp_path, table=dashboard_results / "results.parquet"))
    assert "root:" not in str(caught.value)
    assert [*tmp_path.iterdir()] == []
    assert database.read_bytes() == before
    assert [p.name for p in database.parent.iterdir()] == [database.name]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM enable_logging('QueryLog', storage = 'file', storage_path = '{out}/log')",
        "SELECT * FROM enable_profiling(save_location = '{out}/profile.json')",
        "SELECT write_log('x')",
        "SELECT * FROM force_checkpoint()",
        "SELECT * FROM query('SELECT 42')",
    ],
)
def test_functions_that_do_something_write_nothing(database: Path, tmp_path: Path, sql: str) -> None:
    before = database.read_bytes()
    with contextlib.suppress(InputError):
        run_query(database, sql.format(out=tmp_path))
    assert [*tmp_path.iterdir()] == []
    assert database.read_bytes() == before
    assert [p.name for p in database.parent.iterdir()] == [database.name]


def test_nothing_of_the_machine_is_told(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DEEPCAC2_TOKEN", "the secret of the token")
    said = ""
    for sql in (
        "SELECT * FROM duckdb_databases()",
        "SELECT name, value FROM duckdb_settings()",
        "PRAGMA database_list",
    ):
        said += str(run_query(database, sql)["rows"])
    assert "the secret" not in said


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM results a, results b, results c, results d",
        "SELECT sum(range) FROM range(1000000000000)",
        "SELECT list(range) FROM range(100000000000)",
        "SELECT length(repeat('x', 4000000000))",
        "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t",
    ],
)
def test_what_would_take_for_ever_is_ended(database: Path, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcac2.dashboard.sql.SECONDS", 1.0)
    with pytest.raises(InputError, match=r"and was ended|[Mm]emory"):
        run_query(database, sql)


def _program(monkeypatch: pytest.MonkeyPatch, place: Path, text: str) -> None:
    """Queries run this program."""
    place.write_text(text)
    monkeypatch.setattr("deepcac2.dashboard.sql._PROGRAM", place)


def test_the_start_of_the_process_is_no_time_of_the_query(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = sql_box._PROGRAM.as_posix()
    slow = f"import runpy, time\ntime.sleep(2)\nrunpy.run_path({own!r}, run_name='__main__')"
    _program(monkeypatch, tmp_path / "slow.py", slow)
    monkeypatch.setattr("deepcac2.dashboard.sql.SECONDS", 1.5)
    found = run_query(database, "SELECT 1")
    assert found["rows"] == [[1]]
    assert found["seconds"] <= 1.5
    monkeypatch.setattr("deepcac2.dashboard.sql.START_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"ready within 0\.5 s"):
        run_query(database, "SELECT 1")


def test_a_process_that_ends_before_it_is_ready(
    database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _program(monkeypatch, tmp_path / "ends.py", "raise SystemExit(3)")
    with pytest.raises(InputError, match="could be started"):
        run_query(database, "SELECT 1")
    with pytest.raises(InputError, match="could be started"):
        run_query(tmp_path / "no.duckdb", "SELECT 1")


def test_others_are_answered_meanwhile(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcac2.dashboard.sql.SECONDS", 2.0)

    def slow() -> None:
        with pytest.raises(InputError):
            run_query(database, "SELECT count(*) FROM range(100000000000) a, range(1000) b")

    thread = threading.Thread(target=slow)
    thread.start()
    assert run_query(database, "SELECT 1")["rows"] == [[1]]
    thread.join()
