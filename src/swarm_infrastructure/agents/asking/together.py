"""Asking for several items in one call, whose cost they share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any, Literal, overload

import structlog
from pydantic import BaseModel, create_model

from ...cost_manager import LLMTier, MeteredCall, Open, Pace, Reservation, Spender, Wait
from ...errors import (
    BudgetExceededError,
    CircuitOpenError,
    ClaimLostError,
    InvalidInputError,
    ModelError,
    RefusedError,
    SwarmError,
)
from ...failure_recovery import RetryPolicy
from ...llm import LLMRequest, LLMResult, SchemaMismatch, estimated_tokens
from ...llm.types import json_of
from .alone import ask, cheaper_tier, first_available, in_tier
from .answers import Answered, Asker, Part, check_cache_s
from .bill import Bill, split
from .call import RETRY, Asking, pricing_of, reserving_of

__all__ = ["ask_together"]

log = structlog.get_logger(__name__)

HELD_PATIENCE_S = 2.0  # how long several items wait for money that other calls hold, as one item does
ALONE = {"refusal", "schema", "truncated"}  # kinds of `ModelError` that the same items may escape if each asks alone


@overload
async def ask_together(
    works: Sequence[Asker], task_type: str, prompts: Sequence[str], *, schema: type[BaseModel],
    system: str | None = None, max_output_tokens_each: int = 1024, step: str | None = None, model: str | None = None,
    tier: str | None = None, tags: Sequence[str] = (), cache_s: float = 0.0, return_exceptions: Literal[False] = False,
    retry: RetryPolicy = RETRY, random: Random | None = None, **more: Any,
) -> list[Answered]: ...  # fmt: skip


@overload
async def ask_together(
    works: Sequence[Asker], task_type: str, prompts: Sequence[str], *, schema: type[BaseModel],
    system: str | None = None, max_output_tokens_each: int = 1024, step: str | None = None, model: str | None = None,
    tier: str | None = None, tags: Sequence[str] = (), cache_s: float = 0.0, return_exceptions: bool,
    retry: RetryPolicy = RETRY, random: Random | None = None, **more: Any,
) -> list[Answered | SwarmError]: ...  # fmt: skip


async def ask_together(
    works: Sequence[Asker],
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
    check_cache_s(cache_s)
    _check_together(works, prompts, more)
    random = random or Random()
    done: dict[int, Answered | SwarmError] = {}
    parts: dict[int, Part] = {}  # with what each has cost so far, in calls that brought it nothing
    each = {"schema": schema, "system": system, "max_output_tokens": max_output_tokens_each, **more}

    async def ask_tier(chosen: LLMTier) -> None:
        names = [model] if model else works[0].swarm.models_for(chosen)
        await first_available(names, lambda name: ask_model(chosen, name))

    async def ask_model(chosen: LLMTier, name: str) -> None:
        for at in (at for at in range(len(works)) if at not in done):
            request = LLMRequest(model=name, prompt=prompts[at], **each)
            before = parts[at].cost if at in parts else 0
            parts[at] = Part.of(
                works[at], task_type, request, step=step, tier=chosen, tags=tags, named=model is not None, cost=before
            )
        first: dict[tuple[str, str], int] = {}  # by item and step: the others of it find the record afterwards
        for at, part in parts.items():
            if at not in done:
                first.setdefault((part.work.item_id, part.step), at)
        async with AsyncExitStack() as alone:
            for item_and_step in sorted(first):  # all in one order: none waits for one who waits for it
                await alone.enter_async_context(works[0].swarm.failure_recovery.steps.alone(*item_and_step))
            await ask_parts(chosen, name, {at: parts[at] for at in first.values()})

    async def ask_parts(chosen: LLMTier, name: str, left: dict[int, Part]) -> None:
        found = await asyncio.gather(*(part.known(cache_s) for part in left.values()), return_exceptions=True)
        for at, known in zip(left, found, strict=True):
            if isinstance(known, BaseException) and not (return_exceptions and isinstance(known, RefusedError)):
                raise known
            if known is not None:
                done[at] = known
        while len(left := {at: part for at, part in left.items() if at not in done}) > 1:
            asking = AskingTogether(list(left.values()), task_type, retry, random)
            try:
                results = await asking.answers(asking.request(schema))
            except _LeftOutError as left_out:
                refused = {at: left_out.why[part] for at, part in left.items() if part in left_out.why}
                for error in refused.values():
                    if isinstance(error, BudgetExceededError) and cheaper_tier(works[0], chosen, model, error):
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
        await in_tier(works[0], task_type, tier, model, ask_tier)
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


def _check_together(works: Sequence[Asker], prompts: Sequence[str], more: Mapping[str, Any]) -> None:
    if len(prompts) != len(works):
        raise InvalidInputError(
            "prompts", found=f"{len(prompts)} of them", needed=f"one for each of {len(works)} works"
        )
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidInputError("prompts", found=list(prompts), needed="texts: conversations can't share a call")
    agents = sorted({work.agent_id for work in works})
    if len(agents) > 1 or len({id(work.swarm) for work in works}) > 1:
        raise InvalidInputError(
            "works", found=f"those of {', '.join(agents)}", needed="works of one agent in one swarm"
        )
    if "idempotency_key" in more:
        raise InvalidInputError("idempotency_key", found=more["idempotency_key"], needed="none: each call gets its own")


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

    def __init__(self, why: Mapping[Part, SwarmError]) -> None:
        super().__init__(f"{len(why)} parts are left out")
        self.why = why


class AskingTogether(Asking):
    """The questions of several items, asked as one."""

    def __init__(self, parts: Sequence[Part], task_type: str, retry: RetryPolicy, random: Random) -> None:
        super().__init__(parts, task_type, retry, random)
        self._needs: dict[Part, _Need] = {}

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

    def _read(self, result: LLMResult, bill: Bill) -> list[LLMResult | None]:
        texts = _parts_of(result.text)
        return [
            _fitting(replace(result, text=texts.get(number, ""), usage=usage, parsed=None), part.request.schema)
            for number, (part, usage) in enumerate(zip(self._parts, bill.usages(result.usage), strict=True), start=1)
        ]

    async def _begin(self, request: LLMRequest, input_tokens: int, hold_s: float) -> Bill:
        """Hold each part's share of the estimate, so that they are the estimate of the whole, at its price step.

        They are marked as sent when all of them are held, not before: else a refused one would cost the others a line
        in the ledger.
        """
        costs, n, pricing = self._swarm.cost_manager, len(self._parts), reserving_of(request)
        own = [estimated_tokens(part.request.prompt or "") for part in self._parts]
        common = split(input_tokens - sum(own), [1] * n)
        inputs = [sum(pair) for pair in zip(own, common, strict=True)]
        whole = costs.prices.estimate(request.model, input_tokens, request.max_output_tokens, **pricing)
        of_input = min(whole, costs.prices.estimate(request.model, input_tokens, 0, **pricing))
        usd = [sum(pair) for pair in zip(split(of_input, inputs), split(whole - of_input, [1] * n), strict=True)]
        self._needs = {
            part: _Need(
                part.spender, usd[at], inputs[at] + part.request.max_output_tokens, requests=0 if at else 1,
                facts={"model": request.model, "parts": n, **self._facts(part)},
            )
            for at, part in enumerate(self._parts)
        }  # fmt: skip
        held = await self._hold_all(self._pace(request, input_tokens), request.model)
        calls = [MeteredCall(costs, each, request.model, pricing_of(request)) for each in held]
        return Bill(self._parts, calls, inputs)

    async def _hold_all(self, pace: Pace, model: str) -> list[Reservation]:
        """A reservation for each part, or for none; and the turn under *pace*, once all of them are held.

        Waits for the turn, and a while if only what other calls hold stands in the way.

        Raises:
            _LeftOutError: with the parts that were refused.
            CircuitOpenError: the breaker of *model* is open.
        """
        ledger = self._swarm.cost_manager.ledger
        until, pause_s, waited_s = time.monotonic() + HELD_PATIENCE_S, 0.02, 0.0
        while True:
            self._check()  # no money for a claim that is lost
            asked = (self._hold(need, pause=False) for need in self._needs.values())
            told = dict(zip(self._needs, await asyncio.gather(*asked, return_exceptions=True), strict=True))
            held = [each for each in told.values() if isinstance(each, Reservation)]
            wait_s, turn = 0.0, None
            if len(held) == len(told):
                turn = await self._swarm.cost_manager.limiter.enter(pace, self._guard(model), call_id=held[0].id)
                if isinstance(turn, bool):
                    return [replace(each, probe=turn) for each in held]
                wait_s = turn.seconds
            # Held by nobody while we wait: two that wait for each other's money would get none.
            await asyncio.gather(*(ledger.release(each) for each in held))
            if isinstance(turn, Open):
                raise CircuitOpenError(f"model:{model}", turn.seconds)
            refused = {part: error for part, error in told.items() if isinstance(error, BudgetExceededError)}
            for error in told.values():
                if isinstance(error, BaseException) and not isinstance(error, BudgetExceededError):
                    raise error
            if not refused:
                waited_s = await self._wait(Wait(wait_s), waited_s)
                continue
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
        return {"items": [part.work.item_id for part in self._parts]}

    def _check(self) -> None:
        lost: dict[Part, SwarmError] = {}
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
