"""Whether a scan is like those that the weights were trained on.

Every set of weights states its domain (`weights.Domain`); what the scan has is read from its header and
grid, and its noise is measured. Where they differ, the case gets a warning with both. A header gate that
warns of the same thing already (a sharp kernel, another tube voltage, thick slices) says what that does to
the score; it is completed by what it means for the weights, instead of saying it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dicom import Finding
from ..dicom.gates import Gate, is_sharp_kernel, named_contrast, register_gate
from ..imaging.noise import noise_sd
from ..weights import Domain, WeightSet
from .case import Case
from .facts import CT, DOMAIN, HEART

OFF_DOMAIN = {
    topic: register_gate(
        Gate(code=f"off-domain-{topic}", sentence=f"The weights were not trained on {scans}.", fatal=False)
    )
    for topic, scans in {
        "kernel": "scans with this kernel",
        "noise": "scans with as much, or as little, noise",
        "kvp": "scans at this tube voltage",
        "slices": "slices of this thickness or distance",
        "field": "scans of this field of view, pixel size or length",
        "contrast": "scans with intravenous contrast agent",
    }.items()
}
"""By topic."""
DOMAIN_UNKNOWN = register_gate(
    Gate(code="domain-unknown", sentence="The weights do not say what they were trained on.", fatal=False)
)

TOLERANCE = 0.02
"""Share by which a value may lie outside a range: headers round 0.6992 to 0.7 and 3.98 to 4. Chosen."""

UNKNOWN = "how they do here is not known"
"""What is said of a difference whose effect nobody measured."""


@dataclass(frozen=True, kw_only=True)
class _Quantity:
    """A number of the scan for which a domain states a range.

    Attributes:
        topic: What it belongs to: one finding for each topic.
        measured, trained: The words around the scan's number and around the range.
        below, above: What it does to the result, where that is known.
    """

    topic: str
    measured: str
    trained: str
    below: str = UNKNOWN
    above: str = UNKNOWN


_QUANTITIES: dict[str, _Quantity] = {
    "noise_hu": _Quantity(
        topic="noise",
        measured="noise of {} HU in the heart",
        trained="{} HU",
        above="small lesions may be noise",
    ),
    "kvp": _Quantity(topic="kvp", measured="taken at {} kV", trained="{} kV"),
    "thickness_mm": _Quantity(
        topic="slices",
        measured="slices {} mm thick",
        trained="slices {} mm thick",
        above="small calcifications may be missed",
    ),
    "increment_mm": _Quantity(
        topic="slices",
        measured="slices {} mm apart",
        trained="slices {} mm apart",
        above="small calcifications may be missed",
    ),
    "pixel_mm": _Quantity(
        topic="field",
        measured="pixels of {} mm",
        trained="pixels of {} mm",
        above="small calcifications may be missed",
    ),
    "field_of_view_mm": _Quantity(
        topic="field", measured="a field of view of {} mm", trained="fields of view of {} mm"
    ),
    "coverage_mm": _Quantity(topic="field", measured="{} mm of the body scanned", trained="scans {} mm long"),
}

_SAID_BEFORE = {
    "kernel": ("sharp-kernel",),
    "kvp": ("kvp",),
    "slices": ("thick-slices", "too-thick", "too-thin"),
    "contrast": ("contrast-measured", "contrast"),
}
"""Topic → gates that name the scan's value already."""


@dataclass(frozen=True, kw_only=True)
class _Outside:
    """One value of a scan that lies outside one set's domain, in words: what the scan has, what the set was
    trained on, and what may come of it."""

    topic: str
    measured: str
    trained: str
    effect: str


def stated(case: Case, weights: WeightSet) -> Case:
    """The case, knowing what these weights say of themselves (``weights`` in `facts.DOMAIN`)."""
    domain = case.get(DOMAIN, {})
    said = weights.domain.to_dict() if weights.domain else {}
    sets = {**domain.get("weights", {}), weights.role: {"name": weights.name, "domain": said}}
    return case.add(DOMAIN, {**domain, "weights": sets})


def compare(case: Case) -> Case:
    """Compare the scan with the domain of the weights named by `stated` that it was not compared with yet.

    Adds to `facts.DOMAIN` what the scan has (``scan``, see `describe_scan`) and what lies outside
    (``outside``: topic → roles of the weights; ``unknown`` for weights that state nothing), and to the
    findings what a user should know.

    Raises:
        TypeError: The case has no CT yet.
    """
    scan = describe_scan(case)
    before = case[DOMAIN]
    compared = set(before.get("compared", ()))
    sets: Mapping[str, Any] = {r: e for r, e in before["weights"].items() if r not in compared}
    outside: dict[str, dict[str, list[_Outside]]] = {}
    for role, entry in sets.items():
        domain = Domain.parse(entry["domain"])
        for found in _outside(scan, domain) if domain else ():
            outside.setdefault(found.topic, {}).setdefault(role, []).append(found)
    findings = list(case.findings)
    for topic, by_role in outside.items():
        _say(findings, topic, by_role)
    roles = {topic: list(by_role) for topic, by_role in outside.items()}
    unknown = [role for role, entry in sets.items() if not entry["domain"]]
    if unknown:
        roles["unknown"] = unknown
        names = " and ".join(f"{role} weights {sets[role]['name']}" for role in unknown)
        message = (
            f"the {names} do not say what they were trained on; whether that fits this scan is not known"
        )
        findings.append(DOMAIN_UNKNOWN.finding(message))
    said = before.get("outside", {})
    joined = {topic: [*said.get(topic, ()), *roles.get(topic, ())] for topic in {**said, **roles}}
    after = {**before, "scan": scan, "outside": joined, "compared": sorted({*compared, *sets})}
    return replace(case.add(DOMAIN, after), findings=tuple(findings))


def describe_scan(case: Case) -> dict[str, Any]:
    """What a scan has of all that a domain can state.

    Returns:
        ``kernel`` (of slices that differ all, joined by commas), ``contrast`` and, under the names of
        `weights.Domain`, numbers or None (the noise, where no heart mask is known). JSON types only.

    Raises:
        TypeError: The case has no CT yet.
    """
    series, volume = case.series, case[CT]
    grid = volume.geometry
    (slices, rows, columns), (dz, dy, dx) = grid.shape, grid.spacing
    contrast = named_contrast(series) == "intravenous" or any(
        f.code == "contrast-measured" for f in case.findings
    )
    return {
        "kernel": ", ".join(series.kernels) or series.kernel,
        "contrast": contrast,
        "noise_hu": noise_sd(volume, case[HEART].mask) if HEART in case else None,
        "kvp": series.kvp,
        "thickness_mm": series.slice_thickness or round(dz, 3),
        "increment_mm": round(dz, 3),
        "pixel_mm": round(max(dy, dx), 3),
        "field_of_view_mm": round(max(rows * dy, columns * dx), 1),
        "coverage_mm": round(slices * dz, 1),
    }


def _outside(scan: Mapping[str, Any], domain: Domain) -> Iterator[_Outside]:
    """What of a scan lies outside a domain, in a fixed order."""
    kernel = scan["kernel"]
    foreign = [k for k in kernel.split(", ") if not _is_among(k, domain.kernels)] if domain.kernels else []
    if foreign:
        yield _Outside(
            topic="kernel",
            measured=f"kernel {kernel}" if kernel else "the header names no kernel",
            trained=_list(domain.kernels),
            effect="noise and edges may be taken for calcium"
            if any(map(is_sharp_kernel, foreign))
            else UNKNOWN,
        )
    for name, quantity in _QUANTITIES.items():
        value, limits = scan[name], getattr(domain, name)
        if value is None or limits is None:
            continue
        low, high = limits
        below, above = value < low * (1 - TOLERANCE), value > high * (1 + TOLERANCE)
        if below or above:
            limit = f"{low:g} to {high:g}" if low < high else f"only {low:g}"
            yield _Outside(
                topic=quantity.topic,
                measured=quantity.measured.format(f"{round(value, 2):g}"),
                trained=quantity.trained.format(limit),
                effect=quantity.above if above else quantity.below,
            )
    if scan["contrast"] and domain.contrast is False:
        yield _Outside(
            topic="contrast",
            measured="a contrast-enhanced scan",
            trained="scans without contrast agent",
            effect="they may take enhanced blood for calcium",
        )


def _is_among(kernel: str, known: tuple[str, ...]) -> bool:
    """Whether a kernel is one of these names or kinds; one without a name only where both kinds are."""
    names = {name.lower() for name in known}
    if not kernel:
        return {"soft", "sharp"} <= names
    kind = "sharp" if is_sharp_kernel(kernel) else "soft"
    return kind in names or kernel.split("\\")[0].strip().lower() in names


def _list(kernels: tuple[str, ...]) -> str:
    """Kernels in words: ``soft kernels, B50f and BONE``."""
    words = [f"{k} kernels" if k in ("soft", "sharp") else k for k in kernels]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _say(findings: list[Finding], topic: str, by_role: Mapping[str, list[_Outside]]) -> None:
    """Add one finding on a topic, or complete the one that a gate has made of it."""
    by_training: dict[str, list[str]] = {}
    for role, found in by_role.items():
        by_training.setdefault(" and ".join(o.trained for o in found), []).append(role)
    trained = ", ".join(
        f"the {' and '.join(roles)} weights were trained on {what}" for what, roles in by_training.items()
    )
    for code in (*_SAID_BEFORE.get(topic, ()), OFF_DOMAIN[topic].code):
        for i, finding in enumerate(findings):
            if finding.code == code:
                findings[i] = replace(finding, message=f"{finding.message}; {trained}")
                return
    everything = [o for found in by_role.values() for o in found]
    measured = " and ".join(dict.fromkeys(o.measured for o in everything))
    effects = dict.fromkeys(o.effect for o in everything)
    known = [e for e in effects if e != UNKNOWN] or [UNKNOWN]
    findings.append(OFF_DOMAIN[topic].finding(f"{measured}; {trained}: {' and '.join(known)}"))
