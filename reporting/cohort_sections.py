"""Sections of a cohort's page that stand there only where the tables have what they need."""

from __future__ import annotations

from collections import Counter

from ..stats.percentiles import Percentiles, in_order
from .page import flow_table, plain, table


def percentile_section(found: Percentiles) -> str:
    """Scans by percentile among people of the same ethnicity, and beside that by age and sex alone."""
    parts = ["## Percentile by ethnicity", flow_table([found.flow])]
    frame = found.frame
    if not len(frame):
        return "\n\n".join(parts)
    counts = Counter(frame["percentile_mesa"])
    rows = [[plain(r), str(counts[r]), f"{counts[r] / len(frame):.1%}"] for r in in_order([*counts])]
    parts += [
        f"Percentile by {plain(found.population)}: of people scanned by gated or electron beam CT, taken "
        "from a transcription of the paper's table.",
        table(["percentile, MESA", "scans", "share"], rows),
    ]
    beside = Counter(zip(frame["percentile"], frame["percentile_mesa"], strict=True))
    both = in_order([hoff for hoff, _ in beside if hoff]), in_order([*counts])
    if both[0]:
        body = [[plain(hoff), *(str(beside[hoff, mesa]) for mesa in both[1])] for hoff in both[0]]
        parts += [
            "Beside the percentile by age and sex alone (Hoff 2001):",
            table(["Hoff", *(f"MESA: {plain(mesa)}" for mesa in both[1])], body),
        ]
    return "\n\n".join(parts)
