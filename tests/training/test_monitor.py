"""Logs that a resumed run does not double, and meters that say nothing where there is nothing to measure."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
import torch

from deepcac2.system.gpu import GpuMeter
from deepcac2.training.monitor import RunLog, Speed, read_log


def filled(work: Path, *steps: int, start: int = 0) -> None:
    log = RunLog(work, start)
    for step in steps:
        log.add(step, loss=step / 7, validation_dice=None if step % 4 else 0.5, learning_rate=1e-4)
    log.close()


def test_rows_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    filled(tmp_path / "a", 2, 4, 6, 8)
    filled(tmp_path / "b", 2, 4, 6)
    filled(tmp_path / "b", 6, 8, start=4)
    ours, theirs = (tmp_path / name / "log.csv" for name in "ab")
    assert ours.read_text() == theirs.read_text()
    rows = read_log(ours)
    assert [r["step"] for r in rows] == ["2", "4", "6", "8"]
    assert [r["validation_dice"] for r in rows] == ["", "0.5", "", "0.5"]
    assert float(rows[0]["loss"]) == pytest.approx(2 / 7, rel=1e-8)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    filled(tmp_path, 2, 4)
    whole = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(whole + "6,,0.3")
    assert [r["step"] for r in read_log(tmp_path / "log.csv")] == ["2", "4"]
    RunLog(tmp_path, 5).close()
    assert (tmp_path / "log.csv").read_text() == whole


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    """Read back by the format's own layout: length, checksum, protocol buffer, checksum."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    filled(tmp_path, 2, 4)
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    assert (4, "validation_dice", pytest.approx(0.5)) in found
    assert [(s, v) for s, tag, v in found if tag == "loss"] == [
        (2, pytest.approx(2 / 7)),
        (4, pytest.approx(4 / 7)),
    ]


def test_a_cpu_has_no_gpu_utilisation() -> None:
    with GpuMeter(torch.device("cpu")) as meter:
        assert meter.since_last() is None
    assert meter.mean() is None


def test_speed_is_patches_over_the_time_that_ran() -> None:
    speed = Speed()
    assert speed.mean() == speed.since_last() == 0
    for _ in range(2):
        speed.resume()
        time.sleep(0.02)
        speed.pause(10)
    assert 0 < speed.mean() <= 20 / 0.04
    assert speed.since_last() == speed.mean()
    assert speed.since_last() == 0
