"""CTs that come as NIfTI or NRRD files: read strictly, so that nothing about them is ever guessed.

`files.read_image` reads whatever SimpleITK makes of a file; that does for masks, which are then compared with
their CT. A CT that is scored from the file alone has nothing beside it: a flip, another unit or values that
were silently replaced would go into the score. So here a header that leaves anything open is an error, and
values are read as they are stored.

NIfTI-1 is read as nifti1.h (NIfTI Data Format Working Group, 2003) describes it, NRRD as its format
definition (teem.sourceforge.net/nrrd/format.html) does.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputDamaged, InputError, InputUnreadable
from ..system.foreign import open_regular, reason
from .volume import Geometry, Volume

NIFTI, NRRD = "NIfTI", "NRRD"

_ENDINGS = {".nii.gz": NIFTI, ".nii": NIFTI, ".nrrd": NRRD}
"""Of names, lower case."""
_CONVERT = (
    "write one .nii.gz or .nrrd instead, best from the DICOM itself (dcm2niix -z y, or 3D Slicer), and check "
    "left and right"
)

MAX_CELLS = 1 << 30
"""Most voxels of a scan: 1,000 slices of 1024², 2 GB in memory. Chosen."""
MAX_SIDE = 1 << 14
"""Most voxels along an axis. Chosen: no CT has as many."""
MOST_PACKED = 1032
"""Deflate packs at most so many bytes into one (zlib.net/zlib_tech.html): what a header claims beyond that is
not in the file, and no memory is asked for it."""
MAX_NRRD_HEADER = 1 << 16
"""Bytes of an NRRD header that are read; those of programs have some hundred."""
_MAX_OFFSET = 1 << 24
"""Bytes before a NIfTI file's voxels, extensions included. Chosen."""

_NIFTI_BYTES = 348
_NIFTI_MAGIC, _PAIR_MAGIC = b"n+1\0", b"ni1\0"
_NIFTI_2_BYTES = 540
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4"}
"""Numbers of nifti1.h that a CT may be stored as; colours and complex numbers are not among them."""
_NIFTI_UNITS = {0: "", 1: "m", 2: "mm", 3: "µm"}
_PATIENT_SPACES = {1: "scanner", 2: "aligned"}
"""Codes of qform and sform whose space has the patient's own size; the further ones are templates."""

_NRRD_TYPES = {
    name: kind
    for kind, names in {
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i1": "signed char, int8, int8_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i4": "int, signed int, int32, int32_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
_LPS, _RAS = (1.0, 1.0, 1.0), (-1.0, -1.0, 1.0)
_NRRD_SPACES = {
    "left-posterior-superior": _LPS,
    "lps": _LPS,
    "right-anterior-superior": _RAS,
    "ras": _RAS,
}
"""Signs that lead to LPS. The third one of patients, left-anterior-superior, is left-handed, and programs
disagree on which of its axes to turn."""
_NRRD_KINDS = {"domain", "space", "???", "none"}

FORM_TOLERANCE_MM = 0.25
"""How far apart sform and qform may place a corner of the scan. A qform keeps three 32-bit floats of a unit
quaternion; where the fourth is nearly 0, as in a supine scan that is turned a little, it is good for some
0.0003 only, which is 0.17 mm over 500 mm. A flip, a shift or a registration moves corners by far more."""
RIGHT_ANGLE_TOLERANCE = 1e-3
"""Largest cosine between two axes (0.06°): 0.3 mm of shear over 300 mm."""
SPACING_TOLERANCE = 1e-3
"""Largest relative difference between the voxel sizes that one NIfTI header states."""
FIELD_MM = 100.0, 1000.0
"""Field of view of a slice of a body. Where a file does not name its unit (those of nibabel and of ITK's NRRD
do not), one in metres or micrometres lies a thousand times outside, so that only millimetres are left."""

_SAMPLE = 1 << 16
"""Bytes of each of the three parts of a file that `content_id` looks at."""


@dataclass(frozen=True, kw_only=True)
class ScanHeader:
    """What the header of such a file says.

    Attributes:
        format: `NIFTI` or `NRRD`.
        geometry: Where the voxels lie, in the file's own order.
        dtype: Of the stored values, with their byte order.
        slope, intercept: A value is stored × slope + intercept.
        start: Byte of the file at which its packed part begins, else at which its voxels do.
        packed: Whether the voxels are packed (gzip).
        skip: Bytes of what is unpacked that come before the voxels.
        unit_stated: Whether the file says that it is in mm.
    """

    format: str
    geometry: Geometry
    dtype: np.dtype[Any]
    slope: float = 1.0
    intercept: float = 0.0
    start: int = 0
    packed: bool = False
    skip: int = 0
    unit_stated: bool = True


def scan_format(name: str) -> str:
    """`NIFTI` or `NRRD` by the end of a file's name (case does not matter); "" for other names."""
    return next((kind for end, kind in _ENDINGS.items() if name.lower().endswith(end)), "")


def without_ending(name: str) -> str:
    """A file's name without ``.nii.gz``, ``.nii`` or ``.nrrd``."""
    return next((name[: -len(end)] for end in _ENDINGS if name.lower().endswith(end)), name)


def refused_format(name: str, head: bytes) -> str:
    """Why a file of a related format is not read, and what to do; "" for other files.

    Args:
        name: Of the file.
        head: Its first bytes, as ``.hdr`` is the ending of much else.
    """
    suffix = Path(name).suffix.lower()
    if suffix == ".nhdr" and head.startswith(b"NRRD"):
        return f"a detached NRRD header, whose voxels lie in another file: {_CONVERT}"
    if suffix == ".hdr" and head[:4] in (struct.pack("<i", _NIFTI_BYTES), struct.pack(">i", _NIFTI_BYTES)):
        return f"a pair of .hdr and .img, in which left and right may be exchanged: {_CONVERT}"
    return ""


def content_id(path: Path) -> bytes:
    """32 bytes that stand for a file's content, wherever it lies and whatever it is called.

    The SHA-256 of its size and of its begin, middle and end, 64 KB each: large files are told apart without
    being read. The end of a packed file holds a checksum of all of it.

    Raises:
        InputUnreadable: It cannot be read.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        for place in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(place)
            digest.update(file.read(_SAMPLE))
    return digest.digest()


def read_scan_header(path: Path) -> ScanHeader:
    """Read the header of a ``.nii``, ``.nii.gz`` or ``.nrrd`` file; nothing of its voxels.

    Raises:
        InputUnreadable: It cannot be opened.
        InputDamaged: It is none, it is cut short, or it claims more than it can hold.
        InputError: Its header leaves open where its voxels lie or what its values are.
    """
    kind = scan_format(path.name)
    with _opened(path) as file:
        header = _nrrd_header(file) if kind == NRRD else _nifti_header(file, path.name)
        _check_size(header, os.fstat(file.fileno()).st_size)
    if not header.unit_stated:
        grid = header.geometry
        field = max(grid.shape[i] * grid.spacing[i] for i in (1, 2))
        if not FIELD_MM[0] <= field <= FIELD_MM[1]:
            raise InputError(
                f"it does not say in which unit its lengths are, and {field:g} mm is no field of view of a "
                "body; save it in mm"
            )
    return header


def read_scan(path: Path, header: ScanHeader) -> Volume:
    """Read the values of such a file as HU, in the file's own voxel order.

    Args:
        header: Of `read_scan_header`.

    Returns:
        Values rounded to int16.

    Raises:
        InputUnreadable: It cannot be opened.
        InputDamaged: It is cut short, or what is packed in it is damaged.
        InputError: A value is no finite number, or does not fit into int16.
    """
    stored = np.empty(header.geometry.shape, dtype=header.dtype)
    with _opened(path) as file:
        file.seek(header.start)
        if header.packed:
            # its end is read as well: there its checksum stands
            with _mapped(), GzipFile(fileobj=file, mode="rb") as unpacked:
                _skip(unpacked, header.skip)
                _fill(stored, unpacked)
                unpacked.read(1)
        else:
            _fill(stored, file)
    return Volume(hu=_to_hu(stored, header.slope, header.intercept), geometry=header.geometry)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with open_regular(path) as file:
            yield file
    except OSError as error:
        raise InputUnreadable(f"cannot be read: {reason(error)}; check path and permissions") from error


@contextmanager
def _mapped() -> Iterator[None]:
    """Around what unpacks: whatever it raises is that the file is damaged."""
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputDamaged(f"its packed values are damaged ({reason(error)}); copy the file again") from error


def _skip(file: GzipFile, count: int) -> None:
    while count > 0:
        part = len(file.read(min(count, _SAMPLE)))
        if not part:
            raise InputDamaged("it is cut short before its voxels; copy the file again")
        count -= part


def _fill(array: npt.NDArray[Any], file: IO[bytes] | GzipFile) -> None:
    """Read a whole array."""
    left = array.reshape(-1).view(np.uint8).data
    while left:
        part = file.readinto(left[: 1 << 24])  # type: ignore[union-attr]
        if not part:
            raise InputDamaged(
                f"it is cut short: {left.nbytes} bytes of its voxels are missing; copy it again"
            )
        left = left[part:]


def _to_hu(stored: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[np.int16]:
    """Stored values as HU, slice by slice.

    Raises:
        InputError: One is no finite number, or does not fit.
    """
    limits = np.iinfo(np.int16)
    plain = slope == 1 and intercept == 0
    if plain and stored.dtype.newbyteorder("=") == np.int16:
        return stored.astype(np.int16, copy=False)
    hu = np.empty(stored.shape, dtype=np.int16)
    for cells, out in zip(stored, hu, strict=True):
        exact = cells.astype(np.float64)
        if not np.isfinite(exact).all():
            raise InputError("some of its values are no numbers (NaN or infinite)")
        if not plain:
            exact = exact * slope + intercept
        exact = np.rint(exact)
        if exact.min() < limits.min or exact.max() > limits.max:
            raise InputError(
                f"its values go from {exact.min():g} to {exact.max():g}, beyond all that a CT can hold"
            )
        out[:] = exact
    return hu


def _check_size(header: ScanHeader, stored: int) -> None:
    """Refuse what claims more than it holds, before memory for it is asked for.

    Args:
        stored: Bytes of the file.

    Raises:
        InputDamaged: It does.
        InputError: It is larger than any CT.
    """
    shape = header.geometry.shape
    cells = shape[0] * shape[1] * shape[2]
    words = " x ".join(map(str, shape[::-1]))
    if max(shape) > MAX_SIDE or cells > MAX_CELLS:
        raise InputError(f"it has {words} voxels, more than any CT of a chest")
    claimed = header.skip + cells * header.dtype.itemsize
    held = max(0, stored - header.start) * (MOST_PACKED if header.packed else 1)
    if claimed > held:
        raise InputDamaged(
            f"it claims {words} voxels, more than its {stored} bytes can hold; copy the file again"
        )


def _triple(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(v) + 0.0 for v in values)
    return x, y, z


def _grid(
    shape: Sequence[int], columns: npt.NDArray[np.float64], origin: npt.NDArray[np.float64]
) -> Geometry:
    """The grid of an array (z, y, x).

    Args:
        shape: Sizes of the file's axes (x, y, z).
        columns: Their steps, LPS mm, as the columns of a matrix.
        origin: Where the first voxel lies, LPS mm.

    Raises:
        InputError: The axes are no three directions at right angles.
    """
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(columns).all() or not np.isfinite(origin).all() or not (lengths > 0).all():
        raise InputError("its header gives no usable directions, spacings and origin of its axes")
    units = columns / lengths
    cosines = np.abs(units.T @ units - np.eye(3)).max()
    if cosines > RIGHT_ANGLE_TOLERANCE:
        raise InputError(
            f"its axes are not at right angles (off by {np.degrees(np.arcsin(min(1.0, cosines))):.2g}°): a "
            "tilted gantry, or a registered image; resample it first, or give the DICOM"
        )
    x, y, z = (_triple(units[:, i]) for i in range(3))
    return Geometry(
        shape=(int(shape[2]), int(shape[1]), int(shape[0])),
        spacing=(float(lengths[2]), float(lengths[1]), float(lengths[0])),
        origin=_triple(origin),
        axes=(z, y, x),
    )


# NIfTI


def _nifti_header(file: IO[bytes], name: str) -> ScanHeader:
    start = file.read(1 << 15)
    packed = start.startswith(b"\x1f\x8b")
    head = start
    if packed:
        with _mapped():
            head = zlib.decompressobj(wbits=31).decompress(start, _NIFTI_BYTES)
    if packed != name.lower().endswith(".gz"):
        raise InputDamaged("its name ends as that of a file that is packed, or not, and it is the other")
    order = next((o for o in "<>" if head[:4] == struct.pack(f"{o}i", _NIFTI_BYTES)), "")
    if head[:4] in (struct.pack("<i", _NIFTI_2_BYTES), struct.pack(">i", _NIFTI_2_BYTES)):
        raise InputError("it is NIfTI-2, which is not read; save it as NIfTI-1")
    if not order or len(head) < _NIFTI_BYTES or head[344:348] != _NIFTI_MAGIC:
        if order and head[344:348] == _PAIR_MAGIC:
            raise InputError(f"it is the header of a pair of .hdr and .img: {_CONVERT}")
        raise InputDamaged("it is no NIfTI file; give one that is")

    def values(form: str, place: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + form, head, place)

    count, *sizes = values("8h", 40)
    if not 3 <= count <= 7 or any(size != 1 for size in sizes[3:count]):
        words = " x ".join(map(str, sizes[: max(0, min(count, 7))]))
        raise InputError(f"it is not one scan of three dimensions ({words}); save the one to be scored alone")
    if min(sizes[:3]) < 1:
        raise InputDamaged(f"its header states sizes of {sizes[:3]}")
    (code,) = values("h", 70)
    if code not in _NIFTI_TYPES:
        raise InputError(
            f"its values are of NIfTI type {code}: colours, complex or very long numbers, and no CT"
        )
    (offset,) = values("f", 108)
    if not _NIFTI_BYTES <= offset <= _MAX_OFFSET or offset != int(offset):
        raise InputDamaged(f"its header puts the voxels at byte {offset:g}")
    unit = _NIFTI_UNITS.get(values("B", 123)[0] & 7, "?")
    if unit not in ("mm", ""):
        raise InputError(f"its lengths are in {unit}, not in mm; save it in mm")
    slope, intercept = values("2f", 112)
    if not np.isfinite([slope, intercept]).all():
        raise InputError("its scl_slope or scl_inter is no number: what its values mean is not known")
    if slope == 0:  # nifti1.h: then there is no scaling
        if intercept != 0:
            raise InputError(
                f"its scl_slope is 0, which means that nothing is added, and its scl_inter is {intercept:g}: "
                "programs disagree on such values; save it again from the DICOM"
            )
        slope = 1.0
    shape = sizes[:3]
    geometry = _nifti_grid(values, shape)
    return ScanHeader(
        format=NIFTI,
        geometry=geometry,
        dtype=np.dtype(order + _NIFTI_TYPES[code]),
        slope=slope,
        intercept=intercept,
        start=0 if packed else int(offset),
        packed=packed,
        skip=int(offset) if packed else 0,
        unit_stated=bool(unit),
    )


def _nifti_grid(values: Callable[[str, int], tuple[Any, ...]], shape: Sequence[int]) -> Geometry:
    """The grid that qform and sform agree on; where one has no code, that of the other."""
    qform_code, sform_code = values("2h", 252)
    used = [code for code in (qform_code, sform_code) if code]
    if not used:
        raise InputError(
            "neither its qform nor its sform has a code: where left and right are is not known; save it with "
            "one, best from the DICOM itself"
        )
    if other := [code for code in used if code not in _PATIENT_SPACES]:
        raise InputError(f"it lies in the space of a template (form code {other[0]}), not of the patient")
    forms = []
    sides = np.array(values("8f", 76))  # qfac and the voxel sizes
    if qform_code:
        forms.append(_quaternion_affine(sides, np.array(values("6f", 256))))
    if sform_code:
        forms.append(np.array(values("12f", 280)).reshape(3, 4))
    if not all(np.isfinite(form).all() for form in forms) or not np.isfinite(sides[1:4]).all():
        raise InputError("its qform or sform holds what is no number")
    if len(forms) == 2:
        corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]) * (np.array(shape) - 1)
        first, second = (corners @ form[:, :3].T + form[:, 3] for form in forms)
        apart = float(np.linalg.norm(first - second, axis=1).max())
        if apart > FORM_TOLERANCE_MM:
            raise InputError(
                f"its qform and sform place the scan up to {apart:.3g} mm apart: which is right is not "
                "known; save it with one of them, best from the DICOM itself"
            )
    form = forms[-1]
    lengths = np.linalg.norm(form[:, :3], axis=0)
    if (np.abs(lengths - sides[1:4]) > SPACING_TOLERANCE * lengths).any():
        stated = " x ".join(f"{v:.4g}" for v in sides[1:4])
        meant = " x ".join(f"{v:.4g}" for v in lengths)
        raise InputError(
            f"its voxels are {stated} mm by pixdim and {meant} mm by its sform: which is right is not known"
        )
    lps = np.diag([-1.0, -1.0, 1.0]) @ form
    return _grid(shape, lps[:, :3], lps[:, 3])


def _quaternion_affine(sides: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The matrix (3, 4) from voxel (i, j, k, 1) to RAS mm of a qform, method 2 of nifti1.h.

    Args:
        sides: qfac, then the voxel sizes.
        q: quatern_b, c, d and qoffset_x, y, z.

    Raises:
        InputError: It is no unit quaternion.
    """
    square = float(q[:3] @ q[:3])
    if not square <= 1 + 1e-5:
        raise InputError("its qform is no rotation; save the file again with another program")
    half_turn = 1.0 - square < 1e-7  # as in the reference implementation of nifti1.h
    a = 0.0 if half_turn else np.sqrt(1.0 - square)
    b, c, d = q[:3] / np.sqrt(square) if half_turn else q[:3]
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    scale = sides[1:4] * [1.0, 1.0, -1.0 if sides[0] < 0 else 1.0]
    return np.column_stack([rotation * scale, q[3:]])


# NRRD


def _nrrd_header(file: IO[bytes]) -> ScanHeader:
    head = file.read(MAX_NRRD_HEADER)
    if not head.startswith(b"NRRD000"):
        raise InputDamaged("it is no NRRD file; give one that is")
    ends = [head.find(mark) + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if mark in head]
    fields = _nrrd_fields(head[: min(ends)] if ends else head)
    if "data file" in fields:
        raise InputError(f"its voxels lie in another file: {_CONVERT}")
    if not ends:
        raise InputDamaged("its header has no end; copy the file again")

    def need(name: str) -> str:
        if name not in fields:
            raise InputError(f"its header does not state its {name!r}; save it with a program that does")
        return fields[name]

    if need("dimension") != "3":
        raise InputError(
            f"it has {fields['dimension']} dimensions and is not one scan of three; save the one to be "
            "scored alone"
        )
    if any(kind.lower() not in _NRRD_KINDS for kind in fields.get("kinds", "").split()):
        raise InputError(f"its axes are {fields['kinds']}: these are no voxels of one scan")
    if need("type").lower() not in _NRRD_TYPES:
        raise InputError(f"its values are of the type {fields['type']!r}, and no CT")
    dtype = np.dtype(_NRRD_TYPES[fields["type"].lower()])
    if dtype.itemsize > 1:
        order = {"little": "<", "big": ">"}.get(need("endian").lower(), "")
        if not order:
            raise InputDamaged(f"its header states an endian {fields['endian']!r}")
        dtype = np.dtype(order + dtype.str[1:])
    encoding = need("encoding").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise InputError(f"its values are encoded as {encoding}; save it with the encoding gzip")
    if any(fields.get(name, "0") != "0" for name in ("line skip", "byte skip")):
        raise InputError("its header asks to skip a part of the file; save it again with another program")
    return ScanHeader(
        format=NRRD,
        geometry=_nrrd_grid(fields, need),
        dtype=dtype,
        start=min(ends),
        packed=encoding != "raw",
        unit_stated="space units" in fields,
    )


def _nrrd_fields(head: bytes) -> dict[str, str]:
    """The fields of a header by name, lower case; keys and values (``:=``) and comments are no fields.

    Raises:
        InputDamaged: A line is no field, or one stands there twice.
    """
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").splitlines()[1:]:
        if not line.strip() or line.startswith("#") or ":=" in line:
            continue
        name, colon, value = line.partition(": ")
        name = " ".join(name.lower().split()).removesuffix(":")
        name = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(name, name)
        if (not colon and not line.rstrip().endswith(":")) or name in fields:
            raise InputDamaged(f"its header cannot be understood at {line[:40]!r}")
        fields[name] = value.strip()
    return fields


def _nrrd_grid(fields: dict[str, str], need: Callable[[str], str]) -> Geometry:
    space = need("space").lower()
    if space not in _NRRD_SPACES:
        raise InputError(
            f"its space is {space!r}: where left and right are is not known for sure; save it in "
            "left-posterior-superior"
        )
    units = fields.get("space units", "").replace('"', " ").split()
    units += fields.get("units", "").replace('"', " ").split()
    if any(unit not in ("mm", "millimeter", "millimeters") for unit in units):
        raise InputError(f"its lengths are in {' '.join(units)}, not in mm; save it in mm")
    try:
        shape = [int(size) for size in need("sizes").split()]
        steps = [_vector(step) for step in re.findall(r"\(([^()]*)\)", need("space directions"))]
        origin = _vector(need("space origin"))
    except ValueError as error:
        raise InputError(
            "its header gives no usable sizes, space directions and space origin; save it again"
        ) from error
    if len(shape) != 3 or len(steps) != 3 or min(shape) < 1:
        raise InputError("its header gives no three sizes and space directions; save it again")
    signs = np.array(_NRRD_SPACES[space])
    return _grid(shape, (np.array(steps) * signs).T, np.array(origin) * signs)


def _vector(text: str) -> list[float]:
    """Three numbers such as ``(1,0,0)``.

    Raises:
        ValueError: It is nothing of the kind.
    """
    x, y, z = text.strip().strip("()").split(",")
    return [float(x), float(y), float(z)]
