"""Fixtures of the weights tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def v1() -> ModuleType:
    """The builder of nnU-Net v1 results, `nnunet_v1_folder.py` beside this file."""
    path = Path(__file__).with_name("nnunet_v1_folder.py")
    spec = importlib.util.spec_from_file_location("nnunet_v1_folder", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
