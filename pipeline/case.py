"""`Case`: the one object per series that flows through the chain and only gains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..dicom import Finding, Series
    from ..imaging import Volume
    from ..scoring import CalciumScore


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a case goes no further.

    Attributes:
        status: ``"rejected"`` by a quality gate, or ``"failed"``: something broke.
        code, reason: Reason code, and one sentence for the user.
        module: Which module said so; "" where none could.
    """

    status: Literal["rejected", "failed"]
    code: str
    reason: str
    module: str = ""


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
        findings: What the gates found, from the header gates on, fatal ones too.
        outputs: Files written, by role (``"seg"``, ``"report"``, ``"preview"``, ``"nifti-ct"`` …).
        timings: Seconds per stage name.
        facts: Further numbers for the details JSON (e.g. heart volume; under ``domain`` how the scan compares
            with what the weights were trained on, under ``calcium`` how the calcium network was used, under
            ``screening`` and ``direct`` what these found), JSON types only.
        stop: Why the case goes no further; None as long as it does. All that was known before stays.
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
    stop: Stop | None = None

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that reject nothing."""
        return tuple(f for f in self.findings if not f.fatal)

    def noted(self, *findings: Finding) -> Case:
        """The case with what a gate found; the first fatal finding of all rejects it."""
        stop = self.stop
        fatal = next((f for f in findings if f.fatal), None)
        if stop is None and fatal is not None:
            stop = Stop(status="rejected", code=fatal.code, reason=fatal.message)
        return replace(self, findings=(*self.findings, *findings), stop=stop)
