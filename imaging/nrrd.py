"""Masks and label maps as NRRD files of others: taken only where their header says all that is needed.

SimpleITK reads a header that says nothing of space or directions as if it said 1 mm, at right angles, from
the origin. Where a mask lies in a patient must not be made up, so the header is looked at first
(http://teem.sourceforge.net/nrrd/format.html).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InputError, MaskMismatch
from ..system.foreign import foreign, open_regular
from .files import read_image
from .orientation import to_canonical
from .scan_files import MAX_CELLS, MAX_NRRD_HEADER, MOST_PACKED, RIGHT_ANGLE_TOLERANCE
from .volume import Geometry

BoolArray = npt.NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)

_SPACES = frozenset(
    ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
)
"""Patient spaces that SimpleITK turns into LPS; of others it would take the numbers as they are."""
_INTEGERS = frozenset(
    f"{sign}{kind}"
    for kind in ("char", "short", "int", "int8", "int16", "int32", "int8_t", "int16_t", "int32_t")
    for sign in ("", "signed ", "unsigned ", "u")
) | {"uchar", "ushort", "uint", "short int", "signed short int", "unsigned short int"}
_PACKED = {"raw": 1, "gzip": MOST_PACKED, "gz": MOST_PACKED}
"""Encodings, and the most bytes that they make of one."""
GRID_TOLERANCE_MM = 0.1
"""How far corners of CT and mask may lie apart: a NIfTI file on the way rounds to 32 bits."""


def read_nrrd_mask(path: Path, *, what: str = "") -> tuple[BoolArray, Geometry]:
    """A binary mask, and where its voxels lie.

    Args:
        path, what: As of `read_nrrd_labels`.

    Returns:
        bool (z, y, x), in the file's own voxel order: where it is not 0; and its geometry.

    Raises:
        InputUnreadable: As `read_nrrd_labels`, or its voxels have several values.
    """
    array, geometry = read_nrrd_labels(path, what=what)
    with foreign(what or str(path)):
        if len(values := np.unique(array[array != 0])) > 1:
            raise ValueError(f"it holds the values {', '.join(map(str, values[:5]))}, a mask has one")
    return array != 0, geometry


def read_nrrd_labels(path: Path, *, what: str = "") -> tuple[npt.NDArray[np.integer[Any]], Geometry]:
    """A label map, and where its voxels lie.

    Args:
        path: The file, ``.nrrd``, with its voxels in it.
        what: What it is called in messages; "": its path.

    Returns:
        Whole numbers (z, y, x), in the file's own voxel order; and its geometry.

    Raises:
        InputUnreadable: It is no NRRD, its header leaves open where its voxels lie, they lie in another file
            or are cut off.
    """
    what = what or str(path)
    fields = _header(path, what)
    with foreign(what, fault="has a doubtful header", advice="write it again with space and directions"):
        _check(fields, path.stat().st_size)
    with foreign(what):
        try:
            return read_image(path)
        except InputError as error:  # whose message names a path, which may be a temporary one
            raise ValueError("its voxels are cut off or damaged") from error


def on_grid(mask: npt.NDArray[T], geometry: Geometry, grid: Geometry, *, what: str) -> npt.NDArray[T]:
    """A mask on another grid of the same voxels, whose axes may run another way; nothing is resampled.

    Args:
        mask: (z, y, x) on `geometry`, of any type: a label map will do.
        grid: Of the CT.
        what: The mask, for the message.

    Raises:
        MaskMismatch: The voxels are others.
    """
    ours, theirs = to_canonical(np.broadcast_to(np.False_, grid.shape), grid), to_canonical(mask, geometry)
    if theirs.geometry.shape != ours.geometry.shape:
        raise MaskMismatch(
            f"{what} has {_sizes(geometry)} voxels and its CT {_sizes(grid)}: give the CT that it was made on"
        )
    if not theirs.geometry.same_grid(ours.geometry, GRID_TOLERANCE_MM):
        raise MaskMismatch(
            f"{what} does not lie where its CT lies, though it has as many voxels: give the CT that it was "
            "made on"
        )
    return np.ascontiguousarray(ours.undo(theirs.array))


def _sizes(geometry: Geometry) -> str:
    return " x ".join(map(str, geometry.shape))


def _header(path: Path, what: str) -> dict[str, str]:
    """The fields of a header by name, all in lower case."""
    with foreign(what, fault="is no NRRD file that can be read"):
        with open_regular(path) as file:
            start = file.read(MAX_NRRD_HEADER)
        text, end, _ = start.replace(b"\r\n", b"\n").partition(b"\n\n")
        if not re.match(rb"NRRD000[1-5]\n", text) or not end:
            raise ValueError("it does not begin with the header of one")
        fields: dict[str, str] = {}
        for line in text.decode("ascii").splitlines()[1:]:
            name, colon, value = line.partition(":")
            if line.startswith("#") or value.startswith("="):  # comments, and keys of whoever wrote it
                continue
            if not colon or name.lower() in fields:
                raise ValueError(f"its header has the line {line[:60]!r}")
            fields[name.lower()] = value.strip().lower()
        return fields


def _check(fields: dict[str, str], size: int) -> None:
    """See that a header leaves nothing open.

    Args:
        size: Of the file, bytes.

    Raises:
        ValueError: It does.
    """
    if {"data file", "datafile"} & set(fields):
        raise ValueError("its voxels lie in another file")
    for name in ("type", "dimension", "sizes", "space", "space directions", "space origin", "encoding"):
        if name not in fields:
            raise ValueError(f"it does not say {name!r}")
    if fields["dimension"] != "3":
        raise ValueError(f"it has {fields['dimension'][:10]} dimensions")
    if fields["type"] not in _INTEGERS:
        raise ValueError(f"its voxels are {fields['type'][:20]!r}, no whole numbers")
    if fields["space"] not in _SPACES:
        raise ValueError(f"its space {fields['space'][:40]!r} is none of the patient's")
    if fields["encoding"] not in _PACKED:
        raise ValueError(f"its encoding {fields['encoding'][:20]!r} is not raw or gzip")
    sizes = [int(n) for n in fields["sizes"].split()]
    if len(sizes) != 3 or min(sizes) < 1 or math.prod(sizes) > MAX_CELLS:
        raise ValueError(f"its sizes are {fields['sizes'][:40]!r}")
    if math.prod(sizes) > size * _PACKED[fields["encoding"]]:
        raise ValueError("it is too short for its sizes")
    axes = _vectors(fields["space directions"], 3)
    _vectors(fields["space origin"], 1)
    lengths = np.linalg.norm(axes, axis=1)
    if (
        not lengths.all()
        or np.abs(np.triu((axes @ axes.T) / np.outer(lengths, lengths), 1)).max() > RIGHT_ANGLE_TOLERANCE
    ):
        raise ValueError(f"its directions {fields['space directions'][:80]!r} are not at right angles")


def _vectors(text: str, count: int) -> npt.NDArray[np.float64]:
    """So many vectors such as ``(1,0,0) (0,1,0)``: float64 (vector, 3)."""
    between = re.compile(r"\(([^()]*)\)")
    vectors = np.array([[float(n) for n in vector.split(",")] for vector in between.findall(text)])
    if vectors.shape != (count, 3) or between.sub("", text).strip() or not np.isfinite(vectors).all():
        raise ValueError(f"{text[:80]!r} is not {count} of three numbers")
    return vectors
