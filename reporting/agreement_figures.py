"""Figures of the agreement of two columns, as PNG."""

from __future__ import annotations

from ..stats.columns import AgreementStudy
from .plots import Points, bland_altman_figure, confusion_figure, scores_figure


def agreement_figures(study: AgreementStudy) -> dict[str, bytes]:
    """PNG files by name: ``scores`` (all and up to 300), ``bland-altman``, ``confusion``."""
    points = [Points(reference=study.scores[:, 0], predicted=study.scores[:, 1])]
    axes = {"reference": study.reference, "predicted": study.ai}
    return {
        "scores": scores_figure(points, **axes),
        "bland-altman": bland_altman_figure(points, study.result.estimates, **axes),
        "confusion": confusion_figure(study.result.confusion, study.names, **axes),
    }
