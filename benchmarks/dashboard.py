"""Measure the dashboard on a table as long as a whole release: start, first page, filters, charts, memory.

Usage: ``python benchmarks/dashboard.py [--rows 130000] [--repeat 5] [--keep FOLDER] [--stats] [--review N]``

Writes a synthetic ``results.parquet`` (three visits a patient, two kernels a visit, scores spread as among
smokers), starts `deepcac2 dashboard` on it in a process of its own, asks it over HTTP as the page does, and
prints a table: the median and the longest answer, the processor time that the server took for it (which a
busy machine does not change much), and the memory of the server. Nothing is asserted. Of more than 130,000
rows, the further ones are copies with patients and UIDs of their own. With ``--stats``, `deepcac2 stats
report` is run over the table as well. With ``--review N`` the reading desk is open, and N of the series,
spread over the table, have been read.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deepcac2.pipeline.places import PARQUET
from deepcac2.pipeline.results import ResultRow, write_parquet
from deepcac2.review.desk import CASES
from deepcac2.review.journal import ENDING, Entry, now
from deepcac2.scoring import risk_group

SEED = 4
KERNELS = {
    "GE MEDICAL SYSTEMS": ("STANDARD", "LUNG", "BONE", "BODY FILTER"),
    "SIEMENS": ("B30f", "B50f", "B60f", "B45f", "B70f", "B20f"),
    "Philips": ("C", "D", "B", "L"),
    "TOSHIBA": ("FC10", "FC51", "FC01", "FC50", "FC02"),
}
THICKNESS = (1.0, 1.25, 2.0, 2.5, 3.0, 3.2, 5.0)
REASONS = {"contrast": "contrast agent", "metal": "dense as metal", "missing-slices": "2 slices are missing"}


def rows(count: int, seed: int = SEED) -> Iterator[ResultRow]:
    """So many rows, made up, the same for the same seed."""
    rng = np.random.default_rng(seed)
    makers = list(KERNELS)
    made = patient = 0
    while made < count:
        patient += 1
        maker = makers[rng.choice(len(makers), p=[0.45, 0.35, 0.12, 0.08])]
        burden = 0.0 if rng.random() < 0.3 else float(rng.lognormal(4.2, 1.8))
        for visit in range(int(rng.choice([1, 2, 3], p=[0.15, 0.15, 0.7]))):
            thickness = float(rng.choice(THICKNESS))
            study = f"1.2.826.0.1.{patient}.{visit}"
            for kernel in rng.choice(KERNELS[maker], size=2, replace=False):
                if made == count:
                    return
                made += 1
                scored = rng.random() > 0.06
                code = "" if scored else str(rng.choice(list(REASONS)))
                score = round(burden * (1 + 0.2 * visit) * float(rng.lognormal(0, 0.15)), 4)
                group = risk_group(score)
                uid = f"{study}.{made}"
                yield ResultRow(
                    patient_id=str(100000 + patient),
                    study_uid=study,
                    series_uid=uid,
                    status="scored" if scored else "rejected" if rng.random() < 0.95 else "failed",
                    code=code,
                    reason=REASONS.get(code, ""),
                    agatston_score=score if scored else None,
                    risk_group=int(group) if scored else None,
                    risk_group_name=group.label if scored else "",
                    volume_mm3=round(score * 0.8, 3) if scored else None,
                    n_lesions=int(score**0.4) if scored else None,
                    heart_volume_ml=round(float(rng.normal(650, 90)), 1) if scored else None,
                    rule="agatston" if scored else "",
                    study_date=f"{1999 + visit}0102",
                    time_point=f"T{visit}",
                    series_description=f"{visit},OPA,{kernel},{thickness:g}",
                    manufacturer=maker,
                    model_name=f"{maker} 16",
                    kernel=str(kernel),
                    kvp=120.0,
                    slice_thickness=thickness,
                    increment=thickness,
                    n_slices=int(350 / thickness),
                    noise_hu=round(float(rng.normal(40, 12)), 1),
                    warnings=";".join(
                        w for w in ("thick-slices", "sharp-kernel", "kvp") if rng.random() < 0.2
                    ),
                    seconds=round(float(rng.gamma(4, 1.5)), 3),
                    folder=f"{100000 + patient}/{uid}",
                    deepcac2_version="0.1.0",
                    weights="heart:deepcac2-heart-4@d0a25c24eef5;calcium:deepcac2-calcium-5@ab4eb5ee8fec",
                )


MADE = 130_000
"""Rows that are made one by one."""


def write_table(path: Path, count: int) -> None:
    """Write so many rows; those beyond `MADE` are copies under other names."""
    write_parquet(path, rows(min(count, MADE)))
    if count <= MADE:
        return
    import duckdb

    few = path.with_name("few.parquet")
    path.rename(few)
    named = ", ".join(
        f"CASE WHEN copy = 0 THEN {name} ELSE {name} || '.' || copy END AS {name}"
        for name in ("patient_id", "study_uid", "series_uid", "folder")
    )
    copies = -(-count // MADE)
    settings = {"memory_limit": "1GB", "temp_directory": str(path.parent / "spill")}
    with duckdb.connect(config=settings) as database:
        database.execute(
            f"COPY (SELECT * EXCLUDE (copy) REPLACE ({named}) FROM '{few}', range({copies}) AS c(copy) "
            f"ORDER BY copy LIMIT {count}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)"
        )
    few.unlink()


SORTED = "status=scored&sort=agatston_score&order=desc"
REQUESTS = {
    "page of the table": "/api/cases?status=scored",
    "last page": "/api/cases?status=scored&page=100000",
    "sorted by score": f"/api/cases?{SORTED}",
    "counts of all filters and charts": "/api/counts?status=scored",
    "export of everything": "/api/export.csv",
}
FILTERS = {
    "time point": "time_point=T1",
    "risk group": "risk_group=3",
    "manufacturer": "manufacturer=SIEMENS",
    "kernel": "kernel=B30f&kernel=STANDARD",
    "slice thickness": "thickness=2.5",
    "contrast": "contrast=contrast",
    "warning": "warning=sharp-kernel",
    "score range": "agatston_score_min=100&agatston_score_max=400",
    "patient": "patient={patient}",
    "text": "search={kernel}",
    "text of few rows": "search=1.2.826.0.1.{patient}",
    "all of these": "time_point=T1&risk_group=3&manufacturer=SIEMENS&kernel=B30f&thickness=2.5&search={all}",
}
TEXTS = {
    "kernel": ("b30f", ",b30f", "b30f,", ",b30f,", "a,b30f", "a,b30f,", "pa,b30f", "pa,b30f,"),
    "all": ("opa", ",opa", "opa,", ",opa,", "pa", "pa,", "op", ",op"),
    "patient": tuple(str(10012 + n) for n in range(8)),
}
"""What stands in a query for one of these names: the server remembers what a text finds, so that each time
another one is asked for. Those of the first two find the same rows."""


def write_readings(table: Path, folder: Path, count: int) -> None:
    """Journals of so many signed readings, spread over the table."""
    import duckdb

    with duckdb.connect() as database:
        found = database.execute(
            f"SELECT patient_id, study_uid, series_uid, agatston_score FROM '{table}' "
            "WHERE status = 'scored' ORDER BY patient_id, study_date, series_uid"
        ).fetchall()
    for patient, study, series, score in found[:: max(1, len(found) // count)][:count]:
        home = folder / CASES / patient / series
        home.mkdir(parents=True)
        opened = {"do": "open", "series": series, "study": study, "patient": patient, "digest": "0" * 64,
                  "automatic": score, "score": score}  # fmt: skip
        decided = [{"do": "set", "to": "LAD", "piece": n % 4 + 1, "score": score} for n in range(8)]
        signed = {"do": "sign", "place": "x", "seg": "1.2", "report": "1.3", "score": score + 10}
        lines = [
            Entry(n=n, time=now().isoformat(), by="Ann", **entry).line
            for n, entry in enumerate((opened, *decided, signed), 1)
        ]
        (home / f"Ann{ENDING}").write_bytes(b"".join(lines))


def new_texts(query: str, count: int) -> list[str]:
    """The query so many times, each with other `TEXTS`."""
    return [query.format(**{name: texts[n] for name, texts in TEXTS.items()}) for n in range(count)]


def ask(address: str) -> float:
    """Seconds until the whole answer is there."""
    started = time.perf_counter()
    with urllib.request.urlopen(address) as answer:
        while answer.read(1 << 20):
            pass
    return time.perf_counter() - started


def memory_mb(pid: int) -> tuple[int, int]:
    """Resident memory of a process now and at most, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {
        line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))
    }
    return round(found["VmRSS"] / 1024), round(found["VmHWM"] / 1024)


def processor(pid: int) -> float:
    """Seconds of processor time that a process has taken, with all its threads and ended children."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def line(name: str, seconds: list[float], taken: float | None = None) -> None:
    median, longest = statistics.median(seconds) * 1000, max(seconds) * 1000
    own = "" if taken is None else f"{taken / len(seconds) * 1000:.0f}"
    print(f"| {name} | {median:.0f} | {longest:.0f} | {own} |", flush=True)


def stats(table: Path) -> None:
    """Run `deepcac2 stats report` over the table, and print time and memory."""
    command = [sys.executable, "-m", "deepcac2", "stats", "report", str(table), "--report"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as page:
        subprocess.run([*command, page], check=True, stdout=subprocess.DEVNULL)
    after, took = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\nstats report: {took:.0f} s, {own:.0f} s of processor, {after.ru_maxrss / 1024:.0f} MB at most")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=130_000, help="default: %(default)s")
    most = min(map(len, TEXTS.values()))
    parser.add_argument(
        "--repeat", type=int, default=5, choices=range(1, most + 1), help="default: %(default)s"
    )
    parser.add_argument("--keep", type=Path, help="write the table here and leave it there")
    parser.add_argument("--stats", action="store_true", help="run 'deepcac2 stats report', too")
    parser.add_argument("--review", type=int, metavar="N", help="with a reading desk and so many readings")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch) / "results"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / PARQUET).is_file():
            write_table(folder / PARQUET, arguments.rows)
        if arguments.stats:
            stats(folder / PARQUET)
        started = time.perf_counter()
        command = [sys.executable, "-m", "deepcac2", "dashboard", str(folder), "--port", "0"]
        requests = dict(REQUESTS)
        if arguments.review:
            desk, ct = Path(scratch) / "readings", Path(scratch) / "ct"
            ct.mkdir()
            write_readings(folder / PARQUET, desk, arguments.review)
            command += ["--review", str(desk), "--ct", str(ct)]
            requests["work list of the desk"] = "/api/review?reader=Ann"
            started = time.perf_counter()
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            first = server.stderr.readline()
            if "http" not in first:
                raise SystemExit(first + server.stderr.read())
            address = first.split()[1].rstrip("/")
            while True:
                try:
                    ask(f"{address}/api/about")
                    break
                except OSError:
                    time.sleep(0.02)
            start = time.perf_counter() - started
            begin, _ = memory_mb(server.pid)
            before = processor(server.pid)
            first = [ask(address + path) for path in ("/", "/api/about", "/api/cases?status=scored")]
            first += [ask(f"{address}/api/counts?status=scored")]
            print(f"{os.cpu_count()} cores, {arguments.rows} rows, {arguments.repeat} times each\n")
            print("| what | median, ms | longest, ms | processor, ms |\n|---|---|---|---|")
            line("start of the server", [start], before)
            line("first page, one request after another", [sum(first)], processor(server.pid) - before)
            with urllib.request.urlopen(f"{address}/api/cases?status=scored&page=1000") as answer:
                uid = json.load(answer)["rows"][-1]["series_uid"]
            requests["cases before and after one"] = f"/api/cases/{uid}/beside?{SORTED}"
            for name, path in requests.items():
                before = processor(server.pid)
                took = [ask(address + path) for _ in range(arguments.repeat)]
                line(name, took, processor(server.pid) - before)
            for name, query in FILTERS.items():
                before = processor(server.pid)
                took = [
                    sum(ask(f"{address}/api/{what}?{one}") for what in ("cases", "counts"))
                    for one in new_texts(query, arguments.repeat)
                ]
                line(f"filter: {name} (table, counts and charts)", took, processor(server.pid) - before)
            body = json.dumps({"sql": "SELECT kernel, avg(agatston_score) FROM results GROUP BY 1"}).encode()
            request = urllib.request.Request(
                f"{address}/api/sql", body, headers={"Content-Type": "application/json"}
            )
            started = time.perf_counter()
            urllib.request.urlopen(request).read()
            line("SQL", [time.perf_counter() - started])
            now, most = memory_mb(server.pid)
            print(f"\nmemory of the server: {begin} MB at the start, {now} MB now, {most} MB at most")
            server.terminate()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
