"""What is sent, and that a push goes on where it was stopped; against a real Orthanc."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import SegmentationStorage
from pynetdicom import AE, evt

from deepcac2.delivery.push import Problem, PushJournal, PushSummary
from deepcac2.delivery.push import push as push_results
from deepcac2.delivery.sending import Credentials, Destination, DicomWeb, Dimse, tls_context
from deepcac2.errors import DestinationUnreachable, InputError, NoDicomFound, OutputBusy

USER = {"DEEPCAC2_DICOMWEB_USER": "tester", "DEEPCAC2_DICOMWEB_PASSWORD": "c0rrect-horse"}


def destination(orthanc: Any, kind: str) -> Destination:
    if kind == "dimse":
        return Dimse(orthanc.address, calling="DEEPCAC2", timeout=10)
    return DicomWeb(orthanc.dicomweb, credentials=Credentials.of(USER), tls=tls_context(USER), timeout=10)


def push(results: Path, orthanc: Any, kind: str = "dicomweb", **options: Any) -> PushSummary:
    there = destination(orthanc, kind)
    try:
        return push_results(results, there, **options)
    finally:
        there.close()


def counts(summary: PushSummary) -> tuple[int, int, int]:
    return summary.sent, summary.present, summary.problems


def seg_of(results: Path) -> Path:
    return next(results.rglob("cac.seg.dcm"))


def files_of(*folders: Path) -> dict[str, Path]:
    paths = [p for f in folders for p in ([f] if f.is_file() else f.rglob("*.dcm"))]
    return {str(pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID): p for p in paths}


@pytest.fixture(scope="module")
def ct(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the CT that the results are of."""
    folder = tmp_path_factory.mktemp("ct")
    for path in sorted(next(simulated.rglob("ct")).iterdir())[:30]:
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("kind", ["dicomweb", "dimse"])
def test_seg_and_ct_arrive_once(quick_results: Path, ct: Path, orthanc: Any, kind: str) -> None:
    steps: list[tuple[int, int]] = []
    expected = files_of(seg_of(quick_results))
    assert counts(push(quick_results, orthanc, kind, watch=lambda *n: steps.append(n))) == (1, 0, 0)
    assert steps == [(0, 1), (1, 1)]
    assert orthanc.stored().keys() == expected.keys()
    slices = files_of(ct)
    assert counts(push(quick_results, orthanc, kind, ct=ct)) == (len(slices), 1, 0)
    stored = orthanc.stored()
    expected |= slices
    assert stored.keys() == expected.keys()
    for uid, path in expected.items():
        assert pydicom.dcmread(BytesIO(stored[uid])) == pydicom.dcmread(path)
    orthanc.clear()
    assert counts(push(quick_results, orthanc, kind, ct=ct)) == (0, len(expected), 0)
    assert not orthanc.stored()
    assert counts(push(quick_results, orthanc, kind, again=True)) == (1, 0, 0)
    assert orthanc.stored().keys() == files_of(seg_of(quick_results)).keys()


def test_the_ct_goes_before_what_refers_to_it(quick_results: Path, ct: Path, orthanc: Any) -> None:
    summary = push(quick_results, orthanc, ct=ct)
    order = [json.loads(line)["instance"] for line in summary.journal.read_text().splitlines()]
    assert order[-1] in files_of(seg_of(quick_results))
    assert set(order[:-1]) == files_of(ct).keys()


def test_every_dicom_file_of_a_scored_series_and_no_other(quick_results: Path, orthanc: Any) -> None:
    seg = seg_of(quick_results)
    for name in ("cac.sr.dcm", "screening.seg.dcm", ".1-a-half.dcm"):
        ds = pydicom.dcmread(seg)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        ds.save_as(seg.with_name(name))
    rejected = next(p.parent for p in quick_results.rglob("details.json") if p.parent != seg.parent)
    shutil.copy(seg, rejected / "cac.seg.dcm")
    assert counts(push(quick_results, orthanc)) == (3, 0, 0)
    sent = (seg, seg.with_name("cac.sr.dcm"), seg.with_name("screening.seg.dcm"))
    assert orthanc.stored().keys() == files_of(*sent).keys()


def test_what_has_changed_is_sent_and_what_was_only_touched_is_not(quick_results: Path, orthanc: Any) -> None:
    seg = seg_of(quick_results)
    push(quick_results, orthanc)
    os.utime(seg, ns=(1, 1))
    assert counts(push(quick_results, orthanc)) == (0, 1, 0)
    ds = pydicom.dcmread(seg)
    ds.SeriesDescription = "another"
    ds.save_as(seg)
    assert counts(push(quick_results, orthanc)) == (1, 0, 0)
    assert counts(push(quick_results, orthanc)) == (0, 1, 0)


def test_each_destination_has_its_own_journal(quick_results: Path, orthanc: Any) -> None:
    journals = {push(quick_results, orthanc, kind).journal.name for kind in ("dicomweb", "dimse")}
    assert len(journals) == 2
    for kind in ("dicomweb", "dimse"):
        assert counts(push(quick_results, orthanc, kind)) == (0, 1, 0)


def test_the_journal_holds_no_names_and_no_credentials(quick_results: Path, ct: Path, orthanc: Any) -> None:
    text = push(quick_results, orthanc, ct=ct).journal.read_text()
    for secret in ("SIM-0003", "c0rrect-horse", "dGVzdGVyO", str(ct)):
        assert secret not in text


class Keeper:
    """A storage SCP that keeps what it got first under a UID, and says of the next that it is a duplicate."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        entity = AE("KEEPER")
        entity.add_supported_context(SegmentationStorage)
        self._server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        self.address = f"KEEPER@127.0.0.1:{self._server.socket.getsockname()[1]}"

    def _store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in self.held:
            return 0x0111
        self.held[uid] = event.request.DataSet.getvalue()
        return 0

    def stop(self) -> None:
        self._server.shutdown()


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    server = Keeper()
    yield server
    server.stop()


def test_what_the_destination_had_already_is_there_and_not_refused_for_ever(
    quick_results: Path, keeper: Keeper
) -> None:
    assert counts(push(quick_results, keeper, "dimse")) == (1, 0, 0)
    shutil.rmtree(quick_results / "logs")  # another machine, or a journal that was lost
    assert counts(push(quick_results, keeper, "dimse")) == (0, 1, 0)
    assert counts(push(quick_results, keeper, "dimse")) == (0, 1, 0)
    assert counts(push(quick_results, keeper, "dimse", again=True)) == (0, 1, 0)
    assert keeper.held.keys() == files_of(seg_of(quick_results)).keys()


@pytest.mark.parametrize("again", [False, True])
def test_another_content_under_a_uid_that_is_there_is_a_problem(
    quick_results: Path, keeper: Keeper, again: bool
) -> None:
    push(quick_results, keeper, "dimse")
    before = dict(keeper.held)
    ds = pydicom.dcmread(seg_of(quick_results))
    ds.SeriesDescription = "another"
    ds.save_as(seg_of(quick_results))
    told: list[Problem] = []
    for _ in range(2):
        assert counts(push(quick_results, keeper, "dimse", again=again, tell=told.append)) == (0, 0, 1)
    assert "delete it there, then push again" in told[0].reason
    assert keeper.held == before


# --- choosing ---------------------------------------------------------------------------------------------


def test_only_some_series(quick_results: Path, orthanc: Any) -> None:
    uid = seg_of(quick_results).parent.name
    summary = push(quick_results, orthanc, only=[uid, "1.2.3"])
    assert (summary.series, summary.sent, summary.not_scored) == (1, 1, 1)
    with pytest.raises(InputError, match="none of the series of --only is scored"):
        push(quick_results, orthanc, only=["1.2.3"])


def test_a_ct_that_is_not_there_is_told(quick_results: Path, ct: Path, orthanc: Any, tmp_path: Path) -> None:
    other = pydicom.dcmread(next(ct.iterdir()))
    other.SeriesInstanceUID, other.SOPInstanceUID = "1.2.3", "1.2.3.4"
    (tmp_path / "ct").mkdir()
    with pytest.raises(NoDicomFound):
        push(quick_results, orthanc, ct=tmp_path / "ct")
    other.save_as(tmp_path / "ct" / "a.dcm")
    told: list[Problem] = []
    summary = push(quick_results, orthanc, ct=tmp_path / "ct", tell=told.append)
    assert counts(summary) == (1, 0, 1)
    uid = seg_of(quick_results).parent.name
    assert told == [Problem(series_uid=uid, reason="its CT is not in the folder of --ct")]
    assert orthanc.stored().keys() == files_of(seg_of(quick_results)).keys()


def test_results_that_are_not_whole_are_told(quick_results: Path, orthanc: Any) -> None:
    seg = seg_of(quick_results)
    content = seg.read_bytes()
    told: list[Problem] = []
    seg.unlink()
    assert counts(push(quick_results, orthanc, tell=told.append)) == (0, 0, 1)
    seg.write_bytes(b"no DICOM")
    assert counts(push(quick_results, orthanc, tell=told.append)) == (0, 0, 1)
    seg.write_bytes(content)
    assert counts(push(quick_results, orthanc, tell=told.append)) == (1, 0, 0)
    assert [t.reason.split(";")[0] for t in told] == [
        "files of its results are missing",
        "cac.seg.dcm cannot be read (it has no file meta information)",
    ]


def test_a_folder_that_is_no_run(tmp_path: Path, orthanc: Any) -> None:
    with pytest.raises(InputError, match="give the output folder"):
        push(tmp_path, orthanc)


def test_a_table_that_names_a_folder_outside(quick_results: Path, orthanc: Any) -> None:
    from dataclasses import replace

    from deepcac2.pipeline.results import read_parquet, write_parquet

    path = quick_results / "results.parquet"
    for folder in ("../elsewhere", "/etc"):
        write_parquet(path, [replace(r, folder=folder) for r in list(read_parquet(path))])
        with pytest.raises(InputError, match="outside"):
            push(quick_results, orthanc)


# --- going on ---------------------------------------------------------------------------------------------


def test_an_instance_that_is_refused_does_not_keep_the_others_back(
    quick_results: Path, ct: Path, orthanc: Any, tmp_path: Path
) -> None:
    shutil.copytree(ct, tmp_path / "ct")
    path = sorted((tmp_path / "ct").iterdir())[3]
    content = path.read_bytes()
    ds = pydicom.dcmread(path)
    uid, ds.StudyInstanceUID = str(ds.SOPInstanceUID), ""
    ds.save_as(path)
    total = len(files_of(ct)) + 1
    told: list[Problem] = []
    assert counts(push(quick_results, orthanc, ct=tmp_path / "ct", tell=told.append)) == (total - 1, 0, 1)
    assert [t.instance_uid for t in told] == [uid]
    assert "SIM-0003" not in told[0].reason
    path.write_bytes(content)
    assert counts(push(quick_results, orthanc, ct=tmp_path / "ct")) == (1, total - 1, 0)
    assert orthanc.stored().keys() == files_of(ct, seg_of(quick_results)).keys()


def lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def journal_of(results: Path, orthanc: Any, kind: str) -> Path:
    there = destination(orthanc, kind)
    journal = PushJournal(results, there.name)
    journal.close()
    there.close()
    return journal.path


@pytest.mark.parametrize("kind", ["dicomweb", "dimse"])
def test_killed_half_way_it_goes_on(quick_results: Path, ct: Path, orthanc: Any, kind: str) -> None:
    where = ["--dicomweb", orthanc.dicomweb] if kind == "dicomweb" else ["--dimse", orthanc.address]
    command = [sys.executable, "-m", "deepcac2", "push", str(quick_results), *where, "--ct", str(ct)]
    journal = journal_of(quick_results, orthanc, kind)
    process = subprocess.Popen(command, env={**os.environ, **USER}, stderr=subprocess.PIPE)
    while lines(journal) < 5:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    noted, total = lines(journal), len(files_of(ct)) + 1
    assert 5 <= noted < total
    held = len(orthanc.stored())
    assert noted <= held <= noted + 1
    with journal.open("ab") as file:  # a line cut by the kill
        file.write(b'{"time": 1, "event": "sent", "series": "1.2", "insta')
    assert counts(push(quick_results, orthanc, kind, ct=ct)) == (total - noted, noted, 0)
    assert orthanc.stored().keys() == files_of(ct, seg_of(quick_results)).keys()
    assert counts(push(quick_results, orthanc, kind, ct=ct)) == (0, total, 0)


@pytest.fixture
def brittle(start_orthanc: Any) -> Iterator[Any]:
    return start_orthanc()


def when(condition: Any, do: Any) -> threading.Thread:
    def watch() -> None:
        while not condition():
            time.sleep(0.005)
        do()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicomweb", "dimse"])
def test_a_server_that_comes_back_is_waited_for(
    quick_results: Path, ct: Path, brittle: Any, kind: str
) -> None:
    journal = journal_of(quick_results, brittle, kind)

    def restart() -> None:
        brittle.stop(kill=True)
        brittle.start()

    thread = when(lambda: lines(journal) >= 5, restart)
    assert counts(push(quick_results, brittle, kind, ct=ct)) == (len(files_of(ct)) + 1, 0, 0)
    thread.join()
    assert brittle.stored().keys() == files_of(ct, seg_of(quick_results)).keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dicomweb", "dimse"])
def test_a_server_that_is_gone_ends_it_and_the_next_call_goes_on(
    quick_results: Path, ct: Path, brittle: Any, kind: str
) -> None:
    journal = journal_of(quick_results, brittle, kind)
    thread = when(lambda: lines(journal) >= 5, lambda: brittle.stop(kill=True))
    with pytest.raises(DestinationUnreachable, match="the same command goes on") as caught:
        push(quick_results, brittle, kind, ct=ct, retries=1)
    assert "\n" not in str(caught.value)
    thread.join()
    noted = lines(journal)
    with pytest.raises(DestinationUnreachable):
        push(quick_results, brittle, kind, ct=ct)
    brittle.start()
    summary = push(quick_results, brittle, kind, ct=ct)
    assert summary.sent + summary.present == len(files_of(ct)) + 1
    assert summary.present == noted
    assert brittle.stored().keys() == files_of(ct, seg_of(quick_results)).keys()


def test_two_at_once_are_one_too_many(quick_results: Path, orthanc: Any) -> None:
    first = PushJournal(quick_results, destination(orthanc, "dicomweb").name)
    with pytest.raises(OutputBusy, match="another push"):
        push(quick_results, orthanc)
    assert counts(push(quick_results, orthanc, "dimse")) == (1, 0, 0)
    first.close()
    assert counts(push(quick_results, orthanc)) == (1, 0, 0)


def test_instances_with_one_uid_are_sent_once(
    quick_results: Path, ct: Path, orthanc: Any, tmp_path: Path
) -> None:
    shutil.copytree(ct, tmp_path / "ct")
    path = sorted((tmp_path / "ct").iterdir())[3]
    shutil.copy(path, path.with_name("copy.dcm"))
    total = len(files_of(ct)) + 1
    assert counts(push(quick_results, orthanc, ct=tmp_path / "ct")) == (total, 0, 0)
    assert counts(push(quick_results, orthanc, ct=tmp_path / "ct")) == (0, total, 0)


def test_memory_does_not_grow_with_what_is_sent(quick_results: Path, tmp_path: Path) -> None:
    """A long journal is read into a database, not into memory."""
    line = (
        '{"event": "sent", "series": "1.2", "instance": "1.2.%d", '
        '"sha256": "%064d", "size": 1, "changed": %d}\n'
    )
    journal = PushJournal(quick_results, "A@b:1")
    with journal.path.open("w") as file:
        file.writelines(line % (n, n, n) for n in range(100_000))
    journal.close()
    code = (
        "import resource, sys; from pathlib import Path; from deepcac2.delivery.push import PushJournal\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); journal = PushJournal(Path(sys.argv[1]), 'A@b:1')\n"
        "assert journal.known('1.2.99999') == ('%064d' % 99999, 1, 99999)\n"
        "assert journal.known('1.2') is None\n"
        "journal.close(); print(peak() - before)\n"
    )
    command = [sys.executable, "-c", code, str(quick_results)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert float(done.stdout) < 20
