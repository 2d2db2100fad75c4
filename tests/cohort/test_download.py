"""Downloads and queries, with stand-ins that have the packages' interfaces; the services were never asked."""

from __future__ import annotations

import inspect
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepcac2.cli.main import main
from deepcac2.cohort.download import download, query
from deepcac2.dicom import discover
from deepcac2.errors import InputError


class IDCClient:
    """As idc_index.IDCClient (0.13) takes it; copies from a local folder."""

    store = Path()

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
        for series in discover(self.store).series:
            if series.series_uid in (seriesInstanceUID or []):
                place = Path(downloadDir) / series.patient_id / series.study_uid / series.series_uid
                place.mkdir(parents=True)
                for s in series.slices:
                    shutil.copy(s.path, place)


@pytest.fixture
def idc(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stand-in's one series with slices."""
    module = types.ModuleType("idc_index")
    module.IDCClient = IDCClient  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "idc_index", module)
    monkeypatch.setattr(IDCClient, "store", simulated)
    return next(s.series_uid for s in discover(simulated).series if s.modality == "CT")


def test_download_fetches_what_a_table_selects(idc: str, tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text(f"selected,series_uid\ntrue,{idc}\nfalse,1.2.3\n")
    assert main(["cohort", "download", str(table), str(tmp_path / "ct")]) == 0
    (series,) = discover(tmp_path / "ct").series
    assert series.series_uid == idc


def test_what_did_not_arrive_is_an_error(idc: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 2 series are not in"):
        download([idc, "1.2.3"], tmp_path / "ct")


def test_without_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "idc_index", None)
    monkeypatch.setitem(sys.modules, "google.cloud", None)
    with pytest.raises(InputError, match=r".venv/bin/pip install -e '.\[download\]'"):
        download(["1.2.3"], tmp_path / "ct")
    assert main(["cohort", "query", "-o", str(tmp_path / "c.csv")]) == 10
    assert "deepcac2[bigquery]" in capsys.readouterr().err


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
