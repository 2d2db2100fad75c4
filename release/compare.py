"""Two releases compared: Dice of each segment, agreement of the scores, the largest differences first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom.segmentation import decoded_frames, open_segmentation
from ..errors import InputError, InputUnreadable
from ..pipeline.outputs import REPORT_NAME
from ..stats.agreement import Agreement, agreement
from ..stats.columns import MIN_SCORES, POSITIVE_ABOVE, POSITIVE_FROM, resamples_for
from ..system.foreign import parse_json
from .build import SEG_NAME, Release
from .verify import KEYS

SEGMENTS = ("heart", "calcium")
"""Names of the segments 1 and 2."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One series in both releases.

    Attributes:
        place: ``<PatientID>/<SeriesInstanceUID>``.
        dice: Of each segment, in [0, 1]; None where both are empty or one cannot be read.
        first, second: Stored scores; None where there is none.
        note: What could not be compared.
    """

    place: str
    dice: dict[str, float | None]
    first: float | None
    second: float | None
    note: str = ""

    @property
    def difference(self) -> float:
        """Absolute difference of the scores, 0 where one is missing."""
        return 0.0 if self.first is None or self.second is None else abs(self.first - self.second)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two releases compared.

    Attributes:
        pairs: Series in both, the largest difference of the scores first, then the lowest Dice.
        only_first, only_second: Series in one of them.
        scores: Agreement of the stored scores, second against first; None of fewer than 5.
    """

    pairs: tuple[Pair, ...] = field(repr=False)
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    scores: Agreement | None

    def mean_dice(self, segment: str) -> tuple[float | None, int]:
        """Mean Dice of a segment, and of how many series."""
        values = [d for p in self.pairs if (d := p.dice.get(segment)) is not None]
        return (sum(values) / len(values) if values else None), len(values)


def compare(
    first: Release, second: Release, *, watch: Callable[[int, int], None] | None = None
) -> Comparison:
    """Compare the series that two releases have in common.

    Raises:
        InputError: They have no series in common.
    """
    common = [p for p in first.series if p in second.series]
    if not common:
        raise InputError("the two have no series in common")
    pairs = []
    for done, place in enumerate(common, start=1):
        pairs.append(_pair(place, first, second))
        if watch is not None:
            watch(done, len(common))
    pairs.sort(
        key=lambda p: (
            -p.difference,
            min((d for d in p.dice.values() if d is not None), default=1.0),
            p.place,
        )
    )
    scored = [(p.first, p.second) for p in pairs if p.first is not None and p.second is not None]
    scores = None
    if len(scored) >= MIN_SCORES:
        a, b = np.array(scored, dtype=float).T
        scores = agreement(
            a, b, thresholds=POSITIVE_ABOVE, thresholds_from=POSITIVE_FROM, n_resamples=resamples_for(len(a))
        )
    return Comparison(
        pairs=tuple(pairs),
        only_first=tuple(p for p in first.series if p not in second.series),
        only_second=tuple(p for p in second.series if p not in first.series),
        scores=scores,
    )


def _pair(place: str, first: Release, second: Release) -> Pair:
    masks: list[_Frames | None] = []
    scores: list[float | None] = []
    notes: list[str] = []
    for release in (first, second):
        files = release.series[place]
        scores.append(_score(release, files.get(REPORT_NAME)))
        try:
            if SEG_NAME not in files:
                raise InputUnreadable(f"{SEG_NAME} is missing")
            with release.unpacked(files[SEG_NAME]) as path:
                masks.append(_frames(path))
        except InputUnreadable as error:
            masks.append(None)
            notes.append(str(error))
    dice: dict[str, float | None] = dict.fromkeys(SEGMENTS)
    a, b = masks
    if a is not None and b is not None:
        dice = {name: _dice(a, b, number) for number, name in enumerate(SEGMENTS, start=1)}
    return Pair(place=place, dice=dice, first=scores[0], second=scores[1], note="; ".join(notes))


def _score(release: Release, name: str | None) -> float | None:
    if name is None:
        return None
    try:
        content = parse_json(release.read(name), REPORT_NAME)
    except InputUnreadable:
        return None
    value = content.get(KEYS[0]) if isinstance(content, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


_Frames = dict[tuple[int, str], npt.NDArray[np.uint8]]


def _frames(path: Path) -> _Frames:
    """Frames by segment number and image that they lie on.

    Raises:
        InputUnreadable: No SEG, or it does not say what its frames lie on.
    """
    with open_segmentation(path, what=SEG_NAME) as ds:
        frames: _Frames = {}
        for frame, groups in zip(
            decoded_frames(ds, SEG_NAME), ds.PerFrameFunctionalGroupsSequence, strict=True
        ):
            number = int(groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            image = groups.DerivationImageSequence[0].SourceImageSequence[0]
            place = f"{image.ReferencedSOPInstanceUID}/{image.get('ReferencedFrameNumber', '')}"
            frames[number, place] = frame
        return frames


def _dice(a: _Frames, b: _Frames, number: int) -> float | None:
    places = {p for n, p in (*a, *b) if n == number}
    both = total = 0
    for place in places:
        x, y = a.get((number, place)), b.get((number, place))
        total += sum(int(m.any() and (m > 0).sum()) for m in (x, y) if m is not None)
        if x is not None and y is not None and x.shape == y.shape:
            both += int(((x > 0) & (y > 0)).sum())
    return 2 * both / total if total else None


def to_dict(found: Comparison) -> dict[str, Any]:
    """Everything as JSON types."""
    return {
        "pairs": [vars(p) for p in found.pairs],
        "only_first": list(found.only_first),
        "only_second": list(found.only_second),
        "dice": {s: dict(zip(("mean", "n"), found.mean_dice(s), strict=True)) for s in SEGMENTS},
        "scores": None if found.scores is None else {n: vars(e) for n, e in found.scores.estimates.items()},
    }
