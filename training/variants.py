"""Many scans out of one: deformed, re-toned, blurred and noisier copies of a labelled CT.

A handful of labelled real scans teaches a network those patients; their variants teach it what may
differ from patient to patient and from scanner to scanner, on real anatomy. All amounts are chosen so
that a chest stays a chest: strong enough that no variant looks like the original, weak enough that the
label still outlines the heart (which it does exactly, being deformed with it).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.ndimage

TONES_HU = np.array([-1100.0, -900.0, -500.0, -110.0, 0.0, 60.0, 200.0, 600.0, 3100.0])
"""Where the tone curve is bent, HU: air, lung, its vessels, fat, water, muscle, spongy and dense bone."""
TONES_SD = np.array([10.0, 35.0, 50.0, 12.0, 9.0, 9.0, 30.0, 100.0, 100.0])
"""By how much (standard deviation, HU): as much as tissues differ between patients and tube voltages."""


def vary(
    hu: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
    *,
    noise_hu: float = 80.0,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """One random variant of a labelled scan, on the same grid.

    Turned by up to about 12 degrees, scaled per axis by 0.8 to 1.25, bent elastically by several
    millimetres, the heart swollen or shrunk and moved by itself, tissues re-toned by a monotone curve,
    blurred or sharpened, made noisier.

    Args:
        hu: int16 (z, y, x), HU, canonical orientation.
        label: uint8 (z, y, x), 1 heart.
        spacing: mm (z, y, x).
        rng: Source of randomness.
        noise_hu: Largest standard deviation of the added noise, HU.

    Returns:
        int16 HU and uint8 label of the same shape.
    """
    where = deformation(label, spacing, rng)
    moved = scipy.ndimage.map_coordinates(hu.astype(np.float32), where, order=1, cval=-1024.0)
    heart = scipy.ndimage.map_coordinates((label > 0).astype(np.float32), where, order=1, cval=0.0) >= 0.5
    tones = np.maximum.accumulate(TONES_HU + rng.normal(0.0, TONES_SD))
    out = np.interp(moved, TONES_HU, tones).astype(np.float32)
    if rng.random() < 0.5:
        soft = scipy.ndimage.gaussian_filter(out, rng.uniform(0.4, 1.2))
        out = soft if rng.random() < 0.7 else out + rng.uniform(0.3, 0.9) * (out - soft)
    noise = rng.standard_normal(out.shape).astype(np.float32)
    if rng.random() < 0.5:
        noise = scipy.ndimage.gaussian_filter(noise, (0.3, 0.7, 0.7))
        noise /= noise.std()
    out += np.float32(noise_hu * rng.random() ** 2) * noise
    return np.clip(out, -1024, 3071).round().astype(np.int16), heart.astype(np.uint8)


def deformation(
    label: npt.NDArray[np.uint8], spacing: tuple[float, float, float], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Where each voxel of a variant comes from: float32 (3, z, y, x), fractional indices of the original."""
    shape = np.array(label.shape)
    step = np.asarray(spacing)
    middle = ((shape - 1) / 2 * step)[:, None, None, None]
    p = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, step, strict=True)), indexing="ij"))
    p = (p - middle).astype(np.float32)
    angle = np.deg2rad(np.clip(rng.normal(0.0, (4.0, 4.0, 7.0)), -15, 15))  # about x, y, z
    matrix = _rotation(angle) @ np.diag(np.exp(rng.uniform(-0.22, 0.22, 3)))
    source = np.einsum("ij,j...->i...", matrix.astype(np.float32), p)
    source += rng.normal(0.0, 8.0, 3).astype(np.float32)[:, None, None, None]
    strength = rng.uniform(2.0, 8.0)
    for axis in range(3):
        coarse = rng.normal(0.0, strength, np.maximum((shape * step / 55).round().astype(int), 4))
        source[axis] += scipy.ndimage.zoom(
            coarse, shape / coarse.shape, order=3, mode="nearest", grid_mode=True
        )
    hit = np.argwhere(label)
    if len(hit):
        centre = (hit.mean(0) * step)[:, None, None, None] - middle
        reach = float(np.cbrt(len(hit) * step.prod() * 3 / (4 * np.pi)))  # radius of a ball of that volume
        off = source - centre
        near = np.exp(-0.5 * ((off / (1.3 * reach)) ** 2).sum(0))
        swell, shift = rng.uniform(-0.22, 0.22), rng.normal(0.0, 6.0, 3)
        source += near * (swell * off + shift[:, None, None, None])
    out: npt.NDArray[np.float32] = ((source + middle) / step[:, None, None, None]).astype(np.float32)
    return out


def _rotation(angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotation of (z, y, x) vectors by angles (radians) about x, y and z."""
    (ca, cb, cc), (sa, sb, sc) = np.cos(angle), np.sin(angle)
    about_x = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    about_y = np.array([[cb, 0, -sb], [0, 1, 0], [sb, 0, cb]])
    about_z = np.array([[1, 0, 0], [0, cc, -sc], [0, sc, cc]])
    out: npt.NDArray[np.float64] = about_z @ about_y @ about_x
    return out
