"""The picture of a case: slices, two further views, what was counted, and the result in words."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..imaging.labels import CALCIUM, HEART, Label
from ..imaging.orientation import to_canonical
from ..pipeline.case import Case
from ..pipeline.cautions import MARK, cautions
from ..pipeline.facts import CT, DOMAIN
from ..pipeline.shown import RESEARCH_USE, Shown, shown
from ..pipeline.step import Context
from ..pipeline.writer import Writer, register_writer
from ..system.atomic import write_whole
from ..system.foreign import foreign

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
    marked: npt.NDArray[Any],
    spacing: tuple[float, float],
    side: int = _TILE,
    *,
    classes: Sequence[Label] = (CALCIUM,),
) -> Any:
    """A plane of the CT in true proportions, the heart outlined, what is marked filled in its colours.

    Args:
        hu: HU (rows, columns).
        outline: bool (rows, columns).
        marked: (rows, columns): values of `classes`; a mask is one of value 1.
        spacing: mm between rows and between columns.
        side: Of the picture, which is a square, pixels.
        classes: What is marked.

    Returns:
        An RGB `PIL.Image.Image`.
    """
    from PIL import Image

    height, width = hu.shape[0] * spacing[0], hu.shape[1] * spacing[1]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(_gray(hu)).resize(size, Image.Resampling.BILINEAR)
    rgb = np.asarray(picture.convert("RGB")).copy()

    def enlarged(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        image = Image.fromarray(labels.astype(np.uint8))
        return np.asarray(image.resize(size, Image.Resampling.NEAREST))

    rgb[_edge(enlarged(outline) > 0)] = HEART.colour
    values = enlarged(marked)
    for label in classes:
        rgb[values == label.value] = label.colour
    canvas = Image.new("RGB", (side, side))
    canvas.paste(Image.fromarray(rgb), ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


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
    inside = np.flatnonzero(what.outline.mask.any(axis=(1, 2)))
    if not len(inside):
        inside = np.arange(len(what.outline.array))
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
    outline = to_canonical(what.outline.mask, volume.geometry).array
    marked, classes = to_canonical(what.marked.array, volume.geometry).array, what.marked.classes
    flipped = volume.geometry.axes[0][2] < 0
    order = [len(hu) - 1 - z if flipped else z for z in slices]
    sz, sy, sx = geometry.spacing
    middle = [middle_of(outline, axes) for axes in ((1, 2), (0, 2), (0, 1))]
    tiles = [
        (
            f"slice {volume.geometry.slice_number(z)}",
            plane_picture(hu[k], outline[k], marked[k], (sy, sx), classes=classes),
        )
        for z, k in zip(slices, order, strict=True)
    ]
    projected = marked.max(axis=1)[::-1], marked.max(axis=2)[::-1]
    front = np.s_[::-1, middle[1], :]
    side = np.s_[::-1, :, middle[2]]
    for name, cut, seen, pixel in (
        ("coronal", front, projected[0], sx),
        ("sagittal", side, projected[1], sy),
    ):
        tiles.append((name, plane_picture(hu[cut], outline[cut], seen, (sz, pixel), classes=classes)))
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
    sheet.save(buffer, format="PNG", compress_level=2)  # as small as by 6, in a third of the time
    return buffer.getvalue()


def thumbnail(path: Path, side: int = 144) -> bytes:
    """The slice of a preview with most colour in it, cut to the heart's outline, as PNG.

    Args:
        path: A file that `preview` wrote.
        side: Of the picture, which is a square, pixels.

    Raises:
        InputUnreadable: It is none.
    """
    from PIL import Image

    with foreign(str(path)), Image.open(path) as sheet:
        if sheet.width != 3 * _TILE or not 2 * _TILE <= sheet.height <= 10 * _TILE:
            raise ValueError("it has not the size of a preview")
        head = sheet.height - 2 * _TILE
        slices = np.asarray(sheet.convert("RGB").crop((0, head, 3 * _TILE, head + _TILE)))
        tiles = [slices[:, nr * _TILE : (nr + 1) * _TILE] for nr in range(3)]
        tile = max(tiles, key=lambda one: int(_coloured(one).sum()))
        buffer = io.BytesIO()
        Image.fromarray(tile).resize((side, side), box=_around_heart(tile)).save(buffer, format="PNG")
        return buffer.getvalue()


def _coloured(tile: npt.NDArray[np.uint8]) -> BoolArray:
    """What is marked in a tile: neither grey, nor the heart's outline, nor the words in the corner."""
    red, green, blue = np.moveaxis(tile, 2, 0)
    colour = ((red != green) | (green != blue)) & ~_outlined(tile)
    colour[: 2 * _LINE_HEIGHT, : _TILE // 2] = False
    return np.asarray(colour)


def _outlined(tile: npt.NDArray[np.uint8]) -> BoolArray:
    """The heart's outline in a tile."""
    red, green, blue = (tile[..., nr] == value for nr, value in enumerate(HEART.colour))
    return np.asarray(red & green & blue)


def _around_heart(tile: npt.NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """A square around the heart's outline, or the whole tile: left, upper, right, lower."""
    rows, columns = np.nonzero(_outlined(tile))
    if not len(rows):
        return 0, 0, _TILE, _TILE
    side = min(_TILE, int(1.15 * max(np.ptp(rows), np.ptp(columns))) + 8)
    left, upper = (int(np.clip((v.min() + v.max() - side) // 2, 0, _TILE - side)) for v in (columns, rows))
    return left, upper, left + side, upper + side


def middle_of(mask: BoolArray, axes: tuple[int, int]) -> int:
    """Middle of what a mask shows along the third axis, or of the axis."""
    inside = np.flatnonzero(mask.any(axis=axes))
    return int(inside.mean()) if len(inside) else mask.shape[3 - sum(axes)] // 2


def _legend(draw: Any, corner: tuple[int, int], case: Case, what: Shown, font: Any) -> None:
    x, y = corner
    classes = what.marked.classes
    lines = [(what.outline_name, HEART.colour)]
    if len(classes) == 1:
        lines += [(f"{what.marked_name} (below: projected)", classes[0].colour)]
    else:
        lines += [(label.name, label.colour) for label in classes]
    for text, colour in lines:
        draw.rectangle((x, y + 4, x + 10, y + 14), fill=colour)
        draw.text((x + 18, y), text, fill=colour, font=font)
        y += 22
    if len(classes) > 1:
        draw.text((x + 18, y), "(below: projected)", fill=(190, 190, 190), font=font)
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


def _write(path: Path, case: Case, options: Any, context: Context) -> bool:
    picture = preview(case)
    if picture is not None:
        write_whole(path, picture)
    return picture is not None


PREVIEW = register_writer(Writer(name="preview", file="preview.png", write=_write, needs=(CT,)))
