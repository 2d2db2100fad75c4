"""Disks that fill up, turn read-only or go away, under the real command."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

CopyOf = Callable[..., str]
RUN = [sys.executable, "-m", "deepcac2", "run"]
OPTIONS = ["--devices", "cpu", "--quiet"]


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def statuses(output: Path) -> list[str]:
    with (output / "results.csv").open(newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_full_disk_then_a_larger_one(simulated: Path, tmp_path: Path, private_mounts: list[str]) -> None:
    """A file system of 150 kB of its own: the run says so and leaves nothing half-written, then goes on."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=%s tmpfs {disk}"
    run = " ".join([*RUN, str(simulated), str(disk / "out"), *OPTIONS])
    script = f"""
        {mount % "150k"} && {run}; echo "code $?"
        find {disk} -name '.*' -type f
        mount -o remount,size=50m {disk} && {run}; echo "code $?"
        cp -r {disk}/out {kept}
    """
    done = subprocess.run([*private_mounts, script], capture_output=True, text=True, check=True, cwd=tmp_path)
    first, second = (line for line in done.stdout.splitlines() if line.startswith("code"))
    assert first == "code 21"
    assert "no space left" in done.stderr
    assert "/." not in done.stdout
    assert second == "code 0"
    assert sorted(statuses(kept)) == ["rejected", "scored"]


@pytest.mark.slow
def test_an_input_that_goes_away_and_comes_back(simulated: Path, tmp_path: Path, copy_of: CopyOf) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for n in range(3):
        copy_of(simulated / "SIM-0003" / "ct", source / str(n))
    process = subprocess.Popen([*RUN, str(source), str(output), *OPTIONS], cwd=tmp_path)
    wait_for(lambda: list(output.glob("SIM-0003/*/details.json")))
    source.rename(tmp_path / "away")
    assert process.wait() == 1
    found = statuses(output)
    assert len(found) == 3
    assert "failed" in found
    (tmp_path / "away").rename(source)
    assert (
        subprocess.run([*RUN, str(source), str(output), *OPTIONS], check=False, cwd=tmp_path).returncode == 0
    )
    assert statuses(output) == ["scored"] * 3


@pytest.mark.slow
def test_an_output_that_turns_read_only(simulated: Path, tmp_path: Path, copy_of: CopyOf) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    for n in range(3):
        copy_of(simulated / "SIM-0003" / "ct", source / str(n), PatientID=f"P{n}")
    command = [*RUN, str(source), str(output), *OPTIONS, "--prefetch", "0"]
    if os.getuid() == 0:  # rights bind root only without these capabilities
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere; run as another user, or install setpriv")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(output.glob("*/*/details.json")))
    output.chmod(0o555)
    _, text = process.communicate()
    assert process.returncode == 22, text
    assert "change its rights" in text
    output.chmod(0o755)
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert statuses(output) == ["scored"] * 3
