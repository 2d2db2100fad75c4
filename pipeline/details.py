"""`details.json`: all that is known of a series at its end. By it a run finds its way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ..system.codec import to_plain
from .case import OMITTED, Case
from .cautions import cautions
from .facts import DEVICE, GEOMETRY, SCORE
from .step import sections


def details(case: Case, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a reader of a result may want to know, JSON types only.

    Args:
        provenance: Versions, workflow, weight hashes; the device is added where the case knows it.
    """
    plain = replace(case.series, slices=(), left_out=(), findings=())  # of images only their number
    series = {k: v for k, v in asdict(plain).items() if k not in ("slices", "findings", "patient_id")}
    score = case.get(SCORE)
    device = {"device": case[DEVICE]} if DEVICE in case else {}
    return {
        **({"status": "scored"} if case.stop is None else asdict(case.stop)),
        "series": {
            **series,
            "left_out": len(case.series.left_out),
            "n_slices": len(case.series.slices),
        },
        "geometry": to_plain(case.get(GEOMETRY)),
        "score": score.to_dict() if score is not None else None,
        "cautions": list(cautions(case)),
        **{
            section: case.get(fact, fact.absent)
            for section, fact in sections().items()
            if fact in case or fact.absent is not OMITTED
        },
        "warnings": [{"code": f.code, "message": f.message} for f in case.warnings],
        "seconds": {k: round(v, 3) for k, v in case.timings.items()},
        "provenance": {**provenance, **device},
    }
