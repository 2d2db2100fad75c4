"""What can go wrong with the workers and with the run itself really goes wrong here; nothing may be lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deepcac2.batch.ledger import Shard
from deepcac2.batch.run import Progress, RunSummary
from deepcac2.errors import DiskFull, OutputBusy

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes look for modules where this process does."""
    monkeypatch.syspath_prepend(str(HERE))


def run(output: Path, count: int, faults: dict[int, str], **options: Any) -> RunSummary:
    import faulty

    return faulty.run(output, faulty.found(count, faults), **options)


def outcomes(summary: RunSummary) -> dict[str, tuple[str, str]]:
    rows = {r.series_uid: (r.status, r.code) for r in summary.rows}
    assert len(rows) == len(summary.rows)
    return rows


def files(output: Path) -> dict[str, bytes]:
    """What the series left, without what is about time."""
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("result.txt")}


@pytest.mark.slow
@pytest.mark.parametrize("prefetch", [0, 1])
def test_whatever_kills_a_worker_costs_one_series_at_most(tmp_path: Path, prefetch: int) -> None:
    faults = {2: "segfault", 5: "kill", 7: "exit", 9: "memory", 11: "error", 13: "reject", 15: "once-kill"}
    summary = run(tmp_path / "out", 18, faults, prefetch=prefetch)
    expected = {f"1.2.{i}": ("scored", "") for i in range(18)}
    expected |= {f"1.2.{i}": ("failed", "worker-died") for i in (2, 5, 7)}
    expected["1.2.9"] = ("failed", "out-of-memory")
    expected["1.2.11"] = ("failed", "internal-error")
    expected["1.2.13"] = ("rejected", "too-thick")
    assert outcomes(summary) == expected
    reasons = {r.series_uid: r.reason for r in summary.rows}
    assert "SIGSEGV" in reasons["1.2.2"]
    assert "SIGKILL" in reasons["1.2.5"]
    assert "exit code 3" in reasons["1.2.7"]
    assert len(files(tmp_path / "out")) == 12
    assert summary.statistics.deaths == 7


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_a_worker_that_hangs_is_stopped(tmp_path: Path, fault: str) -> None:
    summary = run(tmp_path / "out", 4, {1: fault}, timeout=15.0, retries=0)
    rows = outcomes(summary)
    assert rows.pop("1.2.1") == ("failed", "timeout")
    assert set(rows.values()) == {("scored", "")}


@pytest.mark.slow
def test_a_series_that_killed_two_workers_is_set_aside_until_told_otherwise(tmp_path: Path) -> None:
    output, faults = tmp_path / "out", {1: "kill"}
    first = run(output, 3, faults, retries=0)
    assert outcomes(first)["1.2.1"] == ("failed", "worker-died")
    assert first.statistics.deaths == 1
    second = run(output, 3, faults, retries=0)
    assert second.statistics.deaths == 1
    third = run(output, 3, faults, retries=0)
    assert third.statistics.deaths == 0
    assert outcomes(third)["1.2.1"] == ("failed", "quarantined")
    assert "--redo" in {r.series_uid: r.reason for r in third.rows}["1.2.1"]
    healed = run(output, 3, {}, redo=True)
    assert set(outcomes(healed).values()) == {("scored", "")}


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(DiskFull, match="free some"):
        run(output, 6, {3: "disk"})
    again = run(output, 6, {})
    assert set(outcomes(again).values()) == {("scored", "")}


def test_two_runs_on_one_output_refuse_each_other_and_a_killed_one_is_not_finished(tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = subprocess.Popen([sys.executable, str(HERE / "faulty.py"), str(output), "3", "0", "hang"])
    try:
        deadline = time.monotonic() + 60
        while not (output / "logs" / "journal.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(OutputBusy, match="another run is at work"):
            run(output, 3, {})
    finally:
        first.kill()
        first.wait()
    said = json.loads((output / "run.json").read_text())["series"]
    assert said == {"found": 3, "selected": 3, "finished": False}
    assert set(outcomes(run(output, 3, {})).values()) == {("scored", "")}


@pytest.mark.slow
def test_shards_share_an_output(tmp_path: Path) -> None:
    """One shard after the other, and the table is whole after the last; the same shard twice is refused."""
    output = tmp_path / "out"
    parts = [run(output, 12, {4: "reject"}, shard=Shard(i, 3)) for i in range(3)]
    assert sum(p.done for p in parts) == 12
    assert all(p.table for p in parts)
    assert len(parts[-1].rows) == 12
    assert Counter(r.status for r in parts[-1].rows) == {"scored": 11, "rejected": 1}


@pytest.mark.slow
def test_the_run_says_which_series_its_shards_have_left(tmp_path: Path) -> None:
    output, seen = tmp_path / "out", []
    for i in range(3):
        run(output, 12, {4: "reject"}, shard=Shard(i, 3))
        seen.append(json.loads((output / "run.json").read_text())["series"])
    assert [s["found"] for s in seen] == [s["selected"] for s in seen] == [12] * 3
    assert [s["finished"] for s in seen] == [False, False, True]
    for number, said in enumerate(seen, start=1):
        left = {
            f"1.2.{i}" for i in range(12) if not any(Shard(n, 3).holds(f"1.2.{i}") for n in range(number))
        }
        assert set(said["missing_series"]) == left
        assert said["missing"] == len(left)
        assert said["scored"] + said["rejected"] + said["failed"] == 12 - len(left)
    assert (seen[-1]["scored"], seen[-1]["rejected"]) == (11, 1)


@pytest.mark.parametrize("prefetch", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stop_finishes_what_is_computed_and_begins_nothing(tmp_path: Path, prefetch: int) -> None:
    """Of eight slow series, stopped when the first is done: what is computed by then follows, no more."""
    output, slow, engines, finishing = tmp_path / "out", dict.fromkeys(range(8), "slow"), [], []

    def watch(progress: Progress) -> None:
        if progress.done == 1:
            engines[0].stop()
            finishing.append(engines[0].finishing)

    summary = run(output, 8, slow, prefetch=prefetch, running=engines.append, watch=watch)
    assert 1 <= summary.done <= 1 + finishing[0] < 6
    assert summary.left == 8 - summary.done
    assert engines[0].finishing == 0
    assert len(files(output)) == summary.done
    again = run(output, 8, {})
    assert set(outcomes(again).values()) == {("scored", "")}
    assert again.statistics.series == summary.left
    assert again.statistics.deaths == 0


def killed_run(output: Path, count: int, kills: int, seed: int) -> None:
    """A run over `count` series whose parent is killed `kills` times, and then left alone."""
    command = [sys.executable, str(HERE / "faulty.py"), str(output), str(count), "1"]
    rng = random.Random(seed)
    for _ in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.5, 6.0))
        process.kill()
        process.wait()
    assert subprocess.run(command, check=False).returncode == 0


def check_killed_run(tmp_path: Path, count: int, kills: int) -> None:
    killed_run(tmp_path / "out", count, kills, seed=1)
    undisturbed = run(tmp_path / "undisturbed", count, {})
    again = run(tmp_path / "out", count, {})  # everything is there: only the table is written
    assert again.statistics.series == 0
    assert outcomes(again) == outcomes(undisturbed)
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert left == {p.name for p in (tmp_path / "undisturbed").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    check_killed_run(tmp_path, count=40, kills=3)


@pytest.mark.slow
def test_a_run_killed_twenty_times_loses_nothing(tmp_path: Path) -> None:
    check_killed_run(tmp_path, count=400, kills=20)


@pytest.mark.slow
def test_a_thousand_series_of_which_one_in_twenty_is_broken(tmp_path: Path) -> None:
    kinds = [
        "segfault",
        "kill",
        "exit",
        "memory",
        "error",
        "reject",
        "once-kill",
        "once-segfault",
        "hang",
        "error",
    ]
    faults = {20 * i: kind + f":{i}" * kind.startswith("once") for i, kind in enumerate(kinds * 5)}
    summary = run(tmp_path / "out", 1000, faults, devices=("cpu", "cpu"), timeout=15.0)
    codes = Counter(r.code for r in summary.rows if r.status != "scored")
    assert codes == {
        "worker-died": 15,
        "timeout": 5,
        "out-of-memory": 5,
        "internal-error": 10,
        "too-thick": 5,
    }
    assert len(outcomes(summary)) == 1000


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_lets_the_series_at_work_finish(tmp_path: Path, simulated: Path, number: int) -> None:
    """The real command on real files: it ends by itself, with a table, and says how to go on."""
    import shutil

    source, output = tmp_path / "in", tmp_path / "out"
    shutil.copytree(simulated, source)
    command = [sys.executable, "-m", "deepcac2", "run", str(source), str(output), "--devices", "cpu"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    journal = output / "logs" / "journal.jsonl"
    while not (journal.exists() and "started" in journal.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.killpg(process.pid, number)  # to all of its processes, as terminals and schedulers do
    _, text = process.communicate(timeout=120)
    assert "stopping: " in text
    assert "once more to end at once" in text
    assert "Traceback" not in text
    assert process.returncode in (0, 130), text
    assert "died" not in (output / "logs" / "journal.jsonl").read_text()
    assert (output / "results.csv").exists()
