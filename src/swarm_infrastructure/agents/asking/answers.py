"""Answers: what a model said about an item, where it is kept, and the part that an item has in a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import orjson

from ...blackboard import Claim
from ...cost_manager import LLMTier, Spender
from ...errors import InvalidInputError
from ...llm import AnswerCache, LLMRequest, LLMResult

if TYPE_CHECKING:
    from ...swarm_infrastructure import SwarmInfrastructure

__all__ = ["Answered", "Asker", "Part", "answer_cache", "check_cache_s"]


class Asker(Protocol):
    """Who asks a model, and for which item: `Work` for an item in hand, a debater's seat for one that others hold."""

    role: str

    @property
    def swarm(self) -> SwarmInfrastructure:
        """Whose models, budgets and ledger."""

    @property
    def agent_id(self) -> str:
        """Who asks."""

    @property
    def item_id(self) -> str:
        """What for; answers are recorded for it."""

    @property
    def key(self) -> str:
        """Names this stage of the item's life to the provider: the same in every attempt."""

    @property
    def claim(self) -> Claim | None:
        """On the item; None for one that others hold."""

    def check(self) -> None:
        """Raise if there is no point in asking any more."""


class Answered:
    """A model's answer, and what it took.

    ``text``, ``parsed`` (an object of the schema), ``result`` (all of it), ``model``, ``cost`` in dollars (0 for a recorded
    answer) and ``recorded`` (nothing was called).
    """

    __slots__ = ("cost", "recorded", "result")

    def __init__(self, result: LLMResult, cost: float, *, recorded: bool) -> None:
        self.result, self.cost, self.recorded = result, cost, recorded

    @property
    def text(self) -> str:
        """The answer as text."""
        return self.result.text

    @property
    def parsed(self) -> Any:
        """The answer as an object of the schema, or None without a schema."""
        return self.result.parsed

    @property
    def model(self) -> str:
        """Which model answered."""
        return self.result.model


def check_cache_s(cache_s: float) -> None:
    """Refuse a lifetime that makes no sense."""
    if not (cache_s == 0 or 0.001 <= cache_s < math.inf):
        raise InvalidInputError("cache_s", found=cache_s, needed="0 for no cache, or seconds, 0.001 or more")


@dataclass(slots=True, eq=False, kw_only=True)
class Part:
    """One item's question, whether it is asked alone or with others."""

    work: Asker
    spender: Spender
    request: LLMRequest  #: as it is asked alone; its digest names the answer
    step: str  #: under which the answer is recorded for the item
    cost: int = 0  #: nano-dollars, so far
    recorded: bool = False  #: its answer was paid for before

    @classmethod
    def of(
        cls, work: Asker, task_type: str, request: LLMRequest, *, step: str | None, tier: LLMTier, tags: Sequence[str],
        named: bool, cost: int = 0,
    ) -> Self:  # fmt: skip
        """The part of the item in hand.

        Unless the model was *named*, an answer is recorded for the question alone: whichever model of whichever tier was
        paid for it, it is not paid for again.
        """
        asked = request if named else replace(request, model="-")
        spender = Spender(
            agent_id=work.agent_id, role=work.role, task_id=work.item_id, tier=str(tier), tags=tuple(tags)
        )
        return cls(
            work=work, spender=spender, request=request, step=f"{step or task_type}:{asked.digest()[:32]}", cost=cost
        )

    async def known(self, cache_s: float) -> Answered | None:
        """The answer that was paid for already: for this step or, within *cache_s*, for any item."""
        swarm, item_id = self.work.swarm, self.work.item_id
        steps = swarm.failure_recovery.steps
        recorded = await steps.find(item_id, self.step)
        if recorded is None and cache_s:
            cached = await answer_cache(swarm).get(self.request, max_age_s=cache_s)
            if cached is not None:
                answer = orjson.dumps(cached.as_dict())
                recorded = await steps.record(item_id, self.step, answer, claim=self.work.claim)
        return None if recorded is None else Answered(self.read(recorded), self.cost / 1e9, recorded=True)

    def read(self, recorded: bytes) -> LLMResult:
        """The answer that is on record."""
        self.recorded = True
        return LLMResult.from_dict(orjson.loads(recorded), self.request.schema)

    async def answered(self, result: LLMResult, cache_s: float) -> Answered:
        """What the caller gets for *result*; if it was paid for just now, others get it for *cache_s*."""
        if cache_s and not self.recorded:
            await answer_cache(self.work.swarm).put(self.request, result, cache_s)
        return Answered(result, self.cost / 1e9, recorded=self.recorded)


def answer_cache(swarm: SwarmInfrastructure) -> AnswerCache:
    """The cache of a swarm's namespace."""
    return AnswerCache(swarm.blackboard.store, swarm.blackboard.keys)
