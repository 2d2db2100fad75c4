"""Storage commitment: what is said to be safe is on the disk; asked by pynetdicom and by Orthanc."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from deepcac2.batch.run import Means
from deepcac2.delivery.commitment import Committer, asked
from deepcac2.delivery.inbox import CLOSED, Inbox, Limits
from deepcac2.delivery.listening import Listen, Listener, Peer
from deepcac2.delivery.node import Node, NodeConfig
from deepcac2.errors import InputError
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.run import Job

Series = Callable[..., list[pydicom.Dataset]]
SERVICE, INSTANCE = StorageCommitmentPushModel, StorageCommitmentPushModelInstance


class Modality:
    """Sends, asks, and listens for reports; ``told``: event type, safe and failed UIDs of each."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str, set[str], dict[str, int]]] = []
        self.status = 0x0000
        entity = AE("CT1")
        entity.add_supported_context(SERVICE, scu_role=True, scp_role=True)
        self._server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self._tell)]
        )
        self.port = self._server.server_address[1]

    def _tell(self, event: Any) -> tuple[int, None]:
        ds = event.event_information
        safe = {str(i.ReferencedSOPInstanceUID) for i in ds.get("ReferencedSOPSequence", ())}
        failed = {
            str(i.ReferencedSOPInstanceUID): int(i.FailureReason) for i in ds.get("FailedSOPSequence", ())
        }
        self.told.append((int(event.request.EventTypeID), str(ds.TransactionUID), safe, failed))
        return self.status, None

    def close(self) -> None:
        self._server.shutdown()

    def ask(self, port: int, images: list[tuple[str, str]], *, action: int = 1, title: str = "CT1") -> int:
        """The status of a request."""
        ds = pydicom.Dataset()
        ds.TransactionUID = generate_uid()
        ds.ReferencedSOPSequence = []
        for sop_class, uid in images:
            item = pydicom.Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
            ds.ReferencedSOPSequence.append(item)
        with self._call(port, title) as association:
            status, _ = association.send_n_action(ds, action, SERVICE, INSTANCE)
        return int(status.get("Status", -1))

    def send(self, port: int, images: list[pydicom.Dataset]) -> None:
        with self._call(port) as association:
            for ds in images:
                assert association.send_c_store(ds).Status == 0

    @contextmanager
    def _call(self, port: int, title: str = "CT1") -> Iterator[Any]:
        opened: list[Any] = []
        entity = AE(title)
        entity.add_requested_context(CTImageStorage)
        entity.add_requested_context(SERVICE)
        keep = [(evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc.dul.socket.socket))]
        association = entity.associate("127.0.0.1", port, ae_title="DEEPCAC2", evt_handlers=keep)
        assert association.is_established
        yield association
        association.release()
        opened[0].close()


@pytest.fixture
def modality() -> Iterator[Modality]:
    made = Modality()
    yield made
    made.close()


class Here:
    """An inbox that listens, and tells when it is told to."""

    def __init__(self, folder: Path, *peers: Peer) -> None:
        self.inbox = Inbox(folder, Limits(free_gb=0.001))
        self.listener = Listener(Listen(port=0, peers=peers, commitment=True), self.inbox)
        self.port = self.listener.port
        self.committer = Committer(
            self.inbox, "DEEPCAC2", tls=None, stopping=lambda: False, wait=lambda seconds: None
        )

    def close(self) -> None:
        self.listener.stop()
        self.inbox.close()


@pytest.fixture
def here(tmp_path: Path, modality: Modality) -> Iterator[Here]:
    made = Here(tmp_path / "inbox", Peer(aet="CT1", address="127.0.0.1", port=modality.port))
    yield made
    made.close()


def named(images: list[pydicom.Dataset]) -> list[tuple[str, str]]:
    return [(str(ds.SOPClassUID), str(ds.SOPInstanceUID)) for ds in images]


def test_only_what_is_on_the_disk_is_safe(here: Here, modality: Modality, series_of: Series) -> None:
    images = series_of("one", 6)
    sent, lost, spoilt, never = images[:2], images[2], images[3], images[4:]
    modality.send(here.port, images[:4])
    assert modality.ask(here.port, named(images[:4])) == 0
    assert here.committer.tell_some()
    kind, _, safe, failed = modality.told[0]
    assert (kind, safe, failed) == (1, {uid for _, uid in named(images[:4])}, {})

    path = here.inbox.stored(str(lost.SOPInstanceUID))
    assert path is not None
    path[0].unlink()
    path = here.inbox.stored(str(spoilt.SOPInstanceUID))
    assert path is not None
    content = bytearray(path[0].read_bytes())
    content[-10] ^= 1
    path[0].write_bytes(content)
    other = (pydicom.uid.MRImageStorage, str(sent[1].SOPInstanceUID))
    request = [*named([sent[0], lost, spoilt, *never]), other]
    assert modality.ask(here.port, request) == 0
    assert here.committer.tell_some()
    kind, _, safe, failed = modality.told[1]
    assert (kind, safe) == (2, {str(sent[0].SOPInstanceUID)})
    assert failed == {
        str(lost.SOPInstanceUID): 0x0112,
        str(spoilt.SOPInstanceUID): 0x0110,
        str(sent[1].SOPInstanceUID): 0x0119,
        **{uid: 0x0112 for _, uid in named(never)},
    }
    assert not here.committer.tell_some()


def test_a_report_outlives_a_kill_and_is_told_until_it_is_taken(
    tmp_path: Path, modality: Modality, series_of: Series
) -> None:
    images = series_of("one", 2)
    peer = Peer(aet="CT1", address="127.0.0.1", port=modality.port)
    with ExitStack() as stack:
        first = Here(tmp_path / "inbox", peer)
        stack.callback(first.close)
        modality.send(first.port, images)
        assert modality.ask(first.port, named(images)) == 0
    with ExitStack() as stack:
        second = Here(tmp_path / "inbox", peer)
        stack.callback(second.close)
        modality.status = 0x0110
        assert second.committer.tell_some()
        modality.status = 0x0000
        (waiting,) = second.inbox._ask("SELECT tries FROM commitments")
        assert waiting == (1,)
        second.inbox._write("UPDATE commitments SET next = 0")
        assert second.committer.tell_some()
        assert [told[0] for told in modality.told] == [1, 1]
        assert modality.told[0][1] == modality.told[1][1]
        assert second.inbox._ask("SELECT * FROM commitments") == []
        assert second.inbox.counts()["commitments"] == 0
        assert modality.ask(second.port, named(images)) == 0
        (due,) = second.inbox.commitments_due()
        for _ in range(3):
            second.inbox.commitment_not_told(due, 0)
        assert second.inbox.counts()["commitment_problems"] == 1
        assert second.inbox.give_up_commitments(60) == []
        assert second.inbox.give_up_commitments(0) == [due.transaction]
        assert second.inbox.counts()["commitments"] == 0


def test_requests_that_are_refused(here: Here, modality: Modality, series_of: Series) -> None:
    images = named(series_of("one", 1))
    assert modality.ask(here.port, images, action=2) == 0x0123
    assert modality.ask(here.port, []) == 0x0115
    assert here.inbox._ask("SELECT COUNT(*) FROM commitments") == [(0,)]
    assert modality.ask(here.port, images) == 0


def test_who_has_no_port_is_promised_nothing(tmp_path: Path, modality: Modality, series_of: Series) -> None:
    peers = (Peer(aet="CT1", address="127.0.0.1"), Peer(aet="OTHER", address="127.0.0.1", port=104))
    with ExitStack() as stack:
        node = Here(tmp_path / "inbox", *peers)
        stack.callback(node.close)
        assert modality.ask(node.port, named(series_of("one", 1))) == 0x0124


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"QZ" * 5000, b"\x08\0\x95\x11\x04\0\0\x001.2\0", b"\xfe\xff\0\xe0\0\0\0\0" * 9000],
)
def test_a_request_that_is_none(data: bytes) -> None:
    assert asked(1, INSTANCE, data) == 0x0115
    assert asked(1, INSTANCE, data + b"\0" * (9 << 20)) == 0x0213
    assert asked(1, "1.2.3", data) == 0x0112


def test_configurations_that_would_lose_images() -> None:
    peers = (Peer(aet="CT1", address="127.0.0.1", port=104),)
    with pytest.raises(InputError, match="keep_days"):
        NodeConfig(listen=Listen(peers=peers, commitment=True), keep_days=7)
    with pytest.raises(InputError, match="port"):
        Listen(commitment=True, peers=(Peer(aet="CT1", address="127.0.0.1"),))


def test_a_node_tells(tmp_path: Path, modality: Modality, series_of: Series) -> None:
    peer = Peer(aet="CT1", address="127.0.0.1", port=modality.port)
    told = threading.Event()
    node = Node(
        Job(workflow=Workflow.load("default"), output=tmp_path / "results"),
        tmp_path / "inbox",
        NodeConfig(
            listen=Listen(port=0, peers=(peer,), commitment=True), limits=Limits(free_gb=0.001), http="",
            quiet=600, patience=600,
        ),
        means=Means(),
        environment={},
        ready=lambda text: told.set(),
    )  # fmt: skip
    thread = threading.Thread(target=node.run)
    thread.start()
    try:
        assert told.wait(60)
        images = series_of("one", 2)
        modality.send(node.listener.port, images)
        assert modality.ask(node.listener.port, named(images)) == 0
        until = time.monotonic() + 60
        while not modality.told and time.monotonic() < until:
            time.sleep(0.05)
        assert modality.told[0][2] == {uid for _, uid in named(images)}
    finally:
        node.stop()
        thread.join(120)


def test_orthanc_is_told(tmp_path: Path, orthanc: Any, series_of: Series) -> None:
    """Orthanc sends two of three images, and asks about all."""
    images = series_of("one", 3)

    def ask(path: str, content: Any, method: str = "POST") -> Any:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request = urllib.request.Request(orthanc.http + path, data=data, method=method)
        request.add_header("Authorization", "Basic dGVzdGVyOmMwcnJlY3QtaG9yc2U=")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    with ExitStack() as stack:
        node = Here(tmp_path / "inbox", Peer(aet="ORTHANC", address="127.0.0.1", port=orthanc.dicom_port))
        stack.callback(node.close)
        where = {"AET": "DEEPCAC2", "Host": "127.0.0.1", "Port": node.port, "AllowStorageCommitment": True}
        ask("/modalities/node", where, "PUT")
        stack.callback(ask, "/modalities/node", None, "DELETE")
        ids = []
        for ds in images:
            ds.save_as(tmp_path / "x.dcm")
            ids.append(ask("/instances", (tmp_path / "x.dcm").read_bytes())["ID"])
        ask("/modalities/node/store", ids[:2])
        asked_for = ask("/modalities/node/storage-commitment", {"Resources": ids})
        until = time.monotonic() + 30
        while time.monotonic() < until:
            node.committer.tell_some()
            told = orthanc.get(f"/storage-commitment/{asked_for['ID']}")
            if told["Status"] != "Pending":
                break
            time.sleep(0.05)
        assert told["Status"] == "Failure"
        assert {i["SOPInstanceUID"] for i in told["Success"]} == {str(d.SOPInstanceUID) for d in images[:2]}
        assert [i["SOPInstanceUID"] for i in told["Failures"]] == [str(images[2].SOPInstanceUID)]
        node.listener.sweep()
        (waiting,) = node.inbox.waiting()
        assert (waiting.transfer, waiting.images) == (CLOSED, 2)
