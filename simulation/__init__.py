"""Chest CT phantoms with known heart and known coronary calcium, reproducible by seed."""

from .acquisition import Acquisition, default_geometry, sample_acquisition
from .patient import SimulatedPatient, heart_centre, simulate_patient

__all__ = [
    "Acquisition",
    "SimulatedPatient",
    "default_geometry",
    "heart_centre",
    "sample_acquisition",
    "simulate_patient",
]
