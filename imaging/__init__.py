"""Volumes and the geometry that ties their voxels to the patient. Knows neither DICOM nor models."""

from .volume import Geometry, Volume

__all__ = ["Geometry", "Volume"]
