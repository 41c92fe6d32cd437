"""Both SDKs against a server that none of us wrote: what it reports is what is booked, to the nano-dollar, once a call.

The prices are genai-prices' own reading of the server's own words, not ours.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from decimal import ROUND_CEILING
from typing import Any

import pytest
from genai_prices.types import ExtractedUsage
from litellm_server import JSON_TEXT, KEY, PATHS, TEXT, LitellmServer, model_for
from pydantic import BaseModel

from swarm_infrastructure import (
    LLMClient,
    ModelError,
    ModelUnavailableError,
    OpenAIClient,
    Prices,
    RetryPolicy,
    Settings,
    Spender,
    Submission,
    SwarmInfrastructure,
    TokenUsage,
    Work,
    job_board,
)
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.cost_manager import Entry, audit_money
from swarm_infrastructure.errors import RateLimitedError
from swarm_infrastructure.llm import AnthropicClient, LLMRequest, LLMResult

DIALECTS = [*PATHS]
JOBS = job_board("jobs")
PROMPT = "Is it news that the bridge over the river is closed from Monday on?"
ONCE_MORE = RetryPolicy(max_retries=1, base_delay=0.0)
NANO = 10**9
Open = Callable[..., AbstractAsyncContextManager[SwarmInfrastructure]]


class Verdict(BaseModel):
    score: int
    why: str


def client_of(dialect: str, server: LitellmServer, key: str = KEY) -> Any:
    if dialect == "anthropic":
        return AnthropicClient(key, server.url)
    return OpenAIClient(key, f"{server.url}/v1", api="responses" if dialect == "openai-responses" else "chat")


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def client(dialect: str, server: LitellmServer) -> AsyncIterator[Any]:
    client = client_of(dialect, server)
    yield client
    await client.aclose()


@pytest.fixture
async def open_swarm(redis_server: Any) -> Open:
    """Opens a swarm; at its end its items and its money are audited."""
    namespace = "t" + secrets.token_hex(6)
    settings = Settings(redis_url=redis_server.url, namespace=namespace, shutdown_grace_s=5)

    @asynccontextmanager
    async def connect(llm: LLMClient | dict[str, LLMClient]) -> AsyncIterator[SwarmInfrastructure]:
        async with SwarmInfrastructure(JOBS, settings, llm=llm) as swarm:
            yield swarm
            report = await audit(swarm.blackboard.store, namespace, JOBS.name)
            assert report.clean, report.breaches
            assert await audit_money(swarm.cost_manager.ledger) == []
            left = (await swarm.cost_manager.ledger.reservations()).values()
            assert [row for row in left if row[0] in ("open", "sent")] == []

    return connect


async def given_work(swarm: SwarmInfrastructure, *ids: str) -> list[Work]:
    """Claimed items in an agent's hands."""
    await swarm.blackboard.submit(*(Submission(id=each, section="jobs", payload={}) for each in ids))
    claimed = await swarm.blackboard.claim("jobs", "ada", most=len(ids))
    return [Work(each, swarm.blackboard.leases.keep(each.claim), swarm, role="reader") for each in claimed]


async def booked(swarm: SwarmInfrastructure) -> list[Entry]:
    return [entry async for entry in swarm.cost_manager.ledger.entries()]


def asked_for(dialect: str, kind: str, **options: Any) -> LLMRequest:
    return LLMRequest(model=model_for(dialect, kind), prompt=PROMPT, max_output_tokens=200, **options)


async def streamed(client: LLMClient, request: LLMRequest) -> tuple[str, LLMResult]:
    chunks = [chunk async for chunk in client.stream(request)]
    assert len(chunks) > 3, "it came in pieces"
    assert chunks[-1].result is not None
    return "".join(chunk.text for chunk in chunks), chunks[-1].result


def as_counted(told: ExtractedUsage) -> tuple[int, int, int]:
    """Input, output, and input from the cache, by genai-prices."""
    usage = told.usage
    return usage.input_tokens or 0, usage.output_tokens or 0, usage.cache_read_tokens or 0


def as_read(usage: TokenUsage) -> tuple[int, int, int]:
    return usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens


def nano(told: ExtractedUsage) -> int:
    """What genai-prices takes the server's report to cost."""
    return int((told.calc_price().total_price * NANO).to_integral_value(ROUND_CEILING))


def estimate(request: LLMRequest) -> int:
    return Prices().estimate(request.model, request.estimated_input_tokens(), 200, cache_write=True)


# -- the clients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "counted", "long"])
async def test_an_answer_has_the_usage_that_the_server_reports(
    dialect: str, client: Any, server: LitellmServer, kind: str
) -> None:
    result = await client.generate(asked_for(dialect, kind))

    assert server.calls == 1
    assert result.text == (JSON_TEXT if kind == "counted" else TEXT)
    assert (result.model, result.stop_reason, result.usage_estimated) == (model_for(dialect, kind), "stop", False)
    assert as_read(result.usage) == as_counted(server.reported(dialect, kind, PROMPT))
    known = {"plain": (10, 20, 0), "counted": (3001, 77, 2048), "long": (300_001, 777, 120_003)}
    assert as_read(result.usage) == known[kind]
    assert result.usage.reasoning_tokens == (41 if kind == "counted" and dialect != "anthropic" else 0)


async def test_a_streamed_answer_has_the_usage_that_the_stream_ends_with(
    dialect: str, client: Any, server: LitellmServer
) -> None:
    text, result = await streamed(client, asked_for(dialect, "plain"))

    assert server.calls == 1
    assert (text, result.text, result.stop_reason, result.usage_estimated) == (TEXT, TEXT, "stop", False)
    assert as_read(result.usage) == as_counted(server.reported(dialect, "plain", PROMPT, stream=True))
    assert result.usage.prompt_tokens > 10 > 1 < result.usage.completion_tokens


async def test_an_answer_is_read_into_its_schema(dialect: str, client: Any, server: LitellmServer) -> None:
    result = await client.generate(asked_for(dialect, "counted", schema=Verdict))

    assert result.parsed == Verdict(score=7, why="new")
    assert server.calls == 1


async def fault_of(client: LLMClient, request: LLMRequest, *, stream: bool) -> Any:
    with pytest.raises((ModelError, ModelUnavailableError)) as caught:
        await (streamed(client, request) if stream else client.generate(request))
    return caught.value


@pytest.mark.parametrize("stream", [False, True])
async def test_each_fault_says_what_to_do_after_one_request(
    dialect: str, client: Any, server: LitellmServer, stream: bool
) -> None:
    busy = await fault_of(client, asked_for(dialect, "busy"), stream=stream)
    assert (type(busy), busy.may_be_paid, busy.usage_so_far) == (RateLimitedError, False, None)

    broken = await fault_of(client, asked_for(dialect, "broken"), stream=stream)
    assert (type(broken), broken.may_be_paid, broken.usage_so_far) == (ModelUnavailableError, True, None)

    unknown = await fault_of(client, asked_for(dialect, "not served"), stream=stream)
    assert (type(unknown), unknown.kind, unknown.usage) == (ModelError, "request", None)

    stranger = client_of(dialect, server, key="sk-somebody-elses")
    refused = await fault_of(stranger, asked_for(dialect, "plain"), stream=stream)
    await stranger.aclose()
    assert (type(refused), refused.kind, refused.usage) == (ModelError, "auth", None)

    assert server.calls == 4


# -- the whole runtime ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "counted", "long"])
async def test_an_answer_is_settled_once_at_genai_prices_cost(
    dialect: str, client: Any, server: LitellmServer, open_swarm: Open, kind: str
) -> None:
    async with open_swarm(client) as swarm:
        [work] = await given_work(swarm, "a")
        answered = await work.ask("content_analysis", PROMPT, model=model_for(dialect, kind), max_output_tokens=200)
        again = await work.ask("content_analysis", PROMPT, model=model_for(dialect, kind), max_output_tokens=200)

        assert server.calls == 1
        [entry] = await booked(swarm)
        told = server.reported(dialect, kind, PROMPT)
        assert (entry.kind, entry.usd, entry.requests) == ("settled", nano(told), 1)
        assert entry.tokens == sum(as_counted(told)[:2])
        assert entry.facts["model"] == model_for(dialect, kind)
        assert answered.cost == nano(told) / NANO
        assert (again.text, again.recorded, again.cost) == (answered.text, True, 0.0)


async def test_a_streamed_call_is_settled_once_at_genai_prices_cost(
    dialect: str, client: Any, server: LitellmServer, open_swarm: Open
) -> None:
    request = asked_for(dialect, "plain")
    async with open_swarm(client) as swarm:
        size = {"input_tokens": request.estimated_input_tokens(), "max_output_tokens": 200}
        async with swarm.cost_manager.call(Spender(agent_id="ada"), request.model, **size) as call:
            await call.send()
            _, result = await streamed(client, request)
            await call.settle(result.usage)

        assert server.calls == 1
        [entry] = await booked(swarm)
        told = server.reported(dialect, "plain", PROMPT, stream=True)
        assert (entry.kind, entry.usd, entry.requests) == ("settled", nano(told), 1)
        assert 0 < entry.usd < entry.reserved


async def test_a_stream_that_is_left_is_booked_once_at_the_estimate(
    dialect: str, client: Any, server: LitellmServer, open_swarm: Open
) -> None:
    request = asked_for(dialect, "plain")
    async with open_swarm(client) as swarm:
        size = {"input_tokens": request.estimated_input_tokens(), "max_output_tokens": 200}
        async with swarm.cost_manager.call(Spender(agent_id="ada"), request.model, cache_write=True, **size) as call:
            await call.send()
            pieces = client.stream(request)
            assert (await anext(pieces)).text
            await pieces.aclose()

        assert server.calls == 1
        [entry] = await booked(swarm)
        assert (entry.usd, entry.requests) == (estimate(request), 1)
        assert entry.facts["unknown"]


@pytest.mark.parametrize("kind", ["busy", "broken", "not served", "wrong key"])
async def test_a_call_that_fails_is_settled_once_for_nothing_unless_it_may_be_paid(
    dialect: str, server: LitellmServer, open_swarm: Open, kind: str
) -> None:
    client = client_of(dialect, server, key="sk-somebody-elses" if kind == "wrong key" else KEY)
    request = asked_for(dialect, "plain" if kind == "wrong key" else kind)
    attempts = 2 if kind in ("busy", "broken") else 1  # the others are not asked again
    async with open_swarm(client) as swarm:
        [work] = await given_work(swarm, "a")
        with pytest.raises((ModelError, ModelUnavailableError)):
            await work.ask("content_analysis", PROMPT, model=request.model, max_output_tokens=200, retry=ONCE_MORE)

        entries = await booked(swarm)
        assert server.calls == len(entries) == attempts
        assert [(entry.kind, entry.requests) for entry in entries] == [("settled", 1)] * attempts
        assert {entry.usd for entry in entries} == {estimate(request) if kind == "broken" else 0}
        assert {bool(entry.facts.get("unknown")) for entry in entries} == {kind == "broken"}
    await client.aclose()


async def test_a_repair_is_a_second_call_with_a_settlement_of_its_own(
    dialect: str, client: Any, server: LitellmServer, open_swarm: Open
) -> None:
    async with open_swarm(client) as swarm:
        [work] = await given_work(swarm, "a")
        with pytest.raises(ModelError, match="does not fit Verdict") as refused:  # prose, twice
            await work.ask("content_analysis", PROMPT, model=model_for(dialect, "plain"), schema=Verdict)

        assert refused.value.kind == "schema"
        entries = await booked(swarm)
        assert server.calls == len(entries) == 2
        assert {entry.usd for entry in entries} == {nano(server.reported(dialect, "plain", PROMPT))}


async def test_many_calls_at_once_are_each_settled_once(server: LitellmServer, open_swarm: Open) -> None:
    clients = {"openai": client_of("openai-chat", server), "anthropic": client_of("anthropic", server)}
    dialects, paid = ("openai-chat", "anthropic"), ("plain", "counted", "long")
    questions = [(dialect, kind, n) for dialect in dialects for kind in (*paid, "busy") for n in range(4)]
    async with open_swarm(clients) as swarm:
        works = await given_work(swarm, *(f"i{n}" for n in range(len(questions))))
        answers = await asyncio.gather(
            *(
                work.ask("content_analysis", f"{PROMPT} ({n})", model=model_for(dialect, kind), retry=ONCE_MORE)
                for work, (dialect, kind, n) in zip(works, questions, strict=True)
            ),
            return_exceptions=True,
        )

        faults = [answer for answer in answers if isinstance(answer, BaseException)]
        assert [type(fault) for fault in faults] == [RateLimitedError] * 8, faults
        entries = await booked(swarm)
        assert server.calls == len(entries) == 24 + 2 * 8
        assert len({entry.reservation for entry in entries}) == len(entries)
        owed = sum(4 * nano(server.reported(dialect, kind, PROMPT)) for dialect in dialects for kind in paid)
        account = (await swarm.cost_manager.ledger.accounts("swarm"))["total"]
        assert sum(entry.usd for entry in entries) == account.settled == owed
        assert account.held == 0
    for client in clients.values():
        await client.aclose()
