"""Stepping: one durable step of the item in hand: looked up, else done and recorded."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import structlog
from pydantic import BaseModel, ValidationError

from ..errors import InvalidInputError, StoreUnavailableError
from ..failure_recovery.steps import dump_answer, step_key

if TYPE_CHECKING:
    from .work import Work

__all__ = ["run_step"]

log = structlog.get_logger(__name__)


async def run_step(
    work: Work,
    name: str,
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    schema: type[BaseModel] | None,
) -> Any:
    """See `Work.step`."""
    key, steps = step_key(name, args, kwargs), work.swarm.failure_recovery.steps
    async with steps.alone(work.item_id, key):
        recorded = await steps.find(work.item_id, key)
        if recorded is None:
            work.check()  # nothing is done for a claim that is lost
            given = dict(kwargs)
            if "idempotency_key" not in given and _takes_key(function):
                given["idempotency_key"] = f"{work.key}:{key}"
            answer = function(*args, **given)
            if inspect.isawaitable(answer):
                answer = await answer
            recorded = await _record(work, key, dump_answer(name, answer))
    return _read(name, recorded, schema)


async def _record(work: Work, key: str, answer: bytes) -> bytes:
    """Keep what was done, also if Redis comes back late: it is not done again while the claim holds."""
    while True:
        try:
            return await work.swarm.failure_recovery.steps.record(work.item_id, key, answer, claim=work.claim)
        except StoreUnavailableError as error:
            work.check()
            log.warning("a step is not recorded yet", item=work.item_id, step=key, why=str(error))
            await asyncio.sleep(0.2 + random.random())


def _takes_key(function: Callable[..., Any]) -> bool:
    try:
        return "idempotency_key" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin says nothing of its arguments
        return False


def _read(name: str, recorded: bytes, schema: type[BaseModel] | None) -> Any:
    if schema is None:
        return orjson.loads(recorded)
    try:
        return schema.model_validate_json(recorded)
    except ValidationError as error:
        raise InvalidInputError(
            f"answer of step {name!r}", found=str(error), needed=f"a {schema.__name__}",
            step="the record may be of an older version of the code: give the step another name",
        ) from error  # fmt: skip
