"""A tiny simulated trial and its results, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcac2.cli.main import main


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two persons with calcium, two visits or three, two kernels; one series of each person is unfit."""
    folder = tmp_path_factory.mktemp("nlst") / "trial"
    command = ["simulate", str(folder), "--trial", "--patients", "2", "--seed", "3"]
    assert main([*command, "--size", "96", "--slices", "64"]) == 0
    return folder


@pytest.fixture(scope="session")
def cohort(trial: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's selection of the trial."""
    folder = tmp_path_factory.mktemp("cohort")
    index, table = folder / "headers.parquet", folder / "cohort.csv"
    assert main(["inspect", str(trial / "ct"), "--index", str(index)]) == 0
    assert main(["cohort", "select", str(index), "-o", str(table)]) == 0
    return table


@pytest.fixture(scope="session")
def results(trial: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of what was selected."""
    out = tmp_path_factory.mktemp("results")
    command = ["run", str(trial / "ct"), str(out), "--only", str(cohort)]
    assert main([*command, "--allow", "coarse-pixels"]) == 0  # a field of 96 pixels, for speed
    return out
