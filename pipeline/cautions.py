"""What must stand beside a result wherever it is shown, or who reads the number alone is misled."""

from __future__ import annotations

from ..dicom import Finding
from ..dicom.gates import THICK_MM, Gate, is_thick, register_gate
from .case import Case
from .facts import CT
from .step import values

MARK = "!"
"""Stands beside a result that has cautions, where there is no room for them."""

ZERO = register_gate(
    Gate(
        code="zero-at-thick-slices",
        sentence=f"No calcium was found, in slices of {THICK_MM:g} mm or more: small calcium may be missed.",
        fatal=False,
        caution=True,
    )
)


def has_result(case: Case) -> bool:
    """Whether a case has anything that a report could include (`step.values`)."""
    return any(value.of(case) is not None for value, _ in values().values())


def cautions(case: Case) -> tuple[str, ...]:
    """The sentences of a case with a result; none where it has no result.

    They are about a result that a gate would have refused, had the user not allowed it, and what gates say
    that are a `Gate.caution`, such as a zero from thick slices.
    """
    if not has_result(case):
        return ()
    allowed = tuple(f"in spite of {f.code}: {f.message}" for f in case.findings if f.allowed)
    return (*allowed, *(f.message for f in case.findings if f.caution))


def zero_findings(case: Case, what: str) -> tuple[Finding, ...]:
    """The warning for a case in which no calcium was found, where its slices are thick and it has none yet.

    Of scans that read 0 at 5 mm, 19 % are above 0 at 1 mm; of those in NLST at 2 mm, 10 %. The thickness is
    that of the header or the distance of the slices, whichever is more: what lies between slices is missed as
    well.

    Args:
        what: What found none, such as ``a score of 0``.

    Raises:
        TypeError: The case has no CT yet.
    """
    thicknesses = [s.slice_thickness for s in case.series.slices if s.slice_thickness is not None]
    thickest = max(
        case[CT].geometry.spacing[0], case.series.slice_thickness or 0.0, max(thicknesses, default=0.0)
    )
    if not is_thick(thickest) or any(f.code == ZERO.code for f in case.findings):
        return ()
    message = (
        f"{what} from slices of {thickest:.3g} mm: small calcium may be missed "
        "(of scans that read 0 at 5 mm, 19 % are above 0 at 1 mm)"
    )
    return (ZERO.finding(message),)
