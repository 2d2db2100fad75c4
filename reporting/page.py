"""Pages: Markdown, the same as one HTML file with its pictures inside, and as PDF; numbers and tables."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..outputs.sheet import FULL, HEIGHT, MARGIN, Sheet, Style
from ..stats.agreement import Estimate
from ..stats.tables import Flow
from ..system.atomic import write_whole
from .plots import Drawing

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


def number(value: float | None, digits: int) -> str:
    """With so many digits and a real minus; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def interval(estimate: Estimate, digits: int) -> str:
    """``low to high``, an exact one marked by an asterisk; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    mark = "*" if estimate.method == "exact" else ""
    return f"{number(estimate.low, digits)} to {number(estimate.high, digits)}{plain(mark)}"


def plain(text: str) -> str:
    """Text from outside as it is, whatever Markdown would make of it.

    >>> print(plain("a|b <i> *x*"))
    a\\|b \\<i\\> \\*x\\*
    """
    return re.sub(r"([\\`*_\[\]<>|&#!~])", r"\\\1", " ".join(text.split()))


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def flow_table(flows: Iterable[Flow]) -> str:
    """Who is in and who was left out, as a Markdown table."""
    rows = []
    for flow in flows:
        rows.append([f"{flow.what} in all", "", str(flow.start)])
        rows += [[plain(s.reason), f"−{s.rows}", str(s.left)] for s in flow.steps]
        rows.append([f"**{flow.what} used**", "", f"**{flow.left}**"])
    return table(["", "left out", "left"], rows)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; font-size: 14px;
  display: block; max-width: 100%; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e2e8f0; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #a0aec0; }
blockquote { border-left: 4px solid #c53030; margin: 1rem 0; padding: .4rem 1rem; background: #fff5f5; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } img { max-height: 15cm; width: auto; }
  table { display: table; font-size: 9px; } tr, img { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def write_page(folder: Path, text: str, pictures: Mapping[str, Drawing], *, name: str = "report") -> Path:
    """Write ``report.md``, ``report.html``, ``report.pdf``, and ``figures/*`` as PNG, SVG and PDF.

    Args:
        folder: Made when missing; files of these names are replaced.
        text: Markdown that shows the pictures as ``figures/NAME.png``.
        pictures: By name.
        name: Of the page, instead of ``report``.

    Returns:
        The path of the HTML page.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    for picture, files in pictures.items():
        for kind, data in (("png", files.png), ("svg", files.svg), ("pdf", files.pdf)):
            write_whole(folder / "figures" / f"{picture}.{kind}", data)
    write_whole(folder / f"{name}.md", text.encode())
    write_whole(folder / f"{name}.pdf", pdf_page(text, pictures))
    write_whole(folder / f"{name}.html", html_page(text, pictures).encode())
    return folder / f"{name}.html"


def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def pdf_page(text: str, pictures: Mapping[str, Drawing]) -> bytes:
    """The Markdown page as a PDF file: headings, paragraphs, tables and pictures, one below the other."""
    tokens = _markdown().parse(text)
    title = next((t.children for t in tokens if t.type == "inline"), None)
    heading = "" if title is None else _words(title)
    sheet = Sheet(foot=heading)
    size, quoted = 0, 0
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "heading_open":
            size = int(token.tag[1])
        elif token.type in ("blockquote_open", "blockquote_close"):
            quoted += 1 if token.type.endswith("open") else -1
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "table_close":
            _pdf_table(sheet, rows)
            rows = []
        elif token.type == "inline" and token.children is not None:
            image = next((c for c in token.children if c.type == "image"), None)
            if rows:
                rows[-1].append(_words(token.children))
            elif image is not None:
                _pdf_picture(sheet, pictures.get(Path(str(image.attrs["src"])).stem))
            elif size:
                sheet.room(30)  # a heading does not stand alone at the foot
                sheet.y += 2 if size > 1 else 0
                sheet.paragraph(_words(token.children), Style(size={1: 16, 2: 12}.get(size, 10), bold=True))
                size = 0
            elif quoted:
                sheet.boxed([_words(token.children)])
            else:
                sheet.paragraph(_words(token.children), gap=2)
    return sheet.pdf(heading)


def _words(tokens: Iterable[Token]) -> str:
    """Text without its marks."""
    return "".join(
        t.content if t.type in ("text", "code_inline") else " " * (t.type == "softbreak") for t in tokens
    )


def _pdf_table(sheet: Sheet, rows: Sequence[Sequence[str]]) -> None:
    """The first column as wide as its cells want, up to a half; what is left is shared by the others."""
    count = max(map(len, rows))
    longest = [max((len(r[i]) for r in rows if i < len(r)), default=0) + 2 for i in range(count)]
    share = [min(n, 40) for n in longest]
    wide = min(FULL, sum(share) * 1.75)
    sheet.table(rows[0], rows[1:], [wide * n / sum(share) for n in share])


def _pdf_picture(sheet: Sheet, files: Drawing | None) -> None:
    """A picture as wide as the page at most, and two fifths of its height."""
    if files is None:
        return
    with Image.open(io.BytesIO(files.png)) as opened:
        rgb = np.asarray(opened.convert("RGB"))
    height, width = rgb.shape[:2]
    scale = min(FULL / width, 0.42 * HEIGHT / height, 25.4 / 300)
    sheet.room(height * scale + 3)
    sheet.picture(rgb, MARGIN, sheet.y, width * scale, height * scale)
    sheet.y += height * scale + 3


def html_page(text: str, pictures: Mapping[str, Drawing]) -> str:
    """The Markdown page as one HTML file, with the pictures inside."""
    body = _markdown().render(text)
    for name, files in pictures.items():
        inline = f"data:image/svg+xml;base64,{base64.b64encode(files.svg).decode()}"
        body = body.replace(f'src="figures/{name}.png"', f'src="{inline}"')
    title = body.partition("<h1>")[2].partition("</h1>")[0]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
