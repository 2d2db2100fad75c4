"""What a scored case leaves on disk: report, details and preview; the SEG is written by `dicom`."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WorkflowError
from .case import Case
from .options import nearest

REPORT_NAME = "DeepCAC.report.json"
DETAILS_NAME = "details.json"
PREVIEW_NAME = "preview.png"

_ATTRIBUTES = {
    "SeriesInstanceUID": "series_uid",
    "StudyInstanceUID": "study_uid",
    "PatientID": "patient_id",
}


def report_values(case: Case) -> dict[str, Any]:
    """The values a report can include by name: ``agatston_score`` (float), ``risk_group`` (int 0–3)."""
    if case.score is None:
        raise TypeError("a report needs a score; run the scoring stage first")
    return {"agatston_score": round(case.score.total, 4), "risk_group": int(case.score.risk_group)}


def report(case: Case, includes: list[dict[str, Any]]) -> dict[str, Any]:
    """The report of a case: label → value, as the workflow's ``ReportExporter.includes`` says.

    Raises:
        WorkflowError: An entry names something unknown.
    """
    data = report_values(case)
    out: dict[str, Any] = {}
    for include in includes:
        label = include.get("label")
        if not label:
            raise WorkflowError(f"ReportExporter: an entry of 'includes' lacks a 'label': {include}")
        if "attr" in include:
            name = str(include["attr"])
            if name not in _ATTRIBUTES:
                raise WorkflowError(f"ReportExporter: unknown attr {name!r}.{nearest(name, _ATTRIBUTES)}")
            out[label] = getattr(case.series, _ATTRIBUTES[name])
        elif "data" in include:
            name = str(include["data"])
            if name not in data:
                raise WorkflowError(f"ReportExporter: unknown data {name!r}.{nearest(name, data)}")
            out[label] = data[name]
        else:
            raise WorkflowError(f"ReportExporter: the entry {label!r} needs 'attr' or 'data'")
    return out


def details(case: Case, provenance: dict[str, Any]) -> dict[str, Any]:
    """Everything a reader of a result may want to know, JSON types only.

    Args:
        provenance: Versions, workflow, weight hashes; the device is added where the case knows it.
    """
    series = {k: v for k, v in asdict(case.series).items() if k not in ("slices", "findings", "patient_id")}
    geometry = case.volume.geometry if case.volume is not None else None
    return {
        "status": "scored" if case.score is not None else "incomplete",
        "series": {**series, "n_slices": len(case.series.slices)},
        "geometry": asdict(geometry) if geometry is not None else None,
        "score": case.score.to_dict() if case.score is not None else None,
        "heart": {k: v for k, v in case.facts.items() if k.startswith("heart_")},
        "calcium": {k: v for k, v in case.facts.items() if k.startswith("patches_")},
        "domain": case.facts.get("domain"),
        "warnings": [{"code": f.code, "message": f.message} for f in case.findings],
        "seconds": {k: round(v, 3) for k, v in case.timings.items()},
        "provenance": {**provenance, **{k: v for k, v in case.facts.items() if k == "device"}},
    }


_WINDOW = (-160.0, 240.0)
"""Display window, HU: the usual mediastinal setting (level 40, width 400)."""
_TILE = 360


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


def _tile(
    hu: npt.NDArray[np.int16],
    heart: npt.NDArray[np.bool_],
    calcium: npt.NDArray[np.bool_],
    spacing: tuple[float, float],
) -> Any:
    """One picture: a plane of the CT in true proportions with heart outline and calcium."""
    from PIL import Image

    height, width = hu.shape[0] * spacing[0], hu.shape[1] * spacing[1]
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(_gray(hu)).resize(size, Image.Resampling.BILINEAR)
    rgb = np.asarray(picture.convert("RGB")).copy()

    def enlarged(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        image = Image.fromarray(mask.astype(np.uint8) * 255)
        return np.asarray(image.resize(size, Image.Resampling.NEAREST)) > 0

    rgb[_edge(enlarged(heart))] = (80, 200, 255)
    rgb[enlarged(calcium)] = (255, 60, 60)
    canvas = Image.new("RGB", (_TILE, _TILE))
    canvas.paste(Image.fromarray(rgb), ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
    return canvas


def preview_slices(case: Case, count: int = 3) -> list[int]:
    """Slices worth a look: those with the most counted calcium, else through the heart.

    Returns:
        Slice indices z, ascending, `count` of them or as many as there are.
    """
    heart, volume = case.heart, case.volume
    if heart is None or volume is None:
        raise TypeError("a preview needs the CT and the heart")
    chosen: list[int] = []
    if case.score is not None:
        weight: dict[int, float] = {}
        for lesion in case.score.lesions:
            for part in lesion.parts:
                weight[part.slice_index] = weight.get(part.slice_index, 0.0) + part.score
        for z in sorted(weight, key=lambda k: -weight[k]):
            if all(abs(z - c) * volume.geometry.spacing[0] >= 5 for c in chosen):
                chosen.append(z)
    inside = np.flatnonzero(heart.any(axis=(1, 2)))
    for share in (0.5, 0.3, 0.7, 0.1, 0.9):
        z = int(inside[int(share * (len(inside) - 1))])
        if z not in chosen:
            chosen.append(z)
    return sorted(chosen[:count])


def preview(case: Case) -> bytes:
    """PNG with the slices of the largest lesions, a coronal and a sagittal view, and the score.

    The heart is outlined in blue, counted calcium filled in red. Patients are seen from their feet and
    from the front; no name or ID is in the picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    from ..imaging.orientation import to_canonical

    volume, heart, calcium, score = case.volume, case.heart, case.calcium, case.score
    if volume is None or heart is None or calcium is None or score is None:
        raise TypeError("a preview needs the CT, the heart, the calcium and the score")
    threshold = score.parameters["threshold"]
    counted = calcium if threshold is None else calcium & (volume.hu >= threshold)
    slices = preview_slices(case)
    turned = to_canonical(volume.hu, volume.geometry)
    hu, geometry = turned.array, turned.geometry
    heart = to_canonical(heart, volume.geometry).array
    counted = to_canonical(counted, volume.geometry).array
    flipped = volume.geometry.axes[0][2] < 0
    order = [len(hu) - 1 - z if flipped else z for z in slices]
    sz, sy, sx = geometry.spacing
    middle = [int(np.flatnonzero(heart.any(axis=a)).mean()) for a in ((1, 2), (0, 2), (0, 1))]
    tiles = [
        (f"slice {z + 1}", _tile(hu[k], heart[k], counted[k], (sy, sx)))
        for z, k in zip(slices, order, strict=True)
    ]
    projected = np.asarray(counted.any(axis=1)), np.asarray(counted.any(axis=2))
    front = np.s_[::-1, middle[1], :]
    side = np.s_[::-1, :, middle[2]]
    tiles.append(("coronal", _tile(hu[front], heart[front], projected[0][::-1], (sz, sx))))
    tiles.append(("sagittal", _tile(hu[side], heart[side], projected[1][::-1], (sz, sy))))
    head = 64
    sheet = Image.new("RGB", (3 * _TILE, head + 2 * _TILE), (16, 16, 16))
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(26), ImageFont.load_default(15)
    group = score.risk_group
    draw.text(
        (14, 6),
        f"Agatston score {score.total:.1f}   risk group {int(group)} ({group.label})",
        fill="white",
        font=font,
    )
    line = (
        f"rule {score.rule} · {score.volume_mm3:.0f} mm3 · {len(score.lesions)} lesions · "
        f"heart {case.facts.get('heart_volume_ml', '?')} mL"
    )
    draw.text((14, 40), line, fill=(190, 190, 190), font=small)
    for i, (label, tile) in enumerate(tiles):
        corner = ((i % 3) * _TILE, head + (i // 3) * _TILE)
        sheet.paste(tile, corner)
        draw.text((corner[0] + 8, corner[1] + 6), label, fill=(255, 230, 120), font=small)
    _legend(draw, (2 * _TILE + 16, head + _TILE + 30), case, small)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()


def _legend(draw: Any, corner: tuple[int, int], case: Case, font: Any) -> None:
    x, y = corner
    lines = [
        ("heart", (80, 200, 255)),
        ("counted calcium (below: projected)", (255, 60, 60)),
    ]
    for text, colour in lines:
        draw.rectangle((x, y + 4, x + 10, y + 14), fill=colour)
        draw.text((x + 18, y), text, fill=colour, font=font)
        y += 22
    if case.findings:
        y += 8
        draw.text((x, y), "warnings:", fill=(255, 200, 80), font=font)
        for finding in case.findings[:8]:
            y += 20
            draw.text((x, y), f"· {finding.code}", fill=(255, 200, 80), font=font)
    if outside := case.facts.get("domain", {}).get("outside"):
        y += 28
        draw.text((x, y), "unlike what the weights know:", fill=(255, 200, 80), font=font)
        y += 20
        draw.text((x, y), f"· {', '.join(outside)}", fill=(255, 200, 80), font=font)
    y += 30
    draw.text((x, y), "Research use only. Not a medical device.", fill=(150, 150, 150), font=font)
