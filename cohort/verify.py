"""Check a release: structure, checksums, reports, segmentations; with the CT, the scores under every rule."""

from __future__ import annotations

import hashlib
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from ..dicom import Series, discover, read_segmentation, read_series
from ..dicom.headers import quiet_pydicom
from ..dicom.names import safe_name
from ..dicom.segmentation import SEGMENTATION_SOP_CLASSES
from ..errors import DeepCACError, InputError, InputUnreadable
from ..pipeline.outputs import REPORT_NAME
from ..scoring import RULES, risk_group, score
from .release import FILES, SEG_NAME, SELECTION, Release, Selected, seg_file

KEYS = ("Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID")
"""Keys of a report in the published release."""
SAME_SCORE = 0.01
"""Scores that differ by less than this, or by less than this share of the score, are the same: reports are
rounded, and so are spacings in headers."""
SAME_SHARE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        code: What kind of thing: ``structure``, ``missing``, ``checksum``, ``report``, ``risk-group``,
            ``seg``, ``ct``, ``score``.
        place: File or series.
        message: One sentence.
    """

    code: str
    place: str
    message: str


@dataclass(frozen=True, kw_only=True)
class RuleFit:
    """How well one scoring rule reproduces the stored scores.

    Attributes:
        rule: Its name.
        compared, same: Series it was computed for, and those where it gives the stored score.
        median_error: Median absolute difference from the stored score.
        not_computed: Series for which the rule needs what the headers do not say.
    """

    rule: str
    compared: int
    same: int
    median_error: float | None
    not_computed: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found.

    Attributes:
        series: In the release.
        checksums: Files whose checksum was compared; 0 without a manifest.
        with_ct: Series whose CT was at hand.
        problems: All of them.
        selected: Which series the release is of; None: it does not say, so that nobody knows whether any are
            missing.
        rules: With the CT: every scoring rule, the best first.
    """

    series: int
    checksums: int
    with_ct: int
    problems: tuple[Problem, ...]
    selected: Selected | None = None
    rules: tuple[RuleFit, ...] = ()
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)

    @property
    def rule(self) -> str | None:
        """The one rule that gives the most stored scores; None without CT or where several give as many."""
        if not self.rules or not self.rules[0].same:
            return None
        best = [r for r in self.rules if r.same == self.rules[0].same]
        return best[0].rule if len(best) == 1 else None


def verify(
    release: Release, *, ct: Path | None = None, watch: Callable[[int, int], None] | None = None
) -> Verification:
    """Check every series of a release.

    Args:
        release: Opened.
        ct: Folder with the CT series; those that are not there are not scored again.
        watch: Called with series done and in all.

    Raises:
        InputError: The release holds no series.
    """
    if not release.series:
        raise InputError("no <PatientID>/<SeriesInstanceUID>/ folders in it: this is no release")
    problems = [Problem(code="structure", place=b.split(":")[0], message=b) for b in release.broken]
    problems += _selection(release)
    present = {name for files in release.series.values() for name in files.values()} | set(release.other)
    for name in release.manifest:
        if name not in present:
            problems.append(Problem(code="checksum", place=name, message="is in the manifest and not there"))
    scans = None if ct is None else discover(ct)
    where = {} if scans is None else {series_uid: i for i, series_uid in enumerate(scans.uids)}
    checked = with_ct = 0
    for name in release.other:
        data = _read(release, name, problems)
        checked += _checksum(release, name, data, problems)
    stored: dict[str, float] = {}
    computed: dict[str, dict[str, float]] = {}
    for done, (place, files) in enumerate(release.series.items(), start=1):
        contents = {n: _read(release, full, problems) for n, full in sorted(files.items())}
        for n, data in contents.items():
            checked += _checksum(release, files[n], data, problems)
        for n in FILES:
            if n not in files:
                problems.append(Problem(code="structure", place=place, message=f"has no {n}"))
        found = _report(place, contents.get(REPORT_NAME), problems)
        uid, images = _seg(place, contents.get(SEG_NAME), problems)
        scan = scans.series[where[uid]] if scans is not None and uid in where else None
        if scan is not None and (data := contents.get(SEG_NAME)) is not None:
            with_ct += 1
            computed[place] = dict(_scores(place, data, images, scan, problems))
            if found is not None:
                stored[place] = found
        if watch is not None:
            watch(done, len(release.series))
    rules = _fits(stored, computed)
    best = rules[0] if rules and rules[0].same else None
    if best is not None:
        for place, value in stored.items():
            ours = computed[place].get(best.rule)
            if ours is not None and not _same(ours, value):
                message = f"stored score {value:g}, by the rule {best.rule} it is {ours:.4f}"
                problems.append(Problem(code="score", place=place, message=message))
    return Verification(
        series=len(release.series),
        checksums=checked,
        with_ct=with_ct,
        problems=tuple(problems),
        selected=release.selected,
        rules=rules,
        scores=computed,
    )


def _selection(release: Release) -> Iterator[Problem]:
    """Series that were selected and are not there: not done by the run, or in a part that was not given."""
    selected = release.selected
    missing = dict.fromkeys((*release.missing, *(() if selected is None else selected.missing_series)))
    for uid in missing:
        yield Problem(code="missing", place=uid, message="was selected, and the run had not done it")
    if selected is not None and SELECTION in release.other and len(release.series) != selected.scored:
        message = (
            f"{selected.scored} series were scored and {len(release.series)} are here: give all its parts"
        )
        yield Problem(code="missing", place=SELECTION, message=message)


def _read(release: Release, name: str, problems: list[Problem]) -> bytes | None:
    try:
        return release.read(name)
    except InputUnreadable as error:
        problems.append(Problem(code="structure", place=name, message=str(error)))
        return None


def _checksum(release: Release, name: str, data: bytes | None, problems: list[Problem]) -> int:
    """1 where a checksum was compared."""
    if not release.manifest or data is None:
        return 0
    if name not in release.manifest:
        problems.append(Problem(code="checksum", place=name, message="is not in the manifest"))
        return 0
    size, digest = release.manifest[name]
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        problems.append(Problem(code="checksum", place=name, message="differs from the manifest"))
    return 1


def _report(place: str, data: bytes | None, problems: list[Problem]) -> float | None:
    """The stored score, where the report is as it should be."""
    if data is None:
        return None

    def wrong(message: str, code: str = "report") -> None:
        problems.append(Problem(code=code, place=place, message=message))

    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        wrong(f"{REPORT_NAME} is no JSON ({error})")
        return None
    if not isinstance(content, dict) or set(content) != set(KEYS):
        names = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        wrong(f"{REPORT_NAME} has not the three keys of the release but: {names}")
        return None
    value, group, uid = (content[k] for k in KEYS)
    if safe_name(str(uid)) != place.split("/")[1]:
        wrong(f"SeriesInstanceUID is {uid}, the folder another")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        wrong(f"the score is {value!r}")
        return None
    if group != int(risk_group(value)):
        wrong(f"risk group {group!r}, for a score of {value:g} it is {int(risk_group(value))}", "risk-group")
    return float(value)


def _seg(place: str, data: bytes | None, problems: list[Problem]) -> tuple[str | None, set[str]]:
    """SeriesInstanceUID of the CT that the SEG names, and the SOPInstanceUIDs of its source images."""
    if data is None:
        return None, set()

    def wrong(message: str) -> None:
        problems.append(Problem(code="seg", place=place, message=message))

    try:
        with quiet_pydicom():
            ds = pydicom.dcmread(io.BytesIO(data))
    except (InvalidDicomError, OSError, EOFError, ValueError) as error:
        wrong(f"{SEG_NAME} is no DICOM ({error})")
        return None, set()
    if ds.get("SOPClassUID") not in SEGMENTATION_SOP_CLASSES:
        wrong(f"{SEG_NAME} is no segmentation")
        return None, set()
    segments = [str(s.get("SegmentLabel", "")) for s in ds.get("SegmentSequence", [])]
    if len(segments) != 2:
        wrong(f"has the segments {', '.join(segments) or 'none'} instead of heart and coronary calcium")
    frames = int(ds.get("NumberOfFrames", 0) or 0)
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    if not frames or len(own) != frames:
        wrong(f"says {frames} frames and describes {len(own)}")
    expected = frames * int(ds.get("Rows", 0) or 0) * int(ds.get("Columns", 0) or 0)
    bits = len(ds.get("PixelData", b"")) * 8
    if ds.get("BitsAllocated") == 1 and not ds.file_meta.TransferSyntaxUID.is_compressed and bits < expected:
        wrong("its pixel data is cut off")
    if safe_name(str(ds.get("PatientID", ""))) != place.split("/")[0]:
        wrong("its PatientID is another than the folder's")
    series = ds.get("ReferencedSeriesSequence")
    uid = str(series[0].get("SeriesInstanceUID", "")) if series else ""
    if safe_name(uid) != place.split("/")[1]:
        wrong(f"refers to the CT series {uid or 'none'}, the folder is another's")
    return uid or None, set(_images(own))


def _images(frames: Iterable[Dataset]) -> Iterator[str]:
    for groups in frames:
        for derivation in groups.get("DerivationImageSequence", []):
            for image in derivation.get("SourceImageSequence", []):
                yield str(image.get("ReferencedSOPInstanceUID", ""))


def _scores(
    place: str, data: bytes, images: set[str], scan: Series, problems: list[Problem]
) -> Iterator[tuple[str, float]]:
    """The score by every rule that can be computed; also checks that the SEG refers to the CT's images."""

    def wrong(message: str) -> None:
        problems.append(Problem(code="ct", place=place, message=message))

    try:
        reading = read_series(scan)
        with seg_file(data) as path:
            masks = read_segmentation(path, reading.volume.geometry)
    except DeepCACError as error:
        wrong(f"cannot be scored again: {error}")
        return
    strange = images - {s.sop_instance_uid for s in reading.slices}
    if strange:
        wrong(f"refers to {len(strange)} images that the CT does not have")
    if "calcium" not in masks:
        wrong("has no segment that is known as calcium")
        return
    for name in RULES:
        try:
            result = score(reading.volume, masks["calcium"], rule=name, slice_thickness=scan.slice_thickness)
        except DeepCACError:
            continue  # a rule that wants what the header does not say; counted in `RuleFit.not_computed`
        yield name, result.total


def _same(a: float, b: float) -> bool:
    return abs(a - b) < max(SAME_SCORE, SAME_SHARE * max(a, b))


def _fits(stored: Mapping[str, float], computed: Mapping[str, Mapping[str, float]]) -> tuple[RuleFit, ...]:
    fits = []
    for rule in RULES:
        errors = [abs(computed[p][rule] - v) for p, v in stored.items() if rule in computed[p]]
        same = sum(_same(computed[p][rule], v) for p, v in stored.items() if rule in computed[p])
        fits.append(
            RuleFit(
                rule=rule,
                compared=len(errors),
                same=same,
                median_error=statistics.median(errors) if errors else None,
                not_computed=len(stored) - len(errors),
            )
        )
    if not stored:
        return ()
    return tuple(
        sorted(fits, key=lambda f: (-f.same, f.median_error if f.median_error is not None else math.inf))
    )


def summary(found: Verification, *, most: int = 20) -> list[str]:
    """In words, for the terminal: at most so many problems of a kind."""
    lines = [f"{found.series} series; {found.checksums} checksums compared; {found.with_ct} with their CT"]
    lines.append(
        "it does not say which series were selected, so whether any are missing is not known"
        if found.selected is None
        else found.selected.sentence()
    )
    kinds = Counter(p.code for p in found.problems)
    for code, count in kinds.items():
        lines.append(f"{code}: {count}")
        own = [p for p in found.problems if p.code == code]
        lines += [f"  {p.place}: {p.message}" for p in own[:most]]
        lines += [f"  … and {count - most} more"] if count > most else []
    if found.rules:
        lines.append("which scoring rule gives the stored scores:")
        for fit in found.rules:
            error = "–" if fit.median_error is None else f"{fit.median_error:.3f}"
            missing = f", {fit.not_computed} not computed" if fit.not_computed else ""
            lines.append(f"  {fit.rule:12s} {fit.same} of {fit.compared}, median difference {error}{missing}")
        lines.append(f"rule: {found.rule}" if found.rule else "rule: cannot be told apart on these series")
    lines.append("nothing differs" if not found.problems else f"{len(found.problems)} problems")
    return lines


def to_dict(found: Verification) -> dict[str, Any]:
    """Everything as JSON types."""
    return {
        "series": found.series,
        "checksums": found.checksums,
        "with_ct": found.with_ct,
        "selected": None if found.selected is None else asdict(found.selected),
        "rule": found.rule,
        "rules": [vars(r) for r in found.rules],
        "problems": [vars(p) for p in found.problems],
        "scores": {place: dict(scores) for place, scores in found.scores.items()},
    }
