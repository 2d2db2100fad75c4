"""Scoring while downloading: what is fetched, scored and removed, with a stand-in for IDC's client."""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pydicom
import pytest

from deepcac2.batch.run import Means, Progress, run_arriving
from deepcac2.cli.main import main
from deepcac2.cohort.arriving import Arriving
from deepcac2.cohort.download import Store
from deepcac2.cohort.idc import find_tables
from deepcac2.errors import InputError
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.results import ResultRow, read_parquet
from deepcac2.pipeline.run import Job, finished


class IDCClient:
    """As idc_index.IDCClient takes it; copies from a folder of series, some of them not whole.

    Attributes:
        asked: Series of each call.
        most: Most files that were in the target at once.
        cut: Series that come without their last image.
        gone_after: Calls after which the network is gone.
    """

    store = Path()
    asked: list[list[str]]
    most = 0
    cut: frozenset[str] = frozenset()
    gone_after = 1 << 30

    def download_from_selection(self, *, downloadDir: str, seriesInstanceUID: list[str], **rest: Any) -> None:
        if len(self.asked) >= type(self).gone_after:
            raise RuntimeError("no route to host")
        self.asked.append(list(seriesInstanceUID))
        for uid in seriesInstanceUID:
            (source,) = self.store.glob(f"*/*/{uid}")
            target = Path(downloadDir) / source.relative_to(self.store)
            files = sorted(source.iterdir())
            target.mkdir(parents=True, exist_ok=True)
            for file in files[:-1] if uid in self.cut else files:
                shutil.copy(file, target)
        type(self).most = max(self.most, len(list(Path(downloadDir).rglob("*.dcm"))))


@pytest.fixture
def remote(
    tmp_path: Path, series_of: Callable[..., list[pydicom.Dataset]], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Seven series of four images in IDC, and an index of them; their UIDs in the order of the index."""
    rows = []
    for number in range(7):
        sent = series_of(f"s{number}", 4, PatientID=f"P{number}")
        uid = str(sent[0].SeriesInstanceUID)
        folder = tmp_path / "remote" / f"P{number}" / str(sent[0].StudyInstanceUID) / uid
        folder.mkdir(parents=True)
        for i, ds in enumerate(sent):
            ds.save_as(folder / f"{i}.dcm", enforce_file_format=True)
        size = sum(f.stat().st_size for f in folder.iterdir())
        place = {"PatientID": f"P{number}", "StudyInstanceUID": folder.parent.name, "SeriesInstanceUID": uid}
        rows.append({**place, "instanceCount": 4, "series_size_MB": size / 1e6})
    (tmp_path / "index").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "index" / "idc_index.parquet")
    module = types.ModuleType("idc_index")
    module.IDCClient = IDCClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "idc_index", module)
    for name, value in (("store", tmp_path / "remote"), ("asked", []), ("most", 0)):
        monkeypatch.setattr(IDCClient, name, value, raising=False)
    return [str(row["SeriesInstanceUID"]) for row in rows]


def arriving(tmp_path: Path, uids: list[str], series: float = 6) -> Arriving:
    """With room for so many series."""
    store = Store(tmp_path / "ct", uids, tables=find_tables(tmp_path / "index"))
    return Arriving(store, room=series * max(one.size for one in store.known.values()))


def scored(tmp_path: Path, uids: list[str], **options: Any) -> tuple[Arriving, dict[str, str], int]:
    """Scores them; the source, the code of each row of the table, and series without a row."""
    source = arriving(tmp_path, uids)

    def watch(progress: Progress) -> None:
        if progress.row is not None and not progress.skipped:
            source.settled(progress.row.series_uid)

    summary = run_arriving(
        [source.named(uid) for uid in uids],
        source.series,
        Job(workflow=Workflow.load("default"), output=tmp_path / "results"),
        means=Means(),
        watch=watch,
        **options,
    )
    rows = {row.series_uid: row.code for row in read_parquet(tmp_path / "results" / "results.parquet")}
    return source, rows, summary.left


def test_everything_has_its_row_and_nothing_stays(tmp_path: Path, remote: list[str]) -> None:
    source, rows, left = scored(tmp_path, remote)
    assert rows == dict.fromkeys(remote, "too-few-slices")
    assert (left, source.broken) == (0, [])
    assert IDCClient.asked == [remote[0:2], remote[2:4], remote[4:6], remote[6:]]
    assert 8 <= IDCClient.most <= 6 * 4
    assert not [p for p in (tmp_path / "ct").rglob("*") if p.name != "downloaded.jsonl"]
    _, again, _ = scored(tmp_path, remote)
    assert again == rows
    assert len(IDCClient.asked) == 4


def test_what_does_not_come_whole_keeps_nobody_back(
    tmp_path: Path, remote: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IDCClient, "cut", frozenset({remote[3]}))
    source, rows, left = scored(tmp_path, remote)
    assert (source.broken, left) == ([remote[3]], 1)
    assert rows.keys() == set(remote) - {remote[3]}
    monkeypatch.setattr(IDCClient, "cut", frozenset())
    _, rows, left = scored(tmp_path, remote)
    assert IDCClient.asked[-1] == [remote[3]]
    assert (rows.keys(), left) == (set(remote), 0)


def test_of_what_is_finished_the_details_are_read_once_and_told_once(
    tmp_path: Path, remote: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(tmp_path, remote[:5])
    read, told = list[Path](), list[tuple[str, bool]]()

    def counting(folder: Path) -> ResultRow | None:
        row = finished(folder)
        read.extend([folder] if row is not None else [])
        return row

    def watch(progress: Progress) -> None:
        if progress.row is not None:
            told.append((progress.row.series_uid, progress.skipped))

    for room in ("run", "engine"):
        monkeypatch.setattr(f"deepcac2.batch.{room}.finished", counting)
    source = arriving(tmp_path, remote)
    job = Job(workflow=Workflow.load("default"), output=tmp_path / "results")
    known = [source.named(uid) for uid in remote]
    summary = run_arriving(known, source.series, job, means=Means(), watch=watch)
    assert sorted(read) == sorted(job.folder(one) for one in known[:5])
    assert told[:5] == [(uid, True) for uid in remote[:5]]
    assert sorted(told[5:]) == sorted((uid, False) for uid in remote[5:])
    assert (summary.left, summary.counts["rejected"]) == (0, 7)


def test_where_the_network_is_lost_the_same_goes_on(
    tmp_path: Path, remote: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IDCClient, "gone_after", 2)
    with pytest.raises(InputError, match="broke off"):
        scored(tmp_path, remote)
    monkeypatch.setattr(IDCClient, "gone_after", 1 << 30)
    _, rows, _ = scored(tmp_path, remote)
    assert rows.keys() == set(remote)
    asked = [uid for some in IDCClient.asked for uid in some]
    assert sorted(asked) == sorted(remote)  # nothing twice


def test_files_that_are_something_else(tmp_path: Path, remote: list[str]) -> None:
    """As many bytes as the index says, but no series: rejected with a reason, not left out."""
    (folder,) = (tmp_path / "remote").glob(f"*/*/{remote[0]}")
    for file in folder.iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    (folder,) = (tmp_path / "remote").glob(f"*/*/{remote[1]}")
    first = sorted(folder.iterdir())[0]
    first.write_bytes(first.read_bytes()[:400] + b"\xff" * (first.stat().st_size - 400))
    _, rows, left = scored(tmp_path, remote[:3])
    assert rows == {
        remote[0]: "transfer-incomplete",
        remote[1]: "transfer-incomplete",
        remote[2]: "too-few-slices",
    }
    assert left == 0


def test_on_the_command_line(tmp_path: Path, remote: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    table, results = tmp_path / "cohort.csv", tmp_path / "results"
    table.write_text("series_uid\n" + "\n".join(remote))
    command = ["cohort", "download", str(table), str(tmp_path / "ct"), "--idc", str(tmp_path / "index")]
    command += ["--score", str(results), "--devices", "cpu"]
    assert main([*command, "--room", "0"]) == 10
    assert main([*command, "--verify"]) == 10
    assert main([*command, "--score", str(tmp_path / "ct" / "in")]) in range(10, 30)
    index = pd.read_parquet(tmp_path / "index" / "idc_index.parquet")
    larger = index.assign(series_size_MB=1e12)
    (tmp_path / "larger").mkdir()
    larger.to_parquet(tmp_path / "larger" / "idc_index.parquet")
    assert main([*command, "--idc", str(tmp_path / "larger"), "--room", "1e9"]) == 21
    assert not IDCClient.asked
    assert main(command) == 0
    assert "0 scored, 7 rejected, 0 failed" in capsys.readouterr().out
    assert not list((tmp_path / "ct").rglob("*.dcm"))


def test_portions_keep_within_the_room(tmp_path: Path, remote: list[str]) -> None:
    source = arriving(tmp_path, remote, series=9)
    assert [len(p) for p in source._portions(remote)] == [3, 3, 1]
    assert [len(p) for p in arriving(tmp_path, remote, series=1)._portions(remote)] == [1] * 7
    with pytest.raises(InputError, match="above 0"):
        arriving(tmp_path, remote, series=0)
    assert source.named(remote[2]).patient_id == "P2"
