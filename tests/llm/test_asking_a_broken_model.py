"""Asking while a model is down: its breaker opens for the whole fleet, the next model is asked, and the item waits unharmed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from given import clock_of, held_call
from test_asking import HUNDRED, JOBS, given_work, spent, until

from swarm_infrastructure import (
    BaseAgent,
    CircuitBreakerConfig,
    CircuitOpenError,
    Claims,
    ConfigurationError,
    Item,
    LLMClient,
    LLMRequest,
    LLMResult,
    ModelError,
    ModelUnavailableError,
    Outcome,
    Prices,
    ReplayError,
    RetryPolicy,
    Settings,
    Submission,
    SwarmInfrastructure,
    TierTable,
    Work,
)
from swarm_infrastructure.agents.asking import ask_together
from swarm_infrastructure.agents.asking import call as asking_call
from swarm_infrastructure.agents.asking.alone import ask
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.cost_manager import audit_money
from swarm_infrastructure.errors import RateLimitedError, StoreUnavailableError
from swarm_infrastructure.testing import FunctionLLM

TWO = TierTable({"balanced": ["gpt-6.1-terra", "gpt-6-luna"]})
ONE = TierTable({"balanced": ["gpt-6.1-terra"]})
NOW = RetryPolicy(base_delay=0.0)
RULES = CircuitBreakerConfig(failure_threshold=3, recovery_timeout=60, half_open_max_calls=1)
Open = Callable[..., AbstractAsyncContextManager[SwarmInfrastructure]]


class Models:
    """A client whose models can be down, one by one."""

    def __init__(self, *down: str) -> None:
        self.down, self.asked = set(down), list[str]()
        self.error: Callable[[str], Exception] = lambda model: ModelUnavailableError(model, "503", may_be_paid=False)
        self.client = FunctionLLM(self._answer)

    def _answer(self, request: LLMRequest) -> Any:
        self.asked.append(request.model)
        if request.model in self.down:
            raise self.error(request.model)
        return LLMResult(text="yes", model=request.model, usage=HUNDRED)


@pytest.fixture
async def open_swarm(redis_server: Any) -> Open:
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=5)

    @asynccontextmanager
    async def connect(llm: LLMClient, tiers: TierTable = ONE) -> AsyncIterator[SwarmInfrastructure]:
        async with SwarmInfrastructure(JOBS, settings, llm=llm, tiers=tiers, breaker=RULES) as swarm:
            yield swarm
            report = await audit(swarm.blackboard.store, settings.namespace, JOBS.name)
            assert report.clean, report.breaches
            assert await audit_money(swarm.cost_manager.ledger) == []

    return connect


async def state_of(swarm: SwarmInfrastructure, model: str = "gpt-6.1-terra") -> str:
    return (await swarm.failure_recovery.breaker_states.state(f"model:{model}")).state


async def broken(swarm: SwarmInfrastructure, work: Work) -> None:
    """Ask until the breaker opens: in the middle of the retries."""
    with pytest.raises(CircuitOpenError):
        await ask(work, "content_analysis", "Is it?", retry=NOW)


async def test_a_model_that_fails_in_a_row_is_asked_by_nobody_for_a_while(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client) as swarm, open_swarm(models.client) as elsewhere:
        await broken(swarm, await given_work(swarm))
        assert models.asked == ["gpt-6.1-terra"] * 3
        await elsewhere.blackboard.submit(Submission(id="b", section="jobs", payload={}))
        [claimed] = await elsewhere.blackboard.claim("jobs", "bob")
        work = Work(claimed, elsewhere.blackboard.leases.keep(claimed.claim), elsewhere)
        with pytest.raises(CircuitOpenError, match=r"model:gpt-6\.1-terra"):
            await work.ask("content_analysis", "And that?")
        assert len(models.asked) == 3
        assert await spent(swarm) == 0


async def test_a_probe_that_works_closes_it_again(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client) as swarm:
        work = await given_work(swarm)
        await broken(swarm, work)
        await clock_of(swarm.blackboard).advance(s=61)
        work = await retaken(swarm)
        models.down.clear()
        assert (await work.ask("content_analysis", "Is it?")).text == "yes"
        assert await state_of(swarm) == "closed"


async def test_one_probe_passes_at_once_and_one_that_fails_opens_it_again(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client) as swarm:
        await broken(swarm, await given_work(swarm))
        await clock_of(swarm.blackboard).advance(s=61)
        work, before = await retaken(swarm), len(models.asked)
        asked = [ask(work, "content_analysis", f"Is it {n}?", retry=NOW) for n in range(10)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(each, CircuitOpenError | ModelUnavailableError) for each in told)
        assert len(models.asked) == before + 1
        assert await state_of(swarm) == "open"


async def test_a_call_that_is_paid_and_works_forgets_the_failures_before_it(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client) as swarm:
        work = await given_work(swarm)
        for n in range(2):
            with pytest.raises(ModelUnavailableError):
                await ask(work, "content_analysis", f"Is it {n}?", retry=RetryPolicy(max_retries=0))
        models.down.clear()
        await work.ask("content_analysis", "Is it?")
        assert await swarm.failure_recovery.breakers() == []


@pytest.mark.parametrize(
    "error",
    [
        lambda model: RateLimitedError(model, "slow down", may_be_paid=False),
        lambda model: ModelError(model, "refusal", "no", usage=HUNDRED),
        lambda model: ModelError(model, "request", "bad"),
    ],
)
async def test_a_model_that_answers_or_asks_to_wait_is_not_broken(open_swarm: Open, error: Any) -> None:
    models = Models("gpt-6.1-terra")
    models.error = error
    async with open_swarm(models.client) as swarm:
        work = await given_work(swarm)
        for n in range(5):
            with pytest.raises((ModelError, ModelUnavailableError)):
                await ask(work, "content_analysis", f"Is it {n}?", retry=RetryPolicy(max_retries=0))
        assert await state_of(swarm) == "closed"


async def test_a_probe_that_says_nothing_of_the_model_gives_its_place_back(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client) as swarm:
        await broken(swarm, await given_work(swarm))
        await clock_of(swarm.blackboard).advance(s=61)
        work = await retaken(swarm)
        models.error = lambda model: RateLimitedError(model, "slow down", may_be_paid=False)
        with pytest.raises(RateLimitedError):
            await ask(work, "content_analysis", "Is it?", retry=RetryPolicy(max_retries=0))
        models.down.clear()
        assert (await work.ask("content_analysis", "Is it?")).text == "yes"


async def test_the_next_model_of_the_tier_is_asked_while_the_first_one_is_down(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client, TWO) as swarm:
        work = await given_work(swarm)
        first = await ask(work, "content_analysis", "Is it?", retry=NOW)
        assert (first.model, len(models.asked)) == ("gpt-6-luna", 4)
        second = await ask(work, "content_analysis", "And that?", retry=NOW)
        assert (second.model, len(models.asked)) == ("gpt-6-luna", 5)  # the first one was not asked


async def test_what_the_second_model_was_paid_for_is_not_paid_again_when_the_first_is_back(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client, TWO) as swarm:
        work = await given_work(swarm)
        await ask(work, "content_analysis", "Is it?", retry=NOW)
        models.down.clear()
        await swarm.failure_recovery.breaker_states.close("model:gpt-6.1-terra")
        again = await ask(work, "content_analysis", "Is it?", retry=NOW)
        assert (again.recorded, again.model) == (True, "gpt-6-luna")
        assert await spent(swarm) == Prices().cost("gpt-6-luna", HUNDRED)


async def test_a_model_that_was_named_has_no_substitute(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client, TWO) as swarm:
        work = await given_work(swarm)
        with pytest.raises(CircuitOpenError):
            await ask(work, "content_analysis", "Is it?", model="gpt-6.1-terra", retry=NOW)
        assert set(models.asked) == {"gpt-6.1-terra"}


async def test_several_items_in_one_call_stand_behind_the_same_breaker(open_swarm: Open) -> None:
    from clients import Verdict

    models = Models("gpt-6.1-terra")
    async with open_swarm(models.client) as swarm:
        await swarm.blackboard.submit(*(Submission(id=each, section="jobs", payload={}) for each in "ab"))
        works = [
            Work(each, swarm.blackboard.leases.keep(each.claim), swarm)
            for each in await swarm.blackboard.claim("jobs", "ada", most=2)
        ]
        with pytest.raises(CircuitOpenError):
            await ask_together(works, "content_analysis", ["Is it?", "And that?"], schema=Verdict, retry=NOW)
        assert len(models.asked) == 3
        assert await spent(swarm) == 0
        reservations = (await swarm.cost_manager.ledger.reservations()).values()
        assert [row for row in reservations if row[0] in ("open", "sent")] == []


async def test_an_item_whose_model_is_down_goes_back_unharmed_and_is_done_when_it_is_back(
    open_swarm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking_call, "RETRY", NOW)
    models = Models("gpt-6.1-terra")

    class Reader(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> Outcome:
            return work.done((await ask(work, "content_analysis", "Is it?", retry=NOW)).text)

    async with open_swarm(models.client) as swarm:
        await swarm.blackboard.submit(Submission(id="a", section="jobs", payload={}))
        agent = Reader("reader-1", swarm=swarm)
        await agent.start()

        async def handed_back() -> bool:
            return (await swarm.blackboard.history("a"))[-1].kind == "handed_back"

        await until(handed_back)
        item = await swarm.blackboard.get("a")
        assert (item.attempts, item.crashes, len(models.asked)) == (0, 0, 3)
        assert "stop_reason=breaker" in (await swarm.blackboard.history("a"))[-1].reason
        models.down.clear()
        await clock_of(swarm.blackboard).advance(s=75)

        async def done() -> bool:
            return (await swarm.blackboard.get("a")).status == "done"

        await until(done)
        await agent.stop()
        assert len(models.asked) == 4


async def test_a_replay_asks_no_model(open_swarm: Open) -> None:
    models = Models()
    async with open_swarm(models.client) as swarm:
        work = await given_work(swarm)
        first = await work.ask("content_analysis", "Is it?")
        copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a")
        claimed = await swarm.blackboard.claims.claim_item(copy_id, "bob")
        assert claimed is not None
        copy = Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm)
        assert (await copy.ask("content_analysis", "Is it?")).text == first.text
        with pytest.raises(ReplayError):
            await copy.ask("content_analysis", "Something new?")
        assert len(models.asked) == 1
        assert await spent(swarm) == Prices().cost("gpt-6.1-terra", HUNDRED)


async def retaken(swarm: SwarmInfrastructure, agent: str = "bob") -> Work:
    """The item again, after its lease has run out."""
    [claimed] = await swarm.blackboard.claim("jobs", agent)
    return Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm)


async def test_a_model_that_asks_for_a_long_wait_is_left_for_the_next_one(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    models.error = lambda model: RateLimitedError(model, "slow down", retry_after_s=3600.0, may_be_paid=False)
    async with open_swarm(models.client, TWO) as swarm:
        work = await given_work(swarm)
        for n in range(3):
            assert (await work.ask("content_analysis", f"Is it {n}?")).model == "gpt-6-luna"
        assert models.asked.count("gpt-6.1-terra") == 1  # then the fleet knew


async def test_an_item_whose_only_model_asks_to_wait_goes_back_unharmed(open_swarm: Open) -> None:
    models = Models("gpt-6.1-terra")
    models.error = lambda model: RateLimitedError(model, "slow down", retry_after_s=3600.0, may_be_paid=False)

    class Reader(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> Outcome:
            return work.done((await work.ask("content_analysis", "Is it?")).text)

    async with open_swarm(models.client) as swarm:
        await swarm.blackboard.submit(Submission(id="a", section="jobs", payload={}))
        agent = Reader("reader-1", swarm=swarm)
        await agent.start()

        async def handed_back() -> bool:
            return (await swarm.blackboard.history("a"))[-1].kind == "handed_back"

        await until(handed_back)
        await agent.stop()
        assert (await swarm.blackboard.get("a")).attempts == 0


@pytest.mark.parametrize("kind", ["auth", "quota"])
async def test_a_provider_that_does_not_let_us_in_is_left_for_the_next_one(open_swarm: Open, kind: str) -> None:
    models = Models("gpt-6.1-terra")
    models.error = lambda model: ModelError(model, kind, "no")
    async with open_swarm(models.client, TWO) as swarm:
        assert (await (await given_work(swarm)).ask("content_analysis", "Is it?")).model == "gpt-6-luna"


async def test_without_anybody_to_ask_nothing_is_booked_and_what_is_on_record_is_there(open_swarm: Open) -> None:
    models = Models()
    async with open_swarm(models.client) as swarm:
        work = await given_work(swarm)
        await work.ask("content_analysis", "Is it?")
        before = await spent(swarm)
        swarm._llm = {"nobody": models.client}  # as after a restart without the key
        assert (await work.ask("content_analysis", "Is it?")).recorded
        with pytest.raises(ConfigurationError):
            await work.ask("content_analysis", "And that?")
        assert await spent(swarm) == before
        assert not [row for row in (await swarm.cost_manager.ledger.reservations()).values() if row[0] == "sent"]


async def test_an_answer_in_hand_is_settled_when_redis_is_back_and_not_asked_for_again(
    open_swarm: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models()
    async with open_swarm(models.client) as swarm:
        work, ledger = await given_work(swarm), swarm.cost_manager.ledger
        settle, refusals = ledger.settle, [1, 2]

        async def late(*args: Any, **how: Any) -> Any:
            if refusals:
                refusals.pop()
                raise StoreUnavailableError("here", "it is away")
            return await settle(*args, **how)

        monkeypatch.setattr(ledger, "settle", late)
        assert (await work.ask("content_analysis", "Is it?")).text == "yes"
        assert len(models.asked) == 1
        assert await spent(swarm) == Prices().cost("gpt-6.1-terra", HUNDRED)


async def test_a_call_whose_caller_is_cancelled_before_it_left_costs_nothing(open_swarm: Open) -> None:
    models = Models()
    async with open_swarm(models.client) as swarm:
        work = await given_work(swarm)
        async with held_call(swarm.blackboard.store, "reserve") as (executed, let):
            task = asyncio.create_task(work.ask("content_analysis", "Is it?"))
            await executed.wait()
            task.cancel()
            let.set()
            await asyncio.gather(task, return_exceptions=True)
        assert (await spent(swarm), models.asked) == (0, [])


async def test_one_replay_among_several_items_does_not_keep_the_others_from_asking(open_swarm: Open) -> None:
    from clients import Verdict

    answers = FunctionLLM(
        lambda request: {"score": 1, "why": "x"} if "parts" not in (request.prompt or "") else {"parts": []}
    )
    async with open_swarm(answers) as swarm:
        work = await given_work(swarm)
        await work.ask("content_analysis", "Is it?", schema=Verdict)
        copy_id = await swarm.failure_recovery.steps.replay(swarm.blackboard, "a")
        claimed = await swarm.blackboard.claims.claim_item(copy_id, "ada")
        assert claimed is not None
        copy = Work(claimed, swarm.blackboard.leases.keep(claimed.claim), swarm, role="reader")
        told = await ask_together(
            [copy, work], "content_analysis", ["New?", "Is that?"], schema=Verdict, return_exceptions=True, retry=NOW
        )
        assert isinstance(told[0], ReplayError)
        assert told[1].parsed == Verdict(score=1, why="x")
