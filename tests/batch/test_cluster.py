"""A run on a real Ray cluster of two nodes on this machine: nodes and actors die, and nothing is lost."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcac2.batch import cluster
from deepcac2.batch.ledger import OutputLock, Shard
from deepcac2.batch.run import Means, Progress, RunSummary, run_found
from deepcac2.batch.worker import Role
from deepcac2.cli.main import build_parser, main
from deepcac2.errors import DeviceError, DiskFull
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.run import Job, settle_output

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A head and a node, a CPU each; what they start looks for modules here, too."""
    pytest.importorskip("ray", reason="needs Ray, which is an extra: .venv/bin/pip install -e '.[cluster]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_enable_metrics_collection", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.syspath_prepend(str(HERE))
        handler = signal.getsignal(signal.SIGTERM)  # Cluster takes it
        nodes = Cluster()
        try:
            add_node(nodes, include_dashboard=False)
            add_node(nodes)
            yield nodes
        finally:
            nodes.shutdown()
            signal.signal(signal.SIGTERM, handler)


def add_node(nodes: Any, **options: Any) -> Any:
    return nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20, **options)


def run(
    nodes: Any,
    output: Path,
    count: int,
    faults: dict[int, str],
    *,
    timeout: float | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    import faulty

    marks = output.parent / "marks"
    marks.mkdir(exist_ok=True)
    job = faulty.FaultyJob(workflow=Workflow.load("default"), output=output, marks=marks)
    means = Means(ray=nodes.address, timeout=timeout)
    with OutputLock(output) as lock:
        log_path = output / "logs" / "run.log"
        return run_found(job, faulty.found(count, faults), lock, means=means, watch=watch, log_path=log_path)


def outcomes(summary: RunSummary) -> dict[str, tuple[str, str]]:
    rows = {r.series_uid: (r.status, r.code) for r in summary.rows}
    assert len(rows) == len(summary.rows)
    return rows


def deaths(output: Path) -> list[str]:
    lines = (output / "logs" / "journal.jsonl").read_text().splitlines()
    return [e["text"] for line in lines if (e := json.loads(line))["event"] == "died"]


def processes(output: Path) -> set[str]:
    """Of the actors that wrote into the nodes' logs."""
    logs = (output / "logs").glob("run-*.log")
    return {line.split()[3] for log in logs for line in log.read_text().splitlines() if ": scored" in line}


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.slow
def test_whatever_kills_an_actor_costs_one_series_at_most(
    two_nodes: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    faults = {2: "segfault", 5: "kill", 7: "exit", 9: "memory", 11: "error", 13: "reject", 15: "once-kill"}
    summary = run(two_nodes, tmp_path / "out", 18, faults)
    expected = {f"1.2.{i}": ("scored", "") for i in range(18)}
    expected |= {f"1.2.{i}": ("failed", "worker-died") for i in (2, 5, 7)}
    expected["1.2.9"] = ("failed", "out-of-memory")
    expected["1.2.11"] = ("failed", "internal-error")
    expected["1.2.13"] = ("rejected", "too-thick")
    assert outcomes(summary) == expected
    assert deaths(tmp_path / "out") == ["its worker was lost: its worker process has died"] * 7
    assert {s.workers for s in summary.statistics.stages.values()} == {2}
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_series(two_nodes: Any, tmp_path: Path) -> None:
    """Both actors hang when a node dies; the other one is killed in time, and its node does the rest."""
    lost = add_or_get(two_nodes)

    def lose() -> None:
        wait_for(lambda: len(list((tmp_path / "marks").glob("once-deaf*"))) == 2)
        two_nodes.remove_node(lost, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    faults = {10: "once-deaf:0", 11: "once-deaf:1"}
    summary = run(two_nodes, tmp_path / "out", 40, faults, timeout=6.0)
    thread.join()
    assert outcomes(summary) == {f"1.2.{i}": ("scored", "") for i in range(40)}
    assert len(list((tmp_path / "out").rglob("result.txt"))) == 40
    by_time, by_loss = sorted(deaths(tmp_path / "out"))
    assert by_loss.startswith("its worker was lost: ")
    assert by_time == "its worker took longer than --timeout allows and was stopped"


def add_or_get(nodes: Any) -> Any:
    """A node beside the head."""
    return next(iter(nodes.worker_nodes), None) or add_node(nodes)


@pytest.mark.slow
def test_nodes_that_join_get_work(two_nodes: Any, tmp_path: Path) -> None:
    add_or_get(two_nodes)
    joined: list[Any] = []

    def watch(progress: Progress) -> None:
        if progress.done == 5:
            joined.append(add_node(two_nodes))
        if progress.done > 5:
            time.sleep(0.05)

    summary = run(two_nodes, tmp_path / "out", 600, {}, watch=watch)
    two_nodes.remove_node(joined[0])
    assert Counter(outcomes(summary).values()) == {("scored", ""): 600}
    assert len(processes(tmp_path / "out")) == 3


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_keeps_what_is_done(two_nodes: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(DiskFull, match="free some"):
        run(two_nodes, output, 6, {3: "disk"})
    again = run(two_nodes, output, 6, {})
    assert set(outcomes(again).values()) == {("scored", "")}
    assert again.statistics.series < 6


@pytest.mark.slow
def test_the_real_command_on_the_cluster(two_nodes: Any, tmp_path: Path, simulated: Path) -> None:
    """Nothing but its own lines on stdout, relative paths, and the result of a run without a cluster."""
    (tmp_path / "in").symlink_to(simulated)
    command = [sys.executable, "-m", "deepcac2", "run", "in"]
    scores = {}
    for output, options in {"a": ("--ray", two_nodes.address), "b": ("--devices", "cpu")}.items():
        done = subprocess.run(
            [*command, output, "--json-progress", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{")]
        assert len(lines) == len(events) + 1  # and the summary
        scores[output] = {s["series_uid"]: s["agatston_score"] for e in events if (s := e["series"])}
    assert scores["a"] == scores["b"]
    assert len(list((tmp_path / "a" / "logs").glob("run-*.log"))) == 2


# --- without a cluster ------------------------------------------------------------------------------------


def test_without_ray_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["run", str(HERE), str(tmp_path / "out"), "--ray", "auto"]) == DeviceError.exit_code
    assert ".venv/bin/pip install -e '.[cluster]'" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["local", "ray://head:10001", "head", "/tmp/socket"])
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Ray would start a cluster of its own for some of them."""
    pytest.importorskip("ray", reason="needs Ray, which is an extra")
    with pytest.raises(DeviceError, match="no host:port"):
        cluster.check_ray(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(DeviceError, match="no host:port"):
        cluster.check_ray("auto")


def test_devices_are_the_clusters_business(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--devices", "cpu"], ["--prefetch", "1"]):
        assert main(["run", str(HERE), str(tmp_path / "out"), "--ray", "auto", *option]) == 30
        assert "leave out --devices and --prefetch" in capsys.readouterr().err


def test_the_examples_give_arguments_that_exist() -> None:
    job, ray_job = (yaml.safe_load((EXAMPLES / name).read_text()) for name in ("job.yml", "rayjob.yml"))
    given = job["spec"]["template"]["spec"]["containers"][0]["args"]
    batch = (EXAMPLES / "slurm.sbatch").read_text()
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sbatch")], check=True)
    in_batch = batch.split('"$image" ')[1].replace("$SLURM_ARRAY_TASK_ID", "3").replace("$parts", "16")
    for arguments in (
        ["run", "in", "out", *(a.replace("$(PART)", "3") for a in given)],
        ["run", "in", "out", *shlex.split(in_batch)],
        shlex.split(ray_job["spec"]["entrypoint"])[1:],
    ):
        args = build_parser().parse_args(arguments)
        assert args.quiet
        assert args.ray == "auto" or Shard.parse(args.shard) == Shard(3, job["spec"]["completions"])
    assert "--array=0-15" in batch
    assert "parts=16" in batch


def test_a_node_with_other_files_or_another_version_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cluster, "SETTLE_SECONDS", 0.0)
    job = Job(workflow=Workflow.load("default"), output=tmp_path / "out")
    role = Role(phases=("read", "compute", "write"), device="cpu", scratch=Path())
    actor = cluster._Actor(job, role, str(Path.cwd()))
    with pytest.raises(DeviceError, match="does not see"):
        actor.settle()
    settle_output(job, redo=False)
    actor.settle()
    job.provenance["deepcac2"] = "0.0"
    with pytest.raises(DeviceError, match="differs in deepcac2; run the same image"):
        actor.settle()
