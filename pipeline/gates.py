"""All quality gates: those of the headers and the pixels, of the pipeline, and of every method."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from types import MappingProxyType

from ..dicom.gates import GATES, Gate, register_gate
from ..errors import InputError
from ..system.nearest import nearest
from .step import load_all

HEART_NOT_FOUND = register_gate(Gate(code="heart-not-found", sentence="No heart was found."))
"""Every method that looks for the heart may say so."""

HEART_UNCHECKED = register_gate(
    Gate(
        code="heart-unchecked",
        sentence="Nothing made sure that a heart in a chest was looked at, without contrast agent and whole.",
        fatal=False,
        caution=True,
    )
)
"""Said where a method finds the heart in a way that `models.heart.step.check_heart` cannot look at."""


@cache
def gates() -> Mapping[str, Gate]:
    """Every gate by code: those that reject, then those that warn, each in the order of the alphabet."""
    load_all()
    known = sorted(GATES.values(), key=lambda gate: (not gate.fatal, gate.code))
    return MappingProxyType({gate.code: gate for gate in known})


def check_allowed(allow: Collection[str]) -> None:
    """Make sure that every code can be overridden.

    Raises:
        InputError: A code is unknown, or its gate cannot be overridden.
    """
    possible = [gate.code for gate in gates().values() if gate.overridable]
    for code in allow:
        if code not in gates():
            raise InputError(f"--allow {code}: there is no such gate.{nearest(code, possible)}")
        if code not in possible:
            raise InputError(f"--allow {code}: it cannot be overridden; these can: {', '.join(possible)}")
