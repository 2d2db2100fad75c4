"""What a header says about contrast agent, in the words that technicians type."""

from __future__ import annotations

import re

INTRAVENOUS, ORAL, NONE = "intravenous", "oral", ""
"""The kinds, the gravest first: enhanced blood counts as calcium, contrast agent in the gut does not."""


def contrast_kind(agent: str, route: str = "", volume_ml: float | None = None) -> str:
    r"""Which contrast agent these attributes of the Contrast/Bolus module (PS3.3 C.7.6.4) name.

    Whole words count, and intravenous anywhere means intravenous. An agent is taken for oral only where the
    route says nothing else or, without a route, where oral is said of the only agent named. What is no plain
    denial counts as an agent, and one of unknown route as intravenous. A denial of oral agent alone denies
    nothing: it leaves open what the blood holds.

    Args:
        agent: All that names an agent, ingredients as well; several values joined by backslashes.
        route: All that names a route, likewise.
        volume_ml: Volume or dose given, mL; 0 says nothing.

    Returns:
        `INTRAVENOUS`, `ORAL` or `NONE`.

    >>> contrast_kind("OMNIPAQUE 350"), contrast_kind("ORAL & IV"), contrast_kind("", "ORAL\\IV")
    ('intravenous', 'intravenous', 'intravenous')
    >>> contrast_kind("GASTROGRAFIN", "ORAL"), contrast_kind("NO IV, ORAL ONLY")
    ('oral', 'oral')
    >>> contrast_kind("NONE GIVEN"), contrast_kind("NO ORAL OR IV CONTRAST"), contrast_kind("", "", 0.0)
    ('', '', '')
    """
    agents, routes = _statements(agent), _statements(route)
    kinds = {_kind_of(words) for words in (*agents, *routes)}
    if INTRAVENOUS in kinds:
        return INTRAVENOUS
    if routes:
        return ORAL if all(_kind_of(words) == ORAL for words in routes) else INTRAVENOUS
    if agents:
        return ORAL if len(agents) == 1 and kinds == {ORAL} else INTRAVENOUS
    return INTRAVENOUS if volume_ml else NONE


_BREAKS = re.compile(r"[\\,;+&|]|\.(?!\d)|\b(?:and|plus|but|then|und)\b|(?=\b(?:with|mit)\b)")
"""What parts one statement from the next; so does ``/``, but in "no oral/IV contrast"."""

_SPELLINGS = (
    (re.compile(r"\bi\.? ?v\b\.?"), "iv "),
    (re.compile(r"\bp\.o\b\.?"), "po "),
    (re.compile(r"\bw ?/ ?o(?:ut)?\b"), "without "),
    (re.compile(r"\bw ?/"), "with "),
    (re.compile(r"\bn ?/ ?a\b"), "na"),
    (re.compile(r"_"), " "),
    (re.compile(r"\bnon?[ -]con\b"), "noncontrast"),
)

_DENIALS = frozenset(
    (
        "no", "none", "non", "not", "nil", "never", "negative", "na", "n", "0", "without", "wo", "false",
        "nothing", "nan", "unenhanced", "nonenhanced", "noncontrast", "nocontrast", "noncon", "nc",
        "native", "nativ", "plain", "kein", "keine", "ohne", "sans", "aucun", "senza", "nessuno", "sin",
        "ninguno", "sem", "nenhum", "geen", "zonder",
    )
)  # fmt: skip
"""Words that deny, also in other languages of scanner consoles."""

_FILLERS = frozenset(
    (
        "oral", "iv", "intravenous", "or", "nor", "any", "contrast", "contr", "contraste", "contrasto",
        "kontrast", "kontrastmittel", "km", "mdc", "agent", "agents", "medium", "media", "dye", "bolus",
        "given", "used", "administered", "injected", "injection", "enhanced", "enhancement", "applicable",
        "scan", "series", "study", "phase", "ct", "chest", "thorax", "ml", "cc",
    )
)  # fmt: skip
"""Words that a denial may hold beside."""

_ORAL = frozenset(("oral", "orally", "po", "peroral"))
_VENOUS = re.compile(r"\b(?:iv(?![a-z])|intra ?(?:ven|vas|art)|ven[oö]u?s)")


def _statements(text: str) -> list[str]:
    """The parts of a text that affirm something, in small letters, as words parted by one space."""
    plain = text.lower()
    for pattern, replacement in _SPELLINGS:
        plain = pattern.sub(replacement, plain)
    if _DENIALS.isdisjoint(re.findall(r"\w+", plain)):
        plain = plain.replace("/", ",")
    parts = (" ".join(re.findall(r"\w+(?:\.\d+)?", part)) for part in _BREAKS.split(plain))
    return [part for part in parts if part and not _denies(part)]


def _denies(statement: str) -> bool:
    words = ["0" if re.fullmatch(r"0+(\.0+)?", word) else word for word in statement.split()]
    first = next((i for i, word in enumerate(words) if word in _DENIALS), None)
    if first is None or set(words) - _DENIALS - _FILLERS:
        return False
    of_oral_alone = not _VENOUS.search(statement) and not _ORAL.isdisjoint(words)
    return not of_oral_alone and _ORAL.isdisjoint(words[:first])


def _kind_of(statement: str) -> str:
    """`INTRAVENOUS` or `ORAL` where an affirmed statement says so, else `NONE`."""
    words = set(statement.split())
    if _VENOUS.search(statement):
        return INTRAVENOUS
    return ORAL if words & _ORAL and not words & _DENIALS else NONE
