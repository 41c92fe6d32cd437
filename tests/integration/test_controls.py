"""Pause, resume, drain, shut down, emergency stop: for one agent, a role or all, whether they hear the message or not."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from given import in_time, until

from swarm_infrastructure import (
    BaseAgent,
    Claims,
    Item,
    Message,
    MessageType,
    Outcome,
    Settings,
    Submission,
    SwarmInfrastructure,
    Work,
    job_board,
)
from swarm_infrastructure.agents import Worker
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import InvalidInputError

JOBS = job_board("jobs", lease_s=5.0)
PATIENCE_S = 20.0


class Slow(BaseAgent):
    """Holds what it has until it is let go."""

    claims = Claims("jobs", batch=2)
    go_on: asyncio.Event
    began: int = 0

    async def process(self, item: Item, work: Work) -> Outcome:
        type(self).began += 1
        await self.go_on.wait()
        return work.done()


class Other(Slow):
    """Another role."""


@pytest.fixture
async def swarm(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    Slow.go_on, Slow.began, Other.began = asyncio.Event(), 0, 0
    settings = Settings(
        redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=0.5, heartbeat_s=1.0
    )
    async with SwarmInfrastructure(JOBS, settings) as swarm:
        yield swarm
        report = await audit(swarm.blackboard.store, settings.namespace, JOBS.name)
        assert report.clean, report.breaches


async def running(swarm: SwarmInfrastructure, *agents: BaseAgent) -> tuple[Worker, asyncio.Task[None]]:
    worker = Worker(swarm, agents)
    task = asyncio.create_task(worker.run(signals=False))

    async def here() -> bool:
        known = {agent.agent_id for agent in await swarm.blackboard.agents.list()}
        heard = swarm.message_bus._handlers.get(MessageType.EMERGENCY)
        return bool(heard) and known >= {agent.agent_id for agent in agents}

    await until(here, PATIENCE_S)
    return worker, task


async def given_jobs(swarm: SwarmInfrastructure, n: int) -> None:
    await swarm.blackboard.submit(*(Submission(id=f"j{i}", section="jobs", payload={}) for i in range(n)))


async def statuses(swarm: SwarmInfrastructure) -> dict[str, int]:
    found: dict[str, int] = (await swarm.blackboard.get_section_stats("jobs"))["by_status"]
    return {status: n for status, n in found.items() if n}


async def test_who_is_drained_finishes_what_it_has_takes_no_more_and_leaves(swarm: SwarmInfrastructure) -> None:
    await given_jobs(swarm, 4)
    _, working = await running(swarm, Slow("slow-1", swarm=swarm), Other("other-1", swarm=swarm))
    await until(lambda: Slow.began + Other.began == 4, PATIENCE_S)
    await swarm.blackboard.submit(Submission(id="late", section="jobs", payload={}))

    assert await swarm.controls.drain("role:slow") == ["slow-1"]
    Slow.go_on.set()

    async def only_the_other() -> bool:
        return [agent.agent_id for agent in await swarm.blackboard.agents.list()] == ["other-1"]

    await until(only_the_other, PATIENCE_S)
    assert not working.done()
    assert await swarm.controls.drain() == ["other-1"]
    await in_time(working, PATIENCE_S)  # nobody is left, so the worker ends
    assert (await statuses(swarm)).get("active") is None


async def test_who_is_shut_down_hands_back_what_it_does_not_finish_within_the_grace(swarm: SwarmInfrastructure) -> None:
    await given_jobs(swarm, 2)
    _, working = await running(swarm, Slow("slow-1", swarm=swarm))
    await until(lambda: Slow.began == 2, PATIENCE_S)

    assert await swarm.controls.shutdown("agent:slow-1") == ["slow-1"]

    await in_time(working, PATIENCE_S)
    assert await statuses(swarm) == {"waiting": 2}
    assert [item.attempts for item in await swarm.blackboard.queries.by_status("jobs", "waiting")] == [0, 0]


async def test_who_is_drained_has_all_the_time_it_needs_also_if_nobody_else_is_left(swarm: SwarmInfrastructure) -> None:
    await given_jobs(swarm, 2)
    _, working = await running(swarm, Slow("slow-1", swarm=swarm))
    await until(lambda: Slow.began == 2, PATIENCE_S)

    await swarm.controls.drain()
    await asyncio.sleep(1.0)  # twice the grace: what would end it has had its chance
    assert await statuses(swarm) == {"active": 2}
    [agent] = await swarm.blackboard.agents.list()
    assert agent.status == "working"
    Slow.go_on.set()

    await in_time(working, PATIENCE_S)
    assert await statuses(swarm) == {"done": 2}


async def test_one_agent_that_is_cut_off_takes_nobody_with_it(swarm: SwarmInfrastructure) -> None:
    class Cycling(BaseAgent):
        async def _process_cycle(self) -> None:
            await asyncio.Event().wait()

    class Careless(Slow):
        async def teardown(self) -> None:
            raise RuntimeError("no good end")

    await given_jobs(swarm, 2)
    worker, working = await running(swarm, Slow("slow-1", swarm=swarm), Cycling("cyc-1", swarm=swarm))
    await until(lambda: Slow.began == 2, PATIENCE_S)

    await swarm.controls.shutdown("agent:cyc-1")

    async def left() -> bool:
        return [agent.agent_id for agent in await swarm.blackboard.agents.list()] == ["slow-1"]

    await until(left, PATIENCE_S)
    assert await statuses(swarm) == {"active": 2}
    assert not working.done()
    Slow.go_on.set()
    worker.tell_to_stop()
    await in_time(working, PATIENCE_S)
    assert await statuses(swarm) == {"done": 2}
    assert await swarm.blackboard.agents.list() == []


async def test_a_teardown_that_raises_costs_the_others_nothing(swarm: SwarmInfrastructure) -> None:
    class Careless(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> Outcome:
            return work.done()

        async def teardown(self) -> None:
            raise RuntimeError("no good end")

    await given_jobs(swarm, 2)
    worker, working = await running(swarm, Slow("slow-1", swarm=swarm))
    await until(lambda: Slow.began == 2, PATIENCE_S)
    _, careless = await running(swarm, Careless("careless-1", swarm=swarm))

    await swarm.controls.shutdown("agent:careless-1")
    await in_time(careless, PATIENCE_S)

    assert await statuses(swarm) == {"active": 2}
    Slow.go_on.set()
    worker.tell_to_stop()
    await in_time(working, PATIENCE_S)
    assert await statuses(swarm) == {"done": 2}


async def test_an_order_to_one_who_died_is_not_for_the_next_one_of_its_name(swarm: SwarmInfrastructure) -> None:
    await swarm.blackboard.register_agent("slow-1", "slow")
    assert await swarm.blackboard.agents.order("shutdown") == ["slow-1"]  # which dies before it hears of it

    _, working = await running(swarm, Slow("slow-1", swarm=swarm))
    [(_, order)] = await swarm.blackboard.agents.beat_all([("slow-1", "slow", None)])

    assert order == ""
    await swarm.controls.shutdown()
    await in_time(working, PATIENCE_S)


async def test_an_emergency_on_one_board_does_not_stop_another(swarm: SwarmInfrastructure, redis_server: Any) -> None:
    await given_jobs(swarm, 1)
    worker, working = await running(swarm, Slow("slow-1", swarm=swarm))
    await until(lambda: Slow.began == 1, PATIENCE_S)
    async with SwarmInfrastructure(job_board("others"), swarm.settings) as other:
        heard: list[Message] = []
        swarm.message_bus.on(MessageType.EMERGENCY, heard.append)
        await other.controls.emergency_stop("fire next door")
        await until(lambda: heard, PATIENCE_S)

    assert await statuses(swarm) == {"active": 1}
    Slow.go_on.set()
    worker.tell_to_stop()
    await in_time(working, PATIENCE_S)
    assert (Slow.began, await statuses(swarm)) == (1, {"done": 1})


async def test_an_emergency_stop_cuts_off_the_cycle_of_an_agent_and_what_it_claimed_is_offered_again(
    swarm: SwarmInfrastructure,
) -> None:
    cut = 0

    class Cycling(BaseAgent):
        async def _process_cycle(self) -> None:
            nonlocal cut
            if not await self.swarm.claim_task(self.agent_id, "jobs", "j0"):
                return
            try:
                await Slow.go_on.wait()
            except asyncio.CancelledError:
                cut += 1
                raise
            await self.swarm.complete_task(self.agent_id, "jobs", "j0", {})

    await given_jobs(swarm, 1)
    worker, working = await running(swarm, Cycling("cyc-1", swarm=swarm))

    async def held() -> bool:
        return await statuses(swarm) == {"active": 1}

    await until(held, PATIENCE_S)
    await swarm.controls.emergency_stop("smoke")
    await until(lambda: cut == 1, PATIENCE_S)

    async def offered() -> bool:
        return await statuses(swarm) == {"waiting": 1}

    await until(offered, PATIENCE_S)
    Slow.go_on.set()
    await swarm.controls.resume()

    async def done() -> bool:
        return await statuses(swarm) == {"done": 1}

    await until(done, PATIENCE_S)
    worker.tell_to_stop()
    await in_time(working, PATIENCE_S)


async def test_an_order_that_nobody_heard_is_obeyed_with_the_next_heartbeat(swarm: SwarmInfrastructure) -> None:
    _, working = await running(swarm, Slow("slow-1", swarm=swarm))

    await swarm.blackboard.agents.order("shutdown", "*")  # without a message

    await in_time(working, PATIENCE_S)


async def test_an_order_is_for_those_who_are_there_not_for_those_who_come(swarm: SwarmInfrastructure) -> None:
    assert await swarm.controls.shutdown() == []
    _, working = await running(swarm, Slow("slow-1", swarm=swarm))
    [(_, order)] = await swarm.blackboard.agents.beat_all([("slow-1", "slow", None)])

    assert order == ""
    await swarm.controls.shutdown()
    await in_time(working, PATIENCE_S)
    _, again = await running(swarm, Slow("slow-1", swarm=swarm))  # the same id comes back, and stays
    [(_, order)] = await swarm.blackboard.agents.beat_all([("slow-1", "slow", None)])
    assert order == ""
    await swarm.controls.shutdown()
    await in_time(again, PATIENCE_S)


async def test_an_emergency_stop_hands_everything_back_and_nobody_claims_until_it_is_over(
    swarm: SwarmInfrastructure,
) -> None:
    await given_jobs(swarm, 4)
    worker, working = await running(swarm, Slow("slow-1", swarm=swarm), Other("other-1", swarm=swarm))
    await until(lambda: Slow.began + Other.began == 4, PATIENCE_S)

    assert await swarm.controls.emergency_stop("smoke in the server room") == 1

    async def handed_back() -> bool:
        return await statuses(swarm) == {"waiting": 4}

    await until(handed_back, PATIENCE_S)
    assert {agent.gate for agent in await swarm.blackboard.agents.list()} == {"emergency: smoke in the server room"}
    assert all(item.attempts == 0 for item in await swarm.blackboard.queries.by_status("jobs", "waiting"))
    Slow.go_on.set()
    assert await swarm.controls.resume() is True

    async def all_done() -> bool:
        return await statuses(swarm) == {"done": 4}

    await until(all_done, PATIENCE_S)
    worker.tell_to_stop()
    await in_time(working, PATIENCE_S)


async def test_agents_hear_that_they_are_paused_and_may_go_on(swarm: SwarmInfrastructure) -> None:
    heard: list[Message] = []

    class Listening(Slow):
        async def setup(self) -> None:
            self.bus.on(MessageType.PAUSE, heard.append)
            self.bus.on(MessageType.RESUME, heard.append)

    worker, working = await running(swarm, Listening("l-1", swarm=swarm))
    await swarm.controls.pause("role:listening", reason="lunch")
    await given_jobs(swarm, 1)
    await until(lambda: heard, PATIENCE_S)

    assert (heard[0].recipient, heard[0].payload) == ("role:listening", {"reason": "lunch", "board": "jobs"})
    assert await swarm.controls.resume("role:listening") is True
    await until(lambda: Listening.began == 1, PATIENCE_S)
    await until(lambda: [each.type for each in heard] == [MessageType.PAUSE, MessageType.RESUME], PATIENCE_S)
    Slow.go_on.set()
    worker.tell_to_stop()
    await in_time(working, PATIENCE_S)


async def test_a_threshold_of_a_budget_is_told_to_everybody(swarm: SwarmInfrastructure) -> None:
    from swarm_infrastructure import AgentBudget, TokenUsage

    heard: list[Message] = []
    bus = swarm.bus_of("accountant")
    bus.on(MessageType.BUDGET_ALERT, heard.append)
    await bus.start()
    await swarm.cost_manager.set_budget(AgentBudget(agent_id="ada", daily_limit=0.01, hourly_limit=None))

    usage = TokenUsage(prompt_tokens=0, completion_tokens=16_000)
    cost = await swarm.cost_manager.record_usage("ada", "t", "summary", "gpt-4o-mini", usage)
    await until(lambda: heard, PATIENCE_S)

    [told] = [each.payload for each in heard if each.payload["scope"] == "agent:ada"]
    assert told == {"scope": "agent:ada", "window": "day", "threshold": 0.95, "spent": cost, "limit": 0.01}
    await bus.stop()


@pytest.mark.parametrize("who", ["", "slow-1", "team:x", "agent:", "role:"])
async def test_a_wrong_addressee_is_refused(swarm: SwarmInfrastructure, who: str) -> None:
    with pytest.raises(InvalidInputError):
        await swarm.controls.drain(who)
    with pytest.raises(InvalidInputError, match="drain, shutdown"):
        await swarm.blackboard.agents.order("dance")
