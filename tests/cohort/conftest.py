"""Here the trial has two persons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def trial(nlst: Callable[[int], Any]) -> Path:
    """See `Nlst.trial`."""
    folder: Path = nlst(2).trial()
    return folder


@pytest.fixture(scope="session")
def cohort(nlst: Callable[[int], Any]) -> Path:
    """See `Nlst.cohort`."""
    table: Path = nlst(2).cohort()
    return table


@pytest.fixture(scope="session")
def results(nlst: Callable[[int], Any]) -> Path:
    """See `Nlst.results`."""
    folder: Path = nlst(2).results()
    return folder
