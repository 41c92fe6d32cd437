"""A model server for the run, and each client of the contract on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from model_server import ModelServer, Plan

from swarm_infrastructure.llm import AnthropicClient, LLMRequest, LLMResult, OpenAIClient
from swarm_infrastructure.llm.types import ToolCall, estimated_tokens, usage_of
from swarm_infrastructure.testing import FakeLLM

PROVIDERS = ["openai-chat", "openai-responses", "anthropic"]


@pytest.fixture(scope="session")
def one_model_server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture
def model_server(one_model_server: ModelServer) -> ModelServer:
    one_model_server.reset()
    return one_model_server


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


@pytest.fixture(params=[*PROVIDERS, "fake"])
async def told(request: pytest.FixtureRequest, model_server: ModelServer) -> AsyncIterator[Told]:
    """Every client of the contract."""
    provider = request.param
    client = FakeLLM([]) if provider == "fake" else client_of(provider, model_server.url)
    yield Told(provider, model_server, client)
    await client.aclose()


@pytest.fixture(params=PROVIDERS)
async def real(request: pytest.FixtureRequest, model_server: ModelServer) -> AsyncIterator[Told]:
    """Every client that has a wire."""
    client = client_of(request.param, model_server.url)
    yield Told(request.param, model_server, client)
    await client.aclose()
