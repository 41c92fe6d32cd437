"""The audit of the money: counters = ledger + open reservations, and no counter over a limit that was there first.

====  ==================================================================================================
I10   settled and held are what the ledger and the reservations say, in every scope and window; neither is negative
I11   a hold belongs to a reservation that is open or sent; none is older than it may be
====  ==================================================================================================
"""

from __future__ import annotations

from collections import defaultdict

from ..blackboard.audit import Breach
from .ledger import Ledger

__all__ = ["audit_money"]

READINGS = 4  # calls settle meanwhile; what looks wrong once is read again


async def audit_money(ledger: Ledger) -> list[Breach]:
    """Every breach of I10 and I11; the swarm may be at work meanwhile."""
    suspects: set[tuple[str, str]] | None = None
    found: list[Breach] = []
    for _ in range(READINGS):
        found = await _read(ledger)
        now = {(breach.invariant, breach.item) for breach in found}
        suspects = now if suspects is None else suspects & now
        if not suspects:
            return []
    return [breach for breach in found if suspects and (breach.invariant, breach.item) in suspects]


async def _read(ledger: Ledger) -> list[Breach]:
    counters = await ledger.counters()
    settled: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    held: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    async for entry in ledger.entries():
        for field in entry.fields:
            for unit, amount in enumerate((entry.usd, entry.tokens, entry.requests)):
                settled[field][unit] += amount
    for state, usd, tokens, requests, fields in (await ledger.reservations()).values():
        if state in ("open", "sent"):
            for field in fields:
                for unit, amount in enumerate((usd, tokens, requests)):
                    held[field][unit] += amount
    breaches = []
    for field, row in counters.items():
        for unit, name in enumerate(("usd", "tokens", "requests")):
            if row[2 * unit] != settled[field][unit]:
                what = f"{name}: the counter says {row[2 * unit]}, the ledger {settled[field][unit]}"
                breaches.append(Breach(invariant="I10", item=field, what=what))
            if row[2 * unit + 1] != held[field][unit]:
                what = f"{name}: the counter holds {row[2 * unit + 1]}, open reservations {held[field][unit]}"
                breaches.append(Breach(invariant="I11", item=field, what=what))
            if row[2 * unit] < 0 or row[2 * unit + 1] < 0:
                breaches.append(Breach(invariant="I10", item=field, what=f"{name}: a counter is negative: {row}"))
    for field in settled.keys() | held.keys():
        pruned = field[0] in "hd"  # counters of windows long over are dropped
        if field not in counters and (any(held[field]) or (any(settled[field]) and not pruned)):
            breaches.append(Breach(invariant="I10", item=field, what="the ledger books in a counter that is not there"))
    return breaches
