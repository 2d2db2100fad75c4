"""A listening node under fire: many senders at once, broken and cut transfers, and SIGKILL at random.

    .venv/bin/python benchmarks/node.py --series 200 --big 14 --kills 10 --out runs/node

Needs dcmtk's ``storescu`` and Orthanc with DICOMweb (Debian: dcmtk, orthanc, orthanc-dicomweb). A sender
whose ``storescu`` fails tries again, as a PACS does, until all of its images were acknowledged; but for those
that are to stay cut. At the end every series of which anything was acknowledged has exactly one row, of the
kind that its transfer deserves, and the archive holds the results of each scored series exactly once. Where
that is not so, it exits with 1.

Big series are a simulated patient under other UIDs, small ones a few of its slices: for the gates, not for
the networks. Both in equal parts

- whole, and twice;
- cut (half, then an abort) and then sent whole; or cut for ever;
- broken: one image more that is no DICOM any more, which is refused;
- late: two thirds, released, and the rest after some seconds;
- contradicted: one image once more with another content.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pyarrow import parquet
from pydicom.uid import generate_uid

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from orthanc import Orthanc, free_port

KINDS = ("whole", "twice", "cut-then-whole", "cut", "broken", "late", "contradicted")
NOT_ALL = {"cut", "broken", "contradicted"}


@dataclass
class Sent:
    """One series of a sender."""

    folder: Path
    uid: str
    kind: str
    big: bool
    files: list[Path] = field(default_factory=list)


def make(source: Path, folder: Path, kind: str, big: bool, number: int) -> Sent:
    """A series under UIDs of its own, on the disk."""
    folder.mkdir(parents=True)
    uid = generate_uid(entropy_srcs=["node", str(number)])
    paths = sorted(source.iterdir())
    one = Sent(folder, uid, kind, big)
    for path in paths if big else paths[:6]:
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID, ds.StudyInstanceUID = uid, generate_uid(entropy_srcs=["study", str(number)])
        ds.PatientID = f"P{number:04d}"
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[uid, path.name])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(folder / path.name)
        one.files.append(folder / path.name)
    if kind == "broken":
        ds = pydicom.dcmread(one.files[0])
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        del ds.StudyInstanceUID
        ds.save_as(folder / "broken.dcm")
        one.files.insert(len(one.files) // 2, folder / "broken.dcm")
    if kind == "contradicted":
        ds = pydicom.dcmread(one.files[0])
        ds.PatientName = "Somebody^Else"
        ds.save_as(folder / "other.dcm")
    return one


class Senders:
    """Sends series side by side, each as often as it takes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.tries: Counter[str] = Counter()

    def store(self, files: list[Path], *options: str, once: bool = False) -> None:
        """Until storescu is content, or `once`."""
        command = ["storescu", "-aec", "DEEPCAC2", *options, "127.0.0.1", str(self.port), *map(str, files)]
        while True:
            self.tries["associations"] += 1
            done = subprocess.run(command, capture_output=True, check=False, text=True)
            if done.returncode == 0 or once:
                return
            self.tries["failed"] += 1
            time.sleep(random.uniform(0.5, 3))

    def __call__(self, one: Sent) -> None:
        half = one.files[: len(one.files) // 2]
        match one.kind:
            case "whole":
                self.store(one.files)
            case "twice":
                self.store(one.files)
                self.store(one.files)
            case "cut-then-whole":
                self.store(half, "--abort", once=True)
                time.sleep(random.uniform(0, 10))
                self.store(one.files)
            case "cut":
                self.acknowledged(half, "--abort")
            case "broken":
                self.acknowledged(one.files, "--no-halt")
            case "late":
                most = one.files[: 2 * len(one.files) // 3]
                self.store(most)
                time.sleep(random.uniform(0, 60))
                self.store(one.files[len(most) :])
            case "contradicted":
                self.store(one.files)
                self.acknowledged([one.folder / "other.dcm"], "--no-halt")

    def acknowledged(self, files: list[Path], *options: str) -> None:
        """Until the node has answered each of them, whatever it said."""
        while True:
            self.tries["associations"] += 1
            command = ["storescu", "-v", "-aec", "DEEPCAC2", *options, "127.0.0.1", str(self.port)]
            done = subprocess.run([*command, *map(str, files)], capture_output=True, check=False, text=True)
            if (done.stdout + done.stderr).count("Received Store Response") == len(files):
                return
            self.tries["failed"] += 1
            time.sleep(random.uniform(0.5, 3))


class Killed:
    """A node that is killed and started again."""

    def __init__(self, folder: Path, archive: Orthanc) -> None:
        self.folder, self.port, self.http = folder, free_port(), free_port()
        (folder / "node.yml").write_text(
            f"listen: {{port: {self.port}, associations: 40}}\nlimits: {{free_gb: 0.5}}\n"
            f"quiet: 5\npatience: 10\nhttp: 127.0.0.1:{self.http}\n"
            f"destinations: [{{dimse: {archive.address}}}]\n"
        )
        self.peak = self.parent_peak = 0
        self.starts: list[float] = []
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "deepcac2", "serve", "inbox", "results", "--config", "node.yml"]
        began = time.monotonic()
        log = (self.folder / "node.log").open("ab")
        self.process = subprocess.Popen(
            [*command, "--devices", "cpu", "--prefetch", "0"], cwd=self.folder, stderr=log
        )
        while self.process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError((self.folder / "node.log").read_text()[-2000:])
        self.starts.append(time.monotonic() - began)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def state(self) -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/health", timeout=60) as answer:
            return dict(json.load(answer))

    def _watch(self) -> None:
        """Memory of the node and of it with its workers, MB."""
        while not self._ended.wait(0.5):
            sizes = {pid: _resident(pid) for pid in [self.process.pid, *_children(self.process.pid)]}
            self.parent_peak = max(self.parent_peak, sizes[self.process.pid])
            self.peak = max(self.peak, sum(sizes.values()))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self._ended.set()
        return self.process.wait(300)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        direct = [int(p) for p in path.read_text().split()]
    except OSError:
        return []
    return [c for d in direct for c in (d, *_children(d))]


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) // 1024
    except (OSError, IndexError):
        return 0


def judge(folder: Path, series: list[Sent], archive: Orthanc) -> list[str]:
    """What is not as it should be."""
    wrong: list[str] = []
    table = parquet.read_table(folder / "results" / "results.parquet").to_pylist()
    rows = Counter(row["series_uid"] for row in table)
    by_uid = {row["series_uid"]: row for row in table}
    wrong += [f"{uid}: {n} rows" for uid, n in rows.items() if n != 1]
    wrong += [f"{one.uid}: no row ({one.kind})" for one in series if one.uid not in rows]
    wrong += [f"{uid}: a row of nobody" for uid in rows.keys() - {one.uid for one in series}]
    stored: Counter[str] = Counter()
    held = set()
    for instance in archive.get("/instances?expand&requestedTags=Modality"):
        held.add(instance["MainDicomTags"]["SOPInstanceUID"])
    for one in series:
        row = by_uid.get(one.uid, {})
        want = ("rejected", "too-few-slices") if not one.big else ("scored", "")
        if one.kind in NOT_ALL:
            want = ("rejected", "transfer-incomplete")
        if (row.get("status"), row.get("code")) != want:
            wrong.append(f"{one.uid}: {one.kind}: {row.get('status')} {row.get('code')}")
        if want[0] == "scored" and row.get("n_slices") != len(one.files):
            wrong.append(f"{one.uid}: {one.kind}: {row.get('n_slices')} slices")
        if row.get("status") == "scored":
            files = sorted((folder / "results" / row["folder"]).glob("*.dcm"))
            stored["files"] += len(files)
            for path in files:
                uid = str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)
                stored["there"] += uid in held
                held.discard(uid)
    if stored["files"] != stored["there"]:
        wrong.append(f"of {stored['files']} files of results {stored['there']} are in the archive")
    lines = [
        json.loads(line)
        for path in (folder / "results" / "logs").glob("push-*.jsonl")
        for line in path.read_text().splitlines()
        if line
    ]
    again = [uid for uid, n in Counter(x["instance"] for x in lines if x["event"] == "sent").items() if n > 1]
    wrong += [f"{uid}: acknowledged twice" for uid in again]
    print(f"archive: {stored['there']} of {stored['files']} files of results, {len(held)} of earlier ones")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--big", type=int, default=14, help="of them, as many with 90 slices")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/node"))
    args = parser.parse_args()
    random.seed(args.seed)
    folder = args.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    from deepcac2.simulation import default_geometry, simulate_patient
    from deepcac2.simulation.dicom import write_patient

    write_patient(simulate_patient(3, geometry=default_geometry(3, size=256, slices=90)), folder / "source")
    source = folder / "source" / "SIM-0003" / "ct"
    series = [
        make(source, folder / "sent" / str(i), KINDS[i % len(KINDS)], i < args.big, i)
        for i in range(args.series)
    ]
    sent_bytes = sum(p.stat().st_size for one in series for p in one.files)
    random.shuffle(series)
    archive = Orthanc(folder / "orthanc")
    node = Killed(folder, archive)
    senders = Senders(node.port)
    began = time.monotonic()
    with ThreadPoolExecutor(args.senders) as pool:
        work = [pool.submit(senders, one) for one in series]
        for number in range(args.kills):
            time.sleep(random.uniform(2, 20))
            done = sum(w.done() for w in work)
            node.kill()
            print(f"kill {number + 1} after {time.monotonic() - began:.0f} s: {done} series sent", flush=True)
            node.start()
        for one in work:
            one.result()
    sent = time.monotonic() - began
    print(f"all sent after {sent:.0f} s", flush=True)
    quiet = 0
    while quiet < 3:
        state = node.state()
        counts = state["series"]
        assert isinstance(counts, dict)
        quiet = quiet + 1 if not counts["waiting"] and not state["undelivered"] else 0
        time.sleep(2)
    took = time.monotonic() - began
    code = node.stop()
    disk = {
        n: sum(p.stat().st_size for p in (folder / n).rglob("*") if p.is_file()) for n in ("inbox", "results")
    }
    wrong = judge(folder, series, archive)
    archive.stop()
    print(
        f"{len(series)} series ({args.big} big), {sent_bytes / 1e6:.0f} MB sent; {args.kills} kills; "
        f"{senders.tries['associations']} associations, {senders.tries['failed']} of them failed; "
        f"all sent after {sent:.0f} s, all done after {took:.0f} s; exit {code}"
    )
    print(
        f"memory: node {node.parent_peak} MB, with workers {node.peak} MB; disk: inbox "
        f"{disk['inbox'] / 1e6:.0f} MB, results {disk['results'] / 1e6:.0f} MB; start "
        f"{min(node.starts):.1f} to {max(node.starts):.1f} s"
    )
    print("\n".join(wrong) or "every series has its one row, and the archive its results once")
    return 1 if wrong or code else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
