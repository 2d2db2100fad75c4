"""The doors for data from outside: whatever is wrong with it is one error of ours, soon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from deepcac2.errors import InputUnreadable, WeightsError, WorkflowError
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.run import read_details, stored_row
from deepcac2.system.foreign import MAX_YAML, foreign, parse_json, parse_yaml, read_bytes, read_json
from deepcac2.training.recipe import load_recipe

NO_JSON = (
    b"",
    b"[" * 200_000,
    b"1e999",
    b"1" + b"0" * 400,
    b"NaN",
    b"\xff",
    b'"\\ud800"',
    b"{",
    b"\xef\xbb\xbf{}",
)


@pytest.mark.parametrize("data", NO_JSON, ids=lambda data: repr(data[:8]))
def test_json(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InputUnreadable, match=r"^an answer is no JSON") as caught:
        parse_json(data, "an answer")
    assert "\n" not in str(caught.value)
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(WeightsError, match="; convert it"):
        read_json(tmp_path / "a.json", error=WeightsError, advice="convert it")
    for name in ("details.json", "run.json"):
        (tmp_path / name).write_bytes(data)
    assert stored_row(tmp_path) is None
    with pytest.raises(InputUnreadable):
        read_details(tmp_path)


def test_json_that_is_fine() -> None:
    text = b'{"a": [1, 2.5, null, true, "\\u00e4\\ud83d\\ude00"]}'
    assert parse_json(text, "x") == {"a": [1, 2.5, None, True, "ä😀"]}


ROW = '"patient_id": "", "study_uid": "", "series_uid": "", "status": "scored"'


@pytest.mark.parametrize(
    "row",
    [
        "[]",
        "{}",
        '{"row": 1}',
        '{"row": {"patient_id": 1}, "outputs": []}',
        f'{{"row": {{{ROW}, "folder": []}}, "outputs": []}}',
        f'{{"row": {{{ROW}}}, "outputs": 5}}',
    ],
)
def test_details_that_are_no_row(tmp_path: Path, row: str) -> None:
    (tmp_path / "details.json").write_text(row)
    assert stored_row(tmp_path) is None


BOMB = "a: &a [x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
"""A billion laughs: 1 kB that hold 10**12 values, once somebody looks at them."""


NO_YAML = (
    "[" * 200_000,
    "- " * 1000,
    "a: 2001-99-99",
    "? [a]\n: {? {b: 1} : c}",
    BOMB,
    "a: [",
    "\x07",
    "!!python/object:os.system {}",
    "x" * (MAX_YAML + 1),
)


@pytest.mark.parametrize("text", NO_YAML, ids=lambda text: repr(text[:8]))
def test_yaml(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputUnreadable) as caught:
        parse_yaml(text, "a recipe")
    assert "\n" not in str(caught.value)
    (tmp_path / "a.yml").write_text(text)
    with pytest.raises(WorkflowError):
        Workflow.load(tmp_path / "a.yml")
    with pytest.raises(WorkflowError):
        load_recipe(tmp_path / "a.yml", dict, role="calcium")


@pytest.mark.parametrize(
    "text",
    [
        "execute: [[a]]",
        "execute: [{module: {}}]",
        "general: []\nexecute: [DicomImporter]",
        "execute: [1]\nmodules: {1: 2}",
        "execute: [DicomImporter]\nmodules: {DicomImporter: 5}",
    ],
)
def test_workflows_of_wrong_types(text: str) -> None:
    assert yaml.safe_load(text)
    with pytest.raises(WorkflowError):
        Workflow.parse(text, name="x")


def test_what_has_no_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputUnreadable, match="no regular file"):
            read_json(path)
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", most=5) == b"12345"
    with pytest.raises(InputUnreadable, match="larger than"):
        read_bytes(tmp_path / "a", most=4)


@pytest.mark.parametrize(
    "error", [MemoryError(), RecursionError("deep"), OSError(5, "bad"), KeyError("x"), Exception("a\nb")]
)
def test_whatever_a_library_raises(error: Exception) -> None:
    with (
        pytest.raises(WeightsError, match=r"^x cannot be read \(.+\); do y$") as caught,
        foreign("x", error=WeightsError, advice="do y"),
    ):
        raise error
    assert caught.value.__cause__ is error


def test_errors_of_ours_and_interrupts_pass() -> None:
    for error in (WorkflowError("x"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, foreign("x"):
            raise error
        assert caught.value is error
