"""The process in which one SQL statement of a user runs; a program of its own, started by `sql`.

It opens the table for reading, gives up every right that a query could misuse, says that it is ready, and
only then gets the statement: no file can be opened or written any more, and no process started, whatever
DuckDB is talked into.

Reads ``{"database", "settings", "rows", "seconds", "characters"}`` as one line of JSON from its input and
writes a newline when it is ready; then reads the statement to the end of its input and writes
``{"columns", "rows", "more"}`` or ``{"error"}``.
"""

from __future__ import annotations

import decimal
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import duckdb

MEMORY_MB = 200
"""Of DuckDB's own memory; nothing is written to the disk beyond it, the query ends."""
PROCESS_MB = 2048
"""Of addresses of this whole process, most of them never used."""


def main() -> int:
    request = json.loads(sys.stdin.buffer.readline())
    database = Path(request["database"]).resolve()
    connection = duckdb.connect(
        str(database),
        read_only=True,
        config={**request["settings"], "memory_limit": f"{MEMORY_MB}MB", "temp_directory": ""},
    )
    connection.execute("SELECT count(*) FROM results").fetchall()
    _give_up_rights(request["seconds"])
    sys.stdout.write("\n")
    sys.stdout.flush()
    sql = sys.stdin.buffer.read().decode()
    try:
        answer = _run(connection, sql, request["rows"], request["characters"])
    except Exception as error:  # whatever a statement brings about
        answer = {"error": str(error).strip() or type(error).__name__}
        if "pytz" in answer["error"]:  # what DuckDB would need to hand over a time with a zone
            answer["error"] = "times with a time zone cannot be shown; cast them to VARCHAR or TIMESTAMP"
    sys.stdout.write(json.dumps(_without(str(database.parent), answer)))
    sys.stdout.flush()
    return 0


def _without(folder: str, answer: Any) -> Any:
    """An answer without the path of the database, which DuckDB tells in errors and in tables of its own."""
    if isinstance(answer, dict):
        return {key: _without(folder, value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [_without(folder, value) for value in answer]
    return answer.replace(f"{folder}/", "") if isinstance(answer, str) else answer


def _give_up_rights(seconds: float) -> None:
    """Nothing can be written, opened or started from here on; processor time and memory are limited."""
    next_one = os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free
    os.close(next_one)
    limits = {
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: next_one,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: int(time.process_time()) + 2 * int(seconds) + 2,
        resource.RLIMIT_AS: PROCESS_MB * 2**20,
    }
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(what, (most, most))


def _run(connection: duckdb.DuckDBPyConnection, sql: str, rows: int, characters: int) -> dict[str, Any]:
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        return {"error": "one statement at a time, please" if statements else "there is no statement"}
    if statements[0].type != duckdb.StatementType.SELECT:
        kind = statements[0].type.name.replace("_", " ")
        return {"error": f"only SELECT is possible here, not {kind}: the table can be read, nothing else"}
    cursor = connection.execute(statements[0])
    columns = [{"name": d[0], "type": str(d[1])} for d in cursor.description or ()]
    length = sum(len(column["name"]) + len(column["type"]) for column in columns)
    if length > characters:
        return {"error": "the answer has too many columns; ask for less"}
    found: list[list[Any]] = []
    while row := cursor.fetchone():
        if len(found) == rows:
            return {"columns": columns, "rows": found, "more": True}
        cells = [_plain(value) for value in row]
        length += sum(len(str(cell)) for cell in cells)
        if length > characters:
            return {"columns": columns, "rows": found, "more": True}
        found.append(cells)
    return {"columns": columns, "rows": found, "more": False}


def _plain(value: Any) -> Any:
    """What JSON holds: numbers, text, true, false, null."""
    if value is None or isinstance(value, bool | int | str):
        return value if not isinstance(value, int) or abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    return float(value) if isinstance(value, decimal.Decimal) else str(value)


if __name__ == "__main__":
    raise SystemExit(main())
