"""One helper for everything with named options: the nearest valid name for a typo."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


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
    return f" Valid are: {', '.join(names)}." if names else ""
