"""Thresholds chosen on values."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def highest_keeping(values: npt.NDArray[np.float64], share: float) -> float | None:
    """The largest threshold that at least `share` of the values reach; None without values.

    Examples:
        >>> highest_keeping(np.array([0.2, 0.9, 0.4, 0.6]), 0.75)
        0.4
    """
    needed = math.ceil(share * len(values) - 1e-9)
    return float(np.sort(values)[-needed]) if needed else None
