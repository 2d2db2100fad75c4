"""The chain: a loop over stages with one place that catches; and what a job makes of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deepcac2.dicom import Finding, Series
from deepcac2.errors import (
    DeepCACError,
    DeviceError,
    DiskFull,
    InputUnreadable,
    MaskMismatch,
    OutputUnwritable,
    SeriesFailed,
    SeriesRejected,
    WeightsMissing,
    WorkflowError,
)
from deepcac2.pipeline import Case, Workflow
from deepcac2.pipeline.case import Fact
from deepcac2.pipeline.chain import Chain
from deepcac2.pipeline.facts import HEART_MEASURES
from deepcac2.pipeline.run import Job, Settled, finished
from deepcac2.pipeline.step import Stage
from deepcac2.system.atomic import write_whole

FOUND = {"heart_volume_ml": 700.0}
MEASURED: Fact[int] = Fact("measured")
TWICE: Fact[float] = Fact("twice")

HEADERS = (Finding(code="kvp", message="taken at 100 kV", fatal=False),)
SERIES = Series(series_uid="1.2.3", patient_id="P1", kvp=100.0, findings=HEADERS)


def chain_of(**stages: Stage) -> Chain:
    return Chain(workflow=Workflow.load("default"), stages=tuple(stages.items()), provenance={})


def measure(case: Case) -> Case:
    return case.add(HEART_MEASURES, FOUND).noted(*case.series.findings)


def refuse(case: Case) -> Case:
    case = case.add(MEASURED, 180)
    warning = Finding(code="padding", message="some", fatal=False)
    return case.noted(warning, Finding(code="metal", message="a stent", fatal=True))


def raising(error: BaseException) -> Stage:
    def stage(case: Case) -> Case:
        raise error

    return stage


def never(case: Case) -> Case:
    raise AssertionError("a stopped case went on")


class OutOfMemoryError(RuntimeError):
    """Torch's has this name."""


def test_stages_run_in_order_and_are_timed() -> None:
    def double(case: Case) -> Case:
        return case.add(TWICE, 2 * case[HEART_MEASURES]["heart_volume_ml"])

    case = chain_of(A=measure, B=double)(Case(series=SERIES, timings={"Before": 3.0}))
    assert case.facts == {HEART_MEASURES: FOUND, TWICE: 1400.0}
    assert list(case.timings) == ["Before", "A", "B"]
    assert case.timings["Before"] == 3.0
    assert min(case.timings.values()) >= 0
    assert case.stop is None


def test_a_gate_ends_the_chain_and_nothing_is_forgotten() -> None:
    case = chain_of(A=measure, B=refuse, C=never)(Case(series=SERIES))
    assert case.stop is not None
    assert (case.stop.status, case.stop.code, case.stop.reason) == ("rejected", "metal", "a stent")
    assert case.stop.module == "B"
    assert case.facts == {HEART_MEASURES: FOUND, MEASURED: 180}
    assert [f.code for f in case.warnings] == ["kvp", "padding"]
    assert list(case.timings) == ["A", "B"]
    assert chain_of(D=never)(case) == case


@pytest.mark.parametrize(
    ("error", "status", "code", "reason"),
    [
        (SeriesRejected("two phases", code="duplicate-slices"), "rejected", "duplicate-slices", "two phases"),
        (SeriesFailed("cut short", code="undecodable"), "failed", "undecodable", "cut short"),
        (MaskMismatch("other grid"), "failed", "mask-mismatch", "other grid"),
        (InputUnreadable("gone"), "failed", "input-unreadable", "gone"),
        (MemoryError(), "failed", "out-of-memory", "B: not enough memory for this series"),
        (OutOfMemoryError("CUDA"), "failed", "out-of-memory", "B: not enough memory for this series"),
        (ZeroDivisionError("x\ny"), "failed", "internal-error", "B broke: ZeroDivisionError: x"),
        (AssertionError(), "failed", "internal-error", "B broke: AssertionError: "),
    ],
)
def test_what_a_stage_raises_stops_this_case_and_nothing_is_forgotten(
    error: Exception, status: str, code: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        case = chain_of(A=measure, B=raising(error), C=never)(Case(series=SERIES))
    assert case.stop is not None
    assert (case.stop.status, case.stop.code, case.stop.reason) == (status, code, reason)
    assert case.stop.module == "B"
    assert case.facts == {HEART_MEASURES: FOUND}
    assert case.warnings == HEADERS
    assert list(case.timings) == ["A", "B"]
    assert bool(caplog.records) == (code == "internal-error")  # with its traceback


@pytest.mark.parametrize(
    "error",
    [
        DiskFull("full"),
        OutputUnwritable("no rights"),
        WeightsMissing("not there"),
        DeviceError("no GPU"),
        WorkflowError("unknown"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_not_of_this_series_alone_ends_the_run(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        chain_of(A=measure, B=raising(error))(Case(series=SERIES))
    assert caught.value is error


# --- what a job makes of it ---------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path) -> Job:
    try:
        return Job(workflow=Workflow.load("default"), output=tmp_path)
    except WeightsMissing:
        pytest.skip("needs the bundled weights, which are not in this checkout")


def stored(job: Job) -> dict[str, object]:
    content: dict[str, object] = json.loads((job.folder(SERIES) / "details.json").read_text())
    return content


def test_a_case_on_its_way_is_handed_on(job: Job) -> None:
    case = job.advance(Case(series=SERIES), chain_of(A=measure), last=False)
    assert isinstance(case, Case)
    assert case[HEART_MEASURES] == FOUND
    assert not job.folder(SERIES).exists()


def test_the_last_part_settles_it(job: Job) -> None:
    def write(case: Case) -> Case:
        path = job.folder(case.series) / "result.txt"
        write_whole(path, b"x")
        return replace(case, outputs={"text": path})

    settled = job.advance(Case(series=SERIES), chain_of(A=measure, W=write), last=True)
    assert isinstance(settled, Settled)
    row = settled.row
    assert (row.status, row.code, row.reason) == ("scored", "", "")
    assert (row.warnings, row.heart_volume_ml, row.folder) == ("kvp", 700.0, "P1/1.2.3")
    assert row.seconds == pytest.approx(sum(settled.timings.values()), abs=0.001)
    content = stored(job)
    assert content["status"] == "scored"
    assert content["row"] == vars(row)
    assert content["outputs"] == ["result.txt"]
    assert finished(job.folder(SERIES)) == row
    (job.folder(SERIES) / "result.txt").unlink()
    assert finished(job.folder(SERIES)) is None


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("stage", "status", "code", "warnings"),
    [
        (refuse, "rejected", "metal", ["kvp", "padding"]),
        (
            raising(SeriesRejected("two phases", code="duplicate-slices")),
            "rejected",
            "duplicate-slices",
            ["kvp"],
        ),
        (raising(SeriesFailed("cut short", code="undecodable")), "failed", "undecodable", ["kvp"]),
        (raising(ValueError("x")), "failed", "internal-error", ["kvp"]),
    ],
)
def test_a_stopped_case_is_settled_at_once_with_all_that_was_known(
    stage: Stage, status: str, code: str, warnings: list[str], last: bool, job: Job
) -> None:
    settled = job.advance(Case(series=SERIES), chain_of(A=measure, B=stage, C=never), last=last)
    assert isinstance(settled, Settled)
    assert (settled.row.status, settled.row.code) == (status, code)
    assert settled.row.heart_volume_ml == 700.0
    assert settled.row.warnings == ";".join(warnings)
    assert list(settled.timings) == ["A", "B"]
    content = stored(job)
    assert (content["status"], content["code"], content["module"]) == (status, code, "B")
    assert content["reason"] == settled.row.reason
    assert content["heart"] == {"heart_volume_ml": 700.0}
    assert [w["code"] for w in content["warnings"]] == warnings  # type: ignore[index,attr-defined]
    assert list(content["seconds"]) == ["A", "B"]  # type: ignore[call-overload]
    assert (finished(job.folder(SERIES)) is None) == (status == "failed")


def test_where_it_is_split_makes_no_difference(job: Job) -> None:
    def settle(*parts: Chain) -> Settled:
        case: Case | Settled = Case(series=SERIES)
        for part in parts:
            if isinstance(case, Case):
                case = job.advance(case, part, last=part is parts[-1])
        assert isinstance(case, Settled)
        return replace(case, row=replace(case.row, seconds=None), timings=dict.fromkeys(case.timings, 0.0))

    whole = settle(chain_of(A=measure, B=refuse, C=never))
    split = settle(chain_of(A=measure), chain_of(B=refuse), chain_of(C=never))
    assert whole == split


def test_errors_that_end_a_run_write_no_row(job: Job) -> None:
    ends: Callable[[DeepCACError], Stage] = raising
    with pytest.raises(DiskFull):
        job.advance(Case(series=SERIES), chain_of(A=measure, B=ends(DiskFull("full"))), last=True)
    assert not job.folder(SERIES).exists()


def test_a_series_whose_worker_died_keeps_what_its_headers_say(job: Job) -> None:
    settled = job.failed(SERIES, "worker-died", "killed")
    row = settled.row
    assert (row.status, row.code, row.reason, row.warnings) == ("failed", "worker-died", "killed", "kvp")
    assert row.seconds is None
    content = stored(job)
    assert content["warnings"] == [{"code": "kvp", "message": "taken at 100 kV"}]
    assert content["module"] == ""


def test_the_first_stop_stays() -> None:
    first, second = (Finding(code=c, message=c, fatal=True) for c in ("metal", "contrast-measured"))
    case = Case(series=SERIES).noted(first).noted(second)
    assert case.stop is not None
    assert case.stop.code == "metal"
    assert case.findings == (first, second)
    assert case.warnings == ()
