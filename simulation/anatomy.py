"""One patient's anatomy: everything drawn from the seed, nothing that depends on a grid.

Sizes are those of adults in the CT literature and of the LIDC chests this was compared with: thorax
25-32 cm wide and 18-24 cm deep inside, lungs about -870 HU, fat -105, muscle 50, liver 55, blood 40,
spongy bone 150, cortical bone 700 HU at 120 kVp without contrast.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .coronary import Lesion, sample_coronaries, sample_distractors, sample_lesions
from .heart import Heart, sample_heart
from .lungs import VesselTree, sample_vessels
from .shapes import Frame, Points, Waves, smooth_curve


@dataclass(frozen=True, kw_only=True)
class Body:
    """Trunk, patient coordinates, mm and HU.

    Attributes:
        half_width, half_depth: Of the rib cage's inside at its widest.
        apex, rate: Height of the lung tops, and how late the cage narrows towards them.
        fat: Thickness of fat under the skin at the sides; front and back are thinner.
        muscle: Thickness of the chest wall between ribs and fat.
        breast: (radius, forward reach) of the breasts; radius 0 for none.
        arms_down: Whether the arms lie beside the body.
        domes: Heights of right, left and middle diaphragm.
        spine_y, kyphosis: Where the vertebral bodies' centres lie and how far they curve back.
        table: Distance of the table top behind the body, its curvature radius and HU; None without table.
        sternal_gap: Between the heart and the front of the rib cage.
        mediastinum: Thickness of the fat around heart and great vessels.
        lung_hu, lung_gradient: Of lung tissue in the middle, and its rise (HU/mm) towards the back.
        fat_hu, muscle_hu, liver_hu, blood_hu: Of these tissues.
        bone_hu: Of cortical and spongy bone.
        stomach: Its radius, the share of gas in it, and the HU of the rest.
        phase: Where along z the discs lie.
    """

    half_width: float
    half_depth: float
    apex: float
    rate: float
    fat: float
    muscle: float
    breast: tuple[float, float]
    arms_down: bool
    domes: tuple[float, float, float]
    spine_y: float
    kyphosis: float
    table: tuple[float, float, float] | None
    sternal_gap: float
    mediastinum: float
    lung_hu: float
    lung_gradient: float
    fat_hu: float
    muscle_hu: float
    liver_hu: float
    blood_hu: float
    bone_hu: tuple[float, float]
    stomach: tuple[float, float, float]
    phase: float

    def spine(self, z: float) -> float:
        """y of the vertebral bodies' centre at height z."""
        bend = min(max((z - 90) / 120, -1.6), 1.6)
        return self.spine_y - self.kyphosis * bend * bend


@dataclass(frozen=True, kw_only=True)
class Vessels:
    """Centrelines (n, 3) and radii (n,) of the great vessels and airways, patient coordinates, mm."""

    aorta: tuple[Points, Points]
    trunk: tuple[Points, Points]
    right_pulmonary: tuple[Points, Points]
    left_pulmonary: tuple[Points, Points]
    superior_cava: tuple[Points, Points]
    inferior_cava: tuple[Points, Points]
    left_brachiocephalic: tuple[Points, Points]
    arch_branches: tuple[tuple[Points, Points], ...]
    pulmonary_veins: tuple[tuple[Points, Points], ...]
    oesophagus: tuple[Points, Points]
    airways: tuple[tuple[Points, Points], ...]


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Everything about one patient except the scan.

    Attributes:
        frame: Where and how the patient lies on the table.
        coronaries: Centreline (n, 3) per artery: ``LM``, ``LAD``, ``LCX``, ``RCA``.
        lesions: Coronary calcium. distractors: calcium elsewhere, and metal.
        texture: Fine structure of the lungs; mottle: slow variation inside soft tissue. Unit deviation.
    """

    seed: int
    frame: Frame
    body: Body
    heart: Heart
    heart_centre: Points
    vessels: Vessels
    coronaries: dict[str, Points]
    coronary_radius: float
    lesions: tuple[Lesion, ...]
    distractors: tuple[Lesion, ...]
    target_score: float
    trees: tuple[VesselTree, ...]
    texture: Waves
    mottle: Waves


def stream(seed: int, *names: str) -> np.random.Generator:
    """An independent random generator for one part of one patient."""
    return np.random.default_rng([seed, *(int.from_bytes(n.encode()[:8], "little") for n in names)])


def sample_body(seed: int) -> tuple[Body, float, float]:
    """The trunk, with body size (1 = average) and obesity (0 to 1)."""
    rng = stream(seed, "body")
    size = float(np.clip(rng.normal(1.0, 0.07), 0.82, 1.18))
    obesity = float(rng.beta(1.6, 2.4))
    female = bool(rng.random() < 0.45)
    half_depth = float(np.clip(100 * size * rng.normal(1, 0.07), 80, 122))
    middle = rng.normal(11, 5)
    right = middle + float(np.clip(rng.normal(22, 12), -5, 55))
    left = middle + float(np.clip(rng.normal(8, 12), -18, 40))
    body = Body(
        half_width=float(np.clip(137 * size * rng.normal(1, 0.04), 112, 165)),
        half_depth=half_depth,
        apex=float(225 * size * rng.normal(1, 0.07)),
        rate=float(rng.uniform(2.4, 3.6)),
        fat=float(4 + 46 * obesity**1.3),
        muscle=float(rng.uniform(13, 21) * size),
        breast=(float(rng.uniform(42, 75)), float(rng.uniform(5, 28))) if female else (0.0, 0.0),
        arms_down=bool(rng.random() < 0.12),
        domes=(float(right), float(left), float(middle)),
        spine_y=float(0.62 * half_depth + rng.normal(0, 4)),
        kyphosis=float(rng.uniform(1, 13)),
        table=(float(rng.uniform(2, 12)), float(rng.uniform(300, 900)), float(rng.uniform(-150, 150)))
        if rng.random() < 0.92
        else None,
        sternal_gap=float(rng.uniform(2, 10) + 8 * obesity),
        mediastinum=float(rng.uniform(2, 5) + 9 * obesity * rng.random()),
        lung_hu=float(np.clip(rng.normal(-868, 26), -925, -790)),
        lung_gradient=float(rng.uniform(0.1, 0.5)),
        fat_hu=float(rng.normal(-103, 6)),
        muscle_hu=float(rng.normal(50, 6)),
        liver_hu=float(np.clip(rng.normal(56, 9) - 18 * (rng.random() < 0.2), 8, 75)),
        blood_hu=float(np.clip(rng.normal(38, 7), 22, 56)),
        bone_hu=(float(rng.uniform(450, 950)), float(rng.uniform(70, 240))),
        stomach=(float(rng.uniform(24, 44)), float(rng.uniform(0.0, 0.5)), float(rng.normal(25, 25))),
        phase=float(rng.uniform(0, 30)),
    )
    return body, size, obesity


def sample_frame(seed: int) -> Frame:
    """How the patient lies: rotation, tilt, offset from the isocentre, and a gentle smooth warp."""
    rng = stream(seed, "frame")
    roll, tilt, yaw = np.deg2rad(rng.normal(0, (4.0, 3.0, 2.0)))  # about z, x, y
    cz, sz, cx, sx, cy, sy = np.cos(roll), np.sin(roll), np.cos(tilt), np.sin(tilt), np.cos(yaw), np.sin(yaw)
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1.0]])
    rx = np.array([[1.0, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1.0, 0], [-sy, 0, cy]])
    warp = Waves.random(rng, count=10, wavelength=(90, 320), sd=3.0, components=3)
    return Frame(
        rotation=rz @ rx @ ry,
        translation=np.array([rng.normal(0, 12), rng.normal(0, 20), rng.uniform(-350, 150)]),
        warp=warp,
    )


def place_heart(seed: int, body: Body, size: float, obesity: float) -> tuple[Heart, Points]:
    """The heart in its place: behind the breast bone, on the diaphragm, mostly left; and its centroid."""
    rng = stream(seed, "heart")
    scale = float(np.clip(0.4 + 0.6 * size + rng.normal(-0.01, 0.07), 0.8, 1.25))
    across = rng.normal(13, 7)
    front = -body.half_depth + body.sternal_gap + 2
    room = body.spine(50) - 38 - front  # oesophagus and aorta lie between heart and spine
    for _ in range(2):
        heart = sample_heart(stream(seed, "shape"), size=scale, obesity=obesity)
        low, high, centroid, _ = heart.extent()
        if high[1] - low[1] <= room:
            break
        scale *= max(room / (high[1] - low[1]), 0.75)
    shift = np.array([across - centroid[0], front - low[1], -low[2]])
    return replace(heart, origin=heart.origin + shift), centroid + shift


def sample_great_vessels(seed: int, heart: Heart, body: Body) -> Vessels:
    """Great vessels and airways, hung on the heart's place."""
    rng = stream(seed, "vessels")
    o = heart.origin
    age = rng.uniform(0.85, 1.2)  # width and unfolding of the aorta
    ra = 15.5 * age

    def path(knots: list[tuple[float, float, float]], radii: list[float]) -> tuple[Points, Points]:
        base = np.asarray(knots, dtype=np.float64)
        base += rng.normal(0, 1.5, base.shape)
        curve = smooth_curve(base, 4.0)
        where = np.linspace(0, len(radii) - 1, len(curve))
        return curve, np.interp(where, np.arange(len(radii)), radii)

    def rel(dx: float, dy: float, dz: float) -> tuple[float, float, float]:
        return float(o[0] + dx), float(o[1] + dy), float(o[2] + dz)

    arch = o[2] + 82 + 12 * (age - 1) + rng.normal(0, 5)
    dx = 21 + rng.normal(0, 3)

    def front(z: float) -> float:
        return body.spine(z) - 24

    back = front(o[2] + 60)
    aorta = path(
        [
            rel(-2, -6, 2),
            rel(-12, -10, 20),
            rel(-17, -12, 42),
            (o[0] - 15, o[1] - 8, arch - 14),
            (2.0, (o[1] + back) / 2 - 8, arch),
            (dx, back - 18, arch - 4),
            (dx + 5, front(arch - 22), arch - 22),
            (dx + 2, front(arch - 70) + 3, arch - 70),
            (dx - 4, front(20) + 1, 20.0),
            (dx - 11, front(-40) - 6, -40.0),
            (dx - 15, front(-110) - 9, -110.0),
        ],
        [
            ra * 1.05,
            ra * 1.08,
            ra,
            ra,
            ra * 0.9,
            ra * 0.85,
            ra * 0.8,
            ra * 0.78,
            ra * 0.76,
            ra * 0.74,
            ra * 0.7,
        ],
    )
    split = rel(8, 8, 52)
    trunk = path([rel(14, -30, 14), rel(17, -26, 32), rel(15, -12, 46), split], [14, 14.5, 14, 13])
    right_pa = path([split, rel(-14, 10, 50), rel(-40, 12, 44), rel(-56, 16, 36)], [12, 11.5, 9.5, 7.5])
    left_pa = path([split, rel(28, 18, 56), rel(42, 26, 50), rel(47, 30, 36)], [12, 11, 9, 7])
    svc = path([rel(-36, -2, 30), rel(-34, -4, 55), rel(-34, -8, 80), rel(-32, -14, 105)], [10, 9.5, 9, 8])
    ivc = path(
        [rel(-30, 8, -14), rel(-31, 18, -36), (o[0] - 32, o[1] + 34, -20.0), (-26, 20.0, -80.0)],
        [12, 12, 12, 12],
    )
    lbv = path([rel(-32, -10, 92), rel(0, -22, 97), rel(28, -20, 108)], [6.5, 6, 6])
    branches = tuple(
        path(
            [(x0, y0, arch + 8), (x0 * 1.5, y0 - 2, arch + 35), (x0 * 2.0, y0 + 2, arch + 80)],
            [r, r * 0.9, r * 0.8],
        )
        for x0, y0, r in (
            (-8.0, (o[1] + back) / 2 - 18, 7.0),
            (6.0, (o[1] + back) / 2 - 6, 4.5),
            (14.0, back - 22, 5.0),
        )
    )
    veins = tuple(
        path(
            [rel(sx * 18, 26, 16 + dz), rel(sx * 40, 28, 14 + 1.6 * dz), rel(sx * 58, 30, 12 + 2.2 * dz)],
            [8, 6, 4],
        )
        for sx in (-1, 1)
        for dz in (8, -12)
    )
    oes = path(
        [
            (4, back - 20, arch + 90),
            (2, back - 20, arch),
            (2, back - 22, arch - 60),
            (8, back - 22, 20),
            (16, back - 34, -20),
        ],
        [7, 7.5, 8, 8, 9],
    )
    carina = (o[0] - 10, back - 30, arch - 30)
    wind = path([(0.0, back - 40, arch + 95), (-1.0, back - 38, arch + 40), carina], [9, 9, 8.5])
    rmb = path(
        [
            carina,
            (carina[0] - 22, carina[1] + 2, carina[2] - 20),
            (carina[0] - 38, carina[1] + 6, carina[2] - 48),
        ],
        [7, 6, 4.5],
    )
    lmb = path(
        [
            carina,
            (carina[0] + 28, carina[1] + 4, carina[2] - 20),
            (carina[0] + 52, carina[1] + 10, carina[2] - 38),
        ],
        [6.5, 5.5, 4.5],
    )

    def clear(airway: tuple[Points, Points]) -> tuple[Points, Points]:
        """Pushed to the back where it would run through the heart."""
        points, radii = airway
        for _ in range(12):
            p = points.astype(np.float32)
            points = points + (heart.sac(p[:, 0], p[:, 1], p[:, 2]) < radii + 4)[:, None] * np.array(
                [0.0, 3.0, 0.0]
            )
        points[:, 2] = np.maximum(points[:, 2], max(body.domes) + 9)
        return points, radii

    wind, rmb, lmb = clear(wind), clear(rmb), clear(lmb)
    lobar = []
    for end in (rmb[0][-1], lmb[0][-1]):
        side = np.sign(end[0] - carina[0])
        for d in ((20, -26, 14), (16, 4, -45), (24, 24, -25), (14, 8, 35)):
            tip = end + np.array([side * d[0], d[1], d[2]]) * rng.uniform(0.6, 1.2)
            tip[2] = max(tip[2], max(body.domes) + 8)
            branch, width = path(
                [tuple(end), tuple(0.5 * (end + tip) + rng.normal(0, 3, 3)), tuple(tip)], [4, 3, 1.6]
            )
            p = branch.astype(np.float32)
            free = heart.sac(p[:, 0], p[:, 1], p[:, 2]) > 7
            free &= branch[:, 2] > max(body.domes) + 6
            if free.sum() > 2:
                lobar.append((branch[free], width[free]))
    return Vessels(
        aorta=aorta,
        trunk=trunk,
        right_pulmonary=right_pa,
        left_pulmonary=left_pa,
        superior_cava=svc,
        inferior_cava=ivc,
        left_brachiocephalic=lbv,
        arch_branches=branches,
        pulmonary_veins=veins,
        oesophagus=oes,
        airways=(wind, rmb, lmb, *lobar),
    )


def sample_anatomy(seed: int) -> Anatomy:
    """Draw the whole patient from a seed (about 50 ms)."""
    body, size, obesity = sample_body(seed)
    heart, centroid = place_heart(seed, body, size, obesity)
    vessels = sample_great_vessels(seed, heart, body)
    frame = sample_frame(seed)
    coronaries = sample_coronaries(stream(seed, "coronary"), heart)
    radius = float(stream(seed, "calibre").uniform(1.4, 2.1))
    target, lesions = sample_lesions(stream(seed, "lesions"), coronaries, radius)
    distractors = sample_distractors(
        stream(seed, "distract"), heart, vessels.aorta, vessels.airways, body.half_depth, target
    )
    rng = stream(seed, "texture")
    return Anatomy(
        seed=seed,
        frame=frame,
        body=body,
        heart=heart,
        heart_centre=frame.to_lps(centroid),
        vessels=vessels,
        coronaries=coronaries,
        coronary_radius=radius,
        lesions=lesions,
        distractors=distractors,
        target_score=target,
        trees=sample_vessels(
            stream(seed, "lungs"), body.half_width, body.half_depth, body.apex, heart.origin
        ),
        texture=Waves.random(rng, count=48, wavelength=(9, 30), sd=1.0),
        mottle=Waves.random(rng, count=24, wavelength=(25, 140), sd=1.0),
    )
