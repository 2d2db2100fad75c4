"""Every example in a docstring of the package is run as it stands."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_PACKAGED = {"tests", "docs", "benchmarks", "mhub", "build", "demo", "runs"}


def modules_with_examples() -> list[str]:
    """Dotted names of the package's modules whose text holds a ``>>>`` prompt."""
    names = []
    for path in sorted(ROOT.rglob("*.py")):
        inside = path.relative_to(ROOT)
        if inside.parts[0] in NOT_PACKAGED or inside.parts[0].startswith("."):
            continue
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = inside.with_suffix("").parts
            names.append(".".join(("deepcac2", *(parts[:-1] if parts[-1] == "__init__" else parts))))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried > 0
    assert failed == 0
