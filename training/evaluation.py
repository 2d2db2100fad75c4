"""How good a run's results are where the truth is known: Dice of the masks, agreement of the scores."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dicom import Series, read_segmentation
from ..errors import InputError
from ..imaging import Geometry
from ..pipeline.chain import series_folder
from ..pipeline.run import read_details
from ..scoring import risk_group


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks of the same shape, in [0, 1]; 1 when both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """One patient against the truth.

    Attributes:
        status: Of the run: ``scored``, ``rejected``, ``failed`` or ``missing``.
        heart_dice, calcium_dice: In [0, 1], None unless scored.
        score, true_score: Agatston scores by the same rule.
        group, true_group: Risk groups.
    """

    patient_id: str
    status: str
    heart_dice: float | None = None
    calcium_dice: float | None = None
    score: float | None = None
    true_score: float
    group: int | None = None
    true_group: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All patients and what they amount to.

    Attributes:
        cases: One per patient with a truth.
        summary: n, scored, heart Dice (mean, minimum), calcium Dice (mean over patients with calcium),
            Spearman's ρ of the scores, share of equal risk groups, mean absolute error of the score,
            sensitivity and specificity of a score above 0.
    """

    cases: tuple[CaseResult, ...]
    summary: dict[str, float | int | None]


def evaluate(results: Path, truth: Path) -> Evaluation:
    """Compare the output of `deepcac2 run` with the truth that `deepcac2 simulate` wrote.

    Args:
        results: Output folder of a run.
        truth: Folder with ``*/truth.json`` and ``*/truth.seg.dcm``.

    Raises:
        InputError: There is no truth, or a file cannot be read.
    """
    files = sorted(truth.glob("**/truth.json"))
    if not files:
        raise InputError(f"no truth.json below {truth}; give a folder that 'deepcac2 simulate' wrote")
    cases = tuple(_case(results, f) for f in files)
    return Evaluation(cases=cases, summary=_summary(cases))


def _case(results: Path, path: Path) -> CaseResult:
    known = json.loads(path.read_text())
    patient, true_score = str(known["patient_id"]), float(known["score"])
    series = Series(series_uid=known["series_uid"], patient_id=patient)
    folder = results / series_folder(series)
    base: dict[str, Any] = {
        "patient_id": patient,
        "true_score": true_score,
        "true_group": int(risk_group(true_score)),
    }
    if not folder.exists():
        return CaseResult(status="missing", **base)
    content = read_details(folder)
    if content["status"] != "scored":
        return CaseResult(status=content["status"], **base)
    geometry = _geometry(content["geometry"])
    ours = read_segmentation(folder / "cac.seg.dcm", geometry)
    theirs = read_segmentation(path.with_name("truth.seg.dcm"), geometry)
    total = float(content["score"]["total"])
    return CaseResult(
        status="scored",
        heart_dice=dice(ours["heart"], theirs["heart"]),
        calcium_dice=dice(ours["calcium"], theirs["calcium"]),
        score=total,
        group=int(risk_group(total)),
        **base,
    )


def _geometry(content: dict[str, Any]) -> Geometry:
    z, y, x = (tuple(a) for a in content["axes"])
    return Geometry(
        shape=tuple(content["shape"]),
        spacing=tuple(content["spacing"]),
        origin=tuple(content["origin"]),
        axes=(z, y, x),
    )


def _summary(cases: tuple[CaseResult, ...]) -> dict[str, float | int | None]:
    from scipy.stats import spearmanr

    scored = [c for c in cases if c.status == "scored"]
    ours = np.array([c.score for c in scored], dtype=float)
    true = np.array([c.true_score for c in scored], dtype=float)
    hearts = [c.heart_dice for c in scored if c.heart_dice is not None]
    calcium = [c.calcium_dice for c in scored if c.calcium_dice is not None and c.true_score > 0]
    varied = len(scored) > 2 and len(set(ours)) > 1 and len(set(true)) > 1
    positive, negative = true > 0, true == 0
    return {
        "n": len(cases),
        "scored": len(scored),
        "heart_dice_mean": float(np.mean(hearts)) if hearts else None,
        "heart_dice_min": float(np.min(hearts)) if hearts else None,
        "calcium_dice_mean": float(np.mean(calcium)) if calcium else None,
        "spearman": float(spearmanr(ours, true).statistic) if varied else None,
        "risk_group_accuracy": float(np.mean([c.group == c.true_group for c in scored])) if scored else None,
        "score_mean_absolute_error": float(np.abs(ours - true).mean()) if scored else None,
        "sensitivity_above_0": float((ours[positive] > 0).mean()) if positive.any() else None,
        "specificity_above_0": float((ours[negative] == 0).mean()) if negative.any() else None,
    }


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """JSON types only."""
    return {"summary": evaluation.summary, "cases": [asdict(c) for c in evaluation.cases]}
