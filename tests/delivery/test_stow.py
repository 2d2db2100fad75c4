"""STOW-RS as a way in: dicomweb-client, our own sender and bare sockets against a real server."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from deepcac2.delivery.inbox import (
    CLOSED,
    CONFLICT,
    CUT,
    DUPLICATE,
    MISMATCH,
    NOT_UNDERSTOOD,
    REFUSED,
    Inbox,
    Limits,
)
from deepcac2.delivery.listening import Listen, Peer
from deepcac2.delivery.multipart import NotMultipart, only_part, parts
from deepcac2.delivery.sending import Credentials, DicomWeb, file_of, tls_context
from deepcac2.delivery.stow import Stow
from deepcac2.errors import InputError

Series = Callable[..., list[pydicom.Dataset]]
Start = Callable[..., Stow]
HERE = "127.0.0.1:0"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the service with some options of `Listen`; `limits` are the inbox's."""
    with ExitStack() as stack:

        def begin(
            limits: Limits | None = None, environment: dict[str, str] | None = None, **options: Any
        ) -> Stow:
            inbox = Inbox(tmp_path / "inbox", limits or Limits(free_gb=0.001))
            stack.callback(inbox.close)
            service = Stow(HERE, Listen(**options), inbox, environment or {})
            stack.callback(service.stop)
            return service

        yield begin


def encoded(ds: pydicom.Dataset) -> bytes:
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def body_of(contents: Sequence[bytes], kind: str = "application/dicom") -> bytes:
    """A body as RFC 2387 shows it, with a preamble."""
    head = f"\r\n--limit\r\nContent-Type: {kind}\r\n\r\n".encode()
    return b"nobody reads this" + b"".join(head + c for c in contents) + b"\r\n--limit--\r\n"


def post(
    service: Stow,
    body: bytes,
    path: str = "/dicom-web/studies",
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> tuple[int, Any]:
    if tls is None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    else:
        connection = http.client.HTTPSConnection("localhost", service.port, timeout=60, context=tls)
    kind = 'multipart/related; type="application/dicom"; boundary=limit'
    with closing(connection):
        connection.request("POST", path, body, {"Content-Type": kind, **headers})
        answer = connection.getresponse()
        content = answer.read()
    is_json = answer.getheader("Content-Type") == "application/dicom+json"
    return answer.status, json.loads(content) if is_json else content.decode()


def transfers(service: Stow) -> dict[str, tuple[str, int]]:
    return {w.uid: (w.transfer, w.images) for w in service._inbox.waiting()}


def uids(answer: Any, tag: str) -> list[str]:
    return [item["00081155"]["Value"][0] for item in answer.get(tag, {}).get("Value", [])]


def reasons(answer: Any) -> list[int]:
    return [item["00081197"]["Value"][0] for item in answer["00081198"]["Value"]]


def test_a_client_sends_a_series(start: Start, series_of: Series, tmp_path: Path) -> None:
    service, sent = start(), series_of("a")
    client = DICOMwebClient(service.url)
    answer = client.store_instances(sent)
    assert {i.ReferencedSOPInstanceUID for i in answer.ReferencedSOPSequence} == {
        d.SOPInstanceUID for d in sent
    }
    assert "FailedSOPSequence" not in answer
    uid = str(sent[0].SeriesInstanceUID)
    assert transfers(service) == {uid: (CLOSED, 4)}
    client.store_instances(sent[:1], study_instance_uid=sent[0].StudyInstanceUID)  # again: all the same
    assert transfers(service) == {uid: (CLOSED, 4)}
    assert (service.counts["new"], service.counts["again"]) == (4, 1)
    files = sorted(service._inbox.folder(uid).iterdir())
    assert len(files) == 4
    received = {pydicom.dcmread(f).SOPInstanceUID: pydicom.dcmread(f).pixel_array.tobytes() for f in files}
    assert received == {d.SOPInstanceUID: d.pixel_array.tobytes() for d in sent}


def test_our_own_sender(start: Start, series_of: Series, tmp_path: Path) -> None:
    service = start(environment={"DEEPCAC2_STOW_USER": "ct", "DEEPCAC2_STOW_PASSWORD": "x y"})
    path = tmp_path / "a.dcm"
    path.write_bytes(encoded(series_of("a")[0]))
    known = Credentials.of({"DEEPCAC2_DICOMWEB_USER": "ct", "DEEPCAC2_DICOMWEB_PASSWORD": "x y"})
    sender = DicomWeb(service.url, credentials=known, tls=tls_context({}))
    sender.check()
    assert sender.send(file_of(path), path) == ""
    sender.close()
    assert [images for _, images in transfers(service).values()] == [1]


def test_what_is_refused_is_named_and_the_others_are_kept(start: Start, series_of: Series) -> None:
    service, sent = start(), series_of("a")
    other = series_of("b", 1)[0]
    broken = encoded(series_of("c", 1)[0])[:600]
    files = [encoded(ds) for ds in (*sent, other)]
    status, answer = post(
        service, body_of([*files, broken, b"no DICOM"]), f"/dicom-web/studies/{sent[0].StudyInstanceUID}"
    )
    assert status == 202
    assert uids(answer, "00081199") == [str(ds.SOPInstanceUID) for ds in sent]
    assert reasons(answer) == [MISMATCH, NOT_UNDERSTOOD, NOT_UNDERSTOOD]
    # Of something that was refused nobody knows the series: it may have been an image of this one.
    assert transfers(service) == {str(sent[0].SeriesInstanceUID): (REFUSED, 4)}


def test_other_content_under_the_same_uid(start: Start, series_of: Series) -> None:
    service, sent = start(), series_of("a", 2)
    assert post(service, body_of([encoded(d) for d in sent]))[0] == 200
    sent[0].PatientName = "Somebody^Else"
    status, answer = post(service, body_of([encoded(sent[0])]))
    assert (status, reasons(answer)) == (409, [DUPLICATE])
    assert transfers(service) == {str(sent[0].SeriesInstanceUID): (CONFLICT, 2)}


def test_a_request_that_breaks_off_and_one_that_makes_up_for_it(start: Start, series_of: Series) -> None:
    service, sent = start(), series_of("a")
    uid = str(sent[0].SeriesInstanceUID)
    body = body_of([encoded(d) for d in sent])
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += 'Content-Type: multipart/related; type="application/dicom"; boundary=limit\r\n\r\n'
    with socket.create_connection(("127.0.0.1", service.port)) as caller:
        caller.sendall(head.encode() + body[: int(0.6 * len(body))])
        end = time.monotonic() + 60
        while uid not in service.at_work():
            assert time.monotonic() < end
            time.sleep(0.02)
    while service.at_work():
        assert time.monotonic() < end
        time.sleep(0.02)
    ((how, images),) = transfers(service).values()
    assert how == CUT
    assert 1 <= images < 4
    assert post(service, body)[0] == 200
    assert transfers(service) == {uid: (CLOSED, 4)}


def test_who_stops_in_the_middle_is_not_waited_for_for_ever(start: Start, series_of: Series) -> None:
    service, sent = start(idle=0.2), series_of("a", 2)
    body = body_of([encoded(d) for d in sent])
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    head += 'Content-Type: multipart/related; type="application/dicom"; boundary=limit\r\n\r\n'
    with socket.create_connection(("127.0.0.1", service.port)) as caller:
        caller.settimeout(60)
        caller.sendall(head.encode() + body[:-100])
        assert caller.recv(100).startswith(b"HTTP/1.1 400")
    assert [how for how, _ in transfers(service).values()] == [CUT]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda body: b"", 400),
        (lambda body: b"\r\n--limit--", 400),
        (lambda body: body[:-6], 400),
        (lambda body: body.replace(b"--limit\r\n", b"--limit!\r\n"), 400),
        (lambda body: b"-" * 20_000, 400),
        (lambda body: b"\r\n--limit\r\n" + b"x" * 20_000 + body, 400),
        (lambda body: body.replace(b"application/dicom", b"application/json+"), 415),
    ],
)
def test_bodies_that_are_none(
    start: Start, series_of: Series, change: Callable[[bytes], bytes], status: int
) -> None:
    service = start()
    body = change(body_of([encoded(series_of("a", 1)[0])]))
    assert post(service, body)[0] == status
    assert all(how != CLOSED for how, _ in transfers(service).values())
    assert not service.at_work()


def test_who_may_not_send(start: Start, series_of: Series) -> None:
    body = body_of([encoded(series_of("a", 1)[0])])
    service = start(environment={"DEEPCAC2_STOW_TOKEN": "secret"})
    wrong = "Basic " + base64.b64encode(b"a:b").decode()
    for headers in ({}, {"Authorization": wrong}, {"Authorization": "Bearer secre"}):
        assert post(service, body, **headers)[0] == 401
    assert post(service, body, Authorization="Bearer secret", Origin="https://a.page")[0] == 403
    assert (
        post(service, body, **{"Authorization": "Bearer secret", "Content-Type": "application/dicom"})[0]
        == 415
    )
    assert not transfers(service)
    assert service.counts["turned_away_credentials"] == 3
    assert post(service, body, Authorization="Bearer secret")[0] == 200


def test_an_address_that_is_none_of_a_peer_s(start: Start, series_of: Series) -> None:
    service = start(peers=(Peer(aet="CT1", address="10.1.2.3"),))
    body = body_of([encoded(series_of("a", 1)[0])])
    assert post(service, body, **{"X-Forwarded-For": "10.1.2.3"})[0] == 403
    assert not transfers(service)


def test_other_machines_only_encrypted_and_known(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "inbox")
    for environment in ({}, {"DEEPCAC2_STOW_TOKEN": "secret"}):
        with pytest.raises(InputError, match="give a certificate"):
            Stow("0.0.0.0:0", Listen(), inbox, environment)
    with pytest.raises(InputError, match="HOST:PORT"):
        Stow("8080", Listen(), inbox, {})
    with pytest.raises(InputError, match="DEEPCAC2_STOW_USER and DEEPCAC2_STOW_PASSWORD"):
        Stow(HERE, Listen(), inbox, {"DEEPCAC2_STOW_USER": "x"})
    inbox.close()


def test_encrypted_and_from_those_who_show_a_certificate(
    tmp_path: Path, series_of: Series, certificate: Path
) -> None:
    inbox = Inbox(tmp_path / "inbox", Limits(free_gb=0.001))
    here = Peer(aet="*", address="127.0.0.1")
    listen = Listen(certificate=str(certificate), ca=str(certificate), peers=(here,))
    service = Stow("0.0.0.0:0", listen, inbox, {})
    assert service.url == f"https://0.0.0.0:{service.port}/dicom-web"
    body = body_of([encoded(ds) for ds in series_of("a", 2)])
    with pytest.raises((http.client.HTTPException, OSError)):
        post(service, body)
    tls = ssl.create_default_context(cafile=str(certificate))
    with pytest.raises((http.client.HTTPException, OSError)):
        post(service, body, tls=tls)
    tls.load_cert_chain(certificate)
    assert post(service, body, tls=tls)[0] == 200
    assert [images for _, images in transfers(service).values()] == [2]
    service.stop()
    inbox.close()


def test_what_is_too_large_or_has_no_room(start: Start, series_of: Series) -> None:
    body = body_of([encoded(series_of("a", 1)[0]) + bytes(3_000_000)])
    service = start(Limits(free_gb=0.001, instance_mb=0.001))
    assert post(service, body)[0] == 413
    service._inbox.limits = Limits(free_gb=1e9)
    assert post(service, body)[0] == 503
    assert not transfers(service)


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 16])
def test_a_body_in_blocks_of_any_size(size: int) -> None:
    contents = [b"first\r\n--limi", b"", b"\r\n" * 50, bytes(range(256)) * 3]
    body = body_of(contents)
    blocks = (body[i : i + size] for i in range(0, len(body), size))
    found = [(p.kind, b"".join(p.content)) for p in parts(blocks, 'x; boundary="limit"')]
    assert found == [("application/dicom", c) for c in contents]
    blocks = (body[i : i + size] for i in range(0, len(body), size))
    assert len([p for p in parts(blocks, "x; boundary=limit") if next(p.content) is not None]) == 4


def test_a_body_of_one_part() -> None:
    kind = "multipart/related; boundary=limit"
    assert b"".join(only_part(iter([body_of([b"x"])]), kind)) == b"x"
    for wrong, said in (([], "no part"), ([b"x", b"y"], "several")):
        with pytest.raises(NotMultipart, match=said):
            b"".join(only_part(iter([body_of(wrong)]), kind))
    for none in ("", "; boundary=" + "x" * 300, "; boundary=a b"):
        with pytest.raises(NotMultipart, match="boundary"):
            list(parts(iter([b""]), f"multipart/related{none}"))


def test_orthanc_sends_a_series(
    start: Start, series_of: Series, start_orthanc: Callable[..., Any], tmp_path: Path
) -> None:
    service = start(environment={"DEEPCAC2_STOW_USER": "ct", "DEEPCAC2_STOW_PASSWORD": "secret"})
    node = [f"{service.url}/", "ct", "secret"]
    orthanc = start_orthanc(DicomWeb={"Enable": True, "Servers": {"node": node}})
    sent = series_of("a")
    for ds in sent:
        orthanc.post("/instances", encoded(ds))
    studies = orthanc.get("/studies")
    orthanc.post("/dicom-web/servers/node/stow", json.dumps({"Resources": studies}).encode())
    assert transfers(service) == {str(sent[0].SeriesInstanceUID): (CLOSED, 4)}
