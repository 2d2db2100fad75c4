"""A trial that is interrupted goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from deepcac2.simulation.trial import write_trial


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_an_interrupted_trial_goes_on_with_the_next_person(tmp_path: Path) -> None:
    small = {"persons": 2, "seed": 3, "size": 32, "slices": 36}

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        write_trial(tmp_path / "trial", **small, watch=interrupt)
    assert not (tmp_path / "trial").exists()
    partial = tmp_path / ".trial.partial" / "ct"
    begun = {p: p.stat().st_mtime_ns for p in (partial / "SIM-0003").rglob("*.dcm")}
    torn = partial / "SIM-0004" / "T0" / "C" / "0001.dcm"
    torn.parent.mkdir(parents=True)  # of a person who was not finished
    torn.write_bytes(b"half")
    found = write_trial(tmp_path / "trial", **small, watch=said.append)
    assert [line.endswith("there already") for line in said] == [True, False]
    ct = tmp_path / "trial" / "ct"
    assert {p: (ct / p.relative_to(partial)).stat().st_mtime_ns for p in begun} == begun
    assert sorted(p.name for p in (tmp_path / "trial").iterdir()) == ["clinical.csv", "ct", "truth.csv"]
    with (tmp_path / "trial" / "truth.csv").open() as handle:
        assert [row["series_uid"] for row in csv.DictReader(handle)] == [s.series_uid for s in found]

    write_trial(tmp_path / "unbroken", **small)
    assert content(tmp_path / "unbroken") == content(tmp_path / "trial")


@pytest.mark.slow
def test_what_another_call_has_begun_is_not_taken(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    for seed in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            write_trial(tmp_path / "trial", persons=2, seed=seed, size=32, slices=36, watch=interrupt)
    assert [p.name for p in (tmp_path / ".trial.partial" / "ct").iterdir()] == ["SIM-0004"]
