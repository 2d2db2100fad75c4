"""From an `Anatomy` to Hounsfield units on any grid."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from ..imaging import Geometry
from .anatomy import Anatomy
from .coronary import Lesion
from .shapes import Array, Box, Canvas, Frame, Points, capsule, ellipsoid, smooth_min

SLAB_VOXELS = 1_000_000
"""Voxels painted at a time."""


# ---------------------------------------------------------------- grids


def working_grid(geometry: Geometry) -> tuple[Geometry, int, int]:
    """The grid anatomy is painted on: twice as coarse in-plane where pixels are fine, finer along z.

    Returns:
        (grid, in-plane factor 1 or 2, sub-slices per slice).
    """
    dz, dy, dx = geometry.spacing
    nz, ny, nx = geometry.shape
    f = 2 if max(dy, dx) < 1.0 else 1
    sub = max(int(np.ceil(dz / (1.3 * f * max(dy, dx)))), 1)
    shape = (nz * sub, -(-ny // f), -(-nx // f))
    spacing = (dz / sub, dy * f, dx * f)
    start = geometry.to_lps([-0.5 + 0.5 / sub, (f - 1) / 2, (f - 1) / 2])
    origin = (float(start[0]), float(start[1]), float(start[2]))
    return Geometry(shape=shape, spacing=spacing, origin=origin, axes=geometry.axes), f, sub


def slice_profile(slices: int, sub: int, increment: float, thickness: float) -> npt.NDArray[np.float32]:
    """(slices, slices * sub) weights that average sub-slices over each slice's thickness."""
    centre = np.arange(slices)[:, None] * increment
    position = ((np.arange(slices * sub) + 0.5) / sub - 0.5)[None, :] * increment
    step = increment / sub
    low = np.maximum(centre - thickness / 2, position - step / 2)
    high = np.minimum(centre + thickness / 2, position + step / 2)
    weight = np.maximum(high - low, 0) + 1e-9 * (np.abs(centre - position) <= step)
    out: npt.NDArray[np.float32] = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return out


def to_target(field: Array, geometry: Geometry, factor: int, profile: npt.NDArray[np.float32]) -> Array:
    """Bring a field from the working grid onto the wanted grid, linear in-plane."""
    if profile.shape[0] != profile.shape[1] or not np.allclose(profile, np.eye(len(profile))):
        field = np.tensordot(profile, field, axes=1)
    if factor == 1:
        return field
    out = np.empty(geometry.shape, dtype=np.float32)
    for plane, target in zip(field, out, strict=True):
        target[:] = _double(_double(plane, geometry.shape[1]).T, geometry.shape[2]).T
    return out


def _double(a: Array, size: int) -> Array:
    """Linear interpolation to twice as many rows, cut to `size`; the outermost rows are repeated."""
    out = np.empty((2 * len(a), a.shape[1]), dtype=np.float32)
    near, far = np.float32(0.75) * a, np.float32(0.25) * a
    out[2::2] = near[1:] + far[:-1]
    out[1:-1:2] = near[:-1] + far[1:]
    out[0], out[-1] = a[0], a[-1]
    return out[:size]


# ---------------------------------------------------------------- anatomy


def draw(anatomy: Anatomy, geometry: Geometry) -> tuple[Array, Array]:
    """The patient on a grid, without calcium, blur and noise, slab by slab to stay in the cache.

    Returns:
        float32 HU and signed distance (mm) to the heart's sac, both (z, y, x).
    """
    nz, ny, nx = geometry.shape
    hu, sac = np.empty(geometry.shape, dtype=np.float32), np.empty(geometry.shape, dtype=np.float32)
    depth = max(SLAB_VOXELS // (ny * nx), 1)

    def one(first: int) -> None:
        last = min(first + depth, nz)
        start = geometry.to_lps([float(first), 0.0, 0.0])
        slab = Geometry(
            shape=(last - first, ny, nx),
            spacing=geometry.spacing,
            origin=(float(start[0]), float(start[1]), float(start[2])),
            axes=geometry.axes,
        )
        canvas = Canvas(anatomy.frame, slab)
        sac[first:last] = paint_patient(canvas, anatomy)
        hu[first:last] = canvas.hu

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(0, nz, depth)))
    return hu, sac


def paint_patient(canvas: Canvas, anatomy: Anatomy) -> Array:
    """Paint the whole patient; returns the signed distance (mm) to the heart's sac on the canvas."""
    _paint_table(canvas, anatomy)
    _paint_trunk(canvas, anatomy)
    _paint_lungs_and_abdomen(canvas, anatomy)
    _paint_mediastinum(canvas, anatomy)
    _paint_lung_vessels(canvas, anatomy)
    _paint_spine(canvas, anatomy)
    _paint_cage(canvas, anatomy)
    sac = _paint_heart(canvas, anatomy)
    _paint_great_vessels(canvas, anatomy)
    _paint_coronaries(canvas, anatomy)
    return sac


def _squared_norm_mix(x: Array, y: Array) -> Array:
    """Norm between an ellipse's and a rounded box's: what a trunk looks like in cross-section."""
    x2, y2 = x * x, y * y
    out: Array = np.float32(0.65) * np.sqrt(x2 + y2) + np.float32(0.35) * np.sqrt(np.sqrt(x2 * x2 + y2 * y2))
    return out


def _paint_table(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    if b.table is None:
        return
    gap, curve, hu = b.table
    y = b.half_depth + b.muscle + 0.6 * b.fat + 6 + gap
    box = canvas.box(np.array([-230.0, y - 60, -1000.0]), np.array([230.0, y + 40, 1000.0]))
    if box is None:
        return
    px, py, _ = canvas.at(box)
    d = np.abs(np.sqrt(px * px + np.square(py - np.float32(y + 12 - curve))) - np.float32(curve))
    canvas.paint(box, np.maximum(d - np.float32(12), np.abs(px) - np.float32(215)), -900.0)
    canvas.paint(
        box, np.maximum(np.abs(d - np.float32(12)) - np.float32(1.2), np.abs(px) - np.float32(215)), hu
    )


def _paint_trunk(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    outer_x = b.half_width + b.muscle + b.fat
    outer_y = b.half_depth + b.muscle + 0.6 * b.fat
    inner_x, inner_y = outer_x - b.fat, outer_y - 0.6 * b.fat
    x, y, z = canvas.x, canvas.y, canvas.z
    flare = np.clip((z - np.float32(0.45 * b.apex)) * np.float32(1 / b.apex), 0, 0.7)
    wide = np.float32(1) + np.float32(0.16) * flare * flare + np.float32(0.05) * flare
    back = y - np.float32(6)
    everything = (slice(None), slice(None), slice(None))
    d = (
        _squared_norm_mix(x / (wide * np.float32(outer_x)), back * np.float32(1 / outer_y)) - 1
    ) * np.float32(min(outer_x, outer_y))
    radius, reach = b.breast
    if radius:
        for side in (-1.0, 1.0):
            centre = (side * 0.52 * b.half_width, -outer_y + 0.55 * radius - reach + 8, 0.3 * b.apex)
            box = canvas.around(centre, (radius + 20, radius + 20, radius + 20))
            if box is not None:
                breast = ellipsoid(*canvas.at(box), centre, (radius, radius * 0.62, radius * 0.95))
                d[box] = smooth_min(d[box], breast, 24.0)
    for side in (-1.0, 1.0):
        low = np.array([side * (outer_x - 22), 4.0, b.apex - 25])
        high = np.array([side * (outer_x + 34), -14.0, b.apex + 160])
        if b.arms_down:
            low = np.array([side * (outer_x - 12), 0.0, b.apex - 20])
            high = np.array([side * (outer_x + 48), 14.0, -300.0])
        _limb(canvas, low, high, 42 + 0.5 * b.fat, d)
    skin = canvas.coverage(d)
    canvas.hu += skin * (np.float32(25) - canvas.hu)
    canvas.paint(everything, d + np.float32(2.0), b.fat_hu)
    if radius:
        for side in (-1.0, 1.0):
            centre = (side * 0.5 * b.half_width, -outer_y + 0.45 * radius - reach + 8, 0.3 * b.apex)
            canvas.ellipsoid(centre, (radius * 0.5, radius * 0.25, radius * 0.45), b.fat_hu * 0.35)
    mottle = anatomy.mottle.on_grid(canvas.geometry)
    inner = (
        _squared_norm_mix(x / (wide * np.float32(inner_x)), back * np.float32(1 / inner_y)) - 1
    ) * np.float32(min(inner_x, inner_y))
    # sheets of fat between the layers of muscle
    fatty = np.clip(
        np.float32(1.6) - np.abs(np.mod(inner + np.float32(3) * mottle, 19) - np.float32(9)), 0, 1
    )
    fatty *= np.clip(np.float32(0.6) + mottle, 0, 1)
    canvas.paint(
        everything, inner, np.float32(b.muscle_hu) - fatty * np.float32(100) + np.float32(4) * mottle
    )
    for side in (-1.0, 1.0):
        low = np.array([side * (outer_x - 22), 4.0, b.apex - 25])
        high = np.array([side * (outer_x + 34), -14.0, b.apex + 160])
        if b.arms_down:
            low = np.array([side * (outer_x - 12), 0.0, b.apex - 20])
            high = np.array([side * (outer_x + 48), 14.0, -300.0])
        canvas.tube(np.stack([low, high]), 33.0, b.muscle_hu)
        canvas.tube(np.stack([low, high]), 11.0, b.bone_hu[0])
        canvas.tube(np.stack([low, high]), 6.5, 20.0)
        canvas.ellipsoid((side * (b.half_width + 4), -6.0, b.apex - 62), (18.0, 26.0, 34.0), b.fat_hu)


def _limb(canvas: Canvas, low: Points, high: Points, radius: float, d: Array) -> None:
    box = canvas.box(np.minimum(low, high) - radius - 20, np.maximum(low, high) + radius + 20)
    if box is not None:
        d[box] = smooth_min(d[box], capsule(*canvas.at(box), low, high, radius, radius * 0.9), 30.0)


def _cavity(anatomy: Anatomy, x: Array, y: Array, z: Array) -> tuple[Array, Array]:
    """Signed distance (mm) to the inside of the rib cage, and its radial coordinate."""
    b = anatomy.body
    e = _squared_norm_mix(x * np.float32(1 / b.half_width), y * np.float32(1 / b.half_depth))
    up = np.clip(z * np.float32(1 / b.apex), 0, 1)
    taper = np.sqrt(np.float32(1) - up ** np.float32(b.rate))
    out: Array = (e - taper) * np.float32(0.8 * b.half_depth)
    return out, e


def _paint_lungs_and_abdomen(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    box = canvas.box(
        np.array([-b.half_width, -b.half_depth, -1000.0]), np.array([b.half_width, b.half_depth, b.apex])
    )
    if box is None:
        return
    x, y, z = canvas.at(box)
    d, e = _cavity(anatomy, x, y, z)
    right, left, middle = b.domes
    height = np.float32(middle) + np.float32(right - middle) * np.exp(
        -np.square((x + np.float32(0.48 * b.half_width)) * np.float32(2.1 / b.half_width))
    )
    height += np.float32(left - middle) * np.exp(
        -np.square((x - np.float32(0.55 * b.half_width)) * np.float32(2.4 / b.half_width))
    )
    e2 = e * e
    e8 = np.square(np.square(e2))
    height -= np.float32(80) * e8 * e2 + np.float32(34) * np.square(
        np.maximum(y, 0) * np.float32(1 / b.half_depth)
    )
    under = (z - height) * np.float32(0.8)
    texture = anatomy.texture.on_grid(canvas.geometry)[box]
    mottle = anatomy.mottle.on_grid(canvas.geometry)[box]
    lung = (
        np.float32(b.lung_hu)
        + np.float32(b.lung_gradient) * y
        + np.float32(8) * texture
        + np.float32(7) * mottle
    )
    canvas.paint(box, np.maximum(d, -under), lung)
    inside = np.maximum(d, under)
    canvas.paint(box, inside, b.muscle_hu)
    canvas.paint(box, inside + np.float32(3), b.fat_hu)
    low = canvas.box(
        np.array([-b.half_width, -b.half_depth, -1000.0]), np.array([b.half_width, b.half_depth, 70.0])
    )
    if low is None:
        return
    # the lower part of the same box
    part = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(low, box, strict=True))
    under, d = under[part], d[part]
    x, y, z = canvas.at(low)
    solid = np.maximum(d + np.float32(4), under + np.float32(3.5))
    liver = np.float32(0.8) * (
        x - np.float32(0.35 * b.half_width) + np.float32(0.34) * (y + np.float32(b.half_depth))
    )
    liver += np.float32(3) * mottle[part]
    size, gas, fluid = b.stomach
    centre = (0.5 * b.half_width, -0.1 * b.half_depth, min(b.domes[1], b.domes[2]) - size + 4)
    stomach = np.maximum(ellipsoid(x, y, z, centre, (size, size * 1.15, size)), solid)
    spleen = ellipsoid(
        x,
        y,
        z,
        (0.66 * b.half_width, 0.5 * b.half_depth, -42.0),
        (0.25 * b.half_width, 0.4 * b.half_depth, 55.0),
    )
    canvas.paint(low, np.maximum(liver, solid), np.float32(b.liver_hu) + np.float32(2) * mottle[part])
    canvas.paint(low, np.maximum(spleen, solid), 48.0)
    canvas.paint(low, stomach, 35.0)
    inner = stomach + np.float32(4)
    canvas.paint(low, inner, fluid)
    level = np.float32(centre[1] + (2 * gas - 1) * size)
    canvas.paint(low, np.maximum(inner, y - level), -950.0)


def _paint_mediastinum(canvas: Canvas, anatomy: Anatomy) -> None:
    b, v, heart = anatomy.body, anatomy.vessels, anatomy.heart
    fat, m = b.fat_hu, b.mediastinum
    o = heart.origin
    box = canvas.around((o[0], o[1], o[2]), (110.0, 110.0, 110.0))
    if box is not None:
        x, y, z = canvas.at(box)
        around = heart.sac(x, y, z) - np.float32(0.6 * m)
        apex = o + heart.axes[0] * 56
        pad = ellipsoid(x, y, z, (apex[0], apex[1], 4 + m), (8 + 2.5 * m, 12 + 2.5 * m, 10 + 2 * m))
        around = smooth_min(around, pad, 24.0)
        pad = ellipsoid(x, y, z, (o[0] - 38, o[1] - 26, 8 + m), (5 + m, 7 + 1.5 * m, 6 + m))
        canvas.paint(box, smooth_min(around, pad, 24.0), fat)
    canvas.ellipsoid((6.0, b.spine(-40) - 16, -75.0), (32.0, 22.0, 85.0), fat)
    canvas.ellipsoid((1.0, -6.0, o[2] + 112), (22 + 1.5 * m, 0.52 * b.half_depth, 88.0), fat)
    front = canvas.box(np.array([-40.0, -b.half_depth - 5, 20.0]), np.array([50.0, o[1] + 10, b.apex]))
    if front is not None:
        x, y, z = canvas.at(front)
        width = np.float32(1.0 + 0.4 * m) + np.float32(0.3) * np.maximum(y + np.float32(b.half_depth - 22), 0)
        width = np.minimum(width, np.float32(17 + m))
        near = np.maximum(np.abs(x - np.float32(5)) - width, -np.minimum(z - 20, np.float32(b.apex) - z))
        near = np.maximum(near, np.maximum(-np.float32(b.half_depth + 5) - y, y - np.float32(o[1] + 10)))
        canvas.paint(front, near, fat)
    rear = canvas.box(np.array([-40.0, o[1], -60.0]), np.array([50.0, b.spine_y + 20, o[2] + 60]))
    if rear is not None:
        x, y, z = canvas.at(rear)
        near = np.maximum(
            np.abs(x - np.float32(9)) - np.float32(7 + m),
            np.abs(y - np.float32((o[1] + b.spine_y) / 2 + 10)) - np.float32(abs(b.spine_y - o[1]) / 2 + 10),
        )
        canvas.paint(
            rear, np.maximum(near, np.abs(z - np.float32(o[2] / 2 + 22)) - np.float32(o[2] / 2 + 28)), fat
        )
    for points, radii in (
        v.aorta,
        v.trunk,
        v.superior_cava,
        v.oesophagus,
        v.airways[0],
        *v.arch_branches,
        v.left_brachiocephalic,
    ):
        canvas.tube(points[::2], radii[::2] + 2 + 0.7 * m, fat)
    for points, radii in (v.right_pulmonary, v.left_pulmonary, *v.airways[1:3], *v.pulmonary_veins):
        canvas.tube(points[::2], radii[::2] + 1 + 0.3 * m, fat)


def _paint_lung_vessels(canvas: Canvas, anatomy: Anatomy) -> None:
    limit = 0.3 * canvas.edge
    for tree in anatomy.trees:
        for i in range(1, len(tree.points)):
            j = tree.parent[i]
            if tree.radius[j] < limit:
                continue
            canvas.tube(
                tree.points[[j, i]],
                np.array([min(tree.radius[j], 1.6 * tree.radius[i]), tree.radius[i]]),
                anatomy.body.blood_hu,
            )


def _paint_spine(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    cortical, marrow = b.bone_hu
    box = canvas.box(np.array([-45.0, b.spine_y - 50, -1000.0]), np.array([45.0, b.spine_y + 80, 1000.0]))
    if box is None:
        return
    x, y, z = canvas.at(box)
    bend = np.clip((z - np.float32(90)) * np.float32(1 / 120), -1.6, 1.6)
    yc = y - np.float32(b.spine_y) + np.float32(b.kyphosis) * bend * bend
    mottle = anatomy.mottle.on_grid(canvas.geometry)[box]
    radial = np.sqrt(np.square(x * np.float32(1 / 1.12)) + yc * yc)
    # muscles along the spine
    beside = np.square((np.abs(x) - 20) * np.float32(0.75)) + np.square(yc - 48)
    canvas.paint(box, np.sqrt(beside) - np.float32(15), b.muscle_hu)
    canvas.paint(box, radial - np.float32(19), b.muscle_hu - 20)
    period = 24.5
    u = np.abs(np.mod(z + np.float32(b.phase), np.float32(period)) - np.float32(period / 2))
    waist = np.float32(17.5) - np.float32(0.022) * np.square(np.float32(10) - u)
    body = np.maximum(radial - waist, u - np.float32(10))
    canvas.paint(box, radial - np.float32(16.5), 85.0)
    canvas.paint(box, body, cortical * 0.75)
    canvas.paint(box, body + np.float32(1.3), np.float32(marrow) + np.float32(18) * mottle)
    canal = np.sqrt(np.square(x * np.float32(0.85)) + np.square(yc - 26))
    arch = np.maximum(canal - np.float32(13), u - np.float32(9))
    canvas.paint(box, arch, 0.55 * cortical)
    spinous = np.maximum(
        np.maximum(np.abs(x) - np.float32(3.5), np.abs(yc - np.float32(48)) - np.float32(13)),
        np.abs(u - 3) - np.float32(6),
    )
    canvas.paint(box, spinous, 0.5 * cortical)
    transverse = np.maximum(
        np.abs(x) - np.float32(32),
        np.sqrt(np.square(yc - np.float32(22) - np.float32(0.25) * np.abs(x)) + u * u) - np.float32(6),
    )
    canvas.paint(box, transverse, 0.5 * cortical)
    canvas.paint(box, transverse + np.float32(1.8), marrow)
    canvas.paint(box, canal - np.float32(8.5), 20.0)
    canvas.paint(box, canal - np.float32(5.5), 38.0)


def _paint_cage(canvas: Canvas, anatomy: Anatomy) -> None:
    b = anatomy.body
    cortical, marrow = b.bone_hu
    for tube in rib_curves(anatomy):
        bone, cartilage = tube
        canvas.tube(cartilage, 6.0, 105.0 if b.phase < 18 else 190.0)
        canvas.tube(cartilage, 4.8, 105.0)
        canvas.tube(bone, 4.8, cortical)
        canvas.tube(bone, 3.6, marrow)
    y = -b.half_depth - 6
    box = canvas.box(np.array([-30.0, y - 15, 0.0]), np.array([30.0, y + 40, b.apex]))
    if box is not None:
        px, py, pz = canvas.at(box)
        slope = np.float32(y) + np.float32(0.18) * np.maximum(pz - np.float32(0.4 * b.apex), 0)
        wide = np.float32(14) + np.float32(14) * np.clip(
            (pz - np.float32(0.72 * b.apex)) * np.float32(0.05), 0, 1
        )
        plate = np.maximum(np.abs(px) - wide, np.abs(py - slope) - np.float32(5.5))
        plate = np.maximum(plate, np.abs(pz - np.float32(0.48 * b.apex)) - np.float32(0.34 * b.apex))
        canvas.paint(box, plate, 0.6 * cortical)
        canvas.paint(box, plate + np.float32(1.5), marrow * 0.8)
    for side in (-1.0, 1.0):
        clavicle = np.array(
            [
                (side * 20, -0.72 * b.half_depth, b.apex - 18),
                (side * 62, -0.68 * b.half_depth, b.apex - 6),
                (side * (b.half_width - 5), -0.2 * b.half_depth, b.apex + 14),
            ]
        )
        canvas.tube(clavicle, 6.5, cortical)
        canvas.tube(clavicle, 4.2, marrow)
        for i, low in enumerate(np.linspace(0.42, 0.95, 18)):
            spread = 0.5 + 0.5 * i / 17
            inner = np.array([side * 0.62 * b.half_width, b.half_depth + 2 - 10 * i / 17, low * b.apex])
            outer = inner + np.array([side * 52 * spread, -34 * spread, 6.0])
            canvas.tube(np.stack([inner, outer]), 2.6, 0.7 * cortical)


def rib_curves(anatomy: Anatomy) -> list[tuple[Points, Points]]:
    """Per rib: centrelines of bone and cartilage, patient coordinates, mm."""
    b = anatomy.body
    out = []
    count = 12
    for i in range(count):
        start = -45 + i * (b.apex + 45 - 6) / (count - 1)
        drop = 92 - 52 * i / count
        phi = np.deg2rad(np.linspace(14, 158, 30))
        z = (
            start
            - drop * np.sin(np.clip(phi / 2, 0, np.pi / 2)) ** 1.5
            + 24 * np.clip(phi - 2.2, 0, 1) ** 2 * 2
        )
        taper = np.sqrt(np.clip(1 - np.clip(z / b.apex, 0, 0.985) ** b.rate, 0.12, 1))
        for side in (-1.0, 1.0):
            ring = np.stack(
                [
                    side * (b.half_width * taper + 6) * np.sin(phi),
                    (b.half_depth * taper + 6) * np.cos(phi),
                    z,
                ],
                axis=1,
            )
            cut = 24 if i > 1 else 26
            if i == 0:
                cut = 18
            out.append((ring[:cut], ring[cut - 1 :] if i > 1 else ring[cut - 1 : cut]))
    return out


def _paint_heart(canvas: Canvas, anatomy: Anatomy) -> Array:
    b, heart = anatomy.body, anatomy.heart
    o = heart.origin
    sac = np.full(canvas.geometry.shape, 50.0, dtype=np.float32)
    box = canvas.around((o[0], o[1], o[2]), (105.0, 105.0, 105.0))
    if box is None:
        return sac
    x, y, z = canvas.at(box)
    chambers = heart.chambers(x, y, z)
    d = heart.sac(x, y, z, chambers)
    sac[box] = d
    canvas.paint(box, d, 0.5 * b.fat_hu)
    canvas.paint(box, d + np.float32(1.2), b.fat_hu + 6)
    lv, rv, ra, la = chambers
    tissue = smooth_min(smooth_min(lv, rv, 5.0), smooth_min(ra, la, 4.0), 3.0)
    mottle = anatomy.mottle.on_grid(canvas.geometry)[box]
    # fat over the chambers is patchy: here and there muscle reaches the sac
    tissue -= np.float32(heart.fat + 0.5) * np.clip(np.float32(0.55) + np.float32(0.6) * mottle, 0, 1)
    tissue = np.maximum(tissue, d)
    canvas.paint(box, tissue, np.float32(b.blood_hu + 1) + np.float32(1.5) * mottle)
    canvas.paint(box, np.maximum(lv, tissue), b.blood_hu + 4)
    canvas.paint(box, lv + np.float32(heart.wall), b.blood_hu)
    return sac


def _paint_great_vessels(canvas: Canvas, anatomy: Anatomy) -> None:
    v, hu = anatomy.vessels, anatomy.body.blood_hu
    for points, radii in (
        v.right_pulmonary,
        v.left_pulmonary,
        *v.pulmonary_veins,
        v.superior_cava,
        v.left_brachiocephalic,
        v.inferior_cava,
        *v.arch_branches,
        v.trunk,
    ):
        canvas.tube(points, radii, hu)
    canvas.tube(v.aorta[0], v.aorta[1], hu)
    canvas.tube(v.oesophagus[0], v.oesophagus[1], 32.0)
    canvas.tube(v.oesophagus[0][5:12], 2.0, -300.0)
    for points, radii in v.airways:
        canvas.tube(points, radii + np.where(radii > 5, 1.4, 0.5), -80.0)
    for points, radii in v.airways:
        canvas.tube(points, radii, -985.0)


def _paint_coronaries(canvas: Canvas, anatomy: Anatomy) -> None:
    b, r = anatomy.body, anatomy.coronary_radius
    spread = {"LM": 3.0, "LAD": 3.6, "LCX": 4.6, "RCA": 5.2}
    for name, line in anatomy.coronaries.items():
        skip = 3 if name in ("LM", "RCA") else 0
        canvas.tube(line[skip::4], spread[name] * (0.7 + 0.12 * anatomy.heart.fat), b.fat_hu + 6)
    for name, line in anatomy.coronaries.items():
        taper = np.linspace(1.0 if name != "LM" else 1.15, 0.6 if name != "LM" else 1.05, len(line))
        canvas.tube(line[::3], (r * taper)[::3], b.blood_hu)


# ---------------------------------------------------------------- calcium


@dataclass(frozen=True, kw_only=True)
class Speck:
    """The blurred footprint of one lesion on the wanted grid: coverage 0-1 in a box of indices."""

    lesion: Lesion
    box: Box
    cover: Array


def rasterise(
    lesion: Lesion, frame: Frame, geometry: Geometry, *, blur: float, thickness: float
) -> Speck | None:
    """Coverage of one lesion as the scanner sees it, or None outside the grid.

    The lesion is sampled at about 0.35 mm (a voxel at most 11 times along each axis), blurred in-plane by
    a Gaussian (standard deviation `blur`, mm), averaged over the slice thickness, and read at the voxel
    centres.
    """
    lps = frame.to_lps(lesion.points)
    index = geometry.to_index(lps)
    spacing = np.array(geometry.spacing)
    r = float(lesion.radii.max())
    pad = (r + 3 * blur + 0.5) / spacing
    pad[0] += thickness / 2 / spacing[0]
    low = np.floor(index.min(axis=0) - pad).astype(int)
    high = np.ceil(index.max(axis=0) + pad).astype(int) + 1
    start, stop = np.maximum(low, 0), np.minimum(high, geometry.shape)
    if (stop <= start).any():
        return None
    fine = np.array([min(max(round(s / 0.36) // 2 * 2 + 1, 1), 11) for s in spacing])
    counts = high - low
    sub = spacing / fine
    first = low - 0.5 + 0.5 / fine
    grid = Geometry(
        shape=(int(counts[0] * fine[0]), int(counts[1] * fine[1]), int(counts[2] * fine[2])),
        spacing=(float(sub[0]), float(sub[1]), float(sub[2])),
        origin=tuple(float(v) for v in geometry.to_lps(first)),  # type: ignore[arg-type]
        axes=geometry.axes,
    )
    canvas = Canvas(frame, grid, background=0.0)
    canvas.tube(lesion.points, lesion.radii, 1.0)
    cover = canvas.hu
    sigma = (0.0, blur / sub[1], blur / sub[2])
    cover = scipy.ndimage.gaussian_filter(cover, sigma, mode="constant", truncate=3.0)
    width = max(round(thickness / float(sub[0])), 1)
    cover = scipy.ndimage.uniform_filter1d(cover, width, axis=0, mode="constant")
    cover = cover[fine[0] // 2 :: fine[0], fine[1] // 2 :: fine[1], fine[2] // 2 :: fine[2]]
    cut = tuple(slice(int(a - lo), int(b - lo)) for a, b, lo in zip(start, stop, low, strict=True))
    box = (slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2]))
    return Speck(lesion=lesion, box=box, cover=np.ascontiguousarray(cover[cut]))


def add_specks(hu: Array, specks: Sequence[Speck]) -> Array:
    """Mix lesions into a noise-free picture in place; returns their summed coverage."""
    total = np.zeros(hu.shape, dtype=np.float32)
    for speck in specks:
        view = hu[speck.box]
        view += speck.cover * (np.float32(speck.lesion.hu) - view)
        total[speck.box] += speck.cover
    return total
