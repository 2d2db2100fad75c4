"""Agatston, volume and mass scores of a calcium mask by named rules, and what they mean. Knows no files.

One scorer (`score`) reads a `Rule`; the rules of the literature are rows of one table (`RULES`).
`grades` and `percentiles` say what a score is called, and how it stands among others.
"""

from .agatston import score, whole_pieces
from .classes import ClassScore, score_by_class
from .result import CalciumScore, Lesion, LesionPart, RiskGroup, risk_group
from .rules import RULES, Rule

__all__ = [
    "RULES",
    "CalciumScore",
    "ClassScore",
    "Lesion",
    "LesionPart",
    "RiskGroup",
    "Rule",
    "risk_group",
    "score",
    "score_by_class",
    "whole_pieces",
]
