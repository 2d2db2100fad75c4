"""A tiny simulated trial and its results, made once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepcac2.cli.main import main

Maker = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture(scope="session")
def trial(made_once: Maker) -> Path:
    """Two persons with calcium, two visits or three, two kernels; one series of each person is unfit."""

    def make(folder: Path) -> None:
        command = ["simulate", str(folder / "trial"), "--trial", "--patients", "2", "--seed", "3"]
        assert main([*command, "--size", "96", "--slices", "64"]) == 0

    return made_once("nlst", make) / "trial"


@pytest.fixture(scope="session")
def cohort(trial: Path, made_once: Maker) -> Path:
    """The paper's selection of the trial."""

    def make(folder: Path) -> None:
        index, table = folder / "headers.parquet", folder / "cohort.csv"
        assert main(["inspect", str(trial / "ct"), "--index", str(index)]) == 0
        assert main(["cohort", "select", str(index), "-o", str(table)]) == 0

    return made_once("cohort", make) / "cohort.csv"


@pytest.fixture(scope="session")
def results(trial: Path, cohort: Path, made_once: Maker) -> Path:
    """A run of what was selected."""

    def make(folder: Path) -> None:
        command = ["run", str(trial / "ct"), str(folder / "results"), "--only", str(cohort)]
        assert main([*command, "--allow", "coarse-pixels"]) == 0  # a field of 96 pixels, for speed

    return made_once("results", make) / "results"
