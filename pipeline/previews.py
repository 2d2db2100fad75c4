"""The picture of a case: slices, two further views, what was counted, and the result in words."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..imaging.orientation import to_canonical
from .case import Case
from .cautions import MARK, cautions
from .facts import CT, DOMAIN
from .outputs import RESEARCH_USE
from .step import steps

BoolArray = npt.NDArray[np.bool_]

_WINDOW = (-160.0, 240.0)
"""Display window, HU: the usual mediastinal setting (level 40, width 400)."""
_TILE = 360
_LINE, _LINE_HEIGHT = 130, 20
"""Most letters that surely fit beside one another above the tiles, and the height of such a line, pixels."""


def _gray(hu: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    low, high = _WINDOW
    scaled = (np.clip(hu.astype(np.float32), low, high) - low) / (high - low) * 255
    return scaled.astype(np.uint8)


def _edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner


def plane_picture(
    hu: npt.NDArray[np.int16],
    outline: BoolArray,
    marked: BoolArray,
    spacing: tuple[float, float],
    side: int = _TILE,
) -> Any:
    """A plane of the CT in true proportions, one mask outlined in blue, another filled in red.

    Args:
        hu: HU (rows, columns).
        outline, marked: The masks, (rows, columns).
        spacing: mm between rows and between columns.
        side: Of the picture, which is a square, pixels.

    Returns:
        An RGB `PIL.Image.Image`.
    """
    from PIL import Image

    height, width = hu.shape[0] * spacing[0], hu.shape[1] * spacing[1]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(_gray(hu)).resize(size, Image.Resampling.BILINEAR)
    rgb = np.asarray(picture.convert("RGB")).copy()

    def enlarged(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(image.resize(size, Image.Resampling.NEAREST)) > 0

    rgb[_edge(enlarged(outline))] = (80, 200, 255)
    rgb[enlarged(marked)] = (255, 60, 60)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(Image.fromarray(rgb), ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a picture shows of a step's result.

    Attributes:
        precedence: Of several results, that of the highest is shown.
        title, line: The result; further numbers.
        outline: bool (z, y, x): the heart, or the box around it; what it is: ``outline_name``.
        marked: bool (z, y, x): what counted; what it is: ``marked_name``.
        weight: Per slice z how much counts there.
    """

    precedence: int
    title: str
    line: str
    outline: BoolArray
    outline_name: str
    marked: BoolArray
    marked_name: str
    weight: dict[int, float]


def shown(case: Case) -> Shown | None:
    """What the picture of a case shows, with what other steps remark; None where there is no result.

    See `step.Step.shows` and `step.Step.remarks`.
    """
    found = [(step, what) for step in steps().values() if step.shows and (what := step.shows(case))]
    if not found:
        return None
    shower, what = max(found, key=lambda one: one[1].precedence)
    said = [s.remarks(case) for s in steps().values() if s.remarks and s is not shower]
    return replace(what, line=" · ".join(filter(None, (what.line, *said))))


def by_slice(mask: BoolArray) -> dict[int, float]:
    """Voxels of a mask in each slice z that has any."""
    return {z: float(n) for z, n in enumerate(mask.sum(axis=(1, 2))) if n}


def preview_slices(what: Shown, increment: float, count: int = 3) -> list[int]:
    """Slices worth a look: those where most counts, at least 5 mm apart, else through the heart.

    Args:
        what: See `shown`.
        increment: Of the CT, mm.

    Returns:
        Slice indices z, ascending, `count` of them or as many as there are.
    """
    chosen: list[int] = []
    for z in sorted(what.weight, key=lambda k: -what.weight[k]):
        if all(abs(z - c) * increment >= 5 for c in chosen):
            chosen.append(z)
    inside = np.flatnonzero(what.outline.any(axis=(1, 2)))
    if not len(inside):
        inside = np.arange(len(what.outline))
    for share in (0.5, 0.3, 0.7, 0.1, 0.9):
        z = int(inside[int(share * (len(inside) - 1))])
        if z not in chosen:
            chosen.append(z)
    return sorted(chosen[:count])


def preview(case: Case) -> bytes | None:
    """PNG with the slices where most counts, a coronal and a sagittal view, and the result; None without one.

    The heart, or its box, is outlined in blue, what counts is filled in red. Patients are seen from their
    feet and from the front; no name or ID is in the picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    what = shown(case)
    if what is None:
        return None
    volume = case[CT]
    slices = preview_slices(what, volume.geometry.spacing[0])
    turned = to_canonical(volume.hu, volume.geometry)
    hu, geometry = turned.array, turned.geometry
    outline = to_canonical(what.outline, volume.geometry).array
    marked = to_canonical(what.marked, volume.geometry).array
    flipped = volume.geometry.axes[0][2] < 0
    order = [len(hu) - 1 - z if flipped else z for z in slices]
    sz, sy, sx = geometry.spacing
    middle = [_middle(outline, axes) for axes in ((1, 2), (0, 2), (0, 1))]
    tiles = [
        (f"slice {z + 1}", plane_picture(hu[k], outline[k], marked[k], (sy, sx)))
        for z, k in zip(slices, order, strict=True)
    ]
    projected = np.asarray(marked.any(axis=1)), np.asarray(marked.any(axis=2))
    front = np.s_[::-1, middle[1], :]
    side = np.s_[::-1, :, middle[2]]
    tiles.append(("coronal", plane_picture(hu[front], outline[front], projected[0][::-1], (sz, sx))))
    tiles.append(("sagittal", plane_picture(hu[side], outline[side], projected[1][::-1], (sz, sy))))
    said = [line for sentence in cautions(case) for line in textwrap.wrap(f"{MARK} {sentence}", _LINE)]
    head = 64 + _LINE_HEIGHT * len(said)
    sheet = Image.new("RGB", (3 * _TILE, head + 2 * _TILE), (16, 16, 16))
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(26), ImageFont.load_default(15)
    draw.text((14, 6), f"{what.title}{f'   {MARK}' if said else ''}", fill="white", font=font)
    draw.text((14, 40), what.line, fill=(190, 190, 190), font=small)
    for i, line in enumerate(said):
        draw.text((14, 60 + _LINE_HEIGHT * i), line, fill=(255, 200, 80), font=small)
    for i, (label, tile) in enumerate(tiles):
        corner = ((i % 3) * _TILE, head + (i // 3) * _TILE)
        sheet.paste(tile, corner)
        draw.text((corner[0] + 8, corner[1] + 6), label, fill=(255, 230, 120), font=small)
    _legend(draw, (2 * _TILE + 16, head + _TILE + 30), case, what, small)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def _middle(mask: BoolArray, axes: tuple[int, int]) -> int:
    """Middle of what a mask shows along the third axis, or of the axis."""
    inside = np.flatnonzero(mask.any(axis=axes))
    return int(inside.mean()) if len(inside) else mask.shape[3 - sum(axes)] // 2


def _legend(draw: Any, corner: tuple[int, int], case: Case, what: Shown, font: Any) -> None:
    x, y = corner
    lines = [
        (what.outline_name, (80, 200, 255)),
        (f"{what.marked_name} (below: projected)", (255, 60, 60)),
    ]
    for text, colour in lines:
        draw.rectangle((x, y + 4, x + 10, y + 14), fill=colour)
        draw.text((x + 18, y), text, fill=colour, font=font)
        y += 22
    if case.warnings:
        y += 8
        draw.text((x, y), "warnings:", fill=(255, 200, 80), font=font)
        for finding in case.warnings[:8]:
            y += 20
            draw.text((x, y), f"· {finding.code}", fill=(255, 200, 80), font=font)
    if outside := case.get(DOMAIN, {}).get("outside"):
        y += 28
        draw.text((x, y), "unlike what the weights know:", fill=(255, 200, 80), font=font)
        y += 20
        draw.text((x, y), f"· {', '.join(outside)}", fill=(255, 200, 80), font=font)
    y += 30
    draw.text((x, y), RESEARCH_USE, fill=(150, 150, 150), font=font)
