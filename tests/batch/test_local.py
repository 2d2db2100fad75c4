"""Workers on this machine: how many there are, and how many threads each takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepcac2.batch import run
from deepcac2.system import cores, memory
from deepcac2.system.cores import threads_each, workers_that_fit


@pytest.mark.parametrize(
    ("granted", "workers", "threads"),
    [
        ("", 1, 8),
        ("", 3, 2),
        ("", 9, 1),
        ("1", 1, 1),
        ("3", 2, 3),
        ("6", 2, 4),
        ("2,4", 1, 2),
        ("all", 1, 8),
        ("0", 1, 1),
    ],
)
def test_threads_are_those_of_the_cores_that_are_ours(
    monkeypatch: pytest.MonkeyPatch, granted: str, workers: int, threads: int
) -> None:
    """On a process that may use eight cores of however many there are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", granted)
    monkeypatch.setattr(cores, "_QUOTA", Path("/nowhere"))
    assert threads_each(workers) == threads


@pytest.mark.parametrize(
    ("quota", "threads"), [("max 100000", 8), ("250000 100000", 3), ("10000 100000", 1), ("", 8)]
)
def test_threads_are_no_more_than_a_container_may_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert threads_each(1) == threads


@pytest.mark.parametrize(
    ("free", "granted", "workers"), [(100, "", 8), (26, "", 2), (9, "", 1), (100, "3", 3), (None, "", 1)]
)
def test_workers_are_as_many_as_cores_and_memory_hold(
    monkeypatch: pytest.MonkeyPatch, free: int | None, granted: str, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", Path("/nowhere"))
    monkeypatch.setattr(cores, "available_bytes", lambda: free)
    monkeypatch.setenv("OMP_NUM_THREADS", granted)
    assert workers_that_fit(10) == workers
    monkeypatch.setattr(run, "WORKER_BYTES", 10)
    monkeypatch.setattr(run, "_count_gpus", lambda: 0)
    assert run.find_devices("auto", many=True) == ("cpu",) * workers
    assert run.find_devices("auto") == run.find_devices("cpu", many=True) == ("cpu",)
    monkeypatch.setattr(run, "_count_gpus", lambda: 2)
    assert run.find_devices("auto", many=True) == ("cuda:0", "cuda:1")


@pytest.mark.parametrize(
    ("most", "free"), [("max", 4_000_000_000), ("3000000000", 2_100_000_000), ("9000000000", 4_000_000_000)]
)
def test_free_memory_is_what_a_container_is_left_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: str, free: int
) -> None:
    """Of what it uses 0.3 of 1.2 GB are files that the system gives up when memory is asked for."""
    (tmp_path / "meminfo").write_text("MemTotal:  8000000 kB\nMemAvailable:    3906250 kB\n")
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text("1200000000\n")
    (tmp_path / "memory.stat").write_text("anon 900000000\ninactive_file 300000000\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_bytes() == free
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    assert memory.available_bytes() is None


@pytest.mark.parametrize(
    ("devices", "prefetch"),
    [(("cpu",), 1), (("cpu",) * 4, 0), (("cuda:0", "cuda:1"), 4), (("cuda:0", "cpu", "cpu"), 2)],
)
def test_readers_are_beside_gpus_and_a_single_worker_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], prefetch: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert run.default_prefetch(devices) == prefetch


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_bound_to_a_core_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert threads_each(1) == 1
    finally:
        os.sched_setaffinity(0, before)


WORKER = """
import os, sys
from pathlib import Path

from deepcac2.batch import worker

role = worker.Role(phases=("compute",), device="cpu", scratch=Path(sys.argv[1]))
worker.start(None, role, os.environ.copy())
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


@pytest.mark.parametrize(("asked", "policy"), [("", "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_a_worker_sleep_while_they_wait(tmp_path: Path, asked: str, policy: str) -> None:
    """OpenMP reads it when torch is loaded, so it must be there before."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": asked} if asked else {}
    said = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path)], env=environment, check=True, stdout=subprocess.PIPE
    ).stdout
    assert said.decode().split() == [policy, "False"]
