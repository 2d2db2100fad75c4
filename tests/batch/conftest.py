"""What the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import generate_uid


@pytest.fixture(scope="session")
def copy_of() -> Callable[..., str]:
    """Writes a series once more, as another series of its own."""
    return _copy_of


def _copy_of(series: Path, target: Path, **changes: str) -> str:
    """The series once more, as another series of its own; returns its SeriesInstanceUID."""
    target.mkdir(parents=True)
    uid = generate_uid(entropy_srcs=[str(target)])
    for path in sorted(series.iterdir()):
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = uid
        ds.SOPInstanceUID = generate_uid(entropy_srcs=[uid, path.name])
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
        ds.save_as(target / path.name)
    return str(uid)
