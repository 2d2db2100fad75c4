"""Pages of A4, filled from top to bottom with text, tables and pictures; as PDF, or as pictures themselves.

Text stays text in the PDF, can be searched and copied, and is shown as it is, whatever stands in it. A letter
that the font does not have is written as its code.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, MARGIN = 210.0, 297.0, 14.0
"""Of a page (A4, ISO 216), and of its empty border, mm."""
FULL = WIDTH - 2 * MARGIN
"""Width between the borders, mm."""
_INCH, _POINT = 25.4, 25.4 / 72
"""mm in an inch and in a point."""
_PICTURE_DPI = 260
"""Of pictures in the PDF; chosen: that of print."""
_LEADING, _ASCENT = 1.28, 0.82
"""Height of a line, and of its part above the baseline, over the size of its letters."""
_SURE = 0.98
"""Share of a width that is filled: in the picture of a page letters may be a little wider."""
_FONT = "DejaVu Sans"
"""Comes with matplotlib, so that every machine makes the same pages; it has Greek and mathematical signs."""
INK, QUIET, RULE, AMBER, RED = "#1a202c", "#4a5568", "#cbd5e0", "#fff4d6", "#9b2c2c"


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a text looks.

    Attributes:
        size: Of its letters, points.
        bold: Whether they are.
        colour: As matplotlib takes it.
    """

    size: float = 8.5
    bold: bool = False
    colour: str = INK


class Sheet:
    """Pages, the last of which is being filled.

    Args:
        foot: One line at the bottom of every page.

    Attributes:
        y: Where the next thing goes, mm below the upper edge.
    """

    def __init__(self, foot: str = "") -> None:
        self.pages: list[Figure] = []
        self._foot = foot
        self.turn()

    def turn(self) -> None:
        """Begin a new page."""
        from matplotlib.figure import Figure

        self.pages.append(Figure(figsize=(WIDTH / _INCH, HEIGHT / _INCH), facecolor="white"))
        self.y = MARGIN
        if self._foot:
            self.put(MARGIN, HEIGHT - MARGIN + 2, self._foot, Style(size=6.5, colour=QUIET))

    def room(self, height: float) -> None:
        """Turn the page where less than this height, mm, is left on it."""
        if self.y + height > HEIGHT - MARGIN - 2 and self.y > MARGIN:
            self.turn()

    def put(self, x: float, y: float, text: str, style: Style | None = None, align: str = "left") -> None:
        """One line whose upper edge lies at y; x and y in mm from the upper left corner."""
        style = style or Style()
        base = 1 - (y + _ASCENT * style.size * _POINT) / HEIGHT
        weight = "bold" if style.bold else "normal"
        self.pages[-1].text(
            x / WIDTH, base, shown(text), family=_FONT, fontsize=style.size, ha=align, va="baseline",
            weight=weight, color=style.colour, parse_math=False,
        )  # fmt: skip

    def paragraph(
        self, text: str, style: Style | None = None, *, x: float = MARGIN, width: float = 0, gap: float = 1.2
    ) -> None:
        """Text, wrapped, and a gap below it.

        Args:
            x, width: Where its lines begin, and how long they are; width 0: up to the right border. mm.
            gap: mm.
        """
        style = style or Style()
        for line in wrapped(text, width or WIDTH - MARGIN - x, style):
            self.room(line_height(style))
            self.put(x, self.y, line, style)
            self.y += line_height(style)
        self.y += gap

    def boxed(self, texts: Sequence[str], style: Style | None = None, colour: str = AMBER) -> None:
        """Texts on a coloured ground, one below the other."""
        style = style or Style()
        lines = [line for text in texts for line in wrapped(text, FULL - 6, style)]
        height = len(lines) * line_height(style) + 3
        self.room(height)
        self._rectangle(MARGIN, self.y, FULL, height, colour)
        self.y += 1.5
        for line in lines:
            self.put(MARGIN + 3, self.y, line, style)
            self.y += line_height(style)
        self.y += 3.5

    def table(
        self,
        heading: Sequence[str],
        rows: Sequence[Sequence[str]],
        widths: Sequence[float],
        *,
        x: float = MARGIN,
        style: Style | None = None,
        right: Sequence[int] = (),
    ) -> None:
        """Cells, wrapped; the heading again on every further page.

        Args:
            heading: Of the columns; empty: none.
            widths: Of the columns, mm.
            right: Columns whose cells end at the right, as numbers do.
        """
        style = style or Style(size=7.5)
        bold = Style(size=style.size, bold=True, colour=style.colour)
        for number, cells in enumerate([heading, *rows] if heading else rows):
            head = bool(heading) and number == 0
            lines = self._lines(cells, widths, bold if head else style)
            height = max(map(len, lines), default=1) * line_height(style) + 1.0
            pages = len(self.pages)
            self.room(height)
            if heading and not head and len(self.pages) > pages:
                self._row(self._lines(heading, widths, bold), widths, x, bold, right)
            self._row(lines, widths, x, bold if head else style, right)
        self.y += 2

    @staticmethod
    def _lines(cells: Sequence[str], widths: Sequence[float], style: Style) -> list[list[str]]:
        return [[*wrapped(c, w - 2, style)] or [""] for c, w in zip(cells, widths, strict=True)]

    def _row(
        self,
        lines: Sequence[Sequence[str]],
        widths: Sequence[float],
        x: float,
        style: Style,
        right: Sequence[int],
    ) -> None:
        left = x
        for place, (cell, width) in enumerate(zip(lines, widths, strict=True)):
            at, align = (left + width - 4, "right") if place in right else (left, "left")
            for number, line in enumerate(cell):
                self.put(at, self.y + number * line_height(style), line, style, align)
            left += width
        self.y += max(map(len, lines), default=1) * line_height(style) + 0.6
        self._rectangle(x, self.y, sum(widths), 0.2, RULE)
        self.y += 0.6

    def picture(self, rgb: npt.NDArray[np.uint8], x: float, y: float, width: float, height: float) -> Axes:
        """A picture (rows, columns, 3) that fills a place; the axes count its pixels."""
        axes: Axes = self.pages[-1].add_axes(
            (x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT)
        )
        axes.imshow(rgb, aspect="auto", interpolation="antialiased")
        axes.set_axis_off()
        return axes

    def patch(self, x: float, y: float, colour: tuple[int, int, int], side: float = 2.4) -> None:
        """A square of a legend."""
        self._rectangle(x, y, side, side, "#{:02x}{:02x}{:02x}".format(*colour))

    def _rectangle(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        from matplotlib.patches import Rectangle

        page = self.pages[-1]
        corner = x / WIDTH, 1 - (y + height) / HEIGHT
        patch = Rectangle(corner, width / WIDTH, height / HEIGHT, facecolor=colour, edgecolor="none")
        patch.set_transform(page.transFigure)
        patch.set_zorder(-1)
        page.add_artist(patch)

    def pdf(self, title: str) -> bytes:
        """All pages as one PDF file; the same pages give the same bytes.

        Args:
            title: In the file's properties.
        """
        from matplotlib import rc_context
        from matplotlib.backends.backend_pdf import PdfPages

        buffer = io.BytesIO()
        about = {"Title": shown(title), "Creator": "deepcac2", "Producer": None, "CreationDate": None}
        with rc_context({"pdf.fonttype": 42}), PdfPages(buffer, metadata=about) as file:
            for page in self.pages:
                file.savefig(page, dpi=_PICTURE_DPI)
        return buffer.getvalue()

    def pictures(self, dpi: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Each page as uint8 (rows, columns, 3)."""
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        for page in self.pages:
            page.set_dpi(dpi)
            canvas: Any = FigureCanvasAgg(page)
            with rc_context({"text.hinting": "none"}):
                canvas.draw()
            yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def line_height(style: Style) -> float:
    """Of a line, mm."""
    return style.size * _LEADING * _POINT


@lru_cache(maxsize=10_000)
def _width(text: str, size: float, bold: bool) -> float:
    """Of a text, mm."""
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(size, bold), ismath=False)
    return float(width) * _POINT


@cache
def _font(size: float, bold: bool) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=_FONT, size=size, weight="bold" if bold else "normal")


@cache
def _letters() -> frozenset[int]:
    """What the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(_font(10, False))).get_charmap())


def shown(text: str) -> str:
    r"""A text in one line, in letters that the font has; others as their codes.

    >>> shown("ρ\n山")
    'ρ \\u5c71'
    """
    known = _letters()
    one_line = (c if c.isprintable() else " " for c in text)
    return "".join(c if ord(c) in known else c.encode("ascii", "backslashreplace").decode() for c in one_line)


def wrapped(text: str, width: float, style: Style) -> Iterator[str]:
    """The lines of a text that are no wider than a width, mm; words that are wider are cut."""
    line = ""
    for word in shown(text).split():
        longer = f"{line} {word}" if line else word
        if _width(longer, style.size, style.bold) <= _SURE * width:
            line = longer
            continue
        if line:
            yield line
        while _width(word, style.size, style.bold) > width and len(word) > 1:
            fitting = next(
                n for n in range(len(word) - 1, 0, -1)
                if n == 1 or _width(word[:n], style.size, style.bold) <= width
            )  # fmt: skip
            yield word[:fitting]
            word = word[fitting:]
        line = word
    if line:
        yield line
