"""The crop around the heart that several methods look at, its patches, and what can be calcium at all."""

from __future__ import annotations

CROP_SPACING = (2.5, 0.7, 0.7)
"""Voxel size of the model grid, mm (z, y, x); DeepCAC2 paper: 0.7 × 0.7 × 2.5 mm."""
CROP_SHAPE = (58, 256, 256)
"""Voxels of the crop around the heart (z, y, x); DeepCAC2 paper: 256 × 256 × 58."""
PATCH_SHAPE = (16, 64, 64)
"""Patch (z, y, x); DeepCAC2 paper: 64 × 64 × 16."""
PATCH_STEP = (8, 32, 32)
"""Step between patches (z, y, x); DeepCAC2 paper: 32 × 32 × 8."""
WINDOW_HU = (-135.0, 500.0)
"""Intensity window, HU; DeepCAC2 paper."""
CANDIDATE_HU = 130
"""HU below which the default rule counts no voxel as calcium (Agatston et al. 1990)."""
