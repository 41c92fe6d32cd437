"""Each fault of a provider as the error that says what to do; and never more than one request for a call."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, formatdate
from typing import Any

import pytest
from clients import PROVIDERS, Told, client_of, request, streamed
from model_server import ModelServer, Plan

from swarm_infrastructure.errors import (
    ConfigurationError,
    ModelError,
    ModelUnavailableError,
    RateLimitedError,
    SwarmError,
    UnavailableError,
)
from swarm_infrastructure.llm import AnthropicClient, OpenAIClient
from swarm_infrastructure.llm.provider import provider_fault


async def failure(told: Told, *plans: Plan, stream: bool = False, **options: Any) -> Any:
    told.plan(*plans)
    with pytest.raises(SwarmError) as caught:
        await (streamed(told.client, request(**options)) if stream else told.client.generate(request(**options)))
    assert told.calls == 1, "retries are off"
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [408, 409, 500, 502, 503, 504, 529])
async def test_a_fault_of_the_provider_may_pass(real: Told, status: int, stream: bool) -> None:
    error = await failure(real, Plan(status=status, headers={"retry-after": "7"}), stream=stream)

    assert type(error) is ModelUnavailableError
    assert error.retry_after_s == 7
    assert error.may_be_paid == (status != 529)
    assert error.usage_so_far is None
    assert real.server.bill["models"] == {}


async def test_a_fault_after_the_work_was_billed_looks_the_same(real: Told) -> None:
    error = await failure(real, Plan(status=500, billed=True))

    assert error.may_be_paid
    assert real.server.bill["models"]["model-1"]["calls"] == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"retry-after": "20"}, 20), ({"retry-after-ms": "1500"}, 1.5), ({}, None), ({"retry-after": "soon"}, None)],
)
async def test_a_rate_limit_says_how_long_to_wait(real: Told, header: dict[str, str], seconds: float | None) -> None:
    text = "Rate limit reached; add a payment method at https://platform.openai.com/account/billing"

    error = await failure(real, Plan(status=429, headers=header, error={"type": "rate_limit_error", "message": text}))

    assert type(error) is RateLimitedError
    assert isinstance(error, UnavailableError)
    assert error.retry_after_s == seconds
    assert not error.may_be_paid


def test_a_date_to_wait_for_is_read_too() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)

    later, past = (provider_fault("m", 429, {}, {"retry-after": when}) for when in (date, formatdate(0, usegmt=True)))

    assert isinstance(later, RateLimitedError)
    assert 25 < (later.retry_after_s or 0) <= 30
    assert isinstance(past, RateLimitedError)
    assert past.retry_after_s == 0


@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (
            429,
            {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded your current quota"},
        ),
        (429, {"type": "rate_limit_error", "details": {"error_code": "enforced_spend_limit_reached"}}),
        (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}),
        (402, {"type": "billing_error"}),
    ],
)
async def test_an_empty_account_is_not_a_rate_limit(real: Told, status: int, fault: dict[str, Any]) -> None:
    error = await failure(real, Plan(status=status, error=fault))

    assert isinstance(error, ModelError)
    assert error.kind == "quota"
    assert error.usage is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "auth"), (403, "auth"), (400, "request"), (404, "request"), (413, "request"), (422, "request")],
)
async def test_a_request_that_is_refused_is_not_repeated(real: Told, status: int, kind: str) -> None:
    error = await failure(real, Plan(status=status, error={"message": "bad key sk-12345"}))

    assert isinstance(error, ModelError)
    assert error.kind == kind
    assert ("sk-12345" in str(error)) == (kind != "auth")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_within_an_answer_of_status_200_is_one_too(real: Told, stream: bool) -> None:
    if stream:
        plan = Plan(text="some text to begin with", error_in_stream=True)
    else:
        plan = Plan(raw='{"error": {"message": "upstream is down", "code": 502}}')

    error = await failure(real, plan, stream=stream)

    assert type(error) is ModelUnavailableError
    assert error.may_be_paid


@pytest.mark.parametrize("fault", [{"type": "rate_limit_error", "code": "rate_limit_exceeded"}])
async def test_a_rate_limit_within_a_stream_is_a_rate_limit(real: Told, fault: dict[str, Any]) -> None:
    error = await failure(real, Plan(text="some text", error_in_stream=True, error=fault), stream=True)

    assert type(error) is RateLimitedError
    assert error.may_be_paid, "its beginning was answered"


@pytest.mark.parametrize("cleanly", [False, True])
async def test_a_cut_stream_says_what_came_and_what_it_used(real: Told, cleanly: bool) -> None:
    text = "A story of which only the beginning arrives."
    plan = Plan(text=text, cut_after=3, cut_cleanly=cleanly, usage={"prompt": 50, "completion": 90})

    error = await failure(real, plan, stream=True)

    assert type(error) is ModelUnavailableError
    assert error.text_so_far == text[:15]
    assert error.usage_so_far.completion_tokens == 5
    if real.provider == "anthropic":  # says what the input has at the start
        assert error.usage_so_far.prompt_tokens == 50
    else:
        assert error.usage_so_far.prompt_tokens == request().estimated_input_tokens()
    assert error.may_be_paid
    assert real.server.bill["models"]["model-1"]["completion_tokens"] == 90


async def test_a_stream_that_is_refused_midway_still_says_what_it_used(real: Told) -> None:
    fault = {"type": "invalid_request_error", "code": "invalid_prompt", "message": "no"}

    error = await failure(real, Plan(text="some text", error_in_stream=True, error=fault), stream=True)

    assert isinstance(error, ModelError)
    assert error.kind == "request"
    assert error.usage.total_tokens > 0


async def test_a_cut_answer_may_have_to_be_paid(real: Told) -> None:
    error = await failure(real, Plan(text="x" * 100, cut_after=1))

    assert type(error) is ModelUnavailableError
    assert error.may_be_paid


@pytest.mark.parametrize("raw", ["<html>", "[]", "null", '{"choices": [], "content": 5, "output": 5}', '"text"'])
async def test_an_answer_that_is_none_is_a_fault_of_the_provider(real: Told, raw: str) -> None:
    error = await failure(real, Plan(raw=raw))

    assert type(error) is ModelUnavailableError


@pytest.mark.parametrize(
    "part",
    [
        '"choices": [{"message": {"content": [{"type": "text"}]}, "finish_reason": "stop"}]',
        '"choices": [{"message": {"content": "x"}}], "usage": 5',
        '"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": "many"}',
    ],
)
async def test_an_answer_of_another_shape_is_no_crash(model_server: ModelServer, part: str) -> None:
    client = client_of("openai-chat", model_server.url)
    model_server.plan(Plan(raw="{" + part + "}"))

    with pytest.raises(ModelUnavailableError, match="can't be read"):
        await client.generate(request())

    await client.aclose()


async def test_a_response_that_failed_is_paid_as_it_says(model_server: ModelServer) -> None:
    client = client_of("openai-responses", model_server.url)
    usage = '{"input_tokens": 9, "output_tokens": 3}'
    model_server.plan(Plan(raw=f'{{"status": "failed", "error": null, "output": [], "usage": {usage}}}'))

    with pytest.raises(ModelUnavailableError) as caught:
        await client.generate(request())

    assert (caught.value.usage_so_far.prompt_tokens, caught.value.usage_so_far.completion_tokens) == (9, 3)
    await client.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_provider_that_hangs_is_given_up_after_the_requests_own_time(real: Told, stream: bool) -> None:
    began = time.monotonic()

    error = await failure(real, Plan(hang_s=20, billed=True), stream=stream, timeout_s=0.2)

    assert time.monotonic() - began < 5
    assert type(error) is ModelUnavailableError
    assert "0.2 s" in str(error)
    assert isinstance(error.__cause__, TimeoutError), "the SDK's own limit is per read: an answer that drips passes it"
    assert error.may_be_paid


async def test_a_stream_that_hangs_midway_keeps_what_came(real: Told) -> None:
    error = await failure(real, Plan(text="0123456789abcdef", hang_after=2), stream=True, timeout_s=0.8)

    assert type(error) is ModelUnavailableError
    assert error.text_so_far == "0123456789"
    assert isinstance(error.__cause__, TimeoutError)
    assert error.usage_so_far.completion_tokens == 4


async def test_a_slow_reader_is_not_interrupted_between_two_pieces(real: Told) -> None:
    real.plan(Plan(text="0123456789"))
    stream = real.client.stream(request(timeout_s=0.5))

    assert (await anext(stream)).text == "01234"
    await asyncio.sleep(0.6)  # real time: the limit is a timer of the event loop; a leaked one would cancel this
    with pytest.raises((ModelUnavailableError, StopAsyncIteration)):
        while True:
            await anext(stream)


async def test_cancelling_a_call_is_no_error_of_the_provider(real: Told) -> None:
    real.plan(Plan(hang_s=20))
    task = asyncio.create_task(real.client.generate(request()))
    while not real.calls:
        await asyncio.sleep(0.01)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_where_nobody_listens_nothing_can_have_been_paid(provider: str) -> None:
    client = client_of(provider, "http://127.0.0.1:9")

    with pytest.raises(ModelUnavailableError) as caught:
        await client.generate(request())

    assert not caught.value.may_be_paid
    await client.aclose()


@pytest.mark.parametrize("make", [OpenAIClient, AnthropicClient])
async def test_the_switch_forbids_real_providers_but_no_local_ones(
    make: Any, monkeypatch: pytest.MonkeyPatch, model_server: ModelServer
) -> None:
    for name in ("OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for client in (
        make("key"),
        make("key", "https://models.example.com/v1"),
        make("key", "http://127.0.0.1.example.com"),
    ):
        for call in (client.generate(request()), streamed(client, request())):
            with pytest.raises(ModelError) as caught:
                await call
            assert caught.value.kind == "forbidden"
    local = make("key", f"{model_server.url}/v1" if make is OpenAIClient else model_server.url)
    assert (await local.generate(request())).text
    await local.aclose()

    # At the time of the call, and as the SDK sees the address: it may come from the environment too.
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ModelUnavailableError):
        await make("key").generate(request())


async def test_the_switch_is_read_when_a_call_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    client = OpenAIClient("key", "http://no-such-host.invalid/v1")

    monkeypatch.setenv("SWARM_ALLOW_LLM_REQUESTS", "1")
    with pytest.raises(ModelUnavailableError):
        await client.generate(request())
    monkeypatch.setenv("SWARM_ALLOW_LLM_REQUESTS", "0")
    with pytest.raises(ModelError, match=r"forbids to call no-such-host\.invalid"):
        await client.count_tokens(request()) and await client.generate(request())
    await client.aclose()


@pytest.mark.parametrize("make", [OpenAIClient, AnthropicClient])
def test_a_missing_key_is_said_at_once_unless_the_endpoint_is_ones_own(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    for name in (
        "OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "OPENAI_BASE_URL",
        "ANTHROPIC_BASE_URL",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))

    with pytest.raises(ConfigurationError, match="_API_KEY"):
        make()

    assert make(base_url="http://localhost:8000/v1")
