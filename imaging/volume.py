"""`Volume`: a CT as HU array plus the geometry that ties its voxels to the patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Where the voxels of a (z, y, x) array lie in the patient.

    Coordinates are millimetres in the DICOM patient system (LPS: +x to the patient's left, +y to the
    back, +z to the head), DICOM PS3.3 C.7.6.2.1.1.

    Attributes:
        shape: Array shape (z, y, x): slices, rows, columns.
        spacing: Distance of neighbouring voxel centres along (z, y, x), mm, all > 0. The z entry is the
            *increment* between slice positions, never SliceThickness.
        origin: LPS position (x, y, z) of the centre of voxel [0, 0, 0], mm.
        axes: Unit vectors, LPS (x, y, z) each, along which the array's z, y and x index grow; the rows
            of a 3 × 3 tuple in the order (z, y, x). Right- and left-handed systems both occur in CT.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]] = (
        (0.0, 0.0, 1.0),
        (0.0, 1.0, 0.0),
        (1.0, 0.0, 0.0),
    )

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel, mm³."""
        z, y, x = self.spacing
        return z * y * x

    @property
    def pixel_area(self) -> float:
        """Area of a pixel within a slice, mm²."""
        return self.spacing[1] * self.spacing[2]

    def affine_lps(self) -> npt.NDArray[np.float64]:
        """4 × 4 matrix from homogeneous array index (z, y, x, 1) to LPS mm (x, y, z, 1)."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.asarray(self.axes).T * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return matrix

    def affine_ras_xyz(self) -> npt.NDArray[np.float64]:
        """4 × 4 NIfTI affine: from array index (x, y, z, 1) to RAS mm (x, y, z, 1)."""
        matrix = self.affine_lps()[:, [2, 1, 0, 3]]
        matrix[:2] *= -1
        return matrix

    def to_lps(self, index: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """LPS mm (..., 3) of array indices (..., 3) in (z, y, x) order; fractions are allowed."""
        m = self.affine_lps()
        return np.asarray(index, dtype=np.float64) @ m[:3, :3].T + m[:3, 3]

    def to_index(self, lps: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Fractional array indices (..., 3) in (z, y, x) order of LPS mm points (..., 3)."""
        m = self.affine_lps()
        inverse = np.linalg.inv(m[:3, :3])
        return (np.asarray(lps, dtype=np.float64) - m[:3, 3]) @ inverse.T

    def slice_number(self, index: int) -> int:
        """What people call a slice: slices are counted from 1 at the lowest one, the nearest to the feet.

        Args:
            index: Of the array, along z, from 0.
        """
        return index + 1 if self.axes[0][2] >= 0 else self.shape[0] - index

    def part(self, box: Sequence[slice]) -> Geometry:
        """The grid of the voxels in an index box: a slice with start and stop for each of z, y and x."""
        z, y, x = (s.stop - s.start for s in box)
        start = self.to_lps([float(s.start) for s in box])
        origin = (float(start[0]), float(start[1]), float(start[2]))
        return replace(self, shape=(z, y, x), origin=origin)

    def halved(self) -> Geometry:
        """The grid of pairs of voxels along each axis; a last one that is left over belongs to none."""
        z, y, x = self.spacing
        nz, ny, nx = (n // 2 for n in self.shape)
        start = self.to_lps([0.5, 0.5, 0.5])
        return replace(
            self,
            shape=(nz, ny, nx),
            spacing=(2 * z, 2 * y, 2 * x),
            origin=(float(start[0]), float(start[1]), float(start[2])),
        )

    def same_grid(self, other: Geometry, tolerance_mm: float = 0.01) -> bool:
        """Whether both describe the same voxels: equal shape and corners within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * (np.array(self.shape) - 1)
        corners[0] = 0
        return bool(np.abs(self.to_lps(corners) - other.to_lps(corners)).max() <= tolerance_mm)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A CT series as one array.

    Attributes:
        hu: int16 (z, y, x), Hounsfield units. Slices are ordered along the slice normal (index 0 at the
            smallest position along ``geometry.axes[0]``). Padding outside the scanner's circle holds
            `PADDING_HU`.
        geometry: Where the voxels lie.
    """

    hu: npt.NDArray[np.int16]
    geometry: Geometry

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16 or self.hu.ndim != 3:
            raise ValueError(f"Volume.hu must be int16 (z, y, x), not {self.hu.dtype} {self.hu.shape}")
        if self.hu.shape != self.geometry.shape:
            raise ValueError(f"Volume.hu {self.hu.shape} does not fit its geometry {self.geometry.shape}")


PADDING_HU = -1024
"""HU given to padding pixels: air, the lowest value of a 12-bit CT (DICOM PS3.3 C.8.2.1.1.2)."""
