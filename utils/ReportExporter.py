"""MHub module: the report of each series as JSON and DICOM SR."""

from .modules import writing

ReportExporter = writing("ReportExporter")
