"""One page a case: the heart, what was counted where, what it is called, and what must be known with it.

As PDF, as DICOM Encapsulated PDF and as DICOM Secondary Capture, where ``--keep`` or a target asks for them.
The page has PatientID, age, sex and date of the study, as the table and the SR do, and no name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import numpy.typing as npt

from ..imaging.labels import HEART
from ..imaging.orientation import to_canonical
from ..pipeline.arteries import ARTERIES, BY_CLASS, NOT_CORONARY
from ..pipeline.case import Case
from ..pipeline.cautions import MARK, cautions
from ..pipeline.doubt import DOUBT
from ..pipeline.facts import CT, GEOMETRY, HEART_MEASURES, SCORE
from ..pipeline.grades import GRADES, percentile_of
from ..pipeline.shown import RESEARCH_USE, Shown, shown
from ..pipeline.step import Context
from ..pipeline.writer import Writer, register_writer
from ..system.atomic import write_whole
from .preview import middle_of, plane_picture, preview_slices
from .sheet import FULL, MARGIN, QUIET, RED, WIDTH, Sheet, Style

_TILE_MM, _GAP_MM = 59.0, 2.5
"""Side of a picture on the page, and between two. Chosen."""
_SIDE = 620
"""Of a picture, pixels: about 270 dpi. Chosen."""
_MARGIN_MM = 12.0
"""Around the heart in the pictures. Chosen."""
_BAR_MM = 50.0
"""Length of the scale bar."""
_LISTED = 12
"""Lesions in the table at most; the details have all."""
_DPI = 120
"""Of the Secondary Capture: a page has 992 × 1402 pixels."""

TITLE = "Coronary calcium from chest CT"
_SMALL, _QUIET, _HEAD = Style(size=7.5), Style(size=7.5, colour=QUIET), Style(size=9, bold=True)


def case_page(case: Case, provenance: Mapping[str, Any]) -> Sheet | None:
    """The page of a case; None where it has no result. Should it not fit on one, it has a second.

    Args:
        provenance: Of the chain (``deepcac2``, ``workflow``, ``weights``).
    """
    what = shown(case)
    if what is None:
        return None
    sheet = Sheet(foot=f"{RESEARCH_USE} Made by deepcac2 {provenance['deepcac2']}, looked at by nobody.")
    said = cautions(case)
    sheet.put(MARGIN, sheet.y, TITLE, Style(size=10, colour=QUIET))
    sheet.put(WIDTH - MARGIN, sheet.y, RESEARCH_USE, Style(size=8, bold=True, colour=RED), "right")
    sheet.y += 5.5
    title = ", ".join(what.title.split("   "))
    sheet.paragraph(f"{title} {MARK if said else ''}", Style(size=16, bold=True), gap=0.5)
    sheet.paragraph(what.line, Style(size=9, colour=QUIET), gap=2)
    if said:
        sheet.boxed([f"{MARK} {sentence}" for sentence in said])
    _facts(sheet, case)
    _pictures(sheet, case, what)
    top = sheet.y
    _by_class(sheet, case)
    left, sheet.y = sheet.y, top
    _grades(sheet, case)
    sheet.y = max(sheet.y, left)
    _lesions(sheet, case)
    _sentences(sheet, case, provenance)
    return sheet


def _facts(sheet: Sheet, case: Case) -> None:
    """Who, when and how, in three columns."""
    series, geometry = case.series, case.get(GEOMETRY) or case[CT].geometry
    day, scan = series.study_date, f"{series.manufacturer} {series.model_name}".strip()
    thick = "–" if series.slice_thickness is None else f"{series.slice_thickness:g} mm"
    cells = [
        ("Patient ID", series.patient_id),
        ("Study date", f"{day[:4]}-{day[4:6]}-{day[6:]}" if len(day) == 8 and day.isdecimal() else day),
        ("Age, sex", ", ".join(filter(None, (_years(series.patient_age), series.patient_sex)))),
        ("Series", series.series_description),
        ("Scanner", scan),
        ("Kernel", series.kernel or ", ".join(series.kernels)),
        ("Tube voltage", "–" if series.kvp is None else f"{series.kvp:g} kV"),
        ("Slices", f"{geometry.shape[0]}, {thick} thick, {geometry.spacing[0]:.3g} mm apart"),
        ("Pixels", f"{geometry.spacing[1]:.3g} × {geometry.spacing[2]:.3g} mm"),
    ]
    third = FULL / 3
    rows = [[x for name, value in cells[i : i + 3] for x in (name, value or "–")] for i in range(0, 9, 3)]
    sheet.table((), rows, (20.0, third - 20.0) * 3)


def _years(age: int | None) -> str:
    return "" if age is None else f"{age} years"


@dataclass(frozen=True, kw_only=True)
class _View:
    """What the pictures are cut from: arrays (z, y, x) that grow to the head, the back and the left.

    Attributes:
        hu, outline, marked, numbers: The CT, the heart, what is marked, and the number of the lesion of each
            counted voxel, 0 elsewhere.
        spacing: mm (z, y, x).
        box: What is shown of them: the heart and `_MARGIN_MM` around it.
    """

    hu: npt.NDArray[np.int16]
    outline: npt.NDArray[np.bool_]
    marked: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.uint16]
    spacing: tuple[float, float, float]
    box: tuple[slice, slice, slice]


def _view(case: Case, what: Shown) -> _View:
    volume = case[CT]
    turned = to_canonical(volume.hu, volume.geometry)
    spacing = turned.geometry.spacing

    def seen(array: npt.NDArray[Any]) -> Any:
        return to_canonical(array, volume.geometry).array

    outline = seen(what.outline.mask)
    box = []
    for axis in range(3):
        there = np.flatnonzero(outline.any(axis=tuple(a for a in range(3) if a != axis)))
        margin = int(_MARGIN_MM / spacing[axis]) + 1
        ends = (there[0], there[-1] + 1) if len(there) else (0, outline.shape[axis])
        box.append(slice(max(0, int(ends[0]) - margin), int(ends[1]) + margin))
    longest = max((part.stop - part.start) * mm for part, mm in zip(box[1:], spacing[1:], strict=True))
    for axis in (1, 2):  # a square, where the scan has it
        missing = round(longest / spacing[axis]) - (box[axis].stop - box[axis].start)
        start = max(0, box[axis].start - missing // 2)
        box[axis] = slice(start, box[axis].stop + missing - missing // 2)
    return _View(
        hu=turned.array,
        outline=outline,
        marked=seen(what.marked.array),
        numbers=seen(lesion_numbers(case)),
        spacing=spacing,
        box=(box[0], box[1], box[2]),
    )


def lesion_numbers(case: Case) -> npt.NDArray[np.uint16]:
    """uint16 (z, y, x): the number of the lesion that a counted voxel belongs to, 0 elsewhere.

    Counted voxels that touch (26 neighbours) are a lesion of the table; for a rule that gathers them in
    another way, those are numbered that are found in the table by their size and centre.
    """
    score = case.get(SCORE)
    if score is None:
        return np.zeros(case[CT].hu.shape, dtype=np.uint16)
    pieces, count = cc3d.connected_components(score.counted, connectivity=26, return_N=True)
    about = cc3d.statistics(pieces)
    number_of = np.zeros(count + 1, dtype=np.uint16)
    for lesion in score.lesions:
        near = np.abs(about["centroids"][1:] - lesion.centroid_index).max(axis=1) < 1e-3
        for piece in 1 + np.flatnonzero(near & (about["voxel_counts"][1:] == lesion.n_voxels)):
            number_of[piece] = lesion.index
    numbered: npt.NDArray[np.uint16] = number_of[pieces]
    return numbered


def _pictures(sheet: Sheet, case: Case, what: Shown) -> None:
    """Three slices, two further views and the legend, all around the heart."""
    view, geometry = _view(case, what), case[CT].geometry
    sheet.room(2 * _TILE_MM + 3 * _GAP_MM)
    top, (z, y, x), (sz, sy, sx) = sheet.y, view.box, view.spacing
    for place, index in enumerate(preview_slices(what, geometry.spacing[0])):
        k = index if geometry.axes[0][2] >= 0 else len(view.hu) - 1 - index
        words = f"slice {geometry.slice_number(index)}"
        cut = view.hu[k, y, x], view.outline[k, y, x], view.marked[k, y, x]
        _tile(sheet, what, cut, (sy, sx), (place, 0), words, "RLAP", numbers=view.numbers[k, y, x], top=top)
    middle = middle_of(view.outline, (0, 2)), middle_of(view.outline, (0, 1))
    front = view.hu[z, middle[0], x], view.outline[z, middle[0], x], view.marked[z, y, x].max(axis=1)
    side = view.hu[z, y, middle[1]], view.outline[z, y, middle[1]], view.marked[z, y, x].max(axis=2)
    for place, (name, cut, pixel, letters) in enumerate(
        (("coronal", front, sx, "RLSI"), ("sagittal", side, sy, "APSI"))
    ):
        up = (cut[0][::-1], cut[1][::-1], cut[2][::-1])
        _tile(sheet, what, up, (sz, pixel), (place, 1), name, letters, top=top)
    _legend(sheet, what, MARGIN + 2 * (_TILE_MM + _GAP_MM), top + _TILE_MM + _GAP_MM + 1)
    sheet.y = top + 2 * (_TILE_MM + _GAP_MM) + 1


def _tile(
    sheet: Sheet,
    what: Shown,
    cut: tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_], npt.NDArray[np.uint8]],
    spacing: tuple[float, float],
    place: tuple[int, int],
    words: str,
    letters: str,
    *,
    top: float,
    numbers: npt.NDArray[np.uint16] | None = None,
) -> None:
    """One picture: letters name its left, right, upper and lower side in the patient."""
    from matplotlib.patheffects import withStroke

    x, y = (MARGIN + place[0] * (_TILE_MM + _GAP_MM), top + place[1] * (_TILE_MM + _GAP_MM))
    image = np.asarray(plane_picture(*cut, spacing, _SIDE, classes=what.marked.classes))
    axes = sheet.picture(image, x, y, _TILE_MM, _TILE_MM)
    edge = [withStroke(linewidth=1.6, foreground="black")]

    def write(at: tuple[float, float], text: str, size: float = 7.5, **more: Any) -> None:
        ink = {"color": "white", "path_effects": edge, "parse_math": False, "clip_on": True}
        axes.text(*at, text, fontsize=size, **{"ha": "center", "va": "center", **ink, **more})

    middle, near, far = _SIDE / 2, _SIDE * 0.035, _SIDE * 0.965
    ends = ((near, middle), (far, middle), (middle, near), (middle, far))
    for at, letter in zip(ends, letters, strict=True):
        write(at, letter)
    write((near * 0.6, near), words, ha="left", color="#ffe678")
    rows, columns = cut[0].shape
    scale = _SIDE / max(rows * spacing[0], columns * spacing[1])
    bar, low = _BAR_MM * scale, _SIDE * 0.93
    axes.plot([near, near + bar], [low, low], color="white", linewidth=1.6, path_effects=edge)
    write((near + bar / 2, low - near), f"{_BAR_MM / 10:g} cm", 6.5)
    if numbers is None:
        return
    size = round(columns * spacing[1] * scale), round(rows * spacing[0] * scale)
    corner = (_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2
    for number in np.unique(numbers[numbers > 0]):
        row, column = np.argwhere(numbers == number).mean(axis=0)
        at = corner[0] + (column + 0.5) * size[0] / columns, corner[1] + (row + 0.5) * size[1] / rows
        write((at[0] + near * 0.9, at[1] - near * 0.9), str(number), 6.5)


def _legend(sheet: Sheet, what: Shown, x: float, y: float) -> None:
    classes = what.marked.classes
    if len(classes) == 1:
        lines = [(what.outline_name, HEART.colour), (what.marked_name, classes[0].colour)]
    else:
        lines = [(what.outline_name, HEART.colour), *((label.name, label.colour) for label in classes)]
    for text, colour in lines:
        sheet.patch(x, y + 0.4, colour)
        sheet.put(x + 4, y, text, _SMALL)
        y += 4.2
    for text in (
        "Numbers: lesions, see below. Coronal and sagittal:",
        "all that is marked, projected. R, L, A, P, S, I: the",
        "patient's right, left, front, back, head and feet.",
    ):
        sheet.put(x, y + 1, text, Style(size=6, colour=QUIET))
        y += 3.2


def _by_class(sheet: Sheet, case: Case) -> None:
    """What each artery has, and what was not counted."""
    found = case.get(BY_CLASS)
    if found is None:
        return
    width = FULL * 0.56
    arteries = [[n, _one(p["score"]), _one(p["volume_mm3"])] for n, p in found["arteries"].items()
                if p["score"] > 0 or n in _NAMES]  # fmt: skip
    sheet.table(("Artery", "Score", "Volume, mm³"), arteries, (width - 44, 20, 24), right=(1, 2))
    left = [[n, _one(p["score"]), _one(p["volume_mm3"])] for n, p in found["not_coronary"].items()
            if p["score"] > 0]  # fmt: skip
    if left:
        heading = ("Not counted", "Would score", "Volume, mm³")
        sheet.table(heading, left, (width - 44, 20, 24), right=(1, 2))
    else:
        sheet.paragraph("Nothing else as bright was found in the heart and left out.", _QUIET, width=width)


_NAMES = frozenset(label.name for label in (ARTERIES.image.classes[:-1] if ARTERIES.image else ()))
"""Arteries that are listed without calcium, too."""


def _one(value: float) -> str:
    return f"{value:.1f}"


def _grades(sheet: Sheet, case: Case) -> None:
    """What the score is called."""
    grades, score = case.get(GRADES), case.get(SCORE)
    if grades is None or score is None:
        return
    found = percentile_of(case)
    percentile = str(found) if found else f"– ({grades.get('no_percentile', 'not known')})"
    rows = [
        ["CAC-DRS", grades["cac_drs"].removeprefix("CAC-DRS ")],
        ["Grade, chest CT", grades["chest_ct_grade"]],
        ["Class", grades["score_class"]],
        ["Percentile", f"{percentile} {found.population if found else ''}"],
        ["Arterial age", f"{grades['arterial_age']:.0f} years"],
        ["Volume", f"{score.volume_mm3:.0f} mm³"],
    ]
    doubt = case.get(DOUBT, {})
    if interval := doubt.get("interval"):
        low, high = interval["score"]
        rows.append(["Interval", f"{low:.0f} to {high:.0f}, as measured on simulated scans"])
    if doubt.get("possible_score"):
        rows.append(["Possible", f"{doubt['possible_score']:.1f} more, not sure enough to count"])
    if heart := case.get(HEART_MEASURES, {}).get("heart_volume_ml"):
        rows.append(["Heart", f"{heart:.0f} mL"])
    width = FULL * 0.4
    sheet.table((), rows, (24, width - 24), x=MARGIN + FULL - width)


def _lesions(sheet: Sheet, case: Case) -> None:
    """The lesions, the highest score first."""
    score = case.get(SCORE)
    if score is None or not score.lesions:
        return
    of = _artery_of_lesions(case)
    heading = ("Lesion", "Artery", "Score", "Volume, mm³", "Max. HU", "Weights", "Slices")
    rows = [
        [
            str(x.index), of.get(x.index, "–"), _one(x.score), _one(x.volume_mm3), str(x.max_hu),
            ", ".join(map(str, x.weights)), "–".join(map(str, dict.fromkeys(x.slice_numbers))),
        ]
        for x in score.lesions[:_LISTED]
    ]  # fmt: skip
    share = FULL / 100
    sheet.table(heading, rows, [w * share for w in (10, 24, 12, 15, 12, 13, 14)], right=(2, 3, 4))
    if len(score.lesions) > _LISTED:
        sheet.paragraph(f"and {len(score.lesions) - _LISTED} smaller ones, in details.json", _QUIET)


def _artery_of_lesions(case: Case) -> dict[int, str]:
    """The artery that most voxels of each lesion lie in, by the lesion's number, where arteries are named."""
    if ARTERIES not in case:
        return {}
    labels, numbers = case[ARTERIES], lesion_numbers(case)
    there = numbers > 0
    number, value = numbers[there], labels.array[there]
    names = {label.value: label.name for label in labels.classes}
    counts = {int(n): np.bincount(value[number == n]) for n in np.unique(number)}
    return {n: names.get(int(c.argmax()), "–") for n, c in counts.items()}


def _sentences(sheet: Sheet, case: Case, provenance: Mapping[str, Any]) -> None:
    """Warnings, rule and weights."""
    if warnings := dict.fromkeys(f.message for f in case.warnings):
        sheet.paragraph("Warnings", _HEAD, gap=0.3)
        for message in warnings:
            sheet.paragraph(f"· {message[:1].upper()}{message[1:]}.", _SMALL, gap=0.3)
        sheet.y += 1
    said = [f"Workflow {provenance.get('workflow', '')}"]
    if SCORE in case:
        parameters = case[SCORE].parameters
        said.append(f"rule {parameters['name']}: {parameters.get('summary', '')}".removesuffix(": "))
    said += [f"{role} weights {w['name']}" for role, w in sorted(provenance["weights"].items())]
    sheet.paragraph("; ".join(text.rstrip(".") for text in said) + ".", _QUIET, gap=0.3)
    sheet.paragraph(f"Series {case.series.series_uid}", _QUIET)


def _write_pdf(path: Path, case: Case, options: Any, context: Context) -> bool:
    sheet = case_page(case, context.provenance)
    if sheet is not None:
        write_whole(path, sheet.pdf(TITLE))
    return sheet is not None


def _write_encapsulated(path: Path, case: Case, options: Any, context: Context) -> bool:
    from ..dicom.document import write_encapsulated_pdf  # it loads pydicom's tables of codes

    sheet = case_page(case, context.provenance)
    if sheet is not None:
        write_encapsulated_pdf(
            path,
            sheet.pdf(TITLE),
            series=case.series,
            derived=case.outputs["seg"],
            title=TITLE,
            version=context.provenance["deepcac2"],
        )
    return sheet is not None


def _write_capture(path: Path, case: Case, options: Any, context: Context) -> bool:
    from ..dicom.document import write_secondary_capture  # it loads pydicom's tables of codes

    sheet = case_page(case, context.provenance)
    if sheet is not None:
        write_secondary_capture(
            path,
            list(sheet.pictures(_DPI)),
            series=case.series,
            derived=case.outputs["seg"],
            title=TITLE,
            version=context.provenance["deepcac2"],
        )
    return sheet is not None


PDF = register_writer(
    Writer(name="pdf", file="cac.pdf", write=_write_pdf, needs=(CT,), query="pdf:mod=page", keep="pdf")
)
ENCAPSULATED = register_writer(
    Writer(
        name="dicom-pdf",
        file="cac.pdf.dcm",
        write=_write_encapsulated,
        needs=(CT,),
        uses=(NOT_CORONARY,),
        beside=("seg",),
        query="dicom:mod=pdf",
        keep="dicom-pdf",
    )
)
CAPTURE = register_writer(
    Writer(
        name="secondary-capture",
        file="cac.sc.dcm",
        write=_write_capture,
        needs=(CT,),
        beside=("seg",),
        query="dicom:mod=sc",
        keep="secondary-capture",
    )
)
