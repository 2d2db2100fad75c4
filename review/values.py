"""What a person may say of calcium: the names, and the values that stand for them in an array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..imaging.labels import ARTERIES, CALCIUM, CORONARY, NOT_CORONARY, NOT_SURE, Labels
from ..system.nearest import nearest

CORONARY_NAME, UNSURE_NAME = "coronary", "unsure"
_ABOVE = 10
"""What is added to the values of `NOT_CORONARY`, which would else be those of arteries."""
UNSURE = 255
"""Nobody can say what it is; as in `evaluation.datasets.CALCIUM_VALUES`."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One answer.

    Attributes:
        name: In journals, on the command line and on the page; "" says that it is left out without a reason.
        value: In arrays; 0 of "".
        counted: Whether it is coronary calcium.
        key: On the page.
        words: For people.
        colour: Red, green and blue, 0 to 255.
    """

    name: str
    value: int
    counted: bool
    key: str
    words: str
    colour: tuple[int, int, int]


def _values() -> tuple[Value, ...]:
    arteries = [
        Value(name=a.name, value=a.value, counted=True, key=str(a.value), words=a.name, colour=a.colour)
        for a in ARTERIES
    ]
    coronary = Value(
        name=CORONARY_NAME,
        value=NOT_SURE.value,
        counted=True,
        key="5",
        words="coronary, artery not known",
        colour=CALCIUM.colour,
    )
    others = [
        Value(
            name=label.name,
            value=_ABOVE + label.value,
            counted=False,
            key=key,
            words=f"{label.name}, not counted",
            colour=label.colour,
        )
        for label, key in zip(NOT_CORONARY, ("6", "7", "8", "9", "0", ""), strict=True)
    ]
    unsure = Value(
        name=UNSURE_NAME,
        value=UNSURE,
        counted=False,
        key="u",
        words="not sure, not counted",
        colour=(170, 110, 230),
    )
    out = Value(name="", value=0, counted=False, key="x", words="left out", colour=(150, 150, 150))
    return (*arteries, coronary, *others, unsure, out)


VALUES = {value.name: value for value in _values()}
"""By name. A key of "": only the automatic result says so (*perhaps coronary*)."""
OF_CODE = {value.value: value for value in VALUES.values()}
LAST_COUNTED = NOT_SURE.value
"""Values from 1 up to this are coronary calcium."""


def value_of(name: str) -> Value:
    """The value that a person names, in any case.

    Raises:
        InputError: There is none.
    """
    chosen = {v.name.lower(): v for v in VALUES.values() if v.key}
    found = chosen.get(name.strip().lower())
    if found is None:
        raise InputError(f"{name!r} is no artery and no kind.{nearest(name, [v for v in VALUES if v])}")
    return found


def counted(array: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where coronary calcium is: bool of the same shape."""
    found: npt.NDArray[np.bool_] = (array >= 1) & (array <= LAST_COUNTED)
    return found


def arteries(array: npt.NDArray[np.uint8]) -> Labels:
    """The coronary calcium by artery."""
    return Labels(array=np.where(counted(array), array, 0).astype(np.uint8), classes=(*ARTERIES, NOT_SURE))


def others(array: npt.NDArray[np.uint8]) -> Labels:
    """What was not counted and has a name; what nobody is sure about as *perhaps coronary*."""
    named = np.where((array > _ABOVE) & (array < UNSURE), array - _ABOVE, 0).astype(np.uint8)
    named[array == UNSURE] = CORONARY.value
    return Labels(array=named, classes=NOT_CORONARY)


def as_values(labels: Labels | None, *, above: bool) -> npt.NDArray[np.uint8] | None:
    """The values of what a result names: of arteries, or (`above`) of what was not counted."""
    if labels is None:
        return None
    return np.where(labels.array > 0, labels.array + np.uint8(_ABOVE if above else 0), 0).astype(np.uint8)
