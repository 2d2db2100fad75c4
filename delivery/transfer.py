"""What one caller brings, and how that ends for each series: an association, or a request to store."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .inbox import CLOSED, CONFLICT, CUT, DUPLICATE, REFUSED, SUCCESS, Answer, Inbox

log = logging.getLogger(__name__)

_MOST_REFUSED = 10_000
"""Instances of a transfer that were refused and are remembered one by one. Chosen."""


@dataclass(kw_only=True)
class Transfer:
    """What a caller has brought so far.

    Attributes:
        association: The thread of an association; None for a request.
        fresh: Series of which it brought something new.
        seen: Series of which it brought anything.
        refused: SOPInstanceUID of what was not taken, its series ("" where nobody knows it), and how that
            counts.
        flaw: Something was not taken of which nobody knows the series.
        held: Bytes received and not stored yet.
        begun, bytes: Since when, and what it brought in all.
    """

    association: Any = None
    fresh: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    flaw: bool = False
    held: int = 0
    begun: float = field(default_factory=time.monotonic)
    bytes: int = 0

    def answered(self, instance: str, answer: Answer, inbox: Inbox, counts: Counter[str]) -> None:
        """Note what became of an instance, before its sender is told.

        Args:
            instance: SOPInstanceUID.
            answer: That the sender gets.
            inbox: Where a refusal is noted at once: nobody may be there to note it later.
            counts: In which it is counted as ``new``, ``again`` or ``refused``.
        """
        uid = answer.series_uid
        if answer.status == SUCCESS:
            counts["new" if answer.new else "again"] += 1
            self.seen.add(uid)
            if self.refused.get(instance, ("", ""))[1] != CONFLICT:
                self.refused.pop(instance, None)  # another try
            if answer.new:
                self.fresh.add(uid)
            return
        counts["refused"] += 1
        log.warning("series %s: an instance was refused with 0x%04X: %s", uid, answer.status, answer.why)
        how = CONFLICT if answer.status == DUPLICATE else REFUSED
        if uid:
            inbox.ended({uid: how})
        if instance and len(self.refused) < _MOST_REFUSED:
            self.refused[instance] = (uid, how)
        else:
            self.flaw = True

    def slowed(self, rate_mb: float) -> None:
        """Wait, a second at most, where it is ahead of a rate in megabytes a second; 0: any rate will do."""
        if rate_mb:
            early = self.bytes / (rate_mb * 1e6) - (time.monotonic() - self.begun)
            time.sleep(min(max(early, 0.0), 1.0))

    def endings(self, released: bool) -> dict[str, str]:
        """How it ended for each of its series, for `Inbox.ended`."""
        flawed: dict[str, str] = {}
        for uid, how in self.refused.values():
            flawed[uid] = CONFLICT if CONFLICT in (how, flawed.get(uid)) else how
        if flawed.pop("", "") or self.flaw:
            return dict.fromkeys(self.seen, REFUSED) | flawed
        if released:
            return dict.fromkeys(self.seen, CLOSED) | flawed
        return dict.fromkeys(self.fresh, CUT) | flawed

    @property
    def series(self) -> set[str]:
        """Of which it has brought, or tried to bring, something."""
        return self.seen | {uid for uid, _ in self.refused.values()} - {""}
