"""How the scan was taken: slices, field of view, kernel, noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.fft
import scipy.ndimage

from ..imaging import Geometry
from .anatomy import sample_body, sample_frame, stream
from .shapes import Array

APERTURE_MM = 0.28
"""Standard deviation of the blur by detector and focal spot: it softens the picture, not the noise.

Chosen."""


@dataclass(frozen=True, kw_only=True)
class PointSpread:
    """A Gaussian, less a wider one where edges are enhanced.

    The point spread is (1 + boost) G(spread) - boost G(halo): a uniform patch keeps its HU, and the
    modulation transfer function (MTF) rises above 1 at middle frequencies where `boost` is not 0.

    Attributes:
        spread: Standard deviation of the narrow part, mm.
        boost: Strength of the edge enhancement, 0 for none.
        halo: Standard deviation of the part taken away, mm; larger than `spread`.
    """

    spread: float
    boost: float = 0.0
    halo: float = 1.0

    @property
    def reach(self) -> float:
        """Standard deviation of the widest part, mm."""
        return self.halo if self.boost else self.spread

    def mtf(self, f: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Modulation transfer at spatial frequencies `f`, cycles per mm; 1 at 0."""
        g = -2 * np.pi**2 * np.square(f)
        out: npt.NDArray[np.floating] = (1 + self.boost) * np.exp(g * self.spread**2) - self.boost * np.exp(
            g * self.halo**2
        )
        return out

    def wider(self, sd: float) -> PointSpread:
        """This spread followed by a Gaussian blur of standard deviation `sd`, mm."""
        return replace(self, spread=float(np.hypot(self.spread, sd)), halo=float(np.hypot(self.halo, sd)))

    def blur(self, field: Array, spacing: tuple[float, float], *, softness: float = 0.0) -> Array:
        """Apply the spread in-plane.

        Args:
            field: float32 (z, y, x).
            spacing: Of pixels (y, x), mm.
            softness: Standard deviation (mm) of the blur that edges in `field` have already. Where it
                exceeds `spread`, the field is sharpened as well as one unsharp mask can.
        """
        if self.spread < softness:
            boost, width = self._sharpening(softness, 0.65 * max(spacing))  # wide enough to sample
            sharp, halo = field, _gaussian(field, width, spacing)
        else:
            boost = self.boost
            sharp = _gaussian(field, float(np.sqrt(self.spread**2 - softness**2)), spacing)
            halo = _gaussian(field, float(np.sqrt(self.halo**2 - softness**2)), spacing) if boost else sharp
        if not boost:
            return sharp
        out: Array = sharp * np.float32(1 + boost)
        out -= np.float32(boost) * halo
        return out

    def _sharpening(self, softness: float, least: float) -> tuple[float, float]:
        """Strength and width (at least `least` mm) of the unsharp mask that best makes `mtf` of a blur.

        Least squares over frequencies that carry edges, weighted with an edge's spectrum 1 / f.
        """
        f = np.linspace(0.02, 0.6, 40)
        soft = PointSpread(spread=softness).mtf(f)
        fits = []
        for width in np.linspace(least, 2 * least, 8):
            detail = (soft - PointSpread(spread=float(width)).mtf(f) * soft) / f
            wanted = (self.mtf(f) - soft) / f
            boost = float(np.clip((detail @ wanted) / (detail @ detail), 0, 6))
            fits.append((float(np.square(wanted - boost * detail).sum()), boost, float(width)))
        _, boost, width = min(fits)
        return boost, width


def _gaussian(field: Array, sd: float, spacing: tuple[float, float]) -> Array:
    sigma = [sd / s for s in spacing]
    if max(sigma) < 0.15:  # a sampled Gaussian this narrow is a single point
        return field
    out: Array = scipy.ndimage.gaussian_filter(field, (0.0, *sigma), mode="nearest", truncate=3.0)
    return out


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A reconstruction kernel.

    Attributes:
        manufacturer, model: A scanner that has it, as in the DICOM header.
        filter: What the reconstruction does to picture and noise alike.
        share: How often it is drawn.
    """

    manufacturer: str
    model: str
    filter: PointSpread
    share: float

    @property
    def system(self) -> PointSpread:
        """What becomes of a point: kernel, detector and focal spot."""
        return self.filter.wider(APERTURE_MM)

    @property
    def sharp(self) -> bool:
        """Whether the picture shows more than a tenth of edge enhancement."""
        return bool(self.system.mtf(np.linspace(0, 1.5, 150)).max() > 1.1)

    @property
    def noise_gain(self) -> float:
        """Noise of filtered back-projection relative to B30f on the same raw data.

        The variance is the integral of f · MTF² over the plane, detector and focal spot left out of the
        MTF (Riederer, Pelc and Chesler, Phys Med Biol 1978;23:446).
        """
        f = np.linspace(0.0, 3.0, 600)
        own, base = (float((f * f * k.filter.mtf(f) ** 2).sum()) for k in (self, KERNELS["B30f"]))
        return float(np.sqrt(own / base))


def _kernel(
    scanner: tuple[str, str], share: float, spread: float, boost: float = 0.0, halo: float = 1.0
) -> Kernel:
    return Kernel(
        manufacturer=scanner[0],
        model=scanner[1],
        filter=PointSpread(spread=spread, boost=boost, halo=halo),
        share=share,
    )


_SIEMENS = ("SIEMENS", "Sensation 64")
_GE = ("GE MEDICAL SYSTEMS", "LightSpeed VCT")
_CANON = ("TOSHIBA", "Aquilion")
_PHILIPS = ("Philips", "Brilliance 64")

KERNELS: dict[str, Kernel] = {
    "B20f": _kernel(_SIEMENS, 0.05, 0.66),
    "B30f": _kernel(_SIEMENS, 0.16, 0.54),
    "B45f": _kernel(_SIEMENS, 0.05, 0.42, 1.0, 0.48),
    "B50f": _kernel(_SIEMENS, 0.08, 0.38, 2.0, 0.48),
    "B60f": _kernel(_SIEMENS, 0.04, 0.36, 3.0, 0.52),
    "B70f": _kernel(_SIEMENS, 0.04, 0.29, 3.0, 0.48),
    "SOFT": _kernel(_GE, 0.02, 0.62),
    "STANDARD": _kernel(_GE, 0.18, 0.51),
    "LUNG": _kernel(_GE, 0.04, 0.38, 3.0, 0.66),
    "BONE": _kernel(_GE, 0.08, 0.23, 3.0, 0.40),
    "FC10": _kernel(_CANON, 0.06, 0.58),
    "FC51": _kernel(_CANON, 0.05, 0.36, 3.0, 0.56),
    "B": _kernel(_PHILIPS, 0.05, 0.55),
    "C": _kernel(_PHILIPS, 0.04, 0.46),
    "D": _kernel(_PHILIPS, 0.03, 0.38, 1.5, 0.47),
    "L": _kernel(_PHILIPS, 0.03, 0.42, 3.0, 0.66),
}
"""Soft to very sharp. BONE, B and L were fitted to the noise power spectrum of real scans
(`docs/simulation.md`); the others are chosen between and beside them, as manufacturers publish none."""

SLICES = {
    (0.6, 0.5): 0.02,
    (0.75, 0.5): 0.02,
    (1.0, 0.7): 0.05,
    (1.0, 1.0): 0.08,
    (1.25, 1.0): 0.03,
    (1.25, 1.25): 0.1,
    (1.5, 1.0): 0.04,
    (2.0, 1.8): 0.1,
    (2.0, 2.0): 0.1,
    (2.5, 2.0): 0.08,
    (2.5, 2.5): 0.18,
    (3.0, 2.0): 0.03,
    (3.0, 3.0): 0.08,
    (3.2, 3.2): 0.04,
    (5.0, 5.0): 0.05,
}
"""Thickness and increment, mm, and how often; mostly the 1-3.2 mm of lung screening. Shares are chosen."""
GATED_SHARE = 0.12
"""Share of gated scans of the heart alone in version 2 (chosen)."""
VOLTAGES = {100.0: 0.1, 110.0: 0.05, 120.0: 0.63, 130.0: 0.07, 140.0: 0.15}
"""Tube voltage, kVp, and how often; NLST scanned at 120 to 140 kVp. Shares are chosen."""


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
        iterative: Smoothing of the noise alone by iterative reconstruction, mm; 0 for filtered
            back-projection.
        motion: How far the middle right coronary artery moves while a slice is taken, mm.
        step: How far the chest moves while part of the heart is scanned (breathing), mm; 0 for none.
        hardening: Strength of streaks between bones, `artefacts.add_bone_streaks`; 0 for none.
        arc: Up to how far the way of what moves turns, radians (version 2 of the simulator).
        flank: Strength of the dark bands beside what moves, `specks.Flank` (version 2).
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
    iterative: float = 0.0
    motion: float = 0.0
    step: float = 0.0
    hardening: float = 0.0
    arc: float = 0.0
    flank: float = 0.0


def sample_acquisition(seed: int, version: int = 1) -> Acquisition:
    """A chest protocol for this patient: from quiet to very noisy, 0.6-5 mm, 100-140 kVp, any kernel.

    Noise at 2.5 mm with B30f has a median of about 13 HU; thickness, kernel, obesity and iterative
    reconstruction change it. Motion is that of a scan without ECG gating, 0-6 mm.

    Version 2 of the simulator has more slices of 3 and 5 mm, motion to 14 mm with its artefacts, and one
    scan in eight is a gated one of the heart alone.
    """
    rng = stream(seed, "scan")
    body, _, obesity = sample_body(seed)
    kernel = str(rng.choice(list(KERNELS), p=[k.share for k in KERNELS.values()]))
    thickness, increment = list(SLICES)[int(rng.choice(len(SLICES), p=list(SLICES.values())))]
    kvp = float(rng.choice(list(VOLTAGES), p=list(VOLTAGES.values())))
    iterative = float(rng.uniform(0.2, 0.6)) if rng.random() < 0.2 else 0.0
    lungs_across = 2 * (body.half_width + body.muscle)
    noise = rng.lognormal(np.log(11.0), 0.4) * (1 + 0.5 * obesity) * np.sqrt(2.5 / thickness)
    noise *= KERNELS[kernel].noise_gain * (1 - 0.7 * iterative)
    scan = Acquisition(
        kernel=kernel,
        thickness=thickness,
        increment=increment,
        field_of_view=float(np.clip(lungs_across * rng.uniform(0.97, 1.3), 307.2, 500.0)),
        centre=(float(rng.normal(0, 7)), float(rng.normal(4, 9))),
        below=float(rng.uniform(35, 95)),
        above=float(rng.uniform(8, 35)),
        noise_sd=float(np.clip(noise, 5, 160)),
        circle=bool(rng.random() < 0.35),
        kvp=kvp,
        iterative=iterative,
        motion=float(6 * rng.beta(1.3, 2.2)),
        step=float(rng.uniform(1.5, 5)) if rng.random() < 0.12 else 0.0,
        hardening=float(rng.uniform(0.5, 6) * (120 / kvp)),
    )
    return scan if version == 1 else _without_gating(scan, stream(seed, "scan 2"))


def _without_gating(scan: Acquisition, rng: np.random.Generator) -> Acquisition:
    """What version 2 of the simulator makes of a protocol.

    The right coronary artery moves at 70 mm/s on average and at up to 110 mm/s (Achenbach et al., Circulation
    2000;102:2823), so by 10 to 20 mm during the half turn of a slow scanner.
    """
    if rng.random() < GATED_SHARE:
        thickness = float(rng.choice([2.5, 3.0]))
        return replace(
            scan,
            kernel=str(rng.choice(["B30f", "STANDARD", "FC10", "B"])),
            thickness=thickness,
            increment=thickness,
            field_of_view=float(rng.uniform(150, 260)),
            centre=(float(rng.normal(14, 8)), float(rng.normal(-22, 8))),
            noise_sd=float(rng.uniform(10, 28)),
            circle=False,
            step=0.0,
            motion=float(rng.uniform(0, 2)),
            arc=1.5,
            flank=float(rng.uniform(0, 0.5)),
        )
    if rng.random() < 0.25:
        thickness = float(rng.choice([3.0, 5.0]))
        noise = scan.noise_sd * np.sqrt(scan.thickness / thickness)
        scan = replace(scan, thickness=thickness, increment=thickness, noise_sd=float(max(noise, 5.0)))
    return replace(
        scan,
        field_of_view=float(rng.uniform(scan.field_of_view, 500.0)),
        motion=float(14 * rng.beta(1.2, 2.6)),
        arc=3.5,
        flank=float(rng.uniform(0, 2.0)),
    )


def default_geometry(seed: int, *, size: int = 512, slices: int | None = None, version: int = 1) -> Geometry:
    """The whole-chest grid of this patient's own scan.

    Args:
        seed: The patient.
        size: Rows and columns.
        slices: Number of slices, spread over the scan's length; by default what the protocol gives.
        version: Of the simulator.
    """
    scan = sample_acquisition(seed, version)
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


def noise_spectrum(
    scan: Acquisition,
    fy: npt.NDArray[np.floating],
    fx: npt.NDArray[np.floating],
    pixel: tuple[float, float],
) -> npt.NDArray[np.float64]:
    """Noise power (up to a factor) at frequencies `fy`, `fx` (cycles per mm) of an image with these pixels.

    The power of filtered back-projection rises with frequency and is rolled off by the kernel (Riederer,
    Pelc and Chesler, Phys Med Biol 1978;23:446). Sampling folds back what lies beyond half the pixels'
    frequency, so that it does not reach 0 (Kijewski and Judy, Phys Med Biol 1987;32:565).
    """
    kernel = KERNELS[scan.kernel].filter
    power = np.zeros(np.broadcast_shapes(fy.shape, fx.shape))
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            f = np.hypot(fy + i / pixel[0], fx + j / pixel[1])
            power += (f + 0.01) * np.square(kernel.mtf(f) * np.exp(-2 * (np.pi * scan.iterative * f) ** 2))
    return power


def add_noise(
    hu: Array,
    geometry: Geometry,
    scan: Acquisition,
    rng: np.random.Generator,
    shoulder_z: float,
    centre: tuple[float, float, float],
) -> None:
    """Add correlated noise in place, slice by slice.

    The spectrum is `noise_spectrum`. Above `shoulder_z` noise is stronger and drawn out from side to side,
    as photons run out between the shoulders. Grids coarser than the scan stand for resampled scans and
    keep only a part of the noise.

    Args:
        hu: float32 (z, y, x).
        geometry: Of `hu`.
        scan: Kernel and noise level.
        rng: Source of randomness.
        shoulder_z: LPS z (mm) where the shoulders begin.
        centre: LPS (mm) of the middle of the body, where noise is strongest.
    """
    nz, ny, nx = geometry.shape
    dz, dy, dx = geometry.spacing
    fy = np.fft.fftfreq(ny, dy)[:, None]
    fx = np.fft.rfftfreq(nx, dx)[None, :]
    gain = np.sqrt(noise_spectrum(scan, fy, fx, (dy, dx)))
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
    profile = (1.12 - 0.52 * np.clip((px**2 + py**2) / 170.0**2, 0, 1.4)).astype(np.float32)
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
