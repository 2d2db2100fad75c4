"""STOW-RS and C-STORE, against a real Orthanc where it can be made to behave so, else small servers."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import socket
import ssl
import subprocess
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SegmentationStorage,
)

from deepcac2.delivery.sending import (
    ALREADY_THERE,
    Credentials,
    Destination,
    DicomWeb,
    Dimse,
    failure_in_words,
    file_of,
    part10,
    tls_context,
)
from deepcac2.dicom import SliceRef, discover
from deepcac2.errors import DestinationRefused, DestinationUnreachable, InputError

USER = {"DEEPCAC2_DICOMWEB_USER": "tester", "DEEPCAC2_DICOMWEB_PASSWORD": "c0rrect-horse"}


def web(url: str, environment: dict[str, str] = USER, **options: Any) -> DicomWeb:
    return DicomWeb(
        url, credentials=Credentials.of(environment), tls=tls_context(environment), timeout=10, **options
    )


def send(destination: Destination, instance: SliceRef) -> str:
    try:
        with part10(instance) as path:
            return destination.send(instance, path)
    finally:
        destination.close()


@pytest.fixture(scope="module")
def instances(simulated: Path) -> list[SliceRef]:
    series = next(s for s in discover(simulated).series if s.modality == "CT")
    return list(series.slices)


@pytest.fixture(params=["dicomweb", "dimse"])
def destination(request: pytest.FixtureRequest, orthanc: Any) -> Iterator[Destination]:
    made = (
        web(orthanc.dicomweb) if request.param == "dicomweb" else Dimse(orthanc.address, calling="DEEPCAC2")
    )
    yield made
    made.close()


# --- what both do -----------------------------------------------------------------------------------------


def test_a_file_arrives_as_it_is(orthanc: Any, destination: Destination, instances: list[SliceRef]) -> None:
    destination.check()
    for instance in instances[:3]:
        assert destination.send(instance, instance.path) == ""
    stored = orthanc.stored()
    assert stored.keys() == {i.sop_instance_uid for i in instances[:3]}
    for instance in instances[:3]:
        ours, theirs = (
            pydicom.dcmread(instance.path),
            pydicom.dcmread(BytesIO(stored[instance.sop_instance_uid])),
        )
        assert ours == theirs


def test_a_zip_archive_and_a_file_without_preamble(
    orthanc: Any, destination: Destination, instances: list[SliceRef], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "ct.zip", "w") as archive:
        archive.write(instances[0].path, "a/b.dcm")
    ds = pydicom.dcmread(instances[1].path)
    del ds.file_meta, ds.preamble
    bare = tmp_path / "bare.dcm"
    pydicom.dcmwrite(bare, ds, implicit_vr=True, little_endian=True)
    assert bare.read_bytes()[128:132] != b"DICM"
    found = discover(tmp_path)
    assert not found.unreadable
    for instance in found.series[0].slices:
        with part10(instance) as path:
            assert destination.send(instance, path) == ""
    for instance in instances[:2]:
        stored = pydicom.dcmread(BytesIO(orthanc.stored()[instance.sop_instance_uid]))
        assert stored.PixelData == pydicom.dcmread(instance.path).PixelData


def test_an_instance_that_is_refused_says_why(
    destination: Destination, instances: list[SliceRef], tmp_path: Path
) -> None:
    ds = pydicom.dcmread(instances[0].path)
    ds.StudyInstanceUID = ""
    ds.save_as(tmp_path / "bad.dcm")
    bad = file_of(tmp_path / "bad.dcm")
    reason = destination.send(bad, bad.path)
    assert reason.startswith(("refused: ", "not stored: "))
    assert destination.send(instances[1], instances[1].path) == ""


# --- DICOMweb ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "set DEEPCAC2_DICOMWEB_USER and _PASSWORD"),
        ({**USER, "DEEPCAC2_DICOMWEB_PASSWORD": "wr0ng"}, "does not accept the credentials"),
        ({"DEEPCAC2_DICOMWEB_TOKEN": "wr0ng"}, "does not accept the credentials"),
    ],
)
def test_who_is_not_let_in(
    orthanc: Any, instances: list[SliceRef], environment: dict[str, str], text: str
) -> None:
    there = web(orthanc.dicomweb, environment)
    for attempt in (there.check, lambda: send(there, instances[0])):
        with pytest.raises(DestinationRefused, match=text) as caught:
            attempt()
        assert "wr0ng" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("path", ["", "/dicomweb", "/app/explorer.html", "/dicom-web/servers"])
def test_a_wrong_url(orthanc: Any, instances: list[SliceRef], path: str) -> None:
    with pytest.raises(DestinationRefused, match="check the URL"):
        send(web(orthanc.http + path), instances[0])


class Server:
    """An HTTP server that answers to POST as it is told, and keeps what it was sent."""

    def __init__(self, *answers: tuple[int, str, bytes], tls: ssl.SSLContext | None = None) -> None:
        left, self.headers, self.bodies = list(answers), [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_OPTIONS(self) -> None:
                self.reply(405, "text/plain", b"")

            def do_POST(self) -> None:
                server.headers.append(dict(self.headers))
                server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(*(left.pop(0) if len(left) > 1 else left[0]))

            def reply(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                if 300 <= status < 400:
                    self.send_header("Location", "http://127.0.0.1:9/login")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.server_port}/dicom-web"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*answers: tuple[int, str, bytes], **options: Any) -> Server:
        started.append(Server(*answers, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


JSON = "application/dicom+json; charset=utf-8"


def answer(*, stored: str = "", failed: str = "", reason: int | None = None) -> bytes:
    """A store response in the DICOM JSON model (PS3.18 10.5.3.2)."""

    def item(uid: str, **more: object) -> dict[str, object]:
        return {"00081155": {"vr": "UI", "Value": [uid]}, **more}

    content: dict[str, object] = {"00081190": {"vr": "UR"}}
    if stored:
        content["00081199"] = {"vr": "SQ", "Value": [item(stored)]}
    if failed:
        code = {} if reason is None else {"00081197": {"vr": "US", "Value": [reason]}}
        content["00081198"] = {"vr": "SQ", "Value": [item(failed, **code)]}
    return json.dumps(content).encode()


def test_what_is_sent_is_what_the_standard_says(
    serve: Callable[..., Server], instances: list[SliceRef]
) -> None:
    one = instances[0]
    server = serve((200, JSON, answer(stored=one.sop_instance_uid)))
    assert send(web(server.url, {"DEEPCAC2_DICOMWEB_TOKEN": "t0ken"}), one) == ""
    ((headers,), (body,)) = server.headers, server.bodies
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["Accept"] == "application/dicom+json"
    assert "Transfer-Encoding" not in headers
    kind, _, boundary = headers["Content-Type"].partition("; boundary=")
    assert kind == 'multipart/related; type="application/dicom"'
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    assert body == head + one.path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()


@pytest.mark.parametrize(
    ("status", "make", "text"),
    [
        (202, {"failed": "own", "reason": 0xA700}, "refused: Out of Resources (0xA700)"),
        (409, {"failed": "own", "reason": 0x0122}, "refused: SOP Class Not Supported (0x0122)"),
        (409, {"failed": "own", "reason": 0xEEEE}, "refused: status 0xEEEE"),
        (409, {"failed": "own"}, "refused without a reason"),
        (409, {"failed": "own", "reason": 45070}, ALREADY_THERE),
        (409, {"failed": "own", "reason": 0x0111}, ALREADY_THERE),
        (409, {"failed": "own", "reason": 45071}, "refused: status 0xB00F"),
        (409, {"failed": "1.2.3", "reason": 45070}, "not stored: the answer does not name it (HTTP 409)"),
        (200, {"stored": "1.2.3"}, "not stored: the answer does not name it (HTTP 200)"),
        (200, {}, "not stored: the answer does not name it (HTTP 200)"),
        (400, {"stored": "own"}, "not stored: the answer does not name it (HTTP 400)"),
    ],
)
def test_the_answer_about_the_instance_counts(
    serve: Callable[..., Server], instances: list[SliceRef], status: int, make: dict[str, Any], text: str
) -> None:
    one = instances[0]
    made = {k: one.sop_instance_uid if v == "own" else v for k, v in make.items()}
    assert send(web(serve((status, JSON, answer(**made))).url), one) == text


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"[1]", b"null", b'{"00081199": 1}', b'{"00081199":{"Value":[1]}}']
)
def test_an_answer_that_is_broken_is_no_success(
    serve: Callable[..., Server], instances: list[SliceRef], content: bytes
) -> None:
    assert "does not name it" in send(web(serve((200, JSON, content)).url), instances[0])


@pytest.mark.parametrize(
    ("status", "kind", "error", "text"),
    [
        (200, "text/html", DestinationRefused, "answers with text/html instead of DICOM JSON: check the URL"),
        (200, "", DestinationRefused, "answers with nothing instead of DICOM JSON"),
        (302, "text/html", DestinationRefused, "login page"),
        (401, "text/html", DestinationRefused, "credentials"),
        (403, "text/html", DestinationRefused, "does not allow"),
        (404, "text/html", DestinationRefused, "check the URL"),
        (503, "text/html", DestinationUnreachable, "too busy"),
    ],
)
def test_answers_that_are_not_about_the_instance(
    serve: Callable[..., Server],
    instances: list[SliceRef],
    status: int,
    kind: str,
    error: type[Exception],
    text: str,
) -> None:
    page = b"<html>\x1b[31mPassword: c0rrect-horse</html>"
    with pytest.raises(error, match=text) as caught:
        send(web(serve((status, kind, page)).url), instances[0])
    assert "c0rrect-horse" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there(orthanc_module: Any, instances: list[SliceRef]) -> None:
    port = orthanc_module.free_port()
    with pytest.raises(DestinationUnreachable, match="Connection refused"):
        web(f"http://127.0.0.1:{port}/dicom-web").check()
    with pytest.raises(DestinationUnreachable, match="Connection refused"):
        Dimse(f"A@127.0.0.1:{port}", calling="B").check()
    with pytest.raises(DestinationUnreachable, match="Connection refused"):
        send(Dimse(f"A@127.0.0.1:{port}", calling="B"), instances[0])


def test_a_dicom_port_is_no_web_server_and_the_other_way_round(
    orthanc: Any, instances: list[SliceRef]
) -> None:
    with pytest.raises(DestinationUnreachable):
        send(web(f"http://127.0.0.1:{orthanc.dicom_port}"), instances[0])
    with pytest.raises(DestinationUnreachable):
        send(Dimse(f"ORTHANC@127.0.0.1:{orthanc.port}", calling="DEEPCAC2", timeout=5), instances[0])


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cret@pacs.example.org/dicom-web",
        "https://user:s3/cret@pacs.example.org",
        "https://pacs.example.org/dicom-web?token=s3cret",
        "https://pacs.example.org/dicom-web#s3cret",
        "https://pacs.example.org:s3cret/",
        "ftp://pacs.example.org/s3cret",
        "s3cret",
        "https:///s3cret",
        "https://pacs.example.org/a\nb s3cret",
        "https://pacs.example.org/s3cret/studies/",
    ],
)
def test_urls_that_are_refused_are_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="--dicomweb") as caught:
        web(url)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_one_name_for_one_service() -> None:
    names = {
        web(u, {}).name
        for u in ("https://PACS.example.org/dicom-web", "https://pacs.example.org:443/dicom-web/")
    }
    assert names == {"https://pacs.example.org/dicom-web"}
    assert web("http://[::1]:8042/a", {}).name == "http://[::1]:8042/a"


def test_credentials_go_over_plain_http_to_this_machine_only() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "[::1]"):
        web(f"http://{host}:8042/dicom-web")
    for host in ("pacs.example.org", "192.0.2.7", "localhost.example.org", "127.0.0.1.example.org"):
        with pytest.raises(InputError, match="--insecure"):
            web(f"http://{host}/dicom-web")
        web(f"http://{host}/dicom-web", insecure=True)
        web(f"http://{host}/dicom-web", {})
        web(f"https://{host}/dicom-web")


@pytest.mark.parametrize(
    "environment",
    [
        {"DEEPCAC2_DICOMWEB_USER": "u"},
        {"DEEPCAC2_DICOMWEB_PASSWORD": "s3cret"},
        {"DEEPCAC2_DICOMWEB_TOKEN": "s3cret", **USER},
        {"DEEPCAC2_DICOMWEB_TOKEN": "s3cret\r\nX-Other: 1"},
        {"DEEPCAC2_DICOMWEB_TOKEN": "s3cret ü"},
        {"DEEPCAC2_DICOMWEB_USER": "u:s3cret", "DEEPCAC2_DICOMWEB_PASSWORD": "s3cret"},
    ],
)
def test_credentials_that_cannot_be_used_are_not_repeated(environment: dict[str, str]) -> None:
    with pytest.raises(InputError, match="DEEPCAC2_DICOMWEB") as caught:
        Credentials.of(environment)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_credentials_are_in_no_log_whatever_the_libraries_tell(
    orthanc: Any, instances: list[SliceRef], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.DEBUG)
    there = web(orthanc.dicomweb)
    assert send(there, instances[0]) == ""
    assert "POST /dicom-web/studies" in caplog.text
    header = base64.b64encode(b"tester:c0rrect-horse").decode()
    for text in (caplog.text, repr(there), repr(Credentials.of(USER)), str(vars(there).keys())):
        assert "c0rrect-horse" not in text
        assert header not in text


def test_netrc_and_proxies_are_not_used(
    orthanc: Any, instances: list[SliceRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login tester password c0rrect-horse\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(DestinationRefused, match="set DEEPCAC2_DICOMWEB_USER"):
        send(web(orthanc.dicomweb, {}), instances[0])
    assert send(web(orthanc.dicomweb), instances[0]) == ""


# --- DIMSE ------------------------------------------------------------------------------------------------


def test_titles_that_are_not_known(orthanc: Any, instances: list[SliceRef]) -> None:
    def refused(destination: Dimse) -> str:
        """Orthanc closes at once what it refuses; its answer may be lost then, and push tries again."""
        for _ in range(5):
            try:
                send(destination, instances[0])
            except DestinationRefused as error:
                return str(error)
            except DestinationUnreachable as error:
                assert "ended before there was an association" in str(error)  # noqa: PT017
        pytest.fail("it was never refused")

    said = refused(Dimse(orthanc.address, calling="OTHER"))
    assert re.search("calling ae title not recognised.*knows OTHER", said)
    assert "called ae title not recognised" in refused(
        Dimse(orthanc.address.replace("ORTHANC", "ARCHIVE"), calling="DEEPCAC2")
    )


@pytest.mark.parametrize(
    "address",
    ["", "pacs:104", "A@pacs", "A@pacs:0", "A@pacs:65536", "@pacs:104", "A\\B@pacs:104", "A" * 17 + "@p:1"],
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InputError, match="--dimse"):
        Dimse(address, calling="DEEPCAC2")


@pytest.mark.parametrize("title", ["", "   ", "ä", "A\\B", "A" * 17])
def test_a_calling_title_that_is_none(title: str) -> None:
    with pytest.raises(InputError, match="--calling-aet"):
        Dimse("A@127.0.0.1:104", calling=title)


def test_addresses() -> None:
    assert Dimse("A B@PACS.example.org:104", calling="C").name == "A B@pacs.example.org:104"
    assert Dimse("A@[::1]:104", calling="C").name == "A@[::1]:104"


class Archive:
    """A storage SCP by pynetdicom; keeps what it got, answers with a status."""

    def __init__(
        self, contexts: list[tuple[str, str]], *, status: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        from pynetdicom import AE, evt

        self.got: list[pydicom.Dataset] = []

        def store(event: Any) -> int:
            ds = event.dataset
            ds.file_meta = event.file_meta
            self.got.append(ds)
            return status

        entity = AE(ae_title="ARCHIVE")
        for name, syntax in contexts:
            entity.add_supported_context(name, syntax)
        self._server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)], ssl_context=tls
        )
        self.address = f"ARCHIVE@127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()


@pytest.fixture
def archive() -> Iterator[Callable[..., Archive]]:
    started: list[Archive] = []

    def start(contexts: list[tuple[str, str]], **options: Any) -> Archive:
        started.append(Archive(contexts, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


def test_a_class_that_is_not_taken(
    archive: Callable[..., Archive], instances: list[SliceRef], simulated: Path
) -> None:
    there = archive([(CTImageStorage, ExplicitVRLittleEndian)])
    seg = file_of(next(simulated.rglob("truth.seg.dcm")))
    dimse = Dimse(there.address, calling="DEEPCAC2")
    try:
        for one in (seg, instances[0], seg):
            reason = dimse.send(one, one.path)
            assert reason == (
                ""
                if one is not seg
                else "refused: Segmentation Storage in Explicit VR Little Endian is not taken there"
            )
    finally:
        dimse.close()
    assert [ds.SOPClassUID for ds in there.got] == [CTImageStorage]


def test_an_archive_that_takes_implicit_vr_only(
    archive: Callable[..., Archive], instances: list[SliceRef], simulated: Path
) -> None:
    there = archive([(c, ImplicitVRLittleEndian) for c in (CTImageStorage, SegmentationStorage)])
    seg = file_of(next(simulated.rglob("truth.seg.dcm")))
    for one in (instances[0], seg):
        assert send(Dimse(there.address, calling="DEEPCAC2"), one) == ""
    for one, got in zip((instances[0], seg), there.got, strict=True):
        assert got.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        assert got.PixelData == pydicom.dcmread(one.path).PixelData


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0xB000, ""),
        (0xA700, "refused: Out of Resources (0xA700)"),
        (0xC123, "refused: Cannot understand (0xC123)"),
        (0x0124, "refused: Not Authorised (0x0124)"),
    ],
)
def test_statuses(archive: Callable[..., Archive], instances: list[SliceRef], status: int, text: str) -> None:
    there = archive([(CTImageStorage, ExplicitVRLittleEndian)], status=status)
    assert send(Dimse(there.address, calling="DEEPCAC2"), instances[0]).casefold() == text.casefold()


def test_failures_in_words() -> None:
    assert failure_in_words(0xA900).endswith("(0xA900)")
    assert failure_in_words(0x1234) == "status 0x1234"


def test_the_orthanc_of_the_tests_knows_only_loopback(orthanc: Any, instances: list[SliceRef]) -> None:
    """It cannot help listening on every address; a caller at another one is sent away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it only chooses the address to send from
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(DestinationRefused):
        send(Dimse(orthanc.address.replace("127.0.0.1", address), calling="DEEPCAC2"), instances[0])
    with pytest.raises((DestinationRefused, DestinationUnreachable)):
        send(web(orthanc.dicomweb.replace("127.0.0.1", address), insecure=True), instances[0])
    assert not orthanc.stored()


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A self-signed certificate for 127.0.0.1, its key, both in one file, and those of a client."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("certificates")
    for name, subject in (
        ("server", "/CN=127.0.0.1"),
        ("client", "/CN=deepcac2"),
        ("stranger", "/CN=stranger"),
    ):
        command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", subject]
        command += ["-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    both = (folder / "server.crt").read_text() + (folder / "server.key").read_text()
    (folder / "server.pem").write_text(both)
    return {p.name: p for p in folder.iterdir()}


def server_context(certificates: dict[str, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates["server.crt"], certificates["server.key"])
    return context


def test_https(
    serve: Callable[..., Server], certificates: dict[str, Path], instances: list[SliceRef]
) -> None:
    context = server_context(certificates)
    server = serve((200, JSON, answer(stored=instances[0].sop_instance_uid)), tls=context)
    with pytest.raises(DestinationRefused, match="DEEPCAC2_CA_BUNDLE") as caught:
        send(web(server.url), instances[0])
    assert "self-signed" in str(caught.value) or "self signed" in str(caught.value)
    trusting = {**USER, "DEEPCAC2_CA_BUNDLE": str(certificates["server.crt"])}
    with pytest.raises(DestinationRefused, match="name"):  # another one than the certificate's
        send(web(server.url.replace("127.0.0.1", "localhost"), trusting), instances[0])
    assert not server.headers
    assert send(web(server.url, trusting), instances[0]) == ""
    assert len(server.headers) == 1


def test_https_to_a_server_without(orthanc: Any, instances: list[SliceRef]) -> None:
    with pytest.raises(DestinationRefused, match="check that it speaks TLS"):
        send(web(orthanc.dicomweb.replace("http:", "https:")), instances[0])


def test_dimse_over_tls(
    archive: Callable[..., Archive], certificates: dict[str, Path], instances: list[SliceRef]
) -> None:
    there = archive([(CTImageStorage, ExplicitVRLittleEndian)], tls=server_context(certificates))
    trusting = {"DEEPCAC2_CA_BUNDLE": str(certificates["server.crt"])}
    assert send(Dimse(there.address, calling="C", tls=tls_context(trusting)), instances[0]) == ""
    with pytest.raises(DestinationRefused, match="DEEPCAC2_CA_BUNDLE"):
        send(Dimse(there.address, calling="C", tls=tls_context({}), timeout=5), instances[0])
    with pytest.raises(DestinationUnreachable):
        send(Dimse(there.address, calling="C", timeout=2), instances[0])
    assert len(there.got) == 1


def test_a_certificate_of_our_own(
    start_orthanc: Callable[..., Any], certificates: dict[str, Path], instances: list[SliceRef]
) -> None:
    orthanc = start_orthanc(
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(certificates["server.crt"]),
        DicomTlsPrivateKey=str(certificates["server.key"]),
        DicomTlsTrustedCertificates=str(certificates["client.crt"]),
        DicomTlsRemoteCertificateRequired=True,
    )
    trusting = {"DEEPCAC2_CA_BUNDLE": str(certificates["server.crt"])}

    def shown(name: str) -> dict[str, str]:
        keys = {"DEEPCAC2_CLIENT_CERT": f"{name}.crt", "DEEPCAC2_CLIENT_KEY": f"{name}.key"}
        return {**trusting, **{k: str(certificates[v]) for k, v in keys.items()}}

    ours = Dimse(orthanc.address, calling="DEEPCAC2", tls=tls_context(shown("client")))
    assert send(ours, instances[0]) == ""
    for environment in (trusting, shown("stranger")):
        strange = Dimse(orthanc.address, calling="DEEPCAC2", tls=tls_context(environment), timeout=5)
        with pytest.raises((DestinationUnreachable, DestinationRefused)):
            send(strange, instances[1])
    assert orthanc.stored().keys() == {instances[0].sop_instance_uid}


def test_certificates_that_cannot_be_used(certificates: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    locked = tmp_path / "locked.key"
    subprocess.run(
        [
            "openssl",
            "ec",
            "-in",
            str(certificates["client.key"]),
            "-aes128",
            "-passout",
            "pass:x",
            "-out",
            str(locked),
        ],
        check=True,
        capture_output=True,
    )
    client = str(certificates["client.crt"])
    for environment in (
        {"DEEPCAC2_CA_BUNDLE": str(tmp_path / "none.pem")},
        {"DEEPCAC2_CA_BUNDLE": str(tmp_path / "empty.pem")},
        {"DEEPCAC2_CLIENT_CERT": str(tmp_path / "none.pem")},
        {"DEEPCAC2_CLIENT_CERT": client, "DEEPCAC2_CLIENT_KEY": str(certificates["server.key"])},
        {"DEEPCAC2_CLIENT_CERT": client, "DEEPCAC2_CLIENT_KEY": str(locked)},
        {"DEEPCAC2_CLIENT_KEY": client},
    ):
        with pytest.raises(InputError, match="DEEPCAC2_C"):
            tls_context(environment)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_preamble_is_put_before_what_lacks_one(syntax: UID, small_seg: Path, tmp_path: Path) -> None:
    """The data set stays byte for byte, with what follows its pixels; also in an archive."""
    ds = pydicom.dcmread(small_seg)
    uids = ds.SOPClassUID, ds.SOPInstanceUID
    ds.DataSetTrailingPadding = b"behind"
    del ds.file_meta, ds.preamble
    bare = tmp_path / "bare"
    pydicom.dcmwrite(bare, ds, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(bare, "bare")
    for ref in (SliceRef(path=bare), SliceRef(path=tmp_path / "a.zip", member="bare")):
        with part10(ref) as path:
            assert path.read_bytes().endswith(bare.read_bytes())
            meta = pydicom.dcmread(path).file_meta
    assert meta.TransferSyntaxUID == syntax
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == uids


def test_uids_of_a_file_and_of_a_slice_agree(instances: list[SliceRef]) -> None:
    file, one = file_of(instances[0].path), instances[0]
    assert (file.sop_class_uid, file.sop_instance_uid) == (one.sop_class_uid, one.sop_instance_uid)
    assert file.transfer_syntax_uid == one.transfer_syntax_uid
