"""One question until it is answered: its turn, its money, the call, its repair, and the next attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import structlog

from ...cost_manager import MeteredCall, Pace, Recorded, Wait
from ...errors import ModelError, ModelUnavailableError, RateLimitedError
from ...failure_recovery import RetryPolicy, backoff_s
from ...llm import LLMRequest, LLMResult, SchemaMismatch
from ...llm.client import repaired
from .answers import Part
from .bill import Bill

__all__ = ["RETRY", "SLACK_S", "Asking", "pricing_of", "reserving_of"]

log = structlog.get_logger(__name__)

RETRY = RetryPolicy(max_retries=3, base_delay=0.5, max_delay=20.0)
SLACK_S = 30.0  # a holder is believed to live for so much longer than its call may take
PACE_PATIENCE_S = 120.0  # how long a call waits for its turn under a rate limit


class Asking:
    """One question until it is answered."""

    def __init__(self, parts: Sequence[Part], task_type: str, retry: RetryPolicy, random: Random) -> None:
        self._parts, self._swarm = parts, parts[0].work.swarm
        self._task_type, self._retry, self._random = task_type, retry, random

    async def answers(self, request: LLMRequest) -> list[LLMResult | None]:
        """What the model answers, by parts."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._with_repair(request)
            except ModelUnavailableError as error:
                if isinstance(error, RateLimitedError) and error.retry_after_s:
                    await self._swarm.cost_manager.limiter.slow_down(f"model:{request.model}", error.retry_after_s)
                if attempt > self._retry.max_retries:
                    raise
                wait_s = max(backoff_s(attempt, self._retry, self._random), error.retry_after_s or 0.0)
                log.warning("asking again", model=request.model, wait_s=wait_s, why=error.why, **self._shown())
                await asyncio.sleep(wait_s)

    async def _with_repair(self, request: LLMRequest) -> list[LLMResult | None]:
        try:
            return await self._call(request, first=None)
        except SchemaMismatch as mismatch:
            if mismatch.repair_request is None:
                raise
            return await self._call(mismatch.repair_request, first=mismatch.result)

    async def _call(self, request: LLMRequest, *, first: LLMResult | None) -> list[LLMResult | None]:
        """One paid call: reserved, sent, settled, and its answers recorded in the same breath."""
        input_tokens = request.estimated_input_tokens()
        hold_s = (request.timeout_s or self._swarm.settings.llm_timeout_s) + SLACK_S
        bill = await self._begin(request, input_tokens, hold_s)
        if not isinstance(bill, Bill):
            return bill
        async with bill:
            await bill.send(hold_s=hold_s)
            try:
                result = await self._generate(request)
            except ModelError as error:
                if error.usage is None:
                    await bill.settle_unbilled(f"{error.kind}: {error.why}")
                else:
                    await bill.settle(error.usage, facts={"error": f"{error.kind}: {error.why}"})
                raise
            except ModelUnavailableError as error:
                if error.usage_so_far is not None:
                    await bill.settle(error.usage_so_far, facts={"error": error.why})
                elif not error.may_be_paid:
                    await bill.settle_unbilled(error.why)
                raise  # what may be paid is booked at the estimate when the call is left
            answers = self._read(result if first is None else repaired(first, result), bill)
            facts = {"ms": result.duration_ms, "request_id": result.request_id}
            await bill.settle(result.usage, facts=facts, answers=answers)
        return answers

    async def _generate(self, request: LLMRequest) -> LLMResult:
        return await self._swarm.client_for(request.model).generate(request)

    async def _begin(self, request: LLMRequest, input_tokens: int, hold_s: float) -> Bill | list[LLMResult | None]:
        """Hold the money when it is the call's turn; or the answers, where they are on record by now."""
        [part] = self._parts
        pace, waited_s = self._pace(request, input_tokens), 0.0
        while True:
            self._check()  # no money for a claim that is lost
            begun = await self._swarm.cost_manager.begin(
                part.spender, request.model, input_tokens=input_tokens, max_output_tokens=request.max_output_tokens,
                facts=self._facts(part), hold_s=hold_s, item_id=part.work.item_id, step=part.step, pace=pace,
                **reserving_of(request),
            )  # fmt: skip
            match begun:
                case MeteredCall():
                    return Bill(self._parts, [begun], [input_tokens])
                case Recorded():
                    return [part.read(begun.answer)]
            waited_s = await self._wait(begun, waited_s)

    def _read(self, result: LLMResult, bill: Bill) -> list[LLMResult | None]:
        return [result]

    def _facts(self, part: Part) -> dict[str, Any]:
        return {"task_type": self._task_type, "item": part.work.item_id, "step": part.step}

    def _shown(self) -> dict[str, Any]:
        return {"item": self._parts[0].work.item_id}

    def _check(self) -> None:
        self._parts[0].work.check()

    def _pace(self, request: LLMRequest, input_tokens: int) -> Pace:
        settings = self._swarm.settings
        return Pace(
            f"model:{request.model}", settings.llm_requests_per_minute, settings.llm_tokens_per_minute,
            input_tokens + request.max_output_tokens,
        )  # fmt: skip

    async def _wait(self, turn: Wait, waited_s: float) -> float:
        """Wait for the turn under the fleet's rate limits. Returns how long that took by now."""
        if waited_s + turn.seconds > PACE_PATIENCE_S:
            model = self._parts[0].request.model
            raise RateLimitedError(
                model, "the fleet's limit is reached", retry_after_s=turn.seconds, may_be_paid=False, by_provider=False
            )
        pause_s = turn.seconds * (1 + 0.1 * self._random.random())
        await asyncio.sleep(pause_s)
        return waited_s + pause_s


def pricing_of(request: LLMRequest) -> dict[str, Any]:
    """How a call is priced afterwards."""
    return {"service_tier": request.service_tier} if request.service_tier else {}


def reserving_of(request: LLMRequest) -> dict[str, Any]:
    """How a call is priced beforehand: a provider may write its cache unasked, which costs more than to read afresh."""
    return {"cache_write": True, **pricing_of(request)}
