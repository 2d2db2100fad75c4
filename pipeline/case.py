"""`Case`: the one object per series that flows through the chain and only gains."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..dicom import Finding, Series
    from ..imaging import Volume
    from ..scoring import CalciumScore


@dataclass(frozen=True, kw_only=True)
class Case:
    """One series on its way through the stages; each stage returns a copy with more in it.

    Attributes:
        series: What the headers said.
        volume: The CT, int16 HU (z, y, x).
        heart: bool (z, y, x) on the CT's grid.
        calcium: bool (z, y, x) on the CT's grid: what the calcium model calls calcium, before the HU rule.
        screened: bool (z, y, x) on the CT's grid: what the exclusion of scans without calcium left over.
        attention: float32 (z, y, x) on the CT's grid: where what direct scoring counted lies, score a voxel.
        score: The Agatston score and all that comes with it.
        findings: Warnings gathered after the header gates.
        outputs: Files written, by role (``"seg"``, ``"report"``, ``"preview"``, ``"nifti-ct"`` …).
        timings: Seconds per stage name.
        facts: Further numbers for the details JSON (e.g. heart volume; under ``domain`` how the scan compares
            with what the weights were trained on, under ``calcium`` how the calcium network was used, under
            ``screening`` and ``direct`` what these found), JSON types only.
    """

    series: Series
    volume: Volume | None = None
    heart: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    calcium: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    screened: npt.NDArray[np.bool_] | None = field(default=None, repr=False)
    attention: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    score: CalciumScore | None = None
    findings: tuple[Finding, ...] = ()
    outputs: dict[str, Path] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
