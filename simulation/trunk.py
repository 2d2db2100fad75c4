"""Painting the trunk: table, skin, fat, muscle, spine, ribs and breast bone."""

from __future__ import annotations

import numpy as np

from .anatomy import Anatomy
from .body import Body, Breast
from .shapes import Array, Canvas, Points, capsule, ellipsoid, smooth_min


def paint_trunk(canvas: Canvas, anatomy: Anatomy) -> None:
    """Everything outside the rib cage's inside, but the bones."""
    _paint_table(canvas, anatomy.body)
    _paint_wall(canvas, anatomy)


def paint_bones(canvas: Canvas, anatomy: Anatomy) -> None:
    """Spine, ribs, costal cartilage, breast bone, collar bones and shoulder blades."""
    _paint_spine(canvas, anatomy)
    _paint_cage(canvas, anatomy.body)


def trunk_norm(x: Array, y: Array) -> Array:
    """Norm between an ellipse's and a rounded box's: what a trunk looks like in cross-section."""
    x2, y2 = x * x, y * y
    out: Array = np.float32(0.65) * np.sqrt(x2 + y2) + np.float32(0.35) * np.sqrt(np.sqrt(x2 * x2 + y2 * y2))
    return out


def _paint_table(canvas: Canvas, b: Body) -> None:
    if b.table is None:
        return
    t = b.table
    side = -1.0 if b.prone else 1.0
    y = b.half_depth + b.muscle + 0.6 * b.fat + 6 + t.gap + t.pad
    low, high = sorted((side * (y - 70 - t.pad), side * (y + t.thickness + 12)))
    box = canvas.box(np.array([-230.0, low, -1000.0]), np.array([230.0, high, 1000.0]))
    if box is None:
        return
    px, py, _ = canvas.at(box)
    depth = np.sqrt(px * px + np.square(np.float32(side) * py - np.float32(y - t.curve))) - np.float32(
        t.curve
    )
    beyond = np.abs(px) - np.float32(215)
    half = np.float32(t.thickness / 2)
    canvas.shell(box, np.maximum(np.abs(depth - half) - half, beyond), 2.4, t.hu, -900.0)
    if t.pad:
        half = np.float32(t.pad / 2)
        canvas.shell(box, np.maximum(np.abs(depth + half) - half, beyond), 1.0, -300.0, -930.0)


def _arm(b: Body, side: float, raised: bool, outer_x: float) -> Points:
    if raised:
        return np.array(
            [[side * (outer_x - 22), 10.0, b.apex - 25], [side * (outer_x + 34), -4.0, b.apex + 160]]
        )
    return np.array([[side * (outer_x - 12), 6.0, b.apex - 20], [side * (outer_x + 48), 14.0, -300.0]])


def _paint_wall(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    outer_x = b.half_width + b.muscle + b.fat
    x, y, z = canvas.x, canvas.y, canvas.z
    flare = np.clip((z - np.float32(0.45 * b.apex)) * np.float32(1 / b.apex), 0, 0.7)
    wide = np.float32(outer_x) * (np.float32(1) + np.float32(0.16) * flare * flare + np.float32(0.05) * flare)
    front, back = b.front(z), b.back(z)
    thick = b.muscle + 0.6 * b.fat
    deep = np.maximum(np.float32(0.5) * (back - front), 45) + np.float32(thick)
    norm = trunk_norm(x / wide, (y - np.float32(6) - np.float32(0.5) * (front + back)) / deep)
    d = (norm - 1) * np.float32(min(outer_x, b.half_depth + thick))
    inner = d + np.float32(b.fat) * (
        np.float32(0.6) + np.float32(0.4) * np.minimum(np.abs(x) * np.float32(1 / outer_x), 1)
    )
    for side in (-1.0, 1.0):
        chest = (side * 0.5 * b.half_width, b.front(0.6 * b.apex) - 8, 0.6 * b.apex)
        blade = (side * 0.72 * b.half_width, 0.62 * b.half_depth, 0.66 * b.apex)
        for centre, radii in (
            (chest, (54.0, 8 + b.pectoral, 46.0)),
            (blade, (40 + b.muscle, 20 + b.muscle, 60.0)),
        ):
            box = canvas.around(centre, tuple(r + 20 for r in radii))
            if box is not None:
                muscle = ellipsoid(*canvas.at(box), centre, radii)
                inner[box] = smooth_min(inner[box], muscle, 12.0)
                d[box] = smooth_min(d[box], muscle - np.float32(0.5 * b.fat + 2), 20.0)
    for breast in b.breasts:
        centre, radii = _breast(b, breast)
        box = canvas.around(centre, tuple(r + 20 for r in radii))
        if box is not None:
            d[box] = smooth_min(d[box], ellipsoid(*canvas.at(box), centre, radii), 24.0)
    arms = [_arm(b, side, raised, outer_x) for side, raised in zip((-1.0, 1.0), b.arms, strict=True)]
    for arm in arms:
        _limb(canvas, arm[0], arm[1], 42 + 0.5 * b.fat, d)
    everything = (slice(None), slice(None), slice(None))
    mottle = anatomy.mottle.on_grid(canvas.geometry)
    canvas.shell(everything, d, 2.0, 25.0, np.float32(b.fat_hu) + np.float32(4) * mottle)
    for breast in b.breasts:
        _paint_gland(canvas, b, breast, mottle)
    # sheets of fat between the layers of muscle
    fatty = np.clip(
        np.float32(1.6) - np.abs(np.mod(inner + np.float32(3) * mottle, 19) - np.float32(9)), 0, 1
    )
    fatty *= np.clip(np.float32(0.6) + mottle, 0, 1)
    canvas.paint(
        everything, inner, np.float32(b.muscle_hu) - fatty * np.float32(100) + np.float32(4) * mottle
    )
    for side, arm in zip((-1.0, 1.0), arms, strict=True):
        canvas.tube(arm, 33.0, b.muscle_hu)
        canvas.hollow([(arm, 11.0)], 4.5, b.bone_hu[0], 20.0)
        canvas.ellipsoid((side * (b.half_width + 4), -6.0, b.apex - 62), (16.0, 24.0, 30.0), b.fat_hu)


def _breast(b: Body, breast: Breast) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    z = 0.33 * b.apex
    r = breast.radius
    y = b.front(z) - b.muscle - 0.6 * b.fat + 0.55 * r - breast.reach
    return (breast.side * 0.52 * b.half_width, y, z), (r, r * 0.62, r * 0.95)


def _paint_gland(canvas: Canvas, b: Body, breast: Breast, mottle: Array) -> None:
    centre, radii = _breast(b, breast)
    shift = (centre[0], centre[1] - 0.1 * radii[1], centre[2])
    box = canvas.around(shift, radii)
    if box is None:
        return
    x, y, z = canvas.at(box)
    dense = np.clip(np.float32(breast.dense) * (np.float32(1.1) + np.float32(0.5) * mottle[box]), 0, 1)
    gland = ellipsoid(x, y, z, shift, tuple(0.3 * r + 0.4 * r * breast.dense**0.5 for r in radii))
    canvas.paint(box, gland, np.float32(b.fat_hu) + dense * np.float32(40 - b.fat_hu))
    if breast.implant is not None:
        implant = ellipsoid(x, y, z, centre, (0.75 * radii[0], 0.55 * radii[1], 0.75 * radii[2]))
        canvas.shell(box, implant, 1.0, 90.0, breast.implant)


def _limb(canvas: Canvas, low: Points, high: Points, radius: float, d: Array) -> None:
    box = canvas.box(np.minimum(low, high) - radius - 20, np.maximum(low, high) + radius + 20)
    if box is not None:
        d[box] = smooth_min(d[box], capsule(*canvas.at(box), low, high, radius, radius * 0.9), 30.0)


def _paint_spine(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    cortical, marrow = b.bone_hu
    box = canvas.box(
        np.array([-45.0, b.spine_y - 30 - b.kyphosis * 2.6, -1000.0]),
        np.array([45.0, b.spine_y + 80, 1000.0]),
    )
    if box is None:
        return
    x, y, z = canvas.at(box)
    yc = y - b.spine(z)
    mottle = anatomy.mottle.on_grid(canvas.geometry)[box]
    texture = anatomy.texture.on_grid(canvas.geometry)[box]
    radial = np.sqrt(np.square(x * np.float32(1 / 1.2)) + yc * yc)
    # muscles along the spine
    beside = np.square((np.abs(x) - 22) * np.float32(0.7)) + np.square(yc - 46)
    canvas.paint(box, np.sqrt(beside) - np.float32(16), b.muscle_hu)
    canvas.paint(box, radial - np.float32(18), b.muscle_hu - 20)
    half = np.float32(b.vertebra / 2)
    u = np.abs(np.mod(z + np.float32(b.phase), np.float32(b.vertebra)) - half)
    plate = half - np.float32(2.2)
    # waisted bodies, and bone growing out beside the discs, mostly in front and on the right
    outgrowth = np.float32(b.osteophyte) * np.clip(np.float32(0.6) + mottle - yc * np.float32(0.05), 0, 1)
    edge = np.maximum(u - (plate - np.float32(7)), 0) * np.float32(1 / 7)
    waist = np.float32(15.5) + (np.float32(1.2) + outgrowth) * np.minimum(edge * edge, 1)
    canvas.paint(box, radial - np.float32(16), 85.0)
    spongy = np.float32(marrow) * (np.float32(1) + np.float32(0.1) * mottle + np.float32(0.12) * texture)
    canvas.shell(box, np.maximum(radial - waist, u - plate), 1.2, cortical * 0.8, spongy)
    canal = np.sqrt(np.square(x * np.float32(0.85)) + np.square(yc - 25))
    arch = np.maximum(canal - np.float32(13), u - np.float32(8))
    canvas.shell(box, arch, 1.5, 0.7 * cortical, spongy + np.float32(60))
    spinous = np.maximum(
        np.maximum(np.abs(x) - np.float32(3.5), np.abs(yc - np.float32(47)) - np.float32(13)),
        np.abs(u - 3) - np.float32(6),
    )
    canvas.shell(box, spinous, 1.3, 0.6 * cortical, spongy)
    transverse = np.maximum(
        np.abs(x) - np.float32(33),
        np.sqrt(np.square(yc - np.float32(22) - np.float32(0.3) * np.abs(x)) + u * u) - np.float32(6),
    )
    canvas.shell(box, transverse, 1.3, 0.6 * cortical, spongy)
    canvas.paint(box, canal - np.float32(8.5), 20.0)
    canvas.paint(box, canal - np.float32(5.5), 38.0)


def _paint_cage(canvas: Canvas, b: Body) -> None:
    cortical, marrow = b.bone_hu
    ribs = rib_curves(b)
    canvas.hollow([(cartilage, 5.6) for _, cartilage in ribs if len(cartilage) > 1], 1.4, *b.cartilage_hu)
    bones: list[tuple[Points, Points | float]] = [(bone, 4.8) for bone, _ in ribs]
    for side in (-1.0, 1.0):
        clavicle = np.array(
            [
                (side * 22, b.front(b.apex) - 8, 0.86 * b.apex),
                (side * 62, b.front(b.apex) - 10, b.apex - 10),
                (side * (b.half_width - 5), b.front(b.apex) + 30, b.apex + 10),
            ]
        )
        bones.append((clavicle, 5.5))
    canvas.hollow(bones, 1.3, cortical, marrow)
    _paint_breast_bone(canvas, b)
    begins, ends = [], []
    for side in (-1.0, 1.0):
        for i, low in enumerate(np.linspace(0.42, 0.95, 18)):
            spread = 0.5 + 0.5 * i / 17
            z = low * b.apex
            middle, deep = 0.5 * (b.front(z) + b.back(z)), 0.5 * (b.back(z) - b.front(z))
            inner = np.array([side * 0.6 * b.half_width, middle + 0.8 * deep + 12, z])
            begins.append(inner)
            ends.append(inner + np.array([side * 54 * spread, -30 * spread, 6.0]))
    wide = np.full(len(begins), 2.4)
    canvas.sticks(np.stack(begins), np.stack(ends), wide, wide, 0.7 * cortical)


def _paint_breast_bone(canvas: Canvas, b: Body) -> None:
    cortical, marrow = b.bone_hu
    bottom, top = 0.16 * b.apex, 0.84 * b.apex
    low = np.array([-34.0, b.front(bottom) - 20, bottom - 5])
    box = canvas.box(low, np.array([34.0, b.front(top) + 20, top + 5]))
    if box is None:
        return
    px, py, pz = canvas.at(box)
    wide = np.float32(17) + np.float32(12) * np.clip((pz - np.float32(0.7 * b.apex)) * np.float32(0.05), 0, 1)
    wide -= np.float32(7) * np.clip((np.float32(0.27 * b.apex) - pz) * np.float32(0.06), 0, 1)
    across = np.abs(px) - wide
    ahead = np.abs(py - b.front(pz) + np.float32(8)) - np.float32(6.2)
    middle, half = np.float32(0.5 * (bottom + top)), np.float32(0.5 * (top - bottom))
    plate = np.maximum(smooth_max(across, ahead, 5.0), np.abs(pz - middle) - half)
    # the joint between the two parts of the bone
    joint = np.abs(pz - np.float32(0.66 * b.apex)) - np.float32(2)
    canvas.shell(box, plate, 1.3, 0.6 * cortical, marrow * 0.8)
    canvas.paint(box, np.maximum(plate, joint), 90.0)


def smooth_max(a: Array, b: Array, k: float) -> Array:
    """Intersection of two signed distances whose edge is rounded over about `k` mm."""
    out: Array = -smooth_min(-a, -b, k)
    return out


def rib_curves(b: Body) -> list[tuple[Points, Points]]:
    """Per rib, lowest first: centrelines of bone and cartilage, patient coordinates, mm.

    The two lowest pairs end free; the next three end in the costal arch, the others at the breast bone.
    """
    out = []
    count = 12
    for i in range(count):
        start = -45 + i * (b.apex + 45 - 6) / (count - 1)
        drop = 92 - 52 * i / count
        last, joint = (100, 100) if i < 2 else (152, 122) if i < 5 else (173, 128)
        phi = np.deg2rad(np.linspace(12, last, 32))
        fall = np.sin(np.minimum(0.75 * phi, np.pi / 2)) ** 1.4
        rise = (14 + 40 * (1 - i / 11)) * np.clip((phi - np.deg2rad(joint)) / 0.85, 0, 1.2)
        z = start - drop * fall + rise
        narrow = np.sqrt(np.clip(1 - np.clip(z / b.apex, 0, 0.985) ** b.rate, 0.12, 1))
        bulge = 1 / trunk_norm(np.sin(phi), np.cos(phi))
        middle, half = 0.5 * (b.front(z) + b.back(z)), 0.5 * (b.back(z) - b.front(z))
        for side in (-1.0, 1.0):
            ring = np.stack(
                [
                    side * (b.half_width * narrow * bulge + 6) * np.sin(phi),
                    middle + (half * narrow * bulge + 6) * np.cos(phi),
                    z,
                ],
                axis=1,
            )
            cut = int(np.searchsorted(phi, np.deg2rad(joint))) + 1
            out.append((ring[:cut], ring[cut - 1 :]))
    return out
