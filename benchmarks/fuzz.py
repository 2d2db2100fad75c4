"""Feeds the commands and the dashboard what nobody should send, from a seed, and watches what happens.

    .venv/bin/python benchmarks/fuzz.py --minutes 60 --seed 1 --out runs/fuzz

Makes a patient, a run, a release, weights and tables, then changes real files (DICOM, SEG, SR, zip, weights,
workflows, tables, results) and requests at random. Each try is a process of its own with limits of time and
memory. A finding is a traceback, a crash, a hang, a limit that was met, an unknown exit code, a control
character on the terminal, the content of a file outside, a file written outside, a dead dashboard, or a score
that differs from the clean input's though `deepcac2 inspect` finds nothing. Findings of one kind are told
once; what made them is kept under ``findings``. Exits with the number of kinds. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from deepcac2.errors import DeepCACError

SECONDS, PEAK_MB, ADDRESS_SPACE, OUTPUT_BYTES = 30.0, 1500, 6 << 30, 4 << 20
RUN_SECONDS, RUN_PEAK_MB = 300.0, 2500
"""Limits of a try, and of one that is a whole run. The address space keeps the machine alive, the peak is
what is judged."""
SECRET = "not-for-anybodys-eyes"
UNKNOWABLE = {"7fe00010", "00281052", "00281053", "00280120"}
"""Pixels, rescale and padding: what stands there in a slice is its own business, right or wrong."""
EVIL = (
    *(b"", b"\0", b"\xff" * 8, b"-1", b"0", b"nan", b"1e400", b"9" * 400, b"../../../x", b"/etc/passwd"),
    *(
        b"\x1b[2J",
        b"\xed\xa0\x80",
        b"[" * 5000,
        b'{"a":' * 5000,
        b"1\\2\\3",
        b"\xfe\xff\x0d\xe0",
        b"1.2.840.1",
    ),
)


def changed(rng: random.Random, data: bytes, other: bytes = b"") -> tuple[bytes, tuple[int, int]]:
    """Some bytes changed, and where the change begins and ends in the original."""
    at = rng.randrange(len(data)) if data else 0
    if rng.random() < 0.5:  # most of what is read stands at the beginning
        at = min(at, rng.randrange(3000))
    end = min(len(data), at + rng.choice([1, 2, 4, 16, 300]))
    kind = rng.randrange(9)
    if kind == 0:
        new = bytes(b ^ (1 << rng.randrange(8)) for b in data[at : at + 1])
        end = at + len(new)
    elif kind == 1:
        new = rng.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * (end - at)
    elif kind == 2:
        new = b""
    elif kind == 3:
        new = data[at:end] * rng.choice([2, 3, 1000])
    elif kind == 4:
        new = rng.choice(EVIL)
        end = at + (len(new) if rng.random() < 0.5 else 0)
    elif kind == 5:
        new, end = b"", len(data)
    elif kind == 6:
        new = rng.randbytes(end - at)
    elif kind == 7 and (numbers := list(re.finditer(rb"\d+(\.\d+)?", data[:200_000]))):
        number = rng.choice(numbers)
        at, end, new = *number.span(), rng.choice(EVIL)
    else:
        start = rng.randrange(max(1, len(other)))
        new, end = other[start : start + 500], at
    return data[:at] + new + data[end:], (at, min(end, len(data)))


def elements(data: bytes) -> Iterator[tuple[str, int, int]]:
    """Tag, start and end of the elements at the top of a file in Explicit VR Little Endian."""
    at = 132
    while at + 8 <= len(data):
        group, element = (int.from_bytes(data[at + i : at + i + 2], "little") for i in (0, 2))
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"UC", b"UR")
        head = 12 if long else 8
        size = int.from_bytes(data[at + 8 : at + 12] if long else data[at + 6 : at + 8], "little")
        if size == 0xFFFFFFFF:
            return
        yield f"{group:04x}{element:04x}", at, at + head + size
        at += head + size


def changed_element(rng: random.Random, data: bytes) -> tuple[bytes, tuple[int, int]]:
    """One element of a DICOM file with another value, another length, twice, or gone."""
    _, start, end = rng.choice(list(elements(data)))
    kind = rng.randrange(4)
    if kind == 0:
        new = b""
    elif kind == 1:
        new = data[start:end] * rng.choice([2, 500])
    elif kind == 2:
        new = data[start : start + 6] + rng.randbytes(2) + data[start + 8 : end]
    else:
        value = rng.choice(EVIL)[:60_000]
        value += b" " * (len(value) % 2)
        new = data[start : start + 6] + len(value).to_bytes(2, "little") + value
    return data[:start] + new + data[end:], (start, end)


@dataclass
class Result:
    """What a try did."""

    code: int
    seconds: float
    peak_mb: float
    out: str
    err: str
    run: bool = False


def attempt(argv: list[str], place: Path) -> Result:
    """A command in a forked process that has loaded what is common, with limits."""
    started = time.perf_counter()
    streams = [place / "stdout", place / "stderr"]
    child = os.fork()
    if child == 0:
        code = 99
        try:
            os.setsid()
            for number, path in enumerate(streams, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.chdir(place)
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
            from deepcac2.cli.main import main

            code = main(argv)
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else 2
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.perf_counter() - started > (RUN_SECONDS if argv[0] == "run" else SECONDS):
            os.killpg(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            break
        time.sleep(0.002)
    texts = [path.read_bytes()[:OUTPUT_BYTES].decode(errors="replace") for path in streams]
    seconds = time.perf_counter() - started
    code = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss / 1024
    return Result(code=code, seconds=seconds, peak_mb=peak, out=texts[0], err=texts[1], run=argv[0] == "run")


def _exit_codes(error: type[DeepCACError]) -> Iterator[int]:
    """Of a class of `deepcac2.errors` and of those below it."""
    yield error.exit_code
    for below in error.__subclasses__():
        yield from _exit_codes(below)


def wrong(result: Result) -> str:
    """What is wrong with an answer, "" for nothing."""
    seconds, peak_mb = (RUN_SECONDS, RUN_PEAK_MB) if result.run else (SECONDS, PEAK_MB)
    text = result.out + result.err
    if "Traceback (most recent call last)" in text:
        places = re.findall(r'File "[^"]*?([^/"]+/[^/"]+)", line (\d+)', text)
        last = [line for line in text.splitlines() if re.match(r"\w[\w.]*(Error|Exception|Exit)\b", line)]
        kind = last[-1].partition(":")[0] if last else "?"
        return f"traceback {kind} at {':'.join(places[-1]) if places else '?'}"
    if result.seconds > seconds:
        return "hang"
    if result.code < 0:
        return f"signal {-result.code}"
    if result.code not in {0, 1, 2, *_exit_codes(DeepCACError)}:  # 2 is argparse's
        return f"exit code {result.code}"
    if result.peak_mb > peak_mb:
        return "memory"
    if len(text) >= OUTPUT_BYTES:
        return "flood of output"
    if SECRET in text:
        return "content of a file outside"
    if controls := set(text) & set(map(chr, [*range(9), 11, 12, *range(14, 32), 127, *range(128, 160)])):
        return f"control character {sorted(controls)[0]!r} on the terminal"
    if "weights_only" in text:
        return "advice to run code of a pickle"
    return ""


@dataclass
class Fuzzer:
    """The corpus, the attacks and what they found."""

    out: Path
    rng: random.Random
    tries: Counter[str] = field(default_factory=Counter)
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def corpus(self) -> Path:
        return self.out / "corpus"

    @cached_property
    def seg(self) -> Path:
        """The segmentation among the clean results."""
        return next((self.corpus / "results").rglob("cac.seg.dcm"))

    @cached_property
    def study(self) -> str:
        """StudyInstanceUID of the patient."""
        from pydicom import dcmread

        return str(dcmread(next((self.corpus / "ct").iterdir())).StudyInstanceUID)

    @cached_property
    def instance(self) -> str:
        """SOPInstanceUID of one slice."""
        from pydicom import dcmread

        return str(dcmread(next((self.corpus / "ct").iterdir())).SOPInstanceUID)

    def prepare(self) -> None:
        """Make what will be changed, with the project's own commands."""
        import numpy as np

        from deepcac2.simulation import default_geometry, simulate_patient
        from deepcac2.simulation.dicom import write_patient

        self.corpus.mkdir(parents=True)
        (self.out / "secret.txt").write_text(SECRET)
        patient = simulate_patient(3, geometry=default_geometry(3, size=256, slices=90))
        write_patient(patient, self.corpus / "in")
        home = next((self.corpus / "in").iterdir())
        home.joinpath("ct").rename(self.corpus / "ct")

        def command(*argv: str) -> None:
            subprocess.run([sys.executable, "-m", "deepcac2", *argv], check=True, cwd=self.corpus)

        command("run", "ct", "results", "--devices", "cpu", "--quiet")
        command("release", "build", "results", "release.zip")
        with zipfile.ZipFile(self.corpus / "ct.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((self.corpus / "ct").iterdir())[30:50]:
                archive.write(path, path.name)
        rng = np.random.default_rng(1)
        rows = ["patient_id,ai,reference,days,died"]
        for n in range(60):
            value = rng.gamma(0.5, 200)
            rows.append(f"P{n:02d},{value:.1f},{value * rng.uniform(0.8, 1.2):.1f},{n * 30 + 1},{n % 3 % 2}")
        (self.corpus / "table.csv").write_text("\n".join(rows) + "\n")
        source = Path(__file__).resolve().parents[1]
        shutil.copy(source / "config" / "default.yml", self.corpus)
        for name in ("calcium", "heart"):
            shutil.copytree(source / "weights" / name, self.corpus / "weights" / name)
        import torch  # only for what it writes: a checkpoint in nnU-Net's layout, but tiny

        folder = self.corpus / "nnunet" / "fold_0"
        folder.mkdir(parents=True)
        made = self.corpus / "weights" / "heart"
        for name in ("plans.json", "dataset.json"):
            shutil.copy(made / name, folder.parent)
        state = {"network_weights": {"a.weight": torch.zeros(2, 1, 1, 1, 1)}, "trainer_name": "nnUNetTrainer"}
        torch.save(state | {"init_args": {"configuration": "3d_lowres"}}, folder / "checkpoint_final.pth")
        (self.corpus / "done").touch()

    def report(self, attack: str, place: Path, result: Result, what: str) -> None:
        """Keep and tell a finding, once a kind."""
        what = f"{attack}: {what}"
        self.kinds[what] = self.kinds.get(what, 0) + 1
        if self.kinds[what] > 1:
            return
        kept = self.out / "findings" / f"{len(self.kinds):03d}"
        shutil.copytree(place, kept, symlinks=True, ignore=_special)
        print(f"FINDING {kept.name} {what} (exit {result.code}, {result.seconds:.1f} s)", flush=True)

    def run(self, minutes: float, only: str) -> int:
        """Try until the time is over; the number of kinds of findings."""
        attacks = {k[4:]: getattr(self, k) for k in dir(self) if k.startswith("try_") and only in k}
        end = time.monotonic() + 60 * minutes
        outside = _listing(self.out)
        while time.monotonic() < end:
            name = self.rng.choice(list(attacks))
            place = Path(tempfile.mkdtemp(prefix="try-", dir=self.out))
            for argv in attacks[name](place):
                result = attempt(argv, place)
                self._judge(name, place, result, wrong(result))
            shutil.rmtree(place, ignore_errors=True)
            if (now := _listing(self.out)) != outside:
                self._judge(name, self.corpus / "in", Result(0, 0, 0, "", ""), f"wrote {now ^ outside}")
                outside = now
        return len(self.kinds)

    def _judge(self, name: str, place: Path, result: Result, what: str) -> None:
        self.tries[name] += 1
        seconds, peak = self.worst.get(name, (0.0, 0.0))
        self.worst[name] = max(seconds, result.seconds), max(peak, result.peak_mb)
        if what:
            self.report(name, place, result, what)

    # What is changed. Each lays the changed files into its place and yields command lines.

    def _series(self, place: Path) -> bool:
        """The series below ``ct`` with one file changed; whether that was at an `UNKNOWABLE` element."""
        files = sorted((self.corpus / "ct").iterdir())
        target = self.rng.choice(files)
        (place / "ct").mkdir()
        for path in files:
            os.link(path, place / "ct" / path.name)
        data, copy = target.read_bytes(), place / "ct" / target.name
        copy.unlink()
        change = self.rng.choice([changed, changed_element])
        new, (start, end) = change(self.rng, data)
        copy.write_bytes(new)
        if self.rng.random() < 0.1:
            self._special_file(copy)
        touched = {tag for tag, a, b in elements(data) if a < max(end, start + 1) and start < b}
        return bool(touched & UNKNOWABLE)

    def _special_file(self, path: Path) -> None:
        path.unlink()
        kind = self.rng.randrange(5)
        if kind == 0:
            os.mkfifo(path)
        elif kind == 1:
            path.symlink_to(self.out / "secret.txt")
        elif kind == 2:
            path.symlink_to("/dev/zero")
        elif kind == 3:
            path.symlink_to(path)
        else:
            with path.open("wb") as file:
                file.write(bytes(128) + b"DICM")
                file.truncate(3 << 30)

    def try_inspect(self, place: Path) -> Iterator[list[str]]:
        """A CT series."""
        self._series(place)
        yield ["inspect", "ct", *self.rng.choice([[], ["--json"], ["--index", "index.parquet"]])]

    def try_score(self, place: Path) -> Iterator[list[str]]:
        """A CT series with the mask of the clean one: no other score without a word."""
        unknowable = self._series(place)
        mask = str(self.seg)
        scores = []
        for ct in (str(self.corpus / "ct"), "ct"):
            result = attempt(["score", ct, mask, "--json"], place)
            self._judge("score", place, result, wrong(result))
            scores.append(_parsed(result))
        if unknowable or None in scores or _value(scores[0]) == _value(scores[1]):
            return
        findings = []
        for ct in (str(self.corpus / "ct"), "ct"):
            result = attempt(["inspect", ct, "--json"], place)
            findings.append(re.findall(r'"code": "([^"]*)"', result.out))
        if findings[0] == findings[1]:
            values = f"{_value(scores[0])} became {_value(scores[1])}"
            (place / "why").write_text(values)
            self.report("score", place, result, "another score without a finding")
        yield from ()

    def try_seg(self, place: Path) -> Iterator[list[str]]:
        """A segmentation."""
        data = self.seg.read_bytes()
        change = self.rng.choice([changed, changed_element])
        (place / "mask.dcm").write_bytes(change(self.rng, data)[0])
        yield ["score", str(self.corpus / "ct"), "mask.dcm"]
        yield ["inspect", "mask.dcm"]

    def try_zip(self, place: Path) -> Iterator[list[str]]:
        """A zipped series: bytes, a member, or a member that unpacks to very much."""
        data = (self.corpus / "ct.zip").read_bytes()
        if self.rng.random() < 0.5:
            (place / "ct.zip").write_bytes(changed(self.rng, data)[0])
        else:
            self._repacked(self.corpus / "ct.zip", place / "ct.zip")
        yield ["inspect", "ct.zip"]

    def _repacked(self, source: Path, target: Path) -> None:
        """The archive with a member changed, renamed, twice, or followed by zeros."""
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
            names = old.namelist()
            victim, kind = self.rng.choice(names), self.rng.randrange(5)
            for name in names:
                data = old.read(name)
                if name == victim and kind == 0:
                    continue
                if name == victim and kind in (1, 2):
                    data = changed(self.rng, data)[0]
                if name == victim and kind == 3:
                    data += bytes(self.rng.choice([10_000_000, 400_000_000]))
                if name == victim and kind == 4:
                    name = self.rng.choice(
                        ["../x", "a/../../b", "/x", "\x1b[2J", "a\\..\\x", names[0], "x" * 9000]
                    )
                new.writestr(name, data)

    def try_release(self, place: Path) -> Iterator[list[str]]:
        """A release."""
        if self.rng.random() < 0.4:
            data = (self.corpus / "release.zip").read_bytes()
            (place / "r.zip").write_bytes(changed(self.rng, data)[0])
        else:
            self._repacked(self.corpus / "release.zip", place / "r.zip")
        yield ["release", "verify", "r.zip", "--ct", str(self.corpus / "ct")]
        if self.rng.random() < 0.3:
            yield ["release", "compare", "r.zip", str(self.corpus / "release.zip")]

    def try_results(self, place: Path) -> Iterator[list[str]]:
        """A results folder, for what reads it."""
        self._results(place)
        yield ["release", "build", "results", "out.zip"]
        yield ["release", "compare", "results", str(self.corpus / "results")]
        if self.rng.random() < 0.3:
            yield ["push", "results", "--dicomweb", "http://127.0.0.1:1", "--retries", "0", "--timeout", "2"]

    def _results(self, place: Path) -> None:
        shutil.copytree(self.corpus / "results", place / "results")
        files = [p for p in (place / "results").rglob("*") if p.is_file()]
        victim = self.rng.choice(files)
        victim.write_bytes(changed(self.rng, victim.read_bytes(), self.rng.choice(files).read_bytes())[0])
        if self.rng.random() < 0.25:
            self._special_file(victim)

    def try_weights(self, place: Path) -> Iterator[list[str]]:
        """Sets of weights and what is converted to some."""
        kind = self.rng.choice(["weights/calcium", "weights/heart", "nnunet"])
        shutil.copytree(self.corpus / kind, place / "set")
        files = [p for p in (place / "set").rglob("*") if p.is_file()]
        victim = self.rng.choice(files)
        victim.write_bytes(changed(self.rng, victim.read_bytes())[0])
        if kind != "nnunet":
            yield ["weights", "verify", "set"]
        else:
            yield ["weights", "convert-nnunet-v2", "set", "converted"]
            (place / "set" / "plans.pkl").write_bytes(self._pickle())
            yield ["weights", "convert-nnunet-v1", "set", "converted1"]

    def _pickle(self) -> bytes:
        import pickle

        stage = {"patch_size": [8, 8, 8], "conv_kernel_sizes": [[3] * 3]}
        plans = {"num_classes": 1, "plans_per_stage": {0: stage}}
        return changed(self.rng, pickle.dumps(plans, self.rng.randrange(6)))[0]

    def try_tables(self, place: Path) -> Iterator[list[str]]:
        """Tables of scores."""
        table = self.rng.choice([self.corpus / "table.csv", self.corpus / "results" / "results.parquet"])
        copy = place / ("t" + table.suffix)
        copy.write_bytes(changed(self.rng, table.read_bytes())[0])
        yield ["stats", "agreement", copy.name, "--ai", "ai", "--reference", "reference"]
        yield ["stats", "survival", copy.name, copy.name, "--time", "days", "--event", "died"]
        yield ["stats", "report", copy.name, "out"]
        yield ["cohort", "select", copy.name, "-o", "selected.csv"]

    def try_workflow(self, place: Path) -> Iterator[list[str]]:
        """A workflow, up to where the input would be read."""
        (place / "w.yml").write_bytes(changed(self.rng, (self.corpus / "default.yml").read_bytes())[0])
        (place / "in").mkdir()
        (place / "in" / "x").write_text("no DICOM")
        yield ["run", "in", "out", "--workflow", "w.yml", "--devices", "cpu"]

    def try_run(self, place: Path) -> Iterator[list[str]]:
        """A whole run; seldom, as it takes long."""
        if self.rng.random() < 0.05:
            self._series(place)
            yield ["run", "ct", "out", "--devices", "cpu", "--quiet"]

    def try_dashboard(self, place: Path) -> Iterator[list[str]]:
        """Results that were changed behind a dashboard, and requests that no browser sends."""
        if self.rng.random() > 0.3:
            return
        self._results(place)
        log = (place / "log").open("w")
        command = [sys.executable, "-m", "deepcac2", "dashboard", "results", "--port", "0", "--ct"]
        environment = os.environ | {"DEEPCAC2_TOKEN": ""}
        server = subprocess.Popen(
            [*command, str(self.corpus / "ct")], cwd=place, stderr=log, env=environment, stdout=log
        )
        what, peak = "", 0.0
        try:
            port = _port(place / "log", server)
            if port is None:
                result = Result(server.wait(), 0, 0, "", (place / "log").read_text(errors="replace"))
                self._judge("dashboard", place, result, wrong(result))
                return
            for _ in range(60):
                what = what or self._request(port, place)
                self.tries["dashboard"] += 1
            good = f"GET /api/about HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            answer = _send(port, good.encode(), whole=True)
            if not answer.startswith(b"HTTP/1.1"):
                what = what or "a dashboard that does not answer any more"
            status = Path(f"/proc/{server.pid}/status").read_text()
            peak = int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) / 1024
        finally:
            server.kill()
            server.wait()
            log.close()
        text = (place / "log").read_text(errors="replace")
        result = Result(0, 0.0, peak, "", text)  # the time of each request was looked at by _request
        self._judge("dashboard", place, result, what or wrong(result))
        yield from ()

    def _request(self, port: int, place: Path) -> str:
        data = self._request_bytes(port)
        (place / "request").write_bytes(data)
        started = time.perf_counter()
        answer = _send(port, data)
        if time.perf_counter() - started > SECONDS:
            return "hang"
        if SECRET.encode() in answer:
            return "content of a file outside"
        if answer.startswith(b"HTTP/1.1 500"):
            return "status 500"
        head = answer.partition(b"\r\n\r\n")[0].lower()
        if answer.startswith(b"HTTP/1.1") and b"nosniff" not in head:
            return f"an answer without security headers: {answer[:12].decode(errors='replace')}"
        return ""

    def _request_bytes(self, port: int) -> bytes:
        """A request to one of the addresses, most often changed."""
        row = self.seg.parent
        series = row.name
        dicom = f"/dicomweb/studies/{self.study}/series/{series}"
        instance = f"{dicom}/instances/{self.instance}"
        path = self.rng.choice(
            [
                *("/", "/api/about", "/api/cases", "/api/counts", "/api/not-scored", "/%00"),
                *("/api/cases?page=1&size=999999999", "/api/cases?search=" + "a" * 5000, "/api/export.csv"),
                *(f"/api/cases/{series}", f"/api/cases/{series}/preview.png", f"/api/cases/{series}/slices"),
                *(f"/api/cases/{series}/slices/40.png", "/assets/app.js", "/assets/..%2f..%2fsecret.txt"),
                *("/dicomweb/studies", "/dicomweb/series?limit=-1", "/dicomweb/instances?offset=1e9", dicom),
                *(f"{dicom}/metadata", f"{dicom}/thumbnail", f"{instance}/frames/1", f"{instance}/rendered"),
                *(f"{instance}/frames/{'1,' * 4000}1", f"{instance}/rendered?viewport=99999,99999"),
                *(f"{instance}/bulkdata/7fe00010", "/" + "a" * 70_000, "/api/cases/../../../etc/passwd"),
            ]
        )
        extra = self.rng.choice(
            [
                *("", "", "Origin: http://[\r\n", "Range: bytes=0-1,0-1\r\n", "Content-Length: 9999999\r\n"),
                *("X: " + "a" * 70_000 + "\r\n", "Accept: " + "*/*," * 5000 + "\r\n", "X: y\r\n" * 500),
            ]
        )
        method = self.rng.choice(["GET", "GET", "GET", "HEAD", "PUT"])
        body = ""
        if self.rng.random() < 0.2:
            method, path = "POST", "/api/sql"
            body = self.rng.choice(['{"sql": "select * from cases"}', "[" * 9000, '{"sql": "\\ud800"}'])
            extra += f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n"
        head = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n{extra}\r\n"
        data = f"{method} {path} HTTP/1.1\r\n{head}{body}".encode()
        return changed(self.rng, data)[0] if self.rng.random() < 0.6 else data


def _send(port: int, data: bytes, *, whole: bool = False) -> bytes:
    """A request as it stands; what comes back within the time of a try, at most 4 MB of it.

    One that is not whole is ended, or the answer would come when the time for it is over.
    """
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as line:
        line.sendall(data)
        if not whole:
            line.shutdown(socket.SHUT_WR)
        while len(answer) < OUTPUT_BYTES and (part := line.recv(1 << 16)):
            answer += part
    return answer


def _port(log: Path, server: subprocess.Popen[bytes]) -> int | None:
    while server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text(errors="replace")):
            return int(found[1])
        time.sleep(0.05)
    return None


def _parsed(result: Result) -> object | None:
    try:
        return json.loads(result.out) if result.code == 0 else None
    except ValueError:
        return None


def _value(parsed: object) -> str:
    found = re.search(r'"(?:agatston_score|score)": ([-\d.e]+)', json.dumps(parsed))
    return found[1] if found else "?"


def _listing(folder: Path) -> frozenset[str]:
    kept = (folder / "findings", *folder.glob("try-*"))
    return frozenset(
        f"{path.relative_to(folder)} {path.lstat().st_size}"
        for path in folder.rglob("*")
        if not any(path.is_relative_to(k) for k in kept)
    )


def _special(folder: str, names: list[str]) -> list[str]:
    """Files that cannot be copied, or are not worth it."""
    paths = [Path(folder) / name for name in names]
    return [p.name for p in paths if p.is_fifo() or (p.is_file() and p.stat().st_size > 1 << 28)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed the program hostile input and watch it.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fuzz"), help="new folder, or an earlier call's"
    )
    parser.add_argument("--only", default="", help="attacks whose name holds this word")
    args = parser.parse_args()
    fuzzer = Fuzzer(args.out.resolve(), random.Random(args.seed))
    if not (fuzzer.corpus / "done").exists():
        if args.out.exists() and any(args.out.iterdir()):
            parser.error(f"{args.out} is neither empty nor an earlier call's")
        if child := os.fork():  # torch has threads; what forks later must have none
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
                return 1
        else:
            try:
                fuzzer.prepare()
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    import deepcac2.cli.main
    import deepcac2.dicom  # noqa: F401

    kinds = fuzzer.run(args.minutes, args.only)
    print(f"\n{'attack':12}{'tries':>8}{'longest s':>12}{'peak MB':>10}")
    for name in sorted(fuzzer.tries):
        seconds, peak = fuzzer.worst.get(name, (0.0, 0.0))
        print(f"{name:12}{fuzzer.tries[name]:8}{seconds:12.1f}{peak:10.0f}")
    for what, count in fuzzer.kinds.items():
        print(f"{count:6} x {what}")
    return kinds


if __name__ == "__main__":
    raise SystemExit(main())
