"""What is received lies there whole or not at all, and what was told to a sender stays true."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.filewriter import dcmwrite
from pydicom.uid import generate_uid

from deepcac2.delivery.inbox import (
    CLOSED,
    CONFLICT,
    CUT,
    DUPLICATE,
    MISMATCH,
    NO_ROOM,
    NOT_UNDERSTOOD,
    OPEN,
    SUCCESS,
    Answer,
    Inbox,
    Limits,
)
from deepcac2.dicom import discover
from deepcac2.errors import InputError, OutputBusy

Series = Callable[..., list[pydicom.Dataset]]
FREE = Limits(free_gb=0.001)


@pytest.fixture
def inbox(tmp_path: Path) -> Iterator[Inbox]:
    made = Inbox(tmp_path / "inbox", FREE)
    yield made
    made.close()


def data_of(ds: pydicom.Dataset) -> bytes:
    """Its data set without preamble and file meta information, as C-STORE carries it."""
    buffer = pydicom.filebase.DicomBytesIO()
    dcmwrite(buffer, ds, enforce_file_format=True)
    whole = buffer.getvalue()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def offer(inbox: Inbox, ds: pydicom.Dataset, data: bytes | None = None, **said: str) -> Answer:
    names = {
        "sop_class": str(ds.SOPClassUID),
        "uid": str(ds.SOPInstanceUID),
        "syntax": str(ds.file_meta.TransferSyntaxUID),
    }
    data = data_of(ds) if data is None else data
    return inbox.receive([data[:1000], data[1000:]], **{**names, **said})


def files(inbox: Inbox) -> list[Path]:
    return sorted(p for p in inbox.root.rglob("*") if p.is_file() and p.suffix == ".dcm")


def test_what_was_sent_is_there_and_a_run_finds_it(inbox: Inbox, series_of: Series) -> None:
    sent = series_of("a")
    assert all(
        offer(inbox, ds) == Answer(status=SUCCESS, series_uid=ds.SeriesInstanceUID, new=True) for ds in sent
    )
    (found,) = discover(inbox.root).series
    assert found.series_uid == sent[0].SeriesInstanceUID
    for ref, ds in zip(sorted(found.slices, key=lambda r: r.instance_number or 0), sent, strict=True):
        assert pydicom.dcmread(ref.path) == ds
    (waiting,) = inbox.waiting()
    assert (waiting.uid, waiting.images, waiting.transfer) == (sent[0].SeriesInstanceUID, 4, OPEN)


def test_the_same_again_changes_nothing_and_another_content_is_refused(
    inbox: Inbox, series_of: Series
) -> None:
    (ds,) = series_of("a", 1)
    offer(inbox, ds)
    before = {p: p.read_bytes() for p in files(inbox)}
    (seen,) = inbox.waiting()
    assert offer(inbox, ds) == Answer(status=SUCCESS, series_uid=ds.SeriesInstanceUID)
    ds.PatientName = "Somebody^Else"
    assert offer(inbox, ds).status == DUPLICATE
    other = ds.SeriesInstanceUID
    ds.SeriesInstanceUID = generate_uid()  # the same instance in another series
    assert offer(inbox, ds).status == DUPLICATE
    assert {p: p.read_bytes() for p in files(inbox)} == before
    assert list(inbox.waiting()) == [seen]
    assert seen.uid == other


@pytest.mark.parametrize("uid", ["../../x", "1.2/3", "", "1" * 65, "1.2\x00", "a.b"])
def test_uids_that_are_none_never_become_paths(inbox: Inbox, series_of: Series, uid: str) -> None:
    (ds,) = series_of("a", 1)
    before = set(inbox.root.parent.rglob("*"))
    assert offer(inbox, ds, uid=uid).status == MISMATCH
    raw = data_of(ds)
    real = str(ds.SeriesInstanceUID).encode()
    hostile = (b"/../" + uid.encode() + b"/" * len(real))[: len(real)]
    assert offer(inbox, ds, raw.replace(real, hostile)).status == NOT_UNDERSTOOD
    assert set(inbox.root.parent.rglob("*")) == before


def test_what_cannot_be_read_is_not_taken(inbox: Inbox, series_of: Series) -> None:
    (ds,) = series_of("a", 1)
    raw = data_of(ds)
    assert offer(inbox, ds, b"").status in (MISMATCH, NOT_UNDERSTOOD)
    assert offer(inbox, ds, raw[:300]).status in (MISMATCH, NOT_UNDERSTOOD)
    assert offer(inbox, ds, bytes(5000)).status in (MISMATCH, NOT_UNDERSTOOD)
    assert offer(inbox, ds, raw, uid="1.2.3").status == MISMATCH
    assert offer(inbox, ds, raw, sop_class="1.2.840.10008.5.1.4.1.1.4").status == MISMATCH
    del ds.StudyInstanceUID
    assert offer(inbox, ds).status == NOT_UNDERSTOOD
    assert not files(inbox)
    assert not list(inbox.waiting())


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        (Limits(free_gb=1e9), 0),
        (Limits(free_gb=0.001, instance_mb=0.004), 0),
        (Limits(free_gb=0.001, images=3), 3),
    ],
)
def test_beyond_a_limit_is_refused_as_out_of_resources(
    tmp_path: Path, series_of: Series, limits: Limits, taken: int
) -> None:
    inbox = Inbox(tmp_path / "inbox", limits)
    statuses = [offer(inbox, ds).status for ds in series_of("a")]
    assert statuses == [SUCCESS] * taken + [NO_ROOM] * (4 - taken)
    assert len(files(inbox)) == taken
    inbox.close()


def test_where_too_many_wait_none_is_begun_and_those_begun_go_on(tmp_path: Path, series_of: Series) -> None:
    inbox = Inbox(tmp_path / "inbox", Limits(free_gb=0.001, waiting=1))
    first, second = series_of("a", 2), series_of("b", 1)
    assert offer(inbox, first[0]).status == SUCCESS
    assert offer(inbox, second[0]).status == NO_ROOM
    assert offer(inbox, first[1]).status == SUCCESS
    inbox.close()


def settle(inbox: Inbox, uid: str, version: int, *destinations: str, status: str = "scored") -> None:
    inbox.settle(uid, version, {"status": status, "series_uid": uid}, destinations, "P/1")


def test_how_transfers_end(inbox: Inbox, series_of: Series) -> None:
    ds, late = series_of("a", 2)
    uid = str(ds.SeriesInstanceUID)

    def state() -> tuple[str, bool]:
        (transfer,) = inbox._ask("SELECT transfer FROM series")[0]
        return transfer, bool(list(inbox.waiting()))

    offer(inbox, ds)
    inbox.ended({uid: CUT})
    assert state() == (CUT, True)
    settle(inbox, uid, next(inbox.waiting()).version)
    assert state() == (CUT, False)
    inbox.ended({uid: CLOSED})  # sent again, all of it was there
    assert state() == (CLOSED, True)
    settle(inbox, uid, next(inbox.waiting()).version)
    inbox.ended({uid: CLOSED})
    assert state() == (CLOSED, False)
    inbox.ended({uid: CONFLICT})
    assert state() == (CONFLICT, True)
    version = next(inbox.waiting()).version
    offer(inbox, late)  # while it is being scored
    settle(inbox, uid, version)
    assert state() == (OPEN, True)
    settle(inbox, uid, next(inbox.waiting()).version)  # it was silent for so long
    inbox.ended({uid: CLOSED})
    assert state() == (CLOSED, False)
    inbox._write("UPDATE series SET transfer = ?", (OPEN,))
    inbox.ended({uid: CUT})
    assert state() == (CUT, True)


def test_a_kill_cuts_what_was_under_way_and_loses_nothing(tmp_path: Path, series_of: Series) -> None:
    first, second = series_of("a", 2)
    inbox = Inbox(tmp_path / "inbox", FREE)
    offer(inbox, first)
    half = inbox.root / "coming" / "x.dcm"
    half.write_bytes(b"half")
    stray = inbox.folder(str(first.SeriesInstanceUID)) / "stray.dcm"  # stored, and then the power failed
    stray.write_bytes(data_of(second))
    inbox._db.close()
    inbox._lock.close()
    inbox = Inbox(tmp_path / "inbox", FREE)
    (waiting,) = inbox.waiting()
    assert (waiting.transfer, waiting.images) == (CUT, 1)
    assert not half.exists()
    assert inbox.tidy(waiting.uid) == 0
    assert not stray.exists()
    assert offer(inbox, first) == Answer(status=SUCCESS, series_uid=waiting.uid)
    inbox.close()


def test_deliveries(inbox: Inbox, series_of: Series) -> None:
    (ds,) = series_of("a", 1)
    uid = str(ds.SeriesInstanceUID)
    offer(inbox, ds)
    settle(inbox, uid, 0, "X", "Y")
    (delivery,) = inbox.to_deliver("X")
    inbox.delivered("X", delivery)
    assert not inbox.to_deliver("X")
    (other,) = inbox.to_deliver("Y")
    inbox.not_delivered("Y", other, "refused", 100)
    assert not inbox.to_deliver("Y")
    assert inbox.counts()["undelivered"] == inbox.counts()["delivery_problems"] == 1
    settle(inbox, uid, 1, "X")
    inbox.delivered("X", delivery)  # of the version before
    assert [d.version for d in inbox.to_deliver("X")] == [1]
    settle(inbox, uid, 2, status="rejected")
    assert inbox.counts()["undelivered"] == 0


def test_images_that_are_old_go_when_all_is_done(inbox: Inbox, series_of: Series) -> None:
    sent = series_of("a", 2)
    uid = str(sent[0].SeriesInstanceUID)
    for ds in sent:
        offer(inbox, ds)
    inbox.ended({uid: CLOSED})
    assert inbox.remove_old(0) == 0
    (waiting,) = inbox.waiting()
    settle(inbox, uid, waiting.version, "X")
    assert inbox.remove_old(0) == 0
    inbox.delivered("X", inbox.to_deliver("X")[0])
    assert inbox.remove_old(1) == 0
    time.sleep(0.01)
    assert inbox.remove_old(0) == 1
    assert not files(inbox)
    assert offer(inbox, sent[0]) == Answer(status=SUCCESS, series_uid=uid)  # known, and nothing to do
    assert not files(inbox)
    assert not list(inbox.waiting())
    (late,) = series_of("a", 3)[2:]
    assert offer(inbox, late).new
    assert inbox.tidy(uid) == 2
    assert [w.images for w in inbox.waiting()] == [1]
    assert offer(inbox, sent[0]).new  # the whole series is sent again
    assert inbox.tidy(uid) == 1


def test_what_is_forgotten_can_be_sent_with_another_content(inbox: Inbox, series_of: Series) -> None:
    (ds,) = series_of("a", 1)
    uid = str(ds.SeriesInstanceUID)
    offer(inbox, ds)
    settle(inbox, uid, 0)
    assert inbox.forget(uid)
    assert not inbox.forget("1.2.3")
    assert not files(inbox)
    assert not list(inbox.waiting())
    ds.PatientID = "another"
    assert offer(inbox, ds).new
    assert [w.images for w in inbox.waiting()] == [1]


def test_the_number_that_a_series_says_it_has(inbox: Inbox, series_of: Series) -> None:
    for name, said, expected in (("a", 4, 4), ("b", 10**9, FREE.images), ("c", -1, 0)):
        (ds,) = series_of(name, 1, NumberOfSeriesRelatedInstances=said)
        offer(inbox, ds)
        found = {w.uid: w.expected for w in inbox.waiting()}
        assert found[str(ds.SeriesInstanceUID)] == expected


def test_one_node_and_one_folder_of_results(inbox: Inbox, tmp_path: Path) -> None:
    with pytest.raises(OutputBusy):
        Inbox(inbox.root)
    inbox.belongs_to(tmp_path / "results")
    inbox.belongs_to(tmp_path / "results")
    with pytest.raises(InputError, match="inbox of other results"):
        inbox.belongs_to(tmp_path / "others")


def test_rows_come_in_order_and_whole(inbox: Inbox, series_of: Series) -> None:
    rows: dict[str, Any] = {}
    for name in "abc":
        (ds,) = series_of(name, 1)
        offer(inbox, ds)
        uid = str(ds.SeriesInstanceUID)
        rows[uid] = {"status": "failed", "series_uid": uid, "text": "ä\x00\n"}
        inbox.settle(uid, 0, rows[uid], (), "")
    assert list(inbox.rows()) == [rows[uid] for uid in sorted(rows)]
    assert inbox.row("1.2.3") is None
