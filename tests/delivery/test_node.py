"""The whole node: received, scored, filed, sent on; and what becomes of it when it is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from pyarrow import parquet
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from deepcac2.batch.run import Means
from deepcac2.delivery.inbox import CLOSED, CONFLICT, CUT, REFUSED, Limits, Waiting
from deepcac2.delivery.listening import Listen
from deepcac2.delivery.node import Node, NodeConfig, Target, _incomplete, check_places, load_config
from deepcac2.delivery.web import address_of
from deepcac2.errors import InputError, OutputInsideInput, OutputMismatch
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.run import Job

Series = Callable[..., list[pydicom.Dataset]]


@contextmanager
def node_at(folder: Path, *, workflow: str = "default", **config: Any) -> Iterator[Node]:
    """A node at work in a thread, which scores in this process."""
    told = threading.Event()
    settings = {"quiet": 0.1, "patience": 0.3, "http": "127.0.0.1:0", "limits": Limits(free_gb=0.001)}
    node = Node(
        Job(workflow=Workflow.load(workflow), output=folder / "results"),
        folder / "inbox",
        NodeConfig(listen=Listen(port=0), **{**settings, **config}),
        means=Means(),
        environment={},
        ready=lambda text: told.set(),
    )
    failure: list[BaseException] = []

    def work() -> None:
        try:
            node.run()
        except BaseException as error:
            failure.append(error)
        finally:
            told.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert told.wait(60)
        if not failure:
            yield node
    finally:
        node.stop()
        thread.join(120)
    if failure:
        raise failure[0]


def send(port: int, sent: list[pydicom.Dataset], *, abort: bool = False) -> list[int]:
    entity = AE(ae_title="TESTER")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="DEEPCAC2")
    assert association.is_established
    statuses = [int(association.send_c_store(ds).get("Status", -1)) for ds in sent]
    association.abort() if abort else association.release()
    return statuses


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def table(folder: Path) -> dict[str, dict[str, Any]]:
    rows = parquet.read_table(folder / "results" / "results.parquet").to_pylist()
    assert len({row["series_uid"] for row in rows}) == len(rows)
    return {row["series_uid"]: row for row in rows}


def done(node: Node) -> bool:
    counts = node.inbox.counts()
    return not counts["waiting"] and not counts["undelivered"] and not node._table.due


def test_what_is_sent_has_its_row_and_its_results_are_sent_on_once(
    simulated: Path, series_of: Series, orthanc: Any, tmp_path: Path
) -> None:
    """The issue in small: whole, then cut, then cut and whole, then late, then contradicted."""
    whole = [pydicom.dcmread(p) for p in sorted(next(simulated.rglob("ct")).iterdir())]
    names = ("cut", "cut-then-whole", "late", "contradicted")
    small = {name: series_of(name, 4, PatientID=name) for name in names}
    uids = {name: str(sent[0].SeriesInstanceUID) for name, sent in small.items()}
    target = Target(dimse=orthanc.address)
    with node_at(tmp_path, destinations=(target,), stow="127.0.0.1:0") as node:
        port = node.listener.port
        assert set(send(port, whole)) == {0}
        send(port, small["cut"], abort=True)
        send(port, small["cut-then-whole"][:2], abort=True)
        until(lambda: not node.listener._transfers)  # an end that is noted late counts as the last one
        send(port, small["cut-then-whole"])
        send(port, small["late"][:3])
        until(lambda: done(node) and len(table(tmp_path)) == 4)
        assert table(tmp_path)[uids["late"]]["n_slices"] == 3
        assert node.stow is not None
        DICOMwebClient(node.stow.url).store_instances(small["late"][3:])
        send(port, small["contradicted"])
        small["contradicted"][0].PatientName = "Somebody^Else"
        send(port, small["contradicted"][:1])
        send(port, whole)  # once more, all the same
        until(lambda: done(node) and len(table(tmp_path)) == 5)
        with urllib.request.urlopen(f"http://127.0.0.1:{page_of(node)}/health") as answer:
            state = json.load(answer)
    rows = table(tmp_path)
    uid = str(whole[0].SeriesInstanceUID)
    assert rows[uid]["status"] == "scored"
    assert rows[uid]["n_slices"] == 90
    assert rows[uids["late"]]["n_slices"] == 4
    assert {name: rows[u]["code"] for name, u in uids.items()} == {
        "cut": "transfer-incomplete",
        "cut-then-whole": "too-few-slices",
        "late": "too-few-slices",
        "contradicted": "transfer-incomplete",
    }
    assert "broke off after 4" in rows[uids["cut"]]["reason"]
    files = {p.name: p for p in (tmp_path / "results" / rows[uid]["folder"]).glob("*.dcm")}
    assert files.keys() == {"cac.seg.dcm", "cac.sr.dcm"}
    held = orthanc.stored()
    assert held.keys() == {str(pydicom.dcmread(p).SOPInstanceUID) for p in files.values()}
    (journal,) = (tmp_path / "results" / "logs").glob("push-*.jsonl")
    assert journal.read_text().count('"sent"') == 2
    assert state["series"] == {"scored": 1, "rejected": 4, "failed": 0, "waiting": 0}
    assert state["instances"]["again"] >= 90
    run = json.loads((tmp_path / "results" / "run.json").read_text())["series"]
    assert (run["found"], run["finished"]) == (5, True)


def page_of(node: Node) -> int:
    return node.page.port if node.page is not None else 0


def test_the_page_and_the_metrics_tell_of_no_patient(tmp_path: Path, series_of: Series) -> None:
    with node_at(tmp_path) as node:
        send(node.listener.port, series_of("a", 2, PatientID="SECRET-ID"))
        until(lambda: done(node) and bool(table(tmp_path)))
        texts = {}
        for path in ("", "health", "metrics"):
            with urllib.request.urlopen(f"http://127.0.0.1:{page_of(node)}/{path}") as answer:
                texts[path] = answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{page_of(node)}/../etc/passwd")
    assert "SECRET" not in "".join(texts.values())
    values = dict(line.rsplit(" ", 1) for line in texts["metrics"].splitlines() if not line.startswith("#"))
    assert values["deepcac2_node_up"] == "1"
    assert values['deepcac2_node_series{status="rejected"}'] == "1"
    assert values['deepcac2_node_instances_total{outcome="new"}'] == "2"
    kinds = [line.split()[2] for line in texts["metrics"].splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))


def test_a_destination_that_is_away_holds_nothing_else_up(
    quick_results: Path, tmp_path: Path, series_of: Series
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = Target(dimse=f"AWAY@127.0.0.1:{nobody.getsockname()[1]}", timeout=1)
        with node_at(tmp_path, destinations=(away,)) as node:
            send(node.listener.port, series_of("a", 2))
            until(lambda: bool(table(tmp_path)))
            name = settle(node, next(iter(table(tmp_path))), quick_results, tmp_path)
            until(lambda: bool(node.health.destinations[name]))
            assert "no connection" in node.health.destinations[name]
            assert node.inbox.counts()["undelivered"] == 1


def settle(node: Node, uid: str, results: Path, folder: Path) -> str:
    """Let a series of a node have results that are there already; the name of its destination."""
    row = {**table(folder)[uid], "status": "scored"}
    scored = next(p.parent for p in results.rglob("cac.seg.dcm"))
    name = node._targets[0][0].name
    node.inbox.settle(uid, 10, row, [name], str(scored.relative_to(folder / "results")))
    return name


def test_a_destination_that_gets_no_patients(
    quick_results: Path, tmp_path: Path, series_of: Series, orthanc: Any
) -> None:
    key = tmp_path / "keys" / "trial.key"
    sent_on = next(quick_results.rglob("cac.seg.dcm"))
    target = Target(dimse=orthanc.address, deidentify=str(key))
    with node_at(tmp_path, destinations=(target,)) as node:
        send(node.listener.port, series_of("a", 2))
        until(lambda: bool(table(tmp_path)))
        settle(node, next(iter(table(tmp_path))), quick_results, tmp_path)
        until(lambda: done(node))
    before = pydicom.dcmread(sent_on)
    (held,) = orthanc.stored()
    assert held not in (before.SOPInstanceUID, "")
    (journal,) = (tmp_path / "results" / "logs").glob("push-*.jsonl")
    assert '"without_patients": true' in journal.read_text()
    assert key.is_file()
    inside = Target(dimse=orthanc.address, deidentify=str(tmp_path / "results" / "key"))
    with pytest.raises(InputError, match="elsewhere"), node_at(tmp_path, destinations=(inside,)):
        pass


@pytest.mark.parametrize(
    ("transfer", "expected", "images", "missing", "said"),
    [
        (CLOSED, 0, 10, 0, ""),
        (CLOSED, 10, 10, 0, ""),
        (CUT, 10, 10, 0, ""),
        (CUT, 0, 10, 0, "broke off after 10"),
        (REFUSED, 0, 10, 0, "others were refused"),
        (CLOSED, 12, 10, 0, "10 of 12"),
        (CLOSED, 0, 10, 3, "3 of its images are not here"),
        (CONFLICT, 10, 10, 0, "other content"),
    ],
)
def test_what_is_said_of_a_transfer(
    transfer: str, expected: int, images: int, missing: int, said: str
) -> None:
    one = Waiting(uid="1", version=0, transfer=transfer, last=0, expected=expected, images=images)
    found = _incomplete(one, missing)
    assert (said in found) if said else not found


def test_places_and_configuration(tmp_path: Path) -> None:
    for inbox, results in (("a", "a"), ("a", "a/b"), ("a/b", "a")):
        with pytest.raises(OutputInsideInput):
            check_places(tmp_path / inbox, tmp_path / results)
    check_places(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "node.yml"
    path.write_text("listen: {aet: CAC, peers: [{aet: CT1, address: 10.0.0.0/8}]}\nquiet: 5\n")
    config = load_config(path)
    assert (config.listen.aet, config.listen.peers[0].aet, config.quiet) == ("CAC", "CT1", 5)
    assert load_config(None) == NodeConfig()
    for text, what in (
        ("quite: 5", "quiet"),
        ("quiet: -1", "below 0"),
        ("listen: {port: 70000}", "65535"),
        ("listen: {peers: [{aet: CT1, address: x}]}", "no address"),
        ("destinations: [{dimse: A@b:1, dicomweb: 'http://x'}]", "either"),
        ("destinations: [{dimse: A@b:1}, {dimse: A@b:1}]", "twice"),
        ("[1]", "node.yml"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=what):
            load_config(path)
    for text in ("x", "a:b", "127.0.0.1:70000", "127.0.0.1"):
        with pytest.raises(InputError, match="HOST:PORT"):
            address_of(text, "http")
    assert address_of("[::1]:80", "http") == ("::1", 80)


def test_another_configuration_gets_other_folders(tmp_path: Path) -> None:
    with node_at(tmp_path, http=""):
        pass
    with pytest.raises(OutputMismatch), node_at(tmp_path, workflow="screening", http=""):
        pass


def test_killed_and_started_again_it_goes_on(tmp_path: Path, series_of: Series) -> None:
    """By the command line: what was acknowledged is there, and has its row, after SIGKILL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "node.yml").write_text(
        f"listen: {{port: {port}}}\nlimits: {{free_gb: 0.001}}\nquiet: 0.5\npatience: 0.5\nhttp: ''\n"
    )
    command = [sys.executable, "-m", "deepcac2", "serve", "inbox", "results", "--config", "node.yml"]

    def begin() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*command, "--devices", "cpu", "--prefetch", "0"], cwd=tmp_path)
        until(lambda: process.poll() is not None or listening(port))
        assert process.poll() is None
        return process

    first = begin()
    try:
        sent = {name: series_of(name, 3, PatientID=name) for name in "abc"}
        assert [send(port, some) for some in sent.values()] == [[0] * 3] * 3
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    second = begin()
    try:
        path = tmp_path / "results" / "results.parquet"
        until(lambda: path.is_file() and len(table(tmp_path)) == 3)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 0
    finally:
        second.kill()
        second.wait()
    assert {row["patient_id"]: row["n_slices"] for row in table(tmp_path).values()} == dict.fromkeys("abc", 3)
    uid = str(sent["a"][0].SeriesInstanceUID)
    forget = [*command[:5], "results", "--forget", uid, "--forget", "1.2.3"]
    forgotten = subprocess.run(forget, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert forgotten.returncode == 1
    assert "1 series forgotten" in forgotten.stdout
    assert "1.2.3: there is no such series" in forgotten.stderr


def listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_under_fire(tmp_path: Path) -> None:
    """Many senders, ten kills: the benchmark that says so itself."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "node.py"
    options = ["--series", "56", "--big", "7", "--kills", "10", "--out", str(tmp_path / "fire")]
    told = subprocess.run([sys.executable, script, *options], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-3000:]
