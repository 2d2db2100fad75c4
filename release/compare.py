"""Two releases compared: Dice of each segment, agreement of the scores, the largest differences first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom.seg.reader import Image, open_segmentation, read_segmentation
from ..errors import InputError, InputUnreadable
from ..imaging import Geometry
from ..imaging.nrrd import on_grid, read_nrrd_mask
from ..outputs.report import REPORT
from ..stats.agreement import Agreement, agreement
from ..stats.columns import MIN_SCORES, POSITIVE_ABOVE, POSITIVE_FROM, resamples_for
from ..system.foreign import parse_json
from .build import NRRD_NAME, SEG_NAME, Release
from .verify import KEYS

SEGMENTS = ("heart", "calcium")
"""Names of the segments 1 and 2."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One series in both releases.

    Attributes:
        place: ``<PatientID>/<SeriesInstanceUID>``, as the first release calls it (`Release.series`).
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
        InputError: They have no series in common; or one is in the authors' own layout, which names no
            patients, and the other has a series under two.
    """
    whole = all("/" in place for release in (first, second) for place in release.series)
    ours, theirs = _keys(first, whole=whole), _keys(second, whole=whole)
    common = [key for key in ours if key in theirs]
    if not common:
        raise InputError("the two have no series in common")
    pairs = []
    for done, key in enumerate(common, start=1):
        pairs.append(_pair(ours[key], theirs[key], first, second))
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
        only_first=tuple(place for key, place in ours.items() if key not in theirs),
        only_second=tuple(place for key, place in theirs.items() if key not in ours),
        scores=scores,
    )


def _keys(release: Release, *, whole: bool) -> dict[str, str]:
    """The places of a release by what two releases match them by: all of it, or the series alone."""
    found: dict[str, str] = {}
    for place in release.series:
        key = place if whole else place.rpartition("/")[2]
        if key in found:
            raise InputError(
                f"{found[key]} and {place} are both there: the other release names no patients, so nobody "
                "knows which it has"
            )
        found[key] = place
    return found


def _pair(place: str, other: str, first: Release, second: Release) -> Pair:
    scores: list[float | None] = []
    notes: list[str] = []
    dice: dict[str, float | None] = dict.fromkeys(SEGMENTS)
    with ExitStack() as stack:
        paths: list[Path] = []
        for release, name in ((first, place), (second, other)):
            files = release.series[name]
            scores.append(_score(release, files.get(REPORT.file)))
            mask = SEG_NAME if "/" in name else NRRD_NAME
            try:
                if mask not in files:
                    raise InputUnreadable(f"{mask} is missing")
                paths.append(stack.enter_context(release.unpacked(files[mask])))
            except InputUnreadable as error:
                notes.append(str(error))
        if any(path.name == NRRD_NAME for path in paths):
            try:
                dice |= _dice_on_grid(*paths) if len(paths) == 2 else {}
            except InputError as error:
                notes.append(str(error))
        else:
            frames = []
            for path in paths:
                try:
                    frames.append(_frames(path))
                except InputUnreadable as error:
                    notes.append(str(error))
            if len(frames) == 2:
                a, b = frames
                dice = {name: _dice(a, b, number) for number, name in enumerate(SEGMENTS, start=1)}
    return Pair(place=place, dice=dice, first=scores[0], second=scores[1], note="; ".join(notes))


def _score(release: Release, name: str | None) -> float | None:
    if name is None:
        return None
    try:
        content = parse_json(release.read(name), REPORT.file)
    except InputUnreadable:
        return None
    value = content.get(KEYS[0]) if isinstance(content, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def _dice_on_grid(first: Path, second: Path) -> dict[str, float | None]:
    """Dice of the calcium where one mask at least is an NRRD file: on that one's grid.

    Raises:
        InputError: A mask cannot be read, or does not lie on the other's grid.
    """
    read = {path: read_nrrd_mask(path, what=path.name) for path in (first, second) if path.name == NRRD_NAME}
    _, grid = next(iter(read.values()))
    a, b = (_calcium(path, read, grid) for path in (first, second))
    total = int(a.sum()) + int(b.sum())
    return {"calcium": 2 * int((a & b).sum()) / total if total else None}


def _calcium(path: Path, read: Mapping[Path, tuple[BoolArray, Geometry]], grid: Geometry) -> BoolArray:
    """The calcium of a file on a grid."""
    if path in read:
        return on_grid(*read[path], grid, what=path.name)
    masks = read_segmentation(path, grid)
    if "calcium" not in masks:
        raise InputError(f"{path.name} has no segment that is known as calcium")
    return masks["calcium"]


BoolArray = npt.NDArray[np.bool_]
_Frames = dict[tuple[int, Image], npt.NDArray[np.uint8]]


def _frames(path: Path) -> _Frames:
    """Frames by segment number and image that they lie on.

    Raises:
        InputUnreadable: No SEG, or it does not say what its frames lie on.
    """
    with open_segmentation(path, what=SEG_NAME) as seg:
        return dict(zip(seg.places, seg.pixels(), strict=True))


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
