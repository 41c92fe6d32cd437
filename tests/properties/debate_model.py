"""Debates in plain Python: what each call ought to answer and to leave behind.

Written from the docstrings, never from the Lua, so that the two can disagree. Confidences are whole tenths, and shares are
compared as fractions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import product
from typing import Any

from model import Refused

from swarm_infrastructure.errors import DebateNotFoundError, DebateRefusedError

Facts = dict[str, Any]


@dataclass
class Held:
    """One debate."""

    facts: Facts
    deadline_ms: int
    votes: dict[str, tuple[str, int]] = field(default_factory=dict)  # agent → choice, tenths
    arguments: list[tuple[str, str]] = field(default_factory=list)
    verdict: tuple[str, str, str, int] | None = None  # outcome, position, how, votes
    forget_ms: int = 0

    def judge(self, votes: Iterable[tuple[str, int]]) -> tuple[str, str]:
        """Outcome and position of these votes."""
        weights = dict.fromkeys(self.facts["options"], 0)
        n = 0
        for choice, tenths in votes:
            weights[choice] += tenths if self.facts["weighted"] else 10
            n += 1
        total, best = sum(weights.values()), max(weights.values())
        leaders = [each for each, weight in weights.items() if weight == best]
        if n < self.facts["quorum"]:
            return "no_quorum", ""
        if total and len(leaders) > 1:
            return "tie", ""
        if total and Fraction(best, total) >= Fraction(str(self.facts["threshold"])):
            return "consensus", leaders[0]
        return "no_consensus", ""

    def is_certain(self) -> bool:
        """Whether it would be the same consensus whatever the rest voted, tried out: with full confidence, or with none."""
        out = self.facts["expected"] - len(self.votes)
        outcomes = {
            self.judge([*self.votes.values(), *rest])
            for rest in product(
                [(choice, tenths) for choice in self.facts["options"] for tenths in (0, 10)], repeat=out
            )
        }
        now = self.judge(self.votes.values())
        return outcomes == {now} and now[0] == "consensus"


class DebateModel:
    """All debates of a board."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.debates: dict[str, Held] = {}

    def advance(self, ms: int) -> None:
        self.now_ms += ms

    def _find(self, debate_id: str) -> Held:
        if debate_id not in self.debates:
            raise Refused(DebateNotFoundError)
        held = self.debates[debate_id]
        if held.verdict is None and held.deadline_ms <= self.now_ms:
            self._close(held, "deadline")
        return held

    def _close(self, held: Held, how: str) -> None:
        outcome = ("cancelled", "") if how == "cancelled" else held.judge(held.votes.values())
        held.verdict = (*outcome, how, len(held.votes))
        held.forget_ms = self.now_ms + int(held.facts["keep_s"] * 1000)

    @staticmethod
    def _invited(held: Held, agent: str, role: str) -> bool:
        facts = held.facts
        return not (facts["voters"] or facts["roles"]) or agent in facts["voters"] or role in facts["roles"]

    def open(self, debate_id: str, facts: Facts) -> Any:
        held = self.debates.get(debate_id)
        if held is None:
            held = self.debates[debate_id] = Held(facts, self.now_ms + int(facts["deadline_s"] * 1000))
        elif held.facts != facts:
            raise Refused(DebateRefusedError)
        answer = self._find(debate_id).verdict
        self.sweep()
        return answer

    def argue(self, debate_id: str, agent: str, role: str, position: str) -> Any:
        if debate_id not in self.debates:
            raise Refused(DebateNotFoundError)
        if not self._invited(self.debates[debate_id], agent, role):
            raise Refused(DebateRefusedError)
        held = self._find(debate_id)
        if held.verdict is not None:
            return None
        if sum(each == agent for each, _ in held.arguments) >= held.facts["arguments_each"]:
            raise Refused(DebateRefusedError)
        if len(held.arguments) >= held.facts["arguments_most"]:
            raise Refused(DebateRefusedError)
        held.arguments.append((agent, position))
        return len(held.arguments)

    def vote(self, debate_id: str, agent: str, role: str, choice: str, tenths: int) -> Any:
        """Whether it counts, whether this call closed the debate, the verdict."""
        if debate_id not in self.debates:
            raise Refused(DebateNotFoundError)
        held = self.debates[debate_id]
        if agent in held.votes:  # said before anything else, also when the debate is over or due
            if held.votes[agent] != (choice, tenths):
                raise Refused(DebateRefusedError)
            return True, False, held.verdict
        if not self._invited(held, agent, role):
            raise Refused(DebateRefusedError)
        was_open = held.verdict is None
        self._find(debate_id)
        if held.verdict is not None:
            return False, was_open, held.verdict
        held.votes[agent] = (choice, tenths)
        if held.facts["expected"] and len(held.votes) >= held.facts["expected"]:
            self._close(held, "all")
        elif held.facts["expected"] and held.is_certain():
            self._close(held, "certain")
        return True, held.verdict is not None, held.verdict

    def outcome(self, debate_id: str) -> Any:
        return self._find(debate_id).verdict

    def cancel(self, debate_id: str) -> Any:
        held = self._find(debate_id)
        if held.verdict is None:
            self._close(held, "cancelled")
        return held.verdict

    def sweep(self) -> tuple[int, int]:
        due = [each for each, held in self.debates.items() if held.verdict is None and held.deadline_ms <= self.now_ms]
        kept = [each for each, held in self.debates.items() if held.verdict and held.forget_ms <= self.now_ms]
        for debate_id in due:
            self._find(debate_id)
        for debate_id in kept:
            del self.debates[debate_id]
        return len(due), len(kept)

    def forget(self, debate_id: str) -> bool:
        if debate_id not in self.debates:
            return False
        if self._find(debate_id).verdict is None:
            raise Refused(DebateRefusedError)
        del self.debates[debate_id]
        return True

    def open_for(self, agent: str, role: str) -> list[str]:
        """What this agent may still vote on."""
        return sorted(
            each
            for each, held in self.debates.items()
            if held.verdict is None
            and held.deadline_ms > self.now_ms
            and agent not in held.votes
            and self._invited(held, agent, role)
        )
