"""Locks, journal and shards: who may write, what is remembered."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from deepcac2.batch.ledger import Journal, OutputLock, Shard, read_lines
from deepcac2.errors import InputError, OutputBusy


def test_one_run_alone_or_different_shards_together(tmp_path: Path) -> None:
    with OutputLock(tmp_path), pytest.raises(OutputBusy), OutputLock(tmp_path):
        pass
    with OutputLock(tmp_path, Shard(0, 2)), OutputLock(tmp_path, Shard(1, 2)):
        with pytest.raises(OutputBusy, match="shard 1/2"), OutputLock(tmp_path, Shard(1, 2)):
            pass
        with pytest.raises(OutputBusy, match="--shard"), OutputLock(tmp_path):
            pass
    with OutputLock(tmp_path):
        pass


def test_the_last_shard_at_work_writes_the_table(tmp_path: Path) -> None:
    with OutputLock(tmp_path, Shard(0, 3)) as a, OutputLock(tmp_path, Shard(2, 3)) as b:
        with a.last_one() as last:
            assert not last
        with b.last_one() as last:
            assert last
    with OutputLock(tmp_path) as alone, alone.last_one() as last:
        assert last


def test_shards_divide_the_work() -> None:
    uids = [f"1.2.840.{i}" for i in range(3000)]
    parts = [[u for u in uids if Shard(i, 7).holds(u)] for i in range(7)]
    assert sorted(u for p in parts for u in p) == sorted(uids)
    assert max(map(len, parts)) < 1.3 * min(map(len, parts))
    # The same on every machine and in every version, here by sha1sum: a shard that is started again must
    # find its series.
    assert [u for u in uids[:12] if Shard(0, 4).holds(u)] == [
        "1.2.840.0",
        "1.2.840.5",
        "1.2.840.6",
        "1.2.840.8",
    ]


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "1/0", "1/2/3", ""])
def test_a_shard_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="--shard"):
        Shard.parse(text)


def test_deaths_are_remembered_also_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.add("started", "1.2.3")
    first.add("died", "1.2.3", "signal SIGSEGV")
    first.close()
    with first.path.open("ab") as file:
        file.write(b'{"time": 1.0, "event": "died", "ser')
    second = Journal(tmp_path)
    assert second.deaths == Counter({"1.2.3": 1})
    assert not second.quarantined("1.2.3")
    second.add("died", "1.2.3", "signal SIGSEGV")
    assert second.quarantined("1.2.3")
    second.close()
    whole = []
    for line in second.path.read_text().splitlines():
        try:
            whole.append(json.loads(line))
        except ValueError:
            continue
    assert [e["event"] for e in whole] == ["started", "died", "died"]
    assert deaths(tmp_path, forget=True) == Counter()
    assert deaths(tmp_path) == Counter()


def deaths(output: Path, *, forget: bool = False) -> Counter[str]:
    journal = Journal(output, forget=forget)
    journal.close()
    return journal.deaths


def test_shards_know_of_each_others_deaths(tmp_path: Path) -> None:
    for shard in (Shard(0, 2), Shard(1, 2)):
        journal = Journal(tmp_path, shard)
        journal.add("died", "1.2.3")
        journal.close()
    assert deaths(tmp_path) == Counter({"1.2.3": 2})


def test_shards_of_another_split_are_refused(tmp_path: Path) -> None:
    """0/2 and 0/3 hold the same series: both would compute and write them."""
    with (
        OutputLock(tmp_path, Shard(0, 3)),
        pytest.raises(OutputBusy, match="a shard of 3 is at work") as caught,
    ):
        OutputLock(tmp_path, Shard(1, 2))
    assert "\n" not in str(caught.value)
    with OutputLock(tmp_path, Shard(0, 2)), OutputLock(tmp_path, Shard(1, 2)):
        pass  # what the other split and the refused one left behind holds nobody up
    with OutputLock(tmp_path, Shard(0, 3)), OutputLock(tmp_path, Shard(2, 3)):
        pass


def test_lines_that_are_none_or_without_end_are_left_out(tmp_path: Path) -> None:
    good = b'{"event": "died", "series": "1.2"}'
    bad = [b"[" * 100_000, b'{"died": 1e999}', b'"died \\ud800"', b'"died' + b"x" * (3 << 20)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, *bad, good]))
    assert list(read_lines(tmp_path / "a.jsonl")) == [json.loads(good)] * 2
