"""Who may send, and what a caller can do to the node: real associations over real sockets."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification

from deepcac2.delivery.inbox import CLOSED, CONFLICT, CUT, DUPLICATE, NO_ROOM, OPEN, REFUSED, Inbox, Limits
from deepcac2.delivery.listening import Listen, Listener, Peer
from deepcac2.errors import InputError

Series = Callable[..., list[pydicom.Dataset]]
Start = Callable[..., Listener]


OPENED: list[socket.socket] = []
"""Of callers: the library leaves one open where the other side has closed it."""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a listener with some options; `limits` are the inbox's."""
    with ExitStack() as stack:

        def begin(limits: Limits | None = None, **options: Any) -> Listener:
            inbox = Inbox(tmp_path / "inbox", limits or Limits(free_gb=0.001))
            stack.callback(inbox.close)
            listener = Listener(Listen(port=0, **options), inbox)
            stack.callback(listener.stop)
            return listener

        yield begin
    while OPENED:
        OPENED.pop().close()


def call(
    listener: Listener, *, title: str = "TESTER", called: str = "DEEPCAC2", tls: ssl.SSLContext | None = None
) -> Any:
    entity = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 30
    entity.add_requested_context(Verification)
    entity.add_requested_context(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    entity.add_requested_context(SegmentationStorage)
    arguments = None if tls is None else (tls, "localhost")
    return entity.associate(
        "127.0.0.1",
        listener.port,
        ae_title=called,
        tls_args=arguments,
        evt_handlers=[(evt.EVT_CONN_OPEN, lambda event: OPENED.append(event.assoc.dul.socket.socket))],
    )


def send(
    listener: Listener, sent: Sequence[pydicom.Dataset], *, abort: bool = False, **options: Any
) -> list[int]:
    """Statuses of the instances; the association has ended, and that is noted."""
    association = call(listener, **options)
    assert association.is_established
    statuses = [int(association.send_c_store(ds).get("Status", -1)) for ds in sent]
    association.abort() if abort else association.release()
    until(lambda: not listener.open_associations)
    listener.sweep()
    return statuses


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def transfers(listener: Listener) -> dict[str, tuple[str, int]]:
    """How the transfer of each series ended, and how many images it has."""
    return {w.uid: (w.transfer, w.images) for w in listener._inbox.waiting()}


def test_echo_and_a_series(start: Start, series_of: Series) -> None:
    listener, sent = start(), series_of("a")
    association = call(listener)
    assert association.send_c_echo().Status == 0
    assert [c.abstract_syntax for c in association.rejected_contexts] == [SegmentationStorage]
    assert association.send_c_store(sent[0]).Status == 0
    uid = str(sent[0].SeriesInstanceUID)
    assert listener.at_work() == {uid}
    assert transfers(listener) == {uid: (OPEN, 1)}
    association.release()
    until(lambda: not listener.open_associations)
    listener.sweep()
    assert not listener.at_work()
    assert transfers(listener) == {uid: (CLOSED, 1)}


def test_a_cut_transfer_and_one_that_makes_up_for_it(start: Start, series_of: Series) -> None:
    listener, sent = start(), series_of("a")
    uid = str(sent[0].SeriesInstanceUID)
    assert send(listener, sent[:2], abort=True) == [0, 0]
    assert transfers(listener) == {uid: (CUT, 2)}
    assert send(listener, sent) == [0] * 4
    assert transfers(listener) == {uid: (CLOSED, 4)}
    assert send(listener, sent, abort=True) == [0] * 4  # nothing new in it
    assert transfers(listener) == {uid: (CLOSED, 4)}
    sent[0].PatientName = "Somebody^Else"
    assert send(listener, sent[:1]) == [DUPLICATE]
    assert transfers(listener) == {uid: (CONFLICT, 4)}


def test_a_series_of_which_an_image_was_refused(start: Start, series_of: Series) -> None:
    listener, sent = start(), series_of("a")
    del sent[1].StudyInstanceUID
    assert [s != 0 for s in send(listener, sent)] == [False, True, False, False]
    assert transfers(listener) == {str(sent[0].SeriesInstanceUID): (REFUSED, 3)}


def test_an_image_that_is_taken_at_the_second_try(start: Start, series_of: Series) -> None:
    listener, sent = start(Limits(free_gb=1e9)), series_of("a", 2)
    association = call(listener)
    assert association.send_c_store(sent[0]).Status == NO_ROOM
    listener._inbox.limits = Limits(free_gb=0.001)
    assert [association.send_c_store(ds).Status for ds in sent] == [0, 0]
    association.release()
    until(lambda: not listener.open_associations)
    listener.sweep()
    assert transfers(listener) == {str(sent[0].SeriesInstanceUID): (CLOSED, 2)}


def test_how_it_ends_is_noted_before_the_caller_is_told(start: Start, series_of: Series) -> None:
    """A kill right after that finds it there: nothing here waits for a sweep."""
    listener, sent = start(), series_of("a", 2)
    uid = str(sent[0].SeriesInstanceUID)
    association = call(listener)
    assert [association.send_c_store(ds).Status for ds in sent] == [0, 0]
    association.release()
    assert transfers(listener) == {uid: (CLOSED, 2)}
    sent[0].PatientName = "Somebody^Else"
    association = call(listener)
    assert association.send_c_store(sent[0]).Status == DUPLICATE
    assert transfers(listener) == {uid: (CONFLICT, 2)}
    association.abort()


def test_before_the_disk_is_full_it_says_so(start: Start, series_of: Series) -> None:
    listener = start(Limits(free_gb=1e9))
    assert send(listener, series_of("a", 2)) == [NO_ROOM, NO_ROOM]


@pytest.mark.parametrize(
    ("peers", "options", "let_in"),
    [
        ((), {}, True),
        ((), {"called": "OTHER"}, False),
        ((Peer(aet="TESTER", address="127.0.0.1"),), {}, True),
        ((Peer(aet="TESTER", address="127.0.0.1"),), {"title": "OTHER"}, False),
        ((Peer(aet="TESTER", address="10.0.0.0/8"), Peer(aet="X", address="127.0.0.1")), {}, False),
        ((Peer(aet="*", address="10.0.0.0/8"),), {}, False),
        ((Peer(aet="*", address="127.0.0.0/8"),), {}, True),
    ],
)
def test_title_and_address_must_be_those_of_one_peer(
    start: Start, peers: tuple[Peer, ...], options: dict[str, str], let_in: bool
) -> None:
    listener = start(peers=peers)
    association = call(listener, **options)
    assert association.is_established is let_in
    if let_in:
        association.release()


@pytest.mark.parametrize(
    ("peer", "host", "its"),
    [
        (Peer(aet="*", address="10.1.2.0/24"), "10.1.2.255", True),
        (Peer(aet="*", address="10.1.2.0/24"), "10.1.3.0", False),
        (Peer(aet="*", address="10.1.2.3"), "::ffff:10.1.2.3", True),
        (Peer(aet="*", address="fe80::/10"), "fe80::1%eth0", True),
        (Peer(aet="*", address="10.1.2.3"), "nonsense", False),
    ],
)
def test_addresses_of_a_peer(peer: Peer, host: str, its: bool) -> None:
    assert peer.calls_from(host) is its


@pytest.mark.parametrize(
    "wrong", [{"aet": "X", "address": "pacs.example.org"}, {"aet": "", "address": "::1"}]
)
def test_peers_that_are_none(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match="peers"):
        Peer(**wrong)


def test_no_more_associations_than_there_is_room_for(start: Start) -> None:
    listener = start(associations=1)
    first = call(listener)
    second = call(listener)
    assert (first.is_established, second.is_established) == (True, False)
    first.release()
    until(lambda: not listener.open_associations)
    third = call(listener)
    assert third.is_established
    third.release()


# --- hostile ----------------------------------------------------------------------------------------------


def closed(connection: socket.socket) -> bool:
    """Whether the other side hangs up."""
    connection.settimeout(30)
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def test_a_pdu_that_claims_gigabytes_ends_the_connection(start: Start) -> None:
    listener = start()
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + bytes(1000))
        assert closed(connection)
    association = call(listener)
    assert association.is_established
    association.release()


@pytest.mark.parametrize(
    "head", [b"", b"\x01", b"GET / HTTP/1.1\r\n\r\n", struct.pack(">BBL", 1, 0, 5000) + b"x"]
)
def test_who_says_too_little_is_hung_up(start: Start, head: bytes) -> None:
    listener = start(idle=1)
    with socket.create_connection(("127.0.0.1", listener.port)) as connection:
        connection.sendall(head)
        assert closed(connection)
    until(lambda: not listener.open_associations)


def test_an_instance_that_is_too_large_is_not_held(start: Start, series_of: Series) -> None:
    listener = start(Limits(free_gb=0.001, instance_mb=1))
    small, large = series_of("a", 2)
    large.PixelData = bytes(4_000_000)
    association = call(listener)
    assert association.send_c_store(small).Status == 0
    assert "Status" not in association.send_c_store(large)  # cut off on the way
    until(lambda: not listener.open_associations)
    listener.sweep()
    assert transfers(listener) == {str(small.SeriesInstanceUID): (REFUSED, 1)}
    assert send(listener, [small]) == [0]


def test_random_bytes_in_an_association_harm_nobody(start: Start, series_of: Series) -> None:
    listener = start(idle=1)
    for seed in range(4):
        association = call(listener)
        association.dul.socket.send(struct.pack(">BBLLBB", 4, 0, 60, 56, 1, seed) + bytes(54))
        until(lambda association=association: not association.is_established)  # type: ignore[misc]
    assert send(listener, series_of("a", 1)) == [0]


# --- TLS --------------------------------------------------------------------------------------------------


def test_tls_and_a_caller_who_has_to_show_a_certificate(
    start: Start, series_of: Series, certificate: Path
) -> None:
    listener = start(certificate=str(certificate), ca=str(certificate))
    stuck = socket.create_connection(("127.0.0.1", listener.port))  # says nothing, and keeps nobody out
    unknown = ssl.create_default_context(cafile=str(certificate))
    assert not call(listener, tls=unknown).is_established
    known = ssl.create_default_context(cafile=str(certificate))
    known.load_cert_chain(certificate)
    sent = series_of("a", 2)
    assert send_tls(listener, sent, known) == [0, 0]
    stuck.close()
    assert listener.counts["turned_away_tls"] >= 1


def send_tls(listener: Listener, sent: Sequence[pydicom.Dataset], tls: ssl.SSLContext) -> list[int]:
    association = call(listener, tls=tls)
    assert association.is_established
    statuses = [int(association.send_c_store(ds).Status) for ds in sent]
    association.release()
    return statuses


def test_tls_needs_its_files(start: Start, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="certificate, key or ca"):
        start(certificate=str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match="give a certificate"):
        Listen(ca="x.pem")


def test_a_port_in_use_is_told(start: Start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        inbox = Inbox(tmp_path / "other", Limits(free_gb=0.001))
        with pytest.raises(InputError, match="cannot listen"):
            Listener(Listen(port=taken.getsockname()[1]), inbox)
        inbox.close()
