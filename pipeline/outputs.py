"""What a case leaves on disk: report and details as JSON, and the SR. Picture: `previews`; SEG: `dicom`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..dicom import MeasuredCalcium, MeasuredLesion, write_structured_report
from ..errors import WorkflowError
from ..imaging import Geometry
from ..system.nearest import nearest
from .case import Case
from .cautions import cautions
from .facts import CT, DEVICE, HEART_MEASURES, SCORE
from .step import sections, values

SEG_NAME = "cac.seg.dcm"
REPORT_NAME = "DeepCAC.report.json"
DETAILS_NAME = "details.json"
PREVIEW_NAME = "preview.png"
SR_NAME = "cac.sr.dcm"
CSV, PARQUET = "results.csv", "results.parquet"
"""The table's files in the output folder."""

_ATTRIBUTES = {
    "SeriesInstanceUID": "series_uid",
    "StudyInstanceUID": "study_uid",
    "PatientID": "patient_id",
}


def report_values(case: Case) -> dict[str, Any]:
    """The values that a report can include by name (`step.values`), those that the case has."""
    found = {name: value.of(case) for name, (value, _) in values().items()}
    return {name: value for name, value in found.items() if value is not None}


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
            if name not in values():
                raise WorkflowError(f"ReportExporter: unknown data {name!r}.{nearest(name, values())}")
            if name not in data:
                raise WorkflowError(f"ReportExporter: {name!r} needs {values()[name][1].module} before it")
            out[label] = data[name]
        elif "text" in include:
            out[label] = str(include["text"])
        else:
            raise WorkflowError(f"ReportExporter: the entry {label!r} needs 'attr', 'data' or 'text'")
    return out


def details(case: Case, provenance: dict[str, Any], *, geometry: Geometry | None = None) -> dict[str, Any]:
    """Everything a reader of a result may want to know, JSON types only.

    Args:
        provenance: Versions, workflow, weight hashes; the device is added where the case knows it.
        geometry: The CT's grid, where it is known and the CT itself is not in the case.
    """
    plain = replace(case.series, slices=(), left_out=(), findings=())  # of images only their number
    series = {k: v for k, v in asdict(plain).items() if k not in ("slices", "findings", "patient_id")}
    if CT in case:
        geometry = case[CT].geometry
    score = case.get(SCORE)
    device = {"device": case[DEVICE]} if DEVICE in case else {}
    return {
        **({"status": "scored"} if case.stop is None else asdict(case.stop)),
        "series": {
            **series,
            "left_out": len(case.series.left_out),
            "n_slices": len(case.series.slices),
        },
        "geometry": asdict(geometry) if geometry is not None else None,
        "score": score.to_dict() if score is not None else None,
        "cautions": list(cautions(case)),
        **{section: case.get(fact, fact.absent) for section, fact in sections().items()},
        "warnings": [{"code": f.code, "message": f.message} for f in case.warnings],
        "seconds": {k: round(v, 3) for k, v in case.timings.items()},
        "provenance": {**provenance, **device},
    }


def write_sr(path: Path, case: Case, *, segmentation: Path, provenance: dict[str, Any]) -> None:
    """Write the DICOM SR of a case with a score: see `dicom.write_structured_report`.

    Args:
        segmentation: The DICOM SEG of the case.
        provenance: Version and weight hashes.

    Raises:
        InputUnreadable: The SEG cannot be read.
        DiskFull, OutputUnwritable: The SR cannot be written.
    """
    score, heart = case[SCORE], case.get(HEART_MEASURES, {})
    write_structured_report(
        path,
        series=case.series,
        segmentation=segmentation,
        measured=MeasuredCalcium(
            score=score.total,
            volume_mm3=score.volume_mm3,
            mass_mg=score.mass_mg,
            threshold_hu=score.parameters["threshold"],
            risk_group=int(score.risk_group),
            heart_ml=heart.get("heart_volume_ml"),
            heart_centre=heart.get("heart_centre_lps"),
            lesions=tuple(
                MeasuredLesion(score=x.score, volume_mm3=x.volume_mm3, centre=x.centroid_lps)
                for x in score.lesions
            ),
            parameters=_parameters(score.parameters, provenance["weights"]),
            remarks=_remarks(case),
        ),
        algorithm_version=provenance["deepcac2"],
    )


RESEARCH_USE = "Research use only. Not a medical device."
"""Stands in every picture and structured report."""


def _remarks(case: Case) -> tuple[str, ...]:
    """What stands beside the numbers in the SR: cautions first, all warnings, and what the report is for."""
    said = [f"Caution: {sentence}" for sentence in cautions(case)]
    said += [f"Warning ({finding.code}): {finding.message}" for finding in case.findings]
    return tuple(_ascii(text) for text in (*dict.fromkeys(said), RESEARCH_USE))


def _ascii(text: str) -> str:
    """Text that every reader shows, whatever is in it: one line of printable ASCII."""
    plain = text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in plain)


_PLAIN = str.maketrans({"°": " degrees", "–": "-", "−": "-", "…": "...", "³": "3", "×": "x"})


def _parameters(rule: dict[str, Any], weights: dict[str, dict[str, str]]) -> str:
    """The rule and the weights in one line of ASCII, whatever the user has named them."""
    said = {"rule": rule["name"], **{k: v for k, v in rule.items() if k not in ("name", "summary")}}
    said |= {f"{role} weights": f"{w['name']} sha256 {w['sha256']}" for role, w in sorted(weights.items())}
    return _ascii("; ".join(f"{k}: {v}" for k, v in said.items()))
