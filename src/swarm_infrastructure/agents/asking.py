"""Asking a model for an item: tier, budget, pace, retry and the record of the answer, joined.

::

    recorded? → model of the task's tier → pace → reserve → mark sent → call → settle + record the answer

The record is written by the call that settles, so an answer that was paid for is never paid for again: after a crash the
step returns it, at no cost. What can't be known (a cut connection) is booked at the estimate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from pydantic import BaseModel

from ..cost_manager import LLMTier, MeteredCall, Spender
from ..errors import (
    BudgetExceededError,
    ClaimLostError,
    InvalidInputError,
    ModelError,
    ModelUnavailableError,
    RateLimitedError,
)
from ..failure_recovery import RetryPolicy, backoff_s
from ..llm import LLMRequest, LLMResult, SchemaMismatch
from ..llm.client import repaired
from ..llm.types import Message

if TYPE_CHECKING:
    from .work import Work

__all__ = ["Answered", "ask"]

log = structlog.get_logger(__name__)

RETRY = RetryPolicy(max_retries=3, base_delay=0.5, max_delay=20.0)
SLACK_S = 30.0  # a holder is believed to live for so much longer than its call may take
PACE_PATIENCE_S = 120.0  # how long a call waits for its turn under a rate limit


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


async def ask(
    work: Work,
    task_type: str,
    prompt: str | Sequence[Message | Mapping[str, Any]],
    *,
    schema: type[BaseModel] | None = None,
    system: str | None = None,
    max_output_tokens: int = 1024,
    step: str | None = None,
    model: str | None = None,
    tier: str | None = None,
    tags: Sequence[str] = (),
    retry: RetryPolicy = RETRY,
    random: Random | None = None,
    **more: Any,
) -> Answered:
    """See `Work.ask`."""
    swarm, costs = work.swarm, work.swarm.cost_manager
    wanted = LLMTier(tier) if tier else costs.get_tier(task_type)
    chosen: LLMTier | None = wanted
    how = {"prompt": prompt} if isinstance(prompt, str) else {"messages": tuple(prompt)}
    spender = Spender(
        agent_id=work.claim.agent_id, role=work.role, task_id=work.item.id, tier=str(wanted), tags=tuple(tags)
    )
    while chosen is not None:
        name = model or swarm.model_for(chosen)
        request = LLMRequest(
            model=name, schema=schema, system=system, max_output_tokens=max_output_tokens, **how, **more
        )
        key = f"{step or task_type}:{request.digest()[:32]}"
        recorded = await costs.ledger.answer(work.item.id, key)
        if recorded is not None:
            return Answered(LLMResult.from_dict(orjson.loads(recorded), schema), 0.0, recorded=True)
        request = replace(request, idempotency_key=request.idempotency_key or f"{work.key}:{key}")
        asking = _Asking(work, task_type, replace_tier(spender, chosen), key, retry, random or Random())
        try:
            return await asking.answer(request)
        except BudgetExceededError as error:
            chosen = costs.tiers.cheaper(chosen) if error.on_breach == "downgrade" and model is None else None
            if chosen is None:
                raise
            log.info("asking a cheaper model", item=work.item.id, task_type=task_type, tier=str(chosen), why=str(error))
    raise InvalidInputError("tier", found=tier, needed=f"one of {', '.join(LLMTier)}")


def replace_tier(spender: Spender, tier: LLMTier) -> Spender:
    """The same spender under another tier."""
    return replace(spender, tier=str(tier))


class _Asking:
    """One question until it is answered."""

    def __init__(
        self, work: Work, task_type: str, spender: Spender, step: str, retry: RetryPolicy, random: Random
    ) -> None:
        self._work, self._swarm = work, work.swarm
        self._task_type, self._spender, self._step = task_type, spender, step
        self._retry, self._random = retry, random
        self._cost = 0

    async def answer(self, request: LLMRequest) -> Answered:
        attempt = 0
        while True:
            attempt += 1
            try:
                result = await self._with_repair(request)
                return Answered(result, self._cost / 1e9, recorded=False)
            except ModelUnavailableError as error:
                if isinstance(error, RateLimitedError) and error.retry_after_s:
                    await self._swarm.cost_manager.limiter.slow_down(f"model:{request.model}", error.retry_after_s)
                if attempt > self._retry.max_retries:
                    raise
                wait_s = max(backoff_s(attempt, self._retry, self._random), error.retry_after_s or 0.0)
                log.warning("asking again", item=self._work.item.id, model=request.model, wait_s=wait_s, why=error.why)
                await asyncio.sleep(wait_s)

    async def _with_repair(self, request: LLMRequest) -> LLMResult:
        try:
            return await self._call(request, first=None)
        except SchemaMismatch as mismatch:
            if mismatch.repair_request is None:
                raise
            return await self._call(mismatch.repair_request, first=mismatch.result)

    async def _call(self, request: LLMRequest, *, first: LLMResult | None) -> LLMResult:
        """One paid call: reserved, sent, settled, and its answer recorded in the same breath."""
        work, costs = self._work, self._swarm.cost_manager
        client = self._swarm.client_for(request.model)
        input_tokens = request.estimated_input_tokens()
        await self._in_turn(request, input_tokens + request.max_output_tokens)
        work.check()  # no money for a claim that is lost
        facts = {"task_type": self._task_type, "item": work.item.id, "step": self._step}
        limit_s = (request.timeout_s or self._swarm.settings.llm_timeout_s) + SLACK_S
        # cache_write: a provider may write its cache unasked, which costs more than to read afresh
        pricing = {"service_tier": request.service_tier} if request.service_tier else {}
        call: MeteredCall
        async with costs.call(
            self._spender, request.model, input_tokens=input_tokens, max_output_tokens=request.max_output_tokens,
            facts=facts, cache_write=True, **pricing,
        ) as call:  # fmt: skip
            await call.send(hold_s=limit_s)
            try:
                result = await client.generate(request)
            except ModelError as error:
                if error.usage is None:
                    await call.settle_unbilled(f"{error.kind}: {error.why}")
                else:
                    self._cost += await call.settle(error.usage, facts={"error": f"{error.kind}: {error.why}"})
                raise
            except ModelUnavailableError as error:
                if error.usage_so_far is not None:
                    self._cost += await call.settle(error.usage_so_far, facts={"error": error.why})
                elif not error.may_be_paid:
                    await call.settle_unbilled(error.why)
                raise  # what may be paid is booked at the estimate when the call is left
            whole = result if first is None else repaired(first, result)
            self._cost += await call.settle(
                result.usage, facts={"ms": result.duration_ms, "request_id": result.request_id},
                item_id=work.item.id, step=self._step, answer=orjson.dumps(whole.as_dict()),
            )  # fmt: skip
        await self._swarm.blackboard.agents.count_tokens(work.claim.agent_id, result.usage.total_tokens)
        return whole

    async def _in_turn(self, request: LLMRequest, tokens: int) -> None:
        """Wait for the turn under the fleet's rate limits."""
        settings, waited_s = self._swarm.settings, 0.0
        while True:
            wait_s = await self._swarm.cost_manager.limiter.admit(
                f"model:{request.model}", calls=settings.llm_requests_per_minute,
                tokens_limit=settings.llm_tokens_per_minute, tokens=tokens,
            )  # fmt: skip
            if not wait_s:
                return
            if waited_s + wait_s > PACE_PATIENCE_S:
                raise RateLimitedError(
                    request.model, "the fleet's limit is reached", retry_after_s=wait_s, may_be_paid=False
                )
            pause_s = wait_s * (1 + 0.1 * self._random.random())
            waited_s += pause_s
            await asyncio.sleep(pause_s)
            if self._work.lost:
                raise ClaimLostError(
                    self._work.item.id, self._work.claim.agent_id, self._work.claim.token, self._work.lost
                )
