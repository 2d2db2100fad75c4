"""DICOM in and out: find series, judge them, read them to `Volume`, write segmentations and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .discovery import Discovery, UnreadableFile, chosen, discover
from .gates import GATES, Gate, check_headers, make_finding
from .names import printable, readable, safe_name
from .reading import Reading, read_series
from .series import Finding, Series, SliceRef

if TYPE_CHECKING:
    from .segmentation import read_segmentation, write_segmentation
    from .structured_report import MeasuredCalcium, MeasuredLesion, write_structured_report

__all__ = [
    "GATES",
    "Discovery",
    "Finding",
    "Gate",
    "MeasuredCalcium",
    "MeasuredLesion",
    "Reading",
    "Series",
    "SliceRef",
    "UnreadableFile",
    "check_headers",
    "chosen",
    "discover",
    "make_finding",
    "printable",
    "read_segmentation",
    "read_series",
    "readable",
    "safe_name",
    "write_segmentation",
    "write_structured_report",
]


def __getattr__(name: str) -> Any:
    """Import the writers of SEG and SR only where they are used."""
    if name in ("read_segmentation", "write_segmentation"):
        from . import segmentation

        return getattr(segmentation, name)
    if name in ("MeasuredCalcium", "MeasuredLesion", "write_structured_report"):
        from . import structured_report

        return getattr(structured_report, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
