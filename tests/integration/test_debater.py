"""Debaters: who is invited argues and votes once, and who fails, abstains or is paused holds nobody up."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
from given import in_time, until

from swarm_infrastructure import (
    Ballot,
    Debate,
    DebateOutcome,
    Debater,
    Seat,
    Settings,
    SwarmInfrastructure,
    TokenUsage,
    job_board,
)
from swarm_infrastructure.agents import bench
from swarm_infrastructure.blackboard.audit import audit
from swarm_infrastructure.consensus import audit_debates
from swarm_infrastructure.cost_manager import Budget, audit_money
from swarm_infrastructure.testing import FakeLLM

JOBS = job_board("jobs", lease_s=5.0)
PATIENCE_S = 20.0


class Opinionated(Debater):
    """Says what it was made to say."""

    def __init__(self, choice: str | None = "yes", confidence: float = 1.0, stance: str = "", **facts: Any) -> None:
        self.stance = stance  # type: ignore[misc]
        super().__init__(**facts)
        self.choice, self.confidence, self.asked = choice, confidence, 0

    async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
        self.asked += 1
        if self.choice is None:
            return None
        return Ballot(choice=self.choice, confidence=self.confidence, argument=f"{self.choice}, says {self.agent_id}")


@pytest.fixture
async def swarm(redis_server: Any) -> AsyncIterator[SwarmInfrastructure]:
    settings = Settings(redis_url=redis_server.url, namespace="t" + secrets.token_hex(6), shutdown_grace_s=1)
    llm = FakeLLM(["yes"] * 20, usage=TokenUsage(prompt_tokens=10, completion_tokens=10))
    async with SwarmInfrastructure(JOBS, settings, llm=llm) as swarm:
        yield swarm
        store, keys = swarm.blackboard.store, swarm.blackboard.keys
        assert (await audit(store, settings.namespace, JOBS.name)).clean
        assert await audit_debates(store, keys) == []
        assert await audit_money(swarm.cost_manager.ledger) == []


async def started(*agents: Debater) -> None:
    for agent in agents:
        await agent.start()


async def stopped(*agents: Debater) -> None:
    await asyncio.gather(*(agent.stop() for agent in agents))


async def test_those_who_are_invited_argue_and_vote_once_and_the_moderator_hears_the_outcome(
    swarm: SwarmInfrastructure,
) -> None:
    agents = [Opinionated(choice, agent_id=f"d{n}", swarm=swarm) for n, choice in enumerate(["yes", "yes", "no"])]
    uninvited = Opinionated("no", agent_id="d9", swarm=swarm)
    await started(*agents, uninvited)

    await swarm.debates.open("d", "Is it?", ("yes", "no"), voters=["d0", "d1", "d2"], quorum=3, deadline_s=20)
    verdict = await in_time(swarm.debates.wait("d"), PATIENCE_S)

    assert (verdict.outcome, verdict.position, verdict.votes) == (DebateOutcome.CONSENSUS, "yes", 3)
    assert {vote.agent_id: vote.choice for vote in await swarm.debates.votes("d")} == {
        "d0": "yes",
        "d1": "yes",
        "d2": "no",
    }
    said = {argument.agent_id: argument.text for argument in await swarm.debates.arguments("d")}
    assert said == {agent.agent_id: f"{agent.choice}, says {agent.agent_id}" for agent in agents}
    await stopped(*agents, uninvited)
    assert [agent.asked for agent in [*agents, uninvited]] == [1, 1, 1, 0]


async def test_a_role_may_be_invited_and_an_invitation_that_nobody_heard_is_found(swarm: SwarmInfrastructure) -> None:
    await swarm.debates.open("d", "Is it?", ("yes", "no"), roles=["debater"], expected=2, deadline_s=20)
    agents = [Opinionated(agent_id=f"d{n}", swarm=swarm) for n in range(2)]
    await started(*agents)  # after the invitation

    verdict = await in_time(swarm.debates.wait("d"), PATIENCE_S)

    assert (verdict.position, verdict.votes) == ("yes", 2)
    await stopped(*agents)


async def test_who_fails_is_asked_again_who_abstains_is_not_and_neither_holds_the_others_up(
    swarm: SwarmInfrastructure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm_infrastructure.agents.debater.AGAIN_S", 0.05)
    monkeypatch.setattr("swarm_infrastructure.agents.debater.LOOK_S", 0.05)

    class Failing(Opinionated):
        async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
            self.asked += 1
            raise ValueError("no idea")

    class Odd(Opinionated):
        async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
            self.asked += 1
            return Ballot(choice="perhaps")

    failing, odd = Failing(agent_id="d0", swarm=swarm), Odd(agent_id="d1", swarm=swarm)
    abstaining, sure = Opinionated(None, agent_id="d2", swarm=swarm), Opinionated(agent_id="d3", swarm=swarm)
    await started(failing, odd, abstaining, sure)

    await swarm.debates.open("d", "Is it?", ("yes", "no"), voters=["d0", "d1", "d2", "d3"], quorum=3, deadline_s=1.5)
    await until(lambda: failing.asked == 3 and odd.asked == 3, PATIENCE_S)
    verdict = await in_time(swarm.debates.wait("d"), PATIENCE_S)

    assert (verdict.outcome, verdict.votes) == (DebateOutcome.NO_QUORUM, 1)
    await stopped(failing, odd, abstaining, sure)
    assert [agent.asked for agent in (failing, odd, abstaining, sure)] == [3, 3, 1, 1]


async def test_a_debater_that_thinks_for_long_takes_part_in_other_debates_meanwhile(swarm: SwarmInfrastructure) -> None:
    go_on = asyncio.Event()

    class Thinking(Opinionated):
        async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
            if debate.id == "hard":
                await go_on.wait()
            return await super().argue(debate, seat)

    agent = Thinking(agent_id="d0", swarm=swarm)
    await started(agent)
    await swarm.debates.open("hard", "Is it?", ("yes", "no"), voters=["d0"], deadline_s=20)
    await until(lambda: agent.background, PATIENCE_S)
    await swarm.debates.open("easy", "Is it?", ("yes", "no"), voters=["d0"], deadline_s=20)

    assert (await in_time(swarm.debates.wait("easy"), PATIENCE_S)).position == "yes"
    go_on.set()
    assert (await in_time(swarm.debates.wait("hard"), PATIENCE_S)).position == "yes"
    await stopped(agent)


async def test_who_may_not_argue_any_more_still_votes_once(swarm: SwarmInfrastructure) -> None:
    agent = Opinionated(agent_id="d0", swarm=swarm)
    await started(agent)

    await swarm.debates.open("d", "Is it?", ("yes", "no"), voters=["d0"], arguments_each=0, deadline_s=20)

    assert (await in_time(swarm.debates.wait("d"), PATIENCE_S)).position == "yes"
    await stopped(agent)
    assert agent.asked == 1


async def test_waiting_for_many_debates_listens_once(swarm: SwarmInfrastructure) -> None:
    await swarm.debates.open("d", "Is it?", ("yes", "no"), voters=["d0"], deadline_s=20)
    await swarm.debates.cancel("d")
    for _ in range(50):
        await swarm.debates.wait("d")

    assert swarm._hub is not None
    await until(lambda: len(swarm._hub._listeners.get("swarm.debates", {})) <= 1, PATIENCE_S)


async def test_who_is_paused_takes_no_part_until_it_may(swarm: SwarmInfrastructure) -> None:
    agent = Opinionated(agent_id="d0", swarm=swarm)
    await started(agent)
    await swarm.controls.pause("role:debater")
    await swarm.debates.open("d", "Is it?", ("yes", "no"), voters=["d0"], deadline_s=20)
    assert await bench(swarm) == {}

    await swarm.controls.resume("role:debater")

    assert (await in_time(swarm.debates.wait("d"), PATIENCE_S)).position == "yes"
    await stopped(agent)


async def test_an_opinion_is_paid_from_the_items_budget_and_by_one_debater_of_a_stance(
    swarm: SwarmInfrastructure,
) -> None:
    class Asking(Opinionated):
        async def argue(self, debate: Debate, seat: Seat) -> Ballot | None:
            answered = await seat.ask("debate_argument", debate.topic, max_output_tokens=50)
            self.recorded = answered.recorded
            return Ballot(choice=answered.text)

    await swarm.cost_manager.set_budget(Budget(scope="task:story_1", run_limit=1))
    first, second = (Asking(agent_id=f"d{n}", stance="pro", swarm=swarm) for n in range(2))
    for n, agent in enumerate((first, second)):
        await started(agent)
        await swarm.debates.open(f"d{n}", "Is it?", ("yes", "no"), voters=[f"d{n}"], item_id="story_1", deadline_s=20)
        assert (await in_time(swarm.debates.wait(f"d{n}"), PATIENCE_S)).position == "yes"
        await stopped(agent)

    account = (await swarm.cost_manager.ledger.accounts("task:story_1"))["total"]
    assert (first.recorded, second.recorded, account.requests) == (False, True, 1)


async def test_the_bench_names_one_living_agent_for_each_stance(swarm: SwarmInfrastructure) -> None:
    agents = [
        Opinionated(agent_id=f"d{n}", stance=stance, swarm=swarm) for n, stance in enumerate(["pro", "pro", "contra"])
    ]
    await started(*agents)

    seats = await bench(swarm)

    assert seats["contra"] == "d2"
    assert seats["pro"] in ("d0", "d1")
    assert set(seats) == {"pro", "contra"}
    await stopped(*agents)
    assert await bench(swarm) == {}
