"""Models for tests: answers from a script or from a function, without a network and without a key.

They satisfy ``LLMClient`` and check answers against schemas as the real ones do, so that a script may also hold an
answer that does not fit, one that was cut short, or an error.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from swarm_infrastructure.llm.client import parse_answer
from swarm_infrastructure.llm.types import LLMChunk, LLMRequest, LLMResult, estimated_tokens
from swarm_infrastructure.usage import TokenUsage

__all__ = ["FakeLLM", "FunctionLLM"]

PIECE = 8  # characters of a streamed piece: short, so that any answer comes in several

Plain = str | BaseModel | Mapping[str, Any] | LLMResult | Exception
Scripted = Plain | Callable[[LLMRequest], Plain | Awaitable[Plain]]


class FunctionLLM:
    """A model whose answers a function makes from the request; it may be async.

    What it returns may be a text, an object or a mapping (sent as JSON), a whole ``LLMResult``, or an error to raise.
    """

    def __init__(
        self, function: Callable[[LLMRequest], Plain | Awaitable[Plain]], *, usage: TokenUsage | None = None
    ) -> None:
        """Prepare it.

        Args:
            function: makes each answer.
            usage: of each call; None: counted from the lengths, the same for the same request and answer.
        """
        self._function = function
        self._usage = usage
        self.requests: list[LLMRequest] = []  #: all that were made, in order

    async def generate(self, request: LLMRequest) -> LLMResult:
        """The next answer, checked."""
        return parse_answer(request, await self._answer(request))

    async def stream(self, request: LLMRequest) -> AsyncIterator[LLMChunk]:
        """The next answer in pieces, checked at the end."""
        result = await self._answer(request)
        for start in range(0, len(result.text), PIECE):
            yield LLMChunk(text=result.text[start : start + PIECE])
        yield LLMChunk(result=parse_answer(request, result))

    async def count_tokens(self, request: LLMRequest) -> int:
        """The estimate, which is also what a call is said to have used."""
        return request.estimated_input_tokens()

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _answer(self, request: LLMRequest) -> LLMResult:
        self.requests.append(request)
        answer = self._function(request)
        plain = await answer if inspect.isawaitable(answer) else answer
        if isinstance(plain, Exception):
            raise plain
        if isinstance(plain, LLMResult):
            return replace(plain, parsed=None) if request.schema else plain
        text = plain if isinstance(plain, str) else _json(plain)
        usage = self._usage or TokenUsage(
            prompt_tokens=request.estimated_input_tokens(), completion_tokens=estimated_tokens(text)
        )
        return LLMResult(text=text, usage=usage, model=request.model)


class FakeLLM(FunctionLLM):
    """A model that gives the answers of a script, in order; each may also be a function of the request.

    ``FakeLLM(["hello", Story(title="x"), ModelUnavailableError("gpt", "down"), lambda request: request.system])``
    """

    def __init__(self, script: Iterable[Scripted], *, usage: TokenUsage | None = None) -> None:
        """Prepare it; see ``FunctionLLM`` for what an answer may be.

        Args:
            script: the answers.
            usage: as for ``FunctionLLM``.
        """
        super().__init__(self._next, usage=usage)
        self._script = deque([script] if isinstance(script, str) else script)
        self._given = 0

    @property
    def left(self) -> int:
        """How many answers nobody has asked for yet."""
        return len(self._script)

    def _next(self, request: LLMRequest) -> Plain | Awaitable[Plain]:
        if not self._script:
            raise AssertionError(
                f"FakeLLM: the script had {self._given} answers, found call {self._given + 1} "
                f"(model {request.model!r}); add an answer, or find out who asks"
            )
        self._given += 1
        answer = self._script.popleft()
        return answer(request) if callable(answer) else answer


def _json(answer: BaseModel | Mapping[str, Any]) -> str:
    if isinstance(answer, BaseModel):
        return answer.model_dump_json(by_alias=True)
    import json

    return json.dumps(answer)
