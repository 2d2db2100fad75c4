"""A release: the SEG and the report of every scored series in one or several zip files, with their manifest.

Its layout is that of the published NLST release, ``<PatientID>/<SeriesInstanceUID>/cac.seg.dcm`` and
``DeepCAC.report.json``; around them README, data dictionary, results table, and a manifest with checksums.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from .. import __version__
from ..errors import InputError, InputUnreadable
from ..imaging.atomic import atomic_path
from ..pipeline.outputs import REPORT_NAME
from ..pipeline.results import PARQUET, ResultRow, read_parquet

SEG_NAME = "cac.seg.dcm"
FILES = (SEG_NAME, REPORT_NAME)
"""What a series has."""
MANIFEST, README, DICTIONARY = "manifest.csv", "README.md", "data_dictionary.csv"
MANIFEST_COLUMNS = ("path", "bytes", "sha256")

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
class Built:
    """What `build_release` wrote.

    Attributes:
        parts: The zip files, in order.
        series: Scored series in it; the table has the others too.
        rows: Rows of the table.
        bytes: Of the files before compression.
    """

    parts: tuple[Path, ...]
    series: int
    rows: int
    bytes: int


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


def build_release(results: Path, out: Path, *, part_bytes: int | None = None) -> Built:
    """Write the release of a run.

    Files are streamed, one series after the other in the order of the table; each zip file appears under its
    name only when it is whole. The same input gives the same bytes (with the same zlib).

    Args:
        results: Output folder of `deepcac2 run`.
        out: Zip file; with `part_bytes` the parts are ``NAME-001.zip``, ``NAME-002.zip`` and so on.
        part_bytes: Begin another part when this many bytes (before compression) are in one.

    Raises:
        InputError: No table, nothing scored in it, or a scored series without its files.
        DiskFull, OutputUnwritable: It cannot be written.
    """
    table = results / PARQUET
    if not table.is_file():
        raise InputError(f"{results} holds no {PARQUET}; give the output folder of a finished 'deepcac2 run'")
    if out.suffix.lower() != ".zip":
        raise InputError(f"{out} must end in .zip")
    rows = series = 0
    for row in read_parquet(table):
        rows += 1
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
                    current.add(README, io.BytesIO(_readme(series, rows).encode()))
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
    return Built(parts=tuple(parts), series=series, rows=rows, bytes=total)


def _readme(series: int, rows: int) -> str:
    return f"""# Coronary calcium from chest CT: a release

{series} scored series; the table `{PARQUET}` has all {rows} series of the run, with the reason of those not
scored. Made with deepcac2 {__version__}. Research use only, not a medical device.

| file | what |
| --- | --- |
| `<PatientID>/<SeriesInstanceUID>/{SEG_NAME}` | DICOM SEG: 1 heart, 2 coronary calcium |
| `<PatientID>/<SeriesInstanceUID>/{REPORT_NAME}` | predicted Agatston score, risk group, SeriesInstanceUID |
| `{PARQUET}` | one row for each series |
| `{DICTIONARY}` | what the columns of the table mean |
| `{MANIFEST}` | size and SHA-256 of every file of this zip file |

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
        self.broken: list[str] = []
        for path in paths:
            if path.is_dir():
                self._add_folder(path)
            else:
                self._add_zip(path)
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
                    self.manifest[row["path"]] = (int(row["bytes"]), row["sha256"])
                except (KeyError, TypeError, ValueError):
                    self.broken.append(f"{MANIFEST}: a line cannot be read: {row}")

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
