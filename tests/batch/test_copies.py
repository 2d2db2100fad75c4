"""Workers that are copies of a process which has loaded the libraries, and those that cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepcac2.system.atomic import write_whole

PROGRAM = """
import os, sys, time
from pathlib import Path

from pebble import ProcessPool

from deepcac2.batch import worker
from deepcac2.batch.copies import context

def loaded(seconds):
    print(os.getpid(), flush=True)
    time.sleep(seconds)
    return sorted({"torch", "highdicom"} & set(sys.modules)), os.environ.get("LATER")

if __name__ == "__main__":
    scratch = Path(sys.argv[1])
    role = worker.Role(phases=("compute",), device="cpu", scratch=scratch)
    how = context()
    os.environ["LATER"] = "yes"
    given = (None, role, dict(os.environ))
    with ProcessPool(1, initializer=worker.start, initargs=given, context=how) as pool:
        print(how.get_start_method(), *pool.schedule(loaded, args=(float(sys.argv[2]),)).result(), flush=True)
        (scratch / worker.STOP).touch()
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    write_whole(tmp_path / "program.py", PROGRAM.encode())
    return [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]


@pytest.mark.skipif(sys.platform != "linux", reason="workers are copies on Linux alone")
def test_a_copy_has_the_libraries_and_the_environment_of_the_run(program: list[str]) -> None:
    """The environment is that of the process that wants it now, not of the moment when loading began."""
    said = subprocess.run([*program, "0"], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said.splitlines()[1] == "forkserver ['highdicom', 'torch'] yes"


def test_where_there_is_no_room_for_a_socket_workers_load_by_themselves(
    program: list[str], tmp_path: Path
) -> None:
    """The path of a socket holds about 100 bytes; clusters have temporary folders with longer ones."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    said = subprocess.run(
        [*program, "0"], check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    assert said.splitlines()[1] == "spawn [] yes"


@pytest.mark.skipif(sys.platform != "linux", reason="workers are copies on Linux alone")
@pytest.mark.parametrize("killed", ["run", "original"])
def test_workers_die_with_the_run_and_with_what_they_are_copies_of(program: list[str], killed: str) -> None:
    with subprocess.Popen([*program, "600"], stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            copy = int(run.stdout.readline())
            os.kill(run.pid if killed == "run" else _stat(copy)[1], signal.SIGKILL)
            deadline = time.monotonic() + 30
            while _stat(copy)[0] not in ("Z", 0):
                assert time.monotonic() < deadline, "the worker goes on"
                time.sleep(0.05)
        finally:
            run.kill()


def _stat(pid: int) -> tuple[str | int, int]:
    """State and parent of a process, ``Z`` of one that is dead and not fetched by its parent; 0 of none."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return state, int(parent)
