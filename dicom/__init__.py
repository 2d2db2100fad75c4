"""DICOM in and out: find series, judge them, read them to `Volume`, write segmentations and reports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..system.names import printable, readable, safe_name
from .discovery import Discovery, UnreadableFile, chosen, discover, discover_within
from .gates import GATES, Gate, check_headers
from .reading import Reading, read_series
from .series import Finding, Series, SliceRef

if TYPE_CHECKING:
    from .seg.reader import read_segmentation
    from .seg.writer import write_segmentation
    from .structured_report import MeasuredArtery, MeasuredCalcium, MeasuredLesion, write_structured_report

__all__ = [
    "GATES",
    "Discovery",
    "Finding",
    "Gate",
    "MeasuredArtery",
    "MeasuredCalcium",
    "MeasuredLesion",
    "Reading",
    "Series",
    "SliceRef",
    "UnreadableFile",
    "check_headers",
    "chosen",
    "discover",
    "discover_within",
    "printable",
    "read_segmentation",
    "read_series",
    "readable",
    "safe_name",
    "write_segmentation",
    "write_structured_report",
]

_LATER = {
    "read_segmentation": ".seg.reader",
    "write_segmentation": ".seg.writer",
    **dict.fromkeys(
        ["MeasuredArtery", "MeasuredCalcium", "MeasuredLesion", "write_structured_report"],
        ".structured_report",
    ),
}
"""Imported where they are used: pydicom's tables of codes take a seventh of the time of all else here."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
