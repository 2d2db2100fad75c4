"""DICOM in and out: find series, judge them, read them to `Volume`, write segmentations and reports."""

from __future__ import annotations

from .discovery import Discovery, UnreadableFile, chosen, discover
from .gates import GATES, Gate, check_headers, make_finding
from .names import printable, readable, safe_name
from .reading import Reading, read_series
from .seg.reader import read_segmentation
from .seg.writer import write_segmentation
from .series import Finding, Series, SliceRef
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
