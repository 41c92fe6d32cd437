"""The bill of one call: the shares of its items, which reserve for themselves and settle to the nano-dollar what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import orjson

from ...cost_manager import MeteredCall, Reservation
from ...llm import LLMResult
from ...usage import TokenUsage
from .answers import Part

__all__ = ["Bill", "split"]


class Bill:
    """What one call may cost and did cost, split among its parts. Left unsettled, each books as `MeteredCall` says.

    Args:
        parts: of the call.
        shares: what each holds.
        input_tokens: of each, in the estimate.
    """

    def __init__(self, parts: Sequence[Part], shares: Sequence[MeteredCall], input_tokens: Sequence[int]) -> None:
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
        prompt = split(usage.prompt_tokens, self._input_tokens)
        completion = split(usage.completion_tokens, [1] * len(self._parts))
        cached = split(usage.cached_tokens, prompt)
        uncached = [whole - part for whole, part in zip(prompt, cached, strict=True)]
        written = split(usage.cache_write_tokens, uncached)
        reasoning = split(usage.reasoning_tokens, completion)
        return [
            TokenUsage(
                prompt_tokens=each[0], completion_tokens=each[1], cached_tokens=each[2], cache_write_tokens=each[3],
                reasoning_tokens=each[4],
            )
            for each in zip(prompt, completion, cached, written, reasoning, strict=True)
        ]  # fmt: skip

    @property
    def call(self) -> Reservation:
        """The reservation that stands for the call where it is counted once."""
        return self._shares[0].reservation

    async def settle(
        self, usage: TokenUsage, *, facts: Mapping[str, Any], answers: Sequence[LLMResult | None] = (),
        also: Awaitable[None] | None = None,
    ) -> None:  # fmt: skip
        """Book what the call cost; with *answers*, record each in the same breath for the item that it is for.

        *also* is awaited beside it.
        """
        call = self._shares[0]
        cost = call.costs.prices.cost(call.model, usage, **call.pricing)
        costs = split(cost, [share.reservation.usd for share in self._shares])
        booked = []
        for at, (part, share, usd, used) in enumerate(
            zip(self._parts, self._shares, costs, self.usages(usage), strict=True)
        ):
            answer = answers[at] if answers else None
            record: dict[str, Any] = {}
            if answer is not None:
                claim = part.work.claim
                record = {
                    "item_id": part.work.item_id, "step": part.step, "answer": orjson.dumps(answer.as_dict()),
                    "stage": claim.lane if claim else "", "token": claim.token if claim else 0,
                }  # fmt: skip
            booked.append(share.settle(used, usd=usd, facts=facts, **record))
            part.cost += usd
        # what is known by now is booked, also if nobody waits any more
        await asyncio.shield(asyncio.gather(*booked, *([also] if also else [])))

    async def settle_unbilled(self, why: str) -> None:
        """Book nothing: the provider refused the call, so it costs nothing."""
        await asyncio.gather(*(share.settle_unbilled(why) for share in self._shares))


def split(total: int, weights: Sequence[int]) -> list[int]:
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
