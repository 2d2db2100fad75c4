"""A length of time as people say it."""

from __future__ import annotations


def time_in_words(seconds: float) -> str:
    """A time as people say it.

    >>> time_in_words(45), time_in_words(600), time_in_words(7300)
    ('45 s', '10 min', '2 h 02 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
