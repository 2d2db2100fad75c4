"""The DICOM SR of a case with a score and the SEG that it was counted in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline.arteries import ARTERIES, BY_CLASS, artery_scores
from ..pipeline.case import Case
from ..pipeline.cautions import cautions
from ..pipeline.facts import HEART_MEASURES, HEART_SOURCE, SCORE
from ..pipeline.grades import percentile_of
from ..pipeline.shown import RESEARCH_USE
from ..pipeline.step import Context
from ..pipeline.writer import Writer, register_writer
from ..scoring.grades import cac_drs

if TYPE_CHECKING:
    from ..dicom import MeasuredArtery
    from ..dicom.derived import Signature


def write_sr(
    path: Path,
    case: Case,
    *,
    segmentation: Path,
    provenance: Mapping[str, Any],
    signature: Signature | None = None,
    remarks: tuple[str, ...] = (),
) -> None:
    """Write it: see `dicom.write_structured_report`.

    Args:
        segmentation: The DICOM SEG of the case.
        provenance: Version and weight hashes.
        signature: Who has read and corrected the case; None: nobody.
        remarks: What is said before all others beside the numbers.

    Raises:
        InputUnreadable: The SEG cannot be read.
        DiskFull, OutputUnwritable: The SR cannot be written.
    """
    # They load pydicom's tables of codes, which only who writes needs.
    from ..dicom import MeasuredCalcium, MeasuredLesion, write_structured_report

    score, heart, ranked = case[SCORE], case.get(HEART_MEASURES, {}), percentile_of(case)
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
            cac_drs=cac_drs(score.total).a,
            territories=cac_drs(score.total, artery_scores(case)).n,
            arteries=_arteries(case),
            percentile=None if ranked is None else (ranked.reached, ranked.below),
            population="" if ranked is None else ranked.population,
            heart_ml=heart.get("heart_volume_ml"),
            heart_centre=heart.get("heart_centre_lps"),
            lesions=tuple(
                MeasuredLesion(score=x.score, volume_mm3=x.volume_mm3, centre=x.centroid_lps)
                for x in score.lesions
            ),
            parameters=_parameters(score.parameters, provenance["weights"], case.get(HEART_SOURCE)),
            remarks=(*map(_ascii, remarks), *_remarks(case)),
        ),
        algorithm_version=provenance["deepcac2"],
        signature=signature,
    )


def _arteries(case: Case) -> tuple[MeasuredArtery, ...]:
    """The arteries with calcium, in their order, what has no artery last."""
    from ..dicom import MeasuredArtery

    parts = case.get(BY_CLASS, {}).get("arteries", {})
    known = {label.name: label for label in ARTERIES.image.classes} if ARTERIES.image else {}
    return tuple(
        MeasuredArtery(
            label=known[name],
            score=part["score"],
            volume_mm3=part["volume_mm3"],
            centre=tuple(part["centroid_lps"]),
        )
        for name, part in parts.items()
        if part["score"] > 0
    )


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


def _parameters(
    rule: dict[str, Any], weights: dict[str, dict[str, str]], heart: Mapping[str, Any] | None
) -> str:
    """The rule, the weights and a heart that was given, in one line of ASCII, whatever they are called."""
    said = {"rule": rule["name"], **{k: v for k, v in rule.items() if k not in ("name", "summary")}}
    said |= {f"{role} weights": f"{w['name']} sha256 {w['sha256']}" for role, w in sorted(weights.items())}
    if heart is not None:
        said["heart from"] = f"{heart['format']} sha256 {' '.join(heart['sha256'])}"
    return _ascii("; ".join(f"{k}: {v}" for k, v in said.items()))


def _write(path: Path, case: Case, options: Any, context: Context) -> None:
    write_sr(path, case, segmentation=case.outputs["seg"], provenance=context.provenance)


SR = register_writer(
    Writer(
        name="sr",
        file="cac.sr.dcm",
        write=_write,
        needs=(SCORE,),
        beside=("seg",),
        module="ReportExporter",
        query="dicom:mod=sr",
    )
)
