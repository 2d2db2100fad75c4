"""What in a simulated scan is what: coronary calcium by artery, and all else that is as bright, by kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..imaging.labels import Concept, Label, Labels, calcification
from .specks import Speck

_OBJECT = Concept(value="260787004", scheme="SCT", meaning="Physical object")


def _calcium(name: str, value: int, code: str, meaning: str) -> Label:
    return calcification(name, value, code, meaning, (120, 220, 120))


def _metal(name: str, value: int, code: str, meaning: str) -> Label:
    kind = Concept(value=code, scheme="SCT", meaning=meaning)
    return Label(name=name, value=value, kind=kind, category=_OBJECT, colour=(200, 200, 255))


_CONTENTS = Concept(value="91720002", scheme="SCT", meaning="Body Substance")

OTHERS: tuple[Label, ...] = (
    _calcium("aorta", 1, "113262008", "Thoracic aorta"),
    _calcium("aortic valve", 2, "34202007", "Aortic Valve"),
    _calcium("mitral annulus", 3, "65197004", "Mitral Annulus"),
    _calcium("pericardium", 4, "76848001", "Pericardium"),
    _calcium("lymph node", 5, "59441001", "Lymph Node"),
    _calcium("granuloma", 6, "39607008", "Lung"),
    _calcium("cartilage", 7, "50016007", "Costal Cartilage"),
    _metal("stent", 8, "65818007", "Stent"),
    _metal("bypass clip", 9, "77720000", "Clip"),
    _metal("pacemaker lead", 10, "360129009", "Cardiac pacemaker lead"),
    _metal("sternal wire", 11, "27065002", "Suture"),
    Label(
        name="oesophagus",
        value=12,
        kind=_CONTENTS,
        category=_CONTENTS,
        region=Concept(value="32849002", scheme="SCT", meaning="Esophagus"),
        colour=(200, 180, 120),
    ),
    _calcium("collapsed lung", 13, "39607008", "Lung"),
)
"""Calcium that is not coronary, metal, and what is bright in the oesophagus.

Names as in `coronary.Deposit.kind`, codes of SNOMED CT.
"""


def by_kind(mask: npt.NDArray[np.bool_], specks: Sequence[Speck], classes: tuple[Label, ...]) -> Labels:
    """A mask with the kind of lesion that fills most of each voxel.

    Args:
        mask: bool (z, y, x) of the grid that the specks are drawn on; each of its voxels is touched by one.
        specks: What was drawn; their kinds are names of `classes`.
    """
    values = {label.name: label.value for label in classes}
    array = np.zeros(mask.shape, dtype=np.uint8)
    most = np.zeros(mask.shape, dtype=np.float16)
    for speck in specks:
        cover = speck.cover.astype(np.float16)
        more = cover > most[speck.box]
        most[speck.box][more] = cover[more]
        array[speck.box][more] = values[speck.lesion.kind]
    array[~mask] = 0
    return Labels(array=array, classes=classes)
