"""The files below a results folder that the dashboard opens. The folder may come from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from ..errors import InputUnreadable
from ..pipeline.places import DETAILS_NAME
from ..system import foreign
from ..system.inside import regular_inside

_MOST_BYTES = 8 << 20
"""Largest JSON file that is read; that of a case with 100 lesions has 0.1 MB. Chosen."""

_NUMBER = (int, float)
_POINT = (_NUMBER,) * 3
_DETAILS = {
    "series?": {"modality?": str},
    "outputs?": [str],
    "geometry?": {"origin": _POINT, "axes": (_POINT,) * 3, "shape": (int,) * 3},
    "score?": {
        "total": _NUMBER,
        "parameters": {"slice_thickness_mm?": _NUMBER},
        "lesions?": [
            {
                "parts?": [{"slice_index": int, "score": _NUMBER}],
                "slices?": (int, int),
                "slice_numbers?": (int, int),
            }
        ],
    },
}
"""The form of what is used of a details JSON: types, lists of one form, tuples of several, and what may be
missing or null (``?``)."""


def read_json(path: Path, root: Path) -> Any:
    """A JSON file below a folder: what it holds can be handed on as JSON.

    Args:
        path: The file.
        root: The folder.

    Raises:
        InputUnreadable: It is not there, a link to elsewhere, too large, or no JSON that others can read
            (see `parse_json`), or it has more than 254 levels.
    """
    real, again = regular_inside(path, root), "run the series again"
    content = foreign.read_json(real, most=_MOST_BYTES, advice=again)
    with foreign.foreign(str(real), advice=again):
        orjson.dumps(content)
    return content


def read_details(path: Path, root: Path) -> dict[str, Any]:
    """The details JSON of a series, of which what is used has the form that it should have.

    Args:
        path: The file.
        root: The results folder.

    Raises:
        InputUnreadable: See `read_json`, or it is of another form.
    """
    content = read_json(path, root)
    if not isinstance(content, dict) or not _has_form(content, _DETAILS):
        raise InputUnreadable(f"{DETAILS_NAME} in {root} is not of the form that a run writes; run again")
    _number_slices(content)
    return content


def _number_slices(content: dict[str, Any]) -> None:
    """Give the lesions of an older run, which has only indices (``slices``), the numbers of their slices."""
    geometry = content.get("geometry")
    for lesion in (content.get("score") or {}).get("lesions") or ():
        indices = lesion.get("slices")
        if geometry and indices and not lesion.get("slice_numbers"):
            rising = geometry["axes"][0][2] >= 0
            numbers = (i + 1 if rising else geometry["shape"][0] - i for i in indices)
            lesion["slice_numbers"] = sorted(numbers)


def _has_form(value: Any, form: Any) -> bool:
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            (name.endswith("?") and value.get(name[:-1]) is None)
            or _has_form(value.get(name.removesuffix("?")), inner)
            for name, inner in form.items()
        )
    if isinstance(form, list):
        return isinstance(value, list) and all(_has_form(one, form[0]) for one in value)
    if isinstance(form, tuple) and form != _NUMBER:
        fits = isinstance(value, list) and len(value) == len(form)
        return fits and all(_has_form(one, inner) for one, inner in zip(value, form, strict=True))
    return isinstance(value, form) and not isinstance(value, bool)
