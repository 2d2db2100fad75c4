"""Hearts that exist already: DICOM SEGs, NIfTI and NRRD masks of other programs, found for a series and read.

A mask of another scan that fits by chance would give a wrong score that looks right. So a file counts for a
series only where it names it: a SEG by the series that it refers to, an image file by its path. It must lie
on the CT's own voxels; nothing is resampled, cut or filled.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dicom import Series, printable, readable
from ...dicom.gates import Gate, register_gate
from ...errors import InputError, InputUnreadable, MaskMismatch, SeriesRejected
from ...imaging import Geometry
from ...imaging.nrrd import on_grid
from ...imaging.scan_files import read_scan, read_scan_header, scan_format, without_ending
from ...pipeline.image_series import ImageSeries
from ...system.hashing import sha256_of
from ...system.names import safe_name
from ...system.nearest import listed

log = logging.getLogger(__name__)

BoolArray = npt.NDArray[np.bool_]

NOT_GIVEN = register_gate(
    Gate(code="heart-not-given", sentence="Among the hearts that were given there is none of this series.")
)
SEVERAL = register_gate(
    Gate(code="several-hearts-given", sentence="Several files give the heart of this series.")
)
NO_SEGMENT = register_gate(
    Gate(
        code="given-heart-unknown",
        sentence="Nothing in the file that was given for this series is known as its whole heart.",
    )
)
OFF_GRID = register_gate(
    Gate(
        code="given-heart-off-grid",
        sentence="The heart that was given does not lie on the slices of this series, or leaves some out.",
    )
)

ALL_CHAMBERS = "chambers"
"""Stands for all of `dicom.seg.codes.CHAMBERS`."""
_HEART = "heart"
_SHOWN = 8
"""Segments or files that a message names at most; chosen."""


@dataclass(frozen=True, kw_only=True)
class GivenHeart:
    """A heart that was given.

    Attributes:
        mask: bool (z, y, x) on the CT's grid.
        source: See `pipeline.facts.HEART_SOURCE`.
    """

    mask: BoolArray
    source: dict[str, Any]


@dataclass(frozen=True)
class GivenHearts:
    """Where hearts were given.

    Attributes:
        root: A folder, or one file.
        segments: What of a file is the heart: codes or labels of segments, file names without ending, values
            of a label map, or `ALL_CHAMBERS`; empty: what is known as the whole heart.
    """

    root: Path
    segments: tuple[str, ...] = ()

    @property
    def wanted(self) -> tuple[str, ...]:
        """`segments`, each on its own."""
        from ...dicom.seg.codes import CHAMBERS

        several = [tuple(CHAMBERS) if name == ALL_CHAMBERS else (name,) for name in self.segments]
        return tuple(dict.fromkeys(name for names in several for name in names))

    @cached_property
    def files(self) -> Mapping[str, Sequence[Path]]:
        """The files by what they belong to: a SEG by the SeriesInstanceUID that it refers to, an image file
        (and a SEG that does not say) by all that its path below `root` names.

        Raises:
            InputError: `root` is not there.
        """
        if not self.root.exists():
            raise InputError(
                f"{self.root} does not exist; give a folder with hearts, a DICOM SEG or an image file"
            )
        found: dict[str, list[Path]] = defaultdict(list)
        possible = []
        for path in _files(self.root):
            if scan_format(path.name):
                for name in _names(path, self.root):
                    found[name].append(path)
            elif path.suffix.lower() in ("", ".dcm"):
                possible.append(path)
        with ThreadPoolExecutor() as pool:
            for path, uid in zip(possible, pool.map(_series_of, possible), strict=True):
                for name in () if uid is None else (uid,) if uid else _names(path, self.root):
                    found[name].append(path)
        if not found:
            raise InputError(
                f"{self.root} holds neither DICOM SEGs nor NIfTI or NRRD files; give the hearts' folder"
            )
        return found

    def of(self, series: Series, geometry: Geometry) -> GivenHeart:
        """The heart of a series.

        Args:
            series: With its slices in the order of the CT's array.
            geometry: The CT's grid.

        Raises:
            SeriesRejected: ``heart-not-given``, ``several-hearts-given``, ``given-heart-unknown`` or
                ``given-heart-off-grid``.
            InputUnreadable: The file is damaged.
            InputError: There are no files at all.
        """
        names = [series.series_uid, safe_name(series.series_uid)]
        if isinstance(series, ImageSeries):
            names.append(without_ending(series.series_description))
        found = dict.fromkeys(path for name in names for path in self.files.get(name, ()))
        segs = [path for path in found if not scan_format(path.name)]
        try:
            if segs:
                return self._of_segs(segs, series, geometry)
            images = [path for path in found if scan_format(path.name)]
            given = self._of_images(images, names, geometry)
        except MaskMismatch as error:
            raise SeriesRejected(f"{error}; nothing is resampled", code=OFF_GRID.code) from error
        if given is None:
            raise SeriesRejected(
                f"no DICOM SEG in {self.root.name} refers to this series, and no NIfTI or NRRD file there is "
                "named after it; leave --heart-from out for it, or add its heart",
                code=NOT_GIVEN.code,
            )
        return given

    def _of_segs(self, paths: Sequence[Path], series: Series, geometry: Geometry) -> GivenHeart:
        """The heart of the one SEG that has it."""
        from ...dicom.seg.reader import image_of, open_segmentation

        said: list[str] = []
        having: list[tuple[Path, dict[int, str]]] = []
        for path in paths:
            with open_segmentation(path, what=_name(path)) as seg:
                numbers, fault = self._numbers(seg.segments)
            said.append(f"{_name(path)} {fault}")
            if not fault:
                having.append((path, numbers))
        if not having:
            raise SeriesRejected(
                f"{'; '.join(said[:2])}: name what is the heart with --heart-segments", code=NO_SEGMENT.code
            )
        if len(having) > 1:
            raise SeriesRejected(_several([path for path, _ in having]), code=SEVERAL.code)
        ((path, numbers),) = having
        with open_segmentation(path, what=_name(path)) as seg:
            mask = seg.on_slices(geometry, numbers, [image_of(ref) for ref in series.slices])
            items = [item for item in seg.segments if int(item.SegmentNumber) in numbers]
            source = {
                "format": "DICOM SEG",
                "sop_instance_uid": str(seg.dataset.get("SOPInstanceUID", "")),
                "series_uid": str(seg.dataset.get("SeriesInstanceUID", "")),
                "algorithm": ", ".join(dict.fromkeys(filter(None, map(_algorithm, items)))),
                "algorithm_type": _algorithm_type(items),
            }
        return self._checked(mask, [path], {**source, "segments": list(numbers.values())})

    def _numbers(self, items: Sequence[Any]) -> tuple[dict[int, str], str]:
        """SegmentNumber and label of the segments that are the heart; what speaks against them, or ""."""
        from ...dicom.seg.codes import CHAMBERS, is_named, kind_of

        labels = {int(item.SegmentNumber): printable(str(item.get("SegmentLabel", "?"))) for item in items}
        if not self.wanted:
            chosen = [int(item.SegmentNumber) for item in items if kind_of(item) == _HEART]
            parts = [name for name in CHAMBERS if any(is_named(item, name) for item in items)]
            fault = (
                ""
                if chosen
                else f"has no whole heart among {listed(list(labels.values()), _SHOWN) or 'nothing'}"
            )
            if fault and len(parts) == len(CHAMBERS):
                fault += f" (all parts of one are there: --heart-segments {ALL_CHAMBERS})"
            return {n: labels[n] for n in chosen}, fault
        found = {name: [int(i.SegmentNumber) for i in items if is_named(i, name)] for name in self.wanted}
        missing = [name for name, numbers in found.items() if not numbers]
        fault = f"has no segment {listed(missing, _SHOWN)}" if missing else ""
        return {n: labels[n] for numbers in found.values() for n in numbers}, fault

    def _of_images(
        self, paths: Sequence[Path], names: Collection[str], geometry: Geometry
    ) -> GivenHeart | None:
        """The heart of image files that are named after the series; None where there are none."""
        if not paths:
            return None
        stems = {path: without_ending(path.name) for path in paths}
        own = [p for p in paths if stems[p] in names or _below(p, self.root) in names]
        values = {int(name) for name in self.wanted if name.isdigit()}
        files = [name for name in self.wanted if not name.isdigit()]
        if files and not values:
            by_name = {name: [p for p in paths if stems[p].casefold() == name.casefold()] for name in files}
            missing = [name for name, those in by_name.items() if not those]
            if missing:
                raise SeriesRejected(
                    f"of the files {listed(sorted(map(_name, paths)), _SHOWN)} none is "
                    f"{listed(missing, _SHOWN)}: say which are the heart with --heart-segments",
                    code=NO_SEGMENT.code,
                )
            chosen = [one for those in by_name.values() for one in those]
            if len(chosen) > len(files):
                raise SeriesRejected(_several(chosen), code=SEVERAL.code)
        elif files:
            raise SeriesRejected(
                "--heart-segments names values of a label map and files: give either", code=NO_SEGMENT.code
            )
        else:
            chosen = (
                own or [p for p in paths if stems[p].casefold() == _HEART] or (list(paths) if values else [])
            )
            if not chosen:
                found = listed(sorted(map(_name, paths)), _SHOWN)
                raise SeriesRejected(
                    f"none of the files {found} is called heart: say which are it with --heart-segments",
                    code=NO_SEGMENT.code,
                )
            if len(chosen) > 1:
                raise SeriesRejected(_several(chosen), code=SEVERAL.code)
        mask = np.zeros(geometry.shape, dtype=np.bool_)
        for path in chosen:
            mask |= _image_mask(path, geometry, values)
        source = {
            "format": scan_format(chosen[0].name),
            "algorithm": "",
            "algorithm_type": "",
            "segments": [f"value {v}" for v in sorted(values)] or [printable(stems[p]) for p in chosen],
        }
        return self._checked(mask, chosen, source)

    def _checked(self, mask: BoolArray, paths: Sequence[Path], source: Mapping[str, Any]) -> GivenHeart:
        """Of a heart on the CT's grid, see that it leaves no slice out."""
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        if slices.size and (gaps := int(slices[-1] - slices[0] + 1 - slices.size)):
            raise MaskMismatch(
                f"{_name(paths[0])} has no heart in {gaps} of the slices between its first and last: "
                "it was made on other slices"
            )
        files = {"file": listed([_name(p) for p in paths], _SHOWN), "sha256": [sha256_of(p) for p in paths]}
        return GivenHeart(mask=mask, source={**files, **source})


def in_words(source: dict[str, Any]) -> str:
    """Where a heart was taken from, in one line: what the file is, who made it, and what of it is "
    "the heart."""
    by = source["algorithm"] or ("by hand" if source["algorithm_type"] == "MANUAL" else "maker not stated")
    return f"{source['format']}, {by}: {' + '.join(source['segments'])}"


def _files(root: Path) -> Iterator[Path]:
    """All files of a folder, links not followed, in a fixed order; or the one file."""
    if root.is_file():
        yield root
        return
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _names(path: Path, root: Path) -> set[str]:
    """What a file's path says that it belongs to: its folders that are UIDs, its name, and all of it."""
    below = Path(path.name) if path == root else path.relative_to(root)
    stem = without_ending(path.name) if scan_format(path.name) else path.stem
    uids = {part for part in (*below.parts[:-1], stem) if part.replace(".", "").isdecimal() and "." in part}
    return {*uids, below.with_name(stem).as_posix(), below.parent.as_posix()}


def _below(path: Path, root: Path) -> str:
    return (
        (Path(path.name) if path == root else path.relative_to(root))
        .with_name(without_ending(path.name))
        .as_posix()
    )


def _series_of(path: Path) -> str | None:
    """The series that a SEG refers to, "" where it does not say; None for what is no SEG that can be read."""
    from ...dicom.seg.reader import referenced_series  # it loads pydicom's tables of codes

    try:
        return referenced_series(path)
    except InputUnreadable as error:
        log.info("no heart in %s: %s", path.name, error)
        return None


def _name(path: Path) -> str:
    return printable(readable(path.name))


def _several(paths: Sequence[Path]) -> str:
    found = listed([_name(p) for p in paths], _SHOWN)
    return f"{len(paths)} files give its heart ({found}): which one is right is not known; leave one of them"


def _algorithm(item: Any) -> str:
    """Name and version of what made a segment, "" where it does not say."""
    sequence = item.get("SegmentationAlgorithmIdentificationSequence") or [{}]
    name = str(sequence[0].get("AlgorithmName", "") or item.get("SegmentAlgorithmName", "") or "")
    return printable(" ".join(filter(None, (name, str(sequence[0].get("AlgorithmVersion", "") or "")))))[:120]


def _algorithm_type(items: Sequence[Any]) -> str:
    """How segments were made, as DICOM says it; of several ways, some were by hand."""
    kinds = {str(item.get("SegmentAlgorithmType", "")) for item in items}
    known = kinds & {"AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"}
    return next(iter(known)) if len(known) == len(kinds) == 1 else "SEMIAUTOMATIC" if len(known) > 1 else ""


def _image_mask(path: Path, geometry: Geometry, values: Collection[int]) -> BoolArray:
    """A mask of an image file, bool (z, y, x) on the CT's grid.

    Args:
        values: Of the label map; empty: it is a mask, of one value.
    """
    header = read_scan_header(path)
    on_grid(np.broadcast_to(np.False_, header.geometry.shape), header.geometry, geometry, what=_name(path))
    if header.dtype.kind not in "iu" or (header.slope, header.intercept) != (1.0, 0.0):
        raise SeriesRejected(
            f"the voxels of {_name(path)} are no whole numbers: save the mask as integers",
            code=NO_SEGMENT.code,
        )
    array = read_scan(path, header).hu
    present = [int(v) for v in np.unique(array) if v != 0]
    if missing := sorted(set(values) - set(present)):
        raise SeriesRejected(
            f"{_name(path)} has no value {listed(list(map(str, missing)), _SHOWN)}, only "
            f"{listed(list(map(str, present)), _SHOWN) or '0'}",
            code=NO_SEGMENT.code,
        )
    if not values and len(present) > 1:
        raise SeriesRejected(
            f"{_name(path)} has the values {listed(list(map(str, present)), _SHOWN)}: say which are the "
            "heart with --heart-segments",
            code=NO_SEGMENT.code,
        )
    mask = np.isin(array, list(values)) if values else array != 0
    return on_grid(mask, header.geometry, geometry, what=_name(path))
