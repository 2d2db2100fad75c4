"""Figures of the agreement of two columns."""

from __future__ import annotations

from ..stats.columns import AgreementStudy
from .plots import Drawing, Points, bland_altman_figure, confusion_figure, scores_figure


def agreement_figures(study: AgreementStudy) -> dict[str, Drawing]:
    """By name: ``scores`` (all and up to 300), ``bland-altman``, ``confusion``."""
    points = [Points(reference=study.scores[:, 0], predicted=study.scores[:, 1])]
    axes = {"reference": study.reference, "predicted": study.ai}
    return {
        "scores": scores_figure(points, **axes, rho=study.result.estimates["spearman"]),
        "bland-altman": bland_altman_figure(points, study.result.estimates, **axes),
        "confusion": confusion_figure(
            study.result.confusion, study.names, **axes, kappa=study.result.estimates["kappa_linear"]
        ),
    }
