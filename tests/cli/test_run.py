"""What `deepcac2 run` takes and prints; what it does is tested in tests/batch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deepcac2.batch.engine import Load, Statistics
from deepcac2.batch.run import Progress
from deepcac2.batch.worker import Effort
from deepcac2.cli.main import build_parser, main
from deepcac2.cli.run import _line
from deepcac2.dicom import discover
from deepcac2.weights import write_description

CONFIG = Path(__file__).parents[2] / "config"


@pytest.mark.slow
def test_json_progress_is_one_object_a_series(simulated: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deepcac2", "run", str(simulated), str(tmp_path / "out")]
    command += ["--devices", "cpu", "--json-progress"]  # a process of its own: its peak memory is told
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [(x["done"], x["total"]) for x in lines] == [(0, 2), (1, 2), (2, 2)]
    assert lines[0]["series"] is None
    last = lines[-1]
    assert (last["scored"], last["rejected"], last["failed"]) == (1, 1, 0)
    assert {x["series"]["status"] for x in lines[1:]} == {"scored", "rejected"}
    assert all(100 < mb < 5000 for mb in last["peak_mb"].values())
    assert 0 < last["own_peak_mb"] < 2000
    assert last["seconds_left"] == 0
    assert last["gpu_percent"] is None


def test_only_what_a_table_names(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, table = tmp_path / "out", tmp_path / "cohort.csv"
    seg = next(s for s in discover(simulated).series if s.modality == "SEG")
    table.write_text(f"selected,series_uid\ntrue,{seg.series_uid}\ntrue,1.2.3\nfalse,4.5.6\n")
    assert main(["run", str(simulated), str(out), "--devices", "cpu", "--only", str(table)]) == 1
    with (out / "results.csv").open(newline="") as file:
        rows = {r["series_uid"]: (r["status"], r["code"]) for r in csv.DictReader(file)}
    assert rows == {seg.series_uid: ("rejected", "not-ct"), "1.2.3": ("failed", "not-found")}
    table.write_text("selected,series_uid\nfalse,1.2.3\n")
    assert main(["run", str(simulated), str(out), "--only", str(table)]) == 10
    assert "selects no series" in capsys.readouterr().err


def test_weights_of_a_role_that_no_module_takes(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text("{}")
    write_description(tmp_path, name="theirs", role="hart", files=["a.json"])
    assert main(["run", str(simulated), str(tmp_path / "out"), "--weights", str(tmp_path)]) == 30
    said = "no module takes weights of the role 'hart'. Perhaps you meant 'heart'."
    assert said in capsys.readouterr().err


def test_help_names_every_workflow(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = "".join(capsys.readouterr().out.split())  # lines end between words, and at hyphens
    names = [path.stem for path in CONFIG.glob("*.yml")]
    assert len(names) > 3
    for name in names:
        told = yaml.safe_load((CONFIG / f"{name}.yml").read_text())["general"]["description"]
        assert "".join(f"{name}: {told}".split()) in shown


def test_a_line_a_minute_says_how_a_long_run_is_doing() -> None:
    statistics = Statistics(stages={"read": Load(workers=2), "compute": Load(workers=1)}, series=360)
    statistics.started -= 7200
    statistics.stages["read"].add(Effort(seconds=3600, peak_mb=700))
    for percent in (40.0, 60.0):
        effort = Effort(seconds=3000, peak_mb=2500, gpu_percent=percent, gpu_mb=3100)
        statistics.stages["compute"].add(effort)
    counts = {"scored": 400, "rejected": 90, "failed": 10}
    text = _line(Progress(done=500, total=1000, counts=counts, statistics=statistics))
    assert text == (
        "500/1000 (400 scored, 90 rejected, 10 failed), 180 an hour, about 2 h 47 min left; "
        "busiest: compute 83%; workers at most 3.9 GB; GPU 50 %, at most 3.1 GB"
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1h", 3600.0), ("45", 45.0), ("1.5h", 5400.0)]
)
def test_times(text: str, seconds: float) -> None:
    assert build_parser().parse_args(["run", "IN", "OUT", "--timeout", text]).timeout == seconds


@pytest.mark.parametrize(
    "option", [("--timeout", "soon"), ("--timeout", "-3"), ("--retries", "-1"), ("--prefetch", "many")]
)
def test_options_that_make_no_sense(option: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "IN", "OUT", *option])
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("devices", ["auto,cpu", "cuda:0,cuda:0", ","])
def test_lists_of_devices_that_make_no_sense(
    simulated: Path, tmp_path: Path, devices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(simulated), str(tmp_path / "out"), "--devices", devices]) == 50
    assert f"--devices {devices}" in capsys.readouterr().err


def test_an_unknown_shard(simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(simulated), str(tmp_path / "out"), "--shard", "4/4"]) == 10
    assert "--shard 4/4" in capsys.readouterr().err
