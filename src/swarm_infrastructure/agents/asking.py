"""Asking a model for an item, or for several in one call: tier, budget, pace, retry and the record of the answer, joined.

::

    recorded? → cached? → model of the task's tier → pace → reserve → mark sent → call → settle + record the answer

The record is written by the call that settles, so an answer that was paid for is never paid for again: after a crash the
step returns it, at no cost. What can't be known (a cut connection) is booked at the estimate.

Every call is paid by *parts*, one for each item that it is made for; an item that asks alone is a call of one part. Parts
reserve and settle for themselves, in the budgets of their own item, and together to the nano-dollar what the call costs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import orjson
import structlog
from pydantic import BaseModel, create_model

from ..cost_manager import LLMTier, MeteredCall, Spender
from ..cost_manager.ledger import ANSWER_S, Reservation
from ..errors import (
    BudgetExceededError,
    ClaimLostError,
    InvalidInputError,
    ModelError,
    ModelUnavailableError,
    RateLimitedError,
    SwarmError,
)
from ..failure_recovery import RetryPolicy, backoff_s
from ..llm import AnswerCache, LLMRequest, LLMResult, SchemaMismatch, estimated_tokens
from ..llm.client import repaired
from ..llm.types import Message, json_of
from ..usage import TokenUsage

if TYPE_CHECKING:
    from ..swarm_infrastructure import SwarmInfrastructure
    from .work import Work

__all__ = ["Answered", "ask", "ask_together"]

log = structlog.get_logger(__name__)
Outcome = TypeVar("Outcome")

RETRY = RetryPolicy(max_retries=3, base_delay=0.5, max_delay=20.0)
SLACK_S = 30.0  # a holder is believed to live for so much longer than its call may take
PACE_PATIENCE_S = 120.0  # how long a call waits for its turn under a rate limit
HELD_PATIENCE_S = 2.0  # how long several items wait for money that other calls hold, as one item does
ALONE = {"refusal", "schema", "truncated"}  # kinds of `ModelError` that the same items may escape if each asks alone


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
    cache_s: float = 0.0,
    retry: RetryPolicy = RETRY,
    random: Random | None = None,
    **more: Any,
) -> Answered:
    """See `Work.ask`."""
    _check_cache_s(cache_s)
    how = {"prompt": prompt} if isinstance(prompt, str) else {"messages": tuple(prompt)}

    async def ask_tier(chosen: LLMTier) -> Answered:
        request = LLMRequest(
            model=model or work.swarm.model_for(chosen), schema=schema, system=system,
            max_output_tokens=max_output_tokens, **how, **more,
        )  # fmt: skip
        part = _Part.of(work, task_type, request, step=step, tier=chosen, tags=tags)
        if (known := await part.known(cache_s)) is not None:
            return known
        request = replace(request, idempotency_key=request.idempotency_key or f"{work.key}:{part.step}")
        [result] = await _Asking([part], task_type, retry, random or Random()).answers(request)
        assert result is not None
        return await part.answered(result, cache_s)

    return await _in_tier(work, task_type, tier, model, ask_tier)


@overload
async def ask_together(
    works: Sequence[Work], task_type: str, prompts: Sequence[str], *, schema: type[BaseModel],
    system: str | None = None, max_output_tokens_each: int = 1024, step: str | None = None, model: str | None = None,
    tier: str | None = None, tags: Sequence[str] = (), cache_s: float = 0.0, return_exceptions: Literal[False] = False,
    retry: RetryPolicy = RETRY, random: Random | None = None, **more: Any,
) -> list[Answered]: ...  # fmt: skip


@overload
async def ask_together(
    works: Sequence[Work], task_type: str, prompts: Sequence[str], *, schema: type[BaseModel],
    system: str | None = None, max_output_tokens_each: int = 1024, step: str | None = None, model: str | None = None,
    tier: str | None = None, tags: Sequence[str] = (), cache_s: float = 0.0, return_exceptions: bool,
    retry: RetryPolicy = RETRY, random: Random | None = None, **more: Any,
) -> list[Answered | SwarmError]: ...  # fmt: skip


async def ask_together(
    works: Sequence[Work],
    task_type: str,
    prompts: Sequence[str],
    *,
    schema: type[BaseModel],
    system: str | None = None,
    max_output_tokens_each: int = 1024,
    step: str | None = None,
    model: str | None = None,
    tier: str | None = None,
    tags: Sequence[str] = (),
    cache_s: float = 0.0,
    return_exceptions: bool = False,
    retry: RetryPolicy = RETRY,
    random: Random | None = None,
    **more: Any,
) -> list[Any]:
    """Ask a model about several items of one agent in one call, each paid from the budgets of its own item.

    What `Work.ask` would find recorded for an item is not asked again, and the other way round: the records are the same.
    Parts that are missing from the answer, or don't fit, are asked one by one. So are all if the model declines, or its
    answer is cut short.

    Args:
        works: of one agent in one swarm.
        task_type: as for `Work.ask`; so are the arguments not listed here.
        prompts: one for each of *works*.
        schema: of each answer.
        system: what holds for all of them.
        max_output_tokens_each: bounds what each part can cost; the call may write as much for each.
        return_exceptions: an item that can't be asked gets its error as its entry, such as `BudgetExceededError`, and the
            others are asked without it. Else the first error is raised, and nothing is sent if it is a budget's; the agent
            then pauses until there is money for all of them.

    Returns:
        One entry for each of *works*, in their order.

    Raises:
        InvalidInputError: works of different agents or swarms, or another number of prompts.
        BudgetExceededError, ClaimLostError: of an item, unless *return_exceptions*.
        UnknownPriceError, ModelError, ModelUnavailableError: of the common call.
    """
    _check_cache_s(cache_s)
    _check_together(works, prompts, more)
    random = random or Random()
    done: dict[int, Answered | SwarmError] = {}
    parts: dict[int, _Part] = {}  # with what each has cost so far, in calls that brought it nothing
    each = {"schema": schema, "system": system, "max_output_tokens": max_output_tokens_each, **more}

    async def ask_tier(chosen: LLMTier) -> None:
        name = model or works[0].swarm.model_for(chosen)
        for at in (at for at in range(len(works)) if at not in done):
            request = LLMRequest(model=name, prompt=prompts[at], **each)
            before = parts[at].cost if at in parts else 0
            parts[at] = _Part.of(works[at], task_type, request, step=step, tier=chosen, tags=tags, cost=before)
        left = {at: part for at, part in parts.items() if at not in done}
        found = await asyncio.gather(*(part.known(cache_s) for part in left.values()))
        done.update((at, known) for at, known in zip(left, found, strict=True) if known is not None)
        while len(left := {at: part for at, part in left.items() if at not in done}) > 1:
            asking = _AskingTogether(list(left.values()), task_type, retry, random)
            try:
                results = await asking.answers(asking.request(schema))
            except _LeftOutError as left_out:
                refused = {at: left_out.why[part] for at, part in left.items() if part in left_out.why}
                for error in refused.values():
                    if isinstance(error, BudgetExceededError) and _cheaper(works[0], chosen, model, error):
                        raise error from None
                if not return_exceptions or len(refused) == len(left):
                    await asking.stand_still(left_out, alone=return_exceptions)
                if not return_exceptions:
                    raise next(iter(refused.values())) from None
                done.update(refused)
                continue
            except ModelError as error:
                if error.kind not in ALONE:
                    raise
                log.warning("asking one by one", items=len(left), model=name, why=str(error))
                return
            answered = {at: result for at, result in zip(left, results, strict=True) if result is not None}
            given = await asyncio.gather(*(parts[at].answered(result, cache_s) for at, result in answered.items()))
            done.update(zip(answered, given, strict=True))
            return

    if works:
        await _in_tier(works[0], task_type, tier, model, ask_tier)
    for at in (at for at in range(len(works)) if at not in done):
        try:
            answered = await ask(
                works[at], task_type, prompts[at], step=step, model=model, tier=tier, tags=tags, cache_s=cache_s,
                retry=retry, random=random, **each,
            )  # fmt: skip
            answered.cost += parts[at].cost / 1e9
            done[at] = answered
        except SwarmError as error:
            if not return_exceptions:
                raise
            done[at] = error
    return [done[at] for at in range(len(works))]


def _check_cache_s(cache_s: float) -> None:
    if not (cache_s == 0 or 0.001 <= cache_s < math.inf):
        raise InvalidInputError("cache_s", found=cache_s, needed="0 for no cache, or seconds, 0.001 or more")


def _check_together(works: Sequence[Work], prompts: Sequence[str], more: Mapping[str, Any]) -> None:
    if len(prompts) != len(works):
        raise InvalidInputError(
            "prompts", found=f"{len(prompts)} of them", needed=f"one for each of {len(works)} works"
        )
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidInputError("prompts", found=list(prompts), needed="texts: conversations can't share a call")
    agents = sorted({work.claim.agent_id for work in works})
    if len(agents) > 1 or len({id(work.swarm) for work in works}) > 1:
        raise InvalidInputError(
            "works", found=f"those of {', '.join(agents)}", needed="works of one agent in one swarm"
        )
    if "idempotency_key" in more:
        raise InvalidInputError("idempotency_key", found=more["idempotency_key"], needed="none: each call gets its own")


def _cheaper(work: Work, tier: LLMTier, model: str | None, error: BudgetExceededError) -> LLMTier | None:
    """Where the same may be asked after a budget has refused it, or None."""
    return work.swarm.cost_manager.tiers.cheaper(tier) if error.on_breach == "downgrade" and model is None else None


async def _in_tier(
    work: Work, task_type: str, tier: str | None, model: str | None, asked: Callable[[LLMTier], Awaitable[Outcome]]
) -> Outcome:
    """What *asked* gives in the task's tier, or in the first cheaper one that its budgets allow."""
    chosen = LLMTier(tier) if tier else work.swarm.cost_manager.get_tier(task_type)
    while True:
        try:
            return await asked(chosen)
        except BudgetExceededError as error:
            cheaper = _cheaper(work, chosen, model, error)
            if cheaper is None:
                raise
            chosen = cheaper
            log.info("asking a cheaper model", item=work.item.id, task_type=task_type, tier=str(chosen), why=str(error))


@dataclass(slots=True, eq=False, kw_only=True)
class _Part:
    """One item's question, whether it is asked alone or with others."""

    work: Work
    spender: Spender
    request: LLMRequest  #: as it is asked alone; its digest names the answer
    step: str  #: under which the answer is recorded for the item
    cost: int = 0  #: nano-dollars, so far

    @classmethod
    def of(
        cls, work: Work, task_type: str, request: LLMRequest, *, step: str | None, tier: LLMTier, tags: Sequence[str],
        cost: int = 0,
    ) -> Self:  # fmt: skip
        spender = Spender(
            agent_id=work.claim.agent_id, role=work.role, task_id=work.item.id, tier=str(tier), tags=tuple(tags)
        )
        return cls(
            work=work, spender=spender, request=request, step=f"{step or task_type}:{request.digest()[:32]}", cost=cost
        )

    async def known(self, cache_s: float) -> Answered | None:
        """The answer that was paid for already: for this step or, within *cache_s*, for any item."""
        swarm, item_id = self.work.swarm, self.work.item.id
        recorded = await swarm.cost_manager.ledger.answer(item_id, self.step)
        if recorded is None and cache_s:
            cached = await _cache(swarm).get(self.request, max_age_s=cache_s)
            if cached is not None:
                key = swarm.blackboard.keys.answers(item_id)
                _, _, recorded = await swarm.blackboard.store.commands(
                    ("HSETNX", key, self.step, orjson.dumps(cached.as_dict())),
                    ("PEXPIRE", key, round(ANSWER_S * 1000)),
                    ("HGET", key, self.step),  # the first record stands
                )
        if recorded is None:
            return None
        return Answered(LLMResult.from_dict(orjson.loads(recorded), self.request.schema), 0.0, recorded=True)

    async def answered(self, result: LLMResult, cache_s: float) -> Answered:
        """What the caller gets for *result*, which was paid for just now; others get it for *cache_s*."""
        if cache_s:
            await _cache(self.work.swarm).put(self.request, result, cache_s)
        return Answered(result, self.cost / 1e9, recorded=False)


def _cache(swarm: SwarmInfrastructure) -> AnswerCache:
    return AnswerCache(swarm.blackboard.store, swarm.blackboard.keys)


class _Share(MeteredCall):
    """The money that one part holds in a call."""

    async def settle_part(self, usd: int, tokens: int, facts: Mapping[str, Any], **answer: Any) -> None:
        """Book the part's share of what the call cost."""
        await self._book(usd, tokens, facts, **answer)

    async def _book(self, usd: int, tokens: int, facts: Mapping[str, Any] | None, **answer: Any) -> None:
        # one call is one request, however many parts it has
        await super()._book(usd, tokens, facts, requests=self.reservation.requests, **answer)


class _Bill:
    """What one call may cost and did cost, split among its parts. Left unsettled, each books as `MeteredCall` says.

    Args:
        parts: of the call.
        shares: what each holds.
        input_tokens: of each, in the estimate.
    """

    def __init__(self, parts: Sequence[_Part], shares: Sequence[_Share], input_tokens: Sequence[int]) -> None:
        self._parts, self._shares, self._input_tokens = parts, shares, input_tokens
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for share in self._shares:
            await self._stack.enter_async_context(share)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def send(self, *, hold_s: float) -> None:
        """Say that the call leaves now. Raises as `MeteredCall.send`; no money is booked then."""
        told = await asyncio.gather(*(share.send(hold_s=hold_s) for share in self._shares), return_exceptions=True)
        errors = [each for each in told if isinstance(each, BaseException)]
        if errors:
            await asyncio.gather(*(share.settle_unbilled("not sent") for share in self._shares if share.sent))
            raise errors[0]

    def usages(self, usage: TokenUsage) -> list[TokenUsage]:
        """*usage* by parts: input by their estimates, output in equal parts, for nobody knows whose reasoning it was."""
        prompt = _split(usage.prompt_tokens, self._input_tokens)
        completion = _split(usage.completion_tokens, [1] * len(self._parts))
        cached = _split(usage.cached_tokens, prompt)
        uncached = [whole - part for whole, part in zip(prompt, cached, strict=True)]
        written = _split(usage.cache_write_tokens, uncached)
        reasoning = _split(usage.reasoning_tokens, completion)
        return [
            TokenUsage(
                prompt_tokens=each[0], completion_tokens=each[1], cached_tokens=each[2], cache_write_tokens=each[3],
                reasoning_tokens=each[4],
            )
            for each in zip(prompt, completion, cached, written, reasoning, strict=True)
        ]  # fmt: skip

    async def settle(
        self, usage: TokenUsage, *, facts: Mapping[str, Any], answers: Sequence[LLMResult | None] = ()
    ) -> None:
        """Book what the call cost; with *answers*, record each in the same breath for the item that it is for."""
        call = self._shares[0]
        cost = call.costs.prices.cost(call.model, usage, **call.pricing)
        costs = _split(cost, [share.reservation.usd for share in self._shares])
        booked = []
        for at, (part, share, usd, used) in enumerate(
            zip(self._parts, self._shares, costs, self.usages(usage), strict=True)
        ):
            answer = answers[at] if answers else None
            record = (
                {"item_id": part.work.item.id, "step": part.step, "answer": orjson.dumps(answer.as_dict())}
                if answer
                else {}
            )
            booked.append(share.settle_part(usd, used.total_tokens, facts, **record))
            part.cost += usd
        await asyncio.shield(asyncio.gather(*booked))  # what is known by now is booked, also if nobody waits any more

    async def settle_unbilled(self, why: str) -> None:
        """Book nothing: the provider refused the call, so it costs nothing."""
        await asyncio.gather(*(share.settle_unbilled(why) for share in self._shares))


def _split(total: int, weights: Sequence[int]) -> list[int]:
    """*total* in whole numbers by *weights*, to the last one: what is left over goes to the first ones, one each.

    So none gets more than its weight as long as *total* is not above their sum: a share never passes its own estimate.
    """
    if not any(weights):
        weights = [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    over = total - sum(parts)
    for at in [at for at, weight in enumerate(weights) if weight][:over]:
        parts[at] += 1
    return parts


class _Asking:
    """One question until it is answered."""

    def __init__(self, parts: Sequence[_Part], task_type: str, retry: RetryPolicy, random: Random) -> None:
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
        await self._in_turn(request, input_tokens + request.max_output_tokens)
        self._check()  # no money for a claim that is lost
        limit_s = (request.timeout_s or self._swarm.settings.llm_timeout_s) + SLACK_S
        async with await self._reserve(request, input_tokens) as bill:
            await bill.send(hold_s=limit_s)
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
        agent_id = self._parts[0].spender.agent_id
        await self._swarm.blackboard.agents.count_tokens(agent_id, result.usage.total_tokens)
        return answers

    async def _generate(self, request: LLMRequest) -> LLMResult:
        return await self._swarm.client_for(request.model).generate(request)

    async def _reserve(self, request: LLMRequest, input_tokens: int) -> _Bill:
        [part] = self._parts
        call = await self._swarm.cost_manager.reserve(
            part.spender, request.model, input_tokens=input_tokens, max_output_tokens=request.max_output_tokens,
            facts=self._facts(part), **_reserving(request),
        )  # fmt: skip
        share = _Share(call.costs, call.reservation, call.model, call.pricing)
        return _Bill(self._parts, [share], [input_tokens])

    def _read(self, result: LLMResult, bill: _Bill) -> list[LLMResult | None]:
        return [result]

    def _facts(self, part: _Part) -> dict[str, Any]:
        return {"task_type": self._task_type, "item": part.work.item.id, "step": part.step}

    def _shown(self) -> dict[str, Any]:
        return {"item": self._parts[0].work.item.id}

    def _check(self) -> None:
        self._parts[0].work.check()

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
            self._check()


def _pricing(request: LLMRequest) -> dict[str, Any]:
    return {"service_tier": request.service_tier} if request.service_tier else {}


def _reserving(request: LLMRequest) -> dict[str, Any]:
    """How a call is priced beforehand: a provider may write its cache unasked, which costs more than to read afresh."""
    return {"cache_write": True, **_pricing(request)}


# -- several items in one call ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Need:
    """What a part must hold for a call."""

    spender: Spender
    usd: int  #: nano-dollars
    tokens: int
    requests: int  #: 1 for the first part: it is one call
    facts: Mapping[str, Any]


class _LeftOutError(Exception):
    """Some parts can't be in the call. Nothing was sent, and nothing is held."""

    def __init__(self, why: Mapping[_Part, SwarmError]) -> None:
        super().__init__(f"{len(why)} parts are left out")
        self.why = why


class _AskingTogether(_Asking):
    """The questions of several items, asked as one."""

    def __init__(self, parts: Sequence[_Part], task_type: str, retry: RetryPolicy, random: Random) -> None:
        super().__init__(parts, task_type, retry, random)
        self._needs: dict[_Part, _Need] = {}

    def request(self, schema: type[BaseModel]) -> LLMRequest:
        """All questions in one: numbered, behind marks that no question can know, and with room for each answer."""
        first, prompts = self._parts[0], [part.request.prompt or "" for part in self._parts]
        mark = hashlib.sha256("\0".join(prompts).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        listed = "".join(
            f"\n\n=== part {number} · {mark} ===\n{prompt}" for number, prompt in enumerate(prompts, start=1)
        )
        request = replace(
            first.request,
            prompt=f"There are {len(prompts)} parts below, each behind a line with its number and {mark}. Answer each by "
            f"itself, as if it were the only one, and give all {len(prompts)} answers with their parts' numbers.{listed}",
            schema=_listed(schema),
            max_output_tokens=sum(part.request.max_output_tokens for part in self._parts),
            repair=False,  # parts that fit are paid and kept; the others ask alone
        )
        return replace(request, idempotency_key=f"{first.work.key}:together:{request.digest()[:32]}")

    async def stand_still(self, left_out: _LeftOutError, *, alone: bool) -> None:
        """Stop the agent's claims until there is money: for the first part refused if *alone*, else for all of them.

        Nothing may be held by then: money that is freed opens the gate again.
        """
        refused = [self._needs[part] for part, error in left_out.why.items() if isinstance(error, BudgetExceededError)]
        if not refused:
            return
        needs, every = refused[:1], list(self._needs.values())
        if not alone:
            whole = replace(
                every[0], spender=replace(every[0].spender, task_id=""), usd=sum(need.usd for need in every),
                tokens=sum(need.tokens for need in every),
            )  # fmt: skip
            needs.append(whole)
        for need in needs:
            try:
                held = await self._hold(need, pause=True)
            except BudgetExceededError:
                return
            await self._swarm.cost_manager.ledger.release(held)

    async def _generate(self, request: LLMRequest) -> LLMResult:
        try:
            return await super()._generate(request)
        except SchemaMismatch as mismatch:
            return mismatch.result  # some of its parts may fit

    def _read(self, result: LLMResult, bill: _Bill) -> list[LLMResult | None]:
        texts = _parts_of(result.text)
        return [
            _fitting(replace(result, text=texts.get(number, ""), usage=usage, parsed=None), part.request.schema)
            for number, (part, usage) in enumerate(zip(self._parts, bill.usages(result.usage), strict=True), start=1)
        ]

    async def _reserve(self, request: LLMRequest, input_tokens: int) -> _Bill:
        """Hold each part's share of the estimate, so that they are the estimate of the whole, at its price step."""
        costs, n, pricing = self._swarm.cost_manager, len(self._parts), _reserving(request)
        own = [estimated_tokens(part.request.prompt or "") for part in self._parts]
        common = _split(input_tokens - sum(own), [1] * n)
        inputs = [sum(pair) for pair in zip(own, common, strict=True)]
        whole = costs.prices.estimate(request.model, input_tokens, request.max_output_tokens, **pricing)
        of_input = min(whole, costs.prices.estimate(request.model, input_tokens, 0, **pricing))
        usd = [sum(pair) for pair in zip(_split(of_input, inputs), _split(whole - of_input, [1] * n), strict=True)]
        self._needs = {
            part: _Need(
                part.spender, usd[at], inputs[at] + part.request.max_output_tokens, requests=0 if at else 1,
                facts={"model": request.model, "parts": n, **self._facts(part)},
            )
            for at, part in enumerate(self._parts)
        }  # fmt: skip
        held = await self._hold_all()
        return _Bill(self._parts, [_Share(costs, each, request.model, _pricing(request)) for each in held], inputs)

    async def _hold_all(self) -> list[Reservation]:
        """A reservation for each part, or for none.

        Waits a while if only what other calls hold stands in the way.

        Raises:
            _LeftOutError: with the parts that were refused.
        """
        ledger = self._swarm.cost_manager.ledger
        until, pause_s = time.monotonic() + HELD_PATIENCE_S, 0.02
        while True:
            asked = (self._hold(need, pause=False) for need in self._needs.values())
            told = dict(zip(self._needs, await asyncio.gather(*asked, return_exceptions=True), strict=True))
            held = [each for each in told.values() if isinstance(each, Reservation)]
            if len(held) == len(told):
                return held
            # Held by nobody while we wait: two that wait for each other's money would get none.
            await asyncio.gather(*(ledger.release(each) for each in held))
            refused = {part: error for part, error in told.items() if isinstance(error, BudgetExceededError)}
            for error in told.values():
                if isinstance(error, BaseException) and not isinstance(error, BudgetExceededError):
                    raise error
            if time.monotonic() >= until or not any(self._may_come_back(error, held) for error in refused.values()):
                raise _LeftOutError(refused)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.5)

    async def _hold(self, need: _Need, *, pause: bool) -> Reservation:
        return await self._swarm.cost_manager.ledger.reserve(
            need.spender, need.usd, need.tokens, requests=need.requests, facts=need.facts, pause=pause
        )

    def _may_come_back(self, error: BudgetExceededError, held: Sequence[Reservation]) -> bool:
        """Whether the end of calls other than ours would make room."""
        windows = self._swarm.cost_manager.ledger.windows()
        ours = [each for each in held if error.scope in _scopes(each.spender.counters(windows))]
        mine = {
            "usd": sum(each.usd for each in ours) / 1e9,
            "tokens": sum(each.tokens for each in ours),
            "requests": sum(each.requests for each in ours),
        }[error.unit]
        return error.held > mine and error.needed + mine <= error.left + error.held

    def _shown(self) -> dict[str, Any]:
        return {"items": [part.work.item.id for part in self._parts]}

    def _check(self) -> None:
        lost: dict[_Part, SwarmError] = {}
        for part in self._parts:
            try:
                part.work.check()
            except ClaimLostError as error:
                lost[part] = error
        if lost:
            raise _LeftOutError(lost)


def _scopes(counters: Sequence[str]) -> set[str]:
    return {field.partition("|")[2] for field in counters[::2]}


@lru_cache(maxsize=256)
def _listed(schema: type[BaseModel]) -> type[BaseModel]:
    """A list of answers of *schema*, each with the number of its part."""
    name = schema.__name__
    part: Any = create_model(f"{name}Part", number=(int, ...), answer=(schema, ...))
    listed: type[BaseModel] = create_model(f"{name}Parts", parts=(list[part], ...))
    return listed


def _parts_of(text: str) -> dict[int, str]:
    """The answers in *text* as JSON, by the numbers of their parts; a number that comes twice counts for none."""
    try:
        rows = json.loads(json_of(text))["parts"]
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        log.warning("an answer in parts can't be read", why=repr(error))
        return {}
    texts: dict[int, str] = {}
    twice = set()
    for row in rows if isinstance(rows, list) else ():
        number = row.get("number") if isinstance(row, dict) else None
        if isinstance(number, bool) or not isinstance(number, int) or "answer" not in row:
            continue
        if number in texts:
            twice.add(number)
        texts[number] = json.dumps(row["answer"], ensure_ascii=False)
    return {number: each for number, each in texts.items() if number not in twice}


def _fitting(result: LLMResult, schema: type[BaseModel] | None) -> LLMResult | None:
    """*result* with its object, or None if its text does not fit."""
    try:
        return replace(result, parsed=schema.model_validate_json(result.text)) if schema else None
    except ValueError:
        return None
