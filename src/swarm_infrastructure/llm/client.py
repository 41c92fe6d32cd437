"""Models behind one door: three methods that every client has, and an answer checked against its schema.

Owns the Protocol, the check of an answer and its repair. Leaves the wire to the adapters, and money, pace and retries
to the layers that call: a client makes exactly one paid call per ``generate`` or ``stream``, and never repeats one.

An answer that does not fit its schema may be asked for once more. That is a second paid call, so it is a request of
its own, which ``SchemaMismatch`` carries: whoever books each call sends it through ``generate`` as any other, and
whoever does not care uses ``ask``, which does both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol, runtime_checkable

from pydantic import ValidationError

from ..errors import ModelError, ModelUnavailableError
from .types import ChatMessage, LLMChunk, LLMRequest, LLMResult, json_of, summed

__all__ = ["LLMClient", "SchemaMismatch", "ask", "parse_answer", "repaired"]

FAULTS_SHOWN = 20  # to the model; more would cost more than they help


@runtime_checkable
class LLMClient(Protocol):
    """What answers requests: a provider's adapter, a fake, or something of one's own."""

    async def generate(self, request: LLMRequest) -> LLMResult:
        """The whole answer, from one call to the provider.

        Raises:
            SchemaMismatch: the answer does not fit the schema; what it used is in ``usage``.
            ModelError: the provider or the model said no; if the answer is to be paid, ``usage`` says what it used.
            ModelUnavailableError: no answer, or half of one; a retry may help.
        """
        ...

    def stream(self, request: LLMRequest) -> AsyncIterator[LLMChunk]:
        """The answer in pieces; the last one carries the result. Raises as ``generate`` does, at any piece.

        A stream that is left early is not free: book the input and the text that came.
        """
        ...

    async def count_tokens(self, request: LLMRequest) -> int:
        """How many tokens the input has: counted by the provider where it can, else estimated."""
        ...


class SchemaMismatch(ModelError):
    """An answer that does not fit the request's schema. It has to be paid: see ``usage``."""

    def __init__(
        self, model: str, why: str, *, result: LLMResult, repair_request: LLMRequest | None, step: str = ""
    ) -> None:
        self.result = result  #: the answer, with ``parsed`` None
        self.repair_request = repair_request  #: shows the model its answer and the faults; None: no repair is wanted
        super().__init__(model, "schema", why, step=step, usage=result.usage)


async def ask(client: LLMClient, request: LLMRequest) -> LLMResult:
    """The answer to *request*, repaired once if it does not fit its schema; with the usage of both calls.

    Raises:
        ModelError: as ``generate``; kind ``schema`` if the second answer does not fit either. ``usage`` is of both.
        ModelUnavailableError: as ``generate``; ``usage_so_far`` has the first call, if the second is what failed.
    """
    try:
        return await client.generate(request)
    except SchemaMismatch as mismatch:
        if mismatch.repair_request is None:
            raise
        first, repair = mismatch.result, mismatch.repair_request
    try:
        second = await client.generate(repair)
    except ModelError as error:
        error.usage = summed(first.usage, error.usage)
        raise
    except ModelUnavailableError as error:
        error.usage_so_far = summed(first.usage, error.usage_so_far)
        raise
    return repaired(first, second)


def repaired(first: LLMResult, second: LLMResult) -> LLMResult:
    """The second answer, with what both took."""
    return replace(
        second,
        usage=summed(first.usage, second.usage),
        attempts=first.attempts + second.attempts,
        duration_ms=first.duration_ms + second.duration_ms,
        usage_estimated=first.usage_estimated or second.usage_estimated,
    )


def parse_answer(request: LLMRequest, result: LLMResult) -> LLMResult:
    """*result* with the object that its text holds; as it is if no schema is asked for, or tools are to be called.

    Raises:
        SchemaMismatch: the text is no JSON or does not fit the schema.
        ModelError: kind ``truncated``: it ends where ``max_output_tokens`` did.
    """
    if request.schema is None or (result.tool_calls and not result.text.strip()):
        return result
    if result.stop_reason == "length":
        raise ModelError(
            request.model, "truncated", f"the answer ends after {result.usage.completion_tokens} tokens",
            step=f"raise max_output_tokens ({request.max_output_tokens})", usage=result.usage,
        )  # fmt: skip
    try:
        return replace(result, parsed=request.schema.model_validate_json(json_of(result.text)))
    except ValidationError as error:
        faults = _faults(error)
        raise SchemaMismatch(
            request.model, f"the answer does not fit {request.schema.__name__}: {faults[0]}",
            result=result, repair_request=_repair(request, result.text, faults) if request.repair else None,
        ) from error  # fmt: skip


def _repair(request: LLMRequest, text: str, faults: list[str]) -> LLMRequest:
    listed = "".join(f"\n- {fault}" for fault in faults)
    again = f"This does not fit the schema:{listed}\nAnswer again with the whole JSON, put right, and nothing else."
    return replace(
        request,
        prompt=None,
        # Providers refuse an empty turn.
        messages=(*request.turns, ChatMessage("assistant", text.strip() or "(nothing)"), ChatMessage("user", again)),
        repair=False,
        idempotency_key=f"{request.idempotency_key}-repair" if request.idempotency_key else None,
    )


def _faults(error: ValidationError) -> list[str]:
    """One line for each, as a model reads it best: where, and what was needed."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:FAULTS_SHOWN]
    return [f"{'.'.join(map(str, each['loc'])) or 'the answer'}: {each['msg']}" for each in found]
