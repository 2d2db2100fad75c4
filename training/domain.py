"""What a set of weights was trained on, as its description states it (`weights.description.Domain`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..dicom.gates import is_sharp_kernel
from ..simulation import Acquisition, sample_acquisition

NOISE_IN_HEART = 1.08
"""What `imaging.noise.noise_sd` measures in simulated hearts over what was asked for; measured on ten."""
RARE_PERCENT = 1.0
"""Percent of the patients at either end that do not stretch a range."""


def simulated_domain(seeds: Sequence[int]) -> dict[str, Any]:
    """The scans of simulated patients, as `Domain.to_dict` writes them; empty without patients.

    A kind of kernel that occurs with at least three names is stated as a kind (``soft`` or ``sharp``).
    """
    scans = [sample_acquisition(seed) for seed in seeds]
    if not scans:
        return {}
    names = sorted({s.kernel for s in scans})
    kernels: list[str] = []
    for kind, sharp in (("soft", False), ("sharp", True)):
        of_kind = [n for n in names if is_sharp_kernel(n) == sharp]
        kernels += [kind] if len(of_kind) >= 3 else of_kind

    def between(values: Sequence[float]) -> list[float]:
        low, high = np.percentile(values, (RARE_PERCENT, 100 - RARE_PERCENT), method="nearest")
        return [round(float(low), 3), round(float(high), 3)]

    def each(name: str) -> list[float]:
        return [getattr(s, name) for s in scans]

    return {
        "kernels": kernels,
        "noise_hu": [round(v * NOISE_IN_HEART) for v in between(each("noise_sd"))],
        "kvp": between(each("kvp")),
        "thickness_mm": between(each("thickness")),
        "increment_mm": between(each("increment")),
        "pixel_mm": between([_pixel(s) for s in scans]),
        "field_of_view_mm": between(each("field_of_view")),
        "contrast": False,
    }


def _pixel(scan: Acquisition) -> float:
    return scan.field_of_view / 512
