"""Bad input at the command line: one line that says what to do, its own exit code, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcac2.cli.main import main

WEIGHTS = Path(__file__).parents[2] / "weights"


def failing(capsys: pytest.CaptureFixture[str], *command: object) -> tuple[int, str]:
    code = main([str(c) for c in command])
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert "Traceback" not in captured.err
    return code, errors[0]


def test_a_folder_without_dicom(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    code, text = failing(capsys, "run", tmp_path / "in", tmp_path / "out", "--device", "cpu")
    assert code == 11
    assert "DICOM" in text
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_there_stays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    assert failing(capsys, "run", tmp_path / "in", tmp_path / "out", "--device", "cpu")[0] == 11
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["logs"]


@pytest.mark.parametrize("command", [[], ["stats"], ["weights"]])
def test_a_command_without_its_action_shows_the_help(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("usage: deepcac2")
    assert "show this help message" in text


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["stat"], "deepcac2: error: argument COMMAND: invalid choice: 'stat'. Perhaps you meant 'stats'."),
        (["stats", "survivl"], "invalid choice: 'survivl'. Perhaps you meant 'survival'."),
        (["run", "a", "b", "--worflow", "x"], "There is no --worflow. Perhaps you meant '--workflow'."),
        (["run", "--redoo"], "There is no --redoo. Perhaps you meant '--redo'."),
        (["run", "a", "b", "--timeot=3"], "There is no --timeot. Perhaps you meant '--timeout'."),
        (["score", "a", "b", "--segment", "hart"], "invalid choice: 'hart'. Perhaps you meant 'heart'."),
        (["train", "hart", "--work", "w"], "invalid choice: 'hart'. Perhaps you meant 'heart'."),
    ],
)
def test_near_misses_are_suggested(capsys: pytest.CaptureFixture[str], command: list[str], hint: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(command)
    assert left.value.code == 2
    text = capsys.readouterr().err
    assert hint in text.splitlines()[-1]
    assert text.startswith(f"usage: deepcac2 {command[0] if len(command) > 1 else '[-h]'}")


def test_the_list_of_weights_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("deepcac2-heart-") for line in lines)


def test_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = failing(capsys, "run", tmp_path / "nowhere", tmp_path / "out")
    assert code == 10
    assert "does not exist" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder; run as another user")
def test_an_unreadable_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir(mode=0o000)
    code, _ = failing(capsys, "run", tmp_path / "in", tmp_path / "out", "--device", "cpu")
    assert code == 12


def test_output_inside_input(capsys: pytest.CaptureFixture[str], simulated: Path) -> None:
    code, text = failing(capsys, "run", simulated, simulated / "out")
    assert code == 13
    assert "choose a folder outside" in text
    assert not (simulated / "out").exists()


def test_an_output_that_is_a_file(
    capsys: pytest.CaptureFixture[str], simulated: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    code, _ = failing(capsys, "run", simulated, tmp_path / "out", "--device", "cpu")
    assert code == 22
    assert (tmp_path / "out").read_text() == "mine"


def test_a_workflow_with_a_typo(capsys: pytest.CaptureFixture[str], simulated: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "config" / "default.yml").read_text()
    (tmp_path / "mine.yml").write_text(text.replace("rule: agatston", "ruel: agatston"))
    code, message = failing(capsys, "run", simulated, tmp_path / "out", "--workflow", tmp_path / "mine.yml")
    assert code == 30
    assert "Perhaps you meant 'rule'" in message
    code, message = failing(capsys, "run", simulated, tmp_path / "out", "--allow", "contrst")
    assert code == 10
    assert "Perhaps you meant 'contrast'" in message


def test_missing_and_altered_weights(
    capsys: pytest.CaptureFixture[str], simulated: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    base = ("run", simulated, out, "--device", "cpu", "--weights")
    code, _ = failing(capsys, *base, tmp_path / "none")
    assert code == 41
    shutil.copytree(WEIGHTS / "calcium", tmp_path / "altered")
    path = tmp_path / "altered" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, text = failing(capsys, *base, tmp_path / "altered")
    assert code == 42
    assert "altered" in text
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    code, text = failing(capsys, *base, tmp_path / "model.pth")
    assert code == 43
    assert "convert" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str], simulated: Path, tmp_path: Path) -> None:
    code, text = failing(capsys, "run", simulated, tmp_path / "out", "--device", "cuda")
    assert code == 50
    assert "--device cpu" in text


@pytest.mark.slow
def test_a_full_disk(simulated: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes the system refuse to write, as a full disk does."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = [
        sys.executable,
        "-m",
        "deepcac2",
        "run",
        str(simulated),
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, preexec_fn=limited
    )
    assert done.returncode == 21, done.stderr
    assert "error: no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [p for p in (tmp_path / "out").rglob("*") if p.name.startswith(".")]


def test_no_command_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "run" in capsys.readouterr().out


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A table: who opens it is interrupted."""
    path, opens = tmp_path / "table.csv", Path.open
    path.write_text("series_uid,a,b\n" + "1,1,2\n" * 10)

    def interrupts(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            os.kill(os.getpid(), signal.SIGINT)
        return opens(self, *args, **options)

    monkeypatch.setattr(Path, "open", interrupts)
    # A test run in the background ignores SIGINT, and so would the command.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield path
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (["push", "{folder}", "--dicomweb", "http://127.0.0.1:9", "--only", "{table}"], True),
        (["run", "{folder}/in", "{folder}/out", "--only", "{table}"], True),
        (["cohort", "download", "{table}", "{folder}/ct"], True),
        (["stats", "agreement", "{table}", "--ai", "a", "--reference", "b"], False),
    ],
)
def test_an_interrupted_command_promises_to_go_on_where_it_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    table: Path,
    command: list[str],
    goes_on: bool,
) -> None:
    (tmp_path / "in").mkdir()
    words = {"folder": tmp_path, "table": table}
    assert main([c.format(**words) for c in command]) == 130
    text = capsys.readouterr().err
    assert text.startswith("interrupted")
    assert ("the same command goes on" in text) == goes_on
