"""`deepcac2 push`, run as a program sees it, to a real Orthanc: what it says, and what it never says."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest

from deepcac2.cli.main import main

NAMES = ("DEEPCAC2_DICOMWEB_USER", "DEEPCAC2_DICOMWEB_PASSWORD", "DEEPCAC2_DICOMWEB_TOKEN")
USER = {"DEEPCAC2_DICOMWEB_USER": "tester", "DEEPCAC2_DICOMWEB_PASSWORD": "c0rrect-horse"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def sign_in(environment: pytest.MonkeyPatch, **changes: str) -> None:
    for name, value in {**USER, **changes}.items():
        environment.setenv(name, value)


def failing(capsys: pytest.CaptureFixture[str], *command: object) -> tuple[int, str]:
    code = main(["push", *(str(c) for c in command)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return code, lines[0]


def test_the_summary(
    quick_results: Path,
    orthanc: Any,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    sign_in(environment)
    assert main(["push", str(quick_results), "--dicomweb", orthanc.dicomweb]) == 0
    text = f"1 sent, 0 already there, 0 not sent, of 1 series to {orthanc.dicomweb}; log: "
    assert capsys.readouterr().out.startswith(text)
    table = tmp_path / "some.csv"
    table.write_text(f"series_uid\n{next(quick_results.rglob('cac.seg.dcm')).parent.name}\n1.2.3\n")
    assert main(["push", str(quick_results), "--dimse", orthanc.address, "--only", str(table)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"1 sent, 0 already there, 0 not sent, of 1 series to {orthanc.address}")
    assert captured.err == f"1 series of --only are not scored in {quick_results}\n"
    assert main(["push", str(quick_results), "--dimse", orthanc.address, "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("0 sent, 1 already there")


def test_what_is_not_taken_is_listed(
    quick_results: Path, orthanc: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    seg = next(quick_results.rglob("cac.seg.dcm"))
    ds = pydicom.dcmread(seg)
    ds.StudyInstanceUID = ""
    ds.save_as(seg)
    assert main(["push", str(quick_results), "--dimse", orthanc.address]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"instance {ds.SOPInstanceUID}: refused: Out of Resources (0xA700)\n"
    assert captured.out.startswith("0 sent, 0 already there, 1 not sent")


def test_errors_and_their_exit_codes(
    quick_results: Path,
    orthanc: Any,
    orthanc_module: Any,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nobody = orthanc_module.free_port()
    web, results = orthanc.dicomweb, quick_results
    assert failing(capsys, results, "--dicomweb", web)[0] == 72
    assert failing(capsys, results, "--dicomweb", f"http://127.0.0.1:{nobody}")[0] == 71
    assert failing(capsys, results, "--dimse", f"A@127.0.0.1:{nobody}")[0] == 71
    code, text = failing(capsys, results, "--dimse", orthanc.address, "--calling-aet", "OTHER")
    assert code == 72
    assert "calling ae title not recognised" in text
    assert failing(capsys, results / "none", "--dicomweb", web)[0] == 10
    assert failing(capsys, results.parent, "--dicomweb", web)[0] == 10
    assert failing(capsys, results, "--dimse", "nonsense")[0] == 10
    assert failing(capsys, results, "--dicomweb", web, "--tls")[0] == 10
    assert failing(capsys, results, "--dimse", orthanc.address, "--insecure")[0] == 10
    assert failing(capsys, results, "--dicomweb", web, "--ct", results / "none")[0] in (12, 72)
    sign_in(environment)
    assert failing(capsys, results, "--dicomweb", web, "--ct", results / "none")[0] == 12
    assert failing(capsys, results, "--dicomweb", "http://192.0.2.7/dicom-web")[0] == 10


@pytest.mark.parametrize("options", [[], ["--dicomweb", "http://127.0.0.1:9", "--dimse", "A@127.0.0.1:9"]])
def test_one_destination(quick_results: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["push", str(quick_results), *options])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("secrets", "url", "code"),
    [
        (USER, "", 0),
        pytest.param({**USER, "DEEPCAC2_DICOMWEB_PASSWORD": "wr0ng-horse"}, "", 72, marks=pytest.mark.slow),
        ({"DEEPCAC2_DICOMWEB_TOKEN": "s3cret-t0ken"}, "", 72),
        ({"DEEPCAC2_DICOMWEB_TOKEN": "s3cret-t0ken\n"}, "", 10),
        ({}, "http://tester:c0rrect-horse@127.0.0.1:9/dicom-web", 10),
        pytest.param(USER, "http://127.0.0.1:9/dicom-web", 71, marks=pytest.mark.slow),
        (USER, "http://192.0.2.7/dicom-web", 10),
        (USER, "https://127.0.0.1:9/dicom-web", 71),
    ],
)
def test_credentials_are_nowhere(
    quick_results: Path, orthanc: Any, tmp_path: Path, secrets: dict[str, str], url: str, code: int
) -> None:
    """Neither on the screen nor in any file, also where all libraries tell all they have to tell."""
    starter = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG)\n"
        "import deepcac2.cli.run as run; run._LIBRARIES = {}\n"
        "for name in ('urllib3', 'pynetdicom', 'pydicom'): logging.getLogger(name).setLevel(logging.DEBUG)\n"
        "from deepcac2.cli.main import main; sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", starter, "push", str(quick_results)]
    command += ["--dicomweb", url or orthanc.dicomweb, "--retries", "0"]
    clean = {k: v for k, v in os.environ.items() if k not in NAMES}
    done = subprocess.run(command, env={**clean, **secrets}, capture_output=True, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    told = done.stdout + done.stderr
    told += b"".join(p.read_bytes() for p in (quick_results / "logs").glob("*") if p.is_file())
    assert b"DEBUG" in told
    for word in ("c0rrect", "wr0ng", "s3cret"):
        assert word.encode() not in told
    pair = ":".join(secrets.get(n, "") for n in NAMES[:2])
    assert pair == ":" or base64.b64encode(pair.encode()) not in told
