"""Painting what lies inside the rib cage: lungs, abdomen, mediastinum, heart and great vessels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .anatomy import Anatomy
from .body import Body
from .findings import Blob
from .shapes import Array, Box, Canvas, Points, capsule, ellipsoid, smooth_min
from .trunk import trunk_norm


@dataclass(frozen=True, kw_only=True)
class Cage:
    """The inside of the rib cage on a part of a canvas.

    Attributes:
        box: Where on the canvas.
        wall: Signed distance (mm) to the inside of the cage.
        under: Signed distance (mm) to the space below the diaphragm.
        behind: How far back, -1 at the front wall to 1 at the back wall.
        texture, mottle: The patient's fine and slow variation here, unit deviation.
    """

    box: Box
    wall: Array
    under: Array
    behind: Array
    texture: Array
    mottle: Array

    def below(self, canvas: Canvas, b: Body, top: float) -> Cage | None:
        """The part of it below the height `top`."""
        low = canvas.box(
            np.array([-b.half_width, -b.half_depth, -1000.0]), np.array([b.half_width, b.half_depth, top])
        )
        if low is None:
            return None
        part = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(low, self.box, strict=True))
        fields = (f[part] for f in (self.wall, self.under, self.behind, self.texture, self.mottle))
        wall, under, behind, texture, mottle = fields
        return Cage(box=low, wall=wall, under=under, behind=behind, texture=texture, mottle=mottle)


def paint_organs(canvas: Canvas, anatomy: Anatomy) -> None:
    """Lungs, what lies below the diaphragm, and the fat of the mediastinum."""
    cage = _cage(canvas, anatomy)
    if cage is not None:
        _paint_lungs(canvas, anatomy, cage)
        _paint_abdomen(canvas, anatomy.body, cage)
    _paint_mediastinum(canvas, anatomy)
    _paint_lung_vessels(canvas, anatomy)


def _cage(canvas: Canvas, anatomy: Anatomy) -> Cage | None:
    b = anatomy.body
    box = canvas.box(
        np.array([-b.half_width, -b.half_depth, -1000.0]), np.array([b.half_width, b.half_depth, b.apex])
    )
    if box is None:
        return None
    x, y, z = canvas.at(box)
    front, back = b.front(z), b.back(z)
    behind = (y - np.float32(0.5) * (front + back)) / (np.float32(0.5) * (back - front))
    e = trunk_norm(x * np.float32(1 / b.half_width), behind)
    up = np.clip(z * np.float32(1 / b.apex), 0, 1)
    wall = (e - np.sqrt(np.float32(1) - up ** np.float32(b.rate))) * np.float32(0.8 * b.half_depth)
    right, left, middle = b.domes
    height = np.float32(middle) + np.float32(right - middle) * np.exp(
        -np.square((x + np.float32(0.48 * b.half_width)) * np.float32(2.1 / b.half_width))
    )
    height += np.float32(left - middle) * np.exp(
        -np.square((x - np.float32(0.55 * b.half_width)) * np.float32(2.4 / b.half_width))
    )
    e8 = np.square(np.square(e * e))
    height -= np.float32(80) * e8 * e * e + np.float32(34) * np.square(np.maximum(behind, 0))
    return Cage(
        box=box,
        wall=wall,
        under=(z - height) * np.float32(0.8),
        behind=behind,
        texture=anatomy.texture.on_grid(canvas.geometry)[box],
        mottle=anatomy.mottle.on_grid(canvas.geometry)[box],
    )


def _paint_lungs(canvas: Canvas, anatomy: Anatomy, cage: Cage) -> None:
    b, disease = anatomy.body, anatomy.findings
    x, y, z = canvas.at(cage.box)
    lung = np.float32(b.lung_hu) + np.float32(-b.lung_gradient if b.prone else b.lung_gradient) * y
    lung += np.float32(8) * cage.texture + np.float32(7) * cage.mottle
    if b.emphysema:
        holes = np.clip(cage.texture + cage.mottle - np.float32(0.4), 0, 1.5)
        lung -= np.float32(45 * b.emphysema) * holes
    if disease.fibrosis:
        rim = np.exp(np.minimum(cage.wall * np.float32(1 / 9), 1))  # far outside the lungs it overflowed
        rim *= np.clip(1 - z * np.float32(1 / 130), 0, 1)
        lung += np.float32(550 * disease.fibrosis) * rim * np.clip(cage.texture + np.float32(0.5), 0, 1.5)
    inside = np.maximum(cage.wall, -cage.under)
    canvas.paint(cage.box, inside, np.clip(lung, -1000, 30))
    for blob in disease.lung:
        _paint_blob(canvas, blob, cage, inside)
    for side, depth in zip((-1.0, 1.0), disease.pleural, strict=True):
        if depth:
            down = -cage.behind if b.prone else cage.behind
            layer = np.float32(depth) * np.clip(down * np.float32(1.6) - np.float32(0.3), 0, 1)
            layer *= np.clip(np.float32(1.1) - z * np.float32(1 / b.apex), 0, 1)
            fluid = np.maximum(-cage.wall - layer, np.float32(-side) * x)
            canvas.paint(cage.box, np.maximum(fluid, inside), 12.0)


def _paint_blob(canvas: Canvas, blob: Blob, cage: Cage, inside: Array) -> None:
    box = canvas.around(blob.centre, tuple(r + 3 * blob.rough for r in blob.radii))
    if box is None:
        return
    part = tuple(
        slice(max(s.start, o.start), min(s.stop, o.stop)) for s, o in zip(box, cage.box, strict=True)
    )
    if any(s.stop <= s.start for s in part):
        return
    local = tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(part, cage.box, strict=True))
    shape = (part[0], part[1], part[2])
    d = ellipsoid(*canvas.at(shape), blob.centre, blob.radii)
    d += np.float32(blob.rough) * (
        np.float32(0.6) * cage.mottle[local] + np.float32(0.6) * cage.texture[local]
    )
    canvas.paint(shape, np.maximum(d, inside[local]), blob.hu)


def _paint_abdomen(canvas: Canvas, b: Body, cage: Cage) -> None:
    inside = np.maximum(cage.wall, cage.under)
    canvas.shell(cage.box, inside, 2.5, b.muscle_hu, np.float32(b.fat_hu) + np.float32(6) * cage.mottle)
    low = cage.below(canvas, b, max(*b.domes, 0.0) + 15)
    if low is None:
        return
    x, y, z = canvas.at(low.box)
    solid = np.maximum(low.wall + np.float32(2.5), low.under + np.float32(2.5))
    liver = np.float32(0.8) * (
        x - np.float32(b.left_lobe * b.half_width) + np.float32(0.34) * (y + np.float32(b.half_depth))
    )
    liver += np.float32(3) * low.mottle
    size, gas, fluid = b.stomach
    centre = (0.52 * b.half_width, -0.15 * b.half_depth, b.domes[1] - 0.9 * size - 4)
    stomach = np.maximum(ellipsoid(x, y, z, centre, (size, size * 1.15, size)), solid)
    spleen = ellipsoid(
        x,
        y,
        z,
        (0.66 * b.half_width, 0.5 * b.half_depth, b.domes[1] - 50),
        (0.25 * b.half_width, 0.4 * b.half_depth, 55.0),
    )
    canvas.paint(low.box, np.maximum(liver, solid), np.float32(b.liver_hu) + np.float32(2) * low.mottle)
    canvas.paint(low.box, np.maximum(spleen, solid), 48.0)
    canvas.shell(low.box, stomach, 4.0, 35.0, fluid)
    up = 1.0 if b.prone else -1.0
    level = np.float32(up) * (np.float32(centre[1]) - y) - np.float32((2 * gas - 1) * size)
    canvas.paint(low.box, np.maximum(stomach + np.float32(4), level), -950.0)
    if b.colon:
        _paint_colon(canvas, b, low, solid)


def _paint_colon(canvas: Canvas, b: Body, low: Cage, solid: Array) -> None:
    """A gas-filled bend of the bowel in front, under the left dome."""
    x, y, z = canvas.at(low.box)
    r = b.colon
    top = b.domes[1] - r - 7
    knots = np.array(
        [
            (0.05 * b.half_width, -b.half_depth + r + 12, top - 28),
            (0.42 * b.half_width, -0.72 * b.half_depth + 0.3 * r, top - 8),
            (0.72 * b.half_width, -0.3 * b.half_depth, top - 12),
            (0.78 * b.half_width, 0.0, top - 70),
        ]
    )
    bowel = capsule(x, y, z, knots[0], knots[1], 0.8 * r, r)
    for i in (1, 2):
        bowel = np.minimum(bowel, capsule(x, y, z, knots[i], knots[i + 1], r, 0.9 * r))
    bowel += np.float32(2) * low.texture
    canvas.shell(low.box, np.maximum(bowel, solid), 2.5, 35.0, -930.0)


def _paint_mediastinum(canvas: Canvas, anatomy: Anatomy) -> None:
    b, v, heart = anatomy.body, anatomy.vessels, anatomy.heart
    fat, m = b.fat_hu, b.mediastinum
    o = heart.origin
    box = canvas.around((o[0], o[1], o[2]), (112.0, 112.0, 112.0))
    if box is not None:
        x, y, z = canvas.at(box)
        around = heart.sac(x, y, z) - np.float32(0.6 * m)
        apex = o + heart.axes[0] * 56
        pad = ellipsoid(x, y, z, (apex[0], apex[1], 4 + m), (4 + 3 * m, 8 + 3 * m, 6 + 2.4 * m))
        around = smooth_min(around, pad, 16.0)
        pad = ellipsoid(x, y, z, (o[0] - 38, o[1] - 26, 8 + m), (5 + m, 7 + 1.5 * m, 6 + m))
        canvas.paint(box, smooth_min(around, pad, 16.0), fat)
    canvas.ellipsoid((6.0, b.spine(-40.0) - 16, -75.0), (32.0, 22.0, 85.0), fat)
    top = o[2] + 105
    middle = 0.5 * (b.front(top) + b.spine(top))
    depth = 0.5 * (b.spine(top) - b.front(top))
    canvas.ellipsoid((1.0, middle, top), (14 + 1.6 * m, depth, 80.0), fat)
    front = canvas.box(np.array([-40.0, -b.half_depth - 5, 20.0]), np.array([50.0, o[1] + 30, b.apex]))
    if front is not None:
        x, y, z = canvas.at(front)
        ahead = b.front(z)
        width = np.float32(1.0 + 0.4 * m) + np.float32(0.3) * np.maximum(y - ahead - np.float32(18), 0)
        width = np.minimum(width, np.float32(15 + m))
        near = np.maximum(np.abs(x - np.float32(5)) - width, -np.minimum(z - 20, np.float32(b.apex) - z))
        near = np.maximum(near, np.maximum(ahead - np.float32(5) - y, y - np.float32(o[1] + 10)))
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
        canvas.tube(points[::2], radii[::2] + 1.5 + 0.7 * m, fat)
    for points, radii in (v.right_pulmonary, v.left_pulmonary, *v.airways[1:3], *v.pulmonary_veins):
        canvas.tube(points[::2], radii[::2] + 1 + 0.3 * m, fat)
    for node in anatomy.findings.nodes:
        canvas.ellipsoid(node.centre, node.radii, node.hu)
    _paint_hernia(canvas, anatomy)


def _paint_hernia(canvas: Canvas, anatomy: Anatomy) -> None:
    hernia = anatomy.findings.hernia
    box = None if hernia is None else canvas.around(hernia.centre, hernia.radii)
    if hernia is None or box is None:
        return
    x, y, z = canvas.at(box)
    d = ellipsoid(x, y, z, hernia.centre, hernia.radii)
    canvas.shell(box, d, 3.0, 38.0, hernia.hu)
    up = 1.0 if anatomy.body.prone else -1.0
    height = (2 * anatomy.findings.hernia_gas - 1) * hernia.radii[1]
    level = np.float32(up) * (np.float32(hernia.centre[1]) - y) - np.float32(height)
    canvas.paint(box, np.maximum(d + np.float32(3), level), -950.0)


def _paint_lung_vessels(canvas: Canvas, anatomy: Anatomy) -> None:
    limit = 0.3 * canvas.edge
    for tree in anatomy.trees:
        parent = np.asarray(tree.parent[1:])
        ends = 1 + np.flatnonzero(tree.radius[parent] >= limit)
        begins = parent[ends - 1]
        canvas.sticks(
            tree.points[begins],
            tree.points[ends],
            np.minimum(tree.radius[begins], 1.6 * tree.radius[ends]),
            tree.radius[ends],
            anatomy.body.blood_hu,
        )


def paint_heart(canvas: Canvas, anatomy: Anatomy) -> Array:
    """Sac, fat and chambers; returns the signed distance (mm) to the sac on the canvas."""
    b, heart = anatomy.body, anatomy.heart
    o = heart.origin
    sac = np.full(canvas.geometry.shape, 50.0, dtype=np.float32)
    box = canvas.around((o[0], o[1], o[2]), (112.0, 112.0, 112.0))
    if box is None:
        return sac
    x, y, z = canvas.at(box)
    chambers = heart.chambers(x, y, z)
    d = heart.sac(x, y, z, chambers)
    sac[box] = d
    canvas.shell(box, d, 1.0 + heart.effusion, 12.0, b.fat_hu + 6)
    lv = chambers[0]
    tissue = heart.muscle(chambers)
    mottle = anatomy.mottle.on_grid(canvas.geometry)[box]
    # fat over the chambers is patchy: here and there muscle reaches the sac
    tissue -= np.float32(heart.fat + 1.5) * np.clip(np.float32(0.8) + np.float32(0.5) * mottle, 0, 1)
    tissue = np.maximum(tissue, d + np.float32(heart.effusion))
    canvas.paint(box, tissue, np.float32(b.blood_hu + 1) + np.float32(1.5) * mottle)
    canvas.paint(box, np.maximum(lv, tissue), b.blood_hu + 4)
    canvas.paint(box, lv + np.float32(heart.wall), b.blood_hu)
    return sac


def paint_great_vessels(canvas: Canvas, anatomy: Anatomy) -> None:
    """Arteries, veins, oesophagus and airways of the mediastinum."""
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


def paint_coronaries(canvas: Canvas, anatomy: Anatomy) -> None:
    """The arteries and the fat they run in."""
    b, r = anatomy.body, anatomy.coronary_radius
    if anatomy.version > 1:
        for name, line in anatomy.coronaries.items():
            sleeve = anatomy.sleeves[name]
            for piece, width in _runs(line, sleeve, r):
                canvas.tube(piece[::4], width[::4], b.fat_hu + 6)
        for name, line in anatomy.coronaries.items():
            branch = "." in name
            taper = np.linspace(
                0.65 if branch else 1.0, 0.45 if branch else 0.6 if name != "LM" else 1.0, len(line)
            )
            canvas.tube(line[::3], (r * taper)[::3], b.blood_hu)
        return
    spread = {"LM": 3.0, "LAD": 3.6, "LCX": 4.6, "RCA": 5.2}
    for name, line in anatomy.coronaries.items():
        skip = 3 if name in ("LM", "RCA") else 0
        canvas.tube(line[skip::4], spread[name] * (0.7 + 0.12 * anatomy.heart.fat), b.fat_hu + 6)
    for name, line in anatomy.coronaries.items():
        taper = np.linspace(1.0 if name != "LM" else 1.15, 0.6 if name != "LM" else 1.05, len(line))
        canvas.tube(line[::3], (r * taper)[::3], b.blood_hu)


def _runs(line: Points, width: Points, least: float) -> Iterator[tuple[Points, Points]]:
    """The stretches of a line whose width exceeds `least`, with their widths."""
    wide = width > least
    ends = np.flatnonzero(np.diff(np.concatenate([[False], wide, [False]]).astype(int)))
    for first, last in zip(ends[::2], ends[1::2], strict=True):
        if last - first > 4:
            yield line[first:last], width[first:last]
