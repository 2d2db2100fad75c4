"""Check a release: structure, checksums, reports, segmentations; with the CT, the scores under every rule."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom import Series, discover, read_segmentation, read_series
from ..dicom.files import Upto
from ..dicom.seg.codes import kind_of, part_of
from ..dicom.seg.reader import Segmentation, open_segmentation
from ..errors import DeepCACError, InputError, InputUnreadable
from ..imaging import Geometry
from ..imaging.nrrd import on_grid, read_nrrd_mask
from ..outputs.report import REPORT
from ..pipeline.places import DICTIONARY, PARQUET, patient_folder
from ..scoring import RULES, risk_group, score, whole_pieces
from ..scoring.grades import SHARES
from ..scoring.rules import VOLTAGE_RULES, find_rule, named_rules
from ..system.foreign import foreign, parse_json
from ..system.names import safe_name
from .build import (
    FILES,
    MANIFEST,
    MAPPED_NAME,
    NRRD_FILES,
    NRRD_NAME,
    SEG_NAME,
    SELECTION,
    Release,
    Selected,
    files_of,
)

KEYS = ("Predicted Agatston Score", "Predicted Risk Group", "SeriesInstanceUID")
"""Keys of a report in the published release."""
PATIENT = "PatientID"
"""Key that reports of the authors' workflows have as well."""
MAPPED_KEYS = ("Mapped Predicted Agatston Score", "Mapped Predicted Risk Group")
"""Keys of a report with the score of the mapped mask, too."""
MAPPED_RULE = "deepcac2-mapped"
SAME_SCORE = 0.01
"""Scores that differ by less than this, or by less than this share of the score, are the same: reports are
rounded, and so are spacings in headers."""
SAME_SHARE = 1e-4


OURS = frozenset({SELECTION, PARQUET, DICTIONARY})
"""Files that a release of `build_release` has beside its series, and the published one has not."""
_ROWS_AT_ONCE = 5000
_DIFFERS = "differs from the manifest"
_SHOWN = 300
"""Characters of a place and of a message in the summary at most; names may have 65,535."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        code: What kind of thing: ``structure``, ``missing``, ``checksum``, ``report``, ``risk-group``,
            ``seg``, ``ct``, ``score``, ``arteries``.
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
        best = [r.rule for r in self.rules if r.same == self.rules[0].same]
        # at 120 kV a rule by the voltage is the plain one
        plain = [rule for rule in best if rule not in VOLTAGE_RULES] or best
        return plain[0] if len(plain) == 1 else None


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
    problems = _Problems()
    for place, message in release.broken:
        problems.note("structure", place, message)
    _check_selection(release, problems)
    _check_manifest(release, problems)
    if release.table is not None:
        _check_arteries(release.table, problems)
    scans = None if ct is None else discover(ct)
    checker = _Checker(release, problems)
    with_ct = 0
    of_run = None
    for name in release.other:
        if name == PARQUET:
            with checker.file(name) as table:
                if table is not None:
                    _check_arteries(table, problems)
            continue
        content = checker.content(name, keep=name == REPORT.file)
        of_run = content if name == REPORT.file else of_run
    reports: dict[str, dict[str, Any]] = {}
    stored: dict[str, _Stored] = {}
    computed: dict[str, dict[str, float]] = {}
    for done, (place, files) in enumerate(release.series.items(), start=1):
        for n in files_of(place):
            if n not in files:
                problems.note("structure", place, f"has no {n}")
        for n, name in sorted(files.items()):
            if n not in (*FILES, *NRRD_FILES, MAPPED_NAME):
                checker.content(name)
        report = checker.content(files[REPORT.file], keep=True) if REPORT.file in files else None
        found = _report(place, report, problems)
        if found is not None:
            reports[place] = found.content
        with ExitStack() as stack:
            paths = {
                n: stack.enter_context(checker.file(files[n]))
                for n in (SEG_NAME, NRRD_NAME, MAPPED_NAME)
                if n in files
            }
            masks = _seg(place, paths, problems) if "/" in place else _nrrd(place, paths, problems)
            scan = scans.find(masks.series_uid) if scans is not None and masks and masks.series_uid else None
            if masks is not None and scan is not None:
                with_ct += 1
                if found is not None and found.patient not in (None, scan.patient_id):
                    problems.note("report", place, f"{PATIENT} is another than the CT's")
                computed[place] = dict(_scores(place, masks, scan, problems))
                if found is not None:
                    stored[place] = found
        if watch is not None:
            watch(done, len(release.series))
    if of_run is not None:
        _report_of_run(of_run, reports, problems)
    if ct is not None and not with_ct:
        problems.note("ct", str(ct), "none of the release's series is in it, so no score was computed again")
    rules = _fits({place: found.score for place, found in stored.items()}, computed)
    _check_scores(stored, computed, [f.rule for f in rules if f.same and f.same == rules[0].same], problems)
    return Verification(
        series=len(release.series),
        checksums=checker.checksums,
        with_ct=with_ct,
        problems=tuple(problems),
        selected=release.selected,
        rules=rules,
        scores=computed,
    )


BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What a report says.

    Attributes:
        score, group: As they stand there.
        mapped: The score of the mapped mask; None where there is none.
        patient: PatientID; None where it says none.
        content: All of it.
    """

    score: float
    group: Any
    mapped: float | None
    patient: str | None
    content: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Masks:
    """What a series has by way of masks.

    Attributes:
        series_uid: Of its CT, None where that is not known.
        images: SOPInstanceUIDs of the CT's images that are referred to.
        on: The masks on a grid, by name: ``calcium``, ``mapped`` … It raises a `DeepCACError` where they do
            not lie on it.
    """

    series_uid: str | None
    images: frozenset[str]
    on: Callable[[Geometry], Mapping[str, BoolArray]]


class _Problems(list[Problem]):
    """What was found so far."""

    def note(self, code: str, place: str, message: str) -> None:
        """Add one, see `Problem`."""
        self.append(Problem(code=code, place=place, message=message))


def _check_selection(release: Release, problems: _Problems) -> None:
    """Series that were selected and are not there: not done by the run, or in a part that was not given."""
    selected = release.selected
    missing = dict.fromkeys((*release.missing, *(() if selected is None else selected.missing_series)))
    for uid in missing:
        problems.note("missing", uid, "was selected, and the run had not done it")
    if selected is not None and SELECTION in release.other and len(release.series) != selected.scored:
        counts = f"{selected.scored} series were scored and {len(release.series)} are here"
        problems.note("missing", SELECTION, f"{counts}: give all its parts")


def _check_manifest(release: Release, problems: _Problems) -> None:
    """What the manifest names and is not there; and that a release of ours has none."""
    if release.manifest is None:
        if OURS.intersection(release.other):
            missing = (
                "is missing, though the release has others of our files: whether any was changed is unknown"
            )
            problems.note("checksum", MANIFEST, missing)
        return
    present = {name for files in release.series.values() for name in files.values()} | set(release.other)
    for name in release.manifest:
        if name not in present:
            problems.note("checksum", name, "is in the manifest and not there")


class _Checker:
    """Reads the files of a release, each once and block by block, and compares them with the manifest.

    Args:
        release: Opened.
        problems: Where what is found goes.

    Attributes:
        checksums: How many were compared.
    """

    def __init__(self, release: Release, problems: _Problems) -> None:
        self._release, self._problems = release, problems
        self.checksums = 0

    def _expected(self, name: str) -> tuple[bool, str]:
        """Whether to read a file, and its SHA-256 in the manifest, "" where it names none."""
        manifest = self._release.manifest
        if manifest is None:
            return True, ""
        if name not in manifest:
            self._problems.note("checksum", name, "is not in the manifest")
            return name.rpartition("/")[2] in FILES, ""
        size, digest = manifest[name]
        if self._release.size(name) != size:
            self.checksums += 1
            self._problems.note("checksum", name, _DIFFERS)
            return False, ""
        return True, digest

    @contextmanager
    def _checked(self, name: str) -> Iterator[Any]:
        """Around the reading of a file: the digest that is to see it, None where it is not to be read."""
        try:
            read, expected = self._expected(name)
            digest = hashlib.sha256() if read else None
            yield digest
        except InputUnreadable as error:
            self._problems.note("structure", name, str(error))
            return
        if digest is not None and expected:
            self.checksums += 1
            if digest.hexdigest() != expected:
                self._problems.note("checksum", name, _DIFFERS)

    def content(self, name: str, *, keep: bool = False) -> bytes | None:
        """Check a file; its content where it is to be kept, None where it cannot be read."""
        kept = []
        with self._checked(name) as digest:
            if digest is None:
                return None
            for block in self._release.blocks(name):
                digest.update(block)
                if keep:
                    kept.append(block)
            return b"".join(kept)
        return None

    @contextmanager
    def file(self, name: str) -> Iterator[Path | None]:
        """Check a file; a path with its content, None where it cannot be read."""
        path: Path | None = None
        with ExitStack() as stack:
            with self._checked(name) as digest:
                if digest is not None:
                    path = stack.enter_context(self._release.unpacked(name, seen=digest.update))
            yield path


def _check_scores(
    stored: Mapping[str, _Stored],
    computed: Mapping[str, Mapping[str, float]],
    best: list[str],
    problems: _Problems,
) -> None:
    """What the reports say, against what was computed again.

    Args:
        best: The rules that give the most stored scores, one or several that give as many.
    """
    for place, found in stored.items():
        ours = computed[place].get(best[0]) if best else None
        if ours is not None and not _same(ours, found.score):
            problems.note(
                "score", place, f"stored score {found.score:g}, by the rule {best[0]} it is {ours:.4f}"
            )
        groups = [int(risk_group(_rounded(found.score, rule))) for rule in best]
        if groups and found.group in _groups(found.score) and found.group not in groups:
            wrong = f"risk group {found.group!r}, for a score of {found.score:g} by the rule {best[0]}"
            problems.note("risk-group", place, f"{wrong} it is {groups[0]}")
        mapped = computed[place].get(MAPPED_RULE)
        if found.mapped is not None and mapped is not None and not _same(mapped, found.mapped):
            problems.note(
                "score",
                place,
                f"stored mapped score {found.mapped:g}, by the rule {MAPPED_RULE} it is {mapped:.4f}",
            )


def _rounded(value: float, rule: str) -> float:
    """A score as a rule's group sees it."""
    return round(value) if find_rule(rule).round_total else value


def _groups(value: float) -> tuple[int, ...]:
    """The groups that a score may have: that of the number, first, and that of the whole number."""
    return int(risk_group(value)), int(risk_group(round(value)))


def _report_of_run(data: bytes, reports: Mapping[str, dict[str, Any]], problems: _Problems) -> None:
    """Compare the report of the whole run, a list, with those of the series."""
    wrong = partial(problems.note, "report", REPORT.file)
    try:
        content = parse_json(data, REPORT.file)
    except InputUnreadable as error:
        wrong(str(error))
        return
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        wrong("is no list with the reports of the series")
        return
    of_series = {str(report[KEYS[2]]): report for report in reports.values()}
    of_run = {str(entry.get(KEYS[2])): entry for entry in content}
    if len(of_run) != len(content):
        wrong("names a series twice")
    for uid in sorted(of_series.keys() | of_run.keys()):
        if uid not in of_run:
            wrong(f"lacks the series {uid}")
        elif uid not in of_series:
            wrong(f"names the series {uid}, of which no report is here")
        elif of_run[uid] != of_series[uid]:
            wrong(f"says of the series {uid} something else than its own report")


def _report(place: str, data: bytes | None, problems: _Problems) -> _Stored | None:
    """What the report says, where it is as it should be."""
    if data is None:
        return None

    wrong = partial(problems.note, "report", place)
    try:
        content = parse_json(data, REPORT.file)
    except InputUnreadable as error:
        wrong(str(error))
        return None
    if twice := _said_twice(data):
        wrong(f"{REPORT.file} says twice: {', '.join(twice)}; programs disagree on which of them counts")
        return None
    known = isinstance(content, dict) and set(content) - {PATIENT}
    if not known or known not in (set(KEYS), {*KEYS, *MAPPED_KEYS}):
        names = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        wrong(f"{REPORT.file} has not the three keys of the release but: {names}")
        return None
    *folders, series = place.split("/")
    uid, patient = content[KEYS[2]], content.get(PATIENT)
    if safe_name(str(uid)) != series:
        wrong(f"SeriesInstanceUID is {uid}, the folder another")
    if PATIENT in content and (
        not isinstance(patient, str) or folders not in ([], [patient_folder(patient)])
    ):
        wrong(f"{PATIENT} is {patient!r}, the folder another")
    values = []
    for prefix, (score_key, group_key) in (("", KEYS[:2]), ("mapped ", MAPPED_KEYS)):
        if score_key not in content:
            continue
        value, group = content[score_key], content[group_key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            wrong(f"the {prefix}score is {value!r}")
            return None
        if type(group) is not int or group not in _groups(value):  # true is 1, and no group
            right = _groups(value)[0]
            problems.note(
                "risk-group", place, f"{prefix}risk group {group!r}, for a score of {value:g} it is {right}"
            )
        values.append(float(value))
    return _Stored(
        score=values[0],
        group=content[KEYS[1]],
        mapped=values[1] if len(values) > 1 else None,
        patient=patient,
        content=content,
    )


def _said_twice(data: bytes) -> list[str]:
    """Keys that an object of a JSON text, read before, has more than once; a reader takes the last."""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return dict(pairs)

    with suppress(RecursionError):
        json.loads(data, object_pairs_hook=look)
    return found


def _nrrd(place: str, paths: Mapping[str, Path | None], problems: _Problems) -> _Masks | None:
    """The masks of a series in the authors' own layout; None where there are none that can be used."""
    found = {}
    for name, kind in ((NRRD_NAME, "calcium"), (MAPPED_NAME, "mapped")):
        path = paths.get(name)
        if path is not None:
            try:
                found[kind] = name, *read_nrrd_mask(path, what=name)
            except InputError as error:
                problems.note("seg", place, str(error))
    if "calcium" not in found:
        return None

    def on(grid: Geometry) -> dict[str, BoolArray]:
        return {kind: on_grid(mask, own, grid, what=name) for kind, (name, mask, own) in found.items()}

    return _Masks(series_uid=place, images=frozenset(), on=on)


def _seg(place: str, paths: Mapping[str, Path | None], problems: _Problems) -> _Masks | None:
    """The masks of a series' SEG; also checks the SEG."""
    path = paths.get(SEG_NAME)
    if path is None:
        return None

    wrong = partial(problems.note, "seg", place)
    try:
        with open_segmentation(path, what=SEG_NAME, upto=Upto.PLACE) as seg:
            ds = seg.dataset
            segments = [str(item.get("SegmentLabel", "")) for item in seg.segments]
            if len(segments) != 2 and not _by_class(seg):
                listed = ", ".join(segments) or "none"
                wrong(f"has the segments {listed} instead of heart and coronary calcium")
            if seg.undescribed:
                wrong(f"has frames of segment {seg.undescribed[0]}, which it does not describe")
            frames = int(ds.get("NumberOfFrames", 0) or 0)
            if not frames or len(seg.frames) != frames:
                wrong(f"says {frames} frames and describes {len(seg.frames)}")
            expected = frames * int(ds.get("Rows", 0) or 0) * int(ds.get("Columns", 0) or 0)
            one_bit = ds.get("BitsAllocated") == 1 and not ds.file_meta.TransferSyntaxUID.is_compressed
            if one_bit and seg.stored_bytes * 8 < expected:
                wrong("its pixel data is cut off")
            if safe_name(str(ds.get("PatientID", ""))) != place.split("/")[0]:
                wrong("its PatientID is another than the folder's")
            uid = seg.series_uid
            if safe_name(uid) != place.split("/")[1]:
                wrong(f"refers to the CT series {uid or 'none'}, the folder is another's")
            return _Masks(
                series_uid=uid or None, images=frozenset(seg.images()), on=partial(read_segmentation, path)
            )
    except InputUnreadable as error:
        wrong(str(error))
        return None


def _by_class(seg: Segmentation) -> bool:
    """Whether a SEG has heart and calcium as its first two segments, and beside them calcium by artery and
    what was not counted, as ours have where the weights name it."""
    numbers = [int(item.SegmentNumber) for item in seg.segments]
    first = [kind_of(item) for item in seg.segments[:2]]
    in_order = numbers == [*range(1, len(numbers) + 1)]
    return in_order and first == ["heart", "calcium"] and all(map(part_of, seg.segments[2:]))


def _check_arteries(table: Path, problems: _Problems) -> None:
    """Whether what each artery has of a score adds up to it, in the table of a run or release.

    Rows without names and rules that round (`scoring.score_by_class`) are left out; so is a table without
    these columns.
    """
    try:
        with foreign(PARQUET):
            wrong = list(_not_adding_up(table))
    except InputUnreadable as error:
        problems.note("structure", PARQUET, str(error))
        return
    for uid, total, stored in wrong:
        problems.note("arteries", uid, f"its arteries add up to {total:.4f}, the score is {stored:g}")


def _not_adding_up(table: Path) -> Iterator[tuple[str, float, float]]:
    """Series, sum of the arteries, and score, where these two differ.

    The table may be anybody's: texts stay in their dictionary, where a long one that every row has is held
    once, and numbers must be numbers.
    """
    import pyarrow as pa
    from pyarrow import parquet

    texts, values = ("series_uid", "rule"), ("agatston_score", *SHARES)
    exact = {name for name, rule in named_rules().items() if not (rule.round_total or rule.round_lesions)}
    with table.open("rb") as opened:
        file = parquet.ParquetFile(opened, read_dictionary=[*texts])
        schema = file.schema_arrow
        if not {*texts, *values} <= set(schema.names):
            return
        for name in values:
            if not pa.types.is_floating(schema.field(name).type):
                raise ValueError(f"{name} holds no numbers")
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[*texts, *values]):
            uids, rules = (batch.column(name) for name in texts)
            known = [code for code, rule in enumerate(rules.dictionary) if rule.as_py() in exact]
            numbers = np.stack([batch.column(n).to_numpy(zero_copy_only=False) for n in values])
            judged = np.isin(rules.indices.fill_null(-1), known) & np.isfinite(numbers).all(axis=0)
            for row in np.flatnonzero(judged):
                stored, *parts = numbers[:, row].tolist()
                if not _same(total := math.fsum(parts), stored):
                    yield str(uids[row].as_py()), total, stored


def _scores(place: str, found: _Masks, scan: Series, problems: _Problems) -> Iterator[tuple[str, float]]:
    """The score by every rule that can be computed; also checks that the masks belong to the CT."""

    wrong = partial(problems.note, "ct", place)
    try:
        reading = read_series(scan)
        masks = found.on(reading.volume.geometry)
    except DeepCACError as error:
        wrong(f"cannot be scored again: {error}")
        return
    strange = found.images - {s.sop_instance_uid for s in reading.slices}
    if strange:
        wrong(f"refers to {len(strange)} images that the CT does not have")
    if "calcium" not in masks:
        wrong("has no segment that is known as calcium")
        return
    if "mapped" in masks:
        lowest = RULES[MAPPED_RULE].whole_from
        assert lowest is not None
        other = masks["mapped"] != whole_pieces(reading.volume.hu, masks["calcium"], lowest)
        if count := int(other.sum()):
            problems.note("seg", place, f"{MAPPED_NAME} is not the mapped {NRRD_NAME}: {count} voxels differ")
    for name in named_rules():
        try:
            result = score(
                reading.volume,
                masks["calcium"],
                rule=name,
                slice_thickness=scan.slice_thickness,
                kvp=scan.kvp,
            )
        except DeepCACError:
            continue  # a rule that wants what the header does not say; counted in `RuleFit.not_computed`
        yield name, result.total


def _same(a: float, b: float) -> bool:
    return abs(a - b) < max(SAME_SCORE, SAME_SHARE * max(a, b))


def _fits(stored: Mapping[str, float], computed: Mapping[str, Mapping[str, float]]) -> tuple[RuleFit, ...]:
    fits = []
    for rule in named_rules():
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
