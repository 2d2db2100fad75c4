"""Headers kept on disk: the same series in the same order as in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepcac2.dicom import chosen, discover, discovery
from deepcac2.dicom.store import SeriesStore


def test_many_series_are_the_same_from_disk(simulated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = discover(simulated)
    monkeypatch.setattr(discovery, "_IN_MEMORY", 0)
    monkeypatch.setattr(discovery, "_BATCH", 7)  # a series comes in several batches
    stored = discover(simulated)
    assert isinstance(stored.series, SeriesStore)
    assert tuple(stored.series) == kept.series
    assert len(stored.series) == len(kept.series) == 2
    assert stored.series[-1] == kept.series[-1]
    assert tuple(stored.series[:1]) == kept.series[:1]
    with pytest.raises(IndexError):
        stored.series[2]
    uid = kept.series[1].series_uid
    assert tuple(chosen(kept, [uid]).series) == tuple(chosen(stored, [uid]).series) == kept.series[1:]
    assert not chosen(stored, ["1.2.3"]).series
