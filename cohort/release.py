"""A release: the SEG and the report of every scored series in one or several zip files, with their manifest.

Its layout is that of the published NLST release, ``<PatientID>/<SeriesInstanceUID>/cac.seg.dcm`` and
``DeepCAC.report.json``; around them README, data dictionary, results table, and a manifest with checksums.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from .. import __version__
from ..errors import InputError, InputUnreadable
from ..imaging.atomic import atomic_path
from ..pipeline.outputs import REPORT_NAME
from ..pipeline.results import PARQUET, ResultRow, read_parquet
from ..pipeline.run import RUN_FILE

SEG_NAME = "cac.seg.dcm"
FILES = (SEG_NAME, REPORT_NAME)
"""What a series has."""
MANIFEST, README, DICTIONARY = "manifest.csv", "README.md", "data_dictionary.csv"
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

_MEANING = {
    "patient_id": "PatientID of the CT",
    "study_uid": "StudyInstanceUID of the CT",
    "series_uid": "SeriesInstanceUID of the CT",
    "status": "scored, rejected by a quality gate, or failed",
    "code": "why it was not scored: reason code, see docs/gates.md and docs/errors.md",
    "reason": "the same as a sentence",
    "agatston_score": "Agatston score by the rule in the column rule; no unit",
    "risk_group": "0: score 0; 1: above 0 up to 100; 2: above 100 up to 300; 3: above 300",
    "risk_group_name": "very low, low, moderate, high",
    "caution": "what must be known with the result: a gate would have refused it, or a zero of thick slices",
    "volume_mm3": "volume of the counted calcium, mm3",
    "mass_mg": "mass of the counted calcium, mg, where a calibration factor was given",
    "n_lesions": "counted lesions",
    "heart_volume_ml": "volume of the heart mask, mL",
    "rule": "scoring rule, see docs/scoring.md",
    "screening_positive": "whether the exclusion found that there may be calcium; empty: not asked",
    "direct_score": "Agatston score of direct scoring; empty: not asked",
    "direct_group": "its risk group: 0: < 1; 1: < 10; 2: < 100; 3: < 400; 4: 400 and more",
    "study_date": "StudyDate, YYYYMMDD",
    "time_point": "ClinicalTrialTimePointID, such as T0",
    "series_description": "SeriesDescription",
    "manufacturer": "Manufacturer",
    "model_name": "ManufacturerModelName",
    "kernel": "ConvolutionKernel",
    "kvp": "KVP, kV",
    "slice_thickness": "SliceThickness, mm",
    "increment": "distance of neighbouring slices, mm",
    "n_slices": "slices",
    "noise_hu": "standard deviation measured inside the heart, HU",
    "off_domain": "in what the scan is unlike those that the weights were trained on, joined by ;",
    "warnings": "codes of findings that did not reject the series, joined by ;",
    "seconds": "time it took",
    "folder": "folder of the series in this release and in the run's output",
    "deepcac2_version": "version that made it",
    "weights": "sets of weights with the first digits of their sha256, joined by ;",
}


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
            content = json.loads((results / RUN_FILE).read_bytes())
            return cls.of(content["series"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

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
    results: Path, out: Path, *, part_bytes: int | None = None, unfinished: bool = False
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

    Raises:
        InputError: No table, nothing scored in it, a scored series without its files, or a run that is not
            finished.
        DiskFull, OutputUnwritable: It cannot be written.
    """
    table = results / PARQUET
    if not table.is_file():
        raise InputError(f"{results} holds no {PARQUET}; give the output folder of a finished 'deepcac2 run'")
    if out.suffix.lower() != ".zip":
        raise InputError(f"{out} must end in .zip")
    selected = Selected.of_run(results)
    if not unfinished:
        _check_finished(selected, results)
    rows = series = known = 0
    for row in read_parquet(table):
        rows += 1
        known += bool(row.series_uid)
        if row.status == "scored":
            series += 1
            if row.agatston_score is None:
                raise InputError(
                    f"series {row.series_uid} in {results} has no score of the calcium network: a release is "
                    "made of a run with the workflow 'default'"
                )
            for name in FILES:
                if not (results / row.folder / name).is_file():
                    raise InputError(
                        f"{row.folder}/{name} is missing in {results}: give the same 'deepcac2 run' again, "
                        "which makes what is missing"
                    )
    if not series:
        raise InputError(f"nothing is scored in {results}")
    if selected is not None and (known, series) != (selected.selected - selected.missing, selected.scored):
        raise InputError(
            f"{PARQUET} and {RUN_FILE} in {results} are not of one run: give the same 'deepcac2 run' again, "
            "which writes both anew"
        )
    parts: list[Path] = []
    total = 0
    with ExitStack() as stack:
        current: _Part | None = None

        def begin() -> _Part:
            name = out if part_bytes is None else out.with_name(f"{out.stem}-{len(parts) + 1:03d}.zip")
            part = _Part(stack.enter_context(atomic_path(name)))
            parts.append(name)
            return part

        for row in read_parquet(table):
            if row.status != "scored":
                continue
            if current is None:
                current = begin()
                if len(parts) == 1:
                    current.add(README, io.BytesIO(_readme(series, rows, selected).encode()))
                    current.add(SELECTION, io.BytesIO(_selection(selected)))
                    for uid in () if selected is None else selected.missing_series:
                        current.lacks(uid)
                    current.add(DICTIONARY, io.BytesIO(_dictionary().encode()))
                    with table.open("rb") as source:
                        current.add(PARQUET, source)
            for name in FILES:
                try:
                    with (results / row.folder / name).open("rb") as source:
                        current.add(f"{row.folder}/{name}", source)
                except FileNotFoundError as error:
                    raise InputError(f"{row.folder}/{name} disappeared while the release was made") from error
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


def _selection(selected: Selected | None) -> bytes:
    return (json.dumps(None if selected is None else asdict(selected), indent=2) + "\n").encode()


def _readme(series: int, rows: int, selected: Selected | None) -> str:
    said = _UNKNOWN if selected is None else selected.sentence()
    if selected is None or selected.missing:
        said = f"**This release is not of a finished run. {said}**"
    return f"""# Coronary calcium from chest CT: a release

{said}

{series} scored series; the table `{PARQUET}` has all {rows} series of the run, with the reason of those not
scored. Made with deepcac2 {__version__}. Research use only, not a medical device.

| file | what |
| --- | --- |
| `<PatientID>/<SeriesInstanceUID>/{SEG_NAME}` | DICOM SEG: 1 heart, 2 coronary calcium |
| `<PatientID>/<SeriesInstanceUID>/{REPORT_NAME}` | predicted Agatston score, risk group, SeriesInstanceUID |
| `{PARQUET}` | one row for each series |
| `{DICTIONARY}` | what the columns of the table mean |
| `{SELECTION}` | how many series were selected and what became of them; those that are missing |
| `{MANIFEST}` | size and SHA-256 of every file of this zip file; `{MISSING}`: a series that is not in it |

PatientIDs that no folder can be named after are escaped (`%XX`). Check: `deepcac2 release verify FILE.zip`.
"""


def _dictionary() -> str:
    lines = [("column", "type", "meaning")]
    lines += [(f.name, str(f.type).replace(" | None", ""), _MEANING[f.name]) for f in fields(ResultRow)]
    return _csv(lines)


def _csv(lines: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


# Reading

_PLACE = re.compile(r"(?P<patient>[^/\\]+)/(?P<series>[^/\\]+)/(?P<name>[^/\\]+)")


class Release:
    """The files of a release: zip files, or the output folder of a run.

    Attributes:
        series: The files of each series by name, by its place.
        other: Names of the other files.
        manifest: Size in bytes and SHA-256 by name.
        selected: Which series it is of; None: it does not say.
        missing: SeriesInstanceUIDs that the manifest calls missing.
        broken: What cannot be read, in words.

    Args:
        paths: The parts, or one folder.

    Raises:
        InputUnreadable: One is missing, or no zip file.
        InputError: One series stands in two parts.
    """

    def __init__(self, *paths: Path) -> None:
        self._stack = ExitStack()
        self._where: dict[str, zipfile.ZipFile | Path] = {}
        self.manifest: dict[str, tuple[int, str]] = {}
        self.missing: list[str] = []
        self.broken: list[str] = []
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
            match = _PLACE.fullmatch(name)
            if match is None or match["patient"] in (".", "..") or match["series"] in (".", ".."):
                self.other.append(name)
            else:
                self.series.setdefault(f"{match['patient']}/{match['series']}", {})[match["name"]] = name

    def __enter__(self) -> Release:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _add_folder(self, folder: Path) -> None:
        for path in sorted(folder.glob("*/*/*")):
            if path.name in FILES and path.is_file():
                self._put(path.relative_to(folder).as_posix(), path)

    def _add_zip(self, path: Path) -> None:
        try:
            archive = self._stack.enter_context(zipfile.ZipFile(path))
        except FileNotFoundError as error:
            raise InputUnreadable(f"{path} does not exist") from error
        except (OSError, zipfile.BadZipFile) as error:
            raise InputUnreadable(f"{path} is no whole zip file ({error})") from error
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.filename == MANIFEST:
                self._read_manifest(archive)
            else:
                self._put(info.filename, archive)

    def _read_manifest(self, archive: zipfile.ZipFile) -> None:
        with archive.open(MANIFEST) as file:
            for row in csv.DictReader(io.TextIOWrapper(file, "utf-8")):
                try:
                    if row["sha256"] == MISSING:
                        self.missing.append(row["path"])
                        continue
                    self.manifest[row["path"]] = (int(row["bytes"]), row["sha256"])
                except (KeyError, TypeError, ValueError):
                    self.broken.append(f"{MANIFEST}: a line cannot be read: {row}")

    def _read_selection(self) -> Selected | None:
        try:
            content = json.loads(self.read(SELECTION))
        except (InputUnreadable, ValueError):
            content = {}
        found = Selected.of(content)
        if found is None:
            self.broken.append(f"{SELECTION}: {_UNKNOWN}")
        return found

    def _put(self, name: str, where: zipfile.ZipFile | Path) -> None:
        if name in self._where:
            raise InputError(f"{name} is there twice")
        self._where[name] = where

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            InputUnreadable: It cannot be read: cut off, or its checksum is wrong.
        """
        where = self._where[name]
        try:
            return where.read_bytes() if isinstance(where, Path) else where.read(name)
        except (OSError, zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise InputUnreadable(f"{name} cannot be read ({error})") from error


@contextmanager
def seg_file(data: bytes) -> Iterator[Path]:
    """A SEG's content as a temporary file, for readers that want one."""
    with TemporaryDirectory(prefix="deepcac2-") as folder:
        path = Path(folder) / SEG_NAME
        path.write_bytes(data)
        yield path
