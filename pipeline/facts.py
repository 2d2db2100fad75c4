"""The facts that several steps and outputs share. Those of one method alone stand in its folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..imaging import Geometry, labels
from ..imaging.labels import Labels
from ..scoring import CalciumScore
from .case import OMITTED, Fact, ImageFile

if TYPE_CHECKING:
    from ..imaging import Volume

CT: Fact[Volume] = Fact("ct", "CT", image=ImageFile("ct.nii.gz", "nifti:mod=ct"))
"""int16 HU (z, y, x), and the geometry."""

GEOMETRY: Fact[Geometry] = Fact("geometry", "grid of the CT", kind=Geometry)
"""The CT's grid, exact: NIfTI keeps it as 32-bit floats."""

HEART: Fact[Labels] = Fact(
    "heart",
    "heart mask",
    image=ImageFile("heart.nii.gz", "nifti:mod=seg:model=deepcac2:roi=HEART", (labels.HEART,)),
)

HEART_MEASURES: Fact[dict[str, Any]] = Fact("heart_measures", "measures of the heart", "heart", {})
"""Volume, place and density of the heart mask, see `models.heart.network.step.check_heart`."""

HEART_SOURCE: Fact[dict[str, Any]] = Fact(
    "heart_source", "where the heart mask was taken from", "heart_source", OMITTED
)
"""Of a heart that no network here has found: the file (``file``, ``sha256``), what it is (``format``), its
``segments``, and for a DICOM SEG ``sop_instance_uid``, ``series_uid``, ``algorithm`` (name and version, ""
where it does not say) and ``algorithm_type`` (AUTOMATIC, SEMIAUTOMATIC or MANUAL)."""

CALCIUM: Fact[Labels] = Fact(
    "calcium",
    "calcium mask",
    image=ImageFile(
        "calcium.nii.gz",
        "nifti:mod=seg:model=deepcac2:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION",
        (labels.CALCIUM,),
    ),
)
"""What a network calls calcium, before the HU rule."""

CALCIUM_RUN: Fact[dict[str, Any]] = Fact("calcium_run", "how the calcium network was used", "calcium", {})
"""``exact_from_hu``: the HU from which the calcium mask is that of a dense run; patches, window, margin."""

EXCLUDED: Fact[bool] = Fact("excluded", "answer of an exclusion")
"""Whether a method before has ruled calcium out, so that no network needs to look for it."""

POSSIBLE_CALCIUM: Fact[Labels] = Fact(
    "screened",
    "possible calcium",
    image=ImageFile(
        "screened.nii.gz",
        "nifti:mod=seg:model=screening:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION",
        (labels.CALCIUM,),
    ),
)
"""What an exclusion of scans without calcium left over."""

SCORE: Fact[CalciumScore] = Fact("score", "score", kind=CalciumScore)
"""The Agatston score and all that comes with it."""

MAPPED_CALCIUM: Fact[Labels] = Fact(
    "mapped",
    "mapped calcium mask",
    image=ImageFile(
        "mapped.nii.gz",
        "nifti:mod=seg:variant=mapped:roi=CORONARY_ARTERY+PATHOLOGIC_CALCIFICATION",
        (labels.CALCIUM,),
    ),
)
"""The pieces of the CT that the calcium mask overlaps, whole, see `pipeline.mapping`."""

MAPPED_SCORE: Fact[dict[str, Any]] = Fact("mapped_score", "score of the mapped mask", "mapped_score", OMITTED)
"""As `scoring.CalciumScore.to_dict` says it."""

DOMAIN: Fact[dict[str, Any]] = Fact(
    "domain", "comparison with the scans that the weights were trained on", "domain"
)
"""See `pipeline.domain`."""

DEVICE: Fact[str] = Fact("device", "device of the networks")
"""In words."""
