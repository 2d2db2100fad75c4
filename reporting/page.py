"""Pages: Markdown, and the same as one HTML file with its pictures inside; numbers and tables in them."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..stats.agreement import Estimate
from ..stats.tables import Flow
from ..system.atomic import write_whole


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


REPORT = "report.md"
HTML = "report.html"


def write_page(folder: Path, text: str, pictures: Mapping[str, bytes]) -> Path:
    """Write ``report.md``, ``report.html`` and ``figures/*.png``.

    Args:
        folder: Made when missing; files of these names are replaced.
        text: Markdown that shows the pictures as ``figures/NAME.png``.
        pictures: PNG files by name.

    Returns:
        The path of the HTML page.

    Raises:
        DiskFull, OutputUnwritable: A file cannot be written.
    """
    for name, data in pictures.items():
        write_whole(folder / "figures" / f"{name}.png", data)
    write_whole(folder / REPORT, text.encode())
    write_whole(folder / HTML, html_page(text, pictures).encode())
    return folder / HTML


def html_page(text: str, pictures: Mapping[str, bytes]) -> str:
    """The Markdown page as one HTML file, with the pictures inside."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    for name, data in pictures.items():
        inline = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        body = body.replace(f'src="figures/{name}.png"', f'src="{inline}"')
    title = body.partition("<h1>")[2].partition("</h1>")[0]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
