"""MHub module: heart and calcium as one DICOM SEG on the CT's own frames; it needs no dcmqi."""

from .modules import writing

DSegConverter = writing("DSegConverter")
