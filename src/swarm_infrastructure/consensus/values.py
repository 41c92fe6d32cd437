"""What a debate is made of, and how it is read from Redis. Weights are whole thousandths there, and fractions here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..errors import LibraryMismatchError

__all__ = [
    "MILLI", "Argument", "Cast", "Debate", "DebateOutcome", "Standing", "Verdict", "Vote", "read_argument", "read_debate",
    "read_vote",
]  # fmt: skip

MILLI = 1000  # thousandths in a whole


class DebateOutcome(StrEnum):
    """How a debate ended."""

    CONSENSUS = "consensus"
    NO_CONSENSUS = "no_consensus"  #: the leading position has too small a share, or nobody was sure of anything
    TIE = "tie"  #: several positions weigh the same, and no other weighs more
    NO_QUORUM = "no_quorum"  #: too few votes before the deadline
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What one position has so far."""

    votes: int = 0
    weight: float = 0.0  #: sum of its votes' confidences; of a debate that does not weigh them, its votes


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a debate ended. Written once."""

    debate_id: str
    item_id: str
    outcome: DebateOutcome
    position: str  #: the winning one; "" unless there is a consensus
    leaders: tuple[str, ...]  #: the positions with the greatest weight; several of a tie, none if nobody voted
    share: float  #: of all weight, that of the leading position
    weight: float  #: of the leading position
    votes: int
    how: str  #: all (the last expected vote), certain (the rest could not change it), deadline, cancelled
    decided_ms: int  #: milliseconds since the epoch, on Redis' clock
    reason: str  #: why it was cancelled

    @property
    def reached(self) -> bool:
        """Whether there is a consensus."""
        return self.outcome is DebateOutcome.CONSENSUS

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "outcome": str(self.outcome),
            "leaders": list(self.leaders),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Debate:
    """A debate as it stands."""

    id: str
    topic: str
    item_id: str  #: of the board, "" if it is about none
    options: tuple[str, ...]  #: the positions that can be voted for
    voters: tuple[str, ...]  #: agents that may vote; with no voters and no roles, anybody
    roles: tuple[str, ...]  #: roles whose agents may vote
    expected: int  #: votes that there can be; 0: not known
    quorum: int  #: votes that an outcome needs
    threshold: float  #: the share of the weight that a consensus needs at least
    weighted: bool  #: whether a vote weighs its confidence
    opened_by: str
    opened_ms: int  #: milliseconds since the epoch, on Redis' clock
    deadline_ms: int
    arguments: int  #: how many there are
    votes: int
    standing: Mapping[str, Standing]  #: by position
    verdict: Verdict | None  #: None as long as it is open
    read_ms: int  #: when this was read, on the same clock

    @property
    def is_open(self) -> bool:
        """Whether it has no outcome yet."""
        return self.verdict is None

    @property
    def left_s(self) -> float:
        """Seconds to the deadline when this was read; 0 if it has passed."""
        return max(0.0, (self.deadline_ms - self.read_ms) / 1000)

    def invites(self, agent_id: str = "", role: str = "") -> bool:
        """Whether this agent, or one of this role, may vote."""
        return not (self.voters or self.roles) or agent_id in self.voters or role in self.roles

    def as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        told = {name: getattr(self, name) for name in self.__slots__}
        return told | {
            "options": list(self.options),
            "voters": list(self.voters),
            "roles": list(self.roles),
            "standing": {
                name: {"votes": each.votes, "weight": each.weight} for name, each in self.standing.items()
            },
            "verdict": self.verdict.as_dict() if self.verdict else None,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """What an agent brought forward."""

    number: int  #: the first is 1
    agent_id: str
    role: str
    position: str  #: the one it speaks for; "" for none
    confidence: float
    text: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """An agent's one vote."""

    number: int  #: the first is 1
    agent_id: str
    role: str
    choice: str
    confidence: float
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """What became of a call that voted."""

    vote: Vote | None  #: as it is counted; None: it came too late
    debate: Debate  #: right after it
    closed: bool  #: this call closed the debate; of all calls, one learns that

    @property
    def counted(self) -> bool:
        """Whether the vote is in the outcome."""
        return self.vote is not None


def read_debate(debate_id: str, facts: Mapping[str, str], read_ms: int) -> Debate:
    """A debate from the fields of its hash.

    Raises:
        LibraryMismatchError: they are none of a debate.
    """
    try:
        options = tuple(facts["options"].split("\n"))
        weigh = {name: int(facts.get(f"weight|{n}", 0)) / MILLI for n, name in enumerate(options, 1)}
        return Debate(
            id=debate_id,
            topic=facts["topic"],
            item_id=facts["item"],
            options=options,
            voters=tuple(facts["voters"].split()),
            roles=tuple(facts["roles"].split()),
            expected=int(facts["expected"]),
            quorum=int(facts["quorum"]),
            threshold=int(facts["threshold"]) / MILLI,
            weighted=facts["weighted"] == "1",
            opened_by=facts["opened_by"],
            opened_ms=int(facts["opened_ms"]),
            deadline_ms=int(facts["deadline_ms"]),
            arguments=int(facts["arguments"]),
            votes=int(facts["votes"]),
            standing={
                name: Standing(votes=int(facts.get(f"votes|{n}", 0)), weight=weigh[name])
                for n, name in enumerate(options, 1)
            },
            verdict=_read_verdict(debate_id, facts, options) if "outcome" in facts else None,
            read_ms=read_ms,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise LibraryMismatchError(f"debate {debate_id!r}", dict(facts), "a debate") from error


def _read_verdict(debate_id: str, facts: Mapping[str, str], options: Sequence[str]) -> Verdict:
    outcome, weight, total = DebateOutcome(facts["outcome"]), int(facts["weight"]), int(facts["total"])
    leaders = tuple(options[int(n) - 1] for n in facts["leaders"].split()) if int(facts["votes"]) else ()
    return Verdict(
        debate_id=debate_id,
        item_id=facts["item"],
        outcome=outcome,
        position=leaders[0] if outcome is DebateOutcome.CONSENSUS else "",
        leaders=leaders,
        share=weight / total if total else 0.0,
        weight=weight / MILLI,
        votes=int(facts["votes"]),
        how=facts["how"],
        decided_ms=int(facts["decided_ms"]),
        reason=facts["reason"],
    )


def read_argument(number: int, packed: bytes, options: Sequence[str]) -> Argument:
    """An argument as Redis keeps it."""
    head, _, text = packed.decode().partition("\n")
    agent_id, at_ms, confidence, role, option = head.split(" ")
    return Argument(
        number=number, agent_id=agent_id, role=role, position=options[int(option) - 1] if option != "0" else "",
        confidence=int(confidence) / MILLI, text=text, at_ms=int(at_ms),
    )  # fmt: skip


def read_vote(agent_id: str, packed: bytes, options: Sequence[str]) -> Vote:
    """A vote as Redis keeps it."""
    head, _, reason = packed.decode().partition("\n")
    number, at_ms, confidence, role, option, _request = head.split(" ")
    return Vote(
        number=int(number), agent_id=agent_id, role=role, choice=options[int(option) - 1],
        confidence=int(confidence) / MILLI, reason=reason, at_ms=int(at_ms),
    )  # fmt: skip
