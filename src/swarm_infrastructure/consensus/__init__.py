"""Debates: several agents argue and vote, and there is an outcome, whoever dies meanwhile.

::

    open ── argue … ── vote … ──▶ consensus       one position has the quorum, the lead and the share
                             ├──▶ no_consensus    the leading position's share is below the threshold
                             ├──▶ tie             several positions weigh the same
                             ├──▶ no_quorum       too few voted before the deadline
                             └──▶ cancelled

**What may be trusted.** A debate is a record in Redis, and every step of it is one function there. An agent has one vote,
however often and from wherever it sends it. The verdict is written once, in the same function that takes the vote which
settles it, or by whoever looks first after the deadline, and never changes; exactly one call learns that it was the one.
Redis' clock decides what is late.

**When the debate closes.** As soon as all expected votes are in; or before, when the quorum is there and the votes still
out could not take the consensus away from its winner, even if they all went to one other position with full confidence:
nobody waits for a debater that died. Else at the deadline. Who wants to hear everybody sets the quorum to all of them.

**When a part fails.** No moderator is needed: who opened a debate may die, and whoever asks gets the verdict. A debater
that dies before its vote is missed like one that never came; one that repeats its vote gets the first answer. Invitations
and other announcements are hints; who missed one finds open debates with `Debates.open_debates`.
"""

from __future__ import annotations

from .audit import audit_debates
from .debates import Debates
from .values import Argument, Cast, Debate, DebateOutcome, Standing, Verdict, Vote

__all__ = [
    "Argument",
    "Cast",
    "Debate",
    "DebateOutcome",
    "Debates",
    "Standing",
    "Verdict",
    "Vote",
    "audit_debates",
]
