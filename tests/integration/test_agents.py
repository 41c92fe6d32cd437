"""Agents at work: both ways of writing one, slots, failures, lost claims, and the way out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest
from examples.agent_implementation import MyAgent
from pydantic import BaseModel

from swarm_infrastructure import (
    NEWS,
    BaseAgent,
    BlackboardSection,
    Claims,
    ContentStatus,
    Item,
    NewsItem,
    Outcome,
    RetryPolicy,
    Settings,
    Submission,
    SwarmInfrastructure,
    Work,
    job_board,
)
from swarm_infrastructure.agents import Worker
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import ConfigurationError, InvalidInputError, UnknownSectionError, WrongStatusError

SOON_S = 20.0
JOBS = job_board("jobs", "jobs", "more", lease_s=2.0, max_attempts=3)


def settings_for(redis_server: Any, **facts: Any) -> Settings:
    return Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=5, **facts)


@pytest.fixture
async def swarm(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    async with SwarmInfrastructure(JOBS, settings_for(redis_server)) as swarm:
        yield swarm
        report = await audit(swarm.blackboard.store, swarm.settings.namespace, swarm.board.name)
        assert report.clean, report.breaches


async def submit(swarm: SwarmInfrastructure, *ids: str, section: str = "jobs", **facts: Any) -> None:
    await swarm.blackboard.submit(*(Submission(id=each, section=section, payload={"n": each, **facts}) for each in ids))


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON_S):
        while not await condition():
            await asyncio.sleep(0.01)


async def status_of(swarm: SwarmInfrastructure, item_id: str) -> str:
    return (await swarm.blackboard.get(item_id)).status


async def running(swarm: SwarmInfrastructure, *agents: BaseAgent) -> tuple[Worker, asyncio.Task[None]]:
    worker = Worker(swarm, agents)
    return worker, asyncio.create_task(worker.run(signals=False))


async def test_an_agent_that_overrides_process_takes_items_to_their_end(swarm: SwarmInfrastructure) -> None:
    class Upper(BaseAgent):
        claims = Claims("jobs", batch=3)

        async def process(self, item: Item, work: Work) -> Outcome:
            return work.done({"upper": item.payload["n"].upper()}, patch={"seen": True})

    await submit(swarm, "a", "b", "c", "d")
    agent = Upper("upper-1", swarm=swarm)
    await agent.start()
    await until(lambda: all_done(swarm, 4))
    await agent.stop()

    item = await swarm.blackboard.get("d")
    assert item.result == {"upper": "D"}
    assert item.payload == {"n": "d", "seen": True}
    assert await swarm.blackboard.agents.find("upper-1") is None  # it left in order


async def all_done(swarm: SwarmInfrastructure, n: int, section: str = "jobs") -> bool:
    stats = await swarm.blackboard.get_section_stats(section)
    return bool(stats["by_status"].get("done", 0) == n)


async def test_the_product_documents_agent_runs_as_it_is_written_there(redis_server: Any) -> None:
    async with SwarmInfrastructure(NEWS, settings_for(redis_server)) as swarm:
        board = swarm.blackboard
        news = NewsItem(id="news_001", title="Breaking News", content="Content here...", source="NewsSource")
        await board.write(
            section=BlackboardSection.RAW_FEED, item_id=news.id, data=news.to_dict(), check_duplicate=True
        )
        agent = MyAgent("my_agent_1", swarm)
        await agent.start()

        async def debating() -> bool:
            return bool(await board.query_by_status(BlackboardSection.DEBATE_QUEUE, ContentStatus.DEBATING))

        await until(debating)
        await agent.stop()
        item = await board.get("news_001")
        assert item.result == {"words": 2}
        events = await board.history("news_001")
        assert [event.kind for event in events] == ["submitted", "claimed", "completed"]
        assert len(events[2].trace) == 32  # the change carries the trace that was open


async def test_an_agent_without_a_free_slot_takes_back_what_a_dead_one_held(swarm: SwarmInfrastructure) -> None:
    go_on = asyncio.Event()

    class Busy(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> None:
            await go_on.wait()

    await submit(swarm, "a")
    agent = Busy("busy-1", swarm=swarm)
    await agent.start()

    async def is_busy() -> bool:
        return await status_of(swarm, "a") == "active"

    await until(is_busy)
    await submit(swarm, "b")
    [dead] = await swarm.blackboard.claim("jobs", "dead-1", lease_s=0.1)
    assert dead.item.id == "b"

    async def offered_again() -> bool:
        return await status_of(swarm, "b") == "waiting"

    await until(offered_again)
    go_on.set()
    await until(lambda: all_done(swarm, 2))
    await agent.stop()


async def test_no_more_items_are_in_hand_than_there_are_slots(swarm: SwarmInfrastructure) -> None:
    peak, now = 0, 0
    gate = asyncio.Event()

    class Slow(BaseAgent):
        claims = Claims("jobs", batch=10)
        slots = 3

        async def process(self, item: Item, work: Work) -> None:
            nonlocal peak, now
            now += 1
            peak = max(peak, now)
            await gate.wait()
            now -= 1

    await submit(swarm, *(f"i{n}" for n in range(8)))
    agent = Slow("slow-1", swarm=swarm)
    await agent.start()

    async def three_at_work() -> bool:
        return now == 3

    await until(three_at_work)
    assert len(await swarm.blackboard.query_by_agent("slow-1")) == 3
    gate.set()
    await until(lambda: all_done(swarm, 8))
    await agent.stop()
    assert peak == 3


async def test_where_there_may_be_more_the_next_claim_leaves_before_handlers_begin(
    swarm: SwarmInfrastructure, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, claims_asked, seen = swarm.blackboard.store, 0, []
    call = store.call

    async def counted(function: str, *args: Any, **facts: Any) -> Any:
        nonlocal claims_asked
        claims_asked += function == "claim"
        return await call(function, *args, **facts)

    monkeypatch.setattr(store, "call", counted)

    class Noting(BaseAgent):
        claims = Claims("jobs", batch=2)
        slots = 4

        async def process(self, item: Item, work: Work) -> None:
            seen.append(claims_asked)

    await submit(swarm, *(f"i{n}" for n in range(4)))
    agent = Noting("noting-1", swarm=swarm)
    await agent.start()
    await until(lambda: all_done(swarm, 4))
    await agent.stop()
    assert seen[:2] == [2, 2]


@pytest.mark.parametrize("leaves", ["stops", "hands back"])
async def test_a_hand_that_was_dealt_and_not_begun_is_not_kept_by_an_agent_that(
    swarm: SwarmInfrastructure, monkeypatch: pytest.MonkeyPatch, leaves: str
) -> None:
    store, claims_asked = swarm.blackboard.store, 0
    call, leaving = store.call, asyncio.get_running_loop().create_future()

    async def watched(function: str, *args: Any, **facts: Any) -> Any:
        nonlocal claims_asked
        claims_asked += function == "claim"
        if claims_asked == 2 and not leaving.done():  # the first hand was dealt
            assert agent._runner is not None
            assert (agent._runner.in_hand, begun) == (2, [])
            leave = agent.stop() if leaves == "stops" else agent._runner.hand_back_all()
            leaving.set_result(asyncio.create_task(leave))
        return await call(function, *args, **facts)

    monkeypatch.setattr(store, "call", watched)
    begun: list[str] = []

    class Noting(BaseAgent):
        claims = Claims("jobs", batch=2)
        slots = 4

        async def process(self, item: Item, work: Work) -> None:
            begun.append(item.id)
            await asyncio.sleep(0.05)  # its work, for which who stops waits

    await submit(swarm, *(f"i{n}" for n in range(4)))
    agent = Noting("noting-1", swarm=swarm)
    await agent.start()
    await (await leaving)
    if leaves == "stops":
        assert [await status_of(swarm, f"i{n}") for n in range(4)] == ["done", "done", "waiting", "waiting"]
        return
    await until(lambda: all_done(swarm, 4))
    await agent.stop()
    assert (await swarm.blackboard.get("i0")).version > 3  # claimed, handed back, claimed, completed


async def test_a_handler_that_raises_is_tried_again_and_then_quarantined(swarm: SwarmInfrastructure) -> None:
    starts = 0

    class Broken(BaseAgent):
        claims = Claims("jobs")
        retry = RetryPolicy(base_delay=0.01, max_delay=0.02)

        async def process(self, item: Item, work: Work) -> None:
            nonlocal starts
            starts += 1
            raise ZeroDivisionError("no luck")

    await submit(swarm, "bad")
    agent = Broken("broken-1", swarm=swarm)
    await agent.start()
    await until(lambda: has_status(swarm, "bad", "quarantined"))
    await agent.stop()

    assert starts == 3  # max_attempts, exactly
    errors = await swarm.blackboard.errors("bad")
    assert [error["error"] for error in errors] == ["ZeroDivisionError: no luck"] * 3


async def has_status(swarm: SwarmInfrastructure, item_id: str, status: str) -> bool:
    return await status_of(swarm, item_id) == status


class Order(BaseModel):
    n: str
    amount: int


async def test_a_payload_that_is_not_what_the_handler_takes_goes_to_quarantine_at_once(
    swarm: SwarmInfrastructure,
) -> None:
    class Orders(BaseAgent):
        claims = Claims("jobs", batch=2)

        async def process(self, order: Order, work: Work) -> Outcome:
            return work.done({"amount": order.amount})

    await submit(swarm, "good", amount=3)
    await submit(swarm, "bad", amount="many")
    agent = Orders("orders-1", swarm=swarm)
    await agent.start()
    await until(lambda: has_status(swarm, "bad", "quarantined"))
    await until(lambda: has_status(swarm, "good", "done"))
    await agent.stop()

    assert (await swarm.blackboard.get("good")).result == {"amount": 3}
    [error] = await swarm.blackboard.errors("bad")
    assert "amount" in error["error"]
    assert "Order" in error["error"]


async def test_an_outcome_that_the_board_refuses_is_a_failed_attempt_and_not_a_lost_item(
    swarm: SwarmInfrastructure,
) -> None:
    class Wrong(BaseAgent):
        claims = Claims("jobs")
        retry = RetryPolicy(base_delay=60, max_delay=60)

        async def process(self, item: Item, work: Work) -> Any:
            return "finished"  # no outcome

    await submit(swarm, "a")
    agent = Wrong("wrong-1", swarm=swarm)
    await agent.start()

    async def failed_once() -> bool:
        return len(await swarm.blackboard.errors("a")) == 1

    await until(failed_once)
    await agent.stop()
    item = await swarm.blackboard.get("a")
    assert (item.status, item.attempts, item.holder) == ("waiting", 1, "")


async def test_stopping_hands_back_what_does_not_finish_within_the_grace(swarm: SwarmInfrastructure) -> None:
    begun = asyncio.Event()

    class Endless(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> None:
            begun.set()
            await asyncio.Event().wait()

    await submit(swarm, "a")
    agent = Endless("endless-1", swarm=swarm)
    await agent.start()
    async with asyncio.timeout(SOON_S):
        await begun.wait()
    await agent.stop(grace_s=0)

    item = await swarm.blackboard.get("a")
    assert (item.status, item.holder, item.attempts, item.crashes) == ("waiting", "", 0, 0)
    [again] = await swarm.blackboard.claim("jobs", "other-1")  # at once, not when a lease ends
    assert again.item.id == "a"
    await swarm.blackboard.complete(again.claim)


async def test_a_worker_finishes_what_is_in_hand_when_it_is_told_to_stop(swarm: SwarmInfrastructure) -> None:
    begun, finish = asyncio.Event(), asyncio.Event()

    class Steady(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> Outcome:
            begun.set()
            await finish.wait()
            return work.done({"by": self.agent_id})

    await submit(swarm, "a", "b")
    worker, task = await running(swarm, Steady("steady-1", swarm=swarm))
    async with asyncio.timeout(SOON_S):
        await begun.wait()
    worker.tell_to_stop()
    await asyncio.sleep(0)
    finish.set()
    async with asyncio.timeout(SOON_S):
        await task

    assert await status_of(swarm, "a") == "done"
    assert await status_of(swarm, "b") == "waiting"  # no new claim after it was told


async def test_a_claim_that_is_taken_away_stops_its_handler_and_nothing_it_says_counts(
    swarm: SwarmInfrastructure,
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Stubborn(BaseAgent):
        claims = Claims("jobs")
        starts: ClassVar[int] = 0

        async def process(self, item: Item, work: Work) -> Outcome:
            type(self).starts += 1
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return work.done({"too": "late"})

    await submit(swarm, "a")
    agent = Stubborn("stubborn-1", swarm=swarm)
    await agent.start()
    async with asyncio.timeout(SOON_S):
        await begun.wait()
        assert await swarm.blackboard.agents.revoke("stubborn-1", agent="operator") == 1
        await ended.wait()  # the next renewal is refused
    [again] = await swarm.blackboard.claim("jobs", "other-1")
    await swarm.blackboard.complete(again.claim, result={"by": "other"})
    await agent.stop()
    assert (await swarm.blackboard.get("a")).result == {"by": "other"}
    assert Stubborn.starts == 1


async def test_a_cycle_that_leaves_a_claim_open_has_failed_it(swarm: SwarmInfrastructure) -> None:
    class Forgetful(BaseAgent):
        async def _process_cycle(self) -> None:
            for item in await self.swarm.blackboard.query_by_status("jobs", "waiting"):
                await self.swarm.claim_task(self.agent_id, "jobs", item["id"])

    await submit(swarm, "a")
    agent = Forgetful("forgetful-1", swarm=swarm)
    await agent.start()

    async def failed_once() -> bool:
        return bool(await swarm.blackboard.errors("a"))

    await until(failed_once)
    await agent.stop()
    item = await swarm.blackboard.get("a")
    assert item.holder == ""
    assert item.attempts == 1


async def test_a_paused_role_claims_nothing_until_it_is_resumed(swarm: SwarmInfrastructure) -> None:
    class Quick(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> None:
            return None

    await swarm.blackboard.agents.pause("role:quick", reason="lunch")
    agent = Quick("quick-1", swarm=swarm)
    await agent.start()
    await submit(swarm, "a")

    async def shown_paused() -> bool:
        found = await swarm.blackboard.agents.find("quick-1")
        return found is not None and found.status == "paused" and found.gate == "lunch"

    await until(shown_paused)
    assert await status_of(swarm, "a") == "waiting"
    await swarm.blackboard.agents.resume("role:quick")
    await until(lambda: all_done(swarm, 1))
    await agent.stop()


async def test_agents_of_several_sections_take_the_first_in_line_wherever_it_stands(swarm: SwarmInfrastructure) -> None:
    order: list[str] = []

    class Both(BaseAgent):
        claims = Claims("jobs", "more")

        async def process(self, item: Item, work: Work) -> None:
            order.append(item.id)

    await submit(swarm, "j1")
    await submit(swarm, "m1", section="more")
    await submit(swarm, "j2")
    agent = Both("both-1", swarm=swarm)
    await agent.start()
    await until(lambda: all_done(swarm, 2))
    await until(lambda: all_done(swarm, 1, "more"))
    await agent.stop()
    assert order == ["j1", "m1", "j2"]


@pytest.mark.parametrize(
    ("claims", "error"),
    [
        (Claims("nowhere"), UnknownSectionError),
        (Claims("jobs", statuses=("done",)), WrongStatusError),
        (None, ConfigurationError),
    ],
)
async def test_an_agent_that_claims_what_the_board_does_not_have_does_not_start(
    swarm: SwarmInfrastructure, claims: Any, error: type[Exception]
) -> None:
    class Lost(BaseAgent):
        async def process(self, item: Item, work: Work) -> None:
            return None

    Lost.claims = claims
    with pytest.raises(error):
        await Lost("lost-1", swarm=swarm).start()
    assert await swarm.blackboard.agents.find("lost-1") is None


def test_claims_name_at_least_one_section_and_a_sensible_batch() -> None:
    with pytest.raises(InvalidInputError, match="no section"):
        Claims()
    with pytest.raises(InvalidInputError, match="batch"):
        Claims("jobs", batch=0)


async def test_heartbeats_show_who_lives(redis_server: Any) -> None:
    class Idle(BaseAgent):
        claims = Claims("jobs")
        capabilities = ("maths",)

        async def process(self, item: Item, work: Work) -> None:
            return None

    settings = settings_for(redis_server, heartbeat_s=0.05, dead_after_s=1)
    async with SwarmInfrastructure(JOBS, settings) as swarm:
        worker, task = await running(swarm, Idle("idle-1", swarm=swarm))

        async def described() -> bool:
            found = await swarm.blackboard.agents.find("idle-1")
            return found is not None and "pid" in found.facts

        await until(described)
        found = await swarm.blackboard.agents.find("idle-1")
        assert found is not None
        assert (found.role, found.capabilities, found.status) == ("idle", ("maths",), "idle")
        worker.tell_to_stop()
        async with asyncio.timeout(SOON_S):
            await task


async def test_an_agent_that_takes_over_an_item_has_no_more_at_work_than_it_has_slots(
    swarm: SwarmInfrastructure,
) -> None:
    at_work, most, go = list[str](), 0, asyncio.Event()

    class One(BaseAgent):
        claims = Claims("jobs")
        slots = 1

        async def process(self, item: Item, work: Work) -> None:
            nonlocal most
            at_work.append(item.id)
            most = max(most, len(at_work))
            await go.wait()
            at_work.remove(item.id)

    async def waits_in_redis() -> bool:
        return any(queue.listening for queue in swarm.blackboard.claims._room._queues.values())

    async def has_it() -> bool:
        return at_work == ["given"]

    worker, run = await running(swarm, One("one", swarm=swarm))
    await until(waits_in_redis)
    await swarm.blackboard.submit(Submission(id="given", section="jobs", payload={}, delay_s=60.0))
    [runner] = worker.runners
    await runner._take_over("given")
    await until(has_it)
    await submit(swarm, "next")
    await asyncio.sleep(0.3)  # it would have been taken
    assert most == 1

    go.set()
    await until(lambda: all_done(swarm, 2))
    assert most == 1
    worker.tell_to_stop()
    await run
