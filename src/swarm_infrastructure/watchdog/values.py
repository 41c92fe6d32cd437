"""What the watchdog says: a reason, the explanation of an item, and what stands still on a board."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Explanation", "Reason", "ReasonKind", "Standstill", "StandstillKind"]


class ReasonKind(StrEnum):
    """Why an item does not move."""

    WORKED_ON = "worked_on"  #: an agent holds it and works
    LEASE_OVER = "lease_over"  #: its holder's lease has ended, and nobody has taken it back yet
    DELAYED = "delayed"  #: not to be claimed before a certain moment
    NOBODY_CLAIMS = "nobody_claims"  #: no agent claims from where it stands
    NO_CAPABILITY = "no_capability"  #: agents claim there, but none has what it requires
    ALL_OFFLINE = "all_offline"  #: agents that could take it were not heard of
    PAUSED = "paused"
    REVOKED = "revoked"
    LEAVING = "leaving"  #: drained or told to shut down
    BUSY = "busy"  #: every slot is taken
    BUDGET = "budget"  #: claims are stopped for want of money
    BREAKER_OPEN = "breaker_open"
    RATE_LIMIT = "rate_limit"
    SECTION_FULL = "section_full"
    VOTES = "votes"  #: a debate about it is open
    LOCK = "lock"  #: its holder waits for a lock
    QUARANTINED = "quarantined"
    FINISHED = "finished"  #: nothing more is meant to happen
    RESTING = "resting"  #: no agent claims this status; somebody has to move it
    IN_LINE = "in_line"  #: others are before it
    MISSING = "missing"  #: there is no such item


MOVES = frozenset({
    ReasonKind.WORKED_ON, ReasonKind.DELAYED, ReasonKind.IN_LINE, ReasonKind.FINISHED, ReasonKind.RESTING, ReasonKind.BUSY,
    ReasonKind.VOTES, ReasonKind.RATE_LIMIT, ReasonKind.LOCK, ReasonKind.BREAKER_OPEN,
})  # fmt: skip
"""Reasons that pass by themselves, or are as it is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason why an item does not move."""

    kind: ReasonKind
    found: str  #: in words
    step: str = ""  #: what to do about it, mostly a command; "" if nothing is to be done
    facts: Mapping[str, Any] = field(default_factory=dict)  #: the same for programs

    @property
    def passes(self) -> bool:
        """Whether it passes by itself, or is as it is meant."""
        return self.kind in MOVES

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {"kind": str(self.kind), "found": self.found, "step": self.step, "facts": dict(self.facts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an item does not move, the weightiest reason first."""

    board: str
    item_id: str
    place: str  #: section/status, and what it requires; "" if there is no such item
    since_ms: int  #: when it came there or was changed last; 0 if there is no such item
    age_s: float  #: how long ago that was
    reasons: tuple[Reason, ...]

    @property
    def exists(self) -> bool:
        """Whether there is such an item."""
        return bool(self.place)

    @property
    def stuck(self) -> bool:
        """Whether it will not move unless somebody does something."""
        return any(not reason.passes for reason in self.reasons)

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "board": self.board, "item": self.item_id, "place": self.place, "since_ms": self.since_ms, "age_s": self.age_s,
            "stuck": self.stuck, "reasons": [reason.as_dict() for reason in self.reasons],
        }  # fmt: skip


class StandstillKind(StrEnum):
    """What stands still on a board."""

    STARVED = "starved"  #: ready items that no living agent can claim
    STOPPED = "stopped"  #: ready items whose agents may not claim: paused, without money, leaving
    LEASES_OVER = "leases_over"  #: leases that ended, and nobody takes the items back
    OVERTAKEN = "overtaken"  #: a low priority waits while higher ones pass it all the time
    WAITS_LONG = "waits_long"  #: items that wait far longer than others of their lane did
    SECTION_FULL = "section_full"  #: at its cap: submits are refused
    WAIT_CYCLE = "wait_cycle"  #: agents that wait for each other
    BREAKER_OPEN = "breaker_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standstill:
    """One thing that stands still on a board."""

    kind: StandstillKind
    where: str  #: section/status/requires, a section, or the agents of a ring
    found: str
    step: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "kind": str(self.kind), "where": self.where, "found": self.found, "step": self.step, "facts": dict(self.facts),
        }  # fmt: skip
