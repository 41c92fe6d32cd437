"""The clients of the contract, how they are told what to answer, and the requests that the tests make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model_server import ModelServer, Plan
from pydantic import BaseModel, Field

from swarm_infrastructure.llm import (
    AnthropicClient,
    LLMChunk,
    LLMClient,
    LLMRequest,
    LLMResult,
    OpenAIClient,
    ToolCall,
    estimated_tokens,
)
from swarm_infrastructure.llm.types import usage_of

PROVIDERS = ["openai-chat", "openai-responses", "anthropic"]


class Verdict(BaseModel):
    score: int = Field(ge=0, le=10)
    why: str


def request(**options: Any) -> LLMRequest:
    if "messages" not in options:
        options = {"prompt": "Judge this story."} | options
    return LLMRequest(**({"model": "model-1", "max_output_tokens": 500} | options))


async def streamed(client: LLMClient, asked: LLMRequest) -> tuple[list[str], LLMResult]:
    chunks: list[LLMChunk] = [chunk async for chunk in client.stream(asked)]
    assert [chunk.result for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].result is not None
    return [chunk.text for chunk in chunks if chunk.text], chunks[-1].result


def client_of(provider: str, url: str, **options: Any) -> Any:
    """The adapter for a server of ours."""
    match provider:
        case "openai-chat":
            return OpenAIClient("key", f"{url}/v1", **options)
        case "openai-responses":
            return OpenAIClient("key", f"{url}/v1", api="responses", **options)
        case "anthropic":
            return AnthropicClient("key", url, **options)
    raise ValueError(provider)


class Told:
    """A client, and the server that does what it is told; for FakeLLM the plans become a script."""

    def __init__(self, provider: str, server: ModelServer, client: Any) -> None:
        self.provider, self.server, self.client = provider, server, client
        self.real = provider != "fake"

    def plan(self, *plans: Plan) -> None:
        if self.real:
            self.server.plan(*plans)
        else:
            self.client._script.extend(_scripted(plan) for plan in plans)

    @property
    def calls(self) -> int:
        """Requests that arrived."""
        return len(self.server.seen) if self.real else len(self.client.requests)

    @property
    def body(self) -> dict[str, Any]:
        """The last request as it was sent."""
        return self.server.seen[-1]["body"]


def _scripted(plan: Plan) -> Any:
    def answer(request: LLMRequest) -> LLMResult:
        usage = {
            "prompt": request.estimated_input_tokens(),
            "completion": estimated_tokens(plan.text or ""),
            **plan.usage,
        }
        result = LLMResult(text=plan.text or "", usage=usage_of(**usage), model=request.model, stop_reason=plan.stop)
        calls = tuple(ToolCall(**call) for call in plan.calls)
        return replace(result, tool_calls=calls, stop_reason="tool_calls" if calls else plan.stop)

    return answer
