"""The trunk of one patient: its size, shape and tissues, and how it lies in the scanner.

Sizes are those of adults in the CT literature and of the public chests this was compared with: thorax
25-32 cm wide and 18-24 cm deep inside, its front wall leaning back by 0.3-0.5 mm per mm towards the
head, lungs about -870 HU, fat -105, muscle 50, liver 55, blood 40, spongy bone 150, cortical bone 700 HU
at 120 kVp without contrast. Shares without a source are chosen for variety, above what a clinic sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .shapes import Array, Frame, Points, Waves

Height = TypeVar("Height", float, Array, Points)

PRONE_SHARE = 0.04
"""Share of patients lying face down (chosen)."""
TURNED_SHARE = 0.06
"""Share of patients lying turned by 10 to 25 degrees (chosen)."""
ARMS_DOWN_SHARE = 0.12
"""Share of patients with the arms beside the body; screening asks for raised arms (chosen)."""
SCOLIOSIS_SHARE = 0.09
"""Share with a sideways bend of the trunk: 8.85 % of adults over 40 (Kebaish et al., Spine 2011;36:731)."""
EMPHYSEMA_SHARE = 0.3
"""Share with visible emphysema; frequent in smokers (chosen)."""
RAISED_DIAPHRAGM_SHARE = 0.05
"""Share with one raised half of the diaphragm (chosen)."""
IMPLANT_SHARE = 0.04
"""Share of women with breast implants (chosen)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """What the patient lies on.

    Attributes:
        gap: Between skin and table top, mm.
        curve: Radius of the table's hollow, mm.
        hu: Of its shell. thickness: of the board, mm.
        pad: Thickness of the mattress on it, mm; 0 for none.
    """

    gap: float
    curve: float
    hu: float
    thickness: float
    pad: float


@dataclass(frozen=True, kw_only=True)
class Breast:
    """One breast: radius and forward reach (mm), share of dense tissue 0-1, implant's HU or None."""

    side: float
    radius: float
    reach: float
    dense: float
    implant: float | None


@dataclass(frozen=True, kw_only=True)
class Body:
    """Trunk, patient coordinates, mm and HU.

    Attributes:
        half_width, half_depth: Of the rib cage's inside at its widest.
        lean: How far the front wall falls back per mm of height.
        apex, rate: Height of the lung tops, and how late the cage narrows towards them.
        fat: Thickness of fat under the skin at the sides; front and back are thinner.
        muscle: Thickness of the chest wall between ribs and fat.
        pectoral: Thickness of the muscles in front of the upper ribs.
        breasts: None, one or two.
        arms: Whether right and left arm are raised.
        domes: Heights of right, left and middle diaphragm.
        spine_y, kyphosis: Where the vertebral bodies' centres lie and how far they curve back.
        vertebra: Height of a vertebra with its disc; osteophyte: how far bone grows out at the discs.
        table: None without one in the field of view.
        prone: Whether the patient lies face down.
        sternal_gap: Between the heart and the front of the rib cage.
        mediastinum: Thickness of the fat around heart and great vessels.
        emphysema: 0 (none) to 1 (severe).
        lung_hu, lung_gradient: Of lung tissue in the middle, and its rise (HU/mm) towards the table.
        fat_hu, muscle_hu, liver_hu, blood_hu: Of these tissues.
        bone_hu: Of cortical and spongy bone.
        cartilage_hu: Of the rim and the core of the costal cartilage.
        left_lobe: How far the liver reaches to the left in front, in half widths.
        stomach: Its radius, the share of gas in it, and the HU of the rest.
        colon: Radius of the bowel under the left diaphragm, 0 for none; it holds gas.
        phase: Where along z the discs lie.
    """

    half_width: float
    half_depth: float
    lean: float
    apex: float
    rate: float
    fat: float
    muscle: float
    pectoral: float
    breasts: tuple[Breast, ...]
    arms: tuple[bool, bool]
    domes: tuple[float, float, float]
    spine_y: float
    kyphosis: float
    vertebra: float
    osteophyte: float
    table: Table | None
    prone: bool
    sternal_gap: float
    mediastinum: float
    emphysema: float
    lung_hu: float
    lung_gradient: float
    fat_hu: float
    muscle_hu: float
    liver_hu: float
    blood_hu: float
    bone_hu: tuple[float, float]
    cartilage_hu: tuple[float, float]
    left_lobe: float
    stomach: tuple[float, float, float]
    colon: float
    phase: float

    def bend(self, z: Height) -> Height:
        """How far the back's curve lies in front of its hindmost point at height z, mm."""
        out: Height = self.kyphosis * np.square(np.clip((z - 90) * (1 / 120), -1.6, 1.6))
        return out

    def spine(self, z: Height) -> Height:
        """y of the vertebral bodies' centre at height z."""
        return self.spine_y - self.bend(z)

    def front(self, z: Height) -> Height:
        """y of the inside of the rib cage in front, at height z."""
        up = z - 15
        rise: Height = np.minimum(0.5 * (up + np.sqrt(up * up + 400)), self.apex)
        return self.lean * rise - self.half_depth

    def back(self, z: Height) -> Height:
        """y of the inside of the rib cage behind, at height z."""
        return self.half_depth - self.bend(z)

    def front_at(self, x: Array, z: Array) -> Array:
        """y of the inside of the rib cage in front, beside the midline too."""
        middle = 0.5 * (self.front(z) + self.back(z))
        share = np.minimum(np.abs(x) * np.float32(1 / self.half_width), 1) ** np.float32(2.3)
        out: Array = middle - (middle - self.front(z)) * (1 - share) ** np.float32(1 / 2.3)
        return out


def stream(seed: int, *names: str) -> np.random.Generator:
    """An independent random generator for one part of one patient."""
    return np.random.default_rng([seed, *(int.from_bytes(n.encode()[:8], "little") for n in names)])


def sample_body(seed: int) -> tuple[Body, float, float]:
    """The trunk, with body size (1 = average) and obesity (0 to 1)."""
    rng = stream(seed, "body")
    size = float(np.clip(rng.normal(1.0, 0.07), 0.82, 1.18))
    obesity = float(rng.beta(1.3, 2.2))
    female = bool(rng.random() < 0.45)
    emphysema = float(rng.uniform(0.2, 1.0)) if rng.random() < EMPHYSEMA_SHARE else 0.0
    barrel = 1 + 0.1 * emphysema
    half_depth = float(np.clip(100 * size * barrel * rng.normal(1, 0.07), 80, 128))
    apex = float(225 * size * (1 + 0.06 * emphysema) * rng.normal(1, 0.07))
    table = Table(
        gap=float(rng.uniform(0, 10)),
        curve=float(np.exp(rng.uniform(np.log(300), np.log(5000)))),
        hu=float(rng.uniform(-250, 150)),
        thickness=float(rng.uniform(12, 45)),
        pad=float(rng.uniform(8, 30) if rng.random() < 0.4 else 0.0),
    )
    rim = float(rng.uniform(60, 150) if rng.random() < 0.4 else rng.uniform(150, 480))
    prone = bool(rng.random() < PRONE_SHARE)
    raised = bool(rng.random() < 1 - ARMS_DOWN_SHARE)
    body = Body(
        half_width=float(np.clip(134 * size * rng.normal(1, 0.04), 108, 165)),
        half_depth=half_depth,
        lean=float(np.clip(rng.normal(0.38, 0.07) - 0.06 * emphysema, 0.2, 0.55)),
        apex=apex,
        rate=float(rng.uniform(2.4, 3.6)),
        fat=float(3 + 57 * obesity**1.4),
        muscle=float(rng.uniform(12, 20) * size),
        pectoral=float(rng.uniform(4, 12 if female else 20)),
        breasts=_sample_breasts(rng, obesity) if female else (),
        arms=(raised, raised if rng.random() < 0.97 else not raised),
        domes=_sample_domes(rng, emphysema),
        spine_y=float(0.62 * half_depth + rng.normal(0, 4)),
        kyphosis=float(np.clip(rng.normal(15, 7), 3, 36)),
        vertebra=float(24.5 * size * rng.normal(1, 0.05)),
        osteophyte=float(rng.uniform(1, 7) if rng.random() < 0.5 else 0.0),
        table=table if rng.random() < 0.92 else None,
        prone=prone,
        sternal_gap=float(rng.uniform(1, 5) + 6 * obesity + 8 * emphysema * rng.random()),
        mediastinum=float(rng.uniform(0.5, 4) + 9 * obesity * rng.random()),
        emphysema=emphysema,
        lung_hu=float(np.clip(rng.normal(-866, 24) - 60 * emphysema, -960, -780)),
        lung_gradient=float(rng.uniform(0.1, 0.5)),
        fat_hu=float(rng.normal(-103, 6)),
        muscle_hu=float(rng.normal(50, 6)),
        liver_hu=float(np.clip(rng.normal(56, 9) - rng.uniform(10, 50) * (rng.random() < 0.25), 0, 75)),
        blood_hu=float(np.clip(rng.normal(36, 8), 18, 58)),
        bone_hu=(float(rng.uniform(400, 950)), float(np.clip(rng.normal(150, 50), 40, 290))),
        cartilage_hu=(rim, float(rng.uniform(60, 110) + (120 if rim > 330 and rng.random() < 0.4 else 0))),
        left_lobe=float(rng.uniform(0.15, 0.7)),
        stomach=(float(rng.uniform(18, 50)), float(rng.uniform(0.0, 0.9)), float(rng.normal(25, 25))),
        colon=float(rng.uniform(12, 28) if rng.random() < 0.4 else 0.0),
        phase=float(rng.uniform(0, 30)),
    )
    return body, size, obesity


def _sample_breasts(rng: np.random.Generator, obesity: float) -> tuple[Breast, ...]:
    radius, reach = rng.uniform(38, 62) + 18 * obesity, rng.uniform(3, 18) + 14 * obesity
    dense = float(rng.beta(1.2, 2.5))
    implant = float(rng.uniform(0, 130)) if rng.random() < IMPLANT_SHARE else None
    sides = (-1.0, 1.0) if rng.random() < 0.97 else (float(rng.choice([-1.0, 1.0])),)
    return tuple(
        Breast(
            side=side,
            radius=float(radius * rng.normal(1, 0.06)),
            reach=float(reach * rng.normal(1, 0.1)),
            dense=float(np.clip(dense + rng.normal(0, 0.1), 0, 1)),
            implant=implant,
        )
        for side in sides
    )


def _sample_domes(rng: np.random.Generator, emphysema: float) -> tuple[float, float, float]:
    """Heights of right, left and middle diaphragm; flatter in emphysema."""
    middle = rng.normal(9, 4) - 3 * emphysema
    flat = 1 - 0.7 * emphysema
    right = middle + flat * float(np.clip(rng.normal(24, 12), -5, 55))
    left = middle + flat * float(np.clip(rng.normal(9, 11), -18, 40))
    if rng.random() < RAISED_DIAPHRAGM_SHARE:
        if rng.random() < 0.5:
            right += rng.uniform(20, 45)
        else:
            left += rng.uniform(25, 55)
    return float(right), float(left), float(middle)


def sample_frame(seed: int) -> Frame:
    """How the patient lies: rotation, tilt, offset from the isocentre, and a gentle smooth warp.

    The warp bends the whole trunk sideways in patients with scoliosis, up to 24 mm either way.
    """
    rng = stream(seed, "frame")
    roll, tilt, yaw = np.deg2rad(rng.normal(0, (4.0, 3.0, 2.0)))  # about z, x, y
    if rng.random() < TURNED_SHARE:
        roll += np.deg2rad(rng.uniform(10, 25) * rng.choice([-1, 1]))
    cz, sz, cx, sx, cy, sy = np.cos(roll), np.sin(roll), np.cos(tilt), np.sin(tilt), np.cos(yaw), np.sin(yaw)
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1.0]])
    rx = np.array([[1.0, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1.0, 0], [-sy, 0, cy]])
    warp = Waves.random(rng, count=10, wavelength=(90, 320), sd=3.0, components=3)
    translation = np.array([rng.normal(0, 12), rng.normal(0, 20), rng.uniform(-350, 150)])
    if rng.random() < SCOLIOSIS_SHARE:
        warp = _with_bend(warp, rng.uniform(8, 24) * rng.choice([-1, 1]), rng.uniform(300, 480), rng)
    return Frame(rotation=rz @ rx @ ry, translation=translation, warp=warp)


def _with_bend(warp: Waves, amplitude: float, wavelength: float, rng: np.random.Generator) -> Waves:
    k: Points = np.vstack([warp.k, [0.0, 0.0, 2 * np.pi / wavelength]])
    return Waves(
        k=k,
        phase=np.append(warp.phase, rng.uniform(0, 2 * np.pi)),
        amplitude=np.vstack([warp.amplitude, [amplitude, 0.0, 0.0]]),
    )
