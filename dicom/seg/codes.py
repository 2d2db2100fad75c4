"""What a segment is: the codes that ours have, and how the heart and coronary calcium of others are known.

Codes (DICOM PS3.16 CID 7150, 7151 and SNOMED CT): the heart is *Heart* in *Anatomical Structure*; the
calcium is *Pathologic calcification* in *Morphologically Abnormal Structure*, in the *Coronary artery*.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from ...imaging import labels
from ...imaging.labels import Concept, Label


def code_of(concept: Concept) -> Code:
    """The code, for DICOM."""
    return Code(concept.value, concept.scheme, concept.meaning)


HEART, CALCIUM = code_of(labels.HEART.kind), code_of(labels.CALCIFICATION)
ANATOMICAL_STRUCTURE, ABNORMAL_STRUCTURE = code_of(labels.STRUCTURE), code_of(labels.ABNORMAL)
CORONARY_ARTERY = code_of(labels.CORONARY_ARTERY)
CORONARY_REGIONS = (labels.CORONARY_ARTERY, *(a.region for a in labels.ARTERIES))
"""Regions of segments that are parts of the coronary calcium."""
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")

HEART_SEGMENT, CALCIUM_SEGMENT = 1, 2
"""SegmentNumber of each."""

SEGMENTATION_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentation Storage and Label Map Segmentation Storage."""

_CALCIFICATION_CODES = frozenset({CALCIUM.value, "M-55420"})
_HEART_CODES = frozenset({HEART.value, "T-32000"})
_CORONARY_CODES = frozenset(
    {CORONARY_ARTERY.value, "T-43000", *(a.region.value for a in labels.ARTERIES if a.region is not None)}
)
"""Coronary artery, left main, left anterior descending, left circumflex and right coronary artery; of the
first, as of the two above, the code of SNOMED RT too."""
_GENERAL_CODES = frozenset(
    {
        *("85756007", "T-D0050"),  # tissue
        *("113343008", "T-D0060"),  # organ
        *("91723000", "T-D000A"),  # anatomical structure
        *("49755003", "M-01000"),  # morphologically abnormal structure
        *("237897009", "129759000", "29483008"),  # calcified, vascular calcification, calcified plaque
        *_CORONARY_CODES,
    }
)
"""Types that leave it to the label whether a segment is the heart or coronary calcium."""

_HEART_LABELS = frozenset({("heart",), ("whole", "heart")})
_CALCIUM_WORDS = frozenset({"calcium", "calcification", "calcifications", "calcified", "calc"})
_CORONARY_WORDS = frozenset({"coronary", "coronaries", "lm", "lmca", "lad", "lcx", "rca"})
_WORDS_BESIDE = frozenset(
    {
        *("artery", "arteries", "arterial", "left", "right", "main", "anterior", "descending", "circumflex"),
        *("plaque", "plaques", "lesion", "lesions", "score", "segment", "segmentation", "seg", "mask"),
        *("of", "in", "and", "the", "total", "all"),
    }
)
"""Words of labels, lower case. Any other word in a label may say that the calcium lies elsewhere: *coronary
sinus*, *non-coronary*, *aorta and coronary arteries*."""


def kind_of(item: Dataset) -> str | None:
    """What a segment is: ``"heart"``, ``"calcium"`` or None, for neither or not to be told.

    Codes decide: *Heart*, and *Pathologic calcification* in a coronary artery. Where they leave it open, the
    label does by its words: "heart" or "whole heart" alone, and "CAC", or a word for calcium with one for the
    coronary arteries, and none that may mean another place.

    Args:
        item: Of SegmentSequence.
    """
    types = _codes(item, "SegmentedPropertyTypeCodeSequence")
    regions = _codes(item, "AnatomicRegionSequence")
    words = _words(item)
    if types & _HEART_CODES or (types <= _GENERAL_CODES and words in _HEART_LABELS):
        return "heart"
    calcified = bool(types & _CALCIFICATION_CODES)
    if not (calcified or types <= _GENERAL_CODES) or not regions <= _CORONARY_CODES | _HEART_CODES:
        return None
    said = set(words)
    coronary = "cac" in said or bool(said & _CALCIUM_WORDS and said & _CORONARY_WORDS)
    by_label = coronary and said <= _CALCIUM_WORDS | _CORONARY_WORDS | _WORDS_BESIDE | {"cac"}
    return "calcium" if by_label or (calcified and regions & _CORONARY_CODES) else None


def part_label(label: Label) -> str:
    """The label of a segment with calcium of an artery, or with what was not counted."""
    return ("Calcium, " if label.region in CORONARY_REGIONS else "Not counted, ") + label.name


_PARTS = {part_label(label): label for label in (*labels.ARTERIES, labels.NOT_SURE, *labels.NOT_CORONARY)}
"""What our SEGs have from segment 3 on, by its label."""
PART_LABELS = tuple(_PARTS)
"""These labels."""


def part_of(item: Dataset) -> Label | None:
    """The class of a segment that our SEGs have from 3 on, by its label and its codes; None of others.

    Args:
        item: Of SegmentSequence.
    """
    label = _PARTS.get(str(item.get("SegmentLabel", "")))
    if label is None or label.region is None:
        return None
    same = _codes(item, "AnatomicRegionSequence") == {label.region.value}
    return label if same and _codes(item, "SegmentedPropertyTypeCodeSequence") == {CALCIUM.value} else None


def artery_of(item: Dataset) -> Label | None:
    """The artery of a segment that is coronary calcium, by the code of its region; `labels.NOT_SURE` as we
    write it; None where the segment is of no one artery.

    Args:
        item: Of SegmentSequence.
    """
    if kind_of(item) != "calcium":
        return None
    regions = _codes(item, "AnatomicRegionSequence")
    of = [a for a in labels.ARTERIES if a.region is not None and a.region.value in regions]
    if len(of) == 1:
        return of[0]
    return labels.NOT_SURE if part_of(item) == labels.NOT_SURE else None


def is_near(item: Dataset) -> bool:
    """Whether a reader could take a segment for the heart or for coronary calcium."""
    types = _codes(item, "SegmentedPropertyTypeCodeSequence")
    near = _CALCIUM_WORDS | _CORONARY_WORDS | {"cac", "heart"}
    return bool(types & (_CALCIFICATION_CODES | _HEART_CODES) or near.intersection(_words(item)))


CHAMBERS = {
    "heart_myocardium": "74281007",
    "heart_atrium_left": "82471001",
    "heart_ventricle_left": "87878005",
    "heart_atrium_right": "73829009",
    "heart_ventricle_right": "53085002",
}
"""The five parts of which TotalSegmentator 1 makes the heart, by its names, and their codes in SNOMED CT."""


def is_named(item: Dataset, name: str) -> bool:
    """Whether a segment is what a user has named.

    Args:
        item: Of SegmentSequence.
        name: The code of its type (``80891009``), its label (case does not matter), or one of `CHAMBERS`.
    """
    if name in _codes(item, "SegmentedPropertyTypeCodeSequence"):
        return True
    label = str(item.get("SegmentLabel", "")).strip().casefold()
    return label == name.strip().casefold() or (name in CHAMBERS and is_named(item, CHAMBERS[name]))


def _codes(item: Dataset, keyword: str) -> set[str]:
    return {str(code.get("CodeValue", "")) for code in item.get(keyword, [])}


def _words(item: Dataset) -> tuple[str, ...]:
    """The words of a segment's label, lower case; *CoronaryCalcium* and *coronary_calcium* are two."""
    found = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", str(item.get("SegmentLabel", "")))
    return tuple(word.lower() for word in found)
