"""Who may ask and for what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from starlette.testclient import TestClient

from deepcac2.cli.main import main
from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.security import Access, check_address
from deepcac2.errors import InputError
from deepcac2.pipeline.results import ResultRow, write_parquet

HERE = "http://127.0.0.1:8000"
TOKEN = "a secret of many words"


@pytest.fixture(scope="module")
def client(dashboard_results: Path) -> Iterator[TestClient]:
    with TestClient(create_app(dashboard_results), base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def needs_token(dashboard_results: Path) -> Iterator[TestClient]:
    app = create_app(dashboard_results, access=Access(token=TOKEN))
    with TestClient(app, base_url=HERE, follow_redirects=False) as client:
        yield client


@pytest.fixture
def guarded(needs_token: TestClient) -> TestClient:
    """Without the cookie of another test."""
    needs_token.cookies.clear()
    return needs_token


def test_no_other_address_without_a_token(
    dashboard_results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DEEPCAC2_TOKEN", raising=False)
    assert main(["dashboard", str(dashboard_results), "--host", "0.0.0.0"]) == 10
    assert "set DEEPCAC2_TOKEN to a secret of at least 16 characters" in capsys.readouterr().err
    monkeypatch.setenv("DEEPCAC2_TOKEN", "short")
    assert main(["dashboard", str(dashboard_results), "--host", "0.0.0.0"]) == 10
    assert "DEEPCAC2_TOKEN is shorter than 16 characters" in capsys.readouterr().err
    assert main(["dashboard", str(dashboard_results), "--host", "127.0.0.1"]) == 10


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org", ""])
def test_addresses_that_others_reach(host: str) -> None:
    with pytest.raises(InputError, match="can be reached from other machines"):
        check_address(host, token="")
    assert check_address(host, token=TOKEN).any_address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_addresses_of_this_machine(host: str) -> None:
    assert not check_address(host, token="").any_address


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
def test_our_names(client: TestClient, host: str) -> None:
    assert client.get("/api/about", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "10.0.0.1", "", "[::1"],
)
def test_foreign_names(client: TestClient, host: str) -> None:
    """A page elsewhere that points its own name at this machine gets nothing (DNS rebinding)."""
    answer = client.get("/api/about", headers={"Host": host})
    assert answer.status_code == 421
    assert "series" not in answer.text


def test_only_reading(client: TestClient) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        assert client.request(method, "/api/cases").status_code == 405
    assert client.get("/api/sql").status_code in (404, 405)
    head = client.head("/api/about")
    assert (head.status_code, head.content) == (200, b"")


def test_sql_is_taken_from_our_own_page_only(client: TestClient) -> None:
    sql = {"sql": "SELECT 1"}
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:9000"},
    ):
        assert client.post("/api/sql", json=sql, headers=headers).status_code == 403
    plain = client.post("/api/sql", content='{"sql": "SELECT 1"}', headers={"Content-Type": "text/plain"})
    assert plain.status_code == 403
    assert client.post("/api/sql", json=sql, headers={"Origin": HERE}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/about", "/assets/app.js", "/case/1.2", "/nothing", "/api/cases?x=1"]
)
def test_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert not any(name.startswith("access-control") for name in headers)


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../app.py",
        "/assets/%2e%2e/app.py",
        "/assets/..%2fapp.py",
        "/assets//etc/passwd",
        "/api/cases/..%2f..%2fetc%2fpasswd/preview.png",
        "/api/cases/../../etc/passwd",
        "/api/cases/P001",
        "/api/cases/%00",
        "/api/cases/' OR '1'='1",
        "/case/../../etc/passwd",
    ],
)
def test_no_path_of_a_request_reaches_the_files(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404, answer.text
    assert "root:" not in answer.text


def test_a_folder_outside_the_results_is_not_read(tmp_path: Path) -> None:
    """The table is data from outside, too."""
    results, outside = tmp_path / "results", tmp_path / "secret"
    for folder in (results / "link", outside):
        folder.parent.mkdir(exist_ok=True)
    outside.mkdir()
    (outside / "details.json").write_text('{"secret": true}')
    (outside / "preview.png").write_bytes(b"secret")
    (results / "link").symlink_to(outside)
    places = ["../secret", str(outside), "link", "x/../../secret", "."]
    rows = [
        ResultRow(patient_id="A", study_uid="1", series_uid=f"1.{i}", status="scored", folder=place)
        for i, place in enumerate(places)
    ]
    write_parquet(results / "results.parquet", rows)
    with TestClient(create_app(results), base_url=HERE) as client:
        for i in range(len(places)):
            assert client.get(f"/api/cases/1.{i}").json()["details"] is None
            assert client.get(f"/api/cases/1.{i}/preview.png").status_code == 404


def test_nothing_without_the_token(guarded: TestClient) -> None:
    for path in (
        "/",
        "/assets/app.js",
        "/api/about",
        "/api/export.csv",
        "/api/cases",
        "/viewer",
        "/dicomweb/x",
    ):
        answer = guarded.get(path)
        assert answer.status_code == 401
        assert "SIM" not in answer.text
    assert guarded.post("/api/sql", json={"sql": "SELECT 1"}).status_code == 401
    assert guarded.get("/", params={"token": "another secret of words"}).status_code == 401
    assert guarded.get("/api/about", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert guarded.get("/api/about", headers={"Cookie": f"deepcac2={TOKEN}"}).status_code == 401
    assert guarded.get("/api/about", headers={"Cookie": "deepcac2=\xff".encode("latin-1")}).status_code == 401


def test_the_token_opens_and_becomes_a_cookie(guarded: TestClient) -> None:
    answer = guarded.get("/case/1.2", params={"token": TOKEN, "x": "a b"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/case/1.2?x=a+b"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert TOKEN not in answer.headers["location"]
    assert guarded.get("/api/about").status_code == 200  # the client keeps the cookie
    assert guarded.get("/api/about", params={"token": "wrong"}).status_code == 401


def test_the_redirect_stays_here(guarded: TestClient) -> None:
    for path in ("//evil.example/", "/\\evil.example", "/%0d%0aX: y"):
        place = guarded.get(HERE + path, params={"token": TOKEN}).headers["location"]
        assert place.startswith("/")
        assert place[1:2] not in ("/", "\\")
        assert "\n" not in place


def test_the_token_as_a_header(guarded: TestClient) -> None:
    assert guarded.get("/api/about", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_no_names(dashboard_results: Path, client: TestClient) -> None:
    """The table holds PatientIDs and no names, and so do the answers."""
    columns = pd.read_parquet(dashboard_results / "results.parquet").columns
    assert not [c for c in columns if "name" in c and c not in ("risk_group_name", "model_name")]
    assert "patient_name" not in client.get("/api/about").text
