"""What commands and workers load: who computes no network waits for no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

NETWORKS = {"torch", "monai", "nnunetv2"}
TABLES = {"pydicom.sr", "highdicom", "scipy", "PIL.PngImagePlugin"}
"""What only who computes or writes needs: tables of codes and scipy take a fifth of a second each."""
SLOW = {"pandas", "matplotlib", "scipy.stats", "skimage", "nibabel", "SimpleITK", "duckdb", "lifelines"}

STEPS = """
import contextlib, io, json, sys
from pathlib import Path

from deepcac2.batch.exchange import put, take
from deepcac2.batch.worker import Role, Worker
from deepcac2.cli.main import main
from deepcac2.dicom import discover
from deepcac2.imaging.labels import calcium_labels, heart_labels
from deepcac2.pipeline import Workflow
from deepcac2.pipeline.facts import CALCIUM, CT, HEART, SCORE
from deepcac2.pipeline.run import Job, settle_output
from deepcac2.scoring import score

scan, folder = map(Path, sys.argv[1:])
job = Job(workflow=Workflow.load("default"), output=folder / "out")
settle_output(job, redo=False)
loaded = {}


def note(step):
    loaded[step] = sorted(sys.modules)


def command(*words):
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(w) for w in words]) == 0, words
    note(words[0])


def worker(*phases, device=""):
    return Worker(job, Role(phases=phases, device=device, scratch=folder))


(series,) = discover(scan / "ct").series
reader, writer = worker("read"), worker("write")
for one in (reader, writer):
    assert one.warm_up() == ""
handed = reader(series).path
note("a worker that reads")
from deepcac2.dicom import read_segmentation
case = take(handed)
masks = read_segmentation(scan / "truth.seg.dcm", case[CT].geometry)
found = {HEART: heart_labels(masks["heart"]), CALCIUM: calcium_labels(masks["calcium"])}
for fact, value in (*found.items(), (SCORE, score(case[CT], masks["calcium"]))):
    case = case.add(fact, value)
put(case, handed)
assert writer(handed).settled.row.status == "scored"
note("a worker that writes")
command("release", "verify", folder / "out")
command("inspect", scan / "ct", "--index", folder / "index.parquet")
command("evaluate", folder / "out", scan)
command("stats", "agreement", folder / "ab.csv", "--ai", "a", "--reference", "b")
print(json.dumps(loaded))
"""


def test_who_computes_no_network_does_not_load_torch(simulated: Path, tmp_path: Path) -> None:
    """One after the other in one process: what a step finds loaded is its own or of one before it."""
    (tmp_path / "ab.csv").write_text(
        "patient_id,a,b\n" + "".join(f"{i},{10 * i},{9 * i}\n" for i in range(20))
    )
    command = [sys.executable, "-c", STEPS, str(simulated / "SIM-0003"), str(tmp_path)]
    steps = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=tmp_path).stdout)
    assert len(steps) == 6
    for step, modules in steps.items():
        assert not NETWORKS & set(modules), step
    assert TABLES.isdisjoint(steps["a worker that reads"])
    for step in ("a worker that reads", "a worker that writes", "release"):
        assert not SLOW & set(steps[step]), step
