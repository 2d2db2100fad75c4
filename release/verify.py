"""Check a release: structure, checksums, reports, segmentations; with the CT, the scores under every rule."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from ..dicom import Series, discover, read_segmentation, read_series
from ..dicom.files import Upto
from ..dicom.names import safe_name
from ..dicom.segmentation import open_segmentation, stored_bytes
from ..errors import DeepCACError, InputError, InputUnreadable
from ..pipeline.outputs import PARQUET, REPORT_NAME
from ..scoring import RULES, risk_group, score
from ..system.foreign import parse_json
from .build import DICTIONARY, FILES, MANIFEST, SEG_NAME, SELECTION, Release, Selected

KEYS = ("Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID")
"""Keys of a report in the published release."""
SAME_SCORE = 0.01
"""Scores that differ by less than this, or by less than this share of the score, are the same: reports are
rounded, and so are spacings in headers."""
SAME_SHARE = 1e-4


OURS = frozenset({SELECTION, PARQUET, DICTIONARY})
"""Files that a release of `build_release` has beside its series, and the published one has not."""
_DIFFERS = "differs from the manifest"
_SHOWN = 300
"""Characters of a place and of a message in the summary at most; names may have 65,535."""


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
    problems = [Problem(code="structure", place=place, message=m) for place, m in release.broken]
    problems += _selection(release)
    problems += _manifest(release)
    scans = None if ct is None else discover(ct)
    where = {} if scans is None else {series_uid: i for i, series_uid in enumerate(scans.uids)}
    checker = _Checker(release, problems)
    with_ct = 0
    for name in release.other:
        checker.content(name)
    stored: dict[str, float] = {}
    computed: dict[str, dict[str, float]] = {}
    for done, (place, files) in enumerate(release.series.items(), start=1):
        for n in FILES:
            if n not in files:
                problems.append(Problem(code="structure", place=place, message=f"has no {n}"))
        for n, name in sorted(files.items()):
            if n not in FILES:
                checker.content(name)
        report = checker.content(files[REPORT_NAME], keep=True) if REPORT_NAME in files else None
        found = _report(place, report, problems)
        if SEG_NAME in files:
            with checker.file(files[SEG_NAME]) as path:
                uid, images = _seg(place, path, problems)
                scan = scans.series[where[uid]] if scans is not None and uid in where else None
                if scan is not None and path is not None:
                    with_ct += 1
                    computed[place] = dict(_scores(place, path, images, scan, problems))
                    if found is not None:
                        stored[place] = found
        if watch is not None:
            watch(done, len(release.series))
    if ct is not None and not with_ct:
        message = "none of the release's series is in it, so no score was computed again"
        problems.append(Problem(code="ct", place=str(ct), message=message))
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
        checksums=checker.checksums,
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


def _manifest(release: Release) -> Iterator[Problem]:
    """What the manifest names and is not there; and that a release of ours has none."""
    if release.manifest is None:
        if OURS.intersection(release.other):
            message = (
                "is missing, though the release has others of our files: whether any was changed is unknown"
            )
            yield Problem(code="checksum", place=MANIFEST, message=message)
        return
    present = {name for files in release.series.values() for name in files.values()} | set(release.other)
    for name in release.manifest:
        if name not in present:
            yield Problem(code="checksum", place=name, message="is in the manifest and not there")


class _Checker:
    """Reads the files of a release, each once and block by block, and compares them with the manifest.

    Args:
        release: Opened.
        problems: Where what is found goes.

    Attributes:
        checksums: How many were compared.
    """

    def __init__(self, release: Release, problems: list[Problem]) -> None:
        self._release, self._problems = release, problems
        self.checksums = 0

    def _expected(self, name: str) -> tuple[bool, str]:
        """Whether to read a file, and its SHA-256 in the manifest, "" where it names none."""
        manifest = self._release.manifest
        if manifest is None:
            return True, ""
        if name not in manifest:
            self._problem(name, "is not in the manifest")
            return name.rpartition("/")[2] in FILES, ""
        size, digest = manifest[name]
        if self._release.size(name) != size:
            self.checksums += 1
            self._problem(name, _DIFFERS)
            return False, ""
        return True, digest

    def _problem(self, name: str, message: str, code: str = "checksum") -> None:
        self._problems.append(Problem(code=code, place=name, message=message))

    def _compare(self, name: str, found: str, expected: str) -> None:
        if expected:
            self.checksums += 1
            if found != expected:
                self._problem(name, _DIFFERS)

    def content(self, name: str, *, keep: bool = False) -> bytes | None:
        """Check a file; its content where it is to be kept, None where it cannot be read."""
        try:
            read, expected = self._expected(name)
            if not read:
                return None
            digest, kept = hashlib.sha256(), []
            for block in self._release.blocks(name):
                digest.update(block)
                if keep:
                    kept.append(block)
        except InputUnreadable as error:
            self._problem(name, str(error), "structure")
            return None
        self._compare(name, digest.hexdigest(), expected)
        return b"".join(kept)

    @contextmanager
    def file(self, name: str) -> Iterator[Path | None]:
        """Check a file; a path with its content, None where it cannot be read."""
        digest, stack = hashlib.sha256(), ExitStack()
        path: Path | None = None
        with stack:
            try:
                read, expected = self._expected(name)
                if read:
                    path = stack.enter_context(self._release.unpacked(name, seen=digest.update))
                    self._compare(name, digest.hexdigest(), expected)
            except InputUnreadable as error:
                self._problem(name, str(error), "structure")
            yield path


def _report(place: str, data: bytes | None, problems: list[Problem]) -> float | None:
    """The stored score, where the report is as it should be."""
    if data is None:
        return None

    def wrong(message: str, code: str = "report") -> None:
        problems.append(Problem(code=code, place=place, message=message))

    try:
        content = parse_json(data, REPORT_NAME)
    except InputUnreadable as error:
        wrong(str(error))
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


def _seg(place: str, path: Path | None, problems: list[Problem]) -> tuple[str | None, set[str]]:
    """SeriesInstanceUID of the CT that the SEG names, and the SOPInstanceUIDs of its source images."""
    if path is None:
        return None, set()

    def wrong(message: str) -> None:
        problems.append(Problem(code="seg", place=place, message=message))

    try:
        with open_segmentation(path, what=SEG_NAME, upto=Upto.PLACE) as ds:
            segments = [str(s.get("SegmentLabel", "")) for s in ds.get("SegmentSequence", [])]
            if len(segments) != 2:
                listed = ", ".join(segments) or "none"
                wrong(f"has the segments {listed} instead of heart and coronary calcium")
            frames = int(ds.get("NumberOfFrames", 0) or 0)
            own = ds.get("PerFrameFunctionalGroupsSequence") or []
            if not frames or len(own) != frames:
                wrong(f"says {frames} frames and describes {len(own)}")
            expected = frames * int(ds.get("Rows", 0) or 0) * int(ds.get("Columns", 0) or 0)
            one_bit = ds.get("BitsAllocated") == 1 and not ds.file_meta.TransferSyntaxUID.is_compressed
            if one_bit and stored_bytes(ds, path) * 8 < expected:
                wrong("its pixel data is cut off")
            if safe_name(str(ds.get("PatientID", ""))) != place.split("/")[0]:
                wrong("its PatientID is another than the folder's")
            series = ds.get("ReferencedSeriesSequence")
            uid = str(series[0].get("SeriesInstanceUID", "")) if series else ""
            if safe_name(uid) != place.split("/")[1]:
                wrong(f"refers to the CT series {uid or 'none'}, the folder is another's")
            return uid or None, set(_images(own))
    except InputUnreadable as error:
        wrong(str(error))
        return None, set()


def _images(frames: Iterable[Dataset]) -> Iterator[str]:
    for groups in frames:
        for derivation in groups.get("DerivationImageSequence", []):
            for image in derivation.get("SourceImageSequence", []):
                yield str(image.get("ReferencedSOPInstanceUID", ""))


def _scores(
    place: str, path: Path, images: set[str], scan: Series, problems: list[Problem]
) -> Iterator[tuple[str, float]]:
    """The score by every rule that can be computed; also checks that the SEG refers to the CT's images."""

    def wrong(message: str) -> None:
        problems.append(Problem(code="ct", place=place, message=message))

    try:
        reading = read_series(scan)
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
        lines += [f"  {p.place[:_SHOWN]}: {p.message[:_SHOWN]}" for p in own[:most]]
        lines += [f"  … and {count - most} more"] if count > most else []
    if found.rules:
        lines.append("which scoring rule gives the stored scores:")
        for fit in found.rules:
            error = "–" if fit.median_error is None else f"{fit.median_error:.3f}"
            missing = f", {fit.not_computed} not computed" if fit.not_computed else ""
            lines.append(f"  {fit.rule:12s} {fit.same} of {fit.compared}, median difference {error}{missing}")
        lines.append(f"rule: {found.rule}" if found.rule else "rule: cannot be told apart on these series")
    same = (
        "nothing differs" if found.checksums else "nothing differs, as far as that shows without a manifest"
    )
    lines.append(same if not found.problems else f"{len(found.problems)} problems")
    return lines


def to_dict(found: Verification) -> dict[str, Any]:
    """Everything as JSON types."""
    return {**asdict(found), "rule": found.rule}
