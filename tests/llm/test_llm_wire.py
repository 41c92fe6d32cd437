"""What each adapter sends."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from clients import Told, Verdict, request
from model_server import ModelServer
from pydantic import BaseModel

from swarm_infrastructure.errors import InvalidInputError, MissingExtraError
from swarm_infrastructure.llm import AnthropicClient, ChatMessage, OpenAIClient


class Counts(BaseModel):
    by_word: dict[str, int]


async def test_the_limit_reaches_every_provider_under_its_own_name(real: Told) -> None:
    await real.client.generate(request(max_output_tokens=77))

    names = {"openai-chat": "max_tokens", "openai-responses": "max_output_tokens", "anthropic": "max_tokens"}
    assert real.body[names[real.provider]] == 77


async def test_chat_uses_the_newer_limit_where_it_is_asked_to(model_server: ModelServer) -> None:
    client = OpenAIClient("key", f"{model_server.url}/v1", limit_field="max_completion_tokens")

    await client.generate(request(max_output_tokens=77))

    assert model_server.seen[-1]["body"]["max_completion_tokens"] == 77
    assert "max_tokens" not in model_server.seen[-1]["body"]
    await client.aclose()


def test_the_api_follows_the_address() -> None:
    def responses(*args: str, **options: Any) -> bool:
        return OpenAIClient("key", *args, **options)._responses

    assert responses("https://api.openai.com/v1")
    assert responses("https://eu.api.openai.com/v1")
    assert not responses("https://api.openai.com.example.com/v1")
    assert not responses("http://localhost:11434/v1")
    assert responses("http://localhost:11434/v1", api="responses")
    with pytest.raises(InvalidInputError, match="auto, chat or responses"):
        responses("http://localhost:11434/v1", api="other")


async def test_the_system_the_turns_and_the_knobs_are_sent(real: Told) -> None:
    asked = request(
        messages=[ChatMessage("user", "one"), ChatMessage("assistant", "two"), {"role": "user", "content": "three"}],
        system="Be brief.", temperature=0.2, service_tier="auto", prompt_cache_key="editor", tool_choice="auto",
        tools=[{"name": "t", "type": "function"}], idempotency_key="k-1", extra={"top_k": 4, "metadata": {"user_id": "u"}},
    )  # fmt: skip

    await real.client.generate(asked)

    body, turns = real.body, [("user", "one"), ("assistant", "two"), ("user", "three")]
    sent = body["input"] if real.provider == "openai-responses" else body["messages"]
    pairs = [(turn["role"], turn["content"]) for turn in sent]
    match real.provider:
        case "openai-chat":
            assert pairs == [("system", "Be brief."), *turns]
        case "openai-responses":
            assert (body["instructions"], pairs, body["store"]) == ("Be brief.", turns, False)
        case "anthropic":
            assert (body["system"], pairs) == ("Be brief.", turns)
    assert body["tool_choice"] == ({"type": "auto"} if real.provider == "anthropic" else "auto")
    assert (body["temperature"], body["service_tier"], body["top_k"]) == (0.2, "auto", 4)
    assert body["metadata"] == {"user_id": "u"}
    assert body.get("prompt_cache_key") == (None if real.provider == "anthropic" else "editor")
    headers = {name.lower(): value for name, value in real.server.seen[-1]["headers"].items()}
    assert headers["idempotency-key"] == "k-1"
    assert headers["x-stainless-retry-count"] == "0"


async def test_a_schema_is_sent_in_the_providers_form_and_shares_its_place_with_other_knobs(real: Told) -> None:
    knobs: dict[str, Any] = {
        "anthropic": {"output_config": {"effort": "low"}},
        "openai-responses": {"text": {"verbosity": "low"}},
    }

    await real.client.generate(request(schema=Verdict, extra=knobs.get(real.provider, {})))

    body = real.body
    match real.provider:
        case "openai-chat":
            sent = body["response_format"]["json_schema"]
            assert (sent["name"], sent["strict"]) == ("Verdict", True)
        case "openai-responses":
            sent = body["text"]["format"]
            assert (sent["name"], sent["strict"], body["text"]["verbosity"]) == ("Verdict", True, "low")
        case _:
            sent = body["output_config"]["format"]
            assert body["output_config"]["effort"] == "low"
    assert sent["schema"]["additionalProperties"] is False
    assert sent["schema"]["required"] == ["score", "why"]


async def test_a_schema_with_any_keys_is_not_sent_as_strict(model_server: ModelServer) -> None:
    client = OpenAIClient("key", f"{model_server.url}/v1")

    assert (await client.generate(request(schema=Counts))).parsed_as(Counts).by_word == {}

    assert model_server.seen[-1]["body"]["response_format"]["json_schema"]["strict"] is False
    await client.aclose()


async def test_anthropic_marks_the_system_as_cacheable_and_the_whole_without_one(model_server: ModelServer) -> None:
    client, mark = AnthropicClient("key", model_server.url), {"type": "ephemeral", "ttl": "1h"}

    await client.generate(request(system="Be brief.", cache_control=mark))
    await client.generate(request(cache_control=mark))

    assert model_server.seen[0]["body"]["system"] == [{"type": "text", "text": "Be brief.", "cache_control": mark}]
    assert model_server.seen[1]["body"]["cache_control"] == mark
    await client.aclose()


async def test_stop_sequences_are_sent_or_refused_where_there_are_none(real: Told) -> None:
    asked = request(stop=["END"])
    if real.provider == "openai-responses":
        with pytest.raises(InvalidInputError, match="no stop sequences"):
            await real.client.generate(asked)
        assert real.calls == 0
        return

    await real.client.generate(asked)

    assert real.body["stop" if real.provider == "openai-chat" else "stop_sequences"] == ["END"]


@pytest.mark.parametrize("make", [OpenAIClient, AnthropicClient])
async def test_the_provider_counts_tokens_where_it_can(make: Any, model_server: ModelServer) -> None:
    url = f"{model_server.url}/v1" if make is OpenAIClient else model_server.url
    client = make("key", url, **({"api": "responses"} if make is OpenAIClient else {}))
    client._counts = True  # as if it were the official address

    assert await client.count_tokens(request(schema=Verdict, system="Be brief.")) > 10
    assert model_server.bill == {"requests": 1, "models": {}}
    assert "max_tokens" not in model_server.seen[-1]["body"]
    await client.aclose()


@pytest.mark.parametrize(("make", "sdk"), [(OpenAIClient, "openai"), (AnthropicClient, "anthropic")])
def test_without_its_sdk_a_client_says_what_to_install(make: Any, sdk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, sdk, None)

    with pytest.raises(MissingExtraError, match=rf"swarm-infrastructure\[{sdk}\]"):
        make("key")


def test_importing_the_package_imports_no_sdk() -> None:
    program = (
        "import sys, swarm_infrastructure.llm, swarm_infrastructure.testing.fake_llm\n"
        "print([m for m in ('openai', 'anthropic', 'httpx2', 'redis') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
