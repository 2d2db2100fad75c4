"""`simulate_patient`: a chest CT with known heart and known coronary calcium, from one number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..imaging import Geometry, Volume
from ..imaging.volume import PADDING_HU
from .acquisition import KERNELS, Acquisition, add_noise, default_geometry, sample_acquisition
from .anatomy import place_heart, sample_anatomy, sample_body, sample_frame
from .rendering import Speck, add_specks, draw, rasterise, slice_profile, to_target, working_grid

CALCIUM_HU = 130
"""A reader marks as calcium what reaches this (Agatston et al., J Am Coll Cardiol 1990;15:827)."""


@dataclass(frozen=True, kw_only=True)
class SimulatedPatient:
    """A simulated scan and the truth about it.

    Attributes:
        volume: The CT, with noise.
        heart: bool (z, y, x): the whole heart inside its sac, up to the division of the pulmonary trunk,
            epicardial fat included.
        calcium: bool (z, y, x): coronary calcium, where the noise-free scan reaches `CALCIUM_HU`.
        distractors: bool (z, y, x): calcium and metal elsewhere, by the same rule; bones are not in it.
        facts: Seed, heart centre (LPS mm), acquisition and lesions; JSON types only.
    """

    volume: Volume
    heart: npt.NDArray[np.bool_] = field(repr=False)
    calcium: npt.NDArray[np.bool_] = field(repr=False)
    distractors: npt.NDArray[np.bool_] = field(repr=False)
    facts: dict[str, Any] = field(repr=False)


def heart_centre(seed: int) -> tuple[float, float, float]:
    """LPS position (x, y, z), mm, of the heart's centroid, without drawing anything."""
    body, size, obesity = sample_body(seed)
    _, centroid = place_heart(seed, body, size, obesity)
    x, y, z = sample_frame(seed).to_lps(centroid)
    return float(x), float(y), float(z)


def simulate_patient(
    seed: int, *, geometry: Geometry | None = None, acquisition: Acquisition | None = None
) -> SimulatedPatient:
    """Simulate one patient's chest CT.

    The anatomy depends on the seed alone: the same patient can be drawn on any grid, and only noise and
    resolution change. Everything is deterministic.

    Args:
        seed: The patient, 0 or more.
        geometry: Grid to draw on, any orientation; by default the patient's own `default_geometry`.
        acquisition: Kernel, thickness and noise; by default the patient's own `sample_acquisition`.
    """
    scan = sample_acquisition(seed) if acquisition is None else acquisition
    grid = default_geometry(seed) if geometry is None else geometry
    anatomy = sample_anatomy(seed)
    blur = KERNELS[scan.kernel][0]
    working, factor, sub = working_grid(grid)
    hu, sac = draw(anatomy, working)
    # edges are already soft by about a voxel of the working grid
    for axis in (1, 2):
        extra = (blur / working.spacing[axis]) ** 2 - 0.3
        if extra > 0.02:
            scipy.ndimage.gaussian_filter1d(hu, np.sqrt(extra), axis=axis, output=hu, truncate=2.5)
    profile = slice_profile(grid.shape[0], sub, grid.spacing[0], max(scan.thickness, grid.spacing[0] * 0.999))
    hu = to_target(hu, grid, factor, profile)
    heart = to_target(sac, grid, factor, profile) < 0
    del sac

    thickness = max(scan.thickness, grid.spacing[0])
    spread = float(np.hypot(blur, 0.29 * max(grid.spacing[1], grid.spacing[2])))
    drawn: list[list[Speck]] = []
    for group in (anatomy.distractors, anatomy.lesions):
        specks = (rasterise(x, anatomy.frame, grid, blur=spread, thickness=thickness) for x in group)
        drawn.append([s for s in specks if s is not None])
    other = add_specks(hu, drawn[0])
    own = add_specks(hu, drawn[1])
    dense = hu >= CALCIUM_HU
    calcium = dense & (own > 0.03) & (own >= other)
    distractors = dense & (other > 0.03) & ~calcium
    lesions = [
        {
            "artery": s.lesion.kind,
            "volume_mm3": round(s.lesion.volume(), 3),
            "material_hu": round(s.lesion.hu, 1),
            "peak_hu": round(float(hu[s.box][s.cover > 0.03].max(initial=-1000.0)), 1),
            "centre_lps": [round(float(c), 2) for c in anatomy.frame.to_lps(s.lesion.points.mean(axis=0))],
        }
        for s in drawn[1]
    ]

    body = anatomy.body
    shoulder = float(anatomy.frame.to_lps(np.array([0.0, 0.0, body.apex - 45]))[2])
    middle = anatomy.frame.translation
    add_noise(hu, grid, scan, seed, shoulder, (float(middle[0]), float(middle[1]), float(middle[2])))
    np.clip(hu, -1024, 3071, out=hu)
    out = np.rint(hu, out=hu).astype(np.int16)
    if scan.circle:
        out[:, outside_circle(grid, scan, seed)] = PADDING_HU
    facts: dict[str, Any] = {
        "seed": seed,
        "heart_centre_lps": [round(float(c), 2) for c in anatomy.heart_centre],
        "target_score": round(anatomy.target_score, 2),
        "acquisition": {
            "kernel": scan.kernel,
            "thickness_mm": scan.thickness,
            "increment_mm": grid.spacing[0],
            "kvp": scan.kvp,
            "noise_sd_hu": round(scan.noise_sd, 2),
            "field_of_view_mm": round(scan.field_of_view, 3),
            "padding_circle": scan.circle,
        },
        "lesions": lesions,
        "distractors": sorted({x.kind for x in anatomy.distractors}),
    }
    return SimulatedPatient(
        volume=Volume(hu=out, geometry=grid),
        heart=heart,
        calcium=calcium,
        distractors=distractors,
        facts=facts,
    )


def outside_circle(geometry: Geometry, scan: Acquisition, seed: int) -> npt.NDArray[np.bool_]:
    """bool (y, x): pixels outside the scan's round field of view."""
    frame = sample_frame(seed)
    centre = frame.translation + frame.rotation @ np.array([*scan.centre, 0.0])
    _, ny, nx = geometry.shape
    j, k = np.meshgrid(np.arange(ny), np.arange(nx), indexing="ij")
    p = geometry.to_lps(np.stack([np.zeros_like(j), j, k], axis=-1))
    distance: npt.NDArray[np.float64] = np.hypot(p[..., 0] - centre[0], p[..., 1] - centre[1])
    return distance > scan.field_of_view / 2
