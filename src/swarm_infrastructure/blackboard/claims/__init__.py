"""Claims: an agent's sole right to work on an item until a lease ends.

::

    agent A ── claim ──▶ token 7 ── renew, renew ── complete(7) ──▶ accepted
                              └─ froze; its lease ran out ── complete(7) ──▶ lost, nothing is written
    agent B ────────────────────── claim ──▶ token 8 ── complete(8) ──▶ accepted

What may be trusted: Redis' clock and nobody else's; the token, which grows with each claim of an item, even across a
failover that forgot some. An item's handler may run twice (after a crash there is no way to know how far it got), but
exactly one ending of it is accepted.

What happens when a part fails: a crashed agent's items come back when their lease ends, to whoever claims next. A lost
reply is asked for again and gives the first answer. While Redis is away nothing can be claimed or ended, and a holder
that could not renew for two thirds of its lease treats the claim as lost and stops before it can do harm.

One `ClaimDesk` serves all agents of a process: their claims and endings that fall together travel together, and each
caller is answered when its own are in Redis.
"""

from __future__ import annotations

from .desk import ClaimDesk
from .values import (
    LEAST_LEASE_S,
    MOST_PER_CALL,
    Claim,
    Claimed,
    ClaimRequest,
    Ending,
    Kind,
    current_claim,
    new_request,
    work_under,
)

__all__ = [
    "LEAST_LEASE_S",
    "MOST_PER_CALL",
    "Claim",
    "ClaimDesk",
    "ClaimRequest",
    "Claimed",
    "Ending",
    "Kind",
    "current_claim",
    "new_request",
    "work_under",
]
