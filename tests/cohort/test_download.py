"""Downloads and queries, with stand-ins that have the packages' interfaces; the services were never asked."""

from __future__ import annotations

import inspect
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from deepcac2.cli.main import main
from deepcac2.cohort.download import JOURNAL, download, query
from deepcac2.cohort.idc import find_tables
from deepcac2.dicom import discover
from deepcac2.errors import DiskFull, InputError


class IDCClient:
    """As idc_index.IDCClient (0.13) takes it; copies what is missing from a folder, as s5cmd's sync does.

    Attributes:
        fails_after: Files after which the network is gone; None: never.
        asked: Series of each call.
    """

    store = Path()
    fails_after: int | None = None
    asked: ClassVar[list[list[str]]] = []

    def download_from_selection(
        self,
        downloadDir: str,
        dry_run: bool = False,
        seriesInstanceUID: list[str] | None = None,
        quiet: bool = True,
        show_progress_bar: bool = True,
        use_s5cmd_sync: bool = False,
        dirTemplate: str = "%collection_id/%PatientID/%StudyInstanceUID/%Modality_%SeriesInstanceUID",
    ) -> None:
        assert dirTemplate == "%PatientID/%StudyInstanceUID/%SeriesInstanceUID"
        assert use_s5cmd_sync
        self.asked.append(list(seriesInstanceUID or []))
        copied = 0
        for series in discover(self.store).series:
            if series.series_uid in (seriesInstanceUID or []):
                place = Path(downloadDir) / series.patient_id / series.study_uid / series.series_uid
                place.mkdir(parents=True, exist_ok=True)
                for s in series.slices:
                    to = place / s.path.name
                    if to.exists() and to.stat().st_size == s.path.stat().st_size:
                        continue
                    if copied == self.fails_after:
                        raise RuntimeError("no route to host")
                    shutil.copy(s.path, to)
                    copied += 1


@pytest.fixture
def idc(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in's one series with slices."""
    module = types.ModuleType("idc_index")
    module.IDCClient = IDCClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "idc_index", module)
    monkeypatch.setattr(IDCClient, "store", simulated)
    monkeypatch.setattr(IDCClient, "asked", [])
    return next(s.series_uid for s in discover(simulated).series if s.modality == "CT")


@pytest.fixture
def tables(idc: str, simulated: Path, tmp_path: Path) -> Path:
    """A folder with IDC's index of that series, and of one that cannot be had."""
    series = next(s for s in discover(simulated).series if s.series_uid == idc)
    size = sum(s.path.stat().st_size for s in series.slices)
    row = {
        "PatientID": series.patient_id, "StudyInstanceUID": series.study_uid, "SeriesInstanceUID": idc,
        "instanceCount": len(series.slices), "series_size_MB": size / 1e6,
    }  # fmt: skip
    other = {**row, "SeriesInstanceUID": "1.2.3", "PatientID": "gone"}
    (tmp_path / "index").mkdir()
    pd.DataFrame([row, other]).to_parquet(tmp_path / "index" / "idc_index.parquet")
    return tmp_path / "index"


def selected(tmp_path: Path, *uids: str) -> str:
    table = tmp_path / "cohort.csv"
    table.write_text("selected,series_uid\n" + "".join(f"true,{uid}\n" for uid in uids) + "false,1.2\n")
    return str(table)


def test_download_fetches_what_a_table_selects(
    idc: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cohort", "download", selected(tmp_path, idc), str(tmp_path / "ct"), "--idc", str(tables)]
    assert main(command) == 0
    (series,) = discover(tmp_path / "ct").series
    assert series.series_uid == idc
    assert main(command) == 0
    assert IDCClient.asked == [[idc]]
    assert "1 series, 0 of them fetched now" in capsys.readouterr().out


def test_a_download_that_broke_off_goes_on(
    idc: str, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ct"
    monkeypatch.setattr(IDCClient, "fails_after", 7)
    with pytest.raises(InputError, match=r"broke off .no route to host.; the same command goes on"):
        download([idc], folder, tables=find_tables(tables))
    assert len(list(folder.rglob("*.dcm"))) == 7
    assert not (folder / JOURNAL).exists()
    monkeypatch.setattr(IDCClient, "fails_after", None)
    next(folder.rglob("*.dcm")).write_bytes(b"cut short")
    (folder / JOURNAL).write_text('{"series_uid": "1.2')  # as a kill leaves it
    assert download([idc], folder, tables=find_tables(tables)) == 1
    assert download([idc], folder, tables=find_tables(tables)) == 0
    (series,) = discover(folder).series
    assert len(series.slices) == len(list(folder.rglob("*.dcm")))


def test_what_was_lost_or_changed_comes_again(idc: str, tables: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    download([idc], folder, tables=find_tables(tables))
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*.dcm"))}
    lost, changed = list(before)[:2]
    lost.unlink()
    assert download([idc], folder, tables=find_tables(tables)) == 1
    data = bytearray(before[changed])
    data[-1] ^= 1
    changed.write_bytes(data)  # the same size: only its sum tells
    assert download([idc], folder, tables=find_tables(tables)) == 0
    assert download([idc], folder, tables=find_tables(tables), verify=True) == 1
    assert {path: path.read_bytes() for path in sorted(folder.rglob("*.dcm"))} == before


def test_what_did_not_arrive_is_an_error(idc: str, tables: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"1 of 2 series are not whole in .* has 0 files of 0 bytes, not 90 of"
    ):
        download([idc, "1.2.3"], tmp_path / "ct", tables=find_tables(tables))
    with pytest.raises(InputError, match=r"1 of 2 series are not in IDC's index .9.9"):
        download([idc, "9.9"], tmp_path / "ct", tables=find_tables(tables))


def test_no_room_is_said_before_anything_is_asked_for(idc: str, tables: Path, tmp_path: Path) -> None:
    index = pd.read_parquet(tables / "idc_index.parquet")
    index["series_size_MB"] = 1e12
    index.to_parquet(tables / "idc_index.parquet")
    with pytest.raises(DiskFull, match=r"are missing and .* has room for"):
        download([idc], tmp_path / "ct", tables=find_tables(tables))
    assert IDCClient.asked == []


def test_no_name_of_the_index_leaves_the_folder(idc: str, tables: Path, tmp_path: Path) -> None:
    index = pd.read_parquet(tables / "idc_index.parquet")
    index["PatientID"] = "../up"
    index.to_parquet(tables / "idc_index.parquet")
    with pytest.raises(InputError, match="is no name for a folder"):
        download([idc], tmp_path / "ct", tables=find_tables(tables))


def test_without_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "idc_index", None)
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(InputError, match=r".venv/bin/pip install -e '.\[download\]'"):
        download(["1.2.3"], tmp_path / "ct")
    assert main(["cohort", "query", "-o", str(tmp_path / "c.csv")]) == 10
    assert ".[bigquery]" in capsys.readouterr().err


@dataclass
class Rows:
    """As google.cloud.bigquery's RowIterator is used."""

    rows: list[dict[str, Any]]

    @property
    def schema(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(name=name) for name in self.rows[0]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


class Client:
    """As google.cloud.bigquery.Client is used."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.asked = rows, ""

    def query(self, text: str) -> Client:
        self.asked = text
        return self

    def result(self) -> Rows:
        if not self.rows:
            raise RuntimeError("403 billing")
        return Rows(self.rows)


def test_the_query_becomes_a_table_that_run_and_download_take(tmp_path: Path) -> None:
    from deepcac2.stats.tables import selected_series

    rows = [
        {"selected": True, "reason": "", "series_uid": "1.2"},
        {"selected": False, "reason": "few-slices", "series_uid": "1.3"},
    ]
    client = Client(rows)
    assert query(tmp_path / "c.csv", client=client) == 2
    assert "bigquery-public-data" in client.asked
    assert selected_series(tmp_path / "c.csv") == {"1.2"}
    with pytest.raises(InputError, match="403 billing"):
        query(tmp_path / "d.csv", client=Client([]))
    assert not (tmp_path / "d.csv").exists()


def test_the_stand_in_takes_what_the_package_takes() -> None:
    idc_index = pytest.importorskip("idc_index", reason="idc-index is not installed")
    real = inspect.signature(idc_index.IDCClient.download_from_selection).parameters
    assert set(inspect.signature(IDCClient.download_from_selection).parameters) <= set(real)
