"""Asking a model for an item: the budget is asked first, each call is settled once, an answer is paid for once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from clients import Verdict
from model_server import ModelServer, Plan

from swarm_infrastructure import (
    BaseAgent,
    Budget,
    BudgetExceededError,
    Claims,
    Item,
    LLMClient,
    ModelError,
    ModelUnavailableError,
    OpenAIClient,
    Outcome,
    Prices,
    RetryPolicy,
    Settings,
    Spender,
    Submission,
    SwarmInfrastructure,
    TierTable,
    TokenUsage,
    UnknownPriceError,
    Work,
    job_board,
    with_infrastructure,
    with_retry_and_tracking,
)
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.cost_manager import audit_money
from swarm_infrastructure.testing import FakeLLM, FunctionLLM

SOON_S = 20.0
JOBS = job_board("jobs", lease_s=2.0)
TIERS = TierTable({"fast": ["gpt-6-luna"], "balanced": ["gpt-6.1-terra"], "premium": ["gpt-6.1-sol"]})
HUNDRED = TokenUsage(prompt_tokens=100, completion_tokens=100)
NOW = RetryPolicy(base_delay=0.0)
Open = Callable[..., AbstractAsyncContextManager[SwarmInfrastructure]]


@pytest.fixture
async def open_swarm(redis_server: Any) -> Open:
    """Opens swarms on one board; when the test has ended, its items and its money are audited."""
    namespace = "t" + secrets.token_hex(6)
    settings = Settings(redis_url=redis_server.url, namespace=namespace, shutdown_grace_s=5)

    @asynccontextmanager
    async def connect(llm: LLMClient, **facts: Any) -> AsyncIterator[SwarmInfrastructure]:
        async with SwarmInfrastructure(JOBS, settings, llm=llm, **{"tiers": TIERS, **facts}) as swarm:
            yield swarm
            report = await audit(swarm.blackboard.store, namespace, JOBS.name)
            assert report.clean, report.breaches
            assert await audit_money(swarm.cost_manager.ledger) == []
            assert [
                row for row in (await swarm.cost_manager.ledger.reservations()).values() if row[0] in ("open", "sent")
            ] == []

    return connect


async def given_work(swarm: SwarmInfrastructure, agent: str = "ada") -> Work:
    """A claimed item in an agent's hands."""
    await swarm.blackboard.submit(Submission(id="a", section="jobs", payload={}))
    [claimed] = await swarm.blackboard.claim("jobs", agent, most=1)
    return Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm, role="reader")


async def spent(swarm: SwarmInfrastructure, scope: str = "swarm") -> int:
    return (await swarm.cost_manager.ledger.accounts(scope))["total"].settled


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_an_answer_is_settled_at_its_price_in_every_scope(open_swarm: Open) -> None:
    async with open_swarm(FakeLLM(["yes"], usage=HUNDRED)) as swarm:
        work = await given_work(swarm)
        answered = await work.ask("content_analysis", "Is it?", max_output_tokens=200, tags=("election",))

        cost = Prices().cost("gpt-6.1-terra", HUNDRED)
        assert (answered.text, answered.cost, answered.recorded) == ("yes", cost / 1e9, False)
        for scope in ("swarm", "agent:ada", "role:reader", "task:a", "tier:balanced", "tag:election"):
            assert await spent(swarm, scope) == cost, scope


async def test_a_question_takes_two_round_trips_and_one_if_its_answer_is_on_record(
    open_swarm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_swarm(FakeLLM(["yes"], usage=HUNDRED)) as swarm:
        work, store, taken = await given_work(swarm), swarm.blackboard.store, list[str]()

        def counting(door: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **how: Any) -> Any:
                taken.append(str(args[0]))
                return door(*args, **how)

            return counted

        for name in ("call", "command", "commands"):
            monkeypatch.setattr(store, name, counting(getattr(store, name)))

        await work.ask("content_analysis", "Is it?")
        assert taken == ["reserve", "settle"]
        assert (await work.ask("content_analysis", "Is it?")).recorded
        assert taken == ["reserve", "settle", "reserve"]


async def test_asked_again_after_a_crash_the_answer_comes_from_the_record_and_costs_nothing(open_swarm: Open) -> None:
    model = FakeLLM([{"score": 7, "why": "new"}], usage=HUNDRED)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        first = await work.ask("content_analysis", "Judge.", schema=Verdict)
        await swarm.blackboard.hand_back(work.claim)  # another worker gets it
        [claimed] = await swarm.blackboard.claim("jobs", "bob", most=1)
        again = Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm)
        second = await again.ask("content_analysis", "Judge.", schema=Verdict)

        assert second.parsed == first.parsed == Verdict(score=7, why="new")
        assert (second.recorded, second.cost) == (True, 0.0)
        assert len(model.requests) == 1
        assert await spent(swarm) == Prices().cost("gpt-6.1-terra", HUNDRED)


@pytest.mark.parametrize("cache_s", [0.0, 3600.0])
async def test_of_two_who_ask_the_same_for_an_item_at_once_one_pays(open_swarm: Open, cache_s: float) -> None:
    model = FakeLLM(["1", "2"], usage=HUNDRED)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        answers = await asyncio.gather(*(work.ask("content_analysis", "Judge.", cache_s=cache_s) for _ in range(3)))

        assert [(each.text, each.recorded) for each in answers] == [("1", False), ("1", True), ("1", True)]
        assert await spent(swarm) == Prices().cost("gpt-6.1-terra", HUNDRED)


async def test_another_question_and_another_step_are_asked_anew(open_swarm: Open) -> None:
    model = FakeLLM(["1", "2", "3"], usage=HUNDRED)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        texts = [
            (await work.ask("content_analysis", "Judge.")).text,
            (await work.ask("content_analysis", "Judge again.")).text,
            (await work.ask("content_analysis", "Judge.", step="second opinion")).text,
        ]
        assert texts == ["1", "2", "3"]


async def test_nothing_is_sent_when_the_budget_has_too_little_left(open_swarm: Open) -> None:
    model = FakeLLM(["never"])
    async with open_swarm(model, budget=Budget(daily_limit="0.000001")) as swarm:
        work = await given_work(swarm)
        with pytest.raises(BudgetExceededError, match="swarm budget raise swarm --day") as refused:
            await work.ask("content_analysis", "Judge.")

        assert (refused.value.scope, refused.value.window, refused.value.unit) == ("swarm", "day", "usd")
        assert model.requests == []
        assert [each.who for each in await swarm.cost_manager.paused()] == ["agent:ada"]


async def test_nothing_is_sent_to_a_model_without_a_price(open_swarm: Open) -> None:
    model = FakeLLM(["never"])
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        with pytest.raises(UnknownPriceError, match="mystery-1"):
            await work.ask("content_analysis", "Judge.", model="mystery-1")
        assert model.requests == []


async def test_an_answer_that_does_not_fit_is_repaired_once_and_both_calls_are_paid(open_swarm: Open) -> None:
    model = FakeLLM(["{}", {"score": 7, "why": "new"}], usage=HUNDRED)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        answered = await work.ask("content_analysis", "Judge.", schema=Verdict)

        each = Prices().cost("gpt-6.1-terra", HUNDRED)
        assert answered.parsed == Verdict(score=7, why="new")
        assert answered.cost == 2 * each / 1e9
        assert await spent(swarm) == 2 * each


async def test_a_second_answer_that_does_not_fit_either_is_paid_and_refused(open_swarm: Open) -> None:
    async with open_swarm(FakeLLM(["{}", "{}"], usage=HUNDRED)) as swarm:
        work = await given_work(swarm)
        with pytest.raises(ModelError) as refused:
            await work.ask("content_analysis", "Judge.", schema=Verdict)
        assert refused.value.kind == "schema"
        assert await spent(swarm) == 2 * Prices().cost("gpt-6.1-terra", HUNDRED)


@pytest.mark.parametrize("kind", ["auth", "quota", "request"])
async def test_a_call_that_the_provider_refuses_costs_nothing_and_is_not_repeated(open_swarm: Open, kind: str) -> None:
    model = FakeLLM([ModelError("gpt-6.1-terra", kind, "no")])
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        with pytest.raises(ModelError):
            await work.ask("content_analysis", "Judge.")
        assert await spent(swarm) == 0
        assert len(model.requests) == 1


async def test_a_call_whose_outcome_nobody_knows_is_booked_at_the_estimate_and_asked_again(open_swarm: Open) -> None:
    model = FakeLLM([ModelUnavailableError("gpt-6.1-terra", "the line went dead"), "yes"], usage=HUNDRED)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        answered = await work.ask("content_analysis", "Judge.", max_output_tokens=200, retry=NOW)

        estimate = Prices().estimate("gpt-6.1-terra", model.requests[0].estimated_input_tokens(), 200, cache_write=True)
        assert answered.text == "yes"
        assert await spent(swarm) == estimate + Prices().cost("gpt-6.1-terra", HUNDRED)


async def test_a_stream_of_faults_ends_after_its_retries(open_swarm: Open) -> None:
    down = ModelUnavailableError("gpt-6.1-terra", "refused", may_be_paid=False)
    model = FakeLLM([down] * 3)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        with pytest.raises(ModelUnavailableError):
            await work.ask("content_analysis", "Judge.", retry=RetryPolicy(max_retries=2, base_delay=0.0))
        assert model.left == 0
        assert await spent(swarm) == 0


async def test_a_budget_that_downgrades_asks_the_next_cheaper_tier(open_swarm: Open) -> None:
    model = FakeLLM(["cheap"], usage=HUNDRED)
    async with open_swarm(model) as swarm:
        await swarm.cost_manager.set_budget(Budget(scope="tier:premium", daily_limit=0, on_exceeded="downgrade"))
        work = await given_work(swarm)
        await work.ask("script_final", "Write.")
        assert [request.model for request in model.requests] == ["gpt-6.1-terra"]
        assert (await spent(swarm, "tier:premium"), await spent(swarm, "tier:balanced") > 0) == (0, True)


class Asker(BaseAgent):
    """Asks one question about each item."""

    role = "asker"
    claims = Claims("jobs", batch=4)

    async def process(self, item: Item, work: Work) -> Outcome:
        answered = await work.ask("content_analysis", f"Judge {item.id}.", max_output_tokens=200)
        return work.done({"text": answered.text})


async def test_a_breach_pauses_the_agent_and_a_raised_cap_lets_it_finish(open_swarm: Open) -> None:
    price = Prices().cost("gpt-6.1-terra", HUNDRED)
    model = FunctionLLM(lambda request: "yes", usage=HUNDRED)
    async with open_swarm(model, budget=Budget(run_limit=f"{7 * price / 1e9:.9f}")) as swarm:
        ids = [f"i{n}" for n in range(10)]
        await swarm.blackboard.submit(*(Submission(id=each, section="jobs", payload={}) for each in ids))
        agent = Asker("asker-1", swarm=swarm)
        await agent.start()

        async def paused_at_rest() -> bool:
            items = await swarm.blackboard.find_many(ids)
            return bool(await swarm.cost_manager.paused()) and not any(item and item.holder for item in items)

        await until(paused_at_rest)
        items = [item for item in await swarm.blackboard.find_many(ids) if item]
        assert await spent(swarm) <= 7 * price
        assert {(item.attempts, item.crashes) for item in items if item.status == "waiting"} == {(0, 0)}
        [waiting, *_] = [item.id for item in items if item.status == "waiting"]
        kinds = [(event.kind, event.reason) for event in await swarm.blackboard.history(waiting)]
        assert all("stop_reason=budget" in reason for kind, reason in kinds if kind == "handed_back")

        await swarm.cost_manager.ledger.change_limit("swarm", "total", "usd", 100 * price)

        async def all_done() -> bool:
            return all(item and item.status == "done" for item in await swarm.blackboard.find_many(ids))

        await until(all_done)
        await agent.stop()
        assert await spent(swarm) == 10 * price, "no answer was paid for twice"
        assert len(model.requests) == 10


async def test_the_bill_of_a_real_endpoint_is_what_was_settled(open_swarm: Open, model_server: ModelServer) -> None:
    client = OpenAIClient("key", f"{model_server.url}/v1")
    model_server.plan(
        Plan(text="one", usage={"prompt": 1000, "completion": 50, "cached": 400}),
        Plan(status=429, error={"type": "rate_limit_error"}, headers={"retry-after": "0.05"}),
        Plan(text="two", usage={"prompt": 900, "completion": 60}),
    )
    async with open_swarm(client) as swarm:
        work = await given_work(swarm)
        await work.ask("content_analysis", "First?", retry=NOW)
        await work.ask("content_analysis", "Second?", retry=NOW)

        bill = model_server.bill["models"]["gpt-6.1-terra"]
        usages = [
            TokenUsage(prompt_tokens=1000, completion_tokens=50, cached_tokens=400),
            TokenUsage(prompt_tokens=900, completion_tokens=60),
        ]
        assert bill["calls"] == 2
        assert await spent(swarm) == sum(Prices().cost("gpt-6.1-terra", usage) for usage in usages)
        entries = [entry async for entry in swarm.cost_manager.ledger.entries() if entry.usd]
        assert len(entries) == 2
    await client.aclose()


async def test_a_cancelled_call_is_booked_at_the_estimate(open_swarm: Open) -> None:
    began = asyncio.Event()

    async def hang(_request: Any) -> str:
        began.set()
        await asyncio.Event().wait()
        return ""

    model = FunctionLLM(hang)
    async with open_swarm(model) as swarm:
        work = await given_work(swarm)
        asking = asyncio.create_task(work.ask("content_analysis", "Judge.", max_output_tokens=200))
        await began.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

        estimate = Prices().estimate("gpt-6.1-terra", model.requests[0].estimated_input_tokens(), 200, cache_write=True)
        assert await spent(swarm) == estimate


async def test_a_decorated_call_is_repeated_while_the_service_is_away_and_booked_once(open_swarm: Open) -> None:
    outcomes: list[Any] = [ModelUnavailableError("gpt-6-luna", "busy"), HUNDRED]
    async with open_swarm(FakeLLM([])) as swarm:

        @with_retry_and_tracking(swarm, "ada", "content_filter", "gpt-6-luna", retry=NOW)
        async def call() -> TokenUsage:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        assert await call() == HUNDRED
        assert await spent(swarm) == Prices().cost("gpt-6-luna", HUNDRED)
        assert (await swarm.cost_manager.get_agent_report("ada"))["calls"] == 1


async def test_a_decorated_function_is_given_a_connected_swarm(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_server.url)

    @with_infrastructure
    async def sections(swarm: SwarmInfrastructure, most: int) -> list[str]:
        return sorted(await swarm.blackboard.get_all_stats())[:most]

    assert await sections(1) == ["agent_state"]


async def test_what_dead_callers_left_is_swept_without_anybody_asking(open_swarm: Open) -> None:
    async with open_swarm(FakeLLM([])) as swarm:
        ledger = swarm.cost_manager.ledger
        await ledger.reserve(Spender(agent_id="ada"), 1000, 10, hold_s=0.001)
        await ledger.reserve(Spender(agent_id="ada"), 500, 5, hold_s=0.001, sent=True)

        async def swept() -> bool:
            await ledger.expire()
            return {row[0] for row in (await ledger.reservations()).values()} == {"released", "unknown"}

        await until(swept)
        assert await spent(swarm) == 500, "what was sent may have been billed"
