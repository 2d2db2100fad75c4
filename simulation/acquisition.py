"""How the scan was taken: slices, field of view, kernel, noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft

from ..imaging import Geometry
from .anatomy import sample_body, sample_frame, stream
from .shapes import Array

KERNELS: dict[str, tuple[float, float, float]] = {
    "B20f": (0.75, 0.80, 0.8),
    "B30f": (0.62, 0.65, 1.0),
    "STANDARD": (0.60, 0.60, 1.05),
    "FC10": (0.66, 0.70, 0.95),
    "B": (0.68, 0.70, 0.9),
    "B45f": (0.50, 0.48, 1.4),
    "B50f": (0.42, 0.40, 1.9),
    "BONE": (0.36, 0.33, 2.2),
}
"""Per kernel: standard deviation (mm) of the in-plane point spread, of the noise's smoothing, and noise gain.

Soft kernels resolve about 1.6 mm (full width at half maximum), sharp ones about 0.9 mm."""


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """Scan and reconstruction.

    Attributes:
        kernel: A key of `KERNELS`.
        thickness, increment: Slice thickness and distance, mm.
        field_of_view: Reconstructed width, mm.
        centre: Offset (x, y) of the field's centre from the patient's middle, mm.
        below, above: How far the scan reaches below the heart's lower edge and above the lung tops, mm.
        noise_sd: Standard deviation of the noise in the middle of the body, HU, at full resolution.
        circle: Whether pixels outside the reconstruction circle hold padding.
        kvp: Tube voltage, kV.
    """

    kernel: str
    thickness: float
    increment: float
    field_of_view: float
    centre: tuple[float, float]
    below: float
    above: float
    noise_sd: float
    circle: bool
    kvp: float = 120.0


def sample_acquisition(seed: int) -> Acquisition:
    """A low-dose chest protocol for this patient: 1-3 mm slices, 120 kVp, mostly soft kernels."""
    rng = stream(seed, "scan")
    body, _, obesity = sample_body(seed)
    kernel = str(rng.choice(list(KERNELS), p=[0.08, 0.27, 0.27, 0.1, 0.1, 0.06, 0.06, 0.06]))
    thickness = float(rng.choice([1.0, 1.25, 2.0, 2.5, 3.0], p=[0.08, 0.15, 0.27, 0.35, 0.15]))
    overlap = {1.0: 0.7, 1.25: 1.0, 2.0: 1.8, 2.5: 2.0, 3.0: 2.0}[thickness]
    lungs_across = 2 * (body.half_width + body.muscle)
    dose = rng.lognormal(np.log(15.0), 0.32) * (1 + 0.5 * obesity) * np.sqrt(2.5 / thickness)
    return Acquisition(
        kernel=kernel,
        thickness=thickness,
        increment=overlap if rng.random() < 0.3 else thickness,
        field_of_view=float(np.clip(lungs_across * rng.uniform(0.97, 1.3), 307.2, 460.0)),
        centre=(float(rng.normal(0, 7)), float(rng.normal(4, 9))),
        below=float(rng.uniform(35, 95)),
        above=float(rng.uniform(8, 35)),
        noise_sd=float(np.clip(dose * KERNELS[kernel][2], 8, 80)),
        circle=bool(rng.random() < 0.35),
    )


def default_geometry(seed: int, *, size: int = 512, slices: int | None = None) -> Geometry:
    """The whole-chest grid of this patient's own scan.

    Args:
        seed: The patient.
        size: Rows and columns.
        slices: Number of slices, spread over the scan's length; by default what the protocol gives.
    """
    scan = sample_acquisition(seed)
    body, _, _ = sample_body(seed)
    frame = sample_frame(seed)
    centre = frame.translation + frame.rotation @ np.array([*scan.centre, 0.0])
    length = scan.below + body.apex + scan.above
    increment = scan.increment if slices is None else length / slices
    count = int(np.ceil(length / increment)) if slices is None else slices
    pixel = round(scan.field_of_view / size, 6)
    half = pixel * (size - 1) / 2
    return Geometry(
        shape=(count, size, size),
        spacing=(round(increment, 4), pixel, pixel),
        origin=(
            round(float(centre[0]) - half, 3),
            round(float(centre[1]) - half, 3),
            round(float(frame.translation[2]) - scan.below, 3),
        ),
    )


def add_noise(
    hu: Array,
    geometry: Geometry,
    scan: Acquisition,
    seed: int,
    shoulder_z: float,
    centre: tuple[float, float, float],
) -> None:
    """Add correlated noise in place, slice by slice.

    The power spectrum is that of filtered back-projection, rising with frequency and rolled off by the
    kernel (Riederer, Pelc and Chesler, Phys Med Biol 1978;23:446). Above `shoulder_z` noise is stronger
    and drawn out from side to side, as photons run out between the shoulders. Grids coarser than the
    scan stand for resampled scans and keep only a part of the noise.

    Args:
        hu: float32 (z, y, x).
        geometry: Of `hu`.
        scan: Kernel and noise level.
        seed: Of the patient; noise also depends on the grid.
        shoulder_z: LPS z (mm) where the shoulders begin.
        centre: LPS (mm) of the middle of the body, where noise is strongest.
    """
    rng = stream(seed, "noise")
    nz, ny, nx = geometry.shape
    dz, dy, dx = geometry.spacing
    _, smoothing, _ = KERNELS[scan.kernel]
    fy = np.fft.fftfreq(ny, dy)[:, None]
    fx = np.fft.rfftfreq(nx, dx)[None, :]
    f2 = fx**2 + fy**2
    gain = np.sqrt(np.sqrt(f2)) * np.exp(-2 * np.pi**2 * smoothing**2 * f2 / 2)
    streak = gain * (1 + 3.0 * np.exp(-((fx / (0.12 * np.abs(fy) + 1e-3)) ** 2)))
    gains = [(g / np.sqrt((g[:, :-1] ** 2).sum() * 2 / (ny * nx))).astype(np.float32) for g in (gain, streak)]
    native = scan.field_of_view / 512
    coarse = max(np.sqrt(dy * dx) / native, 1.0)
    sd = scan.noise_sd * (1.0 if coarse < 1.5 else float(rng.uniform(1 / coarse, 0.7)))
    overlap = float(np.clip(1 - dz / scan.thickness, 0, 0.6))
    m = geometry.affine_lps()
    ij = np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij")
    px = m[0, 3] + m[0, 1] * ij[0] + m[0, 2] * ij[1] - centre[0]
    py = m[1, 3] + m[1, 1] * ij[0] + m[1, 2] * ij[1] - centre[1]
    profile = (1.12 - 0.42 * np.clip((px**2 + py**2) / 170.0**2, 0, 1.3)).astype(np.float32)
    previous: Array | None = None
    for i in range(nz):
        z = m[2, 3] + m[2, 0] * i
        shoulder = float(np.clip((z - shoulder_z) / 25, 0, 1))
        white = rng.standard_normal((ny, nx), dtype=np.float32)
        spectrum = scipy.fft.rfft2(white)
        spectrum *= gains[0] if shoulder < 0.5 else gains[1]
        noise = scipy.fft.irfft2(spectrum, s=(ny, nx))
        mixed = (
            noise if previous is None else overlap * previous + np.float32(np.sqrt(1 - overlap**2)) * noise
        )
        previous = noise
        hu[i] += mixed * profile * np.float32(sd * (1 + 0.6 * shoulder))
