"""One question until it is answered: its turn, its money, the call, its repair, and the next attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from ...cost_manager import MeteredCall, Open, Pace, Recorded, Reservation, Wait
from ...errors import (
    CircuitOpenError,
    ConfigurationError,
    ModelError,
    ModelUnavailableError,
    RateLimitedError,
    StoreUnavailableError,
    UnavailableError,
)
from ...failure_recovery import RetryPolicy, retry_call
from ...guard import Guard, Heard
from ...llm import LLMRequest, LLMResult, SchemaMismatch
from ...llm.client import repaired
from ...usage import TokenUsage
from .answers import Part
from .bill import Bill

if TYPE_CHECKING:
    from ...swarm_infrastructure import SwarmInfrastructure

__all__ = ["RETRY", "SLACK_S", "Asking", "pricing_of", "reserving_of"]

log = structlog.get_logger(__name__)
Begun = TypeVar("Begun")

RETRY = RetryPolicy(max_retries=3, base_delay=0.5, max_delay=20.0)
SLACK_S = 30.0  # a holder is believed to live for so much longer than its call may take
PACE_PATIENCE_S = 120.0  # how long a call waits for its turn under a rate limit


class Hearing:
    """How a call ended, for the breaker of its model."""

    def __init__(self, swarm: SwarmInfrastructure, guard: Guard, call: Reservation) -> None:
        self._swarm, self._guard, self._call = swarm, guard, call
        self.how: Heard = "unknown"
        self.told = False

    async def report(self) -> None:
        """Tell the breaker, once; in the same moment as a settlement it travels with it."""
        if self.told:
            return
        self.told = True
        if self.how == "unknown" and not self._call.probe:
            return  # nothing that it would change
        try:
            word = await self._swarm.cost_manager.ledger.report(self._guard, self._call, self.how)
            await self._swarm.failure_recovery.breaker_states.tell(self._guard.name, word)
        except UnavailableError as error:
            log.warning("a breaker was not told", breaker=self._guard.name, why=str(error))


class Asking:
    """One question until it is answered."""

    def __init__(self, parts: Sequence[Part], task_type: str, retry: RetryPolicy, random: Random) -> None:
        self._parts, self._swarm = parts, parts[0].work.swarm
        self._task_type, self._retry, self._random = task_type, retry, random

    async def answers(self, request: LLMRequest) -> list[LLMResult | None]:
        """What the model answers, by parts.

        Raises:
            CircuitOpenError: the model failed too often lately; nothing was sent.
        """

        async def attempt() -> list[LLMResult | None]:
            try:
                return await self._with_repair(request)
            except RateLimitedError as error:
                if error.retry_after_s and error.by_provider:
                    await self._swarm.cost_manager.limiter.slow_down(f"model:{request.model}", error.retry_after_s)
                raise

        def told(error: BaseException, _attempt: int, pause_s: float) -> None:
            log.warning("asking again", model=request.model, wait_s=pause_s, why=str(error), **self._shown())

        budget = self._swarm.failure_recovery.retry_budget(f"model:{request.model}")
        # the model's failures alone: a store that is away is no reason to pay once more
        policy = replace(self._retry, retry_on=(ModelUnavailableError,))
        return await retry_call(attempt, policy, random=self._random, budget=budget, on_wait=told, unless=_is_ours)

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
        try:
            self._swarm.client_for(request.model)
        except ConfigurationError:  # nobody can be asked: no money is held, but what is on record is still there
            if len(self._parts) == 1 and (known := await self._parts[0].known(0.0)) is not None:
                return [known.result]
            raise
        bill = await self._begin(request, input_tokens, hold_s)
        if not isinstance(bill, Bill):
            return bill
        async with bill, self._heard(request.model, bill) as heard:
            await bill.send(hold_s=hold_s)
            try:
                result = await self._generate(request)
            except ModelError as error:
                if error.usage is None:
                    await bill.settle_unbilled(f"{error.kind}: {error.why}")
                else:  # it answered, if not what was asked for
                    heard.how = "ok"
                    await self._settle(bill, heard, error.usage, facts={"error": f"{error.kind}: {error.why}"})
                raise
            except ModelUnavailableError as error:
                heard.how = "unknown" if isinstance(error, RateLimitedError) else "failed"
                if error.usage_so_far is not None:
                    await bill.settle(error.usage_so_far, facts={"error": error.why})
                elif not error.may_be_paid:
                    await bill.settle_unbilled(error.why)
                raise  # what may be paid is booked at the estimate when the call is left
            except (ConnectionError, TimeoutError):  # of a client that does not sort its errors
                heard.how = "failed"
                raise
            heard.how = "ok"
            answers = self._read(result if first is None else repaired(first, result), bill)
            facts = {"ms": result.duration_ms, "request_id": result.request_id}
            await self._settle(bill, heard, result.usage, facts=facts, answers=answers)
        return answers

    async def _settle(self, bill: Bill, heard: Hearing, usage: TokenUsage, **booked: Any) -> None:
        """Book what was paid for, also if Redis comes back late: an answer in hand is not thrown away while it is of use."""
        while True:
            try:
                await bill.settle(usage, **booked, also=heard.report())
                return
            except StoreUnavailableError as error:
                self._check()
                log.warning("not settled yet", why=str(error), **self._shown())
                await asyncio.sleep(0.2 + self._random.random())

    async def _generate(self, request: LLMRequest) -> LLMResult:
        return await self._swarm.client_for(request.model).generate(request)

    async def _begin(self, request: LLMRequest, input_tokens: int, hold_s: float) -> Bill | list[LLMResult | None]:
        """Hold the money when it is the call's turn; or the answers, where they are on record by now.

        Raises:
            CircuitOpenError: the breaker of the model is open.
        """
        [part] = self._parts
        pace, waited_s = self._pace(request, input_tokens), 0.0
        while True:
            self._check()  # no money for a claim that is lost
            begun = await _unless_cancelled(self._swarm.cost_manager.begin(
                part.spender, request.model, input_tokens=input_tokens, max_output_tokens=request.max_output_tokens,
                facts=self._facts(part), hold_s=hold_s, item_id=part.work.item_id, step=part.step, pace=pace,
                guard=self._guard(request.model), **reserving_of(request),
            ))  # fmt: skip
            match begun:
                case MeteredCall():
                    return Bill(self._parts, [begun], [input_tokens])
                case Recorded():
                    return [part.read(begun.answer)]
                case Open():
                    raise CircuitOpenError(f"model:{request.model}", begun.seconds)
            waited_s = await self._wait(begun, waited_s)

    def _guard(self, model: str) -> Guard:
        guard = self._swarm.failure_recovery.get_circuit_breaker(f"model:{model}").guard
        return replace(guard, probe_s=max(guard.probe_s, self._swarm.settings.llm_timeout_s + SLACK_S))

    @asynccontextmanager
    async def _heard(self, model: str, bill: Bill) -> AsyncIterator[Hearing]:
        """What the call says of its backend; told to the breaker when the call is left, if it was not before."""
        heard = Hearing(self._swarm, self._guard(model), bill.call)
        try:
            yield heard
        finally:
            if not heard.told:
                await asyncio.shield(heard.report())

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


def _is_ours(error: BaseException) -> bool:
    """Whether our own rate limit refused, and no backend."""
    return isinstance(error, RateLimitedError) and not error.by_provider


async def _unless_cancelled(beginning: Coroutine[Any, Any, Begun]) -> Begun:
    """What *beginning* gives; if its caller is cancelled meanwhile, a call that it began is ended: it never left."""
    task = asyncio.ensure_future(beginning)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        [begun] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(begun, MeteredCall):
            await begun.settle_unbilled("its caller was cancelled before it left")
        raise


def pricing_of(request: LLMRequest) -> dict[str, Any]:
    """How a call is priced afterwards."""
    return {"service_tier": request.service_tier} if request.service_tier else {}


def reserving_of(request: LLMRequest) -> dict[str, Any]:
    """How a call is priced beforehand: a provider may write its cache unasked, which costs more than to read afresh."""
    return {"cache_write": True, **pricing_of(request)}
