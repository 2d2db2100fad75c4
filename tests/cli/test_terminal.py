"""What comes from outside steers no terminal and forges no line, in no command; and programs lose nothing."""

from __future__ import annotations

import ast
import csv
import json
import logging
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest

from deepcac2.cli.main import main
from deepcac2.cli.run import _report, _Watcher
from deepcac2.cli.screen import add_row, new_console, new_table
from deepcac2.pipeline.results import ResultRow, read_parquet, write_table
from deepcac2.simulation import default_geometry, simulate_patient
from deepcac2.simulation.dicom import write_patient
from deepcac2.system.names import OneLine, printable

CLI = Path(__file__).resolve().parents[2] / "cli"
EVIL = "A\x1b[2J\x1b]0;x\x07\x9b31m\r\nscored 1\tfine\u202e[red]:smile:\x7f"
STEERING = set(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x202E, 0x2028))) - {"\n"}


def clean(text: str) -> str:
    """The text, once it is certain that a terminal shows it as it is."""
    assert not STEERING & set(text), repr(text)
    return text


def test_what_does_not_print_is_replaced_and_all_else_stays() -> None:
    assert printable(EVIL) == "A?[2J?]0;x??31m??scored 1?fine?[red]:smile:?"
    plain = "Müller – 1 mm³ … 中文 C:\\x `~"
    assert printable(plain) == plain
    assert printable("scan-\udce4.dcm\ud800") == "scan-\\xe4.dcm\ufffd"


def test_only_one_module_writes_to_the_screen() -> None:
    """No command, and no room beneath, has a way of its own to the terminal."""
    allowed = {
        "cli/screen.py",
        "models/heart/train_worker.py",
        "dashboard/sql_child.py",
    }  # the last two: pipes
    outside = {"tests", "benchmarks", "docs", "mhub", "container", ".dev", ".ci", ".venv", "build"}
    for path in CLI.parent.rglob("*.py"):
        name = path.relative_to(CLI.parent).as_posix()
        if name.split("/")[0] in outside or name in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert not (node.attr in ("stdout", "stderr") and ast.unparse(node.value) == "sys"), name
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "Console", "ArgumentParser"), name
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("rich.table", "rich.console") or _types_only(path, node), name


def _types_only(path: Path, node: ast.ImportFrom) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return any(ast.unparse(node) == ast.unparse(inner) for b in blocks for inner in b.body)


def test_tables_and_lines_of_rich(capsys: pytest.CaptureFixture[str]) -> None:
    console = new_console(width=200)
    table = new_table("a", "b")
    add_row(table, (EVIL, "1"))
    add_row(table, ("B", "2"))
    console.print(table)
    console.print(EVIL, style="dim")
    lines = clean(capsys.readouterr().out).splitlines()
    assert len(lines) == 4
    assert "[red]:smile:" in lines[1]
    assert "[red]:smile:" in lines[3]


def row(**changes: Any) -> ResultRow:
    known: dict[str, Any] = {"patient_id": EVIL, "study_uid": "1", "series_uid": "1.2", "status": "rejected"}
    return ResultRow(**{**known, "code": "x", "reason": EVIL, "folder": EVIL, **changes})


def test_the_summary_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(), row(status="scored", agatston_score=1.0, risk_group=1, caution=EVIL, off_domain=EVIL)]
    out = tmp_path / f"out{EVIL}".replace("/", "")
    write_table(out, rows)
    summary: Any = SimpleNamespace(
        output=out, table=True, done=2, first=lambda n: rows, count=lambda s: 1,
        statistics=SimpleNamespace(series=1), images=0, workbook=True, stopped=False,
    )  # fmt: skip
    _report(summary, out / "logs" / "run.log", quiet=False)
    shown = clean(capsys.readouterr().out).splitlines()
    assert len(shown) == 7  # a head, two rows, a note, a caution and a note, the last line
    assert not any(line.startswith("scored 1") for line in shown)
    _Watcher(quiet=False).say(f"device: {EVIL}")
    clean(capsys.readouterr().err)
    # files keep what they were given
    assert [r.patient_id for r in read_parquet(out / "results.parquet")] == [EVIL, EVIL]
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        assert [r["patient_id"] for r in csv.DictReader(file)] == [EVIL, EVIL]


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT whose texts steer a terminal."""
    folder = tmp_path_factory.mktemp("scan")
    write_patient(simulate_patient(3, geometry=default_geometry(3, size=32, slices=8)), folder)
    for path in folder.rglob("ct/*.dcm"):
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SeriesDescription = "A\x1b[2J\x9b1m"
        ds.PatientID = "P\x1b[2J"
        ds.save_as(path)
    (next(folder.rglob("ct/*.dcm")).parent / "b\x1b[2J\nx.dcm").write_bytes(b"\0" * 128 + b"DICM")
    return next(folder.rglob("ct"))


def test_inspect(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(scan)]) == 0
    assert "P?[2J" in clean(capsys.readouterr().out)
    assert main(["inspect", str(scan), "--json"]) == 0
    said = capsys.readouterr().out
    assert said.isascii()
    assert json.loads(said)["series"][0]["patient_id"] == "P\x1b[2J"


def test_release_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("P/1.2/DeepCAC.report.json", json.dumps({EVIL: 1, "SeriesInstanceUID": EVIL}))
        archive.writestr(EVIL.replace("/", ""), "x")
    assert main(["release", "verify", str(tmp_path / "a.zip")]) == 1
    said = clean(capsys.readouterr().out)
    assert not any(line.startswith("scored 1") for line in said.splitlines())
    assert main(["release", "verify", str(tmp_path / "a.zip"), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(EVIL in p["place"] for p in problems)


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", f"/nowhere/{EVIL}"],
        ["run", f"/nowhere/{EVIL}", "out"],
        ["weights", "verify", f"/nowhere/{EVIL}"],
        ["release", "verify", f"/nowhere/{EVIL}"],
        ["stats", "agreement", f"/nowhere/{EVIL}.csv", "--ai", "a", "--reference", "b"],
        ["push", f"/nowhere/{EVIL}", "--dicomweb", "http://localhost:1"],
        ["cohort", "select", f"/nowhere/{EVIL}", "-o", "x.csv"],
        ["score", f"/nowhere/{EVIL}", f"/nowhere/{EVIL}"],
    ],
    ids=lambda command: command[0],
)
def test_errors_are_one_line(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) >= 10
    said = clean(capsys.readouterr().err)
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["inspect", "x", EVIL], [EVIL], ["run", "a", "b", "--timeout", EVIL], ["release", EVIL]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2
        last = clean(capsys.readouterr().err).splitlines()[-1]
        assert ": error: " in last


def test_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "of %s", (EVIL,), None)
    assert OneLine("%(message)s").format(record) == f"of {printable(EVIL)}"
    try:
        raise ValueError(EVIL)
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError" in clean(OneLine("%(message)s").format(record))


def test_what_is_logged_where_nobody_said_where_to() -> None:
    code = f"""
import logging
from deepcac2.cli.main import main
main(["weights", "list"])
logging.getLogger("some.library").warning("of %s", {EVIL!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert clean(done.stderr) == f"of {printable(EVIL)}\n"
