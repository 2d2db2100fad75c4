"""A push against an archive, and of a results folder, that were made to harm."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pydicom
import pytest

from deepcac2.delivery.push import Problem, PushSummary, push
from deepcac2.delivery.sending import Credentials, DicomWeb, tls_context
from deepcac2.errors import InputUnreadable
from deepcac2.pipeline.results import ResultRow, write_parquet


@pytest.fixture
def seg(small_seg: Path) -> Path:
    return small_seg


@pytest.fixture
def results(seg: Path, tmp_path: Path) -> Path:
    """Two scored series, each with its SEG, as a run leaves them."""
    rows = []
    for name in ("a", "b"):
        folder = tmp_path / "results" / name / "1"
        folder.mkdir(parents=True)
        row = ResultRow(patient_id=name, study_uid="1", series_uid=name, status="scored", folder=f"{name}/1")
        ds = pydicom.dcmread(seg)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"2.25.{ord(name)}"
        ds.save_as(folder / "cac.seg.dcm")
        content = {"row": vars(row), "outputs": ["cac.seg.dcm"]}
        (folder / "details.json").write_text(json.dumps(content))
        rows.append(row)
    write_parquet(tmp_path / "results" / "results.parquet", rows)
    return tmp_path / "results"


Answer = Callable[[int], bytes]


class Archive(HTTPServer):
    """A STOW-RS service that takes everything, and says of it what it is told to say."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.count = answer, 0


class Handler(BaseHTTPRequestHandler):
    def do_OPTIONS(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        content = self.server.answer(self.server.count)  # type: ignore[attr-defined]
        self.server.count += 1  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def archive() -> Iterator[Callable[[Answer], DicomWeb]]:
    servers = []

    def serve(answer: Answer) -> DicomWeb:
        server = Archive(answer)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return DicomWeb(
            f"http://127.0.0.1:{server.server_port}",
            credentials=Credentials(),
            tls=tls_context({}),
            timeout=10,
        )

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def stored(number: int) -> bytes:
    """An answer that takes both instances."""
    names = [{"00081155": {"vr": "UI", "Value": [f"2.25.{ord(n)}"]}} for n in "ab"]
    return json.dumps({"00081199": {"vr": "SQ", "Value": names}}).encode()


def pushed(results: Path, destination: DicomWeb) -> tuple[PushSummary, list[Problem]]:
    problems: list[Problem] = []
    try:
        return push(results, destination, retries=0, tell=problems.append), problems
    finally:
        destination.close()


ITEM = '{"00081155": {"Value": ["2.25.97"]}, "%s": {"Value": [%s]}}'


@pytest.mark.parametrize(
    "answer",
    [
        "[" * 900_000,
        "1" + "0" * 5000,
        "\xff",
        "[1]",
        '{"00081199": 5}',
        '{"00081199": {"Value": [5]}}',
        '{"00081199": {"Value": [{"00081155": {"Value": [[]]}}]}}',
        '{"00081198": {"Value": [{"00081155": {"Value": ["2.25.97"]}, "00081197": 5}]}}',
        '{"00081198": {"Value": [%s]}}' % (ITEM % ("00081197", "1" + "0" * 300)),
        '{"00081198": {"Value": [%s]}}' % (ITEM % ("00081197", '"\\u001b[2J"')),
    ],
    ids=lambda answer: answer[:12],
)
def test_an_answer_concerns_its_instance_alone(
    results: Path, archive: Callable[[Answer], DicomWeb], answer: str
) -> None:
    """The first answer is foul, the second as it should be: the push goes on to the second."""
    first = answer.encode("latin1")
    summary, problems = pushed(results, archive(lambda n: stored(n) if n else first))
    assert (summary.sent, summary.problems) == (1, 1)
    assert problems[0].instance_uid == "2.25.97"
    assert "\x1b" not in problems[0].reason
    assert len(problems[0].reason) < 200


def test_only_regular_files_inside_are_sent(
    results: Path, seg: Path, archive: Callable[[Answer], DicomWeb]
) -> None:
    file = results / "a" / "1" / "cac.seg.dcm"
    file.unlink()
    for make in (
        lambda: os.mkfifo(file),
        lambda: file.symlink_to(seg),
        lambda: file.symlink_to("/dev/zero"),
        lambda: file.symlink_to("nowhere"),
        lambda: file.mkdir(),
    ):
        make()
        summary, problems = pushed(results, archive(stored))
        assert summary.sent + summary.present == 1
        assert any("cac.seg.dcm cannot be read" in p.reason for p in problems)
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    file.symlink_to("../../b/1/cac.seg.dcm")  # a link inside is one
    summary, problems = pushed(results, archive(stored))
    assert not problems


def test_a_table_and_a_journal_that_have_no_end(
    results: Path, seg: Path, archive: Callable[[Answer], DicomWeb]
) -> None:
    destination = archive(stored)
    pushed(results, destination)
    (journal,) = (results / "logs").glob("push-*.jsonl")
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(InputUnreadable, match="no regular file"):
        pushed(results, destination)
    journal.unlink()
    journal.symlink_to(seg)
    with pytest.raises(InputUnreadable, match="link to a file outside"):
        pushed(results, destination)


def test_a_file_that_unpacks_to_more_than_it_is(
    results: Path, archive: Callable[[Answer], DicomWeb], deflated_segs
) -> None:
    """Each is a problem in one line, and the other series is sent."""
    file = results / "a" / "1" / "cac.seg.dcm"
    made = deflated_segs(file.read_bytes(), 50)
    del made["plain"]
    for content in made.values():
        file.write_bytes(content)
        summary, (problem,) = pushed(results, archive(stored))
        assert summary.sent + summary.present == 1
        assert problem.reason.startswith("cac.seg.dcm cannot be read (")
        assert len(problem.reason) < 250
