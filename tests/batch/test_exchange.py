"""Cases handed from process to process: the same arrays on the other side, and no file left."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepcac2.batch.exchange import put, take
from deepcac2.dicom import Series
from deepcac2.imaging import Geometry, Volume
from deepcac2.pipeline.case import Case
from deepcac2.pipeline.facts import CALCIUM, CT, HEART


def case() -> Case:
    rng = np.random.default_rng(0)
    geometry = Geometry(shape=(5, 7, 9), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    hu = rng.integers(-1000, 1000, geometry.shape).astype(np.int16)
    return Case(
        series=Series(series_uid="1.2.3"),
        facts={
            CT: Volume(hu=hu, geometry=geometry),
            HEART: np.asfortranarray(rng.random(geometry.shape) < 0.5),
            CALCIUM: hu > 900,
        },
        timings={"a": 1.0},
    )


def same(a: Case, b: Case) -> bool:
    return pickle.dumps(a, protocol=5) == pickle.dumps(b, protocol=5)


def test_a_case_comes_out_as_it_went_in(tmp_path: Path) -> None:
    given, path = case(), tmp_path / "x"
    put(given, path)
    taken = take(path)
    assert not path.exists()
    assert same(given, taken)
    taken[CT].hu[0] = 7  # whoever takes it may change it


def test_another_process_takes_it(tmp_path: Path) -> None:
    put(case(), tmp_path / "x")
    code = (
        "import sys; from pathlib import Path; from deepcac2.batch.exchange import put, take;"
        "put(take(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "y")], check=True)
    assert same(case(), take(tmp_path / "y"))


def test_nothing_and_arrays_without_elements(tmp_path: Path) -> None:
    for content in ({}, {"a": np.zeros((0, 3)), "b": np.zeros(3), "c": "text"}):
        put(content, tmp_path / "x")
        taken = take(tmp_path / "x")
        assert list(taken) == list(content)
        assert all(np.array_equal(taken[k], v) for k, v in content.items())
    with pytest.raises(FileNotFoundError):
        take(tmp_path / "x")
