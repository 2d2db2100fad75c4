"""A release: the SEG and the report of every scored series in one or several zip files, with their manifest.

Its layout is that of the published NLST release, ``<PatientID>/<SeriesInstanceUID>/cac.seg.dcm`` and
``DeepCAC.report.json``; around them README, data dictionary, results table, and a manifest with checksums.
What the authors' own workflows leave is read as well (`Release`): ``<SeriesInstanceUID>/nrrd/cac.seg.nrrd``
and ``<SeriesInstanceUID>/DeepCAC.report.json``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import stat
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any

from .. import __version__
from ..dicom import SliceRef, readable
from ..errors import InputError, InputUnreadable
from ..outputs.report import REPORT
from ..pipeline.places import DICTIONARY, PARQUET, RUN_FILE
from ..pipeline.results import dictionary_csv, read_parquet, write_parquet
from ..system.atomic import atomic_path, json_bytes
from ..system.foreign import MAX_JSON, foreign, parse_json, read_json
from ..system.inside import regular_inside

if TYPE_CHECKING:
    from ..dicom.deidentify import Deidentifier

SEG_NAME = "cac.seg.dcm"
FILES = (SEG_NAME, REPORT.file)
"""What a series has."""
NRRD_NAME, MAPPED_NAME = "cac.seg.nrrd", "mcac.seg.nrrd"
NRRD_FILES = (NRRD_NAME, REPORT.file)
"""What a series has in the authors' own layout; it may have the mapped mask, too."""
MANIFEST, README = "manifest.csv", "README.md"
MANIFEST_COLUMNS = ("path", "bytes", "sha256")
SELECTION = "selection.json"
"""Which series the run was for, and what became of them; see `Selected`."""
MISSING = "missing"
"""In place of the SHA-256, in the manifest: a series that the run had not done when the release was made."""

_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every member: the earliest that zip knows, so that the same input gives the same bytes."""
_CHUNK = 1 << 20
_LEVEL = 1
"""Of deflate: masks are mostly zeros, and more effort costs more time than it saves space."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Which series a run was for, as it wrote into its ``run.json``.

    Attributes:
        found: Series in its input.
        selected: Series that it was to do; the other numbers are of these.
        scored, rejected, failed: What became of them.
        missing: Not done.
        missing_series: Their SeriesInstanceUIDs.
    """

    found: int
    selected: int
    scored: int
    rejected: int
    failed: int
    missing: int
    missing_series: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, content: Any) -> Selected | None:
        """From JSON; None where it is not known which series were selected, or what became of them."""
        try:
            numbers = {f.name: int(content[f.name]) for f in fields(cls) if f.name != "missing_series"}
            missing = tuple(str(uid) for uid in content["missing_series"])
        except (KeyError, TypeError, ValueError):
            return None
        found = cls(**numbers, missing_series=missing)
        done = found.scored + found.rejected + found.failed
        return found if done + found.missing == found.selected and found.missing == len(missing) else None

    @classmethod
    def of_run(cls, results: Path) -> Selected | None:
        """From the ``run.json`` of a run's output folder; see `of`. Of a run at work nothing is known."""
        try:
            content = read_json(results / RUN_FILE)
        except InputUnreadable:
            return None
        return cls.of(content.get("series")) if isinstance(content, dict) else None

    def sentence(self) -> str:
        """In words."""
        return (
            f"Of {self.found} series found {self.selected} were selected: {self.scored} scored, "
            f"{self.rejected} rejected, {self.failed} failed, {self.missing} missing."
        )


_UNKNOWN = "It is not known which series were selected for this run, nor whether any of them are missing."


@dataclass(frozen=True, kw_only=True)
class Built:
    """What `build_release` wrote.

    Attributes:
        parts: The zip files, in order.
        series: Scored series in it; the table has the others too.
        rows: Rows of the table.
        bytes: Of the files before compression.
        missing: Series that were selected and are not in it; None: not known.
    """

    parts: tuple[Path, ...]
    series: int
    rows: int
    bytes: int
    missing: int | None


class _Part:
    """One zip file being written, with its own manifest."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", allowZip64=True)
        self._lines = [MANIFEST_COLUMNS]
        self.bytes = 0

    def add(self, name: str, source: IO[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with self._zip.open(_member(name), "w", force_zip64=True) as target:
            while data := source.read(_CHUNK):
                digest.update(data)
                size += len(data)
                target.write(data)
        self._lines.append((name, str(size), digest.hexdigest()))
        self.bytes += size

    def lacks(self, series_uid: str) -> None:
        """Say in the manifest that a series is missing."""
        self._lines.append((series_uid, "0", MISSING))

    def close(self) -> None:
        with self._zip.open(_member(MANIFEST), "w") as target:
            target.write(_csv(self._lines).encode())
        self._zip.close()


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    info._compresslevel = _LEVEL  # type: ignore[attr-defined]
    info.external_attr = 0o644 << 16
    info.create_system = 3
    return info


def build_release(
    results: Path,
    out: Path,
    *,
    part_bytes: int | None = None,
    unfinished: bool = False,
    deidentify: Deidentifier | None = None,
) -> Built:
    """Write the release of a run.

    Of a run that is not finished there is none, unless it is asked for; then README, ``selection.json``
    and manifest say what is missing, and `verify` calls it a problem.

    Files are streamed, one series after the other in the order of the table; each zip file appears under its
    name only when it is whole. The same input gives the same bytes (with the same zlib).

    Args:
        results: Output folder of `deepcac2 run`.
        out: Zip file; with `part_bytes` the parts are ``NAME-001.zip``, ``NAME-002.zip`` and so on.
        part_bytes: Begin another part when this many bytes (before compression) are in one.
        unfinished: Make it of a run that is not finished, or does not say, too.
        deidentify: Makes it without patients; the order of series is that of their new names then.

    Raises:
        NotDeidentified: A SEG cannot be handed over so.
        InputError: No table, nothing scored in it, a scored series without its files, or a run that is not
            finished.
        DiskFull, OutputUnwritable: It cannot be written.
    """
    table = results / PARQUET
    if not table.exists():
        raise InputError(f"{results} holds no {PARQUET}; give the output folder of a finished 'deepcac2 run'")
    if out.suffix.lower() != ".zip":
        raise InputError(f"{out} must end in .zip")
    regular_inside(table, results)
    selected = Selected.of_run(results)
    if not unfinished:
        _check_finished(selected, results)
    rows = series = known = 0
    named = False
    for row in read_parquet(table):
        rows += 1
        known += bool(row.series_uid)
        if row.status == "scored":
            series += 1
            named |= row.score_unsure is not None
            if row.agatston_score is None:
                raise InputError(
                    f"series {row.series_uid} in {results} has no score of the calcium network: a release is "
                    "made of a run with the workflow 'default'"
                )
            for name in FILES:
                if not (results / row.folder / name).exists():
                    raise InputError(
                        f"{row.folder}/{name} is missing in {results}: give the same 'deepcac2 run' again, "
                        "which makes what is missing, or one with a workflow that leaves it there"
                    )
                if name_fault(f"{row.folder}/{name}"):
                    raise InputError(f"{table} names the folder {row.folder!r}; it is no run's table")
                regular_inside(results / row.folder / name, results)
    if not series:
        raise InputError(f"nothing is scored in {results}")
    if selected is not None and (known, series) != (selected.selected - selected.missing, selected.scored):
        raise InputError(
            f"{PARQUET} and {RUN_FILE} in {results} are not of one run: give the same 'deepcac2 run' again, "
            "which writes both anew"
        )
    parts: list[Path] = []
    total = 0
    with _content(results, selected, deidentify) as content, ExitStack() as stack:
        current: _Part | None = None

        def begin() -> _Part:
            name = out if part_bytes is None else out.with_name(f"{out.stem}-{len(parts) + 1:03d}.zip")
            part = _Part(stack.enter_context(atomic_path(name)))
            parts.append(name)
            return part

        for before, folder in content.series:
            if current is None:
                current = begin()
                if len(parts) == 1:
                    readme = _readme(series, rows, content.selected, named, deidentify is not None)
                    current.add(README, io.BytesIO(readme.encode()))
                    said = None if content.selected is None else asdict(content.selected)
                    current.add(SELECTION, io.BytesIO(json_bytes(said)))
                    for uid in () if content.selected is None else content.selected.missing_series:
                        current.lacks(uid)
                    current.add(DICTIONARY, io.BytesIO(dictionary_csv()))
                    with content.table.open("rb") as source:
                        current.add(PARQUET, source)
            for name in FILES:
                with content.file(before, name) as file:
                    current.add(f"{folder}/{name}", file)
            if part_bytes is not None and current.bytes >= part_bytes:
                total += current.bytes
                current.close()
                stack.close()
                current = None
        if current is not None:
            total += current.bytes
            current.close()
    missing = None if selected is None else selected.missing
    return Built(parts=tuple(parts), series=series, rows=rows, bytes=total, missing=missing)


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What goes into a release.

    Attributes:
        series: Of each scored series its folder in the run, and in the release.
        table: Its file.
        selected: See `Selected`.
        file: Opens a file of a series: its folder in the run, and the file's name.
    """

    series: Iterable[tuple[str, str]]
    table: Path
    selected: Selected | None
    file: Callable[[str, str], IO[bytes]]


@contextmanager
def _content(results: Path, selected: Selected | None, deidentify: Deidentifier | None) -> Iterator[_Content]:
    """What of a run goes into its release, as it is or without its patients."""
    table = regular_inside(results / PARQUET, results)

    def plain(folder: str, name: str) -> IO[bytes]:
        return regular_inside(results / folder / name, results).open("rb")

    if deidentify is None:
        scored = ((row.folder, row.folder) for row in read_parquet(table) if row.status == "scored")
        yield _Content(series=scored, table=table, selected=selected, file=plain)
        return
    from pydicom.uid import SegmentationStorage

    from ..pipeline.hand_over import report_without_patient, row_without_patient

    names = deidentify.pseudonyms

    def made(folder: str, name: str) -> IO[bytes]:
        path = regular_inside(results / folder / name, results)
        if name == SEG_NAME:
            return io.BytesIO(deidentify.encoded(SliceRef(path=path, sop_class_uid=SegmentationStorage)))
        return io.BytesIO(json_bytes(report_without_patient(read_json(path, most=LARGEST[name]), names)))

    # in the order of the new names: that of the old ones would say something of them
    pairs = [(row_without_patient(row, names), row.folder) for row in read_parquet(table)]
    pairs.sort(key=lambda pair: (pair[0].patient_id, pair[0].series_uid))
    if selected is not None:
        missing = sorted(map(names.uid, selected.missing_series))
        selected = replace(selected, missing_series=tuple(missing))
    with TemporaryDirectory() as folder:
        write_parquet(Path(folder) / PARQUET, (row for row, _ in pairs))
        yield _Content(
            series=[(before, row.folder) for row, before in pairs if row.status == "scored"],
            table=Path(folder) / PARQUET,
            selected=selected,
            file=made,
        )


def _check_finished(selected: Selected | None, results: Path) -> None:
    """Refuse what is not known to be whole."""
    again = "give the same 'deepcac2 run' again, which makes what is missing, or --unfinished"
    if selected is None:
        raise InputError(
            f"{RUN_FILE} in {results} does not say what became of all selected series; the run is at work, "
            f"was killed, or is of an older version: {again}"
        )
    if selected.missing:
        raise InputError(
            f"the run in {results} is not finished, {selected.missing} of {selected.selected} selected "
            f"series are missing: {again}"
        )


def _readme(series: int, rows: int, selected: Selected | None, named: bool, deidentified: bool) -> str:
    by_class = "; from 3 on calcium by artery, and what was not counted by kind" if named else ""
    last = "PatientIDs that no folder can be named after are escaped (`%XX`)."
    if named:
        last = (
            "The columns `score_lm` to `score_unsure` of the table are what each artery has of the score, "
            f"and add up to it; the other `score_…` are of what was not counted.\n\n{last}"
        )
    said = _UNKNOWN if selected is None else selected.sentence()
    if selected is None or selected.missing:
        said = f"**This release is not of a finished run. {said}**"
    if deidentified:
        last = (
            "PatientIDs and UIDs are pseudonyms; dates, ages, sexes, names and descriptions were removed, "
            f"and cautions and reasons are those of the gates in general.\n\n{last}"
        )
    return f"""# Coronary calcium from chest CT: a release

{said}

{series} scored series; the table `{PARQUET}` has all {rows} series of the run, with the reason of those not
scored. Made with deepcac2 {__version__}. Research use only, not a medical device.

| file | what |
| --- | --- |
| `<PatientID>/<SeriesInstanceUID>/{SEG_NAME}` | DICOM SEG: 1 heart, 2 coronary calcium{by_class} |
| `<PatientID>/<SeriesInstanceUID>/{REPORT.file}` | predicted Agatston score, risk group, SeriesInstanceUID |
| `{PARQUET}` | one row for each series |
| `{DICTIONARY}` | what the columns of the table mean |
| `{SELECTION}` | how many series were selected and what became of them; those that are missing |
| `{MANIFEST}` | size and SHA-256 of every file of this zip file; `{MISSING}`: a series that is not in it |

{last} Check: `deepcac2 release verify FILE.zip`.
"""


def _csv(lines: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


# Reading

_PLACE = re.compile(r"(?P<place>[^/]+/[^/]+)/(?P<name>[^/]+)")
_NRRD_PLACE = re.compile(
    rf"(?P<place>[^/]+)/(?:(?:nrrd/)?(?P<name>m?{re.escape(NRRD_NAME)})|{re.escape(REPORT.file)})"
)
LARGEST = {
    **dict.fromkeys((SEG_NAME, NRRD_NAME, MAPPED_NAME, PARQUET), 1 << 30),
    REPORT.file: 1 << 20,
}
"""Bytes of a series' files and of the table that are read at most; chosen: a SEG of 1,000 slices of 512² has
70 MB, a report 200 bytes, a table of 130,000 rows 30 MB."""
_LARGEST_OTHER = 1 << 30
_MOST_MANIFEST = 256 << 20
"""Bytes of a manifest that are read at most; chosen: that of 127,776 scans has 50 MB."""
_MOST_LINES = 1_000_000
"""Lines of a manifest that are read at most; chosen: the release of 127,776 scans has twice as many."""
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members may be packed: deflate makes at most 1032 bytes of one, others millions."""


def files_of(place: str) -> tuple[str, ...]:
    """The files that a series must have, by its place, see `Release.series`.

    >>> files_of("P/1.2"), files_of("1.2")
    (('cac.seg.dcm', 'DeepCAC.report.json'), ('cac.seg.nrrd', 'DeepCAC.report.json'))
    """
    return FILES if "/" in place else NRRD_FILES


def name_fault(name: str) -> str:
    """Why a name is none for a file of a release: it leads out of the folder it is unpacked to, or hides.

    >>> name_fault("P/1.2/cac.seg.dcm"), name_fault("a/../../b")
    ('', 'its name leads elsewhere: names are relative, with / between plain parts')
    """
    parts = name.split("/")
    if not parts[0] or "\\" in name or re.match("[A-Za-z]:", name) or {"", ".", ".."} & set(parts):
        return "its name leads elsewhere: names are relative, with / between plain parts"
    return "" if readable(name).isprintable() else "its name holds characters that do not print"


def _member_fault(info: zipfile.ZipInfo) -> str:
    """Why a member of a zip file is not taken; "" where it is."""
    if fault := name_fault(info.orig_filename.removesuffix("/")):
        return fault
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, no file"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in _PACKED:
        return f"is packed by the method {info.compress_type}: pack it with deflate"
    return ""


class Release:
    """The files of a release: zip files, or the output folder of a run.

    Whatever cannot be trusted is left out, with a word in `broken`: names that lead out of the folder, links,
    encrypted members. Nothing is read before it is asked for, and then block by block.

    Attributes:
        series: The files of each series by name, by its place: ``<PatientID>/<SeriesInstanceUID>``, or
            ``<SeriesInstanceUID>`` alone in the authors' own layout.
        other: Names of the other files.
        manifest: Size in bytes and SHA-256 by name; None where there is no manifest, which is something else
            than one that names nothing.
        selected: Which series it is of; None: it does not say.
        missing: SeriesInstanceUIDs that the manifest calls missing.
        table: The table of a run, where it is its output folder and has one; that of a release is in `other`.
        broken: What cannot be read or trusted: the place and why.

    Args:
        paths: The parts, or one folder.

    Raises:
        InputUnreadable: One is missing, or no zip file.
        InputError: One series stands in two parts.
    """

    def __init__(self, *paths: Path) -> None:
        self._stack = ExitStack()
        self._where: dict[str, _Member | Path] = {}
        self._folded: dict[str, str] = {}
        self.manifest: dict[str, tuple[int, str]] | None = None
        self.missing: list[str] = []
        self.table: Path | None = None
        self.broken: list[tuple[str, str]] = []
        self.selected: Selected | None = None
        for path in paths:
            if path.is_dir():
                self._add_folder(path)
                self.selected = Selected.of_run(path)
            else:
                self._add_zip(path)
        if SELECTION in self._where:
            self.selected = self._read_selection()
        self.series: dict[str, dict[str, str]] = {}
        self.other: list[str] = []
        for name in sorted(self._where):
            match = _NRRD_PLACE.fullmatch(name) or _PLACE.fullmatch(name)
            if match is None:
                self.other.append(name)
                continue
            files = self.series.setdefault(match["place"], {})
            key = match["name"] or REPORT.file
            if key in files:
                self.broken.append((name, f"is there as {files[key]}, too"))
            files[key] = name

    def __enter__(self) -> Release:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _add_folder(self, folder: Path) -> None:
        if (folder / PARQUET).exists():
            try:
                self.table = regular_inside(folder / PARQUET, folder)
            except InputUnreadable as error:
                self.broken.append((PARQUET, str(error)))
        for path in sorted(p for pattern in ("*", "*/*", "*/*/*") for p in folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            in_place = _NRRD_PLACE.fullmatch(name) or (path.name in FILES and _PLACE.fullmatch(name))
            if name == REPORT.file or in_place:
                try:
                    self._put(name, regular_inside(path, folder))
                except InputUnreadable as error:
                    self.broken.append((name, str(error)))

    def _add_zip(self, path: Path) -> None:
        if not path.exists():
            raise InputUnreadable(f"{path} does not exist")
        with foreign(str(path), fault="is no whole zip file"):
            if not path.is_file():
                raise ValueError("it is no regular file")
            archive = self._stack.enter_context(zipfile.ZipFile(path))
        for info in archive.infolist():
            if fault := _member_fault(info):
                self.broken.append((info.filename, fault))
            elif info.is_dir():
                continue
            elif info.filename == MANIFEST:
                self._read_manifest(_Member(archive, info))
            else:
                self._put(info.filename, _Member(archive, info))

    def _read_manifest(self, member: _Member) -> None:
        known = self.manifest = {} if self.manifest is None else self.manifest

        def line(number: int, row: dict[str, str]) -> None:
            path, digest = row["path"], row["sha256"]
            if digest == MISSING:
                self.missing.append(path)
            elif path in known:
                self.broken.append((MANIFEST, f"{path} stands in it twice"))
            elif row["bytes"].isdecimal() and len(row["bytes"]) < _DIGITS:
                known[path] = int(row["bytes"]), digest
            else:
                self.broken.append((MANIFEST, f"line {number} gives no size in bytes"))

        try:
            with foreign(MANIFEST), member.open() as stream, io.TextIOWrapper(stream, "utf-8") as file:
                if member.info.file_size > _MOST_MANIFEST:
                    raise ValueError(f"it has more than {_MOST_MANIFEST >> 20} MB")
                rows = csv.DictReader(file)
                if absent := [c for c in MANIFEST_COLUMNS if c not in (rows.fieldnames or ())]:
                    raise ValueError(f"it has no column {absent[0]}")
                for number, row in enumerate(rows, start=2):
                    if number > _MOST_LINES:
                        raise ValueError(f"it has more than {_MOST_LINES} lines")
                    if None in row or None in row.values():
                        self.broken.append((MANIFEST, f"line {number} has not the columns of the first"))
                    else:
                        line(number, row)
        except InputUnreadable as error:
            self.broken.append((MANIFEST, str(error)))

    def _read_selection(self) -> Selected | None:
        try:
            found = Selected.of(parse_json(self.read(SELECTION), SELECTION))
        except InputUnreadable as error:
            self.broken.append((SELECTION, str(error)))
            return None
        if found is None:
            self.broken.append((SELECTION, f"{SELECTION}: {_UNKNOWN}"))
        return found

    def _put(self, name: str, where: _Member | Path) -> None:
        if name in self._where:
            raise InputError(f"{name} is there twice")
        same = self._folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if same != name:
            self.broken.append((name, f"is {same} where case does not count: one would replace the other"))
        self._where[name] = where

    def size(self, name: str) -> int:
        """Bytes of a file, as its archive or the disk says.

        Raises:
            InputUnreadable: It has gone.
        """
        where = self._where[name]
        with foreign(name):
            return where.stat().st_size if isinstance(where, Path) else where.info.file_size

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of a file, block by block.

        Raises:
            InputUnreadable: It cannot be read: cut off, its checksum is wrong, or it is larger than any file
                of its name (`LARGEST`).
        """
        most = LARGEST.get(name.rpartition("/")[2], _LARGEST_OTHER)
        if (self.manifest is None or name.rpartition("/")[2] in LARGEST) and self.size(name) > most:
            raise InputUnreadable(f"{name} says that it has more than {most >> 20} MB; it was not read")
        where = self._where[name]
        with foreign(name), where.open("rb") if isinstance(where, Path) else where.open() as file:
            while data := file.read(_CHUNK):
                yield data

    def read(self, name: str) -> bytes:
        """The content of a JSON file.

        Raises:
            InputUnreadable: See `blocks`; or it has more than `MAX_JSON` bytes.
        """
        if self.size(name) > MAX_JSON:
            raise InputUnreadable(f"{name} has more than {MAX_JSON >> 20} MB; it was not read")
        return b"".join(self.blocks(name))

    @contextmanager
    def unpacked(self, name: str, *, seen: Callable[[bytes], None] = lambda block: None) -> Iterator[Path]:
        """A file for readers that want one: itself in a folder, else a temporary one.

        Args:
            seen: Called with each block that is unpacked.

        Raises:
            InputUnreadable: See `blocks`.
        """
        where = self._where[name]
        if isinstance(where, Path):
            yield where
            return
        with TemporaryDirectory(prefix="deepcac2-") as folder:
            path = Path(folder) / name.rpartition("/")[2]
            with path.open("wb") as file:
                for block in self.blocks(name):
                    seen(block)
                    file.write(block)
            yield path


_DIGITS = 16
"""Of a size in a manifest, fewer than these."""


@dataclass(frozen=True)
class _Member:
    """A file in a zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def open(self) -> IO[bytes]:
        """The one door for members of zip files; `zipfile` never gives more than `info.file_size` says."""
        return self.archive.open(self.info)
