"""Chest CT phantoms with known heart and known coronary calcium, reproducible by seed."""

from .acquisition import Acquisition, default_geometry, sample_acquisition
from .distractors import RARE, has_rare
from .patient import SimulatedPatient, heart_centroid, simulate_patient

__all__ = [
    "RARE",
    "Acquisition",
    "SimulatedPatient",
    "default_geometry",
    "has_rare",
    "heart_centroid",
    "sample_acquisition",
    "simulate_patient",
]
