"""The reading desk without a page: pieces, decisions, journal, signature, two readers, a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from deepcac2.cli.main import main
from deepcac2.errors import InputDamaged, InputError, OutputInsideInput
from deepcac2.review.case import ReadCase
from deepcac2.review.desk import Desk, differ
from deepcac2.review.journal import Conflict, appending, read_journal
from deepcac2.review.open import open_case_of_run
from deepcac2.review.reading import Decision, by_name, piece_values
from deepcac2.review.values import VALUES, value_of


@pytest.fixture(scope="module")
def uid(to_read: Path) -> str:
    return next((to_read / "results" / "READ-01").iterdir()).name


@pytest.fixture(scope="module")
def case(to_read: Path, uid: str) -> ReadCase:
    return open_case_of_run(to_read / "results", to_read / "ct", uid)


@pytest.fixture
def desk(case: ReadCase, tmp_path: Path) -> Desk:
    return Desk(tmp_path / "review", lambda uid: case)


def is_(name: str, piece: int) -> Decision:
    return Decision(value=value_of(name), piece=piece)


def scored_file(path: Path, ct: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """What `deepcac2 score` says of a SEG."""
    capsys.readouterr()
    assert main(["score", str(ct), str(path), "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["total"])


def test_pieces_are_the_lesions_of_the_report_and_whatever_else_is_as_bright(
    case: ReadCase, to_read: Path, uid: str
) -> None:
    details = json.loads((to_read / "results" / "READ-01" / uid / "details.json").read_text())
    lesions = details["score"]["lesions"]
    own = [piece for piece in case.pieces if piece.automatic]
    assert [p.number for p in own] == [x["index"] for x in lesions]
    assert [p.score for p in own] == pytest.approx([x["score"] for x in lesions])
    assert [list(p.indices) for p in own] == [x["slice_indices"] for x in lesions]
    assert case.automatic == pytest.approx(details["score"]["total"])
    others = [piece for piece in case.pieces if not piece.automatic]
    assert [p.number for p in others] == [3, 4]
    assert [p.score for p in others] == sorted((p.score for p in others), reverse=True)
    # every voxel of a piece is as bright as what counts, and no two pieces share one
    assert (case.volume.hu[case.number > 0] >= 130).all()
    sizes = np.bincount(case.number.ravel())[1:]
    volumes = [p.volume_mm3 / case.geometry.voxel_volume for p in case.pieces]
    assert sizes.tolist() == pytest.approx(volumes)


def test_a_reading_without_decisions_is_the_automatic_result(desk: Desk, uid: str, case: ReadCase) -> None:
    standing = desk.standing(uid, "Ann")
    assert standing.score.total == pytest.approx(case.automatic)
    assert standing.after == 0
    assert not list(desk.folder.rglob("*"))  # looking writes nothing


def test_decisions_change_the_score_as_the_scorer_does(desk: Desk, uid: str, case: ReadCase) -> None:
    first, second, third, _ = (piece.score for piece in case.pieces)
    standing = desk.decide(uid, "Ann", is_("", 1), after=0)
    assert standing.score.total == pytest.approx(second)
    standing = desk.decide(uid, "Ann", is_("RCA", 3), after=standing.after)
    assert standing.score.total == pytest.approx(second + third)
    assert by_name(case, standing.array)["RCA"].score == pytest.approx(third)
    standing = desk.decide(uid, "Ann", is_("aorta", 4), after=standing.after)
    standing = desk.decide(uid, "Ann", is_("unsure", 2), after=standing.after)
    assert standing.score.total == pytest.approx(third)
    assert piece_values(case, standing.array) == ["", "unsure", "RCA", "aorta"]
    standing = desk.undo(uid, "Ann", after=standing.after)
    assert standing.score.total == pytest.approx(second + third)
    for _ in range(3):
        standing = desk.undo(uid, "Ann", after=standing.after)
    assert standing.score.total == pytest.approx(first + second)
    assert np.array_equal(standing.array, case.base)
    with pytest.raises(InputError, match="nothing to undo"):
        desk.undo(uid, "Ann", after=standing.after)
    # nothing of it is gone: who, what it was, and what it became
    entries = standing.journal.entries
    assert [entry.n for entry in entries] == list(range(1, 10))
    assert {entry.by for entry in entries} == {"Ann"}
    assert set(entries[1].before) == {"coronary"}
    assert sum(entries[1].before.values()) >= 60  # with the rim of the mask
    assert [entry.do for entry in entries] == ["open", *["set"] * 4, *["undo"] * 4]


def test_a_stroke_takes_only_what_is_bright(desk: Desk, uid: str, case: ReadCase) -> None:
    """Half of the joined piece, in one slice; what lies around it and is dark stays as it was."""
    joined = case.pieces[2] if case.pieces[2].indices[0] == 16 else case.pieces[3]
    runs = tuple((row, 30, 16) for row in range(20, 36))
    stroke = Decision(value=value_of("LCX"), index=16, runs=runs)
    standing = desk.decide(uid, "Ann", stroke, after=0)
    whole = case.whole(standing.array)
    painted = np.argwhere(whole == value_of("LCX").value)
    assert set(painted[:, 0]) == {16}
    assert (painted[:, 1].min(), painted[:, 1].max()) == (26, 29)
    assert (painted[:, 2].min(), painted[:, 2].max()) == (40, 45)
    assert standing.score.total > float(case.automatic or 0)
    assert standing.score.total < float(case.automatic or 0) + joined.score
    entry = standing.journal.entries[-1]
    assert entry.before == {"": 24}
    with pytest.raises(InputError, match="reaches 130 HU"):
        desk.decide(uid, "Ann", replace(stroke, runs=((20, 30, 3),)), after=standing.after)
    with pytest.raises(InputError, match="slice 900"):
        desk.decide(uid, "Ann", replace(stroke, index=899), after=standing.after)


def test_what_is_signed_names_the_reader_and_what_it_replaces(
    desk: Desk, uid: str, to_read: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in (to_read / "results").rglob("*") if p.is_file()}
    standing = desk.decide(uid, "Ann Miller", is_("LAD", 1), after=0)
    standing = desk.decide(uid, "Ann Miller", is_("mitral annulus", 2), after=standing.after)
    standing, signed = desk.sign(uid, "Ann Miller", after=standing.after)
    assert {p: p.read_bytes() for p in (to_read / "results").rglob("*") if p.is_file()} == before
    assert signed.score.total == pytest.approx(standing.score.total)
    seg_path, report_path = signed.folder / "cac.seg.dcm", signed.folder / "cac.sr.dcm"
    assert scored_file(seg_path, to_read / "ct" / "01", capsys) == pytest.approx(standing.score.total)

    automatic = to_read / "results" / "READ-01" / uid
    old, seg = pydicom.dcmread(automatic / "cac.seg.dcm"), pydicom.dcmread(seg_path)
    old_report, report = pydicom.dcmread(automatic / "cac.sr.dcm"), pydicom.dcmread(report_path)
    for mine, theirs in ((seg, old), (report, old_report)):
        assert mine.SOPInstanceUID != theirs.SOPInstanceUID
        assert mine.SeriesInstanceUID != theirs.SeriesInstanceUID
        assert mine.StudyInstanceUID == theirs.StudyInstanceUID
        assert mine.ContentDate == standing.journal.entries[-1].time[:10].replace("-", "")
    assert seg.ContentCreatorName == "Miller^Ann"
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence[1:]} == {"SEMIAUTOMATIC"}
    (source,) = seg.SourceInstanceSequence
    assert source.ReferencedSOPInstanceUID == old.SOPInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == uid
    (predecessor,) = report.PredecessorDocumentsSequence
    replaced = predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == old_report.SOPInstanceUID
    people = [i.PersonName for i in report.ContentSequence if i.ValueType == "PNAME"]
    assert people == ["Miller^Ann"]
    said = [element.value for element in report.iterall() if element.keyword == "TextValue"]
    assert any(text.startswith("Read and corrected by Ann Miller") for text in said)

    # a second signature corrects the first one, and leaves it there
    standing = desk.decide(uid, "Ann Miller", is_("RCA", 3), after=standing.after)
    standing, again = desk.sign(uid, "Ann Miller", after=standing.after)
    assert again.folder != signed.folder
    assert pydicom.dcmread(seg_path).SOPInstanceUID == signed.seg
    uids = {
        i.ReferencedSOPInstanceUID
        for i in pydicom.dcmread(again.folder / seg_path.name).SourceInstanceSequence
    }
    assert uids == {old.SOPInstanceUID, signed.seg}
    details = json.loads((again.folder / "details.json").read_text())
    assert details["read"]["by"] == "Ann Miller"
    assert len(details["read"]["decisions"]) == 3
    assert details["score"]["total"] == pytest.approx(standing.score.total)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy, which is not here")
def test_others_find_nothing_wrong_with_what_is_signed(desk: Desk, uid: str) -> None:
    standing = desk.decide(uid, "Ann", is_("LAD", 1), after=0)
    _, signed = desk.sign(uid, "Ann", after=standing.after)
    for name in ("cac.seg.dcm", "cac.sr.dcm"):
        done = subprocess.run(
            ["dciodvfy", "-new", str(signed.folder / name)], capture_output=True, text=True, check=False
        )
        assert "Error" not in done.stderr + done.stdout


def test_two_readers_never_touch_each_other(desk: Desk, uid: str, case: ReadCase) -> None:
    ann = desk.decide(uid, "Ann", is_("", 1), after=0)
    bob = desk.decide(uid, "Bob", is_("", 2), after=0)
    assert ann.score.total == pytest.approx(case.pieces[1].score)
    assert bob.score.total == pytest.approx(case.pieces[0].score)
    desk.sign(uid, "Ann", after=ann.after)
    desk.sign(uid, "Bob", after=bob.after)
    reads = desk.readings()[uid]
    assert [(read.reader, read.state) for read in reads] == [("Ann", "read"), ("Bob", "read")]
    assert differ(reads)
    table = (desk.folder / "reads.csv").read_text().splitlines()
    assert table[0] == "patient_id,study_uid,series_uid,automatic,score Ann,score Bob"
    cells = table[1].split(",")
    assert cells[0] == "READ-01"
    assert [float(c) for c in cells[4:]] == pytest.approx([ann.score.total, bob.score.total], abs=1e-3)
    for path in desk.folder.glob("cases/*/*/*.jsonl"):
        assert {entry.by for entry in read_journal(path).entries} == {path.stem}


def test_the_readings_of_one_case_are_those_that_all_readings_have_of_it(desk: Desk, uid: str) -> None:
    assert desk.readings_of("READ-01", uid) == []
    standing = desk.decide(uid, "Bob", is_("", 1), after=0)
    desk.decide(uid, "Ann", is_("", 2), after=0)
    assert desk.readings_of("READ-01", uid) == desk.readings()[uid]
    assert [read.reader for read in desk.readings_of("READ-01", uid)] == ["Ann", "Bob"]
    desk.sign(uid, "Bob", after=standing.after)
    (bob,) = (read for read in desk.readings_of("READ-01", uid) if read.reader == "Bob")
    assert bob.state == "read"
    # a table that calls the patient otherwise than the CT
    assert desk.readings_of("another name", uid) == desk.readings()[uid]
    assert desk.readings_of("READ-01", "1.2.3") == []


def test_two_windows_of_one_reader_cannot_decide_past_each_other(desk: Desk, uid: str) -> None:
    standing = desk.decide(uid, "Ann", is_("", 1), after=0)
    with pytest.raises(Conflict, match="load it again"):
        desk.decide(uid, "Ann", is_("LAD", 2), after=0)
    assert desk.standing(uid, "Ann").after == standing.after


def test_half_a_line_is_left_out_and_told(desk: Desk, uid: str, case: ReadCase) -> None:
    standing = desk.decide(uid, "Ann", is_("", 1), after=0)
    path = standing.journal.path
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3, "time": "2026-01-01T00:00:00+00:00", "by": "Ann", "do": "se')
    again = Desk(desk.folder, lambda uid: case)
    standing = again.standing(uid, "Ann")
    assert (standing.after, standing.journal.torn) == (2, 1)
    standing = again.decide(uid, "Ann", is_("LAD", 2), after=2)
    assert (standing.after, standing.journal.torn) == (3, 1)
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("what", ["gap", "other", "value", "unknown"])
def test_a_journal_that_no_kill_can_have_left_is_refused(desk: Desk, uid: str, what: str) -> None:
    standing = desk.decide(uid, "Ann", is_("", 1), after=0)
    path = standing.journal.path
    lines = path.read_text().splitlines()
    if what == "gap":
        lines = lines[1:]
    elif what == "other":
        lines[0] = lines[0].replace(uid, "1.2.3")
    elif what == "value":
        lines[1] = lines[1].replace('"to": ""', '"to": "gold"')
    else:
        lines[1] = lines[1].replace('"to": ""', '"towards": ""')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises((InputDamaged, InputError)):
        Desk(desk.folder, lambda _: standing.case).standing(uid, "Ann")


def test_decisions_on_other_pieces_are_not_taken_for_these(desk: Desk, uid: str, case: ReadCase) -> None:
    desk.decide(uid, "Ann", is_("", 1), after=0)
    other = Desk(desk.folder, lambda _: replace(case, digest="another"))
    with pytest.raises(InputError, match="changed since Ann began"):
        other.standing(uid, "Ann")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "x" * 65, "A\nB", "Ann\\B", "Ann^B", " Ann", "-", "Ånn"])
def test_names_that_no_reader_may_have(desk: Desk, uid: str, name: str) -> None:
    with pytest.raises(InputError, match="reader's name"):
        desk.decide(uid, name, is_("", 1), after=0)
    assert not list(desk.folder.rglob("*"))


def test_a_link_in_place_of_a_journal_is_not_followed(desk: Desk, uid: str, tmp_path: Path) -> None:
    place = desk.place(desk.case(uid))
    place.mkdir(parents=True)
    target = tmp_path / "elsewhere"
    (place / "Ann.jsonl").symlink_to(target)
    with pytest.raises(Exception, match="Ann"):
        desk.decide(uid, "Ann", is_("", 1), after=0)
    assert not target.exists()


def test_readings_lie_apart_from_what_is_read(case: ReadCase, tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    for folder in (tmp_path / "ct", tmp_path / "ct" / "review", tmp_path):
        with pytest.raises(OutputInsideInput):
            Desk(folder, lambda uid: case, apart=(tmp_path / "ct",))


def _write(path: Path, began: multiprocessing.connection.Connection) -> None:
    """Append without end, and say each number that is acknowledged."""
    while True:
        with appending(path) as (journal, add):
            add({"by": "Ann", "do": "open" if not journal.entries else "undo", "of": 0})
        os.write(began.fileno(), b".")


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "Ann.jsonl"
    for _ in range(3):
        reading, writing = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_write, args=(path, writing))
        known = len(read_journal(path).entries)
        process.start()
        writing.close()
        said = b""
        while len(said) < 20:
            said += os.read(reading.fileno(), 4096)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while part := os.read(reading.fileno(), 4096):
            said += part
        reading.close()
        assert len(read_journal(path).entries) - known >= len(said)
    entries = read_journal(path).entries
    assert [entry.n for entry in entries] == list(range(1, len(entries) + 1))


def test_on_the_command_line(
    to_read: Path, uid: str, case: ReadCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["rescore", str(to_read / "results"), "--ct", str(to_read / "ct"), "--case", uid]
    assert main([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["total"] == pytest.approx(case.automatic)
    assert len(plain["pieces"]) == 4
    out = tmp_path / "out"
    decided = ["--exclude", "1", "--artery", "3=rca", "--kind", "4=aorta"]
    assert main([*command, *decided, "--out", str(out), "--reader", "Ann", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == pytest.approx(case.pieces[1].score + case.pieces[2].score)
    assert found["by_name"]["RCA"] == pytest.approx(case.pieces[2].score)
    seg = Path(found["written"]) / "cac.seg.dcm"
    assert scored_file(seg, to_read / "ct" / "01", capsys) == pytest.approx(found["total"])
    for wrong, said in (
        (["--exclude", "9"], "no piece 9"),
        (["--exclude", "1", "--count", "1"], "decided twice"),
        (["--artery", "1=aorta"], "such as 5=RCA"),
        (["--kind", "1=LAD"], "such as 5=aorta"),
        (["--artery", "1=LDA"], "Perhaps you meant"),
        (["--exclude", "-1"], "number of a piece"),
        (["--exclude", "1", "--out", str(out)], "--reader"),
    ):
        assert main([*command, *wrong]) == 10
        assert said in capsys.readouterr().err


def test_what_score_prints_is_written(
    to_read: Path, uid: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seg = to_read / "results" / "READ-01" / uid / "cac.seg.dcm"
    command = ["score", str(to_read / "ct" / "01"), str(seg), "--json", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "score.json").read_text()) == printed
    lesions = (tmp_path / "out" / "lesions.csv").read_text().splitlines()
    assert len(lesions) == 1 + len(printed["lesions"])
    assert float(lesions[1].split(",")[1]) == printed["lesions"][0]["score"]


def test_values_have_keys_of_their_own() -> None:
    keys = [value.key for value in VALUES.values() if value.key]
    assert len(keys) == len(set(keys))
    assert len({value.value for value in VALUES.values()}) == len(VALUES)
