"""`Labels`: which voxel shows what, as one uint8 array with named, coded and coloured classes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Concept:
    """A coded concept, as in DICOM.

    Attributes:
        value, scheme: Code and coding scheme designator, such as ``80891009`` of ``SCT`` (SNOMED CT).
        meaning: In words.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class of voxels.

    Attributes:
        name: For people and programs.
        value: In the array, 1 to 255.
        kind: What it is (SegmentedPropertyType).
        category: The wider class of that (SegmentedPropertyCategory).
        region: Where in the body it is; None: `kind` says so.
        colour: Red, green and blue, 0 to 255, in pictures.
    """

    name: str
    value: int
    kind: Concept
    category: Concept
    region: Concept | None = None
    colour: tuple[int, int, int]


STRUCTURE = Concept(value="91723000", scheme="SCT", meaning="Anatomical Structure")
ABNORMAL = Concept(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
CALCIFICATION = Concept(value="18115005", scheme="SCT", meaning="Pathologic calcification")
CORONARY_ARTERY = Concept(value="41801008", scheme="SCT", meaning="Coronary artery")
_RED = (255, 60, 60)

HEART = Label(
    name="heart",
    value=1,
    kind=Concept(value="80891009", scheme="SCT", meaning="Heart"),
    category=STRUCTURE,
    colour=(80, 200, 255),
)
CALCIUM = Label(
    name="coronary calcium",
    value=1,
    kind=CALCIFICATION,
    category=ABNORMAL,
    region=CORONARY_ARTERY,
    colour=_RED,
)
"""Codes: DICOM PS3.16 CID 7150 and 7151, SNOMED CT."""


def calcification(name: str, value: int, code: str, meaning: str, colour: tuple[int, int, int]) -> Label:
    """Calcium in a region: its code in SNOMED CT and what that means."""
    region = Concept(value=code, scheme="SCT", meaning=meaning)
    return Label(name=name, value=value, kind=CALCIFICATION, category=ABNORMAL, region=region, colour=colour)


ARTERIES: tuple[Label, ...] = tuple(
    calcification(name, value, code, meaning, colour)
    for value, (name, code, meaning, colour) in enumerate(
        (
            ("LM", "3227004", "Left Main Coronary Artery", (230, 159, 0)),
            ("LAD", "59438005", "Left Anterior Descending Coronary Artery", (213, 94, 0)),
            ("LCX", "57396003", "Circumflex Coronary Artery", (204, 121, 167)),
            ("RCA", "13647002", "Right Coronary Artery", (240, 228, 66)),
        ),
        start=1,
    )
)
"""Calcium by artery: the concepts of PS3.16 CID 3015 (Coronary Arteries), as pydicom 3.0 has them."""
NOT_SURE = Label(
    name="artery not sure",
    value=5,
    kind=CALCIFICATION,
    category=ABNORMAL,
    region=CORONARY_ARTERY,
    colour=(190, 190, 190),
)
"""Coronary calcium of an artery that is not known; beside `ARTERIES`."""

_ELSEWHERE = {
    "aorta": ("113262008", "Thoracic aorta"),
    "aortic valve": ("34202007", "Aortic Valve"),
    "mitral annulus": ("65197004", "Mitral Annulus"),
    "pericardium": ("76848001", "Pericardium"),
    "other": ("80891009", "Heart"),
    "perhaps coronary": ("80891009", "Heart"),
}
NOT_CORONARY: tuple[Label, ...] = tuple(
    calcification(name, value, code, meaning, colour)
    for value, ((name, (code, meaning)), colour) in enumerate(
        zip(
            _ELSEWHERE.items(),
            ((0, 158, 115), (86, 180, 233), (0, 114, 178), (0, 90, 60), (140, 140, 140), (255, 255, 255)),
            strict=True,
        ),
        start=1,
    )
)
"""What is as bright in the heart and not counted, by what a network takes it for."""
CORONARY = NOT_CORONARY[-1]
"""Taken for an artery's by its name, but not for calcium surely enough to count."""

SURENESS: tuple[Label, ...] = tuple(
    Label(
        name=f"at least {percent} %",
        value=percent,
        kind=CALCIFICATION,
        category=ABNORMAL,
        region=CORONARY_ARTERY,
        colour=(255, 255 - 2 * percent, 60),
    )
    for percent in (50, 60, 70, 80, 90, 95, 98, 99)
)
"""How sure a network is of a voxel of coronary calcium, in steps; the value is the percentage reached."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labels:
    """Which voxel shows what.

    Attributes:
        array: uint8 (z, y, x): a class's value, 0 where none is.
        classes: The classes, by ascending value. A binary mask has one.
    """

    array: npt.NDArray[np.uint8] = field(repr=False)
    classes: tuple[Label, ...]

    def __post_init__(self) -> None:
        values = [label.value for label in self.classes]
        ascending = bool(values) and values == sorted(set(values))
        if self.array.dtype != np.uint8 or not ascending or values[0] < 1 or values[-1] > 255:
            raise ValueError(f"labels are uint8 with classes of ascending values 1 to 255, not {values}")

    @classmethod
    def of(cls, mask: BoolArray, label: Label) -> Labels:
        """One class."""
        array = mask.view(np.uint8) if label.value == 1 else mask * np.uint8(label.value)
        return cls(array=array, classes=(label,))

    @property
    def mask(self) -> BoolArray:
        """bool (z, y, x): where anything is. Of a binary mask it is the array itself, not a copy."""
        if [label.value for label in self.classes] == [1]:
            return self.array.view(np.bool_)
        anywhere: BoolArray = self.array > 0
        return anywhere

    def where(self, name: str) -> BoolArray:
        """bool (z, y, x): where one class is.

        Raises:
            KeyError: No class has this name.
        """
        values = {label.name: label.value for label in self.classes}
        found: BoolArray = self.array == values[name]
        return found


def heart_labels(mask: BoolArray) -> Labels:
    """A mask of the heart."""
    return Labels.of(mask, HEART)


def calcium_labels(mask: BoolArray) -> Labels:
    """A mask of coronary calcium."""
    return Labels.of(mask, CALCIUM)
