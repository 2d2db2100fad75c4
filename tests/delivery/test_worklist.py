"""A worker on a worklist, against a service that keeps DICOM's rules (`tests/ups.py`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pydicom
import pytest
from pyarrow import parquet
from pydicom import Dataset

from deepcac2.batch.run import Means
from deepcac2.cli.main import main
from deepcac2.delivery.pulling import PullLimits, WebSource
from deepcac2.delivery.sending import Credentials, DicomWeb, tls_context
from deepcac2.delivery.workitems import Choice, Worklist
from deepcac2.delivery.worklist import JOURNAL, Performer, Services, Worked
from deepcac2.errors import DestinationRefused, DestinationUnreachable, DiskFull, InputError, OutputBusy
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.run import Job

Series = Callable[..., list[Dataset]]
STEP = "ProcedureStepProgressInformationSequence"
OURS = ["ScheduledWorkitemCodeSequence.CodeValue=CAC"]


@pytest.fixture
def hospital(ups: ModuleType) -> Iterator[Any]:
    with ups.Hospital().open() as one:
        yield one


@pytest.fixture(scope="module")
def chest(simulated: Path) -> list[Path]:
    return sorted(next(simulated.rglob("ct")).iterdir())


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepcac2.delivery.sending._FIRST_WAIT", 0.01)


def performer(hospital: Any, folder: Path, **options: Any) -> Performer:
    to: dict[str, Any] = {"credentials": Credentials(), "tls": tls_context({}), "timeout": 20}
    archive = options.pop("archive", hospital.url)
    if options.pop("signed_in", False):
        user = {"DEEPCAC2_DICOMWEB_USER": "tester", "DEEPCAC2_DICOMWEB_PASSWORD": "c0rrect-horse"}
        to["credentials"] = Credentials.of(user)
    return Performer(
        Job(workflow=Workflow.load("default"), output=folder / "results"),
        folder / "in",
        Services(
            worklist=Worklist(
                hospital.url, variables="DEEPCAC2_WORKLIST", **{**to, "credentials": Credentials()}
            ),
            source=WebSource(archive, **to),
            archive=DicomWeb(archive, **to),
        ),
        Choice.parse(options.pop("query", OURS)),
        means=Means(),
        **{"limits": PullLimits(free_gb=0), "retries": 1, **options},
    )


def work(hospital: Any, folder: Path, **options: Any) -> Worked:
    return performer(hospital, folder, **options).run()


def table(folder: Path) -> dict[str, dict[str, Any]]:
    rows = parquet.read_table(folder / "results" / "results.parquet").to_pylist()
    return {row["series_uid"]: row for row in rows}


def results(folder: Path) -> dict[str, Path]:
    paths = (folder / "results").rglob("*.dcm")
    return {str(pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID): p for p in paths}


def reason(item: Dataset) -> tuple[str, str]:
    step = item.ProcedureStepProgressInformationSequence[0]
    return str(step.ReasonForCancellation), str(
        step.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue
    )


def scheduled(hospital: Any, ups: ModuleType, images: list[Dataset], **changes: Any) -> str:
    hospital.keep(*images)
    uid: str = hospital.schedule(ups.about(images), **changes)
    return uid


# --- what is done -----------------------------------------------------------------------------------------


def test_a_scan_is_scored_stored_and_told(
    hospital: Any, ups: ModuleType, chest: list[Path], series_of: Series, tmp_path: Path
) -> None:
    """A whole study with a CT that has a score, one that a gate refuses, and something that is no CT."""
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in chest]
    study = headers[0].StudyInstanceUID
    short = series_of("short", 4, StudyInstanceUID=study, PatientID=headers[0].PatientID)
    other = series_of("other", 1, StudyInstanceUID=study, Modality="SR")
    hospital.keep(*chest, *short, *other)
    uid = hospital.schedule(ups.about(headers, series=False, instances=False), patient=headers[0].PatientID)
    told: list[str] = []
    done = work(hospital, tmp_path, station="CAC-1", tell=told.append)
    assert done == Worked(completed=1)
    item = hospital.items[uid]
    assert item.ProcedureStepState == "COMPLETED"
    (performed,) = item.UnifiedProcedureStepPerformedProcedureSequence
    assert performed.PerformedStationNameCodeSequence[0].CodeValue == "CAC-1"
    assert performed.PerformedWorkitemCodeSequence == item.ScheduledWorkitemCodeSequence
    began, ended = performed.PerformedProcedureStepStartDateTime, performed.PerformedProcedureStepEndDateTime
    assert began <= ended
    assert "too-few-slices" in performed.CommentsOnThePerformedProcedureStep
    made = results(tmp_path)
    assert hospital.stored == dict.fromkeys(made, 1)
    named = {
        (o.StudyInstanceUID, o.SeriesInstanceUID, r.ReferencedSOPClassUID, r.ReferencedSOPInstanceUID)
        for o in performed.OutputInformationSequence
        for r in o.ReferencedSOPSequence
    }
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
    assert named == {tuple(str(hospital.headers[u][k].value) for k in keywords) for u in made}
    assert len(named) == 2  # SEG and SR
    url = performed.OutputInformationSequence[0].WADORSRetrievalSequence[0].RetrieveURL
    assert url.startswith(f"{hospital.url}/studies/{study}/series/")
    rows = table(tmp_path)
    assert {r["status"] for r in rows.values()} == {"scored", "rejected"}
    assert len(rows) == 2
    run = json.loads((tmp_path / "results" / "run.json").read_text())["series"]
    assert (run["found"], run["scored"], run["rejected"], run["finished"]) == (2, 1, 1, True)
    assert not list((tmp_path / "in").rglob("*.dcm"))
    assert "COMPLETED; 1 series scored" in told[-1]

    # the same study again is another workitem; the same result is not stored twice
    again = hospital.schedule(ups.about(headers), patient=headers[0].PatientID)
    assert work(hospital, tmp_path) == Worked(completed=1)
    first, second = (
        hospital.items[u].UnifiedProcedureStepPerformedProcedureSequence[0].OutputInformationSequence
        for u in (uid, again)
    )
    assert first == second
    assert hospital.stored == dict.fromkeys(made, 1)

    # somebody cancels while it is scored: nothing is stored
    shutil.rmtree(tmp_path / "results" / "logs")  # another destination, as it were
    stopped = hospital.schedule(ups.about(headers))
    hospital.before = lambda method, path: (
        hospital.end(stopped) if "scoring" in str(hospital.items[stopped].get(STEP)) else None
    )
    assert work(hospital, tmp_path) == Worked(withdrawn=1)
    assert hospital.stored == dict.fromkeys(made, 1)
    hospital.before = lambda method, path: None

    # what the archive does not take is not there, and the workitem says so
    hospital.refused = {"1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.66.4"}
    third = hospital.schedule(ups.about(headers))
    assert work(hospital, tmp_path) == Worked(canceled=1, problems=1)
    said, code = reason(hospital.items[third])
    assert "2 of its results are not stored" in said
    assert code == "110501"
    (performed,) = hospital.items[third].UnifiedProcedureStepPerformedProcedureSequence
    assert not performed.OutputInformationSequence


def test_a_scan_that_a_gate_refuses_cancels(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    uid = scheduled(hospital, ups, series_of("short"))
    assert work(hospital, tmp_path, keep_ct=True) == Worked(canceled=1)
    said, code = reason(hospital.items[uid])
    assert "rejected, too-few-slices" in said
    assert code == "110513"
    assert not hospital.stored
    assert len(list((tmp_path / "in" / "ct").rglob("*.dcm"))) == 4
    assert [row["code"] for row in table(tmp_path).values()] == ["too-few-slices"]
    # what lies there is not believed: the archive has the series without one of its images by now
    gone = series_of("short")[3].SOPInstanceUID
    del hospital.headers[gone]
    hospital.schedule(ups.about(series_of("short", 3)))
    assert work(hospital, tmp_path) == Worked(canceled=1)
    assert [row["n_slices"] for row in table(tmp_path).values()] == [3]


def drop_series(ups: ModuleType, item: Dataset) -> None:
    item.SeriesInstanceUID = "1.2.3"


def drop_study(ups: ModuleType, item: Dataset) -> None:
    item.StudyInstanceUID = "1.2.3"


def drop_image(ups: ModuleType, item: Dataset) -> None:
    del item.ReferencedSOPSequence[0]


def one_more(ups: ModuleType, item: Dataset) -> None:
    one = Dataset()
    one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = "1.2.3", "1.2.3.4"
    item.ReferencedSOPSequence.append(one)


def a_document(ups: ModuleType, item: Dataset) -> None:
    item.TypeOfInstances = "CDA"


def no_uid(ups: ModuleType, item: Dataset) -> None:
    item.add_new(0x0020000E, "LO", "../../../etc")


@pytest.mark.parametrize(
    ("change", "said", "code"),
    [
        (drop_series, "series 1.2.3 is not at", "110523"),
        (drop_study, "is not at", "110523"),
        (drop_image, "has 4 images, and the workitem names 3", "110523"),
        (one_more, "has 4 images, and the workitem names 5", "110523"),
        (a_document, "names no CT", "110522"),
        (no_uid, "cannot be read", "110523"),
    ],
)
def test_what_is_not_there_or_not_clear_cancels(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path, change: Any, said: str, code: str
) -> None:
    images = series_of("one")
    hospital.keep(*images)
    named = ups.about(images)
    change(ups, named)
    uid = hospital.schedule(named)
    assert work(hospital, tmp_path) == Worked(canceled=1, problems=1)
    assert hospital.state(uid) == "CANCELED"
    found = reason(hospital.items[uid])
    assert said in found[0]
    assert found[1] == code
    assert not hospital.stored
    assert [p.name for p in tmp_path.iterdir()] == ["in", "results"] or len(list(tmp_path.iterdir())) == 2


def test_images_that_do_not_come_or_are_of_another_patient(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    lost = series_of("lost")
    stranger = series_of("stranger")
    uids = [scheduled(hospital, ups, lost), scheduled(hospital, ups, stranger, patient="SOMEBODY-ELSE")]
    none = hospital.schedule()
    del hospital.instances[lost[1].SOPInstanceUID]
    assert work(hospital, tmp_path) == Worked(canceled=3, problems=3)
    assert "1 of its 4 images did not come" in reason(hospital.items[uids[0]])[0]
    said, _ = reason(hospital.items[uids[1]])
    assert "another patient" in said
    assert "SOMEBODY" not in said
    assert reason(hospital.items[none])[1] == "110522"
    many = scheduled(hospital, ups, series_of("many"))
    work(hospital, tmp_path, limits=PullLimits(free_gb=0, images=3))
    assert "more than --most-images" in reason(hospital.items[many])[0]
    assert not list((tmp_path / "in").rglob("*.dcm"))


# --- whose is it ------------------------------------------------------------------------------------------


def test_only_what_is_ours_is_claimed(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    images = series_of("one")
    others = [
        scheduled(hospital, ups, images, code="LUNG"),
        scheduled(hospital, ups, images, InputReadinessState="INCOMPLETE"),
        scheduled(hospital, ups, images, WorklistLabel="THEIRS"),
        scheduled(hospital, ups, images, ScheduledWorkitemCodeSequence=[]),
    ]
    taken = scheduled(hospital, ups, images)
    hospital.items[taken].ProcedureStepState = "IN PROGRESS"
    mine = scheduled(hospital, ups, images)
    for knows in (False, True):  # a service that ignores what it is asked for must not make us take all
        hospital.knows_keys = knows
        work(hospital, tmp_path, query=[*OURS, "WorklistLabel=AI"])
        assert hospital.state(mine) == "CANCELED"
        assert [hospital.state(u) for u in others] == ["SCHEDULED"] * 4
        assert hospital.state(taken) == "IN PROGRESS"


def test_code_and_scheme_must_be_of_one_item(ups: ModuleType) -> None:
    item = Dataset()
    item.ScheduledWorkitemCodeSequence = [ups.coded("CAC", "A", "x"), ups.coded("LUNG", "B", "y")]
    for scheme, expected in (("A", True), ("B", False)):
        choice = Choice.parse([*OURS, f"ScheduledWorkitemCodeSequence.CodingSchemeDesignator={scheme}"])
        assert choice.meets(item.to_json_dict()) is expected


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ([], "every workitem"),
        (["WorklistLabel=*"], "every workitem"),
        (["WorklistLabel"], "KEYWORD=VALUE"),
        (["StudyDate=20260101"], "not chosen by this"),
        (["WorklistLabl=AI"], "WorklistLabel"),
        (["WorklistLabel=A", "WorklistLabel=B"], "given twice"),
        (["StudyInstanceUID=x"], "no UID"),
    ],
)
def test_a_choice_of_everything_or_nothing_is_refused(queries: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Choice.parse(queries)


def test_workers_side_by_side_do_each_workitem_once(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    uids = [scheduled(hospital, ups, series_of(f"n{i}", 2)) for i in range(12)]
    done: dict[str, Worked] = {}
    threads = [
        threading.Thread(target=lambda n=n: done.update({n: work(hospital, tmp_path / n)})) for n in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {hospital.state(u) for u in uids} == {"CANCELED"}
    assert sum(d.canceled for d in done.values()) == 12
    assert not any(d.withdrawn for d in done.values())
    assert sum(len(table(tmp_path / n)) for n in "abc") == 12
    assert len(set(hospital.transactions.values())) == 12


def test_a_second_worker_needs_folders_of_its_own(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    scheduled(hospital, ups, series_of("one"))
    with performer(hospital, tmp_path)._opened(), pytest.raises(OutputBusy):
        work(hospital, tmp_path)
    elsewhere = performer(hospital, tmp_path)
    elsewhere.job = Job(workflow=Workflow.load("default"), output=tmp_path / "other")
    with pytest.raises(InputError, match="other results"):
        elsewhere.run()
    scans = tmp_path / "scans" / "in" / "ct" / "1.2" / "1.3"
    scans.mkdir(parents=True)
    with pytest.raises(InputError, match="of the worker's own"):
        work(hospital, tmp_path / "scans")


# --- when something goes wrong ----------------------------------------------------------------------------


class Death(BaseException):
    """The end of a process, as far as one can have it without."""


def dying(one: Performer, at: Callable[[int, str], bool]) -> None:
    """A worker that is gone when one of its requests has had its effect, and works until then.

    Args:
        at: Which: it is given its number from 0, and its method and path.
    """
    number = -1
    for service in (one._services.worklist, one._services.source, one._services.archive):
        asked = service._asked

        def ask(*args: Any, asked: Any = asked, **more: Any) -> Any:
            nonlocal number
            number += 1
            if at(number, " ".join(args[:2])):
                with asked(*args, **more) as response:
                    response.read()
                raise Death
            return asked(*args, **more)

        service._asked = ask  # type: ignore[method-assign]
    one.run()


def test_wherever_it_ends_the_next_start_goes_on(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    images = series_of("short", 2)
    hospital.keep(*images)
    number = 0
    while True:
        folder = tmp_path / str(number)
        uid = hospital.schedule(ups.about(images))
        try:
            dying(performer(hospital, folder), lambda n, what: n == number)  # noqa: B023
        except Death:
            work(hospital, folder)
            assert hospital.state(uid) == "CANCELED", number
            lines = (folder / "in" / JOURNAL).read_text().splitlines()
            events = [json.loads(line)["event"] for line in lines if line]
            assert events.count("settled") == 1, number
            assert events.count("ended") == events.count("claimed"), number
            assert not list((folder / "in").rglob("*.dcm"))
            number += 1
        else:
            break
    assert number >= 12


STEPS = ("PUT workitems", "POST workitems", "GET studies", "POST studies", "POST workitems", "PUT workitems")
"""Requests before and after which it is killed, one after the other."""


@pytest.mark.slow
def test_killed_at_random_nothing_is_stored_twice(
    hospital: Any, ups: ModuleType, chest: list[Path], tmp_path: Path
) -> None:
    """SIGKILL before and after everything that changes something elsewhere, by the command line."""
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in chest]
    hospital.keep(*chest)
    uid = hospital.schedule(ups.about(headers))
    command = [sys.executable, "-m", "deepcac2", "worklist", "in", "results", "--dicomweb", hospital.url]
    command += ["--query", *OURS, "--devices", "cpu", "--keep-free", "0"]
    process: list[subprocess.Popen[bytes]] = []
    killed: list[Any] = []
    left = [(*step.split(), late) for step in STEPS for late in (False, True)]

    def kill(late: bool) -> Callable[[str, str], None]:
        def hook(method: str, path: str) -> None:
            if len(killed) < len(process) and left and left[0] == (method, path.split("/")[0], late):
                killed.append(left.pop(0))
                process[-1].send_signal(signal.SIGKILL)

        return hook

    hospital.before, hospital.after = kill(False), kill(True)
    for _ in range(20):
        process.append(subprocess.Popen(command, cwd=tmp_path))
        if process[-1].wait(300) != -signal.SIGKILL:
            break
    assert process[-1].returncode == 0
    assert len(killed) == len(process) - 1 == 2 * len(STEPS)
    assert hospital.state(uid) == "COMPLETED"
    made = results(tmp_path)
    assert len(made) == 2
    assert hospital.stored.keys() == made.keys()
    assert not hospital.changed
    # of what was under way when it was killed nobody knows whether it came: it is offered again
    assert sum(hospital.stored.values()) <= len(made) + sum(k[:2] == ("POST", "studies") for k in killed)
    log = (tmp_path / "results" / "logs" / "journal.jsonl").read_text()
    assert log.count('"settled"') == 1


def test_lost_answers_are_no_collisions(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    uid = scheduled(hospital, ups, series_of("one"))
    lost: set[tuple[str, str]] = set()

    def lose(method: str, path: str) -> int | None:
        """Everything has its effect, and its first answer does not come."""
        if (method, path) in lost or path.startswith("studies"):
            return None
        lost.add((method, path))
        return 503

    hospital.after = lose
    assert work(hospital, tmp_path, retries=2) == Worked(canceled=1)
    assert hospital.state(uid) == "CANCELED"


@pytest.mark.parametrize("asked", [("GET", "studies"), ("POST", "workitems")])
def test_what_others_end_is_left_alone(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path, asked: tuple[str, str]
) -> None:
    images = series_of("one")
    uid = scheduled(hospital, ups, images)
    hospital.before = lambda method, path: (
        hospital.end(uid) if (method, path.split("/")[0]) == asked and uid in hospital.transactions else None
    )
    assert work(hospital, tmp_path) == Worked(withdrawn=1)
    assert hospital.state(uid) == "CANCELED"
    assert not hospital.stored
    assert work(hospital, tmp_path) == Worked()
    hospital.before = lambda method, path: None
    gone = scheduled(hospital, ups, images)
    hospital.after = lambda method, path: (
        hospital.items.pop(gone, None) and None if method == "POST" else None
    )
    assert work(hospital, tmp_path) == Worked(withdrawn=1)


def test_a_service_that_is_away_is_waited_for(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    uid = scheduled(hospital, ups, series_of("one"))
    away = True
    hospital.before = lambda method, path: 503 if away and path.startswith("studies") else None
    with pytest.raises(DestinationUnreachable, match="the same command goes on"):
        work(hospital, tmp_path)
    assert hospital.state(uid) == "IN PROGRESS"
    told: list[str] = []
    one = performer(hospital, tmp_path)

    def tell(text: str) -> None:
        nonlocal away
        told.append(text)
        away = False
        if "CANCELED" in text:
            one.stop()

    one._tell = tell
    assert one.run(every=0.05) == Worked(canceled=1)
    assert "busy" in told[0]


def test_nothing_is_claimed_without_room(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    uid = scheduled(hospital, ups, series_of("one"))
    full = PullLimits(free_gb=shutil.disk_usage(tmp_path).total / 1e9)
    with pytest.raises(DiskFull, match="keep-free"):
        work(hospital, tmp_path, limits=full)
    assert hospital.state(uid) == "SCHEDULED"
    one = performer(hospital, tmp_path, limits=full)
    one._check_room = lambda: None  # type: ignore[method-assign]  # it was enough a moment ago
    with pytest.raises(DiskFull):
        one.run()
    assert reason(hospital.items[uid]) == ("there is no room for its images here", "110527")


def test_a_worklist_that_does_not_let_us_in(
    hospital: Any, ups: ModuleType, series_of: Series, tmp_path: Path
) -> None:
    uid = scheduled(hospital, ups, series_of("one"))
    hospital.before = lambda method, path: 400 if method == "PUT" else None
    with pytest.raises(DestinationRefused, match="which nobody has"):
        work(hospital, tmp_path)
    assert performer(hospital, tmp_path).abandon() == Worked()
    assert hospital.state(uid) == "SCHEDULED"
    with pytest.raises(DestinationRefused, match="which nobody has"):
        work(hospital, tmp_path)
    hospital.before = lambda method, path: 409 if method == "POST" else None
    with pytest.raises(DestinationRefused, match="which is ours"):
        work(hospital, tmp_path)
    hospital.before = lambda method, path: 404 if path == "workitems" else None
    with pytest.raises(DestinationRefused, match="has no UPS-RS at"):
        work(hospital, tmp_path / "other")
    hospital.before = lambda method, path: None
    assert work(hospital, tmp_path) == Worked(canceled=1)
    assert hospital.state(uid) == "CANCELED"


# --- secrets, the command ---------------------------------------------------------------------------------


def test_nothing_goes_where_nobody_said(
    hospital: Any,
    ups: ModuleType,
    series_of: Series,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A workitem may say where its images are: nobody goes there. And each service gets its own secrets."""
    monkeypatch.setenv("DEEPCAC2_DICOMWEB_USER", "tester")
    monkeypatch.setenv("DEEPCAC2_DICOMWEB_PASSWORD", "c0rrect-horse")
    images = series_of("one")
    with socket.socket() as trap, ups.Hospital().open() as archive:
        trap.bind(("127.0.0.1", 0))
        trap.listen()
        trap.settimeout(0.05)
        archive.keep(*images)
        named, where = ups.about(images), Dataset()
        where.RetrieveURL = f"http://127.0.0.1:{trap.getsockname()[1]}/studies/{images[0].StudyInstanceUID}"
        named.WADORSRetrievalSequence = [where]
        uid = hospital.schedule(named)
        command = ["worklist", str(tmp_path / "in"), str(tmp_path / "out"), "--query", *OURS]
        command += ["--dicomweb", archive.url, "--worklist", hospital.url]
        command += ["--keep-free", "0", "--devices", "cpu", "--retries", "0"]
        assert main(command) == 0
        with pytest.raises(TimeoutError):
            trap.accept()
        assert hospital.state(uid) == "CANCELED"
        assert not [h for *_, h in hospital.asked if "authorization" in h]
        assert all("authorization" in h for *_, h in archive.asked)
        line = capsys.readouterr().out
        assert line.startswith("0 workitems completed, 1 canceled, 0 taken by others, 0 ended by others")
        hospital.asked.clear()
        monkeypatch.setenv("DEEPCAC2_WORKLIST_TOKEN", "s3cret")
        hospital.schedule(ups.about(series_of("absent")))
        assert main(command) == 1
        assert {h["authorization"] for *_, h in hospital.asked} == {"Bearer s3cret"}
        assert "c0rrect" not in "".join(p.read_text() for p in (tmp_path / "out" / "logs").glob("work*"))
    assert main([*command[:3], *command[5:]]) == InputError.exit_code
    assert main([*command, "--station", "much-too-long-for-a-code"]) == InputError.exit_code


def test_a_worker_that_goes_on_ends_when_it_is_told(
    hospital: Any,
    ups: ModuleType,
    series_of: Series,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the middle of a workitem, which it finishes, with another on the list."""
    uids = [scheduled(hospital, ups, series_of(n)) for n in ("one", "two")]

    def told(method: str, path: str) -> None:
        if method == "POST" and "CANCELED" not in map(hospital.state, uids):
            os.kill(os.getpid(), signal.SIGTERM)
            hospital.after = lambda method, path: None

    hospital.after = told
    command = ["worklist", str(tmp_path / "in"), str(tmp_path / "results"), "--query", *OURS]
    command += ["--dicomweb", hospital.url, "--keep-free", "0", "--devices", "cpu", "--every", "1h"]
    assert main(command) == 0
    assert sorted(map(hospital.state, uids)) == ["CANCELED", "SCHEDULED"]
    assert "1 canceled" in capsys.readouterr().out


def test_abandon_cancels_what_is_claimed_and_nothing_else(
    hospital: Any,
    ups: ModuleType,
    series_of: Series,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uid, other = (scheduled(hospital, ups, series_of(n)) for n in ("one", "two"))
    with pytest.raises(Death):
        dying(performer(hospital, tmp_path), lambda n, what: n == 8)
    states = {hospital.state(u): u for u in (uid, other)}
    assert states.keys() == {"IN PROGRESS", "SCHEDULED"}
    command = ["worklist", str(tmp_path / "in"), str(tmp_path / "results"), "--abandon"]
    assert main([*command, "--dicomweb", hospital.url, "--keep-free", "0", "--devices", "cpu"]) == 0
    assert reason(hospital.items[states["IN PROGRESS"]]) == ("given up", "110526")
    assert hospital.state(states["SCHEDULED"]) == "SCHEDULED"
    assert "1 canceled" in capsys.readouterr().out


def test_with_a_real_archive(
    hospital: Any, ups: ModuleType, orthanc: Any, chest: list[Path], tmp_path: Path
) -> None:
    """Images from and results to an Orthanc, which has no UPS-RS of its own; it ends in the middle, too."""
    to = {"Content-Type": "application/dicom"}
    import urllib.request

    for path in chest:
        request = urllib.request.Request(
            f"{orthanc.http}/instances", data=path.read_bytes(), method="POST", headers=to
        )
        request.add_header("Authorization", "Basic dGVzdGVyOmMwcnJlY3QtaG9yc2U=")
        urllib.request.urlopen(request, timeout=60).close()
    headers = [pydicom.dcmread(p, stop_before_pixels=True) for p in chest]
    uid = hospital.schedule(ups.about(headers), patient=headers[0].PatientID)
    options = {"archive": orthanc.dicomweb, "signed_in": True}
    with pytest.raises(Death):  # its first result is there, and it does not know
        dying(performer(hospital, tmp_path, **options), lambda n, what: what == "POST studies")
    assert hospital.state(uid) == "IN PROGRESS"
    assert work(hospital, tmp_path, **options) == Worked(completed=1)
    assert (tmp_path / "in" / JOURNAL).read_text().count('"settled"') == 1
    assert hospital.state(uid) == "COMPLETED"
    held = orthanc.stored().keys() - {str(h.SOPInstanceUID) for h in headers}
    assert held == results(tmp_path).keys()
    assert not hospital.stored
    assert not [h for *_, h in hospital.asked if "authorization" in h]
