"""What of a run is handed over without its patients: rows of the table, reports, and what may be said.

Columns of numbers pass, but for those that tell a patient's age; of texts only what this program itself may
have put there. A column that is not named here and holds text is emptied: what a plugin puts there is not
known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from .. import errors
from ..dicom.deidentify import KERNEL, VERSION, Deidentifier, Vocabulary, maker_of
from ..dicom.pseudonyms import Pseudonyms
from ..scoring.rules import named_rules
from ..weights import load_manifest
from .domain import OFF_DOMAIN
from .gates import gates
from .places import series_folder
from .results import MEANINGS, STATUSES, ResultRow
from .shown import RESEARCH_USE

_AGE = ("patient_age",)
"""Columns of numbers that are emptied."""
_SHORT = re.compile(r"[A-Za-z0-9<>=. ]{0,12}")
"""Words of `_GRADES`, such as ``very low``, ``>=1000``."""
_GRADES = ("risk_group_name", "cac_drs", "chest_ct_grade", "score_class")
"""Columns of words that follow from the score."""
_CAUTION = "A caution was removed with the patient's data; ask whom this is from."
_SET = re.compile(r"([a-z_ -]{1,40}):([A-Za-z0-9._-]+)@([0-9a-f]{12})")


def vocabulary() -> Vocabulary:
    """What may be said: the sentences of all gates, the names of rules and of weights."""
    parameters = (
        v for rule in named_rules().values() for k, v in rule.parameters().items() if k != "summary"
    )
    return Vocabulary(
        notice=RESEARCH_USE,
        sentences={code: gate.sentence for code, gate in gates().items()},
        words=frozenset({*(v for v in parameters if isinstance(v, str)), *_weights()}),
    )


def _weights() -> frozenset[str]:
    """Names of the sets of weights that are known here."""
    return frozenset(load_manifest())


def deidentifier(key: bytes) -> Deidentifier:
    """What makes objects that can be handed over.

    Args:
        key: Secret; see `system.secret`.
    """
    from .. import __version__

    return Deidentifier(Pseudonyms(key), vocabulary(), version=__version__)


def row_without_patient(row: ResultRow, pseudonyms: Pseudonyms) -> ResultRow:
    """A row with new names for patient, study and series, and no text that came from outside."""
    names = {
        "patient_id": pseudonyms.patient(row.patient_id),
        "study_uid": pseudonyms.uid(row.study_uid),
        "series_uid": pseudonyms.uid(row.series_uid),
    }
    kept = {c.name: _kept(c.name, c.kind, getattr(row, c.name), row) for c in MEANINGS.values()} | names
    made = ResultRow(**kept)
    return replace(made, folder=series_folder(made).as_posix() if row.folder else "")


def _kept(name: str, kind: type, value: Any, row: ResultRow) -> Any:
    if kind is not str:
        return None if name in _AGE else value
    return _TEXTS[name](value, row) if name in _TEXTS and value else ""


def _one_of(*words: str) -> Callable[[str, ResultRow], str]:
    return lambda value, row: value if value in words else ""


def _codes() -> frozenset[str]:
    """Codes of gates and of errors."""
    every = (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.DeepCACError))
    return frozenset({*gates(), *(e.code for e in every), *_OTHER_CODES})


_OTHER_CODES = ("unreadable-file", "not-found", "quarantined", "out-of-memory", "internal-error")
"""What rows have for a code that is neither a gate's nor an error's."""


def _code(value: str, row: ResultRow) -> str:
    return value if value in _codes() else "other"


def _reason(value: str, row: ResultRow) -> str:
    gate = gates().get(row.code)
    return "" if gate is None else gate.sentence


def _caution(value: str, row: ResultRow) -> str:
    """The sentences of the gates that are named, in place of what they said."""
    allowed = [c for c in re.findall(r"in spite of ([a-z0-9-]+):", value) if c in gates()]
    said = [f"in spite of {code}: {gates()[code].sentence}" for code in dict.fromkeys(allowed)]
    warned = [c for c in row.warnings.split(";") if c in gates() and gates()[c].caution]
    said += [gates()[code].sentence for code in warned if code not in allowed]
    return "; ".join(said) or _CAUTION


def _warnings(value: str, row: ResultRow) -> str:
    return ";".join(code for code in value.split(";") if code in gates())


def _off_domain(value: str, row: ResultRow) -> str:
    return ";".join(word for word in value.split(";") if word in (*OFF_DOMAIN, "unknown"))


def _sets(value: str, row: ResultRow) -> str:
    found = [match for part in value.split(";") if (match := _SET.fullmatch(part))]
    known = _weights()
    return ";".join(f"{m[1]}:{m[2] if m[2] in known else 'other'}@{m[3]}" for m in found)


_TEXTS: Mapping[str, Callable[[str, ResultRow], str]] = {
    "status": _one_of(*STATUSES),
    "code": _code,
    "reason": _reason,
    "rule": lambda value, row: value if value in named_rules() else "other",
    "heart_source": lambda value, row: "a file",
    "caution": _caution,
    "manufacturer": lambda value, row: maker_of(value),
    "kernel": lambda value, row: value if KERNEL.fullmatch(value) else "",
    "off_domain": _off_domain,
    "warnings": _warnings,
    "deepcac2_version": lambda value, row: value if re.fullmatch(VERSION, value) else "",
    "weights": _sets,
    **{name: lambda value, row: value if _SHORT.fullmatch(value) else "" for name in _GRADES},
}


def report_without_patient(content: Any, pseudonyms: Pseudonyms) -> dict[str, Any]:
    """A report (``DeepCAC.report.json``) with numbers and new UIDs, and nothing else.

    Args:
        content: Of the JSON file.
    """
    kept: dict[str, Any] = {}
    for key, value in (content if isinstance(content, dict) else {}).items():
        if key in _NUMBERS and isinstance(value, (int, float)):
            kept[key] = value
        elif key in _NAMES and isinstance(value, str):
            kept[key] = _NAMES[key](pseudonyms, value)
    return kept


_NUMBERS = ("Predicted Agatston Score", "Predicted Risk Group")
_NAMES: Mapping[str, Callable[[Pseudonyms, str], str]] = {
    "SeriesInstanceUID": Pseudonyms.uid,
    "StudyInstanceUID": Pseudonyms.uid,
    "PatientID": Pseudonyms.patient,
}
