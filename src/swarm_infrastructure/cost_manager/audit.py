"""The audit of the money: counters = base + ledger + open reservations, and no counter over a limit that was there first.

====  ==================================================================================================
I9    a call is booked once: settled or at the estimate, and an estimate is corrected once at most
I10   settled and held are what base, ledger and reservations say, in every scope and window; neither is negative
I11   a hold belongs to a reservation that is open or sent, and each of those has an end
====  ==================================================================================================
"""

from __future__ import annotations

from collections import defaultdict

from ..blackboard.audit import Breach
from .ledger import Ledger

__all__ = ["audit_money"]

READINGS = (
    4  # out of memory, Redis reads one after the other, and calls settle meanwhile: what looks wrong is read again
)
REPEATED_MS = 3_600_000  # how long a repeat is recognised: `KEEP_S` of the ledger


async def audit_money(ledger: Ledger) -> list[Breach]:
    """Every breach of I9, I10 and I11; the swarm may be at work meanwhile."""
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
    books = await ledger.standing()
    counters, newest = books.counters, books.newest
    settled: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    held: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    booked: dict[tuple[str, bool], int] = {}  # (reservation, whether this corrects it) → when
    breaches = []
    for field, sums in books.base.items():  # what lines that were trimmed booked
        settled[field] = list(sums)
    async for entry in ledger.entries(count=None if newest else 0):
        once = (entry.reservation, entry.kind == "corrected")
        if entry.at_ms - booked.get(once, -REPEATED_MS) < REPEATED_MS:
            what = f"{entry.kind} again in entry {entry.id} of the ledger"
            breaches.append(Breach(invariant="I9", item=entry.reservation, what=what))
        booked[once] = entry.at_ms
        for field in entry.fields:
            for unit, amount in enumerate((entry.usd, entry.tokens, entry.requests)):
                settled[field][unit] += amount
        if entry.id == newest:  # what came later is not in the counters
            break
    for id, (state, usd, tokens, requests, fields) in books.reservations.items():
        if state in ("open", "sent"):
            if id not in books.ending:
                breaches.append(Breach(invariant="I11", item=id, what=f"{state}, and nothing says when that ends"))
            for field in fields:
                for unit, amount in enumerate((usd, tokens, requests)):
                    held[field][unit] += amount
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
