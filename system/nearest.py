"""One helper for everything with named options: the nearest valid name for a typo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

_LISTED = 40
"""Names that a sentence lists at most; chosen."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that helps with a wrong `name`: the nearest valid one, or all of them.

    >>> nearest("AGSCalculater", ["AGSCalculator", "HeartRunner"])
    " Perhaps you meant 'AGSCalculator'."
    """
    names = sorted(valid)
    lower = {n.lower(): n for n in names}
    close = get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    if close:
        return f" Perhaps you meant {lower[close[0]]!r}."
    return f" Valid are: {listed(names, _LISTED)}." if names else ""


def listed(names: Sequence[str], most: int) -> str:
    """At most so many names, and how many there are beside.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
