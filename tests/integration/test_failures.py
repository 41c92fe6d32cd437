"""Failures: recorded, answered by their type, escalated to people; and agents that take over from others."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from given import until

from swarm_infrastructure import (
    BaseAgent,
    Claims,
    FailureType,
    Item,
    Message,
    MessageType,
    ModelUnavailableError,
    Outcome,
    RecoveryAction,
    RetryPolicy,
    Settings,
    Submission,
    Swarm,
    SwarmInfrastructure,
    Work,
    job_board,
)
from swarm_infrastructure.agents import Worker
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.errors import InvalidInputError
from swarm_infrastructure.failure_recovery import ACTIONS, type_of_error

JOBS = job_board("jobs", max_attempts=3)
SOON_S = 15.0


def settings_for(server: Any) -> Settings:
    return Settings(redis_url=server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=2, heartbeat_s=0.2)


@pytest.fixture
async def swarm(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    async with SwarmInfrastructure(JOBS, settings_for(redis_server), retry=RetryPolicy(base_delay=0.01)) as swarm:
        yield swarm
        report = await audit(swarm.blackboard.store, swarm.settings.namespace, JOBS.name)
        assert report.clean, report.breaches


async def submit(swarm: SwarmInfrastructure, item_id: str = "a") -> None:
    await swarm.blackboard.submit(Submission(id=item_id, section="jobs", payload={}))


async def test_what_failed_is_remembered_and_marked_when_it_is_well_again(swarm: SwarmInfrastructure) -> None:
    recovery = swarm.failure_recovery
    first = await recovery.record_failure("llm_error", "ada", "t1", "no answer")
    await recovery.record_failure(FailureType.AGENT_CRASH, "bob", "t2")
    await recovery.mark_recovered(first)

    newest, oldest = await recovery.get_failure_history()
    assert (newest.type, newest.agent_id, newest.recovered_ms) == ("agent_crash", "bob", 0)
    assert (oldest.type, oldest.error, oldest.recovered_ms > 0) == ("llm_error", "no answer", True)
    assert [each.task_id for each in await recovery.get_failure_history("ada")] == ["t1"]
    assert [each.task_id for each in await recovery.get_failure_history(failure_type="agent_crash")] == ["t2"]
    assert len(await recovery.get_failure_history(count=1)) == 1


async def test_the_history_is_bounded(swarm: SwarmInfrastructure) -> None:
    for n in range(1300):
        await swarm.failure_recovery.record_failure("unknown", "ada", f"t{n}")
    found = await swarm.failure_recovery.get_failure_history(count=5000)
    assert 1000 <= len(found) < 1200
    assert found[0].task_id == "t1299"


@pytest.mark.parametrize("kind", list(FailureType))
async def test_each_type_of_failure_has_its_action(swarm: SwarmInfrastructure, kind: FailureType) -> None:
    done = await swarm.failure_recovery.handle_failure(kind, "ada", "task_1", "it broke", agent_role="writer")
    listed = [each.task_id for each in await swarm.failure_recovery.escalations()]
    match ACTIONS[kind]:
        case RecoveryAction.RETRY:
            assert (done.action, listed) == (RecoveryAction.RETRY, [])
            assert 0 <= done.retry_in_s <= 0.01
        case RecoveryAction.FALLBACK_AGENT:  # nobody is there to take over
            assert (done.action, done.fallback_id, listed) == (RecoveryAction.ESCALATE, None, ["task_1"])
        case action:
            assert (done.action, listed) == (action, ["task_1"])
    [failure] = await swarm.failure_recovery.get_failure_history()
    assert (failure.id, failure.type) == (done.failure_id, kind)


async def test_after_the_last_attempt_a_person_has_to_look(swarm: SwarmInfrastructure) -> None:
    recovery = swarm.failure_recovery
    assert (await recovery.handle_failure("network_error", "ada", "t", attempt=3)).action is RecoveryAction.RETRY
    assert (await recovery.handle_failure("network_error", "ada", "t", attempt=4)).action is RecoveryAction.ESCALATE


async def test_a_handler_hears_of_a_failure_and_may_choose_what_is_done(swarm: SwarmInfrastructure) -> None:
    heard = []

    async def skip(failure: Any) -> RecoveryAction:
        heard.append(failure.task_id)
        return RecoveryAction.SKIP_TASK

    swarm.failure_recovery.register_recovery_handler("validation_failed", skip)
    done = await swarm.failure_recovery.handle_failure("validation_failed", "ada", "t", ValueError("no date"))
    assert (done.action, heard, await swarm.failure_recovery.escalations()) == (RecoveryAction.SKIP_TASK, ["t"], [])


async def test_what_cannot_be_archived_is_escalated(swarm: SwarmInfrastructure) -> None:
    swarm.failure_recovery.register_recovery_handler("unknown", lambda _failure: "archive")
    await swarm.failure_recovery.handle_failure("unknown", "ada", "t")
    [told] = await swarm.failure_recovery.escalations()
    assert "can't be archived" in told.why


async def test_an_escalated_task_is_listed_once_told_to_all_and_can_be_resolved(swarm: SwarmInfrastructure) -> None:
    heard = asyncio.Queue[Message]()
    async with swarm.bus_of("anna") as bus:
        bus.on("system.escalation", heard.put)
        await swarm.failure_recovery.escalate("t", "first", agent_id="ada")
        await swarm.failure_recovery.escalate("t", "second", stage="voice")
        message = await asyncio.wait_for(heard.get(), SOON_S)
    assert message.payload["task_id"] == "t"
    [told] = await swarm.failure_recovery.escalations()
    assert (told.task_id, told.why, told.facts) == ("t", "second", {"stage": "voice"})
    assert await swarm.failure_recovery.resolve_escalation("t")
    assert not await swarm.failure_recovery.resolve_escalation("t")
    assert await swarm.failure_recovery.escalations() == []


async def test_the_health_says_what_is_wrong(swarm: SwarmInfrastructure) -> None:
    recovery = swarm.failure_recovery
    assert (await recovery.get_health_status())["status"] == "healthy"
    failure_id = await recovery.record_failure("rate_limit", "ada", "t")
    await recovery.breaker_states.open("runway")
    health = await recovery.get_health_status()
    assert (health["status"], health["open_breakers"], health["failures_last_hour"]) == (
        "degraded", ["runway"], {"rate_limit": 1},
    )  # fmt: skip
    await recovery.breaker_states.close("runway")
    await recovery.mark_recovered(failure_id)
    assert (await recovery.get_health_status())["status"] == "healthy"
    await recovery.escalate("t", "look")
    assert (await recovery.get_health_status()) | {"failures_last_hour": {}} == {
        "status": "failing", "open_breakers": [], "failures_last_hour": {}, "unrecovered": 0, "escalations": ["t"],
    }  # fmt: skip


def test_an_exception_has_a_type() -> None:
    assert type_of_error(ModelUnavailableError("m", "busy")) is FailureType.LLM_ERROR
    assert type_of_error(ConnectionError()) is FailureType.NETWORK_ERROR
    assert type_of_error(TimeoutError()) is FailureType.AGENT_TIMEOUT
    assert type_of_error(ValueError()) is FailureType.VALIDATION_FAILED
    assert type_of_error(KeyError()) is FailureType.UNKNOWN


# -- fallback agents ------------------------------------------------------------------------------------------------------


class Broken(BaseAgent):
    """Fails with everything."""

    role = "designer"
    claims = Claims("jobs")
    retry = RetryPolicy(base_delay=60.0)  # nobody else would get it soon

    async def process(self, item: Item, work: Work) -> Outcome:
        raise RuntimeError("no picture")


class Simple(BaseAgent):
    """Takes what it is given, and nothing else."""

    role = "designer_simple"
    claims = Claims("other")
    did: list[str]

    async def process(self, item: Item, work: Work) -> Outcome:
        type(self).did.append(item.id)
        return work.done(self.agent_id)


TWO = job_board("jobs").with_sections(other=JOBS.sections["jobs"])


@pytest.fixture
async def studio(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    Simple.did = []
    async with SwarmInfrastructure(TWO, settings_for(redis_server)) as swarm:
        yield swarm


async def running(worker: Worker) -> asyncio.Task[None]:
    task = asyncio.create_task(worker.run(signals=False))
    await until(lambda: all(runner._task is not None for runner in worker.runners), SOON_S)  # each of them listens
    return task


async def stopped(worker: Worker, task: asyncio.Task[None]) -> None:
    worker.tell_to_stop()
    await asyncio.wait_for(task, SOON_S)


async def finished(swarm: SwarmInfrastructure, item_id: str = "a") -> bool:
    return (await swarm.blackboard.get(item_id)).status == "done"


async def test_an_idle_agent_takes_over_what_another_failed_with(studio: SwarmInfrastructure) -> None:
    studio.failure_recovery.register_fallback("designer", ["nobody", "designer_simple"])
    worker = Worker(studio, [Broken("broken-1", swarm=studio), Simple("simple-1", swarm=studio)])
    task = await running(worker)
    await submit(studio)
    await until(lambda: finished(studio), SOON_S)
    await stopped(worker, task)

    assert (await studio.blackboard.get("a")).result == "simple-1"
    assert Simple.did == ["a"]
    assert await studio.failure_recovery.escalations() == []


async def test_a_registered_class_is_started_in_this_process(studio: SwarmInfrastructure) -> None:
    swarm = Swarm([Broken], fallbacks={"designer": [Simple]}, board=TWO)
    worker = swarm.make_worker(studio)
    task = await running(worker)
    await submit(studio)
    await until(lambda: finished(studio), SOON_S)
    fallback = (await studio.blackboard.get("a")).result
    assert fallback.startswith("designer_simple-")
    assert fallback in [agent.agent_id for agent in await studio.blackboard.agents.list()]
    await stopped(worker, task)
    assert fallback not in [agent.agent_id for agent in await studio.blackboard.agents.list()]  # it left in order


async def test_another_process_is_asked_to_start_one(studio: SwarmInfrastructure) -> None:
    there = Swarm([Simple], fallbacks={"designer": [Simple]}, board=TWO).make_worker(studio)
    task = await running(there)
    there.runners[0].status = "working"  # and so not idle: a new one is needed
    await until(lambda: heard_as_working(studio), SOON_S)
    async with SwarmInfrastructure(TWO, studio.settings) as here:
        here.failure_recovery.register_fallback("designer", ["designer_simple"])
        await submit(here)
        found = await here.failure_recovery.spawn_fallback_agent("designer-9", "designer", "a", {"prompt": "news"})
        assert found is not None
        await until(lambda: finished(here), SOON_S)
        assert (await here.blackboard.get("a")).result == found
    await stopped(there, task)


async def heard_as_working(swarm: SwarmInfrastructure) -> bool:
    return any(each.status.value == "working" for each in await swarm.blackboard.agents.list())


async def test_an_agent_hears_what_it_is_to_take_over(studio: SwarmInfrastructure) -> None:
    heard = asyncio.Queue[Message]()
    studio.failure_recovery.register_fallback("designer", ["simple-1"])
    agent = Simple("simple-1", swarm=studio)
    agent.bus.on(MessageType.TASK_ASSIGN, heard.put)
    worker = Worker(studio, [agent])
    task = await running(worker)

    async def there() -> bool:
        return await studio.blackboard.agents.find("simple-1") is not None

    await until(there)
    assert (
        await studio.failure_recovery.spawn_fallback_agent("designer-9", "designer", "task_001", {"n": 1}) == "simple-1"
    )
    message = await asyncio.wait_for(heard.get(), SOON_S)
    assert message.payload == {
        "task_id": "task_001", "task_type": "designer", "parameters": {"n": 1}, "is_fallback": True,
        "failed_agent_id": "designer-9",
    }  # fmt: skip
    await stopped(worker, task)


async def test_without_anybody_to_take_over_the_task_is_escalated(studio: SwarmInfrastructure) -> None:
    studio.failure_recovery.register_fallback("designer", ["backup"])
    assert await studio.failure_recovery.spawn_fallback_agent("designer-1", "designer", "task_001") is None
    [told] = await studio.failure_recovery.escalations()
    assert (told.task_id, told.agent_id) == ("task_001", "designer-1")
    assert "(backup)" in told.why


async def test_an_item_that_is_given_up_is_escalated_with_its_last_error(studio: SwarmInfrastructure) -> None:
    class Hopeless(BaseAgent):
        claims = Claims("jobs")

        async def process(self, item: Item, work: Work) -> Outcome:
            return work.fail("no rights", give_up=True, type="validation_failed")

    worker = Worker(studio, [Hopeless("hopeless-1", swarm=studio)])
    task = await running(worker)
    await submit(studio)

    async def listed() -> bool:
        return bool(await studio.failure_recovery.escalations())

    await until(listed, SOON_S)
    await stopped(worker, task)
    [told] = await studio.failure_recovery.escalations()
    assert (told.task_id, told.why, told.type) == ("a", "no rights", FailureType.VALIDATION_FAILED)
    [failure] = await studio.failure_recovery.get_failure_history()
    assert (failure.agent_id, failure.task_id) == ("hopeless-1", "a")


async def test_a_list_of_fallbacks_is_a_list(studio: SwarmInfrastructure) -> None:
    with pytest.raises(InvalidInputError, match="fallbacks of role 'designer'"):
        studio.failure_recovery.register_fallback("designer", "backup")


async def test_many_failures_start_one_fallback_agent_that_works_them_off_in_its_slots(
    studio: SwarmInfrastructure,
) -> None:
    worker = Swarm([Broken], fallbacks={"designer": [Simple]}, board=TWO).make_worker(studio)
    task = await running(worker)
    for n in range(6):
        await submit(studio, f"i{n}")

    async def all_done() -> bool:
        return (await studio.blackboard.get_section_stats("jobs"))["by_status"].get("done") == 6

    await until(all_done, 25.0)
    assert len({(await studio.blackboard.get(f"i{n}")).result for n in range(6)}) == 1
    assert len(worker.runners) == 2
    assert await studio.failure_recovery.escalations() == []
    await stopped(worker, task)


async def test_a_fallback_that_cannot_begin_is_no_agent_and_the_next_one_is_taken(studio: SwarmInfrastructure) -> None:
    class Unfit(Simple):
        role = "unfit"

        async def setup(self) -> None:
            raise RuntimeError("no licence")

    worker = Swarm([Broken], fallbacks={"designer": [Unfit, Simple]}, board=TWO).make_worker(studio)
    task = await running(worker)
    await submit(studio)
    await until(lambda: finished(studio), SOON_S)
    assert (await studio.blackboard.get("a")).result.startswith("designer_simple")
    assert not [agent for agent in await studio.blackboard.agents.list() if agent.role == "unfit"]
    await stopped(worker, task)


async def test_while_the_worker_leaves_nobody_is_started(studio: SwarmInfrastructure) -> None:
    worker = Swarm([Broken], fallbacks={"designer": [Simple]}, board=TWO).make_worker(studio)
    task = await running(worker)
    worker.tell_to_stop()
    assert await studio.failure_recovery.fallbacks.start("designer_simple") is None
    await asyncio.wait_for(task, SOON_S)
