"""`simulate_patient`: a chest CT with known heart and known coronary calcium, from one number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..imaging import Geometry, Volume
from ..imaging.labels import ARTERIES, Labels
from ..imaging.volume import PADDING_HU
from .acquisition import KERNELS, Acquisition, add_noise, default_geometry, sample_acquisition
from .anatomy import place_heart, sample_anatomy, sample_body, sample_frame, stream
from .artefacts import add_bone_streaks, add_metal_streaks, breathing_step, displaced
from .distractors import all_distractors
from .rendering import draw, slice_profile, to_target, working_grid
from .specks import add_specks, calcium_contrast, lesion_specks
from .truth import OTHERS, by_kind

CALCIUM_HU = 130
"""A reader marks as calcium what reaches this (Agatston et al., J Am Coll Cardiol 1990;15:827)."""
VISIBLE_COVER = 0.03
"""Share of a voxel a lesion must fill to be the reason why it is bright."""
BONE_HU = 100.0
"""What exceeds this in the anatomy is bone, and changes with the tube voltage as calcium does."""
GROWTH = 1.2
"""Volume of a plaque a year later, in parts of what it was before. Chosen."""
METAL_STREAK_HU = 150.0
"""Strongest streaks beside a lead. Chosen."""


@dataclass(frozen=True, kw_only=True)
class SimulatedPatient:
    """A simulated scan and the truth about it.

    Attributes:
        volume: The CT, with noise.
        heart: bool (z, y, x): the whole heart inside its sac, up to the division of the pulmonary trunk,
            epicardial fat included.
        arteries: Coronary calcium by artery, where the noise-free scan reaches `CALCIUM_HU`.
        others: Calcium and metal elsewhere by kind (`truth.OTHERS`), by the same rule; bones are not in it.
        facts: Seed, heart centre (LPS mm), acquisition and lesions; JSON types only.
    """

    volume: Volume
    heart: npt.NDArray[np.bool_] = field(repr=False)
    arteries: Labels = field(repr=False)
    others: Labels = field(repr=False)
    facts: dict[str, Any] = field(repr=False)

    @property
    def calcium(self) -> npt.NDArray[np.bool_]:
        """bool (z, y, x): coronary calcium, of whatever artery."""
        return self.arteries.mask

    @property
    def distractors(self) -> npt.NDArray[np.bool_]:
        """bool (z, y, x): calcium and metal elsewhere."""
        return self.others.mask


def heart_centroid(seed: int) -> tuple[float, float, float]:
    """LPS position (x, y, z), mm, of the heart's centre of gravity, without drawing anything.

    The calcium crop is laid elsewhere: around the middle of the heart's box, `imaging.masks.box_centre`.
    """
    body, size, obesity = sample_body(seed)
    _, centroid = place_heart(seed, body, size, obesity)
    x, y, z = sample_frame(seed).to_lps(centroid)
    return float(x), float(y), float(z)


def simulate_patient(
    seed: int,
    *,
    geometry: Geometry | None = None,
    acquisition: Acquisition | None = None,
    visit: int = 0,
    version: int = 1,
) -> SimulatedPatient:
    """Simulate one patient's chest CT.

    The anatomy depends on the seed alone: the same patient can be drawn on any grid, and only noise and
    resolution change. Everything is deterministic.

    Args:
        seed: The patient, 0 or more.
        geometry: Grid to draw on, any orientation; by default the patient's own `default_geometry`.
        acquisition: Kernel, thickness and noise; by default the patient's own `sample_acquisition`.
        visit: Years after the first scan: calcium has grown (`GROWTH`), noise and motion are others.
        version: Of the simulator, see `Anatomy`.

    Raises:
        ArithmeticError: The drawing holds values that are not numbers.
    """
    scan = sample_acquisition(seed, version) if acquisition is None else acquisition
    grid = default_geometry(seed, version=version) if geometry is None else geometry
    anatomy = sample_anatomy(seed, version)
    when = (f"visit{visit}",) if visit else ()
    lesions_now = [replace(one, radii=one.radii * GROWTH ** (visit / 3)) for one in anatomy.lesions]
    working, factor, sub = working_grid(grid)
    hu, sac = draw(anatomy, working)
    if scan.kvp != 120.0:
        hu += np.float32(calcium_contrast(scan.kvp) - 1) * np.maximum(hu - np.float32(BONE_HU), 0)
    # edges are already soft by about a voxel of the working grid
    pixels = working.spacing[1], working.spacing[2]
    hu = KERNELS[scan.kernel].system.blur(hu, pixels, softness=float(np.sqrt(0.3)) * max(pixels))
    profile = slice_profile(grid.shape[0], sub, grid.spacing[0], max(scan.thickness, grid.spacing[0] * 0.999))
    hu = to_target(hu, grid, factor, profile)
    heart = to_target(sac, grid, factor, profile) < 0
    del sac

    beside = all_distractors(anatomy)
    drawn = [
        lesion_specks(group, anatomy.frame, grid, scan, stream(seed, name, *when))
        for group, name in ((beside, "motion of distractors"), (lesions_now, "motion"))
    ]
    other = add_specks(hu, drawn[0])
    own = add_specks(hu, drawn[1])
    dense = hu >= CALCIUM_HU
    calcium = dense & (own > VISIBLE_COVER) & (own >= other)
    arteries = by_kind(calcium, drawn[1], ARTERIES)
    others = by_kind(dense & (other > VISIBLE_COVER) & ~calcium, drawn[0], OTHERS)
    del own, other, dense, calcium
    rng = stream(seed, "artefacts", *when)
    if (move := breathing_step(grid, anatomy.heart_centre, scan.step, rng)) is not None:
        moved, offset = move
        for array in (heart, arteries.array, others.array):
            array[moved] = displaced(array[moved], offset, order=0)
        hu[moved] = displaced(hu[moved], offset, order=1)
        arteries.array[moved] *= hu[moved] >= CALCIUM_HU
    lesions = [
        {
            "artery": s.lesion.kind,
            "volume_mm3": round(s.lesion.volume(), 3),
            "material_hu": round(s.lesion.hu, 1),
            "peak_hu": round(float(hu[s.box][s.cover > VISIBLE_COVER].max(initial=-1000.0)), 1),
            "centre_lps": [round(float(c), 2) for c in anatomy.frame.to_lps(s.lesion.points.mean(axis=0))],
        }
        for s in drawn[1]
    ]

    add_bone_streaks(hu, grid, scan.hardening)
    add_metal_streaks(hu, grid, drawn[0], rng, METAL_STREAK_HU)
    body = anatomy.body
    shoulder = float(anatomy.frame.to_lps(np.array([0.0, 0.0, body.apex - 45]))[2])
    middle = anatomy.frame.translation
    noise = stream(seed, "noise", *when)
    add_noise(hu, grid, scan, noise, shoulder, (float(middle[0]), float(middle[1]), float(middle[2])))
    if not np.isfinite(hu.sum(dtype=np.float64)):  # as integers they would look like a scan
        raise ArithmeticError(f"the drawing of simulated patient {seed} holds values that are not numbers")
    np.clip(hu, -1024, 3071, out=hu)
    out = np.rint(hu, out=hu).astype(np.int16)
    if scan.circle:
        out[:, outside_circle(grid, scan, seed)] = PADDING_HU
    facts: dict[str, Any] = {
        "seed": seed,
        "simulator": version,
        "heart_centre_lps": [round(float(c), 2) for c in anatomy.heart_centre],
        "target_score": round(anatomy.target_score, 2),
        "acquisition": {
            "kernel": scan.kernel,
            "thickness_mm": scan.thickness,
            "increment_mm": grid.spacing[0],
            "kvp": scan.kvp,
            "manufacturer": KERNELS[scan.kernel].manufacturer,
            "model": KERNELS[scan.kernel].model,
            "sharp_kernel": KERNELS[scan.kernel].sharp,
            "iterative_mm": round(scan.iterative, 3),
            "motion_mm": round(scan.motion, 3),
            "breathing_step_mm": round(scan.step, 3),
            "beam_hardening": round(scan.hardening, 3),
            "noise_sd_hu": round(scan.noise_sd, 2),
            "field_of_view_mm": round(scan.field_of_view, 3),
            "padding_circle": scan.circle,
        },
        "lesions": lesions,
        "distractors": sorted({x.kind for x in beside}),
    }
    return SimulatedPatient(
        volume=Volume(hu=out, geometry=grid),
        heart=heart,
        arteries=arteries,
        others=others,
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
