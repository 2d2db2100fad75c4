"""Results folders and requests made to do harm: each is an answer of one line, and nothing hangs or grows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydicom
import pytest
from fastapi import FastAPI
from pyarrow import parquet
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.files import read_details, read_json
from deepcac2.dashboard.security import Access, Guard, Refused, check_address
from deepcac2.dashboard.views import picture, place_of
from deepcac2.errors import InputError, InputUnreadable
from deepcac2.pipeline.results import ResultRow, write_parquet

HERE = "http://127.0.0.1:8000"
SECRET = "not for others"


class Folder:
    """A results folder of many series, each with a study of its own, and one application over it."""

    def __init__(self, home: Path) -> None:
        self.root, self.secret, self._taken = home / "results", home / "secret", 0
        rows = []
        for n in range(1, 100):
            (self.root / "P" / f"{n}").mkdir(parents=True)
            rows.append(
                ResultRow(
                    patient_id="P", study_uid=f"{n}", series_uid=f"{n}.1", status="scored", folder=f"P/{n}"
                )
            )
        write_parquet(self.root / "results.parquet", rows)
        self.secret.write_text(json.dumps({"status": SECRET, "made_with": SECRET}))
        self.app = create_app(self.root)

    def take(self) -> tuple[int, Path]:
        """A series that no other test has seen, and its folder."""
        self._taken += 1
        return self._taken, self.root / "P" / f"{self._taken}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def shared(folder: Folder) -> Iterator[TestClient]:
    with TestClient(folder.app, base_url=HERE) as client:
        yield client


@pytest.fixture
def client(shared: TestClient, caplog: pytest.LogCaptureFixture) -> Iterator[TestClient]:
    """A client; nothing may be logged."""
    with caplog.at_level(logging.WARNING):
        yield shared
    assert caplog.records == []


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with one series."""
    row = ResultRow(patient_id="P", study_uid="1", series_uid="1.1", status="scored")
    write_parquet(tmp_path / "results.parquet", [row])
    return tmp_path


def everything(client: TestClient, n: int) -> dict[str, Any]:
    """All that is answered about a series, each well."""
    for path in (f"studies?StudyInstanceUID={n}", f"series?StudyInstanceUID={n}"):
        assert client.get(f"/dicomweb/{path}").status_code == 200, path
    assert client.get(f"/api/cases/{n}.1/slices").status_code == 404
    found = client.get(f"/api/cases/{n}.1")
    assert found.status_code == 200
    assert SECRET not in found.text
    content: dict[str, Any] = found.json()
    return content


@contextlib.contextmanager
def pipe(path: Path, content: bytes) -> Iterator[None]:
    """A named pipe; whoever opens it to read waits, which none may, and gets what must not be read."""
    os.mkfifo(path)

    done = threading.Event()
    waited: list[int] = []

    def feed() -> None:
        while not done.wait(0.5):
            with contextlib.suppress(OSError):
                writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # fails where nobody waits
                waited.append(writing)
                os.write(writing, content)
                os.close(writing)

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        yield
    finally:
        done.set()
        feeding.join()
        path.unlink()
    assert waited == []


@pytest.mark.parametrize("name", ["preview.png", "details.json", "a.dcm"])
@pytest.mark.parametrize("kind", ["outside", "pipe", "device", "loop", "folder"])
def test_a_file_that_is_none_of_the_results(folder: Folder, client: TestClient, name: str, kind: str) -> None:
    n, home = folder.take()
    place = home / name
    targets = {"outside": folder.secret, "device": "/dev/zero", "loop": name}
    if name == "a.dcm":
        (home / "details.json").write_text('{"outputs": ["a.dcm"]}')
        targets["outside"] = folder.secret.with_name(f"{n}.dcm")
        _image(folder.secret.with_name(f"{n}.dcm"), n, frames=1, side=16)
    if kind in targets:
        place.symlink_to(targets[kind])
    elif kind == "folder":
        place.mkdir()
    with pipe(place, b'{"status": "from the pipe"}') if kind == "pipe" else contextlib.nullcontext():
        found = everything(client, n)
        assert client.get(f"/api/cases/{n}.1/preview.png").status_code == 404
        assert found["preview"] is False
        assert found["segmentation"] is None
        assert found["details"] == ({"outputs": ["a.dcm"]} if name == "a.dcm" else None)
        assert client.get(f"/dicomweb/studies/{n}").status_code == 404


@pytest.mark.parametrize(
    "place", ["a\0b", "n" * 300, "loop", "loop/x", "\n", "/dev/fd/0", "results.parquet", "x/" * 3000]
)
def test_a_folder_that_is_no_path(tmp_path: Path, place: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    row = {"folder": place}
    assert picture(tmp_path, row) is None
    with pytest.raises(InputUnreadable):
        read_details(place_of(tmp_path, row, "details.json"), tmp_path)


def test_a_link_within_the_results_is_followed(folder: Folder, client: TestClient) -> None:
    n, home = folder.take()
    (folder.root / "shared.png").write_bytes(b"picture")
    (home / "preview.png").symlink_to("../../shared.png")
    assert client.get(f"/api/cases/{n}.1/preview.png").content == b"picture"


def test_the_table_outside(results: Path) -> None:
    outside = results.parent / f"{results.name}.parquet"
    (results / "results.parquet").rename(outside)
    (results / "results.parquet").symlink_to(outside)
    with pytest.raises(InputUnreadable, match="outside"):
        create_app(results)


@pytest.mark.parametrize("kind", ["outside", "pipe"])
def test_the_facts_of_the_run_outside(tmp_path: Path, kind: str) -> None:
    (tmp_path / "results").mkdir()
    run = tmp_path / "results" / "run.json"
    (tmp_path / "run.json").write_text('{"made_with": 1}')
    if kind == "outside":
        run.symlink_to("../run.json")
    blocked = pipe(run, b'{"made_with": 1}') if kind == "pipe" else contextlib.nullcontext()
    with blocked, pytest.raises(InputUnreadable):
        read_json(run, tmp_path / "results")
    assert read_json(tmp_path / "run.json", tmp_path) == {"made_with": 1}


def test_a_seg_that_unpacks_to_more_than_it_is(
    folder: Folder, client: TestClient, small_seg: Path, tmp_path: Path, deflated_segs
) -> None:
    """It is none; the same SEG, Deflated, is served. In full size 1 GB."""
    n, home = folder.take()
    (home / "details.json").write_text('{"outputs": ["a.dcm"]}')
    ds = pydicom.dcmread(small_seg)
    ds.StudyInstanceUID, frames = str(n), ds.NumberOfFrames
    ds.save_as(tmp_path / "seg.dcm")
    place = f"/dicomweb/studies/{n}/series/{ds.SeriesInstanceUID}/instances/{ds.SOPInstanceUID}"
    made = deflated_segs((tmp_path / "seg.dcm").read_bytes(), 50)
    (home / "a.dcm").write_bytes(made.pop("plain"))
    accept = {"accept": 'multipart/related; type="application/octet-stream"'}
    served = client.get(f"{place}/frames/{frames}", headers=accept)
    assert served.status_code == 200
    count = ds.Rows * ds.Columns // 8
    assert ds.PixelData[(frames - 1) * count : frames * count] in served.content
    assert client.get(f"{place}/metadata").status_code == 200
    for kind in ("zeros", "private", "pixels", "items"):
        (home / "a.dcm").write_bytes(made[kind])
        tracemalloc.start()
        answers = [
            client.get(f"{place}{what}", headers=accept)
            for what in (f"/frames/{frames}", "/metadata", "/rendered", "")
        ]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert {a.status_code for a in answers} <= {404, 406}
        assert peak < 80 << 20


DETAILS = [
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 400 + b"1" + b"}" * 400,
    b'{"a": "\\ud800"}',
    b'{"a": 1' + b"0" * 5000 + b"}",
    b"[1]",
    b"7",
    b'{"series": 3}',
    b'{"series": {"modality": ["CT"]}}',
    b'{"outputs": 7}',
    b'{"outputs": [7]}',
    b'{"outputs": "a.dcm"}',
    b'{"geometry": {"origin": [1], "axes": [], "shape": []}}',
    b'{"geometry": {}}',
    b'{"score": [1]}',
    b'{"score": {"total": "1", "parameters": {}}}',
    b'{"score": {"total": 1, "parameters": {}, "lesions": [{"parts": [{"slice_index": "x", "score": 1}]}]}}',
    b'{"score": {"total": 1, "parameters": {}, "lesions": [{"parts": [{"slice_index": true, "score": 1}]}]}}',
    b'{"score": {"total": 1, "parameters": {}, "lesions": 5}}',
]


@pytest.mark.parametrize("content", DETAILS, ids=range(len(DETAILS)))
def test_details_that_are_none(folder: Folder, client: TestClient, content: bytes) -> None:
    n, home = folder.take()
    (home / "details.json").write_bytes(content)
    assert everything(client, n)["details"] is None


def test_details_of_any_size(folder: Folder, client: TestClient) -> None:
    """In full size: gigabytes of spaces."""
    n, home = folder.take()
    (home / "details.json").write_bytes(b'{"status": "' + b" " * (9 << 20) + b'"}')
    assert everything(client, n)["details"] is None


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_details_with_numbers_that_json_does_not_know(
    folder: Folder, client: TestClient, number: str
) -> None:
    """None, as for the run itself, which scores such a series again."""
    n, home = folder.take()
    (home / "details.json").write_text(f'{{"seconds": {{"a": {number}}}, "score": null}}')
    assert everything(client, n)["details"] is None


TEXTS: dict[str, Any] = {
    "patient_id": pa.array([["P", "Q"]]),
    "study_uid": pa.array([["1"]]),
    "series_uid": pa.array([["1.1"]]),
    "warnings": pa.array([["contrast"]]),
    "folder": pa.array([[None]], pa.list_(pa.string())),
    "kernel": pa.array([{"a": 1}]),
    "reason": pa.array(["x" * 3_000_000]),
    "status": pa.array([b"\xff\0"], pa.binary()),
}
NUMBERS: dict[str, Any] = {
    "n_slices": pa.array([[1, 2]]),
    "risk_group": pa.array([10**30], pa.decimal128(38)),
}


FITTING = pa.table(
    {
        "patient_id": ["P"], "study_uid": ["1"], "series_uid": ["1.1"], "status": ["scored"],
        "study_date": [""], "n_slices": [1], "folder": [""],
    }
)  # fmt: skip


def test_columns_of_other_types(results: Path) -> None:
    """Lists, records, bytes and texts of any length are shown as text, cut short."""
    parquet.write_table(
        pa.table({**dict(zip(FITTING.column_names, FITTING.columns, strict=True)), **TEXTS}),
        results / "results.parquet",
    )
    with TestClient(create_app(results), base_url=HERE) as client:
        cases = client.get("/api/cases")
        assert cases.json()["series"] == 1
        assert cases.json()["rows"][0]["patient_id"] == "[P, Q]"
        assert len(cases.content) < 20_000
        for path in ("/api/counts", "/api/export.csv", "/dicomweb/studies", "/api/about"):
            assert client.get(path).status_code == 200


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none(results: Path, name: str) -> None:
    table = {**dict(zip(FITTING.column_names, FITTING.columns, strict=True)), name: NUMBERS[name]}
    parquet.write_table(pa.table(table), results / "results.parquet")
    with pytest.raises(InputError) as caught:
        create_app(results)
    assert "\n" not in str(caught.value)


def _image(path: Path, n: int, *, frames: int, side: int = 512) -> None:
    """A CT image of several frames, each of one value: its number."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "9.9.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = str(n), "9.9", "CT"
    ds.Rows = ds.Columns = side
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 16, 16, 15, 0
    ds.PhotometricInterpretation, ds.NumberOfFrames = "MONOCHROME2", frames
    values = np.arange(1, frames + 1, dtype=np.uint16)[:, None, None]
    ds.PixelData = np.broadcast_to(values, (frames, side, side)).tobytes()
    ds.save_as(path, enforce_file_format=True)


async def _ask(app: FastAPI, path: str) -> tuple[int, int, dict[str, str]]:
    """Status, length and headers of an answer of which nothing is kept."""
    status, length, headers = 0, 0, {}

    async def send(message: Any) -> None:
        nonlocal status, length, headers
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
        length += len(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.sleep(60)

    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"127.0.0.1")], "http_version": "1.1", "scheme": "http", "root_path": "",
        "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "asgi": {"spec_version": "2.4"},
    }  # fmt: skip
    await app(scope, receive, send)
    return status, length, headers


@pytest.fixture(scope="module")
def many_frames(folder: Folder) -> str:
    """The address of an image of 64 frames, 32 MB."""
    n, home = folder.take()
    _image(home / "a.dcm", n, frames=64)
    (home / "details.json").write_text('{"outputs": ["a.dcm"]}')
    return f"/dicomweb/studies/{n}/series/9.9/instances/9.9.1"


def test_frames_are_made_while_they_are_sent(folder: Folder, many_frames: str) -> None:
    """In full size: 8,000 times one frame, 4.2 GB."""
    tracemalloc.start()
    status, length, _ = asyncio.run(
        _ask(folder.app, f"{many_frames}/frames/{','.join(map(str, range(1, 65)))}")
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert status == 200
    assert length > 64 * 512 * 512 * 2
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "asked",
    ["1,1", "2,1,2", ",".join(["1"] * 8000), ",".join(map(str, range(1, 258)))],
    ids=["twice", "again", "8000", "257"],
)
def test_frames_that_nobody_needs(client: TestClient, many_frames: str, asked: str) -> None:
    assert client.get(f"{many_frames}/frames/{asked}").status_code == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("rendered?viewport=4096,4096", 200),
        ("rendered?viewport=4097,1", 400),
        ("rendered?viewport=1,9999", 400),
        ("rendered?window=1,1e-320", 200),
        ("thumbnail?viewport=4096,4096", 200),
        ("frames/1/rendered", 200),
    ],
)
def test_pictures_have_a_largest_size(client: TestClient, many_frames: str, path: str, status: int) -> None:
    assert client.get(f"{many_frames}/{path}").status_code == status


def test_a_frame_too_large_to_decode(folder: Folder, client: TestClient) -> None:
    """Its values are there in full, so only the size is in the way."""
    n, home = folder.take()
    _image(home / "a.dcm", n, frames=1, side=16)
    (home / "details.json").write_text('{"outputs": ["a.dcm"]}')
    ds = pydicom.dcmread(home / "a.dcm")
    ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 4097, 4096, 8, 8, 7
    ds.PixelData = bytes(4097 * 4096)
    ds.save_as(home / "a.dcm")
    image = f"/dicomweb/studies/{n}/series/9.9/instances/9.9.1"
    assert client.get(f"{image}/frames/1/rendered").status_code == 406
    assert client.get(f"{image}/frames/1").status_code == 200


def test_patterns_with_many_stars(client: TestClient) -> None:
    assert client.get("/dicomweb/studies?PatientID=*P*&limit=1").status_code == 200
    assert client.get("/dicomweb/studies?PatientID=" + "*P" * 40).status_code == 400


def test_a_file_that_became_a_pipe(folder: Folder, client: TestClient) -> None:
    n, home = folder.take()
    _image(home / "a.dcm", n, frames=1, side=16)
    (home / "details.json").write_text('{"outputs": ["a.dcm"]}')
    image = f"/dicomweb/studies/{n}/series/9.9/instances/9.9.1"
    assert client.get(f"{image}/frames/1").status_code == 200
    content = (home / "a.dcm").read_bytes()
    (home / "a.dcm").unlink()
    with pipe(home / "a.dcm", content):
        for path in (f"{image}/frames/1", f"{image}/rendered", image, f"/dicomweb/studies/{n}/metadata"):
            assert client.get(path).status_code == 404


# --- who asks ---------------------------------------------------------------------------------------------


def _has_headers(headers: Any) -> bool:
    return "frame-ancestors 'none'" in headers["content-security-policy"] and (
        headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    )


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "[", "http://[v1.x]", "//[]:", "\xff"])
def test_an_origin_that_is_no_address(client: TestClient, origin: str) -> None:
    headers = {"Origin": origin.encode("latin-1"), "Content-Type": b"application/json"}
    answer = client.post("/api/sql", content='{"sql": "SELECT 1"}', headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 403
    assert _has_headers(answer.headers)


def test_every_error_has_the_headers(client: TestClient) -> None:
    json_type = {"Content-Type": "application/json"}
    found = [
        client.post("/api/sql", content=b" " * 100_000, headers=json_type),
        client.get("/nothing"),
        client.get("/dicomweb/studies/x"),
        client.get("/api/cases?x=1"),
        client.get("/", headers={"Host": "evil.example"}),
        client.put("/"),
    ]
    assert [one.status_code for one in found] == [413, 404, 400, 422, 421, 405]
    assert all(_has_headers(one.headers) for one in found)


def test_what_fails_unforeseen_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.add_middleware(Guard, access=Access())

    def fail() -> None:
        raise RuntimeError("a\nb")

    def cut() -> StreamingResponse:
        def parts() -> Iterator[bytes]:
            yield b"begun"
            raise Refused(404, "the file has gone")

        return StreamingResponse(parts())

    app.add_api_route("/fail", fail, response_model=None)
    app.add_api_route("/cut", cut, response_model=None)
    status, _, headers = asyncio.run(_ask(app, "/fail"))
    assert status == 500
    assert _has_headers(headers)
    assert asyncio.run(_ask(app, "/cut"))[:2] == (200, 5)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("deepcac2")]
    assert lines[0].startswith("internal error, please report it: RuntimeError in test_hostile.py line ")
    assert lines[1] == "an answer was cut short: the file has gone"
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("host", "header"),
    [
        ("127.0.0.2", "127.0.0.2:8000"),
        ("127.0.0.2", "localhost"),
        ("0:0:0:0:0:0:0:1", "[::1]:8000"),
        ("::1", "[0:0::1]"),
        ("127.0.0.53", "127.0.0.53"),
    ],
)
def test_an_address_it_listens_at_is_its_own(host: str, header: str) -> None:
    app = FastAPI()
    app.add_middleware(Guard, access=check_address(host, token=""))
    client = TestClient(app, base_url=HERE)
    assert client.get("/", headers={"Host": header}).status_code == 404
    for other in ("127.0.0.3", "10.0.0.1", "evil.example", "[::2]"):
        assert client.get("/", headers={"Host": other}).status_code == 421


def test_the_path_of_the_database_is_not_shown(folder: Folder, client: TestClient) -> None:
    place = str(folder.app.state.results.database.parent)
    for sql in (
        "SELECT * FROM '{}/results.duckdb'",
        "SELECT [path, error(path)] FROM duckdb_databases()",
        'SELECT [path] AS "{}/" FROM duckdb_databases() UNION ALL SELECT [value] FROM duckdb_settings()',
    ):
        answer = client.post("/api/sql", json={"sql": sql.format(place)})
        assert answer.status_code in (200, 422)
        assert place not in answer.text, sql


def test_an_answer_of_sql_has_a_largest_size(client: TestClient) -> None:
    """Numbers count as text does, and names of columns as what is below them."""
    wide = "SELECT " + ", ".join(["i"] * 3000) + " FROM range(1000) t(i)"
    answer = client.post("/api/sql", json={"sql": wide})
    assert answer.json()["more"] is True
    assert len(answer.content) < 8_000_000
