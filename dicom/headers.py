"""Values out of DICOM headers that may be absent, empty or malformed."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes of PS3.4 table B.5-1: CT Image, Enhanced CT Image, Legacy Converted Enhanced CT Image."""


MAX_VALUE_BYTES = 1 << 16
"""Longest value that is looked at. No attribute asked for here holds more than a few hundred bytes, and a
long one of many short values takes fifty times its size in memory."""

_KEPT_BYTES = 256
"""Longest value that is kept converted."""


def _values(ds: Dataset, keyword: str) -> list[Any]:
    """The values of an element; none where it is absent, empty, longer than `MAX_VALUE_BYTES` or cannot be
    converted."""
    try:
        element = ds.get_item(_tag(keyword))
        if element is None:
            return []
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes) and element.VR != "SQ":
            encodings = ds.original_character_set
            encodings = (encodings,) if isinstance(encodings, str) else tuple(encodings)
            if len(element.value) > MAX_VALUE_BYTES:
                return []
            convert = _converted if len(element.value) <= _KEPT_BYTES else _converted.__wrapped__
            return convert(element._replace(value_tell=0), encodings)
        return _as_list(element.value)
    except MALFORMED:
        return []


MALFORMED = (ValueError, TypeError, AttributeError, OverflowError, NotImplementedError, LookupError)
"""What pydicom raises where an element's value cannot be converted."""


@lru_cache(maxsize=256)
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


@lru_cache(maxsize=8192)
def _converted(element: RawDataElement, encodings: tuple[str, ...]) -> list[Any]:
    """Values of an element as read. Most are the same in all images of a series, and to convert them takes
    longer than to read them."""
    return _as_list(convert_raw_data_element(element, encoding=list(encodings)).value)


def _as_list(value: object) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    """All values as stripped strings."""
    return tuple(str(v).strip(" \0") for v in _values(ds, keyword))


def first_item(keyword: str, *holders: Dataset) -> Dataset | None:
    """The first item of a sequence in the first of some data sets that has one; None where none has.

    A functional group of a frame is its own, else the shared one (PS3.3 C.7.6.16).

    >>> own, shared = Dataset(), Dataset()
    >>> own.PixelMeasuresSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    >>> first_item("PixelMeasuresSequence", own, shared) is own.PixelMeasuresSequence[0]
    True
    """
    return next((items[0] for ds in holders if (items := ds.get(keyword))), None)


def text(ds: Dataset, keyword: str) -> str:
    """All values as one string, joined by backslashes as in the file; "" where absent."""
    return "\\".join(texts(ds, keyword))


def numbers(ds: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, or None."""
    try:
        found = tuple(float(v) for v in _values(ds, keyword))
    except (ValueError, TypeError):
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def position(ds: Dataset) -> tuple[float, float, float] | None:
    """ImagePositionPatient, LPS mm (x, y, z)."""
    found = numbers(ds, "ImagePositionPatient", 3)
    return None if found is None else (found[0], found[1], found[2])


def orientation(ds: Dataset) -> tuple[float, float, float, float, float, float] | None:
    """ImageOrientationPatient, six direction cosines."""
    found = numbers(ds, "ImageOrientationPatient", 6)
    return None if found is None else (found[0], found[1], found[2], found[3], found[4], found[5])


def pixel_spacing(ds: Dataset) -> tuple[float, float] | None:
    """PixelSpacing, mm between rows and between columns."""
    found = numbers(ds, "PixelSpacing", 2)
    return None if found is None else (found[0], found[1])


def number(ds: Dataset, keyword: str) -> float | None:
    """One finite number, or None."""
    found = numbers(ds, keyword, 1)
    return found[0] if found else None


def stated(ds: Dataset, keyword: str) -> float | None:
    """The one finite number that an element states, be it several times; None where it is absent or empty.

    Raises:
        ValueError: It holds something else, or different numbers.
    """
    tag = _tag(keyword)
    value = ds.get_item(tag).value if tag in ds else None
    if value is None or (isinstance(value, (str, bytes)) and not value.strip()):
        return None
    found = _values(ds, keyword)
    try:
        different = {float(v) for v in found}
    except (ValueError, TypeError):
        different = set()
    if len(different) != 1 or not all(map(math.isfinite, different)):
        said = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
        raise ValueError(f"{keyword} is {said.strip()[:40]!r}, not one number")
    return different.pop()


def whole(ds: Dataset, keyword: str) -> int | None:
    """One whole number, or None."""
    found = number(ds, keyword)
    return int(found) if found is not None else None


_quiet_lock = threading.Lock()
_quiet_users = 0
_quiet_filters: warnings.catch_warnings[None] | None = None


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom's remarks on values that break the standard; the gates say what matters.

    May be entered by several threads at once: warning filters belong to the process, so the first to enter
    sets the filter and the last to leave restores what was there.
    """
    global _quiet_users, _quiet_filters
    with _quiet_lock:
        if _quiet_users == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.filterwarnings("ignore", module=r"pydicom\b")
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_users -= 1
            if _quiet_users == 0 and _quiet_filters is not None:
                _quiet_filters.__exit__(None, None, None)
                _quiet_filters = None
