"""Who works on the board: agents and their heartbeats; gates that stop them; revoking, which takes their claims away."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from given import OpenBoard, Tape, clock_of, given_claim, given_item, given_items, held_call, in_time, snapshot

from swarm_infrastructure import CostManager, TokenUsage
from swarm_infrastructure.blackboard import AgentStatus, Blackboard, job_board
from swarm_infrastructure.errors import ClaimLostError, InvalidInputError, ItemNotFoundError
from swarm_infrastructure.testing import ManualClock


async def test_a_registered_agent_is_listed_with_what_it_said_of_itself(board: Blackboard) -> None:
    await board.register_agent("scout_1", "scout", ["rss", "atom"], host="here", pid=7)

    [state] = await board.agents.list()
    assert (state.agent_id, state.role, state.status) == ("scout_1", "scout", AgentStatus.IDLE)
    assert (state.capabilities, state.facts, state.gate) == (("rss", "atom"), {"host": "here", "pid": 7}, "")
    assert state.last_heartbeat_ms > 0
    for row in (await board.get_agent_state("scout_1"), *await board.get_all_agents()):
        assert row is not None
        assert row | {"age_s": 0} == state.as_dict() | {"age_s": 0}
    assert await board.get_agent_state("scout_2") is None


async def test_agents_are_listed_by_id_and_described_anew_when_they_register_again(board: Blackboard) -> None:
    for agent in ("b", "c", "a"):
        await board.register_agent(agent, "scout", ["rss"], host="old")
    await board.register_agent("b", "writer")

    states = await board.agents.list()

    assert [state.agent_id for state in states] == ["a", "b", "c"]
    assert (states[1].role, states[1].capabilities, states[1].facts) == ("writer", (), {})


async def test_an_agent_without_a_heartbeat_is_shown_offline_within_the_time_set(open_board: OpenBoard) -> None:
    board = await open_board(job_board("jobs"), dead_after_s=45)
    clock = clock_of(board)
    await board.register_agent("quiet", "scout")
    await board.register_agent("loud", "scout")

    for _ in range(2):
        await clock.advance(s=22)
        await board.heartbeat("loud")
    quiet, loud = [await board.get_agent_state(agent) for agent in ("quiet", "loud")]
    assert quiet is not None and quiet["status"] == "idle"
    await clock.advance(s=2)

    states = {state.agent_id: state for state in await board.agents.list()}
    assert loud is not None
    assert (states["quiet"].status, states["loud"].status) == ("offline", "idle")
    assert 46 <= states["quiet"].age_s < 50 > states["loud"].age_s
    await board.heartbeat("quiet")
    assert (await board.agents.list())[1].status == "idle"


async def test_what_an_agent_does_shows_in_its_state(board: Blackboard) -> None:
    await board.register_agent("w1", "worker")
    await given_items(board, "a", "b")
    a, b = await board.claim("jobs", "w1", most=2)

    working = await board.agents.find("w1")
    await board.update_agent_state("w1", status="error", mood="bad")
    failing = await board.agents.find("w1")
    await board.complete(a.claim)
    await board.hand_back(b.claim)
    for tokens in (120, 3):
        await CostManager.of(board).record_usage("w1", "a", "summary", "gpt-4o-mini", TokenUsage(prompt_tokens=tokens))
    await board.update_agent_state("w1", status=AgentStatus.IDLE)
    idle = await board.agents.find("w1")

    assert working is not None and failing is not None and idle is not None
    assert (working.status, sorted(working.current_items)) == ("working", ["a", "b"])
    assert (failing.status, failing.facts) == ("error", {"mood": "bad"})
    assert (idle.status, idle.current_items, idle.facts) == ("idle", (), {"mood": "bad"})
    assert (idle.tasks_completed, idle.tasks_handed_back, idle.total_tokens_used) == (1, 1, 123)


async def test_a_heartbeat_of_an_unknown_agent_says_so(board: Blackboard) -> None:
    with pytest.raises(ItemNotFoundError):
        await board.heartbeat("nobody")


async def test_heartbeats_of_many_agents_travel_together_and_each_learns_of_its_gate(board: Blackboard) -> None:
    await board.agents.pause("role:writer", reason="no budget")
    await board.agents.pause("agent:w3", reason="odd")
    tape = Tape(board.store)

    told = await board.agents.beat_all([("w1", "writer", {}), ("w2", "scout", {}), ("w3", "scout", {"x": 1})])
    gates = [gate for gate, _ in told]

    assert gates == ["no budget", "", "odd"]
    assert tape.count("heartbeat") == 1
    states = {state.agent_id: (state.status, state.gate) for state in await board.agents.list()}
    assert states == {"w1": ("paused", "no budget"), "w2": ("idle", ""), "w3": ("paused", "odd")}


async def test_an_unregistered_agent_is_forgotten_and_its_claims_stay(board: Blackboard) -> None:
    await board.register_agent("w1", "worker")
    claimed = await given_claim(board, "a", "w1")

    await board.agents.unregister("w1")

    assert await board.agents.list() == []
    await board.complete(claimed.claim)


async def test_agents_that_are_long_dead_are_forgotten(board: Blackboard, clock: ManualClock) -> None:
    await board.register_agent("dead", "worker")
    await clock.advance(s=3600)
    await board.register_agent("alive", "worker")

    assert await board.agents.forget_dead(1800) == 1

    assert [state.agent_id for state in await board.agents.list()] == ["alive"]


@pytest.mark.parametrize(
    "bad",
    [
        {"agent_id": "a b"}, {"agent_id": ""}, {"role": "A Role"}, {"role": ""}, {"capabilities": ["a/b"]},
        {"status": "asleep"}, {"x": float("nan")}, {"x": {1, 2}}, {"x": "\ud800"},
    ],
)  # fmt: skip
async def test_a_bad_description_is_refused_and_harms_nobody(board: Blackboard, bad: dict[str, Any]) -> None:
    await board.register_agent("good", "worker")
    before = await snapshot(board.store)

    with pytest.raises(InvalidInputError):
        await board.register_agent(**({"agent_id": "w", "role": "worker"} | bad))
    if not {"role", "agent_id"} & set(bad):
        with pytest.raises(InvalidInputError):
            await board.update_agent_state("good", **bad)

    assert await snapshot(board.store) == before
    assert len(await board.agents.list()) == 1


# --- gates ------------------------------------------------------------------------------------------------------------


async def test_gates_are_listed_and_opened_again(board: Blackboard) -> None:
    await board.agents.pause("agent:w1", reason="lunch")
    await board.agents.pause("role:writer")
    await board.agents.pause()

    assert await board.agents.gates() == {"agent:w1": "lunch", "role:writer": "paused", "*": "paused"}
    assert [await board.agents.resume(who) for who in ("agent:w1", "agent:w1", "role:writer", "*")] == [
        True,
        False,
        True,
        True,
    ]
    assert await board.agents.gates() == {}


@pytest.mark.parametrize("who", ["w1", "", "agent:", "agent:a b", "role:A", "team:x", "**"])
async def test_a_gate_for_nobody_is_refused(board: Blackboard, who: str) -> None:
    with pytest.raises(InvalidInputError):
        await board.agents.pause(who)
    with pytest.raises(InvalidInputError):
        await board.agents.resume(who)

    assert await board.agents.gates() == {}


async def test_a_revoked_agent_loses_its_claims_at_once_and_may_write_nothing(board: Blackboard) -> None:
    await given_items(board, *"abc")
    a, b = await board.claim("jobs", "rogue", most=2)

    assert await board.agents.revoke("rogue", agent="ann", reason="it misbehaved") == 2

    for claimed in (a, b):
        with pytest.raises(ClaimLostError, match="revoked"):
            await board.complete(claimed.claim)
    assert await board.claims.renew([a.claim]) == ["the item was taken back"]
    assert await board.claim("jobs", "rogue") == []
    assert await board.claims.claim_item("c", "rogue") is None
    got = await board.claim("jobs", "honest", most=5)
    assert [(each.item.id, each.item.attempts, each.item.crashes) for each in got] == [
        ("a", 1, 0),
        ("b", 1, 0),
        ("c", 1, 0),
    ]
    event = (await board.history("a"))[2]
    assert (event.kind, event.agent, event.reason) == ("revoked", "rogue", "it misbehaved by ann")


async def test_a_revoked_agent_may_claim_again_when_it_is_resumed(board: Blackboard) -> None:
    await given_item(board, "a")
    await board.agents.revoke("w1")

    await board.agents.resume("agent:w1")

    assert len(await board.claim("jobs", "w1")) == 1


async def test_revoking_takes_everything_away_though_the_agent_ends_something_meanwhile(board: Blackboard) -> None:
    await given_items(board, *"abc")
    a, _, _ = await board.claim("jobs", "w1", most=3)
    read = board.queries.by_agent

    async def by_agent(agent_id: str) -> list[Any]:
        found = await read(agent_id)
        await board.agents.resume("agent:w1")
        await board.complete(a.claim)  # it was quicker
        await board.store.command("HSET", board.keys.gates, "agent:w1", "revoked")
        return found

    board.queries.by_agent = by_agent  # type: ignore[method-assign]

    assert await board.agents.revoke("w1") == 2

    assert await board.queries.counts() == {"jobs/done/": 1, "jobs/waiting/": 2}


async def test_revoking_an_expired_claim_is_no_crash_and_one_without_claims_takes_nothing(
    board: Blackboard, clock: ManualClock
) -> None:
    await given_claim(board, "a", "w1")
    await clock.advance(s=31)

    assert await board.agents.revoke("w1") == 1
    assert await board.agents.revoke("w2") == 0

    item = await board.get("a")
    assert (item.holder, item.attempts, item.crashes) == ("", 0, 0)


async def test_a_claim_under_way_while_its_agent_is_revoked_is_taken_away_too(board: Blackboard) -> None:
    await given_item(board, "a")
    async with held_call(board.store, "claim") as (executed, let):
        claiming = asyncio.create_task(board.claim("jobs", "w1"))
        await in_time(executed.wait())
        assert await board.agents.revoke("w1") == 1
        let.set()
        [claimed] = await claiming

    with pytest.raises(ClaimLostError):
        await board.complete(claimed.claim)


async def test_a_heartbeat_whose_reply_was_lost_changes_only_the_time(board: Blackboard) -> None:
    tape = Tape(board.store)
    await board.register_agent("w1", "worker", ["x"])
    call = tape.last("heartbeat")

    answer = await tape.again(call)

    assert answer[1:] == call.answer[1:]
    assert [state.capabilities for state in await board.agents.list()] == [("x",)]
