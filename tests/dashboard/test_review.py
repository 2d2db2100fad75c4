"""The reading desk in the dashboard: its answers, who may ask, and a person with a mouse or a keyboard."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from deepcac2.cli.main import main
from deepcac2.dashboard.app import create_app
from deepcac2.dashboard.scans import table_of_scans
from deepcac2.dashboard.security import Access
from deepcac2.errors import InputError
from deepcac2.evaluation.datasets import annotated_sources
from deepcac2.review.journal import read_journal

HERE = "http://127.0.0.1:8000"
TOKEN = "correct horse battery"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not here")


@pytest.fixture(scope="module")
def uids(to_read: Path) -> list[str]:
    return [next(folder.iterdir()).name for folder in sorted((to_read / "results").glob("READ-*"))]


@contextmanager
def reading(to_read: Path, folder: Path, **options: Any) -> Iterator[TestClient]:
    app = create_app(to_read / "results", ct=to_read / "ct", readings=folder, **options)
    with TestClient(app, base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the readings of all tests with `client`, each with a reader of its own."""
    return tmp_path_factory.mktemp("readings") / "review"


@pytest.fixture(scope="module")
def client(to_read: Path, folder: Path) -> Iterator[TestClient]:
    with reading(to_read, folder) as client:
        yield client


def ask(client: TestClient, uid: str, **content: Any) -> Any:
    return client.post(f"/api/review/{uid}/decisions", json={"reader": "Ann", "after": 0, **content})


def test_a_case_from_its_pieces_to_its_signature(
    client: TestClient, uids: list[str], to_read: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = uids[0]
    case = client.get(f"/api/review/{uid}", params={"reader": "Ann"}).json()
    assert case["score"] == pytest.approx(case["automatic"], abs=1e-3)
    assert (case["previous"], case["next"]) == (None, uids[1])
    first = case["pieces"][0]
    assert [p["automatic"] for p in case["pieces"]] == [True, True, False, False]
    state = ask(client, uid, piece=1, to="LAD").json()
    assert state["score"] == pytest.approx(case["automatic"], abs=1e-3)
    assert state["named"]["LAD"] == pytest.approx(first["score"], abs=0.01)
    state = ask(client, uid, piece=2, to="", after=state["after"]).json()
    assert state["score"] == pytest.approx(first["score"], abs=0.01)
    assert state["piece_values"][:2] == ["LAD", ""]
    state = client.post(f"/api/review/{uid}/sign", json={"reader": "Ann", "after": state["after"]}).json()
    assert len(state["signed"]) == 1
    with_score = signed_score(folder, uid, "Ann", to_read / "ct" / "00", capsys)
    assert with_score == pytest.approx(state["score"], abs=1e-3)
    # the table has both scores, and so has the page of the case
    rows = client.get("/api/cases").json()["rows"]
    row = next(r for r in rows if r["series_uid"] == uid)
    assert row["agatston_score"] == pytest.approx(case["automatic"], abs=1e-3)
    assert [(r["reader"], r["score"]) for r in row["read"]] == [("Ann", pytest.approx(state["score"]))]
    assert client.get(f"/api/cases/{uid}").json()["read"] == row["read"]
    assert not [
        r for r in rows if r["series_uid"] != uid and any(one["reader"] == "Ann" for one in r["read"])
    ]


def test_slices_and_values_are_those_of_the_ct(client: TestClient, uids: list[str]) -> None:
    uid = uids[0]
    case = client.get(f"/api/review/{uid}", params={"reader": "Sue"}).json()
    n, index = case["rows"] * case["columns"], case["pieces"][0]["indices"][0]
    data = client.get(f"/api/review/{uid}/slices/{index}.bin").content
    assert len(data) == 5 * n
    hu, number = np.frombuffer(data, "<i2", n), np.frombuffer(data, "<u2", n, 2 * n)
    assert (hu[number == 1] >= 130).all()
    assert (number == 1).any()
    ask(client, uid, piece=1, to="RCA", reader="Sue")
    values = client.get(f"/api/review/{uid}/values/{index}.bin", params={"reader": "Sue"}).content
    assert (np.frombuffer(values, np.uint8)[number == 1] == 4).all()
    assert client.get(f"/api/review/{uid}/slices/900.bin").status_code == 404
    assert client.get(f"/api/review/{uid}/slices/x.bin").status_code == 422


def test_the_work_list_tells_no_reader_what_another_found_before_he_has_signed(
    client: TestClient, uids: list[str]
) -> None:
    def listed(reader: str, **more: str) -> Any:
        return client.get("/api/review", params={"reader": reader, **more}).json()

    uid = uids[1]
    assert listed("Dan")["counts"] == {"not read": 3, "begun": 0, "read": 0, "differ": 0}
    after = ask(client, uid, piece=1, to="", reader="Dan").json()["after"]
    assert listed("Dan")["counts"]["begun"] == 1
    client.post(f"/api/review/{uid}/sign", json={"reader": "Dan", "after": after})
    assert [r["series_uid"] for r in listed("Dan", state="read")["rows"]] == [uid]
    others = listed("Dan", state="not read")
    assert [r["series_uid"] for r in others["rows"]] == [uids[0], uids[2]]
    assert others["found"] == others["counts"]["not read"] == 2
    assert len(listed("Nobody yet", state="not read")["rows"]) == 3
    assert listed("Dan", state="begun")["rows"] == []
    (eve,) = (r for r in listed("Eve")["rows"] if r["series_uid"] == uid)
    assert eve["states"] == ["not read"]
    assert [(r["reader"], r["state"], r["score"]) for r in eve["readers"]] == [("Dan", "read", None)]
    client.post(f"/api/review/{uid}/sign", json={"reader": "Eve", "after": 0})
    (eve,) = (r for r in listed("Eve")["rows"] if r["series_uid"] == uid)
    assert eve["states"] == ["differ", "read"]
    assert eve["readers"][0]["score"] is not None
    assert client.get("/api/review", params={"state": "done"}).status_code == 422


@pytest.mark.parametrize(
    "content",
    [
        {"piece": 99, "to": "LAD"}, {"piece": 0, "to": "LAD"}, {"piece": 1, "to": "gold"}, {"piece": 1},
        {"piece": "1", "to": "LAD"}, {"piece": True, "to": "LAD"},
        {"piece": 1, "to": "LAD", "reader": "../x"},
        {"piece": 1, "to": "LAD", "reader": 5}, {"piece": 1, "to": "LAD", "after": "0"},
        {"index": 12, "to": "LAD", "runs": [[1, 2]]}, {"index": 12, "to": "LAD", "runs": [[1, 2, 1 << 40]]},
        {"index": 12, "to": "LAD", "runs": [[1, 2, 3]] * 5000},
        {"index": 1e9, "to": "LAD", "runs": [[1, 2, 3]]},
        {"piece": 1, "index": 12, "to": "LAD", "runs": [[1, 2, 3]]}, {"piece": 1, "to": "perhaps coronary"},
    ],
)  # fmt: skip
def test_what_is_no_decision_is_refused_and_writes_nothing(
    client: TestClient, uids: list[str], folder: Path, content: dict[str, Any]
) -> None:
    answer = ask(client, uids[0], **{"reader": "Nobody", **content})
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert not [p for p in folder.rglob("Nobody.jsonl") if read_journal(p).entries]


def test_size_uid_and_json(client: TestClient, uids: list[str]) -> None:
    here = f"/api/review/{uids[0]}/decisions"
    json_ = {"Content-Type": "application/json"}
    assert client.post(here, content=b"[" + b"1," * 200_000, headers=json_).status_code == 413
    assert client.post(here, content=b"{", headers=json_).status_code == 422
    assert client.post(here, content=b"[]", headers=json_).status_code == 422
    assert client.get("/api/review/..%2F..%2Fetc").status_code in (400, 404)
    assert client.get("/api/review/1.2.3'OR'1", params={"reader": "Ann"}).status_code == 400
    assert client.get("/api/review/1.2.3", params={"reader": "Ann"}).status_code == 422
    assert client.get(f"/api/review/{uids[0]}", params={"reader": "a/b"}).status_code == 422
    for name in ("..%2F..%2FAnn.jsonl", "Ann.jsonl", "read-1"):
        answer = client.get(f"/api/review/{uids[0]}/signed/{name}", params={"reader": "Ann"})
        assert answer.status_code in (403, 404)


def test_an_old_page_is_told_to_load_again(client: TestClient, uids: list[str]) -> None:
    assert ask(client, uids[0], piece=1, to="LAD", reader="Old").status_code == 200
    again = ask(client, uids[0], piece=2, to="LAD", reader="Old")
    assert again.status_code == 409
    assert "load it again" in again.json()["error"]


@pytest.mark.parametrize("what", ["decisions", "undo", "sign"])
def test_only_the_own_page_may_decide(client: TestClient, uids: list[str], folder: Path, what: str) -> None:
    path = f"/api/review/{uids[0]}/{what}"
    body = json.dumps({"reader": "Mallory", "after": 0, "piece": 1, "to": ""})
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Origin": "http://evil.example"},
        {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"},
    ):
        assert client.post(path, content=body, headers=headers).status_code == 403
    for method in ("PUT", "DELETE", "PATCH"):
        assert client.request(method, path, content=body).status_code == 405
    assert client.post(path, content=body, headers={"Host": "evil.example"}).status_code == 421
    assert not list(folder.rglob("Mallory*"))


def test_without_the_token_nobody_reads_or_decides(to_read: Path, tmp_path: Path, uids: list[str]) -> None:
    with reading(to_read, tmp_path / "review", access=Access(token=TOKEN)) as client:
        assert ask(client, uids[0], piece=1, to="LAD").status_code == 401
        assert client.get("/api/review").status_code == 401
        assert client.get(f"/api/review/{uids[0]}/slices/12.bin").status_code == 401
        key = {"Authorization": f"Bearer {TOKEN}"}
        content = {"reader": "Ann", "after": 0, "piece": 1, "to": "LAD"}
        address = f"/api/review/{uids[0]}/decisions"
        assert client.post(f"{address}?token={TOKEN}", json=content).status_code == 401
        assert client.post(address, json=content, headers=key).status_code == 200


def test_without_a_folder_of_readings_nothing_is_taken(to_read: Path, uids: list[str]) -> None:
    app = create_app(to_read / "results", ct=to_read / "ct")
    with TestClient(app, base_url=HERE) as client:
        assert ask(client, uids[0], piece=1, to="LAD").status_code == 405
        assert client.get("/api/review").status_code == 404
        assert client.get("/api/about").json()["review"] is False
    with pytest.raises(InputError, match="--ct"):
        create_app(to_read / "results", readings=Path("nowhere"))


def test_a_full_disk_is_told_and_what_was_not_written_does_not_count(
    client: TestClient, uids: list[str], folder: Path
) -> None:
    assert ask(client, uids[0], piece=1, to="LAD", reader="Full").status_code == 200
    (journal,) = folder.rglob("Full.jsonl")
    kept = journal.read_bytes()
    journal.unlink()
    journal.mkdir()
    answer = ask(client, uids[0], piece=2, to="LAD", after=2, reader="Full")
    assert answer.status_code == 507
    assert "does not count" in answer.json()["error"]
    assert str(folder) not in answer.json()["error"]
    journal.rmdir()
    journal.write_bytes(kept)
    assert client.get(f"/api/review/{uids[0]}", params={"reader": "Full"}).json()["after"] == 2


def test_scans_without_results_become_a_set_to_train_on(to_read: Path, tmp_path: Path) -> None:
    review = tmp_path / "review"
    with table_of_scans(to_read / "ct") as folder:
        app = create_app(folder, ct=to_read / "ct", readings=review)
        with TestClient(app, base_url=HERE) as client:
            rows = client.get("/api/review", params={"reader": "Ann"}).json()["rows"]
            assert [r["patient_id"] for r in rows] == ["READ-00", "READ-01", "READ-02"]
            uid = rows[0]["series_uid"]
            case = client.get(f"/api/review/{uid}", params={"reader": "Ann"}).json()
            assert (case["automatic"], case["score"], case["has_heart"]) == (None, 0, False)
            after = 0
            for piece, to in ((1, "LAD"), (2, "coronary"), (3, "aortic valve"), (4, "unsure")):
                after = ask(client, uid, piece=piece, to=to, after=after).json()["after"]
            state = client.post(f"/api/review/{uid}/sign", json={"reader": "Ann", "after": after}).json()
            scores = [p["score"] for p in case["pieces"]]
            assert state["score"] == pytest.approx(sum(scores[:2]), abs=0.02)
    (source,) = annotated_sources(review / "annotated" / "Ann")
    scan = source.load()
    assert source.patient == "READ-00"
    assert scan.calcium is not None
    assert scan.arteries is not None
    assert scan.others is not None
    assert scan.unsure is not None
    counted = [int(m.sum()) for m in (scan.calcium, scan.arteries.mask, scan.others.mask, scan.unsure)]
    assert counted[0] > counted[1] > 0
    assert min(counted[2:]) > 0
    assert (scan.volume.hu[scan.calcium] >= 130).all()


class Server:
    """The command itself, in a process of its own."""

    def __init__(self, to_read: Path, review: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.origin = f"http://127.0.0.1:{self.port}"
        folders = [str(to_read / "results"), "--ct", str(to_read / "ct"), "--review", str(review)]
        command = [sys.executable, "-m", "deepcac2", "dashboard", *folders, "--port", str(self.port)]
        self._command = command
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_a_server_killed_while_decisions_come_in_loses_none_that_it_took(
    to_read: Path, tmp_path: Path, uids: list[str]
) -> None:
    import threading
    import urllib.request

    server = Server(to_read, tmp_path / "review")
    taken: list[int] = []
    begun = threading.Event()

    def decide() -> None:
        after = 0
        try:
            for nr in range(500):
                content = {"reader": "Ann", "after": after, "piece": 1 + nr % 4, "to": ("LAD", "RCA")[nr % 2]}
                request = urllib.request.Request(
                    f"{server.origin}/api/review/{uids[0]}/decisions",
                    json.dumps(content).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    after = json.loads(answer.read())["after"]
                taken.append(after)
                if len(taken) > 8:
                    begun.set()
        except OSError:
            pass
        begun.set()

    thread = threading.Thread(target=decide)
    thread.start()
    begun.wait(120)
    server.kill()
    thread.join(60)
    (path,) = (tmp_path / "review").rglob("Ann.jsonl")
    journal = read_journal(path)
    assert len(taken) > 8
    assert len(journal.entries) >= taken[-1]
    assert [e.n for e in journal.entries] == list(range(1, len(journal.entries) + 1))
    with reading(to_read, tmp_path / "review") as client:
        case = client.get(f"/api/review/{uids[0]}", params={"reader": "Ann"}).json()
        assert case["after"] == len(journal.entries)
        assert case["score"] == pytest.approx(journal.entries[-1].score, abs=1e-3)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, which is not here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site(to_read: Path, tmp_path_factory: pytest.TempPathFactory, serve: Any) -> tuple[str, Path]:
    """Address of a desk, and its folder of readings."""
    review = tmp_path_factory.mktemp("desk") / "review"
    return str(serve(create_app(to_read / "results", ct=to_read / "ct", readings=review))), review


class Person:
    """Somebody at a browser of his own."""

    def __init__(self, browser: Any, origin: str, name: str) -> None:
        self.said: list[str] = []
        self.context = browser.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(f"{origin}/review")
        self.page.wait_for_selector("#reader")
        self.page.keyboard.type(name)  # the field has the focus
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("table.worklist")

    def settled(self) -> None:
        """Until all decisions are acknowledged and drawn."""
        self.page.wait_for_selector("canvas[data-drawn]")
        self.page.wait_for_selector("#saved:not([data-waiting])", state="attached")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
            self.settled()

    def score(self) -> float:
        return float(self.page.locator("strong[data-score]").get_attribute("data-score"))

    def close(self) -> None:
        self.context.close()
        assert self.said == []


def place_of(person: Person, piece: int, case: dict[str, Any]) -> tuple[float, float]:
    """Where on the page the middle of a piece lies; the canvas shows all of the box, in true proportions."""
    box = person.page.locator("canvas").bounding_box()
    _, dy, dx = case["spacing"]
    height, width = case["rows"] * dy, case["columns"] * dx
    scale = min(box["width"] / width, box["height"] / height)
    _, row, column = case["pieces"][piece - 1]["centre"]
    x = box["x"] + (box["width"] - width * scale) / 2 + (column + 0.5) * dx * scale
    y = box["y"] + (box["height"] - height * scale) / 2 + (row + 0.5) * dy * scale
    return x, y


def signed_score(review: Path, uid: str, reader: str, ct: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """What `deepcac2 score` says of the SEG of the last signature."""
    seg = max(review.glob(f"cases/*/{uid}/{reader}/read-*/cac.seg.dcm"))
    capsys.readouterr()
    assert main(["score", str(ct), str(seg), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["total"])


@pytest.mark.slow
@needs_browser
def test_all_cases_with_the_keyboard_alone(
    site: tuple[str, Path], browser: Any, uids: list[str], to_read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin, review = site
    ann = Person(browser, origin, "Ann")
    ann.page.get_by_role("link", name="Read the next one").focus()
    ann.press("Enter")
    for nr, uid in enumerate(uids):
        ann.page.wait_for_url(f"**/review/{uid}")
        ann.settled()
        ann.press("2", "ArrowRight", "x", "ArrowRight", "4")  # the first is the LAD's, the second is out …
        before = ann.score()
        ann.press("ArrowRight", "u", "z", "b", "3", "ArrowLeft", " ", "Escape")
        assert ann.score() > before  # what the brush took of the fourth
        ann.press("ArrowUp", "ArrowUp", "PageDown", "w", "+", "-", "o", "o")
        score = ann.score()
        ann.page.keyboard.press("s")
        ann.page.wait_for_selector("dialog[open]")
        ann.page.keyboard.press("Enter")
        ann.page.wait_for_selector("section[aria-label=Signed]:not([hidden])")
        ann.settled()
        assert signed_score(review, uid, "Ann", to_read / "ct" / f"{nr:02d}", capsys) == pytest.approx(
            score, abs=1e-3
        )
        ann.page.keyboard.press(".")
    ann.close()


@needs_browser
def test_with_the_mouse_while_another_reads_the_same_case(
    site: tuple[str, Path], browser: Any, uids: list[str], to_read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin, review = site
    uid = uids[2]
    with reading(to_read, review.parent / "unused") as client:
        case = client.get(f"/api/review/{uid}", params={"reader": "Bob"}).json()
    bob, cid = Person(browser, origin, "Bob"), Person(browser, origin, "Cid")
    for one in (bob, cid):
        one.page.get_by_role("link", name="READ-02").click()
        one.settled()
    automatic = bob.score()
    assert automatic == pytest.approx(case["automatic"], abs=1e-3)
    bob.page.mouse.click(*place_of(bob, 1, case))
    bob.page.locator(".palette button", has_text="RCA").click()
    bob.settled()
    cid.page.mouse.dblclick(*place_of(cid, 1, case))  # leave out
    cid.settled()
    assert cid.score() == pytest.approx(automatic - case["pieces"][0]["score"], abs=0.02)
    assert bob.score() == pytest.approx(automatic, abs=1e-3)
    assert "RCA" in bob.page.locator("section[aria-label='Score by artery']").inner_text()
    # the brush over what is joined, in one slice
    bob.page.locator("section[aria-label=Pieces] button", has_text="4").click()
    bob.settled()
    bob.page.get_by_role("button", name="Brush", exact=True).click()
    x, y = place_of(bob, 4, case)
    bob.page.mouse.move(x - 8, y)
    bob.page.mouse.down()
    bob.page.mouse.move(x + 8, y, steps=4)
    bob.page.mouse.up()
    bob.settled()
    painted = bob.score()
    assert automatic < painted < automatic + case["pieces"][3]["score"]
    bob.page.get_by_role("button", name="Undo").click()
    bob.settled()
    assert bob.score() == pytest.approx(automatic, abs=1e-3)
    for one in (bob, cid):
        one.page.get_by_role("button", name="Sign").click()
        one.page.locator("dialog").get_by_role("button", name="Sign").click()
        one.page.wait_for_selector("section[aria-label=Signed]:not([hidden])")
        one.settled()
    scores = [signed_score(review, uid, name, to_read / "ct" / "02", capsys) for name in ("Bob", "Cid")]
    assert scores == pytest.approx([bob.score(), cid.score()], abs=1e-3)
    cid.page.get_by_role("link", name="work list").click()
    cid.page.wait_for_selector("table.worklist")
    row = cid.page.locator("tr", has_text="READ-02")
    assert "differ" in row.inner_text()
    cid.page.goto(f"{origin}/?search=READ-02")
    cid.page.wait_for_selector("table.cases tbody tr")
    assert "Bob" in cid.page.locator("table.cases tbody").inner_text()
    bob.close()
    cid.close()


def test_files_that_name_the_patient_are_handed_out_only_with_phi(
    client: TestClient, to_read: Path, folder: Path, uids: list[str], tmp_path: Path
) -> None:
    for path in (
        f"/api/cases/{uids[0]}/files/cac.seg.dcm",
        f"/api/review/{uids[0]}/signed/cac.seg.dcm?reader=Ann",
    ):
        answer = client.get(path)
        assert answer.status_code == 403
        assert "--show-phi" in answer.json()["error"]
    for name in ("details.json", "preview.png", "..%2Fcac.seg.dcm", "nothing.dcm", "cac.pdf"):
        assert client.get(f"/api/cases/{uids[0]}/files/{name}").status_code == 404
    with reading(to_read, tmp_path / "phi", show_phi=True) as open_:
        seg = open_.get(f"/api/cases/{uids[0]}/files/cac.seg.dcm")
        assert seg.content == (to_read / "results" / "READ-00" / uids[0] / "cac.seg.dcm").read_bytes()


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_has_a_name_and_fits(
    site: tuple[str, Path], browser: Any, uids: list[str], width: int
) -> None:
    origin, _ = site
    dora = Person(browser, origin, "Dora")
    dora.page.set_viewport_size({"width": width, "height": 900})
    for address in ("/review", f"/review/{uids[0]}"):
        dora.page.goto(origin + address)
        dora.page.wait_for_selector("table.worklist, canvas[data-drawn]")
        unnamed = dora.page.evaluate(
            """() => [...document.querySelectorAll('input, select, button, a[href], [role=img], canvas')]
            .filter(e => e.offsetParent && !(e.getAttribute('aria-label') || e.labels?.length
                || e.textContent.trim()))
            .map(e => e.outerHTML)"""
        )
        assert unnamed == []
        assert dora.page.evaluate("() => document.documentElement.scrollWidth") <= width
    dora.close()
