"""The facts that several steps and outputs share. Those of one method alone stand in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .case import Fact, ImageFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..imaging import Volume
    from ..scoring import CalciumScore

CT: Fact[Volume] = Fact("ct", "CT", image=ImageFile("ct.nii.gz", "nifti:mod=ct"))
"""int16 HU (z, y, x), and the geometry."""

HEART: Fact[npt.NDArray[np.bool_]] = Fact(
    "heart",
    "heart mask",
    image=ImageFile("heart.nii.gz", "nifti:mod=seg:model=deepcac2:roi=HEART"),
)
"""bool (z, y, x)."""

HEART_MEASURES: Fact[dict[str, Any]] = Fact("heart_measures", "measures of the heart", "heart", {})
"""Volume, place and density of the heart mask, see `models.heart.network.step.check_heart`."""

CALCIUM: Fact[npt.NDArray[np.bool_]] = Fact(
    "calcium",
    "calcium mask",
    image=ImageFile(
        "calcium.nii.gz",
        "nifti:mod=seg:model=deepcac2:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION",
    ),
)
"""bool (z, y, x): what a network calls calcium, before the HU rule."""

CALCIUM_RUN: Fact[dict[str, Any]] = Fact("calcium_run", "how the calcium network was used", "calcium", {})
"""``exact_from_hu``: the HU from which the calcium mask is that of a dense run; patches, window, margin."""

EXCLUDED: Fact[bool] = Fact("excluded", "answer of an exclusion")
"""Whether a method before has ruled calcium out, so that no network needs to look for it."""

POSSIBLE_CALCIUM: Fact[npt.NDArray[np.bool_]] = Fact(
    "screened",
    "possible calcium",
    image=ImageFile(
        "screened.nii.gz",
        "nifti:mod=seg:model=screening:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION",
    ),
)
"""bool (z, y, x): what an exclusion of scans without calcium left over."""

SCORE: Fact[CalciumScore] = Fact("score", "score")
"""The Agatston score and all that comes with it."""

DOMAIN: Fact[dict[str, Any]] = Fact(
    "domain", "comparison with the scans that the weights were trained on", "domain"
)
"""See `pipeline.domain`."""

DEVICE: Fact[str] = Fact("device", "device of the networks")
"""In words."""
