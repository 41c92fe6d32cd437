"""One suite for every client: what comes back, what it used, and that one call is one request."""

from __future__ import annotations

from contextlib import aclosing

import pytest
from clients import Told, Verdict, request, streamed
from model_server import Plan

from swarm_infrastructure.errors import ModelError, ModelUnavailableError
from swarm_infrastructure.llm import ChatMessage, LLMClient, LLMRequest, LLMResult, SchemaMismatch, ToolCall, ask
from swarm_infrastructure.usage import TokenUsage

GOOD, BAD = '{"score": 7, "why": "short"}', '{"score": 70}'
USAGE = {"prompt": 100, "completion": 40, "cached": 30, "cache_write": 20, "reasoning": 15}
ALL_OF_IT = TokenUsage(
    prompt_tokens=100, completion_tokens=40, cached_tokens=30, cache_write_tokens=20, reasoning_tokens=15
)


async def test_a_text_comes_back_with_what_it_took(told: Told) -> None:
    told.plan(Plan(text="A fine story — 好.", usage={"prompt": 12, "completion": 6}))

    result = await told.client.generate(request(system="You are an editor."))

    assert result.text == "A fine story — 好."
    assert result.usage == TokenUsage(prompt_tokens=12, completion_tokens=6)
    assert (result.model, result.stop_reason, result.attempts, result.parsed) == ("model-1", "stop", 1, None)
    assert not result.usage_estimated
    assert told.calls == 1
    if told.real:
        assert result.request_id == "req_1"


def test_every_client_is_an_llm_client(told: Told) -> None:
    assert isinstance(told.client, LLMClient)


async def test_usage_counts_cached_and_reasoning_tokens_within_the_wholes(told: Told) -> None:
    told.plan(Plan(text="x", usage=USAGE), Plan(text="x", usage=USAGE))

    assert (await told.client.generate(request())).usage == ALL_OF_IT
    assert (await streamed(told.client, request()))[1].usage == ALL_OF_IT


async def test_an_answer_that_fits_its_schema_becomes_an_object(told: Told) -> None:
    told.plan(Plan(text=GOOD))

    result = await told.client.generate(request(schema=Verdict))

    assert result.parsed_as(Verdict) == Verdict(score=7, why="short")
    assert told.calls == 1


async def test_json_in_a_fence_is_understood(told: Told) -> None:
    told.plan(Plan(text=f"```json\n{GOOD}\n```"))

    assert (await told.client.generate(request(schema=Verdict))).parsed_as(Verdict).score == 7


async def test_a_bad_answer_is_one_call_and_carries_the_request_that_repairs_it(told: Told) -> None:
    told.plan(Plan(text=BAD, usage={"prompt": 10, "completion": 5}))

    with pytest.raises(SchemaMismatch) as caught:
        await told.client.generate(request(schema=Verdict, idempotency_key="k1"))

    repair = caught.value.repair_request
    assert told.calls == 1
    assert caught.value.usage == TokenUsage(prompt_tokens=10, completion_tokens=5)
    assert repair is not None
    assert not repair.repair
    assert repair.idempotency_key == "k1-repair"
    turns = [(turn.role, turn.content) for turn in repair.turns if isinstance(turn, ChatMessage)]
    assert turns[:2] == [("user", "Judge this story."), ("assistant", BAD)]
    assert "score: Input should be less than or equal to 10" in turns[2][1]
    assert "why: Field required" in turns[2][1]


async def test_ask_repairs_once_and_adds_up_both_calls(told: Told) -> None:
    told.plan(
        Plan(text=BAD, usage={"prompt": 10, "completion": 5}), Plan(text=GOOD, usage={"prompt": 30, "completion": 8})
    )

    result = await ask(told.client, request(schema=Verdict))

    assert result.parsed_as(Verdict).score == 7
    assert result.usage == TokenUsage(prompt_tokens=40, completion_tokens=13)
    assert result.attempts == 2
    assert told.calls == 2


async def test_an_answer_that_stays_bad_is_an_error_with_the_usage_of_both_calls(told: Told) -> None:
    told.plan(
        Plan(text=BAD, usage={"prompt": 10, "completion": 5}), Plan(text="no", usage={"prompt": 30, "completion": 1})
    )

    with pytest.raises(ModelError) as caught:
        await ask(told.client, request(schema=Verdict))

    assert caught.value.kind == "schema"
    assert caught.value.usage == TokenUsage(prompt_tokens=40, completion_tokens=6)
    assert told.calls == 2


async def test_no_repair_is_made_where_none_is_wanted(told: Told) -> None:
    told.plan(Plan(text=BAD))

    with pytest.raises(SchemaMismatch) as caught:
        await ask(told.client, request(schema=Verdict, repair=False))

    assert caught.value.repair_request is None
    assert told.calls == 1


async def test_a_repair_that_fails_keeps_what_the_first_call_used(real: Told) -> None:
    real.plan(Plan(text=BAD, usage={"prompt": 10, "completion": 5}), Plan(status=503))

    with pytest.raises(ModelUnavailableError) as caught:
        await ask(real.client, request(schema=Verdict))

    assert caught.value.usage_so_far == TokenUsage(prompt_tokens=10, completion_tokens=5)


async def test_a_stream_brings_pieces_and_then_the_result(told: Told) -> None:
    told.plan(Plan(text="A story that comes in several pieces.", usage={"prompt": 12, "completion": 9}))

    pieces, result = await streamed(told.client, request())

    assert len(pieces) > 2
    assert "".join(pieces) == result.text == "A story that comes in several pieces."
    assert result.usage == TokenUsage(prompt_tokens=12, completion_tokens=9)
    assert (result.model, result.stop_reason) == ("model-1", "stop")
    assert told.calls == 1


async def test_a_streamed_answer_is_checked_against_the_schema_at_its_end(told: Told) -> None:
    told.plan(Plan(text=GOOD), Plan(text=BAD, usage={"prompt": 10, "completion": 5}))

    assert (await streamed(told.client, request(schema=Verdict)))[1].parsed_as(Verdict).score == 7
    with pytest.raises(SchemaMismatch) as caught:
        await streamed(told.client, request(schema=Verdict))
    assert caught.value.usage.total_tokens == 15


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls_come_through_as_the_model_wrote_them(told: Told, stream: bool) -> None:
    told.plan(Plan(text="", calls=[{"id": "c1", "name": "search", "arguments": '{"query": "x"}'}]))
    asked = request(tools=[{"name": "search", "type": "function"}], schema=Verdict)

    result = (await streamed(told.client, asked))[1] if stream else await told.client.generate(asked)

    assert result.tool_calls == (ToolCall(id="c1", name="search", arguments='{"query": "x"}'),)
    assert (result.stop_reason, result.parsed) == ("tool_calls", None)
    if told.real:
        assert told.body["tools"] == [{"name": "search", "type": "function"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_cut_by_its_limit_is_a_result_without_a_schema_and_an_error_with_one(
    told: Told, stream: bool
) -> None:
    told.plan(*[Plan(text='{"score": ', stop="length", usage={"prompt": 10, "completion": 5})] * 2)

    async def get(asked: LLMRequest) -> LLMResult:
        return (await streamed(told.client, asked))[1] if stream else await told.client.generate(asked)

    assert (await get(request())).stop_reason == "length"
    with pytest.raises(ModelError) as caught:
        await get(request(schema=Verdict))
    assert caught.value.kind == "truncated"
    assert caught.value.usage == TokenUsage(prompt_tokens=10, completion_tokens=5)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("plan", [Plan(text="", refusal="I can't."), Plan(text="I", stop="filter")])
async def test_a_refusal_is_an_error_that_says_what_it_used(real: Told, stream: bool, plan: Plan) -> None:
    plan.usage = {"prompt": 10, "completion": 5}
    real.plan(plan)

    with pytest.raises(ModelError) as caught:
        await (streamed(real.client, request()) if stream else real.client.generate(request()))

    assert caught.value.kind == "refusal"
    assert caught.value.usage == TokenUsage(prompt_tokens=10, completion_tokens=5)
    assert real.server.bill["models"]["model-1"]["completion_tokens"] == 5


async def test_a_stream_left_early_closes_its_connection(told: Told) -> None:
    told.plan(Plan(text="A story that comes in several pieces."), Plan(text="next"))

    async with aclosing(told.client.stream(request())) as stream:
        assert (await anext(stream)).text

    assert (await told.client.generate(request())).text == "next"


async def test_a_provider_that_reports_no_usage_gets_an_estimate(real: Told) -> None:
    real.plan(Plan(text="12345678", no_usage=True), Plan(text="12345678", no_usage=True))
    asked = request()

    whole, (_, in_pieces) = await real.client.generate(asked), await streamed(real.client, asked)

    assert whole.usage.prompt_tokens > 0
    assert whole.usage_estimated or real.provider == "anthropic"  # which has a count in every answer
    assert in_pieces.usage.completion_tokens >= 2


async def test_counting_tokens_of_an_endpoint_of_ones_own_is_an_estimate_and_costs_nothing(told: Told) -> None:
    asked = request()

    assert await told.client.count_tokens(asked) == asked.estimated_input_tokens()
    assert told.calls == 0


async def test_the_bill_is_what_the_client_counted(real: Told) -> None:
    total = 0
    for asked in (request(), request(schema=Verdict), request(prompt="other")):
        total += (await real.client.generate(asked)).usage.total_tokens
        total += (await streamed(real.client, asked))[1].usage.total_tokens

    bill = real.server.bill["models"]["model-1"]
    assert bill["prompt_tokens"] + bill["completion_tokens"] == total
    assert bill["calls"] == real.server.bill["requests"] == 6
