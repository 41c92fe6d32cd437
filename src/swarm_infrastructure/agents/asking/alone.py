"""Asking for one item, in the tier of the task or a cheaper one that its budgets allow."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

import structlog
from pydantic import BaseModel

from ...cost_manager import LLMTier
from ...errors import BudgetExceededError, CircuitOpenError, InvalidInputError, ModelError, ModelUnavailableError
from ...failure_recovery import RetryPolicy
from ...llm import LLMRequest
from ...llm.types import ChatMessage
from .answers import Answered, Asker, Part, check_cache_s
from .call import RETRY, Asking

__all__ = ["ask", "cheaper_tier", "first_available", "in_tier"]

log = structlog.get_logger(__name__)

Outcome = TypeVar("Outcome")
# kinds of `ModelError` that say nothing of the question: another provider may answer it
OUT_OF_ORDER = {"auth", "quota"}


async def ask(
    work: Asker,
    task_type: str,
    prompt: str | Sequence[ChatMessage | Mapping[str, Any]],
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
    check_cache_s(cache_s)
    how = {"prompt": prompt} if isinstance(prompt, str) else {"messages": tuple(prompt)}

    async def ask_model(chosen: LLMTier, name: str) -> Answered:
        request = LLMRequest(
            model=name, schema=schema, system=system, max_output_tokens=max_output_tokens, **how, **more
        )
        part = Part.of(work, task_type, request, step=step, tier=chosen, tags=tags, named=model is not None)
        async with work.swarm.failure_recovery.steps.alone(work.item_id, part.step):
            if cache_s and (known := await part.known(cache_s)) is not None:
                return known  # else the call that reserves looks the record up
            request = replace(request, idempotency_key=request.idempotency_key or f"{work.key}:{part.step}:{name}")
            [result] = await Asking([part], task_type, retry, random or Random()).answers(request)
            assert result is not None
            return await part.answered(result, cache_s)

    async def ask_tier(chosen: LLMTier) -> Answered:
        names = [model] if model else work.swarm.models_for(chosen)
        return await first_available(names, lambda name: ask_model(chosen, name))

    return await in_tier(work, task_type, tier, model, ask_tier)


async def first_available(models: Sequence[str], asked: Callable[[str], Awaitable[Outcome]]) -> Outcome:
    """What *asked* gives for the first of *models* whose backend works."""
    soonest: CircuitOpenError | None = None
    for at, name in enumerate(models):
        try:
            return await asked(name)
        except (CircuitOpenError, ModelUnavailableError, ModelError) as error:
            if isinstance(error, ModelError) and error.kind not in OUT_OF_ORDER:
                raise
            if isinstance(error, CircuitOpenError) and (soonest is None or error.retry_after_s < soonest.retry_after_s):
                soonest = error
            if at + 1 == len(models):
                if isinstance(error, CircuitOpenError) and soonest is not None:
                    raise soonest from None  # whichever of them is tried again first
                raise
            log.warning("asking the next model of the tier", failed=name, why=str(error))
    raise InvalidInputError("models", found="none", needed="at least one")


def cheaper_tier(work: Asker, tier: LLMTier, model: str | None, error: BudgetExceededError) -> LLMTier | None:
    """Where the same may be asked after a budget has refused it, or None."""
    return work.swarm.cost_manager.tiers.cheaper(tier) if error.on_breach == "downgrade" and model is None else None


async def in_tier(
    work: Asker, task_type: str, tier: str | None, model: str | None, asked: Callable[[LLMTier], Awaitable[Outcome]]
) -> Outcome:
    """What *asked* gives in the task's tier, or in the first cheaper one that its budgets allow."""
    chosen = LLMTier(tier) if tier else work.swarm.cost_manager.get_tier(task_type)
    while True:
        try:
            return await asked(chosen)
        except BudgetExceededError as error:
            cheaper = cheaper_tier(work, chosen, model, error)
            if cheaper is None:
                raise
            chosen = cheaper
            log.info("asking a cheaper model", item=work.item_id, task_type=task_type, tier=str(chosen), why=str(error))
