"""Series out of a real Orthanc; and of services that lie, in a small server."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from deepcac2.cli.main import main
from deepcac2.delivery.pulling import Pulled, PullLimits, Query, WebSource, pull
from deepcac2.delivery.sending import Credentials, DicomWeb, file_of, tls_context
from deepcac2.dicom import discover
from deepcac2.errors import (
    DestinationRefused,
    DestinationUnreachable,
    DiskFull,
    InputError,
    OutputBusy,
)

USER = {"DEEPCAC2_DICOMWEB_USER": "tester", "DEEPCAC2_DICOMWEB_PASSWORD": "c0rrect-horse"}
CT = ["StudyDate=20260101-20260131", "ModalitiesInStudy=CT"]
FREE = PullLimits(free_gb=0)


def pulled(url: str, folder: Path, queries: list[str] = CT, **options: Any) -> Pulled:
    source = WebSource(url, credentials=Credentials.of(USER), tls=tls_context(USER), timeout=10)
    try:
        return pull(source, Query.parse(queries), folder, **{"limits": FREE, "retries": 0, **options})
    finally:
        source.close()


def store(orthanc: Any, instances: list[pydicom.Dataset], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    there = DicomWeb(orthanc.dicomweb, credentials=Credentials.of(USER), tls=tls_context(USER), timeout=10)
    for ds in instances:
        path = folder / f"{ds.SOPInstanceUID}.dcm"
        ds.save_as(path)
        assert there.send(file_of(path), path) == ""
    there.close()


def files(folder: Path) -> dict[str, Path]:
    return {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.dcm")}


# --- against Orthanc --------------------------------------------------------------------------------------


def test_what_matches_comes_once_and_goes_on(
    orthanc: Any, series_of: Callable[..., list[pydicom.Dataset]], tmp_path: Path
) -> None:
    january = series_of("one", 3, StudyDate="20260105")
    second = series_of("two", 2, StudyDate="20260131", SeriesDescription="LUNG 1")
    february = series_of("three", 2, StudyDate="20260201")
    other = series_of("four", 1, StudyDate="20260105", Modality="MR")
    for ds in other:
        ds.StudyInstanceUID = january[0].StudyInstanceUID
    store(orthanc, [*january, *second, *february, *other], tmp_path / "sent")
    out = tmp_path / "out"
    found = pulled(orthanc.dicomweb, out)
    assert (found.studies, found.series, found.new, found.images, found.problems) == (2, 2, 2, 5, 0)
    expected = {
        f"{ds.StudyInstanceUID}/{ds.SeriesInstanceUID}/{ds.SOPInstanceUID}.dcm": ds
        for ds in (*january, *second)
    }
    assert files(out / "ct").keys() == expected.keys()
    for name, path in files(out / "ct").items():
        sent = pydicom.dcmread(tmp_path / "sent" / f"{expected[name].SOPInstanceUID}.dcm")
        assert pydicom.dcmread(path) == sent
    assert len(discover(out / "ct").series) == 2

    again = pulled(orthanc.dicomweb, out)
    assert (again.present, again.new, again.images) == (2, 0, 0)
    # one image was lost here, and one came late there
    lost = next(path for name, path in files(out / "ct").items() if second[0].SeriesInstanceUID in name)
    lost.unlink()
    late = series_of("one", 4, StudyDate="20260105")[3:]
    store(orthanc, late, tmp_path / "sent")
    again = pulled(orthanc.dicomweb, out)
    assert (again.present, again.new, again.grown, again.images) == (0, 2, 2, 2)
    assert len(files(out / "ct")) == 6
    assert not files(out / "coming")

    for words in ("LU*", "LUNG?1"):
        narrow = pulled(orthanc.dicomweb, tmp_path / words, [*CT, f"SeriesDescription={words}"])
        assert (narrow.studies, narrow.new, narrow.images) == (2, 1, 2)
    with pytest.raises(InputError, match="more than 1 studies match"):
        pulled(orthanc.dicomweb, tmp_path / "many", limits=PullLimits(free_gb=0, studies=1))
    nothing = pulled(orthanc.dicomweb, tmp_path / "none", ["StudyDate=19990101"])
    assert nothing == Pulled()


def test_the_command(
    orthanc: Any,
    series_of: Callable[..., list[pydicom.Dataset]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in USER.items():
        monkeypatch.setenv(name, value)
    store(orthanc, series_of("one", 2, StudyDate="20260105"), tmp_path / "sent")
    command = ["pull", str(tmp_path / "out"), "--dicomweb", orthanc.dicomweb, "--keep-free", "0"]
    assert main([*command, "--query", "StudyDate=20260105"]) == 0
    line = capsys.readouterr().out.strip()
    assert re.fullmatch(
        r"1 series pulled \(2 images, 0\.\d MB\), 0 already there, 0 not whole, of 1 studies at \S+, into "
        r"\S+/out/ct; log: \S+\.log",
        line,
    )
    assert main([*command, "--query", "StudyDate=20260105", "--most-images", "1"]) == 1
    assert "more than --most-images" in capsys.readouterr().err
    assert main(command) == InputError.exit_code
    monkeypatch.setenv("DEEPCAC2_DICOMWEB_PASSWORD", "wrong")
    assert main([*command, "--query", "StudyDate=20260105"]) == DestinationRefused.exit_code
    assert "does not accept the credentials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ([], "every study there is"),
        (["PatientID=*"], "every study there is"),
        (["Modality=CT"], "every study there is"),
        (["StudyDat=20260101"], "StudyDate"),
        (["Rows=512"], "none of studies or series"),
        (["StudyDate=2026-01-01"], "no date"),
        (["StudyDate=20261301"], "no date"),
        (["StudyDate=20260131-20260101"], "ends before it begins"),
        (["StudyDate"], "KEYWORD=VALUE"),
        (["StudyDate=20260101", "StudyDate=20260102"], "given twice"),
        (["StudyDate=20260101", "Modality=MR"], "only CT"),
        (["StudyInstanceUID=../../etc"], "no UID"),
        (["ModalitiesInStudy=ct"], "no code"),
    ],
)
def test_a_query_that_finds_nothing_or_everything_is_refused(queries: list[str], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        Query.parse(queries)


def test_tags_are_keywords() -> None:
    assert Query.parse(["00080020=20260101-"]).study == {"StudyDate": "20260101-"}


# --- against services that lie ----------------------------------------------------------------------------


class Service:
    """A DICOMweb service of one study with one series, which answers as it is told."""

    def __init__(self, images: list[pydicom.Dataset]) -> None:
        self.study, self.series = str(images[0].StudyInstanceUID), str(images[0].SeriesInstanceUID)
        self.date = "20260105"
        self.contents: dict[str, bytes] = {}
        for ds in images:
            written = BytesIO()
            ds.save_as(written)
            self.contents[str(ds.SOPInstanceUID)] = written.getvalue()
        self.named = list(self.contents)
        self.page, self.warning = 1000, ""
        self.body: Callable[[bytes], bytes] = lambda part: part
        self.kind = 'multipart/related; type="application/dicom"; boundary="x.y"'
        self.busy = 0
        self.asked: list[str] = []

    def answer(self, path: str) -> tuple[int, str, bytes]:
        self.asked.append(path)
        if self.busy:
            self.busy -= 1
            return 503, "text/plain", b""
        place, keys = urlsplit(path).path, parse_qs(urlsplit(path).query)
        if place.endswith("/studies"):
            return self._listed(keys, [{"0020000D": self.study, "00080020": self.date}])
        if place.endswith("/series"):
            return self._listed(keys, [{"0020000E": self.series, "00080060": "CT"}])
        if place.endswith("/instances"):
            return self._listed(keys, [{"00080018": uid} for uid in self.named])
        content = self.contents[place.rpartition("/")[2]]
        part = b"--x.y\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--x.y--\r\n"
        return 200, self.kind, self.body(part)

    def _listed(self, keys: dict[str, list[str]], results: list[dict[str, Any]]) -> tuple[int, str, bytes]:
        start = int(keys.get("offset", ["0"])[0])
        some = results[start : start + self.page]
        items = [{tag: {"vr": "UI", "Value": [value]} for tag, value in one.items()} for one in some]
        return 200, "application/dicom+json", json.dumps(items).encode()


@contextmanager
def served(service: Service) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, content = service.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            if service.warning:
                self.send_header("Warning", service.warning)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def service(series_of: Callable[..., list[pydicom.Dataset]]) -> Service:
    return Service(series_of("lied", 3, StudyDate="20260105"))


def test_a_page_of_one_at_a_time(service: Service, tmp_path: Path) -> None:
    service.page = 1
    with served(service) as url:
        assert pulled(url, tmp_path).images == 3


@pytest.mark.parametrize(
    "uid", ["../../../evil", "/etc/passwd", "1.2.3/../4", "..", "", "1" * 65, "1.2.3\0", ["1.2"], {}, 7, None]
)
@pytest.mark.parametrize("what", ["study", "series", "named"])
def test_uids_that_are_none_never_become_paths(service: Service, tmp_path: Path, what: str, uid: Any) -> None:
    setattr(service, what, [uid] if what == "named" else uid)
    out = tmp_path / "a" / "b" / "out"
    with served(service) as url:
        found = pulled(url, out)
    assert (found.problems, found.images) == (1, 0)
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["out"]
    assert not files(tmp_path)


def test_a_service_that_ignores_what_was_asked_for(service: Service, tmp_path: Path) -> None:
    service.date = "20250105"
    with served(service) as url, pytest.raises(DestinationRefused, match="StudyDate"):
        pulled(url, tmp_path)
    assert not files(tmp_path)


def test_a_service_that_hides_results(service: Service, tmp_path: Path) -> None:
    service.warning = '299 here: "There are additional results that can be requested"'
    service._listed = lambda keys, results: Service._listed(service, {}, results)  # type: ignore[method-assign]
    with served(service) as url, pytest.raises(DestinationRefused, match="more results than it gives"):
        pulled(url, tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body[: len(body) // 2], "cut short"),
        (lambda body: body[:-8] + b"\r\n" + body, "several parts"),
        (lambda body: b"", "no part"),
        (lambda body: b"--x.y\r\n\r\nno DICOM\r\n--x.y--", "another image"),
        (lambda body: b"-" * 20_000, "no part"),
    ],
)
def test_answers_that_hold_no_image(
    service: Service, tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    service.body = change
    reasons: list[str] = []
    with served(service) as url:
        found = pulled(url, tmp_path, tell=lambda uid, reason: reasons.append(reason))
    assert (found.problems, found.images, found.new) == (1, 0, 0)
    assert said in reasons[0]
    assert not [p for p in tmp_path.rglob("*.dcm") or () if p.is_file()]


def test_another_image_than_was_asked_for(service: Service, tmp_path: Path) -> None:
    first, second, third = service.named
    service.contents[second] = service.contents[first]
    with served(service) as url:
        found = pulled(url, tmp_path)
    # what is right is kept for the next time, and no run sees it
    assert (found.problems, found.images, found.new) == (1, 2, 0)
    assert not files(tmp_path / "ct")
    assert {p.name for p in files(tmp_path / "coming").values()} == {f"{u}.dcm" for u in (first, third)}


def test_what_came_is_not_asked_for_again(
    service: Service, series_of: Callable[..., list[pydicom.Dataset]], tmp_path: Path
) -> None:
    whole = dict(service.contents)
    service.contents[service.named[2]] = b"damaged"
    with served(service) as url:
        assert pulled(url, tmp_path).images == 2
        service.contents = whole
        service.asked.clear()
        assert pulled(url, tmp_path).images == 1
    assert sum("/instances/" in path for path in service.asked) == 1
    assert len(files(tmp_path / "ct")) == 3


def test_limits(service: Service, tmp_path: Path) -> None:
    with served(service) as url:
        assert pulled(url, tmp_path, limits=PullLimits(free_gb=0, instance_mb=0.001)).problems == 1
        assert pulled(url, tmp_path, limits=PullLimits(free_gb=0, images=2)).problems == 1
        with pytest.raises(DiskFull, match="keep-free"):
            pulled(url, tmp_path, limits=PullLimits(free_gb=shutil.disk_usage(tmp_path).total / 1e9))
    assert not files(tmp_path)


def test_a_busy_service_is_asked_again(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepcac2.delivery.sending._FIRST_WAIT", 0.01)
    service.busy = 2
    with served(service) as url:
        assert pulled(url, tmp_path, retries=2).images == 3
        service.busy = 9
        with pytest.raises(DestinationUnreachable, match="goes on"):
            pulled(url, tmp_path, retries=1)


def test_a_plain_file_is_taken_too(service: Service, tmp_path: Path) -> None:
    service.kind = "application/dicom"
    service.body = lambda body: body.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n--x.y--\r\n")
    with served(service) as url:
        assert pulled(url, tmp_path).images == 3
    service.kind = "text/html"
    with served(service) as url, pytest.raises(DestinationRefused, match="instead of DICOM files"):
        pulled(url, tmp_path / "other")


def test_one_pull_at_a_time(service: Service, tmp_path: Path) -> None:
    import fcntl

    from deepcac2.batch.ledger import take_lock

    lock = take_lock(tmp_path / "coming" / ".lock", fcntl.LOCK_EX)
    assert lock is not None
    with lock, served(service) as url, pytest.raises(OutputBusy):
        pulled(url, tmp_path)
